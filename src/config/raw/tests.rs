use super::*;
use crate::base::redact::ExposeSecret;
use crate::config::{DecoderKind, EncoderKind, Input, MotionConfig, Record, RtspVideo, TlsFault, Transport};
use crate::types::MinScore;

const CAMERA: &str = "[[camera]]\nid = \"street\"\nuri = \"rtsp://cam/main\"\nprompt = \"detect cat; dog\"\n";

fn read(text: &str) -> Result<Config, Vec<Fault>> {
    let env = |name: &str| (name == "PALISADE_CAMERA_STREET_PASSWORD").then(|| "from-env".to_owned());
    let fragment = |text: &str| if text == "nonsense" { Err("no element \"nonsense\"".to_owned()) } else { Ok(()) };
    let unusable = |key, why: &str| Err(TlsFault { key, why: why.to_owned() });
    let tls = |tls: &TlsConfig| match (&tls.ca_file, &tls.client) {
        (Some(_), _) => unusable("ca_file", "no certificate"),
        (None, Some(client)) if !client.key_file.starts_with("/certs") => unusable("key_file", "no key"),
        _ => Ok(()),
    };
    let device = |device: Device| if matches!(device, Device::Cuda(_)) { Err("no such GPU".to_owned()) } else { Ok(()) };
    let source = |text: &str| if text == "nonsense" { Err("the fragment has no source".to_owned()) } else { Ok(()) };
    let ca_file = |path: &Path| if path.starts_with("/certs") { Ok(()) } else { Err("no certificate".to_owned()) };
    parse(text, &env, &Checks { fragment: &fragment, source: &source, ca_file: &ca_file, tls: &tls, device: &device })
}

fn faults(text: &str) -> Vec<String> {
    read(text).expect_err("the text should be refused").iter().map(Fault::to_string).collect()
}

#[test]
fn defaults_fill_what_is_not_written() {
    let config = read(&format!("[model]\nid = \"google/paligemma2-3b-mix-224\"\n{CAMERA}")).unwrap();
    assert_eq!(config.model.source, ModelSource::Hub { id: "google/paligemma2-3b-mix-224".into(), revision: None });
    assert_eq!((config.model.max_new_tokens, config.model.workers), (100, 1));
    let camera = &config.cameras[0];
    assert_eq!(camera.interval, Duration::from_secs(1));
    assert_eq!(camera.prompt.text(), "detect cat; dog");
    assert_eq!(camera.password.as_ref().unwrap().expose_secret(), "from-env");
    assert!(config.mqtt.is_none() && config.output.snapshots.is_none());
}

#[test]
fn the_batch_is_left_to_the_device_unless_it_is_written() {
    let model = |line: &str| format!("[model]\npath = \"samples\"\n{line}\n{CAMERA}");
    assert_eq!(read(&model("")).unwrap().model.max_batch, None);
    assert_eq!(read(&model("max_batch = 64")).unwrap().model.max_batch, Some(64));
    for bad in ["0", "65"] {
        assert_eq!(faults(&model(&format!("max_batch = {bad}"))), [format!("line 3: model.max_batch is {bad}; must be in 1..=64")]);
    }
    assert_eq!(faults(&model("max_batch = \"auto\"")).len(), 1);
}

#[test]
fn every_mistake_is_reported_with_its_line() {
    let text = "[model]\nid = \"google/x\"\ndtpye = \"f32\"\n[[camera]]\nid = \"Street\"\nuri = \"ftp://x\"\nprompt = 3\ninterval = 0\n[mqtt]\nport = 70000\n";
    let expected = [
        "line 3: model.dtpye is not a known key; did you mean dtype?",
        "line 5: camera[0].id is wrong: \"Street\" is not a camera id; must be 1 to 63 of a-z, 0-9, _ and -, not starting with _ or -",
        "line 6: camera[0].uri has the scheme \"ftp\"; must be one of rtsp, rtsps, http, https, file, v4l2",
        "line 7: camera[0].prompt is an integer; must be text in quotes",
        "line 8: camera[0].interval is 0; must be in 0.01..=86400",
        "line 9: mqtt.host is missing; must be the broker's name or address",
        "line 10: mqtt.port is 70000; must be in 1..=65535",
    ];
    assert_eq!(faults(text), expected);
}

#[test]
fn broken_toml_is_told_once_and_hides_no_other_fault() {
    let found = faults("[model]\npath = samples\n[[camera]]\nid = \"a\"\nuri = \"rtsp://c/1\"\nlabels = [\"cat\"]\ninterval = -1\n");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("line 2: not TOML: "), "{found:?}");
    assert_eq!(found[1], "line 7: camera[0].interval is -1; must be in 0.01..=86400");
}

#[test]
fn motion_has_a_longest_interval_and_a_mask() {
    let camera = |keys: &str| format!("[model]\nid = \"a/b\"\n[[camera]]\nid = \"a\"\nuri = \"rtsp://c/1\"\nprompt = \"detect x\"\n{keys}");
    let motion = |keys: &str| read(&camera(keys)).unwrap().cameras.remove(0).motion;
    assert_eq!(motion("max_interval = 5\nmask = [[[0, 0], [1, 0], [1, 1]]]"), None);
    let of = |seconds: f64, mask: Vec<Vec<[f64; 2]>>| Some(MotionConfig { max_interval: Duration::from_secs_f64(seconds), mask });
    assert_eq!(motion("motion = \"auto\""), of(60.0, vec![]));
    assert_eq!(motion("motion = \"auto\"\ninterval = 90"), of(90.0, vec![]));
    let triangle = vec![vec![[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]]];
    assert_eq!(motion("motion = \"auto\"\nmax_interval = 5\nmask = [[[0, 0], [0.5, 0], [1, 1.0]]]"), of(5.0, triangle));
    let wrong = "motion = \"on\"\nmask = [[[0, 0], [1, 0]], 7, [[0, 0], [1, 0], [1, 1.5]], [[0, 0], [1, 0], [1]]]\n";
    let no_polygon = |at: usize| {
        format!("line 8: camera[0].mask[{at}] is no polygon; must be three points [x, y] or more, in shares 0..=1 of the picture")
    };
    let mut expected = vec!["line 7: camera[0].motion is \"on\"; must be one of off, auto".to_owned()];
    expected.extend((0..4).map(no_polygon));
    assert_eq!(faults(&camera(wrong)), expected);
    assert_eq!(
        faults(&camera("interval = 10\nmotion = \"auto\"\nmax_interval = 5")),
        ["line 9: camera[0].max_interval is 5; must be at least interval, 10"]
    );
}

/// A camera with these lines, the first of which is line 6.
fn opened(keys: &str) -> String {
    format!("[model]\nid = \"a/b\"\n[[camera]]\nid = \"street\"\nprompt = \"detect x\"\n{keys}\n")
}

#[test]
fn a_camera_is_opened_by_a_uri_or_a_pipeline() {
    let camera = read(&opened("pipeline = \"videotestsrc ! videoconvert\"")).unwrap().cameras.remove(0);
    assert_eq!(camera.input, Input::Fragment("videotestsrc ! videoconvert".into()));
    // The variable is for a URI; a fragment has no place for it.
    assert!(camera.password.is_none());
    assert_eq!(
        faults(&opened("")),
        [
            "line 3: camera[0].uri is missing; must be rtsp:// rtsps:// http:// https:// file:// or v4l2://, or pipeline a gst-launch fragment that ends in raw video"
        ]
    );
    assert_eq!(
        faults(&opened("uri = \"rtsp://c/1\"\npipeline = \"nonsense\"\nloop = true")),
        ["line 7: camera[0].pipeline stands beside uri; must be one of the two"]
    );
    assert_eq!(faults(&opened("pipeline = \"nonsense\"")), ["line 6: camera[0].pipeline cannot be used: the fragment has no source"]);
    assert_eq!(faults(&opened("pipeline = 3")), ["line 6: camera[0].pipeline is an integer; must be text in quotes"]);
    assert_eq!(faults(&opened("uri = 3")), ["line 6: camera[0].uri is an integer; must be text in quotes"]);
}

#[test]
fn keys_of_a_uri_are_refused_beside_a_pipeline() {
    let keys = ["loop = false", "transport = \"tcp\"", "ca_file = \"/certs/a\"", "username = \"u\"", "password_file = \"/nonexistent/x\""];
    let found = faults(&opened(&format!("pipeline = \"videotestsrc\"\n{}", keys.join("\n"))));
    let expected = keys.iter().enumerate().map(|(index, line)| {
        let key = line.split(' ').next().unwrap();
        format!("line {}: camera[0].{key} has no meaning beside pipeline; its elements have properties of their own for that", index + 7)
    });
    assert_eq!(found, expected.collect::<Vec<_>>());
    let found = faults(&opened("pipeline = \"videotestsrc\"\npassword = \"s3cr3t\""));
    assert!(
        found.len() == 1 && found[0].starts_with("line 7: camera[0].password has no meaning") && !found[0].contains("s3cr3t"),
        "{found:?}"
    );
}

#[test]
fn the_rtsp_server_shows_analysed_frames_or_live_video() {
    let read_one = |keys: &str| read(&format!("[model]\nid = \"a/b\"\n{CAMERA}[output.rtsp]\n{keys}")).unwrap().output.rtsp.unwrap();
    let output = |keys: &str| read(&format!("[model]\nid = \"a/b\"\n{CAMERA}{keys}")).unwrap().output;
    assert_eq!((read_one("").video, output("[output.rtsp]\n").encoder), (RtspVideo::Analysed, EncoderKind::X264));
    let live = output("[output.rtsp]\nvideo = \"live\"\nencoder = \"va\"\n");
    assert_eq!((live.rtsp.unwrap().video, live.encoder), (RtspVideo::Live, EncoderKind::Va));
    assert_eq!(output("[output.live]\nencoder = \"nvidia\"\n").encoder, EncoderKind::Nvidia);
    let two = "[output.rtsp]\nvideo = \"live\"\nencoder = \"va\"\n[output.live]\nencoder = \"x264\"\n";
    let refused = faults(&format!("[model]\nid = \"a/b\"\n{CAMERA}{two}"));
    assert_eq!(refused, ["line 11: output.live.encoder is another than output.rtsp.encoder; must be one of the two alone"]);
    let wrong = faults(&format!("[model]\nid = \"a/b\"\n{CAMERA}[output.rtsp]\nvideo = \"full\"\nencoder = \"gpu\"\n")).join("\n");
    for sentence in [
        "output.rtsp.video is \"full\"; must be one of analysed, live",
        "output.rtsp.encoder has no meaning for analysed frames; must stand beside video = \"live\"",
        "output.rtsp.encoder is \"gpu\"; must be one of auto, x264, va, nvidia, v4l2",
    ] {
        assert!(wrong.contains(sentence), "{sentence} in {wrong}");
    }
}

#[test]
fn packets_go_beside_the_connection_for_plain_rtsp_only() {
    let transport = |uri: &str, line: &str| opened(&format!("uri = \"{uri}\"\n{line}"));
    for (line, expected) in [("", Transport::Tcp), ("transport = \"tcp\"", Transport::Tcp), ("transport = \"udp\"", Transport::Udp)] {
        assert_eq!(read(&transport("rtsp://c/1", line)).unwrap().cameras[0].transport, expected);
    }
    for uri in ["rtsps://c/1", "http://c/1", "v4l2:///dev/video0", "a.mp4"] {
        assert!(read(&transport(uri, "transport = \"tcp\"")).is_ok(), "{uri}");
        assert_eq!(
            faults(&transport(uri, "transport = \"udp\"")),
            ["line 7: camera[0].transport is \"udp\"; must be tcp, for only rtsp:// can send its packets beside the connection"]
        );
    }
    assert_eq!(
        faults(&transport("rtsp://c/1", "transport = \"UDP\"")),
        ["line 7: camera[0].transport is \"UDP\"; must be one of tcp, udp"]
    );
}

#[test]
fn an_authority_is_for_encrypted_uris_only() {
    let authority = |uri: &str, path: &str| opened(&format!("uri = \"{uri}\"\nca_file = \"{path}\""));
    for uri in ["rtsps://c/1", "https://c/1"] {
        assert_eq!(read(&authority(uri, "/certs/ca.pem")).unwrap().cameras[0].ca_file, Some("/certs/ca.pem".into()));
        assert_eq!(faults(&authority(uri, "x")), ["line 7: camera[0].ca_file cannot be used: no certificate"]);
    }
    for uri in ["rtsp://c/1", "http://c/1", "a.mp4"] {
        assert_eq!(
            faults(&authority(uri, "/certs/ca.pem")),
            ["line 7: camera[0].ca_file has no meaning for this uri; only rtsps:// and https:// show a certificate"]
        );
    }
    // A scheme that is not known forbids nothing.
    assert_eq!(faults(&authority("gopher://c", "/certs/ca.pem")).len(), 1);
}

#[test]
fn pictures_are_decoded_scaled_and_watched_as_written() {
    let camera = |line: &str| read(&opened(&format!("uri = \"rtsp://c/1\"\n{line}"))).unwrap().cameras.remove(0);
    let bare = camera("");
    assert_eq!((bare.decoder, bare.max_width, bare.frozen_after), (DecoderKind::Software, None, None));
    let kinds = [DecoderKind::Software, DecoderKind::Auto, DecoderKind::Va, DecoderKind::Nvidia, DecoderKind::V4l2];
    for (name, kind) in ["software", "auto", "va", "nvidia", "v4l2"].into_iter().zip(kinds) {
        assert_eq!(camera(&format!("decoder = \"{name}\"")).decoder, kind);
    }
    assert_eq!([64, 8192].map(|width| camera(&format!("max_width = {width}")).max_width), [Some(64), Some(8192)]);
    assert_eq!(camera("frozen_after = 1.5").frozen_after, Some(Duration::from_millis(1500)));
    let found = |line: &str| faults(&opened(&format!("uri = \"rtsp://c/1\"\n{line}"))).join("\n");
    for (line, fault) in [
        ("decoder = \"vaapi\"", "decoder is \"vaapi\"; must be one of software, auto, va, nvidia, v4l2"),
        ("max_width = 63", "max_width is 63; must be in 64..=8192"),
        ("max_width = 8193", "max_width is 8193; must be in 64..=8192"),
        ("max_width = 640.5", "max_width is a float; must be a whole number in 64..=8192"),
        ("frozen_after = 0.5", "frozen_after is 0.5; must be in 1..=86400"),
        ("frozen_after = 86401", "frozen_after is 86401; must be in 1..=86400"),
        ("frozen_after = \"off\"", "frozen_after is a string; must be a number in 1..=86400"),
    ] {
        assert_eq!(found(line), format!("line 7: camera[0].{fault}"));
    }
}

#[test]
fn exclusive_keys_are_refused_together() {
    let found = faults(
        "[model]\nid = \"a/b\"\npath = \"c\"\n[[camera]]\nid = \"a\"\nuri = \"rtsp://c/1\"\nprompt = \"detect x\"\nlabels = [\"y\"]\n",
    );
    assert_eq!(
        found,
        [
            "line 3: model.path stands beside model.id; must be one of the two",
            "line 8: camera[0].labels stands beside prompt; must be one of the two"
        ]
    );
}

#[test]
fn an_empty_file_lacks_a_model_and_a_camera() {
    let found = faults("");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("model.id is missing") && found[1].contains("camera is missing"), "{found:?}");
}

#[test]
fn paths_and_fragments_are_tried() {
    let found = faults(&format!("[model]\npath = \"no/such\"\n[[output.custom]]\npipeline = \"nonsense\"\n{CAMERA}"));
    assert_eq!(found[0], "line 2: model.path no/such is no folder; must hold config.json, tokenizer.json and the weights");
    assert_eq!(found[1], "line 4: output.custom[0].pipeline is no gst-launch fragment: no element \"nonsense\"");
}

#[test]
fn what_only_a_stage_can_judge_is_a_fault_with_its_line() {
    let text = format!("[model]\npath = \"samples\"\ndevice = \"cuda:3\"\n[mqtt]\nhost = \"h\"\ntls = true\nca_file = \"x\"\n{CAMERA}");
    assert_eq!(faults(&text), ["line 3: model.device no such GPU", "line 7: mqtt.ca_file cannot be used: no certificate"]);
    let plain = text.replace("tls = true", "tls = false").replace("cuda:3", "cpu");
    assert!(read(&plain).unwrap().mqtt.unwrap().tls.is_none());
}

#[test]
fn a_client_certificate_comes_with_its_key_and_with_encryption() {
    let mqtt = |lines: &str| format!("[model]\npath = \"samples\"\n[mqtt]\nhost = \"h\"\n{lines}{CAMERA}");
    let (cert, key) = ("cert_file = \"/certs/a.pem\"\n", "key_file = \"/certs/a.key\"\n");
    let client = read(&mqtt(&format!("tls = true\n{cert}{key}"))).unwrap().mqtt.unwrap().tls.unwrap().client.unwrap();
    assert_eq!((client.cert_file, client.key_file), ("/certs/a.pem".into(), "/certs/a.key".into()));
    let both = "must be both or neither";
    assert_eq!(faults(&mqtt(&format!("tls = true\n{cert}"))), [format!("line 6: mqtt.cert_file stands without key_file; {both}")]);
    assert_eq!(faults(&mqtt(&format!("tls = true\n{key}"))), [format!("line 6: mqtt.key_file stands without cert_file; {both}")]);
    let clear = "has no meaning without encryption; must stand beside tls = true";
    assert_eq!(faults(&mqtt(&format!("{cert}{key}"))), [format!("line 5: mqtt.cert_file {clear}")]);
    assert_eq!(faults(&mqtt(key)), [format!("line 5: mqtt.key_file {clear}")]);
    let unusable = mqtt(&format!("tls = true\n{cert}key_file = \"/other\"\n"));
    assert_eq!(faults(&unusable), ["line 7: mqtt.key_file cannot be used: no key"]);
}

#[test]
fn the_largest_packet_is_bounded_and_has_a_default() {
    let mqtt = |lines: &str| format!("[model]\npath = \"samples\"\n[mqtt]\nhost = \"h\"\n{lines}{CAMERA}");
    assert_eq!(read(&mqtt("")).unwrap().mqtt.unwrap().max_packet, 262_144);
    for (written, most) in [("1024", 1024), ("268_435_455", 268_435_455)] {
        assert_eq!(read(&mqtt(&format!("max_packet = {written}\n"))).unwrap().mqtt.unwrap().max_packet, most);
    }
    for (written, told) in [("1023", "1023"), ("268435456", "268435456"), ("-1", "-1"), ("0", "0")] {
        let expected = format!("line 5: mqtt.max_packet is {told}; must be in 1024..=268435455");
        assert_eq!(faults(&mqtt(&format!("max_packet = {written}\n"))), [expected]);
    }
    let text = faults(&mqtt("max_packet = \"1 MiB\"\n"));
    assert_eq!(text, ["line 5: mqtt.max_packet is a string; must be a whole number in 1024..=268435455"]);
}

#[test]
fn a_backlog_has_a_rate() {
    let mqtt = |keys: &str| format!("[model]\npath = \"samples\"\n[mqtt]\nhost = \"h\"\n{keys}{CAMERA}");
    for (written, rate) in [("", 1000), ("backlog_rate = 1\n", 1), ("backlog_rate = 100_000\n", 100_000)] {
        assert_eq!(read(&mqtt(written)).unwrap().mqtt.unwrap().backlog_rate, rate);
    }
    for told in ["0", "-5", "100001"] {
        let expected = format!("line 5: mqtt.backlog_rate is {told}; must be in 1..=100000");
        assert_eq!(faults(&mqtt(&format!("backlog_rate = {told}\n"))), [expected]);
    }
}

#[test]
fn a_host_is_a_host_and_never_repeated_when_it_is_not() {
    for bad in ["mqtt://bob:hunter22@h", "h:1883", "a b", "h/x"] {
        let found = faults(&format!("[model]\npath = \"samples\"\n[mqtt]\nhost = {bad:?}\n{CAMERA}"));
        assert!(found.len() == 1 && found[0].starts_with("line 4: mqtt.host is no name") && !found[0].contains("hunter22"), "{found:?}");
    }
    for good in ["broker.lan", "127.0.0.1", "::1", "[fe80::1]"] {
        assert!(read(&format!("[model]\npath = \"samples\"\n[mqtt]\nhost = {good:?}\n{CAMERA}")).is_ok(), "{good}");
    }
}

#[test]
fn discovery_and_statistics_have_defaults_and_bounds() {
    let read =
        |keys: &str| read(&format!("[model]\npath = \"samples\"\n[mqtt]\nhost = \"h\"\n{keys}{CAMERA}")).map(|config| config.mqtt.unwrap());
    let plain = read("").unwrap();
    assert_eq!((plain.discovery_prefix.as_deref(), plain.stats_interval), (Some("homeassistant"), Duration::from_secs(60)));
    let set = read("discovery_prefix = \"ha/x\"\nstats_interval = 1.5\n").unwrap();
    assert_eq!((set.discovery_prefix.as_deref(), set.stats_interval), (Some("ha/x"), Duration::from_millis(1500)));
    assert_eq!(read("discovery = false\ntopic_prefix = \"homeassistant\"\n").unwrap().discovery_prefix, None);
    for (bad, told) in [
        ("discovery_prefix = \"a/#\"\n", "mqtt.discovery_prefix is \"a/#\"; must be topic levels"),
        ("topic_prefix = \"homeassistant\"\n", "mqtt.topic_prefix is discovery_prefix too; must be another"),
        ("stats_interval = 0.5\n", "mqtt.stats_interval is 0.5; must be in 1"),
    ] {
        let faults = read(bad).unwrap_err();
        assert!(faults.len() == 1 && faults[0].message.starts_with(told), "{faults:?}");
    }
}

#[test]
fn frigates_topics_are_off_and_have_a_prefix_of_their_own() {
    let read =
        |keys: &str| read(&format!("[model]\npath = \"samples\"\n[mqtt]\nhost = \"h\"\n{keys}{CAMERA}")).map(|config| config.mqtt.unwrap());
    for (keys, prefix) in [
        ("", None),
        ("frigate_prefix = \"x\"\n", None),
        ("frigate = false\ntopic_prefix = \"frigate\"\n", None),
        ("frigate = true\n", Some("frigate")),
        ("frigate = true\ntopic_prefix = \"frigates\"\n", Some("frigate")),
        ("frigate = true\nfrigate_prefix = \"site/frigate\"\n", Some("site/frigate")),
    ] {
        assert_eq!(read(keys).unwrap().frigate_prefix.as_deref(), prefix, "{keys}");
    }
    for (bad, told) in [
        ("frigate = true\nfrigate_prefix = \"a/#\"\n", "mqtt.frigate_prefix is \"a/#\"; must be topic levels"),
        ("frigate = true\ntopic_prefix = \"frigate\"\n", "mqtt.frigate_prefix has topics in common with topic_prefix; must be another"),
        ("frigate = true\nfrigate_prefix = \"palisade/street\"\n", "mqtt.frigate_prefix has topics in common with topic_prefix"),
        ("frigate = true\ntopic_prefix = \"frigate/street\"\n", "mqtt.frigate_prefix has topics in common with topic_prefix"),
        (
            "frigate = true\nfrigate_prefix = \"homeassistant\"\n",
            "mqtt.frigate_prefix has topics in common with discovery_prefix; must be another",
        ),
        ("frigate = 1\n", "mqtt.frigate is a"),
    ] {
        let faults = read(bad).unwrap_err();
        assert!(faults.len() == 1 && faults[0].message.starts_with(told), "{faults:?}");
    }
}

#[test]
fn one_camera_at_least_is_enabled() {
    let found = faults(&format!("[model]\npath = \"samples\"\n{CAMERA}enabled = false\n"));
    assert!(found.len() == 1 && found[0].contains("has only disabled ones"), "{found:?}");
}

#[test]
fn two_cameras_do_not_share_a_password_by_accident() {
    let env = |name: &str| (name == "PALISADE_CAMERA_A_B_PASSWORD").then(|| "s3cr3t".to_owned());
    let camera = |id: &str| CAMERA.replace("street", id);
    let checks = Checks { fragment: &|_| Ok(()), source: &|_| Ok(()), ca_file: &|_| Ok(()), tls: &|_| Ok(()), device: &|_| Ok(()) };
    let text = format!("[model]\npath = \"samples\"\n{}{}", camera("a-b"), camera("a_b"));
    let found = parse(&text, &env, &checks).unwrap_err();
    assert!(found.len() == 1 && found[0].message.contains("PALISADE_CAMERA_A_B_PASSWORD"), "{found:?}");
    let empty = |_: &str| Some(String::new());
    assert!(parse(&text, &empty, &checks).unwrap().cameras[0].password.is_none());
}

#[test]
fn a_faulty_camera_counts_when_files_are_shared() {
    let found = faults(&format!("[model]\npath = \"samples\"\n[output.file]\npath = \"a.mp4\"\n{CAMERA}{}", CAMERA.replace("street", "B")));
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn ids_are_unique_and_files_have_room_for_each_camera() {
    let found = faults(&format!("[model]\npath = \"samples\"\n[output.file]\npath = \"a.mp4\"\n{CAMERA}{CAMERA}"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0], "line 4: output.file.path lacks {camera}; several cameras cannot share one file");
    assert!(found[1].starts_with("line 10: camera[1].id is \"street\" once more"), "{found:?}");
}

#[test]
fn secrets_come_from_files_and_are_not_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "s3cr3t\n").unwrap();
    let text = format!(
        "[model]\npath = \"samples\"\n{CAMERA}password_file = {file:?}\n[mqtt]\nhost = \"h\"\nusername = \"u\"\npassword_file = {file:?}\n"
    );
    let config = read(&text).unwrap();
    assert_eq!(config.mqtt.as_ref().unwrap().password.as_ref().unwrap().expose_secret(), "s3cr3t");
    assert!(!format!("{config:?}").contains("s3cr3t"));
    let found = faults(&format!("[model]\npath = \"samples\"\n{CAMERA}password = \"s3cr3t\"\n"));
    assert!(found.len() == 1 && !found[0].contains("s3cr3t"), "{found:?}");
    let found = faults(&format!("[model]\npath = \"samples\"\n{CAMERA}password_file = \"/nonexistent/x\"\n"));
    assert!(found[0].starts_with("line 7: camera[0].password_file /nonexistent/x cannot be read"), "{found:?}");
}

#[test]
fn the_shipped_example_is_valid_and_states_the_defaults() {
    let text = include_str!("../../../config/palisade.toml");
    let config = read(text).map_err(|faults| format!("{faults:?}")).unwrap();
    let bare = read(&format!("[model]\nid = \"google/paligemma2-3b-mix-224\"\n{CAMERA}")).unwrap();
    assert_eq!(config.model.source, bare.model.source);
    assert_eq!(format!("{:?}", config.log), format!("{:?}", bare.log));
    let read_from = |config: &Config| {
        let camera = &config.cameras[0];
        (camera.interval, camera.decode, camera.decoder, camera.transport, camera.max_width, camera.frozen_after, camera.looped)
    };
    assert_eq!(read_from(&config), read_from(&bare));
    assert_eq!(config.cameras[0].tracking, bare.cameras[0].tracking);
    assert_eq!(bare.cameras[0].tracking, crate::types::Tracking::default());
    assert_eq!((config.model.max_new_tokens, config.model.workers, config.model.min_score), (100, 1, MinScore::default()));
}

#[test]
fn labels_have_scores_of_their_own() {
    let text = |scores: &str| format!("[model]\npath = \"samples\"\nmin_score = 0.25\n[model.min_scores]\n{scores}{CAMERA}");
    let config = read(&text("Cat = 0.5\n\"dog\" = 1\n")).unwrap();
    let score = &config.model.min_score;
    assert_eq!(["cat", "DOG ", "traffic light"].map(|label| score.of(label)), [0.5, 1.0, 0.25]);
    assert_eq!(
        faults(&text("cat = 1.5\ndog = \"0.5\"\n\"traffic light\" = 0.5\n")),
        [
            "line 5: model.min_scores.cat is 1.5; must be in 0..=1",
            "line 6: model.min_scores.dog is a string; must be a number in 0..=1",
            "line 7: model.min_scores.\"traffic light\" is a label that no camera asks for; asked for: cat, dog",
        ]
    );
    assert_eq!(
        faults(&text("dogg = 0.5\ncat = 0.5\nCAT = 0.5\n")),
        [
            "line 5: model.min_scores.dogg is a label that no camera asks for; did you mean dog?",
            "line 7: model.min_scores.CAT is there in another spelling too; case does not count, must be one of them"
        ]
    );
    let found = faults(&format!("[model]\npath = \"samples\"\nmin_scores = 0.25\n{CAMERA}"));
    assert_eq!(found, ["line 3: model.min_scores is a float; must be a table: [model.min_scores]"]);
}

#[test]
fn labels_of_free_tasks_and_of_faulty_cameras_are_not_judged() {
    let scores = "[model]\npath = \"samples\"\n[model.min_scores]\ntree = 0.5\n";
    for prompt in ["caption en", "answer en what is it?", "ocr"] {
        let camera = CAMERA.replace("street", "yard").replace("detect cat; dog", prompt);
        let config = read(&format!("{scores}{CAMERA}{camera}")).unwrap();
        assert_eq!(config.cameras[1].prompt.text(), prompt);
    }
    let segment = CAMERA.replace("detect cat; dog", "segment tree");
    assert!(read(&format!("{scores}{segment}")).is_ok());
    let found = faults(&format!("{scores}{CAMERA}interval = 0\n{}", CAMERA.replace("detect cat; dog", "")));
    assert!(found.len() == 3 && !found.iter().any(|fault| fault.contains("min_scores")), "{found:?}");
}

#[test]
fn a_camera_tracks_as_all_do_but_for_what_it_says() {
    let second = CAMERA.replace("street", "yard");
    let text = format!(
        "[model]\npath = \"samples\"\n[track]\nlost_after = 8\nheartbeat = 0\nupdate_moved = 2\n{CAMERA}\
         [camera.track]\nlost_after = 20\nconfirm_looks = 3\nstart_score = 0.6\n\
         [[camera.zone]]\nname = \"gate\"\npoints = [[0, 0.5], [0.4, 0.5], [0, 1]]\nlabels = [\" Cat\"]\nloitering = 4\n\
         [[camera.ignore]]\npoints = [[0.9, 0], [1, 0], [1, 0.2]]\n\
         [[camera.filter]]\nlabel = \"Dog\"\nmin_area = 0.01\nmax_ratio = 2.5\n{second}"
    );
    let config = read(&text).map_err(|faults| format!("{faults:?}")).unwrap();
    let (street, yard) = (&config.cameras[0].tracking, &config.cameras[1].tracking);
    let seconds = |tracking: &crate::types::Tracking| tracking.lost_after.as_secs();
    assert_eq!((seconds(street), seconds(yard), street.confirm_looks, yard.confirm_looks), (20, 8, 3, 2));
    assert_eq!((street.start_score, street.updates.heartbeat, street.updates.moved), (0.6, None, Some(2.0)));
    let zone = &street.zones[0];
    assert_eq!((&*zone.name, &zone.area.labels[..], zone.area.points[1]), ("gate", &["cat".to_owned()][..], [0.4, 0.5]));
    assert_eq!((zone.inertia, zone.loitering), (Duration::ZERO, Duration::from_secs(4)));
    assert!(street.ignores[0].labels.is_empty() && street.ignores[0].points.len() == 3);
    let filter = &street.filters[0];
    assert_eq!((&*filter.label, filter.min_area, filter.max_area, filter.min_ratio, filter.max_ratio), ("dog", 0.01, 1.0, 0.0, 2.5));
    assert!(yard.zones.is_empty() && yard.ignores.is_empty() && yard.filters.is_empty() && yard.updates == street.updates);
}

#[test]
fn mistakes_about_objects_are_told_with_their_place() {
    let text = format!(
        "[model]\npath = \"samples\"\n[track]\nconfirm_looks = 0\nlost_after = \"5\"\nstart_score = 0.1\nlost_aftr = 3\n{CAMERA}\
         [camera.track]\nkeep_score = 0.4\n\
         [[camera.zone]]\nname = \"gate\"\npoints = [[0, 0.5], [0.4, 0.5]]\n\
         [[camera.zone]]\nname = \"Gate\"\npoints = [[0, 0.5], [0.4, 0.5], [0, 1]]\nlabels = [\"cats\"]\ninertia = -1\n\
         [[camera.zone]]\nlabels = []\n\
         [[camera.ignore]]\npoints = [[0, 0.5], [0.4, 0.5], [0, 2]]\nname = \"x\"\n\
         [[camera.filter]]\nmin_area = 0.5\nmax_area = 0.2\n[[camera.filter]]\nlabel = \"bus\"\n\
         [[camera.filter]]\nlabel = \"dog\"\n[[camera.filter]]\nlabel = \"DOG\"\n"
    );
    let polygon = "is no polygon; must be three points [x, y] or more, in shares 0..=1 of the picture";
    let expected = [
        "line 4: track.confirm_looks is 0; must be in 1..=100".to_owned(),
        "line 5: track.lost_after is a string; must be a number in 0.1..=86400".to_owned(),
        "line 6: track.start_score is 0.1; must be at least keep_score, 0.15".to_owned(),
        "line 7: track.lost_aftr is not a known key; did you mean lost_after?".to_owned(),
        "line 13: camera[0].track.keep_score is 0.4; must be at most start_score, 0.1".to_owned(),
        format!("line 16: camera[0].zone[0].points {polygon}"),
        "line 18: camera[0].zone[1].name is \"Gate\" once more; each zone of a camera needs its own".to_owned(),
        "line 20: camera[0].zone[1].labels has \"cats\", which the camera does not ask for; did you mean cat?".to_owned(),
        "line 21: camera[0].zone[1].inertia is -1; must be in 0..=86400".to_owned(),
        "line 22: camera[0].zone[2].name is missing; must be the zone's name, such as \"gate\"".to_owned(),
        "line 22: camera[0].zone[2].points is missing; must be a polygon such as [[0.0, 0.0], [0.5, 0.0], [0.0, 0.3]]".to_owned(),
        "line 23: camera[0].zone[2].labels is empty; must name at least one, or be left out for all".to_owned(),
        format!("line 25: camera[0].ignore[0].points {polygon}"),
        "line 26: camera[0].ignore[0].name is not a known key; known here: labels, points".to_owned(),
        "line 27: camera[0].filter[0].label is missing; must be the label that it is for".to_owned(),
        "line 28: camera[0].filter[0].min_area is 0.5; must be at most max_area, 0.2".to_owned(),
        "line 31: camera[0].filter[1].label has \"bus\", which the camera does not ask for; asked for: cat, dog".to_owned(),
        "line 35: camera[0].filter[3].label is \"DOG\" once more; a label has one filter".to_owned(),
    ];
    assert_eq!(faults(&text), expected);
}

#[test]
fn clips_need_a_folder_and_an_encoded_stream() {
    let text = |camera: &str, table: &str| format!("[model]\npath = \"samples\"\n{CAMERA}{camera}\n{table}");
    let config = read(&text("", "")).unwrap();
    assert!(config.record.is_none() && config.cameras[0].record == Record::Off);
    let config = read(&text("record = \"events\"", "[record]\ndir = \"clips\"\npre_roll = 0\nkeep_gb = 0.5\nkeep_days = 2")).unwrap();
    let record = config.record.unwrap();
    assert_eq!((config.cameras[0].record, record.dir, record.pre_roll), (Record::Events, "clips".into(), Duration::ZERO));
    assert_eq!((record.post_roll, record.max_clip), (Duration::from_secs(5), Duration::from_secs(300)));
    assert_eq!((record.keep_bytes, record.keep_for), (500_000_000, Duration::from_secs(2 * 86_400)));
    let folder = "record is missing; must be a table [record] with dir, the folder for the clips: a camera has record = \"events\"";
    assert_eq!(faults(&text("record = \"events\"", "")), [format!("line 1: {folder}")]);
    let bad = "[record]\npre_roll = 61\nmax_clip = 1\nkeep_gigabytes = 3";
    let expected = [
        "line 7: camera[0].record is \"always\"; must be one of off, events",
        "line 8: record.dir is missing; must be the folder for the clips",
        "line 9: record.pre_roll is 61; must be in 0..=60",
        "line 10: record.max_clip is 1; must be in 10..=3600",
        "line 11: record.keep_gigabytes is not a known key; known here: dir, keep_days, keep_gb, max_clip, post_roll, pre_roll",
    ];
    assert_eq!(faults(&text("record = \"always\"", bad))[..], expected.map(str::to_owned)[..]);
    let raw = "[model]\npath = \"samples\"\n[[camera]]\nid = \"a\"\npipeline = \"x\"\nprompt = \"detect cat\"\nrecord = \"events\"\n[record]\ndir = \"c\"";
    let message = "has no meaning beside pipeline, which ends in raw video; must be off, or the camera opened by uri";
    assert_eq!(faults(raw), [format!("line 7: camera[0].record {message}")]);
}

#[test]
fn pictures_of_objects_are_as_their_table_says() {
    let text = |table: &str| {
        format!("[model]\npath = \"samples\"\n[[camera]]\nid = \"a\"\nuri = \"rtsp://h/s\"\nprompt = \"detect cat\"\n{table}")
    };
    assert!(read(&text("")).unwrap().gallery.is_none() && read(&text("[events]\n")).unwrap().gallery.is_none());
    let usual = read(&text("[events.snapshots]\ndir = \"objects\"")).unwrap().gallery.unwrap();
    assert_eq!((usual.dir, usual.crop, usual.annotate, usual.quality, usual.max_height), ("objects".into(), false, true, 85, None));
    assert_eq!((usual.keep_for, usual.keep_bytes), (Duration::from_secs(7 * 86_400), 2_000_000_000));
    let all =
        "[events.snapshots]\ndir = \"o\"\ncrop = true\nannotate = false\nquality = 60\nmax_height = 480\nkeep_days = 1\nkeep_gb = 0.5";
    let all = read(&text(all)).unwrap().gallery.unwrap();
    assert_eq!((all.crop, all.annotate, all.quality, all.max_height), (true, false, 60, Some(480)));
    assert_eq!((all.keep_for, all.keep_bytes), (Duration::from_secs(86_400), 500_000_000));
    let bad = "[events]\nsnapshot = 1\n[events.snapshots]\nquality = 0\nmax_height = 32\nkeep = 3";
    let expected = [
        "line 8: events.snapshot is not a known key; did you mean snapshots?",
        "line 9: events.snapshots.dir is missing; must be the folder for the pictures",
        "line 10: events.snapshots.quality is 0; must be in 1..=100",
        "line 11: events.snapshots.max_height is 32; must be in 64..=8192",
        "line 12: events.snapshots.keep is not a known key; known here: annotate, crop, dir, keep_days, keep_gb, max_height, quality",
    ];
    assert_eq!(faults(&text(bad))[..], expected.map(str::to_owned)[..]);
}

#[test]
fn what_was_seen_is_written_down_where_a_file_is_named() {
    let text = |table: &str| {
        format!("[model]\npath = \"samples\"\n[[camera]]\nid = \"a\"\nuri = \"rtsp://h/s\"\nprompt = \"detect cat\"\n{table}")
    };
    assert_eq!(read(&text("[events]\n")).unwrap().history, None);
    let history = |table: &str| read(&text(table)).unwrap().history.unwrap();
    let usual = history("[events]\ndatabase = \"e.sqlite\"\n[events.snapshots]\ndir = \"o\"");
    assert_eq!((usual.file, usual.keep_for), ("e.sqlite".into(), Duration::from_secs(30 * 86_400)));
    assert_eq!(history("[events]\ndatabase = \"e\"\nkeep_days = 0.5").keep_for, Duration::from_secs(43_200));
    for (table, fault) in [
        ("[events]\nkeep_days = 3", "line 7: events.database is missing; must be the file that keep_days is for"),
        ("[events]\ndatabase = \"\"", "line 8: events.database is empty; must be an SQLite file, which is made where there is none"),
        ("[events]\ndatabase = \"e\"\nkeep_days = 0", "line 9: events.keep_days is 0; must be in 0.001..=3650"),
    ] {
        assert_eq!(faults(&text(table)), [fault]);
    }
    let console = |table: &str| read(&text(table)).unwrap().console.unwrap();
    let plain = console("[console]");
    assert_eq!((plain.control, plain.state_dir), (false, "/var/lib/palisade".into()));
    let steered = console("[console]\ncontrol = true\nstate_dir = \"s\"");
    assert_eq!((steered.control, steered.state_dir), (true, "s".into()));
}

#[test]
fn a_console_that_others_reach_has_a_token() {
    use crate::base::redact::ExposeSecret;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        format!("token_file = {path:?}\n")
    };
    let text = |keys: &str| format!("[model]\nid = \"a/b\"\n{CAMERA}[console]\n{keys}");
    let console = |keys: &str| read(&text(keys)).unwrap().console.unwrap();
    assert!(read(&format!("[model]\nid = \"a/b\"\n{CAMERA}")).unwrap().console.is_none());
    let plain = console("");
    assert_eq!((plain.listen, plain.token.is_none(), plain.hosts.len()), (([127, 0, 0, 1], 8600).into(), true, 0));
    assert!(console("listen = \"[::1]:80\"").token.is_none());
    let good = file("good", "0123456789abcdef\n");
    let open = console(&format!("listen = \"0.0.0.0:80\"\n{good}hosts = [\"NVR.home\", \"[fe80::1]\"]"));
    assert_eq!(open.token.unwrap().expose_secret(), "0123456789abcdef");
    assert_eq!(open.hosts, ["nvr.home", "fe80::1"]);
    for listen in ["0.0.0.0:8600", "[::]:8600", "192.168.1.5:8600"] {
        let found = faults(&text(&format!("listen = {listen:?}\n")));
        assert_eq!(found.len(), 1, "{found:?}");
        let told = format!("line 8: console.listen is {listen}, where others see the cameras, and there is no token; must be a loopback");
        assert!(found[0].starts_with(&told) && found[0].contains("PALISADE_CONSOLE_TOKEN"), "{found:?}");
    }
    // A token that cannot be used is told once, and lets nobody in.
    for bad in [
        file("short", "0123456789abcde"),
        file("lines", "0123456789abcdef\nx"),
        file("empty", "\n"),
        "token_file = \"no/such\"\n".to_owned(),
    ] {
        let found = faults(&text(&format!("listen = \"0.0.0.0:80\"\n{bad}")));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("line 9: console.token_file ") && !found[0].contains("abcde"), "{found:?}");
    }
    let found = faults(&text("token = \"0123456789abcdef\"\nhosts = [\"http://nvr\", \"nvr:80\"]\nport = 3\n"));
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found[0].contains("console.token is refused: secrets do not belong") && !found[0].contains("abcdef"));
    assert!(found[1].contains("console.hosts holds \"http://nvr\"") && found[3].contains("console.port is not a known key"));
}

#[test]
fn the_rtsp_server_has_a_password_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "s3cr3t\n").unwrap();
    let of = |keys: &str| format!("[model]\nid = \"a/b\"\n{CAMERA}[output.rtsp]\n{keys}");
    let rtsp = read(&of(&format!("username = \"me\"\npassword_file = {file:?}"))).unwrap().output.rtsp.unwrap();
    let login = rtsp.login.as_ref().unwrap();
    assert_eq!((login.username.as_str(), login.password.expose_secret()), ("me", "s3cr3t"));
    assert!(!format!("{rtsp:?}").contains("s3cr3t"));
    assert!(read(&of("")).unwrap().output.rtsp.unwrap().login.is_none());
    let alone =
        "line 8: output.rtsp.username stands without a password; must have password_file, or PALISADE_RTSP_PASSWORD in the environment";
    assert_eq!(faults(&of("username = \"me\"")), [alone]);
    let nobody = "line 8: output.rtsp.password_file stands without username; must be both or neither";
    assert_eq!(faults(&of(&format!("password_file = {file:?}"))), [nobody]);
    let set = |name: &str| (name == "PALISADE_RTSP_PASSWORD").then(|| "s3cr3t".to_owned());
    let checks = Checks { fragment: &|_| Ok(()), source: &|_| Ok(()), ca_file: &|_| Ok(()), tls: &|_| Ok(()), device: &|_| Ok(()) };
    let open = parse(&of(""), &set, &checks).unwrap_err();
    let told = "output.rtsp.username is missing; must be the name that goes with PALISADE_RTSP_PASSWORD, which is set";
    assert!(open.len() == 1 && open[0].message == told, "{open:?}");
    let wrong = faults(&of(&format!("username = \"a:b\"\npassword_file = {file:?}")));
    assert_eq!(wrong, ["line 8: output.rtsp.username is \"a:b\"; must be a name without : and \""]);
    let written = faults(&of("username = \"me\"\npassword = \"s3cr3t\"")).join("\n");
    assert!(written.contains("output.rtsp.password is refused") && !written.contains("s3cr3t"), "{written}");
}

#[test]
fn live_video_is_sent_to_servers_and_played_into_devices() {
    let second = CAMERA.replace("street", "yard");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "live_1\n").unwrap();
    let of = |keys: &str| format!("[model]\nid = \"a/b\"\n{CAMERA}{second}{keys}");
    let push = |keys: &str| of(&format!("[[output.push]]\n{keys}"));
    let output = read(&push(&format!("uri = \"rtmp://host/app/{{camera}}-{{key}}\"\nkey_file = {file:?}"))).unwrap().output;
    assert_eq!(output.push[0].uri.expose_secret(), "rtmp://host/app/{camera}-live_1");
    assert_eq!(output.push[0].cameras.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["street", "yard"]);
    assert!(!format!("{output:?}").contains("live_1"));
    assert!(output.rtsp.is_none());
    for (keys, fault) in [
        ("", "line 11: output.push[0].uri is missing; must be rtmp://, rtmps:// or srt://"),
        ("uri = \"rtmp://host/app/s3cr3t\"", "line 12: output.push[0].uri lacks {camera}; several cameras cannot share one stream"),
        (
            "uri = \"rtmp://host/app/{camera}{cam}\"",
            "line 12: output.push[0].uri has a placeholder that is not known; must be {camera} or {key}",
        ),
        (
            "uri = \"srt://host:9?passphrase=s3cr3t&streamid={camera}\"",
            "line 12: output.push[0].uri has a passphrase that SRT does not take; must be of 10 to 79 characters",
        ),
        ("uri = \"http://host/{camera}\"", "line 12: output.push[0].uri has the scheme \"http\"; must be one of rtmp, rtmps, srt"),
        (
            "uri = \"rtmp://host/app/{key}\"\ncameras = [\"yard\"]",
            "line 12: output.push[0].uri has {key}; must have key_file beside it, or PALISADE_PUSH_KEY in the environment",
        ),
        (
            "uri = \"srt://host:9\"\ncameras = [\"yart\"]",
            "line 13: output.push[0].cameras has \"yart\", which is no camera's id; did you mean yard?",
        ),
        (
            "uri = \"srt://host:9\"\ncameras = []",
            "line 13: output.push[0].cameras is empty; must name a camera, or be left out for all of them",
        ),
    ] {
        assert_eq!(faults(&push(keys)), [fault], "{keys}");
    }
    let v4l2 = |keys: &str| of(&format!("[[output.v4l2]]\n{keys}"));
    let output = read(&v4l2("camera = \"yard\"\ndevice = \"/dev/video10\"")).unwrap().output;
    assert_eq!((output.v4l2[0].camera.as_str(), output.v4l2[0].device.as_path()), ("yard", Path::new("/dev/video10")));
    assert_eq!(
        faults(&v4l2("camera = \"attic\"\ndevice = \"video10\"")),
        [
            "line 12: output.v4l2[0].camera has \"attic\", which is no camera's id; must be one of street, yard",
            "line 13: output.v4l2[0].device is \"video10\"; must be a device such as \"/dev/video10\"",
        ]
    );
    let twice = "camera = \"yard\"\ndevice = \"/dev/video10\"\n";
    let twice = faults(&v4l2(&format!("{twice}[[output.v4l2]]\n{twice}")));
    assert_eq!(twice, ["line 16: output.v4l2[1].device is \"/dev/video10\" once more; a device has room for one camera"]);
}
