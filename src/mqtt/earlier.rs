//! What earlier runs left on the broker: the retained topics of this node, kept in the state folder, so that those of a
//! camera or a label that has gone since can be cleared. A thread of its own writes them: nobody else waits for the disk.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::claim::Claim;
use crate::base::error::{Context, Kind, Result};
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::base::whole;
use crate::mqtt::pending::Desk;
use crate::mqtt::retained::Stage;

/// The file's name in the state folder.
const FILE: &str = "retained.json";

/// A larger file is none of ours. Bytes.
const MOST: u64 = 16 * 1024 * 1024;

/// Between two looks for topics that came or went.
const LOOK: Duration = Duration::from_millis(500);

/// Between two tries at a disk that failed.
const RETRY: Duration = Duration::from_secs(10);

/// Retained topics by the order in which they go out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    #[serde(default)]
    discovery: BTreeSet<String>,
    #[serde(default)]
    state: BTreeSet<String>,
}

impl Told {
    /// What the last run wrote down in `folder`; nothing where it wrote nothing, or what cannot be read, which is told.
    pub fn read(folder: &Path) -> Self {
        let file = folder.join(FILE);
        let bytes = match std::fs::metadata(&file) {
            Ok(metadata) if metadata.len() > MOST => Err(format!("it has {} bytes", metadata.len())),
            Ok(_) => std::fs::read(&file).map_err(|error| error.to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Self::default(),
            Err(error) => Err(error.to_string()),
        };
        let read = bytes.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).map_err(|error| error.to_string()));
        let mut told = read.unwrap_or_else(|why| {
            tracing::warn!("{} cannot be read, and what earlier runs left on the broker stays there: {why}", file.display());
            Self::default()
        });
        // One that no broker takes would cost the connection.
        let usable = |topic: &String| !topic.is_empty() && topic.len() < 4096 && !topic.starts_with('$') && rumqttc::valid_topic(topic);
        told.discovery.retain(usable);
        told.state.retain(usable);
        told
    }

    /// All topics, discovery first.
    pub fn topics(&self) -> impl Iterator<Item = (Stage, &String)> {
        let of = |stage| move |topic| (stage, topic);
        self.discovery.iter().map(of(Stage::Discovery)).chain(self.state.iter().map(of(Stage::State)))
    }

    /// What is on the desk, and the topics of `always` beside it.
    fn of(desk: &Desk, always: &[String]) -> Self {
        let mut told = Self { state: always.iter().cloned().collect(), ..Self::default() };
        for (stage, topic) in desk.lock().retained().topics() {
            match stage {
                Stage::Discovery => told.discovery.insert(topic.to_owned()),
                Stage::State | Stage::Picture => told.state.insert(topic.to_owned()),
            };
        }
        told
    }

    fn write(&self, file: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).context(Kind::Internal, || format!("{} cannot be written", file.display()))?;
        whole::write(file, &bytes)
    }
}

/// The thread that writes them down whenever some came or went.
pub struct Notes {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<Thread>,
}

/// Writes down what is on the desk now, before it goes out, and starts the thread `mqtt-notes`. `always` are the topics
/// that the link itself says whether the daemon is there on.
///
/// # Errors
/// When there is no thread to be had.
pub fn start(claim: Arc<Claim>, desk: Arc<Desk>, always: Vec<String>) -> Result<Notes> {
    let stop: Arc<(Mutex<bool>, Condvar)> = Arc::default();
    let mut writer = Writer { claim, desk, always, written: None, next_try: Instant::now(), failed: false };
    writer.step();
    let flag = stop.clone();
    let body = move || {
        while !stopped(&flag) {
            writer.step();
        }
        // What changed last.
        writer.next_try = Instant::now();
        writer.step();
    };
    Ok(Notes { stop, thread: Some(thread::spawn("mqtt-notes", body)?) })
}

/// Waits for the next look; returns whether it is the last.
fn stopped(stop: &(Mutex<bool>, Condvar)) -> bool {
    let (flag, changed) = stop;
    let flag = sync::lock(flag);
    if *flag {
        return true;
    }
    *sync::wait_timeout(changed, flag, LOOK)
}

struct Writer {
    claim: Arc<Claim>,
    desk: Arc<Desk>,
    always: Vec<String>,
    /// The state of the desk that is in the file.
    written: Option<u64>,
    next_try: Instant,
    failed: bool,
}

impl Writer {
    fn step(&mut self) {
        let changes = self.desk.lock().retained().changes();
        if self.written == Some(changes) || Instant::now() < self.next_try {
            return;
        }
        // What comes in between is written the next time.
        match self.claim.hold().and_then(|()| Told::of(&self.desk, &self.always).write(&self.claim.folder().join(FILE))) {
            Ok(()) => (self.written, self.failed) = (Some(changes), false),
            Err(error) => {
                self.next_try = Instant::now() + RETRY;
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!("a later run will not know what this one leaves on the broker: {}; set mqtt.state_dir", error.chain());
                }
            }
        }
    }
}

impl Notes {
    /// Writes down what changed last and joins, until `deadline`.
    pub fn finish(mut self, deadline: Instant) {
        self.end();
        if let Some(thread) = self.thread.take()
            && !thread.join_until(deadline)
        {
            tracing::error!("the disk did not take the list of retained topics in time");
        }
    }

    /// Has what changed last written down; does not wait for it.
    pub fn end(&self) {
        *sync::lock(&self.stop.0) = true;
        self.stop.1.notify_all();
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::mqtt::outbox::Limits;
    use crate::mqtt::pending::{Item, Pending};

    fn claim(folder: &Path) -> Arc<Claim> {
        Arc::new(Claim::new(folder))
    }

    fn topics(told: &Told) -> Vec<String> {
        told.topics().map(|(_, topic)| topic.clone()).collect()
    }

    #[test]
    fn what_is_on_the_desk_is_written_down_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert_eq!(Told::read(&state), Told::default());
        let desk = Arc::new(Desk::new(Pending::new("P/status".to_owned(), [Limits { records: 9, bytes: 99 }; 2], 1000)));
        desk.lock().retain(Stage::State, "P/a/status".to_owned(), vec![1]);
        desk.lock().retain(Stage::Discovery, "h/a".to_owned(), vec![1]);
        let notes = start(claim(&state), desk.clone(), vec!["P/status".to_owned()]).unwrap();
        assert_eq!(topics(&Told::read(&state)), ["h/a", "P/a/status", "P/status"], "before anything is published");
        desk.lock().retain(Stage::State, "P/a/status".to_owned(), Vec::new());
        desk.lock().retain(Stage::State, "P/b/status".to_owned(), vec![1]);
        notes.finish(Instant::now() + Duration::from_secs(30));
        let all = ["h/a", "P/a/status", "P/b/status", "P/status"];
        assert_eq!(topics(&Told::read(&state)), all, "it is not cleared before the broker says so");
        let notes = start(claim(&state), desk.clone(), vec![]).unwrap();
        let mut pending = desk.lock();
        while let Some(message) = pending.next(true, true) {
            if matches!(message.item, Item::Retained(_)) {
                pending.acked(message.item);
            }
        }
        drop(pending);
        notes.finish(Instant::now() + Duration::from_secs(30));
        assert_eq!(topics(&Told::read(&state)), ["h/a", "P/b/status"]);
    }

    #[test]
    fn a_file_that_is_none_and_topics_that_are_none_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        for (text, left) in [
            ("{", &[][..]),
            ("[]", &[]),
            ("{}", &[]),
            (r##"{"state": ["a/#", "", "$SYS/x", "a/+/b", "P/a"], "discovery": ["h"], "later": 1}"##, &["h", "P/a"]),
        ] {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            assert_eq!(topics(&Told::read(folder.path())), left, "{text}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_used_costs_no_more_than_that() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let desk = Arc::new(Desk::new(Pending::new("P/status".to_owned(), [Limits { records: 9, bytes: 99 }; 2], 1000)));
        assert_eq!(Told::read(&file), Told::default());
        start(claim(&file), desk, vec![]).unwrap().finish(Instant::now() + Duration::from_secs(30));
    }
}
