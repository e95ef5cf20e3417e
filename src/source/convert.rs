//! From a decoder's pixels to RGB, and to brightness. Runs only for pictures that are wanted.

use gstreamer::{Buffer, BufferRef};
use gstreamer_video::{VideoConverter, VideoFormat, VideoFormatFlags, VideoFrame, VideoFrameExt, VideoFrameRef, VideoInfo};
use image::RgbImage;

use crate::types::{Luma, Plane};

/// Conversions that are kept for the next picture of the same kind.
const KEPT: usize = 4;

/// Turns pictures into RGB. One per thread; what it needs for a kind of picture is made once.
#[derive(Default)]
pub struct Converter {
    chains: Vec<Chain>,
}

/// The way of one kind of picture.
struct Chain {
    from: VideoInfo,
    max_width: Option<u32>,
    /// Planes scaled as they are: fewer pixels are left to convert.
    scale: Option<Step>,
    /// Four bytes a pixel: GStreamer has fast paths to those and none to three.
    convert: Step,
}

struct Step {
    converter: VideoConverter,
    to: VideoInfo,
    /// Where it is written to, again and again.
    into: Option<VideoFrame<gstreamer_video::video_frame::Writable>>,
}

impl Converter {
    /// The picture in `buffer` as RGB, scaled down to `max_width` if it is wider; `None` where it cannot be read.
    pub fn rgb(&mut self, info: &VideoInfo, buffer: &Buffer, max_width: Option<u32>) -> Option<RgbImage> {
        let known = self.chains.iter().position(|chain| chain.max_width == max_width && chain.from == *info);
        match known {
            Some(at) => self.chains[..=at].rotate_right(1),
            None => {
                self.chains.truncate(KEPT - 1);
                self.chains.insert(0, Chain::new(info, max_width)?);
            }
        }
        self.chains.first_mut()?.run(buffer)
    }
}

impl Chain {
    fn new(from: &VideoInfo, max_width: Option<u32>) -> Option<Self> {
        let (width, height) = (from.width(), from.height());
        let small = max_width.filter(|&most| most < width).map(|most| {
            // Even, as 4:2:0 wants it.
            let height = (f64::from(height) * f64::from(most) / f64::from(width) / 2.0).round() as u32 * 2;
            (most / 2 * 2, height.max(2))
        });
        let scale = match small {
            Some((width, height)) => Some(Step::new(from, from.format(), width, height)?),
            None => None,
        };
        let planar = scale.as_ref().map_or(from, |step| &step.to);
        let convert = Step::new(planar, VideoFormat::Rgbx, planar.width(), planar.height())?;
        Some(Self { from: from.clone(), max_width, scale, convert })
    }

    fn run(&mut self, buffer: &Buffer) -> Option<RgbImage> {
        let frame = VideoFrameRef::from_buffer_ref_readable(buffer, &self.from).ok()?;
        let wide = match &mut self.scale {
            Some(step) => {
                let scaled = step.run(&frame)?.as_video_frame_ref();
                self.convert.run(&scaled)?
            }
            None => self.convert.run(&frame)?,
        };
        pack(wide)
    }
}

impl Step {
    fn new(from: &VideoInfo, format: VideoFormat, width: u32, height: u32) -> Option<Self> {
        let builder = VideoInfo::builder(format, width, height).fps(from.fps()).interlace_mode(from.interlace_mode());
        // Scaled planes keep their colours' meaning; RGB has its own.
        let to = if format == from.format() { builder.colorimetry(&from.colorimetry()).build() } else { builder.build() }.ok()?;
        Some(Self { converter: VideoConverter::new(from, &to, None).ok()?, to, into: None })
    }

    fn run(&mut self, frame: &VideoFrameRef<&BufferRef>) -> Option<&VideoFrame<gstreamer_video::video_frame::Writable>> {
        let mut into = match self.into.take() {
            Some(into) => into,
            None => VideoFrame::from_buffer_writable(Buffer::with_size(self.to.size()).ok()?, &self.to).ok()?,
        };
        self.converter.frame_ref(frame, &mut into.as_mut_video_frame_ref());
        Some(self.into.insert(into))
    }
}

/// Three of four bytes, row by row.
fn pack(wide: &VideoFrame<gstreamer_video::video_frame::Writable>) -> Option<RgbImage> {
    let (width, height) = (wide.width() as usize, wide.height() as usize);
    let stride = usize::try_from(*wide.plane_stride().first()?).ok()?;
    let data = wide.plane_data(0).ok()?;
    let mut pixels = vec![0; width * height * 3];
    for (row, line) in pixels.chunks_exact_mut(width * 3).zip(data.chunks(stride)) {
        for (pixel, wide) in row.chunks_exact_mut(3).zip(line.chunks_exact(4)) {
            pixel.copy_from_slice(&wide[..3]);
        }
    }
    RgbImage::from_raw(wide.width(), wide.height(), pixels)
}

/// The brightness of a picture: its luma, or what comes first where it has colours only.
pub fn luma(info: &VideoInfo, buffer: &BufferRef) -> Option<Luma> {
    let format = info.format_info();
    let bits = format.depth().first()? + format.shift().first()?;
    if bits > 8 && !format.flags().contains(VideoFormatFlags::LE) {
        return None;
    }
    let plane = *format.plane().first()?;
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).ok()?;
    Luma::of(Plane {
        bytes: frame.plane_data(plane).ok()?,
        stride: usize::try_from(*frame.plane_stride().get(plane as usize)?).ok()?,
        width: info.width() as usize,
        height: info.height() as usize,
        step: usize::try_from(*format.pixel_stride().first()?).ok()?,
        offset: usize::try_from(*format.poffset().first()?).ok()?,
        bits,
    })
}
