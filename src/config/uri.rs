//! Where a camera is: checks a URI, takes credentials out of it, makes file paths absolute.

use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::base::redact::{ExposeSecret, SecretString};

/// RFC 3986: all but unreserved characters and `/` is encoded in a path.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A checked URI and the credentials that stood in it.
#[derive(Debug)]
pub(super) struct Located {
    /// Without credentials; `file://` with an absolute, percent-encoded path.
    pub uri: String,
    pub username: Option<String>,
    pub password: Option<SecretString>,
}

/// Checks `text`: a URI of a known scheme, or a path without scheme, which is a file.
///
/// # Errors
/// A sentence that goes on after the key path, without the credentials.
pub(super) fn locate(text: &str) -> Result<Located, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        // A mistyped scheme must not become a file name that is then told to everybody, its password included.
        let first = text.split('/').next().unwrap_or_default();
        if first.contains([':', '@']) {
            return Err("is neither a path nor a URI; must be scheme://host/path, or ./path for a file".to_owned());
        }
        return file(text);
    };
    match scheme {
        "file" => file(&percent_decode(rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest))),
        "v4l2" if rest.starts_with("/dev/") => Ok(Located { uri: text.to_owned(), username: None, password: None }),
        "v4l2" => Err(format!("is {text:?}; must name a device such as v4l2:///dev/video0")),
        "rtsp" | "rtsps" | "http" | "https" => network(scheme, rest),
        _ => Err(format!("has the scheme {scheme:?}; must be one of rtsp, rtsps, http, https, file, v4l2")),
    }
}

fn file(path: &str) -> Result<Located, String> {
    if path.is_empty() {
        return Err("names no file; must be a path or file:///path".to_owned());
    }
    let absolute = std::path::absolute(Path::new(path)).map_err(|error| format!("cannot be made absolute: {error}"))?;
    Ok(Located { uri: format!("file://{}", utf8_percent_encode(&absolute.to_string_lossy(), PATH)), username: None, password: None })
}

/// Checks where live video is sent to: `rtmp://host/app/stream`, the same encrypted, or `srt://host:port`. `key` takes the place
/// of `{key}` in it.
///
/// # Errors
/// A sentence that goes on after the key path, without any part that may be secret.
pub(super) fn target(text: &str, key: Option<&SecretString>) -> Result<SecretString, String> {
    let right = "rtmp://host/app/stream, rtmps:// likewise, or srt://host:port";
    let Some((scheme, rest)) = text.split_once("://") else { return Err(format!("is no URI; must be {right}")) };
    if !["rtmp", "rtmps", "srt"].contains(&scheme) {
        return Err(format!("has the scheme {scheme:?}; must be one of rtmp, rtmps, srt"));
    }
    let (_, host) = split_credentials(rest);
    let port = authority(scheme, host)?;
    let (address, query) = host.split_once('?').unwrap_or((host, ""));
    if scheme == "srt" {
        if port.is_none() {
            return Err("names no port; must be srt://host:port".to_owned());
        }
        if query.split('&').any(|pair| pair.strip_prefix("mode=").is_some_and(|mode| mode != "caller")) {
            return Err("has a mode other than caller; must be caller, for it is we who call".to_owned());
        }
        let phrase = query.split('&').find_map(|pair| pair.strip_prefix("passphrase=")).filter(|phrase| *phrase != "{key}");
        if phrase.is_some_and(|phrase| !(10..=79).contains(&phrase.len())) {
            return Err("has a passphrase that SRT does not take; must be of 10 to 79 characters".to_owned());
        }
    } else if address.split('/').skip(1).filter(|part| !part.is_empty()).count() < 2 {
        return Err(format!("names no stream; must be {scheme}://host/app/stream"));
    }
    Ok(SecretString::from(key.map_or(text.to_owned(), |key| text.replace("{key}", key.expose_secret()))))
}

/// The port, where one is written, of a host that is in order.
fn authority<'h>(scheme: &str, host: &'h str) -> Result<Option<&'h str>, String> {
    let authority = host.split(['/', '?', '#']).next().unwrap_or_default();
    let (name, port) = match authority.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((name, port)) => (name, port.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(name, port)| (name, Some(port))),
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(format!("names no host; must be {scheme}://host[:port]/path"));
    }
    if port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port == 0) || port.parse::<u16>().is_err()) {
        return Err("has a bad port; must be in 1..=65535".to_owned());
    }
    Ok(port)
}

fn network(scheme: &str, rest: &str) -> Result<Located, String> {
    let (credentials, host) = split_credentials(rest);
    authority(scheme, host)?;
    let uri = format!("{scheme}://{host}");
    let (username, password) = match credentials.map(|text| text.split_once(':').unwrap_or((text, ""))) {
        Some((user, "")) => (Some(percent_decode(user)), None),
        Some((user, password)) => (Some(percent_decode(user)), Some(SecretString::from(percent_decode(password)))),
        None => (None, None),
    };
    Ok(Located { uri, username, password })
}

/// Credentials, if any, and the rest from the host on. Passwords are typed unescaped into cameras' URIs, `/` and `@`
/// among them, so the last `@` ends them; but where a whole `host` or `host:port` comes before the first `/`, an `@`
/// further on belongs to the path.
fn split_credentials(rest: &str) -> (Option<&str>, &str) {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    let whole = !authority.contains('@') && port.is_none_or(|port| port.ends_with(']') || port.parse::<u16>().is_ok());
    match rest.rsplit_once('@') {
        Some((credentials, host)) if !whole => (Some(credentials), host),
        _ => (None, rest),
    }
}

fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_taken_out() {
        let located = locate("rtsp://admin:p%40ss/w@rd@10.0.0.2:554/h264?ch=1").unwrap();
        assert_eq!(located.uri, "rtsp://10.0.0.2:554/h264?ch=1");
        assert_eq!(located.username.as_deref(), Some("admin"));
        assert_eq!(located.password.unwrap().expose_secret(), "p@ss/w@rd");
        let located = locate("http://cam.lan/snap?mail=a@b.com").unwrap();
        assert_eq!((located.uri.as_str(), located.username), ("http://cam.lan/snap?mail=a@b.com", None));
        assert_eq!(locate("rtsp://cam:554/a@b").unwrap().uri, "rtsp://cam:554/a@b");
        assert!(locate("rtsp://cam/main").unwrap().username.is_none());
        assert_eq!(locate("rtsp://[::1]:8554/a").unwrap().uri, "rtsp://[::1]:8554/a");
    }

    #[test]
    fn a_stream_is_sent_to_servers_that_are_named_in_full() {
        let key = SecretString::from("live_1/x");
        for (text, sent) in [
            ("rtmp://a.example/app/key", "rtmp://a.example/app/key"),
            ("rtmps://a.example:443/app/{camera}/{key}", "rtmps://a.example:443/app/{camera}/live_1/x"),
            ("srt://10.0.0.2:9000?mode=caller&passphrase=0123456789", "srt://10.0.0.2:9000?mode=caller&passphrase=0123456789"),
            ("srt://[::1]:9000", "srt://[::1]:9000"),
        ] {
            assert_eq!(target(text, Some(&key)).unwrap().expose_secret(), sent);
        }
        for (bad, why) in [
            ("s3cr3t", "is no URI"),
            ("rtsp://host/s3cr3t", "the scheme \"rtsp\""),
            ("rtmp:///app/s3cr3t", "names no host"),
            ("rtmp://host:0/app/s3cr3t", "bad port"),
            ("rtmp://host/s3cr3t", "names no stream"),
            ("srt://host?passphrase=s3cr3t", "names no port"),
            ("srt://host:1?passphrase=s3cr3t&mode=listener", "a mode other than caller"),
        ] {
            let refused = target(bad, None).unwrap_err();
            assert!(refused.contains(why) && !refused.contains("s3cr3t"), "{bad}: {refused}");
        }
    }

    #[test]
    fn a_path_becomes_an_absolute_file_uri() {
        let here = std::env::current_dir().unwrap();
        for text in ["samples/a b.mp4", "file://samples/a b.mp4", "file://samples/a%20b.mp4"] {
            assert_eq!(locate(text).unwrap().uri, format!("file://{}/samples/a%20b.mp4", here.display()), "{text}");
        }
        assert_eq!(locate("file:///media/x.mp4").unwrap().uri, "file:///media/x.mp4");
        assert_eq!(locate("file://localhost/media/x.mp4").unwrap().uri, "file:///media/x.mp4");
    }

    #[test]
    fn what_cannot_be_opened_is_refused() {
        for bad in [
            "ftp://a/b",
            "rtsp://",
            "rtsp:///path",
            "rtsp://cam:0/x",
            "rtsp://cam:99999/",
            "v4l2://video0",
            "",
            "rtsp:/admin:pw@cam/x",
            "admin:pw@cam/x",
        ] {
            assert!(locate(bad).is_err(), "{bad}");
        }
        let refused = locate("rtsp://admin:s3cr3t@cam:99999/").unwrap_err();
        assert!(!refused.contains("s3cr3t"), "{refused}");
    }
}
