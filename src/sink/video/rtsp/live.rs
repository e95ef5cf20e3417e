//! Live video over RTSP: the server's pipelines only pack what the camera's one encoder has made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use gstreamer::prelude::*;
use gstreamer::{Buffer, BufferFlags, Caps, ClockTime, glib};
use gstreamer_app::AppSrc;
use gstreamer_rtsp_server::prelude::*;
use gstreamer_rtsp_server::{RTSPMedia, RTSPMediaFactory};

use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::sink::video::live::{Live, Viewing};
use crate::sink::video::login;
use crate::types::{CameraId, EncodedUnit};

/// The longest time between two looks at whether the stream is still wanted.
const TURN: Duration = Duration::from_millis(40);

/// The same while a keyframe waits for the pipeline to have a clock.
const SOON: Duration = Duration::from_millis(5);

/// Encoded pictures that may wait to be packed.
const WAITING: u64 = 16;

/// At the end: for the threads.
const FINISH: Duration = Duration::from_secs(2);

/// Each keyframe brings its parameter sets along; the payloader is not to repeat them for each slice.
const LINE: &str = "( appsrc name=units is-live=true format=time block=false max-bytes=0 ! rtph264pay name=pay0 pt=96 )";

/// The streams that are watched: one a camera, or two for the moment in which one ends and another begins.
#[derive(Default)]
pub struct Streams(Mutex<Vec<(Weak<Stream>, Thread)>>);

/// One that the server has set up.
struct Stream {
    viewing: Viewing,
    camera: CameraId,
    /// Somebody plays it.
    played: AtomicBool,
    /// The last viewer has left.
    ended: AtomicBool,
}

impl Streams {
    /// The factory of a camera's stream. Counts `rtsp_units_dropped`: encoded pictures that the server did not pack in time.
    pub fn factory(self: &Arc<Self>, live: &Live, id: &CameraId, metrics: &Metrics) -> RTSPMediaFactory {
        let factory = RTSPMediaFactory::new();
        factory.set_launch(LINE);
        factory.set_shared(true);
        login::admit(&factory);
        let (streams, live, id) = (Arc::downgrade(self), live.clone(), id.clone());
        let dropped = metrics.counter("rtsp_units_dropped", id.as_str());
        factory.connect_media_configure(move |_, media| {
            if let Some(streams) = streams.upgrade()
                && let Err(error) = streams.begin(&live, &id, media, dropped.clone())
            {
                tracing::error!(camera = %id, "{}", error.chain());
            }
        });
        factory
    }

    /// Fills a new pipeline for as long as it is there.
    fn begin(&self, live: &Live, id: &CameraId, media: &RTSPMedia, dropped: Counter) -> Result<()> {
        let lacks = || Error::new(Kind::Internal, "the rtsp pipeline lacks an element; this is a defect, please report it");
        let bin = media.element().downcast::<gstreamer::Bin>().map_err(|_| lacks())?;
        let source = bin.by_name("units").ok_or_else(lacks)?.downcast::<AppSrc>().map_err(|_| lacks())?;
        let viewing = live.watch(id)?;
        let stream = Arc::new(Stream { viewing, camera: id.clone(), played: AtomicBool::new(false), ended: AtomicBool::new(false) });
        let weak = Arc::downgrade(&stream);
        let ended = weak.clone();
        media.connect_unprepared(move |_| ended.upgrade().iter().for_each(|stream| stream.ended.store(true, Ordering::Release)));
        let pump = Pump { source: source.downgrade(), caps: None, held: None, state: State::Prepares, last: None, dropped };
        let thread = thread::spawn(format!("rtsp-{id}"), move || pump.run(&stream))?;
        let mut streams = sync::lock(&self.0);
        streams.retain(|(_, thread)| !thread.is_finished());
        streams.push((weak, thread));
        Ok(())
    }

    /// Somebody plays a camera from now on: a keyframe is due.
    pub fn played(&self, camera: &str) {
        let streams = sync::lock(&self.0);
        for stream in streams.iter().filter_map(|(stream, _)| stream.upgrade()).filter(|stream| stream.camera.as_str() == camera) {
            stream.played.store(true, Ordering::Release);
            stream.viewing.ask_keyframe();
        }
    }

    /// Ends every stream.
    pub fn finish(&self) {
        let streams = std::mem::take(&mut *sync::lock(&self.0));
        streams.iter().filter_map(|(stream, _)| stream.upgrade()).for_each(|stream| stream.ended.store(true, Ordering::Release));
        let deadline = Instant::now() + FINISH;
        let left = thread::join_all_until(streams.into_iter().map(|(_, thread)| thread), deadline);
        if left > 0 {
            tracing::warn!(threads = left, "rtsp streams did not end in time and were left behind");
        }
    }
}

/// Carries what was encoded into the server's pipeline.
struct Pump {
    source: glib::WeakRef<AppSrc>,
    caps: Option<Arc<str>>,
    /// A keyframe that came before the pipeline had a clock.
    held: Option<EncodedUnit>,
    state: State,
    /// The time of the last picture.
    last: Option<ClockTime>,
    dropped: Counter,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The server learns from one keyframe what the stream is.
    Prepares,
    /// It knows, and nobody plays yet: what came meanwhile would be old by then.
    Waits,
    /// Up to the next keyframe nothing can be decoded. `asked`: that one is on its way.
    Skips {
        asked: bool,
    },
    Plays,
}

impl Pump {
    fn run(mut self, stream: &Stream) {
        while !stream.ended.load(Ordering::Acquire) {
            match stream.viewing.next(if self.held.is_some() { SOON } else { TURN }) {
                Ok(unit) => self.take(unit, stream),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            }
            if let Some(unit) = self.held.take() {
                self.prepare(unit);
            }
        }
    }

    /// Live video of this camera has ended: tells who watches.
    fn end(&self) {
        if let Some(source) = self.source.upgrade() {
            source.end_of_stream().ok();
        }
    }

    fn take(&mut self, unit: EncodedUnit, stream: &Stream) {
        if self.state == State::Waits && stream.played.load(Ordering::Acquire) {
            self.state = State::Skips { asked: true };
        }
        match self.state {
            // One picture without which no other can be decoded; those that follow it come too early.
            State::Prepares if unit.key => self.held = Some(unit),
            State::Prepares | State::Waits => {}
            State::Skips { asked } if !unit.key => {
                // Not while the server takes nothing: everybody else would get a keyframe each time.
                if !asked && self.waiting() <= WAITING / 2 {
                    stream.viewing.ask_keyframe();
                    self.state = State::Skips { asked: true };
                }
            }
            State::Skips { .. } | State::Plays => self.push(&unit),
        }
    }

    fn prepare(&mut self, unit: EncodedUnit) {
        match self.source.upgrade() {
            Some(source) if source.current_running_time().is_some() && self.give(&source, &unit) => self.state = State::Waits,
            _ => self.held = Some(unit),
        }
    }

    fn push(&mut self, unit: &EncodedUnit) {
        let Some(source) = self.source.upgrade() else { return };
        if self.waiting() < WAITING && self.give(&source, unit) {
            self.state = State::Plays;
        } else {
            self.dropped.add();
            self.state = State::Skips { asked: false };
        }
    }

    /// Pictures that wait to be packed.
    fn waiting(&self) -> u64 {
        self.source.upgrade().map_or(0, |source| source.property("current-level-buffers"))
    }

    /// Whether the pipeline took it.
    fn give(&mut self, source: &AppSrc, unit: &EncodedUnit) -> bool {
        if self.caps.as_ref() != Some(&unit.caps) {
            let Ok(caps) = unit.caps.parse::<Caps>() else { return false };
            source.set_caps(Some(&caps));
            self.caps = Some(unit.caps.clone());
        }
        let mut buffer = Buffer::from_slice(unit.bytes.clone());
        // The moment at which it was shown, on this pipeline's clock: how long it was encoded for is not seen in it.
        let age = (unit.connected + unit.time).elapsed();
        let now = source.current_running_time().unwrap_or_default();
        let time = now.saturating_sub(ClockTime::try_from(age).unwrap_or_default());
        let time = self.last.map_or(time, |last| time.max(last + ClockTime::from_useconds(100)));
        self.last = Some(time);
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(time);
            if !unit.key {
                buffer.set_flags(BufferFlags::DELTA_UNIT);
            }
        }
        source.push_buffer(buffer).is_ok()
    }
}
