//! Everything that waits for the link, and in what order it goes out on a connection: the newest status of every camera,
//! then `online`, then changed statuses and the ring of records, last `offline`. Pure; `Desk` puts a lock and a bell on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::base::clock::Utc;
use crate::mqtt::outbox::{Lane, Limits, Outbox, Why};
use crate::mqtt::payload::{OFFLINE, ONLINE};
use crate::types::CameraId;

/// For `offline` and its acknowledgement.
const GOODBYE: Duration = Duration::from_millis(700);

/// What a message is to the one who waits for its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A camera's status.
    Status,
    /// The daemon is there.
    Online,
    /// The daemon goes.
    Offline,
    /// The record of this number.
    Record(u64),
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

#[derive(Debug)]
struct Status {
    topic: String,
    payload: Vec<u8>,
    /// Whether this very payload was handed to the link on this connection.
    handed: bool,
}

/// What waits, and how far this connection has come.
#[derive(Debug)]
pub struct Pending {
    status_topic: String,
    statuses: BTreeMap<CameraId, Status>,
    outbox: Outbox,
    online: bool,
    offline: bool,
    /// Set once: when the link must be gone.
    closing: Option<Instant>,
}

impl Pending {
    /// Nothing waits yet; `status_topic` is `P/status`.
    pub fn new(status_topic: String, limits: Limits) -> Self {
        Self { status_topic, statuses: BTreeMap::new(), outbox: Outbox::new(limits), online: false, offline: false, closing: None }
    }

    /// A camera's newest status, in place of the one before.
    pub fn status(&mut self, camera: &CameraId, topic: String, payload: Vec<u8>) {
        if self.closing.is_none() {
            self.statuses.insert(camera.clone(), Status { topic, payload, handed: false });
        }
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
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// The next message on this connection, if any; `idle` says that all handed out before are acknowledged.
    pub fn next(&mut self, idle: bool) -> Option<Message> {
        if let Some(status) = self.statuses.values_mut().find(|status| !status.handed) {
            status.handed = true;
            return Some(Message { item: Item::Status, topic: status.topic.clone(), payload: status.payload.clone(), retain: true });
        }
        if !self.online {
            self.online = idle;
            return idle.then(|| self.presence(Item::Online, ONLINE));
        }
        if self.may_hand_out()
            && let Some(record) = self.outbox.next()
        {
            let (topic, payload) = (record.lane.topic.clone(), record.payload.to_vec());
            return Some(Message { item: Item::Record(record.number), topic, payload, retain: false });
        }
        let last = idle && self.closing.is_some() && !self.offline;
        self.offline |= last;
        last.then(|| self.presence(Item::Offline, OFFLINE))
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
        if let Item::Record(number) = item {
            self.outbox.acked(number);
        }
    }

    /// The link is lost: the next connection starts with the statuses and sends every record not acknowledged again.
    pub fn rewind(&mut self) {
        self.statuses.values_mut().for_each(|status| status.handed = false);
        (self.online, self.offline) = (false, false);
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
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Lets what waits go out for `grace`, then the link ends.
    pub fn close(&self, grace: Duration) {
        self.lock().close(Instant::now() + grace);
        self.bell.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::base::metrics::Metrics;

    fn pending() -> (Pending, Arc<Lane>, [CameraId; 2]) {
        let lane = Arc::new(Lane::new("P/a/detections".to_owned(), "a", &Metrics::new()));
        let cameras = ["a", "b"].map(|id| CameraId::new(id).unwrap());
        let mut pending = Pending::new("P/status".to_owned(), Limits { records: 10, bytes: 1000 });
        for camera in &cameras {
            pending.status(camera, format!("P/{camera}/status"), b"connecting".to_vec());
        }
        (pending, lane, cameras)
    }

    fn items(pending: &mut Pending) -> Vec<Item> {
        std::iter::from_fn(|| pending.next(true).map(|message| message.item)).collect()
    }

    #[test]
    fn statuses_come_before_online_and_online_before_records() {
        let (mut pending, lane, cameras) = pending();
        pending.record(&lane, vec![1], true);
        assert_eq!(pending.next(true).unwrap().topic, "P/a/status");
        assert_eq!(pending.next(false).unwrap().topic, "P/b/status");
        assert_eq!(pending.next(false), None, "online waits for the acknowledgement of the statuses");
        assert_eq!(items(&mut pending), [Item::Online, Item::Record(1)]);
        pending.status(&cameras[1], "P/b/status".to_owned(), b"running".to_vec());
        pending.record(&lane, vec![1], true);
        assert_eq!(items(&mut pending), [Item::Status, Item::Record(2)]);
    }

    #[test]
    fn after_a_loss_all_comes_again_with_the_newest_status() {
        let (mut pending, lane, cameras) = pending();
        pending.record(&lane, vec![1], true);
        pending.record(&lane, vec![2], true);
        items(&mut pending);
        pending.status(&cameras[0], "P/a/status".to_owned(), b"running".to_vec());
        pending.acked(Item::Record(1));
        pending.rewind();
        assert_eq!(pending.next(true).unwrap().payload, b"running");
        assert_eq!(items(&mut pending), [Item::Status, Item::Online, Item::Record(2)]);
    }

    #[test]
    fn offline_is_last_once_all_is_acknowledged_and_nothing_more_is_taken() {
        let (mut pending, lane, cameras) = pending();
        pending.record(&lane, vec![1], true);
        pending.close(Instant::now());
        assert!(!pending.may_leave());
        assert_eq!(pending.record(&lane, vec![2], true), 1);
        pending.status(&cameras[0], "P/a/status".to_owned(), b"late".to_vec());
        let mut sent = vec![];
        while let Some(message) = pending.next(sent.len() < 4) {
            sent.push(message.item);
        }
        assert_eq!(sent, [Item::Status, Item::Status, Item::Online, Item::Record(1)], "no offline while something is under way");
        pending.acked(Item::Record(1));
        assert!(pending.may_leave());
        let last = pending.next(true).unwrap();
        assert_eq!((last.item, last.payload.as_slice(), last.retain), (Item::Offline, OFFLINE.as_bytes(), true));
        assert_eq!((pending.next(true), lane.dropped.get()), (None, 1));
    }
}
