use std::collections::BTreeMap;

use super::*;
use crate::types::{Area, Box01, Updates, Zone};

const PROMPT: &str = "detect person ; car ; cat";

/// Milliseconds since 1970 at second 0 of every scene.
const EPOCH: i64 = 1_795_442_587_120;

/// A camera, a clock that only the test moves, and what was told so far.
struct Scene {
    tracker: Tracker,
    start: Instant,
    prompt: Prompt,
    /// From a picture's arrival to its answer, seconds.
    latency: f64,
    /// What the camera's clock is ahead of ours, milliseconds.
    ahead: i64,
    told: Vec<Event>,
}

impl Scene {
    fn new(rules: Tracking, interval: f64, longest: f64) -> Self {
        let pace = Pace { interval: Duration::from_secs_f64(interval), longest: Duration::from_secs_f64(longest) };
        let tracker = Tracker::new(CameraId::new("gate").unwrap(), rules, pace);
        let prompt = Prompt::new(PROMPT).unwrap();
        Self { tracker, start: Instant::now(), prompt, latency: 0.3, ahead: 0, told: Vec::new() }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    fn look(&mut self, at: f64, seen: &[Detection]) -> Vec<Event> {
        let look = Look {
            received: self.at(at),
            now: self.at(at + self.latency),
            captured: Utc::from_millis(EPOCH + (at * 1000.0).round() as i64 + self.ahead),
            frame: (1600, 800),
            prompt: &self.prompt,
            detections: seen,
        };
        let events = self.tracker.step(&look);
        self.note(events)
    }

    /// Ticks twice a second, as the daemon does.
    fn wait(&mut self, from: f64, to: f64) -> Vec<Event> {
        self.wait_so(from, to, true)
    }

    fn wait_so(&mut self, from: f64, to: f64, watched: bool) -> Vec<Event> {
        let ticks = ((to - from) * 2.0) as usize;
        (1..=ticks)
            .flat_map(|n| {
                let events = self.tracker.tick(self.at(from + n as f64 / 2.0), watched);
                self.note(events)
            })
            .collect()
    }

    fn tick(&mut self, at: f64) -> Vec<Event> {
        let events = self.tracker.tick(self.at(at), true);
        self.note(events)
    }

    fn finish(&mut self, at: f64) -> Vec<Event> {
        let events = self.tracker.finish(self.at(at));
        self.note(events)
    }

    fn note(&mut self, events: Vec<Event>) -> Vec<Event> {
        self.told.extend(events.iter().cloned());
        events
    }

    fn count(&self, kind: EventKind) -> usize {
        self.told.iter().filter(|event| event.kind == kind).count()
    }

    /// Every object's events, in order: one `new`, updates, one `end`, each with what the one before said.
    fn lives(&self) -> BTreeMap<Arc<str>, Vec<&Event>> {
        let mut lives: BTreeMap<Arc<str>, Vec<&Event>> = BTreeMap::new();
        for event in &self.told {
            lives.entry(event.track.id.clone()).or_default().push(event);
        }
        for life in lives.values() {
            let kinds: Vec<EventKind> = life.iter().map(|event| event.kind).collect();
            let updates = &kinds[1..kinds.len() - 1];
            assert_eq!((kinds[0], kinds[kinds.len() - 1]), (EventKind::New, EventKind::End), "{kinds:?}");
            assert!(updates.iter().all(|kind| *kind == EventKind::Update), "{kinds:?}");
            assert!(life[0].before.is_none());
            for pair in life.windows(2) {
                assert_eq!(pair[1].before.as_deref(), Some(&pair[0].track));
                assert!(pair[1].id > pair[0].id && pair[1].time >= pair[0].time, "{pair:?}");
            }
        }
        lives
    }

    fn names(&self) -> Vec<(&'static str, &'static str)> {
        self.told.iter().map(|event| (event.kind.name(), event.reason.name())).collect()
    }
}

/// `x` and `y` are the middle of the lower edge.
fn one(label: &str, score: f32, x: f32, y: f32, width: f32, height: f32) -> Detection {
    let box01 = Box01 { x_min: (x - width / 2.0).max(0.0), x_max: (x + width / 2.0).min(1.0), y_min: y - height, y_max: y };
    Detection { label: label.to_owned(), score, locs: [0; 4], box01 }
}

fn person(x: f64) -> Detection {
    one("person", 0.8, x as f32, 0.8, 0.08, 0.4)
}

fn car(x: f64) -> Detection {
    one("car", 0.8, x as f32, 0.9, 0.2, 0.25)
}

/// SplitMix64: the same storm at every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.share()
    }
}

fn quiet() -> Updates {
    Updates { every: Duration::ZERO, moved: None, score: None, zones: false, heartbeat: None }
}

#[test]
fn an_object_is_told_of_once_confirmed_and_at_its_end() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 1.0);
    assert!(scene.look(0.0, &[person(0.5)]).is_empty());
    let new = scene.look(1.0, &[one(" Person", 0.85, 0.5, 0.8, 0.08, 0.4)]);
    assert_eq!(new.len(), 1);
    let (event, track) = (&new[0], &new[0].track);
    assert_eq!((event.kind, event.reason, event.time.millis()), (EventKind::New, Reason::FirstSeen, EPOCH + 1000));
    assert_eq!((track.start.millis(), track.last.millis()), (EPOCH, EPOCH + 1000));
    assert_eq!((track.score, track.top_score, &*track.label, event.frame), (0.85, 0.85, "person", (1600, 800)));
    assert_eq!((&*event.prompt_id, event.id.get_version_num()), (scene.prompt.id(), 7));
    let (epoch, digits) = track.id.split_once('-').unwrap();
    assert!(epoch == "1795442587.120" && digits.len() == 4 && digits.bytes().all(|b| b"0123456789abcdef".contains(&b)), "{}", track.id);
    for at in 2..7 {
        assert_eq!(scene.look(at.into(), &[]).len(), usize::from(at == 6), "second {at}");
    }
    let end = &scene.told[1];
    assert_eq!(
        (end.kind, end.reason, end.time.millis(), end.track.last.millis()),
        (EventKind::End, Reason::Lost, EPOCH + 6000, EPOCH + 1000)
    );
    scene.lives();
}

#[test]
fn confirmation_may_ask_for_looks_and_for_seconds() {
    let rules = |looks, seconds| Tracking { confirm_looks: looks, confirm: Duration::from_secs_f64(seconds), ..Tracking::default() };
    for (looks, seconds, expected) in [(1, 0.0, 0.0), (3, 0.0, 2.0), (1, 3.5, 4.0), (2, 0.5, 1.0)] {
        let mut scene = Scene::new(rules(looks, seconds), 1.0, 1.0);
        let first = (0..9).find(|at| !scene.look(f64::from(*at), &[person(0.5)]).is_empty());
        assert_eq!(first.map(f64::from), Some(expected), "{looks} looks, {seconds} s");
    }
}

#[test]
fn what_is_seen_once_is_never_told() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 1.0);
    for at in 0..40 {
        let seen: Vec<Detection> = if at % 4 == 0 { vec![person(0.5)] } else { Vec::new() };
        assert!(scene.look(at.into(), &seen).is_empty(), "second {at}");
    }
    assert!(scene.finish(50.0).is_empty());
}

/// Two people of unlike height pass each other; at every rate each keeps its name.
#[test]
fn objects_of_one_label_that_cross_keep_their_names() {
    for rate in [0.5, 1.0, 2.0, 5.0] {
        let mut scene = Scene::new(Tracking { updates: quiet(), ..Tracking::default() }, 1.0 / rate, 1.0 / rate);
        for n in 0..(20.0 * rate) as usize {
            let at = n as f64 / rate;
            let (right, left) = (0.1 + at * 0.04, 0.9 - at * 0.04);
            scene.look(at, &[one("person", 0.8, right as f32, 0.8, 0.08, 0.4), one("person", 0.8, left as f32, 0.75, 0.07, 0.32)]);
        }
        scene.finish(20.0);
        let lives = scene.lives();
        assert_eq!(lives.len(), 2, "{rate} looks a second");
        for life in lives.values() {
            let height = |event: &Event| event.track.box01.y_max - event.track.box01.y_min;
            assert!((height(life[0]) - height(life[1])).abs() < 0.01, "{rate} looks a second: {life:?}");
        }
    }
}

/// A convoy whose cars stand where the one ahead stood a look before: only their speed tells them apart.
#[test]
fn a_convoy_is_told_apart_by_its_speed() {
    let mut scene = Scene::new(Tracking { updates: quiet(), ..Tracking::default() }, 0.5, 0.5);
    for n in 0..40 {
        let at = f64::from(n) * 0.5;
        let cars: Vec<Detection> =
            [0.0, 5.0, 10.0].iter().map(|behind| 0.05 + (at - behind) * 0.12).filter(|x| (0.05..0.95).contains(x)).map(car).collect();
        scene.look(at, &cars);
    }
    scene.finish(20.0);
    assert_eq!(scene.lives().len(), 3);
}

#[test]
fn what_is_hidden_for_less_than_lost_after_is_the_same_and_for_more_another() {
    for (hidden, objects) in [(3.0, 1), (4.0, 1), (8.0, 2)] {
        let mut scene = Scene::new(Tracking { updates: quiet(), ..Tracking::default() }, 0.5, 0.5);
        for n in 0..50 {
            let at = f64::from(n) * 0.5;
            let behind_a_tree = (8.0..8.0 + hidden).contains(&at);
            let seen = [person(0.1 + at * 0.03)];
            scene.look(at, if behind_a_tree { &[] } else { &seen });
        }
        scene.finish(25.0);
        assert_eq!(scene.lives().len(), objects, "hidden for {hidden} s");
    }
}

#[test]
fn uneven_looks_change_nothing() {
    for seed in 0..20 {
        let (mut dice, mut at) = (Dice(seed), 0.0);
        let mut scene = Scene::new(Tracking { updates: quiet(), ..Tracking::default() }, 1.0, 1.0);
        while at < 120.0 {
            let walker = 0.05 + 0.0075 * at;
            scene.look(at, &[person(walker), car(0.5), one("cat", 0.5, 0.9 - walker as f32 * 0.8, 0.3, 0.1, 0.15)]);
            at += if dice.share() < 0.5 { dice.between(0.2, 1.0) } else { dice.between(1.0, 4.0) };
        }
        assert_eq!((scene.count(EventKind::New), scene.count(EventKind::End)), (3, 0), "seed {seed}");
    }
}

#[test]
fn one_missed_look_ends_nothing_however_far_looks_are_apart() {
    for interval in [0.2, 1.0, 5.0, 10.0, 60.0, 600.0] {
        let mut scene = Scene::new(Tracking { updates: quiet(), ..Tracking::default() }, interval, interval);
        for n in 0..60 {
            let at = f64::from(n) * interval;
            let seen: &[Detection] = if n % 3 == 2 { &[] } else { &[car(0.5)] };
            scene.look(at, seen);
            scene.tick(at + interval * 0.99);
        }
        assert_eq!((scene.count(EventKind::New), scene.count(EventKind::End)), (1, 0), "{interval} s");
    }
}

/// Six hours at a look a second: a third of the looks miss it, boxes jump and scores go anywhere, cars pass in front.
#[test]
fn a_parked_car_is_one_object_for_hours() {
    let (mut dice, updates) = (Dice(6), Updates { heartbeat: Some(Duration::from_secs(600)), ..Updates::default() });
    let mut scene = Scene::new(Tracking { updates, ..Tracking::default() }, 1.0, 1.0);
    let parked = |dice: &mut Dice| {
        let mut jump = |most: f64| dice.between(-most, most) as f32;
        let (x, y) = (0.5 + jump(0.012), 0.9 + jump(0.012));
        one("car", 0.55 + jump(0.45), x, y, 0.2 + jump(0.01), 0.25 + jump(0.012))
    };
    for second in 0..6 * 3600 {
        let mut seen = Vec::new();
        if second < 20 || dice.share() > 0.33 {
            seen.push(parked(&mut dice));
        }
        // One in five minutes the model draws a box quite elsewhere for it.
        if second > 60 && second % 300 == 7 {
            seen = vec![one("car", 0.5, 0.58, 0.9, 0.2, 0.25)];
        }
        // Traffic: someone drives by in front of it, and hides it.
        let passing = second % 900 - 450;
        if second > 60 && (0..10).contains(&passing) {
            if (4..7).contains(&passing) {
                seen.clear();
            }
            seen.push(one("car", 0.9, 0.05 + 0.1 * passing as f32, 0.98, 0.22, 0.28));
        }
        scene.look(second.into(), &seen);
        scene.tick(f64::from(second) + 0.8);
    }
    let last = f64::from(6 * 3600);
    let parked: Vec<&Track> = scene.tracker.present().map(|(track, _)| track).filter(|track| track.stationary).collect();
    assert_eq!(parked.len(), 1);
    let id = parked[0].id.clone();
    let own: Vec<&Event> = scene.told.iter().filter(|event| event.track.id == id).collect();
    let kinds = |kind| own.iter().filter(|event| event.kind == kind).count();
    assert_eq!((kinds(EventKind::New), kinds(EventKind::End)), (1, 0));
    let moved: Vec<i64> =
        own.iter().filter(|event| event.reason == Reason::Moved).map(|event| (event.time.millis() - EPOCH) / 1000).collect();
    assert_eq!(moved.len(), 1, "it came to rest once, at {moved:?}");
    // The others are those that drove by.
    scene.finish(last);
    assert_eq!(scene.lives().len(), 1 + 24);
}

#[test]
fn what_rests_and_drives_off_is_told_to_have_moved() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 1.0);
    for second in 0..60 {
        let x = if second < 40 { 0.3 } else { 0.3 + 0.05 * f64::from(second - 40) };
        scene.look(second.into(), if x < 0.9 { vec![car(x)] } else { vec![] }.as_slice());
    }
    let stationary: Vec<(i64, bool)> = scene
        .told
        .iter()
        .filter(|event| event.before.as_ref().is_some_and(|before| before.stationary != event.track.stationary))
        .map(|event| ((event.time.millis() - EPOCH) / 1000, event.track.stationary))
        .collect();
    assert!(matches!(stationary[..], [(10, true), (42 | 43, false)]), "{stationary:?}");
    // As it did not rest any more, its end comes after lost_after, not after that of what rests.
    assert_eq!((scene.count(EventKind::New), scene.count(EventKind::End)), (1, 1));
}

#[test]
fn fifty_objects_at_once_keep_their_names() {
    let mut scene = Scene::new(Tracking { updates: quiet(), ..Tracking::default() }, 0.5, 0.5);
    for n in 0..40 {
        let seen: Vec<Detection> = (0..50)
            .map(|object| {
                let (row, column) = (object / 10, object % 10);
                let way = if row % 2 == 0 { 0.002 } else { -0.002 };
                let (x, y) = (0.07 + 0.095 * column as f32 + way * n as f32, 0.15 + 0.18 * row as f32);
                one("person", 0.5 + object as f32 / 200.0, x, y, 0.03, 0.12)
            })
            .collect();
        let order = n % 50;
        scene.look(n as f64 * 0.5, &[&seen[order..], &seen[..order]].concat());
    }
    scene.finish(20.0);
    let lives = scene.lives();
    assert_eq!(lives.len(), 50);
    // The score is the object's name here.
    assert!(lives.values().all(|life| life.len() == 2 && life[0].track.top_score == life[1].track.score));
}

#[test]
fn objects_are_bounded() {
    let mut scene = Scene::new(Tracking { confirm_looks: 1, ..Tracking::default() }, 1.0, 1.0);
    let many: Vec<Detection> =
        (0..600).map(|n| one("cat", 0.9, 0.01 + 0.03 * (n % 30) as f32, 0.04 + 0.04 * (n / 30) as f32, 0.01, 0.01)).collect();
    assert_eq!((scene.look(0.0, &many).len(), scene.tracker.beyond()), (MOST, 600 - MOST));
    assert_eq!((scene.look(0.5, &many[..10]).len(), scene.tracker.beyond()), (0, 0));
    assert_eq!(scene.finish(1.0).len(), MOST);
}

#[test]
fn a_lost_camera_ends_its_objects_after_lost_after() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 1.0);
    for second in 0..5 {
        scene.look(second.into(), &[person(0.5), car(0.2)]);
    }
    assert!(scene.wait(4.3, 9.0).is_empty());
    let ends = scene.wait(9.0, 9.5);
    assert_eq!(ends.len(), 2, "the last picture came at 4, its answer 0.3 later");
    assert!(ends.iter().all(|end| end.kind == EventKind::End && (8900..9500).contains(&(end.time.millis() - EPOCH))));
    assert!(scene.wait(9.5, 100.0).is_empty());
    // The camera comes back: nothing of before is there.
    assert!(scene.look(100.0, &[person(0.5)]).is_empty() && scene.tracker.present().count() == 0);
    assert_eq!(scene.look(101.0, &[person(0.5)]).len(), 1);
    scene.finish(102.0);
    assert_eq!(scene.lives().len(), 3);
}

/// The same without a tick: the next look ends what the silence has.
#[test]
fn a_look_after_a_long_silence_ends_what_was_there_before() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 1.0);
    scene.look(0.0, &[person(0.5)]);
    scene.look(1.0, &[person(0.5)]);
    assert_eq!(scene.look(3600.0, &[person(0.5)])[0].kind, EventKind::End);
    // That silence was no distance between looks.
    scene.look(3601.0, &[person(0.5)]);
    assert_eq!(scene.wait(3601.3, 3601.3 + LOOKS * LONGEST + 1.0).len(), 1);
    scene.lives();
}

/// Where only motion has a look made, no look is no reason to believe that something left.
#[test]
fn nothing_ends_while_nothing_moves() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 60.0);
    for second in [0, 1, 2, 4] {
        // Two moving ones: one stays, one leaves; the last look comes when all is still.
        let seen: &[Detection] = if second < 1 {
            &[car(0.3), person(0.8)]
        } else if second < 2 {
            &[person(0.8), car(0.3)]
        } else {
            &[car(0.3)]
        };
        scene.look(second.into(), seen);
    }
    let ended = scene.wait(4.3, 63.0);
    assert_eq!(
        ended.iter().map(|end| &*end.track.label).collect::<Vec<_>>(),
        ["person"],
        "two looks missed it, and the picture is the same"
    );
    assert!(ended[0].time.millis() - EPOCH < 7000);
    assert!(scene.look(64.0, &[car(0.3)]).iter().all(|event| event.kind == EventKind::Update));
    // One look that misses it is no proof, and a lost camera is seen after two of the longest pauses.
    scene.look(124.0, &[]);
    assert!(scene.wait(124.3, 150.0).is_empty());
    scene.look(150.0, &[car(0.3)]);
    assert!(scene.wait(150.3, 270.0).is_empty());
    assert_eq!(scene.wait(270.0, 300.0).len(), 1);
    scene.lives();
}

/// A loss that is known of need not be told from a pause: short ones end nothing, longer ones do after lost_after.
#[test]
fn a_known_loss_ends_objects_after_lost_after_though_pauses_may_be_long() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 60.0);
    scene.look(0.0, &[person(0.5)]);
    scene.look(1.0, &[person(0.5)]);
    assert!(scene.wait(1.3, 40.0).is_empty());
    assert!(scene.wait_so(40.0, 44.0, false).is_empty() && scene.wait(44.0, 50.0).is_empty());
    assert!(scene.wait_so(50.0, 55.0, false).is_empty());
    assert_eq!(scene.wait_so(55.0, 56.0, false).len(), 1);
    // Where looks are a minute apart, so that a short loss costs none, it has two of them.
    let mut slow = Scene::new(Tracking::default(), 60.0, 60.0);
    slow.look(0.0, &[person(0.5)]);
    slow.look(60.0, &[person(0.5)]);
    assert!(slow.wait_so(60.3, 180.0, false).is_empty());
    assert_eq!(slow.wait_so(180.0, 181.0, false).len(), 1);
}

#[test]
fn a_slow_model_makes_looks_rare_and_ends_nothing() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 1.0);
    scene.latency = 16.0;
    for n in 0..20 {
        let at = f64::from(n) * 16.0;
        scene.look(at, &[car(0.4)]);
        scene.wait(at + 16.0, at + 31.9);
    }
    assert_eq!((scene.count(EventKind::New), scene.count(EventKind::End)), (1, 0));
}

#[test]
fn jumps_of_the_cameras_clock_change_stamps_only() {
    let mut scene = Scene::new(Tracking { updates: quiet(), ..Tracking::default() }, 1.0, 1.0);
    for second in 0..40 {
        scene.ahead = match second {
            0..10 => 0,
            10..20 => 86_400_000,
            20..30 => -86_400_000,
            _ => second * 7_000,
        };
        scene.look(second as f64, &[person(0.1 + 0.02 * second as f64)]);
    }
    assert_eq!((scene.count(EventKind::New), scene.count(EventKind::End)), (1, 0));
    let end = scene.wait(39.3, 45.0);
    assert!((end[0].time.millis() - EPOCH - 39 * 8_000 - 5_000).abs() < 600);
}

#[test]
fn an_object_begins_at_a_higher_score_than_it_lives_on() {
    let rules = Tracking { start_score: 0.6, keep_score: 0.3, updates: quiet(), ..Tracking::default() };
    let mut scene = Scene::new(rules, 1.0, 1.0);
    let scored = |score| [one("cat", score, 0.5, 0.5, 0.1, 0.1)];
    for second in 0..10 {
        assert!(scene.look(second.into(), &scored(0.59)).is_empty());
    }
    scene.look(10.0, &scored(0.6));
    assert_eq!(scene.look(11.0, &scored(0.31)).len(), 1);
    for second in 12..40 {
        assert!(scene.look(second.into(), &scored(0.31)).is_empty());
    }
    // It rests by now, so it has a minute.
    let ends: Vec<i32> = (40..120).filter(|second| !scene.look((*second).into(), &scored(0.29)).is_empty()).collect();
    assert_eq!(ends, [99]);
}

#[test]
fn another_prompt_ends_what_is_no_longer_asked_for() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 1.0);
    scene.look(0.0, &[person(0.5), car(0.2)]);
    scene.look(1.0, &[person(0.5), car(0.2)]);
    let before = scene.prompt.id().to_owned();
    scene.prompt = Prompt::new("detect Car; dog").unwrap();
    let events = scene.look(2.0, &[car(0.2)]);
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].kind, &*events[0].track.label, &*events[0].prompt_id), (EventKind::End, "person", &*before));
    // A question that asks for nothing by name.
    scene.prompt = Prompt::new("caption en").unwrap();
    assert_eq!(scene.look(3.0, &[]).len(), 1);
    scene.lives();
}

#[test]
fn a_stop_ends_everything_once() {
    let mut scene = Scene::new(Tracking::default(), 1.0, 1.0);
    assert!(scene.finish(0.0).is_empty());
    scene.look(0.0, &[person(0.5), car(0.2)]);
    scene.look(1.0, &[person(0.5), car(0.2), one("cat", 0.9, 0.8, 0.3, 0.1, 0.1)]);
    assert_eq!(scene.finish(2.0).len(), 2);
    assert!(scene.finish(3.0).is_empty() && scene.wait(3.0, 100.0).is_empty());
    assert_eq!(scene.lives().len(), 2);
}

fn zone(name: &str, x: [f64; 2], labels: &[&str], inertia: f64, loitering: f64) -> Zone {
    let points = vec![[x[0], 0.0], [x[1], 0.0], [x[1], 1.0], [x[0], 1.0]];
    let labels = labels.iter().map(|label| (*label).to_owned()).collect();
    let seconds = Duration::from_secs_f64;
    Zone { name: name.into(), area: Area { points, labels }, inertia: seconds(inertia), loitering: seconds(loitering) }
}

/// One walks from left to right in twenty seconds, a tenth of the picture in two.
#[test]
fn zones_are_entered_and_left_after_their_seconds() {
    let zones = vec![
        zone("gate", [0.3, 0.6], &[], 0.0, 0.0),
        zone("slow", [0.3, 0.6], &[], 2.0, 0.0),
        zone("bench", [0.3, 0.6], &[], 0.0, 4.0),
        zone("long", [0.3, 0.6], &[], 0.0, 9.0),
        zone("cars", [0.0, 1.0], &["car"], 0.0, 0.0),
        zone("all", [0.0, 1.0], &["person", "cat"], 0.0, 0.0),
    ];
    let rules = Tracking { zones, updates: Updates { zones: true, ..quiet() }, ..Tracking::default() };
    let mut scene = Scene::new(rules, 0.5, 0.5);
    for n in 0..38 {
        let at = f64::from(n) * 0.5;
        scene.look(at, &[person(0.026 + at * 0.05)]);
    }
    scene.finish(20.0);
    let told: Vec<(f64, String)> = scene
        .told
        .iter()
        .filter(|event| event.kind == EventKind::Update)
        .map(|event| ((event.time.millis() - EPOCH) as f64 / 1000.0, event.track.zones.join(" ")))
        .collect();
    let expected = [(5.5, "all gate"), (7.5, "all gate slow"), (9.5, "all gate slow bench"), (11.5, "all slow"), (13.5, "all")];
    let told: Vec<(f64, &str)> = told.iter().map(|(at, zones)| (*at, zones.as_str())).collect();
    assert_eq!(told, expected);
    assert_eq!(scene.told[0].track.zones.join(" "), "all");
    assert_eq!(scene.told.last().unwrap().track.entered_zones.join(" "), "all gate slow bench");
    assert!(scene.told.iter().filter(|event| event.kind == EventKind::Update).all(|event| event.reason == Reason::Zone));
}

#[test]
fn one_look_beside_a_zone_does_not_leave_it_where_there_is_inertia() {
    let rules = |inertia| Tracking {
        zones: vec![zone("gate", [0.0, 0.5], &[], inertia, 0.0)],
        updates: Updates { zones: true, ..quiet() },
        ..Tracking::default()
    };
    for (inertia, updates) in [(0.0, 10), (1.5, 1)] {
        let mut scene = Scene::new(rules(inertia), 1.0, 1.0);
        for second in 0..30 {
            let x = if second > 4 && second % 5 == 0 { 0.51 } else { 0.49 };
            scene.look(second.into(), &[person(x)]);
        }
        assert_eq!(scene.count(EventKind::Update), updates, "inertia {inertia}");
    }
}

#[test]
fn updates_are_told_by_their_triggers_and_not_too_often() {
    let walk = |updates: Updates| {
        let mut scene = Scene::new(Tracking { updates, ..Tracking::default() }, 0.5, 0.5);
        for n in 0..60 {
            let score = if n < 20 { 0.5 } else { 0.8 };
            let x = 0.1 + 0.02 * f64::from(n.min(30)) as f32;
            scene.look(f64::from(n) * 0.5, &[one("person", score, x, 0.8, 0.08, 0.4)]);
        }
        scene
    };
    let updates = |scene: &Scene, reason: &str| scene.names().iter().filter(|name| **name == ("update", reason)).count();
    assert_eq!(walk(quiet()).names(), [("new", "first seen")]);
    let moved = walk(Updates { moved: Some(0.5), ..quiet() });
    // A tenth of its size and more a look: 0.04 of the picture's height, of 0.28; then it comes to rest.
    assert_eq!((updates(&moved, "moved"), moved.told.len()), (8, 9));
    assert!(moved.told.last().unwrap().track.stationary);
    let score = walk(Updates { score: Some(0.1), ..quiet() });
    assert_eq!((updates(&score, "score"), score.told.len()), (1, 2));
    let beats = walk(Updates { heartbeat: Some(Duration::from_secs(10)), ..quiet() });
    assert_eq!((updates(&beats, "heartbeat"), beats.told.len()), (2, 3));
    let rare = walk(Updates { every: Duration::from_secs(6), moved: Some(0.01), score: Some(0.01), ..Updates::default() });
    let times: Vec<i64> = rare.told.iter().map(|event| event.time.millis()).collect();
    assert!(times.len() >= 3 && times.windows(2).all(|pair| pair[1] - pair[0] >= 6000), "{times:?}");
}

/// Anything may be seen at any time: whatever happens, every beginning has its one end, in order.
#[test]
fn every_new_has_exactly_one_end_in_any_storm() {
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let rules = Tracking {
            confirm_looks: 1 + (dice.next() % 3) as u32,
            lost_after: Duration::from_secs_f64(dice.between(0.1, 10.0)),
            stationary_after: Duration::from_secs_f64(dice.between(1.0, 10.0)),
            zones: vec![zone("gate", [0.2, 0.7], &[], dice.between(0.0, 2.0), dice.between(0.0, 2.0))],
            updates: Updates { every: Duration::from_secs_f64(dice.between(0.0, 1.0)), ..Updates::default() },
            ..Tracking::default()
        };
        let mut scene = Scene::new(rules, dice.between(0.1, 2.0), dice.between(2.0, 20.0));
        let mut at = 0.0;
        for _ in 0..120 {
            at += if dice.share() < 0.03 { dice.between(10.0, 500.0) } else { dice.between(0.0, 2.0) };
            if dice.share() < 0.02 {
                scene.prompt = Prompt::new(["detect person", PROMPT, "caption en"][(dice.next() % 3) as usize]).unwrap();
            }
            let seen: Vec<Detection> = (0..dice.next() % 8)
                .map(|_| {
                    let label = ["person", "car", "cat"][(dice.next() % 3) as usize];
                    let mut share = |low, high| dice.between(low, high) as f32;
                    one(label, share(0.0, 1.0), share(0.0, 1.0), share(0.2, 1.0), share(0.0, 0.3), share(0.0, 0.2))
                })
                .collect();
            scene.look(at, &seen);
            if dice.share() < 0.5 {
                scene.tick(at + 0.3);
            }
        }
        scene.finish(at + 1.0);
        assert!(scene.tracker.present().next().is_none());
        assert!(!scene.lives().is_empty(), "seed {seed}");
        let mut ids: Vec<Uuid> = scene.told.iter().map(|event| event.id).collect();
        ids.dedup();
        assert_eq!(ids.len(), scene.told.len());
    }
}
