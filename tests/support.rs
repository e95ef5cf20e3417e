//! What several areas' tests start or build: brokers, servers, snapshot folders.

pub mod broker;
pub mod daemon;
pub mod snapshot;
pub mod truth;
