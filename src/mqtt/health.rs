//! How the link is, for whoever asks: connected or not, and why not.

use std::sync::{Mutex, PoisonError};

/// Connected, or the newest reason why not.
#[derive(Debug)]
pub struct Health(Mutex<Option<String>>);

impl Health {
    /// Not connected yet.
    pub fn new() -> Self {
        Self(Mutex::new(Some("not connected yet".to_owned())))
    }

    /// The link is there.
    pub fn up(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The link is not there, for this reason; returns whether it was until now.
    pub fn down(&self, why: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(why.to_owned()).is_none()
    }

    /// Why there is no link; `None` while there is one.
    pub fn trouble(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
