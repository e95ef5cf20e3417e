//! The events that wait for the pictures they name, and the thread that tells them.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::base::metrics::Metrics;
use crate::base::sync;
use crate::sink::gallery::Tell;
use crate::sink::gallery::sheet::Sheet;
use crate::sink::shelf::Shelf;
use crate::types::{CameraId, Event, EventKind};

/// An event waits for its picture for so long.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Where more events wait none does any longer.
const CROWD: usize = 1000;

/// So many may wait; none comes near to it, for telling one takes no time.
const MOST: usize = 100_000;

/// Between two looks at a desk where nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// An event, and the picture that it waits for.
pub struct Waiting {
    event: Event,
    sheet: Option<Arc<Sheet>>,
    /// So many pictures had been asked for.
    asked: u64,
    since: Instant,
}

impl Waiting {
    /// From now on, for all pictures that were asked for.
    pub fn new(event: Event, sheet: Option<Arc<Sheet>>, since: Instant) -> Self {
        let asked = sheet.as_ref().map_or(0, |sheet| sheet.asked());
        Self { event, sheet, asked, since }
    }

    fn is_ready(&self) -> bool {
        self.sheet.as_ref().is_none_or(|sheet| sheet.done() >= self.asked)
    }
}

/// Where events wait, each camera's in order.
#[derive(Default)]
pub struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<CameraId, VecDeque<Waiting>>,
    count: usize,
    closed: bool,
    /// Since when the writer is at one picture.
    busy: Option<Instant>,
}

impl Desk {
    /// Adds an event; whether there was room. Waits for nobody.
    pub fn put(&self, waiting: Waiting) -> bool {
        let mut state = sync::lock(&self.state);
        if state.count >= MOST {
            return false;
        }
        state.count += 1;
        state.queues.entry(waiting.event.camera.clone()).or_default().push_back(waiting);
        self.changed.notify_all();
        true
    }

    /// Nothing more comes.
    pub fn close(&self) {
        sync::lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// The writer begins a picture, or is done with one.
    pub fn work(&self, busy: Option<Instant>) {
        sync::lock(&self.state).busy = busy;
        self.changed.notify_all();
    }

    /// The next event that need not wait any longer, as soon as there is one; `None` at the end of all.
    fn take(&self) -> Option<Waiting> {
        let mut state = sync::lock(&self.state);
        loop {
            let now = Instant::now();
            let Some((camera, until)) = state.next() else {
                if state.closed {
                    return None;
                }
                state = sync::wait_timeout(&self.changed, state, IDLE);
                continue;
            };
            if until <= now {
                state.count -= 1;
                return state.queues.get_mut(&camera)?.pop_front();
            }
            state = sync::wait_timeout(&self.changed, state, until - now);
        }
    }
}

impl State {
    /// The camera whose first event may be told first, and when. Once the writer has been at one picture for as long as an event
    /// waits, none waits.
    fn next(&self) -> Option<(CameraId, Instant)> {
        let hangs = self.busy.map(|since| since + PATIENCE);
        let until = |first: &Waiting| {
            let patience = first.since + PATIENCE;
            match hangs {
                _ if self.count > CROWD || first.is_ready() => first.since,
                Some(hangs) => patience.min(hangs.max(first.since)),
                None => patience,
            }
        };
        let firsts = self.queues.iter().filter_map(|(camera, queue)| Some((camera, until(queue.front()?))));
        firsts.min_by_key(|(_, until)| *until).map(|(camera, until)| (camera.clone(), until))
    }
}

/// Who is told, and how.
pub struct Told {
    /// Where the files are.
    pub shelf: Arc<Shelf>,
    /// Takes the events.
    pub tell: Tell,
    /// Counts.
    pub metrics: Metrics,
}

/// Tells events until the desk is closed and empty.
pub fn run(desk: &Desk, mut told: Told) {
    while let Some(waiting) = desk.take() {
        told.step(waiting);
    }
}

impl Told {
    fn step(&mut self, Waiting { mut event, sheet, .. }: Waiting) {
        event.snapshot = sheet.as_ref().filter(|sheet| sheet.is_written()).map(|sheet| sheet.path().to_string_lossy().into_owned());
        if event.kind == EventKind::New && event.snapshot.is_none() {
            self.metrics.counter("events_without_snapshot", event.camera.as_str()).add();
        }
        if catch_unwind(AssertUnwindSafe(|| (self.tell)(&event))).is_err() {
            tracing::error!(camera = %event.camera, "an event could not be told of: a panic; this is a defect, please report it");
        }
        if let Some(sheet) = sheet.filter(|_| event.kind == EventKind::End) {
            self.shelf.release(sheet.path());
        }
    }
}
