//! When pictures are decoded, from when they are shown. A file wants both; what comes over RTP has the latter alone, and
//! with B-frames pictures are shown in another order than they are decoded in.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// Pictures that one may be behind, at most: as many as a decoder may hold back (ITU-T H.264, A.3.1).
const MOST: usize = 16;

/// The distance that is taken where it is not known.
const STEP: Duration = Duration::from_millis(40);

/// How the pictures of a stream follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// How many pictures that are shown later are decoded ahead of one, at most.
    pub depth: usize,
    /// From one that is shown to the next.
    pub step: Duration,
}

/// Learns a stream's pattern.
#[derive(Debug, Default)]
pub struct Reorder {
    recent: VecDeque<Duration>,
    depth: usize,
}

impl Reorder {
    /// Notes when the next picture is shown.
    pub fn note(&mut self, time: Duration) {
        self.depth = self.depth.max(self.recent.iter().filter(|other| **other > time).count());
        if self.recent.len() == MOST {
            self.recent.pop_front();
        }
        self.recent.push_back(time);
    }

    /// What was learnt so far.
    pub fn pattern(&self) -> Pattern {
        let mut times: Vec<Duration> = self.recent.iter().copied().collect();
        times.sort();
        let mut steps: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).filter(|step| !step.is_zero()).collect();
        // The median: times that came over a network jitter.
        steps.sort();
        Pattern { depth: self.depth, step: steps.get(steps.len() / 2).copied().unwrap_or(STEP) }
    }
}

/// A picture's times in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// When it is decoded; later than the one before.
    pub dts: Duration,
    /// When it is shown; not before it is decoded.
    pub pts: Duration,
    /// Until the next one is decoded, as far as it can be told.
    pub lasts: Duration,
}

/// Stamps the pictures of one file, in the order of decoding.
#[derive(Debug)]
pub struct Stamper {
    pattern: Pattern,
    /// The first picture's time.
    base: Option<Duration>,
    /// Times that no picture was decoded at yet.
    open: BinaryHeap<Reverse<Duration>>,
    count: usize,
    last: Option<Duration>,
}

impl Stamper {
    /// Of a stream of this pattern.
    pub fn new(pattern: Pattern) -> Self {
        Self { pattern: Pattern { depth: pattern.depth.min(MOST), ..pattern }, base: None, open: BinaryHeap::new(), count: 0, last: None }
    }

    /// The times of the next picture. It is decoded when the picture is shown that many before it in the order of showing
    /// as the stream is deep; the first ones a step after each other. A picture that is later than all the others so far
    /// shows that the stream is deeper than was thought: its time is moved to where it can be decoded.
    pub fn step(&mut self, time: Duration) -> Stamp {
        let Pattern { depth, step } = self.pattern;
        let ahead = step * u32::try_from(depth).unwrap_or_default();
        let base = *self.base.get_or_insert(time);
        // What is shown ahead of the first keyframe has no place in the file, and is shown with it.
        let pts = time.saturating_sub(base) + ahead;
        self.open.push(Reverse(pts));
        let dts = if self.count < depth {
            step * u32::try_from(self.count).unwrap_or_default()
        } else {
            self.open.pop().map_or(pts, |Reverse(dts)| dts)
        };
        self.count += 1;
        let dts = self.last.map_or(dts, |last| dts.max(last + Duration::from_micros(100)));
        let lasts = self.last.map_or(step, |last| dts - last);
        self.last = Some(dts);
        Stamp { dts, pts: pts.max(dts), lasts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(times: &[u64]) -> Vec<Duration> {
        times.iter().map(|ms| Duration::from_millis(*ms)).collect()
    }

    fn stamps(times: &[u64]) -> Vec<(u128, u128)> {
        let (mut reorder, times) = (Reorder::default(), ms(times));
        times.iter().for_each(|time| reorder.note(*time));
        let mut stamper = Stamper::new(reorder.pattern());
        let stamps: Vec<Stamp> = times.iter().map(|time| stamper.step(*time)).collect();
        assert!(stamps.windows(2).all(|pair| pair[0].dts < pair[1].dts) && stamps.iter().all(|stamp| stamp.dts <= stamp.pts));
        stamps.iter().map(|stamp| (stamp.dts.as_millis(), stamp.pts.as_millis())).collect()
    }

    #[test]
    fn pictures_in_order_are_decoded_as_they_are_shown() {
        assert_eq!(stamps(&[1000, 1040, 1085, 1120]), [(0, 0), (40, 40), (85, 85), (120, 120)]);
    }

    #[test]
    fn with_b_frames_each_is_decoded_before_it_is_shown_and_its_time_stays_what_it_was() {
        // I P B B P B B, 100 ms apart: two are never behind, one is.
        let flat = stamps(&[0, 300, 100, 200, 600, 400, 500]);
        assert_eq!(flat.iter().map(|stamp| stamp.1).collect::<Vec<_>>(), [100, 400, 200, 300, 700, 500, 600]);
        assert_eq!(flat.iter().map(|stamp| stamp.0).collect::<Vec<_>>(), [0, 100, 200, 300, 400, 500, 600]);
        // A pyramid: two deep.
        let deep = stamps(&[0, 400, 200, 100, 300, 800, 600, 500, 700]);
        assert_eq!(deep.iter().map(|stamp| stamp.1).collect::<Vec<_>>(), [200, 600, 400, 300, 500, 1000, 800, 700, 900]);
        assert_eq!(deep.iter().map(|stamp| stamp.0).collect::<Vec<_>>(), [0, 100, 200, 300, 400, 500, 600, 700, 800]);
    }

    #[test]
    fn equal_times_and_a_stream_deeper_than_was_thought_stay_in_order() {
        stamps(&[0, 0, 0, 40]);
        let mut stamper = Stamper::new(Pattern { depth: 0, step: STEP });
        let stamps: Vec<Stamp> = ms(&[0, 120, 40, 80, 240, 160, 200]).into_iter().map(|time| stamper.step(time)).collect();
        assert!(stamps.windows(2).all(|pair| pair[0].dts < pair[1].dts) && stamps.iter().all(|stamp| stamp.dts <= stamp.pts));
    }

    #[test]
    fn what_is_shown_ahead_of_the_first_picture_is_shown_with_it() {
        let mut stamper = Stamper::new(Pattern { depth: 1, step: STEP });
        assert_eq!(stamper.step(Duration::from_millis(500)).pts, STEP);
        assert!(stamper.step(Duration::from_millis(460)).pts >= STEP);
    }
}
