//! Tower, projector and decoder as one: pixels and tokens in, an answer's tokens out.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use crate::base::{Context, Kind, Result};
use crate::model::config::Config;
use crate::model::decoder::{Cache, Decoder};
use crate::model::generate::{self, Asked, Decoded, Passes, Rules};
use crate::model::threads;
use crate::model::vision::Vision;
use crate::model::weights::Weights;

/// The network, without words.
pub struct Network {
    /// Its shape.
    pub config: Config,
    vision: Vision,
    decoder: Decoder,
    /// What computes.
    pub device: Device,
    /// The activations' type.
    dtype: DType,
}

/// A picture and what is asked about it, in numbers.
pub struct Input<'a> {
    /// `[3, size, size]`, normalised.
    pub pixels: Vec<f32>,
    /// Placeholders for the picture, then the prompt.
    pub ids: Vec<u32>,
    /// What the answer may be.
    pub draft: &'a [u32],
    /// The answer's bound; prefix and answer must fit the context.
    pub max_new_tokens: usize,
}

/// How long a run took, by its parts.
#[derive(Clone, Debug)]
pub struct Times {
    /// Tower, projector and the words' embeddings.
    pub vision: Duration,
    /// The decoder.
    pub passes: Passes,
}

impl Network {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn new(weights: &Weights, config: Config, device: Device, dtype: DType) -> Result<Self> {
        let vision = Vision::new(weights, &config.vision, config.text.hidden_size)?;
        let decoder = Decoder::new(weights, &config.text, &device, dtype)?;
        Ok(Self { config, vision, decoder, device, dtype })
    }

    /// Answers several at once, each as if it were alone; `caches` is kept from run to run.
    ///
    /// # Errors
    /// When the arithmetic fails for all; each has errors of its own besides.
    pub fn run(&self, caches: &mut Vec<Cache>, inputs: &[Input<'_>], suppress: &[u32]) -> Result<(Vec<Result<Decoded>>, Times)> {
        let failed = || "the model's arithmetic failed".to_owned();
        if threads::is_small(&self.config.text) {
            threads::stay_on_this_thread();
        }
        let begin = Instant::now();
        let prefixes = self.prefixes(inputs).context(Kind::Internal, failed)?;
        let vision = begin.elapsed();
        for (at, input) in inputs.iter().enumerate() {
            let positions = input.ids.len() + input.max_new_tokens;
            if caches.get(at).is_none_or(|cache| cache.capacity() < positions) {
                caches.truncate(at);
                caches.push(self.decoder.cache(positions).context(Kind::Internal, || "cannot make a KV cache".to_owned())?);
            }
        }
        let asked = prefixes.into_iter().zip(inputs);
        let asked: Vec<Asked<'_>> =
            asked.map(|(prefix, input)| Asked { prefix, draft: input.draft, max_new_tokens: input.max_new_tokens }).collect();
        let rules = Rules { eos: &self.config.eos, suppress };
        let (decoded, passes) = generate::greedy(&self.decoder, caches, &asked, rules)?;
        Ok((decoded, Times { vision, passes }))
    }

    /// The embeddings of picture and prompt, `[positions, hidden]` each. The picture's are taken as they are: only those of
    /// words are scaled by the root of the width.
    fn prefixes(&self, inputs: &[Input<'_>]) -> candle_core::Result<Vec<Tensor>> {
        let (side, patches) = (self.config.vision.image_size, self.config.vision.patches());
        let pixels: Vec<f32> = inputs.iter().flat_map(|input| &input.pixels).copied().collect();
        let pixels = Tensor::from_vec(pixels, (inputs.len(), 3, side, side), &self.device)?;
        let images = self.vision.forward(&pixels, self.dtype)?;
        let prefix = |(at, input): (usize, &Input<'_>)| {
            Tensor::cat(&[images.narrow(0, at * patches, patches)?, self.decoder.embed(&input.ids[patches..])?], 0)
        };
        inputs.iter().enumerate().map(prefix).collect()
    }
}
