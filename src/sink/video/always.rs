//! Who watches live video from the start to the end: servers that it is sent to, and devices that it is played into.

use crate::base::error::Result;
use crate::base::metrics::Metrics;
use crate::config::OutputConfig;
use crate::sink::video::again::Crew;
use crate::sink::video::live::Live;
use crate::sink::video::{push, v4l2};
use crate::sink::{Filter, Picture, Sink};

/// Live video that is sent and played, whether or not an RTSP server shows it too. It tells live video of the analysed pictures,
/// for cameras that have no others.
pub struct LiveSink {
    live: Live,
    pushes: Crew,
    devices: Crew,
}

impl LiveSink {
    /// Begins to send and to play as `config` says.
    ///
    /// # Errors
    /// When an element is missing or the system refuses a thread.
    pub fn start(config: &OutputConfig, live: Live, metrics: &Metrics) -> Result<Self> {
        let pushes = push::start(&config.push, &live, metrics)?;
        let devices = v4l2::start(&config.v4l2, &live, metrics)?;
        Ok(Self { live, pushes, devices })
    }
}

impl Sink for LiveSink {
    fn name(&self) -> &str {
        "live"
    }

    fn write(&mut self, picture: &Picture) -> Result<()> {
        self.live.analysed(picture)
    }

    fn filter(&self) -> Option<Filter> {
        let live = self.live.clone();
        Some(Box::new(move |camera| live.wants_analysed(camera)))
    }

    fn finish(&mut self) -> Result<()> {
        // Who watches learns of the end while each ends by itself.
        self.live.end();
        self.pushes.finish();
        self.devices.finish();
        Ok(())
    }
}
