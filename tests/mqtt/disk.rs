//! Disks that are full or take nothing at all, in earnest: the stage runs in a process whose files may grow so far and no
//! further. The limit is the kernel's, and needs no rights: a write past it fails as one on a full disk does. At zero every
//! write fails, as on a disk that has become read-only.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use palisade::base::metrics::Metrics;
use palisade::config::MqttConfig;

use super::{dropped, first_arrivals, looked, publish, published, start};
use crate::support::broker::{Broker, LONG, Subscriber, eventually};

/// Set for the other process: the broker's port and the state folder.
const ROLE: &str = "PALISADE_TEST_DISK";

const MEMORY_ONLY: &str = "kept in memory only for now";
const AGAIN: &str = "kept on disk again";

/// A process that publishes what it is told to.
struct Node {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
    log: Arc<Mutex<String>>,
    file: PathBuf,
}

impl Node {
    fn start(broker: &Broker, folder: &Path) -> Self {
        Self::start_with(broker, folder, "unlimited")
    }

    /// With so many blocks that a file of it may have, from the start.
    fn start_with(broker: &Broker, folder: &Path, blocks: &str) -> Self {
        let this = std::env::current_exe().unwrap();
        // A signal that a process ignores is ignored by the one that takes its place, too.
        let mut child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -S -f $1; exec \"$0\" --exact mqtt::disk::the_other_process --nocapture --test-threads 1"])
            .arg(this)
            .arg(blocks)
            .env(ROLE, format!("{} {}", broker.port(), folder.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, answers) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            let lines = out.lines().map_while(Result::ok);
            lines.filter_map(|line| line.split_once("> ").map(|(_, said)| said.to_owned())).try_for_each(|said| send.send(said)).ok();
        });
        let log = Arc::new(Mutex::new(String::new()));
        let (err, shared) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        thread::spawn(move || err.lines().map_while(Result::ok).for_each(|line| *shared.lock().unwrap() += &format!("{line}\n")));
        let orders = child.stdin.take().unwrap();
        Self { child, orders, answers, log, file: folder.join("outbox.redb") }
    }

    fn ask(&mut self, order: &str) -> u64 {
        writeln!(self.orders, "{order}").unwrap();
        let answer = self.answers.recv_timeout(LONG);
        answer.unwrap_or_else(|error| panic!("{order}: {error}; {}", self.log.lock().unwrap())).parse().unwrap()
    }

    /// Publishes these, and asserts that no call took long.
    fn publish(&mut self, from: u64, to: u64) {
        self.ask(&format!("publish {from} {to}"));
    }

    fn wait_saved(&mut self) {
        eventually("all is on disk", || self.ask("unsaved") == 0);
    }

    /// How large a file of the process may be, in bytes; `None`: as large as it likes.
    fn limit(&self, bytes: Option<u64>) {
        let size = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let arguments = ["--pid", &self.child.id().to_string(), &format!("--fsize={size}:unlimited")];
        assert!(Command::new("prlimit").args(arguments).status().expect("prlimit must be installed: apt install util-linux").success());
    }

    fn size(&self) -> u64 {
        std::fs::metadata(&self.file).unwrap().len()
    }

    /// How often it has said so.
    fn said(&self, what: &str) -> usize {
        self.log.lock().unwrap().matches(what).count()
    }

    fn finish(mut self) {
        self.ask("finish");
        assert!(self.child.wait().unwrap().success(), "{}", self.log.lock().unwrap());
        assert!(!self.log.lock().unwrap().contains("this is a defect"), "{}", self.log.lock().unwrap());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What `Node` starts; among the other tests it has nothing to do.
#[test]
fn the_other_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (port, folder) = role.split_once(' ').unwrap();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let metrics = Metrics::new();
    let broker = Broker::absent(port.parse().unwrap());
    let mqtt = start(MqttConfig { state_dir: Some(folder.into()), ..broker.config("node") }, &metrics);
    let text = "x".repeat(1500);
    for order in std::io::stdin().lines() {
        let order = order.unwrap();
        let words: Vec<&str> = order.split(' ').collect();
        let answer = match words[..] {
            ["publish", from, to] => {
                for seq in from.parse().unwrap()..=to.parse().unwrap() {
                    publish(&mqtt.publisher(), &looked("street", seq, &text));
                }
                0
            }
            ["unsaved"] => mqtt.publisher().unsaved() as u64,
            ["published"] => published(&metrics, "street"),
            ["dropped"] => dropped(&metrics, "street"),
            _ => break,
        };
        println!("> {answer}");
    }
    mqtt.finish(Duration::from_secs(3));
    println!("> 0");
}

fn scene() -> (tempfile::TempDir, Broker, Subscriber) {
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    broker.stop();
    (tempfile::tempdir().unwrap(), broker, subscriber)
}

/// Publishes until the disk is full, some more, and asserts what must hold meanwhile; returns the last seq.
fn fill(node: &mut Node, size: u64) -> u64 {
    node.publish(1, 300);
    node.wait_saved();
    node.limit(Some(size.min(node.size())));
    let mut last = 300;
    eventually("the disk is full", || {
        node.publish(last + 1, last + 20);
        last += 20;
        node.said(MEMORY_ONLY) == 1
    });
    node.publish(last + 1, last + 400);
    // Some tries that fail.
    thread::sleep(Duration::from_secs(2));
    assert_eq!((node.said(MEMORY_ONLY), node.said(AGAIN)), (1, 0));
    assert!(node.ask("unsaved") >= 400 && node.ask("dropped") == 0);
    last + 400
}

/// Ends the node, and has another one with a broker deliver everything.
fn deliver(node: Node, mut broker: Broker, subscriber: &Subscriber, folder: &Path, expected: impl Iterator<Item = u64>) {
    node.finish();
    broker.restart();
    let expected: Vec<u64> = expected.collect();
    let metrics = Metrics::new();
    let config = MqttConfig { state_dir: Some(folder.to_owned()), ..broker.config("next") };
    let mqtt = start(config, &metrics);
    subscriber.wait_for("all", |messages| messages.last().is_some_and(|newest| newest.json()["seq"] == *expected.last().unwrap()));
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), expected);
    assert_eq!(subscriber.messages().len(), expected.len(), "each of them once");
    mqtt.finish(LONG);
}

#[test]
fn a_full_disk_loses_nothing_that_memory_holds_and_room_is_used_again() {
    for size in [u64::MAX, 0] {
        let (folder, broker, subscriber) = scene();
        let mut node = Node::start(&broker, folder.path());
        let last = fill(&mut node, size);
        node.limit(None);
        node.wait_saved();
        eventually("it is told", || node.said(AGAIN) == 1);
        assert_eq!(node.said(MEMORY_ONLY), 1);
        node.publish(last + 1, last + 900);
        node.wait_saved();
        assert_eq!(node.ask("dropped"), 0);
        deliver(node, broker, &subscriber, folder.path(), 1..=last + 900);
    }
}

#[test]
fn on_a_full_disk_memory_is_a_ring_that_loses_the_oldest() {
    let (folder, broker, subscriber) = scene();
    let mut node = Node::start(&broker, folder.path());
    let last = fill(&mut node, u64::MAX);
    let begin = Instant::now();
    node.publish(last + 1, last + 3000);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let lost = node.ask("dropped");
    assert!(lost > 2000, "{lost}");
    node.limit(None);
    node.wait_saved();
    assert_eq!(node.ask("dropped"), lost, "nothing more");
    // The oldest of those that the disk did not have are gone, and no other.
    let first_kept = last + 3000 - 1000 + 1;
    deliver(node, broker, &subscriber, folder.path(), (1..first_kept - lost).chain(first_kept..=last + 3000));
}

#[test]
fn what_a_full_disk_holds_is_delivered_all_the_same() {
    let (folder, mut broker, subscriber) = scene();
    let mut node = Node::start(&broker, folder.path());
    node.publish(1, 1000);
    node.wait_saved();
    node.publish(1001, 2000);
    node.wait_saved();
    node.limit(Some(node.size()));
    let mut last = 2000;
    eventually("the disk is full", || {
        node.publish(last + 1, last + 20);
        last += 20;
        node.said(MEMORY_ONLY) == 1
    });
    broker.restart();
    eventually("all is acknowledged", || node.ask("published") == last);
    subscriber.wait_for("all", |messages| messages.len() as u64 >= last);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), (1..=last).collect::<Vec<_>>());
    assert_eq!(node.ask("dropped"), 0);
    node.limit(None);
    eventually("it is kept on disk again", || node.said(AGAIN) > 0);
    node.finish();
    // What was acknowledged meanwhile was deleted.
    let mqtt = start(MqttConfig { state_dir: Some(folder.path().to_owned()), ..broker.config("next") }, &Metrics::new());
    eventually("the link is there", || mqtt.publisher().trouble().is_none());
    thread::sleep(Duration::from_millis(500));
    assert_eq!(subscriber.messages().len() as u64, last);
    mqtt.finish(LONG);
}

#[test]
fn a_disk_that_takes_nothing_from_the_start_is_used_once_it_does() {
    let (folder, broker, subscriber) = scene();
    // A store that holds some, opened where nothing can be written.
    let mut node = Node::start(&broker, folder.path());
    node.publish(1, 200);
    node.wait_saved();
    node.finish();
    let mut node = Node::start_with(&broker, folder.path(), "0");
    node.publish(201, 500);
    eventually("it is told", || node.said(MEMORY_ONLY) == 1);
    thread::sleep(Duration::from_secs(1));
    assert_eq!((node.said(MEMORY_ONLY), node.ask("dropped")), (1, 0));
    node.limit(None);
    node.wait_saved();
    node.publish(501, 510);
    node.wait_saved();
    deliver(node, broker, &subscriber, folder.path(), 1..=510);
}
