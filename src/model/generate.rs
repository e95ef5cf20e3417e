//! Greedy decoding: the likeliest token each time, with its probability.

use candle_core::Tensor;

use crate::base::{Context, Error, Kind, Result};
use crate::model::decoder::{Cache, Decoder};
use crate::types::Finish;

/// What was written.
pub struct Decoded {
    /// The logits of the first token.
    pub first_logits: Vec<f32>,
    /// The tokens, the end token last where it was written, as the reference's `generate` gives them.
    pub ids: Vec<u32>,
    /// The natural logarithm of each token's probability.
    pub logprobs: Vec<f32>,
    /// Why it stopped.
    pub finish: Finish,
}

/// Bounds of decoding.
pub struct Bounds<'a> {
    /// Most tokens.
    pub max_new_tokens: usize,
    /// Ids that end the answer.
    pub eos: &'a [u32],
    /// Ids that may not be written.
    pub suppress: &'a [u32],
}

/// Reads `prefix` (`[rows, hidden]`) and writes an answer.
///
/// # Errors
/// When the model computes no numbers: damaged weights, or a type too narrow for them.
pub fn greedy(decoder: &Decoder, cache: &mut Cache, prefix: &Tensor, bounds: &Bounds<'_>) -> Result<Decoded> {
    let failed = || "the model's arithmetic failed".to_owned();
    cache.clear();
    let first_logits = decoder.forward(prefix, cache).context(Kind::Internal, failed)?;
    let mut written = Decoded { first_logits, ids: Vec::new(), logprobs: Vec::new(), finish: Finish::Length };
    let mut choice = choose(&written.first_logits, bounds.suppress);
    while written.ids.len() < bounds.max_new_tokens {
        let Some((id, logprob)) = choice else {
            return Err(Error::new(
                Kind::Model,
                "the model computed no numbers; its weights are damaged or dtype is too narrow, f32 is exact",
            ));
        };
        written.ids.push(id);
        written.logprobs.push(logprob);
        if bounds.eos.contains(&id) {
            written.finish = Finish::Eos;
            break;
        }
        if written.ids.len() < bounds.max_new_tokens {
            let x = decoder.embed(&[id]).context(Kind::Internal, failed)?;
            let logits = decoder.forward(&x, cache).context(Kind::Internal, failed)?;
            choice = choose(&logits, bounds.suppress);
        }
    }
    Ok(written)
}

/// The likeliest id that is not suppressed and the logarithm of its share among all; `None` when the numbers are none.
fn choose(logits: &[f32], suppress: &[u32]) -> Option<(u32, f32)> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - top).exp()).sum();
    let allowed = logits.iter().enumerate().filter(|(id, _)| !suppress.contains(&(*id as u32)));
    // Of equals the first: as the reference's argmax.
    let (id, logit) = allowed.fold(None, |best: Option<(usize, f32)>, (id, &logit)| match best {
        Some((_, most)) if logit <= most || logit.is_nan() => best,
        _ => Some((id, logit)),
    })?;
    let logprob = f64::from(logit - top) - sum.ln();
    logprob.is_finite().then_some((id as u32, logprob as f32))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn the_likeliest_is_chosen_with_its_share() {
        let (id, logprob) = choose(&[1.0, 3.0, 3.0, 2.0], &[]).unwrap();
        let sum = 1f64.exp() + 2.0 * 3f64.exp() + 2f64.exp();
        assert_eq!(id, 1);
        assert!((f64::from(logprob) - (3.0 - sum.ln())).abs() < 1e-6);
        assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], &[1, 2]).unwrap().0, 3);
    }

    #[test]
    fn no_numbers_are_no_choice() {
        assert!(choose(&[f32::NAN, 1.0], &[]).is_none());
        assert!(choose(&[], &[]).is_none());
        assert!(choose(&[1.0], &[0]).is_none());
    }
}
