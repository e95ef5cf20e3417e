//! Live video over RTSP: real cameras in processes of their own, real viewers.

mod analysed;
mod login;
mod push;
mod watch;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use image::{Rgb, RgbImage};

use crate::support::camera::Camera;
use crate::support::daemon::{Daemon, repository};
use crate::support::source::{Open, PATIENCE, camera, open_raw, open_told};
use palisade::annotate::Annotator;
use palisade::base::clock::Utc;
use palisade::base::metrics::Metrics;
use palisade::config::{CameraConfig, Decode, EncoderKind, Input, RtspConfig, RtspVideo};
use palisade::sink::video::{Live, Painter, RtspSink};
use palisade::sink::{Picture, Sink};
use palisade::types::{Box01, CameraId, CameraState, CameraStatus, Encoded, Mark, Patch};

/// 640×360, 25 frames a second, one grey, a keyframe each ten seconds: what is seen sooner was kept.
pub const GREY: &str = "videotestsrc is-live=true pattern=solid-color foreground-color=0xff969696 ! video/x-raw,format=I420,width=640,height=360,framerate=25/1 \
     ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=250 ! rtph264pay name=pay0 pt=96 config-interval=-1";

pub struct Brush(pub Annotator);

impl Painter for Brush {
    fn boxes(&self, marks: &[Mark], now: Instant, size: (u32, u32)) -> Vec<Patch> {
        self.0.overlay(marks, now, size)
    }
    fn slate(&self, picture: Option<&RgbImage>, size: (u32, u32), lines: &[String]) -> RgbImage {
        self.0.slate(picture, size, lines)
    }
}

pub fn id() -> CameraId {
    CameraId::new("cam").unwrap()
}

/// A server of live video without a camera.
fn serve() -> (Live, RtspSink, Metrics) {
    gstreamer::init().unwrap();
    let metrics = Metrics::new();
    let live = Live::new(&[id()], EncoderKind::X264, Arc::new(Brush(Annotator::new().unwrap())), &metrics).unwrap();
    let config = RtspConfig { video: RtspVideo::Live, ..RtspConfig::new("127.0.0.1:0".parse().unwrap()) };
    let sink = RtspSink::new(config, &[id()], Some(live.clone()), &metrics).unwrap();
    (live, sink, metrics)
}

/// A camera, its source, and the server of its live video.
struct Rig {
    open: Open,
    live: Live,
    sink: RtspSink,
    metrics: Metrics,
}

impl Rig {
    fn start(uri: &str) -> Self {
        let (live, sink, metrics) = serve();
        let (units, states) = (live.clone(), live.clone());
        let config = CameraConfig { decode: Decode::Keyframes, ..camera(uri) };
        let open = open_told(
            config,
            Box::new(move |encoded| {
                if let Encoded::Unit(unit) = encoded {
                    units.encoded(&id(), unit);
                }
            }),
            move |status| states.status(status),
        );
        Self { open, live, sink, metrics }
    }

    /// Until the camera is seen to run.
    fn running(self) -> Self {
        self.open.reach(CameraState::Running);
        self
    }

    fn viewer(&self) -> Viewer {
        Viewer::open(&uri(&self.sink))
    }

    fn encoded(&self) -> u64 {
        self.metrics.counter("rtsp_pictures_encoded", "cam").get()
    }

    /// A box around the middle, seen at this moment.
    fn mark(&self, lasts: Duration) {
        let box01 = Box01 { y_min: 0.25, x_min: 0.25, y_max: 0.75, x_max: 0.75 };
        self.live.marks(&id(), vec![Mark { label: "cat".into(), score: 0.9, box01, seen: Instant::now(), lasts }]);
    }
}

fn uri(sink: &RtspSink) -> String {
    format!("rtsp://127.0.0.1:{}/cam", sink.port())
}

/// A viewer: how many frames came, and the newest.
struct Viewer {
    pipeline: gstreamer::Pipeline,
    seen: Arc<Mutex<(u64, Option<RgbImage>)>>,
}

impl Viewer {
    fn open(uri: &str) -> Self {
        let line = format!(
            "rtspsrc location={uri} protocols=tcp latency=0 ! rtph264depay ! avdec_h264 ! videoconvert \
             ! video/x-raw,format=RGB ! appsink name=sink sync=false"
        );
        let pipeline = gstreamer::parse::launch(&line).unwrap().downcast::<gstreamer::Pipeline>().unwrap();
        let sink = pipeline.by_name("sink").unwrap().downcast::<gstreamer_app::AppSink>().unwrap();
        let seen = Arc::<Mutex<(u64, Option<RgbImage>)>>::default();
        let noted = seen.clone();
        let take = move |sink: &gstreamer_app::AppSink| {
            let sample = sink.pull_sample().map_err(|_| gstreamer::FlowError::Eos)?;
            let info = gstreamer_video::VideoInfo::from_caps(sample.caps().unwrap()).unwrap();
            let map = sample.buffer().unwrap().map_readable().unwrap();
            let rows = map.chunks(info.stride()[0] as usize).take(info.height() as usize);
            let pixels = rows.flat_map(|row| &row[..info.width() as usize * 3]).copied().collect();
            let mut noted = noted.lock().unwrap();
            *noted = (noted.0 + 1, RgbImage::from_raw(info.width(), info.height(), pixels));
            Ok(gstreamer::FlowSuccess::Ok)
        };
        sink.set_callbacks(gstreamer_app::AppSinkCallbacks::builder().new_sample(take).build());
        pipeline.set_state(gstreamer::State::Playing).unwrap();
        Self { pipeline, seen }
    }

    fn frames(&self) -> u64 {
        self.seen.lock().unwrap().0
    }

    fn picture(&self) -> Option<RgbImage> {
        self.seen.lock().unwrap().1.clone()
    }

    /// Waits for a picture that is as wanted.
    fn until(&self, what: &str, wanted: impl Fn(&RgbImage) -> bool) -> RgbImage {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(picture) = self.picture().filter(&wanted) {
                return picture;
            }
            if Instant::now() >= deadline {
                let seen = self.picture();
                let path = std::env::temp_dir().join("palisade-live-test.png");
                seen.iter().for_each(|picture| picture.save(&path).unwrap());
                panic!("never {what}; {} frames came, the last is {}", self.frames(), path.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Frames a second, over some seconds.
    fn rate(&self, seconds: u64) -> f64 {
        let (before, begin) = (self.frames(), Instant::now());
        std::thread::sleep(Duration::from_secs(seconds));
        (self.frames() - before) as f64 / begin.elapsed().as_secs_f64()
    }

    /// Nothing has ended or failed.
    fn plays(&self) {
        let ends = [gstreamer::MessageType::Eos, gstreamer::MessageType::Error];
        let message = self.pipeline.bus().unwrap().pop_filtered(&ends);
        assert!(message.is_none(), "the viewer was disconnected: {message:?}");
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.pipeline.set_state(gstreamer::State::Null).unwrap();
    }
}

pub fn close(pixel: &Rgb<u8>, colour: [u8; 3]) -> bool {
    pixel.0.iter().zip(colour).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 30)
}

/// The colour of the label `cat`, as the annotator draws it.
fn cat() -> [u8; 3] {
    let box01 = Box01 { y_min: 0.2, x_min: 0.2, y_max: 0.8, x_max: 0.8 };
    let mark = Mark { label: "cat".into(), score: 0.9, box01, seen: Instant::now(), lasts: Duration::from_secs(60) };
    let patches = Annotator::new().unwrap().overlay(&[mark], Instant::now(), (640, 360));
    let of_colour = |pixel: &&image::Rgba<u8>| pixel.0[3] == 255 && pixel.0[..3] != [0; 3] && pixel.0[..3] != [255; 3];
    let mut counts = BTreeMap::<[u8; 3], usize>::new();
    patches
        .iter()
        .flat_map(|patch| patch.image.pixels())
        .filter(of_colour)
        .for_each(|p| *counts.entry([p.0[0], p.0[1], p.0[2]]).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).unwrap().0
}

/// Whether there is a box around the middle, by its left edge.
pub fn boxed(picture: &RgbImage) -> bool {
    close(picture.get_pixel(162, 200), cat()) && close(picture.get_pixel(320, 200), [150; 3]) && close(picture.get_pixel(60, 200), [150; 3])
}

pub fn bare(picture: &RgbImage) -> bool {
    [60, 162, 320].iter().all(|x| close(picture.get_pixel(*x, 200), [150; 3]))
}

/// Threads of this process whose name begins so.
pub fn threads(name: &str) -> usize {
    let names =
        std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).count()
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn live_video_has_the_cameras_rate_and_the_newest_boxes() {
    let camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri()).running();
    // In the middle of a group of ten seconds, with a picture at once all the same.
    std::thread::sleep(Duration::from_secs(2));
    rig.mark(Duration::from_secs(600));
    let began = Instant::now();
    let viewer = rig.viewer();
    let picture = viewer.until("boxed", boxed);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(picture.dimensions(), (640, 360));
    if let Some(folder) = std::env::var_os("PALISADE_TEST_PICTURES") {
        picture.save(Path::new(&folder).join("live.png")).unwrap();
    }
    let rate = viewer.rate(4);
    assert!((21.0..29.0).contains(&rate), "{rate} frames a second");
    rig.live.marks(&id(), Vec::new());
    viewer.until("without a box", bare);
    // Drawn when it changes, and fading by itself.
    rig.mark(Duration::from_millis(1500));
    viewer.until("boxed again", boxed);
    viewer.until("faded", bare);
    viewer.plays();
    assert!(rig.open.metrics.counter("frames_sampled", "cam").get() < 4, "looks are rarer than pictures");
}

#[test]
fn viewers_share_one_encoder_and_nobody_costs_none() {
    let camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri()).running();
    std::thread::sleep(Duration::from_secs(1));
    let idle = threads("");
    assert_eq!((rig.encoded(), threads("live-")), (0, 0), "nobody watches");
    let viewers = [rig.viewer(), rig.viewer(), rig.viewer()];
    for viewer in &viewers {
        viewer.until("shown", |picture| close(picture.get_pixel(320, 180), [150; 3]));
    }
    assert_eq!(threads("live-"), 1);
    let (before, begin) = (rig.encoded(), Instant::now());
    let rates: Vec<f64> = viewers.iter().map(|viewer| viewer.rate(2)).collect();
    let encoded = (rig.encoded() - before) as f64 / begin.elapsed().as_secs_f64();
    assert!((20.0..30.0).contains(&encoded), "{encoded} pictures a second are encoded");
    assert!(rates.iter().all(|rate| (20.0..30.0).contains(rate)), "{rates:?}");
    drop(viewers);
    until("without a thread that shows", || threads("live-") == 0);
    until("without an encoder", || threads("") <= idle + 1);
    let before = rig.encoded();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(rig.encoded(), before);
    rig.viewer().until("shown to the next one", |picture| close(picture.get_pixel(320, 180), [150; 3]));
}

#[test]
fn a_lost_camera_is_a_slate_and_comes_back_to_the_same_viewer() {
    let mut camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri()).running();
    rig.mark(Duration::from_secs(600));
    let viewer = rig.viewer();
    viewer.until("boxed", boxed);
    camera.kill9();
    let dark = |picture: &RgbImage| close(picture.get_pixel(10, 10), [50; 3]);
    let slate = viewer.until("a slate", dark);
    assert!(slate.pixels().any(|pixel| pixel.0.iter().all(|value| *value > 220)), "it says why");
    assert!(!close(slate.get_pixel(162, 200), cat()), "nothing is boxed on it");
    if let Some(folder) = std::env::var_os("PALISADE_TEST_PICTURES") {
        slate.save(Path::new(&folder).join("slate.png")).unwrap();
    }
    let rate = viewer.rate(4);
    assert!((1.0..4.0).contains(&rate), "{rate} slates a second");
    // Who comes now sees it too.
    rig.viewer().until("a slate", dark);
    camera.restart();
    viewer.until("the camera again", boxed);
    let rate = viewer.rate(2);
    assert!((20.0..30.0).contains(&rate), "{rate} frames a second");
    viewer.plays();
}

/// A viewer who plays and reads nothing.
fn stall(sink: &RtspSink) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", sink.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut ask = |number: u32, request: &str, more: &str| {
        write!(stream, "{request} RTSP/1.0\r\nCSeq: {number}\r\n{more}\r\n").unwrap();
        let (mut session, mut length, mut line) = (String::new(), 0, String::new());
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            if let Some(id) = line.strip_prefix("Session: ") {
                session = id.split(';').next().unwrap().trim().to_owned();
            }
            length = line.strip_prefix("Content-Length: ").map_or(length, |length| length.trim().parse().unwrap());
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        session
    };
    let address = uri(sink);
    ask(1, &format!("DESCRIBE {address}"), "Accept: application/sdp\r\n");
    let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n";
    let session = ask(2, &format!("SETUP {address}/stream=0"), transport);
    ask(3, &format!("PLAY {address}"), &format!("Session: {session}\r\n"));
    stream
}

#[test]
fn a_viewer_that_reads_nothing_costs_nobody() {
    // Noise: its packets fill a connection in a moment.
    let camera = Camera::launch(&GREY.replace("pattern=solid-color", "pattern=snow").replace("ultrafast", "ultrafast bitrate=8000"));
    let rig = Rig::start(&camera.uri()).running();
    let viewer = rig.viewer();
    viewer.until("shown", |_| true);
    let stalled = stall(&rig.sink);
    std::thread::sleep(Duration::from_secs(2));
    let before = rig.open.count("frames_in");
    let rate = viewer.rate(6);
    assert!((20.0..30.0).contains(&rate), "{rate} frames a second beside a viewer that stalls");
    assert!(rig.open.count("frames_in") - before >= 6 * 22, "the camera is read on");
    viewer.plays();
    drop(stalled);
}

#[test]
fn a_camera_without_encoded_pictures_is_shown_as_it_was_analysed() {
    let (live, mut sink, _) = serve();
    let viewer = Viewer::open(&uri(&sink));
    let slate = viewer.until("a slate", |picture| close(picture.get_pixel(5, 5), [40; 3]));
    assert_eq!(slate.dimensions(), (1280, 720));
    let running = CameraStatus { camera: id(), state: CameraState::Running, reason: String::new(), since: Utc::now(), fps: 5.0 };
    live.status(&running);
    let image = Arc::new(RgbImage::from_pixel(320, 180, Rgb([20, 20, 220])));
    sink.write(&Picture { camera: id(), captured: Utc::now(), image }).unwrap();
    viewer.until("the analysed picture", |picture| close(picture.get_pixel(640, 360), [20, 20, 220]));
    assert!(viewer.rate(2) > 3.0);
    viewer.plays();
    drop(viewer);
    sink.finish().unwrap();
    until("without a thread that shows", || threads("live-") == 0);
}

#[test]
fn a_raw_camera_is_shown_at_its_own_rate_with_boxes_and_its_pictures_are_copied_for_who_watches_only() {
    // Rows of 642 bytes are padded to 644 where they come from.
    let grey = "videotestsrc is-live=true pattern=solid-color foreground-color=0xff969696";
    let fragment = format!("{grey} ! video/x-raw,format=I420,width=642,height=360,framerate=25/1 ! identity");
    let (live, sink, metrics) = serve();
    let (units, states) = (live.clone(), live.clone());
    let copied = Arc::<Mutex<u64>>::default();
    let count = copied.clone();
    let encoded = Box::new(move |encoded| {
        if let Encoded::Unit(unit) = encoded {
            *count.lock().unwrap() += 1;
            units.encoded(&id(), unit);
        }
    });
    let watched = live.clone();
    let config = CameraConfig { input: Input::Fragment(fragment), ..camera("") };
    let open = open_raw(config, encoded, Box::new(move || watched.is_watched(&id())), move |status| states.status(status));
    open.reach(CameraState::Running);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(*copied.lock().unwrap(), 0, "nobody watches");
    let rig = Rig { open, live, sink, metrics };
    rig.mark(Duration::from_secs(600));
    let viewer = rig.viewer();
    let picture = viewer.until("boxed", boxed);
    assert_eq!(picture.dimensions(), (642, 360));
    assert!(close(picture.get_pixel(5, 355), [150; 3]) && close(picture.get_pixel(636, 5), [150; 3]), "rows lie where they lay");
    let rate = viewer.rate(4);
    assert!((20.0..29.0).contains(&rate), "{rate} frames a second");
    drop(viewer);
    until("without a thread that shows", || threads("live-") == 0);
    let before = *copied.lock().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(*copied.lock().unwrap(), before);
}

#[test]
fn the_daemon_shows_a_clip_live_with_the_tracked_boxes() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "[model]\npath = {:?}\n[[camera]]\nid = \"street\"\nuri = {:?}\nloop = true\nlabels = [\"car\", \"person\", \"bus\"]\ninterval = 0.5\n\
         [output.rtsp]\nlisten = \"127.0.0.1:{port}\"\nvideo = \"live\"\n",
        repository("samples/demo-model"),
        repository("samples/street.mp4"),
    );
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.ready();
    std::thread::sleep(Duration::from_secs(6));
    let picture = std::env::var_os("PALISADE_TEST_PICTURES").map_or(folder.path().to_owned(), Into::into).join("street.png");
    let address = format!("rtsp://127.0.0.1:{port}/street");
    let arguments = ["-v", "error", "-y", "-rtsp_transport", "tcp", "-i", &address, "-frames:v", "10", "-update", "1"];
    let ffmpeg = Command::new("ffmpeg").args(arguments).arg(&picture).output().unwrap();
    let told = String::from_utf8_lossy(&ffmpeg.stderr);
    assert!(ffmpeg.status.success() && !told.contains("concealing"), "{told}");
    assert!(image::open(&picture).unwrap().to_rgb8().width() >= 320);
    gstreamer::init().unwrap();
    let viewer = Viewer::open(&address);
    viewer.until("shown", |_| true);
    let rate = viewer.rate(3);
    assert!(rate > 5.0, "{rate} frames a second where there are two looks");
    daemon.signal("TERM");
    assert!(daemon.wait(PATIENCE).success());
}
