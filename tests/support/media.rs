//! Clips made on the spot.

use std::path::{Path, PathBuf};

use gstreamer::prelude::*;

/// Runs a `gst-launch` line to its end.
pub fn launch(line: &str) {
    gstreamer::init().unwrap();
    let pipeline = gstreamer::parse::launch(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gstreamer::State::Playing).unwrap();
    let ends = [gstreamer::MessageType::Eos, gstreamer::MessageType::Error];
    let end = bus.timed_pop_filtered(gstreamer::ClockTime::from_seconds(60), &ends).unwrap_or_else(|| panic!("{line}: no end"));
    pipeline.set_state(gstreamer::State::Null).unwrap();
    if let gstreamer::MessageView::Error(error) = end.view() {
        panic!("{line}: {error:?}");
    }
}

/// A clip of `frames` frames at `fps` with a keyframe every `gop`, and a sound track where the container is MP4.
/// The container goes by the name's ending: mp4, mkv, avi or ts.
pub fn clip(dir: &Path, name: &str, frames: u32, fps: u32, gop: u32) -> PathBuf {
    let path = dir.join(name);
    let mux = match path.extension().and_then(|e| e.to_str()).unwrap() {
        "mp4" => "mp4mux",
        "mkv" => "matroskamux",
        "avi" => "avimux",
        "ts" => "mpegtsmux",
        other => panic!("no container for {other}"),
    };
    let video = format!(
        "videotestsrc num-buffers={frames} pattern=ball ! video/x-raw,format=I420,width=320,height=240,framerate={fps}/1 \
         ! x264enc speed-preset=ultrafast tune=zerolatency key-int-max={gop} ! h264parse ! mux."
    );
    let sound = if mux == "mp4mux" {
        let buffers = frames * 44100 / fps / 1024;
        format!("audiotestsrc num-buffers={buffers} samplesperbuffer=1024 ! audio/x-raw,rate=44100 ! avenc_aac ! aacparse ! mux.")
    } else {
        String::new()
    };
    launch(&format!("{mux} name=mux ! filesink location=\"{}\" {video} {sound}", path.display()));
    path
}
