//! The commands as a person runs them: output, exit codes, sentences.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::tempdir;

use crate::support::daemon::{PALISADE, repository};
use crate::support::truth::{LABELS, Score, Truth, detections};

fn palisade(arguments: &[&str]) -> Output {
    Command::new(PALISADE).args(arguments).current_dir(repository("")).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Frames of the clip at one a second, as `folder/000.png` and so on.
fn frames_of_the_clip(folder: &Path) -> Vec<String> {
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(repository("samples/street.mp4"))
        .args(["-vf", "select=not(mod(n\\,25))", "-vsync", "0", "-start_number", "0"])
        .arg(folder.join("%03d.png"))
        .status()
        .expect("ffmpeg must be installed: apt install ffmpeg");
    assert!(status.success());
    let mut names: Vec<String> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_config_with_five_mistakes_reports_five() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    let mistakes = "[model]\npath = \"samples/demo-model\"\nworkers = 0\n[[camera]]\nid = \"Front Door\"\nuri = \"gopher://cam\"\nprompt = \"\"\nintervall = 2\n";
    std::fs::write(&file, mistakes).unwrap();
    let output = palisade(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    let told = text(&output.stderr);
    let expected = ["model.workers", "camera[0].id", "camera[0].uri", "camera[0].prompt", "camera[0].intervall"];
    assert_eq!(told.lines().count(), 5, "{told}");
    for (line, (key, number)) in told.lines().zip(expected.iter().zip([3, 5, 6, 7, 8])) {
        assert!(line.starts_with(&format!("{}:{number}: {key} ", file.display())), "{line}");
    }
    assert_eq!(palisade(&["run", "--config", file.to_str().unwrap()]).status.code(), Some(78));
}

#[test]
fn a_good_config_and_the_shipped_one_pass_the_check() {
    let output = palisade(&["check", "--config", "config/palisade.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("no mistake found"));
    let output = palisade(&["check", "--config", "no/such.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("no/such.toml:1: cannot be read: No such file"));
}

#[test]
fn every_key_of_the_contract_is_taken() {
    let folder = tempdir().unwrap();
    let (file, secret, authority) = (folder.path().join("all.toml"), folder.path().join("secret"), folder.path().join("ca.pem"));
    std::fs::write(&secret, "s3cr3t\n").unwrap();
    let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", "/dev/null", "-out"];
    let made = Command::new("openssl").args(request).arg(&authority).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let text = format!(
        "[model]\npath = \"samples/demo-model\"\ndevice = \"auto\"\ndtype = \"auto\"\nmax_new_tokens = 100\nworkers = 1\nmax_batch = 8\nmin_score = 0.0\n\
         [model.min_scores]\ncat = 0.5\n\
         [[camera]]\nid = \"street\"\nuri = \"samples/street.mp4\"\nloop = true\nprompt = \"detect cat; dog; car\"\ninterval = 1.0\ndecode = \"auto\"\n\
         motion = \"auto\"\nmax_interval = 60.0\nmask = [[[0.0, 0.0], [1, 0.0], [1.0, 0.1]]]\nusername = \"viewer\"\npassword_file = {secret:?}\nenabled = true\n\
         transport = \"tcp\"\ndecoder = \"software\"\nmax_width = 1280\nfrozen_after = 60\n\
         [[camera]]\nid = \"gate\"\nuri = \"rtsps://127.0.0.1/a\"\nca_file = {authority:?}\nlabels = [\"cat\"]\n\
         [[camera]]\nid = \"yard\"\npipeline = \"videotestsrc ! videoconvert\"\nlabels = [\"cat\"]\n\
         [output.snapshots]\ndir = \"out/s\"\nkeep = 1000\nkeep_days = 7\n[output.file]\npath = \"out/{{camera}}/{{time}}.mp4\"\nmax_file = 86400\nmax_mb = 1000\nkeep_days = 7\nkeep_gb = 10\n[output.rtsp]\nlisten = \"127.0.0.1:8554\"\n\
         [[output.custom]]\npipeline = \"videoconvert ! x264enc tune=zerolatency ! mpegtsmux ! udpsink host=127.0.0.1 port=5000\"\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = 1883\nusername = \"palisade\"\npassword_file = {secret:?}\ntopic_prefix = \"palisade\"\nqos = 1\ntls = false\n\
         ca_file = \"/etc/ssl/certs/ca.pem\"\nmax_packet = 262144\nbacklog_rate = 1000\nversion = \"3.1.1\"\ncontrol = false\nstate_dir = \"/var/lib/palisade\"\nstats_interval = 60\ndiscovery = true\n\
         discovery_prefix = \"homeassistant\"\nfrigate = false\nfrigate_prefix = \"frigate\"\n[log]\nlevel = \"info\"\nformat = \"auto\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let output = palisade(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", self::text(&output.stderr));
}

#[test]
fn a_key_that_is_not_the_certificates_is_a_fault_with_its_line() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["a", "b"] {
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=node", "-keyout"];
        let made =
            Command::new("openssl").args(request).arg(path(&format!("{name}.key"))).arg("-out").arg(path(&format!("{name}.pem"))).output();
        assert!(made.unwrap().status.success());
    }
    let check = |key: &str| {
        let (cert, key, file) = (path("a.pem"), path(key), path("mqtt.toml"));
        let written = format!(
            "[model]\npath = \"samples/demo-model\"\n[[camera]]\nid = \"a\"\nuri = \"rtsp://127.0.0.1/a\"\nlabels = [\"cat\"]\n\
             [mqtt]\nhost = \"127.0.0.1\"\ntls = true\ncert_file = {cert:?}\nkey_file = {key:?}\n"
        );
        std::fs::write(&file, written).unwrap();
        palisade(&["check", "--config", file.to_str().unwrap()])
    };
    assert_eq!(check("a.key").status.code(), Some(0));
    let other = check("b.key");
    assert_eq!(other.status.code(), Some(78));
    let told = text(&other.stderr);
    let (cert, key) = (path("a.pem"), path("b.key"));
    let fault = format!(":11: mqtt.key_file cannot be used: {} is not the key of the certificate in {}", key.display(), cert.display());
    assert!(told.contains(&fault) && told.lines().count() == 1, "{told}");
}

#[test]
fn a_custom_fragment_that_is_none_is_a_fault_with_its_line() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    let camera = "[[camera]]\nid = \"a\"\nuri = \"rtsp://127.0.0.1/a\"\nlabels = [\"cat\"]\n";
    let custom = "[[output.custom]]\npipeline = \"videoconvert ! nosuchelement ! fakesink\"\n";
    std::fs::write(&file, format!("[model]\npath = \"samples/demo-model\"\n{camera}{custom}")).unwrap();
    let output = palisade(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    let told = text(&output.stderr);
    assert!(told.contains(":8: output.custom[0].pipeline is no gst-launch fragment: ") && told.contains("nosuchelement"), "{told}");
}

#[test]
fn what_a_camera_cannot_be_opened_with_is_a_fault_with_its_line() {
    let folder = tempdir().unwrap();
    let (file, authority) = (folder.path().join("bad.toml"), folder.path().join("ca.pem"));
    std::fs::write(&authority, "no certificate").unwrap();
    let text = format!(
        "[model]\npath = \"samples/demo-model\"\n[[camera]]\nid = \"a\"\npipeline = \"rtspsrc user-pw=s3cr3t ! nosuchelement\"\n\
         labels = [\"cat\"]\n[[camera]]\nid = \"b\"\nuri = \"rtsps://127.0.0.1/a\"\nca_file = {authority:?}\nlabels = [\"cat\"]\n"
    );
    std::fs::write(&file, text).unwrap();
    let output = palisade(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    let expected = [
        "5: camera[0].pipeline cannot be used: the fragment names the element nosuchelement, which is not installed".to_owned(),
        format!("10: camera[1].ca_file cannot be used: {} holds no certificate; must be a PEM file with one or more", authority.display()),
    ];
    let told = self::text(&output.stderr);
    assert_eq!(told.lines().collect::<Vec<_>>(), expected.map(|fault| format!("{}:{fault}", file.display())));
}

#[test]
fn detect_finds_what_is_on_the_clips_frames() {
    let folder = tempdir().unwrap();
    let frames = frames_of_the_clip(folder.path());
    assert_eq!(frames.len(), 30);
    let mut arguments = vec!["detect", "--model", "samples/demo-model", "--json", "--labels"];
    let labels = LABELS.join(",");
    arguments.push(&labels);
    arguments.extend(frames.iter().map(String::as_str));
    let output = palisade(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let truth = Truth::of_the_clip();
    let mut score = Score::default();
    for (second, line) in text(&output.stdout).lines().enumerate() {
        let answer: Value = serde_json::from_str(line).unwrap();
        assert_eq!((answer["frame"]["width"].as_u64(), answer["frame"]["height"].as_u64()), (Some(1280), Some(720)));
        assert_eq!(answer["prompt"], format!("detect {}", LABELS.join(" ; ")));
        score.add(&detections(&answer), truth.at(second as f64));
    }
    assert!(score.precision() >= 0.97 && score.recall() >= 0.97, "{score:?}");
}

#[test]
fn detect_draws_and_tells_boxes_in_shares_and_pixels() {
    let folder = tempdir().unwrap();
    let frames = frames_of_the_clip(folder.path());
    let drawn = folder.path().join("drawn.png");
    let output = palisade(&[
        "detect",
        "--model",
        "samples/demo-model",
        "--prompt",
        "detect traffic light; person",
        "--annotate",
        drawn.to_str().unwrap(),
        &frames[2],
    ]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(
        told.contains("raw: <loc") && told.contains("traffic light") && told.contains("score 0.") && told.contains("pixels x "),
        "{told}"
    );
    let (before, after) = (image::open(&frames[2]).unwrap().to_rgb8(), image::open(&drawn).unwrap().to_rgb8());
    assert_eq!(before.dimensions(), after.dimensions());
    assert!(before.pixels().zip(after.pixels()).filter(|(a, b)| a != b).count() > 5000);
}

#[test]
fn an_answer_is_not_lost_with_its_drawing() {
    let folder = tempdir().unwrap();
    let picture = repository("tests/goldens/pg2/image.png");
    let target = folder.path().join("no/such/folder/out.png");
    let detect = |target: &str| {
        palisade(&["detect", "--model", "samples/demo-model", "--labels", "cat", "--annotate", target, picture.to_str().unwrap()])
    };
    let output = detect(target.to_str().unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("raw: ") && text(&output.stderr).contains("out.png cannot be written"));
    let output = detect("out.doc");
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("must end in .png"), "{}", text(&output.stderr));
}

#[test]
fn an_empty_answer_is_shown_and_is_no_error() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("grey.png");
    image::RgbImage::from_pixel(320, 240, image::Rgb([120, 120, 120])).save(&path).unwrap();
    let output = palisade(&["detect", "--model", "samples/demo-model", "--labels", "horse", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    assert!(told.contains("raw: ") && told.contains("nothing found"), "{told}");
}

#[test]
fn pictures_that_cannot_be_used_are_sentences_and_exit_1() {
    let folder = tempdir().unwrap();
    let broken = folder.path().join("broken.jpg");
    std::fs::write(&broken, b"\xff\xd8\xff\xe0 this is no picture").unwrap();
    let huge = folder.path().join("huge.png");
    image::GrayImage::new(20_000, 1).save(&huge).unwrap();
    let good = repository("tests/goldens/pg2/image.png");
    let paths: Vec<&str> = [broken.as_path(), huge.as_path(), good.as_path()].map(|path| path.to_str().unwrap()).to_vec();
    let output = palisade(&[&["detect", "--model", "samples/demo-model", "--labels", "cat"][..], &paths].concat());
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.contains("broken.jpg cannot be read") && told.contains("huge.png cannot be read") && !told.contains("panicked"), "{told}");
    assert!(text(&output.stdout).contains("image.png"));
}

#[test]
fn a_model_that_is_not_there_is_a_sentence() {
    let picture = repository("tests/goldens/pg2/image.png");
    for (model, sentence) in [("no-such-folder", "neither a folder here nor"), ("tests", "config.json")] {
        let output = palisade(&["detect", "--model", model, "--labels", "cat", picture.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(sentence), "{}", text(&output.stderr));
    }
}

#[test]
fn probe_prints_the_reference_cases_numbers() {
    for case in ["pg1", "pg2"] {
        let (folder, snapshot) = crate::support::snapshot::copy_of(case);
        let expected: Value = serde_json::from_str(&std::fs::read_to_string(snapshot.folder.join("expected.json")).unwrap()).unwrap();
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let (model, image) = (folder.path().to_string_lossy().into_owned(), path("image.png"));
        let prompt = expected["prompt"].as_str().unwrap();
        let suppressed: Vec<String> = expected["suppressed_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
        let mut arguments =
            vec!["probe", "--model", &model, "--prompt", prompt, "--image", &image, "--tokens", "16", "--dtype", "f32", "--suppress"];
        arguments.extend(suppressed.iter().map(String::as_str));
        let output = palisade(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let got: Value = serde_json::from_slice(&output.stdout).unwrap();
        for key in ["input_ids", "generated_ids", "text"] {
            assert_eq!(got[key], expected[key], "{case} {key}");
        }
        for key in ["first_logits", "token_logprobs"] {
            let pairs = got[key].as_array().unwrap().iter().zip(expected[key].as_array().unwrap());
            let furthest = pairs.map(|(a, b)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs()).fold(0.0, f64::max);
            assert!(furthest < 1e-3, "{case} {key} differs by {furthest}");
        }
    }
}

#[test]
fn help_names_every_command() {
    let told = text(&palisade(&["--help"]).stdout);
    for command in ["run", "check", "detect", "demo", "bench"] {
        assert!(told.contains(command), "{told}");
    }
    assert!(!told.contains("probe"));
}

#[test]
fn the_doctor_names_what_is_wrong_and_what_mends_it() {
    let folder = tempdir().unwrap();
    let (file, port) = (folder.path().join("ill.toml"), crate::support::broker::free_port());
    let config = |camera: &str, more: &str| {
        format!(
            "[model]\npath = {:?}\n[[camera]]\nid = \"gate\"\nuri = {camera:?}\nprompt = \"detect cat\"\n{more}",
            repository("samples/demo-model")
        )
    };
    let doctor = |config: &str| {
        std::fs::write(&file, config).unwrap();
        let output = palisade(&["doctor", "--json", "--config", file.to_str().unwrap()]);
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let ill = format!(
        "[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n[console]\nlisten = \"{taken}\"\n[events.snapshots]\ndir = \"/proc/none\"\n[[output.v4l2]]\ncamera = \"gate\"\ndevice = \"/dev/video77\"\n"
    );
    let (code, told) = doctor(&config(&format!("rtsp://127.0.0.1:{port}/a"), &ill));
    assert_eq!((code, &told["bad"]), (Some(1), &Value::from(5)), "{told:#}");
    let bad = |subject: &str| {
        let found =
            told["findings"].as_array().unwrap().iter().find(|finding| finding["subject"] == subject && finding["verdict"] == "bad");
        found.unwrap_or_else(|| panic!("{subject}: {told:#}"))["cure"].as_str().unwrap().to_owned()
    };
    assert!(bad("camera gate").starts_with("ping 127.0.0.1"));
    assert!(bad("output.v4l2").contains("modprobe v4l2loopback"));
    assert!(bad("broker").contains("systemctl status mosquitto"));
    assert!(bad("console.listen").contains(&format!("sport = :{}", taken.port())));
    assert!(bad("events.snapshots.dir").contains("/proc/none"));

    let (code, told) = doctor(&config(repository("samples/street.mp4").to_str().unwrap(), ""));
    assert_eq!((code, &told["bad"]), (Some(0), &Value::from(0)), "{told:#}");
    let (code, told) = doctor("[model]\nid = \"x\"\n");
    assert_eq!(code, Some(1));
    assert!(told["findings"][0]["what"].as_str().unwrap().contains("model.id"), "{told:#}");
}

#[test]
fn status_says_where_it_asked_when_nothing_answers() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("palisade.toml");
    let config = |more: &str| {
        let written = format!(
            "[model]\npath = {:?}\n[[camera]]\nid = \"gate\"\nuri = \"rtsp://cam/1\"\nprompt = \"detect cat\"\n{more}",
            repository("samples/demo-model")
        );
        std::fs::write(&file, written).unwrap();
        let output = palisade(&["status", "--config", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    assert!(config("").contains("has no [console] table"));
    let port = crate::support::broker::free_port();
    let told = config(&format!("[console]\nlisten = \"127.0.0.1:{port}\"\n"));
    assert!(told.contains(&format!("nothing answers at 127.0.0.1:{port}")), "{told}");
}
