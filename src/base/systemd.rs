//! What the service manager is told: ready, alive, stopping, a status line. Outside systemd each call does nothing.

use sd_notify::NotifyState;

/// The start is over: configuration, model and sinks are up.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The main loop still turns; due at least twice in the unit's `WatchdogSec`, or the service is restarted.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// A clean stop has begun.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// The line `systemctl status` shows.
pub fn status(line: &str) {
    notify(&[NotifyState::Status(line)]);
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
