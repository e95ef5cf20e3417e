//! What each camera was answered last: the draft of its next answer. A scene that stands still repeats its answer, and
//! the model checks a known answer much faster than it writes one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::base::error::Result;
use crate::base::sync;
use crate::detect::Job;
use crate::model::Question;
use crate::types::{Answer, CameraId, Prompt};

/// The last answer per camera. Clones share it, for a camera's frames go to any worker; one answer a camera is kept.
#[derive(Clone, Debug, Default)]
pub struct Drafts(Arc<Mutex<HashMap<CameraId, Last>>>);

#[derive(Debug)]
struct Last {
    prompt: Arc<Prompt>,
    tokens: Vec<u32>,
}

impl Drafts {
    /// Asks about every job with its draft, and remembers the answers. A draft is used once: a frame that fails leaves
    /// none behind, so should the draft be at fault, the camera's next frame is free of it.
    pub(super) fn ask(&self, batch: &[Job], answer: impl FnOnce(&[Question<'_>]) -> Vec<Result<Answer>>) -> Vec<Result<Answer>> {
        let drafts: Vec<Vec<u32>> = {
            let mut known = self.lock();
            batch.iter().map(|job| take(&mut known, job)).collect()
        };
        let questions: Vec<Question<'_>> =
            batch.iter().zip(&drafts).map(|(job, draft)| Question { image: &job.frame.image, prompt: job.prompt.text(), draft }).collect();
        let answers = answer(&questions);
        if answers.len() == batch.len() {
            let mut known = self.lock();
            for (job, answer) in batch.iter().zip(&answers) {
                if let Ok(answer) = answer {
                    known.insert(job.frame.camera.clone(), Last { prompt: job.prompt.clone(), tokens: answer.tokens.clone() });
                }
            }
        }
        answers
    }

    /// Forgets a camera that is gone.
    pub fn forget(&self, camera: &CameraId) {
        self.lock().remove(camera);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CameraId, Last>> {
        sync::lock(&self.0)
    }
}

/// The job's draft, empty where its camera was asked nothing yet or something else.
fn take(known: &mut HashMap<CameraId, Last>, job: &Job) -> Vec<u32> {
    let last = known.remove(&job.frame.camera).filter(|last| last.prompt.text() == job.prompt.text());
    last.map(|last| last.tokens).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::{Error, Kind};
    use crate::detect::tests::{answer, job};

    /// Asks with a model that answers `tokens`, or fails where there are none; returns the drafts it was given.
    fn drafts(drafts: &Drafts, asked: &[(&str, &str)], tokens: &[&[u32]]) -> Vec<Vec<u32>> {
        let batch: Vec<Job> =
            asked.iter().map(|(camera, prompt)| Job { prompt: Arc::new(Prompt::new(prompt).unwrap()), ..job(camera, 3) }).collect();
        let mut given = Vec::new();
        let answers = drafts.ask(&batch, |questions| {
            given = questions.iter().map(|question| question.draft.to_vec()).collect();
            let each = tokens.iter().map(|tokens| {
                if tokens.is_empty() { Err(Error::new(Kind::Input, "no")) } else { Ok(Answer { tokens: tokens.to_vec(), ..answer("") }) }
            });
            each.collect()
        });
        assert_eq!(answers.len(), tokens.len());
        given
    }

    #[test]
    fn the_last_answer_of_a_camera_to_a_prompt_is_its_next_draft() {
        let known = Drafts::default();
        let none: &[u32] = &[];
        assert_eq!(drafts(&known, &[("a", "detect x"), ("b", "detect x")], &[&[1, 2], &[3]]), [none, none]);
        // Another worker, another order, another share of the cameras.
        assert_eq!(drafts(&known.clone(), &[("c", "detect x"), ("b", "detect x")], &[&[5], &[4]]), [none, &[3]]);
        assert_eq!(drafts(&known, &[("a", "detect x")], &[&[1, 2]]), [&[1, 2]]);
        assert_eq!(drafts(&known, &[("b", "detect x")], &[&[4]]), [&[4]]);
        assert_eq!(known.lock().len(), 3);
    }

    #[test]
    fn another_prompt_forgets_the_draft() {
        let known = Drafts::default();
        drafts(&known, &[("a", "detect x")], &[&[1]]);
        assert_eq!(drafts(&known, &[("a", "detect y")], &[&[2]]), [[0_u32; 0]]);
        assert_eq!(drafts(&known, &[("a", "detect y")], &[&[3]]), [[2]]);
        assert_eq!(drafts(&known, &[("a", "detect x")], &[&[4]]), [[0_u32; 0]]);
        assert_eq!(known.lock().len(), 1);
    }

    #[test]
    fn a_failed_frame_drops_its_draft_and_no_other() {
        let known = Drafts::default();
        drafts(&known, &[("a", "detect x"), ("b", "detect x")], &[&[1], &[2]]);
        drafts(&known, &[("a", "detect x"), ("b", "detect x")], &[&[], &[2]]);
        assert_eq!(drafts(&known, &[("a", "detect x"), ("b", "detect x")], &[&[3], &[4]]), [&[0_u32; 0][..], &[2]]);
        // Answers that cannot be told apart are no drafts.
        drafts(&known, &[("a", "detect x"), ("b", "detect x")], &[&[5]]);
        assert!(known.lock().is_empty());
    }
}
