//! The ring of records that wait for the broker: bounded in number and bytes, oldest dropped first, in order of arrival.
//!
//! A record leaves it only when the broker has acknowledged it; what was sent but not acknowledged is sent again after
//! `rewind`. Pure: no lock, no clock, no thread.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::base::metrics::Counter;

/// Where a camera's records go, and its counters.
#[derive(Debug)]
pub struct Lane {
    /// The topic.
    pub topic: String,
    /// Records acknowledged by the broker.
    pub published: Counter,
    /// Records given up: pushed out by newer ones, too large, or left over at the end.
    pub dropped: Counter,
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records.
    pub records: usize,
    /// Bytes of topic and payload, all records together.
    pub bytes: usize,
}

/// A record in the ring.
#[derive(Debug)]
pub struct Record {
    /// Its number, growing by one with each record pushed.
    pub number: u64,
    /// Where it goes.
    pub lane: Arc<Lane>,
    /// The bytes to publish.
    pub payload: Vec<u8>,
}

impl Record {
    fn size(&self) -> usize {
        self.lane.topic.len() + self.payload.len()
    }
}

/// Records in order of arrival, and how far they were handed to the link.
#[derive(Debug)]
pub struct Ring {
    limits: Limits,
    records: VecDeque<Record>,
    bytes: usize,
    /// The newest number given out; the first record is number 1.
    newest: u64,
    /// The newest number handed to the link since the last `rewind`.
    handed: u64,
}

impl Ring {
    /// An empty ring.
    pub fn new(limits: Limits) -> Self {
        Self { limits, records: VecDeque::new(), bytes: 0, newest: 0, handed: 0 }
    }

    /// Adds a record and drops the oldest ones that are not under way until all fits; each is counted on its lane.
    /// Returns how many were dropped.
    pub fn push(&mut self, lane: &Arc<Lane>, payload: Vec<u8>) -> usize {
        self.newest += 1;
        let record = Record { number: self.newest, lane: lane.clone(), payload };
        self.bytes += record.size();
        self.records.push_back(record);
        let mut dropped = 0;
        while self.records.len() > self.limits.records || self.bytes > self.limits.bytes {
            // Those under way may have arrived already: dropping them would free nothing that soon is not free anyway.
            let waiting = self.first_waiting();
            let index = if waiting < self.records.len() { waiting } else { 0 };
            let Some(record) = self.take(index) else { break };
            record.lane.dropped.add();
            dropped += 1;
        }
        dropped
    }

    /// The oldest record not yet handed over; it counts as handed over from now on.
    pub fn next(&mut self) -> Option<&Record> {
        let record = self.records.get(self.first_waiting())?;
        self.handed = record.number;
        Some(record)
    }

    /// The broker has record `number`: it leaves the ring and counts as published.
    pub fn acked(&mut self, number: u64) {
        if let Ok(index) = self.records.binary_search_by_key(&number, |record| record.number)
            && let Some(record) = self.take(index)
        {
            record.lane.published.add();
        }
    }

    /// The link is lost: everything still here will be handed over again, from the oldest.
    pub fn rewind(&mut self) {
        self.handed = 0;
    }

    /// Whether nothing waits for the broker or its acknowledgement.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Records that wait for the broker or its acknowledgement, and their bytes of topic and payload.
    pub fn depth(&self) -> (usize, usize) {
        (self.records.len(), self.bytes)
    }

    /// Gives up everything left, counts it as dropped, and says how much it was.
    pub fn abandon(&mut self) -> usize {
        let left = self.records.len();
        self.records.drain(..).for_each(|record| record.lane.dropped.add());
        self.bytes = 0;
        left
    }

    fn first_waiting(&self) -> usize {
        self.records.partition_point(|record| record.number <= self.handed)
    }

    fn take(&mut self, index: usize) -> Option<Record> {
        let record = self.records.remove(index)?;
        self.bytes -= record.size();
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn lane() -> Arc<Lane> {
        Arc::new(Lane { topic: "t".to_owned(), published: Counter::default(), dropped: Counter::default() })
    }

    fn numbers(ring: &mut Ring) -> Vec<u64> {
        std::iter::from_fn(|| ring.next().map(|record| record.number)).collect()
    }

    #[test]
    fn the_oldest_are_dropped_first_and_counted() {
        let (lane, mut ring) = (lane(), Ring::new(Limits { records: 3, bytes: 1000 }));
        let dropped: Vec<usize> = (0..5).map(|_| ring.push(&lane, vec![0; 9])).collect();
        assert_eq!(dropped, [0, 0, 0, 1, 1]);
        assert_eq!((numbers(&mut ring), lane.dropped.get()), (vec![3, 4, 5], 2));
    }

    #[test]
    fn bytes_bound_it_too() {
        let (lane, mut ring) = (lane(), Ring::new(Limits { records: 100, bytes: 30 }));
        (0..3).for_each(|_| assert_eq!(ring.push(&lane, vec![0; 9]), 0));
        assert_eq!(ring.push(&lane, vec![0; 19]), 2);
        assert_eq!(numbers(&mut ring), [3, 4]);
    }

    #[test]
    fn what_is_under_way_stays_until_acked_and_comes_again_after_a_loss() {
        let (lane, mut ring) = (lane(), Ring::new(Limits { records: 4, bytes: 1000 }));
        (0..4).for_each(|_| assert_eq!(ring.push(&lane, vec![1]), 0));
        assert_eq!((ring.next().unwrap().number, ring.next().unwrap().number), (1, 2));
        ring.push(&lane, vec![1]); // full: number 3 goes, not 1 and 2
        ring.acked(2);
        ring.rewind();
        assert_eq!(numbers(&mut ring), [1, 4, 5]);
        assert_eq!((lane.published.get(), lane.dropped.get()), (1, 1));
        ring.acked(2); // a second acknowledgement changes nothing
        [1, 4, 5].into_iter().for_each(|number| ring.acked(number));
        assert!(ring.is_empty() && ring.bytes == 0 && lane.published.get() == 4);
    }

    #[test]
    fn with_everything_under_way_the_oldest_goes() {
        let (lane, mut ring) = (lane(), Ring::new(Limits { records: 2, bytes: 1000 }));
        ring.push(&lane, vec![1]);
        ring.push(&lane, vec![1]);
        assert_eq!(numbers(&mut ring), [1, 2]);
        assert_eq!(ring.push(&lane, vec![1]), 1);
        assert_eq!(numbers(&mut ring), Vec::<u64>::new(), "the new record itself was the only one waiting");
    }

    #[test]
    fn what_is_left_at_the_end_counts_as_dropped() {
        let (lane, mut ring) = (lane(), Ring::new(Limits { records: 9, bytes: 1000 }));
        (0..3).for_each(|_| assert_eq!(ring.push(&lane, vec![1]), 0));
        ring.acked(1);
        assert_eq!((ring.abandon(), lane.dropped.get(), lane.published.get()), (2, 2, 1));
    }
}
