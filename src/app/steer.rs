//! What changes while the daemon runs: each camera's prompt, and whether it is looked at. What commands change is kept in
//! the state folder, so that a restart forgets nothing; a prompt that is edited in the configuration wins over an older
//! command, for good: one that an edit overruled is forgotten, and so is one of a camera that is gone.
//!
//! A command is in force at once. The thread `control` writes it down: whoever heard it waits for no disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::claim::Claim;
use crate::base::error::{Context, Error, Kind, Result};
use crate::base::sync;
use crate::base::thread::{self, Thread};
use crate::base::whole;
use crate::config::CameraConfig;
use crate::mqtt::{Command, Steering, Watched};
use crate::types::{CameraId, CameraState, Prompt, Zone};

/// Between two tries at a disk that did not take the commands.
const RETRY: Duration = Duration::from_secs(10);

/// For the last commands to be written, where nobody says how long they may take.
const GRACE: Duration = Duration::from_millis(500);

/// The file's name in the state folder.
const FILE: &str = "control.json";

/// What a camera's frames are asked at present, and whether they are looked at. Clones share it.
#[derive(Clone, Debug)]
pub struct Asked {
    prompt: Arc<Mutex<Arc<Prompt>>>,
    detect: Arc<AtomicBool>,
    running: Arc<AtomicBool>,
}

impl Asked {
    /// As configured.
    pub fn of(camera: &CameraConfig) -> Self {
        let prompt = Arc::new(Mutex::new(Arc::new(camera.prompt.clone())));
        Self { prompt, detect: Arc::new(AtomicBool::new(camera.enabled)), running: Arc::default() }
    }

    /// The prompt in force.
    pub fn prompt(&self) -> Arc<Prompt> {
        sync::lock(&self.prompt).clone()
    }

    /// Whether frames are looked at.
    pub fn detects(&self) -> bool {
        self.detect.load(Ordering::Acquire)
    }

    /// The camera is in this state now.
    pub fn note(&self, state: CameraState) {
        self.running.store(state == CameraState::Running, Ordering::Release);
    }

    /// Whether looks may be expected: the camera runs and its frames are looked at.
    pub fn is_watched(&self) -> bool {
        self.detects() && self.running.load(Ordering::Acquire)
    }
}

/// Every camera that commands may be for.
pub struct Steer {
    /// Locked before the orders, where both are.
    cameras: Mutex<BTreeMap<CameraId, Camera>>,
    orders: Mutex<BTreeMap<String, Order>>,
    keeper: Option<Keeper>,
}

struct Camera {
    zones: Vec<Zone>,
    configured: Prompt,
    enabled: bool,
    asked: Asked,
}

/// What was commanded of a camera.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Order {
    /// The prompt of the configuration at that time.
    configured: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detect: Option<bool>,
}

impl Steer {
    /// For these cameras; with `state` a folder in which earlier commands are found and later ones kept, unless another
    /// process had it.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn new(cameras: &[CameraConfig], state: Option<&Arc<Claim>>) -> Result<Self> {
        let state = state.filter(|claim| claim.was_free());
        let mut orders = state.map(|claim| read(&claim.folder().join(FILE))).unwrap_or_default();
        let found = orders.len();
        // Else an edit that is taken back would bring an old command back.
        orders.retain(|id, order| holds(id, order, cameras));
        let cameras: BTreeMap<CameraId, Camera> = cameras
            .iter()
            .map(|camera| {
                let asked = Asked::of(camera);
                let order = orders.get(camera.id.as_str());
                if let Some(prompt) = order.and_then(|order| Prompt::new(order.prompt.as_deref()?).ok()) {
                    tracing::info!(camera = %camera.id, "asked {:?}, as a command has it", prompt.text());
                    *sync::lock(&asked.prompt) = Arc::new(prompt);
                }
                if let Some(detect) = order.and_then(|order| order.detect) {
                    asked.detect.store(detect && camera.enabled, Ordering::Release);
                }
                (camera.id.clone(), Camera::new(camera, asked))
            })
            .collect();
        let keeper = state.cloned().map(Keeper::start).transpose()?;
        if let Some(keeper) = keeper.as_ref().filter(|_| orders.len() < found) {
            keeper.put(to_bytes(&orders)?);
        }
        Ok(Self { cameras: Mutex::new(cameras), orders: Mutex::new(orders), keeper })
    }

    /// Takes in another configuration, as a restart would: a camera whose prompt is edited is asked that, and what was
    /// commanded of it is forgotten, as of one that is gone. The others go on as they were told.
    pub fn adopt(&self, cameras: &[CameraConfig]) {
        let mut known = sync::lock(&self.cameras);
        let mut orders = sync::lock(&self.orders);
        let before = orders.len();
        orders.retain(|id, order| holds(id, order, cameras));
        known.retain(|id, _| cameras.iter().any(|camera| camera.id == *id));
        for camera in cameras {
            let asked = match known.get(&camera.id) {
                Some(one) => one.asked.clone(),
                None => Asked::of(camera),
            };
            let one = known.entry(camera.id.clone()).or_insert_with(|| Camera::new(camera, asked.clone()));
            if one.configured != camera.prompt {
                *sync::lock(&asked.prompt) = Arc::new(camera.prompt.clone());
                asked.detect.store(camera.enabled, Ordering::Release);
            } else if one.enabled != camera.enabled {
                let commanded = orders.get(camera.id.as_str()).and_then(|order| order.detect).unwrap_or(true);
                asked.detect.store(camera.enabled && commanded, Ordering::Release);
            }
            if !camera.enabled {
                asked.note(CameraState::Disabled);
            }
            *one = Camera::new(camera, asked);
        }
        if let Some(keeper) = self.keeper.as_ref().filter(|_| orders.len() < before) {
            match to_bytes(&orders) {
                Ok(bytes) => keeper.put(bytes),
                Err(error) => tracing::warn!("commands are not kept: {}", error.chain()),
            }
        }
    }

    /// Writes down what is not on disk yet, and ends; no later than `deadline`, which is told if it is missed.
    pub fn finish(&self, deadline: Instant) {
        self.keeper.iter().for_each(|keeper| keeper.finish(deadline));
    }

    /// A camera's prompt and whether it is looked at; as configured where it is not known.
    pub fn asked(&self, camera: &CameraConfig) -> Asked {
        sync::lock(&self.cameras).get(&camera.id).map_or_else(|| Asked::of(camera), |known| known.asked.clone())
    }

    /// A camera as its readers are to be told of it.
    pub fn told(&self, camera: &CameraConfig) -> Watched {
        let known = Camera::new(camera, self.asked(camera));
        watched(&camera.id, &known)
    }

    /// Every camera as its readers are to be told of it.
    pub fn watched(&self) -> Vec<Watched> {
        sync::lock(&self.cameras).iter().map(|(id, camera)| watched(id, camera)).collect()
    }

    fn keep(&self, camera: &CameraId, configured: &Prompt, command: &Command) -> Result<()> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let mut orders = sync::lock(&self.orders);
        let order = orders.entry(camera.as_str().to_owned()).or_default();
        order.configured = configured.text().to_owned();
        match command {
            Command::Prompt(prompt) => order.prompt = Some(prompt.text().to_owned()),
            Command::Detect(detect) => order.detect = Some(*detect),
        }
        // Still under the lock, so that the newest is the last.
        keeper.put(to_bytes(&orders)?);
        Ok(())
    }
}

impl Drop for Steer {
    fn drop(&mut self) {
        self.finish(Instant::now() + GRACE);
    }
}

impl Steering for Steer {
    fn steer(&self, camera: &CameraId, command: &Command) -> Result<Watched> {
        let cameras = sync::lock(&self.cameras);
        let known = cameras.get(camera).filter(|known| known.enabled);
        let known = known.ok_or_else(|| Error::new(Kind::Input, format!("{camera} is no enabled camera of the configuration")))?;
        match command {
            Command::Prompt(prompt) => *sync::lock(&known.asked.prompt) = Arc::new(prompt.clone()),
            Command::Detect(detect) => known.asked.detect.store(*detect, Ordering::Release),
        }
        // In force all the same, until the next start.
        if let Err(error) = self.keep(camera, &known.configured, command) {
            tracing::warn!(%camera, "a command is not kept: {}", error.chain());
        }
        Ok(watched(camera, known))
    }
}

impl Camera {
    fn new(camera: &CameraConfig, asked: Asked) -> Self {
        Self { zones: camera.tracking.zones.clone(), configured: camera.prompt.clone(), enabled: camera.enabled, asked }
    }
}

/// Whether what was commanded still stands: an edit overrules it, also one that is taken back later.
fn holds(id: &str, order: &Order, cameras: &[CameraConfig]) -> bool {
    cameras.iter().any(|camera| camera.id.as_str() == id && camera.prompt.text() == order.configured)
}

fn watched(id: &CameraId, camera: &Camera) -> Watched {
    Watched { id: id.clone(), prompt: (*camera.asked.prompt()).clone(), enabled: camera.asked.detects(), zones: camera.zones.clone() }
}

/// Earlier commands; none where the file is not there, or cannot be read, which is told.
fn read(file: &Path) -> BTreeMap<String, Order> {
    match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!("{} cannot be read, and earlier commands are not in force: {error}", file.display());
            BTreeMap::new()
        }),
        Err(_) => BTreeMap::new(),
    }
}

fn to_bytes(orders: &BTreeMap<String, Order>) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(orders).context(Kind::Internal, || "the commands have no JSON")
}

/// Writes the newest commands to their file, in a thread of its own.
struct Keeper {
    slot: Arc<Slot>,
    thread: Mutex<Option<Thread>>,
}

/// One place: what nobody wrote yet is replaced by what is newer.
#[derive(Default)]
struct Slot {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    newest: Option<Vec<u8>>,
    /// How often something was put here.
    puts: u64,
    ended: bool,
}

impl Keeper {
    fn start(claim: Arc<Claim>) -> Result<Self> {
        let slot = Arc::new(Slot::default());
        let shared = slot.clone();
        let thread = thread::spawn("control", move || shared.serve(&claim))?;
        Ok(Self { slot, thread: Mutex::new(Some(thread)) })
    }

    fn put(&self, bytes: Vec<u8>) {
        let mut waiting = sync::lock(&self.slot.waiting);
        waiting.newest = Some(bytes);
        waiting.puts += 1;
        self.slot.changed.notify_one();
    }

    fn finish(&self, deadline: Instant) {
        sync::lock(&self.slot.waiting).ended = true;
        self.slot.changed.notify_one();
        let thread = sync::lock(&self.thread).take();
        if thread.is_some_and(|thread| !thread.join_until(deadline)) {
            tracing::error!("the disk did not take the last commands in time");
        }
    }
}

impl Slot {
    fn serve(&self, claim: &Claim) {
        let file = claim.folder().join(FILE);
        let mut told = false;
        while let Some((bytes, puts)) = self.take() {
            match claim.hold().and_then(|()| whole::write(&file, &bytes)) {
                Ok(()) => told = false,
                Err(error) => {
                    // In force all the same, until the next start.
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("commands are not kept for now: {}", error.chain());
                    }
                    if !self.give_back(bytes, puts) {
                        return;
                    }
                }
            }
        }
    }

    /// Waits for what is to be written; `None`: there will be nothing any more.
    fn take(&self) -> Option<(Vec<u8>, u64)> {
        let mut waiting = sync::lock(&self.waiting);
        loop {
            if let Some(bytes) = waiting.newest.take() {
                return Some((bytes, waiting.puts));
            }
            if waiting.ended {
                return None;
            }
            waiting = sync::wait(&self.changed, waiting);
        }
    }

    /// What could not be written waits for another try, or for what is newer; `false`: it was the last one.
    fn give_back(&self, bytes: Vec<u8>, puts: u64) -> bool {
        let mut waiting = sync::lock(&self.waiting);
        if waiting.ended && waiting.puts == puts {
            return false;
        }
        waiting.newest.get_or_insert(bytes);
        let until = Instant::now() + RETRY;
        while !waiting.ended && waiting.puts == puts {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting = sync::wait_timeout(&self.changed, waiting, left);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Input;

    fn camera(id: &str, prompt: &str) -> CameraConfig {
        CameraConfig::new(CameraId::new(id).unwrap(), Input::Uri("rtsp://cam/1".into()), Prompt::new(prompt).unwrap())
    }

    #[test]
    fn commands_outlive_a_restart_but_not_an_edit() {
        let folder = tempfile::tempdir().unwrap();
        let state = claim(&folder.path().join("state"));
        let (gate, yard) = (camera("gate", "detect cat"), CameraConfig { enabled: false, ..camera("yard", "detect dog") });
        let steer = Steer::new(&[gate.clone(), yard.clone()], Some(&state)).unwrap();
        let prompt = Prompt::new("detect bus").unwrap();
        let told = steer.steer(&gate.id, &Command::Prompt(prompt.clone())).unwrap();
        assert!(told.prompt == prompt && told.enabled && *steer.asked(&gate).prompt() == prompt);
        assert!(!steer.steer(&gate.id, &Command::Detect(false)).unwrap().enabled && !steer.asked(&gate).detects());
        for unknown in [yard.id.clone(), CameraId::new("nowhere").unwrap()] {
            assert!(steer.steer(&unknown, &Command::Detect(true)).is_err(), "{unknown}");
        }

        steer.finish(soon());

        let kept = |camera: &CameraConfig| Steer::new(std::slice::from_ref(camera), Some(&state)).unwrap().asked(camera);
        let again = kept(&gate);
        assert!(*again.prompt() == prompt && !again.detects());
        let written = fs::read(state.folder().join(FILE)).unwrap();
        let edited = camera("gate", "detect horse");
        let anew = kept(&edited);
        assert!(anew.prompt().text() == "detect horse" && anew.detects());
        let as_before = kept(&gate);
        assert!(as_before.prompt().text() == "detect cat" && as_before.detects(), "the edit was taken back, the command stays gone");

        fs::write(state.folder().join(FILE), written).unwrap();
        assert_eq!(kept(&yard).prompt().text(), "detect dog");
        assert_eq!(on_disk(state.folder()), "{}", "of a camera that is gone");
        fs::write(state.folder().join(FILE), "{").unwrap();
        assert_eq!(kept(&gate).prompt().text(), "detect cat");
    }

    #[test]
    fn another_configuration_overrules_commands_only_where_the_prompt_is_edited() {
        let folder = tempfile::tempdir().unwrap();
        let state = claim(folder.path());
        let [gate, yard] = ["gate", "yard"].map(|id| camera(id, "detect cat"));
        let steer = Steer::new(&[gate.clone(), yard.clone()], Some(&state)).unwrap();
        let before = steer.asked(&gate);
        for id in [&gate.id, &yard.id] {
            steer.steer(id, &Command::Prompt(Prompt::new("detect bus").unwrap())).unwrap();
            steer.steer(id, &Command::Detect(false)).unwrap();
        }
        let new = camera("new", "detect dog");
        let off = CameraConfig { enabled: false, ..yard.clone() };
        steer.adopt(&[gate.clone(), off.clone(), new.clone()]);
        let asks = |camera: &CameraConfig| (steer.asked(camera).prompt().text().to_owned(), steer.asked(camera).detects());
        assert_eq!(
            [asks(&gate), asks(&off), asks(&new)],
            [("detect bus".into(), false), ("detect bus".into(), false), ("detect dog".into(), true)]
        );
        assert!(steer.steer(&yard.id, &Command::Detect(true)).is_err(), "it is disabled");
        assert!(steer.steer(&new.id, &Command::Detect(true)).unwrap().enabled);
        // Switched on, it is as it was commanded to be; edited, it is as it is written; gone, it is forgotten.
        let edited = camera("gate", "detect horse");
        steer.adopt(&[edited.clone(), yard.clone()]);
        assert_eq!([asks(&edited), asks(&yard)], [("detect horse".into(), true), ("detect bus".into(), false)]);
        assert_eq!(before.prompt().text(), "detect horse", "whoever asks already learns it");
        assert!(steer.steer(&new.id, &Command::Detect(true)).is_err());
        steer.adopt(&[gate.clone(), yard.clone()]);
        assert_eq!(asks(&gate), ("detect cat".into(), true), "the edit was taken back, the command stays gone");
        steer.finish(soon());
        let written = on_disk(folder.path());
        assert!(written.contains("yard") && !written.contains("gate") && !written.contains("new"), "{written}");
    }

    #[test]
    fn in_the_folder_of_another_process_commands_are_neither_found_nor_kept() {
        let folder = tempfile::tempdir().unwrap();
        let gate = camera("gate", "detect cat");
        let first = claim(folder.path());
        let order = |state: &Arc<Claim>, prompt: &str| {
            let steer = Steer::new(std::slice::from_ref(&gate), Some(state)).unwrap();
            let before = steer.asked(&gate).prompt().text().to_owned();
            steer.steer(&gate.id, &Command::Prompt(Prompt::new(prompt).unwrap())).unwrap();
            assert_eq!(steer.asked(&gate).prompt().text(), prompt, "in force all the same");
            steer.finish(soon());
            before
        };
        assert_eq!(order(&first, "detect bus"), "detect cat");
        let second = claim(folder.path());
        assert_eq!(order(&second, "detect dog"), "detect cat");
        drop(first);
        assert!(second.hold().is_ok());
        assert_eq!(order(&second, "detect horse"), "detect cat");
        drop(second);
        assert_eq!(order(&claim(folder.path()), "detect car"), "detect bus");
    }

    fn claim(folder: &Path) -> Arc<Claim> {
        Arc::new(Claim::new(folder))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn on_disk(state: &Path) -> String {
        fs::read_to_string(state.join(FILE)).unwrap_or_default()
    }

    #[test]
    fn a_disk_that_does_not_take_a_command_gets_the_newest_later() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::write(&state, "in the way").unwrap();
        let gate = camera("gate", "detect cat");
        let steer = Steer::new(std::slice::from_ref(&gate), Some(&claim(&state))).unwrap();
        let order = |prompt: &str| steer.steer(&gate.id, &Command::Prompt(Prompt::new(prompt).unwrap())).unwrap();
        assert_eq!((order("detect bus").prompt.text(), steer.asked(&gate).prompt().text()), ("detect bus", "detect bus"));
        std::thread::sleep(Duration::from_millis(50));
        assert!(state.is_file());
        fs::remove_file(&state).unwrap();
        order("detect dog");
        let deadline = soon();
        while !on_disk(&state).contains("detect dog") {
            assert!(Instant::now() < deadline, "{}", on_disk(&state));
            std::thread::sleep(Duration::from_millis(5));
        }

        // What could not be written is tried once more at the end.
        fs::remove_dir_all(&state).unwrap();
        fs::write(&state, "in the way").unwrap();
        order("detect horse");
        std::thread::sleep(Duration::from_millis(50));
        fs::remove_file(&state).unwrap();
        steer.finish(soon());
        assert!(on_disk(&state).contains("detect horse"));
    }

    /// A pipe that nobody reads stands for a disk that hangs.
    #[test]
    fn a_disk_that_hangs_holds_up_neither_a_command_nor_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("control.new");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let gate = camera("gate", "detect cat");
        let steer = Steer::new(std::slice::from_ref(&gate), Some(&claim(folder.path()))).unwrap();
        let begin = Instant::now();
        for detect in [true, false] {
            steer.steer(&gate.id, &Command::Detect(detect)).unwrap();
        }
        assert!(!steer.asked(&gate).detects());
        steer.finish(Instant::now() + Duration::from_millis(200));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        // Lets the thread go.
        fs::remove_file(folder.path().join(FILE)).ok();
        drop(fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap());
    }
}
