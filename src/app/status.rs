//! `palisade status`: how the running daemon is, asked over its HTTP server; a line for the daemon and one for each camera.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;

use crate::app::check;
use crate::app::doctor::reachable;
use crate::app::oneshot::print;
use crate::base::clock::Utc;
use crate::base::error::{Context, Error, Kind, Result};
use crate::base::redact::ExposeSecret;
use crate::config::ConsoleConfig;
use crate::mqtt::tail::printable;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the daemon of the configuration in `file`, and prints what it says, or with `json` one object. Returns how many cameras
/// that are not disabled do not run.
///
/// # Errors
/// When the configuration is faulty or has no `[console]`, nothing answers there, or the output cannot be written.
pub fn run(file: &Path, json: bool) -> Result<usize> {
    let config = check::load(file).map_err(|faults| Error::new(Kind::Config, faults.to_string()))?;
    let none = || Error::new(Kind::Config, format!("{} has no [console] table; the daemon is asked over HTTP", file.display()));
    let console = config.console.ok_or_else(none)?;
    let (info, cameras) = (ask(&console, "info")?, ask(&console, "cameras")?);
    let cameras = cameras["cameras"].as_array().cloned().unwrap_or_default();
    let ill = cameras.iter().filter(|camera| !matches!(camera["state"].as_str(), Some("running" | "disabled"))).count();
    if json {
        print(&json!({ "info": info, "cameras": cameras }).to_string())?;
    } else {
        print(&format!("{}\n{}", headline(&info), table(&cameras, Utc::now())))?;
    }
    Ok(ill)
}

fn ask(console: &ConsoleConfig, what: &str) -> Result<Value> {
    let address = reachable(console.listen);
    let agent: Agent = Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).proxy(None).build().into();
    let mut request = agent.get(format!("http://{address}/api/v1/{what}"));
    if let Some(token) = &console.token {
        request = request.header("Authorization", format!("Bearer {}", token.expose_secret()));
    }
    let silent = || format!("nothing answers at {address}; is the daemon running? systemctl status palisade");
    let mut answer = request.call().context(Kind::Io, silent)?;
    let body = answer.body_mut().read_to_string().context(Kind::Io, silent)?;
    let strange = || Error::new(Kind::Io, format!("what answers at {address} is not the daemon, or one of another version"));
    let body: Value = serde_json::from_str(&body).map_err(|_| strange())?;
    match (answer.status().as_u16(), body["error"].as_str()) {
        (200, _) => Ok(body),
        (_, Some(sentence)) => Err(Error::new(Kind::Io, format!("the daemon at {address} says: {sentence}"))),
        _ => Err(strange()),
    }
}

/// Version, model, how long it has run, and the link to the broker.
fn headline(info: &Value) -> String {
    let text = |key: &str| info[key].as_str().unwrap_or("?").to_owned();
    let up = info["uptime_s"].as_f64().map_or_else(|| "?".to_owned(), span);
    let mqtt = &info["mqtt"];
    let link = match (mqtt["enabled"].as_bool(), mqtt["connected"].as_bool()) {
        (Some(true), Some(true)) => format!("broker connected, {} messages wait", mqtt["outbox"]),
        (Some(true), _) => format!("broker NOT connected, {} messages wait", mqtt["outbox"]),
        _ => "no broker".to_owned(),
    };
    format!("palisade {}, {} on {}, up {up}, {link}", text("version"), text("model"), text("device"))
}

/// Under headings, in columns; what is wrong with a camera stands on a line of its own.
fn table(cameras: &[Value], now: Utc) -> String {
    let mut rows = vec![["CAMERA", "STATE", "SINCE", "FPS", "LOOKS/S", "LATENCY", "OBJECTS", "PROMPT"].map(str::to_owned)];
    rows.extend(cameras.iter().map(|camera| row(camera, now)));
    let widths: Vec<usize> = (0..8).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let reason = number.checked_sub(1).and_then(|camera| cameras[camera]["reason"].as_str());
        writeln!(text, "{}", cells.join("  ").trim_end()).ok();
        reason.into_iter().for_each(|reason| {
            writeln!(text, "  {}", printable(reason)).ok();
        });
    }
    text.trim_end().to_owned()
}

fn row(camera: &Value, now: Utc) -> [String; 8] {
    let text = |key: &str| printable(camera[key].as_str().unwrap_or("-"));
    let number = |value: &Value, unit: &str| value.as_f64().map_or_else(|| "-".to_owned(), |number| format!("{number:.1}{unit}"));
    let since =
        camera["since"].as_str().and_then(Utc::from_rfc3339).map_or_else(|| "-".to_owned(), |since| span(now.epoch() - since.epoch()));
    let counts = camera["counts"].as_object();
    let counts: Vec<String> = counts
        .into_iter()
        .flatten()
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(label, count)| format!("{count} {}", printable(label)))
        .collect();
    let objects = if counts.is_empty() { "-".to_owned() } else { counts.join(", ") };
    let latency = number(&camera["latency_ms"]["total"], " ms");
    [text("id"), text("state"), since, number(&camera["fps"], ""), number(&camera["looks_per_s"], ""), latency, objects, text("prompt")]
}

/// Seconds as the largest unit that fits: `40 s`, `12 min`, `3 h`, `5 d`.
fn span(seconds: f64) -> String {
    match seconds.max(0.0) {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_camera_that_fails_says_why() {
        let now = Utc::from_rfc3339("2026-11-26T10:00:00.000Z").unwrap();
        let cameras = [
            json!({"id": "street", "state": "running", "reason": null, "since": "2026-11-26T08:00:00.000Z", "fps": 25.0, "looks_per_s": 1.0,
                "latency_ms": {"total": 41.234}, "counts": {"cat": 2, "dog": 0}, "prompt": "detect cat ; dog"}),
            json!({"id": "gate", "state": "backoff", "reason": "rtsp://cam refused\u{1b}[2J", "since": "2026-11-26T09:59:30.000Z",
                "fps": null, "looks_per_s": null, "latency_ms": null, "counts": {}, "prompt": "detect car"}),
        ];
        let table = table(&cameras, now);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("CAMERA  STATE    SINCE"), "{table}");
        assert_eq!(lines[1], "street  running  2 h    25.0  1.0      41.2 ms  2 cat    detect cat ; dog");
        assert_eq!(lines[2], "gate    backoff  30 s   -     -        -        -        detect car");
        assert_eq!(lines[3], "  rtsp://cam refused [2J");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn the_headline_tells_of_a_lost_broker() {
        let info = json!({"version": "0.1.0", "model": "demo", "device": "cpu", "uptime_s": 200_000.0,
            "mqtt": {"enabled": true, "connected": false, "outbox": 17}});
        assert_eq!(headline(&info), "palisade 0.1.0, demo on cpu, up 2 d, broker NOT connected, 17 messages wait");
    }
}
