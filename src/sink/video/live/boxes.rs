//! The boxes on live video: drawn when something about them changes, blended into each picture by GStreamer's own hand, so
//! that everybody who watches gets pixels, encoded or not.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use gstreamer::Buffer;
use gstreamer_video::{
    VideoColorMatrix, VideoConverter, VideoFormat, VideoFrameFlags, VideoFrameRef, VideoInfo, VideoMeta, VideoOverlayComposition,
    VideoOverlayFormatFlags, VideoOverlayRectangle,
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
    /// `None`: nothing is to be seen.
    composition: Option<VideoOverlayComposition>,
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
        let Some(composition) = over.ok().flatten() else { return picture };
        let (mut buffer, info) = picture.into_parts();
        // Its pixels are copied here, should the decoder still need them.
        let blended = VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), &info).and_then(|mut frame| composition.blend(&mut frame));
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
    fn over(&mut self, info: &VideoInfo) -> Option<VideoOverlayComposition> {
        if self.revision != Some(self.camera.revision()) {
            let (marks, revision) = self.camera.seen();
            (self.marks, self.revision) = (marks, Some(revision));
        }
        let (now, revision, size) = (Instant::now(), self.revision?, (info.width(), info.height()));
        let opacities = || self.marks.iter().map(|mark| mark.opacity(now));
        let current = |drawn: &&Drawn| drawn.revision == revision && drawn.size == size && opacities().eq(drawn.opacities.iter().copied());
        if let Some(drawn) = self.drawn.as_ref().filter(current) {
            return drawn.composition.clone();
        }
        let patches = self.painter.boxes(&self.marks, now, size);
        let composition = compose(&patches, is_hd(info));
        self.drawn = Some(Drawn { revision, size, opacities: opacities().collect(), composition: composition.clone() });
        composition
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

fn compose(patches: &[Patch], hd: bool) -> Option<VideoOverlayComposition> {
    let rectangles: Vec<VideoOverlayRectangle> = patches.iter().filter_map(|patch| rectangle(patch, hd)).collect();
    VideoOverlayComposition::new(&rectangles).ok()
}

/// In the video's own kind of colours: those of RGB would be converted for every picture.
fn rectangle(Patch { x, y, image }: &Patch, hd: bool) -> Option<VideoOverlayRectangle> {
    let mut buffer = Buffer::from_mut_slice(ayuv(image, hd));
    VideoMeta::add(buffer.get_mut()?, VideoFrameFlags::empty(), VideoFormat::Ayuv, image.width(), image.height()).ok()?;
    let at = |place: &u32| i32::try_from(*place).ok();
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
