//! The operator's own `gst-launch` fragment, fed with raw video.

use std::collections::BTreeMap;

use gstreamer::prelude::*;
use gstreamer::{Bin, PadDirection};

use crate::base::error::{Context, Error, Kind, Result};
use crate::config::CustomConfig;
use crate::sink::video::feed::{Feed, Shape};
use crate::sink::video::lane::{self, Lane};
use crate::sink::video::{init, raw};
use crate::sink::{Picture, Sink};
use crate::types::CameraId;

/// Feeds one pipeline per camera: `video/x-raw,format=RGB,framerate=0/1` of the first picture's size (made even), live,
/// with the times of arrival. One that fails is built anew with backoff; its pictures count as failed meanwhile.
pub struct CustomSink {
    name: String,
    fragment: String,
    lanes: BTreeMap<CameraId, Lane>,
}

impl CustomSink {
    /// The `index`th custom sink; its name is `custom-<index>`.
    ///
    /// # Errors
    /// When `check_fragment` refuses the fragment.
    pub fn new(index: usize, config: CustomConfig) -> Result<Self> {
        check_fragment(&config.pipeline).context(Kind::Config, || format!("output.custom[{index}].pipeline"))?;
        Ok(Self { name: format!("custom-{index}"), fragment: config.pipeline, lanes: BTreeMap::new() })
    }
}

/// Checks a fragment without running it: its syntax, that its elements are installed, that it takes video at its start
/// and ends in a sink.
///
/// # Errors
/// With what GStreamer's parser says, or which end is open.
pub fn check_fragment(fragment: &str) -> Result<()> {
    init()?;
    build(&fragment.replace("{camera}", "camera")).map(drop)
}

fn build(fragment: &str) -> Result<Bin> {
    // The fragment itself is not repeated: it may hold a password or a stream's key.
    let quoted = || "not a gst-launch fragment";
    let flags = gstreamer::ParseFlags::FATAL_ERRORS;
    let bin = gstreamer::parse::bin_from_description_full(fragment, true, None, flags).context(Kind::Config, quoted)?;
    let bin = bin.downcast::<Bin>().map_err(|_| Error::new(Kind::Config, "the fragment is no chain of elements"))?;
    let refuse = |why: &str| Err(Error::new(Kind::Config, format!("the fragment {why}")));
    let ends: Vec<_> = bin.pads().iter().map(|pad| pad.direction()).collect();
    if ends.contains(&PadDirection::Src) || bin.iterate_sinks().into_iter().flatten().next().is_none() {
        return refuse("does not end in a sink; must end in one such as udpsink or filesink");
    }
    if !ends.contains(&PadDirection::Sink) {
        return refuse("takes no video at its start; must begin with an element such as videoconvert");
    }
    Ok(bin)
}

impl Sink for CustomSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn write(&mut self, picture: &Picture) -> Result<()> {
        let Self { name, fragment, lanes } = self;
        lanes.entry(picture.camera.clone()).or_insert_with(Lane::new).write(picture, |picture| {
            let tail = build(&fragment.replace("{camera}", picture.camera.as_str()))?;
            let name = format!("{name}-{}", picture.camera);
            Feed::start(Shape { name, canvas: raw::canvas(&picture.image), format: "RGB", live: true }, tail)
        })
    }

    fn leave(&mut self, camera: &CameraId) -> Result<()> {
        self.lanes.remove(camera).map_or(Ok(()), Lane::finish)
    }

    fn finish(&mut self) -> Result<()> {
        lane::finish_all(std::mem::take(&mut self.lanes).into_values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_checked_without_running() {
        check_fragment("videoconvert ! x264enc ! mpegtsmux ! udpsink host=127.0.0.1 port=5000").unwrap();
        check_fragment("tee name=t ! queue ! fakesink t. ! queue ! filesink location=/nowhere/{camera}.raw").unwrap();
        for (bad, why) in [
            ("videoconvert ! no-such-element ! fakesink", "no-such-element"),
            ("videoconvert ! fakesink no-such-property=1", "no-such-property"),
            ("videoconvert ! ! fakesink", "syntax error"),
            ("videoconvert ! x264enc", "does not end in a sink"),
            ("videotestsrc ! fakesink", "takes no video"),
            ("", ""),
        ] {
            let error = check_fragment(bad).unwrap_err();
            assert!(error.kind() == Kind::Config && error.chain().contains(why), "{bad}: {}", error.chain());
        }
    }
}
