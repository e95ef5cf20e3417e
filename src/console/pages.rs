//! The plain pages: where to log in, and whether all is well. None needs a script.

use std::time::Duration;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};

use crate::console::Desk;
use crate::console::api::read;
use crate::console::events::decoded;
use crate::console::guard::{Local, cookie};
use crate::console::reply::Refusal;

/// The most of a request's body that is read.
const MOST: usize = 4096;

/// A browser stays logged in for thirty days.
const STAYS: u32 = 30 * 86_400;

/// After a wrong token, so that guessing is slow.
const PAUSE: Duration = Duration::from_millis(300);

/// Where to log in.
pub async fn ask(State(desk): State<Desk>) -> Response {
    if desk.guard.is_closed() { form("").into_response() } else { Redirect::to("/").into_response() }
}

/// A token that was typed in.
pub async fn login(State(desk): State<Desk>, Extension(Local(local)): Extension<Local>, request: Request) -> Response {
    let human = wants_page(request.headers());
    let token = match read(request.into_body(), "token=TOKEN in ", MOST, desk.limits.body).await {
        Ok(body) => field(&body, "token"),
        Err(refusal) => return refusal.into_response(),
    };
    if !desk.guard.is_closed() {
        return Refusal::new(StatusCode::NOT_FOUND, "there is no token to log in with; console.token_file sets one").into_response();
    }
    if let Some(value) = desk.guard.cookie(token.as_deref().unwrap_or_default()) {
        let cookie = format!("{}={value}; Path=/; Max-Age={STAYS}; HttpOnly; SameSite=Strict", cookie(local));
        return ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response();
    }
    tracing::debug!("somebody tried to log in with a wrong token");
    tokio::time::sleep(PAUSE).await;
    let refusal = Refusal::new(StatusCode::UNAUTHORIZED, "this is not the token; it stands in the file that console.token_file names");
    if human { (refusal.status(), form(refusal.sentence())).into_response() } else { refusal.into_response() }
}

/// Forgets a browser.
pub async fn logout(Extension(Local(local)): Extension<Local>) -> Response {
    let gone = format!("{}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict", cookie(local));
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

/// Its style is open to everybody, as it is itself (`guard`).
fn form(told: &str) -> Html<String> {
    let field = "<label for=\"token\">Token</label><input id=\"token\" type=\"password\" name=\"token\" \
                 autocomplete=\"current-password\" required autofocus aria-describedby=\"told\">";
    let where_it_is = "<p class=\"hint\" id=\"told\">It stands in the file that <code>console.token_file</code> names.</p>";
    let told = if told.is_empty() { where_it_is.to_owned() } else { format!("<p class=\"trouble\" id=\"told\" role=\"alert\">{told}</p>") };
    let form =
        format!("<form method=\"post\" action=\"/login\"><div class=\"field\">{field}</div><button class=\"main\">Log in</button></form>");
    page("palisade", &format!("{form}{told}"))
}

/// `title` and `body` are of our own words.
fn page(title: &str, body: &str) -> Html<String> {
    let links = "<link rel=\"icon\" href=\"/assets/icon.svg\"><script src=\"/assets/theme.js\"></script>\
                 <link rel=\"stylesheet\" href=\"/assets/style.css\">";
    let head = format!(
        "<meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}: log in</title>{links}"
    );
    let icon = "<img src=\"/assets/icon.svg\" alt=\"\" width=\"40\" height=\"40\">";
    let body = format!("<body><main class=\"card login\">{icon}<h1>{title}</h1>{body}</main></body>");
    Html(format!("<!doctype html><html lang=\"en\"><head>{head}</head>{body}</html>"))
}

fn wants_page(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|accept| accept.contains("text/html"))
}

/// A field of a form, as browsers send it.
fn field(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, value) = text.trim_end().split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?;
    decoded(value)
}
