//! An RTSP server with a password, as ffprobe sees it.

use palisade::config::RtspLogin;

use super::*;

fn ffprobe(sink: &RtspSink, login: &str) -> (bool, String) {
    let arguments = "-v error -rtsp_transport tcp -select_streams v:0 -show_entries stream=codec_name,width,height -of csv=p=0";
    let address = format!("rtsp://{login}127.0.0.1:{}/cam", sink.port());
    let output = Command::new("ffprobe").args(arguments.split(' ')).arg(address).output().unwrap();
    let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).join("");
    (output.status.success(), told)
}

fn serve_to(video: RtspVideo) -> (RtspSink, Metrics) {
    gstreamer::init().unwrap();
    let metrics = Metrics::new();
    let live = Live::new(&[id()], EncoderKind::X264, Arc::new(Brush(Annotator::new().unwrap())), &metrics).unwrap();
    let login = Some(RtspLogin { username: "me".into(), password: "s3cr3t w/ord".to_owned().into() });
    let config = RtspConfig { video, login, ..RtspConfig::new("127.0.0.1:0".parse().unwrap()) };
    let live = Some(live).filter(|_| video == RtspVideo::Live);
    (RtspSink::new(config, &[id()], live, &metrics).unwrap(), metrics)
}

#[test]
fn who_does_not_know_the_password_sees_nothing_and_costs_no_encoder() {
    for video in [RtspVideo::Live, RtspVideo::Analysed] {
        let (sink, metrics) = serve_to(video);
        let encoded = metrics.counter("rtsp_pictures_encoded", "cam");
        for login in ["", "me:wrong@", "you:s3cr3t%20w%2Ford@"] {
            let (seen, told) = ffprobe(&sink, login);
            assert!(!seen && told.contains("401 Unauthorized"), "{video:?} {login}: {told}");
        }
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!((encoded.get(), threads("live-"), threads("rtsp-cam")), (0, 0, 0), "{video:?}");
        let (seen, told) = ffprobe(&sink, "me:s3cr3t%20w%2Ford@");
        assert!(seen && told.ends_with("h264,1280,720"), "{video:?}: {told}");
        assert!(encoded.get() > 0);
    }
}

#[test]
fn viewers_who_hang_up_without_a_word_leave_room_for_others() {
    let camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri()).running();
    let grey = |picture: &RgbImage| close(picture.get_pixel(320, 180), [150; 3]);
    // More than there may be sessions at once.
    for _ in 0..34 {
        drop(stall(&rig.sink));
    }
    rig.viewer().until("shown", grey);
    until("without a thread that shows", || threads("live-") == 0);
}

#[test]
fn a_server_that_everybody_can_reach_says_so_unless_it_has_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "s3cr3t\n").unwrap();
    let login = format!("username = \"me\"\npassword_file = {password:?}\n");
    for (listen, keys, told) in [("0.0.0.0", "", true), ("0.0.0.0", login.as_str(), false), ("127.0.0.1", "", false)] {
        let config = format!(
            "[model]\npath = {:?}\n[[camera]]\nid = \"street\"\nuri = {:?}\nloop = true\nlabels = [\"car\"]\n[output.rtsp]\nlisten = \"{listen}:0\"\n{keys}",
            repository("samples/demo-model"),
            repository("samples/street.mp4"),
        );
        let mut daemon = Daemon::start(folder.path(), &config);
        daemon.ready();
        daemon.signal("TERM");
        assert!(daemon.wait(PATIENCE).success());
        let log = daemon.log();
        assert_eq!(log.contains("everybody who reaches output.rtsp.listen can watch"), told, "{log}");
        assert!(!log.contains("s3cr3t"), "{log}");
    }
}
