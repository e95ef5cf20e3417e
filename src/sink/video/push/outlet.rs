//! One connection to a server: what was encoded is packed and sent, and nothing is encoded anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gstreamer::prelude::*;
use gstreamer::{Buffer, BufferFlags, Bus, Caps, ClockTime, Element, ElementFactory, PadProbeReturn, PadProbeType, Pipeline, State};
use gstreamer_app::AppSrc;
use percent_encoding::percent_decode_str;

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::redact::{self, ExposeSecret, SecretString};
use crate::sink::video::feed;
use crate::types::EncodedUnit;

/// Encoded pictures that may wait to be sent: two seconds of most cameras.
const WAITING: u64 = 60;

/// By RTMP a server gets FLV, by SRT a transport stream. The address is set apart: a line that cannot be parsed is told.
const RTMP: &str = "h264parse ! video/x-h264,stream-format=avc,alignment=au ! flvmux streamable=true ! rtmp2sink name=sink sync=false";
const SRT: &str = "h264parse config-interval=-1 ! mpegtsmux alignment=7 ! srtsink name=sink sync=false wait-for-connection=false";

/// A connection, or one that is being made. Dropped, it is closed.
pub struct Outlet {
    pipeline: Pipeline,
    source: AppSrc,
    bus: Bus,
    /// Parts of the address that nobody is to read.
    secrets: Vec<SecretString>,
    caps: Option<Arc<str>>,
    /// The moment that is the stream's zero.
    zero: Option<Instant>,
    last: Option<Duration>,
    /// Packets that came to the sender.
    sent: Arc<AtomicU64>,
}

/// Whether this installation can send to such an address.
///
/// # Errors
/// When an element is missing; the sentence names it and its package.
pub fn check(uri: &str) -> Result<()> {
    let (names, package): (&[&str], _) =
        if is_srt(uri) { (&["mpegtsmux", "srtsink"], "bad") } else { (&["flvmux", "rtmp2sink"], "good and gstreamer1.0-plugins-bad") };
    match names.iter().find(|name| ElementFactory::find(name).is_none()) {
        Some(name) => {
            Err(Error::new(Kind::Pipeline, format!("gstreamer element {name} is missing; install gstreamer1.0-plugins-{package}")))
        }
        None => Ok(()),
    }
}

fn is_srt(uri: &str) -> bool {
    uri.starts_with("srt://")
}

impl Outlet {
    /// Begins to call the server.
    ///
    /// # Errors
    /// When that fails at once; later failures are what `check` tells.
    pub fn open(name: &str, uri: &SecretString) -> Result<Self> {
        let srt = is_srt(uri.expose_secret());
        let strange = || Error::new(Kind::Internal, "the pipeline to a server lacks an element; this is a defect, please report it");
        let line = format!("appsrc name=units is-live=true format=time block=false max-bytes=0 ! {}", if srt { SRT } else { RTMP });
        let pipeline = gstreamer::parse::launch(&line).context(Kind::Pipeline, || "a stream to a server cannot be built")?;
        let pipeline = pipeline.downcast::<Pipeline>().map_err(|_| strange())?;
        pipeline.set_property("name", name);
        let source = pipeline.by_name("units").and_then(|source| source.downcast::<AppSrc>().ok()).ok_or_else(strange)?;
        let sink = pipeline.by_name("sink").ok_or_else(strange)?;
        let sent = Arc::<AtomicU64>::default();
        count(&sink, &sent).ok_or_else(strange)?;
        sink.set_property(if srt { "uri" } else { "location" }, uri.expose_secret());
        if sink.has_property("auto-reconnect") {
            // Whether there is a connection is ours to know.
            sink.set_property("auto-reconnect", false);
        }
        let bus = pipeline.bus().ok_or_else(strange)?;
        let outlet = Self { pipeline, source, bus, secrets: secrets(uri), caps: None, zero: None, last: None, sent };
        if outlet.pipeline.set_state(State::Playing).is_err() {
            outlet.check()?;
            return Err(Error::new(Kind::Pipeline, "the server cannot be reached"));
        }
        Ok(outlet)
    }

    /// What the connection complained of.
    ///
    /// # Errors
    /// When it has failed.
    pub fn check(&self) -> Result<()> {
        match feed::fault(&self.pipeline, &self.bus) {
            Some(fault) => {
                let secrets: Vec<&SecretString> = self.secrets.iter().collect();
                Err(Error::new(fault.kind(), redact::text(&fault.chain(), &secrets)))
            }
            None => Ok(()),
        }
    }

    /// Packets that came to the sender; the last of them may still be on its way.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Pictures that wait.
    pub fn waiting(&self) -> u64 {
        self.source.property("current-level-buffers")
    }

    /// Whether no more may wait.
    pub fn is_full(&self) -> bool {
        self.waiting() >= WAITING
    }

    /// Hands a picture over; never blocks.
    ///
    /// # Errors
    /// When the connection has failed.
    pub fn push(&mut self, unit: &EncodedUnit) -> Result<()> {
        if self.caps.as_ref() != Some(&unit.caps) {
            let caps = unit.caps.parse::<Caps>().context(Kind::Internal, || "a format is no caps")?;
            self.source.set_caps(Some(&caps));
            self.caps = Some(unit.caps.clone());
        }
        let shown = unit.connected + unit.time;
        let time = shown.saturating_duration_since(*self.zero.get_or_insert(shown));
        // Always rising, should the encoder have begun anew.
        let time = self.last.map_or(time, |last| time.max(last + Duration::from_millis(1)));
        self.last = Some(time);
        let mut buffer = Buffer::from_slice(unit.bytes.clone());
        if let Some(buffer) = buffer.get_mut() {
            let time = ClockTime::try_from(time).ok();
            buffer.set_pts(time);
            buffer.set_dts(time);
            if !unit.key {
                buffer.set_flags(BufferFlags::DELTA_UNIT);
            }
        }
        match self.source.push_buffer(buffer) {
            Ok(_) => Ok(()),
            Err(_) => self.check().and_then(|()| Err(Error::new(Kind::Pipeline, "the connection has ended"))),
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        feed::tear_down(&self.pipeline);
    }
}

/// Counts what comes to `sink`.
fn count(sink: &Element, sent: &Arc<AtomicU64>) -> Option<()> {
    let sent = sent.clone();
    let kinds = PadProbeType::BUFFER | PadProbeType::BUFFER_LIST;
    sink.static_pad("sink")?.add_probe(kinds, move |_, _| {
        sent.fetch_add(1, Ordering::Relaxed);
        PadProbeReturn::Ok
    })?;
    Some(())
}

/// Each part of an address behind the host, and what may stand before it: servers repeat in their complaints what they refuse.
fn secrets(uri: &SecretString) -> Vec<SecretString> {
    let rest = uri.expose_secret().split_once("://").map_or("", |(_, rest)| rest);
    let (user, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    let path = host.split_once(['/', '?']).map_or("", |(_, path)| path);
    let parts = path.split(['/', '?', '&', '=']).chain(user.split(':'));
    // As it is written, and as a server may repeat it.
    let decoded = |part: &str| percent_decode_str(part).decode_utf8().ok().filter(|decoded| decoded != part).map(String::from);
    let both = |part: &str| [Some(part.to_owned()), decoded(part)].into_iter().flatten().map(SecretString::from).collect::<Vec<_>>();
    parts.filter(|part| !part.is_empty()).flat_map(both).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_in_an_address_is_known() {
        let parts = |uri: &str| -> Vec<String> {
            secrets(&SecretString::from(uri)).iter().map(|secret| secret.expose_secret().to_owned()).collect()
        };
        assert_eq!(parts("rtmp://me:s3cr3t@host/app/live_1?sig=abc"), ["app", "live_1", "sig", "abc", "me", "s3cr3t"]);
        assert_eq!(parts("srt://host:9000?passphrase=0123456789"), ["passphrase", "0123456789"]);
        assert_eq!(parts("rtmp://host/app/a%2Bb"), ["app", "a%2Bb", "a+b"]);
    }
}
