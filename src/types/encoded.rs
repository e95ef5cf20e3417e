//! A picture as a camera sent it, for who wants it undecoded: live video and recordings.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Utc;
use crate::types::CameraId;

/// One encoded picture: an access unit. Clones share the bytes.
#[derive(Clone)]
pub struct Encoded {
    /// Whose picture it is.
    pub camera: CameraId,
    /// What the bytes are, as GStreamer's caps in text: `video/x-h264, stream-format=(string)byte-stream, ...`. H.264 and H.265
    /// have start codes, and their parameter sets ahead of each keyframe. Pictures of one format share the text.
    pub caps: Arc<str>,
    /// The picture.
    pub bytes: Arc<[u8]>,
    /// It needs no other picture.
    pub key: bool,
    /// When it is to be shown, since the connection was begun, by the stream; `None`: the stream does not say.
    pub pts: Option<Duration>,
    /// When it is to be decoded, where that is another moment.
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

impl fmt::Debug for Encoded {
    /// Without the picture.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { camera, caps, key, pts, .. } = self;
        write!(f, "Encoded({camera}, {caps}, {} bytes, key: {key}, pts: {pts:?})", self.bytes.len())
    }
}
