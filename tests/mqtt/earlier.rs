//! What a run left on the broker is cleared by the next that tells it no more: cameras, labels, prefixes.

use std::path::Path;
use std::time::Duration;

use palisade::config::MqttConfig;
use palisade::mqtt::Watched;
use palisade::types::{Area, Prompt, Zone};
use serde_json::json;

use super::camera;
use super::state::start_watching;
use crate::support::broker::{Broker, LONG, Received, Subscriber, eventually};

fn asked(id: &str, prompt: &str) -> Watched {
    Watched { id: camera(id), prompt: Prompt::new(prompt).unwrap(), enabled: true, zones: Vec::new() }
}

fn both() -> [Watched; 2] {
    [asked("a", "detect cat ; dog"), asked("b", "detect car")]
}

fn config(broker: &Broker, folder: &Path) -> MqttConfig {
    let (state_dir, frigate_prefix) = (Some(folder.to_owned()), Some("frigate".to_owned()));
    MqttConfig { state_dir, frigate_prefix, ..broker.config("node") }
}

/// One run from its start to a clean end.
fn run(config: MqttConfig, cameras: &[Watched]) {
    let mqtt = start_watching(config, cameras);
    eventually("the link is there", || mqtt.publisher().trouble().is_none());
    mqtt.finish(LONG);
}

/// The retained topics that a new subscriber finds.
fn kept(broker: &Broker) -> Vec<String> {
    let late = Subscriber::new(broker, "#");
    // Published behind them, so that all of them have come when it has.
    super::state::say(broker, "test/mark", "here", false);
    late.wait_text("test/mark", "here");
    let mut topics: Vec<String> = late.messages().into_iter().map(|message| message.topic).filter(|topic| topic != "test/mark").collect();
    topics.sort();
    topics
}

fn of_camera(id: &str, labels: &[&str]) -> Vec<String> {
    let mut topics = vec![format!("homeassistant/device/palisade_{id}/config"), format!("frigate/{id}/all")];
    topics.extend(["status", "prompt/state", "detect/state"].map(|what| format!("palisade/{id}/{what}")));
    for label in labels {
        topics.extend([format!("palisade/{id}/count/{label}"), format!("frigate/{id}/{label}")]);
    }
    topics
}

fn sorted(parts: &[&[String]]) -> Vec<String> {
    let mut all = parts.concat();
    all.extend(["palisade/status", "frigate/available"].map(str::to_owned));
    all.sort();
    all
}

#[test]
fn cameras_and_labels_that_went_between_two_runs_are_cleared_and_discovery_first() {
    let (broker, folder) = (Broker::start(), tempfile::tempdir().unwrap());
    run(config(&broker, folder.path()), &both());
    assert_eq!(kept(&broker), sorted(&[&of_camera("a", &["cat", "dog"]), &of_camera("b", &["car"])]));

    let early = Subscriber::new(&broker, "#");
    run(config(&broker, folder.path()), &[asked("a", "detect dog ; horse")]);
    assert_eq!(kept(&broker), sorted(&[&of_camera("a", &["dog", "horse"])]));
    let told = early.messages();
    let cleared: Vec<&str> =
        told.iter().filter(|message| !message.retain && message.payload.is_empty()).map(|message| message.topic.as_str()).collect();
    let gone = [of_camera("b", &["car"]), vec!["palisade/a/count/cat".to_owned(), "frigate/a/cat".to_owned()]].concat();
    assert!(cleared.len() == gone.len() && gone.iter().all(|topic| cleared.contains(&topic.as_str())), "{cleared:?}");
    assert_eq!(cleared[0], "homeassistant/device/palisade_b/config", "{cleared:?}");
    let online = told.iter().rposition(|message| message.topic == "palisade/status" && message.text() == "online").unwrap();
    assert!(told.iter().rposition(|message| message.payload.is_empty()).unwrap() < online, "all is told before online");
    // Home Assistant removes the entities of a label only where it is told to.
    let device = early.on("homeassistant/device/palisade_a/config").pop().unwrap().json();
    assert_eq!((&device["cmps"]["occupancy_cat"], &device["cmps"]["count_cat"]), (&json!({"p": "binary_sensor"}), &json!({"p": "sensor"})));
    assert!(device["cmps"]["count_dog"]["state_topic"].is_string());

    let early = Subscriber::new(&broker, "#");
    run(config(&broker, folder.path()), &[asked("a", "detect dog ; horse")]);
    assert!(early.messages().iter().all(|message| !message.payload.is_empty()), "nothing is left to clear");
}

#[test]
fn other_prefixes_leave_nothing_under_the_old_ones() {
    let (broker, folder) = (Broker::start(), tempfile::tempdir().unwrap());
    run(config(&broker, folder.path()), &both());
    let (topic_prefix, discovery_prefix) = ("site/north".to_owned(), Some("ha".to_owned()));
    let other = MqttConfig { topic_prefix, discovery_prefix, frigate_prefix: None, ..config(&broker, folder.path()) };
    run(other.clone(), &both());
    let topics = kept(&broker);
    assert!(
        topics.len() == 2 * (1 + 3) + 3 + 1 && topics.iter().all(|topic| topic.starts_with("site/north/") || topic.starts_with("ha/")),
        "{topics:?}"
    );
    run(MqttConfig { discovery_prefix: None, ..other }, &both());
    assert!(kept(&broker).iter().all(|topic| topic.starts_with("site/north/")), "{:?}", kept(&broker));
}

#[test]
fn what_could_not_be_cleared_is_cleared_by_a_later_run_also_after_a_kill() {
    let (mut broker, folder) = (Broker::start(), tempfile::tempdir().unwrap());
    let config = config(&broker, folder.path());
    let mqtt = start_watching(config.clone(), &both());
    Subscriber::new(&broker, "palisade/status").wait_text("palisade/status", "online");
    // A label that only a command asked for.
    mqtt.publisher().watch(&asked("a", "detect bus"));
    Subscriber::new(&broker, "palisade/a/count/bus").wait_text("palisade/a/count/bus", "0");
    eventually("it is written down", || std::fs::read_to_string(folder.path().join("retained.json")).unwrap().contains("count/bus"));
    drop(mqtt);
    broker.stop();
    start_watching(config.clone(), &[asked("a", "detect dog")]).finish(Duration::from_millis(200));
    broker.restart();
    assert!(kept(&broker).contains(&"palisade/b/status".to_owned()));
    run(config, &[asked("a", "detect dog")]);
    assert_eq!(kept(&broker), sorted(&[&of_camera("a", &["dog"])]));
}

#[test]
fn a_second_daemon_in_the_same_folder_leaves_what_the_first_one_told_alone() {
    let (broker, folder) = (Broker::start(), tempfile::tempdir().unwrap());
    let first = start_watching(config(&broker, folder.path()), &both());
    eventually("the link is there", || first.publisher().trouble().is_none());
    Subscriber::new(&broker, "palisade/status").wait_text("palisade/status", "online");
    let written = std::fs::read_to_string(folder.path().join("retained.json")).unwrap();

    let other = MqttConfig {
        topic_prefix: "other".to_owned(),
        discovery_prefix: Some("ha".to_owned()),
        frigate_prefix: None,
        ..MqttConfig { state_dir: Some(folder.path().to_owned()), ..broker.config("second") }
    };
    let second = start_watching(other, &[asked("c", "detect bus")]);
    Subscriber::new(&broker, "other/status").wait_text("other/status", "online");
    let topics = kept(&broker);
    assert!(of_camera("b", &["car"]).iter().all(|topic| topics.contains(topic)), "{topics:?}");
    second.finish(LONG);
    assert_eq!(std::fs::read_to_string(folder.path().join("retained.json")).unwrap(), written);
    first.finish(LONG);
    // Whoever comes when nobody is there clears it.
    run(config(&broker, folder.path()), &[asked("a", "detect cat ; dog")]);
    assert!(!kept(&broker).contains(&"palisade/b/status".to_owned()));
}

#[test]
fn without_a_state_folder_nothing_is_known_of_earlier_runs() {
    let broker = Broker::start();
    let config = || MqttConfig { discovery_prefix: None, ..broker.config("node") };
    run(config(), &both());
    run(config(), &[asked("a", "detect cat")]);
    assert!(kept(&broker).contains(&"palisade/b/status".to_owned()));
}

#[test]
fn cameras_come_and_go_while_the_link_is_there() {
    let (broker, folder) = (Broker::start(), tempfile::tempdir().unwrap());
    let mqtt = start_watching(config(&broker, folder.path()), &both());
    Subscriber::new(&broker, "palisade/status").wait_text("palisade/status", "online");
    let publisher = mqtt.publisher();
    assert!(publisher.snapshot(&camera("b"), "car", b"a picture"));
    let pictures = ["palisade/b/snapshot/car", "frigate/b/car/snapshot"].map(str::to_owned);
    eventually("its picture is there", || kept(&broker).contains(&pictures[1]));

    let early = Subscriber::new(&broker, "#");
    publisher.leave(&camera("b"));
    // A command that was obeyed in that moment must not bring it back.
    publisher.watch(&asked("b", "detect dog"));
    eventually("nothing is left of it", || kept(&broker) == sorted(&[&of_camera("a", &["cat", "dog"])]));
    let cleared: Vec<Received> = early.messages().into_iter().filter(|message| message.payload.is_empty()).collect();
    assert_eq!(cleared.len(), of_camera("b", &["car"]).len() + pictures.len(), "{cleared:?}");
    assert_eq!(cleared[0].topic, "homeassistant/device/palisade_b/config");

    publisher.enter(&asked("c", "detect bus"));
    eventually("it is told of", || kept(&broker) == sorted(&[&of_camera("a", &["cat", "dog"]), &of_camera("c", &["bus"])]));
    let device = early.on("homeassistant/device/palisade_c/config").pop().unwrap().json();
    assert!(device["cmps"]["count_bus"]["state_topic"].is_string());
    mqtt.finish(LONG);
    // The list on disk is of those that are there.
    let early = Subscriber::new(&broker, "#");
    run(config(&broker, folder.path()), &[asked("a", "detect cat ; dog"), asked("c", "detect bus")]);
    assert!(early.messages().iter().all(|message| !message.payload.is_empty()), "nothing is left to clear");
}

/// A zone may be called as a camera, whose topics are then the camera's.
#[test]
fn a_zone_that_is_called_as_a_camera_gives_way_when_it_comes_and_is_back_when_it_goes() {
    let (broker, folder) = (Broker::start(), tempfile::tempdir().unwrap());
    let zone = Zone { name: "yard".into(), area: Area::default(), inertia: Duration::ZERO, loitering: Duration::ZERO };
    let mqtt = start_watching(config(&broker, folder.path()), &[Watched { zones: vec![zone], ..asked("a", "detect cat") }]);
    Subscriber::new(&broker, "palisade/status").wait_text("palisade/status", "online");
    let of_yard = || kept(&broker).into_iter().filter(|topic| topic.starts_with("frigate/yard/")).collect::<Vec<_>>();
    assert_eq!(of_yard(), ["frigate/yard/all", "frigate/yard/cat"]);
    mqtt.publisher().enter(&asked("yard", "detect dog"));
    eventually("the camera's alone", || of_yard() == ["frigate/yard/all", "frigate/yard/dog"]);
    mqtt.publisher().leave(&camera("yard"));
    eventually("the zone's alone", || of_yard() == ["frigate/yard/all", "frigate/yard/cat"]);
    mqtt.finish(LONG);
}
