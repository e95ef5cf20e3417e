//! PaliGemma as a detector: a session on shared weights, with the bounds of the configuration and the drafts that all
//! workers share.

use image::RgbImage;

use crate::base::error::Result;
use crate::detect::{Detector, Drafts, Job};
use crate::model::{Limits, PaliGemma, Question, Session};
use crate::types::{Answer, Prompt};

/// One worker's session with the model.
pub struct PaliGemmaDetector {
    session: Session,
    limits: Limits,
    drafts: Drafts,
}

impl PaliGemmaDetector {
    /// A detector with caches of its own; the weights stay shared, and so do the drafts.
    pub fn new(model: &PaliGemma, limits: Limits, drafts: Drafts) -> Self {
        Self { session: model.session(), limits, drafts }
    }
}

impl Detector for PaliGemmaDetector {
    fn detect(&mut self, batch: &[Job]) -> Vec<Result<Answer>> {
        let Self { session, limits, drafts } = self;
        drafts.ask(batch, |questions| session.answer_all(questions, limits))
    }

    fn ask(&mut self, image: &RgbImage, prompt: &Prompt) -> Result<Answer> {
        self.session.answer(&Question { image, prompt: prompt.text(), draft: &[] }, &self.limits)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::detect::tests::job;
    use crate::model::{LoadOptions, Snapshot};
    use crate::types::{Device, Dtype, MinScore};

    #[test]
    fn a_still_scene_is_answered_alike_by_any_worker_and_in_any_company() {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
        let snapshot = Snapshot { folder: samples.join("demo-model"), name: "demo-model".to_owned() };
        let model = PaliGemma::load(&snapshot, LoadOptions::new(Device::Cpu, Dtype::Auto)).unwrap();
        let limits = Limits { max_new_tokens: 40, min_score: MinScore::default(), suppress: Vec::new() };
        let drafts = Drafts::default();
        let mut workers = [0, 1].map(|_| PaliGemmaDetector::new(&model, limits.clone(), drafts.clone()));
        let scene = Arc::new(image::open(samples.join("annotated.jpg")).unwrap().to_rgb8());
        let prompt = Arc::new(Prompt::from_labels(&["car", "person", "traffic light"]).unwrap());
        let look = |camera: &str| {
            let mut job = job(camera, 3);
            job.frame.image = scene.clone();
            Job { prompt: prompt.clone(), ..job }
        };
        let first = workers[0].detect(&[look("a")]).remove(0).unwrap();
        assert!(!first.detections.is_empty() && first.drafts_accepted == 0, "{first:?}");
        let second = workers[1].detect(&[look("b"), look("a"), job("c", 5)]);
        let [unknown, known, other] = <[_; 3]>::try_from(second).unwrap().map(Result::unwrap);
        assert_eq!(unknown, first);
        assert_eq!(known.drafts_accepted, first.tokens.len());
        assert_eq!(Answer { drafts_accepted: 0, ..known }, first);
        assert_ne!(other.tokens, first.tokens);
    }
}
