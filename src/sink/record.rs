//! Clips: what a camera sent while a tracked object was there, as it was encoded, in files of their own.
//!
//! A camera's newest pictures are held in memory; when an object is told of they and all that follow go to the camera's
//! writer, a thread of its own, which alone waits for the disk. Audio is left out.

mod plan;
mod ring;
mod stamp;
mod writer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::base::error::Result;
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::config::RecordConfig;
use crate::sink::shelf::{Shelf, Stock};
use crate::sink::video::check_clips;
use crate::types::{CameraId, Codec, Encoded, EncodedUnit, Event};
use plan::{Order, Plan, Rules};
use writer::Writer;

/// What a camera's pictures may take ahead of a clip: ten seconds at 50 Mbit/s.
const RING_BYTES: usize = 64 << 20;

/// Pictures that wait for a camera's writer, and their bytes: a whole pre-roll, and what comes while the disk is slow.
const WAITING: usize = 4096;
const WAITING_BYTES: usize = 96 << 20;

/// What else may wait: beginnings and ends of files.
const WAITING_WORDS: usize = 64;

/// A clip's name is a time alone.
const FORM: &str = "00000000T000000.000Z.mp4";

/// A camera whose clips are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its id.
    pub camera: CameraId,
    /// How much later than it was first seen an object is told of, about: so much more is held in memory.
    pub lag: Duration,
}

/// Every camera's clips.
pub struct Recorder {
    config: RecordConfig,
    tapes: Mutex<BTreeMap<CameraId, Tape>>,
    /// Those that run, and such as have ended since another camera came.
    writers: Mutex<Vec<(CameraId, Thread)>>,
    shelf: Arc<Shelf>,
    metrics: Metrics,
}

/// One camera's clips, from the side of its stream. Clones share them.
#[derive(Clone)]
pub struct Tape(Arc<Mutex<Desk>>);

struct Desk {
    camera: CameraId,
    plan: Plan,
    /// `None`: nothing more is kept.
    orders: Option<Sender<Order>>,
    waiting: Arc<Waiting>,
    dropped: Counter,
    /// Pictures are dropped up to the next keyframe.
    skips: bool,
    /// It was told that the stream cannot be kept.
    told: bool,
}

/// Pictures on their way to a writer.
#[derive(Debug, Default)]
struct Waiting {
    units: AtomicUsize,
    bytes: AtomicUsize,
}

impl Recorder {
    /// Makes the folders, removes what earlier runs left too much of, and starts a thread `rec-<id>` per camera.
    ///
    /// Counts by camera: `clips_written`, `clips_failed`, `clip_units_dropped` (pictures that belong into a clip, or ahead of
    /// one, and are not in it); and `clips_removed`.
    ///
    /// # Errors
    /// When a folder cannot be made, this installation cannot write MP4, or there is no thread to be had.
    pub fn start(config: RecordConfig, cameras: &[Recorded], metrics: &Metrics) -> Result<Self> {
        check_clips()?;
        let ids: Vec<CameraId> = cameras.iter().map(|one| one.camera.clone()).collect();
        let RecordConfig { keep_for, keep_bytes, .. } = config;
        let stock = Stock { key: "record.dir", dir: config.dir.clone(), form: FORM, keep_for, keep_bytes, removed: "clips_removed" };
        let shelf = Arc::new(Shelf::open(stock, &ids, metrics)?);
        let recorder = Self { config, tapes: Mutex::default(), writers: Mutex::default(), shelf, metrics: metrics.clone() };
        cameras.iter().try_for_each(|camera| recorder.enter(camera))?;
        Ok(recorder)
    }

    /// Keeps clips of a camera from now on; its folder is made with its first clip, where it is not there.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn enter(&self, Recorded { camera, lag }: &Recorded) -> Result<()> {
        let RecordConfig { pre_roll, post_roll, max_clip, .. } = self.config;
        let rules = Rules { pre_roll, lag: *lag, post_roll, max_clip, most_bytes: RING_BYTES };
        let (orders, waits) = bounded(WAITING + WAITING_WORDS);
        let waiting = Arc::<Waiting>::default();
        let writer = Writer::new(camera.clone(), self.shelf.clone(), waiting.clone(), &self.metrics);
        let thread = thread::spawn(format!("rec-{camera}"), move || writer.run(&waits))?;
        let dropped = self.metrics.counter("clip_units_dropped", camera.as_str());
        let desk =
            Desk { camera: camera.clone(), plan: Plan::new(rules), orders: Some(orders), waiting, dropped, skips: false, told: false };
        sync::lock(&self.tapes).insert(camera.clone(), Tape(Arc::new(Mutex::new(desk))));
        let mut writers = sync::lock(&self.writers);
        writers.retain(|(_, thread)| !thread.is_finished());
        writers.push((camera.clone(), thread));
        Ok(())
    }

    /// Ends a camera's file; nothing of it is kept from now on. Waits for no disk.
    pub fn leave(&self, camera: &CameraId) {
        if let Some(tape) = sync::lock(&self.tapes).remove(camera) {
            tape.close();
        }
    }

    /// Where a camera's stream is to go; `None` where nothing of it is kept.
    pub fn tape(&self, camera: &CameraId) -> Option<Tape> {
        sync::lock(&self.tapes).get(camera).cloned()
    }

    /// Notes an event, and says in which file its object is at this moment; `None` where in none. Waits for no disk.
    pub fn event(&self, event: &Event) -> Option<String> {
        let tape = self.tape(&event.camera)?;
        let mut desk = sync::lock(&tape.0);
        // Where the stream cannot be kept there will be no file.
        if desk.told {
            return None;
        }
        let (name, orders) = desk.plan.event(event);
        desk.send(orders);
        Some(self.shelf.path(&event.camera, &name?).to_string_lossy().into_owned())
    }

    /// Ends every file; nothing is kept from now on.
    pub fn close(&self) {
        sync::lock(&self.tapes).values().for_each(Tape::close);
    }

    /// Closes, and waits until `deadline` for what is still to be written; says which camera's was not.
    pub fn finish(&self, deadline: Instant) {
        self.close();
        for (camera, thread) in std::mem::take(&mut *sync::lock(&self.writers)) {
            if !thread.join_until(deadline) {
                tracing::error!(%camera, "a clip was not finished in time; it can be read up to what was written");
            }
        }
    }
}

impl Drop for Recorder {
    /// A thread is joined when its handle is dropped, and ends when there is nothing more to write.
    fn drop(&mut self) {
        self.close();
    }
}

impl Tape {
    /// Takes what comes of the stream; does not wait.
    pub fn take(&self, encoded: Encoded) {
        let mut desk = sync::lock(&self.0);
        let orders = match encoded {
            Encoded::Unit(unit) if matches!(unit.codec, Codec::Other | Codec::Raw) => return desk.unfit(unit.media()),
            Encoded::Unit(unit) => {
                desk.told = false;
                let (orders, dropped) = desk.plan.unit(unit);
                desk.dropped.add_many(dropped);
                orders
            }
            Encoded::Lost => desk.plan.lost(),
        };
        desk.send(orders);
    }

    fn close(&self) {
        let mut desk = sync::lock(&self.0);
        let orders = desk.plan.finish();
        desk.send(orders);
        desk.orders = None;
    }
}

impl Desk {
    fn unfit(&mut self, media: &str) {
        let orders = self.plan.finish();
        self.send(orders);
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(camera = %self.camera, "no clips are kept: the camera sends {media}, and only H.264 and H.265 can be kept as they are; set another codec");
        }
    }

    /// Hands orders on. Where the writer does not keep up pictures are dropped up to the next keyframe.
    fn send(&mut self, orders: Vec<Order>) {
        let Some(sender) = &self.orders else { return };
        for order in orders {
            match &order {
                Order::Unit(unit) => {
                    self.skips = (self.skips && !unit.key) || !self.waiting.admits(unit);
                    if self.skips {
                        self.dropped.add();
                        continue;
                    }
                    self.waiting.add(unit);
                    if let Err(error) = sender.try_send(order)
                        && let Order::Unit(unit) = error.into_inner()
                    {
                        self.waiting.remove(&unit);
                        self.dropped.add();
                        self.skips = true;
                    }
                }
                // An end that is lost is made up for by the next beginning. A beginning that is lost costs its name: what
                // belongs to it is written behind what came before.
                Order::Begin { .. } | Order::End => drop(sender.try_send(order)),
            }
        }
    }
}

impl Waiting {
    fn admits(&self, unit: &EncodedUnit) -> bool {
        self.units.load(Ordering::Acquire) < WAITING && self.bytes.load(Ordering::Acquire) + unit.bytes.len() <= WAITING_BYTES
    }

    fn add(&self, unit: &EncodedUnit) {
        self.units.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(unit.bytes.len(), Ordering::AcqRel);
    }

    fn remove(&self, unit: &EncodedUnit) {
        self.units.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(unit.bytes.len(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
