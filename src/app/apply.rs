//! Putting another configuration in force. All that could be found out beforehand was; what fails here costs its camera, which
//! says so in its state, and nothing else. Cameras that are the same are not touched.

use std::time::{Duration, Instant};

use crate::app::camera::{Camera, Running};
use crate::app::daemon::Daemon;
use crate::app::reload::{Changed, Plan, Prepared};
use crate::app::{log, recorded, results};
use crate::base::error::Error;
use crate::base::shutdown::Shutdown;
use crate::config::CameraConfig;
use crate::types::{CameraId, CameraState, Encoded};

/// For sources to end, before others begin in their places: a camera may have room for one viewer only.
const GRACE: Duration = Duration::from_secs(4);

impl Daemon {
    /// Puts a configuration in force.
    pub(super) fn apply(&mut self, Prepared { config, plan }: Prepared, shutdown: &Shutdown) {
        let before = std::mem::replace(&mut self.config, config);
        if plan.is_empty() {
            // Copies of secrets are made by the service manager, at a start.
            let copies = if std::env::var_os("CREDENTIALS_DIRECTORY").is_some() {
                "; files in /etc/palisade/credentials are those of the start"
            } else {
                ""
            };
            tracing::info!("the configuration was read anew; nothing has changed{copies}");
            return;
        }
        self.retire(&plan, shutdown);
        plan.removed.iter().for_each(|id| self.remove(id));
        self.wiring.steer.adopt(&self.config.cameras);
        for changed in &plan.changed {
            let was = before.cameras.iter().find(|camera| camera.id == changed.camera.id);
            self.change(changed, was);
        }
        plan.added.iter().for_each(|camera| self.add(camera));
        if plan.level
            && let Err(error) = log::set_level(&self.config.log.level)
        {
            tracing::warn!("log.level stays as it was: {}", error.chain());
        }
        let list = |ids: Vec<&CameraId>| ids.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(" ");
        tracing::info!(
            added = list(plan.added.iter().map(|camera| &camera.id).collect()),
            changed = list(plan.changed.iter().map(|changed| &changed.camera.id).collect()),
            removed = list(plan.removed.iter().collect()),
            kept = plan.kept.len(),
            "the configuration was read anew and is in force"
        );
    }

    /// Ends the sources of cameras that go, and of those whose sources begin anew. From here on nothing is heard of them.
    fn retire(&mut self, plan: &Plan, shutdown: &Shutdown) {
        let changed = plan.changed.iter().filter(|changed| changed.reconnects).map(|changed| &changed.camera.id);
        let (mut ending, mut tapes) = (Vec::<Running>::new(), Vec::new());
        for id in plan.removed.iter().chain(changed) {
            if let Some(running) = self.cameras.get_mut(id).and_then(|camera| camera.running.take()) {
                running.retire();
                tapes.extend(self.wiring.recorder.as_ref().and_then(|recorder| recorder.tape(id)));
                ending.push(running);
            }
        }
        let deadline = Instant::now() + GRACE;
        while !ending.iter().all(Running::is_finished) && Instant::now() < deadline && !shutdown.wait(Duration::from_millis(10)) {}
        // Their own word of that is not heard any more.
        tapes.iter().for_each(|tape| tape.take(Encoded::Lost));
        self.retired.extend(ending);
    }

    /// A camera goes: the ends of its objects are told, then all that is kept of it elsewhere is cleared.
    fn remove(&mut self, id: &CameraId) {
        self.results.leave(id);
        if let Some(recorder) = &self.wiring.recorder {
            recorder.leave(id);
        }
        if let Some(live) = &self.wiring.live {
            live.leave(id);
        }
        if let Some(board) = &self.wiring.board {
            board.remove(id);
        }
        if let Some(publisher) = &self.wiring.publisher {
            publisher.leave(id);
        }
        self.drafts.forget(id);
        self.cameras.remove(id);
    }

    /// A camera stays as another.
    fn change(&mut self, changed: &Changed, was: Option<&CameraConfig>) {
        let Changed { camera, reconnects, follows, records } = changed;
        if *records {
            self.record(camera);
        }
        if *follows {
            self.results.follow(&camera.id, results::follow(camera, &self.wiring.steer));
        }
        if let Some(board) = &self.wiring.board {
            board.opened(&camera.id, camera.enabled);
            board.watched(&self.wiring.steer.told(camera));
        }
        let told = |camera: &CameraConfig| (camera.prompt.clone(), camera.enabled, camera.tracking.zones.clone());
        if let Some(publisher) = &self.wiring.publisher
            && was.map(told) != Some(told(camera))
        {
            publisher.watch(&self.wiring.steer.told(camera));
        }
        if *reconnects {
            self.begin(camera);
        }
    }

    /// A camera comes.
    fn add(&mut self, camera: &CameraConfig) {
        self.record(camera);
        if let Some(live) = &self.wiring.live {
            live.enter(&camera.id);
        }
        if let Some(board) = &self.wiring.board {
            board.add(self.wiring.steer.told(camera), camera.enabled);
        }
        if let Some(publisher) = &self.wiring.publisher {
            publisher.enter(&self.wiring.steer.told(camera));
        }
        self.results.follow(&camera.id, results::follow(camera, &self.wiring.steer));
        self.cameras.insert(camera.id.clone(), self.wiring.place());
        self.begin(camera);
    }

    /// Has clips of a camera kept as it says.
    fn record(&self, camera: &CameraConfig) {
        let Some(recorder) = &self.wiring.recorder else { return };
        recorder.leave(&camera.id);
        if let Some(Err(error)) = recorded(camera).map(|recorded| recorder.enter(&recorded)) {
            tracing::error!(camera = %camera.id, "no clips are kept: {}", error.chain());
        }
    }

    /// Begins a camera's source.
    fn begin(&mut self, camera: &CameraConfig) {
        let Some(Camera { putter, running }) = self.cameras.get_mut(&camera.id) else { return };
        *running = self.wiring.start(camera.clone(), putter).unwrap_or_else(|error: Error| {
            let reason = error.chain();
            tracing::error!(camera = %camera.id, "it cannot be watched: {reason}");
            self.wiring.tell(camera, CameraState::Failed, reason);
            None
        });
    }
}
