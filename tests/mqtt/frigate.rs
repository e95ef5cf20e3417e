//! What Frigate's readers find with `mqtt.frigate`, and that they find nothing without it.

use std::time::Duration;

use palisade::base::clock::Utc;
use palisade::base::metrics::Metrics;
use palisade::config::MqttConfig;
use palisade::types::{Box01, Event, EventKind, Reason, Track};
use serde_json::{Value, json};

use super::event::{cat, say};
use super::state::{see, start_watching, street, texts};
use super::{found, publish, published, start};
use crate::support::broker::{Broker, LONG, Received, Subscriber, eventually};

fn with_frigate(broker: &Broker, client_id: &str) -> MqttConfig {
    MqttConfig { frigate_prefix: Some("frigate".to_owned()), ..broker.config(client_id) }
}

#[test]
fn by_default_frigates_readers_are_told_nothing() {
    let broker = Broker::start();
    let (subscriber, events) = (Subscriber::new(&broker, "frigate/#"), Subscriber::new(&broker, "palisade/street/events"));
    let mqtt = start(broker.config("plain"), &Metrics::new());
    publish(&mqtt.publisher(), &found("street", 1));
    say(&mqtt.publisher(), &cat(EventKind::New, Reason::FirstSeen));
    events.wait_for("the event", |messages| !messages.is_empty());
    mqtt.finish(LONG);
    assert!(subscriber.messages().is_empty(), "{:?}", subscriber.messages());
    assert!(!broker.log().contains("plain-frigate"), "{}", broker.log());
}

#[test]
fn an_event_has_frigates_names_field_by_field() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "frigate/events");
    let mqtt = start(MqttConfig { qos: 0, ..with_frigate(&broker, "fields") }, &Metrics::new());
    let publisher = mqtt.publisher();
    say(&publisher, &cat(EventKind::New, Reason::FirstSeen));
    let moved = Box01::from_locs([512, 512, 1023, 768]);
    let event = cat(EventKind::Update, Reason::Moved);
    let track = Track { box01: moved, stationary: true, last: Utc::from_millis(1_795_442_590_000), ..event.track.clone() };
    say(&publisher, &Event { track, snapshot: Some("out/street/1.jpg".to_owned()), ..event });
    say(&publisher, &cat(EventKind::End, Reason::Lost));
    subscriber.wait_for("three events", |messages| messages.len() == 3);
    let messages = subscriber.messages();
    assert!(messages.iter().all(|message| !message.retain));
    let [new, update, end]: [Value; 3] = messages.iter().map(Received::json).collect::<Vec<_>>().try_into().unwrap();

    let seen = json!({
        "id": "1795442587.120-a3f9", "camera": "street", "frame_time": 1_795_442_589.0, "label": "cat", "sub_label": null,
        "top_score": 0.94, "false_positive": false, "start_time": 1_795_442_587.12, "end_time": null, "score": 0.9123,
        "box": [195, 265, 1144, 942], "area": 949 * 677, "ratio": 1.4018, "active": true, "stationary": false,
        "current_zones": ["gate"], "entered_zones": ["gate"], "has_clip": false, "has_snapshot": false, "attributes": {},
        "current_attributes": []
    });
    assert_eq!((&new["type"], &new["after"]), (&json!("new"), &seen));
    let changed = |changes: &[(&str, Value)]| {
        let mut value = seen.clone();
        changes.iter().for_each(|(key, change)| value[*key] = change.clone());
        value
    };
    let without_picture = |mut value: Value| {
        value.as_object_mut().unwrap().remove("has_snapshot").unwrap();
        value
    };
    let unconfirmed = changed(&[("false_positive", json!(true)), ("current_zones", json!([])), ("entered_zones", json!([]))]);
    assert_eq!(new["before"], without_picture(unconfirmed));

    let before = changed(&[("score", json!(0.5)), ("current_zones", json!([]))]);
    assert_eq!((&update["type"], &update["before"]), (&json!("update"), &without_picture(before)));
    let after = changed(&[
        ("frame_time", json!(1_795_442_590.0)),
        ("box", json!([960, 540, 1440, 1079])),
        ("area", json!(480 * 539)),
        ("ratio", json!(0.8905)),
        ("active", json!(false)),
        ("stationary", json!(true)),
        ("has_snapshot", json!(true)),
    ]);
    assert_eq!(update["after"], after);

    assert_eq!((&end["type"], &end["before"]["end_time"]), (&json!("end"), &Value::Null));
    assert_eq!(end["after"], changed(&[("end_time", json!(1_795_442_589.0)), ("current_zones", json!([]))]));
    mqtt.finish(LONG);
    let log = broker.log();
    assert!(
        log.lines().any(|line| line.contains("Received PUBLISH from fields (d0, q1, r0,") && line.contains("'frigate/events'")),
        "{log}"
    );
}

#[test]
fn events_for_frigates_readers_are_counted_on_their_camera() {
    let broker = Broker::start();
    let metrics = Metrics::new();
    let mqtt = start(with_frigate(&broker, "counted"), &metrics);
    say(&mqtt.publisher(), &cat(EventKind::New, Reason::FirstSeen));
    eventually("both are acknowledged", || published(&metrics, "street") == 2);
    assert_eq!(published(&metrics, "frigate"), 0);
    mqtt.finish(LONG);
}

#[test]
fn events_for_frigates_readers_wait_for_the_broker_like_the_others_and_in_the_same_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Broker::start();
    let config = || MqttConfig { state_dir: Some(folder.path().to_owned()), ..with_frigate(&broker, "kept") };
    let (subscriber, before, after) = (Subscriber::durable(&broker, "+/events"), config(), config());
    let all = Subscriber::durable(&broker, "palisade/street/events");
    broker.stop();
    let mqtt = start(before, &Metrics::new());
    let said: Vec<Event> = (0..4)
        .map(|index| {
            let event = cat(EventKind::Update, Reason::Moved);
            Event { track: Track { id: format!("track-{index}").into(), ..event.track.clone() }, ..event }
        })
        .collect();
    said.iter().for_each(|event| say(&mqtt.publisher(), event));
    mqtt.finish(Duration::ZERO);
    broker.restart();
    let mqtt = start(after, &Metrics::new());
    subscriber.wait_for("Frigate's", |messages| messages.len() == 4);
    all.wait_for("palisade's", |messages| messages.len() == 4);
    let expected: Vec<&str> = said.iter().map(|event| &*event.track.id).collect();
    let ids = |messages: &[Received], path: &str| -> Vec<String> {
        messages.iter().map(|message| message.json().pointer(path).unwrap().as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&subscriber.messages(), "/after/id"), expected);
    assert_eq!(ids(&all.messages(), "/track_id"), expected);
    mqtt.finish(LONG);
}

#[test]
fn counts_are_told_by_label_and_in_all_and_end_at_zero_before_offline() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "site/frigate/#");
    let config = MqttConfig { frigate_prefix: Some("site/frigate".to_owned()), ..broker.config("counts") };
    let mqtt = start_watching(config, &[street("detect Cat ; traffic light")]);
    subscriber.wait_text("site/frigate/available", "online");
    subscriber.wait_text("site/frigate/street/all", "0");
    let publisher = mqtt.publisher();
    for (seq, labels) in [(1, &["cat", "cat", "traffic light", "dog"][..]), (2, &["traffic light"])] {
        see(&publisher, seq, labels);
        subscriber.wait_text("site/frigate/street/all", &labels.iter().filter(|label| **label != "dog").count().to_string());
    }
    let late = Subscriber::new(&broker, "site/frigate/#");
    late.wait_for("all that is kept", |messages| messages.len() == 4);
    assert!(late.messages().iter().all(|message| message.retain));
    let kept: Vec<(String, String)> = late.messages().into_iter().map(|message| (message.topic.clone(), message.text())).collect();
    for (topic, text) in [("available", "online"), ("street/all", "1"), ("street/cat", "0"), ("street/traffic_light", "1")] {
        assert!(kept.contains(&(format!("site/frigate/{topic}"), text.to_owned())), "{topic}: {kept:?}");
    }
    mqtt.finish(LONG);
    subscriber.wait_text("site/frigate/available", "offline");
    assert_eq!(texts(&subscriber.on("site/frigate/street/cat")), ["0", "2", "0"]);
    assert_eq!(texts(&subscriber.on("site/frigate/street/all")), ["0", "3", "1", "0"]);
    assert_eq!(texts(&subscriber.on("site/frigate/available")), ["online", "offline"], "the last will was published too");
    assert_eq!(subscriber.messages().last().unwrap().topic, "site/frigate/available", "the zeros come before offline");
    eventually("both say goodbye", || {
        let log = broker.log();
        ["counts", "counts-frigate"].iter().all(|client| log.contains(&format!("Client {client} disconnected.")))
    });
}

#[test]
fn the_broker_says_offline_to_frigates_readers_when_the_daemon_is_killed() {
    let mut broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "+/+");
    let mqtt = start(with_frigate(&broker, "will"), &Metrics::new());
    subscriber.wait_text("frigate/available", "online");
    subscriber.wait_text("palisade/status", "online");
    broker.kill9();
    broker.restart();
    // By the log, for the new broker still has the old one's `online`.
    eventually("both are there again", || {
        let log = broker.log();
        let said = |client: &str, topic: &str| {
            log.lines().filter(|line| line.contains(&format!("Received PUBLISH from {client} (")) && line.contains(topic)).count()
        };
        said("will-frigate", "'frigate/available'") == 2 && said("will", "'palisade/status'") == 2
    });
    drop(mqtt); // the daemon unwinds: nobody says goodbye
    subscriber.wait_text("frigate/available", "offline");
    subscriber.wait_text("palisade/status", "offline");
    let log = broker.log();
    assert!(!log.contains("Client will disconnected.") && !log.contains("Client will-frigate disconnected."), "{log}");
}
