//! Live video over HTTP: real cameras in processes of their own, and viewers that are not ours.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use image::RgbImage;
use palisade::base::metrics::Metrics;
use palisade::config::{CameraConfig, Decode, RtspConfig, RtspVideo};
use palisade::console::{Console, Limits};
use palisade::sink::video::{Live, RtspSink};
use palisade::types::{Box01, CameraState, Encoded, Mark};

use super::{TOKEN, config, screens};
use crate::live::{GREY, bare, boxed, close, id, threads, until};
use crate::support::camera::Camera;
use crate::support::daemon::{Daemon, ffprobe, repository};
use crate::support::http::{Answer, ask, closed_after, connect};
use crate::support::source::{Open, PATIENCE, camera, open_told};

/// A camera, its source, and a server of what it shows.
struct Rig {
    open: Open,
    live: Live,
    console: Option<Console>,
    metrics: Metrics,
    address: SocketAddr,
}

impl Rig {
    fn start(camera_uri: &str, limits: Limits) -> Self {
        let metrics = Metrics::new();
        let (screens, live) = screens(&metrics);
        let (units, states) = (live.clone(), live.clone());
        let config_of = CameraConfig { decode: Decode::Keyframes, ..camera(camera_uri) };
        let encoded = Box::new(move |encoded| {
            if let Encoded::Unit(unit) = encoded {
                units.encoded(&id(), unit);
            }
        });
        let open = open_told(config_of, encoded, move |status| states.status(status));
        open.reach(CameraState::Running);
        let console = Console::start(config(None), limits, screens, &metrics).unwrap();
        let address = console.address();
        Self { open, live, console: Some(console), metrics, address }
    }

    /// A box around the middle.
    fn mark(&self) {
        let box01 = Box01 { y_min: 0.25, x_min: 0.25, y_max: 0.75, x_max: 0.75 };
        let lasts = Duration::from_secs(600);
        self.live.marks(&id(), vec![Mark { label: "cat".into(), score: 0.9, box01, seen: Instant::now(), lasts }]);
    }

    fn count(&self, name: &'static str) -> u64 {
        self.metrics.counter(name, "cam").get()
    }

    fn get(&self, path: &str) -> Answer {
        ask(self.address, &format!("GET {path}"), &["Host: localhost"])
    }

    fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let begin = Instant::now();
        self.console.take().unwrap().finish(begin + Duration::from_secs(5));
        self.live.end();
        assert!(std::thread::panicking() || begin.elapsed() < Duration::from_secs(4), "{:?} to end", begin.elapsed());
    }
}

/// A viewer of MJPEG.
struct Mjpeg(BufReader<TcpStream>);

impl Mjpeg {
    /// By the older protocol, whose answers are not in chunks.
    fn open(server: SocketAddr, path: &str) -> Self {
        let mut stream = connect(server);
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        Self(BufReader::new(stream))
    }

    /// Past the head, which must be as it is to be.
    fn begun(mut self) -> Self {
        let head = self.lines();
        assert!(head[0].contains("200 OK"), "{head:?}");
        assert!(head.contains(&"content-type: multipart/x-mixed-replace; boundary=frame".to_owned()), "{head:?}");
        assert!(head.contains(&"cache-control: no-store".to_owned()), "{head:?}");
        assert_eq!(self.line(), "--frame");
        self
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream has ended");
        line.trim_end().to_owned()
    }

    /// Up to an empty line.
    fn lines(&mut self) -> Vec<String> {
        std::iter::repeat_with(|| self.line()).take_while(|line| !line.is_empty()).collect()
    }

    /// The next picture's file; behind it the next boundary is there at once.
    fn file(&mut self) -> Vec<u8> {
        let head = self.lines();
        assert_eq!(head[0], "Content-Type: image/jpeg");
        let mut bytes = vec![0; head[1].strip_prefix("Content-Length: ").unwrap().parse().unwrap()];
        self.0.read_exact(&mut bytes).unwrap();
        assert_eq!((self.line(), self.line()), (String::new(), "--frame".to_owned()));
        bytes
    }

    fn picture(&mut self) -> RgbImage {
        image::load_from_memory_with_format(&self.file(), image::ImageFormat::Jpeg).unwrap().to_rgb8()
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&RgbImage) -> bool) -> RgbImage {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let picture = self.picture();
            if wanted(&picture) {
                return picture;
            }
            assert!(Instant::now() < deadline, "never {what}");
        }
    }

    /// Pictures a second, over some seconds.
    fn rate(&mut self, seconds: u64) -> f64 {
        let (begin, mut count) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_secs(seconds) {
            self.file();
            count += 1;
        }
        f64::from(count) / begin.elapsed().as_secs_f64()
    }
}

/// Where pictures are to be kept for a person to look at, if at all.
fn keep(picture: &RgbImage, name: &str) {
    if let Some(folder) = std::env::var_os("PALISADE_TEST_PICTURES") {
        picture.save(Path::new(&folder).join(name)).unwrap();
    }
}

/// Has ffmpeg read an address, and returns what it said.
fn ffmpeg(before: &[&str], address: &str, after: &[&str]) -> String {
    let output = Command::new("ffmpeg").args(["-v", "warning", "-y"]).args(before).args(["-i", address]).args(after).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    told
}

#[test]
fn mjpeg_has_the_newest_boxes_at_the_pace_that_is_asked_for() {
    let camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri(), Limits::default());
    rig.mark();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((rig.count("jpeg_pictures_encoded"), threads("jpeg-"), threads("live-")), (0, 0, 0), "nobody watches");
    let mut viewer = Mjpeg::open(rig.address, "/live/cam.mjpeg").begun();
    let picture = viewer.until("boxed", boxed);
    keep(&picture, "mjpeg.png");
    assert_eq!(picture.dimensions(), (640, 360));
    let rate = viewer.rate(3);
    assert!((8.0..11.5).contains(&rate), "{rate} pictures a second");
    rig.live.marks(&id(), Vec::new());
    viewer.until("without a box", bare);
    // Two more cost nothing, and each has its own pace; the camera is decoded once.
    let mut slow = Mjpeg::open(rig.address, "/live/cam.mjpeg?fps=2").begun();
    let (before, begin) = (rig.count("jpeg_pictures_encoded"), Instant::now());
    let beside = std::thread::spawn(move || slow.rate(4));
    let mut third = Mjpeg::open(rig.address, "/live/cam.mjpeg?t=123").begun();
    let of_third = std::thread::spawn(move || third.rate(4));
    let rate = viewer.rate(4);
    let encoded = (rig.count("jpeg_pictures_encoded") - before) as f64 / begin.elapsed().as_secs_f64();
    assert!((8.0..11.5).contains(&rate) && (8.0..11.5).contains(&encoded), "{rate} pictures a second, {encoded} encoded");
    assert!((1.5..2.6).contains(&beside.join().unwrap()) && (8.0..11.5).contains(&of_third.join().unwrap()));
    assert_eq!((threads("jpeg-"), threads("live-")), (1, 1));
    assert_eq!(rig.count("rtsp_pictures_encoded"), 0, "no video is encoded for it");
    let small = Mjpeg::open(rig.address, "/live/cam.mjpeg?height=240&fps=30").begun().picture();
    assert_eq!(small.dimensions(), (426, 240));
    assert_eq!(Mjpeg::open(rig.address, "/live/cam.mjpeg?height=1080").begun().picture().dimensions(), (640, 360), "never larger");
    drop(viewer);
    until("without a thread", || threads("jpeg-") + threads("live-") == 0);
}

#[test]
fn one_picture_is_that_of_the_moment_and_a_lost_camera_is_a_slate() {
    let mut camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri(), Limits::default());
    rig.mark();
    let get = || {
        let answer = rig.get("/live/cam.jpg");
        assert_eq!(
            (answer.status, answer.header("content-type"), answer.header("cache-control")),
            (200, Some("image/jpeg"), Some("no-store"))
        );
        image::load_from_memory(&answer.body).unwrap().to_rgb8()
    };
    let picture = get();
    keep(&picture, "jpg.png");
    assert!(boxed(&picture));
    let mut viewer = Mjpeg::open(rig.address, "/live/cam.mjpeg").begun();
    camera.kill9();
    let dark = |picture: &RgbImage| close(picture.get_pixel(10, 10), [50; 3]);
    let slate = viewer.until("a slate", dark);
    keep(&slate, "mjpeg-slate.png");
    assert!(slate.pixels().any(|pixel| pixel.0.iter().all(|value| *value > 220)), "it says why");
    let rate = viewer.rate(3);
    assert!((1.0..4.0).contains(&rate), "{rate} slates a second");
    assert!(dark(&get()));
    camera.restart();
    viewer.until("the camera again", boxed);
}

#[test]
fn black_is_black() {
    // Video's black is 16; taken for a picture's value it would be grey.
    let camera = Camera::launch(&GREY.replace("0xff969696", "0xff000000"));
    let rig = Rig::start(&camera.uri(), Limits::default());
    let picture = image::load_from_memory(&rig.get("/live/cam.jpg").body).unwrap().to_rgb8();
    assert!(
        close(picture.get_pixel(60, 200), [0; 3]) && picture.get_pixel(60, 200).0.iter().all(|value| *value <= 6),
        "{:?}",
        picture.get_pixel(60, 200)
    );
}

#[test]
fn a_viewer_that_reads_nothing_is_let_go_and_delays_nobody() {
    // Noise: its pictures fill a connection in a moment.
    let camera = Camera::launch(&GREY.replace("pattern=solid-color", "pattern=snow").replace("ultrafast", "ultrafast bitrate=8000"));
    let rig = Rig::start(&camera.uri(), Limits { streams: 3, write: Duration::from_secs(4), ..Limits::default() });
    let mut stalled = Mjpeg::open(rig.address, "/live/cam.mjpeg?fps=30");
    let mut slow = Mjpeg::open(rig.address, "/live/cam.mjpeg?fps=30").begun();
    let mut viewer = Mjpeg::open(rig.address, "/live/cam.mjpeg?fps=30").begun();
    slow.file();
    let full = rig.get("/live/cam.mjpeg");
    assert_eq!((full.status, full.error().as_str()), (503, "there are too many viewers; try it later"));
    let rate = viewer.rate(3);
    assert!(rate > 15.0, "{rate} pictures a second beside two that stall");
    let begin = Instant::now();
    assert_eq!(rig.get("/healthz").status, 200);
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    // One that reads again goes on with the picture of the moment: what is on its way, and then no more of what was.
    let before = rig.count("jpeg_pictures_skipped");
    assert_eq!(before, 0, "it is counted when it goes on");
    slow.rate(2);
    assert!(rig.count("jpeg_pictures_skipped") > 20, "{}", rig.count("jpeg_pictures_skipped"));
    let rate = viewer.rate(4);
    assert!(rate > 15.0, "{rate} pictures a second");
    // The other one was hung up on: its place is free.
    let took = closed_after(stalled.0.get_mut());
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop((slow, viewer));
    Mjpeg::open(rig.address, "/live/cam.mjpeg").begun().file();
    assert!(rig.open.count("frames_in") > 100, "the camera is read on");
}

/// The files that a list names, with their lengths in seconds.
fn listed(list: &str) -> Vec<(u64, f64)> {
    let lines: Vec<&str> = list.lines().collect();
    let lasts = |line: &str| line.strip_prefix("#EXTINF:").map(|rest| rest.trim_end_matches(',').parse().unwrap());
    lines.windows(2).filter_map(|pair| Some((pair[1].strip_suffix(".ts")?.parse().unwrap(), lasts(pair[0])?))).collect()
}

fn tag(list: &str, name: &str) -> u64 {
    list.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{list}")).parse().unwrap()
}

#[test]
fn hls_is_the_one_encoders_video_in_files_that_follow_each_other() {
    let camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri(), Limits::default());
    rig.mark();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((rig.count("rtsp_pictures_encoded"), threads("hls-")), (0, 0), "nobody watches");
    let begin = Instant::now();
    let first = rig.get("/live/cam/index.m3u8");
    assert_eq!((first.status, first.header("content-type")), (200, Some("application/vnd.apple.mpegurl")), "{first:?}");
    assert_eq!(first.header("cache-control"), Some("no-store"));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // A viewer over RTSP has the same pictures.
    let server = RtspConfig { video: RtspVideo::Live, ..RtspConfig::new("127.0.0.1:0".parse().unwrap()) };
    let sink = RtspSink::new(server, &[id()], Some(rig.live.clone()), &rig.metrics).unwrap();
    let rtsp = format!("rtsp://127.0.0.1:{}/cam", sink.port());
    let beside = std::thread::spawn(move || ffmpeg(&["-rtsp_transport", "tcp"], &rtsp, &["-t", "4", "-f", "null", "-"]));
    let (before, begin) = (rig.count("rtsp_pictures_encoded"), Instant::now());
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.mp4");
    let told = ffmpeg(&[], &rig.uri("/live/cam/index.m3u8"), &["-t", "8", "-c", "copy", copy.to_str().unwrap()]);
    assert!(!told.contains("orrupt") && !told.contains("non-monoton") && !told.contains("skipping"), "{told}");
    let encoded = (rig.count("rtsp_pictures_encoded") - before) as f64 / begin.elapsed().as_secs_f64();
    assert!((20.0..30.0).contains(&encoded), "{encoded} pictures a second are encoded");
    let (frames, seconds) = ffprobe(&copy);
    assert!((170..=205).contains(&frames) && (7.0..9.0).contains(&seconds), "{frames} pictures in {seconds} s");
    beside.join().unwrap();
    let list = rig.get("/live/cam/index.m3u8");
    let files = listed(list.text());
    assert!(files.len() >= 3 && files.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0), "{list:?}");
    assert_eq!(tag(list.text(), "#EXT-X-MEDIA-SEQUENCE:"), files[0].0);
    let target = tag(list.text(), "#EXT-X-TARGETDURATION:");
    // Each plays by itself, from a keyframe, for as long as the list says.
    for (number, lasts) in &files[..3] {
        assert!(lasts.round() as u64 <= target && *lasts >= 0.7, "{list:?}");
        let file = rig.get(&format!("/live/cam/{number}.ts"));
        assert_eq!((file.status, file.header("content-type")), (200, Some("video/mp2t")));
        assert!(file.header("cache-control").unwrap().contains("immutable"));
        let path = folder.path().join(format!("{number}.ts"));
        std::fs::write(&path, &file.body).unwrap();
        let (frames, _) = ffprobe(&path);
        assert!((frames as f64 / 25.0 - lasts).abs() < 0.25, "{frames} pictures in {lasts} s");
        assert!(!ffmpeg(&[], path.to_str().unwrap(), &["-f", "null", "-"]).contains("error"), "{number}");
    }
    let picture: PathBuf = folder.path().join("picture.png");
    ffmpeg(
        &[],
        folder.path().join(format!("{}.ts", files[1].0)).to_str().unwrap(),
        &["-fps_mode", "passthrough", "-update", "1", picture.to_str().unwrap()],
    );
    let picture = image::open(&picture).unwrap().to_rgb8();
    keep(&picture, "hls.png");
    assert!(boxed(&picture));
    // Nobody asks any more: all ends, and the next begins anew with other numbers.
    until("without a thread", || threads("hls-") + threads("live-") == 0);
    assert_eq!(rig.get(&format!("/live/cam/{}.ts", files[1].0)).status, 404);
    let anew = rig.get("/live/cam/index.m3u8");
    assert!(tag(anew.text(), "#EXT-X-MEDIA-SEQUENCE:") > files[files.len() - 1].0, "{anew:?}");
    assert!(anew.text().contains("#EXT-X-DISCONTINUITY\n"));
    // It ends live video for everybody.
    drop(sink);
}

#[test]
fn a_camera_that_is_down_has_files_of_slates_no_longer_than_others() {
    let rig = super::Rig::start(None, Limits::default());
    let list = || ask(rig.address, "GET /live/cam/index.m3u8", &["Host: localhost"]);
    until("five files", || {
        let list = list();
        list.status == 200 && listed(list.text()).len() >= 5
    });
    let list = list();
    assert!(listed(list.text()).iter().all(|(_, lasts)| (0.7..=3.0).contains(lasts)), "{list:?}");
    assert_eq!(tag(list.text(), "#EXT-X-TARGETDURATION:"), 3);
}

#[test]
fn a_camera_that_stalls_goes_on_in_the_same_row_of_files() {
    let camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri(), Limits::default());
    let folder = tempfile::tempdir().unwrap();
    let (path, still) = (folder.path().join("file.ts"), folder.path().join("file.png"));
    let list = || {
        let list = rig.get("/live/cam/index.m3u8");
        if list.status == 200 { list.text().to_owned() } else { String::new() }
    };
    let newest = || listed(&list()).last().map_or(0, |(number, _)| *number);
    // The last picture of the newest file, and that file's number; not where the file is gone meanwhile.
    let picture = || -> Option<(u64, RgbImage)> {
        let number = newest();
        let file = rig.get(&format!("/live/cam/{number}.ts"));
        (file.status == 200).then(|| std::fs::write(&path, &file.body).unwrap())?;
        ffmpeg(&[], path.to_str().unwrap(), &["-fps_mode", "passthrough", "-update", "1", still.to_str().unwrap()]);
        Some((number, image::open(&still).unwrap().to_rgb8()))
    };
    let shows = |grey: u8| move |picture: &RgbImage| close(picture.get_pixel(10, 10), [grey; 3]);
    // What stands before a row's first file says that another begins.
    let goes_on = |list: &str| {
        list.split_once("#EXTINF").is_some_and(|(_, files)| !files.contains("#EXT-X-DISCONTINUITY") && !files.contains("#EXT-X-ENDLIST"))
    };
    // A player asks all the time: without one the row ends while the pictures are looked at.
    let (address, (done, plays)) = (rig.address, std::sync::mpsc::channel::<()>());
    let player = std::thread::spawn(move || {
        while plays.recv_timeout(Duration::from_millis(500)) == Err(RecvTimeoutError::Timeout) {
            ask(address, "GET /live/cam/index.m3u8", &["Host: localhost"]);
        }
    });
    until("the camera", || picture().is_some_and(|(_, picture)| shows(150)(&picture)));
    camera.stop_signal();
    until("a slate", || picture().is_some_and(|(_, picture)| shows(50)(&picture)));
    let from = newest();
    until("files of slates", || {
        let (files, list) = (listed(&list()), list());
        // The row has no gap, and players are told of none; no file is longer than they were promised.
        assert!(files.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0), "{list}");
        assert!(files.iter().all(|(_, lasts)| (0.7..=3.0).contains(lasts)), "{list}");
        assert!(goes_on(&list), "{list}");
        newest() >= from + 4
    });
    let (number, slate) = picture().unwrap();
    keep(&slate, "hls-slate.png");
    assert!(shows(50)(&slate) && slate.pixels().any(|pixel| pixel.0.iter().all(|value| *value > 220)), "it says why");
    camera.cont();
    until("the camera again", || picture().is_some_and(|(later, picture)| later > number && shows(150)(&picture)));
    assert!(goes_on(&list()), "{}", list());
    drop(done);
    player.join().unwrap();
}

#[test]
fn what_is_asked_wrongly_is_told_and_reaches_nothing() {
    let rig = super::Rig::start(None, Limits::default());
    let get = |path: &str| ask(rig.address, &format!("GET {path}"), &["Host: localhost"]);
    for path in [
        "/live/other.mjpeg",
        "/live/other.jpg",
        "/live/other/index.m3u8",
        "/live/%2e%2e%2f%2e%2e%2fetc%2fpasswd.jpg",
        "/live/CAM.jpg",
        "/live/.jpg",
    ] {
        let answer = get(path);
        assert_eq!((answer.status, answer.error().as_str()), (404, "there is no such camera; must be one of cam"), "{path}");
    }
    for path in [
        "/live/cam",
        "/live/cam.png",
        "/live/cam/",
        "/live/cam/index.m3u",
        "/live/cam/x.ts",
        "/live/cam/..%2findex.m3u8",
        "/live/cam/-1.ts",
    ] {
        assert_eq!(get(path).status, 404, "{path}");
    }
    for path in ["/live/%ff.jpg", "/live/%c3%28/index.m3u8", "/live/cam/%80.ts"] {
        let answer = get(path);
        let told = "this address is no text; what stands behind each % must be UTF-8";
        assert_eq!((answer.status, answer.error().as_str()), (400, told), "{path}");
    }
    assert!(get("/live/cam/1.ts").error().starts_with("this part of the video is not there any more"));
    for fps in ["0", "31", "-1", "x", "", "NaN", "1e9"] {
        let answer = get(&format!("/live/cam.mjpeg?fps={fps}"));
        assert_eq!((answer.status, answer.error().as_str()), (400, "fps is no number of pictures a second; must be in 0.1..=30"), "{fps}");
    }
    assert_eq!(get("/live/cam.jpg?height=999").error(), "height is none that is made; must be one of 240, 360, 480, 720, 1080");
    // A camera that never sent anything is a slate as well.
    let slate = get("/live/cam.jpg");
    assert_eq!(image::load_from_memory(&slate.body).unwrap().to_rgb8().dimensions(), (1280, 720));
}

#[test]
fn the_daemon_shows_a_clip_over_http_to_who_has_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let config = format!(
        "[model]\npath = {:?}\n[[camera]]\nid = \"street\"\nuri = {:?}\nloop = true\nlabels = [\"car\", \"person\", \"bus\"]\ninterval = 0.5\n\
         [console]\nlisten = \"0.0.0.0:{port}\"\n",
        repository("samples/demo-model"),
        repository("samples/street.mp4"),
    );
    let mut daemon = Daemon::start_with(folder.path(), &config, &[("PALISADE_CONSOLE_TOKEN", TOKEN)]);
    daemon.ready();
    assert_eq!(ask(address, "GET /readyz", &["Host: localhost"]).status, 200);
    assert_eq!(ask(address, "GET /live/street.jpg", &["Host: localhost"]).status, 401);
    assert!(!daemon.log().contains(TOKEN));
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let headers = format!("{bearer}\r\n");
    std::thread::sleep(Duration::from_secs(4));
    let shown = |name: &str| std::env::var_os("PALISADE_TEST_PICTURES").map_or(folder.path().to_owned(), PathBuf::from).join(name);
    let (jpg, video) = (shown("street-mjpeg.png"), shown("street-hls.png"));
    let uri = |path: &str| format!("http://{address}/live/{path}");
    ffmpeg(&["-headers", &headers, "-f", "mpjpeg"], &uri("street.mjpeg"), &["-frames:v", "10", "-update", "1", jpg.to_str().unwrap()]);
    let told = ffmpeg(&["-headers", &headers], &uri("street/index.m3u8"), &["-frames:v", "60", "-update", "1", video.to_str().unwrap()]);
    assert!(!told.contains("concealing"), "{told}");
    let sizes = [&jpg, &video].map(|path| image::open(path).unwrap().to_rgb8().dimensions());
    assert!(sizes[0] == sizes[1] && sizes[0].0 >= 320, "{sizes:?}");
    let curl = |more: &[&str]| {
        let output = Command::new("curl").args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20"]).args(more).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(curl(&["-H", &bearer, &uri("street.jpg")]), "200");
    assert_eq!(curl(&["-u", &format!("viewer:{TOKEN}"), &uri("street.jpg")]), "200");
    assert_eq!(curl(&["-u", "viewer:0123456789abcdef", &uri("street.jpg")]), "401");
    // A stream that is watched ends with the daemon, and does not hold it up.
    let mut stream = connect(address);
    write!(stream, "GET /live/street.mjpeg HTTP/1.1\r\nHost: localhost\r\n{bearer}\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 2000]).unwrap();
    let begin = Instant::now();
    daemon.signal("TERM");
    assert!(daemon.wait(PATIENCE).success());
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    closed_after(&mut stream);
}

#[test]
fn a_daemon_that_others_reach_without_a_token_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "[model]\npath = {:?}\n[[camera]]\nid = \"street\"\nuri = {:?}\nlabels = [\"car\"]\n[console]\nlisten = \"0.0.0.0:8600\"\n",
        repository("samples/demo-model"),
        repository("samples/street.mp4"),
    );
    let mut daemon = Daemon::start(folder.path(), &config);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(78));
    assert!(
        daemon.log().contains("console.listen is 0.0.0.0:8600, where others see the cameras, and there is no token"),
        "{}",
        daemon.log()
    );
}
