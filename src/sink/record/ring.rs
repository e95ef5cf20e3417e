//! The newest pictures of a camera, as they were encoded: what a clip begins with.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::clock::Utc;
use crate::sink::record::stamp::{Pattern, Reorder};
use crate::types::EncodedUnit;

/// Groups of pictures, the oldest of which goes when the others are long enough. Begins with a keyframe, or is empty.
#[derive(Debug)]
pub struct Ring {
    keep: Duration,
    most_bytes: usize,
    units: VecDeque<EncodedUnit>,
    bytes: usize,
    reorder: Reorder,
}

impl Ring {
    /// Holds at least the last `keep`, if they fit into `most_bytes`.
    pub fn new(keep: Duration, most_bytes: usize) -> Self {
        Self { keep, most_bytes, units: VecDeque::new(), bytes: 0, reorder: Reorder::default() }
    }

    /// Takes the next picture; returns how many were dropped for want of room.
    pub fn push(&mut self, unit: EncodedUnit) -> u64 {
        self.reorder.note(unit.time);
        if self.units.is_empty() && !unit.key {
            return 0;
        }
        let newest = unit.captured;
        self.bytes += unit.bytes.len();
        self.units.push_back(unit);
        let keep = millis(self.keep);
        let enough = |since: Utc| newest.millis().saturating_sub(since.millis()) >= keep;
        while self.second().is_some_and(|second| enough(self.units[second].captured)) {
            self.drop_group();
        }
        let mut dropped = 0;
        while self.bytes > self.most_bytes {
            dropped += self.drop_group();
        }
        dropped
    }

    /// The pictures from the last keyframe at or before `at` on, else all.
    pub fn since(&self, at: Utc) -> Vec<EncodedUnit> {
        let begin = self.units.iter().rposition(|unit| unit.key && unit.captured <= at).unwrap_or(0);
        self.units.iter().skip(begin).cloned().collect()
    }

    /// When the newest picture was taken.
    pub fn newest(&self) -> Option<Utc> {
        self.units.back().map(|unit| unit.captured)
    }

    /// How the pictures follow each other.
    pub fn pattern(&self) -> Pattern {
        self.reorder.pattern()
    }

    /// Forgets all: what comes next does not go on from it.
    pub fn clear(&mut self) {
        self.units.clear();
        self.bytes = 0;
        self.reorder = Reorder::default();
    }

    /// Where the second group begins.
    fn second(&self) -> Option<usize> {
        self.units.iter().skip(1).position(|unit| unit.key).map(|at| at + 1)
    }

    fn drop_group(&mut self) -> u64 {
        let count = self.second().unwrap_or(self.units.len());
        self.bytes -= self.units.drain(..count).map(|unit| unit.bytes.len()).sum::<usize>();
        count as u64
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::record::tests::unit;

    fn times(ring: &Ring, at: i64) -> Vec<i64> {
        ring.since(Utc::from_millis(at)).iter().map(|unit| unit.captured.millis()).collect()
    }

    #[test]
    fn it_begins_with_a_keyframe_and_holds_what_it_must() {
        let mut ring = Ring::new(Duration::from_secs(3), 1 << 20);
        assert_eq!((ring.push(unit(false, 0, 10)), ring.newest()), (0, None));
        // Two pictures a second, a keyframe each second.
        (0..20).for_each(|n| assert_eq!(ring.push(unit(n % 2 == 0, n * 500, 10)), 0));
        // The newest is at 9.5 s: from 6 s on there are 3.5 s, from 7 s on too few.
        assert_eq!(times(&ring, 0).first(), Some(&6000));
        assert_eq!(times(&ring, 8200), [8000, 8500, 9000, 9500]);
        assert_eq!(times(&ring, 8000), [8000, 8500, 9000, 9500]);
        ring.clear();
        assert!(times(&ring, 0).is_empty());
    }

    #[test]
    fn it_is_bounded_by_bytes_and_counts_what_that_costs() {
        let mut ring = Ring::new(Duration::from_secs(1000), 100);
        let dropped: u64 = (0..20).map(|n| ring.push(unit(n % 5 == 0, n * 100, 10))).sum();
        assert_eq!((dropped, times(&ring, 0).len(), times(&ring, 0)[0]), (10, 10, 1000));
        // A group that does not fit at all: nothing is kept up to the next keyframe.
        assert_eq!((ring.push(unit(true, 2000, 101)), ring.newest()), (11, None));
        assert_eq!((ring.push(unit(false, 2100, 1)), ring.newest()), (0, None));
        ring.push(unit(true, 2200, 1));
        assert_eq!(times(&ring, 0), [2200]);
    }

    #[test]
    fn a_long_group_is_kept_whole() {
        let mut ring = Ring::new(Duration::from_secs(2), 1 << 20);
        (0..30).for_each(|n| assert_eq!(ring.push(unit(n == 0, n * 1000, 1)), 0));
        assert_eq!(times(&ring, 28_000).len(), 30);
    }
}
