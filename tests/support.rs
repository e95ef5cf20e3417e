//! What several test modules share.

pub mod hub;
pub mod snapshot;
