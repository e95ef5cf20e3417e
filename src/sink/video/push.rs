//! Live video sent to servers by RTMP or SRT: a viewer that is always there. A server that is dead, refuses or is slow costs its
//! own pictures only: each stream has a thread that tries again with backoff, and nothing is encoded for it meanwhile.

mod outlet;

use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::redact::{ExposeSecret, SecretString};
use crate::config::PushConfig;
use crate::sink::video::again::{Crew, TURN, Watch};
use crate::sink::video::init;
use crate::sink::video::live::Live;
use crate::types::{CameraId, EncodedUnit};
use outlet::Outlet;

/// A server that takes nothing for so long is given up.
const STUCK: Duration = Duration::from_secs(10);

/// So long the camera has to say how large its pictures are; then the stream begins with a slate, of a slate's size.
const UNKNOWN: Duration = Duration::from_secs(10);

/// Sends `live` as each of `configs` says, from now on, in threads `push-<n>-<camera>`. Counts, each with `<n>-<camera>`:
/// `push_connects`, `push_failures`, `push_pictures` handed over, and `push_pictures_dropped` that the server was too slow for.
///
/// # Errors
/// When an element is missing or the system refuses a thread.
pub fn start(configs: &[PushConfig], live: &Live, metrics: &Metrics) -> Result<Crew> {
    init()?;
    let mut crew = Crew::new("streams to servers");
    for (index, config) in configs.iter().enumerate() {
        outlet::check(config.uri.expose_secret())?;
        for (camera, uri) in config.streams() {
            let name = format!("{index}-{camera}");
            let counter = |what| metrics.counter(what, &name);
            let mut push = Push {
                name: format!("push-{name}"),
                camera: camera.clone(),
                uri,
                live: live.clone(),
                begun: Instant::now(),
                connects: counter("push_connects"),
                pictures: counter("push_pictures"),
                dropped: counter("push_pictures_dropped"),
            };
            let stream = push.name.clone();
            let told = move |error: &Error, delay| {
                tracing::warn!(stream, "live video is not sent: {}; the next try is in {delay:.0?}", error.chain());
            };
            crew.keep(push.name.clone(), counter("push_failures"), move |watch| push.stream(watch), told)?;
        }
    }
    Ok(crew)
}

/// One stream.
struct Push {
    name: String,
    camera: CameraId,
    uri: SecretString,
    live: Live,
    begun: Instant,
    connects: Counter,
    pictures: Counter,
    dropped: Counter,
}

impl Push {
    /// Sends until told to end.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses, or takes nothing any more.
    fn stream(&mut self, watch: &mut Watch) -> Result<()> {
        while !self.live.is_known(&self.camera) && self.begun.elapsed() < UNKNOWN {
            watch.rests(TURN);
            if watch.ended() {
                return Ok(());
            }
        }
        let mut outlet = Outlet::open(&self.name, &self.uri)?;
        let viewing = self.live.watch(&self.camera)?;
        let mut progress = Progress { sent: 0, at: Instant::now() };
        let mut skips = false;
        let mut connected = false;
        while !watch.ended() {
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
            if connected && watch.up() {
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
}
