//! Floor 3: the worker pool. Frames come out of the mailbox with a ticket each, go through a detector, several cameras'
//! together where they are there, and travel on with their answers. The workers end when the mailbox does.

mod drafts;
mod paligemma;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::base::error::{Error, Kind, Result};
use crate::base::mailbox::{Taker, Ticket};
use crate::base::metrics::Metrics;
use crate::base::thread::{self, Thread};
use crate::types::{Answer, CameraId, Frame, Prompt};

pub use drafts::Drafts;
pub use paligemma::PaliGemmaDetector;

/// The least time between two log lines about failing detections of one worker.
const QUIET: Duration = Duration::from_secs(30);

/// Something that answers prompts about pictures. One per worker.
pub trait Detector: Send + 'static {
    /// Looks at frames of different cameras; one result per job, in the jobs' order.
    ///
    /// # Errors
    /// Per job, when its picture or prompt cannot be used; that frame is then counted and passed over.
    fn detect(&mut self, batch: &[Job]) -> Vec<Result<Answer>>;
}

/// A frame that is to be looked at, and what is asked about it.
pub struct Job {
    /// The picture.
    pub frame: Frame,
    /// The question.
    pub prompt: Arc<Prompt>,
}

/// A frame with its answer, still holding its camera's ticket.
pub struct Found {
    /// The frame and the question.
    pub job: Job,
    /// The model's answer.
    pub answer: Answer,
    /// Decoder to model.
    pub queued: Duration,
    /// In the model, with the others of its batch.
    pub inference: Duration,
    /// To be dropped once the answer is numbered: lets the camera's next frame go.
    pub ticket: Ticket,
}

/// Starts one thread `detect-N` per detector. They end when every putter of the mailbox is gone.
///
/// A worker looks at `max_batch` frames together at most, at those that are there and without waiting for more. Where
/// there are several workers none takes more than its part of the cameras: it would leave the others idle for as long
/// as its batch takes, for what it holds is in flight.
///
/// # Errors
/// When a thread cannot be started.
pub fn start(
    detectors: Vec<Box<dyn Detector>>,
    max_batch: usize,
    jobs: &Taker<Job>,
    found: &Sender<Vec<Found>>,
    metrics: &Metrics,
) -> Result<Vec<Thread>> {
    let workers = detectors.len().max(1);
    let start = |(number, detector): (usize, Box<dyn Detector>)| {
        let (jobs, found) = (jobs.clone(), found.clone());
        let mut worker = Worker { detector, metrics: metrics.clone(), told: None };
        thread::spawn(format!("detect-{number}"), move || {
            // Cameras come and go.
            while let Some(taken) = jobs.take_up_to(max_batch.min(jobs.slots().div_ceil(workers))) {
                let answered = worker.step(taken);
                // A closed channel means that the daemon stops.
                if !answered.is_empty() && found.send(answered).is_err() {
                    break;
                }
            }
        })
    };
    detectors.into_iter().enumerate().map(start).collect()
}

struct Worker {
    detector: Box<dyn Detector>,
    metrics: Metrics,
    told: Option<Instant>,
}

impl Worker {
    /// A batch through the detector; those that failed are left out.
    fn step(&mut self, taken: Vec<(Job, Ticket)>) -> Vec<Found> {
        let (batch, tickets): (Vec<Job>, Vec<Ticket>) = taken.into_iter().unzip();
        self.metrics.counter("batches", &batch.len().to_string()).add();
        let begin = Instant::now();
        let answers = self.answers(&batch);
        let inference = begin.elapsed();
        let mut found = Vec::with_capacity(batch.len());
        for ((job, ticket), answer) in batch.into_iter().zip(tickets).zip(answers) {
            match answer {
                Ok(answer) => {
                    self.answered(&job.frame.camera, &answer, inference);
                    found.push(Found { queued: begin.duration_since(job.frame.received), job, answer, inference, ticket });
                }
                Err(error) => self.failed(&job.frame.camera, &error),
            }
        }
        found
    }

    /// One result per job, whatever the detector does.
    fn answers(&mut self, batch: &[Job]) -> Vec<Result<Answer>> {
        // A panic in the model would silently end this worker; lost frames are better than a daemon that looks no more.
        let defect = match catch_unwind(AssertUnwindSafe(|| self.detector.detect(batch))) {
            Ok(answers) if answers.len() == batch.len() => return answers,
            Ok(answers) => format!("the detector gave {} answers about {} frames", answers.len(), batch.len()),
            Err(_) => "the detector panicked".to_owned(),
        };
        let defect = |_| Err(Error::new(Kind::Internal, format!("{defect}; this is a defect, please report it")));
        batch.iter().map(defect).collect()
    }

    fn answered(&self, camera: &CameraId, answer: &Answer, inference: Duration) {
        self.metrics.latency("inference", "all").record(inference);
        self.metrics.counter("answer_tokens", camera.as_str()).add_many(answer.tokens.len() as u64);
        self.metrics.counter("draft_tokens_accepted", camera.as_str()).add_many(answer.drafts_accepted as u64);
    }

    fn failed(&mut self, camera: &CameraId, error: &Error) {
        self.metrics.counter("frames_failed", camera.as_str()).add();
        if self.told.is_none_or(|at| at.elapsed() >= QUIET) {
            tracing::error!(%camera, "a frame could not be looked at: {}", error.chain());
            self.told = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
