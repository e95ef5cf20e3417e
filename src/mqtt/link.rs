//! The one task that owns the connection: connects, hands out what waits on the desk, and starts anew when the link is lost.
//!
//! rumqttc forgets unacknowledged messages when a connection breaks and the next begins with a clean session. So every
//! connection here gets an event loop of its own, which starts with nothing inside; what the broker has not acknowledged
//! is still on the desk and goes out again. Its `poll` is never cancelled midway but to give the connection up.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rumqttc::QoS;
use tokio::time::sleep_until;

use crate::base::metrics::Counter;
use crate::mqtt::Patience;
use crate::mqtt::album::Album;
use crate::mqtt::health::Health;
use crate::mqtt::outbox::Why;
use crate::mqtt::pending::{Desk, Item, Message};
use crate::mqtt::topic::is_events;
use crate::mqtt::trouble::{Cause, Quiet, Trouble, Waits};
use crate::mqtt::window::{ROOM, Window};
use crate::mqtt::wire::{self, Client, Event, Events, Options, PACKET_OVERHEAD, Refusal, Terms};

/// Between two tries while the daemon stops and records still wait.
const LAST_TRIES: Duration = Duration::from_millis(500);

/// A connection that has held for so long is a good one; the next loss begins with the shortest wait again.
const SETTLED: Duration = Duration::from_secs(5);

/// A broker that refuses the same record so often, each time for the moment, will not take it.
const REFUSALS: u32 = 8;

/// How long a clean goodbye may take once `offline` is acknowledged.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the link is made from.
pub struct Parts {
    /// How to reach the broker, who we are, and the last will.
    pub options: Options,
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
    /// A topic of our own that nobody subscribes to.
    pub question: String,
    /// Takes each message that comes on them; must not block.
    pub inbox: Box<dyn Fn(Incoming<'_>) + Send>,
    /// The largest packet that the broker takes, bytes: told here when it says so.
    pub broker_limit: Arc<AtomicUsize>,
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
    waits: Waits,
    quiet: Quiet,
    /// Whether the operator was told that the link is lost, and must be told that it is back.
    told_lost: bool,
    ever: bool,
    tries_since_closing: u32,
    stats_at: Instant,
    album: Album,
    /// Since when this connection is there.
    since: Instant,
    /// What the broker did not take for the moment, and how often.
    stubborn: Option<(Item, u32)>,
}

impl Link {
    /// A link that has not tried yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            waits: Waits::new(parts.patience),
            quiet: Quiet::default(),
            told_lost: true,
            ever: false,
            tries_since_closing: 0,
            stats_at: Instant::now() + parts.stats_interval,
            album: Album::default(),
            since: Instant::now(),
            stubborn: None,
            parts,
        }
    }

    /// Serves the desk until it is closed and all is delivered, or its time is over.
    pub async fn serve(mut self) {
        while let Err(trouble) = self.connection().await {
            let lost = self.parts.health.down(&trouble.sentence);
            self.parts.desk.lock().rewind();
            if self.album.lost(Instant::now()) {
                tracing::warn!("the link broke amid a picture; none is sent for a while (mqtt.snapshots = false sends none)");
            }
            let delay = self.waits.after(&trouble);
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
        // Beside what is in the window: the goodbye, the subscriptions, and the question behind a picture.
        let requests = ROOM + 2 + self.parts.subscriptions.len();
        let (client, mut events) = wire::open(&self.parts.options, self.parts.patience.connect, requests);
        let mut window = Window::new(Instant::now());
        let mut open: Option<Terms> = None;
        loop {
            let event = match self.event(&mut events, &client, &mut window, open.as_ref()).await? {
                Some(event) => event,
                // Without a DISCONNECT the broker publishes our last will.
                None => return Ok(()),
            };
            let done = match event {
                Event::Up(terms) => {
                    open = Some(terms);
                    self.up(&terms);
                    window.narrow(terms.receive_maximum);
                    self.subscribe(&client)?;
                    None
                }
                Event::Subscribed(granted) => {
                    if !granted {
                        self.refused_subscription();
                    }
                    None
                }
                Event::Message(message) => {
                    (self.parts.inbox)(Incoming { topic: &message.topic, payload: &message.payload, retain: message.retain });
                    None
                }
                Event::Written(pkid) => window.sent(pkid, Instant::now()),
                Event::Acked(pkid) => window.acked(pkid, Instant::now()),
                Event::Refused(pkid, refusal) => {
                    let refused = window.acked(pkid, Instant::now());
                    refused.map(|item| self.refused(item, refusal)).transpose()?.flatten()
                }
                Event::Touched => {
                    window.touched(Instant::now());
                    None
                }
                Event::Unsubscribed => {
                    self.album.arrived(Instant::now());
                    None
                }
                Event::Goodbye | Event::Other => None,
            };
            if let Some(item) = done {
                self.parts.desk.lock().acked(item);
                self.parts.desk.nudge();
                self.stubborn = self.stubborn.filter(|(stubborn, _)| *stubborn != item);
                if self.since.elapsed() >= SETTLED {
                    self.waits.reset();
                }
                if matches!(item, Item::Picture(_)) {
                    // Never subscribed to: the answer says that the broker has read all that was written before.
                    client.unsubscribe(&self.parts.question).map_err(|_| defect())?;
                }
            }
            if done == Some(Item::Offline) {
                // The last will must not be published over `offline` once more.
                if !wire::goodbye(&client, &mut events, GOODBYE).await {
                    tracing::debug!("the broker did not take the DISCONNECT in time");
                }
                return Ok(());
            }
            if let Some(open) = &open {
                self.pump(&client, &mut window, open)?;
            }
        }
    }

    /// The next event of the connection; meanwhile hands out what is put on the desk. `None`: the daemon's time is over.
    async fn event(
        &mut self,
        events: &mut Events,
        client: &Client,
        window: &mut Window,
        open: Option<&Terms>,
    ) -> Result<Option<Event>, Trouble> {
        let desk = self.parts.desk.clone();
        // Pings come and go also where nothing else does; the library of MQTT 5 does not look after a write that hangs.
        let hangs = open.map(|_| Instant::now() + events.patience());
        let mut poll = pin!(events.poll());
        loop {
            let (closing, backlog, pictures) = {
                let pending = desk.lock();
                if open.is_none() && pending.may_leave() {
                    return Ok(None);
                }
                let may = open.is_some() && window.has_room();
                let pictures = self.album.opens().filter(|_| may && pending.has_picture());
                (pending.closing(), pending.ready().filter(|_| may), pictures)
            };
            let overdue = window.deadline(self.parts.patience.ack);
            let figures = open.map(|_| self.stats_at);
            let next = [closing, overdue, figures, hangs, backlog, pictures].into_iter().flatten().min();
            let alarm = async {
                match next {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = &mut poll => return event.map(Some).map_err(|cause| self.trouble(cause)),
                () = desk.bell.notified() => if let Some(open) = open { self.pump(client, window, open)? },
                () = alarm => {
                    let now = Instant::now();
                    if closing.is_some_and(|at| at <= now) {
                        return Ok(None);
                    }
                    if overdue.is_some_and(|at| at <= now) {
                        let waited = self.parts.patience.ack.as_secs_f64();
                        return Err(Trouble::passing(format!("broker {} acknowledged nothing for {waited:.0} s", self.parts.broker)));
                    }
                    if hangs.is_some_and(|at| at <= now) {
                        return Err(self.trouble(Cause::Stuck));
                    }
                    if let Some(open) = open.filter(|_| figures.is_some_and(|at| at <= now)) {
                        self.stats_at = now + self.parts.stats_interval;
                        let (topic, payload) = (self.parts.stats)();
                        desk.lock().stats(topic, payload);
                        self.pump(client, window, open)?;
                    }
                    if let Some(open) = open.filter(|_| [backlog, pictures].into_iter().flatten().any(|at| at <= now)) {
                        self.pump(client, window, open)?;
                    }
                }
            }
        }
    }

    /// Hands out what waits, as far as the window has room and the broker takes it.
    fn pump(&mut self, client: &Client, window: &mut Window, terms: &Terms) -> Result<(), Trouble> {
        while window.has_room() {
            let pictures = self.album.is_open(Instant::now());
            let Some(message) = self.parts.desk.lock().next(window.is_idle(), pictures) else { break };
            if message.topic.len() + message.payload.len() + PACKET_OVERHEAD > terms.max_packet {
                self.too_large(&message, terms.max_packet);
                continue;
            }
            let qos = match message.item {
                // A lost event is a wrong picture of the world for as long as its object is there.
                Item::Record(_) if self.parts.qos == QoS::AtMostOnce && is_events(&message.topic) => QoS::AtLeastOnce,
                Item::Record(_) => self.parts.qos,
                Item::Stats | Item::Picture(_) => QoS::AtMostOnce,
                Item::Retained(_) | Item::Online | Item::Offline => QoS::AtLeastOnce,
            };
            let qos = if (qos as u8) < terms.max_qos as u8 { qos } else { terms.max_qos };
            if matches!(message.item, Item::Picture(_)) {
                self.album.sent(Instant::now());
            }
            client.publish(message.topic, qos, message.retain && terms.retains, message.payload).map_err(|_| defect())?;
            window.submitted(message.item, Instant::now());
        }
        self.parts.desk.nudge();
        Ok(())
    }

    /// What waited from a time when the broker took more, or before it had said what it takes.
    fn too_large(&mut self, message: &Message, most: usize) {
        self.parts.desk.lock().given_up(message.item, Why::Large);
        let line = format!("broker {} takes no packet of more than {most} bytes; a larger message is dropped", self.parts.broker);
        if self.quiet.lets(&line, Instant::now()) {
            tracing::warn!("{line} (one to {})", message.topic);
        }
    }

    /// The broker does not take a message. What it may take later goes out again, on another connection; what it never
    /// will must not hold up the others.
    fn refused(&mut self, item: Item, refusal: Refusal) -> Result<Option<Item>, Trouble> {
        let line = format!("broker {} refused a message: {}", self.parts.broker, refusal.why);
        if refusal.passes {
            let times = 1 + self.stubborn.filter(|(stubborn, _)| *stubborn == item).map_or(0, |(_, times)| times);
            self.stubborn = Some((item, times));
            if times < REFUSALS {
                return Err(Trouble::passing(line));
            }
        }
        if self.quiet.lets(&line, Instant::now()) {
            tracing::warn!("{line} ({item:?})");
        }
        match item {
            Item::Record(_) => {
                self.parts.desk.lock().given_up(item, Why::Refused);
                self.parts.desk.nudge();
                Ok(None)
            }
            // As good as acknowledged: the others need not wait for it.
            other => Ok(Some(other)),
        }
    }

    /// Before anything is published, so that no answer to it is missed.
    fn subscribe(&self, client: &Client) -> Result<(), Trouble> {
        self.parts.subscriptions.iter().try_for_each(|filter| client.subscribe(filter)).map_err(|_| defect())
    }

    fn refused_subscription(&mut self) {
        let (broker, filters) = (&self.parts.broker, self.parts.subscriptions.join(", "));
        let line = format!("broker {broker} refused a subscription; must let us read {filters}");
        if self.quiet.lets(&line, Instant::now()) {
            tracing::warn!("{line}");
        }
    }

    fn up(&mut self, terms: &Terms) {
        self.ever = true;
        self.since = Instant::now();
        self.parts.broker_limit.store(terms.max_packet, Ordering::Relaxed);
        self.parts.connects.add();
        self.parts.health.up();
        if std::mem::take(&mut self.told_lost) {
            tracing::info!("connected to broker {}", self.parts.broker);
        }
        if !terms.retains {
            let line = format!("broker {} keeps no retained messages: whoever subscribes late sees no state", self.parts.broker);
            if self.quiet.lets(&line, Instant::now()) {
                tracing::warn!("{line}");
            }
        }
    }

    fn trouble(&self, cause: Cause) -> Trouble {
        Trouble::new(&self.parts.broker, cause)
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
