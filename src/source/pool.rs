//! The shared decoders: a few threads that decode the keyframes which will be looked at, for all cameras.
//!
//! A decoder for each camera would cost 30 MiB of picture buffers and a third of its processor time; one that is drained
//! after each keyframe serves cameras in turn.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use gstreamer::ElementFactory;
use gstreamer::prelude::*;

use crate::base::error::Result;
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::source::choice::Choice;
use crate::source::convert::Converter;
use crate::source::decoder::{Decoder, Picture};
use crate::source::tap::Tap;
use crate::source::unit::Unit;

/// Threads, at most: more than this many keyframes at once are not worth more memory.
const MOST: usize = 4;

/// A picture takes a hundredth of this; a thread that is at one for so long hangs, as a driver may.
const HANGS: Duration = Duration::from_secs(15);

/// For the threads to end.
const GRACE: Duration = Duration::from_secs(2);

/// The running threads. Clones share them; they end with the last one.
#[derive(Clone)]
pub struct Decoders(Arc<Pool>);

struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<Thread>>,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

struct Queue {
    /// Seats with a request, each there once.
    waiting: VecDeque<Arc<Seat>>,
    /// Since when each thread has been at its present picture.
    busy: Vec<Option<Instant>>,
    closed: bool,
}

impl Decoders {
    /// Starts `decode-0` and as many more as there are processors, four at most.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start() -> Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
        let queue = Queue { waiting: VecDeque::new(), busy: vec![None; count], closed: false };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), filled: Condvar::new() });
        let pool = Self(Arc::new(Pool { shared: shared.clone(), threads: Mutex::default() }));
        for number in 0..count {
            let shared = shared.clone();
            let thread = thread::spawn(format!("decode-{number}"), move || shared.work(number))?;
            sync::lock(&pool.0.threads).push(thread);
        }
        Ok(pool)
    }

    /// A camera's place in the queue.
    pub(super) fn seat(&self) -> Arc<Seat> {
        Arc::new(Seat { shared: self.0.shared.clone(), state: Mutex::default(), idle: Condvar::new() })
    }

    /// Whether every thread has been at one picture for so long that it will not come back.
    pub fn hang(&self) -> bool {
        let now = Instant::now();
        self.0.shared.lock().busy.iter().all(|since| since.is_some_and(|since| now.duration_since(since) >= HANGS))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.filled.notify_all();
        let deadline = Instant::now() + GRACE;
        let threads = std::mem::take(&mut *sync::lock(&self.threads));
        let left = thread::join_all_until(threads, deadline);
        if left > 0 {
            tracing::warn!(threads = left, "decoders did not end in time and were left behind");
        }
    }
}

/// One camera's place: the newest keyframe that is to be decoded.
pub struct Seat {
    shared: Arc<Shared>,
    state: Mutex<Request>,
    idle: Condvar,
}

#[derive(Default)]
struct Request {
    order: Option<Order>,
    /// It is in the queue, or a thread is at it.
    busy: bool,
}

/// A keyframe, and who wants it.
pub struct Order {
    /// The keyframe.
    pub unit: Unit,
    /// Where its picture goes.
    pub tap: Arc<Tap>,
    /// What decodes it.
    pub choice: Choice,
}

impl Seat {
    /// Asks for a picture, in place of one that nobody has begun to decode. Never blocks.
    pub fn ask(self: &Arc<Self>, order: Order) {
        let counters = order.tap.counters().clone();
        let mut request = self.lock();
        if request.order.replace(order).is_some() {
            counters.frames_skipped.add();
        }
        if !std::mem::replace(&mut request.busy, true) {
            self.shared.push(self.clone());
        }
    }

    /// Waits until nothing is left to decode, for `most` at most; returns whether that is so.
    pub fn wait(&self, most: Duration) -> bool {
        let deadline = Instant::now() + most;
        let mut request = self.lock();
        while request.busy {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            request = sync::wait_timeout(&self.idle, request, left);
        }
        true
    }

    /// After an order has been dealt with: back into the queue if another has come, else idle.
    fn done(self: Arc<Self>) {
        let mut request = self.lock();
        if request.order.is_some() {
            self.shared.push(self.clone());
        } else {
            request.busy = false;
            self.idle.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Request> {
        sync::lock(&self.state)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        sync::lock(&self.queue)
    }

    fn push(&self, seat: Arc<Seat>) {
        self.lock().waiting.push_back(seat);
        self.filled.notify_one();
    }

    fn work(&self, number: usize) {
        let mut bench = Bench::default();
        while let Some(seat) = self.next(number) {
            let order = seat.lock().order.take();
            if let Some(order) = order
                && catch_unwind(AssertUnwindSafe(|| bench.serve(&order))).is_err()
            {
                tracing::error!("a decoder's thread panicked; this is a defect, please report it");
                order.tap.damaged();
                bench = Bench::default();
            }
            seat.done();
            self.lock().busy[number] = None;
        }
    }

    fn next(&self, number: usize) -> Option<Arc<Seat>> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(seat) = queue.waiting.pop_front() {
                queue.busy[number] = Some(Instant::now());
                return Some(seat);
            }
            queue = sync::wait(&self.filled, queue);
        }
    }
}

/// What one thread decodes and converts with.
#[derive(Default)]
struct Bench {
    /// One for each kind, made when it is first asked for.
    decoders: Vec<Decoder>,
    converter: Converter,
}

impl Bench {
    fn serve(&mut self, order: &Order) {
        let Order { unit, tap, choice } = order;
        let factory = match choice.factory(&unit.caps) {
            Ok(factory) => factory,
            Err(fault) => return tap.fail(fault),
        };
        let mut picture = self.decode(unit, &factory);
        if picture.is_some() {
            choice.judge(&factory, true);
        } else if let Some(witness) = choice.witness(&factory, &unit.caps) {
            // A picture that nobody can show is the camera's fault, not the hardware's.
            picture = self.decode(unit, &witness);
            if picture.is_some() {
                choice.judge(&factory, false);
            }
        }
        match picture {
            Some(picture) => tap.picture(&picture, unit.moment, &mut self.converter),
            None => tap.damaged(),
        }
    }

    fn decode(&mut self, unit: &Unit, factory: &ElementFactory) -> Option<Picture> {
        let known = self.decoders.iter().position(|decoder| decoder.factory().name() == factory.name());
        let decoder = match known {
            Some(at) => Ok(self.decoders.swap_remove(at)),
            None => Decoder::start(factory, Some(1)),
        };
        let decoded = decoder.and_then(|mut decoder| {
            let picture = decoder.decode(unit)?;
            // One that showed nothing is not kept: it might show it to the next camera.
            if picture.is_some() {
                self.decoders.push(decoder);
            }
            Ok(picture)
        });
        decoded.unwrap_or_else(|why| {
            tracing::debug!("{why}");
            None
        })
    }
}
