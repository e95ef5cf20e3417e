//! What comes out of a camera's pipeline, on its streaming thread: sorts encoded pictures by what is to become of them.
//!
//! Keyframes that may be looked at go to the shared decoders, or every picture to a decoder of the camera's own. Nothing
//! here waits where the source is live: a camera that is held up loses its packets.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gstreamer::{ClockTime, Sample};
use gstreamer_video::VideoInfo;

use crate::base::clock::Utc;
use crate::base::sync;
use crate::source::Candidate;
use crate::source::choice::Choice;
use crate::source::convert::Converter;
use crate::source::decoder::Picture;
use crate::source::gop::Gop;
use crate::source::own::Own;
use crate::source::plan::{Path, Plan};
use crate::source::pool::{Order, Seat};
use crate::source::tap::Tap;
use crate::source::unit::{self, Unit};
use crate::source::watch::{Fault, Retry};
use crate::types::{Encoded, TimeSource};

/// A camera's clock that is further ahead or behind (milliseconds) is not believed.
const NTP_AHEAD: i64 = 2_000;
const NTP_BEHIND: i64 = 30_000;

/// A picture is not taken for older than this by the pipeline's clock.
const MOST_AGE: Duration = Duration::from_secs(30);

/// At the end: for what is still to be decoded. Less than a pipeline may take to stop.
const END_GRACE: Duration = Duration::from_secs(4);

/// What an intake is made of.
pub struct Parts {
    /// Where pictures go.
    pub tap: Arc<Tap>,
    /// A camera, not a file.
    pub live: bool,
    /// Packets wait ahead of it, stamped as they come, without a bound of their own.
    pub queued: bool,
    /// Which pictures are decoded; outlives the attempt.
    pub plan: Arc<Mutex<Plan>>,
    /// What decodes them; outlives the attempt.
    pub choice: Choice,
    /// The shared decoders.
    pub seat: Arc<Seat>,
    /// A keyframe is decoded at least this often: data alone does not tell that a camera can be seen.
    pub heartbeat: Duration,
}

/// Pictures that waited for longer ahead of the intake are a queue that this machine does not empty.
const MOST_QUEUED: Duration = Duration::from_secs(5);

/// That long: a machine that was stopped, or busy for a moment, catches up.
const QUEUED_FOR: Duration = Duration::from_secs(2);

/// One attempt's intake.
pub struct Intake {
    parts: Parts,
    caps: Option<gstreamer::Caps>,
    /// The same as text.
    format: Arc<str>,
    /// The pixels' shape, where they come undecoded.
    raw: Option<VideoInfo>,
    converter: Converter,
    gop: Gop,
    own: Option<Own>,
    /// When a keyframe was last given to be decoded.
    asked: Option<Instant>,
    queue: Queue,
}

/// What waits ahead of the intake.
#[derive(Debug, Default)]
struct Queue {
    /// Since when it is too long.
    since: Option<Instant>,
}

impl Queue {
    /// A picture that came into it at the running time `came` and left it at `now`: whether it is to be given up.
    fn overflows(&mut self, came: Option<ClockTime>, now: Option<ClockTime>, at: Instant) -> bool {
        let waited = now.zip(came).map_or(Duration::ZERO, |(now, came)| now.saturating_sub(came).into());
        if waited <= MOST_QUEUED {
            self.since = None;
        }
        waited > MOST_QUEUED && at.saturating_duration_since(*self.since.get_or_insert(at)) >= QUEUED_FOR
    }
}

impl Intake {
    /// Nothing has come yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            caps: None,
            format: "".into(),
            raw: None,
            converter: Converter::default(),
            gop: Gop::default(),
            own: None,
            asked: None,
            queue: Queue::default(),
        }
    }

    /// Takes what came; `now` is the pipeline's running time.
    pub fn sample(&mut self, sample: &Sample, now: Option<ClockTime>) {
        let (Some(buffer), Some(caps), Some(segment)) = (sample.buffer_owned(), sample.caps_owned(), sample.segment()) else { return };
        let tap = &self.parts.tap;
        tap.data();
        if self.caps.as_ref() != Some(&caps) {
            tap.announce(&caps);
            self.raw = VideoInfo::from_caps(&caps).ok().filter(|_| caps.structure(0).is_some_and(|s| s.name() == "video/x-raw"));
            self.format = caps.to_string().into();
            self.caps = Some(caps.clone());
        }
        if self.parts.queued && self.queue.overflows(unit::running_time(&buffer, segment), now, Instant::now()) {
            let reason = "its pictures come faster than this machine takes them".to_owned();
            tap.fail(Fault { reason, retry: Retry::Soon });
        }
        let moment = moment(&buffer, segment, now, self.parts.live, tap.camera_time(buffer.pts()));
        if let Some(info) = &self.raw {
            tap.counters().frames_in.add();
            let picture = Picture { buffer, info: info.clone() };
            if tap.wants_raw() {
                let at = unit::running(picture.buffer.pts(), segment).unwrap_or_else(|| moment.received - tap.started());
                tap.encoded(|| unit::raw(&picture, moment, at, &self.format, tap.started()).map(Encoded::Unit));
            }
            return tap.picture(&picture, moment, &mut self.converter);
        }
        self.unit(Unit { key: unit::is_key(&caps, &buffer), segment: segment.clone(), buffer, caps, moment });
    }

    /// Nothing more will come; returns when all that came has been decoded.
    pub fn end(&mut self) {
        let own = self.own.take().is_none_or(|own| own.finish(END_GRACE));
        let whole = own && self.parts.seat.wait(END_GRACE);
        if !whole {
            tracing::warn!("the last pictures could not be decoded in time");
        }
    }

    /// One encoded picture.
    fn unit(&mut self, unit: Unit) {
        self.parts.tap.counters().frames_in.add();
        let at = unit.running_time().unwrap_or_else(|| unit.moment.received.saturating_duration_since(self.parts.tap.started()));
        self.parts.tap.encoded(|| unit.encoded(at, &self.format, self.parts.tap.started()).map(Encoded::Unit));
        let (path, follows) = {
            let mut plan = sync::lock(&self.parts.plan);
            (plan.step(unit.key, at), plan.may_follow())
        };
        if path == Path::Keyframes {
            self.own = None;
            self.parts.tap.scarce(true);
            if unit.key {
                self.keyframe(unit.clone());
            }
            if follows {
                self.gop.add(unit);
            }
            return;
        }
        let missed = self.gop.take();
        let Parts { tap, choice, live, .. } = &self.parts;
        let own = match &mut self.own {
            Some(own) => own,
            None => match Own::start(tap.clone(), choice.clone(), *live) {
                Ok(own) => self.own.insert(own),
                Err(error) => return tracing::error!("{}", error.chain()),
            },
        };
        own.catch_up(missed);
        own.push(unit);
        tap.scarce(!own.begun());
    }

    /// Has a keyframe decoded if it may be looked at.
    fn keyframe(&mut self, unit: Unit) {
        let Parts { tap, choice, seat, live, heartbeat, .. } = &self.parts;
        let moment = unit.moment;
        let quiet = self.asked.is_none_or(|at| moment.received.saturating_duration_since(at) >= *heartbeat);
        if !tap.wants(moment) && !quiet {
            return;
        }
        self.asked = Some(moment.received);
        if !live {
            // A file shows each of them, however long one takes.
            seat.wait(END_GRACE);
        }
        seat.ask(Order { unit, tap: tap.clone(), choice: choice.clone() });
    }
}

/// When a picture came, and when it was taken: by the camera's clock `ntp` if that is to be believed.
fn moment(buffer: &gstreamer::Buffer, segment: &gstreamer::Segment, now: Option<ClockTime>, live: bool, ntp: Option<Utc>) -> Candidate {
    let (received, clock) = (Instant::now(), Utc::now());
    if !live {
        let segment = segment.downcast_ref::<ClockTime>();
        let position = segment.zip(buffer.pts()).and_then(|(segment, pts)| segment.to_stream_time(pts)).map(Into::into);
        return Candidate { received, captured: clock, time_source: TimeSource::File, position };
    }
    let believed = |ntp: &Utc| (clock.millis() - NTP_BEHIND..=clock.millis() + NTP_AHEAD).contains(&ntp.millis());
    if let Some(captured) = ntp.filter(believed) {
        return Candidate { received, captured, time_source: TimeSource::Ntp, position: None };
    }
    let running = unit::running_time(buffer, segment);
    let age = now.zip(running).and_then(|(now, running)| now.checked_sub(running)).map_or(Duration::ZERO, Duration::from).min(MOST_AGE);
    let captured = Utc::from_millis(clock.millis() - i64::try_from(age.as_millis()).unwrap_or_default());
    Candidate { received, captured, time_source: TimeSource::Pipeline, position: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_stays_long_overflows_and_one_that_is_caught_up_with_does_not() {
        let (mut queue, began) = (Queue::default(), Instant::now());
        let seconds = |seconds| Some(ClockTime::from_seconds(seconds));
        let mut step = |after, came| queue.overflows(seconds(came), seconds(100 + after), began + Duration::from_secs(after));
        assert!(!step(0, 99) && !step(1, 90) && !step(2, 92));
        // Caught up with.
        assert!(!step(3, 102) && !step(4, 91) && !step(5, 92));
        assert!(step(6, 93));
        // Ahead of its time, as pictures are that others are shown before; or without one.
        assert!(!step(7, 120));
        assert!(!queue.overflows(None, seconds(200), began + Duration::from_secs(20)));
    }
}
