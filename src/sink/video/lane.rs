//! One camera's feed, built anew with backoff after it broke.

use std::time::{Duration, Instant};

use crate::base::backoff::Backoff;
use crate::base::error::{Error, Kind, Result};
use crate::sink::Picture;
use crate::sink::video::feed::{Feed, Refusal};

/// A feed that ran for so long was healthy.
const HEALTHY: Duration = Duration::from_secs(30);

/// A feed, or the wait for the next one.
pub struct Lane {
    state: State,
    backoff: Backoff,
}

enum State {
    Closed,
    Open { feed: Feed, since: Instant },
    Waiting { until: Instant, why: String },
}

impl Lane {
    /// Opens at the first picture.
    pub fn new() -> Self {
        Self { state: State::Closed, backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)) }
    }

    /// Writes a picture into the feed, which `open` makes where there is none.
    ///
    /// # Errors
    /// When the feed cannot be opened, broke, is full, or its next try is not due.
    pub fn write(&mut self, picture: &Picture, open: impl FnOnce(&Picture) -> Result<Feed>) -> Result<()> {
        let now = Instant::now();
        if let State::Waiting { until, why } = &self.state
            && now < *until
        {
            return Err(Error::new(Kind::Pipeline, format!("{why}; the next try is in {} s", until.duration_since(now).as_secs() + 1)));
        }
        if !matches!(self.state, State::Open { .. }) {
            match open(picture) {
                Ok(feed) => self.state = State::Open { feed, since: now },
                Err(error) => return Err(self.wait(error)),
            }
        }
        let State::Open { feed, since } = &mut self.state else { return Ok(()) };
        match feed.push(picture) {
            Ok(()) => Ok(()),
            Err(Refusal::Full(error)) => Err(error),
            Err(Refusal::Broken(error)) => {
                if since.elapsed() >= HEALTHY {
                    self.backoff.reset();
                }
                Err(self.wait(error))
            }
        }
    }

    /// Ends the feed, if there is one.
    ///
    /// # Errors
    /// When its end could not be written.
    pub fn finish(self) -> Result<()> {
        match self.state {
            State::Open { feed, .. } => feed.finish(),
            State::Closed | State::Waiting { .. } => Ok(()),
        }
    }

    fn wait(&mut self, error: Error) -> Error {
        self.state = State::Waiting { until: Instant::now() + self.backoff.next_delay(), why: error.chain() };
        error
    }
}

/// Ends every lane at once, in a thread each: together they have a deadline, and one that hangs must not cost the others theirs.
///
/// # Errors
/// The first failure; the others are logged.
pub fn finish_all(lanes: impl IntoIterator<Item = Lane>) -> Result<()> {
    let (told, results) = crossbeam_channel::unbounded();
    let threads: Vec<_> = lanes
        .into_iter()
        .map(|lane| {
            let told = told.clone();
            crate::base::thread::spawn("finish-video", move || drop(told.send(lane.finish())))
        })
        .collect();
    drop(told);
    let mut failed: Result<()> = threads.into_iter().try_for_each(|thread| thread.map(drop));
    for result in results {
        match (&failed, result) {
            (_, Ok(())) => {}
            (Ok(()), error) => failed = error,
            (Err(_), Err(error)) => tracing::error!("{}", error.chain()),
        }
    }
    failed
}
