//! The plain pages: where to log in, what there is to watch, and whether all is well. None needs a script.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use percent_encoding::percent_decode_str;

use crate::console::Desk;
use crate::console::guard::COOKIE;
use crate::console::reply::Refusal;
use crate::types::CameraId;

/// The most of a request's body that is read.
const MOST: usize = 4096;

/// A browser stays logged in for thirty days.
const STAYS: u32 = 30 * 86_400;

/// After a wrong token, so that guessing is slow.
const PAUSE: Duration = Duration::from_millis(300);

/// What there is to watch.
pub async fn index(State(desk): State<Desk>) -> Html<String> {
    // Ids are of a-z, 0-9, _ and - alone.
    let line = |id: &CameraId| {
        let link = |to: &str, name: &str| format!("<a href=\"/live/{id}{to}\">{name}</a>");
        format!("<li>{id}: {}, {}, {}</li>", link(".mjpeg", "live"), link(".jpg", "picture"), link("/index.m3u8", "HLS"))
    };
    let cameras: String = desk.screens.jpegs.cameras().iter().map(line).collect();
    let out = if desk.guard.is_closed() { "<form method=\"post\" action=\"/logout\"><button>Log out</button></form>" } else { "" };
    page("palisade", &format!("<ul>{cameras}</ul>{out}"))
}

/// Where to log in.
pub async fn ask(State(desk): State<Desk>) -> Response {
    if desk.guard.is_closed() { form("").into_response() } else { Redirect::to("/").into_response() }
}

/// A token that was typed in.
pub async fn login(State(desk): State<Desk>, request: Request) -> Response {
    let human = wants_page(request.headers());
    let token = match tokio::time::timeout(desk.limits.body, to_bytes(request.into_body(), MOST)).await {
        Ok(Ok(body)) => field(&body, "token"),
        Ok(Err(_)) => {
            let sentence = format!("the request's body did not come whole; must be token=TOKEN in {MOST} bytes at most");
            return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence).into_response();
        }
        Err(_) => return Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time").into_response(),
    };
    if !desk.guard.is_closed() {
        return Refusal::new(StatusCode::NOT_FOUND, "there is no token to log in with; console.token_file sets one").into_response();
    }
    if let Some(cookie) = desk.guard.cookie(token.as_deref().unwrap_or_default()) {
        let cookie = format!("{COOKIE}={cookie}; Path=/; Max-Age={STAYS}; HttpOnly; SameSite=Strict");
        return ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response();
    }
    tracing::debug!("somebody tried to log in with a wrong token");
    tokio::time::sleep(PAUSE).await;
    let refusal = Refusal::new(StatusCode::UNAUTHORIZED, "this is not the token; it stands in the file that console.token_file names");
    if human { (refusal.status(), form(refusal.sentence())).into_response() } else { refusal.into_response() }
}

/// Forgets a browser.
pub async fn logout() -> Response {
    let gone = format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
    ([(header::SET_COOKIE, gone)], Redirect::to("/login")).into_response()
}

/// That the server answers.
pub async fn alive() -> &'static str {
    "ok\n"
}

/// That the daemon does what it is there for.
pub async fn ready(State(desk): State<Desk>) -> Response {
    match (desk.screens.ready)() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => Refusal::soon(why).into_response(),
    }
}

fn form(told: &str) -> Html<String> {
    let field = "<label>Token <input type=\"password\" name=\"token\" autocomplete=\"current-password\" required autofocus></label>";
    page("palisade: log in", &format!("<p>{told}</p><form method=\"post\" action=\"/login\">{field} <button>Log in</button></form>"))
}

/// `title` and `body` are of our own words.
fn page(title: &str, body: &str) -> Html<String> {
    let head = "<meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">";
    Html(format!("<!doctype html><html lang=\"en\"><head>{head}<title>{title}</title></head><body><h1>{title}</h1>{body}</body></html>"))
}

fn wants_page(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|accept| accept.contains("text/html"))
}

/// A field of a form, as browsers send it.
fn field(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, value) = text.trim_end().split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?;
    let spaced = value.replace('+', " ");
    Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
}
