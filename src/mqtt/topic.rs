//! The names of the topics, in one place. The prefix is checked with the configuration; camera ids are topic-safe by type.

use crate::base::hash::{FNV_OFFSET, fnv1a};
use crate::types::CameraId;

/// The last level of the topics of events.
const EVENTS: &str = "events";

/// What Frigate calls the sum of all labels.
const ALL: &str = "all";

/// Builds topics below a prefix.
#[derive(Clone, Debug)]
pub struct Topics {
    prefix: String,
    /// First level(s) of the topics that Frigate's readers know.
    frigate: Option<String>,
}

impl Topics {
    /// Topics below `prefix`, such as `palisade` or `site/north`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), frigate: None }
    }

    /// The same, and where there is one, topics below Frigate's prefix too.
    pub fn with_frigate(self, prefix: Option<&str>) -> Self {
        Self { frigate: prefix.map(str::to_owned), ..self }
    }

    /// Whether the daemon is there: `P/status`.
    pub fn status(&self) -> String {
        format!("{}/status", self.prefix)
    }

    /// Nothing is ever published there: `P/-`, which is no camera's either.
    pub fn question(&self) -> String {
        format!("{}/-", self.prefix)
    }

    /// What a camera is doing: `P/<camera>/status`.
    pub fn camera_status(&self, camera: &CameraId) -> String {
        format!("{}/{camera}/status", self.prefix)
    }

    /// What all retained topics of a camera begin with, but for its discovery.
    pub fn below(&self, camera: &CameraId) -> Vec<String> {
        std::iter::once(&self.prefix).chain(&self.frigate).map(|prefix| format!("{prefix}/{camera}/")).collect()
    }

    /// What was seen on a camera's frames: `P/<camera>/detections`.
    pub fn detections(&self, camera: &CameraId) -> String {
        format!("{}/{camera}/detections", self.prefix)
    }

    /// What changed about a camera's tracked objects: `P/<camera>/events`.
    pub fn events(&self, camera: &CameraId) -> String {
        format!("{}/{camera}/{EVENTS}", self.prefix)
    }

    /// How many of a label a camera sees: `P/<camera>/count/<label>`.
    pub fn count(&self, camera: &CameraId, label: &str) -> String {
        format!("{}/{camera}/count/{}", self.prefix, slug(label))
    }

    /// Everywhere a count is told: `P/<camera>/count/<slug>`, and `frigate/<camera>/<slug>`.
    pub fn counts(&self, camera: &CameraId, slug: &str) -> Vec<String> {
        // Frigate's readers take that one for the sum.
        let frigate = self.frigate.iter().filter(|_| slug != ALL).map(|prefix| format!("{prefix}/{camera}/{slug}"));
        std::iter::once(self.count(camera, slug)).chain(frigate).collect()
    }

    /// Where Frigate's readers look for the sum of a camera's counts: `frigate/<camera>/all`.
    pub fn frigate_all(&self, camera: &CameraId) -> Option<String> {
        self.frigate.as_ref().map(|prefix| format!("{prefix}/{camera}/{ALL}"))
    }

    /// Where Frigate's readers look for events, of all cameras: `frigate/events`.
    pub fn frigate_events(&self) -> Option<String> {
        self.frigate.as_ref().map(|prefix| format!("{prefix}/{EVENTS}"))
    }

    /// Where Frigate's readers look whether it is there: `frigate/available`.
    pub fn frigate_available(&self) -> Option<String> {
        self.frigate.as_ref().map(|prefix| format!("{prefix}/available"))
    }

    /// The camera, as written, and the slug of a count's topic.
    pub fn counted<'t>(&self, topic: &'t str) -> Option<(&'t str, &'t str)> {
        topic.strip_prefix(&self.prefix)?.strip_prefix('/')?.split_once("/count/")
    }

    /// How many of a label are in a camera's zone: `P/<camera>/zone/<zone>/count/<label>`, by their slugs.
    pub fn zone_count(&self, camera: &CameraId, zone: &str, label: &str) -> String {
        format!("{}/{camera}/zone/{zone}/count/{label}", self.prefix)
    }

    /// The camera, as written, and the slugs of zone and label of such a topic.
    pub fn zone_counted<'t>(&self, topic: &'t str) -> Option<(&'t str, &'t str, &'t str)> {
        let (camera, rest) = topic.strip_prefix(&self.prefix)?.strip_prefix('/')?.split_once("/zone/")?;
        let (zone, label) = rest.split_once("/count/")?;
        Some((camera, zone, label))
    }

    /// Where Frigate's readers look for a zone's count of a label, and for the sum of its labels: `frigate/<zone>/<label>`,
    /// `frigate/<zone>/all`.
    pub fn frigate_zone(&self, zone: &str, label: &str) -> Vec<String> {
        let Some(prefix) = &self.frigate else { return Vec::new() };
        // Frigate's readers take that one for the sum.
        let own = Some(label).filter(|label| *label != ALL);
        own.into_iter().chain([ALL]).map(|last| format!("{prefix}/{zone}/{last}")).collect()
    }

    /// A picture of the newest object of a label: `P/<camera>/snapshot/<slug>`.
    pub fn snapshot(&self, camera: &CameraId, slug: &str) -> String {
        format!("{}/{camera}/snapshot/{slug}", self.prefix)
    }

    /// The camera, as written, and the slug of a picture's topic.
    pub fn pictured<'t>(&self, topic: &'t str) -> Option<(&'t str, &'t str)> {
        topic.strip_prefix(&self.prefix)?.strip_prefix('/')?.split_once("/snapshot/")
    }

    /// Everywhere it is shown: there, and on `frigate/<camera>/<slug>/snapshot`.
    pub fn snapshots(&self, camera: &CameraId, slug: &str) -> Vec<String> {
        let frigate = self.frigate.iter().filter(|_| slug != ALL).map(|prefix| format!("{prefix}/{camera}/{slug}/snapshot"));
        std::iter::once(self.snapshot(camera, slug)).chain(frigate).collect()
    }

    /// What a camera's frames are asked: `P/<camera>/prompt/state`.
    pub fn prompt_state(&self, camera: &CameraId) -> String {
        format!("{}/{camera}/prompt/state", self.prefix)
    }

    /// Whether a camera's frames are looked at: `P/<camera>/detect/state`.
    pub fn detect_state(&self, camera: &CameraId) -> String {
        format!("{}/{camera}/detect/state", self.prefix)
    }

    /// Where a command is sent: `P/<camera>/<what>/set`, of `prompt` and `detect`.
    pub fn command_set(&self, camera: &CameraId, what: &str) -> String {
        format!("{}/{camera}/{what}/set", self.prefix)
    }

    /// Where the commands of all cameras come from.
    pub fn commands(&self) -> [String; 2] {
        ["prompt", "detect"].map(|what| format!("{}/+/{what}/set", self.prefix))
    }

    /// The camera, as written, and the `what` of a command's topic.
    pub fn command<'t>(&self, topic: &'t str) -> Option<(&'t str, &'t str)> {
        let rest = topic.strip_prefix(&self.prefix)?.strip_prefix('/')?.strip_suffix("/set")?;
        rest.split_once('/').filter(|(_, what)| matches!(*what, "prompt" | "detect"))
    }

    /// Figures of the moment: `P/stats`.
    pub fn stats(&self) -> String {
        format!("{}/stats", self.prefix)
    }

    /// What this node is called among others on the broker: the prefix as a slug.
    pub fn node(&self) -> String {
        slug(&self.prefix)
    }
}

/// Whether events go to a topic; of another start's prefix, too.
pub fn is_events(topic: &str) -> bool {
    topic.rsplit('/').next() == Some(EVENTS)
}

/// Whether commands come on a topic, or on what a filter stands for.
pub fn is_command(filter: &str) -> bool {
    filter.ends_with("/set")
}

/// A label as a topic level: lowercase a-z and 0-9, one `_` for all that stands between them. A label without any of
/// them is told by eight hexadecimal digits. Two labels may come to share one: `label::labels` tells them apart.
pub fn slug(label: &str) -> String {
    let label = label.trim().to_lowercase();
    let words: Vec<&str> = label.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { format!("{:08x}", fnv1a(FNV_OFFSET, label.as_bytes())) } else { words.join("_") }
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
        assert_eq!(topics.events(&camera), "site/north/street/events");
        assert!(is_events(&topics.events(&camera)) && !is_events(&topics.detections(&camera)));
        assert_eq!(topics.count(&camera, "Traffic Light"), "site/north/street/count/traffic_light");
        assert_eq!(topics.prompt_state(&camera), "site/north/street/prompt/state");
        assert_eq!(topics.detect_state(&camera), "site/north/street/detect/state");
        assert_eq!((topics.stats().as_str(), topics.node().as_str()), ("site/north/stats", "site_north"));
    }

    #[test]
    fn frigates_topics_are_there_only_where_they_are_asked_for() {
        let (plain, camera) = (Topics::new("site/north"), CameraId::new("street").unwrap());
        assert_eq!(plain.counts(&camera, "cat"), ["site/north/street/count/cat"]);
        assert!(plain.frigate_zone("gate", "cat").is_empty());
        assert_eq!((plain.frigate_all(&camera), plain.frigate_events(), plain.frigate_available()), (None, None, None));
        let topics = plain.with_frigate(Some("a/frigate"));
        assert_eq!(topics.counts(&camera, "cat"), ["site/north/street/count/cat", "a/frigate/street/cat"]);
        assert_eq!(topics.counts(&camera, "all"), ["site/north/street/count/all"]);
        assert_eq!(topics.frigate_all(&camera).as_deref(), Some("a/frigate/street/all"));
        assert_eq!(topics.frigate_events().as_deref(), Some("a/frigate/events"));
        assert_eq!(topics.frigate_available().as_deref(), Some("a/frigate/available"));
        assert_eq!(topics.counted("site/north/street/count/cat"), Some(("street", "cat")));
        let zone = topics.zone_count(&camera, "gate", "cat");
        assert_eq!(zone, "site/north/street/zone/gate/count/cat");
        assert_eq!(topics.zone_counted(&zone), Some(("street", "gate", "cat")));
        assert!(topics.counted(&zone).is_some_and(|(id, _)| CameraId::new(id).is_err()), "it is no camera's own count");
        assert_eq!(topics.zone_counted("site/north/street/count/cat"), None);
        assert_eq!(topics.frigate_zone("gate", "cat"), ["a/frigate/gate/cat", "a/frigate/gate/all"]);
        assert_eq!(topics.frigate_zone("gate", "all"), ["a/frigate/gate/all"]);
        for other in ["site/street/count/cat", "site/northern/street/count/cat", "site/north/street/status"] {
            assert_eq!(topics.counted(other), None, "{other}");
        }
    }

    #[test]
    fn a_slug_is_safe_in_a_topic_and_the_same_however_a_label_is_written() {
        for (label, expected) in [
            ("cat", "cat"),
            ("Traffic Light", "traffic_light"),
            (" traffic-light ", "traffic_light"),
            ("a/b+#", "a_b"),
            ("__number  7__", "number_7"),
            ("größe", "gr_e"),
        ] {
            assert_eq!(slug(label), expected, "{label}");
        }
        let (horse, upper, dog) = (slug("лошадь"), slug(" ЛОШАДЬ"), slug("собака"));
        assert!(horse.len() == 8 && horse.bytes().all(|byte| byte.is_ascii_hexdigit()) && horse == upper && horse != dog, "{horse} {dog}");
    }
}
