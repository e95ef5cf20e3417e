//! What changes while the daemon runs: each camera's prompt, and whether it is looked at. What commands change is kept in
//! the state folder, so that a restart forgets nothing; a prompt that is edited in the configuration wins over an older
//! command.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::base::error::{Context, Error, Kind, Result};
use crate::config::CameraConfig;
use crate::mqtt::{Command, Steering, Watched};
use crate::types::{CameraId, CameraState, Prompt};

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
        lock(&self.prompt).clone()
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
    cameras: BTreeMap<CameraId, Camera>,
    file: Option<PathBuf>,
    orders: Mutex<BTreeMap<String, Order>>,
}

struct Camera {
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
    /// For these cameras; with `state` a folder in which earlier commands are found and later ones kept.
    pub fn new(cameras: &[CameraConfig], state: Option<&Path>) -> Self {
        let file = state.map(|folder| folder.join(FILE));
        let orders = file.as_deref().map(read).unwrap_or_default();
        let cameras: BTreeMap<CameraId, Camera> = cameras
            .iter()
            .map(|camera| {
                let asked = Asked::of(camera);
                let order = orders.get(camera.id.as_str()).filter(|order| order.configured == camera.prompt.text());
                if let Some(prompt) = order.and_then(|order| Prompt::new(order.prompt.as_deref()?).ok()) {
                    tracing::info!(camera = %camera.id, "asked {:?}, as a command has it", prompt.text());
                    *lock(&asked.prompt) = Arc::new(prompt);
                }
                if let Some(detect) = order.and_then(|order| order.detect) {
                    asked.detect.store(detect && camera.enabled, Ordering::Release);
                }
                (camera.id.clone(), Camera { configured: camera.prompt.clone(), enabled: camera.enabled, asked })
            })
            .collect();
        Self { cameras, file, orders: Mutex::new(orders) }
    }

    /// A camera's prompt and whether it is looked at; as configured where it is not known.
    pub fn asked(&self, camera: &CameraConfig) -> Asked {
        self.cameras.get(&camera.id).map_or_else(|| Asked::of(camera), |known| known.asked.clone())
    }

    /// Every camera as its readers are to be told of it.
    pub fn watched(&self) -> Vec<Watched> {
        self.cameras.iter().map(|(id, camera)| watched(id, camera)).collect()
    }

    fn keep(&self, camera: &CameraId, configured: &Prompt, command: &Command) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut orders = lock(&self.orders);
        let order = orders.entry(camera.as_str().to_owned()).or_default();
        if order.configured != configured.text() {
            *order = Order { configured: configured.text().to_owned(), ..Order::default() };
        }
        match command {
            Command::Prompt(prompt) => order.prompt = Some(prompt.text().to_owned()),
            Command::Detect(detect) => order.detect = Some(*detect),
        }
        write(file, &orders)
    }
}

impl Steering for Steer {
    fn steer(&self, camera: &CameraId, command: &Command) -> Result<Watched> {
        let known = self.cameras.get(camera).filter(|known| known.enabled);
        let known = known.ok_or_else(|| Error::new(Kind::Input, format!("{camera} is no enabled camera of the configuration")))?;
        match command {
            Command::Prompt(prompt) => *lock(&known.asked.prompt) = Arc::new(prompt.clone()),
            Command::Detect(detect) => known.asked.detect.store(*detect, Ordering::Release),
        }
        // In force all the same, until the next start.
        if let Err(error) = self.keep(camera, &known.configured, command) {
            tracing::warn!(%camera, "a command is not kept: {}", error.chain());
        }
        Ok(watched(camera, known))
    }
}

fn watched(id: &CameraId, camera: &Camera) -> Watched {
    Watched { id: id.clone(), prompt: (*camera.asked.prompt()).clone(), enabled: camera.asked.detects() }
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

/// Beside it and then in its place, so that no half file is ever there.
fn write(file: &Path, orders: &BTreeMap<String, Order>) -> Result<()> {
    let fail = || format!("{} cannot be written", file.display());
    let bytes = serde_json::to_vec_pretty(orders).context(Kind::Internal, fail)?;
    let beside = file.with_extension("new");
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).context(Kind::Io, fail)?;
    }
    let mut new = File::create(&beside).context(Kind::Io, fail)?;
    new.write_all(&bytes).and_then(|()| new.sync_all()).and_then(|()| fs::rename(&beside, file)).context(Kind::Io, fail)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        let state = folder.path().join("state");
        let (gate, yard) = (camera("gate", "detect cat"), CameraConfig { enabled: false, ..camera("yard", "detect dog") });
        let steer = Steer::new(&[gate.clone(), yard.clone()], Some(&state));
        let prompt = Prompt::new("detect bus").unwrap();
        let told = steer.steer(&gate.id, &Command::Prompt(prompt.clone())).unwrap();
        assert!(told.prompt == prompt && told.enabled && *steer.asked(&gate).prompt() == prompt);
        assert!(!steer.steer(&gate.id, &Command::Detect(false)).unwrap().enabled && !steer.asked(&gate).detects());
        for unknown in [yard.id.clone(), CameraId::new("nowhere").unwrap()] {
            assert!(steer.steer(&unknown, &Command::Detect(true)).is_err(), "{unknown}");
        }

        let again = Steer::new(std::slice::from_ref(&gate), Some(&state)).asked(&gate);
        assert!(*again.prompt() == prompt && !again.detects());
        let edited = camera("gate", "detect horse");
        let anew = Steer::new(std::slice::from_ref(&edited), Some(&state)).asked(&edited);
        assert!(anew.prompt().text() == "detect horse" && anew.detects());
        fs::write(state.join(FILE), "{").unwrap();
        assert_eq!(Steer::new(std::slice::from_ref(&gate), Some(&state)).asked(&gate).prompt().text(), "detect cat");
    }
}
