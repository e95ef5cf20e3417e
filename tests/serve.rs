//! `palisade serve`: a camera as others see it, read by ffprobe and by GStreamer.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use gstreamer_app::AppSink;

use crate::support::camera::Camera;
use crate::support::daemon::PALISADE;
use crate::support::media;
use crate::support::rtsp::BALL;

/// What ffprobe says of an address, with credentials where it has some.
fn ffprobe(uri: &str) -> Output {
    let arguments = "-v error -rtsp_transport tcp -select_streams v:0 -show_entries stream=codec_name,width,height -of csv=p=0";
    Command::new("ffprobe").args(arguments.split(' ')).arg(uri).output().expect("ffprobe must be installed: apt install ffmpeg")
}

fn seen(uri: &str) -> Option<String> {
    let output = ffprobe(uri);
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The times (milliseconds) of the pictures that come within `time`, taken from the packets undecoded.
fn times(uri: &str, time: Duration) -> Vec<u64> {
    gstreamer::init().unwrap();
    let line = format!("rtspsrc location={uri} protocols=tcp latency=50 ! rtph264depay ! h264parse ! appsink name=out sync=false");
    let pipeline = gstreamer::parse::launch(&line).unwrap().downcast::<gstreamer::Pipeline>().unwrap();
    let sink = pipeline.by_name("out").unwrap().downcast::<AppSink>().unwrap();
    pipeline.set_state(gstreamer::State::Playing).unwrap();
    let deadline = Instant::now() + time;
    let mut times = Vec::new();
    while Instant::now() < deadline {
        if let Some(sample) = sink.try_pull_sample(gstreamer::ClockTime::from_mseconds(100)) {
            times.push(sample.buffer().unwrap().pts().unwrap().mseconds());
        }
    }
    pipeline.set_state(gstreamer::State::Null).unwrap();
    times
}

#[test]
fn a_clip_in_each_container_is_a_camera() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.mp4", "a.mkv", "a.ts"] {
        let camera = Camera::clip(&media::clip(folder.path(), name, 10, 10, 5));
        assert_eq!(seen(&camera.uri()).as_deref(), Some("h264,320,240"), "{name}");
    }
    let path = folder.path().join("b.mp4");
    let encode = "-v error -f lavfi -i testsrc2=size=128x96:rate=10 -t 1 -c:v libx265 -x265-params log-level=none -preset ultrafast";
    assert!(Command::new("ffmpeg").args(encode.split(' ')).arg(&path).status().unwrap().success());
    assert_eq!(seen(&Camera::clip(&path).uri()).as_deref(), Some("hevc,128,96"));
}

#[test]
fn a_clip_goes_on_beyond_its_end_for_each_viewer_from_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let camera = Camera::clip(&media::clip(folder.path(), "a.mp4", 10, 10, 10));
    let uri = camera.uri();
    let viewers = [0, 450].map(|delay| {
        let uri = uri.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(delay));
            times(&uri, Duration::from_secs(4))
        })
    });
    for viewer in viewers {
        let times = viewer.join().unwrap();
        // A seam each second; a busy machine may be late once.
        let odd = times.windows(2).filter(|pair| !(80..=120).contains(&pair[1].saturating_sub(pair[0]))).count();
        assert!(odd <= 1 && times.is_sorted(), "{times:?}");
        let lasted = times.last().unwrap() - times[0];
        assert!((2500..4500).contains(&lasted), "in real time: {times:?}");
    }
}

#[test]
fn who_has_no_login_sees_nothing() {
    for camera in [Camera::off("--launch", BALL).basic("eve", "s3cr3t").on(), Camera::off("--launch", BALL).digest("eve", "s3cr3t").on()] {
        let uri = camera.uri();
        let told = String::from_utf8_lossy(&ffprobe(&uri).stderr).into_owned();
        assert!(told.contains("401"), "{told}");
        assert_eq!(seen(&uri.replace("//", "//eve:wrong@")), None);
        assert_eq!(seen(&uri.replace("//", "//eve:s3cr3t@")).as_deref(), Some("h264,320,240"));
    }
}

#[test]
fn it_is_killed_started_anew_and_stopped_in_place() {
    let mut camera = Camera::launch(BALL);
    let uri = camera.uri();
    assert_eq!(seen(&uri).as_deref(), Some("h264,320,240"));
    camera.kill9();
    assert_eq!(seen(&uri), None);
    camera.restart_with(&BALL.replace("width=320", "width=160"));
    assert_eq!((camera.uri(), seen(&uri).as_deref()), (uri.clone(), Some("h264,160,240")));
    camera.stop_signal();
    assert_eq!(times(&uri, Duration::from_secs(1)), [0; 0]);
    camera.cont();
    assert_eq!(seen(&uri).as_deref(), Some("h264,160,240"));
}

#[test]
fn it_ends_with_its_parent() {
    let mut child = Command::new(PALISADE)
        .args(["serve", "--launch", BALL, "--until-eof"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_cannot_be_shown_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    media::launch(&format!("audiotestsrc num-buffers=20 ! wavenc ! filesink location=\"{}\"", file("sound.wav").display()));
    media::launch(&format!("videotestsrc num-buffers=5 ! jpegenc ! avimux ! filesink location=\"{}\"", file("jpeg.avi").display()));
    std::fs::write(file("text.mp4"), "no video at all").unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let cases: [(&str, &str, &str); 6] = [
        ("--clip", &path(&file("nowhere.mp4")), "nowhere.mp4 cannot be read: No such file"),
        ("--clip", &path(&file("sound.wav")), "sound.wav has no H.264 or H.265 video"),
        ("--clip", &path(&file("jpeg.avi")), "jpeg.avi has no H.264 or H.265 video"),
        ("--clip", &path(&file("text.mp4")), "text.mp4 has no H.264 or H.265 video"),
        ("--launch", "nosuchelement ! rtph264pay name=pay0", "cannot be used: no element \"nosuchelement\""),
        ("--launch", "videotestsrc ! x264enc ! rtph264pay", "has no payloader; must end in one with name=pay0"),
    ];
    for (what, footage, sentence) in cases {
        let output = Command::new(PALISADE).args(["serve", what, footage]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{footage}: {told}");
        assert!(told.contains(sentence) && output.stdout.is_empty(), "{footage}: {told}");
    }
    let output = Command::new(PALISADE).args(["serve", "--launch", BALL, "--user", "eve"]).env_remove("PALISADE_SERVE_PASSWORD").output();
    let told = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(told.contains("--user has no password; PALISADE_SERVE_PASSWORD must hold one"), "{told}");
}
