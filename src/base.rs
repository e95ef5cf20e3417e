//! Floor 0: what every stage stands on and nothing of the domain.

pub mod backoff;
pub mod claim;
pub mod clock;
pub mod error;
pub mod hash;
pub mod heartbeat;
pub mod jpeg;
pub mod mailbox;
pub mod memory;
pub mod metrics;
pub mod picture;
pub mod process;
pub mod redact;
pub mod shutdown;
pub mod sync;
pub mod systemd;
pub mod thread;
pub mod whole;

pub use error::{Context, Error, Kind, Result};
