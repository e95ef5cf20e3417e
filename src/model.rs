//! Floor 2: PaliGemma 1 and 2 on candle: a picture and a prompt in, the model's answer out.
//!
//! [`resolve`] finds or downloads a checkpoint, [`PaliGemma::load`] reads it once, and every worker thread takes a
//! [`Session`] with its own KV cache. The arithmetic follows `transformers` 5.23, which the test data comes from.

mod answer;
mod config;
mod decoder;
mod generate;
mod hub;
mod kernel;
mod layers;
mod matrix;
mod ops;
mod preprocess;
mod resize;
mod threads;
mod tokenizer;
mod vision;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use image::RgbImage;

use crate::base::{Context, Error, Kind, Result};
use crate::types::{Answer, Device, Dtype, Finish, MinScore};

use answer::Written;
use decoder::{Cache, Decoder};
use generate::Bounds;
use preprocess::Preprocessor;
use tokenizer::Tokenizer;
use vision::Vision;
use weights::Weights;

pub use hub::{HubOptions, Progress, resolve};
pub use threads::fix_count as fix_thread_count;

/// A checkpoint on this machine, as the hub lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Holds `config.json`, `tokenizer.json` and the weights.
    pub folder: PathBuf,
    /// `owner/name@commit` for a model of the hub, the folder's own name otherwise.
    pub name: String,
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// What computes.
    pub device: Device,
    /// The weights' type in memory.
    pub dtype: Dtype,
}

/// Bounds of one answer.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The answer's bound in tokens.
    pub max_new_tokens: usize,
    /// Detections below their label's score are rejected.
    pub min_score: MinScore,
    /// Token ids the model may not write.
    pub suppress: Vec<u32>,
}

/// What is asked of a picture.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The picture.
    pub image: &'a RgbImage,
    /// The prompt, as the model gets it.
    pub prompt: &'a str,
    /// Tokens that the answer may begin with, such as those of the camera's last answer to the prompt. They cost little
    /// and save much where they are right; the answer is the same in any case.
    pub draft: &'a [u32],
}

/// An answer before it is parsed, with all that led to it.
#[derive(Clone, Debug)]
pub struct Generation {
    /// What the model was given: image placeholders, `<bos>`, the prompt and a newline.
    pub input_ids: Vec<u32>,
    /// The logits of the answer's first token, one per word of the vocabulary; nothing suppressed yet.
    pub first_logits: Vec<f32>,
    /// The answer's tokens, the end token last where the model wrote it.
    pub generated_ids: Vec<u32>,
    /// The natural logarithm of each token's probability.
    pub token_logprobs: Vec<f32>,
    /// The answer as text, special tokens left out.
    pub text: String,
    /// Why it stopped.
    pub finish: Finish,
}

/// A loaded model. The weights never change; a clone shares them.
#[derive(Clone)]
pub struct PaliGemma(Arc<Inner>);

struct Inner {
    name: String,
    config: config::Config,
    normalisation: config::Normalisation,
    tokenizer: Tokenizer,
    vision: Vision,
    decoder: Decoder,
    device: candle_core::Device,
    dtype: DType,
}

impl PaliGemma {
    /// Reads a checkpoint.
    ///
    /// # Errors
    /// When a file is missing or damaged, a tensor is missing or of another shape, or the device is not there.
    pub fn load(snapshot: &Snapshot, options: LoadOptions) -> Result<Self> {
        let folder = &snapshot.folder;
        let device = open_device(options.device).context(Kind::Config, || "model.device cannot be used")?;
        let dtype = resolve_dtype(options.dtype, &device);
        let config = config::read(folder)?;
        let normalisation = config::read_normalisation(folder, &config.vision)?;
        let tokenizer = Tokenizer::open(folder, &config)?;
        let weights = Weights::open(folder, device.clone(), dtype)?;
        let vision = Vision::new(&weights, &config.vision, config.text.hidden_size)?;
        let decoder = Decoder::new(&weights, &config.text, &device)?;
        let name = snapshot.name.clone();
        Ok(Self(Arc::new(Inner { name, config, normalisation, tokenizer, vision, decoder, device, dtype })))
    }

    /// The snapshot's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Scratch space for one thread.
    pub fn session(&self) -> Session {
        let preprocessor = Preprocessor::new(self.0.config.vision.image_size, self.0.normalisation);
        Session { model: Arc::clone(&self.0), preprocessor, cache: None }
    }
}

/// Whether this program can compute on a device.
///
/// # Errors
/// When it was built without support for it, or the device is not there.
pub fn check_device(device: Device) -> Result<()> {
    open_device(device).map(drop)
}

/// `auto` is the first GPU in a program built for GPUs that finds one, the processor otherwise.
fn open_device(device: Device) -> Result<candle_core::Device> {
    let built_for_cuda = candle_core::utils::cuda_is_available();
    match device {
        Device::Cpu => Ok(candle_core::Device::Cpu),
        Device::Auto if built_for_cuda => Ok(candle_core::Device::new_cuda(0).unwrap_or_else(|error| {
            tracing::warn!("no GPU can be opened, the processor is used: {error}");
            candle_core::Device::Cpu
        })),
        Device::Auto => Ok(candle_core::Device::Cpu),
        Device::Cuda(number) if built_for_cuda => candle_core::Device::new_cuda(number).context(Kind::Config, || {
            format!("is cuda:{number}, but that GPU cannot be opened; must be auto, cpu or a GPU that nvidia-smi lists")
        }),
        Device::Cuda(number) => Err(Error::new(
            Kind::Config,
            format!(
                "is cuda:{number}, but this program was built without GPU support; \
                 must be auto or cpu, or build with --features cuda"
            ),
        )),
    }
}

/// `auto` is f32 on the processor, where bfloat16 products are a dozen times slower, and bf16 on a GPU.
fn resolve_dtype(dtype: Dtype, device: &candle_core::Device) -> DType {
    match dtype {
        Dtype::Auto if device.is_cpu() => DType::F32,
        Dtype::Auto | Dtype::Bf16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
    }
}

/// One thread's use of a model: a KV cache of its own over the shared weights.
pub struct Session {
    model: Arc<Inner>,
    preprocessor: Preprocessor,
    /// With its capacity in positions; made at the first use and again when a longer one is needed.
    cache: Option<(usize, Cache)>,
}

impl Session {
    /// Asks about a picture; the answer comes parsed and scored.
    ///
    /// # Errors
    /// When the picture is empty, or the prompt holds the image token or is too long for the model.
    pub fn answer(&mut self, question: &Question<'_>, limits: &Limits) -> Result<Answer> {
        let Generation { generated_ids, token_logprobs, text, finish, .. } = self.generate(question, limits)?;
        let ranges = self.model.tokenizer.ranges(&generated_ids, &text)?;
        let tokens = ranges.into_iter().zip(token_logprobs).filter_map(|(range, logprob)| Some(Written { range: range?, logprob }));
        let (detections, rejected) = answer::parse(&text, &tokens.collect::<Vec<_>>(), &limits.min_score);
        Ok(Answer { raw: text, finish, detections, rejected, tokens: generated_ids, drafts_accepted: 0 })
    }

    /// Asks several things at once, each answered as if it were alone.
    ///
    /// # Errors
    /// Each has its own, as [`Session::answer`].
    pub fn answer_all(&mut self, questions: &[Question<'_>], limits: &Limits) -> Vec<Result<Answer>> {
        questions.iter().map(|question| self.answer(question, limits)).collect()
    }

    /// Asks about a picture; the answer comes as it was written.
    ///
    /// # Errors
    /// As [`Session::answer`].
    pub fn generate(&mut self, question: &Question<'_>, limits: &Limits) -> Result<Generation> {
        let Question { image, prompt, .. } = *question;
        let model = Arc::clone(&self.model);
        if threads::is_small(&model.config.text) {
            threads::stay_on_this_thread();
        }
        let input_ids = model.tokenizer.prompt(prompt)?;
        let context = model.config.text.context;
        let room = context.saturating_sub(input_ids.len());
        if room == 0 {
            let prefix = input_ids.len();
            return Err(Error::new(
                Kind::Input,
                format!("picture and prompt take {prefix} tokens; must be fewer than {context}, so that there is room for an answer"),
            ));
        }
        // A bound beyond the context is no error: the answer then ends, as "length", where the context does.
        let max_new_tokens = limits.max_new_tokens.min(room);
        let positions = input_ids.len() + max_new_tokens;
        let pixels = self.preprocessor.run(image)?;
        let failed = || "the model's arithmetic failed".to_owned();
        let prefix = model.prefix(pixels, &input_ids).context(Kind::Internal, failed)?;
        let bounds = Bounds { max_new_tokens, eos: &model.config.eos, suppress: &limits.suppress };
        let written = generate::greedy(&model.decoder, self.cache(positions)?, &prefix, &bounds)?;
        let text = model.tokenizer.decode(&written.ids)?;
        Ok(Generation {
            input_ids,
            first_logits: written.first_logits,
            generated_ids: written.ids,
            token_logprobs: written.logprobs,
            text,
            finish: written.finish,
        })
    }

    fn cache(&mut self, positions: usize) -> Result<&mut Cache> {
        let held = self.cache.take().filter(|(capacity, _)| *capacity >= positions);
        let held = match held {
            Some(held) => held,
            None => (positions, self.model.decoder.cache(positions).context(Kind::Internal, || "cannot make a KV cache".to_owned())?),
        };
        Ok(&mut self.cache.insert(held).1)
    }
}

impl Inner {
    /// The embeddings of picture and prompt, `[positions, hidden]`. The picture's are taken as they are: only those of
    /// words are scaled by the root of the width.
    fn prefix(&self, pixels: Vec<f32>, input_ids: &[u32]) -> candle_core::Result<Tensor> {
        let side = self.config.vision.image_size;
        let pixels = Tensor::from_vec(pixels, (3, side, side), &self.device)?;
        let image = self.vision.forward(&pixels, self.dtype)?;
        let words = self.decoder.embed(&input_ids[self.config.vision.patches()..])?;
        Tensor::cat(&[image, words], 0)
    }
}
