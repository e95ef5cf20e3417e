//! Loads a configuration with every rule applied, those included that only a stage can judge.

use std::path::Path;

use crate::config::{Config, Faults};
use crate::{sink, source};

/// Reads and checks a file; needs no network and loads no model.
///
/// # Errors
/// Every fault found.
pub fn load(file: &Path) -> Result<Config, Faults> {
    Config::load(file, &|fragment| source::init().and_then(|()| sink::video::check_fragment(fragment)).map_err(|error| error.chain()))
}
