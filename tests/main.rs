//! The one integration-test binary.

mod hub;
mod model;
mod support;
