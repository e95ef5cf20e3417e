//! What was seen, an object a row, in an SQLite file: for who looks back.
//!
//! ```text
//! whoever tells of events → put → queue → thread "history": a transaction for what is there → file ← Reader, a connection of its own
//! ```
//! Only the thread waits for the disk. What the disk does not take waits in memory, the newest of each object, and is tried again; a
//! file that is damaged is moved aside, and another one begun.

mod reader;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::base::clock::Utc;
use crate::base::error::Result;
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::config::HistoryConfig;
use crate::types::{Box01, Event, EventKind};
use table::{Fault, Table};

pub use reader::{Page, Query, Reader};

/// Events that wait for the thread.
const WAITING: usize = 4096;

/// Objects whose newest state waits for the disk, and those of one transaction.
const PENDING: usize = 10_000;
const BATCH: usize = 512;

/// Between two tries at a disk that takes nothing.
const RETRY: Duration = Duration::from_secs(10);

/// Between two looks for rows that are too old.
const TIDY: Duration = Duration::from_secs(3600);

/// An object as its newest event tells of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Names the object.
    pub track_id: String,
    /// On which camera.
    pub camera: String,
    /// As the model wrote it.
    pub label: String,
    /// When it was first seen.
    pub start: Utc,
    /// When it was last seen.
    pub seen: Utc,
    /// Whether it is gone.
    pub ended: bool,
    /// Of the newest detection, 0..1.
    pub score: f32,
    /// The best so far, 0..1.
    pub top_score: f32,
    /// The zones it has been in, in the order of entering.
    pub zones: Vec<String>,
    /// Whether it stands still.
    pub stationary: bool,
    /// Where it was last seen.
    pub box01: Box01,
    /// Why the newest event was told.
    pub reason: String,
    /// Path of its picture.
    pub snapshot: Option<String>,
    /// Path of the first clip that it is in.
    pub clip: Option<String>,
}

impl Entry {
    /// What an event tells.
    pub fn of(event: &Event) -> Self {
        let track = &event.track;
        Self {
            track_id: track.id.to_string(),
            camera: event.camera.to_string(),
            label: track.label.to_string(),
            start: track.start,
            seen: track.last,
            ended: event.kind == EventKind::End,
            score: track.score,
            top_score: track.top_score,
            zones: track.entered_zones.iter().map(ToString::to_string).collect(),
            stationary: track.stationary,
            box01: track.box01,
            reason: event.reason.name().to_owned(),
            snapshot: event.snapshot.clone(),
            clip: event.clip.clone(),
        }
    }

    /// The same with what only an earlier event of the object told: the first clip, and a picture that the newest does not name.
    pub fn after(mut self, earlier: &Self) -> Self {
        self.clip = earlier.clip.clone().or(self.clip);
        self.snapshot = self.snapshot.or_else(|| earlier.snapshot.clone());
        self
    }
}

/// The file, from the side of those who tell. Clones share it.
#[derive(Clone)]
pub struct History {
    file: PathBuf,
    /// `None`: nothing more is taken.
    entries: Arc<Mutex<Option<Sender<Entry>>>>,
    thread: Arc<Mutex<Option<Thread>>>,
    /// Another number: another file has taken the place of the one before.
    file_number: Arc<AtomicU64>,
    dropped: Counter,
}

impl History {
    /// Starts the thread `history`; a file that cannot be used is told of, and tried again.
    ///
    /// Counts of all: `history_written` (rows, each time that one is written), `history_dropped` (events that found no room),
    /// `history_failed` (tries that the disk did not take), `history_damaged` (files that were moved aside), `history_removed` (rows
    /// that were too old).
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(config: &HistoryConfig, metrics: &Metrics) -> Result<Self> {
        let (send, entries) = bounded(WAITING);
        let file_number = Arc::<AtomicU64>::default();
        let dropped = metrics.counter("history_dropped", "all");
        let writer = Writer::new(config, file_number.clone(), metrics);
        let thread = thread::spawn("history", move || writer.run(&entries))?;
        Ok(Self {
            file: config.file.clone(),
            entries: Arc::new(Mutex::new(Some(send))),
            thread: Arc::new(Mutex::new(Some(thread))),
            file_number,
            dropped,
        })
    }

    /// Takes in what an event tells; waits for nobody.
    pub fn put(&self, entry: Entry) {
        let taken = sync::lock(&self.entries).as_ref().is_some_and(|entries| entries.try_send(entry).is_ok());
        if !taken {
            self.dropped.add();
        }
    }

    /// For who looks back.
    pub fn reader(&self) -> Reader {
        Reader::new(self.file.clone(), self.file_number.clone())
    }

    /// Writes what is there, and ends; no later than `deadline`.
    pub fn finish(&self, deadline: Instant) {
        drop(sync::lock(&self.entries).take());
        let thread = sync::lock(&self.thread).take();
        if thread.is_some_and(|thread| !thread.join_until(deadline)) {
            tracing::error!("the history of objects was not written in time");
        }
    }
}

struct Writer {
    file: PathBuf,
    keep_for: Duration,
    table: Option<Table>,
    pending: BTreeMap<String, Entry>,
    /// Rows of earlier runs were closed: what was there when they ended is gone.
    closed: bool,
    told: bool,
    tidied: Option<Instant>,
    file_number: Arc<AtomicU64>,
    counts: Counts,
}

struct Counts {
    written: Counter,
    dropped: Counter,
    failed: Counter,
    damaged: Counter,
    removed: Counter,
}

impl Writer {
    fn new(config: &HistoryConfig, file_number: Arc<AtomicU64>, metrics: &Metrics) -> Self {
        let count = |name| metrics.counter(name, "all");
        let counts = Counts {
            written: count("history_written"),
            dropped: count("history_dropped"),
            failed: count("history_failed"),
            damaged: count("history_damaged"),
            removed: count("history_removed"),
        };
        Self {
            file: config.file.clone(),
            keep_for: config.keep_for,
            table: None,
            pending: BTreeMap::new(),
            closed: false,
            told: false,
            tidied: None,
            file_number,
            counts,
        }
    }

    fn run(mut self, entries: &Receiver<Entry>) {
        let mut wait = self.work();
        loop {
            match entries.recv_timeout(wait) {
                Ok(entry) => self.take(entry),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            entries.try_iter().take(BATCH).for_each(|entry| self.take(entry));
            // A disk that takes nothing is not asked at each event.
            wait = if self.told && wait < RETRY && !self.pending.is_empty() { self.rest(entries) } else { self.work() };
        }
        self.work();
    }

    /// Takes in what comes until the disk is tried again.
    fn rest(&mut self, entries: &Receiver<Entry>) -> Duration {
        let until = Instant::now() + RETRY;
        while let Ok(entry) = entries.recv_deadline(until) {
            self.take(entry);
        }
        self.work()
    }

    fn take(&mut self, entry: Entry) {
        if let Some(earlier) = self.pending.get_mut(&entry.track_id) {
            *earlier = entry.after(earlier);
        } else if self.pending.len() < PENDING {
            self.pending.insert(entry.track_id.clone(), entry);
        } else {
            self.counts.dropped.add();
        }
    }

    /// Writes what waits; returns after what time there is something to be done, at the latest.
    fn work(&mut self) -> Duration {
        let mut tried = self.write();
        if let Err(Fault::Damaged(why)) = &tried {
            tried = self.begin_anew(why).and_then(|()| self.write());
        }
        match tried {
            Ok(()) => {
                if std::mem::replace(&mut self.told, false) {
                    tracing::info!("the history of objects is written again");
                }
                TIDY
            }
            Err(fault) => {
                self.counts.failed.add();
                self.table = None;
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!("events.database {} is not written for now: {fault}", self.file.display());
                }
                RETRY - Duration::from_millis(1)
            }
        }
    }

    fn write(&mut self) -> std::result::Result<(), Fault> {
        let table = match &mut self.table {
            Some(table) => table,
            none => none.insert(Table::open(&self.file)?),
        };
        if !self.closed {
            table.close_all()?;
            self.closed = true;
        }
        while !self.pending.is_empty() {
            let batch: Vec<&Entry> = self.pending.values().take(BATCH).collect();
            table.write(&batch)?;
            self.counts.written.add_many(batch.len() as u64);
            let done: Vec<String> = batch.iter().map(|entry| entry.track_id.clone()).collect();
            done.iter().for_each(|id| drop(self.pending.remove(id)));
        }
        if self.tidied.is_none_or(|at| at.elapsed() >= TIDY) {
            let age = i64::try_from(self.keep_for.as_millis()).unwrap_or(i64::MAX);
            let removed = table.remove_before(Utc::from_millis(Utc::now().millis().saturating_sub(age)))?;
            self.counts.removed.add_many(removed);
            self.tidied = Some(Instant::now());
        }
        Ok(())
    }

    /// Moves a damaged file aside: what can be saved of it is for a person to find out.
    fn begin_anew(&mut self, why: &str) -> std::result::Result<(), Fault> {
        self.table = None;
        let aside = beside(&self.file, &format!(".damaged-{}", Utc::now().compact()));
        std::fs::rename(&self.file, &aside).map_err(|error| Fault::Other(format!("it is damaged and cannot be moved aside: {error}")))?;
        for end in ["-wal", "-shm"] {
            // Of the old file; there need not be any.
            std::fs::rename(beside(&self.file, end), beside(&aside, end)).ok();
        }
        self.counts.damaged.add();
        self.file_number.fetch_add(1, Ordering::AcqRel);
        tracing::warn!("events.database {} is damaged and was moved to {}: {why}", self.file.display(), aside.display());
        Ok(())
    }
}

/// The path with something behind its name.
fn beside(file: &Path, end: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(end);
    name.into()
}

#[cfg(test)]
mod tests;
