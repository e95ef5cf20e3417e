//! A message in one line for a person, or one object for a script. What comes from a broker may be anybody's: nothing is
//! taken for granted, and no control character reaches the terminal.

use serde_json::{Value, json};

use crate::base::clock::Utc;

/// The longest text shown of a payload that is not known, in characters.
const MOST: usize = 200;

/// A message as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The whole topic.
    pub topic: String,
    /// The broker had kept it from before.
    pub retained: bool,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Heard {
    /// `2026-11-23T14:03:07.120Z street  cat 0.91 at 0.35,0.56`: the message's own time, else `now`; the camera; what it
    /// says. `prefix` is the topic prefix of the node.
    pub fn line(&self, prefix: &str, now: Utc) -> String {
        let below = self.topic.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&self.topic);
        let levels: Vec<&str> = below.split('/').collect();
        let value = self.object();
        let time = ["time", "since"].into_iter().find_map(|key| value[key].as_str()).map_or_else(|| now.to_string(), str::to_owned);
        let (camera, what) = match levels.as_slice() {
            ["status"] => ("-", format!("daemon is {}", self.text())),
            ["stats"] => ("-", format!("stats {}", self.text())),
            [camera, "status"] if value.is_object() => (*camera, status(&value)),
            [camera, "detections"] if value.is_object() => (*camera, detections(&value)),
            [camera, "events"] if value.is_object() => (*camera, event(&value)),
            [camera, "count", label] if self.payload.is_empty() => (*camera, format!("count of {label} is no longer told")),
            [camera, "count", label] => (*camera, format!("count {label} {}", self.text())),
            [camera, "zone", zone, "count", label] if self.payload.is_empty() => {
                (*camera, format!("count of {label} in {zone} is no longer told"))
            }
            [camera, "zone", zone, "count", label] => (*camera, format!("count {label} in {zone} {}", self.text())),
            [camera, what @ ..] if !what.is_empty() => (*camera, format!("{} {}", what.join("/"), self.text())),
            _ => ("-", format!("{below} {}", self.text())),
        };
        let kept = if self.retained { "  (retained)" } else { "" };
        printable(&format!("{time} {camera}  {what}{kept}"))
    }

    /// `{"topic","retained","payload"}`: the payload as an object or a number where it is one, else as text; where it is
    /// neither, null and its size in `bytes`.
    pub fn json(&self) -> Value {
        let text = std::str::from_utf8(&self.payload).ok();
        let number = || text.filter(|_| self.topic.contains("/count/")).and_then(|text| text.parse::<i64>().ok()).map(Value::from);
        let object = Some(self.object()).filter(Value::is_object);
        let payload = object.or_else(number).or_else(|| text.map(Value::from));
        let mut all = json!({"topic": self.topic, "retained": self.retained, "payload": payload});
        if payload.is_none() {
            all["bytes"] = self.payload.len().into();
        }
        all
    }

    fn object(&self) -> Value {
        serde_json::from_slice(&self.payload).ok().filter(Value::is_object).unwrap_or_default()
    }

    fn text(&self) -> String {
        match std::str::from_utf8(&self.payload) {
            Ok(text) if text.chars().count() > MOST => format!("{}…", text.chars().take(MOST).collect::<String>()),
            Ok(text) => text.to_owned(),
            Err(_) => format!("{} bytes", self.payload.len()),
        }
    }
}

/// `car 0.98 at 0.12,0.40`: the label, the score, and the middle of the box in shares of width and height.
pub fn object(one: &Value) -> String {
    let middle = |low: &str, high: &str| (one["box"][low].as_f64().unwrap_or(0.0) + one["box"][high].as_f64().unwrap_or(0.0)) / 2.0;
    let (x, y) = (middle("x_min", "x_max"), middle("y_min", "y_max"));
    format!("{} {:.2} at {x:.2},{y:.2}", one["label"].as_str().unwrap_or_default(), one["score"].as_f64().unwrap_or(0.0))
}

fn status(value: &Value) -> String {
    let (state, reason) = (value["state"].as_str().unwrap_or("?"), value["reason"].as_str().unwrap_or_default());
    let fps = value["fps"].as_f64().filter(|fps| *fps > 0.0).map_or(String::new(), |fps| format!(" at {fps:.1} fps"));
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("is {state}{fps}{why}")
}

fn detections(value: &Value) -> String {
    let found: Vec<String> = value["detections"].as_array().into_iter().flatten().map(object).collect();
    if found.is_empty() { "nothing".to_owned() } else { found.join("   ") }
}

fn event(value: &Value) -> String {
    let word = |key: &str| value[key].as_str().unwrap_or("?").to_owned();
    let zones: Vec<&str> = value["zones"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let zones = if zones.is_empty() { String::new() } else { format!(" in {}", zones.join(", ")) };
    format!("{} {}{zones} ({}) track {}", word("type"), object(value), word("reason"), word("track_id"))
}

/// Without what would move a terminal's cursor.
pub fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn heard(topic: &str, payload: impl AsRef<[u8]>) -> Heard {
        Heard { topic: topic.to_owned(), retained: false, payload: payload.as_ref().to_vec() }
    }

    #[test]
    fn every_topic_of_the_contract_has_a_line() {
        let now = Utc::from_millis(1_795_442_587_120);
        let one = r#""label":"cat","score":0.91,"box":{"x_min":0.1,"y_min":0.24,"x_max":0.6,"y_max":0.88}"#;
        let detections = format!(r#"{{"time":"2026-11-23T14:03:09.000Z","detections":[{{{one}}},{{{one}}}]}}"#);
        let event = format!(r#"{{"time":"T","type":"new",{one},"reason":"first seen","track_id":"7-a","zones":["gate"]}}"#);
        let lines = [
            ("status", "online", "2026-11-23T14:03:07.120Z -  daemon is online"),
            ("street/status", r#"{"state":"running","reason":"","since":"S","fps":24.94}"#, "S street  is running at 24.9 fps"),
            ("street/status", r#"{"state":"stalled","reason":"no frame","since":"S","fps":0}"#, "S street  is stalled: no frame"),
            ("street/detections", &detections, "2026-11-23T14:03:09.000Z street  cat 0.91 at 0.35,0.56   cat 0.91 at 0.35,0.56"),
            ("street/detections", r#"{"time":"T","detections":[]}"#, "T street  nothing"),
            ("street/events", &event, "T street  new cat 0.91 at 0.35,0.56 in gate (first seen) track 7-a"),
            ("street/count/cat", "2", "2026-11-23T14:03:07.120Z street  count cat 2"),
            ("street/count/cat", "", "2026-11-23T14:03:07.120Z street  count of cat is no longer told"),
            ("street/zone/gate/count/cat", "2", "2026-11-23T14:03:07.120Z street  count cat in gate 2"),
            ("street/zone/gate/count/cat", "", "2026-11-23T14:03:07.120Z street  count of cat in gate is no longer told"),
            ("street/detect/state", "ON", "2026-11-23T14:03:07.120Z street  detect/state ON"),
            ("street/prompt/state", "a\u{1b}[2J\n", "2026-11-23T14:03:07.120Z street  prompt/state a [2J "),
            ("stats", "{}", "2026-11-23T14:03:07.120Z -  stats {}"),
            ("odd", "x", "2026-11-23T14:03:07.120Z -  odd x"),
        ];
        for (topic, payload, line) in lines {
            assert_eq!(heard(&format!("site/north/{topic}"), payload).line("site/north", now), line);
        }
        let picture = Heard { retained: true, ..heard("p/street/snapshot/cat", [0xff, 0xd8, 0xff]) };
        assert_eq!(picture.line("p", now), "2026-11-23T14:03:07.120Z street  snapshot/cat 3 bytes  (retained)");
        assert!(heard("p/a/prompt/state", "é".repeat(5000)).line("p", now).chars().count() < 300);
    }

    #[test]
    fn strange_payloads_have_a_line_too() {
        let now = Utc::from_millis(0);
        for payload in ["", "[1]", "null", "{", r#"{"detections":3}"#, r#"{"detections":[null,{"box":[]}]}"#] {
            for topic in ["p/a/detections", "p/a/status", "p/a/events", "p/status", "p", "p/", "x/y"] {
                assert!(!heard(topic, payload).line("p", now).contains('\n'), "{topic} {payload}");
            }
        }
    }

    #[test]
    fn an_object_for_scripts_keeps_what_is_json() {
        let json = |topic: &str, payload: &[u8]| heard(topic, payload).json().to_string();
        assert_eq!(json("p/status", b"online"), r#"{"topic":"p/status","retained":false,"payload":"online"}"#);
        assert_eq!(json("p/a/status", b"{\"fps\": 1.5}"), r#"{"topic":"p/a/status","retained":false,"payload":{"fps":1.5}}"#);
        assert_eq!(json("p/a/count/cat", b"2"), r#"{"topic":"p/a/count/cat","retained":false,"payload":2}"#);
        assert_eq!(json("p/a/prompt/state", b"2"), r#"{"topic":"p/a/prompt/state","retained":false,"payload":"2"}"#);
        let picture = r#"{"topic":"p/a/snapshot/cat","retained":false,"payload":null,"bytes":2}"#;
        assert_eq!(json("p/a/snapshot/cat", &[0xff, 0xd8]), picture);
    }
}
