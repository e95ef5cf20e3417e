//! What a checkpoint holds that the network has no use for: refused, because a tensor that is left out without a word is
//! how a wrong network passes for the right one.
//!
//! Let pass is what `transformers` 5.23 lets pass or derives itself:
//! - `position_ids` and `rotary_emb.inv_freq`: counted and computed here, buffers in older checkpoints
//!   (`_adjust_missing_and_unexpected_keys`);
//! - the pooling head of the tower, which a checkpoint has where `vision_use_head` was not switched off: the reference
//!   computes it and PaliGemma never reads what it gives;
//! - an output table beside the embedding table it is tied to, if both are equal; where they differ the reference unties
//!   them against the config's word, so that is refused.

use std::collections::BTreeSet;

use super::checkpoint::{Checkpoint, Stored};
use super::part::Part;
use crate::base::{Error, Kind, Result};

/// The tensors of `SiglipMultiheadAttentionPoolingHead`.
const POOLING: [&str; 11] = [
    "probe",
    "attention.in_proj_weight",
    "attention.in_proj_bias",
    "attention.out_proj.weight",
    "attention.out_proj.bias",
    "layernorm.weight",
    "layernorm.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
];

/// Refuses the first tensor that is not among those asked for and may not be passed over.
///
/// # Errors
/// With its name and shape.
pub fn check(checkpoint: &Checkpoint, asked: &BTreeSet<String>) -> Result<()> {
    for (name, stored) in checkpoint.tensors().filter(|(name, _)| !asked.contains(*name)) {
        if let Some(why) = objection(checkpoint, asked, name, stored) {
            let folder = checkpoint.folder().display();
            return Err(Error::new(Kind::Model, format!("tensor {name} in {folder} has shape {:?} and {why}", stored.shape)));
        }
    }
    Ok(())
}

/// Why a tensor that nobody asked for is refused; `None` where it may be passed over.
fn objection(checkpoint: &Checkpoint, asked: &BTreeSet<String>, name: &str, stored: &Stored) -> Option<String> {
    if let Some(other) = twin(checkpoint, asked, name) {
        return Some(format!("is there a second time as {other}; must be there once"));
    }
    if rest(Part::Head, name) == Some(Part::Head.sign()) {
        return untied(checkpoint, stored);
    }
    let derived = rest(Part::Vision, name) == Some("embeddings.position_ids") || name.ends_with(".rotary_emb.inv_freq");
    let pooling = rest(Part::Vision, name).and_then(|rest| rest.strip_prefix("head.")).is_some_and(|rest| POOLING.contains(&rest));
    (!derived && !pooling).then(|| "nothing in this network takes it".to_owned())
}

/// The same tensor under the naming that the network was read by.
fn twin(checkpoint: &Checkpoint, asked: &BTreeSet<String>, name: &str) -> Option<String> {
    Part::ALL.iter().find_map(|part| {
        let used = part.prefix(checkpoint);
        let others = part.prefixes().iter().filter(|prefix| **prefix != used);
        let names = others.filter_map(|prefix| Some(format!("{used}{}", name.strip_prefix(prefix).filter(|rest| rest.starts_with('.'))?)));
        names.into_iter().find(|name| asked.contains(name))
    })
}

/// What is left of a name without the prefix of a part.
fn rest(part: Part, name: &str) -> Option<&str> {
    part.prefixes().iter().find_map(|prefix| name.strip_prefix(prefix)?.strip_prefix('.'))
}

/// Why an output table cannot stand for the embedding table.
fn untied(checkpoint: &Checkpoint, head: &Stored) -> Option<String> {
    let name = format!("{}.{}", Part::Language.prefix(checkpoint), Part::Language.sign());
    let table = checkpoint.find(&name)?;
    if table.shape != head.shape {
        return Some(format!("config.json ties it to {name}; must have its shape {:?}", table.shape));
    }
    let equal = table.ty() == head.ty() && checkpoint.bytes(table) == checkpoint.bytes(head);
    (!equal).then(|| format!("config.json ties it to {name}, from which it differs; must be equal, or tie_word_embeddings false"))
}
