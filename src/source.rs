//! Floor 3: a camera or file becomes frames.
//!
//! One supervisor thread per camera builds the whole pipeline, watches it, and builds it anew when it fails. The pipeline
//! ends ahead of the decoder: keyframes go to decoders that all cameras share, or every picture to one of the camera's
//! own. Only pictures that the gate admits are converted to RGB.

mod choice;
mod convert;
mod decoder;
mod device;
mod event;
mod fault;
mod fragment;
mod frozen;
mod gop;
mod intake;
mod location;
mod own;
mod pipeline;
mod plan;
mod plug;
mod pool;
mod supervisor;
mod tap;
mod trust;
mod unit;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Utc;
use crate::base::error::{Context, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::shutdown::Shutdown;
use crate::base::thread::{self, Thread};
use crate::config::CameraConfig;
use crate::types::{CameraStatus, Encoded, Frame, Luma, TimeSource};
use event::Board;
use supervisor::Hanging;

pub use fault::package_of;
pub use fragment::check_fragment;
pub use pool::Decoders;
pub use trust::check_ca;

/// What is known of a frame before it is decoded.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// When it reached this machine.
    pub received: Instant,
    /// When it was taken.
    pub captured: Utc,
    /// What `captured` rests on.
    pub time_source: TimeSource,
    /// For files: time since the clip's start.
    pub position: Option<Duration>,
}

/// What a source calls. All are dropped when the source ends, whatever becomes of its pipeline. A panic in one is
/// caught and ends the attempt, not the daemon.
pub struct Hooks {
    /// Called for each keyframe where only those are decoded, before it is: `false` saves the decoding.
    pub wants: Wants,
    /// Called for each decoded frame, before any conversion; `true`: convert and deliver it. The second argument computes
    /// the frame's brightness, `None` where its format is not known.
    pub admit: Admit,
    /// Called with each admitted frame; must not block.
    pub deliver: Box<dyn FnMut(Frame) + Send>,
    /// Called on the supervisor's thread at each change of state, once.
    pub status: Box<dyn FnMut(CameraStatus) + Send>,
    /// Called with every picture as it was encoded, looked at or not, ahead of any decoder, and when the stream has ended; must
    /// not block. `None`: nobody wants them.
    pub encoded: Option<Tapped>,
    /// Whether `encoded` is to be called with the pictures of a raw camera, too: at this moment, for each is a copy of several
    /// megabytes. `None`: never.
    pub raw: Option<WantsRaw>,
}

/// Takes a camera's encoded stream.
pub type Tapped = Box<dyn FnMut(Encoded) + Send>;

/// Whether pixels are wanted.
pub type WantsRaw = Box<dyn Fn() -> bool + Send + Sync>;

/// Whether a frame would be wanted.
pub type Wants = Box<dyn FnMut(Candidate) -> bool + Send>;

/// Whether a frame is wanted.
pub type Admit = Box<dyn FnMut(Candidate, &dyn Fn() -> Option<Luma>) -> bool + Send>;

/// The supervisor's waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the start of an attempt to its first decoded frame.
    pub first_frame: Duration,
    /// Without data from a live source.
    pub stall: Duration,
    /// Without a decoded frame while data comes, where only keyframes are decoded: cameras with a "smart" codec
    /// send one every half minute.
    pub keyframe_gap: Duration,
    /// An attempt that showed pictures for so long starts the backoff anew.
    pub healthy: Duration,
    /// The first ceiling of the backoff.
    pub backoff_first: Duration,
    /// The last ceiling of the backoff.
    pub backoff_most: Duration,
    /// The least delay where a person has to act first: cameras lock accounts after a few failures.
    pub refused: Duration,
    /// For a pipeline to reach NULL; after that it is left behind and counted.
    pub teardown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_frame: Duration::from_secs(20),
            stall: Duration::from_secs(10),
            keyframe_gap: Duration::from_secs(90),
            healthy: Duration::from_secs(30),
            backoff_first: Duration::from_secs(1),
            backoff_most: Duration::from_secs(60),
            refused: Duration::from_secs(300),
            teardown: Duration::from_secs(10),
        }
    }
}

/// A running camera or file.
pub struct Source {
    thread: Thread,
    board: Arc<Board>,
    hanging: Hanging,
}

/// Makes GStreamer ready; further calls do nothing.
///
/// # Errors
/// When GStreamer cannot start, as with a registry that cannot be written or loaded.
pub fn init() -> Result<()> {
    gstreamer::init().context(Kind::Pipeline, || "gstreamer cannot start")
}

/// Whether GStreamer has an element of this name; `init` comes first.
pub fn has_element(name: &str) -> bool {
    gstreamer::ElementFactory::find(name).is_some()
}

/// Whether encrypted cameras can be watched: glib has that from a package of its own.
pub fn has_tls() -> bool {
    use gio::prelude::TlsBackendExt;
    gio::TlsBackend::default().supports_tls()
}

/// Starts the supervisor `cam-<id>`; it ends at `shutdown` or when a file was played once.
///
/// Counts, each with the camera's id: `frames_in` (that the camera sent), `frames_decoded`, `frames_sampled` (admitted),
/// `frames_skipped` (that no decoder came round to), `frames_damaged`, `reconnects`, `teardowns_abandoned`, and each change
/// of state as `camera_<state>`.
///
/// # Errors
/// When the URI is unusable, GStreamer cannot start, or there is no thread to be had.
pub fn start(config: CameraConfig, hooks: Hooks, decoders: &Decoders, metrics: &Metrics, shutdown: Shutdown) -> Result<Source> {
    start_with(Limits::default(), config, hooks, decoders, metrics, shutdown)
}

/// As `start`, with other waits.
///
/// # Errors
/// As `start`.
pub fn start_with(
    limits: Limits,
    config: CameraConfig,
    hooks: Hooks,
    decoders: &Decoders,
    metrics: &Metrics,
    shutdown: Shutdown,
) -> Result<Source> {
    init()?;
    let location = location::Location::of(&config.input)?;
    let board = Arc::new(Board::new(config.id.clone()));
    let hanging = Hanging::default();
    let name = format!("cam-{}", config.id);
    let supervisor =
        supervisor::Supervisor::new(limits, config, location, hooks, decoders, metrics, shutdown, board.clone(), hanging.clone());
    let thread = thread::spawn(name, move || supervisor.run())?;
    Ok(Source { thread, board, hanging })
}

impl Source {
    /// Whether the source has ended: its hooks are dropped.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// The latest status, with the frame rate measured over the last seconds.
    pub fn status(&self) -> CameraStatus {
        self.board.status()
    }

    /// How many of its pipelines hang at this moment, at their start or their end: each holds memory, threads and a
    /// connection.
    pub fn hanging(&self) -> u64 {
        self.hanging.get()
    }

    /// Waits until `deadline` for the source's end; one still running then is left behind. Returns whether it ended.
    pub fn join_until(self, deadline: Instant) -> bool {
        self.thread.join_until(deadline)
    }
}
