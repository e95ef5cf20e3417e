//! The thread that draws pictures of objects and writes them: the only one that waits for the disk with them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::{sync, whole};
use crate::sink::gallery::sheet::Sheet;
use crate::sink::gallery::teller::Desk;
use crate::sink::gallery::{Draw, Shot};
use crate::sink::shelf::Shelf;
use crate::types::CameraId;

/// Between two tries at a disk that took nothing.
const RETRY: Duration = Duration::from_secs(10);

/// Between two looks at what has to go,
const TIDY: Duration = Duration::from_secs(60);

/// and before that once a sixteenth of what may stay was written.
const GROWS: u64 = 16;

/// Pictures of one look.
pub struct Job {
    /// Whose.
    pub camera: CameraId,
    /// Of the frame, which all share.
    pub bytes: usize,
    /// What is to be drawn, and where it goes.
    pub shots: Vec<(Arc<Sheet>, Shot)>,
}

/// What writer and objects' side know of each other.
#[derive(Debug, Default)]
pub struct Hand {
    /// Bytes of frames on their way.
    bytes: AtomicUsize,
    /// The disk took nothing: not before then.
    retry: Mutex<Option<Instant>>,
}

impl Hand {
    /// Whether the disk is left alone for a while.
    pub fn rests(&self, now: Instant) -> bool {
        sync::lock(&self.retry).is_some_and(|at| now < at)
    }

    /// Whether so many bytes may go on their way; one frame always may.
    pub fn admits(&self, bytes: usize, most: usize) -> bool {
        let waiting = self.bytes.load(Ordering::Acquire);
        waiting == 0 || waiting + bytes <= most
    }

    /// They are on their way.
    pub fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// They have arrived.
    pub fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// All cameras'.
pub struct Writer {
    shelf: Arc<Shelf>,
    draw: Draw,
    desk: Arc<Desk>,
    hand: Arc<Hand>,
    metrics: Metrics,
    /// It was said that pictures cannot be written.
    told: bool,
    tidied: Instant,
    /// Bytes since then.
    grown: u64,
}

impl Writer {
    /// Writes to the shelf what `draw` makes of a shot.
    pub fn new(shelf: Arc<Shelf>, draw: Draw, (desk, hand): (Arc<Desk>, Arc<Hand>), metrics: &Metrics) -> Self {
        Self { shelf, draw, desk, hand, metrics: metrics.clone(), told: false, tidied: Instant::now(), grown: 0 }
    }

    /// Draws and writes until nothing more comes.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            match jobs.recv_timeout(TIDY) {
                Ok(job) => self.step(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.tidied.elapsed() >= TIDY || self.grown > self.shelf.keep_bytes() / GROWS {
                (self.tidied, self.grown) = (Instant::now(), 0);
                self.shelf.tidy();
            }
        }
    }

    fn step(&mut self, job: Job) {
        for (sheet, shot) in job.shots {
            self.desk.work(Some(Instant::now()));
            let counter = match self.take(&sheet, &shot) {
                true => "event_snapshots_written",
                false => "event_snapshots_failed",
            };
            self.metrics.counter(counter, job.camera.as_str()).add();
            self.desk.work(None);
        }
        self.hand.remove(job.bytes);
    }

    /// Whether it is on the disk.
    fn take(&mut self, sheet: &Sheet, shot: &Shot) -> bool {
        if self.hand.rests(Instant::now()) {
            sheet.fail(true);
            return false;
        }
        let jpeg = match drawn(&self.draw, shot) {
            Ok(jpeg) => jpeg,
            Err(error) => {
                tracing::debug!(camera = %shot.frame.camera, "no picture of an object: {}", error.chain());
                sheet.fail(false);
                return false;
            }
        };
        match whole::write(sheet.path(), &jpeg) {
            Ok(()) => {
                sheet.write();
                self.grown += jpeg.len() as u64;
                *sync::lock(&self.hand.retry) = None;
                if std::mem::take(&mut self.told) {
                    tracing::info!("pictures of objects are written again");
                }
                true
            }
            Err(error) => {
                *sync::lock(&self.hand.retry) = Some(Instant::now() + RETRY);
                sheet.fail(true);
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!("pictures of objects cannot be written, and are tried again: {}", error.chain());
                }
                false
            }
        }
    }
}

/// A panic costs its picture.
fn drawn(draw: &Draw, shot: &Shot) -> Result<Vec<u8>> {
    let panicked = |_| Err(Error::new(Kind::Internal, "drawing panicked; this is a defect, please report it"));
    catch_unwind(AssertUnwindSafe(|| draw(shot))).unwrap_or_else(panicked)
}
