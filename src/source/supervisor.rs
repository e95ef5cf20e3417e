//! The thread that keeps one source alive: builds, watches, tears down, waits, builds anew.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use gstreamer::prelude::*;
use gstreamer::{ClockTime, MessageType, MessageView, Pipeline, State};

use crate::base::backoff::Backoff;
use crate::base::metrics::{Counter, Metrics};
use crate::base::shutdown::Shutdown;
use crate::base::thread;
use crate::config::CameraConfig;
use crate::source::choice::Choice;
use crate::source::event::{Board, Herald};
use crate::source::fault::Interpreter;
use crate::source::intake::{Intake, Parts};
use crate::source::location::Location;
use crate::source::pipeline::Prepare;
use crate::source::plan::Plan;
use crate::source::pool::Seat;
use crate::source::tap::{Counters, Outside, Tap};
use crate::source::watch::{Ended, Fault, Flood, Health, Next, Policy, Rate, RateNews, Retry, Watch};
use crate::source::{Decoders, Hooks, Limits, pipeline, tap};
use crate::types::CameraState;

/// How long the bus is waited on before the watchdog looks again.
const POLL: ClockTime = ClockTime::from_mseconds(100);

/// The least time a looped file takes: one of a single frame must not spin.
const LEAST_PASS: Duration = Duration::from_millis(200);

/// A teardown that takes longer is worth telling.
const SLOW_TEARDOWN: Duration = Duration::from_secs(1);

/// So often a pipeline is told to stop that refuses to: one that plays while it is dropped aborts the process.
const STOP_TRIES: u32 = 5;

/// What is told between a start that went well and the first picture.
const WAITING: &str = "waiting for the first picture";

/// Everything one camera's thread owns.
pub struct Supervisor {
    config: CameraConfig,
    location: Location,
    watch: Watch,
    policy: Policy,
    interpreter: Interpreter,
    outside: Outside,
    plan: Arc<Mutex<Plan>>,
    choice: Choice,
    seat: Arc<Seat>,
    herald: Herald,
    reconnects: Counter,
    abandoned: Counter,
    shutdown: Shutdown,
    rate: Rate,
    flood: Flood,
}

/// What an attempt came to.
struct Attempt {
    ended: Ended,
    frames: u64,
    lasted: Duration,
    took: Duration,
}

impl Attempt {
    /// One that did not get as far as a pipeline.
    fn lost(fault: Fault) -> Self {
        Self { ended: Ended::Lost(fault), frames: 0, lasted: Duration::ZERO, took: Duration::ZERO }
    }
}

impl Supervisor {
    /// Gathers what the thread needs.
    #[expect(clippy::too_many_arguments, reason = "what a camera is made of; each has another origin")]
    pub fn new(
        limits: Limits,
        config: CameraConfig,
        location: Location,
        hooks: Hooks,
        decoders: &Decoders,
        metrics: &Metrics,
        shutdown: Shutdown,
        board: Arc<Board>,
    ) -> Self {
        let id = &config.id;
        let live = location.is_live();
        let (outlets, tell) = tap::part(hooks);
        let counters = Counters::new(metrics, id);
        Self {
            watch: Watch { limits, live },
            policy: Policy { limits, live, looped: config.looped },
            interpreter: Interpreter::new(&config),
            outside: Outside {
                camera: id.clone(),
                max_width: config.max_width,
                frozen_after: config.frozen_after.filter(|_| live),
                outlets,
                counters,
            },
            plan: Arc::new(Mutex::new(Plan::new(config.decode, config.interval))),
            choice: Choice::new(id.clone(), config.decoder),
            seat: decoders.seat(),
            herald: Herald::new(board, tell, metrics.clone()),
            reconnects: metrics.counter("reconnects", id.as_str()),
            abandoned: metrics.counter("teardowns_abandoned", id.as_str()),
            config,
            location,
            shutdown,
            rate: Rate::default(),
            flood: Flood::default(),
        }
    }

    /// Runs until the daemon stops or the source has ended for good.
    pub fn run(mut self) {
        if !self.config.enabled {
            self.herald.turn(CameraState::Disabled, "switched off in the configuration");
        } else if let Some(reason) = self.serve() {
            self.herald.turn(CameraState::Failed, &reason);
        } else {
            self.herald.turn(CameraState::Disabled, "the daemon stops");
        }
        // An abandoned pipeline may still hold a tap; the hooks end here all the same.
        drop(self.outside.outlets.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Attempts until the end; the reason where the source failed for good.
    fn serve(&mut self) -> Option<String> {
        let limits = self.watch.limits;
        let mut backoff = Backoff::new(limits.backoff_first, limits.backoff_most);
        // `turn` tells changes only, and a board begins as connecting: the first one is told by hand.
        self.herald.again();
        loop {
            let Attempt { ended, frames, lasted, took } = self.attempt();
            match self.policy.after(ended, frames, lasted, &mut backoff) {
                Next::Leave => return None,
                Next::Fail(reason) => return Some(reason),
                Next::Replay => {
                    if self.shutdown.wait(LEAST_PASS.saturating_sub(took)) {
                        return None;
                    }
                }
                Next::Wait(delay, reason) => {
                    self.herald.turn(CameraState::Backoff, &reason);
                    if self.shutdown.wait(delay) {
                        return None;
                    }
                    self.reconnects.add();
                    self.rate = Rate::default();
                    self.herald.turn(CameraState::Connecting, "");
                }
            }
        }
    }

    /// One pipeline from its making to its end.
    fn attempt(&mut self) -> Attempt {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).begin();
        let tap = Arc::new(Tap::new(self.outside.clone()));
        let intake = Intake::new(Parts {
            tap: tap.clone(),
            live: self.watch.live,
            plan: self.plan.clone(),
            choice: self.choice.clone(),
            seat: self.seat.clone(),
            heartbeat: self.watch.limits.stall / 2,
        });
        let (pipeline, prepare) = match pipeline::build(&self.location, &self.config, &tap, intake) {
            Ok(built) => built,
            Err(error) => return Attempt::lost(Fault { reason: self.interpreter.clean(&error.chain()), retry: Retry::Slowly }),
        };
        let mut pictures = Pictures::default();
        let ended = match self.play(&pipeline, prepare, &tap, &mut pictures) {
            Ended::Lost(_) if tap.distrusted() => Ended::Lost(self.interpreter.untrusted()),
            ended => ended,
        };
        match &ended {
            Ended::Stalled(reason) => self.herald.turn(CameraState::Stalled, reason),
            Ended::Lost(fault) if self.watch.live => self.herald.turn(CameraState::Backoff, &fault.reason),
            _ => {}
        }
        let (frames, took) = (tap.pulse().frames, tap.started().elapsed());
        drop(tap);
        self.tear_down(pipeline);
        Attempt { ended, frames, lasted: pictures.lasted(), took }
    }

    fn play(&mut self, pipeline: &Pipeline, prepare: Option<Prepare>, tap: &Arc<Tap>, pictures: &mut Pictures) -> Ended {
        let Some(bus) = pipeline.bus() else {
            return Ended::Lost(Fault { reason: "the pipeline has no bus".to_owned(), retry: Retry::Soon });
        };
        let started = match self.start(pipeline, prepare, tap) {
            Ok(started) => started,
            Err(fault) => return Ended::Lost(fault),
        };
        let mut start = Start::Under(started);
        let mut listener = Listener { interpreter: &self.interpreter, missing: None, warning: None };
        let mut news = RateNews::default();
        let wanted = [MessageType::Error, MessageType::Eos, MessageType::Element, MessageType::Warning];
        loop {
            let message = bus.timed_pop_filtered(POLL, &wanted);
            let ended = message.as_ref().and_then(|message| listener.hear(message));
            if start.step() && self.herald.status().state == CameraState::Connecting {
                self.herald.turn(CameraState::Connecting, WAITING);
            }
            let pulse = tap.pulse();
            if pictures.step(pulse.last_frame) {
                self.herald.turn(CameraState::Running, "");
            }
            match ended {
                // A file that showed its pictures has ended well, whatever a decoder warned of on the way.
                Some(Ended::Eos) if self.watch.live || pulse.frames == 0 => {
                    return tap.fault().or_else(|| listener.reason()).map_or(Ended::Eos, Ended::Lost);
                }
                Some(ended) => return ended,
                None => {}
            }
            if self.shutdown.is_set() {
                return Ended::Stopped;
            }
            if tap.panicked() {
                tracing::error!(camera = %self.config.id, "a frame hook panicked; this is a defect, please report it");
                return Ended::Lost(Fault { reason: "a frame hook panicked".to_owned(), retry: Retry::Soon });
            }
            if let Some(fault) = tap.fault() {
                return Ended::Lost(Fault { reason: self.interpreter.clean(&fault.reason), ..fault });
            }
            // A failed start has said why on the bus, if ever.
            if matches!(start, Start::Refused) && message.is_none() {
                let silent = || Fault { reason: "the pipeline did not start".to_owned(), retry: Retry::Soon };
                return Ended::Lost(listener.reason().unwrap_or_else(silent));
            }
            let now = Instant::now();
            let fps = self.rate.step(now, self.outside.counters.frames_in.get());
            self.herald.rate(fps);
            if pictures.first.is_some() && news.step(now, fps) {
                self.herald.again();
            }
            if self.watch.live && self.flood.step(now, fps, tap.announced()) {
                let reason = format!("{fps:.0} pictures a second came where {:.0} are announced", tap.announced().unwrap_or_default());
                return Ended::Lost(Fault { reason, retry: Retry::Soon });
            }
            if let Health::Stalled(reason) = self.watch.judge(tap.started(), pulse, now) {
                let missing = listener.missing.take();
                return missing.map_or(Ended::Stalled(reason), |reason| Ended::Lost(Fault { reason, retry: Retry::Slowly }));
            }
        }
    }

    /// To PLAYING in a thread of its own: opening what lies on a dead share can hang without end.
    fn start(&self, pipeline: &Pipeline, prepare: Option<Prepare>, tap: &Arc<Tap>) -> Result<Receiver<bool>, Fault> {
        let (send, started) = bounded(1);
        let (pipeline, tap) = (pipeline.clone(), tap.clone());
        let starting = thread::spawn(format!("start-{}", self.config.id), move || {
            if let Some(Err(error)) = prepare.map(|prepare| prepare()) {
                return tap.fail(Fault { reason: error.chain(), retry: Retry::Slowly });
            }
            // Nobody listens any more where it took too long.
            send.send(pipeline.set_state(State::Playing).is_ok()).ok();
        });
        // It ends by itself, or hangs: then the teardown hangs as well, and is counted.
        starting.map(thread::Thread::leave).map_err(|error| Fault { reason: error.chain(), retry: Retry::Soon })?;
        Ok(started)
    }

    /// To NULL in a thread of its own: a dead camera can hold that up without end.
    fn tear_down(&mut self, pipeline: Pipeline) {
        let (send, stopped) = bounded::<()>(1);
        let stopping = thread::spawn(format!("stop-{}", self.config.id), move || {
            stop(pipeline);
            drop(send);
        });
        let stopping = match stopping {
            Ok(stopping) => stopping,
            Err(error) => {
                tracing::error!(camera = %self.config.id, "{}", error.chain());
                self.abandoned.add();
                return;
            }
        };
        let deadline = Instant::now() + self.watch.limits.teardown;
        if stopped.recv_timeout(SLOW_TEARDOWN.min(self.watch.limits.teardown)) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            let status = self.herald.status();
            self.herald.turn(status.state, &format!("{}; the pipeline is slow to stop", status.reason));
        }
        if !stopping.join_until(deadline) {
            self.abandoned.add();
            tracing::warn!(camera = %self.config.id, "a pipeline did not stop in time and was left behind");
        }
    }
}

/// Stops and drops a pipeline. One that does not stop is kept for ever instead.
fn stop(pipeline: Pipeline) {
    for _ in 0..STOP_TRIES {
        if pipeline.set_state(State::Null).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    tracing::warn!(pipeline = %pipeline.name(), "a pipeline refused to stop and is left as it is");
    std::mem::forget(pipeline);
}

/// Where a start stands.
enum Start {
    Under(Receiver<bool>),
    Done,
    Refused,
}

impl Start {
    /// Looks whether it has come to its end; returns whether it has just done so, and well.
    fn step(&mut self) -> bool {
        let Self::Under(started) = self else { return false };
        match started.try_recv() {
            Ok(true) => *self = Self::Done,
            Ok(false) | Err(TryRecvError::Disconnected) => *self = Self::Refused,
            Err(TryRecvError::Empty) => {}
        }
        matches!(self, Self::Done)
    }
}

/// When pictures came.
#[derive(Default)]
struct Pictures {
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Pictures {
    /// Notes the last picture; returns whether it is the first.
    fn step(&mut self, last: Option<Instant>) -> bool {
        self.last = last;
        let begins = self.first.is_none() && last.is_some();
        if begins {
            self.first = last;
        }
        begins
    }

    /// From the first to the last: what was silent at the end was no health.
    fn lasted(&self) -> Duration {
        self.last.zip(self.first).map_or(Duration::ZERO, |(last, first)| last.saturating_duration_since(first))
    }
}

/// Listens to one pipeline's bus. PROGRESS messages are left out: rtspsrc puts the password in them.
struct Listener<'a> {
    interpreter: &'a Interpreter,
    missing: Option<String>,
    warning: Option<String>,
}

impl Listener<'_> {
    /// The end of the attempt, where the message tells of one.
    fn hear(&mut self, message: &gstreamer::Message) -> Option<Ended> {
        match message.view() {
            MessageView::Error(error) => {
                let fault = self.interpreter.error(&error.error(), error.debug().as_deref(), self.missing.as_deref());
                Some(Ended::Lost(fault))
            }
            MessageView::Eos(_) => Some(Ended::Eos),
            MessageView::Warning(warning) => {
                let fault = self.interpreter.error(&warning.error(), warning.debug().as_deref(), None);
                tracing::debug!("{}", fault.reason);
                self.warning = Some(fault.reason);
                None
            }
            MessageView::Element(element) => {
                let structure = element.structure()?;
                if structure.name() == "GstRTSPSrcTimeout" {
                    return Some(Ended::Stalled("the server sends nothing any more".to_owned()));
                }
                self.missing = self.interpreter.missing_plugin(structure).or(self.missing.take());
                None
            }
            _ => None,
        }
    }

    /// The best guess at why a pipeline ended that posted no error.
    fn reason(&mut self) -> Option<Fault> {
        let missing = self.missing.take().map(|reason| Fault { reason, retry: Retry::Slowly });
        missing.or_else(|| self.warning.take().map(|reason| Fault { reason, retry: Retry::Soon }))
    }
}
