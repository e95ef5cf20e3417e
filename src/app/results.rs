//! The thread behind the workers: numbers each answer, publishes it and what it tells of the tracked objects, gives the
//! camera's ticket back, draws the frame and hands it to the sinks.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, tick};

use crate::annotate::Annotator;
use crate::app::steer::{Asked, Steer};
use crate::base::error::Result;
use crate::base::mailbox::Ticket;
use crate::base::metrics::Metrics;
use crate::base::thread::{self, Thread};
use crate::config::CameraConfig;
use crate::detect::{Found, Job};
use crate::mqtt::Publisher;
use crate::sink::video::Live;
use crate::sink::{Fanout, Picture};
use crate::track::{Look, Pace, Tracker};
use crate::types::{CameraId, Event, Looked};

/// How long sinks may take to finish their files, once told.
const SINKS: Duration = Duration::from_secs(4);

/// How late an end is told of that no answer tells, as of a lost camera's objects.
const TICK: Duration = Duration::from_millis(500);

/// A camera's objects, and whether it is looked at.
pub(super) struct Followed {
    tracker: Tracker,
    asked: Asked,
}

/// No objects yet, for each camera.
pub(super) fn follow(cameras: &[CameraConfig], steer: &Steer) -> BTreeMap<CameraId, Followed> {
    let follow = |camera: &CameraConfig| {
        let longest = camera.motion.as_ref().map_or(camera.interval, |motion| motion.max_interval);
        let pace = Pace { interval: camera.interval, longest };
        let tracker = Tracker::new(camera.id.clone(), camera.tracking.clone(), pace);
        (camera.id.clone(), Followed { tracker, asked: steer.asked(camera) })
    };
    cameras.iter().map(follow).collect()
}

/// The running thread.
pub(super) struct Results {
    /// Before the thread: dropped without `finish`, it must let go of the thread that is then joined.
    cut: Sender<()>,
    thread: Thread,
}

impl Results {
    /// Starts the thread; it ends when the workers are gone, or at `finish`.
    pub(super) fn start(
        found: Receiver<Vec<Found>>,
        fanout: Fanout,
        annotator: Annotator,
        followed: BTreeMap<CameraId, Followed>,
        (publisher, live): (Option<Publisher>, Option<Live>),
        metrics: &Metrics,
    ) -> Result<Self> {
        let (cut, until) = bounded::<()>(0);
        let ticks = tick(TICK);
        let mut step = Step { fanout, annotator, followed, publisher, live, metrics: metrics.clone(), seqs: HashMap::new() };
        let thread = thread::spawn("results", move || {
            loop {
                select! {
                    recv(found) -> batch => match batch {
                        Ok(batch) => step.step(batch),
                        Err(_) => break,
                    },
                    recv(ticks) -> _ => step.follow(|one, now| one.tracker.tick(now, one.asked.is_watched())),
                    recv(until) -> _ => {
                        // What is answered already is not lost.
                        found.try_iter().for_each(|batch| step.step(batch));
                        break;
                    }
                }
            }
            // Before the sinks are waited for: the ends must be on their way while the publisher is still open.
            step.follow(|one, now| one.tracker.finish(now));
            step.fanout.finish(Instant::now() + SINKS);
        })?;
        Ok(Self { cut, thread })
    }

    /// Whether the thread has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Takes no more answers (those of a worker left behind would come too late) and waits for the sinks.
    pub(super) fn finish(self, deadline: Instant) {
        drop(self.cut);
        if !self.thread.join_until(deadline) {
            tracing::error!("sinks did not finish in time");
        }
    }
}

struct Step {
    fanout: Fanout,
    annotator: Annotator,
    followed: BTreeMap<CameraId, Followed>,
    publisher: Option<Publisher>,
    live: Option<Live>,
    metrics: Metrics,
    seqs: HashMap<CameraId, u64>,
}

impl Step {
    /// The answers of one batch; a panic in what is done with one costs its frame only.
    ///
    /// The tickets go back together, before the drawing: the model goes on meanwhile, and with all these cameras at
    /// once. One by one, the first to return would be looked at alone and the others would wait for it. No camera's
    /// frames can overtake each other here.
    fn step(&mut self, batch: Vec<Found>) {
        let numbered: Vec<(Looked, Ticket)> =
            batch.into_iter().filter_map(|one| self.guarded(one.job.frame.camera.clone(), |step| step.deal(one))).collect();
        let (looked, tickets): (Vec<Looked>, Vec<Ticket>) = numbered.into_iter().unzip();
        Ticket::give_back(tickets);
        if !self.fanout.is_empty() {
            for one in &looked {
                self.guarded(one.frame.camera.clone(), |step| step.fanout.offer(&step.picture(one)));
            }
        }
    }

    fn guarded<T>(&mut self, camera: CameraId, deal: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let dealt = catch_unwind(AssertUnwindSafe(|| deal(self))).ok();
        if dealt.is_none() {
            self.metrics.counter("frames_failed", camera.as_str()).add();
            tracing::error!(%camera, "an answer could not be dealt with: a panic; this is a defect, please report it");
        }
        dealt
    }

    fn deal(&mut self, found: Found) -> (Looked, Ticket) {
        let Found { job: Job { frame, prompt }, answer, queued, inference, ticket } = found;
        let seq = self.seqs.entry(frame.camera.clone()).or_default();
        *seq += 1;
        let total = frame.received.elapsed();
        self.metrics.counter("frames_analysed", frame.camera.as_str()).add();
        self.metrics.latency("total", "all").record(total);
        let looked = Looked { frame, seq: *seq, prompt, answer: Arc::new(answer), queued, inference, total };
        if let Some(publisher) = &self.publisher {
            publisher.looked(&looked);
        }
        if let Some(one) = self.followed.get_mut(&looked.frame.camera) {
            let events = one.tracker.step(&look(&looked));
            self.show(&looked.frame.camera);
            self.tell(&events);
        }
        (looked, ticket)
    }

    /// What there is to tell of each camera's objects at this moment.
    fn follow(&mut self, what: impl Fn(&mut Followed, Instant) -> Vec<Event>) {
        let now = Instant::now();
        let cameras: Vec<CameraId> = self.followed.keys().cloned().collect();
        for camera in cameras {
            self.guarded(camera.clone(), |step| {
                let events = step.followed.get_mut(&camera).map(|one| what(one, now)).unwrap_or_default();
                step.show(&camera);
                step.tell(&events);
            });
        }
    }

    /// What live video has boxes of from now on.
    fn show(&self, camera: &CameraId) {
        if let Some((live, one)) = self.live.as_ref().zip(self.followed.get(camera)) {
            live.marks(camera, one.tracker.marks());
        }
    }

    fn tell(&self, events: &[Event]) {
        if let Some(publisher) = &self.publisher {
            events.iter().for_each(|event| publisher.event(event));
        }
    }

    fn picture(&self, looked: &Looked) -> Picture {
        let frame = &looked.frame;
        let detections = &looked.answer.detections;
        let count = match detections.len() {
            0 => "nothing found".to_owned(),
            1 => "1 object".to_owned(),
            many => format!("{many} objects"),
        };
        let caption = format!("{}   {}   {count}", frame.camera, frame.captured.local());
        let image = Arc::new(self.annotator.draw(&frame.image, detections, &caption));
        Picture { camera: frame.camera.clone(), captured: frame.captured, image }
    }
}

fn look(looked: &Looked) -> Look<'_> {
    let frame = &looked.frame;
    Look {
        received: frame.received,
        now: Instant::now(),
        captured: frame.captured,
        frame: frame.image.dimensions(),
        prompt: &looked.prompt,
        detections: &looked.answer.detections,
    }
}
