//! A state folder belongs to one process at a time: whoever finds another in it leaves what is there alone.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::sync;

/// The file in the folder that is locked. It stays there: one that is deleted at the end could be deleted under another.
const FILE: &str = "lock";

/// A folder, and the lock on it while it is ours. The kernel gives the lock back when the process ends, however it ends.
#[derive(Debug)]
pub struct Claim {
    folder: PathBuf,
    was_free: bool,
    lock: Mutex<Option<File>>,
}

impl Claim {
    /// Lays claim to `folder`, which is made where it is missing. Waits for nobody.
    pub fn new(folder: &Path) -> Self {
        let mut claim = Self { folder: folder.to_owned(), was_free: true, lock: Mutex::default() };
        claim.was_free = claim.hold().is_ok();
        claim
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether no other process had the folder when it was claimed. If one had, what it wrote there is its own, also
    /// once it has ended: nobody here has read it.
    pub fn was_free(&self) -> bool {
        self.was_free
    }

    /// Whether the folder may be written to; tries to get the lock where it is not ours yet. A folder that cannot be locked
    /// for another reason may be: whoever writes finds out why it cannot be used, if it cannot.
    ///
    /// # Errors
    /// When another process has it.
    pub fn hold(&self) -> Result<()> {
        let mut lock = sync::lock(&self.lock);
        if lock.is_some() {
            return Ok(());
        }
        let Ok(file) = self.open() else { return Ok(()) };
        match file.try_lock() {
            Ok(()) => *lock = Some(file),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(Kind::Io, format!("{} is in use by another process", self.folder.display())));
            }
            // Some network disks have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        Ok(())
    }

    fn open(&self) -> Result<File> {
        let fail = || format!("{} cannot be locked", self.folder.display());
        fs::create_dir_all(&self.folder).context(Kind::Io, fail)?;
        File::options().create(true).truncate(false).write(true).open(self.folder.join(FILE)).context(Kind::Io, fail)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn a_folder_has_one_owner_and_the_next_when_that_one_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = Claim::new(&state);
        let second = Claim::new(&state);
        assert!(first.was_free() && first.hold().is_ok() && !second.was_free());
        assert!(second.hold().unwrap_err().to_string().ends_with("state is in use by another process"));
        drop(first);
        assert!(second.hold().is_ok() && !second.was_free(), "what the first one left there was never read");
        assert!(!Claim::new(&state).was_free());
    }

    #[test]
    fn a_folder_that_cannot_be_locked_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let claim = Claim::new(&file);
        assert!(claim.was_free() && claim.hold().is_ok());
        fs::remove_file(&file).unwrap();
        assert!(claim.hold().is_ok());
        assert!(!Claim::new(&file).was_free(), "it is locked once it can be");
    }
}
