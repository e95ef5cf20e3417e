//! What happens to cameras, each against a real server in a process of its own. Every test says how long it took from the
//! end of the fault to the first picture. `make soak` runs them at their full length and with the waits of service.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::camera::Camera;
use crate::support::media::{clip, launch};
use crate::support::proxy::Proxy;
use crate::support::source::{Open, PATIENCE, camera, file, limits, open, open_hooked, open_with};
use palisade::config::{CameraConfig, Decode, Input};
use palisade::source::Limits;
use palisade::types::{CameraState, CameraStatus};

/// Set by `make soak`.
const SOAK: &str = "PALISADE_SOAK";

fn soak() -> bool {
    std::env::var_os(SOAK).is_some()
}

/// A length in service, or a shorter one where there are many tests to run.
fn lasts(full: u64, short: u64) -> Duration {
    Duration::from_secs(if soak() { full } else { short })
}

/// The waits of service, or shorter ones.
fn waits() -> Limits {
    if soak() { Limits { refused: Duration::from_secs(30), ..Limits::default() } } else { limits() }
}

/// Ten pictures a second with a keyframe each second.
fn line(codec: &str, size: (u32, u32), more: &str) -> String {
    let encoder = match codec {
        "h264" => "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay",
        "h265" => "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph265pay",
        other => panic!("no encoder for {other}"),
    };
    let (width, height) = size;
    format!(
        "videotestsrc is-live=true pattern=ball {more} ! video/x-raw,format=I420,width={width},height={height},framerate=10/1 \
         ! {encoder} name=pay0 pt=96 config-interval=-1"
    )
}

fn ball() -> String {
    line("h264", (320, 240), "")
}

fn watched(uri: &str) -> Open {
    open_with(waits(), camera(uri), |_| true)
}

/// Waits for the first picture that came after `over`, and says how long that took.
fn recovers(fault: &str, open: &Open, over: Instant) {
    let deadline = Instant::now() + lasts(120, PATIENCE.as_secs());
    loop {
        let Ok(frame) = open.frames.recv_deadline(deadline) else { panic!("{fault}: no recovery; {:?}", open.source.status()) };
        if frame.received >= over {
            println!("{fault}: a picture {:.2} s after it was over", (frame.received - over).as_secs_f64());
            return;
        }
    }
}

#[test]
fn a_camera_that_freezes_and_thaws() {
    let server = Camera::launch(&ball());
    let open = watched(&server.uri());
    open.reach(CameraState::Running);
    server.stop_signal();
    std::thread::sleep(lasts(40, 6));
    assert_ne!(open.source.status().state, CameraState::Running);
    server.cont();
    recovers("frozen", &open, Instant::now());
    open.stop();
}

#[test]
fn a_camera_that_is_killed_and_comes_back() {
    let mut server = Camera::launch(&ball());
    let open = watched(&server.uri());
    open.reach(CameraState::Running);
    server.kill9();
    let reason = open.reach(CameraState::Backoff).reason;
    assert!(!reason.is_empty());
    server.restart();
    recovers("killed", &open, Instant::now());
    open.stop();
}

#[test]
fn a_listener_that_accepts_and_never_answers() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let waits = Limits { first_frame: lasts(20, 3), ..waits() };
    let open = open_with(waits, camera(&format!("rtsp://127.0.0.1:{port}/cam")), |_| true);
    // The library may give it up first, by a time of its own.
    assert!(!open.reach(CameraState::Backoff).reason.is_empty());
    drop(mute);
    let server = Camera::off("--launch", &ball()).at_port(port).on();
    recovers("mute", &open, Instant::now());
    assert_eq!(server.uri(), format!("rtsp://127.0.0.1:{port}/cam"));
    open.stop();
}

/// The password is the configuration's; the camera comes to take it. Everything that a URI would trip over is in it.
#[test]
fn a_password_that_is_wrong_and_then_right() {
    for digest in [false, true] {
        for password in ["p@ss:w/rd", "100%25 s3cr3t"] {
            let off = Camera::off("--launch", &ball());
            let with = |camera: Camera, password: &str| match digest {
                true => camera.digest("viewer", password),
                false => camera.basic("viewer", password),
            };
            let mut server = with(off, "another").on();
            let config =
                CameraConfig { username: Some("viewer".into()), password: Some(password.to_owned().into()), ..camera(&server.uri()) };
            let open = open_with(Limits { refused: lasts(10, 2), ..waits() }, config, |_| true);
            let reason = open.reach(CameraState::Backoff).reason;
            assert!(reason.contains("refused the user name or password") && !reason.contains(password), "{reason}");
            assert!(open.reach(CameraState::Backoff).reason.contains("; next try in "), "it does not say when");
            server.kill9();
            server = with(server, password).on();
            recovers(if digest { "wrong password, digest" } else { "wrong password, basic" }, &open, Instant::now());
            drop(server);
            open.stop();
        }
    }
}

#[test]
fn a_port_that_is_closed_for_a_while() {
    let mut server = Camera::launch(&ball());
    let open = watched(&server.uri());
    open.reach(CameraState::Running);
    server.kill9();
    std::thread::sleep(lasts(60, 5));
    server.restart();
    recovers("closed", &open, Instant::now());
    open.stop();
}

#[test]
fn another_size_and_another_codec_at_reconnect() {
    let mut server = Camera::launch(&ball());
    for decode in [Decode::All, Decode::Keyframes] {
        server.restart_with(&ball());
        let open = open_with(waits(), CameraConfig { decode, ..camera(&server.uri()) }, |_| true);
        assert_eq!(open.frame().image.dimensions(), (320, 240));
        for (codec, size) in [("h265", (640, 360)), ("h264", (1280, 720)), ("h265", (320, 240))] {
            server.restart_with(&line(codec, size, ""));
            let over = Instant::now();
            while open.frame().image.dimensions() != size {
                assert!(over.elapsed() < lasts(120, 30), "{codec}: {:?}", open.source.status());
            }
            println!("{codec} at reconnect, {decode:?}: a picture {:.2} s after it was over", over.elapsed().as_secs_f64());
        }
        open.stop();
    }
}

#[test]
fn garbage_in_the_packets() {
    let server = Camera::launch(&ball());
    for decode in [Decode::All, Decode::Keyframes] {
        let proxy = Proxy::start(server.port());
        let open = open_with(waits(), CameraConfig { decode, ..camera(&proxy.uri()) }, |_| true);
        open.reach(CameraState::Running);
        proxy.spoil(true);
        std::thread::sleep(lasts(60, 6));
        proxy.spoil(false);
        let over = Instant::now();
        assert!(proxy.spoiled() > 20, "{} packets", proxy.spoiled());
        recovers(&format!("garbage, {decode:?}"), &open, over);
        open.stop();
    }
}

#[test]
fn a_stream_of_sound_alone() {
    let sound = "audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay0 pt=8";
    let mut server = Camera::launch(sound);
    let open = open_with(Limits { first_frame: lasts(20, 3), refused: lasts(10, 2), ..waits() }, camera(&server.uri()), |_| true);
    let reason = open.reach(CameraState::Backoff).reason;
    assert!(reason.contains("no video"), "{reason}");
    server.restart_with(&ball());
    recovers("sound alone", &open, Instant::now());
    open.stop();
}

#[test]
fn a_file_looped_many_times_shows_every_picture_each_time() {
    if !alone("faults::a_file_looped_many_times_shows_every_picture_each_time") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let passes = if soak() { 50 } else { 12 };
    for name in ["a.mp4", "a.ts"] {
        let path = clip(dir.path(), name, 4, 20, 4);
        let open = open(CameraConfig { looped: true, ..file(&path) });
        let (mut seen, mut last) = (vec![0_u32], None);
        let mut held = Vec::new();
        while seen.len() <= passes {
            let position = open.frame().position;
            if position < last {
                seen.push(0);
                held.push(Held::of_this_process());
            }
            last = position;
            *seen.last_mut().unwrap() += 1;
        }
        seen.pop();
        assert!(seen.iter().all(|&frames| frames == 4), "{name}: {seen:?}");
        assert_eq!(open.count("teardowns_abandoned"), 0);
        let least = |held: &[Held]| held.iter().map(|held| (held.files, held.threads)).min().unwrap();
        let half = held.len() / 2;
        assert!(least(&held[half..]) <= least(&held[..half]), "{name}: {held:?}");
        open.stop();
    }
}

#[test]
fn a_file_that_ends_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.ts", "a.mkv", "a.avi"] {
        let path = clip(dir.path(), name, 40, 20, 5);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let open = open(CameraConfig { looped: true, ..file(&path) });
        (0..40).for_each(|_| drop(open.frame()));
        let positions = open.frames.try_iter().count();
        assert!(positions < 1000 && open.count("teardowns_abandoned") == 0);
        open.stop();
    }
    // An MP4 file has its table at its end: half of one is none, and is said to be. But parsebin swallows what a demuxer
    // complains of while it is being linked, and a demuxer may be that fast: then the watchdog has to notice.
    let path = clip(dir.path(), "a.mp4", 40, 20, 5);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let open = open(file(&path));
    let told = open.reach(CameraState::Backoff);
    assert!(told.reason.contains("a.mp4") || told.reason.contains("no picture within"), "{told:?}");
    std::fs::write(&path, &bytes).unwrap();
    recovers("half a file", &open, Instant::now());
    open.stop();
}

#[test]
fn a_file_that_appears_later() {
    let dir = tempfile::tempdir().unwrap();
    let made = clip(dir.path(), "made.mp4", 20, 10, 5);
    let path = dir.path().join("late.mp4");
    let open = open_with(waits(), file(&path), |_| true);
    assert!(open.reach(CameraState::Backoff).reason.contains("not found"));
    std::thread::sleep(lasts(60, 2));
    std::fs::rename(made, &path).unwrap();
    recovers("missing file", &open, Instant::now());
    open.stop();
}

/// What a process holds.
#[derive(Debug)]
struct Held {
    files: usize,
    threads: usize,
    /// MiB that are resident.
    memory: f64,
}

impl Held {
    fn of_this_process() -> Self {
        let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")).unwrap();
        Self { files: count("/proc/self/fd"), threads: count("/proc/self/task"), memory: resident.trim().parse::<f64>().unwrap() / 1024.0 }
    }
}

/// Runs this test alone in a process of its own, where nothing else takes memory; `true` in that process. Its allocator has
/// one arena: by default each new thread may begin another one, and that would be counted as growth.
fn alone(test: &str) -> bool {
    const ALONE: &str = "PALISADE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let arguments = ["--exact", test, "--nocapture", "--test-threads", "1"];
    let output =
        Command::new(std::env::current_exe().unwrap()).args(arguments).env(ALONE, "1").env("MALLOC_ARENA_MAX", "1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(&output.stderr));
    told.lines().filter(|line| line.contains("MiB")).for_each(|line| println!("{line}"));
    false
}

#[test]
fn many_reconnects_leave_nothing_behind() {
    if !alone("faults::many_reconnects_leave_nothing_behind") {
        return;
    }
    let mut server = Camera::launch(&line("h264", (320, 240), "num-buffers=3"));
    let wait = Duration::from_millis(200);
    let waits = Limits { backoff_first: wait, backoff_most: wait, ..limits() };
    let open = open_with(waits, CameraConfig { decode: Decode::All, ..camera(&server.uri()) }, |_| true);
    let (settled, all) = if soak() { (50, 250) } else { (60, 90) };

    // Within the wait, when the pipeline before has gone; on a busy machine not each time, so the least of ten counts.
    let mut lost = || {
        open.reach(CameraState::Backoff);
        while open.frames.try_recv().is_ok() {}
        if open.count("reconnects").is_multiple_of(10) {
            server.restart();
        }
    };
    let mut held = |from: u64| {
        while open.count("reconnects") < from {
            lost();
        }
        let look = |_| {
            lost();
            std::thread::sleep(wait * 2 / 5);
            Held::of_this_process()
        };
        let some: Vec<Held> = (0..10).map(look).collect();
        let least = |of: fn(&Held) -> f64| some.iter().map(of).fold(f64::MAX, f64::min);
        Held {
            files: least(|held| held.files as f64) as usize,
            threads: least(|held| held.threads as f64) as usize,
            memory: least(|held| held.memory),
        }
    };
    let (before, after) = (held(settled), held(all));
    println!("{before:?}, and {} reconnects later {after:?} (MiB)", all - settled);
    assert!(after.files <= before.files && after.threads <= before.threads, "{before:?} {after:?}");
    assert!(after.memory <= before.memory * 1.02, "{before:?} {after:?}");
    assert_eq!(open.count("teardowns_abandoned"), 0);
    open.stop();
}

#[test]
fn one_dead_camera_among_others_costs_them_nothing() {
    let count = if soak() { 15 } else { 5 };
    let film = "videotestsrc num-buffers=50 ! video/x-raw,format=I420,width=160,height=120,framerate=10/1 \
                ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 pt=96 config-interval=-1";
    // What all of them share are the decoders of keyframes.
    for (decode, each) in [(Decode::All, 50), (Decode::Keyframes, 5)] {
        for dead in [false, true] {
            let mute = TcpListener::bind("127.0.0.1:0").unwrap();
            let waits = Limits { first_frame: Duration::from_secs(1), ..limits() };
            let one = dead.then(|| open_with(waits, camera(&format!("rtsp://{}/cam", mute.local_addr().unwrap())), |_| true));
            let spoilt = dead.then(|| {
                let server = Camera::launch(&ball());
                let proxy = Proxy::start(server.port());
                let open = open_with(waits, CameraConfig { decode: Decode::Keyframes, ..camera(&proxy.uri()) }, |_| true);
                open.reach(CameraState::Running);
                proxy.spoil(true);
                (server, proxy, open)
            });
            let servers: Vec<Camera> = (0..count).map(|_| Camera::launch(film)).collect();
            let live: Vec<Open> = servers.iter().map(|server| open(CameraConfig { decode, ..camera(&server.uri()) })).collect();
            for open in &live {
                assert_eq!(open.reach(CameraState::Backoff).reason, "the stream ended");
                let frames = open.frames.try_iter().count();
                assert_eq!(frames, each, "{decode:?}, with a dead one: {dead}; {:?}", open.metrics.counts());
            }
            if let (Some(one), Some((_server, proxy, garbage))) = (one, spoilt) {
                assert!(one.count("reconnects") > 0 && one.count("frames_in") == 0 && proxy.spoiled() > 0);
                one.stop();
                garbage.stop();
            }
            live.into_iter().for_each(Open::stop);
        }
    }
}

#[test]
fn a_panic_in_a_callback_costs_one_reconnect() {
    let server = Camera::launch(&ball());
    for place in ["wants", "admit", "deliver", "status"] {
        let calls = Arc::new(AtomicU64::new(0));
        let bomb = move |here: &str| assert!(here != place || calls.fetch_add(1, Ordering::SeqCst) != 2, "on purpose, in {here}");
        let decode = if place == "wants" { Decode::Keyframes } else { Decode::All };
        let began = Instant::now();
        let open = open_hooked(limits(), CameraConfig { decode, ..camera(&server.uri()) }, bomb);
        if place != "status" {
            assert!(open.reach(CameraState::Backoff).reason.contains("panicked"), "{place}");
        }
        recovers(&format!("a panic in {place}"), &open, if place == "status" { began } else { Instant::now() });
        let told: Vec<CameraStatus> = open.statuses.try_iter().collect();
        assert!(told.len() < 100);
        open.stop();
    }
}

/// A pipeline whose opening never returns, as of a file on a dead share: here a pipe that nobody writes to.
#[test]
fn a_start_that_hangs_is_left_behind_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe.mp4");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let waits = Limits { first_frame: Duration::from_secs(1), teardown: Duration::from_secs(1), ..limits() };
    let open = open_with(waits, file(&pipe), |_| true);
    assert!(open.reach(CameraState::Stalled).reason.contains("no picture within"));
    open.reach(CameraState::Backoff);
    assert!(open.count("teardowns_abandoned") >= 1);
    let began = Instant::now();
    open.stop();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // Whoever hangs there is let go.
    release(&pipe);
}

fn release(pipe: &Path) {
    let writes = std::fs::OpenOptions::new().read(true).write(true).open(pipe);
    drop(writes);
}

#[test]
fn a_picture_that_stands_still_is_a_fault_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("still.png");
    launch(&format!("videotestsrc num-buffers=1 ! video/x-raw,width=320,height=240 ! pngenc ! filesink location=\"{}\"", path.display()));
    let mut server = Camera::launch(&crate::support::rtsp::still(&path));
    let config = CameraConfig { frozen_after: Some(lasts(30, 3)), ..camera(&server.uri()) };
    let open = open_with(waits(), config, |_| true);
    open.reach(CameraState::Running);
    let reason = open.reach(CameraState::Backoff).reason;
    assert!(reason.starts_with("the same picture for "), "{reason}");
    server.restart_with(&line("h264", (320, 240), ""));
    recovers("a frozen picture", &open, Instant::now());
    std::thread::sleep(lasts(40, 5));
    assert_eq!(open.source.status().state, CameraState::Running);
    open.stop();
}

/// It announces ten pictures a second and sends forty.
#[test]
fn a_flood_of_pictures_is_a_fault_twice_and_then_the_cameras_way() {
    let fragment = "videotestsrc is-live=true ! video/x-raw,format=I420,width=64,height=48,framerate=40/1 \
                    ! capssetter caps=video/x-raw,framerate=10/1 ! queue";
    let config = CameraConfig { input: Input::Fragment(fragment.to_owned()), ..camera("") };
    let open = open_with(limits(), config, |_| true);
    for _ in 0..2 {
        let reason = open.reach(CameraState::Backoff).reason;
        assert!(reason.ends_with(" pictures a second came where 10 are announced"), "{reason}");
        open.reach(CameraState::Running);
    }
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!((open.source.status().state, open.count("reconnects")), (CameraState::Running, 2));
    open.stop();
}
