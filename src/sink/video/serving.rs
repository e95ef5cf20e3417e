//! An RTSP server that runs: its port and the thread of its main loop.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use gstreamer::glib;
use gstreamer_rtsp_server::prelude::*;
use gstreamer_rtsp_server::{RTSPFilterResult, RTSPMountPoints, RTSPServer};

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::thread::{self, Thread};

/// Between two removals of sessions whose viewer went without a word.
const CLEANUP: Duration = Duration::from_secs(5);

/// For the server's thread to end.
const FINISH: Duration = Duration::from_secs(5);

/// A server that listens until it is finished.
pub struct Serving {
    server: RTSPServer,
    context: glib::MainContext,
    main_loop: glib::MainLoop,
    thread: Thread,
    port: u16,
}

impl Serving {
    /// Listens at `listen`, which `key` set, and answers in a thread of its own, where the timers run too that `timers`
    /// attaches.
    ///
    /// # Errors
    /// When the port is taken; the sentence begins with `key`.
    pub fn start(server: RTSPServer, listen: SocketAddr, key: &str, timers: impl FnOnce(&glib::MainContext)) -> Result<Self> {
        server.set_address(&listen.ip().to_string());
        server.set_service(&listen.port().to_string());
        let context = glib::MainContext::new();
        let listening = server.attach(Some(&context)).map_err(|error| not_listening(listen, key, error))?;
        let port = u16::try_from(server.bound_port()).unwrap_or(listen.port());
        let weak = server.downgrade();
        let cleanup = move || {
            if let Some(pool) = weak.upgrade().and_then(|server| server.session_pool()) {
                pool.cleanup();
            }
            glib::ControlFlow::Continue
        };
        glib::timeout_source_new(CLEANUP, None, glib::Priority::DEFAULT, cleanup).attach(Some(&context));
        timers(&context);
        let main_loop = glib::MainLoop::new(Some(&context), false);
        let (running, owned) = (main_loop.clone(), context.clone());
        let thread = thread::spawn("rtsp-server", move || {
            if owned.with_thread_default(|| running.run()).is_err() {
                tracing::error!("the rtsp server's thread could not own its context");
            }
            if let Some(source) = owned.find_source_by_id(&listening) {
                source.destroy();
            }
        })?;
        Ok(Self { server, context, main_loop, thread, port })
    }

    /// The port listened on: the one asked for, or the one the system chose for 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Hangs up on everybody and closes the port.
    ///
    /// # Errors
    /// When the thread does not end.
    pub fn finish(self) -> Result<()> {
        self.server.client_filter(Some(&mut |_, _| RTSPFilterResult::Remove));
        let main_loop = self.main_loop;
        let quit = move || {
            main_loop.quit();
            glib::ControlFlow::Break
        };
        // From within: an order that comes before the loop runs is forgotten.
        glib::idle_source_new(None, glib::Priority::HIGH, quit).attach(Some(&self.context));
        if self.thread.join_until(Instant::now() + FINISH) {
            return Ok(());
        }
        Err(Error::new(Kind::Pipeline, format!("the rtsp server did not end within {} s", FINISH.as_secs())))
    }
}

/// Where a server's streams are hung up.
///
/// # Errors
/// When there is no such place, which is not to be expected.
pub fn mounts(server: &RTSPServer) -> Result<RTSPMountPoints> {
    server.mount_points().ok_or_else(|| Error::new(Kind::Pipeline, "the rtsp server has no mount points"))
}

/// The library does not say why it cannot listen; the system does.
fn not_listening(listen: SocketAddr, key: &str, error: glib::BoolError) -> Error {
    let reason = TcpListener::bind(listen).map(drop).context(Kind::Io, || format!("{key}: cannot listen on {listen}"));
    reason.err().unwrap_or_else(|| Error::new(Kind::Pipeline, format!("{key}: cannot listen on {listen}")).because(error))
}
