//! What is published against what `palisade mqtt schema` promises, by a validator that is not ours.

use std::time::Duration;

use jsonschema::Validator;
use palisade::base::metrics::Metrics;
use palisade::config::MqttConfig;
use palisade::mqtt::schema;
use palisade::types::{CameraState, CameraStatus, Event, EventKind, Reason};
use serde_json::{Value, json};

use super::event::{cat, say};
use super::{found, looked, publish, running, start};
use crate::support::broker::{Broker, LONG, Subscriber};

fn read(name: &str) -> Value {
    let (_, text) = schema::ALL.iter().find(|(known, _)| *known == name).unwrap();
    serde_json::from_str(text).unwrap()
}

fn validator(name: &str) -> Validator {
    jsonschema::draft202012::new(&read(name)).unwrap()
}

#[track_caller]
fn assert_valid(validator: &Validator, payload: &Value) {
    let faults: Vec<String> = validator.iter_errors(payload).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(faults.is_empty(), "{faults:#?} in {payload}");
}

/// Follows a `$ref` of this document.
fn resolve<'s>(root: &'s Value, part: &'s Value) -> &'s Value {
    part["$ref"].as_str().map_or(part, |name| root.pointer(name.trim_start_matches('#')).unwrap())
}

/// The paths of all values that the schema requires of a payload, `0` for the first of a list.
fn required(root: &Value, part: &Value, path: &str, paths: &mut Vec<String>) {
    let part = resolve(root, part);
    for key in part["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let path = format!("{path}/{key}");
        required(root, &part["properties"][key], &path, paths);
        paths.push(path);
    }
    if part.get("items").is_some_and(|items| resolve(root, items)["type"] == "object") {
        required(root, &part["items"], &format!("{path}/0"), paths);
    }
}

/// Takes the value at `path` out.
fn without(payload: &Value, path: &str) -> Value {
    let mut less = payload.clone();
    let (parent, key) = path.rsplit_once('/').unwrap();
    less.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key).unwrap();
    less
}

/// Asserts that the schema takes the payload, names every key in it, requires each of them, and takes no other value there.
fn assert_exact(name: &str, payload: &Value) {
    let (schema, validator) = (read(name), validator(name));
    assert_valid(&validator, payload);
    let mut paths = Vec::new();
    required(&schema, &schema, "", &mut paths);
    assert!(paths.len() >= 4, "{paths:?}");
    for path in &paths {
        assert!(!validator.is_valid(&without(payload, path)), "{name}{path} may be missing");
        let mut strange = payload.clone();
        *strange.pointer_mut(path).unwrap() = json!({"strange": [true]});
        assert!(!validator.is_valid(&strange), "{name}{path} may be anything");
    }
    let mut unnamed: Vec<String> = Vec::new();
    keys(payload, "", &mut unnamed);
    unnamed.retain(|path| !paths.contains(path));
    assert!(unnamed.is_empty(), "published but not promised: {unnamed:?}");
    let mut more = payload.clone();
    more["added_later"] = json!(1);
    assert_valid(&validator, &more);
}

fn keys(value: &Value, path: &str, all: &mut Vec<String>) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        all.push(format!("{path}/{key}"));
        keys(inner, &format!("{path}/{key}"), all);
    }
    if let Some(first) = value.as_array().and_then(|items| items.first()) {
        keys(first, &format!("{path}/0"), all);
    }
}

#[test]
fn what_is_published_is_what_the_schema_promises() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mqtt = start(MqttConfig { stats_interval: Duration::from_secs(1), ..broker.config("promised") }, &Metrics::new());
    let publisher = mqtt.publisher();
    publisher.camera_status(&running("street", 24.9));
    let gone = CameraStatus { state: CameraState::Backoff, reason: "no route to host".to_owned(), ..running("yard", 0.0) };
    publisher.camera_status(&gone);
    publish(&publisher, &found("street", 1));
    publish(&publisher, &looked("yard", 1, "\"<odd>\u{7}é"));
    for (kind, reason) in [
        (EventKind::New, Reason::FirstSeen),
        (EventKind::Update, Reason::Moved),
        (EventKind::Update, Reason::Zone),
        (EventKind::Update, Reason::Score),
        (EventKind::Update, Reason::Heartbeat),
        (EventKind::End, Reason::Lost),
    ] {
        say(&publisher, &cat(kind, reason));
    }
    let clip = Some("/clips/street/20261123T140302.120Z.mp4".to_owned());
    let pictured = Event { snapshot: Some("palisade/street/snapshot/cat".to_owned()), clip, ..cat(EventKind::Update, Reason::Score) };
    say(&publisher, &pictured);
    subscriber.wait_for("the events", |messages| messages.iter().filter(|one| one.topic.ends_with("/events")).count() == 7);
    subscriber.wait_for("both detections", |messages| messages.iter().filter(|one| one.topic.ends_with("/detections")).count() == 2);
    subscriber.wait_for("figures", |messages| messages.iter().any(|one| one.topic == "palisade/stats"));
    mqtt.finish(LONG);
    let (detections, events, status) = (validator("detections"), validator("events"), validator("status"));
    for message in subscriber.messages() {
        match message.topic.rsplit('/').next().unwrap() {
            "events" => assert_valid(&events, &message.json()),
            "detections" => assert_valid(&detections, &message.json()),
            "status" if message.topic != "palisade/status" => assert_valid(&status, &message.json()),
            "stats" => assert_valid(&validator("stats"), &message.json()),
            _ => {}
        }
    }
    assert_exact("detections", &subscriber.on("palisade/street/detections")[0].json());
    assert_exact("events", &subscriber.on("palisade/street/events")[0].json());
    assert_exact("status", &subscriber.on("palisade/yard/status").last().unwrap().json());
}

#[test]
fn a_mangled_payload_is_refused() {
    let detections = validator("detections");
    let payload = |change: &dyn Fn(&mut Value)| {
        let context = palisade::mqtt::Context { model: "m".to_owned(), run: super::RUN };
        let mut value = serde_json::from_slice(&palisade::mqtt::payload::looked(&found("street", 1), &context)).unwrap();
        change(&mut value);
        value
    };
    assert_valid(&detections, &payload(&|_| {}));
    type Change<'c> = (&'c str, &'c dyn Fn(&mut Value));
    let changes: [Change<'_>; 8] = [
        ("another version", &|value| value["schema"] = json!(2)),
        ("an id in capitals", &|value| value["camera"] = json!("Street")),
        ("a share in percent", &|value| value["detections"][0]["score"] = json!(91)),
        ("a box of numbers", &|value| value["detections"][0]["box"] = json!([0.1, 0.2, 0.3, 0.4])),
        ("three locations", &|value| value["detections"][0]["locs"] = json!([1, 2, 3])),
        ("a number before the first", &|value| value["seq"] = json!(0)),
        ("a local time", &|value| value["time"] = json!("2026-11-23T14:03:07.120+01:00")),
        ("no reason", &|value| value["dropped"][0]["why"] = json!("")),
    ];
    for (what, change) in changes {
        assert!(!detections.is_valid(&payload(change)), "{what} is taken");
    }
}

#[test]
fn the_example_of_an_event_keeps_its_schema() {
    let corners = json!({"x_min": 0.1, "y_min": 0.2, "x_max": 0.5, "y_max": 0.8});
    let pixels = json!({"x_min": 1, "y_min": 2, "x_max": 3, "y_max": 4});
    let event = json!({
        "schema": 1, "event_id": "0199aa00-0000-7000-8000-000000000001", "type": "end", "camera": "street",
        "track_id": "1795442587.120-a3f9", "label": "cat", "score": 0.91, "top_score": 0.94, "start_time": "2026-11-23T14:03:07.120Z",
        "end_time": "2026-11-23T14:04:07.120Z", "time": "2026-11-23T14:04:07.120Z", "epoch": 1_795_442_647.12, "box": corners,
        "pixels": pixels, "stationary": false, "zones": ["gate"], "entered_zones": ["gate"], "reason": "lost", "prompt_id": "5d41402a"
    });
    assert_exact("events", &event);
    let mut open = event.clone();
    (open["end_time"], open["snapshot"]) = (Value::Null, json!("palisade/street/snapshot/cat"));
    assert_valid(&validator("events"), &open);
}

#[test]
fn every_schema_is_one() {
    for (name, _) in schema::ALL {
        let schema = read(name);
        assert!(jsonschema::draft202012::meta::is_valid(&schema), "{name}");
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
        assert!(!schema.to_string().contains("additionalProperties\":false"), "{name} forbids what may be added");
    }
}
