//! The one integration-test binary.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

mod source;
mod video_sinks;
