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
    with_checks(|checks| Config::load(file, checks))
}

/// Every fault of a file's text, each with its line.
pub fn faults(text: &str) -> Vec<String> {
    with_checks(|checks| Config::read(text, checks)).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

fn with_checks<T>(judge: impl FnOnce(&Checks<'_>) -> T) -> T {
    let sentence = |error: Error| error.chain();
    judge(&Checks {
        fragment: &|fragment| source::init().and_then(|()| sink::video::check_fragment(fragment)).map_err(sentence),
        source: &|fragment| source::check_fragment(fragment).map_err(sentence),
        ca_file: &|path| source::check_ca(path).map_err(sentence),
        tls: &mqtt::check_tls,
        device: &|device| model::check_device(device).map_err(sentence),
    })
}
