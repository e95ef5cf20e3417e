//! What the two versions say, in one language.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode, PubAckReason};
use rumqttc::v5::{ConnectionError, StateError};

use super::*;
use crate::base::redact::SecretString;
use crate::config::TlsConfig;
use crate::mqtt::tests::config;
use crate::mqtt::trouble::Trouble;

#[test]
fn secrets_in_clear_text_are_told_but_on_loopback() {
    assert!(sends_secrets_in_clear(&config("10.0.0.2")));
    assert!(!sends_secrets_in_clear(&MqttConfig { tls: Some(TlsConfig::default()), ..config("10.0.0.2") }));
    assert!(!sends_secrets_in_clear(&MqttConfig { username: None, password: None, ..config("10.0.0.2") }));
    for loopback in ["localhost", "127.0.0.1", "::1", "[::1]"] {
        assert!(!sends_secrets_in_clear(&config(loopback)), "{loopback}");
    }
    assert!(sends_secrets_in_clear(&MqttConfig { username: None, password: Some(SecretString::from("s3cr3t")), ..config("hub") }));
}

#[test]
fn a_refused_message_is_refused_for_good_where_nothing_will_change() {
    assert_eq!(v5::refusal(PubAckReason::Success), None);
    assert_eq!(v5::refusal(PubAckReason::NoMatchingSubscribers), None, "nobody listens, and that is no fault");
    for reason in [
        PubAckReason::NotAuthorized,
        PubAckReason::TopicNameInvalid,
        PubAckReason::PayloadFormatInvalid,
        PubAckReason::ImplementationSpecificError,
    ] {
        assert!(!v5::refusal(reason).unwrap().passes, "{reason:?}");
    }
    for reason in [PubAckReason::QuotaExceeded, PubAckReason::UnspecifiedError, PubAckReason::PacketIdentifierInUse] {
        assert!(v5::refusal(reason).unwrap().passes, "{reason:?}");
    }
}

#[test]
fn what_a_broker_of_version_5_says_is_a_sentence() {
    let told = |error| Trouble::new("hub:1883", v5::cause(&error));
    let refused = |code| told(ConnectionError::ConnectionRefused(code));
    let ended = |reason_code| told(ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string: None }));
    let login = refused(ConnectReturnCode::BadUserNamePassword);
    assert_eq!(login.sentence, "broker hub:1883 refused the login; check mqtt.username and mqtt.password_file");
    assert!(login.refused);
    let version = refused(ConnectReturnCode::UnsupportedProtocolVersion);
    assert_eq!(version.sentence, "broker hub:1883 refused MQTT 5; set mqtt.version = \"3.1.1\"");
    assert!(version.refused && !refused(ConnectReturnCode::ServerBusy).refused && refused(ConnectReturnCode::Banned).refused);
    let taken = ended(DisconnectReasonCode::SessionTakenOver);
    assert_eq!(taken.sentence, "broker hub:1883 ended the connection: another client came with our id; must be a client_id of our own");
    assert!(taken.refused && !ended(DisconnectReasonCode::ServerShuttingDown).refused);
}
