//! Files of the annotated pictures of each camera, fragmented MP4 or Matroska: readable whatever ends the program. The MP4 muxer
//! holds back the last two seconds, or the last three pictures where they are rarer; those a kill takes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gstreamer::prelude::*;

use crate::base::clock::Utc;
use crate::base::error::{Context, Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::config::FileConfig;
use crate::sink::shelf::{Shelf, Stock};
use crate::sink::video::feed::{Feed, Shape};
use crate::sink::video::lane::{self, Lane};
use crate::sink::video::{encoder, init, raw};
use crate::sink::{Picture, Sink, Slates};
use crate::types::CameraId;

/// The most files of one name: `a.mp4`, `a-2.mp4` to `a-9999.mp4`.
const NAMES: u32 = 9999;

/// Frames between keyframes at most; by time there are more.
const GOP: u32 = 60;

/// The forms of the names of files that may be removed.
const MP4: &str = "00000000T000000.000Z.mp4";
const MKV: &str = "00000000T000000.000Z.mkv";

/// What stays where only one of the bounds is asked for.
const FOR_EVER: Duration = Duration::from_secs(3650 * 86_400);
const ANY_BYTES: u64 = u64::MAX;

/// Writes the configured path, with `{camera}` and `{time}` replaced, from a camera's first picture on. A file that exists stays
/// as it is: the next free name of `street.mp4`, `street-2.mp4`, `street-3.mp4` … is taken. The pictures' capture times become the
/// video's, so it plays in real time; each is shown until the next. Pictures of another size than the first are
/// letterboxed. After `max_file` or `max_bytes` the file is finished and the next one begun; the oldest are removed where the
/// configuration says how many stay.
pub struct FileSink {
    config: FileConfig,
    shelf: Option<Shelf>,
    cameras: BTreeMap<CameraId, Camera>,
}

struct Camera {
    lane: Lane,
    /// The file written last: one that stayed empty is taken again rather than a new name each time.
    path: Option<PathBuf>,
    /// When its first picture was taken.
    begun: Option<Utc>,
}

impl Camera {
    fn new() -> Self {
        Self { lane: Lane::new(), path: None, begun: None }
    }

    /// Whether another file is due.
    fn is_full(&self, picture: &Picture, config: &FileConfig) -> bool {
        let Some((begun, path)) = self.begun.zip(self.path.as_ref()) else { return false };
        let age = Duration::from_millis(u64::try_from(picture.captured.millis() - begun.millis()).unwrap_or_default());
        let large = |most: u64| std::fs::metadata(path).is_ok_and(|file| file.len() >= most);
        age >= config.max_file || config.max_bytes.is_some_and(large)
    }
}

impl FileSink {
    /// A sink for `cameras`; files are made at their first picture. Counts `video_files_removed` of all.
    ///
    /// # Errors
    /// When this installation cannot encode H.264 or write such files, or a folder cannot be made.
    pub fn new(config: FileConfig, cameras: &[CameraId], metrics: &Metrics) -> Result<Self> {
        init()?;
        encoder::h264(GOP)?;
        let muxer = if config.is_mkv() { "matroskamux" } else { "mp4mux" };
        if gstreamer::ElementFactory::find(muxer).is_none() {
            return Err(Error::new(Kind::Pipeline, format!("gstreamer element {muxer} is missing; install gstreamer1.0-plugins-good")));
        }
        let kept = (config.keep_for.is_some() || config.keep_bytes.is_some()).then(|| config.folder()).flatten();
        let stock = kept.map(|dir| Stock {
            key: "output.file.path",
            dir,
            form: if config.is_mkv() { MKV } else { MP4 },
            keep_for: config.keep_for.unwrap_or(FOR_EVER),
            keep_bytes: config.keep_bytes.unwrap_or(ANY_BYTES),
            removed: "video_files_removed",
        });
        let shelf = stock.map(|stock| Shelf::open(stock, cameras, metrics)).transpose()?;
        Ok(Self { config, shelf, cameras: BTreeMap::new() })
    }
}

impl Sink for FileSink {
    fn name(&self) -> &str {
        "file"
    }

    fn write(&mut self, picture: &Picture) -> Result<()> {
        let Self { config, shelf, cameras } = self;
        let camera = cameras.entry(picture.camera.clone()).or_insert_with(Camera::new);
        if camera.is_full(picture, config) {
            let full = std::mem::replace(camera, Camera::new());
            // A failure to end the old one must not cost the new one its first picture.
            if let Err(error) = full.lane.finish() {
                tracing::error!(sink = "file", camera = %picture.camera, "{}", error.chain());
            }
            if let Some((shelf, path)) = shelf.as_ref().zip(full.path) {
                shelf.release(&path);
            }
        }
        let Camera { lane, path, begun } = camera;
        lane.write(picture, |picture| {
            let wanted = config.path.replace("{camera}", picture.camera.as_str()).replace("{time}", &picture.captured.compact());
            let before = path.take();
            before.iter().zip(shelf.as_ref()).for_each(|(before, shelf)| shelf.release(before));
            let free = match before {
                Some(empty) if std::fs::metadata(&empty).is_ok_and(|meta| meta.len() == 0) => empty,
                _ => reserve(Path::new(&wanted))?,
            };
            (*path, *begun) = (Some(free.clone()), Some(picture.captured));
            if let Some(shelf) = shelf {
                shelf.hold(&free);
                shelf.tidy();
            }
            open(&free, config.is_mkv(), picture)
        })
    }

    fn leave(&mut self, camera: &CameraId) -> Result<()> {
        let Some(Camera { lane, path, .. }) = self.cameras.remove(camera) else { return Ok(()) };
        let finished = lane.finish();
        path.iter().zip(&self.shelf).for_each(|(path, shelf)| shelf.release(path));
        finished
    }

    /// Nobody waits for a file: one slate says why the picture stands still, and it does not grow while nothing happens.
    fn slates(&self) -> Slates {
        Slates::Once
    }

    fn tidy(&mut self) {
        self.shelf.iter().for_each(Shelf::tidy);
    }

    fn finish(&mut self) -> Result<()> {
        lane::finish_all(std::mem::take(&mut self.cameras).into_values().map(|camera| camera.lane))
    }
}

fn open(path: &Path, mkv: bool, picture: &Picture) -> Result<Feed> {
    // first-moov-then-finalise: readable while it grows, an ordinary MP4 once finished. Unbuffered: what the muxer has
    // written survives a kill.
    let muxer = if mkv { "matroskamux" } else { "mp4mux fragment-duration=1000 fragment-mode=first-moov-then-finalise" };
    let line = format!("{} ! {muxer} ! filesink name=file sync=false async=false buffer-mode=unbuffered", encoder::h264(GOP)?);
    let tail = gstreamer::parse::bin_from_description(&line, true).context(Kind::Pipeline, || "cannot build the file writer")?;
    let file = tail.by_name("file").ok_or_else(|| Error::new(Kind::Internal, "the file writer has no file"))?;
    file.set_property("location", path);
    tracing::info!(camera = %picture.camera, path = %path.display(), "video file begun");
    let name = format!("file-{}", picture.camera);
    Feed::start(Shape { name, canvas: raw::canvas(&picture.image), format: "I420", live: false }, tail)
}

/// Creates the first free name of `a.mp4`, `a-2.mp4` …, and its folder.
fn reserve(path: &Path) -> Result<PathBuf> {
    let fail = |path: &Path| format!("cannot create {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).context(Kind::Io, || fail(folder))?;
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    for n in 1..=NAMES {
        let candidate = if n == 1 { path.to_owned() } else { path.with_file_name(format!("{stem}-{n}{ending}")) };
        match OpenOptions::new().write(true).create_new(true).open(&candidate) {
            Ok(_) => return Ok(candidate),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::new(Kind::Io, fail(&candidate)).because(error)),
        }
    }
    Err(Error::new(Kind::Io, format!("{}: {NAMES} files of that name exist; move them away", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_use_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/street.v1.mp4");
        let names = (0..3).map(|_| reserve(&path).unwrap().file_name().unwrap().to_string_lossy().into_owned());
        assert_eq!(names.collect::<Vec<_>>(), ["street.v1.mp4", "street.v1-2.mp4", "street.v1-3.mp4"]);
    }
}
