//! Lends the annotator's hand to live video: neither knows the other.

use std::time::Instant;

use image::RgbImage;

use crate::annotate::Annotator;
use crate::sink::video::Painter;
use crate::types::{Mark, Patch};

/// Draws what live video shows beside the camera's pictures.
pub(super) struct Brush(Annotator);

impl Brush {
    /// One for all cameras.
    pub(super) fn new(annotator: Annotator) -> Self {
        Self(annotator)
    }
}

impl Painter for Brush {
    fn boxes(&self, marks: &[Mark], now: Instant, size: (u32, u32)) -> Vec<Patch> {
        self.0.overlay(marks, now, size)
    }

    fn slate(&self, picture: Option<&RgbImage>, size: (u32, u32), lines: &[String]) -> RgbImage {
        self.0.slate(picture, size, lines)
    }
}
