//! How many tracked objects of each label a camera's zones hold, as their events say it. Pure: it says what to publish where.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::mqtt::cameras::Payloads;
use crate::mqtt::label::{self, Label};
use crate::mqtt::topic::Topics;
use crate::types::{CameraId, Track, Zone};

/// Entities of zones and labels that went are told for so many, or descriptions would grow with each command. Pairs are many:
/// at a start all of an earlier run's pass through here, before it is known which are still asked for.
const MOST_GONE: usize = 512;

/// A zone and a label, by their slugs.
pub type Pair = (String, String);

/// A label that a zone looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The zone as it was written, and as a topic level.
    pub zone: (Arc<str>, String),
    /// The label.
    pub label: Label,
}

/// Of one camera.
#[derive(Debug, Default)]
pub struct Zones {
    spots: Vec<Spot>,
    /// One for each spot.
    counts: BTreeMap<Pair, usize>,
    /// What was told before and is no longer.
    gone: BTreeSet<Pair>,
}

impl Zones {
    /// Takes in which zones look at which labels from now on; returns zeros for what is new, and empty payloads for what is
    /// gone.
    pub fn watch(&mut self, id: &CameraId, zones: &[Zone], labels: &[Label], topics: &Topics) -> Payloads {
        let before = std::mem::replace(&mut self.spots, spots(zones, labels));
        let asked: BTreeSet<Pair> = self.spots.iter().map(Spot::pair).collect();
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.counts).into_iter().partition(|(pair, _)| asked.contains(pair));
        self.counts = kept;
        // A slug may now stand for another label or zone, which begins with zero as any new one.
        let same = |pair: &Pair| self.spots.iter().any(|spot| spot.pair() == *pair && before.contains(spot));
        self.counts.retain(|pair, _| same(pair));
        self.gone.retain(|pair| !asked.contains(pair));
        let mut payloads = Payloads::new();
        for pair in gone.into_keys() {
            payloads.push((topics.zone_count(id, &pair.0, &pair.1), Vec::new()));
            self.leave(pair);
        }
        for pair in asked {
            let topic = topics.zone_count(id, &pair.0, &pair.1);
            self.counts.entry(pair).or_insert_with(|| {
                payloads.push((topic, "0".into()));
                0
            });
        }
        payloads
    }

    /// Takes in the objects that are there; returns the counts that changed.
    pub fn tracked<'t>(&mut self, id: &CameraId, tracks: impl Iterator<Item = &'t Track>, topics: &Topics) -> Payloads {
        let mut found: BTreeMap<Pair, usize> = BTreeMap::new();
        if !self.spots.is_empty() {
            for track in tracks.filter(|track| !track.zones.is_empty()) {
                let key = label::key(&track.label);
                for spot in self.spots.iter().filter(|spot| spot.label.key == key && track.zones.contains(&spot.zone.0)) {
                    *found.entry(spot.pair()).or_default() += 1;
                }
            }
        }
        let mut changed = Payloads::new();
        for (pair, count) in &mut self.counts {
            let now = found.get(pair).copied().unwrap_or_default();
            if std::mem::replace(count, now) != now {
                changed.push((topics.zone_count(id, &pair.0, &pair.1), now.to_string().into()));
            }
        }
        changed
    }

    /// Takes in what an earlier run told.
    pub fn leave(&mut self, pair: Pair) {
        if self.gone.len() == MOST_GONE {
            self.gone.pop_first();
        }
        self.gone.insert(pair);
    }

    /// Every label of every zone.
    pub fn spots(&self) -> &[Spot] {
        &self.spots
    }

    /// What was told before and is no longer.
    pub fn gone(&self) -> Vec<&Pair> {
        self.gone.iter().collect()
    }

    /// Every count.
    pub fn counts(&self) -> impl Iterator<Item = (&Pair, usize)> {
        self.counts.iter().map(|(pair, count)| (pair, *count))
    }
}

impl Spot {
    fn pair(&self) -> Pair {
        (self.zone.1.clone(), self.label.slug.clone())
    }
}

fn spots(zones: &[Zone], labels: &[Label]) -> Vec<Spot> {
    let slugs = label::places(&zones.iter().map(|zone| &*zone.name).collect::<Vec<_>>());
    let mut spots = Vec::new();
    for (zone, slug) in zones.iter().zip(slugs) {
        let looks_at = |label: &&Label| zone.area.labels.is_empty() || zone.area.labels.iter().any(|one| label::key(one) == label.key);
        let of = |label: &Label| Spot { zone: (zone.name.clone(), slug.clone()), label: label.clone() };
        spots.extend(labels.iter().filter(looks_at).map(of));
    }
    spots
}

/// The sums of the zones of all cameras as Frigate's readers know them.
#[derive(Debug, Default)]
pub struct Sums(BTreeMap<String, usize>);

impl Sums {
    /// Takes in every camera's zones; returns the sums that changed, and empty payloads for those that are gone. Where a zone
    /// is called as one of `cameras` the topic is the camera's.
    pub fn update<'z>(&mut self, zones: impl Iterator<Item = &'z Zones>, cameras: &BTreeSet<String>, topics: &Topics) -> Payloads {
        let mut now: BTreeMap<String, usize> = BTreeMap::new();
        for ((zone, label), count) in zones.flat_map(Zones::counts).filter(|((zone, _), _)| !cameras.contains(zone)) {
            for topic in topics.frigate_zone(zone, label) {
                *now.entry(topic).or_default() += count;
            }
        }
        let mut changed: Payloads =
            self.0.keys().filter(|topic| !now.contains_key(*topic)).map(|topic| (topic.clone(), Vec::new())).collect();
        let new = now.iter().filter(|(topic, sum)| self.0.get(*topic) != Some(sum));
        changed.extend(new.map(|(topic, sum)| (topic.clone(), sum.to_string().into())));
        self.0 = now;
        changed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use super::*;
    use crate::base::clock::Utc;
    use crate::types::{Area, Box01};

    fn zone(name: &str, labels: &[&str]) -> Zone {
        let area = Area { points: Vec::new(), labels: labels.iter().map(|label| (*label).to_owned()).collect() };
        Zone { name: name.into(), area, inertia: Duration::ZERO, loitering: Duration::ZERO }
    }

    fn labels(names: &[&str]) -> Vec<Label> {
        label::labels(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    fn track(label: &str, zones: &[&str]) -> Track {
        let time = Utc::from_millis(0);
        Track {
            id: "1".into(),
            label: label.into(),
            score: 0.5,
            top_score: 0.5,
            start: time,
            last: time,
            box01: Box01::from_locs([0, 0, 512, 512]),
            stationary: false,
            zones: zones.iter().map(|zone| (*zone).into()).collect(),
            entered_zones: vec!["gate".into()],
        }
    }

    fn lines(payloads: Payloads) -> Vec<String> {
        payloads.into_iter().map(|(topic, payload)| format!("{topic}={}", String::from_utf8(payload).unwrap())).collect()
    }

    fn id() -> CameraId {
        CameraId::new("a").unwrap()
    }

    #[test]
    fn every_label_of_every_zone_begins_with_zero_and_what_changes_is_told() {
        let (mut zones, topics) = (Zones::default(), Topics::new("P"));
        let places = [zone("Front gate", &[]), zone("lawn", &["traffic-light"])];
        let told = lines(zones.watch(&id(), &places, &labels(&["cat", "Traffic Light"]), &topics));
        let expected =
            ["P/a/zone/front_gate/count/cat=0", "P/a/zone/front_gate/count/traffic_light=0", "P/a/zone/lawn/count/traffic_light=0"];
        assert_eq!(told, expected);
        let mut see = |tracks: &[Track]| lines(zones.tracked(&id(), tracks.iter(), &topics));
        let cats = [track("CAT", &["Front gate"]), track("cat", &["lawn", "Front gate"]), track("dog", &["lawn"]), track("cat", &[])];
        assert_eq!(see(&cats), ["P/a/zone/front_gate/count/cat=2"], "the lawn does not look for cats");
        assert!(see(&cats).is_empty());
        assert_eq!(
            see(&[cats[0].clone(), track("traffic light", &["lawn"])]),
            ["P/a/zone/front_gate/count/cat=1", "P/a/zone/lawn/count/traffic_light=1"]
        );
        assert_eq!(see(&[]), ["P/a/zone/front_gate/count/cat=0", "P/a/zone/lawn/count/traffic_light=0"]);
    }

    #[test]
    fn what_is_no_longer_asked_for_is_cleared_and_remembered_until_it_comes_back() {
        let (mut zones, topics) = (Zones::default(), Topics::new("P"));
        let places = [zone("gate", &[])];
        zones.watch(&id(), &places, &labels(&["cat", "dog"]), &topics);
        zones.tracked(&id(), [track("dog", &["gate"])].iter(), &topics);
        let told = lines(zones.watch(&id(), &places, &labels(&["dog", "car"]), &topics));
        assert_eq!(told, ["P/a/zone/gate/count/cat=", "P/a/zone/gate/count/car=0"], "the dog is still there");
        assert_eq!(zones.gone(), [&("gate".to_owned(), "cat".to_owned())]);
        let told = lines(zones.watch(&id(), &places, &labels(&["cat"]), &topics));
        assert_eq!(told, ["P/a/zone/gate/count/car=", "P/a/zone/gate/count/dog=", "P/a/zone/gate/count/cat=0"]);
        assert_eq!(zones.gone().len(), 2);
        let told = lines(zones.watch(&id(), &[zone("Gate!", &[])], &labels(&["cat"]), &topics));
        assert_eq!(told, ["P/a/zone/gate/count/cat=0"], "another zone of this slug begins anew");
    }

    #[test]
    fn zones_of_one_slug_are_counted_apart() {
        let (mut zones, topics) = (Zones::default(), Topics::new("P"));
        let told = lines(zones.watch(&id(), &[zone("a b", &[]), zone("a-b", &[]), zone("a_b", &[])], &labels(&["cat"]), &topics));
        assert_eq!(told.len(), 3, "{told:?}");
        let seen = lines(zones.tracked(&id(), [track("cat", &["a_b"]), track("cat", &["a_b"])].iter(), &topics));
        assert_eq!(seen, ["P/a/zone/a_b/count/cat=2"], "what needs no digits has none");
        let seen = lines(zones.tracked(&id(), [track("cat", &["a-b"])].iter(), &topics));
        assert!(seen.len() == 2 && seen.contains(&"P/a/zone/a_b/count/cat=0".to_owned()), "{seen:?}");
    }

    #[test]
    fn frigates_readers_have_the_sums_of_all_cameras() {
        let topics = Topics::new("P").with_frigate(Some("F"));
        let (mut one, mut two, mut sums) = (Zones::default(), Zones::default(), Sums::default());
        let cameras = BTreeSet::from(["a".to_owned(), "yard".to_owned()]);
        one.watch(&id(), &[zone("gate", &[]), zone("yard", &[])], &labels(&["cat", "all"]), &topics);
        two.watch(&id(), &[zone("Gate", &["cat"])], &labels(&["cat"]), &topics);
        let mut update = |one: &Zones, two: &Zones| lines(sums.update([one, two].into_iter(), &cameras, &topics));
        assert_eq!(update(&one, &two), ["F/gate/all=0", "F/gate/cat=0"], "a camera is called yard");
        one.tracked(&id(), [track("cat", &["gate", "yard"]), track("all", &["gate"])].iter(), &topics);
        two.tracked(&id(), [track("cat", &["Gate"])].iter(), &topics);
        assert_eq!(update(&one, &two), ["F/gate/all=3", "F/gate/cat=2"]);
        assert!(update(&one, &two).is_empty());
        one.watch(&id(), &[], &[], &topics);
        assert_eq!(update(&one, &two), ["F/gate/all=1", "F/gate/cat=1"]);
        two.watch(&id(), &[], &[], &topics);
        assert_eq!(update(&one, &two), ["F/gate/all=", "F/gate/cat="]);
    }
}
