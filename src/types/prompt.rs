//! What a camera's frames are asked.

use crate::base::error::{Error, Kind, Result};
use crate::base::hash::{FNV_OFFSET, fnv1a};

/// The longest prompt taken, in bytes: the bound of the MQTT contract.
const MAX_BYTES: usize = 512;

/// The tasks that answer with boxes of what was asked for. The others (`caption en`, `answer en …`, `ocr`) answer in free text.
const TASKS_WITH_LABELS: [&str; 2] = ["detect ", "segment "];

/// A prompt as the model gets it (a newline is added there), with the labels it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    text: String,
    labels: Vec<String>,
    id: String,
}

impl Prompt {
    /// A prompt passed on as written, such as `detect cat; dog; car` or `caption en`.
    ///
    /// # Errors
    /// When it is empty, over 512 bytes, or holds control characters.
    pub fn new(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::new(Kind::Input, format!("prompt {why}; must be 1 to {MAX_BYTES} bytes on one line, such as \"detect cat ; dog\"")))
        };
        if text.trim().is_empty() {
            return refuse("is empty");
        }
        if text.len() > MAX_BYTES {
            return refuse(&format!("has {} bytes", text.len()));
        }
        if text.chars().any(char::is_control) {
            return refuse("holds a line break or another control character");
        }
        let asked = TASKS_WITH_LABELS.iter().find_map(|task| text.trim().strip_prefix(task)).unwrap_or_default();
        let labels = asked.split(';').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect();
        Ok(Self { text: text.to_owned(), labels, id: format!("{:08x}", fnv1a(FNV_OFFSET, text.as_bytes())) })
    }

    /// The prompt `detect cat ; traffic light` for a list of labels.
    ///
    /// # Errors
    /// When the list or a label is empty, a label holds `;`, or the prompt is one that `new` refuses.
    pub fn from_labels<S: AsRef<str>>(labels: &[S]) -> Result<Self> {
        let labels: Vec<&str> = labels.iter().map(|label| label.as_ref().trim()).collect();
        if labels.is_empty() {
            return Err(Error::new(Kind::Input, "labels is empty; must name at least one thing to look for"));
        }
        if let Some(bad) = labels.iter().find(|label| label.is_empty() || label.contains(';')) {
            return Err(Error::new(Kind::Input, format!("label {bad:?} cannot be asked for; must be words without ;")));
        }
        Self::new(&format!("detect {}", labels.join(" ; ")))
    }

    /// The prompt as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The labels a `detect` or `segment` prompt asks for; empty for other tasks.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Eight hexadecimal digits that differ between prompts and stay the same between runs.
    pub fn id(&self) -> &str {
        &self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_the_prompt_of_the_training_data() {
        let prompt = Prompt::from_labels(&["cat", "traffic light"]).unwrap();
        assert_eq!(prompt.text(), "detect cat ; traffic light");
        assert_eq!(prompt.labels(), ["cat", "traffic light"]);
    }

    #[test]
    fn a_written_prompt_stays_as_it_is() {
        let prompt = Prompt::new("detect cat; dog; car").unwrap();
        assert_eq!(prompt.text(), "detect cat; dog; car");
        assert_eq!(prompt.labels(), ["cat", "dog", "car"]);
    }

    #[test]
    fn every_task_passes_through_and_only_boxes_have_labels() {
        for text in ["caption en", "cap de", "answer en what is it?", "ocr", "describe en ; detect cat", "detection of cats", "detect"] {
            let prompt = Prompt::new(text).unwrap();
            assert_eq!((prompt.text(), prompt.labels()), (text, &[][..]));
        }
        assert_eq!(Prompt::new("segment cat ; traffic light").unwrap().labels(), ["cat", "traffic light"]);
    }

    #[test]
    fn ids_are_stable_and_differ() {
        assert_eq!(Prompt::new("a").unwrap().id(), "e40c292c"); // the published FNV-1a test vector
        assert_ne!(Prompt::new("detect cat").unwrap().id(), Prompt::new("detect dog").unwrap().id());
    }

    #[test]
    fn unusable_prompts_are_refused() {
        for bad in ["", "  ", "detect\ncat", &"x".repeat(513)] {
            assert!(Prompt::new(bad).is_err(), "{bad:?}");
        }
        assert!(Prompt::from_labels::<&str>(&[]).is_err());
        assert!(Prompt::from_labels(&["cat; dog"]).is_err());
    }
}
