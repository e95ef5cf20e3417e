//! The whole daemon with its broker away for long: what the cameras get is the same as with a broker, memory stays as it is,
//! and all that was seen comes in order once the broker is back.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::tempdir;

use crate::support::broker::{Broker, Subscriber};
use crate::support::daemon::{Daemon, repository};

/// Cameras of five looks a second each: 50 records a second.
const CAMERAS: usize = 10;
const LOOKS: u64 = 5;

/// Until what waits fills the memory kept for it, and the rest goes to the disk alone: a thousand records.
const FILLED: Duration = Duration::from_secs(24);

/// For the link to be tried again, and the newest to come.
const BACK: Duration = Duration::from_secs(90);

/// What the resident memory may grow by from then on, KiB.
const GROWTH: u64 = 8 * 1024;

fn config(broker: &Broker) -> String {
    let camera = |id: usize| {
        format!(
            "[[camera]]\nid = \"c{id}\"\npipeline = \"videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=10/1 ! videoconvert\"\n\
             prompt = \"detect cat\"\ninterval = {}\n",
            1.0 / LOOKS as f64
        )
    };
    format!(
        "[model]\npath = {:?}\nmax_new_tokens = 8\n{}[mqtt]\nhost = \"127.0.0.1\"\nport = {}\nstate_dir = \"state\"\n",
        repository("samples/demo-model"),
        (0..CAMERAS).map(camera).collect::<String>(),
        broker.port()
    )
}

/// How much of the daemon lies in memory, KiB.
fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(daemon.id().to_string()).join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Each camera's numbers at their first arrival, and how many of its frames were taken within the time.
fn arrived(subscriber: &Subscriber, within: (f64, f64)) -> BTreeMap<String, (Vec<u64>, usize)> {
    let mut cameras: BTreeMap<String, (Vec<u64>, usize)> = BTreeMap::new();
    for message in subscriber.messages() {
        let object = message.json();
        let (seqs, count) = cameras.entry(object["camera"].as_str().unwrap().to_owned()).or_default();
        let (seq, epoch) = (object["seq"].as_u64().unwrap(), object["epoch"].as_f64().unwrap());
        if !seqs.contains(&seq) {
            seqs.push(seq);
            *count += usize::from((within.0..within.1).contains(&epoch));
        }
    }
    cameras
}

fn epoch() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn a_broker_that_is_away_for_long_costs_no_frame_no_memory_and_no_record() {
    let away = Duration::from_secs(if std::env::var_os("PALISADE_SOAK").is_some() { 600 } else { 45 });
    let (mut lost, kept) = (Broker::start(), Broker::start());
    let folders = [tempdir().unwrap(), tempdir().unwrap()];
    let subscribers = [&lost, &kept].map(|broker| Subscriber::durable(broker, "palisade/+/detections"));
    let mut daemons = [(&folders[0], &lost), (&folders[1], &kept)].map(|(folder, broker)| Daemon::start(folder.path(), &config(broker)));
    daemons.iter_mut().for_each(Daemon::ready);
    for subscriber in &subscribers {
        subscriber.wait_for("each camera", |messages| messages.len() >= CAMERAS * 5);
    }
    lost.stop();
    let (begin, from) = (Instant::now(), epoch());
    std::thread::sleep(FILLED);
    let full = resident(&daemons[0]);
    std::thread::sleep(away.saturating_sub(begin.elapsed()));
    let (until, grown) = (epoch(), resident(&daemons[0]).saturating_sub(full));
    lost.restart();

    let expected = (away.as_secs() * LOOKS) as usize;
    // The next try comes within a minute; a thousand records a second go out then.
    let deadline = Instant::now() + BACK + away / 10;
    while arrived(&subscribers[0], (until, f64::MAX)).values().filter(|(_, after)| *after > 0).count() < CAMERAS {
        assert!(Instant::now() < deadline, "the backlog is not drained");
        std::thread::sleep(Duration::from_millis(500));
    }
    let [without, with] = subscribers.each_ref().map(|subscriber| arrived(subscriber, (from, until)));
    let sum = |cameras: &BTreeMap<String, (Vec<u64>, usize)>| cameras.values().map(|(_, count)| count).sum::<usize>();
    println!(
        "{} s away: {} frames without a broker, {} with one; resident {full} KiB + {grown} KiB",
        away.as_secs(),
        sum(&without),
        sum(&with)
    );
    for (id, (seqs, count)) in &without {
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{id}: in order, without a gap: {seqs:?}");
        // Both daemons share the machine, and each looks at its own cameras at its own moments.
        assert!(count * 10 >= with[id].1 * 9, "{id}: {count} frames without a broker, {} with one", with[id].1);
        assert!(*count > expected / 2, "{id}: {count} of some {expected} frames; the machine is too busy to tell");
    }
    assert!(sum(&without) * 100 >= sum(&with) * 97, "{} frames without a broker, {} with one", sum(&without), sum(&with));
    assert!(grown <= GROWTH, "it grew by {grown} KiB from {full} KiB");
    for daemon in &mut daemons {
        daemon.signal("TERM");
        assert!(daemon.wait(Duration::from_secs(20)).success(), "{}", daemon.log());
    }
}
