//! MQTT 5: the broker says what it takes, and why it does not take a message.

use std::time::Duration;

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, DisconnectReasonCode, Filter, LastWill, Packet, PubAckReason, PubCompReason, PubRecReason,
    SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{self, QoS};
use rumqttc::v5::{ConnectionError, EventLoop, StateError};

use crate::mqtt::topic::is_command;
use crate::mqtt::trouble::{Cause, alert};
use crate::mqtt::window::ROOM;
use crate::mqtt::wire::{Event, MAX_PACKET, Received, Refusal, Terms};

/// The library takes no shorter one.
pub const LEAST_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Packet ids in use: 1 to this.
pub const IN_FLIGHT: u16 = 100;

/// The library's QoS of this version.
pub fn qos(qos: rumqttc::QoS) -> QoS {
    match qos {
        rumqttc::QoS::AtMostOnce => QoS::AtMostOnce,
        rumqttc::QoS::AtLeastOnce => QoS::AtLeastOnce,
        rumqttc::QoS::ExactlyOnce => QoS::ExactlyOnce,
    }
}

/// A retained last will.
pub fn last_will(topic: &str, payload: &str) -> LastWill {
    LastWill::new(topic, payload, QoS::AtLeastOnce, true, None)
}

/// A subscription. Commands come as they were published, so that a retained one is known as such (MQTT 5, 3.8.3.1). The
/// greeting of Home Assistant does not: published as retained it says no less while we are there.
pub fn filter(filter: &str) -> Filter {
    Filter { preserve_retain: is_command(filter), ..Filter::new(filter, QoS::AtLeastOnce) }
}

/// The connection.
pub struct Events {
    events: EventLoop,
    receive_maximum: usize,
    /// Messages of QoS 2 that were refused: the library counts them as under way for ever.
    lost_room: usize,
}

impl Events {
    /// Not begun yet.
    pub fn new(events: EventLoop) -> Self {
        Self { events, receive_maximum: usize::from(IN_FLIGHT), lost_room: 0 }
    }

    /// Time between two pings.
    pub fn keep_alive(&self) -> Duration {
        self.events.options.keep_alive()
    }

    /// The next event.
    pub async fn poll(&mut self) -> Result<Event, Cause> {
        use rumqttc::v5::Event::{Incoming, Outgoing as Sent};
        Ok(match self.events.poll().await.map_err(|error| cause(&error))? {
            Incoming(Packet::ConnAck(ack)) => {
                // The broker's word on it; at zero, which means none, the library would ping without a pause.
                if self.keep_alive() < LEAST_KEEP_ALIVE {
                    self.events.options.set_keep_alive(LEAST_KEEP_ALIVE);
                }
                let terms = terms(&ack);
                self.receive_maximum = terms.receive_maximum.min(usize::from(IN_FLIGHT));
                Event::Up(terms)
            }
            Incoming(Packet::SubAck(ack)) => {
                Event::Subscribed(ack.return_codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_))))
            }
            Incoming(Packet::Publish(message)) => match String::from_utf8(message.topic.to_vec()) {
                Ok(topic) => Event::Message(Received { topic, payload: message.payload.to_vec(), retain: message.retain }),
                Err(_) => Event::Other,
            },
            Incoming(Packet::UnsubAck(_)) => Event::Unsubscribed,
            Incoming(Packet::PubAck(ack)) => match refusal(ack.reason) {
                Some(refusal) => Event::Refused(ack.pkid, refusal),
                None => Event::Acked(ack.pkid),
            },
            Incoming(Packet::PubRec(ack)) => match refusal(as_puback(ack.reason)) {
                Some(refusal) => {
                    self.lost_room += 1;
                    if self.lost_room + ROOM >= self.receive_maximum {
                        return Err(Cause::Other("it refused many messages of QoS 2; a new connection is needed".to_owned()));
                    }
                    Event::Refused(ack.pkid, refusal)
                }
                None => Event::Touched,
            },
            Incoming(Packet::PubComp(ack)) => match ack.reason {
                PubCompReason::Success => Event::Acked(ack.pkid),
                // It has forgotten what it had promised to take: only a new connection tells what it has.
                PubCompReason::PacketIdentifierNotFound => return Err(Cause::Other("it forgot a message of QoS 2 amid it".to_owned())),
            },
            Sent(Outgoing::Publish(pkid)) => Event::Written(pkid),
            Sent(Outgoing::Disconnect) => Event::Goodbye,
            _ => Event::Other,
        })
    }
}

fn terms(ack: &ConnAck) -> Terms {
    let said = ack.properties.as_ref();
    Terms {
        max_packet: said.and_then(|said| said.max_packet_size).map_or(MAX_PACKET, |most| most as usize),
        receive_maximum: said.and_then(|said| said.receive_max).map_or(usize::MAX, usize::from),
        max_qos: match said.and_then(|said| said.max_qos) {
            Some(0) => rumqttc::QoS::AtMostOnce,
            Some(1) => rumqttc::QoS::AtLeastOnce,
            _ => rumqttc::QoS::ExactlyOnce,
        },
        retains: said.and_then(|said| said.retain_available) != Some(0),
    }
}

/// What a reason code of PUBACK means for the message (MQTT 5, 3.4.2.1); `None`: the broker has it.
pub fn refusal(reason: PubAckReason) -> Option<Refusal> {
    let (why, passes) = match reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => return None,
        PubAckReason::NotAuthorized => ("not authorized; must be a user who may write to its topic", false),
        PubAckReason::TopicNameInvalid => ("its topic is invalid there", false),
        PubAckReason::PayloadFormatInvalid => ("its payload is invalid there", false),
        PubAckReason::QuotaExceeded => ("a quota is exceeded", true),
        PubAckReason::PacketIdentifierInUse => ("its packet id is in use", true),
        PubAckReason::UnspecifiedError => ("for no reason given", true),
        // A rule of the broker's own, such as one on payloads, and not for the moment.
        PubAckReason::ImplementationSpecificError => ("for a reason of its own", false),
    };
    Some(Refusal { why, passes })
}

/// PUBREC has the reasons of PUBACK.
fn as_puback(reason: PubRecReason) -> PubAckReason {
    match reason {
        PubRecReason::Success => PubAckReason::Success,
        PubRecReason::NoMatchingSubscribers => PubAckReason::NoMatchingSubscribers,
        PubRecReason::UnspecifiedError => PubAckReason::UnspecifiedError,
        PubRecReason::ImplementationSpecificError => PubAckReason::ImplementationSpecificError,
        PubRecReason::NotAuthorized => PubAckReason::NotAuthorized,
        PubRecReason::TopicNameInvalid => PubAckReason::TopicNameInvalid,
        PubRecReason::PacketIdentifierInUse => PubAckReason::PacketIdentifierInUse,
        PubRecReason::QuotaExceeded => PubAckReason::QuotaExceeded,
        PubRecReason::PayloadFormatInvalid => PubAckReason::PayloadFormatInvalid,
    }
}

/// Why there is no connection.
pub fn cause(error: &ConnectionError) -> Cause {
    if let Some(why) = alert(&error.to_string()) {
        return Cause::Certificate(why.to_owned());
    }
    match error {
        ConnectionError::ConnectionRefused(code) | ConnectionError::MqttState(StateError::ConnFail { reason: code }) => refused(*code),
        ConnectionError::Timeout(_) => Cause::Late,
        ConnectionError::Tls(cause) => Cause::Tls(cause.to_string()),
        ConnectionError::Io(cause) => Cause::Unreachable(cause.to_string()),
        ConnectionError::MqttState(state) => match state {
            StateError::AwaitPingResp => Cause::NoPing,
            StateError::ConnectionAborted => Cause::Closed,
            StateError::Io(cause) | StateError::Deserialization(mqttbytes::Error::Io(cause)) => Cause::BrokenOff(cause.to_string()),
            StateError::ServerDisconnect { reason_code, .. } => disconnected(*reason_code),
            other => Cause::Other(other.to_string()),
        },
        ConnectionError::NotConnAck(_) => {
            Cause::Other("it answered something else; may be it does not speak MQTT 5: see mqtt.version".to_owned())
        }
        other => Cause::Other(other.to_string()),
    }
}

/// Why the broker does not let us in (MQTT 5, 3.2.2.2). Its own words are not repeated: they may be anything.
fn refused(code: ConnectReturnCode) -> Cause {
    match code {
        ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadAuthenticationMethod => {
            Cause::Login
        }
        ConnectReturnCode::BadClientId | ConnectReturnCode::ClientIdentifierNotValid => Cause::ClientId,
        ConnectReturnCode::RefusedProtocolVersion | ConnectReturnCode::UnsupportedProtocolVersion => {
            Cause::Protocol("MQTT 5; set mqtt.version = \"3.1.1\"")
        }
        ConnectReturnCode::Banned => Cause::Refused("us: this client is banned"),
        ConnectReturnCode::TopicNameInvalid => Cause::Refused("our last will; check mqtt.topic_prefix"),
        ConnectReturnCode::RetainNotSupported => Cause::Refused("a retained last will; must be a broker that keeps retained messages"),
        ConnectReturnCode::QoSNotSupported => Cause::Refused("a last will of QoS 1; must be a broker that takes it"),
        ConnectReturnCode::UseAnotherServer | ConnectReturnCode::ServerMoved => Cause::Refused("us: it has moved; check mqtt.host"),
        ConnectReturnCode::ProtocolError | ConnectReturnCode::MalformedPacket => Cause::Refused("our words; set mqtt.version = \"3.1.1\""),
        _ => Cause::Busy,
    }
}

/// Why the broker ended the connection (MQTT 5, 3.14.2.1). The library cannot read a reason that has no properties beside it,
/// as mosquitto 2.0 sends it: then the connection is closed, and no more is known.
fn disconnected(code: DisconnectReasonCode) -> Cause {
    match code {
        DisconnectReasonCode::SessionTakenOver => {
            Cause::Ended { why: "another client came with our id; must be a client_id of our own".to_owned(), refused: true }
        }
        DisconnectReasonCode::NotAuthorized => Cause::Ended { why: "not authorized any more".to_owned(), refused: true },
        DisconnectReasonCode::AdministrativeAction => Cause::Ended { why: "by its administrator".to_owned(), refused: true },
        other => Cause::Ended { why: format!("{other:?}"), refused: false },
    }
}
