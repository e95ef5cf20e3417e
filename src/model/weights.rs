//! The weights of a snapshot folder, by name: on the processor as they are stored or quantised, else as tensors of the
//! device.
//!
//! Checkpoints name the same tensors in three ways, after the `transformers` version that saved them; which one is found
//! out once, per part of the network. Every tensor is checked for its shape before it is used, and one that nothing takes
//! is refused: a network that is not the one expected must not answer.

mod files;
mod key;
mod quantise;
mod random;
mod store;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::base::{Context, Error, Kind, Result};
use crate::model::hub::Progress;
use crate::model::matrix::{Bytes, Matrix, Type};
use crate::types::Dtype;

use files::{Files, Stored};
use store::Store;

pub use files::{read_text, shards};
pub use store::cache_folder;

/// A part of the network whose tensors share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// As what and where weights are wanted.
pub struct Wanted {
    /// What computes with them.
    pub device: Device,
    /// Their type; not `auto`.
    pub dtype: Dtype,
    /// Whether the output table is the embedding table.
    pub tied: bool,
    /// Where quantised weights are kept; `None`: nowhere.
    pub cache: Option<PathBuf>,
    /// Told of quantising: bytes done and bytes in all.
    pub progress: Option<Progress>,
}

impl Wanted {
    /// The type of a matrix of a part. The tower's widths are no multiples of 256 and it is read once a frame, so 8 bits
    /// suffice and cost nothing; tables decide on words, and stay at 8 bits beside layers of 4.
    fn ty(&self, part: Part, table: bool) -> Type {
        match self.dtype {
            Dtype::Auto | Dtype::F32 => Type::F32,
            Dtype::F16 => Type::F16,
            Dtype::Bf16 => Type::Bf16,
            Dtype::Q6K if part == Part::Language || part == Part::Head => Type::Q6K,
            Dtype::Q4K if part == Part::Language && !table => Type::Q4K,
            Dtype::Q8_0 | Dtype::Q6K | Dtype::Q4K => Type::Q8_0,
        }
    }

    /// The type of tensors on a device.
    fn device_type(&self) -> DType {
        match self.dtype {
            _ if self.device.is_cpu() => DType::F32,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            _ => DType::BF16,
        }
    }
}

/// Open weight files, and where and as what their tensors are wanted.
pub struct Weights {
    source: Source,
    wanted: Wanted,
    folder: PathBuf,
    /// The names that something took.
    taken: RefCell<BTreeSet<String>>,
}

enum Source {
    Files(Files, Option<Store>),
    Random,
}

impl Weights {
    /// Opens the weight files of a snapshot folder, and what is kept of them quantised; quantises where nothing is yet.
    ///
    /// # Errors
    /// When a file is missing, cut short or no safetensors file; the sentence names it.
    pub fn open(folder: &Path, name: &str, wanted: Wanted) -> Result<Self> {
        let files = Files::open(folder)?;
        let mut weights = Self { source: Source::Random, wanted, folder: folder.to_owned(), taken: RefCell::default() };
        let plan = weights.plan(&files);
        let store = if plan.is_empty() { None } else { Store::open(&files, folder, name, &plan, &weights.wanted) };
        weights.source = Source::Files(files, store);
        Ok(weights)
    }

    /// Random weights of any shape.
    pub fn random(wanted: Wanted) -> Self {
        Self { source: Source::Random, wanted, folder: PathBuf::new(), taken: RefCell::default() }
    }

    /// Every matrix that is to be quantised, with its type.
    fn plan(&self, files: &Files) -> Vec<(String, Type)> {
        let mut plan = Vec::new();
        for part in [Part::Language, Part::Vision, Part::Projector, Part::Head] {
            if part == Part::Head && self.wanted.tied {
                continue;
            }
            let prefix = format!("{}.", prefix(part, files));
            for (name, stored) in files.tensors().filter(|(name, _)| name.starts_with(&prefix)) {
                let ty = self.wanted.ty(part, name.ends_with("embed_tokens.weight") || part == Part::Head);
                let matrix = ["_proj.weight", "fc1.weight", "fc2.weight", "linear.weight", "embed_tokens.weight", "lm_head.weight"];
                if ty.is_quantised() && stored.shape.len() == 2 && matrix.iter().any(|end| name.ends_with(end)) {
                    plan.push((name.clone(), ty));
                }
            }
        }
        plan
    }

    /// The tensors of one part.
    pub fn part(&self, part: Part) -> Scope<'_> {
        let prefix = match &self.source {
            Source::Files(files, _) => prefix(part, files),
            Source::Random => part.namings().0[0],
        };
        Scope { weights: self, part, prefix: prefix.to_owned() }
    }

    /// To be called when the network has taken what it needs.
    ///
    /// # Errors
    /// When the checkpoint holds a tensor that nothing took; the sentence names it.
    pub fn finish(&self) -> Result<()> {
        let Source::Files(files, _) = &self.source else { return Ok(()) };
        let taken = self.taken.borrow();
        let extra = files.tensors().find(|(name, _)| !taken.contains(*name) && !self.is_ignored(name));
        extra.map_or(Ok(()), |(name, stored)| {
            let (shape, folder) = (&stored.shape, self.folder.display());
            let why = format!("has shape {shape:?}; must not be there, for nothing in the network that config.json describes takes it");
            Err(Error::new(Kind::Model, format!("tensor {name} in {folder} {why}")))
        })
    }

    /// What saved models hold besides weights, and `transformers` passes over too: tables it computes anew, and a tied
    /// output table. The tower's pooling head is part of SigLIP and of no PaliGemma.
    fn is_ignored(&self, name: &str) -> bool {
        let tied = self.wanted.tied && name.ends_with("lm_head.weight");
        tied || [".position_ids", ".rotary_emb.inv_freq"].iter().any(|end| name.ends_with(end)) || name.contains("vision_model.head.")
    }
}

/// The prefix of a part in a checkpoint.
fn prefix(part: Part, files: &Files) -> &'static str {
    let (prefixes, sign) = part.namings();
    prefixes.iter().find(|prefix| files.find(&format!("{prefix}.{sign}")).is_some()).unwrap_or(&prefixes[0])
}

/// The tensors under a prefix.
pub struct Scope<'a> {
    weights: &'a Weights,
    part: Part,
    prefix: String,
}

impl Scope<'_> {
    /// The tensors one level down.
    pub fn sub(&self, name: impl std::fmt::Display) -> Self {
        Self { weights: self.weights, part: self.part, prefix: format!("{}.{name}", self.prefix) }
    }

    /// Whether products are computed on the processor.
    pub fn on_host(&self) -> bool {
        self.weights.wanted.device.is_cpu()
    }

    /// Reads `name` as a matrix for products on the processor. Floats that the checkpoint holds in a narrower type stay
    /// in that: products widen them, and lose nothing.
    ///
    /// # Errors
    /// When it is missing, of another shape, or not of floats.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let table = self.part == Part::Head || self.prefix.ends_with("embed_tokens");
        let ty = self.weights.wanted.ty(self.part, table);
        let full = format!("{}.{name}", self.prefix);
        let Source::Files(files, store) = &self.weights.source else { return random::matrix(&full, ty, rows, cols) };
        let (stored, float) = self.find(files, &full, &[rows, cols])?;
        if let Some(kept) = store.as_ref().and_then(|store| store.matrix(&full, ty, rows, cols)) {
            return Ok(kept);
        }
        if float == ty || ty == Type::F32 {
            return Matrix::new(float, rows, cols, files.bytes(stored));
        }
        let bytes = quantise::whole(files, stored, float, ty).context(Kind::Model, || format!("cannot convert tensor {full}"))?;
        Matrix::new(ty, rows, cols, Bytes::Owned(bytes.into()))
    }

    /// Reads `name` in the type of the device's weights.
    ///
    /// # Errors
    /// When it is missing, of another shape, or not of floats.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get_as(name, shape, self.weights.wanted.device_type())
    }

    /// Reads `name` in 32-bit floats, for norms.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn get_f32(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get_as(name, shape, DType::F32)
    }

    fn get_as(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let full = format!("{}.{name}", self.prefix);
        let read = || format!("cannot read tensor {full}");
        let tensor = match &self.weights.source {
            Source::Random => random::tensor(&full, shape)?,
            Source::Files(files, _) => {
                let (stored, float) = self.find(files, &full, shape)?;
                let (bytes, dtype) = (files.bytes(stored), float_type(float));
                Tensor::from_raw_buffer(bytes.get(), dtype, shape, &Device::Cpu).context(Kind::Model, read)?
            }
        };
        // Converted on the processor: a GPU then never holds both forms.
        tensor.to_dtype(dtype).and_then(|tensor| tensor.to_device(&self.weights.wanted.device)).context(Kind::Model, read)
    }

    /// Where a tensor of a shape is stored, and in which type.
    fn find<'f>(&self, files: &'f Files, name: &str, shape: &[usize]) -> Result<(&'f Stored, Type)> {
        let folder = self.weights.folder.display();
        let refuse = |why: String| Error::new(Kind::Model, format!("tensor {name} in {folder} {why}"));
        let stored = files.find(name).ok_or_else(|| refuse(format!("is missing; must be there with shape {shape:?}")))?;
        if stored.shape != shape {
            return Err(refuse(format!("has shape {:?}; must be {shape:?}", stored.shape)));
        }
        let float = stored.float().ok_or_else(|| refuse(format!("is of type {}; must be F32, F16 or BF16", stored.ty)))?;
        self.weights.taken.borrow_mut().insert(name.to_owned());
        Ok((stored, float))
    }
}

fn float_type(ty: Type) -> DType {
    match ty {
        Type::F16 => DType::F16,
        Type::Bf16 => DType::BF16,
        _ => DType::F32,
    }
}
