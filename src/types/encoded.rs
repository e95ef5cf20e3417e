//! A camera's stream as it was encoded, picture by picture.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Utc;
use crate::base::hash::{FNV_OFFSET, fnv1a};

/// How pictures are encoded that can be kept as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// ITU-T H.264.
    H264,
    /// ITU-T H.265.
    H265,
    /// Anything else: it can be shown, and is kept in no clip.
    Other,
    /// Not at all: the pixels, row by row without gaps. It can be shown, and is kept in no clip.
    Raw,
}

/// What comes of a camera's encoded stream.
#[derive(Clone, Debug)]
pub enum Encoded {
    /// The next picture, in the order of decoding.
    Unit(EncodedUnit),
    /// The stream has ended: what comes next does not go on from it.
    Lost,
}

/// One encoded picture. Clones share the bytes.
#[derive(Clone)]
pub struct EncodedUnit {
    /// What it is.
    pub codec: Codec,
    /// The same as GStreamer's caps in text: `video/x-h264, stream-format=(string)byte-stream, ...`. Pictures of one format
    /// share the text.
    pub caps: Arc<str>,
    /// H.264 and H.265: NAL units with start codes; ahead of each keyframe its parameter sets.
    pub bytes: Arc<[u8]>,
    /// It needs no other picture.
    pub key: bool,
    /// When it is shown, from a moment that stays the same until the stream is lost.
    pub time: Duration,
    /// When it is to be decoded, where that is another moment and the stream says so.
    pub dts: Option<Duration>,
    /// For how long it is shown, where the stream says so.
    pub duration: Option<Duration>,
    /// When the connection was begun that it came over. Another one has other times, and nothing of it goes on in this one.
    pub connected: Instant,
    /// When it reached this machine.
    pub received: Instant,
    /// When it was taken.
    pub captured: Utc,
}

impl fmt::Debug for EncodedUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.key { " key" } else { "" };
        write!(f, "{:?}{key} {:?} {} B", self.codec, self.time, self.bytes.len())
    }
}

impl EncodedUnit {
    /// Its media type, such as `video/x-h264`.
    pub fn media(&self) -> &str {
        self.caps.split(',').next().unwrap_or_default()
    }

    /// A hash of the parameter sets ahead of its first slice; `None` where there are none, so that nothing can begin with
    /// it. Two units of one hash may stand in one file. NAL unit types are those of ITU-T H.264, table 7-1, and ITU-T
    /// H.265, table 7-1.
    pub fn parameters(&self) -> Option<u32> {
        let mut hash = None;
        for nal in nals(&self.bytes) {
            let (set, slice) = match self.codec {
                Codec::H264 => (matches!(nal[0] & 0x1f, 7 | 8), matches!(nal[0] & 0x1f, 1..=5)),
                Codec::H265 => (matches!(nal[0] >> 1 & 0x3f, 32..=34), nal[0] >> 1 & 0x3f < 32),
                Codec::Other | Codec::Raw => return None,
            };
            if slice {
                break;
            }
            if set {
                hash = Some(fnv1a(hash.unwrap_or(FNV_OFFSET), nal));
            }
        }
        hash
    }
}

/// The NAL units of a byte stream (ITU-T H.264, annex B), none of them empty; zeros behind one belong to the next start
/// code.
fn nals(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = skip(bytes);
    std::iter::from_fn(move || {
        let from = rest?;
        let end = from.windows(3).position(|window| window == [0, 0, 1]).unwrap_or(from.len());
        rest = skip(&from[end..]);
        let zeros = from[..end].iter().rev().take_while(|byte| **byte == 0).count();
        Some(&from[..end - zeros])
    })
    .filter(|nal| !nal.is_empty())
}

/// What follows the next start code.
fn skip(bytes: &[u8]) -> Option<&[u8]> {
    bytes.windows(3).position(|window| window == [0, 0, 1]).map(|at| &bytes[at + 3..])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn unit(codec: Codec, bytes: &[u8]) -> EncodedUnit {
        let now = Instant::now();
        EncodedUnit {
            codec,
            caps: "".into(),
            bytes: bytes.into(),
            key: true,
            time: Duration::ZERO,
            dts: None,
            duration: None,
            connected: now,
            received: now,
            captured: Utc::from_millis(0),
        }
    }

    #[test]
    fn parameter_sets_are_told_apart_by_their_bytes_alone() {
        let h264 = |sps: u8, slice: u8| {
            unit(Codec::H264, &[0, 0, 0, 1, 9, 16, 0, 0, 0, 1, 0x67, sps, 0, 0, 1, 0x68, 2, 0, 0, 1, 0x65, slice]).parameters()
        };
        assert!(h264(1, 1).is_some() && h264(1, 1) == h264(1, 2) && h264(1, 1) != h264(3, 1));
        let short = unit(Codec::H264, &[0, 0, 1, 0x67, 1, 0, 0, 1, 0x68, 2, 0, 0, 0, 1, 0x65, 7]);
        assert_eq!(short.parameters(), h264(1, 1), "neither start codes nor delimiters count");
        assert_eq!(unit(Codec::H264, &[0, 0, 1, 0x65, 1, 0, 0, 1, 0x67, 1]).parameters(), None);
        assert_eq!(unit(Codec::H264, &[]).parameters(), None);
        let h265 = |vps: u8| unit(Codec::H265, &[0, 0, 1, 0x40, 1, vps, 0, 0, 1, 0x26, 1, 5]).parameters();
        assert!(h265(1).is_some() && h265(1) != h265(2));
    }
}
