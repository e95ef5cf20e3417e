//! One attempt's pipeline: `source ! decodebin ! clocksync ! (gate) videoconvert ! appsink`.
//!
//! Pad and element closures hold weak references only; otherwise pipeline and closure keep each other alive.

use std::sync::{Arc, Weak};

use gstreamer::prelude::*;
use gstreamer::{Element, ElementFactory, PadProbeReturn, PadProbeType, Pipeline};
use gstreamer_app::{AppSink, AppSinkCallbacks};

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::redact::ExposeSecret;
use crate::config::{CameraConfig, Decode};
use crate::source::fault;
use crate::source::location::Location;
use crate::source::tap::Tap;

/// Lets go of a buffer. `PadProbeReturn::Drop` would do, but with these bindings GStreamer 1.22 then unrefs a null
/// pointer and complains of each frame on stderr.
const DROP: PadProbeReturn = PadProbeReturn::Handled;

/// Builds the pipeline of `location`, in state NULL. Its frames go to `tap`.
///
/// # Errors
/// When a GStreamer element is not installed; the sentence names its Debian package.
pub fn build(location: &Location, config: &CameraConfig, tap: &Arc<Tap>) -> Result<Pipeline> {
    let pipeline = Pipeline::with_name(&format!("cam-{}", config.id));
    let decode = decoder(config, &pipeline, tap)?;
    // Files are played in real time, and what HTTP serves may be one. Cameras over RTSP set their own pace.
    let paced = matches!(location, Location::File(_) | Location::Http(_));
    let tail = tail(&pipeline, paced, tap)?;
    decode.connect_pad_added(link_to(&tail, "video/x-raw"));
    pipeline.add(&decode).context(Kind::Pipeline, || "cannot add decodebin")?;
    let source = source(location, config, tap)?;
    pipeline.add(&source).context(Kind::Pipeline, || "cannot add the source")?;
    if matches!(location, Location::Rtsp(_)) {
        let sink = decode.static_pad("sink").ok_or_else(|| Error::new(Kind::Internal, "decodebin has no sink pad"))?;
        source.connect_pad_added(link_to(&sink, "application/x-rtp"));
    } else {
        source.link(&decode).context(Kind::Pipeline, || "cannot link the source")?;
    }
    Ok(pipeline)
}

fn make(name: &'static str) -> Result<Element> {
    let missing = || format!("gstreamer element {name} is missing; install {}", fault::package_of(name));
    ElementFactory::make(name).build().context(Kind::Pipeline, missing)
}

/// Sets a property that not every supported version has, or whose type is an enumeration; does nothing without it.
fn set(element: &Element, name: &str, value: &str) {
    if element.find_property(name).is_some() {
        element.set_property_from_str(name, value);
    }
}

fn source(location: &Location, config: &CameraConfig, tap: &Arc<Tap>) -> Result<Element> {
    match location {
        Location::File(path) => {
            let source = make("filesrc")?;
            source.set_property("location", path);
            Ok(source)
        }
        // Until it is plugged: see the commit that follows.
        Location::Fragment(_) => Err(Error::new(Kind::Internal, "fragments are not plugged yet")),
        Location::Device(path) => {
            let source = make("v4l2src")?;
            source.set_property("device", path.to_string_lossy().as_ref());
            Ok(source)
        }
        Location::Http(uri) => {
            let source = make("souphttpsrc")?;
            source.set_property("location", uri);
            for (name, value) in [("is-live", "true"), ("do-timestamp", "true"), ("retries", "0"), ("timeout", "10")] {
                set(&source, name, value);
            }
            sign_in(&source, config);
            Ok(source)
        }
        Location::Rtsp(uri) => {
            let source = make("rtspsrc")?;
            source.set_property("location", uri);
            for (name, value) in [
                ("protocols", "tcp"),
                ("latency", "200"),
                ("drop-on-latency", "true"),
                ("tcp-timeout", "5000000"),
                ("add-reference-timestamp-meta", "true"),
            ] {
                set(&source, name, value);
            }
            sign_in(&source, config);
            let tap = Arc::downgrade(tap);
            source.connect("accept-certificate", false, move |_| {
                if let Some(tap) = tap.upgrade() {
                    tap.distrust();
                }
                Some(false.to_value())
            });
            source.connect("select-stream", false, |values| {
                let caps = values.get(2).and_then(|value| value.get::<gstreamer::Caps>().ok());
                let media = caps.and_then(|caps| caps.structure(0)?.get::<String>("media").ok());
                Some((media.as_deref() == Some("video")).to_value())
            });
            Ok(source)
        }
    }
}

fn sign_in(source: &Element, config: &CameraConfig) {
    if let Some(username) = &config.username {
        source.set_property("user-id", username);
    }
    if let Some(password) = &config.password {
        source.set_property("user-pw", password.expose_secret());
    }
}

/// decodebin, told to decode pictures only.
fn decoder(config: &CameraConfig, pipeline: &Pipeline, tap: &Arc<Tap>) -> Result<Element> {
    let decode = make("decodebin")?;
    // Sound and subtitles come out as they are and stay unlinked. (expose-all-streams=false would refuse the video
    // decoders too, as of 1.22.)
    decode.connect("autoplug-continue", false, |values| {
        let caps = values.get(2).and_then(|value| value.get::<gstreamer::Caps>().ok());
        let name = caps.and_then(|caps| Some(caps.structure(0)?.name().to_string())).unwrap_or_default();
        let unwanted = ["audio/", "text/", "subpicture/", "closedcaption/", "application/x-sub", "application/x-ass", "application/x-ssa"];
        Some((!unwanted.iter().any(|prefix| name.starts_with(prefix))).to_value())
    });
    let keyframes = config.decode == Decode::Keyframes;
    let tap = Arc::downgrade(tap);
    pipeline.connect_deep_element_added(move |_, _, element| {
        let Some(factory) = element.factory() else { return };
        if factory.name() == "multipartdemux" {
            // Without it the demuxer never says "no more pads", and decodebin waits for ever.
            set(element, "single-stream", "true");
        }
        let class = factory.metadata("klass").unwrap_or_default();
        if class.contains("Codec/Decoder") && (class.contains("Video") || class.contains("Image")) {
            watch_decoder(element, keyframes, tap.clone());
        }
    });
    Ok(decode)
}

/// Notes the data that reaches a decoder; with `keyframes` drops every unit that needs another one.
fn watch_decoder(decoder: &Element, keyframes: bool, tap: Weak<Tap>) {
    let Some(pad) = decoder.static_pad("sink") else { return };
    pad.add_probe(PadProbeType::BUFFER, move |_, info| {
        if let Some(tap) = tap.upgrade() {
            tap.data();
        }
        let delta = info.buffer().is_some_and(|buffer| buffer.flags().contains(gstreamer::BufferFlags::DELTA_UNIT));
        if keyframes && delta { DROP } else { PadProbeReturn::Ok }
    });
}

/// From decoded frames to RGB; returns the pad decoded frames go to.
fn tail(pipeline: &Pipeline, paced: bool, tap: &Arc<Tap>) -> Result<gstreamer::Pad> {
    // Ahead of the gate: what the gate drops never reaches a sink that could keep time.
    let clock = make("clocksync")?;
    clock.set_property("sync", paced);
    let convert = make("videoconvert")?;
    let caps = gstreamer::Caps::builder("video/x-raw").field("format", "RGB").build();
    // async=false: the gate may refuse the first frames, and a sink that waits for one would hold the start up.
    let sink = AppSink::builder().caps(&caps).sync(false).async_(false).drop(true).max_buffers(1).enable_last_sample(false).build();
    let weak = Arc::downgrade(tap);
    sink.set_callbacks(
        AppSinkCallbacks::builder()
            .new_sample(move |sink| {
                let sample = sink.pull_sample().map_err(|_| gstreamer::FlowError::Eos)?;
                if let Some(tap) = weak.upgrade() {
                    tap.deliver(&sample);
                }
                Ok(gstreamer::FlowSuccess::Ok)
            })
            .build(),
    );
    let elements = [&clock, &convert, sink.upcast_ref()];
    pipeline.add_many(elements).context(Kind::Pipeline, || "cannot add the conversion")?;
    Element::link_many(elements).context(Kind::Pipeline, || "cannot link the conversion")?;
    let weak = Arc::downgrade(tap);
    let pad = |element: &Element| element.static_pad("sink").ok_or_else(|| Error::new(Kind::Internal, "a converter has no sink pad"));
    pad(&convert)?.add_probe(PadProbeType::BUFFER, move |pad, info| {
        let wanted = weak.upgrade().zip(info.buffer()).is_some_and(|(tap, buffer)| tap.gate(pad, buffer));
        if wanted { PadProbeReturn::Ok } else { DROP }
    });
    pad(&clock)
}

/// Links each new pad of this media type to `sink`, unless that has a peer: a second video stream is left alone.
fn link_to(sink: &gstreamer::Pad, media: &'static str) -> impl Fn(&Element, &gstreamer::Pad) + Send + Sync + 'static {
    let sink = sink.downgrade();
    move |element, pad| {
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let fits = caps.structure(0).is_some_and(|structure| structure.name() == media);
        let Some(sink) = sink.upgrade().filter(|sink| fits && !sink.is_linked()) else { return };
        if let Err(error) = pad.link(&sink) {
            tracing::debug!(element = %element.name(), %error, "a pad could not be linked");
        }
    }
}
