//! Annotated frames as JPEG files: `DIR/<camera>/<time>.jpg`, the oldest removed by count and age.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::base::clock::Utc;
use crate::base::error::{Context, Kind, Result};
use crate::base::jpeg;
use crate::config::SnapshotConfig;
use crate::sink::shelf::make_folder;
use crate::sink::{Picture, Sink};
use crate::types::CameraId;

/// JPEG quality: text and outlines stay clean.
const QUALITY: u8 = 88;

/// The folder's key in the configuration.
const KEY: &str = "output.snapshots.dir";

/// Writes one JPEG a picture.
pub struct SnapshotSink {
    config: SnapshotConfig,
    kept: HashMap<CameraId, VecDeque<String>>,
}

impl SnapshotSink {
    /// Makes the folders and takes stock of the pictures of earlier runs.
    ///
    /// # Errors
    /// When a folder cannot be made or read.
    pub fn open(config: SnapshotConfig, cameras: &[CameraId]) -> Result<Self> {
        let mut kept = HashMap::new();
        for camera in cameras {
            kept.insert(camera.clone(), stock(&make_folder(KEY, &config.dir, camera)?)?);
        }
        let mut sink = Self { config, kept };
        sink.tidy();
        Ok(sink)
    }

    fn folder(&self, camera: &CameraId) -> PathBuf {
        self.config.dir.join(camera.as_str())
    }

    /// Names that retention gives up: all before the newest `keep`, and those older than `keep_for`.
    fn surplus(&self, names: &VecDeque<String>) -> usize {
        let oldest = SystemTime::now().checked_sub(self.config.keep_for).map(|time| Utc::from(time).compact());
        let aged = oldest.map_or(0, |oldest| names.partition_point(|name| *name < oldest));
        aged.max(names.len().saturating_sub(self.config.keep))
    }
}

/// The pictures in a folder that we wrote, oldest first. Other files are none of our business.
fn stock(folder: &Path) -> Result<VecDeque<String>> {
    let fail = || format!("{KEY} {} cannot be read", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context(Kind::Io, fail)? {
        let name = entry.context(Kind::Io, fail)?.file_name();
        names.extend(name.to_str().filter(|name| is_ours(name)).map(str::to_owned));
    }
    names.sort();
    Ok(names.into())
}

/// Whether a name has the form `20261123T140307.120Z.jpg`.
fn is_ours(name: &str) -> bool {
    let form = b"00000000T000000.000Z.jpg";
    name.len() == form.len() && name.bytes().zip(form).all(|(byte, &form)| if form == b'0' { byte.is_ascii_digit() } else { byte == form })
}

/// Writes beside the final name and renames, so that a reader never sees half a picture.
fn write_jpeg(path: &Path, picture: &Picture) -> Result<()> {
    let (width, height) = picture.image.dimensions();
    let jpeg = jpeg::encode(picture.image.as_raw(), width, height, QUALITY)?;
    let part = path.with_extension("part");
    let written = fs::write(&part, jpeg).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        fs::remove_file(&part).ok();
    }
    written.context(Kind::Io, || format!("{} cannot be written", path.display()))
}

impl Sink for SnapshotSink {
    fn name(&self) -> &str {
        "snapshots"
    }

    fn write(&mut self, picture: &Picture) -> Result<()> {
        let folder = self.folder(&picture.camera);
        let name = format!("{}.jpg", picture.captured.compact());
        // The folder may have been removed by a person to clear the disk.
        fs::create_dir_all(&folder).context(Kind::Io, || format!("{} cannot be made", folder.display()))?;
        write_jpeg(&folder.join(&name), picture)?;
        let names = self.kept.entry(picture.camera.clone()).or_default();
        let place = names.partition_point(|other| *other < name);
        if names.get(place) != Some(&name) {
            names.insert(place, name);
        }
        self.tidy();
        Ok(())
    }

    fn enter(&mut self, camera: &CameraId) -> Result<()> {
        if !self.kept.contains_key(camera) {
            self.kept.insert(camera.clone(), stock(&make_folder(KEY, &self.config.dir, camera)?)?);
            self.tidy();
        }
        Ok(())
    }

    fn tidy(&mut self) {
        let cameras: Vec<CameraId> = self.kept.keys().cloned().collect();
        for camera in cameras {
            let folder = self.folder(&camera);
            let surplus = self.kept.get(&camera).map_or(0, |names| self.surplus(names));
            for name in self.kept.entry(camera).or_default().drain(..surplus) {
                if let Err(error) = fs::remove_file(folder.join(&name))
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(sink = "snapshots", "{} cannot be removed: {error}", folder.join(&name).display());
                }
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn picture(camera: &CameraId, captured: Utc) -> Picture {
        let image = image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8 * 4, y as u8 * 5, 128]));
        Picture { camera: camera.clone(), captured, image: Arc::new(image) }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_are_kept_and_foreign_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let camera = CameraId::new("street").unwrap();
        let config = SnapshotConfig { dir: folder.path().into(), keep: 3, keep_for: Duration::from_secs(3600) };
        fs::create_dir(folder.path().join("street")).unwrap();
        fs::write(folder.path().join("street/notes.txt"), "mine").unwrap();
        fs::write(folder.path().join("street/20200101T000000.000Z.jpg"), "aged").unwrap();
        let mut sink = SnapshotSink::open(config.clone(), std::slice::from_ref(&camera)).unwrap();
        let start = Utc::now().millis();
        for n in 0..5 {
            sink.write(&picture(&camera, Utc::from_millis(start + n))).unwrap();
        }
        let expected: Vec<String> =
            (2..5).map(|n| format!("{}.jpg", Utc::from_millis(start + n).compact())).chain(["notes.txt".to_owned()]).collect();
        assert_eq!(names(&folder.path().join("street")), expected);
        let reopened = SnapshotSink::open(config, std::slice::from_ref(&camera)).unwrap();
        assert_eq!(reopened.kept[&camera].len(), 3);
    }

    #[test]
    fn what_is_written_is_the_picture() {
        let folder = tempfile::tempdir().unwrap();
        let camera = CameraId::new("street").unwrap();
        let config = SnapshotConfig { dir: folder.path().into(), keep: 3, keep_for: Duration::from_secs(3600) };
        let mut sink = SnapshotSink::open(config, std::slice::from_ref(&camera)).unwrap();
        let picture = picture(&camera, Utc::now());
        sink.write(&picture).unwrap();
        let path = folder.path().join("street").join(&names(&folder.path().join("street"))[0]);
        let read = image::open(path).unwrap().to_rgb8();
        assert_eq!(read.dimensions(), (64, 48));
        let far = read.pixels().zip(picture.image.pixels()).flat_map(|(a, b)| a.0.into_iter().zip(b.0)).map(|(a, b)| a.abs_diff(b)).max();
        assert!(far.unwrap() < 40, "{far:?}");
    }
}
