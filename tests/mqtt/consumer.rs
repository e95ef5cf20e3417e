//! A consumer that shares nothing with the daemon: another language, another library, the contract alone.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use palisade::base::metrics::Metrics;
use palisade::config::MqttConfig;
use palisade::types::{EventKind, Reason};

use super::event::{cat, say};
use super::{found, publish, start};
use crate::support::broker::{Broker, LONG};
use crate::support::daemon::repository;

/// Debian's own Python has the library as a package.
fn python() -> String {
    std::env::var("PALISADE_TEST_PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned())
}

/// What the consumer has to say about `seqs` of a camera, and whether it is content.
fn consumed(version: &str, seqs: &[u64]) -> (bool, String) {
    let broker = Broker::start();
    let arguments = [&broker.port().to_string(), version, "palisade", "street", &seqs.len().to_string()];
    let mut child = Command::new(python())
        .arg(repository("tests/mqtt/consumer.py"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut output, mut errors) = (BufReader::new(child.stdout.take().unwrap()), child.stderr.take().unwrap());
    let mut said = String::new();
    output.read_line(&mut said).unwrap();
    if said != "subscribed\n" {
        errors.read_to_string(&mut said).unwrap();
        panic!("the consumer did not subscribe; it needs paho-mqtt: apt install python3-paho-mqtt: {said}");
    }
    let config = MqttConfig { stats_interval: Duration::from_secs(1), ..broker.config("seen") };
    let mqtt = start(config, &Metrics::new());
    say(&mqtt.publisher(), &cat(EventKind::New, Reason::FirstSeen));
    say(&mqtt.publisher(), &cat(EventKind::End, Reason::Lost));
    seqs.iter().for_each(|seq| publish(&mqtt.publisher(), &found("street", *seq)));
    let mut told = String::new();
    output.read_to_string(&mut told).unwrap();
    errors.read_to_string(&mut told).unwrap();
    let content = child.wait().unwrap().success();
    mqtt.finish(LONG);
    (content, told)
}

#[test]
fn another_library_reads_what_the_contract_promises() {
    for version in ["3", "5"] {
        let (content, told) = consumed(version, &(1..=50).collect::<Vec<_>>());
        assert!(content && told.is_empty(), "MQTT {version}: {told}");
    }
}

#[test]
fn the_other_library_would_notice_a_gap() {
    let (content, told) = consumed("3", &[1, 2, 4]);
    assert!(!content && told.contains("seq came as [1, 2, 4]"), "{told}");
}
