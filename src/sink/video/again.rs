//! What is kept up for as long as the daemon runs, whatever it is that fails: a thread for each, which tries again with backoff
//! and tells the log of changes alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::base::backoff::Backoff;
use crate::base::error::{Error, Result};
use crate::base::metrics::Counter;
use crate::base::thread::{self, Thread};

/// The longest time between two looks at whether it is still wanted.
pub const TURN: Duration = Duration::from_millis(40);

/// Between two tries.
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);

/// What was up for so long was well.
const HEALTHY: Duration = Duration::from_secs(30);

/// Between two log lines about the same thing.
const QUIET: Duration = Duration::from_secs(5);

/// At the end: for the threads.
const FINISH: Duration = Duration::from_secs(3);

/// The threads.
pub struct Crew {
    what: &'static str,
    ended: Arc<AtomicBool>,
    threads: Vec<Thread>,
}

impl Crew {
    /// Of nobody yet; `what` they keep up, for the log.
    pub fn new(what: &'static str) -> Self {
        Self { what, ended: Arc::default(), threads: Vec::new() }
    }

    /// Starts the thread `name`, which keeps up `work` for as long as that fails. `failures` are counted; `told` of the first of
    /// several in a row, with the wait before the next try.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn keep(
        &mut self,
        name: String,
        failures: Counter,
        mut work: impl FnMut(&mut Watch) -> Result<()> + Send + 'static,
        told: impl Fn(&Error, Duration) + Send + 'static,
    ) -> Result<()> {
        let mut watch = Watch { ended: self.ended.clone(), told: Told::default() };
        let keep = move || {
            let mut backoff = Backoff::new(FIRST, MOST);
            while !watch.ended() {
                let began = Instant::now();
                let Err(error) = work(&mut watch) else { return };
                failures.add();
                if began.elapsed() >= HEALTHY {
                    backoff.reset();
                }
                let delay = backoff.next_delay();
                if watch.told.changes(false, Instant::now()) {
                    told(&error, delay);
                }
                watch.rests(delay);
            }
        };
        self.threads.push(thread::spawn(name, keep)?);
        Ok(())
    }

    /// Ends them all.
    pub fn finish(&mut self) {
        self.ended.store(true, Ordering::Release);
        let left = thread::join_all_until(self.threads.drain(..), Instant::now() + FINISH);
        if left > 0 {
            tracing::warn!(threads = left, "{} did not end in time and were left behind", self.what);
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What a thread is to know of its end, and of what the log knows.
pub struct Watch {
    ended: Arc<AtomicBool>,
    told: Told,
}

impl Watch {
    /// Whether it is to end.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits, for as long as it is not to end.
    pub fn rests(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.ended() && Instant::now() < until {
            std::thread::sleep(TURN.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// It is up. Whether the log is to be told.
    pub fn up(&mut self) -> bool {
        self.told.changes(true, Instant::now())
    }
}

/// What the log was told last.
#[derive(Default)]
struct Told {
    up: Option<bool>,
    at: Option<Instant>,
}

impl Told {
    /// Whether a change to `up` is to be told now.
    fn changes(&mut self, up: bool, now: Instant) -> bool {
        let changes = self.up != Some(up) && self.at.is_none_or(|at| now.duration_since(at) >= QUIET);
        if changes {
            (self.up, self.at) = (Some(up), Some(now));
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once_and_not_more_often_than_is_useful() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut told = Told::default();
        assert!(told.changes(false, at(0)) && !told.changes(false, at(600)));
        assert!(told.changes(true, at(601)) && !told.changes(false, at(602)) && told.changes(false, at(606)));
    }
}
