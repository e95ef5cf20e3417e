//! What is elsewhere, or already running here: cameras, the hub, the broker, ports.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::ops::ControlFlow;
use std::time::Duration;

use crate::app::doctor::Finding;
use crate::base::shutdown::Shutdown;
use crate::config::{CameraConfig, Config, Input};
use crate::model::{self, HubOptions};
use crate::mqtt::Patience;
use crate::mqtt::tail::{self, News};
use crate::types::ModelSource;

/// For an address to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether something listens where each camera is; nobody logs in. A clip is to be there.
pub(super) fn cameras(config: &Config) -> Vec<Finding> {
    // All at once: those that do not answer are waited for.
    std::thread::scope(|scope| {
        let asked = config.cameras.iter().filter(|camera| camera.enabled);
        let asked: Vec<_> = asked
            .map(|camera| {
                (camera, std::thread::Builder::new().name(format!("ask-{}", camera.id)).spawn_scoped(scope, || camera_at(camera)))
            })
            .collect();
        // One that no thread is to be had for is asked here.
        asked
            .into_iter()
            .filter_map(|(camera, thread)| thread.map_or_else(|_| camera_at(camera), |thread| thread.join().ok().flatten()))
            .collect()
    })
}

fn camera_at(camera: &CameraConfig) -> Option<Finding> {
    let Input::Uri(uri) = &camera.input else { return None };
    let subject = format!("camera {}", camera.id);
    let (scheme, rest) = uri.split_once("://")?;
    let port = match scheme {
        "rtsp" => 554,
        "rtsps" => 322,
        "http" => 80,
        "https" => 443,
        "file" => {
            let path = percent_encoding::percent_decode_str(rest).decode_utf8_lossy().into_owned();
            return Some(match std::fs::File::open(&path) {
                Ok(_) => Finding::good(subject, format!("{path} can be read")),
                Err(error) => Finding::bad(
                    subject,
                    format!("{path} cannot be read: {error}"),
                    format!("ls -l {path}; the daemon's user must be able to read it"),
                ),
            });
        }
        _ => return None,
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let place = format!("{scheme}://{host}");
    let target = if has_port(host) { host.to_owned() } else { format!("{host}:{port}") };
    Some(match knock(&target) {
        Ok(()) => Finding::good(subject, format!("{place} answers")),
        Err(why) => Finding::bad(
            subject,
            format!("{place} does not answer: {why}"),
            format!("ping {}; check uri, the camera's power and its network", name(host)),
        ),
    })
}

/// `[::1]` has none, `[::1]:554` has.
fn has_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(before, port)| port.parse::<u16>().is_ok() && (!before.contains(':') || before.ends_with(']')))
}

fn name(host: &str) -> &str {
    let name = if has_port(host) { host.rsplit_once(':').map_or(host, |(name, _)| name) } else { host };
    name.trim_matches(['[', ']'])
}

fn knock(target: &str) -> Result<(), String> {
    let addresses = target.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = "its name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Whether the model is here or can be had.
pub(super) fn model(config: &Config) -> Finding {
    match model::availability(&config.model.source, &HubOptions::from_env()) {
        Ok(what) => Finding::good("model", what),
        Err(error) => {
            // The sentence says what to do.
            let cure = match &config.model.source {
                ModelSource::Hub { .. } => "for the service the token is the file /etc/palisade/credentials/hf_token",
                ModelSource::Folder(_) => "mend model.path",
            };
            Finding::bad("model", error.chain(), cure)
        }
    }
}

/// Whether the broker lets us in and lets us read our topics.
pub(super) fn broker(config: &Config) -> Option<Finding> {
    let mqtt = config.mqtt.as_ref()?;
    let place = format!("{}:{}", mqtt.host, mqtt.port);
    let mut said = None;
    let followed = tail::follow(mqtt, Patience::default(), &Shutdown::new(), |news| match news {
        News::Connected => {
            said = Some(Ok(()));
            ControlFlow::Break(())
        }
        News::Trouble(sentence, _) => {
            said = Some(Err(sentence));
            ControlFlow::Break(())
        }
        News::Message(_) => ControlFlow::Continue(()),
    });
    let cure =
        format!("is it running? on this machine: sudo systemctl status mosquitto; else check mqtt.host, port, tls, username: {place}");
    Some(match (followed, said) {
        (Err(error), _) => Finding::bad("broker", error.chain(), "mend [mqtt]"),
        (Ok(()), Some(Ok(()))) => Finding::good("broker", format!("{place} lets us in and shows us {}/#", mqtt.topic_prefix)),
        (Ok(()), Some(Err(sentence))) => Finding::bad("broker", sentence, cure),
        (Ok(()), None) => Finding::bad("broker", format!("{place} does not answer"), cure),
    })
}

/// Whether what the daemon is to listen on is free, or the daemon's already.
pub(super) fn ports(config: &Config) -> Vec<Finding> {
    let console = config.console.as_ref().map(|console| {
        let ask = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", reachable(console.listen));
        ("console.listen", console.listen, ask, "HTTP/1.1 200")
    });
    let rtsp = config.output.rtsp.as_ref().map(|rtsp| {
        let ask = "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n".to_owned();
        ("output.rtsp.listen", rtsp.listen, ask, "RTSP/1.0")
    });
    console.into_iter().chain(rtsp).map(|(key, listen, ask, answer)| port_at(key, listen, &ask, answer)).collect()
}

fn port_at(key: &str, listen: SocketAddr, ask: &str, answer: &str) -> Finding {
    match TcpListener::bind(listen) {
        Ok(_) => Finding::good(key, format!("{listen} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            if answers(reachable(listen), ask, answer) {
                return Finding::good(key, format!("{listen} is in use by a server of the right kind: the daemon, it seems"));
            }
            Finding::bad(key, format!("{listen} is in use by another program"), format!("sudo ss -ltnp 'sport = :{}'", listen.port()))
        }
        Err(error) => Finding::bad(key, format!("{listen} cannot be listened on: {error}"), format!("ip address; then mend {key}")),
    }
}

/// Where a server that listens on `listen` is asked from this machine.
pub(in crate::app) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

fn answers(address: SocketAddr, ask: &str, answer: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, PATIENCE) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).ok();
    let mut head = vec![0; answer.len()];
    stream.write_all(ask.as_bytes()).and_then(|()| stream.read_exact(&mut head)).is_ok_and(|()| head == answer.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::doctor::Verdict;
    use crate::types::{CameraId, Prompt};

    fn camera(uri: &str) -> CameraConfig {
        CameraConfig::new(CameraId::new("gate").unwrap(), Input::Uri(uri.to_owned()), Prompt::new("detect cat").unwrap())
    }

    #[test]
    fn a_camera_is_asked_at_its_own_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(camera_at(&camera(&format!("rtsp://127.0.0.1:{port}/a?b"))).unwrap().verdict, Verdict::Good);
        drop(listener);
        let gone = camera_at(&camera(&format!("rtsp://127.0.0.1:{port}/a?key=s3cr3t"))).unwrap();
        assert!(gone.verdict == Verdict::Bad && !gone.what.contains("s3cr3t"), "{}", gone.what);
        assert_eq!(camera_at(&camera("file:///nowhere/a%20b.mp4")).unwrap().verdict, Verdict::Bad);
    }

    #[test]
    fn hosts_with_and_without_a_port() {
        let both = |host| (has_port(host), name(host));
        assert_eq!(both("cam:554"), (true, "cam"));
        assert_eq!(both("cam"), (false, "cam"));
        assert_eq!(both("[fe80::1]"), (false, "fe80::1"));
        assert_eq!(both("[fe80::1]:554"), (true, "fe80::1"));
    }

    #[test]
    fn a_port_of_another_program_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let greeter = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"220 another kind of server\r\n").unwrap();
            listener
        });
        let finding = port_at("console.listen", address, "GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.1 200");
        assert_eq!(finding.verdict, Verdict::Bad, "{}", finding.what);
        drop(greeter.join().unwrap());
        assert_eq!(port_at("console.listen", address, "", "").verdict, Verdict::Good);
    }
}
