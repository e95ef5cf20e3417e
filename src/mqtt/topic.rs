//! The names of the topics, in one place. The prefix is checked with the configuration; camera ids are topic-safe by type.

use crate::types::CameraId;

/// Builds topics below a prefix.
#[derive(Clone, Debug)]
pub struct Topics {
    prefix: String,
}

impl Topics {
    /// Topics below `prefix`, such as `palisade` or `site/north`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Whether the daemon is there: `P/status`.
    pub fn status(&self) -> String {
        format!("{}/status", self.prefix)
    }

    /// What a camera is doing: `P/<camera>/status`.
    pub fn camera_status(&self, camera: &CameraId) -> String {
        format!("{}/{camera}/status", self.prefix)
    }

    /// What was seen on a camera's frames: `P/<camera>/detections`.
    pub fn detections(&self, camera: &CameraId) -> String {
        format!("{}/{camera}/detections", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn topics_follow_the_contract() {
        let (topics, camera) = (Topics::new("site/north"), CameraId::new("street").unwrap());
        assert_eq!(topics.status(), "site/north/status");
        assert_eq!(topics.camera_status(&camera), "site/north/street/status");
        assert_eq!(topics.detections(&camera), "site/north/street/detections");
    }
}
