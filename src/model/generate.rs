//! Greedy decoding: the likeliest token each time, with its probability; several conversations at once, each with a draft.
//!
//! A draft is what the answer may turn out to be, such as the camera's last one. It goes along with the prefix, behind
//! it and seen by nobody before it, so one pass tells the likeliest token after each of its tokens, and as long as those
//! are the draft's own they are the answer. Where they part the answer's token stands, and the rest of the draft, moved
//! to fit, is tried again a few tokens at a time. A row gives the same bits in any company, so the answer is what single
//! steps would have given.

use std::time::{Duration, Instant};

use candle_core::Tensor;

use crate::base::{Context, Error, Kind, Result};
use crate::model::decoder::{Cache, Decoder, Segment};
use crate::types::Finish;

/// Most tokens of a draft that are tried again at once: so many rows cost little more than one, for memory sets the pace.
const MOST_AHEAD: usize = 8;

/// What is to be answered.
pub struct Asked<'a> {
    /// The embeddings of picture and prompt, `[rows, hidden]`.
    pub prefix: Tensor,
    /// What the answer may be.
    pub draft: &'a [u32],
    /// Most tokens.
    pub max_new_tokens: usize,
}

/// What was written.
#[derive(Debug)]
pub struct Decoded {
    /// The logits of the first token.
    pub first_logits: Vec<f32>,
    /// The tokens, the end token last where it was written, as the reference's `generate` gives them.
    pub ids: Vec<u32>,
    /// The natural logarithm of each token's probability.
    pub logprobs: Vec<f32>,
    /// Why it stopped.
    pub finish: Finish,
    /// How many tokens a draft had right.
    pub drafts_accepted: usize,
}

/// How long the passes took.
#[derive(Clone, Debug, Default)]
pub struct Passes {
    /// The prefixes, drafts included.
    pub prefill: Duration,
    /// Each of the others.
    pub steps: Vec<Duration>,
}

/// Ids that end an answer, and ids that may not be written.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// The end tokens.
    pub eos: &'a [u32],
    /// Not to be written.
    pub suppress: &'a [u32],
}

/// One conversation under way.
struct Talk<'a> {
    written: Decoded,
    max_new_tokens: usize,
    /// What is left of the draft.
    draft: Vec<u32>,
    /// The tokens of the next pass: the last one written, and some of the draft.
    feed: Vec<u32>,
    /// How much of the draft the next pass may try.
    ahead: usize,
    cache: &'a mut Cache,
    failed: Option<Error>,
    done: bool,
}

/// Reads prefixes and writes answers; `caches` has one for each, with room for prefix and answer.
///
/// # Errors
/// When the arithmetic fails. One that computes no numbers (damaged weights, or a type too narrow for them) has an error of
/// its own.
pub fn greedy(decoder: &Decoder, caches: &mut [Cache], asked: &[Asked<'_>], rules: Rules<'_>) -> Result<(Vec<Result<Decoded>>, Passes)> {
    let failed = || "the model's arithmetic failed".to_owned();
    let mut passes = Passes::default();
    let talks = asked.iter().zip(caches).map(|(asked, cache)| Talk::new(asked, cache, rules, decoder.vocab_size()));
    let mut talks: Vec<Talk<'_>> = talks.collect();
    let started = Instant::now();
    let mut rows = Vec::new();
    for (asked, talk) in asked.iter().zip(&mut talks) {
        talk.cache.begin(asked.prefix.dim(0).context(Kind::Internal, failed)?);
        rows.push(asked.prefix.clone());
        if !talk.feed.is_empty() {
            rows.push(decoder.embed(&talk.feed).context(Kind::Internal, failed)?);
        }
    }
    let x = Tensor::cat(&rows, 0).context(Kind::Internal, failed)?;
    pass(decoder, &mut talks, &x, true, rules).context(Kind::Internal, failed)?;
    passes.prefill = started.elapsed();
    while talks.iter().any(|talk| !talk.done) {
        let started = Instant::now();
        let feed: Vec<u32> = talks.iter().filter(|talk| !talk.done).flat_map(|talk| talk.feed.iter().copied()).collect();
        let x = decoder.embed(&feed).context(Kind::Internal, failed)?;
        pass(decoder, &mut talks, &x, false, rules).context(Kind::Internal, failed)?;
        passes.steps.push(started.elapsed());
    }
    Ok((talks.into_iter().map(|talk| talk.failed.map_or(Ok(talk.written), Err)).collect(), passes))
}

/// Rows of every conversation that is not done through the decoder, and what follows from their logits.
fn pass(decoder: &Decoder, talks: &mut [Talk<'_>], x: &Tensor, prefill: bool, rules: Rules<'_>) -> candle_core::Result<()> {
    let mut talks: Vec<_> = talks.iter_mut().filter(|talk| !talk.done).collect();
    let mut segments: Vec<Segment<'_>> = talks
        .iter_mut()
        .map(|talk| {
            let (fed, prefix) = (talk.feed.len(), if prefill { talk.cache.prefix() } else { 0 });
            // The last row of a prefix is followed by the answer's first token.
            let wanted = if prefill { fed + 1 } else { fed };
            Segment { cache: &mut *talk.cache, rows: prefix + fed, wanted }
        })
        .collect();
    let logits = decoder.forward(x, &mut segments)?;
    let mut from = 0;
    let wanted: Vec<usize> = segments.iter().map(|segment| segment.wanted).collect();
    for (talk, wanted) in talks.into_iter().zip(wanted) {
        let rows = logits.narrow(0, from, wanted)?;
        crate::model::ops::with_values(&rows, |logits| talk.take(logits, wanted, rules))?;
        from += wanted;
    }
    Ok(())
}

impl<'a> Talk<'a> {
    fn new(asked: &Asked<'_>, cache: &'a mut Cache, rules: Rules<'_>, vocab_size: usize) -> Self {
        // No token follows the end token or one that cannot be written, so a draft need not go further.
        let usable = |id: &&u32| (**id as usize) < vocab_size && !rules.suppress.contains(id);
        let mut draft: Vec<u32> = asked.draft.iter().take(asked.max_new_tokens).take_while(usable).copied().collect();
        if let Some(end) = draft.iter().position(|id| rules.eos.contains(id)) {
            draft.truncate(end + 1);
        }
        let mut talk = Self {
            written: Decoded {
                first_logits: Vec::new(),
                ids: Vec::new(),
                logprobs: Vec::new(),
                finish: Finish::Length,
                drafts_accepted: 0,
            },
            max_new_tokens: asked.max_new_tokens,
            draft,
            feed: Vec::new(),
            ahead: usize::MAX,
            cache,
            failed: None,
            done: false,
        };
        talk.feed = talk.tried();
        talk
    }

    /// The part of the draft that the next pass tries. Its very last token needs no row: what would follow it is either
    /// nothing, or beyond the draft.
    fn tried(&self) -> Vec<u32> {
        let room = self.max_new_tokens.saturating_sub(self.written.ids.len() + 1);
        let count = self.draft.len().saturating_sub(1).min(self.ahead).min(room);
        self.draft[..count].to_vec()
    }

    /// Reads the logits after the wanted rows, `[wanted, vocabulary]`.
    fn take(&mut self, logits: &[f32], wanted: usize, rules: Rules<'_>) {
        let rows = logits.chunks_exact(logits.len() / wanted);
        // Positions up to the last row that surely belongs to the answer.
        let mut kept = self.cache.len() + 1 - wanted;
        for (at, row) in rows.enumerate() {
            if self.written.first_logits.is_empty() {
                self.written.first_logits = row.to_vec();
            }
            let Some((id, logprob)) = choose(row, rules.suppress) else {
                self.failed = Some(Error::new(
                    Kind::Model,
                    "the model computed no numbers; its weights are damaged or dtype is too narrow, f32 is exact",
                ));
                self.done = true;
                return;
            };
            self.written.ids.push(id);
            self.written.logprobs.push(logprob);
            let right = self.draft.first() == Some(&id);
            self.written.drafts_accepted += usize::from(right);
            if rules.eos.contains(&id) {
                self.written.finish = Finish::Eos;
                self.done = true;
                return;
            }
            if self.written.ids.len() >= self.max_new_tokens {
                self.done = true;
                return;
            }
            if right {
                self.draft.remove(0);
                if at + 1 < wanted {
                    kept += 1;
                    continue;
                }
                self.ahead = self.ahead.saturating_mul(2).clamp(1, MOST_AHEAD);
            } else {
                self.ahead = (self.ahead / 2).clamp(1, MOST_AHEAD / 4);
                self.realign(id);
            }
            self.feed = std::iter::once(id).chain(self.tried()).collect();
            break;
        }
        self.cache.truncate(kept);
    }

    /// After a token that the draft did not have: goes on behind its next place in the draft, or takes it for the one that
    /// stood there.
    fn realign(&mut self, id: u32) {
        let skipped = self.draft.iter().position(|drafted| *drafted == id).map_or(1, |place| place + 1);
        self.draft.drain(..skipped.min(self.draft.len()));
    }
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
