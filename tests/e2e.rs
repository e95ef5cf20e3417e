//! The whole way: from a file or an RTSP server through the model to a subscriber on mosquitto, with the parts failing.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::tempdir;

use crate::support::broker::{Broker, Subscriber, eventually};
use crate::support::daemon::{Daemon, ffprobe, repository};
use crate::support::rtsp::{self, RtspServer};
use crate::support::truth::{LABELS, Score, Truth, detections};

/// A configuration with the demo model, one camera on `uri`, and every kind of file output below the working folder.
fn config(uri: &str, broker: &Broker, more: &str) -> String {
    format!(
        "[model]\npath = {:?}\n[[camera]]\nid = \"street\"\nuri = {uri:?}\nlabels = {LABELS:?}\ninterval = 0.5\n{more}\n\
         [output.snapshots]\ndir = \"snapshots\"\n[output.file]\npath = \"{{camera}}.mp4\"\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {}\nstate_dir = \"state\"\n",
        repository("samples/demo-model"),
        broker.port()
    )
}

fn clip() -> String {
    format!("file://{}", repository("samples/street.mp4").display())
}

fn answers(subscriber: &Subscriber) -> Vec<Value> {
    subscriber.on("palisade/street/detections").iter().map(crate::support::broker::Received::json).collect()
}

fn state(subscriber: &Subscriber) -> String {
    let newest = subscriber.on("palisade/street/status").pop();
    newest.map(|message| message.json()["state"].as_str().unwrap().to_owned()).unwrap_or_default()
}

fn pictures(folder: &Path) -> usize {
    folder
        .join("snapshots/street")
        .read_dir()
        .map_or(0, |entries| entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "jpg")).count())
}

#[test]
fn a_file_played_once_is_told_whole_and_the_daemon_ends_by_itself() {
    let folder = tempdir().unwrap();
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mut daemon = Daemon::start(folder.path(), &config(&clip(), &broker, ""));
    daemon.ready();
    assert!(daemon.wait(Duration::from_secs(120)).success(), "{}", daemon.log());
    assert!(daemon.has_told("STOPPING=1"));
    subscriber.wait_text("palisade/status", "offline");
    assert_eq!(state(&subscriber), "failed");
    let rates = subscriber.on("palisade/street/status").iter().map(|message| message.json()["fps"].as_f64().unwrap()).fold(0.0, f64::max);
    assert!((10.0..40.0).contains(&rates), "a clip of 25 frames a second was told as {rates}");

    let answers = answers(&subscriber);
    let seqs: Vec<u64> = answers.iter().map(|answer| answer["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=answers.len() as u64).collect::<Vec<_>>());
    assert!(answers.len() >= 30, "only {} answers about 30 seconds", answers.len());
    // The first look is at the clip's first frame; the times of the others say where in the clip they are. What moves
    // between a frame's own time and the truth's nearest frame is allowed for by looking a little to both sides.
    let begin = answers[0]["epoch"].as_f64().unwrap();
    let truth = Truth::of_the_clip();
    let mut score = Score::default();
    for answer in &answers {
        let (at, found) = (answer["epoch"].as_f64().unwrap() - begin, detections(answer));
        let near = (-10..=10).map(|step| truth.at(at + f64::from(step) / truth.fps));
        let tried = near.map(|objects| {
            let mut score = Score::default();
            score.add(&found, objects);
            score
        });
        let best = tried.min_by_key(|score| score.false_alarms + score.missed).unwrap();
        score = Score {
            hits: score.hits + best.hits,
            false_alarms: score.false_alarms + best.false_alarms,
            missed: score.missed + best.missed,
        };
    }
    assert!(score.precision() >= 0.95 && score.recall() >= 0.95, "{score:?}");

    let (frames, seconds) = ffprobe(&folder.path().join("street.mp4"));
    assert!(frames as usize + 5 >= answers.len() && (25.0..36.0).contains(&seconds), "{frames} frames, {seconds} s");
    assert!(pictures(folder.path()) + 5 >= answers.len());
}

#[test]
fn camera_and_broker_may_die_mid_run_and_a_stop_is_clean() {
    let folder = tempdir().unwrap();
    let mut broker = Broker::start();
    let mut camera = RtspServer::start(&rtsp::play(&repository("samples/street.mp4")), None);
    let subscriber = Subscriber::durable(&broker, "palisade/#");
    let mut daemon = Daemon::start(folder.path(), &config(&camera.uri(), &broker, ""));
    daemon.ready();
    subscriber.wait_text("palisade/status", "online");
    subscriber.wait_for("detections over RTSP", |messages| {
        messages.iter().filter(|message| message.topic.ends_with("/detections") && !detections(&message.json()).is_empty()).count() >= 3
    });
    subscriber.wait_for("the state while frames come", |messages| {
        messages.iter().any(|message| message.topic.ends_with("/street/status") && message.json()["state"] == "running")
    });
    let known = detections(answers(&subscriber).last().unwrap());
    assert!(known.iter().any(|object| object.label == "traffic light"), "{known:?}");

    camera.stop();
    eventually("the camera's loss is told", || ["backoff", "stalled", "connecting"].contains(&state(&subscriber).as_str()));
    let before = answers(&subscriber).len();
    camera.restart();
    subscriber.wait_for("detections after the camera's return", |messages| {
        messages.iter().filter(|message| message.topic.ends_with("/detections")).count() >= before + 3
    });

    let written = pictures(folder.path());
    broker.kill9();
    eventually("frames are looked at without a broker", || pictures(folder.path()) >= written + 4);
    assert!(daemon.runs());
    let before = answers(&subscriber).last().unwrap()["seq"].as_u64().unwrap();
    broker.restart();
    subscriber.wait_for("what was found meanwhile", |messages| {
        messages.iter().any(|message| message.topic.ends_with("/detections") && message.json()["seq"] == before + 4)
    });
    let mut seqs: Vec<u64> = answers(&subscriber).iter().map(|answer| answer["seq"].as_u64().unwrap()).collect();
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "an answer was lost");
    subscriber.wait_text("palisade/status", "online");

    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
    assert!(daemon.has_told("STOPPING=1"));
    subscriber.wait_text("palisade/status", "offline");
    let (frames, _) = ffprobe(&folder.path().join("street.mp4"));
    assert!(frames >= 5, "{frames}");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn killed_at_once_it_leaves_a_readable_video_and_its_last_will() {
    let folder = tempdir().unwrap();
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mut daemon = Daemon::start(folder.path(), &config(&clip(), &broker, "loop = true"));
    daemon.ready();
    subscriber.wait_for("eight answers", |messages| messages.iter().filter(|message| message.topic.ends_with("/detections")).count() >= 8);
    daemon.signal("KILL");
    assert!(!daemon.wait(Duration::from_secs(10)).success());
    subscriber.wait_text("palisade/status", "offline");
    let (frames, _) = ffprobe(&folder.path().join("street.mp4"));
    assert!(frames >= 3, "{frames}");
}

#[test]
fn it_runs_without_a_broker_section_and_with_a_broker_that_is_not_there() {
    for mqtt in ["", "[mqtt]\nhost = \"127.0.0.1\"\nport = 9\n"] {
        let folder = tempdir().unwrap();
        let text = format!(
            "[model]\npath = {:?}\n[[camera]]\nid = \"street\"\nuri = {:?}\nlabels = [\"car\"]\ninterval = 0.2\nloop = true\n[output.snapshots]\ndir = \"snapshots\"\n{mqtt}",
            repository("samples/demo-model"),
            clip()
        );
        let mut daemon = Daemon::start(folder.path(), &text);
        daemon.ready();
        eventually("annotated pictures", || pictures(folder.path()) >= 3);
        daemon.signal("INT");
        assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
    }
}

#[test]
fn several_cameras_are_looked_at_in_batches_and_each_is_told_in_order() {
    let folder = tempdir().unwrap();
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let cameras = ["a", "b", "c", "d", "e"];
    let tables = cameras
        .map(|camera| format!("[[camera]]\nid = {camera:?}\nuri = {:?}\nlabels = {LABELS:?}\ninterval = 0.1\nloop = true\n", clip()));
    let text = format!(
        "[model]\npath = {:?}\nworkers = 2\nmax_batch = 3\n{}[mqtt]\nhost = \"127.0.0.1\"\nport = {}\n",
        repository("samples/demo-model"),
        tables.concat(),
        broker.port()
    );
    let mut daemon = Daemon::start(folder.path(), &text);
    daemon.ready();
    subscriber.wait_for("five answers of each camera", |messages| {
        let of = |camera: &str| messages.iter().filter(|message| message.topic == format!("palisade/{camera}/detections")).count();
        cameras.iter().all(|camera| of(camera) >= 5)
    });
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
    subscriber.wait_text("palisade/status", "offline");
    for camera in cameras {
        let answers = subscriber.on(&format!("palisade/{camera}/detections"));
        let answers: Vec<Value> = answers.iter().map(crate::support::broker::Received::json).collect();
        let seqs: Vec<u64> = answers.iter().map(|answer| answer["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "{camera}");
        let times: Vec<f64> = answers.iter().map(|answer| answer["epoch"].as_f64().unwrap()).collect();
        assert!(times.is_sorted(), "{camera}: {times:?}");
        assert!(answers.iter().any(|answer| !detections(answer).is_empty()), "{camera}");
    }
}

#[test]
fn a_stop_during_the_start_is_heard() {
    let folder = tempdir().unwrap();
    // A hub that accepts and never answers.
    let hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!("[model]\nid = \"a/b\"\n[[camera]]\nid = \"street\"\nuri = {:?}\nlabels = [\"car\"]\n", clip());
    let endpoint = format!("http://{}", hub.local_addr().unwrap());
    let mut daemon = Daemon::start_with(folder.path(), &text, &[("HF_ENDPOINT", &endpoint), ("HF_HOME", folder.path().to_str().unwrap())]);
    let _silent = hub.accept().unwrap();
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
}

#[test]
fn an_order_to_stop_sent_twice_is_one_order() {
    let folder = tempdir().unwrap();
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mut daemon = Daemon::start(folder.path(), &config(&clip(), &broker, "loop = true"));
    daemon.ready();
    subscriber.wait_for("an answer", |messages| messages.iter().any(|message| message.topic.ends_with("/detections")));
    daemon.signal("TERM");
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
    subscriber.wait_text("palisade/status", "offline");
    assert!(ffprobe(&folder.path().join("street.mp4")).0 >= 1);
}

#[test]
fn passwords_reach_no_log_and_no_topic() {
    let folder = tempdir().unwrap();
    let broker = Broker::with_login("palisade", "s3cr3t-broker");
    let subscriber = Subscriber::new(&broker, "palisade/#");
    for (name, secret) in [("camera", "s3cr3t-camera"), ("broker", "s3cr3t-broker")] {
        std::fs::write(folder.path().join(name), format!("{secret}\n")).unwrap();
    }
    let text = format!(
        "[model]\npath = {:?}\n[[camera]]\nid = \"gate\"\nuri = \"rtsp://admin:s3cr3t-uri@127.0.0.1:9/h264\"\npassword_file = \"camera\"\nlabels = [\"car\"]\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {}\nusername = \"palisade\"\npassword_file = \"broker\"\n[log]\nlevel = \"trace\"\n",
        repository("samples/demo-model"),
        broker.port()
    );
    let mut daemon = Daemon::start(folder.path(), &text);
    daemon.ready();
    subscriber.wait_for("a lost camera's state", |messages| {
        messages.iter().any(|message| message.topic == "palisade/gate/status" && message.json()["state"] == "backoff")
    });
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success());
    subscriber.wait_text("palisade/status", "offline");
    let told: String = subscriber.messages().iter().map(|message| format!("{} {}\n", message.topic, message.text())).collect();
    assert!(!told.contains("s3cr3t"), "{told}");
    assert!(!daemon.log().contains("s3cr3t"), "{}", daemon.log());
}

#[test]
fn the_unit_is_one_that_systemd_understands() {
    let folder = tempdir().unwrap();
    let unit = std::fs::read_to_string(repository("systemd/palisade.service")).unwrap();
    let unit = unit.replace("/usr/bin/palisade", crate::support::daemon::PALISADE);
    assert!(unit.contains("Type=notify") && unit.contains("TimeoutStopSec=10"));
    let file = folder.path().join("palisade.service");
    std::fs::write(&file, unit).unwrap();
    let output = std::process::Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output();
    let output = output.expect("systemd-analyze must be installed: apt install systemd");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.is_empty(), "{told}");
}

/// At the least exposure that a service with devices can have; each drop-in by itself.
#[test]
fn the_unit_is_exposed_to_little_with_every_drop_in() {
    let folder = tempdir().unwrap();
    let unit = std::fs::read_to_string(repository("systemd/palisade.service")).unwrap();
    let drop_ins =
        std::fs::read_dir(repository("systemd/dropins")).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    let all: Vec<String> = std::iter::once(String::new()).chain(drop_ins).collect();
    assert!(all.len() > 3);
    for drop_in in all {
        let file = folder.path().join("palisade.service");
        std::fs::write(&file, format!("{unit}\n{drop_in}")).unwrap();
        let output =
            std::process::Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=17"]).arg(&file).output();
        let output = output.expect("systemd-analyze must be installed: apt install systemd");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && told.contains("Overall exposure level"), "{drop_in}{told}");
    }
}

/// Files on a share that is dead hang when they are opened: here pipes that nobody writes to.
#[test]
fn pipelines_that_hang_end_the_daemon_for_the_service_manager_to_start_anew() {
    let folder = tempdir().unwrap();
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let hanging: Vec<String> = (0..4)
        .map(|number| {
            let pipe = folder.path().join(format!("pipe{number}.mp4"));
            assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            format!("[[camera]]\nid = \"pipe{number}\"\nuri = {pipe:?}\nlabels = [\"cat\"]\n")
        })
        .collect();
    let mut daemon = Daemon::start(folder.path(), &config(&clip(), &broker, &format!("loop = true\n{}", hanging.concat())));
    daemon.ready();
    subscriber.wait_text("palisade/status", "online");
    let ended = daemon.wait(Duration::from_secs(90));
    assert_eq!(ended.code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("4 pipelines hang"), "{}", daemon.log());
    assert!(daemon.has_told("WATCHDOG=1"));
    subscriber.wait_text("palisade/status", "offline");
}

/// Without a broker, killed without a word: what was found until a moment before is told by the next start.
#[test]
fn detections_outlive_a_daemon_that_is_killed() {
    let folder = tempdir().unwrap();
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    broker.stop();
    let settings = config(&clip(), &broker, "loop = true");
    let mut daemon = Daemon::start(folder.path(), &settings);
    daemon.ready();
    eventually("some frames are looked at", || pictures(folder.path()) >= 8);
    // Groups go to the disk each 200 ms.
    std::thread::sleep(Duration::from_millis(600));
    daemon.signal("KILL");
    daemon.wait(Duration::from_secs(10));
    broker.restart();
    let mut daemon = Daemon::start(folder.path(), &settings);
    daemon.ready();
    subscriber.wait_for("the first run's detections", |messages| {
        let seqs = |run: &Value| {
            messages.iter().map(|m| m.json()).filter(|m| m["run"] == *run).map(|m| m["seq"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        messages.first().is_some_and(|first| {
            let run = first.json()["run"].clone();
            let first = seqs(&run);
            // In order, from the first one on, and those of the second run behind them.
            first.starts_with(&[1, 2, 3, 4, 5, 6, 7, 8]) && messages.iter().any(|m| m.json()["run"] != run)
        })
    });
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
}

#[test]
fn an_event_names_a_picture_that_is_there_before_it() {
    let folder = tempdir().unwrap();
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/street/+");
    let pictures = Subscriber::new(&broker, "palisade/street/snapshot/+");
    let everything = Subscriber::new(&broker, "palisade/street/#");
    let mut daemon = Daemon::start(folder.path(), &config(&clip(), &broker, ""));
    daemon.ready();
    assert!(daemon.wait(Duration::from_secs(60)).success(), "{}", daemon.log());
    let events: Vec<Value> = subscriber.on("palisade/street/events").iter().map(crate::support::broker::Received::json).collect();
    let new: Vec<&Value> = events.iter().filter(|event| event["type"] == "new").collect();
    assert!(new.len() > 5 && new.len() * 2 <= events.len(), "{events:?}");
    for event in new {
        let topic = event["snapshot"].as_str().unwrap();
        assert_eq!(topic, format!("palisade/street/snapshot/{}", event["label"].as_str().unwrap().replace(' ', "_")));
        let picture = pictures.on(topic).pop().unwrap();
        let image = image::load_from_memory_with_format(&picture.payload, image::ImageFormat::Jpeg).unwrap();
        assert!(image.width() <= 1280 && image.height() <= 1280);
    }
    // The picture comes first, but where it was not out yet when the next was there.
    let mut shown = std::collections::BTreeSet::new();
    let (mut ahead, mut all) = (0, 0);
    for message in everything.messages() {
        if message.topic.contains("/snapshot/") {
            shown.insert(message.topic);
        } else if message.topic.ends_with("/events") && message.json()["type"] == "new" {
            all += 1;
            ahead += usize::from(shown.contains(message.json()["snapshot"].as_str().unwrap()));
        }
    }
    assert!(all > 5 && ahead * 10 >= all * 7, "{ahead} of {all} events found their picture");
    if let Ok(folder) = std::env::var("PALISADE_LOOK") {
        for picture in pictures.messages() {
            std::fs::write(Path::new(&folder).join(format!("{}.jpg", picture.topic.replace('/', "-"))), &picture.payload).unwrap();
        }
    }
}
