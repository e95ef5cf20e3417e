//! Home Assistant's discovery: one device a camera, with all its entities in one retained object.
//!
//! Written after the device-based schema of Home Assistant 2024.12 and later
//! (<https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload>). What Home Assistant keeps as a state has
//! at most 255 characters, so longer ones are cut by a template.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::mqtt::label::Label;
use crate::mqtt::payload::{OFFLINE, ONLINE};
use crate::mqtt::topic::Topics;
use crate::mqtt::zones::{Pair, Spot};
use crate::types::{CameraId, CameraState};

/// What Home Assistant publishes on `<prefix>/status` once it is there.
pub const BIRTH: &[u8] = b"online";

/// What makes the device of a camera.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Which camera.
    pub camera: &'a CameraId,
    /// The topics it publishes on.
    pub topics: &'a Topics,
    /// The model, as it is shown.
    pub model: &'a str,
    /// The labels it is asked for.
    pub labels: &'a [Label],
    /// Slugs of labels whose entities shall go.
    pub gone: &'a [&'a str],
    /// The labels that its zones look at.
    pub spots: &'a [Spot],
    /// Slugs of zones and labels whose entities shall go.
    pub left: &'a [&'a Pair],
    /// Whether commands are heard.
    pub control: bool,
    /// Whether pictures are published.
    pub snapshots: bool,
}

#[derive(Serialize)]
struct ConfigWire<'a> {
    dev: DeviceWire<'a>,
    o: OriginWire,
    availability: [AvailabilityWire; 1],
    cmps: Map<String, Value>,
    qos: u8,
}

#[derive(Serialize)]
struct DeviceWire<'a> {
    identifiers: [&'a str; 1],
    name: String,
    manufacturer: &'static str,
    model: &'a str,
    sw_version: &'static str,
}

#[derive(Serialize)]
struct OriginWire {
    name: &'static str,
    sw_version: &'static str,
}

#[derive(Serialize)]
struct AvailabilityWire {
    topic: String,
    payload_available: &'static str,
    payload_not_available: &'static str,
}

/// Besides the daemon, the camera must be there: what it shows is told by the state of its status.
#[derive(Serialize)]
struct SeenWire {
    topic: String,
    value_template: &'static str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Availability {
    Daemon(AvailabilityWire),
    Camera(SeenWire),
}

/// An entity. With nothing but `p` it makes Home Assistant remove the entity of that key.
#[derive(Default, Serialize)]
struct Component {
    p: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_template: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    json_attributes_topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Vec<&'static str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_category: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icon: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability: Option<[Availability; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability_mode: Option<&'static str>,
}

/// Where the device of a camera is told: `<prefix>/device/<node>_<camera>/config`.
pub fn topic(prefix: &str, topics: &Topics, camera: &CameraId) -> String {
    format!("{prefix}/device/{}_{camera}/config", topics.node())
}

/// Where Home Assistant says that it is there, and reads all discovery anew.
pub fn birth_topic(prefix: &str) -> String {
    format!("{prefix}/status")
}

/// What a message has no room for. It stays in Home Assistant as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacks {
    /// Nothing.
    Nothing,
    /// The entities of zones.
    Zones,
    /// And those of zones that shall go.
    Removals,
}

/// The device of a camera with as many of its entities as go into `room` bytes; those that shall go are left out last.
pub fn fitted(device: &Device<'_>, room: usize) -> (Vec<u8>, Lacks) {
    let plain = Device { spots: &[], ..*device };
    for (device, lacks) in [(device, Lacks::Nothing), (&plain, Lacks::Zones)] {
        let config = config(device);
        if config.len() <= room {
            return (config, lacks);
        }
    }
    (config(&Device { left: &[], ..plain }), if device.left.is_empty() { Lacks::Zones } else { Lacks::Removals })
}

/// The device of a camera with all its entities.
fn config(device: &Device<'_>) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let (node, camera) = (device.topics.node(), device.camera);
    let identifier = format!("{node}_{camera}");
    let mut cmps = Map::new();
    for (key, component) in device.entities() {
        // Keys are unique within the device alone, ids among all.
        let unique_id = (component.state_topic.is_some() || component.image_topic.is_some()).then(|| format!("{identifier}_{key}"));
        cmps.insert(key, serde_json::to_value(Component { unique_id, ..component }).unwrap_or_default());
    }
    let wire = ConfigWire {
        dev: DeviceWire {
            identifiers: [&identifier],
            name: format!("{node} {camera}"),
            manufacturer: "palisade",
            model: device.model,
            sw_version: version,
        },
        o: OriginWire { name: "palisade", sw_version: version },
        availability: [daemon(device.topics)],
        cmps,
        qos: 1,
    };
    serde_json::to_vec(&wire).unwrap_or_default()
}

fn daemon(topics: &Topics) -> AvailabilityWire {
    AvailabilityWire { topic: topics.status(), payload_available: ONLINE, payload_not_available: OFFLINE }
}

impl Device<'_> {
    /// What a camera that sends nothing does not show is unknown, not absent.
    fn seen(&self) -> Component {
        let camera = SeenWire {
            topic: self.topics.camera_status(self.camera),
            value_template: "{{ 'online' if value_json.state == 'running' else 'offline' }}",
        };
        Component {
            availability: Some([Availability::Daemon(daemon(self.topics)), Availability::Camera(camera)]),
            availability_mode: Some("all"),
            ..Component::default()
        }
    }

    /// Every entity with its key.
    fn entities(&self) -> Vec<(String, Component)> {
        let mut entities =
            vec![("status".to_owned(), self.status()), ("prompt".to_owned(), self.prompt()), ("detecting".to_owned(), self.detecting())];
        // What is switched off may be there from an earlier run, and goes only where it is named.
        let [ask, detect] = if self.control { [self.ask(), self.detect()] } else { [bare("text"), bare("switch")] };
        entities.extend([("ask".to_owned(), ask), ("detect".to_owned(), detect)]);
        for label in self.labels {
            entities.push((occupancy_key(&label.slug), self.occupancy(label)));
            entities.push((count_key(&label.slug), self.count(label)));
            entities.push((snapshot_key(&label.slug), if self.snapshots { self.snapshot(label) } else { bare("image") }));
        }
        for slug in self.gone {
            entities.push((occupancy_key(slug), bare("binary_sensor")));
            entities.push((count_key(slug), bare("sensor")));
            entities.push((snapshot_key(slug), bare("image")));
        }
        for spot in self.spots {
            let pair = (&*spot.zone.1, &*spot.label.slug);
            entities.push((zone_key("occupancy", pair), self.zone_occupancy(spot)));
            entities.push((zone_key("count", pair), self.zone_count(spot)));
        }
        for (zone, slug) in self.left {
            entities.push((zone_key("occupancy", (zone, slug)), bare("binary_sensor")));
            entities.push((zone_key("count", (zone, slug)), bare("sensor")));
        }
        entities
    }

    fn status(&self) -> Component {
        let topic = self.topics.camera_status(self.camera);
        Component {
            p: "sensor",
            name: Some("Status".to_owned()),
            state_topic: Some(topic.clone()),
            value_template: Some("{{ value_json.state }}"),
            json_attributes_topic: Some(topic),
            device_class: Some("enum"),
            options: Some(CameraState::ALL.map(CameraState::name).to_vec()),
            entity_category: Some("diagnostic"),
            ..Component::default()
        }
    }

    fn prompt(&self) -> Component {
        Component {
            p: "sensor",
            name: Some("Prompt".to_owned()),
            state_topic: Some(self.topics.prompt_state(self.camera)),
            value_template: Some("{{ value[:255] }}"),
            entity_category: Some("diagnostic"),
            icon: Some("mdi:text-search"),
            ..Component::default()
        }
    }

    /// The prompt as a field to write in. Home Assistant writes no more than 255 characters.
    fn ask(&self) -> Component {
        Component {
            p: "text",
            name: Some("Ask".to_owned()),
            command_topic: Some(self.topics.command_set(self.camera, "prompt")),
            max: Some(255),
            entity_category: Some("config"),
            ..self.prompt()
        }
    }

    fn detect(&self) -> Component {
        Component {
            p: "switch",
            name: Some("Detect".to_owned()),
            state_topic: Some(self.topics.detect_state(self.camera)),
            command_topic: Some(self.topics.command_set(self.camera, "detect")),
            icon: Some("mdi:cctv"),
            ..Component::default()
        }
    }

    fn detecting(&self) -> Component {
        Component {
            p: "binary_sensor",
            name: Some("Detecting".to_owned()),
            state_topic: Some(self.topics.detect_state(self.camera)),
            device_class: Some("running"),
            entity_category: Some("diagnostic"),
            ..Component::default()
        }
    }

    fn occupancy(&self, label: &Label) -> Component {
        self.occupied(label.name.clone(), self.topics.count(self.camera, &label.slug))
    }

    fn zone_occupancy(&self, Spot { zone, label }: &Spot) -> Component {
        self.occupied(format!("{} {}", zone.0, label.name), self.topics.zone_count(self.camera, &zone.1, &label.slug))
    }

    fn zone_count(&self, Spot { zone, label }: &Spot) -> Component {
        self.counted(format!("{} {} count", zone.0, label.name), self.topics.zone_count(self.camera, &zone.1, &label.slug))
    }

    fn occupied(&self, name: String, topic: String) -> Component {
        Component {
            p: "binary_sensor",
            name: Some(name),
            state_topic: Some(topic),
            value_template: Some("{{ 'ON' if value | int(0) > 0 else 'OFF' }}"),
            device_class: Some("occupancy"),
            ..self.seen()
        }
    }

    fn snapshot(&self, label: &Label) -> Component {
        Component {
            p: "image",
            name: Some(format!("{} snapshot", label.name)),
            image_topic: Some(self.topics.snapshot(self.camera, &label.slug)),
            content_type: Some("image/jpeg"),
            ..Component::default()
        }
    }

    fn count(&self, label: &Label) -> Component {
        self.counted(format!("{} count", label.name), self.topics.count(self.camera, &label.slug))
    }

    fn counted(&self, name: String, topic: String) -> Component {
        Component {
            p: "sensor",
            name: Some(name),
            state_topic: Some(topic),
            state_class: Some("measurement"),
            icon: Some("mdi:counter"),
            ..self.seen()
        }
    }
}

/// What makes Home Assistant remove an entity of this platform.
fn bare(platform: &'static str) -> Component {
    Component { p: platform, ..Component::default() }
}

fn snapshot_key(slug: &str) -> String {
    format!("snapshot_{slug}")
}

fn occupancy_key(slug: &str) -> String {
    format!("occupancy_{slug}")
}

fn count_key(slug: &str) -> String {
    format!("count_{slug}")
}

/// No slug has a hyphen, so no two pairs share a key.
fn zone_key(what: &str, (zone, slug): (&str, &str)) -> String {
    format!("zone_{what}_{zone}-{slug}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_camera_is_a_device_with_its_entities() {
        let (camera, topics) = (CameraId::new("street").unwrap(), Topics::new("site/north"));
        assert_eq!(topic("homeassistant", &topics, &camera), "homeassistant/device/site_north_street/config");
        let labels = [Label { name: "traffic light".to_owned(), slug: "traffic_light".to_owned(), key: "traffic_light".to_owned() }];
        let spots = [Spot { zone: ("Front gate".into(), "front_gate".to_owned()), label: labels[0].clone() }];
        let device = Device {
            camera: &camera,
            topics: &topics,
            model: "a/model",
            labels: &labels,
            gone: &["cat"],
            spots: &spots,
            left: &[&("lawn".to_owned(), "cat".to_owned())],
            control: false,
            snapshots: true,
        };
        let value: Value = serde_json::from_slice(&config(&device)).unwrap();
        assert_eq!(value["dev"]["identifiers"], json!(["site_north_street"]));
        assert_eq!((&value["dev"]["model"], &value["o"]["name"]), (&json!("a/model"), &json!("palisade")));
        let availability = json!([{"topic": "site/north/status", "payload_available": "online", "payload_not_available": "offline"}]);
        assert_eq!(value["availability"], availability);
        let expected = json!({
            "p": "binary_sensor", "unique_id": "site_north_street_occupancy_traffic_light", "name": "traffic light",
            "state_topic": "site/north/street/count/traffic_light", "value_template": "{{ 'ON' if value | int(0) > 0 else 'OFF' }}",
            "device_class": "occupancy", "availability_mode": "all",
            "availability": [
                {"topic": "site/north/status", "payload_available": "online", "payload_not_available": "offline"},
                {"topic": "site/north/street/status",
                 "value_template": "{{ 'online' if value_json.state == 'running' else 'offline' }}"}
            ]
        });
        assert_eq!(value["cmps"]["occupancy_traffic_light"], expected);
        assert_eq!(value["cmps"]["count_traffic_light"]["state_class"], json!("measurement"));
        assert_eq!(value["cmps"]["status"]["options"].as_array().unwrap().len(), CameraState::ALL.len());
        assert_eq!(value["cmps"]["occupancy_cat"], json!({"p": "binary_sensor"}), "gone: nothing but the platform");
        assert_eq!(value["cmps"]["count_cat"], json!({"p": "sensor"}));
        assert_eq!(value["cmps"]["snapshot_cat"], json!({"p": "image"}));
        let zone = &value["cmps"]["zone_occupancy_front_gate-traffic_light"];
        let mut expected = value["cmps"]["occupancy_traffic_light"].clone();
        expected["unique_id"] = json!("site_north_street_zone_occupancy_front_gate-traffic_light");
        expected["name"] = json!("Front gate traffic light");
        expected["state_topic"] = json!("site/north/street/zone/front_gate/count/traffic_light");
        assert_eq!(*zone, expected, "as the camera's own, availability included");
        let zone = &value["cmps"]["zone_count_front_gate-traffic_light"];
        assert_eq!((&zone["p"], &zone["name"]), (&json!("sensor"), &json!("Front gate traffic light count")));
        assert_eq!((&zone["state_topic"], &zone["state_class"]), (&expected["state_topic"], &json!("measurement")));
        assert_eq!(value["cmps"]["zone_occupancy_lawn-cat"], json!({"p": "binary_sensor"}));
        assert_eq!(value["cmps"]["zone_count_lawn-cat"], json!({"p": "sensor"}));
        let expected = json!({
            "p": "image", "unique_id": "site_north_street_snapshot_traffic_light", "name": "traffic light snapshot",
            "image_topic": "site/north/street/snapshot/traffic_light", "content_type": "image/jpeg"
        });
        assert_eq!(value["cmps"]["snapshot_traffic_light"], expected);
        assert_eq!((&value["cmps"]["ask"], &value["cmps"]["detect"]), (&json!({"p": "text"}), &json!({"p": "switch"})), "switched off");
        let value: Value = serde_json::from_slice(&config(&Device { snapshots: false, ..device })).unwrap();
        assert_eq!(value["cmps"]["snapshot_traffic_light"], json!({"p": "image"}), "switched off");
        let value: Value = serde_json::from_slice(&config(&Device { control: true, ..device })).unwrap();
        let [ask, detect] = ["ask", "detect"].map(|key| &value["cmps"][key]);
        assert_eq!((&ask["p"], &ask["command_topic"], &ask["max"]), (&json!("text"), &json!("site/north/street/prompt/set"), &json!(255)));
        assert_eq!((&detect["p"], &detect["command_topic"]), (&json!("switch"), &json!("site/north/street/detect/set")));
    }

    #[test]
    fn a_message_that_would_be_too_large_has_the_entities_that_shall_go_and_not_those_of_the_zones() {
        let (camera, topics) = (CameraId::new("street").unwrap(), Topics::new("palisade"));
        let label = Label { name: "cat".to_owned(), slug: "cat".to_owned(), key: "cat".to_owned() };
        let zone = |n: usize| Spot { zone: (format!("zone {n}").into(), format!("zone_{n}")), label: label.clone() };
        let spots: Vec<Spot> = (0..100).map(zone).collect();
        let gone: Vec<Pair> = (0..10).map(|n| (format!("lawn_{n}"), "cat".to_owned())).collect();
        let left: Vec<&Pair> = gone.iter().collect();
        let labels = [label.clone()];
        let device = Device {
            camera: &camera,
            topics: &topics,
            model: "a/model",
            labels: &labels,
            gone: &[],
            spots: &spots,
            left: &left,
            control: false,
            snapshots: true,
        };
        let holds = |room: usize| {
            let (config, lacks) = fitted(&device, room);
            let value: Value = serde_json::from_slice(&config).unwrap();
            let there =
                ["zone_occupancy_zone_99-cat", "zone_occupancy_lawn_9-cat", "occupancy_cat"].map(|key| value["cmps"].get(key).is_some());
            (lacks, there, config.len() <= room)
        };
        assert_eq!(holds(256 * 1024), (Lacks::Nothing, [true; 3], true));
        assert_eq!(holds(32 * 1024), (Lacks::Zones, [false, true, true], true));
        assert_eq!(holds(1024), (Lacks::Removals, [false, false, true], false));
        let (_, lacks) = fitted(&Device { left: &[], ..device }, 1024);
        assert_eq!(lacks, Lacks::Zones, "there are none that shall go");
    }
}
