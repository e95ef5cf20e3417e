//! Events of tracked objects: field by field, surely, in order, and kept as `mqtt.durable` has it.

use std::time::{Duration, Instant};

use palisade::base::clock::Utc;
use palisade::base::metrics::Metrics;
use palisade::config::{Durable, MqttConfig};
use palisade::mqtt::Publisher;
use palisade::types::{Box01, Event, EventKind, Reason, Track};
use serde_json::json;
use uuid::Uuid;

use super::{camera, dropped, found, looked, publish, published, start};
use crate::support::broker::{Broker, LONG, Received, Subscriber, eventually};

const TOPIC: &str = "palisade/street/events";

/// An event of the cat that `found` sees. Each call gives another id.
pub fn cat(kind: EventKind, reason: Reason) -> Event {
    let zones = if kind == EventKind::End { vec![] } else { vec!["gate".into()] };
    let track = Track {
        id: "1795442587.120-a3f9".into(),
        label: "cat".into(),
        score: 0.912_345,
        top_score: 0.94,
        start: Utc::from_millis(1_795_442_587_120),
        last: Utc::from_millis(1_795_442_589_000),
        box01: Box01::from_locs([251, 104, 893, 610]),
        stationary: false,
        zones,
        entered_zones: vec!["gate".into()],
    };
    Event {
        id: Uuid::now_v7(),
        kind,
        reason,
        camera: camera("street"),
        time: Utc::from_millis(1_795_442_590_000),
        before: (kind != EventKind::New).then(|| Box::new(Track { score: 0.5, zones: vec![], ..track.clone() })),
        track,
        frame: (1920, 1080),
        prompt_id: "5d41402a".into(),
        snapshot: None,
        clip: None,
    }
}

/// Publishes and asserts that the caller was not held up.
pub fn say(publisher: &Publisher, event: &Event) {
    let before = Instant::now();
    publisher.event(event);
    assert!(before.elapsed() < Duration::from_secs(1), "an event took {:?}", before.elapsed());
}

fn ids(messages: &[Received]) -> Vec<String> {
    messages.iter().map(|message| message.json()["event_id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn events_follow_the_contract_field_by_field() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, TOPIC);
    let metrics = Metrics::new();
    let mqtt = start(broker.config("fields"), &metrics);
    let event = cat(EventKind::New, Reason::FirstSeen);
    say(&mqtt.publisher(), &event);
    subscriber.wait_for("the event", |messages| !messages.is_empty());
    let message = subscriber.messages().remove(0);
    let expected = json!({
        "schema": 1, "event_id": event.id.to_string(), "type": "new", "camera": "street", "track_id": "1795442587.120-a3f9",
        "label": "cat", "score": 0.9123, "top_score": 0.94, "start_time": "2026-11-23T14:03:07.120Z", "end_time": null,
        "time": "2026-11-23T14:03:10.000Z", "epoch": 1_795_442_590.0,
        "box": {"x_min": 0.1016, "y_min": 0.2451, "x_max": 0.5957, "y_max": 0.8721},
        "pixels": {"x_min": 195, "y_min": 265, "x_max": 1144, "y_max": 942}, "stationary": false, "zones": ["gate"],
        "entered_zones": ["gate"], "reason": "first seen", "prompt_id": "5d41402a"
    });
    assert_eq!((message.json(), message.retain), (expected, false));
    say(&mqtt.publisher(), &cat(EventKind::End, Reason::Lost));
    subscriber.wait_for("the end", |messages| messages.len() == 2);
    let end = subscriber.messages().remove(1).json();
    assert_eq!((&end["type"], &end["end_time"], &end["zones"]), (&json!("end"), &json!("2026-11-23T14:03:09.000Z"), &json!([])));
    eventually("both are counted", || published(&metrics, "street") == 2);
    mqtt.finish(LONG);
}

#[test]
fn an_event_is_sent_at_least_once_whatever_the_qos_of_detections() {
    for (qos, of_event) in [(0, 1), (1, 1), (2, 2)] {
        let broker = Broker::start();
        let subscriber = Subscriber::new(&broker, "palisade/street/+");
        let mqtt = start(MqttConfig { qos, ..broker.config("sure") }, &Metrics::new());
        publish(&mqtt.publisher(), &found("street", 1));
        say(&mqtt.publisher(), &cat(EventKind::New, Reason::FirstSeen));
        // Either may be the first.
        let both = [TOPIC, "palisade/street/detections"];
        subscriber.wait_for("both", |messages| both.iter().all(|topic| messages.iter().any(|message| message.topic == *topic)));
        let log = broker.log();

        let line =
            |topic: &str| log.lines().find(|line| line.contains("Received PUBLISH from sure") && line.contains(topic)).unwrap_or_default();
        assert!(line("street/events").contains(&format!("q{of_event},")), "{}", line("street/events"));
        assert!(line("street/detections").contains(&format!("q{qos},")), "{}", line("street/detections"));
        mqtt.finish(LONG);
    }
}

#[test]
fn events_outlive_the_process_where_durable_names_them() {
    for (durable, events, detections) in [(Durable::All, 5, 5), (Durable::Events, 5, 0), (Durable::None, 0, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let mut broker = Broker::start();
        let subscriber = Subscriber::durable(&broker, "palisade/street/+");
        let config = |broker: &Broker| MqttConfig { durable, state_dir: Some(folder.path().to_owned()), ..broker.config("kept") };
        let config_before = config(&broker);
        broker.stop();
        let mqtt = start(config_before, &Metrics::new());
        let said: Vec<Event> = (0..5).map(|_| cat(EventKind::Update, Reason::Moved)).collect();
        for (seq, event) in said.iter().enumerate() {
            say(&mqtt.publisher(), event);
            publish(&mqtt.publisher(), &looked("street", seq as u64 + 1, "s"));
        }
        mqtt.finish(Duration::ZERO);
        broker.restart();
        let mqtt = start(config(&broker), &Metrics::new());
        // What is new comes behind what was kept.
        let last = cat(EventKind::End, Reason::Lost);
        say(&mqtt.publisher(), &last);
        // The two do not wait for each other.
        subscriber.wait_for("the last", |messages| {
            let on = |topic: &str| messages.iter().filter(|message| message.topic == topic).count();
            on(TOPIC) > events && on("palisade/street/detections") >= detections
        });
        let expected: Vec<String> = said[..events].iter().chain([&last]).map(|event| event.id.to_string()).collect();
        assert_eq!(ids(&subscriber.on(TOPIC)), expected, "{durable:?}");
        assert_eq!(subscriber.on("palisade/street/detections").len(), detections, "{durable:?}");
        mqtt.finish(LONG);
    }
}

#[test]
fn an_event_that_is_too_large_is_refused_alone() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, TOPIC);
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { max_packet: 1024, ..broker.config("large") }, &metrics);
    let small = cat(EventKind::Update, Reason::Moved);
    let mut large = cat(EventKind::Update, Reason::Moved);
    large.track.entered_zones = (0..100).map(|number| format!("zone number {number}").into()).collect();
    let next = cat(EventKind::End, Reason::Lost);
    [&small, &large, &next].into_iter().for_each(|event| say(&mqtt.publisher(), event));
    subscriber.wait_for("its neighbours", |messages| messages.len() == 2);
    assert_eq!(ids(&subscriber.messages()), [small.id.to_string(), next.id.to_string()]);
    assert_eq!((dropped(&metrics, "street"), metrics.counter("mqtt_dropped_large", "street").get()), (1, 1));
    mqtt.finish(LONG);
}
