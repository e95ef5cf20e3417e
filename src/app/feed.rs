//! One camera: what its source calls, and who is told of what comes of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::app::steer::Asked;
use crate::base::clock::Utc;
use crate::base::error::Result;
use crate::base::mailbox::{Put, Putter};
use crate::base::metrics::Metrics;
use crate::base::shutdown::Shutdown;
use crate::base::sync;
use crate::config::CameraConfig;
use crate::console::{Board, Lens};
use crate::detect::Job;
use crate::gate::Gate;
use crate::mqtt::Publisher;
use crate::sink::record::Tape;
use crate::sink::video::Live;
use crate::source::{self, Decoders, Hooks, Source, Tapped, WantsRaw};
use crate::types::{CameraId, CameraState, CameraStatus, Encoded};

/// Who is told of a camera as its source runs.
pub(super) struct Ears {
    pub(super) tape: Option<Tape>,
    pub(super) live: Option<Live>,
    pub(super) publisher: Option<Publisher>,
    pub(super) board: Option<Board>,
}

impl Ears {
    pub(super) fn status(&self, status: &CameraStatus) {
        self.publisher.iter().for_each(|publisher| publisher.camera_status(status));
        self.live.iter().for_each(|live| live.status(status));
        self.board.iter().for_each(|board| board.status(status));
    }

    /// Of a camera that the configuration does not have opened.
    pub(super) fn disabled(&self, camera: &CameraId) {
        let reason = "disabled in the configuration".to_owned();
        self.status(&CameraStatus { camera: camera.clone(), state: CameraState::Disabled, reason, since: Utc::now(), fps: 0.0 });
    }
}

/// Opens a camera.
///
/// # Errors
/// As `source::start`.
pub(super) fn start_source(
    camera: CameraConfig,
    asked: Asked,
    putter: Putter<Job>,
    ears: Ears,
    decoders: &Decoders,
    shutdown: &Shutdown,
    metrics: &Metrics,
) -> Result<Source> {
    let (tape, live) = (ears.tape.clone(), ears.live.clone());
    let lens = ears.board.as_ref().and_then(|board| board.lens(&camera.id)).unwrap_or_default();
    let noted = asked.clone();
    let status = move |status: CameraStatus| {
        noted.note(status.state);
        ears.status(&status);
    };
    let mut hooks = hooks(&camera, asked, putter, lens, status, metrics);
    hooks.raw = live.clone().map(|live| {
        let id = camera.id.clone();
        Box::new(move || live.is_watched(&id)) as WantsRaw
    });
    hooks.encoded = (tape.is_some() || live.is_some()).then(|| {
        let id = camera.id.clone();
        Box::new(move |encoded: Encoded| {
            if let (Some(live), Encoded::Unit(unit)) = (&live, &encoded) {
                live.encoded(&id, unit.clone());
            }
            if let Some(tape) = &tape {
                tape.take(encoded);
            }
        }) as Tapped
    });
    source::start(camera, hooks, decoders, metrics, shutdown.clone())
}

/// What a camera's source calls: its gate, its place in the mailbox, `lens` where somebody wants a picture as it is, and `status`.
pub(super) fn hooks(
    camera: &CameraConfig,
    asked: Asked,
    putter: Putter<Job>,
    lens: Lens,
    status: impl FnMut(CameraStatus) + Send + 'static,
    metrics: &Metrics,
) -> Hooks {
    let gate = Arc::new(Mutex::new(Gate::new(camera.interval, camera.motion.clone(), &camera.id, metrics)));
    let ahead = gate.clone();
    let [wanted, admitted] = [asked.clone(), asked.clone()];
    let dropped = metrics.counter("frames_dropped", camera.id.as_str());
    let [wished, asked_for] = [lens.clone(), lens.clone()];
    // Of the frame that was admitted last: whether it is for the model, too.
    let due = Arc::<AtomicBool>::default();
    let looked_at = due.clone();
    Hooks {
        wants: Box::new(move |candidate| wished.wants() || (wanted.detects() && sync::lock(&ahead).wants(candidate.received))),
        admit: Box::new(move |candidate, luma| {
            let look = admitted.detects() && sync::lock(&gate).admit(candidate.received, luma);
            due.store(look, Ordering::Release);
            look || asked_for.wants()
        }),
        deliver: Box::new(move |frame| {
            if lens.wants() {
                lens.take(&frame);
            }
            if looked_at.load(Ordering::Acquire) && putter.put(Job { frame, prompt: asked.prompt() }) != Put::Stored {
                dropped.add();
            }
        }),
        status: Box::new(status),
        encoded: None,
        raw: None,
    }
}
