//! What a GPU computes, tested where there is none: the processor stands in for another device, so that weights, norms,
//! attention with masks, rotation and the cache go the way through the library that `cuda` and `metal` go.

use std::path::Path;

use super::*;
use crate::types::MinScore;

const CASES: [&str; 5] = ["pg1", "pg1-mqa", "pg2", "pg2-sliding", "pg2-bf16-sharded"];

struct Case {
    folder: tempfile::TempDir,
    expected: serde_json::Value,
}

impl Case {
    /// A reference case as a snapshot folder; all share one tokenizer.
    fn open(name: &str) -> Self {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
        let folder = tempfile::tempdir().unwrap();
        let files = goldens.join(name).read_dir().unwrap().map(|entry| entry.unwrap().path());
        for file in files.chain([goldens.join("tokenizer.json")]) {
            std::os::unix::fs::symlink(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        let mut case = Self { folder, expected: serde_json::Value::Null };
        case.expected = case.read("expected.json");
        case
    }

    fn read(&self, file: &str) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.folder.path().join(file)).unwrap()).unwrap()
    }

    fn load(&self, dtype: Dtype) -> PaliGemma {
        let snapshot = Snapshot { folder: self.folder.path().to_owned(), name: "case".to_owned() };
        PaliGemma::load(&snapshot, LoadOptions { device: Device::Cpu, dtype, cache: None, progress: None }).unwrap()
    }

    fn picture(&self) -> RgbImage {
        image::open(self.folder.path().join("image.png")).unwrap().to_rgb8()
    }

    fn prompt(&self) -> &str {
        self.expected["prompt"].as_str().unwrap()
    }

    fn numbers<T: serde::de::DeserializeOwned>(&self, key: &str) -> Vec<T> {
        serde_json::from_value(self.expected[key].clone()).unwrap()
    }

    fn limits(&self, max_new_tokens: usize) -> Limits {
        Limits { max_new_tokens, min_score: MinScore::default(), suppress: self.numbers("suppressed_ids") }
    }
}

fn most_apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_way_of_other_devices_follows_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        ops::tests::as_elsewhere(|| {
            assert!(!ops::ours(&candle_core::Device::Cpu));
            let model = case.load(Dtype::F32);
            let (image, ids) = (case.picture(), case.numbers::<u32>("generated_ids"));
            let mut session = model.session();
            let mut ask = |draft: &[u32]| {
                let question = Question { image: &image, prompt: case.prompt(), draft };
                session.generate(&question, &case.limits(ids.len())).unwrap()
            };
            let plain = ask(&[]);
            assert_eq!(plain.generated_ids, ids, "{name}");
            let apart = most_apart(&plain.first_logits, &case.numbers("first_logits"));
            assert!(apart < 1e-3, "{name}: logits {apart} apart");
            let apart = most_apart(&plain.token_logprobs, &case.numbers("token_logprobs"));
            assert!(apart < 1e-3, "{name}: log-probabilities {apart} apart");
            // Rows of a draft see less than the prefix: here the mask is at work.
            let mut wrong = ids.clone();
            wrong[5] = (wrong[5] + 1) % 1500;
            for (draft, accepted) in [(&ids, ids.len()), (&wrong, 5)] {
                let drafted = ask(draft);
                assert_eq!(drafted.generated_ids, ids, "{name}");
                assert!(drafted.drafts_accepted >= accepted, "{name}: {}", drafted.drafts_accepted);
            }
        });
    }
}

#[test]
fn other_devices_answer_several_questions_at_once() {
    let case = Case::open("pg2");
    ops::tests::as_elsewhere(|| {
        let model = case.load(Dtype::F32);
        let (image, limits) = (case.picture(), case.limits(12));
        let prompts = ["detect cat", "detect traffic light ; person", "detect dog ; car ; bus"];
        let ask = |prompt| Question { image: &image, prompt, draft: &[] };
        let alone = prompts.map(|prompt| model.session().generate(&ask(prompt), &limits).unwrap());
        for (together, alone) in model.session().generate_all(&prompts.map(ask), &limits).into_iter().zip(&alone) {
            assert_eq!(together.unwrap().generated_ids, alone.generated_ids);
        }
    });
}

/// Positions past 256, which 16 bits cannot tell apart: tables of them must stay in 32.
#[test]
fn other_devices_follow_the_reference_over_long_prompts() {
    for name in CASES {
        let case = Case { expected: Case::open(name).read("long.json"), ..Case::open(name) };
        let ids = case.numbers::<u32>("generated_ids");
        let ask = |dtype| {
            ops::tests::as_elsewhere(|| {
                let question = Question { image: &case.picture(), prompt: case.prompt(), draft: &[] };
                case.load(dtype).session().generate(&question, &case.limits(ids.len())).unwrap()
            })
        };
        let exact = ask(Dtype::F32);
        assert!(exact.input_ids.len() > 300);
        assert_eq!(exact.generated_ids, ids, "{name}");
        let apart = most_apart(&exact.token_logprobs, &case.numbers("token_logprobs"));
        assert!(apart < 1e-3, "{name}: {apart}");
        for (dtype, bound) in [(Dtype::Bf16, 0.3), (Dtype::F16, 0.2)] {
            let apart = most_apart(&ask(dtype).first_logits, &exact.first_logits);
            assert!(apart < bound, "{name} as {dtype:?}: {apart}");
        }
    }
}

/// A GPU's own type: no reference to the token, but all of the way in 16 bits.
#[test]
fn other_devices_compute_in_half_precision() {
    let case = Case::open("pg2");
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let generation = ops::tests::as_elsewhere(|| {
            let question = Question { image: &case.picture(), prompt: case.prompt(), draft: &[] };
            case.load(dtype).session().generate(&question, &case.limits(4)).unwrap()
        });
        let apart = most_apart(&generation.first_logits, &case.numbers("first_logits"));
        assert!(apart < 0.5, "{dtype:?}: {apart}");
    }
}
