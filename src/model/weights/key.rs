//! What a checkpoint is, in one number: a hash of what its files hold.
//!
//! The hub's cache names a file of weights by its hash, and that name is taken. Any other file is read once, and what came
//! out is noted beside the quantised weights, for as long as the file's size, times and place on the disk stay the same:
//! reading a large checkpoint whole takes longer than a start may.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::base::{Context, Kind, Result};

/// Hashes files and notes them in a folder.
pub struct Keys<'a> {
    /// Where the notes are kept.
    pub folder: Option<&'a Path>,
    /// Told of bytes as they are read.
    pub progress: &'a dyn Fn(u64),
}

const NOTES: &str = "checkpoints.json";

impl Keys<'_> {
    /// Sixteen hexadecimal digits that stand for the contents of some files.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of<'f>(&self, files: impl Iterator<Item = &'f Path>) -> Result<String> {
        let mut all = Sha256::new();
        for file in files {
            all.update(self.of_file(file)?);
        }
        Ok(hex(&all.finalize())[..16].to_owned())
    }

    fn of_file(&self, file: &Path) -> Result<String> {
        let fail = || format!("cannot read {}", file.display());
        let blob = file.canonicalize().context(Kind::Model, fail)?;
        let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(name);
        }
        let data = blob.metadata().context(Kind::Model, fail)?;
        let (changed, status) = ((data.mtime(), data.mtime_nsec()), (data.ctime(), data.ctime_nsec()));
        let state = format!("{} {} {changed:?} {status:?} {}", data.dev(), data.ino(), data.size());
        let place = blob.display().to_string();
        let mut notes = self.notes();
        if let Some((_, hash)) = notes.get(&place).filter(|(noted, _)| *noted == state) {
            return Ok(hash.clone());
        }
        let hash = self.read(&blob).context(Kind::Model, fail)?;
        notes.insert(place, (state, hash.clone()));
        self.note(&notes);
        Ok(hash)
    }

    fn read(&self, file: &Path) -> std::io::Result<String> {
        let (mut file, mut hash, mut buffer) = (File::open(file)?, Sha256::new(), vec![0; 1 << 22]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex(&hash.finalize())),
                read => {
                    hash.update(&buffer[..read]);
                    (self.progress)(read as u64);
                }
            }
        }
    }

    fn notes(&self) -> BTreeMap<String, (String, String)> {
        let text = self.folder.and_then(|folder| std::fs::read_to_string(folder.join(NOTES)).ok());
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// A note that cannot be written costs another reading next time and nothing else.
    fn note(&self, notes: &BTreeMap<String, (String, String)>) {
        let Some(folder) = self.folder else { return };
        let part = folder.join(format!(".{NOTES}.{}", std::process::id()));
        let text = serde_json::to_string_pretty(notes).unwrap_or_default();
        if std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, folder.join(NOTES))).is_err() {
            std::fs::remove_file(&part).ok();
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
