//! Reading the configuration anew: what differs from what runs, and whether it can be put in force without a restart. Nothing
//! here changes anything that runs; `app/apply.rs` does, once all of the file is known to be good.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};

use crate::annotate::Annotator;
use crate::app::{check, recorded, results};
use crate::base::error::Result;
use crate::base::thread::{self, Thread};
use crate::config::{CameraConfig, Config, OutputConfig};
use crate::sink::make_folder;
use crate::types::CameraId;

/// A file that has not been read by then lies on a disk that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The configuration file of a running daemon, and whether it is to be read anew. Clones share it.
#[derive(Clone)]
pub struct Reloads {
    file: PathBuf,
    asked: Arc<AtomicBool>,
}

impl Reloads {
    /// Of this file; nobody has asked yet.
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), asked: Arc::default() }
    }

    /// Asks for it; several times before it is begun are one time.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
    }

    /// Whether it was asked for, once.
    pub(super) fn take(&self) -> bool {
        self.asked.swap(false, Ordering::AcqRel)
    }

    /// The file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }
}

/// What is to be done for another configuration to be in force.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Cameras that come.
    pub(super) added: Vec<CameraConfig>,
    /// Cameras that go.
    pub(super) removed: Vec<CameraId>,
    /// Cameras that stay as others.
    pub(super) changed: Vec<Changed>,
    /// Cameras that nothing is done about.
    pub(super) kept: Vec<CameraId>,
    /// The log has another level.
    pub(super) level: bool,
    /// What else differs, by its name in the file: none of it can be changed while the daemon runs.
    pub(super) elsewhere: Vec<&'static str>,
}

/// A camera that stays as another.
#[derive(Debug, PartialEq)]
pub(super) struct Changed {
    /// As it is to be.
    pub(super) camera: CameraConfig,
    /// Its source begins anew.
    pub(super) reconnects: bool,
    /// Its objects end, and others are followed by other rules.
    pub(super) follows: bool,
    /// Clips of it are kept that were not, or no longer, or by other rules.
    pub(super) records: bool,
}

impl Plan {
    /// From one configuration to the other. A camera is the same if all of it is, defaults and secrets included.
    pub(super) fn between(old: &Config, new: &Config) -> Self {
        let find = |cameras: &[CameraConfig], id: &CameraId| cameras.iter().find(|camera| camera.id == *id).cloned();
        let mut plan = Self { level: old.log.level != new.log.level, elsewhere: elsewhere(old, new), ..Self::default() };
        plan.removed = old.cameras.iter().map(|camera| camera.id.clone()).filter(|id| find(&new.cameras, id).is_none()).collect();
        for camera in &new.cameras {
            match find(&old.cameras, &camera.id) {
                None => plan.added.push(camera.clone()),
                Some(before) if before == *camera => plan.kept.push(camera.id.clone()),
                Some(before) => plan.changed.push(Changed::between(&before, camera)),
            }
        }
        plan
    }

    /// Whether nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty() && !self.level && self.elsewhere.is_empty()
    }
}

impl Changed {
    fn between(old: &CameraConfig, new: &CameraConfig) -> Self {
        // The prompt and what becomes of detections is nothing to the source.
        let as_before = CameraConfig { prompt: old.prompt.clone(), tracking: old.tracking.clone(), ..new.clone() };
        let objects = |camera: &CameraConfig| (camera.tracking.clone(), results::pace(camera), camera.input.clone(), camera.enabled);
        let records = recorded(old) != recorded(new);
        Self { reconnects: records || as_before != *old, follows: objects(old) != objects(new), records, camera: new.clone() }
    }
}

/// What differs beside cameras and the log's level.
fn elsewhere(old: &Config, new: &Config) -> Vec<&'static str> {
    let parts = |output: &OutputConfig| {
        let OutputConfig { snapshots, file, encoder, rtsp, push, v4l2, custom } = output.clone();
        ((snapshots, file, encoder), (rtsp, push, v4l2, custom))
    };
    let ((old_snapshots, old_file, old_encoder), (old_rtsp, old_push, old_v4l2, old_custom)) = parts(&old.output);
    let ((snapshots, file, encoder), (rtsp, push, v4l2, custom)) = parts(&new.output);
    let sections = [
        ("model", old.model != new.model),
        ("output.snapshots", old_snapshots != snapshots),
        ("output.file", old_file != file),
        ("output.live", old_encoder != encoder),
        ("output.rtsp", old_rtsp != rtsp),
        ("output.push", old_push != push),
        ("output.v4l2", old_v4l2 != v4l2),
        ("output.custom", old_custom != custom),
        ("record", old.record != new.record),
        ("events.snapshots", old.gallery != new.gallery),
        ("mqtt", old.mqtt != new.mqtt),
        ("console", old.console != new.console),
        ("log.format", old.log.format != new.log.format),
    ];
    sections.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// A configuration that can be put in force, with all that may fail beforehand done.
pub(super) struct Prepared {
    pub(super) config: Config,
    pub(super) plan: Plan,
}

/// Why nothing is put in force, a sentence each.
pub(super) type Refused = Vec<String>;

/// The thread `reload`, which reads the file and may wait for a disk, as long as it is at it.
pub(super) struct Reading {
    thread: Thread,
    read: Receiver<std::result::Result<Prepared, Refused>>,
    begun: Instant,
}

impl Reading {
    /// Begins to read, to hold it against what runs, and to prepare what it asks for.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(file: &Path, running: Config, annotator: Annotator) -> Result<Self> {
        let (send, read) = bounded(1);
        let file = file.to_owned();
        let thread = thread::spawn("reload", move || {
            // Nobody listens any more where it took too long.
            send.send(prepare(&file, &running, &annotator)).ok();
        })?;
        Ok(Self { thread, read, begun: Instant::now() })
    }

    /// What has come of it; the reading itself where it is not over.
    pub(super) fn step(self) -> std::result::Result<std::result::Result<Prepared, Refused>, Self> {
        match self.read.try_recv() {
            Ok(read) => Ok(read),
            Err(TryRecvError::Disconnected) => Ok(Err(vec!["its reader panicked; this is a defect, please report it".to_owned()])),
            Err(TryRecvError::Empty) if self.begun.elapsed() < PATIENCE => Err(self),
            Err(TryRecvError::Empty) => {
                self.leave();
                Ok(Err(vec![format!("it could not be read within {} s; the disk of one of its files hangs", PATIENCE.as_secs())]))
            }
        }
    }

    /// Waits for it no longer.
    pub(super) fn leave(self) {
        self.thread.leave();
    }
}

fn prepare(file: &Path, running: &Config, annotator: &Annotator) -> std::result::Result<Prepared, Refused> {
    let config = check::load(file).map_err(|faults| faults.to_string().lines().map(str::to_owned).collect::<Refused>())?;
    let plan = Plan::between(running, &config);
    if !plan.elsewhere.is_empty() {
        return Err(vec![refusal(file, &plan.elsewhere)]);
    }
    let coming = || plan.added.iter().chain(plan.changed.iter().map(|changed| &changed.camera));
    make_folders(&config, coming()).map_err(|error| vec![error.chain()])?;
    annotator.prepare(coming().flat_map(|camera| camera.prompt.labels()).map(String::as_str));
    Ok(Prepared { config, plan })
}

/// The sentence for the operator.
fn refusal(file: &Path, elsewhere: &[&str]) -> String {
    format!(
        "{}: {} differ{} from what runs, and a reload changes cameras, [track] and log.level only; nothing of the file is in force \
         before systemctl restart palisade",
        file.display(),
        elsewhere.join(", "),
        if elsewhere.len() == 1 { "s" } else { "" },
    )
}

/// Where files of these cameras go.
fn make_folders<'c>(config: &Config, cameras: impl Iterator<Item = &'c CameraConfig>) -> Result<()> {
    for camera in cameras {
        let id = &camera.id;
        if let Some(snapshots) = &config.output.snapshots {
            make_folder("output.snapshots.dir", &snapshots.dir, id)?;
        }
        if let Some(gallery) = &config.gallery {
            make_folder("events.snapshots.dir", &gallery.dir, id)?;
        }
        if let Some(record) = config.record.as_ref().filter(|_| recorded(camera).is_some()) {
            make_folder("record.dir", &record.dir, id)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const CAMERAS: &str = "[[camera]]\nid = \"a\"\nuri = \"rtsp://cam/1\"\nlabels = [\"cat\"]\n\
        [[camera]]\nid = \"b\"\nuri = \"rtsp://cam/2\"\nlabels = [\"cat\"]\nrecord = \"events\"\n";

    fn read(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("palisade.toml");
        std::fs::write(&file, format!("[model]\npath = \"samples\"\n[record]\ndir = \"clips\"\n[mqtt]\nhost = \"hub\"\n{text}")).unwrap();
        check::load(&file).unwrap()
    }

    fn plan(change: impl Fn(&str) -> String) -> Plan {
        Plan::between(&read(CAMERAS), &read(&change(CAMERAS)))
    }

    fn ids(ids: &[CameraId]) -> Vec<&str> {
        ids.iter().map(CameraId::as_str).collect()
    }

    #[test]
    fn a_file_that_is_written_otherwise_and_says_the_same_asks_for_nothing() {
        let plan = plan(|text| format!("# Cameras.\n{}", text.replace("labels = [\"cat\"]", "prompt = \"detect cat\"\ninterval = 1")));
        assert!(plan.is_empty(), "{plan:?}");
        assert_eq!(ids(&plan.kept), ["a", "b"]);
    }

    #[test]
    fn cameras_come_and_go() {
        let plan = plan(|text| text.replace("id = \"a\"", "id = \"c\""));
        assert_eq!((ids(&plan.removed), ids(&plan.kept)), (vec!["a"], vec!["b"]));
        assert_eq!(plan.added.iter().map(|camera| camera.id.as_str()).collect::<Vec<_>>(), ["c"]);
        assert!(plan.changed.is_empty() && plan.elsewhere.is_empty() && !plan.is_empty());
    }

    #[test]
    fn a_camera_that_changes_is_disturbed_no_more_than_need_be() {
        let changed = |from: &str, to: &str| {
            let plan = plan(|text| text.replacen(from, to, 1));
            assert_eq!((plan.changed.len(), plan.kept.len(), plan.elsewhere.len()), (1, 1, 0), "{plan:?}");
            let Changed { reconnects, follows, records, .. } = plan.changed[0];
            [reconnects, follows, records]
        };
        assert_eq!(changed("[\"cat\"]", "[\"dog\"]"), [false, false, false]);
        assert_eq!(changed("labels", "interval = 5\nlabels"), [true, true, false]);
        assert_eq!(changed("labels", "max_width = 640\nlabels"), [true, false, false]);
        assert_eq!(changed("labels", "username = \"me\"\nlabels"), [true, false, false]);
        assert_eq!(changed("cam/1", "cam/3"), [true, true, false]);
        assert_eq!(changed("labels", "enabled = false\nlabels"), [true, true, false]);
        assert_eq!(changed("labels", "record = \"events\"\nlabels"), [true, false, true]);
        assert_eq!(changed("[[camera]]\nid = \"b\"", "[camera.track]\nlost_after = 9\n[[camera]]\nid = \"b\""), [false, true, false]);
    }

    #[test]
    fn rules_for_all_are_those_of_each_camera() {
        let plan = plan(|text| format!("{text}[track]\nconfirm = 2\n"));
        let how: Vec<_> = plan.changed.iter().map(|changed| (changed.reconnects, changed.follows, changed.records)).collect();
        assert_eq!(how, [(false, true, false), (true, true, true)], "what is kept ahead of a clip depends on it");
    }

    #[test]
    fn the_log_s_level_can_be_changed_and_what_else_differs_is_named() {
        let level = plan(|text| format!("{text}[log]\nlevel = \"debug\"\n"));
        assert!(level.level && level.elsewhere.is_empty() && !level.is_empty());
        let more = "[output.rtsp]\nlisten = \"127.0.0.1:8554\"\n[[output.push]]\nuri = \"rtmp://host/app/{camera}\"\n[output.live]\nencoder = \"va\"\n\
            [events.snapshots]\ndir = \"out\"\n[console]\n[log]\nformat = \"json\"\n";
        let plan = plan(|text| format!("{text}{more}"));
        assert_eq!(plan.elsewhere, ["output.live", "output.rtsp", "output.push", "events.snapshots", "console", "log.format"]);
        let [record, mqtt] = [("dir = \"clips\"", "dir = \"other\""), ("host = \"hub\"", "host = \"hub\"\nqos = 0")].map(|(from, to)| {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("palisade.toml");
            let text = format!("[model]\npath = \"samples\"\n[record]\ndir = \"clips\"\n[mqtt]\nhost = \"hub\"\n{CAMERAS}");
            std::fs::write(&file, text.replace(from, to)).unwrap();
            Plan::between(&read(CAMERAS), &check::load(&file).unwrap()).elsewhere
        });
        assert_eq!((record, mqtt), (vec!["record"], vec!["mqtt"]));
        let told = refusal(Path::new("p.toml"), &["mqtt"]);
        assert!(told.starts_with("p.toml: mqtt differs from what runs") && told.ends_with("systemctl restart palisade"), "{told}");
    }

    #[test]
    fn another_password_makes_another_camera_and_is_not_printed() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        let text = CAMERAS.replacen("labels", &format!("username = \"me\"\npassword_file = {secret:?}\nlabels"), 1);
        let [old, new] = ["s3cr3t-one", "s3cr3t-two"].map(|password| {
            std::fs::write(&secret, password).unwrap();
            read(&text)
        });
        let plan = Plan::between(&old, &new);
        assert!(plan.changed.len() == 1 && plan.changed[0].reconnects && !plan.changed[0].follows);
        assert!(!format!("{plan:?}{old:?}").contains("s3cr3t"));
    }

    #[test]
    fn several_orders_before_the_first_is_obeyed_are_one() {
        let reloads = Reloads::new(Path::new("palisade.toml"));
        assert!(!reloads.take());
        (0..3).for_each(|_| reloads.clone().ask());
        assert!(reloads.take() && !reloads.take());
    }
}
