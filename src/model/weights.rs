//! The weights of a network, by name: read from a snapshot folder's `model.safetensors`, whole or in shards, quantised
//! where that is wanted, or drawn at random.
//!
//! Checkpoints name the same tensors in several ways, after the `transformers` version that saved them; which one is found
//! out once, per part of the network. Every tensor is checked for its shape, and none may be left over.

mod checkpoint;
mod convert;
mod gguf;
mod index;
mod key;
mod part;
mod random;
mod store;
mod strict;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};

use crate::base::sync;
use crate::base::{Context, Error, Kind, Result};
use crate::model::config;
use crate::model::hub::Progress;
use crate::model::matrix::{Bytes, Matrix, Type};
use crate::model::ops;
use crate::types::Dtype;
use checkpoint::Checkpoint;
use gguf::Item;
use store::{Job, Store};

pub use index::shards;
pub use part::Part;

/// Where and as what a network's weights are wanted.
#[derive(Clone)]
pub struct Wanted {
    /// Where tensors are put. Matrices for our own products stay on the processor.
    pub device: Device,
    /// The type of matrices. Floats that the checkpoint has in fewer bits are not blown up to 32.
    pub ty: Type,
    /// The model's name, for the log and the names of files.
    pub name: String,
    /// The folder that keeps quantised weights; `None`: there is none, and they are made at each start.
    pub cache: Option<PathBuf>,
    /// Told of bytes done and bytes in all while weights are quantised.
    pub progress: Option<Progress>,
}

impl Wanted {
    /// For a device. `auto` is f32 on the processor and bf16 on a GPU.
    ///
    /// # Errors
    /// When quantised weights are wanted on a GPU.
    pub fn new(device: Device, dtype: Dtype) -> Result<Self> {
        let ty = resolve(dtype, ops::ours(&device))?;
        Ok(Self { device, ty, name: String::new(), cache: None, progress: None })
    }

    /// The type of tensors on the device: 32-bit floats on the processor, whose products take any matrix.
    pub fn dtype(&self) -> DType {
        match self.ty {
            _ if ops::ours(&self.device) => DType::F32,
            Type::F16 => DType::F16,
            Type::Bf16 => DType::BF16,
            _ => DType::F32,
        }
    }

    /// The type of a part's matrix. Tower and projector are read once a frame and cost little as bytes; the tables of words
    /// decide on the answer, and stay bytes beside layers of four bits.
    fn ty_of(&self, part: Part, name: &str) -> Type {
        match part {
            Part::Vision | Part::Projector if self.ty.is_quantised() => Type::Q8_0,
            Part::Language | Part::Head if self.ty == Type::Q4K && (part == Part::Head || name.ends_with(Part::Language.sign())) => {
                Type::Q8_0
            }
            _ => self.ty,
        }
    }
}

fn resolve(dtype: Dtype, on_processor: bool) -> Result<Type> {
    let ty = match dtype {
        Dtype::Auto if on_processor => Type::F32,
        Dtype::Auto | Dtype::Bf16 => Type::Bf16,
        Dtype::F32 => Type::F32,
        Dtype::F16 => Type::F16,
        Dtype::Q8_0 => Type::Q8_0,
        Dtype::Q6K => Type::Q6K,
        Dtype::Q4K => Type::Q4K,
    };
    if ty.is_quantised() && !on_processor {
        let name = dtype.name();
        return Err(Error::new(
            Kind::Config,
            format!(
                "model.dtype is {name}, but quantised weights are computed on the processor only; \
                 must be auto, f32, f16 or bf16 with a GPU"
            ),
        ));
    }
    Ok(ty)
}

/// The folder in which this program keeps what it can make again: `PALISADE_CACHE`, or the service manager's
/// `CACHE_DIRECTORY`, or `palisade` in the user's own cache folder; `None`: there is no home to put it in.
pub fn cache_folder(var: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    let absolute = |name: &str| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = var("PALISADE_CACHE").map(PathBuf::from);
    // The manager gives several folders as one list.
    let service = || var("CACHE_DIRECTORY").and_then(|list| list.split(':').find(|path| !path.is_empty()).map(PathBuf::from));
    let user = || absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    own.or_else(service).or_else(|| Some(user()?.join("palisade")))
}

/// A network's weights.
pub struct Weights {
    wanted: Wanted,
    source: Source,
}

enum Source {
    Files(Box<Files>),
    Random,
}

struct Files {
    checkpoint: Checkpoint,
    /// Quantised weights that were kept.
    store: Option<Store>,
    /// Every tensor that was asked for.
    asked: Mutex<BTreeSet<String>>,
}

impl Weights {
    /// Opens the weight files of a snapshot folder. Where quantised weights are wanted they are made now, if they are not
    /// in the cache.
    ///
    /// # Errors
    /// When a file is missing, cut short or no safetensors file, or files contradict each other; the sentence names it.
    /// A cache that cannot be used is no error: weights are then quantised into memory.
    pub fn open(folder: &Path, wanted: Wanted) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let store = if wanted.ty.is_quantised() { open_store(&checkpoint, &wanted)? } else { None };
        Ok(Self { wanted, source: Source::Files(Box::new(Files { checkpoint, store, asked: Mutex::default() })) })
    }

    /// Weights drawn at random: any tensor of any shape is there.
    pub fn random(wanted: Wanted) -> Self {
        Self { wanted, source: Source::Random }
    }

    /// The tensors of one part.
    pub fn part(&self, part: Part) -> Scope<'_> {
        let prefix = match &self.source {
            Source::Files(files) => part.prefix(&files.checkpoint),
            Source::Random => part.prefixes()[0],
        };
        Scope { weights: self, part, prefix: prefix.to_owned() }
    }

    /// To be called once all is read.
    ///
    /// # Errors
    /// When the checkpoint holds a tensor that nobody asked for; the sentence has its name and shape.
    pub fn finish(&self) -> Result<()> {
        match &self.source {
            Source::Files(files) => strict::check(&files.checkpoint, &sync::lock(&files.asked)),
            Source::Random => Ok(()),
        }
    }
}

/// The cache's file of quantised weights; `None`, and a warning, where it cannot be had.
fn open_store(checkpoint: &Checkpoint, wanted: &Wanted) -> Result<Option<Store>> {
    let cost = "so they are quantised at each start, into memory; set PALISADE_CACHE to a folder that this user can write";
    let Some(cache) = &wanted.cache else {
        tracing::warn!("there is no folder to keep quantised weights in, {cost}");
        return Ok(None);
    };
    let items = plan(checkpoint, wanted)?;
    let job = Job { checkpoint, items, ty: wanted.ty, name: &wanted.name, cache, progress: wanted.progress.as_ref() };
    Ok(store::open(&job).inspect_err(|why| tracing::warn!("quantised weights cannot be kept, {cost}: {}", why.chain())).ok())
}

/// The matrices of the network, by their names in the checkpoint: all weights of two dimensions and more but the table of
/// positions, which is added and never multiplied, and what the network does not take.
fn plan(checkpoint: &Checkpoint, wanted: &Wanted) -> Result<Vec<(String, Item)>> {
    let tied = config::read(checkpoint.folder())?.text.tied;
    let parts = Part::ALL.map(|part| (part, part.prefix(checkpoint)));
    let find = |name: &str| {
        let (part, rest) = parts.iter().find_map(|(part, prefix)| Some((*part, name.strip_prefix(prefix)?.strip_prefix('.')?)))?;
        let none = match part {
            Part::Head => tied,
            Part::Vision => rest.starts_with("head.") || rest.ends_with("position_embedding.weight"),
            Part::Language | Part::Projector => false,
        };
        (!none && rest.ends_with("weight")).then(|| (part, format!("{}.{rest}", part.short())))
    };
    let items = checkpoint.tensors().filter(|(_, stored)| stored.shape.len() > 1 && stored.ty().is_some());
    let items = items.filter_map(|(source, stored)| {
        let (part, name) = find(source).filter(|(_, name)| name.len() <= gguf::MAX_NAME)?;
        let (rows, cols) = stored.rows_and_cols();
        Some((source.clone(), Item { name, ty: wanted.ty_of(part, source), rows, cols }))
    });
    Ok(items.collect())
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

    /// Whether products are our own, on the processor.
    pub fn on_host(&self) -> bool {
        ops::ours(&self.weights.wanted.device)
    }

    /// Reads `name` in the type of [`Wanted::dtype`].
    ///
    /// # Errors
    /// When it is missing, of another shape, or not of floats.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get_as(name, shape, self.weights.wanted.dtype())
    }

    /// Reads `name` in 32-bit floats, for norms.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn get_f32(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get_as(name, shape, DType::F32)
    }

    /// A weight for products on the processor, in the type wanted: a linear layer's `[out, in]`, or one stored with more
    /// dimensions, such as a convolution; all after the first are one. Where 32-bit floats are wanted it stays in the type
    /// of the checkpoint, from which products expand it exactly.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<Matrix> {
        let name = format!("{}.{name}", self.prefix);
        let wanted = self.weights.wanted.ty_of(self.part, &name);
        let rows = shape.first().copied().unwrap_or(1);
        let cols = shape.iter().skip(1).product();
        let files = match &self.weights.source {
            Source::Files(files) => files,
            Source::Random => return random::matrix(&name, wanted, rows, cols),
        };
        let (stored, ty) = files.ask(&name, shape)?;
        if wanted == ty || wanted == Type::F32 {
            return Matrix::new(ty, rows, cols, files.checkpoint.mapped(stored));
        }
        if let Some(kept) = files.store.as_ref().and_then(|store| store.matrix(&name)) {
            return kept;
        }
        let mut bytes = Vec::with_capacity(rows * wanted.row_bytes(cols));
        convert::rows(&files.checkpoint, stored, wanted, |more| {
            bytes.extend_from_slice(more);
            Ok(())
        })?;
        Matrix::new(wanted, rows, cols, Bytes::Owned(Arc::new(bytes)))
    }

    fn get_as(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let device = &self.weights.wanted.device;
        let name = format!("{}.{name}", self.prefix);
        let read = match &self.weights.source {
            Source::Random => Tensor::from_vec(random::floats(&name, shape.iter().product()), shape, &Device::Cpu),
            Source::Files(files) => {
                let (stored, ty) = files.ask(&name, shape)?;
                let stored_as = match ty {
                    Type::F16 => DType::F16,
                    Type::Bf16 => DType::BF16,
                    _ => DType::F32,
                };
                Tensor::from_raw_buffer(files.checkpoint.bytes(stored), stored_as, shape, &Device::Cpu)
            }
        };
        // Converted on the processor: a GPU then never holds both forms.
        let read = read.and_then(|tensor| tensor.to_dtype(dtype)?.to_device(device));
        read.context(Kind::Model, || format!("cannot read tensor {name}"))
    }
}

impl Files {
    /// A tensor, noted as taken.
    fn ask(&self, name: &str, shape: &[usize]) -> Result<(&checkpoint::Stored, Type)> {
        sync::lock(&self.asked).insert(name.to_owned());
        self.checkpoint.get(name, shape)
    }
}

/// Reads a text file of a snapshot.
///
/// # Errors
/// When it is missing or unreadable; the sentence names it.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => index::missing(path),
        _ => Error::new(Kind::Model, format!("cannot read {}", path.display())).because(error),
    })
}

#[cfg(test)]
mod tests;
