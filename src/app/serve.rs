//! `palisade serve`: a camera in a process of its own, so that it can be measured apart, stopped and killed.

use std::io::Read;
use std::time::Duration;

use crate::app::oneshot::print;
use crate::base::error::{Context, Kind, Result};
use crate::base::shutdown::Shutdown;
use crate::sink::video::serve::{Camera, ServeConfig};

/// What the line begins with that tells the port.
pub const LISTENING: &str = "listening ";

/// Serves until `shutdown`, with `until_eof` also until standard input is closed: a parent that is killed leaves no
/// camera behind.
///
/// # Errors
/// When the camera cannot be started.
pub fn run(config: &ServeConfig, until_eof: bool, shutdown: &Shutdown) -> Result<()> {
    if until_eof {
        let shutdown = shutdown.clone();
        let wait = move || {
            let mut bytes = [0; 64];
            while std::io::stdin().read(&mut bytes).is_ok_and(|read| read > 0) {}
            shutdown.trigger();
        };
        // Not joined: it waits as long as the parent lives.
        std::thread::Builder::new().name("stdin".to_owned()).spawn(wait).context(Kind::Internal, || "standard input cannot be awaited")?;
    }
    let camera = Camera::start(config)?;
    print(&format!("{LISTENING}{}", camera.port()))?;
    while !shutdown.wait(Duration::from_secs(3600)) {}
    Ok(())
}
