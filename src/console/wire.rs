//! The JSON of the API: what is known, as programs and pages read it. Fields are only ever added.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::base::clock::Utc;
use crate::console::board::{Now, Seen};
use crate::sink::history::Entry;
use crate::types::{Box01, Track};

#[derive(Serialize)]
struct CameraWire<'a> {
    id: &'a str,
    state: &'static str,
    reason: Option<&'a str>,
    since: String,
    enabled: bool,
    fps: Option<f64>,
    looks_per_s: Option<f64>,
    latency_ms: Option<Value>,
    last_look: Option<String>,
    frame: Option<Value>,
    prompt: &'a str,
    labels: &'a [String],
    raw: Option<&'a str>,
    detect: bool,
    prompt_editable: bool,
    detect_editable: bool,
    zones: Vec<&'a str>,
    objects: Vec<Value>,
    counts: BTreeMap<&'a str, u64>,
    dropped: u64,
    reconnects: u64,
    live: Value,
}

/// A camera; `control`: whether whoever asks may steer it.
pub fn camera(now: &Now, control: bool) -> Value {
    let id = now.watched.id.as_str();
    let mut counts: BTreeMap<&str, u64> = now.watched.prompt.labels().iter().map(|label| (label.as_str(), 0)).collect();
    for track in &now.objects {
        *counts.entry(&track.label).or_default() += 1;
    }
    let seen = now.seen.as_ref();
    let editable = control && now.enabled;
    let wire = CameraWire {
        id,
        state: now.status.state.name(),
        reason: Some(now.status.reason.as_str()).filter(|reason| !reason.is_empty()),
        since: now.status.since.to_string(),
        enabled: now.enabled,
        fps: now.fps,
        looks_per_s: now.looks_per_s,
        latency_ms: seen.map(|Seen { queued, inference, total, .. }| latency(*queued, *inference, *total)),
        last_look: seen.map(|seen| seen.captured.to_string()),
        frame: seen.map(|Seen { frame: (width, height), .. }| json!({"width": width, "height": height})),
        prompt: now.watched.prompt.text(),
        labels: now.watched.prompt.labels(),
        raw: seen.map(|seen| seen.answer.raw.as_str()),
        detect: now.watched.enabled,
        prompt_editable: editable,
        detect_editable: editable,
        zones: now.watched.zones.iter().map(|zone| &*zone.name).collect(),
        objects: now.objects.iter().map(track).collect(),
        counts,
        dropped: now.dropped,
        reconnects: now.reconnects,
        live: json!({
            "mjpeg": format!("/live/{id}.mjpeg"),
            "jpg": format!("/live/{id}.jpg"),
            "hls": format!("/live/{id}/index.m3u8"),
        }),
    };
    serde_json::to_value(wire).unwrap_or_default()
}

/// Of a look, in milliseconds.
pub fn latency(queued: Duration, inference: Duration, total: Duration) -> Value {
    let millis = |took: Duration| rounded(took.as_secs_f64() * 1000.0, 1);
    json!({"queue": millis(queued), "inference": millis(inference), "total": millis(total)})
}

fn track(track: &Track) -> Value {
    json!({
        "track_id": &*track.id,
        "label": &*track.label,
        "score": share(track.score),
        "box": box01(track.box01),
        "stationary": track.stationary,
        "zones": track.zones.iter().map(|zone| &**zone).collect::<Vec<&str>>(),
        "start_time": track.start.to_string(),
    })
}

/// What there is to be seen of an object.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files {
    /// Its picture.
    pub snapshot: bool,
    /// Its clip.
    pub clip: bool,
}

/// An object.
pub fn object(entry: &Entry, files: Files) -> Value {
    let id = &entry.track_id;
    let address = |there: bool, name: &str| there.then(|| format!("/api/v1/events/{id}/{name}"));
    json!({
        "track_id": id,
        "camera": entry.camera,
        "label": entry.label,
        "start_time": entry.start.to_string(),
        "end_time": entry.ended.then(|| entry.seen.to_string()),
        "top_score": share(entry.top_score),
        "score": share(entry.score),
        "zones": entry.zones,
        "stationary": entry.stationary,
        "box": box01(entry.box01),
        "reason": entry.reason,
        "snapshot": address(files.snapshot, "snapshot.jpg"),
        "clip": address(files.clip, "clip.mp4"),
        "clip_offset_s": entry.clip.as_deref().filter(|_| files.clip).and_then(|clip| offset(clip, entry.start)),
    })
}

/// How far into a clip a moment is, in seconds: a clip's name is the time at which it begins, `20261123T140307.120Z.mp4`.
fn offset(clip: &str, time: Utc) -> Option<f64> {
    let name = clip.rsplit('/').next()?.strip_suffix(".mp4")?;
    let begin = Utc::from_compact(name)?;
    Some(((time.millis() - begin.millis()) as f64 / 1000.0).max(0.0))
}

fn box01(Box01 { y_min, x_min, y_max, x_max }: Box01) -> Value {
    json!({"x_min": share(x_min), "y_min": share(y_min), "x_max": share(x_max), "y_max": share(y_max)})
}

fn share(value: f32) -> f64 {
    rounded(f64::from(value), 4)
}

/// With so many decimals; what is no number becomes 0, as JSON has no word for it.
fn rounded(value: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    if value.is_finite() { (value * scale).round() / scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clips_name_says_where_in_it_an_object_begins() {
        let start = Utc::from_millis(1_795_442_592_620);
        for (clip, seconds) in [
            ("/var/clips/street/20261123T140307.120Z.mp4", Some(5.5)),
            ("20261123T140313.000Z.mp4", Some(0.0)),
            ("street/clip.mp4", None),
            ("", None),
        ] {
            assert_eq!(offset(clip, start), seconds, "{clip}");
        }
    }
}
