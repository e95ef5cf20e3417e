//! The stop flag: set once, seen by sources and waiters at once.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::base::sync;

/// A flag that goes up once and wakes everybody who sleeps on it. Clones share the flag.
#[derive(Clone, Default)]
pub struct Shutdown(Arc<(Mutex<bool>, Condvar)>);

impl Shutdown {
    /// A flag that is down.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag.
    pub fn trigger(&self) {
        *sync::lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Whether the flag is up.
    pub fn is_set(&self) -> bool {
        *sync::lock(&self.0.0)
    }

    /// Sleeps for `timeout` or until the flag goes up; returns whether it is up.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut set = sync::lock(&self.0.0);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if *set || left.is_zero() {
                return *set;
            }
            set = sync::wait_timeout(&self.0.1, set, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_wakes_when_the_flag_goes_up() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.wait(Duration::from_millis(1)));
        let other = shutdown.clone();
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(600)));
        shutdown.trigger();
        assert!(waiter.join().unwrap());
    }
}
