//! The other end of the topics, for a person at a terminal: everything this node publishes, as a subscriber gets it.
//!
//! A client of its own beside the daemon's: another client id, no last will, nothing kept for it at the broker.

mod line;

use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;

use crate::base::error::Result;
use crate::base::shutdown::Shutdown;
use crate::config::MqttConfig;
use crate::mqtt::Patience;
use crate::mqtt::trouble::{Trouble, Waits};
use crate::mqtt::wire::{self, Event, Events, MAX_PACKET, Options};

pub use line::{Heard, object, printable};

/// How often the stop flag is looked at.
const TICK: Duration = Duration::from_millis(100);

/// How long a clean goodbye may take.
const GOODBYE: Duration = Duration::from_millis(300);

/// What there is to tell.
#[derive(Clone, Debug)]
pub enum News {
    /// Connected and subscribed.
    Connected,
    /// A message.
    Message(Heard),
    /// The link is lost or did not come about, for this reason; the next try is after so long.
    Trouble(String, Duration),
}

/// Subscribes to everything below the topic prefix of `config` and tells it until `shutdown`, or until `tell` breaks off.
/// A lost link is tried again and again.
///
/// # Errors
/// When the configuration cannot be used.
pub fn follow(config: &MqttConfig, patience: Patience, shutdown: &Shutdown, mut tell: impl FnMut(News) -> ControlFlow<()>) -> Result<()> {
    let config = MqttConfig { client_id: format!("palisade-tail-{}", uuid::Uuid::new_v4().simple()), ..config.clone() };
    let options = Options::new(&config, patience, MAX_PACKET)?;
    let (broker, filter) = (format!("{}:{}", config.host, config.port), format!("{}/#", config.topic_prefix));
    let runtime = super::runtime()?;
    let mut waits = Waits::new(patience);
    let serve = async {
        loop {
            let told = |news: News| {
                if matches!(news, News::Connected) {
                    waits.reset();
                }
                tell(news)
            };
            let Err(trouble) = connection(&options, &broker, &filter, patience, shutdown, told).await else { return };
            let delay = waits.after(&trouble);
            if tell(News::Trouble(trouble.sentence, delay)).is_break() || pause(delay, shutdown).await {
                return;
            }
        }
    };
    runtime.block_on(serve);
    // A name server that does not answer must not hold up the stop.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(())
}

/// One connection. `Ok`: it is to end.
async fn connection(
    options: &Options,
    broker: &str,
    filter: &str,
    patience: Patience,
    shutdown: &Shutdown,
    mut tell: impl FnMut(News) -> ControlFlow<()>,
) -> Result<(), Trouble> {
    let (client, mut events) = wire::open(options, patience.connect, 4);
    while let Some(event) = next(&mut events, broker, shutdown).await? {
        let end = match event {
            Event::Up(_) => {
                // The channel is empty, so this fails only by a defect of ours.
                client
                    .subscribe(filter)
                    .map_err(|_| Trouble::passing("the subscription could not be sent; this is a defect, please report it".into()))?;
                ControlFlow::Continue(())
            }
            Event::Subscribed(granted) => {
                if !granted {
                    let sentence = format!("broker {broker} refused the subscription to {filter}; must be a user who may read it");
                    return Err(Trouble { sentence, refused: true });
                }
                tell(News::Connected)
            }
            Event::Message(message) => {
                tell(News::Message(Heard { topic: message.topic, retained: message.retain, payload: message.payload }))
            }
            _ => ControlFlow::Continue(()),
        };
        if end.is_break() {
            break;
        }
    }
    // A courtesy to the broker's log.
    wire::goodbye(&client, &mut events, GOODBYE).await;
    Ok(())
}

/// The next event; `None` once the flag is up. A poll is never given up but to end the connection.
async fn next(events: &mut Events, broker: &str, shutdown: &Shutdown) -> Result<Option<Event>, Trouble> {
    let mut poll = pin!(events.poll());
    while !shutdown.is_set() {
        tokio::select! {
            event = &mut poll => return event.map(Some).map_err(|cause| Trouble::new(broker, cause)),
            () = sleep(TICK) => {}
        }
    }
    Ok(None)
}

/// Waits before the next try; returns whether the flag is up.
async fn pause(delay: Duration, shutdown: &Shutdown) -> bool {
    let mut left = delay;
    while !shutdown.is_set() && !left.is_zero() {
        sleep(left.min(TICK)).await;
        left = left.saturating_sub(TICK);
    }
    shutdown.is_set()
}
