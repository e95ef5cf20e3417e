//! Quantised weights on the disk, so that they are quantised once: a GGUF file per checkpoint and type, mapped into memory.
//!
//! The file holds the matrices under their names in the checkpoint, rows filled up to whole blocks; what is small is read
//! from the checkpoint each time. It is written beside its place and moved there whole, so a reader finds all or nothing,
//! and of two that write at once the later wins. Where nothing can be kept the weights are quantised into memory, at each
//! start: slower, and told, but no reason not to start.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use memmap2::Mmap;

use crate::base::{Context, Error, Kind, Result};
use crate::model::matrix::{Bytes, Matrix, Type};
use crate::model::weights::files::{self, Files};
use crate::model::weights::key::Keys;
use crate::model::weights::{Wanted, quantise};

/// Counted up when the same checkpoint and type come to other bytes.
const LAYOUT: u32 = 1;

/// Data begin at multiples of so many bytes.
const ALIGNMENT: usize = 32;

/// What was being written so long ago is nobody's any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// An open file of quantised weights.
pub struct Store {
    map: Arc<Mmap>,
    tensors: HashMap<String, (GgmlDType, Vec<usize>, usize)>,
}

/// Where quantised weights are kept, by the environment: `PALISADE_CACHE`, the service's `CACHE_DIRECTORY`,
/// `XDG_CACHE_HOME/palisade`, `HOME/.cache/palisade`; `None` where there is no home.
pub fn cache_folder(var: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    let service = || var("CACHE_DIRECTORY").and_then(|all| all.split(':').next().map(PathBuf::from));
    let home = || var("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| var("HOME").map(|home| Path::new(&home).join(".cache")));
    var("PALISADE_CACHE").map(PathBuf::from).or_else(service).or_else(|| home().map(|home| home.join("palisade")))
}

impl Store {
    /// The matrices of `plan`, quantised now where they are not kept yet; `None` where they cannot be.
    pub fn open(files: &Files, folder: &Path, name: &str, plan: &[(String, Type)], wanted: &Wanted) -> Option<Self> {
        let dtype = wanted.dtype.name();
        let kept = wanted.cache.as_ref().map(|cache| cache.join("weights"));
        let opened = match &kept {
            None => Err(Error::new(Kind::Io, "there is no folder to keep them in; must be in PALISADE_CACHE, or HOME must be set")),
            Some(kept) => Self::open_in(kept, files, folder, name, plan, wanted),
        };
        opened
            .inspect_err(|error| {
                tracing::warn!("weights of {name} are quantised to {dtype} in memory, at each start anew: {}", error.chain());
            })
            .ok()
    }

    fn open_in(kept: &Path, files: &Files, folder: &Path, name: &str, plan: &[(String, Type)], wanted: &Wanted) -> Result<Self> {
        let fail = || format!("{} cannot be used", kept.display());
        fs::create_dir_all(kept).context(Kind::Io, fail)?;
        let meter = Meter::new(files, plan, wanted);
        let config = folder.join("config.json");
        let key = Keys { folder: Some(kept), progress: &|bytes| meter.add(bytes) };
        let key = key.of(std::iter::once(config.as_path()).chain(files.paths()))?;
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' }).collect();
        let path = kept.join(format!("{}-{key}-{}.gguf", &plain[..plain.len().min(80)], wanted.dtype.name()));
        if path.exists() {
            match Self::read(&path, files, plan) {
                Ok(store) => return Ok(store),
                Err(error) => tracing::warn!("{} is damaged and made anew: {}", path.display(), error.chain()),
            }
        }
        sweep(kept);
        let begin = Instant::now();
        tracing::info!("quantising {name} to {}, once; kept as {}", wanted.dtype.name(), path.display());
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let part = kept.join(format!(".{}.{}.part", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        let written = write(&part, files, name, plan, &meter)
            .and_then(|()| fs::rename(&part, &path).context(Kind::Io, || format!("{} cannot be put in place", path.display())));
        if let Err(error) = written {
            fs::remove_file(&part).ok();
            return Err(error);
        }
        // The name too must outlast a loss of power; where it cannot be made to, it is made anew.
        File::open(kept).and_then(|folder| folder.sync_all()).ok();
        tracing::info!(seconds = begin.elapsed().as_secs_f32(), "quantised {name}");
        Self::read(&path, files, plan)
    }

    /// Opens a file and checks that it holds the whole plan.
    fn read(path: &Path, files: &Files, plan: &[(String, Type)]) -> Result<Self> {
        let wrong = |why: String| Error::new(Kind::Model, why);
        let mut file = File::open(path).context(Kind::Io, || "it cannot be opened")?;
        let len = file.metadata().context(Kind::Io, || "it cannot be read")?.len() as usize;
        let content = Content::read(&mut file).context(Kind::Model, || "it is no GGUF file")?;
        let layout = content.metadata.get("palisade.layout").and_then(|layout| layout.to_u32().ok());
        if layout != Some(LAYOUT) {
            return Err(wrong(format!("its layout is {layout:?}; must be {LAYOUT}")));
        }
        let start = content.tensor_data_offset as usize;
        let mut tensors = HashMap::new();
        for (name, ty) in plan {
            let shape = shape(files, name, *ty);
            let info = content.tensor_infos.get(name).ok_or_else(|| wrong(format!("tensor {name} is missing")))?;
            if info.ggml_dtype != quantise::ggml(*ty) || info.shape.dims() != shape {
                return Err(wrong(format!("tensor {name} is {:?} {:?}; must be {ty:?} {shape:?}", info.ggml_dtype, info.shape.dims())));
            }
            let end = start.saturating_add(info.offset as usize).saturating_add(shape[0] * ty.row_bytes(shape[1]));
            if end > len {
                return Err(wrong(format!("it has {len} bytes; must have {end}")));
            }
            tensors.insert(name.clone(), (info.ggml_dtype, shape, start + info.offset as usize));
        }
        let map = files::map(path).context(Kind::Io, || "it cannot be mapped")?;
        Ok(Self { map: Arc::new(map), tensors })
    }

    /// A matrix, if it is kept in this type.
    pub fn matrix(&self, name: &str, ty: Type, rows: usize, cols: usize) -> Option<Matrix> {
        let (kept, shape, start) = self.tensors.get(name)?;
        if *kept != quantise::ggml(ty) || *shape != [rows, cols.next_multiple_of(ty.block())] {
            return None;
        }
        let range: Range<usize> = *start..start + rows * ty.row_bytes(cols);
        Matrix::new(ty, rows, cols, Bytes::Mapped(Arc::clone(&self.map), range)).ok()
    }
}

/// A matrix's shape in the file: rows filled up to whole blocks.
fn shape(files: &Files, name: &str, ty: Type) -> Vec<usize> {
    let shape = files.find(name).map_or(&[0, 0][..], |stored| &stored.shape);
    vec![shape[0], shape[1].next_multiple_of(ty.block())]
}

/// Removes what was begun and never finished.
fn sweep(kept: &Path) {
    let now = SystemTime::now();
    for entry in fs::read_dir(kept).into_iter().flatten().flatten() {
        let old = entry.metadata().and_then(|data| data.modified()).is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > ABANDONED));
        if old && entry.path().extension().is_some_and(|end| end == "part") {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// Counts bytes of the checkpoint that are done.
struct Meter<'a> {
    done: std::cell::Cell<u64>,
    all: u64,
    wanted: &'a Wanted,
}

impl<'a> Meter<'a> {
    fn new(files: &Files, plan: &[(String, Type)], wanted: &'a Wanted) -> Self {
        let bytes = |(name, _): &(String, Type)| files.find(name).map_or(0, |stored| files.bytes(stored).get().len() as u64);
        Self { done: std::cell::Cell::new(0), all: 2 * plan.iter().map(bytes).sum::<u64>(), wanted }
    }

    fn add(&self, bytes: u64) {
        self.done.set(self.all.min(self.done.get() + bytes));
        if let Some(progress) = &self.wanted.progress {
            progress(self.done.get(), self.all);
        }
    }
}

/// Writes the file: GGUF version 3, header first, for every size is known.
fn write(path: &Path, files: &Files, name: &str, plan: &[(String, Type)], meter: &Meter<'_>) -> Result<()> {
    let fail = || format!("{} cannot be written", path.display());
    let file = File::create_new(path).context(Kind::Io, fail)?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    let header = header(files, name, plan);
    out.write_all(&header).context(Kind::Io, fail)?;
    for (name, ty) in plan {
        let stored = files.find(name).filter(|stored| stored.float().is_some());
        let of_floats = || Error::new(Kind::Model, format!("tensor {name} is not of type F32, F16 or BF16"));
        let stored = stored.ok_or_else(of_floats)?;
        let from = stored.float().ok_or_else(of_floats)?;
        let mut len = 0;
        quantise::in_parts(files, stored, from, *ty, |part| {
            len += part.len();
            meter.add((part.len() / ty.block_bytes() * ty.block() * from.block_bytes()) as u64);
            out.write_all(part).context(Kind::Io, fail)
        })?;
        out.write_all(&[0; ALIGNMENT][..len.next_multiple_of(ALIGNMENT) - len]).context(Kind::Io, fail)?;
    }
    out.flush().context(Kind::Io, fail)?;
    file.sync_all().context(Kind::Io, fail)
}

fn header(files: &Files, name: &str, plan: &[(String, Type)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let metadata = [
        ("general.architecture", Value::String("paligemma".to_owned())),
        ("general.name", Value::String(name.to_owned())),
        ("general.alignment", Value::U32(ALIGNMENT as u32)),
        ("palisade.layout", Value::U32(LAYOUT)),
    ];
    out.extend(3_u32.to_le_bytes());
    out.extend((plan.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        match value {
            Value::String(value) => {
                out.extend(8_u32.to_le_bytes());
                text(&mut out, &value);
            }
            value => {
                out.extend(4_u32.to_le_bytes());
                out.extend(value.to_u32().unwrap_or_default().to_le_bytes());
            }
        }
    }
    let mut offset = 0_u64;
    for (name, ty) in plan {
        let shape = shape(files, name, *ty);
        text(&mut out, name);
        out.extend(2_u32.to_le_bytes());
        // The fastest dimension first.
        shape.iter().rev().for_each(|&side| out.extend((side as u64).to_le_bytes()));
        let ggml: u32 = match ty {
            Type::F32 => 0,
            Type::F16 => 1,
            Type::Q8_0 => 8,
            Type::Q4K => 12,
            Type::Q6K => 14,
            Type::Bf16 => 30,
        };
        out.extend(ggml.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (shape[0] * ty.row_bytes(shape[1])).next_multiple_of(ALIGNMENT) as u64;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}
