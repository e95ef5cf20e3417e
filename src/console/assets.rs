//! The pages and what they are made of, which are in the program.

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::console::Desk;
use crate::console::reply::Refusal;

/// A file in the program.
struct Asset {
    name: &'static str,
    media: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $media:literal) => {
        Asset { name: $name, media: $media, bytes: include_bytes!(concat!("assets/", $name)) }
    };
}

/// What is served at `/assets/`, and the pages.
const ASSETS: [Asset; 13] = [
    asset!("index.html", "text/html; charset=utf-8"),
    asset!("playground.html", "text/html; charset=utf-8"),
    asset!("events.html", "text/html; charset=utf-8"),
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("app.js", "text/javascript; charset=utf-8"),
    asset!("live.js", "text/javascript; charset=utf-8"),
    asset!("playground.js", "text/javascript; charset=utf-8"),
    asset!("events.js", "text/javascript; charset=utf-8"),
    asset!("screen.js", "text/javascript; charset=utf-8"),
    asset!("theme.js", "text/javascript; charset=utf-8"),
    asset!("hls.light.min.js", "text/javascript; charset=utf-8"),
    asset!("hls.LICENSE.txt", "text/plain; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
];

/// A page: `/`, `/playground`, `/events`.
pub async fn page(State(_): State<Desk>, request: Request) -> Response {
    let name = match request.uri().path() {
        "/playground" => "playground.html",
        "/events" => "events.html",
        _ => "index.html",
    };
    answer(name, request.headers())
}

/// `/assets/{name}`.
pub async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    if name.ends_with(".html") { Refusal::NOTHING_HERE.into_response() } else { answer(&name, &headers) }
}

/// Always asked about anew: another build has other files under the same names.
fn answer(name: &str, headers: &HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else { return Refusal::NOTHING_HERE.into_response() };
    let tag = tag(asset.bytes);
    let dressed = [(header::ETAG, tag.as_str()), (header::CACHE_CONTROL, "private, no-cache")];
    if holds(headers, &tag) {
        return (StatusCode::NOT_MODIFIED, dressed).into_response();
    }
    (dressed, [(header::CONTENT_TYPE, asset.media)], asset.bytes).into_response()
}

/// A strong entity tag of bytes.
fn tag(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hash}\"")
}

/// Whether the client says that it holds what has this tag.
pub fn holds(headers: &HeaderMap, tag: &str) -> bool {
    let said = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    said.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag || one == "*")
}
