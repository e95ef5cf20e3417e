//! Annotated frames as video: MP4 files, an RTSP server, and `gst-launch` fragments of the operator's own.

mod custom;
mod encoder;
mod feed;
mod file;
mod lane;
mod raw;
mod rtsp;

use crate::base::error::{Context, Kind, Result};

pub use custom::{CustomSink, check_fragment};
pub use file::FileSink;
pub use rtsp::RtspSink;

/// Makes GStreamer ready; further calls do nothing.
fn init() -> Result<()> {
    gstreamer::init().context(Kind::Pipeline, || "gstreamer cannot start")
}
