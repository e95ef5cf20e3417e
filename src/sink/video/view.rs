//! Viewers of an RTSP stream, for measurements: how many pictures come to each, and how old they are.

use std::sync::{Arc, Mutex};

use gstreamer::prelude::*;
use gstreamer::{Pipeline, State};
use gstreamer_app::{AppSink, AppSinkCallbacks};
use gstreamer_video::VideoInfo;

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::sync;
use crate::sink::video::{init, stamp};

/// What has come since it was last asked for.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Pictures, by viewer.
    pub pictures: Vec<u64>,
    /// How old those of the first viewer were that have a time written into them, milliseconds.
    pub ages: Vec<u32>,
}

/// Viewers who play; they leave when dropped.
pub struct Viewers {
    pipelines: Vec<Pipeline>,
    seen: Arc<Mutex<Seen>>,
}

impl Viewers {
    /// So many of them. The first decodes what it sees where `reads`, the others only take it.
    ///
    /// # Errors
    /// When an element is missing.
    pub fn start(uri: &str, count: usize, reads: bool) -> Result<Self> {
        init()?;
        let mut viewers = Self { pipelines: Vec::new(), seen: Arc::new(Mutex::new(Seen { pictures: vec![0; count], ages: Vec::new() })) };
        for number in 0..count {
            let decoder = if reads && number == 0 { "! avdec_h264 max-threads=1 ! video/x-raw,format=I420" } else { "" };
            let line = format!(
                "rtspsrc name=source protocols=tcp latency=0 ! rtph264depay ! video/x-h264,alignment=au {decoder} \
                 ! appsink name=out sync=false max-buffers=4 drop=true"
            );
            let failed = || "a viewer cannot be made; install gstreamer1.0-plugins-good and -libav";
            let pipeline = gstreamer::parse::launch(&line).context(Kind::Pipeline, failed)?;
            let pipeline = pipeline.downcast::<Pipeline>().map_err(|_| Error::new(Kind::Pipeline, failed()))?;
            let by_name = |name| pipeline.by_name(name).ok_or_else(|| Error::new(Kind::Pipeline, failed()));
            by_name("source")?.set_property("location", uri);
            let out = by_name("out")?.downcast::<AppSink>().map_err(|_| Error::new(Kind::Pipeline, failed()))?;
            let seen = viewers.seen.clone();
            let take = move |out: &AppSink| {
                let sample = out.pull_sample().map_err(|_| gstreamer::FlowError::Eos)?;
                let age = read(&sample);
                let mut seen = sync::lock(&seen);
                seen.pictures[number] += 1;
                seen.ages.extend(age);
                Ok(gstreamer::FlowSuccess::Ok)
            };
            out.set_callbacks(AppSinkCallbacks::builder().new_sample(take).build());
            viewers.pipelines.push(pipeline);
        }
        for pipeline in &viewers.pipelines {
            pipeline.set_state(State::Playing).context(Kind::Pipeline, || "a viewer does not start")?;
        }
        Ok(viewers)
    }

    /// What has come since it was last asked for.
    pub fn take(&self) -> Seen {
        let mut seen = sync::lock(&self.seen);
        let fresh = Seen { pictures: vec![0; seen.pictures.len()], ages: Vec::new() };
        std::mem::replace(&mut *seen, fresh)
    }
}

impl Drop for Viewers {
    fn drop(&mut self) {
        for pipeline in &self.pipelines {
            if pipeline.set_state(State::Null).is_err() {
                tracing::debug!("a viewer refused to stop");
            }
        }
    }
}

fn read(sample: &gstreamer::Sample) -> Option<u32> {
    let info = VideoInfo::from_caps(sample.caps()?).ok()?;
    let map = sample.buffer()?.map_readable().ok()?;
    let stride = usize::try_from(*info.stride().first()?).ok()?;
    stamp::read(&map, stride, info.width() as usize).map(stamp::age)
}
