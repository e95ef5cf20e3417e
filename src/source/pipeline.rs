//! One attempt's pipeline: `source ! (depayloader or demuxer) ! parser ! (clocksync) ! appsink`. It ends ahead of the
//! decoder: what is decoded, and by what, is chosen picture by picture.

use std::sync::{Arc, Mutex, PoisonError};

use gstreamer::prelude::*;
use gstreamer::{Element, Pipeline};
use gstreamer_app::{AppSink, AppSinkCallbacks};

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::redact::ExposeSecret;
use crate::config::{CameraConfig, Transport};
use crate::source::intake::Intake;
use crate::source::location::Location;
use crate::source::plug::{Plug, make, set};
use crate::source::tap::Tap;

/// Builds the pipeline of `location`, in state NULL. What it puts out goes to `intake`.
///
/// # Errors
/// When a GStreamer element is not installed; the sentence names its Debian package.
pub fn build(location: &Location, config: &CameraConfig, tap: &Arc<Tap>, intake: Intake) -> Result<Pipeline> {
    let pipeline = Pipeline::with_name(&format!("cam-{}", config.id));
    // Files are played in real time, and what HTTP serves may be one. Other cameras set their own pace.
    let paced = matches!(location, Location::File(_) | Location::Http(_));
    let out = way_out(&pipeline, paced, intake)?;
    let plug = Plug::new(&pipeline, &out, tap);
    let source = source(location, config, tap)?;
    pipeline.add(&source).context(Kind::Pipeline, || "cannot add the source")?;
    match location {
        Location::Rtsp(_) => plug.watch(&source),
        _ => {
            let pad = source.static_pad("src").ok_or_else(|| Error::new(Kind::Internal, "a source has no src pad"))?;
            plug.bytes(&pipeline, &pad)?;
        }
    }
    Ok(pipeline)
}

fn source(location: &Location, config: &CameraConfig, tap: &Arc<Tap>) -> Result<Element> {
    match location {
        Location::File(path) => {
            let source = make("filesrc")?;
            source.set_property("location", path);
            Ok(source)
        }
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
        Location::Rtsp(uri) => rtsp(uri, config, tap),
    }
}

fn rtsp(uri: &str, config: &CameraConfig, tap: &Arc<Tap>) -> Result<Element> {
    let source = make("rtspsrc")?;
    source.set_property("location", uri);
    let protocols = match config.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    for (name, value) in [
        ("protocols", protocols),
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

fn sign_in(source: &Element, config: &CameraConfig) {
    if let Some(username) = &config.username {
        source.set_property("user-id", username);
    }
    if let Some(password) = &config.password {
        source.set_property("user-pw", password.expose_secret());
    }
}

/// From encoded pictures, or raw ones, to the intake; returns the pad they go to.
fn way_out(pipeline: &Pipeline, paced: bool, intake: Intake) -> Result<gstreamer::Pad> {
    // async=false: a sink that waits for a first picture would hold the start up. Nothing is dropped: each is taken as it
    // comes, on the streaming thread.
    let sink = AppSink::builder().sync(false).async_(false).max_buffers(1).enable_last_sample(false).build();
    let intake = Arc::new(Mutex::new(intake));
    let end = intake.clone();
    sink.set_callbacks(
        AppSinkCallbacks::builder()
            .new_sample(move |sink| {
                let sample = sink.pull_sample().map_err(|_| gstreamer::FlowError::Eos)?;
                intake.lock().unwrap_or_else(PoisonError::into_inner).sample(&sample, sink.current_running_time());
                Ok(gstreamer::FlowSuccess::Ok)
            })
            .eos(move |_| end.lock().unwrap_or_else(PoisonError::into_inner).end())
            .build(),
    );
    let pad = |element: &Element| element.static_pad("sink").ok_or_else(|| Error::new(Kind::Internal, "an element has no sink pad"));
    pipeline.add(&sink).context(Kind::Pipeline, || "cannot add the sink")?;
    if !paced {
        return pad(sink.upcast_ref());
    }
    let clock = make("clocksync")?;
    pipeline.add(&clock).context(Kind::Pipeline, || "cannot add the clock")?;
    clock.link(&sink).context(Kind::Pipeline, || "cannot link the clock")?;
    pad(&clock)
}
