//! The one encoder of a camera: pictures go in, encoded ones come out for everybody who watches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use gstreamer::{Bus, Caps, ClockTime, FlowError, FlowSuccess, Pipeline, State};
use gstreamer_app::{AppSink, AppSinkCallbacks, AppSrc};
use gstreamer_video::DownstreamForceKeyUnitEvent;

use crate::base::clock::Utc;
use crate::base::error::{Context, Error, Kind, Result};
use crate::sink::video::feed;
use crate::sink::video::live::camera::Camera;
use crate::sink::video::live::shown::Shown;
use crate::types::{Codec, EncodedUnit};

/// Pictures that may wait for the encoder, as the pipeline's line has it.
const WAITING: u64 = 2;

/// A running encoder. Dropped, it is taken down.
pub struct Encoding {
    pipeline: Pipeline,
    source: AppSrc,
    bus: Bus,
    caps: Option<Caps>,
}

impl Encoding {
    /// By `encoder`, a line of elements. Its video has the size of the camera's pictures of the moment up to its end; others are
    /// scaled into it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(camera: &Arc<Camera>, encoder: &str) -> Result<Self> {
        // Bounded by number: the queue's own bound of bytes is less than a picture. Behind the encoder nothing waits: each picture
        // is taken as it comes.
        let line = format!(
            "appsrc name=pictures is-live=true do-timestamp=true format=time block=false max-buffers=2 max-bytes=0 leaky-type=downstream \
             ! videoconvert ! videoscale add-borders=true ! capsfilter name=canvas ! {encoder} ! h264parse config-interval=-1 \
             ! video/x-h264,stream-format=byte-stream,alignment=au ! appsink name=units sync=false enable-last-sample=false"
        );
        let name = format!("live-{}", camera.id());
        let failed = || format!("the encoder of {} does not start", camera.id());
        let strange = || Error::new(Kind::Pipeline, failed());
        let pipeline = gstreamer::parse::launch(&line).context(Kind::Pipeline, failed)?;
        let pipeline = pipeline.downcast::<Pipeline>().map_err(|_| strange())?;
        pipeline.set_property("name", &name);
        let by_name = |name| pipeline.by_name(name).ok_or_else(strange);
        let source = by_name("pictures")?.downcast::<AppSrc>().map_err(|_| strange())?;
        let sink = by_name("units")?.downcast::<AppSink>().map_err(|_| strange())?;
        by_name("canvas")?.set_property("caps", camera.canvas());
        let mut units = Units { camera: camera.clone(), caps: None, zero: None };
        let take = move |sink: &AppSink| {
            units.take(sink).ok_or(FlowError::Error)?;
            Ok(FlowSuccess::Ok)
        };
        sink.set_callbacks(AppSinkCallbacks::builder().new_sample(take).build());
        let bus = pipeline.bus().ok_or_else(strange)?;
        let encoding = Self { pipeline, source, bus, caps: None };
        if encoding.pipeline.set_state(State::Playing).is_err() {
            return Err(encoding.fault().map_or_else(strange, |why| strange().because(why)));
        }
        Ok(encoding)
    }

    /// Takes a picture to be encoded. Never blocks: where the encoder does not keep up, the oldest is lost; then the answer is
    /// `false`.
    ///
    /// # Errors
    /// When the encoder has failed.
    pub fn push(&mut self, picture: &Shown) -> Result<bool> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        let ended = || Error::new(Kind::Pipeline, "the encoder takes no picture");
        let caps = picture.caps().map_err(|error| ended().because(error))?;
        if self.caps.as_ref() != Some(&caps) {
            self.source.set_caps(Some(&caps));
            self.caps = Some(caps);
        }
        let full = self.source.current_level_bytes() >= WAITING * picture.buffer().size() as u64;
        self.source.push_buffer(picture.buffer().clone()).map_err(|error| ended().because(error))?;
        Ok(!full)
    }

    /// Has the next picture be one that needs no other.
    pub fn keyframe(&self) {
        self.source.send_event(DownstreamForceKeyUnitEvent::builder().all_headers(true).build());
    }

    fn fault(&self) -> Option<Error> {
        feed::fault(&self.pipeline, &self.bus)
    }
}

impl Drop for Encoding {
    fn drop(&mut self) {
        feed::tear_down(&self.pipeline);
    }
}

/// What comes out, on its way to the viewers.
struct Units {
    camera: Arc<Camera>,
    /// The format as caps and as text.
    caps: Option<(Caps, Arc<str>)>,
    /// The moment that times count from.
    zero: Option<Instant>,
}

impl Units {
    fn take(&mut self, sink: &AppSink) -> Option<()> {
        let sample = sink.pull_sample().ok()?;
        let (buffer, caps, now) = (sample.buffer()?, sample.caps()?, Instant::now());
        // Encoders may shift their times, and say by how much in the segment.
        let segment = sample.segment()?.downcast_ref::<ClockTime>()?;
        let time = Duration::from(segment.to_running_time(buffer.pts()?)?);
        let running = sink.current_running_time().map_or(time, Duration::from);
        let connected = *self.zero.get_or_insert_with(|| now.checked_sub(running).unwrap_or(now));
        let text = match &self.caps {
            Some((known, text)) if known.as_ref() == caps => text.clone(),
            _ => {
                let text: Arc<str> = caps.to_string().into();
                self.caps = Some((caps.to_owned(), text.clone()));
                text
            }
        };
        self.camera.audience.publish(&EncodedUnit {
            codec: Codec::H264,
            caps: text,
            bytes: buffer.map_readable().ok()?.as_slice().into(),
            key: !buffer.flags().contains(gstreamer::BufferFlags::DELTA_UNIT),
            time,
            dts: None,
            duration: None,
            connected,
            received: now,
            captured: Utc::now(),
        });
        Some(())
    }
}
