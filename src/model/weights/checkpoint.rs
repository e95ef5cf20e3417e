//! The weight files of a snapshot folder: which tensors they hold, how, and where.
//!
//! The header of a `.safetensors` file is eight bytes of length and JSON; the tensors' bytes follow one after another.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use serde::Deserialize;

use super::index;
use crate::base::{Context, Error, Kind, Result};
use crate::model::matrix::{Bytes, Type};

/// The longest header taken, the format's own bound.
const MAX_HEADER: u64 = 100_000_000;

/// Open weight files.
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, Stored>,
}

struct WeightFile {
    path: PathBuf,
    file: File,
    map: Arc<Mmap>,
}

/// A tensor in a weight file.
#[derive(Clone, Debug)]
pub struct Stored {
    file: usize,
    dtype: String,
    range: Range<usize>,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Stored {
    /// Its type, where that is one of floats.
    pub fn ty(&self) -> Option<Type> {
        match self.dtype.as_str() {
            "F32" => Some(Type::F32),
            "F16" => Some(Type::F16),
            "BF16" => Some(Type::Bf16),
            _ => None,
        }
    }

    /// As a matrix: the first dimension, and all others as one. A convolution over patches is stored with four.
    pub fn rows_and_cols(&self) -> (usize, usize) {
        (self.shape.first().copied().unwrap_or(1), self.shape.iter().skip(1).product())
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }
}

/// A tensor in a file's header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl Checkpoint {
    /// Opens `model.safetensors` or the shards that the index lists.
    ///
    /// # Errors
    /// When a file is missing, cut short or no safetensors file, or when files and index contradict each other.
    pub fn open(folder: &Path) -> Result<Self> {
        let (paths, mapping) = index::weight_files(folder)?;
        let mut this = Self { folder: folder.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            this.add(path)?;
        }
        for (name, shard) in mapping {
            if !this.tensors.get(&name).is_some_and(|stored| this.files[stored.file].path.ends_with(&shard)) {
                let why = format!("tensor {name} is missing in {shard} in {}; {} says it is there", folder.display(), index::INDEX);
                return Err(Error::new(Kind::Model, why));
            }
        }
        Ok(this)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = File::open(&path).context(Kind::Model, || format!("cannot open {}", path.display()))?;
        let (start, entries) = header(&path, &file)?;
        let map = Arc::new(map(&file).context(Kind::Model, || format!("cannot map {} into memory", path.display()))?);
        let number = self.files.len();
        for (name, Entry { dtype, shape, data_offsets: [begin, end] }) in entries {
            let stored = Stored { file: number, dtype, shape, range: start + begin..start + end };
            if let Some(other) = self.tensors.insert(name.clone(), stored) {
                let files = [&self.files[other.file].path, &path].map(|path| path.file_name().unwrap_or_default().to_string_lossy());
                let why = format!("tensor {name} in {} is in {} and in {}; must be in one", self.folder.display(), files[0], files[1]);
                return Err(Error::new(Kind::Model, why));
            }
        }
        self.files.push(WeightFile { path, file, map });
        Ok(())
    }

    /// The snapshot folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The weight files, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&String, &Stored)> {
        self.tensors.iter()
    }

    /// One tensor, whatever its shape.
    pub fn find(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// One tensor of floats, of this shape.
    ///
    /// # Errors
    /// When it is missing, of another shape, or not of floats.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<(&Stored, Type)> {
        let refuse = |why: String| Error::new(Kind::Model, format!("tensor {name} in {} {why}", self.folder.display()));
        let stored = self.tensors.get(name).ok_or_else(|| refuse(format!("is missing; must be there with shape {shape:?}")))?;
        if stored.shape != shape {
            return Err(refuse(format!("has shape {:?}; must be {shape:?}", stored.shape)));
        }
        let ty = stored.ty().ok_or_else(|| refuse(format!("is of type {}; must be F32, F16 or BF16", stored.dtype)))?;
        Ok((stored, ty))
    }

    /// A tensor's bytes, in the mapped file.
    pub fn mapped(&self, stored: &Stored) -> Bytes {
        Bytes::Mapped(Arc::clone(&self.files[stored.file].map), stored.range.clone())
    }

    /// The same, borrowed.
    pub fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.files[stored.file].map[stored.range.clone()]
    }

    /// Rows of a tensor as floats. They are read, not mapped: mapped pages would count as this program's memory for as
    /// long as nobody else wants it.
    pub fn read_rows(&self, stored: &Stored, ty: Type, rows: Range<usize>) -> Result<Vec<f32>> {
        let row = ty.row_bytes(stored.rows_and_cols().1);
        let mut bytes = vec![0; rows.len() * row];
        let WeightFile { path, file, .. } = &self.files[stored.file];
        let at = (stored.range.start + rows.start * row) as u64;
        file.read_exact_at(&mut bytes, at).context(Kind::Model, || format!("cannot read {}", path.display()))?;
        Ok(match ty {
            Type::F16 => each(&bytes, |two| f16::from_le_bytes(two).to_f32()),
            Type::Bf16 => each(&bytes, |two| bf16::from_le_bytes(two).to_f32()),
            _ => each(&bytes, f32::from_le_bytes),
        })
    }
}

fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|word| read(*word)).collect()
}

/// Where the tensors' bytes begin, and what the header says of them. Tells a cut or foreign file before it is mapped, so
/// that the sentence can say which it is.
fn header(path: &Path, file: &File) -> Result<(usize, Vec<(String, Entry)>)> {
    let refuse = |why: String| Error::new(Kind::Model, format!("{} {why}; fetch it again", path.display()));
    let foreign = || refuse("is no safetensors file".to_owned());
    let len = file.metadata().context(Kind::Model, || format!("cannot read {}", path.display()))?.len();
    let mut start = [0; 8];
    if file.read_exact_at(&mut start, 0).is_err() {
        return Err(refuse(format!("has {len} bytes and is no safetensors file")));
    }
    let header_len = u64::from_le_bytes(start);
    if header_len > MAX_HEADER {
        return Err(foreign());
    }
    let mut header = vec![0; header_len as usize];
    if file.read_exact_at(&mut header, 8).is_err() {
        return Err(refuse(format!("is cut short: it has {len} bytes and must have over {}", header_len + 8)));
    }
    let Ok(serde_json::Value::Object(tensors)) = serde_json::from_slice(&header) else {
        return Err(foreign());
    };
    let tensors = tensors.into_iter().filter(|(name, _)| name != "__metadata__");
    let entries = tensors.map(|(name, entry)| Ok((name, serde_json::from_value(entry)?)));
    let mut entries = entries.collect::<serde_json::Result<Vec<(String, Entry)>>>().map_err(|_| foreign())?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    for (name, entry) in &entries {
        if !follows(entry, end) {
            return Err(refuse(format!("says of tensor {name} what cannot be: {:?} at {:?}", entry.shape, entry.data_offsets)));
        }
        end = entry.data_offsets[1];
    }
    let whole = (end as u64).saturating_add(header_len + 8);
    match len.cmp(&whole) {
        std::cmp::Ordering::Less => Err(refuse(format!("is cut short: it has {len} bytes and must have {whole}"))),
        std::cmp::Ordering::Greater => Err(refuse(format!("is too long: it has {len} bytes and must have {whole}"))),
        std::cmp::Ordering::Equal => Ok((header_len as usize + 8, entries)),
    }
}

/// Whether a tensor begins where the one before ends, and has as many bytes as its shape needs.
fn follows(entry: &Entry, end: usize) -> bool {
    let size = match entry.dtype.as_str() {
        "F32" => Some(4),
        "F16" | "BF16" => Some(2),
        _ => None,
    };
    let [begin, end_here] = entry.data_offsets;
    let elements = entry.shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
    let fits = |size: usize| elements.and_then(|elements| elements.checked_mul(size)) == end_here.checked_sub(begin);
    begin == end && begin <= end_here && size.is_none_or(fits)
}

/// Maps a weight file into memory.
#[allow(unsafe_code)]
pub fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: a mapped file that another process cuts short or rewrites would change under us. Weight files are written
    // once: the downloader and the store of quantised weights rename whole files into place and never write to them again.
    unsafe { Mmap::map(file) }
}
