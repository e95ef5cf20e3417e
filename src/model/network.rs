//! Tower, projector and decoder as one: pixels and tokens in, an answer's tokens out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use crate::base::{Context, Kind, Result};
use crate::model::config::Config;
use crate::model::decoder::{Cache, Decoder};
use crate::model::generate::{self, Asked, Decoded, Passes, Rules};
use crate::model::vision::Vision;
use crate::model::weights::{Wanted, Weights};
use crate::model::{LoadOptions, Snapshot, open_device, threads};
use crate::types::Dtype;

/// The network, without words.
pub struct Network {
    /// Its shape.
    pub config: Config,
    vision: Vision,
    decoder: Decoder,
    /// What computes.
    pub device: Device,
    activations: DType,
    dtype: Dtype,
}

/// A picture and what is asked about it, in numbers.
pub struct Input<'a> {
    /// `[3, size, size]`, normalised.
    pub pixels: Vec<f32>,
    /// Placeholders for the picture, then the prompt.
    pub ids: Arc<[u32]>,
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
    /// Reads a checkpoint's weights.
    ///
    /// # Errors
    /// When the device or type cannot be used, a file is missing or damaged, or a tensor is missing, of another shape, or
    /// too many.
    pub fn load(snapshot: &Snapshot, config: Config, options: LoadOptions) -> Result<Self> {
        let (wanted, dtype) = wanted(&snapshot.name, &config, options)?;
        let weights = Weights::open(&snapshot.folder, wanted.clone())?;
        let network = Self::new(&weights, config, &wanted, dtype)?;
        weights.finish()?;
        Ok(network)
    }

    /// A network of a shape, with random weights.
    ///
    /// # Errors
    /// When the device or type cannot be used.
    pub fn random(config: Config, options: LoadOptions) -> Result<Self> {
        let (wanted, dtype) = wanted("random", &config, options)?;
        Self::new(&Weights::random(wanted.clone()), config, &wanted, dtype)
    }

    fn new(weights: &Weights, config: Config, wanted: &Wanted, dtype: Dtype) -> Result<Self> {
        let (device, activations) = (wanted.device.clone(), wanted.dtype());
        let vision = Vision::new(weights, &config.vision, config.text.hidden_size)?;
        let decoder = Decoder::new(weights, &config.text, &device, activations)?;
        Ok(Self { config, vision, decoder, device, activations, dtype })
    }

    /// The weights' type; never `auto`.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes of weights that a token's pass reads.
    pub fn bytes_per_token(&self) -> usize {
        self.decoder.bytes()
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
        let images = self.vision.forward(&pixels, self.activations)?;
        let prefix = |(at, input): (usize, &Input<'_>)| {
            Tensor::cat(&[images.narrow(0, at * patches, patches)?, self.decoder.embed(&input.ids[patches..])?], 0)
        };
        inputs.iter().enumerate().map(prefix).collect()
    }
}

/// As what and where the weights are wanted, and the name of their type. `auto` is bf16 on a GPU. On the processor it is
/// f32 for a small network, which is fast anyway, and 4 bits for one that memory would hold up.
fn wanted(name: &str, config: &Config, options: LoadOptions) -> Result<(Wanted, Dtype)> {
    let device = open_device(options.device).context(Kind::Config, || "model.device cannot be used")?;
    let dtype = match options.dtype {
        Dtype::Auto if !device.is_cpu() => Dtype::Bf16,
        Dtype::Auto if threads::is_small(&config.text) => Dtype::F32,
        Dtype::Auto => Dtype::Q4K,
        dtype => dtype,
    };
    let wanted = Wanted::new(device, dtype)?;
    Ok((Wanted { name: name.to_owned(), cache: options.cache, progress: options.progress, ..wanted }, dtype))
}
