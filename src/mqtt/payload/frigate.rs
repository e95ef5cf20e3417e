//! The object on `frigate/events`, with Frigate's names where the meaning is the same
//! (<https://docs.frigate.video/integrations/mqtt/#frigateevents>). What palisade does not know is left out.

use serde::Serialize;

use super::{json, rounded, share};
use crate::types::{Event, EventKind, Track};

#[derive(Serialize)]
struct FrigateWire<'a> {
    r#type: &'static str,
    before: ObjectWire<'a>,
    after: ObjectWire<'a>,
}

#[derive(Serialize)]
struct ObjectWire<'a> {
    id: &'a str,
    camera: &'a str,
    frame_time: f64,
    label: &'a str,
    sub_label: Option<&'a str>,
    top_score: f64,
    false_positive: bool,
    start_time: f64,
    end_time: Option<f64>,
    score: f64,
    r#box: [u32; 4],
    area: u64,
    ratio: f64,
    active: bool,
    stationary: bool,
    current_zones: Vec<&'a str>,
    entered_zones: Vec<&'a str>,
    has_clip: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    has_snapshot: Option<bool>,
    attributes: Empty,
    current_attributes: [Empty; 0],
}

/// An object without keys.
#[derive(Serialize)]
struct Empty {}

/// An event as Frigate would tell it. Times are seconds since 1970, boxes `[x1, y1, x2, y2]` in pixels, scores 0..1.
pub fn frigate(event: &Event) -> Vec<u8> {
    let after = ObjectWire {
        end_time: (event.kind == EventKind::End).then(|| event.track.last.epoch()),
        has_snapshot: Some(event.snapshot.is_some()),
        ..object(event, &event.track)
    };
    let before = match &event.before {
        Some(before) => object(event, before),
        // Frigate has no event without `before`: until it is confirmed it counts an object as a false positive.
        None => ObjectWire { false_positive: true, current_zones: Vec::new(), entered_zones: Vec::new(), ..object(event, &event.track) },
    };
    json(&FrigateWire { r#type: event.kind.name(), before, after })
}

fn object<'a>(event: &'a Event, track: &'a Track) -> ObjectWire<'a> {
    let pixels = track.box01.to_pixels(event.frame.0, event.frame.1);
    let (width, height) = (pixels.x_max.saturating_sub(pixels.x_min), pixels.y_max.saturating_sub(pixels.y_min));
    ObjectWire {
        id: &track.id,
        camera: event.camera.as_str(),
        frame_time: track.last.epoch(),
        label: &track.label,
        sub_label: None,
        top_score: share(track.top_score),
        false_positive: false,
        start_time: track.start.epoch(),
        end_time: None,
        score: share(track.score),
        r#box: [pixels.x_min, pixels.y_min, pixels.x_max, pixels.y_max],
        area: u64::from(width) * u64::from(height),
        ratio: rounded(f64::from(width) / f64::from(height.max(1)), 4),
        active: !track.stationary,
        stationary: track.stationary,
        current_zones: track.zones.iter().map(AsRef::as_ref).collect(),
        entered_zones: track.entered_zones.iter().map(AsRef::as_ref).collect(),
        has_clip: false,
        has_snapshot: None,
        attributes: Empty {},
        current_attributes: [],
    }
}
