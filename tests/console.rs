//! The HTTP server: who may ask, what it bears, and what it shows.

mod api;
mod document;
mod watch;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::live::{Brush, id, until};
use crate::support::http::{Answer, ask, ask_with, closed_after, connect, exchange, read};
use palisade::annotate::Annotator;
use palisade::base::metrics::Metrics;
use palisade::base::redact::SecretString;
use palisade::config::ConsoleConfig;
use palisade::config::EncoderKind;
use palisade::console::{Back, Console, Limits, Screens};
use palisade::sink::video::{Hls, Jpegs, Live};

const TOKEN: &str = "0123456789abcdef+/%";

fn config(token: Option<&str>) -> ConsoleConfig {
    let token = token.map(SecretString::from);
    ConsoleConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        token,
        hosts: vec!["nvr.home".to_owned()],
        control: false,
        state_dir: "/nonexistent".into(),
    }
}

/// What is seen of one camera, of which nothing comes; files of video end some seconds after the last who asked.
fn screens(metrics: &Metrics) -> (Screens, Live) {
    let live = Live::new(&[id()], EncoderKind::X264, Arc::new(Brush(Annotator::new().unwrap())), metrics).unwrap();
    let hls = Hls::with_idle(live.clone(), Duration::from_secs(6), metrics).unwrap();
    let back = Back::new(Annotator::new().unwrap(), Arc::new(|_: &str| Vec::new()), metrics);
    (Screens { jpegs: Jpegs::new(live.clone(), metrics).unwrap(), hls, ready: Arc::new(|| Ok(())), back }, live)
}

/// A server whose camera has no picture.
struct Rig {
    console: Option<Console>,
    ready: Arc<AtomicBool>,
    metrics: Metrics,
    address: SocketAddr,
}

impl Rig {
    fn start(token: Option<&str>, limits: Limits) -> Self {
        let (metrics, ready) = (Metrics::new(), Arc::<AtomicBool>::default());
        let asked = ready.clone();
        let ready_now = move || asked.load(Ordering::SeqCst).then_some(()).ok_or_else(|| "the model is being loaded".to_owned());
        let screens = Screens { ready: Arc::new(ready_now), ..screens(&metrics).0 };
        let console = Console::start(config(token), limits, screens, &metrics).unwrap();
        let address = console.address();
        Self { console: Some(console), ready, metrics, address }
    }

    fn refused(&self) -> u64 {
        self.metrics.counter("http_refused", "all").get()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let begin = Instant::now();
        self.console.take().unwrap().finish(begin + Duration::from_secs(5));
        assert!(std::thread::panicking() || begin.elapsed() < Duration::from_secs(3), "{:?} to end", begin.elapsed());
    }
}

/// What every answer says to a browser.
fn dressed(answer: &Answer) {
    let policy = answer.header("content-security-policy").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; ") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"));
    assert!(answer.header("cache-control").is_some());
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[test]
fn a_server_answers_to_its_own_names_only() {
    let rig = Rig::start(None, Limits::default());
    let port = rig.address.port();
    for own in ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "nvr.home", "nvr.home:443"] {
        let plain = ask(rig.address, "GET /healthz", &[&format!("Host: {own}")]);
        assert_eq!((plain.status, plain.text()), (200, "ok\n"), "{own}");
        dressed(&plain);
        let with_port = if own.ends_with(":443") { own.to_owned() } else { format!("{own}:{port}") };
        assert_eq!(ask(rig.address, "GET /", &[&format!("Host: {with_port}")]).status, 200, "{own}");
    }
    // A name that somebody has point here, as rebinding does, and what only looks like ours.
    for other in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil@localhost", "192.168.1.1", "localhost:x", ""] {
        for path in ["/", "/healthz", "/nothing"] {
            let answer = ask(rig.address, &format!("GET {path}"), &[&format!("Host: {other}")]);
            assert_eq!(answer.status, 421, "{other} {path}");
            assert_eq!(answer.error(), "this server is not known by that name; ask by its address, or add the name to console.hosts");
            dressed(&answer);
        }
    }
    assert_eq!(ask(rig.address, "GET /", &[]).status, 400);
    assert_eq!(ask(rig.address, "GET /", &["Host: localhost", "Host: evil.example"]).status, 400);
    assert_eq!(ask(rig.address, "GET http://evil.example/", &["Host: localhost"]).status, 421);
    assert_eq!(ask(rig.address, "GET http://localhost/", &["Host: localhost"]).status, 200);
    assert_eq!(rig.refused(), 7 * 3 + 3);
    let nothing = ask(rig.address, "GET /../../etc/passwd", &["Host: localhost"]);
    assert_eq!((nothing.status, nothing.error().as_str()), (404, "there is nothing at this address"));
    assert_eq!(ask(rig.address, "DELETE /healthz", &["Host: localhost"]).status, 405);
}

#[test]
fn without_the_token_nothing_of_the_cameras_is_told() {
    let rig = Rig::start(Some(TOKEN), Limits::default());
    let get = |headers: &[&str]| ask(rig.address, "GET /", &[&["Host: localhost"], headers].concat());
    let refused = get(&[]);
    assert_eq!(refused.status, 401);
    assert!(refused.error().starts_with("a token is needed: log in at /login"), "{}", refused.error());
    assert!(refused.head.contains("Bearer realm=") && refused.head.contains("Basic realm="), "{}", refused.head);
    dressed(&refused);
    // A browser would show a window of its own.
    assert!(!get(&["Sec-Fetch-Mode: no-cors", "Sec-Fetch-Site: same-origin"]).head.contains("Basic"));
    let led = get(&["Accept: text/html,*/*"]);
    assert_eq!((led.status, led.header("location")), (303, Some("/login")));
    for address in ["/nothing", "/live/cam.jpg", "/logout"] {
        assert_eq!(ask(rig.address, &format!("GET {address}"), &["Host: localhost"]).status, 401, "{address}");
    }
    let basic = |pair: &str| {
        use base64::Engine;
        format!("Authorization: Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    };
    let wrong = [
        "Authorization: Bearer ".to_owned(),
        format!("Authorization: Bearer {}", &TOKEN[1..]),
        format!("Authorization: Bearer {TOKEN}x"),
        format!("Authorization: Digest {TOKEN}"),
        format!("Authorization: {TOKEN}"),
        basic("user:wrong"),
        basic(TOKEN),
        "Authorization: Basic ====".to_owned(),
        format!("Cookie: palisade={TOKEN}"),
        format!("Cookie: palisade-{}={TOKEN}", rig.address.port()),
        format!("Cookie: palisade-{}=", rig.address.port()),
    ];
    for header in &wrong {
        assert_eq!(get(&[header]).status, 401, "{header}");
    }
    for header in [format!("Authorization: Bearer {TOKEN}"), format!("authorization: bearer {TOKEN}"), basic(&format!("anybody:{TOKEN}"))] {
        let answer = get(&[&header]);
        assert_eq!(answer.status, 200, "{header}");
        assert!(answer.text().contains("cam"));
    }
    let open = ask(rig.address, "GET /healthz", &["Host: localhost"]);
    assert_eq!(open.status, 200);
}

#[test]
fn a_browser_logs_in_once() {
    let rig = Rig::start(Some(TOKEN), Limits::default());
    let host = format!("Host: localhost:{}", rig.address.port());
    let origin = format!("Origin: http://localhost:{}", rig.address.port());
    let form = ask(rig.address, "GET /login", &[&host]);
    assert!(form.status == 200 && form.text().contains("<form method=\"post\" action=\"/login\">"), "{form:?}");
    let apart =
        |tag: &str| tag.split_once('>').is_some_and(|(head, rest)| head.contains(" src=\"/assets/") && rest.starts_with("</script>"));
    let scripts: Vec<&str> = form.text().split("<script").skip(1).collect();
    assert!(scripts.iter().all(|tag| apart(tag)) && !form.text().contains("style="), "the policy forbids what stands within a page");
    dressed(&form);
    let written = TOKEN.replace('%', "%25").replace('+', "%2B").replace('/', "%2F");
    let wrong = ask_with(rig.address, "POST /login", &[&host, &origin], "token=0123456789abcdef");
    assert_eq!((wrong.status, wrong.header("set-cookie")), (401, None));
    assert!(wrong.error().starts_with("this is not the token"));
    let shown = ask_with(rig.address, "POST /login", &[&host, &origin, "Accept: text/html"], "token=x");
    assert!(shown.status == 401 && shown.text().contains("this is not the token"), "{shown:?}");
    let right = ask_with(rig.address, "POST /login", &[&host, &origin], &format!("token={written}"));
    assert_eq!((right.status, right.header("location")), (303, Some("/")));
    let set = right.header("set-cookie").unwrap();
    assert!(set.contains("; HttpOnly") && set.contains("; SameSite=Strict") && set.contains("; Path=/"), "{set}");
    assert!(!set.contains(TOKEN) && !set.contains(&written));
    let cookie = format!("Cookie: other=1; {}", set.split(';').next().unwrap());
    assert_eq!(ask(rig.address, "GET /", &[&host, &cookie]).status, 200);
    // Another daemon on this host has a cookie of its own: a browser keeps both.
    let other = Rig::start(Some("another0123456789"), Limits::default());
    let beside = ask_with(other.address, "POST /login", &[&format!("Host: localhost:{}", other.address.port())], "token=another0123456789");
    let names = [set, beside.header("set-cookie").unwrap()].map(|set| set.split('=').next().unwrap());
    assert_ne!(names[0], names[1]);
    let both = format!("Cookie: {}; {}", beside.header("set-cookie").unwrap().split(';').next().unwrap(), set.split(';').next().unwrap());
    assert_eq!(ask(rig.address, "GET /", &[&host, &both]).status, 200);
    let out = ask(rig.address, "POST /logout", &[&host, &origin, &cookie]);
    assert!(out.status == 303 && out.header("set-cookie").unwrap().contains("Max-Age=0"), "{out:?}");
    let large = ask_with(rig.address, "POST /login", &[&host], &format!("token={}", "x".repeat(5000)));
    assert_eq!(large.status, 413);
    // Where there is no token there is nothing to log in to.
    let open = Rig::start(None, Limits::default());
    assert_eq!(ask(open.address, "GET /login", &[&host]).status, 303);
    assert_eq!(ask_with(open.address, "POST /login", &[&host], "token=").status, 404);
}

#[test]
fn pages_of_other_sites_get_nothing_and_change_nothing() {
    let rig = Rig::start(None, Limits::default());
    let port = rig.address.port();
    let host = format!("Host: localhost:{port}");
    let post = |headers: &[&str]| ask(rig.address, "POST /logout", &[&[host.as_str()], headers].concat()).status;
    let own = format!("Origin: http://localhost:{port}");
    assert_eq!(post(&[]), 303, "a program that is no browser");
    assert_eq!(post(&[&own]), 303);
    assert_eq!(post(&["Sec-Fetch-Site: same-origin", "Origin: https://behind.a.proxy"]), 303);
    let other_port = format!("Origin: http://localhost:{}", port ^ 1);
    for foreign in ["Origin: http://evil.example", "Origin: null", "Origin: http://localhost", "Origin: file://", &other_port] {
        assert_eq!(post(&[foreign]), 403, "{foreign}");
    }
    for site in ["cross-site", "same-site", "none", "nonsense"] {
        assert_eq!(post(&[&format!("Sec-Fetch-Site: {site}"), &own]), 403, "{site}");
    }
    let get = |headers: &[&str]| ask(rig.address, "GET /", &[&[host.as_str()], headers].concat()).status;
    assert_eq!(get(&["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"]), 403);
    assert_eq!(get(&["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"]), 403);
    assert_eq!(get(&["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"]), 200, "a link");
    assert_eq!(get(&["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"]), 200, "typed in");
    assert_eq!(get(&["Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"]), 200);
}

#[test]
fn clients_that_dawdle_are_let_go_and_hold_up_nobody() {
    let second = Duration::from_secs(1);
    let rig = Rig::start(Some(TOKEN), Limits { connections: 6, head: second, body: second, ..Limits::default() });
    // One that says nothing, one that never ends its headers, and one that keeps a connection without a request.
    let mut silent = connect(rig.address);
    let mut slow = connect(rig.address);
    slow.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").unwrap();
    let mut drips = slow.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        (0..20)
            .take_while(|_| {
                std::thread::sleep(second / 5);
                drips.write_all(b"x").is_ok()
            })
            .count()
    });
    let mut kept = connect(rig.address);
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut body = connect(rig.address);
    body.write_all(b"POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100\r\n\r\ntoken=").unwrap();
    let begin = Instant::now();
    assert_eq!(ask(rig.address, "GET /healthz", &["Host: localhost"]).status, 200);
    assert!(begin.elapsed() < second / 2, "{:?}", begin.elapsed());
    for stream in [&mut silent, &mut slow, &mut kept] {
        let took = closed_after(stream);
        assert!(took < second * 3, "{took:?}");
    }
    let late = read(&mut body);
    assert_eq!((late.status, late.error().as_str()), (408, "the request's body did not come in time"));
    assert!(drip.join().unwrap() < 15);
    assert_eq!(ask(rig.address, "GET /healthz", &["Host: localhost"]).status, 200);
    let large = exchange(rig.address, &format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(300_000)));
    assert_eq!(large.status, 431);
    assert_eq!(exchange(rig.address, "nonsense\r\n\r\n").status, 400);
    // The silent one, the slow one, and two that are no requests; who was answered and asked for no more is none.
    until("counted", || rig.refused() >= 4);
    assert_eq!(rig.refused(), 4);
}

#[test]
fn where_every_place_is_taken_who_asks_for_nothing_makes_way_and_who_asks_does_not() {
    let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
    let rig = Rig::start(Some(TOKEN), Limits { connections: 6, head: minute, body: minute, ..Limits::default() });
    let get = || ask(rig.address, "GET /healthz", &["Host: localhost"]).status;
    // More than there are places, one after another; the first of them were let go for the last.
    let mut silent: Vec<_> = (0..10)
        .map(|_| {
            let mut stream = connect(rig.address);
            stream.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
            stream
        })
        .collect();
    let begin = Instant::now();
    assert_eq!(get(), 200);
    assert!(begin.elapsed() < 5 * second, "{:?}", begin.elapsed());
    for stream in &mut silent[..4] {
        assert!(closed_after(stream) < 5 * second);
    }
    // A connection that was answered is as one that has said nothing.
    let mut kept = connect(rig.address);
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    kept.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    // Those that ask stay, and who comes when there are no others is told so at once.
    let asks = || {
        let mut stream = connect(rig.address);
        let head = "POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut awaited = [0; 25];
        stream.read_exact(&mut awaited).unwrap();
        assert_eq!(&awaited, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream
    };
    let mut asking: Vec<_> = std::iter::repeat_with(asks).take(6).collect();
    assert!(closed_after(&mut kept) < 5 * second);
    let full = exchange(rig.address, "");
    assert_eq!((full.status, full.error().as_str()), (503, "there are too many connections; try it later"));
    for stream in &mut asking {
        stream.write_all(b"token=bad").unwrap();
        assert_eq!(read(stream).status, 401);
    }
    assert_eq!(get(), 200);
}

#[test]
fn an_address_that_is_taken_is_told() {
    let rig = Rig::start(None, Limits::default());
    let metrics = Metrics::new();
    let taken = ConsoleConfig { listen: rig.address, ..config(None) };
    let Err(error) = Console::start(taken, Limits::default(), screens(&metrics).0, &metrics) else { panic!("two on one port") };
    assert!(error.chain().starts_with(&format!("console.listen: cannot listen on {}: Address already in use", rig.address)), "{error:?}");
}

#[test]
fn readiness_is_told_with_the_reason() {
    let rig = Rig::start(Some(TOKEN), Limits::default());
    let not_yet = ask(rig.address, "GET /readyz", &["Host: localhost"]);
    assert_eq!((not_yet.status, not_yet.error().as_str()), (503, "the model is being loaded"));
    assert!(not_yet.header("retry-after").is_some());
    rig.ready.store(true, Ordering::SeqCst);
    assert_eq!(ask(rig.address, "GET /readyz", &["Host: localhost"]).status, 200);
    assert_eq!(ask(rig.address, "GET /healthz", &["Host: localhost"]).text(), "ok\n");
}
