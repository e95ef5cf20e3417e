//! One attempt's pipeline: `source ! (depayloader or demuxer) ! parser ! (clocksync) ! appsink`. It ends ahead of the
//! decoder: what is decoded, and by what, is chosen picture by picture.

use std::sync::{Arc, Mutex};

use gstreamer::prelude::*;
use gstreamer::{Element, Pipeline, State};
use gstreamer_app::{AppSink, AppSinkCallbacks};

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::redact::ExposeSecret;
use crate::base::sync;
use crate::config::{CameraConfig, Transport};
use crate::source::intake::Intake;
use crate::source::location::Location;
use crate::source::plug::{Plug, make, set, src};
use crate::source::tap::Tap;
use crate::source::trust::Trust;
use crate::source::{device, fragment};

/// What is left to do of a pipeline before it plays, in a thread that may hang.
pub type Prepare = Box<dyn FnOnce() -> Result<()> + Send>;

/// Builds the pipeline of `location`, in state NULL. What it puts out goes to `intake`.
///
/// # Errors
/// When a GStreamer element is not installed; the sentence names its Debian package. When a fragment or a file of
/// certificates cannot be used.
pub fn build(location: &Location, config: &CameraConfig, tap: &Arc<Tap>, intake: Intake) -> Result<(Pipeline, Option<Prepare>)> {
    let pipeline = Pipeline::with_name(&format!("cam-{}", config.id));
    // Files are played in real time, and what HTTP serves may be one. Other cameras set their own pace.
    let paced = matches!(location, Location::File(_) | Location::Http(_) | Location::Fragment(_));
    let out = way_out(&pipeline, paced, intake)?;
    let plug = Plug::new(&pipeline, &out, tap);
    let source = source(location, config, tap)?;
    pipeline.add(&source).context(Kind::Pipeline, || "cannot add the source")?;
    match location {
        Location::Rtsp(_) => plug.watch(&source),
        Location::Device(_) => return device(&pipeline, source, plug).map(|prepare| (pipeline, Some(prepare))),
        Location::Fragment(_) => src(&source)?.link(&out).map(drop).context(Kind::Pipeline, || "cannot link the fragment")?,
        Location::File(_) | Location::Http(_) => plug.bytes(&pipeline, &src(&source)?)?,
    }
    Ok((pipeline, None))
}

/// Asks a local camera for the best format it offers, once it is open.
fn device(pipeline: &Pipeline, source: Element, plug: Plug) -> Result<Prepare> {
    let filter = make("capsfilter")?;
    pipeline.add(&filter).context(Kind::Pipeline, || "cannot add a filter")?;
    source.link(&filter).context(Kind::Pipeline, || "cannot link a filter")?;
    Ok(Box::new(move || {
        // Refused, the start that follows is too, and says why.
        if source.set_state(State::Ready).is_err() {
            return Ok(());
        }
        let offered = src(&source)?.query_caps(None);
        let chosen = device::choose(&offered);
        let chosen = chosen.ok_or_else(|| Error::new(Kind::Pipeline, "the device offers no format that can be read"))?;
        tracing::debug!(%chosen, "format of a local camera");
        filter.set_property("caps", chosen);
        plug.pad(&src(&filter)?);
        Ok(())
    }))
}

fn source(location: &Location, config: &CameraConfig, tap: &Arc<Tap>) -> Result<Element> {
    match location {
        Location::File(path) => {
            let source = make("filesrc")?;
            source.set_property("location", path);
            Ok(source)
        }
        Location::Fragment(fragment) => Ok(fragment::build(fragment)?.upcast()),
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
            if let Some(file) = &config.ca_file {
                source.set_property("tls-database", Trust::read(file)?.database());
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
    // For so long a lost packet is waited for, and a picture may come after its time. Over TCP none is lost, and pictures are
    // sent long ahead of others that are shown before them. Not `drop-on-latency`: GStreamer 1.22 takes a time that is earlier
    // than the one before for a wrapped one, and drops pictures of streams with B-frames as soon as two of them wait. What
    // waits there is bounded by the intake.
    let (protocols, latency) = match config.transport {
        Transport::Tcp => ("tcp", "1000"),
        Transport::Udp => ("udp", "200"),
    };
    for (name, value) in
        [("protocols", protocols), ("latency", latency), ("tcp-timeout", "5000000"), ("add-reference-timestamp-meta", "true")]
    {
        set(&source, name, value);
    }
    sign_in(&source, config);
    if let Some(file) = &config.ca_file {
        source.set_property("tls-database", Trust::read(file)?.database());
    }
    let (tap, file) = (Arc::downgrade(tap), config.ca_file.clone());
    let offers = tap.clone();
    // Asked where the chain does not hold, or the name. Certificates stay on the thread that read them.
    source.connect("accept-certificate", false, move |values| {
        let shown = values.get(2).and_then(|value| value.get::<gio::TlsCertificate>().ok());
        let trust = file.as_deref().and_then(|file| Trust::read(file).ok());
        let named = trust.zip(shown).is_some_and(|(trust, shown)| trust.names(&shown));
        if let Some(tap) = tap.upgrade().filter(|_| !named) {
            tap.distrust();
        }
        Some(named.to_value())
    });
    source.connect("select-stream", false, move |values| {
        let caps = values.get(2).and_then(|value| value.get::<gstreamer::Caps>().ok());
        let media = caps.and_then(|caps| caps.structure(0)?.get::<String>("media").ok());
        let video = media.as_deref() == Some("video");
        if let Some(tap) = offers.upgrade() {
            tap.offered(video);
        }
        Some(video.to_value())
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
                sync::lock(&intake).sample(&sample, sink.current_running_time());
                Ok(gstreamer::FlowSuccess::Ok)
            })
            .eos(move |_| sync::lock(&end).end())
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
