//! Wall-clock times as they are published: UTC, milliseconds.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment in UTC with millisecond resolution. `Display` is RFC 3339: `2026-11-23T14:03:07.120Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Utc {
    millis: i64,
}

impl Utc {
    /// The present moment by the system's clock.
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// From milliseconds since 1970-01-01T00:00:00Z.
    pub fn from_millis(millis: i64) -> Self {
        Self { millis }
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn epoch(self) -> f64 {
        self.millis as f64 / 1000.0
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub fn millis(self) -> i64 {
        self.millis
    }

    /// The local wall-clock time for a person: `2026-11-23 15:03:07`.
    pub fn local(self) -> String {
        match jiff::Timestamp::from_millisecond(self.millis) {
            Ok(time) => time.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
            Err(_) => self.to_string(),
        }
    }

    /// A form for file names, in order of time: `20261123T140307.120Z`.
    pub fn compact(self) -> String {
        self.to_string().replace(['-', ':'], "")
    }

    /// What `compact` wrote; `None` for anything else.
    pub fn from_compact(text: &str) -> Option<Self> {
        let parts = [text.get(..4)?, text.get(4..6)?, text.get(6..11)?, text.get(11..13)?, text.get(13..)?];
        let [year, month, day, minute, second] = parts;
        let time = Self::from_rfc3339(&format!("{year}-{month}-{day}:{minute}:{second}"))?;
        (time.compact() == text).then_some(time)
    }

    /// From RFC 3339, in any time zone; `None` for anything else.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|time| Self { millis: time.as_millisecond() })
    }
}

impl From<SystemTime> for Utc {
    fn from(time: SystemTime) -> Self {
        let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        Self { millis: time.duration_since(UNIX_EPOCH).map_or_else(|before| -millis(before.duration()), millis) }
    }
}

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.millis) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{}ms", self.millis),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        let time = Utc::from_millis(1_795_442_587_120);
        assert_eq!(time.to_string(), "2026-11-23T14:03:07.120Z");
        assert_eq!(time.compact(), "20261123T140307.120Z");
        assert_eq!(Utc::from_compact("20261123T140307.120Z"), Some(time));
        assert_eq!(Utc::from_rfc3339("2026-11-23T15:03:07.12+01:00"), Some(time));
        for other in ["", "20261123T140307Z", "20261123T140307.120", "2026112éT140307.120Z", "20261323T140307.120Z"] {
            assert_eq!(Utc::from_compact(other), None, "{other}");
        }
        assert_eq!(Utc::from_millis(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert!((time.epoch() - 1_795_442_587.120).abs() < 1e-6);
    }
}
