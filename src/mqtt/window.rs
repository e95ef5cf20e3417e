//! Which messages are on their way on one connection.
//!
//! rumqttc numbers packets itself, 1 to 100 in turn, and tells the number only when it writes the packet, in the order
//! the messages were submitted. From the oldest not acknowledged to the newest there are never more than `ROOM`
//! messages, so a number is free long before its turn comes again, whatever the order of the acknowledgements.
//! Pure; lives as long as one connection.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::mqtt::pending::Item;

/// The most messages from the oldest not acknowledged to the newest.
pub const ROOM: usize = 16;

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Given to rumqttc, not yet written.
    Submitted,
    /// Written under this packet id; its acknowledgement is awaited.
    Sent(u16),
    /// Acknowledged before an older one was.
    Done,
}

/// The messages on their way, oldest first.
#[derive(Debug)]
pub struct Window {
    room: usize,
    flights: VecDeque<(Item, Stage)>,
    /// When it last began to wait or heard an acknowledgement.
    progress: Instant,
}

impl Window {
    /// An empty window.
    pub fn new(now: Instant) -> Self {
        Self { room: ROOM, flights: VecDeque::with_capacity(ROOM), progress: now }
    }

    /// Narrower, for a broker that takes so many messages only before it acknowledges one.
    pub fn narrow(&mut self, most: usize) {
        self.room = self.room.min(most).max(1);
    }

    /// Whether another message may be submitted.
    pub fn has_room(&self) -> bool {
        self.flights.len() < self.room
    }

    /// Whether every message is acknowledged.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// A message was given to rumqttc.
    pub fn submitted(&mut self, item: Item, now: Instant) {
        if self.flights.is_empty() {
            self.progress = now;
        }
        self.flights.push_back((item, Stage::Submitted));
    }

    /// rumqttc wrote the oldest submitted message under `pkid`. Id 0 is QoS 0, done with the writing: then the item is returned.
    pub fn sent(&mut self, pkid: u16, now: Instant) -> Option<Item> {
        let index = self.flights.iter().position(|(_, stage)| *stage == Stage::Submitted)?;
        if pkid == 0 {
            return self.done(index, now);
        }
        self.flights[index].1 = Stage::Sent(pkid);
        None
    }

    /// The broker has the message under `pkid` (PUBACK, or PUBCOMP for QoS 2).
    pub fn acked(&mut self, pkid: u16, now: Instant) -> Option<Item> {
        let index = self.flights.iter().position(|(_, stage)| *stage == Stage::Sent(pkid))?;
        self.done(index, now)
    }

    /// The broker is at work on a message (PUBREC of QoS 2).
    pub fn touched(&mut self, now: Instant) {
        self.progress = now;
    }

    /// When a broker that has acknowledged nothing for `patience` is to be given up; `None` while nothing is awaited.
    pub fn deadline(&self, patience: Duration) -> Option<Instant> {
        (!self.is_idle()).then(|| self.progress + patience)
    }

    fn done(&mut self, index: usize, now: Instant) -> Option<Item> {
        self.progress = now;
        let (item, stage) = self.flights.get_mut(index)?;
        let item = *item;
        *stage = Stage::Done;
        while self.flights.front().is_some_and(|(_, stage)| *stage == Stage::Done) {
            self.flights.pop_front();
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn packet_ids_are_paired_in_order_and_acknowledged_in_any() {
        let now = Instant::now();
        let mut window = Window::new(now);
        for number in 1..=3 {
            window.submitted(Item::Record(number), now);
        }
        assert_eq!(window.sent(7, now), None);
        assert_eq!(window.sent(8, now), None);
        assert_eq!(window.acked(8, now), Some(Item::Record(2)));
        assert_eq!(window.acked(8, now), None);
        assert_eq!(window.acked(9, now), None, "never sent under that id");
        assert_eq!(window.sent(9, now), None);
        assert_eq!(window.acked(7, now), Some(Item::Record(1)));
        assert_eq!(window.acked(9, now), Some(Item::Record(3)));
        assert!(window.is_idle());
    }

    #[test]
    fn an_unacknowledged_oldest_closes_the_window() {
        let now = Instant::now();
        let mut window = Window::new(now);
        for number in 0..ROOM as u16 {
            assert!(window.has_room());
            window.submitted(Item::Record(number.into()), now);
            window.sent(number + 1, now);
        }
        for pkid in 2..=ROOM as u16 {
            window.acked(pkid, now);
        }
        assert!(!window.has_room(), "15 of 16 are done, but the oldest is not");
        window.acked(1, now);
        assert!(window.has_room() && window.is_idle());
        window.narrow(1);
        window.submitted(Item::Online, now);
        assert!(!window.has_room(), "a broker may take one at a time");
    }

    #[test]
    fn qos_0_is_done_when_written() {
        let now = Instant::now();
        let mut window = Window::new(now);
        window.submitted(Item::Online, now);
        window.submitted(Item::Record(1), now);
        assert_eq!(window.sent(1, now), None);
        assert_eq!(window.sent(0, now), Some(Item::Record(1)));
        assert_eq!(window.acked(1, now), Some(Item::Online));
    }

    #[test]
    fn patience_counts_from_the_last_progress() {
        let (start, patience) = (Instant::now(), Duration::from_secs(20));
        let at = |secs| start + Duration::from_secs(secs);
        let mut window = Window::new(start);
        assert_eq!(window.deadline(patience), None);
        window.submitted(Item::Record(1), at(100));
        window.submitted(Item::Record(2), at(110));
        assert_eq!(window.deadline(patience), Some(at(120)));
        window.sent(1, at(110));
        window.acked(1, at(115));
        assert_eq!(window.deadline(patience), Some(at(135)));
        window.touched(at(118));
        assert_eq!(window.deadline(patience), Some(at(138)));
    }
}
