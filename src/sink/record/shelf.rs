//! The folder of clips, `DIR/<camera>/<time>.mp4`: names, and which of them have to go.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use crate::base::clock::Utc;
use crate::base::error::{Context, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::config::RecordConfig;
use crate::types::CameraId;

/// Every camera's clips.
pub struct Shelf {
    config: RecordConfig,
    /// Those that are being written; they stay.
    open: Mutex<BTreeSet<PathBuf>>,
    /// One tidies at a time.
    tidying: Mutex<()>,
    removed: Counter,
}

/// A clip on the disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Clip {
    /// In order of time.
    name: String,
    path: PathBuf,
    bytes: u64,
}

impl Shelf {
    /// Makes a folder for each camera, and removes what earlier runs left too much of. Counts `clips_removed`.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(config: RecordConfig, cameras: &[CameraId], metrics: &Metrics) -> Result<Self> {
        for camera in cameras {
            let folder = config.dir.join(camera.as_str());
            fs::create_dir_all(&folder).context(Kind::Io, || format!("record.dir {} cannot be made", folder.display()))?;
        }
        let removed = metrics.counter("clips_removed", "all");
        let shelf = Self { config, open: Mutex::default(), tidying: Mutex::default(), removed };
        shelf.tidy();
        Ok(shelf)
    }

    /// Where the clip `name` of a camera is. An id is safe in a path, and a name is made of a time.
    pub fn path(&self, camera: &CameraId, name: &str) -> PathBuf {
        self.config.dir.join(camera.as_str()).join(format!("{name}.mp4"))
    }

    /// Notes that a clip is being written.
    pub fn hold(&self, path: &Path) {
        sync::lock(&self.open).insert(path.to_owned());
    }

    /// Notes that it is no longer.
    pub fn release(&self, path: &Path) {
        sync::lock(&self.open).remove(path);
    }

    /// Removes the oldest clips, of whichever camera, until the others are neither too old nor too many bytes. Where
    /// another thread does so already nothing is done.
    pub fn tidy(&self) {
        let Ok(_alone) = self.tidying.try_lock() else { return };
        let clips = stock(&self.config.dir);
        let oldest = SystemTime::now().checked_sub(self.config.keep_for).map(|time| Utc::from(time).compact()).unwrap_or_default();
        let surplus = surplus(&clips, &oldest, self.config.keep_bytes);
        let open = sync::lock(&self.open).clone();
        for Clip { path, .. } in clips[..surplus].iter().filter(|clip| !open.contains(&clip.path)) {
            match fs::remove_file(path) {
                Ok(()) => self.removed.add(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!("{} cannot be removed: {error}", path.display()),
            }
        }
    }
}

/// How many of `clips`, the oldest first, have to go: those from before `oldest`, and until the rest has `most` bytes.
fn surplus(clips: &[Clip], oldest: &str, most: u64) -> usize {
    let aged = clips.partition_point(|clip| clip.name.as_str() < oldest);
    let mut bytes = 0_u64;
    let fit = clips.iter().rev().take_while(|clip| {
        bytes = bytes.saturating_add(clip.bytes);
        bytes <= most
    });
    aged.max(clips.len() - fit.count())
}

/// The clips that we wrote, of every camera there ever was, oldest first. Other files are none of our business.
fn stock(dir: &Path) -> Vec<Clip> {
    let folders = fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = folders.filter(|entry| entry.file_name().to_str().is_some_and(|name| CameraId::new(name).is_ok()));
    // A link leads out of the folder.
    let folders = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    let clip = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok().filter(|name| is_ours(name))?;
        let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(Clip { name, path: entry.path(), bytes: meta.len() })
    };
    let mut clips: Vec<Clip> = files.filter_map(clip).collect();
    clips.sort();
    clips
}

/// Whether a name has the form `20261123T140307.120Z.mp4`.
fn is_ours(name: &str) -> bool {
    let form = b"00000000T000000.000Z.mp4";
    name.len() == form.len() && name.bytes().zip(form).all(|(byte, &form)| if form == b'0' { byte.is_ascii_digit() } else { byte == form })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use super::*;

    fn clip(name: &str, bytes: u64) -> Clip {
        Clip { name: name.to_owned(), path: PathBuf::from(name), bytes }
    }

    #[test]
    fn the_oldest_go_by_age_and_by_bytes() {
        let clips = [clip("1", 10), clip("2", 10), clip("3", 10), clip("4", 10)];
        for (oldest, most, expected) in [("", 100, 0), ("3", 100, 2), ("", 40, 0), ("", 39, 1), ("2", 15, 3), ("", 0, 4), ("9", 100, 4)] {
            assert_eq!(surplus(&clips, oldest, most), expected, "{oldest} {most}");
        }
        assert_eq!(surplus(&[], "1", 0), 0);
    }

    #[test]
    fn clips_of_earlier_runs_go_at_the_start_whosever_they_are_and_foreign_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: usize| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![0; bytes]).unwrap();
            path
        };
        let now = Utc::now().millis();
        let name = |camera: &str, before: i64| format!("{camera}/{}.mp4", Utc::from_millis(now - before).compact());
        let aged = write("gone/20200101T000000.000Z.mp4", 1);
        let [third, second, first] = [3000, 2000, 1000].map(|before| write(&name("street", before), 400));
        let other = write(&name("gone", 1500), 400);
        let foreign = [
            write("street/notes.txt", 5000),
            write("street/20200101T000000.000Z.mp4.part", 5000),
            write("Other/20200101T000000.000Z.mp4", 9),
        ];
        let config = RecordConfig { keep_bytes: 1300, ..RecordConfig::new(dir.path().into()) };
        let metrics = Metrics::new();
        let shelf = Shelf::open(config, &[CameraId::new("street").unwrap()], &metrics).unwrap();
        let there = |paths: &[&PathBuf]| paths.iter().map(|path| path.exists()).collect::<Vec<_>>();
        assert_eq!(there(&[&aged, &third, &second, &other, &first]), [false, false, true, true, true]);
        assert!(foreign.iter().all(|path| path.exists()));
        assert_eq!(metrics.counter("clips_removed", "all").get(), 2);
        // What is being written stays, and counts.
        shelf.hold(&second);
        let newest = write(&name("street", 500), 400);
        shelf.tidy();
        assert_eq!(there(&[&second, &other, &first, &newest]), [true, true, true, true]);
        shelf.release(&second);
        shelf.tidy();
        assert_eq!(there(&[&second, &other, &first, &newest]), [false, true, true, true]);
    }

    #[test]
    fn a_link_to_another_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let kept = elsewhere.path().join("20200101T000000.000Z.mp4");
        fs::write(&kept, "mine").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("street")).unwrap();
        let config = RecordConfig { keep_for: Duration::from_secs(1), ..RecordConfig::new(dir.path().into()) };
        Shelf::open(config, &[], &Metrics::new()).unwrap();
        assert!(kept.exists());
    }
}
