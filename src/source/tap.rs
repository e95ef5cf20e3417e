//! Where pictures leave a source: asks whether one is wanted, converts it, and notes that it came.
//!
//! Called by streaming threads and decoder threads. A pipeline that hangs at its end may keep its tap for ever; the
//! caller's hooks are taken out of it when the source ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gstreamer::BufferFlags;

use crate::base::clock::Utc;
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::source::convert::{self, Converter};
use crate::source::decoder::Picture;
use crate::source::frozen::Frozen;
use crate::source::watch::{Fault, Pulse, Retry};
use crate::source::{Admit, Candidate, Hooks, Tapped, Wants, WantsRaw};
use crate::types::{CameraId, CameraStatus, Encoded, Frame};

/// Seconds from the NTP epoch (1900) to the Unix epoch.
const NTP_TO_UNIX: u64 = 2_208_988_800;

/// The hooks that are called with pictures; taken out when the source ends.
pub struct Outlets {
    wants: Wants,
    admit: Admit,
    deliver: Box<dyn FnMut(Frame) + Send>,
}

/// The supervisor's hook.
pub type Tell = Box<dyn FnMut(CameraStatus) + Send>;

/// The hook that is called with encoded pictures; taken out when the source ends. Apart from the others: those may be held up
/// by a picture that is looked at.
pub type Recording = Arc<Mutex<Option<Tapped>>>;

/// The hook that says whether those of a raw camera are wanted.
pub type RawWanted = Option<Arc<WantsRaw>>;

/// Parts the hooks by who calls them.
pub fn part(hooks: Hooks) -> (Arc<Mutex<Option<Outlets>>>, (Recording, RawWanted), Tell) {
    let Hooks { wants, admit, deliver, status, encoded, raw } = hooks;
    (Arc::new(Mutex::new(Some(Outlets { wants, admit, deliver }))), (Arc::new(Mutex::new(encoded)), raw.map(Arc::new)), status)
}

/// The counters of a camera.
#[derive(Clone)]
pub struct Counters {
    /// Pictures the camera sent.
    pub frames_in: Counter,
    /// Decoded ones.
    pub frames_decoded: Counter,
    /// Admitted ones.
    pub frames_sampled: Counter,
    /// Those that no decoder came round to.
    pub frames_skipped: Counter,
    /// Those that came out damaged or not at all.
    pub frames_damaged: Counter,
}

impl Counters {
    /// Of `camera`.
    pub fn new(metrics: &Metrics, camera: &CameraId) -> Self {
        let counter = |name| metrics.counter(name, camera.as_str());
        Self {
            frames_in: counter("frames_in"),
            frames_decoded: counter("frames_decoded"),
            frames_sampled: counter("frames_sampled"),
            frames_skipped: counter("frames_skipped"),
            frames_damaged: counter("frames_damaged"),
        }
    }
}

/// What is the same for every attempt of a camera.
#[derive(Clone)]
pub struct Outside {
    /// Whose pictures they are.
    pub camera: CameraId,
    /// Wider ones are scaled down.
    pub max_width: Option<u32>,
    /// A picture that stays the same for so long is a fault.
    pub frozen_after: Option<Duration>,
    /// The hooks.
    pub outlets: Arc<Mutex<Option<Outlets>>>,
    /// The hook for encoded pictures.
    pub recording: Recording,
    /// Whether it is called with the pictures of a raw camera.
    pub raw_wanted: RawWanted,
    /// What is counted.
    pub counters: Counters,
}

/// One attempt's way out.
pub struct Tap {
    outside: Outside,
    started: Instant,
    frames: AtomicU64,
    last_frame: Mark,
    last_data: Mark,
    /// The first and the last picture that could not be decoded since one that could.
    failing: [Mark; 2],
    /// Pictures come with keyframes only.
    scarce: AtomicBool,
    panicked: AtomicBool,
    /// The attempt is over; a pipeline that is left behind may go on.
    ended: AtomicBool,
    untrusted: AtomicBool,
    /// The server offered streams, and pictures among them.
    offered: AtomicBool,
    offered_video: AtomicBool,
    frozen: Mutex<Option<Frozen>>,
    fault: Mutex<Option<Fault>>,
    /// Milliseconds from the stream's time to the camera's clock, in Unix time.
    clock: Mutex<Option<i64>>,
    /// Frames a second by the caps, in thousandths; 0: they do not say.
    announced: AtomicU64,
}

/// A moment: milliseconds after the attempt's begin, plus one; 0: never.
#[derive(Default)]
struct Mark(AtomicU64);

impl Tap {
    /// A tap for an attempt that begins now.
    pub fn new(outside: Outside) -> Self {
        Self {
            frozen: Mutex::new(outside.frozen_after.map(Frozen::new)),
            outside,
            started: Instant::now(),
            frames: AtomicU64::new(0),
            last_frame: Mark::default(),
            last_data: Mark::default(),
            failing: Default::default(),
            scarce: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            untrusted: AtomicBool::new(false),
            offered: AtomicBool::new(false),
            offered_video: AtomicBool::new(false),
            fault: Mutex::new(None),
            clock: Mutex::new(None),
            announced: AtomicU64::new(0),
        }
    }

    /// Whose pictures come.
    pub fn camera(&self) -> &CameraId {
        &self.outside.camera
    }

    /// When the attempt began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// What is counted.
    pub fn counters(&self) -> &Counters {
        &self.outside.counters
    }

    /// What has come so far.
    pub fn pulse(&self) -> Pulse {
        let at = |mark: &Mark| mark.0.load(Ordering::Acquire).checked_sub(1).map(|ms| self.started + Duration::from_millis(ms));
        Pulse {
            frames: self.frames.load(Ordering::Acquire),
            last_frame: at(&self.last_frame),
            last_data: at(&self.last_data),
            failing: at(&self.failing[0]).zip(at(&self.failing[1])),
            scarce: self.scarce.load(Ordering::Acquire),
        }
    }

    /// Whether a hook panicked.
    pub fn panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire)
    }

    /// Notes that the server's certificate was refused: the error that follows does not say so.
    pub fn distrust(&self) {
        self.untrusted.store(true, Ordering::Release);
    }

    /// Whether the server's certificate was refused.
    pub fn distrusted(&self) -> bool {
        self.untrusted.load(Ordering::Acquire)
    }

    /// Notes a stream that the server offers.
    pub fn offered(&self, video: bool) {
        self.offered.store(true, Ordering::Release);
        self.offered_video.fetch_or(video, Ordering::AcqRel);
    }

    /// Whether it offers sound alone: the error that follows does not say so.
    pub fn has_no_video(&self) -> bool {
        self.offered.load(Ordering::Acquire) && !self.offered_video.load(Ordering::Acquire)
    }

    /// Ends the attempt, for a reason that the bus does not tell. The first one counts.
    pub fn fail(&self, fault: Fault) {
        sync::lock(&self.fault).get_or_insert(fault);
    }

    /// Why the attempt is to end.
    pub fn fault(&self) -> Option<Fault> {
        sync::lock(&self.fault).clone()
    }

    /// Frames a second as the caps have it; `None` where they do not say.
    pub fn announced(&self) -> Option<f64> {
        Some(self.announced.load(Ordering::Relaxed)).filter(|&rate| rate > 0).map(|rate| rate as f64 / 1000.0)
    }

    /// Notes what the caps say.
    pub fn announce(&self, caps: &gstreamer::Caps) {
        let rate = caps.structure(0).and_then(|structure| structure.get::<gstreamer::Fraction>("framerate").ok());
        let rate = rate.filter(|rate| rate.numer() > 0 && rate.denom() > 0);
        let thousandths = rate.map_or(0.0, |rate| f64::from(rate.numer()) / f64::from(rate.denom()) * 1000.0);
        self.announced.store(thousandths as u64, Ordering::Relaxed);
    }

    /// Notes the camera's time of a picture, where RTCP sender reports gave it. Read ahead of the parser, which does not
    /// carry it on to the keyframes that it leads in.
    pub fn note_time(&self, buffer: &gstreamer::BufferRef) {
        let is_ntp = |caps: &gstreamer::CapsRef| caps.structure(0).is_some_and(|s| s.name() == "timestamp/x-ntp");
        let ntp = buffer.iter_meta::<gstreamer::ReferenceTimestampMeta>().find(|meta| is_ntp(meta.reference()));
        let unix = ntp.and_then(|ntp| ntp.timestamp().mseconds().checked_sub(NTP_TO_UNIX * 1000));
        if let Some((unix, pts)) = unix.zip(buffer.pts()) {
            *sync::lock(&self.clock) = i64::try_from(unix).ok().zip(i64::try_from(pts.mseconds()).ok()).map(|(unix, pts)| unix - pts);
        }
    }

    /// The camera's time of a picture; `None` where it is not known.
    pub fn camera_time(&self, pts: Option<gstreamer::ClockTime>) -> Option<Utc> {
        let pts = i64::try_from(pts?.mseconds()).ok()?;
        Some(Utc::from_millis((*sync::lock(&self.clock))? + pts))
    }

    /// Notes that data came.
    pub fn data(&self) {
        self.mark(&self.last_data);
    }

    /// Notes whether pictures come with keyframes only.
    pub fn scarce(&self, scarce: bool) {
        self.scarce.store(scarce, Ordering::Release);
    }

    /// Notes a picture that could not be decoded.
    pub fn damaged(&self) {
        self.outside.counters.frames_damaged.add();
        let [first, last] = &self.failing;
        if first.0.load(Ordering::Acquire) == 0 {
            self.mark(first);
        }
        self.mark(last);
    }

    /// Hands on what comes of the encoded stream, if somebody keeps it: a copy, for a source may have few buffers of its
    /// own, and waits for those it gave away. Nothing of an attempt comes after its end.
    pub fn encoded(&self, encoded: impl FnOnce() -> Option<Encoded>) {
        let mut recording = sync::lock(&self.outside.recording);
        let Some(record) = recording.as_mut().filter(|_| !self.panicked() && !self.ended.load(Ordering::Acquire)) else { return };
        let Some(encoded) = encoded() else { return };
        self.ended.store(matches!(encoded, Encoded::Lost), Ordering::Release);
        if catch_unwind(AssertUnwindSafe(|| record(encoded))).is_err() {
            self.panicked.store(true, Ordering::Release);
        }
    }

    /// Whether somebody wants the pictures of a raw camera at this moment.
    pub fn wants_raw(&self) -> bool {
        self.outside.raw_wanted.as_ref().is_some_and(|wanted| wanted())
    }

    /// Whether a picture that is not decoded yet would be looked at.
    pub fn wants(&self, candidate: Candidate) -> bool {
        self.guarded(|outlets| (outlets.wants)(candidate)).unwrap_or(false)
    }

    /// A decoded picture: converts and delivers it if it is wanted.
    pub fn picture(&self, picture: &Picture, candidate: Candidate, converter: &mut Converter) {
        if picture.buffer.flags().contains(BufferFlags::CORRUPTED) {
            return self.damaged();
        }
        self.mark(&self.last_frame);
        self.failing.iter().for_each(|mark| mark.0.store(0, Ordering::Release));
        self.frames.fetch_add(1, Ordering::AcqRel);
        self.outside.counters.frames_decoded.add();
        let luma = || convert::luma(&picture.info, &picture.buffer);
        if let Some(frozen) = sync::lock(&self.frozen).as_mut().and_then(|frozen| frozen.step(Instant::now(), luma)) {
            self.fail(Fault { reason: frozen, retry: Retry::Soon });
        }
        if !self.guarded(|outlets| (outlets.admit)(candidate, &luma)).unwrap_or(false) {
            return;
        }
        self.outside.counters.frames_sampled.add();
        let Some(image) = converter.rgb(&picture.info, &picture.buffer, self.outside.max_width) else {
            let reason = format!("pictures of the format {} cannot be converted; set another one", picture.info.format());
            return self.fail(Fault { reason, retry: Retry::Slowly });
        };
        let Candidate { received, captured, time_source, position } = candidate;
        let frame = Frame { camera: self.outside.camera.clone(), captured, time_source, received, position, image: Arc::new(image) };
        self.guarded(|outlets| (outlets.deliver)(frame));
    }

    /// Calls a hook. A panic would otherwise unwind into C and abort the daemon; the supervisor sees the flag instead.
    fn guarded<T>(&self, call: impl FnOnce(&mut Outlets) -> T) -> Option<T> {
        if self.panicked() {
            return None;
        }
        let mut outlets = sync::lock(&self.outside.outlets);
        let outlets = outlets.as_mut()?;
        catch_unwind(AssertUnwindSafe(|| call(outlets))).map_err(|_| self.panicked.store(true, Ordering::Release)).ok()
    }

    fn mark(&self, mark: &Mark) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        mark.0.store(ms + 1, Ordering::Release);
    }
}
