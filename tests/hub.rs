//! The model download against a hub on a local port.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use palisade::base::Kind;
use palisade::base::redact::SecretString;
use palisade::base::shutdown::Shutdown;
use palisade::config::{Device, Dtype, ModelSource};
use palisade::model::{HubOptions, LoadOptions, PaliGemma, Snapshot, resolve};

use crate::support::hub::{COMMIT, Hub, Manners};
use crate::support::snapshot::copy_of;

const ID: &str = "someone/street-model";

fn options(hub: &Hub, home: &Path) -> HubOptions {
    HubOptions {
        endpoint: hub.endpoint.clone(),
        cache: Some(home.join("hub")),
        token: None,
        offline: false,
        retry_pause: Duration::from_millis(1),
        progress: None,
        shutdown: Shutdown::new(),
    }
}

fn at(revision: Option<&str>) -> ModelSource {
    ModelSource::Hub { id: ID.to_owned(), revision: revision.map(str::to_owned) }
}

fn fetch(options: &HubOptions) -> Snapshot {
    resolve(&at(None), options).unwrap()
}

/// The sentence and its causes.
fn refused(options: &HubOptions) -> String {
    let error = resolve(&at(None), options).unwrap_err();
    assert_eq!(error.kind(), Kind::Hub);
    error.chain()
}

fn numbers(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Files that look like a checkpoint by their names only.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![("config.json", b"{}".to_vec()), ("tokenizer.json", numbers(3000)), ("model.safetensors", numbers(500_000))]
}

fn served(manners: Manners) -> (Hub, tempfile::TempDir) {
    (Hub::serve(ID, &files(), manners), tempfile::tempdir().unwrap())
}

fn holds_all(snapshot: &Snapshot) {
    for (name, bytes) in files() {
        assert!(std::fs::read(snapshot.folder.join(name)).unwrap() == bytes, "{name} differs");
    }
}

#[test]
fn a_checkpoint_is_downloaded_once_and_loads() {
    let (_golden, golden) = copy_of("pg2-bf16-sharded");
    let names = [
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let files: Vec<_> = names.iter().map(|name| (*name, std::fs::read(golden.folder.join(name)).unwrap())).collect();
    let hub = Hub::serve(ID, &files, Manners::default());
    let home = tempfile::tempdir().unwrap();
    let options = options(&hub, home.path());
    let snapshot = fetch(&options);
    assert_eq!(snapshot.name, format!("{ID}@{COMMIT}"));
    PaliGemma::load(&snapshot, LoadOptions { device: Device::Cpu, dtype: Dtype::Auto, cache: None, progress: None }).unwrap();
    hub.seen();
    assert_eq!(fetch(&options), snapshot);
    assert!(hub.seen().iter().all(|seen| seen.range.as_deref() == Some("bytes=0-0")), "nothing comes twice");
}

#[test]
fn what_is_cached_is_used_without_a_network() {
    let (hub, home) = served(Manners::default());
    let options = options(&hub, home.path());
    let snapshot = fetch(&options);
    holds_all(&snapshot);
    hub.behave(Manners { gated: true, ..Manners::default() });
    assert_eq!(fetch(&options), snapshot);
    drop(hub);
    assert_eq!(fetch(&options), snapshot);
    assert_eq!(resolve(&at(Some(COMMIT)), &options).unwrap(), snapshot);
    assert_eq!(fetch(&HubOptions { offline: true, ..options.clone() }), snapshot);
    // With a file gone it is not whole, and that is said.
    std::fs::remove_file(snapshot.folder.join("tokenizer.json")).unwrap();
    assert!(refused(&options).contains("cannot reach the hub"));
    assert!(refused(&HubOptions { offline: true, ..options }).contains("HF_HUB_OFFLINE"));
}

#[test]
fn a_pinned_commit_needs_no_request_once_it_is_here() {
    let (hub, home) = served(Manners::default());
    let options = options(&hub, home.path());
    let snapshot = resolve(&at(Some(COMMIT)), &options).unwrap();
    hub.seen();
    assert_eq!(resolve(&at(Some(COMMIT)), &options).unwrap(), snapshot);
    assert!(hub.seen().is_empty());
    assert_eq!(resolve(&at(Some("v1")), &options).unwrap(), snapshot);
}

#[test]
fn refusals_say_what_to_do_and_never_the_token() {
    let (hub, home) = served(Manners { token: Some("hf_right".to_owned()), ..Manners::default() });
    let open = options(&hub, home.path());
    let licence = format!("accept the licence at {}/{ID} and set HF_TOKEN", hub.endpoint);
    assert!(refused(&open).contains(&licence), "{}", refused(&open));
    let wrong = HubOptions { token: Some(SecretString::from("hf_wrong")), ..open.clone() };
    assert!(refused(&wrong).contains("does not accept the token"), "{}", refused(&wrong));
    let right = HubOptions { token: Some(SecretString::from("hf_right")), ..open.clone() };
    hub.behave(Manners { gated: true, ..Manners::default() });
    assert!(refused(&right).contains("the account of HF_TOKEN may not read"), "{}", refused(&right));
    for said in [refused(&wrong), refused(&right), format!("{:?}", wrong.token)] {
        assert!(!said.contains("hf_wrong") && !said.contains("hf_right"), "{said}");
    }
    hub.behave(Manners { token: Some("hf_right".to_owned()), ..Manners::default() });
    holds_all(&fetch(&right));
}

#[test]
fn a_missing_repository_revision_or_file_is_named() {
    let (hub, home) = served(Manners::default());
    let options = options(&hub, home.path());
    let said = |source: &ModelSource| resolve(source, &options).unwrap_err().chain();
    let other = ModelSource::Hub { id: "someone/nothing".to_owned(), revision: None };
    assert!(said(&other).contains("has no model someone/nothing"), "{}", said(&other));
    assert!(said(&at(Some("v9"))).contains("has no revision \"v9\""), "{}", said(&at(Some("v9"))));
    let no_weights = Hub::serve(ID, &files()[..2], Manners::default());
    let options = HubOptions { endpoint: no_weights.endpoint.clone(), ..options };
    assert!(refused(&options).contains("has neither model.safetensors nor model.safetensors.index.json"));
    let bad = ModelSource::Hub { id: "../../etc".to_owned(), revision: None };
    assert_eq!(resolve(&bad, &options).unwrap_err().kind(), Kind::Config);
}

#[test]
fn a_hub_that_is_away_busy_or_none_is_told_apart() {
    let (hub, home) = served(Manners { status: Some(503), ..Manners::default() });
    let options = options(&hub, home.path());
    assert!(refused(&options).contains("fails with status 503"));
    assert_eq!(hub.seen().len(), 5, "a busy hub is asked again");
    hub.behave(Manners { status: Some(200), ..Manners::default() });
    assert!(refused(&options).contains("does not answer as a model hub does"));
    drop(hub);
    let said = refused(&options);
    assert!(said.contains("cannot reach the hub") && said.contains("model.path"), "{said}");
    let nowhere = HubOptions { endpoint: "http://no-such-host.invalid".to_owned(), ..options };
    assert!(refused(&nowhere).contains("cannot reach the hub"));
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let (hub, home) = served(Manners { cuts: vec![100_000; 3], ..Manners::default() });
    holds_all(&fetch(&options(&hub, home.path())));
    let ranges: Vec<_> =
        hub.seen().into_iter().filter(|seen| seen.path.ends_with("model.safetensors")).filter_map(|seen| seen.range).collect();
    assert_eq!(ranges, ["bytes=0-0", "bytes=0-", "bytes=100000-", "bytes=200000-", "bytes=300000-"]);
}

#[test]
fn a_half_file_is_never_taken_for_whole() {
    let (hub, home) = served(Manners { cuts: vec![400_000, 0, 0, 0, 0], ..Manners::default() });
    let options = options(&hub, home.path());
    let said = refused(&options);
    assert!(said.contains("broke off again and again"), "{said}");
    assert!(!home.path().join("hub/models--someone--street-model/refs/main").exists());
    assert!(refused(&HubOptions { offline: true, ..options.clone() }).contains("HF_HUB_OFFLINE"));
    hub.seen();
    hub.behave(Manners::default());
    holds_all(&fetch(&options));
    let resumed = hub.seen().iter().filter_map(|seen| seen.range.clone()).any(|range| range.ends_with('-') && range != "bytes=0-");
    assert!(resumed, "the part that was there is not fetched again");
}

#[test]
fn a_download_ends_when_the_daemon_is_told_to_stop() {
    let (hub, home) = served(Manners::default());
    let options = options(&hub, home.path());
    options.shutdown.trigger();
    assert!(refused(&options).contains("was stopped"));
    holds_all(&fetch(&HubOptions { shutdown: Shutdown::new(), ..options }));
}

#[test]
fn two_downloads_at_once_do_not_mix() {
    let (hub, home) = served(Manners { cuts: vec![100_000; 4], ..Manners::default() });
    let options = options(&hub, home.path());
    let threads: Vec<_> = (0..3).map(|_| options.clone()).map(|options| std::thread::spawn(move || fetch(&options))).collect();
    for thread in threads {
        holds_all(&thread.join().unwrap());
    }
    let left: Vec<_> = home.path().join("hub/models--someone--street-model/blobs").read_dir().unwrap().collect();
    assert_eq!(left.len(), 3, "no parts are left: {left:?}");
}

#[test]
fn a_hub_without_ranges_does_not_double_the_file() {
    let (hub, home) = served(Manners { cuts: vec![100_000], no_ranges: true, ..Manners::default() });
    holds_all(&fetch(&options(&hub, home.path())));
}

#[test]
fn large_files_come_from_another_host_which_never_sees_the_token() {
    let manners = Manners { token: Some("hf_right".to_owned()), large_from: Some(10_000), ..Manners::default() };
    let (hub, home) = served(manners);
    let token = Some(SecretString::from("hf_right"));
    holds_all(&fetch(&HubOptions { token, ..options(&hub, home.path()) }));
    let seen = hub.seen();
    let there: Vec<_> = seen.iter().filter(|seen| seen.host.starts_with("localhost")).collect();
    assert!(!there.is_empty() && there.iter().all(|seen| seen.token.is_none()), "{there:?}");
}

#[test]
fn a_full_disk_is_named_with_what_is_missing() {
    let (hub, home) = served(Manners::default());
    let blobs = home.path().join("hub/models--someone--street-model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::os::unix::fs::symlink("/dev/full", blobs.join("model-safetensors-500000.incomplete")).unwrap();
    let said = refused(&options(&hub, home.path()));
    assert!(said.contains("no space left") && said.contains("500.00 kB") && said.contains("HF_HOME"), "{said}");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (hub, home) = served(Manners::default());
    std::fs::write(home.path().join("hub"), "a file where a folder should be").unwrap();
    let said = refused(&options(&hub, home.path()));
    assert!(said.contains("set HF_HOME to a folder that this user can write"), "{said}");
    let nowhere = HubOptions { cache: None, ..options(&hub, home.path()) };
    assert!(refused(&nowhere).contains("set HF_HOME"));
}

#[test]
fn progress_is_told_up_to_the_end() {
    let (hub, home) = served(Manners::default());
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    let progress: palisade::model::Progress = Arc::new(move |done, total| log.lock().unwrap().push((done, total)));
    fetch(&HubOptions { progress: Some(progress), ..options(&hub, home.path()) });
    let told = told.lock().unwrap();
    let total: u64 = files().iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!(told.last(), Some(&(total, total)));
    assert!(told.is_sorted());
}

#[test]
fn a_folder_is_taken_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let (hub, _) = served(Manners::default());
    let options = options(&hub, home.path());
    let folder = home.path().join("my-model");
    let said = resolve(&ModelSource::Folder(folder.clone()), &options).unwrap_err().chain();
    assert!(said.contains("my-model does not exist"), "{said}");
    std::fs::create_dir(&folder).unwrap();
    assert_eq!(resolve(&ModelSource::Folder(folder.clone()), &options).unwrap(), Snapshot { folder, name: "my-model".to_owned() });
}
