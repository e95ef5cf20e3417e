//! The cache's layout: `models--OWNER--NAME/blobs/ETAG` holds the bytes, `snapshots/COMMIT/FILE` links to them, and
//! `refs/REVISION` holds the commit that a branch or tag meant last.

use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};

use crate::model::hub::{INDEX, WEIGHTS};
use crate::model::weights;

/// One repository's place in the cache.
pub struct Repository {
    folder: PathBuf,
}

impl Repository {
    /// Of `OWNER/NAME` in the cache folder.
    pub fn new(cache: &Path, id: &str) -> Self {
        Self { folder: cache.join(format!("models--{}", id.replace('/', "--"))) }
    }

    /// All of it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the bytes are.
    pub fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    /// The bytes of one file.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.blobs().join(etag)
    }

    /// The files of one commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Commit and folder of a revision that is wholly here.
    pub fn find(&self, revision: &str) -> Option<(String, PathBuf)> {
        let commit = match std::fs::read_to_string(self.folder.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        let plain = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let folder = self.snapshot(&commit);
        (plain && is_whole(&folder)).then_some((commit, folder))
    }

    /// Notes which commit a revision means.
    pub fn point(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        std::fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        std::fs::write(path, commit)
    }

    /// Gives a blob its name in a snapshot. The link is relative, so that the cache can be moved.
    pub fn link(&self, snapshot: &Path, name: &str, etag: &str) -> Result<()> {
        std::fs::create_dir_all(snapshot)?;
        let path = snapshot.join(name);
        // A link left dangling by a cleaned cache is in the way.
        if path.is_symlink() && !path.exists() {
            std::fs::remove_file(&path)?;
        }
        match std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), &path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }
}

/// Whether a snapshot folder holds every file that the model needs.
fn is_whole(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).exists();
    let shards = || {
        let index = std::fs::read_to_string(folder.join(INDEX)).ok()?;
        weights::shards(&index).ok()
    };
    has("config.json") && has("tokenizer.json") && (has(WEIGHTS) || shards().is_some_and(|shards| shards.iter().all(|shard| has(shard))))
}
