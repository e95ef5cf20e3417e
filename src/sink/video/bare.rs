//! A camera's stream that a plain pipeline takes, decodes and encodes, and no more: what live video is held against.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gstreamer::prelude::*;
use gstreamer::{Pipeline, State};

use crate::base::error::{Context, Error, Kind, Result};
use crate::sink::video::{encoder, init};

/// Pictures between keyframes, as live video has it.
const GOP: u32 = 60;

/// What becomes of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It is received, and that is all.
    Receive,
    /// It is decoded and encoded in software as well.
    Reencode,
}

/// A running pipeline; it ends when dropped.
pub struct Bare {
    pipeline: Pipeline,
    pictures: Arc<AtomicU64>,
}

impl Bare {
    /// Takes what the camera at `uri` sends.
    ///
    /// # Errors
    /// When an element is missing or the pipeline does not start.
    pub fn start(uri: &str, work: Work) -> Result<Self> {
        init()?;
        let work = match work {
            Work::Receive => "parsebin".to_owned(),
            Work::Reencode => {
                format!("decodebin force-sw-decoders=true ! videoconvert ! video/x-raw,format=I420 ! {}", encoder::h264(GOP)?)
            }
        };
        let line = format!("rtspsrc location=\"{uri}\" protocols=tcp ! {work} ! fakesink name=end sync=false async=false");
        let built = gstreamer::parse::launch(&line).context(Kind::Pipeline, || "the plain pipeline cannot be built")?;
        let lacks = || Error::new(Kind::Internal, "the plain pipeline lacks an element");
        let pipeline = built.downcast::<Pipeline>().map_err(|_| lacks())?;
        let pad = pipeline.by_name("end").and_then(|end| end.static_pad("sink")).ok_or_else(lacks)?;
        let pictures = Arc::<AtomicU64>::default();
        let count = pictures.clone();
        pad.add_probe(gstreamer::PadProbeType::BUFFER, move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
            gstreamer::PadProbeReturn::Ok
        });
        let bare = Self { pipeline, pictures };
        bare.pipeline.set_state(State::Playing).context(Kind::Pipeline, || "the plain pipeline does not start")?;
        Ok(bare)
    }

    /// How many pictures have come out so far.
    pub fn pictures(&self) -> u64 {
        self.pictures.load(Ordering::Relaxed)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if self.pipeline.set_state(State::Null).is_err() {
            tracing::warn!("the plain pipeline refused to stop");
        }
    }
}
