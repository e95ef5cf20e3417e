//! How the link is, for whoever asks: connected or not, and why not.

use std::sync::Mutex;

use crate::base::sync;

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
        *sync::lock(&self.0) = None;
    }

    /// The link is not there, for this reason; returns whether it was until now.
    pub fn down(&self, why: &str) -> bool {
        sync::lock(&self.0).replace(why.to_owned()).is_none()
    }

    /// Why there is no link; `None` while there is one.
    pub fn trouble(&self) -> Option<String> {
        sync::lock(&self.0).clone()
    }
}
