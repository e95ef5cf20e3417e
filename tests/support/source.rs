//! A running source and what comes out of it.
#![allow(dead_code, reason = "each area of the tests uses a part of it")]

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, unbounded};

use palisade::base::metrics::Metrics;
use palisade::base::shutdown::Shutdown;
use palisade::config::{CameraConfig, Decode, Input};
use palisade::gate::Gate;
use palisade::source::{self, Admit, Candidate, Decoders, Hooks, Limits, Source, Tapped, WantsRaw};
use palisade::types::{CameraId, CameraState, CameraStatus, Frame, Prompt};

/// Long enough for a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Longer where the waits are those of service.
fn patience() -> Duration {
    if std::env::var_os("PALISADE_SOAK").is_some() { PATIENCE * 5 } else { PATIENCE }
}

/// As in the daemon, all cameras of a process share them.
static DECODERS: LazyLock<Decoders> = LazyLock::new(|| Decoders::start().unwrap());

pub fn camera(uri: &str) -> CameraConfig {
    let (id, input) = (CameraId::new("cam").unwrap(), Input::Uri(uri.to_owned()));
    CameraConfig { decode: Decode::All, ..CameraConfig::new(id, input, Prompt::new("detect cat").unwrap()) }
}

pub fn file(path: &Path) -> CameraConfig {
    camera(&format!("file://{}", path.display()))
}

/// Short waits, so that what takes minutes in service takes seconds here.
pub fn limits() -> Limits {
    Limits {
        stall: Duration::from_secs(3),
        backoff_first: Duration::from_millis(200),
        backoff_most: Duration::from_secs(1),
        refused: Duration::from_secs(5),
        ..Limits::default()
    }
}

/// A running source and what came out of it.
pub struct Open {
    pub frames: Receiver<Frame>,
    pub statuses: Receiver<CameraStatus>,
    pub metrics: Metrics,
    stop: StopOnDrop,
    pub source: Source,
}

/// Lets a failed test end: a source joins its thread when it is dropped.
struct StopOnDrop(Shutdown);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.trigger();
    }
}

pub fn open(config: CameraConfig) -> Open {
    open_with(limits(), config, |_| true)
}

pub fn open_with(limits: Limits, config: CameraConfig, mut admit: impl FnMut(Candidate) -> bool + Send + 'static) -> Open {
    open_gated(limits, config, Metrics::new(), Box::new(move |candidate, _| admit(candidate)))
}

/// Behind a gate of its own that counts motion.
pub fn open_watched(config: CameraConfig) -> Open {
    let metrics = Metrics::new();
    let mut gate = Gate::new(config.interval, config.motion.clone(), &config.id, &metrics);
    open_gated(limits(), config, metrics, Box::new(move |candidate, luma| gate.admit(candidate.received, luma)))
}

/// With every hook calling `hook` by its name first.
pub fn open_hooked(limits: Limits, config: CameraConfig, hook: impl Fn(&str) + Clone + Send + 'static) -> Open {
    let (frame, frames) = unbounded();
    let (status, statuses) = unbounded();
    let [wants, admit, deliver, tells] = [hook.clone(), hook.clone(), hook.clone(), hook];
    let hooks = Hooks {
        wants: Box::new(move |_| {
            wants("wants");
            true
        }),
        admit: Box::new(move |_, _| {
            admit("admit");
            true
        }),
        deliver: Box::new(move |f| {
            deliver("deliver");
            drop(frame.send(f));
        }),
        status: Box::new(move |s| {
            tells("status");
            drop(status.send(s));
        }),
        encoded: None,
        raw: None,
    };
    start(limits, config, Metrics::new(), hooks, frames, statuses)
}

/// With `encoded` called with each encoded picture.
pub fn open_tapped(config: CameraConfig, encoded: Tapped) -> Open {
    open_told(config, encoded, |_| {})
}

/// The same with `told` called at each change of state. Nothing is looked at.
pub fn open_told(config: CameraConfig, encoded: Tapped, told: impl FnMut(&CameraStatus) + Send + 'static) -> Open {
    open_raw(config, encoded, Box::new(|| false), told)
}

/// The same with raw pictures where they are `wanted`.
pub fn open_raw(config: CameraConfig, encoded: Tapped, wanted: WantsRaw, mut told: impl FnMut(&CameraStatus) + Send + 'static) -> Open {
    let (frame, frames) = unbounded();
    let (status, statuses) = unbounded();
    let hooks = Hooks {
        encoded: Some(encoded),
        raw: Some(wanted),
        wants: Box::new(|_| true),
        admit: Box::new(|_, _| false),
        deliver: Box::new(move |f| drop(frame.send(f))),
        status: Box::new(move |s| {
            told(&s);
            drop(status.send(s));
        }),
    };
    start(limits(), config, Metrics::new(), hooks, frames, statuses)
}

pub fn open_gated(limits: Limits, config: CameraConfig, metrics: Metrics, admit: Admit) -> Open {
    let (frame, frames) = unbounded();
    let (status, statuses) = unbounded();
    let hooks = Hooks {
        wants: Box::new(|_| true),
        admit,
        deliver: Box::new(move |f| drop(frame.send(f))),
        status: Box::new(move |s| drop(status.send(s))),
        encoded: None,
        raw: None,
    };
    start(limits, config, metrics, hooks, frames, statuses)
}

/// With `encoded` as the hook for encoded pictures.
pub fn open_kept(config: CameraConfig, metrics: Metrics, encoded: Tapped) -> Open {
    let (frame, frames) = unbounded();
    let (status, statuses) = unbounded();
    let hooks = Hooks {
        wants: Box::new(|_| true),
        admit: Box::new(|_, _| true),
        deliver: Box::new(move |f| drop(frame.send(f))),
        status: Box::new(move |s| drop(status.send(s))),
        encoded: Some(encoded),
        raw: None,
    };
    start(limits(), config, metrics, hooks, frames, statuses)
}

fn start(
    limits: Limits,
    config: CameraConfig,
    metrics: Metrics,
    hooks: Hooks,
    frames: Receiver<Frame>,
    statuses: Receiver<CameraStatus>,
) -> Open {
    let stop = StopOnDrop(Shutdown::new());
    let source = source::start_with(limits, config, hooks, &DECODERS, &metrics, stop.0.clone()).unwrap();
    Open { frames, statuses, metrics, stop, source }
}

impl Open {
    /// The next status of this state; those before it are passed over.
    pub fn reach(&self, state: CameraState) -> CameraStatus {
        let deadline = Instant::now() + patience();
        loop {
            let status = self.statuses.recv_deadline(deadline).unwrap_or_else(|_| panic!("never {}", state.name()));
            if status.state == state {
                return status;
            }
        }
    }

    /// Every frame until the source drops its hooks.
    pub fn all_frames(&self) -> Vec<Frame> {
        let deadline = Instant::now() + PATIENCE;
        let mut frames = Vec::new();
        loop {
            match self.frames.recv_deadline(deadline) {
                Ok(frame) => frames.push(frame),
                Err(RecvTimeoutError::Disconnected) => return frames,
                Err(RecvTimeoutError::Timeout) => panic!("no end; {:?}", self.source.status()),
            }
        }
    }

    pub fn frame(&self) -> Frame {
        self.frames.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no frame; {:?}", self.source.status()))
    }

    pub fn count(&self, name: &'static str) -> u64 {
        self.metrics.counter(name, "cam").get()
    }

    pub fn stop(self) {
        self.stop.0.trigger();
        assert!(self.source.join_until(Instant::now() + PATIENCE));
        while self.frames.try_recv().is_ok() {}
        assert_eq!(self.frames.try_recv().unwrap_err(), TryRecvError::Disconnected, "the hooks are dropped");
        assert_eq!(self.statuses.iter().last().map(|s| s.state), Some(CameraState::Disabled));
    }
}
