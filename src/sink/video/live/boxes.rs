//! The boxes on live video: drawn when something about them changes, blended into each picture by GStreamer's own hand, so
//! that everybody who watches gets pixels, encoded or not.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use gstreamer::{Buffer, BufferRef, glib};
use gstreamer_video::{
    VideoColorMatrix, VideoConverter, VideoFormat, VideoFrame, VideoFrameExt, VideoFrameFlags, VideoFrameRef, VideoInfo, VideoMeta,
    VideoOverlayComposition, VideoOverlayFormatFlags, VideoOverlayRectangle,
};
use image::RgbaImage;

use crate::sink::video::live::Painter;
use crate::sink::video::live::camera::Camera;
use crate::sink::video::live::shown::Shown;
use crate::types::{Mark, Patch};

/// Formats that boxes are blended into; pictures of others, such as those of ten bits, are converted first.
const BLENDED: [VideoFormat; 9] = [
    VideoFormat::I420,
    VideoFormat::Yv12,
    VideoFormat::Nv12,
    VideoFormat::Nv21,
    VideoFormat::Y41b,
    VideoFormat::Y42b,
    VideoFormat::Y444,
    VideoFormat::Yuy2,
    VideoFormat::Gray8,
];

/// The pixels that share a colour in any of them, across or down, at most.
const ALIGN: u32 = 4;

/// Blends a camera's boxes into its pictures.
pub struct Boxes {
    camera: Arc<Camera>,
    painter: Arc<dyn Painter>,
    marks: Arc<[Mark]>,
    /// Of the marks.
    revision: Option<u64>,
    drawn: Option<Drawn>,
    converter: Option<Converter>,
}

/// For pictures of a format that boxes are not blended into.
struct Converter {
    from: VideoInfo,
    to: VideoInfo,
    converter: VideoConverter,
}

/// What was drawn, and for what.
struct Drawn {
    revision: u64,
    size: (u32, u32),
    opacities: Vec<u8>,
    parts: Arc<[Part]>,
}

/// A part of the picture that something is drawn on, and what. `gst_video_blend` unpacks and packs whole lines of what it is
/// given: so it is given the part alone.
struct Part {
    x: u32,
    y: u32,
    info: VideoInfo,
    composition: VideoOverlayComposition,
}

impl Boxes {
    /// Of `camera`, as `painter` draws them.
    pub fn new(camera: Arc<Camera>, painter: Arc<dyn Painter>) -> Self {
        Self { camera, painter, marks: Arc::new([]), revision: None, drawn: None, converter: None }
    }

    /// The picture with what is seen on it. Where something fails it stays as it is: better without boxes than not at all.
    pub fn onto(&mut self, picture: Shown) -> Shown {
        let picture = self.blendable(picture);
        // The hand that draws is another module's: its panic costs the boxes of this picture.
        let over = catch_unwind(AssertUnwindSafe(|| self.over(picture.info())));
        let Some(parts) = over.ok().flatten().filter(|parts| !parts.is_empty()) else { return picture };
        let (mut buffer, info) = picture.into_parts();
        // Its pixels are copied here, should the decoder still need them.
        let blended = VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), &info)
            .and_then(|mut frame| parts.iter().try_for_each(|part| part.blend(&mut frame)));
        if let Err(error) = blended {
            tracing::debug!(camera = %self.camera.id(), "boxes were not blended: {error}");
        }
        Shown::new(buffer, info)
    }

    fn blendable(&mut self, picture: Shown) -> Shown {
        if BLENDED.contains(&picture.info().format()) {
            return picture;
        }
        self.converted(&picture).unwrap_or(picture)
    }

    fn converted(&mut self, picture: &Shown) -> Option<Shown> {
        let from = picture.info();
        if self.converter.as_ref().is_none_or(|converter| converter.from != *from) {
            let to = VideoInfo::builder(VideoFormat::I420, from.width(), from.height())
                .par(from.par())
                .fps(from.fps())
                .interlace_mode(from.interlace_mode());
            let to = to.build().ok()?;
            let converter = VideoConverter::new(from, &to, None).ok()?;
            self.converter = Some(Converter { from: from.clone(), to, converter });
        }
        let Converter { to, converter, .. } = self.converter.as_ref()?;
        let mut buffer = Buffer::with_size(to.size()).ok()?;
        let source = VideoFrameRef::from_buffer_ref_readable(picture.buffer(), from).ok()?;
        converter.frame_ref(&source, &mut VideoFrameRef::from_buffer_ref_writable(buffer.get_mut()?, to).ok()?);
        Some(Shown::new(buffer, to.clone()))
    }

    /// What goes over a picture like this.
    fn over(&mut self, info: &VideoInfo) -> Option<Arc<[Part]>> {
        if self.revision != Some(self.camera.revision()) {
            let (marks, revision) = self.camera.seen();
            (self.marks, self.revision) = (marks, Some(revision));
        }
        let (now, revision, size) = (Instant::now(), self.revision?, (info.width(), info.height()));
        let opacities = || self.marks.iter().map(|mark| mark.opacity(now));
        let current = |drawn: &&Drawn| drawn.revision == revision && drawn.size == size && opacities().eq(drawn.opacities.iter().copied());
        if let Some(drawn) = self.drawn.as_ref().filter(current) {
            return Some(drawn.parts.clone());
        }
        let patches = self.painter.boxes(&self.marks, now, size);
        let parts: Arc<[Part]> = patches.iter().filter_map(|patch| Part::new(patch, info)).collect();
        self.drawn = Some(Drawn { revision, size, opacities: opacities().collect(), parts: parts.clone() });
        Some(parts)
    }
}

/// Whether colours are those of Rec. 709, as in high definition; where the stream does not say, by its size.
fn is_hd(info: &VideoInfo) -> bool {
    match info.colorimetry().matrix() {
        VideoColorMatrix::Bt709 => true,
        VideoColorMatrix::Unknown => info.height() > 576,
        _ => false,
    }
}

impl Part {
    /// Of a picture like this. Its place is one where the picture's colours begin, which most formats have for several pixels
    /// together.
    fn new(patch: &Patch, of: &VideoInfo) -> Option<Self> {
        let Patch { x, y, image } = patch;
        let (left, top) = (x / ALIGN * ALIGN, y / ALIGN * ALIGN);
        let right = (x + image.width()).next_multiple_of(ALIGN).min(of.width());
        let bottom = (y + image.height()).next_multiple_of(ALIGN).min(of.height());
        let info = VideoInfo::builder(of.format(), right.checked_sub(left)?, bottom.checked_sub(top)?).colorimetry(&of.colorimetry());
        let rectangle = rectangle(image, (x - left, y - top), is_hd(of))?;
        Some(Self { x: left, y: top, info: info.build().ok()?, composition: VideoOverlayComposition::new([&rectangle]).ok()? })
    }

    fn blend(&self, frame: &mut VideoFrameRef<&mut BufferRef>) -> Result<(), glib::BoolError> {
        let mut part = VideoFrame::from_buffer_writable(Buffer::with_size(self.info.size())?, &self.info)
            .map_err(|_| glib::bool_error!("a part of a picture cannot be mapped"))?;
        for plane in 0..self.info.n_planes() {
            let (from, to) = (self.rows(frame.plane_stride(), plane), rows_of(part.plane_stride(), plane));
            let target = part.plane_data_mut(plane)?;
            copy(frame.plane_data(plane)?, from, target, to, self.extent(plane));
        }
        self.composition.blend(&mut part.as_mut_video_frame_ref())?;
        for plane in 0..self.info.n_planes() {
            let (from, to) = (rows_of(part.plane_stride(), plane), self.rows(frame.plane_stride(), plane));
            let target = frame.plane_data_mut(plane)?;
            copy(part.plane_data(plane)?, from, target, to, self.extent(plane));
        }
        Ok(())
    }

    /// Where the part begins in a plane of the whole picture, and from row to row, in bytes.
    fn rows(&self, strides: &[i32], plane: u32) -> (usize, usize) {
        let (_, stride) = rows_of(strides, plane);
        let (across, down, pixel) = self.sampling(plane);
        ((self.y >> down) as usize * stride + (self.x >> across) as usize * pixel, stride)
    }

    /// Bytes of a row and rows of the part in a plane.
    fn extent(&self, plane: u32) -> (usize, usize) {
        let (across, down, pixel) = self.sampling(plane);
        (self.info.width().div_ceil(1 << across) as usize * pixel, self.info.height().div_ceil(1 << down) as usize)
    }

    /// By how many bits a plane is smaller than the picture, across and down; and from pixel to pixel in bytes.
    fn sampling(&self, plane: u32) -> (u32, u32, usize) {
        let format = self.info.format_info();
        let first = format.plane().iter().position(|of| *of == plane).unwrap_or_default();
        let bytes = usize::try_from(format.pixel_stride()[first]).unwrap_or_default();
        (format.w_sub()[first], format.h_sub()[first], bytes)
    }
}

/// The same of a picture from its own beginning on.
fn rows_of(strides: &[i32], plane: u32) -> (usize, usize) {
    (0, strides.get(plane as usize).and_then(|stride| usize::try_from(*stride).ok()).unwrap_or_default())
}

/// Copies rows of so many bytes; both sides begin somewhere and have rows of their own length.
fn copy(from: &[u8], (begin, stride): (usize, usize), to: &mut [u8], (start, step): (usize, usize), (bytes, rows): (usize, usize)) {
    for row in 0..rows {
        let source = from.get(begin + row * stride..).and_then(|rest| rest.get(..bytes));
        let target = to.get_mut(start + row * step..).and_then(|rest| rest.get_mut(..bytes));
        if let (Some(source), Some(target)) = (source, target) {
            target.copy_from_slice(source);
        }
    }
}

/// In the video's own kind of colours: those of RGB would be converted for every picture.
fn rectangle(image: &RgbaImage, (x, y): (u32, u32), hd: bool) -> Option<VideoOverlayRectangle> {
    let mut buffer = Buffer::from_mut_slice(ayuv(image, hd));
    VideoMeta::add(buffer.get_mut()?, VideoFrameFlags::empty(), VideoFormat::Ayuv, image.width(), image.height()).ok()?;
    let at = |place: u32| i32::try_from(place).ok();
    let flags = VideoOverlayFormatFlags::empty();
    Some(VideoOverlayRectangle::new_raw(&buffer, at(x)?, at(y)?, image.width(), image.height(), flags))
}

/// Alpha, Y', Cb, Cr of each pixel, by Rec. 709 or Rec. 601 in the range of video.
fn ayuv(image: &RgbaImage, hd: bool) -> Vec<u8> {
    let (red, blue) = if hd { (0.2126, 0.0722) } else { (0.299, 0.114) };
    let mut bytes = Vec::with_capacity(image.as_raw().len());
    // Most pixels are like the one before.
    let mut last = ([0; 4], [0, 16, 128, 128]);
    for pixel in image.pixels() {
        if pixel.0 != last.0 {
            let [r, g, b] = [pixel.0[0], pixel.0[1], pixel.0[2]].map(|value| f64::from(value) / 255.0);
            let luma = red * r + (1.0 - red - blue) * g + blue * b;
            let chroma = |part: f64, share: f64| (128.0 + 224.0 * (part - luma) / (2.0 * (1.0 - share))).round() as u8;
            last = (pixel.0, [pixel.0[3], (16.0 + 219.0 * luma).round() as u8, chroma(b, blue), chroma(r, red)]);
        }
        bytes.extend_from_slice(&last.1);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;

    #[test]
    fn colours_are_those_of_the_recommendations() {
        let one = |pixel: [u8; 4], hd| ayuv(&RgbaImage::from_pixel(1, 1, Rgba(pixel)), hd);
        assert_eq!(one([255, 255, 255, 7], true), [7, 235, 128, 128]);
        assert_eq!(one([0, 0, 0, 255], true), [255, 16, 128, 128]);
        assert_eq!(one([255, 0, 0, 255], true), [255, 63, 102, 240]);
        assert_eq!(one([255, 0, 0, 255], false), [255, 81, 90, 240]);
        assert_eq!(one([0, 0, 255, 255], true), [255, 32, 240, 118]);
    }
}
