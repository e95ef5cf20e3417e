//! Where a model comes from: a folder as it is, or a repository of the hub, downloaded into the hub's own cache layout.
//!
//! Addresses and the cache's layout (`models--OWNER--NAME/{blobs,refs,snapshots}`) are the `hf-hub` crate's, so what
//! another program fetched is found, and the other way round. The transfer is our own, on the same `ureq`: the crate's
//! throws away the reply's headers, which alone tell a gated model from a missing one, waits for a silent hub for ever,
//! and cannot go on from a complete part file. A file gets its name only once it is whole.

mod cache;
mod client;
mod meter;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::base::redact::{self, ExposeSecret, SecretString};
use crate::base::shutdown::Shutdown;
use crate::base::{Error, Kind, Result};
use crate::model::{Snapshot, weights};
use crate::types::ModelSource;

use cache::Repository;
use client::{Client, Failure, RemoteFile};
use meter::Meter;

const ENDPOINT: &str = "https://huggingface.co";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";

/// Told of a download: bytes done and bytes in all, about once a second while bytes arrive.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// How the hub is reached and where its files are kept.
#[derive(Clone)]
pub struct HubOptions {
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// The cache folder, shared with other programs of the hub; `None`: there is no home to put it in.
    pub cache: Option<PathBuf>,
    /// For gated and private models.
    pub token: Option<SecretString>,
    /// Use the cache only.
    pub offline: bool,
    /// A pause before a broken transfer is taken up again; it doubles each time.
    pub retry_pause: Duration,
    /// Called while a download goes on.
    pub progress: Option<Progress>,
    /// Ends a download early.
    pub shutdown: Shutdown,
}

impl HubOptions {
    /// From `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE` and the token file, with
    /// the hub's own defaults.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// As [`HubOptions::from_env`], from other variables than the process's.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let home = var("HF_HOME").map(PathBuf::from);
        let home = home.or_else(|| var("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("huggingface")));
        let home = home.or_else(|| var("HOME").map(|home| Path::new(&home).join(".cache/huggingface")));
        let token_file = var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join("token")));
        let stored = || std::fs::read_to_string(token_file?).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        Self {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned(),
            cache: var("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join("hub"))),
            token: var("HF_TOKEN").or_else(stored).map(SecretString::from),
            offline: var("HF_HUB_OFFLINE").is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")),
            retry_pause: Duration::from_secs(1),
            progress: None,
            shutdown: Shutdown::new(),
        }
    }
}

/// The folder that holds a model's files, downloaded if need be.
///
/// A hub model whose files are all in the cache is used from there when the hub cannot be reached or refuses.
///
/// # Errors
/// When the folder or repository is not there, not open to this token, or cannot be fetched; the sentence says what to do.
pub fn resolve(source: &ModelSource, options: &HubOptions) -> Result<Snapshot> {
    match source {
        ModelSource::Folder(folder) => resolve_folder(folder),
        ModelSource::Hub { id, revision } => resolve_hub(id, revision.as_deref().unwrap_or("main"), options),
    }
}

/// Whether a model is here or can be had, in words; fetches none of its weights.
///
/// # Errors
/// As `resolve`.
pub fn availability(source: &ModelSource, options: &HubOptions) -> Result<String> {
    let (id, revision) = match source {
        ModelSource::Folder(folder) => {
            return resolve_folder(folder).map(|snapshot| format!("{} is a folder here", snapshot.folder.display()));
        }
        ModelSource::Hub { id, revision } => (id, revision.as_deref().unwrap_or("main")),
    };
    if options.offline {
        return resolve_hub(id, revision, options).map(|snapshot| format!("{} is here, and HF_HUB_OFFLINE is set", snapshot.name));
    }
    let Some(cache) = &options.cache else { return resolve_hub(id, revision, options).map(|snapshot| snapshot.name) };
    let repository = Repository::new(cache, id, revision);
    let fetch = Fetch { client: Client::new(options), repository: &repository, id, revision, options };
    match (fetch.look("config.json"), repository.find()) {
        (Ok(_), Some((commit, _))) => Ok(format!("{id}@{commit} is here, and the hub shows it")),
        (Ok(_), None) => Ok(format!("the hub shows {id}; the first start downloads it to {}", cache.display())),
        (Err(_), Some((commit, _))) => Ok(format!("{id}@{commit} is here; the hub does not show it now, and need not")),
        (Err(failure), None) => Err(fetch.sentence(failure)),
    }
}

fn resolve_folder(folder: &Path) -> Result<Snapshot> {
    if !folder.is_dir() {
        let what = if folder.exists() { "is not a folder" } else { "does not exist" };
        return Err(Error::new(
            Kind::Model,
            format!("model.path {} {what}; must be a folder with config.json, tokenizer.json and model.safetensors", folder.display()),
        ));
    }
    // `.` and `..` have no name of their own.
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned();
    Ok(Snapshot { folder: folder.to_owned(), name })
}

fn resolve_hub(id: &str, revision: &str, options: &HubOptions) -> Result<Snapshot> {
    ModelSource::hub(id, Some(revision))?;
    let Some(cache) = &options.cache else {
        return Err(Error::new(Kind::Hub, format!("there is no folder to keep {id} in; set HF_HOME to one that this user can write")));
    };
    let repository = Repository::new(cache, id, revision);
    let cached = repository.find();
    let named = |commit: &str, folder: PathBuf| Snapshot { folder, name: format!("{id}@{commit}") };
    // A commit never changes, so one that is here needs no network.
    if let Some((commit, folder)) = cached.clone().filter(|(commit, _)| options.offline || commit == revision) {
        return Ok(named(&commit, folder));
    }
    if options.offline {
        return Err(Error::new(
            Kind::Hub,
            format!("{id} at {revision} is not in {} and HF_HUB_OFFLINE is set; unset it to download", cache.display()),
        ));
    }
    let fetch = Fetch { client: Client::new(options), repository: &repository, id, revision, options };
    let fetched = match fetch.run() {
        Err(Failure::Moved) => fetch.run(),
        result => result,
    };
    match (fetched, cached) {
        (Ok((commit, folder)), _) => Ok(named(&commit, folder)),
        (Err(Failure::Stopped), _) | (Err(_), None) if options.shutdown.is_set() => Err(fetch.sentence(Failure::Stopped)),
        (Err(failure), None) => Err(fetch.sentence(failure)),
        (Err(failure), Some((commit, folder))) => {
            // Without a network the copy is what one expects; a refusal is for the operator to mend.
            let no_network = matches!(failure, Failure::Unreachable(_));
            let why = fetch.sentence(failure).chain();
            if no_network {
                tracing::info!("using {id}@{commit} from {}: {why}", cache.display());
            } else {
                tracing::warn!("using {id}@{commit} from {}, which may be old: {why}", cache.display());
            }
            Ok(named(&commit, folder))
        }
    }
}

/// One attempt at bringing a repository's files into the cache.
struct Fetch<'a> {
    client: Client,
    repository: &'a Repository,
    id: &'a str,
    revision: &'a str,
    options: &'a HubOptions,
}

impl Fetch<'_> {
    /// Commit and folder of the whole snapshot.
    fn run(&self) -> std::result::Result<(String, PathBuf), Failure> {
        let config = self.look("config.json")?;
        let commit = config.commit.clone();
        let folder = self.repository.snapshot(&commit);
        let mut wanted = vec![("config.json".to_owned(), config)];
        self.want("tokenizer.json", &folder, &mut wanted)?;
        if let Some(file) = optional(self.look("preprocessor_config.json"))? {
            wanted.push(("preprocessor_config.json".to_owned(), file));
        }
        if !folder.join(WEIGHTS).exists() {
            match optional(self.look(WEIGHTS))? {
                Some(file) => wanted.push((WEIGHTS.to_owned(), file)),
                None => {
                    let index = optional(self.look(INDEX))?.ok_or(Failure::NoWeights)?;
                    // The index says what else there is to fetch, so it comes first.
                    self.download(&folder, &[(INDEX.to_owned(), index)])?;
                    let path = folder.join(INDEX);
                    let text = std::fs::read_to_string(&path).map_err(Failure::Disk)?;
                    for shard in weights::shards(&text).map_err(Failure::Index)? {
                        self.want(&shard, &folder, &mut wanted)?;
                    }
                }
            }
        }
        if wanted.iter().any(|(_, file)| file.commit != commit) {
            return Err(Failure::Moved);
        }
        self.download(&folder, &wanted)?;
        self.repository.point(&commit).map_err(Failure::Disk)?;
        Ok((commit, folder))
    }

    fn want(&self, name: &str, folder: &Path, wanted: &mut Vec<(String, RemoteFile)>) -> std::result::Result<(), Failure> {
        if !folder.join(name).exists() {
            wanted.push((name.to_owned(), self.look(name)?));
        }
        Ok(())
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{}", self.options.endpoint, self.repository.url(name))
    }

    fn look(&self, name: &str) -> std::result::Result<RemoteFile, Failure> {
        self.client.look(&self.url(name))
    }

    fn download(&self, folder: &Path, files: &[(String, RemoteFile)]) -> std::result::Result<(), Failure> {
        let missing: Vec<_> = files.iter().filter(|(name, _)| !folder.join(name).exists()).collect();
        let mut meter = Meter::new(self.id, missing.iter().map(|(_, file)| file.size).sum(), self.options.progress.clone());
        for (name, file) in missing {
            self.bring(folder, name, file, &mut meter).map_err(|failure| failure.with_left(meter.left()))?;
        }
        meter.finish();
        Ok(())
    }

    fn bring(&self, folder: &Path, name: &str, file: &RemoteFile, meter: &mut Meter) -> std::result::Result<(), Failure> {
        let blob = self.repository.blob(&file.etag);
        if blob.exists() {
            meter.add(file.size);
        } else {
            std::fs::create_dir_all(blob.parent().unwrap_or(&blob)).map_err(Failure::Disk)?;
            self.client.fetch(&self.url(name), file, &blob, meter)?;
        }
        self.repository.link(folder, name, &file.etag).map_err(Failure::Disk)
    }

    /// A failure as a sentence that says what to do. The token is in none of its parts; it is cut out all the same.
    fn sentence(&self, failure: Failure) -> Error {
        let (id, revision, endpoint) = (self.id, self.revision, redact::uri(&self.options.endpoint));
        let cache = self.repository.folder().display();
        let own_copy = "or put its files into a folder and set model.path";
        let token = self.options.token.as_ref();
        let (text, cause): (String, Option<Box<dyn std::error::Error + Send + Sync>>) = match failure {
            Failure::Refused { status, code, message } => (self.refusal(status, &code, &message), None),
            Failure::Unreachable(error) => {
                (format!("cannot reach the hub at {endpoint} for {id}; check the network and HF_ENDPOINT, {own_copy}"), Some(error.into()))
            }
            Failure::Cut(error) => (
                format!("the download of {id} from {endpoint} broke off again and again; start anew to go on where it stopped, {own_copy}"),
                Some(error.into()),
            ),
            Failure::Full { error, left } => (
                format!(
                    "no space left for {id}: {cache} needs another {}; make room there or set HF_HOME to a folder on a larger disk",
                    bytes(left)
                ),
                Some(error.into()),
            ),
            Failure::Disk(error) => {
                (format!("cannot keep {id} in {cache}; set HF_HOME to a folder that this user can write"), Some(error.into()))
            }
            Failure::Reply(what) => (format!("{endpoint} does not answer as a model hub does: {what}; check HF_ENDPOINT"), None),
            Failure::Index(why) => (format!("{INDEX} of {id} {why}"), None),
            Failure::NoWeights => {
                (format!("{id} at {revision} has neither {WEIGHTS} nor {INDEX}; must be a checkpoint in safetensors"), None)
            }
            Failure::Moved => (format!("{id} changed while it was looked at; try again"), None),
            Failure::Stopped => (format!("the download of {id} was stopped; the next start goes on where it ended"), None),
        };
        let secrets: Vec<&SecretString> = token.into_iter().collect();
        let error = Error::new(Kind::Hub, redact::text(&text, &secrets));
        match cause {
            Some(cause) => error.because(redact::text(&cause.to_string(), &secrets)),
            None => error,
        }
    }

    /// What a status code of the hub means, with its `X-Error-Code` and `X-Error-Message` where it sends them.
    fn refusal(&self, status: u16, code: &str, message: &str) -> String {
        let (id, revision, endpoint) = (self.id, self.revision, redact::uri(&self.options.endpoint));
        let licence = format!("accept the licence at {endpoint}/{id}");
        let with_token = self.options.token.as_ref().is_some_and(|token| !token.expose_secret().is_empty());
        match (status, code) {
            (401, code) if with_token && code != "GatedRepo" => format!(
                "the hub does not accept the token for {id}; HF_TOKEN (or the token file in HF_HOME) must hold a valid one from \
                 {endpoint}/settings/tokens, and {licence} if the model is gated"
            ),
            (401, "RepoNotFound") => {
                format!("{endpoint} shows no model {id}; check model.id, or if it is private or gated, {licence} and set HF_TOKEN")
            }
            (401, _) => format!("{id} is not open to everybody; {licence} and set HF_TOKEN to a token of that account"),
            (403, _) if with_token => format!(
                "the account of HF_TOKEN may not read {id}; {licence} with that account, \
                 and give the token the right to read gated repositories"
            ),
            (403, _) => format!("{id} is not open to everybody; {licence} and set HF_TOKEN to a token of that account"),
            (404, "RevisionNotFound") => {
                format!("{id} has no revision {revision:?}; model.revision must be a branch, tag or commit of {endpoint}/{id}")
            }
            (404, "EntryNotFound") => format!("{id} at {revision} lacks a file that a PaliGemma checkpoint must have; check model.id"),
            (404, _) => format!("{endpoint} has no model {id} at revision {revision:?}; check model.id and model.revision"),
            (429, _) => format!(
                "the hub asks to wait before {id} is fetched (429 Too Many Requests); try later, or set HF_TOKEN for a higher limit"
            ),
            (500.., _) => format!("the hub at {endpoint} fails with status {status} for {id}; try later"),
            _ => format!("the hub at {endpoint} answers {id} with status {status}{}{message}", if message.is_empty() { "" } else { ": " }),
        }
    }
}

/// A file that a checkpoint may lack.
fn optional(found: std::result::Result<RemoteFile, Failure>) -> std::result::Result<Option<RemoteFile>, Failure> {
    match found {
        Ok(file) => Ok(Some(file)),
        Err(Failure::Refused { status: 404, .. }) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// A number of bytes for a person: `5.8 GB`.
fn bytes(count: u64) -> String {
    indicatif::DecimalBytes(count).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn from(vars: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_vars(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_is_read_as_the_hubs_own_tools_read_it() {
        let options = from(&[("HOME", "/home/a")]);
        assert_eq!(options.endpoint, "https://huggingface.co");
        assert_eq!(options.cache.unwrap(), Path::new("/home/a/.cache/huggingface/hub"));
        assert!(options.token.is_none() && !options.offline);
        let options = from(&[("HOME", "/home/a"), ("HF_HOME", "/srv/hf"), ("HF_ENDPOINT", "http://mirror/"), ("HF_TOKEN", " hf_x\n")]);
        assert_eq!((options.endpoint.as_str(), options.cache.unwrap()), ("http://mirror", PathBuf::from("/srv/hf/hub")));
        assert_eq!(options.token.unwrap().expose_secret(), "hf_x");
        assert_eq!(from(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/srv/hf")]).cache.unwrap(), Path::new("/c"));
        assert!(from(&[("HF_HUB_OFFLINE", "1")]).offline && from(&[]).cache.is_none());
    }

    #[test]
    fn the_token_file_is_read_when_no_variable_is_set() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let options = from(&[("HF_HOME", home.path().to_str().unwrap())]);
        assert_eq!(options.token.unwrap().expose_secret(), "hf_file");
    }
}
