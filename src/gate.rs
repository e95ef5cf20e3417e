//! Floor 3: which frame is worth a look. Only the interval so far; it decides before a frame is converted.

use std::time::{Duration, Instant};

/// Admits one frame an interval, on a schedule that does not drift with the frames' jitter.
#[derive(Debug)]
pub struct Interval {
    every: Duration,
    next: Option<Instant>,
}

impl Interval {
    /// A gate that opens at once and then every `every`.
    pub fn new(every: Duration) -> Self {
        Self { every, next: None }
    }

    /// Whether a frame that left the decoder at `now` is to be looked at.
    pub fn admit(&mut self, now: Instant) -> bool {
        let due = self.next.unwrap_or(now);
        if now < due {
            return false;
        }
        // After a gap (a lost camera) the schedule starts anew, so that no burst makes up for what was missed.
        let follows = due + self.every;
        self.next = Some(if follows > now { follows } else { now + self.every });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(every_ms: u64, frames_ms: impl Iterator<Item = u64>) -> Vec<u64> {
        let start = Instant::now();
        let mut gate = Interval::new(Duration::from_millis(every_ms));
        frames_ms.filter(|ms| gate.admit(start + Duration::from_millis(*ms))).collect()
    }

    #[test]
    fn jitter_does_not_lower_the_rate() {
        // 25 frames a second, each up to 9 ms late: five looks a second are due, and are had.
        let frames = (0..250u64).map(|n| n * 40 + n * 7 % 10);
        assert_eq!(admitted(200, frames).len(), 50);
    }

    #[test]
    fn a_gap_is_followed_by_one_look_not_a_burst() {
        let frames = (0..10u64).chain(5000..5010);
        assert_eq!(admitted(1000, frames), [0, 5000]);
    }
}
