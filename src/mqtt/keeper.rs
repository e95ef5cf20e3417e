//! The thread that keeps records on disk: saves what is new, deletes what is acknowledged, reads back what was spilled. It
//! alone waits for the disk; a disk that fails leaves the records in memory, and is tried again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Utc;
use crate::base::error::{Error, Result};
use crate::base::thread::{self, Thread};
use crate::mqtt::outbox::{Lane, Spilled};
use crate::mqtt::pending::Desk;
use crate::mqtt::store::{Bounds, Store};

/// What comes within this time, or so many records, go to the disk together.
const GROUP: Duration = Duration::from_millis(200);
pub const GROUP_RECORDS: usize = 64;

/// Records of one transaction, at most.
const MOST: usize = 4096;

/// Between two looks for records that are too old, where nothing else is to be done.
const AGES: Duration = Duration::from_secs(60);

/// Between two tries at a disk that failed.
const RETRY: Duration = Duration::from_secs(10);

/// After so many tries what is on disk alone waits for the next start, and newer records wait for it no longer.
const TRIES: u32 = 6;

/// A clock that differs from the time that has passed by more was set.
const CLOCK_SET: Duration = Duration::from_secs(3600);

/// Finds the lane of a topic; shared with the stages that publish.
pub type Lanes = Arc<dyn Fn(&str) -> Arc<Lane> + Send + Sync>;

/// Opens the store in `folder`, hands its backlog to the desk, and starts the thread `outbox`. `None`: it cannot be used,
/// which is told; what waits is then in memory only.
///
/// Records that `fits` refuses are dropped when they are read back: another start may have had other limits.
///
/// # Errors
/// When there is no thread to be had.
pub fn start(folder: PathBuf, bounds: Bounds, fits: Fits, desk: Arc<Desk>, lanes: Lanes) -> Result<Option<Thread>> {
    let (store, found) = match Store::open(&folder) {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!("messages for the broker are kept in memory only: {}; set mqtt.state_dir", error.chain());
            return Ok(None);
        }
    };
    if let Some(Spilled { records, .. }) = found {
        tracing::info!(records, "messages from before this start wait for the broker");
    }
    desk.lock().outbox().attach(found);
    let now = Instant::now();
    let keeper = Keeper {
        folder,
        bounds,
        fits,
        desk,
        lanes,
        store: Some(store),
        next_try: now,
        tries: 0,
        looked: now,
        begun: (now, Utc::now()),
        clock_set: false,
    };
    thread::spawn("outbox", move || keeper.run()).map(Some)
}

/// Whether a record of this topic and size can be sent.
pub type Fits = Box<dyn Fn(&str, usize) -> bool + Send>;

struct Keeper {
    folder: PathBuf,
    bounds: Bounds,
    fits: Fits,
    desk: Arc<Desk>,
    lanes: Lanes,
    /// `None`: the disk failed.
    store: Option<Store>,
    next_try: Instant,
    /// Tries in a row that failed.
    tries: u32,
    looked: Instant,
    begun: (Instant, Utc),
    /// The clock was set since: ages mean nothing.
    clock_set: bool,
}

impl Keeper {
    fn run(mut self) {
        while self.desk.wait_for_work(GROUP) {
            self.step();
        }
        // What came last.
        self.step();
        let left = self.desk.lock().outbox().waiting().0;
        if left > 0 && self.store.is_some() {
            tracing::info!(records = left, "messages are kept for the next start");
        }
    }

    fn step(&mut self) {
        if self.store.is_none() && !self.reopen() {
            return;
        }
        let (records, deletes) = self.desk.lock().outbox().take(MOST);
        let ages = self.looked.elapsed() >= AGES;
        if !records.is_empty() || !deletes.is_empty() || ages {
            self.looked = Instant::now();
            let bounds = self.bounds();
            let Some(store) = &mut self.store else { return };
            match store.commit(&records, &deletes, bounds, Utc::now(), &*self.lanes) {
                Ok(pruned) => self.desk.lock().outbox().saved(pruned),
                Err(error) => return self.fail(&error, deletes),
            }
        }
        let wanted = {
            let mut pending = self.desk.lock();
            let outbox = pending.outbox();
            outbox.spilled().filter(|_| outbox.wants_load())
        };
        if let Some(wanted) = wanted {
            let Some(store) = &self.store else { return };
            match store.load(wanted, &*self.lanes) {
                Ok((records, left)) => {
                    let (records, refused): (Vec<_>, Vec<_>) =
                        records.into_iter().partition(|record| (self.fits)(&record.lane.topic, record.payload.len()));
                    let mut pending = self.desk.lock();
                    refused.iter().for_each(|record| pending.outbox().refuse(record));
                    pending.outbox().loaded(records, wanted, left);
                    drop(pending);
                    self.desk.bell.notify_one();
                }
                Err(error) => self.fail(&error, Vec::new()),
            }
        }
    }

    /// The bounds; without that of age once the clock was set, as it is on boards that begin without the time: all that
    /// waits would be old at once.
    fn bounds(&mut self) -> Bounds {
        let (at, clock) = self.begun;
        let passed = i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX);
        let apart = (Utc::now().millis() - clock.millis()).saturating_sub(passed).unsigned_abs();
        self.clock_set |= apart > CLOCK_SET.as_millis() as u64;
        if self.clock_set { Bounds { age: Duration::MAX, ..self.bounds } } else { self.bounds }
    }

    fn fail(&mut self, error: &Error, deletes: Vec<u64>) {
        tracing::warn!("messages for the broker are kept in memory only for now: {}", error.chain());
        self.store = None;
        self.next_try = Instant::now() + RETRY;
        self.desk.lock().outbox().detach(deletes);
        self.desk.bell.notify_one();
    }

    fn reopen(&mut self) -> bool {
        if Instant::now() < self.next_try {
            return false;
        }
        self.next_try = Instant::now() + RETRY;
        match Store::open(&self.folder) {
            Ok((store, found)) => {
                let lost = self.desk.lock().outbox().back(found.is_some());
                if lost > 0 {
                    tracing::error!(records = lost, "messages that were on disk only are lost");
                }
                (self.store, self.tries) = (Some(store), 0);
                tracing::info!("messages for the broker are kept on disk again");
                true
            }
            Err(error) => {
                tracing::debug!("{}", error.chain());
                self.tries += 1;
                if self.tries == TRIES {
                    let left = self.desk.lock().outbox().forsake();
                    if left > 0 {
                        tracing::error!(records = left, "messages that are on disk only wait for the next start: {}", error.chain());
                        self.desk.bell.notify_one();
                    }
                }
                false
            }
        }
    }
}
