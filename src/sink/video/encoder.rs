//! Which H.264 encoder this installation has.

use gstreamer::ElementFactory;

use crate::base::error::{Error, Kind, Result};

/// A `gst-launch` fragment that encodes I420 to H.264 without delay, at an even quality whatever the frame rate, with a
/// keyframe at least every `gop` frames.
///
/// # Errors
/// When there is no encoder; the sentence names the Debian package.
pub fn h264(gop: u32) -> Result<String> {
    let has = |name| ElementFactory::find(name).is_some();
    if has("x264enc") {
        // Constant quality: a bit rate means little at one frame a second.
        // No h264parse behind it: without a frame rate that sets each frame's duration to a nanosecond, and the last
        // frame of a file is then not shown.
        return Ok(format!("x264enc tune=zerolatency speed-preset=veryfast pass=qual quantizer=23 key-int-max={gop}"));
    }
    if has("openh264enc") {
        // It wants to know a rate, and its output a parser: a nominal one does, for the times of the frames are kept.
        let rate = r#"capssetter join=true caps="video/x-raw,framerate=(fraction)25/1""#;
        return Ok(format!("{rate} ! openh264enc gop-size={gop} ! h264parse"));
    }
    Err(Error::new(Kind::Pipeline, "gstreamer has no H.264 encoder (x264enc, openh264enc); install gstreamer1.0-plugins-ugly"))
}
