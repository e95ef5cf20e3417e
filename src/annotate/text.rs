//! A line of text in as many fonts as it needs: laid out, measured, cut and drawn.

use std::sync::Arc;

use ab_glyph::{Font, GlyphId, ScaleFont};
use image::Pixel;
use imageproc::definitions::Clamp;
use imageproc::drawing::{Canvas, draw_text_mut};
use unicode_segmentation::UnicodeSegmentation;

use crate::annotate::fonts::{Face, Fonts};
use crate::annotate::script;

/// Letters from left to right.
#[derive(Default)]
pub(super) struct Line(Vec<Run>);

/// Letters of one font.
struct Run {
    face: Arc<Face>,
    text: String,
}

impl Line {
    /// A text as it can be drawn. Of a text that is not empty something is always seen.
    pub(super) fn of(fonts: &Fonts, written: &str) -> Self {
        let text = script::composed(written);
        let text = script::joined(&text);
        let mut letters = Letters::default();
        let mut last = None;
        for c in text.chars() {
            letters.owe(c);
            match fonts.with(c, last.as_ref()).filter(|_| !script::needs_shaping(c)) {
                Some(face) => {
                    letters.push(c, &face);
                    last = Some(face).filter(|face| !Arc::ptr_eq(face, fonts.own())).or(last);
                }
                None => letters.spell(&script::spelled(c), fonts.own()),
            }
        }
        if letters.text.is_empty() && !written.is_empty() {
            letters.push('?', fonts.own());
        }
        letters.line()
    }

    /// This, then another.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// As much of a text as is no wider than `width` pixels with `rest` behind it. What is cut ends with an ellipsis; where that
    /// leaves nothing of the text, the rest goes.
    pub(super) fn fitted(fonts: &Fonts, text: &str, rest: &str, height: f32, width: u32) -> Self {
        let whole = |text: &str, rest: &str| Self::of(fonts, text).and(Self::of(fonts, rest));
        let fits = |line: &Self| line.width(height) <= width;
        let line = whole(text, rest);
        if fits(&line) {
            return line;
        }
        let ends: Vec<usize> = text.grapheme_indices(true).map(|(at, _)| at).collect();
        let cut = |rest: &str| {
            // So many fit by halving; letters that join may be wider than those after them, so it is looked at again.
            let within = |end: usize| format!("{}…", text[..end].trim_end());
            let count = ends.partition_point(|end| fits(&whole(&within(*end), rest)));
            let mut lines = ends[..count].iter().rev().map(|end| (*end, whole(&within(*end), rest)));
            lines.find(|(end, line)| *end > 0 && fits(line)).map(|(_, line)| line)
        };
        cut(rest).or_else(|| cut("").filter(|_| !rest.is_empty())).unwrap_or_else(|| Self::of(fonts, "…"))
    }

    /// Of a text of `height` pixels.
    pub(super) fn width(&self, height: f32) -> u32 {
        self.0.iter().map(|run| run.width(height)).sum::<f32>().ceil() as u32
    }

    /// Draws it with its top left at a place.
    pub(super) fn draw<C>(&self, canvas: &mut C, colour: C::Pixel, (x, y): (i32, i32), height: f32, fonts: &Fonts)
    where
        C: Canvas,
        <C::Pixel as Pixel>::Subpixel: Into<f32> + Clamp<f32>,
    {
        let ground = fonts.own().ascent(height);
        let mut pen = 0.0;
        for run in &self.0 {
            let (right, down) = (f32::round(pen) as i32, (ground - run.face.ascent(height)).round() as i32);
            draw_text_mut(canvas, colour, x + right, y + down, run.face.scale(height), &run.face.font, &run.text);
            pen += run.width(height);
        }
    }
}

impl Run {
    fn width(&self, height: f32) -> f32 {
        let font = self.face.font.as_scaled(self.face.scale(height));
        let mut last: Option<GlyphId> = None;
        let advance = |c: char| {
            let id = font.glyph_id(c);
            // The order of the two is that of the drawing.
            let kern = last.replace(id).map_or(0.0, |last| font.kern(id, last));
            font.h_advance(id) + kern
        };
        self.text.chars().map(advance).sum()
    }
}

/// Letters in the order of reading, each with its font.
#[derive(Default)]
struct Letters {
    text: Vec<(char, Arc<Face>)>,
    /// A spelled word ended: whatever follows stands apart.
    word: Option<Arc<Face>>,
}

impl Letters {
    /// Puts a space behind a spelled word, if another letter follows.
    fn owe(&mut self, next: char) {
        if let Some(face) = self.word.take().filter(|_| next != ' ') {
            self.push(' ', &face);
        }
    }

    fn push(&mut self, c: char, face: &Arc<Face>) {
        self.text.push((c, face.clone()));
    }

    fn spell(&mut self, spelled: &str, face: &Arc<Face>) {
        let word = spelled.trim_end();
        let apart = word.len() < spelled.len();
        if apart && self.text.last().is_some_and(|(last, _)| *last != ' ') {
            self.push(' ', face);
        }
        word.chars().for_each(|c| self.push(c, face));
        self.word = apart.then(|| face.clone());
    }

    fn line(self) -> Line {
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |c: char, face: &Arc<Face>| match runs.last_mut() {
            Some(run) if Arc::ptr_eq(&run.face, face) => run.text.push(c),
            _ => runs.push(Run { face: face.clone(), text: c.to_string() }),
        };
        let text: String = self.text.iter().map(|(c, _)| c).collect();
        match script::order(&text) {
            None => self.text.iter().for_each(|(c, face)| add(*c, face)),
            Some(places) => places.iter().for_each(|(place, mirror)| {
                let (c, face) = &self.text[*place];
                add(if *mirror { script::mirrored(*c) } else { *c }, face);
            }),
        }
        Line(runs)
    }
}

#[cfg(test)]
impl Line {
    /// From left to right.
    pub(super) fn letters(&self) -> String {
        self.0.iter().map(|run| run.text.as_str()).collect()
    }
}
