//! The model against `transformers` 5.23: five small checkpoints with random weights, and what the reference made of them.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;

use palisade::base::{Error, Kind};
use palisade::model::{Limits, LoadOptions, PaliGemma, Question, Snapshot};
use palisade::types::{Box01, Device, Dtype, Finish, MinScore};
use serde_json::Value;

use crate::support::snapshot::{copy_of, golden};

const F32: LoadOptions = LoadOptions { device: Device::Cpu, dtype: Dtype::Auto, cache: None, progress: None };

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

fn question<'a>(image: &'a image::RgbImage, prompt: &'a str) -> Question<'a> {
    Question { image, prompt, draft: &[] }
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
    let limits = Limits { max_new_tokens: generated_ids.len(), min_score: MinScore::default(), suppress: ids(&expected["suppressed_ids"]) };
    // Twice: the second run finds the first one's keys in the cache.
    for _ in 0..2 {
        let generation = session.generate(&question(&picture(case), expected["prompt"].as_str().unwrap()), &limits).unwrap();
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

/// A prompt of over 300 tokens: positions past 256, and with a short window answers that have lost sight of the beginning.
#[test]
fn long_prompts_follow_the_reference() {
    for case in ["pg1", "pg1-mqa", "pg2", "pg2-sliding", "pg2-bf16-sharded"] {
        let (_folder, snapshot) = copy_of(case);
        let long: Value = serde_json::from_str(&std::fs::read_to_string(golden(case).join("long.json")).unwrap()).unwrap();
        let generated_ids = ids(&long["generated_ids"]);
        let limits = Limits { max_new_tokens: generated_ids.len(), min_score: MinScore::default(), suppress: ids(&long["suppressed_ids"]) };
        let ask = |dtype| {
            let model = PaliGemma::load(&snapshot, LoadOptions { dtype, ..F32 }).unwrap();
            let generation = model.session().generate(&question(&picture(case), long["prompt"].as_str().unwrap()), &limits).unwrap();
            assert!(generation.input_ids.len() > 300 && generation.input_ids.len() as u64 == long["prefix"].as_u64().unwrap());
            generation
        };
        let exact = ask(Dtype::F32);
        assert_eq!(exact.generated_ids, generated_ids, "{case}");
        let apart = most_apart(&exact.token_logprobs, &floats(&long["token_logprobs"]));
        assert!(apart < 1e-3, "{case}: {apart}");
        // Rounded weights move the logits by their rounding; positions that fell together would do so far more.
        for (dtype, bound) in [(Dtype::F16, 0.05), (Dtype::Bf16, 0.3), (Dtype::Q8_0, 0.5)] {
            let apart = most_apart(&ask(dtype).first_logits, &exact.first_logits);
            println!("{case} as {dtype:?}: {apart}");
            assert!(apart < bound, "{case} as {dtype:?}: {apart}");
        }
    }
}

fn load(snapshot: &Snapshot) -> Result<PaliGemma, Error> {
    PaliGemma::load(snapshot, F32)
}

/// The sentence with which a damaged copy of `pg2` is refused.
fn refused(damage: impl FnOnce(&Path)) -> String {
    let (_folder, snapshot) = copy_of("pg2");
    damage(&snapshot.folder);
    let error = load(&snapshot).err().expect("a damaged model is refused");
    assert_eq!(error.kind(), Kind::Model);
    error.chain()
}

/// Rewrites one number or word in a text file.
fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from));
    std::fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// Renames a tensor in the header without moving the data: the new name is as long as the old one.
fn rename_tensor(folder: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn missing_files_are_named() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let said = refused(|folder| std::fs::remove_file(folder.join(file)).unwrap());
        assert!(said.starts_with(&format!("{file} is missing in ")), "{said}");
    }
    let (_folder, snapshot) = copy_of("pg2-bf16-sharded");
    std::fs::remove_file(snapshot.folder.join("model-00002-of-00002.safetensors")).unwrap();
    let said = load(&snapshot).err().unwrap().chain();
    assert!(said.starts_with("model-00002-of-00002.safetensors is missing in "), "{said}");
}

#[test]
fn a_missing_tensor_is_named_with_the_shape_it_must_have() {
    let said = refused(|folder| rename_tensor(folder, "layers.2.mlp.up_proj.weight", "layers.2.mlp.xx_proj.weight"));
    assert!(said.contains("tensor model.language_model.layers.2.mlp.up_proj.weight in "), "{said}");
    assert!(said.ends_with("is missing; must be there with shape [96, 48]"), "{said}");
    let said = refused(|folder| rename_tensor(folder, "embed_tokens.weight", "embed_tokenz.weight"));
    assert!(said.contains("embed_tokens.weight in ") && said.contains("is missing"), "{said}");
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let said = refused(|folder| edit(&folder.join("config.json"), "\"intermediate_size\": 96", "\"intermediate_size\": 64"));
    assert!(said.contains("layers.0.mlp.gate_proj.weight in ") && said.ends_with("has shape [96, 48]; must be [64, 48]"), "{said}");
    let said = refused(|folder| edit(&folder.join("config.json"), "\"image_size\": 56", "\"image_size\": 70"));
    assert!(said.contains("size is 56x56; must be 70x70"), "{said}");
}

#[test]
fn a_tensor_that_the_network_does_not_take_is_named() {
    // A layer fewer than the file has.
    let said = refused(|folder| edit(&folder.join("config.json"), "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3"));
    assert!(said.contains("tensor model.language_model.layers.3.") && said.ends_with("and nothing in this network takes it"), "{said}");
}

#[test]
fn a_cut_or_foreign_weight_file_is_named() {
    let truncate = |len: u64| {
        move |folder: &Path| std::fs::File::options().write(true).open(folder.join("model.safetensors")).unwrap().set_len(len).unwrap()
    };
    for len in [1_090_000, 500, 9] {
        let said = refused(truncate(len));
        assert!(said.contains("model.safetensors is cut short: it has ") && said.ends_with("fetch it again"), "{said}");
    }
    for garbage in [&b""[..], b"<html>moved</html>", &[0; 4096], b"version https://git-lfs.github.com/spec/v1"] {
        let said = refused(|folder| std::fs::write(folder.join("model.safetensors"), garbage).unwrap());
        assert!(said.contains("is no safetensors file"), "{said}");
    }
}

#[test]
fn unusable_texts_are_named() {
    for file in ["config.json", "tokenizer.json", "preprocessor_config.json"] {
        let said = refused(|folder| std::fs::write(folder.join(file), "{\"a\": ").unwrap());
        assert!(said.contains(file), "{said}");
    }
    let said = refused(|folder| edit(&folder.join("config.json"), "\"image_token_index\": 1505", "\"image_token_index\": 7"));
    assert!(said.contains("<image> is token 1505") && said.contains("must be 7"), "{said}");
}

#[test]
fn a_gpu_that_the_program_was_not_built_for_is_refused() {
    let (_folder, snapshot) = copy_of("pg2");
    for (device, name) in [(Device::Cuda(0), "cuda"), (Device::Metal(1), "metal")] {
        if name == "cuda" && cfg!(feature = "cuda") || name == "metal" && cfg!(feature = "metal") {
            continue;
        }
        let error = PaliGemma::load(&snapshot, LoadOptions { device, dtype: Dtype::Auto, ..F32 }).err().unwrap();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.chain().contains(name) && error.chain().contains(&format!("--features {name}")), "{error}");
    }
}

#[test]
fn half_precision_stays_close() {
    let (_folder, snapshot) = copy_of("pg2");
    let limits = Limits { max_new_tokens: 1, min_score: MinScore::default(), suppress: vec![] };
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let model = PaliGemma::load(&snapshot, LoadOptions { dtype, ..F32 }).unwrap();
        let generation = model.session().generate(&question(&picture("pg2"), "detect cat ; dog"), &limits).unwrap();
        let apart = most_apart(&generation.first_logits, &floats(&expected("pg2")["first_logits"]));
        println!("{dtype:?}: {apart}");
        assert!(apart < 0.5, "{dtype:?}: {apart}");
    }
}

#[test]
fn prompts_that_cannot_be_asked_are_refused_and_the_session_lives_on() {
    let (_folder, snapshot) = copy_of("pg2");
    let mut session = load(&snapshot).unwrap().session();
    let limits = Limits { max_new_tokens: 2, min_score: MinScore::default(), suppress: vec![] };
    let error = session.generate(&question(&picture("pg2"), "detect <image> cat"), &limits).unwrap_err();
    assert_eq!(error.kind(), Kind::Input);
    assert!(error.chain().contains("holds <image>"), "{error}");
    let Err(error) = session.generate(&question(&picture("pg2"), &"cat ; ".repeat(5000)), &limits) else {
        panic!("a prompt beyond the context was taken")
    };
    assert!(error.chain().contains("must be fewer than 8192"), "{error}");
    assert_eq!(session.generate(&question(&image::RgbImage::new(0, 3), "detect cat"), &limits).unwrap_err().kind(), Kind::Input);
    // Other special tokens are taken as the reference takes them: as tokens.
    let generation = session.generate(&question(&picture("pg2"), "detect <eos> <loc0007> 猫\u{0}"), &limits).unwrap();
    assert!(generation.input_ids.contains(&1));
    assert_eq!(generation.input_ids.iter().filter(|&&id| id == 1505).count(), 16);
    assert!(session.generate(&question(&image::RgbImage::new(1, 3000), ""), &limits).is_ok());
}

#[test]
fn sessions_share_the_weights_and_do_not_disturb_each_other() {
    let (_folder, snapshot) = copy_of("pg2-sliding");
    let model = load(&snapshot).unwrap();
    let limits = Limits { max_new_tokens: 16, min_score: MinScore::default(), suppress: vec![1, 1505] };
    let ask = |model: PaliGemma, limits: Limits| {
        std::thread::spawn(move || {
            let mut session = model.session();
            (0..5)
                .map(|_| session.generate(&question(&picture("pg2-sliding"), "detect traffic light"), &limits).unwrap().generated_ids)
                .collect::<Vec<_>>()
        })
    };
    let threads: Vec<_> = (0..3).map(|_| ask(model.clone(), limits.clone())).collect();
    for thread in threads {
        assert!(thread.join().unwrap().iter().all(|found| *found == ids(&expected("pg2-sliding")["generated_ids"])));
    }
}

/// A red disc on grey is in no training set; the demo model's own world is a street of sprites. What can be asked of any
/// picture is that the answer parses, ends, and has sane boxes and scores.
#[test]
fn the_demo_model_answers_in_the_grammar() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/demo-model");
    let model = load(&Snapshot { folder, name: "demo".to_owned() }).unwrap();
    let picture = image::RgbImage::from_fn(640, 360, |x, y| {
        let inside = (f64::from(x) - 400.0).hypot(f64::from(y) - 180.0) < 70.0;
        if inside { image::Rgb([200, 40, 30]) } else { image::Rgb([120, 125, 130]) }
    });
    let limits = Limits { max_new_tokens: 60, min_score: MinScore::default(), suppress: vec![] };
    let answer = model.session().answer(&question(&picture, "detect cat ; car ; traffic light"), &limits).unwrap();
    println!("{answer:?}");
    assert_eq!(answer.finish, Finish::Eos);
    for detection in &answer.detections {
        let Box01 { y_min, x_min, y_max, x_max } = detection.box01;
        assert!(y_min < y_max && x_min < x_max && (0.0..=1.0).contains(&detection.score));
    }
}
