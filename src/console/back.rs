//! What the API tells of beside pictures: handles of the stages that know it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use uuid::Uuid;

use crate::annotate::Annotator;
use crate::base::clock::Utc;
use crate::base::error::Result;
use crate::base::metrics::Metrics;
use crate::console::board::Board;
use crate::console::wire::Files;
use crate::detect::Guests;
use crate::mqtt::{Command, Publisher, Steering, Watched};
use crate::sink::history::{Entry, History};
use crate::types::CameraId;

/// Judges a configuration: its faults, each with its place.
pub type Check = Arc<dyn Fn(&str) -> Vec<String> + Send + Sync>;

/// Handles of what is there from the start on. Clones share them.
#[derive(Clone)]
pub struct Back {
    /// The cameras and their objects.
    pub board: Board,
    /// What was seen; `None`: it is not written down.
    pub history: Option<History>,
    /// The folder of clips; `None`: there are none.
    pub clips: Option<PathBuf>,
    /// The folder of objects' pictures; `None`: there are none.
    pub snapshots: Option<PathBuf>,
    /// Draws on pictures that somebody asks about.
    pub annotator: Annotator,
    /// Every count.
    pub metrics: Metrics,
    /// Judges a configuration.
    pub check: Check,
    /// Names this start of the daemon.
    pub run: Uuid,
    /// When it started.
    pub started: Utc,
    /// The same by the clock that does not jump.
    pub begun: Instant,
    late: Arc<OnceLock<Late>>,
}

/// What is there once the model is loaded.
pub struct Late {
    /// The model's name.
    pub model: String,
    /// What it computes on.
    pub device: String,
    /// Where questions about pictures are asked.
    pub guests: Guests,
    /// Who obeys commands.
    pub steering: Arc<dyn Steering>,
    /// The broker; `None`: there is none.
    pub publisher: Option<Publisher>,
}

impl Late {
    /// Has a command obeyed as one over MQTT is.
    pub(super) fn command(&self, camera: &CameraId, command: &Command) -> Result<Watched> {
        match &self.publisher {
            Some(publisher) => publisher.command(camera, command),
            None => self.steering.steer(camera, command),
        }
    }
}

impl Back {
    /// Of a daemon that keeps nothing.
    pub fn new(annotator: Annotator, check: Check, metrics: &Metrics) -> Self {
        Self {
            board: Board::new(metrics),
            history: None,
            clips: None,
            snapshots: None,
            annotator,
            metrics: metrics.clone(),
            check,
            run: Uuid::new_v4(),
            started: Utc::now(),
            begun: Instant::now(),
            late: Arc::default(),
        }
    }

    /// The model is loaded.
    pub fn loaded(&self, late: Late) {
        // Once, by the one who starts the stages.
        self.late.set(late).ok();
    }

    pub(super) fn late(&self) -> Option<&Late> {
        self.late.get()
    }

    /// Where an object's picture is, if it is in the folder for pictures.
    pub(super) fn snapshot(&self, entry: &Entry) -> Option<PathBuf> {
        within(self.snapshots.as_deref()?, entry.snapshot.as_deref()?)
    }

    /// Where an object's clip is, if it is in the folder for clips.
    pub(super) fn clip(&self, entry: &Entry) -> Option<PathBuf> {
        within(self.clips.as_deref()?, entry.clip.as_deref()?)
    }

    /// What there is to be seen of an object; looks at the disk.
    pub(super) fn files(&self, entry: &Entry) -> Files {
        Files { snapshot: self.snapshot(entry).is_some(), clip: self.clip(entry).is_some() }
    }

    /// What an event says that there is; waits for no disk.
    pub(super) fn told(&self, entry: &Entry) -> Files {
        let kept = self.history.is_some();
        let inside = |folder: &Option<PathBuf>, path: &Option<String>| {
            kept && folder.as_ref().zip(path.as_ref()).is_some_and(|(folder, path)| Path::new(path).starts_with(folder))
        };
        Files { snapshot: inside(&self.snapshots, &entry.snapshot), clip: inside(&self.clips, &entry.clip) }
    }
}

/// A file's real path, if it is there and in the folder, links followed.
fn within(folder: &Path, file: &str) -> Option<PathBuf> {
    let (folder, file) = (folder.canonicalize().ok()?, Path::new(file).canonicalize().ok()?);
    (file.starts_with(&folder) && file.is_file()).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_outside_of_the_folder_is_none_however_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("clips"), folder.path().join("secret"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(&outside, "x").unwrap();
        std::fs::write(inside.join("a.mp4"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link.mp4")).unwrap();
        let at = |name: &str| within(&inside, &inside.join(name).to_string_lossy()).is_some();
        assert!(at("a.mp4") && at("../clips/a.mp4"));
        for name in ["", "b.mp4", "../secret", "link.mp4", "/etc/passwd"] {
            assert!(!at(name), "{name}");
        }
        assert!(within(&folder.path().join("none"), &outside.to_string_lossy()).is_none());
    }
}
