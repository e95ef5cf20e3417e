//! Whether the stages that must go on do: each says when it begins a piece of work and when that is done. One that is at the same
//! piece for longer than it ever should be hangs, and only a new process mends that. Waiting for work is no work: a camera or
//! a broker that is gone leaves a stage idle, not late.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::base::sync;

/// The stages of a process. Clones share them.
#[derive(Clone, Default)]
pub struct Pulses(Arc<Mutex<Vec<Stage>>>);

struct Stage {
    name: String,
    longest: Duration,
    pulse: Pulse,
}

/// One stage's own.
#[derive(Clone, Default)]
pub struct Pulse(Arc<Mutex<Option<Instant>>>);

/// A piece of work; done when dropped, also by a panic.
pub struct Busy<'p>(&'p Pulse);

impl Pulses {
    /// For another stage, whose pieces of work take `longest` at most.
    pub fn add(&self, name: impl Into<String>, longest: Duration) -> Pulse {
        let pulse = Pulse::default();
        sync::lock(&self.0).push(Stage { name: name.into(), longest, pulse: pulse.clone() });
        pulse
    }

    /// The first stage that hangs at `now`, in a sentence.
    pub fn late(&self, now: Instant) -> Option<String> {
        sync::lock(&self.0).iter().find_map(|Stage { name, longest, pulse }| {
            let busy = now.saturating_duration_since((*sync::lock(&pulse.0))?);
            (busy > *longest).then(|| format!("{name} has been at one piece of work for {} s; it hangs", busy.as_secs()))
        })
    }
}

impl Pulse {
    /// A piece of work begins.
    pub fn busy(&self) -> Busy<'_> {
        *sync::lock(&self.0) = Some(Instant::now());
        Busy(self)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *sync::lock(&self.0.0) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_hangs_that_does_not_come_to_an_end_and_not_one_that_waits() {
        let pulses = Pulses::default();
        let (idle, works) = (pulses.add("results", Duration::from_secs(60)), pulses.clone().add("detect-0", Duration::from_secs(600)));
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(pulses.late(later(10_000)), None, "nobody has begun anything");
        drop(idle.busy());
        let busy = works.busy();
        assert_eq!(pulses.late(later(599)), None);
        let told = pulses.late(later(700)).unwrap();
        assert!(told.starts_with("detect-0 has been at one piece of work for ") && told.ends_with("it hangs"), "{told}");
        drop(busy);
        assert_eq!(pulses.late(later(700)), None);
        // A panic ends it as well.
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _busy = works.busy();
            panic!("as a defect would");
        }));
        assert!(caught.is_err() && pulses.late(later(700)).is_none());
    }
}
