//! `palisade`: the command line. Parses arguments, starts the log, and turns results into exit codes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use palisade::app::bench::{self, cameras, outputs};
use palisade::app::oneshot::{self, DetectArgs, ProbeArgs};
use palisade::app::reload::Reloads;
use palisade::app::{self, check, demo, doctor, serve, signals, status, topics};
use palisade::base::error::{Context, Kind, Result};
use palisade::base::metrics::Metrics;
use palisade::base::redact::SecretString;
use palisade::base::shutdown::Shutdown;
use palisade::config::{Decode, LogConfig, LogFormat};
use palisade::sink::video::serve::{Footage, Login, ServeConfig};
use palisade::types::{Device, Dtype, Prompt};

/// The configuration is wrong (`EX_CONFIG` of sysexits.h); the service manager does not restart on it.
const EXIT_CONFIG: u8 = 78;

/// The service's own configuration.
const SERVICE_CONFIG: &str = "/etc/palisade/palisade.toml";

/// The model for real use: downloaded from the hub at the first start.
const DEFAULT_MODEL: &str = "google/paligemma2-3b-mix-224";

/// Watches cameras and tells over MQTT what it was asked to look for, in words.
#[derive(Parser)]
#[command(version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon: look at every camera of the configuration until stopped
    Run {
        /// The configuration file (see config/palisade.toml for every key)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration: report every mistake with its line, then exit with 78; needs no network and loads no model
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Ask the running daemon how it is and what its cameras do, over its HTTP server; 1 as exit code where a camera does not run
    Status {
        /// The configuration file, with a [console] table
        #[arg(long, value_name = "FILE", default_value = SERVICE_CONFIG)]
        config: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Look at what the daemon needs on this machine: plugins, devices, cameras, model, broker, ports, disks, clock; each with what mends it
    Doctor {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = SERVICE_CONFIG)]
        config: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Look at pictures: print the model's raw answer, the labels, and the boxes in shares (0..1) and pixels
    #[command(group = ArgGroup::new("question").required(true))]
    Detect(Detect),
    /// Show what the daemon does on the sample clip, with a broker of its own
    Demo {
        /// The folder with street.mp4 and demo-model; where there is none, what the package brought
        #[arg(long, value_name = "DIR", default_value = "samples")]
        samples: PathBuf,
        /// Where the annotated video and pictures go
        #[arg(long, value_name = "DIR", default_value = "out/demo")]
        out: PathBuf,
    },
    /// Measure how fast something is on this machine
    #[command(arg_required_else_help = true)]
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// See what goes over the broker
    #[command(arg_required_else_help = true)]
    Mqtt {
        #[command(subcommand)]
        what: Mqtt,
    },
    /// Print every number of one answer as JSON, for comparison with another implementation
    #[command(hide = true)]
    Probe(Probe),
    /// Be a camera: an RTSP server on loopback that shows a clip over and over, or what a gst-launch line makes
    #[command(hide = true, group = ArgGroup::new("footage").required(true))]
    Serve(Serve),
}

#[derive(Args)]
struct ModelArgs {
    /// A snapshot folder, or a hub id as owner/name[@revision]
    #[arg(long, value_name = "DIR|HUB_ID[@REVISION]", default_value = DEFAULT_MODEL)]
    model: String,
    #[command(flatten)]
    compute: Compute,
}

#[derive(Args)]
struct Compute {
    /// What computes: auto, cpu, cuda:N or metal:N
    #[arg(long, default_value = "auto")]
    device: Device,
    /// The weights' type in memory: auto, f32, f16, bf16, q8_0, q6k or q4k
    #[arg(long, default_value = "auto")]
    dtype: Dtype,
}

#[derive(Args)]
struct Detect {
    /// The prompt, passed to the model as written: "detect cat ; dog"
    #[arg(long, group = "question")]
    prompt: Option<String>,
    /// Or only the things to look for: "cat,traffic light"
    #[arg(long, group = "question", value_delimiter = ',', value_name = "LABEL,…")]
    labels: Vec<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// The longest answer, in tokens
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_new_tokens: u16,
    /// Drop detections that the model was less sure of, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "SCORE", value_parser = share)]
    min_score: f32,
    /// Print one JSON object a picture
    #[arg(long)]
    json: bool,
    /// Write the picture with boxes and labels drawn; with several pictures, a folder for them
    #[arg(long, value_name = "OUT.png")]
    annotate: Option<PathBuf>,
    /// PNG, JPEG, GIF, BMP or WebP
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

#[derive(Args)]
struct Probe {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt, as written
    #[arg(long)]
    prompt: String,
    /// The picture
    #[arg(long, value_name = "IMG")]
    image: PathBuf,
    /// How many tokens to write at most
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    tokens: u16,
    /// Token ids that may not be written
    #[arg(long, value_name = "ID", num_args = 1.., value_delimiter = ',')]
    suppress: Vec<u32>,
}

/// Whoever starts a camera gives the password here: arguments can be read by everybody.
const PASSWORD: &str = "PALISADE_SERVE_PASSWORD";

#[derive(Args)]
struct Serve {
    /// A file with H.264 or H.265 video
    #[arg(long, group = "footage", value_name = "FILE")]
    clip: Option<PathBuf>,
    /// Elements that end in a payloader with name=pay0
    #[arg(long, group = "footage", value_name = "LINE")]
    launch: Option<String>,
    /// The port on 127.0.0.1; 0 takes one that is free
    #[arg(long, default_value_t = 0, value_name = "N")]
    port: u16,
    /// Only this user may watch; the password is taken from PALISADE_SERVE_PASSWORD
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Ask for the password by the digest scheme, not the basic one
    #[arg(long, requires = "user")]
    digest: bool,
    /// Encrypt: a PEM file with certificate and key
    #[arg(long, value_name = "PEM")]
    certificate: Option<PathBuf>,
    /// The path of the camera's address
    #[arg(long, default_value = "/cam")]
    path: String,
    /// End when standard input is closed
    #[arg(long)]
    until_eof: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// Measure the model: time to load, time of each stage of a frame, memory, operations a second
    #[command(override_usage = "palisade bench model (--model DIR|HUB_ID | --config FILE --random) [OPTIONS]")]
    Model(BenchModel),
    /// Measure cameras: processor time, memory, and how fresh and even their frames reach the detector
    Cameras(BenchCameras),
    /// Measure messages: how many a second a broker on this machine takes, and how long publishing one holds up who does
    Mqtt(BenchMqtt),
    /// Measure live video over RTSP: what it costs without boxes, with boxes, for nobody and for twenty, and how old it is
    Outputs(BenchOutputs),
}

#[derive(Subcommand)]
enum Mqtt {
    /// Print what this node publishes, a line a message, until stopped
    Tail {
        /// The configuration file of the daemon: broker, login and topic prefix
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Print one JSON object a message: topic, retained, payload
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema (draft 2020-12) of a payload: detections, status, events or stats; of all without a name
    Schema {
        /// Which payload
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
}

#[derive(Args)]
struct BenchModel {
    /// A checkpoint: a snapshot folder, or a hub id as owner/name[@revision]
    #[arg(long, value_name = "DIR|HUB_ID[@REVISION]")]
    model: Option<String>,
    /// Or the shape alone: the config.json of a checkpoint that need not be here; goes with --random
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Draw the weights of the shape at random: times and memory are those of a real checkpoint of that type, answers are nonsense
    #[arg(long)]
    random: bool,
    #[command(flatten)]
    compute: Compute,
    /// Tokens of each answer
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    tokens: u16,
    /// Frames to measure, after one to warm up
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    frames: u16,
    /// A scene that stands still: the answer before is each frame's draft
    #[arg(long)]
    still: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct BenchMqtt {
    /// Messages to send, each of three objects
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    messages: u32,
    /// Keep them in memory only
    #[arg(long)]
    volatile: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct BenchOutputs {
    /// A file with H.264 or H.265 video, such as 1080p at 30 pictures a second
    #[arg(long, value_name = "FILE", required_unless_present = "watch")]
    clip: Option<PathBuf>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 12, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(3..=3600))]
    seconds: u16,
    /// Be so many viewers of this address instead, in a process of their own
    #[arg(long, hide = true, num_args = 3, value_names = ["URI", "N", "READS"])]
    watch: Option<Vec<String>>,
}

#[derive(Args)]
struct BenchCameras {
    /// How many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    count: u16,
    /// A file with H.264 or H.265 video, shown by each of them
    #[arg(long, value_name = "FILE")]
    clip: PathBuf,
    /// Seconds between two looks at a camera
    #[arg(long, default_value = "2", value_name = "SECONDS", value_parser = interval)]
    interval: Duration,
    /// Seconds to measure, once every camera has given a frame
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// Which frames are decoded: auto, keyframes or all
    #[arg(long, default_value = "auto", value_name = "WHICH", value_parser = decode)]
    decode: Decode,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Seconds between looks.
fn interval(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.01..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("{text:?} must be a number in 0.01..=3600"))
}

/// Named as in the configuration.
fn decode(text: &str) -> std::result::Result<Decode, String> {
    match text {
        "auto" => Ok(Decode::Auto),
        "keyframes" => Ok(Decode::Keyframes),
        "all" => Ok(Decode::All),
        _ => Err(format!("{text:?} must be auto, keyframes or all")),
    }
}

/// A number in 0..=1.
fn share(text: &str) -> std::result::Result<f32, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| format!("{text:?} must be a number in 0..=1"))
}

fn main() -> ExitCode {
    // Before any thread: it writes to the environment.
    palisade::model::fix_thread_count();
    palisade::model::keep_memory();
    match Cli::parse().command {
        Command::Run { config } => run(&config),
        Command::Check { config } => match check::load(&config) {
            Ok(checked) => {
                let line = format!("{}: no mistake found, cameras: {}", config.display(), checked.cameras.len());
                finish(oneshot::print(&line).map(|()| 0))
            }
            Err(faults) => {
                eprintln!("{faults}");
                ExitCode::from(EXIT_CONFIG)
            }
        },
        Command::Status { config, json } => finish(warn_only().and_then(|()| status::run(&config, json))),
        Command::Doctor { config, json } => finish(warn_only().and_then(|()| doctor::run(&config, json))),
        Command::Detect(args) => finish(detect(args)),
        Command::Probe(args) => finish(probe(args).map(|()| 0)),
        Command::Bench { what: Bench::Model(args) } => finish(bench_model(args).map(|()| 0)),
        Command::Bench { what: Bench::Mqtt(args) } => finish(bench_mqtt(&args).map(|()| 0)),
        Command::Bench { what: Bench::Outputs(args) } => finish(bench_outputs(args).map(|()| 0)),
        Command::Bench { what: Bench::Cameras(args) } => finish(bench_cameras(args).map(|()| 0)),
        Command::Demo { samples, out } => finish(run_demo(&samples, out)),
        Command::Mqtt { what: Mqtt::Tail { config, json } } => tail(&config, json),
        Command::Mqtt { what: Mqtt::Schema { name } } => finish(topics::schema(name.as_deref()).map(|()| 0)),
        Command::Serve(args) => finish(run_serve(args).map(|()| 0)),
    }
}

/// The exit code of a command that counts what failed.
fn finish(result: Result<usize>) -> ExitCode {
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("palisade: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(file: &std::path::Path) -> ExitCode {
    let (shutdown, reloads) = (Shutdown::new(), Reloads::new(file));
    // First of all: to a process that does not listen, the order to read the file anew is the order to end.
    let asked = reloads.clone();
    if let Err(error) = signals::stop_or_reload(&shutdown, move || asked.ask()) {
        eprintln!("palisade: {}", error.chain());
        return ExitCode::FAILURE;
    }
    let config = match check::load(file) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if let Err(error) = app::log::start(&config.log) {
        eprintln!("palisade: {}", error.chain());
        return ExitCode::FAILURE;
    }
    match app::run(config, Some(&reloads), &shutdown, &Metrics::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", error.chain());
            ExitCode::from(if error.kind() == Kind::Config { EXIT_CONFIG } else { 1 })
        }
    }
}

fn tail(config: &std::path::Path, json: bool) -> ExitCode {
    let shutdown = Shutdown::new();
    let tailed = warn_only().and_then(|()| signals::stop_on_all(&shutdown, || {})).and_then(|()| topics::tail(config, json, &shutdown));
    match tailed {
        Err(error) if error.kind() == Kind::Config => {
            eprintln!("{}", error.chain());
            ExitCode::from(EXIT_CONFIG)
        }
        other => finish(other.map(|()| 0)),
    }
}

fn run_demo(samples: &std::path::Path, out: PathBuf) -> Result<usize> {
    warn_only()?;
    let shutdown = Shutdown::new();
    let children = demo::Children::default();
    let to_end = children.clone();
    signals::stop_on_all(&shutdown, move || to_end.end())?;
    demo::run(samples, out, &children, &shutdown).map(|()| 0)
}

fn detect(args: Detect) -> Result<usize> {
    warn_only()?;
    let prompt = match &args.prompt {
        Some(text) => Prompt::new(text)?,
        None => Prompt::from_labels(&args.labels)?,
    };
    oneshot::detect(&DetectArgs {
        prompt,
        model: oneshot::model_source(&args.model.model)?,
        device: args.model.compute.device,
        dtype: args.model.compute.dtype,
        max_new_tokens: args.max_new_tokens.into(),
        min_score: args.min_score.into(),
        json: args.json,
        annotate: args.annotate,
        images: args.images,
    })
}

fn probe(args: Probe) -> Result<()> {
    warn_only()?;
    oneshot::probe(&ProbeArgs {
        model: oneshot::model_source(&args.model.model)?,
        prompt: args.prompt,
        image: args.image,
        tokens: args.tokens.into(),
        device: args.model.compute.device,
        dtype: args.model.compute.dtype,
        suppress: args.suppress,
    })
}

fn bench_model(args: BenchModel) -> Result<()> {
    warn_only()?;
    bench::model(&bench::ModelArgs {
        weights: bench::Weights::named(args.model.as_deref(), args.config, args.random)?,
        device: args.compute.device,
        dtype: args.compute.dtype,
        tokens: args.tokens.into(),
        frames: args.frames.into(),
        still: args.still,
        json: args.json,
    })
}

fn bench_mqtt(args: &BenchMqtt) -> Result<()> {
    warn_only()?;
    let (shutdown, children) = (Shutdown::new(), demo::Children::default());
    let to_end = children.clone();
    signals::stop_on_all(&shutdown, move || to_end.end())?;
    bench::mqtt::run(&bench::mqtt::MqttArgs { messages: args.messages, durable: !args.volatile, json: args.json }, &children, &shutdown)
}

fn bench_cameras(args: BenchCameras) -> Result<()> {
    warn_only()?;
    let shutdown = Shutdown::new();
    signals::stop_on_all(&shutdown, || {})?;
    let BenchCameras { count, clip, interval, seconds, decode, json } = args;
    cameras::run(&cameras::CamerasArgs { count, clip, interval, time: Duration::from_secs(seconds.into()), decode, json }, &shutdown)
}

fn bench_outputs(args: BenchOutputs) -> Result<()> {
    warn_only()?;
    if let Some([uri, count, reads]) = args.watch.as_deref() {
        return outputs::watch(uri, count.parse().unwrap_or(1), reads == "true");
    }
    let shutdown = Shutdown::new();
    signals::stop_on_all(&shutdown, || {})?;
    outputs::run(&args.clip.unwrap_or_default(), Duration::from_secs(args.seconds.into()), &shutdown)
}

fn run_serve(args: Serve) -> Result<()> {
    warn_only()?;
    let login = |user| {
        let password = std::env::var(PASSWORD).context(Kind::Input, || format!("--user has no password; {PASSWORD} must hold one"))?;
        Ok(Login { user, password: SecretString::from(password), digest: args.digest })
    };
    let config = ServeConfig {
        // One of the two is given, and only one.
        footage: args.clip.map(Footage::Clip).unwrap_or_else(|| Footage::Launch(args.launch.unwrap_or_default())),
        port: args.port,
        path: args.path,
        login: args.user.map(login).transpose()?,
        certificate: args.certificate,
    };
    let shutdown = Shutdown::new();
    signals::stop_on_all(&shutdown, || {})?;
    serve::run(&config, args.until_eof, &shutdown)
}

fn warn_only() -> Result<()> {
    app::log::start(&LogConfig { level: "warn".to_owned(), format: LogFormat::Text })
}
