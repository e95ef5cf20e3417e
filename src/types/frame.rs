//! A decoded picture and, later, the same with what was seen on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbImage;

use crate::base::clock::Utc;
use crate::types::{Answer, CameraId, Prompt};

/// Where a frame's capture time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSource {
    /// The camera's own clock, by RTCP sender reports.
    Ntp,
    /// The moment the frame reached this machine.
    Pipeline,
    /// The time it was read from a file.
    File,
}

impl TimeSource {
    /// The name used in the MQTT contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ntp => "ntp",
            Self::Pipeline => "pipeline",
            Self::File => "file",
        }
    }
}

/// One decoded picture of a camera. The pixels are shared; a clone is cheap.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Whose picture it is.
    pub camera: CameraId,
    /// When it was taken.
    pub captured: Utc,
    /// What `captured` rests on.
    pub time_source: TimeSource,
    /// When it reached this machine, for latencies.
    pub received: Instant,
    /// The place in the stream, for files: time since the clip's start (restarts with each loop).
    pub position: Option<Duration>,
    /// 8-bit RGB, row by row without padding.
    pub image: Arc<RgbImage>,
}

/// A frame the model has looked at. The answer travels with the picture, so nothing is joined up later.
#[derive(Clone, Debug)]
pub struct Looked {
    /// The picture.
    pub frame: Frame,
    /// Counts this camera's analysed frames within a run of the daemon, from 1 without gaps.
    pub seq: u64,
    /// What was asked.
    pub prompt: Arc<Prompt>,
    /// What the model answered.
    pub answer: Arc<Answer>,
    /// From its arrival to the model: decoded, converted, waited.
    pub queued: Duration,
    /// In the model.
    pub inference: Duration,
    /// From its arrival to here.
    pub total: Duration,
}
