//! Records outlive the process, the broker and the wire; a disk that cannot be used costs no more than that.

use std::path::Path;
use std::time::{Duration, Instant};

use palisade::base::metrics::Metrics;
use palisade::config::{Durable, MqttConfig};

use super::{dropped, first_arrivals, looked, publish, published, start};
use crate::support::broker::{Broker, LONG, Subscriber, eventually};
use crate::support::wire::Wire;

fn kept(broker: &Broker, client_id: &str, folder: &Path) -> MqttConfig {
    MqttConfig { state_dir: Some(folder.to_owned()), ..broker.config(client_id) }
}

/// How much of a long test is run where there are many others.
fn share(full: u64, short: u64) -> u64 {
    if std::env::var_os("PALISADE_SOAK").is_some() { full } else { short }
}

#[test]
fn a_backlog_of_thousands_outlives_the_process_and_comes_in_order() {
    const EACH: u64 = 3000;
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    broker.stop();
    let metrics = Metrics::new();
    let mqtt = start(kept(&broker, "first", folder.path()), &metrics);
    for seq in 1..=EACH {
        publish(&mqtt.publisher(), &looked("street", seq, "s"));
        publish(&mqtt.publisher(), &looked("yard", seq, "y"));
        if seq % 100 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let before = Instant::now();
    mqtt.finish(Duration::from_secs(10));
    assert!(before.elapsed() < Duration::from_secs(5), "what is kept need not be waited for: {:?}", before.elapsed());
    assert_eq!((dropped(&metrics, "street"), dropped(&metrics, "yard")), (0, 0));

    broker.restart();
    let metrics = Metrics::new();
    let mqtt = start(kept(&broker, "second", folder.path()), &metrics);
    publish(&mqtt.publisher(), &looked("street", EACH + 1, "s"));
    eventually("all is acknowledged", || published(&metrics, "street") + published(&metrics, "yard") == 2 * EACH + 1);
    eventually("all arrives", || subscriber.messages().len() as u64 > 2 * EACH);
    let messages = subscriber.messages();
    assert_eq!(first_arrivals(&messages, "street"), (1..=EACH + 1).collect::<Vec<_>>());
    assert_eq!(first_arrivals(&messages, "yard"), (1..=EACH).collect::<Vec<_>>());
    mqtt.finish(LONG);

    // What was acknowledged is not sent once more by the next start.
    let count = subscriber.messages().len();
    let mqtt = start(kept(&broker, "third", folder.path()), &Metrics::new());
    eventually("the link is there", || mqtt.publisher().trouble().is_none());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(subscriber.messages().len(), count);
    mqtt.finish(LONG);
}

/// At random: the broker frozen, or killed and started anew with what it had kept or with nothing, the wire blocked without
/// a word, or cut.
#[test]
fn nothing_is_lost_whatever_befalls_broker_and_wire() {
    let each = share(5000, 900);
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Broker::start();
    let wire = Wire::start(broker.port());
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { port: wire.port(), ..kept(&broker, "storm", folder.path()) }, &metrics);
    let publisher = mqtt.publisher();
    let feeding = std::thread::spawn(move || {
        for seq in 1..=each {
            publish(&publisher, &looked("street", seq, "s"));
            publish(&publisher, &looked("yard", seq, "y"));
            std::thread::sleep(Duration::from_millis(10)); // 200 a second
        }
    });
    let mut noise = 7_u64;
    let mut faults = [0; 5];
    while !feeding.is_finished() || faults.contains(&0) {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lasts = Duration::from_millis(200 + (noise >> 40) % 3000);
        // Each once, then at random.
        let fault = faults.iter().position(|count| *count == 0).unwrap_or((noise >> 33) as usize % 5);
        faults[fault] += 1;
        match fault {
            0 => {
                broker.freeze();
                std::thread::sleep(lasts);
                broker.thaw();
            }
            1 => {
                broker.kill9();
                std::thread::sleep(lasts / 4);
                broker.restart();
            }
            2 => {
                wire.block(true);
                std::thread::sleep(lasts);
                wire.block(false);
            }
            3 => {
                // What it took it has passed on already; nothing comes before the subscriber, whom it forgot, is there again.
                wire.block(true);
                broker.kill9();
                broker.forget();
                let before = subscriber.subscriptions();
                broker.restart();
                eventually("the subscriber is back", || subscriber.subscriptions() > before);
                wire.cut();
                wire.block(false);
            }
            _ => wire.cut(),
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    feeding.join().unwrap();
    let deadline = Instant::now() + LONG * 3;
    while published(&metrics, "street") + published(&metrics, "yard") < 2 * each {
        assert!(Instant::now() < deadline, "{:?}", metrics.counts());
        std::thread::sleep(Duration::from_millis(50));
    }
    eventually("all arrives", || ["street", "yard"].iter().all(|id| first_arrivals(&subscriber.messages(), id).len() as u64 == each));
    let messages = subscriber.messages();
    for id in ["street", "yard"] {
        assert_eq!(first_arrivals(&messages, id), (1..=each).collect::<Vec<_>>(), "{id}");
        assert_eq!(dropped(&metrics, id), 0);
    }
    let connects = metrics.counter("mqtt_connects", "broker").get();
    println!("{faults:?} faults, {connects} connections, {} messages came twice", messages.len() as u64 - 2 * each);
    assert!(connects > 2 && faults.iter().all(|count| *count > 0), "not every fault befell: the test proves nothing");
    mqtt.finish(LONG);
}

#[test]
fn a_folder_that_cannot_be_used_leaves_the_records_in_memory() {
    let broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    let folder = tempfile::tempdir().unwrap();
    let used = start(kept(&broker, "user", folder.path()), &Metrics::new());
    for (client, state) in [("proc", Path::new("/proc/nowhere")), ("second", folder.path())] {
        let metrics = Metrics::new();
        let mqtt = start(kept(&broker, client, state), &metrics);
        publish(&mqtt.publisher(), &looked("street", 1, "s"));
        eventually("it is acknowledged", || published(&metrics, "street") == 1);
        mqtt.finish(LONG);
    }
    eventually("both arrive", || subscriber.messages().len() == 2);
    used.finish(LONG);
}

#[test]
fn the_folder_of_a_daemon_that_has_ended_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/street/detections");
    let configs = ["first", "second", "third"].map(|client| kept(&broker, client, folder.path()));
    broker.stop();
    let [first, second, third] = configs;
    let first = start(first, &Metrics::new());
    publish(&first.publisher(), &looked("street", 1, "s"));
    eventually("it is saved", || first.publisher().unsaved() == 0);
    let second = start(second, &Metrics::new());
    publish(&second.publisher(), &looked("street", 2, "s"));
    std::thread::sleep(Duration::from_secs(1)); // some tries
    assert_eq!(second.publisher().unsaved(), 1);
    first.finish(Duration::ZERO);
    eventually("it is saved by the next", || second.publisher().unsaved() == 0);
    second.finish(Duration::ZERO);
    broker.restart();
    let third = start(third, &Metrics::new());
    subscriber.wait_for("both", |messages| messages.len() == 2);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), [1, 2]);
    third.finish(LONG);
}

#[test]
fn a_damaged_file_is_moved_aside() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("outbox.redb"), "this is no store ".repeat(1000)).unwrap();
    let metrics = Metrics::new();
    let mqtt = start(kept(&broker, "damaged", folder.path()), &metrics);
    publish(&mqtt.publisher(), &looked("street", 1, "s"));
    eventually("it is acknowledged", || published(&metrics, "street") == 1);
    mqtt.finish(LONG);
    let names: Vec<String> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let names: Vec<String> = names.into_iter().filter(|name| name.starts_with("outbox")).collect();
    assert!(names.len() == 2 && names.iter().any(|name| name.starts_with("outbox.redb.damaged-")), "{names:?}");
}

#[test]
fn what_is_not_asked_to_be_kept_is_not() {
    let mut broker = Broker::start();
    let _subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    broker.stop();
    let folder = tempfile::tempdir().unwrap();
    for durable in [Durable::Events, Durable::None] {
        let metrics = Metrics::new();
        let mqtt = start(MqttConfig { durable, ..kept(&broker, "none", folder.path()) }, &metrics);
        publish(&mqtt.publisher(), &looked("street", 1, "s"));
        mqtt.finish(Duration::from_millis(300));
        assert_eq!(dropped(&metrics, "street"), 1, "{durable:?}");
        assert_eq!(metrics.counter("mqtt_dropped_closed", "street").get(), 1, "{durable:?}");
    }
}
