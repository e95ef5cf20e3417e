//! What the process does about signals, in a thread of its own that waits for them.

use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::base::error::{Context, Kind, Result};
use crate::base::shutdown::Shutdown;

/// Signals this soon after the first are the same order to stop: some tools send theirs to a process and to its group.
const SAME_ORDER: Duration = Duration::from_millis(500);

/// The first signal stops in order, a later one at once, after `last`.
///
/// # Errors
/// When signals cannot be awaited.
pub fn stop_on_all(shutdown: &Shutdown, last: impl Fn() + Send + 'static) -> Result<()> {
    let mut stopping = Stopping::new(shutdown);
    await_signals(move |signal| stopping.step(signal, &last))
}

/// The same, but for SIGHUP, which does `reload`.
///
/// # Errors
/// As `stop_on_all`.
pub fn stop_or_reload(shutdown: &Shutdown, reload: impl Fn() + Send + 'static) -> Result<()> {
    let mut stopping = Stopping::new(shutdown);
    await_signals(move |signal| if signal == SIGHUP { reload() } else { stopping.step(signal, &|| {}) })
}

/// Orders to stop.
struct Stopping {
    shutdown: Shutdown,
    first: Option<Instant>,
}

impl Stopping {
    fn new(shutdown: &Shutdown) -> Self {
        Self { shutdown: shutdown.clone(), first: None }
    }

    fn step(&mut self, signal: i32, last: &dyn Fn()) {
        match self.first {
            None => self.first = Some(Instant::now()),
            Some(at) if at.elapsed() < SAME_ORDER => {}
            Some(_) => {
                last();
                std::process::exit(128 + signal);
            }
        }
        self.shutdown.trigger();
    }
}

fn await_signals(mut act: impl FnMut(i32) + Send + 'static) -> Result<()> {
    let fail = || "signals cannot be awaited";
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context(Kind::Internal, fail)?;
    let wait = move || signals.forever().for_each(&mut act);
    // Not joined: it waits for signals as long as the process lives.
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).context(Kind::Internal, fail)?;
    Ok(())
}
