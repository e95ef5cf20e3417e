//! A camera whose picture stands still to the last bit: its sensor or its encoder hangs, and frames come all the same.

use std::time::{Duration, Instant};

use crate::types::Luma;

/// Between two comparisons.
const EVERY: Duration = Duration::from_secs(1);

/// The same picture, encoded anew, differs by some 0.05 levels in the mean of a cell; a sensor's noise by 0.2 and more.
const SAME: f32 = 0.1;

/// A clock in the picture changes a few cells, by much.
const SAME_CELL: f32 = 4.0;

/// Compares pictures over time.
#[derive(Debug)]
pub struct Frozen {
    after: Duration,
    checked: Option<Instant>,
    /// The picture that all since have been the same as, and since when.
    since: Option<(Luma, Instant)>,
}

impl Frozen {
    /// Complains once the picture has been the same for `after`.
    pub fn new(after: Duration) -> Self {
        Self { after, checked: None, since: None }
    }

    /// Notes a picture at `now`; a sentence where it has been the same for too long.
    pub fn step(&mut self, now: Instant, luma: impl FnOnce() -> Option<Luma>) -> Option<String> {
        if self.checked.is_some_and(|at| now.saturating_duration_since(at) < EVERY.min(self.after)) {
            return None;
        }
        self.checked = Some(now);
        let luma = luma()?;
        match &self.since {
            Some((first, since)) if same(first, &luma) => {
                let passed = now.saturating_duration_since(*since);
                (passed >= self.after).then(|| format!("the same picture for {} s", passed.as_secs()))
            }
            _ => {
                self.since = Some((luma, now));
                None
            }
        }
    }
}

fn same(a: &Luma, b: &Luma) -> bool {
    let apart = || a.cells().iter().zip(b.cells()).map(|(a, b)| (a - b).abs());
    a.shape() == b.shape() && apart().sum::<f32>() < SAME * a.cells().len() as f32 && apart().all(|apart| apart < SAME_CELL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Plane;

    fn luma(level: impl Fn(usize) -> u8) -> Option<Luma> {
        let bytes: Vec<u8> = (0..64 * 64).map(level).collect();
        Luma::of(Plane { bytes: &bytes, stride: 64, width: 64, height: 64, step: 1, offset: 0, bits: 8 })
    }

    #[test]
    fn a_picture_that_stays_is_told_and_one_with_noise_is_not() {
        let start = Instant::now();
        let told = |noise: fn(usize, u64) -> u8| {
            let mut frozen = Frozen::new(Duration::from_secs(10));
            (0..400u64).find(|n| frozen.step(start + Duration::from_millis(n * 100), || luma(|pixel| noise(pixel, *n))).is_some())
        };
        assert_eq!(told(|pixel, _| pixel as u8), Some(100));
        // One level more or less in half of the pixels, as a sensor in daylight has it.
        let noise = |pixel: usize, n: u64| {
            let mixed = (pixel as u64 + n * 4096).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            100 + ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 60) as u8 % 4
        };
        assert_eq!(told(noise), None);
        assert_eq!(told(|_, n| (n / 50) as u8), None, "it changes each five seconds");
        assert_eq!(told(|pixel, n| if pixel < 64 * 8 && pixel % 64 < 8 { (n / 10 % 2) as u8 * 90 } else { 50 }), None, "a clock ticks");
    }
}
