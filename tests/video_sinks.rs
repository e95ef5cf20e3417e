//! Video sinks: real files read by ffprobe, a real RTSP viewer, real fragments.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use image::{Rgb, RgbImage};

use crate::live::Brush;
use palisade::annotate::Annotator;
use palisade::base::clock::Utc;
use palisade::base::metrics::Metrics;
use palisade::config::{CustomConfig, FileConfig, RtspConfig};
use palisade::sink::video::{CustomSink, FileSink, Painter, RtspSink};
use palisade::sink::{Fanout, Picture, Sink};
use palisade::types::CameraId;

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

const RED: [u8; 3] = [220, 20, 20];
const BLUE: [u8; 3] = [20, 20, 220];

fn id(camera: &str) -> CameraId {
    CameraId::new(camera).unwrap()
}

fn picture(camera: &str, millis: i64, size: (u32, u32), colour: [u8; 3]) -> Picture {
    let image = Arc::new(RgbImage::from_pixel(size.0, size.1, Rgb(colour)));
    Picture { camera: id(camera), captured: Utc::from_millis(1_795_442_587_120 + millis), image }
}

fn file_sink(dir: &Path) -> FileSink {
    file_sink_of(FileConfig::new(format!("{}/out/{{camera}}.mp4", dir.display())))
}

fn file_sink_of(config: FileConfig) -> FileSink {
    FileSink::new(config, &[id("street")], &Metrics::new()).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Width, height, decoded frames, duration in seconds; `None` where ffprobe cannot read the file.
fn probe(path: &Path) -> Option<(u32, u32, u32, f64)> {
    let fields = "stream=width,height,nb_read_frames:format=duration";
    let args = ["-v", "error", "-count_frames", "-select_streams", "v:0", "-show_entries", fields, "-of", "json"];
    let output = Command::new("ffprobe").args(args).arg(path).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let stream = json["streams"].get(0)?;
    let size = |name: &str| u32::try_from(stream[name].as_u64().unwrap_or(0)).unwrap();
    let frames = stream["nb_read_frames"].as_str()?.parse().ok()?;
    let duration = json["format"]["duration"].as_str().and_then(|d| d.parse().ok()).unwrap_or(0.0);
    Some((size("width"), size("height"), frames, duration))
}

/// When each frame is shown, in seconds.
fn frame_times(path: &Path) -> Vec<f64> {
    let args = ["-v", "error", "-select_streams", "v:0", "-show_entries", "frame=pts_time", "-of", "csv=p=0"];
    let output = Command::new("ffprobe").args(args).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split([',', '\n']).filter(|time| !time.is_empty()).map(|time| time.parse().unwrap()).collect()
}

/// The first frame of a video that begins at or after `seconds`.
fn frame_after(path: &Path, seconds: f64) -> RgbImage {
    let still = path.with_extension("still.png");
    let args = ["-v", "error", "-y", "-ss", &seconds.to_string(), "-i"];
    let status = Command::new("ffmpeg").args(args).arg(path).args(["-frames:v", "1"]).arg(&still).status().unwrap();
    assert!(status.success());
    image::open(&still).unwrap().to_rgb8()
}

fn close(pixel: &Rgb<u8>, colour: [u8; 3]) -> bool {
    pixel.0.iter().zip(colour).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 24)
}

#[test]
fn a_file_plays_in_real_time_and_none_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    for (name, size) in [("street.mp4", (1367, 767)), ("street-2.mp4", (320, 240))] {
        let mut sink = file_sink(dir.path());
        for (at, colour) in [(0, RED), (500, RED), (4500, BLUE), (5000, RED), (5300, RED)] {
            sink.write(&picture("street", at, size, colour)).unwrap();
        }
        sink.finish().unwrap();
        let path = dir.path().join("out").join(name);
        let (width, height, frames, duration) = probe(&path).unwrap();
        assert_eq!((width, height, frames), (size.0.next_multiple_of(2), size.1.next_multiple_of(2), 5), "{name}");
        assert!((5.5..6.0).contains(&duration), "{name}: {duration}");
        let times = frame_times(&path);
        let expected = [0.0, 0.5, 4.5, 5.0, 5.3];
        assert!(times.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.02), "{name}: {times:?}");
        for (second, colour) in [(0.4, RED), (4.4, BLUE), (4.9, RED)] {
            let shown = frame_after(&path, second);
            let pixel = shown.get_pixel(shown.width() / 2, shown.height() / 2);
            assert!(close(pixel, colour), "{name} at {second} s: {pixel:?}");
        }
    }
}

#[test]
fn a_file_that_is_never_finished_is_readable() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = file_sink(dir.path());
    for n in 0..40 {
        sink.write(&picture("street", n * 500, (320, 240), if n % 2 == 0 { RED } else { BLUE })).unwrap();
    }
    // What is on the disk now is what a kill -9 would leave.
    let copy = dir.path().join("copy.mp4");
    until("readable to within two seconds of its end", || {
        std::fs::copy(dir.path().join("out/street.mp4"), &copy).unwrap();
        probe(&copy).is_some_and(|(_, _, frames, _)| frames >= 36)
    });
}

#[test]
fn a_matroska_file_plays_in_real_time_and_is_readable_when_it_is_never_finished() {
    let dir = tempfile::tempdir().unwrap();
    let config = FileConfig::new(format!("{}/{{camera}}.mkv", dir.path().display()));
    let mut sink = file_sink_of(config.clone());
    for n in 0..40 {
        sink.write(&picture("street", n * 500, (321, 240), if n % 2 == 0 { RED } else { BLUE })).unwrap();
    }
    let copy = dir.path().join("copy.mkv");
    until("readable to within two seconds of its end", || {
        std::fs::copy(dir.path().join("street.mkv"), &copy).unwrap();
        probe(&copy).is_some_and(|(width, _, frames, _)| frames >= 36 && width == 322)
    });
    let shown = frame_after(&copy, 10.4);
    assert!(close(shown.get_pixel(160, 120), BLUE), "{:?}", shown.get_pixel(160, 120));
    sink.finish().unwrap();
    let (_, _, frames, duration) = probe(&dir.path().join("street.mkv")).unwrap();
    assert!(frames == 40 && (19.5..20.6).contains(&duration), "{frames} {duration}");
    let times = frame_times(&dir.path().join("street.mkv"));
    assert!(times.iter().zip(0..).all(|(time, n)| (time - f64::from(n) * 0.5).abs() < 0.02), "{times:?}");
}

#[test]
fn files_are_cut_by_time_and_by_size_and_the_oldest_go() {
    for ending in ["mp4", "mkv"] {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let folder = dir.path().join("street");
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names.into_iter().map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
        };
        let config = FileConfig {
            max_file: Duration::from_secs(10),
            ..FileConfig::new(format!("{}/{{camera}}/{{time}}.{ending}", dir.path().display()))
        };
        let mut sink = FileSink::new(config.clone(), &[id("street")], &metrics).unwrap();
        for at in [0, 5000, 9999, 10_000, 12_000, 31_000] {
            sink.write(&picture("street", at, (320, 240), RED)).unwrap();
        }
        sink.finish().unwrap();
        let stamps = ["20261123T140307.120Z", "20261123T140317.120Z", "20261123T140338.120Z"].map(|stamp| format!("{stamp}.{ending}"));
        let frames = |name: &String| probe(&folder.join(name)).map(|(.., frames, _)| frames);
        assert_eq!(names(), stamps);
        assert_eq!(stamps.each_ref().map(frames), [Some(3), Some(2), Some(1)], "{ending}");

        // Noise: keyframes of some 110 kB, of which a muxer holds several back. The oldest files go as the next one begins.
        let (mut state, mut noise) = (1_u32, RgbImage::new(640, 480));
        let config = FileConfig { max_bytes: Some(300_000), keep_bytes: Some(2_000_000), ..FileConfig::new(config.path) };
        let mut sink = FileSink::new(config, &[id("street")], &metrics).unwrap();
        for n in 0..60_i64 {
            noise.iter_mut().for_each(|value| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *value = (state >> 24) as u8;
            });
            let image = Arc::new(noise.clone());
            sink.write(&Picture { image, ..picture("street", 60_000 + n * 1000, (1, 1), RED) }).unwrap();
        }
        sink.finish().unwrap();
        let left = names();
        let sizes: Vec<u64> = left.iter().map(|name| std::fs::metadata(folder.join(name)).unwrap().len()).collect();
        assert!(left.len() >= 2 && !left.contains(&stamps[0]), "{left:?} {sizes:?}");
        assert!(sizes[..sizes.len() - 1].iter().all(|size| (300_000..2_000_000).contains(size)), "{sizes:?}");
        assert!(left.iter().all(|name| frames(name).is_some_and(|frames| frames > 0)), "{left:?}");
        assert!(metrics.counter("video_files_removed", "all").get() >= 3);
    }
}

#[test]
fn a_file_of_rare_pictures_keeps_all_but_the_last_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = file_sink(dir.path());
    for n in 0..10 {
        sink.write(&picture("street", n * 10_000, (320, 240), RED)).unwrap();
    }
    let copy = dir.path().join("copy.mp4");
    until("readable but for its last three pictures", || {
        std::fs::copy(dir.path().join("out/street.mp4"), &copy).unwrap();
        probe(&copy).is_some_and(|(_, _, frames, _)| frames >= 7)
    });
    sink.finish().unwrap();
    let (_, _, frames, duration) = probe(&dir.path().join("out/street.mp4")).unwrap();
    assert!(frames == 10 && (90.0..101.0).contains(&duration), "{frames} {duration}");
}

#[test]
fn a_new_day_is_a_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = file_sink(dir.path());
    let day = 24 * 3600 * 1000;
    for at in [0, 500, day, day + 500, day + 1000] {
        sink.write(&picture("street", at, (320, 240), RED)).unwrap();
    }
    sink.finish().unwrap();
    for (name, pictures) in [("street.mp4", 2), ("street-2.mp4", 3)] {
        assert_eq!(probe(&dir.path().join("out").join(name)).map(|(.., frames, _)| frames), Some(pictures), "{name}");
    }
}

#[test]
fn a_picture_of_another_size_is_letterboxed() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = file_sink(dir.path());
    sink.write(&picture("street", 0, (320, 240), RED)).unwrap();
    sink.write(&picture("street", 1000, (320, 120), BLUE)).unwrap();
    sink.write(&picture("street", 2000, (320, 120), BLUE)).unwrap();
    sink.finish().unwrap();
    let path = dir.path().join("out/street.mp4");
    assert_eq!(probe(&path).map(|(w, h, n, _)| (w, h, n)), Some((320, 240, 3)));
    let shown = frame_after(&path, 1.5);
    assert!(close(shown.get_pixel(160, 120), BLUE) && close(shown.get_pixel(160, 10), [0; 3]));
}

#[test]
fn cameras_have_files_of_their_own_and_a_folder_that_cannot_be_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = file_sink(dir.path());
    for camera in ["left", "right"] {
        sink.write(&picture(camera, 0, (64, 48), RED)).unwrap();
    }
    sink.finish().unwrap();
    for camera in ["left", "right"] {
        assert_eq!(probe(&dir.path().join(format!("out/{camera}.mp4"))).map(|(.., frames, _)| frames), Some(1), "{camera}");
    }
    std::fs::write(dir.path().join("flat"), "a file").unwrap();
    let mut sink = file_sink_of(FileConfig::new(format!("{}/flat/{{camera}}.mp4", dir.path().display())));
    let error = sink.write(&picture("left", 0, (64, 48), RED)).unwrap_err().chain();
    assert!(error.contains("flat"), "{error}");
    assert!(sink.write(&picture("left", 1, (64, 48), RED)).unwrap_err().chain().contains("next try"));
}

/// A viewer; its frames' sizes and middle pixels.
struct Viewer {
    pipeline: gstreamer::Pipeline,
    sink: gstreamer_app::AppSink,
}

impl Viewer {
    fn open(uri: &str) -> Self {
        let line = format!(
            "rtspsrc location={uri} protocols=tcp latency=0 ! rtph264depay ! avdec_h264 ! videoconvert \
             ! video/x-raw,format=RGB ! appsink name=sink sync=false max-buffers=1 drop=true"
        );
        let pipeline = gstreamer::parse::launch(&line).unwrap().downcast::<gstreamer::Pipeline>().unwrap();
        let sink = pipeline.by_name("sink").unwrap().downcast().unwrap();
        pipeline.set_state(gstreamer::State::Playing).unwrap();
        Self { pipeline, sink }
    }

    /// The next frame's size and middle pixel.
    fn look(&self) -> ((u32, u32), Rgb<u8>) {
        let sample = self.sink.try_pull_sample(gstreamer::ClockTime::from_seconds(30)).expect("a frame");
        let info = gstreamer_video::VideoInfo::from_caps(sample.caps().unwrap()).unwrap();
        let map = sample.buffer().unwrap().map_readable().unwrap();
        let at = info.stride()[0] as usize * (info.height() as usize / 2) + 3 * (info.width() as usize / 2);
        ((info.width(), info.height()), Rgb([map[at], map[at + 1], map[at + 2]]))
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.pipeline.set_state(gstreamer::State::Null).unwrap();
    }
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[test]
fn a_viewer_sees_the_latest_picture_and_nobody_costs_nothing() {
    let metrics = Metrics::new();
    let mut sink = RtspSink::new(RtspConfig::new(anywhere()), &[id("street"), id("yard")], None, &metrics).unwrap();
    let uri = format!("rtsp://127.0.0.1:{}", sink.port());
    let encoded = |camera| metrics.counter("rtsp_pictures_encoded", camera).get();
    sink.write(&picture("street", 0, (641, 361), RED)).unwrap();

    let first = Viewer::open(&format!("{uri}/street"));
    let (size, pixel) = first.look();
    assert!(size == (642, 362) && close(&pixel, RED), "{size:?} {pixel:?}");
    let second = Viewer::open(&format!("{uri}/street"));
    until("the same picture", || close(&second.look().1, RED));
    sink.write(&picture("street", 1000, (320, 90), BLUE)).unwrap();
    for viewer in [&first, &second] {
        until("the new picture, letterboxed", || viewer.look().0 == (642, 362) && close(&viewer.look().1, BLUE));
    }
    assert_eq!(encoded("yard"), 0);

    drop((first, second));
    let mut before = (encoded("street"), Instant::now());
    until("idle for two seconds", || {
        if encoded("street") != before.0 {
            before = (encoded("street"), Instant::now());
        }
        before.1.elapsed() >= Duration::from_secs(2)
    });
    assert!(close(&Viewer::open(&format!("{uri}/street")).look().1, BLUE), "it starts anew for the next viewer");
    sink.finish().unwrap();
    assert!(TcpListener::bind(("127.0.0.1", sink.port())).is_ok(), "the port is free again");
}

#[test]
fn a_viewer_before_the_first_picture_sees_a_slate() {
    let metrics = Metrics::new();
    let mut sink = RtspSink::new(RtspConfig::new(anywhere()), &[id("street")], None, &metrics).unwrap();
    let viewer = Viewer::open(&format!("rtsp://127.0.0.1:{}/street", sink.port()));
    let (size, pixel) = viewer.look();
    assert!(size == (1280, 720) && close(&pixel, [96; 3]), "{size:?} {pixel:?}");
    sink.write(&picture("street", 0, (320, 240), BLUE)).unwrap();
    until("the picture", || close(&viewer.look().1, BLUE));
    assert!(sink.write(&picture("stranger", 0, (320, 240), BLUE)).is_err());
}

#[test]
fn a_taken_port_is_said_at_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let error = RtspSink::new(RtspConfig::new(listen), &[id("street")], None, &Metrics::new()).err().unwrap().chain();
    assert!(error.contains(&listen.to_string()) && error.contains("in use"), "{error}");
}

#[test]
fn a_fragment_writes_what_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline =
        format!("videoconvert ! x264enc tune=zerolatency ! matroskamux ! filesink location={}/{{camera}}.mkv", dir.path().display());
    let mut sink = CustomSink::new(3, CustomConfig { pipeline }).unwrap();
    assert_eq!(sink.name(), "custom-3");
    for camera in ["left", "right"] {
        for n in 0..5 {
            sink.write(&picture(camera, n * 100, if n == 4 { (100, 100) } else { (321, 240) }, RED)).unwrap();
        }
    }
    sink.finish().unwrap();
    for camera in ["left", "right"] {
        let (width, height, frames, _) = probe(&dir.path().join(format!("{camera}.mkv"))).unwrap();
        assert_eq!((width, height, frames), (322, 240, 5));
    }
}

#[test]
fn a_broken_fragment_is_refused_at_the_start() {
    let error = CustomSink::new(1, CustomConfig { pipeline: "videoconvert ! nonsense ! fakesink".into() }).err().unwrap();
    assert!(error.chain().contains("output.custom[1].pipeline") && error.chain().contains("nonsense"), "{}", error.chain());
}

#[test]
fn a_failing_fragment_fails_its_own_pictures_only() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let custom = |index, pipeline: String| CustomSink::new(index, CustomConfig { pipeline }).unwrap();
    let lost = custom(0, format!("videoconvert ! jpegenc ! filesink location={}/missing/a.mjpeg", dir.path().display()));
    // Fails only once it runs, not at its start.
    let dying = custom(1, "videoconvert ! identity error-after=2 ! fakesink".to_owned());
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(lost), Box::new(dying), Box::new(file_sink(dir.path()))];
    let painter: Arc<dyn Painter> = Arc::new(Brush(Annotator::new().unwrap()));
    let fanout = Fanout::start(sinks, &painter, &metrics).unwrap();
    let count = |name, sink| metrics.counter(name, sink).get();
    for n in 0..10 {
        fanout.offer(&picture("street", n * 100, (64, 48), RED));
        let all = || ["sink_frames_written", "sink_frames_failed"].map(|name| count(name, "custom-1")).iter().sum::<u64>();
        until("taken", || all() == n as u64 + 1 && count("sink_frames_written", "file") == n as u64 + 1);
    }
    until("counted", || count("sink_frames_failed", "custom-0") == 10);
    assert!(count("sink_frames_failed", "custom-1") > 0);
    assert_eq!(count("sink_frames_written", "custom-0"), 0);
    fanout.finish(Instant::now() + PATIENCE);
    assert_eq!(probe(&dir.path().join("out/street.mp4")).map(|(.., frames, _)| frames), Some(10));
}

#[test]
fn a_fragment_that_takes_nothing_holds_nobody_for_long() {
    let mut sink = CustomSink::new(0, CustomConfig { pipeline: "identity sleep-time=60000000 ! fakesink".into() }).unwrap();
    let began = Instant::now();
    let failed = (0..6).any(|n| sink.write(&picture("street", n, (64, 48), RED)).is_err());
    assert!(failed && began.elapsed() < PATIENCE, "{failed} {:?}", began.elapsed());
}
