//! Live video: a camera's own stream at its full rate, the newest boxes on it, decoded and encoded only while somebody
//! watches, and once for all who do.
//!
//! A camera's encoded pictures are kept from the newest keyframe on, so that who begins to watch sees the picture of the
//! moment at once. For as long as somebody watches, the thread `live-<id>` decodes what comes and hands it to the server's
//! pipeline, `… ! overlaycomposition ! encoder ! payloader`. Of a camera that is down it shows a slate; one that sends no
//! encoded pictures is shown as it was analysed.

mod boxes;
mod camera;
mod decode;
mod show;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use gstreamer_rtsp_server::prelude::*;
use gstreamer_rtsp_server::{RTSPMedia, RTSPMediaFactory};
use image::RgbImage;

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::config::EncoderKind;
use crate::sink::Picture;
use crate::sink::video::encoder;
use crate::types::{CameraId, CameraStatus, EncodedUnit, Mark, Patch};
use camera::Camera;
use show::Show;

/// Pictures between keyframes: two seconds of most cameras. Who joins others does not wait for one, it is asked for.
const GOP: u32 = 60;

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
    cameras: BTreeMap<CameraId, Arc<Camera>>,
    painter: Arc<dyn Painter>,
    /// Those that run, and such as have ended since another began.
    shows: Mutex<Vec<Running>>,
}

/// A show: a flag that ends it, and its thread.
struct Running(Arc<AtomicBool>, Thread);

impl Live {
    /// Of `cameras`. Counts, each with the camera's id: `rtsp_pictures_encoded`, and `live_pictures_dropped` that came too late
    /// or too fast for their viewers.
    pub fn new(cameras: &[CameraId], painter: Arc<dyn Painter>, metrics: &Metrics) -> Self {
        let cameras = cameras.iter().map(|id| (id.clone(), Arc::new(Camera::new(id.clone(), metrics)))).collect();
        Self(Arc::new(Inner { cameras, painter, shows: Mutex::default() }))
    }

    /// An encoded picture has come.
    pub fn encoded(&self, camera: &CameraId, unit: EncodedUnit) {
        if let Some(camera) = self.0.cameras.get(camera) {
            camera.encoded(unit);
        }
    }

    /// What is seen of a camera's objects from now on.
    pub fn marks(&self, camera: &CameraId, marks: Vec<Mark>) {
        if let Some(camera) = self.0.cameras.get(camera) {
            camera.marks(marks);
        }
    }

    /// Where a camera stands.
    pub fn status(&self, status: &CameraStatus) {
        if let Some(camera) = self.0.cameras.get(&status.camera) {
            camera.status(status);
        }
    }

    /// An analysed picture, for cameras that have no others.
    pub(super) fn analysed(&self, picture: &Picture) -> Result<()> {
        let unknown = || Error::new(Kind::Internal, format!("camera {} is not served over rtsp", picture.camera));
        self.0.cameras.get(&picture.camera).ok_or_else(unknown)?.analysed(picture.image.clone());
        Ok(())
    }

    /// Somebody began to watch: a keyframe is due.
    pub(super) fn join(&self) {
        self.0.cameras.values().for_each(|camera| camera.join());
    }

    /// The factory of each camera's stream, encoded as `kind` says.
    ///
    /// # Errors
    /// When this installation cannot encode H.264 or lacks an element.
    pub(super) fn factories(&self, kind: EncoderKind) -> Result<Vec<(CameraId, RTSPMediaFactory)>> {
        let missing = || "gstreamer element overlaycomposition is missing; install gstreamer1.0-plugins-base";
        gstreamer::ElementFactory::make("overlaycomposition").build().context(Kind::Pipeline, missing)?;
        // Bounded by number: the queue's own bound of bytes is less than a picture.
        // The boxes before the canvas: they are where they are on the camera's picture, however it is scaled.
        let line = format!(
            "( appsrc name=pictures is-live=true do-timestamp=true format=time block=false max-buffers=2 max-bytes=0 leaky-type=downstream \
             ! videoconvert ! overlaycomposition name=boxes ! videoscale add-borders=true ! capsfilter name=canvas ! {} \
             ! {} )",
            encoder::chosen(kind, GOP)?,
            encoder::PAYLOADER
        );
        Ok(self.0.cameras.keys().map(|id| (id.clone(), self.factory(&line, id))).collect())
    }

    fn factory(&self, line: &str, id: &CameraId) -> RTSPMediaFactory {
        let factory = RTSPMediaFactory::new();
        factory.set_launch(line);
        factory.set_shared(true);
        let (id, weak) = (id.clone(), Arc::downgrade(&self.0));
        factory.connect_media_configure(move |_, media| {
            if let Some(inner) = weak.upgrade()
                && let Err(error) = inner.begin(&id, media)
            {
                tracing::error!(camera = %id, "{}", error.chain());
            }
        });
        factory
    }

    /// Ends every show.
    pub(super) fn finish(&self) {
        let shows = std::mem::take(&mut *sync::lock(&self.0.shows));
        shows.iter().for_each(|Running(ended, _)| ended.store(true, Ordering::Release));
        let deadline = Instant::now() + FINISH;
        let left = shows.into_iter().map(|Running(_, thread)| thread.join_until(deadline)).filter(|joined| !joined).count();
        if left > 0 {
            tracing::warn!(threads = left, "live video did not end in time and was left behind");
        }
    }
}

impl Inner {
    /// Fills a new pipeline for as long as it is there.
    fn begin(&self, id: &CameraId, media: &RTSPMedia) -> Result<()> {
        let lacks = || Error::new(Kind::Internal, "the rtsp pipeline lacks an element; this is a defect, please report it");
        let camera = self.cameras.get(id).ok_or_else(lacks)?;
        let bin = media.element().downcast::<gstreamer::Bin>().map_err(|_| lacks())?;
        let by_name = |name: &str| bin.by_name(name).ok_or_else(lacks);
        let source = by_name("pictures")?.downcast::<AppSrc>().map_err(|_| lacks())?;
        by_name("canvas")?.set_property("caps", camera.canvas());
        boxes::attach(&by_name("boxes")?, camera.clone(), self.painter.clone());
        let ended = Arc::new(AtomicBool::new(false));
        let flag = ended.clone();
        media.connect_unprepared(move |_| flag.store(true, Ordering::Release));
        let (kept, units) = camera.watch();
        let show = Show::new(camera.clone(), self.painter.clone(), source.downgrade(), units, ended.clone());
        let thread = thread::spawn(format!("live-{id}"), move || show.run(kept))?;
        let mut shows = sync::lock(&self.shows);
        shows.retain(|Running(_, thread)| !thread.is_finished());
        shows.push(Running(ended, thread));
        Ok(())
    }
}

/// The caps of `info` at no certain rate: pictures come when they come.
fn rateless(info: &gstreamer_video::VideoInfo) -> Result<gstreamer::Caps, glib::BoolError> {
    let mut caps = info.to_caps()?;
    caps.make_mut().set("framerate", gstreamer::Fraction::new(0, 1));
    Ok(caps)
}
