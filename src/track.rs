//! Floor 3: boxes over time. What the looks at one camera saw becomes objects, and what happens to those becomes events.
//!
//! Made for few and uneven looks, one in ten seconds to five a second: everything is in seconds, and what may differ
//! between two looks grows with the time between them. Nothing here reads a clock or starts a thread: times are handed in.
//! Lengths of time rest on the moments of arrival, by this machine's monotonic clock; the camera's own clock, which may
//! jump, only stamps the events.

mod geometry;
mod matching;
mod object;
mod screen;

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::base::clock::Utc;
use crate::types::{CameraId, Detection, Event, EventKind, Mark, Prompt, Reason, Track, Tracking, label_key};
use matching::View;
use object::{Object, seconds};
use screen::Found;

/// An object must have been missing for so many distances between looks before it is gone.
const LOOKS: f64 = 2.5;

/// A camera of which nothing came for so many of its longest pauses is silent.
const PAUSES: f64 = 2.0;

/// Seconds. A pause between looks counts as no longer, unless the camera is allowed a longer one: it was a loss.
const LONGEST: f64 = 30.0;

/// Objects of one camera at most; what comes beyond is not followed.
const MOST: usize = 512;

/// What a look at a picture saw.
#[derive(Clone, Copy, Debug)]
pub struct Look<'l> {
    /// When the picture reached this machine.
    pub received: Instant,
    /// When the answer is there, by the clock of [`Tracker::tick`].
    pub now: Instant,
    /// When it was taken, by the camera's clock: the stamp of what is told.
    pub captured: Utc,
    /// Its width and height, pixels.
    pub frame: (u32, u32),
    /// What was asked.
    pub prompt: &'l Prompt,
    /// What was answered.
    pub detections: &'l [Detection],
}

/// How often a camera is looked at when all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between two looks.
    pub interval: Duration,
    /// Between two looks where nothing moves.
    pub longest: Duration,
}

/// Follows the objects of one camera.
#[derive(Debug)]
pub struct Tracker {
    camera: CameraId,
    rules: Tracking,
    pace: Pace,
    objects: Vec<Object>,
    last: Option<Last>,
    /// Since when it is known that no look may come.
    dark: Option<Instant>,
    /// What the newest look saw and is not followed, for there are too many objects.
    beyond: usize,
}

/// The newest look.
#[derive(Debug)]
struct Last {
    received: Instant,
    now: Instant,
    captured: Utc,
    frame: (u32, u32),
    prompt: Arc<str>,
    /// Seconds between the newest looks.
    gaps: [f64; 2],
}

impl Last {
    /// What the camera's clock shows at `now`, milliseconds beside.
    fn stamp(&self, now: Instant) -> Utc {
        let since = i64::try_from(now.saturating_duration_since(self.now).as_millis()).unwrap_or(i64::MAX);
        Utc::from_millis(self.captured.millis().saturating_add(since))
    }

    /// The time of arrival of a picture whose answer would be there at `now`.
    fn clock(&self, now: Instant) -> Instant {
        self.received + now.saturating_duration_since(self.now)
    }

    fn aspect(&self) -> f32 {
        self.frame.0.max(1) as f32 / self.frame.1.max(1) as f32
    }
}

impl Tracker {
    /// Knows of no object yet.
    pub fn new(camera: CameraId, rules: Tracking, pace: Pace) -> Self {
        Self { camera, rules, pace, objects: Vec::new(), last: None, dark: None, beyond: 0 }
    }

    /// Takes in a look, in the order of the camera; gives what there is to tell of it, ends first.
    pub fn step(&mut self, look: &Look<'_>) -> Vec<Event> {
        // A silence that nobody ticked in has ended what it ends.
        let mut events = self.tick(look.now, true);
        events.extend(self.asked(look.prompt, look.captured));
        let view = self.note(look);
        let found = screen::screen(look.detections, &self.rules, view.aspect);
        let given = matching::assign(&self.objects, &found, view);
        self.objects.iter_mut().for_each(Object::miss);
        for (one, object) in found.iter().zip(&given) {
            if let Some(object) = object.and_then(|index| self.objects.get_mut(index)) {
                object.see(one, view.at, look.captured, view.aspect, &self.rules);
            }
        }
        let apart = self.apart();
        events.extend(
            self.end(look.captured, |tracker, object| object.missed() > 0 && object.unseen(view.at) >= tracker.allowed(object, apart)),
        );
        self.beyond = 0;
        for one in found.iter().zip(&given).filter(|(_, given)| given.is_none()).map(|(one, _)| one) {
            self.begin(one, look);
        }
        events.extend(self.tell(view, look.captured));
        events
    }

    /// Ends what is gone at `now`, though no look comes: what several looks have missed, and everything once a camera that
    /// should have been looked at was not. To be called now and then, twice a second or so. `watched`: looks may come; they
    /// do not from a camera that is lost or not to be looked at.
    pub fn tick(&mut self, now: Instant, watched: bool) -> Vec<Event> {
        self.dark = if watched { None } else { self.dark.or(Some(now)) };
        let Some(last) = &self.last else { return Vec::new() };
        let (clock, stamp, apart) = (last.clock(now), last.stamp(now), self.apart());
        let silent = seconds(now, last.now);
        let silence = PAUSES * self.pace.longest.as_secs_f64().max(apart);
        let dark = self.dark.map_or(0.0, |since| seconds(now, since));
        let darkness = PAUSES * self.pace.interval.as_secs_f64();
        self.end(stamp, |tracker, object| {
            let lost = tracker.lost(object);
            match object.missed() {
                // A pause because nothing moves is told from a loss that is known of.
                _ if tracker.pace.longest > tracker.pace.interval && dark >= darkness.max(lost) => true,
                // What one look has missed may be there: where nothing moves there is no other for long.
                0 | 1 => silent >= silence.max(lost),
                _ => object.unseen(clock) >= tracker.allowed(object, apart),
            }
        })
    }

    /// Ends everything.
    pub fn finish(&mut self, now: Instant) -> Vec<Event> {
        let Some(last) = &self.last else { return Vec::new() };
        let stamp = last.stamp(now);
        self.end(stamp, |_, _| true)
    }

    /// How many detections of the newest look are not followed, for there are 512 objects already.
    pub fn beyond(&self) -> usize {
        self.beyond
    }

    /// The objects that were told of and have not ended, with whether the newest look saw each.
    pub fn present(&self) -> impl Iterator<Item = (&Track, bool)> {
        self.objects.iter().filter(|object| object.was_told()).map(|object| (object.track(), object.missed() == 0))
    }

    /// The same to be drawn: each with its age, by the moments at which pictures arrived.
    pub fn marks(&self) -> Vec<Mark> {
        let apart = self.apart();
        let told = self.objects.iter().filter(|object| object.was_told());
        let mark = |object: &Object| {
            let Track { label, score, box01, .. } = object.track();
            let lasts = Duration::from_secs_f64(self.allowed(object, apart));
            Mark { label: label.clone(), score: *score, box01: *box01, seen: object.seen(), lasts }
        };
        told.map(mark).collect()
    }

    /// Ends what is no longer asked for, if this is another question than before.
    fn asked(&mut self, prompt: &Prompt, stamp: Utc) -> Vec<Event> {
        if self.last.as_ref().is_none_or(|last| *last.prompt == *prompt.id()) {
            return Vec::new();
        }
        let labels: Vec<String> = prompt.labels().iter().map(|label| label_key(label)).collect();
        self.end(stamp, |_, object| !labels.iter().any(|label| label == object.key()))
    }

    fn note(&mut self, look: &Look<'_>) -> View {
        let interval = self.pace.interval.as_secs_f64();
        let gaps = match &self.last {
            None => [interval; 2],
            Some(last) => {
                let longest = self.pace.longest.as_secs_f64().max(LONGEST);
                [last.gaps[1], seconds(look.received, last.received).max(seconds(look.now, last.now)).min(longest)]
            }
        };
        let prompt = self.last.take().map(|last| last.prompt).filter(|prompt| **prompt == *look.prompt.id());
        let last = Last {
            received: look.received,
            now: look.now,
            captured: look.captured,
            frame: look.frame,
            prompt: prompt.unwrap_or_else(|| look.prompt.id().into()),
            gaps,
        };
        let aspect = last.aspect();
        self.last = Some(last);
        View { at: look.received, apart: self.apart(), aspect }
    }

    /// Seconds between looks: the longer of the newest two, so that one that is late ends nothing.
    fn apart(&self) -> f64 {
        self.last.as_ref().map_or(self.pace.interval.as_secs_f64(), |last| last.gaps[0].max(last.gaps[1]))
    }

    /// Seconds that an object may be missing.
    fn allowed(&self, object: &Object, apart: f64) -> f64 {
        self.lost(object).max(LOOKS * apart)
    }

    /// The same without regard to how often there are looks.
    fn lost(&self, object: &Object) -> f64 {
        match (object.was_told(), object.is_stationary()) {
            // What was seen once and not again was a mistake.
            (false, _) => 0.0,
            (true, false) => self.rules.lost_after.as_secs_f64(),
            (true, true) => self.rules.lost_after.max(self.rules.stationary_lost_after).as_secs_f64(),
        }
    }

    fn begin(&mut self, found: &Found<'_>, look: &Look<'_>) {
        if found.score < self.rules.start_score {
            return;
        }
        if self.objects.len() >= MOST {
            self.beyond += 1;
            return;
        }
        let track = Track {
            id: self.new_id(look.captured),
            label: found.label.into(),
            score: found.score,
            top_score: found.score,
            start: look.captured,
            last: look.captured,
            box01: found.box01,
            stationary: false,
            zones: Vec::new(),
            entered_zones: Vec::new(),
        };
        self.objects.push(Object::new(track, found.key.clone(), look.received, &self.rules));
    }

    /// Seconds since 1970 and four random digits; no other object of this camera has it.
    fn new_id(&self, start: Utc) -> Arc<str> {
        loop {
            let digits = Uuid::new_v4().as_fields().0 as u16;
            let (whole, part) = (start.millis().div_euclid(1000), start.millis().rem_euclid(1000));
            let id = format!("{whole}.{part:03}-{digits:04x}");
            if !self.objects.iter().any(|object| *object.track().id == *id) {
                return id.into();
            }
        }
    }

    /// News of what the look saw.
    fn tell(&mut self, view: View, stamp: Utc) -> Vec<Event> {
        let mut events = Vec::new();
        let (Some(last), rules) = (&self.last, &self.rules) else { return events };
        for object in self.objects.iter_mut().filter(|object| object.missed() == 0) {
            let Some(reason) = object.reason(view.at, view.aspect, rules) else { continue };
            let before = object.tell(view.at);
            let kind = if before.is_some() { EventKind::Update } else { EventKind::New };
            events.push(event(&self.camera, last, kind, reason, stamp, object.track().clone(), before));
        }
        events
    }

    /// Forgets the objects that `gone` says are; those that were told of have their end told.
    fn end(&mut self, stamp: Utc, gone: impl Fn(&Self, &Object) -> bool) -> Vec<Event> {
        let (ended, stay): (Vec<Object>, Vec<Object>) =
            std::mem::take(&mut self.objects).into_iter().partition(|object| gone(self, object));
        self.objects = stay;
        let Some(last) = &self.last else { return Vec::new() };
        let told = ended.into_iter().filter_map(Object::into_told);
        told.map(|(track, before)| event(&self.camera, last, EventKind::End, Reason::Lost, stamp, track, Some(before))).collect()
    }
}

fn event(camera: &CameraId, last: &Last, kind: EventKind, reason: Reason, time: Utc, track: Track, before: Option<Track>) -> Event {
    Event {
        id: Uuid::now_v7(),
        kind,
        reason,
        camera: camera.clone(),
        time,
        track,
        before: before.map(Box::new),
        frame: last.frame,
        prompt_id: last.prompt.clone(),
        snapshot: None,
        clip: None,
    }
}

#[cfg(test)]
mod tests;
