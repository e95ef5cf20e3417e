//! No secret leaves the daemon: one run at trace level through every way of logging in and every way of failing at it, and all that
//! it said, published, served or wrote is searched.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::tempdir;

use crate::support::broker::{Broker, Subscriber, eventually, free_port};
use crate::support::camera::Camera;
use crate::support::daemon::{Daemon, PALISADE, repository};
use crate::support::http::{ask, ask_with};

/// Stands in every secret of these tests.
const SECRET: &str = "s3cr3t";

/// Who may see everything.
const TOKEN: &str = "Authorization: Bearer s3cr3t-0123456789abcdef";

/// What the HTTP server is asked for, with the token and without.
const ADDRESSES: [&str; 12] = [
    "/",
    "/login",
    "/healthz",
    "/readyz",
    "/metrics",
    "/live/gate.jpg",
    "/live/none.jpg",
    "/api/v1/info",
    "/api/v1/cameras",
    "/api/v1/cameras/gate",
    "/api/v1/events",
    "/api/v1/openapi.json",
];

/// Finds the secret as it is, with its letters in another case, in base64 at any offset, and percent-encoded.
fn holds_secret(bytes: &[u8]) -> bool {
    use base64::Engine as _;
    let mut forms = vec![SECRET.to_owned(), SECRET.to_uppercase(), SECRET.bytes().map(|byte| format!("%{byte:02X}")).collect()];
    for lead in 0..3 {
        let coded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(format!("{}{SECRET}", &"\0\0"[..lead.min(2)]));
        // Without the digits that hold bits of what stands before and behind.
        forms.push(coded[lead.min(2) * 2..coded.len() - 1].to_owned());
    }
    forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == form.as_bytes()))
}

fn search(what: &str, bytes: &[u8]) {
    assert!(!holds_secret(bytes), "{what} holds the secret:\n{}", String::from_utf8_lossy(bytes));
}

fn search_files(folder: &Path) {
    for entry in folder.read_dir().unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => search_files(&path),
            path if path.is_file() => search(&path.display().to_string(), &std::fs::read(&path).unwrap()),
            // The socket of the service manager.
            _ => {}
        }
    }
}

#[test]
fn the_search_finds_what_it_looks_for() {
    for text in ["rtsp://u:s3cr3t@h", "Basic dmlld2VyOnMzY3IzdA==", "key=%73%33%63%72%33%74", "S3CR3T"] {
        assert!(holds_secret(text.as_bytes()), "{text}");
    }
    assert!(!holds_secret(b"rtsp://***@h, no secret here"));
}

/// Every place of the configuration that takes a secret; cameras that refuse it, take it, or are not there.
fn config(folder: &Path, broker: &Broker, [right, wrong]: [&Camera; 2], console: SocketAddr, format: &str) -> String {
    let secret = |name: &str, text: &str| {
        let path = folder.join("secrets").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{text}\n")).unwrap();
        path
    };
    let (model, nobody) = (repository("samples/demo-model"), free_port());
    let camera = |id: &str, more: &str| format!("[[camera]]\nid = {id:?}\nlabels = [\"car\"]\ninterval = 0.2\n{more}\n");
    let cameras = [
        camera("gate", &format!("uri = {:?}\nusername = \"viewer\"\npassword_file = {:?}", right.uri(), secret("gate", "right s3cr3t"))),
        camera("yard", &format!("uri = \"rtsp://viewer:wrong-s3cr3t@{}\"", wrong.uri().trim_start_matches("rtsp://"))),
        camera("hall", &format!("uri = \"http://viewer:s3cr3t@127.0.0.1:{nobody}/mjpeg?token=s3cr3t\"")),
        camera("door", &format!("uri = \"rtsp://127.0.0.1:{nobody}/s?pwd=s3cr3t\"\nusername = \"s3cr3t-user\"")),
        camera(
            "barn",
            &format!("pipeline = \"rtspsrc location=rtsp://127.0.0.1:{nobody}/a user-id=me user-pw=s3cr3t ! decodebin ! videoconvert\""),
        ),
    ];
    format!(
        "[model]\npath = {model:?}\n{}\
         [output.rtsp]\nlisten = \"127.0.0.1:{}\"\nvideo = \"live\"\nusername = \"me\"\npassword_file = {:?}\n\
         [[output.push]]\nuri = \"rtmp://127.0.0.1:{nobody}/live/{{key}}?sig=s3cr3t\"\nkey_file = {:?}\ncameras = [\"gate\"]\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {}\nusername = \"palisade\"\npassword_file = {:?}\nstate_dir = \"state\"\nstats_interval = 1\n\
         [console]\nlisten = \"{console}\"\ntoken_file = {:?}\n\
         [log]\nlevel = \"trace\"\nformat = {format:?}\n",
        cameras.concat(),
        free_port(),
        secret("rtsp", "s3cr3t of rtsp"),
        secret("push", "live-s3cr3t"),
        broker.port(),
        secret("mqtt", "s3cr3t of mqtt"),
        secret("console", "s3cr3t-0123456789abcdef"),
    )
}

#[test]
fn no_secret_is_said_published_served_or_written() {
    let (broker, strict) = (Broker::with_login("palisade", "s3cr3t of mqtt"), Broker::with_login("palisade", "another one"));
    let clip = repository("samples/street.mp4");
    let camera = |password: &str| Camera::off("--clip", clip.to_str().unwrap()).digest("viewer", password).on();
    let (right, wrong) = (camera("right s3cr3t"), camera("what nobody knows"));
    // Once with a broker that lets it in, once with one that does not.
    for (broker, format, lets_in) in [(&broker, "text", true), (&strict, "json", false)] {
        let (work, folder) = (tempdir().unwrap(), tempdir().unwrap());
        let console = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let file = config(folder.path(), broker, [&right, &wrong], console, format);
        // The configuration lies elsewhere than what the daemon writes.
        let subscriber = Subscriber::new(broker, "#");
        let mut daemon = Daemon::start(work.path(), &file);
        daemon.ready();
        if lets_in {
            subscriber.wait_text("palisade/status", "online");
            subscriber.wait_for("a look of the camera with the right password", |messages| {
                messages.iter().any(|message| message.topic == "palisade/gate/detections")
            });
            for camera in ["yard", "hall", "door", "barn"] {
                let topic = format!("palisade/{camera}/status");
                subscriber.wait_for(camera, |messages| {
                    messages.iter().any(|message| message.topic == topic && message.json()["state"] == "backoff")
                });
            }
        } else {
            eventually("the broker's refusal", || daemon.log().contains("refused"));
            let answer = |path: &str| ask(console, &format!("GET {path}"), &[&format!("Host: {console}"), TOKEN]).text().to_owned();
            eventually("pictures of the camera", || answer("/api/v1/cameras/gate").contains("\"running\""));
        }
        let host = format!("Host: {console}");
        for address in ADDRESSES {
            for headers in [&[host.as_str(), TOKEN] as &[&str], &[&host]] {
                let answer = ask(console, &format!("GET {address}"), headers);
                search(address, answer.head.as_bytes());
                search(address, &answer.body);
            }
        }
        for (line, body) in [("POST /login", "token=s3cr3t-wrong"), ("POST /login", "token=s3cr3t-0123456789abcdef")] {
            let answer = ask_with(console, line, &[&host], body);
            search(line, answer.head.as_bytes());
            search(line, &answer.body);
        }
        let file = work.path().join("palisade.toml");
        for command in ["check", "doctor", "status"] {
            let output = Command::new(PALISADE).args([command, "--config"]).arg(&file).current_dir(work.path()).output().unwrap();
            search(command, &output.stdout);
            search(command, &output.stderr);
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            match command {
                "doctor" => {
                    for key in ["console.listen", "output.rtsp.listen"] {
                        let line = told.lines().find(|line| line.contains(&format!("  {key}: "))).unwrap_or_else(|| panic!("{told}"));
                        assert!(line.contains("the daemon, it seems"), "{line}");
                    }
                }
                "status" => {
                    let gate = told.lines().find(|line| line.starts_with("gate ")).unwrap_or_else(|| panic!("{told}"));
                    assert!(gate.contains(" running ") && gate.ends_with("detect car"), "{told}");
                    assert!(told.contains(if lets_in { "broker connected" } else { "broker NOT connected" }), "{told}");
                }
                _ => {}
            }
        }
        daemon.signal("TERM");
        daemon.wait(std::time::Duration::from_secs(20));
        if lets_in {
            subscriber.wait_text("palisade/status", "offline");
        }
        for message in subscriber.messages() {
            search(&message.topic, message.topic.as_bytes());
            search(&message.topic, &message.payload);
        }
        let log = daemon.log();
        assert!(log.contains("refused the user name or password"), "{log}");
        std::fs::remove_file(file).unwrap();
        // The log is among them.
        search_files(work.path());
    }
}

#[test]
fn faults_of_a_configuration_do_not_repeat_its_secrets() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("faulty.toml");
    let faulty = "[model]\npath = \"m\"\n[[camera]]\nid = \"a\"\nuri = \"rtps://viewer:s3cr3t@cam/1\"\nprompt = \"detect cat\"\n\
         [[camera]]\nid = \"b\"\nuri = \"viewer:s3cr3t@cam\"\nprompt = \"detect cat\"\npassword = \"s3cr3t\"\n\
         [[camera]]\nid = \"c\"\npipeline = \"rtspsrc user-pw=s3cr3t locatoin=x ! decodebin\"\nprompt = \"detect cat\"\n\
         [[output.push]]\nuri = \"rmtp://h/live/s3cr3t\"\n[mqtt]\nhost = \"h\"\npassword = \"s3cr3t\"\n[console]\ntoken = \"s3cr3t\"\n";
    std::fs::write(&file, faulty).unwrap();
    for command in ["check", "run", "doctor", "status"] {
        let output = Command::new(PALISADE).args([command, "--config"]).arg(&file).output().unwrap();
        assert!(!output.status.success());
        search(command, &output.stdout);
        search(command, &output.stderr);
    }
}
