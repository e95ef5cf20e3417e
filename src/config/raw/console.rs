//! `[console]`: where the HTTP server listens, and who may see what it shows.

use std::net::{IpAddr, SocketAddr};

use crate::base::redact::{ExposeSecret, SecretString};
use crate::config::ConsoleConfig;
use crate::config::raw::{Outside, STATE_DIR, secret};
use crate::config::reader::Section;

/// Where a token is looked for beside its file.
const VARIABLE: &str = "PALISADE_CONSOLE_TOKEN";

/// Characters of a token at least: a browser's cookie is made of it, and a shorter one could be guessed.
const LEAST: usize = 16;

/// The table; without it there is no server.
pub(super) fn table(mut section: Section<'_, '_>, outside: &Outside<'_>) -> Option<ConsoleConfig> {
    section.exists().then_some(())?;
    let listen = listen(&mut section);
    let asked = section.holds("token_file");
    if let Some(text) = section.text("token") {
        let line = "is refused: secrets do not belong in this file; put it into a file of its own and name that in token_file";
        section.fault("token", text.offset, line);
    }
    let token = secret(&mut section, "token_file", Some(VARIABLE), outside).filter(|token| fits(&section, token));
    if let Some(listen) = listen
        && !listen.ip().is_loopback()
        && token.is_none()
        // One that cannot be used has its fault already.
        && !asked
        && (outside.env)(VARIABLE).is_none_or(|value| value.trim_end_matches(['\r', '\n']).is_empty())
    {
        let line = format!(
            "is {listen}, where others see the cameras, and there is no token; must be a loopback address such as \
             \"127.0.0.1:{}\", or stand beside token_file or {VARIABLE} in the environment",
            listen.port()
        );
        section.fault("listen", section.offset_of("listen"), &line);
    }
    let hosts = hosts(&mut section);
    let control = section.flag("control", false).value;
    let state_dir = section.text("state_dir").map_or_else(|| STATE_DIR.into(), |text| text.value.into());
    section.finish();
    Some(ConsoleConfig { listen: listen?, token, hosts, control, state_dir })
}

/// An address and a port; `None` where it is wrong.
fn listen(section: &mut Section<'_, '_>) -> Option<SocketAddr> {
    let Some(text) = section.text("listen") else { return Some(([127, 0, 0, 1], 8600).into()) };
    let wrong = |_| section.fault("listen", text.offset, &format!("is {:?}; must be address:port such as \"127.0.0.1:8600\"", text.value));
    text.value.parse().map_err(wrong).ok()
}

fn fits(section: &Section<'_, '_>, token: &SecretString) -> bool {
    let token = token.expose_secret();
    let right = token.len() >= LEAST && token.bytes().all(|byte| byte.is_ascii_graphic());
    if !right {
        let from = if section.holds("token_file") { "" } else { " (PALISADE_CONSOLE_TOKEN)" };
        let line = format!(
            "{from} holds no token; must be {LEAST} letters, digits and signs or more on one line, as `openssl rand -hex 16` makes them"
        );
        section.fault("token_file", section.offset_of("token_file"), line.trim_start());
    }
    right
}

fn hosts(section: &mut Section<'_, '_>) -> Vec<String> {
    let Some(written) = section.texts("hosts") else { return Vec::new() };
    let mut hosts = Vec::new();
    for host in written.value {
        let name = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if name.parse::<IpAddr>().is_ok() || (!name.is_empty() && name.bytes().all(plain)) {
            hosts.push(name);
        } else {
            let line = format!("holds {host:?}; must be names or addresses alone, without a scheme or a port, such as [\"nvr.home\"]");
            section.fault("hosts", written.offset, &line);
        }
    }
    hosts
}
