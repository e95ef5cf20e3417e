//! What several areas' tests start or build: brokers, servers, the daemon, snapshot folders.

pub mod broker;
pub mod daemon;
pub mod rtsp;
pub mod snapshot;
pub mod truth;
