//! Commands over MQTT, on the real daemon: what is obeyed, what is refused, and what outlives a restart.

use std::time::Duration;

use rumqttc::{Client, Event, MqttOptions, Outgoing, Packet, QoS};
use serde_json::Value;
use tempfile::tempdir;

use crate::support::broker::{Broker, Subscriber, eventually};
use crate::support::daemon::{Daemon, repository};

/// Publishes these, in order, and returns when the broker has them all.
fn say(broker: &Broker, messages: impl Iterator<Item = (String, Vec<u8>, bool)>) {
    let messages: Vec<_> = messages.collect();
    let (client, mut events) = Client::new(MqttOptions::new("commander", "127.0.0.1", broker.port()), 100);
    let count = messages.len();
    let sending = std::thread::spawn(move || {
        messages.into_iter().for_each(|(topic, payload, retain)| client.publish(topic, QoS::AtLeastOnce, retain, payload).unwrap());
        client
    });
    let acknowledged = events.iter().filter(|event| matches!(event, Ok(Event::Incoming(Packet::PubAck(_))))).take(count).count();
    assert_eq!(acknowledged, count);
    sending.join().unwrap().disconnect().unwrap();
    while !matches!(events.iter().next(), Some(Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)) | None) {}
}

/// Tells the camera `street` what it is to do.
pub fn command(broker: &Broker, what: &str, payload: &[u8], retain: bool) {
    say(broker, std::iter::once((format!("palisade/street/{what}/set"), payload.to_vec(), retain)));
}

fn newest(subscriber: &Subscriber, topic: &str) -> String {
    subscriber.on(topic).pop().map(|message| message.text()).unwrap_or_default()
}

fn config(broker: &Broker, control: bool) -> String {
    format!(
        "[model]\npath = {:?}\n[[camera]]\nid = \"street\"\nuri = {:?}\nlabels = [\"cat\", \"dog\"]\ninterval = 0.2\nloop = true\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {}\nstate_dir = \"state\"\ncontrol = {control}\n",
        repository("samples/demo-model"),
        repository("samples/street.mp4"),
        broker.port()
    )
}

#[test]
fn commands_are_obeyed_from_the_next_frame_on_and_outlive_a_restart() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mut daemon = Daemon::start(folder.path(), &config(&broker, true));
    daemon.ready();
    subscriber.wait_text("palisade/status", "online");
    assert_eq!(newest(&subscriber, "palisade/street/prompt/state"), "detect cat ; dog");
    let asks = |prompt: &str| {
        subscriber.wait_for(prompt, |messages| {
            messages
                .iter()
                .rfind(|message| message.topic.ends_with("/detections"))
                .is_some_and(|message| message.json()["prompt"] == prompt)
        });
    };
    asks("detect cat ; dog");

    command(&broker, "prompt", b"detect car ; dog", false);
    asks("detect car ; dog");
    assert_eq!(newest(&subscriber, "palisade/street/prompt/state"), "detect car ; dog");
    let late = Subscriber::new(&broker, "palisade/street/count/+");
    late.wait_for("the counts of what is asked now, and no other", |messages| {
        let mut topics: Vec<&str> = messages.iter().filter(|message| message.retain).map(|message| message.topic.as_str()).collect();
        topics.sort_unstable();
        topics.dedup();
        topics == ["palisade/street/count/car", "palisade/street/count/dog"]
    });

    command(&broker, "detect", b"OFF", false);
    subscriber.wait_text("palisade/street/detect/state", "OFF");
    std::thread::sleep(Duration::from_millis(500));
    let before = subscriber.on("palisade/street/detections").len();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(subscriber.on("palisade/street/detections").len(), before, "it is still looked at");
    command(&broker, "detect", b"ON", false);
    eventually("it is looked at again", || subscriber.on("palisade/street/detections").len() > before);
    assert!(daemon.log().contains("told over MQTT"), "{}", daemon.log());

    daemon.signal("KILL");
    daemon.wait(Duration::from_secs(10));
    let again = Subscriber::new(&broker, "palisade/street/detections");
    let mut daemon = Daemon::start(folder.path(), &config(&broker, true));
    daemon.ready();
    again.wait_for("the commanded prompt after a restart", |messages| {
        messages.last().is_some_and(|message| message.json()["prompt"] == "detect car ; dog")
    });
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success(), "{}", daemon.log());
}

#[test]
fn ten_thousand_malformed_commands_change_nothing() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mut daemon = Daemon::start(folder.path(), &config(&broker, true));
    daemon.ready();
    subscriber.wait_text("palisade/status", "online");
    let mut noise = 11_u64;
    let mut next = move || {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise >> 33
    };
    let malformed = (0..10_000).map(|number| {
        let bytes: Vec<u8> = (0..next() % 700).map(|_| next() as u8).collect();
        // Each is wrong in some way: bytes that are no text, too long, with a line break, empty, no word that is known, retained.
        let payload = match number % 6 {
            0 => [&[0xff, 0xfe][..], &bytes].concat(),
            1 => vec![b'x'; 513 + next() as usize % 5000],
            2 => format!("detect cat\ndog {number}").into_bytes(),
            3 => b"  ".to_vec(),
            4 => [b"detect \x00".to_vec(), bytes].concat(),
            _ => b"detect bird".to_vec(),
        };
        let topic = ["street/prompt", "street/detect", "nowhere/prompt", "STREET/detect"][next() as usize % 4];
        // A prompt that could be obeyed goes where none is, or is retained.
        let retain = number % 6 == 5 && topic == "street/prompt";
        (format!("palisade/{topic}/set"), payload, retain)
    });
    let all: Vec<_> = malformed.collect();
    // The broker passes a retained message on to who is there without the flag; only a later subscriber sees that it is one.
    let (retained, live): (Vec<_>, Vec<_>) = all.into_iter().partition(|(.., retain)| *retain);
    say(&broker, live.into_iter());
    let before = subscriber.on("palisade/street/detections").len();
    eventually("it goes on", || subscriber.on("palisade/street/detections").len() > before + 2);
    assert_eq!(newest(&subscriber, "palisade/street/prompt/state"), "detect cat ; dog");
    assert_eq!(newest(&subscriber, "palisade/street/detect/state"), "ON");
    assert!(!daemon.log().contains("panicked") && !daemon.log().contains("told over MQTT"), "{}", daemon.log());
    daemon.signal("TERM");
    assert!(daemon.wait(Duration::from_secs(10)).success());

    assert!(!retained.is_empty());
    say(&broker, retained.into_iter());
    let again = Subscriber::new(&broker, "palisade/street/detections");
    let mut daemon = Daemon::start(folder.path(), &config(&broker, true));
    daemon.ready();
    again.wait_for("it goes on after a restart", |messages| messages.len() > 3);
    let prompts: Vec<Value> = again.messages().iter().map(|message| message.json()["prompt"].clone()).collect();
    assert!(prompts.iter().all(|prompt| prompt == "detect cat ; dog"), "a retained command was obeyed: {prompts:?}");
    assert!(daemon.log().contains("it is retained"), "{}", daemon.log());
}

#[test]
fn without_leave_nothing_is_heard() {
    let (folder, broker) = (tempdir().unwrap(), Broker::start());
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mut daemon = Daemon::start(folder.path(), &config(&broker, false));
    daemon.ready();
    subscriber.wait_text("palisade/status", "online");
    command(&broker, "prompt", b"detect car", false);
    command(&broker, "detect", b"OFF", false);
    let before = subscriber.on("palisade/street/detections").len();
    eventually("it goes on", || subscriber.on("palisade/street/detections").len() > before + 5);
    assert_eq!(newest(&subscriber, "palisade/street/prompt/state"), "detect cat ; dog");
    assert!(!broker.log().contains("prompt/set (QoS"), "it subscribed");
}
