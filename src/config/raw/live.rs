//! `[output.live]`, `[output.rtsp]`, `[[output.push]]` and `[[output.v4l2]]`: live video and the ways to watch it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::base::redact::{ExposeSecret, SecretString};
use crate::config::raw::{Outside, password, required, secret};
use crate::config::reader::{At, Section, nearest};
use crate::config::{CameraConfig, EncoderKind, PushConfig, RtspConfig, RtspLogin, RtspVideo, V4l2Config, uri};
use crate::types::CameraId;

const ENCODERS: [(&str, EncoderKind); 5] = [
    ("auto", EncoderKind::Auto),
    ("x264", EncoderKind::X264),
    ("va", EncoderKind::Va),
    ("nvidia", EncoderKind::Nvidia),
    ("v4l2", EncoderKind::V4l2),
];

/// What encodes live video: `output.live.encoder`, or `output.rtsp.encoder`, which is the same key where only RTSP shows it.
pub(super) fn encoder(mut section: Section<'_, '_>, rtsp: Option<EncoderKind>) -> EncoderKind {
    let encoder = section.choice("encoder", &ENCODERS, EncoderKind::default());
    if section.holds("encoder") && rtsp.is_some_and(|rtsp| rtsp != encoder) {
        section.fault("encoder", section.offset_of("encoder"), "is another than output.rtsp.encoder; must be one of the two alone");
    }
    let written = section.holds("encoder");
    section.finish();
    if written { encoder } else { rtsp.unwrap_or_default() }
}

/// The server, and the encoder that stands beside it.
pub(super) fn rtsp(mut section: Section<'_, '_>, outside: &Outside<'_>) -> (Option<RtspConfig>, Option<EncoderKind>) {
    if !section.exists() {
        return (None, None);
    }
    let listen = match section.text("listen") {
        None => Some(([127, 0, 0, 1], 8554).into()),
        Some(text) => text
            .value
            .parse()
            .map_err(|_| {
                section.fault("listen", text.offset, &format!("is {:?}; must be address:port such as \"127.0.0.1:8554\"", text.value))
            })
            .ok(),
    };
    let video = section.choice("video", &[("analysed", RtspVideo::Analysed), ("live", RtspVideo::Live)], RtspVideo::default());
    if video == RtspVideo::Analysed && section.holds("encoder") {
        let offset = section.offset_of("encoder");
        section.fault("encoder", offset, "has no meaning for analysed frames; must stand beside video = \"live\"");
    }
    let written = section.holds("encoder");
    let encoder = Some(section.choice("encoder", &ENCODERS, EncoderKind::default())).filter(|_| written);
    let login = login(&mut section, outside);
    section.finish();
    (listen.map(|listen| RtspConfig { listen, video, login }), encoder)
}

fn login(section: &mut Section<'_, '_>, outside: &Outside<'_>) -> Option<RtspLogin> {
    let username = section.text("username").filter(|name| {
        // The basic scheme ends the name there.
        let wrong = name.value.is_empty() || name.value.contains([':', '"']) || name.value.chars().any(char::is_control);
        if wrong {
            section.fault("username", name.offset, &format!("is {:?}; must be a name without : and \"", name.value));
        }
        !wrong
    });
    let password = password(section, Some("PALISADE_RTSP_PASSWORD"), outside);
    if section.holds("username") && password.is_none() && !section.holds("password_file") {
        let offset = section.offset_of("username");
        section.fault(
            "username",
            offset,
            "stands without a password; must have password_file, or PALISADE_RTSP_PASSWORD in the environment",
        );
    }
    if section.holds("password_file") && !section.holds("username") {
        section.fault("password_file", section.offset_of("password_file"), "stands without username; must be both or neither");
    } else if password.is_some() && !section.holds("username") {
        section.missing("username", "the name that goes with PALISADE_RTSP_PASSWORD, which is set");
    }
    Some(RtspLogin { username: username?.value, password: password? })
}

/// Every `[[output.push]]`.
pub(super) fn pushes(sections: Vec<Section<'_, '_>>, cameras: Option<&[CameraConfig]>, outside: &Outside<'_>) -> Vec<PushConfig> {
    let mut pushes = Vec::new();
    for section in sections {
        pushes.extend(push(section, cameras, outside, &pushes));
    }
    pushes
}

fn push(
    mut section: Section<'_, '_>,
    cameras: Option<&[CameraConfig]>,
    outside: &Outside<'_>,
    others: &[PushConfig],
) -> Option<PushConfig> {
    let text = required(&mut section, "uri", "rtmp://, rtmps:// or srt://");
    let names = section.texts("cameras");
    let none = names.as_ref().is_some_and(|names| names.value.is_empty());
    let chosen = match names {
        Some(names) => names.value.iter().filter_map(|name| camera(&section, "cameras", name, names.offset, cameras)).collect(),
        None => cameras?.iter().filter(|camera| camera.enabled).map(|camera| camera.id.clone()).collect::<BTreeSet<_>>(),
    };
    if none {
        section.fault("cameras", section.offset_of("cameras"), "is empty; must name a camera, or be left out for all of them");
    }
    let key = secret(&mut section, "key_file", Some("PALISADE_PUSH_KEY"), outside);
    let uri = text.as_ref().and_then(|text| target(&section, text, chosen.len() > 1, key.as_ref()));
    let config = uri.filter(|_| !chosen.is_empty()).map(|uri| PushConfig { cameras: chosen.into_iter().collect(), uri });
    let taken =
        |uri: &SecretString| others.iter().flat_map(PushConfig::streams).any(|(_, other)| other.expose_secret() == uri.expose_secret());
    if let Some((text, config)) = text.zip(config.as_ref())
        && config.streams().any(|(_, uri)| taken(&uri))
    {
        section.fault("uri", text.offset, "is that of another output.push too; must be another, for a server takes one stream at each");
    }
    section.finish();
    config
}

/// Where it goes. The value is never repeated: it holds the stream's key.
fn target(section: &Section<'_, '_>, text: &At<String>, several: bool, key: Option<&SecretString>) -> Option<SecretString> {
    let fault = |why: &str| section.fault("uri", text.offset, why);
    if several && !text.value.contains("{camera}") {
        fault("lacks {camera}; several cameras cannot share one stream");
        return None;
    }
    if text.value.contains("{key}") && key.is_none() {
        if !section.holds("key_file") {
            fault("has {key}; must have key_file beside it, or PALISADE_PUSH_KEY in the environment");
        }
        return None;
    }
    if section.holds("key_file") && !text.value.contains("{key}") {
        section.fault("key_file", section.offset_of("key_file"), "has no meaning without {key} in uri, which stands for what it holds");
        return None;
    }
    if text.value.replace("{camera}", "").replace("{key}", "").contains(['{', '}']) {
        fault("has a placeholder that is not known; must be {camera} or {key}");
        return None;
    }
    uri::target(&text.value, key).map_err(|why| fault(&why)).ok()
}

/// Every `[[output.v4l2]]`.
pub(super) fn devices(sections: Vec<Section<'_, '_>>, cameras: Option<&[CameraConfig]>) -> Vec<V4l2Config> {
    let mut known = BTreeSet::new();
    sections.into_iter().filter_map(|section| device(section, cameras, &mut known)).collect()
}

fn device(mut section: Section<'_, '_>, cameras: Option<&[CameraConfig]>, known: &mut BTreeSet<PathBuf>) -> Option<V4l2Config> {
    let id =
        required(&mut section, "camera", "the id of a camera").and_then(|id| camera(&section, "camera", &id.value, id.offset, cameras));
    let device = required(&mut section, "device", "a device of v4l2loopback such as \"/dev/video10\"");
    if let Some(device) = &device {
        if !device.value.starts_with("/dev/") {
            section.fault("device", device.offset, &format!("is {:?}; must be a device such as \"/dev/video10\"", device.value));
        } else if !known.insert(PathBuf::from(&device.value)) {
            section.fault("device", device.offset, &format!("is {:?} once more; a device has room for one camera", device.value));
        }
    }
    section.finish();
    Some(V4l2Config { camera: id?, device: device?.value.into() })
}

/// The camera of that name.
fn camera(section: &Section<'_, '_>, key: &str, name: &str, offset: usize, cameras: Option<&[CameraConfig]>) -> Option<CameraId> {
    // Where a camera was refused, its faults are enough: it may be the one.
    let cameras = cameras?;
    let found = cameras.iter().find(|camera| camera.id.as_str() == name);
    if found.is_none() {
        let known = || cameras.iter().map(|camera| camera.id.as_str());
        let hint = match nearest(name, known()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("must be one of {}", known().collect::<Vec<_>>().join(", ")),
        };
        section.fault(key, offset, &format!("has {name:?}, which is no camera's id; {hint}"));
    }
    if found.is_some_and(|camera| !camera.enabled) {
        section.fault(key, offset, &format!("has {name:?}, which is disabled; must be an enabled camera"));
    }
    found.map(|camera| camera.id.clone())
}
