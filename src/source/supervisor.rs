//! The thread that keeps one source alive: builds, watches, tears down, waits, builds anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use gstreamer::{ClockTime, MessageType, MessageView, Pipeline};

use crate::base::backoff::Backoff;
use crate::base::metrics::{Counter, Metrics};
use crate::base::shutdown::Shutdown;
use crate::base::thread;
use crate::config::{CameraConfig, Decode};
use crate::source::fault::Interpreter;
use crate::source::location::Location;
use crate::source::tap::{Board, Counters, Outlets, Tap, Tell};
use crate::source::watch::{END_OF_FILE, Ended, Fault, Health, Next, Policy, Rate, RateNews, Retry, Watch};
use crate::source::{Hooks, Limits, pipeline, tap};
use crate::types::{CameraState, CameraStatus};

/// How long the bus is waited on before the watchdog looks again.
const POLL: ClockTime = ClockTime::from_mseconds(100);

/// The least time a looped file takes: one of a single frame must not spin.
const LEAST_PASS: Duration = Duration::from_millis(200);

/// Everything one camera's thread owns.
pub struct Supervisor {
    config: CameraConfig,
    location: Location,
    watch: Watch,
    policy: Policy,
    interpreter: Interpreter,
    outlets: Arc<Mutex<Option<Outlets>>>,
    herald: Herald,
    counters: Counters,
    reconnects: Counter,
    abandoned: Counter,
    shutdown: Shutdown,
    rate: Rate,
}

/// What an attempt came to.
struct Attempt {
    ended: Ended,
    frames: u64,
    lasted: Duration,
    took: Duration,
}

impl Supervisor {
    /// Gathers what the thread needs.
    pub fn new(
        limits: Limits,
        config: CameraConfig,
        location: Location,
        hooks: Hooks,
        metrics: &Metrics,
        shutdown: Shutdown,
        board: Arc<Board>,
    ) -> Self {
        let id = config.id.as_str();
        let live = location.is_live();
        let (outlets, tell) = tap::part(hooks);
        Self {
            watch: Watch { limits, live, keyframes: config.decode == Decode::Keyframes },
            policy: Policy { limits, live, looped: config.looped },
            interpreter: Interpreter::new(&config),
            counters: Counters { frames_in: metrics.counter("frames_in", id), frames_sampled: metrics.counter("frames_sampled", id) },
            reconnects: metrics.counter("reconnects", id),
            abandoned: metrics.counter("teardowns_abandoned", id),
            outlets,
            herald: Herald { board, tell, warned: String::new() },
            config,
            location,
            shutdown,
            rate: Rate::default(),
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
        drop(self.outlets.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Attempts until the end; the reason where the source failed for good.
    fn serve(&mut self) -> Option<String> {
        let limits = self.watch.limits;
        let mut backoff = Backoff::new(limits.backoff_first, limits.backoff_most);
        // `turn` tells changes only, and a board begins as connecting: the first one is told by hand.
        self.herald.say(self.herald.board.status());
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
        let tap = Arc::new(Tap::new(self.config.id.clone(), self.watch.live, self.outlets.clone(), self.counters.clone()));
        let pipeline = match pipeline::build(&self.location, &self.config, &tap) {
            Ok(pipeline) => pipeline,
            Err(error) => {
                let fault = Fault { reason: error.chain(), retry: Retry::Never };
                return Attempt { ended: Ended::Lost(fault), frames: 0, lasted: Duration::ZERO, took: Duration::ZERO };
            }
        };
        let mut first_frame = None;
        let ended = match self.play(&pipeline, &tap, &mut first_frame) {
            Ended::Lost(_) if tap.distrusted() => Ended::Lost(self.interpreter.untrusted()),
            ended => ended,
        };
        if let Ended::Stalled(reason) = &ended {
            self.herald.turn(CameraState::Stalled, reason);
        }
        let frames = tap.pulse().frames;
        let (lasted, took) = (first_frame.map_or(Duration::ZERO, |at: Instant| at.elapsed()), tap.started().elapsed());
        drop(tap);
        self.tear_down(pipeline);
        Attempt { ended, frames, lasted, took }
    }

    fn play(&mut self, pipeline: &Pipeline, tap: &Arc<Tap>, first_frame: &mut Option<Instant>) -> Ended {
        let Some(bus) = pipeline.bus() else {
            return Ended::Lost(Fault { reason: "the pipeline has no bus".to_owned(), retry: Retry::Soon });
        };
        let refused = pipeline.set_state(gstreamer::State::Playing).is_err();
        let mut listener = Listener { interpreter: &self.interpreter, missing: None, warning: None };
        let mut news = RateNews::default();
        let wanted = [MessageType::Error, MessageType::Eos, MessageType::Element, MessageType::Warning];
        loop {
            let message = bus.timed_pop_filtered(POLL, &wanted);
            let ended = message.as_ref().and_then(|message| listener.hear(message));
            let pulse = tap.pulse();
            if pulse.frames > 0 && first_frame.is_none() {
                *first_frame = Some(Instant::now());
                self.herald.turn(CameraState::Running, "");
            }
            match ended {
                // A file that showed its pictures has ended well, whatever a decoder warned of on the way.
                Some(Ended::Eos) if self.watch.live || pulse.frames == 0 => return listener.reason().map_or(Ended::Eos, Ended::Lost),
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
            // A failed start has said why on the bus, if ever.
            if refused && message.is_none() {
                let silent = || Fault { reason: "the pipeline did not start".to_owned(), retry: Retry::Soon };
                return Ended::Lost(listener.reason().unwrap_or_else(silent));
            }
            let now = Instant::now();
            let fps = self.rate.step(now, self.counters.frames_in.get());
            self.herald.board.rate(fps);
            if first_frame.is_some() && news.step(now, fps) {
                self.herald.say(self.herald.board.status());
            }
            if let Health::Stalled(reason) = self.watch.judge(tap.started(), pulse, now) {
                let missing = listener.missing.take();
                return missing.map_or(Ended::Stalled(reason), |reason| Ended::Lost(Fault { reason, retry: Retry::Soon }));
            }
        }
    }

    /// To NULL in a thread of its own: a dead camera can hold that up without end.
    fn tear_down(&self, pipeline: Pipeline) {
        let id = &self.config.id;
        let stopping = thread::spawn(format!("stop-{id}"), move || {
            if pipeline.set_state(gstreamer::State::Null).is_err() {
                tracing::debug!(pipeline = %pipeline.name(), "the pipeline refused to stop");
            }
        });
        let stopped = match stopping {
            Ok(thread) => thread.join_until(Instant::now() + self.watch.limits.teardown),
            Err(error) => {
                tracing::error!(camera = %id, "{}", error.chain());
                false
            }
        };
        if !stopped {
            self.abandoned.add();
            tracing::warn!(camera = %id, "a pipeline did not stop in time and was left behind");
        }
    }
}

/// Tells each change of state, once, to the log and the caller.
struct Herald {
    board: Arc<Board>,
    tell: Tell,
    /// The last reason warned of since pictures came: a camera that stays away says so once, not at every try.
    warned: String,
}

impl Herald {
    fn turn(&mut self, state: CameraState, reason: &str) {
        let Some(status) = self.board.turn(state, reason) else { return };
        let (camera, state_name) = (&status.camera, state.name());
        match state {
            CameraState::Running => {
                self.warned.clear();
                tracing::info!(%camera, state = state_name, "pictures come");
            }
            CameraState::Failed if reason == END_OF_FILE => tracing::info!(%camera, state = state_name, "{reason}"),
            CameraState::Failed | CameraState::Backoff if self.warned != reason => {
                reason.clone_into(&mut self.warned);
                tracing::warn!(%camera, state = state_name, "{reason}");
            }
            _ => tracing::debug!(%camera, state = state_name, "{reason}"),
        }
        self.say(status);
    }

    fn say(&mut self, status: CameraStatus) {
        if catch_unwind(AssertUnwindSafe(|| (self.tell)(status))).is_err() {
            tracing::error!("a status hook panicked; this is a defect, please report it");
        }
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
        let reason = self.missing.take().or(self.warning.take())?;
        Some(Fault { reason, retry: Retry::Soon })
    }
}
