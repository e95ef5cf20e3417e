//! Requests to the hub: what a file is, and its bytes, taken up again where a connection broke.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use crate::base::redact::{ExposeSecret, SecretString};
use crate::base::shutdown::Shutdown;
use crate::model::hub::HubOptions;
use crate::model::hub::meter::Meter;

/// A transfer is given up after so many tries in a row that brought no byte.
const TRIES: u32 = 5;
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
const SILENT_FOR: Duration = Duration::from_secs(60);

/// Why a model did not arrive.
#[derive(Debug)]
pub enum Failure {
    /// The hub said no.
    Refused { status: u16, code: String, message: String },
    /// There is no connection.
    Unreachable(ureq::Error),
    /// Connections broke while bytes were coming.
    Cut(std::io::Error),
    /// The disk is full; so many bytes are missing.
    Full { error: std::io::Error, left: u64 },
    /// The cache cannot be written.
    Disk(std::io::Error),
    /// A reply that makes no sense.
    Reply(String),
    /// The index of the shards is unusable.
    Index(String),
    /// There are no weights in a known form.
    NoWeights,
    /// The branch moved between two requests.
    Moved,
    /// The daemon is told to stop.
    Stopped,
}

impl Failure {
    /// Tells a full disk, with the bytes that are missing, from others.
    pub fn with_left(self, left: u64) -> Self {
        match self {
            Self::Disk(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => Self::Full { error, left },
            other => other,
        }
    }

    /// Whether another try may go better at once.
    fn passes(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Cut(_) => true,
            _ => false,
        }
    }
}

/// A file of a repository, before it is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// The commit it belongs to.
    pub commit: String,
    /// Names its content.
    pub etag: String,
    /// In bytes.
    pub size: u64,
}

/// A connection to one hub.
pub struct Client {
    agent: Agent,
    token: Option<SecretString>,
    pause: Duration,
    shutdown: Shutdown,
}

impl Client {
    /// With the hub's options.
    pub fn new(options: &HubOptions) -> Self {
        let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects_will_error(false)
            // Large files are redirected to another host, which must not see the token.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(CONNECT_WITHIN))
            .timeout_connect(Some(CONNECT_WITHIN))
            .timeout_recv_response(Some(SILENT_FOR))
            .timeout_per_read(Some(SILENT_FOR))
            .user_agent(concat!("palisade/", env!("CARGO_PKG_VERSION")));
        let local = ["http://127.", "http://localhost", "http://[::1]"].iter().any(|start| options.endpoint.starts_with(start));
        let config = if local { config.proxy(None) } else { config };
        Self { agent: config.build().into(), token: options.token.clone(), pause: options.retry_pause, shutdown: options.shutdown.clone() }
    }

    /// Asks what a file is. A hub that is busy is asked again.
    pub fn look(&self, url: &str) -> Result<RemoteFile, Failure> {
        let mut tries = 1;
        loop {
            match self.look_once(url) {
                Err(failure) if failure.passes() && tries < TRIES => self.wait(tries)?,
                result => return result,
            }
            tries += 1;
        }
    }

    fn look_once(&self, url: &str) -> Result<RemoteFile, Failure> {
        let mut url = url.to_owned();
        for _ in 0..5 {
            let reply = self.get(&url, "bytes=0-0", 0)?;
            let headers = reply.headers();
            let location = header(headers, "location").filter(|_| reply.status().is_redirection());
            // A renamed repository is a redirection within the hub; a large file's names etag and commit already.
            if let Some(path) = location.as_ref().filter(|to| to.starts_with('/') && header(headers, "x-linked-etag").is_none()) {
                let host_ends = url.find("://").and_then(|at| url[at + 3..].find('/').map(|end| at + 3 + end));
                url = format!("{}{path}", &url[..host_ends.unwrap_or(url.len())]);
                continue;
            }
            let missing = |name: &str| Failure::Reply(format!("its reply has no {name}"));
            let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).ok_or_else(|| missing("etag"))?;
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
            let commit = header(headers, "x-repo-commit").ok_or_else(|| missing("x-repo-commit"))?;
            if [&etag, &commit].iter().any(|name| name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'))
            {
                return Err(Failure::Reply("its etag or x-repo-commit is no plain name".to_owned()));
            }
            let size = match header(headers, "x-linked-size").and_then(|size| size.parse().ok()) {
                Some(size) => Some(size),
                None if location.is_some() => size(&self.get(&url, "bytes=0-0", 10)?),
                None => size(&reply),
            };
            return Ok(RemoteFile { commit, etag, size: size.ok_or_else(|| missing("size"))? });
        }
        Err(Failure::Reply("it redirects in a circle".to_owned()))
    }

    /// Brings a file's bytes to `blob`, which gets its name only once they are all there.
    pub fn fetch(&self, url: &str, remote: &RemoteFile, blob: &Path, meter: &mut Meter) -> Result<(), Failure> {
        let part = blob.with_added_extension("incomplete");
        let mut file = OpenOptions::new().append(true).create(true).open(&part).map_err(Failure::Disk)?;
        // Two programs may want the same model at once.
        while let Err(error) = file.try_lock() {
            match error {
                TryLockError::WouldBlock if self.shutdown.wait(Duration::from_secs(1)) => return Err(Failure::Stopped),
                TryLockError::WouldBlock => meter.tell(),
                TryLockError::Error(error) => return Err(Failure::Disk(error)),
            }
        }
        if blob.exists() {
            meter.add(remote.size);
            // Ours to remove if the other had renamed its own away before we opened one.
            return match std::fs::remove_file(&part) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::Disk(error)),
                _ => Ok(()),
            };
        }
        let mut held = file.metadata().map_err(Failure::Disk)?.len();
        if held > remote.size {
            file.set_len(0).map_err(Failure::Disk)?;
            held = 0;
        }
        meter.add(held);
        let mut tries = 0;
        while held < remote.size {
            let before = held;
            match self.fetch_rest(url, remote, &mut file, &mut held, meter) {
                Ok(()) => {}
                Err(failure) if !failure.passes() && !matches!(failure, Failure::Unreachable(_)) => return Err(failure),
                Err(failure) => {
                    tries = if held > before { 1 } else { tries + 1 };
                    if tries >= TRIES {
                        return Err(failure);
                    }
                    // A pause is no silence: whoever waits for us hears that it goes on.
                    meter.tell();
                    tracing::debug!("the download of {url} broke off at {held} bytes, try {tries}: {failure:?}");
                    self.wait(tries)?;
                }
            }
        }
        // On disk before it has its name: a power cut must not leave a whole name on a half file.
        file.sync_all().map_err(Failure::Disk)?;
        std::fs::rename(&part, blob).map_err(Failure::Disk)
    }

    /// One request for what is still missing.
    fn fetch_rest(&self, url: &str, remote: &RemoteFile, file: &mut File, held: &mut u64, meter: &mut Meter) -> Result<(), Failure> {
        let reply = self.get(url, &format!("bytes={held}-"), 10)?;
        if reply.status().as_u16() != 206 && *held > 0 {
            // The whole file comes, so what is there would be doubled.
            file.set_len(0).map_err(Failure::Disk)?;
            meter.take_back(*held);
            *held = 0;
        }
        if let Some(other) = size(&reply).filter(|&size| size != remote.size) {
            return Err(Failure::Reply(format!("it announced {} bytes and sends {other}", remote.size)));
        }
        let mut body = reply.into_body().into_reader();
        let mut chunk = vec![0; 256 * 1024];
        while *held < remote.size {
            if self.shutdown.is_set() {
                return Err(Failure::Stopped);
            }
            let count = match body.read(&mut chunk) {
                Ok(0) => return Err(Failure::Cut(ErrorKind::UnexpectedEof.into())),
                Ok(count) => count.min((remote.size - *held) as usize),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Cut(error)),
            };
            file.write_all(&chunk[..count]).map_err(Failure::Disk)?;
            *held += count as u64;
            meter.add(count as u64);
        }
        Ok(())
    }

    fn get(&self, url: &str, range: &str, redirects: u32) -> Result<Response<Body>, Failure> {
        let request = self.agent.get(url).header("Range", range).header("Accept-Encoding", "identity");
        let request = match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {}", token.expose_secret())),
            None => request,
        };
        let reply = request.config().max_redirects(redirects).build().call().map_err(Failure::Unreachable)?;
        let status = reply.status();
        if status.is_success() || (redirects == 0 && status.is_redirection()) {
            return Ok(reply);
        }
        let text = |name: &str| header(reply.headers(), name).unwrap_or_default();
        Err(Failure::Refused { status: status.as_u16(), code: text("x-error-code"), message: text("x-error-message") })
    }

    fn wait(&self, tries: u32) -> Result<(), Failure> {
        let pause = self.pause.saturating_mul(2u32.saturating_pow(tries - 1));
        if self.shutdown.wait(pause) { Err(Failure::Stopped) } else { Ok(()) }
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The whole file's size, by the range that a reply covers or, without one, by its length.
fn size(reply: &Response<Body>) -> Option<u64> {
    match header(reply.headers(), "content-range") {
        Some(range) => range.rsplit('/').next()?.parse().ok(),
        None if reply.status().as_u16() == 200 => header(reply.headers(), "content-length")?.parse().ok(),
        None => None,
    }
}
