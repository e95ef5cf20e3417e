//! What the broker keeps for later subscribers: one payload a topic, the newest, and which of them this connection has not had.
//!
//! Topics are few and known (those of the configured cameras and their labels), and one takes the place of the other on its
//! topic, so nothing here needs a bound. Pure: no lock, no clock, no thread.

use std::collections::{BTreeMap, HashMap};

/// What goes out before what on a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Where everything is found: first, so that whoever reads it does not miss what comes next.
    Discovery,
    /// All other state.
    State,
    /// Pictures: large, and nobody is there or not there for them, so they come once it is said that the daemon is.
    Picture,
}

/// The newest payload of a topic.
#[derive(Debug)]
struct Kept {
    stage: Stage,
    number: u64,
    payload: Vec<u8>,
}

/// The newest payload of every topic.
#[derive(Debug, Default)]
pub struct Retained {
    kept: HashMap<String, Kept>,
    /// The topics that this connection has not had, in order of stage and then of change: none waits for one that
    /// changes more often.
    waiting: BTreeMap<(Stage, u64), String>,
    newest: u64,
    /// How often a topic came or went.
    changes: u64,
}

impl Retained {
    /// A topic's newest payload, in place of the one before. An empty one makes the broker forget the topic, and this
    /// set too once the broker has.
    pub fn put(&mut self, stage: Stage, topic: String, payload: Vec<u8>) {
        self.newest += 1;
        self.waiting.insert((stage, self.newest), topic.clone());
        if let Some(old) = self.kept.insert(topic, Kept { stage, number: self.newest, payload }) {
            self.waiting.remove(&(old.stage, old.number));
        } else {
            self.changes += 1;
        }
    }

    /// The next message that this connection has not had, of a stage up to `last`: its stage, number, topic and payload. It
    /// counts as handed over.
    pub fn next(&mut self, last: Stage) -> Option<(Stage, u64, String, Vec<u8>)> {
        let first = self.waiting.first_entry().filter(|first| first.key().0 <= last)?;
        let ((stage, number), topic) = first.remove_entry();
        let payload = self.kept.get(&topic)?.payload.clone();
        Some((stage, number, topic, payload))
    }

    /// The broker has message `number`: a topic that it made the broker forget is forgotten here too.
    pub fn acked(&mut self, number: u64) {
        let before = self.kept.len();
        self.kept.retain(|_, kept| kept.number != number || !kept.payload.is_empty());
        self.changes += (before - self.kept.len()) as u64;
    }

    /// Whether something of this stage waits.
    pub fn waits_for(&self, stage: Stage) -> bool {
        self.waiting.range((stage, 0)..=(stage, u64::MAX)).next().is_some()
    }

    /// Every topic that the broker may keep something of, in no order.
    pub fn topics(&self) -> impl Iterator<Item = (Stage, &str)> {
        self.kept.iter().map(|(topic, kept)| (kept.stage, topic.as_str()))
    }

    /// Whether there is something to be kept, or cleared, on a topic.
    pub fn holds(&self, topic: &str) -> bool {
        self.kept.contains_key(topic)
    }

    /// Grows whenever a topic comes or goes.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// All of it will be handed over again.
    pub fn rewind(&mut self) {
        self.waiting = self.kept.iter().map(|(topic, kept)| ((kept.stage, kept.number), topic.clone())).collect();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn handed(retained: &mut Retained) -> Vec<String> {
        std::iter::from_fn(|| retained.next(Stage::State))
            .map(|(_, _, topic, payload)| format!("{topic}={}", String::from_utf8_lossy(&payload)))
            .collect()
    }

    fn put(retained: &mut Retained, stage: Stage, topic: &str, payload: &str) {
        retained.put(stage, topic.to_owned(), payload.into());
    }

    #[test]
    fn stages_come_in_order_and_the_newest_payload_replaces() {
        let mut retained = Retained::default();
        for (stage, topic, payload) in
            [(Stage::State, "b", "1"), (Stage::State, "a", "1"), (Stage::Discovery, "d", "1"), (Stage::State, "b", "2")]
        {
            put(&mut retained, stage, topic, payload);
        }
        assert_eq!(handed(&mut retained), ["d=1", "a=1", "b=2"]);
        assert!(handed(&mut retained).is_empty());
        put(&mut retained, Stage::State, "a", "2");
        assert_eq!(handed(&mut retained), ["a=2"]);
        retained.rewind();
        assert_eq!(handed(&mut retained), ["d=1", "b=2", "a=2"]);
        put(&mut retained, Stage::Picture, "p", "1");
        assert!(handed(&mut retained).is_empty());
        assert_eq!(retained.next(Stage::Picture).unwrap().2, "p");
    }

    #[test]
    fn a_topic_that_changes_all_the_time_keeps_nobody_waiting() {
        let mut retained = Retained::default();
        put(&mut retained, Stage::State, "a", "1");
        put(&mut retained, Stage::State, "b", "1");
        assert_eq!(retained.next(Stage::Picture).unwrap().2, "a");
        put(&mut retained, Stage::State, "a", "2");
        assert_eq!(handed(&mut retained), ["b=1", "a=2"]);
    }

    #[test]
    fn a_cleared_topic_is_forgotten_once_the_broker_has_forgotten_it() {
        let mut retained = Retained::default();
        put(&mut retained, Stage::State, "a", "1");
        put(&mut retained, Stage::State, "a", "");
        let (_, number, _, payload) = retained.next(Stage::State).unwrap();
        assert!(payload.is_empty());
        retained.rewind();
        assert_eq!(handed(&mut retained), ["a="], "not acknowledged: it comes again");
        assert!(retained.holds("a") && retained.changes() == 1);
        retained.acked(number);
        assert!(!retained.holds("a") && retained.changes() == 2);
        retained.rewind();
        assert!(handed(&mut retained).is_empty());

        put(&mut retained, Stage::State, "a", "");
        let (_, number, ..) = retained.next(Stage::State).unwrap();
        put(&mut retained, Stage::State, "a", "3");
        retained.acked(number);
        assert_eq!(handed(&mut retained), ["a=3"], "a newer payload stays");
    }
}
