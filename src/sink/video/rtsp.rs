//! An RTSP server of the annotated pictures, or of live video: `rtsp://ADDRESS/<camera>`.
//!
//! Of annotated pictures the latest picture is repeated at a steady pace, so a viewer who joins between two rare looks sees one at once. A
//! camera is encoded only while somebody watches it, and once for all who do.

mod live;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use gstreamer_rtsp_server::prelude::*;
use gstreamer_rtsp_server::{RTSPMedia, RTSPMediaFactory, RTSPMountPoints, RTSPServer, RTSPSession};
use gstreamer_video::DownstreamForceKeyUnitEvent;
use image::{Rgb, RgbImage};

use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::config::{RtspConfig, RtspLogin};
use crate::sink::video::live::Live;
use crate::sink::video::rtsp::live::Streams;
use crate::sink::video::serving::{self, Serving};
use crate::sink::video::{encoder, init, login, raw};
use crate::sink::{Filter, Picture, Sink};
use crate::types::CameraId;

/// Between two repetitions of the latest picture.
const PACE: Duration = Duration::from_millis(200);

/// Frames between keyframes: a viewer who joins others waits for one, two seconds at most.
const GOP: u32 = 10;

/// Connections at once; by default there is no limit.
const CLIENTS: usize = 32;

/// Sessions at once; by default there is no limit.
const SESSIONS: u32 = 32;

/// What is served before a camera's first picture: grey, of this size.
const SLATE: (u32, u32) = (1280, 720);

/// Serves every camera from its making on.
pub struct RtspSink {
    mounts: RTSPMountPoints,
    shows: Shows,
    metrics: Metrics,
    port: u16,
    serving: Option<Serving>,
}

/// What is shown of the cameras.
enum Shows {
    /// What they sent.
    Live(Live, Arc<Streams>),
    /// What was looked at; a stream is made by the `line` of elements.
    Pictures { cameras: Arc<Cameras>, line: String },
}

type Cameras = Mutex<BTreeMap<CameraId, Arc<Mutex<Camera>>>>;

/// One camera as the server knows it.
struct Camera {
    latest: Arc<RgbImage>,
    /// The encoders in use: one, or two for the moment in which one ends and another begins.
    viewed: Vec<Viewed>,
    /// Somebody began to watch: a keyframe is due.
    joined: bool,
    pushed: Counter,
}

struct Viewed {
    source: glib::WeakRef<AppSrc>,
    /// Set once the last viewer has left and the encoder is taken down.
    ended: Arc<AtomicBool>,
    size: (u32, u32),
}

impl RtspSink {
    /// Listens at `config.listen` and serves `cameras`: live video of what `live` is told, where there is one, else the annotated
    /// pictures. Counts `rtsp_pictures_encoded` per camera.
    ///
    /// # Errors
    /// When the port is taken or this installation cannot encode H.264.
    pub fn new(config: RtspConfig, cameras: &[CameraId], live: Option<Live>, metrics: &Metrics) -> Result<Self> {
        init()?;
        let server = RTSPServer::new();
        if let Some(RtspLogin { username, password }) = &config.login {
            server.set_auth(Some(&login::known(username, password, true)));
        } else if !config.listen.ip().is_loopback() {
            tracing::warn!(
                listen = %config.listen.ip(),
                "everybody who reaches output.rtsp.listen can watch; set output.rtsp.username and password_file, or listen on 127.0.0.1"
            );
        }
        let mounts = serving::mounts(&server)?;
        let (watched, streams) = (Arc::<Cameras>::default(), Arc::<Streams>::default());
        let shows = match live {
            Some(live) => Shows::Live(live, streams.clone()),
            None => Shows::Pictures { cameras: watched.clone(), line: line()? },
        };
        let mut sink = Self { mounts, shows, metrics: metrics.clone(), port: 0, serving: None };
        cameras.iter().try_for_each(|id| sink.enter(id))?;
        let repeated = watched.clone();
        limit(&server, move |camera| {
            sync::lock(&watched).iter().filter(|(id, _)| id.as_str() == camera).for_each(|(_, camera)| sync::lock(camera).joined = true);
            streams.played(camera);
        });
        let serving = Serving::start(server, config.listen, "output.rtsp.listen", |context| attach_repeat(context, repeated))?;
        sink.port = serving.port();
        tracing::info!(listen = %config.listen.ip(), port = sink.port, "rtsp server up");
        sink.serving = Some(serving);
        Ok(sink)
    }

    /// The port listened on: the one asked for, or the one the system chose for 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// What makes a stream of the annotated pictures.
fn line() -> Result<String> {
    // The encoder's caps are set once the size is known; the names are looked up in `configure`.
    Ok(format!(
        "( appsrc name=pictures is-live=true do-timestamp=true format=time block=false max-buffers=2 leaky-type=downstream \
             ! videoconvert ! videoscale add-borders=true ! capsfilter name=canvas ! {} ! {} )",
        encoder::h264(GOP)?,
        encoder::PAYLOADER
    ))
}

impl Sink for RtspSink {
    fn name(&self) -> &str {
        "rtsp"
    }

    fn write(&mut self, picture: &Picture) -> Result<()> {
        let cameras = match &self.shows {
            Shows::Live(live, _) => return live.analysed(picture),
            Shows::Pictures { cameras, .. } => sync::lock(cameras),
        };
        let unknown = || Error::new(Kind::Internal, format!("camera {} is not served over rtsp", picture.camera));
        let camera = cameras.get(&picture.camera).ok_or_else(unknown)?;
        sync::lock(camera).latest = picture.image.clone();
        Ok(())
    }

    fn filter(&self) -> Option<Filter> {
        let Shows::Live(live, _) = &self.shows else { return None };
        let live = live.clone();
        Some(Box::new(move |camera| live.wants_analysed(camera)))
    }

    fn enter(&mut self, id: &CameraId) -> Result<()> {
        let factory = match &self.shows {
            Shows::Live(live, streams) => streams.factory(live, id, &self.metrics),
            Shows::Pictures { cameras, .. } if sync::lock(cameras).contains_key(id) => return Ok(()),
            Shows::Pictures { cameras, line } => {
                let latest = Arc::new(RgbImage::from_pixel(SLATE.0, SLATE.1, Rgb([96; 3])));
                let pushed = self.metrics.counter("rtsp_pictures_encoded", id.as_str());
                let camera = Arc::new(Mutex::new(Camera { latest, viewed: Vec::new(), joined: false, pushed }));
                sync::lock(cameras).insert(id.clone(), camera.clone());
                factory(line, id, camera)
            }
        };
        self.mounts.add_factory(&format!("/{id}"), factory);
        Ok(())
    }

    fn leave(&mut self, id: &CameraId) -> Result<()> {
        self.mounts.remove_factory(&format!("/{id}"));
        if let Shows::Pictures { cameras, .. } = &self.shows
            && let Some(camera) = sync::lock(cameras).remove(id)
        {
            sync::lock(&camera).end();
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let finished = self.serving.take().map_or(Ok(()), Serving::finish);
        if let Shows::Live(live, streams) = &self.shows {
            streams.finish();
            live.end();
        }
        finished
    }
}

impl Drop for RtspSink {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!("{}", error.chain());
        }
    }
}

fn factory(line: &str, id: &CameraId, camera: Arc<Mutex<Camera>>) -> RTSPMediaFactory {
    let factory = RTSPMediaFactory::new();
    factory.set_launch(line);
    factory.set_shared(true);
    login::admit(&factory);
    let id = id.clone();
    factory.connect_media_configure(move |_, media| {
        if configure(&camera, media).is_none() {
            tracing::error!(camera = %id, "the rtsp pipeline lacks an element; this is a defect, please report it");
        }
    });
    factory
}

/// Sizes a new encoder by the picture of the moment, and has it fed.
fn configure(camera: &Mutex<Camera>, media: &RTSPMedia) -> Option<()> {
    let bin = media.element().downcast::<gstreamer::Bin>().ok()?;
    let source = bin.by_name("pictures")?.downcast::<AppSrc>().ok()?;
    let mut camera = sync::lock(camera);
    let (width, height) = raw::canvas(&camera.latest);
    let mut caps = raw::caps(width, height);
    caps.make_mut().set("format", "I420");
    bin.by_name("canvas")?.set_property("caps", caps);
    let size = camera.latest.dimensions();
    source.set_caps(Some(&raw::caps(size.0, size.1)));
    // Asking the media for its state would wait while it prepares, and it prepares by the pictures that we give.
    let ended = Arc::new(AtomicBool::new(false));
    let flag = ended.clone();
    media.connect_unprepared(move |_| flag.store(true, Ordering::Release));
    camera.viewed.push(Viewed { source: source.downgrade(), ended, size });
    Some(())
}

impl Camera {
    /// Gives the latest picture to each encoder in use, and forgets those that ended.
    fn repeat(&mut self) {
        let Self { latest, viewed, joined, pushed } = self;
        let joined = std::mem::take(joined);
        viewed.retain_mut(|viewed| {
            let Some(source) = viewed.source.upgrade() else { return false };
            if viewed.size != latest.dimensions() {
                viewed.size = latest.dimensions();
                source.set_caps(Some(&raw::caps(viewed.size.0, viewed.size.1)));
            }
            if joined {
                source.send_event(DownstreamForceKeyUnitEvent::builder().all_headers(true).build());
            }
            // Refused before the pipeline has started and after it has ended.
            if source.push_buffer(raw::buffer(latest)).is_ok() {
                pushed.add();
                return true;
            }
            !viewed.ended.load(Ordering::Acquire)
        });
    }

    /// Tells who watches that nothing follows.
    fn end(&mut self) {
        for source in self.viewed.drain(..).filter_map(|viewed| viewed.source.upgrade()) {
            source.end_of_stream().ok();
        }
    }
}

/// Caps connections and sessions, and notes which camera somebody begins to watch.
fn limit(server: &RTSPServer, joined: impl Fn(&str) + Send + Sync + 'static) {
    let joined = Arc::new(joined);
    if let Some(pool) = server.session_pool() {
        pool.set_max_sessions(SESSIONS);
    }
    let open = Arc::new(AtomicUsize::new(0));
    server.connect_client_connected(move |server, client| {
        let closed = open.clone();
        let pool = server.session_pool();
        let sessions = Arc::<Mutex<Vec<glib::WeakRef<RTSPSession>>>>::default();
        let begun = sessions.clone();
        client.connect_new_session(move |_, session| sync::lock(&begun).push(session.downgrade()));
        client.connect_closed(move |_| {
            closed.fetch_sub(1, Ordering::AcqRel);
            // Who hangs up without a word leaves a session behind, for a minute: a few dozen of them, and nobody gets in.
            for session in std::mem::take(&mut *sync::lock(&sessions)).iter().filter_map(glib::WeakRef::upgrade) {
                if let Some(Err(error)) = pool.as_ref().map(|pool| pool.remove(&session)) {
                    tracing::debug!("an rtsp session was gone already: {error}");
                }
            }
        });
        let joined = joined.clone();
        client.connect_play_request(move |_, context| {
            let address = context.uri().map(|uri| uri.request_uri()).unwrap_or_default();
            // rtsp: / / host / camera
            address.split('/').nth(3).iter().for_each(|camera| joined(camera));
        });
        if open.fetch_add(1, Ordering::AcqRel) >= CLIENTS {
            tracing::debug!(limit = CLIENTS, "an rtsp connection was refused");
            client.close();
        }
    });
}

fn attach_repeat(context: &glib::MainContext, cameras: Arc<Cameras>) {
    let repeat = move || {
        let cameras: Vec<_> = sync::lock(&cameras).values().cloned().collect();
        cameras.iter().for_each(|camera| sync::lock(camera).repeat());
        glib::ControlFlow::Continue
    };
    glib::timeout_source_new(PACE, None, glib::Priority::DEFAULT, repeat).attach(Some(context));
}
