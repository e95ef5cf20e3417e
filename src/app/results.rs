//! The thread behind the workers: numbers each answer, publishes it and what it tells of the tracked objects, gives the
//! camera's ticket back, draws the frame and hands it to the sinks. What is told of an object says which clip it is in; where
//! pictures of objects are files, it goes through the gallery, behind the picture that it names.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, tick};

use crate::annotate::Annotator;
use crate::app::herald::Herald;
use crate::app::portrait::{self, Portraits};
use crate::app::steer::{Asked, Steer};
use crate::base::error::Result;
use crate::base::heartbeat::Pulses;
use crate::base::mailbox::Ticket;
use crate::base::metrics::Metrics;
use crate::base::thread::{self, Thread};
use crate::config::CameraConfig;
use crate::console::Board;
use crate::detect::{Found, Job};
use crate::mqtt::Publisher;
use crate::sink::gallery::Gallery;
use crate::sink::record::Recorder;
use crate::sink::video::Live;
use crate::sink::{Fanout, Picture};
use crate::track::{Look, Pace, Tracker};
use crate::types::{CameraId, Event, EventKind, Looked};

/// How long sinks may take to finish their files, once told.
const SINKS: Duration = Duration::from_secs(4);

/// How late an end is told of that no answer tells, as of a lost camera's objects.
const TICK: Duration = Duration::from_millis(500);

/// What is done with the answers of a batch, drawing included, is done by then.
const LONGEST: Duration = Duration::from_secs(120);

/// Changes that may wait for the thread: some for each camera.
const ORDERS: usize = 1024;

/// How long a change of what is followed may take to be taken in: the thread may be amid the answers of a batch.
const TAKEN_IN: Duration = Duration::from_secs(5);

/// A camera's objects, and whether it is looked at.
pub(super) struct Followed {
    tracker: Tracker,
    asked: Asked,
    /// What came before shows another camera of this name, or what it was before it was changed.
    since: Instant,
}

/// No objects yet of a camera, which is looked at from now on.
pub(super) fn follow(camera: &CameraConfig, steer: &Steer) -> Followed {
    let tracker = Tracker::new(camera.id.clone(), camera.tracking.clone(), pace(camera));
    Followed { tracker, asked: steer.asked(camera), since: Instant::now() }
}

/// How often a camera is looked at.
pub(super) fn pace(camera: &CameraConfig) -> Pace {
    let longest = camera.motion.as_ref().map_or(camera.interval, |motion| motion.max_interval);
    Pace { interval: camera.interval, longest }
}

/// A change of what is followed. Whatever was followed of the camera before has its end told.
struct Order {
    camera: CameraId,
    /// `None`: it goes.
    followed: Option<Followed>,
    /// Where its being taken in is told.
    done: Sender<()>,
}

/// Who is told of objects.
pub(super) struct Told {
    /// The broker.
    pub(super) publisher: Option<Publisher>,
    /// Clips.
    pub(super) recorder: Option<Arc<Recorder>>,
    /// Live video.
    pub(super) live: Option<Live>,
    /// Pictures of objects as files.
    pub(super) gallery: Option<Gallery>,
    /// Whoever looks on.
    pub(super) board: Option<Board>,
    /// Everybody who is told of events.
    pub(super) herald: Herald,
}

/// The running thread.
pub(super) struct Results {
    /// Before the thread: dropped without `finish`, it must let go of the thread that is then joined.
    cut: Sender<()>,
    orders: Sender<Order>,
    thread: Thread,
    /// Gone with the thread.
    pulse: Weak<()>,
}

impl Results {
    /// Starts the thread; it ends when the workers are gone, or at `finish`.
    pub(super) fn start(
        found: Receiver<Vec<Found>>,
        fanout: Fanout,
        annotator: Annotator,
        followed: BTreeMap<CameraId, Followed>,
        told: Told,
        pulses: &Pulses,
        metrics: &Metrics,
    ) -> Result<Self> {
        let (cut, until) = bounded::<()>(0);
        let (orders, changes) = bounded(ORDERS);
        let ticks = tick(TICK);
        let mut step =
            Step { fanout, annotator, followed, told, metrics: metrics.clone(), seqs: HashMap::new(), portraits: Portraits::default() };
        let alive = Arc::new(());
        let pulse = Arc::downgrade(&alive);
        let beat = pulses.add("results", LONGEST);
        let thread = thread::spawn("results", move || {
            let _alive = alive;
            loop {
                select! {
                    recv(found) -> batch => match batch {
                        Ok(batch) => {
                            let _busy = beat.busy();
                            step.step(batch);
                        }
                        Err(_) => break,
                    },
                    recv(changes) -> change => match change {
                        Ok(order) => step.order(order),
                        Err(_) => break,
                    },
                    recv(ticks) -> _ => {
                        let _busy = beat.busy();
                        step.told.board.iter().for_each(|board| board.tick(Instant::now()));
                        step.follow(|one, now| one.tracker.tick(now, one.asked.is_watched()));
                    }
                    recv(until) -> _ => {
                        // What is answered already is not lost.
                        found.try_iter().for_each(|batch| step.step(batch));
                        break;
                    }
                }
            }
            // Before the sinks are waited for: the ends must be on their way while the publisher is still open.
            step.follow(|one, now| one.tracker.finish(now));
            let deadline = Instant::now() + SINKS;
            // All write their last at once.
            if let Some(recorder) = &step.told.recorder {
                recorder.close();
            }
            if let Some(gallery) = &mut step.told.gallery {
                gallery.close();
            }
            step.fanout.finish(deadline);
            if let Some(gallery) = step.told.gallery {
                gallery.finish(deadline);
            }
            if let Some(recorder) = step.told.recorder {
                recorder.finish(deadline);
            }
        })?;
        Ok(Self { cut, orders, thread, pulse })
    }

    /// Follows a camera from now on, by these rules; a new one is told to the sinks.
    pub(super) fn follow(&self, camera: &CameraId, followed: Followed) {
        self.order(camera, Some(followed));
    }

    /// Follows a camera no longer: answers that still come about it are passed over.
    pub(super) fn leave(&self, camera: &CameraId) {
        self.order(camera, None);
    }

    /// Returns once it is done, or the thread does not come round to it: then it will be, and the next ones are not waited for.
    fn order(&self, camera: &CameraId, followed: Option<Followed>) {
        let (done, taken) = bounded(1);
        let order = Order { camera: camera.clone(), followed, done };
        let idle = self.orders.is_empty();
        if self.orders.try_send(order).is_err() {
            tracing::error!(%camera, "a change of it is not taken in: the thread that deals with answers has come round to none for long");
        } else if idle && taken.recv_timeout(TAKEN_IN).is_err() {
            tracing::warn!(%camera, "a change of it is not taken in yet: the thread that deals with answers is at something else");
        }
    }

    /// Whether the thread has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Upgrades for as long as the thread runs.
    pub(super) fn pulse(&self) -> Weak<()> {
        self.pulse.clone()
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
    told: Told,
    metrics: Metrics,
    seqs: HashMap<CameraId, u64>,
    portraits: Portraits,
}

/// An answer that has its number, with what it tells of the objects.
struct Numbered {
    looked: Looked,
    events: Vec<Event>,
}

impl Step {
    /// The answers of one batch; a panic in what is done with one costs its frame only.
    ///
    /// The tickets go back together, before the drawing: the model goes on meanwhile, and with all these cameras at
    /// once. One by one, the first to return would be looked at alone and the others would wait for it. No camera's
    /// frames can overtake each other here.
    fn step(&mut self, batch: Vec<Found>) {
        let numbered: Vec<(Numbered, Ticket)> =
            batch.into_iter().filter_map(|one| self.guarded(one.job.frame.camera.clone(), |step| step.deal(one)).flatten()).collect();
        let (numbered, tickets): (Vec<Numbered>, Vec<Ticket>) = numbered.into_iter().unzip();
        Ticket::give_back(tickets);
        for Numbered { looked, events } in numbered {
            let camera = looked.frame.camera.clone();
            // The picture of an object is on its way before the event that names it.
            self.guarded(camera.clone(), |step| step.tell(events, Some(&looked)));
            if self.fanout.wants(&camera) {
                self.guarded(camera, |step| step.fanout.offer(&step.picture(&looked)));
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

    /// `None`: the camera has gone, or is another than when the frame came.
    fn deal(&mut self, found: Found) -> Option<(Numbered, Ticket)> {
        let Found { job: Job { frame, prompt }, answer, queued, inference, ticket } = found;
        if self.followed.get(&frame.camera).is_none_or(|one| frame.received < one.since) {
            self.metrics.counter("frames_dropped", frame.camera.as_str()).add();
            return None;
        }
        let seq = self.seqs.entry(frame.camera.clone()).or_default();
        *seq += 1;
        let total = frame.received.elapsed();
        self.metrics.counter("frames_analysed", frame.camera.as_str()).add();
        self.metrics.latency("total", "all").record(total);
        let looked = Looked { frame, seq: *seq, prompt, answer: Arc::new(answer), queued, inference, total };
        if let Some(publisher) = &self.told.publisher {
            publisher.looked(&looked);
        }
        self.told.board.iter().for_each(|board| board.looked(&looked));
        let mut events = Vec::new();
        if let Some(one) = self.followed.get_mut(&looked.frame.camera) {
            events = one.tracker.step(&look(&looked));
            self.metrics.counter("detections_not_followed", looked.frame.camera.as_str()).add_many(one.tracker.beyond() as u64);
        }
        self.count(&looked.frame.camera);
        self.show(&looked.frame.camera);
        Some((Numbered { looked, events }, ticket))
    }

    fn order(&mut self, Order { camera, followed, done }: Order) {
        self.follow_one(&camera, |one, now| one.tracker.finish(now));
        let stays = followed.is_some();
        let before = match followed {
            Some(followed) => self.followed.insert(camera.clone(), followed),
            None => self.followed.remove(&camera),
        };
        if stays != before.is_some() {
            self.fanout.tell(&camera, stays);
        }
        // Nobody listens any more where it took too long.
        done.try_send(()).ok();
    }

    /// What there is to tell of each camera's objects at this moment.
    fn follow(&mut self, what: impl Fn(&mut Followed, Instant) -> Vec<Event>) {
        let cameras: Vec<CameraId> = self.followed.keys().cloned().collect();
        cameras.iter().for_each(|camera| self.follow_one(camera, &what));
    }

    fn follow_one(&mut self, camera: &CameraId, what: impl Fn(&mut Followed, Instant) -> Vec<Event>) {
        self.guarded(camera.clone(), |step| {
            let events = step.followed.get_mut(camera).map(|one| what(one, Instant::now())).unwrap_or_default();
            step.count(camera);
            step.show(camera);
            step.tell(events, None);
        });
    }

    /// How many objects are in the camera's zones from now on.
    fn count(&self, camera: &CameraId) {
        if let Some((publisher, one)) = self.told.publisher.as_ref().zip(self.followed.get(camera)) {
            publisher.tracked(camera, one.tracker.present().map(|(track, _)| track));
        }
        if let Some((board, one)) = self.told.board.as_ref().zip(self.followed.get(camera)) {
            board.objects(camera, one.tracker.present().map(|(track, _)| track));
        }
    }

    /// What live video has boxes of from now on.
    fn show(&self, camera: &CameraId) {
        if let Some((live, one)) = self.told.live.as_ref().zip(self.followed.get(camera)) {
            live.marks(camera, one.tracker.marks());
        }
    }

    /// Has events recorded and published; those of a look with pictures of their objects, where that is the best so far.
    fn tell(&mut self, events: Vec<Event>, looked: Option<&Looked>) {
        if let Some((gallery, looked)) = self.told.gallery.as_mut().zip(looked)
            && let Some(one) = self.followed.get(&looked.frame.camera)
        {
            let seen = one.tracker.present().filter(|(_, seen)| *seen);
            gallery.see(&looked.frame, seen.map(|(track, _)| track));
        }
        let mut jpeg = None;
        for mut event in events {
            event.clip = self.told.recorder.as_ref().and_then(|recorder| recorder.event(&event));
            event.snapshot = self.topic(&event, looked, &mut jpeg);
            match &mut self.told.gallery {
                Some(gallery) => gallery.tell(event),
                None => self.told.herald.tell(&event),
            }
        }
    }

    /// The topic that has a picture of an event's object, where there is one: that of its look, drawn once for all events of
    /// it, goes there if it is the best so far.
    fn topic(&mut self, event: &Event, looked: Option<&Looked>, jpeg: &mut Option<Option<Vec<u8>>>) -> Option<String> {
        let publisher = self.told.publisher.as_ref()?;
        let topic = publisher.snapshot_topic(&event.camera, &event.track.label);
        let mut picture = topic.as_deref().map_or(portrait::Picture::Other, |topic| self.portraits.see(topic, event));
        if topic.is_none() && event.kind == EventKind::End {
            self.portraits.forget(event);
        }
        if let (portrait::Picture::Draw, Some(looked)) = (picture, looked) {
            let jpeg = jpeg.get_or_insert_with(|| self.portrait(looked, publisher.picture_room()));
            let there = jpeg.as_ref().is_some_and(|jpeg| publisher.snapshot(&event.camera, &event.track.label, jpeg));
            if !there && event.kind == EventKind::New {
                picture = portrait::Picture::Other;
            }
        }
        topic.filter(|_| picture != portrait::Picture::Other)
    }

    /// A picture for those who are told of an event. Should it fail, they are told all the same.
    fn portrait(&self, looked: &Looked, most: usize) -> Option<Vec<u8>> {
        let Looked { frame, answer, .. } = looked;
        let draw = || portrait::draw(&self.annotator, &frame.image, &answer.detections, &caption(looked), most);
        let jpeg = catch_unwind(AssertUnwindSafe(draw)).ok().and_then(|drawn| {
            drawn.inspect_err(|error| tracing::debug!(camera = %frame.camera, "no picture of an event: {}", error.chain())).ok()
        });
        if jpeg.is_none() {
            self.metrics.counter("snapshots_failed", frame.camera.as_str()).add();
        }
        jpeg
    }

    fn picture(&self, looked: &Looked) -> Picture {
        let frame = &looked.frame;
        let image = Arc::new(self.annotator.draw(&frame.image, &looked.answer.detections, &caption(looked)));
        Picture { camera: frame.camera.clone(), captured: frame.captured, image }
    }
}

/// What stands at the foot of a picture.
fn caption(looked: &Looked) -> String {
    let count = match looked.answer.detections.len() {
        0 => "nothing found".to_owned(),
        1 => "1 object".to_owned(),
        many => format!("{many} objects"),
    };
    format!("{}   {}   {count}", looked.frame.camera, looked.frame.captured.local())
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
