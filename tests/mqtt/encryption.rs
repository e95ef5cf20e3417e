//! Who may in over TLS, and that nothing is told to anybody else: client certificates, certificates that are over, strangers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use palisade::base::metrics::Metrics;
use palisade::config::{ClientCertificate, MqttConfig, TlsConfig};
use palisade::mqtt::{self, Context};

use super::{RUN, looked, publish, start};
use crate::support::broker::{Broker, LONG, Setup, Subscriber, eventually, make_authority};

/// Listens in on what a client says to a broker, in a thread.
struct Wire {
    port: u16,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    fn to(broker: &Broker) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let wire = Self { port: listener.local_addr().unwrap().port(), said: Arc::default() };
        let (to, said) = (broker.port(), wire.said.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(mut client), Ok(mut server)) = (client, TcpStream::connect((Ipv4Addr::LOCALHOST, to))) else { continue };
                let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
                let said = said.clone();
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = client.read(&mut bytes) {
                        said.lock().unwrap().extend_from_slice(&bytes[..read]);
                        if server.write_all(&bytes[..read]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        wire
    }

    /// Asserts that the client spoke, and in TLS only.
    fn heard_nothing(&self, words: &[&str]) {
        let said = self.said.lock().unwrap();
        assert_eq!(said.get(..2), Some([0x16, 0x03].as_slice()), "no TLS handshake");
        for word in words {
            assert!(!said.windows(word.len()).any(|window| window == word.as_bytes()), "{word} went out in clear text");
        }
    }
}

/// Waits until a link that cannot come about is told of in these words; asserts that nothing of it went out in clear text.
#[track_caller]
fn refused(broker: &Broker, config: MqttConfig, words: &str) {
    let wire = Wire::to(broker);
    let id = config.client_id.clone();
    let login = MqttConfig { username: Some("palisade".to_owned()), password: Some("s3cr3t".to_owned().into()), ..config };
    let metrics = Metrics::new();
    let mqtt = start(MqttConfig { port: wire.port, ..login }, &metrics);
    publish(&mqtt.publisher(), &looked("street", 1, ""));
    eventually(words, || mqtt.publisher().trouble().expect("a stranger is connected").contains(words));
    wire.heard_nothing(&["MQTT", "s3cr3t", "palisade", &id]);
    assert_eq!(metrics.counter("mqtt_connects", "broker").get(), 0);
    assert!(!broker.log().contains(&format!("as {id}")), "a stranger got in: {}", broker.log());
    drop(mqtt);
}

#[test]
fn a_certificate_that_is_over_is_told_and_nothing_goes_out() {
    let broker = Broker::with(Setup { tls: true, expired: true, ..Setup::default() });
    refused(&broker, broker.config("over"), "could not be reached over TLS: certificate has expired; the broker needs a new certificate, ");
}

#[test]
fn an_unknown_authority_is_told_and_nothing_goes_out() {
    let broker = Broker::with_tls();
    make_authority(broker.path("").as_path(), "other");
    let other = TlsConfig { ca_file: Some(broker.path("other.pem")), client: None };
    let told = "could not be reached over TLS: unable to get local issuer certificate; check mqtt.ca_file";
    refused(&broker, MqttConfig { tls: Some(other), ..broker.config("unknown") }, told);
    refused(&broker, MqttConfig { tls: Some(TlsConfig::default()), ..broker.config("system") }, "check mqtt.ca_file");
}

#[test]
fn a_broker_that_asks_for_a_certificate_takes_its_own_only() {
    let broker = Broker::with(Setup { tls: true, asks_for_certificate: true, ..Setup::default() });
    make_authority(broker.path("").as_path(), "other");
    let with = |client| Some(TlsConfig { ca_file: Some(broker.path("ca.pem")), client });
    let other = ClientCertificate { cert_file: broker.path("other.pem"), key_file: broker.path("other.key") };
    let told = "takes no client without a certificate that it knows: ";
    refused(
        &broker,
        MqttConfig { tls: with(None), ..broker.config("nobody") },
        &format!("{told}certificate required; check mqtt.cert_file"),
    );
    refused(&broker, MqttConfig { tls: with(Some(other)), ..broker.config("stranger") }, told);
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mqtt = start(broker.config("known"), &Metrics::new());
    subscriber.wait_text("palisade/status", "online");
    mqtt.finish(LONG);
    subscriber.wait_text("palisade/status", "offline");
}

#[test]
fn a_client_certificate_that_cannot_be_used_stops_the_start() {
    let broker = Broker::with(Setup { tls: true, ..Setup::default() });
    let start = |cert: &str, key: &str| {
        let client = Some(ClientCertificate { cert_file: broker.path(cert), key_file: broker.path(key) });
        let tls = Some(TlsConfig { ca_file: Some(broker.path("ca.pem")), client });
        let context = Context { model: String::new(), run: RUN };
        mqtt::start(MqttConfig { tls, ..broker.config("unusable") }, &[], context, &Metrics::new()).err().unwrap().chain()
    };
    let path = |name: &str| broker.path(name).display().to_string();
    let told = start("client.pem", "server.key");
    let expected =
        format!("mqtt.key_file cannot be used: {} is not the key of the certificate in {}", path("server.key"), path("client.pem"));
    assert!(told.starts_with(&expected), "{told}");
    let told = start("client.key", "client.key");
    assert!(told.starts_with(&format!("mqtt.cert_file cannot be used: {} is no certificate; ", path("client.key"))), "{told}");
    let told = start("client.pem", "nowhere.key");
    assert!(told.starts_with(&format!("mqtt.key_file cannot be used: {} cannot be read: ", path("nowhere.key"))), "{told}");
}
