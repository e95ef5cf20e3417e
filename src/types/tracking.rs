//! What is known beforehand about a camera's objects: where they count, which of them do, and when they are told of.

use std::sync::Arc;
use std::time::Duration;

/// How the objects of one camera are followed. Every threshold of distance is in sizes of the object itself: the mean of
/// its width and height.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracking {
    /// An object is told of once it was seen in so many looks,
    pub confirm_looks: u32,
    /// and for so long.
    pub confirm: Duration,
    /// An object that was not seen for so long is gone; never less than two and a half looks' distance.
    pub lost_after: Duration,
    /// An object that stayed in its place for so long is at rest.
    pub stationary_after: Duration,
    /// `lost_after` of an object at rest, where that is longer.
    pub stationary_lost_after: Duration,
    /// The least score at which an object begins, 0..1.
    pub start_score: f32,
    /// The least score that keeps it, 0..1.
    pub keep_score: f32,
    /// When it is told of between its beginning and its end.
    pub updates: Updates,
    /// Parts of the picture that have a name.
    pub zones: Vec<Zone>,
    /// Where detections do not count.
    pub ignores: Vec<Area>,
    /// Which detections count, by label.
    pub filters: Vec<Filter>,
}

impl Default for Tracking {
    fn default() -> Self {
        Self {
            confirm_looks: 2,
            confirm: Duration::ZERO,
            lost_after: Duration::from_secs(5),
            stationary_after: Duration::from_secs(10),
            stationary_lost_after: Duration::from_secs(60),
            // A score is the mean probability of the tokens of a box, and several of the 1024 places may be nearly as good:
            // a sure object has no 0.9.
            start_score: 0.3,
            keep_score: 0.15,
            updates: Updates::default(),
            zones: Vec::new(),
            ignores: Vec::new(),
            filters: Vec::new(),
        }
    }
}

/// What of an object is worth an event between its beginning and its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Updates {
    /// Between two events of one object, at least; what changes meanwhile is told after it.
    pub every: Duration,
    /// That it moved by so many of its sizes, came to rest or set off; `None`: never.
    pub moved: Option<f32>,
    /// That its best score rose by so much, 0..1; `None`: never.
    pub score: Option<f32>,
    /// That it entered or left a zone.
    pub zones: bool,
    /// That it is still there when nothing was told for so long; `None`: never.
    pub heartbeat: Option<Duration>,
}

impl Default for Updates {
    fn default() -> Self {
        Self { every: Duration::from_secs(1), moved: Some(0.5), score: Some(0.1), zones: true, heartbeat: Some(Duration::from_secs(60)) }
    }
}

/// A part of the picture for some labels or all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Area {
    /// At least three points `[x, y]`, in shares 0..=1 of width and height.
    pub points: Vec<[f64; 2]>,
    /// As [`label_key`](crate::types::label_key) has them; empty: every label.
    pub labels: Vec<String>,
}

/// A named part of the picture. An object is where the middle of its lower edge is: where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    /// As events name it.
    pub name: Arc<str>,
    /// Where it is, and for which labels.
    pub area: Area,
    /// An object must be inside, or outside, for so long before it has entered, or left.
    pub inertia: Duration,
    /// It must be inside for so long before it has entered: what passes by does not.
    pub loitering: Duration,
}

/// Which detections of a label count.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// As [`label_key`](crate::types::label_key) has it.
    pub label: String,
    /// The least score, 0..1.
    pub min_score: f32,
    /// Least share of the picture's area, 0..1.
    pub min_area: f32,
    /// Greatest share of it.
    pub max_area: f32,
    /// Least width for its height, in pixels.
    pub min_ratio: f32,
    /// Greatest width for its height.
    pub max_ratio: f32,
}
