//! The MQTT stage against a real mosquitto: what is published, in what order, and that a broker which is away, dies,
//! freezes or refuses costs neither a record nor a moment of the caller's time.

mod away;
mod backlog;
mod consumer;
mod disk;
mod durable;
mod earlier;
mod encryption;
mod event;
mod frigate;
mod outage;
mod schema;
mod snapshot;
mod state;
mod tail;
mod version5;
mod zone;

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade::base::clock::Utc;
use palisade::base::metrics::Metrics;
use palisade::config::{MqttConfig, TlsConfig};
use palisade::mqtt::{self, Context, Mqtt, Patience, Publisher, Watched};
use palisade::types::{Answer, Box01, CameraId, CameraState, CameraStatus, Detection, Finish, Frame, Looked, Prompt, Rejected, TimeSource};
use serde_json::json;

use crate::support::broker::{Broker, LONG, Received, Subscriber, eventually, make_authority};

const RUN: uuid::Uuid = uuid::Uuid::from_u128(0x0199_aa00_0000_4000_8000_0000_0000_0001);

/// Waiting times short enough for a test and long enough for a busy machine.
const QUICK: Patience = Patience {
    keep_alive: Duration::from_secs(1),
    ack: Duration::from_secs(2),
    connect: Duration::from_secs(3),
    retry: Duration::from_millis(100),
    retry_most: Duration::from_millis(400),
    disk: Duration::from_millis(300),
};

fn camera(id: &str) -> CameraId {
    CameraId::new(id).unwrap()
}

fn start(config: MqttConfig, metrics: &Metrics) -> Mqtt {
    start_with(config, metrics, QUICK)
}

fn start_with(config: MqttConfig, metrics: &Metrics, patience: Patience) -> Mqtt {
    let context = Context { model: "test/model@main".to_owned(), run: RUN };
    mqtt::start_with(config, &[watched("street"), watched("yard")], context, metrics, patience).unwrap()
}

fn watched(id: &str) -> Watched {
    Watched { id: camera(id), prompt: Prompt::new("detect cat ; dog").unwrap(), enabled: true, zones: Vec::new() }
}

fn looked(id: &str, seq: u64, raw: &str) -> Looked {
    Looked {
        frame: Frame {
            camera: camera(id),
            captured: Utc::from_millis(1_795_442_587_120 + i64::try_from(seq).unwrap()),
            time_source: TimeSource::Pipeline,
            received: Instant::now(),
            position: None,
            image: Arc::new(image::RgbImage::new(64, 48)),
        },
        seq,
        prompt: Arc::new(Prompt::new("detect cat ; dog").unwrap()),
        answer: Arc::new(Answer {
            raw: raw.to_owned(),
            finish: Finish::Eos,
            detections: vec![],
            rejected: vec![],
            tokens: vec![],
            drafts_accepted: 0,
        }),
        queued: Duration::from_micros(1_250),
        inference: Duration::from_millis(40),
        total: Duration::from_millis(42),
    }
}

/// The same with a cat in the middle of the left half, and a rejected rest.
fn found(id: &str, seq: u64) -> Looked {
    let locs = [251, 104, 893, 610];
    let answer = Answer {
        raw: "<loc0251><loc0104><loc0893><loc0610> cat".to_owned(),
        finish: Finish::Length,
        detections: vec![Detection { label: "cat".to_owned(), score: 0.912_345, locs, box01: Box01::from_locs(locs) }],
        rejected: vec![Rejected { text: "<loc0900>".to_owned(), why: "empty box" }],
        tokens: vec![3, 4, 5],
        drafts_accepted: 2,
    };
    Looked { answer: Arc::new(answer), ..looked(id, seq, "") }
}

fn running(id: &str, fps: f64) -> CameraStatus {
    CameraStatus { camera: camera(id), state: CameraState::Running, reason: String::new(), since: Utc::from_millis(0), fps }
}

/// The `seq` of each detections message of a camera, each at its first arrival.
fn first_arrivals(messages: &[Received], id: &str) -> Vec<u64> {
    let topic = format!("palisade/{id}/detections");
    let mut seen = Vec::new();
    for message in messages.iter().filter(|message| message.topic == topic) {
        let seq = message.json()["seq"].as_u64().unwrap();
        if !seen.contains(&seq) {
            seen.push(seq);
        }
    }
    seen
}

fn published(metrics: &Metrics, id: &str) -> u64 {
    metrics.counter("mqtt_published", id).get()
}

fn dropped(metrics: &Metrics, id: &str) -> u64 {
    metrics.counter("mqtt_dropped", id).get()
}

/// Publishes and asserts that the caller was not held up: no call waits for a network.
fn publish(publisher: &Publisher, looked: &Looked) {
    let before = Instant::now();
    publisher.looked(looked);
    assert!(before.elapsed() < Duration::from_secs(1), "a publish took {:?}", before.elapsed());
}

#[test]
fn states_come_before_online_are_retained_and_offline_is_said_at_the_end() {
    let broker = Broker::start();
    let early = Subscriber::new(&broker, "palisade/#");
    let mqtt = start(broker.config("states"), &Metrics::new());
    early.wait_text("palisade/status", "online");
    let topics: Vec<String> = early.messages().into_iter().map(|message| message.topic).collect();
    let each = |id: &str| ["status", "prompt/state", "detect/state", "count/cat", "count/dog"].map(|what| format!("palisade/{id}/{what}"));
    let expected = [each("street").as_slice(), &each("yard"), &["palisade/status".to_owned()]].concat();
    assert_eq!(topics, expected);
    assert_eq!(early.on("palisade/yard/status")[0].json()["state"], "connecting");

    mqtt.publisher().camera_status(&running("yard", 4.9));
    let running_now = r#"{"state":"running","reason":"","since":"1970-01-01T00:00:00.000Z","fps":4.9}"#;
    early.wait_text("palisade/yard/status", running_now);

    let late = Subscriber::new(&broker, "palisade/#");
    late.wait_for("every retained state", |messages| messages.len() == expected.len());
    assert!(late.messages().iter().all(|message| message.retain), "{:?}", late.messages());
    assert_eq!(
        (late.on("palisade/yard/status")[0].text().as_str(), late.on("palisade/status")[0].text().as_str()),
        (running_now, "online")
    );

    mqtt.finish(LONG);
    early.wait_text("palisade/status", "offline");
    let after = Subscriber::new(&broker, "palisade/status");
    after.wait_for("retained offline", |messages| messages.iter().any(|message| message.retain && message.text() == "offline"));
    eventually("a clean goodbye", || broker.log().contains("Client states disconnected."));
    let said = early.on("palisade/status").iter().map(Received::text).collect::<Vec<_>>();
    assert_eq!(said, ["online", "offline"], "the last will was published beside the goodbye");
}

#[test]
fn a_broken_link_makes_the_broker_say_offline() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/status");
    let mqtt = start(broker.config("will"), &Metrics::new());
    subscriber.wait_text("palisade/status", "online");
    drop(mqtt); // the daemon unwinds: nobody says goodbye
    subscriber.wait_text("palisade/status", "offline");
    assert!(!broker.log().contains("Client will disconnected."));
}

#[test]
fn detections_follow_the_contract_field_by_field() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/street/detections");
    let metrics = Metrics::new();
    let mqtt = start(broker.config("fields"), &metrics);
    mqtt.publisher().looked(&found("street", 7));
    subscriber.wait_for("the detections", |messages| !messages.is_empty());
    let message = subscriber.messages().remove(0);
    assert!(!message.retain);
    let prompt_id = Prompt::new("detect cat ; dog").unwrap().id().to_owned();
    let expected = json!({
        "schema": 1, "camera": "street", "run": RUN.to_string(), "seq": 7, "time": "2026-11-23T14:03:07.127Z", "epoch": 1_795_442_587.127,
        "time_source": "pipeline", "frame": {"width": 64, "height": 48}, "prompt": "detect cat ; dog", "prompt_id": prompt_id,
        "model": "test/model@main", "latency_ms": {"queue": 1.3, "inference": 40.0, "total": 42.0},
        "raw": "<loc0251><loc0104><loc0893><loc0610> cat", "finish": "length",
        "tokens": 3, "drafts_accepted": 2,
        "detections": [{"label": "cat", "score": 0.9123, "score_kind": "token_probability", "locs": [251, 104, 893, 610],
            "box": {"x_min": 0.1016, "y_min": 0.2451, "x_max": 0.5957, "y_max": 0.8721},
            "pixels": {"x_min": 7, "y_min": 12, "x_max": 38, "y_max": 42}}],
        "dropped": [{"text": "<loc0900>", "why": "empty box"}]
    });
    assert_eq!(message.json(), expected);
    eventually("the acknowledgement is counted", || published(&metrics, "street") == 1);
    assert_eq!(broker.log().matches("Received PUBLISH from fields (d0, q1, r0, m").count(), 1, "{}", broker.log());
    mqtt.finish(LONG);
}

#[test]
fn the_end_delivers_what_waits_before_it_says_offline() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let metrics = Metrics::new();
    let mqtt = start(broker.config("end"), &metrics);
    let publisher = mqtt.publisher();
    (1..=300).for_each(|seq| publish(&publisher, &looked("street", seq, "")));
    mqtt.finish(LONG);
    assert_eq!((published(&metrics, "street"), dropped(&metrics, "street")), (300, 0));
    subscriber.wait_text("palisade/status", "offline");
    let messages = subscriber.messages();
    assert_eq!(first_arrivals(&messages, "street"), (1..=300).collect::<Vec<_>>());
    assert_eq!(messages.last().unwrap().topic, "palisade/status");
    publish(&publisher, &looked("street", 301, ""));
    assert_eq!(dropped(&metrics, "street"), 1, "what comes after the end is counted");
}

#[test]
fn a_small_packet_limit_does_not_hold_back_states() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/street/status");
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { max_packet: 1024, ..broker.config("small") }, &metrics);
    let reason = "the camera says a lot ".repeat(100);
    mqtt.publisher().camera_status(&CameraStatus { reason: reason.clone(), ..running("street", 1.0) });
    subscriber.wait_for("the long reason", |messages| messages.iter().any(|one| one.json()["reason"] == reason.as_str()));
    assert_eq!(metrics.counter("mqtt_connects", "broker").get(), 1);
    mqtt.finish(LONG);
}

#[test]
fn a_daemon_without_control_hears_nothing() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    // Without discovery there is nothing else that it would listen to.
    let mqtt = start(MqttConfig { discovery_prefix: None, ..broker.config("deaf") }, &Metrics::new());
    subscriber.wait_text("palisade/status", "online");
    for (topic, text) in [("prompt/set", "detect dog"), ("detect/set", "OFF"), ("prompt/set", "")] {
        let port = broker.port().to_string();
        let arguments = ["-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", &format!("palisade/street/{topic}"), "-m", text];
        let sent = std::process::Command::new("mosquitto_pub").args(arguments).status();
        assert!(sent.expect("mosquitto_pub must be installed: apt install mosquitto-clients").success());
    }
    subscriber.wait_for("what was sent", |messages| messages.iter().filter(|one| one.topic.ends_with("/set")).count() == 3);
    publish(&mqtt.publisher(), &looked("street", 1, ""));
    subscriber.wait_for("detections", |messages| messages.last().is_some_and(|one| one.topic.ends_with("/detections")));
    assert_eq!(subscriber.messages().last().unwrap().json()["prompt"], "detect cat ; dog");
    let log = broker.log();
    assert!(!log.contains("Received SUBSCRIBE from deaf") && !log.contains("Sending PUBLISH to deaf"), "{log}");
    mqtt.finish(LONG);
}

#[test]
fn qos_0_and_2_are_kept() {
    let broker = Broker::start();
    for qos in [0, 2] {
        let subscriber = Subscriber::new(&broker, "palisade/yard/detections");
        let (metrics, client_id) = (Metrics::new(), format!("qos{qos}"));
        let mqtt = start(MqttConfig { qos, ..broker.config(&client_id) }, &metrics);
        eventually("the link is there", || mqtt.publisher().trouble().is_none());
        (1..=100).for_each(|seq| publish(&mqtt.publisher(), &looked("yard", seq, "")));
        subscriber.wait_for("all", |messages| messages.len() >= 100);
        assert_eq!(first_arrivals(&subscriber.messages(), "yard"), (1..=100).collect::<Vec<_>>());
        mqtt.finish(LONG);
        assert_eq!(published(&metrics, "yard"), 100);
        assert_eq!(broker.log().matches(&format!("Received PUBLISH from {client_id} (d0, q{qos}, r0, ")).count(), 100);
    }
}

#[test]
fn a_record_over_the_packet_limit_is_refused_alone() {
    let broker = Broker::start();
    let subscriber = Subscriber::new(&broker, "palisade/street/detections");
    let metrics = Metrics::new();
    for (max_packet, fits, large) in [(256 * 1024, 200 * 1024, 300 * 1024), (4096, 3000, 5000), (600 * 1024, 500 * 1024, 700 * 1024)] {
        let before = (published(&metrics, "street"), dropped(&metrics, "street"));
        let client_id = format!("large-{max_packet}");
        let mqtt = start(MqttConfig { max_packet, ..broker.config(&client_id) }, &metrics);
        let (fits, large) = ("y".repeat(fits), "x".repeat(large));
        for (seq, raw) in [(1, "a"), (2, large.as_str()), (3, fits.as_str()), (4, "b")] {
            publish(&mqtt.publisher(), &looked("street", max_packet as u64 + seq, raw));
        }
        eventually("the neighbours are acknowledged", || published(&metrics, "street") == before.0 + 3);
        assert_eq!(dropped(&metrics, "street"), before.1 + 1);
        mqtt.finish(LONG);
        let expected = [1, 3, 4].map(|seq| max_packet as u64 + seq);
        let arrived = || first_arrivals(&subscriber.messages(), "street");
        eventually("the neighbours arrive", || arrived().iter().filter(|seq| expected.contains(seq)).count() == 3);
        assert!(!arrived().contains(&(max_packet as u64 + 2)));
    }
    assert_eq!(metrics.counter("mqtt_connects", "broker").get(), 3, "a large record cost a connection");
}

#[test]
fn a_wrong_password_is_told_in_a_sentence_and_the_right_one_works() {
    let broker = Broker::with_login("palisade", "right-one");
    let metrics = Metrics::new();
    let wrong = start(MqttConfig { password: Some("wr0ng-one".to_owned().into()), ..broker.config("wrong") }, &metrics);
    let told = || wrong.publisher().trouble().unwrap_or_default();
    eventually("the refusal is told", || told().contains("refused the login; check mqtt.username and mqtt.password_file"));
    assert!(!told().contains("wr0ng"), "{}", told());
    publish(&wrong.publisher(), &looked("street", 1, ""));
    assert_eq!(metrics.counter("mqtt_connects", "broker").get(), 0);
    wrong.finish(Duration::from_secs(2));
    assert_eq!(dropped(&metrics, "street"), 1);

    let subscriber = Subscriber::new(&broker, "palisade/status");
    let right = start(broker.config("right"), &metrics);
    subscriber.wait_text("palisade/status", "online");
    right.finish(LONG);
    subscriber.wait_text("palisade/status", "offline");
}

#[test]
fn tls_works_with_the_right_authority_and_name_only() {
    let broker = Broker::with_tls();
    let subscriber = Subscriber::new(&broker, "palisade/#");
    make_authority(broker.path("").as_path(), "other");
    let other = Some(TlsConfig { ca_file: Some(broker.path("other.pem")), client: None });
    let strangers = [
        ("the system's authorities", MqttConfig { tls: Some(TlsConfig::default()), ..broker.config("stranger-1") }),
        ("another authority", MqttConfig { tls: other, ..broker.config("stranger-2") }),
        ("another name", MqttConfig { host: "127.0.0.1".to_owned(), ..broker.config("stranger-3") }),
        ("no TLS", MqttConfig { tls: None, ..broker.config("stranger-4") }),
    ];
    for (who, config) in strangers {
        let encrypted = config.tls.is_some();
        let mqtt = start(config, &Metrics::new());
        let mut trouble = String::new();
        eventually(who, || {
            trouble = mqtt.publisher().trouble().expect("a stranger is connected");
            trouble != "not connected yet"
        });
        assert_eq!(trouble.contains("could not be reached over TLS: "), encrypted, "{who}: {trouble}");
        println!("{who}: {trouble}");
        drop(mqtt);
    }
    assert!(!broker.log().contains("as stranger"), "a stranger got in: {}", broker.log());
    assert!(subscriber.messages().is_empty(), "{:?}", subscriber.messages());

    let mqtt = start(broker.config("friend"), &Metrics::new());
    subscriber.wait_text("palisade/status", "online");
    mqtt.finish(LONG);
    subscriber.wait_text("palisade/status", "offline");
}

#[test]
fn tls_never_falls_back_to_plain_text() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let broker = Broker::with_tls(); // for its CA file
    let login = MqttConfig { username: Some("palisade".to_owned()), password: Some("s3cr3t".to_owned().into()), ..broker.config("plain") };
    let mqtt = start(MqttConfig { port: listener.local_addr().unwrap().port(), ..login }, &Metrics::new());
    for _ in 0..3 {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; 512];
        let read = stream.read(&mut hello).unwrap();
        assert_eq!(&hello[..2], [0x16, 0x03], "no TLS handshake: {:?}", &hello[..read]);
        assert!(!String::from_utf8_lossy(&hello[..read]).contains("MQTT"));
    }
    drop(mqtt);
}

#[test]
fn a_ca_file_that_is_no_certificate_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, "not a certificate\n").unwrap();
    let broker = Broker::start();
    let config = MqttConfig { tls: Some(TlsConfig { ca_file: Some(path.clone()), client: None }), ..broker.config("garbage") };
    let context = Context { model: String::new(), run: RUN };
    let error = mqtt::start(config, &[], context, &Metrics::new()).err().unwrap();
    assert!(
        error.chain().starts_with(&format!("mqtt.ca_file cannot be used: {} is no certificate; must be a PEM file", path.display())),
        "{}",
        error.chain()
    );
}
