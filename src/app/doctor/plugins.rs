//! The GStreamer elements that a configuration needs, and the Debian packages that hold them.

use std::collections::{BTreeMap, BTreeSet};

use crate::app::doctor::Finding;
use crate::base::redact::ExposeSecret;
use crate::config::{CameraConfig, Config, DecoderKind, EncoderKind, Input, Record, RtspVideo};
use crate::source;

/// What every camera's pictures go through.
const DECODING: &[&str] = &["appsink", "videoconvert", "videoscale", "h264parse", "h265parse", "avdec_h264", "avdec_h265", "jpegdec"];

/// What encodes video on the processor; one is enough.
const ENCODERS: [&str; 2] = ["x264enc", "openh264enc"];

/// Elements of hardware. Their packages are there without the elements where the hardware or its driver is not.
const HARDWARE_DECODERS: [(DecoderKind, &str, &[&str]); 3] = [
    (DecoderKind::Va, "va", &["vah264dec", "vaapih264dec"]),
    (DecoderKind::Nvidia, "nvidia", &["nvh264dec"]),
    (DecoderKind::V4l2, "v4l2", &["v4l2h264dec", "v4l2slh264dec"]),
];
const HARDWARE_ENCODERS: [(EncoderKind, &str, &[&str]); 3] = [
    (EncoderKind::Va, "va", &["vah264enc", "vah264lpenc", "vaapih264enc"]),
    (EncoderKind::Nvidia, "nvidia", &["nvh264enc"]),
    (EncoderKind::V4l2, "v4l2", &["v4l2h264enc"]),
];

/// What is missing.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut lacking: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut lacks = |element| lacking.entry(source::package_of(element)).or_default().insert(element);
    for element in needs(config) {
        if !source::has_element(element) {
            lacks(element);
        }
    }
    if encodes(config) && !ENCODERS.iter().any(|name| source::has_element(name)) {
        lacks(ENCODERS[0]);
    }
    let encrypted = config.cameras.iter().any(|camera| scheme(camera).is_some_and(|scheme| matches!(scheme, "rtsps" | "https")));
    if encrypted && !source::has_tls() {
        lacking.entry("glib-networking").or_default().insert("encrypted connections");
    }
    let mut found: Vec<Finding> = lacking
        .into_iter()
        .map(|(package, elements)| {
            let elements: Vec<&str> = elements.into_iter().collect();
            Finding::bad("plugins", format!("gstreamer has no {}", elements.join(", ")), format!("sudo apt install {package}"))
        })
        .collect();
    if found.is_empty() {
        found.push(Finding::good("plugins", "every gstreamer element that the configuration needs is there"));
    }
    found.extend(hardware(config));
    found
}

fn hardware(config: &Config) -> Vec<Finding> {
    let none = |names: &[&str]| !names.iter().any(|name| source::has_element(name));
    let mut found = Vec::new();
    for camera in config.cameras.iter().filter(|camera| camera.enabled) {
        let asked = HARDWARE_DECODERS.iter().find(|(kind, ..)| *kind == camera.decoder);
        if let Some((_, word, names)) = asked.filter(|(.., names)| none(names)) {
            let what = format!("gstreamer sees no decoder of decoder = \"{word}\" ({}); the processor decodes", names.join(", "));
            found.push(Finding::doubtful(
                format!("camera {}", camera.id),
                what,
                "install the driver, then: gst-inspect-1.0 | grep -i h264dec",
            ));
        }
    }
    let asked = HARDWARE_ENCODERS.iter().find(|(kind, ..)| *kind == config.output.encoder);
    if let Some((_, word, names)) = asked.filter(|(.., names)| none(names)) {
        let what = format!("gstreamer sees no encoder of encoder = \"{word}\" ({}); the processor encodes", names.join(", "));
        found.push(Finding::doubtful("output.live", what, "install the driver, then: gst-inspect-1.0 | grep -i h264enc"));
    }
    found
}

fn scheme(camera: &CameraConfig) -> Option<&str> {
    match &camera.input {
        Input::Uri(uri) => uri.split_once("://").map(|(scheme, _)| scheme).filter(|_| camera.enabled),
        Input::Fragment(_) => None,
    }
}

/// Whether anything is encoded as H.264.
fn encodes(config: &Config) -> bool {
    let output = &config.output;
    output.file.is_some() || output.rtsp.is_some() || !output.push.is_empty() || config.console.is_some()
}

fn needs(config: &Config) -> Vec<&'static str> {
    let mut needs = DECODING.to_vec();
    for camera in &config.cameras {
        needs.extend_from_slice(of_camera(camera));
        if camera.record == Record::Events {
            needs.push("mp4mux");
        }
    }
    let output = &config.output;
    if let Some(file) = &output.file {
        needs.push(if file.is_mkv() { "matroskamux" } else { "mp4mux" });
    }
    if let Some(rtsp) = &output.rtsp {
        needs.push("rtph264pay");
        if rtsp.video == RtspVideo::Live {
            needs.push("appsrc");
        }
    }
    if config.console.is_some() {
        needs.extend_from_slice(&["jpegenc", "mpegtsmux"]);
    }
    for push in &output.push {
        needs.extend_from_slice(if push.uri.expose_secret().starts_with("srt://") {
            &["mpegtsmux", "srtsink"]
        } else {
            &["flvmux", "rtmp2sink"]
        });
    }
    if !output.v4l2.is_empty() {
        needs.push("v4l2sink");
    }
    needs
}

fn of_camera(camera: &CameraConfig) -> &'static [&'static str] {
    let (Some(scheme), Input::Uri(uri)) = (scheme(camera), &camera.input) else { return &[] };
    let ending = uri.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    match (scheme, ending.as_str()) {
        ("rtsp" | "rtsps", _) => &["rtspsrc", "rtph264depay", "rtph265depay"],
        ("http" | "https", _) => &["souphttpsrc", "multipartdemux"],
        ("v4l2", _) => &["v4l2src"],
        ("file", "mp4" | "mov" | "m4v") => &["qtdemux"],
        ("file", "mkv" | "webm") => &["matroskademux"],
        ("file", "avi") => &["avidemux"],
        ("file", "ts" | "m2ts") => &["tsdemux"],
        _ => &[],
    }
}
