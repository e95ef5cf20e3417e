//! Loads a configuration with every rule applied, those included that only a stage can judge.

use std::path::Path;

use crate::base::error::Error;
use crate::config::{Checks, Config, Faults, TlsConfig, TlsFault};
use crate::{model, mqtt, sink, source};

/// A file of certificates, bytes.
const MOST: u64 = 4 << 20;

/// Reads and checks a file; needs no network and loads no model.
///
/// # Errors
/// Every fault found.
pub fn load(file: &Path) -> Result<Config, Faults> {
    with_checks(|checks| Config::load(file, checks))
}

/// Every fault of a file's text, each with its line.
pub fn faults(text: &str) -> Vec<String> {
    with_checks(|checks| {
        // Whoever asks names the files: a device would be read for ever.
        let ca_file = |path: &Path| plain(path).and_then(|()| (checks.ca_file)(path));
        let tls = |tls: &TlsConfig| {
            let client = tls.client.as_ref().map(|client| [("cert_file", &client.cert_file), ("key_file", &client.key_file)]);
            for (key, path) in tls.ca_file.iter().map(|path| ("ca_file", path)).chain(client.into_iter().flatten()) {
                plain(path).map_err(|why| TlsFault { key, why })?;
            }
            (checks.tls)(tls)
        };
        Config::read(text, &Checks { ca_file: &ca_file, tls: &tls, ..*checks })
    })
    .err()
    .unwrap_or_default()
    .iter()
    .map(ToString::to_string)
    .collect()
}

/// That a file is one, and no larger than certificates are.
fn plain(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() > MOST => {
            Err(format!("{} cannot be read; must be a file of at most {MOST} bytes", path.display()))
        }
        // What is not there is told of as ever.
        _ => Ok(()),
    }
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
