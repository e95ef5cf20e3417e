//! Questions about pictures that are no camera's: whoever asks waits behind the cameras, and is told the answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use image::RgbImage;

use crate::base::error::Result;
use crate::base::mailbox::{Door, Taker};
use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::types::{Answer, Prompt};

/// Questions that wait, at most.
const WAITING: usize = 4;

/// What came of a question.
#[derive(Debug)]
pub struct Reply {
    /// The model's answer.
    pub answer: Answer,
    /// From the question to the model.
    pub queued: Duration,
    /// In the model.
    pub inference: Duration,
}

/// Takes the reply; dropped where there will be none.
pub type Tell = Box<dyn FnOnce(Result<Reply>) + Send>;

/// A question that waits.
pub(super) struct Inquiry {
    pub(super) image: Arc<RgbImage>,
    pub(super) prompt: Arc<Prompt>,
    pub(super) asked: Instant,
    pub(super) tell: Tell,
}

/// Where questions are asked. Clones share the queue.
#[derive(Clone)]
pub struct Guests {
    queue: Arc<Mutex<Queue>>,
    door: Door,
    refused: Counter,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Inquiry>,
    closed: bool,
}

/// Dropped with the last worker: nobody answers any more.
pub(super) struct Host(Guests);

impl Guests {
    /// Of the workers that take from `jobs`. Counts `questions_refused` of all, for want of room; the workers count
    /// `questions_answered` and `questions_failed`.
    pub fn new<T: Send + 'static>(jobs: &Taker<T>, metrics: &Metrics) -> Self {
        Self { queue: Arc::default(), door: jobs.door(), refused: metrics.counter("questions_refused", "all") }
    }

    /// Asks about a picture; whether there was room. Waits for nobody.
    pub fn ask(&self, image: Arc<RgbImage>, prompt: Arc<Prompt>, tell: Tell) -> bool {
        let mut queue = sync::lock(&self.queue);
        if queue.closed || queue.waiting.len() >= WAITING {
            self.refused.add();
            return false;
        }
        queue.waiting.push_back(Inquiry { image, prompt, asked: Instant::now(), tell });
        drop(queue);
        self.door.knock();
        true
    }

    /// The question of whoever was let in.
    pub(super) fn next(&self) -> Option<Inquiry> {
        sync::lock(&self.queue).waiting.pop_front()
    }

    pub(super) fn host(&self) -> Arc<Host> {
        Arc::new(Host(self.clone()))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut queue = sync::lock(&self.0.queue);
        queue.closed = true;
        let left = std::mem::take(&mut queue.waiting);
        drop(queue);
        // Those who asked find out as these go.
        drop(left);
    }
}
