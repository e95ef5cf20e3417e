//! A real mosquitto as a child process, which can be stopped, killed, frozen and restarted, and a subscriber that collects.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use palisade::config::{ClientCertificate, MqttConfig, TlsConfig};
use rumqttc::tokio_native_tls::native_tls::{Certificate, Identity, TlsConnector};
use rumqttc::{Client, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use tempfile::TempDir;

/// The patience of these helpers: the machine may be busy.
pub const LONG: Duration = Duration::from_secs(30);

/// Waits until `condition` holds; panics with `what` after `LONG`.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {LONG:?} in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A port nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// What sort of broker.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Only this user with this password may in; `None`: everybody.
    pub login: Option<(String, String)>,
    /// Only TLS, with a certificate for `localhost` (not for 127.0.0.1) of an authority made for this broker.
    pub tls: bool,
    /// With `tls`: its certificate was valid until yesterday.
    pub expired: bool,
    /// With `tls`: only who shows a certificate of the broker's authority may in; `client.pem` and `client.key` are one.
    pub asks_for_certificate: bool,
    /// The port; `None`: a free one.
    pub port: Option<u16>,
    /// More lines of its configuration.
    pub more: Vec<String>,
    /// Its access list: who may do what with which topic.
    pub access: Option<String>,
}

/// A mosquitto on a loopback port. Killed when dropped. Sessions and retained messages survive `stop` and `kill9`.
pub struct Broker {
    setup: Setup,
    port: u16,
    folder: TempDir,
    child: Option<Child>,
}

impl Broker {
    /// One that lets everybody in, without TLS.
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    /// One that asks for a login.
    pub fn with_login(user: &str, password: &str) -> Self {
        Self::with(Setup { login: Some((user.to_owned(), password.to_owned())), ..Setup::default() })
    }

    /// One that speaks TLS only.
    pub fn with_tls() -> Self {
        Self::with(Setup { tls: true, ..Setup::default() })
    }

    /// One that another process runs, or nobody, on `port`.
    pub fn absent(port: u16) -> Self {
        Self { setup: Setup::default(), port, folder: tempfile::tempdir().unwrap(), child: None }
    }

    /// One as `setup` says; up when this returns.
    pub fn with(setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        if setup.tls {
            make_authority(folder.path(), "ca");
            make_certificate(folder.path(), "server", if setup.expired { -1 } else { 2 });
            make_certificate(folder.path(), "client", 2);
        }
        let port = setup.port.unwrap_or_else(free_port);
        let mut broker = Self { setup, port, folder, child: None };
        broker.configure();
        broker.restart();
        broker
    }

    fn configure(&self) {
        let path = |name: &str| self.path(name).display().to_string();
        let mut lines = vec![
            // As root mosquitto would change to another user, who may not read these files.
            "user root".to_owned(),
            format!("listener {} 127.0.0.1", self.port),
            format!("log_dest file {}", path("log")),
            "log_type all".to_owned(),
            format!("persistence true\npersistence_location {}/", self.folder.path().display()),
            "autosave_interval 1\nautosave_on_changes true".to_owned(),
            "max_inflight_messages 0\nmax_queued_messages 0".to_owned(),
        ];
        if self.setup.tls {
            lines.push(format!("certfile {}\nkeyfile {}", path("server.pem"), path("server.key")));
        }
        if self.setup.asks_for_certificate {
            lines.push(format!("cafile {}\nrequire_certificate true", path("ca.pem")));
        }
        if let Some(access) = &self.setup.access {
            fs::write(self.path("access"), access).unwrap();
            lines.push(format!("acl_file {}", path("access")));
        }
        lines.extend(self.setup.more.iter().cloned());
        match &self.setup.login {
            Some((user, password)) => {
                let tool = tool("mosquitto_passwd");
                run(Command::new(tool).args(["-b", "-c"]).arg(self.path("users")).args([user, password]));
                lines.push(format!("allow_anonymous false\npassword_file {}", path("users")));
            }
            None => lines.push("allow_anonymous true".to_owned()),
        }
        fs::write(self.path("conf"), lines.join("\n") + "\n").unwrap();
    }

    /// Starts it on the same port with the same files, after `stop` or `kill9`; up when this returns.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the broker runs already");
        let mut child = Command::new(tool("mosquitto"))
            .arg("-c")
            .arg(self.path("conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("mosquitto accepts connections", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "mosquitto ended with {}: {}", ended.unwrap(), self.log());
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
        });
        self.child = Some(child);
    }

    /// The port it listens on on 127.0.0.1.
    #[allow(dead_code, reason = "for tests that write a configuration file")]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A file in its folder: `ca.pem`, `log`, `conf`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Ends it as a service manager would; it writes its files.
    pub fn stop(&mut self) {
        self.signal("TERM");
        self.reap();
    }

    /// Ends it at once.
    pub fn kill9(&mut self) {
        self.signal("KILL");
        self.reap();
    }

    /// After `kill9`: it knows nothing any more, no retained message and no session, as where nothing is persistent.
    pub fn forget(&self) {
        fs::remove_file(self.path("mosquitto.db")).ok();
    }

    /// Stops its process; its sockets stay open and take data until their buffers are full.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// The certificate that it lets in.
    pub fn client_certificate(&self) -> ClientCertificate {
        ClientCertificate { cert_file: self.path("client.pem"), key_file: self.path("client.key") }
    }

    /// A configuration that reaches it: host, port, login, CA and client certificate; prefix `palisade`, QoS 1, discovery.
    pub fn config(&self, client_id: &str) -> MqttConfig {
        let (username, password) = self.setup.login.clone().unzip();
        let client = self.setup.asks_for_certificate.then(|| self.client_certificate());
        MqttConfig {
            host: "localhost".to_owned(),
            port: self.port,
            version: palisade::config::MqttVersion::V3,
            username,
            password: password.map(Into::into),
            topic_prefix: "palisade".to_owned(),
            qos: 1,
            tls: self.setup.tls.then(|| TlsConfig { ca_file: Some(self.path("ca.pem")), client }),
            client_id: client_id.to_owned(),
            durable: palisade::config::Durable::All,
            state_dir: None,
            control: false,
            snapshots: true,
            stats_interval: Duration::from_secs(60),
            discovery_prefix: Some("homeassistant".to_owned()),
            frigate_prefix: None,
            max_packet: 256 * 1024,
            backlog_rate: 1000,
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("the broker is down").id();
        run(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()));
    }

    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Makes `NAME.pem` and `NAME.key` in `folder`: an authority that signed itself.
pub fn make_authority(folder: &Path, name: &str) {
    let subject = format!("/CN=palisade test {name}");
    openssl(
        folder,
        &format!("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout {name}.key -out {name}.pem -subj"),
        &[&subject],
    );
}

/// Makes `NAME.pem` and `NAME.key` in `folder`: a certificate for `localhost` of the authority `ca` there, valid for so many
/// days from now.
fn make_certificate(folder: &Path, name: &str, days: i32) {
    fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl(
        folder,
        &format!("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN=localhost"),
        &[],
    );
    openssl(
        folder,
        &format!("x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -extfile names -out {name}.pem"),
        &[],
    );
}

fn openssl(folder: &Path, words: &str, more: &[&str]) {
    run(Command::new("openssl").current_dir(folder).args(words.split(' ')).args(more));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
}

/// Where a program of the mosquitto packages lies; a missing one fails the test.
fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{name} is not installed, and these tests need a real broker; must be there: apt install mosquitto mosquitto-clients")
    })
}

/// A message as a subscriber got it.
#[derive(Clone, Debug)]
pub struct Received {
    pub topic: String,
    pub payload: Vec<u8>,
    /// Set on what the broker had kept from before the subscription.
    pub retain: bool,
}

impl Received {
    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// The payload as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).unwrap()
    }
}

#[derive(Default)]
struct Inbox {
    messages: Vec<Received>,
    subscriptions: usize,
}

/// Collects what comes on a filter, in a thread; reconnects and subscribes again by itself.
pub struct Subscriber {
    inbox: Arc<(Mutex<Inbox>, Condvar)>,
    stop: Arc<AtomicBool>,
    client: Client,
}

impl Subscriber {
    /// Subscribes to `filter` with QoS 1; subscribed when this returns.
    pub fn new(broker: &Broker, filter: &str) -> Self {
        Self::open(broker, filter, true)
    }

    /// The same with a lasting session: the broker keeps messages while this one or the broker is away.
    pub fn durable(broker: &Broker, filter: &str) -> Self {
        Self::open(broker, filter, false)
    }

    fn open(broker: &Broker, filter: &str, clean: bool) -> Self {
        let mut options = MqttOptions::new(format!("subscriber-{}", uuid::Uuid::new_v4().simple()), "localhost", broker.port);
        options.set_keep_alive(Duration::from_secs(5)).set_clean_session(clean).set_max_packet_size(1 << 20, 1 << 20);
        if let Some((user, password)) = &broker.setup.login {
            options.set_credentials(user, password);
        }
        if broker.setup.tls {
            let authority = Certificate::from_pem(&fs::read(broker.path("ca.pem")).unwrap()).unwrap();
            let mut builder = TlsConnector::builder();
            if broker.setup.asks_for_certificate {
                let [cert, key] = ["client.pem", "client.key"].map(|name| fs::read(broker.path(name)).unwrap());
                builder.identity(Identity::from_pkcs8(&cert, &key).unwrap());
            }
            let connector = builder.add_root_certificate(authority).build().unwrap();
            options.set_transport(Transport::tls_with_config(TlsConfiguration::NativeConnector(connector)));
        }
        let (client, mut connection) = Client::new(options, 16);
        let subscriber = Self { inbox: Arc::default(), stop: Arc::default(), client: client.clone() };
        let (inbox, stop, filter) = (subscriber.inbox.clone(), subscriber.stop.clone(), filter.to_owned());
        let body = move || {
            while !stop.load(Ordering::SeqCst) {
                match connection.recv() {
                    Ok(Ok(Event::Incoming(Packet::ConnAck(_)))) => client.try_subscribe(&filter, QoS::AtLeastOnce).unwrap(),
                    Ok(Ok(Event::Incoming(Packet::SubAck(_)))) => change(&inbox, |inbox| inbox.subscriptions += 1),
                    Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => change(&inbox, |inbox| {
                        let (topic, payload, retain) = (publish.topic.clone(), publish.payload.to_vec(), publish.retain);
                        inbox.messages.push(Received { topic, payload, retain });
                    }),
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => thread::sleep(Duration::from_millis(30)),
                    Err(_) => return,
                }
            }
        };
        thread::Builder::new().name("subscriber".to_owned()).spawn(body).unwrap();
        subscriber.wait("the subscription", |inbox| inbox.subscriptions > 0);
        subscriber
    }

    /// Everything so far, in order of arrival.
    pub fn messages(&self) -> Vec<Received> {
        self.inbox.0.lock().unwrap().messages.clone()
    }

    /// Everything so far on one topic.
    pub fn on(&self, topic: &str) -> Vec<Received> {
        self.messages().into_iter().filter(|message| message.topic == topic).collect()
    }

    /// How often it has subscribed: once more after each loss.
    pub fn subscriptions(&self) -> usize {
        self.inbox.0.lock().unwrap().subscriptions
    }

    /// Waits until `condition` holds for what came so far; panics with `what` and the newest messages after `LONG`.
    #[track_caller]
    pub fn wait_for(&self, what: &str, mut condition: impl FnMut(&[Received]) -> bool) {
        self.wait(what, |inbox| condition(&inbox.messages));
    }

    /// Waits until the newest message on `topic` has this text.
    #[track_caller]
    pub fn wait_text(&self, topic: &str, text: &str) {
        let newest = |messages: &[Received]| messages.iter().rfind(|message| message.topic == topic).map(Received::text);
        self.wait_for(&format!("{text:?} on {topic}"), |messages| newest(messages).as_deref() == Some(text));
    }

    #[track_caller]
    fn wait(&self, what: &str, mut condition: impl FnMut(&Inbox) -> bool) {
        let (inbox, changed) = &*self.inbox;
        let deadline = Instant::now() + LONG;
        let mut inbox = inbox.lock().unwrap();
        while !condition(&inbox) {
            let left = deadline.saturating_duration_since(Instant::now());
            let newest: Vec<String> = inbox.messages.iter().rev().take(5).map(|m| format!("{} {}", m.topic, m.text())).collect();
            assert!(!left.is_zero(), "waited {LONG:?} in vain for {what}; {} messages, newest first: {newest:#?}", inbox.messages.len());
            (inbox, _) = changed.wait_timeout(inbox, left).unwrap();
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.client.try_disconnect().ok();
    }
}

fn change(inbox: &(Mutex<Inbox>, Condvar), change: impl FnOnce(&mut Inbox)) {
    change(&mut inbox.0.lock().unwrap());
    inbox.1.notify_all();
}
