//! Which kind of source a URI names.

use std::path::PathBuf;

use crate::base::error::{Error, Kind, Result};
use crate::base::redact;
use crate::config::Input;

/// A source, by how it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A media file.
    File(PathBuf),
    /// An RTSP server, encrypted or not.
    Rtsp(String),
    /// An HTTP server, encrypted or not: motion JPEG, or whatever decodes.
    Http(String),
    /// A Video4Linux device.
    Device(PathBuf),
    /// The user's own elements, ending in raw video.
    Fragment(String),
}

impl Location {
    /// Sorts an input.
    ///
    /// # Errors
    /// As `parse`.
    pub fn of(input: &Input) -> Result<Self> {
        match input {
            Input::Uri(uri) => Self::parse(uri),
            Input::Fragment(fragment) => Ok(Self::Fragment(fragment.clone())),
        }
    }

    /// Sorts a URI.
    ///
    /// # Errors
    /// When the scheme is none of ours or a path is not absolute.
    pub fn parse(uri: &str) -> Result<Self> {
        let refuse = |why: &str| Err(Error::new(Kind::Config, format!("uri {} {why}", redact::uri(uri))));
        let Some((scheme, rest)) = uri.split_once("://") else {
            return refuse("has no scheme; must start with rtsp://, rtsps://, http://, https://, file:// or v4l2://");
        };
        let path = || decode_percent(rest.strip_prefix("localhost").unwrap_or(rest));
        match scheme.to_ascii_lowercase().as_str() {
            "rtsp" | "rtsps" | "http" | "https" if rest.trim_start_matches('/').is_empty() => refuse("names no host"),
            "rtsp" | "rtsps" => Ok(Self::Rtsp(uri.to_owned())),
            "http" | "https" => Ok(Self::Http(uri.to_owned())),
            "file" if path().is_absolute() => Ok(Self::File(path())),
            "v4l2" if path().is_absolute() => Ok(Self::Device(path())),
            "file" => refuse("is not absolute; must be like file:///media/clip.mp4"),
            "v4l2" => refuse("is not absolute; must be like v4l2:///dev/video0"),
            _ => refuse("is of no known kind; must start with rtsp://, rtsps://, http://, https://, file:// or v4l2://"),
        }
    }

    /// Whether it is a camera, which has no end.
    pub fn is_live(&self) -> bool {
        !matches!(self, Self::File(_))
    }
}

/// Undoes percent-encoding. File names are bytes, whatever they encode.
fn decode_percent(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    PathBuf::from(std::ffi::OsString::from_vec(percent_encoding::percent_decode_str(text).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_sorted() {
        let file = |path: &str| Location::File(path.into());
        assert_eq!(Location::parse("file:///a/b.mp4").unwrap(), file("/a/b.mp4"));
        assert_eq!(Location::parse("file:///a%20b/%C3%A9 100%.mp4").unwrap(), file("/a b/é 100%.mp4"));
        assert_eq!(Location::parse("file://localhost/a").unwrap(), file("/a"));
        assert_eq!(Location::parse("v4l2:///dev/video0").unwrap(), Location::Device("/dev/video0".into()));
        assert_eq!(Location::parse("RTSPS://cam/1").unwrap(), Location::Rtsp("RTSPS://cam/1".into()));
        assert_eq!(Location::parse("https://cam/mjpeg").unwrap(), Location::Http("https://cam/mjpeg".into()));
    }

    #[test]
    fn others_are_refused_without_credentials() {
        for (uri, why) in [
            ("street.mp4", "has no scheme"),
            ("file://samples/a.mp4", "is not absolute"),
            ("v4l2://video0", "is not absolute"),
            ("rtsp://", "names no host"),
            ("ftp://u:s3cr3t@host/a", "is of no known kind"),
        ] {
            let error = Location::parse(uri).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("s3cr3t"), "{uri}: {error}");
        }
    }
}
