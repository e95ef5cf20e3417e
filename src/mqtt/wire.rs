//! One connection to the broker in either version of the protocol, told in one language.
//!
//! rumqttc has a client for each version, with types of their own. Here they look the same; what MQTT 5 says beyond 3.1.1
//! (why a message was refused, what the broker takes at most) is in `Terms` and `Event::Refused`.

pub(super) mod v3;
mod v5;

use std::net::IpAddr;
use std::time::Duration;

use rumqttc::{AsyncClient, EventLoop, LastWill, MqttOptions, NetworkOptions, QoS};
use tokio::time::timeout;

use crate::base::error::{Error, Kind, Result};
use crate::base::redact::ExposeSecret;
use crate::config::{MqttConfig, MqttVersion, TlsFault};
use crate::mqtt::Patience;
use crate::mqtt::tls;
use crate::mqtt::trouble::Cause;

/// The largest packet that the protocol allows, bytes.
pub const MAX_PACKET: usize = 268_435_455;

/// The most bytes a PUBLISH adds to topic and payload: type, length (4), topic length (2), packet id (2), and in MQTT 5 an
/// empty set of properties.
pub const PACKET_OVERHEAD: usize = 10;

/// How to reach the broker and who we are.
#[derive(Clone)]
pub enum Options {
    /// By MQTT 3.1.1.
    V3(Box<MqttOptions>),
    /// By MQTT 5.
    V5(Box<rumqttc::v5::MqttOptions>),
}

impl Options {
    /// As configured, without a last will. At most `outgoing` bytes a packet are sent by 3.1.1; by 5 the broker says how many.
    ///
    /// # Errors
    /// When the encryption cannot be set up.
    pub fn new(config: &MqttConfig, patience: Patience, outgoing: usize) -> Result<Self> {
        // An IPv6 address is asked for with or without brackets; the resolver and the certificate want it without.
        let host = config.host.trim_start_matches('[').trim_end_matches(']');
        let transport = match &config.tls {
            Some(tls) => Some(
                tls::transport(tls)
                    .map_err(|TlsFault { key, why }| Error::new(Kind::Config, format!("mqtt.{key} cannot be used: {why}")))?,
            ),
            None => None,
        };
        let login = (config.username.is_some() || config.password.is_some()).then(|| {
            let password = config.password.as_ref().map_or("", |password| password.expose_secret());
            (config.username.as_deref().unwrap_or_default(), password)
        });
        // What is sent to us may be anything; one that is too large would cost the connection.
        Ok(match config.version {
            MqttVersion::V3 => {
                let mut options = MqttOptions::new(config.client_id.as_str(), host, config.port);
                options.set_keep_alive(patience.keep_alive.max(Duration::from_secs(1))).set_clean_session(true);
                options.set_max_packet_size(MAX_PACKET, outgoing);
                if let Some((username, password)) = login {
                    options.set_credentials(username, password);
                }
                if let Some(transport) = transport {
                    options.set_transport(transport);
                }
                Self::V3(Box::new(options))
            }
            MqttVersion::V5 => {
                let mut options = rumqttc::v5::MqttOptions::new(config.client_id.as_str(), host, config.port);
                options.set_keep_alive(patience.keep_alive.max(v5::LEAST_KEEP_ALIVE)).set_clean_start(true);
                options.set_max_packet_size(Some(MAX_PACKET as u32)).set_outgoing_inflight_upper_limit(v5::IN_FLIGHT);
                options.set_connection_timeout(patience.connect.as_secs().max(1));
                if let Some((username, password)) = login {
                    options.set_credentials(username, password);
                }
                if let Some(transport) = transport {
                    options.set_transport(transport);
                }
                Self::V5(Box::new(options))
            }
        })
    }

    /// What the broker publishes, retained, once the connection is lost.
    pub fn set_last_will(&mut self, topic: &str, payload: &str) {
        match self {
            Self::V3(options) => {
                options.set_last_will(LastWill::new(topic, payload, QoS::AtLeastOnce, true));
            }
            Self::V5(options) => {
                options.set_last_will(v5::last_will(topic, payload));
            }
        }
    }
}

/// Whether user name and password would go to another machine in clear text.
pub fn sends_secrets_in_clear(config: &MqttConfig) -> bool {
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    (config.username.is_some() || config.password.is_some()) && config.tls.is_none() && !loopback
}

/// What the broker says of itself when it lets us in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The largest packet it takes, bytes.
    pub max_packet: usize,
    /// How many messages it takes before it has acknowledged any.
    pub receive_maximum: usize,
    /// The best QoS it offers.
    pub max_qos: QoS,
    /// Whether it keeps retained messages.
    pub retains: bool,
}

/// What happens on a connection.
#[derive(Debug)]
pub enum Event {
    /// The broker has let us in.
    Up(Terms),
    /// It answers a subscription: whether it grants all of it.
    Subscribed(bool),
    /// It answers the end of one.
    Unsubscribed,
    /// A message on one of the subscriptions.
    Message(Received),
    /// The oldest message handed in is written, under this packet id; 0 with QoS 0.
    Written(u16),
    /// The broker has the message of this id.
    Acked(u16),
    /// It does not take the message of this id.
    Refused(u16, Refusal),
    /// It is at work on a message (PUBREC of QoS 2).
    Touched,
    /// The DISCONNECT is written.
    Goodbye,
    /// Nothing of interest.
    Other,
}

/// A message from the broker.
#[derive(Debug)]
pub struct Received {
    /// Where it was published.
    pub topic: String,
    /// What it says.
    pub payload: Vec<u8>,
    /// Whether it is an old one that the broker had kept.
    pub retain: bool,
}

/// Why a broker does not take a message (MQTT 5, 3.4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In words that go on after `refused a message: `.
    pub why: &'static str,
    /// The same message may be taken later.
    pub passes: bool,
}

/// A new connection, not begun yet; `requests` may be handed in at once. It is made by the first `poll`, within `connect`.
pub fn open(options: &Options, connect: Duration, requests: usize) -> (Client, Events) {
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(connect.as_secs().max(1));
    network.set_tcp_nodelay(true);
    match options {
        Options::V3(options) => {
            let (client, mut events) = AsyncClient::new((**options).clone(), requests);
            events.set_network_options(network);
            (Client::V3(client), Events::V3(Box::new(events)))
        }
        Options::V5(options) => {
            let mut options = (**options).clone();
            options.set_network_options(network);
            let (client, events) = rumqttc::v5::AsyncClient::new(options, requests);
            (Client::V5(client), Events::V5(Box::new(v5::Events::new(events))))
        }
    }
}

/// Takes what is to be sent. Never waits; an error means that its channel is full.
pub enum Client {
    /// By MQTT 3.1.1.
    V3(AsyncClient),
    /// By MQTT 5.
    V5(rumqttc::v5::AsyncClient),
}

/// The client's channel is full.
#[derive(Debug)]
pub struct Full;

impl Client {
    /// A message.
    ///
    /// # Errors
    /// When the channel is full.
    pub fn publish(&self, topic: String, qos: QoS, retain: bool, payload: Vec<u8>) -> Result<(), Full> {
        match self {
            Self::V3(client) => client.try_publish(topic, qos, retain, payload).map_err(|_| Full),
            Self::V5(client) => client.try_publish(topic, v5::qos(qos), retain, payload).map_err(|_| Full),
        }
    }

    /// A subscription with QoS 1. Version 5 tells of commands whether they were published as retained, also to whoever was
    /// there already; 3.1.1 tells only those who come later.
    ///
    /// # Errors
    /// When the channel is full.
    pub fn subscribe(&self, filter: &str) -> Result<(), Full> {
        match self {
            Self::V3(client) => client.try_subscribe(filter, QoS::AtLeastOnce).map_err(|_| Full),
            Self::V5(client) => client.try_subscribe_many([v5::filter(filter)]).map_err(|_| Full),
        }
    }

    /// The end of a subscription, be there one or not.
    ///
    /// # Errors
    /// When the channel is full.
    pub fn unsubscribe(&self, filter: &str) -> Result<(), Full> {
        match self {
            Self::V3(client) => client.try_unsubscribe(filter).map_err(|_| Full),
            Self::V5(client) => client.try_unsubscribe(filter).map_err(|_| Full),
        }
    }

    /// A clean end.
    ///
    /// # Errors
    /// When the channel is full.
    pub fn disconnect(&self) -> Result<(), Full> {
        match self {
            Self::V3(client) => client.try_disconnect().map_err(|_| Full),
            Self::V5(client) => client.try_disconnect().map_err(|_| Full),
        }
    }
}

/// Ends a connection cleanly, if there is one; returns whether the DISCONNECT was written within `most`.
pub async fn goodbye(client: &Client, events: &mut Events, most: Duration) -> bool {
    let written = async { while !matches!(events.poll().await, Ok(Event::Goodbye) | Err(_)) {} };
    client.disconnect().is_ok() && timeout(most, written).await.is_ok()
}

/// The connection itself.
pub enum Events {
    /// By MQTT 3.1.1.
    V3(Box<EventLoop>),
    /// By MQTT 5.
    V5(Box<v5::Events>),
}

impl Events {
    /// The next event. Given up midway, the connection is of no use any more.
    ///
    /// # Errors
    /// When the connection did not come about or is lost.
    pub async fn poll(&mut self) -> Result<Event, Cause> {
        match self {
            Self::V3(events) => v3::poll(events).await,
            Self::V5(events) => events.poll().await,
        }
    }

    /// Within this time something happens, be it a ping; if not, the connection hangs.
    pub fn patience(&self) -> Duration {
        let keep_alive = match self {
            Self::V3(events) => events.mqtt_options.keep_alive(),
            Self::V5(events) => events.keep_alive(),
        };
        keep_alive * 2
    }
}

#[cfg(test)]
mod tests;
