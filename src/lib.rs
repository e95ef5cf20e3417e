//! palisade: a video detection daemon. Cameras in, PaliGemma detections out over MQTT.
//!
//! The floors and the one-way flow between them are drawn in `ARCHITECTURE.md`; `tests/layering.rs` holds them.

pub mod annotate;
pub mod app;
pub mod base;
pub mod config;
pub mod console;
pub mod detect;
pub mod gate;
pub mod model;
pub mod mqtt;
pub mod sink;
pub mod source;
pub mod track;
pub mod types;
