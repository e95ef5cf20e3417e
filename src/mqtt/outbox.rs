//! What waits for the broker: records in the order of their arrival, the newest in memory, the rest of a long backlog on
//! disk only.
//!
//! ```text
//! oldest   head (read back, or under way) · spilled (on disk alone) · tail (newest, not all saved yet)   newest
//! ```
//! A record leaves when the broker has acknowledged it, never earlier; what was handed out and not acknowledged goes out
//! again after `rewind`. What is acknowledged before it was saved never touches the disk. Pure: no lock, no clock, no file.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::base::clock::Utc;
use crate::base::metrics::{Counter, Metrics};
use crate::mqtt::keeper::GROUP_RECORDS;

/// Why a record was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Newer ones needed its place.
    Full,
    /// It had waited for too long.
    Old,
    /// It is larger than a message may be.
    Large,
    /// The daemon stops, and it is kept nowhere.
    Closed,
    /// The broker said that it does not take it, and never will.
    Refused,
}

/// Where a camera's records go, and its counters.
#[derive(Debug)]
pub struct Lane {
    /// The topic.
    pub topic: String,
    /// Records acknowledged by the broker.
    pub published: Counter,
    /// Records given up, for whatever reason.
    pub dropped: Counter,
    reasons: [Counter; 5],
}

impl Lane {
    /// A camera's, to `topic`. Counts `mqtt_published`, `mqtt_dropped`, and the latter by reason as `mqtt_dropped_full`,
    /// `_old`, `_large`, `_closed` and `_refused`.
    pub fn new(topic: String, camera: &str, metrics: &Metrics) -> Self {
        let counter = |name| metrics.counter(name, camera);
        let reasons =
            ["mqtt_dropped_full", "mqtt_dropped_old", "mqtt_dropped_large", "mqtt_dropped_closed", "mqtt_dropped_refused"].map(counter);
        Self { topic, published: counter("mqtt_published"), dropped: counter("mqtt_dropped"), reasons }
    }

    /// Counts a record that is given up.
    pub fn drop_one(&self, why: Why) {
        self.dropped.add();
        self.reasons[why as usize].add();
    }
}

/// How much may wait in memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records.
    pub records: usize,
    /// Bytes of topic and payload, all records together.
    pub bytes: usize,
}

/// Where a store is slower than what comes, so many times the limits are borne with before the oldest are dropped.
const SLOW_STORE: usize = 4;

/// A record in memory.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number, growing with each record, also over restarts.
    pub number: u64,
    /// When it was put here.
    pub at: Utc,
    /// Where it goes.
    pub lane: Arc<Lane>,
    /// The bytes to publish.
    pub payload: Arc<[u8]>,
    /// It is worth a place on disk.
    pub durable: bool,
    /// It was given to the link on this connection.
    handed: bool,
}

impl Record {
    /// As read back from the disk.
    pub fn kept(number: u64, at: Utc, lane: Arc<Lane>, payload: Arc<[u8]>) -> Self {
        Self { number, at, lane, payload, durable: true, handed: false }
    }

    fn size(&self) -> usize {
        self.lane.topic.len() + self.payload.len()
    }
}

/// Records that are on disk and not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spilled {
    /// The oldest one's number; it may be gone.
    pub first: u64,
    /// The newest one's number.
    pub last: u64,
    /// How many.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// The records, and how far each end has come.
#[derive(Debug)]
pub struct Outbox {
    limits: Limits,
    head: VecDeque<Record>,
    spilled: Option<Spilled>,
    tail: VecDeque<Record>,
    /// In memory.
    bytes: usize,
    /// The newest number given out.
    newest: u64,
    /// Whether a store takes records at present.
    keeps: bool,
    /// The newest number that the store was given, and that it has.
    taken: u64,
    saved: u64,
    /// The newest number that was ever given to it: what a failed transaction left there is not known.
    given: u64,
    /// Acknowledged records that the store may have.
    deletes: Vec<u64>,
    /// What has come to be saved or deleted since the store last took.
    fresh: usize,
    wants_load: bool,
}

impl Outbox {
    /// An empty one, without a store.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            head: VecDeque::new(),
            spilled: None,
            tail: VecDeque::new(),
            bytes: 0,
            newest: 0,
            keeps: false,
            taken: 0,
            saved: 0,
            given: 0,
            deletes: Vec::new(),
            fresh: 0,
            wants_load: false,
        }
    }

    /// Adds a record and makes room for it: the oldest that are saved go on on disk alone, and where there is no store the
    /// oldest are dropped and counted. Returns how many were dropped.
    pub fn push(&mut self, lane: &Arc<Lane>, payload: Vec<u8>, at: Utc, durable: bool) -> usize {
        self.newest += 1;
        let record = Record { number: self.newest, at, lane: lane.clone(), payload: payload.into(), durable, handed: false };
        self.bytes += record.size();
        self.fresh += usize::from(durable);
        self.tail.push_back(record);
        self.shrink()
    }

    fn shrink(&mut self) -> usize {
        let mut dropped = 0;
        while self.is_over(1) {
            // What is under way may have arrived already: it stays.
            while self.spilled.is_none() && self.tail.front().is_some_and(|record| record.handed) {
                self.head.extend(self.tail.pop_front());
            }
            let Some(oldest) = self.tail.front() else { break };
            let saved = oldest.durable && oldest.number <= self.saved;
            if self.keeps && oldest.durable && !saved && !self.is_over(SLOW_STORE) {
                break;
            }
            let Some(record) = self.tail.pop_front() else { break };
            self.bytes -= record.size();
            if saved {
                self.spill(&record);
            } else {
                record.lane.drop_one(Why::Full);
                self.forget(record.number);
                dropped += 1;
            }
        }
        dropped
    }

    fn is_over(&self, times: usize) -> bool {
        self.head.len() + self.tail.len() > self.limits.records * times || self.bytes > self.limits.bytes * times
    }

    fn spill(&mut self, record: &Record) {
        let spilled = self.spilled.get_or_insert(Spilled { first: record.number, last: record.number, records: 0, bytes: 0 });
        (spilled.last, spilled.records, spilled.bytes) = (record.number, spilled.records + 1, spilled.bytes + record.size());
    }

    /// The oldest record not yet handed out; it counts as handed out from now on. `None` also while one is read back.
    pub fn next(&mut self) -> Option<&Record> {
        let waits = |records: &VecDeque<Record>| records.iter().position(|record| !record.handed);
        if let Some(index) = waits(&self.head) {
            let record = self.head.get_mut(index)?;
            record.handed = true;
            return Some(record);
        }
        // Nothing newer goes out ahead of what is on disk, also while the disk does not give it.
        if self.spilled.is_some() {
            self.wants_load = self.keeps;
            return None;
        }
        let record = waits(&self.tail).and_then(|index| self.tail.get_mut(index))?;
        record.handed = true;
        Some(record)
    }

    /// The broker has record `number`: it leaves and counts as published.
    pub fn acked(&mut self, number: u64) {
        self.leave(number, |lane| lane.published.add());
    }

    /// The broker will never take record `number`: it leaves and counts as dropped.
    pub fn given_up(&mut self, number: u64, why: Why) {
        self.leave(number, |lane| lane.drop_one(why));
    }

    fn leave(&mut self, number: u64, count: impl FnOnce(&Lane)) {
        let records = if self.head.back().is_some_and(|last| number <= last.number) { &mut self.head } else { &mut self.tail };
        if let Ok(index) = records.binary_search_by_key(&number, |record| record.number)
            && let Some(record) = records.remove(index)
        {
            self.bytes -= record.size();
            count(&record.lane);
            self.forget(number);
        }
    }

    fn forget(&mut self, number: u64) {
        if number <= self.given {
            self.fresh += 1;
            self.deletes.push(number);
        }
    }

    /// The link is lost: everything still here will be handed out again, from the oldest.
    pub fn rewind(&mut self) {
        self.head.iter_mut().chain(&mut self.tail).for_each(|record| record.handed = false);
    }

    /// Whether nothing waits for the broker or its acknowledgement.
    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && self.tail.is_empty() && self.spilled.is_none()
    }

    /// Whether what waits outlives the process.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// How many records wait, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        let (records, bytes) = self.spilled.map_or((0, 0), |spilled| (spilled.records, spilled.bytes));
        (self.head.len() + self.tail.len() + records, self.bytes + bytes)
    }

    /// The end: gives up what no store will keep, counts it, and says how much it was.
    pub fn abandon(&mut self) -> usize {
        let (keeps, saved) = (self.keeps, self.saved);
        let mut lost = 0;
        for records in [&mut self.head, &mut self.tail] {
            records.retain(|record| {
                let kept = record.durable && (keeps || record.number <= saved);
                if !kept {
                    record.lane.drop_one(Why::Closed);
                    lost += 1;
                }
                kept
            });
        }
        lost
    }

    // What follows is the store's side.

    /// A store takes records from now on; what it holds already is older than anything here, for nothing is here yet.
    pub fn attach(&mut self, found: Option<Spilled>) {
        self.keeps = true;
        self.spilled = found;
        self.newest = self.newest.max(found.map_or(0, |found| found.last));
        (self.taken, self.saved, self.given) = (self.newest, self.newest, self.newest);
    }

    /// The store failed: what it was given last is not saved, nor `deletes` deleted, and nothing is given to it until it is
    /// `back`.
    pub fn detach(&mut self, deletes: Vec<u64>) {
        (self.keeps, self.wants_load) = (false, false);
        self.taken = self.saved;
        self.deletes.extend(deletes);
    }

    /// The store stays away: what is on disk alone waits for the next start, and holds up nothing more. Returns how many
    /// records that are.
    pub fn forsake(&mut self) -> usize {
        self.spilled.take().map_or(0, |spilled| spilled.records)
    }

    /// A record that was read back cannot be sent: it is dropped and counted.
    pub fn refuse(&mut self, record: &Record) {
        record.lane.drop_one(Why::Large);
        self.forget(record.number);
    }

    /// The store takes records again. Where it had to begin anew (`whole` is false) what was on disk alone is lost; returns
    /// how many records that were.
    pub fn back(&mut self, whole: bool) -> usize {
        self.keeps = true;
        if whole {
            return 0;
        }
        (self.taken, self.saved, self.given) = (0, 0, 0);
        self.wants_load = false;
        self.spilled.take().map_or(0, |spilled| spilled.records)
    }

    /// Whether the store is to be woken at once: a group is full, or records are to be read back.
    pub fn is_pressing(&self) -> bool {
        self.keeps && (self.fresh >= GROUP_RECORDS || self.wants_load)
    }

    /// Whether records are to be read back.
    pub fn wants_load(&self) -> bool {
        self.wants_load
    }

    /// How many records the store does not have yet.
    pub fn unsaved_count(&self) -> usize {
        self.unsaved().count()
    }

    fn unsaved(&self) -> impl Iterator<Item = &Record> {
        // The newest come last: those that are saved need not be looked at one by one.
        let from = |records: &VecDeque<Record>| records.partition_point(|record| record.number <= self.saved);
        let (head, tail) = (from(&self.head), from(&self.tail));
        self.head.range(head..).chain(self.tail.range(tail..)).filter(|record| record.durable)
    }

    /// What the store is to save and to delete next; `saved` or `detach` follows.
    pub fn take(&mut self, most: usize) -> (Vec<Record>, Vec<u64>) {
        self.fresh = 0;
        let records: Vec<Record> = self.unsaved().take(most).cloned().collect();
        self.taken = self.taken.max(records.last().map_or(0, |record| record.number));
        self.given = self.given.max(self.taken);
        (records, std::mem::take(&mut self.deletes))
    }

    /// What `take` gave is on disk; all up to `pruned` was deleted there to keep its bounds.
    pub fn saved(&mut self, pruned: Option<u64>) {
        self.saved = self.taken;
        if let Some(pruned) = pruned {
            let gone = |record: &Record| record.durable && record.number <= pruned && !record.handed;
            for records in [&mut self.head, &mut self.tail] {
                self.bytes -= records.iter().filter(|record| gone(record)).map(Record::size).sum::<usize>();
                records.retain(|record| !gone(record));
            }
        }
        self.shrink();
    }

    /// What is on disk alone, for the store to read from.
    pub fn spilled(&self) -> Option<Spilled> {
        self.spilled
    }

    /// Records that were read back of `wanted`, the oldest first; `left` of it stays on disk alone, and so does what was
    /// spilled meanwhile.
    pub fn loaded(&mut self, records: Vec<Record>, wanted: Spilled, left: Option<Spilled>) {
        self.wants_load = false;
        self.bytes += records.iter().map(Record::size).sum::<usize>();
        self.head.extend(records);
        let Some(now) = &mut self.spilled else { return };
        let (kept, kept_bytes) = left.map_or((0, 0), |left| (left.records, left.bytes));
        now.records = now.records.saturating_sub(wanted.records.saturating_sub(kept));
        now.bytes = now.bytes.saturating_sub(wanted.bytes.saturating_sub(kept_bytes));
        match left {
            Some(left) => now.first = left.first,
            None if now.last > wanted.last => now.first = wanted.last + 1,
            None => self.spilled = None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn lane() -> Arc<Lane> {
        Arc::new(Lane::new("t".to_owned(), "a", &Metrics::new()))
    }

    fn push(outbox: &mut Outbox, lane: &Arc<Lane>, bytes: usize) -> usize {
        outbox.push(lane, vec![0; bytes], Utc::from_millis(0), true)
    }

    fn numbers(outbox: &mut Outbox) -> Vec<u64> {
        std::iter::from_fn(|| outbox.next().map(|record| record.number)).collect()
    }

    #[test]
    fn without_a_store_the_oldest_are_dropped_first_and_counted() {
        let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 3, bytes: 1000 }));
        let dropped: Vec<usize> = (0..5).map(|_| push(&mut outbox, &lane, 9)).collect();
        assert_eq!(dropped, [0, 0, 0, 1, 1]);
        assert_eq!((numbers(&mut outbox), lane.dropped.get()), (vec![3, 4, 5], 2));
        let mut outbox = Outbox::new(Limits { records: 100, bytes: 30 });
        (0..3).for_each(|_| assert_eq!(push(&mut outbox, &lane, 9), 0));
        assert_eq!(push(&mut outbox, &lane, 19), 2, "bytes bound it too");
        assert_eq!(numbers(&mut outbox), [3, 4]);
    }

    #[test]
    fn what_is_under_way_stays_until_acked_and_comes_again_after_a_loss() {
        let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }));
        (0..4).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
        assert_eq!((outbox.next().unwrap().number, outbox.next().unwrap().number), (1, 2));
        push(&mut outbox, &lane, 1); // full: number 3 goes, not 1 and 2
        outbox.acked(2);
        outbox.rewind();
        assert_eq!(numbers(&mut outbox), [1, 4, 5]);
        assert_eq!((lane.published.get(), lane.dropped.get()), (1, 1));
        outbox.acked(2); // a second acknowledgement changes nothing
        outbox.given_up(2, Why::Refused);
        [1, 4, 5].into_iter().for_each(|number| outbox.acked(number));
        assert!(outbox.is_empty() && outbox.bytes == 0 && lane.published.get() == 4);
    }

    /// Saves all, and returns the numbers that the store then has.
    fn save(outbox: &mut Outbox, disk: &mut Vec<u64>) {
        let (records, deletes) = outbox.take(1000);
        disk.extend(records.iter().map(|record| record.number));
        disk.retain(|number| !deletes.contains(number));
        outbox.saved(None);
    }

    #[test]
    fn with_a_store_nothing_is_dropped_and_all_comes_in_order() {
        let (lane, mut outbox, mut disk) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }), Vec::new());
        outbox.attach(None);
        for _ in 0..20 {
            assert_eq!(push(&mut outbox, &lane, 1), 0);
            save(&mut outbox, &mut disk);
        }
        assert_eq!((outbox.waiting(), outbox.tail.len(), disk.len()), ((20, 40), 4, 20));
        let mut seen = Vec::new();
        while !outbox.is_empty() {
            match outbox.next().map(|record| record.number) {
                Some(number) => {
                    seen.push(number);
                    outbox.acked(number);
                    save(&mut outbox, &mut disk);
                }
                None => {
                    let wanted = outbox.spilled().unwrap();
                    let Spilled { first, last, records, bytes } = wanted;
                    assert!(outbox.wants_load());
                    let some: Vec<u64> = disk.iter().copied().filter(|number| (first..=last).contains(number)).take(3).collect();
                    let left = (some.len() < records).then(|| Spilled {
                        first: some.last().unwrap() + 1,
                        last,
                        records: records - some.len(),
                        bytes: bytes - 2 * some.len(),
                    });
                    let read = some.into_iter().map(|number| Record::kept(number, Utc::from_millis(0), lane.clone(), [0].into()));
                    outbox.loaded(read.collect(), wanted, left);
                }
            }
        }
        assert_eq!((seen, disk, outbox.bytes), ((1..=20).collect(), vec![], 0));
    }

    #[test]
    fn what_is_acknowledged_before_it_was_saved_never_touches_the_disk() {
        let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }));
        outbox.attach(None);
        push(&mut outbox, &lane, 1);
        assert_eq!(numbers(&mut outbox), [1]);
        outbox.acked(1);
        assert_eq!(outbox.take(9).1, Vec::<u64>::new());
        // Acknowledged while it was being saved, it is deleted afterwards.
        push(&mut outbox, &lane, 1);
        assert_eq!((numbers(&mut outbox), outbox.take(9).0.len()), (vec![2], 1));
        outbox.acked(2);
        outbox.saved(None);
        assert_eq!(outbox.take(9).1, [2]);
    }

    #[test]
    fn a_new_start_goes_on_behind_what_is_on_disk() {
        let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }));
        let found = Spilled { first: 5, last: 9, records: 3, bytes: 30 };
        outbox.attach(Some(found));
        push(&mut outbox, &lane, 1);
        assert_eq!(outbox.next().map(|record| record.number), None, "the oldest are read back first");
        push(&mut outbox, &lane, 1);
        assert_eq!(outbox.take(9).0.iter().map(|record| record.number).collect::<Vec<_>>(), [10, 11]);
        outbox.loaded(vec![], found, None);
        assert_eq!(numbers(&mut outbox), [10, 11]);
    }

    #[test]
    fn without_its_store_it_drops_the_oldest_and_goes_on_when_it_is_back() {
        let (lane, mut outbox, mut disk) = (lane(), Outbox::new(Limits { records: 2, bytes: 1000 }), Vec::new());
        outbox.attach(None);
        (0..2).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
        outbox.take(9);
        outbox.detach(Vec::new());
        assert_eq!(push(&mut outbox, &lane, 1), 1);
        assert_eq!(outbox.back(true), 0);
        push(&mut outbox, &lane, 1);
        save(&mut outbox, &mut disk);
        assert_eq!((disk, lane.dropped.get()), (vec![2, 3, 4], 1));
    }

    #[test]
    fn what_is_spilled_while_others_are_read_back_is_not_forgotten() {
        let (lane, mut outbox, mut disk) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }), Vec::new());
        outbox.attach(None);
        (0..4).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
        save(&mut outbox, &mut disk);
        push(&mut outbox, &lane, 1);
        assert!(outbox.next().is_none(), "the first is on disk alone");
        let wanted = outbox.spilled().unwrap();
        push(&mut outbox, &lane, 1);
        outbox.loaded(vec![Record::kept(1, Utc::from_millis(0), lane.clone(), [0].into())], wanted, None);
        assert_eq!(numbers(&mut outbox), [1]);
        assert_eq!(outbox.spilled().map(|spilled| (spilled.first, spilled.last, spilled.records)), Some((2, 2, 1)));
        assert!(outbox.is_pressing());
    }

    #[test]
    fn a_disk_that_fails_for_a_while_loses_nothing_that_it_had() {
        let (lane, mut outbox, mut disk) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }), Vec::new());
        outbox.attach(None);
        (0..4).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
        save(&mut outbox, &mut disk);
        outbox.detach(Vec::new());
        (0..2).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0, "the oldest are on disk"));
        assert!(outbox.next().is_none() && !outbox.is_pressing(), "in order, and without spinning");
        assert_eq!((outbox.back(true), outbox.take(9).1), (0, vec![]));
        assert_eq!(outbox.spilled().map(|spilled| (spilled.first, spilled.last)), Some((1, 2)));
        outbox.detach(Vec::new());
        assert_eq!((outbox.forsake(), numbers(&mut outbox)), (2, vec![3, 4, 5, 6]));
    }

    #[test]
    fn at_the_end_what_nobody_keeps_counts_as_dropped() {
        let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 9, bytes: 1000 }));
        (0..3).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
        outbox.acked(1);
        assert_eq!((outbox.abandon(), lane.dropped.get(), lane.published.get()), (2, 2, 1));
        outbox.attach(None);
        push(&mut outbox, &lane, 1);
        outbox.push(&lane, vec![1], Utc::from_millis(0), false);
        assert_eq!((outbox.abandon(), outbox.waiting().0), (1, 1), "what a store keeps is not lost");
    }
}
