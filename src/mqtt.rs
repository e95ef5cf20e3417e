//! Floor 3: detections and states are published over MQTT 3.1.1, at least once, whatever the broker does meanwhile.
//!
//! ```text
//! Publisher (any thread, never blocks) → payload → Desk { newest state per topic, outbox } → link (thread "mqtt") → broker
//!                                                                   ⇅
//!                                                        keeper (thread "outbox") → store on disk
//! ```
//! State is retained: a camera's status, prompt and counts, and Home Assistant's discovery of all these.
//! A record leaves the outbox when the broker acknowledges it. It is bounded; the oldest go first and are counted in
//! `mqtt_dropped`, what arrives in `mqtt_published`, each per camera.

mod cameras;
mod control;
mod discovery;
mod health;
mod keeper;
mod link;
mod outbox;
pub mod payload;
mod pending;
mod retained;
pub mod schema;
mod stats;
mod store;
pub mod tail;
mod tls;
mod topic;
mod trouble;
mod window;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rumqttc::{LastWill, MqttOptions, QoS};

use crate::base::clock::Utc;
use crate::base::error::{Context as _, Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::redact::ExposeSecret;
use crate::base::thread::{self, Thread};
use crate::config::{Durable, MqttConfig, TlsConfig, TlsFault};
use crate::types::{CameraId, CameraState, CameraStatus, Looked};

use cameras::{Cameras, Payloads};
use control::{Control, Heard};
use health::Health;
use link::{Incoming, Link, Parts};
use outbox::{Lane, Limits, Why};
use pending::{Desk, Pending};
use retained::Stage;
use store::Bounds;
use topic::Topics;
use trouble::Quiet;

pub use cameras::Watched;
pub use control::{Command, Steering};
pub use payload::Context;

/// What waits in memory: at five looks a second over three minutes without a broker.
const LIMITS: Limits = Limits { records: 1000, bytes: 16 * 1024 * 1024 };

/// What waits on disk.
const BOUNDS: Bounds = Bounds { records: 1_000_000, bytes: 512 * 1024 * 1024, age: Duration::from_secs(7 * 24 * 3600) };

/// For the last records to be saved.
const KEEP: Duration = Duration::from_millis(500);

/// What the client takes at least, however small `max_packet` is: room for states and descriptions of ourselves.
const OWN_PACKET: usize = 256 * 1024;

/// The largest packet taken: the protocol allows no larger one.
const MAX_INCOMING: usize = 256 * 1024 * 1024;

/// The most bytes an MQTT PUBLISH adds to topic and payload: type, length (4), topic length (2), packet id (2).
const PACKET_OVERHEAD: usize = 9;

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
}

impl Default for Patience {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self { keep_alive: secs(10), ack: secs(20), connect: secs(10), retry: secs(1), retry_most: secs(60) }
    }
}

/// The link to the broker and the thread that owns it. Dropped without `finish`, it breaks off, and the broker publishes
/// the last will.
pub struct Mqtt {
    publisher: Publisher,
    thread: Option<Thread>,
    keeper: Option<Thread>,
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
    let topics = Topics::new(&config.topic_prefix);
    if !rumqttc::valid_topic(&topics.status()) || config.topic_prefix.is_empty() {
        let prefix = &config.topic_prefix;
        return Err(Error::new(Kind::Config, format!("mqtt.topic_prefix {prefix:?} is no topic; must be words without + and #")));
    }
    let mut options = options(&config, patience)?;
    options.set_last_will(LastWill::new(topics.status(), payload::OFFLINE, QoS::AtLeastOnce, true));
    let qos = rumqttc::qos(config.qos).map_err(|_| Error::new(Kind::Config, format!("mqtt.qos is {}; must be 0, 1 or 2", config.qos)))?;
    let desk = Arc::new(Desk::new(Pending::new(topics.status(), LIMITS)));
    let health = Arc::new(Health::new());
    let publisher = Publisher(Arc::new(Inner {
        context,
        durable: config.durable == Durable::All,
        topics,
        max_packet: config.max_packet,
        metrics: metrics.clone(),
        discovery: config.discovery_prefix.clone(),
        control: config.control.then(Mutex::default),
        steering: OnceLock::new(),
        cameras: Mutex::default(),
        lanes: Lanes::new(metrics),
        quiet: Mutex::default(),
        desk,
        health,
    }));
    for camera in cameras {
        publisher.lane(&camera.id);
        let (state, reason, since) = (CameraState::Connecting, String::new(), Utc::now());
        publisher.camera_status(&CameraStatus { camera: camera.id.clone(), state, reason, since, fps: 0.0 });
        publisher.watch(camera);
    }
    warn_of_clear_text(&config);
    let runtime = runtime()?;
    let keeper = match config.state_dir.clone().filter(|_| config.durable != Durable::None) {
        Some(folder) => {
            let lanes = publisher.0.lanes.clone();
            let most = config.max_packet;
            let fits = move |topic: &str, payload: usize| topic.len() + payload + PACKET_OVERHEAD <= most && rumqttc::valid_topic(topic);
            keeper::start(folder, BOUNDS, Box::new(fits), publisher.0.desk.clone(), Arc::new(move |topic| lanes.of(topic)))?
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
        inbox: Box::new(incoming(publisher.clone())),
        stats_interval: config.stats_interval,
        stats: Box::new(figures(publisher.clone())),
    };
    let thread = thread::spawn("mqtt", move || {
        runtime.block_on(Link::new(parts).serve());
        // A name server that does not answer must not hold up the stop.
        runtime.shutdown_timeout(Duration::from_millis(100));
    })?;
    Ok(Mqtt { publisher, thread: Some(thread), keeper })
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

/// How to reach the broker and who we are, without a last will.
fn options(config: &MqttConfig, patience: Patience) -> Result<MqttOptions> {
    // An IPv6 address is asked for with or without brackets; the resolver and the certificate want it without.
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let mut options = MqttOptions::new(config.client_id.as_str(), host, config.port);
    options.set_keep_alive(patience.keep_alive.max(Duration::from_secs(1)));
    options.set_clean_session(true);
    // What is sent to us may be anything; one that is too large would cost the connection. Records are held to max_packet
    // before they are queued; here it would cost the connection, and states would go with it.
    options.set_max_packet_size(MAX_INCOMING, config.max_packet.max(OWN_PACKET));
    if config.username.is_some() || config.password.is_some() {
        let password = config.password.as_ref().map_or("", |password| password.expose_secret());
        options.set_credentials(config.username.as_deref().unwrap_or_default(), password);
    }
    if let Some(tls) = &config.tls {
        let unusable = |fault: TlsFault| Error::new(Kind::Config, format!("mqtt.{} cannot be used: {}", fault.key, fault.why));
        options.set_transport(tls::transport(tls).map_err(unusable)?);
    }
    Ok(options)
}

fn warn_of_clear_text(config: &MqttConfig) {
    if sends_secrets_in_clear(config) {
        tracing::warn!("mqtt.tls is off: user name and password go to broker {}:{} in clear text", config.host, config.port);
    }
}

fn sends_secrets_in_clear(config: &MqttConfig) -> bool {
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    (config.username.is_some() || config.password.is_some()) && config.tls.is_none() && !loopback
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

    /// Takes nothing more in, sets the counts to zero, delivers what waits, publishes `offline`, disconnects and joins. After `grace` the
    /// connection is broken off instead, what is left is dropped and counted, and the broker publishes the last will.
    pub fn finish(mut self, grace: Duration) {
        self.publisher.end(grace);
        if let Some(thread) = self.thread.take()
            && !thread.join_until(Instant::now() + grace + Duration::from_millis(1500))
        {
            tracing::error!("the MQTT thread did not end in time and was left behind");
        }
        self.publisher.0.desk.end();
        if let Some(keeper) = self.keeper.take()
            && !keeper.join_until(Instant::now() + KEEP)
        {
            tracing::error!("the disk did not take the last messages in time");
        }
    }
}

impl Drop for Mqtt {
    fn drop(&mut self) {
        self.publisher.0.desk.close(Duration::ZERO, Payloads::new());
        self.publisher.0.desk.end();
    }
}

/// Puts messages on the desk. Never blocks on the network and never fails; clones share the desk.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    context: Context,
    /// Detections are worth a place on disk.
    durable: bool,
    topics: Topics,
    /// A larger packet would cost the connection, and its neighbours with it: it is refused before. Bytes.
    max_packet: usize,
    metrics: Metrics,
    /// Home Assistant's first topic level; `None`: it is told nothing.
    discovery: Option<String>,
    /// `None`: commands are not heard.
    control: Option<Mutex<Control>>,
    /// Who obeys them.
    steering: OnceLock<Arc<dyn Steering>>,
    cameras: Mutex<Cameras>,
    lanes: Lanes,
    quiet: Mutex<Quiet>,
    desk: Arc<Desk>,
    health: Arc<Health>,
}

impl Publisher {
    /// Queues the `detections` object of an analysed frame, in the order of the calls, and publishes the counts that it
    /// changed.
    pub fn looked(&self, looked: &Looked) {
        let camera = &looked.frame.camera;
        self.counted(looked);
        let lane = self.lane(camera);
        let payload = payload::looked(looked, &self.0.context);
        let size = lane.topic.len() + payload.len() + PACKET_OVERHEAD;
        let most = self.0.max_packet;
        if size > most {
            lane.drop_one(Why::Large);
            let line = format!("detections of camera {camera} are too large for a message; must be at most mqtt.max_packet, {most} bytes");
            self.warn(&line, &format!("seq {} has {size} bytes", looked.seq));
            return;
        }
        let dropped = self.0.desk.lock().record(&lane, payload, self.0.durable);
        self.0.desk.bell.notify_one();
        self.0.desk.nudge();
        if dropped > 0 {
            self.warn("the queue for the broker is full: the oldest detections are dropped", &format!("camera {camera}"));
        }
    }

    /// Publishes a camera's state, retained. While the broker is away only the newest is kept.
    pub fn camera_status(&self, status: &CameraStatus) {
        self.cameras().rate(&status.camera, status.fps);
        let topic = self.0.topics.camera_status(&status.camera);
        self.retain(Stage::State, vec![(topic, payload::camera_status(status))]);
    }

    /// Publishes what a camera is asked and whether it is looked at, retained, with zeros for labels that are new. May be
    /// called again when that changes: counts and entities of labels no longer asked for are then cleared.
    pub fn watch(&self, watched: &Watched) {
        let Inner { topics, context, discovery, .. } = &*self.0;
        let mut cameras = self.cameras();
        let state = cameras.watch(watched, topics);
        if let Some(prefix) = discovery {
            let (labels, gone) = cameras.labels(&watched.id);
            let control = self.0.control.is_some();
            let device = discovery::Device { camera: &watched.id, topics, model: &context.model, labels, gone: &gone, control };
            let topic = discovery::topic(prefix, topics, &watched.id);
            self.retain(Stage::Discovery, vec![(topic, discovery::config(&device))]);
        }
        self.retain(Stage::State, state);
    }

    /// How many records are not on disk yet that are to be.
    pub fn unsaved(&self) -> usize {
        self.0.desk.lock().outbox().unsaved_count()
    }

    /// Why there is no link to the broker, in a sentence; `None` while there is one.
    pub fn trouble(&self) -> Option<String> {
        self.0.health.trouble()
    }

    fn counted(&self, looked: &Looked) {
        // Held until they are on the desk, so that what is counted later is also published later.
        let mut cameras = self.cameras();
        let changed = cameras.looked(&looked.frame.camera, &looked.answer.detections, &self.0.topics);
        self.retain(Stage::State, changed);
    }

    fn retain(&self, stage: Stage, payloads: Payloads) {
        for (topic, payload) in payloads {
            let size = topic.len() + payload.len() + PACKET_OVERHEAD;
            if size > OWN_PACKET {
                self.warn(&format!("{topic} is too large for a message; must be at most {OWN_PACKET} bytes"), &format!("it has {size}"));
                continue;
            }
            self.0.desk.lock().retain(stage, topic, payload);
        }
        self.0.desk.bell.notify_one();
    }

    /// Home Assistant forgets what it was told when it starts, and says so when it is there.
    fn incoming(&self, message: Incoming<'_>) {
        let birth = self.0.discovery.as_ref().is_some_and(|prefix| discovery::birth_topic(prefix) == message.topic);
        // An old message says nothing new: whoever connects publishes everything anyway.
        if birth && !message.retain && message.payload == discovery::BIRTH {
            tracing::debug!("Home Assistant has started: all state is published once more");
            self.0.desk.lock().again();
            self.0.desk.bell.notify_one();
            return;
        }
        let Some(control) = &self.0.control else { return };
        let heard = control.lock().unwrap_or_else(PoisonError::into_inner).hear(
            &self.0.topics,
            &message,
            |camera| self.cameras().knows(camera),
            Instant::now(),
        );
        match heard {
            Heard::Other => {}
            Heard::Refused(why) => self.warn("a command over MQTT is refused", &why),
            Heard::Order(camera, command) => self.obey(&camera, &command),
        }
    }

    fn obey(&self, camera: &CameraId, command: &Command) {
        let Some(steering) = self.0.steering.get() else { return self.warn("a command over MQTT is refused", "it came too early") };
        match steering.steer(camera, command) {
            Ok(watched) => {
                tracing::info!(%camera, "told over MQTT: {command:?}");
                self.watch(&watched);
            }
            Err(error) => self.warn("a command over MQTT is refused", &error.chain()),
        }
    }

    fn stats(&self) -> (String, Vec<u8>) {
        let depth = self.0.desk.lock().depth();
        (self.0.topics.stats(), stats::stats(&self.cameras(), &self.0.metrics, depth, Utc::now()))
    }

    fn end(&self, grace: Duration) {
        let mut cameras = self.cameras();
        let zeros = cameras.end(&self.0.topics);
        self.0.desk.close(grace, zeros);
    }

    fn cameras(&self) -> MutexGuard<'_, Cameras> {
        self.0.cameras.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lane(&self, camera: &CameraId) -> Arc<Lane> {
        self.0.lanes.of(&self.0.topics.detections(camera))
    }

    fn warn(&self, line: &str, detail: &str) {
        if self.0.quiet.lock().unwrap_or_else(PoisonError::into_inner).lets(line, Instant::now()) {
            tracing::warn!("{line} ({detail})");
        }
    }
}

/// Every lane by its topic, made when it is first asked for. Clones share them.
#[derive(Clone)]
struct Lanes {
    metrics: Metrics,
    known: Arc<Mutex<HashMap<String, Arc<Lane>>>>,
}

impl Lanes {
    fn new(metrics: &Metrics) -> Self {
        Self { metrics: metrics.clone(), known: Arc::default() }
    }

    /// The lane of `P/<camera>/…`; of a topic from before another prefix, too.
    fn of(&self, topic: &str) -> Arc<Lane> {
        let camera = topic.rsplit('/').nth(1).unwrap_or_default();
        let new = || Arc::new(Lane::new(topic.to_owned(), camera, &self.metrics));
        self.known.lock().unwrap_or_else(PoisonError::into_inner).entry(topic.to_owned()).or_insert_with(new).clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::base::redact::SecretString;

    fn config(host: &str) -> MqttConfig {
        MqttConfig {
            host: host.to_owned(),
            port: 1883,
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
            control: false,
            max_packet: 256 * 1024,
        }
    }

    #[test]
    fn secrets_in_clear_text_are_told_but_on_loopback() {
        assert!(sends_secrets_in_clear(&config("10.0.0.2")));
        assert!(!sends_secrets_in_clear(&MqttConfig { tls: Some(TlsConfig::default()), ..config("10.0.0.2") }));
        assert!(!sends_secrets_in_clear(&MqttConfig { username: None, password: None, ..config("10.0.0.2") }));
        for loopback in ["localhost", "127.0.0.1", "::1", "[::1]"] {
            assert!(!sends_secrets_in_clear(&config(loopback)), "{loopback}");
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
