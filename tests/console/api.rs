//! The API on the real daemon: what it tells, what it is told, and what of it outlives a restart.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use palisade::console::{COUNTS, GAUGES, OPENAPI, TIMES};
use serde_json::{Value, json};

use crate::control::command;
use crate::support::broker::{Broker, Subscriber};
use crate::support::daemon::{Daemon, PALISADE, repository};
use crate::support::http::{Answer, ask, connect, exchange};
use crate::support::source::PATIENCE;

const HOST: &str = "Host: localhost";

/// For what a clip shows to come by, however busy the machine is.
const LONG: Duration = Duration::from_secs(120);

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {LONG:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A daemon with all that the console tells of.
struct Node {
    folder: tempfile::TempDir,
    address: SocketAddr,
    config: String,
    daemon: Daemon,
}

impl Node {
    fn start(more: &str, console: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "[model]\npath = {:?}\n[track]\nlost_after = 1\n[[camera]]\nid = \"street\"\nuri = {:?}\nloop = true\nlabels = [\"person\", \"car\"]\n\
             interval = 0.25\nrecord = \"events\"\n[[camera]]\nid = \"yard\"\nuri = \"rtsp://127.0.0.1:1/x\"\nlabels = [\"cat\"]\nenabled = false\n\
             [record]\ndir = \"clips\"\npre_roll = 1\npost_roll = 1\nmax_clip = 10\n[events]\ndatabase = \"events.sqlite\"\n[events.snapshots]\ndir = \"objects\"\n\
             [console]\nlisten = \"127.0.0.1:{port}\"\n{console}\n{more}",
            repository("samples/demo-model"),
            repository("samples/street.mp4"),
        );
        let daemon = Daemon::start(folder.path(), &config);
        let mut node = Self { folder, address: ([127, 0, 0, 1], port).into(), config, daemon };
        node.daemon.ready();
        node
    }

    fn get(&self, path: &str) -> Answer {
        ask(self.address, &format!("GET {path}"), &[HOST])
    }

    /// What is told at an address, as the document says it is.
    fn told(&self, path: &str, schema: &str) -> Value {
        let answer = self.get(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{path}: {answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        valid(schema, serde_json::from_slice(&answer.body).unwrap())
    }

    fn put(&self, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let answer = exchange(
            self.address,
            &format!(
                "PUT {path} HTTP/1.1\r\n{HOST}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
        );
        (answer.status, serde_json::from_slice(&answer.body).unwrap())
    }

    /// By a program that is not ours: the status and the body.
    fn curl(&self, path: &str, words: &[&str]) -> (u16, Vec<u8>) {
        let Output { stdout, stderr, .. } = Command::new("curl")
            .args(["-sS", "-m", "60", "-w", "\n%{http_code}", &format!("http://{}{path}", self.address)])
            .args(words)
            .output()
            .unwrap();
        let end = stdout.iter().rposition(|byte| *byte == b'\n').unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&stderr)));
        (String::from_utf8_lossy(&stdout[end + 1..]).parse().unwrap(), stdout[..end].to_vec())
    }

    fn detect(&self, fields: &[&str]) -> (u16, Value) {
        // Of text, curl would read what stands behind a semicolon as something else.
        let kind = |field: &str| if field.starts_with("image=@") { "-F" } else { "--form-string" };
        let words: Vec<&str> = fields.iter().flat_map(|field| [kind(field), field]).collect();
        let (status, body) = self.curl("/api/v1/detect", &words);
        (status, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&body))))
    }
}

/// Held against a schema of the document.
fn valid(schema: &str, value: Value) -> Value {
    let mut document: Value = serde_json::from_str(OPENAPI).unwrap();
    document["$ref"] = json!(format!("#/components/schemas/{schema}"));
    document["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    let validator = jsonschema::draft202012::new(&document).unwrap();
    let faults: Vec<String> = validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(faults.is_empty(), "{schema}: {faults:?}\n{value:#}");
    value
}

/// Server-sent events, as they come.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(address: SocketAddr) -> Self {
        let mut stream = connect(address);
        stream.write_all(format!("GET /api/v1/stream HTTP/1.0\r\n{HOST}\r\n\r\n").as_bytes()).unwrap();
        let mut stream = Self(BufReader::new(stream));
        let head: Vec<String> = std::iter::repeat_with(|| stream.line()).take_while(|line| !line.is_empty()).collect();
        assert!(head[0].contains("200 OK") && head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
        stream
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream has ended");
        line.trim_end().to_owned()
    }

    /// The next event's name and what it tells.
    fn event(&mut self) -> (String, Value) {
        loop {
            let line = self.line();
            if let Some(name) = line.strip_prefix("event: ") {
                let data = self.line();
                assert_eq!(self.line(), "");
                return (name.to_owned(), serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap());
            }
            assert!(line.is_empty() || line.starts_with(':'), "{line}");
        }
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&str, &Value) -> bool) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            let (name, data) = self.event();
            let data = valid(if name == "camera" { "Camera" } else { "Object" }, data);
            if wanted(&name, &data) {
                return data;
            }
            assert!(Instant::now() < deadline, "never {what}");
        }
    }
}

#[test]
fn the_daemon_tells_of_itself_its_cameras_and_what_happens() {
    let node = Node::start("", "");
    let info = node.told("/api/v1/info", "Info");
    assert_eq!((&info["model"], &info["device"], &info["control"]), (&json!("demo-model"), &json!("cpu"), &json!(false)));
    assert_eq!(["clips", "snapshots", "history"].map(|what| &info[what]), [&json!(true); 3]);
    assert_eq!(info["mqtt"], json!({"enabled": false, "connected": false, "outbox": 0}));
    eventually("pictures and looks are counted", || {
        let camera = node.told("/api/v1/cameras/street", "Camera");
        camera["fps"].as_f64().unwrap_or_default() > 1.0 && camera["looks_per_s"].as_f64().unwrap_or_default() > 0.1
    });
    let street = node.told("/api/v1/cameras/street", "Camera");
    assert_eq!((&street["state"], &street["frame"]), (&json!("running"), &json!({"width": 1280, "height": 720})));
    assert!(street["raw"].is_string() && street["counts"]["car"].is_u64() && street["prompt"] == "detect person ; car", "{street}");
    assert!(street["prompt_editable"] == false && street["detect"] == true);
    let all: Value = serde_json::from_slice(&node.get("/api/v1/cameras").body).unwrap();
    let yard = valid("Camera", all["cameras"][1].clone());
    assert_eq!(
        (&yard["id"], &yard["state"], &yard["enabled"], &yard["fps"]),
        (&json!("yard"), &json!("disabled"), &json!(false), &json!(0.0))
    );
    let unknown = node.get("/api/v1/cameras/other");
    assert_eq!((unknown.status, unknown.error().as_str()), (404, "there is no such camera; must be one of street, yard"));

    let mut stream = Stream::open(node.address);
    let first = [stream.event(), stream.event()];
    assert_eq!(first.map(|(name, data)| (name, data["id"].clone())), ["street", "yard"].map(|id| ("camera".to_owned(), json!(id))));
    let object = stream.until("a new object", |name, data| name == "object" && data["end_time"].is_null());
    let id = object["track_id"].as_str().unwrap().to_owned();
    stream.until("its end", |name, data| name == "object" && data["track_id"] == *id && data["end_time"].is_string());
    let refused = node.put("/api/v1/cameras/street/prompt", "{\"prompt\": \"detect dog\"}");
    assert_eq!(refused.0, 403);
    let sentence = "cameras are not steered over HTTP; console.control = true in the configuration allows it";
    assert_eq!(valid("Error", refused.1)["error"], sentence);
    assert_eq!(node.told("/api/v1/cameras/street", "Camera")["prompt"], "detect person ; car");

    let (status, faults) = node.curl("/api/v1/config/check", &["-X", "POST", "--data-binary", "[model]\nid = \"a/b\"\nnothing = 1\n"]);
    let faults = valid("Checked", serde_json::from_slice(&faults).unwrap());
    assert!(status == 200 && faults["ok"] == false, "{faults}");
    assert!(faults["faults"][0].as_str().unwrap().starts_with("line "), "{faults}");
    let file = node.folder.path().join("palisade.toml");
    let (_, right) = node.curl("/api/v1/config/check", &["-X", "POST", "--data-binary", &format!("@{}", file.display())]);
    assert_eq!(serde_json::from_slice::<Value>(&right).unwrap(), json!({"ok": true, "faults": []}));

    metrics(&node);
}

/// Prometheus's own parser; prints each name, and fails on one without words or samples.
const READER: &str = "\
import sys
from prometheus_client.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation and family.samples and family.type != 'unknown', family
    print(family.name)
";

/// What is exported is what the table says, and a program that is not ours reads it.
fn metrics(node: &Node) {
    let page = node.get("/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let names = page.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|line| line.split(' ').next().unwrap());
    let counts = COUNTS.iter().map(|count| format!("palisade_{}_total", count.1.split('|').next().unwrap()));
    let gauges = GAUGES.iter().map(|(name, _)| format!("palisade_{name}"));
    let times = TIMES.iter().map(|(_, name, _)| format!("palisade_{name}_seconds"));
    let known: Vec<String> = counts.chain(gauges).chain(times).collect();
    let names: Vec<&str> = names.collect();
    assert!(names.len() > 20 && names.iter().all(|name| known.iter().any(|known| known == name)), "{names:?}");
    let value = |line: &str| {
        let found = page.text().lines().find_map(|other| other.strip_prefix(line)).unwrap_or_else(|| panic!("{line}: {}", page.text()));
        found.trim().parse::<f64>().unwrap()
    };
    assert!(value("palisade_frames_analysed_total{camera=\"street\"}") > 0.0);
    assert_eq!((value("palisade_camera_up{camera=\"street\"}"), value("palisade_camera_up{camera=\"yard\"}")), (1.0, 0.0));
    assert!(value("palisade_inference_seconds_sum") > 0.0 && value("palisade_start_time_seconds") > 1.7e9);
    let python = std::env::var("PALISADE_TEST_PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    let mut reader = Command::new(python)
        .args(["-c", READER])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("Python must be there: apt install python3: {error}"));
    reader.stdin.take().unwrap().write_all(page.text().as_bytes()).unwrap();
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success(), "apt install python3-prometheus-client");
    let read: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(read, names.iter().map(|name| name.trim_end_matches("_total").to_owned()).collect::<Vec<_>>());
}

#[test]
fn what_was_seen_is_found_again_with_its_picture_and_its_clip() {
    let mut node = Node::start("", "");
    let whole = |node: &Node| {
        let page = node.told("/api/v1/events?camera=street&limit=200", "Events");
        let entries = page["events"].as_array().unwrap();
        entries.iter().rfind(|entry| entry["end_time"].is_string() && entry["snapshot"].is_string() && entry["clip"].is_string()).cloned()
    };
    eventually("an object has a picture and a clip, and has ended", || whole(&node).is_some());
    let object = whole(&node).unwrap();
    let id = object["track_id"].as_str().unwrap();
    assert_eq!(node.told(&format!("/api/v1/events/{id}"), "Object"), object);
    let picture = node.get(object["snapshot"].as_str().unwrap());
    assert_eq!((picture.status, picture.header("content-type")), (200, Some("image/jpeg")));
    assert_eq!(image::load_from_memory(&picture.body).unwrap().width(), 1280);
    let tag = picture.header("etag").unwrap();
    assert_eq!(ask(node.address, &format!("GET /api/v1/events/{id}/snapshot.jpg"), &[HOST, &format!("If-None-Match: {tag}")]).status, 304);

    // Parts of the clip are the clip; whoever holds parts of another file gets all of it.
    let clip = object["clip"].as_str().unwrap();
    let name = {
        let kept = node.folder.path().join("events.sqlite");
        let sql = format!("SELECT clip FROM objects WHERE track_id = '{id}'");
        let row = rusqlite::Connection::open(kept).unwrap().query_row(&sql, [], |row| row.get::<_, String>(0)).unwrap();
        row.rsplit('/').next().unwrap().to_owned()
    };
    eventually("the clip is finished, and the next one begun", || {
        let names =
            node.folder.path().join("clips/street").read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let later = names.filter(|other| *other > name).count() > 0;
        let lengths = [0, 1].map(|pause| {
            std::thread::sleep(Duration::from_millis(300 * pause));
            node.get(clip).body.len()
        });
        later && lengths[0] == lengths[1]
    });
    let all = node.get(clip);
    assert_eq!((all.status, all.header("accept-ranges"), &all.body[4..8]), (200, Some("bytes"), &b"ftyp"[..]));
    let part = |range: &str, more: &str| ask(node.address, &format!("GET {clip}"), &[HOST, &format!("Range: {range}"), more]);
    let tag = all.header("etag").unwrap();
    let middle = part("bytes=1000-4999", &format!("If-Range: {tag}"));
    assert_eq!((middle.status, &middle.body[..]), (206, &all.body[1000..5000]));
    assert_eq!(middle.header("content-range"), Some(format!("bytes 1000-4999/{}", all.body.len()).as_str()));
    let last = part("bytes=-500", "X: y");
    assert_eq!((last.status, &last.body[..]), (206, &all.body[all.body.len() - 500..]));
    assert_eq!((part("bytes=0-9", "If-Range: \"other\"").status, part("bytes=999999999-", "X: y").status), (200, 416));
    let file = node.folder.path().join("copy.mp4");
    std::fs::write(&file, &all.body).unwrap();
    assert!(crate::support::daemon::ffprobe(&file).0 > 10);
    assert!(object["clip_offset_s"].as_f64().unwrap() < 60.0);

    // By what it is looked for, and in pages.
    let label = object["label"].as_str().unwrap();
    let found = |query: &str| node.told(&format!("/api/v1/events?{query}"), "Events")["events"].as_array().unwrap().clone();
    assert!(found(&format!("label={label}&limit=200")).iter().all(|entry| entry["label"] == label));
    assert!(found("camera=yard").is_empty() && found("zone=nowhere").is_empty() && found("after=2100-01-01T00:00:00Z").is_empty());
    eventually("there are three", || found("limit=200").len() >= 3);
    // One that was seen early may be told of late, so that it comes in between.
    eventually("pages together are the whole", || {
        let before = found("limit=200")[0]["start_time"].as_str().unwrap().to_owned();
        let listed: Vec<Value> = found(&format!("limit=200&before={before}")).iter().map(|entry| entry["track_id"].clone()).collect();
        let (mut paged, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = node.told(&format!("/api/v1/events?limit=1&before={before}&cursor={cursor}"), "Events");
            paged.extend(page["events"].as_array().unwrap().iter().map(|entry| entry["track_id"].clone()));
            match page["next"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => return listed.len() >= 2 && paged == listed,
            }
        }
    });
    for (path, status) in [
        ("/api/v1/events/unknown", 404),
        ("/api/v1/events/..%2f..%2fetc%2fpasswd/clip.mp4", 404),
        ("/api/v1/events/%27%20OR%201=1--/snapshot.jpg", 404),
        ("/api/v1/events?limit=0", 400),
        ("/api/v1/events?after=yesterday", 400),
    ] {
        let answer = node.get(path);
        assert_eq!(answer.status, status, "{path}");
        assert!(!answer.error().contains('/'), "{}", answer.error());
    }

    // What is gone is not named any more; and a kill leaves nothing open.
    std::fs::remove_dir_all(node.folder.path().join("clips")).unwrap();
    let gone = node.told(&format!("/api/v1/events/{id}"), "Object");
    assert!(gone["clip"].is_null() && gone["clip_offset_s"].is_null() && gone["snapshot"].is_string(), "{gone}");
    assert_eq!(node.get(clip).status, 404);
    eventually("an object is there", || found("limit=200").iter().any(|entry| entry["end_time"].is_null()));
    let open = found("limit=200").into_iter().find(|entry| entry["end_time"].is_null()).unwrap();
    node.daemon.signal("KILL");
    node.daemon.wait(PATIENCE);
    node.daemon = Daemon::start(node.folder.path(), &node.config);
    node.daemon.ready();
    let path = format!("/api/v1/events/{}", open["track_id"].as_str().unwrap());
    eventually("what was there at the kill has ended", || node.told(&path, "Object")["end_time"].is_string());
}

#[test]
fn a_camera_is_steered_over_http_as_over_mqtt_and_a_restart_forgets_nothing() {
    let broker = Broker::start();
    let mqtt = format!(
        "[mqtt]\nhost = \"127.0.0.1\"\nport = {}\nstate_dir = \"state\"\ncontrol = true\ntopic_prefix = \"palisade\"\n",
        broker.port()
    );
    let subscriber = Subscriber::new(&broker, "palisade/#");
    let mut node = Node::start(&mqtt, "control = true");
    subscriber.wait_text("palisade/status", "online");
    eventually("the link is told of", || node.told("/api/v1/info", "Info")["mqtt"]["connected"] == true);
    assert_eq!(node.told("/api/v1/info", "Info")["node"], "palisade");
    let mut stream = Stream::open(node.address);

    let (status, camera) = node.put("/api/v1/cameras/street/prompt", "{\"prompt\": \"detect car ; bus\"}");
    let camera = valid("Camera", camera);
    assert_eq!((status, &camera["prompt"], &camera["labels"]), (200, &json!("detect car ; bus"), &json!(["car", "bus"])));
    subscriber.wait_text("palisade/street/prompt/state", "detect car ; bus");
    stream.until("told of the prompt", |name, data| name == "camera" && data["prompt"] == "detect car ; bus");
    subscriber.wait_for("it is asked", |messages| {
        messages.iter().any(|message| message.topic.ends_with("/detections") && message.json()["prompt"] == "detect car ; bus")
    });

    // The other way round.
    command(&broker, "prompt", b"detect dog", false);
    stream.until("told of a command over MQTT", |name, data| name == "camera" && data["prompt"] == "detect dog");
    assert_eq!(node.put("/api/v1/cameras/street/detect", "{\"on\": false}").1["detect"], false);
    subscriber.wait_text("palisade/street/detect/state", "OFF");
    // What nobody looks at can be asked about all the same.
    let (status, answer) = node.detect(&["prompt=detect car", "camera=street"]);
    assert_eq!((status, &answer["width"]), (200, &json!(1280)), "{answer}");

    let long = format!("{{\"prompt\": \"{}\"}}", "x".repeat(600));
    for (path, body, status) in [
        ("street/prompt", "{\"prompt\": \"\"}", 422),
        ("street/prompt", long.as_str(), 422),
        ("street/prompt", "{\"prompt\": 7}", 422),
        ("street/prompt", "[]", 422),
        ("street/prompt", "{", 400),
        ("street/detect", "{\"on\": 1}", 422),
        ("other/detect", "{\"on\": true}", 404),
        ("yard/detect", "{\"on\": true}", 409),
    ] {
        let (was, told) = node.put(&format!("/api/v1/cameras/{path}"), body);
        assert_eq!(was, status, "{path} {body}");
        valid("Error", told);
    }
    node.daemon.signal("TERM");
    assert!(node.daemon.wait(PATIENCE).success(), "{}", node.daemon.log());
    node.daemon = Daemon::start(node.folder.path(), &node.config);
    node.daemon.ready();
    let kept = node.told("/api/v1/cameras/street", "Camera");
    assert_eq!((&kept["prompt"], &kept["detect"], &kept["prompt_editable"]), (&json!("detect dog"), &json!(false), &json!(true)));
}

/// What `palisade detect` says of a picture.
fn by_hand(picture: &Path, prompt: &str) -> Value {
    let output = Command::new(PALISADE)
        .args(["detect", "--json", "--prompt", prompt, "--model"])
        .arg(repository("samples/demo-model"))
        .arg(picture)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn the_playground_answers_as_the_command_does_and_is_counted_for_no_camera() {
    let node = Node::start("", "control = true\nstate_dir = \"kept\"");
    let picture = repository("samples/annotated.jpg");
    let prompt = "detect car ; person ; traffic light";
    let image = format!("image=@{}", picture.display());
    let (status, answer) = node.detect(&[&format!("prompt={prompt}"), &image]);
    assert_eq!(status, 200, "{answer}");
    let answer = valid("Answer", answer);
    let expected = by_hand(&picture, prompt);
    for field in ["raw", "finish", "detections", "dropped", "prompt", "model"] {
        assert_eq!(answer[field], expected[field], "{field}");
    }
    assert!(!answer["detections"].as_array().unwrap().is_empty());
    let drawn = base64(answer["annotated"]["base64"].as_str().unwrap());
    let sizes = [image::load_from_memory(&drawn).unwrap().width(), answer["width"].as_u64().unwrap() as u32];
    assert_eq!(sizes[0], sizes[1].min(2048));
    // Where there is nothing to be found, too, the model has written something, if only that it has ended.
    let folder = node.folder.path();
    image::RgbImage::from_pixel(64, 48, image::Rgb([120; 3])).save(folder.join("grey.png")).unwrap();
    let file = |name: &str| format!("image=@{}", folder.join(name).display());
    let none = valid("Answer", node.detect(&["prompt=caption en", &file("grey.png")]).1);
    assert_eq!(none["raw"], by_hand(&folder.join("grey.png"), "caption en")["raw"]);
    let current = valid("Answer", node.detect(&["prompt=detect car", "camera=street"]).1);
    assert_eq!((&current["width"], &current["height"]), (&json!(1280), &json!(720)));

    std::fs::write(folder.join("no.png"), b"\x89PNG\r\n\x1a\nnonsense").unwrap();
    image::RgbImage::new(9000, 2).save(folder.join("wide.png")).unwrap();
    std::fs::write(folder.join("large.png"), vec![0; 34 << 20]).unwrap();
    for (fields, status) in [
        (vec!["prompt=detect car".to_owned(), file("no.png")], 415),
        (vec!["prompt=detect car".to_owned(), file("wide.png")], 413),
        (vec!["prompt=detect car".to_owned(), file("large.png")], 413),
        (vec!["prompt=".to_owned(), image.clone()], 422),
        (vec![format!("prompt={}", "x".repeat(600)), image.clone()], 422),
        (vec![image.clone()], 422),
        (vec!["prompt=detect car".to_owned()], 422),
        (vec!["prompt=detect car".to_owned(), image.clone(), "camera=street".to_owned()], 422),
        (vec!["prompt=detect car".to_owned(), "camera=other".to_owned()], 404),
        (vec!["prompt=detect car".to_owned(), "camera=yard".to_owned()], 503),
    ] {
        let (was, told) = node.detect(&fields.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(was, status, "{fields:?}: {told}");
        valid("Error", told);
    }
    let (status, told) = node.curl("/api/v1/detect", &["-X", "POST", "-d", "prompt=detect car"]);
    assert_eq!(status, 415, "{}", String::from_utf8_lossy(&told));
    let page = node.get("/metrics");
    let count = |line: &str| page.text().lines().find_map(|other| other.strip_prefix(line)).map(|count| count.trim().to_owned());
    assert_eq!(count("palisade_questions_answered_total"), Some("3".to_owned()));
    assert_eq!(count("palisade_frames_failed_total{camera=\"street\"}"), None);
    // Where there is no broker, commands are kept in a folder of the console's own.
    assert_eq!(node.put("/api/v1/cameras/street/prompt", "{\"prompt\": \"detect bus\"}").0, 200);
    let kept = node.folder.path().join("kept/control.json");
    eventually("the command is written down", || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("detect bus")));
}

fn base64(text: &str) -> Vec<u8> {
    use std::process::Stdio;
    let mut child = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output.stdout
}
