//! Live video sent to servers by RTMP or SRT: a viewer that is always there. A server that is dead, refuses or is slow costs its
//! own pictures only: each stream has a thread that tries again with backoff, and nothing is encoded for it meanwhile.

mod outlet;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::base::backoff::Backoff;
use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::redact::{ExposeSecret, SecretString};
use crate::base::thread::{self, Thread};
use crate::config::PushConfig;
use crate::sink::video::init;
use crate::sink::video::live::Live;
use crate::types::{CameraId, EncodedUnit};
use outlet::Outlet;

/// The longest time between two looks at whether the stream is still wanted.
const TURN: Duration = Duration::from_millis(40);

/// A server that takes nothing for so long is given up.
const STUCK: Duration = Duration::from_secs(10);

/// So long the camera has to say how large its pictures are; then the stream begins with a slate, of a slate's size.
const UNKNOWN: Duration = Duration::from_secs(10);

/// Between two tries.
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);

/// A stream that ran for so long was well.
const HEALTHY: Duration = Duration::from_secs(30);

/// Between two log lines about the same stream.
const QUIET: Duration = Duration::from_secs(5);

/// At the end: for the threads.
const FINISH: Duration = Duration::from_secs(3);

/// The streams.
pub struct Pushes {
    ended: Arc<AtomicBool>,
    threads: Vec<Thread>,
}

impl Pushes {
    /// Sends `live` as each of `configs` says, from now on, in threads `push-<n>-<camera>`. Counts, each with `<n>-<camera>`:
    /// `push_connects`, `push_failures`, `push_pictures` handed over, and `push_pictures_dropped` that the server was too slow for.
    ///
    /// # Errors
    /// When an element is missing or the system refuses a thread.
    pub fn start(configs: &[PushConfig], live: &Live, metrics: &Metrics) -> Result<Self> {
        init()?;
        let mut pushes = Self { ended: Arc::default(), threads: Vec::new() };
        for (index, config) in configs.iter().enumerate() {
            outlet::check(config.uri.expose_secret())?;
            for camera in &config.cameras {
                let uri = SecretString::from(config.uri.expose_secret().replace("{camera}", camera.as_str()));
                let name = format!("{index}-{camera}");
                let counter = |what| metrics.counter(what, &name);
                let push = Push {
                    name: format!("push-{name}"),
                    camera: camera.clone(),
                    uri,
                    live: live.clone(),
                    ended: pushes.ended.clone(),
                    backoff: Backoff::new(FIRST, MOST),
                    told: Told::default(),
                    connects: counter("push_connects"),
                    failures: counter("push_failures"),
                    pictures: counter("push_pictures"),
                    dropped: counter("push_pictures_dropped"),
                };
                pushes.threads.push(thread::spawn(push.name.clone(), move || push.run())?);
            }
        }
        Ok(pushes)
    }

    /// Ends every stream.
    pub fn finish(&mut self) {
        self.ended.store(true, Ordering::Release);
        let deadline = Instant::now() + FINISH;
        let left = thread::join_all_until(self.threads.drain(..), deadline);
        if left > 0 {
            tracing::warn!(threads = left, "streams to servers did not end in time and were left behind");
        }
    }
}

impl Drop for Pushes {
    fn drop(&mut self) {
        self.finish();
    }
}

/// One stream.
struct Push {
    name: String,
    camera: CameraId,
    uri: SecretString,
    live: Live,
    ended: Arc<AtomicBool>,
    backoff: Backoff,
    told: Told,
    connects: Counter,
    failures: Counter,
    pictures: Counter,
    dropped: Counter,
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

impl Push {
    fn run(mut self) {
        let begin = Instant::now();
        while !self.live.is_known(&self.camera) && begin.elapsed() < UNKNOWN {
            if self.rests(TURN) {
                return;
            }
        }
        while !self.ended() {
            let began = Instant::now();
            let Err(error) = self.stream() else { return };
            self.failures.add();
            if began.elapsed() >= HEALTHY {
                self.backoff.reset();
            }
            let delay = self.backoff.next_delay();
            if self.told.changes(false, Instant::now()) {
                tracing::warn!(stream = self.name, "live video is not sent: {}; the next try is in {:.0?}", error.chain(), delay);
            }
            if self.rests(delay) {
                return;
            }
        }
    }

    /// Sends until told to end.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses, or takes nothing any more.
    fn stream(&mut self) -> Result<()> {
        let mut outlet = Outlet::open(&self.name, &self.uri)?;
        let viewing = self.live.watch(&self.camera)?;
        let mut progress = Progress { sent: 0, at: Instant::now() };
        let mut skips = false;
        let mut connected = false;
        while !self.ended() {
            match viewing.next(TURN) {
                Ok(unit) => {
                    let was = skips;
                    skips = self.pass(&mut outlet, &unit, skips)?;
                    if skips && !was {
                        viewing.ask_keyframe();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            outlet.check()?;
            let (now, sent) = (Instant::now(), outlet.sent());
            // The first is on its way while the connection is made.
            if sent > 1 && !connected {
                connected = true;
                self.connects.add();
            }
            if connected && self.told.changes(true, now) {
                tracing::info!(stream = self.name, "live video is sent");
            }
            if progress.stuck(sent, outlet.waiting() > 0, now) {
                return Err(Error::new(Kind::Pipeline, format!("the server took nothing for {} s", STUCK.as_secs())));
            }
        }
        Ok(())
    }

    /// Hands a picture over; whether the next ones cannot be decoded without another keyframe.
    fn pass(&self, outlet: &mut Outlet, unit: &EncodedUnit, skips: bool) -> Result<bool> {
        if (skips && !unit.key) || outlet.is_full() {
            self.dropped.add();
            return Ok(true);
        }
        outlet.push(unit)?;
        self.pictures.add();
        Ok(false)
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits; whether it is to end.
    fn rests(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while !self.ended() && Instant::now() < until {
            std::thread::sleep(TURN.min(until.saturating_duration_since(Instant::now())));
        }
        self.ended()
    }
}

/// Whether a server takes what it is sent.
struct Progress {
    sent: u64,
    at: Instant,
}

impl Progress {
    /// Whether nothing was taken for too long although something `waits`.
    fn stuck(&mut self, sent: u64, waits: bool, now: Instant) -> bool {
        if sent != self.sent || !waits {
            *self = Self { sent, at: now };
        }
        now.duration_since(self.at) >= STUCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_stuck_that_takes_nothing_of_what_waits() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut progress = Progress { sent: 0, at: begin };
        assert!(!progress.stuck(1, true, at(9)));
        assert!(!progress.stuck(1, true, at(18)) && progress.stuck(1, true, at(19)));
        // A camera that sends nothing is no fault of the server's.
        assert!(!progress.stuck(1, false, at(60)) && !progress.stuck(1, true, at(69)));
        assert!(progress.stuck(1, true, at(70)));
    }

    #[test]
    fn each_change_is_told_once_and_not_more_often_than_is_useful() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut told = Told::default();
        assert!(told.changes(false, at(0)) && !told.changes(false, at(600)));
        assert!(told.changes(true, at(601)) && !told.changes(false, at(602)) && told.changes(false, at(606)));
    }
}
