//! One thread and one bounded queue per sink.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::thread::{self, Thread};
use crate::sink::{Filter, Picture, Sink};
use crate::types::CameraId;

/// Pictures that may wait for one sink. Few: they are whole frames, and a viewer wants the newest.
const QUEUE: usize = 4;

/// The least time between two log lines about the same failing sink.
const QUIET: Duration = Duration::from_secs(30);

/// After so long without a picture a sink may tidy up.
const IDLE: Duration = Duration::from_secs(60);

/// Hands every picture to every sink without ever waiting.
pub struct Fanout {
    lanes: Vec<Lane>,
}

struct Lane {
    name: String,
    queue: Sender<Picture>,
    dropped: Counter,
    filter: Option<Filter>,
    thread: Thread,
}

impl Fanout {
    /// Starts a thread for each sink.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(sinks: Vec<Box<dyn Sink>>, metrics: &Metrics) -> Result<Self> {
        let lanes = sinks.into_iter().map(|sink| Lane::start(sink, metrics)).collect::<Result<_>>()?;
        Ok(Self { lanes })
    }

    /// Whether a sink wants pictures of a camera; where none does, nothing need be drawn.
    pub fn wants(&self, camera: &CameraId) -> bool {
        self.lanes.iter().any(|lane| lane.wants(camera))
    }

    /// Offers a picture to every sink that wants it; one whose queue is full drops it and counts it.
    pub fn offer(&self, picture: &Picture) {
        for lane in self.lanes.iter().filter(|lane| lane.wants(&picture.camera)) {
            match lane.queue.try_send(picture.clone()) {
                Ok(()) => {}
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => lane.dropped.add(),
            }
        }
    }

    /// Lets every sink write what waits and finish its files, until `deadline`; says which one did not manage.
    pub fn finish(self, deadline: Instant) {
        let (names, threads): (Vec<_>, Vec<_>) = self.lanes.into_iter().map(|lane| (lane.name, lane.thread)).unzip();
        for (name, thread) in names.into_iter().zip(threads) {
            if !thread.join_until(deadline) {
                tracing::error!(sink = name, "sink did not finish in time and was left behind");
            }
        }
    }
}

impl Lane {
    fn start(sink: Box<dyn Sink>, metrics: &Metrics) -> Result<Self> {
        let (name, filter) = (sink.name().to_owned(), sink.filter());
        let (queue, pictures) = bounded(QUEUE);
        let counters =
            Counters { written: metrics.counter("sink_frames_written", &name), failed: metrics.counter("sink_frames_failed", &name) };
        let thread = thread::spawn(format!("sink-{name}"), move || serve(sink, &pictures, &counters))?;
        Ok(Self { dropped: metrics.counter("sink_frames_dropped", &name), name, queue, filter, thread })
    }

    fn wants(&self, camera: &CameraId) -> bool {
        self.filter.as_ref().is_none_or(|wants| wants(camera))
    }
}

struct Counters {
    written: Counter,
    failed: Counter,
}

fn serve(mut sink: Box<dyn Sink>, pictures: &Receiver<Picture>, counters: &Counters) {
    let mut told: Option<Instant> = None;
    loop {
        let picture = match pictures.recv_timeout(IDLE) {
            Ok(picture) => picture,
            Err(RecvTimeoutError::Timeout) => {
                sink.tidy();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        // A panic in a sink is a failed picture like any other.
        let panicked = |_| Err(Error::new(Kind::Internal, "the sink panicked; this is a defect, please report it"));
        match catch_unwind(AssertUnwindSafe(|| sink.write(&picture))).unwrap_or_else(panicked) {
            Ok(()) => counters.written.add(),
            Err(error) => {
                counters.failed.add();
                if told.is_none_or(|at| at.elapsed() >= QUIET) {
                    tracing::warn!(sink = sink.name(), camera = %picture.camera, failed = counters.failed.get(), "{}", error.chain());
                    told = Some(Instant::now());
                }
            }
        }
    }
    if let Err(error) = sink.finish() {
        tracing::error!(sink = sink.name(), "{}", error.chain());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::unbounded;

    use super::*;
    use crate::base::clock::Utc;
    use crate::types::CameraId;

    /// Waits for a token before each write; reports what it saw.
    struct Gated {
        name: &'static str,
        tokens: Receiver<bool>,
        seen: Sender<i64>,
    }

    impl Sink for Gated {
        fn name(&self) -> &str {
            self.name
        }
        fn write(&mut self, picture: &Picture) -> Result<()> {
            if self.tokens.recv().unwrap_or(true) {
                self.seen.send(picture.captured.millis()).ok();
                return Ok(());
            }
            Err(Error::new(Kind::Io, "no space left"))
        }
        fn finish(&mut self) -> Result<()> {
            self.seen.send(-1).ok();
            Ok(())
        }
    }

    fn picture(millis: i64) -> Picture {
        Picture { camera: CameraId::new("a").unwrap(), captured: Utc::from_millis(millis), image: Arc::new(image::RgbImage::new(1, 1)) }
    }

    #[test]
    fn a_stuck_sink_drops_its_own_frames_and_no_other() {
        let metrics = Metrics::new();
        let (release, tokens) = unbounded();
        let (free_release, free_tokens) = unbounded::<bool>();
        drop(free_release);
        let (slow_seen, slow) = unbounded();
        let (fast_seen, fast) = unbounded();
        let sinks: Vec<Box<dyn Sink>> = vec![
            Box::new(Gated { name: "slow", tokens, seen: slow_seen }),
            Box::new(Gated { name: "fast", tokens: free_tokens, seen: fast_seen }),
        ];
        let fanout = Fanout::start(sinks, &metrics).unwrap();
        for n in 0..20 {
            fanout.offer(&picture(n));
            assert_eq!(fast.recv_timeout(Duration::from_secs(10)), Ok(n));
        }
        assert_eq!(metrics.counter("sink_frames_dropped", "fast").get(), 0);
        let dropped = metrics.counter("sink_frames_dropped", "slow").get();
        assert!((20 - QUEUE as u64 - 1..20).contains(&dropped), "{dropped}");
        drop(release);
        fanout.finish(Instant::now() + Duration::from_secs(10));
        assert_eq!(slow.iter().last(), Some(-1));
    }

    #[test]
    fn a_failing_sink_counts_and_goes_on() {
        let metrics = Metrics::new();
        let (release, tokens) = unbounded();
        let (seen, written) = unbounded();
        let fanout = Fanout::start(vec![Box::new(Gated { name: "disk", tokens, seen })], &metrics).unwrap();
        for (n, good) in [(1, false), (2, true)] {
            fanout.offer(&picture(n));
            release.send(good).unwrap();
        }
        assert_eq!(written.recv_timeout(Duration::from_secs(10)), Ok(2));
        assert_eq!(metrics.counter("sink_frames_failed", "disk").get(), 1);
        fanout.finish(Instant::now() + Duration::from_secs(10));
        assert_eq!(metrics.counter("sink_frames_written", "disk").get(), 1);
    }
}
