//! The `events` object: one change of a tracked object.

use serde::Serialize;

use super::{BoxWire, PixelsWire, box_wire, json, share};
use crate::types::{Event, EventKind};

/// The version of the `events` object.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct EventWire<'a> {
    schema: u32,
    event_id: String,
    r#type: &'static str,
    camera: &'a str,
    track_id: &'a str,
    label: &'a str,
    score: f64,
    top_score: f64,
    start_time: String,
    end_time: Option<String>,
    time: String,
    epoch: f64,
    r#box: BoxWire,
    pixels: PixelsWire,
    stationary: bool,
    zones: Vec<&'a str>,
    entered_zones: Vec<&'a str>,
    reason: &'static str,
    prompt_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clip: Option<&'a str>,
}

/// The `events` object. Boxes and scores are shares (0..1) with four decimals. `end_time` is when the object was last seen,
/// once it is gone.
pub fn event(event: &Event) -> Vec<u8> {
    let track = &event.track;
    let (width, height) = event.frame;
    json(&EventWire {
        schema: SCHEMA,
        event_id: event.id.to_string(),
        r#type: event.kind.name(),
        camera: event.camera.as_str(),
        track_id: &track.id,
        label: &track.label,
        score: share(track.score),
        top_score: share(track.top_score),
        start_time: track.start.to_string(),
        end_time: (event.kind == EventKind::End).then(|| track.last.to_string()),
        time: event.time.to_string(),
        epoch: event.time.epoch(),
        r#box: box_wire(track.box01),
        pixels: track.box01.to_pixels(width, height).into(),
        stationary: track.stationary,
        zones: track.zones.iter().map(AsRef::as_ref).collect(),
        entered_zones: track.entered_zones.iter().map(AsRef::as_ref).collect(),
        reason: event.reason.name(),
        prompt_id: &event.prompt_id,
        snapshot: event.snapshot.as_deref(),
        clip: event.clip.as_deref(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::base::clock::Utc;
    use crate::types::{Box01, CameraId, Reason, Track};

    fn gone() -> Event {
        Event {
            id: Uuid::from_u128(0x0199_aa00_0000_7000_8000_0000_0000_0001),
            kind: EventKind::End,
            reason: Reason::Lost,
            camera: CameraId::new("street").unwrap(),
            time: Utc::from_millis(1_795_442_650_000),
            track: Track {
                id: "1795442587.120-a3f9".into(),
                label: "cat".into(),
                score: 0.91,
                top_score: 0.94,
                start: Utc::from_millis(1_795_442_587_120),
                last: Utc::from_millis(1_795_442_647_120),
                box01: Box01::from_locs([251, 104, 893, 610]),
                stationary: true,
                zones: vec![],
                entered_zones: vec!["gate".into(), "yard".into()],
            },
            before: None,
            frame: (1920, 1080),
            prompt_id: "5d41402a".into(),
            snapshot: None,
            clip: None,
        }
    }

    #[test]
    fn the_contract_comes_out_field_by_field_and_in_order() {
        let expected = json!({
            "schema": 1, "event_id": "0199aa00-0000-7000-8000-000000000001", "type": "end", "camera": "street",
            "track_id": "1795442587.120-a3f9", "label": "cat", "score": 0.91, "top_score": 0.94,
            "start_time": "2026-11-23T14:03:07.120Z", "end_time": "2026-11-23T14:04:07.120Z", "time": "2026-11-23T14:04:10.000Z",
            "epoch": 1_795_442_650.0, "box": {"x_min": 0.1016, "y_min": 0.2451, "x_max": 0.5957, "y_max": 0.8721},
            "pixels": {"x_min": 195, "y_min": 265, "x_max": 1144, "y_max": 942}, "stationary": true, "zones": [],
            "entered_zones": ["gate", "yard"], "reason": "lost", "prompt_id": "5d41402a"
        });
        assert_eq!(String::from_utf8(event(&gone())).unwrap(), expected.to_string());
    }

    #[test]
    fn an_end_time_is_told_at_the_end_only_and_a_picture_where_there_is_one() {
        let open = Event {
            kind: EventKind::Update,
            snapshot: Some("out/street/1.jpg".to_owned()),
            clip: Some("out/street/1.mp4".to_owned()),
            ..gone()
        };
        let value: Value = serde_json::from_slice(&event(&open)).unwrap();
        assert_eq!((&value["end_time"], &value["snapshot"]), (&Value::Null, &json!("out/street/1.jpg")));
        assert_eq!(value["clip"], json!("out/street/1.mp4"));
        assert!(value.as_object().unwrap().contains_key("end_time"));
    }
}
