//! Quantised weights, made once and kept as a GGUF file in the cache folder, from where they are mapped into memory.
//!
//! There is one file per content of a checkpoint and type. It is written under another name, synced and renamed, so it is
//! whole or not there; of two programs that write it at once the second replaces the first's by the same bytes.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::Mmap;

use super::checkpoint::{Checkpoint, map};
use super::gguf::{self, Item, Layout, Value};
use super::{convert, key};
use crate::base::{Context, Error, Kind, Result};
use crate::model::hub::Progress;
use crate::model::matrix::{Bytes, Matrix, Type};

/// The ending of a file that is being written.
const PART: &str = ".part";

/// A part file that no program holds is left alone for this long, for its writer may be about to take hold of it.
const FRESH: Duration = Duration::from_secs(60);

/// Where file systems know no locks, a part file is given up after this time.
const GIVEN_UP: Duration = Duration::from_secs(24 * 3600);

/// What is to be found in the cache, or made and put there.
pub struct Job<'a> {
    /// What the weights come from.
    pub checkpoint: &'a Checkpoint,
    /// The tensors, each with its name in the checkpoint.
    pub items: Vec<(String, Item)>,
    /// The type of most of them.
    pub ty: Type,
    /// The model's name.
    pub name: &'a str,
    /// The cache folder.
    pub cache: &'a Path,
    /// Told of bytes read and bytes to read while weights are quantised.
    pub progress: Option<&'a Progress>,
}

/// A mapped file of quantised weights.
pub struct Store {
    map: Arc<Mmap>,
    places: HashMap<String, (Item, Range<usize>)>,
}

impl Store {
    /// The tensor that has this name in the checkpoint; `None`: it is not stored.
    ///
    /// # Errors
    /// Never, unless the file's layout contradicts itself.
    pub fn matrix(&self, name: &str) -> Option<Result<Matrix>> {
        let (item, range) = self.places.get(name)?;
        Some(Matrix::new(item.ty, item.rows, item.cols, Bytes::Mapped(Arc::clone(&self.map), range.clone())))
    }
}

/// Opens the file of quantised weights, and makes it first where it is not there or not whole.
///
/// # Errors
/// When the folder cannot be made or written, the disk is full, or the checkpoint cannot be read.
pub fn open(job: &Job<'_>) -> Result<Store> {
    let folder = job.cache.join("weights");
    std::fs::create_dir_all(&folder).context(Kind::Io, || format!("cannot make the folder {}", folder.display()))?;
    let files: Vec<PathBuf> =
        std::iter::once(job.checkpoint.folder().join("config.json")).chain(job.checkpoint.paths().map(Path::to_owned)).collect();
    let key = key::of(&files, &folder)?;
    let name = plain(job.name);
    let metadata = [
        ("general.architecture", Value::Text("paligemma")),
        ("general.name", Value::Text(&name)),
        ("general.alignment", Value::Number(32)),
        ("general.quantization_version", Value::Number(2)),
        ("palisade.key", Value::Text(&key)),
        ("palisade.type", Value::Text(type_name(job.ty))),
    ];
    let items: Vec<Item> = job.items.iter().map(|(_, item)| item.clone()).collect();
    let layout = Layout::new(&metadata, &items);
    let path = folder.join(format!("{name}-{}-{}.gguf", &key[..16], type_name(job.ty)));
    let file = match look(&path, &layout)? {
        Some(file) => file,
        None => {
            sweep(&folder);
            make(job, &layout, &path)?
        }
    };
    let map = map(&file).context(Kind::Io, || format!("cannot map {} into memory", path.display()))?;
    let places = job.items.iter().zip(layout.ranges).map(|((source, item), range)| (source.clone(), (item.clone(), range)));
    Ok(Store { map: Arc::new(map), places: places.collect() })
}

/// The file, if it is there and the right one; another of its name is removed.
fn look(path: &Path, layout: &Layout) -> Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.context(Kind::Io, || format!("cannot open {}", path.display()))?,
    };
    let mut start = vec![0; layout.header.len()];
    let len = file.metadata().context(Kind::Io, || format!("cannot read {}", path.display()))?.len();
    if len == layout.len as u64 && file.read_exact_at(&mut start, 0).is_ok() && start == layout.header {
        return Ok(Some(file));
    }
    tracing::warn!("{} is damaged or not of this program; it is removed and made anew", path.display());
    std::fs::remove_file(path).context(Kind::Io, || format!("cannot remove {}", path.display()))?;
    Ok(None)
}

/// A file that is being written; it goes when it is dropped before it has its name.
struct Part(Option<PathBuf>);

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn make(job: &Job<'_>, layout: &Layout, path: &Path) -> Result<File> {
    let folder = path.parent().unwrap_or(path);
    tracing::info!("quantising {} to {}, once; kept in {}", job.name, type_name(job.ty), folder.display());
    let began = Instant::now();
    let failed = || format!("cannot write {}", path.display());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unnamed = folder.join(format!("{name}.{}{PART}", uuid::Uuid::new_v4()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&unnamed).context(Kind::Io, failed)?;
    let mut part = Part(Some(unnamed.clone()));
    // Held while it is written, so that others can tell it from one whose program died. Not every file system has locks.
    if let Err(error) = file.try_lock() {
        tracing::debug!("{} cannot be locked: {error}", unnamed.display());
    }
    file.write_all(&layout.header).context(Kind::Io, failed)?;
    let sources = job.items.iter().filter_map(|(source, item)| Some((job.checkpoint.find(source)?, item)));
    let all = sources.clone().map(|(stored, _)| stored.len() as u64).sum();
    let mut done = 0;
    for (stored, item) in sources {
        let whole = item.len();
        let (mut written, length) = (0, stored.len() as u64);
        convert::rows(job.checkpoint, stored, item.ty, |bytes| {
            file.write_all(bytes).context(Kind::Io, failed)?;
            written += bytes.len();
            if let Some(progress) = job.progress {
                progress(done + length * written as u64 / whole.max(1) as u64, all);
            }
            Ok(())
        })?;
        file.write_all(&vec![0; gguf::padded(whole) - whole]).context(Kind::Io, failed)?;
        done += length;
    }
    if file.metadata().context(Kind::Io, failed)?.len() != layout.len as u64 {
        return Err(Error::new(Kind::Internal, format!("{} came out with another length than planned", path.display())));
    }
    file.sync_all().context(Kind::Io, failed)?;
    std::fs::rename(&unnamed, path).context(Kind::Io, failed)?;
    part.0 = None;
    // Without this the file is whole but may be nameless after a power cut: then it is made once more.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    tracing::info!("quantised {} in {:.1} s: {} bytes", job.name, began.elapsed().as_secs_f64(), layout.len);
    Ok(file)
}

/// Removes what programs that died left half written.
fn sweep(folder: &Path) {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| path.as_os_str().as_encoded_bytes().ends_with(PART.as_bytes())) {
        let age = path.metadata().and_then(|of| of.modified()).ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
        let dead = match File::open(&path).map(|file| file.try_lock()) {
            Ok(Ok(())) => age > FRESH,
            Ok(Err(TryLockError::Error(_))) => age > GIVEN_UP,
            Ok(Err(TryLockError::WouldBlock)) | Err(_) => false,
        };
        if dead && std::fs::remove_file(&path).is_ok() {
            tracing::info!("removed {}, which another start left half written", path.display());
        }
    }
}

/// A model's name as part of a file's name. The commit of a hub model is left out: the key stands for the content.
fn plain(name: &str) -> String {
    let name = name.split('@').next().unwrap_or_default().trim_start_matches('.');
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.chars().map(|c| if fits(c) { c } else { '-' }).take(80).collect()
}

/// A type's name in the configuration.
fn type_name(ty: Type) -> &'static str {
    match ty {
        Type::F32 => "f32",
        Type::F16 => "f16",
        Type::Bf16 => "bf16",
        Type::Q8_0 => "q8_0",
        Type::Q6K => "q6k",
        Type::Q4K => "q4k",
    }
}
