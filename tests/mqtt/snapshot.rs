//! Pictures of objects on `P/<camera>/snapshot/<label>`.

use std::path::Path;
use std::time::{Duration, Instant};

use palisade::base::metrics::Metrics;
use palisade::config::{MqttConfig, MqttVersion};
use palisade::mqtt::Watched;
use palisade::types::Prompt;

use super::{camera, looked, publish, published, start, watched};
use crate::support::broker::{Broker, LONG, Setup, Subscriber, eventually};
use crate::support::wire::Wire;

const CAT: &str = "palisade/street/snapshot/cat";

/// The newest picture that a new subscriber finds on a topic.
fn found(broker: &Broker, topic: &str) -> Option<Vec<u8>> {
    let subscriber = Subscriber::new(broker, topic);
    // What is retained comes right behind the subscription.
    std::thread::sleep(Duration::from_millis(300));
    subscriber.messages().pop().filter(|message| message.retain).map(|message| message.payload)
}

#[test]
fn a_picture_is_kept_for_later_subscribers_until_nobody_asks_for_its_label() {
    let mut broker = Broker::start();
    let early = Subscriber::new(&broker, "palisade/#");
    let config = MqttConfig { frigate_prefix: Some("frigate".to_owned()), ..broker.config("pictures") };
    let mqtt = start(config, &Metrics::new());
    let publisher = mqtt.publisher();
    assert_eq!(publisher.snapshot_topic(&camera("street"), "Cat").as_deref(), Some(CAT));
    assert_eq!(publisher.snapshot_topic(&camera("street"), "unicorn"), None, "the model's own word");
    publisher.snapshot(&camera("street"), "cat", b"first");
    publisher.snapshot(&camera("street"), "cat", b"second");
    publisher.snapshot(&camera("street"), "unicorn", b"third");
    early.wait_text(CAT, "second");
    let topics: Vec<String> = early.messages().into_iter().map(|message| message.topic).collect();
    let place = |topic: &str| topics.iter().position(|other| other == topic).unwrap();
    assert!(place("palisade/status") < place(CAT), "nobody waits for a picture to be told that the daemon is there");
    assert!(!topics.iter().any(|topic| topic.contains("unicorn")));
    assert!(
        broker.log().lines().any(|line| line.contains("Received PUBLISH from pictures (d0, q0, r1, m0, 'palisade/street/snapshot/cat'"))
    );
    for topic in [CAT, "frigate/street/cat/snapshot"] {
        assert_eq!(found(&broker, topic).as_deref(), Some(b"second".as_slice()), "{topic}");
    }

    broker.kill9();
    broker.forget();
    broker.restart();
    eventually("a broker that forgot it gets it again", || found(&broker, CAT).as_deref() == Some(b"second"));

    publisher.watch(&Watched { prompt: Prompt::new("detect dog").unwrap(), ..watched("street") });
    eventually("it is cleared", || [CAT, "frigate/street/cat/snapshot"].iter().all(|topic| found(&broker, topic).is_none()));
    mqtt.finish(LONG);
}

#[test]
fn a_picture_of_an_earlier_run_stays_while_its_label_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    let config = |client: &str, folder: &Path| MqttConfig { state_dir: Some(folder.to_owned()), ..broker.config(client) };
    let mqtt = start(config("first", folder.path()), &Metrics::new());
    mqtt.publisher().snapshot(&camera("street"), "cat", b"picture");
    eventually("it is there", || found(&broker, CAT).is_some());
    // What is on the broker is written down in a moment.
    mqtt.finish(LONG);

    let mqtt = start(config("second", folder.path()), &Metrics::new());
    eventually("the link is there", || mqtt.publisher().trouble().is_none());
    assert_eq!(found(&broker, CAT).as_deref(), Some(b"picture".as_slice()));
    mqtt.publisher().watch(&Watched { prompt: Prompt::new("detect dog").unwrap(), ..watched("street") });
    eventually("a command takes its label away", || found(&broker, CAT).is_none());
    mqtt.publisher().watch(&watched("street"));
    mqtt.publisher().snapshot(&camera("street"), "cat", b"another");
    eventually("it is there again", || found(&broker, CAT).is_some());
    mqtt.finish(LONG);

    let mqtt = start(MqttConfig { snapshots: false, ..config("third", folder.path()) }, &Metrics::new());
    eventually("nobody wants pictures any more", || found(&broker, CAT).is_none());
    assert_eq!(mqtt.publisher().snapshot_topic(&camera("street"), "cat"), None);
    mqtt.finish(LONG);
}

/// On a slow line a record waits for one picture at most, and the link holds.
#[test]
fn pictures_do_not_hold_up_records_on_a_slow_line() {
    for version in [MqttVersion::V3, MqttVersion::V5] {
        let broker = Broker::start();
        let wire = Wire::start(broker.port());
        let subscriber = Subscriber::new(&broker, "palisade/street/detections");
        let pictures = Subscriber::new(&broker, "palisade/+/snapshot/+");
        let metrics = Metrics::new();
        let config = MqttConfig { port: wire.port(), version, discovery_prefix: None, ..broker.config("slow") };
        let mqtt = start(config, &metrics);
        let publisher = mqtt.publisher();
        Subscriber::new(&broker, "palisade/status").wait_text("palisade/status", "online");
        // A picture takes a second; what the socket's buffers hold passes beside.
        wire.slow(200_000);
        let picture = vec![7; 200_000];
        for id in ["street", "yard"] {
            for label in ["cat", "dog"] {
                assert!(publisher.snapshot(&camera(id), label, &picture));
            }
        }
        let before = Instant::now();
        for seq in 1..=10 {
            publish(&publisher, &looked("street", seq, ""));
            std::thread::sleep(Duration::from_millis(50));
        }
        subscriber.wait_for("the records", |messages| messages.len() == 10);
        let (waited, shown) = (before.elapsed(), pictures.messages().len());
        assert!(shown <= 2, "{shown} pictures went ahead of the records, which took {waited:?}");
        pictures.wait_for("every picture", |messages| messages.len() == 4);
        assert_eq!(metrics.counter("mqtt_connects", "broker").get(), 1, "a picture cost the link");
        mqtt.finish(LONG);
    }
}

#[test]
fn a_picture_that_does_not_fit_is_refused_and_costs_nothing() {
    let broker = Broker::with(Setup { more: vec!["max_packet_size 60000".to_owned()], ..Setup::default() });
    let subscriber = Subscriber::new(&broker, "palisade/#");
    for (version, max_packet) in [(MqttVersion::V3, 50_000), (MqttVersion::V5, 256 * 1024)] {
        let metrics = Metrics::new();
        let config = MqttConfig { max_packet, version, discovery_prefix: None, ..broker.config("fits") };
        let mqtt = start(config, &metrics);
        let publisher = mqtt.publisher();
        eventually("the link is there", || publisher.trouble().is_none());
        assert!(publisher.picture_room() < 60_000);
        assert!(!publisher.snapshot(&camera("street"), "cat", &[7; 70_000]));
        assert!(publisher.snapshot(&camera("street"), "cat", &[7; 40_000]));
        subscriber
            .wait_for("the small one", |messages| messages.iter().any(|message| message.topic == CAT && message.payload.len() == 40_000));
        publish(&publisher, &looked("street", 1, ""));
        eventually("the record is acknowledged", || published(&metrics, "street") == 1);
        assert_eq!(metrics.counter("mqtt_connects", "broker").get(), 1);
        mqtt.finish(LONG);
    }
}
