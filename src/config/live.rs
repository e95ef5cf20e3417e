//! Live video, and the ways in which it is watched beside the RTSP server.

use std::path::PathBuf;

use crate::base::redact::SecretString;
use crate::types::CameraId;

/// What encodes live video.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncoderKind {
    /// Hardware where there is some, else the processor.
    Auto,
    /// The processor.
    #[default]
    X264,
    /// VA-API: Intel and AMD.
    Va,
    /// NVENC: NVIDIA.
    Nvidia,
    /// A Video4Linux encoder: single-board computers.
    V4l2,
}

/// Who may watch over RTSP.
#[derive(Clone, Debug, PartialEq)]
pub struct RtspLogin {
    /// The user.
    pub username: String,
    /// The password.
    pub password: SecretString,
}

/// Live video that is sent to a server, always.
#[derive(Clone, Debug, PartialEq)]
pub struct PushConfig {
    /// The cameras, at least one.
    pub cameras: Vec<CameraId>,
    /// `rtmp:// rtmps:// srt://`, in which `{camera}` stands for the camera's id. It holds the stream's key.
    pub uri: SecretString,
}

/// Live video that is played into a device as if it were a camera's.
#[derive(Clone, Debug, PartialEq)]
pub struct V4l2Config {
    /// The camera.
    pub camera: CameraId,
    /// The device, one of v4l2loopback.
    pub device: PathBuf,
}
