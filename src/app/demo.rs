//! The daemon on the sample clip, with a broker of its own on loopback and a subscriber that is not ours: what arrives
//! there is shown as it arrives, and summed up at the end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::app::{self, check, oneshot};
use crate::base::error::{Context, Error, Kind, Result};
use crate::base::metrics::Metrics;
use crate::base::shutdown::Shutdown;
use crate::base::sync;
use crate::base::thread;
use crate::mqtt::tail;

const LABELS: [&str; 10] = ["person", "cat", "dog", "car", "bus", "truck", "bicycle", "bird", "horse", "traffic light"];

/// The one camera's name.
const CAMERA: &str = "street";

/// Where the package puts the samples.
const INSTALLED: &str = "/usr/share/palisade";

/// Runs the demo until the clip ends or `shutdown`.
///
/// # Errors
/// When the samples or the broker are not there, or the daemon cannot start.
pub fn run(samples: &Path, out: PathBuf, children: &Children, shutdown: &Shutdown) -> Result<()> {
    let installed = Path::new(INSTALLED);
    let samples = if !samples.exists() && installed.exists() { installed } else { samples };
    fs::create_dir_all(&out).context(Kind::Io, || format!("{} cannot be made", out.display()))?;
    // The video of an earlier demo would make this one's take another name.
    let video = out.join(format!("{CAMERA}.mp4"));
    fs::remove_file(&video).ok();
    // What waited for an earlier one's broker would be told as this one's.
    fs::remove_dir_all(out.join("state")).ok();
    let port = free_port()?;
    let file = write_config(samples, &out, port)?;
    let config = check::load(&file).map_err(|faults| Error::new(Kind::Config, faults.to_string()))?;
    let _guard = EndOnDrop(children.clone());
    start_broker(children, &out, port)?;
    let lines = subscribe(children, port)?;
    let metrics = Metrics::new();
    let screen = Screen::new(metrics.clone());
    let (clip, file) = (samples.join("street.mp4"), file.display());
    oneshot::print(&format!("palisade looks at {}; broker on 127.0.0.1:{port}; configuration {file}", clip.display()))?;
    let shown = screen.clone();
    let reader = thread::spawn("demo-lines", move || {
        BufReader::new(lines).lines().map_while(|line| line.ok()).for_each(|line| shown.message(&line))
    })?;
    let ended = app::run(config, None, shutdown, &metrics);
    // The last messages are on their way from the broker; its `offline` comes after all of them.
    screen.wait_for_offline(Duration::from_secs(3));
    children.end();
    drop(reader);
    ended?;
    screen.summary(&video, &out)
}

fn write_config(samples: &Path, out: &Path, port: u16) -> Result<PathBuf> {
    // A JSON text is a TOML basic string too.
    let quoted = |path: PathBuf| serde_json::Value::from(path.to_string_lossy().into_owned()).to_string();
    let text = format!(
        "# What `palisade demo` runs; `palisade run --config` takes it too.\n\
         [model]\npath = {model}\n\n\
         [[camera]]\nid = \"{CAMERA}\"\nuri = {clip}\nlabels = {LABELS:?}\ninterval = 0.25\n\n\
         [output.snapshots]\ndir = {snapshots}\nkeep = 200\n\n\
         [output.file]\npath = {video}\n\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {port}\nstate_dir = {state}\n",
        state = quoted(std::path::absolute(out.join("state")).unwrap_or_else(|_| out.join("state"))),
        model = quoted(samples.join("demo-model")),
        clip = quoted(samples.join("street.mp4")),
        snapshots = quoted(out.join("snapshots")),
        video = quoted(out.join("{camera}.mp4")),
    );
    let file = out.join("palisade.toml");
    fs::write(&file, text).context(Kind::Io, || format!("{} cannot be written", file.display()))?;
    Ok(file)
}

/// A port of loopback that nobody listens on.
pub(super) fn free_port() -> Result<u16> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    Ok(bound.context(Kind::Io, || "no port is free on loopback")?.port())
}

/// The broker and the subscriber. They stand in process groups of their own, so that Ctrl-C reaches the daemon alone and
/// the broker still hears its goodbye.
#[derive(Clone, Default)]
pub struct Children(Arc<Mutex<Vec<Child>>>);

impl Children {
    /// Ends all of them.
    pub fn end(&self) {
        for mut child in self.lock().drain(..) {
            child.kill().ok();
            child.wait().ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Child>> {
        sync::lock(&self.0)
    }

    fn start(&self, program: &str, command: &mut Command) -> Result<Option<ChildStdout>> {
        let missing =
            || format!("{program} cannot be started; install it with: sudo apt install mosquitto mosquitto-clients (or run make demo)");
        let mut child = command.stdin(Stdio::null()).process_group(0).spawn().context(Kind::Io, missing)?;
        let output = child.stdout.take();
        self.lock().push(child);
        Ok(output)
    }

    /// How the first of them that has ended did so.
    fn ended(&self) -> Option<ExitStatus> {
        self.lock().iter_mut().find_map(|child| child.try_wait().ok().flatten())
    }
}

struct EndOnDrop(Children);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Starts a mosquitto on loopback, with its files in `out`; up when this returns.
pub(super) fn start_broker(children: &Children, out: &Path, port: u16) -> Result<()> {
    let file = out.join("mosquitto.conf");
    let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n");
    fs::write(&file, text).context(Kind::Io, || format!("{} cannot be written", file.display()))?;
    // Debian keeps the broker out of an ordinary user's PATH.
    let program = if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
    children.start("mosquitto", Command::new(program).arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if let Some(status) = children.ended() {
            return Err(Error::new(
                Kind::Io,
                format!("mosquitto ended at once with {status}; see what `{program} -c {}` says", file.display()),
            ));
        }
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Io, format!("mosquitto does not answer on 127.0.0.1:{port}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn subscribe(children: &Children, port: u16) -> Result<ChildStdout> {
    let topics = ["-t", "palisade/status", "-t", "palisade/+/detections"];
    let mut command = Command::new("mosquitto_sub");
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "1", "-F", "%t %p"]).args(topics);
    let output = children.start("mosquitto_sub", command.stdout(Stdio::piped()))?;
    output.ok_or_else(|| Error::new(Kind::Internal, "the subscriber has no output"))
}

/// What is shown: a line a message, a progress line below, the summary at the end.
#[derive(Clone)]
struct Screen {
    metrics: Metrics,
    progress: ProgressBar,
    begin: Instant,
    heard: Arc<Mutex<Heard>>,
}

/// What the subscriber heard.
#[derive(Default)]
struct Heard {
    messages: u64,
    objects: BTreeMap<String, u64>,
    offline: bool,
}

impl Screen {
    fn new(metrics: Metrics) -> Self {
        let progress = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            progress.set_style(style);
        }
        Self { metrics, progress, begin: Instant::now(), heard: Arc::default() }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        sync::lock(&self.heard)
    }

    /// One line of the subscriber: topic, space, payload.
    fn message(&self, line: &str) {
        let Some((topic, payload)) = line.split_once(' ') else { return };
        if topic == "palisade/status" {
            self.heard().offline = payload == "offline";
            return self.line(&format!("{topic} {payload}"));
        }
        let Ok(message) = serde_json::from_str::<Value>(payload) else { return self.line(line) };
        let found = message["detections"].as_array().map(Vec::as_slice).unwrap_or_default();
        {
            let mut heard = self.heard();
            heard.messages += 1;
            for one in found {
                *heard.objects.entry(one["label"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
            }
        }
        let objects: Vec<String> = found.iter().map(tail::object).collect();
        let objects = if objects.is_empty() { "nothing".to_owned() } else { objects.join("   ") };
        self.line(&format!(
            "{} #{:<4} {objects}",
            message["time"].as_str().and_then(|time| time.get(11..23)).unwrap_or("?"),
            message["seq"]
        ));
    }

    fn line(&self, text: &str) {
        // A reader that went away does not stop the demo; the summary will say so.
        self.progress.suspend(|| oneshot::print(text)).ok();
        let count = |name| self.metrics.counter(name, CAMERA).get();
        let seconds = self.begin.elapsed().as_secs();
        self.progress.set_message(format!("{seconds} s   {} frames seen, {} looked at", count("frames_in"), count("frames_analysed")));
        self.progress.tick();
    }

    fn wait_for_offline(&self, most: Duration) {
        let deadline = Instant::now() + most;
        while !self.heard().offline && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn summary(&self, video: &Path, out: &Path) -> Result<()> {
        self.progress.finish_and_clear();
        let count = |name| self.metrics.counter(name, CAMERA).get();
        let heard = self.heard();
        let objects: Vec<String> = heard.objects.iter().map(|(label, number)| format!("{label} {number}")).collect();
        let percentiles = |name: &'static str| {
            let series = self.metrics.latency(name, "all");
            let at = |share| series.percentile(share).map_or("-".to_owned(), |millis| format!("{millis:.0} ms"));
            format!("p50 {}, p90 {}, p99 {}", at(0.5), at(0.9), at(0.99))
        };
        let bold = |text: &str| if std::io::stdout().is_terminal() { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() };
        let (seen, sampled, analysed) = (count("frames_in"), count("frames_sampled"), count("frames_analysed"));
        let lines = [
            bold("summary"),
            format!(
                "  frames      {seen} seen, {sampled} sampled, {analysed} analysed, {} replaced by a newer one",
                count("frames_dropped")
            ),
            format!("  objects     {}", if objects.is_empty() { "none".to_owned() } else { objects.join(", ") }),
            format!("  MQTT        {} detection messages reached the subscriber", heard.messages),
            format!("  model       {}", percentiles("inference")),
            format!(
                "  drafts      {} of {} answer tokens were those of the answer before",
                count("draft_tokens_accepted"),
                count("answer_tokens")
            ),
            format!("  in all      {} (from decoder to answer)", percentiles("total")),
            format!("  video       {} (annotated; play it with any player)", video.display()),
            format!("  pictures    {}", out.join("snapshots").join(CAMERA).display()),
        ];
        oneshot::print(&lines.join("\n"))
    }
}
