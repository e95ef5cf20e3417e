//! What of a camera's stream is kept in which file. Reads no clock and touches no disk: times are those of the pictures.
//!
//! A camera has one file at a time, and every object that is there meanwhile names it: two files would hold the same
//! pictures twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Utc;
use crate::sink::record::ring::Ring;
use crate::sink::record::stamp::Pattern;
use crate::types::{Codec, EncodedUnit, Event, EventKind};

/// What comes of so much later, or earlier, than the picture before it does not go on from it.
const JUMP: Duration = Duration::from_secs(10);

/// What decides about a camera's files.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Kept from before an object was first seen.
    pub pre_roll: Duration,
    /// How much later than it was first seen an object is told of, about.
    pub lag: Duration,
    /// Kept after it was last seen.
    pub post_roll: Duration,
    /// A file's length; the next keyframe begins another.
    pub max_clip: Duration,
    /// What the pictures ahead of a clip may take, in bytes.
    pub most_bytes: usize,
}

/// What is to be written.
#[derive(Clone, Debug)]
pub enum Order {
    /// A file begins.
    Begin {
        /// Its name, without ending.
        name: String,
        /// What comes.
        codec: Codec,
        /// How its pictures follow each other.
        pattern: Pattern,
    },
    /// Its next picture; the first is a keyframe.
    Unit(EncodedUnit),
    /// It ends.
    End,
}

/// One camera's files.
#[derive(Debug)]
pub struct Plan {
    rules: Rules,
    ring: Ring,
    /// The objects that are there.
    present: BTreeSet<Arc<str>>,
    /// For those that have left.
    until: Option<Utc>,
    part: Part,
    /// The last name that was given, in milliseconds.
    named: i64,
    /// When the last picture is shown.
    last: Option<Duration>,
}

/// Where the file stands.
#[derive(Debug)]
enum Part {
    /// Nothing is to be kept.
    Idle,
    /// It begins with the next keyframe, and may have a name already.
    Waits(Option<String>),
    /// It is written.
    Open { name: String, begun: Utc, parameters: Option<u32> },
}

impl Plan {
    /// Nothing has come yet.
    pub fn new(rules: Rules) -> Self {
        let ring = Ring::new(rules.pre_roll + rules.lag, rules.most_bytes);
        Self { rules, ring, present: BTreeSet::new(), until: None, part: Part::Idle, named: i64::MIN, last: None }
    }

    /// The next picture. Returns what is to be written, and how many pictures no room was left for ahead of a clip.
    pub fn unit(&mut self, unit: EncodedUnit) -> (Vec<Order>, u64) {
        let mut orders = Vec::new();
        if self.last.replace(unit.time).is_some_and(|last| last.abs_diff(unit.time) > JUMP) {
            orders = self.lost();
            self.last = Some(unit.time);
        }
        let dropped = self.ring.push(unit.clone());
        if !self.wanted(unit.captured) {
            orders.extend(self.close());
            return (orders, dropped);
        }
        let parameters = if unit.key { unit.parameters() } else { None };
        match &self.part {
            Part::Idle => {}
            Part::Waits(_) if parameters.is_none() => {}
            Part::Waits(name) => {
                let name = name.clone();
                orders.push(self.begin(name, &unit));
                orders.push(Order::Unit(unit));
            }
            Part::Open { begun, parameters: now, .. } => {
                let age = unit.captured.millis().saturating_sub(begun.millis());
                let long = |most: Duration| u128::try_from(age).unwrap_or_default() >= most.as_millis();
                let another = parameters.is_some() && (parameters != *now || long(self.rules.max_clip));
                if another {
                    orders.extend([Order::End, self.begin(None, &unit)]);
                } else if long(self.rules.max_clip * 2) {
                    // No keyframe comes that another file could begin with.
                    orders.push(Order::End);
                    self.part = Part::Waits(None);
                    return (orders, dropped);
                }
                orders.push(Order::Unit(unit));
            }
        }
        (orders, dropped)
    }

    /// What an event of an object asks for, and the name of the file that the object is in.
    pub fn event(&mut self, event: &Event) -> (Option<String>, Vec<Order>) {
        let track = &event.track;
        let mut orders = Vec::new();
        if event.kind == EventKind::End {
            if self.present.remove(&track.id) {
                let until = after(track.last, self.rules.post_roll);
                self.until = Some(self.until.map_or(until, |before| before.max(until)));
            }
        } else {
            self.present.insert(track.id.clone());
            if matches!(self.part, Part::Idle) {
                orders = self.start(before(track.start, self.rules.pre_roll), event.time);
            }
        }
        let name = match &self.part {
            Part::Open { name, .. } | Part::Waits(Some(name)) => Some(name.clone()),
            Part::Idle | Part::Waits(None) => None,
        };
        if self.ring.newest().is_some_and(|newest| !self.wanted(newest)) {
            orders.extend(self.close());
        }
        (name, orders)
    }

    /// The stream has ended: so does the file. Another begins when pictures come again and there is need of it.
    pub fn lost(&mut self) -> Vec<Order> {
        self.ring.clear();
        self.last = None;
        match self.part {
            Part::Open { .. } => {
                self.part = Part::Waits(None);
                vec![Order::End]
            }
            Part::Idle | Part::Waits(_) => Vec::new(),
        }
    }

    /// Nothing more is kept.
    pub fn finish(&mut self) -> Vec<Order> {
        self.present.clear();
        self.until = None;
        self.close().into_iter().collect()
    }

    /// Whether what was taken at `at` is to be kept.
    fn wanted(&self, at: Utc) -> bool {
        !self.present.is_empty() || self.until.is_some_and(|until| at < until)
    }

    /// A first file, of what was taken from `from` on.
    fn start(&mut self, from: Utc, now: Utc) -> Vec<Order> {
        let mut units = self.ring.since(from).into_iter().skip_while(|unit| !unit.key || unit.parameters().is_none());
        let Some(first) = units.next() else {
            self.part = Part::Waits(Some(self.name(now)));
            return Vec::new();
        };
        let mut orders = vec![self.begin(None, &first)];
        let mut parameters = first.parameters();
        orders.push(Order::Unit(first));
        for unit in units {
            let other = if unit.key { unit.parameters() } else { None };
            if other.is_some() && other != parameters {
                // The stream has changed meanwhile.
                parameters = other;
                orders.extend([Order::End, self.begin(None, &unit)]);
            }
            orders.push(Order::Unit(unit));
        }
        orders
    }

    fn begin(&mut self, name: Option<String>, unit: &EncodedUnit) -> Order {
        let name = name.unwrap_or_else(|| self.name(unit.captured));
        self.part = Part::Open { name: name.clone(), begun: unit.captured, parameters: unit.parameters() };
        Order::Begin { name, codec: unit.codec, pattern: self.ring.pattern() }
    }

    fn close(&mut self) -> Option<Order> {
        let open = matches!(self.part, Part::Open { .. });
        (self.part, self.until) = (Part::Idle, None);
        open.then_some(Order::End)
    }

    /// A name that no file of the last second has: two clips may begin with the same keyframe.
    fn name(&mut self, at: Utc) -> String {
        let at = at.millis();
        self.named = if (at..=at.saturating_add(1000)).contains(&self.named) { self.named + 1 } else { at };
        Utc::from_millis(self.named).compact()
    }
}

fn after(at: Utc, later: Duration) -> Utc {
    Utc::from_millis(at.millis().saturating_add(i64::try_from(later.as_millis()).unwrap_or(i64::MAX)))
}

fn before(at: Utc, earlier: Duration) -> Utc {
    Utc::from_millis(at.millis().saturating_sub(i64::try_from(earlier.as_millis()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::sink::record::tests::{event, unit};

    const RULES: Rules = Rules {
        pre_roll: Duration::from_secs(3),
        lag: Duration::from_secs(2),
        post_roll: Duration::from_secs(4),
        max_clip: Duration::from_secs(60),
        most_bytes: 1 << 20,
    };

    /// Plays a stream of two pictures a second with a keyframe each second, and notes each file's times in seconds.
    struct Play {
        plan: Plan,
        half: i64,
        files: Vec<(String, Vec<f64>)>,
        open: bool,
    }

    impl Play {
        fn new(rules: Rules) -> Self {
            Self { plan: Plan::new(rules), half: 0, files: Vec::new(), open: false }
        }

        fn obey(&mut self, orders: Vec<Order>) {
            for order in orders {
                match order {
                    Order::Begin { name, .. } => {
                        assert!(!std::mem::replace(&mut self.open, true), "two at once");
                        assert!(self.files.iter().all(|(other, _)| *other != name), "{name} twice");
                        self.files.push((name, Vec::new()));
                    }
                    Order::Unit(unit) => {
                        let times = &mut self.files.last_mut().unwrap().1;
                        assert!(self.open && (unit.key || !times.is_empty()));
                        times.push(unit.captured.millis() as f64 / 1000.0);
                    }
                    Order::End => assert!(std::mem::replace(&mut self.open, false)),
                }
            }
        }

        fn until(&mut self, seconds: i64) {
            while self.half < seconds * 2 {
                let orders = self.plan.unit(unit(self.half % 2 == 0, self.half * 500, 10)).0;
                self.obey(orders);
                self.half += 1;
            }
        }

        fn event(&mut self, kind: EventKind, id: &str, start: i64, last: i64) -> Option<String> {
            let (name, orders) = self.plan.event(&event(kind, id, start * 1000, last * 1000, self.half * 500));
            self.obey(orders);
            name
        }

        /// First and last second of each file.
        fn spans(&self) -> Vec<(f64, f64)> {
            self.files.iter().map(|(_, times)| (times[0], times[times.len() - 1])).collect()
        }
    }

    #[test]
    fn a_clip_begins_before_the_object_and_ends_after_it() {
        let mut play = Play::new(RULES);
        play.until(12);
        let name = play.event(EventKind::New, "a", 10, 12).unwrap();
        assert_eq!(name, "19700101T000007.000Z");
        play.until(20);
        assert_eq!(play.event(EventKind::Update, "a", 10, 19), Some(name.clone()));
        play.until(25);
        assert_eq!(play.event(EventKind::End, "a", 10, 23).as_ref(), Some(&name));
        play.until(60);
        assert_eq!(play.spans(), [(7.0, 26.5)]);
        assert!(!play.open);
    }

    #[test]
    fn what_is_known_to_have_left_long_ago_ends_at_once() {
        let mut play = Play::new(RULES);
        play.until(12);
        play.event(EventKind::New, "a", 10, 12);
        play.until(40);
        play.event(EventKind::End, "a", 10, 15);
        assert!(!play.open);
        assert_eq!(play.spans(), [(7.0, 39.5)]);
    }

    #[test]
    fn two_that_are_there_together_name_one_file_and_one_that_comes_back_goes_on_with_it() {
        let mut play = Play::new(RULES);
        play.until(12);
        let names = [play.event(EventKind::New, "a", 10, 12), play.event(EventKind::New, "b", 11, 12)];
        assert!(names[0].is_some() && names[0] == names[1]);
        play.until(20);
        play.event(EventKind::End, "a", 10, 20);
        play.until(30);
        play.event(EventKind::End, "b", 11, 29);
        play.until(32);
        assert_eq!(play.event(EventKind::New, "c", 31, 32), names[0], "within the post-roll");
        play.event(EventKind::End, "c", 31, 32);
        play.until(60);
        assert_eq!(play.spans(), [(7.0, 35.5)]);
        play.event(EventKind::New, "d", 59, 60);
        play.event(EventKind::End, "d", 59, 60);
        play.until(80);
        assert_eq!(play.spans()[1..], [(56.0, 63.5)]);
    }

    #[test]
    fn clips_that_begin_with_the_same_keyframe_have_names_of_their_own() {
        let mut play = Play::new(Rules { pre_roll: Duration::from_secs(4), post_roll: Duration::ZERO, ..RULES });
        play.until(10);
        for id in ["a", "b", "c"] {
            play.event(EventKind::New, id, 9, 9);
            play.event(EventKind::End, id, 9, 9);
        }
        let names: Vec<&str> = play.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["19700101T000005.000Z", "19700101T000005.001Z", "19700101T000005.002Z"]);
    }

    #[test]
    fn a_long_event_is_cut_at_keyframes() {
        let mut play = Play::new(RULES);
        play.until(10);
        play.event(EventKind::New, "a", 9, 10);
        play.until(150);
        let second = play.event(EventKind::Update, "a", 9, 149).unwrap();
        assert_eq!(play.spans(), [(6.0, 65.5), (66.0, 125.5), (126.0, 149.5)]);
        assert_eq!(second, play.files[2].0);
    }

    #[test]
    fn without_another_keyframe_a_file_is_bounded_all_the_same() {
        let mut plan = Plan::new(RULES);
        plan.unit(unit(true, 0, 10));
        assert_eq!(plan.event(&event(EventKind::New, "a", 0, 0, 0)).1.len(), 2);
        let orders: Vec<Order> = (1..1000).flat_map(|n| plan.unit(unit(false, n * 500, 10)).0).collect();
        assert_eq!(orders.len(), 240);
        assert!(matches!(orders[239], Order::End));
    }

    #[test]
    fn a_reconnect_ends_the_file_and_begins_another_where_one_is_needed() {
        let mut play = Play::new(RULES);
        play.until(10);
        play.event(EventKind::New, "a", 9, 10);
        play.until(12);
        let orders = play.plan.lost();
        play.obey(orders);
        assert!(!play.open);
        assert_eq!(play.event(EventKind::Update, "a", 9, 12), None, "its next file has no name yet");
        play.half = 41;
        play.until(30);
        assert_eq!(play.spans(), [(6.0, 11.5), (21.0, 29.5)]);
        play.event(EventKind::End, "a", 9, 29);
        let orders = play.plan.lost();
        play.obey(orders);
        play.half = 100;
        play.until(60);
        assert_eq!(play.files.len(), 2, "nobody needs another");
    }

    #[test]
    fn an_object_that_is_told_of_before_any_picture_has_its_file_with_the_first() {
        let mut play = Play::new(RULES);
        let name = play.event(EventKind::New, "a", 0, 0);
        play.half = 1;
        play.until(3);
        assert_eq!(play.spans(), [(1.0, 2.5)]);
        assert_eq!(Some(&play.files[0].0), name.as_ref());
    }

    #[test]
    fn other_parameter_sets_and_a_leap_in_time_begin_another_file() {
        let mut play = Play::new(RULES);
        play.until(10);
        play.event(EventKind::New, "a", 9, 10);
        let mut other = unit(true, 10_000, 10);
        let bytes: Vec<u8> = [0, 0, 1, 0x67, 99, 0, 0, 1, 0x65].to_vec();
        other.bytes = bytes.into();
        let orders = play.plan.unit(other).0;
        play.obey(orders);
        assert_eq!(play.spans(), [(6.0, 9.5), (10.0, 10.0)]);
        play.half = 80;
        play.until(42);
        assert_eq!(play.spans()[1..], [(10.0, 10.0), (40.0, 41.5)]);
    }

    #[test]
    fn at_the_end_the_file_ends() {
        let mut play = Play::new(RULES);
        play.until(10);
        play.event(EventKind::New, "a", 9, 10);
        let orders = play.plan.finish();
        play.obey(orders);
        assert!(!play.open && play.plan.finish().is_empty());
    }
}
