//! Live video played into a device of v4l2loopback, where other programs take it for a camera. Nothing is encoded for that.

use std::path::Path;

use crossbeam_channel::RecvTimeoutError;
use gstreamer::prelude::*;
use gstreamer::{Bus, Caps, ElementFactory, Fraction, Pipeline, State};
use gstreamer_app::AppSrc;

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::config::V4l2Config;
use crate::sink::video::again::{Crew, TURN, Watch};
use crate::sink::video::live::{Live, Shown};
use crate::sink::video::{feed, init};
use crate::types::CameraId;

/// Devices want to know a rate, and ours is that of the camera: a nominal one does.
const RATE: &str = r#"capssetter join=true caps="video/x-raw,framerate=(fraction)30/1""#;

/// Plays `live` into the device of each of `configs`, from now on, in threads `v4l2-<camera>`. Counts, each with the camera's id:
/// `v4l2_pictures`, and `v4l2_failures` of the device.
///
/// # Errors
/// When an element is missing or the system refuses a thread. A device that is not there is tried again.
pub fn start(configs: &[V4l2Config], live: &Live, metrics: &Metrics) -> Result<Crew> {
    init()?;
    if !configs.is_empty() && ElementFactory::find("v4l2sink").is_none() {
        return Err(Error::new(Kind::Pipeline, "gstreamer element v4l2sink is missing; install gstreamer1.0-plugins-good"));
    }
    let mut crew = Crew::new("video devices");
    for config in configs {
        let V4l2Config { camera, device } = config.clone();
        let counter = |what| metrics.counter(what, camera.as_str());
        let player = Player { config: config.clone(), live: live.clone(), pictures: counter("v4l2_pictures") };
        let (name, failures) = (format!("v4l2-{camera}"), counter("v4l2_failures"));
        let told = move |error: &Error, _| {
            tracing::warn!(%camera, device = %device.display(), "live video is not played: {}", error.chain());
        };
        crew.keep(name, failures, move |watch| player.play(watch), told)?;
    }
    Ok(crew)
}

/// One device.
struct Player {
    config: V4l2Config,
    live: Live,
    pictures: Counter,
}

impl Player {
    /// Plays until told to end.
    ///
    /// # Errors
    /// When the device cannot be used, or not any more.
    fn play(&self, watch: &mut Watch) -> Result<()> {
        let V4l2Config { camera, device } = &self.config;
        exists(device)?;
        let pictures = self.live.pictures(camera)?;
        let mut playing: Option<Playing> = None;
        while !watch.ended() {
            match pictures.shown().recv_timeout(TURN) {
                Ok(picture) => {
                    let playing = match &mut playing {
                        Some(playing) => playing,
                        None => playing.insert(Playing::start(camera, "v4l2sink", device, &picture)?),
                    };
                    playing.push(&picture)?;
                    self.pictures.add();
                    if playing.taken && watch.up() {
                        tracing::info!(%camera, device = %device.display(), "live video is played");
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Before anything is decoded for it. What kind of device it is, only opening it tells.
fn exists(device: &Path) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let metadata = std::fs::metadata(device).context(Kind::Io, || {
        format!(
            "output.v4l2.device {} cannot be opened; must be a device of v4l2loopback, which modprobe v4l2loopback makes",
            device.display()
        )
    })?;
    if metadata.file_type().is_char_device() {
        return Ok(());
    }
    Err(Error::new(Kind::Io, format!("output.v4l2.device {} is no device; must be one of v4l2loopback", device.display())))
}

/// An open device. Its pictures keep the size of the first; others are scaled into it, for readers bear no change.
struct Playing {
    pipeline: Pipeline,
    source: AppSrc,
    bus: Bus,
    caps: Option<Caps>,
    /// It took a picture.
    taken: bool,
}

impl Playing {
    fn start(camera: &CameraId, sink: &str, device: &Path, first: &Shown) -> Result<Self> {
        let strange = || Error::new(Kind::Internal, "the pipeline to a device lacks an element; this is a defect, please report it");
        // Two bytes a pixel: what programs that expect a camera know best.
        let line = format!(
            "appsrc name=pictures is-live=true do-timestamp=true format=time block=false max-buffers=2 max-bytes=0 leaky-type=downstream \
             ! videoconvert ! videoscale add-borders=true ! capsfilter name=canvas ! {RATE} ! {sink} name=sink sync=false"
        );
        let pipeline = gstreamer::parse::launch(&line).context(Kind::Pipeline, || "a pipeline to a device cannot be built")?;
        let pipeline = pipeline.downcast::<Pipeline>().map_err(|_| strange())?;
        pipeline.set_property("name", format!("v4l2-{camera}"));
        let by_name = |name| pipeline.by_name(name).ok_or_else(strange);
        let source = by_name("pictures")?.downcast::<AppSrc>().map_err(|_| strange())?;
        let (width, height) = first.size();
        let even = |pixels: u32| i32::try_from(pixels.next_multiple_of(2).max(16)).unwrap_or(i32::MAX);
        let canvas = Caps::builder("video/x-raw")
            .field("format", "YUY2")
            .field("width", even(width))
            .field("height", even(height))
            .field("framerate", Fraction::new(0, 1))
            .build();
        by_name("canvas")?.set_property("caps", canvas);
        let sink = by_name("sink")?;
        if sink.has_property("device") {
            sink.set_property("device", device.to_string_lossy().as_ref());
        }
        let bus = pipeline.bus().ok_or_else(strange)?;
        let playing = Self { pipeline, source, bus, caps: None, taken: false };
        if playing.pipeline.set_state(State::Playing).is_err() {
            playing.check()?;
            return Err(Error::new(Kind::Pipeline, format!("{} does not open", device.display())));
        }
        Ok(playing)
    }

    fn check(&self) -> Result<()> {
        feed::fault(&self.pipeline, &self.bus).map_or(Ok(()), Err)
    }

    /// Never blocks: a device that does not keep up loses the oldest.
    fn push(&mut self, picture: &Shown) -> Result<()> {
        self.check()?;
        let ended = || Error::new(Kind::Pipeline, "the device takes no picture");
        let caps = picture.caps().map_err(|error| ended().because(error))?;
        if self.caps.as_ref() != Some(&caps) {
            self.source.set_caps(Some(&caps));
            self.caps = Some(caps);
        }
        self.taken |= self.pipeline.current_state() == State::Playing;
        match self.source.push_buffer(picture.buffer().clone()) {
            Ok(_) => Ok(()),
            Err(_) => self.check().and_then(|()| Err(ended())),
        }
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        feed::tear_down(&self.pipeline);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gstreamer_app::AppSink;
    use gstreamer_video::VideoInfo;
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::sink::video::raw;

    fn grey(width: u32, height: u32) -> Shown {
        let image = Arc::new(RgbImage::from_pixel(width, height, Rgb([150; 3])));
        Shown::new(raw::buffer(&image), VideoInfo::from_caps(&raw::caps(width, height)).unwrap())
    }

    /// There is no device in a test: what takes its place is the sink alone.
    #[test]
    fn a_device_gets_pictures_of_one_size_whatever_the_camera_sends() {
        init().unwrap();
        let first = grey(641, 360);
        let mut playing = Playing::start(&CameraId::new("a").unwrap(), "appsink", Path::new("/dev/video10"), &first).unwrap();
        let sink = playing.pipeline.by_name("sink").unwrap().downcast::<AppSink>().unwrap();
        for picture in [first, grey(320, 240)] {
            playing.push(&picture).unwrap();
            let sample = sink.try_pull_sample(gstreamer::ClockTime::from_seconds(10)).unwrap();
            let info = VideoInfo::from_caps(sample.caps().unwrap()).unwrap();
            assert_eq!((info.format(), info.width(), info.height()), (gstreamer_video::VideoFormat::Yuy2, 642, 360));
            let map = sample.buffer().unwrap().map_readable().unwrap();
            let middle = map[info.stride()[0] as usize * 180 + 642];
            assert!(middle.abs_diff(145) < 5, "{middle}");
        }
    }

    #[test]
    fn what_is_no_device_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("video10");
        assert!(exists(&file).unwrap_err().chain().contains("must be a device of v4l2loopback"));
        std::fs::write(&file, "").unwrap();
        assert!(exists(&file).unwrap_err().chain().contains("is no device; must be one of v4l2loopback"));
    }
}
