//! The outboxes of both classes, and whose turn it is. What was waiting when a connection began, its backlog, goes out at a
//! bounded rate; what comes later is held up by its own class's backlog only. Pure: no lock, no clock, no file.

use std::sync::Arc;
use std::time::Instant;

use crate::base::clock::Utc;
use crate::mqtt::outbox::{Class, Lane, Limits, Outbox, Record, Why};
use crate::mqtt::pace::Pace;

/// Behind these numbers begin those of each class: so far apart that they never meet, and with room below for what an
/// earlier start left on disk.
const BASES: [u64; 2] = [1 << 62, 1 << 61];

/// Between the two.
const BORDER: u64 = 3 << 60;

/// An outbox for each class.
#[derive(Debug)]
pub struct Outboxes {
    each: [Outbox; 2],
    /// The newest number of each when the connection began.
    backlog: [u64; 2],
    pace: Pace,
    /// The class that was served last stands back where both wait: no backlog of the one holds up the other, for ever
    /// or for long.
    last: Class,
    /// When more of the backlog may go out, where some was held back.
    ready: Option<Instant>,
}

impl Outboxes {
    /// Empty ones, without a store; `limits` by class; `backlog_rate` records a second.
    pub fn new(limits: [Limits; 2], backlog_rate: u32) -> Self {
        let [events, detections] = [0, 1].map(|class| Outbox::new(limits[class], BASES[class]));
        Self { each: [events, detections], backlog: BASES, pace: Pace::new(backlog_rate), last: Class::Detections, ready: None }
    }

    /// That of a class.
    pub fn of(&mut self, class: Class) -> &mut Outbox {
        &mut self.each[class as usize]
    }

    /// As `Outbox::push`.
    pub fn push(&mut self, lane: &Arc<Lane>, payload: Vec<u8>, at: Utc, durable: bool) -> usize {
        self.of(lane.class).push(lane, payload, at, durable)
    }

    /// A connection begins: what waits now is its backlog.
    pub fn begin(&mut self) {
        self.backlog = [0, 1].map(|class| self.each[class].newest());
    }

    /// The next record at `now`, if one may go; the classes take turns. In a hurry nothing is held back.
    pub fn next(&mut self, now: Instant, hurry: bool) -> Option<Record> {
        self.ready = None;
        let classes = match self.last {
            Class::Detections => [Class::Events, Class::Detections],
            Class::Events => [Class::Detections, Class::Events],
        };
        for class in classes {
            let (backlog, pace) = (self.backlog[class as usize], &mut self.pace);
            let mut held = false;
            let may = |number| {
                held = !(hurry || number > backlog || pace.take(now));
                !held
            };
            if let Some(record) = self.each[class as usize].next(may) {
                self.last = class;
                return Some(record.clone());
            }
            if held {
                self.ready = Some(self.pace.ready(now));
            }
        }
        None
    }

    /// When more of the backlog may go out; `None`: nothing was held back.
    pub fn ready(&self) -> Option<Instant> {
        self.ready
    }

    /// As `Outbox::acked`.
    pub fn acked(&mut self, number: u64) {
        self.owner(number).acked(number);
    }

    /// As `Outbox::given_up`.
    pub fn given_up(&mut self, number: u64, why: Why) {
        self.owner(number).given_up(number, why);
    }

    fn owner(&mut self, number: u64) -> &mut Outbox {
        self.of(if number > BORDER { Class::Events } else { Class::Detections })
    }

    /// As `Outbox::rewind`.
    pub fn rewind(&mut self) {
        self.each.iter_mut().for_each(Outbox::rewind);
        self.ready = None;
    }

    /// Whether nothing waits for the broker or its acknowledgement.
    pub fn is_empty(&self) -> bool {
        self.each.iter().all(Outbox::is_empty)
    }

    /// Whether what waits outlives the process.
    pub fn keeps(&self) -> bool {
        self.each.iter().all(Outbox::keeps)
    }

    /// How many records wait, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        self.each.iter().map(Outbox::waiting).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// As `Outbox::abandon`.
    pub fn abandon(&mut self) -> usize {
        self.each.iter_mut().map(Outbox::abandon).sum()
    }

    /// Whether the store is to be woken at once.
    pub fn is_pressing(&self) -> bool {
        self.each.iter().any(Outbox::is_pressing)
    }

    /// How many records the store does not have yet.
    pub fn unsaved_count(&self) -> usize {
        self.each.iter().map(Outbox::unsaved_count).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use super::*;
    use crate::base::metrics::Metrics;

    const LIMITS: Limits = Limits { records: 5000, bytes: 1 << 20 };

    struct Scene {
        outboxes: Outboxes,
        lanes: [Arc<Lane>; 2],
        now: Instant,
    }

    impl Scene {
        fn new(rate: u32) -> Self {
            let lane = |topic: &str| Arc::new(Lane::new(topic.to_owned(), "a", &Metrics::new()));
            let lanes = [lane("P/a/events"), lane("P/a/detections")];
            Self { outboxes: Outboxes::new([LIMITS; 2], rate), lanes, now: Instant::now() }
        }

        fn push(&mut self, class: Class, count: usize) {
            let lane = self.lanes[class as usize].clone();
            (0..count).for_each(|_| assert_eq!(self.outboxes.push(&lane, vec![1], Utc::from_millis(0), true), 0));
        }

        /// What goes out at this moment: e and d.
        fn out(&mut self) -> String {
            let outboxes = &mut self.outboxes;
            let next = std::iter::from_fn(|| outboxes.next(self.now, false));
            next.map(|record| if record.lane.class == Class::Events { 'e' } else { 'd' }).collect()
        }
    }

    #[test]
    fn classes_take_turns_while_both_wait() {
        let mut scene = Scene::new(1000);
        scene.push(Class::Detections, 5);
        scene.push(Class::Events, 2);
        assert_eq!(scene.out(), "ededddd");
        scene.push(Class::Detections, 1);
        scene.push(Class::Events, 1);
        assert_eq!(scene.out(), "ed");
    }

    #[test]
    fn a_backlog_keeps_its_rate_and_holds_up_nothing_that_comes_later() {
        let mut scene = Scene::new(1000);
        scene.push(Class::Detections, 3000);
        scene.outboxes.begin();
        let first = scene.out().len();
        assert!(first <= 20, "{first} at once");
        assert!(scene.outboxes.ready().is_some_and(|at| at > scene.now));
        let (mut count, begin) = (first, scene.now);
        while let Some(at) = scene.outboxes.ready() {
            scene.now = at;
            scene.push(Class::Events, 1);
            let went = scene.out();
            assert_eq!(went.matches('e').count(), 1, "an event waits behind the detections: {went}");
            count += went.len() - 1;
        }
        assert_eq!(count, 3000);
        let took = scene.now.duration_since(begin);
        assert!((2950..3050).contains(&took.as_millis()), "{took:?}");
        scene.push(Class::Detections, 500);
        assert_eq!((scene.out().len(), scene.outboxes.ready()), (500, None), "what comes later is not slowed");
    }

    #[test]
    fn what_a_loss_leaves_is_the_next_backlog() {
        let mut scene = Scene::new(1000);
        scene.outboxes.begin();
        scene.push(Class::Detections, 300);
        assert_eq!(scene.out().len(), 300);
        scene.outboxes.rewind();
        scene.outboxes.begin();
        assert_eq!(scene.out().len(), 20);
        scene.now += Duration::from_millis(10);
        assert_eq!(scene.out().len(), 10);
        let mut rest = 0;
        while scene.outboxes.next(scene.now, true).is_some() {
            rest += 1;
        }
        assert_eq!((rest, scene.outboxes.ready()), (270, None), "at the end nothing is held back");
    }

    #[test]
    fn an_acknowledgement_finds_its_class() {
        let mut scene = Scene::new(1000);
        scene.push(Class::Detections, 1);
        scene.push(Class::Events, 1);
        let numbers: Vec<u64> = std::iter::from_fn(|| scene.outboxes.next(scene.now, false)).map(|record| record.number).collect();
        assert_eq!(scene.outboxes.waiting().0, 2);
        numbers.into_iter().for_each(|number| scene.outboxes.acked(number));
        assert!(scene.outboxes.is_empty());
        assert_eq!(scene.lanes.each_ref().map(|lane| lane.published.get()), [1, 1]);
    }
}
