//! A fragmented MP4 file per camera: readable whatever ends the program. The muxer holds back the last two seconds, or
//! the last three pictures where they are rarer; those a kill takes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use gstreamer::prelude::*;

use crate::base::clock::Utc;
use crate::base::error::{Context, Error, Kind, Result};
use crate::config::FileConfig;
use crate::sink::video::feed::{Feed, Shape};
use crate::sink::video::lane::{self, Lane};
use crate::sink::video::{encoder, init, raw};
use crate::sink::{Picture, Sink};
use crate::types::CameraId;

/// The most files of one name: `a.mp4`, `a-2.mp4` to `a-9999.mp4`.
const NAMES: u32 = 9999;

/// A file's longest time in milliseconds: a day. The muxer remembers every frame until the file is finished.
const LONGEST: i64 = 24 * 3600 * 1000;

/// Frames between keyframes at most; by time there are more.
const GOP: u32 = 60;

/// Writes `path`, with `{camera}` replaced, from a camera's first picture on. A file that exists stays as it is: the
/// next free name of `street.mp4`, `street-2.mp4`, `street-3.mp4` … is taken. The pictures' capture times become the
/// video's, so it plays in real time; each is shown until the next. Pictures of another size than the first are
/// letterboxed. After a day the file is finished and the next name begun.
pub struct FileSink {
    path: String,
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
}

impl FileSink {
    /// A sink for every camera; files are made at their first picture.
    ///
    /// # Errors
    /// When this installation cannot encode H.264 or write MP4.
    pub fn new(config: FileConfig) -> Result<Self> {
        init()?;
        encoder::h264(GOP)?;
        if gstreamer::ElementFactory::find("mp4mux").is_none() {
            return Err(Error::new(Kind::Pipeline, "gstreamer element mp4mux is missing; install gstreamer1.0-plugins-good"));
        }
        Ok(Self { path: config.path, cameras: BTreeMap::new() })
    }
}

impl Sink for FileSink {
    fn name(&self) -> &str {
        "file"
    }

    fn write(&mut self, picture: &Picture) -> Result<()> {
        let wanted = PathBuf::from(self.path.replace("{camera}", picture.camera.as_str()));
        let camera = self.cameras.entry(picture.camera.clone()).or_insert_with(Camera::new);
        let age = camera.begun.map_or(0, |begun| picture.captured.millis() - begun.millis());
        if age >= LONGEST {
            // A failure to end the old one must not cost the new one its first picture.
            if let Err(error) = std::mem::replace(camera, Camera::new()).lane.finish() {
                tracing::error!(sink = "file", camera = %picture.camera, "{}", error.chain());
            }
        }
        let Camera { lane, path, begun } = camera;
        lane.write(picture, |picture| {
            let free = match path.take() {
                Some(empty) if std::fs::metadata(&empty).is_ok_and(|meta| meta.len() == 0) => empty,
                _ => reserve(&wanted)?,
            };
            (*path, *begun) = (Some(free.clone()), Some(picture.captured));
            open(&free, picture)
        })
    }

    fn leave(&mut self, camera: &CameraId) -> Result<()> {
        self.cameras.remove(camera).map_or(Ok(()), |camera| camera.lane.finish())
    }

    fn finish(&mut self) -> Result<()> {
        lane::finish_all(std::mem::take(&mut self.cameras).into_values().map(|camera| camera.lane))
    }
}

fn open(path: &Path, picture: &Picture) -> Result<Feed> {
    // first-moov-then-finalise: readable while it grows, an ordinary MP4 once finished. Unbuffered: what the muxer has
    // written survives a kill.
    let line = format!(
        "{} ! mp4mux fragment-duration=1000 fragment-mode=first-moov-then-finalise \
         ! filesink name=file sync=false async=false buffer-mode=unbuffered",
        encoder::h264(GOP)?
    );
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
