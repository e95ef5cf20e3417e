//! A camera's name and what it is doing.

use std::fmt;
use std::sync::Arc;

use crate::base::clock::Utc;
use crate::base::error::{Error, Kind, Result};

/// A camera's id: `^[a-z0-9][a-z0-9_-]{0,62}$`, safe in topics, file names and URLs. Clones are cheap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CameraId(Arc<str>);

impl CameraId {
    /// Checks and wraps an id.
    ///
    /// # Errors
    /// When `id` does not match the pattern; the sentence says what is allowed.
    pub fn new(id: &str) -> Result<Self> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        let first = id.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if first && id.len() <= 63 && id.bytes().all(inner) {
            return Ok(Self(id.into()));
        }
        Err(Error::new(Kind::Config, format!("{id:?} is not a camera id; must be 1 to 63 of a-z, 0-9, _ and -, not starting with _ or -")))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CameraId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a camera's supervisor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CameraState {
    /// The pipeline is being built, or its first frame is awaited.
    Connecting,
    /// Decoded frames arrive.
    Running,
    /// Connected, but no frame came for too long.
    Stalled,
    /// Lost; waiting before the next try.
    Backoff,
    /// It ended and is not tried again: a file played once, or a source that can never work.
    Failed,
    /// Switched off in the configuration, or the daemon stops.
    Disabled,
}

impl CameraState {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Connecting, Self::Running, Self::Stalled, Self::Backoff, Self::Failed, Self::Disabled];

    /// The name used in the MQTT contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Running => "running",
            Self::Stalled => "stalled",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
            Self::Disabled => "disabled",
        }
    }
}

/// A change of a camera's state, told once.
#[derive(Clone, Debug)]
pub struct CameraStatus {
    /// Which camera.
    pub camera: CameraId,
    /// Where it stands now.
    pub state: CameraState,
    /// Why, in a sentence without credentials; empty when all is well.
    pub reason: String,
    /// When it came to be so.
    pub since: Utc,
    /// Frames a second that the camera sends, measured lately.
    pub fps: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_pattern() {
        for good in ["a", "street", "0-gate_2", &"x".repeat(63)] {
            assert!(CameraId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "Street", "a b", "a/b", "é", "a+", &"x".repeat(64)] {
            assert!(CameraId::new(bad).is_err(), "{bad}");
        }
    }
}
