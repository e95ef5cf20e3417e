//! MQTT 5: the same contract, and what a broker says in that version only is heeded.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use palisade::base::error::Result;
use palisade::base::metrics::Metrics;
use palisade::config::{MqttConfig, MqttVersion};
use palisade::mqtt::{Command, Steering, Watched};
use palisade::types::CameraId;

use super::outage::{all_arrive, kill_and_restart};
use super::state::say;
use super::{QUICK, dropped, first_arrivals, looked, publish, published, running, start, start_with};
use crate::support::broker::{Broker, LONG, Setup, Subscriber, eventually};

fn five(broker: &Broker, client_id: &str) -> MqttConfig {
    MqttConfig { version: MqttVersion::V5, ..broker.config(client_id) }
}

fn connects(metrics: &Metrics) -> u64 {
    metrics.counter("mqtt_connects", "broker").get()
}

#[test]
fn the_contract_holds_in_version_5() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let metrics = Metrics::new();
    let mqtt = start(five(&broker, "five"), &metrics);
    subscriber.wait_text("palisade/status", "online");
    assert_eq!(subscriber.messages().last().unwrap().topic, "palisade/status", "state comes before online");
    assert!(broker.log().contains(" as five (p5, c1, "), "{}", broker.log());
    (1..=200).for_each(|seq| publish(&mqtt.publisher(), &looked("street", seq, "")));
    mqtt.publisher().camera_status(&running("yard", 4.0));
    subscriber.wait_for("every record", |messages| first_arrivals(messages, "street").len() == 200);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), (1..=200).collect::<Vec<_>>());
    let late = Subscriber::new(&broker, "palisade/yard/status");
    late.wait_for("the retained state", |messages| messages.iter().any(|one| one.retain && one.json()["state"] == "running"));
    mqtt.finish(LONG);
    subscriber.wait_text("palisade/status", "offline");
    eventually("a clean goodbye", || broker.log().contains("Client five disconnected."));
    assert_eq!((published(&metrics, "street"), connects(&metrics)), (200, 1));

    let mqtt = start(five(&broker, "five"), &Metrics::new());
    subscriber.wait_for("online again", |messages| messages.iter().filter(|one| one.payload == b"online").count() == 2);
    drop(mqtt);
    subscriber.wait_for("the last will", |messages| messages.iter().filter(|one| one.payload == b"offline").count() == 2);
}

#[test]
fn nothing_is_lost_in_version_5_when_the_broker_is_killed_or_freezes() {
    all_arrive("five-killed", 1, MqttVersion::V5, kill_and_restart);
    all_arrive("five-killed-2", 2, MqttVersion::V5, kill_and_restart);
    all_arrive("five-frozen", 1, MqttVersion::V5, |broker, publisher| {
        broker.freeze();
        eventually("the silence is noticed", || publisher.trouble().is_some());
        broker.thaw();
        eventually("the link is back", || publisher.trouble().is_none());
    });
}

#[test]
fn a_message_that_the_broker_lets_nobody_write_is_dropped_alone_and_counted() {
    for qos in [1, 2] {
        let access = "topic readwrite #\ntopic deny palisade/yard/detections\n".to_owned();
        // Without a bound on its queues this broker ends the connection for each refusal.
        let more = vec!["max_queued_messages 100000".to_owned()];
        let broker = Broker::with(Setup { access: Some(access), more, ..Setup::default() });
        let subscriber = Subscriber::new(&broker, "palisade/#");
        let metrics = Metrics::new();
        let mqtt = start(MqttConfig { qos, ..five(&broker, "denied") }, &metrics);
        for seq in 1..=60 {
            publish(&mqtt.publisher(), &looked("yard", seq, ""));
            publish(&mqtt.publisher(), &looked("street", seq, ""));
        }
        subscriber.wait_for("the others", |messages| first_arrivals(messages, "street").len() == 60);
        assert_eq!(first_arrivals(&subscriber.messages(), "street"), (1..=60).collect::<Vec<_>>());
        eventually("the refusals are counted", || dropped(&metrics, "yard") == 60);
        assert_eq!(metrics.counter("mqtt_dropped_refused", "yard").get(), 60);
        eventually("the others are acknowledged", || published(&metrics, "street") == 60);
        assert_eq!((published(&metrics, "yard"), dropped(&metrics, "street")), (0, 0));
        assert!(qos == 2 || connects(&metrics) == 1, "a refusal cost the connection");
        mqtt.finish(LONG);
    }
}

#[test]
fn what_the_broker_takes_at_most_is_heeded() {
    let mut broker = Broker::with(Setup { more: vec!["max_packet_size 3000".to_owned()], ..Setup::default() });
    let subscriber = Subscriber::durable(&broker, "palisade/street/detections");
    broker.stop();
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { discovery_prefix: None, ..five(&broker, "limited") }, &metrics);
    let large = "x".repeat(4000);
    let feed = |from: u64| {
        for (seq, raw) in [(from, "a"), (from + 1, large.as_str()), (from + 2, "b")] {
            publish(&mqtt.publisher(), &looked("street", seq, raw));
        }
    };
    feed(1); // before the broker has said anything
    assert_eq!(dropped(&metrics, "street"), 0);
    broker.restart();
    eventually("the neighbours are acknowledged", || published(&metrics, "street") == 2);
    feed(11);
    assert_eq!(dropped(&metrics, "street"), 2, "refused at once now");
    subscriber.wait_for("the neighbours", |messages| messages.len() >= 4);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), [1, 3, 11, 13]);
    eventually("all are counted", || published(&metrics, "street") == 4);
    assert_eq!((metrics.counter("mqtt_dropped_large", "street").get(), connects(&metrics)), (2, 1));
    mqtt.finish(LONG);
}

#[test]
fn a_broker_that_takes_one_at_a_time_and_keeps_nothing_is_served() {
    let more = ["max_inflight_messages 1", "retain_available false", "max_qos 1"].map(str::to_owned).to_vec();
    let broker = Broker::with(Setup { more, ..Setup::default() });
    let metrics = Metrics::new();
    // No last will could be kept either: mosquitto refuses a retained one.
    let mqtt = start(MqttConfig { qos: 2, ..five(&broker, "poor") }, &metrics);
    let told = || mqtt.publisher().trouble().unwrap_or_default();
    eventually("the refusal is told", || told().contains("refused a retained last will; must be a broker that keeps retained messages"));
    mqtt.finish(Duration::ZERO);

    let more = ["max_inflight_messages 1", "max_qos 1"].map(str::to_owned).to_vec();
    let broker = Broker::with(Setup { more, ..Setup::default() });
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mqtt = start(MqttConfig { qos: 2, ..five(&broker, "poor") }, &metrics);
    (1..=100).for_each(|seq| publish(&mqtt.publisher(), &looked("street", seq, "")));
    subscriber.wait_for("every record", |messages| first_arrivals(messages, "street").len() == 100);
    assert_eq!(first_arrivals(&subscriber.messages(), "street"), (1..=100).collect::<Vec<_>>());
    eventually("all are acknowledged", || published(&metrics, "street") == 100);
    assert!(broker.log().contains("Received PUBLISH from poor (d0, q1, r0, m"), "QoS 2 is more than it offers");
    assert_eq!(connects(&metrics), 1);
    mqtt.finish(LONG);
}

#[test]
fn a_frozen_broker_is_noticed_in_version_5_where_no_answer_is_awaited() {
    let broker = Broker::start();
    let metrics = Metrics::new();
    let config = MqttConfig { qos: 0, discovery_prefix: None, ..five(&broker, "filled") };
    let mqtt = start_with(config, &metrics, super::Patience { ack: LONG * 10, ..QUICK });
    let publisher = mqtt.publisher();
    // Before that no record goes out.
    Subscriber::new(&broker, "palisade/status").wait_text("palisade/status", "online");
    broker.freeze();
    let large = "x".repeat(200 * 1024);
    let mut seq = 0;
    eventually("the silence is noticed", || {
        seq += 1;
        publish(&publisher, &looked("street", seq, &large));
        publisher.trouble().is_some_and(|why| why.ends_with("takes no more data"))
    });
    broker.thaw();
    mqtt.finish(LONG);
}

#[test]
fn a_wrong_password_is_told() {
    let broker = Broker::with_login("palisade", "right-one");
    let wrong = start(MqttConfig { password: Some("wr0ng-one".to_owned().into()), ..five(&broker, "wrong") }, &Metrics::new());
    let told = || wrong.publisher().trouble().unwrap_or_default();
    eventually("the refusal is told", || told().contains("refused the login; check mqtt.username and mqtt.password_file"));
    wrong.finish(Duration::ZERO);
}

/// A broker of few words: lets in with `connack`, answers the first PUBLISH of QoS 1 with `first` (none: with QUOTA EXCEEDED,
/// 0x97) and each later one with success. mosquitto has no such quota, nor writes reasons that the library can read.
struct Miser {
    port: u16,
    topics: Arc<Mutex<Vec<String>>>,
    pings: Arc<AtomicUsize>,
}

impl Miser {
    fn start(connack: &'static [u8], first: Option<&'static [u8]>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let miser = Self { port: listener.local_addr().unwrap().port(), topics: Arc::default(), pings: Arc::default() };
        let (topics, pings) = (miser.topics.clone(), miser.pings.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), (connack, first), &topics, &pings);
            }
        });
        miser
    }
}

fn serve(mut stream: TcpStream, (connack, first): (&[u8], Option<&[u8]>), topics: &Mutex<Vec<String>>, pings: &AtomicUsize) {
    let byte = |stream: &mut TcpStream| {
        let mut one = [0];
        stream.read_exact(&mut one).map(|()| one[0])
    };
    while let Ok(kind) = byte(&mut stream) {
        let (mut length, mut shift) = (0, 0);
        while let Ok(digit) = byte(&mut stream) {
            length |= usize::from(digit & 127) << shift;
            shift += 7;
            if digit < 128 {
                break;
            }
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let answer = match kind >> 4 {
            1 => connack.to_vec(),
            3 => {
                let name = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
                let mut topics = topics.lock().unwrap();
                topics.push(String::from_utf8_lossy(&body[2..name]).into_owned());
                let reason = if topics.len() == 1 { 0x97 } else { 0 };
                let puback = vec![0x40, 3, body[name], body[name + 1], reason];
                first.filter(|_| topics.len() == 1).map_or(puback, <[u8]>::to_vec)
            }
            8 => vec![0x90, 4, body[0], body[1], 0, 1],
            12 => {
                pings.fetch_add(1, Ordering::SeqCst);
                vec![0xd0, 0]
            }
            _ => return,
        };
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

#[test]
fn a_message_beyond_a_quota_is_sent_again() {
    let miser = Miser::start(&[0x20, 3, 0, 0, 0], None);
    let broker = Broker::start(); // for its configuration
    let metrics = Metrics::new();
    let config = MqttConfig { port: miser.port, host: "127.0.0.1".to_owned(), discovery_prefix: None, ..five(&broker, "quota") };
    let mqtt = start(config, &metrics);
    publish(&mqtt.publisher(), &looked("street", 1, ""));
    eventually("it is taken the second time", || published(&metrics, "street") == 1);
    let topics = miser.topics.lock().unwrap().clone();
    assert_eq!(topics.iter().filter(|topic| **topic == topics[0]).count(), 2, "{topics:?}");
    assert_eq!(connects(&metrics), 2);
    mqtt.finish(LONG);
}

#[test]
fn a_broker_that_wants_no_pings_is_not_flooded_with_them() {
    // Server keep alive: 0.
    let miser = Miser::start(&[0x20, 6, 0, 0, 3, 0x13, 0, 0], None);
    let broker = Broker::start();
    let config = MqttConfig { port: miser.port, host: "127.0.0.1".to_owned(), discovery_prefix: None, ..five(&broker, "quiet") };
    let metrics = Metrics::new();
    let mqtt = start(config, &metrics);
    publish(&mqtt.publisher(), &looked("street", 1, ""));
    eventually("the link works", || published(&metrics, "street") == 1);
    std::thread::sleep(Duration::from_secs(2));
    assert!(miser.pings.load(Ordering::SeqCst) <= 2, "{} pings", miser.pings.load(Ordering::SeqCst));
    mqtt.finish(LONG);
}

#[test]
fn why_a_broker_ends_the_connection_is_told() {
    // DISCONNECT: session taken over.
    let miser = Miser::start(&[0x20, 3, 0, 0, 0], Some(&[0xe0, 2, 0x8e, 0]));
    let broker = Broker::start();
    let config = MqttConfig { port: miser.port, host: "127.0.0.1".to_owned(), discovery_prefix: None, ..five(&broker, "ended") };
    let metrics = Metrics::new();
    let mqtt = start(config, &metrics);
    publish(&mqtt.publisher(), &looked("street", 1, ""));
    let told = || mqtt.publisher().trouble().unwrap_or_default();
    eventually("the reason is told", || {
        told().contains("ended the connection: another client came with our id; must be a client_id of our own")
    });
    eventually("it is taken the next time", || published(&metrics, "street") == 1);
    mqtt.finish(LONG);
}

/// Writes down what it is told.
#[derive(Default)]
struct Told(Mutex<Vec<Command>>);

impl Steering for Told {
    fn steer(&self, camera: &CameraId, command: &Command) -> Result<Watched> {
        self.0.lock().unwrap().push(command.clone());
        Ok(super::watched(camera.as_str()))
    }
}

#[test]
fn a_retained_command_is_ignored_also_while_the_daemon_is_there() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mqtt = start(MqttConfig { control: true, ..five(&broker, "steered") }, &Metrics::new());
    let told = Arc::new(Told::default());
    mqtt.steer(told.clone());
    subscriber.wait_text("palisade/status", "online");
    say(&broker, "palisade/street/prompt/set", "detect car", true);
    say(&broker, "palisade/street/detect/set", "ON", true);
    say(&broker, "palisade/street/detect/set", "OFF", false);
    eventually("the last is obeyed", || !told.0.lock().unwrap().is_empty());
    assert_eq!(*told.0.lock().unwrap(), [Command::Detect(false)]);
    // Home Assistant's greeting counts however it is published.
    let before = subscriber.on("palisade/yard/status").len();
    say(&broker, "homeassistant/status", "online", true);
    eventually("all is told again", || subscriber.on("palisade/yard/status").len() > before);
    mqtt.finish(LONG);
}
