//! When a picture may go out. They are large, and what waits behind one on a slow line should not wait for several: one is
//! under way at a time, and the line is theirs for half the time at most. Pure.

use std::time::{Duration, Instant};

/// After a link was lost amid a picture, none goes out for so long: the line may be too slow for any.
const PAUSE: Duration = Duration::from_secs(300);

/// Over the connections of a link.
#[derive(Debug, Default)]
pub struct Album {
    /// Since when one is under way.
    out: Option<Instant>,
    /// Before that none may follow.
    ready: Option<Instant>,
}

impl Album {
    /// Whether one may go out.
    pub fn is_open(&self, now: Instant) -> bool {
        self.out.is_none() && self.ready.is_none_or(|ready| ready <= now)
    }

    /// When one may go out; `None` while one is under way.
    pub fn opens(&self) -> Option<Instant> {
        self.ready.filter(|_| self.out.is_none())
    }

    /// One was handed out.
    pub fn sent(&mut self, now: Instant) {
        self.out = Some(now);
    }

    /// The broker has read all of it.
    pub fn arrived(&mut self, now: Instant) {
        if let Some(out) = self.out.take() {
            self.ready = Some(now + now.saturating_duration_since(out));
        }
    }

    /// The link is lost; returns whether amid a picture.
    pub fn lost(&mut self, now: Instant) -> bool {
        let amid = self.out.take().is_some();
        if amid {
            self.ready = Some(now + PAUSE);
        }
        amid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_half_the_time() {
        let begin = Instant::now();
        let at = |secs| begin + Duration::from_secs(secs);
        let mut album = Album::default();
        assert!(album.is_open(at(0)) && album.opens().is_none());
        album.sent(at(0));
        assert!(!album.is_open(at(5)) && album.opens().is_none());
        album.arrived(at(6));
        assert_eq!((album.is_open(at(11)), album.opens(), album.is_open(at(12))), (false, Some(at(12)), true));
        album.arrived(at(13)); // nothing is under way
        assert!(album.is_open(at(13)));
    }

    #[test]
    fn a_picture_that_cost_the_link_is_not_followed_at_once() {
        let begin = Instant::now();
        let mut album = Album::default();
        assert!(!album.lost(begin));
        album.sent(begin);
        assert!(album.lost(begin) && !album.is_open(begin + Duration::from_secs(299)) && album.is_open(begin + PAUSE));
    }
}
