//! `palisade mqtt tail` and `schema` as a person runs them, beside a daemon and a real broker.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use palisade::base::metrics::Metrics;
use palisade::types::{EventKind, Reason};
use serde_json::Value;

use super::event::{cat, say};
use super::{found, publish, running, start};
use crate::support::broker::{Broker, LONG, Setup, Subscriber, eventually};
use crate::support::daemon::{PALISADE, repository};

/// A running tail and what it has printed; killed when dropped.
struct Tail {
    child: Child,
    lines: Receiver<String>,
    notes: Receiver<String>,
    all: Vec<String>,
}

fn lines(source: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || BufReader::new(source).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    receiver
}

impl Tail {
    fn start(file: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(PALISADE);
        command.args(["mqtt", "tail", "--config"]).arg(file).args(more).current_dir(repository(""));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (printed, notes) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Self { child, lines: printed, notes, all: Vec::new() }
    }

    /// Waits for a line on standard error that holds `word`.
    #[track_caller]
    fn note(&self, word: &str) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let note = self.notes.recv_timeout(left).unwrap_or_else(|_| panic!("no note with {word:?}"));
            if note.contains(word) {
                return note;
            }
        }
    }

    /// Waits for a printed line that `right` holds for.
    #[track_caller]
    fn line(&mut self, what: &str, right: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { panic!("no line with {what}: {:#?}", self.all) };
            self.all.push(line.clone());
            if right(&line) {
                return line;
            }
        }
    }

    /// Ends it as Ctrl-C does.
    fn interrupt(mut self) {
        let killed = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let before = Instant::now();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn config(broker: &Broker, lines: &str) -> std::path::PathBuf {
    let text = format!(
        "[model]\npath = \"samples/demo-model\"\n[[camera]]\nid = \"street\"\nuri = \"samples/street.mp4\"\nlabels = [\"cat\"]\n\
         [mqtt]\nhost = \"localhost\"\nport = {}\nclient_id = \"node\"\n{lines}",
        broker.port()
    );
    std::fs::write(broker.path("palisade.toml"), text).unwrap();
    broker.path("palisade.toml")
}

#[test]
fn tail_prints_a_line_a_message_and_comes_back_after_a_loss() {
    let mut broker = Broker::start();
    let file = config(&broker, "");
    let mqtt = start(broker.config("node"), &Metrics::new());
    Subscriber::new(&broker, "palisade/status").wait_text("palisade/status", "online");
    let mut tail = Tail::start(&file, &[]);
    tail.note("listening to palisade/# at localhost:");
    tail.line("the daemon's state from before", |line| line.ends_with(" -  daemon is online  (retained)"));
    publish(&mqtt.publisher(), &found("street", 7));
    let line = tail.line("detections", |line| line.contains(" at 0."));
    assert_eq!(line, "2026-11-23T14:03:07.127Z street  cat 0.91 at 0.35,0.56");
    say(&mqtt.publisher(), &cat(EventKind::New, Reason::FirstSeen));
    let line = tail.line("an event", |line| line.contains("track"));
    assert_eq!(line, "2026-11-23T14:03:10.000Z street  new cat 0.91 at 0.35,0.56 in gate (first seen) track 1795442587.120-a3f9");
    mqtt.publisher().camera_status(&running("yard", 4.9));
    tail.line("the camera's state", |line| line == "1970-01-01T00:00:00.000Z yard  is running at 4.9 fps");
    assert!(mqtt.publisher().trouble().is_none(), "the tail threw the daemon out");

    broker.kill9();
    tail.note("next try in ");
    broker.restart();
    tail.note("listening to ");
    publish(&mqtt.publisher(), &found("street", 8));
    tail.line("detections after the loss", |line| line.starts_with("2026-11-23T14:03:07.128Z street  cat "));
    mqtt.finish(LONG);
    tail.line("the goodbye", |line| line.ends_with(" -  daemon is offline"));
    tail.interrupt();
    let log = broker.log();
    let joined: Vec<&str> = log.lines().skip_while(|line| !line.contains("as palisade-tail-")).take(2).collect();
    assert!(joined[0].contains("c1") && joined[1].ends_with("No will message specified."), "{joined:?}");
    eventually("a clean goodbye", || {
        broker.log().lines().any(|line| line.contains("Client palisade-tail-") && line.ends_with(" disconnected."))
    });
}

#[test]
fn tail_gives_objects_to_scripts_over_tls_with_a_login_and_a_certificate() {
    let login = Some(("viewer".to_owned(), "s3cr3t".to_owned()));
    let broker = Broker::with(Setup { login, tls: true, asks_for_certificate: true, ..Setup::default() });
    let secret = broker.path("secret");
    std::fs::write(&secret, "s3cr3t\n").unwrap();
    let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"].map(|name| broker.path(name));
    let lines = format!(
        "username = \"viewer\"\npassword_file = {secret:?}\ntls = true\nca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\n"
    );
    let file = config(&broker, &lines);
    let mut tail = Tail::start(&file, &["--json"]);
    tail.note("listening to ");
    let mqtt = start(broker.config("node"), &Metrics::new());
    publish(&mqtt.publisher(), &found("street", 1));
    let line = tail.line("detections", |line| line.contains("street/detections"));
    let object: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(object["topic"], "palisade/street/detections");
    assert_eq!((&object["retained"], &object["payload"]["seq"]), (&Value::Bool(false), &Value::from(1)));
    for line in &tail.all {
        let keys: Vec<String> = serde_json::from_str::<Value>(line).unwrap().as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["topic", "retained", "payload"], "{line}");
    }
    assert!(tail.all.contains(&r#"{"topic":"palisade/status","retained":false,"payload":"online"}"#.to_owned()), "{:#?}", tail.all);
    mqtt.finish(LONG);
    tail.interrupt();
}

#[test]
fn tail_says_what_is_wrong() {
    let broker = Broker::with_login("palisade", "right-one");
    let tail = Tail::start(&config(&broker, "username = \"palisade\"\n"), &[]);
    tail.note("refused the login; check mqtt.username and mqtt.password_file; next try in ");
    tail.interrupt();
    let text = std::fs::read_to_string(broker.path("palisade.toml")).unwrap();
    std::fs::write(broker.path("none.toml"), text.split("[mqtt]").next().unwrap()).unwrap();
    let none = palisade(&["mqtt", "tail", "--config", broker.path("none.toml").to_str().unwrap()]);
    assert_eq!(none.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&none.stderr).contains("has no [mqtt] table; must name the broker there"), "{none:?}");
}

fn palisade(arguments: &[&str]) -> Output {
    Command::new(PALISADE).args(arguments).current_dir(repository("")).output().unwrap()
}

#[test]
fn schema_prints_one_or_all() {
    let all = palisade(&["mqtt", "schema"]);
    let all: Value = serde_json::from_slice(&all.stdout).unwrap();
    let names: Vec<&String> = all.as_object().unwrap().keys().collect();
    assert_eq!(names, ["detections", "status", "events", "stats"]);
    for name in names {
        let one = palisade(&["mqtt", "schema", name]);
        assert_eq!(serde_json::from_slice::<Value>(&one.stdout).unwrap(), all[name]);
    }
    let none = palisade(&["mqtt", "schema", "nonsense"]);
    let told = "palisade: \"nonsense\" is no payload with a schema; must be one of detections, status, events, stats\n";
    assert_eq!((none.status.code(), String::from_utf8(none.stderr).unwrap().as_str()), (Some(1), told));
}
