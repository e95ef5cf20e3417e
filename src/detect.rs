//! Floor 3: the worker pool. Frames come out of the mailbox with a ticket each, go through a detector, several cameras'
//! together where they are there, and travel on with their answers. The workers end when the mailbox does.

mod drafts;
mod guests;
mod paligemma;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use image::RgbImage;

use crate::base::error::{Error, Kind, Result};
use crate::base::heartbeat::Pulses;
use crate::base::mailbox::{Taken, Taker, Ticket};
use crate::base::metrics::Metrics;
use crate::base::thread::{self, Thread};
use crate::types::{Answer, CameraId, Frame, Prompt};

pub use drafts::Drafts;
pub use guests::{Guests, Reply, Tell};
pub use paligemma::PaliGemmaDetector;

use guests::Inquiry;

/// The least time between two log lines about failing detections of one worker.
const QUIET: Duration = Duration::from_secs(30);

/// Something that answers prompts about pictures. One per worker.
pub trait Detector: Send + 'static {
    /// Looks at frames of different cameras; one result per job, in the jobs' order.
    ///
    /// # Errors
    /// Per job, when its picture or prompt cannot be used; that frame is then counted and passed over.
    fn detect(&mut self, batch: &[Job]) -> Vec<Result<Answer>>;

    /// Looks at a picture that is no camera's.
    ///
    /// # Errors
    /// When the picture or the prompt cannot be used.
    fn ask(&mut self, image: &RgbImage, prompt: &Prompt) -> Result<Answer>;
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

/// A batch of the largest model on a slow processor is done by then; a GPU that hangs never is.
const LONGEST: Duration = Duration::from_secs(900);

/// As `start_with`, where nobody asks anything else.
///
/// # Errors
/// As `start_with`.
pub fn start(
    detectors: Vec<Box<dyn Detector>>,
    max_batch: usize,
    jobs: &Taker<Job>,
    found: &Sender<Vec<Found>>,
    metrics: &Metrics,
) -> Result<Vec<Thread>> {
    start_with(detectors, max_batch, jobs, &Guests::new(jobs, metrics), found, &Pulses::default(), metrics)
}

/// Starts one thread `detect-N` per detector. They end when every putter of the mailbox is gone.
///
/// A worker looks at `max_batch` frames together at most, at those that are there and without waiting for more. Where
/// there are several workers none takes more than its part of the cameras: it would leave the others idle for as long
/// as its batch takes, for what it holds is in flight. Guests' questions are answered one at a time, behind the cameras.
///
/// # Errors
/// When a thread cannot be started.
pub fn start_with(
    detectors: Vec<Box<dyn Detector>>,
    max_batch: usize,
    jobs: &Taker<Job>,
    guests: &Guests,
    found: &Sender<Vec<Found>>,
    pulses: &Pulses,
    metrics: &Metrics,
) -> Result<Vec<Thread>> {
    let workers = detectors.len().max(1);
    let host = guests.host();
    let start = |(number, detector): (usize, Box<dyn Detector>)| {
        let (jobs, found, guests, host) = (jobs.clone(), found.clone(), guests.clone(), host.clone());
        let mut worker = Worker { detector, metrics: metrics.clone(), told: None };
        let name = format!("detect-{number}");
        let pulse = pulses.add(&name, LONGEST);
        thread::spawn(name, move || {
            // Cameras come and go.
            while let Some(taken) = jobs.take(max_batch.min(jobs.slots().div_ceil(workers))) {
                let busy = pulse.busy();
                let items = match taken {
                    Taken::Items(items) => items,
                    Taken::Guest(_pass) => {
                        guests.next().into_iter().for_each(|inquiry| worker.answer(inquiry));
                        continue;
                    }
                };
                let answered = worker.step(items);
                // Waiting for the results to be taken is none of it.
                drop(busy);
                // A closed channel means that the daemon stops.
                if !answered.is_empty() && found.send(answered).is_err() {
                    break;
                }
            }
            drop(host);
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

    /// A question that no camera asked; it is counted for none, and leaves no draft behind.
    fn answer(&mut self, Inquiry { image, prompt, asked, tell }: Inquiry) {
        let begin = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(|| self.detector.ask(&image, &prompt)))
            .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the detector panicked; this is a defect, please report it")));
        let count = if answer.is_ok() { "questions_answered" } else { "questions_failed" };
        self.metrics.counter(count, "all").add();
        let (queued, inference) = (begin.duration_since(asked), begin.elapsed());
        tell(answer.map(|answer| Reply { answer, queued, inference }));
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
