//! Floor 4: HTTP. What a camera shows, for browsers and players, and how the daemon stands, for who looks after it.
//!
//! One thread answers everybody (`server`), behind one guard that every request passes (`guard`). It neither encodes nor waits for a
//! disk: two others do (`helper`), a piece of work at a time. No part of an address reaches the file system: a camera is looked up
//! among those that are known, an object in the history, and a file is one that its row names.

mod api;
mod assets;
mod back;
pub mod board;
mod events;
mod guard;
mod helper;
mod live;
mod metrics;
mod pages;
mod playground;
mod range;
mod reply;
mod server;
mod stream;
mod wire;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use tokio::sync::Semaphore;

use crate::base::error::Result;
use crate::base::metrics::Metrics;
use crate::config::ConsoleConfig;
use crate::sink::history::Reader;
use crate::sink::video::{Hls, Jpegs};
use guard::Guard;
use helper::Helper;
use reply::Refusal;
use server::{Server, Stopping};

pub use api::OPENAPI;
pub use back::{Back, Check, Late};
pub use board::{Board, Lens};
pub use metrics::{COUNTS, Count, GAUGES, TIMES};

/// Pictures that are asked about at once: four wait, as the files that they are, for the one that is looked at.
const ASKERS: usize = 5;

/// Whether the daemon does what it is there for; if not, why.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the server bears of its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Streams of pictures at once: some connections remain for the rest.
    pub streams: usize,
    /// For a request's head to come, and between two requests of a connection.
    pub head: Duration,
    /// For the body of a request to come.
    pub body: Duration,
    /// For a client to take anything of what it asked for.
    pub write: Duration,
    /// At a stop, for answers that are under way.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connections: 64, streams: 32, head: seconds(10), body: seconds(5), write: seconds(15), grace: seconds(1) }
    }
}

/// What there is to show.
#[derive(Clone)]
pub struct Screens {
    /// Pictures.
    pub jpegs: Jpegs,
    /// Video.
    pub hls: Hls,
    /// How the daemon stands.
    pub ready: Ready,
    /// What is told of it.
    pub back: Back,
}

/// What each answer is made of. Clones share it.
#[derive(Clone)]
struct Desk {
    guard: Arc<Guard>,
    screens: Screens,
    limits: Limits,
    /// Whoever may look may steer.
    control: bool,
    streams: Arc<Semaphore>,
    askers: Arc<Semaphore>,
    /// Of the one whose picture the model is to look at.
    turn: Arc<Semaphore>,
    /// What takes long.
    works: Arc<Helper>,
    /// What waits for a disk.
    disk: Arc<Helper>,
    reader: Option<Arc<Mutex<Reader>>>,
    stopping: Stopping,
}

/// The running server.
pub struct Console {
    address: SocketAddr,
    /// There until it is finished.
    server: Option<Server>,
    screens: Screens,
}

impl Console {
    /// Listens and answers from now on. Counts `http_requests`, `http_refused` (by the guard, for want of a place, or late) of all.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn start(config: ConsoleConfig, limits: Limits, screens: Screens, metrics: &Metrics) -> Result<Self> {
        let guard = Arc::new(Guard::new(&config, metrics));
        let shown = screens.clone();
        let control = config.control;
        let (works, disk) = (Arc::new(Helper::start("console-works")?), Arc::new(Helper::start("console-disk")?));
        let reader = screens.back.history.as_ref().map(|history| Arc::new(Mutex::new(history.reader())));
        let [streams, askers, turn] = [limits.streams, ASKERS, 1].map(|places| Arc::new(Semaphore::new(places)));
        let routes =
            |stopping| routes(Desk { guard, screens: shown, limits, control, streams, askers, turn, works, disk, reader, stopping });
        let server = Server::start(config.listen, limits, metrics, routes)?;
        let (address, token) = (server.address(), config.token.is_some());
        tracing::info!(listen = %address, token, "http server up");
        Ok(Self { address, server: Some(server), screens })
    }

    /// Where it listens: the address asked for, with the port that the system chose for 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, ends what streams, and waits for the rest.
    pub fn finish(mut self, deadline: Instant) {
        self.server.take().into_iter().for_each(|server| server.finish(deadline));
    }
}

impl Drop for Console {
    /// Who watches is gone first, then what is made for them.
    fn drop(&mut self) {
        drop(self.server.take());
        self.screens.jpegs.end();
        self.screens.hls.end();
    }
}

fn routes(desk: Desk) -> Router {
    let guarded = axum::middleware::from_fn_with_state(desk.guard.clone(), guard::pass);
    let picture = DefaultBodyLimit::max(playground::BODY);
    Router::new()
        .route("/", get(assets::page))
        .route("/playground", get(assets::page))
        .route("/events", get(assets::page))
        .route("/assets/{name}", get(assets::file))
        .route("/api/v1/info", get(api::info))
        .route("/api/v1/cameras", get(api::cameras))
        .route("/api/v1/cameras/{id}", get(api::camera))
        .route("/api/v1/cameras/{id}/prompt", put(api::prompt))
        .route("/api/v1/cameras/{id}/detect", put(api::detect))
        .route("/api/v1/events", get(events::list))
        .route("/api/v1/events/{track_id}", get(events::one))
        .route("/api/v1/events/{track_id}/snapshot.jpg", get(events::snapshot))
        .route("/api/v1/events/{track_id}/clip.mp4", get(events::clip))
        .route("/api/v1/detect", post(playground::detect).layer(picture))
        .route("/api/v1/config/check", post(api::check))
        .route("/api/v1/stream", get(stream::stream))
        .route("/api/v1/openapi.json", get(api::openapi))
        .route("/metrics", get(metrics::metrics))
        .route("/live/{file}", get(live::pictures))
        .route("/live/{camera}/{file}", get(live::video))
        .route("/login", get(pages::ask).post(pages::login))
        .route("/logout", post(pages::logout))
        .route("/healthz", get(pages::alive))
        .route("/readyz", get(pages::ready))
        .fallback(|| async { Refusal::NOTHING_HERE })
        .method_not_allowed_fallback(|| async { Refusal::OTHER_METHOD })
        .layer(guarded)
        .with_state(desk)
}
