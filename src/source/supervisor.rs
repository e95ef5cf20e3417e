//! The thread that keeps one source alive: builds, watches, tears down, waits, builds anew.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, bounded};
use gstreamer::prelude::*;
use gstreamer::{ClockTime, MessageType, MessageView, Pipeline, State};

use crate::base::backoff::Backoff;
use crate::base::metrics::{Counter, Metrics};
use crate::base::shutdown::Shutdown;
use crate::base::sync;
use crate::base::thread;
use crate::config::CameraConfig;
use crate::source::choice::Choice;
use crate::source::event::{Board, Herald};
use crate::source::fault::Interpreter;
use crate::source::intake::{Intake, Parts};
use crate::source::location::Location;
use crate::source::pipeline::Prepare;
use crate::source::plan::Plan;
use crate::source::tap::{Counters, Outside, Tap};
use crate::source::watch::{Ended, Fault, Flood, Health, Next, Policy, Rate, RateNews, Retry, Watch};
use crate::source::{Decoders, Hooks, Limits, pipeline, tap};
use crate::types::{CameraState, Encoded};

/// How long the bus is waited on before the watchdog looks again.
const POLL: ClockTime = ClockTime::from_mseconds(100);

/// The least time a looped file takes: one of a single frame must not spin.
const LEAST_PASS: Duration = Duration::from_millis(200);

/// A teardown that takes longer is worth telling.
const SLOW_TEARDOWN: Duration = Duration::from_secs(1);

/// So often a pipeline is told to stop that refuses to.
const STOP_TRIES: u32 = 5;

/// A warning that is older has nothing to do with the end.
const FRESH: Duration = Duration::from_secs(10);

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
    decoders: Decoders,
    herald: Herald,
    reconnects: Counter,
    abandoned: Counter,
    hanging: Hanging,
    shutdown: Shutdown,
    rate: Rate,
    flood: Flood,
}

/// How many of a camera's pipelines hang at this moment. Clones share the number.
#[derive(Clone, Default)]
pub struct Hanging(Arc<AtomicU64>);

impl Hanging {
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
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
        hanging: Hanging,
    ) -> Self {
        let id = &config.id;
        let live = location.is_live();
        let (outlets, (recording, raw_wanted), tell) = tap::part(hooks);
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
                recording,
                raw_wanted,
                counters,
            },
            plan: Arc::new(Mutex::new(Plan::new(config.decode, config.interval))),
            choice: Choice::new(id.clone(), config.decoder),
            decoders: decoders.clone(),
            hanging,
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
        drop(sync::lock(&self.outside.outlets).take());
        drop(sync::lock(&self.outside.recording).take());
    }

    /// Attempts until the end; the reason where the source failed for good.
    fn serve(&mut self) -> Option<String> {
        let limits = self.watch.limits;
        let mut backoff = Backoff::new(limits.backoff_first, limits.backoff_most);
        // `turn` tells changes only, and a board begins as connecting: the first one is told by hand.
        self.herald.again();
        loop {
            let began = Instant::now();
            match self.attempt(&mut backoff) {
                Next::Leave => return None,
                Next::Fail(reason) => return Some(reason),
                Next::Replay => {
                    if self.shutdown.wait(LEAST_PASS.saturating_sub(began.elapsed())) {
                        return None;
                    }
                }
                Next::Wait(delay, reason) => {
                    self.herald.turn(CameraState::Backoff, &reason);
                    // Each that hangs holds what it holds: no more of them than need be.
                    let delay = if self.hanging.get() > 0 { delay.max(limits.refused) } else { delay };
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
    fn attempt(&mut self, backoff: &mut Backoff) -> Next {
        sync::lock(&self.plan).begin();
        let tap = Arc::new(Tap::new(self.outside.clone()));
        let intake = Intake::new(Parts {
            tap: tap.clone(),
            live: self.watch.live,
            queued: matches!(self.location, Location::Rtsp(_)),
            plan: self.plan.clone(),
            choice: self.choice.clone(),
            // A place of its own: a decoder that hangs at the last attempt's picture holds that one up for ever.
            seat: self.decoders.seat(),
            heartbeat: self.watch.limits.stall / 2,
        });
        let (pipeline, prepare) = match pipeline::build(&self.location, &self.config, &tap, intake) {
            Ok(built) => built,
            Err(error) => {
                let fault = Fault { reason: self.interpreter.clean(&error.chain()), retry: Retry::Slowly };
                return self.policy.after(Ended::Lost(fault), 0, Duration::ZERO, backoff);
            }
        };
        let mut pictures = Pictures::default();
        let over = Over::default();
        let ended = match self.play(&pipeline, prepare, &tap, &over, &mut pictures) {
            Ended::Lost(_) if tap.distrusted() => Ended::Lost(self.interpreter.untrusted()),
            Ended::Lost(_) if tap.has_no_video() => Ended::Lost(self.interpreter.no_video()),
            ended => ended,
        };
        // Before the backoff: what was kept so far is complete while the camera is away.
        tap.encoded(|| Some(Encoded::Lost));
        if let Ended::Stalled(reason) = &ended {
            self.herald.turn(CameraState::Stalled, reason);
        }
        let lost = matches!(ended, Ended::Lost(_));
        let next = self.policy.after(ended, tap.pulse().frames, pictures.lasted(), backoff);
        // Told before the pipeline is taken down, which may take long.
        if let Next::Wait(_, reason) = &next
            && lost
        {
            self.herald.turn(CameraState::Backoff, reason);
        }
        drop(tap);
        self.tear_down(pipeline, &over);
        next
    }

    fn play(&mut self, pipeline: &Pipeline, prepare: Option<Prepare>, tap: &Arc<Tap>, over: &Over, pictures: &mut Pictures) -> Ended {
        let Some(bus) = pipeline.bus() else {
            return Ended::Lost(Fault { reason: "the pipeline has no bus".to_owned(), retry: Retry::Soon });
        };
        let started = match self.start(pipeline, prepare, tap, over) {
            Ok(started) => started,
            Err(fault) => return Ended::Lost(fault),
        };
        let mut start = Start::Under(started);
        let interpreter = &self.interpreter;
        let told = |tap: &Tap| tap.fault().map(|fault| Fault { reason: interpreter.clean(&fault.reason), ..fault });
        let mut listener = Listener { interpreter, shown: false, missing: None, warning: None };
        let mut news = RateNews::default();
        let wanted = [MessageType::Error, MessageType::Eos, MessageType::Element, MessageType::Warning];
        loop {
            let message = bus.timed_pop_filtered(POLL, &wanted);
            listener.shown = pictures.first.is_some();
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
                    let empty = || (!self.watch.live).then(|| interpreter.empty());
                    return told(tap).or_else(|| listener.reason()).or_else(empty).map_or(Ended::Eos, Ended::Lost);
                }
                // What could not be linked is the cause, and the bus tells of its effect.
                Some(Ended::Lost(fault)) => return Ended::Lost(told(tap).unwrap_or(fault)),
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
            if let Some(fault) = told(tap) {
                return Ended::Lost(fault);
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
    fn start(&self, pipeline: &Pipeline, prepare: Option<Prepare>, tap: &Arc<Tap>, over: &Over) -> Result<Receiver<bool>, Fault> {
        let (send, started) = bounded(1);
        let (pipeline, tap, over) = (pipeline.clone(), tap.clone(), over.clone());
        let starting = thread::spawn(format!("start-{}", self.config.id), move || {
            if let Some(Err(error)) = prepare.map(|prepare| prepare()) {
                return tap.fail(Fault { reason: error.chain(), retry: Retry::Slowly });
            }
            // Taken down meanwhile, it must not play again.
            let over = sync::lock(&over.0);
            if *over {
                return;
            }
            // Nobody listens any more where it took too long.
            send.send(pipeline.set_state(State::Playing).is_ok()).ok();
        });
        // It ends by itself, or hangs: then the teardown hangs as well, and is counted.
        starting.map(thread::Thread::leave).map_err(|error| Fault { reason: error.chain(), retry: Retry::Soon })?;
        Ok(started)
    }

    /// To NULL in a thread of its own: a dead camera can hold that up without end.
    fn tear_down(&mut self, pipeline: Pipeline, over: &Over) {
        let (send, stopped) = bounded(1);
        let stage = Arc::new(AtomicU8::new(STOPPING));
        let (over, kept, hanging, reached) = (over.clone(), pipeline.clone(), self.hanging.clone(), stage.clone());
        let stopping = thread::spawn(format!("stop-{}", self.config.id), move || {
            *sync::lock(&over.0) = true;
            if stop(pipeline) && reached.swap(STOPPED, Ordering::AcqRel) == LEFT_BEHIND {
                hanging.0.fetch_sub(1, Ordering::AcqRel);
            }
            // Nobody listens any more where it took too long.
            send.send(()).ok();
        });
        match stopping {
            Ok(stopping) => stopping.leave(),
            // Dropped here it would play on.
            Err(error) => {
                tracing::error!(camera = %self.config.id, "{}", error.chain());
                std::mem::forget(kept);
                return self.left_behind();
            }
        }
        drop(kept);
        let slow = SLOW_TEARDOWN.min(self.watch.limits.teardown);
        if stopped.recv_timeout(slow) == Err(RecvTimeoutError::Timeout) {
            let status = self.herald.status();
            if matches!(status.state, CameraState::Stalled | CameraState::Backoff) {
                self.herald.turn(status.state, &format!("{}; the pipeline is slow to stop", status.reason));
            }
            stopped.recv_timeout(self.watch.limits.teardown.saturating_sub(slow)).ok();
        }
        if stage.compare_exchange(STOPPING, LEFT_BEHIND, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.left_behind();
        }
    }

    fn left_behind(&self) {
        self.hanging.0.fetch_add(1, Ordering::AcqRel);
        self.abandoned.add();
        tracing::warn!(camera = %self.config.id, "a pipeline did not stop and was left behind");
    }
}

/// Whether an attempt is over; held while its pipeline is told to play.
#[derive(Clone, Default)]
struct Over(Arc<Mutex<bool>>);

/// How far a teardown has come.
const STOPPING: u8 = 0;
const STOPPED: u8 = 1;
const LEFT_BEHIND: u8 = 2;

/// Stops and drops a pipeline; returns whether it did. One that refuses is kept for ever: it must not be dropped as it plays.
fn stop(pipeline: Pipeline) -> bool {
    for _ in 0..STOP_TRIES {
        if pipeline.set_state(State::Null).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    tracing::warn!(pipeline = %pipeline.name(), "a pipeline refused to stop and is left as it is");
    std::mem::forget(pipeline);
    false
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
    /// There were pictures.
    shown: bool,
    missing: Option<String>,
    /// The last one, and when it came.
    warning: Option<(String, Instant)>,
}

impl Listener<'_> {
    /// The end of the attempt, where the message tells of one.
    fn hear(&mut self, message: &gstreamer::Message) -> Option<Ended> {
        match message.view() {
            MessageView::Error(error) => {
                let fault = self.interpreter.error(&error.error(), error.debug().as_deref(), self.missing.as_deref(), self.shown);
                Some(Ended::Lost(fault))
            }
            MessageView::Eos(_) => Some(Ended::Eos),
            MessageView::Warning(warning) => {
                let fault = self.interpreter.error(&warning.error(), warning.debug().as_deref(), None, self.shown);
                tracing::debug!("{}", fault.reason);
                self.warning = Some((fault.reason, Instant::now()));
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
        let warning = self.warning.take().filter(|(_, at)| at.elapsed() < FRESH);
        missing.or_else(|| warning.map(|(reason, _)| Fault { reason, retry: Retry::Soon }))
    }
}
