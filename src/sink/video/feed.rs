//! One running pipeline fed with pictures: `appsrc ! videoconvert ! videoscale ! caps ! (tail)`.
//!
//! The size is that of the first picture; later ones of another size are letterboxed into it, for few muxers and
//! encoders bear a change.

use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use gstreamer::{Bin, Bus, ClockTime, Element, ElementFactory, MessageType, MessageView, Pipeline};
use gstreamer_app::AppSrc;
use gstreamer_video::DownstreamForceKeyUnitEvent;

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::redact;
use crate::base::thread;
use crate::sink::Picture;
use crate::sink::video::raw::{self, Timeline};

/// Pictures that may wait in the pipeline.
const WAITING: u64 = 2;

/// How long a picture is offered to a full pipeline.
const PATIENCE: Duration = Duration::from_secs(2);

/// A pipeline that took nothing for so long is given up.
const STUCK: Duration = Duration::from_secs(10);

/// For the end of a file to reach the disk.
const FINISH: Duration = Duration::from_secs(5);

/// For a pipeline to reach NULL; then it is left behind.
const TEARDOWN: Duration = Duration::from_secs(5);

/// The time of a video between keyframes.
const KEYFRAMES: Duration = Duration::from_secs(2);

/// How a feed makes its video.
pub struct Shape {
    /// The pipeline's name.
    pub name: String,
    /// Width and height in pixels.
    pub canvas: (u32, u32),
    /// The raw format the tail gets.
    pub format: &'static str,
    /// Times: those of arrival, as a live stream has them, or those of capture, as a file wants them.
    pub live: bool,
}

/// A running pipeline.
pub struct Feed {
    pipeline: Pipeline,
    source: AppSrc,
    bus: Bus,
    live: bool,
    size: Option<(u32, u32)>,
    timeline: Timeline,
    keyframe: Option<Duration>,
    taken: Instant,
}

/// Why a picture was not taken.
pub enum Refusal {
    /// The pipeline is full but may recover.
    Full(Error),
    /// The pipeline is at its end.
    Broken(Error),
}

impl Feed {
    /// Builds and starts `shape` into `tail`.
    ///
    /// # Errors
    /// When an element is missing or refuses to start, with the reason it gave.
    pub fn start(shape: Shape, tail: Bin) -> Result<Self> {
        let Shape { name, canvas: (width, height), format, live } = shape;
        let pipeline = Pipeline::with_name(&name);
        let source = AppSrc::builder().format(gstreamer::Format::Time).is_live(live).do_timestamp(live).block(false).build();
        let make = |name: &str| {
            ElementFactory::make(name)
                .build()
                .context(Kind::Pipeline, || format!("gstreamer element {name} is missing; install gstreamer1.0-plugins-base"))
        };
        let (convert, scale, filter) = (make("videoconvert")?, make("videoscale")?, make("capsfilter")?);
        scale.set_property("add-borders", true);
        let mut caps = raw::caps(width, height);
        caps.make_mut().set("format", format);
        filter.set_property("caps", caps);
        let elements: [&Element; 5] = [source.upcast_ref(), &convert, &scale, &filter, tail.upcast_ref()];
        pipeline.add_many(elements).context(Kind::Pipeline, || format!("cannot build {name}"))?;
        Element::link_many(elements).context(Kind::Pipeline, || format!("{name} does not take raw video at its start"))?;
        let bus = pipeline.bus().ok_or_else(|| Error::new(Kind::Pipeline, "a pipeline has no bus"))?;
        let (timeline, taken) = (Timeline::default(), Instant::now());
        let feed = Self { pipeline, source, bus, live, size: None, timeline, keyframe: None, taken };
        if feed.pipeline.set_state(gstreamer::State::Playing).is_err() {
            let silent = || Error::new(Kind::Pipeline, format!("{name} did not start"));
            return Err(feed.fault().unwrap_or_else(silent));
        }
        Ok(feed)
    }

    /// Hands over a picture; waits two seconds at most for a place.
    pub fn push(&mut self, picture: &Picture) -> Result<(), Refusal> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(fault) = self.fault() {
                return Err(Refusal::Broken(fault));
            }
            if self.source.current_level_bytes() < WAITING * picture.image.as_raw().len() as u64 {
                break;
            }
            let now = Instant::now();
            if now >= deadline {
                let stuck = now.duration_since(self.taken);
                let error = Error::new(Kind::Pipeline, format!("{} took no picture for {} s", self.pipeline.name(), stuck.as_secs()));
                return Err(if stuck >= STUCK { Refusal::Broken(error) } else { Refusal::Full(error) });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let size = picture.image.dimensions();
        if self.size != Some(size) {
            self.source.set_caps(Some(&raw::caps(size.0, size.1)));
            self.size = Some(size);
        }
        let mut buffer = raw::buffer(&picture.image);
        if !self.live {
            self.stamp(&mut buffer, picture);
        }
        let broken = |flow: gstreamer::FlowError| Refusal::Broken(Error::new(Kind::Pipeline, format!("the pipeline has ended: {flow}")));
        let pushed = self.source.push_buffer(buffer);
        self.taken = Instant::now();
        pushed.map(drop).map_err(|flow| self.fault().map_or_else(|| broken(flow), Refusal::Broken))
    }

    /// Sets a picture's time, and asks for a keyframe ahead of it every two seconds of video: counted in frames they
    /// would be minutes apart where looks are rare, and a file ends readable at a keyframe.
    fn stamp(&mut self, buffer: &mut gstreamer::Buffer, picture: &Picture) {
        let (time, shown) = self.timeline.step(picture.captured);
        if let Some(buffer) = buffer.get_mut() {
            let clock = |d: Duration| ClockTime::from_mseconds(u64::try_from(d.as_millis()).unwrap_or(u64::MAX / 2_000_000));
            buffer.set_pts(clock(time));
            buffer.set_duration(clock(shown));
        }
        if self.keyframe.is_none_or(|last| time - last >= KEYFRAMES) {
            if self.keyframe.is_some() {
                self.source.send_event(DownstreamForceKeyUnitEvent::builder().all_headers(true).build());
            }
            self.keyframe = Some(time);
        }
    }

    /// Ends the video and waits for its end to be written.
    ///
    /// # Errors
    /// When that fails or takes over five seconds.
    pub fn finish(self) -> Result<()> {
        // A pipeline that has ended already says so on the bus.
        self.source.end_of_stream().map(drop).unwrap_or_default();
        finished(&self.pipeline, &self.bus)
    }

    /// What the pipeline complained of since last asked.
    fn fault(&self) -> Option<Error> {
        fault(&self.pipeline, &self.bus)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        tear_down(&self.pipeline);
    }
}

/// Waits until a pipeline that was told of the end has written it.
///
/// # Errors
/// When that fails or takes over five seconds.
pub fn finished(pipeline: &Pipeline, bus: &Bus) -> Result<()> {
    let name = pipeline.name();
    let ends = [MessageType::Eos, MessageType::Error];
    let message = bus.timed_pop_filtered(ClockTime::from_nseconds(FINISH.as_nanos() as u64), &ends);
    match message.as_ref().map(|message| message.view()) {
        Some(MessageView::Eos(_)) => Ok(()),
        Some(MessageView::Error(error)) => Err(sentence(&name, error)),
        _ => Err(Error::new(Kind::Pipeline, format!("{name} was not complete within {} s", FINISH.as_secs()))),
    }
}

/// What a pipeline complained of since last asked.
pub fn fault(pipeline: &Pipeline, bus: &Bus) -> Option<Error> {
    let message = bus.pop_filtered(&[MessageType::Error, MessageType::Eos])?;
    Some(match message.view() {
        MessageView::Error(error) => sentence(&pipeline.name(), error),
        _ => Error::new(Kind::Pipeline, format!("{} ended by itself", pipeline.name())),
    })
}

/// To NULL in a thread of its own: a network or disk that hangs would hold the sink's thread up.
pub fn tear_down(pipeline: &Pipeline) {
    let pipeline = pipeline.clone();
    let name = pipeline.name();
    let stopping = thread::spawn(format!("stop-{name}"), move || {
        if pipeline.set_state(gstreamer::State::Null).is_err() {
            tracing::debug!(pipeline = %pipeline.name(), "the pipeline refused to stop");
        }
    });
    if !stopping.is_ok_and(|thread| thread.join_until(Instant::now() + TEARDOWN)) {
        tracing::warn!(pipeline = %name, "a pipeline did not stop in time and was left behind");
    }
}

/// An ERROR message as a sentence. It may name where a stream goes, credentials or
/// a stream's key included, so nothing of an address is kept.
fn sentence(name: &str, error: &gstreamer::message::Error) -> Error {
    let element = error.src().map(|src| src.name().to_string()).unwrap_or_default();
    let detail = error.debug().and_then(|debug| debug.lines().last().map(str::to_owned)).unwrap_or_default();
    let detail = if detail.is_empty() || detail.ends_with(':') { String::new() } else { format!(" ({})", detail.trim()) };
    let said = format!("{name}: {element}: {}{detail}", error.error().message().trim_end_matches('.'));
    Error::new(Kind::Pipeline, redact::addresses(&said))
}
