//! The weights of a snapshot folder: `model.safetensors`, whole or in shards, mapped into memory and read by name.
//!
//! Checkpoints name the same tensors in three ways, after the `transformers` version that saved them; which one is found
//! out once, per part of the network. Every tensor is checked for its shape before it is copied.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::safetensors::{Load, MmapedSafetensors};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::base::{Context, Error, Kind, Result};

/// A part of the network whose tensors share a prefix.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// The decoder.
    Language,
    /// The image tower.
    Vision,
    /// The layer between them.
    Projector,
    /// The output table, where it is not the embedding table.
    Head,
}

impl Part {
    /// The prefixes in use, the hub's own first, and a tensor that tells which it is.
    fn namings(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Language => (&["language_model.model", "model.language_model", "model.language_model.model"], "embed_tokens.weight"),
            Self::Vision => (
                &["vision_tower.vision_model", "model.vision_tower.vision_model", "model.vision_tower", "vision_tower"],
                "embeddings.patch_embedding.weight",
            ),
            Self::Projector => (&["multi_modal_projector", "model.multi_modal_projector"], "linear.weight"),
            Self::Head => (&["language_model.lm_head", "lm_head", "model.lm_head"], "weight"),
        }
    }
}

/// Open weight files, and where and as what their tensors are wanted.
pub struct Weights {
    files: MmapedSafetensors,
    folder: PathBuf,
    device: Device,
    dtype: DType,
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

impl Weights {
    /// Opens the weight files of a snapshot folder; tensors will be put on `device` as `dtype`.
    ///
    /// # Errors
    /// When a file is missing, cut short or no safetensors file; the sentence names it.
    pub fn open(folder: &Path, device: Device, dtype: DType) -> Result<Self> {
        let paths = weight_files(folder)?;
        for path in &paths {
            check(path)?;
        }
        let files = map(&paths).context(Kind::Model, || format!("cannot map the weights in {}", folder.display()))?;
        Ok(Self { files, folder: folder.to_owned(), device, dtype })
    }

    /// The tensors of one part.
    pub fn part(&self, part: Part) -> Scope<'_> {
        let (prefixes, sign) = part.namings();
        let found = prefixes.iter().find(|prefix| self.files.get(&format!("{prefix}.{sign}")).is_ok());
        Scope { weights: self, prefix: (*found.unwrap_or(&prefixes[0])).to_owned() }
    }
}

/// The tensors under a prefix.
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// The tensors one level down.
    pub fn sub(&self, name: impl std::fmt::Display) -> Self {
        Self { weights: self.weights, prefix: format!("{}.{name}", self.prefix) }
    }

    /// Reads `name` in the type asked of [`Weights::open`].
    ///
    /// # Errors
    /// When it is missing, of another shape, or not of floats.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get_as(name, shape, self.weights.dtype)
    }

    /// Reads `name` in 32-bit floats, for norms.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn get_f32(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get_as(name, shape, DType::F32)
    }

    /// Whether products are computed on the processor.
    pub fn on_host(&self) -> bool {
        self.weights.device.is_cpu()
    }

    /// Stopgap.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<crate::model::matrix::Matrix> {
        let values: Vec<f32> =
            self.get_f32(name, &[rows, cols])?.flatten_all().context(Kind::Internal, || "")?.to_vec1().context(Kind::Internal, || "")?;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        crate::model::matrix::Matrix::new(
            crate::model::matrix::Type::F32,
            rows,
            cols,
            crate::model::matrix::Bytes::Owned(std::sync::Arc::new(bytes)),
        )
    }

    fn get_as(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let Weights { files, folder, device, .. } = self.weights;
        let (name, folder) = (format!("{}.{name}", self.prefix), folder.display());
        let refuse = |why: String| Err(Error::new(Kind::Model, format!("tensor {name} in {folder} {why}")));
        let Ok(view) = files.get(&name) else {
            return refuse(format!("is missing; must be there with shape {shape:?}"));
        };
        if view.shape() != shape {
            return refuse(format!("has shape {:?}; must be {shape:?}", view.shape()));
        }
        let stored = format!("{:?}", view.dtype());
        if !["F32", "F16", "BF16"].contains(&stored.as_str()) {
            return refuse(format!("is of type {stored}; must be F32, F16 or BF16"));
        }
        // Converted on the processor: a GPU then never holds both forms.
        let read = view.load(&Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype)?.to_device(device));
        read.context(Kind::Model, || format!("cannot read tensor {name} in {folder}"))
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

/// The weight files, in order.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let whole = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if whole.exists() || !index.exists() {
        return if whole.exists() { Ok(vec![whole]) } else { Err(missing(&whole)) };
    }
    shards(&read_text(&index)?)
        .map_err(|why| Error::new(Kind::Model, format!("{} {why}", index.display())))?
        .into_iter()
        .map(|name| {
            let path = folder.join(&name);
            let named = || Error::new(Kind::Model, format!("{name} is missing in {}; {} names it", folder.display(), index.display()));
            if path.exists() { Ok(path) } else { Err(named()) }
        })
        .collect()
}

/// The names of the shards that an index lists. They must be plain file names: the index comes from elsewhere.
pub fn shards(index: &str) -> std::result::Result<BTreeSet<String>, String> {
    let index: Index = serde_json::from_str(index).map_err(|error| format!("is not an index of weight files: {error}"))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.is_empty() {
        return Err("lists no weight files; must have a weight_map".to_owned());
    }
    match names.iter().find(|name| name.contains(['/', '\\']) || !name.ends_with(".safetensors") || name.starts_with('.')) {
        Some(bad) => Err(format!("names {bad:?}; must be the plain name of a .safetensors file")),
        None => Ok(names),
    }
}

/// Tells a cut or foreign file by its header, before it is mapped, so that the sentence can say which it is.
fn check(path: &Path) -> Result<()> {
    use std::io::Read;
    let refuse = |why: String| Err(Error::new(Kind::Model, format!("{} {why}; fetch it again", path.display())));
    let mut file = std::fs::File::open(path).context(Kind::Model, || format!("cannot open {}", path.display()))?;
    let len = file.metadata().context(Kind::Model, || format!("cannot read {}", path.display()))?.len();
    let mut start = [0; 8];
    if file.read_exact(&mut start).is_err() {
        return refuse(format!("has {len} bytes and is no safetensors file"));
    }
    let header_len = u64::from_le_bytes(start);
    if header_len > 100_000_000 {
        return refuse("is no safetensors file".to_owned());
    }
    let mut header = vec![0; header_len as usize];
    if file.read_exact(&mut header).is_err() {
        return refuse(format!("is cut short: it has {len} bytes and must have over {}", header_len.saturating_add(8)));
    }
    let Ok(serde_json::Value::Object(tensors)) = serde_json::from_slice(&header) else {
        return refuse("is no safetensors file".to_owned());
    };
    let ends = tensors.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    let whole = ends.max().unwrap_or(0).saturating_add(header_len + 8);
    if len < whole {
        return refuse(format!("is cut short: it has {len} bytes and must have {whole}"));
    }
    Ok(())
}

/// Maps weight files into memory.
#[allow(unsafe_code)]
fn map(paths: &[PathBuf]) -> candle_core::Result<MmapedSafetensors> {
    // SAFETY: a mapped file that another process cuts short or rewrites would change under us. Weight files are written
    // once: the downloader renames whole files into place, and every tensor is copied out before `PaliGemma::load` returns.
    unsafe { MmapedSafetensors::multi(paths) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

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
