//! Pictures of objects as files: there when the event that names them comes, as large and as clean as was asked for; and what
//! becomes of them when the disk is full, when there is no broker, and over restarts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use image::RgbImage;
use serde_json::Value;
use tempfile::tempdir;

use crate::support::broker::{Broker, Received, Subscriber, eventually};
use crate::support::daemon::{Daemon, repository};

/// A daemon that looks at the sample clip for these labels, four times a second.
fn config(broker: Option<&Broker>, labels: &[&str], table: &str) -> String {
    let mqtt =
        broker.map(|broker| format!("[mqtt]\nhost = \"127.0.0.1\"\nport = {}\ndurable = \"none\"\nstate_dir = \"state\"\n", broker.port()));
    format!(
        "[model]\npath = {:?}\n[track]\nlost_after = 1\n[[camera]]\nid = \"street\"\nuri = {:?}\nloop = true\nlabels = {labels:?}\n\
         interval = 0.25\n[events.snapshots]\ndir = \"objects\"\n{table}\n{}",
        repository("samples/demo-model"),
        repository("samples/street.mp4"),
        mqtt.unwrap_or_default()
    )
}

fn pictures(folder: &Path) -> Vec<PathBuf> {
    let entries =
        folder.join("objects/street").read_dir().map_or(Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect());
    let mut files: Vec<PathBuf> = entries.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "jpg")).collect();
    files.sort();
    files
}

fn read(path: &Path) -> RgbImage {
    image::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).to_rgb8()
}

fn is_event(message: &Received) -> bool {
    message.topic == "palisade/street/events"
}

/// Looks at each event as it comes, until `enough` says so; gives each with the picture that its file then held.
fn follow(subscriber: &Subscriber, folder: &Path, enough: impl Fn(&[(Value, RgbImage)]) -> bool) -> Vec<(Value, RgbImage)> {
    let (mut seen, mut found) = (0, Vec::new());
    subscriber.wait_for("events", |messages| {
        for message in messages[seen..].iter().filter(|message| is_event(message)) {
            let event = message.json();
            let path = event["snapshot"].as_str().unwrap_or_else(|| panic!("{event} names no picture"));
            found.push((event.clone(), read(&folder.join(path))));
        }
        seen = messages.len();
        enough(&found)
    });
    found
}

#[test]
fn the_picture_is_there_when_the_event_comes_and_all_events_of_an_object_name_it() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mut daemon = Daemon::start(folder.path(), &config(Some(&broker), &["person", "car"], ""));
    let ends = |found: &[(Value, RgbImage)]| found.iter().filter(|(event, _)| event["type"] == "end").count();
    let found = follow(&subscriber, folder.path(), |found| ends(found) >= 2);
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(15)).success(), "{}", daemon.log());
    let mut lives: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for (event, picture) in &found {
        assert_eq!(picture.dimensions(), (1280, 720), "the whole frame: {event}");
        lives.entry(event["track_id"].as_str().unwrap()).or_default().push(event);
    }
    for life in lives.values() {
        assert!(life[0]["type"] == "new" && life.iter().all(|event| event["snapshot"] == life[0]["snapshot"]), "{life:?}");
    }
    let named: Vec<&str> = lives.values().map(|life| life[0]["snapshot"].as_str().unwrap()).collect();
    assert!(named.iter().all(|path| path.starts_with("objects/street/")) && named.len() >= 2, "{named:?}");
    assert_eq!(named.iter().collect::<std::collections::BTreeSet<_>>().len(), named.len(), "each has its own");
    assert!(found.iter().any(|(event, _)| event["type"] == "update"), "{lives:?}");
    // The picture on the broker is there as before.
    assert!(
        subscriber.messages().iter().any(|message| message.topic == "palisade/street/snapshot/person" && message.payload.len() > 10_000)
    );
}

#[test]
fn a_cropped_picture_shows_the_object_and_its_surroundings() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let table = "crop = true\nannotate = false\nmax_height = 400";
    let _daemon = Daemon::start(folder.path(), &config(Some(&broker), &["person", "car", "bird"], table));
    let news = |found: &[(Value, RgbImage)]| found.iter().filter(|(event, _)| event["type"] == "new").count();
    let found = follow(&subscriber, folder.path(), |found| news(found) >= 3);
    let mut exact = 0;
    for (event, picture) in found.iter().filter(|(event, _)| event["type"] == "new") {
        let side = |name: &str| event["pixels"][name].as_u64().unwrap();
        let margin = ((side("x_max") - side("x_min")).max(side("y_max") - side("y_min")) as f64 * 0.2).max(24.0) as u64;
        let width = (side("x_max") + margin).min(1280) - side("x_min").saturating_sub(margin);
        let height = (side("y_max") + margin).min(720) - side("y_min").saturating_sub(margin);
        assert!(picture.height() <= 400 && picture.width() < 1280, "{event}: {:?}", picture.dimensions());
        // A better one may have taken its place already.
        exact += usize::from(height <= 400 && (picture.width(), picture.height()) == (width as u32, height as u32));
    }
    assert!(exact > 0, "{:?}", found.iter().map(|(event, picture)| (&event["pixels"], picture.dimensions())).collect::<Vec<_>>());
}

#[test]
fn without_a_broker_pictures_are_kept_too_and_a_restart_writes_over_none() {
    let folder = tempdir().unwrap();
    let run = |signal: &str, least: usize| {
        let mut daemon = Daemon::start(folder.path(), &config(None, &["person", "car", "traffic light"], "quality = 60\nannotate = false"));
        daemon.ready();
        eventually("pictures", || pictures(folder.path()).len() >= least);
        daemon.signal(signal);
        let status = daemon.wait(Duration::from_secs(15));
        assert!(signal == "KILL" || status.success(), "{}", daemon.log());
        pictures(folder.path())
    };
    let first = run("KILL", 2);
    let held: Vec<Vec<u8>> = first.iter().map(|path| fs::read(path).unwrap()).collect();
    let second = run("TERM", first.len() + 2);
    assert!(first.iter().all(|path| second.contains(path)), "{first:?} {second:?}");
    assert_eq!(first.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>(), held);
    assert!(second.iter().all(|path| read(path).dimensions() == (1280, 720)));
    let left: Vec<String> = fs::read_dir(folder.path().join("objects/street"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".jpg") && !name.ends_with(".new"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_full_disk_stops_the_pictures_and_neither_looks_nor_events() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    // 30 kB: less than any of these pictures.
    let text = config(Some(&broker), &["person", "car", "traffic light"], "quality = 100");
    let mut daemon = Daemon::start_cramped(folder.path(), &text, 60);
    daemon.ready();
    const SAID: &str = "pictures of objects cannot be written";
    eventually("the full disk", || daemon.log().contains(SAID));
    let events = || subscriber.messages().into_iter().filter(is_event).map(|message| message.json()).collect::<Vec<_>>();
    let answers = || subscriber.on("palisade/street/detections").len();
    // Tried again after ten seconds, and not said again.
    let (before, begun) = (answers(), Instant::now());
    std::thread::sleep(Duration::from_secs(12));
    let rate = (answers() - before) as f64 / begun.elapsed().as_secs_f64();
    assert!(rate > 3.0, "{rate} looks a second");
    assert_eq!(daemon.log().matches(SAID).count(), 1, "{}", daemon.log());
    let told = events();
    assert!(told.len() >= 3 && told.iter().all(|event| event["snapshot"].is_null()), "{told:?}");
    assert!(fs::read_dir(folder.path().join("objects/street")).unwrap().count() == 0, "nothing half written stays");
    let unlimited = ["--pid", &daemon.id().to_string(), "--fsize=unlimited:unlimited"];
    assert!(Command::new("prlimit").args(unlimited).status().expect("prlimit must be installed: apt install util-linux").success());
    eventually("an event with a picture", || events().iter().any(|event| event["snapshot"].is_string()));
    let event = events().into_iter().find(|event| event["snapshot"].is_string()).unwrap();
    assert_eq!(read(&folder.path().join(event["snapshot"].as_str().unwrap())).dimensions(), (1280, 720));
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(15)).success(), "{}", daemon.log());
    assert!(daemon.log().contains("pictures of objects are written again"), "{}", daemon.log());
}
