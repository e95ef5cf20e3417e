//! Live video sent to servers by RTMP and SRT, with ffmpeg as the server.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use palisade::config::{OutputConfig, PushConfig, V4l2Config};
use palisade::sink::video::LiveSink;

use super::*;

fn push(uri: &str) -> PushConfig {
    PushConfig { cameras: vec![id()], uri: uri.to_owned().into() }
}

/// A port that nobody listens at.
fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server that takes two seconds of video into a file and ends.
fn server(listen: &[&str], uri: &str, file: &Path) -> Child {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-y"]).args(listen).args(["-i", uri, "-t", "2", "-c", "copy"]).arg(file);
    command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("ffmpeg must be installed: apt install ffmpeg")
}

/// How many pictures a file has; each can be decoded.
fn pictures(file: &Path) -> u64 {
    let arguments = "-v warning -count_frames -select_streams v:0 -show_entries stream=nb_read_frames -of csv=p=0";
    let output = Command::new("ffprobe").args(arguments.split(' ')).arg(file).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !told.contains("concealing") && !told.contains("non-existing"), "{told}");
    // A transport stream is told twice: as a program's and as a file's.
    String::from_utf8_lossy(&output.stdout).lines().find_map(|line| line.trim_matches(',').parse().ok()).unwrap()
}

#[test]
fn servers_get_the_video_again_after_each_end_of_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let camera = Camera::launch(GREY);
    let mut rig = Rig::start(&camera.uri()).running();
    let (rtmp, srt) = (free(), free());
    let rtmp = format!("rtmp://127.0.0.1:{rtmp}/app/s3cr3tkey");
    let (called, waits) = (format!("srt://127.0.0.1:{srt}?mode=caller&passphrase=s3cr3tphrase"), "mode=listener");
    let srt = called.replace("mode=caller", waits);
    for (calls, listen, uri, end) in [(&rtmp, &["-listen", "1", "-f", "flv"][..], &rtmp, "flv"), (&called, &["-f", "mpegts"], &srt, "ts")] {
        let metrics = Metrics::new();
        let count = |what| metrics.counter(what, "0-cam").get();
        let config = OutputConfig { push: vec![push(calls)], ..OutputConfig::default() };
        let sink = LiveSink::start(&config, rig.live.clone(), &metrics).unwrap();
        until("without a server", || count("push_failures") > 0);
        for turn in 0..2 {
            let file: PathBuf = folder.path().join(format!("{turn}.{end}"));
            let mut server = server(listen, uri, &file);
            let begin = Instant::now();
            while server.try_wait().unwrap().is_none() {
                assert!(begin.elapsed() < PATIENCE, "{end}: {} failures and no end of turn {turn}", count("push_failures"));
                std::thread::sleep(Duration::from_millis(50));
            }
            let mut told = String::new();
            server.stderr.take().unwrap().read_to_string(&mut told).unwrap();
            let got = pictures(&file);
            assert!((35..60).contains(&got), "{end}: {got} pictures in two seconds; {told}");
        }
        assert!(count("push_connects") >= 2 && count("push_pictures") >= 70, "{end}");
        drop(sink);
    }
    rig.sink.finish().unwrap();
    assert_eq!((threads("push-"), threads("live-")), (0, 0));
}

#[test]
fn a_server_that_is_dead_or_takes_nothing_costs_nobody() {
    let camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri()).running();
    // One that lets in and says nothing, and one that is not there.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let held = format!("rtmp://127.0.0.1:{}/app/key", silent.local_addr().unwrap().port());
    let dead = format!("srt://127.0.0.1:{}", free());
    let devices = ["/dev/video-none", "/dev/null"].map(|device| V4l2Config { camera: id(), device: device.into() });
    let config = OutputConfig { push: vec![push(&held), push(&dead)], v4l2: devices.into(), ..OutputConfig::default() };
    let mut sink = LiveSink::start(&config, rig.live.clone(), &rig.metrics).unwrap();
    let viewer = rig.viewer();
    viewer.until("shown", |picture| close(picture.get_pixel(320, 180), [150; 3]));
    let rate = viewer.rate(6);
    assert!((20.0..30.0).contains(&rate), "{rate} frames a second beside servers that take nothing");
    let failures = |name| rig.metrics.counter("push_failures", name).get();
    until("given up", || failures("0-cam") > 0 && failures("1-cam") > 1);
    let (connects, device) = (rig.metrics.counter("push_connects", "1-cam").get(), rig.metrics.counter("v4l2_failures", "cam").get());
    assert!(connects == 0 && device >= 2, "{connects} {device}");
    drop(viewer);
    // Between two tries nobody watches.
    until("without a thread that shows", || threads("live-") == 0);
    let begin = Instant::now();
    sink.finish().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!((threads("push-"), threads("v4l2-")), (0, 0));
}

#[test]
fn the_daemon_sends_without_an_rtsp_server_and_never_tells_a_streams_key() {
    let folder = tempfile::tempdir().unwrap();
    let port = free();
    let file = folder.path().join("got.flv");
    let uri = format!("rtmp://127.0.0.1:{port}/app/s3cr3tkey?sig=s3cr3tsig");
    let config = format!(
        "[model]\npath = {:?}\n[[camera]]\nid = \"street\"\nuri = {:?}\nloop = true\nlabels = [\"car\"]\ninterval = 0.5\n\
         [[output.push]]\nuri = {uri:?}\n[log]\nlevel = \"debug\"\n",
        repository("samples/demo-model"),
        repository("samples/street.mp4"),
    );
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.ready();
    until("told that there is no server", || daemon.log().contains("live video is not sent"));
    let mut server = server(&["-listen", "1", "-f", "flv"], &uri, &file);
    until("sent", || server.try_wait().unwrap().is_some());
    assert!(pictures(&file) > 10);
    daemon.signal("TERM");
    assert!(daemon.wait(PATIENCE).success());
    let log = daemon.log();
    assert!(log.contains("live video is sent") && !log.contains("s3cr3t"), "{log}");
}
