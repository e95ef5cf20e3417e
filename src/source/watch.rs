//! What the supervisor decides, without clocks or threads of its own: is an attempt alive, and what follows its end.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::base::backoff::Backoff;
use crate::source::Limits;

/// Why a file that was played once ended: nothing that anybody has to act on.
pub const END_OF_FILE: &str = "end of file";

/// The span over which the frame rate is measured.
const RATE_SPAN: Duration = Duration::from_secs(5);

/// What has come out of a pipeline so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pulse {
    /// Decoded frames.
    pub frames: u64,
    /// The last decoded frame.
    pub last_frame: Option<Instant>,
    /// The last data ahead of the decoder.
    pub last_data: Option<Instant>,
    /// The first and the last picture that could not be decoded since one that could.
    pub failing: Option<(Instant, Instant)>,
    /// Pictures come with keyframes only.
    pub scarce: bool,
}

/// Where an attempt stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Health {
    /// No frame yet.
    Waiting,
    /// Frames come.
    Running,
    /// They do not, for the reason given.
    Stalled(String),
}

/// How frames must come for a source to be alive.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// The waits.
    pub limits: Limits,
    /// A camera, not a file.
    pub live: bool,
}

impl Watch {
    /// Judges an attempt that began at `started`.
    pub fn judge(&self, started: Instant, pulse: Pulse, now: Instant) -> Health {
        let Limits { first_frame, stall, keyframe_gap, .. } = self.limits;
        let since = |at: Instant| now.saturating_duration_since(at);
        // From one to another: a single one is an accident, and where keyframes are rare nothing follows it for long.
        let failing = pulse.failing.map(|(first, last)| last.saturating_duration_since(first));
        if let Some(failing) = failing.filter(|failing| self.live && *failing >= stall) {
            return Health::Stalled(format!("pictures came that could not be decoded for {} s", failing.as_secs()));
        }
        let data_silent = pulse.last_data.map(since);
        let Some(last_frame) = pulse.last_frame else {
            let waited = since(started);
            return match data_silent {
                _ if waited < first_frame => Health::Waiting,
                // Data comes but its first keyframe does not: the same patience as later on.
                Some(silent) if pulse.scarce && silent < stall && waited < keyframe_gap => Health::Waiting,
                Some(_) => Health::Stalled(format!("data came but no picture within {} s", waited.as_secs())),
                None => Health::Stalled(format!("no picture within {} s", waited.as_secs())),
            };
        };
        let silent = since(last_frame);
        let patience = match data_silent {
            Some(data_silent) if pulse.scarce && data_silent < stall => keyframe_gap,
            _ => stall,
        };
        // A file may hold long pauses; one on a share that died gives nothing ever again.
        let patience = if self.live { patience } else { keyframe_gap * FILE_PATIENCE };
        if silent >= patience {
            return Health::Stalled(format!("no picture for {} s", silent.as_secs()));
        }
        Health::Running
    }
}

/// So many times what is borne with between keyframes a file may show nothing.
const FILE_PATIENCE: u32 = 5;

/// More pictures than the caps announce, by this factor, are a flood.
const FLOOD: f64 = 2.0;

/// For so long.
const FLOOD_LASTS: Duration = Duration::from_secs(5);

/// After so long at a right rate all is forgotten.
const FLOOD_FORGOTTEN: Duration = Duration::from_secs(30);

/// So many reconnects because of it; after that the camera is taken to announce a wrong rate.
const FLOODS: u32 = 2;

/// Notices a camera that sends far more than it announces, as some do when their clock breaks.
#[derive(Debug, Default)]
pub struct Flood {
    since: Option<Instant>,
    right_since: Option<Instant>,
    told: u32,
}

impl Flood {
    /// Whether the source is to be built anew: `fps` were measured at `now` where `announced` are to come.
    pub fn step(&mut self, now: Instant, fps: f64, announced: Option<f64>) -> bool {
        if announced.is_none_or(|announced| fps <= FLOOD * announced) {
            self.since = None;
            if now.saturating_duration_since(*self.right_since.get_or_insert(now)) >= FLOOD_FORGOTTEN {
                self.told = 0;
            }
            return false;
        }
        self.right_since = None;
        if self.told == FLOODS {
            return false;
        }
        let over = now.saturating_duration_since(*self.since.get_or_insert(now)) >= FLOOD_LASTS;
        if over {
            (self.since, self.told) = (None, self.told + 1);
        }
        over
    }
}

/// Frames a second over the last few.
#[derive(Debug, Default)]
pub struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Notes the count of frames at `now` and returns the rate since the oldest note kept.
    pub fn step(&mut self, now: Instant, frames: u64) -> f64 {
        if self.samples.back().is_some_and(|&(_, before)| frames < before) {
            self.samples.clear();
        }
        self.samples.push_back((now, frames));
        while self.samples.get(1).is_some_and(|&(at, _)| now.duration_since(at) >= RATE_SPAN) {
            self.samples.pop_front();
        }
        let Some(&(first, before)) = self.samples.front() else { return 0.0 };
        let seconds = now.duration_since(first).as_secs_f64();
        if seconds > 0.0 { (frames - before) as f64 / seconds } else { 0.0 }
    }
}

/// Between the first frame and the first word about the rate: before, it is not known.
const RATE_FIRST: Duration = Duration::from_secs(5);

/// The least time between two words about the rate.
const RATE_AGAIN: Duration = Duration::from_secs(10);

/// Decides when a running camera's frame rate is told: once it is known, and when it has moved by a fifth.
#[derive(Debug, Default)]
pub struct RateNews {
    running: Option<Instant>,
    told: Option<(Instant, f64)>,
}

impl RateNews {
    /// Whether `fps`, measured at `now`, is to be told.
    pub fn step(&mut self, now: Instant, fps: f64) -> bool {
        let running = *self.running.get_or_insert(now);
        let worth = match self.told {
            None => now.duration_since(running) >= RATE_FIRST,
            Some((at, before)) => now.duration_since(at) >= RATE_AGAIN && (fps - before).abs() > 0.2 * before,
        };
        if worth {
            self.told = Some((now, fps));
        }
        worth
    }
}

/// Why a source was lost, and what trying again is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// A sentence without credentials.
    pub reason: String,
    /// What trying again is worth.
    pub retry: Retry,
}

/// What trying again is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It may be back soon.
    Soon,
    /// It is not there: for a moment, as after a server's restart, or because the address is wrong. After a few tries a
    /// person has to act.
    Doubtful,
    /// A person has to act first: credentials were refused (and the camera locks the account of who tries too often), a
    /// certificate is not trusted, a plugin is missing.
    Slowly,
}

/// So often what is not there is asked for as if it came back.
const DOUBTFUL: u32 = 5;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The daemon stops.
    Stopped,
    /// The stream came to its end.
    Eos,
    /// It failed.
    Lost(Fault),
    /// No frames for too long; the reason.
    Stalled(String),
}

/// What the supervisor does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Leaves: the daemon stops.
    Leave,
    /// Leaves: the source ended for good; the reason.
    Fail(String),
    /// Plays the file again.
    Replay,
    /// Waits, then tries again; the delay and the reason.
    Wait(Duration, String),
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The waits.
    pub limits: Limits,
    /// A camera, not a file.
    pub live: bool,
    /// A file that starts anew at its end.
    pub looped: bool,
}

impl Policy {
    /// Decides, given that the attempt showed `frames` frames and ran for `lasted` since the first.
    pub fn after(&self, ended: Ended, frames: u64, lasted: Duration, backoff: &mut Backoff) -> Next {
        if frames > 0 && lasted >= self.limits.healthy {
            backoff.reset();
        }
        let fault = match ended {
            Ended::Stopped => return Next::Leave,
            Ended::Eos if !self.live && frames > 0 && self.looped => return Next::Replay,
            Ended::Eos if !self.live && frames > 0 => return Next::Fail(END_OF_FILE.to_owned()),
            Ended::Eos if self.live => Fault { reason: "the stream ended".to_owned(), retry: Retry::Soon },
            Ended::Eos => Fault { reason: "the file ended without a picture".to_owned(), retry: Retry::Soon },
            Ended::Stalled(reason) => Fault { reason, retry: Retry::Soon },
            Ended::Lost(fault) => fault,
        };
        // A file to be played once has had its showing: to start it anew would report the same frames twice.
        let shown = !self.live && !self.looped && frames > 0;
        match fault.retry {
            _ if shown => Next::Fail(fault.reason),
            Retry::Soon => Next::Wait(backoff.next_delay(), fault.reason),
            Retry::Doubtful if backoff.failures() < DOUBTFUL => Next::Wait(backoff.next_delay(), fault.reason),
            Retry::Doubtful | Retry::Slowly => {
                let delay = backoff.next_delay().max(self.limits.refused);
                Next::Wait(delay, format!("{}; next try in {}", fault.reason, in_words(delay)))
            }
        }
    }
}

/// `45 s`, `5 min`.
fn in_words(wait: Duration) -> String {
    let seconds = wait.as_secs();
    if seconds >= 60 && seconds.is_multiple_of(60) { format!("{} min", seconds / 60) } else { format!("{seconds} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch(live: bool) -> Watch {
        Watch { limits: Limits::default(), live }
    }

    #[test]
    fn a_source_without_a_first_frame_stalls_after_its_wait() {
        let start = Instant::now();
        let pulse = Pulse::default();
        assert_eq!(watch(true).judge(start, pulse, start + 19 * SECOND), Health::Waiting);
        assert!(matches!(watch(true).judge(start, pulse, start + 20 * SECOND), Health::Stalled(_)));
        let data = |second: u32| Pulse { last_data: Some(start + second * SECOND), scarce: true, ..pulse };
        assert_eq!(watch(true).judge(start, data(20), start + 20 * SECOND), Health::Waiting);
        assert!(matches!(watch(true).judge(start, data(20), start + 30 * SECOND), Health::Stalled(_)));
        assert!(matches!(watch(true).judge(start, data(90), start + 90 * SECOND), Health::Stalled(_)));
        assert!(matches!(watch(true).judge(start, Pulse { scarce: false, ..data(20) }, start + 20 * SECOND), Health::Stalled(_)));
    }

    #[test]
    fn silence_stalls_a_camera_but_not_a_file() {
        let start = Instant::now();
        let pulse = Pulse { frames: 1, last_frame: Some(start), last_data: Some(start), ..Pulse::default() };
        assert_eq!(watch(true).judge(start, pulse, start + 9 * SECOND), Health::Running);
        assert!(matches!(watch(true).judge(start, pulse, start + 10 * SECOND), Health::Stalled(_)));
        assert_eq!(watch(false).judge(start, pulse, start + 400 * SECOND), Health::Running);
        assert!(matches!(watch(false).judge(start, pulse, start + 450 * SECOND), Health::Stalled(_)));
    }

    #[test]
    fn keyframes_far_apart_are_no_stall_while_data_comes() {
        let start = Instant::now();
        let data = |second: u32| Pulse {
            frames: 1,
            last_frame: Some(start),
            last_data: Some(start + second * SECOND),
            failing: None,
            scarce: true,
        };
        assert_eq!(watch(true).judge(start, data(29), start + 30 * SECOND), Health::Running);
        assert!(matches!(watch(true).judge(start, data(29), start + 39 * SECOND), Health::Stalled(_)));
        assert!(matches!(watch(true).judge(start, data(89), start + 90 * SECOND), Health::Stalled(_)));
        assert!(matches!(watch(true).judge(start, Pulse { scarce: false, ..data(29) }, start + 30 * SECOND), Health::Stalled(_)));
    }

    #[test]
    fn pictures_that_cannot_be_decoded_are_a_stall() {
        let start = Instant::now();
        let failing = |last: u32| Pulse {
            last_data: Some(start + 14 * SECOND),
            failing: Some((start + 5 * SECOND, start + last * SECOND)),
            scarce: true,
            ..Pulse::default()
        };
        assert_eq!(watch(true).judge(start, failing(5), start + 19 * SECOND), Health::Waiting);
        let Health::Stalled(reason) = watch(true).judge(start, failing(15), start + 15 * SECOND) else { panic!("not stalled") };
        assert_eq!(reason, "pictures came that could not be decoded for 10 s");
    }

    #[test]
    fn a_flood_is_told_twice_and_then_taken_for_the_cameras_way() {
        let start = Instant::now();
        let mut flood = Flood::default();
        let mut at = |second: u32, fps| flood.step(start + second * SECOND, fps, Some(25.0));
        assert!(!at(0, 60.0) && !at(4, 60.0) && !at(5, 40.0), "it went by");
        assert!(!at(6, 60.0) && at(11, 60.0));
        assert!(!at(12, 60.0) && at(17, 60.0));
        assert!(!at(18, 60.0) && !at(99, 60.0));
        assert!(!at(100, 25.0) && !at(130, 25.0) && !at(131, 60.0) && at(136, 60.0), "it was right for long");
        assert!(!Flood::default().step(start, 1000.0, None));
    }

    #[test]
    fn the_rate_forgets_what_is_old() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.step(start, 0), 0.0);
        for second in 1..=20u32 {
            let fps = rate.step(start + second * SECOND, u64::from(second) * 25);
            assert!((fps - 25.0).abs() < 1e-9, "{fps}");
        }
        let mut last = f64::MAX;
        for second in 21..=30u32 {
            last = rate.step(start + second * SECOND, 500);
        }
        assert_eq!(last, 0.0);
        assert_eq!(rate.step(start + 31 * SECOND, 3), 0.0); // a new attempt counts anew
    }

    fn after(policy: Policy, ended: Ended, frames: u64) -> Next {
        policy.after(ended, frames, SECOND, &mut Backoff::new(SECOND, 60 * SECOND))
    }

    #[test]
    fn a_file_ends_or_starts_anew_and_a_camera_comes_back() {
        let once = Policy { limits: Limits::default(), live: false, looped: false };
        let looped = Policy { looped: true, ..once };
        let camera = Policy { live: true, ..once };
        let lost = |retry| Ended::Lost(Fault { reason: "why".into(), retry });
        assert_eq!(after(once, Ended::Eos, 9), Next::Fail(END_OF_FILE.into()));
        assert_eq!(after(looped, Ended::Eos, 9), Next::Replay);
        assert!(matches!(after(looped, Ended::Eos, 0), Next::Wait(..)));
        assert!(matches!(after(camera, Ended::Eos, 9), Next::Wait(..)));
        assert!(matches!(after(camera, Ended::Stalled("why".into()), 9), Next::Wait(..)));
        assert_eq!(after(once, lost(Retry::Soon), 9), Next::Fail("why".into()));
        assert!(matches!(after(once, lost(Retry::Soon), 0), Next::Wait(..)));
        assert_eq!(after(camera, Ended::Stopped, 9), Next::Leave);
        let mut backoff = Backoff::new(SECOND, 60 * SECOND);
        let waits: Vec<Duration> = (0..7)
            .map(|_| match camera.after(lost(Retry::Doubtful), 0, Duration::ZERO, &mut backoff) {
                Next::Wait(delay, _) => delay,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(waits[..5].iter().all(|wait| *wait < 60 * SECOND) && waits[5..].iter().all(|wait| *wait >= 300 * SECOND), "{waits:?}");
        let Next::Wait(delay, reason) = after(camera, lost(Retry::Slowly), 0) else { panic!("no wait") };
        assert_eq!((delay, reason.as_str()), (Limits::default().refused, "why; next try in 5 min"));
    }

    #[test]
    fn the_rate_is_told_once_known_and_when_it_moves() {
        let start = Instant::now();
        let mut news = RateNews::default();
        let mut at = |secs, fps| news.step(start + Duration::from_secs(secs), fps);
        assert!(!at(0, 0.0) && !at(4, 24.0));
        assert!(at(5, 25.0));
        assert!(!at(30, 24.0), "a rate that stays is not told again");
        assert!(at(31, 12.0));
        assert!(!at(40, 25.0), "nor sooner than after ten seconds");
        assert!(at(41, 25.0));
    }

    #[test]
    fn health_starts_the_backoff_anew() {
        let camera = Policy { limits: Limits::default(), live: true, looped: false };
        let mut backoff = Backoff::new(SECOND, 60 * SECOND);
        for _ in 0..10 {
            backoff.next_delay();
        }
        let Next::Wait(delay, _) = camera.after(Ended::Eos, 100, 31 * SECOND, &mut backoff) else { panic!("no wait") };
        assert!(delay <= SECOND);
    }
}
