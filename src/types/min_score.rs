//! How sure the model must have been for a detection to count.

use std::collections::BTreeMap;

/// The least score, in general and for single labels; 0 lets everything pass.
///
/// Labels are compared trimmed and without regard to case: the model's spelling of a word is its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MinScore {
    general: f32,
    /// By [`MinScore::key`].
    labels: BTreeMap<String, f32>,
}

impl MinScore {
    /// `general` for every label but those in `labels`; of a label that comes twice the last counts. All are in 0..=1.
    pub fn new(general: f32, labels: impl IntoIterator<Item = (String, f32)>) -> Self {
        Self { general, labels: labels.into_iter().map(|(label, score)| (Self::key(&label), score)).collect() }
    }

    /// The least score of a label.
    pub fn of(&self, label: &str) -> f32 {
        if self.labels.is_empty() {
            return self.general;
        }
        self.labels.get(&Self::key(label)).copied().unwrap_or(self.general)
    }

    /// A label as it is compared.
    pub fn key(label: &str) -> String {
        label_key(label)
    }
}

/// A label as it is compared: trimmed and without regard to case.
pub fn label_key(label: &str) -> String {
    label.trim().to_lowercase()
}

impl From<f32> for MinScore {
    fn from(general: f32) -> Self {
        Self::new(general, [])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_its_own_score_however_it_is_written() {
        let scores = MinScore::new(0.25, [("Traffic Light".to_owned(), 0.5), (" Zürich ".to_owned(), 0.0)]);
        for (label, least) in [("traffic light", 0.5), (" TRAFFIC LIGHT", 0.5), ("ZÜRICH", 0.0), ("light", 0.25), ("", 0.25)] {
            assert_eq!(scores.of(label), least, "{label}");
        }
        assert_eq!((MinScore::default().of("cat"), MinScore::from(0.75).of("cat")), (0.0, 0.75));
    }
}
