//! Brokers that die, freeze, come late or never come: no record is lost while there is room, and nobody waits.

use std::time::{Duration, Instant};

use palisade::base::metrics::Metrics;
use palisade::config::{MqttConfig, MqttVersion};
use palisade::mqtt::{Patience, Publisher};

use super::{QUICK, dropped, first_arrivals, looked, publish, published, start, start_with};
use crate::support::broker::{Broker, LONG, Received, Subscriber, eventually};

/// Publishes 250 records of each of two cameras while `trouble` befalls the broker, and asserts that all arrive in order.
pub fn all_arrive(client_id: &str, qos: u8, version: MqttVersion, trouble: impl FnOnce(&mut Broker, &Publisher)) {
    const EACH: u64 = 250;
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/+/detections");
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { qos, version, ..broker.config(client_id) }, &metrics);
    let publisher = mqtt.publisher();
    let feeding = std::thread::spawn(move || {
        for seq in 1..=EACH {
            publish(&publisher, &looked("street", seq, "s"));
            publish(&publisher, &looked("yard", seq, "y"));
            std::thread::sleep(Duration::from_millis(8));
        }
    });
    subscriber.wait_for("some records", |messages| messages.len() >= 60);
    trouble(&mut broker, &mqtt.publisher());
    feeding.join().unwrap();
    let complete = |messages: &[Received], id: &str| first_arrivals(messages, id).len() as u64 == EACH;
    eventually("every record was acknowledged", || published(&metrics, "street") + published(&metrics, "yard") == 2 * EACH);
    eventually("every record arrives", || {
        let messages = subscriber.messages();
        complete(&messages, "street") && complete(&messages, "yard")
    });
    let messages = subscriber.messages();
    for id in ["street", "yard"] {
        assert_eq!(first_arrivals(&messages, id), (1..=EACH).collect::<Vec<_>>(), "{id}");
        assert_eq!(dropped(&metrics, id), 0);
    }
    assert!(metrics.counter("mqtt_connects", "broker").get() >= 2, "the link was never lost: the test proves nothing");
    mqtt.finish(LONG);
}

pub fn kill_and_restart(broker: &mut Broker, publisher: &Publisher) {
    broker.kill9();
    eventually("the loss is noticed", || publisher.trouble().is_some());
    broker.restart();
    eventually("the link is back", || publisher.trouble().is_none());
}

#[test]
fn nothing_is_lost_when_the_broker_is_killed_and_restarted() {
    all_arrive("killed", 1, MqttVersion::V3, kill_and_restart);
}

#[test]
fn nothing_is_lost_with_qos_2_either() {
    all_arrive("killed-2", 2, MqttVersion::V3, kill_and_restart);
}

#[test]
fn nothing_is_lost_when_the_broker_freezes_for_long() {
    all_arrive("frozen", 1, MqttVersion::V3, |broker, publisher| {
        broker.freeze();
        eventually("the silence is noticed", || publisher.trouble().is_some());
        broker.thaw();
        eventually("the link is back", || publisher.trouble().is_none());
    });
}

#[test]
fn nothing_is_lost_when_a_frozen_broker_is_killed_and_restarted() {
    all_arrive("frozen-killed", 1, MqttVersion::V3, |broker, publisher| {
        broker.freeze();
        eventually("the silence is noticed", || publisher.trouble().is_some());
        kill_and_restart(broker, publisher);
    });
}

/// Freezes a broker under an idle link, or one that large records fill to the brim; returns why the link was given up.
fn frozen_under(records: u64, patience: Patience) -> String {
    let broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/street/detections");
    let metrics = Metrics::new();
    let mqtt = start_with(broker.config("noticed"), &metrics, patience);
    let publisher = mqtt.publisher();
    eventually("the link is there", || publisher.trouble().is_none());
    broker.freeze();
    let large = "x".repeat(200 * 1024);
    (1..=records).for_each(|seq| publish(&publisher, &looked("street", seq, &large)));
    let mut why = None;
    eventually("the silence is noticed", || {
        why = publisher.trouble();
        why.is_some()
    });
    broker.thaw();
    subscriber.wait_for("every record", |messages| first_arrivals(messages, "street").len() as u64 == records);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), (1..=records).collect::<Vec<_>>());
    mqtt.finish(LONG);
    assert_eq!((published(&metrics, "street"), dropped(&metrics, "street")), (records, 0));
    why.unwrap()
}

#[test]
fn a_frozen_broker_is_noticed_by_its_missing_ping_response() {
    // Nothing else may notice it first: the states just published may still wait for their acknowledgement.
    let why = frozen_under(0, Patience { ack: LONG * 10, ..QUICK });
    assert!(why.ends_with("stopped answering pings"), "{why}");
}

#[test]
fn a_frozen_broker_is_noticed_by_its_missing_acknowledgements() {
    let why = frozen_under(1, Patience { keep_alive: Duration::from_secs(60), ..QUICK });
    assert!(why.ends_with("acknowledged nothing for 2 s"), "{why}");
}

#[test]
fn a_frozen_broker_with_full_buffers_costs_nothing_either() {
    let patience = Patience { keep_alive: Duration::from_secs(60), connect: Duration::from_secs(10), ..QUICK };
    let why = frozen_under(60, patience);
    assert!(why.ends_with("acknowledged nothing for 2 s"), "{why}");
}

#[test]
fn a_broker_that_comes_late_gets_everything() {
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/#");
    broker.stop();
    let metrics = Metrics::new();
    let mqtt = start(broker.config("late"), &metrics);
    let publisher = mqtt.publisher();
    (1..=40).for_each(|seq| publish(&publisher, &looked("street", seq, "")));
    eventually("the reason is told", || publisher.trouble().is_some_and(|trouble| trouble.contains("cannot be reached: ")));
    broker.restart();
    subscriber.wait_for("every record", |messages| first_arrivals(messages, "street").len() == 40);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), (1..=40).collect::<Vec<_>>());
    assert_eq!(publisher.trouble(), None);
    mqtt.finish(LONG);
}

#[test]
fn without_a_broker_the_queue_is_bounded_the_oldest_go_and_nobody_waits() {
    let mut broker = Broker::start();
    let subscriber = Subscriber::durable(&broker, "palisade/street/detections");
    broker.stop();
    let metrics = Metrics::new();
    let mqtt = start(broker.config("bounded"), &metrics);
    (1..=1500).for_each(|seq| publish(&mqtt.publisher(), &looked("street", seq, "")));
    assert_eq!(dropped(&metrics, "street"), 500);
    broker.restart();
    eventually("the rest is acknowledged", || published(&metrics, "street") == 1000);
    subscriber.wait_for("the rest", |messages| messages.len() >= 1000);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), (501..=1500).collect::<Vec<_>>());
    assert_eq!(dropped(&metrics, "street"), 500);
    mqtt.finish(LONG);
}

#[test]
fn a_frozen_or_missing_broker_does_not_hold_up_the_end() {
    let mut broker = Broker::start();
    let metrics = Metrics::new();
    let mqtt = start(broker.config("stuck"), &metrics);
    let publisher = mqtt.publisher();
    eventually("the link is there", || publisher.trouble().is_none());
    broker.freeze();
    (1..=50).for_each(|seq| publish(&publisher, &looked("street", seq, "")));
    let before = Instant::now();
    mqtt.finish(Duration::from_secs(1));
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    assert_eq!(published(&metrics, "street") + dropped(&metrics, "street"), 50);
    broker.kill9();

    let mqtt = start(broker.config("stuck"), &metrics);
    publish(&mqtt.publisher(), &looked("yard", 1, ""));
    let before = Instant::now();
    mqtt.finish(Duration::from_secs(60));
    assert!(before.elapsed() < LONG, "a broker that never answered was waited for: {:?}", before.elapsed());
    assert_eq!(dropped(&metrics, "yard"), 1);
}
