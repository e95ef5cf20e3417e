//! The model against `transformers` 5.23: five small checkpoints with random weights, and what the reference made of them.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;

use palisade::base::Kind;
use palisade::config::{Device, Dtype};
use palisade::model::{Limits, LoadOptions, PaliGemma, Snapshot};
use palisade::types::Finish;
use serde_json::Value;

use crate::support::snapshot::{copy_of, golden};

const F32: LoadOptions = LoadOptions { device: Device::Cpu, dtype: Dtype::Auto };

fn expected(case: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(case).join("expected.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn most_apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn picture(case: &str) -> image::RgbImage {
    image::open(golden(case).join("image.png")).unwrap().to_rgb8()
}

fn follows_the_reference(case: &str) {
    let (_folder, snapshot) = copy_of(case);
    let expected = expected(case);
    let model = PaliGemma::load(&snapshot, F32).unwrap();
    let mut session = model.session();
    let generated_ids = ids(&expected["generated_ids"]);
    let limits = Limits { max_new_tokens: generated_ids.len(), min_score: 0.0, suppress: ids(&expected["suppressed_ids"]) };
    // Twice: the second run finds the first one's keys in the cache.
    for _ in 0..2 {
        let generation = session.generate(&picture(case), expected["prompt"].as_str().unwrap(), &limits).unwrap();
        assert_eq!(generation.input_ids, ids(&expected["input_ids"]));
        let logits_apart = most_apart(&generation.first_logits, &floats(&expected["first_logits"]));
        assert_eq!(generation.generated_ids, generated_ids);
        let logprobs_apart = most_apart(&generation.token_logprobs, &floats(&expected["token_logprobs"]));
        assert_eq!(generation.text, expected["text"].as_str().unwrap());
        assert_eq!(generation.finish, Finish::Length);
        println!("{case}: logits {logits_apart:.1e} apart, log-probabilities {logprobs_apart:.1e}");
        assert!(logits_apart < 1e-3 && logprobs_apart < 1e-3);
    }
}

#[test]
fn paligemma_1_follows_the_reference() {
    follows_the_reference("pg1");
}

#[test]
fn paligemma_1_with_one_key_head_follows_the_reference() {
    follows_the_reference("pg1-mqa");
}

#[test]
fn paligemma_2_follows_the_reference() {
    follows_the_reference("pg2");
}

#[test]
fn paligemma_2_with_a_short_window_follows_the_reference() {
    follows_the_reference("pg2-sliding");
}

#[test]
fn paligemma_2_in_bfloat16_shards_follows_the_reference() {
    follows_the_reference("pg2-bf16-sharded");
}
