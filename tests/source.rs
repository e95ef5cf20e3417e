//! Sources: real files, a real RTSP server, a real HTTP server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

use crate::support::camera::Camera;
use crate::support::daemon::repository;
use crate::support::media::{clip, launch};
use crate::support::rtsp::{BALL, RtspServer};
use crate::support::source::{PATIENCE, camera, file, limits, open, open_tapped, open_watched, open_with};
use crate::support::truth::Truth;
use palisade::config::{CameraConfig, Decode, MotionConfig, Transport};
use palisade::source::{Candidate, Limits};
use palisade::types::{CameraState, Encoded, EncodedUnit, TimeSource};

#[test]
fn a_file_played_once_shows_every_frame_in_real_time_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a b.mp4", "a.mkv", "a.avi", "a.ts"] {
        let path = clip(dir.path(), name, 20, 10, 10);
        let began = Instant::now();
        let open = open(camera(&format!("file://{}", path.display().to_string().replace(' ', "%20"))));
        let frames = open.all_frames();
        assert_eq!(frames.len(), 20, "{name}");
        assert!(began.elapsed() >= Duration::from_millis(1800), "{name}: {:?}", began.elapsed());
        let position = |n: usize| frames[n].position.unwrap().as_secs_f64();
        assert!(position(0) < 0.2 && (position(19) - position(0) - 1.9).abs() < 0.1, "{name}: {} {}", position(0), position(19));
        assert!(frames.iter().all(|f| f.time_source == TimeSource::File && f.image.dimensions() == (320, 240)));
        let states: Vec<_> = open.statuses.iter().map(|s| (s.state, s.reason)).collect();
        let waiting = (CameraState::Connecting, "waiting for the first picture");
        let expected = [(CameraState::Connecting, ""), waiting, (CameraState::Running, ""), (CameraState::Failed, "end of file")];
        assert_eq!(states, expected.map(|(state, reason)| (state, reason.to_owned())), "{name}");
        assert_eq!(["frames_in", "frames_decoded", "frames_sampled"].map(|name| open.count(name)), [20; 3]);
        assert!(open.source.join_until(Instant::now() + PATIENCE));
    }
}

#[test]
fn a_looped_file_starts_anew_whatever_its_container() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.mp4", "a.ts"] {
        let open = open(CameraConfig { looped: true, ..file(&clip(dir.path(), name, 10, 20, 10)) });
        let positions: Vec<Duration> = (0..35).map(|_| open.frame().position.unwrap()).collect();
        let restarts = positions.windows(2).filter(|pair| pair[1] < pair[0]).count();
        assert_eq!(restarts, 3, "{name}: {positions:?}");
        assert_eq!(open.count("reconnects"), 0);
        assert_eq!(open.reach(CameraState::Connecting).reason, "");
        assert_eq!(open.reach(CameraState::Running).reason, "");
        assert!(open.statuses.is_empty());
        open.stop();
    }
}

#[test]
fn only_admitted_frames_are_converted() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = 0;
    let every_fifth = move |candidate: Candidate| {
        seen += 1;
        assert!(candidate.position.is_some());
        seen % 5 == 0 // the first one is refused: the pipeline must start all the same
    };
    let open = open_with(limits(), file(&clip(dir.path(), "a.mp4", 20, 20, 20)), every_fifth);
    assert_eq!(open.all_frames().len(), 4);
    assert_eq!((open.count("frames_in"), open.count("frames_sampled")), (20, 4));
}

fn with_motion(path: &Path, interval: f64) -> CameraConfig {
    let motion = MotionConfig { max_interval: Duration::from_secs(3600), mask: Vec::new() };
    CameraConfig { interval: Duration::from_secs_f64(interval), motion: Some(motion), ..file(path) }
}

#[test]
fn every_objects_entry_into_the_street_is_looked_at() {
    let open = open_watched(with_motion(&repository("samples/street.mp4"), 0.5));
    let looks: Vec<f64> = open.all_frames().iter().map(|frame| frame.position.unwrap().as_secs_f64()).collect();
    for (label, entry) in Truth::entries() {
        let seen = looks.iter().find(|&&look| look >= entry).unwrap_or_else(|| panic!("{label} at {entry} s is never looked at"));
        assert!(seen - entry <= 1.0, "{label} enters at {entry} s, looked at {seen} s");
    }
    assert!(open.count("motion_seen") > 0 && open.count("motion_checks") >= 90, "{:?}", open.metrics.counts());
}

/// In the way of a camera at night: a picture that stands still under noise, compressed, with keyframes that flicker.
#[test]
fn noise_is_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("noise.mp4");
    let picture = repository("samples/annotated.jpg");
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-loop", "1", "-framerate", "10", "-t", "12", "-i"])
        .arg(&picture)
        .args([
            "-vf",
            "scale=640:360,noise=alls=24:allf=t,format=yuv420p",
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-g",
            "20",
            "-b:v",
            "600k",
        ])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    let open = open_watched(with_motion(&path, 0.5));
    let looks: Vec<f64> = open.all_frames().iter().map(|frame| frame.position.unwrap().as_secs_f64()).collect();
    // The first picture is new, and is looked at once more when it has settled.
    assert!(looks.len() == 2 && looks[1] < 4.0, "{looks:?} {:?}", open.metrics.counts());
    assert!(open.count("motion_checks") >= 30 && open.count("frames_gated") >= 2, "{:?}", open.metrics.counts());
}

#[test]
fn keyframes_alone_are_decoded_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let open = open(CameraConfig { decode: Decode::Keyframes, ..file(&clip(dir.path(), "a.mp4", 40, 20, 10)) });
    assert_eq!(open.all_frames().len(), 4);
    assert_eq!((open.count("frames_in"), open.count("frames_decoded")), (40, 4));
}

/// 1366 × 3 bytes are no multiple of four: rows are padded on the way.
#[test]
fn odd_widths_keep_every_pixel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.png");
    let picture = RgbImage::from_fn(1366, 31, |x, y| Rgb([x as u8, (x >> 8) as u8 * 40 + y as u8, (x ^ y) as u8]));
    picture.save(&path).unwrap();
    let open = open(file(&path));
    assert!(*open.frame().image == picture);
    assert_eq!(open.reach(CameraState::Failed).reason, "end of file");
}

#[test]
fn a_missing_file_is_tried_again_until_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let made = clip(dir.path(), "made.mp4", 5, 10, 5);
    let path = dir.path().join("late.mp4");
    let open = open(file(&path));
    let reason = open.reach(CameraState::Backoff).reason;
    assert!(reason.contains("late.mp4") && reason.contains("not found"), "{reason}");
    std::fs::rename(made, &path).unwrap();
    open.reach(CameraState::Running);
    assert!(open.count("reconnects") > 0);
    open.reach(CameraState::Failed);
}

#[test]
fn a_file_without_pictures_is_said_to_be_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.mp4");
    std::fs::write(&path, "this is no film ".repeat(1000)).unwrap();
    let open = open(file(&path));
    let reason = open.reach(CameraState::Backoff).reason;
    assert!(reason.contains("text.mp4"), "{reason}");
    open.stop();
}

#[test]
fn sound_alone_is_said_to_have_no_video() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sound.wav");
    launch(&format!("audiotestsrc num-buffers=50 ! audio/x-raw,rate=44100 ! wavenc ! filesink location=\"{}\"", path.display()));
    let open = open(file(&path));
    let reason = open.reach(CameraState::Backoff).reason;
    assert!(reason.ends_with("sound.wav has no video"), "{reason}");
    open.stop();
}

#[test]
fn an_rtsp_camera_with_sound_is_watched_only() {
    let sound = "audiotestsrc is-live=true ! audio/x-raw,rate=8000 ! alawenc ! rtppcmapay name=pay1 pt=8";
    let server = RtspServer::start(&format!("{BALL} {sound}"), None);
    let open = open(camera(&server.uri()));
    (0..15).for_each(|_| assert_eq!(open.frame().image.dimensions(), (320, 240)));
    assert!(open.source.status().state == CameraState::Running);
    open.stop();
}

/// Each pass and each attempt is a pipeline of its own: none may leave threads or files behind.
#[test]
fn fifty_pipelines_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = clip(dir.path(), "short.mp4", 2, 20, 2);
    let open_files = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        links.filter(|target| *target == path).count()
    };
    let open = open(CameraConfig { looped: true, ..file(&path) });
    for _ in 0..100 {
        open.frame();
    }
    assert!(open_files() <= 1, "{}", open_files());
    assert_eq!(open.count("teardowns_abandoned"), 0);
    open.stop();
    assert_eq!(open_files(), 0);
}

#[test]
fn an_rtsp_camera_that_dies_comes_back() {
    let mut server = RtspServer::start(BALL, None);
    let open = open(camera(&server.uri()));
    assert_eq!(open.frame().image.dimensions(), (320, 240));
    open.reach(CameraState::Running);
    server.stop();
    let reason = open.reach(CameraState::Backoff).reason;
    assert!(!reason.is_empty());
    while open.frames.try_recv().is_ok() {}
    server.restart();
    open.reach(CameraState::Running);
    open.frame();
    assert!(open.count("reconnects") > 0);
    open.stop();
}

#[test]
fn an_rtsp_camera_that_freezes_is_stalled_and_built_anew() {
    let server = RtspServer::start(BALL, None);
    let open = open(camera(&server.uri()));
    open.reach(CameraState::Running);
    server.freeze(true);
    let reason = open.reach(CameraState::Stalled).reason;
    assert!(reason.contains("no picture for"), "{reason}");
    open.reach(CameraState::Backoff);
    server.freeze(false);
    open.reach(CameraState::Running);
    open.stop();
}

#[test]
fn an_rtsp_frame_carries_the_servers_time() {
    let server = RtspServer::start(BALL, None);
    let open = open(camera(&server.uri()));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let frame = open.frame();
        if frame.time_source == TimeSource::Ntp {
            let off = frame.captured.millis().abs_diff(palisade::base::clock::Utc::now().millis());
            assert!(off < 10_000, "{off} ms");
            break;
        }
        assert!(Instant::now() < deadline, "no frame with the server's time");
    }
    open.stop();
}

#[test]
fn a_keyframe_carries_the_cameras_time_although_it_comes_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    // One slice a picture, and parameter sets before the keyframes.
    let path = folder.path().join("a.mp4");
    launch(&format!(
        "videotestsrc num-buffers=10 ! video/x-raw,format=I420,width=320,height=240,framerate=10/1 \
         ! x264enc sliced-threads=false bframes=0 key-int-max=5 ! h264parse ! mp4mux ! filesink location=\"{}\"",
        path.display()
    ));
    let camera_process = Camera::clip(&path);
    let open = open(CameraConfig { decode: Decode::Keyframes, ..camera(&camera_process.uri()) });
    let deadline = Instant::now() + PATIENCE;
    while open.frame().time_source != TimeSource::Ntp {
        assert!(Instant::now() < deadline, "no keyframe with the camera's time");
    }
    let frame = open.frame();
    let age = palisade::base::clock::Utc::now().millis() - frame.captured.millis();
    assert!(frame.time_source == TimeSource::Ntp && (0..5000).contains(&age), "{age} ms");
    open.stop();
}

#[test]
fn credentials_open_an_rtsp_camera_and_wrong_ones_stay_secret() {
    let server = RtspServer::start(BALL, Some(("viewer", "s3cr3t-right")));
    let with = |password: &str| CameraConfig {
        username: Some("viewer".into()),
        password: Some(password.to_owned().into()),
        ..camera(&server.uri())
    };
    let right = open(with("s3cr3t-right"));
    right.frame();
    right.stop();
    let wrong = open(with("s3cr3t-wrong"));
    let reason = wrong.reach(CameraState::Backoff).reason;
    assert!(reason.contains("refused the user name or password") && !reason.contains("s3cr3t"), "{reason}");
    let at = Instant::now();
    wrong.reach(CameraState::Connecting);
    assert!(at.elapsed() >= Duration::from_secs(4), "{:?}", at.elapsed());
    wrong.stop();
}

/// A key and a certificate made out to `name`, signed by itself or by another's; `pem` holds both.
struct Signed {
    key: PathBuf,
    certificate: PathBuf,
    pem: PathBuf,
}

impl Signed {
    fn new(dir: &Path, file: &str, name: &str, by: Option<&Self>) -> Self {
        let path = |ending: &str| dir.join(format!("{file}.{ending}"));
        let (key, certificate, pem) = (path("key"), path("crt"), path("pem"));
        let alternative = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("IP:{name}") } else { format!("DNS:{name}") };
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &format!("/CN={name}")]);
        openssl.args(["-addext", &format!("subjectAltName={alternative}")]).arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        if let Some(by) = by {
            openssl.arg("-CA").arg(&by.certificate).arg("-CAkey").arg(&by.key).args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        }
        let made = openssl.output().unwrap();
        assert!(made.status.success(), "{made:?}");
        std::fs::write(&pem, [std::fs::read(&certificate).unwrap(), std::fs::read(&key).unwrap()].concat()).unwrap();
        Self { key, certificate, pem }
    }
}

#[test]
fn an_encrypted_camera_is_watched_where_somebody_vouches_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Signed::new(dir.path(), "authority", "an authority", None);
    let other = Signed::new(dir.path(), "other", "another", None);
    let signed = Signed::new(dir.path(), "signed", "127.0.0.1", Some(&authority));
    let alone = Signed::new(dir.path(), "alone", "camera.invalid", None);
    for (certificate, trusted, watched) in [
        (&signed, Some(&authority), true),
        (&signed, Some(&other), false),
        (&signed, None, false),
        // A camera's own, made out to whatever name.
        (&alone, Some(&alone), true),
        (&alone, Some(&other), false),
        (&alone, None, false),
    ] {
        let server = Camera::off("--launch", BALL).certificate(&certificate.pem).on();
        let ca_file = trusted.map(|trusted| trusted.certificate.clone());
        let open = open(CameraConfig { ca_file, ..camera(&server.uri()) });
        if watched {
            open.frame();
        } else {
            let reason = open.reach(CameraState::Backoff).reason;
            assert!(reason.contains("certificate") && reason.contains("ca_file"), "{reason}");
            assert_eq!(open.count("frames_in"), 0);
        }
        open.stop();
    }
}

#[test]
fn an_encrypted_film_over_http_is_played_where_somebody_vouches_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = Signed::new(dir.path(), "web", "localhost", None);
    let film = std::fs::read(clip(dir.path(), "a.ts", 20, 10, 10)).unwrap();
    let head = format!("HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\nContent-Length: {}\r\n\r\n", film.len());
    std::fs::write(dir.path().join("film"), [head.as_bytes(), &film].concat()).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("openssl")
        .args(["s_server", "-quiet", "-HTTP", "-accept", &format!("127.0.0.1:{port}"), "-cert"])
        .arg(&certificate.certificate)
        .arg("-key")
        .arg(&certificate.key)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(server.try_wait().unwrap().is_none(), "openssl has ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    let watch = |ca_file| open(CameraConfig { ca_file, ..camera(&format!("https://localhost:{port}/film")) });
    let untrusted = watch(None);
    let reason = untrusted.reach(CameraState::Backoff).reason;
    assert!(reason.contains("certificate") && untrusted.count("frames_in") == 0, "{reason}");
    untrusted.stop();
    let trusted = watch(Some(certificate.certificate.clone()));
    trusted.frame();
    trusted.stop();
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_camera_that_sends_beside_its_connection_is_watched_where_that_is_asked_for() {
    let server = RtspServer::start(BALL, None);
    let open = open(CameraConfig { transport: Transport::Udp, ..camera(&server.uri()) });
    (0..15).for_each(|_| assert_eq!(open.frame().image.dimensions(), (320, 240)));
    open.stop();
}

#[test]
fn nobody_listening_is_a_reason() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for scheme in ["rtsp", "http"] {
        let open = open(camera(&format!("{scheme}://127.0.0.1:{port}/x?pwd=s3cr3t")));
        let reason = open.reach(CameraState::Backoff).reason;
        assert!(reason.contains("127.0.0.1") && !reason.contains("s3cr3t"), "{reason}");
        open.stop();
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up_and_let_go_of() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap(); // the kernel accepts; nobody answers
    for scheme in ["rtsp", "http"] {
        let limits = Limits { first_frame: Duration::from_secs(2), ..limits() };
        let open = open_with(limits, camera(&format!("{scheme}://{}/x", mute.local_addr().unwrap())), |_| true);
        let reason = open.reach(CameraState::Stalled).reason;
        assert!(reason.contains("no picture within"), "{reason}");
        open.reach(CameraState::Backoff);
        open.reach(CameraState::Connecting);
        let began = Instant::now();
        open.stop();
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
}

#[test]
fn a_missing_video_device_is_a_reason() {
    let open = open(camera("v4l2:///dev/video-that-is-not-there"));
    let reason = open.reach(CameraState::Backoff).reason;
    assert!(reason.contains("/dev/video-that-is-not-there"), "{reason}");
    open.stop();
}

/// Serves a film at its full speed, to one client after another.
fn film_server(film: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}/film", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", film.len());
            let _request = client.read(&mut [0; 4096]).unwrap();
            client.write_all(head.as_bytes()).and_then(|()| client.write_all(&film)).ok();
        }
    });
    uri
}

#[test]
fn a_film_over_http_plays_in_real_time_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let film = std::fs::read(clip(dir.path(), "a.ts", 20, 10, 10)).unwrap();
    let began = Instant::now();
    let open = open(camera(&film_server(film)));
    assert_eq!(open.reach(CameraState::Backoff).reason, "the stream ended");
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
    assert!(open.count("frames_in") >= 19, "{}", open.count("frames_in"));
    open.reach(CameraState::Running);
    open.stop();
}

/// Serves JPEG pictures of two sizes in turn as `multipart/x-mixed-replace`, to one client after another.
fn mjpeg_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}/mjpeg", listener.local_addr().unwrap());
    let jpeg = |width: u32, height: u32, colour: [u8; 3]| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        RgbImage::from_pixel(width, height, Rgb(colour)).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    };
    let pictures = [jpeg(64, 48, [200, 30, 30]), jpeg(101, 77, [30, 30, 200])];
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\nConnection: close\r\n\r\n";
            let mut sent = client.write_all(head.as_bytes());
            for picture in pictures.iter().cycle() {
                let part = format!("--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", picture.len());
                sent = sent.and_then(|()| client.write_all(part.as_bytes()));
                sent = sent.and_then(|()| client.write_all(picture)).and_then(|()| client.write_all(b"\r\n"));
                if sent.is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100)); // a camera's pace
            }
        }
    });
    uri
}

#[test]
fn motion_jpeg_over_http_plays_and_may_change_its_size() {
    let open = open(camera(&mjpeg_server()));
    let mut seen = [0, 0];
    while seen[0] < 3 || seen[1] < 3 {
        let frame = open.frame();
        let (width, height) = frame.image.dimensions();
        let pixel = frame.image.get_pixel(width - 1, height - 1).0;
        let expected = if width == 64 { [200, 30, 30] } else { [30, 30, 200] };
        assert!(pixel.iter().zip(expected).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 6), "{width}×{height}: {pixel:?}");
        assert_eq!(frame.time_source, TimeSource::Pipeline);
        seen[usize::from(width == 101)] += 1;
    }
    open.stop();
}

#[test]
fn a_hook_that_panics_ends_the_attempt_only() {
    let dir = tempfile::tempdir().unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let config = CameraConfig { looped: true, ..file(&clip(dir.path(), "a.mp4", 10, 10, 5)) };
    let open = open_with(limits(), config, move |_| {
        assert!(counted.fetch_add(1, Ordering::SeqCst) != 3, "on purpose");
        true
    });
    assert!(open.reach(CameraState::Backoff).reason.contains("panicked"));
    open.reach(CameraState::Running);
    open.stop();
}

#[test]
fn a_disabled_camera_is_not_opened() {
    let open = open(CameraConfig { enabled: false, ..camera("rtsp://127.0.0.1:1/x") });
    assert_eq!(open.statuses.recv_timeout(PATIENCE).unwrap().state, CameraState::Disabled);
    assert!(open.frames.recv().is_err());
    assert!(open.statuses.recv().is_err());
}

#[test]
fn encoded_pictures_are_tapped_ahead_of_the_decoder() {
    let folder = tempfile::tempdir().unwrap();
    let path = clip(folder.path(), "a.mp4", 20, 10, 5);
    for decode in [Decode::All, Decode::Keyframes] {
        let (send, units) = crossbeam_channel::unbounded();
        let open = open_tapped(CameraConfig { decode, ..file(&path) }, Box::new(move |encoded| drop(send.send(encoded))));
        open.all_frames();
        let mut units: Vec<Encoded> = units.iter().collect();
        assert!(matches!(units.pop(), Some(Encoded::Lost)), "its end is told");
        let unit = |encoded| match encoded {
            Encoded::Unit(unit) => unit,
            Encoded::Lost => panic!("lost amid it"),
        };
        let units: Vec<EncodedUnit> = units.into_iter().map(unit).collect();
        assert_eq!(units.iter().map(|unit| unit.key).collect::<Vec<_>>(), (0..20).map(|n| n % 5 == 0).collect::<Vec<_>>());
        let first = units.first().unwrap();
        assert!(first.caps.starts_with("video/x-h264") && first.caps.contains("width=(int)320"), "{}", first.caps);
        for (n, unit) in units.iter().enumerate() {
            assert!(unit.connected == first.connected && Arc::ptr_eq(&unit.caps, &first.caps) && unit.bytes.len() > 10);
            assert_eq!(unit.bytes[..3], [0; 3], "start codes");
            let apart = (unit.time - first.time).as_millis().abs_diff(n as u128 * 100);
            assert!(apart <= 1, "picture {n} is {apart} ms off");
        }
    }
}
