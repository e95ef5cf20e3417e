//! Exponential backoff with full jitter: many cameras that died together do not come back together.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// Delays before the next try: a random share of a ceiling that doubles from `first` to `most`.
/// The formula is the "full jitter" of the AWS architecture blog, with a floor of half the first delay.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays that grow from `first` to `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// The delay before the next try; each call counts one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.first.saturating_mul(2u32.saturating_pow(self.failures.min(16))).min(self.most);
        self.failures = self.failures.saturating_add(1);
        // The hasher's keys are random per process and differ per call: good enough to spread retries.
        let share = (RandomState::new().hash_one(self.failures) >> 11) as f64 / (1u64 << 53) as f64;
        ceiling.mul_f64(share).max(self.first / 2)
    }

    /// How many failures there were in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts anew after success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_between_the_floor_and_a_doubling_ceiling() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for failure in 0..40u32 {
            let ceiling = Duration::from_secs(2u64.pow(failure.min(6)).min(60));
            let delay = backoff.next_delay();
            assert!(delay >= Duration::from_millis(500) && delay <= ceiling, "failure {failure}: {delay:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_secs(1));
    }
}
