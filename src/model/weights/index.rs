//! Which files of a snapshot hold weights: one, or the shards that an index lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::read_text;
use crate::base::{Error, Kind, Result};

/// The index's file name.
pub const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The names of the shards that an index lists. They must be plain file names: the index comes from elsewhere.
pub fn shards(index: &str) -> std::result::Result<BTreeSet<String>, String> {
    Ok(read(index)?.into_values().collect())
}

/// The weight files, in order, and which of them the index, if there is one, gives each tensor.
///
/// # Errors
/// When one is missing, or the index cannot be used.
pub fn weight_files(folder: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, String>)> {
    let whole = folder.join("model.safetensors");
    let index = folder.join(INDEX);
    if whole.exists() {
        return Ok((vec![whole], BTreeMap::new()));
    }
    if !index.exists() {
        return Err(missing(&whole));
    }
    let mapping = read(&read_text(&index)?).map_err(|why| Error::new(Kind::Model, format!("{} {why}", index.display())))?;
    let names: BTreeSet<&String> = mapping.values().collect();
    let find = |name: &String| {
        let path = folder.join(name);
        let named = || Error::new(Kind::Model, format!("{name} is missing in {}; {} names it", folder.display(), index.display()));
        if path.exists() { Ok(path) } else { Err(named()) }
    };
    let paths = names.into_iter().map(find).collect::<Result<_>>()?;
    Ok((paths, mapping))
}

/// That a snapshot lacks a file.
pub fn missing(path: &Path) -> Error {
    let (file, folder) = (path.file_name().unwrap_or_default().to_string_lossy(), path.parent().unwrap_or(path).display());
    Error::new(
        Kind::Model,
        format!(
            "{file} is missing in {folder}; a model's folder must hold config.json, tokenizer.json \
             and model.safetensors or model.safetensors.index.json with its shards"
        ),
    )
}

fn read(index: &str) -> std::result::Result<BTreeMap<String, String>, String> {
    let Index { weight_map } = serde_json::from_str(index).map_err(|error| format!("is not an index of weight files: {error}"))?;
    if weight_map.is_empty() {
        return Err("lists no weight files; must have a weight_map".to_owned());
    }
    let plain = |name: &str| !name.contains(['/', '\\']) && name.ends_with(".safetensors") && !name.starts_with('.');
    match weight_map.values().find(|name| !plain(name)) {
        Some(bad) => Err(format!("names {bad:?}; must be the plain name of a .safetensors file")),
        None => Ok(weight_map),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_lists_each_shard_once() {
        let index = r#"{"metadata": {}, "weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
        assert_eq!(shards(index).unwrap().into_iter().collect::<Vec<_>>(), ["m-1.safetensors", "m-2.safetensors"]);
    }

    #[test]
    fn an_index_cannot_point_elsewhere() {
        for name in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", ".safetensors"] {
            assert!(shards(&format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#)).is_err(), "{name}");
        }
        assert!(shards("{}").is_err() && shards(r#"{"weight_map": {}}"#).is_err());
    }
}
