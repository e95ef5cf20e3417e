//! Pictures of tracked objects as files, one an object, `DIR/<camera>/<time>-<digits>.jpg`: the best frame that it was seen on.
//!
//! ```text
//! results: frame and objects → see → which frames are better → queue → thread "obj-files" draws, and alone waits for the disk
//!          event ──────────→ tell → a queue per camera → thread "obj-events": once the picture is written, or after a while
//!                                                                             without it → whoever is told of events
//! ```
//! So a picture is on the disk before the event that names it; and a disk that hangs holds up an event for two seconds at
//! most, none behind another, and the results thread never.

mod merit;
mod sheet;
mod teller;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use uuid::Uuid;

use crate::base::error::Result;
use crate::base::metrics::Metrics;
use crate::base::thread::{self, Thread};
use crate::config::GalleryConfig;
use crate::sink::shelf::{Shelf, Stock};
use crate::types::{Box01, CameraId, Event, EventKind, Frame, Track};
use merit::{BETTER, merit};
use sheet::Sheet;
use teller::{Desk, Told, Waiting};
use writer::{Hand, Job, Writer};

/// A name is the time at which an object was first seen, and eight digits by chance: no label and no id reaches the disk.
const FORM: &str = "00000000T000000.000Z-xxxxxxxx.jpg";

/// Looks whose pictures wait to be written, and the bytes of their frames.
const WAITING: usize = 32;
const WAITING_BYTES: usize = 128 << 20;

/// An object as a frame shows it.
#[derive(Clone, Debug)]
pub struct Shot {
    /// The frame.
    pub frame: Frame,
    /// As the model wrote it.
    pub label: Arc<str>,
    /// 0..1.
    pub score: f32,
    /// Where it is.
    pub box01: Box01,
}

/// Makes the JPEG of a shot.
pub type Draw = Box<dyn Fn(&Shot) -> Result<Vec<u8>> + Send>;

/// Takes an event, in each camera's order.
pub type Tell = Box<dyn FnMut(&Event) + Send>;

/// The folder, ready to be written to.
pub struct Rooms(Arc<Shelf>);

impl Rooms {
    /// Makes the folders, and removes what earlier runs left too much of.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(config: &GalleryConfig, cameras: &[CameraId], metrics: &Metrics) -> Result<Self> {
        let GalleryConfig { keep_for, keep_bytes, .. } = *config;
        let removed = "event_snapshots_removed";
        let stock = Stock { key: "events.snapshots.dir", dir: config.dir.clone(), form: FORM, keep_for, keep_bytes, removed };
        Ok(Self(Arc::new(Shelf::open(stock, cameras, metrics)?)))
    }
}

/// Every camera's objects and their pictures.
pub struct Gallery {
    shelf: Arc<Shelf>,
    objects: HashMap<(CameraId, Arc<str>), Object>,
    hand: Arc<Hand>,
    /// `None`: nothing more is written.
    jobs: Option<Sender<Job>>,
    desk: Arc<Desk>,
    metrics: Metrics,
    threads: Vec<(&'static str, Thread)>,
}

/// An object that is there.
struct Object {
    sheet: Arc<Sheet>,
    /// The merit of the best picture that was handed over.
    best: Option<f32>,
}

impl Gallery {
    /// Starts the threads `obj-files` and `obj-events`.
    ///
    /// Counts by camera: `event_snapshots_written`, `event_snapshots_failed` (could not be drawn, or the disk did not take it),
    /// `event_snapshots_dropped` (the disk did not keep up), `events_without_snapshot` (objects whose `new` names none) and
    /// `events_dropped`; and `event_snapshots_removed`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(rooms: Rooms, draw: Draw, tell: Tell, metrics: &Metrics) -> Result<Self> {
        let shelf = rooms.0;
        let (jobs, waits) = bounded(WAITING);
        let (desk, hand) = (Arc::<Desk>::default(), Arc::<Hand>::default());
        let writer = Writer::new(shelf.clone(), draw, (desk.clone(), hand.clone()), metrics);
        let told = Told { shelf: shelf.clone(), tell, metrics: metrics.clone() };
        let mut gallery = Self {
            shelf,
            objects: HashMap::new(),
            hand,
            jobs: Some(jobs),
            desk: desk.clone(),
            metrics: metrics.clone(),
            threads: Vec::new(),
        };
        gallery.threads.push(("obj-files", thread::spawn("obj-files", move || writer.run(&waits))?));
        gallery.threads.push(("obj-events", thread::spawn("obj-events", move || teller::run(&desk, told))?));
        Ok(gallery)
    }

    /// Takes in which of the objects that were told of, or are about to be, a look saw: those that it shows better than any
    /// before get a new picture. Waits for no disk.
    pub fn see<'t>(&mut self, frame: &Frame, tracks: impl Iterator<Item = &'t Track>) {
        if self.hand.rests(Instant::now()) {
            return;
        }
        let mut shots: Vec<(Arc<Sheet>, Shot)> = Vec::new();
        let mut merits: Vec<(Arc<str>, f32)> = Vec::new();
        for track in tracks {
            let now = merit(track.score, track.box01);
            let key = (frame.camera.clone(), track.id.clone());
            if !self.objects.contains_key(&key) {
                let sheet = Arc::new(Sheet::new(self.shelf.path(&frame.camera, &self.name(track))));
                self.shelf.hold(sheet.path());
                self.objects.insert(key.clone(), Object { sheet, best: None });
            }
            let Some(object) = self.objects.get(&key) else { continue };
            if object.sheet.failed() || object.best.is_none_or(|best| now > best * BETTER) {
                let shot = Shot { frame: frame.clone(), label: track.label.clone(), score: track.score, box01: track.box01 };
                shots.push((object.sheet.clone(), shot));
                merits.push((track.id.clone(), now));
            }
        }
        if shots.is_empty() {
            return;
        }
        let count = shots.len() as u64;
        if self.offer(frame, shots) {
            for (id, now) in merits {
                if let Some(object) = self.objects.get_mut(&(frame.camera.clone(), id)) {
                    object.best = Some(now);
                }
            }
        } else {
            self.metrics.counter("event_snapshots_dropped", frame.camera.as_str()).add_many(count);
        }
    }

    /// Hands pictures to the writer; whether there was room.
    fn offer(&self, frame: &Frame, shots: Vec<(Arc<Sheet>, Shot)>) -> bool {
        let bytes = frame.image.as_raw().len();
        let Some(jobs) = self.jobs.as_ref().filter(|_| self.hand.admits(bytes, WAITING_BYTES)) else { return false };
        // Before they are handed over, or the writer could be done first.
        shots.iter().for_each(|(sheet, _)| sheet.ask());
        self.hand.add(bytes);
        let sent = jobs.try_send(Job { camera: frame.camera.clone(), bytes, shots });
        if let Err(error) = sent {
            error.into_inner().shots.iter().for_each(|(sheet, _)| sheet.withdraw());
            self.hand.remove(bytes);
            return false;
        }
        true
    }

    /// A name that no other object that is there has. A file of an earlier one with the same time has other digits, but for
    /// one chance in four thousand million.
    fn name(&self, track: &Track) -> String {
        loop {
            let name = format!("{}-{:08x}", track.start.compact(), Uuid::new_v4().as_fields().0);
            if !self.objects.values().any(|object| object.sheet.path().file_stem().is_some_and(|stem| *stem == *name)) {
                return name;
            }
        }
    }

    /// Has an event told once the picture of its object is on the disk, with the picture's path; or after a while without.
    pub fn tell(&mut self, event: Event) {
        let key = (event.camera.clone(), event.track.id.clone());
        let sheet = match event.kind {
            EventKind::End => self.objects.remove(&key).map(|object| object.sheet),
            EventKind::New | EventKind::Update => self.objects.get(&key).map(|object| object.sheet.clone()),
        };
        let camera = event.camera.clone();
        if !self.desk.put(Waiting::new(event, sheet, Instant::now())) {
            self.metrics.counter("events_dropped", camera.as_str()).add();
        }
    }

    /// Takes nothing more in; what waits is still written and told.
    pub fn close(&mut self) {
        self.jobs = None;
        self.desk.close();
    }

    /// Closes, and waits until `deadline` for what is still to be written and told.
    pub fn finish(mut self, deadline: Instant) {
        self.close();
        for (name, thread) in std::mem::take(&mut self.threads) {
            if !thread.join_until(deadline) {
                tracing::error!(thread = name, "pictures of objects were not written in time");
            }
        }
    }
}

impl Drop for Gallery {
    /// A thread is joined when its handle is dropped, and ends when there is nothing more to do.
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
