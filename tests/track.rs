//! From boxes to events, against what is really on the sample clip: its truth as it is and disturbed, the demo model's
//! answers, and the daemon's events over MQTT.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbImage;
use palisade::base::clock::Utc;
use palisade::config::{Device, Dtype};
use palisade::model::{Limits, LoadOptions, PaliGemma, Question, Snapshot};
use palisade::track::{Look, Pace, Tracker};
use palisade::types::{Box01, CameraId, Detection, Event, EventKind, MinScore, Prompt, Tracking};
use serde_json::Value;
use tempfile::tempdir;

use crate::control::command;
use crate::support::broker::{Broker, Received, Subscriber};
use crate::support::daemon::{Daemon, repository};
use crate::support::truth::LABELS;

const FPS: f64 = 25.0;

const SIZE: (u32, u32) = (1280, 720);

/// An object on one frame: the id of its visit, its label, its box.
type Object = (u64, String, Box01);

struct Clip {
    frames: Vec<Vec<Object>>,
    /// By visit: label, first and last frame.
    visits: BTreeMap<u64, (String, usize, usize)>,
}

impl Clip {
    fn read() -> Self {
        let truth: Value = serde_json::from_str(&std::fs::read_to_string(repository("samples/street.truth.json")).unwrap()).unwrap();
        let label = |value: &Value| value["label"].as_str().unwrap().to_owned();
        let object = |value: &Value| {
            let [y_min, x_min, y_max, x_max] = [0, 1, 2, 3].map(|index| value["box"][index].as_f64().unwrap() as f32);
            (value["id"].as_u64().unwrap(), label(value), Box01 { y_min, x_min, y_max, x_max })
        };
        let frames = truth["frames"].as_array().unwrap().iter();
        let frame = |value: &Value, key: &str| value[key].as_u64().unwrap() as usize;
        let visits = truth["visits"].as_array().unwrap().iter();
        Self {
            frames: frames.map(|frame| frame["objects"].as_array().unwrap().iter().map(object).collect()).collect(),
            visits: visits.map(|v| (v["id"].as_u64().unwrap(), (label(v), frame(v, "first_frame"), frame(v, "last_frame")))).collect(),
        }
    }

    /// The frames that `rate` looks a second see, each with its time in seconds.
    fn looks(&self, rate: f64) -> Vec<(f64, usize)> {
        let looks = (0..).map(|n| f64::from(n) / rate).map(|at| (at, (at * FPS).round() as usize));
        looks.take_while(|(_, frame)| *frame < self.frames.len()).collect()
    }

    fn clean(&self, frame: usize) -> Vec<Detection> {
        self.frames[frame].iter().map(|(_, label, box01)| detection(label, 0.9, *box01)).collect()
    }

    /// A tenth is missed, every side is off by up to a twentieth of the size, and each fifth look sees what is not there.
    fn noisy(&self, frame: usize, dice: &mut Dice) -> Vec<Detection> {
        let mut seen = Vec::new();
        for (_, label, b) in &self.frames[frame] {
            if dice.share() < 0.1 {
                continue;
            }
            let (width, height) = (b.x_max - b.x_min, b.y_max - b.y_min);
            let mut off = |size: f32| size * 0.05 * (2.0 * dice.share() as f32 - 1.0);
            let box01 = Box01 {
                x_min: (b.x_min + off(width)).clamp(0.0, 1.0),
                x_max: (b.x_max + off(width)).clamp(0.0, 1.0),
                y_min: (b.y_min + off(height)).clamp(0.0, 1.0),
                y_max: (b.y_max + off(height)).clamp(0.0, 1.0),
            };
            seen.push(detection(label, 0.35 + 0.6 * dice.share() as f32, box01));
        }
        if dice.share() < 0.2 {
            let label = LABELS[(dice.share() * LABELS.len() as f64) as usize];
            let mut share = |most: f64| (most * dice.share()) as f32;
            let (x_min, y_min, width, height) = (share(0.7), share(0.6), 0.05 + share(0.2), 0.1 + share(0.2));
            let box01 = Box01 { x_min, y_min, x_max: x_min + width, y_max: y_min + height };
            seen.push(detection(label, 0.2 + share(0.4), box01));
        }
        seen
    }
}

fn detection(label: &str, score: f32, box01: Box01) -> Detection {
    Detection { label: label.to_owned(), score, locs: [0; 4], box01 }
}

/// SplitMix64: the same disturbances at every run.
struct Dice(u64);

impl Dice {
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What came of a run over the clip.
#[derive(Default)]
struct Run {
    events: Vec<Event>,
    truths: usize,
    missed: usize,
    false_alarms: usize,
    switches: usize,
}

/// Lets a tracker see the clip, and counts as CLEAR MOT does: IoU 0.5, and a pair stays one as long as it may.
fn watch(clip: &Clip, rate: f64, mut seen: impl FnMut(usize) -> Vec<Detection>) -> Run {
    let prompt = Prompt::from_labels(&LABELS).unwrap();
    let interval = Duration::from_secs_f64(1.0 / rate);
    let mut tracker = Tracker::new(CameraId::new("street").unwrap(), Tracking::default(), Pace { interval, longest: interval });
    let (start, mut run) = (Instant::now(), Run::default());
    let mut pairs: BTreeMap<u64, Arc<str>> = BTreeMap::new();
    for (at, frame) in clip.looks(rate) {
        let now = start + Duration::from_secs_f64(at);
        let detections = seen(frame);
        let captured = Utc::from_millis((at * 1000.0).round() as i64);
        run.events.extend(tracker.step(&Look { received: now, now, captured, frame: SIZE, prompt: &prompt, detections: &detections }));
        let mut open: Vec<(Arc<str>, String, Box01)> = tracker
            .present()
            .filter(|(_, seen)| *seen)
            .map(|(track, _)| (track.id.clone(), track.label.to_string(), track.box01))
            .collect();
        let truth = &clip.frames[frame];
        run.truths += truth.len();
        // Those that were a pair before have the first choice.
        let mut order: Vec<&Object> = truth.iter().collect();
        order.sort_by_key(|(id, ..)| !open.iter().any(|(track, ..)| pairs.get(id) == Some(track)));
        for (id, label, box01) in order {
            let fits = |other: &(Arc<str>, String, Box01)| other.1 == *label && other.2.iou(*box01) >= 0.5;
            let old = open.iter().position(|other| fits(other) && pairs.get(id) == Some(&other.0));
            let best = || {
                let fitting = (0..open.len()).filter(|index| fits(&open[*index]));
                fitting.max_by(|a, b| open[*a].2.iou(*box01).total_cmp(&open[*b].2.iou(*box01)))
            };
            match old.or_else(best) {
                Some(index) => {
                    let (track, ..) = open.swap_remove(index);
                    if pairs.insert(*id, track.clone()).is_some_and(|before| before != track) {
                        run.switches += 1;
                    }
                }
                None => run.missed += 1,
            }
        }
        run.false_alarms += open.len();
    }
    let over = start + Duration::from_secs_f64(clip.frames.len() as f64 / FPS);
    run.events.extend(tracker.finish(over));
    run
}

impl Run {
    fn mota(&self) -> f64 {
        1.0 - (self.missed + self.false_alarms + self.switches) as f64 / self.truths as f64
    }

    fn of(&self, kind: EventKind) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.kind == kind)
    }

    /// The visit that each `new` is for: where its box lay, with its label; none twice.
    fn begun(&self, clip: &Clip) -> BTreeMap<Arc<str>, u64> {
        let (mut begun, mut known) = (BTreeMap::new(), BTreeSet::new());
        for event in self.of(EventKind::New) {
            let frame = (event.time.epoch() * FPS).round() as usize;
            let fits = |(_, label, box01): &&Object| **label == *event.track.label && event.track.box01.iou(*box01) >= 0.5;
            if let Some((visit, ..)) = clip.frames[frame].iter().find(fits).filter(|(visit, ..)| known.insert(*visit)) {
                begun.insert(event.track.id.clone(), *visit);
            }
        }
        begun
    }

    /// Those of them whose `end` says that it was seen last where the visit ended, within two looks.
    fn ended(&self, clip: &Clip, rate: f64) -> usize {
        let begun = self.begun(clip);
        let right = |event: &&Event| {
            let visit = begun.get(&event.track.id).and_then(|visit| clip.visits.get(visit));
            visit.is_some_and(|(_, _, last)| (event.track.last.epoch() - *last as f64 / FPS).abs() <= 2.0 / rate)
        };
        self.of(EventKind::End).filter(right).count()
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

#[test]
fn the_clips_truth_becomes_its_objects_at_every_rate() {
    const SEEDS: u64 = 40;
    let clip = Clip::read();
    let visits = clip.visits.len();
    println!("looks/s  boxes   MOTA   switches   new: precision  recall   end: recall");
    for rate in [0.5, 1.0, 2.0, 5.0] {
        for noise in [false, true] {
            let runs: Vec<Run> = match noise {
                false => vec![watch(&clip, rate, |frame| clip.clean(frame))],
                true => (0..SEEDS)
                    .map(|seed| {
                        let mut dice = Dice(seed);
                        watch(&clip, rate, |frame| clip.noisy(frame, &mut dice))
                    })
                    .collect(),
            };
            let count = runs.len();
            let sum = |of: &dyn Fn(&Run) -> usize| runs.iter().map(of).sum::<usize>();
            let (new, right) = (sum(&|run| run.of(EventKind::New).count()), sum(&|run| run.begun(&clip).len()));
            let ended = sum(&|run| run.ended(&clip, rate));
            let mota = runs.iter().map(Run::mota).sum::<f64>() / count as f64;
            let switches = sum(&|run| run.switches) as f64 / count as f64;
            println!(
                "{rate:7}  {:5}  {mota:5.3}  {switches:9.2}  {:14.1}% {:6.1}%  {:10.1}%",
                if noise { "noisy" } else { "clean" },
                percent(right, new),
                percent(right, visits * count),
                percent(ended, visits * count),
            );
            for run in &runs {
                let ends: BTreeSet<&str> = run.of(EventKind::End).map(|end| &*end.track.id).collect();
                assert_eq!((ends.len(), run.of(EventKind::End).count()), (run.of(EventKind::New).count(), ends.len()));
            }
            if !noise {
                assert_eq!((right, switches), (new, 0.0), "{rate} looks a second: something was told of twice");
            }
            if !noise && rate >= 1.0 {
                assert_eq!((new, right, ended), (visits, visits, visits), "{rate} looks a second");
            }
            if noise {
                // What is measured, with some room.
                assert!(percent(right, new) > 95.0 && switches < 0.5 && mota > 0.6, "{rate} looks a second");
            }
        }
    }
}

/// Frames at two looks a second: 0, 13, 25, 38, …
fn frames_at_two_looks_a_second(mut each: impl FnMut(RgbImage)) {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-i"]).arg(repository("samples/street.mp4"));
    command.args([
        "-vf",
        "select='eq(mod(n,25),0)+eq(mod(n,25),13)'",
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("ffmpeg must be installed: apt install ffmpeg");
    let mut pictures = child.stdout.take().unwrap();
    loop {
        let mut pixels = vec![0; SIZE.0 as usize * SIZE.1 as usize * 3];
        if pictures.read_exact(&mut pixels).is_err() {
            break;
        }
        each(RgbImage::from_raw(SIZE.0, SIZE.1, pixels).unwrap());
    }
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_demo_models_answers_become_the_clips_objects() {
    let clip = Clip::read();
    let snapshot = Snapshot { folder: repository("samples/demo-model"), name: "demo".to_owned() };
    let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, cache: None, progress: None };
    let mut session = PaliGemma::load(&snapshot, options).unwrap().session();
    let limits = Limits { max_new_tokens: 100, min_score: MinScore::default(), suppress: Vec::new() };
    let prompt = Prompt::from_labels(&LABELS).unwrap();
    let mut answers = Vec::new();
    frames_at_two_looks_a_second(|picture| {
        let question = Question { image: &picture, prompt: prompt.text(), draft: &[] };
        answers.push(session.answer(&question, &limits).unwrap().detections);
    });
    assert_eq!(answers.len(), clip.looks(2.0).len());
    let mut answers = answers.into_iter();
    let run = watch(&clip, 2.0, |_| answers.next().unwrap());
    println!("demo model, 2 looks/s: MOTA {:.3}, {} switches", run.mota(), run.switches);
    let news: Vec<(&str, f64)> = run.of(EventKind::New).map(|event| (&*event.track.label, event.track.start.epoch())).collect();
    let visits: Vec<_> = clip.visits.values().collect();
    assert_eq!((news.len(), run.begun(&clip).len(), run.ended(&clip, 2.0)), (visits.len(), visits.len(), visits.len()), "{news:?}");
    assert_eq!(run.switches, 0);
}

#[test]
fn the_daemon_tells_of_objects_and_ends_them_before_it_says_goodbye() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let config = format!(
        "[model]\npath = {:?}\n[track]\nupdate_moved = 0.3\n[[camera]]\nid = \"street\"\nuri = {:?}\nlabels = {LABELS:?}\ninterval = 0.25\n\
         [[camera.zone]]\nname = \"left half\"\npoints = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {}\nstate_dir = \"state\"\n",
        repository("samples/demo-model"),
        repository("samples/street.mp4"),
        broker.port()
    );
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.ready();
    // The traffic light and the person have come, and the person has moved.
    subscriber.wait_for("a moved person", |messages| {
        messages.iter().any(|message| message.topic.ends_with("/events") && message.json()["reason"] == "moved")
    });
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(15)).success(), "{}", daemon.log());
    subscriber.wait_text("palisade/status", "offline");
    let mut lives: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for message in subscriber.on("palisade/street/events") {
        let event = message.json();
        lives.entry(event["track_id"].as_str().unwrap().to_owned()).or_default().push(event);
    }
    assert!(lives.len() >= 2, "{lives:?}");
    for life in lives.values() {
        let kinds: Vec<&str> = life.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert!(kinds.len() >= 2 && kinds[0] == "new" && kinds[kinds.len() - 1] == "end", "{kinds:?}");
        assert!(kinds[1..kinds.len() - 1].iter().all(|kind| *kind == "update"), "{kinds:?}");
    }
    let first = |label: &str| lives.values().map(|life| &life[0]).find(|event| event["label"] == label).unwrap();
    assert_eq!(first("person")["zones"], serde_json::json!(["left half"]));
    assert_eq!(first("traffic light")["zones"], serde_json::json!([]));
    // The zone held the person, never the traffic light, and nobody once all have ended.
    let counted = |label: &str| {
        let counts = subscriber.on(&format!("palisade/street/zone/left_half/count/{label}"));
        counts.iter().map(Received::text).collect::<Vec<_>>()
    };
    let person = counted("person");
    assert!(person.len() >= 3 && person[..2] == ["0", "1"] && person.last().is_some_and(|last| last == "0"), "{person:?}");
    assert_eq!(counted("traffic_light"), ["0"]);
}

/// Where only motion has looks made, no look says nothing; that nothing is to be looked at does.
#[test]
fn what_is_no_longer_looked_at_ends_after_lost_after() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let config = format!(
        "[model]\npath = {:?}\n[track]\nlost_after = 1\nstationary_lost_after = 1\n\
         [[camera]]\nid = \"street\"\nuri = {:?}\nlabels = {LABELS:?}\ninterval = 0.25\nmotion = \"auto\"\nmax_interval = 600\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {}\nstate_dir = \"state\"\ncontrol = true\n",
        repository("samples/demo-model"),
        repository("samples/street.mp4"),
        broker.port()
    );
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.ready();
    let told = |messages: &[Received], kind: &str| {
        let events = messages.iter().filter(|message| message.topic == "palisade/street/events").map(Received::json);
        events.filter(|event| event["type"] == kind).count()
    };
    subscriber.wait_for("an object", |messages| told(messages, "new") > 0);
    command(&broker, "detect", b"OFF", false);
    subscriber.wait_text("palisade/street/detect/state", "OFF");
    subscriber.wait_for("the end of each object", |messages| told(messages, "new") == told(messages, "end"));
    assert!(daemon.runs());
}
