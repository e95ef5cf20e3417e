//! What is really on the sample clip, and how well detections match it.

use palisade::types::Box01;
use serde_json::Value;

use super::daemon::repository;

/// Labels the demo model knows, as a list for a configuration or command line.
pub const LABELS: [&str; 10] = ["person", "cat", "dog", "car", "bus", "truck", "bicycle", "bird", "horse", "traffic light"];

/// A labelled box.
#[derive(Clone, Debug)]
pub struct Object {
    pub label: String,
    pub box01: Box01,
}

/// The clip's truth, a list of objects per frame.
pub struct Truth {
    pub fps: f64,
    frames: Vec<Vec<Object>>,
}

impl Truth {
    /// Of `samples/street.mp4`.
    pub fn of_the_clip() -> Self {
        let truth = written();
        let frames =
            truth["frames"].as_array().unwrap().iter().map(|frame| frame["objects"].as_array().unwrap().iter().map(object).collect());
        Self { fps: truth["fps"].as_f64().unwrap(), frames: frames.collect() }
    }

    /// Label and time of each object's first appearance on the clip.
    pub fn entries() -> Vec<(String, f64)> {
        let truth = written();
        let fps = truth["fps"].as_f64().unwrap();
        let entry = |visit: &Value| (visit["label"].as_str().unwrap().to_owned(), visit["first_frame"].as_f64().unwrap() / fps);
        truth["visits"].as_array().unwrap().iter().map(entry).collect()
    }

    /// The objects on the frame at `seconds`.
    pub fn at(&self, seconds: f64) -> &[Object] {
        let index = (seconds * self.fps).round().max(0.0) as usize;
        &self.frames[index.min(self.frames.len() - 1)]
    }
}

fn written() -> Value {
    serde_json::from_str(&std::fs::read_to_string(repository("samples/street.truth.json")).unwrap()).unwrap()
}

fn object(value: &Value) -> Object {
    let [y_min, x_min, y_max, x_max] = [0, 1, 2, 3].map(|index| value["box"][index].as_f64().unwrap() as f32);
    Object { label: value["label"].as_str().unwrap().to_owned(), box01: Box01 { y_min, x_min, y_max, x_max } }
}

/// The detections of a message or of `palisade detect --json`.
pub fn detections(message: &Value) -> Vec<Object> {
    let of = |one: &Value| {
        let side = |name: &str| one["box"][name].as_f64().unwrap() as f32;
        let box01 = Box01 { y_min: side("y_min"), x_min: side("x_min"), y_max: side("y_max"), x_max: side("x_max") };
        Object { label: one["label"].as_str().unwrap().to_owned(), box01 }
    };
    message["detections"].as_array().unwrap().iter().map(of).collect()
}

/// Counts over many frames: true positives, false positives, false negatives at IoU 0.5.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    pub hits: usize,
    pub false_alarms: usize,
    pub missed: usize,
}

impl Score {
    /// Matches one frame's detections with its objects, one to one, equal labels only.
    pub fn add(&mut self, found: &[Object], truth: &[Object]) {
        let mut open: Vec<&Object> = truth.iter().collect();
        for one in found {
            let overlap = |other: &Object| if other.label == one.label { one.box01.iou(other.box01) } else { 0.0 };
            let best = (0..open.len()).max_by(|a, b| overlap(open[*a]).total_cmp(&overlap(open[*b])));
            match best.filter(|index| overlap(open[*index]) >= 0.5) {
                Some(index) => {
                    open.swap_remove(index);
                    self.hits += 1;
                }
                None => self.false_alarms += 1,
            }
        }
        self.missed += open.len();
    }

    pub fn precision(self) -> f64 {
        self.hits as f64 / (self.hits + self.false_alarms).max(1) as f64
    }

    pub fn recall(self) -> f64 {
        self.hits as f64 / (self.hits + self.missed).max(1) as f64
    }
}
