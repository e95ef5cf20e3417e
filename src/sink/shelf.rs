//! A folder of files of our own, `DIR/<camera>/<time>…`: names, and which of them have to go.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use crate::base::clock::Utc;
use crate::base::error::{Context, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::types::CameraId;

/// A file beside a whole one that is older was left by a process that is gone.
const LEFT: Duration = Duration::from_secs(60);

/// What a folder holds, and how much of it stays.
#[derive(Clone, Debug)]
pub struct Stock {
    /// The folder's key in the configuration, for those who are told that it cannot be used.
    pub key: &'static str,
    /// The folder.
    pub dir: PathBuf,
    /// The form of its files' names, which begin with a time: `0` stands for a digit, `x` for a hexadecimal one.
    pub form: &'static str,
    /// None stays that is older.
    pub keep_for: Duration,
    /// At most so many bytes stay, of all cameras together.
    pub keep_bytes: u64,
    /// What those that go are counted as.
    pub removed: &'static str,
}

/// Every camera's files.
pub struct Shelf {
    stock: Stock,
    /// Those that are in use; they stay.
    open: Mutex<BTreeSet<PathBuf>>,
    /// One tidies at a time.
    tidying: Mutex<()>,
    removed: Counter,
}

/// A file on the disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    /// In order of time.
    name: String,
    path: PathBuf,
    bytes: u64,
}

impl Shelf {
    /// Makes a folder for each camera, and removes what earlier runs left too much of, which it counts.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(stock: Stock, cameras: &[CameraId], metrics: &Metrics) -> Result<Self> {
        cameras.iter().try_for_each(|camera| make_folder(stock.key, &stock.dir, camera).map(drop))?;
        let removed = metrics.counter(stock.removed, "all");
        let shelf = Self { stock, open: Mutex::default(), tidying: Mutex::default(), removed };
        shelf.tidy();
        Ok(shelf)
    }

    /// Where the file `name` of a camera is, without the ending that all have. An id is safe in a path, and a name is made
    /// of a time.
    pub fn path(&self, camera: &CameraId, name: &str) -> PathBuf {
        let ending = self.stock.form.rsplit_once('.').map_or("", |(_, ending)| ending);
        self.stock.dir.join(camera.as_str()).join(format!("{name}.{ending}"))
    }

    /// Notes that a file is in use: that it is being written, or will be written anew.
    pub fn hold(&self, path: &Path) {
        sync::lock(&self.open).insert(path.to_owned());
    }

    /// Notes that it is no longer.
    pub fn release(&self, path: &Path) {
        sync::lock(&self.open).remove(path);
    }

    /// The most bytes that stay.
    pub fn keep_bytes(&self) -> u64 {
        self.stock.keep_bytes
    }

    /// Removes the oldest files, of whichever camera, until the others are neither too old nor too many bytes; and what was
    /// left half written. Where another thread does so already nothing is done.
    pub fn tidy(&self) {
        let Ok(_alone) = self.tidying.try_lock() else { return };
        let Stock { dir, form, keep_for, keep_bytes, .. } = &self.stock;
        let (kept, left) = stock(dir, form);
        let oldest = SystemTime::now().checked_sub(*keep_for).map(|time| Utc::from(time).compact()).unwrap_or_default();
        let surplus = surplus(&kept, &oldest, *keep_bytes);
        let open = sync::lock(&self.open).clone();
        for Kept { path, .. } in kept[..surplus].iter().filter(|kept| !open.contains(&kept.path)) {
            if remove(path) {
                self.removed.add();
            }
        }
        left.iter().for_each(|path| _ = remove(path));
    }
}

/// Makes a camera's folder in `dir`, which the configuration names by `key`.
///
/// # Errors
/// When it cannot be made.
pub fn make_folder(key: &str, dir: &Path, camera: &CameraId) -> Result<PathBuf> {
    let folder = dir.join(camera.as_str());
    fs::create_dir_all(&folder).context(Kind::Io, || format!("{key} {} cannot be made", folder.display()))?;
    Ok(folder)
}

/// Whether it was there and is no longer.
fn remove(path: &Path) -> bool {
    match fs::remove_file(path) {
        Ok(()) => return true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("{} cannot be removed: {error}", path.display()),
    }
    false
}

/// How many of `kept`, the oldest first, have to go: those from before `oldest`, and until the rest has `most` bytes.
fn surplus(kept: &[Kept], oldest: &str, most: u64) -> usize {
    let aged = kept.partition_point(|one| one.name.as_str() < oldest);
    let mut bytes = 0_u64;
    let fit = kept.iter().rev().take_while(|one| {
        bytes = bytes.saturating_add(one.bytes);
        bytes <= most
    });
    aged.max(kept.len() - fit.count())
}

/// The files that we wrote, of every camera there ever was, oldest first; and those that a process which is gone was about
/// to put in the place of one. Other files are none of our business.
fn stock(dir: &Path, form: &str) -> (Vec<Kept>, Vec<PathBuf>) {
    let folders = fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = folders.filter(|entry| entry.file_name().to_str().is_some_and(|name| CameraId::new(name).is_ok()));
    // A link leads out of the folder.
    let folders = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    let beside = form.rsplit_once('.').map(|(stem, _)| format!("{stem}.new")).unwrap_or_default();
    let (mut kept, mut left) = (Vec::new(), Vec::new());
    for entry in files {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(meta) = entry.metadata().ok().filter(fs::Metadata::is_file) else { continue };
        if is_of(&name, form) {
            kept.push(Kept { name, path: entry.path(), bytes: meta.len() });
        } else if is_of(&name, &beside) && meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT)) {
            left.push(entry.path());
        }
    }
    kept.sort();
    (kept, left)
}

/// Whether a name has a form such as `00000000T000000.000Z.mp4`.
fn is_of(name: &str, form: &str) -> bool {
    let fits = |(byte, form): (u8, u8)| match form {
        b'0' => byte.is_ascii_digit(),
        b'x' => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        _ => byte == form,
    };
    name.len() == form.len() && name.bytes().zip(form.bytes()).all(fits)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const FORM: &str = "00000000T000000.000Z.mp4";

    fn clip(name: &str, bytes: u64) -> Kept {
        Kept { name: name.to_owned(), path: PathBuf::from(name), bytes }
    }

    fn clips(dir: &Path) -> Stock {
        let keep_for = Duration::from_secs(86_400);
        Stock { key: "record.dir", dir: dir.to_owned(), form: FORM, keep_for, keep_bytes: 1300, removed: "clips_removed" }
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
        let metrics = Metrics::new();
        let shelf = Shelf::open(clips(dir.path()), &[CameraId::new("street").unwrap()], &metrics).unwrap();
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
        Shelf::open(Stock { keep_for: Duration::from_secs(1), ..clips(dir.path()) }, &[], &Metrics::new()).unwrap();
        assert!(kept.exists());
    }

    #[test]
    fn names_of_a_form_are_ours_and_no_others() {
        let form = "00000000T000000.000Z-xxxxxxxx.jpg";
        assert!(is_of("20261123T140307.120Z-0a9f3c21.jpg", form));
        for other in [
            "20261123T140307.120Z-0a9f3c2g.jpg",
            "20261123T140307.120Z-0A9F3C21.jpg",
            "20261123T140307.120Z-0a9f3c21.png",
            "20261123T140307.120Z.jpg",
            "20261123T140307.120Z-0a9f3c21.jpg ",
            "",
        ] {
            assert!(!is_of(other, form), "{other}");
        }
    }

    #[test]
    fn what_a_kill_left_half_written_goes_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("street")).unwrap();
        let file = |name: &str, age: u64| {
            let path = dir.path().join("street").join(name);
            let file = fs::File::create(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            path
        };
        let [half, young, foreign] =
            [("20261123T140307.120Z.new", 90), ("20261123T140308.120Z.new", 5), ("mine.new", 90)].map(|(name, age)| file(name, age));
        let metrics = Metrics::new();
        Shelf::open(clips(dir.path()), &[], &metrics).unwrap();
        assert_eq!([half.exists(), young.exists(), foreign.exists()], [false, true, true]);
        assert_eq!(metrics.counter("clips_removed", "all").get(), 0);
    }
}
