//! How far a download is: a bar on a terminal, a log line every ten seconds elsewhere, and the caller's own hook.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::model::hub::{Progress, bytes};

/// Below this a download is not worth a line.
const SMALL: u64 = 1_000_000;

/// Counts the bytes of one model.
pub struct Meter {
    id: String,
    total: u64,
    done: u64,
    bar: Option<ProgressBar>,
    hook: Option<Progress>,
    logged: Instant,
    told: Option<Instant>,
}

impl Meter {
    /// For `total` bytes.
    pub fn new(id: &str, total: u64, hook: Option<Progress>) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = (total >= SMALL && on_terminal).then(|| {
            let style = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})");
            ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(id.to_owned())
        });
        if total >= SMALL && bar.is_none() {
            tracing::info!("downloading {id}, {}", bytes(total));
        }
        Self { id: id.to_owned(), total, done: 0, bar, hook, logged: Instant::now(), told: None }
    }

    /// Counts bytes that arrived, or that an earlier try had left.
    pub fn add(&mut self, count: u64) {
        self.done += count;
        self.tell();
    }

    /// Takes bytes back that have to come again.
    pub fn take_back(&mut self, count: u64) {
        self.done = self.done.saturating_sub(count);
        self.tell();
    }

    /// Bytes still to come.
    pub fn left(&self) -> u64 {
        self.total.saturating_sub(self.done)
    }

    /// Shows that there is life, without new bytes.
    pub fn tell(&mut self) {
        if self.told.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return;
        }
        self.told = Some(Instant::now());
        if let Some(hook) = &self.hook {
            hook(self.done, self.total);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        } else if self.logged.elapsed() >= Duration::from_secs(10) {
            self.logged = Instant::now();
            let percent = (self.done * 100).checked_div(self.total).unwrap_or(100);
            tracing::info!("downloading {}: {} of {}, {percent} %", self.id, bytes(self.done), bytes(self.total));
        }
    }

    /// All bytes are there.
    pub fn finish(mut self) {
        self.told = None;
        self.tell();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.total >= SMALL {
            tracing::info!("downloaded {}", self.id);
        }
    }
}
