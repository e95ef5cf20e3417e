//! A camera's own decoder and its thread, where every picture is decoded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use gstreamer::{ClockTime, Segment};

use crate::base::error::Result;
use crate::base::thread::{self, Thread};
use crate::source::Candidate;
use crate::source::choice::Choice;
use crate::source::convert::Converter;
use crate::source::decoder::Decoder;
use crate::source::tap::Tap;
use crate::source::unit::Unit;
use crate::types::TimeSource;

/// Pictures that wait to be decoded, and their bytes: a whole group that is caught up with, and what comes meanwhile.
const WAITING: usize = 512;
const WAITING_BYTES: usize = 32 << 20;

/// A live picture that has waited for longer tells what was, and the next ones too: the machine does not keep up.
const LATE: Duration = Duration::from_secs(1);

/// What a file may be ahead: it is read as it is shown.
const WAITING_FILE: usize = 4;

/// Pictures under way in a decoder, at most.
const UNDER_WAY: usize = 128;

/// So many pictures pushed and none shown: the decoder can do nothing with them.
const FRUITLESS: u32 = 100;

/// H.264 may have no keyframe at all: it is refreshed in stripes. After so long it is decoded from anywhere.
const NO_KEYFRAME: Duration = Duration::from_secs(30);

/// Up to so many pixels one processor decodes thirty pictures a second of; more take several, and a little delay.
const EASY: i32 = 1920 * 1088;

/// The thread and the way to it. Dropped, it stops at the next picture.
pub struct Own {
    work: Option<Sender<Work>>,
    /// Bytes that wait.
    bytes: Arc<AtomicUsize>,
    quit: Arc<AtomicBool>,
    thread: Option<Thread>,
    tap: Arc<Tap>,
    live: bool,
    /// Since when a keyframe is waited for; `None`: it has had one.
    waits: Option<Instant>,
}

/// A picture to be decoded.
struct Work {
    unit: Unit,
    /// It came before it was known that it would be needed: late as it is, the next ones need it.
    missed: bool,
}

impl Own {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn start(tap: Arc<Tap>, choice: Choice, live: bool) -> Result<Self> {
        let (work, waiting) = bounded::<Work>(if live { WAITING } else { WAITING_FILE });
        let quit = Arc::<AtomicBool>::default();
        let bytes = Arc::<AtomicUsize>::default();
        let feeder = Feeder {
            live,
            bytes: bytes.clone(),
            caught_up: Instant::now(),
            skips: false,
            tap: tap.clone(),
            choice,
            decoder: None,
            converter: Converter::default(),
            moments: VecDeque::new(),
            segment: None,
            fruitless: 0,
        };
        let flag = quit.clone();
        let thread = thread::spawn(format!("own-{}", tap.camera()), move || feeder.run(&waiting, &flag))?;
        Ok(Self { work: Some(work), bytes, quit, thread: Some(thread), tap, live, waits: Some(Instant::now()) })
    }

    /// Whether it has had what it needs to show pictures.
    pub fn begun(&self) -> bool {
        self.waits.is_none()
    }

    /// Takes pictures that came before this decoder was there, from a keyframe on.
    pub fn catch_up(&mut self, missed: Vec<Unit>) {
        missed.into_iter().for_each(|unit| self.send(Work { unit, missed: true }));
    }

    /// Takes the next picture. It begins with a keyframe. A live source that is too much for the machine
    /// loses pictures up to its next keyframe; a file waits.
    pub fn push(&mut self, unit: Unit) {
        self.send(Work { unit, missed: false });
    }

    fn send(&mut self, item: Work) {
        let Some(work) = &self.work else { return };
        let begins = |since: Instant| item.unit.key || (item.unit.is_h264() && since.elapsed() >= NO_KEYFRAME);
        self.waits = self.waits.filter(|&since| !begins(since));
        if self.waits.is_some() {
            return self.tap.counters().frames_skipped.add();
        }
        let size = item.unit.buffer.size();
        if !self.live {
            self.bytes.fetch_add(size, Ordering::AcqRel);
            // Its thread ends before it is told to only by a panic.
            work.send(item).ok();
            return;
        }
        let room = self.bytes.load(Ordering::Acquire) + size <= WAITING_BYTES;
        if room && work.try_send(item).is_ok() {
            self.bytes.fetch_add(size, Ordering::AcqRel);
        } else {
            self.tap.counters().frames_skipped.add();
            self.waits = Some(Instant::now());
        }
    }

    /// Shows what is left, for `most` at most; returns whether all was shown.
    pub fn finish(mut self, most: Duration) -> bool {
        self.work = None;
        self.thread.take().is_none_or(|thread| thread.join_until(Instant::now() + most))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::Release);
        self.work = None;
    }
}

/// The thread's side.
struct Feeder {
    live: bool,
    bytes: Arc<AtomicUsize>,
    /// When the last of the missed pictures was decoded; what came before waited for them.
    caught_up: Instant,
    /// Late: nothing is decoded up to the next keyframe.
    skips: bool,
    tap: Arc<Tap>,
    choice: Choice,
    decoder: Option<Decoder>,
    converter: Converter,
    /// Of the pictures under way, by their time.
    moments: VecDeque<(Option<ClockTime>, Candidate)>,
    segment: Option<Segment>,
    /// Pictures pushed since one was shown.
    fruitless: u32,
}

impl Feeder {
    fn run(mut self, work: &Receiver<Work>, quit: &AtomicBool) {
        for Work { unit, missed } in work {
            self.bytes.fetch_sub(unit.buffer.size(), Ordering::AcqRel);
            if quit.load(Ordering::Acquire) {
                return;
            }
            if self.live && !missed && self.is_late(&unit) {
                self.tap.counters().frames_skipped.add();
                continue;
            }
            self.push(&unit);
            if missed {
                self.caught_up = Instant::now();
            }
        }
        if let Some(decoder) = &self.decoder
            && !quit.load(Ordering::Acquire)
        {
            decoder.drain();
            self.show();
        }
    }

    /// Whether a picture comes too late to be worth decoding, or needs one that was.
    fn is_late(&mut self, unit: &Unit) -> bool {
        let received = unit.moment.received;
        let late = received > self.caught_up && received.elapsed() > LATE;
        self.skips = late || (self.skips && !unit.key);
        self.skips
    }

    fn push(&mut self, unit: &Unit) {
        if self.decoder.is_none() {
            match self.choice.factory(&unit.caps) {
                Ok(factory) => match Decoder::start(&factory, threads(unit)) {
                    Ok(decoder) => self.decoder = Some(decoder),
                    Err(why) => {
                        tracing::debug!("{why}");
                        self.choice.judge(&factory, false);
                        return self.tap.damaged();
                    }
                },
                Err(fault) => return self.tap.fail(fault),
            }
        }
        let Some(decoder) = &mut self.decoder else { return };
        if self.moments.len() == UNDER_WAY {
            self.moments.pop_front();
        }
        self.moments.push_back((unit.buffer.pts(), unit.moment));
        self.segment = Some(unit.segment.clone());
        self.fruitless += 1;
        let pushed = decoder.push(unit);
        self.show();
        let fruitless = self.fruitless > FRUITLESS;
        match pushed {
            Ok(()) if !fruitless => return,
            Ok(()) => {}
            Err(why) => tracing::debug!("{why}"),
        }
        self.tap.damaged();
        self.fruitless = 0;
        // The next one begins in the middle, and marks as damaged what it cannot show whole.
        if let Some(decoder) = self.decoder.take() {
            self.choice.judge(decoder.factory(), false);
        }
    }

    /// Hands on the pictures that have come.
    fn show(&mut self) {
        let Some(decoder) = &self.decoder else { return };
        let pictures = decoder.take();
        if !pictures.is_empty() {
            self.fruitless = 0;
            self.choice.judge(decoder.factory(), true);
        }
        for picture in pictures {
            let pts = picture.buffer.pts();
            let at = self.moments.iter().position(|(of, _)| of.is_some() && *of == pts);
            let Some((_, mut moment)) = self.moments.remove(at.unwrap_or(0)) else {
                self.tap.damaged();
                continue;
            };
            // The decoder knows the time of pictures whose container has none.
            let segment = self.segment.as_ref().and_then(|segment| segment.downcast_ref::<ClockTime>());
            if moment.position.is_none() && moment.time_source == TimeSource::File {
                moment.position = segment.zip(pts).and_then(|(segment, pts)| segment.to_stream_time(pts)).map(Into::into);
            }
            self.tap.picture(&picture, moment, &mut self.converter);
        }
    }
}

/// How many threads a decoder may take; `None`: what it likes.
fn threads(unit: &Unit) -> Option<i32> {
    let size = unit.caps.structure(0).and_then(|caps| Some(caps.get::<i32>("width").ok()? * caps.get::<i32>("height").ok()?));
    size.is_some_and(|size| size <= EASY).then_some(1)
}
