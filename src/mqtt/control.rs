//! Commands over MQTT: another prompt for a camera, and whether it is looked at. What is malformed, too often or retained is
//! refused, with a line in the log; so is each that was obeyed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use crate::base::error::Result;
use crate::mqtt::cameras::Watched;
use crate::mqtt::link::Incoming;
use crate::mqtt::topic::Topics;
use crate::types::{CameraId, Prompt};

/// Commands of a camera within `PACE_TIME`, at most.
const PACE: usize = 10;
const PACE_TIME: Duration = Duration::from_secs(10);

/// What a camera is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// To be asked this from its next frame on.
    Prompt(Prompt),
    /// To be looked at, or not.
    Detect(bool),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prompt(prompt) => write!(f, "prompt {:?}", prompt.text()),
            Self::Detect(on) => f.write_str(if *on { "detect ON" } else { "detect OFF" }),
        }
    }
}

/// Who obeys.
pub trait Steering: Send + Sync {
    /// Puts a command in force; returns what the camera's readers are to be told.
    ///
    /// # Errors
    /// When there is no such camera, or it is not open.
    fn steer(&self, camera: &CameraId, command: &Command) -> Result<Watched>;
}

/// Reads commands and keeps their pace.
#[derive(Debug, Default)]
pub struct Control {
    lately: BTreeMap<CameraId, VecDeque<Instant>>,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is no command.
    Other,
    /// It is one, for this camera.
    Order(CameraId, Command),
    /// It is none that can be obeyed, for the reason given.
    Refused(String),
}

impl Control {
    /// The topics to subscribe to.
    pub fn topics(topics: &Topics) -> [String; 2] {
        topics.commands()
    }

    /// Reads a message that came at `now`; `knows` says whether there is such a camera.
    pub fn hear(&mut self, topics: &Topics, message: &Incoming<'_>, knows: impl Fn(&CameraId) -> bool, now: Instant) -> Heard {
        let Some((camera, what)) = topics.command(message.topic) else { return Heard::Other };
        let refuse = |why: String| Heard::Refused(format!("{what}/set for a camera is refused: {why}"));
        if message.retain {
            return refuse("it is retained, and may be from long ago; must be sent without the retain flag".to_owned());
        }
        let Some(camera) = CameraId::new(camera).ok().filter(knows) else { return refuse("its topic names no camera".to_owned()) };
        let Ok(text) = std::str::from_utf8(message.payload) else { return refuse("it is no text".to_owned()) };
        let command = match what {
            "prompt" => Prompt::new(text).map(Command::Prompt).map_err(|error| error.to_string()),
            _ => match text {
                "ON" => Ok(Command::Detect(true)),
                "OFF" => Ok(Command::Detect(false)),
                _ => Err("it is neither ON nor OFF".to_owned()),
            },
        };
        match command {
            Err(why) => refuse(why),
            Ok(_) if !self.keeps_pace(&camera, now) => refuse(format!("more than {PACE} in {} s", PACE_TIME.as_secs())),
            Ok(command) => Heard::Order(camera, command),
        }
    }

    fn keeps_pace(&mut self, camera: &CameraId, now: Instant) -> bool {
        let times = self.lately.entry(camera.clone()).or_default();
        while times.front().is_some_and(|first| now.saturating_duration_since(*first) >= PACE_TIME) {
            times.pop_front();
        }
        let keeps = times.len() < PACE;
        if keeps {
            times.push_back(now);
        }
        keeps
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn hear(control: &mut Control, topic: &str, payload: &[u8], retain: bool, second: u64) -> Heard {
        thread_local!(static START: Instant = Instant::now());
        let now = START.with(|start| *start + Duration::from_secs(second));
        control.hear(&Topics::new("site/north"), &Incoming { topic, payload, retain }, |camera| camera.as_str() == "gate", now)
    }

    #[test]
    fn commands_are_read() {
        let mut control = Control::default();
        let order = |command| Heard::Order(CameraId::new("gate").unwrap(), command);
        let prompt = Prompt::new("detect dog ; cat").unwrap();
        assert_eq!(hear(&mut control, "site/north/gate/prompt/set", b"detect dog ; cat", false, 0), order(Command::Prompt(prompt)));
        assert_eq!(hear(&mut control, "site/north/gate/detect/set", b"OFF", false, 0), order(Command::Detect(false)));
        for topic in ["site/north/gate/status", "other/gate/prompt/set", "site/north/a/b/prompt/set", "site/north/prompt/set"] {
            assert_eq!(hear(&mut control, topic, b"ON", false, 0), Heard::Other, "{topic}");
        }
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused() {
        let mut control = Control::default();
        let long = [b'x'; 513];
        for (what, payload, retain) in [
            ("gate/prompt", &b""[..], false),
            ("gate/prompt", b"detect a\nb", false),
            ("gate/prompt", b"\xff\xfe", false),
            ("gate/prompt", &long, false),
            ("gate/prompt", b"detect cat", true),
            ("gate/detect", b"on", false),
            ("GATE/detect", b"ON", false),
            ("nowhere/detect", b"ON", false),
        ] {
            let heard = hear(&mut control, &format!("site/north/{what}/set"), payload, retain, 0);
            assert!(matches!(heard, Heard::Refused(_)), "{what}: {heard:?}");
        }
        assert!(control.lately.is_empty());
    }

    #[test]
    fn too_many_are_refused_until_some_time_has_passed() {
        let mut control = Control::default();
        let mut at = |second| matches!(hear(&mut control, "site/north/gate/detect/set", b"ON", false, second), Heard::Order(..));
        assert_eq!((0..20).filter(|_| at(0)).count(), PACE);
        assert!(!at(9) && at(10));
    }
}
