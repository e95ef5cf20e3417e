//! Live video played into a device of v4l2loopback, where other programs take it for a camera. Nothing is encoded for that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use gstreamer::prelude::*;
use gstreamer::{Bus, Caps, ElementFactory, Fraction, Pipeline, State};
use gstreamer_app::AppSrc;

use crate::base::backoff::Backoff;
use crate::base::error::{Context, Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::thread::{self, Thread};
use crate::config::V4l2Config;
use crate::sink::video::live::{Live, Shown};
use crate::sink::video::{feed, init};
use crate::types::CameraId;

/// The longest time between two looks at whether the device is still to be filled.
const TURN: Duration = Duration::from_millis(40);

/// Between two tries.
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);

/// A device that took pictures for so long was well.
const HEALTHY: Duration = Duration::from_secs(30);

/// At the end: for the threads.
const FINISH: Duration = Duration::from_secs(3);

/// Devices want to know a rate, and ours is that of the camera: a nominal one does.
const RATE: &str = r#"capssetter join=true caps="video/x-raw,framerate=(fraction)30/1""#;

/// The devices that are filled.
pub struct Devices {
    ended: Arc<AtomicBool>,
    threads: Vec<Thread>,
}

impl Devices {
    /// Plays `live` into the device of each of `configs`, from now on, in threads `v4l2-<camera>`. Counts, each with the camera's id:
    /// `v4l2_pictures`, and `v4l2_failures` of the device.
    ///
    /// # Errors
    /// When an element is missing or the system refuses a thread. A device that is not there is tried again.
    pub fn start(configs: &[V4l2Config], live: &Live, metrics: &Metrics) -> Result<Self> {
        init()?;
        if !configs.is_empty() && ElementFactory::find("v4l2sink").is_none() {
            return Err(Error::new(Kind::Pipeline, "gstreamer element v4l2sink is missing; install gstreamer1.0-plugins-good"));
        }
        let mut devices = Self { ended: Arc::default(), threads: Vec::new() };
        for V4l2Config { camera, device } in configs {
            let player = Player {
                camera: camera.clone(),
                device: device.clone(),
                live: live.clone(),
                ended: devices.ended.clone(),
                backoff: Backoff::new(FIRST, MOST),
                up: None,
                pictures: metrics.counter("v4l2_pictures", camera.as_str()),
                failures: metrics.counter("v4l2_failures", camera.as_str()),
            };
            devices.threads.push(thread::spawn(format!("v4l2-{camera}"), move || player.run())?);
        }
        Ok(devices)
    }

    /// Lets go of every device.
    pub fn finish(&mut self) {
        self.ended.store(true, Ordering::Release);
        let deadline = Instant::now() + FINISH;
        let left = thread::join_all_until(self.threads.drain(..), deadline);
        if left > 0 {
            tracing::warn!(threads = left, "video devices were not let go in time and were left behind");
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.finish();
    }
}

/// One device.
struct Player {
    camera: CameraId,
    device: PathBuf,
    live: Live,
    ended: Arc<AtomicBool>,
    backoff: Backoff,
    /// What the log was told last.
    up: Option<bool>,
    pictures: Counter,
    failures: Counter,
}

impl Player {
    fn run(mut self) {
        while !self.ended() {
            let began = Instant::now();
            let Err(error) = self.play() else { return };
            self.failures.add();
            if began.elapsed() >= HEALTHY {
                self.backoff.reset();
            }
            let until = Instant::now() + self.backoff.next_delay();
            if self.up != Some(false) {
                self.up = Some(false);
                tracing::warn!(camera = %self.camera, device = %self.device.display(), "live video is not played: {}", error.chain());
            }
            while !self.ended() && Instant::now() < until {
                std::thread::sleep(TURN);
            }
        }
    }

    /// Plays until told to end.
    ///
    /// # Errors
    /// When the device cannot be used, or not any more.
    fn play(&mut self) -> Result<()> {
        exists(&self.device)?;
        let pictures = self.live.pictures(&self.camera)?;
        let mut playing: Option<Playing> = None;
        while !self.ended() {
            match pictures.shown().recv_timeout(TURN) {
                Ok(picture) => {
                    let playing = match &mut playing {
                        Some(playing) => playing,
                        None => playing.insert(Playing::start(&self.camera, "v4l2sink", &self.device, &picture)?),
                    };
                    playing.push(&picture)?;
                    self.pictures.add();
                    if self.up != Some(true) && playing.taken {
                        self.up = Some(true);
                        tracing::info!(camera = %self.camera, device = %self.device.display(), "live video is played");
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        Ok(())
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
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
