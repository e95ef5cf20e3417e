//! The encoded pictures since the last keyframe: what a decoder needs that is to show the present one.

use crate::source::unit::Unit;

/// Bounds: ten seconds at thirty a second, or ten at 6 Mbit/s. Beyond them the next keyframe is waited for.
const MOST_UNITS: usize = 300;
const MOST_BYTES: usize = 8 << 20;

/// A group of pictures that grows.
#[derive(Default)]
pub struct Gop {
    units: Vec<Unit>,
    bytes: usize,
}

impl Gop {
    /// Adds a picture; a keyframe begins anew.
    pub fn add(&mut self, unit: Unit) {
        if unit.key {
            self.take();
        } else if self.units.is_empty() {
            return;
        }
        self.bytes += unit.buffer.size();
        self.units.push(unit);
        if self.units.len() > MOST_UNITS || self.bytes > MOST_BYTES {
            self.take();
        }
    }

    /// Empties it: the pictures from a keyframe on, without a gap, or none.
    pub fn take(&mut self) -> Vec<Unit> {
        self.bytes = 0;
        std::mem::take(&mut self.units)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::base::clock::Utc;
    use crate::source::Candidate;
    use crate::types::TimeSource;

    fn unit(key: bool, bytes: usize) -> Unit {
        gstreamer::init().unwrap();
        let moment = Candidate { received: Instant::now(), captured: Utc::now(), time_source: TimeSource::Pipeline, position: None };
        let segment = gstreamer::FormattedSegment::<gstreamer::ClockTime>::new().upcast();
        Unit { buffer: gstreamer::Buffer::with_size(bytes).unwrap(), caps: gstreamer::Caps::new_empty(), segment, key, moment }
    }

    #[test]
    fn it_holds_what_follows_a_keyframe_and_nothing_without_one() {
        let mut gop = Gop::default();
        gop.add(unit(false, 1));
        assert!(gop.take().is_empty());
        for key in [true, false, true, false, false] {
            gop.add(unit(key, 1));
        }
        assert_eq!(gop.take().iter().map(|unit| unit.key).collect::<Vec<_>>(), [true, false, false]);
        gop.add(unit(false, 1));
        assert!(gop.take().is_empty());
    }

    #[test]
    fn it_is_bounded_by_number_and_bytes() {
        let mut gop = Gop::default();
        for (count, bytes) in [(MOST_UNITS, 1), (9, 1 << 20)] {
            gop.add(unit(true, bytes));
            (0..count).for_each(|_| gop.add(unit(false, bytes)));
            assert!(gop.take().is_empty());
        }
    }
}
