//! A picture of live video, boxes included, before it is encoded.

use gstreamer::{Buffer, Caps, ClockTime, Sample, glib};
use gstreamer_video::{VideoFrameExt, VideoFrameRef, VideoInfo, convert_sample};
use image::RgbImage;

use crate::sink::video::raw;

/// For a picture to be converted.
const CONVERT: ClockTime = ClockTime::from_seconds(2);

/// A picture as it is shown, in the camera's size and mostly in the decoder's format. Clones share the pixels.
#[derive(Clone)]
pub struct Shown {
    buffer: Buffer,
    info: VideoInfo,
}

impl Shown {
    /// Of `buffer`, which is as `info` says.
    pub(in crate::sink::video) fn new(buffer: Buffer, info: VideoInfo) -> Self {
        Self { buffer, info }
    }

    /// The pixels and what they are, to be changed.
    pub(super) fn into_parts(self) -> (Buffer, VideoInfo) {
        (self.buffer, self.info)
    }

    /// The pixels and what they are, without times.
    pub(in crate::sink::video) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// What the pixels are.
    pub(super) fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// The same as caps at no certain rate: pictures come when they come.
    ///
    /// # Errors
    /// When there are none, which is not to be expected.
    pub(in crate::sink::video) fn caps(&self) -> Result<Caps, glib::BoolError> {
        let mut caps = self.info.to_caps()?;
        caps.make_mut().set("framerate", gstreamer::Fraction::new(0, 1));
        Ok(caps)
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.info.width(), self.info.height())
    }

    /// Its pixels for who draws or saves them; the work is the caller's. `None`: they cannot be converted.
    pub fn rgb(&self) -> Option<RgbImage> {
        let caps = self.caps().ok()?;
        let sample = Sample::builder().buffer(&self.buffer).caps(&caps).build();
        let (width, height) = self.size();
        let converted = convert_sample(&sample, &raw::caps(width, height), Some(CONVERT)).ok()?;
        let info = VideoInfo::from_caps(converted.caps()?).ok()?;
        let frame = VideoFrameRef::from_buffer_ref_readable(converted.buffer()?, &info).ok()?;
        let stride = usize::try_from(frame.plane_stride().first().copied()?).ok()?;
        let rows = frame.plane_data(0).ok()?.chunks(stride).take(height as usize);
        let row = width as usize * 3;
        let pixels: Vec<u8> = rows.flat_map(|line| &line[..row.min(line.len())]).copied().collect();
        RgbImage::from_raw(width, height, pixels)
    }
}
