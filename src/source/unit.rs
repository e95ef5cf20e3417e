//! Access units: encoded pictures as they leave the parser, and which of them can be decoded by themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gstreamer::{Buffer, BufferFlags, Caps, ClockTime, Segment};
use gstreamer_video::{VideoFrame, VideoFrameRef};

use crate::source::Candidate;
use crate::source::decoder::Picture;
use crate::types::{Codec, EncodedUnit};

/// One encoded picture.
#[derive(Clone)]
pub struct Unit {
    /// Its bytes; H.264 and H.265 with start codes, and with their parameter sets ahead of each keyframe.
    pub buffer: Buffer,
    /// What they are.
    pub caps: Caps,
    /// What its times mean.
    pub segment: Segment,
    /// It needs no other picture.
    pub key: bool,
    /// When it came and when it was taken.
    pub moment: Candidate,
}

impl Unit {
    /// Its time since the pipeline's start, by the stream.
    pub fn running_time(&self) -> Option<Duration> {
        running(self.buffer.pts(), &self.segment)
    }

    /// Whether it is H.264.
    pub fn is_h264(&self) -> bool {
        codec(&self.caps) == Codec::H264
    }

    /// A copy for whoever keeps or shows it, shown at `time`, of a connection begun at `connected`; `format` is its caps as
    /// text. A local camera has few buffers of its own, and would wait for those that are kept.
    pub fn encoded(&self, time: Duration, format: &Arc<str>, connected: Instant) -> Option<EncodedUnit> {
        Some(EncodedUnit {
            codec: codec(&self.caps),
            caps: format.clone(),
            bytes: self.buffer.map_readable().ok()?.as_slice().into(),
            key: self.key,
            time,
            dts: running(self.buffer.dts(), &self.segment),
            duration: self.buffer.duration().map(Into::into),
            connected,
            received: self.moment.received,
            captured: self.moment.captured,
        })
    }
}

/// What pictures of these caps are.
pub fn codec(caps: &Caps) -> Codec {
    match caps.structure(0).map_or("", |structure| structure.name().as_str()) {
        "video/x-h264" => Codec::H264,
        "video/x-h265" => Codec::H265,
        _ => Codec::Other,
    }
}

/// A copy of a raw picture for whoever shows it, as `Unit::encoded` has it. A camera's rows may be padded; the copy's are as caps
/// alone tell.
pub fn raw(picture: &Picture, moment: Candidate, time: Duration, format: &Arc<str>, connected: Instant) -> Option<EncodedUnit> {
    let of = VideoFrameRef::from_buffer_ref_readable(&picture.buffer, &picture.info).ok()?;
    let mut copy = VideoFrame::from_buffer_writable(Buffer::with_size(picture.info.size()).ok()?, &picture.info).ok()?;
    of.copy(&mut copy.as_mut_video_frame_ref()).ok()?;
    let copy = copy.into_buffer();
    Some(EncodedUnit {
        codec: Codec::Raw,
        caps: format.clone(),
        bytes: copy.map_readable().ok()?.as_slice().into(),
        key: true,
        time,
        dts: None,
        duration: picture.buffer.duration().map(Into::into),
        connected,
        received: moment.received,
        captured: moment.captured,
    })
}

/// A time of the stream's since the pipeline's start.
pub fn running(time: Option<ClockTime>, segment: &Segment) -> Option<Duration> {
    segment.downcast_ref::<ClockTime>()?.to_running_time(time?).map(Into::into)
}

/// A picture's time since the pipeline's start, by the stream.
pub fn running_time(buffer: &Buffer, segment: &Segment) -> Option<ClockTime> {
    segment.downcast_ref::<ClockTime>()?.to_running_time(buffer.pts()?)
}

/// Whether an encoded picture needs no other one.
///
/// Parsers also mark pictures as such that only a decoder which has seen the ones before can show whole: those at which
/// an open group begins, and those of an intra refresh. So H.264 is asked for an IDR slice (ITU-T H.264, table 7-1) and
/// H.265 for an IRAP one (ITU-T H.265, table 7-1).
pub fn is_key(caps: &Caps, buffer: &Buffer) -> bool {
    let first_slice = |is_slice: fn(u8) -> bool, kind: fn(u8) -> u8| {
        let map = buffer.map_readable().ok()?;
        nal_headers(&map).map(kind).find(|&kind| is_slice(kind))
    };
    match caps.structure(0).map(|structure| structure.name().as_str()) {
        Some("video/x-h264") => first_slice(|kind| matches!(kind, 1..=5), |header| header & 0x1f) == Some(5),
        Some("video/x-h265") => first_slice(|kind| kind < 32, |header| header >> 1 & 0x3f).is_some_and(|kind| matches!(kind, 16..=21)),
        _ => !buffer.flags().contains(BufferFlags::DELTA_UNIT),
    }
}

/// The first byte of each NAL unit behind a start code.
fn nal_headers(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let starts = bytes.windows(4).filter(|window| window[..3] == [0, 0, 1]);
    starts.map(|window| window[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(caps: &str, bytes: &[u8]) -> bool {
        gstreamer::init().unwrap();
        is_key(&caps.parse().unwrap(), &Buffer::from_slice(bytes.to_vec()))
    }

    #[test]
    fn an_h264_keyframe_is_an_idr_picture() {
        let idr = [0, 0, 0, 1, 0x09, 0x10, 0, 0, 0, 1, 0x67, 0x42, 0, 0, 1, 0x68, 0xce, 0, 0, 1, 0x65, 0x88, 0, 0, 1, 0x65, 0x11];
        assert!(key("video/x-h264", &idr));
        // A recovery point: parameter sets, a message, and a slice that is none of an IDR picture.
        assert!(!key("video/x-h264", &[0, 0, 1, 0x67, 0x42, 0, 0, 1, 0x06, 0x06, 0x01, 0, 0, 1, 0x41, 0x9a]));
        assert!(!key("video/x-h264", &[0, 0, 1, 0x09, 0x30]));
        assert!(!key("video/x-h264", &[]));
    }

    #[test]
    fn an_h265_keyframe_is_any_random_access_picture() {
        for (kind, expected) in [(1, false), (9, false), (16, true), (19, true), (20, true), (21, true), (22, false)] {
            assert_eq!(key("video/x-h265", &[0, 0, 0, 1, 32 << 1, 1, 0, 0, 1, kind << 1, 1]), expected, "{kind}");
        }
    }

    #[test]
    fn other_codecs_are_as_their_parser_says() {
        assert!(key("image/jpeg", &[0xff, 0xd8]));
        let mut delta = Buffer::from_slice([0]);
        delta.make_mut().set_flags(BufferFlags::DELTA_UNIT);
        assert!(!is_key(&"video/x-vp8".parse().unwrap(), &delta));
    }
}
