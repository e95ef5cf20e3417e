//! MQTT 3.1.1. An acknowledgement always means yes: a broker that lets nobody write to a topic takes the message and throws
//! it away.

use rumqttc::{ConnectReturnCode, ConnectionError, EventLoop, Outgoing, Packet, QoS, StateError, SubscribeReasonCode, mqttbytes};

use crate::mqtt::trouble::{Cause, alert};
use crate::mqtt::wire::{Event, MAX_PACKET, Received, Terms};

/// A broker of this version says nothing of itself.
const TERMS: Terms = Terms { max_packet: MAX_PACKET, receive_maximum: usize::MAX, max_qos: QoS::ExactlyOnce, retains: true };

/// The next event.
pub async fn poll(events: &mut EventLoop) -> Result<Event, Cause> {
    use rumqttc::Event::{Incoming, Outgoing as Sent};
    Ok(match events.poll().await.map_err(|error| cause(&error))? {
        Incoming(Packet::ConnAck(_)) => Event::Up(TERMS),
        Incoming(Packet::SubAck(ack)) => Event::Subscribed(!ack.return_codes.contains(&SubscribeReasonCode::Failure)),
        Incoming(Packet::Publish(message)) => {
            Event::Message(Received { topic: message.topic, payload: message.payload.to_vec(), retain: message.retain })
        }
        Incoming(Packet::UnsubAck(_)) => Event::Unsubscribed,
        Incoming(Packet::PubAck(ack)) => Event::Acked(ack.pkid),
        Incoming(Packet::PubComp(ack)) => Event::Acked(ack.pkid),
        Incoming(Packet::PubRec(_)) => Event::Touched,
        Sent(Outgoing::Publish(pkid)) => Event::Written(pkid),
        Sent(Outgoing::Disconnect) => Event::Goodbye,
        _ => Event::Other,
    })
}

/// Why there is no connection.
pub fn cause(error: &ConnectionError) -> Cause {
    if let Some(why) = alert(&error.to_string()) {
        return Cause::Certificate(why.to_owned());
    }
    match error {
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => Cause::Login,
            ConnectReturnCode::BadClientId => Cause::ClientId,
            ConnectReturnCode::RefusedProtocolVersion => {
                Cause::Protocol("MQTT 3.1.1; must be a broker that speaks it, or see mqtt.version")
            }
            ConnectReturnCode::ServiceUnavailable | ConnectReturnCode::Success => Cause::Busy,
        },
        ConnectionError::NetworkTimeout => Cause::Late,
        ConnectionError::FlushTimeout => Cause::Stuck,
        ConnectionError::Tls(cause) => Cause::Tls(cause.to_string()),
        ConnectionError::Io(cause) => Cause::Unreachable(cause.to_string()),
        ConnectionError::MqttState(StateError::AwaitPingResp) => Cause::NoPing,
        ConnectionError::MqttState(StateError::ConnectionAborted) => Cause::Closed,
        ConnectionError::MqttState(StateError::Io(cause) | StateError::Deserialization(mqttbytes::Error::Io(cause))) => {
            Cause::BrokenOff(cause.to_string())
        }
        other => Cause::Other(other.to_string()),
    }
}
