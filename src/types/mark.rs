//! What is drawn over live video.

use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbaImage;

use crate::types::Box01;

/// From whole to vanished.
const FADE: Duration = Duration::from_secs(2);

/// A box with its age. Live video goes on between two looks, and what they saw grows old meanwhile.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// As the model wrote it.
    pub label: Arc<str>,
    /// 0..1.
    pub score: f32,
    /// Where it was last seen.
    pub box01: Box01,
    /// When the picture arrived on which it was last seen.
    pub seen: Instant,
    /// It is shown whole for so long after that, then fades within two seconds.
    pub lasts: Duration,
}

impl Mark {
    /// The opacity of what is shown whole.
    pub const WHOLE: u8 = 4;

    /// Since it was last seen.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.seen)
    }

    /// How much of it is shown at a moment, in quarters: from `WHOLE` down to 0. Steps, so that it is not drawn anew for each
    /// picture.
    pub fn opacity(&self, now: Instant) -> u8 {
        let over = self.age(now).saturating_sub(self.lasts);
        if over.is_zero() {
            return Self::WHOLE;
        }
        let left = 1.0 - over.as_secs_f64() / FADE.as_secs_f64();
        (left * f64::from(Self::WHOLE)).ceil().clamp(0.0, f64::from(Self::WHOLE - 1)) as u8
    }
}

/// A part of a transparent picture that something is drawn on.
#[derive(Clone, Debug)]
pub struct Patch {
    /// Its left edge on the whole picture, pixels.
    pub x: u32,
    /// Its top edge.
    pub y: u32,
    /// The pixels; colours are not multiplied by alpha.
    pub image: RgbaImage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_whole_then_fades_and_vanishes() {
        let seen = Instant::now();
        let box01 = Box01 { y_min: 0.0, x_min: 0.0, y_max: 1.0, x_max: 1.0 };
        let mark = Mark { label: "cat".into(), score: 0.5, box01, seen, lasts: Duration::from_secs(5) };
        let at = |ms| mark.opacity(seen + Duration::from_millis(ms));
        assert_eq!([0, 5000, 5001, 5600, 6100, 6700, 7000, 90_000].map(at), [4, 4, 3, 3, 2, 1, 0, 0]);
    }
}
