//! What who watches the analysed pictures sees of a camera that is killed: over RTSP, out of a fragment, and in a file.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{GREY, Viewer, close, until};
use crate::support::camera::Camera;
use crate::support::daemon::{Daemon, repository};
use crate::support::source::PATIENCE;
use image::RgbImage;

/// A viewer that is not ours; killed when dropped.
struct Ffmpeg(Child);

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// How bright the frames of a video are.
fn brightness(path: &Path) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args(["-fps_mode", "passthrough", "-vf", "scale=1:1:flags=area", "-pix_fmt", "gray", "-f", "rawvideo", "-"])
        .output()
        .unwrap();
    output.stdout
}

fn bright(picture: &RgbImage) -> bool {
    close(picture.get_pixel(10, 10), [150; 3])
}

fn dark(picture: &RgbImage) -> bool {
    close(picture.get_pixel(10, 10), [50; 3])
}

#[test]
fn a_killed_camera_is_a_slate_to_who_watches_the_analysed_pictures_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut camera = Camera::launch(GREY);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "[model]\npath = {:?}\n[[camera]]\nid = \"cam\"\nuri = {:?}\nlabels = [\"car\"]\ninterval = 0.5\ndecode = \"all\"\n\
         [output.rtsp]\nlisten = \"127.0.0.1:{port}\"\n[output.file]\npath = \"{{camera}}.mkv\"\n\
         [[output.custom]]\npipeline = \"videoconvert ! jpegenc ! multifilesink location={{camera}}-%05d.jpg\"\n",
        repository("samples/demo-model"),
        camera.uri(),
    );
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.ready();
    let address = format!("rtsp://127.0.0.1:{port}/cam");
    let jpegs = || -> Vec<PathBuf> {
        let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut jpegs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|ending| ending == "jpg")).collect();
        jpegs.sort();
        jpegs
    };
    // The last may be half written.
    let newest = || jpegs().iter().rev().nth(1).map(|path| image::open(path).unwrap().to_rgb8());
    until("analysed", || jpegs().len() > 3);
    gstreamer::init().unwrap();
    let viewer = Viewer::open(&address);
    viewer.until("the camera", bright);
    let recorded = folder.path().join("watched.ts");
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-rtsp_transport", "tcp", "-i", &address, "-c", "copy", "-flush_packets", "1"]).arg(&recorded);
    let mut ffmpeg = Ffmpeg(command.stdin(Stdio::null()).spawn().unwrap());
    let length = || std::fs::metadata(&recorded).map_or(0, |file| file.len());
    until("recorded by ffmpeg", || length() > 0);

    camera.kill9();
    let slate = viewer.until("a slate", dark);
    assert_eq!(slate.dimensions(), (640, 360));
    assert!(slate.pixels().any(|pixel| pixel.0.iter().all(|value| *value > 220)), "it says why");
    if let Some(kept) = std::env::var_os("PALISADE_TEST_PICTURES") {
        slate.save(Path::new(&kept).join("analysed-slate.png")).unwrap();
    }
    until("a slate out of the fragment", || newest().as_ref().is_some_and(dark));
    let (frames, files, bytes) = (viewer.frames(), jpegs().len(), length());
    until("more of each", || viewer.frames() >= frames + 20 && jpegs().len() >= files + 4 && length() > bytes);
    // Who comes now sees it too.
    Viewer::open(&address).until("a slate", dark);
    // Longer than what is not written down. The muxer holds a file's newest picture back: it is read at the end.
    std::thread::sleep(Duration::from_secs(6));

    camera.restart();
    // The longer it was away the rarer it is tried.
    let begin = Instant::now();
    while !viewer.picture().as_ref().is_some_and(bright) {
        assert!(begin.elapsed() < 4 * PATIENCE, "never the camera again:\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    until("the camera out of the fragment", || newest().as_ref().is_some_and(bright));
    viewer.plays();
    assert!(ffmpeg.0.try_wait().unwrap().is_none(), "ffmpeg was disconnected");
    until("seen by ffmpeg", || {
        let seen = brightness(&recorded);
        let first = seen.iter().position(|value| *value < 100);
        first.is_some_and(|first| first > 0 && seen[first..].iter().any(|value| *value > 130))
    });
    drop(ffmpeg);
    daemon.signal("TERM");
    assert!(daemon.wait(PATIENCE).success());
    let seen = brightness(&folder.path().join("cam.mkv"));
    let slates = seen.iter().filter(|value| **value < 100).count();
    assert!(slates == 1 && seen.len() > 6, "{seen:?}");
}
