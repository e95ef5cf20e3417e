//! What may take long or wait for a disk is done by threads of their own, one piece of work after the other: the server's own never
//! blocks.

use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use tokio::sync::oneshot;

use crate::base::error::Result;
use crate::base::thread::{self, Thread};
use crate::console::reply::Refusal;

/// Pieces of work that wait, at most.
const WAITING: usize = 64;

/// For the piece that is under way at the end.
const GRACE: Duration = Duration::from_millis(250);

type Work = Box<dyn FnOnce() + Send>;

/// A thread that works; it ends when its handle is dropped, and is left behind where it hangs.
pub struct Helper {
    /// `None`: no more work is taken.
    work: Option<Sender<Work>>,
    thread: Option<Thread>,
}

impl Helper {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(name: &'static str) -> Result<Self> {
        let (send, work) = bounded::<Work>(WAITING);
        // A panic costs the piece of work: who waits for it finds out.
        let run = move || work.iter().for_each(|one| drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(one))));
        Ok(Self { work: Some(send), thread: Some(thread::spawn(name, run)?) })
    }

    /// Has a piece of work done.
    ///
    /// # Errors
    /// When too much waits already, or it was given up.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::result::Result<T, Refusal> {
        let (send, done) = oneshot::channel();
        let work = Box::new(move || {
            // Nobody may wait for it any more.
            if !send.is_closed() {
                send.send(work()).ok();
            }
        });
        let sent = self.work.as_ref().is_some_and(|queue| queue.try_send(work).is_ok());
        if !sent {
            return Err(Refusal::soon("the server is busy; try it later"));
        }
        done.await.map_err(|_| Refusal::defect())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.work.take());
        // It may be in the hands of a disk that hangs, and nothing is lost with it.
        self.thread.take().into_iter().for_each(|thread| _ = thread.join_until(Instant::now() + GRACE));
    }
}
