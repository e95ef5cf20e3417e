//! PaliGemma as a detector: a session on shared weights, with the bounds of the configuration.

use image::RgbImage;

use crate::base::error::Result;
use crate::detect::Detector;
use crate::model::{Limits, PaliGemma, Question, Session};
use crate::types::{Answer, Prompt};

/// One worker's session with the model.
pub struct PaliGemmaDetector {
    session: Session,
    limits: Limits,
}

impl PaliGemmaDetector {
    /// A detector with caches of its own; the weights stay shared.
    pub fn new(model: &PaliGemma, limits: Limits) -> Self {
        Self { session: model.session(), limits }
    }
}

impl Detector for PaliGemmaDetector {
    fn detect(&mut self, image: &RgbImage, prompt: &Prompt) -> Result<Answer> {
        self.session.answer(&Question { image, prompt: prompt.text(), draft: &[] }, &self.limits)
    }
}
