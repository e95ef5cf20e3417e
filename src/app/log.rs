//! Where log lines go: text for a person, JSON for a collector, fields for the journal.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::base::clock::Utc;
use crate::base::error::{Context, Kind, Result};
use crate::config::{LogConfig, LogFormat};

/// Changes the level of the log that runs.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log on standard error or the journal, once per process.
///
/// # Errors
/// When the journal was asked for and is not there, or the log runs already.
pub fn start(config: &LogConfig) -> Result<()> {
    let (filter, handle) = reload::Layer::new(filter(&config.level));
    let format = match config.format {
        LogFormat::Auto if under_journal() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Text,
        chosen => chosen,
    };
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_timer(Clock).with_writer(std::io::stderr).boxed(),
        LogFormat::Journald => {
            tracing_journald::layer().context(Kind::Io, || "log.format is journald, but the journal cannot be reached")?.boxed()
        }
        LogFormat::Auto | LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            fmt::layer().with_target(false).with_timer(Clock).with_ansi(colours).with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().context(Kind::Internal, || "the log runs already")?;
    // Once, by the one whose log it is.
    LEVEL.set(handle).ok();
    Ok(())
}

/// Gives the log that runs another level; does nothing where none does.
///
/// # Errors
/// When the log takes none, which is not to be expected.
pub fn set_level(level: &str) -> Result<()> {
    let Some(handle) = LEVEL.get() else { return Ok(()) };
    handle.reload(filter(level)).context(Kind::Internal, || "the log takes no other level")
}

fn filter(level: &str) -> EnvFilter {
    // Libraries only when something is wrong: at debug some of them would write addresses with credentials.
    // The MQTT client warns of each message that a broker refuses, which the link tells in words of its own.
    EnvFilter::new(format!("warn,rumqttc=error,palisade={level}"))
}

/// Whether standard error is connected to the journal. The service manager then names the stream's device and inode in
/// this variable; but everything below a service inherits it, redirected or not, so both are compared.
fn under_journal() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|error| stream == format!("{}:{}", error.dev(), error.ino()))
}

/// UTC with milliseconds, as in every payload.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{}", Utc::now())
    }
}
