//! Live video in short files, for browsers and players that fetch (HLS, RFC 8216): the pictures of the camera's one encoder, packed
//! into MPEG-TS and cut at keyframes. Begins with the first who asks, ends some time after the last. The files are in memory.
//!
//! A muxer runs on from file to file, for players want its counters to. Where a file ends is told it by an event ahead of the
//! keyframe; it passes the event on where it has written all that comes before, and begins the next file with its tables.

mod reel;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use gstreamer::prelude::*;
use gstreamer::{Buffer, BufferFlags, Bus, Caps, ClockTime, PadProbeData, PadProbeReturn, PadProbeType, Pipeline, State};
use gstreamer_app::AppSrc;
use gstreamer_video::DownstreamForceKeyUnitEvent;

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::sink::video::live::{Live, Viewing};
use crate::sink::video::{feed, init};
use crate::types::{CameraId, EncodedUnit};
use reel::Reel;

/// The length of a file; the first ones are shorter, so that a player begins sooner.
const LENGTH: Duration = Duration::from_secs(2);
const FIRST: Duration = Duration::from_secs(1);

/// So many are short.
const SHORT: u32 = 2;

/// Nobody asked for so long: nobody watches.
const IDLE: Duration = Duration::from_secs(25);

/// The longest time between two looks at whether somebody still asks.
const TURN: Duration = Duration::from_millis(100);

/// Before a muxer that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// At the end: for the threads.
const FINISH: Duration = Duration::from_secs(1);

/// The files of every camera. Clones share it.
#[derive(Clone)]
pub struct Hls(Arc<Inner>);

struct Inner {
    live: Live,
    metrics: Metrics,
    /// Of those that were asked for.
    cameras: Mutex<BTreeMap<CameraId, Arc<Mutex<Reel>>>>,
    /// Without a player.
    idle: Duration,
    threads: Mutex<Vec<Thread>>,
}

impl Hls {
    /// Of `live`. Counts `hls_segments` and `hls_segments_dropped`, which were too large to be kept, with the camera's id.
    ///
    /// # Errors
    /// When this installation cannot write MPEG-TS.
    pub fn new(live: Live, metrics: &Metrics) -> Result<Self> {
        Self::with_idle(live, IDLE, metrics)
    }

    /// The same, ending `idle` after the last who asked.
    ///
    /// # Errors
    /// As `new`.
    pub fn with_idle(live: Live, idle: Duration, metrics: &Metrics) -> Result<Self> {
        init()?;
        let missing = || "gstreamer element mpegtsmux is missing; install gstreamer1.0-plugins-bad";
        gstreamer::ElementFactory::make("mpegtsmux").build().context(Kind::Pipeline, missing)?;
        let (metrics, cameras, threads) = (metrics.clone(), Mutex::default(), Mutex::default());
        Ok(Self(Arc::new(Inner { live, metrics, cameras, idle, threads })))
    }

    /// The list of a camera's newest files; `None`: there is none yet, but soon. Begins to make them, where nobody did.
    ///
    /// # Errors
    /// When there is no such camera, live video has ended, or the system has no thread left.
    pub fn playlist(&self, camera: &CameraId) -> Result<Option<String>> {
        let reel = self.reel(camera)?;
        if sync::lock(&reel).ask() {
            self.begin(camera, &reel).inspect_err(|_| sync::lock(&reel).end())?;
        }
        Ok(sync::lock(&reel).playlist())
    }

    /// A file that is, or lately was, in the list.
    pub fn segment(&self, camera: &CameraId, number: u64) -> Option<Arc<[u8]>> {
        let reel = self.reel(camera).ok()?;
        sync::lock(&reel).segment(number)
    }

    /// Ends it for everybody.
    pub fn end(&self) {
        sync::lock(&self.0.cameras).values().for_each(|reel| sync::lock(reel).close());
        let threads = std::mem::take(&mut *sync::lock(&self.0.threads));
        let deadline = Instant::now() + FINISH;
        let left = thread::join_all_until(threads, deadline);
        if left > 0 {
            tracing::warn!(threads = left, "live files did not end in time and were left behind");
        }
    }

    /// A camera's; those of cameras that have gone are let go of.
    fn reel(&self, camera: &CameraId) -> Result<Arc<Mutex<Reel>>> {
        let known = self.0.live.cameras();
        let mut cameras = sync::lock(&self.0.cameras);
        cameras.retain(|id, _| known.contains(id));
        if !known.contains(camera) {
            return Err(Error::new(Kind::Internal, format!("camera {camera} has no live video")));
        }
        Ok(cameras.entry(camera.clone()).or_insert_with(|| Arc::new(Mutex::new(Reel::new(camera, &self.0.metrics)))).clone())
    }

    fn begin(&self, camera: &CameraId, reel: &Arc<Mutex<Reel>>) -> Result<()> {
        let viewing = self.0.live.watch(camera)?;
        let cutting = Cutting {
            camera: camera.clone(),
            reel: reel.clone(),
            viewing,
            muxer: None,
            files: 0,
            last: Duration::ZERO,
            asked: false,
            due: None,
        };
        let (idle, owned) = (self.0.idle, reel.clone());
        let thread = thread::spawn(format!("hls-{camera}"), move || {
            let _ends = Ends(owned);
            cutting.run(idle);
        })?;
        let mut threads = sync::lock(&self.0.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }
}

/// However the thread ends, the next who asks begins anew.
struct Ends(Arc<Mutex<Reel>>);

impl Drop for Ends {
    fn drop(&mut self) {
        sync::lock(&self.0).end();
    }
}

/// The thread that packs and cuts.
struct Cutting {
    camera: CameraId,
    reel: Arc<Mutex<Reel>>,
    viewing: Viewing,
    muxer: Option<Muxer>,
    /// Begun since somebody first asked.
    files: u32,
    /// The time of the last picture.
    last: Duration,
    /// A keyframe was asked for and has not come yet.
    asked: bool,
    /// When a muxer that failed is tried again.
    due: Option<Instant>,
}

impl Cutting {
    fn run(mut self, idle: Duration) {
        while sync::lock(&self.reel).goes_on(idle) {
            match self.viewing.next(TURN) {
                Ok(unit) => self.take(&unit),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, unit: &EncodedUnit) {
        if let Err(error) = self.pack(unit) {
            self.stop();
            self.due = Some(Instant::now() + AGAIN);
            tracing::warn!(camera = %self.camera, "live files: {}", error.chain());
        }
    }

    fn pack(&mut self, unit: &EncodedUnit) -> Result<()> {
        if self.muxer.as_ref().is_some_and(|muxer| !muxer.takes(unit)) {
            self.stop();
        }
        let muxer = match &mut self.muxer {
            Some(muxer) => muxer,
            None if self.due.is_some_and(|due| Instant::now() < due) => return Ok(()),
            None if !unit.key => {
                self.viewing.ask_keyframe();
                return Ok(());
            }
            None => self.muxer.insert(Muxer::start(&self.camera, unit, self.reel.clone())?),
        };
        let length = if self.files < SHORT { FIRST } else { LENGTH };
        let time = unit.time.saturating_sub(muxer.zero);
        let open = muxer.cut.map(|cut| time.saturating_sub(cut));
        // What is asked for is the picture after the next one: slates are half a second apart.
        let ahead = time.saturating_sub(std::mem::replace(&mut self.last, time)) * 2;
        if unit.key {
            self.asked = false;
            // Others may have keyframes made at any moment; each of them would be a file.
            if open.is_none_or(|open| open >= length * 3 / 4) {
                self.files += 1;
                muxer.cut(time)?;
            }
        } else if open.is_some_and(|open| open + ahead >= length) && !self.asked {
            self.asked = true;
            self.viewing.ask_keyframe();
        }
        muxer.push(unit, time)
    }

    /// What has not come to its end yet is lost, and a player is told that another stream follows.
    fn stop(&mut self) {
        self.muxer = None;
        sync::lock(&self.reel).breaks();
    }
}

/// A running muxer, which writes into a reel. Dropped, it is taken down.
struct Muxer {
    pipeline: Pipeline,
    source: AppSrc,
    bus: Bus,
    /// Of the stream it takes.
    caps: Arc<str>,
    connected: Instant,
    /// The time of its first picture.
    zero: Duration,
    /// When the file that is open began.
    cut: Option<Duration>,
}

impl Muxer {
    fn start(camera: &CameraId, unit: &EncodedUnit, reel: Arc<Mutex<Reel>>) -> Result<Self> {
        // It writes as fast as it is given pictures; what waits is ahead of it only.
        let line = "appsrc name=units format=time block=true max-bytes=0 max-buffers=64 ! mpegtsmux name=mux alignment=0 \
                    ! fakesink sync=false async=false";
        let failed = || "the muxer of live files does not start";
        let strange = || Error::new(Kind::Pipeline, failed());
        let pipeline = gstreamer::parse::launch(line).context(Kind::Pipeline, failed)?;
        let pipeline = pipeline.downcast::<Pipeline>().map_err(|_| strange())?;
        pipeline.set_property("name", format!("hls-{camera}"));
        let by_name = |name| pipeline.by_name(name).ok_or_else(strange);
        let source = by_name("units")?.downcast::<AppSrc>().map_err(|_| strange())?;
        source.set_caps(Some(&unit.caps.parse::<Caps>().context(Kind::Pipeline, failed)?));
        let pad = by_name("mux")?.static_pad("src").ok_or_else(strange)?;
        let what = PadProbeType::BUFFER | PadProbeType::BUFFER_LIST | PadProbeType::EVENT_DOWNSTREAM;
        let number = sync::lock(&reel).begin();
        pad.add_probe(what, move |_, info| {
            write(&reel, number, info.data.as_ref());
            PadProbeReturn::Ok
        });
        let bus = pipeline.bus().ok_or_else(strange)?;
        let (caps, connected, zero) = (unit.caps.clone(), unit.connected, unit.time);
        let muxer = Self { pipeline, source, bus, caps, connected, zero, cut: None };
        muxer.pipeline.set_state(State::Playing).context(Kind::Pipeline, failed)?;
        Ok(muxer)
    }

    /// Whether a picture belongs to the same stream.
    fn takes(&self, unit: &EncodedUnit) -> bool {
        self.connected == unit.connected && self.caps == unit.caps && unit.time >= self.zero
    }

    /// Ends a file ahead of the keyframe of this time, and begins the next.
    fn cut(&mut self, time: Duration) -> Result<()> {
        let at = ClockTime::try_from(time).ok();
        let event = DownstreamForceKeyUnitEvent::builder().timestamp(at).stream_time(at).running_time(at).all_headers(true).build();
        if !self.source.send_event(event) {
            return Err(Error::new(Kind::Pipeline, "the muxer of live files takes no event"));
        }
        self.cut = Some(time);
        Ok(())
    }

    fn push(&self, unit: &EncodedUnit, time: Duration) -> Result<()> {
        if let Some(fault) = feed::fault(&self.pipeline, &self.bus) {
            return Err(fault);
        }
        let mut buffer = Buffer::from_slice(unit.bytes.clone());
        if let Some(buffer) = buffer.get_mut() {
            let at = ClockTime::try_from(time).ok();
            buffer.set_pts(at);
            buffer.set_dts(at);
            if !unit.key {
                buffer.set_flags(BufferFlags::DELTA_UNIT);
            }
        }
        self.source.push_buffer(buffer).map(drop).context(Kind::Pipeline, || "the muxer of live files takes no picture")
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        feed::tear_down(&self.pipeline);
    }
}

/// What leaves a muxer, in its thread.
fn write(reel: &Mutex<Reel>, muxer: u64, data: Option<&PadProbeData<'_>>) {
    let with = |what: &dyn Fn(&mut Reel)| {
        let mut reel = sync::lock(reel);
        if reel.is_of(muxer) {
            what(&mut reel);
        }
    };
    let put = |buffer: &gstreamer::BufferRef| {
        if let Ok(bytes) = buffer.map_readable() {
            with(&|reel| reel.write(&bytes));
        }
    };
    match data {
        Some(PadProbeData::Buffer(buffer)) => put(buffer),
        Some(PadProbeData::BufferList(list)) => list.iter().for_each(put),
        Some(PadProbeData::Event(event)) => {
            let cut = DownstreamForceKeyUnitEvent::parse(event).ok().and_then(|event| event.running_time);
            cut.iter().for_each(|at| with(&|reel| reel.cut(Duration::from(*at))));
        }
        _ => {}
    }
}
