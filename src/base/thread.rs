//! Named threads that are joined when their handle is dropped, so none outlives what it serves.

use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::base::error::{Context, Kind, Result};

/// A running thread; dropping the handle waits for its end.
pub struct Thread {
    handle: Option<JoinHandle<()>>,
}

/// Starts a thread called `name` (Linux shows its first 15 bytes).
///
/// # Errors
/// When the system refuses another thread.
pub fn spawn(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Result<Thread> {
    let name = name.into();
    let handle = Builder::new().name(name.clone()).spawn(body).context(Kind::Internal, || format!("cannot start thread {name}"))?;
    Ok(Thread { handle: Some(handle) })
}

/// Waits for all of them until `deadline`; returns how many still run then and are left behind.
pub fn join_all_until(threads: impl IntoIterator<Item = Thread>, deadline: Instant) -> usize {
    threads.into_iter().map(|thread| thread.join_until(deadline)).filter(|joined| !joined).count()
}

impl Thread {
    /// Whether the thread's body has returned.
    pub fn is_finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until `deadline`; a thread still running then is left behind. Returns whether it was joined.
    pub fn join_until(mut self, deadline: Instant) -> bool {
        while !self.is_finished() {
            if Instant::now() >= deadline {
                self.handle = None;
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.join();
        true
    }

    /// Lets it run on by itself: it ends soon, or hangs in a call that nobody can end.
    pub fn leave(mut self) {
        self.handle = None;
    }

    fn join(&mut self) {
        if let Some(handle) = self.handle.take() {
            let name = handle.thread().name().unwrap_or("unnamed").to_owned();
            if handle.join().is_err() {
                tracing::error!(thread = name, "thread panicked; this is a defect, please report it");
            }
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn dropping_the_handle_joins() {
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        drop(spawn("worker", move || {
            std::thread::sleep(Duration::from_millis(20));
            flag.store(true, Ordering::SeqCst);
        }));
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn a_thread_past_the_deadline_is_left_behind() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let thread = spawn("stuck", move || _ = held.recv()).unwrap();
        assert!(!thread.join_until(Instant::now()));
        drop(hold);
    }

    #[test]
    fn those_past_the_deadline_are_counted_and_the_others_joined() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        let stuck = spawn("stuck", move || _ = held.recv()).unwrap();
        let quick = spawn("quick", move || flag.store(true, Ordering::SeqCst)).unwrap();
        assert_eq!(join_all_until([quick, stuck], Instant::now() + Duration::from_millis(200)), 1);
        assert!(done.load(Ordering::SeqCst));
        drop(hold);
    }
}
