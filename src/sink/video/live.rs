//! Live video: a camera's own stream at its full rate, the newest boxes on it, decoded and encoded only while somebody
//! watches, and once for all who do.
//!
//! A camera's encoded pictures are kept from the newest keyframe on, so that who begins to watch sees the picture of the
//! moment at once. For as long as somebody watches, the thread `live-<id>` decodes what comes and blends the boxes in. From
//! there pictures go to who takes them as they are (`Live::pictures`), and through the camera's one encoder to everybody who
//! wants them encoded (`Live::watch`), whatever the way they watch. Of a camera that is down it shows a slate; one whose
//! pictures cannot be decoded here is shown as it was analysed.

mod audience;
mod boxes;
mod camera;
mod decode;
mod encode;
mod show;
mod shown;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use image::RgbImage;

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::config::EncoderKind;
use crate::sink::Picture;
use crate::sink::video::{encoder, init};
use crate::types::{CameraId, CameraStatus, EncodedUnit, Mark, Patch};
use camera::Camera;
use show::Show;

pub use audience::{Pictures, Viewing};
pub use shown::Shown;

/// Pictures between keyframes: two seconds of most cameras. Who joins others does not wait for one, it is asked for.
const GOP: u32 = 60;

/// Before a show that panicked begins anew.
const ANEW: Duration = Duration::from_secs(1);

/// At the end: for the threads that show.
const FINISH: Duration = Duration::from_secs(2);

/// Draws what live video shows beside the camera's pictures.
pub trait Painter: Send + Sync + 'static {
    /// What is seen of `marks` at a moment on video of `size` (width, height; pixels).
    fn boxes(&self, marks: &[Mark], now: Instant, size: (u32, u32)) -> Vec<Patch>;

    /// What is shown while no picture comes: the last one, or a ground of `size`, and what there is to say.
    fn slate(&self, picture: Option<&RgbImage>, size: (u32, u32), lines: &[String]) -> RgbImage;
}

/// What there is to show, of every camera. Clones share it. Nothing here waits for a viewer.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    cameras: Mutex<BTreeMap<CameraId, Arc<Camera>>>,
    metrics: Metrics,
    painter: Arc<dyn Painter>,
    encoder: Arc<str>,
    /// Those that run, and such as have ended since another began.
    shows: Mutex<Vec<Thread>>,
}

impl Live {
    /// Of `cameras`, encoded as `kind` says. Counts, each with the camera's id: `rtsp_pictures_encoded`, `live_pictures_dropped`
    /// that came too late or too fast to be shown, and `live_units_dropped` that somebody who watches was too slow for.
    ///
    /// # Errors
    /// When this installation cannot encode H.264.
    pub fn new(cameras: &[CameraId], kind: EncoderKind, painter: Arc<dyn Painter>, metrics: &Metrics) -> Result<Self> {
        init()?;
        let encoder = encoder::chosen(kind, GOP)?.into();
        let inner = Inner { cameras: Mutex::default(), metrics: metrics.clone(), painter, encoder, shows: Mutex::default() };
        let live = Self(Arc::new(inner));
        cameras.iter().for_each(|id| live.enter(id));
        Ok(live)
    }

    /// A camera comes; one that is there stays as it is.
    pub fn enter(&self, id: &CameraId) {
        let new = || Arc::new(Camera::new(id.clone(), &self.0.metrics));
        sync::lock(&self.0.cameras).entry(id.clone()).or_insert_with(new);
    }

    /// A camera goes: it has ended for whoever watches it.
    pub fn leave(&self, id: &CameraId) {
        if let Some(camera) = sync::lock(&self.0.cameras).remove(id) {
            camera.audience.close();
        }
    }

    /// An encoded picture has come.
    pub fn encoded(&self, camera: &CameraId, unit: EncodedUnit) {
        if let Some(camera) = self.find(camera) {
            camera.encoded(unit);
        }
    }

    /// Whether somebody watches a camera at this moment.
    pub fn is_watched(&self, camera: &CameraId) -> bool {
        self.find(camera).is_some_and(|camera| !camera.audience.is_empty())
    }

    /// What is seen of a camera's objects from now on.
    pub fn marks(&self, camera: &CameraId, marks: Vec<Mark>) {
        if let Some(camera) = self.find(camera) {
            camera.marks(marks);
        }
    }

    /// Where a camera stands.
    pub fn status(&self, status: &CameraStatus) {
        if let Some(camera) = self.find(&status.camera) {
            camera.status(status);
        }
    }

    /// An analysed picture, for cameras that have no others.
    pub fn analysed(&self, picture: &Picture) -> Result<()> {
        self.camera(&picture.camera)?.analysed(picture.image.clone());
        Ok(())
    }

    /// Whether a camera has sent something, so that the size of its video is known.
    pub(super) fn is_known(&self, camera: &CameraId) -> bool {
        self.find(camera).is_some_and(|camera| camera.is_encoded() || camera.standing().1.is_some())
    }

    /// Whether a camera's analysed pictures are wanted: somebody watches, and there is nothing else to be shown of it.
    pub fn wants_analysed(&self, camera: &CameraId) -> bool {
        self.find(camera).is_some_and(|camera| !camera.audience.is_empty() && (!camera.is_encoded() || camera.is_undecodable()))
    }

    /// Every camera there is to watch.
    pub fn cameras(&self) -> Vec<CameraId> {
        sync::lock(&self.0.cameras).keys().cloned().collect()
    }

    /// Begins to watch a camera's encoded video: from a keyframe on, which is made for the purpose.
    ///
    /// # Errors
    /// When there is no such camera, live video has ended, or the system has no thread left.
    pub fn watch(&self, camera: &CameraId) -> Result<Viewing> {
        let camera = self.camera(camera)?;
        let (viewing, begins) = camera.audience.view()?;
        self.0.show(&camera, begins)?;
        Ok(viewing)
    }

    /// Begins to take a camera's pictures as they are shown, boxes included. Nothing is encoded for that.
    ///
    /// # Errors
    /// As `watch`.
    pub fn pictures(&self, camera: &CameraId) -> Result<Pictures> {
        let camera = self.camera(camera)?;
        let (pictures, begins) = camera.audience.take()?;
        self.0.show(&camera, begins)?;
        Ok(pictures)
    }

    /// Ends it for everybody, for ever.
    pub fn end(&self) {
        sync::lock(&self.0.cameras).values().for_each(|camera| camera.audience.close());
        let deadline = Instant::now() + FINISH;
        let shows = std::mem::take(&mut *sync::lock(&self.0.shows));
        let left = thread::join_all_until(shows, deadline);
        if left > 0 {
            tracing::warn!(threads = left, "live video did not end in time and was left behind");
        }
    }

    fn find(&self, id: &CameraId) -> Option<Arc<Camera>> {
        sync::lock(&self.0.cameras).get(id).cloned()
    }

    fn camera(&self, id: &CameraId) -> Result<Arc<Camera>> {
        self.find(id).ok_or_else(|| Error::new(Kind::Internal, format!("camera {id} has no live video")))
    }
}

impl Inner {
    /// Begins to show a camera, where that `begins`.
    fn show(&self, camera: &Arc<Camera>, begins: bool) -> Result<()> {
        if !begins {
            return Ok(());
        }
        let (camera, painter, encoder) = (camera.clone(), self.painter.clone(), self.encoder.clone());
        let failed = camera.clone();
        let show = move || {
            loop {
                let (kept, units) = camera.watch();
                let show = Show::new(camera.clone(), painter.clone(), encoder.clone(), units);
                // A panic costs those who watch a moment.
                if catch_unwind(AssertUnwindSafe(|| show.run(kept))).is_ok() {
                    return;
                }
                tracing::error!(camera = %camera.id(), "live video panicked and begins anew; this is a defect, please report it");
                std::thread::sleep(ANEW);
                if camera.audience.ends() {
                    return;
                }
            }
        };
        let thread = thread::spawn(format!("live-{}", failed.id()), show).context(Kind::Internal, || "live video cannot begin");
        let mut shows = sync::lock(&self.shows);
        shows.retain(|thread| !thread.is_finished());
        match thread {
            Ok(thread) => shows.push(thread),
            Err(error) => {
                failed.audience.failed();
                return Err(error);
            }
        }
        Ok(())
    }
}
