//! The one integration-test binary.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod bench;
mod cli;
mod console;
mod control;
mod decoding;
mod drafts;
mod e2e;
mod exact;
mod faults;
mod gallery;
mod hub;
mod layering;
mod live;
mod model;
mod mqtt;
mod record;
mod reload;
mod serve;
mod source;
mod support;
mod track;
mod video_sinks;
