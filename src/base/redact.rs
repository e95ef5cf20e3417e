//! Secrets: held in a type that does not print, and cut out of URIs before anything is said about them.

use std::fmt;

pub use secrecy::ExposeSecret;

/// A secret text. It does not print, is wiped when dropped, and can be told from another.
#[derive(Clone)]
pub struct SecretString(secrecy::SecretString);

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for SecretString {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl ExposeSecret<str> for SecretString {
    fn expose_secret(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for SecretString {
    /// For configurations of the operator's own, not for what somebody shows: the time it takes tells of the text.
    fn eq(&self, other: &Self) -> bool {
        self.expose_secret() == other.expose_secret()
    }
}

impl Eq for SecretString {}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `uri` with the user and password replaced: `rtsp://***@host/path`. Text that is no URI comes back as it is.
///
/// The authority ends at the first `/`, `?` or `#`; but a password typed unescaped may contain one, so when an `@`
/// follows in the path all before the last `@` of the whole text is taken for credentials.
pub fn uri(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else { return uri.to_owned() };
    if scheme.eq_ignore_ascii_case("file") || scheme.eq_ignore_ascii_case("v4l2") {
        return uri.to_owned();
    }
    let rest = match rest.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => rest.to_owned(),
    };
    // Cameras also take credentials in the query (`?user=…&pwd=…`); none of it is needed to know which camera it is.
    match rest.split_once('?') {
        Some((path, _)) => format!("{scheme}://{path}?***"),
        None => format!("{scheme}://{rest}"),
    }
}

/// `text` with every occurrence of each secret (of three bytes or more) replaced by `***`.
pub fn text(text: &str, secrets: &[&SecretString]) -> String {
    let mut long_enough: Vec<&str> = secrets.iter().map(|secret| secret.expose_secret()).filter(|secret| secret.len() >= 3).collect();
    // The longest first: one may begin with another, and would not be found once that is gone.
    long_enough.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    long_enough.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
}

/// `text` with everything that looks like an address cut down to its scheme.
pub fn addresses(text: &str) -> String {
    let cut = |word: &str| match word.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://***"),
        None => word.to_owned(),
    };
    text.split_whitespace().map(cut).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_leave_a_uri() {
        assert_eq!(uri("rtsp://admin:s3cr3t@10.0.0.2:554/h264"), "rtsp://***@10.0.0.2:554/h264");
        assert_eq!(uri("rtsp://admin:p@ss/w?rd@cam/h264"), "rtsp://***@cam/h264");
        assert_eq!(uri("http://cam/snap?user=a&pwd=s3cr3t"), "http://cam/snap?***");
        assert_eq!(uri("rtsp://cam/main"), "rtsp://cam/main");
        assert_eq!(uri("file:///media/a@b.mp4"), "file:///media/a@b.mp4");
        assert_eq!(uri("no uri"), "no uri");
    }

    #[test]
    fn a_secret_does_not_print_and_is_told_from_another() {
        let [one, same, other] = ["s3cr3t", "s3cr3t", "s3cr3T"].map(SecretString::from);
        assert!(one == same && one != other);
        assert_eq!(format!("{one:?}"), "***");
    }

    #[test]
    fn addresses_leave_a_text() {
        assert_eq!(addresses("Could not open \"rtsp://u:p@cam/1?key=2\" for reading"), "Could not open \"rtsp://*** for reading");
    }

    #[test]
    fn secrets_leave_a_text() {
        let secret = SecretString::from("s3cr3t");
        assert_eq!(text("PLAY with s3cr3t", &[&secret]), "PLAY with ***");
        let [app, key] = ["live", "live_s3cr3t"].map(SecretString::from);
        assert_eq!(text("no live_s3cr3t in live", &[&app, &key]), "no *** in ***");
    }
}
