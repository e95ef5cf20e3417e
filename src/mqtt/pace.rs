//! How fast a backlog goes out: so many records a second, a few at a time. Pure: the moment is told.

use std::time::{Duration, Instant};

/// What is not used is saved up for so long: in no second does more go than the rate and a fiftieth.
const SAVES: Duration = Duration::from_millis(20);

/// A token bucket; a token is the time that a record takes at the rate.
#[derive(Debug)]
pub struct Pace {
    each: Duration,
    most: Duration,
    saved: Duration,
    looked: Option<Instant>,
}

impl Pace {
    /// `rate` records a second, at least one; with a full bucket.
    pub fn new(rate: u32) -> Self {
        // Rounded up: no faster than was asked for.
        let each = Duration::from_nanos(1_000_000_000_u64.div_ceil(u64::from(rate.max(1))));
        let most = SAVES.max(each);
        Self { each, most, saved: most, looked: None }
    }

    /// Whether a record may go out at `now`; it is then counted.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = self.looked.map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        self.looked = self.looked.max(Some(now));
        self.saved = (self.saved + passed).min(self.most);
        let may = self.saved >= self.each;
        if may {
            self.saved -= self.each;
        }
        may
    }

    /// When it is worth asking again after a refusal at `now`: a timer for each record would cost more than the record.
    pub fn ready(&self, now: Instant) -> Instant {
        now + self.each.max(self.most / 2).saturating_sub(self.saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many go out in `time`, asked each millisecond.
    fn went(rate: u32, time: Duration) -> u32 {
        let (mut pace, start, mut count) = (Pace::new(rate), Instant::now(), 0);
        for millis in 0..time.as_millis() as u64 {
            while pace.take(start + Duration::from_millis(millis)) {
                count += 1;
            }
        }
        count
    }

    #[test]
    fn the_rate_is_kept_over_any_time() {
        for rate in [1, 7, 50, 333, 1000, 99_999, 100_000] {
            for seconds in [1, 10] {
                let (count, full) = (went(rate, Duration::from_secs(seconds.into())), rate * seconds);
                let most = full + (rate / 50).max(1);
                assert!((full * 99 / 100..=most).contains(&count), "{count} of {full} in {seconds} s");
            }
        }
    }

    #[test]
    fn a_long_rest_saves_up_no_more_than_a_moment() {
        let (mut pace, start) = (Pace::new(1000), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((0..100).filter(|_| pace.take(at(0))).count(), 20);
        assert_eq!((0..100).filter(|_| pace.take(at(3600))).count(), 20);
        assert!(!pace.take(at(1)), "a moment that is over saves up nothing");
    }

    #[test]
    fn whoever_comes_back_when_told_finds_some_ready() {
        for rate in [1, 3, 1000, 100_000] {
            let (mut pace, mut now, mut waits) = (Pace::new(rate), Instant::now(), 0);
            let begin = now;
            for _ in 0..rate.min(5000) {
                while !pace.take(now) {
                    let ready = pace.ready(now);
                    assert!(ready > now);
                    now = ready;
                    waits += 1;
                }
            }
            assert!(waits <= 100 * now.duration_since(begin).as_secs() + 100, "{waits} waits at {rate} a second");
        }
    }
}
