//! Floor 2: PaliGemma 1 and 2 on candle: a picture and a prompt in, the model's answer out.
//!
//! [`resolve`] finds or downloads a checkpoint, [`PaliGemma::load`] reads it once, and every worker thread takes a
//! [`Session`] with its own KV cache. The arithmetic follows `transformers` 5.23, which the test data comes from.

mod answer;
mod attention;
mod config;
mod decoder;
mod generate;
mod hub;
mod kernel;
mod layers;
mod matrix;
mod measure;
mod network;
mod ops;
mod preprocess;
mod resize;
mod threads;
mod tokenizer;
mod vision;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device as Opened;
use candle_core::DeviceLocation;
use candle_core::utils::{cuda_is_available, metal_is_available};
use image::RgbImage;

use crate::base::{Context, Error, Kind, Result};
use crate::types::{Answer, Device, Dtype, Finish, MinScore};

use answer::Written;
use decoder::Cache;
use generate::Decoded;
use network::{Input, Network};
use preprocess::Preprocessor;
use tokenizer::{Prompts, Tokenizer};

pub use hub::{HubOptions, Progress, resolve};
pub use measure::{FrameTimes, MeasureOptions, Measured, Subject, Work, measure};
pub use threads::{fix_count as fix_thread_count, keep_memory};

/// A checkpoint on this machine, as the hub lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Holds `config.json`, `tokenizer.json` and the weights.
    pub folder: PathBuf,
    /// `owner/name@commit` for a model of the hub, the folder's own name otherwise.
    pub name: String,
}

/// How a model is loaded.
#[derive(Clone)]
pub struct LoadOptions {
    /// What computes.
    pub device: Device,
    /// The weights' type in memory.
    pub dtype: Dtype,
    /// Where quantised weights are kept; `None`: nowhere.
    pub cache: Option<PathBuf>,
    /// Told of quantising: bytes done and bytes in all.
    pub progress: Option<Progress>,
}

impl LoadOptions {
    /// With the cache folder of the environment.
    pub fn new(device: Device, dtype: Dtype) -> Self {
        Self { device, dtype, cache: weights::cache_folder(|name| std::env::var(name).ok()), progress: None }
    }
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
    /// How many tokens the draft had right.
    pub drafts_accepted: usize,
}

/// A loaded model. The weights never change; a clone shares them.
#[derive(Clone)]
pub struct PaliGemma(Arc<Inner>);

struct Inner {
    name: String,
    normalisation: config::Normalisation,
    tokenizer: Tokenizer,
    network: Network,
}

impl PaliGemma {
    /// Reads a checkpoint.
    ///
    /// # Errors
    /// When a file is missing or damaged, a tensor is missing or of another shape, or the device is not there.
    pub fn load(snapshot: &Snapshot, options: LoadOptions) -> Result<Self> {
        let folder = &snapshot.folder;
        let config = config::read(folder)?;
        let normalisation = config::read_normalisation(folder, &config.vision)?;
        let tokenizer = Tokenizer::open(folder, &config)?;
        let network = Network::load(snapshot, config, options)?;
        Ok(Self(Arc::new(Inner { name: snapshot.name.clone(), normalisation, tokenizer, network })))
    }

    /// The snapshot's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it computes on: `cpu`, `cuda:N` or `metal:N`.
    pub fn device(&self) -> String {
        match self.0.network.device.location() {
            DeviceLocation::Cpu => "cpu".to_owned(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }

    /// How many questions are best asked at once where nothing else is said: one on a processor, which a single picture
    /// keeps busy, eight on a GPU.
    pub fn default_batch(&self) -> usize {
        if self.0.network.device.is_cpu() { 1 } else { 8 }
    }

    /// Scratch space for one thread.
    pub fn session(&self) -> Session {
        let preprocessor = Preprocessor::new(self.0.network.config.vision.image_size, self.0.normalisation);
        Session { model: Arc::clone(&self.0), preprocessor, caches: Vec::new(), prompts: Prompts::default() }
    }
}

/// Whether this program can compute on a device.
///
/// # Errors
/// When it was built without support for it, or the device is not there.
pub fn check_device(device: Device) -> Result<()> {
    open_device(device).map(drop)
}

fn open_device(device: Device) -> Result<Opened> {
    match device {
        Device::Cpu => Ok(Opened::Cpu),
        Device::Auto => Ok(first_gpu().unwrap_or(Opened::Cpu)),
        Device::Cuda(number) => open_gpu("cuda", number, cuda_is_available(), Opened::new_cuda),
        Device::Metal(number) => open_gpu("metal", number, metal_is_available(), open_metal),
    }
}

/// The first GPU of a kind that the program was built for; none, and a warning, where it cannot be opened.
fn first_gpu() -> Option<Opened> {
    let gpu = match (cuda_is_available(), metal_is_available()) {
        (true, _) => Opened::new_cuda(0),
        (_, true) => open_metal(0),
        _ => return None,
    };
    gpu.inspect_err(|error| tracing::warn!("no GPU can be opened, the processor is used: {error}")).ok()
}

/// The library takes the number for an index into a list that may be shorter, or empty.
fn open_metal(number: usize) -> candle_core::Result<Opened> {
    std::panic::catch_unwind(|| Opened::new_metal(number)).unwrap_or_else(|_| candle_core::bail!("there is no such GPU"))
}

fn open_gpu(kind: &str, number: usize, built: bool, open: fn(usize) -> candle_core::Result<Opened>) -> Result<Opened> {
    if !built {
        return Err(Error::new(
            Kind::Config,
            format!("is {kind}:{number}, but this program was built without it; must be auto or cpu, or build with --features {kind}"),
        ));
    }
    open(number).context(Kind::Config, || format!("is {kind}:{number}, which cannot be opened; must be auto, cpu or a GPU of this machine"))
}

/// One thread's use of a model: KV caches of its own over the shared weights.
pub struct Session {
    model: Arc<Inner>,
    preprocessor: Preprocessor,
    /// One per question asked at once; made at the first use and again when longer ones are needed.
    caches: Vec<Cache>,
    prompts: Prompts,
}

impl Session {
    /// Asks about a picture; the answer comes parsed and scored.
    ///
    /// # Errors
    /// When the picture is empty, or the prompt holds the image token or is too long for the model.
    pub fn answer(&mut self, question: &Question<'_>, limits: &Limits) -> Result<Answer> {
        self.generate(question, limits).and_then(|generation| self.parsed(generation, limits))
    }

    /// Asks several things at once, each answered as if it were alone.
    ///
    /// # Errors
    /// Each has its own, as [`Session::answer`].
    pub fn answer_all(&mut self, questions: &[Question<'_>], limits: &Limits) -> Vec<Result<Answer>> {
        let generations = self.generate_all(questions, limits);
        generations.into_iter().map(|generation| generation.and_then(|generation| self.parsed(generation, limits))).collect()
    }

    /// Asks about a picture; the answer comes as it was written.
    ///
    /// # Errors
    /// As [`Session::answer`].
    pub fn generate(&mut self, question: &Question<'_>, limits: &Limits) -> Result<Generation> {
        let one = self.generate_all(std::slice::from_ref(question), limits).pop();
        one.unwrap_or_else(|| Err(Error::new(Kind::Internal, "a question was not answered; this is a defect, please report it")))
    }

    /// Asks several things at once; the answers come as they were written.
    ///
    /// # Errors
    /// Each has its own, as [`Session::answer`].
    pub fn generate_all(&mut self, questions: &[Question<'_>], limits: &Limits) -> Vec<Result<Generation>> {
        // Those that cannot be asked stand aside; the others go through together.
        let inputs: Vec<Result<Input<'_>>> = questions.iter().map(|question| self.input(question, limits)).collect();
        let (mut asked, mut places) = (Vec::new(), Vec::new());
        for input in inputs {
            places.push(input.map(|input| asked.push(input)));
        }
        let mut answers = if asked.is_empty() { Vec::new() } else { self.run(asked, limits) }.into_iter();
        let lost = || Err(Error::new(Kind::Internal, "a question was not answered; this is a defect, please report it"));
        places.into_iter().map(|place| place.and_then(|()| answers.next().unwrap_or_else(lost))).collect()
    }

    fn run(&mut self, inputs: Vec<Input<'_>>, limits: &Limits) -> Vec<Result<Generation>> {
        let model = Arc::clone(&self.model);
        let decoded = match model.network.run(&mut self.caches, &inputs, &limits.suppress) {
            Ok((decoded, _)) => decoded,
            Err(error) => inputs.iter().map(|_| Err(Error::new(error.kind(), error.chain()))).collect(),
        };
        let generation = |(input, decoded): (Input<'_>, Result<Decoded>)| {
            let decoded = decoded?;
            Ok(Generation {
                text: model.tokenizer.decode(&decoded.ids)?,
                input_ids: input.ids.to_vec(),
                first_logits: decoded.first_logits,
                generated_ids: decoded.ids,
                token_logprobs: decoded.logprobs,
                finish: decoded.finish,
                drafts_accepted: decoded.drafts_accepted,
            })
        };
        inputs.into_iter().zip(decoded).map(generation).collect()
    }

    fn input<'q>(&mut self, question: &Question<'q>, limits: &Limits) -> Result<Input<'q>> {
        let ids = self.prompts.tokens(&self.model.tokenizer, question.prompt)?;
        let context = self.model.network.config.text.context;
        let room = context.saturating_sub(ids.len());
        if room == 0 {
            let prefix = ids.len();
            return Err(Error::new(
                Kind::Input,
                format!("picture and prompt take {prefix} tokens; must be fewer than {context}, so that there is room for an answer"),
            ));
        }
        // A bound beyond the context is no error: the answer then ends, as "length", where the context does.
        let max_new_tokens = limits.max_new_tokens.min(room);
        Ok(Input { pixels: self.preprocessor.run(question.image)?, ids, draft: question.draft, max_new_tokens })
    }

    fn parsed(&self, generation: Generation, limits: &Limits) -> Result<Answer> {
        let Generation { generated_ids: tokens, token_logprobs, text, finish, drafts_accepted, .. } = generation;
        let ranges = self.model.tokenizer.ranges(&tokens, &text)?;
        let written = ranges.into_iter().zip(token_logprobs).filter_map(|(range, logprob)| Some(Written { range: range?, logprob }));
        let (detections, rejected) = answer::parse(&text, &written.collect::<Vec<_>>(), &limits.min_score);
        Ok(Answer { raw: text, finish, detections, rejected, tokens, drafts_accepted })
    }
}

#[cfg(test)]
mod tests;
