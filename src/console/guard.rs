//! What every request must pass, and what every answer says to the browser that reads it.
//!
//! A page from elsewhere can have its visitor's browser ask anything of a server on the same network. It is kept out three times: by
//! the name it asked for, which is its own where it has that name point here; by what the browser says of where a request comes
//! from; and by a token, where there is one. A server without a token answers this machine alone, and the configuration sees to that.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::base::metrics::{Counter, Metrics};
use crate::base::redact::ExposeSecret;
use crate::config::ConsoleConfig;
use crate::console::reply::Refusal;

/// The name of the cookie by which a browser is known that has logged in: browsers tell servers apart by their host, not by their
/// port, and two of ours on one host have two tokens.
pub fn cookie(local: SocketAddr) -> String {
    format!("palisade-{}", local.port())
}

/// Addresses that are open: they tell nothing of the cameras. The files are what `/login` is made of.
const OPEN: [&str; 6] = ["/healthz", "/readyz", "/login", "/assets/style.css", "/assets/theme.js", "/assets/icon.svg"];

/// Scripts, styles and pictures of ours alone, none of them within a page; nobody else's page may frame one of ours.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; \
                      connect-src 'self'; worker-src 'self' blob:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// The address that a client connected to.
#[derive(Clone, Copy, Debug)]
pub struct Local(pub SocketAddr);

/// Knows who may ask.
pub struct Guard {
    hosts: BTreeSet<String>,
    secret: Option<Secret>,
    asked: Counter,
    refused: Counter,
}

/// Hashes: of equal length, so that comparing them tells not even that.
struct Secret {
    token: [u8; 32],
    cookie: String,
}

impl Guard {
    /// As configured.
    pub fn new(config: &ConsoleConfig, metrics: &Metrics) -> Self {
        let mut hosts: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        hosts.insert(config.listen.ip().to_string());
        hosts.extend(config.hosts.iter().cloned());
        let secret = config.token.as_ref().map(|token| Secret {
            token: hash(token.expose_secret().as_bytes()),
            // Outlives a restart, and says nothing of the token.
            cookie: hex(&hash(format!("cookie of palisade\n{}", token.expose_secret()).as_bytes())),
        });
        Self { hosts, secret, asked: metrics.counter("http_requests", "all"), refused: metrics.counter("http_refused", "all") }
    }

    /// The cookie for a browser that shows the token; `None` where it is another, or none is asked for.
    pub fn cookie(&self, token: &str) -> Option<&str> {
        self.secret.as_ref().filter(|secret| secret.is_token(token)).map(|secret| secret.cookie.as_str())
    }

    /// Whether a token is asked for.
    pub fn is_closed(&self) -> bool {
        self.secret.is_some()
    }

    fn check(&self, request: &Request, local: SocketAddr) -> Result<(), Refusal> {
        let host = self.host(request, local)?;
        own(request.method(), request.headers(), host)?;
        let Some(secret) = &self.secret else { return Ok(()) };
        if OPEN.contains(&request.uri().path()) || secret.is_shown(request.headers(), &cookie(local)) {
            return Ok(());
        }
        Err(Refusal::new(StatusCode::UNAUTHORIZED, "a token is needed: log in at /login, or send the header Authorization: Bearer TOKEN"))
    }

    /// The name that was asked for, with its port.
    fn host<'r>(&self, request: &'r Request, local: SocketAddr) -> Result<&'r str, Refusal> {
        let mut written = request.headers().get_all(header::HOST).iter();
        let host = match (written.next().map(HeaderValue::to_str), written.next()) {
            (Some(Ok(host)), None) => host,
            _ => return Err(Refusal::new(StatusCode::BAD_REQUEST, "a request must have one header Host")),
        };
        let address = local.ip().to_canonical().to_string();
        let known = |name: &str| name == address || self.hosts.contains(name);
        let names = [Some(host), request.uri().authority().map(Authority::as_str)];
        if names.into_iter().flatten().all(|written| name(written).is_some_and(|name| known(&name))) {
            return Ok(host);
        }
        let sentence = "this server is not known by that name; ask by its address, or add the name to console.hosts";
        Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, sentence))
    }
}

impl Secret {
    fn is_token(&self, token: &str) -> bool {
        self.token.ct_eq(&hash(token.as_bytes())).into()
    }

    /// By a header, or by a cookie. Programs that know a user and a password only show the token as the password.
    fn is_shown(&self, headers: &HeaderMap, cookie: &str) -> bool {
        let bears = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).is_some_and(|value| {
            let Some((scheme, shown)) = value.split_once(' ') else { return false };
            match scheme.to_ascii_lowercase().as_str() {
                "bearer" => self.is_token(shown.trim()),
                "basic" => password(shown.trim()).is_some_and(|password| self.is_token(&password)),
                _ => false,
            }
        });
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let ours = |pair: &str| pair.trim().split_once('=').is_some_and(|(name, value)| name == cookie && self.is_cookie(value));
        bears || cookies.flat_map(|line| line.split(';')).any(ours)
    }

    fn is_cookie(&self, value: &str) -> bool {
        self.cookie.as_bytes().ct_eq(value.as_bytes()).into()
    }
}

/// Runs the request where it may be; dresses the answer in either case.
pub async fn pass(State(guard): State<Arc<Guard>>, Extension(Local(local)): Extension<Local>, request: Request, next: Next) -> Response {
    guard.asked.add();
    let mut response = match guard.check(&request, local) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            guard.refused.add();
            turn_away(refusal, &request)
        }
    };
    let headers = response.headers_mut();
    HEADERS.iter().for_each(|(name, value)| drop(headers.insert(name.clone(), HeaderValue::from_static(value))));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// A person is led to where to log in; a program is told how.
fn turn_away(refusal: Refusal, request: &Request) -> Response {
    if refusal.status() != StatusCode::UNAUTHORIZED {
        return refusal.into_response();
    }
    let said = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if request.method() == Method::GET && said(header::ACCEPT).contains("text/html") {
        return Redirect::to("/login").into_response();
    }
    let mut response = refusal.into_response();
    let headers = response.headers_mut();
    headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"palisade\""));
    // A browser would ask for user and password in a window of its own, and show them to us whoever's page asks. Beyond loopback
    // and without TLS it does not say what it fetches, but every one calls itself so.
    let browser = said(header::USER_AGENT).starts_with("Mozilla/");
    if !browser && said(HeaderName::from_static("sec-fetch-mode")).is_empty() {
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"palisade\""));
    }
    response
}

/// That a request does not come from another site's page: that a browser says so (`Sec-Fetch-Site`, which no page can set), or, for
/// what changes something, at least does not say otherwise (`Origin`). A link from elsewhere may be followed.
fn own(method: &Method, headers: &HeaderMap, host: &str) -> Result<(), Refusal> {
    let said = |name: &'static str| headers.get(HeaderName::from_static(name)).map(|value| value.to_str().unwrap_or("?"));
    let reads = [Method::GET, Method::HEAD].contains(method);
    let foreign = match said("sec-fetch-site") {
        Some("same-origin") => false,
        Some("none") if reads => false,
        Some(_) if reads && said("sec-fetch-mode") == Some("navigate") && said("sec-fetch-dest") == Some("document") => false,
        Some(_) => true,
        None if reads => false,
        None => said("origin").is_some_and(|origin| {
            let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            authority.is_none_or(|authority| !authority.eq_ignore_ascii_case(host))
        }),
    };
    if foreign {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "another site's page asked for this; only pages of this server may"));
    }
    Ok(())
}

/// The name alone of `name:port`, in lower case.
fn name(written: &str) -> Option<String> {
    let authority: Authority = written.parse().ok()?;
    // What stands behind the name must be a port, or nothing; and no user before it.
    let port = authority.as_str().strip_prefix(authority.host())?;
    if !port.is_empty() && authority.port_u16().is_none() {
        return None;
    }
    Some(authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase())
}

/// Of `user:password` in Base64.
fn password(shown: &str) -> Option<String> {
    let pair = String::from_utf8(STANDARD.decode(shown).ok()?).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
