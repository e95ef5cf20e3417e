//! The wire format: pure builders from the domain's types to JSON. The structs are private to this module, so a rename
//! elsewhere cannot change what consumers read. Fields are only ever added; `schema` changes when one goes or is renamed.

mod event;

use std::time::Duration;

use serde::Serialize;

use crate::types::{Answer, Box01, CameraStatus, Detection, Looked, PixelBox};

pub use event::event;

/// The version of the `detections` object.
const SCHEMA: u32 = 1;

/// The payload of `P/status` after all retained state is out.
pub const ONLINE: &str = "online";

/// The payload of `P/status` before a clean stop, and the last will.
pub const OFFLINE: &str = "offline";

/// What is the same in every message of a start.
#[derive(Clone, Debug)]
pub struct Context {
    /// The model with its revision: `google/paligemma2-3b-mix-224@<revision>`.
    pub model: String,
    /// Names this start of the daemon; `seq` counts within it.
    pub run: uuid::Uuid,
}

#[derive(Serialize)]
struct LookedWire<'a> {
    schema: u32,
    camera: &'a str,
    run: String,
    seq: u64,
    time: String,
    epoch: f64,
    time_source: &'static str,
    frame: FrameWire,
    prompt: &'a str,
    prompt_id: &'a str,
    model: &'a str,
    latency_ms: LatencyWire,
    #[serde(flatten)]
    answer: AnswerWire<'a>,
}

#[derive(Serialize)]
struct AnswerWire<'a> {
    raw: &'a str,
    finish: &'static str,
    tokens: usize,
    drafts_accepted: usize,
    detections: Vec<DetectionWire<'a>>,
    dropped: Vec<DroppedWire<'a>>,
}

#[derive(Serialize)]
struct FrameWire {
    width: u32,
    height: u32,
}

#[derive(Serialize)]
struct LatencyWire {
    queue: f64,
    inference: f64,
    total: f64,
}

#[derive(Serialize)]
struct DetectionWire<'a> {
    label: &'a str,
    score: f64,
    score_kind: &'static str,
    locs: [u16; 4],
    r#box: BoxWire,
    pixels: PixelsWire,
}

#[derive(Serialize)]
struct BoxWire {
    x_min: f64,
    y_min: f64,
    x_max: f64,
    y_max: f64,
}

#[derive(Serialize)]
struct PixelsWire {
    x_min: u32,
    y_min: u32,
    x_max: u32,
    y_max: u32,
}

#[derive(Serialize)]
struct DroppedWire<'a> {
    text: &'a str,
    why: &'a str,
}

#[derive(Serialize)]
struct StatusWire<'a> {
    state: &'static str,
    reason: &'a str,
    since: String,
    fps: f64,
}

/// The `detections` object of one analysed frame. Boxes are shares (0..1) with four decimals, latencies milliseconds with one.
pub fn looked(looked: &Looked, context: &Context) -> Vec<u8> {
    let frame = &looked.frame;
    let (width, height) = frame.image.dimensions();
    json(&LookedWire {
        schema: SCHEMA,
        camera: frame.camera.as_str(),
        run: context.run.to_string(),
        seq: looked.seq,
        time: frame.captured.to_string(),
        epoch: frame.captured.epoch(),
        time_source: frame.time_source.name(),
        frame: FrameWire { width, height },
        prompt: looked.prompt.text(),
        prompt_id: looked.prompt.id(),
        model: &context.model,
        latency_ms: LatencyWire { queue: millis(looked.queued), inference: millis(looked.inference), total: millis(looked.total) },
        answer: answer_wire(&looked.answer, width, height),
    })
}

/// The part of it that only the picture decides: `raw`, `finish` and what follows them, for a picture of
/// `width` × `height` pixels.
pub fn answer(answer: &Answer, width: u32, height: u32) -> serde_json::Value {
    serde_json::to_value(answer_wire(answer, width, height)).unwrap_or_default()
}

fn answer_wire(answer: &Answer, width: u32, height: u32) -> AnswerWire<'_> {
    AnswerWire {
        raw: &answer.raw,
        finish: answer.finish.name(),
        tokens: answer.tokens.len(),
        drafts_accepted: answer.drafts_accepted,
        detections: answer.detections.iter().map(|detection| found(detection, width, height)).collect(),
        dropped: answer.rejected.iter().map(|rejected| DroppedWire { text: &rejected.text, why: rejected.why }).collect(),
    }
}

/// The retained status object of a camera.
pub fn camera_status(status: &CameraStatus) -> Vec<u8> {
    json(&StatusWire { state: status.state.name(), reason: &status.reason, since: status.since.to_string(), fps: rounded(status.fps, 2) })
}

fn found(detection: &Detection, width: u32, height: u32) -> DetectionWire<'_> {
    DetectionWire {
        label: &detection.label,
        score: share(detection.score),
        score_kind: "token_probability",
        locs: detection.locs,
        r#box: box_wire(detection.box01),
        pixels: detection.box01.to_pixels(width, height).into(),
    }
}

fn box_wire(Box01 { y_min, x_min, y_max, x_max }: Box01) -> BoxWire {
    BoxWire { x_min: share(x_min), y_min: share(y_min), x_max: share(x_max), y_max: share(y_max) }
}

fn share(value: f32) -> f64 {
    rounded(f64::from(value), 4)
}

impl From<PixelBox> for PixelsWire {
    fn from(PixelBox { x_min, y_min, x_max, y_max }: PixelBox) -> Self {
        Self { x_min, y_min, x_max, y_max }
    }
}

fn millis(took: Duration) -> f64 {
    rounded(took.as_secs_f64() * 1000.0, 1)
}

/// `value` with so many decimals; what is no number becomes 0, as JSON has no word for it.
pub(super) fn rounded(value: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    if value.is_finite() { (value * scale).round() / scale } else { 0.0 }
}

/// Serialising these structs cannot fail: no maps, no foreign `Serialize`.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::sync::Arc;
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::*;
    use crate::base::clock::Utc;
    use crate::types::{Answer, CameraId, CameraState, Finish, Frame, Prompt, Rejected, TimeSource};

    fn street(answer: Answer) -> Looked {
        Looked {
            frame: Frame {
                camera: CameraId::new("street").unwrap(),
                captured: Utc::from_millis(1_795_442_587_120),
                time_source: TimeSource::Ntp,
                received: Instant::now(),
                position: None,
                image: Arc::new(image::RgbImage::new(1920, 1080)),
            },
            seq: 412,
            prompt: Arc::new(Prompt::new("detect cat ; dog ; car").unwrap()),
            answer: Arc::new(answer),
            queued: Duration::from_micros(3_140),
            inference: Duration::from_millis(412),
            total: Duration::from_micros(421_680),
        }
    }

    fn context() -> Context {
        Context { model: "google/paligemma2-3b-mix-224@main".to_owned(), run: uuid::Uuid::nil() }
    }

    #[test]
    fn the_contract_example_comes_out_field_by_field_and_in_order() {
        let answer = Answer {
            raw: "<loc0251><loc0104><loc0893><loc0610> cat".to_owned(),
            finish: Finish::Eos,
            detections: vec![Detection {
                label: "cat".to_owned(),
                score: 0.91,
                locs: [251, 104, 893, 610],
                box01: Box01::from_locs([251, 104, 893, 610]),
            }],
            rejected: vec![Rejected { text: "<loc0900><loc0104><loc0100><loc0610> cat".to_owned(), why: "empty box" }],
            tokens: vec![],
            drafts_accepted: 0,
        };
        let looked = street(answer);
        let expected = json!({
            "schema": 1, "camera": "street", "run": "00000000-0000-0000-0000-000000000000", "seq": 412,
            "time": "2026-11-23T14:03:07.120Z", "epoch": 1_795_442_587.12, "time_source": "ntp",
            "frame": {"width": 1920, "height": 1080}, "prompt": "detect cat ; dog ; car", "prompt_id": looked.prompt.id(),
            "model": "google/paligemma2-3b-mix-224@main", "latency_ms": {"queue": 3.1, "inference": 412.0, "total": 421.7},
            "raw": "<loc0251><loc0104><loc0893><loc0610> cat", "finish": "eos", "tokens": 0, "drafts_accepted": 0,
            "detections": [{"label": "cat", "score": 0.91, "score_kind": "token_probability", "locs": [251, 104, 893, 610],
                "box": {"x_min": 0.1016, "y_min": 0.2451, "x_max": 0.5957, "y_max": 0.8721},
                "pixels": {"x_min": 195, "y_min": 265, "x_max": 1144, "y_max": 942}}],
            "dropped": [{"text": "<loc0900><loc0104><loc0100><loc0610> cat", "why": "empty box"}]
        });
        let payload = super::looked(&looked, &context());
        assert_eq!(String::from_utf8(payload).unwrap(), expected.to_string());
    }

    #[test]
    fn nothing_found_is_said_with_empty_lists() {
        let looked = street(Answer {
            raw: "\"é\n".to_owned(),
            finish: Finish::Length,
            detections: vec![],
            rejected: vec![],
            tokens: vec![],
            drafts_accepted: 0,
        });
        let value: Value = serde_json::from_slice(&super::looked(&looked, &context())).unwrap();
        assert_eq!((&value["raw"], &value["finish"]), (&json!("\"é\n"), &json!("length")));
        assert_eq!((&value["detections"], &value["dropped"]), (&json!([]), &json!([])));
    }

    #[test]
    fn a_status_has_its_four_fields() {
        let status = CameraStatus {
            camera: CameraId::new("yard").unwrap(),
            state: CameraState::Stalled,
            reason: "no frame for 10 s".to_owned(),
            since: Utc::from_millis(1_795_442_587_120),
            fps: 4.899_999,
        };
        let expected = r#"{"state":"stalled","reason":"no frame for 10 s","since":"2026-11-23T14:03:07.120Z","fps":4.9}"#;
        assert_eq!(String::from_utf8(camera_status(&status)).unwrap(), expected);
        let value: Value = serde_json::from_slice(&camera_status(&CameraStatus { fps: f64::NAN, ..status })).unwrap();
        assert_eq!(value["fps"], json!(0.0));
    }
}
