//! The boxes on live video: drawn when something about them changes, blended into each picture by GStreamer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use gstreamer::prelude::*;
use gstreamer::{Buffer, Element, Sample};
use gstreamer_video::{
    VideoColorMatrix, VideoFormat, VideoFrameFlags, VideoInfo, VideoMeta, VideoOverlayComposition, VideoOverlayFormatFlags,
    VideoOverlayRectangle,
};
use image::RgbaImage;

use crate::base::sync;
use crate::sink::video::live::Painter;
use crate::sink::video::live::camera::Camera;
use crate::types::{Mark, Patch};

/// The offset of buffers that get no boxes: slates, and pictures that were drawn on already.
pub const BARE: u64 = 1;

/// Has `element`, an `overlaycomposition`, blend the camera's boxes into what passes.
pub fn attach(element: &Element, camera: Arc<Camera>, painter: Arc<dyn Painter>) {
    let boxes = Mutex::new(Boxes { camera, painter, marks: Arc::new([]), revision: None, drawn: None });
    element.connect("draw", false, move |values| {
        let sample = values.get(1).and_then(|value| value.get::<Sample>().ok());
        // A panic would unwind into C and abort the daemon.
        let over = catch_unwind(AssertUnwindSafe(|| sync::lock(&boxes).over(&sample?)));
        Some(over.ok().flatten().to_value())
    });
}

struct Boxes {
    camera: Arc<Camera>,
    painter: Arc<dyn Painter>,
    marks: Arc<[Mark]>,
    /// Of the marks.
    revision: Option<u64>,
    drawn: Option<Drawn>,
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
    /// What goes over this picture.
    fn over(&mut self, sample: &Sample) -> Option<VideoOverlayComposition> {
        if sample.buffer()?.offset() == BARE {
            return None;
        }
        let info = VideoInfo::from_caps(sample.caps()?).ok()?;
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
        let composition = compose(&patches, is_hd(&info));
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
