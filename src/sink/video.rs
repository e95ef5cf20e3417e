//! Annotated frames as video: MP4 files, an RTSP server, and `gst-launch` fragments of the operator's own; and live video with
//! boxes over RTSP, to servers by RTMP and SRT, into video devices, as files that players fetch, and as JPEGs. Beside them, a
//! camera to try the daemon on, and a plain pipeline to measure it by.

mod again;
mod always;
mod bare;
mod clip;
mod custom;
mod encoder;
mod feed;
mod file;
mod hls;
mod jpegs;
mod lane;
mod live;
mod login;
mod push;
mod raw;
mod rtsp;
pub mod serve;
mod serving;
mod stamp;
mod v4l2;
pub mod view;

use crate::base::error::{Context, Kind, Result};

pub use always::LiveSink;
pub use bare::{Bare, Work};
pub use clip::{ClipFile, check_clips};
pub use custom::{CustomSink, check_fragment};
pub use file::FileSink;
pub use hls::Hls;
pub use jpegs::{HEIGHTS, Jpeg, Jpegs, Watching};
pub use live::{Live, Painter, Pictures, Shown, Viewing};
pub use rtsp::RtspSink;

/// Makes GStreamer ready; further calls do nothing.
fn init() -> Result<()> {
    gstreamer::init().context(Kind::Pipeline, || "gstreamer cannot start")
}
