//! Pictures and the events that wait for them, with drawings that take as long as a test wants.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crossbeam_channel::Receiver;
use image::RgbImage;
use tempfile::TempDir;

use super::*;
use crate::base::clock::Utc;
use crate::base::sync;
use crate::types::{Reason, TimeSource};

const LONG: Duration = Duration::from_secs(30);

/// What was told: the event, when, and what its picture's file then held.
struct Heard {
    event: Event,
    at: Instant,
    file: Option<Vec<u8>>,
}

impl Heard {
    fn path(&self) -> Option<PathBuf> {
        self.event.snapshot.as_ref().map(PathBuf::from)
    }
}

struct Room {
    folder: TempDir,
    gallery: Gallery,
    heard: Receiver<Heard>,
    /// Held: drawing waits.
    gate: Arc<Mutex<()>>,
    metrics: Metrics,
}

/// The digits of the score are the picture.
fn text(shot: &Shot) -> Vec<u8> {
    format!("{} {:.2}", shot.label, shot.score).into_bytes()
}

fn room(change: impl FnOnce(&mut GalleryConfig)) -> Room {
    let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new());
    let mut config = GalleryConfig::new(folder.path().into());
    change(&mut config);
    let (send, heard) = crossbeam_channel::unbounded();
    let gate = Arc::<Mutex<()>>::default();
    let waits = gate.clone();
    let draw = move |shot: &Shot| {
        drop(sync::lock(&waits));
        assert_ne!(&*shot.label, "panic");
        Ok(text(shot))
    };
    let tell = move |event: &Event| {
        let file = event.snapshot.as_ref().map(|path| fs::read(path).unwrap());
        send.send(Heard { event: event.clone(), at: Instant::now(), file }).unwrap();
    };
    let rooms = Rooms::open(&config, &[camera("street"), camera("yard")], &metrics).unwrap();
    let gallery = Gallery::start(rooms, Box::new(draw), Box::new(tell), &metrics).unwrap();
    Room { folder, gallery, heard, gate, metrics }
}

impl Room {
    /// A look that saw these, each of which is told of.
    fn look(&mut self, id: &str, kind: EventKind, tracks: &[Track]) {
        self.gallery.see(&frame(id), tracks.iter().filter(|_| kind != EventKind::End));
        tracks.iter().for_each(|track| self.gallery.tell(event(id, kind, track)));
    }

    fn hear(&self) -> Heard {
        self.heard.recv_timeout(LONG).expect("an event is told")
    }

    fn count(&self, name: &'static str, id: &str) -> u64 {
        self.metrics.counter(name, id).get()
    }

    fn files(&self, id: &str) -> Vec<PathBuf> {
        files(&self.folder.path().join(id))
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn camera(id: &str) -> CameraId {
    CameraId::new(id).unwrap()
}

fn frame(id: &str) -> Frame {
    let image = Arc::new(RgbImage::new(64, 48));
    let (captured, received) = (Utc::now(), Instant::now());
    Frame { camera: camera(id), captured, time_source: TimeSource::Pipeline, received, position: None, image }
}

/// An object of this score in the middle of the picture; all were first seen in one moment.
fn track(id: &str, score: f32) -> Track {
    let start = Utc::from_millis(Utc::now().millis() / 600_000 * 600_000);
    Track {
        id: id.into(),
        label: "cat".into(),
        score,
        top_score: score,
        start,
        last: start,
        box01: Box01 { y_min: 0.4, x_min: 0.4, y_max: 0.6, x_max: 0.6 },
        stationary: false,
        zones: Vec::new(),
        entered_zones: Vec::new(),
    }
}

fn event(id: &str, kind: EventKind, track: &Track) -> Event {
    Event {
        id: Uuid::now_v7(),
        kind,
        reason: Reason::Moved,
        camera: camera(id),
        time: track.last,
        track: track.clone(),
        before: None,
        frame: (64, 48),
        prompt_id: "5d41402a".into(),
        snapshot: None,
        clip: None,
    }
}

#[test]
fn a_picture_is_there_before_the_event_and_gets_better_in_its_place() {
    let mut room = room(|_| ());
    room.look("street", EventKind::New, &[track("1", 0.5)]);
    let new = room.hear();
    assert_eq!(new.file.as_deref(), Some(b"cat 0.50".as_slice()));
    let path = new.path().unwrap();
    assert_eq!(path.parent(), Some(&*room.folder.path().join("street")));
    for (score, shown) in [(0.52, "0.50"), (0.3, "0.50"), (0.7, "0.70"), (0.6, "0.70"), (0.9, "0.90")] {
        room.look("street", EventKind::Update, &[track("1", score)]);
        let update = room.hear();
        assert_eq!((update.path(), update.file), (Some(path.clone()), Some(format!("cat {shown}").into_bytes())), "{score}");
    }
    room.look("street", EventKind::End, &[track("1", 0.1)]);
    assert_eq!(room.hear().path(), Some(path.clone()));
    assert!(room.gallery.objects.is_empty() && room.files("street") == [path]);
    assert_eq!((room.count("event_snapshots_written", "street"), room.count("events_without_snapshot", "street")), (3, 0));
}

#[test]
fn a_better_look_without_an_event_is_kept_too() {
    let mut room = room(|_| ());
    room.look("street", EventKind::New, &[track("1", 0.5)]);
    room.hear();
    room.gallery.see(&frame("street"), [&track("1", 0.8)].into_iter());
    room.look("street", EventKind::End, &[track("1", 0.5)]);
    assert_eq!(room.hear().file.as_deref(), Some(b"cat 0.80".as_slice()), "the end waits for it");
}

#[test]
fn objects_of_one_moment_have_files_of_their_own_and_no_word_of_theirs_is_a_path() {
    let mut room = room(|_| ());
    let mut tracks: Vec<Track> = (0..40).map(|number| track(&number.to_string(), 0.5)).collect();
    for (track, word) in tracks.iter_mut().zip(["../../x", "/etc/passwd", "\0", "a/b"].iter().cycle()) {
        (track.label, track.id) = ((*word).into(), format!("{word}{}", track.id).into());
    }
    room.look("street", EventKind::New, &tracks);
    let heard: Vec<Heard> = tracks.iter().map(|_| room.hear()).collect();
    for (one, track) in heard.iter().zip(&tracks) {
        assert_eq!((&one.event.track, one.file.as_deref()), (track, Some(format!("{} 0.50", track.label).as_bytes())));
    }
    let files = room.files("street");
    assert_eq!(files.len(), 40);
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let digits = name.strip_prefix(&format!("{}-", tracks[0].start.compact())).unwrap().strip_suffix(".jpg").unwrap();
        assert!(digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }
}

#[test]
fn a_disk_that_hangs_holds_events_up_for_a_while_and_keeps_their_order() {
    let mut room = room(|_| ());
    let gate = room.gate.clone();
    let held = sync::lock(&gate);
    let begun = Instant::now();
    room.look("street", EventKind::New, &[track("1", 0.5)]);
    room.look("street", EventKind::Update, &[track("1", 0.5)]);
    room.look("yard", EventKind::New, &[track("2", 0.5)]);
    assert!(begun.elapsed() < Duration::from_millis(500), "the results thread waited {:?}", begun.elapsed());
    let mut heard: Vec<Heard> = (0..3).map(|_| room.hear()).collect();
    heard.sort_by_key(|one| one.event.track.id.clone());
    assert_eq!(heard.iter().map(|one| one.event.kind).collect::<Vec<_>>(), [EventKind::New, EventKind::Update, EventKind::New]);
    for one in &heard {
        let waited = one.at - begun;
        assert!(one.path().is_none() && (Duration::from_millis(1900)..Duration::from_millis(3500)).contains(&waited), "{waited:?}");
    }
    // It is known to hang: nobody waits any more.
    let before = Instant::now();
    room.look("street", EventKind::New, &[track("3", 0.5)]);
    let late = room.hear();
    assert!(late.path().is_none() && late.at - before < Duration::from_millis(500), "{:?}", late.at - before);
    assert_eq!((room.count("events_without_snapshot", "street"), room.count("events_without_snapshot", "yard")), (2, 1));
    drop(held);
    let begun = Instant::now();
    while room.count("event_snapshots_written", "street") < 2 {
        assert!(begun.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    // What was late is there, and named from now on.
    room.look("street", EventKind::End, &[track("3", 0.5)]);
    assert_eq!(room.hear().file.as_deref(), Some(b"cat 0.50".as_slice()));
    room.look("street", EventKind::End, &[track("1", 0.5)]);
    assert!(room.hear().path().is_some());
}

#[test]
fn what_the_writer_does_not_keep_up_with_is_dropped_and_counted_and_shown_at_the_next_look() {
    let mut room = room(|_| ());
    let gate = room.gate.clone();
    let held = sync::lock(&gate);
    // One that the writer is at, as many as may wait, and five more.
    room.look("street", EventKind::New, &[track("first", 0.5)]);
    std::thread::sleep(Duration::from_millis(200));
    let ids: Vec<String> = (0..WAITING + 5).map(|number| number.to_string()).collect();
    ids.iter().for_each(|id| room.look("street", EventKind::New, &[track(id, 0.5)]));
    assert_eq!(room.count("event_snapshots_dropped", "street"), 5);
    drop(held);
    let heard: Vec<Heard> = (0..WAITING + 6).map(|_| room.hear()).collect();
    let told: Vec<&str> = heard.iter().map(|one| &*one.event.track.id).collect();
    assert_eq!(told[1..], ids[..], "in order");
    let without: Vec<usize> = (0..heard.len()).filter(|index| heard[*index].path().is_none()).collect();
    assert_eq!(without, (WAITING + 1..WAITING + 6).collect::<Vec<_>>());
    room.look("street", EventKind::Update, &[track(&ids[WAITING], 0.4)]);
    assert_eq!(room.hear().file.as_deref(), Some(b"cat 0.40".as_slice()), "any picture is better than none");
}

#[test]
fn large_frames_do_not_fill_the_memory() {
    let mut room = room(|_| ());
    let gate = room.gate.clone();
    let held = sync::lock(&gate);
    let image = Arc::new(RgbImage::new(5000, 3000));
    for id in 0..10 {
        room.gallery.see(&Frame { image: image.clone(), ..frame("street") }, [&track(&id.to_string(), 0.5)].into_iter());
    }
    assert_eq!(room.count("event_snapshots_dropped", "street"), 10 - 2, "45 MB each, 128 MiB at most");
    drop(held);
}

#[test]
fn a_panic_costs_its_picture_only() {
    let mut room = room(|_| ());
    room.look("street", EventKind::New, &[Track { label: "panic".into(), ..track("1", 0.5) }, track("2", 0.5)]);
    let [bad, good] = [room.hear(), room.hear()];
    assert!(bad.path().is_none() && good.path().is_some());
    assert_eq!((room.count("event_snapshots_failed", "street"), room.count("events_without_snapshot", "street")), (1, 1));
}

#[test]
fn a_disk_that_takes_nothing_is_left_alone_for_a_while_and_tried_again() {
    let mut room = room(|_| ());
    let folder = room.folder.path().join("street");
    fs::remove_dir(&folder).unwrap();
    fs::write(&folder, "in the way").unwrap();
    room.look("street", EventKind::New, &[track("1", 0.5)]);
    assert!(room.hear().path().is_none());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        room.look("street", EventKind::Update, &[track("1", 0.5)]);
        let update = room.hear();
        assert!(update.path().is_none());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(room.count("event_snapshots_failed", "street"), 1, "one try");
    fs::remove_file(&folder).unwrap();
    let named = loop {
        room.look("street", EventKind::Update, &[track("1", 0.5)]);
        let update = room.hear();
        if update.path().is_some() {
            break update;
        }
        assert!(begun.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(named.file.as_deref(), Some(b"cat 0.50".as_slice()));
    assert!(begun.elapsed() >= Duration::from_millis(9900), "{:?}", begun.elapsed());
}

#[test]
fn the_oldest_pictures_go_and_those_of_objects_that_are_there_stay() {
    // Files of eight bytes, three of which may stay.
    let mut room = room(|config| config.keep_bytes = 24);
    let begin = Utc::from_millis(Utc::now().millis() - 60_000);
    let track = |number: i64| Track { start: Utc::from_millis(begin.millis() + number), ..track(&number.to_string(), 0.5) };
    room.look("street", EventKind::New, &[track(0)]);
    let first = room.hear().path().unwrap();
    for number in 1..10 {
        for kind in [EventKind::New, EventKind::End] {
            room.look("street", kind, &[track(number)]);
            room.hear();
        }
    }
    assert!(first.exists(), "it is still there");
    room.look("street", EventKind::End, &[track(0)]);
    room.hear();
    for kind in [EventKind::New, EventKind::End] {
        room.look("yard", kind, &[track(10)]);
        room.hear();
    }
    let folder = room.folder.path().to_owned();
    room.gallery.finish(Instant::now() + LONG);
    assert!(!first.exists());
    assert_eq!((files(&folder.join("street")).len(), files(&folder.join("yard")).len()), (2, 1));
    assert_eq!(room.metrics.counter("event_snapshots_removed", "all").get(), 8);
}

#[test]
fn what_waits_at_a_stop_is_written_and_told() {
    let mut room = room(|_| ());
    let tracks: Vec<Track> = (0..20).map(|number| track(&number.to_string(), 0.5)).collect();
    room.look("street", EventKind::New, &tracks);
    room.look("street", EventKind::End, &tracks);
    room.gallery.finish(Instant::now() + LONG);
    let heard: Vec<Heard> = room.heard.try_iter().collect();
    assert!(heard.len() == 40 && heard.iter().all(|one| one.file.is_some()), "{}", heard.len());
}
