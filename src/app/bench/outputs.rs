//! `bench outputs`: what live video costs, and how old a picture is when somebody sees it. Source, drawing and server are the
//! daemon's; the camera and the viewers are processes of their own.

mod viewers;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::annotate::Annotator;
use crate::app::bench::cameras::server::Server;
use crate::app::bench::rounded;
use crate::app::oneshot::print;
use crate::app::paint::Brush;
use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::{Latency, Metrics};
use crate::base::process;
use crate::base::shutdown::Shutdown;
use crate::config::{CameraConfig, Decode, EncoderKind, Input, RtspConfig, RtspVideo};
use crate::sink::Sink;
use crate::sink::video::{Bare, Live, RtspSink, Work};
use crate::source::{self, Decoders, Hooks, Source};
use crate::types::{Box01, CameraId, CameraState, Encoded, Mark, Prompt};
use viewers::Viewers;

pub use viewers::watch;

/// Those of "many".
const MANY: usize = 20;

/// Boxes in the picture.
const BOXES: usize = 6;

/// Between two looks, at each of which all boxes have moved.
const LOOKS: Duration = Duration::from_millis(500);

/// Without boxes and with them in turn, so often: a machine is not equally fast at all times.
const ROUNDS: u32 = 3;

/// Until a camera shows, and until a viewer sees, something.
const PATIENCE: Duration = Duration::from_secs(20);

/// From then on to the measurement.
const SETTLE: Duration = Duration::from_secs(2);

/// For the camera to be closed.
const GRACE: Duration = Duration::from_secs(5);

/// A camera that writes the time into its pictures.
const CLOCK: &str = "videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=1280,height=720,framerate=30/1 ! identity name=stamp \
     ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=4000 key-int-max=60 ! rtph264pay name=pay0 pt=96 config-interval=-1";

/// Measures live video of a clip, `time` for each figure, and prints one JSON object.
///
/// # Errors
/// When the clip cannot be shown, nobody sees it, or the flag goes up.
pub fn run(clip: &Path, time: Duration, shutdown: &Shutdown) -> Result<()> {
    source::init()?;
    let cost = cost(clip, time, shutdown)?;
    let latency = latency(time, shutdown)?;
    let mut report = json!({"version": env!("CARGO_PKG_VERSION"), "seconds": time.as_secs_f64()});
    for (key, value) in [cost, latency].into_iter().filter_map(|part| part.as_object().cloned()).flatten() {
        report[key] = value;
    }
    print(&report.to_string())
}

/// What was measured over a time.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Processor seconds of this process a second.
    cpu: f64,
    /// Pictures encoded a second.
    encoded: f64,
    /// Pictures that came to the viewer who got the fewest, a second.
    seen: f64,
}

/// Processor time, for nobody, one and many.
fn cost(clip: &Path, time: Duration, shutdown: &Shutdown) -> Result<Value> {
    let mut server = Server::start("--clip", clip)?;
    let mut rig = Rig::start(&server.uri(), shutdown)?;
    let measured = (|| {
        let nobody = rig.measure(time, None)?;
        // The same stream, decoded and encoded by a pipeline without anything of ours.
        let (mut received, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            received.push(rig.measure_bare(&server.uri(), Work::Receive, time / ROUNDS)?);
            plain.push(rig.measure_bare(&server.uri(), Work::Reencode, time / ROUNDS)?);
        }
        let plain = Sample { cpu: mean(&plain).cpu - mean(&received).cpu, ..mean(&plain) };
        let threads = process::threads();
        let mut one = Viewers::start(&rig.uri(), 1, false)?;
        rig.await_picture(&mut one)?;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            rig.boxes(false);
            without.push(rig.measure(time / ROUNDS, Some(&mut one))?);
            rig.boxes(true);
            with.push(rig.measure(time / ROUNDS, Some(&mut one))?);
        }
        let watched_threads = process::threads();
        drop(one);
        let mut crowd = Viewers::start(&rig.uri(), MANY, false)?;
        rig.await_picture(&mut crowd)?;
        let many = rig.measure(time, Some(&mut crowd))?;
        drop(crowd);
        rig.shutdown.wait(SETTLE);
        let after = rig.measure(time / ROUNDS, None)?;
        server.check()?;
        let (without, with) = (mean(&without), mean(&with));
        let work = |sample: Sample| sample.cpu - nobody.cpu;
        let figure = |of: fn(&Sample) -> f64| {
            json!({
                "nobody": rounded(of(&nobody), 3),
                "one_without_boxes": rounded(of(&without), 3),
                "one_with_boxes": rounded(of(&with), 3),
                "twenty_with_boxes": rounded(of(&many), 3),
                "nobody_again": rounded(of(&after), 3),
            })
        };
        Ok(json!({
            "boxes": BOXES,
            "cpu_s_per_s": figure(|sample| sample.cpu),
            "encoded_per_s": figure(|sample| sample.encoded),
            "seen_per_s": figure(|sample| sample.seen),
            "plain_decode_and_encode": {"cpu_s_per_s": rounded(plain.cpu, 3), "encoded_per_s": rounded(plain.encoded, 3)},
            "plain_ratio": rounded(work(with) / plain.cpu, 3),
            "overlay_ratio": rounded(work(with) / work(without), 3),
            "twenty_viewers_ratio": rounded(work(many) / work(with), 3),
            "threads": {"nobody": threads, "one": watched_threads},
            "pictures_dropped": rig.metrics.counter("live_pictures_dropped", rig.id.as_str()).get(),
        }))
    })();
    rig.stop();
    measured
}

/// How old pictures are at a viewer, from the moment in which the camera made them.
fn latency(time: Duration, shutdown: &Shutdown) -> Result<Value> {
    let server = Server::start("--launch", CLOCK)?;
    let mut rig = Rig::start(&server.uri(), shutdown)?;
    let measured = (|| {
        let mut viewer = Viewers::start(&rig.uri(), 1, true)?;
        rig.boxes(true);
        rig.await_picture(&mut viewer)?;
        viewer.take()?;
        rig.wait(time)?;
        let (latency, ages) = (Latency::default(), viewer.take()?.ages);
        ages.iter().for_each(|age| latency.record(Duration::from_millis(u64::from(*age))));
        let digits = |share| latency.percentile(share).map(|ms| rounded(ms, 1));
        Ok(json!({"latency_ms": {"p50": digits(0.5), "p99": digits(0.99), "pictures": ages.len()}}))
    })();
    rig.stop();
    measured
}

fn mean(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| samples.iter().map(figure).sum::<f64>() / samples.len().max(1) as f64;
    Sample { cpu: of(|s| s.cpu), encoded: of(|s| s.encoded), seen: of(|s| s.seen) }
}

/// A camera's source, and the server of its live video.
struct Rig {
    id: CameraId,
    live: Live,
    sink: RtspSink,
    source: Source,
    /// They end behind the source.
    _decoders: Decoders,
    metrics: Metrics,
    /// The whole measurement's.
    shutdown: Shutdown,
    /// The camera's.
    off: Shutdown,
    boxed: bool,
    looks: u32,
}

impl Rig {
    fn start(uri: &str, shutdown: &Shutdown) -> Result<Self> {
        let (id, metrics) = (CameraId::new("camera")?, Metrics::new());
        let live = Live::new(std::slice::from_ref(&id), EncoderKind::X264, Arc::new(Brush::new(Annotator::new()?)), &metrics)?;
        let config = RtspConfig { video: RtspVideo::Live, ..RtspConfig::new(([127, 0, 0, 1], 0).into()) };
        let sink = RtspSink::new(config, std::slice::from_ref(&id), Some(live.clone()), &metrics)?;
        let decode = Decode::Keyframes;
        let camera = CameraConfig { decode, ..CameraConfig::new(id.clone(), Input::Uri(uri.to_owned()), Prompt::new("detect nothing")?) };
        let (units, states, sender) = (live.clone(), live.clone(), id.clone());
        let hooks = Hooks {
            encoded: Some(Box::new(move |encoded| {
                if let Encoded::Unit(unit) = encoded {
                    units.encoded(&sender, unit);
                }
            })),
            raw: None,
            wants: Box::new(|_| false),
            admit: Box::new(|_, _| false),
            deliver: Box::new(drop),
            status: Box::new(move |status| states.status(&status)),
        };
        let decoders = Decoders::start()?;
        let off = Shutdown::new();
        let source = source::start(camera, hooks, &decoders, &metrics, off.clone())?;
        let rig = Self { id, live, sink, source, _decoders: decoders, metrics, shutdown: shutdown.clone(), off, boxed: false, looks: 0 };
        let begin = Instant::now();
        while rig.source.status().state != CameraState::Running {
            if begin.elapsed() >= PATIENCE || rig.shutdown.wait(Duration::from_millis(50)) {
                let why = rig.source.status().reason;
                rig.stop();
                return Err(Error::new(Kind::Pipeline, format!("the camera shows nothing: {why}")));
            }
        }
        Ok(rig)
    }

    fn uri(&self) -> String {
        format!("rtsp://127.0.0.1:{}/{}", self.sink.port(), self.id)
    }

    /// Whether there are boxes from now on.
    fn boxes(&mut self, boxed: bool) {
        self.boxed = boxed;
        self.look();
    }

    /// Boxes wander about, a tenth to a quarter of the picture wide.
    fn look(&mut self) {
        self.looks += 1;
        let box01 = |number: usize| {
            let (turn, column, row) = (f64::from(self.looks) * 0.3 + number as f64, number % 3, number / 3);
            let (x, y) = (column as f64 * 0.3 + 0.04 + 0.03 * turn.sin(), row as f64 * 0.4 + 0.15 + 0.03 * turn.cos());
            let (width, height) = (0.1 + 0.02 * number as f64, 0.2 + 0.02 * number as f64);
            Box01 { y_min: y as f32, x_min: x as f32, y_max: (y + height) as f32, x_max: (x + width) as f32 }
        };
        let count = if self.boxed { BOXES } else { 0 };
        let (seen, lasts) = (Instant::now(), Duration::from_secs(5));
        let mark = |number| Mark { label: "person".into(), score: 0.87, box01: box01(number), seen, lasts };
        self.live.marks(&self.id, (0..count).map(mark).collect());
    }

    /// Goes on for so long, with a look now and then.
    fn wait(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let left = end.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            self.look();
            if self.shutdown.wait(left.min(LOOKS)) {
                return Err(Error::new(Kind::Input, "stopped before the end of the measurement"));
            }
        }
        Ok(())
    }

    fn await_picture(&mut self, viewers: &mut Viewers) -> Result<()> {
        let begin = Instant::now();
        let mut seen = vec![0; 1];
        while seen.contains(&0) {
            if begin.elapsed() >= PATIENCE {
                return Err(Error::new(Kind::Pipeline, "a viewer sees nothing"));
            }
            self.wait(Duration::from_millis(200))?;
            let fresh = viewers.take()?.pictures;
            seen.resize(fresh.len(), 0);
            seen.iter_mut().zip(fresh).for_each(|(seen, fresh)| *seen += fresh);
        }
        self.wait(SETTLE)
    }

    /// What this process takes while a plain pipeline takes the camera's stream too.
    fn measure_bare(&mut self, uri: &str, work: Work, time: Duration) -> Result<Sample> {
        let bare = Bare::start(uri, work)?;
        let begin = Instant::now();
        while bare.pictures() == 0 {
            if begin.elapsed() >= PATIENCE {
                return Err(Error::new(Kind::Pipeline, "the plain pipeline shows nothing"));
            }
            self.wait(Duration::from_millis(100))?;
        }
        self.wait(SETTLE / 2)?;
        let before = bare.pictures();
        let sample = self.measure(time, None)?;
        Ok(Sample { encoded: (bare.pictures() - before) as f64 / time.as_secs_f64(), ..sample })
    }

    fn measure(&mut self, time: Duration, mut viewers: Option<&mut Viewers>) -> Result<Sample> {
        let encoded = self.metrics.counter("rtsp_pictures_encoded", self.id.as_str());
        if let Some(viewers) = &mut viewers {
            viewers.take()?;
        }
        let (begin, cpu, before) = (Instant::now(), process::cpu_time(None), encoded.get());
        self.wait(time)?;
        let took = begin.elapsed().as_secs_f64();
        let cpu = process::cpu_time(None).unwrap_or_default().saturating_sub(cpu.unwrap_or_default());
        let least = viewers.map(|viewers| viewers.take()).transpose()?.and_then(|seen| seen.pictures.into_iter().min());
        Ok(Sample {
            cpu: cpu.as_secs_f64() / took,
            encoded: (encoded.get() - before) as f64 / took,
            seen: least.unwrap_or_default() as f64 / took,
        })
    }

    fn stop(mut self) {
        if let Err(error) = self.sink.finish() {
            tracing::warn!("{}", error.chain());
        }
        self.off.trigger();
        if !self.source.join_until(Instant::now() + GRACE) {
            tracing::warn!("the camera did not let go in time and was left behind");
        }
    }
}
