//! A camera made of a clip or of a `gst-launch` line: an RTSP server on loopback, for measurements and tests.

mod clip;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gstreamer::prelude::*;
use gstreamer_rtsp_server::prelude::*;
use gstreamer_rtsp_server::{RTSPAuth, RTSPMediaFactory, RTSPServer, gio};

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::redact::SecretString;
use crate::sink::video::serving::{self, Serving};
use crate::sink::video::stamp;
use crate::sink::video::{init, login};
use clip::Clip;

/// Connections that wait to be taken; the library's five are few where a hundred cameras come at once.
const BACKLOG: i32 = 256;

/// A camera that is served.
pub struct ServeConfig {
    /// What it shows.
    pub footage: Footage,
    /// The port on 127.0.0.1; 0: any that is free.
    pub port: u16,
    /// The path of its address, such as `/cam`.
    pub path: String,
    /// `Some`: nobody else may watch.
    pub login: Option<Login>,
    /// PEM file with certificate and key; with it the camera speaks `rtsps` only.
    pub certificate: Option<PathBuf>,
}

/// What a camera shows.
pub enum Footage {
    /// A file with H.264 or H.265 video, over and over. Each viewer is shown it from its first keyframe on.
    Clip(PathBuf),
    /// Elements that end in a payloader named `pay0`; all viewers share them. Into what leaves one named `stamp` the time is written.
    Launch(String),
}

/// Who may watch.
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: SecretString,
    /// Asked for by the digest scheme instead of the basic one.
    pub digest: bool,
}

/// A running camera; it goes off when dropped.
pub struct Camera(Option<Serving>);

impl Camera {
    /// Reads the clip or checks the line, and listens.
    ///
    /// # Errors
    /// When there is nothing to show, the port is taken, or the certificate cannot be used.
    pub fn start(config: &ServeConfig) -> Result<Self> {
        init()?;
        if !config.path.starts_with('/') {
            return Err(Error::new(Kind::Input, format!("--path {:?} does not start with /; must be like /cam", config.path)));
        }
        let factory = match &config.footage {
            Footage::Clip(file) => of_clip(Arc::new(Clip::read(file)?)),
            Footage::Launch(line) => of_line(line)?,
        };
        let server = RTSPServer::new();
        server.set_backlog(BACKLOG);
        if let Some(auth) = auth(config)? {
            server.set_auth(Some(&auth));
            login::admit(&factory);
        }
        serving::mounts(&server)?.add_factory(&config.path, factory);
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, config.port));
        Serving::start(server, listen, "--port", |_| {}).map(|serving| Self(Some(serving)))
    }

    /// The port listened on.
    pub fn port(&self) -> u16 {
        self.0.as_ref().map_or(0, Serving::port)
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Serving::finish) {
            tracing::warn!("{}", error.chain());
        }
    }
}

/// A pipeline for each viewer, so that each begins with a keyframe. They share the clip's memory.
fn of_clip(clip: Arc<Clip>) -> RTSPMediaFactory {
    let factory = RTSPMediaFactory::new();
    factory.set_launch(&format!("( appsrc name=units ! {} name=pay0 pt=96 )", clip.payloader()));
    factory.set_shared(false);
    factory.connect_media_configure(move |_, media| {
        let units = media.element().downcast::<gstreamer::Bin>().ok().and_then(|bin| bin.by_name("units"));
        match units.and_then(|units| units.downcast().ok()) {
            Some(units) => clip::feed(&clip, &units),
            None => tracing::error!("the clip's pipeline lacks an element; this is a defect, please report it"),
        }
    });
    factory
}

fn of_line(line: &str) -> Result<RTSPMediaFactory> {
    let bin = gstreamer::parse::bin_from_description(line, false).context(Kind::Input, || format!("--launch {line:?} cannot be used"))?;
    if bin.by_name("pay0").is_none() {
        return Err(Error::new(Kind::Input, format!("--launch {line:?} has no payloader; must end in one with name=pay0")));
    }
    let factory = RTSPMediaFactory::new();
    factory.set_launch(&format!("( {line} )"));
    factory.set_shared(true);
    factory.connect_media_configure(|_, media| {
        let bin = media.element().downcast::<gstreamer::Bin>();
        if let Some(element) = bin.ok().and_then(|bin| bin.by_name("stamp")) {
            stamp::attach(&element);
        }
    });
    Ok(factory)
}

/// Logins and encryption; `None` where there is neither.
fn auth(config: &ServeConfig) -> Result<Option<RTSPAuth>> {
    if config.login.is_none() && config.certificate.is_none() {
        return Ok(None);
    }
    let auth = match &config.login {
        Some(Login { user, password, digest }) => login::known(user, password, *digest),
        None => login::everybody(),
    };
    if let Some(file) = &config.certificate {
        auth.set_tls_certificate(Some(&certificate(file)?));
    }
    Ok(Some(auth))
}

fn certificate(file: &Path) -> Result<gio::TlsCertificate> {
    gio::TlsCertificate::from_file(file)
        .context(Kind::Input, || format!("--certificate {} cannot be used; must be a PEM file with certificate and key", file.display()))
}
