//! How fast it is on this machine: `bench model` measures a model, with its weights or with random ones of its shape,
//! `bench cameras` what comes before it, `bench mqtt` and `bench outputs` what comes behind it. Each tells it as a table or as one JSON object.

pub mod cameras;
pub mod mqtt;
pub mod outputs;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::app::oneshot::{model_source, print};
use crate::base::error::{Error, Kind, Result};
use crate::base::memory;
use crate::model::{self, FrameTimes, HubOptions, LoadOptions, MeasureOptions, Measured, Subject};
use crate::types::{Device, Dtype, ModelSource};

/// Stands in the table where there is no figure.
const NONE: &str = "–";

/// What `palisade bench model` is asked to do.
pub struct ModelArgs {
    /// Whose weights.
    pub weights: Weights,
    /// What computes.
    pub device: Device,
    /// The weights' type in memory.
    pub dtype: Dtype,
    /// Tokens of each answer.
    pub tokens: usize,
    /// Frames to report; at least one.
    pub frames: usize,
    /// The answer before is each frame's draft.
    pub still: bool,
    /// One JSON object instead of a table.
    pub json: bool,
}

/// The weights that are measured.
#[derive(Debug, PartialEq, Eq)]
pub enum Weights {
    /// A checkpoint's.
    Of(ModelSource),
    /// Random ones, of the shape in this `config.json`.
    Random(PathBuf),
}

impl Weights {
    /// From the command line's `--model`, `--config` and `--random`.
    ///
    /// # Errors
    /// When they do not go together, or the model is neither a folder nor a hub id.
    pub fn named(model: Option<&str>, config: Option<PathBuf>, random: bool) -> Result<Self> {
        let wrong = |sentence: String| Err(Error::new(Kind::Input, sentence));
        match (model, config, random) {
            (Some(model), None, false) => model_source(model).map(Self::Of),
            (None, Some(config), true) => Ok(Self::Random(config)),
            (Some(_), Some(_), _) => wrong("--model and --config are given; must be one of the two".to_owned()),
            (Some(_), None, true) => {
                wrong("--random draws no weights for --model, which has its own; must go with --config FILE".to_owned())
            }
            (None, Some(config), false) => {
                wrong(format!("--config {} has no weights; add --random to draw some, or give --model", config.display()))
            }
            (None, None, _) => wrong("no model to measure; must be --model DIR|HUB_ID, or --config FILE --random".to_owned()),
        }
    }
}

/// Measures a model and prints what came out.
///
/// # Errors
/// When the model cannot be loaded or run, or the output cannot be written.
pub fn model(args: &ModelArgs) -> Result<()> {
    let options = LoadOptions::new(args.device, args.dtype);
    let bench = MeasureOptions { tokens: args.tokens, frames: args.frames, still: args.still };
    let measured = match &args.weights {
        Weights::Of(source) => {
            let snapshot = model::resolve(source, &HubOptions::from_env())?;
            model::measure(Subject::Checkpoint(&snapshot), options, &bench)?
        }
        Weights::Random(config) => model::measure(Subject::Random(config), options, &bench)?,
    };
    let report = Report::new(measured, args.still, memory::peak_mib());
    print(&if args.json { report.as_json().to_string() } else { report.as_text() })
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of an even count the median is the mean of the two in the middle; `None` of nothing.
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median, min, max })
    }

    fn as_json(self) -> Value {
        json!({"median": rounded(self.median, 3), "min": rounded(self.min, 3), "max": rounded(self.max, 3)})
    }
}

/// What was measured, summed up. A `Spread`, and the rate that rests on it, is missing where nothing happened: a draft
/// that is right throughout leaves nothing to decode.
struct Report {
    measured: Measured,
    still: bool,
    /// MiB.
    peak: Option<f64>,
    /// Milliseconds, as the other three.
    vision: Option<Spread>,
    prefill: Option<Spread>,
    /// Over all steps of all frames.
    step: Option<Spread>,
    total: Option<Spread>,
    /// Medians of the frames' counts.
    tokens: Option<f64>,
    drafts_accepted: Option<f64>,
    /// GFLOP/s at the median time, as the next two.
    vision_rate: Option<f64>,
    prefill_rate: Option<f64>,
    decode_rate: Option<f64>,
    /// GB/s of weights at the median time of a step.
    weights_rate: Option<f64>,
}

impl Report {
    fn new(measured: Measured, still: bool, peak: Option<f64>) -> Self {
        let (frames, work) = (&measured.frames, &measured.work);
        let times = |time: fn(&FrameTimes) -> Duration| Spread::of(frames.iter().map(time).map(millis));
        let counts = |count: fn(&FrameTimes) -> usize| Some(Spread::of(frames.iter().map(|frame| count(frame) as f64))?.median);
        let (vision, prefill, total) = (times(|frame| frame.vision), times(|frame| frame.prefill), times(|frame| frame.total));
        let step = Spread::of(frames.iter().flat_map(|frame| &frame.steps).copied().map(millis));
        Self {
            vision,
            prefill,
            step,
            total,
            tokens: counts(|frame| frame.tokens),
            drafts_accepted: counts(|frame| frame.drafts_accepted),
            vision_rate: giga_per_second(work.vision, vision),
            prefill_rate: giga_per_second(work.prefill, prefill),
            decode_rate: giga_per_second(work.per_token, step),
            weights_rate: giga_per_second(work.bytes_per_token, step),
            still,
            peak,
            measured,
        }
    }

    fn as_json(&self) -> Value {
        let Measured { name, dtype, device, isa, threads, positions, parameters, load, frames, .. } = &self.measured;
        let spread = |spread: Option<Spread>| spread.map(Spread::as_json);
        let rate = |rate: Option<f64>| rate.map(|rate| rounded(rate, 3));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": name,
            "parameters": parameters,
            "dtype": dtype,
            "device": device,
            "isa": isa,
            "threads": threads,
            "positions": positions,
            "frames": frames.len(),
            "still": self.still,
            "tokens": self.tokens.map(count),
            "drafts_accepted": self.drafts_accepted.map(count),
            "load_ms": rounded(millis(*load), 3),
            "vision_ms": spread(self.vision),
            "prefill_ms": spread(self.prefill),
            "per_token_ms": spread(self.step),
            "total_ms": spread(self.total),
            "gflops": {"vision": rate(self.vision_rate), "prefill": rate(self.prefill_rate), "decode": rate(self.decode_rate)},
            "weights_gb_per_s": rate(self.weights_rate),
            "peak_rss_mib": self.peak.map(|peak| rounded(peak, 1)),
        })
    }

    fn as_text(&self) -> String {
        let Measured { name, dtype, device, isa, threads, positions, parameters, load, frames, .. } = &self.measured;
        let mut text = format!(
            "{name}\n{} parameters, {dtype}, {device}, {isa}, {threads} threads, palisade {}\n\
             {} frames{}, {positions} positions before the answer\n\n",
            in_words(*parameters),
            env!("CARGO_PKG_VERSION"),
            frames.len(),
            if self.still { " of a still scene" } else { "" },
        );
        let gflops = |rate: Option<f64>| rate.map(|rate| format!("{rate:.1} GFLOP/s")).unwrap_or_default();
        let weights = self.weights_rate.map(|rate| format!(", {rate:.1} GB/s of weights")).unwrap_or_default();
        let pace = self.total.map(|total| format!("{:.2} frames/s", 1e3 / total.median)).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<16}{:>12}{:>12}{:>12}", "ms", "median", "min", "max");
        let _ = writeln!(text, "{:<16}{:>12}", "load", digits(millis(*load)));
        for (stage, spread, beside) in [
            ("vision", self.vision, gflops(self.vision_rate)),
            ("prefill", self.prefill, gflops(self.prefill_rate)),
            ("per token", self.step, gflops(self.decode_rate) + &weights),
            ("total", self.total, pace),
        ] {
            let _ = writeln!(text, "{}", row(stage, spread, &beside));
        }
        let known = |value: Option<String>| value.unwrap_or_else(|| NONE.to_owned());
        let _ = writeln!(text, "\n{:<16}{:>12}", "tokens", known(self.tokens.map(|count| count.to_string())));
        let _ = writeln!(text, "{:<16}{:>12}", "drafts accepted", known(self.drafts_accepted.map(|count| count.to_string())));
        let _ = write!(text, "{:<16}{:>12}", "peak memory MiB", known(self.peak.map(|peak| format!("{peak:.0}"))));
        text
    }
}

/// A line of the table.
fn row(stage: &str, spread: Option<Spread>, beside: &str) -> String {
    let [median, min, max] = match spread {
        Some(Spread { median, min, max }) => [median, min, max].map(digits),
        None => [NONE; 3].map(str::to_owned),
    };
    format!("{stage:<16}{median:>12}{min:>12}{max:>12}   {beside}").trim_end().to_owned()
}

/// Milliseconds with the digits that matter: a large model's token takes hundreds, the demo model's about one.
fn digits(millis: f64) -> String {
    if millis < 100.0 { format!("{millis:.2}") } else { format!("{millis:.1}") }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What a median of milliseconds makes of operations or bytes, in thousands of millions a second.
fn giga_per_second(amount: f64, time: Option<Spread>) -> Option<f64> {
    Some(amount / time?.median / 1e6)
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// A median of counts is whole but where two frames differ.
fn count(median: f64) -> Value {
    if median.fract() == 0.0 { json!(median as u64) } else { json!(median) }
}

fn in_words(parameters: u64) -> String {
    match parameters as f64 {
        many @ 1e9.. => format!("{:.2} billion", many / 1e9),
        some => format!("{:.2} million", some / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Work;

    fn frame(vision: u64, steps: &[u64], drafts_accepted: usize) -> FrameTimes {
        let ms = Duration::from_millis;
        let total = ms(vision + 1000 + steps.iter().sum::<u64>());
        let steps = steps.iter().copied().map(ms).collect();
        FrameTimes { vision: ms(vision), prefill: ms(1000), steps, total, tokens: 3, drafts_accepted }
    }

    fn report(frames: Vec<FrameTimes>) -> Report {
        let measured = Measured {
            name: "owner/name".to_owned(),
            dtype: "q8_0",
            device: "cpu".to_owned(),
            isa: "avx2",
            threads: 2,
            positions: 262,
            parameters: 3_032_242_416,
            load: Duration::from_millis(4321),
            frames,
            work: Work { vision: 40e9, prefill: 100e9, per_token: 5e9, bytes_per_token: 3e9 },
        };
        Report::new(measured, false, Some(3901.26))
    }

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[7.0]), Some(Spread { median: 7.0, min: 7.0, max: 7.0 }));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(spread(&[9.0, 4.0, 1.0, 2.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn the_object_has_times_and_what_follows_from_them() {
        let object = report(vec![frame(400, &[100, 120], 0), frame(200, &[], 3)]).as_json();
        let spread = |median: f64, min: f64, max: f64| json!({"median": median, "min": min, "max": max});
        let expected = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": "owner/name",
            "parameters": 3_032_242_416_u64,
            "dtype": "q8_0",
            "device": "cpu",
            "isa": "avx2",
            "threads": 2,
            "positions": 262,
            "frames": 2,
            "still": false,
            "tokens": 3,
            "drafts_accepted": 1.5,
            "load_ms": 4321.0,
            "vision_ms": spread(300.0, 200.0, 400.0),
            "prefill_ms": spread(1000.0, 1000.0, 1000.0),
            "per_token_ms": spread(110.0, 100.0, 120.0),
            "total_ms": spread(1410.0, 1200.0, 1620.0),
            // 40 G in 300 ms, 100 G in 1 s, 5 G in 110 ms; 3 GB in 110 ms.
            "gflops": {"vision": 133.333, "prefill": 100.0, "decode": 45.455},
            "weights_gb_per_s": 27.273,
            "peak_rss_mib": 3901.3,
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn where_nothing_was_decoded_nothing_is_told_of_it() {
        let report = report(vec![frame(400, &[], 3)]);
        let object = report.as_json();
        assert!(object["per_token_ms"].is_null() && object["gflops"]["decode"].is_null() && object["weights_gb_per_s"].is_null());
        assert_eq!(object["drafts_accepted"], 3);
        let text = report.as_text();
        let line = text.lines().find(|line| line.starts_with("per token")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["per", "token", "–", "–", "–"]);
    }

    #[test]
    fn the_table_is_aligned() {
        let mut report = report(vec![frame(400, &[90, 120], 0), frame(200, &[7], 0)]);
        report.still = true;
        let expected = format!(
            "\
owner/name
3.03 billion parameters, q8_0, cpu, avx2, 2 threads, palisade {}
2 frames of a still scene, 262 positions before the answer

ms                    median         min         max
load                  4321.0
vision                 300.0       200.0       400.0   133.3 GFLOP/s
prefill               1000.0      1000.0      1000.0   100.0 GFLOP/s
per token              90.00        7.00       120.0   55.6 GFLOP/s, 33.3 GB/s of weights
total                 1408.5      1207.0      1610.0   0.71 frames/s

tokens                     3
drafts accepted            0
peak memory MiB         3901",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(report.as_text(), expected);
    }

    #[test]
    fn the_arguments_name_one_set_of_weights() {
        let named = |model: Option<&str>, config: Option<&str>, random| Weights::named(model, config.map(PathBuf::from), random);
        assert_eq!(named(Some("samples"), None, false).unwrap(), Weights::Of(ModelSource::Folder("samples".into())));
        assert_eq!(named(None, Some("a.json"), true).unwrap(), Weights::Random("a.json".into()));
        for (model, config, random, sentence) in [
            (None, None, false, "no model to measure"),
            (None, None, true, "no model to measure"),
            (None, Some("a.json"), false, "--config a.json has no weights; add --random"),
            (Some("samples"), None, true, "--random draws no weights for --model"),
            (Some("samples"), Some("a.json"), false, "--model and --config are given"),
            (Some("samples"), Some("a.json"), true, "--model and --config are given"),
            (Some("nowhere"), None, false, "neither a folder here nor"),
        ] {
            let told = named(model, config, random).unwrap_err().chain();
            assert!(told.contains(sentence), "{told}");
        }
    }
}
