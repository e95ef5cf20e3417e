//! Where frames leave the pipeline: the gate ahead of the conversion, and the pixels after it.
//!
//! Everything here runs on a streaming thread. A pipeline's closures hold a weak reference to their `Tap`, so one that
//! hangs at its end keeps neither the tap nor the caller's hooks alive.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use gstreamer_video::VideoFrameExt;
use image::RgbImage;

use crate::base::clock::Utc;
use crate::base::metrics::Counter;
use crate::source::watch::Pulse;
use crate::source::{Admit, Candidate, Hooks};
use crate::types::{CameraId, CameraState, CameraStatus, Frame, Luma, Plane, TimeSource};

/// Seconds from the NTP epoch (1900) to the Unix epoch.
const NTP_TO_UNIX: u64 = 2_208_988_800;

/// A camera's clock further off than this (milliseconds) is not believed.
const NTP_TRUST: i64 = 24 * 3600 * 1000;

/// The two hooks a streaming thread calls; taken out when the source ends.
pub struct Outlets {
    admit: Admit,
    deliver: Box<dyn FnMut(Frame) + Send>,
}

/// The supervisor's hook.
pub type Tell = Box<dyn FnMut(CameraStatus) + Send>;

/// Parts the hooks by thread.
pub fn part(hooks: Hooks) -> (Arc<Mutex<Option<Outlets>>>, Tell) {
    let Hooks { admit, deliver, status } = hooks;
    (Arc::new(Mutex::new(Some(Outlets { admit, deliver }))), status)
}

/// The latest status, for whoever asks.
pub struct Board(Mutex<CameraStatus>);

impl Board {
    /// Connecting, as every source begins.
    pub fn new(camera: CameraId) -> Self {
        let (state, since) = (CameraState::Connecting, Utc::now());
        Self(Mutex::new(CameraStatus { camera, state, reason: String::new(), since, fps: 0.0 }))
    }

    /// A copy.
    pub fn status(&self) -> CameraStatus {
        self.lock().clone()
    }

    /// Changes the state; `None` where nothing changed.
    pub fn turn(&self, state: CameraState, reason: &str) -> Option<CameraStatus> {
        let mut status = self.lock();
        if status.state == state && status.reason == reason {
            return None;
        }
        (status.state, status.reason, status.since) = (state, reason.to_owned(), Utc::now());
        if state != CameraState::Running {
            status.fps = 0.0;
        }
        Some(status.clone())
    }

    /// Notes the frame rate.
    pub fn rate(&self, fps: f64) {
        self.lock().fps = fps;
    }

    fn lock(&self) -> MutexGuard<'_, CameraStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The counters of a camera.
#[derive(Clone)]
pub struct Counters {
    /// Decoded frames.
    pub frames_in: Counter,
    /// Admitted frames.
    pub frames_sampled: Counter,
}

/// One attempt's way out.
pub struct Tap {
    camera: CameraId,
    live: bool,
    outlets: Arc<Mutex<Option<Outlets>>>,
    counters: Counters,
    started: Instant,
    frames: AtomicU64,
    /// Milliseconds after `started`, plus one; 0: never.
    last_frame: AtomicU64,
    last_data: AtomicU64,
    panicked: AtomicBool,
    untrusted: AtomicBool,
    /// Passes from the gate to the appsink: both run on one thread, so it is this frame's.
    admitted: Mutex<Option<Candidate>>,
}

impl Tap {
    /// A tap for an attempt that begins now.
    pub fn new(camera: CameraId, live: bool, outlets: Arc<Mutex<Option<Outlets>>>, counters: Counters) -> Self {
        Self {
            camera,
            live,
            outlets,
            counters,
            started: Instant::now(),
            frames: AtomicU64::new(0),
            last_frame: AtomicU64::new(0),
            last_data: AtomicU64::new(0),
            panicked: AtomicBool::new(false),
            untrusted: AtomicBool::new(false),
            admitted: Mutex::new(None),
        }
    }

    /// When the attempt began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// What has come so far.
    pub fn pulse(&self) -> Pulse {
        let at = |mark: &AtomicU64| mark.load(Ordering::Acquire).checked_sub(1).map(|ms| self.started + Duration::from_millis(ms));
        Pulse { frames: self.frames.load(Ordering::Acquire), last_frame: at(&self.last_frame), last_data: at(&self.last_data) }
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

    /// Notes that data reached the decoder.
    pub fn data(&self) {
        self.mark(&self.last_data);
    }

    /// The gate: whether this decoded frame is to be converted.
    pub fn gate(&self, pad: &gstreamer::Pad, buffer: &gstreamer::BufferRef) -> bool {
        self.mark(&self.last_frame);
        self.frames.fetch_add(1, Ordering::AcqRel);
        self.counters.frames_in.add();
        let candidate = self.candidate(pad, buffer);
        let admitted = self.guarded(|outlets| (outlets.admit)(candidate, &|| luma(pad, buffer))).unwrap_or(false);
        if admitted {
            self.counters.frames_sampled.add();
            *self.admitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(candidate);
        }
        admitted
    }

    /// Hands on a converted frame.
    pub fn deliver(&self, sample: &gstreamer::Sample) {
        let candidate = self.admitted.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(candidate), Some(image)) = (candidate, to_rgb(sample)) else { return };
        let Candidate { received, captured, time_source, position } = candidate;
        let frame = Frame { camera: self.camera.clone(), captured, time_source, received, position, image: Arc::new(image) };
        self.guarded(|outlets| (outlets.deliver)(frame));
    }

    fn candidate(&self, pad: &gstreamer::Pad, buffer: &gstreamer::BufferRef) -> Candidate {
        let (received, now) = (Instant::now(), Utc::now());
        if !self.live {
            let position = stream_time(pad, buffer);
            return Candidate { received, captured: now, time_source: TimeSource::File, position };
        }
        let ntp = ntp_time(buffer).filter(|ntp| ntp.millis().abs_diff(now.millis()) <= NTP_TRUST.unsigned_abs());
        let (captured, time_source) = ntp.map_or((now, TimeSource::Pipeline), |ntp| (ntp, TimeSource::Ntp));
        Candidate { received, captured, time_source, position: None }
    }

    /// Calls a hook. A panic would otherwise unwind into C and abort the daemon; the supervisor sees the flag instead.
    fn guarded<T>(&self, call: impl FnOnce(&mut Outlets) -> T) -> Option<T> {
        if self.panicked() {
            return None;
        }
        let mut outlets = self.outlets.lock().unwrap_or_else(PoisonError::into_inner);
        let outlets = outlets.as_mut()?;
        catch_unwind(AssertUnwindSafe(|| call(outlets))).map_err(|_| self.panicked.store(true, Ordering::Release)).ok()
    }

    fn mark(&self, at: &AtomicU64) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        at.store(ms + 1, Ordering::Release);
    }
}

/// The time since the clip's start, by the segment in force on `pad`.
fn stream_time(pad: &gstreamer::Pad, buffer: &gstreamer::BufferRef) -> Option<Duration> {
    let segment = pad.sticky_event::<gstreamer::event::Segment>(0)?;
    let segment = segment.segment().downcast_ref::<gstreamer::ClockTime>()?;
    segment.to_stream_time(buffer.pts()?).map(Into::into)
}

/// The camera's time of a frame, where RTCP sender reports gave it.
fn ntp_time(buffer: &gstreamer::BufferRef) -> Option<Utc> {
    let is_ntp = |caps: &gstreamer::CapsRef| caps.structure(0).is_some_and(|s| s.name() == "timestamp/x-ntp");
    let meta = buffer.iter_meta::<gstreamer::ReferenceTimestampMeta>().find(|meta| is_ntp(meta.reference()))?;
    let millis = meta.timestamp().mseconds().checked_sub(NTP_TO_UNIX * 1000)?;
    i64::try_from(millis).ok().map(Utc::from_millis)
}

/// The brightness of a decoded frame: its luma, or what comes first where it has colours only.
fn luma(pad: &gstreamer::Pad, buffer: &gstreamer::BufferRef) -> Option<Luma> {
    let info = gstreamer_video::VideoInfo::from_caps(pad.current_caps()?.as_ref()).ok()?;
    let format = info.format_info();
    let bits = format.depth().first()? + format.shift().first()?;
    if bits > 8 && !format.flags().contains(gstreamer_video::VideoFormatFlags::LE) {
        return None;
    }
    let plane = *format.plane().first()?;
    let frame = gstreamer_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).ok()?;
    Luma::of(Plane {
        bytes: frame.plane_data(plane).ok()?,
        stride: usize::try_from(*frame.plane_stride().get(plane as usize)?).ok()?,
        width: info.width() as usize,
        height: info.height() as usize,
        step: usize::try_from(*format.pixel_stride().first()?).ok()?,
        offset: usize::try_from(*format.poffset().first()?).ok()?,
        bits,
    })
}

/// The pixels of an RGB sample. Rows are copied one by one: they are padded to four bytes, or to what the decoder likes.
/// The caps are read anew each time, for a camera may change its size.
fn to_rgb(sample: &gstreamer::Sample) -> Option<RgbImage> {
    let info = gstreamer_video::VideoInfo::from_caps(sample.caps()?).ok()?;
    let frame = gstreamer_video::VideoFrameRef::from_buffer_ref_readable(sample.buffer()?, &info).ok()?;
    let stride = usize::try_from(*frame.plane_stride().first()?).ok()?;
    let row = info.width() as usize * 3;
    let rows = info.height() as usize;
    let data = frame.plane_data(0).ok()?;
    let mut pixels = Vec::with_capacity(row * rows);
    for start in (0..rows).map(|y| y * stride) {
        pixels.extend_from_slice(data.get(start..start + row)?);
    }
    RgbImage::from_raw(info.width(), info.height(), pixels)
}
