//! A decoder element driven from outside any pipeline: what is pushed into it is decoded on the caller's thread, and the
//! pictures are there when the call returns. So a decoder costs no thread and no queue, and many cameras can share one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use gstreamer::event::{Caps as CapsEvent, Eos, Segment as SegmentEvent, SegmentDone, StreamStart};
use gstreamer::prelude::*;
use gstreamer::{Buffer, Bus, Caps, ClockTime, Element, ElementFactory, EventView, FlowSuccess, FormattedSegment, MessageView};
use gstreamer::{Pad, PadDirection, Segment, State};
use gstreamer_video::VideoInfo;

use crate::base::sync;
use crate::source::unit::Unit;

/// Pictures that wait to be taken; a decoder that gives more at once loses the oldest.
const WAITING: usize = 64;

/// Hardware shows its last pictures a moment after it was asked to.
const LINGER: Duration = Duration::from_secs(1);

/// A picture as it leaves a decoder.
pub struct Picture {
    /// Its pixels.
    pub buffer: Buffer,
    /// Their shape.
    pub info: VideoInfo,
}

/// A running decoder.
pub struct Decoder {
    factory: ElementFactory,
    element: Element,
    feed: Pad,
    shown: Pad,
    bus: Bus,
    out: Arc<Out>,
    caps: Option<Caps>,
    segment: Option<Segment>,
}

/// Where pictures arrive: on the pushing thread, or on one of the decoder's own.
#[derive(Default)]
struct Out {
    state: Mutex<Shown>,
    came: Condvar,
}

#[derive(Default)]
struct Shown {
    info: Option<VideoInfo>,
    pictures: VecDeque<Picture>,
    ended: bool,
}

impl Out {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        sync::lock(&self.state)
    }
}

impl Decoder {
    /// Starts one; `threads` bounds its own, where it has any.
    ///
    /// # Errors
    /// A sentence, where it cannot be made or refuses to start, as hardware does that is not there.
    pub fn start(factory: &ElementFactory, threads: Option<i32>) -> Result<Self, String> {
        let refuse = |why: &str| format!("decoder {} {why}", factory.name());
        let element = factory.create().build().map_err(|_| refuse("cannot be made"))?;
        if let Some(threads) = threads
            && element.find_property("max-threads").is_some()
        {
            element.set_property("max-threads", threads);
        }
        let bus = Bus::new();
        element.set_bus(Some(&bus));
        let out = Arc::<Out>::default();
        let feed = Pad::builder(PadDirection::Src).name("feed").build();
        let shown = receiver(&out).ok_or_else(|| refuse("cannot be linked"))?;
        let ends = element.static_pad("sink").zip(element.static_pad("src"));
        let (sink, src) = ends.ok_or_else(|| refuse("has no pads"))?;
        let decoder = Self { factory: factory.clone(), element, feed, shown, bus, out, caps: None, segment: None };
        decoder.shown.set_active(true).and_then(|()| decoder.feed.set_active(true)).map_err(|_| refuse("cannot be linked"))?;
        decoder.feed.link(&sink).and_then(|_| src.link(&decoder.shown)).map_err(|_| refuse("cannot be linked"))?;
        decoder.element.set_state(State::Playing).map_err(|_| decoder.complaint().unwrap_or_else(|| refuse("does not start")))?;
        decoder.feed.push_event(StreamStart::new("pictures"));
        Ok(decoder)
    }

    /// What it was made by.
    pub fn factory(&self) -> &ElementFactory {
        &self.factory
    }

    /// Decodes one unit; its picture may come now, with a later unit, or at `drain`.
    ///
    /// # Errors
    /// A sentence, where the decoder has given up: it is to be made anew.
    pub fn push(&mut self, unit: &Unit) -> Result<(), String> {
        if self.caps.as_ref() != Some(&unit.caps) {
            self.caps = Some(unit.caps.clone());
            self.feed.push_event(CapsEvent::new(&unit.caps));
        }
        if self.segment.as_ref() != Some(&unit.segment) {
            self.segment = Some(unit.segment.clone());
            self.feed.push_event(SegmentEvent::new(&unit.segment));
        }
        let pushed = self.feed.push(unit.buffer.clone());
        match (self.complaint(), pushed) {
            (Some(complaint), _) => Err(complaint),
            (None, Ok(_)) => Ok(()),
            (None, Err(error)) => Err(format!("decoder {} gave up: {error}", self.factory.name())),
        }
    }

    /// Decodes a unit that needs no other, and returns its picture at once. A decoder otherwise holds it back where later
    /// ones might have to be shown before it.
    ///
    /// # Errors
    /// As `push`.
    pub fn decode(&mut self, unit: &Unit) -> Result<Option<Picture>, String> {
        self.out.lock().pictures.clear();
        // Times of other cameras mean nothing here; without any, no picture is clipped or late.
        let mut unit = Unit { segment: FormattedSegment::<ClockTime>::new().upcast(), ..unit.clone() };
        let buffer = unit.buffer.make_mut();
        buffer.set_pts(ClockTime::ZERO);
        buffer.set_dts(ClockTime::ZERO);
        self.push(&unit)?;
        self.feed.push_event(SegmentDone::new(ClockTime::ZERO));
        let deadline = Instant::now() + LINGER;
        let mut shown = self.out.lock();
        while shown.pictures.is_empty() && self.is_patient() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            shown = sync::wait_timeout(&self.out.came, shown, left);
        }
        Ok(shown.pictures.drain(..).next())
    }

    /// Software has shown all it will by the time it returns.
    fn is_patient(&self) -> bool {
        !self.factory.name().starts_with("avdec_") && self.factory.klass().contains("Hardware")
    }

    /// The pictures that have come.
    pub fn take(&self) -> VecDeque<Picture> {
        std::mem::take(&mut self.out.lock().pictures)
    }

    /// Has it show all that it still holds.
    pub fn drain(&self) {
        self.feed.push_event(Eos::new());
        let deadline = Instant::now() + LINGER;
        let mut shown = self.out.lock();
        while !shown.ended && Instant::now() < deadline {
            shown = sync::wait_timeout(&self.out.came, shown, LINGER / 10);
        }
    }

    /// What it has posted as an error.
    fn complaint(&self) -> Option<String> {
        let mut complaint = None;
        while let Some(message) = self.bus.pop() {
            if let MessageView::Error(error) = message.view() {
                complaint = Some(format!("decoder {} failed: {}", self.factory.name(), error.error().message().trim_end_matches('.')));
            }
        }
        complaint
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        if self.element.set_state(State::Null).is_err() {
            tracing::debug!(decoder = %self.factory.name(), "a decoder refused to stop");
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

/// The pad behind a decoder. It takes pictures in this machine's memory only, for they are read here.
fn receiver(out: &Arc<Out>) -> Option<Pad> {
    let caps = Caps::builder("video/x-raw").build();
    let template = gstreamer::PadTemplate::new("sink", PadDirection::Sink, gstreamer::PadPresence::Always, &caps).ok()?;
    let (pictures, events) = (out.clone(), out.clone());
    let pad = Pad::builder_from_template(&template)
        .name("pictures")
        .chain_function(move |_, _, buffer| {
            let mut shown = pictures.lock();
            if let Some(info) = shown.info.clone() {
                if shown.pictures.len() == WAITING {
                    shown.pictures.pop_front();
                }
                shown.pictures.push_back(Picture { buffer, info });
            }
            drop(shown);
            pictures.came.notify_all();
            Ok(FlowSuccess::Ok)
        })
        .event_function(move |_, _, event| {
            match event.view() {
                EventView::Caps(caps) => events.lock().info = VideoInfo::from_caps(caps.caps()).ok(),
                EventView::Eos(_) => {
                    events.lock().ended = true;
                    events.came.notify_all();
                }
                _ => {}
            }
            true
        })
        .build();
    Some(pad)
}
