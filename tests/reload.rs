//! The configuration read anew by the real daemon: cameras come, change and go, the others notice nothing; and a file that
//! cannot be taken over changes nothing at all.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use serde_json::Value;
use tempfile::tempdir;

use crate::control::command;
use crate::support::broker::{Broker, Received, Subscriber, eventually, free_port};
use crate::support::camera::Camera;
use crate::support::daemon::{Daemon, PALISADE, repository};
use crate::support::http;
use crate::support::rtsp::BALL;

/// A camera's table.
fn table(id: &str, uri: &str, labels: &[&str], more: &str) -> String {
    format!("[[camera]]\nid = {id:?}\nuri = {uri:?}\nlabels = {labels:?}\ninterval = 0.25\n{more}\n")
}

/// One that plays the sample clip over and over.
fn played(id: &str, labels: &[&str]) -> String {
    table(id, &format!("file://{}", repository("samples/street.mp4").display()), labels, "loop = true")
}

fn config(broker: &Broker, cameras: &[String], more: &str) -> String {
    let model = repository("samples/demo-model");
    let port = broker.port();
    format!(
        "[model]\npath = {model:?}\n{}[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\nstate_dir = \"state\"\nstats_interval = 1\n{more}",
        cameras.concat()
    )
}

fn json(messages: Vec<Received>) -> Vec<Value> {
    messages.iter().map(Received::json).collect()
}

/// What was answered about a camera so far.
fn answers(subscriber: &Subscriber, camera: &str) -> Vec<Value> {
    json(subscriber.on(&format!("palisade/{camera}/detections")))
}

/// Waits for more answers about a camera than there are.
#[track_caller]
fn goes_on(subscriber: &Subscriber, camera: &str) {
    let before = answers(subscriber, camera).len();
    eventually(&format!("{camera} is looked at"), || answers(subscriber, camera).len() >= before + 3);
}

/// A camera's answers are numbered from 1 without gaps within one run.
fn is_whole(answers: &[Value]) {
    let seqs: Vec<u64> = answers.iter().map(|answer| answer["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    let runs: BTreeSet<&str> = answers.iter().map(|answer| answer["run"].as_str().unwrap()).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
}

/// The objects of a camera that were told of and have not ended.
fn open(events: &[Value]) -> BTreeSet<String> {
    let mut open = BTreeSet::new();
    for event in events {
        let id = event["track_id"].as_str().unwrap().to_owned();
        match event["type"].as_str().unwrap() {
            "new" => assert!(open.insert(id), "told twice: {event}"),
            "end" => assert!(open.remove(&id), "ended without having begun: {event}"),
            _ => {}
        }
    }
    open
}

/// The retained topics that a new subscriber finds, of a camera.
fn kept(broker: &Broker, camera: &str) -> Vec<String> {
    let late = Subscriber::new(broker, "#");
    // Published behind them, so that all of them have come when it has.
    command(broker, "mark", b"here", false);
    late.wait_text("palisade/street/mark/set", "here");
    let of = |topic: &str| topic.split('/').any(|level| level == camera) || topic.contains(&format!("_{camera}/"));
    late.messages().into_iter().filter(|message| message.retain && of(&message.topic)).map(|message| message.topic).collect()
}

/// How often a camera was said to be connected to; each try says so, and some say why it takes its time.
fn connecting(subscriber: &Subscriber, camera: &str) -> usize {
    let states = json(subscriber.on(&format!("palisade/{camera}/status")));
    states.iter().filter(|status| status["state"] == "connecting").count()
}

fn threads(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap().count()
}

fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().count()
}

#[test]
fn cameras_come_change_and_go_while_the_others_run() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let stays = Camera::clip(&repository("samples/street.mp4"));
    let subscriber = Subscriber::new(&broker, "#");
    let recorded = |camera: &str| camera.replace("interval", "record = \"events\"\ninterval");
    // Pictures to draw and to encode are small: the machine may be slow.
    let small = |camera: &str| camera.replace("interval", "max_width = 320\ninterval");
    let kept_small = |camera: &str| recorded(&small(camera));
    // What hangs there is there all the time, and so is one clip.
    let lights = ["car", "traffic light"];
    let stay = kept_small(&table("stay", &stays.uri(), &lights, ""));
    let more = "frigate = true\n[record]\ndir = \"clips\"\npost_roll = 60\n[output.file]\npath = \"{camera}.mp4\"\n\
                [output.snapshots]\ndir = \"snapshots\"\n";
    let other = small(&played("moved", &["car"]));
    let first = [stay.clone(), small(&played("asked", &lights)), other.clone(), kept_small(&played("gone", &lights))];
    let mut daemon = Daemon::start(folder.path(), &config(&broker, &first, more));
    daemon.ready();
    for camera in ["stay", "asked", "moved", "gone"] {
        goes_on(&subscriber, camera);
    }
    let events = |camera: &str| json(subscriber.on(&format!("palisade/{camera}/events")));
    eventually("objects of the camera that goes", || !open(&events("gone")).is_empty());
    eventually("objects that will not be asked for", || {
        let of = |event: &Value| event["label"] == "traffic light" && open(&events("asked")).contains(event["track_id"].as_str().unwrap());
        events("asked").iter().any(of)
    });
    let clips = |camera: &str| events(camera).iter().filter_map(|event| Some(event["clip"].as_str()?.to_owned())).collect::<BTreeSet<_>>();
    eventually("clips are kept", || !clips("stay").is_empty() && !clips("gone").is_empty());
    let states = |camera: &str| json(subscriber.on(&format!("palisade/{camera}/status")));
    eventually("it runs", || states("stay").last().is_some_and(|status| status["state"] == "running"));
    let told_of_stay = states("stay").len();
    let asked = connecting(&subscriber, "asked");
    assert!(kept(&broker, "gone").len() >= 6, "{:?}", kept(&broker, "gone"));

    let another = other.replace("max_width = 320", "max_width = 640");
    let second = [small(&played("new", &["car", "bird"])), stay, small(&played("asked", &["car"])), another];
    let told = daemon.reload(&config(&broker, &second, more));
    let at = |line: &str| told.iter().position(|told| told.starts_with(line)).unwrap_or_else(|| panic!("no {line} in {told:?}"));
    assert!(at("RELOADING=1") < at("MONOTONIC_USEC=") && at("MONOTONIC_USEC=") < at("READY=1"), "{told:?}");
    assert_eq!(
        told.last().unwrap(),
        &format!("STATUS=watching 4 cameras with {}", answers(&subscriber, "stay")[0]["model"].as_str().unwrap())
    );

    // One goes: every object has its end, and nothing is retained of it, entities of Home Assistant included.
    eventually("every object of the camera that is gone has ended", || open(&events("gone")).is_empty());
    eventually("nothing is retained of it", || kept(&broker, "gone").is_empty());
    let cleared: Vec<String> =
        subscriber.messages().iter().filter(|m| m.payload.is_empty() && !m.retain).map(|m| m.topic.clone()).collect();
    let gone: Vec<&String> = cleared.iter().filter(|topic| topic.contains("gone")).collect();
    assert_eq!(gone[0], "homeassistant/device/palisade_gone/config", "{gone:?}");

    // One comes, and is announced.
    goes_on(&subscriber, "new");
    let device = subscriber.on("homeassistant/device/palisade_new/config").pop().unwrap().json();
    assert!(device["cmps"]["count_bird"]["state_topic"].is_string(), "{device}");
    eventually("it has pictures", || fs::read_dir(folder.path().join("snapshots/new")).is_ok_and(|files| files.count() > 2));

    // What was on its way of the other has come.
    let last = answers(&subscriber, "gone").len();

    // One is asked something else, without its source being begun anew.
    eventually("the other prompt", || answers(&subscriber, "asked").last().unwrap()["prompt"] == "detect car");
    eventually("what is no longer asked for has ended", || {
        let open = open(&events("asked"));
        !events("asked").iter().any(|event| event["label"] == "traffic light" && open.contains(event["track_id"].as_str().unwrap()))
    });
    assert_eq!(connecting(&subscriber, "asked"), asked, "{:?}", states("asked"));
    eventually("its counts", || kept(&broker, "asked").iter().filter(|topic| topic.contains("palisade/asked/count")).count() == 1);

    // One is opened otherwise: its numbers go on.
    eventually("it is begun anew", || answers(&subscriber, "moved").last().unwrap()["frame"]["width"] == 640);
    goes_on(&subscriber, "moved");
    assert!(!states("moved").iter().any(|status| status["state"] == "disabled"), "{:?}", states("moved"));

    // And one notices nothing.
    goes_on(&subscriber, "stay");
    let since = states("stay").split_off(told_of_stay);
    assert!(since.iter().all(|status| status["state"] == "running"), "{since:?}");
    let reconnects = json(subscriber.on("palisade/stats")).pop().unwrap()["cameras"]["stay"]["reconnects"].clone();
    assert_eq!(reconnects, 0);
    assert_eq!(answers(&subscriber, "gone").len(), last, "it is looked at still");
    let told = events("stay").len();
    eventually("its objects are told of", || events("stay").len() > told);
    assert_eq!(clips("stay").len(), 1, "{:?}", clips("stay"));
    // Videos of the one that is gone are whole files.
    for clip in clips("gone") {
        assert!(crate::support::daemon::ffprobe(&folder.path().join(clip)).0 > 2);
    }
    assert!(crate::support::daemon::ffprobe(&folder.path().join("gone.mp4")).0 > 2);

    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
    subscriber.wait_text("palisade/status", "offline");
    for camera in ["stay", "asked", "moved", "gone", "new"] {
        is_whole(&answers(&subscriber, camera));
        eventually("every object has ended", || open(&events(camera)).is_empty());
    }
    assert!(!daemon.log().contains("panicked") && !daemon.log().contains("ERROR"), "{}", daemon.log());
}

#[test]
fn a_file_with_mistakes_changes_nothing_and_each_is_told() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let right = config(&broker, &[played("street", &["car"]), played("yard", &["car"])], "");
    let mut daemon = Daemon::start(folder.path(), &right);
    daemon.ready();
    goes_on(&subscriber, "yard");
    // One camera less, which must not be done by half.
    let wrong = config(&broker, &[played("street", &["car"])], "qos = 7\n").replace("interval = 0.25", "intervall = 0.25");
    let told = daemon.reload(&wrong);
    let checked = Command::new(PALISADE).args(["check", "--config"]).arg(folder.path().join("palisade.toml")).output().unwrap();
    let sentences = String::from_utf8(checked.stderr).unwrap();
    assert!(sentences.lines().count() == 2 && sentences.contains("did you mean interval?"), "{sentences}");
    let (log, status) = (daemon.log(), told.last().unwrap());
    for sentence in sentences.lines() {
        assert_eq!(log.lines().filter(|line| line.contains(sentence)).count(), 1, "{sentence} in {log}");
        assert!(status.starts_with("STATUS=watching 2 cameras") && status.contains(sentence), "{status}");
    }
    goes_on(&subscriber, "street");
    goes_on(&subscriber, "yard");

    // Mended, it is taken over.
    let told = daemon.reload(&config(&broker, &[played("street", &["car"])], ""));
    assert!(told.last().unwrap().starts_with("STATUS=watching 1 cameras"), "{told:?}");
    eventually("the camera is gone", || kept(&broker, "yard").is_empty());
    is_whole(&answers(&subscriber, "street"));
}

#[test]
fn what_needs_a_restart_is_refused_by_name_and_nothing_is_done() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let both = [played("street", &["car"]), played("yard", &["car"])];
    let snapshots = "[output.snapshots]\ndir = \"snapshots\"\n";
    let mut daemon = Daemon::start(folder.path(), &config(&broker, &both, snapshots));
    daemon.ready();
    goes_on(&subscriber, "yard");
    let other = config(&broker, &both[..1], &format!("topic_prefix = \"other\"\n{snapshots}[log]\nformat = \"json\"\n"));
    let told = daemon.reload(&other.replace("[[camera]]", "workers = 2\n[[camera]]"));
    let why = told.last().unwrap();
    assert!(why.contains(": model, mqtt, log.format differ from what runs") && why.contains("systemctl restart palisade"), "{why}");
    assert!(daemon.log().contains("model, mqtt, log.format differ"), "{}", daemon.log());
    goes_on(&subscriber, "yard");

    // So is what cannot be done: a folder that cannot be made.
    fs::write(folder.path().join("snapshots/new"), "in the way").unwrap();
    let told = daemon.reload(&config(&broker, &[played("new", &["car"]), both[0].clone()], snapshots));
    assert!(told.last().unwrap().contains("output.snapshots.dir snapshots/new cannot be made"), "{told:?}");
    goes_on(&subscriber, "yard");
    assert!(subscriber.on("palisade/new/status").is_empty());

    // What the rules for objects and the log's level are can be changed.
    assert!(!daemon.log().contains("DEBUG"), "{}", daemon.log());
    let before = connecting(&subscriber, "yard");
    let level = "[track]\nlost_after = 3.5\n[log]\nlevel = \"debug\"\n";
    let told = daemon.reload(&config(&broker, &both, &format!("{snapshots}{level}")));
    assert!(told.last().unwrap().ends_with(answers(&subscriber, "yard")[0]["model"].as_str().unwrap()), "{told:?}");
    goes_on(&subscriber, "yard");
    assert_eq!(connecting(&subscriber, "yard"), before, "other rules for objects are nothing to the source");
    daemon.reload(&config(&broker, &[played("late", &["car"]), both[0].clone(), both[1].clone()], &format!("{snapshots}{level}")));
    eventually("a line of this level", || daemon.log().contains("DEBUG"));
    for camera in ["street", "yard"] {
        is_whole(&answers(&subscriber, camera));
    }
}

#[test]
fn a_prompt_that_is_edited_wins_over_a_command_and_another_edit_does_not() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let text = |label: &str, more: &str| {
        config(&broker, &[played("street", &[label]).replace("loop = true", &format!("loop = true\n{more}"))], "control = true\n")
    };
    let mut daemon = Daemon::start(folder.path(), &text("car", ""));
    daemon.ready();
    subscriber.wait_text("palisade/status", "online");
    let asks = |prompt: &str| {
        let state = || subscriber.on("palisade/street/prompt/state").pop().map(|message| message.text());
        eventually(prompt, || {
            answers(&subscriber, "street").last().is_some_and(|answer| answer["prompt"] == prompt) && state().as_deref() == Some(prompt)
        });
    };
    asks("detect car");
    command(&broker, "prompt", b"detect bird", false);
    asks("detect bird");
    daemon.reload(&text("car", "max_width = 640"));
    goes_on(&subscriber, "street");
    asks("detect bird");
    daemon.reload(&text("person", "max_width = 640"));
    asks("detect person");
    // It is forgotten for good.
    daemon.reload(&text("car", "max_width = 640"));
    asks("detect car");
    eventually("it is forgotten on disk", || !fs::read_to_string(folder.path().join("state/control.json")).unwrap().contains("bird"));
    command(&broker, "detect", b"OFF", false);
    subscriber.wait_text("palisade/street/detect/state", "OFF");
    is_whole(&answers(&subscriber, "street"));
}

#[test]
fn another_password_in_its_file_is_another_camera_and_is_never_told() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let camera = Camera::off("--launch", BALL).basic("viewer", "s3cr3t-right").on();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let secret = folder.path().join("secret");
    fs::write(&secret, "s3cr3t-wrong\n").unwrap();
    let gate = table("gate", &camera.uri(), &["car"], &format!("username = \"viewer\"\npassword_file = {secret:?}"));
    let text = config(&broker, &[gate, played("street", &["car"])], "[log]\nlevel = \"trace\"\n");
    let mut daemon = Daemon::start(folder.path(), &text);
    daemon.ready();
    let states = || json(subscriber.on("palisade/gate/status"));
    eventually("it is refused", || states().last().is_some_and(|status| status["state"] == "backoff"));
    fs::write(&secret, "s3cr3t-right\n").unwrap();
    goes_on(&subscriber, "street");
    let before = connecting(&subscriber, "street");
    // A password that is refused is tried again each five minutes only.
    daemon.reload(&text);
    goes_on(&subscriber, "gate");
    assert_eq!(connecting(&subscriber, "street"), before);
    let told: String = subscriber.messages().iter().map(|message| format!("{} {}\n", message.topic, message.text())).collect();
    assert!(!told.contains("s3cr3t") && !daemon.log().contains("s3cr3t"), "{}", daemon.log());
}

#[test]
fn a_storm_of_signals_leaves_it_as_it_was() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let texts = [["car"], ["bird"]].map(|labels| {
        let other =
            played("other", &labels).replace("interval = 0.25", if labels == ["car"] { "interval = 0.25" } else { "interval = 0.5" });
        config(&broker, &[played("street", &["car"]), other], "")
    });
    let mut daemon = Daemon::start(folder.path(), &texts[0]);
    daemon.ready();
    goes_on(&subscriber, "street");
    goes_on(&subscriber, "other");
    // All that a reload may bring about has been there once.
    daemon.reload(&texts[1]);
    daemon.reload(&texts[0]);
    goes_on(&subscriber, "other");
    let (threads_before, descriptors_before) = (threads(&daemon), descriptors(&daemon));
    let file = folder.path().join("palisade.toml");
    for number in 0..50 {
        fs::write(folder.path().join("part"), &texts[number % 2]).unwrap();
        fs::rename(folder.path().join("part"), &file).unwrap();
        daemon.signal("HUP");
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.reload(&texts[0]);
    goes_on(&subscriber, "street");
    goes_on(&subscriber, "other");
    eventually("its threads and descriptors are as many as before", || {
        threads(&daemon) <= threads_before + 2 && descriptors(&daemon) <= descriptors_before + 2
    });
    for camera in ["street", "other"] {
        is_whole(&answers(&subscriber, camera));
    }
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
}

/// The times at which pictures came.
struct Viewer {
    pipeline: gstreamer::Pipeline,
    came: Arc<Mutex<Vec<Instant>>>,
}

impl Viewer {
    fn open(uri: &str) -> Self {
        let line = format!("rtspsrc location={uri} protocols=tcp latency=0 ! rtph264depay ! appsink name=sink sync=false");
        let pipeline = gstreamer::parse::launch(&line).unwrap().downcast::<gstreamer::Pipeline>().unwrap();
        let sink = pipeline.by_name("sink").unwrap().downcast::<gstreamer_app::AppSink>().unwrap();
        let came = Arc::<Mutex<Vec<Instant>>>::default();
        let noted = came.clone();
        let take = move |sink: &gstreamer_app::AppSink| {
            sink.pull_sample().map_err(|_| gstreamer::FlowError::Eos)?;
            noted.lock().unwrap().push(Instant::now());
            Ok(gstreamer::FlowSuccess::Ok)
        };
        sink.set_callbacks(gstreamer_app::AppSinkCallbacks::builder().new_sample(take).build());
        pipeline.set_state(gstreamer::State::Playing).unwrap();
        Self { pipeline, came }
    }

    fn pictures(&self) -> usize {
        self.came.lock().unwrap().len()
    }

    fn has_ended(&self) -> bool {
        self.pipeline.bus().unwrap().pop_filtered(&[gstreamer::MessageType::Eos, gstreamer::MessageType::Error]).is_some()
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.pipeline.set_state(gstreamer::State::Null).unwrap();
    }
}

#[test]
fn who_watches_a_camera_that_stays_sees_no_break_and_others_come_and_go() {
    gstreamer::init().unwrap();
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let ball = Camera::launch(BALL);
    let (rtsp, web) = (free_port(), free_port());
    let more = format!("[output.rtsp]\nlisten = \"127.0.0.1:{rtsp}\"\nvideo = \"live\"\n[console]\nlisten = \"127.0.0.1:{web}\"\n");
    let stay = table("stay", &ball.uri(), &["car"], "");
    let mut daemon = Daemon::start(folder.path(), &config(&broker, &[stay.clone(), played("gone", &["car"])], &more));
    daemon.ready();
    goes_on(&subscriber, "gone");
    goes_on(&subscriber, "stay");
    let address = |id: &str| format!("rtsp://127.0.0.1:{rtsp}/{id}");
    let (stays, goes) = (Viewer::open(&address("stay")), Viewer::open(&address("gone")));
    eventually("both are seen", || stays.pictures() > 5 && goes.pictures() > 5);
    let web = format!("127.0.0.1:{web}").parse().unwrap();
    let get = |path: &str| http::ask(web, &format!("GET {path}"), &["Host: localhost"]);
    eventually("it is there over HTTP", || get("/live/gone.jpg").status == 200 && get("/live/gone/index.m3u8").status == 200);

    daemon.reload(&config(&broker, &[stay.clone(), played("new", &["car"])], &more));
    eventually("who watches the other learns that it has ended", || goes.has_ended());
    goes_on(&subscriber, "new");
    let comes = Viewer::open(&address("new"));
    eventually("the new one is seen", || comes.pictures() > 5);
    eventually("it is there over HTTP", || get("/live/new.jpg").status == 200 && get("/live/new/index.m3u8").status == 200);
    let listed = get("/api/v1/cameras").text().to_owned();
    assert!(listed.contains("/live/new.mjpeg") && !listed.contains("/live/gone"), "{listed}");
    assert_eq!((get("/live/gone.jpg").status, get("/live/gone/index.m3u8").status), (404, 404));
    // A camera that is begun anew keeps who watches it.
    daemon.reload(&config(&broker, &[stay, played("new", &["car"]).replace("0.25", "0.3")], &more));
    let before = (stays.pictures(), comes.pictures());
    eventually("both go on", || stays.pictures() > before.0 + 20 && comes.pictures() > before.1 + 20);
    assert!(!stays.has_ended() && !comes.has_ended());
    let came = stays.came.lock().unwrap().clone();
    let longest = came.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest < Duration::from_secs(3), "no picture came for {longest:?}");
    assert_eq!(json(subscriber.on("palisade/stats")).pop().unwrap()["cameras"]["stay"]["reconnects"], 0);
}

#[test]
fn an_order_that_comes_before_the_model_is_loaded_ends_nothing() {
    let folder = tempdir().unwrap();
    // A hub that accepts and never answers.
    let hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!("[model]\nid = \"a/b\"\n{}", played("street", &["car"]));
    let endpoint = format!("http://{}", hub.local_addr().unwrap());
    let home: &Path = folder.path();
    let mut daemon = Daemon::start_with(home, &text, &[("HF_ENDPOINT", &endpoint), ("HF_HOME", home.to_str().unwrap())]);
    let _silent = hub.accept().unwrap();
    for _ in 0..5 {
        daemon.signal("HUP");
        std::thread::sleep(Duration::from_millis(50));
        assert!(daemon.runs());
    }
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
}
