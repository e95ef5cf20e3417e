//! Everything that waits for the link, and in what order it goes out on a connection: all retained state, then `online`,
//! then changed state, records and the statistics, last `offline`. Pure; `Desk` puts a lock and a bell on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::base::clock::Utc;
use crate::base::sync;
use crate::mqtt::outbox::{Lane, Limits, Why};
use crate::mqtt::outboxes::Outboxes;
use crate::mqtt::payload::{OFFLINE, ONLINE};
use crate::mqtt::retained::{Retained, Stage};

/// For `offline` and its acknowledgement.
const GOODBYE: Duration = Duration::from_millis(700);

/// What a message is to the one who waits for its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The retained state of this number.
    Retained(u64),
    /// The retained picture of this number; the next takes its place, so it is not worth an acknowledgement.
    Picture(u64),
    /// The daemon is there.
    Online,
    /// The daemon goes.
    Offline,
    /// The record of this number.
    Record(u64),
    /// Figures of the moment, worth no second try.
    Stats,
}

/// A message for the link to publish.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub item: Item,
    /// Where it goes.
    pub topic: String,
    /// What it says.
    pub payload: Vec<u8>,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
}

/// What waits, and how far this connection has come.
#[derive(Debug)]
pub struct Pending {
    status_topic: String,
    retained: Retained,
    outbox: Outboxes,
    /// Topic and payload; only the newest are worth anything, and only now.
    stats: Option<(String, Vec<u8>)>,
    /// Whether it is the records' turn: neither they nor state that changes all the time may hold up the other.
    records_turn: bool,
    /// Whether this connection was asked for anything yet.
    begun: bool,
    online: bool,
    offline: bool,
    /// Set once: when the link must be gone.
    closing: Option<Instant>,
}

impl Pending {
    /// Nothing waits yet; `status_topic` is `P/status`. `limits` are those of events and of detections; of what waits when a
    /// connection begins, `backlog_rate` records a second go out.
    pub fn new(status_topic: String, limits: [Limits; 2], backlog_rate: u32) -> Self {
        Self {
            status_topic,
            retained: Retained::default(),
            outbox: Outboxes::new(limits, backlog_rate),
            stats: None,
            records_turn: false,
            begun: false,
            online: false,
            offline: false,
            closing: None,
        }
    }

    /// A topic's newest retained payload, in place of the one before; an empty one clears the topic.
    pub fn retain(&mut self, stage: Stage, topic: String, payload: Vec<u8>) {
        if self.closing.is_none() {
            self.retained.put(stage, topic, payload);
        }
    }

    /// All retained state goes out once more.
    pub fn again(&mut self) {
        self.retained.rewind();
    }

    /// The retained topics.
    pub fn retained(&self) -> &Retained {
        &self.retained
    }

    /// The newest figures; they are gone when the link is.
    pub fn stats(&mut self, topic: String, payload: Vec<u8>) {
        self.stats = Some((topic, payload));
    }

    /// Records that wait, and their bytes.
    pub fn depth(&self) -> (usize, usize) {
        self.outbox.waiting()
    }

    /// A record; returns how many had to go for it. Once closing it is itself dropped and counted.
    pub fn record(&mut self, lane: &Arc<Lane>, payload: Vec<u8>, durable: bool) -> usize {
        if self.closing.is_some() {
            lane.drop_one(Why::Closed);
            return 1;
        }
        self.outbox.push(lane, payload, Utc::now(), durable)
    }

    /// The records.
    pub fn outbox(&mut self) -> &mut Outboxes {
        &mut self.outbox
    }

    /// The next message on this connection, if any; `idle` says that all handed out before are acknowledged, `pictures` that
    /// one of those may go now.
    pub fn next(&mut self, idle: bool, pictures: bool) -> Option<Message> {
        if !std::mem::replace(&mut self.begun, true) {
            self.outbox.begin();
        }
        if !std::mem::take(&mut self.records_turn)
            && let Some(message) = self.changed(pictures)
        {
            self.records_turn = self.online;
            return Some(message);
        }
        if !self.online {
            self.online = idle;
            return idle.then(|| self.presence(Item::Online, ONLINE));
        }
        if let Some((topic, payload)) = self.stats.take() {
            return Some(Message { item: Item::Stats, topic, payload, retain: false });
        }
        if self.may_hand_out()
            && let Some(record) = self.outbox.next(Instant::now(), self.closing.is_some())
        {
            let (topic, payload) = (record.lane.topic.clone(), record.payload.to_vec());
            return Some(Message { item: Item::Record(record.number), topic, payload, retain: false });
        }
        if let Some(message) = self.changed(pictures) {
            return Some(message);
        }
        // Past the deadline nothing is said any more: the broker publishes the last will.
        let last = idle && self.closing.is_some_and(|deadline| Instant::now() < deadline) && !self.offline;
        self.offline |= last;
        last.then(|| self.presence(Item::Offline, OFFLINE))
    }

    /// When `next` may have more, where all that is held back is the backlog.
    pub fn ready(&self) -> Option<Instant> {
        // Once closing nothing is.
        self.outbox.ready().filter(|_| self.closing.is_none())
    }

    /// Whether a picture waits.
    pub fn has_picture(&self) -> bool {
        self.retained.waits_for(Stage::Picture)
    }

    fn changed(&mut self, pictures: bool) -> Option<Message> {
        let last = if self.online && pictures { Stage::Picture } else { Stage::State };
        let (stage, number, topic, payload) = self.retained.next(last)?;
        let item = if stage == Stage::Picture { Item::Picture(number) } else { Item::Retained(number) };
        Some(Message { item, topic, payload, retain: true })
    }

    /// What a disk keeps need not be out before the end: there must be time left for `offline`.
    fn may_hand_out(&self) -> bool {
        self.closing.is_none_or(|deadline| !self.outbox.keeps() || deadline.saturating_duration_since(Instant::now()) > GOODBYE)
    }

    fn presence(&self, item: Item, payload: &str) -> Message {
        Message { item, topic: self.status_topic.clone(), payload: payload.into(), retain: true }
    }

    /// The broker has it.
    pub fn acked(&mut self, item: Item) {
        match item {
            Item::Record(number) => self.outbox.acked(number),
            Item::Retained(number) | Item::Picture(number) => self.retained.acked(number),
            Item::Online | Item::Offline | Item::Stats => {}
        }
    }

    /// The broker will never take it; a record counts as dropped.
    pub fn given_up(&mut self, item: Item, why: Why) {
        match item {
            Item::Record(number) => self.outbox.given_up(number, why),
            other => self.acked(other),
        }
    }

    /// The link is lost: the next connection starts with the retained state and sends every record not acknowledged again.
    pub fn rewind(&mut self) {
        self.retained.rewind();
        self.stats = None;
        (self.begun, self.online, self.offline, self.records_turn) = (false, false, false, false);
        self.outbox.rewind();
    }

    /// From now on nothing is taken in, and what waits has until `deadline`.
    pub fn close(&mut self, deadline: Instant) {
        self.closing.get_or_insert(deadline);
    }

    /// When the link must be gone, once closing.
    pub fn closing(&self) -> Option<Instant> {
        self.closing
    }

    /// Whether closing, with no record left that is worth a wait for a broker: a disk keeps them.
    pub fn may_leave(&self) -> bool {
        self.closing.is_some() && (self.outbox.is_empty() || self.outbox.keeps())
    }

    /// Gives up the records left, counts them as dropped, and says how many they were.
    pub fn abandon(&mut self) -> usize {
        self.outbox.abandon()
    }
}

/// `Pending` between the stages that publish and the thread that owns the link.
#[derive(Debug)]
pub struct Desk {
    pending: Mutex<Pending>,
    /// Wakes whoever keeps records on disk.
    work: Condvar,
    /// No more work will come.
    ended: AtomicBool,
    /// Rings when something was put on the desk; one ring is remembered.
    pub bell: Notify,
}

impl Desk {
    /// A desk with nothing on it.
    pub fn new(pending: Pending) -> Self {
        Self { pending: Mutex::new(pending), work: Condvar::new(), ended: AtomicBool::new(false), bell: Notify::new() }
    }

    /// What waits. Held for a few moves of memory only, so nobody waits for the network here.
    pub fn lock(&self) -> MutexGuard<'_, Pending> {
        sync::lock(&self.pending)
    }

    /// Wakes whoever keeps records on disk where there is enough to do; otherwise they look by themselves in a moment.
    pub fn nudge(&self) {
        if self.lock().outbox.is_pressing() {
            self.work.notify_one();
        }
    }

    /// Waits for work for a disk, for `most` at most; `false`: there will be none any more.
    pub fn wait_for_work(&self, most: Duration) -> bool {
        let pending = self.lock();
        if !self.ended.load(Ordering::Acquire) && !pending.outbox.is_pressing() {
            drop(self.work.wait_timeout(pending, most));
        }
        !self.ended.load(Ordering::Acquire)
    }

    /// Nothing more will be published or acknowledged.
    pub fn end(&self) {
        let _pending = self.lock();
        self.ended.store(true, Ordering::Release);
        self.work.notify_all();
    }

    /// Puts `last` on the retained topics it names, lets what waits go out for `grace`, then the link ends.
    pub fn close(&self, grace: Duration, last: Vec<(String, Vec<u8>)>) {
        let mut pending = self.lock();
        // Under one lock, so that nothing newer comes between.
        last.into_iter().for_each(|(topic, payload)| pending.retain(Stage::State, topic, payload));
        pending.close(Instant::now() + grace);
        drop(pending);
        self.bell.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::base::metrics::Metrics;

    fn pending() -> (Pending, Arc<Lane>) {
        let lane = Arc::new(Lane::new("P/a/detections".to_owned(), "a", &Metrics::new()));
        let mut pending = Pending::new("P/status".to_owned(), [Limits { records: 10, bytes: 1000 }; 2], 1000);
        ["a", "b"].iter().for_each(|camera| status(&mut pending, camera, "connecting"));
        (pending, lane)
    }

    fn status(pending: &mut Pending, camera: &str, state: &str) {
        pending.retain(Stage::State, format!("P/{camera}/status"), state.into());
    }

    /// The detections record that was put there as the nth.
    fn record(nth: u64) -> Item {
        Item::Record((1 << 61) + nth)
    }

    fn items(pending: &mut Pending) -> Vec<Item> {
        std::iter::from_fn(|| pending.next(true, true).map(|message| message.item)).collect()
    }

    #[test]
    fn retained_state_comes_before_online_and_online_before_records() {
        let (mut pending, lane) = pending();
        pending.record(&lane, vec![1], true);
        pending.retain(Stage::Discovery, "D/a".to_owned(), vec![1]);
        assert_eq!(pending.next(true, true).unwrap().topic, "D/a");
        assert_eq!(pending.next(true, true).unwrap().topic, "P/a/status");
        assert_eq!(pending.next(false, true).unwrap().topic, "P/b/status");
        assert_eq!(pending.next(false, true), None, "online waits for the acknowledgement of the state");
        assert_eq!(items(&mut pending), [Item::Online, record(1)]);
        status(&mut pending, "b", "running");
        pending.record(&lane, vec![1], true);
        assert_eq!(items(&mut pending), [Item::Retained(4), record(2)]);
    }

    #[test]
    fn pictures_come_after_online_and_only_where_they_may() {
        let (mut pending, lane) = pending();
        pending.retain(Stage::Picture, "P/a/snapshot/cat".to_owned(), vec![1]);
        pending.record(&lane, vec![1], true);
        let mut sent: Vec<Item> = Vec::new();
        while let Some(message) = pending.next(true, false) {
            sent.push(message.item);
        }
        assert_eq!(sent, [Item::Retained(1), Item::Retained(2), Item::Online, record(1)]);
        assert!(pending.has_picture());
        assert_eq!(items(&mut pending), [Item::Picture(3)]);
        assert!(!pending.has_picture());
    }

    #[test]
    fn changed_state_and_records_take_turns() {
        let (mut pending, lane) = pending();
        items(&mut pending);
        for camera in ["a", "b"] {
            status(&mut pending, camera, "running");
            pending.record(&lane, vec![1], true);
        }
        assert_eq!(items(&mut pending), [Item::Retained(3), record(1), Item::Retained(4), record(2)]);
    }

    #[test]
    fn after_a_loss_all_comes_again_with_the_newest_state() {
        let (mut pending, lane) = pending();
        pending.record(&lane, vec![1], true);
        pending.record(&lane, vec![2], true);
        items(&mut pending);
        status(&mut pending, "a", "running");
        pending.acked(record(1));
        pending.rewind();
        assert_eq!(pending.next(true, true).unwrap().payload, b"connecting");
        assert_eq!(pending.next(true, true).unwrap().payload, b"running");
        assert_eq!(items(&mut pending), [Item::Online, record(2)]);
        pending.again();
        assert_eq!(items(&mut pending), [Item::Retained(2), Item::Retained(3)], "the state alone, once more");
    }

    #[test]
    fn figures_go_out_once_or_never() {
        let (mut pending, _) = pending();
        items(&mut pending);
        pending.stats("P/stats".to_owned(), vec![1]);
        pending.stats("P/stats".to_owned(), vec![2]);
        let message = pending.next(false, true).unwrap();
        assert_eq!((message.item, message.payload, message.retain), (Item::Stats, vec![2], false));
        assert_eq!(pending.next(true, true), None);
        pending.stats("P/stats".to_owned(), vec![3]);
        pending.rewind();
        assert_eq!(items(&mut pending), [Item::Retained(1), Item::Retained(2), Item::Online]);
    }

    #[test]
    fn offline_is_last_once_all_is_acknowledged_and_nothing_more_is_taken() {
        let (mut pending, lane) = pending();
        pending.record(&lane, vec![1], true);
        pending.close(Instant::now() + Duration::from_secs(60));
        assert!(!pending.may_leave());
        assert_eq!(pending.record(&lane, vec![2], true), 1);
        status(&mut pending, "a", "late");
        let mut sent = vec![];
        while let Some(message) = pending.next(sent.len() < 4, true) {
            sent.push(message.item);
        }
        let expected = [Item::Retained(1), Item::Retained(2), Item::Online, record(1)];
        assert_eq!(sent, expected, "no offline while something is under way");
        pending.acked(record(1));
        assert!(pending.may_leave());
        let last = pending.next(true, true).unwrap();
        assert_eq!((last.item, last.payload.as_slice(), last.retain), (Item::Offline, OFFLINE.as_bytes(), true));
        assert_eq!((pending.next(true, true), lane.dropped.get()), (None, 1));
    }

    #[test]
    fn past_the_deadline_nothing_says_goodbye() {
        let (mut pending, _) = pending();
        pending.close(Instant::now());
        assert_eq!(items(&mut pending), [Item::Retained(1), Item::Retained(2), Item::Online]);
    }
}
