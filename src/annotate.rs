//! Floor 3: boxes, labels, scores, camera and time drawn on a frame, readable from 320×240 to 4K; the same for live video, on
//! transparent ground.

mod colour;
mod fonts;
mod layout;
mod overlay;
mod script;
mod text;

use std::path::PathBuf;
use std::sync::Arc;

use image::{Pixel, Rgb, RgbImage};
use imageproc::definitions::Clamp;
use imageproc::drawing::{BresenhamLineIter, Canvas, draw_filled_rect_mut, draw_hollow_rect_mut};
use imageproc::rect::Rect;

use crate::base::error::Result;
use crate::types::{Detection, PixelBox};
use fonts::Fonts;
use layout::{Area, Ground, Leader, leader, place};
use text::Line;

const BLACK: Rgb<u8> = Rgb([0, 0, 0]);
const WHITE: Rgb<u8> = Rgb([255, 255, 255]);

/// Draws on frames. One serves any number of cameras and threads; its copies share the fonts.
#[derive(Clone)]
pub struct Annotator {
    fonts: Arc<Fonts>,
}

/// Sizes in pixels that follow the picture's size.
struct Metrics {
    /// Height of the text.
    text: f32,
    /// Width of a box's outline.
    line: u32,
    /// Width of the dark edges of it.
    edge: u32,
    /// Space around text.
    pad: u32,
}

impl Metrics {
    /// For a picture of this width and height.
    fn of(size: (u32, u32)) -> Self {
        let short = size.0.min(size.1) as f32;
        let line = (short / 200.0).round().clamp(2.0, 10.0) as u32;
        Self { text: (short / 30.0).clamp(12.0, 72.0), line, edge: (line / 4).max(1), pad: (short / 240.0).round().clamp(2.0, 10.0) as u32 }
    }
}

/// A label and what is told beside it, as it will be drawn.
struct Tag {
    area: Area,
    leader: Option<Leader>,
    line: Line,
    colour: Rgb<u8>,
}

impl Annotator {
    /// With the embedded font, and the fonts of the system for letters that it lacks.
    ///
    /// # Errors
    /// Never with the font this was built with.
    pub fn new() -> Result<Self> {
        Self::with_fonts(fonts::folders())
    }

    /// With the embedded font, and for letters that it lacks the fonts in `folders` and below. They are searched once, when a
    /// label first needs it.
    ///
    /// # Errors
    /// Never with the font this was built with.
    pub fn with_fonts(folders: Vec<PathBuf>) -> Result<Self> {
        Ok(Self { fonts: Arc::new(Fonts::new(folders)?) })
    }

    /// Finds the fonts for labels that will be drawn, so that no frame waits for it.
    pub fn prepare<'a>(&self, labels: impl IntoIterator<Item = &'a str>) {
        for label in labels {
            Line::of(&self.fonts, label);
        }
    }

    /// A copy of `image` with a box and a tag (`label 0.91`) for each detection, and `caption` on a bar at the foot.
    pub fn draw(&self, image: &RgbImage, detections: &[Detection], caption: &str) -> RgbImage {
        let mut canvas = image.clone();
        if canvas.width() == 0 || canvas.height() == 0 {
            return canvas;
        }
        let bounds = image.dimensions();
        let metrics = Metrics::of(bounds);
        let boxes: Vec<PixelBox> = detections.iter().map(|found| found.box01.to_pixels(bounds.0, bounds.1)).collect();
        for (found, pixels) in detections.iter().zip(&boxes) {
            outline(&mut canvas, (0, 0), *pixels, &metrics, BLACK, colour::of(&found.label));
        }
        let mut taken = vec![self.bar(&mut canvas, caption, &metrics)];
        let tag = |(found, pixels): (&Detection, &PixelBox)| {
            let tag = self.tag(
                &found.label,
                &format!(" {:.2}", found.score),
                *pixels,
                &metrics,
                &Ground { bounds, taken: &taken, boxes: &boxes },
            );
            taken.push(tag.area.grown(metrics.edge));
            tag
        };
        let tags: Vec<Tag> = detections.iter().zip(&boxes).map(tag).collect();
        // Tags after all lines, so that none runs through a text.
        for tag in &tags {
            tag.draw_leader(&mut canvas, (0, 0), &metrics, |colour| colour);
        }
        for tag in &tags {
            tag.draw(&mut canvas, (0, 0), &metrics, &self.fonts, |colour| colour);
        }
        canvas
    }

    fn tag(&self, label: &str, rest: &str, pixels: PixelBox, metrics: &Metrics, ground: &Ground<'_>) -> Tag {
        let line = self.fitted(label, rest, metrics, ground.bounds.0);
        let area = place(pixels, self.size(&line, metrics), ground);
        Tag { area, leader: leader(&area, pixels), line, colour: colour::of(label) }
    }

    /// The caption on a darkened bar along the foot; returns the bar's area.
    fn bar(&self, canvas: &mut RgbImage, caption: &str, metrics: &Metrics) -> Area {
        if caption.is_empty() {
            return Area { x: 0, y: canvas.height(), width: 0, height: 0 };
        }
        let caption = self.fitted(caption, "", metrics, canvas.width());
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
    fn size(&self, line: &Line, metrics: &Metrics) -> (u32, u32) {
        (line.width(metrics.text) + 3 * metrics.pad, metrics.text.ceil() as u32 + 2 * metrics.pad)
    }

    /// A text with `rest` behind it, cut where its tag would be wider than `width` pixels.
    fn fitted(&self, text: &str, rest: &str, metrics: &Metrics, width: u32) -> Line {
        Line::fitted(&self.fonts, text, rest, metrics.text, width.saturating_sub(3 * metrics.pad))
    }

    fn text(&self, canvas: &mut RgbImage, area: Area, line: &Line, metrics: &Metrics, colour: Rgb<u8>) {
        let (x, y) = (area.x + metrics.pad, area.y + metrics.pad);
        line.draw(canvas, colour, (x as i32, y as i32), metrics.text, &self.fonts);
    }
}

impl Tag {
    /// On a canvas that begins at `origin` of the picture, in colours as `paint` has them there.
    fn draw<C>(&self, canvas: &mut C, origin: (u32, u32), metrics: &Metrics, fonts: &Fonts, paint: impl Fn(Rgb<u8>) -> C::Pixel)
    where
        C: Canvas,
        <C::Pixel as Pixel>::Subpixel: Into<f32> + Clamp<f32>,
    {
        let Area { width, height, .. } = self.area;
        if width == 0 || height == 0 {
            return;
        }
        let (x, y) = ((self.area.x - origin.0) as i32, (self.area.y - origin.1) as i32);
        draw_filled_rect_mut(canvas, Rect::at(x, y).of_size(width, height), paint(self.colour));
        let ink = if colour::is_light(self.colour) { BLACK } else { WHITE };
        self.line.draw(canvas, paint(ink), (x + metrics.pad as i32, y + metrics.pad as i32), metrics.text, fonts);
    }

    /// The line to a box that the tag does not stand at, dark on both sides as outlines are.
    fn draw_leader<C: Canvas>(&self, canvas: &mut C, origin: (u32, u32), metrics: &Metrics, paint: impl Fn(Rgb<u8>) -> C::Pixel) {
        let Some(Leader { from, to }) = self.leader else { return };
        let at = |(x, y): (u32, u32)| (x as f32 - origin.0 as f32, y as f32 - origin.1 as f32);
        let inner = metrics.line.div_ceil(2);
        for (width, colour) in [(inner + 2 * metrics.edge, BLACK), (inner, self.colour)] {
            let back = (width / 2) as i32;
            for (x, y) in BresenhamLineIter::new(at(from), at(to)) {
                draw_filled_rect_mut(canvas, Rect::at(x - back, y - back).of_size(width, width), paint(colour));
            }
        }
    }
}

/// A box's outline on a canvas that begins at `origin` of the picture: the label's colour, with a dark edge on both sides that
/// holds on any background.
fn outline<C: Canvas>(canvas: &mut C, origin: (u32, u32), pixels: PixelBox, metrics: &Metrics, dark: C::Pixel, colour: C::Pixel) {
    let Area { x, y, width, height } = Area::of(pixels);
    for inset in 0..metrics.line + 2 * metrics.edge {
        let (width, height) = (width.saturating_sub(2 * inset), height.saturating_sub(2 * inset));
        if width == 0 || height == 0 {
            break;
        }
        let shade = if (metrics.edge..metrics.edge + metrics.line).contains(&inset) { colour } else { dark };
        let at = Rect::at((x + inset - origin.0) as i32, (y + inset - origin.1) as i32);
        draw_hollow_rect_mut(canvas, at.of_size(width, height), shade);
    }
}

#[cfg(test)]
pub(crate) mod tests;
