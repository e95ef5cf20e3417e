//! Drafts and batches change nothing: answers are, to the bit, those of plain greedy decoding of one question.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use image::{Rgb, RgbImage};
use palisade::model::{Generation, Limits, LoadOptions, PaliGemma, Question, Session, Snapshot};
use palisade::types::{Device, Dtype, Finish, MinScore};

use crate::support::snapshot::copy_of;

const GOLDENS: [&str; 5] = ["pg1", "pg1-mqa", "pg2", "pg2-sliding", "pg2-bf16-sharded"];

const PROMPT: &str = "detect cat ; traffic light";

fn demo() -> Snapshot {
    Snapshot { folder: Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/demo-model"), name: "demo".to_owned() }
}

fn load(snapshot: &Snapshot, dtype: Dtype) -> PaliGemma {
    PaliGemma::load(snapshot, LoadOptions { device: Device::Cpu, dtype, cache: None, progress: None }).unwrap()
}

/// Small steps of a fixed generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn picture(&mut self) -> RgbImage {
        let (x, y, size) = (self.roll(200) as u32, self.roll(200) as u32, 20 + self.roll(60) as u32);
        let colours: Vec<u8> = (0..6).map(|_| self.roll(256) as u8).collect();
        RgbImage::from_fn(260, 240, |column, row| {
            let inside = column.abs_diff(x) < size && row.abs_diff(y) < size;
            let from = if inside { 0 } else { 3 };
            Rgb([colours[from], colours[from + 1], colours[from + 2].wrapping_add((column * row / 64) as u8)])
        })
    }

    fn tokens(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        (0..count).map(|_| self.roll(vocabulary) as u32).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn same(a: &Generation, b: &Generation, what: &str) {
    assert_eq!(a.generated_ids, b.generated_ids, "{what}");
    assert_eq!(bits(&a.token_logprobs), bits(&b.token_logprobs), "{what}");
    assert_eq!(bits(&a.first_logits), bits(&b.first_logits), "{what}");
    assert_eq!((a.finish, &a.text), (b.finish, &b.text), "{what}");
}

/// Drafts of every kind that a stream of frames could bring, and some that it could not.
fn drafts(plain: &[u32], dice: &mut Dice) -> Vec<Vec<u32>> {
    let mut drafts = vec![vec![], plain.to_vec(), vec![1], vec![u32::MAX, 5], dice.tokens(40, 1500)];
    for at in 0..plain.len() {
        let mut wrong = plain.to_vec();
        wrong[at] = (wrong[at] + 1) % 1500;
        drafts.push(wrong.clone());
        // Wrong from here on; cut here; one token too few; one too many.
        wrong.truncate(at);
        drafts.push(wrong.clone());
        wrong.extend(dice.tokens(6, 1500));
        drafts.push(wrong);
        let (mut shorter, mut longer) = (plain.to_vec(), plain.to_vec());
        shorter.remove(at);
        longer.insert(at, 7);
        drafts.extend([shorter, longer]);
    }
    let mut long = plain.to_vec();
    long.extend(dice.tokens(200, 1500));
    drafts.push(long);
    drafts
}

fn drafts_change_nothing(model: &PaliGemma, limits: &Limits, name: &str) {
    let mut session = model.session();
    let mut dice = Dice(name.len() as u64);
    let image = dice.picture();
    let mut ask = |draft: &[u32]| session.generate(&Question { image: &image, prompt: PROMPT, draft }, limits).unwrap();
    let plain = ask(&[]);
    assert_eq!(plain.drafts_accepted, 0);
    for draft in drafts(&plain.generated_ids, &mut dice) {
        let drafted = ask(&draft);
        same(&drafted, &plain, &format!("{name}, draft {draft:?}"));
        let right = draft.iter().zip(&plain.generated_ids).take_while(|(a, b)| a == b).count();
        assert!((right..=plain.generated_ids.len()).contains(&drafted.drafts_accepted), "{name}: {} accepted", drafted.drafts_accepted);
    }
    let whole = ask(&plain.generated_ids);
    assert_eq!(whole.drafts_accepted, plain.generated_ids.len());
}

#[test]
fn drafts_change_nothing_in_the_reference_cases() {
    for case in GOLDENS {
        let (_folder, snapshot) = copy_of(case);
        let limits = Limits { max_new_tokens: 24, min_score: MinScore::default(), suppress: vec![1, 1505] };
        drafts_change_nothing(&load(&snapshot, Dtype::F32), &limits, case);
    }
}

/// The products of each type have ways of their own for one row and for many.
#[test]
fn drafts_change_nothing_in_any_type() {
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q6K, Dtype::Q4K] {
        let (_folder, snapshot) = copy_of("pg2");
        let limits = Limits { max_new_tokens: 16, min_score: MinScore::default(), suppress: vec![1, 1505] };
        let model = load(&snapshot, dtype);
        drafts_change_nothing(&model, &limits, dtype.name());
        batches_change_nothing(&mut model.session(), &limits, &mut Dice(13));
    }
}

#[test]
fn drafts_change_nothing_where_answers_end() {
    let limits = Limits { max_new_tokens: 60, min_score: MinScore::default(), suppress: vec![] };
    drafts_change_nothing(&load(&demo(), Dtype::F32), &limits, "demo");
}

/// A stream: each answer is the next frame's draft, whatever the pictures are.
#[test]
fn a_stream_with_the_last_answer_as_draft_is_answered_as_without() {
    let (_folder, snapshot) = copy_of("pg2-sliding");
    for (snapshot, suppress) in [(demo(), vec![]), (snapshot, vec![1, 1505])] {
        let model = load(&snapshot, Dtype::F32);
        let limits = Limits { max_new_tokens: 40, min_score: MinScore::default(), suppress };
        let (mut plain, mut drafted, mut dice, mut draft) = (model.session(), model.session(), Dice(3), Vec::new());
        let mut image = dice.picture();
        for frame in 0..12 {
            if dice.roll(3) > 0 {
                image = dice.picture();
            }
            let expected = plain.generate(&Question { image: &image, prompt: PROMPT, draft: &[] }, &limits).unwrap();
            let got = drafted.generate(&Question { image: &image, prompt: PROMPT, draft: &draft }, &limits).unwrap();
            same(&got, &expected, &format!("frame {frame}"));
            draft = got.generated_ids;
        }
    }
}

fn batches_change_nothing(session: &mut Session, limits: &Limits, dice: &mut Dice) {
    const PROMPTS: [&str; 5] = [PROMPT, "detect bird", "caption en", "detect a ; b ; c ; d ; e ; f", ""];
    let images: Vec<RgbImage> = (0..5).map(|_| dice.picture()).collect();
    let plain: Vec<Generation> = images
        .iter()
        .zip(PROMPTS)
        .map(|(image, prompt)| session.generate(&Question { image, prompt, draft: &[] }, limits).unwrap())
        .collect();
    for size in [1, 2, 5] {
        for with_drafts in [false, true] {
            let drafts: Vec<Vec<u32>> = plain
                .iter()
                .map(|plain| {
                    let all = drafts(&plain.generated_ids, dice);
                    if with_drafts { all[dice.roll(all.len())].clone() } else { Vec::new() }
                })
                .collect();
            let questions: Vec<Question<'_>> =
                (0..size).map(|at| Question { image: &images[at], prompt: PROMPTS[at], draft: &drafts[at] }).collect();
            for (at, got) in session.generate_all(&questions, limits).into_iter().enumerate() {
                same(&got.unwrap(), &plain[at], &format!("question {at} of {size}"));
            }
        }
    }
}

#[test]
fn a_batch_answers_as_its_questions_alone() {
    for case in GOLDENS {
        let (_folder, snapshot) = copy_of(case);
        let limits = Limits { max_new_tokens: 20, min_score: MinScore::default(), suppress: vec![1, 1505] };
        batches_change_nothing(&mut load(&snapshot, Dtype::F32).session(), &limits, &mut Dice(11));
    }
    let limits = Limits { max_new_tokens: 50, min_score: MinScore::default(), suppress: vec![] };
    batches_change_nothing(&mut load(&demo(), Dtype::F32).session(), &limits, &mut Dice(12));
}

#[test]
fn a_bad_question_in_a_batch_costs_itself_only() {
    let model = load(&demo(), Dtype::F32);
    let limits = Limits { max_new_tokens: 8, min_score: MinScore::default(), suppress: vec![] };
    let (good, empty) = (Dice(5).picture(), RgbImage::new(0, 0));
    let ask = |image, prompt| Question { image, prompt, draft: &[] };
    let questions = [ask(&good, PROMPT), ask(&empty, PROMPT), ask(&good, "detect <image>"), ask(&good, "detect dog")];
    let answers = model.session().generate_all(&questions, &limits);
    let went_well: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(went_well, [true, false, false, true]);
    same(answers[0].as_ref().unwrap(), &model.session().generate(&questions[0], &limits).unwrap(), "the first");
    assert!(model.session().generate_all(&[], &limits).is_empty());
    assert!(answers[3].as_ref().is_ok_and(|answer| answer.finish == Finish::Eos || answer.generated_ids.len() == 8));
}
