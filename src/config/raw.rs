//! From the file's text to the checked configuration; every rule about a key stands here, beside the key.

mod camera;
mod clash;
mod console;
mod file;
mod gallery;
mod live;
mod record;
mod track;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use toml::de::DeTable;

use crate::base::redact::SecretString;
use crate::config::credentials;
use crate::config::reader::{At, Document, Fault, Section};
use crate::config::scores;
use crate::config::{
    CameraConfig, Checks, ClientCertificate, Config, CustomConfig, Device, Dtype, Durable, LogConfig, LogFormat, ModelConfig, ModelSource,
    MqttConfig, MqttVersion, OutputConfig, SnapshotConfig, TlsConfig,
};
use crate::types::Tracking;

const DAY: f64 = 86_400.0;

/// Bytes of a gigabyte, as disks are sold.
const GIGABYTE: f64 = 1e9;

/// Where state is kept: the service's state folder.
const STATE_DIR: &str = "/var/lib/palisade";

/// Reads an environment variable; a parameter, so that tests need not touch the process's own.
pub(super) type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

/// What the checks ask of the world outside the file.
#[derive(Clone, Copy)]
struct Outside<'o> {
    env: Env<'o>,
    checks: &'o Checks<'o>,
}

/// Checks the whole text.
///
/// # Errors
/// Every fault found, in order of line.
pub(super) fn parse(text: &str, env: Env<'_>, checks: &Checks<'_>) -> Result<Config, Vec<Fault>> {
    let outside = &Outside { env, checks };
    let document = Document::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        document.syntax(error.span().map_or(0, |span| span.start), error.message());
    }
    let mut root = Section::root(&document, &table);
    let (model, labels) = model(root.section("model"), outside);
    let written = root.sections("camera");
    let count = written.len();
    let tracking = track::rules(root.section("track"), &Tracking::default());
    let cameras = camera::cameras(&root, written, &tracking, outside);
    labels.check(&cameras, count);
    let known = Some(&cameras[..]).filter(|cameras| cameras.len() == count);
    let output = output(root.section("output"), count > 1, known, outside);
    let record = record::table(&mut root, &cameras);
    let (gallery, history) = gallery::table(&mut root);
    let console = console::table(root.section("console"), outside);
    let (mqtt, log) = (mqtt(root.section("mqtt"), outside), log(root.section("log")));
    let config = Config { model, cameras, output, record, gallery, history, mqtt, console, log };
    clash::check(&mut root, &config);
    root.finish();
    match document.into_faults() {
        faults if faults.is_empty() => Ok(config),
        faults => Err(faults),
    }
}

fn model<'d, 'a>(mut section: Section<'d, 'a>, outside: &Outside<'_>) -> (ModelConfig, scores::Labels<'d, 'a>) {
    let id = section.text("id");
    let path = section.text("path");
    let revision = section.text("revision");
    let source = match (id, path) {
        (Some(id), None) => hub_source(&section, id, revision),
        (None, Some(path)) => {
            if !Path::new(&path.value).is_dir() {
                section.fault(
                    "path",
                    path.offset,
                    &format!("{} is no folder; must hold config.json, tokenizer.json and the weights", path.value),
                );
            }
            if let Some(revision) = revision {
                section.fault("revision", revision.offset, "has no meaning beside path; it picks a version on the hub");
            }
            ModelSource::Folder(path.value.into())
        }
        (Some(_), Some(path)) => {
            section.fault("path", path.offset, "stands beside model.id; must be one of the two");
            ModelSource::Folder(path.value.into())
        }
        (None, None) => {
            if !section.holds("path") {
                section.missing("id", "a hub id such as \"google/paligemma2-3b-mix-224\", or path a snapshot folder");
            }
            ModelSource::Folder(PathBuf::new())
        }
    };
    let (min_score, labels) = scores::read(&mut section);
    let config = ModelConfig {
        source,
        device: device(&mut section, outside),
        dtype: section.choice("dtype", &Dtype::NAMES, Dtype::Auto),
        max_new_tokens: section.integer("max_new_tokens", 1..=1024, 100) as usize,
        workers: section.integer("workers", 1..=64, 1) as usize,
        max_batch: section.holds("max_batch").then(|| section.integer("max_batch", 1..=64, 1) as usize),
        min_score,
    };
    section.finish();
    (config, labels)
}

fn hub_source(section: &Section<'_, '_>, id: At<String>, revision: Option<At<String>>) -> ModelSource {
    let named = match &revision {
        Some(revision) => ModelSource::hub(&id.value, Some(&revision.value)),
        None => ModelSource::from_hub_name(&id.value),
    };
    named.unwrap_or_else(|error| {
        section.fault("id", id.offset, &format!("is refused: {error}; a folder goes into path"));
        ModelSource::Folder(PathBuf::new())
    })
}

fn device(section: &mut Section<'_, '_>, outside: &Outside<'_>) -> Device {
    let Some(text) = section.text("device") else { return Device::Auto };
    let found = text.value.parse().and_then(|device| (outside.checks.device)(device).map(|()| device));
    match found {
        Ok(device) => device,
        Err(message) => {
            section.fault("device", text.offset, &message);
            Device::Auto
        }
    }
}

/// A password out of the file that `password_file` names, else out of the environment.
fn password(section: &mut Section<'_, '_>, variable: Option<&str>, outside: &Outside<'_>) -> Option<SecretString> {
    if let Some(text) = section.text("password") {
        section.fault(
            "password",
            text.offset,
            "is refused: secrets do not belong in this file; put it into a file of its own and name that in password_file",
        );
    }
    secret(section, "password_file", variable, outside)
}

/// What the file holds that `key` names, else the environment.
fn secret(section: &mut Section<'_, '_>, key: &'static str, variable: Option<&str>, outside: &Outside<'_>) -> Option<SecretString> {
    let Some(file) = section.text(key) else {
        let value = variable.and_then(outside.env).map(|value| value.trim_end_matches(['\r', '\n']).to_owned());
        return value.filter(|value| !value.is_empty()).map(SecretString::from);
    };
    let what = key.trim_end_matches("_file");
    match credentials::read(&file.value, outside.env) {
        Ok(text) if text.trim_end_matches(['\r', '\n']).is_empty() => {
            section.fault(key, file.offset, &format!("{} is empty; must hold the {what}", file.value));
            None
        }
        Ok(text) => Some(SecretString::from(text.trim_end_matches(['\r', '\n']))),
        Err(why) => {
            section.fault(key, file.offset, &why);
            None
        }
    }
}

fn output(mut section: Section<'_, '_>, several: bool, cameras: Option<&[CameraConfig]>, outside: &Outside<'_>) -> OutputConfig {
    let custom = section.sections("custom").into_iter().filter_map(|section| custom(section, outside)).collect();
    let (rtsp, encoder) = live::rtsp(section.section("rtsp"), outside);
    let output = OutputConfig {
        snapshots: snapshots(section.section("snapshots")),
        file: file::table(section.section("file"), several),
        encoder: live::encoder(section.section("live"), encoder),
        rtsp,
        push: live::pushes(section.sections("push"), cameras, outside),
        v4l2: live::devices(section.sections("v4l2"), cameras),
        custom,
    };
    section.finish();
    output
}

/// A text that must be there and not be empty.
fn required(section: &mut Section<'_, '_>, key: &'static str, right: &str) -> Option<At<String>> {
    let Some(text) = section.text(key) else {
        section.missing(key, right);
        return None;
    };
    if text.value.trim().is_empty() {
        section.fault(key, text.offset, &format!("is empty; must be {right}"));
        return None;
    }
    Some(text)
}

/// How long, and how many bytes of what a table keeps stay.
fn retention(section: &mut Section<'_, '_>, keep_for: Duration, keep_bytes: u64) -> (Duration, u64) {
    let days = section.number("keep_days", 0.001..=3650.0, keep_for.as_secs_f64() / DAY);
    let gigabytes = section.number("keep_gb", 0.001..=1e6, keep_bytes as f64 / GIGABYTE);
    (Duration::from_secs_f64(days * DAY), (gigabytes * GIGABYTE) as u64)
}

fn snapshots(mut section: Section<'_, '_>) -> Option<SnapshotConfig> {
    section.exists().then_some(())?;
    let dir = required(&mut section, "dir", "the folder for the pictures");
    let keep = section.integer("keep", 1..=1_000_000, 1000) as usize;
    let keep_for = Duration::from_secs_f64(section.number("keep_days", 0.001..=3650.0, 7.0) * DAY);
    section.finish();
    Some(SnapshotConfig { dir: dir?.value.into(), keep, keep_for })
}

fn custom(mut section: Section<'_, '_>, outside: &Outside<'_>) -> Option<CustomConfig> {
    let pipeline = required(&mut section, "pipeline", "a gst-launch fragment that ends in a sink");
    if let Some(pipeline) = &pipeline
        && let Err(why) = (outside.checks.fragment)(&pipeline.value)
    {
        section.fault("pipeline", pipeline.offset, &format!("is no gst-launch fragment: {why}"));
    }
    section.finish();
    Some(CustomConfig { pipeline: pipeline?.value })
}

fn mqtt(mut section: Section<'_, '_>, outside: &Outside<'_>) -> Option<MqttConfig> {
    section.exists().then_some(())?;
    let host = required(&mut section, "host", "the broker's name or address").filter(|host| {
        let address = host.value.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        let name = address || host.value.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if !name {
            // The value may be a URI with credentials, so it is not repeated.
            section.fault(
                "host",
                host.offset,
                "is no name or address; must be one alone, with port, username and tls in keys of their own",
            );
        }
        name
    });
    let port = port(&mut section);
    const VERSIONS: [(&str, MqttVersion); 4] =
        [("3.1.1", MqttVersion::V3), ("5", MqttVersion::V5), ("v3.1.1", MqttVersion::V3), ("v5", MqttVersion::V5)];
    let version = section.choice("version", &VERSIONS, MqttVersion::V3);
    let username = section.text("username").map(|text| text.value);
    let password = password(&mut section, Some("PALISADE_MQTT_PASSWORD"), outside);
    let topic_prefix = topic_levels(&mut section, "topic_prefix", "palisade");
    let qos = section.integer("qos", 0..=2, 1) as u8;
    let encrypted = section.flag("tls", false).value;
    let tls = tls(&mut section, encrypted, outside);
    let max_packet = section.integer("max_packet", 1024..=268_435_455, 256 * 1024) as usize;
    let backlog_rate = section.integer("backlog_rate", 1..=100_000, 1000) as u32;
    let control = section.flag("control", false).value;
    let snapshots = section.flag("snapshots", true).value;
    let state_dir = section.text("state_dir").map(|text| PathBuf::from(text.value));
    let durable = section.choice("durable", &[("all", Durable::All), ("events", Durable::Events), ("none", Durable::None)], Durable::All);
    let stats_interval = Duration::from_secs_f64(section.number("stats_interval", 1.0..=DAY, 60.0));
    let discovery = section.flag("discovery", true).value;
    let discovery_prefix = topic_levels(&mut section, "discovery_prefix", "homeassistant").filter(|_| discovery);
    if discovery_prefix.is_some() && discovery_prefix == topic_prefix {
        let offset = section.offset_of("topic_prefix");
        section.fault("topic_prefix", offset, "is discovery_prefix too; must be another, as both have a topic status below");
    }
    let frigate = section.flag("frigate", false).value;
    let frigate_prefix = topic_levels(&mut section, "frigate_prefix", "frigate").filter(|_| frigate);
    if let Some(prefix) = &frigate_prefix {
        let others = [("topic_prefix", &topic_prefix), ("discovery_prefix", &discovery_prefix)];
        for (key, _) in others.into_iter().filter(|(_, other)| other.as_ref().is_some_and(|other| mixes(prefix, other))) {
            let offset = section.offset_of(if section.holds("frigate_prefix") { "frigate_prefix" } else { "frigate" });
            section.fault("frigate_prefix", offset, &format!("has topics in common with {key}; must be another"));
        }
    }
    let client_id = section.text("client_id").map(|text| text.value);
    section.finish();
    Some(MqttConfig {
        host: host?.value,
        port: port.unwrap_or(if encrypted { 8883 } else { 1883 }),
        version,
        username,
        password,
        topic_prefix: topic_prefix?,
        qos,
        tls,
        client_id: client_id.unwrap_or_else(own_client_id),
        durable,
        state_dir: Some(state_dir.unwrap_or_else(|| PathBuf::from(STATE_DIR))),
        control,
        snapshots,
        stats_interval,
        discovery_prefix,
        frigate_prefix,
        max_packet,
        backlog_rate,
    })
}

/// One for the process, so that a file that is read anew says the same.
fn own_client_id() -> String {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| format!("palisade-{}", uuid::Uuid::new_v4().simple())).clone()
}

fn tls(section: &mut Section<'_, '_>, encrypted: bool, outside: &Outside<'_>) -> Option<TlsConfig> {
    let [ca_file, cert_file, key_file] = ["ca_file", "cert_file", "key_file"].map(|key| section.text(key));
    let path = |file: At<String>| credentials::place(&file.value, outside.env);
    let client = match (cert_file, key_file) {
        (Some(cert), Some(key)) if encrypted => Some(ClientCertificate { cert_file: path(cert), key_file: path(key) }),
        (Some(file), _) | (None, Some(file)) if !encrypted => {
            let key = if section.holds("cert_file") { "cert_file" } else { "key_file" };
            section.fault(key, file.offset, "has no meaning without encryption; must stand beside tls = true");
            None
        }
        (Some(cert), None) => {
            section.fault("cert_file", cert.offset, "stands without key_file; must be both or neither");
            None
        }
        (None, Some(key)) => {
            section.fault("key_file", key.offset, "stands without cert_file; must be both or neither");
            None
        }
        _ => None,
    };
    let tls = encrypted.then(|| TlsConfig { ca_file: ca_file.map(path), client })?;
    if let Err(fault) = (outside.checks.tls)(&tls) {
        section.fault(fault.key, section.offset_of(fault.key), &format!("cannot be used: {}", fault.why));
    }
    Some(tls)
}

fn port(section: &mut Section<'_, '_>) -> Option<u16> {
    u16::try_from(section.integer("port", 1..=65_535, 0)).ok().filter(|port| *port != 0)
}

fn topic_levels(section: &mut Section<'_, '_>, key: &'static str, default: &str) -> Option<String> {
    let Some(text) = section.text(key) else { return Some(default.to_owned()) };
    let level = |level: &str| !level.is_empty() && !level.contains(['+', '#']) && !level.chars().any(char::is_control);
    if text.value.split('/').all(level) && !text.value.starts_with('$') && text.value.len() <= 200 {
        return Some(text.value);
    }
    section.fault(
        key,
        text.offset,
        &format!("is {:?}; must be topic levels without + or #, not beginning with $, no / at either end", text.value),
    );
    None
}

/// Whether one of two prefixes is the other, or a level below it.
fn mixes(one: &str, other: &str) -> bool {
    let below = |low: &str, high: &str| low.strip_prefix(high).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below(one, other) || below(other, one)
}

fn log(mut section: Section<'_, '_>) -> LogConfig {
    const LEVELS: [(&str, &str); 5] = [("error", "error"), ("warn", "warn"), ("info", "info"), ("debug", "debug"), ("trace", "trace")];
    let config = LogConfig {
        level: section.choice("level", &LEVELS, "info").to_owned(),
        format: section.choice(
            "format",
            &[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json), ("journald", LogFormat::Journald)],
            LogFormat::Auto,
        ),
    };
    section.finish();
    config
}

#[cfg(test)]
mod tests;
