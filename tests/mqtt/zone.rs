//! Counts of zones: zeros before `online`, on change, cleared when nobody asks any more, in the same device as all else.

use std::path::Path;
use std::time::Duration;

use palisade::config::MqttConfig;
use palisade::mqtt::Watched;
use palisade::types::{Area, EventKind, Prompt, Reason, Track, Zone};
use serde_json::json;

use super::camera;
use super::event::cat;
use super::state::{see, start_watching, texts};
use crate::support::broker::{Broker, LONG, Received, Subscriber, eventually};

const CAT: &str = "palisade/street/zone/front_gate/count/cat";
const DOG: &str = "palisade/street/zone/front_gate/count/dog";
const LAWN: &str = "palisade/street/zone/lawn/count/dog";

fn zone(name: &str, labels: &[&str]) -> Zone {
    let area = Area { points: Vec::new(), labels: labels.iter().map(|label| (*label).to_owned()).collect() };
    Zone { name: name.into(), area, inertia: Duration::ZERO, loitering: Duration::ZERO }
}

fn watched(prompt: &str, zones: Vec<Zone>) -> Watched {
    Watched { id: camera("street"), prompt: Prompt::new(prompt).unwrap(), enabled: true, zones }
}

fn both() -> Vec<Zone> {
    vec![zone("Front gate", &[]), zone("lawn", &["dog"])]
}

/// An object of this label that is in these zones.
fn track(label: &str, zones: &[&str]) -> Track {
    let zones = zones.iter().map(|zone| (*zone).into()).collect();
    Track { label: label.into(), zones, ..cat(EventKind::New, Reason::FirstSeen).track }
}

fn config(broker: &Broker, folder: &Path) -> MqttConfig {
    let (state_dir, frigate_prefix) = (Some(folder.to_owned()), Some("frigate".to_owned()));
    MqttConfig { state_dir, frigate_prefix, ..broker.config("zones") }
}

fn device(subscriber: &Subscriber) -> serde_json::Value {
    subscriber.on("homeassistant/device/palisade_street/config").pop().unwrap().json()
}

#[test]
fn zones_are_counted_like_labels_and_end_at_zero() {
    let (broker, folder) = (Broker::start(), tempfile::tempdir().unwrap());
    let early = Subscriber::new(&broker, "#");
    let mqtt = start_watching(config(&broker, folder.path()), &[watched("detect cat ; dog", both())]);
    early.wait_text("palisade/status", "online");
    let topics: Vec<String> = early.messages().into_iter().map(|message| message.topic).collect();
    let place = |topic: &str| topics.iter().position(|other| other == topic).unwrap_or_else(|| panic!("{topic} is not in {topics:?}"));
    for topic in [CAT, DOG, LAWN, "frigate/front_gate/cat", "frigate/front_gate/all", "frigate/lawn/all"] {
        assert_eq!(texts(&early.on(topic)), ["0"], "{topic}");
        assert!(place("homeassistant/device/palisade_street/config") < place(topic) && place(topic) < place("palisade/status"), "{topic}");
    }
    assert!(!topics.iter().any(|topic| topic.contains("lawn/") && topic.ends_with("cat")), "the lawn does not look for cats");
    assert!(broker.log().lines().any(|line| line.contains("Received PUBLISH from zones (d0, q1, r1, m") && line.contains(CAT)));

    let publisher = mqtt.publisher();
    let street = camera("street");
    let there =
        [track("cat", &["Front gate"]), track("Cat", &["lawn", "Front gate"]), track("dog", &["lawn"]), track("unicorn", &["lawn"])];
    publisher.tracked(&street, there.iter());
    publisher.tracked(&street, there.iter());
    early.wait_text(LAWN, "1");
    early.wait_text(CAT, "2");
    early.wait_text("frigate/front_gate/all", "2");
    // What a frame shows and what zones hold are different things.
    see(&publisher, 1, &["cat"]);
    early.wait_text("palisade/street/count/cat", "1");
    publisher.tracked(&street, there[2..].iter());
    early.wait_text(CAT, "0");
    assert_eq!(texts(&early.on(CAT)), ["0", "2", "0"], "on change only");
    mqtt.finish(LONG);
    early.wait_text("palisade/status", "offline");
    assert_eq!((texts(&early.on(LAWN)), texts(&early.on(DOG))), (vec!["0".into(), "1".into(), "0".into()], vec!["0".to_owned()]));
    assert_eq!(texts(&early.on("frigate/lawn/all")), ["0", "1", "0"]);
    assert!(early.messages().iter().all(|message| !message.topic.contains("unicorn")));
    let last = |topic: &str| early.messages().iter().rposition(|message| message.topic == topic).unwrap();
    assert!(last(LAWN) < last("palisade/status"), "the zeros come before offline");
}

#[test]
fn zones_and_labels_that_nobody_asks_for_are_cleared_at_once_and_at_the_next_start() {
    let (broker, folder) = (Broker::start(), tempfile::tempdir().unwrap());
    let subscriber = Subscriber::new(&broker, "#");
    let mqtt = start_watching(config(&broker, folder.path()), &[watched("detect cat ; dog", both())]);
    subscriber.wait_text("palisade/status", "online");
    let keys = ["zone_occupancy_front_gate-cat", "zone_count_front_gate-cat", "zone_occupancy_lawn-dog", "zone_count_lawn-dog"];
    let before = device(&subscriber);
    for key in keys {
        let entity = &before["cmps"][key];
        assert_eq!(entity["unique_id"], json!(format!("palisade_street_{key}")));
        assert!([json!(CAT), json!(LAWN)].contains(&entity["state_topic"]), "{entity}");
        assert_eq!((&entity["availability"], &entity["availability_mode"]), (&before["cmps"]["count_cat"]["availability"], &json!("all")));
    }
    mqtt.publisher().tracked(&camera("street"), [track("dog", &["lawn", "Front gate"])].iter());
    subscriber.wait_text(LAWN, "1");
    // A command asks for something else.
    mqtt.publisher().watch(&watched("detect dog ; car", both()));
    subscriber.wait_text(CAT, "");
    subscriber.wait_text("frigate/front_gate/cat", "");
    subscriber.wait_text("palisade/street/zone/front_gate/count/car", "0");
    let asked = device(&subscriber);
    assert_eq!((&asked["cmps"][keys[0]], &asked["cmps"][keys[1]]), (&json!({"p": "binary_sensor"}), &json!({"p": "sensor"})));
    assert_eq!(asked["cmps"][keys[2]], before["cmps"][keys[2]]);
    assert_eq!(texts(&subscriber.on(LAWN)), ["0", "1"], "the dog is still there");
    eventually("it is written down", || {
        std::fs::read_to_string(folder.path().join("retained.json")).unwrap().contains("front_gate/count/car")
    });
    // A kill leaves the counts as they are.
    drop(mqtt);
    subscriber.wait_text("palisade/status", "offline");

    let kept = |subscriber: &Subscriber| {
        let zone =
            |message: &Received| message.topic.contains("/zone/") || message.topic.starts_with("frigate/") && !message.payload.is_empty();
        let mut kept: Vec<(String, String)> =
            subscriber.messages().iter().filter(|message| zone(message)).map(|message| (message.topic.clone(), message.text())).collect();
        kept.sort();
        kept
    };
    let early = Subscriber::new(&broker, "#");
    let mqtt = start_watching(config(&broker, folder.path()), &[watched("detect dog", vec![zone("lawn", &[])])]);
    early.wait_text(LAWN, "0");
    early.wait_text("palisade/street/zone/front_gate/count/car", "");
    early.wait_text("palisade/status", "online");
    let now = device(&early);
    assert_eq!(now["cmps"]["zone_count_front_gate-car"], json!({"p": "sensor"}), "entities of an earlier run go where they are named");
    assert_eq!(now["cmps"][keys[3]]["state_topic"], json!(LAWN));
    let late = Subscriber::new(&broker, "#");
    late.wait_text("palisade/status", "online");
    let expected = [
        ("frigate/available", "online"),
        ("frigate/lawn/all", "0"),
        ("frigate/lawn/dog", "0"),
        ("frigate/street/all", "0"),
        ("frigate/street/dog", "0"),
        (LAWN, "0"),
    ];
    let expected = expected.map(|(topic, text)| (topic.to_owned(), text.to_owned()));
    eventually("only what is told", || kept(&late) == expected);
    mqtt.finish(LONG);
}

#[test]
fn a_device_that_no_message_holds_is_told_without_its_zones() {
    let broker = Broker::start();
    let early = Subscriber::new(&broker, "#");
    let zones = (0..60).map(|number| zone(&format!("zone number {number}"), &[])).collect();
    let labels: Vec<String> = (0..8).map(|number| format!("label number {number}")).collect();
    let mqtt = start_watching(broker.config("many"), &[watched(&format!("detect {}", labels.join(" ; ")), zones)]);
    early.wait_text("palisade/status", "online");
    let device = device(&early);
    assert!(device["cmps"]["count_label_number_7"]["state_topic"].is_string());
    assert!(!device.to_string().contains("zone_count"));
    assert_eq!(texts(&early.on("palisade/street/zone/zone_number_59/count/label_number_7")), ["0"], "the counts are told all the same");
    mqtt.finish(LONG);
}
