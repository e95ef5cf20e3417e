//! A clip: encoded pictures put into a fragmented MP4 as they are, `appsrc ! parser ! mp4mux ! filesink`. What a kill
//! leaves can be read up to the last keyframe but one; a file that was ended is an ordinary MP4.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use gstreamer::{Buffer, BufferFlags, Bus, ClockTime, Pipeline};
use gstreamer_app::AppSrc;

use crate::base::error::{Context, Error, Kind, Result};
use crate::sink::video::feed::{fault, finished, tear_down};
use crate::sink::video::init;
use crate::types::{Codec, EncodedUnit};

/// What may wait in the pipeline, in bytes: some seconds.
const WAITING: u64 = 4 << 20;

/// A pipeline that took nothing for so long is given up.
const STUCK: Duration = Duration::from_secs(10);

/// A file that is being written.
pub struct ClipFile {
    path: PathBuf,
    pipeline: Pipeline,
    source: AppSrc,
    bus: Bus,
}

/// Whether this installation can write clips.
///
/// # Errors
/// When an element is missing; the sentence names its Debian package.
pub fn check_clips() -> Result<()> {
    init()?;
    for (name, package) in [("mp4mux", "good"), ("h264parse", "bad"), ("h265parse", "bad")] {
        if gstreamer::ElementFactory::find(name).is_none() {
            return Err(Error::new(Kind::Pipeline, format!("gstreamer element {name} is missing; install gstreamer1.0-plugins-{package}")));
        }
    }
    Ok(())
}

impl ClipFile {
    /// Makes the file, and its folder where a person has removed it. One that exists is not touched.
    ///
    /// # Errors
    /// When it exists already or cannot be made, or the pipeline does not start.
    pub fn open(path: &Path, codec: Codec) -> Result<Self> {
        let fail = || format!("{} cannot be made", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).context(Kind::Io, fail)?;
        }
        OpenOptions::new().write(true).create_new(true).open(path).context(Kind::Io, fail)?;
        Self::start(path, codec).inspect_err(|_| drop(fs::remove_file(path)))
    }

    fn start(path: &Path, codec: Codec) -> Result<Self> {
        let (media, parser) = match codec {
            Codec::H264 => ("video/x-h264", "h264parse"),
            Codec::H265 => ("video/x-h265", "h265parse"),
            Codec::Other | Codec::Raw => return Err(Error::new(Kind::Input, "a stream of this codec is not kept; must be H.264 or H.265")),
        };
        // first-moov-then-finalise: readable while it grows, an ordinary MP4 once finished. Unbuffered: what the muxer has
        // written survives a kill.
        let line = format!(
            "appsrc name=source format=time is-live=false block=false caps={media},stream-format=byte-stream,alignment=au \
             ! {parser} ! mp4mux fragment-duration=1000 fragment-mode=first-moov-then-finalise \
             ! filesink name=file sync=false async=false buffer-mode=unbuffered"
        );
        let built = gstreamer::parse::launch(&line).context(Kind::Pipeline, || "cannot build the clip's writer")?;
        let strange = || Error::new(Kind::Internal, "the clip's writer lacks a part");
        let pipeline = built.downcast::<Pipeline>().map_err(|_| strange())?;
        let source = pipeline.by_name("source").and_then(|source| source.downcast::<AppSrc>().ok()).ok_or_else(strange)?;
        pipeline.by_name("file").ok_or_else(strange)?.set_property("location", path.to_string_lossy().as_ref());
        let bus = pipeline.bus().ok_or_else(strange)?;
        let file = Self { path: path.to_owned(), pipeline, source, bus };
        if file.pipeline.set_state(gstreamer::State::Playing).is_err() {
            let silent = || Error::new(Kind::Pipeline, format!("{} cannot be written", path.display()));
            return Err(file.fault().unwrap_or_else(silent));
        }
        Ok(file)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands over the next picture, in the order of decoding, with its times since the file's begin; waits for a place.
    ///
    /// # Errors
    /// When the file cannot be written, or was not for ten seconds.
    pub fn push(&self, unit: &EncodedUnit, dts: Duration, pts: Duration, lasts: Duration) -> Result<()> {
        let deadline = Instant::now() + STUCK;
        loop {
            if let Some(fault) = self.fault() {
                return Err(fault);
            }
            if self.source.current_level_bytes() < WAITING {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Error::new(Kind::Io, format!("{}: nothing was written for {} s", self.path.display(), STUCK.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let clock = |time: Duration| ClockTime::from_nseconds(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2));
        let mut buffer = Buffer::from_slice(unit.bytes.clone());
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_dts(clock(dts));
            buffer.set_pts(clock(pts));
            buffer.set_duration(clock(lasts));
            if !unit.key {
                buffer.set_flags(BufferFlags::DELTA_UNIT);
            }
        }
        let ended = |flow: gstreamer::FlowError| Error::new(Kind::Pipeline, format!("{}: {flow}", self.path.display()));
        self.source.push_buffer(buffer).map(drop).map_err(|flow| self.fault().unwrap_or_else(|| ended(flow)))
    }

    /// Ends the file, and waits until that is written.
    ///
    /// # Errors
    /// When it fails or takes over five seconds; the file can be read as far as it was written.
    pub fn finish(self) -> Result<()> {
        self.source.end_of_stream().map(drop).unwrap_or_default();
        finished(&self.pipeline, &self.bus).context(Kind::Io, || format!("{} was not finished", self.path.display()))
    }

    fn fault(&self) -> Option<Error> {
        fault(&self.pipeline, &self.bus).map(|why| Error::new(Kind::Io, format!("{} cannot be written", self.path.display())).because(why))
    }
}

impl Drop for ClipFile {
    fn drop(&mut self) {
        tear_down(&self.pipeline);
    }
}
