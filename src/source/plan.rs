//! Which pictures of a stream are decoded: all of them, or its keyframes. Decides by the pictures' own times: by those of
//! arrival one hiccup of a network would have every camera behind it decode everything.

use std::time::Duration;

use crate::config::Decode;

/// What is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Keyframes, by the shared decoders.
    Keyframes,
    /// Every picture, by a decoder of the camera's own.
    All,
}

/// So many keyframe distances in a row must suit the looks before pictures between them are no longer decoded.
const SURE: u32 = 2;

/// Chooses for one camera, and remembers over reconnects.
#[derive(Clone, Debug)]
pub struct Plan {
    decode: Decode,
    /// Keyframes that come no further apart are as good as every picture.
    most: Duration,
    path: Path,
    last_key: Option<Duration>,
    /// The attempt's first picture: a stream may have no keyframe at all.
    first: Option<Duration>,
    /// Distances in a row that suit.
    suiting: u32,
}

impl Plan {
    /// For looks each `interval`.
    pub fn new(decode: Decode, interval: Duration) -> Self {
        let path = if decode == Decode::All { Path::All } else { Path::Keyframes };
        // Keyframes jitter: at two seconds each they do not come later than the looks that are due each two seconds.
        let most = interval.mul_f64(1.1) + Duration::from_millis(100);
        Self { decode, most, path, last_key: None, first: None, suiting: 0 }
    }

    /// Whether pictures between keyframes may come to be wanted.
    pub fn may_follow(&self) -> bool {
        self.decode == Decode::Auto
    }

    /// Forgets the times: a new attempt begins.
    pub fn begin(&mut self) {
        (self.last_key, self.first) = (None, None);
    }

    /// Notes a picture taken at `at`, since whenever, and says what is decoded from it on.
    pub fn step(&mut self, key: bool, at: Duration) -> Path {
        let apart = self.last_key.or(self.first).map(|before| at.saturating_sub(before));
        self.first.get_or_insert(at);
        if key {
            self.last_key = Some(at);
        }
        match (self.path, apart) {
            _ if self.decode != Decode::Auto => {}
            (Path::Keyframes, Some(apart)) if apart > self.most => (self.path, self.suiting) = (Path::All, 0),
            (Path::All, Some(apart)) if key => {
                self.suiting = if apart <= self.most { self.suiting + 1 } else { 0 };
                if self.suiting >= SURE {
                    self.path = Path::Keyframes;
                }
            }
            _ => {}
        }
        self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The path after each second of a stream of ten pictures a second with a keyframe each `keys(second)` pictures.
    fn paths(plan: &mut Plan, pictures: std::ops::Range<u64>, every: u64) -> Vec<Path> {
        let path = |n: u64| plan.step(n.is_multiple_of(every), Duration::from_millis(n * 100));
        pictures.map(path).collect()
    }

    #[test]
    fn what_is_asked_for_is_kept() {
        for (decode, path) in [(Decode::All, Path::All), (Decode::Keyframes, Path::Keyframes)] {
            for every in [1, 100] {
                let mut plan = Plan::new(decode, Duration::from_secs(1));
                assert!(paths(&mut plan, 0..300, every).iter().all(|&one| one == path));
            }
        }
    }

    #[test]
    fn keyframes_as_often_as_the_looks_are_enough() {
        let mut plan = Plan::new(Decode::Auto, Duration::from_secs(2));
        assert!(paths(&mut plan, 0..600, 20).iter().all(|&path| path == Path::Keyframes));
    }

    #[test]
    fn keyframes_that_are_too_rare_are_found_out_before_the_second_one() {
        let mut plan = Plan::new(Decode::Auto, Duration::from_secs(2));
        let paths = paths(&mut plan, 0..600, 100);
        let switched = paths.iter().position(|&path| path == Path::All).unwrap();
        assert!((20..30).contains(&switched), "{switched}");
        assert!(paths[switched..].iter().all(|&path| path == Path::All));
    }

    #[test]
    fn a_change_of_the_distance_is_followed() {
        let mut plan = Plan::new(Decode::Auto, Duration::from_secs(1));
        assert_eq!(paths(&mut plan, 0..100, 50).last(), Some(&Path::All));
        let back = paths(&mut plan, 100..200, 10);
        assert_eq!(back.iter().position(|&path| path == Path::Keyframes), Some(20), "after two that suit");
        let again = paths(&mut plan, 200..300, 50);
        assert_eq!(again.last(), Some(&Path::All));
    }

    #[test]
    fn a_stream_without_keyframes_is_found_out() {
        let mut plan = Plan::new(Decode::Auto, Duration::from_secs(1));
        let paths: Vec<Path> = (1..100).map(|n| plan.step(false, Duration::from_millis(n * 100))).collect();
        assert_eq!((paths[0], paths[98]), (Path::Keyframes, Path::All));
    }

    #[test]
    fn a_reconnect_is_no_distance() {
        let mut plan = Plan::new(Decode::Auto, Duration::from_secs(2));
        plan.step(true, Duration::ZERO);
        plan.begin();
        assert_eq!(plan.step(true, Duration::from_secs(60)), Path::Keyframes);
    }
}
