//! The weight files of a snapshot folder: `model.safetensors`, whole or in shards, mapped into memory.
//!
//! The format is a length, a JSON header with each tensor's type, shape and place, and the bytes. Headers are checked
//! whole before anything is read, so that a cut or foreign file is told as such.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde::Deserialize;

use crate::base::{Context, Error, Kind, Result};
use crate::model::matrix::{Bytes, Type};

/// Open weight files and what is in them.
pub struct Files {
    files: Vec<Source>,
    tensors: BTreeMap<String, Stored>,
}

struct Source {
    path: PathBuf,
    map: Arc<Mmap>,
}

/// Where and as what a tensor is stored.
#[derive(Clone)]
pub struct Stored {
    /// As the file names it: `F32`, `BF16`, `I64`.
    pub ty: String,
    /// As the file has it.
    pub shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
}

impl Stored {
    /// Its type, where weights can be of it.
    pub fn float(&self) -> Option<Type> {
        match self.ty.as_str() {
            "F32" => Some(Type::F32),
            "F16" => Some(Type::F16),
            "BF16" => Some(Type::Bf16),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Header {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl Files {
    /// Opens the weight files of a snapshot folder.
    ///
    /// # Errors
    /// When one is missing, cut short or no safetensors file, or two hold the same tensor; the sentence names it.
    pub fn open(folder: &Path) -> Result<Self> {
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::<String, Stored>::new());
        let (paths, index) = weight_files(folder)?;
        for path in paths {
            for (name, stored) in read_header(&path, files.len())? {
                if let Some(other) = tensors.insert(name.clone(), stored) {
                    let other: &Source = &files[other.file];
                    return Err(Error::new(
                        Kind::Model,
                        format!("tensor {name} is in {} and in {}; must be in one of them", other.path.display(), path.display()),
                    ));
                }
            }
            let map = map(&path).context(Kind::Model, || format!("cannot map {}", path.display()))?;
            files.push(Source { map: Arc::new(map), path });
        }
        for (name, file) in index {
            if !tensors.get(&name).is_some_and(|stored| files[stored.file].path.ends_with(&file)) {
                let path = folder.join(INDEX);
                return Err(Error::new(
                    Kind::Model,
                    format!("tensor {name} is not in {file}, where {} has it; fetch both again", path.display()),
                ));
            }
        }
        Ok(Self { files, tensors })
    }

    /// What is stored under a name.
    pub fn find(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// Every tensor.
    pub fn tensors(&self) -> impl Iterator<Item = (&String, &Stored)> {
        self.tensors.iter()
    }

    /// The files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// A tensor's bytes, in the mapped file.
    pub fn bytes(&self, stored: &Stored) -> Bytes {
        Bytes::Mapped(Arc::clone(&self.files[stored.file].map), stored.range.clone())
    }

    /// Reads part of a tensor's bytes past the map: what is read once need not stay in this process's memory.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, stored: &Stored, part: Range<usize>) -> Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let path = &self.files[stored.file].path;
        let fail = || format!("cannot read {}", path.display());
        let mut bytes = vec![0; part.len()];
        let file = File::open(path).context(Kind::Model, fail)?;
        file.read_exact_at(&mut bytes, (stored.range.start + part.start) as u64).context(Kind::Model, fail)?;
        Ok(bytes)
    }
}

/// Reads a text file of a snapshot.
///
/// # Errors
/// When it is missing or unreadable; the sentence names it.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => missing(path),
        _ => Error::new(Kind::Model, format!("cannot read {}", path.display())).because(error),
    })
}

fn missing(path: &Path) -> Error {
    let (file, folder) = (path.file_name().unwrap_or_default().to_string_lossy(), path.parent().unwrap_or(path).display());
    Error::new(
        Kind::Model,
        format!(
            "{file} is missing in {folder}; a model's folder must hold config.json, tokenizer.json \
             and model.safetensors or model.safetensors.index.json with its shards"
        ),
    )
}

const INDEX: &str = "model.safetensors.index.json";

/// The weight files, in order, and for shards which tensor must be in which.
fn weight_files(folder: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, String>)> {
    let (whole, index) = (folder.join("model.safetensors"), folder.join(INDEX));
    if whole.exists() {
        return Ok((vec![whole], BTreeMap::new()));
    }
    if !index.exists() {
        return Err(missing(&whole));
    }
    let text = read_text(&index)?;
    let wrong = |why| Error::new(Kind::Model, format!("{} {why}", index.display()));
    let names = shards(&text).map_err(wrong)?;
    let path = |name: String| {
        let path = folder.join(&name);
        let named = || Error::new(Kind::Model, format!("{name} is missing in {}; {} names it", folder.display(), index.display()));
        if path.exists() { Ok(path) } else { Err(named()) }
    };
    Ok((names.into_iter().map(path).collect::<Result<_>>()?, read_index(&text).map_err(wrong)?))
}

fn read_index(index: &str) -> std::result::Result<BTreeMap<String, String>, String> {
    let index: Index = serde_json::from_str(index).map_err(|error| format!("is not an index of weight files: {error}"))?;
    Ok(index.weight_map)
}

/// The names of the shards that an index lists. They must be plain file names: the index comes from elsewhere.
pub fn shards(index: &str) -> std::result::Result<BTreeSet<String>, String> {
    let names: BTreeSet<String> = read_index(index)?.into_values().collect();
    if names.is_empty() {
        return Err("lists no weight files; must have a weight_map".to_owned());
    }
    match names.iter().find(|name| name.contains(['/', '\\']) || !name.ends_with(".safetensors") || name.starts_with('.')) {
        Some(bad) => Err(format!("names {bad:?}; must be the plain name of a .safetensors file")),
        None => Ok(names),
    }
}

/// The tensors of a file, by its header.
fn read_header(path: &Path, file: usize) -> Result<Vec<(String, Stored)>> {
    use std::io::Read;
    let refuse = |why: String| Err(Error::new(Kind::Model, format!("{} {why}; fetch it again", path.display())));
    let mut open = File::open(path).context(Kind::Model, || format!("cannot open {}", path.display()))?;
    let len = open.metadata().context(Kind::Model, || format!("cannot read {}", path.display()))?.len();
    let mut start = [0; 8];
    if open.read_exact(&mut start).is_err() {
        return refuse(format!("has {len} bytes and is no safetensors file"));
    }
    let header_len = u64::from_le_bytes(start);
    if header_len > 100_000_000 {
        return refuse("is no safetensors file".to_owned());
    }
    let mut header = vec![0; header_len as usize];
    if open.read_exact(&mut header).is_err() {
        return refuse(format!("is cut short: it has {len} bytes and must have over {}", header_len.saturating_add(8)));
    }
    let Ok(serde_json::Value::Object(entries)) = serde_json::from_slice(&header) else {
        return refuse("is no safetensors file".to_owned());
    };
    let (mut tensors, mut whole) = (Vec::new(), header_len + 8);
    for (name, entry) in entries.into_iter().filter(|(name, _)| name != "__metadata__") {
        let Ok(Header { dtype: ty, shape, data_offsets: [from, to] }) = serde_json::from_value(entry) else {
            return refuse(format!("has no place for tensor {name}"));
        };
        let base = header_len as usize + 8;
        let (Some(start), Some(end)) = (base.checked_add(from), base.checked_add(to)) else {
            return refuse(format!("has no place for tensor {name}"));
        };
        let stored = Stored { ty, shape, file, range: start..end };
        let count = stored.shape.iter().try_fold(1_usize, |count, &side| count.checked_mul(side));
        let needed = stored.float().map(|float| count.and_then(|count| count.checked_mul(float.block_bytes())));
        if to < from || needed.is_some_and(|needed| needed != Some(to - from)) {
            return refuse(format!(
                "has {} bytes for tensor {name} of shape {:?} and type {}",
                to.saturating_sub(from),
                stored.shape,
                stored.ty
            ));
        }
        whole = whole.max(end as u64);
        tensors.push((name, stored));
    }
    if len < whole {
        return refuse(format!("is cut short: it has {len} bytes and must have {whole}"));
    }
    Ok(tensors)
}

/// Maps a file of weights into memory.
#[allow(unsafe_code)]
pub fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: a mapped file that another process cuts short or rewrites would change under us. Weight files are written
    // once: the downloader and the store rename whole files into place and never write to them again.
    unsafe { Mmap::map(&file) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

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

    #[test]
    fn a_header_that_lies_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        for (header, part) in [
            (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,8]}}"#, "has 8 bytes for tensor a of shape [2, 2] and type F32"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, "has 0 bytes for tensor a"),
            (r#"{"a":{"dtype":"F32","shape":[2]}}"#, "has no place for tensor a"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[99,107]}}"#, "is cut short"),
        ] {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header.as_bytes());
            bytes.resize(bytes.len() + 16, 0);
            std::fs::write(&path, bytes).unwrap();
            let said = Files::open(folder.path()).err().unwrap().chain();
            assert!(said.contains(part), "{said}");
        }
    }
}
