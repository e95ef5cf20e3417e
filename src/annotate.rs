//! Floor 3: boxes, labels, scores, camera and time drawn on a frame, readable from 320×240 to 4K; the same for live video, on
//! transparent ground.

mod colour;
mod layout;
mod overlay;

use ab_glyph::FontRef;
use image::{Rgb, RgbImage};
use imageproc::drawing::{draw_filled_rect_mut, draw_hollow_rect_mut, draw_text_mut, text_size};
use imageproc::rect::Rect;

use crate::base::error::{Context, Kind, Result};
use crate::types::{Detection, PixelBox};
use layout::{Area, place};

/// DejaVu Sans 2.37; its licence stands beside it.
const FONT: &[u8] = include_bytes!("annotate/font/DejaVuSans.ttf");

const BLACK: Rgb<u8> = Rgb([0, 0, 0]);
const WHITE: Rgb<u8> = Rgb([255, 255, 255]);

/// Draws on frames. One serves any number of cameras.
pub struct Annotator {
    font: FontRef<'static>,
}

/// Sizes in pixels that follow the picture's size.
struct Metrics {
    /// Height of the text.
    text: f32,
    /// Width of a box's outline.
    line: u32,
    /// Space around text.
    pad: u32,
}

impl Metrics {
    /// For a picture of this width and height.
    fn of(size: (u32, u32)) -> Self {
        let short = size.0.min(size.1) as f32;
        Self {
            text: (short / 30.0).clamp(12.0, 72.0),
            line: (short / 200.0).round().clamp(2.0, 10.0) as u32,
            pad: (short / 240.0).round().clamp(2.0, 10.0) as u32,
        }
    }
}

impl Annotator {
    /// Loads the embedded font.
    ///
    /// # Errors
    /// Never with the font this was built with.
    pub fn new() -> Result<Self> {
        let font = FontRef::try_from_slice(FONT).context(Kind::Internal, || "the embedded font cannot be read")?;
        Ok(Self { font })
    }

    /// A copy of `image` with a box and a tag (`label 0.91`) for each detection, and `caption` on a bar at the foot.
    pub fn draw(&self, image: &RgbImage, detections: &[Detection], caption: &str) -> RgbImage {
        let mut canvas = image.clone();
        if canvas.width() == 0 || canvas.height() == 0 {
            return canvas;
        }
        let metrics = Metrics::of(image.dimensions());
        let boxes: Vec<PixelBox> = detections.iter().map(|found| found.box01.to_pixels(image.width(), image.height())).collect();
        for (found, pixels) in detections.iter().zip(&boxes) {
            outline(&mut canvas, *pixels, metrics.line, colour::of(&found.label));
        }
        // Tags after all outlines, so that no outline runs through a text.
        let bar = self.bar(&mut canvas, caption, &metrics);
        let mut taken = vec![bar];
        for (found, pixels) in detections.iter().zip(&boxes) {
            let text = self.fitted(&format!("{} {:.2}", found.label, found.score), &metrics, canvas.width());
            let (width, height) = self.size(&text, &metrics);
            let area = place(*pixels, (width, height), (canvas.width(), canvas.height()), &taken);
            let background = colour::of(&found.label);
            fill(&mut canvas, area, background);
            self.text(&mut canvas, area, &text, &metrics, if colour::is_light(background) { BLACK } else { WHITE });
            taken.push(area);
        }
        canvas
    }

    /// The caption on a darkened bar along the foot; returns the bar's area.
    fn bar(&self, canvas: &mut RgbImage, caption: &str, metrics: &Metrics) -> Area {
        if caption.is_empty() {
            return Area { x: 0, y: canvas.height(), width: 0, height: 0 };
        }
        let caption = self.fitted(caption, metrics, canvas.width());
        let height = self.size(&caption, metrics).1.min(canvas.height());
        let area = Area { x: 0, y: canvas.height() - height, width: canvas.width(), height };
        for y in area.y..canvas.height() {
            for x in 0..canvas.width() {
                canvas.get_pixel_mut(x, y).0.iter_mut().for_each(|value| *value /= 4);
            }
        }
        self.text(canvas, area, &caption, metrics, WHITE);
        area
    }

    /// Width and height of a tag with this text, padding included.
    fn size(&self, text: &str, metrics: &Metrics) -> (u32, u32) {
        let (width, _) = text_size(metrics.text, &self.font, text);
        (width + 3 * metrics.pad, metrics.text.ceil() as u32 + 2 * metrics.pad)
    }

    /// The text, cut with an ellipsis where it is wider than `width` pixels.
    fn fitted(&self, text: &str, metrics: &Metrics, width: u32) -> String {
        let mut cut: String = text.chars().filter(|c| !c.is_control()).collect();
        if self.size(&cut, metrics).0 <= width {
            return cut;
        }
        while !cut.is_empty() && self.size(&format!("{cut}…"), metrics).0 > width {
            cut.pop();
        }
        cut.push('…');
        cut
    }

    fn text(&self, canvas: &mut RgbImage, area: Area, text: &str, metrics: &Metrics, colour: Rgb<u8>) {
        let (x, y) = (area.x + metrics.pad, area.y + metrics.pad);
        draw_text_mut(canvas, colour, x as i32, y as i32, metrics.text, &self.font, text);
    }
}

/// A box's outline: the label's colour, with a dark hairline on both sides that holds on any background.
fn outline(canvas: &mut RgbImage, pixels: PixelBox, line: u32, colour: Rgb<u8>) {
    let (right, bottom) = (pixels.x_max.min(canvas.width()), pixels.y_max.min(canvas.height()));
    for inset in 0..line + 2 {
        let width = right.saturating_sub(pixels.x_min + 2 * inset);
        let height = bottom.saturating_sub(pixels.y_min + 2 * inset);
        if width == 0 || height == 0 {
            break;
        }
        let shade = if inset == 0 || inset == line + 1 { BLACK } else { colour };
        draw_hollow_rect_mut(canvas, Rect::at((pixels.x_min + inset) as i32, (pixels.y_min + inset) as i32).of_size(width, height), shade);
    }
}

fn fill(canvas: &mut RgbImage, area: Area, colour: Rgb<u8>) {
    if area.width > 0 && area.height > 0 {
        draw_filled_rect_mut(canvas, Rect::at(area.x as i32, area.y as i32).of_size(area.width, area.height), colour);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Box01;

    fn found(label: &str, locs: [u16; 4]) -> Detection {
        Detection { label: label.to_owned(), score: 0.9, locs, box01: Box01::from_locs(locs) }
    }

    #[test]
    fn a_box_is_outlined_in_its_labels_colour_and_the_inside_stays() {
        let image = RgbImage::from_pixel(640, 480, Rgb([90, 90, 90]));
        let drawn = Annotator::new().unwrap().draw(&image, &[found("cat", [256, 256, 768, 768])], "");
        assert_eq!(*drawn.get_pixel(161, 240), colour::of("cat"));
        assert_eq!(*drawn.get_pixel(320, 360 - 2), colour::of("cat"));
        assert_eq!(*drawn.get_pixel(320, 240), Rgb([90, 90, 90]));
        assert_eq!(*drawn.get_pixel(10, 10), Rgb([90, 90, 90]));
    }

    #[test]
    fn the_caption_writes_on_a_dark_bar() {
        let image = RgbImage::from_pixel(320, 240, Rgb([200, 200, 200]));
        let drawn = Annotator::new().unwrap().draw(&image, &[], "street 2026-11-23 14:03:07");
        let bar: Vec<u8> = drawn.rows().skip(240 - 12).flatten().map(|pixel| pixel.0[0]).collect();
        assert!(bar.iter().any(|&value| value > 200) && bar.iter().filter(|&&value| value == 50).count() > bar.len() / 2);
    }

    #[test]
    fn any_box_on_any_picture_is_drawn_without_a_panic() {
        let annotator = Annotator::new().unwrap();
        let labels = ["x", "a very long label that does not fit on any small picture at all", "猫 🐈 \u{0}\n"];
        for (width, height) in [(1, 1), (3, 200), (320, 240), (3840, 2160)] {
            let image = RgbImage::new(width, height);
            let all: Vec<Detection> = labels
                .iter()
                .flat_map(|label| [[0, 0, 1023, 1023], [1022, 1022, 1023, 1023], [0, 1000, 5, 1023]].map(|locs| found(label, locs)))
                .collect();
            let drawn = annotator.draw(&image, &all, labels[1]);
            assert_eq!(drawn.dimensions(), (width, height));
        }
    }
}
