//! Floor 3: detections, events and states are published over MQTT 3.1.1, at least once, whatever the broker does meanwhile.
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

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rumqttc::{LastWill, MqttOptions, QoS};

use crate::base::clock::Utc;
use crate::base::error::{Context as _, Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::redact::ExposeSecret;
use crate::base::thread::{self, Thread};
use crate::config::{Durable, MqttConfig, TlsConfig, TlsFault};
use crate::types::{CameraState, CameraStatus};

use cameras::Payloads;
use control::Control;
use health::Health;
use link::{Incoming, Link, Parts};
use outbox::Limits;
use pending::{Desk, Pending};
use publisher::{Inner, Lanes};
use store::Bounds;
use topic::Topics;

pub use cameras::Watched;
pub use control::{Command, Steering};
pub use payload::Context;
pub use publisher::Publisher;

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
        durable: config.durable,
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
