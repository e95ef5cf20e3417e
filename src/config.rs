//! Floor 2: the configuration. `raw` reads the file and collects every fault; what comes out is checked and whole.
//!
//! Each stage receives its own struct from here, never the whole `Config`.

mod console;
mod credentials;
mod file;
mod live;
mod raw;
mod reader;
mod scores;
mod uri;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::redact::{self, SecretString};
use crate::types::{CameraId, MinScore, Prompt, Tracking};

pub use crate::types::{Device, Dtype, ModelSource};

pub use console::{ConsoleConfig, HistoryConfig};
pub use file::FileConfig;
pub use live::{EncoderKind, PushConfig, RtspLogin, V4l2Config};
pub use reader::Fault;

/// Every fault of a configuration file, with the file's name. `Display` is one line per fault.
#[derive(Debug)]
pub struct Faults {
    /// The file.
    pub file: PathBuf,
    /// At least one.
    pub list: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> =
            self.list.iter().map(|fault| format!("{}:{}: {}", self.file.display(), fault.line, fault.message)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Faults {}

/// What only a stage can judge; each gives a sentence that goes on after the key path.
#[derive(Clone, Copy)]
pub struct Checks<'c> {
    /// A `gst-launch` fragment that takes video and ends in a sink.
    pub fragment: &'c dyn Fn(&str) -> Result<(), String>,
    /// A `gst-launch` fragment that begins with a source and ends in raw video.
    pub source: &'c dyn Fn(&str) -> Result<(), String>,
    /// The file of the authority, or of the one certificate, that a camera is trusted by.
    pub ca_file: &'c dyn Fn(&Path) -> Result<(), String>,
    /// The broker's encryption.
    pub tls: &'c dyn Fn(&TlsConfig) -> Result<(), TlsFault>,
    /// A device to compute on.
    pub device: &'c dyn Fn(Device) -> Result<(), String>,
}

impl Config {
    /// Reads and checks a file; secrets may also come from the process's environment. `checks` judges what only
    /// a stage can.
    ///
    /// # Errors
    /// Every fault found, not only the first.
    pub fn load(file: &Path, checks: &Checks<'_>) -> Result<Self, Faults> {
        let faults = |list| Faults { file: file.to_owned(), list };
        let text =
            std::fs::read_to_string(file).map_err(|error| faults(vec![Fault { line: 1, message: format!("cannot be read: {error}") }]))?;
        Self::read(&text, checks).map_err(faults)
    }

    /// As `load`, of a file's text.
    ///
    /// # Errors
    /// Every fault found, not only the first.
    pub fn read(text: &str, checks: &Checks<'_>) -> Result<Self, Vec<Fault>> {
        raw::parse(text, &|name| std::env::var(name).ok(), checks)
    }
}

/// The whole checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The model.
    pub model: ModelConfig,
    /// The cameras, at least one.
    pub cameras: Vec<CameraConfig>,
    /// Where annotated frames go.
    pub output: OutputConfig,
    /// Where clips go; `None`: no camera's are kept.
    pub record: Option<RecordConfig>,
    /// Where pictures of objects go; `None`: none are kept.
    pub gallery: Option<GalleryConfig>,
    /// Where it is written down what was seen; `None`: nowhere.
    pub history: Option<HistoryConfig>,
    /// The broker; `None`: nothing is published.
    pub mqtt: Option<MqttConfig>,
    /// The HTTP server; `None`: there is none.
    pub console: Option<ConsoleConfig>,
    /// The log.
    pub log: LogConfig,
}

/// Which model, on what, in what precision.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Where the weights come from.
    pub source: ModelSource,
    /// `auto`, `cpu`, `cuda:N` or `metal:N`.
    pub device: Device,
    /// The weights' type in memory.
    pub dtype: Dtype,
    /// The answer's bound in tokens.
    pub max_new_tokens: usize,
    /// Threads that run the model; they share the weights.
    pub workers: usize,
    /// Frames that a worker looks at together, at most; `None`: what suits the device.
    pub max_batch: Option<usize>,
    /// Detections below it are dropped and reported.
    pub min_score: MinScore,
}

/// One camera or file.
#[derive(Clone, Debug, PartialEq)]
pub struct CameraConfig {
    /// Its name.
    pub id: CameraId,
    /// Where its pictures come from.
    pub input: Input,
    /// Files start anew at their end.
    pub looped: bool,
    /// What is asked.
    pub prompt: Prompt,
    /// Time between looks.
    pub interval: Duration,
    /// Which frames are decoded.
    pub decode: Decode,
    /// What decodes them.
    pub decoder: DecoderKind,
    /// Wider pictures are scaled down to this width before they are converted.
    pub max_width: Option<u32>,
    /// `Some`: a look only where something moved, or at the longest interval.
    pub motion: Option<MotionConfig>,
    /// `Some`: a picture that has been the same for so long is a fault of the camera.
    pub frozen_after: Option<Duration>,
    /// How RTSP sends its packets.
    pub transport: Transport,
    /// PEM file of the authority, or of the one certificate, to trust for `rtsps` and `https`; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// For RTSP and HTTP.
    pub username: Option<String>,
    /// For RTSP and HTTP.
    pub password: Option<SecretString>,
    /// A disabled camera is not opened.
    pub enabled: bool,
    /// What becomes of its detections over time.
    pub tracking: Tracking,
    /// What is kept of its stream.
    pub record: Record,
}

impl CameraConfig {
    /// A camera with every other key at its default.
    pub fn new(id: CameraId, input: Input, prompt: Prompt) -> Self {
        Self {
            id,
            input,
            looped: false,
            prompt,
            interval: Duration::from_secs(1),
            decode: Decode::default(),
            decoder: DecoderKind::default(),
            max_width: None,
            motion: None,
            frozen_after: None,
            transport: Transport::default(),
            ca_file: None,
            username: None,
            password: None,
            enabled: true,
            tracking: Tracking::default(),
            record: Record::default(),
        }
    }
}

/// Where a camera's pictures come from.
#[derive(Clone, PartialEq, Eq)]
pub enum Input {
    /// `rtsp:// rtsps:// http:// https:// file:// v4l2://`, without credentials.
    Uri(String),
    /// A `gst-launch` fragment that ends in raw video.
    Fragment(String),
}

impl fmt::Debug for Input {
    /// A fragment may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(uri) => write!(f, "Uri({})", redact::uri(uri)),
            Self::Fragment(_) => f.write_str("Fragment(***)"),
        }
    }
}

/// How RTSP sends its packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Within the RTSP connection: nothing is lost on the way, and no firewall is in it.
    #[default]
    Tcp,
    /// Beside it, for cameras that know nothing else.
    Udp,
}

/// What decodes a camera's pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecoderKind {
    /// Hardware where there is some, else software.
    Auto,
    /// The processor.
    #[default]
    Software,
    /// VA-API: Intel and AMD.
    Va,
    /// NVDEC: NVIDIA.
    Nvidia,
    /// A Video4Linux decoder: single-board computers.
    V4l2,
}

/// Parts of a picture that are left out: polygons of at least three points `[x, y]`, in shares of width and height.
pub type Mask = Vec<Vec<[f64; 2]>>;

/// When a camera is looked at although nothing moves, and where motion does not count.
#[derive(Clone, Debug, PartialEq)]
pub struct MotionConfig {
    /// A look at least this often.
    pub max_interval: Duration,
    /// Where motion does not count.
    pub mask: Mask,
}

/// Which frames of a stream are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decode {
    /// Keyframes only where they come as often as looks are due, else every frame.
    #[default]
    Auto,
    /// Keyframes only: a fourteenth of the work at a keyframe every two seconds.
    Keyframes,
    /// Every frame.
    All,
}

/// What is kept of a camera's stream, as it was encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Record {
    /// Nothing.
    #[default]
    Off,
    /// A clip while an object is there.
    Events,
}

/// Clips: `DIR/<camera>/<time>.mp4`, with retention.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordConfig {
    /// The folder.
    pub dir: PathBuf,
    /// Kept from before an object was first seen.
    pub pre_roll: Duration,
    /// Kept after it was last seen.
    pub post_roll: Duration,
    /// A longer clip is cut into parts.
    pub max_clip: Duration,
    /// At most this age.
    pub keep_for: Duration,
    /// At most so many bytes, of all cameras together.
    pub keep_bytes: u64,
}

impl RecordConfig {
    /// With every other key at its default.
    pub fn new(dir: PathBuf) -> Self {
        let seconds = Duration::from_secs;
        Self {
            dir,
            pre_roll: seconds(5),
            post_roll: seconds(5),
            max_clip: seconds(300),
            keep_for: seconds(7 * 86_400),
            keep_bytes: 10_000_000_000,
        }
    }
}

/// Pictures of objects: `DIR/<camera>/<time>-<digits>.jpg`, with retention.
#[derive(Clone, Debug, PartialEq)]
pub struct GalleryConfig {
    /// The folder.
    pub dir: PathBuf,
    /// The object with some room around it alone, not the whole frame.
    pub crop: bool,
    /// Its box, label and score are drawn, and on a whole frame camera and time.
    pub annotate: bool,
    /// Of the JPEG, 1 to 100.
    pub quality: u8,
    /// Higher pictures are scaled down to this height.
    pub max_height: Option<u32>,
    /// At most this age.
    pub keep_for: Duration,
    /// At most so many bytes, of all cameras together.
    pub keep_bytes: u64,
}

impl GalleryConfig {
    /// With every other key at its default.
    pub fn new(dir: PathBuf) -> Self {
        let keep_for = Duration::from_secs(7 * 86_400);
        Self { dir, crop: false, annotate: true, quality: 85, max_height: None, keep_for, keep_bytes: 2_000_000_000 }
    }
}

/// Every sink; several may run at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutputConfig {
    /// Annotated frames as JPEG files.
    pub snapshots: Option<SnapshotConfig>,
    /// Annotated video files per camera.
    pub file: Option<FileConfig>,
    /// What encodes live video.
    pub encoder: EncoderKind,
    /// RTSP server.
    pub rtsp: Option<RtspConfig>,
    /// Servers that live video is sent to.
    pub push: Vec<PushConfig>,
    /// Devices that live video is played into.
    pub v4l2: Vec<V4l2Config>,
    /// `gst-launch` fragments.
    pub custom: Vec<CustomConfig>,
}

/// A folder of JPEG files with retention.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotConfig {
    /// `DIR/<camera>/<time>.jpg`.
    pub dir: PathBuf,
    /// At most so many files per camera.
    pub keep: usize,
    /// At most this age.
    pub keep_for: Duration,
}

/// An RTSP server: `rtsp://ADDRESS/<camera>`.
#[derive(Clone, Debug, PartialEq)]
pub struct RtspConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it shows.
    pub video: RtspVideo,
    /// `Some`: nobody else may watch.
    pub login: Option<RtspLogin>,
}

impl RtspConfig {
    /// A server with every other key at its default.
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen, video: RtspVideo::default(), login: None }
    }
}

/// What an RTSP server shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RtspVideo {
    /// The analysed frames with what was seen on each of them.
    #[default]
    Analysed,
    /// The camera's own pictures at its own rate, with the newest boxes.
    Live,
}

/// A `gst-launch` fragment fed with raw video; one per camera, `{camera}` stands for its id.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomConfig {
    /// The fragment, ending in a sink element.
    pub pipeline: String,
}

/// The broker.
#[derive(Clone, Debug, PartialEq)]
pub struct MqttConfig {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The protocol's version.
    pub version: MqttVersion,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<SecretString>,
    /// First level(s) of every topic.
    pub topic_prefix: String,
    /// QoS of `detections`: 0, 1 or 2.
    pub qos: u8,
    /// `Some`: the connection is encrypted.
    pub tls: Option<TlsConfig>,
    /// Client id; a unique one by default.
    pub client_id: String,
    /// What outlives the process.
    pub durable: Durable,
    /// Where it is kept, and which retained topics there are; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Commands are heard.
    pub control: bool,
    /// A picture of the newest object of each label is published.
    pub snapshots: bool,
    /// Time between two `stats` messages.
    pub stats_interval: Duration,
    /// First level(s) of Home Assistant's discovery topics; `None`: no discovery.
    pub discovery_prefix: Option<String>,
    /// First level(s) of the topics that Frigate's readers know; `None`: they are told nothing.
    pub frigate_prefix: Option<String>,
    /// The largest packet sent, in bytes; a record that would make a larger one is refused alone.
    pub max_packet: usize,
    /// Of what waits when a connection begins, at most so many messages a second are sent.
    pub backlog_rate: u32,
}

/// The version of MQTT that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MqttVersion {
    /// 3.1.1, which every broker speaks.
    #[default]
    V3,
    /// 5, in which a broker says what it takes, and why it does not take a message.
    V5,
}

/// Which messages are kept on disk until the broker has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durable {
    /// Detections and events.
    #[default]
    All,
    /// Events only.
    Events,
    /// None.
    None,
}

/// Encryption of the broker connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsConfig {
    /// PEM file of the authority to trust; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// What we show to a broker that asks who we are; `None`: nothing.
    pub client: Option<ClientCertificate>,
}

/// The certificate by which the broker knows the daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientCertificate {
    /// PEM file: the certificate, then those that lead to its authority, if any.
    pub cert_file: PathBuf,
    /// PEM file of its key, without a passphrase.
    pub key_file: PathBuf,
}

/// What cannot be used of an encryption.
#[derive(Debug)]
pub struct TlsFault {
    /// The key in `[mqtt]` that is at fault.
    pub key: &'static str,
    /// Why, in words that go on after `mqtt.KEY cannot be used: `.
    pub why: String,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Least level: `error warn info debug trace`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// journald where the service manager connects it, text elsewhere.
    Auto,
    /// Lines for a person.
    Text,
    /// One JSON object a line.
    Json,
    /// The journal, with fields.
    Journald,
}
