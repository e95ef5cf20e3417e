//! A camera's change of state: one typed change gives one status, one count and one log line at most.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::base::clock::Utc;
use crate::base::metrics::Metrics;
use crate::base::sync;
use crate::source::tap::Tell;
use crate::source::watch::END_OF_FILE;
use crate::types::{CameraId, CameraState, CameraStatus};

/// The same line is not logged again within this time.
const AGAIN: Duration = Duration::from_secs(3600);

/// Lines in a minute, at most: a camera that comes and goes each second fills no disk.
const LINES: usize = 6;

/// Lines that are remembered.
const REMEMBERED: usize = 32;

/// The latest status, for whoever asks.
pub struct Board(Mutex<CameraStatus>);

impl Board {
    /// Connecting, as every source begins.
    pub fn new(camera: CameraId) -> Self {
        let (state, since) = (CameraState::Connecting, Utc::now());
        Self(Mutex::new(CameraStatus { camera, state, reason: String::new(), since, fps: 0.0 }))
    }

    /// A copy.
    pub fn status(&self) -> CameraStatus {
        self.lock().clone()
    }

    /// Notes the frame rate.
    pub fn rate(&self, fps: f64) {
        self.lock().fps = fps;
    }

    /// Changes the state; `None` where nothing changed.
    fn turn(&self, state: CameraState, reason: &str) -> Option<CameraStatus> {
        let mut status = self.lock();
        if status.state == state && status.reason == reason {
            return None;
        }
        (status.state, status.reason, status.since) = (state, reason.to_owned(), Utc::now());
        if state != CameraState::Running {
            status.fps = 0.0;
        }
        Some(status.clone())
    }

    fn lock(&self) -> MutexGuard<'_, CameraStatus> {
        sync::lock(&self.0)
    }
}

/// Tells each change of state, once, to the log, the metrics and the caller.
pub struct Herald {
    board: Arc<Board>,
    tell: Tell,
    metrics: Metrics,
    lines: Lines,
}

impl Herald {
    /// Of the camera whose board it is. Counts each change as `camera_<state>`.
    pub fn new(board: Arc<Board>, tell: Tell, metrics: Metrics) -> Self {
        Self { board, tell, metrics, lines: Lines::default() }
    }

    /// Where the camera stands.
    pub fn status(&self) -> CameraStatus {
        self.board.status()
    }

    /// Notes the frame rate, without telling it.
    pub fn rate(&self, fps: f64) {
        self.board.rate(fps);
    }

    /// A change, if it is one.
    pub fn turn(&mut self, state: CameraState, reason: &str) {
        let Some(status) = self.board.turn(state, reason) else { return };
        self.metrics.counter(count(state), status.camera.as_str()).add();
        let (camera, state_name) = (&status.camera, state.name());
        if self.lines.lets(&format!("{state_name}: {reason}"), Instant::now()) {
            match state {
                CameraState::Running => tracing::info!(%camera, state = state_name, "pictures come"),
                CameraState::Failed if reason == END_OF_FILE => tracing::info!(%camera, state = state_name, "{reason}"),
                CameraState::Failed | CameraState::Backoff => tracing::warn!(%camera, state = state_name, "{reason}"),
                _ => tracing::debug!(%camera, state = state_name, "{reason}"),
            }
        }
        self.say(status);
    }

    /// Tells where the camera stands although nothing but its rate has changed.
    pub fn again(&mut self) {
        self.say(self.board.status());
    }

    fn say(&mut self, status: CameraStatus) {
        if catch_unwind(AssertUnwindSafe(|| (self.tell)(status))).is_err() {
            tracing::error!("a status hook panicked; this is a defect, please report it");
        }
    }
}

fn count(state: CameraState) -> &'static str {
    match state {
        CameraState::Connecting => "camera_connecting",
        CameraState::Running => "camera_running",
        CameraState::Stalled => "camera_stalled",
        CameraState::Backoff => "camera_backoff",
        CameraState::Failed => "camera_failed",
        CameraState::Disabled => "camera_disabled",
    }
}

/// Lets each line through once an hour, and few in a minute.
#[derive(Debug, Default)]
struct Lines {
    known: Vec<(String, Instant)>,
    lately: Vec<Instant>,
}

impl Lines {
    fn lets(&mut self, line: &str, now: Instant) -> bool {
        let since = |at: &Instant| now.saturating_duration_since(*at);
        self.known.retain(|(_, at)| since(at) < AGAIN);
        self.lately.retain(|at| since(at) < Duration::from_secs(60));
        // Digits differ from time to time: how long it was silent, say.
        let line: String = line.chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.lately.len() >= LINES || self.known.iter().any(|(known, _)| *known == line) {
            return false;
        }
        if self.known.len() == REMEMBERED {
            self.known.remove(0);
        }
        self.known.push((line, now));
        self.lately.push(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_once_an_hour_and_few_in_a_minute() {
        let start = Instant::now();
        let mut lines = Lines::default();
        let mut lets = |line: &str, second: u64| lines.lets(line, start + Duration::from_secs(second));
        assert!(lets("backoff: no picture for 10 s", 0));
        assert!(!lets("backoff: no picture for 12 s", 60));
        assert!(lets("backoff: no picture for 10 s", 3600));
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        assert_eq!(names.iter().filter(|name| lets(name, 4000)).count(), LINES);
        assert!(lets("g", 4060));
    }

    #[test]
    fn each_change_is_told_and_counted_once() {
        let camera = CameraId::new("a").unwrap();
        let (board, metrics) = (Arc::new(Board::new(camera)), Metrics::new());
        let (send, told) = crossbeam_channel::unbounded();
        let mut herald =
            Herald::new(board, Box::new(move |status: CameraStatus| drop(send.send((status.state, status.reason)))), metrics.clone());
        for (state, reason) in
            [(CameraState::Running, ""), (CameraState::Running, ""), (CameraState::Backoff, "x"), (CameraState::Backoff, "y")]
        {
            herald.turn(state, reason);
        }
        let told: Vec<_> = told.try_iter().collect();
        let expected = [(CameraState::Running, ""), (CameraState::Backoff, "x"), (CameraState::Backoff, "y")];
        assert_eq!(told, expected.map(|(state, reason)| (state, reason.to_owned())));
        let counts: Vec<_> = metrics.counts().into_iter().map(|(name, _, count)| (name, count)).collect();
        assert_eq!(counts, [("camera_backoff", 2), ("camera_running", 1)]);
    }
}
