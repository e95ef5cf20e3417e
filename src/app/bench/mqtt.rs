//! `bench mqtt`: how many messages a second go to a broker on this machine, kept on disk until it has them, and how long a
//! stage that publishes is held up by one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::app::demo::{self, Children};
use crate::app::oneshot::print;
use crate::base::clock::Utc;
use crate::base::error::{Context as _, Error, Kind, Result};
use crate::base::metrics::{Counter, Latency, Metrics};
use crate::base::shutdown::Shutdown;
use crate::config::{Durable, MqttConfig, MqttVersion};
use crate::mqtt::{self, Context, Mqtt, Watched};
use crate::types::{Answer, Box01, CameraId, Detection, Finish, Frame, Looked, Prompt, TimeSource};

/// The one camera's name, and what it is asked.
const CAMERA: &str = "bench";
const PROMPT: &str = "detect cat ; dog ; car";

/// For a link to end.
const GRACE: Duration = Duration::from_secs(2);

/// So many messages may be unacknowledged, or not on disk yet, before the bench waits: memory holds a thousand.
const AHEAD: usize = 500;

/// Without a message for so long the broker, or the disk, is given up.
const PATIENCE: Duration = Duration::from_secs(90);

/// What `palisade bench mqtt` is asked to do.
pub struct MqttArgs {
    /// How many messages.
    pub messages: u32,
    /// Also without a broker, to the disk, and from there to the broker once it is there.
    pub durable: bool,
    /// One JSON object instead of a table.
    pub json: bool,
}

/// Messages a second.
struct Rates {
    /// With a broker that acknowledges them.
    live: f64,
    /// To the disk while there is no broker, and from there to one.
    kept: Option<(f64, f64)>,
}

/// Measures and prints what came out.
///
/// # Errors
/// When there is no broker to be had, or it takes nothing.
pub fn run(args: &MqttArgs, children: &Children, shutdown: &Shutdown) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("palisade-bench-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).context(Kind::Io, || format!("{} cannot be made", folder.display()))?;
    let enqueue = Latency::default();
    let bench = Bench { messages: args.messages, folder: &folder, children, shutdown, enqueue: &enqueue };
    let rates = bench.rates(args.durable);
    children.end();
    std::fs::remove_dir_all(&folder).ok();
    let rates = rates?;
    let at = |share| enqueue.percentile(share).unwrap_or_default();
    let (p50, p99) = (at(0.5), at(0.99));
    if args.json {
        let round = |value: f64, digits: i32| (value * 10_f64.powi(digits)).round() / 10_f64.powi(digits);
        let told = json!({
            "version": env!("CARGO_PKG_VERSION"), "messages": args.messages, "messages_per_s": round(rates.live, 0),
            "kept_per_s": rates.kept.map(|(kept, _)| round(kept, 0)), "caught_up_per_s": rates.kept.map(|(_, caught)| round(caught, 0)),
            "enqueue_ms": {"p50": round(p50, 4), "p99": round(p99, 4)},
        });
        return print(&told.to_string());
    }
    let mut lines =
        vec![format!("{} messages", args.messages), format!("{:<36}{:>10.0}", "acknowledged by a broker, a second", rates.live)];
    if let Some((kept, caught)) = rates.kept {
        lines.push(format!("{:<36}{kept:>10.0}", "kept on disk without one, a second"));
        lines.push(format!("{:<36}{caught:>10.0}", "from disk to a broker, a second"));
    }
    lines.push(format!("{:<36}{p50:>10.4}", "enqueue ms, p50"));
    lines.push(format!("{:<36}{p99:>10.4}", "enqueue ms, p99"));
    print(&lines.join("\n"))
}

struct Bench<'b> {
    messages: u32,
    folder: &'b Path,
    children: &'b Children,
    shutdown: &'b Shutdown,
    enqueue: &'b Latency,
}

impl Bench<'_> {
    fn rates(&self, durable: bool) -> Result<Rates> {
        let port = demo::free_port()?;
        let kept = if durable { Some(self.outage(port)?) } else { demo::start_broker(self.children, self.folder, port).map(|()| None)? };
        let (mqtt, published) = self.link(port, durable.then(|| self.folder.join("live")))?;
        let begin = Instant::now();
        self.send(&mqtt, |sent| sent - published.get() as usize)?;
        self.wait(|| self.messages as usize - published.get() as usize)?;
        let live = self.rate(begin);
        mqtt.finish(GRACE);
        Ok(Rates { live, kept })
    }

    /// Messages while there is no broker; then there is one.
    fn outage(&self, port: u16) -> Result<(f64, f64)> {
        let (mqtt, published) = self.link(port, Some(self.folder.join("state")))?;
        let publisher = mqtt.publisher();
        let begin = Instant::now();
        self.send(&mqtt, |_| publisher.unsaved())?;
        self.wait(|| publisher.unsaved())?;
        let kept = self.rate(begin);
        demo::start_broker(self.children, self.folder, port)?;
        // The link waits between its tries.
        self.wait(|| usize::from(published.get() == 0))?;
        let (begin, before) = (Instant::now(), published.get());
        self.wait(|| self.messages as usize - published.get() as usize)?;
        let caught = (f64::from(self.messages) - before as f64) / begin.elapsed().as_secs_f64();
        mqtt.finish(GRACE);
        Ok((kept, caught))
    }

    fn link(&self, port: u16, state: Option<PathBuf>) -> Result<(Mqtt, Counter)> {
        let metrics = Metrics::new();
        let camera = Watched { id: CameraId::new(CAMERA)?, prompt: Prompt::new(PROMPT)?, enabled: true, zones: Vec::new() };
        let context = Context { model: "bench".to_owned(), run: uuid::Uuid::new_v4() };
        let mqtt = mqtt::start(config(port, state), std::slice::from_ref(&camera), context, &metrics)?;
        Ok((mqtt, metrics.counter("mqtt_published", CAMERA)))
    }

    /// All messages, as fast as `behind` stays small.
    fn send(&self, mqtt: &Mqtt, behind: impl Fn(usize) -> usize) -> Result<()> {
        let (publisher, looked) = (mqtt.publisher(), looked()?);
        for seq in 1..=self.messages {
            if behind(seq as usize) > AHEAD {
                self.wait(|| behind(seq as usize).saturating_sub(AHEAD / 2))?;
            }
            let one = Looked { seq: seq.into(), ..looked.clone() };
            let before = Instant::now();
            publisher.looked(&one);
            self.enqueue.record(before.elapsed());
        }
        Ok(())
    }

    /// Until nothing is left.
    fn wait(&self, left: impl Fn() -> usize) -> Result<()> {
        let mut progress = (left(), Instant::now());
        while progress.0 > 0 {
            std::thread::sleep(Duration::from_micros(200));
            let now = left();
            if now != progress.0 {
                progress = (now, Instant::now());
            } else if progress.1.elapsed() > PATIENCE {
                return Err(Error::new(Kind::Mqtt, format!("neither broker nor disk took a message for {} s", PATIENCE.as_secs())));
            }
            if self.shutdown.is_set() {
                return Err(Error::new(Kind::Input, "stopped before the end of the measurement"));
            }
        }
        Ok(())
    }

    fn rate(&self, begin: Instant) -> f64 {
        f64::from(self.messages) / begin.elapsed().as_secs_f64()
    }
}

fn config(port: u16, state_dir: Option<PathBuf>) -> MqttConfig {
    MqttConfig {
        host: "127.0.0.1".to_owned(),
        port,
        version: MqttVersion::V3,
        username: None,
        password: None,
        topic_prefix: "palisade".to_owned(),
        qos: 1,
        tls: None,
        client_id: format!("palisade-bench-{}", uuid::Uuid::new_v4().simple()),
        durable: Durable::All,
        state_dir,
        control: false,
        snapshots: false,
        max_packet: 256 * 1024,
        // What the machine can do is asked for, not what it may.
        backlog_rate: 100_000,
        stats_interval: Duration::from_secs(60),
        discovery_prefix: None,
        frigate_prefix: None,
    }
}

/// An answer of usual size: three objects.
fn looked() -> Result<Looked> {
    let detection = |label: &str| Detection {
        label: label.to_owned(),
        score: 0.9,
        locs: [251, 104, 893, 610],
        box01: Box01::from_locs([251, 104, 893, 610]),
    };
    let now = Instant::now();
    Ok(Looked {
        frame: Frame {
            camera: CameraId::new(CAMERA)?,
            captured: Utc::now(),
            time_source: TimeSource::Pipeline,
            received: now,
            position: None,
            image: Arc::new(image::RgbImage::new(64, 48)),
        },
        seq: 1,
        prompt: Arc::new(Prompt::new(PROMPT)?),
        answer: Arc::new(Answer {
            raw: "<loc0251><loc0104><loc0893><loc0610> cat ; <loc0251><loc0104><loc0893><loc0610> dog ; <loc0251><loc0104><loc0893><loc0610> car"
                .to_owned(),
            finish: Finish::Eos,
            detections: ["cat", "dog", "car"].map(detection).into(),
            rejected: vec![],
            tokens: vec![],
            drafts_accepted: 0,
        }),
        queued: Duration::from_millis(1),
        inference: Duration::from_millis(40),
        total: Duration::from_millis(41),
    })
}
