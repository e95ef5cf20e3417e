//! A small model hub on a local port, which answers as the real one does: files by revision with etag, commit and
//! ranges, large ones by redirection to another host, refusals with their error codes. It can be told to misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a request said.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub host: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

/// How the hub behaves.
#[derive(Clone, Default)]
pub struct Manners {
    /// Every request must bring this token.
    pub token: Option<String>,
    /// The account of the token has no access.
    pub gated: bool,
    /// Files over so many bytes are redirected to `localhost`, another host than `127.0.0.1`.
    pub large_from: Option<usize>,
    /// Transfers over a kilobyte break after so many bytes: the first after the first number, and so on.
    pub cuts: Vec<usize>,
    /// Ranges are passed over, but for the first byte.
    pub no_ranges: bool,
    /// Every request gets this status.
    pub status: Option<u16>,
}

/// The hub; dropped, it is gone from the network.
pub struct Hub {
    pub endpoint: String,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    port: u16,
    id: String,
    files: BTreeMap<String, Vec<u8>>,
    manners: Mutex<Manners>,
    seen: Mutex<Vec<Seen>>,
    stopped: AtomicBool,
}

impl Hub {
    /// Serves one repository at `main`, `v1` and its commit.
    pub fn serve(id: &str, files: &[(&str, Vec<u8>)], manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        let state =
            State { port, id: id.to_owned(), files, manners: Mutex::new(manners), seen: Mutex::default(), stopped: AtomicBool::new(false) };
        let state = Arc::new(state);
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A client that hangs up early is no fault of the hub.
                let _ = shared.answer(&stream);
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        Self { endpoint: format!("http://127.0.0.1:{port}"), state, thread: Some(thread) }
    }

    /// Changes its behaviour.
    pub fn behave(&self, manners: Manners) {
        *self.state.manners.lock().unwrap() = manners;
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.state.port));
        self.thread.take().unwrap().join().unwrap();
    }
}

impl State {
    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().unwrap_or(Ok(String::new()))?;
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let header = |name: &str| headers.get(name).cloned();
        let token = header("authorization").map(|value| value.replace("Bearer ", ""));
        let seen = Seen { path: path.clone(), host: header("host").unwrap_or_default(), range: header("range"), token };
        self.seen.lock().unwrap().push(seen.clone());
        let manners = self.manners.lock().unwrap().clone();
        let refuse = |status: u16, code: &str| {
            format!("HTTP/1.1 {status} No\r\nx-error-code: {code}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        };
        let on_cdn = seen.host.starts_with("localhost");
        if let Some(status) = manners.status {
            return stream.write_all(refuse(status, "").as_bytes());
        }
        if !on_cdn && manners.token.is_some() && seen.token != manners.token {
            let code = if seen.token.is_some() { "" } else { "GatedRepo" };
            return stream.write_all(refuse(401, code).as_bytes());
        }
        if manners.gated {
            return stream.write_all(refuse(403, "GatedRepo").as_bytes());
        }
        let Some(rest) = path.strip_prefix(&format!("/{}/resolve/", self.id)) else {
            return stream.write_all(refuse(404, "RepoNotFound").as_bytes());
        };
        let (revision, name) = rest.split_once('/').unwrap_or((rest, ""));
        if !["main", "v1", COMMIT].contains(&revision) {
            return stream.write_all(refuse(404, "RevisionNotFound").as_bytes());
        }
        let Some(bytes) = self.files.get(name) else {
            return stream.write_all(refuse(404, "EntryNotFound").as_bytes());
        };
        let etag = format!("{name}-{}", bytes.len()).replace(['.', '_'], "-");
        if !on_cdn && manners.large_from.is_some_and(|from| bytes.len() >= from) {
            let head = format!(
                "HTTP/1.1 302 Found\r\nlocation: http://localhost:{}{path}\r\nx-repo-commit: {COMMIT}\r\n\
                 x-linked-etag: \"{etag}\"\r\nx-linked-size: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                self.port,
                bytes.len()
            );
            return stream.write_all(head.as_bytes());
        }
        self.send(stream, &etag, bytes, seen.range.as_deref(), &manners)
    }

    fn send(&self, mut stream: &TcpStream, etag: &str, bytes: &[u8], range: Option<&str>, manners: &Manners) -> std::io::Result<()> {
        let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let range = range.filter(|range| !manners.no_ranges || *range == ("0", "0"));
        let first = range.map_or(0, |(first, _)| first.parse().unwrap());
        let end = range.and_then(|(_, last)| last.parse().ok()).map_or(bytes.len(), |last: usize| (last + 1).min(bytes.len()));
        let body = &bytes[first..end];
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let covers = range.map_or(String::new(), |_| format!("content-range: bytes {first}-{}/{}\r\n", end.max(1) - 1, bytes.len()));
        let head = format!(
            "HTTP/1.1 {status}\r\netag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\n{covers}content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        let mut manners = self.manners.lock().unwrap();
        let cuts = body.len() > 1024 && manners.cuts.first().is_some_and(|&cut| body.len() > cut);
        let cut = if cuts { manners.cuts.remove(0) } else { body.len() };
        drop(manners);
        stream.write_all(&body[..cut])
    }
}
