//! `bench cameras`: what cameras cost before the model, and how fresh and how even their frames come to it. Every stage up
//! to the mailbox is the daemon's; the detector behind it does nothing, and the cameras are a process of their own.

mod report;
pub(super) mod server;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::app::camera::{Lease, hooks};
use crate::app::oneshot::print;
use crate::app::steer::Asked;
use crate::base::clock::Utc;
use crate::base::error::{Error, Kind, Result};
use crate::base::mailbox::{Putter, Taker, mailbox};
use crate::base::metrics::{Latency, Metrics};
use crate::base::shutdown::Shutdown;
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::base::{memory, process};
use crate::config::{CameraConfig, Decode, Input};
use crate::detect::Job;
use crate::source::{self, Decoders, Source};
use crate::types::{CameraId, Frame, Prompt, TimeSource};
use report::{Flow, Report};
use server::Server;

/// Between the starts of two cameras: real ones keep no step with each other, nor with the looks.
const STAGGER: Duration = Duration::from_millis(61);

/// For the first frames, once all cameras have been started.
const FIRST_FRAMES: Duration = Duration::from_secs(20);

/// From then on to the measurement: what the beginning cost is past.
const SETTLE: Duration = Duration::from_secs(2);

/// For the cameras to be closed.
const GRACE: Duration = Duration::from_secs(5);

/// What `palisade bench cameras` is asked to do.
pub struct CamerasArgs {
    /// How many cameras.
    pub count: u16,
    /// What all of them show.
    pub clip: PathBuf,
    /// Time between looks.
    pub interval: Duration,
    /// How long is measured.
    pub time: Duration,
    /// Which frames are decoded.
    pub decode: Decode,
    /// One JSON object instead of a table.
    pub json: bool,
}

/// Measures cameras and prints what came out. The flag ends the measurement early, and goes up at its end.
///
/// # Errors
/// When the clip cannot be shown, no camera can be started, or the output cannot be written.
pub fn run(args: &CamerasArgs, shutdown: &Shutdown) -> Result<()> {
    source::init()?;
    let mut server = Server::start("--clip", &args.clip)?;
    let report = measure(args, &mut server, shutdown)?;
    print(&if args.json { report.as_json().to_string() } else { report.as_text() })
}

fn measure(args: &CamerasArgs, server: &mut Server, shutdown: &Shutdown) -> Result<Report> {
    let metrics = Metrics::new();
    let before = memory::resident_mib();
    let rig = Rig::start(args, &server.uri(), &metrics, shutdown)?;
    rig.warm_up(shutdown);
    let first = rig.tally().begin();
    let (begin, flow, cpu, server_cpu) = (Instant::now(), Flow::of(&metrics), process::cpu_time(None), server.cpu_time());
    shutdown.wait(args.time);
    let (took, flow) = (begin.elapsed(), Flow::of(&metrics).since(flow));
    let (cpu, server_cpu) = (since(cpu, process::cpu_time(None)), since(server_cpu, server.cpu_time()));
    let (threads, descriptors, after) = (process::threads(), process::descriptors(), memory::resident_mib());
    let (frames, timed) = rig.tally().end(&first);
    let early = shutdown.is_set();
    // Ahead of any way out: a source that is dropped is waited for, and only the flag ends it.
    rig.stop(shutdown);
    server.check()?;
    if early {
        return Err(Error::new(Kind::Input, "stopped before the end of the measurement"));
    }
    let camera_seconds = f64::from(args.count) * took.as_secs_f64();
    let share = |time: Option<Duration>| Some(time?.as_secs_f64() / camera_seconds);
    Ok(Report {
        cameras: args.count,
        interval: args.interval,
        time: args.time,
        decode: args.decode,
        cpu: share(cpu),
        server_cpu: share(server_cpu),
        memory: before.zip(after).map(|(before, after)| (after - before) / f64::from(args.count)),
        threads,
        descriptors,
        flow,
        frames,
        p50: timed.latency.percentile(0.5),
        p99: timed.latency.percentile(0.99),
        timed: timed.frames,
    })
}

fn since(begin: Option<Duration>, end: Option<Duration>) -> Option<Duration> {
    Some(end?.saturating_sub(begin?))
}

/// The running stages.
struct Rig {
    sources: Vec<Source>,
    /// They end behind the sources.
    _decoders: Decoders,
    detector: Thread,
    tally: Arc<Mutex<Tally>>,
}

impl Rig {
    fn start(args: &CamerasArgs, uri: &str, metrics: &Metrics, shutdown: &Shutdown) -> Result<Self> {
        let (putters, jobs) = mailbox::<Job>(args.count.into());
        let tally = Arc::new(Mutex::new(Tally { frames: vec![0; args.count.into()], timed: Timed::default() }));
        let detector = detector(jobs, tally.clone())?;
        let decoders = Decoders::start()?;
        let mut sources = Vec::new();
        for (number, putter) in putters.into_iter().enumerate() {
            if shutdown.wait(if number == 0 { Duration::ZERO } else { STAGGER }) {
                break;
            }
            match camera(args, uri, number, putter, &decoders, metrics, shutdown) {
                Ok(source) => sources.push(source),
                Err(error) => {
                    // As in the daemon: those that run already are joined as they are dropped.
                    shutdown.trigger();
                    return Err(error);
                }
            }
        }
        Ok(Self { sources, _decoders: decoders, detector, tally })
    }

    /// Until every camera has given a frame, but not for ever, and a moment more.
    fn warm_up(&self, shutdown: &Shutdown) {
        let deadline = Instant::now() + FIRST_FRAMES;
        while Instant::now() < deadline && self.tally().frames.contains(&0) && !shutdown.wait(Duration::from_millis(50)) {}
        shutdown.wait(SETTLE);
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        sync::lock(&self.tally)
    }

    fn stop(self, shutdown: &Shutdown) {
        shutdown.trigger();
        let deadline = Instant::now() + GRACE;
        let left = self.sources.into_iter().map(|source| source.join_until(deadline)).filter(|joined| !joined).count();
        if left > 0 {
            tracing::warn!(cameras = left, "cameras did not let go in time and were left behind");
        }
        self.detector.join_until(deadline);
    }
}

fn camera(
    args: &CamerasArgs,
    uri: &str,
    number: usize,
    putter: Putter<Job>,
    decoders: &Decoders,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> Result<Source> {
    let camera = CameraConfig {
        interval: args.interval,
        decode: args.decode,
        ..CameraConfig::new(id(number)?, Input::Uri(uri.to_owned()), Prompt::new("detect nothing")?)
    };
    let hooks = hooks(&camera, Asked::of(&camera), Arc::new(putter), &Lease::default(), drop, metrics);
    source::start(camera, hooks, decoders, metrics, shutdown.clone())
}

/// The place of a camera among the others is its number.
fn id(number: usize) -> Result<CameraId> {
    CameraId::new(&format!("cam-{number}"))
}

/// Takes every frame at once and does nothing with it.
fn detector(jobs: Taker<Job>, tally: Arc<Mutex<Tally>>) -> Result<Thread> {
    thread::spawn("bench-detector", move || {
        while let Some(taken) = jobs.take_up_to(1) {
            taken.iter().for_each(|(job, _)| sync::lock(&tally).count(&job.frame));
        }
    })
}

/// What has come to the detector.
struct Tally {
    /// By camera.
    frames: Vec<u64>,
    timed: Timed,
}

/// Frames of which the camera's own time is known, and how old they were.
#[derive(Default)]
struct Timed {
    latency: Latency,
    frames: u64,
}

impl Tally {
    fn count(&mut self, frame: &Frame) {
        let number = frame.camera.as_str().rsplit_once('-').and_then(|(_, number)| number.parse::<usize>().ok());
        if let Some(count) = number.and_then(|number| self.frames.get_mut(number)) {
            *count += 1;
        }
        if frame.time_source == TimeSource::Ntp {
            // Camera and detector have the same clock here.
            let age = u64::try_from(Utc::now().millis() - frame.captured.millis()).unwrap_or_default();
            self.timed.latency.record(Duration::from_millis(age));
            self.timed.frames += 1;
        }
    }

    /// Starts the measurement; returns the frames before it.
    fn begin(&mut self) -> Vec<u64> {
        self.timed = Timed::default();
        self.frames.clone()
    }

    /// Ends it; returns the frames of each camera since `first`, and the times.
    fn end(&mut self, first: &[u64]) -> (Vec<u64>, Timed) {
        let frames = self.frames.iter().zip(first).map(|(now, first)| now - first).collect();
        (frames, std::mem::take(&mut self.timed))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use image::RgbImage;

    fn frame(number: usize, age: i64, time_source: TimeSource) -> Frame {
        let (camera, captured) = (id(number).unwrap(), Utc::from_millis(Utc::now().millis() - age));
        Frame { camera, captured, time_source, received: Instant::now(), position: None, image: Arc::new(RgbImage::new(1, 1)) }
    }

    #[test]
    fn only_what_comes_within_the_measurement_counts() {
        let mut tally = Tally { frames: vec![0; 3], timed: Timed::default() };
        tally.count(&frame(0, 9000, TimeSource::Ntp));
        tally.count(&frame(2, 9000, TimeSource::Ntp));
        let first = tally.begin();
        for age in [100, 200, 300] {
            tally.count(&frame(2, age, TimeSource::Ntp));
        }
        // Its age is not known.
        tally.count(&frame(1, 5000, TimeSource::Pipeline));
        let (frames, timed) = tally.end(&first);
        assert_eq!((frames, timed.frames), (vec![0, 1, 3], 3));
        let oldest = timed.latency.percentile(1.0).unwrap();
        assert!((300.0..4000.0).contains(&oldest), "{oldest}");
    }
}
