//! The video files of analysed frames.

use std::path::PathBuf;
use std::time::Duration;

/// How the path of files ends that may be removed: in a folder for each camera, and named after a time alone.
const TIMED: &str = "/{camera}/{time}";

/// Fragmented MP4 or MKV files.
#[derive(Clone, Debug, PartialEq)]
pub struct FileConfig {
    /// Ends in `.mp4` or `.mkv`. `{camera}` stands for the camera's id, and `{time}` for the time of a file's first picture.
    pub path: String,
    /// The longest time of a file.
    pub max_file: Duration,
    /// Another is begun behind so many bytes.
    pub max_bytes: Option<u64>,
    /// At most this age; with a `folder` only.
    pub keep_for: Option<Duration>,
    /// At most so many bytes, of all cameras together; with a `folder` only.
    pub keep_bytes: Option<u64>,
}

impl FileConfig {
    /// With every other key at its default: a file a day, and all stay.
    pub fn new(path: String) -> Self {
        Self { path, max_file: Duration::from_secs(86_400), max_bytes: None, keep_for: None, keep_bytes: None }
    }

    /// Whether it is Matroska, and not MP4.
    pub fn is_mkv(&self) -> bool {
        self.path.ends_with(".mkv")
    }

    /// The folder of which files are removed: that above `{camera}/{time}`.
    pub fn folder(&self) -> Option<PathBuf> {
        let (stem, _) = self.path.rsplit_once('.')?;
        stem.strip_suffix(TIMED).filter(|folder| !folder.contains('{')).map(PathBuf::from)
    }
}
