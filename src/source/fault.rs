//! GStreamer's complaints as sentences for a person: which source, what is wrong, what would help. No credentials.

use gstreamer::glib;

use crate::base::redact::{self, ExposeSecret};
use crate::config::{CameraConfig, Input};
use crate::source::watch::{Fault, Retry};

/// The Debian packages by what the caps of a missing decoder, parser or demuxer begin with. The first match counts.
const PACKAGES: &[(&str, &str)] = &[
    ("video/x-vp", "gstreamer1.0-plugins-good"),
    ("video/x-av1", "gstreamer1.0-plugins-bad"),
    ("video/mpegts", "gstreamer1.0-plugins-bad"),
    ("image/", "gstreamer1.0-plugins-good"),
    ("video/quicktime", "gstreamer1.0-plugins-good"),
    ("video/x-matroska", "gstreamer1.0-plugins-good"),
    ("video/webm", "gstreamer1.0-plugins-good"),
    ("video/x-msvideo", "gstreamer1.0-plugins-good"),
    ("application/x-rtp", "gstreamer1.0-plugins-good"),
    ("multipart/", "gstreamer1.0-plugins-good"),
    ("video/", "gstreamer1.0-libav"),
];

/// Turns messages of one camera into faults.
pub struct Interpreter {
    uri: String,
    secrets: Vec<redact::SecretString>,
}

impl Interpreter {
    /// For a camera.
    pub fn new(config: &CameraConfig) -> Self {
        let uri = match &config.input {
            Input::Uri(uri) => uri.clone(),
            Input::Fragment(_) => String::new(),
        };
        let mut secrets: Vec<_> = config.password.iter().cloned().collect();
        // Credentials that a URI carries all the same: its user info, and the values of its query.
        let rest = uri.split_once("://").map_or("", |(_, rest)| rest);
        if let (Some((user, _)), true) = (rest.rsplit_once('@'), !uri.starts_with("file:")) {
            secrets.push(user.to_owned().into());
            secrets.extend(user.split_once(':').map(|(_, password)| password.to_owned().into()));
        }
        if let (Some((_, query)), true) = (rest.split_once('?'), uri.starts_with("http") || uri.starts_with("rtsp")) {
            secrets.push(query.to_owned().into());
        }
        Self { uri, secrets }
    }

    /// An ERROR message; `missing` is what `missing_plugin` last found, and `shown` whether there were pictures before.
    pub fn error(&self, error: &glib::Error, debug: Option<&str>, missing: Option<&str>, shown: bool) -> Fault {
        if let Some(missing) = missing {
            return Fault { reason: self.clean(missing), retry: Retry::Slowly };
        }
        let at = self.place();
        if error.matches(gstreamer::ResourceError::NotAuthorized) {
            let reason = format!("{at} refused the user name or password; check username and password_file");
            return Fault { reason, retry: Retry::Slowly };
        }
        // The pad of a video would be linked.
        if debug.is_some_and(|debug| debug.contains("reason not-linked")) {
            return self.no_video();
        }
        // The HTTP source keeps to itself why it has nothing to show.
        if !shown && self.uri.starts_with("http") && debug.is_some_and(|debug| debug.contains("reason error (-5)")) {
            let reason = format!("{at} gives no answer: it is not there, or its certificate is not trusted");
            return Fault { reason, retry: Retry::Soon };
        }
        let absent = error.matches(gstreamer::ResourceError::NotFound);
        let what = if absent { "not found" } else { "failed" };
        let details = [error.message(), debug.map(detail).unwrap_or_default()];
        let mut said: Vec<String> = Vec::new();
        for line in details.map(|line| self.clean(&sentence(line))) {
            if !line.is_empty() && !said.contains(&line) {
                said.push(line);
            }
        }
        // A file may appear at any time.
        let retry = if absent && !self.uri.starts_with("file:") { Retry::Doubtful } else { Retry::Soon };
        Fault { reason: format!("{at} {what}: {}", said.join(": ")), retry }
    }

    /// For a source that has sound alone.
    pub fn no_video(&self) -> Fault {
        Fault { reason: format!("{} has no video", self.place()), retry: Retry::Soon }
    }

    /// For a file that came to its end without a picture.
    pub fn empty(&self) -> Fault {
        Fault { reason: format!("{} ended without a picture; is it whole?", self.place()), retry: Retry::Soon }
    }

    fn place(&self) -> String {
        if self.uri.is_empty() { "the fragment".to_owned() } else { redact::uri(&self.uri) }
    }

    /// For a server whose certificate was refused.
    pub fn untrusted(&self) -> Fault {
        let at = self.place();
        let reason = format!("{at} shows a certificate that is not trusted; name its authority, or itself, in ca_file");
        Fault { reason, retry: Retry::Slowly }
    }

    /// A sentence for an element message that tells of a missing decoder, demuxer or parser; `None` for others and for
    /// those of sound and subtitles, which are not wanted.
    pub fn missing_plugin(&self, structure: &gstreamer::StructureRef) -> Option<String> {
        if structure.name() != "missing-plugin" {
            return None;
        }
        let name = structure.get::<String>("name").unwrap_or_else(|_| "a plugin".to_owned());
        if let Ok(element) = structure.get::<String>("detail") {
            return Some(format!("gstreamer has no {name} ({element}); install {}", package_of(&element)));
        }
        let caps = structure.get::<gstreamer::Caps>("detail").ok()?;
        let caps = caps.structure(0)?;
        let media = caps.get::<String>("media").unwrap_or_default();
        if caps.name().starts_with("audio/") || caps.name().starts_with("text/") || media == "audio" {
            return None;
        }
        Some(format!("gstreamer has no {name} ({}); install {}", caps.name(), package_for(caps.name())))
    }

    /// A text without this camera's credentials, on one line and of bearable length.
    pub fn clean(&self, text: &str) -> String {
        // Of a fragment's addresses nobody knows which part is the secret.
        let text = if self.uri.is_empty() { redact::addresses(text) } else { text.replace(&self.uri, &redact::uri(&self.uri)) };
        let secrets: Vec<_> = self.secrets.iter().filter(|secret| !secret.expose_secret().is_empty()).collect();
        let text = redact::text(&text, &secrets);
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
    }
}

/// The last line of a debug text, after `file.c(123): function (): /Path/of:element:`.
fn detail(debug: &str) -> &str {
    let last = debug.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    if last.contains(".c(") && last.ends_with(':') { "" } else { last }
}

/// In our voice: lowercase at the start, no final dot. An acronym keeps its capitals.
fn sentence(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// The Debian package of a decoder, parser or demuxer for this media type.
pub fn package_for(media: &str) -> &'static str {
    PACKAGES.iter().find(|(prefix, _)| media.starts_with(prefix)).map_or("gstreamer1.0-libav", |(_, package)| package)
}

/// The Debian package of an element this program asks for by name.
pub fn package_of(element: &str) -> &'static str {
    match element {
        "filesrc" | "appsink" | "appsrc" | "clocksync" | "capsfilter" | "parsebin" | "videoconvert" | "videoscale" => {
            "gstreamer1.0-plugins-base"
        }
        "h264parse" | "h265parse" | "mpegvideoparse" | "mpeg4videoparse" | "av1parse" | "mpegtsmux" | "tsdemux" | "rtmp2sink"
        | "srtsink" => "gstreamer1.0-plugins-bad",
        "avdec_h264" | "avdec_h265" => "gstreamer1.0-libav",
        "x264enc" => "gstreamer1.0-plugins-ugly",
        _ => "gstreamer1.0-plugins-good",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{CameraId, Prompt};

    fn interpreter(uri: &str) -> Interpreter {
        gstreamer::init().unwrap();
        Interpreter::new(&CameraConfig {
            username: Some("viewer".into()),
            password: Some("s3cr3t".to_owned().into()),
            ..CameraConfig::new(CameraId::new("a").unwrap(), Input::Uri(uri.into()), Prompt::new("detect cat").unwrap())
        })
    }

    #[test]
    fn no_credential_gets_into_a_reason() {
        let error = glib::Error::new(gstreamer::ResourceError::Read, "Could not read rtsp://cam/1?pwd=hunter2 with s3cr3t.");
        let debug = "../gst/rtsp/gstrtspsrc.c(1): f (): /GstPipeline:p/GstRTSPSrc:s:\nFailed at rtsp://cam/1?pwd=hunter2 (s3cr3t)";
        let fault = interpreter("rtsp://cam/1?pwd=hunter2").error(&error, Some(debug), None, false);
        assert!(!fault.reason.contains("hunter2") && !fault.reason.contains("s3cr3t"), "{}", fault.reason);
        assert!(
            fault.reason.starts_with("rtsp://cam/1?*** failed: could not read rtsp://cam/1?*** with ***: failed at"),
            "{}",
            fault.reason
        );
        let shy = interpreter("rtsp://u:p4ssw0rd@cam/1").clean("rtsp://u:p4ssw0rd@cam/1 and Basic u:p4ssw0rd and p4ssw0rd");
        assert!(!shy.contains("p4ssw0rd"), "{shy}");
    }

    #[test]
    fn refused_credentials_are_tried_slowly() {
        let error = glib::Error::new(gstreamer::ResourceError::NotAuthorized, "Unauthorized");
        assert_eq!(interpreter("rtsp://cam/1").error(&error, None, None, false).retry, Retry::Slowly);
    }

    #[test]
    fn a_missing_decoder_names_codec_and_package() {
        let structure = |caps: &str| {
            let caps: gstreamer::Caps = caps.parse().unwrap();
            gstreamer::Structure::builder("missing-plugin")
                .field("type", "decoder")
                .field("detail", caps)
                .field("name", "H.265 (Main Profile) decoder")
                .build()
        };
        let interpreter = interpreter("file:///a.mp4");
        let sentence = interpreter.missing_plugin(&structure("video/x-h265, profile=(string)main")).unwrap();
        assert_eq!(sentence, "gstreamer has no H.265 (Main Profile) decoder (video/x-h265); install gstreamer1.0-libav");
        assert!(interpreter.missing_plugin(&structure("audio/mpeg")).is_none());
    }
}
