//! Who may watch what an RTSP server shows.

use gstreamer_rtsp_server::prelude::*;
use gstreamer_rtsp_server::{RTSPAuth, RTSPMediaFactory, RTSPToken, gst_rtsp};

use crate::base::redact::{ExposeSecret, SecretString};

/// The role of whoever may watch.
const ROLE: &str = "viewer";

/// Lets nobody watch but who knows the password. With the digest scheme it does not go over the line, with the basic one it does.
pub fn known(user: &str, password: &SecretString, digest: bool) -> RTSPAuth {
    let (auth, token) = (RTSPAuth::new(), RTSPToken::builder().field("media.factory.role", ROLE).build());
    if digest {
        auth.set_supported_methods(gst_rtsp::RTSPAuthMethod::Digest);
        auth.add_digest(user, password.expose_secret(), &token);
    } else {
        auth.add_basic(&RTSPAuth::make_basic(user, password.expose_secret()), &token);
    }
    auth
}

/// Lets everybody watch: for a server that is encrypted and asks for no password.
pub fn everybody() -> RTSPAuth {
    let (auth, mut token) = (RTSPAuth::new(), RTSPToken::builder().field("media.factory.role", ROLE).build());
    auth.set_default_token(Some(&mut token));
    auth
}

/// Admits those to a stream whom the server knows. Without it a server that asks for a password shows it to nobody.
pub fn admit(factory: &RTSPMediaFactory) {
    let role = gstreamer::Structure::builder(ROLE).field("media.factory.access", true).field("media.factory.construct", true).build();
    factory.add_role_from_structure(&role);
}
