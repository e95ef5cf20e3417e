//! Floor 3: the worker pool. Frames come out of the mailbox with a ticket, go through a detector, and travel on with
//! their answer. The workers end when the mailbox does.

mod paligemma;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use image::RgbImage;

use crate::base::error::{Error, Kind, Result};
use crate::base::mailbox::{Taker, Ticket};
use crate::base::metrics::Metrics;
use crate::base::thread::{self, Thread};
use crate::types::{Answer, CameraId, Frame, Prompt};

pub use paligemma::PaliGemmaDetector;

/// The least time between two log lines about failing detections of one worker.
const QUIET: Duration = Duration::from_secs(30);

/// Something that answers a prompt about a picture. One per worker.
pub trait Detector: Send + 'static {
    /// Looks at one picture.
    ///
    /// # Errors
    /// When the picture or prompt cannot be used; the frame is then counted and passed over.
    fn detect(&mut self, image: &RgbImage, prompt: &Prompt) -> Result<Answer>;
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
    /// In the model.
    pub inference: Duration,
    /// To be dropped once the answer has been dealt with: lets the camera's next frame go.
    pub ticket: Ticket,
}

/// Starts one thread `detect-N` per detector. They end when every putter of the mailbox is gone.
///
/// # Errors
/// When a thread cannot be started.
pub fn start(detectors: Vec<Box<dyn Detector>>, jobs: &Taker<Job>, found: &Sender<Found>, metrics: &Metrics) -> Result<Vec<Thread>> {
    let start = |(number, detector): (usize, Box<dyn Detector>)| {
        let (jobs, found) = (jobs.clone(), found.clone());
        let mut worker = Worker { detector, metrics: metrics.clone(), told: None };
        thread::spawn(format!("detect-{number}"), move || {
            while let Some((job, ticket)) = jobs.take() {
                // A closed channel means that the daemon stops.
                if let Some(one) = worker.step(job, ticket)
                    && found.send(one).is_err()
                {
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
    /// One frame through the detector; `None` where that failed.
    fn step(&mut self, job: Job, ticket: Ticket) -> Option<Found> {
        let begin = Instant::now();
        // A panic in the model would silently end this worker; one lost frame is better than a daemon that looks no more.
        let looked = catch_unwind(AssertUnwindSafe(|| self.detector.detect(&job.frame.image, &job.prompt)));
        let answer =
            looked.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the detector panicked; this is a defect, please report it")));
        let inference = begin.elapsed();
        match answer {
            Ok(answer) => {
                self.metrics.latency("inference", "all").record(inference);
                Some(Found { queued: begin.duration_since(job.frame.received), job, answer, inference, ticket })
            }
            Err(error) => {
                self.failed(&job.frame.camera, &error);
                None
            }
        }
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
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::base::clock::Utc;
    use crate::base::mailbox::mailbox;
    use crate::types::{Finish, TimeSource};

    /// Fails on frames 1 pixel wide, panics on 2, answers others with their width.
    struct ByWidth;

    impl Detector for ByWidth {
        fn detect(&mut self, image: &RgbImage, _: &Prompt) -> Result<Answer> {
            match image.width() {
                1 => Err(Error::new(Kind::Input, "too small")),
                2 => panic!("a test panics"),
                width => Ok(Answer {
                    raw: width.to_string(),
                    finish: Finish::Eos,
                    detections: Vec::new(),
                    rejected: Vec::new(),
                    tokens: Vec::new(),
                    drafts_accepted: 0,
                }),
            }
        }
    }

    fn job(camera: &str, width: u32) -> Job {
        let frame = Frame {
            camera: CameraId::new(camera).unwrap(),
            captured: Utc::now(),
            time_source: TimeSource::Pipeline,
            received: Instant::now(),
            position: None,
            image: Arc::new(RgbImage::new(width, 1)),
        };
        Job { frame, prompt: Arc::new(Prompt::new("detect x").unwrap()) }
    }

    #[test]
    fn a_failure_or_panic_costs_one_frame_and_gives_its_ticket_back() {
        let metrics = Metrics::new();
        let (putters, jobs) = mailbox(1);
        let (send, found) = bounded(1);
        let threads = start(vec![Box::new(ByWidth)], &jobs, &send, &metrics).unwrap();
        for (frame, failed) in [(1, 1), (2, 2)] {
            putters[0].put(job("a", frame));
            while metrics.counter("frames_failed", "a").get() < failed {
                std::thread::yield_now();
            }
        }
        putters[0].put(job("a", 7));
        assert_eq!(found.recv().unwrap().answer.raw, "7");
        drop((send, jobs, putters));
        drop(threads);
        assert!(found.recv().is_err());
    }

    #[test]
    fn with_many_workers_a_cameras_frames_stay_in_order() {
        let metrics = Metrics::new();
        let (putters, jobs) = mailbox(2);
        let (send, found) = bounded(1);
        let detectors: Vec<Box<dyn Detector>> = (0..4).map(|_| Box::new(ByWidth) as Box<dyn Detector>).collect();
        let threads = start(detectors, &jobs, &send, &metrics).unwrap();
        drop((send, jobs));
        let feeder = std::thread::spawn(move || {
            for width in 3..300 {
                putters[0].put(job("a", width));
                putters[1].put(job("b", width));
                std::thread::yield_now();
            }
        });
        let mut last = [0, 0];
        for one in found {
            let camera = usize::from(one.job.frame.camera.as_str() == "b");
            let width: u32 = one.answer.raw.parse().unwrap();
            assert!(width > last[camera]);
            last[camera] = width;
        }
        feeder.join().unwrap();
        assert_eq!(last, [299, 299]);
        drop(threads);
    }
}
