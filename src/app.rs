//! Floor 5: the one place that knows every stage: builds them, wires them, and joins them in the order of the data.

pub mod bench;
pub mod check;
pub mod demo;
mod likeness;
pub mod log;
pub mod oneshot;
mod portrait;
pub mod reload;
pub mod serve;
pub mod signals;
pub mod topics;

mod apply;
mod camera;
mod daemon;
mod paint;
mod results;
mod standing;
mod steer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

use crate::annotate::Annotator;
use crate::base::claim::Claim;
use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::shutdown::Shutdown;
use crate::base::systemd;
use crate::base::thread;
use crate::config::{CameraConfig, Config, ModelConfig, OutputConfig, Record, RtspVideo};
use crate::console::{Console, Limits as ConsoleLimits, Ready, Screens};
use crate::model::{self, HubOptions, LoadOptions, PaliGemma};
use crate::mqtt::{self, Mqtt, Patience};
use crate::sink::Sink;
use crate::sink::gallery::Rooms;
use crate::sink::record::{Recorded, Recorder};
use crate::sink::snapshot::SnapshotSink;
use crate::sink::video::{CustomSink, FileSink, Hls, Jpegs, Live, LiveSink, RtspSink};
use crate::source;
use crate::types::CameraId;
use daemon::{Daemon, Outputs};
use paint::Brush;
use reload::Reloads;
use standing::Standing;
use steer::Steer;

/// For the loader of the model to end, at a stop.
const LOADER_GRACE: Duration = Duration::from_secs(2);

/// From the order to stop: when all is over, whatever hangs.
const STOP_GRACE: Duration = Duration::from_millis(9900);

/// For the last commands to be on disk.
const CONTROL_GRACE: Duration = Duration::from_millis(500);

/// What the answers about a new object may take, beyond the time between looks.
const SLOW_ANSWERS: Duration = Duration::from_secs(10);

/// So much is held in memory ahead of a clip's begin, at most.
const MOST_LAG: Duration = Duration::from_secs(120);

/// Runs until `shutdown`, or until every source has come to its end. Counts into `metrics`. With `reloads` the configuration is
/// read anew whenever that is asked for, from the moment on in which all stages are up.
///
/// # Errors
/// When a stage cannot be started: a model that cannot be loaded, a sink that cannot be opened, a TLS file that cannot
/// be read. Once it runs, a lost camera, broker or sink is no error.
pub fn run(config: Config, reloads: Option<&Reloads>, shutdown: &Shutdown, metrics: &Metrics) -> Result<()> {
    source::init()?;
    let ids: Vec<CameraId> = config.cameras.iter().map(|camera| camera.id.clone()).collect();
    let annotator = Annotator::new()?;
    annotator.prepare(config.cameras.iter().flat_map(|camera| camera.prompt.labels()).map(String::as_str));
    let live = live(&config, &ids, &annotator, metrics)?;
    let sinks = open_sinks(&config.output, &ids, live.clone(), metrics)?;
    let recorder = open_recorder(&config, metrics)?.map(Arc::new);
    let rooms = config.gallery.as_ref().map(|gallery| Rooms::open(gallery, &ids, metrics)).transpose()?;
    let standing = Standing::default();
    let console = open_console(&config, live.as_ref(), standing.ready(shutdown), metrics)?;
    let Some(model) = load_model(&config.model, shutdown)? else { return Ok(()) };
    let state = config.mqtt.as_ref().and_then(|mqtt| mqtt.state_dir.as_deref()).map(|folder| Arc::new(Claim::new(folder)));
    let control = config.mqtt.as_ref().is_some_and(|mqtt| mqtt.control);
    let steer = Arc::new(Steer::new(&config.cameras, state.as_ref().filter(|_| control))?);
    let mqtt = start_mqtt(&config, state, &steer, &model, metrics)?;
    let mut daemon = Daemon::start(config, Outputs { annotator, sinks, live, recorder, rooms }, &model, mqtt, &steer, metrics)?;
    standing.runs(daemon.results());
    systemd::ready();
    systemd::status(&daemon.title());
    tracing::info!(model = model.name(), cameras = ids.len(), "running");
    let ended = daemon.wait(reloads, shutdown);
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

/// Answers from before the model is loaded on, which may take long.
fn open_console(config: &Config, live: Option<&Live>, ready: Ready, metrics: &Metrics) -> Result<Option<Console>> {
    let Some((console, live)) = config.console.clone().zip(live) else { return Ok(None) };
    let screens = Screens { jpegs: Jpegs::new(live.clone(), metrics)?, hls: Hls::new(live.clone(), metrics)?, ready };
    Console::start(console, ConsoleLimits::default(), screens, metrics).map(Some)
}

/// Where clips are to be kept, of those cameras that may be told so later as well.
fn open_recorder(config: &Config, metrics: &Metrics) -> Result<Option<Recorder>> {
    let Some(record) = &config.record else { return Ok(None) };
    let kept: Vec<Recorded> = config.cameras.iter().filter_map(recorded).collect();
    Recorder::start(record.clone(), &kept, metrics).map(Some)
}

/// A camera whose clips are kept. An object is told of when it was seen often and long enough, and the model has answered: so
/// much earlier it was first seen.
fn recorded(camera: &CameraConfig) -> Option<Recorded> {
    let looks = camera.interval * camera.tracking.confirm_looks;
    let lag = (camera.tracking.confirm + looks + SLOW_ANSWERS).min(MOST_LAG);
    (camera.enabled && camera.record == Record::Events).then(|| Recorded { camera: camera.id.clone(), lag })
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
    loader.join_until(Instant::now() + LOADER_GRACE);
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
    model: &PaliGemma,
    metrics: &Metrics,
) -> Result<Option<Mqtt>> {
    let Some(mqtt) = config.mqtt.clone() else { return Ok(None) };
    let context = mqtt::Context { model: model.name().to_owned(), run: uuid::Uuid::new_v4() };
    let mqtt = mqtt::start_in(state, mqtt, &steer.watched(), context, metrics, Patience::default())?;
    mqtt.steer(steer.clone());
    Ok(Some(mqtt))
}
