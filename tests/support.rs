//! Helpers the areas share.

pub mod media;
pub mod rtsp;
