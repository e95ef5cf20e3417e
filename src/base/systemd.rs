//! What the service manager is told: ready, alive, reloading, stopping, a status line. Outside systemd each call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The start is over: configuration, model and sinks are up.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Every stage goes on; due each `alive_each`, or the service is restarted.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// Between two calls of `alive`: a third of what the unit's `WatchdogSec` allows, a quarter of a minute at most.
pub fn alive_each() -> Duration {
    let most = Duration::from_secs(15);
    sd_notify::watchdog_enabled().map_or(most, |allowed| most.min(allowed / 3))
}

/// The configuration is read anew; `ready` says that this is over, however it ended.
pub fn reloading() {
    // Newer service managers tell by the time which of two reloads is over.
    let now = NotifyState::monotonic_usec_now();
    let states: Vec<NotifyState<'_>> = std::iter::once(NotifyState::Reloading).chain(now).collect();
    notify(&states);
}

/// A clean stop has begun.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// The line `systemctl status` shows; what would be further lines stands behind it.
pub fn status(line: &str) {
    notify(&[NotifyState::Status(&line.replace('\n', "; "))]);
}

/// The start takes longer than planned (a model download): asks for `seconds` more.
pub fn extend_start(seconds: u32) {
    notify(&[NotifyState::ExtendTimeoutUsec(seconds.saturating_mul(1_000_000))]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be notified");
    }
}
