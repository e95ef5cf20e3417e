//! The parts of the network and the names their tensors go by.

use super::checkpoint::Checkpoint;

/// A part of the network whose tensors share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The decoder.
    Language,
    /// The image tower.
    Vision,
    /// The layer between them.
    Projector,
    /// The output table, where it is not the embedding table.
    Head,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Language, Self::Vision, Self::Projector, Self::Head];

    /// The prefixes in use, the hub's own first.
    pub fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Language => &["language_model.model", "model.language_model", "model.language_model.model"],
            Self::Vision => &["vision_tower.vision_model", "model.vision_tower.vision_model", "model.vision_tower", "vision_tower"],
            Self::Projector => &["multi_modal_projector", "model.multi_modal_projector"],
            Self::Head => &["language_model.lm_head", "lm_head", "model.lm_head"],
        }
    }

    /// The tensor by which a prefix is known, without the prefix.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Language => "embed_tokens.weight",
            Self::Vision => "embeddings.patch_embedding.weight",
            Self::Projector => "linear.weight",
            Self::Head => "weight",
        }
    }

    /// The prefix that a checkpoint uses; the hub's own where none is found.
    pub fn prefix(self, checkpoint: &Checkpoint) -> &'static str {
        let found = self.prefixes().iter().find(|prefix| checkpoint.find(&format!("{prefix}.{}", self.sign())).is_some());
        found.unwrap_or(&self.prefixes()[0])
    }

    /// Its name in a file of quantised weights: short, for names there are bounded, and the same for every naming.
    pub fn short(self) -> &'static str {
        match self {
            Self::Language => "text",
            Self::Vision => "vision",
            Self::Projector => "projector",
            Self::Head => "head",
        }
    }
}
