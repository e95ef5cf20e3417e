//! Floor 3: which frame is worth a look: when one is due, and where motion is asked for, whether anything moved. It decides
//! before a frame is converted.

mod motion;

use std::time::{Duration, Instant};

use crate::base::metrics::{Counter, Metrics};
use crate::config::MotionConfig;
use crate::types::{CameraId, Luma};
use motion::{Motion, Verdict};

/// Motion is looked for so often, or at each look where those are closer together.
const CHECK: Duration = Duration::from_millis(250);

/// After so long without motion one more look is due: the scene without what has left it.
const SETTLED: Duration = Duration::from_secs(2);

/// One camera's gate.
#[derive(Debug)]
pub struct Gate {
    interval: Interval,
    watch: Option<Watch>,
}

impl Gate {
    /// A gate that opens once each `every`; with `motion` only if something moved since the last look, or at its longest
    /// interval.
    ///
    /// Counts, with the camera's id: `motion_checks` (pictures in which motion was looked for), `motion_seen` (those in
    /// which there was some), `motion_score` (the moving cells of all of them, in thousandths of the picture), and
    /// `frames_gated` (how often a look that was due had to wait, for nothing had moved).
    pub fn new(every: Duration, motion: Option<MotionConfig>, camera: &CameraId, metrics: &Metrics) -> Self {
        let watch = motion.map(|config| Watch {
            every: CHECK.min(every),
            longest: config.max_interval,
            motion: Motion::new(config.mask),
            checked: None,
            looked: None,
            moved: None,
            wanted: true,
            gated: false,
            counters: Counters::new(camera, metrics),
        });
        Self { interval: Interval::new(every), watch }
    }

    /// Whether a frame that came at `now` may be looked at, or tell of motion: else it need not be decoded.
    pub fn wants(&mut self, now: Instant) -> bool {
        self.interval.note(now);
        self.interval.is_due(now) || self.watch.as_ref().is_some_and(|watch| watch.is_due(now))
    }

    /// Whether a frame that came at `now` is to be looked at; `luma` is asked for where motion counts.
    pub fn admit(&mut self, now: Instant, luma: impl FnOnce() -> Option<Luma>) -> bool {
        self.interval.note(now);
        let Some(watch) = &mut self.watch else { return self.interval.admit(now) };
        watch.check(now, luma);
        self.interval.is_due(now) && watch.take(now) && self.interval.admit(now)
    }
}

/// Waits for motion.
#[derive(Debug)]
struct Watch {
    every: Duration,
    longest: Duration,
    motion: Motion,
    checked: Option<Instant>,
    looked: Option<Instant>,
    /// When something moved last, until the scene was looked at once it had settled.
    moved: Option<Instant>,
    /// Something has moved since the last look.
    wanted: bool,
    /// The look that is due has been counted as waiting.
    gated: bool,
    counters: Counters,
}

impl Watch {
    fn is_due(&self, now: Instant) -> bool {
        self.checked.is_none_or(|at| now.saturating_duration_since(at) >= self.every)
    }

    fn check(&mut self, now: Instant, luma: impl FnOnce() -> Option<Luma>) {
        if !self.is_due(now) {
            return;
        }
        self.checked = Some(now);
        self.counters.checks.add();
        // Brightness that cannot be read is no reason to be blind.
        let verdict = luma().map_or(Verdict { score: 1.0, moves: true }, |luma| self.motion.step(&luma, now));
        self.counters.score.add_many((verdict.score * 1000.0).round() as u64);
        if verdict.moves {
            self.counters.seen.add();
            (self.moved, self.wanted) = (Some(now), true);
        } else if self.moved.is_some_and(|at| now.saturating_duration_since(at) >= SETTLED) {
            (self.moved, self.wanted) = (None, true);
        }
    }

    /// Takes the look that is due, if there is a reason to.
    fn take(&mut self, now: Instant) -> bool {
        let long_ago = self.looked.is_none_or(|at| now.saturating_duration_since(at) >= self.longest);
        if !self.wanted && !long_ago {
            if !self.gated {
                self.counters.gated.add();
                self.gated = true;
            }
            return false;
        }
        (self.looked, self.wanted, self.gated) = (Some(now), false, false);
        true
    }
}

#[derive(Debug)]
struct Counters {
    checks: Counter,
    seen: Counter,
    score: Counter,
    gated: Counter,
}

impl Counters {
    fn new(camera: &CameraId, metrics: &Metrics) -> Self {
        let counter = |name| metrics.counter(name, camera.as_str());
        Self {
            checks: counter("motion_checks"),
            seen: counter("motion_seen"),
            score: counter("motion_score"),
            gated: counter("frames_gated"),
        }
    }
}

/// Admits one frame an interval, on a schedule that does not drift with the frames' jitter.
#[derive(Debug)]
struct Interval {
    every: Duration,
    next: Option<Instant>,
    /// The newest frame, and how long after the one before it came.
    newest: Option<Instant>,
    apart: Duration,
}

impl Interval {
    /// Opens at once and then every `every`.
    fn new(every: Duration) -> Self {
        Self { every, next: None, newest: None, apart: Duration::ZERO }
    }

    /// Notes a frame; one that was noted already tells nothing new.
    fn note(&mut self, now: Instant) {
        let before = self.newest.replace(now);
        if let Some(before) = before.filter(|before| *before < now) {
            self.apart = now - before;
        }
    }

    /// The frame nearest to the time counts: a keyframe a millisecond early is nearer to it than the next one.
    fn is_due(&self, now: Instant) -> bool {
        let early = (self.apart / 2).min(self.every / 10);
        self.next.is_none_or(|due| now + early >= due)
    }

    fn admit(&mut self, now: Instant) -> bool {
        if !self.is_due(now) {
            return false;
        }
        // After a gap (a lost camera) the schedule starts anew, so that no burst makes up for what was missed.
        let follows = self.next.unwrap_or(now) + self.every;
        self.next = Some(if follows > now { follows } else { now + self.every });
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::Mask;
    use crate::types::Plane;

    fn admitted(every_ms: u64, frames_ms: impl Iterator<Item = u64>) -> Vec<u64> {
        let start = Instant::now();
        let mut gate = Interval::new(Duration::from_millis(every_ms));
        let mut admit = |now| {
            gate.note(now);
            gate.admit(now)
        };
        frames_ms.filter(|ms| admit(start + Duration::from_millis(*ms))).collect()
    }

    #[test]
    fn jitter_does_not_lower_the_rate() {
        // 25 frames a second, each up to 9 ms late: five looks a second are due, and are had.
        let frames = (0..250u64).map(|n| n * 40 + n * 7 % 10);
        assert_eq!(admitted(200, frames).len(), 50);
    }

    #[test]
    fn keyframes_as_often_as_looks_are_all_taken_though_they_jitter() {
        let keyframes = (0..100u64).map(|n| n * 2000 + 50 - n * 37 % 50);
        assert_eq!(admitted(2000, keyframes).len(), 100);
    }

    #[test]
    fn a_gap_is_followed_by_one_look_not_a_burst() {
        let frames = (0..10u64).chain(5000..5010);
        assert_eq!(admitted(1000, frames), [0, 5000]);
    }

    /// A gate with motion, of a camera whose brightness is `level(second)` all over its upper half.
    fn looks(every: f64, longest: f64, seconds: usize, level: impl Fn(f64) -> u8) -> (Vec<f64>, Metrics) {
        let (metrics, camera) = (Metrics::new(), CameraId::new("a").unwrap());
        let config = MotionConfig { max_interval: Duration::from_secs_f64(longest), mask: Mask::new() };
        let mut gate = Gate::new(Duration::from_secs_f64(every), Some(config), &camera, &metrics);
        let start = Instant::now();
        let frame = |n: usize| {
            let at = n as f64 / 10.0;
            let bytes: Vec<u8> = (0..64 * 64).map(|pixel| if pixel < 64 * 20 { level(at) } else { 100 }).collect();
            let plane = Plane { bytes: &bytes, stride: 64, width: 64, height: 64, step: 1, offset: 0, bits: 8 };
            gate.admit(start + Duration::from_secs_f64(at), || Luma::of(plane)).then_some(at)
        };
        ((0..seconds * 10).filter_map(frame).collect(), metrics)
    }

    #[test]
    fn without_motion_there_is_one_look_in_the_longest_interval() {
        let (looks, metrics) = looks(1.0, 20.0, 60, |_| 50);
        // The first picture is new, and looked at once more when it has settled.
        assert_eq!(looks.len(), 4, "{looks:?}");
        assert!(looks[0] == 0.0 && looks[1] < 4.0 && looks[2] - looks[1] >= 20.0 && looks[3] - looks[2] >= 20.0, "{looks:?}");
        let count = |name| metrics.counter(name, "a").get();
        assert_eq!((count("motion_checks"), count("motion_seen"), count("frames_gated")), (200, 1, 4));
    }

    #[test]
    fn motion_is_looked_at_each_interval_and_once_more_when_it_has_ended() {
        let moving = |at: f64| if (30.0..34.0).contains(&at) { 50 + (at * 2.0) as u8 % 2 * 150 } else { 50 };
        let (looks, _) = looks(1.0, 3600.0, 60, moving);
        let during: Vec<f64> = looks.iter().copied().filter(|at| *at >= 30.0).collect();
        assert!(during[0] < 31.0 && during.len() >= 5 && during.last().is_some_and(|last| (35.0..38.0).contains(last)), "{looks:?}");
        assert!(looks.iter().all(|at| *at < 5.0 || *at >= 30.0), "{looks:?}");
    }

    #[test]
    fn what_cannot_be_read_is_looked_at() {
        let (metrics, camera) = (Metrics::new(), CameraId::new("a").unwrap());
        let config = MotionConfig { max_interval: Duration::from_secs(3600), mask: Mask::new() };
        let mut gate = Gate::new(Duration::from_secs(1), Some(config), &camera, &metrics);
        let start = Instant::now();
        assert_eq!((0..100).filter(|n| gate.admit(start + Duration::from_millis(100) * *n, || None)).count(), 10);
    }
}
