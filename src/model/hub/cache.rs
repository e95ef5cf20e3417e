//! The cache's layout, as `hf-hub` has it: `models--OWNER--NAME/blobs/ETAG` holds the bytes, `snapshots/COMMIT/FILE` links to them, and
//! `refs/REVISION` holds the commit that a branch or tag meant last.

use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::model::hub::{INDEX, WEIGHTS};
use crate::model::weights;

/// One repository, at a revision, and its place in the cache.
pub struct Repository {
    repo: Repo,
    cached: CacheRepo,
    folder: PathBuf,
}

impl Repository {
    /// Of the model `OWNER/NAME` at a revision, in the cache folder.
    pub fn new(cache: &Path, id: &str, revision: &str) -> Self {
        let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let cached = Cache::new(cache.to_owned()).repo(repo.clone());
        Self { folder: cache.join(repo.folder_name()), repo, cached }
    }

    /// All of it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a file is on the hub, below the endpoint.
    pub fn url(&self, name: &str) -> String {
        format!("{}/resolve/{}/{name}", self.repo.url(), self.repo.url_revision())
    }

    /// The bytes of one file.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.cached.blob_path(etag)
    }

    /// The files of one commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.cached.pointer_path(commit)
    }

    /// Commit and folder of the revision, if it is wholly here.
    pub fn find(&self) -> Option<(String, PathBuf)> {
        let revision = self.repo.revision();
        let commit = match std::fs::read_to_string(self.folder.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        let plain = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let folder = self.snapshot(&commit);
        (plain && is_whole(&folder)).then_some((commit, folder))
    }

    /// Notes which commit the revision means.
    pub fn point(&self, commit: &str) -> Result<()> {
        if self.repo.revision() == commit { Ok(()) } else { self.cached.create_ref(commit) }
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
