use std::sync::mpsc;

use crossbeam_channel::{Receiver, bounded};
use image::RgbImage;

use super::*;
use crate::base::clock::Utc;
use crate::base::mailbox::{Put, Putter, mailbox};
use crate::types::{Finish, TimeSource};

pub(super) fn job(camera: &str, width: u32) -> Job {
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

pub(super) fn answer(raw: &str) -> Answer {
    let (detections, rejected) = (Vec::new(), Vec::new());
    Answer { raw: raw.to_owned(), finish: Finish::Eos, detections, rejected, tokens: vec![7, 7, 1], drafts_accepted: 2 }
}

/// Fails on frames 1 pixel wide, panics on 2, forgets those of 3, answers others with their width.
struct ByWidth;

impl Detector for ByWidth {
    fn detect(&mut self, batch: &[Job]) -> Vec<Result<Answer>> {
        let one = |job: &Job| match job.frame.image.width() {
            1 => Some(Err(Error::new(Kind::Input, "too small"))),
            2 => panic!("a test panics"),
            3 => None,
            width => Some(Ok(answer(&width.to_string()))),
        };
        batch.iter().filter_map(one).collect()
    }

    fn ask(&mut self, image: &RgbImage, prompt: &Prompt) -> Result<Answer> {
        match image.width() {
            1 => Err(Error::new(Kind::Input, "too small")),
            2 => panic!("a test panics"),
            _ => Ok(answer(prompt.text())),
        }
    }
}

/// Tells the cameras of each batch, and answers when it is told to.
struct Gated {
    told: mpsc::Sender<Vec<String>>,
    go: Receiver<()>,
}

impl Detector for Gated {
    fn detect(&mut self, batch: &[Job]) -> Vec<Result<Answer>> {
        self.told.send(batch.iter().map(|job| job.frame.camera.to_string()).collect()).unwrap();
        self.go.recv().unwrap();
        batch.iter().map(|_| Ok(answer(""))).collect()
    }

    fn ask(&mut self, _: &RgbImage, prompt: &Prompt) -> Result<Answer> {
        self.told.send(vec![format!("guest {}", prompt.text())]).unwrap();
        self.go.recv().unwrap();
        Ok(answer(prompt.text()))
    }
}

fn put_all(putters: &[Putter<Job>], widths: &[u32]) {
    for ((putter, name), width) in putters.iter().zip(["a", "b", "c", "d", "e"]).zip(widths) {
        assert_ne!(putter.put(job(name, *width)), Put::Closed);
    }
}

fn cameras(found: &[Found]) -> Vec<&str> {
    found.iter().map(|one| one.job.frame.camera.as_str()).collect()
}

#[test]
fn a_failure_costs_one_frame_and_a_panic_or_a_miscount_its_batch() {
    let metrics = Metrics::new();
    let (putters, jobs) = mailbox(3);
    let failed = || ["a", "b", "c"].map(|camera| metrics.counter("frames_failed", camera).get());
    for (widths, lost) in
        [(&[7, 1, 9][..], [0, 1, 0]), (&[7, 2, 9], [1, 1, 1]), (&[2], [1, 0, 0]), (&[3, 9], [1, 1, 0]), (&[4, 5, 6], [0, 0, 0])]
    {
        let before = failed();
        let mut worker = Worker { detector: Box::new(ByWidth), metrics: metrics.clone(), told: None };
        put_all(&putters, widths);
        let taken = jobs.take_up_to(3).unwrap();
        assert_eq!(taken.len(), widths.len());
        // Were a ticket kept, the next round would find fewer.
        let mut answered: Vec<String> = worker.step(taken).into_iter().map(|one| one.answer.raw).collect();
        assert_eq!([0, 1, 2].map(|at| failed()[at] - before[at]), lost, "{widths:?}");
        answered.sort();
        let expected: Vec<String> = widths.iter().zip(lost).filter(|(_, lost)| *lost == 0).map(|(width, _)| width.to_string()).collect();
        assert_eq!(answered, expected);
    }
    assert_eq!(["1", "2", "3"].map(|size| metrics.counter("batches", size).get()), [1, 1, 3]);
    assert_eq!(metrics.counter("answer_tokens", "a").get(), 6);
    assert_eq!(metrics.counter("draft_tokens_accepted", "a").get(), 4);
}

#[test]
fn a_panic_does_not_end_the_worker() {
    let metrics = Metrics::new();
    let (putters, jobs) = mailbox(1);
    let (send, found) = bounded(1);
    let threads = start(vec![Box::new(ByWidth)], 1, &jobs, &send, &metrics).unwrap();
    for (frame, failed) in [(1, 1), (2, 2), (3, 3)] {
        putters[0].put(job("a", frame));
        while metrics.counter("frames_failed", "a").get() < failed {
            std::thread::yield_now();
        }
    }
    putters[0].put(job("a", 7));
    assert_eq!(found.recv().unwrap()[0].answer.raw, "7");
    drop((send, jobs, putters));
    drop(threads);
    assert!(found.recv().is_err());
}

#[test]
fn a_batch_is_what_is_there_in_turn_and_never_over_the_bound() {
    let (putters, jobs) = mailbox(5);
    let (send, found) = bounded(9);
    let (told, batches) = mpsc::channel();
    let (release, go) = bounded(1);
    let threads = start(vec![Box::new(Gated { told, go })], 3, &jobs, &send, &Metrics::new()).unwrap();
    // Nothing else is there, so the one frame goes alone.
    putters[0].put(job("a", 9));
    assert_eq!(batches.recv().unwrap(), ["a"]);
    // The camera in the model is passed over, the bound holds, and who was left out comes first.
    put_all(&putters, &[9; 5]);
    release.send(()).unwrap();
    assert_eq!(batches.recv().unwrap(), ["b", "c", "d"]);
    let first = found.recv().unwrap();
    assert_eq!(cameras(&first), ["a"]);
    drop(first);
    put_all(&putters, &[9; 5]);
    release.send(()).unwrap();
    assert_eq!(batches.recv().unwrap(), ["e", "a"]);
    let together = found.recv().unwrap();
    assert_eq!(cameras(&together), ["b", "c", "d"]);
    assert!(together.iter().all(|one| one.inference == together[0].inference));
    drop(together);
    release.send(()).unwrap();
    assert_eq!(batches.recv().unwrap(), ["b", "c", "d"]);
    release.send(()).unwrap();
    drop((putters, jobs, send));
    assert_eq!(found.iter().flatten().count(), 5);
    drop(threads);
}

#[test]
fn several_workers_share_the_cameras() {
    let (putters, jobs) = mailbox(5);
    let (send, found) = bounded(9);
    let (told, batches) = mpsc::channel();
    let (release, go) = bounded(2);
    put_all(&putters, &[9; 5]);
    let detectors = (0..2).map(|_| Box::new(Gated { told: told.clone(), go: go.clone() }) as Box<dyn Detector>).collect();
    let threads = start(detectors, 64, &jobs, &send, &Metrics::new()).unwrap();
    // Both work at once, neither on everything.
    let mut all = [batches.recv().unwrap(), batches.recv().unwrap()];
    assert!(all.iter().all(|batch| (2..=3).contains(&batch.len())), "{all:?}");
    all.sort();
    assert_eq!(all.concat(), ["a", "b", "c", "d", "e"]);
    drop((putters, jobs, send));
    (0..2).for_each(|_| release.send(()).unwrap());
    assert_eq!(found.iter().flatten().count(), 5);
    drop(threads);
}

#[test]
fn with_many_workers_and_batches_a_cameras_frames_stay_in_order() {
    let (putters, jobs) = mailbox(5);
    let (send, found) = bounded(1);
    let detectors: Vec<Box<dyn Detector>> = (0..3).map(|_| Box::new(ByWidth) as Box<dyn Detector>).collect();
    let threads = start(detectors, 4, &jobs, &send, &Metrics::new()).unwrap();
    drop((send, jobs));
    let feeder = std::thread::spawn(move || {
        for width in 4..300 {
            put_all(&putters, &[width; 5]);
            std::thread::yield_now();
        }
    });
    let mut last = [0; 5];
    for one in found.into_iter().flatten() {
        let camera = usize::from(one.job.frame.camera.as_str().as_bytes()[0] - b'a');
        let width: u32 = one.answer.raw.parse().unwrap();
        assert!(width > last[camera]);
        last[camera] = width;
    }
    feeder.join().unwrap();
    assert_eq!(last, [299; 5]);
    drop(threads);
}

/// Asks, and returns where the reply comes.
fn inquire(guests: &Guests, width: u32, prompt: &str) -> Option<mpsc::Receiver<Result<Reply>>> {
    let (send, reply) = mpsc::channel();
    let tell = Box::new(move |reply| send.send(reply).unwrap());
    guests.ask(Arc::new(RgbImage::new(width, 1)), Arc::new(Prompt::new(prompt).unwrap()), tell).then_some(reply)
}

#[test]
fn guests_are_answered_behind_the_cameras_and_counted_for_none() {
    let metrics = Metrics::new();
    let (putters, jobs) = mailbox(2);
    let (send, found) = bounded(9);
    let (told, batches) = mpsc::channel();
    let (release, go) = bounded(1);
    let guests = Guests::new(&jobs, &metrics);
    let threads = start_with(vec![Box::new(Gated { told, go })], 1, &jobs, &guests, &send, &Pulses::default(), &metrics).unwrap();
    putters[0].put(job("a", 9));
    assert_eq!(batches.recv().unwrap(), ["a"]);
    let replies: Vec<_> = ["q1", "q2", "q3", "q4"].map(|prompt| inquire(&guests, 9, prompt).unwrap()).into();
    assert!(inquire(&guests, 9, "q5").is_none());
    putters[1].put(job("b", 9));
    release.send(()).unwrap();
    assert_eq!(batches.recv().unwrap(), ["b"], "it came later, and goes first");
    release.send(()).unwrap();
    for (prompt, reply) in ["q1", "q2", "q3"].iter().zip(&replies) {
        assert_eq!(batches.recv().unwrap(), [format!("guest {prompt}")]);
        release.send(()).unwrap();
        let reply = reply.recv().unwrap().unwrap();
        assert_eq!((reply.answer.raw.as_str(), reply.queued > Duration::ZERO), (*prompt, true));
    }
    assert_eq!(found.recv().unwrap().len() + found.recv().unwrap().len(), 2);
    // Who waits when the workers end finds out.
    assert_eq!(batches.recv().unwrap(), ["guest q4"]);
    let last = inquire(&guests, 9, "q6").unwrap();
    drop((putters, jobs, send));
    release.send(()).unwrap();
    assert!(replies[3].recv().unwrap().is_ok());
    assert!(last.recv().is_err());
    drop(threads);
    assert!(inquire(&guests, 9, "q7").is_none());
    let count = |name: &'static str| metrics.counter(name, "all").get();
    assert_eq!((count("questions_answered"), count("questions_refused")), (4, 2));
    assert_eq!(metrics.counter("batches", "1").get(), 2);
    assert_eq!(metrics.counter("answer_tokens", "a").get() + metrics.counter("answer_tokens", "b").get(), 6);
}

#[test]
fn a_guest_whose_picture_fails_or_panics_costs_nobody_else_anything() {
    let metrics = Metrics::new();
    let (putters, jobs) = mailbox(1);
    let (send, found) = bounded(1);
    let guests = Guests::new(&jobs, &metrics);
    let threads = start_with(vec![Box::new(ByWidth)], 1, &jobs, &guests, &send, &Pulses::default(), &metrics).unwrap();
    for (width, sentence) in [(1, "too small"), (2, "the detector panicked; this is a defect, please report it")] {
        assert_eq!(inquire(&guests, width, "detect x").unwrap().recv().unwrap().unwrap_err().to_string(), sentence);
    }
    putters[0].put(job("a", 7));
    assert_eq!(found.recv().unwrap()[0].answer.raw, "7");
    assert_eq!(metrics.counter("questions_failed", "all").get(), 2);
    assert_eq!(metrics.counter("frames_failed", "a").get(), 0);
    drop((send, jobs, putters));
    drop(threads);
}
