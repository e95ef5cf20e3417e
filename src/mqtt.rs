//! Floor 3: detections, events and states are published over MQTT 3.1.1 or 5, at least once, whatever the broker does
//! meanwhile.
//!
//! ```text
//! Publisher (any thread, never blocks) → payload → Desk { newest state per topic, outbox } → link (thread "mqtt") → broker
//!                                                                   ⇅
//!                                                        keeper (thread "outbox") → store on disk
//! ```
//! State is retained: a camera's status, prompt and counts, and Home Assistant's discovery of all these.
//! Retained topics are written down in the state folder (`earlier`), so that the next run clears those it tells no more.
//! With `mqtt.frigate` events and counts are told once more as Frigate's readers know them, and a second connection
//! (`presence`) says on `frigate/available` whether the daemon is there.
//! A record leaves the outbox when the broker acknowledges it. It is bounded; the oldest go first and are counted in
//! `mqtt_dropped`, what arrives in `mqtt_published`, each per camera.

mod album;
mod cameras;
mod control;
mod discovery;
mod earlier;
mod health;
mod keeper;
mod label;
mod link;
mod outbox;
mod outboxes;
mod pace;
pub mod payload;
mod pending;
mod presence;
mod publisher;
mod retained;
pub mod schema;
mod stats;
mod store;
pub mod tail;
mod tls;
mod topic;
mod trouble;
mod window;
mod wire;
mod zones;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::base::claim::Claim;
use crate::base::error::{Context as _, Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::thread::{self, Thread};
use crate::config::{Durable, MqttConfig, TlsConfig, TlsFault};

use cameras::Payloads;
use control::Control;
use earlier::{Notes, Told};
use health::Health;
use link::{Incoming, Link, Parts};
use outbox::Limits;
use pending::{Desk, Pending};
use presence::Presence;
use publisher::{Inner, Lanes};
use store::Bounds;
use topic::Topics;
use wire::{Options, PACKET_OVERHEAD};

pub use cameras::Watched;
pub use control::{Command, Steering};
pub use payload::Context;
pub use publisher::Publisher;

/// What waits in memory, of events and of detections: at five looks a second over three minutes without a broker.
const LIMITS: [Limits; 2] = [Limits { records: 1000, bytes: 4 << 20 }, Limits { records: 1000, bytes: 16 << 20 }];

/// What waits on disk, of events and of detections.
const BOUNDS: [Bounds; 2] =
    [Bounds { records: 100_000, bytes: 64 << 20, age: WEEK }, Bounds { records: 900_000, bytes: 448 << 20, age: WEEK }];

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// For the last records and notes to be saved, and for the second connection's goodbye meanwhile.
const KEEP: Duration = Duration::from_millis(500);

/// Beyond its time a link may take so long for its goodbye and for a name server that does not answer.
const LINK_ENDS: Duration = Duration::from_millis(1200);

/// What the client takes at least, however small `max_packet` is: room for states and descriptions of ourselves.
const OWN_PACKET: usize = 256 * 1024;

/// How long the link waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between pings; a ping that is not answered until the next ends the connection. At least 1 s.
    pub keep_alive: Duration,
    /// For any acknowledgement while messages are on their way.
    pub ack: Duration,
    /// For TCP, TLS and the broker's CONNACK together; whole seconds.
    pub connect: Duration,
    /// Before the first try after a loss, at most.
    pub retry: Duration,
    /// Before any later try, at most; after a refused login half of it, at least.
    pub retry_most: Duration,
    /// Between two tries at a disk that records cannot be kept on; after six what is there alone is waited for no longer.
    pub disk: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self { keep_alive: secs(10), ack: secs(20), connect: secs(10), retry: secs(1), retry_most: secs(60), disk: secs(10) }
    }
}

/// The link to the broker and the thread that owns it. Dropped without `finish`, it breaks off, and the broker publishes
/// the last will.
pub struct Mqtt {
    publisher: Publisher,
    thread: Option<Thread>,
    presence: Option<Presence>,
    keeper: Option<Thread>,
    notes: Option<Notes>,
    /// The state folder is ours until all that writes to it has ended.
    _claim: Option<Arc<Claim>>,
}

/// Starts the link; the broker need not be there.
///
/// # Errors
/// When the configuration cannot be used: topic prefix, QoS, or a CA, certificate or key file that is none.
pub fn start(config: MqttConfig, cameras: &[Watched], context: Context, metrics: &Metrics) -> Result<Mqtt> {
    start_with(config, cameras, context, metrics, Patience::default())
}

/// As `start`, with other waiting times.
///
/// # Errors
/// As `start`.
pub fn start_with(config: MqttConfig, cameras: &[Watched], context: Context, metrics: &Metrics, patience: Patience) -> Result<Mqtt> {
    let claim = config.state_dir.as_deref().map(|folder| Arc::new(Claim::new(folder)));
    start_in(claim, config, cameras, context, metrics, patience)
}

/// As `start_with`, in a state folder that others of this process write to as well; `None`: in none.
///
/// # Errors
/// As `start`.
pub fn start_in(
    claim: Option<Arc<Claim>>,
    config: MqttConfig,
    cameras: &[Watched],
    context: Context,
    metrics: &Metrics,
    patience: Patience,
) -> Result<Mqtt> {
    let topics = Topics::new(&config.topic_prefix).with_frigate(config.frigate_prefix.as_deref());
    if !rumqttc::valid_topic(&topics.status()) || config.topic_prefix.is_empty() {
        let prefix = &config.topic_prefix;
        return Err(Error::new(Kind::Config, format!("mqtt.topic_prefix {prefix:?} is no topic; must be words without + and #")));
    }
    // Records are held to max_packet before they are queued; here it would cost the connection, and states would go with it.
    let mut options = Options::new(&config, patience, config.max_packet.max(OWN_PACKET))?;
    options.set_last_will(&topics.status(), payload::OFFLINE);
    let qos = rumqttc::qos(config.qos).map_err(|_| Error::new(Kind::Config, format!("mqtt.qos is {}; must be 0, 1 or 2", config.qos)))?;
    let desk = Arc::new(Desk::new(Pending::new(topics.status(), LIMITS, config.backlog_rate)));
    let health = Arc::new(Health::new());
    let broker_limit = Arc::new(AtomicUsize::new(wire::MAX_PACKET));
    let publisher = Publisher(Arc::new(Inner {
        context,
        durable: config.durable,
        topics,
        max_packet: config.max_packet,
        broker_limit: broker_limit.clone(),
        metrics: metrics.clone(),
        discovery: config.discovery_prefix.clone(),
        control: config.control.then(Mutex::default),
        snapshots: config.snapshots,
        steering: OnceLock::new(),
        cameras: Mutex::default(),
        lanes: Lanes::new(metrics),
        quiet: Mutex::default(),
        desk,
        health,
    }));
    // What another process wrote down is on the broker for good reason: it is still told.
    let state = claim.as_ref().filter(|claim| claim.was_free());
    if let Some(claim) = claim.as_ref().filter(|claim| !claim.was_free()) {
        warn_of_another(claim);
    }
    let told = state.map(|claim| Told::read(claim.folder())).unwrap_or_default();
    publisher.know(cameras.iter().map(|camera| &camera.id));
    for camera in cameras {
        publisher.earlier(&camera.id, &told);
        publisher.begin(camera);
    }
    let topics = &publisher.0.topics;
    let always: Vec<String> = std::iter::once(topics.status()).chain(topics.frigate_available()).chain(publisher.pictures()).collect();
    publisher.clear(&told, &always);
    let notes = state.map(|claim| earlier::start(claim.clone(), publisher.0.desk.clone(), always)).transpose()?;
    warn_of_clear_text(&config);
    let available = publisher.0.topics.frigate_available();
    let presence = available.map(|topic| presence::start(&config, "frigate", topic, patience, metrics)).transpose()?;
    let keeper = match claim.clone().filter(|_| config.durable != Durable::None) {
        Some(claim) => {
            let lanes = publisher.0.lanes.clone();
            let most = config.max_packet;
            let fits = move |topic: &str, payload: usize| topic.len() + payload + PACKET_OVERHEAD <= most && rumqttc::valid_topic(topic);
            Some(keeper::start(keeper::Parts {
                claim,
                bounds: BOUNDS,
                retry: patience.disk,
                fits: Box::new(fits),
                desk: publisher.0.desk.clone(),
                lanes: Arc::new(move |topic| lanes.of(topic)),
            })?)
        }
        None => None,
    };
    let birth = config.discovery_prefix.iter().map(|prefix| discovery::birth_topic(prefix));
    let commands = Control::topics(&publisher.0.topics).into_iter().filter(|_| config.control);
    let subscriptions = birth.chain(commands).collect();
    let parts = Parts {
        options,
        qos,
        broker: format!("{}:{}", config.host, config.port),
        patience,
        desk: publisher.0.desk.clone(),
        health: publisher.0.health.clone(),
        connects: metrics.counter("mqtt_connects", "broker"),
        subscriptions,
        question: publisher.0.topics.question(),
        broker_limit,
        inbox: Box::new(incoming(publisher.clone())),
        stats_interval: config.stats_interval,
        stats: Box::new(figures(publisher.clone())),
    };
    let thread = serve("mqtt", parts)?;
    Ok(Mqtt { publisher, thread: Some(thread), presence, keeper, notes, _claim: claim })
}

/// A link in a thread of this name.
fn serve(name: &str, parts: Parts) -> Result<Thread> {
    let runtime = runtime()?;
    thread::spawn(name, move || {
        runtime.block_on(Link::new(parts).serve());
        // A name server that does not answer must not hold up the stop.
        runtime.shutdown_timeout(Duration::from_millis(100));
    })
}

fn incoming(publisher: Publisher) -> impl Fn(Incoming<'_>) + Send {
    move |message| publisher.incoming(message)
}

fn figures(publisher: Publisher) -> impl Fn() -> (String, Vec<u8>) + Send {
    move || publisher.stats()
}

/// What a connection runs in: the caller's thread, and one below it for names.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_io().enable_time().thread_name("mqtt-dns").max_blocking_threads(1);
    builder.build().context(Kind::Mqtt, || "the MQTT link cannot be set up")
}

/// Whether the broker's encryption can be set up; connects to nothing.
///
/// # Errors
/// When the CA file, the client's certificate or its key cannot be read or is none; names the key that is at fault.
pub fn check_tls(config: &TlsConfig) -> Result<(), TlsFault> {
    tls::transport(config).map(drop)
}

fn warn_of_another(claim: &Claim) {
    tracing::warn!(
        "mqtt.state_dir {} is in use by another process: what it keeps there is left alone, messages wait in memory only until it \
         ends, commands and retained topics are not written down before the next start; must be a state_dir of its own",
        claim.folder().display()
    );
}

fn warn_of_clear_text(config: &MqttConfig) {
    if wire::sends_secrets_in_clear(config) {
        tracing::warn!("mqtt.tls is off: user name and password go to broker {}:{} in clear text", config.host, config.port);
    }
}

impl Mqtt {
    /// A handle for the stages that publish.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Has commands obeyed; without `mqtt.control` there are none.
    pub fn steer(&self, steering: Arc<dyn Steering>) {
        // Once, at the start.
        self.publisher.0.steering.set(steering).ok();
    }

    /// Takes nothing more in, sets the counts to zero, delivers what waits, publishes `offline`, disconnects and joins. After
    /// `grace` the connection is broken off instead, what is left is dropped and counted, and the broker publishes the last
    /// will. Returns no later than 1.7 s after it, whatever broker and disk do.
    pub fn finish(mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.publisher.end(grace);
        if let Some(thread) = self.thread.take()
            && !thread.join_until(deadline + LINK_ENDS)
        {
            tracing::error!("the MQTT thread did not end in time and was left behind");
        }
        // What is left shares one wait, and each of them begins with it.
        let last = Instant::now() + KEEP;
        self.publisher.0.desk.end();
        self.notes.iter().for_each(Notes::end);
        // After the zeros, which the other connection tells.
        if let Some(presence) = self.presence.take() {
            presence.finish(deadline, deadline.max(last));
        }
        if let Some(keeper) = self.keeper.take()
            && !keeper.join_until(last)
        {
            tracing::error!("the disk did not take the last messages in time");
        }
        if let Some(notes) = self.notes.take() {
            notes.finish(last);
        }
    }
}

impl Drop for Mqtt {
    fn drop(&mut self) {
        self.publisher.0.desk.close(Duration::ZERO, Payloads::new());
        self.publisher.0.desk.end();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::base::redact::SecretString;
    use crate::config::MqttVersion;

    pub fn config(host: &str) -> MqttConfig {
        MqttConfig {
            host: host.to_owned(),
            port: 1883,
            version: MqttVersion::V3,
            username: Some("palisade".to_owned()),
            password: Some(SecretString::from("s3cr3t")),
            topic_prefix: "palisade".to_owned(),
            qos: 1,
            tls: None,
            client_id: "palisade-1".to_owned(),
            durable: Durable::All,
            state_dir: None,
            stats_interval: Duration::from_secs(60),
            discovery_prefix: None,
            frigate_prefix: None,
            control: false,
            snapshots: true,
            max_packet: 256 * 1024,
            backlog_rate: 1000,
        }
    }

    #[test]
    fn an_unusable_configuration_is_refused_at_the_start() {
        let start = |config| start(config, &[], Context { model: "m".into(), run: uuid::Uuid::nil() }, &Metrics::new()).err().unwrap();
        assert_eq!(start(MqttConfig { qos: 3, ..config("localhost") }).to_string(), "mqtt.qos is 3; must be 0, 1 or 2");
        for prefix in ["", "a/#", "a+b"] {
            let error = start(MqttConfig { topic_prefix: prefix.to_owned(), ..config("localhost") });
            assert!(error.to_string().contains("is no topic"), "{error}");
        }
    }
}
