//! Why the link is down, in a sentence that names the broker and what to look at, and how often that is said.

use std::time::{Duration, Instant};

use crate::base::backoff::Backoff;
use crate::mqtt::Patience;

/// The least time between two lines about the same trouble.
const QUIET: Duration = Duration::from_secs(60);

/// Why there is no link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// For the operator; without credentials.
    pub sentence: String,
    /// The broker said no, and will until somebody changes something: try rarely.
    pub refused: bool,
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The broker refused user name or password.
    Login,
    /// The broker refused our client id.
    ClientId,
    /// The broker does not speak this version; what to do goes after `refused `.
    Protocol(&'static str),
    /// It lets nobody in for now.
    Busy,
    /// It refused something else, until somebody changes something; in words that go on after `refused `.
    Refused(&'static str),
    /// It ended the connection, in words that go on after `ended the connection: `.
    Ended {
        /// Why.
        why: String,
        /// It will again, until somebody changes something.
        refused: bool,
    },
    /// It did not answer in time.
    Late,
    /// It takes no more data.
    Stuck,
    /// It wants a certificate of ours that it knows; what OpenSSL calls that.
    Certificate(String),
    /// Encryption did not come about; OpenSSL's report.
    Tls(String),
    /// There is no connection to be had.
    Unreachable(String),
    /// A ping was not answered.
    NoPing,
    /// It closed the connection.
    Closed,
    /// The connection broke.
    BrokenOff(String),
    /// Anything else.
    Other(String),
}

impl Trouble {
    /// A trouble that may pass by itself.
    pub fn passing(sentence: String) -> Self {
        Self { sentence, refused: false }
    }

    /// What `cause` means for the link to `broker` (`host:port`).
    pub fn new(broker: &str, cause: Cause) -> Self {
        let refused = matches!(
            cause,
            Cause::Login
                | Cause::ClientId
                | Cause::Protocol(_)
                | Cause::Refused(_)
                | Cause::Certificate(_)
                | Cause::Ended { refused: true, .. }
        );
        let sentence = match cause {
            Cause::Login => format!("broker {broker} refused the login; check mqtt.username and mqtt.password_file"),
            Cause::ClientId => format!("broker {broker} refused our client id"),
            Cause::Busy => format!("broker {broker} refused the connection for now"),
            Cause::Protocol(what) | Cause::Refused(what) => format!("broker {broker} refused {what}"),
            Cause::Ended { why, .. } => format!("broker {broker} ended the connection: {why}"),
            Cause::Late => format!("broker {broker} did not answer in time"),
            Cause::Stuck => format!("broker {broker} takes no more data"),
            Cause::Certificate(why) => {
                format!("broker {broker} takes no client without a certificate that it knows: {why}; check mqtt.cert_file")
            }
            Cause::Tls(report) => {
                let reason = reason(&report);
                format!("broker {broker} could not be reached over TLS: {reason}; {}", cure(reason))
            }
            Cause::Unreachable(why) => format!("broker {broker} cannot be reached: {why}"),
            Cause::NoPing => format!("broker {broker} stopped answering pings"),
            Cause::Closed => format!("broker {broker} closed the connection"),
            Cause::BrokenOff(why) => format!("broker {broker} broke off the connection: {why}"),
            Cause::Other(why) => format!("link to broker {broker} failed: {why}"),
        };
        Self { sentence, refused }
    }
}

/// What the broker says of our certificate, if OpenSSL's report tells of that (the alerts of RFC 8446, 6.2). With TLS 1.3
/// it comes after the handshake, in place of an answer; with 1.2 a missing certificate is a mere `handshake failure`.
pub fn alert(report: &str) -> Option<&str> {
    let (_, rest) = report.split_once(" alert ")?;
    let why = rest.split(':').next()?;
    (why.contains("certificate") || ["unknown ca", "handshake failure"].contains(&why)).then_some(why)
}

/// What OpenSSL's report says to a person: the words in its last parentheses, if it has any.
fn reason(report: &str) -> &str {
    let inner = report.rsplit_once('(').and_then(|(_, rest)| rest.split_once(')'));
    inner.map_or(report, |(reason, _)| reason)
}

/// What to do about it.
fn cure(reason: &str) -> &'static str {
    match reason {
        "certificate has expired" => "the broker needs a new certificate, or this machine's clock is wrong",
        "certificate is not yet valid" => "this machine's clock may be wrong",
        _ => "check mqtt.ca_file, and that its certificate names this host",
    }
}

/// How long to wait before the next try.
#[derive(Debug)]
pub struct Waits {
    passing: Backoff,
    refused: Backoff,
}

impl Waits {
    /// As patience has it.
    pub fn new(Patience { retry, retry_most, .. }: Patience) -> Self {
        // Half the longest delay and more between refusals, so that a wrong password does not look like an attack.
        Self { passing: Backoff::new(retry, retry_most), refused: Backoff::new(retry_most, retry_most) }
    }

    /// The wait after this trouble.
    pub fn after(&mut self, trouble: &Trouble) -> Duration {
        if trouble.refused { self.refused.next_delay() } else { self.passing.next_delay() }
    }

    /// All is well: the next wait is the shortest again.
    pub fn reset(&mut self) {
        self.passing.reset();
        self.refused.reset();
    }
}

/// Lets the first of a kind of line through, and the same again only after a while.
#[derive(Debug, Default)]
pub struct Quiet {
    last: Option<(Instant, String)>,
}

impl Quiet {
    /// Whether to say `line` now. Another line is let through after a second.
    pub fn lets(&mut self, line: &str, now: Instant) -> bool {
        let lets = self.last.as_ref().is_none_or(|(at, last)| {
            let least = if last == line { QUIET } else { Duration::from_secs(1) };
            now.saturating_duration_since(*at) >= least
        });
        if lets {
            self.last = Some((now, line.to_owned()));
        }
        lets
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use rumqttc::{ConnectReturnCode, ConnectionError, StateError, mqttbytes};

    use super::*;
    use crate::mqtt::wire::v3::cause;

    fn told(error: &ConnectionError) -> Trouble {
        Trouble::new("hub:1883", cause(error))
    }

    #[test]
    fn a_refused_login_names_what_to_check_and_is_tried_rarely() {
        let trouble = told(&ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized));
        assert_eq!(trouble.sentence, "broker hub:1883 refused the login; check mqtt.username and mqtt.password_file");
        assert!(trouble.refused);
        let busy = told(&ConnectionError::ConnectionRefused(ConnectReturnCode::ServiceUnavailable));
        assert!(!busy.refused);
    }

    #[test]
    fn a_passing_trouble_names_broker_and_cause() {
        let error = ConnectionError::Io(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(told(&error), Trouble::passing("broker hub:1883 cannot be reached: connection refused".into()));
    }

    #[test]
    fn a_tls_report_is_cut_to_its_reason() {
        let report = "Native TLS error error:0A000086:SSL routines:tls_post_process:verify failed:../clnt.c:1889: (IP address mismatch)";
        assert_eq!(reason(report), "IP address mismatch");
        assert_eq!(reason("I/O: unexpected EOF"), "I/O: unexpected EOF");
    }

    #[test]
    fn a_broker_that_wants_a_certificate_is_understood() {
        let report =
            "error:0A00045C:SSL routines:ssl3_read_bytes:tlsv13 alert certificate required:../rec_layer_s3.c:1601:SSL alert number 116";
        assert_eq!(alert(report), Some("certificate required"));
        let state = StateError::Deserialization(mqttbytes::Error::Io(std::io::Error::other(report)));
        let trouble = Trouble::new("hub:8883", cause(&ConnectionError::MqttState(state)));
        let sentence = "broker hub:8883 takes no client without a certificate that it knows: certificate required; check mqtt.cert_file";
        assert_eq!(trouble, Trouble { sentence: sentence.to_owned(), refused: true });
        assert_eq!(
            alert("error:0A000418:SSL routines:ssl3_read_bytes:tlsv1 alert unknown ca:../x.c:1:SSL alert number 48"),
            Some("unknown ca")
        );
        assert_eq!(alert("error:0A000126:SSL routines::unexpected eof while reading:../x.c:1:"), None);
        assert_eq!(alert("error:0A000438:SSL routines:ssl3_read_bytes:tlsv1 alert internal error:../x.c:1:SSL alert number 80"), None);
    }

    #[test]
    fn the_same_line_is_said_once_a_minute() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut quiet = Quiet::default();
        let said: Vec<bool> = [("a", 0), ("a", 5), ("b", 6), ("b", 6), ("a", 6), ("b", 65), ("b", 66)]
            .into_iter()
            .map(|(line, secs)| quiet.lets(line, at(secs)))
            .collect();
        assert_eq!(said, [true, false, true, false, false, false, true]);
    }
}
