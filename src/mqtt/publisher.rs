//! The handle of the stages that publish: what they say becomes payloads on the desk, and what the broker says, commands.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use crate::base::clock::Utc;
use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::sync;
use crate::config::Durable;
use crate::mqtt::cameras::{Cameras, Payloads, Watched};
use crate::mqtt::control::{Command, Control, Heard, Steering};
use crate::mqtt::discovery::Lacks;
use crate::mqtt::earlier::Told;
use crate::mqtt::health::Health;
use crate::mqtt::link::Incoming;
use crate::mqtt::outbox::{Lane, Why};
use crate::mqtt::payload::{self, Context};
use crate::mqtt::pending::Desk;
use crate::mqtt::retained::Stage;
use crate::mqtt::topic::Topics;
use crate::mqtt::trouble::Quiet;
use crate::mqtt::wire::PACKET_OVERHEAD;
use crate::mqtt::{OWN_PACKET, discovery, stats};
use crate::types::{CameraId, CameraState, CameraStatus, Event, Looked, Track};

/// A topic of ours has no more bytes: a prefix of 200, a camera of 63, and a label.
const LONGEST_TOPIC: usize = 800;

/// Puts messages on the desk. Never blocks on the network and never fails; clones share the desk.
#[derive(Clone)]
pub struct Publisher(pub(super) Arc<Inner>);

/// What the handles share.
pub(super) struct Inner {
    pub(super) context: Context,
    /// Which records are worth a place on disk.
    pub(super) durable: Durable,
    pub(super) topics: Topics,
    /// A larger packet would cost the connection, and its neighbours with it: it is refused before. Bytes.
    pub(super) max_packet: usize,
    /// What the broker takes, as it said last; bytes.
    pub(super) broker_limit: Arc<AtomicUsize>,
    pub(super) metrics: Metrics,
    /// Home Assistant's first topic level; `None`: it is told nothing.
    pub(super) discovery: Option<String>,
    /// `None`: commands are not heard.
    pub(super) control: Option<Mutex<Control>>,
    /// Who obeys them.
    pub(super) steering: OnceLock<Arc<dyn Steering>>,
    /// Held while one is obeyed.
    pub(super) commands: Mutex<()>,
    /// Pictures of objects are published.
    pub(super) snapshots: bool,
    pub(super) cameras: Mutex<Cameras>,
    pub(super) lanes: Lanes,
    pub(super) quiet: Mutex<Quiet>,
    pub(super) desk: Arc<Desk>,
    pub(super) health: Arc<Health>,
}

impl Publisher {
    /// Queues the `detections` object of an analysed frame, in the order of the calls, and publishes the counts that it
    /// changed.
    pub fn looked(&self, looked: &Looked) {
        let camera = &looked.frame.camera;
        self.counted(looked);
        let payload = payload::looked(looked, &self.0.context);
        self.record(&self.lane(camera), payload, self.0.durable == Durable::All, || format!("seq {}", looked.seq));
    }

    /// Queues the `events` object of a change, in the order of the calls, and behind it the same as Frigate's readers know it.
    pub fn event(&self, event: &Event) {
        let lane = self.0.lanes.of(&self.0.topics.events(&event.camera));
        let (durable, what) = (self.0.durable != Durable::None, || format!("track {}", event.track.id));
        self.record(&lane, payload::event(event), durable, what);
        if let Some(topic) = self.0.topics.frigate_events() {
            self.record(&self.0.lanes.at(&topic, event.camera.as_str()), payload::frigate(event), durable, what);
        }
    }

    fn record(&self, lane: &Arc<Lane>, payload: Vec<u8>, durable: bool, what: impl Fn() -> String) {
        let size = lane.topic.len() + payload.len() + PACKET_OVERHEAD;
        let most = self.most();
        if size > most {
            lane.drop_one(Why::Large);
            let line = format!(
                "a message to {} is too large; must be at most {most} bytes, by mqtt.max_packet or the broker's own limit",
                lane.topic
            );
            self.warn(&line, &format!("{} has {size} bytes", what()));
            return;
        }
        let dropped = self.0.desk.lock().record(lane, payload, durable);
        self.0.desk.bell.notify_one();
        self.0.desk.nudge();
        if dropped > 0 {
            self.warn("the queue for the broker is full: the oldest messages are dropped", &format!("at {}", lane.topic));
        }
    }

    /// Publishes a camera's state, retained. While the broker is away only the newest is kept.
    pub fn camera_status(&self, status: &CameraStatus) {
        self.cameras().rate(&status.camera, status.fps);
        let topic = self.0.topics.camera_status(&status.camera);
        self.retain(Stage::State, vec![(topic, payload::camera_status(status))]);
    }

    /// Where the picture of a label's newest object is; `None`: nowhere, for nobody asked for the label, or for pictures.
    pub fn snapshot_topic(&self, camera: &CameraId, label: &str) -> Option<String> {
        let cameras = self.cameras();
        let slug = cameras.slug(camera, label).filter(|_| self.0.snapshots)?;
        Some(self.0.topics.snapshot(camera, slug))
    }

    /// The most bytes of a picture that fit into a message.
    pub fn picture_room(&self) -> usize {
        self.most().saturating_sub(LONGEST_TOPIC + PACKET_OVERHEAD)
    }

    /// Publishes a picture of the newest object of a label, retained, in place of the one before. Returns whether it can be
    /// had there: not so where nobody asks for the label any more, or it is too large.
    pub fn snapshot(&self, camera: &CameraId, label: &str, jpeg: &[u8]) -> bool {
        let mut cameras = self.cameras();
        let slug = cameras.slug(camera, label).filter(|_| self.0.snapshots && jpeg.len() <= self.picture_room());
        let Some(slug) = slug.map(str::to_owned) else { return false };
        cameras.pictured(camera, &slug);
        let topics = self.0.topics.snapshots(camera, &slug);
        // Under the lock of the cameras, so that a label that goes meanwhile is cleared behind it.
        let mut pending = self.0.desk.lock();
        topics.into_iter().for_each(|topic| pending.retain(Stage::Picture, topic, jpeg.to_vec()));
        drop(pending);
        self.0.desk.bell.notify_one();
        true
    }

    /// The largest packet that we send and the broker takes, bytes.
    fn most(&self) -> usize {
        self.0.max_packet.min(self.0.broker_limit.load(Ordering::Relaxed))
    }

    /// Publishes how many of each label are in a camera's zones, retained, where that changed. `tracks` are the objects that were
    /// told of and have not ended.
    pub fn tracked<'t>(&self, camera: &CameraId, tracks: impl Iterator<Item = &'t Track>) {
        // Held until they are on the desk, so that what is counted later is also published later.
        let mut cameras = self.cameras();
        let changed = cameras.tracked(camera, tracks, &self.0.topics);
        if !changed.is_empty() {
            self.retain(Stage::State, changed);
        }
    }

    /// Takes in which cameras there are, before the first is watched.
    pub(super) fn know<'c>(&self, ids: impl Iterator<Item = &'c CameraId>) {
        let mut cameras = self.cameras();
        ids.for_each(|id| cameras.know(id));
    }

    /// Publishes what a camera is asked and whether it is looked at, retained, with zeros for labels that are new. May be
    /// called again when that changes: counts and entities of labels no longer asked for are then cleared.
    pub fn watch(&self, watched: &Watched) {
        let Inner { topics, context, discovery, .. } = &*self.0;
        let mut cameras = self.cameras();
        // It may have gone in the moment in which a command was obeyed.
        if !cameras.knows(&watched.id) {
            return;
        }
        let state = cameras.watch(watched, topics);
        if let Some(prefix) = discovery {
            let (labels, gone) = cameras.labels(&watched.id);
            let control = self.0.control.is_some();
            let (spots, left) = cameras.zones(&watched.id).map(|zones| (zones.spots(), zones.gone())).unwrap_or_default();
            let device = discovery::Device {
                camera: &watched.id,
                topics,
                model: &context.model,
                labels,
                gone: &gone,
                spots,
                left: &left,
                control,
                snapshots: self.0.snapshots,
            };
            let topic = discovery::topic(prefix, topics, &watched.id);
            let (config, lacks) = discovery::fitted(&device, OWN_PACKET.saturating_sub(topic.len() + PACKET_OVERHEAD));
            if lacks != Lacks::Nothing {
                let detail = format!("camera {} has {} of them", watched.id, spots.len());
                self.warn("Home Assistant is not told of the zones: with so many zones and labels no message holds all entities", &detail);
            }
            if lacks == Lacks::Removals {
                let detail = format!("camera {} had {} of them", watched.id, left.len());
                self.warn(
                    "Home Assistant keeps entities of zones that are gone, for no message holds them all; remove them there",
                    &detail,
                );
            }
            self.retain(Stage::Discovery, vec![(topic, config)]);
        }
        self.retain(Stage::State, state);
    }

    /// Publishes a camera of the start, or one that comes: that it is being connected to, and what it is asked.
    pub(super) fn begin(&self, watched: &Watched) {
        self.lane(&watched.id);
        let (camera, state, reason, since) = (watched.id.clone(), CameraState::Connecting, String::new(), Utc::now());
        self.camera_status(&CameraStatus { camera, state, reason, since, fps: 0.0 });
        self.watch(watched);
    }

    /// A camera comes while the link is there, and is told of as those of the start were.
    pub fn enter(&self, watched: &Watched) {
        let mut cameras = self.cameras();
        // Where a zone is called as it, what was told of the zone goes first.
        let changed = cameras.enter(&watched.id, &self.0.topics);
        self.retain(Stage::State, changed);
        drop(cameras);
        self.begin(watched);
    }

    /// A camera goes: all that is retained of it is cleared, its pictures and Home Assistant's device included. Records of it
    /// that wait still go out.
    pub fn leave(&self, camera: &CameraId) {
        let Inner { topics, discovery, desk, .. } = &*self.0;
        let mut cameras = self.cameras();
        let (pictures, changed) = cameras.leave(camera, topics);
        let mut pending = desk.lock();
        let device = discovery.as_ref().map(|prefix| discovery::topic(prefix, topics, camera));
        let below = topics.below(camera);
        let told = pending.retained().topics().map(|(_, topic)| topic).filter(|topic| below.iter().any(|below| topic.starts_with(below)));
        let told: Vec<String> = told.map(str::to_owned).chain(pictures).collect();
        device.into_iter().for_each(|topic| pending.retain(Stage::Discovery, topic, Vec::new()));
        told.into_iter().for_each(|topic| pending.retain(Stage::State, topic, Vec::new()));
        drop(pending);
        // A zone that is called as it was has its topics now.
        self.retain(Stage::State, changed);
    }

    /// Takes in what earlier runs told of a camera that is watched from now on.
    pub(super) fn earlier(&self, camera: &CameraId, told: &Told) {
        let mut cameras = self.cameras();
        for (_, topic) in told.topics() {
            if let Some((_, slug)) = self.0.topics.counted(topic).filter(|(id, _)| *id == camera.as_str()) {
                cameras.earlier(camera, slug);
            }
            if let Some((_, zone, slug)) = self.0.topics.zone_counted(topic).filter(|(id, ..)| *id == camera.as_str()) {
                cameras.earlier_zone(camera, zone, slug);
            }
            if let Some((_, slug)) = self.0.topics.pictured(topic).filter(|(id, _)| self.0.snapshots && *id == camera.as_str()) {
                cameras.pictured(camera, slug);
            }
        }
    }

    /// Where earlier runs left pictures of labels that are still asked for: they stay until there are newer ones.
    pub(super) fn pictures(&self) -> Vec<String> {
        self.cameras().pictures(&self.0.topics)
    }

    /// Clears what earlier runs told and nobody tells any more; all that is told must be on the desk. `always` are the
    /// topics of the link itself.
    pub(super) fn clear(&self, told: &Told, always: &[String]) {
        let mut pending = self.0.desk.lock();
        let gone: Vec<_> = told.topics().filter(|(_, topic)| !pending.retained().holds(topic) && !always.contains(topic)).collect();
        gone.iter().for_each(|(stage, topic)| pending.retain(*stage, (*topic).clone(), Vec::new()));
        drop(pending);
        if !gone.is_empty() {
            tracing::info!(topics = gone.len(), "what earlier runs left on the broker and is told no more is cleared");
        }
    }

    /// How many records are not on disk yet that are to be.
    pub fn unsaved(&self) -> usize {
        self.0.desk.lock().outbox().unsaved_count()
    }

    /// The first levels of every topic.
    pub fn prefix(&self) -> &str {
        self.0.topics.prefix()
    }

    /// How many records wait for the broker, in memory and on disk.
    pub fn waiting(&self) -> usize {
        self.0.desk.lock().depth().0
    }

    /// Has a command obeyed, from wherever it came, and tells the camera's readers.
    ///
    /// # Errors
    /// When there is no such camera, it is not open, or the command came too early.
    pub fn command(&self, camera: &CameraId, command: &Command) -> Result<Watched> {
        let too_early = || Error::new(Kind::Internal, "it came too early");
        let steering = self.0.steering.get().ok_or_else(too_early)?;
        // One at a time: what is told last is what is in force.
        let _alone = sync::lock(&self.0.commands);
        let watched = steering.steer(camera, command)?;
        self.watch(&watched);
        Ok(watched)
    }

    /// Why there is no link to the broker, in a sentence; `None` while there is one.
    pub fn trouble(&self) -> Option<String> {
        self.0.health.trouble()
    }

    fn counted(&self, looked: &Looked) {
        // Held until they are on the desk, so that what is counted later is also published later.
        let mut cameras = self.cameras();
        let changed = cameras.looked(&looked.frame.camera, &looked.answer.detections, &self.0.topics);
        self.retain(Stage::State, changed);
    }

    fn retain(&self, stage: Stage, payloads: Payloads) {
        for (topic, payload) in payloads {
            let size = topic.len() + payload.len() + PACKET_OVERHEAD;
            if size > OWN_PACKET {
                self.warn(&format!("{topic} is too large for a message; must be at most {OWN_PACKET} bytes"), &format!("it has {size}"));
                continue;
            }
            self.0.desk.lock().retain(stage, topic, payload);
        }
        self.0.desk.bell.notify_one();
    }

    /// Home Assistant forgets what it was told when it starts, and says so when it is there.
    pub(super) fn incoming(&self, message: Incoming<'_>) {
        let birth = self.0.discovery.as_ref().is_some_and(|prefix| discovery::birth_topic(prefix) == message.topic);
        // An old message says nothing new: whoever connects publishes everything anyway.
        if birth && !message.retain && message.payload == discovery::BIRTH {
            tracing::debug!("Home Assistant has started: all state is published once more");
            self.0.desk.lock().again();
            self.0.desk.bell.notify_one();
            return;
        }
        let Some(control) = &self.0.control else { return };
        let heard = sync::lock(control).hear(&self.0.topics, &message, |camera| self.cameras().knows(camera), Instant::now());
        match heard {
            Heard::Other => {}
            Heard::Refused(why) => self.warn("a command over MQTT is refused", &why),
            Heard::Order(camera, command) => self.obey(&camera, &command),
        }
    }

    fn obey(&self, camera: &CameraId, command: &Command) {
        match self.command(camera, command) {
            Ok(_) => tracing::info!(%camera, "told over MQTT: {command}"),
            Err(error) => self.warn("a command over MQTT is refused", &error.chain()),
        }
    }

    pub(super) fn stats(&self) -> (String, Vec<u8>) {
        let depth = self.0.desk.lock().depth();
        (self.0.topics.stats(), stats::stats(&self.cameras(), &self.0.metrics, depth, Utc::now()))
    }

    pub(super) fn end(&self, grace: Duration) {
        let mut cameras = self.cameras();
        let zeros = cameras.end(&self.0.topics);
        self.0.desk.close(grace, zeros);
    }

    fn cameras(&self) -> MutexGuard<'_, Cameras> {
        sync::lock(&self.0.cameras)
    }

    pub(super) fn lane(&self, camera: &CameraId) -> Arc<Lane> {
        self.0.lanes.of(&self.0.topics.detections(camera))
    }

    fn warn(&self, line: &str, detail: &str) {
        if sync::lock(&self.0.quiet).lets(line, Instant::now()) {
            tracing::warn!("{line} ({detail})");
        }
    }
}

/// Topic and camera.
type Key = (String, String);

/// Every lane by its topic and camera, made when it is first asked for. Clones share them.
#[derive(Clone)]
pub(super) struct Lanes {
    metrics: Metrics,
    known: Arc<Mutex<HashMap<Key, Arc<Lane>>>>,
}

impl Lanes {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self { metrics: metrics.clone(), known: Arc::default() }
    }

    /// The lane of `P/<camera>/…`; of a topic from before another prefix, too. What comes back from the disk on Frigate's
    /// topic of all cameras is counted under its first level, for the topic is all that is known of it.
    pub(super) fn of(&self, topic: &str) -> Arc<Lane> {
        self.at(topic, topic.rsplit('/').nth(1).unwrap_or_default())
    }

    /// The lane of a camera's records on a topic that need not name it.
    fn at(&self, topic: &str, camera: &str) -> Arc<Lane> {
        let new = || Arc::new(Lane::new(topic.to_owned(), camera, &self.metrics));
        sync::lock(&self.known).entry((topic.to_owned(), camera.to_owned())).or_insert_with(new).clone()
    }
}
