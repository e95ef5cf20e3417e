//! A connection that does nothing but say on a topic of its own whether the daemon is there. A connection has one last will
//! only, and that of the first is `P/status`; where somebody waits for another topic, this one has its will there.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use rumqttc::QoS;

use crate::base::error::Result;
use crate::base::metrics::Metrics;
use crate::base::thread::Thread;
use crate::config::MqttConfig;
use crate::mqtt::health::Health;
use crate::mqtt::link::Parts;
use crate::mqtt::payload;
use crate::mqtt::pending::{Desk, Pending};
use crate::mqtt::wire::{self, Options};
use crate::mqtt::{LIMITS, OWN_PACKET, Patience, serve};

/// Between two figures, which this connection has none of: longer than it lives.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// For `offline`, where the first connection used up the time.
const FAREWELL: Duration = Duration::from_millis(300);

/// The connection and its thread. Dropped without `finish`, it breaks off, and the broker publishes the last will.
pub struct Presence {
    desk: Arc<Desk>,
    thread: Option<Thread>,
}

/// Starts the connection as another client of the same broker: `name` stands behind the client id and behind `mqtt` in the
/// thread's name.
///
/// # Errors
/// When the configuration cannot be used, or the system refuses a thread.
pub fn start(config: &MqttConfig, name: &str, topic: String, patience: Patience, metrics: &Metrics) -> Result<Presence> {
    let config = MqttConfig { client_id: format!("{}-{name}", config.client_id), ..config.clone() };
    let mut options = Options::new(&config, patience, OWN_PACKET)?;
    options.set_last_will(&topic, payload::OFFLINE);
    let desk = Arc::new(Desk::new(Pending::new(topic.clone(), LIMITS, config.backlog_rate)));
    let parts = Parts {
        options,
        qos: QoS::AtLeastOnce,
        broker: format!("{}:{} (for {topic})", config.host, config.port),
        patience,
        desk: desk.clone(),
        health: Arc::new(Health::new()),
        connects: metrics.counter("mqtt_connects", name),
        subscriptions: Vec::new(),
        question: topic.clone(),
        broker_limit: Arc::new(AtomicUsize::new(wire::MAX_PACKET)),
        inbox: Box::new(|_| {}),
        stats_interval: NEVER,
        stats: Box::new(move || (topic.clone(), payload::ONLINE.into())),
    };
    let thread = serve(&format!("mqtt-{name}"), parts)?;
    Ok(Presence { desk, thread: Some(thread) })
}

impl Presence {
    /// Says `offline`, disconnects and joins, until `deadline` or a moment longer; else the broker publishes the last will. What
    /// hangs `last` is left behind.
    pub fn finish(mut self, deadline: Instant, last: Instant) {
        let grace = deadline.saturating_duration_since(Instant::now()).max(FAREWELL);
        self.desk.close(grace, Vec::new());
        if let Some(thread) = self.thread.take()
            && !thread.join_until(last)
        {
            tracing::error!("the second MQTT thread did not end in time and was left behind");
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.desk.close(Duration::ZERO, Vec::new());
    }
}
