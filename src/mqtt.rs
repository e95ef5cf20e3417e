//! Floor 3: detections and states are published over MQTT 3.1.1, at least once, whatever the broker does meanwhile.
//!
//! ```text
//! Publisher (any thread, never blocks) → payload → Desk { newest status per camera, ring of records } → link (thread "mqtt") → broker
//! ```
//! A record leaves the ring when the broker acknowledges it. The ring is bounded; when it is full the oldest goes and is
//! counted in `mqtt_dropped`, what arrives in `mqtt_published`, each per camera.

mod health;
mod link;
pub mod payload;
mod pending;
mod queue;
pub mod schema;
pub mod tail;
mod tls;
mod topic;
mod trouble;
mod window;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rumqttc::{LastWill, MqttOptions, QoS};

use crate::base::clock::Utc;
use crate::base::error::{Context as _, Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::redact::ExposeSecret;
use crate::base::thread::{self, Thread};
use crate::config::{MqttConfig, TlsConfig, TlsFault};
use crate::types::{CameraId, CameraState, CameraStatus, Looked};

use health::Health;
use link::{Link, Parts};
use pending::{Desk, Pending};
use queue::{Lane, Limits};
use topic::Topics;
use trouble::Quiet;

pub use payload::Context;

/// The ring's bounds: at five looks a second over three minutes without a broker.
const LIMITS: Limits = Limits { records: 1000, bytes: 16 * 1024 * 1024 };

/// What the client takes at least, however small `max_packet` is: room for states and descriptions of ourselves.
const OWN_PACKET: usize = 256 * 1024;

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
}

/// Starts the link; the broker need not be there.
///
/// # Errors
/// When the configuration cannot be used: topic prefix, QoS, or a CA, certificate or key file that is none.
pub fn start(config: MqttConfig, cameras: &[CameraId], context: Context, metrics: &Metrics) -> Result<Mqtt> {
    start_with(config, cameras, context, metrics, Patience::default())
}

/// As `start`, with other waiting times.
///
/// # Errors
/// As `start`.
pub fn start_with(config: MqttConfig, cameras: &[CameraId], context: Context, metrics: &Metrics, patience: Patience) -> Result<Mqtt> {
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
    let inner = Inner {
        context,
        topics,
        max_packet: config.max_packet,
        metrics: metrics.clone(),
        lanes: Mutex::default(),
        quiet: Mutex::default(),
        desk,
        health,
    };
    let publisher = Publisher(Arc::new(inner));
    for camera in cameras {
        publisher.lane(camera);
        let (state, reason, since) = (CameraState::Connecting, String::new(), Utc::now());
        publisher.camera_status(&CameraStatus { camera: camera.clone(), state, reason, since, fps: 0.0 });
    }
    warn_of_clear_text(&config);
    let parts = Parts {
        options,
        qos,
        broker: format!("{}:{}", config.host, config.port),
        patience,
        desk: publisher.0.desk.clone(),
        health: publisher.0.health.clone(),
        connects: metrics.counter("mqtt_connects", "broker"),
    };
    let runtime = runtime()?;
    let thread = thread::spawn("mqtt", move || {
        runtime.block_on(Link::new(parts).serve());
        // A name server that does not answer must not hold up the stop.
        runtime.shutdown_timeout(Duration::from_millis(100));
    })?;
    Ok(Mqtt { publisher, thread: Some(thread) })
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
    // Records are held to max_packet before they are queued; here it would cost the connection, and states would go with it.
    let most = config.max_packet.max(OWN_PACKET);
    options.set_max_packet_size(most, most);
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

    /// Takes nothing more in, delivers what waits, publishes `offline`, disconnects and joins. After `grace` the
    /// connection is broken off instead, what is left is dropped and counted, and the broker publishes the last will.
    pub fn finish(mut self, grace: Duration) {
        self.publisher.0.desk.close(grace);
        if let Some(thread) = self.thread.take()
            && !thread.join_until(Instant::now() + grace + Duration::from_millis(1500))
        {
            tracing::error!("the MQTT thread did not end in time and was left behind");
        }
    }
}

impl Drop for Mqtt {
    fn drop(&mut self) {
        self.publisher.0.desk.close(Duration::ZERO);
    }
}

/// Puts messages on the desk. Never blocks on the network and never fails; clones share the desk.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    context: Context,
    topics: Topics,
    /// A larger packet would cost the connection, and its neighbours with it: it is refused before. Bytes.
    max_packet: usize,
    metrics: Metrics,
    lanes: Mutex<HashMap<CameraId, Arc<Lane>>>,
    quiet: Mutex<Quiet>,
    desk: Arc<Desk>,
    health: Arc<Health>,
}

impl Publisher {
    /// Queues the `detections` object of an analysed frame, in the order of the calls.
    pub fn looked(&self, looked: &Looked) {
        let camera = &looked.frame.camera;
        let lane = self.lane(camera);
        let payload = payload::looked(looked, &self.0.context);
        let size = lane.topic.len() + payload.len() + PACKET_OVERHEAD;
        let most = self.0.max_packet;
        if size > most {
            lane.dropped.add();
            let line = format!("detections of camera {camera} are too large for a message; must be at most mqtt.max_packet, {most} bytes");
            self.warn(&line, &format!("seq {} has {size} bytes", looked.seq));
            return;
        }
        let dropped = self.0.desk.lock().record(&lane, payload);
        self.0.desk.bell.notify_one();
        if dropped > 0 {
            self.warn("the queue for the broker is full: the oldest detections are dropped", &format!("camera {camera}"));
        }
    }

    /// Publishes a camera's state, retained. While the broker is away only the newest is kept.
    pub fn camera_status(&self, status: &CameraStatus) {
        let topic = self.0.topics.camera_status(&status.camera);
        let payload = payload::camera_status(status);
        self.0.desk.lock().status(&status.camera, topic, payload);
        self.0.desk.bell.notify_one();
    }

    /// Why there is no link to the broker, in a sentence; `None` while there is one.
    pub fn trouble(&self) -> Option<String> {
        self.0.health.trouble()
    }

    fn lane(&self, camera: &CameraId) -> Arc<Lane> {
        let Inner { lanes, topics, metrics, .. } = &*self.0;
        let mut lanes = lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let (published, dropped) =
                (metrics.counter("mqtt_published", camera.as_str()), metrics.counter("mqtt_dropped", camera.as_str()));
            Arc::new(Lane { topic: topics.detections(camera), published, dropped })
        };
        lanes.entry(camera.clone()).or_insert_with(new).clone()
    }

    fn warn(&self, line: &str, detail: &str) {
        if self.0.quiet.lock().unwrap_or_else(PoisonError::into_inner).lets(line, Instant::now()) {
            tracing::warn!("{line} ({detail})");
        }
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
