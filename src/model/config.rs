//! The hub's `config.json` and `preprocessor_config.json`, checked and made whole.
//!
//! Published files are sparse: what one leaves out takes the default of the `transformers` classes (`PaliGemmaConfig`,
//! `GemmaConfig`, `Gemma2Config`, `SiglipVisionConfig`, version 5.23). `null` is not the same as absent: a soft cap or
//! window of `null` is switched off.

mod raw;

use std::path::Path;

use serde::Deserialize;

use crate::base::{Context, Error, Kind, Result};

/// All that the network's shape depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The decoder.
    pub text: TextConfig,
    /// The image tower.
    pub vision: VisionConfig,
    /// The placeholder's id; it may lie outside the vocabulary.
    pub image_token: u32,
    /// Ids that end an answer.
    pub eos: Vec<u32>,
    /// The id at the prompt's start.
    pub bos: u32,
}

/// Which decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// PaliGemma 1.
    Gemma,
    /// PaliGemma 2.
    Gemma2,
}

/// The non-linearity of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// Gemma 1 or 2.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Which of the two.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Of the gate.
    pub activation: Activation,
    /// Added under the root of RMS norms.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Queries are multiplied by this.
    pub query_scale: f64,
    /// Attention scores are bounded by this.
    pub attn_softcap: Option<f64>,
    /// Logits are bounded by this.
    pub final_softcap: Option<f64>,
    /// One per layer: how many keys an answer's token sees; `None`: all.
    pub windows: Vec<Option<usize>>,
    /// Most positions, prompt and answer together.
    pub context: usize,
    /// The logits use the embedding table.
    pub tied: bool,
}

/// The SigLIP tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads; divides the width.
    pub heads: usize,
    /// Side of the square picture, pixels.
    pub image_size: usize,
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// Of the feed-forward block.
    pub activation: Activation,
    /// Added under the root of layer norms.
    pub norm_eps: f64,
}

impl VisionConfig {
    /// Patches along a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches, and so image tokens, of a picture.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }
}

/// How pixels become numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// Subtracted from each channel after it is scaled to 0..=1.
    pub mean: [f32; 3],
    /// Then each is divided by this.
    pub std: [f32; 3],
}

#[derive(Deserialize)]
struct RawPreprocessor {
    size: Option<RawSize>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    resample: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawSize {
    Square(usize),
    Sides { height: usize, width: usize },
}

/// Reads `config.json` of a snapshot folder.
///
/// # Errors
/// When the file is missing, is no JSON of the expected kind, or describes a network this program does not know.
pub fn read(folder: &Path) -> Result<Config> {
    let path = folder.join("config.json");
    parse(&super::weights::read_text(&path)?, &path)
}

/// Reads a `config.json` by itself, wherever it is.
///
/// # Errors
/// As [`read`].
pub fn read_file(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).context(Kind::Input, || format!("cannot read {}", path.display()))?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Config> {
    let raw: raw::RawConfig =
        serde_json::from_str(text).context(Kind::Model, || format!("{} is not a model's config.json", path.display()))?;
    raw::resolve(raw).map_err(|why| Error::new(Kind::Model, format!("{}: {why}", path.display())))
}

/// Reads `preprocessor_config.json`, if there is one.
///
/// # Errors
/// When it asks for another picture size than the tower has, or for another filter than bicubic.
pub fn read_normalisation(folder: &Path, vision: &VisionConfig) -> Result<Normalisation> {
    let path = folder.join("preprocessor_config.json");
    let default = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
    if !path.exists() {
        return Ok(default);
    }
    let text = super::weights::read_text(&path)?;
    let raw: RawPreprocessor =
        serde_json::from_str(&text).context(Kind::Model, || format!("{} is not a model's preprocessor_config.json", path.display()))?;
    let refuse = |why: String| Err(Error::new(Kind::Model, format!("{}: {why}", path.display())));
    let side = vision.image_size;
    let (height, width) = match raw.size {
        None => (side, side),
        Some(RawSize::Square(size)) => (size, size),
        Some(RawSize::Sides { height, width }) => (height, width),
    };
    if (height, width) != (side, side) {
        return refuse(format!("size is {height}x{width}; must be {side}x{side}, the tower's image_size"));
    }
    if let Some(resample) = raw.resample.filter(|&resample| resample != 3) {
        return refuse(format!("resample is {resample}; must be 3 (bicubic)"));
    }
    let read = Normalisation { mean: raw.image_mean.unwrap_or(default.mean), std: raw.image_std.unwrap_or(default.std) };
    if !read.std.iter().all(|&std| std > 0.0) {
        return refuse(format!("image_std is {:?}; must be above 0", read.std));
    }
    Ok(read)
}
