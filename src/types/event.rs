//! An object that was tracked over several looks, and what changed about it.

use std::sync::Arc;

use uuid::Uuid;

use crate::base::clock::Utc;
use crate::types::{Box01, CameraId};

/// What an event says of its object's life. Every `New` is followed by exactly one `End`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The object is there for certain.
    New,
    /// Something about it changed.
    Update,
    /// It is gone.
    End,
}

impl EventKind {
    /// The name used in the MQTT contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Update => "update",
            Self::End => "end",
        }
    }
}

/// Why there is an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was confirmed.
    FirstSeen,
    /// It moved by more than the threshold, or came to rest.
    Moved,
    /// It entered or left a zone.
    Zone,
    /// Its best score rose.
    Score,
    /// Nothing changed for a while, and it is still there.
    Heartbeat,
    /// It was not seen for long, or nothing is looked at any more.
    Lost,
}

impl Reason {
    /// The name used in the MQTT contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstSeen => "first seen",
            Self::Moved => "moved",
            Self::Zone => "zone",
            Self::Score => "score",
            Self::Heartbeat => "heartbeat",
            Self::Lost => "lost",
        }
    }
}

/// What is known of a tracked object at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    /// Names the object from `New` to `End`, over restarts too: its first moment and four random hexadecimal digits.
    pub id: Arc<str>,
    /// As the model wrote it.
    pub label: Arc<str>,
    /// Of the newest detection, 0..1.
    pub score: f32,
    /// The best so far, 0..1.
    pub top_score: f32,
    /// When it was first seen.
    pub start: Utc,
    /// When it was last seen.
    pub last: Utc,
    /// Where it was last seen.
    pub box01: Box01,
    /// Whether it stands still.
    pub stationary: bool,
    /// The zones it is in.
    pub zones: Vec<Arc<str>>,
    /// The zones it has been in, in the order of entering.
    pub entered_zones: Vec<Arc<str>>,
}

/// One change of a tracked object.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// A UUID of version 7; a consumer removes duplicates by it.
    pub id: Uuid,
    /// Which part of its life.
    pub kind: EventKind,
    /// Why now.
    pub reason: Reason,
    /// On which camera.
    pub camera: CameraId,
    /// When it changed.
    pub time: Utc,
    /// The object after the change.
    pub track: Track,
    /// The object as the event of this object before this one told of it; `None` for `New`.
    pub before: Option<Box<Track>>,
    /// Width and height of the picture, pixels.
    pub frame: (u32, u32),
    /// What was asked, by its id.
    pub prompt_id: Arc<str>,
    /// Path or topic of a picture of the object.
    pub snapshot: Option<String>,
    /// Path of the video that the object is in at this moment.
    pub clip: Option<String>,
}
