//! Floor 4: HTTP. What a camera shows, for browsers and players, and how the daemon stands, for who looks after it.
//!
//! One thread answers everybody (`server`), behind one guard that every request passes (`guard`). Nothing here encodes or waits
//! for a disk, and no part of an address reaches the file system: a camera is looked up among those that are known.

mod guard;
mod live;
mod lobby;
mod pages;
mod reply;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use crate::base::error::Result;
use crate::base::metrics::Metrics;
use crate::config::ConsoleConfig;
use crate::sink::video::{Hls, Jpegs};
use guard::Guard;
use reply::Refusal;
use server::{Server, Stopping};

/// Whether the daemon does what it is there for; if not, why.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the server bears of its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; those that ask for nothing make way for others.
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
}

/// What each answer is made of. Clones share it.
#[derive(Clone)]
struct Desk {
    guard: Arc<Guard>,
    screens: Screens,
    limits: Limits,
    streams: Arc<Semaphore>,
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
        let routes = |stopping| routes(Desk { guard, screens: shown, limits, streams: Arc::new(Semaphore::new(limits.streams)), stopping });
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
    Router::new()
        .route("/", get(pages::index))
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
