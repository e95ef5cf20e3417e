//! The running stages: begun in the order of the data, watched, and joined in the same order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use crate::annotate::Annotator;
use crate::app::camera::{Camera, Running, Wiring};
use crate::app::herald::Herald;
use crate::app::likeness;
use crate::app::paint::Brush;
use crate::app::reload::{Reading, Reloads};
use crate::app::results::{self, Results, Told};
use crate::app::steer::Steer;
use crate::base::error::{Error, Kind, Result};
use crate::base::heartbeat::Pulses;
use crate::base::mailbox;
use crate::base::metrics::Metrics;
use crate::base::shutdown::Shutdown;
use crate::base::systemd;
use crate::base::thread::{self, Thread};
use crate::config::Config;
use crate::console::{Back, Console, Late};
use crate::detect::{self, Detector, Drafts, Guests, PaliGemmaDetector};
use crate::model::{Limits, PaliGemma};
use crate::mqtt::Mqtt;
use crate::sink::gallery::{Draw, Gallery, Rooms};
use crate::sink::history::History;
use crate::sink::record::Recorder;
use crate::sink::video::{Live, Painter};
use crate::sink::{Fanout, Sink};
use crate::source::Decoders;
use crate::types::{CameraId, Event};

/// From the order to stop: how long a worker may finish its frame; an answer of a large model may take longer.
const WORKERS_GRACE: Duration = Duration::from_secs(2);

/// From the order to stop: when every sink has finished its files. The service manager waits ten seconds in all.
const SINKS_GRACE: Duration = Duration::from_millis(6500);

/// So many pipelines may hang: each holds memory, threads and a connection for ever.
const MOST_HANGING: u64 = 3;

/// From the order to stop: for answers that are under way over HTTP.
const CONSOLE_GRACE: Duration = Duration::from_millis(1500);

/// For the last messages and `offline`.
const MQTT_GRACE: Duration = Duration::from_millis(1500);

/// For the last rows of the history, once all has ended that there is to tell.
const HISTORY_GRACE: Duration = Duration::from_millis(500);

/// Where what was seen goes, beside the broker.
pub(super) struct Outputs {
    pub(super) annotator: Annotator,
    pub(super) sinks: Vec<Box<dyn Sink>>,
    pub(super) live: Option<Live>,
    pub(super) recorder: Option<Arc<Recorder>>,
    pub(super) rooms: Option<Rooms>,
    pub(super) history: Option<History>,
    pub(super) back: Option<Back>,
}

/// The running stages, in the order of the data.
pub(super) struct Daemon {
    pub(super) cameras: BTreeMap<CameraId, Camera>,
    /// Sources of cameras that went, or that others came in the place of, and that have not ended yet.
    pub(super) retired: Vec<Running>,
    pub(super) wiring: Wiring,
    pub(super) drafts: Drafts,
    workers: Vec<Thread>,
    pub(super) results: Results,
    mqtt: Option<Mqtt>,
    history: Option<History>,
    pulses: Pulses,
    /// The service manager was told that a stage hangs.
    late: bool,
    /// What is in force.
    pub(super) config: Config,
    annotator: Annotator,
    model: String,
    /// The configuration is being read anew.
    reading: Option<Reading>,
}

impl Daemon {
    pub(super) fn start(
        config: Config,
        Outputs { annotator, sinks, live, recorder, rooms, history, back }: Outputs,
        model: &PaliGemma,
        mqtt: Option<Mqtt>,
        steer: &Arc<Steer>,
        metrics: &Metrics,
    ) -> Result<Self> {
        let publisher = mqtt.as_ref().map(Mqtt::publisher);
        let (slots, jobs) = mailbox::open();
        let max_batch = config.model.max_batch.unwrap_or_else(|| model.default_batch());
        let (send, found) = bounded(config.model.workers);
        let limits =
            Limits { max_new_tokens: config.model.max_new_tokens, min_score: config.model.min_score.clone(), suppress: Vec::new() };
        let drafts = Drafts::default();
        let detector = |_| Box::new(PaliGemmaDetector::new(model, limits.clone(), drafts.clone())) as Box<dyn Detector>;
        let detectors = (0..config.model.workers).map(detector).collect();
        let followed = config.cameras.iter().map(|camera| (camera.id.clone(), results::follow(camera, steer))).collect();
        let drawn = config.gallery.as_ref().map(|gallery| likeness::draw(gallery, annotator.clone()));
        let board = back.as_ref().map(|back| back.board.clone());
        let herald = Herald { publisher: publisher.clone(), history: history.clone(), board: board.clone() };
        let gallery = rooms.zip(drawn).map(|(rooms, draw)| start_gallery(rooms, draw, herald.clone(), metrics)).transpose()?;
        let told =
            Told { publisher: publisher.clone(), recorder: recorder.clone(), live: live.clone(), gallery, board: board.clone(), herald };
        let pulses = Pulses::default();
        let brush: Arc<dyn Painter> = Arc::new(Brush::new(annotator.clone()));
        let fanout = Fanout::start(sinks, &brush, metrics)?;
        let standings = fanout.standings();
        let results = Results::start(found, fanout, annotator.clone(), followed, told, &pulses, metrics)?;
        let guests = Guests::new(&jobs, metrics);
        let workers = detect::start_with(detectors, max_batch, &jobs, &guests, &send, &pulses, metrics)?;
        if let Some(back) = &back {
            let (model, device) = (model.name().to_owned(), model.device());
            back.loaded(Late { model, device, guests, steering: steer.clone(), publisher: publisher.clone() });
        }
        // From here on the workers alone hold these: when they end, so does what waits for them.
        drop((send, jobs));
        let (decoders, steer, metrics) = (Decoders::start()?, steer.clone(), metrics.clone());
        let wiring = Wiring { slots, decoders, steer, publisher, live, recorder, board, standings, metrics };
        let mut cameras = BTreeMap::new();
        for camera in &config.cameras {
            let Camera { putter, .. } = wiring.place();
            // Those that run already are ended and joined as they are dropped.
            let running = wiring.start(camera.clone(), &putter)?;
            cameras.insert(camera.id.clone(), Camera { putter, running });
        }
        let (model, retired, reading) = (model.name().to_owned(), Vec::new(), None);
        Ok(Self {
            cameras,
            retired,
            wiring,
            drafts,
            workers,
            results,
            mqtt,
            history,
            pulses,
            late: false,
            config,
            annotator,
            model,
            reading,
        })
    }

    pub(super) fn results(&self) -> &Results {
        &self.results
    }

    /// What it does, for the service manager.
    pub(super) fn title(&self) -> String {
        format!("watching {} cameras with {}", self.cameras.len(), self.model)
    }

    /// Returns when the flag goes up or no source is left.
    ///
    /// # Errors
    /// When a stage that should run as long as the sources has ended, or what hangs in GStreamer is more than a process
    /// should carry: the service manager then starts the daemon anew.
    pub(super) fn wait(&mut self, reloads: Option<&Reloads>, shutdown: &Shutdown) -> Result<()> {
        // At the end of the last source the workers may be gone a moment before its thread is.
        let mut strange = 0;
        let mut told = Instant::now();
        let alive = systemd::alive_each();
        while !shutdown.wait(Duration::from_millis(100)) {
            if told.elapsed() >= alive {
                self.beat();
                told = Instant::now();
            }
            if let Some(reloads) = reloads {
                self.reload(reloads, shutdown);
            }
            self.retired.retain(|running| !running.is_finished() || running.hanging() > 0);
            if let Some(sick) = self.sick() {
                // What hangs is not waited for as at a natural end.
                shutdown.trigger();
                return Err(Error::new(Kind::Pipeline, sick));
            }
            // Without any there is nothing to come to an end: they are disabled, or could not be begun.
            if self.reading.is_none() && self.running().next().is_some() && self.running().all(Running::is_finished) {
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

    /// Tells the service manager that every stage goes on. Where one hangs it is told which, and no more that all is well: it
    /// then starts the daemon anew.
    fn beat(&mut self) {
        match self.pulses.late(Instant::now()) {
            None => {
                systemd::alive();
                if std::mem::take(&mut self.late) {
                    systemd::status(&self.title());
                }
            }
            Some(late) => {
                self.late = true;
                tracing::error!("{late}; only a new start mends that");
                systemd::status(&format!("{}; {late}", self.title()));
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = &Running> {
        self.cameras.values().filter_map(|camera| camera.running.as_ref())
    }

    /// Reads the configuration anew where that was asked for, in a thread, and puts it in force once it is read and good.
    fn reload(&mut self, reloads: &Reloads, shutdown: &Shutdown) {
        match self.reading.take().map(Reading::step) {
            None if !reloads.take() => {}
            None => {
                systemd::reloading();
                match Reading::start(reloads.file(), self.config.clone(), self.annotator.clone()) {
                    Ok(reading) => self.reading = Some(reading),
                    Err(error) => self.refuse(&[error.chain()]),
                }
            }
            Some(Err(reading)) => self.reading = Some(reading),
            Some(Ok(Ok(prepared))) => {
                self.apply(prepared, shutdown);
                self.wiring.metrics.counter("reloads", "all").add();
                systemd::ready();
                systemd::status(&self.title());
            }
            Some(Ok(Err(refused))) => self.refuse(&refused),
        }
    }

    /// All stays as it is.
    fn refuse(&self, why: &[String]) {
        why.iter().for_each(|why| tracing::error!("the configuration is not taken over: {why}"));
        self.wiring.metrics.counter("reloads_refused", "all").add();
        systemd::ready();
        systemd::status(&format!("{}; the configuration is not taken over: {}", self.title(), why.join("; ")));
    }

    /// What only a new process mends.
    fn sick(&self) -> Option<String> {
        let hang: u64 = self.running().chain(&self.retired).map(Running::hanging).sum();
        if hang > MOST_HANGING {
            return Some(format!("{hang} pipelines hang and hold what they hold; only a new start frees it"));
        }
        self.wiring.decoders.hang().then(|| "every decoder hangs; only a new start frees them".to_owned())
    }

    /// Joins every stage; returns when the stop began.
    pub(super) fn stop(self, shutdown: &Shutdown, console: Option<Console>) -> Instant {
        let Self { cameras, retired, wiring, workers, results, mqtt, history, reading, .. } = self;
        let Wiring { slots, decoders, .. } = wiring;
        // With these and the sources the mailbox closes.
        drop(slots);
        let running: Vec<Running> = cameras.into_values().filter_map(|camera| camera.running).chain(retired).collect();
        // After the natural end of all sources the last frames are still looked at, however long the model takes.
        while !shutdown.is_set() && !workers.iter().all(Thread::is_finished) {
            shutdown.wait(Duration::from_millis(20));
        }
        shutdown.trigger();
        let begin = Instant::now();
        running.iter().for_each(Running::stop);
        // Of a disk, maybe.
        reading.into_iter().for_each(Reading::leave);
        // First of all: what it shows is about to end.
        if let Some(console) = console {
            console.finish(begin + CONSOLE_GRACE);
        }
        let sources_left = running.into_iter().map(|running| running.join_until(begin + WORKERS_GRACE)).filter(|joined| !joined).count();
        let workers_left = thread::join_all_until(workers, begin + WORKERS_GRACE);
        if sources_left > 0 {
            tracing::warn!(cameras = sources_left, "cameras did not let go in time and were left behind");
        } else if workers_left > 0 {
            tracing::warn!(
                workers = workers_left,
                "workers were left behind with the frames they look at; their answers would have come too late"
            );
        }
        results.finish(begin + SINKS_GRACE);
        if let Some(history) = history {
            history.finish(Instant::now() + HISTORY_GRACE);
        }
        if let Some(mqtt) = mqtt {
            mqtt.finish(MQTT_GRACE);
        }
        drop(decoders);
        tracing::info!(seconds = begin.elapsed().as_secs_f32(), "stopped");
        begin
    }
}

/// Pictures of objects as files; events are told through it, behind the pictures that they name.
fn start_gallery(rooms: Rooms, draw: Draw, herald: Herald, metrics: &Metrics) -> Result<Gallery> {
    Gallery::start(rooms, draw, Box::new(move |event: &Event| herald.tell(event)), metrics)
}
