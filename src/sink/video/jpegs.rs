//! Live video as JPEGs, for who can show pictures and no video: encoded while somebody watches, once for all who do.
//!
//! Each height that is asked for is a lane with a thread of its own, `jpeg-<camera>`. A viewer is handed the newest picture whenever
//! it can take one; what it was too slow for it does not get.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use gstreamer::prelude::*;
use gstreamer::{Bus, Caps, ClockTime, Element, Fraction, Pipeline, State};
use gstreamer_app::{AppSink, AppSrc};
use tokio::sync::watch;

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::sink::video::live::{Live, Pictures, Shown};
use crate::sink::video::{feed, init};
use crate::types::CameraId;

/// The heights that may be asked for; lower pictures stay as they are.
pub const HEIGHTS: [u32; 5] = [240, 360, 480, 720, 1080];

/// A picture is asked for again soon, by who asks for single ones: the decoder stays for so long.
const LINGER: Duration = Duration::from_secs(3);

/// The longest time between two looks at whether anybody still watches.
const TURN: Duration = Duration::from_millis(100);

/// For a picture to be encoded.
const ENCODE: Duration = Duration::from_secs(2);

/// Before an encoder that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// At the end: for the threads.
const FINISH: Duration = Duration::from_secs(1);

/// A camera's picture at a height; `None`: its own.
type Key = (CameraId, Option<u32>);

/// One JPEG. Clones share it.
#[derive(Clone, Debug)]
pub struct Jpeg {
    /// The file.
    pub bytes: Arc<[u8]>,
    /// Counted from 1 since somebody began to watch.
    pub number: u64,
}

/// What is encoded, of every camera. Clones share it.
#[derive(Clone)]
pub struct Jpegs(Arc<Inner>);

struct Inner {
    live: Live,
    metrics: Metrics,
    lanes: Mutex<Lanes>,
}

#[derive(Default)]
struct Lanes {
    running: BTreeMap<Key, Lane>,
    threads: Vec<Thread>,
    closed: bool,
}

/// Who watches at one height.
struct Lane {
    next: u64,
    /// Pictures a second that each of them wants.
    viewers: BTreeMap<u64, f64>,
    pictures: watch::Receiver<Option<Jpeg>>,
    /// When the last of them left.
    left: Instant,
}

/// Somebody who watches. Dropped, it is one less.
pub struct Watching {
    pictures: watch::Receiver<Option<Jpeg>>,
    inner: Arc<Inner>,
    key: Key,
    number: u64,
}

impl Jpegs {
    /// Of `live`. Counts, each with the camera's id: `jpeg_pictures_encoded`, and `jpeg_pictures_skipped` that a viewer was too slow
    /// for.
    ///
    /// # Errors
    /// When this installation cannot encode JPEG.
    pub fn new(live: Live, metrics: &Metrics) -> Result<Self> {
        init()?;
        let missing = || "gstreamer element jpegenc is missing; install gstreamer1.0-plugins-good";
        gstreamer::ElementFactory::make("jpegenc").build().context(Kind::Pipeline, missing)?;
        Ok(Self(Arc::new(Inner { live, metrics: metrics.clone(), lanes: Mutex::default() })))
    }

    /// Every camera there is to watch.
    pub fn cameras(&self) -> Vec<CameraId> {
        self.0.live.cameras()
    }

    /// Begins to watch a camera, at `fps` pictures a second, scaled down to `height` where that is less.
    ///
    /// # Errors
    /// When there is no such camera, live video has ended, or the system has no thread left.
    pub fn watch(&self, camera: &CameraId, height: Option<u32>, fps: f64) -> Result<Watching> {
        let key = (camera.clone(), height);
        let mut lanes = sync::lock(&self.0.lanes);
        if lanes.closed {
            return Err(Error::new(Kind::Pipeline, "live video has ended"));
        }
        if !lanes.running.contains_key(&key) {
            let shown = self.0.live.pictures(camera)?;
            let (send, pictures) = watch::channel(None);
            let (inner, owned) = (self.0.clone(), key.clone());
            let thread = thread::spawn(format!("jpeg-{camera}"), move || {
                let _forgets = Forgets(&inner, &owned);
                inner.run(&owned, &shown, &send);
            })?;
            lanes.threads.retain(|thread| !thread.is_finished());
            lanes.threads.push(thread);
            lanes.running.insert(key.clone(), Lane { next: 0, viewers: BTreeMap::new(), pictures, left: Instant::now() });
        }
        let lane = lanes.running.get_mut(&key).ok_or_else(|| Error::new(Kind::Internal, "a lane is not where it was put"))?;
        let number = lane.next;
        lane.next += 1;
        lane.viewers.insert(number, fps);
        Ok(Watching { pictures: lane.pictures.clone(), inner: self.0.clone(), key, number })
    }

    /// What counts pictures that a camera's viewers were too slow for.
    pub fn skipped(&self, camera: &CameraId) -> Counter {
        self.0.metrics.counter("jpeg_pictures_skipped", camera.as_str())
    }

    /// Ends it for everybody, for ever.
    pub fn end(&self) {
        let threads = {
            let mut lanes = sync::lock(&self.0.lanes);
            lanes.closed = true;
            std::mem::take(&mut lanes.threads)
        };
        let deadline = Instant::now() + FINISH;
        let left = thread::join_all_until(threads, deadline);
        if left > 0 {
            tracing::warn!(threads = left, "live pictures did not end in time and were left behind");
        }
    }
}

impl Watching {
    /// The next picture: the newest there is, if it was not taken yet, else the one that comes. `None`: live video has ended.
    pub async fn next(&mut self) -> Option<Jpeg> {
        loop {
            self.pictures.changed().await.ok()?;
            if let Some(jpeg) = &*self.pictures.borrow_and_update() {
                return Some(jpeg.clone());
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(lane) = sync::lock(&self.inner.lanes).running.get_mut(&self.key) {
            lane.viewers.remove(&self.number);
            lane.left = Instant::now();
        }
    }
}

/// Where a thread panics its lane is forgotten, so that the next who comes begins anew.
struct Forgets<'i>(&'i Inner, &'i Key);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            sync::lock(&self.0.lanes).running.remove(self.1);
        }
    }
}

impl Inner {
    /// Encodes what is `shown` until nobody watches any more.
    fn run(&self, key: &Key, shown: &Pictures, send: &watch::Sender<Option<Jpeg>>) {
        let encoded = self.metrics.counter("jpeg_pictures_encoded", key.0.as_str());
        let (mut encoder, mut number, mut due) = (None, 0, Instant::now());
        while let Some(pace) = self.pace(key) {
            let picture = match shown.shown().recv_timeout(TURN) {
                Ok(picture) => picture,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    sync::lock(&self.lanes).running.remove(key);
                    return;
                }
            };
            let now = Instant::now();
            if now < due {
                continue;
            }
            match encode(&mut encoder, &picture, key) {
                Ok(bytes) => {
                    // In step with the pace on the average, however the pictures come.
                    due = if now.duration_since(due) < pace { due + pace } else { now + pace };
                    number += 1;
                    encoded.add();
                    send.send_replace(Some(Jpeg { bytes, number }));
                }
                Err(error) => {
                    (encoder, due) = (None, now + AGAIN);
                    tracing::warn!(camera = %key.0, "live pictures: {}", error.chain());
                }
            }
        }
    }

    /// The time between two pictures; `None`: nobody watches any more, and whoever comes next begins another lane.
    fn pace(&self, key: &Key) -> Option<Duration> {
        let mut lanes = sync::lock(&self.lanes);
        let closed = lanes.closed;
        let lane = lanes.running.get(key)?;
        if closed || (lane.viewers.is_empty() && lane.left.elapsed() >= LINGER) {
            lanes.running.remove(key);
            return None;
        }
        let most = lane.viewers.values().copied().fold(2.0, f64::max);
        Some(Duration::from_secs_f64(1.0 / most))
    }
}

fn encode(encoder: &mut Option<Encoder>, picture: &Shown, (camera, height): &Key) -> Result<Arc<[u8]>> {
    let encoder = match encoder {
        Some(encoder) => encoder,
        None => encoder.insert(Encoder::start(&format!("jpeg-{camera}"), *height)?),
    };
    encoder.encode(picture)
}

/// A running pipeline: one picture goes in, one comes out.
struct Encoder {
    pipeline: Pipeline,
    source: AppSrc,
    sink: AppSink,
    size: Element,
    bus: Bus,
    height: Option<u32>,
    /// What the pictures that come are.
    caps: Option<Caps>,
    count: u64,
}

impl Encoder {
    fn start(name: &str, height: Option<u32>) -> Result<Self> {
        let line = "appsrc name=in format=time block=false max-bytes=0 ! videoscale ! videoconvert ! capsfilter name=size \
                    ! jpegenc quality=80 ! appsink name=out sync=false enable-last-sample=false";
        let failed = || "the JPEG encoder does not start";
        let strange = || Error::new(Kind::Pipeline, failed());
        let pipeline = gstreamer::parse::launch(line).context(Kind::Pipeline, failed)?;
        let pipeline = pipeline.downcast::<Pipeline>().map_err(|_| strange())?;
        pipeline.set_property("name", name);
        let by_name = |name| pipeline.by_name(name).ok_or_else(strange);
        let source = by_name("in")?.downcast::<AppSrc>().map_err(|_| strange())?;
        let sink = by_name("out")?.downcast::<AppSink>().map_err(|_| strange())?;
        let (size, bus) = (by_name("size")?, pipeline.bus().ok_or_else(strange)?);
        let encoder = Self { pipeline, source, sink, size, bus, height, caps: None, count: 0 };
        encoder.pipeline.set_state(State::Playing).context(Kind::Pipeline, failed)?;
        Ok(encoder)
    }

    fn encode(&mut self, picture: &Shown) -> Result<Arc<[u8]>> {
        let failed = || Error::new(Kind::Pipeline, "a picture cannot be encoded as JPEG");
        let caps = picture.caps().map_err(|error| failed().because(error))?;
        if self.caps.as_ref() != Some(&caps) {
            self.size.set_property("caps", scaled(picture.size(), self.height));
            self.source.set_caps(Some(&caps));
            self.caps = Some(caps);
        }
        let mut buffer = picture.buffer().clone();
        // The pixels are shared, the times are not.
        buffer.make_mut().set_pts(ClockTime::from_mseconds(self.count));
        self.count += 1;
        self.source.push_buffer(buffer).map_err(|error| failed().because(error))?;
        let sample = self.sink.try_pull_sample(ClockTime::try_from(ENCODE).ok());
        let sample = sample.ok_or_else(|| feed::fault(&self.pipeline, &self.bus).unwrap_or_else(failed))?;
        let bytes = sample.buffer().and_then(|buffer| buffer.map_readable().ok()).ok_or_else(failed)?;
        Ok(bytes.as_slice().into())
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        feed::tear_down(&self.pipeline);
    }
}

/// What is encoded of pictures of `size`. In RGB, for JPEG has the full range of values and video mostly has not: from one to the
/// other GStreamer 1.22 copies planes as they are where both have the same matrix.
fn scaled((width, height): (u32, u32), most: Option<u32>) -> Caps {
    let target = most.unwrap_or(height).min(height);
    let wide = u64::from(width) * u64::from(target) / u64::from(height.max(1));
    let even = |pixels: u64| i32::try_from(pixels.max(2) / 2 * 2).unwrap_or(i32::MAX);
    Caps::builder("video/x-raw")
        .field("format", "BGRx")
        .field("width", even(wide))
        .field("height", even(u64::from(target)))
        .field("framerate", Fraction::new(0, 1))
        .build()
}
