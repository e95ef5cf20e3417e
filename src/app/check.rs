//! Loads a configuration with every rule applied, those included that only a stage can judge.

use std::path::Path;

use crate::base::error::Error;
use crate::config::{Checks, Config, Faults};
use crate::{model, mqtt, sink, source};

/// Reads and checks a file; needs no network and loads no model.
///
/// # Errors
/// Every fault found.
pub fn load(file: &Path) -> Result<Config, Faults> {
    let sentence = |error: Error| error.chain();
    let checks = Checks {
        fragment: &|fragment| source::init().and_then(|()| sink::video::check_fragment(fragment)).map_err(sentence),
        source: &|fragment| source::check_fragment(fragment).map_err(sentence),
        ca_file: &|path| source::check_ca(path).map_err(sentence),
        tls: &mqtt::check_tls,
        device: &|device| model::check_device(device).map_err(sentence),
    };
    Config::load(file, &checks)
}
