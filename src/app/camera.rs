//! One camera as the daemon runs it: its place in the mailbox, its source, and what that calls.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::app::steer::{Asked, Steer};
use crate::base::clock::Utc;
use crate::base::error::Result;
use crate::base::mailbox::{Put, Putter, Slots};
use crate::base::metrics::Metrics;
use crate::base::shutdown::Shutdown;
use crate::base::sync;
use crate::config::CameraConfig;
use crate::detect::Job;
use crate::gate::Gate;
use crate::mqtt::Publisher;
use crate::sink::record::Recorder;
use crate::sink::video::Live;
use crate::source::{self, Decoders, Hooks, Source, Tapped, WantsRaw};
use crate::types::{CameraState, CameraStatus, Encoded};

/// What every camera's source is connected to.
pub(super) struct Wiring {
    pub(super) slots: Slots<Job>,
    pub(super) decoders: Decoders,
    pub(super) steer: Arc<Steer>,
    pub(super) publisher: Option<Publisher>,
    pub(super) live: Option<Live>,
    pub(super) recorder: Option<Arc<Recorder>>,
    pub(super) metrics: Metrics,
}

/// A camera of the configuration.
pub(super) struct Camera {
    /// Its place in the mailbox, which it keeps when its source is begun anew: so its frames do not overtake each other.
    pub(super) putter: Arc<Putter<Job>>,
    /// `None`: it is disabled, or could not be begun.
    pub(super) running: Option<Running>,
}

/// A camera's source. Dropped, it is ended and waited for.
pub(super) struct Running {
    /// Before the source, which waits for it.
    stop: Stop,
    lease: Lease,
    source: Source,
}

/// Ends a source.
struct Stop(Shutdown);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.trigger();
    }
}

/// For how long a source is listened to: what one that was replaced still says is nobody's. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Lease(Arc<Mutex<bool>>);

impl Lease {
    /// Nothing more is heard of it, from this moment on.
    fn end(&self) {
        *sync::lock(&self.0) = true;
    }

    fn is_over(&self) -> bool {
        *sync::lock(&self.0)
    }

    /// Does what is to be done while it lasts; it does not end meanwhile.
    fn during(&self, what: impl FnOnce()) {
        let over = sync::lock(&self.0);
        if !*over {
            what();
        }
    }
}

impl Running {
    /// Orders the source to end.
    pub(super) fn stop(&self) {
        self.stop.0.trigger();
    }

    /// The same, and nothing more is heard of it: another comes in its place, or its camera is gone.
    pub(super) fn retire(&self) {
        self.lease.end();
        self.stop();
    }

    /// Whether it has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.source.is_finished()
    }

    /// How many of its pipelines hang.
    pub(super) fn hanging(&self) -> u64 {
        self.source.hanging()
    }

    /// Waits for its end until `deadline`; returns whether it came.
    pub(super) fn join_until(self, deadline: Instant) -> bool {
        self.source.join_until(deadline)
    }
}

impl Wiring {
    /// A place for another camera.
    pub(super) fn place(&self) -> Camera {
        Camera { putter: Arc::new(self.slots.open()), running: None }
    }

    /// Begins a camera's source; of a disabled one only its state is told.
    ///
    /// # Errors
    /// When it can never work, or the system refuses a thread.
    pub(super) fn start(&self, config: CameraConfig, putter: &Arc<Putter<Job>>) -> Result<Option<Running>> {
        if !config.enabled {
            self.tell(&config, CameraState::Disabled, "disabled in the configuration".to_owned());
            return Ok(None);
        }
        let (stop, lease) = (Stop(Shutdown::new()), Lease::default());
        let hooks = self.hooks(&config, putter.clone(), &lease);
        let source = source::start(config, hooks, &self.decoders, &self.metrics, stop.0.clone())?;
        Ok(Some(Running { stop, lease, source }))
    }

    /// Tells where a camera stands that has no source to do so.
    pub(super) fn tell(&self, config: &CameraConfig, state: CameraState, reason: String) {
        let status = CameraStatus { camera: config.id.clone(), state, reason, since: Utc::now(), fps: 0.0 };
        self.publisher.iter().for_each(|publisher| publisher.camera_status(&status));
        self.live.iter().for_each(|live| live.status(&status));
    }

    fn hooks(&self, config: &CameraConfig, putter: Arc<Putter<Job>>, lease: &Lease) -> Hooks {
        let asked = self.steer.asked(config);
        let (noted, publisher, shown, while_it_lasts) = (asked.clone(), self.publisher.clone(), self.live.clone(), lease.clone());
        let status = move |status: CameraStatus| {
            while_it_lasts.during(|| {
                noted.note(status.state);
                publisher.iter().for_each(|publisher| publisher.camera_status(&status));
                shown.iter().for_each(|live| live.status(&status));
            });
        };
        let mut hooks = hooks(config, asked, putter, lease, status, &self.metrics);
        let (live, tape) = (self.live.clone(), self.recorder.as_ref().and_then(|recorder| recorder.tape(&config.id)));
        hooks.raw = live.clone().map(|live| {
            let id = config.id.clone();
            Box::new(move || live.is_watched(&id)) as WantsRaw
        });
        hooks.encoded = (tape.is_some() || live.is_some()).then(|| {
            let (id, lease) = (config.id.clone(), lease.clone());
            Box::new(move |encoded: Encoded| {
                if lease.is_over() {
                    return;
                }
                if let (Some(live), Encoded::Unit(unit)) = (&live, &encoded) {
                    live.encoded(&id, unit.clone());
                }
                if let Some(tape) = &tape {
                    tape.take(encoded);
                }
            }) as Tapped
        });
        hooks
    }
}

/// What a camera's source calls: its gate, its place in the mailbox, and `status`.
pub(super) fn hooks(
    config: &CameraConfig,
    asked: Asked,
    putter: Arc<Putter<Job>>,
    lease: &Lease,
    status: impl FnMut(CameraStatus) + Send + 'static,
    metrics: &Metrics,
) -> Hooks {
    let gate = Arc::new(Mutex::new(Gate::new(config.interval, config.motion.clone(), &config.id, metrics)));
    let ahead = gate.clone();
    let [wanted, admitted] = [asked.clone(), asked.clone()].map(|asked| (asked, lease.clone()));
    let looks = |(asked, lease): &(Asked, Lease)| asked.detects() && !lease.is_over();
    let lease = lease.clone();
    let dropped = metrics.counter("frames_dropped", config.id.as_str());
    Hooks {
        wants: Box::new(move |candidate| looks(&wanted) && sync::lock(&ahead).wants(candidate.received)),
        admit: Box::new(move |candidate, luma| looks(&admitted) && sync::lock(&gate).admit(candidate.received, luma)),
        deliver: Box::new(move |frame| {
            if lease.is_over() || putter.put(Job { frame, prompt: asked.prompt() }) != Put::Stored {
                dropped.add();
            }
        }),
        status: Box::new(status),
        encoded: None,
        raw: None,
    }
}
