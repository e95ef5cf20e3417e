//! One object: where it is and is awaited, whether it rests, in which zones it is, and what was told of it.

use std::sync::Arc;
use std::time::Instant;

use crate::base::clock::Utc;
use crate::track::geometry;
use crate::track::screen::{Found, covers};
use crate::types::{Box01, Reason, Track, Tracking, Zone};

/// In sizes of the object: what leaves its place by more does not rest,
const PLACE: f32 = 0.25;

/// and what rests leaves its place only by more.
const LEAVES: f32 = 0.4;

/// Sizes a second, the most that is believed of a velocity.
const FASTEST: f32 = 2.0;

/// Seconds in which a velocity, and a place, is learnt.
const LEARN: f64 = 1.0;

/// Seconds between two moments; 0 where they come in the wrong order.
pub(super) fn seconds(later: Instant, earlier: Instant) -> f64 {
    later.saturating_duration_since(earlier).as_secs_f64()
}

/// A tracked object.
#[derive(Debug)]
pub(super) struct Object {
    key: Arc<str>,
    track: Track,
    first: Instant,
    seen: Instant,
    /// Looks that saw it.
    looks: u32,
    /// Looks since then that did not.
    missed: u32,
    /// Shares of width and height a second; `None` as long as it was seen once.
    velocity: Option<[f32; 2]>,
    rest: Rest,
    /// As many as there are zones.
    presence: Vec<Presence>,
    /// What its last event said, and when that was.
    told: Option<(Track, Instant)>,
}

/// Where it may be resting.
#[derive(Debug)]
struct Rest {
    place: [f32; 2],
    since: Instant,
    /// Where it is, smoothed.
    centre: [f32; 2],
    /// The last look saw it elsewhere.
    strayed: bool,
}

/// Whether it is in a zone.
#[derive(Clone, Copy, Debug)]
struct Presence {
    /// Where the newest look saw it, and since when looks see it there.
    inside: bool,
    since: Instant,
    /// It counts as in.
    entered: bool,
}

impl Object {
    /// Seen for the first time.
    pub(super) fn new(track: Track, key: Arc<str>, at: Instant, rules: &Tracking) -> Self {
        let centre = geometry::centre(track.box01);
        let mut object = Self {
            key,
            first: at,
            seen: at,
            looks: 1,
            missed: 0,
            velocity: None,
            rest: Rest { place: centre, since: at, centre, strayed: false },
            presence: vec![Presence { inside: false, since: at, entered: false }; rules.zones.len()],
            told: None,
            track,
        };
        object.enter(at, &rules.zones);
        object
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn track(&self) -> &Track {
        &self.track
    }

    pub(super) fn box01(&self) -> Box01 {
        self.track.box01
    }

    pub(super) fn is_stationary(&self) -> bool {
        self.track.stationary
    }

    pub(super) fn was_told(&self) -> bool {
        self.told.is_some()
    }

    pub(super) fn missed(&self) -> u32 {
        self.missed
    }

    /// When the picture arrived on which it was last seen.
    pub(super) fn seen(&self) -> Instant {
        self.seen
    }

    /// Seconds since it was seen.
    pub(super) fn unseen(&self, at: Instant) -> f64 {
        seconds(at, self.seen)
    }

    /// Where it should be at a moment. Its velocity fades, for nothing is known of what it does unseen: slower where looks
    /// are far apart (`apart`, seconds), which saw it keep that velocity for as long.
    pub(super) fn awaited(&self, at: Instant, apart: f64) -> Box01 {
        let Some([x, y]) = self.velocity.filter(|_| !self.track.stationary) else { return self.track.box01 };
        let fades = (4.0 * apart).clamp(2.0, 10.0);
        let path = (fades * -(-self.unseen(at) / fades).exp_m1()) as f32;
        geometry::shifted(self.track.box01, [x * path, y * path])
    }

    /// A look at `at` did not see it.
    pub(super) fn miss(&mut self) {
        self.missed = self.missed.saturating_add(1);
    }

    /// A look at `at` saw it.
    pub(super) fn see(&mut self, found: &Found<'_>, at: Instant, captured: Utc, aspect: f32, rules: &Tracking) {
        let since = self.unseen(at);
        let size = geometry::size(found.box01, aspect);
        self.learn(found.box01, since, size, aspect);
        self.track.box01 = found.box01;
        self.track.score = found.score;
        self.track.top_score = self.track.top_score.max(found.score);
        self.track.last = captured;
        (self.seen, self.missed) = (at, 0);
        self.looks = self.looks.saturating_add(1);
        self.settle(at, since, size, aspect, rules);
        self.enter(at, &rules.zones);
    }

    fn learn(&mut self, b: Box01, since: f64, size: f32, aspect: f32) {
        // Two looks at one moment say nothing of a velocity.
        if since < 0.001 {
            return;
        }
        let (from, to) = (geometry::centre(self.track.box01), geometry::centre(b));
        let mut speed = [0, 1].map(|axis| (to[axis] - from[axis]) / since as f32);
        let sizes = geometry::distance(speed, [0.0, 0.0], aspect) / size;
        if sizes > FASTEST {
            speed = speed.map(|one| one * FASTEST / sizes);
        }
        let part = (1.0 - (-since / LEARN).exp()).clamp(0.3, 0.8) as f32;
        self.velocity = Some(match self.velocity {
            None => speed,
            Some(before) => [0, 1].map(|axis| before[axis] + part * (speed[axis] - before[axis])),
        });
    }

    /// Whether it rests. A box that is off once does not end a rest: that is the model's doing.
    fn settle(&mut self, at: Instant, since: f64, size: f32, aspect: f32, rules: &Tracking) {
        let centre = geometry::centre(self.track.box01);
        let rest = &mut self.rest;
        let off = |point| geometry::distance(point, rest.place, aspect) / size;
        if self.track.stationary {
            let strays = off(centre) > LEAVES;
            if strays && rest.strayed {
                self.track.stationary = false;
                *rest = Rest { place: centre, since: at, centre, strayed: false };
            } else {
                rest.strayed = strays;
            }
            return;
        }
        let part = (1.0 - (-since / LEARN).exp()) as f32;
        rest.centre = [0, 1].map(|axis| rest.centre[axis] + part * (centre[axis] - rest.centre[axis]));
        if geometry::distance(rest.centre, rest.place, aspect) / size > PLACE {
            (rest.place, rest.since) = (rest.centre, at);
        } else if seconds(at, rest.since) >= rules.stationary_after.as_secs_f64() {
            self.track.stationary = true;
            (rest.place, rest.strayed) = (rest.centre, false);
        }
    }

    fn enter(&mut self, at: Instant, zones: &[Zone]) {
        for (zone, presence) in zones.iter().zip(&mut self.presence) {
            let inside = covers(&zone.area, &self.key, self.track.box01);
            if inside != presence.inside {
                (presence.inside, presence.since) = (inside, at);
            }
            let wait = if inside { zone.inertia.max(zone.loitering) } else { zone.inertia };
            if inside == presence.entered || seconds(at, presence.since) < wait.as_secs_f64() {
                continue;
            }
            presence.entered = inside;
            if !inside {
                self.track.zones.retain(|name| *name != zone.name);
                continue;
            }
            self.track.zones.push(zone.name.clone());
            if !self.track.entered_zones.contains(&zone.name) {
                self.track.entered_zones.push(zone.name.clone());
            }
        }
    }

    /// After a look that saw it: why there is something to tell, if there is.
    pub(super) fn reason(&self, at: Instant, aspect: f32, rules: &Tracking) -> Option<Reason> {
        let updates = &rules.updates;
        let Some((told, when)) = &self.told else {
            let confirmed = self.looks >= rules.confirm_looks && seconds(self.seen, self.first) >= rules.confirm.as_secs_f64();
            return confirmed.then_some(Reason::FirstSeen);
        };
        let since = seconds(at, *when);
        if since < updates.every.as_secs_f64() {
            return None;
        }
        let now = &self.track;
        if updates.zones && (now.zones != told.zones || now.entered_zones.len() != told.entered_zones.len()) {
            return Some(Reason::Zone);
        }
        if let Some(moved) = updates.moved {
            let path = geometry::distance(geometry::centre(now.box01), geometry::centre(told.box01), aspect);
            // What rests does not move, however its box jumps.
            if now.stationary != told.stationary || !now.stationary && path >= moved * geometry::size(now.box01, aspect) {
                return Some(Reason::Moved);
            }
        }
        if updates.score.is_some_and(|rise| now.top_score - told.top_score >= rise) {
            return Some(Reason::Score);
        }
        let beat = updates.heartbeat.is_some_and(|heartbeat| since >= heartbeat.as_secs_f64());
        beat.then_some(Reason::Heartbeat)
    }

    /// Notes that it was told of as it is; gives what was told before.
    pub(super) fn tell(&mut self, at: Instant) -> Option<Track> {
        self.told.replace((self.track.clone(), at)).map(|(before, _)| before)
    }

    /// What was told last; `None` where nothing was.
    pub(super) fn into_told(self) -> Option<(Track, Track)> {
        let (before, _) = self.told?;
        Some((self.track, before))
    }
}
