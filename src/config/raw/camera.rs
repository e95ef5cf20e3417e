//! `[[camera]]`: where the pictures come from, how they are decoded, and what is asked of them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::redact::SecretString;
use crate::config::credentials;
use crate::config::raw::{DAY, Outside, password, track};
use crate::config::reader::{At, Section};
use crate::config::uri::{self, Located};
use crate::config::{CameraConfig, Decode, DecoderKind, Input, MotionConfig, Record, Transport};
use crate::types::{CameraId, Prompt, Tracking};

/// Keys that say how a URI is opened; a fragment's elements have properties for the like.
const OF_URIS: [&str; 6] = ["loop", "transport", "ca_file", "username", "password", "password_file"];

/// Every camera that can be used; those that cannot have their faults.
pub(super) fn cameras(
    root: &Section<'_, '_>,
    sections: Vec<Section<'_, '_>>,
    tracking: &Tracking,
    outside: &Outside<'_>,
) -> Vec<CameraConfig> {
    let written = sections.len();
    if written == 0 {
        root.missing("camera", "at least one [[camera]] with id, uri and prompt");
    }
    let mut known = Known::default();
    let cameras: Vec<CameraConfig> = sections.into_iter().filter_map(|section| camera(section, &mut known, tracking, outside)).collect();
    if cameras.len() == written && written > 0 && cameras.iter().all(|camera| !camera.enabled) {
        root.fault("camera", 0, "has only disabled ones; must have at least one with enabled = true");
    }
    cameras
}

/// What must differ between cameras.
#[derive(Default)]
struct Known {
    ids: BTreeSet<CameraId>,
    /// Environment variables that passwords were taken from.
    variables: BTreeSet<String>,
}

/// How a camera is opened.
struct Opening {
    input: Input,
    looped: bool,
    transport: Transport,
    ca_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<SecretString>,
}

fn camera(mut section: Section<'_, '_>, known: &mut Known, tracking: &Tracking, outside: &Outside<'_>) -> Option<CameraConfig> {
    const DECODE: [(&str, Decode); 3] = [("auto", Decode::Auto), ("keyframes", Decode::Keyframes), ("all", Decode::All)];
    const DECODER: [(&str, DecoderKind); 5] = [
        ("software", DecoderKind::Software),
        ("auto", DecoderKind::Auto),
        ("va", DecoderKind::Va),
        ("nvidia", DecoderKind::Nvidia),
        ("v4l2", DecoderKind::V4l2),
    ];
    let id = camera_id(&mut section, &mut known.ids);
    let opening = opening(&mut section, id.as_ref(), &mut known.variables, outside);
    let prompt = prompt(&mut section);
    let interval = Duration::from_secs_f64(section.number("interval", 0.01..=DAY, 1.0));
    let motion = motion(&mut section, interval);
    let decode = section.choice("decode", &DECODE, Decode::default());
    let decoder = section.choice("decoder", &DECODER, DecoderKind::default());
    let max_width = section.holds("max_width").then(|| section.integer("max_width", 64..=8192, 64) as u32);
    let frozen_after = section.holds("frozen_after").then(|| Duration::from_secs_f64(section.number("frozen_after", 1.0..=DAY, DAY)));
    let enabled = section.flag("enabled", true).value;
    let record = section.choice("record", &[("off", Record::Off), ("events", Record::Events)], Record::default());
    if record != Record::Off && section.holds("pipeline") {
        let message = "has no meaning beside pipeline, which ends in raw video; must be off, or the camera opened by uri";
        section.fault("record", section.offset_of("record"), message);
    }
    let tracking = track::camera(&mut section, prompt.as_ref(), tracking);
    section.finish();
    let Opening { input, looped, transport, ca_file, username, password } = opening?;
    Some(CameraConfig {
        looped,
        interval,
        decode,
        decoder,
        max_width,
        motion,
        frozen_after,
        transport,
        ca_file,
        username,
        password,
        enabled,
        tracking,
        record,
        ..CameraConfig::new(id?, input, prompt?)
    })
}

fn opening(
    section: &mut Section<'_, '_>,
    id: Option<&CameraId>,
    variables: &mut BTreeSet<String>,
    outside: &Outside<'_>,
) -> Option<Opening> {
    match (section.text("uri"), section.text("pipeline")) {
        (Some(uri), None) => by_uri(section, &uri, id, variables, outside),
        (None, Some(fragment)) => by_fragment(section, fragment, outside),
        (uri, fragment) => {
            match fragment {
                Some(fragment) if uri.is_some() => section.fault("pipeline", fragment.offset, "stands beside uri; must be one of the two"),
                _ if section.holds("pipeline") => {}
                _ => section.missing(
                    "uri",
                    "rtsp:// rtsps:// http:// https:// file:// or v4l2://, or pipeline a gst-launch fragment that ends in raw video",
                ),
            }
            // What else is written is not judged before it is known how the camera is opened.
            section.know(&OF_URIS);
            None
        }
    }
}

fn by_uri(
    section: &mut Section<'_, '_>,
    text: &At<String>,
    id: Option<&CameraId>,
    variables: &mut BTreeSet<String>,
    outside: &Outside<'_>,
) -> Option<Opening> {
    let located = uri::locate(&text.value).map_err(|why| section.fault("uri", text.offset, &why)).ok();
    let scheme = located.as_ref().and_then(|located| located.uri.split_once("://")).map(|(scheme, _)| scheme.to_owned());
    // A scheme that is not known is one fault; what it would forbid is none.
    let other = |schemes: &[&str]| scheme.as_deref().is_some_and(|scheme| !schemes.contains(&scheme));
    let looped = section.flag("loop", false);
    if looped.value && other(&["file"]) {
        section.fault("loop", looped.offset, "is true for a live source; only a file can start anew at its end");
    }
    let transport = section.choice("transport", &[("tcp", Transport::Tcp), ("udp", Transport::Udp)], Transport::default());
    if transport == Transport::Udp && other(&["rtsp"]) {
        let message = "is \"udp\"; must be tcp, for only rtsp:// can send its packets beside the connection";
        section.fault("transport", section.offset_of("transport"), message);
    }
    let ca_file = section.text("ca_file").map(|file| At { value: credentials::place(&file.value, outside.env), offset: file.offset });
    if let Some(file) = &ca_file {
        if other(&["rtsps", "https"]) {
            section.fault("ca_file", file.offset, "has no meaning for this uri; only rtsps:// and https:// show a certificate");
        } else if let Err(why) = (outside.checks.ca_file)(&file.value) {
            section.fault("ca_file", file.offset, &format!("cannot be used: {why}"));
        }
    }
    let username = section.text("username").map(|text| text.value);
    let password = camera_password(section, id, variables, outside);
    let Located { uri, username: uri_user, password: uri_password } = located?;
    Some(Opening {
        input: Input::Uri(uri),
        looped: looped.value,
        transport,
        ca_file: ca_file.map(|file| file.value),
        username: username.or(uri_user),
        password: password.or(uri_password),
    })
}

fn by_fragment(section: &mut Section<'_, '_>, fragment: At<String>, outside: &Outside<'_>) -> Option<Opening> {
    // The fragment is never repeated: its properties may hold credentials.
    if let Err(why) = (outside.checks.source)(&fragment.value) {
        section.fault("pipeline", fragment.offset, &format!("cannot be used: {why}"));
    }
    for key in OF_URIS {
        if section.holds(key) {
            section.fault(
                key,
                section.offset_of(key),
                "has no meaning beside pipeline; its elements have properties of their own for that",
            );
        }
    }
    section.know(&OF_URIS);
    let (looped, transport) = (false, Transport::default());
    Some(Opening { input: Input::Fragment(fragment.value), looped, transport, ca_file: None, username: None, password: None })
}

/// As `password`, from a variable that is this camera's alone.
fn camera_password(
    section: &mut Section<'_, '_>,
    id: Option<&CameraId>,
    variables: &mut BTreeSet<String>,
    outside: &Outside<'_>,
) -> Option<SecretString> {
    let variable = id.map(|id| format!("PALISADE_CAMERA_{}_PASSWORD", id.as_str().to_uppercase().replace('-', "_")));
    let from_file = section.holds("password_file");
    let password = password(section, variable.as_deref(), outside);
    if let Some(variable) = variable.filter(|_| password.is_some() && !from_file)
        && !variables.insert(variable.clone())
    {
        section.fault("id", section.offset(), &format!("shares the variable {variable} with another camera; must have a password_file"));
    }
    password
}

fn motion(section: &mut Section<'_, '_>, interval: Duration) -> Option<MotionConfig> {
    let shortest = interval.as_secs_f64();
    let longest = section.number("max_interval", 0.1..=DAY, shortest.max(60.0));
    let mask = section.polygons("mask");
    let wanted = section.choice("motion", &[("off", false), ("auto", true)], false);
    if wanted && longest < shortest {
        section.fault("max_interval", section.offset_of("max_interval"), &format!("is {longest}; must be at least interval, {shortest}"));
    }
    wanted.then(|| MotionConfig { max_interval: Duration::from_secs_f64(longest), mask })
}

fn camera_id(section: &mut Section<'_, '_>, ids: &mut BTreeSet<CameraId>) -> Option<CameraId> {
    let Some(text) = section.text("id") else {
        section.missing("id", "a name of a-z, 0-9, _ and -");
        return None;
    };
    match CameraId::new(&text.value) {
        Ok(id) if ids.insert(id.clone()) => Some(id),
        Ok(_) => {
            section.fault("id", text.offset, &format!("is {:?} once more; each camera needs its own", text.value));
            None
        }
        Err(error) => {
            section.fault("id", text.offset, &format!("is wrong: {error}"));
            None
        }
    }
}

fn prompt(section: &mut Section<'_, '_>) -> Option<Prompt> {
    let text = section.text("prompt");
    let labels = section.texts("labels");
    let (key, offset, prompt) = match (text, labels) {
        (Some(text), None) => ("prompt", text.offset, Prompt::new(&text.value)),
        (None, Some(labels)) => ("labels", labels.offset, Prompt::from_labels(&labels.value)),
        (Some(_), Some(labels)) => {
            section.fault("labels", labels.offset, "stands beside prompt; must be one of the two");
            return None;
        }
        (None, None) => {
            if !section.holds("labels") {
                section.missing("prompt", "a prompt such as \"detect cat ; dog\", or labels a list");
            }
            return None;
        }
    };
    prompt.map_err(|error| section.fault(key, offset, &format!("is refused: {error}"))).ok()
}
