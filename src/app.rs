//! Floor 5: the one place that knows every stage: builds them, wires them, and joins them in the order of the data.

pub mod bench;
pub mod check;
pub mod demo;
mod feed;
mod herald;
mod likeness;
pub mod log;
pub mod oneshot;
mod portrait;
pub mod serve;
pub mod topics;

mod paint;
mod results;
mod standing;
mod steer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

use crate::annotate::Annotator;
use crate::base::claim::Claim;
use crate::base::error::{Error, Kind, Result};
use crate::base::mailbox::mailbox;
use crate::base::metrics::Metrics;
use crate::base::shutdown::Shutdown;
use crate::base::systemd;
use crate::base::thread::{self, Thread};
use crate::config::{CameraConfig, Config, ModelConfig, OutputConfig, Record, RtspVideo};
use crate::console::{Back, Console, Late, Limits as ConsoleLimits, Ready, Screens};
use crate::detect::{self, Detector, Drafts, Guests, PaliGemmaDetector};
use crate::model::{self, HubOptions, Limits, LoadOptions, PaliGemma};
use crate::mqtt::{self, Mqtt, Patience, Watched};
use crate::sink::gallery::{Draw, Gallery, Rooms};
use crate::sink::history::History;
use crate::sink::record::{Recorded, Recorder, Tape};
use crate::sink::snapshot::SnapshotSink;
use crate::sink::video::{CustomSink, FileSink, Hls, Jpegs, Live, LiveSink, RtspSink};
use crate::sink::{Fanout, Sink};
use crate::source::{self, Decoders, Source};
use crate::types::{CameraId, Event};
use feed::{Ears, start_source};
use herald::Herald;
use paint::Brush;
use results::{Results, Told};
use standing::Standing;
use steer::Steer;

/// From the order to stop: how long a worker may finish its frame; an answer of a large model may take longer.
const WORKERS_GRACE: Duration = Duration::from_secs(2);

/// From the order to stop: when every sink has finished its files. The service manager waits ten seconds in all.
const SINKS_GRACE: Duration = Duration::from_millis(6500);

/// Between two words to the service manager that the main loop turns; the unit allows a minute.
const ALIVE: Duration = Duration::from_secs(15);

/// So many pipelines may hang: each holds memory, threads and a connection for ever.
const MOST_HANGING: u64 = 3;

/// From the order to stop: for answers that are under way over HTTP.
const CONSOLE_GRACE: Duration = Duration::from_millis(1500);

/// For the last messages and `offline`.
const MQTT_GRACE: Duration = Duration::from_millis(1500);

/// For the last rows of the history, once all has ended that there is to tell.
const HISTORY_GRACE: Duration = Duration::from_millis(500);

/// For the last commands to be on disk.
const CONTROL_GRACE: Duration = Duration::from_millis(500);

/// What the answers about a new object may take, beyond the time between looks.
const SLOW_ANSWERS: Duration = Duration::from_secs(10);

/// So much is held in memory ahead of a clip's begin, at most.
const MOST_LAG: Duration = Duration::from_secs(120);

/// From the order to stop: when all is over, whatever hangs.
const STOP_GRACE: Duration = Duration::from_millis(9900);

/// Runs until `shutdown`, or until every source has come to its end. Counts into `metrics`.
///
/// # Errors
/// When a stage cannot be started: a model that cannot be loaded, a sink that cannot be opened, a TLS file that cannot
/// be read. Once it runs, a lost camera, broker or sink is no error.
pub fn run(config: Config, shutdown: &Shutdown, metrics: &Metrics) -> Result<()> {
    source::init()?;
    let ids: Vec<CameraId> = config.cameras.iter().map(|camera| camera.id.clone()).collect();
    let annotator = Annotator::new()?;
    annotator.prepare(config.cameras.iter().flat_map(|camera| camera.prompt.labels()).map(String::as_str));
    let live = live(&config, &ids, &annotator, metrics)?;
    let sinks = open_sinks(&config.output, &ids, live.clone(), metrics)?;
    let recorder = open_recorder(&config, metrics)?;
    let rooms = config.gallery.as_ref().map(|gallery| Rooms::open(gallery, &ids, metrics)).transpose()?;
    let history = config.history.as_ref().map(|history| History::start(history, metrics)).transpose()?;
    let standing = Standing::default();
    let back = config.console.is_some().then(|| back(&config, &annotator, history.clone(), metrics));
    let console = open_console(&config, live.as_ref(), back.as_ref(), standing.ready(shutdown), metrics)?;
    let Some(model) = load_model(&config.model, shutdown)? else { return Ok(()) };
    let state = commands_folder(&config).map(|folder| Arc::new(Claim::new(&folder)));
    let steer = Arc::new(Steer::new(&config.cameras, state.as_ref().filter(|_| is_steered(&config)))?);
    if let Some(back) = &back {
        steer.shown_on(&back.board);
    }
    let run = back.as_ref().map_or_else(uuid::Uuid::new_v4, |back| back.run);
    let mqtt = start_mqtt(&config, state, &steer, mqtt::Context { model: model.name().to_owned(), run }, metrics)?;
    let outputs = Outputs { annotator, sinks, live, recorder, rooms, history, back };
    let daemon = Daemon::start(config, outputs, &model, mqtt, &steer, shutdown, metrics)?;
    standing.runs(&daemon.results);
    systemd::ready();
    systemd::status(&format!("watching {} cameras with {}", ids.len(), model.name()));
    tracing::info!(model = model.name(), cameras = ids.len(), "running");
    let ended = daemon.wait(shutdown);
    systemd::stopping();
    let begin = daemon.stop(shutdown, console);
    steer.finish((Instant::now() + CONTROL_GRACE).min(begin + STOP_GRACE));
    ended
}

/// What live video is told; `None` where none is asked for.
fn live(config: &Config, cameras: &[CameraId], annotator: &Annotator, metrics: &Metrics) -> Result<Option<Live>> {
    let output = &config.output;
    let served = output.rtsp.as_ref().is_some_and(|rtsp| rtsp.video == RtspVideo::Live);
    if !served && output.push.is_empty() && output.v4l2.is_empty() && config.console.is_none() {
        return Ok(None);
    }
    Live::new(cameras, output.encoder, Arc::new(Brush::new(annotator.clone())), metrics).map(Some)
}

fn open_sinks(config: &OutputConfig, cameras: &[CameraId], live: Option<Live>, metrics: &Metrics) -> Result<Vec<Box<dyn Sink>>> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if let Some(config) = &config.snapshots {
        sinks.push(Box::new(SnapshotSink::open(config.clone(), cameras)?));
    }
    if let Some(config) = &config.file {
        sinks.push(Box::new(FileSink::new(config.clone())?));
    }
    if let Some(config) = &config.rtsp {
        let shown = live.clone().filter(|_| config.video == RtspVideo::Live);
        sinks.push(Box::new(RtspSink::new(config.clone(), cameras, shown, metrics)?));
    }
    if let Some(live) = live {
        sinks.push(Box::new(LiveSink::start(config, live, metrics)?));
    }
    for (index, config) in config.custom.iter().enumerate() {
        sinks.push(Box::new(CustomSink::new(index, config.clone())?));
    }
    Ok(sinks)
}

/// What the console tells of; the cameras are as configured until earlier commands are read.
fn back(config: &Config, annotator: &Annotator, history: Option<History>, metrics: &Metrics) -> Back {
    let mut back = Back::new(annotator.clone(), Arc::new(check::faults), metrics);
    back.history = history;
    back.clips = config.record.as_ref().map(|record| record.dir.clone());
    back.snapshots = config.gallery.as_ref().map(|gallery| gallery.dir.clone());
    for camera in &config.cameras {
        let (id, prompt, zones) = (camera.id.clone(), camera.prompt.clone(), camera.tracking.zones.clone());
        back.board.add(Watched { id, prompt, enabled: camera.enabled, zones }, camera.enabled);
    }
    back
}

/// Answers from before the model is loaded on, which may take long.
fn open_console(config: &Config, live: Option<&Live>, back: Option<&Back>, ready: Ready, metrics: &Metrics) -> Result<Option<Console>> {
    let (Some(console), Some(live), Some(back)) = (config.console.clone(), live, back.cloned()) else { return Ok(None) };
    let screens = Screens { jpegs: Jpegs::new(live.clone(), metrics)?, hls: Hls::new(live.clone(), metrics)?, ready, back };
    Console::start(console, ConsoleLimits::default(), screens, metrics).map(Some)
}

/// Where commands are written down, and what else the broker's link keeps.
fn commands_folder(config: &Config) -> Option<PathBuf> {
    let steered = config.console.as_ref().filter(|console| console.control);
    match &config.mqtt {
        Some(mqtt) => mqtt.state_dir.clone(),
        None => steered.map(|console| console.state_dir.clone()),
    }
}

/// Whether anybody may steer.
fn is_steered(config: &Config) -> bool {
    config.mqtt.as_ref().is_some_and(|mqtt| mqtt.control) || config.console.as_ref().is_some_and(|console| console.control)
}

/// Where clips of some cameras are to be kept. An object is told of when it was seen often and long enough, and the model has
/// answered: so much earlier it was first seen.
fn open_recorder(config: &Config, metrics: &Metrics) -> Result<Option<Recorder>> {
    let Some(record) = &config.record else { return Ok(None) };
    let lag = |camera: &CameraConfig| {
        let looks = camera.interval * camera.tracking.confirm_looks;
        (camera.tracking.confirm + looks + SLOW_ANSWERS).min(MOST_LAG)
    };
    let kept = config.cameras.iter().filter(|camera| camera.enabled && camera.record == Record::Events);
    let kept: Vec<Recorded> = kept.map(|camera| Recorded { camera: camera.id.clone(), lag: lag(camera) }).collect();
    if kept.is_empty() { Ok(None) } else { Recorder::start(record.clone(), &kept, metrics).map(Some) }
}

/// Pictures of objects as files; events are told through it, behind the pictures that they name.
fn start_gallery(rooms: Rooms, draw: Draw, herald: Herald, metrics: &Metrics) -> Result<Gallery> {
    Gallery::start(rooms, draw, Box::new(move |event: &Event| herald.tell(event)), metrics)
}

/// Finds, downloads where need be, and loads the model; `None` when told to stop meanwhile. Reading a large model takes
/// longer than a stop may, so it is done in a thread that can be left behind.
fn load_model(config: &ModelConfig, shutdown: &Shutdown) -> Result<Option<PaliGemma>> {
    let (send, loaded) = bounded(1);
    let (config, flag) = (config.clone(), shutdown.clone());
    let loader = thread::spawn("load-model", move || {
        // Nobody listens any more when the daemon stops.
        send.send(read_model(&config, &flag)).ok();
    })?;
    while !shutdown.is_set() {
        match loaded.recv_timeout(Duration::from_millis(50)) {
            Ok(model) => return model.map(Some),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(Kind::Internal, "the model's loader panicked; this is a defect, please report it"));
            }
        }
    }
    loader.join_until(Instant::now() + WORKERS_GRACE);
    Ok(None)
}

fn read_model(config: &ModelConfig, shutdown: &Shutdown) -> Result<PaliGemma> {
    let mut hub = HubOptions::from_env();
    hub.shutdown = shutdown.clone();
    // Each step of a download asks the service manager for more time.
    hub.progress = Some(Arc::new(|_, _| systemd::extend_start(180)));
    let begin = Instant::now();
    let snapshot = model::resolve(&config.source, &hub)?;
    systemd::extend_start(300);
    let mut options = LoadOptions::new(config.device, config.dtype);
    options.progress = Some(Arc::new(|_, _| systemd::extend_start(180)));
    let model = PaliGemma::load(&snapshot, options)?;
    tracing::info!(model = model.name(), seconds = begin.elapsed().as_secs_f32(), "model loaded");
    Ok(model)
}

fn start_mqtt(
    config: &Config,
    state: Option<Arc<Claim>>,
    steer: &Arc<Steer>,
    context: mqtt::Context,
    metrics: &Metrics,
) -> Result<Option<Mqtt>> {
    let Some(mqtt) = config.mqtt.clone() else { return Ok(None) };
    let mqtt = mqtt::start_in(state, mqtt, &steer.watched(), context, metrics, Patience::default())?;
    mqtt.steer(steer.clone());
    Ok(Some(mqtt))
}

/// Where what was seen goes, beside the broker.
struct Outputs {
    annotator: Annotator,
    sinks: Vec<Box<dyn Sink>>,
    live: Option<Live>,
    recorder: Option<Recorder>,
    rooms: Option<Rooms>,
    history: Option<History>,
    back: Option<Back>,
}

/// The running stages, in the order of the data.
struct Daemon {
    sources: Vec<Source>,
    decoders: Decoders,
    workers: Vec<Thread>,
    results: Results,
    mqtt: Option<Mqtt>,
    history: Option<History>,
}

impl Daemon {
    fn start(
        config: Config,
        Outputs { annotator, sinks, live, recorder, rooms, history, back }: Outputs,
        model: &PaliGemma,
        mqtt: Option<Mqtt>,
        steer: &Arc<Steer>,
        shutdown: &Shutdown,
        metrics: &Metrics,
    ) -> Result<Self> {
        let publisher = mqtt.as_ref().map(Mqtt::publisher);
        let (putters, jobs) = mailbox(config.cameras.len());
        let max_batch = config.model.max_batch.unwrap_or_else(|| model.default_batch());
        let (send, found) = bounded(config.model.workers);
        let limits =
            Limits { max_new_tokens: config.model.max_new_tokens, min_score: config.model.min_score.clone(), suppress: Vec::new() };
        let drafts = Drafts::default();
        let detector = |_| Box::new(PaliGemmaDetector::new(model, limits.clone(), drafts.clone())) as Box<dyn Detector>;
        let detectors = (0..config.model.workers).map(detector).collect();
        let followed = results::follow(&config.cameras, steer);
        let tape = |camera: &CameraConfig| recorder.as_ref().and_then(|recorder| recorder.tape(&camera.id));
        let tapes: Vec<Option<Tape>> = config.cameras.iter().map(tape).collect();
        let drawn = config.gallery.as_ref().map(|gallery| likeness::draw(gallery, annotator.clone()));
        let board = back.as_ref().map(|back| back.board.clone());
        let herald = Herald { publisher: publisher.clone(), history: history.clone(), board: board.clone() };
        let gallery = rooms.zip(drawn).map(|(rooms, draw)| start_gallery(rooms, draw, herald.clone(), metrics)).transpose()?;
        let told = Told { publisher: publisher.clone(), recorder, live: live.clone(), gallery, board: board.clone(), herald };
        let results = Results::start(found, Fanout::start(sinks, metrics)?, annotator, followed, told, metrics)?;
        let guests = Guests::new(&jobs, metrics);
        let workers = detect::start_with(detectors, max_batch, &jobs, &guests, &send, metrics)?;
        if let Some(back) = &back {
            let (model, device) = (model.name().to_owned(), model.device());
            back.loaded(Late { model, device, guests, steering: steer.clone(), publisher: publisher.clone() });
        }
        // From here on the workers alone hold these: when they end, so does what waits for them.
        drop((send, jobs));
        let decoders = Decoders::start()?;
        let mut sources = Vec::new();
        for ((camera, putter), tape) in config.cameras.into_iter().zip(putters).zip(tapes) {
            let ears = Ears { tape, live: live.clone(), publisher: publisher.clone(), board: board.clone() };
            if camera.enabled {
                let asked = steer.asked(&camera);
                match start_source(camera, asked, putter, ears, &decoders, shutdown, metrics) {
                    Ok(source) => sources.push(source),
                    Err(error) => {
                        // Those that run already are joined as they are dropped, and only the flag ends them.
                        shutdown.trigger();
                        return Err(error);
                    }
                }
            } else {
                ears.disabled(&camera.id);
            }
        }
        Ok(Self { sources, decoders, workers, results, mqtt, history })
    }

    /// Returns when the flag goes up or no source is left.
    ///
    /// # Errors
    /// When a stage that should run as long as the sources has ended, or what hangs in GStreamer is more than a process
    /// should carry: the service manager then starts the daemon anew.
    fn wait(&self, shutdown: &Shutdown) -> Result<()> {
        // At the end of the last source the workers may be gone a moment before its thread is.
        let mut strange = 0;
        let mut told = Instant::now();
        while !shutdown.wait(Duration::from_millis(100)) {
            if told.elapsed() >= ALIVE {
                systemd::alive();
                told = Instant::now();
            }
            if let Some(sick) = self.sick() {
                // What hangs is not waited for as at a natural end.
                shutdown.trigger();
                return Err(Error::new(Kind::Pipeline, sick));
            }
            if self.sources.iter().all(Source::is_finished) {
                tracing::info!("every source has come to its end");
                return Ok(());
            }
            strange = if self.results.is_finished() || self.workers.iter().any(Thread::is_finished) { strange + 1 } else { 0 };
            if strange > 20 {
                // Those that still run are not waited for as at a natural end.
                shutdown.trigger();
                return Err(Error::new(Kind::Internal, "a stage ended while cameras run; this is a defect, please report it"));
            }
        }
        Ok(())
    }

    /// What only a new process mends.
    fn sick(&self) -> Option<String> {
        let hang: u64 = self.sources.iter().map(Source::hanging).sum();
        if hang > MOST_HANGING {
            return Some(format!("{hang} pipelines hang and hold what they hold; only a new start frees it"));
        }
        self.decoders.hang().then(|| "every decoder hangs; only a new start frees them".to_owned())
    }

    /// Joins every stage; returns when the stop began.
    fn stop(self, shutdown: &Shutdown, console: Option<Console>) -> Instant {
        // After the natural end of all sources the last frames are still looked at, however long the model takes.
        while !shutdown.is_set() && !self.workers.iter().all(Thread::is_finished) {
            shutdown.wait(Duration::from_millis(20));
        }
        shutdown.trigger();
        let begin = Instant::now();
        // First of all: what it shows is about to end.
        if let Some(console) = console {
            console.finish(begin + CONSOLE_GRACE);
        }
        let sources_left = self.sources.into_iter().map(|source| source.join_until(begin + WORKERS_GRACE)).filter(|joined| !joined).count();
        let workers_left = thread::join_all_until(self.workers, begin + WORKERS_GRACE);
        if sources_left > 0 {
            tracing::warn!(cameras = sources_left, "cameras did not let go in time and were left behind");
        } else if workers_left > 0 {
            tracing::warn!(
                workers = workers_left,
                "workers were left behind with the frames they look at; their answers would have come too late"
            );
        }
        self.results.finish(begin + SINKS_GRACE);
        if let Some(history) = self.history {
            history.finish(Instant::now() + HISTORY_GRACE);
        }
        if let Some(mqtt) = self.mqtt {
            mqtt.finish(MQTT_GRACE);
        }
        tracing::info!(seconds = begin.elapsed().as_secs_f32(), "stopped");
        begin
    }
}
