//! Which H.264 encoder this installation has.

use gstreamer::prelude::*;
use gstreamer::{ElementFactory, State};

use crate::base::error::{Error, Kind, Result};
use crate::config::EncoderKind;

/// From an encoder to the packets of an RTSP server's stream. The parser leads each keyframe in with the parameter sets: the
/// payloader would do so with each of its slices, and readers such as ffmpeg take each for a picture then.
pub const PAYLOADER: &str = "h264parse config-interval=-1 ! rtph264pay name=pay0 pt=96";

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

/// The encoders of hardware by kind, the preferred ones first, each with what makes it encode without delay and at an even
/// quality. Names and properties are those of GStreamer 1.22.
const HARDWARE: [(EncoderKind, &str, &str); 5] = [
    (EncoderKind::Va, "vah264enc", "rate-control=cqp qpi=23 qpp=23 b-frames=0 ref-frames=1 key-int-max={gop}"),
    (EncoderKind::Va, "vah264lpenc", "rate-control=cqp qpi=23 qpp=23 b-frames=0 ref-frames=1 key-int-max={gop}"),
    (EncoderKind::Va, "vaapih264enc", "rate-control=cqp init-qp=23 max-bframes=0 keyframe-period={gop}"),
    (EncoderKind::Nvidia, "nvh264enc", "preset=low-latency-hq rc-mode=constqp qp-const=23 bframes=0 zerolatency=true gop-size={gop}"),
    (EncoderKind::V4l2, "v4l2h264enc", ""),
];

/// As `h264`, by an encoder of this kind that is there and can be opened; else in software. `Auto` takes any hardware.
///
/// # Errors
/// As `h264`.
pub fn chosen(kind: EncoderKind, gop: u32) -> Result<String> {
    let wanted = HARDWARE.iter().filter(|(of, ..)| kind == EncoderKind::Auto || kind == *of);
    for (_, name, properties) in wanted.filter(|_| kind != EncoderKind::X264) {
        if opens(name) {
            tracing::info!(encoder = name, "live video is encoded by hardware");
            return Ok(format!("{name} {}", properties.replace("{gop}", &gop.to_string())));
        }
    }
    if !matches!(kind, EncoderKind::Auto | EncoderKind::X264) {
        tracing::warn!("the encoder that output.live.encoder asks for is not there; software encodes");
    }
    h264(gop)
}

/// Whether an encoder is there, and its device too.
fn opens(name: &str) -> bool {
    let Ok(element) = ElementFactory::make(name).build() else { return false };
    let opened = element.set_state(State::Ready).is_ok();
    if element.set_state(State::Null).is_err() {
        tracing::debug!(encoder = name, "an encoder refused to stop");
    }
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_that_is_not_there_gives_way_to_software() {
        gstreamer::init().unwrap();
        for kind in [EncoderKind::Auto, EncoderKind::X264, EncoderKind::Va, EncoderKind::Nvidia, EncoderKind::V4l2] {
            let line = chosen(kind, 60).unwrap();
            let name = line.split(' ').next().unwrap();
            assert!(HARDWARE.iter().any(|(_, hardware, _)| name == *hardware) || line == h264(60).unwrap(), "{line}");
            assert!(kind != EncoderKind::X264 || line == h264(60).unwrap());
        }
    }
}
