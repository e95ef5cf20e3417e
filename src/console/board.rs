//! What is known of each camera and of its objects at this moment. Whoever runs the cameras tells it, and waits for nobody; whoever
//! asks gets the newest, and nothing is kept for who is slow.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::base::clock::Utc;
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::mqtt::Watched;
use crate::sink::history::Entry;
use crate::types::{Answer, CameraId, CameraState, CameraStatus, Event, Frame, Looked, Track};

/// Objects whose newest event is held for those who listen, of all cameras: the newest ones.
const OBJECTS: usize = 512;

/// Between two looks at how many pictures have come.
const SAMPLE: Duration = Duration::from_secs(1);

/// How many of these are kept: pictures are counted over the last few, looks, which are rarer, over all.
const SAMPLES: usize = 31;
const PICTURES_OVER: usize = 6;

/// Who waits for a picture of a camera at once, at most.
const WISHES: usize = 8;

/// What is known. Clones share it.
#[derive(Clone)]
pub struct Board(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// The newest version, for those who wait for a newer one.
    changed: watch::Sender<u64>,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    version: u64,
    cameras: BTreeMap<CameraId, Card>,
    /// By version, with where each is.
    objects: BTreeMap<u64, Arc<Entry>>,
    at: HashMap<String, u64>,
}

/// A camera.
struct Card {
    version: u64,
    now: Now,
    frames_in: Counter,
    looks: Counter,
    dropped: Counter,
    reconnects: Counter,
    samples: VecDeque<Sample>,
    lens: Lens,
}

struct Sample {
    at: Instant,
    frames_in: u64,
    looks: u64,
}

/// A camera at one moment.
#[derive(Clone, Debug)]
pub struct Now {
    /// Where it stands.
    pub status: CameraStatus,
    /// Whether the configuration has it opened.
    pub enabled: bool,
    /// What it is asked, whether it is looked at, and its zones.
    pub watched: Watched,
    /// Pictures a second that come; `None`: not known yet.
    pub fps: Option<f64>,
    /// Looks a second; `None`: not known yet.
    pub looks_per_s: Option<f64>,
    /// The last look.
    pub seen: Option<Seen>,
    /// The objects that were told of and have not ended.
    pub objects: Vec<Track>,
    /// Frames that a newer one replaced.
    pub dropped: u64,
    /// How often it was lost and tried again.
    pub reconnects: u64,
}

/// A look.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When the frame was taken.
    pub captured: Utc,
    /// Width and height, pixels.
    pub frame: (u32, u32),
    /// The answer.
    pub answer: Arc<Answer>,
    /// From its arrival to the model.
    pub queued: Duration,
    /// In the model.
    pub inference: Duration,
    /// From its arrival to the end.
    pub total: Duration,
}

/// Where a camera's source looks whether somebody wants its next picture as it is. Clones are the same.
#[derive(Clone, Default)]
pub struct Lens(Arc<Wishes>);

#[derive(Default)]
struct Wishes {
    wanted: AtomicBool,
    waiting: Mutex<Vec<oneshot::Sender<Frame>>>,
}

impl Lens {
    /// Whether the next picture is wanted.
    pub fn wants(&self) -> bool {
        self.0.wanted.load(Ordering::Acquire)
    }

    /// Hands a picture to those who wait.
    pub fn take(&self, frame: &Frame) {
        let mut waiting = sync::lock(&self.0.waiting);
        self.0.wanted.store(false, Ordering::Release);
        // Some may have gone.
        waiting.drain(..).for_each(|wish| _ = wish.send(frame.clone()));
    }

    fn wish(&self) -> Option<oneshot::Receiver<Frame>> {
        let mut waiting = sync::lock(&self.0.waiting);
        waiting.retain(|wish| !wish.is_closed());
        if waiting.len() >= WISHES {
            return None;
        }
        let (send, picture) = oneshot::channel();
        waiting.push(send);
        self.0.wanted.store(true, Ordering::Release);
        Some(picture)
    }
}

impl Board {
    /// Of no camera yet.
    pub fn new(metrics: &Metrics) -> Self {
        Self(Arc::new(Inner { state: Mutex::default(), changed: watch::channel(0).0, metrics: metrics.clone() }))
    }

    /// A camera that there is from now on, in place of one of the same name; returns its lens.
    pub fn add(&self, watched: Watched, enabled: bool) -> Lens {
        let id = watched.id.clone();
        let (state, reason, since) = (CameraState::Connecting, String::new(), Utc::now());
        let status = CameraStatus { camera: id.clone(), state, reason, since, fps: 0.0 };
        let now =
            Now { status, enabled, watched, fps: None, looks_per_s: None, seen: None, objects: Vec::new(), dropped: 0, reconnects: 0 };
        let count = |name| self.0.metrics.counter(name, id.as_str());
        let lens = Lens::default();
        let card = Card {
            version: 0,
            now,
            frames_in: count("frames_in"),
            looks: count("frames_analysed"),
            dropped: count("frames_dropped"),
            reconnects: count("reconnects"),
            samples: VecDeque::new(),
            lens: lens.clone(),
        };
        self.lock().cameras.insert(id.clone(), card);
        self.change(&id, |_| true);
        lens
    }

    /// A camera that there is no longer.
    pub fn remove(&self, camera: &CameraId) {
        let mut state = self.lock();
        state.cameras.remove(camera);
        state.version += 1;
        let version = state.version;
        drop(state);
        self.0.changed.send_replace(version);
    }

    /// Where a camera's source looks; `None` where there is no such camera.
    pub fn lens(&self, camera: &CameraId) -> Option<Lens> {
        self.lock().cameras.get(camera).map(|card| card.lens.clone())
    }

    /// A camera's state has changed.
    pub fn status(&self, status: &CameraStatus) {
        self.change(&status.camera, |now| {
            now.status = status.clone();
            true
        });
    }

    /// What a camera is asked, or whether it is looked at, has changed.
    pub fn watched(&self, watched: &Watched) {
        self.change(&watched.id, |now| {
            now.watched = watched.clone();
            true
        });
    }

    /// The configuration has a camera opened from now on, or no longer.
    pub fn opened(&self, camera: &CameraId, enabled: bool) {
        self.change(camera, |now| std::mem::replace(&mut now.enabled, enabled) != enabled);
    }

    /// A frame was looked at.
    pub fn looked(&self, looked: &Looked) {
        let Looked { frame, answer, queued, inference, total, .. } = looked;
        let (frame_size, captured) = (frame.image.dimensions(), frame.captured);
        let (queued, inference, total) = (*queued, *inference, *total);
        self.change(&frame.camera, |now| {
            now.seen = Some(Seen { captured, frame: frame_size, answer: answer.clone(), queued, inference, total });
            true
        });
    }

    /// The objects that were told of and have not ended, of a camera, and at this moment.
    pub fn objects<'t>(&self, camera: &CameraId, tracks: impl Iterator<Item = &'t Track>) {
        let tracks: Vec<Track> = tracks.cloned().collect();
        self.change(camera, |now| {
            let others = now.objects != tracks;
            now.objects = tracks;
            others
        });
    }

    /// What an event tells of its object.
    pub fn event(&self, event: &Event) {
        let mut state = self.lock();
        let mut entry = Entry::of(event);
        let before = state.at.remove(&entry.track_id).and_then(|version| state.objects.remove(&version));
        if let Some(before) = before {
            entry = entry.after(&before);
        }
        state.version += 1;
        let version = state.version;
        state.at.insert(entry.track_id.clone(), version);
        state.objects.insert(version, Arc::new(entry));
        while state.objects.len() > OBJECTS {
            if let Some((_, oldest)) = state.objects.pop_first() {
                state.at.remove(&oldest.track_id);
            }
        }
        drop(state);
        self.0.changed.send_replace(version);
    }

    /// Counts pictures and looks; to be called about twice a second.
    pub fn tick(&self, at: Instant) {
        let cameras: Vec<CameraId> = self.lock().cameras.keys().cloned().collect();
        for camera in cameras {
            let mut state = self.lock();
            let Some(rates) = state.cameras.get_mut(&camera).and_then(|card| card.sample(at)) else { continue };
            drop(state);
            self.change(&camera, |now| {
                let others = (now.fps, now.looks_per_s) != rates;
                (now.fps, now.looks_per_s) = rates;
                others
            });
        }
    }

    /// A camera at this moment; `None` where there is no such camera.
    pub fn camera(&self, id: &str) -> Option<Now> {
        let state = self.lock();
        state.cameras.iter().find(|(known, _)| known.as_str() == id).map(|(_, card)| card.now())
    }

    /// Every camera at this moment, in order of name.
    pub fn cameras(&self) -> Vec<Now> {
        self.lock().cameras.values().map(Card::now).collect()
    }

    /// A camera's next picture, as it is; `None` where there is no such camera, or too many ask.
    pub fn picture(&self, camera: &CameraId) -> Option<oneshot::Receiver<Frame>> {
        self.lens(camera)?.wish()
    }

    /// For who wants to be told of changes.
    pub fn listen(&self) -> Listener {
        let changed = self.0.changed.subscribe();
        let objects = self.lock().version;
        Listener { board: self.clone(), changed, cameras: BTreeMap::new(), objects }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.0.state)
    }

    /// Changes a camera; `how` says whether anything is other than before.
    fn change(&self, camera: &CameraId, how: impl FnOnce(&mut Now) -> bool) {
        let mut state = self.lock();
        let version = state.version + 1;
        let Some(card) = state.cameras.get_mut(camera) else { return };
        if how(&mut card.now) {
            card.version = version;
            state.version = version;
            drop(state);
            self.0.changed.send_replace(version);
        }
    }
}

impl Card {
    fn now(&self) -> Now {
        Now { dropped: self.dropped.get(), reconnects: self.reconnects.get(), ..self.now.clone() }
    }

    /// Pictures and looks a second, where it is time to count them.
    fn sample(&mut self, at: Instant) -> Option<(Option<f64>, Option<f64>)> {
        if self.samples.back().is_some_and(|last| at.saturating_duration_since(last.at) < SAMPLE) {
            return None;
        }
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at, frames_in: self.frames_in.get(), looks: self.looks.get() });
        let newest = self.samples.back()?;
        let rate = |from: Option<&Sample>, count: fn(&Sample) -> u64| {
            let from = from.filter(|from| from.at < newest.at)?;
            let rate = count(newest).saturating_sub(count(from)) as f64 / (newest.at - from.at).as_secs_f64();
            Some((rate * 100.0).round() / 100.0)
        };
        let lately = self.samples.len().saturating_sub(PICTURES_OVER);
        Some((rate(self.samples.get(lately), |sample| sample.frames_in), rate(self.samples.front(), |sample| sample.looks)))
    }
}

/// Who is told of changes, as often as it asks: of each camera and each object the newest.
pub struct Listener {
    board: Board,
    changed: watch::Receiver<u64>,
    /// What was told last, and when.
    cameras: BTreeMap<CameraId, (u64, Instant)>,
    objects: u64,
}

/// What there is to be told.
#[derive(Debug, Default)]
pub struct News {
    /// Cameras that are other than when they were last told of.
    pub cameras: Vec<Now>,
    /// Cameras that there are no longer.
    pub gone: Vec<CameraId>,
    /// Objects, in the order of their newest events.
    pub objects: Vec<Arc<Entry>>,
    /// When a camera that has changed may be told of.
    pub next: Option<Instant>,
}

impl Listener {
    /// Returns when something may have changed since `news` was last asked for.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }

    /// What has changed; a camera is told of once in `pace` at most.
    pub fn news(&mut self, at: Instant, pace: Duration) -> News {
        self.changed.borrow_and_update();
        let state = self.board.lock();
        let gone = self.cameras.keys().filter(|id| !state.cameras.contains_key(*id)).cloned().collect();
        let mut news = News { gone, ..News::default() };
        self.cameras.retain(|id, _| state.cameras.contains_key(id));
        for (id, card) in &state.cameras {
            match self.cameras.get(id) {
                Some((version, _)) if *version == card.version => {}
                Some((_, told)) if at < *told + pace => news.next = Some(news.next.map_or(*told + pace, |next| next.min(*told + pace))),
                _ => {
                    self.cameras.insert(id.clone(), (card.version, at));
                    news.cameras.push(card.now());
                }
            }
        }
        news.objects = state.objects.range(self.objects + 1..).map(|(_, entry)| entry.clone()).collect();
        self.objects = state.version;
        news
    }
}

#[cfg(test)]
mod tests;
