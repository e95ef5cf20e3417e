//! Retained state: all of it before `online`, kept up to date, cleared, told again; Home Assistant's discovery; statistics.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use palisade::base::metrics::Metrics;
use palisade::config::MqttConfig;
use palisade::mqtt::{self, Context, Mqtt, Publisher, Watched};
use palisade::types::{Answer, Box01, Detection, Looked, Prompt};
use rumqttc::{Client, MqttOptions, QoS};
use serde_json::{Value, json};

use super::{QUICK, RUN, camera, looked, running, start};
use crate::support::broker::{Broker, LONG, Received, Subscriber, eventually};

const CONFIG: &str = "homeassistant/device/palisade_street/config";

pub fn street(prompt: &str) -> Watched {
    Watched { id: camera("street"), prompt: Prompt::new(prompt).unwrap(), enabled: true, zones: Vec::new() }
}

pub fn start_watching(config: MqttConfig, watched: &[Watched]) -> Mqtt {
    let context = Context { model: "test/model@main".to_owned(), run: RUN };
    mqtt::start_with(config, watched, context, &Metrics::new(), QUICK).unwrap()
}

pub fn see(publisher: &Publisher, seq: u64, labels: &[&str]) {
    let locs = [0, 0, 512, 512];
    let one = |label: &&str| Detection { label: (*label).to_owned(), score: 0.5, locs, box01: Box01::from_locs(locs) };
    let looked = looked("street", seq, "");
    let answer = Answer { detections: labels.iter().map(one).collect(), ..(*looked.answer).clone() };
    publisher.looked(&Looked { answer: Arc::new(answer), ..looked });
}

pub fn texts(messages: &[Received]) -> Vec<String> {
    messages.iter().map(Received::text).collect()
}

/// Publishes one message as another client would.
pub fn say(broker: &Broker, topic: &str, payload: &str, retain: bool) {
    let (client, mut connection) = Client::new(MqttOptions::new("somebody", "localhost", broker.port()), 8);
    client.publish(topic, QoS::AtLeastOnce, retain, payload).unwrap();
    client.disconnect().unwrap();
    connection.iter().take_while(Result::is_ok).for_each(drop);
}

#[test]
fn discovery_comes_first_then_all_other_state_then_online() {
    let broker = Broker::start();
    let early = Subscriber::new(&broker, "#");
    let config = MqttConfig { topic_prefix: "Site/North".to_owned(), ..broker.config("order") };
    let off = Watched { id: camera("yard"), prompt: Prompt::new("caption en").unwrap(), enabled: false, zones: Vec::new() };
    let mqtt = start_watching(config, &[street("detect Cat ; traffic light ; лошадь"), off]);
    early.wait_text("Site/North/status", "online");
    let messages = early.messages();
    let said: Vec<(&str, String)> = messages.iter().map(|message| (message.topic.as_str(), message.text())).collect();
    let topics: Vec<&str> = said.iter().map(|(topic, _)| *topic).collect();
    let hashed = topics.iter().copied().filter(|topic| topic.contains("/count/")).nth(2).unwrap();
    let digits = hashed.rsplit('/').next().unwrap();
    assert!(digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hashed}");
    let expected = [
        "homeassistant/device/site_north_street/config",
        "homeassistant/device/site_north_yard/config",
        "Site/North/street/status",
        "Site/North/street/prompt/state",
        "Site/North/street/detect/state",
        "Site/North/street/count/cat",
        "Site/North/street/count/traffic_light",
        hashed,
        "Site/North/yard/status",
        "Site/North/yard/prompt/state",
        "Site/North/yard/detect/state",
        "Site/North/status",
    ];
    assert_eq!(topics, expected);
    let text = |topic: &str| said.iter().find(|(said, _)| *said == topic).unwrap().1.clone();
    assert_eq!(text("Site/North/street/prompt/state"), "detect Cat ; traffic light ; лошадь");
    assert_eq!((text("Site/North/street/detect/state"), text("Site/North/yard/detect/state")), ("ON".to_owned(), "OFF".to_owned()));
    assert!(said[5..8].iter().all(|(_, count)| count == "0"), "{said:?}");
    mqtt.finish(LONG);
}

#[test]
fn counts_follow_each_answer_on_change_and_end_at_zero() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mqtt = start_watching(broker.config("counts"), &[street("detect cat ; traffic light")]);
    subscriber.wait_text("palisade/status", "online");
    let publisher = mqtt.publisher();
    for (seq, labels) in [(1, &["CAT", "cat", "unicorn"][..]), (2, &["cat", "cat"]), (3, &["Traffic-Light", "cat"])] {
        see(&publisher, seq, labels);
        let count = format!("{}", labels.iter().filter(|label| label.eq_ignore_ascii_case("cat")).count());
        subscriber.wait_text("palisade/street/count/cat", &count);
    }
    subscriber.wait_text("palisade/street/count/traffic_light", "1");
    mqtt.finish(LONG);
    subscriber.wait_text("palisade/status", "offline");
    assert_eq!(texts(&subscriber.on("palisade/street/count/cat")), ["0", "2", "1", "0"]);
    assert_eq!(texts(&subscriber.on("palisade/street/count/traffic_light")), ["0", "1", "0"]);
    assert!(subscriber.on("palisade/street/count/unicorn").is_empty(), "nobody asked for it");
    assert_eq!(subscriber.messages().last().unwrap().topic, "palisade/status", "the zeros come before offline");
}

#[test]
fn labels_no_longer_asked_are_cleared_and_their_entities_go() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "#");
    let mqtt = start_watching(broker.config("asked"), &[street("detect cat ; dog")]);
    subscriber.wait_text("palisade/status", "online");
    mqtt.publisher().watch(&street("detect dog ; car"));
    subscriber.wait_text("palisade/street/count/cat", "");
    subscriber.wait_text("palisade/street/count/car", "0");
    subscriber.wait_text("palisade/street/prompt/state", "detect dog ; car");
    let newest = subscriber.on(CONFIG).pop().unwrap().json();
    assert_eq!(newest["cmps"]["occupancy_cat"], json!({"p": "binary_sensor"}));
    assert_eq!(newest["cmps"]["count_cat"], json!({"p": "sensor"}));
    assert!(newest["cmps"]["count_car"]["unique_id"].is_string(), "{newest}");
    let late = Subscriber::new(&broker, "palisade/street/count/+");
    late.wait_for("the counts asked for now", |messages| messages.len() == 2);
    assert!(late.on("palisade/street/count/cat").is_empty());
    mqtt.finish(LONG);
}

#[test]
fn discovery_names_only_topics_that_are_published_and_no_state_is_too_long() {
    let broker = Broker::start();
    let early = Subscriber::new(&broker, "#");
    let prompt = format!("detect cat ; {}", "a very long thing to look for ; ".repeat(15));
    let mqtt = start_watching(broker.config("discovery"), &[street(&prompt)]);
    mqtt.publisher().camera_status(&running("street", 24.9));
    early.wait_text("palisade/status", "online");
    let late = Subscriber::new(&broker, "#");
    late.wait_for("the retained state", |messages| messages.iter().any(|message| message.topic == CONFIG));
    let config = late.on(CONFIG)[0].json();
    assert_eq!(config["dev"]["identifiers"], json!(["palisade_street"]));
    assert_eq!((&config["o"]["name"], &config["dev"]["model"]), (&json!("palisade"), &json!("test/model@main")));

    let published: BTreeSet<String> = early.messages().into_iter().map(|message| message.topic).collect();
    let mut components = config["cmps"].as_object().unwrap().clone();
    // Without `control` these are told only so that they go.
    assert_eq!((components.remove("ask"), components.remove("detect")), (Some(json!({"p": "text"})), Some(json!({"p": "switch"}))));
    let ids: BTreeSet<&str> = components.values().map(|component| component["unique_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), components.len(), "{components:#?}");
    let platforms = |platform: &str| components.values().filter(|component| component["p"] == platform).count();
    assert_eq!((platforms("binary_sensor"), platforms("sensor")), (1 + 2, 2 + 2));
    for (key, component) in &components {
        if component["p"] == "image" {
            // There is none before there is an object.
            assert_eq!(component["image_topic"], format!("palisade/street/snapshot/{}", key.strip_prefix("snapshot_").unwrap()));
            continue;
        }
        for topic in ["state_topic", "json_attributes_topic"].iter().filter_map(|name| component[*name].as_str()) {
            assert!(published.contains(topic), "{key}: {topic}");
        }
        let payload = early.on(component["state_topic"].as_str().unwrap()).pop().unwrap();
        let state = match component["value_template"].as_str() {
            None => payload.text(),
            Some("{{ value_json.state }}") => payload.json()["state"].as_str().unwrap().to_owned(),
            Some("{{ value[:255] }}") => payload.text().chars().take(255).collect(),
            Some("{{ 'ON' if value | int(0) > 0 else 'OFF' }}") => payload.text().parse::<u32>().map(|_| "OFF".to_owned()).unwrap(),
            Some(other) => panic!("{key}: this test does not know {other}"),
        };
        assert!(!state.is_empty() && state.chars().count() <= 255, "{key}: {state}");
    }
    for availability in config["availability"].as_array().unwrap() {
        assert!(published.contains(availability["topic"].as_str().unwrap()), "{availability}");
    }
    mqtt.finish(LONG);
}

#[test]
fn without_discovery_home_assistant_is_told_nothing() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "#");
    let mqtt = start_watching(MqttConfig { discovery_prefix: None, ..broker.config("quiet") }, &[street("detect cat")]);
    subscriber.wait_text("palisade/status", "online");
    assert!(subscriber.messages().iter().all(|message| message.topic.starts_with("palisade/")), "{:?}", subscriber.messages());
    assert!(!broker.log().contains("Received SUBSCRIBE from quiet"));
    mqtt.finish(LONG);
}

#[test]
fn home_assistant_is_told_everything_again_when_it_starts() {
    let broker = Broker::start();
    // An old message is none: the daemon has just published everything when it reads this one.
    say(&broker, "homeassistant/status", "online", true);
    let subscriber = Subscriber::new(&broker, "#");
    let mqtt = start_watching(broker.config("birth"), &[street("detect cat")]);
    subscriber.wait_text("palisade/status", "online");
    see(&mqtt.publisher(), 1, &["cat"]);
    subscriber.wait_text("palisade/street/count/cat", "1");
    eventually("the daemon listens", || broker.log().contains("Received SUBSCRIBE from birth"));
    say(&broker, "homeassistant/status", "offline", false);
    assert_eq!(subscriber.on(CONFIG).len(), 1);
    say(&broker, "homeassistant/status", "online", false);
    let all = [CONFIG, "palisade/street/status", "palisade/street/prompt/state", "palisade/street/detect/state"];
    subscriber.wait_for("everything once more", |messages| {
        let count = |topic: &str| messages.iter().filter(|message| message.topic == topic).count();
        all.iter().all(|topic| count(topic) == 2) && count("palisade/street/count/cat") == 3
    });
    assert_eq!(texts(&subscriber.on("palisade/street/count/cat")), ["0", "1", "1"]);
    assert_eq!(subscriber.on("palisade/status").len(), 1, "the daemon was there all the time");
    assert_eq!(texts(&subscriber.on("palisade/street/detections")).len(), 1, "records are not sent again");
    mqtt.finish(LONG);
}

#[test]
fn a_broker_that_forgot_everything_gets_it_again() {
    let mut broker = Broker::start();
    let before = Subscriber::new(&broker, "#");
    let mqtt = start(broker.config("again"), &Metrics::new());
    before.wait_text("palisade/status", "online");
    see(&mqtt.publisher(), 1, &["cat"]);
    before.wait_text("palisade/street/count/cat", "1");
    let topics = |subscriber: &Subscriber| -> BTreeSet<String> {
        let all = subscriber.messages().into_iter().map(|message| message.topic);
        all.filter(|topic| !topic.ends_with("/detections")).collect()
    };
    let told = topics(&before);
    assert_eq!(told.len(), 2 * (1 + 3 + 2) + 1, "{told:?}");
    broker.kill9();
    std::fs::remove_file(broker.path("mosquitto.db")).ok();
    broker.restart();
    let after = Subscriber::new(&broker, "#");
    after.wait_text("palisade/status", "online");
    assert_eq!(topics(&after), told);
    after.wait_text("palisade/street/count/cat", "1");
    mqtt.finish(LONG);
}

#[test]
fn statistics_come_at_their_interval_and_are_not_kept() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/stats");
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { stats_interval: Duration::from_secs(1), ..broker.config("stats") }, &metrics);
    metrics.counter("frames_in", "street").add_many(7);
    metrics.latency("inference", "all").record(Duration::from_millis(40));
    mqtt.publisher().camera_status(&running("street", 24.9));
    subscriber.wait_for("two of them", |messages| messages.len() >= 2);
    let message = subscriber.messages().remove(0);
    assert!(!message.retain && broker.log().contains("Received PUBLISH from stats (d0, q0, r0, m0, 'palisade/stats'"), "{}", broker.log());
    let stats: Value = message.json();
    let street = json!({"fps": 24.9, "frames_in": 7, "sampled": 0, "gated": 0, "analysed": 0, "dropped": 0, "reconnects": 0});
    assert_eq!((&stats["schema"], &stats["cameras"]["street"]), (&json!(1), &street));
    assert_eq!(stats["inference_ms"], json!({"p50": 40.0, "p90": 40.0, "p99": 40.0}));
    assert_eq!(stats["outbox"], json!({"records": 0, "bytes": 0}));
    assert_eq!(stats["cameras"].as_object().unwrap().len(), 2);
    mqtt.finish(LONG);
}
