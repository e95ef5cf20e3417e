//! The thread that writes one camera's clips: the only one that waits for the disk with them.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::base::error::{Error, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::sink::record::Waiting;
use crate::sink::record::plan::Order;
use crate::sink::record::stamp::{Pattern, Stamper};
use crate::sink::shelf::Shelf;
use crate::sink::video::ClipFile;
use crate::types::{CameraId, Codec, EncodedUnit};

/// Between two tries at a disk that took nothing.
const RETRY: Duration = Duration::from_secs(10);

/// Between two looks at what has to go.
const TIDY: Duration = Duration::from_secs(60);

/// One camera's.
pub struct Writer {
    camera: CameraId,
    shelf: Arc<Shelf>,
    waiting: Arc<Waiting>,
    counters: Counters,
    /// What the file being written is made of.
    wanted: Option<Wanted>,
    open: Option<Open>,
    /// Not before then.
    retry: Option<Instant>,
    /// It was said that clips cannot be written.
    told: bool,
    tidied: Instant,
}

struct Counters {
    written: Counter,
    failed: Counter,
    dropped: Counter,
}

/// A file that is to be written.
struct Wanted {
    /// `None`: it is named after its first picture, for the one that was given it stands for what could not be written.
    name: Option<String>,
    codec: Codec,
    pattern: Pattern,
}

/// A file that is.
struct Open {
    file: ClipFile,
    stamper: Stamper,
}

impl Writer {
    /// Of `camera`, for pictures that were counted into `waiting`.
    pub fn new(camera: CameraId, shelf: Arc<Shelf>, waiting: Arc<Waiting>, metrics: &Metrics) -> Self {
        let counter = |name| metrics.counter(name, camera.as_str());
        let counters =
            Counters { written: counter("clips_written"), failed: counter("clips_failed"), dropped: counter("clip_units_dropped") };
        let tidied = Instant::now();
        Self { camera, shelf, waiting, counters, wanted: None, open: None, retry: None, told: false, tidied }
    }

    /// Obeys until there are no more orders.
    pub fn run(mut self, orders: &Receiver<Order>) {
        loop {
            match orders.recv_timeout(TIDY) {
                Ok(order) => self.step(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.tidied.elapsed() >= TIDY {
                self.tidy();
            }
        }
        self.end();
    }

    fn step(&mut self, order: Order) {
        match order {
            Order::Begin { name, codec, pattern } => {
                self.end();
                self.wanted = Some(Wanted { name: Some(name), codec, pattern });
            }
            Order::Unit(unit) => {
                self.waiting.remove(&unit);
                if let Err(error) = self.write(&unit) {
                    self.fail(&error);
                }
            }
            Order::End => {
                self.end();
                self.wanted = None;
            }
        }
    }

    fn write(&mut self, unit: &EncodedUnit) -> Result<()> {
        if self.open.is_none() && !self.begin(unit)? {
            self.counters.dropped.add();
            return Ok(());
        }
        let Some(Open { file, stamper }) = &mut self.open else { return Ok(()) };
        let stamp = stamper.step(unit.time);
        file.push(unit, stamp.dts, stamp.pts, stamp.lasts)
    }

    /// Opens a file with this picture, if it can begin one and a try is due.
    fn begin(&mut self, unit: &EncodedUnit) -> Result<bool> {
        let Some(wanted) = &mut self.wanted else { return Ok(false) };
        if !unit.key || unit.parameters().is_none() {
            return Ok(false);
        }
        if self.retry.is_some_and(|at| Instant::now() < at) {
            wanted.name = None;
            return Ok(false);
        }
        let name = wanted.name.take().unwrap_or_else(|| unit.captured.compact());
        let path = self.shelf.path(&self.camera, &name);
        self.shelf.hold(&path);
        let opened = ClipFile::open(&path, wanted.codec);
        if opened.is_err() {
            self.shelf.release(&path);
        }
        self.open = Some(Open { file: opened?, stamper: Stamper::new(wanted.pattern) });
        self.tidy();
        Ok(true)
    }

    /// Ends the file that is being written.
    fn end(&mut self) {
        let Some(Open { file, .. }) = self.open.take() else { return };
        let path = file.path().to_owned();
        match file.finish() {
            Ok(()) => {
                self.counters.written.add();
                self.retry = None;
                if std::mem::take(&mut self.told) {
                    tracing::info!(camera = %self.camera, "clips are written again");
                }
            }
            Err(error) => {
                remove_empty(&path);
                self.fail(&error);
            }
        }
        self.shelf.release(&path);
        self.tidy();
    }

    /// A disk that is full or gone: said once, and tried again with the next keyframe after a while. What was written
    /// stays, as far as it goes.
    fn fail(&mut self, error: &Error) {
        if let Some(Open { file, .. }) = self.open.take() {
            let path = file.path().to_owned();
            drop(file);
            remove_empty(&path);
            self.shelf.release(&path);
        }
        self.counters.failed.add();
        self.retry = Some(Instant::now() + RETRY);
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(camera = %self.camera, "clips cannot be written, and are tried again: {}", error.chain());
        }
    }

    fn tidy(&mut self) {
        self.tidied = Instant::now();
        self.shelf.tidy();
    }
}

/// Removes a file that nothing could be read of.
fn remove_empty(path: &Path) {
    if fs::metadata(path).is_ok_and(|meta| meta.len() == 0) {
        fs::remove_file(path).ok();
    }
}
