//! What waited for a connection, and what comes meanwhile: its rate, its order, and a store that is found late.

use std::path::Path;
use std::time::{Duration, Instant};

use palisade::base::clock::Utc;
use palisade::base::metrics::Metrics;
use palisade::config::MqttConfig;
use redb::{Database, TableDefinition};

use super::{dropped, first_arrivals, looked, publish, published, start};
use crate::support::broker::{Broker, LONG, Subscriber, eventually};

fn kept(broker: &Broker, client_id: &str, folder: &Path) -> MqttConfig {
    MqttConfig { state_dir: Some(folder.to_owned()), ..broker.config(client_id) }
}

#[test]
fn a_backlog_goes_out_at_its_rate() {
    const BACKLOG: u64 = 900;
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    broker.stop();
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { backlog_rate: 300, ..broker.config("rate") }, &metrics);
    (1..=BACKLOG).for_each(|seq| publish(&mqtt.publisher(), &looked("street", seq, "s")));
    broker.restart();
    eventually("the first are acknowledged", || published(&metrics, "street") > 0);
    let (begin, before) = (Instant::now(), published(&metrics, "street"));
    let mut lately = (begin, before);
    while published(&metrics, "street") < BACKLOG {
        std::thread::sleep(Duration::from_millis(10));
        let (time, count) = (lately.0.elapsed(), published(&metrics, "street") - lately.1);
        if time >= Duration::from_millis(500) {
            // What the bucket saves up, and what was under way when the clock was read.
            assert!(count as f64 <= 300.0 * time.as_secs_f64() + 6.0 + 32.0, "{count} in {time:?}");
            lately = (Instant::now(), published(&metrics, "street"));
        }
        assert!(begin.elapsed() < LONG, "{:?}", metrics.counts());
    }
    let took = begin.elapsed().as_secs_f64();
    let least = (BACKLOG - before) as f64 / 300.0 * 0.9 - 0.1;
    assert!((least..least + 8.0).contains(&took), "{took} s for {} messages at 300 a second", BACKLOG - before);

    subscriber.wait_for("all", |messages| messages.len() as u64 >= BACKLOG);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), (1..=BACKLOG).collect::<Vec<_>>());
    assert_eq!(dropped(&metrics, "street"), 0);
    mqtt.finish(LONG);
}

/// At so low a rate that the time tells which of the two it was, whatever else the machine does.
#[test]
fn what_comes_after_a_backlog_is_as_quick_as_ever() {
    const RATE: u32 = 10;
    const LATER: u64 = 900;
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    broker.stop();
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { backlog_rate: RATE, ..broker.config("later") }, &metrics);
    (1..=20).for_each(|seq| publish(&mqtt.publisher(), &looked("street", seq, "s")));
    broker.restart();
    eventually("the backlog is acknowledged", || published(&metrics, "street") == 20);
    let begin = Instant::now();
    (1..=LATER).for_each(|seq| publish(&mqtt.publisher(), &looked("yard", seq, "y")));
    eventually("what comes later is acknowledged", || published(&metrics, "yard") == LATER);
    let held_back = Duration::from_secs(LATER) / RATE;
    assert!(begin.elapsed() < held_back / 4, "it took {:?}, and {held_back:?} if it were held back", begin.elapsed());
    subscriber.wait_for("all", |messages| messages.len() as u64 >= 20 + LATER);
    for (id, count) in [("street", 20), ("yard", LATER)] {
        assert_eq!(first_arrivals(&subscriber.messages(), id), (1..=count).collect::<Vec<_>>(), "{id}");
        assert_eq!(dropped(&metrics, id), 0);
    }
    mqtt.finish(LONG);
}

/// A store of the first kind, in which an event comes after each hundred detections.
#[test]
fn a_store_of_the_version_before_is_drained_and_its_events_do_not_wait_behind_its_detections() {
    const RECORDS: TableDefinition<u64, (i64, &str, &[u8])> = TableDefinition::new("records");
    let (folder, broker) = (tempfile::tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::durable(&broker, "palisade/street/+");
    let database = Database::create(folder.path().join("outbox.redb")).unwrap();
    let write = database.begin_write().unwrap();
    let now = Utc::now().millis();
    for number in 1..=3030_u64 {
        let topic = if number % 101 == 0 { "palisade/street/events" } else { "palisade/street/detections" };
        let payload = format!("{{\"seq\":{number}}}");
        write.open_table(RECORDS).unwrap().insert(number, (now, topic, payload.as_bytes())).unwrap();
    }
    write.commit().unwrap();
    drop(database);
    let metrics = Metrics::new();
    let mqtt = start(kept(&broker, "heir", folder.path()), &metrics);
    subscriber.wait_for("all", |messages| messages.iter().filter(|message| message.topic != "palisade/street/status").count() >= 3030);
    let messages: Vec<_> = subscriber.messages().into_iter().filter(|message| message.topic != "palisade/street/status").collect();
    let events: Vec<usize> = (0..messages.len()).filter(|index| messages[*index].topic.ends_with("/events")).collect();
    assert!(events.len() == 30 && events[29] < 120, "{events:?}");
    let seqs = |what: &str| -> Vec<u64> {
        messages.iter().filter(|message| message.topic.ends_with(what)).map(|message| message.json()["seq"].as_u64().unwrap()).collect()
    };
    assert_eq!(seqs("/events"), (1..=3030).filter(|number| number % 101 == 0).collect::<Vec<_>>());
    assert_eq!(seqs("/detections"), (1..=3030).filter(|number| number % 101 != 0).collect::<Vec<_>>());
    eventually("all is acknowledged", || published(&metrics, "street") == 3030);
    assert_eq!(dropped(&metrics, "street"), 0);
    mqtt.finish(LONG);
}

#[test]
fn a_stop_does_not_keep_to_the_rate() {
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    broker.stop();
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { backlog_rate: 1, ..broker.config("hurry") }, &metrics);
    (1..=500).for_each(|seq| publish(&mqtt.publisher(), &looked("street", seq, "s")));
    broker.restart();
    eventually("the link is there", || mqtt.publisher().trouble().is_none());
    std::thread::sleep(Duration::from_millis(500));
    assert!(published(&metrics, "street") <= 5, "{}", published(&metrics, "street"));
    mqtt.finish(LONG);
    assert_eq!((published(&metrics, "street"), dropped(&metrics, "street")), (500, 0));
    subscriber.wait_for("all", |messages| messages.len() >= 500);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), (1..=500).collect::<Vec<_>>());
}

/// A folder that is in the way of nothing once another daemon, or whoever put a file there, has gone.
#[test]
fn a_store_that_cannot_be_opened_at_the_start_is_used_once_it_can() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, away) = (parent.path().join("state"), parent.path().join("away"));
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    broker.stop();
    let publish_some = |mqtt: &palisade::mqtt::Mqtt, seqs: std::ops::RangeInclusive<u64>| {
        seqs.for_each(|seq| publish(&mqtt.publisher(), &looked("street", seq, "s")));
    };
    let mqtt = start(kept(&broker, "before", &folder), &Metrics::new());
    publish_some(&mqtt, 1..=700);
    mqtt.finish(LONG);

    // A file is where the folder should be.
    std::fs::rename(&folder, &away).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    let metrics = Metrics::new();
    let mqtt = start(kept(&broker, "late", &folder), &metrics);
    publish_some(&mqtt, 701..=1000);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(mqtt.publisher().unsaved(), 300);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    eventually("what waits is on disk", || mqtt.publisher().unsaved() == 0);
    publish_some(&mqtt, 1001..=2100);
    eventually("all is on disk", || mqtt.publisher().unsaved() == 0);
    mqtt.finish(LONG);
    assert_eq!(dropped(&metrics, "street"), 0);

    // Another start finds all of them once; the folder is another daemon's at first.
    let holder = start(kept(&broker, "holder", &folder), &Metrics::new());
    let metrics = Metrics::new();
    let mqtt = start(kept(&broker, "last", &folder), &metrics);
    publish_some(&mqtt, 2101..=2150);
    std::thread::sleep(Duration::from_millis(500));
    holder.finish(Duration::from_millis(100));
    eventually("what waits is on disk", || mqtt.publisher().unsaved() == 0);
    broker.restart();
    eventually("all is acknowledged", || published(&metrics, "street") == 2150);
    subscriber.wait_for("all", |messages| messages.len() >= 2150);
    let messages = subscriber.messages();
    assert_eq!(first_arrivals(&messages, "street"), (1..=2150).collect::<Vec<_>>());
    assert_eq!((messages.len(), dropped(&metrics, "street")), (2150, 0), "each of them once");
    mqtt.finish(LONG);
}
