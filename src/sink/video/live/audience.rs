//! Who watches one camera: each has a short queue, and one that takes nothing loses its own pictures only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::Counter;
use crate::base::sync;
use crate::sink::video::live::shown::Shown;
use crate::types::EncodedUnit;

/// Encoded pictures that wait for a viewer: four seconds of most cameras.
const UNITS: usize = 120;

/// One that fell behind is helped on with a keyframe once no more than so many wait.
const CAUGHT_UP: usize = UNITS / 2;

/// Pictures that wait for who takes them as they are. Each is a whole frame, and the newest is wanted.
const PICTURES: usize = 2;

/// Everybody who watches a camera.
pub struct Audience {
    seats: Mutex<Seats>,
    /// A keyframe is due.
    keyframe: AtomicBool,
    /// Somebody came: what is shown seldom is shown at once.
    came: AtomicBool,
    /// Encoded pictures that a viewer did not get, because it was too slow.
    dropped: Counter,
}

#[derive(Default)]
struct Seats {
    next: u64,
    viewers: BTreeMap<u64, Viewer>,
    takers: BTreeMap<u64, Taker>,
    /// A thread shows, or is about to.
    shown: bool,
    /// Nobody is let in any more.
    closed: bool,
}

struct Viewer {
    units: Sender<EncodedUnit>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for its first keyframe.
    New,
    /// Gets each picture.
    Current,
    /// Lost one: no other can be decoded before the next keyframe. `asked`: that one is on its way.
    Behind { asked: bool },
}

struct Taker {
    pictures: Sender<Shown>,
    /// To take the oldest out where the queue is full.
    oldest: Receiver<Shown>,
}

/// What a seat is given up by.
struct Seat {
    audience: Arc<Audience>,
    number: u64,
}

/// A viewer of a camera's encoded live video. For as long as it is there the camera is decoded and encoded; dropped, it is one
/// viewer less.
pub struct Viewing {
    units: Receiver<EncodedUnit>,
    seat: Seat,
}

/// Who takes a camera's pictures as they are shown, boxes included, without their being encoded. Dropped, it is one less.
pub struct Pictures {
    pictures: Receiver<Shown>,
    _seat: Seat,
}

impl Viewing {
    /// What comes: H.264 with start codes, a whole picture each, a keyframe with its parameter sets first. Who is slower than
    /// the camera by more than 120 pictures gets none up to the next keyframe. `time` counts from `connected`, and both change
    /// where the encoder had to begin anew. The channel is closed when live video ends.
    pub fn units(&self) -> &Receiver<EncodedUnit> {
        &self.units
    }

    /// The next one.
    ///
    /// # Errors
    /// When none came in time, or live video has ended.
    pub fn next(&self, timeout: Duration) -> Result<EncodedUnit, RecvTimeoutError> {
        self.units.recv_timeout(timeout)
    }

    /// Has a keyframe made at once. Asked for several times before the next picture, it is one.
    pub fn ask_keyframe(&self) {
        self.seat.audience.ask_keyframe();
    }
}

impl Pictures {
    /// What comes: two wait at most, the newest. The channel is closed when live video ends.
    pub fn shown(&self) -> &Receiver<Shown> {
        &self.pictures
    }
}

impl Audience {
    /// Nobody yet.
    pub fn new(dropped: Counter) -> Self {
        Self { seats: Mutex::default(), keyframe: AtomicBool::new(false), came: AtomicBool::new(false), dropped }
    }

    /// Lets a viewer in; and whether a thread must begin to show.
    ///
    /// # Errors
    /// When live video has ended.
    pub fn view(self: &Arc<Self>) -> Result<(Viewing, bool)> {
        let (send, units) = bounded(UNITS);
        let (seat, begins) = self.seat(|seats, number| drop(seats.viewers.insert(number, Viewer { units: send, state: State::New })))?;
        self.ask_keyframe();
        Ok((Viewing { units, seat }, begins))
    }

    /// Lets somebody in who takes pictures; and whether a thread must begin to show.
    ///
    /// # Errors
    /// When live video has ended.
    pub fn take(self: &Arc<Self>) -> Result<(Pictures, bool)> {
        let (send, pictures) = bounded(PICTURES);
        let taker = Taker { pictures: send, oldest: pictures.clone() };
        let (seat, begins) = self.seat(|seats, number| drop(seats.takers.insert(number, taker)))?;
        Ok((Pictures { pictures, _seat: seat }, begins))
    }

    fn seat(self: &Arc<Self>, take: impl FnOnce(&mut Seats, u64)) -> Result<(Seat, bool)> {
        let mut seats = sync::lock(&self.seats);
        if seats.closed {
            return Err(Error::new(Kind::Pipeline, "live video has ended"));
        }
        let number = seats.next;
        seats.next += 1;
        take(&mut seats, number);
        self.came.store(true, Ordering::Release);
        let begins = !std::mem::replace(&mut seats.shown, true);
        Ok((Seat { audience: self.clone(), number }, begins))
    }

    /// The thread that should show could not begin: the next who comes tries again.
    pub fn failed(&self) {
        sync::lock(&self.seats).shown = false;
    }

    /// Whether nobody watches any more. Who shows must ask, and end then: another thread begins for the next who comes.
    pub fn ends(&self) -> bool {
        let mut seats = sync::lock(&self.seats);
        let ends = seats.viewers.is_empty() && seats.takers.is_empty();
        seats.shown &= !ends;
        ends
    }

    /// Whether there is nobody at this moment.
    pub fn is_empty(&self) -> bool {
        let seats = sync::lock(&self.seats);
        seats.viewers.is_empty() && seats.takers.is_empty()
    }

    /// Whether somebody wants encoded pictures.
    pub fn views(&self) -> bool {
        !sync::lock(&self.seats).viewers.is_empty()
    }

    /// Nobody is let in any more, and those who are there learn that it has ended.
    pub fn close(&self) {
        let mut seats = sync::lock(&self.seats);
        seats.closed = true;
        seats.viewers.clear();
        seats.takers.clear();
    }

    /// Notes that a keyframe is due.
    pub fn ask_keyframe(&self) {
        self.keyframe.store(true, Ordering::Release);
    }

    /// Whether a keyframe is due, once.
    pub fn take_keyframe(&self) -> bool {
        self.keyframe.swap(false, Ordering::AcqRel)
    }

    /// Whether somebody came since last asked.
    pub fn take_came(&self) -> bool {
        self.came.swap(false, Ordering::AcqRel)
    }

    /// Hands an encoded picture to each viewer. Never blocks.
    pub fn publish(&self, unit: &EncodedUnit) {
        let mut asks = false;
        for viewer in sync::lock(&self.seats).viewers.values_mut() {
            if viewer.state != State::Current && !unit.key {
                if let State::Behind { asked } = &mut viewer.state {
                    self.dropped.add();
                    // One that takes nothing at all is not helped: the others would get a keyframe each time.
                    asks |= !*asked && viewer.units.len() <= CAUGHT_UP;
                    *asked |= asks;
                }
                continue;
            }
            viewer.state = match viewer.units.try_send(unit.clone()) {
                Ok(()) => State::Current,
                Err(TrySendError::Full(_)) => {
                    self.dropped.add();
                    State::Behind { asked: false }
                }
                // It is about to give up its seat.
                Err(TrySendError::Disconnected(_)) => State::New,
            };
        }
        if asks {
            self.ask_keyframe();
        }
    }

    /// Hands a picture to each who takes them. Never blocks: who is slow loses the oldest.
    pub fn show(&self, picture: &Shown) {
        for Taker { pictures, oldest } in sync::lock(&self.seats).takers.values() {
            if let Err(TrySendError::Full(picture)) = pictures.try_send(picture.clone()) {
                if oldest.try_recv().is_ok() {
                    self.dropped.add();
                }
                // Nobody else sends.
                if pictures.try_send(picture).is_err() {
                    self.dropped.add();
                }
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = sync::lock(&self.audience.seats);
        seats.viewers.remove(&self.number);
        seats.takers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::base::clock::Utc;
    use crate::base::metrics::Metrics;
    use crate::types::Codec;

    fn unit(key: bool) -> EncodedUnit {
        EncodedUnit {
            codec: Codec::H264,
            caps: "video/x-h264".into(),
            bytes: [0].into(),
            key,
            time: Duration::ZERO,
            dts: None,
            duration: None,
            connected: Instant::now(),
            received: Instant::now(),
            captured: Utc::now(),
        }
    }

    fn audience() -> (Arc<Audience>, Counter) {
        let dropped = Metrics::new().counter("live_units_dropped", "a");
        (Arc::new(Audience::new(dropped.clone())), dropped)
    }

    #[test]
    fn a_viewer_begins_with_a_keyframe_and_one_serves_all_who_came() {
        let (audience, dropped) = audience();
        let (first, begins) = audience.view().unwrap();
        let (second, again) = audience.view().unwrap();
        assert!(begins && !again, "one thread shows to both");
        assert!(audience.take_keyframe() && !audience.take_keyframe());
        [false, true, false].into_iter().for_each(|key| audience.publish(&unit(key)));
        for viewing in [&first, &second] {
            assert_eq!(viewing.units().try_iter().map(|unit| unit.key).collect::<Vec<_>>(), [true, false]);
        }
        assert_eq!(dropped.get(), 0, "what came before its first keyframe is not lost to it");
        drop(first);
        assert!(!audience.ends() && audience.views());
        drop(second);
        assert!(audience.ends());
        assert!(audience.view().unwrap().1, "for the next one a thread begins anew");
    }

    #[test]
    fn a_viewer_that_takes_nothing_loses_pictures_and_asks_for_no_keyframe_before_it_goes_on() {
        let (audience, dropped) = audience();
        let (slow, _) = audience.view().unwrap();
        let (quick, _) = audience.view().unwrap();
        audience.take_keyframe();
        for n in 0..UNITS + 5 {
            audience.publish(&unit(n == 0));
            assert!(quick.units().try_recv().is_ok());
        }
        assert_eq!((dropped.get(), audience.take_keyframe()), (5, false));
        assert_eq!(slow.units().try_iter().count(), UNITS);
        audience.publish(&unit(false));
        audience.publish(&unit(false));
        assert!(audience.take_keyframe(), "it goes on: a keyframe helps it");
        audience.publish(&unit(false));
        assert!(!audience.take_keyframe(), "which was asked for once");
        assert!(slow.units().is_empty());
        audience.publish(&unit(true));
        audience.publish(&unit(false));
        assert_eq!(slow.units().try_iter().map(|unit| unit.key).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn at_the_end_everybody_learns_it_and_nobody_is_let_in() {
        let (audience, _) = audience();
        let (viewing, _) = audience.view().unwrap();
        let (pictures, _) = audience.take().unwrap();
        assert!(!audience.ends());
        audience.close();
        assert_eq!(viewing.next(Duration::ZERO).unwrap_err(), RecvTimeoutError::Disconnected);
        assert!(pictures.shown().recv().is_err());
        assert!(audience.ends() && audience.view().is_err() && audience.take().is_err());
    }
}
