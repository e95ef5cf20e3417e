//! One thread and one bounded queue per sink.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};

use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
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

/// Cameras that came or went.
type News = Arc<Mutex<BTreeMap<CameraId, bool>>>;

struct Lane {
    name: String,
    queue: Sender<Picture>,
    /// The newest that the sink was not told yet of each camera: whether it is there.
    news: News,
    bell: Sender<()>,
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

    /// Tells every sink that a camera comes, or that it goes and no picture of it follows. Waits for none.
    pub fn tell(&self, camera: &CameraId, there: bool) {
        for lane in &self.lanes {
            sync::lock(&lane.news).insert(camera.clone(), there);
            // Where it rings already, all that there is will be told.
            lane.bell.try_send(()).ok();
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
        let (bell, rings) = bounded(1);
        let news = News::default();
        let told = news.clone();
        let counters =
            Counters { written: metrics.counter("sink_frames_written", &name), failed: metrics.counter("sink_frames_failed", &name) };
        let thread = thread::spawn(format!("sink-{name}"), move || serve(sink, &pictures, (&rings, &told), &counters))?;
        Ok(Self { dropped: metrics.counter("sink_frames_dropped", &name), name, queue, news, bell, filter, thread })
    }

    fn wants(&self, camera: &CameraId) -> bool {
        self.filter.as_ref().is_none_or(|wants| wants(camera))
    }
}

struct Counters {
    written: Counter,
    failed: Counter,
}

fn serve(sink: Box<dyn Sink>, pictures: &Receiver<Picture>, (rings, news): (&Receiver<()>, &News), counters: &Counters) {
    let mut server = Server { sink, counters, told: None };
    loop {
        select! {
            recv(pictures) -> picture => match picture {
                Ok(picture) => server.write(&picture),
                Err(_) => break,
            },
            recv(rings) -> ring => match ring {
                Ok(()) => {
                    let news = std::mem::take(&mut *sync::lock(news));
                    // Those of a camera that goes have been offered before.
                    pictures.try_iter().for_each(|picture| server.write(&picture));
                    news.iter().for_each(|(camera, there)| server.tell(camera, *there));
                }
                // What waits is still written.
                Err(_) => {
                    pictures.iter().for_each(|picture| server.write(&picture));
                    break;
                }
            },
            default(IDLE) => server.sink.tidy(),
        }
    }
    if let Err(error) = server.sink.finish() {
        tracing::error!(sink = server.sink.name(), "{}", error.chain());
    }
}

/// A sink in its thread.
struct Server<'c> {
    sink: Box<dyn Sink>,
    counters: &'c Counters,
    /// When it was last told that it fails.
    told: Option<Instant>,
}

impl Server<'_> {
    fn write(&mut self, picture: &Picture) {
        // A panic in a sink is a failed picture like any other.
        match catch_unwind(AssertUnwindSafe(|| self.sink.write(picture))).unwrap_or_else(panicked) {
            Ok(()) => self.counters.written.add(),
            Err(error) => {
                let failed = &self.counters.failed;
                failed.add();
                if self.told.is_none_or(|at| at.elapsed() >= QUIET) {
                    tracing::warn!(sink = self.sink.name(), camera = %picture.camera, failed = failed.get(), "{}", error.chain());
                    self.told = Some(Instant::now());
                }
            }
        }
    }

    fn tell(&mut self, camera: &CameraId, there: bool) {
        let tell = || if there { self.sink.enter(camera) } else { self.sink.leave(camera) };
        if let Err(error) = catch_unwind(AssertUnwindSafe(tell)).unwrap_or_else(panicked) {
            tracing::error!(sink = self.sink.name(), %camera, "{}", error.chain());
        }
    }
}

fn panicked(_: Box<dyn Any + Send>) -> Result<()> {
    Err(Error::new(Kind::Internal, "the sink panicked; this is a defect, please report it"))
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

    /// Writes down what it is told, in order.
    struct Listing(Sender<String>);

    impl Sink for Listing {
        fn name(&self) -> &str {
            "listing"
        }
        fn write(&mut self, picture: &Picture) -> Result<()> {
            self.0.send(picture.captured.millis().to_string()).ok();
            Ok(())
        }
        fn enter(&mut self, camera: &CameraId) -> Result<()> {
            self.0.send(format!("+{camera}")).ok();
            Ok(())
        }
        fn leave(&mut self, camera: &CameraId) -> Result<()> {
            self.0.send(format!("-{camera}")).ok();
            Err(Error::new(Kind::Io, "no space left"))
        }
        fn finish(&mut self) -> Result<()> {
            self.0.send("end".to_owned()).ok();
            Ok(())
        }
    }

    #[test]
    fn a_sink_learns_who_comes_and_goes_behind_the_pictures_of_who_went() {
        let (seen, told) = unbounded();
        let fanout = Fanout::start(vec![Box::new(Listing(seen))], &Metrics::new()).unwrap();
        let id = |id: &str| CameraId::new(id).unwrap();
        let next = || told.recv_timeout(Duration::from_secs(10)).unwrap();
        fanout.tell(&id("b"), true);
        assert_eq!(next(), "+b");
        (1..=3).for_each(|n| fanout.offer(&picture(n)));
        fanout.tell(&id("a"), false);
        assert_eq!([next(), next(), next(), next()], ["1", "2", "3", "-a"]);
        fanout.offer(&picture(4));
        fanout.finish(Instant::now() + Duration::from_secs(10));
        assert_eq!(told.iter().collect::<Vec<_>>(), ["4", "end"]);
    }
}
