//! STUB, to be replaced: made-up times in the shape of real ones, so that the command around them can be built and tested.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::base::{Context, Kind, Result};
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

/// Makes numbers up.
///
/// # Errors
/// When the subject's `config.json` cannot be opened.
pub fn measure(subject: Subject<'_>, _: LoadOptions, bench: &MeasureOptions) -> Result<Measured> {
    let (name, config) = match subject {
        Subject::Checkpoint(snapshot) => (snapshot.name.clone(), snapshot.folder.join("config.json")),
        Subject::Random(path) => (path.display().to_string(), path.to_owned()),
    };
    File::open(&config).context(Kind::Model, || format!("{} cannot be read", config.display()))?;
    let accepted = if bench.still { bench.tokens } else { 0 };
    let frame = |index: usize| {
        let millis = |base: f64| Duration::from_secs_f64((base + index as f64) / 1e3);
        let (vision, prefill, step) = (millis(400.0), millis(4000.0), millis(200.0));
        let steps = if bench.still { Vec::new() } else { vec![step; bench.tokens - 1] };
        let total = vision + prefill + steps.iter().sum::<Duration>();
        FrameTimes { vision, prefill, steps, total, tokens: bench.tokens, drafts_accepted: accepted }
    };
    Ok(Measured {
        name,
        dtype: "f32",
        device: "cpu".to_owned(),
        isa: "avx2",
        threads: 2,
        positions: 262,
        parameters: 3_032_242_416,
        load: Duration::from_millis(4321),
        frames: (0..bench.frames).map(frame).collect(),
        work: Work { vision: 0.22e12, prefill: 1.06e12, per_token: 5.2e9, bytes_per_token: 10.4e9 },
    })
}
