//! The user's own `gst-launch` fragment in place of a URI: a chain of elements from a source to raw video.

use gstreamer::prelude::*;
use gstreamer::{Bin, Caps, Element, GhostPad, Pad, PadDirection, PadPresence, ParseError, ParseFlags, glib};

use crate::base::error::{Context, Error, Kind, Result};
use crate::source::init;

/// Checks a fragment without running it: its syntax, that its elements are installed, that it begins with a source and
/// ends in raw video.
///
/// # Errors
/// A sentence on what is wrong. It repeats no value of a property and no address, which may hold credentials.
pub fn check_fragment(fragment: &str) -> Result<()> {
    build(fragment).map(drop)
}

/// Builds a fragment, in state NULL, as a bin whose one pad `src` gives raw video.
///
/// # Errors
/// As `check_fragment`.
pub fn build(fragment: &str) -> Result<Bin> {
    init()?;
    // GStreamer would make ghosts of the open pads too, but also of the sink pad that a later pad of a demuxer is to be
    // linked to, and of one pad only where several are open.
    let element = gstreamer::parse::bin_from_description_full(fragment, false, None, ParseFlags::FATAL_ERRORS)
        .map_err(|error| refuse(&complaint(&error, fragment)))?;
    let bin = element.downcast::<Bin>().map_err(|_| refuse("is no chain of elements"))?;
    let elements: Vec<Element> = bin.iterate_elements().into_iter().flatten().collect();
    if bin.iterate_sources().into_iter().flatten().next().is_none() {
        return Err(refuse("has no source; must begin with an element such as rtspsrc or v4l2src"));
    }
    let unfed: Vec<Pad> = open(&elements, PadDirection::Sink).collect();
    if !unfed.is_empty() && !elements.iter().any(feeds_later) {
        return Err(refuse("has an input that nothing is linked to; must have none"));
    }
    let ends: Vec<Pad> = open(&elements, PadDirection::Src).collect();
    let [end] = ends.as_slice() else {
        let why = match ends.len() {
            0 => "has no open output; must end in one, without a sink, in an element such as videoconvert".to_owned(),
            several => format!("has {several} open outputs; must have one"),
        };
        return Err(refuse(&why));
    };
    if !end.query_caps(None).can_intersect(&Caps::new_empty_simple("video/x-raw")) {
        return Err(refuse("does not end in raw video in ordinary memory; must end in a decoder or an element such as videoconvert"));
    }
    let cannot = || "the fragment's output cannot be reached";
    let ghost = GhostPad::builder_with_target(end).context(Kind::Pipeline, cannot)?.name("src").build();
    bin.add_pad(&ghost).context(Kind::Pipeline, cannot)?;
    Ok(bin)
}

fn refuse(why: &str) -> Error {
    Error::new(Kind::Config, format!("the fragment {why}"))
}

/// Pads of this direction that are there and have no peer.
fn open(elements: &[Element], direction: PadDirection) -> impl Iterator<Item = Pad> {
    elements.iter().flat_map(|element| element.pads()).filter(move |pad| pad.direction() == direction && !pad.is_linked())
}

/// Whether an element will have pads that only its stream brings, as a demuxer's: what follows it is linked then. One
/// whose own input is open waits itself, and feeds nobody unless another does.
fn feeds_later(element: &Element) -> bool {
    let later = element
        .pad_template_list()
        .iter()
        .any(|template| template.direction() == PadDirection::Src && template.presence() == PadPresence::Sometimes);
    later && element.sink_pads().iter().all(|pad| pad.is_linked())
}

/// What GStreamer's parser complains of. Its own words quote the values of properties, so only names are taken from them.
fn complaint(error: &glib::Error, fragment: &str) -> String {
    // The odd ones are in quotes, whatever the language.
    let quoted: Vec<&str> = error.message().split('"').skip(1).step_by(2).collect();
    let name = |index: usize| quoted.get(index).copied().filter(|text| is_name(text));
    match error.kind::<ParseError>() {
        Some(ParseError::Syntax) => "has a syntax error".to_owned(),
        Some(ParseError::Empty | ParseError::EmptyBin) => "is empty, or a bin in it is; must be a chain of elements".to_owned(),
        // A name that follows no `!` may be the rest of a password with a space in it.
        Some(ParseError::NoSuchElement) => match name(0).filter(|name| fragment.split('!').any(|part| first_word(part) == *name)) {
            Some(element) => format!("names the element {element}, which is not installed"),
            None => "names an element that is not installed, or holds a stray word".to_owned(),
        },
        Some(ParseError::NoSuchProperty) => match (name(0), name(1)) {
            (Some(property), Some(element)) => format!("sets {property}, which is no property of {element}"),
            _ => "sets a property that its element has not".to_owned(),
        },
        Some(ParseError::CouldNotSetProperty) => match (name(0), name(1)) {
            (Some(property), Some(element)) => format!("sets {property} of {element} to a value that it does not take"),
            _ => "sets a property to a value that it does not take".to_owned(),
        },
        Some(ParseError::Link) => "links elements that do not fit together, or a pad that is not there".to_owned(),
        _ => "cannot be built".to_owned(),
    }
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// Whether a text looks like the name of an element or a property.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_chains_are_taken_and_end_in_one_pad() {
        for good in [
            "videotestsrc",
            "videotestsrc is-live=true ! video/x-raw,width=320,height=240 ! videoconvert",
            "rtspsrc location=rtsp://cam/1 ! rtph264depay ! avdec_h264 ! videoconvert",
            "filesrc location=/nowhere.mp4 ! decodebin ! videoconvert",
            "uridecodebin uri=http://cam/1 ! queue",
            "videotestsrc ! tee name=t ! queue ! fakesink t. ! queue",
        ] {
            let bin = build(good).unwrap_or_else(|error| panic!("{good}: {}", error.chain()));
            assert_eq!(bin.pads().len(), 1, "{good}");
            assert!(bin.static_pad("src").is_some() && bin.num_sink_pads() == 0, "{good}");
        }
    }

    #[test]
    fn others_are_refused_with_what_is_wrong() {
        for (bad, why) in [
            ("", "is empty"),
            ("videotestsrc ! ! videoconvert", "has a syntax error"),
            ("videotestsrc ! no-such-element", "names the element no-such-element, which is not installed"),
            ("videotestsrc wide=3 ! videoconvert", "sets wide, which is no property of videotestsrc"),
            ("videotestsrc pattern=nice", "sets pattern of videotestsrc to a value that it does not take"),
            ("videotestsrc ! audioconvert", "links elements that do not fit together"),
            ("videoconvert", "has no source"),
            ("decodebin ! videoconvert", "has no source"),
            ("videotestsrc ! compositor name=c ! videoconvert  videoconvert ! c.", "has an input that nothing is linked to"),
            ("videotestsrc ! fakesink", "has no open output"),
            ("filesrc location=/nowhere.mp4 ! decodebin", "has no open output"),
            ("videotestsrc  videotestsrc", "has 2 open outputs; must have one"),
            ("videotestsrc ! x264enc", "does not end in raw video"),
            ("audiotestsrc", "does not end in raw video"),
        ] {
            let error = check_fragment(bad).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.chain().starts_with(&format!("the fragment {why}")), "{bad}: {}", error.chain());
        }
    }

    #[test]
    fn no_credential_is_told() {
        for secret in [
            "rtspsrc location=rtsp://bob:hunter2@cam/1 user-pw=hunter2 latency=hunter2 ! fakesink",
            "rtspsrc user-pw=correct hunter2 ! rtph264depay ! avdec_h264",
            "rtspsrc user-pw=\"correct hunter2 ! rtph264depay ! avdec_h264",
            "rtspsrc no-such=hunter2 ! fakesink",
            "nosuch://bob:hunter2@cam/1 ! videoconvert",
            "rtsp://bob:hunter2@cam/1 ! fakesink",
        ] {
            let Err(error) = check_fragment(secret) else { panic!("{secret}") };
            let told = error.chain();
            assert!(!told.contains("hunter2") && !told.contains("bob"), "{told}");
        }
    }
}
