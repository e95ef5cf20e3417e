//! `min_score` and the table `min_scores`: how sure the model must be, in general and for single labels.

use std::collections::BTreeSet;

use crate::config::CameraConfig;
use crate::config::reader::{At, Section, nearest, quoted};
use crate::types::MinScore;

/// The labels that have a score of their own, to be held against what the cameras ask for.
pub(super) struct Labels<'d, 'a> {
    section: Section<'d, 'a>,
    written: Vec<At<String>>,
}

/// Reads both keys of `[model]`.
pub(super) fn read<'d, 'a>(model: &mut Section<'d, 'a>) -> (MinScore, Labels<'d, 'a>) {
    let general = model.number("min_score", 0.0..=1.0, 0.0) as f32;
    let section = model.section("min_scores");
    let mut scores: Vec<(String, f32)> = Vec::new();
    let mut written = Vec::new();
    for (label, score) in section.numbers(0.0..=1.0) {
        let key = MinScore::key(&label.value);
        if scores.iter().any(|(known, _)| *known == key) {
            section.fault(
                &quoted(&label.value),
                label.offset,
                "is there in another spelling too; case does not count, must be one of them",
            );
        } else {
            written.push(label);
        }
        scores.push((key, score as f32));
    }
    (MinScore::new(general, scores), Labels { section, written })
}

impl Labels<'_, '_> {
    /// A label that no camera asks for is a slip of the pen. Of `written` cameras in the file all must have been read, and
    /// all must ask for labels: what a free task answers is not known.
    pub(super) fn check(&self, cameras: &[CameraConfig], written: usize) {
        if cameras.len() < written || cameras.iter().any(|camera| camera.prompt.labels().is_empty()) {
            return;
        }
        let asked: BTreeSet<String> = cameras.iter().flat_map(|camera| camera.prompt.labels()).map(|label| MinScore::key(label)).collect();
        for label in &self.written {
            let key = MinScore::key(&label.value);
            if asked.contains(&key) {
                continue;
            }
            let hint = match nearest(&key, asked.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {}?", quoted(near)),
                None => format!("asked for: {}", asked.iter().map(|label| quoted(label)).collect::<Vec<_>>().join(", ")),
            };
            self.section.fault(&quoted(&label.value), label.offset, &format!("is a label that no camera asks for; {hint}"));
        }
    }
}
