//! A decoder that is driven from outside any pipeline: the pictures are there when the call returns, on the caller's thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use gstreamer::event::{Caps as CapsEvent, Segment, StreamStart};
use gstreamer::prelude::*;
use gstreamer::query::Allocation;
use gstreamer::{Buffer, BufferFlags, Bus, Caps, CapsRef, ClockTime, Element, ElementFactory, ElementFactoryType, EventView, FlowSuccess};
use gstreamer::{FormattedSegment, MessageView, Pad, PadDirection, QueryViewMut, Rank, State};
use gstreamer_video::{VideoInfo, VideoMeta};

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::sync;
use crate::sink::video::live::shown::Shown;
use crate::types::EncodedUnit;

/// Pictures that wait to be taken, of one call.
const WAITING: usize = 64;

/// Up to so many pixels one processor decodes thirty pictures a second of; more take several, and a little delay.
const EASY: i32 = 1920 * 1088;

/// A running decoder, in software.
pub struct Decoder {
    element: Element,
    feed: Pad,
    shown: Pad,
    bus: Bus,
    out: Arc<Mutex<Out>>,
    format: Arc<str>,
    connected: Instant,
}

#[derive(Default)]
struct Out {
    info: Option<VideoInfo>,
    pictures: VecDeque<Shown>,
}

impl Decoder {
    /// Starts one for pictures like `unit`.
    ///
    /// # Errors
    /// When none is installed for them, or it does not start.
    pub fn start(unit: &EncodedUnit) -> Result<Self> {
        let caps: Caps = unit.caps.parse().context(Kind::Internal, || "a format is no caps")?;
        let factory = pick(&caps).ok_or_else(|| {
            let name = caps.structure(0).map(|caps| caps.name().to_string()).unwrap_or_default();
            Error::new(Kind::Pipeline, format!("gstreamer has no decoder in software for {name}; live video needs one"))
        })?;
        let failed = || format!("decoder {} does not start", factory.name());
        let element = factory.create().build().context(Kind::Pipeline, failed)?;
        let size = caps.structure(0).and_then(|caps| Some(caps.get::<i32>("width").ok()? * caps.get::<i32>("height").ok()?));
        if size.is_some_and(|size| size <= EASY) && element.find_property("max-threads").is_some() {
            // Several threads decode several pictures at once, and are late by as many.
            element.set_property("max-threads", 1);
        }
        let bus = Bus::new();
        element.set_bus(Some(&bus));
        let out = Arc::<Mutex<Out>>::default();
        let feed = Pad::builder(PadDirection::Src).name("feed").build();
        let shown = receiver(&out)?;
        let ends = element.static_pad("sink").zip(element.static_pad("src"));
        let decoder = Self { element, feed, shown, bus, out, format: unit.caps.clone(), connected: unit.connected };
        let (sink, src) = ends.ok_or_else(|| Error::new(Kind::Pipeline, failed()))?;
        decoder.shown.set_active(true).and_then(|()| decoder.feed.set_active(true)).context(Kind::Pipeline, failed)?;
        decoder.feed.link(&sink).and_then(|_| src.link(&decoder.shown)).context(Kind::Pipeline, failed)?;
        decoder.element.set_state(State::Playing).context(Kind::Pipeline, failed)?;
        decoder.feed.push_event(StreamStart::new("live"));
        decoder.feed.push_event(CapsEvent::new(&caps));
        decoder.feed.push_event(Segment::new(&FormattedSegment::<ClockTime>::new()));
        Ok(decoder)
    }

    /// Whether `unit` goes on where this one is.
    pub fn takes(&self, unit: &EncodedUnit) -> bool {
        self.format == unit.caps && self.connected == unit.connected
    }

    /// Decodes a picture; gives those that are to be shown now.
    ///
    /// # Errors
    /// When the decoder has given up: another one must begin, with a keyframe.
    pub fn push(&mut self, unit: &EncodedUnit) -> Result<VecDeque<Shown>> {
        let mut buffer = Buffer::from_slice(unit.bytes.clone());
        let buffer_mut = buffer.make_mut();
        let clock = |time: Option<std::time::Duration>| time.and_then(|time| ClockTime::try_from(time).ok());
        buffer_mut.set_pts(clock(Some(unit.time)));
        buffer_mut.set_dts(clock(unit.dts));
        if !unit.key {
            buffer_mut.set_flags(BufferFlags::DELTA_UNIT);
        }
        let pushed = self.feed.push(buffer);
        let name = self.element.factory().map(|factory| factory.name()).unwrap_or_default();
        while let Some(message) = self.bus.pop() {
            if let MessageView::Error(error) = message.view() {
                return Err(Error::new(Kind::Pipeline, format!("decoder {name} failed: {}", error.error().message())));
            }
        }
        pushed.context(Kind::Pipeline, || format!("decoder {name} gave up"))?;
        let mut pictures = std::mem::take(&mut sync::lock(&self.out).pictures);
        pictures.retain(|picture| !picture.buffer().flags().contains(BufferFlags::CORRUPTED));
        Ok(pictures)
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        if self.element.set_state(State::Null).is_err() {
            tracing::debug!("a decoder refused to stop");
        }
        // The element holds the bus and the bus its messages, which hold the element.
        self.bus.set_flushing(true);
        self.element.set_bus(None);
        for pad in [&self.feed, &self.shown] {
            if pad.set_active(false).is_err() {
                tracing::debug!("a decoder's pad refused to stop");
            }
        }
    }
}

/// A picture that came as pixels. Boxes are blended into it: the bytes are copied. `None`: its caps do not fit it.
pub fn raw(unit: &EncodedUnit) -> Option<Shown> {
    let caps: Caps = unit.caps.parse().ok()?;
    let info = VideoInfo::from_caps(&caps).ok()?;
    (info.size() <= unit.bytes.len()).then(|| Shown::new(Buffer::from_mut_slice(unit.bytes.to_vec()), info))
}

/// The preferred decoder in software.
fn pick(caps: &CapsRef) -> Option<ElementFactory> {
    let all = ElementFactory::factories_with_type(ElementFactoryType::DECODER, Rank::MARGINAL);
    let software = all.into_iter().filter(|factory| {
        let hardware = factory.klass().contains("Hardware") || ["va", "nv", "v4l2"].iter().any(|prefix| factory.name().starts_with(prefix));
        // Those for pictures with an alpha channel are bins of two decoders, and take any.
        !hardware && !factory.name().ends_with("decodebin") && ["Video", "Image"].iter().any(|kind| factory.klass().contains(kind))
    });
    software.filter(|factory| factory.can_sink_any_caps(caps)).max_by_key(ElementFactory::rank)
}

/// The pad behind the decoder. It takes rows of any length, so that the decoder need not copy what it has decoded.
fn receiver(out: &Arc<Mutex<Out>>) -> Result<Pad> {
    let caps = Caps::builder("video/x-raw").build();
    let template = gstreamer::PadTemplate::new("sink", PadDirection::Sink, gstreamer::PadPresence::Always, &caps)
        .context(Kind::Internal, || "a pad cannot be made")?;
    let (pictures, events) = (out.clone(), out.clone());
    let pad = Pad::builder_from_template(&template)
        .name("pictures")
        .chain_function(move |_, _, buffer| {
            let mut out = sync::lock(&pictures);
            if let Some(info) = out.info.clone() {
                if out.pictures.len() == WAITING {
                    out.pictures.pop_front();
                }
                out.pictures.push_back(Shown::new(buffer, info));
            }
            Ok(FlowSuccess::Ok)
        })
        .event_function(move |_, _, event| {
            if let EventView::Caps(caps) = event.view() {
                sync::lock(&events).info = VideoInfo::from_caps(caps.caps()).ok();
            }
            true
        })
        .query_function(|pad, parent, query| match query.view_mut() {
            QueryViewMut::Allocation(allocation) => {
                let allocation: &mut Allocation = allocation;
                allocation.add_allocation_meta::<VideoMeta>(None);
                true
            }
            _ => gstreamer::Pad::query_default(pad, parent, query),
        })
        .build();
    Ok(pad)
}
