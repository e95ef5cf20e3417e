//! One thread and one bounded queue per sink.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};

use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::thread::{self, Thread};
use crate::sink::slates::{Slater, Standings};
use crate::sink::video::Painter;
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
    standings: Standings,
}

struct Lane {
    name: String,
    queue: Sender<Picture>,
    dropped: Counter,
    filter: Option<Filter>,
    thread: Thread,
}

impl Fanout {
    /// Starts a thread for each sink; `painter` draws their slates.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(sinks: Vec<Box<dyn Sink>>, painter: &Arc<dyn Painter>, metrics: &Metrics) -> Result<Self> {
        let slaters: Vec<Slater> = sinks.iter().map(|sink| Slater::new(sink.slates(), painter.clone())).collect();
        let standings = Standings::of(&slaters);
        let lanes = sinks.into_iter().zip(slaters).map(|(sink, slater)| Lane::start(sink, slater, metrics)).collect::<Result<_>>()?;
        Ok(Self { lanes, standings })
    }

    /// What is to be told of how cameras stand.
    pub fn standings(&self) -> Standings {
        self.standings.clone()
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
    fn start(sink: Box<dyn Sink>, slater: Slater, metrics: &Metrics) -> Result<Self> {
        let (name, filter) = (sink.name().to_owned(), sink.filter());
        let (queue, pictures) = bounded(QUEUE);
        let counters =
            Counters { written: metrics.counter("sink_frames_written", &name), failed: metrics.counter("sink_frames_failed", &name) };
        let thread = thread::spawn(format!("sink-{name}"), move || serve(sink, slater, &pictures, &counters))?;
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

fn serve(sink: Box<dyn Sink>, mut slater: Slater, pictures: &Receiver<Picture>, counters: &Counters) {
    let mut writer = Writer { sink, counters, told: None };
    loop {
        slater.turn(Instant::now()).iter().for_each(|slate| writer.write(slate));
        let due = slater.due();
        let wait = due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
        select! {
            recv(pictures) -> picture => match picture {
                Ok(picture) => {
                    slater.seen(&picture, Instant::now());
                    writer.write(&picture);
                }
                Err(_) => break,
            },
            recv(slater.wake()) -> _ => {}
            default(wait) => if due.is_none() {
                writer.sink.tidy();
            },
        }
    }
    let mut sink = writer.sink;
    if let Err(error) = sink.finish() {
        tracing::error!(sink = sink.name(), "{}", error.chain());
    }
}

struct Writer<'c> {
    sink: Box<dyn Sink>,
    counters: &'c Counters,
    told: Option<Instant>,
}

impl Writer<'_> {
    fn write(&mut self, picture: &Picture) {
        let Self { sink, counters, told } = self;
        // A panic in a sink is a failed picture like any other.
        let panicked = |_| Err(Error::new(Kind::Internal, "the sink panicked; this is a defect, please report it"));
        match catch_unwind(AssertUnwindSafe(|| sink.write(picture))).unwrap_or_else(panicked) {
            Ok(()) => counters.written.add(),
            Err(error) => {
                counters.failed.add();
                if told.is_none_or(|at| at.elapsed() >= QUIET) {
                    tracing::warn!(sink = sink.name(), camera = %picture.camera, failed = counters.failed.get(), "{}", error.chain());
                    *told = Some(Instant::now());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;
    use crate::base::clock::Utc;
    use crate::sink::Slates;
    use crate::sink::slates::tests::Plain;
    use crate::types::{CameraId, CameraState, CameraStatus};

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

    fn painter() -> Arc<dyn Painter> {
        Arc::new(Plain)
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
        let fanout = Fanout::start(sinks, &painter(), &metrics).unwrap();
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
        let fanout = Fanout::start(vec![Box::new(Gated { name: "disk", tokens, seen })], &painter(), &metrics).unwrap();
        for (n, good) in [(1, false), (2, true)] {
            fanout.offer(&picture(n));
            release.send(good).unwrap();
        }
        assert_eq!(written.recv_timeout(Duration::from_secs(10)), Ok(2));
        assert_eq!(metrics.counter("sink_frames_failed", "disk").get(), 1);
        fanout.finish(Instant::now() + Duration::from_secs(10));
        assert_eq!(metrics.counter("sink_frames_written", "disk").get(), 1);
    }

    /// Tells of each picture how bright it is.
    struct Shows(Slates, Sender<u8>);

    impl Sink for Shows {
        fn name(&self) -> &str {
            "shows"
        }
        fn write(&mut self, picture: &Picture) -> Result<()> {
            self.1.send(picture.image.get_pixel(1, 1).0[0]).ok();
            Ok(())
        }
        fn slates(&self) -> Slates {
            self.0
        }
        fn finish(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_sink_that_wants_slates_gets_them_beside_its_pictures_and_no_other_does() {
        let metrics = Metrics::new();
        let (seen, shown) = unbounded();
        let (told, plain) = unbounded();
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(Shows(Slates::Following, seen)), Box::new(Shows(Slates::Never, told))];
        let fanout = Fanout::start(sinks, &painter(), &metrics).unwrap();
        let image = Arc::new(image::RgbImage::from_pixel(8, 8, image::Rgb([200; 3])));
        let offer = || fanout.offer(&Picture { image: image.clone(), ..picture(0) });
        let stands = |state| {
            let status = CameraStatus { camera: picture(0).camera, state, reason: "gone".to_owned(), since: Utc::from_millis(0), fps: 0.0 };
            fanout.standings().tell(&status);
        };
        let next = || shown.recv_timeout(Duration::from_secs(30)).unwrap();
        offer();
        assert_eq!(next(), 200);
        stands(CameraState::Backoff);
        assert_eq!([next(), next(), next()], [100; 3]);
        stands(CameraState::Running);
        offer();
        // One that says that it is back may be ahead of it.
        while next() != 200 {}
        fanout.finish(Instant::now() + Duration::from_secs(10));
        assert_eq!(shown.iter().count(), 0);
        assert_eq!(plain.iter().collect::<Vec<_>>(), [200; 2]);
    }
}
