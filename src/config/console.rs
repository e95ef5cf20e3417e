//! The HTTP server, and what it lets its visitors look back at.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::redact::SecretString;

/// The HTTP server.
#[derive(Clone, Debug)]
pub struct ConsoleConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who does not show it sees nothing; `None` on loopback addresses only.
    pub token: Option<SecretString>,
    /// Names it answers to beside loopback's and the address that was connected to, in lower case, without a port.
    pub hosts: Vec<String>,
    /// Whoever may look may also steer: another prompt for a camera, and whether it is looked at.
    pub control: bool,
    /// Where commands are written down where there is no broker.
    pub state_dir: PathBuf,
}

/// What was seen, in an SQLite file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryConfig {
    /// The file.
    pub file: PathBuf,
    /// At most this age.
    pub keep_for: Duration,
}

impl HistoryConfig {
    /// With every other key at its default.
    pub fn new(file: PathBuf) -> Self {
        Self { file, keep_for: Duration::from_secs(30 * 86_400) }
    }
}
