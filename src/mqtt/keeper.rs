//! The thread that keeps records on disk: saves what is new, deletes what is acknowledged, reads back what was spilled. It
//! alone waits for the disk; a disk that fails leaves the records in memory, and is tried again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::claim::Claim;
use crate::base::clock::Utc;
use crate::base::error::{Error, Result};
use crate::base::thread::{self, Thread};
use crate::mqtt::outbox::{Class, Lane, Why};
use crate::mqtt::pending::Desk;
use crate::mqtt::store::{Batch, Bounds, Loaded, Store};

/// What comes within this time, or so many records, go to the disk together.
const GROUP: Duration = Duration::from_millis(200);
pub const GROUP_RECORDS: usize = 64;

/// Records of one transaction, at most.
const MOST: usize = 4096;

/// Between two looks for records that are too old, where nothing else is to be done.
const AGES: Duration = Duration::from_secs(60);

/// After so many tries what is on disk alone waits for the next start, and newer records wait for it no longer.
const TRIES: u32 = 6;

/// A clock that differs from the time that has passed by more was set.
const CLOCK_SET: Duration = Duration::from_secs(3600);

/// Finds the lane of a topic; shared with the stages that publish.
pub type Lanes = Arc<dyn Fn(&str) -> Arc<Lane> + Send + Sync>;

/// What a keeper is made from.
pub struct Parts {
    /// Where the store is, once no other process has it.
    pub claim: Arc<Claim>,
    /// How much it may hold, by class.
    pub bounds: [Bounds; 2],
    /// Between two tries at a disk that failed, or that could not be used at the start.
    pub retry: Duration,
    /// Records that it refuses are dropped when they are read back: another start may have had other limits.
    pub fits: Fits,
    /// Whose records are kept.
    pub desk: Arc<Desk>,
    /// Finds their lanes.
    pub lanes: Lanes,
}

/// Opens the store, hands its backlog to the desk, and starts the thread `outbox`. A store that cannot be used is told, and
/// tried again; meanwhile what waits is in memory only.
///
/// # Errors
/// When there is no thread to be had.
pub fn start(parts: Parts) -> Result<Thread> {
    let mut keeper = Keeper::new(parts);
    if let Err(error) = keeper.open() {
        keeper.told = true;
        // Of a folder that another process has, whoever claimed it tells.
        if keeper.parts.claim.was_free() {
            tracing::warn!("messages for the broker are kept in memory only for now: {}; set mqtt.state_dir", error.chain());
        }
    }
    thread::spawn("outbox", move || keeper.run())
}

/// Whether a record of this topic and size can be sent.
pub type Fits = Box<dyn Fn(&str, usize) -> bool + Send>;

struct Keeper {
    parts: Parts,
    /// `None`: it cannot be opened.
    store: Option<Store>,
    /// It took nothing the last time; until then it is only read from.
    rests: Option<Instant>,
    /// That it takes nothing was told.
    told: bool,
    /// One try is left.
    ending: bool,
    /// The file that was open last, and how its records are numbered.
    file: Option<(u128, [u64; 2])>,
    next_try: Instant,
    /// Tries in a row to open it, and to read from it, that failed.
    tries: u32,
    unread: u32,
    looked: Instant,
    begun: (Instant, Utc),
    /// The clock was set since: ages mean nothing.
    clock_set: bool,
}

impl Keeper {
    fn new(parts: Parts) -> Self {
        let now = Instant::now();
        Self {
            parts,
            store: None,
            rests: None,
            told: false,
            ending: false,
            file: None,
            next_try: now,
            tries: 0,
            unread: 0,
            looked: now,
            begun: (now, Utc::now()),
            clock_set: false,
        }
    }

    fn run(mut self) {
        while self.parts.desk.wait_for_work(GROUP) {
            self.step();
        }
        // What came last, to a disk that took nothing the last time too.
        (self.rests, self.next_try, self.ending) = (None, Instant::now(), true);
        self.step();
        let left = self.parts.desk.lock().outbox().waiting().0;
        if let Some(store) = self.store.take() {
            if left > 0 {
                tracing::info!(records = left, "messages are kept for the next start");
            }
            store.abandon();
        }
    }

    fn step(&mut self) {
        if self.store.is_none() && !self.reopen() {
            return;
        }
        if self.rests.is_none_or(|until| until <= Instant::now()) {
            self.rests = None;
            self.save();
        }
        if self.ending {
            return;
        }
        Class::ALL.into_iter().for_each(|class| self.load(class));
    }

    /// Saves what is new and deletes what is done with.
    fn save(&mut self) {
        let batches = {
            let mut pending = self.parts.desk.lock();
            Class::ALL.map(|class| {
                let (records, deletes) = pending.outbox().of(class).take(MOST);
                Batch { records, deletes }
            })
        };
        let idle = batches.iter().all(|batch| batch.records.is_empty() && batch.deletes.is_empty());
        if idle && !self.told && self.looked.elapsed() < AGES {
            return;
        }
        self.looked = Instant::now();
        let bounds = self.bounds();
        let Some(store) = &mut self.store else { return };
        match store.commit(batches.each_ref(), bounds, Utc::now(), &*self.parts.lanes) {
            Ok(pruned) => {
                let mut pending = self.parts.desk.lock();
                for (class, pruned) in Class::ALL.into_iter().zip(pruned) {
                    pending.outbox().of(class).takes();
                    pending.outbox().of(class).saved(pruned);
                }
                drop(pending);
                if std::mem::take(&mut self.told) {
                    tracing::info!("messages for the broker are kept on disk again");
                }
            }
            Err(error) => self.fail(&error, batches.map(|batch| batch.deletes)),
        }
    }

    /// Reads back what a class wants.
    fn load(&mut self, class: Class) {
        let wanted = {
            let mut pending = self.parts.desk.lock();
            let outbox = pending.outbox().of(class);
            outbox.spilled().filter(|_| outbox.wants_load())
        };
        let (Some(wanted), Some(store)) = (wanted, &self.store) else { return };
        match store.load(class, wanted, &*self.parts.lanes) {
            Ok(Loaded { records, mut damaged, left }) => {
                if !damaged.is_empty() {
                    tracing::error!(records = damaged.len(), "messages came back from the disk damaged and are dropped");
                }
                let (records, refused): (Vec<_>, Vec<_>) =
                    records.into_iter().partition(|record| (self.parts.fits)(&record.lane.topic, record.payload.len()));
                refused.iter().for_each(|record| record.lane.drop_one(Why::Large));
                damaged.extend(refused.iter().map(|record| record.number));
                let mut pending = self.parts.desk.lock();
                let outbox = pending.outbox().of(class);
                damaged.into_iter().for_each(|number| outbox.discard(number));
                outbox.loaded(records, wanted, left);
                drop(pending);
                self.unread = 0;
                self.parts.desk.bell.notify_one();
            }
            Err(error) => {
                self.fail(&error, [Vec::new(), Vec::new()]);
                self.unreadable(&error);
            }
        }
    }

    /// What can be opened and not read is left alone for a while, and not for ever.
    fn unreadable(&mut self, error: &Error) {
        self.close([Vec::new(), Vec::new()]);
        self.next_try = Instant::now() + self.parts.retry;
        self.unread += 1;
        if self.unread >= TRIES {
            // What is spilled later is worth as many tries.
            self.unread = 0;
            self.forsake(error);
        }
    }

    /// The bounds; without that of age once the clock was set, as it is on boards that begin without the time: all that
    /// waits would be old at once.
    fn bounds(&mut self) -> [Bounds; 2] {
        let (at, clock) = self.begun;
        let passed = i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX);
        let apart = (Utc::now().millis() - clock.millis()).saturating_sub(passed).unsigned_abs();
        self.clock_set |= apart > CLOCK_SET.as_millis() as u64;
        self.parts.bounds.map(|bounds| if self.clock_set { Bounds { age: Duration::MAX, ..bounds } } else { bounds })
    }

    /// The disk failed. A file that cannot be written to may still be read: it is opened anew, for the library does nothing
    /// more with one that failed.
    fn fail(&mut self, error: &Error, deletes: [Vec<u64>; 2]) {
        // Told once, until it works again.
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!("messages for the broker are kept in memory only for now: {}", error.chain());
        }
        self.close(deletes);
        self.rests = Some(Instant::now() + self.parts.retry);
        self.next_try = Instant::now();
        if !self.ending {
            self.reopen();
            self.parts.desk.bell.notify_one();
        }
    }

    fn reopen(&mut self) -> bool {
        if Instant::now() < self.next_try {
            return false;
        }
        let Err(error) = self.open() else {
            self.tries = 0;
            return true;
        };
        tracing::debug!("{}", error.chain());
        self.tries += 1;
        // Also what was saved before and is spilled only now.
        if self.tries >= TRIES {
            self.forsake(&error);
        }
        false
    }

    fn close(&mut self, deletes: [Vec<u64>; 2]) {
        if let Some(store) = self.store.take() {
            store.abandon();
        }
        let mut pending = self.parts.desk.lock();
        Class::ALL.into_iter().zip(deletes).for_each(|(class, deletes)| pending.outbox().of(class).detach(deletes));
    }

    /// What is on disk alone holds up nothing more.
    fn forsake(&self, error: &Error) {
        let mut pending = self.parts.desk.lock();
        let left: usize = Class::ALL.into_iter().map(|class| pending.outbox().of(class).forsake()).sum();
        drop(pending);
        if left > 0 {
            tracing::error!(records = left, "messages that are on disk only wait for the next start: {}", error.chain());
            self.parts.desk.bell.notify_one();
        }
    }

    /// Opens the store and goes on with it where it is the one that was open before. In any other one, what it holds is older
    /// than all that waits in memory.
    fn open(&mut self) -> Result<()> {
        self.next_try = Instant::now() + self.parts.retry;
        self.parts.claim.hold()?;
        let mut store = Store::open(self.parts.claim.folder())?;
        let (mut found, mut lost) = (0, 0);
        let mut pending = self.parts.desk.lock();
        match self.file.filter(|(id, _)| *id == store.id()) {
            Some((_, shifts)) => {
                store.replace(shifts);
                Class::ALL.into_iter().for_each(|class| pending.outbox().of(class).back());
            }
            None => {
                self.rests = None;
                for class in Class::ALL {
                    let outbox = pending.outbox().of(class);
                    let placed = store.place(class, outbox.floor());
                    found += placed.map_or(0, |found| found.records);
                    lost += outbox.attach(placed);
                }
            }
        }
        drop(pending);
        if found > 0 {
            tracing::info!(records = found, "messages from before this start wait for the broker");
        }
        if lost > 0 {
            tracing::error!(records = lost, "messages that were on disk only are lost");
        }
        self.parts.desk.bell.notify_one();
        self.file = Some((store.id(), store.shifts()));
        self.store = Some(store);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::base::error::Kind;
    use crate::base::metrics::Metrics;
    use crate::mqtt::outbox::Limits;
    use crate::mqtt::pending::Pending;

    /// A keeper of records of one lane, four of which have room in memory.
    fn keeper(folder: &std::path::Path) -> (Keeper, Arc<Lane>) {
        let lane = Arc::new(Lane::new("P/a/detections".to_owned(), "a", &Metrics::new()));
        let bounds = Bounds { records: 1000, bytes: 1 << 20, age: Duration::MAX };
        let found = lane.clone();
        let parts = Parts {
            claim: Arc::new(Claim::new(folder)),
            bounds: [bounds; 2],
            retry: Duration::ZERO,
            fits: Box::new(|_, _| true),
            desk: Arc::new(Desk::new(Pending::new("P/status".to_owned(), [Limits { records: 4, bytes: 10_000 }; 2], 1000))),
            lanes: Arc::new(move |_| found.clone()),
        };
        let mut keeper = Keeper::new(parts);
        keeper.open().unwrap();
        (keeper, lane)
    }

    fn spilled(keeper: &Keeper) -> usize {
        keeper.parts.desk.lock().outbox().of(Class::Detections).spilled().map_or(0, |spilled| spilled.records)
    }

    fn record(keeper: &Keeper, lane: &Arc<Lane>, count: usize) {
        for _ in 0..count {
            keeper.parts.desk.lock().record(lane, vec![1], true);
        }
    }

    #[test]
    fn what_is_spilled_once_a_store_is_given_up_holds_up_nothing_either() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (mut keeper, lane) = keeper(&state);
        record(&keeper, &lane, 8);
        keeper.step();
        assert_eq!(spilled(&keeper), 4);
        keeper.close([Vec::new(), Vec::new()]);
        std::fs::remove_dir_all(&state).unwrap();
        std::fs::write(&state, "in the way").unwrap();
        (0..TRIES - 1).for_each(|_| keeper.step());
        assert_eq!(spilled(&keeper), 4);
        keeper.step();
        assert_eq!(spilled(&keeper), 0);
        // The oldest in memory was saved before: it makes room.
        record(&keeper, &lane, 1);
        assert_eq!(spilled(&keeper), 1);
        keeper.step();
        assert_eq!(spilled(&keeper), 0);
    }

    #[test]
    fn each_spill_that_cannot_be_read_is_given_up_after_some_tries() {
        let folder = tempfile::tempdir().unwrap();
        let (mut keeper, lane) = keeper(folder.path());
        let error = Error::new(Kind::Io, "it gives nothing");
        for _ in 0..2 {
            record(&keeper, &lane, 8);
            keeper.step();
            let before = spilled(&keeper);
            assert!(before >= 4, "{before}");
            (0..TRIES - 1).for_each(|_| keeper.unreadable(&error));
            assert_eq!(spilled(&keeper), before);
            keeper.unreadable(&error);
            assert_eq!(spilled(&keeper), 0);
        }
    }
}
