//! `palisade doctor`: looks at what the daemon will need on this machine, and names for each thing that is not right the command
//! or the key that mends it. It changes nothing.

mod places;
mod plugins;
mod reach;

use std::path::Path;

use serde_json::json;

use crate::app::check;
use crate::app::oneshot::print;
use crate::base::error::Result;
use crate::config::Config;
use crate::source;

pub(in crate::app) use reach::reachable;

/// What was found of one thing.
struct Finding {
    /// The thing: `plugins`, `camera street`, `broker`.
    subject: String,
    verdict: Verdict,
    /// What was seen.
    what: String,
    /// The command or the key that mends it.
    cure: Option<String>,
}

/// How grave it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As it must be.
    Good,
    /// The daemon runs, with less than was asked for.
    Doubtful,
    /// The daemon, or this part of it, will not work.
    Bad,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Doubtful => "warn",
            Self::Bad => "BAD",
        }
    }
}

impl Finding {
    fn good(subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self { subject: subject.into(), verdict: Verdict::Good, what: what.into(), cure: None }
    }

    fn doubtful(subject: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { subject: subject.into(), verdict: Verdict::Doubtful, what: what.into(), cure: Some(cure.into()) }
    }

    fn bad(subject: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { subject: subject.into(), verdict: Verdict::Bad, what: what.into(), cure: Some(cure.into()) }
    }

    fn line(&self) -> String {
        let cure = self.cure.as_ref().map(|cure| format!("\n      -> {cure}")).unwrap_or_default();
        format!("{:<4}  {}: {}{cure}", self.verdict.word(), self.subject, self.what)
    }
}

/// Looks at all that the configuration in `file` asks for and prints what was found, a line each, or with `json` one object.
/// Returns how many things will not work.
///
/// # Errors
/// When GStreamer cannot start or the output cannot be written.
pub fn run(file: &Path, json: bool) -> Result<usize> {
    source::init()?;
    let config = check::load(file);
    let mut found = Vec::new();
    match &config {
        Ok(config) => {
            found.push(Finding::good("configuration", format!("{}: no mistake found, cameras: {}", file.display(), config.cameras.len())));
            found.extend(examine(config));
        }
        Err(faults) => {
            let cure = format!("mend it, then: palisade check --config {}", file.display());
            found.push(Finding::bad("configuration", faults.to_string().replace('\n', "\n      "), cure));
        }
    }
    found.push(places::clock());
    let bad = found.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    if json {
        let findings: Vec<_> = found
            .iter()
            .map(|Finding { subject, verdict, what, cure }| {
                json!({ "subject": subject, "verdict": verdict.word().to_ascii_lowercase(), "what": what, "cure": cure })
            })
            .collect();
        print(&json!({ "bad": bad, "findings": findings }).to_string())?;
    } else {
        found.iter().try_for_each(|finding| print(&finding.line()))?;
        if rustix::process::geteuid().is_root() {
            print("seen as root, who may read and write everywhere; the service has an account of its own, palisade")?;
        }
    }
    Ok(bad)
}

fn examine(config: &Config) -> Vec<Finding> {
    let mut found = plugins::look(config);
    found.extend(places::devices(config));
    found.extend(reach::cameras(config));
    found.push(reach::model(config));
    found.extend(reach::broker(config));
    found.extend(reach::ports(config));
    found.extend(places::folders(config));
    found
}
