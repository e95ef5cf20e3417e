//! What a checkpoint's quantised weights are kept under: a hash of its content.
//!
//! To hash 6 GB takes longer than a start may, so a hash is remembered for as long as size, times and inode of the file
//! stay as they are. The hub's cache names its large files by their SHA-256 already.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::{Context, Kind, Result};

/// Counted up whenever the same weights would be stored as other bytes, so that no older file is read.
const VERSION: u32 = 1;

/// The name of the remembered hashes, beside the quantised weights.
const MEMO: &str = "hashes.json";

/// Times in a file system come in steps of some milliseconds: a file that changed just now may change once more without a
/// trace. Its hash is not remembered.
const SETTLED: Duration = Duration::from_secs(1);

/// By path: what told the file's state, and its hash.
type Memo = BTreeMap<PathBuf, Remembered>;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Remembered {
    state: String,
    sha256: String,
}

/// The key of these files' content, 64 hexadecimal digits. `folder` keeps the remembered hashes.
///
/// # Errors
/// When a file cannot be read.
pub fn of(paths: &[PathBuf], folder: &Path) -> Result<String> {
    let memo: Memo = std::fs::read(folder.join(MEMO)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let read = |path: &PathBuf| hash(path, &memo).context(Kind::Model, || format!("cannot read {}", path.display()));
    let hashes = paths.par_iter().map(read).collect::<Result<Vec<_>>>()?;
    let mut key = Sha256::new();
    key.update(format!("quantised weights {VERSION}\n"));
    for (path, (sha256, _)) in paths.iter().zip(&hashes) {
        key.update(format!("{sha256} {}\n", path.file_name().unwrap_or_default().to_string_lossy()));
    }
    let fresh: Memo = hashes.into_iter().filter_map(|(_, fresh)| fresh).collect();
    if !fresh.is_empty() {
        remember(folder, fresh);
    }
    Ok(hex(&key.finalize()))
}

/// A file's hash, and what to remember where it had to be computed.
fn hash(path: &Path, memo: &Memo) -> std::io::Result<(String, Option<(PathBuf, Remembered)>)> {
    let path = path.canonicalize()?;
    if let Some(name) = blob(&path) {
        return Ok((name, None));
    }
    let mut file = File::open(&path)?;
    let state = state(&file)?;
    if let Some(known) = memo.get(&path).filter(|known| known.state == state) {
        return Ok((known.sha256.clone(), None));
    }
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            len => sum.update(&buffer[..len]),
        }
    }
    let sha256 = hex(&sum.finalize());
    let settled = self::state(&file)? == state && is_settled(&file)?;
    let fresh = settled.then(|| (path, Remembered { state, sha256: sha256.clone() }));
    Ok((sha256, fresh))
}

/// The hash that is a blob's name in the hub's cache. Small files have shorter names, of another hash.
fn blob(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let is_blob = path.parent()?.file_name()? == "blobs";
    let is_sha256 = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (is_blob && is_sha256).then(|| name.to_owned())
}

fn state(file: &File) -> std::io::Result<String> {
    let of = file.metadata()?;
    let (modified, changed) = ((of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec()));
    Ok(format!("{} {}.{:09} {}.{:09} {} {}", of.size(), modified.0, modified.1, changed.0, changed.1, of.dev(), of.ino()))
}

fn is_settled(file: &File) -> std::io::Result<bool> {
    let of = file.metadata()?;
    let changed = SystemTime::UNIX_EPOCH + Duration::new(of.ctime().max(0) as u64, of.ctime_nsec() as u32);
    Ok(SystemTime::now().duration_since(changed).is_ok_and(|since| since > SETTLED))
}

/// Adds hashes to those remembered and drops those of files that are gone. What is not remembered is computed again, so
/// failures are passed over, and of two programs that do this at once the last one wins.
fn remember(folder: &Path, fresh: Memo) {
    let path = folder.join(MEMO);
    let mut memo: Memo = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    memo.extend(fresh);
    memo.retain(|path, _| path.exists());
    let part = folder.join(format!("{MEMO}.{}", uuid::Uuid::new_v4()));
    let text = serde_json::to_string_pretty(&memo).unwrap_or_default();
    if let Err(error) = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path)) {
        tracing::debug!("the weights' hashes cannot be remembered in {}: {error}", path.display());
        let _ = std::fs::remove_file(&part);
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_same_content_has_the_same_key_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let key = |text: &str, name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            of(&[path], folder.path()).unwrap()
        };
        let first = key("weights", "a/model.safetensors");
        assert_eq!(first.len(), 64);
        assert_eq!(first, key("weights", "b/model.safetensors"));
        assert_ne!(first, key("weightz", "b/model.safetensors"), "a changed file, at once");
        assert_ne!(first, key("weights", "a/model-1.safetensors"));
    }

    #[test]
    fn a_blob_of_the_hub_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("blobs")).unwrap();
        let blob = folder.path().join("blobs").join("ab".repeat(32));
        let link = folder.path().join("model.safetensors");
        std::fs::write(&blob, "one").unwrap();
        symlink(&blob, &link).unwrap();
        let key = || of(std::slice::from_ref(&link), folder.path()).unwrap();
        let first = key();
        std::fs::write(&blob, "two").unwrap();
        assert_eq!(first, key());
        // Any other link is followed, and its content hashed.
        let other = folder.path().join("blobs/other");
        std::fs::write(&other, "two").unwrap();
        std::fs::remove_file(&link).unwrap();
        symlink(&other, &link).unwrap();
        assert_ne!(first, key());
    }

    /// The test data was written long before this test runs, as any checkpoint in use.
    #[test]
    fn a_settled_file_is_hashed_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pg2/config.json");
        let key = || of(std::slice::from_ref(&path), folder.path()).unwrap();
        let first = key();
        let memo = folder.path().join(MEMO);
        let text = std::fs::read_to_string(&memo).unwrap();
        let remembered: Memo = serde_json::from_str(&text).unwrap();
        let sha256 = &remembered.values().next().unwrap().sha256;
        // What is remembered is believed while the file's state is the one noted, and not a moment longer.
        std::fs::write(&memo, text.replace(sha256.as_str(), &"0".repeat(64))).unwrap();
        assert_ne!(first, key());
        std::fs::write(&memo, text.replace(sha256.as_str(), &"0".repeat(64)).replace("\"state\": \"", "\"state\": \"1")).unwrap();
        assert_eq!(first, key());
        assert_eq!(serde_json::from_slice::<Memo>(&std::fs::read(&memo).unwrap()).unwrap(), remembered);
        std::fs::write(&memo, "{").unwrap();
        assert_eq!(first, key());
    }
}
