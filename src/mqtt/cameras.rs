//! What the broker's readers know of each camera: what it is asked, whether it is looked at, how many of each label its
//! newest frame shows, and how many its zones hold. Pure: it says what to publish where.

use std::collections::{BTreeMap, BTreeSet};

use crate::mqtt::label::{self, Label};
use crate::mqtt::topic::Topics;
use crate::mqtt::zones::{Sums, Zones};
use crate::types::{CameraId, Detection, Prompt, Track, Zone};

/// A camera as its readers are told of it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Which camera.
    pub id: CameraId,
    /// What its frames are asked.
    pub prompt: Prompt,
    /// Whether they are looked at.
    pub enabled: bool,
    /// Its zones.
    pub zones: Vec<Zone>,
}

/// A camera's labels, counts and rate.
#[derive(Debug, Default)]
struct Camera {
    labels: Vec<Label>,
    /// By slug, one for each label.
    counts: BTreeMap<String, usize>,
    /// The sum of the counts that Frigate's readers were told last.
    all: Option<usize>,
    /// Slugs of labels that were asked for before and are no longer.
    gone: BTreeSet<String>,
    /// Slugs of labels that there is a picture of on the broker.
    pictured: BTreeSet<String>,
    zones: Zones,
    /// Its frames are not looked at: what one shows that was under way counts no more.
    off: bool,
    fps: f64,
}

/// Topics with their payloads, in order.
pub type Payloads = Vec<(String, Vec<u8>)>;

/// Entities of labels that went are told for so many, or descriptions would grow with each command.
const MOST_GONE: usize = 64;

impl Camera {
    fn leave(&mut self, slug: String) {
        if self.gone.len() == MOST_GONE {
            self.gone.pop_first();
        }
        self.gone.insert(slug);
    }

    /// The sum of the counts for Frigate's readers, if it changed.
    fn sum(&mut self, id: &CameraId, topics: &Topics) -> Option<(String, Vec<u8>)> {
        let topic = topics.frigate_all(id)?;
        let sum = self.counts.values().sum();
        (self.all.replace(sum) != Some(sum)).then(|| (topic, sum.to_string().into()))
    }
}

/// Tells a count wherever it is read.
fn tell(payloads: &mut Payloads, topics: &Topics, id: &CameraId, slug: &str, text: &str) {
    payloads.extend(topics.counts(id, slug).into_iter().map(|topic| (topic, text.into())));
}

/// Every camera by id.
#[derive(Debug, Default)]
pub struct Cameras {
    all: BTreeMap<CameraId, Camera>,
    /// Of their zones, for Frigate's readers.
    sums: Sums,
}

impl Cameras {
    /// Takes in what a camera is asked from now on; returns its state, zeros for labels that are new, and empty payloads
    /// for those that are gone.
    pub fn watch(&mut self, watched: &Watched, topics: &Topics) -> Payloads {
        let id = &watched.id;
        let camera = self.all.entry(id.clone()).or_default();
        let before = std::mem::replace(&mut camera.labels, label::labels(watched.prompt.labels()));
        let key = |labels: &[Label], slug: &str| labels.iter().find(|label| label.slug == slug).map(|label| label.key.clone());
        // A slug may now stand for another label, which begins with zero as any new one.
        camera.counts.retain(|slug, _| key(&camera.labels, slug).is_none_or(|now| key(&before, slug) == Some(now)));
        let asked: BTreeSet<&String> = camera.labels.iter().map(|label| &label.slug).collect();
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut camera.counts).into_iter().partition(|(slug, _)| asked.contains(slug));
        camera.counts = kept;
        camera.gone.retain(|slug| !asked.contains(slug));
        let state = if watched.enabled { "ON" } else { "OFF" };
        let mut payloads = vec![(topics.prompt_state(id), watched.prompt.text().into()), (topics.detect_state(id), state.into())];
        for slug in gone.into_keys() {
            tell(&mut payloads, topics, id, &slug, "");
            if camera.pictured.remove(&slug) {
                payloads.extend(topics.snapshots(id, &slug).into_iter().map(|topic| (topic, Vec::new())));
            }
            camera.leave(slug);
        }
        for label in &camera.labels {
            if !camera.counts.contains_key(&label.slug) {
                camera.counts.insert(label.slug.clone(), 0);
                tell(&mut payloads, topics, id, &label.slug, "0");
            }
        }
        camera.off = !watched.enabled;
        if camera.off {
            for (slug, count) in camera.counts.iter_mut().filter(|(_, count)| **count > 0) {
                *count = 0;
                tell(&mut payloads, topics, id, slug, "0");
            }
        }
        payloads.extend(camera.sum(id, topics));
        let Camera { zones, labels, off, .. } = camera;
        payloads.extend(zones.watch(id, &watched.zones, labels, topics));
        if *off {
            payloads.extend(zones.tracked(id, std::iter::empty(), topics));
        }
        payloads.extend(self.sums(topics));
        payloads
    }

    /// Takes in the objects of a camera that are there; returns the counts of its zones that changed.
    pub fn tracked<'t>(&mut self, id: &CameraId, tracks: impl Iterator<Item = &'t Track>, topics: &Topics) -> Payloads {
        let Some(camera) = self.all.get_mut(id) else { return Payloads::new() };
        // As with frames: what was under way when it was switched off counts no more.
        let off = camera.off;
        let mut changed = camera.zones.tracked(id, tracks.filter(|_| !off), topics);
        if !changed.is_empty() {
            changed.extend(self.sums(topics));
        }
        changed
    }

    fn sums(&mut self, topics: &Topics) -> Payloads {
        let ids = self.all.keys().map(|id| id.as_str().to_owned()).collect();
        self.sums.update(self.all.values().map(|camera| &camera.zones), &ids, topics)
    }

    /// Takes in that there is such a camera, before any is watched: a zone may be called as one.
    pub fn know(&mut self, id: &CameraId) {
        self.all.entry(id.clone()).or_default();
    }

    /// A camera comes later; returns the sums of zones that are called as it, emptied.
    pub fn enter(&mut self, id: &CameraId, topics: &Topics) -> Payloads {
        self.know(id);
        self.sums(topics)
    }

    /// A camera goes; returns where there are pictures of it, and the sums of zones that change with it.
    pub fn leave(&mut self, id: &CameraId, topics: &Topics) -> (Vec<String>, Payloads) {
        let gone = self.all.remove(id).unwrap_or_default();
        let pictures = gone.pictured.iter().flat_map(|slug| topics.snapshots(id, slug)).collect();
        (pictures, self.sums(topics))
    }

    /// A camera's zones.
    pub fn zones(&self, id: &CameraId) -> Option<&Zones> {
        self.all.get(id).map(|camera| &camera.zones)
    }

    /// Takes in the slugs of a zone and a label that an earlier run told of.
    pub fn earlier_zone(&mut self, id: &CameraId, zone: &str, slug: &str) {
        self.all.entry(id.clone()).or_default().zones.leave((zone.to_owned(), slug.to_owned()));
    }

    /// Takes in what a frame shows; returns the counts that changed. Labels that nobody asked for are left out: they are
    /// the model's own words.
    pub fn looked(&mut self, id: &CameraId, detections: &[Detection], topics: &Topics) -> Payloads {
        let Some(camera) = self.all.get_mut(id).filter(|camera| !camera.off || detections.is_empty()) else { return Payloads::new() };
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for detection in detections {
            let key = label::key(&detection.label);
            if let Some(label) = camera.labels.iter().find(|label| label.key == key) {
                *found.entry(label.slug.clone()).or_default() += 1;
            }
        }
        let mut changed = Payloads::new();
        for (slug, count) in &mut camera.counts {
            let now = found.get(slug).copied().unwrap_or_default();
            if std::mem::replace(count, now) != now {
                tell(&mut changed, topics, id, slug, &now.to_string());
            }
        }
        changed.extend(camera.sum(id, topics));
        changed
    }

    /// Takes in the slug of a label that an earlier run was asked for.
    pub fn earlier(&mut self, id: &CameraId, slug: &str) {
        self.all.entry(id.clone()).or_default().leave(slug.to_owned());
    }

    /// Nothing is seen any more: zeros for all that is not zero.
    pub fn end(&mut self, topics: &Topics) -> Payloads {
        let ids: Vec<CameraId> = self.all.keys().cloned().collect();
        let mut payloads: Payloads = ids.iter().flat_map(|id| self.looked(id, &[], topics)).collect();
        payloads.extend(ids.iter().flat_map(|id| self.tracked(id, std::iter::empty(), topics)));
        payloads
    }

    /// The slug of a label that a camera is asked for; `None` for the model's own words.
    pub fn slug(&self, id: &CameraId, label: &str) -> Option<&str> {
        let key = label::key(label);
        self.all.get(id)?.labels.iter().find(|label| label.key == key).map(|label| label.slug.as_str())
    }

    /// Takes in that there is a picture of a label on the broker.
    pub fn pictured(&mut self, id: &CameraId, slug: &str) {
        self.all.entry(id.clone()).or_default().pictured.insert(slug.to_owned());
    }

    /// Where there are pictures of labels that are asked for.
    pub fn pictures(&self, topics: &Topics) -> Vec<String> {
        let of = |(id, camera): (&CameraId, &Camera)| {
            let asked = camera.pictured.iter().filter(|slug| camera.labels.iter().any(|label| label.slug == **slug));
            asked.flat_map(|slug| topics.snapshots(id, slug)).collect::<Vec<_>>()
        };
        self.all.iter().flat_map(of).collect()
    }

    /// Whether there is such a camera.
    pub fn knows(&self, id: &CameraId) -> bool {
        self.all.contains_key(id)
    }

    /// Takes in how many frames a second a camera sends.
    pub fn rate(&mut self, id: &CameraId, fps: f64) {
        self.all.entry(id.clone()).or_default().fps = fps;
    }

    /// Every camera with its newest rate.
    pub fn rates(&self) -> impl Iterator<Item = (&CameraId, f64)> {
        self.all.iter().map(|(id, camera)| (id, camera.fps))
    }

    /// The labels a camera is asked for, and the slugs of those that it was asked for before.
    pub fn labels(&self, id: &CameraId) -> (&[Label], Vec<&str>) {
        self.all.get(id).map_or((&[], Vec::new()), |camera| (&camera.labels, camera.gone.iter().map(String::as_str).collect()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use super::*;
    use crate::base::clock::Utc;
    use crate::types::{Area, Box01};

    fn watched(prompt: &str) -> Watched {
        Watched { id: CameraId::new("a").unwrap(), prompt: Prompt::new(prompt).unwrap(), enabled: true, zones: Vec::new() }
    }

    fn found(labels: &[&str]) -> Vec<Detection> {
        let locs = [0, 0, 512, 512];
        let one = |label: &&str| Detection { label: (*label).to_owned(), score: 0.5, locs, box01: Box01::from_locs(locs) };
        labels.iter().map(one).collect()
    }

    fn lines(payloads: Payloads) -> Vec<String> {
        payloads.into_iter().map(|(topic, payload)| format!("{topic}={}", String::from_utf8(payload).unwrap())).collect()
    }

    #[test]
    fn every_asked_label_begins_with_zero_and_what_changes_is_told() {
        let (mut cameras, topics) = (Cameras::default(), Topics::new("P"));
        let all = lines(cameras.watch(&watched("detect Cat ; traffic light ; cat"), &topics));
        let expected =
            ["P/a/prompt/state=detect Cat ; traffic light ; cat", "P/a/detect/state=ON", "P/a/count/cat=0", "P/a/count/traffic_light=0"];
        assert_eq!(all, expected);
        let id = watched("x").id;
        let mut looked = |labels: &[&str]| lines(cameras.looked(&id, &found(labels), &topics));
        assert_eq!(looked(&["cat", "CAT", "Traffic-Light", "unicorn"]), ["P/a/count/cat=2", "P/a/count/traffic_light=1"]);
        assert!(looked(&["cat", "cat", "traffic light"]).is_empty());
        assert_eq!(looked(&["cat", "traffic light"]), ["P/a/count/cat=1"]);
        assert_eq!(lines(cameras.end(&topics)), ["P/a/count/cat=0", "P/a/count/traffic_light=0"]);
        assert!(cameras.end(&topics).is_empty());
    }

    #[test]
    fn labels_with_the_same_slug_are_counted_apart() {
        let (mut cameras, topics) = (Cameras::default(), Topics::new("P"));
        let told = lines(cameras.watch(&watched("detect 猫1 ; 犬1 ; 1"), &topics));
        let slug = |index: usize| told[index].strip_prefix("P/a/count/").unwrap().strip_suffix("=0").unwrap().to_owned();
        let (cat, dog) = (slug(2), slug(3));
        assert!(told.len() == 5 && slug(4) == "1" && cat != dog, "{told:?}");
        let id = watched("x").id;
        assert_eq!(
            lines(cameras.looked(&id, &found(&["犬1", "犬1", "1", "鳥1"]), &topics)),
            ["P/a/count/1=1".to_owned(), format!("P/a/count/{dog}=2")]
        );
        let told = lines(cameras.watch(&watched("detect 犬1"), &topics));
        assert!(
            told.contains(&format!("P/a/count/{dog}=")) && told.contains(&"P/a/count/1=0".to_owned()),
            "alone it needs no digits, and begins anew: {told:?}"
        );
    }

    #[test]
    fn frigates_readers_have_each_count_and_the_sum() {
        let (mut cameras, topics) = (Cameras::default(), Topics::new("P").with_frigate(Some("F")));
        let told = lines(cameras.watch(&watched("detect cat ; all"), &topics));
        assert_eq!(told[2..], ["P/a/count/cat=0", "F/a/cat=0", "P/a/count/all=0", "F/a/all=0"]);
        let id = watched("x").id;
        let told = lines(cameras.looked(&id, &found(&["cat", "cat", "all", "dog"]), &topics));
        assert_eq!(told, ["P/a/count/all=1", "P/a/count/cat=2", "F/a/cat=2", "F/a/all=3"]);
        assert!(cameras.looked(&id, &found(&["cat", "cat", "all"]), &topics).is_empty());
        let told = lines(cameras.watch(&watched("detect cat"), &topics));
        assert_eq!(told[2..], ["P/a/count/all=", "F/a/all=2"]);
        let told = lines(cameras.watch(&watched("detect dog"), &topics));
        assert_eq!(told[2..], ["P/a/count/cat=", "F/a/cat=", "P/a/count/dog=0", "F/a/dog=0", "F/a/all=0"]);
    }

    #[test]
    fn entities_of_an_earlier_run_go_but_those_that_are_asked_for_again() {
        let (mut cameras, topics, id) = (Cameras::default(), Topics::new("P"), watched("x").id);
        ["cat", "dog"].iter().for_each(|slug| cameras.earlier(&id, slug));
        cameras.watch(&watched("detect dog"), &topics);
        assert_eq!(cameras.labels(&id).1, ["cat"]);
    }

    #[test]
    fn labels_that_go_are_cleared_and_remembered_until_they_come_back() {
        let (mut cameras, topics) = (Cameras::default(), Topics::new("P"));
        cameras.watch(&watched("detect cat ; dog"), &topics);
        let id = watched("x").id;
        cameras.looked(&id, &found(&["dog"]), &topics);
        let changed = lines(cameras.watch(&watched("detect dog ; car"), &topics));
        assert_eq!(changed[2..], ["P/a/count/cat=", "P/a/count/car=0"], "the dog is still there");
        assert_eq!(cameras.labels(&id).1, ["cat"]);
        let changed = lines(cameras.watch(&watched("detect cat"), &topics));
        assert_eq!(changed[2..], ["P/a/count/car=", "P/a/count/dog=", "P/a/count/cat=0"]);
        assert_eq!(cameras.labels(&id).1, ["car", "dog"]);
        let off = Watched { enabled: false, ..watched("caption en") };
        assert_eq!(lines(cameras.watch(&off, &topics))[..2], ["P/a/prompt/state=caption en", "P/a/detect/state=OFF"]);
    }

    #[test]
    fn a_camera_that_is_switched_off_has_nobody_in_its_zones() {
        let (mut cameras, topics) = (Cameras::default(), Topics::new("P").with_frigate(Some("F")));
        let zone = Zone { name: "gate".into(), area: Area::default(), inertia: Duration::ZERO, loitering: Duration::ZERO };
        let on = Watched { zones: vec![zone], ..watched("detect cat") };
        assert_eq!(
            lines(cameras.watch(&on, &topics))[2..],
            ["P/a/count/cat=0", "F/a/cat=0", "F/a/all=0", "P/a/zone/gate/count/cat=0", "F/gate/all=0", "F/gate/cat=0"]
        );
        let time = Utc::from_millis(0);
        let cat = Track {
            id: "1".into(),
            label: "cat".into(),
            score: 0.5,
            top_score: 0.5,
            start: time,
            last: time,
            box01: Box01::from_locs([0, 0, 512, 512]),
            stationary: false,
            zones: vec!["gate".into()],
            entered_zones: vec!["gate".into()],
        };
        let there = ["P/a/zone/gate/count/cat=1", "F/gate/all=1", "F/gate/cat=1"];
        let none = ["P/a/zone/gate/count/cat=0", "F/gate/all=0", "F/gate/cat=0"];
        assert_eq!(lines(cameras.tracked(&on.id, [&cat].into_iter(), &topics)), there);
        let off = Watched { enabled: false, ..on.clone() };
        assert_eq!(lines(cameras.watch(&off, &topics))[2..], none);
        assert!(cameras.tracked(&on.id, [&cat].into_iter(), &topics).is_empty(), "it was under way");
        cameras.watch(&on, &topics);
        assert_eq!(lines(cameras.tracked(&on.id, [&cat].into_iter(), &topics)), there);
        assert_eq!(lines(cameras.end(&topics)), none);
    }
}
