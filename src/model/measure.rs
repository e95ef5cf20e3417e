//! How long a frame takes: the network on pictures of noise, a prompt as the reference's timing has it, and answers of a
//! set length.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::{Error, Kind, Result};
use crate::model::config::{self, Config};
use crate::model::decoder::Cache;
use crate::model::kernel::Isa;
use crate::model::network::{Input, Network, Times};
use crate::model::{LoadOptions, Snapshot};

/// What is measured.
pub enum Subject<'a> {
    /// A checkpoint.
    Checkpoint(&'a Snapshot),
    /// Random weights of the shape that this `config.json` describes.
    Random(&'a Path),
}

/// How it is measured.
pub struct MeasureOptions {
    /// Tokens of an answer.
    pub tokens: usize,
    /// Frames that are reported; one more goes before them.
    pub frames: usize,
    /// A scene that stands still: each frame's draft is the answer before.
    pub still: bool,
}

/// How long one frame took.
#[derive(Clone, Debug)]
pub struct FrameTimes {
    /// Tower and projector.
    pub vision: Duration,
    /// Picture, prompt and draft through the decoder.
    pub prefill: Duration,
    /// Each further pass of the decoder.
    pub steps: Vec<Duration>,
    /// From pixels to the last token.
    pub total: Duration,
    /// Tokens of the answer.
    pub tokens: usize,
    /// How many of them the draft had right.
    pub drafts_accepted: usize,
}

/// What there is to compute, in floating-point operations (two per multiplication) and bytes.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// For a picture.
    pub vision: f64,
    /// For a prefix without draft.
    pub prefill: f64,
    /// For a token.
    pub per_token: f64,
    /// Bytes of weights read for a token.
    pub bytes_per_token: f64,
}

/// What was measured.
pub struct Measured {
    /// The checkpoint's name, or the configuration's path.
    pub name: String,
    /// The weights' type.
    pub dtype: &'static str,
    /// What computed.
    pub device: String,
    /// The instructions of the processor's products.
    pub isa: &'static str,
    /// Threads of the processor's products.
    pub threads: usize,
    /// Positions of the prefix.
    pub positions: usize,
    /// Weights.
    pub parameters: u64,
    /// From files to a model that answers; for random weights, the time to draw them.
    pub load: Duration,
    /// Frame by frame.
    pub frames: Vec<FrameTimes>,
    /// What there was to compute.
    pub work: Work,
}

/// Loads a model and runs it on frames.
///
/// # Errors
/// When the model cannot be loaded, or prefix and answer do not fit its context.
pub fn measure(subject: Subject<'_>, options: LoadOptions, bench: &MeasureOptions) -> Result<Measured> {
    let begin = Instant::now();
    let (name, network) = match subject {
        Subject::Checkpoint(snapshot) => (snapshot.name.clone(), Network::load(snapshot, config::read(&snapshot.folder)?, options)?),
        Subject::Random(path) => (path.display().to_string(), Network::random(config::read_file(path)?, options)?),
    };
    let load = begin.elapsed();
    let (config, ids) = (&network.config, prompt(&network.config));
    if ids.len() + bench.tokens > config.text.context {
        let room = config.text.context.saturating_sub(ids.len());
        return Err(Error::new(Kind::Input, format!("{} tokens do not fit the context; must be at most {room}", bench.tokens)));
    }
    let (mut caches, mut frames, mut draft) = (Vec::new(), Vec::new(), Vec::new());
    for frame in 0..=bench.frames {
        // A still scene is the same picture each time.
        let pixels = noise(3 * config.vision.image_size.pow(2), if bench.still { 0 } else { frame as u64 });
        let input = Input { pixels, ids: Arc::clone(&ids), draft: if bench.still { &draft } else { &[] }, max_new_tokens: bench.tokens };
        let (times, tokens) = one(&network, &mut caches, input)?;
        draft = tokens;
        frames.push(times);
    }
    frames.remove(0);
    let device = if network.device.is_cpu() { "cpu".to_owned() } else { format!("{:?}", network.device.location()) };
    Ok(Measured {
        name,
        dtype: network.dtype().name(),
        device,
        isa: Isa::detected().name(),
        threads: rayon::current_num_threads(),
        positions: ids.len(),
        parameters: parameters(config),
        load,
        frames,
        work: work(config, ids.len(), network.bytes_per_token() as f64),
    })
}

fn one(network: &Network, caches: &mut Vec<Cache>, input: Input<'_>) -> Result<(FrameTimes, Vec<u32>)> {
    let begin = Instant::now();
    // The answer must have its length: no end token.
    let (mut decoded, Times { vision, passes }) = network.run(caches, &[input], &network.config.eos)?;
    let total = begin.elapsed();
    let decoded = decoded.pop().unwrap_or_else(|| Err(Error::new(Kind::Internal, "no answer came")))?;
    let times = FrameTimes {
        vision,
        prefill: passes.prefill,
        steps: passes.steps,
        total,
        tokens: decoded.ids.len(),
        drafts_accepted: decoded.drafts_accepted,
    };
    Ok((times, decoded.ids))
}

/// Placeholders, `<bos>`, and five words.
fn prompt(config: &Config) -> Arc<[u32]> {
    let mut ids = vec![config.image_token; config.vision.patches()];
    ids.extend([config.bos, 10, 11, 12, 13, 108].map(|id| id.min(config.text.vocab_size as u32 - 1)));
    ids.into()
}

/// Numbers spread evenly over -1..1, others for each seed.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Weights of a decoder's layer, of its output table, of the tower's blocks and of what stands before and behind them.
fn sizes(config: &Config) -> (f64, f64, f64, f64) {
    let (text, vision) = (&config.text, &config.vision);
    let attention = text.hidden_size * text.head_dim * 2 * (text.heads + text.kv_heads);
    let layer = attention + 3 * text.hidden_size * text.intermediate_size;
    let blocks = vision.layers * (4 * vision.hidden_size * vision.hidden_size + 2 * vision.hidden_size * vision.intermediate_size);
    let ends = vision.hidden_size * (3 * vision.patch_size.pow(2) + text.hidden_size);
    (layer as f64, (text.vocab_size * text.hidden_size) as f64, blocks as f64, ends as f64)
}

fn parameters(config: &Config) -> u64 {
    let (layer, table, blocks, ends) = sizes(config);
    let tables = if config.text.tied { 1.0 } else { 2.0 };
    (layer * config.text.windows.len() as f64 + table * tables + blocks + ends) as u64
}

fn work(config: &Config, positions: usize, bytes_per_token: f64) -> Work {
    let (layer, table, blocks, ends) = sizes(config);
    let (text, vision) = (&config.text, &config.vision);
    let (layers, patches, positions) = (text.windows.len() as f64, vision.patches() as f64, positions as f64);
    let seen = |rows: f64, columns: f64, width: usize| 4.0 * rows * columns * width as f64;
    let width = text.heads * text.head_dim;
    Work {
        vision: 2.0 * patches * (blocks + ends) + vision.layers as f64 * seen(patches, patches, vision.hidden_size),
        prefill: layers * (2.0 * positions * layer + seen(positions, positions, width)) + 2.0 * table,
        per_token: layers * (2.0 * layer + seen(1.0, positions, width)) + 2.0 * table,
        bytes_per_token,
    }
}
