//! What is written down of the server is what it does: the document of its API, the table of its counts, its files.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade::base::error::{Error, Kind, Result};
use palisade::base::mailbox::mailbox;
use palisade::base::metrics::Metrics;
use palisade::console::{COUNTS, Console, GAUGES, Late, Limits, OPENAPI, TIMES};
use palisade::detect::Guests;
use palisade::mqtt::{Command, Steering, Watched};
use palisade::types::CameraId;
use serde_json::Value;

use super::{Rig, config, dressed, screens};
use crate::support::broker::eventually;
use crate::support::daemon::repository;
use crate::support::http::{ask, connect, exchange};

const HOST: &str = "Host: localhost";

#[test]
fn the_document_has_every_address_of_the_server_and_no_other() {
    let source = std::fs::read_to_string(repository("src/console.rs")).unwrap();
    let mut served = BTreeSet::new();
    for route in source.split(".route(\"").skip(1) {
        let (address, handlers) = route.split_once("\", ").unwrap();
        let handlers = handlers.lines().next().unwrap();
        for method in ["get", "put", "post", "delete"].into_iter().filter(|method| handlers.contains(&format!("{method}("))) {
            // Pages, and the files that they are made of, are for browsers.
            if !["/", "/playground", "/events", "/assets/{name}"].contains(&address) {
                served.insert((address.to_owned(), method.to_owned()));
            }
        }
    }
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let written: BTreeSet<(String, String)> =
        paths.iter().flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone()))).collect();
    assert!(served.len() > 15);
    assert_eq!(served, written);
}

#[test]
fn every_count_of_the_daemon_is_in_the_table_and_the_table_in_the_readme() {
    fn read(folder: &std::path::Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => read(&entry, all),
                false if entry.extension().is_some_and(|ending| ending == "rs") && !entry.ends_with("console/metrics.rs") => {
                    all.push_str(std::fs::read_to_string(&entry).unwrap().split("#[cfg(test)]").next().unwrap());
                }
                false => {}
            }
        }
    }
    let mut source = String::new();
    read(&repository("src"), &mut source);
    let names = COUNTS.iter().map(|count| count.0).chain(TIMES.iter().map(|time| time.0));
    let names: BTreeSet<&str> = names.collect();
    for name in &names {
        assert!(source.contains(&format!("\"{name}\"")), "{name} is counted nowhere");
    }
    for call in ["counter(\"", "latency(\"", "count(\""] {
        for name in source.split(call).skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(names.contains(name), "{name} is counted and not in the table");
        }
    }
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let outer = COUNTS.iter().map(|count| format!("`palisade_{}_total`", count.1.split('|').next().unwrap()));
    let times = TIMES.iter().map(|(_, name, _)| format!("`palisade_{name}_seconds`"));
    let gauges = GAUGES.iter().map(|(name, _)| format!("`palisade_{name}`"));
    let told: BTreeSet<String> = outer.chain(times).chain(gauges).collect();
    let written: BTreeSet<String> =
        readme.split("`palisade_").skip(1).map(|rest| format!("`palisade_{}`", rest.split('`').next().unwrap())).collect();
    assert_eq!(told, written);
}

#[test]
fn pages_and_their_files_are_in_the_program() {
    let rig = Rig::start(None, Limits::default());
    let get = |path: &str, more: &str| ask(rig.address, &format!("GET {path}"), &[HOST, more]);
    for path in ["/", "/playground", "/events"] {
        let page = get(path, "X: y");
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")), "{path}");
        dressed(&page);
        for name in page.text().split("/assets/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            let file = get(&format!("/assets/{name}"), "X: y");
            assert_eq!(file.status, 200, "{path} asks for {name}");
            dressed(&file);
            let tag = file.header("etag").unwrap();
            let again = get(&format!("/assets/{name}"), &format!("If-None-Match: {tag}"));
            assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, Some(tag)));
        }
    }
    // Scripts ask for others.
    let folder = repository("src/console/assets");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        let expected = std::fs::read(entry.path()).unwrap();
        if !name.ends_with(".html") {
            let file = get(&format!("/assets/{name}"), "X: y");
            assert_eq!((file.status, file.body == expected), (200, true), "{name}");
            files += 1;
        }
    }
    assert!(files >= 8);
    for path in ["/assets/", "/assets/none.js", "/assets/index.html", "/assets/..%2fopenapi.json", "/assets/../console.rs"] {
        assert_eq!(get(path, "X: y").status, 404, "{path}");
    }
}

#[test]
fn without_a_model_or_a_history_the_server_says_so() {
    let rig = Rig::start(None, Limits::default());
    let get = |path: &str| ask(rig.address, &format!("GET {path}"), &[HOST]);
    let info: Value = serde_json::from_slice(&get("/api/v1/info").body).unwrap();
    assert!(info["model"].is_null() && info["history"] == false && info["node"].is_null(), "{info}");
    let off = get("/api/v1/events");
    assert_eq!(
        (off.status, off.error().as_str()),
        (404, "the history of objects is off; events.database in the configuration turns it on")
    );
    let early = ask(rig.address, "POST /api/v1/detect", &[HOST, "Content-Length: 0"]);
    assert_eq!((early.status, early.error().as_str()), (503, "the model is being loaded"));
    assert!(early.header("retry-after").is_some());
    assert_eq!(ask(rig.address, "POST /api/v1/info", &[HOST, "Content-Length: 0"]).status, 405);
    assert!(get("/metrics").text().contains("palisade_build_info{version="));
}

/// Obeys nothing.
struct Nobody;

impl Steering for Nobody {
    fn steer(&self, camera: &CameraId, _: &Command) -> Result<Watched> {
        Err(Error::new(Kind::Input, format!("{camera} is not steered")))
    }
}

#[test]
fn five_ask_about_pictures_at_once_and_a_sixth_is_told_so() {
    let metrics = Metrics::new();
    let (screens, live) = screens(&metrics);
    let (_putters, jobs) = mailbox::<()>(1);
    let guests = Guests::new(&jobs, &metrics);
    screens.back.loaded(Late { model: "m".into(), device: "cpu".into(), guests, steering: Arc::new(Nobody), publisher: None });
    let console = Console::start(config(None), Limits::default(), screens, &metrics).unwrap();
    let head = |length: usize| {
        format!(
            "POST /api/v1/detect HTTP/1.1\r\n{HOST}\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    // A whole one without a picture is refused for that, where there is a place.
    let body = "--x\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\ndetect car\r\n--x--\r\n";
    let whole = || exchange(console.address(), &format!("{}{body}", head(body.len())));
    assert_eq!(whole().status, 422, "{:?}", whole());
    let slow: Vec<TcpStream> = (0..5)
        .map(|_| {
            let mut stream = connect(console.address());
            write!(stream, "{}--x\r\n", head(1000)).unwrap();
            stream
        })
        .collect();
    eventually("there is no place", || whole().status == 503);
    let answer = whole();
    assert_eq!(answer.error(), "the model is busy with other pictures; try it later");
    assert!(answer.header("retry-after").is_some());
    drop(slow);
    eventually("there is one again", || whole().status == 422);
    console.finish(Instant::now() + Duration::from_secs(5));
    live.end();
}

#[test]
fn a_stream_of_events_takes_a_place_among_the_streams() {
    let rig = Rig::start(None, Limits { streams: 1, ..Limits::default() });
    let mut first = crate::support::http::connect(rig.address);
    std::io::Write::write_all(&mut first, format!("GET /api/v1/stream HTTP/1.1\r\n{HOST}\r\n\r\n").as_bytes()).unwrap();
    std::io::Read::read_exact(&mut first, &mut [0; 15]).unwrap();
    let second = ask(rig.address, "GET /api/v1/stream", &[HOST]);
    assert_eq!((second.status, second.error().as_str()), (503, "there are too many viewers; try it later"));
}
