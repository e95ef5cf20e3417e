//! A clip's encoded pictures in memory, and who plays them.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gstreamer::prelude::*;
use gstreamer::{Buffer, BufferFlags, Caps, ClockTime, Element, MessageType, MessageView, Pipeline};
use gstreamer_app::{AppSink, AppSinkCallbacks, AppSrc, AppSrcCallbacks};

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::sync;

/// The most that is held in memory.
const MOST: usize = 1 << 30;

/// A file that has not been read after so long never will be.
const PATIENCE: ClockTime = ClockTime::from_seconds(60);

/// How long a clip of a single picture lasts.
const ALONE: Duration = Duration::from_millis(40);

/// A clip: its access units, the first one a keyframe, with parameter sets before each keyframe. The units' parts have
/// lengths before them and not start codes, which the payloader of every viewer would search for.
pub struct Clip {
    caps: Caps,
    payloader: &'static str,
    units: Vec<Unit>,
    /// From the first unit's times to those of the first one of the next round.
    lasts: Duration,
}

struct Unit {
    /// Without times; its memory is shared by all who play it.
    buffer: Buffer,
    times: Times,
}

/// After the clip's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    /// When the camera took the picture.
    taken: Duration,
    /// When an encoder could have sent it: at once, but later where pictures are sent in another order than taken.
    sent: Duration,
}

/// What the reading threads have found so far.
#[derive(Default)]
struct Found {
    caps: Option<Caps>,
    /// Each with the time at which it is shown.
    units: Vec<(Buffer, Duration)>,
    bytes: usize,
}

impl Clip {
    /// Reads a whole file.
    ///
    /// # Errors
    /// When it cannot be read, has no H.264 or H.265 video, or is too large.
    pub fn read(file: &Path) -> Result<Self> {
        let name = file.display();
        File::open(file).context(Kind::Input, || format!("--clip {name} cannot be read"))?;
        let found = Arc::new(Mutex::new(Found::default()));
        let pipeline = pipeline(file, &found)?;
        let ended = run(&pipeline);
        // Takes down what still holds the other end of `found`.
        let stopped = pipeline.set_state(gstreamer::State::Null);
        let Found { caps, units, bytes } = std::mem::take(&mut *sync::lock(&found));
        if bytes > MOST {
            return Err(Error::new(Kind::Input, format!("--clip {name} has more than {} MiB of video; must fit into memory", MOST >> 20)));
        }
        let payloader = match caps.as_ref().and_then(|caps| caps.structure(0)).map(|structure| structure.name().as_str()) {
            Some("video/x-h264") => "rtph264pay",
            Some("video/x-h265") => "rtph265pay",
            _ => {
                let sentence = format!("--clip {name} has no H.264 or H.265 video");
                return Err(ended.err().into_iter().fold(Error::new(Kind::Input, sentence), Error::because));
            }
        };
        ended
            .and_then(|()| stopped.context(Kind::Pipeline, || "the reader cannot be stopped"))
            .context(Kind::Input, || format!("--clip {name} cannot be read to its end"))?;
        let whole: Vec<_> = units.into_iter().skip_while(|(buffer, _)| buffer.flags().contains(BufferFlags::DELTA_UNIT)).collect();
        if whole.is_empty() {
            return Err(Error::new(Kind::Input, format!("--clip {name} has no keyframe with a time")));
        }
        let (times, lasts) = schedule(&whole.iter().map(|(_, shown)| *shown).collect::<Vec<_>>());
        let units = whole.into_iter().zip(times).map(|((buffer, _), times)| Unit { buffer, times }).collect();
        Ok(Self { caps: caps.unwrap_or_else(Caps::new_any), payloader, units, lasts })
    }

    /// The element that makes RTP packets of the units.
    pub fn payloader(&self) -> &'static str {
        self.payloader
    }
}

/// `filesrc ! parsebin`, its first H.264 or H.265 stream parsed into whole access units.
fn pipeline(file: &Path, found: &Arc<Mutex<Found>>) -> Result<Pipeline> {
    let failed = || "the clip's reader cannot be built";
    let make = |name: &'static str| {
        let element = gstreamer::ElementFactory::make(name).build();
        element.context(Kind::Pipeline, || format!("gstreamer element {name} is missing; install gstreamer1.0-plugins-base"))
    };
    let (pipeline, source, parts) = (Pipeline::new(), make("filesrc")?, make("parsebin")?);
    source.set_property("location", file);
    let form = |codec: &str, form: &str| gstreamer::Structure::builder(codec).field("stream-format", form).field("alignment", "au").build();
    let caps = Caps::builder_full().structure(form("video/x-h264", "avc")).structure(form("video/x-h265", "hvc1")).build();
    let sink = AppSink::builder().caps(&caps).sync(false).enable_last_sample(false).build();
    let found = found.clone();
    let take = move |sink: &AppSink| {
        let sample = sink.pull_sample().map_err(|_| gstreamer::FlowError::Eos)?;
        sync::lock(&found).take(&sample)
    };
    sink.set_callbacks(AppSinkCallbacks::builder().new_sample(take).build());
    pipeline.add_many([&source, &parts, sink.upcast_ref()]).context(Kind::Pipeline, failed)?;
    source.link(&parts).context(Kind::Pipeline, failed)?;
    let (weak, out) = (pipeline.downgrade(), sink.downgrade());
    parts.connect_pad_added(move |_, pad| {
        let (Some(pipeline), Some(sink)) = (weak.upgrade(), out.upgrade()) else { return };
        if plug(&pipeline, pad, sink.upcast_ref()).is_none() {
            tracing::debug!(pad = %pad.name(), "a stream of the clip was left out");
        }
    });
    let (weak, out) = (pipeline.downgrade(), sink.downgrade());
    // A sink that nothing is linked to never comes to an end.
    parts.connect_no_more_pads(move |parts| {
        let unlinked = out.upgrade().and_then(|sink| sink.static_pad("sink")).is_some_and(|pad| !pad.is_linked());
        if let Some(bus) = weak.upgrade().and_then(|pipeline| pipeline.bus()).filter(|_| unlinked) {
            bus.post(gstreamer::message::Eos::builder().src(parts).build()).ok();
        }
    });
    Ok(pipeline)
}

/// Links a stream by way of its parser; `None` where it is none of ours.
fn plug(pipeline: &Pipeline, pad: &gstreamer::Pad, sink: &Element) -> Option<()> {
    let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
    let parser = match caps.structure(0)?.name().as_str() {
        "video/x-h264" => "h264parse",
        "video/x-h265" => "h265parse",
        _ => return None,
    };
    if sink.static_pad("sink")?.is_linked() {
        return None;
    }
    let parser = gstreamer::ElementFactory::make(parser).property("config-interval", -1).build().ok()?;
    pipeline.add(&parser).ok()?;
    parser.link(sink).ok()?;
    parser.sync_state_with_parent().ok()?;
    pad.link(&parser.static_pad("sink")?).ok().map(drop)
}

/// Until the end of the file or the first error.
fn run(pipeline: &Pipeline) -> Result<()> {
    let bus = pipeline.bus().ok_or_else(|| Error::new(Kind::Internal, "a pipeline has no bus"))?;
    // Where it cannot start an error lies on the bus, and says why.
    pipeline.set_state(gstreamer::State::Playing).ok();
    let end = bus.timed_pop_filtered(PATIENCE, &[MessageType::Eos, MessageType::Error]);
    match end.as_deref().map(gstreamer::MessageRef::view) {
        Some(MessageView::Error(error)) => Err(Error::new(Kind::Pipeline, error.error().to_string())),
        Some(_) => Ok(()),
        None => Err(Error::new(Kind::Pipeline, format!("no end within {} s", PATIENCE.seconds()))),
    }
}

impl Found {
    fn take(&mut self, sample: &gstreamer::Sample) -> Result<gstreamer::FlowSuccess, gstreamer::FlowError> {
        let Some((buffer, shown)) = sample.buffer().and_then(|buffer| Some((buffer, buffer.pts()?))) else {
            return Ok(gstreamer::FlowSuccess::Ok);
        };
        self.caps = self.caps.take().or_else(|| sample.caps_owned());
        // Copied out of the reader's larger blocks, which would be held for as long as one unit of them.
        let bytes = buffer.map_readable().map_err(|_| gstreamer::FlowError::Error)?.to_vec();
        self.bytes += bytes.len();
        if self.bytes > MOST {
            return Err(gstreamer::FlowError::Error);
        }
        let mut unit = Buffer::from_slice(bytes);
        if let Some(unit) = unit.get_mut() {
            unit.set_flags(buffer.flags() & BufferFlags::DELTA_UNIT);
        }
        self.units.push((unit, shown.into()));
        Ok(gstreamer::FlowSuccess::Ok)
    }
}

/// When each unit is taken and sent, by when it is shown, and how long all of them last.
///
/// Files hold no time of capture. A camera sends a picture at once, and with pictures that refer to later ones as soon as
/// those are encoded: units leave in their order at the times of the sorted pictures, all of them late by as much as the
/// one that was overtaken most.
fn schedule(shown: &[Duration]) -> (Vec<Times>, Duration) {
    let mut sorted = shown.to_vec();
    sorted.sort_unstable();
    let (Some(first), Some(last)) = (sorted.first().copied(), sorted.last().copied()) else { return (Vec::new(), ALONE) };
    let late = shown.iter().zip(&sorted).map(|(shown, turn)| shown.saturating_sub(*turn)).max().unwrap_or_default();
    let times = shown.iter().zip(&sorted).map(|(shown, turn)| Times { taken: *shown - first, sent: *turn - first + late }).collect();
    let steps = u32::try_from(shown.len() - 1).unwrap_or(u32::MAX);
    let step = (last - first).checked_div(steps).filter(|step| !step.is_zero()).unwrap_or(ALONE);
    (times, last - first + step)
}

/// Has `source` play the clip for ever, from its start on, as fast as it is asked: whatever comes behind keeps the time.
pub fn feed(clip: &Arc<Clip>, source: &AppSrc) {
    source.set_caps(Some(&clip.caps));
    source.set_format(gstreamer::Format::Time);
    let mut player = Player { clip: clip.clone(), next: 0, begin: Duration::ZERO };
    let give = move |source: &AppSrc, _| {
        // Refused once the viewer has gone.
        source.push_buffer(player.next()).ok();
    };
    source.set_callbacks(AppSrcCallbacks::builder().need_data(give).build());
}

/// One viewer's place in the clip.
struct Player {
    clip: Arc<Clip>,
    next: usize,
    /// Of this round.
    begin: Duration,
}

impl Player {
    fn next(&mut self) -> Buffer {
        let Unit { buffer, times } = &self.clip.units[self.next];
        // The bytes are not copied, only what is told of them.
        let mut buffer = buffer.copy();
        let time = |after: Duration| ClockTime::try_from(self.begin + after).ok();
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(time(times.taken));
            // What paces a stream goes by the decoding time.
            buffer.set_dts(time(times.sent));
        }
        self.next += 1;
        if self.next == self.clip.units.len() {
            (self.next, self.begin) = (0, self.begin + self.clip.lasts);
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduled(shown: &[u64]) -> (Vec<(u64, u64)>, u64) {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (times, lasts) = schedule(&shown.iter().copied().map(Duration::from_millis).collect::<Vec<_>>());
        (times.into_iter().map(|times| (ms(times.taken), ms(times.sent))).collect(), ms(lasts))
    }

    #[test]
    fn pictures_in_order_are_sent_as_they_are_taken() {
        assert_eq!(scheduled(&[1000, 1040, 1080]), (vec![(0, 0), (40, 40), (80, 80)], 120));
        assert_eq!(scheduled(&[7]), (vec![(0, 0)], 40));
        assert_eq!(scheduled(&[7, 7]).1, 40);
    }

    #[test]
    fn pictures_that_refer_to_later_ones_are_sent_after_they_are_taken() {
        // I P B B P B B, shown as I B B P B B P.
        let (times, lasts) = scheduled(&[0, 120, 40, 80, 240, 160, 200]);
        assert_eq!(times, [(0, 80), (120, 120), (40, 160), (80, 200), (240, 240), (160, 280), (200, 320)]);
        assert_eq!(lasts, 280);
    }
}
