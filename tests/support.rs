//! What several areas' tests start or build: brokers, servers, media, the daemon, snapshot folders.

pub mod broker;
pub mod camera;
pub mod daemon;
pub mod http;
pub mod hub;
pub mod media;
pub mod proxy;
pub mod rtsp;
pub mod snapshot;
pub mod source;
pub mod truth;
pub mod wire;
