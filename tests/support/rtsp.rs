//! A real RTSP server on loopback, in a thread of this process.
#![allow(dead_code, reason = "each area of the tests uses a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer_rtsp_server::gio;
use gstreamer_rtsp_server::prelude::*;
use gstreamer_rtsp_server::{RTSPAuth, RTSPMediaFactory, RTSPServer, RTSPToken};

/// A moving ball, 320×240, 10 frames a second, a keyframe each second.
pub const BALL: &str = "videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=320,height=240,framerate=10/1 \
     ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 pt=96 config-interval=-1";

/// A launch line that shows one picture file (PNG or JPEG) five times a second.
pub fn still(path: &Path) -> String {
    format!(
        "filesrc location=\"{}\" ! decodebin ! imagefreeze is-live=true ! video/x-raw,framerate=5/1 ! videoconvert \
         ! video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 \
         ! rtph264pay name=pay0 pt=96 config-interval=-1",
        path.display()
    )
}

/// A launch line that plays an MP4 file with H.264 video once.
pub fn play(path: &Path) -> String {
    format!("filesrc location=\"{}\" ! qtdemux ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1", path.display())
}

/// A running server; stopped when dropped.
pub struct RtspServer {
    launch: String,
    login: Option<(String, String)>,
    certificate: Option<gio::TlsCertificate>,
    port: u16,
    frozen: Arc<AtomicBool>,
    running: Option<Running>,
}

struct Running {
    server: RTSPServer,
    main_loop: glib::MainLoop,
    thread: JoinHandle<()>,
}

impl RtspServer {
    /// Serves `launch` (its payloader named `pay0`) at `uri()`, on a free port; with `login` only to that user and password.
    pub fn start(launch: &str, login: Option<(&str, &str)>) -> Self {
        gstreamer::init().unwrap();
        let login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
        Self::serve(launch, login, None)
    }

    /// As `start`, encrypted with the certificate and key of a PEM file.
    pub fn start_encrypted(launch: &str, pem: &Path) -> Self {
        gstreamer::init().unwrap();
        Self::serve(launch, None, Some(gio::TlsCertificate::from_file(pem).unwrap()))
    }

    fn serve(launch: &str, login: Option<(String, String)>, certificate: Option<gio::TlsCertificate>) -> Self {
        let mut server = Self { launch: launch.to_owned(), login, certificate, port: 0, frozen: Arc::default(), running: None };
        server.restart();
        server
    }

    /// The address to play, without credentials.
    pub fn uri(&self) -> String {
        format!("rtsp{}://127.0.0.1:{}/cam", if self.certificate.is_some() { "s" } else { "" }, self.port)
    }

    /// From now on no packet leaves although the connections stay (`true`), or they flow again.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Hangs up on everybody and closes the port.
    pub fn stop(&mut self) {
        let Some(Running { server, main_loop, thread }) = self.running.take() else { return };
        server.client_filter(Some(&mut |_, _| gstreamer_rtsp_server::RTSPFilterResult::Remove));
        main_loop.quit();
        thread.join().unwrap();
    }

    /// Serves again, on the same port, after `stop`.
    pub fn restart(&mut self) {
        self.stop();
        let context = glib::MainContext::new();
        let main_loop = glib::MainLoop::new(Some(&context), false);
        let server = RTSPServer::new();
        server.set_address("127.0.0.1");
        server.set_service(&self.port.to_string());
        let factory = RTSPMediaFactory::new();
        factory.set_launch(&format!("( {} )", self.launch));
        factory.set_shared(true);
        let frozen = self.frozen.clone();
        factory.connect_media_configure(move |_, media| {
            let bin = media.element().downcast::<gstreamer::Bin>().unwrap();
            let frozen = frozen.clone();
            bin.by_name("pay0").unwrap().static_pad("src").unwrap().add_probe(
                gstreamer::PadProbeType::BUFFER | gstreamer::PadProbeType::BUFFER_LIST,
                move |_, _| match frozen.load(Ordering::SeqCst) {
                    true => gstreamer::PadProbeReturn::Drop,
                    false => gstreamer::PadProbeReturn::Ok,
                },
            );
        });
        let auth = RTSPAuth::new();
        auth.set_tls_certificate(self.certificate.as_ref());
        if self.certificate.is_some() {
            server.set_auth(Some(&auth));
        }
        if let Some((user, password)) = &self.login {
            let token = RTSPToken::builder().field("media.factory.role", "viewer").build();
            auth.add_basic(&RTSPAuth::make_basic(user, password), &token);
            server.set_auth(Some(&auth));
            let role =
                gstreamer::Structure::builder("viewer").field("media.factory.access", true).field("media.factory.construct", true).build();
            factory.add_role_from_structure(&role);
        }
        server.mount_points().unwrap().add_factory("/cam", factory);
        let source = server.attach(Some(&context)).unwrap();
        self.port = u16::try_from(server.bound_port()).unwrap();
        let running = main_loop.clone();
        let thread = std::thread::spawn(move || {
            context.with_thread_default(|| running.run()).unwrap();
            if let Some(source) = context.find_source_by_id(&source) {
                source.destroy();
            }
        });
        self.running = Some(Running { server, main_loop, thread });
    }
}

impl Drop for RtspServer {
    fn drop(&mut self) {
        self.stop();
    }
}
