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
use crate::mqtt::topic::is_events;

/// Why a record was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// It did not come back from the disk as it was put there.
    Damaged,
}

/// Records of one class go out in the order of their coming; the other class does not hold them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// What happened: few, and each of them counts.
    Events,
    /// What was seen on each frame: many.
    Detections,
}

impl Class {
    /// Both, in the order in which they index what is there once for each.
    pub const ALL: [Self; 2] = [Self::Events, Self::Detections];

    /// That of the records on `topic`.
    pub fn of(topic: &str) -> Self {
        if is_events(topic) { Self::Events } else { Self::Detections }
    }
}

/// Where a camera's records go, and its counters.
#[derive(Debug)]
pub struct Lane {
    /// The topic.
    pub topic: String,
    /// Its class.
    pub class: Class,
    /// Records acknowledged by the broker.
    pub published: Counter,
    /// Records given up, for whatever reason.
    pub dropped: Counter,
    reasons: [Counter; 6],
}

impl Lane {
    /// A camera's, to `topic`. Counts `mqtt_published`, `mqtt_dropped`, and the latter by reason as `mqtt_dropped_full`,
    /// `_old`, `_large`, `_closed`, `_refused` and `_damaged`.
    pub fn new(topic: String, camera: &str, metrics: &Metrics) -> Self {
        let counter = |name| metrics.counter(name, camera);
        let reasons = [
            "mqtt_dropped_full",
            "mqtt_dropped_old",
            "mqtt_dropped_large",
            "mqtt_dropped_closed",
            "mqtt_dropped_refused",
            "mqtt_dropped_damaged",
        ]
        .map(counter);
        let class = Class::of(&topic);
        Self { topic, class, published: counter("mqtt_published"), dropped: counter("mqtt_dropped"), reasons }
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
    /// Its number, growing with each record; older ones that are found on disk have lower numbers.
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
    /// Whether a store takes records at present, and whether it gives them: one that is full still does.
    keeps: bool,
    reads: bool,
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
    /// An empty one, without a store; its records are numbered from behind `base`.
    pub fn new(limits: Limits, base: u64) -> Self {
        Self {
            limits,
            head: VecDeque::new(),
            spilled: None,
            tail: VecDeque::new(),
            bytes: 0,
            newest: base,
            keeps: false,
            reads: false,
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

    /// The oldest record not yet handed out, if it `may` go, by its number; it counts as handed out from now on. `None` also
    /// while one is read back.
    pub fn next(&mut self, may: impl FnOnce(u64) -> bool) -> Option<&Record> {
        let waits = |records: &VecDeque<Record>| records.iter().position(|record| !record.handed);
        let record = if let Some(index) = waits(&self.head) {
            self.head.get_mut(index)?
        } else if self.spilled.is_some() {
            // Nothing newer goes out ahead of what is on disk, also while the disk does not give it.
            self.wants_load = self.reads;
            return None;
        } else {
            waits(&self.tail).and_then(|index| self.tail.get_mut(index))?
        };
        record.handed = may(record.number);
        record.handed.then_some(record)
    }

    /// The newest number given out.
    pub fn newest(&self) -> u64 {
        self.newest
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

    /// The number below all that is here: what a store holds that was not here before is numbered up to it.
    pub fn floor(&self) -> u64 {
        let oldest = |records: &VecDeque<Record>| records.front().map(|record| record.number - 1);
        oldest(&self.head).into_iter().chain(oldest(&self.tail)).min().unwrap_or(self.newest)
    }

    /// A store takes records from now on that was not here before. What it holds is older than anything here, and goes out
    /// first. What was on disk alone in another one is lost; returns how many records that were.
    pub fn attach(&mut self, found: Option<Spilled>) -> usize {
        let lost = self.forsake();
        let floor = self.floor();
        // What is found comes ahead of what is under way, should that have to go out again.
        self.head.append(&mut self.tail);
        std::mem::swap(&mut self.head, &mut self.tail);
        (self.spilled, self.wants_load, self.keeps, self.reads) = (found, false, true, true);
        (self.taken, self.saved, self.given) = (floor, floor, floor);
        self.deletes.clear();
        self.fresh = self.unsaved().count();
        lost
    }

    /// The store failed: what it was given last is not saved, nor `deletes` deleted. Until it is `back` nothing is read from
    /// it, and until it `takes` records again the oldest are dropped for want of room.
    pub fn detach(&mut self, deletes: Vec<u64>) {
        (self.keeps, self.reads, self.wants_load) = (false, false, false);
        self.taken = self.saved;
        self.deletes.extend(deletes);
    }

    /// The store stays away: what is on disk alone waits for the next start, and holds up nothing more. Returns how many
    /// records that are.
    pub fn forsake(&mut self) -> usize {
        self.spilled.take().map_or(0, |spilled| spilled.records)
    }

    /// Record `number`, which the store has, is not worth its place there: it is deleted next.
    pub fn discard(&mut self, number: u64) {
        self.forget(number);
    }

    /// The store is there again, with what it had; whether it takes more is to be seen.
    pub fn back(&mut self) {
        self.reads = true;
    }

    /// The store takes records again.
    pub fn takes(&mut self) {
        self.keeps = true;
    }

    /// Whether the store is to be woken at once: a group is full, or records are to be read back.
    pub fn is_pressing(&self) -> bool {
        self.wants_load || self.keeps && self.fresh >= GROUP_RECORDS
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
mod tests;
