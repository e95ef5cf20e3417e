//! Boxes for live video, drawn on transparent ground: as few pixels and as few parts as make the blending cheap. And the
//! slate that is shown for a camera of which nothing comes.

use std::time::Instant;

use image::{Rgb, RgbImage, Rgba, RgbaImage};
use imageproc::drawing::draw_filled_rect_mut;
use imageproc::rect::Rect;

use crate::annotate::layout::{Area, Ground, Leader};
use crate::annotate::text::Line;
use crate::annotate::{Annotator, BLACK, Metrics, Tag, WHITE, outline};
use crate::types::{Mark, Patch, PixelBox};

/// Lines that a reason may take on a slate.
const LINES: usize = 4;

/// To begin with a patch takes as long as so many of its pixels.
const PATCH: u64 = 4000;

/// A mark as it will be drawn.
struct Shown {
    pixels: PixelBox,
    tag: Tag,
    /// Of 255.
    alpha: u8,
}

/// Something to be drawn: a side of a mark's outline, its tag, or the line from the one to the other.
#[derive(Clone, Copy)]
enum Piece {
    Side(usize, Area),
    Leader(usize),
    Tag(usize),
}

/// Pieces on one patch.
struct Group {
    area: Area,
    pieces: Vec<Piece>,
}

impl Annotator {
    /// Boxes and tags of what is seen of `marks` at a moment, for video of `size` (width, height; pixels). A mark that fades
    /// tells its age.
    pub fn overlay(&self, marks: &[Mark], now: Instant, size: (u32, u32)) -> Vec<Patch> {
        if size.0 == 0 || size.1 == 0 {
            return Vec::new();
        }
        let metrics = Metrics::of(size);
        let marks: Vec<(&Mark, PixelBox)> = marks.iter().map(|mark| (mark, mark.box01.to_pixels(size.0, size.1))).collect();
        let boxes: Vec<PixelBox> = marks.iter().filter(|(mark, _)| mark.opacity(now) > 0).map(|(_, pixels)| *pixels).collect();
        let mut taken = Vec::new();
        let shown = marks.iter().filter_map(|(mark, pixels)| {
            let shown = self.shown(mark, *pixels, now, &metrics, &Ground { bounds: size, taken: &taken, boxes: &boxes })?;
            taken.push(shown.tag.area.grown(metrics.edge));
            Some(shown)
        });
        let shown: Vec<Shown> = shown.collect();
        let pieces = shown.iter().enumerate().flat_map(|(index, one)| {
            let group = |area: Area, piece: Piece| Group { area, pieces: vec![piece] };
            let leader = one.tag.leader.map(|line| group(along(&line, &metrics, size), Piece::Leader(index)));
            let sides = sides(Area::of(one.pixels), &metrics).map(|side| group(side, Piece::Side(index, side)));
            sides.into_iter().chain([group(one.tag.area, Piece::Tag(index))]).chain(leader)
        });
        let pieces = pieces.filter(|group| group.area.width > 0 && group.area.height > 0).collect();
        // What the first pass has made may suit what it made later.
        let groups = gathered(gathered(pieces));
        groups.iter().map(|group| self.patch(group, &shown, &metrics)).collect()
    }

    fn shown(&self, mark: &Mark, pixels: PixelBox, now: Instant, metrics: &Metrics, ground: &Ground<'_>) -> Option<Shown> {
        let opacity = mark.opacity(now);
        if opacity == 0 {
            return None;
        }
        let age = if opacity < Mark::WHOLE { format!("  {} s ago", mark.age(now).as_secs()) } else { String::new() };
        let tag = self.tag(&mark.label, &format!(" {:.2}{age}", mark.score), pixels, metrics, ground);
        let alpha = u8::try_from(255 * u16::from(opacity) / u16::from(Mark::WHOLE)).unwrap_or(u8::MAX);
        Some(Shown { pixels, tag, alpha })
    }

    fn patch(&self, group: &Group, shown: &[Shown], metrics: &Metrics) -> Patch {
        let Area { x, y, width, height } = group.area;
        let mut image = RgbaImage::new(width, height);
        for piece in &group.pieces {
            if let Piece::Side(index, side) = piece {
                let Shown { pixels, tag, alpha } = &shown[*index];
                // On ground of its own: another side that reaches onto this patch stands on its own patch, too.
                let mut drawn = RgbaImage::new(side.width, side.height);
                outline(&mut drawn, (side.x, side.y), *pixels, metrics, with(BLACK, *alpha), with(tag.colour, *alpha));
                for (right, down, pixel) in drawn.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[3] > 0) {
                    image.put_pixel(side.x - x + right, side.y - y + down, *pixel);
                }
            }
        }
        for piece in &group.pieces {
            if let Piece::Leader(index) = piece {
                let Shown { tag, alpha, .. } = &shown[*index];
                tag.draw_leader(&mut image, (x, y), metrics, |colour| with(colour, *alpha));
            }
        }
        // No line runs through a text, of a tag on another patch neither.
        for Area { x: left, y: top, width, height } in shown.iter().map(|one| one.tag.area) {
            if width > 0 && height > 0 {
                let place = Rect::at(left as i32 - x as i32, top as i32 - y as i32).of_size(width, height);
                draw_filled_rect_mut(&mut image, place, Rgba([0; 4]));
            }
        }
        for piece in &group.pieces {
            if let Piece::Tag(index) = piece {
                let Shown { tag, alpha, .. } = &shown[*index];
                tag.draw(&mut image, (x, y), metrics, &self.fonts, |colour| with(colour, *alpha));
            }
        }
        Patch { x, y, image }
    }

    /// The last picture of a camera, darkened, with what there is to say in its middle; without a picture, grey of `size`.
    pub fn slate(&self, picture: Option<&RgbImage>, size: (u32, u32), lines: &[String]) -> RgbImage {
        let mut canvas = picture.cloned().unwrap_or_else(|| RgbImage::from_pixel(size.0.max(1), size.1.max(1), Rgb([120; 3])));
        canvas.iter_mut().for_each(|value| *value /= 3);
        let plain = Metrics::of(canvas.dimensions());
        let metrics = Metrics { text: plain.text * 1.5, ..plain };
        let room = canvas.width() * 9 / 10;
        let lines: Vec<Line> = lines.iter().flat_map(|line| self.wrapped(line, &metrics, room)).collect();
        let step = self.size(&Line::default(), &metrics).1;
        let top = (canvas.height() / 2).saturating_sub(step * lines.len() as u32 / 2);
        for (row, line) in (0..).zip(&lines) {
            let width = self.size(line, &metrics).0;
            let x = canvas.width().saturating_sub(width) / 2;
            let area = Area { x, y: top + row * step, width, height: step };
            self.text(&mut canvas, area, line, &metrics, WHITE);
        }
        canvas
    }

    /// A sentence on lines that are no wider than `room` pixels.
    fn wrapped(&self, text: &str, metrics: &Metrics, room: u32) -> Vec<Line> {
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            let longer = lines.last().map(|line| format!("{line} {word}"));
            let fits = |longer: &String| self.size(&Line::of(&self.fonts, longer), metrics).0 <= room;
            match longer.filter(|longer| lines.len() == LINES || fits(longer)) {
                Some(longer) => {
                    lines.pop();
                    lines.push(longer);
                }
                None => lines.push(word.to_owned()),
            }
        }
        lines.iter().map(|line| self.fitted(line, "", metrics, room)).collect()
    }
}

/// What a leader covers, its width included.
fn along(Leader { from, to }: &Leader, metrics: &Metrics, size: (u32, u32)) -> Area {
    let (left, top) = (from.0.min(to.0).saturating_sub(metrics.line), from.1.min(to.1).saturating_sub(metrics.line));
    let (right, bottom) = ((from.0.max(to.0) + metrics.line + 1).min(size.0), (from.1.max(to.1) + metrics.line + 1).min(size.1));
    Area { x: left, y: top, width: right - left, height: bottom - top }
}

/// The sides of an outline: above, below, left, right. What is between them is not touched, and they share no pixel.
fn sides(Area { x, y, width, height }: Area, metrics: &Metrics) -> [Area; 4] {
    let line = metrics.line + 2 * metrics.edge;
    let above = line.min(height);
    let below = line.min(height - above);
    let left = line.min(width);
    let right = line.min(width - left);
    let (top, between) = (y + above, height - above - below);
    [
        Area { x, y, width, height: above },
        Area { x, y: y + height - below, width, height: below },
        Area { x, y: top, width: left, height: between },
        Area { x: x + width - right, y: top, width: right, height: between },
    ]
}

/// Puts pieces together where that is cheaper: each pixel of a patch is unpacked, blended and packed, and each patch takes a
/// moment to begin with, as long as some pixels.
fn gathered(pieces: Vec<Group>) -> Vec<Group> {
    let cost = |area: &Area| u64::from(area.height) * u64::from(area.width) + PATCH;
    let mut groups: Vec<Group> = Vec::new();
    for piece in pieces {
        let apart = cost(&piece.area);
        let saved = |group: &Group| (cost(&group.area) + apart).checked_sub(cost(&around(&group.area, &piece.area)));
        let best = groups.iter().enumerate().filter_map(|(index, group)| Some((saved(group)?, index))).max();
        match best {
            Some((_, index)) => {
                let group = &mut groups[index];
                group.area = around(&group.area, &piece.area);
                group.pieces.extend(piece.pieces);
            }
            None => groups.push(piece),
        }
    }
    groups
}

fn around(a: &Area, b: &Area) -> Area {
    let (x, y) = (a.x.min(b.x), a.y.min(b.y));
    let (right, bottom) = ((a.x + a.width).max(b.x + b.width), (a.y + a.height).max(b.y + b.height));
    Area { x, y, width: right - x, height: bottom - y }
}

fn with(Rgb([r, g, b]): Rgb<u8>, alpha: u8) -> Rgba<u8> {
    Rgba([r, g, b, alpha])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::annotate::colour;
    use crate::annotate::tests::alone;
    use crate::types::Box01;

    fn mark(label: &str, [y_min, x_min, y_max, x_max]: [f32; 4], seen: Instant) -> Mark {
        let box01 = Box01 { y_min, x_min, y_max, x_max };
        Mark { label: label.into(), score: 0.9, box01, seen, lasts: Duration::from_secs(5) }
    }

    /// The pixel at a place of the whole picture, of the last patch that has one there.
    fn at(patches: &[Patch], x: u32, y: u32) -> Option<Rgba<u8>> {
        let within =
            |patch: &&Patch| x >= patch.x && y >= patch.y && x < patch.x + patch.image.width() && y < patch.y + patch.image.height();
        patches.iter().rfind(within).map(|patch| *patch.image.get_pixel(x - patch.x, y - patch.y))
    }

    /// The pixels there of all patches.
    fn at_any(patches: &[Patch], x: u32, y: u32) -> Vec<Rgba<u8>> {
        patches.iter().filter_map(|patch| at(std::slice::from_ref(patch), x, y)).collect()
    }

    #[test]
    fn a_box_is_drawn_in_its_colour_on_nothing() {
        let (annotator, now) = (Annotator::new().unwrap(), Instant::now());
        let patches = annotator.overlay(&[mark("cat", [0.25, 0.25, 0.75, 0.75], now)], now, (640, 480));
        let Rgb([r, g, b]) = colour::of("cat");
        assert_eq!(at(&patches, 161, 240), Some(Rgba([r, g, b, 255])));
        assert!(at_any(&patches, 320, 240).iter().all(|pixel| pixel.0[3] == 0), "nothing inside");
        assert_eq!(at(&patches, 10, 10), None);
        let pixels: u32 = patches.iter().map(|patch| patch.image.width() * patch.image.height()).sum();
        assert!(pixels < 640 * 480 / 3, "{pixels}");
    }

    #[test]
    fn a_box_that_was_not_seen_for_long_fades_and_vanishes() {
        let (annotator, seen) = (Annotator::new().unwrap(), Instant::now());
        let alpha = |seconds: u64| {
            let patches =
                annotator.overlay(&[mark("cat", [0.25, 0.25, 0.75, 0.75], seen)], seen + Duration::from_secs(seconds), (640, 480));
            at(&patches, 161, 240).map(|pixel| pixel.0[3])
        };
        assert_eq!([0, 5, 6, 7].map(alpha), [Some(255), Some(255), Some(127), None]);
    }

    #[test]
    fn tags_stay_where_they_are_between_looks_and_when_another_object_comes() {
        let (annotator, now) = (alone(), Instant::now());
        let sides = [[0.3, 0.3, 0.5, 0.5], [0.3, 0.32, 0.5, 0.52], [0.32, 0.3, 0.52, 0.5]];
        let marks = sides.map(|sides| mark("cat", sides, now));
        let drawn = |marks: &[Mark], after: u64| {
            let mut canvas = RgbaImage::new(640, 480);
            for patch in annotator.overlay(marks, now + Duration::from_secs(after), (640, 480)) {
                image::imageops::overlay(&mut canvas, &patch.image, i64::from(patch.x), i64::from(patch.y));
            }
            canvas
        };
        assert!(drawn(&marks, 0) == drawn(&marks, 4));
        let more = [marks.to_vec(), vec![mark("dog", [0.7, 0.7, 0.9, 0.9], now)]].concat();
        let part = |canvas: RgbaImage| image::imageops::crop_imm(&canvas, 0, 0, 440, 300).to_image();
        assert!(part(drawn(&marks, 0)) == part(drawn(&more, 0)));
    }

    #[test]
    fn a_tag_apart_from_its_box_has_a_line_to_it() {
        let (annotator, now) = (alone(), Instant::now());
        let marks = vec![mark("cat", [0.5, 0.5, 0.54, 0.53], now); 9];
        let metrics = Metrics::of((640, 480));
        let pixels = marks[0].box01.to_pixels(640, 480);
        let (mut taken, boxes) = (Vec::new(), vec![pixels; 9]);
        let leaders = marks.iter().filter_map(|mark| {
            let tag = annotator.tag(&mark.label, " 0.90", pixels, &metrics, &Ground { bounds: (640, 480), taken: &taken, boxes: &boxes });
            taken.push(tag.area.grown(metrics.edge));
            tag.leader
        });
        let leaders: Vec<Leader> = leaders.collect();
        assert!(!leaders.is_empty() && leaders.len() < 7, "{leaders:?}");
        // Each line is seen, in the label's colour, from its tag on.
        let patches = annotator.overlay(&marks, now, (640, 480));
        let Rgb([r, g, b]) = colour::of("cat");
        for Leader { from: (x, y), to } in leaders {
            let near = (x.abs_diff(to.0).min(1), y.abs_diff(to.1).min(1));
            let step = |from: u32, to: u32, by: u32| if to < from { from - 2 * by } else { from + 2 * by };
            let drawn = at_any(&patches, step(x, to.0, near.0), step(y, to.1, near.1));
            assert!(drawn.contains(&Rgba([r, g, b, 255])), "{x} {y} to {to:?}: {drawn:?}");
        }
    }

    #[test]
    fn patches_are_few_where_boxes_are_small_and_leave_out_what_is_inside_of_large_ones() {
        let (annotator, now) = (Annotator::new().unwrap(), Instant::now());
        let patches = |boxes: [[f32; 4]; 2]| annotator.overlay(&boxes.map(|sides| mark("cat", sides, now)), now, (1920, 1080));
        let pixels = |patches: &[Patch]| -> u32 { patches.iter().map(|patch| patch.image.width() * patch.image.height()).sum() };
        let small = patches([[0.5, 0.5, 0.53, 0.52], [0.8, 0.8, 0.83, 0.82]]);
        assert!(small.len() <= 4, "{}", small.len());
        let large = patches([[0.1, 0.1, 0.5, 0.4], [0.3, 0.5, 0.9, 0.9]]);
        let inside = (0.4 * 0.3 + 0.6 * 0.4) * 1920.0 * 1080.0;
        assert!(large.len() <= 10 && f64::from(pixels(&large)) < inside * 0.12, "{} patches, {} pixels", large.len(), pixels(&large));
    }

    #[test]
    fn a_box_that_fades_does_so_evenly_at_its_corners_too() {
        let (annotator, seen) = (Annotator::new().unwrap(), Instant::now());
        for sides in [[0.25, 0.25, 0.75, 0.75], [0.5, 0.5, 0.53, 0.52]] {
            let patches = annotator.overlay(&[mark("cat", sides, seen)], seen + Duration::from_secs(6), (640, 480));
            let mut drawn = vec![0; 640 * 480];
            for patch in &patches {
                for (x, y, _) in patch.image.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[3] > 0) {
                    drawn[((patch.y + y) * 640 + patch.x + x) as usize] += 1;
                }
            }
            assert!(drawn.iter().all(|times| *times <= 1) && drawn.contains(&1), "something is drawn on two patches");
        }
    }

    #[test]
    fn any_marks_on_any_size_are_drawn_without_a_panic() {
        let (annotator, now) = (Annotator::new().unwrap(), Instant::now());
        let sides = [[0.0, 0.0, 1.0, 1.0], [0.999, 0.999, 1.0, 1.0], [0.0, 0.98, 0.01, 1.0], [0.5, 0.5, 0.5, 0.5]];
        let marks: Vec<Mark> =
            sides.iter().flat_map(|sides| ["x", "a label that is too long for it", "猫\n"].map(|l| mark(l, *sides, now))).collect();
        for size in [(0, 0), (1, 1), (3, 200), (1920, 1080)] {
            for patch in annotator.overlay(&marks, now, size) {
                assert!(patch.x + patch.image.width() <= size.0 && patch.y + patch.image.height() <= size.1);
            }
            let slate = annotator.slate(None, size, &["street".to_owned(), "backoff ".repeat(60)]);
            assert_eq!(slate.dimensions(), (size.0.max(1), size.1.max(1)));
        }
    }

    #[test]
    fn a_slate_is_the_darkened_picture_with_words() {
        let picture = RgbImage::from_pixel(640, 360, Rgb([150, 90, 30]));
        let slate = Annotator::new().unwrap().slate(Some(&picture), (0, 0), &["street".to_owned(), "backoff".to_owned()]);
        assert_eq!(*slate.get_pixel(5, 5), Rgb([50, 30, 10]));
        assert!(slate.pixels().any(|pixel| *pixel == WHITE));
    }
}
