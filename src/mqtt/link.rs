//! The one task that owns the connection: connects, hands out what waits on the desk, and starts anew when the link is lost.
//!
//! rumqttc forgets unacknowledged messages when a connection breaks and the next begins with a clean session. So every
//! connection here gets an event loop of its own, which starts with nothing inside; what the broker has not acknowledged
//! is still on the desk and goes out again. Its `poll` is never cancelled midway but to give the connection up.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing, Packet, QoS, SubscribeReasonCode};
use tokio::time::{sleep_until, timeout};

use crate::base::backoff::Backoff;
use crate::base::metrics::Counter;
use crate::mqtt::Patience;
use crate::mqtt::health::Health;
use crate::mqtt::pending::{Desk, Item};
use crate::mqtt::topic::is_events;
use crate::mqtt::trouble::{Quiet, Trouble};
use crate::mqtt::window::{ROOM, Window};

/// Between two tries while the daemon stops and records still wait.
const LAST_TRIES: Duration = Duration::from_millis(500);

/// How long a clean goodbye may take once `offline` is acknowledged.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the link is made from.
pub struct Parts {
    /// How to reach the broker, who we are, and the last will.
    pub options: MqttOptions,
    /// QoS of records, but at least 1 of events; figures are sent with QoS 0, all else with QoS 1.
    pub qos: QoS,
    /// `host:port`, for sentences.
    pub broker: String,
    /// How long to wait for what.
    pub patience: Patience,
    /// Where messages come from.
    pub desk: Arc<Desk>,
    /// Where it is told how the link is.
    pub health: Arc<Health>,
    /// Connections made.
    pub connects: Counter,
    /// Topic filters to subscribe to on each connection; few.
    pub subscriptions: Vec<String>,
    /// Takes each message that comes on them; must not block.
    pub inbox: Box<dyn Fn(Incoming<'_>) + Send>,
    /// Time between two figures of the moment.
    pub stats_interval: Duration,
    /// Makes them: topic and payload.
    pub stats: Box<dyn Fn() -> (String, Vec<u8>) + Send>,
}

/// A message from the broker.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'m> {
    /// Where it was published.
    pub topic: &'m str,
    /// What it says.
    pub payload: &'m [u8],
    /// Whether it is an old one that the broker had kept.
    pub retain: bool,
}

/// The link, connected or not.
pub struct Link {
    parts: Parts,
    backoff: Backoff,
    refusals: Backoff,
    quiet: Quiet,
    /// Whether the operator was told that the link is lost, and must be told that it is back.
    told_lost: bool,
    ever: bool,
    tries_since_closing: u32,
    stats_at: Instant,
}

impl Link {
    /// A link that has not tried yet.
    pub fn new(parts: Parts) -> Self {
        let Patience { retry, retry_most, .. } = parts.patience;
        Self {
            backoff: Backoff::new(retry, retry_most),
            // Half the longest delay and more between tries, so that a wrong password does not look like an attack.
            refusals: Backoff::new(retry_most, retry_most),
            quiet: Quiet::default(),
            told_lost: true,
            ever: false,
            tries_since_closing: 0,
            stats_at: Instant::now() + parts.stats_interval,
            parts,
        }
    }

    /// Serves the desk until it is closed and all is delivered, or its time is over.
    pub async fn serve(mut self) {
        while let Err(trouble) = self.connection().await {
            let lost = self.parts.health.down(&trouble.sentence);
            self.parts.desk.lock().rewind();
            let delay = if trouble.refused { self.refusals.next_delay() } else { self.backoff.next_delay() };
            if self.quiet.lets(&trouble.sentence, Instant::now()) {
                self.told_lost = true;
                let next = format!("{:.1}s", delay.as_secs_f64());
                tracing::warn!(next_try_in = next, "{}{}", if lost { "broker link lost: " } else { "" }, trouble.sentence);
            }
            if !self.pause(delay).await {
                break;
            }
        }
        let left = self.parts.desk.lock().abandon();
        if left > 0 {
            tracing::warn!(records = left, "broker {} did not take everything before the stop; the rest is dropped", self.parts.broker);
        }
    }

    /// One connection from the first try to its end. `Ok`: the work is done, or its time is over.
    async fn connection(&mut self) -> Result<(), Trouble> {
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(self.parts.patience.connect.as_secs().max(1));
        network.set_tcp_nodelay(true);
        let (client, mut events) = AsyncClient::new(self.parts.options.clone(), ROOM + 1 + self.parts.subscriptions.len());
        events.set_network_options(network);
        let mut window = Window::new(Instant::now());
        let mut connected = false;
        loop {
            let event = match self.event(&mut events, &client, &mut window, connected).await? {
                Some(event) => event,
                // Without a DISCONNECT the broker publishes our last will.
                None => return Ok(()),
            };
            let done = match event {
                Event::Incoming(Packet::ConnAck(_)) => {
                    connected = true;
                    self.up();
                    self.subscribe(&client)?;
                    None
                }
                Event::Incoming(Packet::SubAck(ack)) => {
                    if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                        self.refused_subscription();
                    }
                    None
                }
                Event::Incoming(Packet::Publish(message)) => {
                    (self.parts.inbox)(Incoming { topic: &message.topic, payload: &message.payload, retain: message.retain });
                    None
                }
                Event::Outgoing(Outgoing::Publish(pkid)) => window.sent(pkid, Instant::now()),
                Event::Incoming(Packet::PubAck(ack)) => window.acked(ack.pkid, Instant::now()),
                Event::Incoming(Packet::PubComp(ack)) => window.acked(ack.pkid, Instant::now()),
                Event::Incoming(Packet::PubRec(_)) => {
                    window.touched(Instant::now());
                    None
                }
                _ => None,
            };
            if let Some(item) = done {
                self.parts.desk.lock().acked(item);
                self.parts.desk.nudge();
                self.backoff.reset();
                self.refusals.reset();
            }
            if done == Some(Item::Offline) {
                goodbye(&client, &mut events).await;
                return Ok(());
            }
            if connected {
                self.pump(&client, &mut window)?;
            }
        }
    }

    /// The next event of the connection; meanwhile hands out what is put on the desk. `None`: the daemon's time is over.
    async fn event(
        &mut self,
        events: &mut EventLoop,
        client: &AsyncClient,
        window: &mut Window,
        connected: bool,
    ) -> Result<Option<Event>, Trouble> {
        let desk = self.parts.desk.clone();
        let mut poll = pin!(events.poll());
        loop {
            let closing = {
                let pending = desk.lock();
                if !connected && pending.may_leave() {
                    return Ok(None);
                }
                pending.closing()
            };
            let overdue = window.deadline(self.parts.patience.ack);
            let figures = connected.then_some(self.stats_at);
            let next = [closing, overdue, figures].into_iter().flatten().min();
            let alarm = async {
                match next {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = &mut poll => return event.map(Some).map_err(|error| self.trouble(&error)),
                () = desk.bell.notified() => if connected { self.pump(client, window)? },
                () = alarm => {
                    let now = Instant::now();
                    if closing.is_some_and(|at| at <= now) {
                        return Ok(None);
                    }
                    if overdue.is_some_and(|at| at <= now) {
                        let waited = self.parts.patience.ack.as_secs_f64();
                        return Err(Trouble::passing(format!("broker {} acknowledged nothing for {waited:.0} s", self.parts.broker)));
                    }
                    if figures.is_some_and(|at| at <= now) {
                        self.stats_at = now + self.parts.stats_interval;
                        let (topic, payload) = (self.parts.stats)();
                        desk.lock().stats(topic, payload);
                        self.pump(client, window)?;
                    }
                }
            }
        }
    }

    /// Hands out what waits, as far as the window has room.
    fn pump(&self, client: &AsyncClient, window: &mut Window) -> Result<(), Trouble> {
        while window.has_room() {
            let Some(message) = self.parts.desk.lock().next(window.is_idle()) else { break };
            let qos = match message.item {
                // A lost event is a wrong picture of the world for as long as its object is there.
                Item::Record(_) if self.parts.qos == QoS::AtMostOnce && is_events(&message.topic) => QoS::AtLeastOnce,
                Item::Record(_) => self.parts.qos,
                Item::Stats => QoS::AtMostOnce,
                Item::Retained(_) | Item::Online | Item::Offline => QoS::AtLeastOnce,
            };
            client.try_publish(message.topic, qos, message.retain, message.payload).map_err(|_| defect())?;
            window.submitted(message.item, Instant::now());
        }
        self.parts.desk.nudge();
        Ok(())
    }

    /// Before anything is published, so that no answer to it is missed.
    fn subscribe(&self, client: &AsyncClient) -> Result<(), Trouble> {
        self.parts.subscriptions.iter().try_for_each(|filter| client.try_subscribe(filter, QoS::AtLeastOnce)).map_err(|_| defect())
    }

    fn refused_subscription(&mut self) {
        let (broker, filters) = (&self.parts.broker, self.parts.subscriptions.join(", "));
        let line = format!("broker {broker} refused a subscription; must let us read {filters}");
        if self.quiet.lets(&line, Instant::now()) {
            tracing::warn!("{line}");
        }
    }

    fn up(&mut self) {
        self.ever = true;
        self.parts.connects.add();
        self.parts.health.up();
        if std::mem::take(&mut self.told_lost) {
            tracing::info!("connected to broker {}", self.parts.broker);
        }
    }

    fn trouble(&self, error: &ConnectionError) -> Trouble {
        Trouble::from_error(&self.parts.broker, error)
    }

    /// Waits before the next try; returns whether there shall be one.
    async fn pause(&mut self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        loop {
            let (closing, may_leave) = {
                let pending = self.parts.desk.lock();
                (pending.closing(), pending.may_leave())
            };
            let Some(deadline) = closing else {
                tokio::select! {
                    () = sleep_until(until.into()) => return true,
                    () = self.parts.desk.bell.notified() => continue,
                }
            };
            // A broker that never answered is given one more try, one that did is tried until the time is over.
            let tried = self.tries_since_closing;
            if may_leave || Instant::now() >= deadline || (tried > 0 && !self.ever) {
                return false;
            }
            self.tries_since_closing += 1;
            if tried > 0 {
                sleep_until((Instant::now() + LAST_TRIES).min(deadline).into()).await;
            }
            return true;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.parts.health.down("the link has ended");
    }
}

/// The client's channel has a place for every subscription and every message of the window, so only a defect of ours fills it.
fn defect() -> Trouble {
    Trouble::passing("a message could not be handed to the MQTT client; this is a defect, please report it".into())
}

/// Ends the connection cleanly, so that the last will is not published over `offline` once more.
async fn goodbye(client: &AsyncClient, events: &mut EventLoop) {
    if client.try_disconnect().is_err() {
        return;
    }
    let written = async { while !matches!(events.poll().await, Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)) {} };
    if timeout(GOODBYE, written).await.is_err() {
        tracing::debug!("the broker did not take the DISCONNECT in time");
    }
}
