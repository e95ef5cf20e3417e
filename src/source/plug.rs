//! From whatever a source puts out to encoded pictures one by one: depayloaders, demuxers and parsers, no decoder.
//!
//! Pad and element closures hold weak references only; otherwise pipeline and closure keep each other alive.

use std::sync::{Arc, Weak};

use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer::{Caps, Element, ElementFactory, ElementFactoryType, Pad, PadProbeReturn, PadProbeType, Pipeline, Rank};

use crate::base::error::{Context, Error, Kind, Result};
use crate::source::fault;
use crate::source::tap::Tap;
use crate::source::watch::{Fault, Retry};

/// The parser of a media type, and the form in which its pictures can be decoded apart from their neighbours: whole ones,
/// with start codes, which a parser then leads in with the parameter sets.
const PARSERS: &[(&str, &str, Option<&str>)] = &[
    ("video/x-h264", "h264parse", Some("video/x-h264,stream-format=byte-stream,alignment=au")),
    ("video/x-h265", "h265parse", Some("video/x-h265,stream-format=byte-stream,alignment=au")),
    ("video/mpeg", "mpeg4videoparse", None),
    ("video/x-av1", "av1parse", Some("video/x-av1,stream-format=obu-stream,alignment=tu")),
];

/// Streams that are not pictures.
const UNWANTED: [&str; 7] =
    ["audio/", "text/", "subpicture/", "closedcaption/", "application/x-sub", "application/x-ass", "application/x-ssa"];

/// Makes an element.
///
/// # Errors
/// When it is not installed; the sentence names its Debian package.
pub fn make(name: &str) -> Result<Element> {
    let missing = || format!("gstreamer element {name} is missing; install {}", fault::package_of(name));
    ElementFactory::make(name).build().context(Kind::Pipeline, missing)
}

/// Sets a property that not every supported version has, or whose type is an enumeration; does nothing without it.
pub fn set(element: &Element, name: &str, value: &str) {
    if element.find_property(name).is_some() {
        element.set_property_from_str(name, value);
    }
}

/// Links what a source puts out to the way out. Clones share both.
#[derive(Clone)]
pub struct Plug {
    pipeline: glib::WeakRef<Pipeline>,
    out: glib::WeakRef<Pad>,
    tap: Weak<Tap>,
}

impl Plug {
    /// To the pad `out` of the way out.
    pub fn new(pipeline: &Pipeline, out: &Pad, tap: &Arc<Tap>) -> Self {
        Self { pipeline: pipeline.downgrade(), out: out.downgrade(), tap: Arc::downgrade(tap) }
    }

    /// Links each pad that `element` comes to have.
    pub fn watch(&self, element: &Element) {
        let plug = self.clone();
        element.connect_pad_added(move |_, pad| plug.pad(pad));
    }

    /// Links a pad by its caps: a first stream of pictures; others are left alone. What cannot be linked ends the attempt.
    pub fn pad(&self, pad: &Pad) {
        let (Some(pipeline), Some(out)) = (self.pipeline.upgrade(), self.out.upgrade()) else { return };
        if out.is_linked() {
            return;
        }
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        if let Err(error) = self.link(&pipeline, pad, &caps, &out)
            && let Some(tap) = self.tap.upgrade()
        {
            tap.fail(Fault { reason: error.chain(), retry: Retry::Slowly });
        }
    }

    /// Links bytes of any form, by looking at what they are.
    ///
    /// # Errors
    /// When an element is not installed.
    pub fn bytes(&self, pipeline: &Pipeline, from: &Pad) -> Result<()> {
        let parse = make("parsebin")?;
        // Sound and subtitles come out as they are and stay unlinked.
        parse.connect("autoplug-continue", false, |values| {
            let caps = values.get(2).and_then(|value| value.get::<Caps>().ok());
            let name = caps.map(|caps| media(&caps)).unwrap_or_default();
            Some((!UNWANTED.iter().any(|prefix| name.starts_with(prefix))).to_value())
        });
        pipeline.connect_deep_element_added(|_, _, element| {
            if element.factory().is_some_and(|factory| factory.name() == "multipartdemux") {
                // Without it the demuxer never says "no more pads", and parsebin waits for ever.
                set(element, "single-stream", "true");
            }
        });
        self.watch(&parse);
        add(pipeline, from, &parse)
    }

    fn link(&self, pipeline: &Pipeline, pad: &Pad, caps: &Caps, out: &Pad) -> Result<()> {
        let name = media(caps);
        if name == "application/x-rtp" {
            return self.rtp(pipeline, pad, caps);
        }
        if name == "video/x-raw" {
            return link(pad, out);
        }
        if name == "video/mpegts" {
            return self.bytes(pipeline, pad);
        }
        if !name.starts_with("video/") && !name.starts_with("image/") {
            return Ok(());
        }
        let version = caps.structure(0).and_then(|caps| caps.get::<i32>("mpegversion").ok());
        let parser = PARSERS.iter().find(|(of, ..)| name == *of && (name != "video/mpeg" || version == Some(4)));
        let Some((_, parser, form)) = parser else { return link(pad, out) };
        let parser = make(parser)?;
        // Parameter sets ahead of each keyframe: it may be the first that a decoder sees.
        set(&parser, "config-interval", "-1");
        add(pipeline, pad, &parser)?;
        let parsed = src(&parser)?;
        match form {
            None => link(&parsed, out),
            Some(form) => {
                let filter = filter(form)?;
                add(pipeline, &parsed, &filter)?;
                link(&src(&filter)?, out)
            }
        }
    }

    /// Out of RTP packets.
    fn rtp(&self, pipeline: &Pipeline, pad: &Pad, caps: &Caps) -> Result<()> {
        let text = |field: &str| caps.structure(0).and_then(|caps| caps.get::<String>(field).ok()).unwrap_or_default();
        if text("media") != "video" {
            return Ok(());
        }
        let mut all: Vec<_> = ElementFactory::factories_with_type(ElementFactoryType::DEPAYLOADER, Rank::MARGINAL).into_iter().collect();
        all.sort_by_key(|factory| std::cmp::Reverse(factory.rank()));
        let encoding = text("encoding-name");
        let Some(factory) = all.iter().find(|factory| factory.can_sink_any_caps(caps)) else {
            let sentence =
                format!("gstreamer reads no {encoding} over RTP; install gstreamer1.0-plugins-good and -bad, or set another codec");
            return Err(Error::new(Kind::Pipeline, sentence));
        };
        let depay = factory.create().build().context(Kind::Pipeline, || format!("cannot make {}", factory.name()))?;
        add(pipeline, pad, &depay)?;
        let unpacked = src(&depay)?;
        let tap = self.tap.clone();
        unpacked.add_probe(PadProbeType::BUFFER, move |_, info| {
            if let (Some(tap), Some(buffer)) = (tap.upgrade(), info.buffer()) {
                tap.note_time(buffer);
            }
            PadProbeReturn::Ok
        });
        // In this form the depayloader puts a picture together by the packets' times and marks. A parser goes by parameter
        // sets, and takes each slice for a picture where a server repeats them ahead of each.
        let whole = match encoding.as_str() {
            "H264" => Some("video/x-h264,stream-format=avc,alignment=au"),
            "H265" => Some("video/x-h265,stream-format=hvc1,alignment=au"),
            _ => None,
        };
        let Some(whole) = whole else {
            let caps = unpacked.pad_template_caps();
            let out = self.out.upgrade().ok_or_else(|| Error::new(Kind::Internal, "the way out is gone"))?;
            return self.link(pipeline, &unpacked, &caps, &out);
        };
        let filter = filter(whole)?;
        add(pipeline, &unpacked, &filter)?;
        let out = self.out.upgrade().ok_or_else(|| Error::new(Kind::Internal, "the way out is gone"))?;
        self.link(pipeline, &src(&filter)?, &form(whole)?, &out)
    }
}

fn media(caps: &Caps) -> String {
    caps.structure(0).map(|structure| structure.name().to_string()).unwrap_or_default()
}

fn form(text: &str) -> Result<Caps> {
    text.parse().context(Kind::Internal, || format!("{text} is no caps"))
}

fn filter(text: &str) -> Result<Element> {
    let filter = make("capsfilter")?;
    filter.set_property("caps", form(text)?);
    Ok(filter)
}

/// The one pad that an element puts out at.
///
/// # Errors
/// When it has none.
pub fn src(element: &Element) -> Result<Pad> {
    element.static_pad("src").ok_or_else(|| Error::new(Kind::Internal, "an element has no src pad"))
}

/// Puts `element` behind `from`.
fn add(pipeline: &Pipeline, from: &Pad, element: &Element) -> Result<()> {
    pipeline.add(element).context(Kind::Pipeline, || "cannot add an element")?;
    let sink = element.static_pad("sink").ok_or_else(|| Error::new(Kind::Internal, "an element has no sink pad"))?;
    // Behind it first: it may put something out as soon as it runs.
    element.sync_state_with_parent().context(Kind::Pipeline, || "cannot start an element")?;
    link(from, &sink)
}

fn link(from: &Pad, to: &Pad) -> Result<()> {
    from.link(to).map(drop).context(Kind::Pipeline, || "cannot link two elements")
}
