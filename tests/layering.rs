//! The house's rules, read off the source: floors, the owners of crates, module openings, no `unwrap`, short files.

use std::fs;
use std::path::{Path, PathBuf};

/// Floors from the ground up; a file may use only what lies below its own.
const FLOORS: [&[&str]; 6] = [
    &["base"],
    &["types"],
    &["model", "config"],
    &["source", "gate", "detect", "track", "annotate", "sink", "mqtt"],
    &["console"],
    &["app", "main"],
];

/// Crates that only the named places may import.
const OWNERS: [(&str, &[&str]); 22] = [
    ("clap", &["main.rs"]),
    ("axum", &["console"]),
    ("hyper", &["console"]),
    ("hyper_util", &["console"]),
    ("gstreamer", &["source", "sink/video"]),
    ("gstreamer_app", &["source", "sink/video"]),
    ("gstreamer_video", &["source", "sink/video"]),
    ("gstreamer_rtsp_server", &["sink/video"]),
    ("imageproc", &["annotate"]),
    ("ab_glyph", &["annotate"]),
    ("fontdb", &["annotate"]),
    ("deunicode", &["annotate"]),
    ("unicode_bidi", &["annotate"]),
    ("unicode_normalization", &["annotate"]),
    ("unicode_segmentation", &["annotate"]),
    ("rumqttc", &["mqtt"]),
    ("candle_core", &["model"]),
    ("tokenizers", &["model"]),
    ("hf_hub", &["model"]),
    ("toml", &["config"]),
    ("pathfinding", &["track"]),
    ("rusqlite", &["sink/history"]),
];

/// The most lines of code a file may have, tests, comments and blank lines left out.
const MAX_LINES: usize = 400;

struct Source {
    /// Relative to `src`, such as `sink/video.rs`.
    path: String,
    /// The whole text.
    text: String,
}

impl Source {
    /// Lines of code with their numbers: without comments, and without the tests, which stand last in a file.
    fn lines(&self) -> Vec<(usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines
            .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
            .filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
            .collect()
    }

    /// The same with each `use` statement on one line, however rustfmt broke it.
    fn code(&self) -> Vec<(usize, String)> {
        let mut joined: Vec<(usize, String)> = Vec::new();
        let mut open = false;
        for (number, line) in self.lines() {
            match joined.last_mut() {
                Some((_, statement)) if open => statement.push_str(line.trim()),
                _ => joined.push((number, line.to_owned())),
            }
            let start = line.trim_start().trim_start_matches("pub ");
            open = (open || start.starts_with("use ")) && !line.contains(';');
        }
        joined
    }

    /// The first line of code behind the tests, where it would not be looked at.
    fn behind_tests(&self) -> Option<usize> {
        let lines = self.text.lines().enumerate().skip_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
        let mut after = lines.skip_while(|(_, line)| *line != "}" && !line.ends_with("mod tests;")).skip(1);
        after.find(|(_, line)| !line.trim().is_empty()).map(|(index, _)| index + 1)
    }

    /// The module on a floor that the file belongs to.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    fn breaches(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut tell = |line: usize, what: String| found.push(format!("src/{}:{line}: {what}", self.path));
        if !self.text.starts_with("//!") {
            tell(1, "does not open with a //! that says what the module is".to_owned());
        }
        let lines = self.lines().len();
        if lines > MAX_LINES {
            tell(1, format!("has {lines} lines of code; at most {MAX_LINES}"));
        }
        if let Some(line) = self.behind_tests() {
            tell(line, "stands behind the tests, which come last".to_owned());
        }
        for (number, line) in &self.code() {
            let number = *number;
            for used in mentions(line, "crate::").chain(mentions(line, "palisade::")) {
                if let Some(why) = forbidden(self.module(), used) {
                    tell(number, format!("{} uses {used}: {why}", self.module()));
                }
            }
            for (name, owners) in OWNERS {
                let owned = owners
                    .iter()
                    .any(|owner| self.path == *owner || self.path.starts_with(&format!("{owner}/")) || self.path == format!("{owner}.rs"));
                if !owned && imports(line, name) {
                    tell(number, format!("imports {name}, which only {owners:?} may"));
                }
            }
            if line.contains(".unwrap()") || line.contains(".expect(") {
                tell(number, "may panic; return an error instead".to_owned());
            }
        }
        found
    }
}

/// The identifiers that follow `prefix` in a line; those of a braced list too.
fn mentions<'l>(line: &'l str, prefix: &'l str) -> impl Iterator<Item = &'l str> {
    line.match_indices(prefix).flat_map(move |(at, _)| {
        let before = line[..at].chars().next_back();
        let rest = &line[at + prefix.len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => list.split(',').collect(),
            None => vec![rest],
        };
        let whole_word = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '$');
        names.into_iter().filter(move |_| whole_word).map(|name| {
            let name = name.trim_start();
            &name[..name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len())]
        })
    })
}

fn imports(line: &str, name: &str) -> bool {
    let line = line.trim_start().trim_start_matches("pub ");
    line.contains(&format!("{name}::")) && mentions(line, "").next().is_some() && {
        let at = line.find(&format!("{name}::")).unwrap_or_default();
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
    } || line.starts_with(&format!("use {name};"))
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// Why `user` may not use `used`; `None` where it may.
fn forbidden(user: &str, used: &str) -> Option<String> {
    if user == used || user == "lib" {
        return None;
    }
    // Objects are followed by what is handed in, whatever made it: neither a file's keys nor a model are known to it.
    if user == "track" && !["base", "types"].contains(&used) && floor(used).is_some() {
        return Some("track knows base and types only".to_owned());
    }
    match (floor(user), floor(used)) {
        (None, _) => Some(format!("{user} stands on no floor")),
        (_, None) => None,
        (Some(above), Some(below)) if below < above => None,
        (Some(5), Some(5)) => None,
        (Some(same), Some(other)) if same == other => Some("siblings on one floor do not know each other".to_owned()),
        _ => Some("it lies above".to_owned()),
    }
}

fn sources(folder: &Path, root: &Path, found: &mut Vec<Source>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, root, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push(Source { path: path.strip_prefix(root).unwrap().to_string_lossy().into_owned(), text });
        }
    }
}

#[test]
fn the_source_keeps_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    sources(&root, &root, &mut all);
    assert!(all.len() > 30, "only {} files found", all.len());
    let breaches: Vec<String> = all.iter().flat_map(Source::breaches).collect();
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn each_kind_of_breach_is_seen() {
    let breaches = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() }.breaches().len();
    assert_eq!(breaches("base/x.rs", "//! X.\nuse crate::types::Frame;\n"), 1);
    assert_eq!(breaches("base/x.rs", "//! X.\nuse crate::{base, types::Frame};\n"), 1);
    assert_eq!(breaches("sink/x.rs", "//! X.\nuse crate::source::Source;\n"), 1);
    assert_eq!(breaches("track/x.rs", "//! X.\nuse crate::config::Config;\n"), 1);
    assert_eq!(breaches("model/x.rs", "//! X.\nfn f() { crate::app::run() }\n"), 1);
    assert_eq!(breaches("app/x.rs", "//! X.\nuse rumqttc::Client;\n"), 1);
    assert_eq!(breaches("sink/snapshot.rs", "//! X.\nuse gstreamer as gst;\nlet a = gstreamer::init();\n"), 1);
    assert_eq!(breaches("base/x.rs", "//! X.\nlet a = b.unwrap();\n"), 1);
    assert_eq!(breaches("base/x.rs", "//! X.\nlet a = b.expect(&why);\n"), 1);
    assert_eq!(breaches("base/x.rs", "//! X.\nuse crate::{\n    base,\n    types::Frame,\n};\n"), 1);
    assert_eq!(breaches("base/x.rs", "//! X.\n#[cfg(test)]\nmod tests {\n}\nfn f() {}\n"), 1);
    assert_eq!(breaches("base/x.rs", "fn f() {}\n"), 1);
    assert_eq!(breaches("base/x.rs", &format!("//! X.\n{}", "f();\n".repeat(MAX_LINES + 1))), 1);
    let clean = "//! X. crate::app is only named.\nuse crate::base::Error;\nuse crate::config::MqttConfig;\nuse rumqttc::Client;\n#[cfg(test)]\nmod tests { fn f() { a.unwrap() } }\n";
    assert_eq!(breaches("mqtt/x.rs", clean), 0);
}
