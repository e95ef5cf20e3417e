//! What leaves the program is what the reference would have made of the same picture and prompt: pictures of every kind,
//! scores, bounds, and the tasks that give no boxes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{DynamicImage, ImageBuffer, Rgb, RgbImage};
use palisade::base::picture::read_image;
use palisade::config::{Device, Dtype};
use palisade::model::{Limits, LoadOptions, PaliGemma, Question, Snapshot};
use palisade::types::{Finish, MinScore};
use serde_json::Value;
use tempfile::{TempDir, tempdir};
use tokenizers::Tokenizer;

use crate::support::daemon::{PALISADE, repository};

const PROMPT: &str = "detect person ; car ; bird ; traffic light";

/// A frame of the sample clip with several objects on it.
fn street() -> RgbImage {
    let folder = tempdir().unwrap();
    let path = folder.path().join("frame.png");
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-ss", "2", "-i"]).arg(repository("samples/street.mp4")).args(["-frames:v", "1"]).arg(&path);
    assert!(command.status().expect("ffmpeg must be installed: apt install ffmpeg").success());
    image::open(path).unwrap().into_rgb8()
}

fn demo_model() -> PaliGemma {
    let snapshot = Snapshot { folder: repository("samples/demo-model"), name: "demo".to_owned() };
    PaliGemma::load(&snapshot, LoadOptions { device: Device::Cpu, dtype: Dtype::F32, cache: None, progress: None }).unwrap()
}

fn limits(max_new_tokens: usize) -> Limits {
    Limits { max_new_tokens, min_score: MinScore::default(), suppress: Vec::new() }
}

fn palisade(arguments: &[&str], images: &[&Path]) -> Output {
    let images = images.iter().map(|path| path.to_str().unwrap());
    let fixed = ["detect", "--model", "samples/demo-model", "--json"];
    Command::new(PALISADE).args(fixed).args(arguments).args(images).current_dir(repository("")).output().unwrap()
}

/// One JSON object a picture.
fn answers(output: &Output) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A JPEG with the EXIF orientation `value` in a segment of its own.
fn jpeg(picture: &RgbImage, value: u8, little_endian: bool) -> Vec<u8> {
    let mut plain = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut plain, 100).encode_image(picture).unwrap();
    // TIFF header, one entry: tag 0x0112, a short, one of it, the value; no further directory.
    let tiff = match little_endian {
        true => [&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..], &[value, 0, 0, 0], &[0; 4]].concat(),
        false => [&b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01"[..], &[0, value, 0, 0], &[0; 4]].concat(),
    };
    let payload = [&b"Exif\0\0"[..], &tiff].concat();
    [&plain[..2], &[0xff, 0xe1, 0, payload.len() as u8 + 2], &payload, &plain[2..]].concat()
}

/// The picture as a camera held so stores it: by the EXIF standard, row 0 and column 0 of the file are these sides of it.
fn stored(upright: &RgbImage, orientation: u8) -> RgbImage {
    let (w, h) = upright.dimensions();
    let (width, height) = if orientation < 5 { (w, h) } else { (h, w) };
    RgbImage::from_fn(width, height, |column, row| {
        let (x, y) = match orientation {
            1 => (column, row),                 // top, left
            2 => (w - 1 - column, row),         // top, right
            3 => (w - 1 - column, h - 1 - row), // bottom, right
            4 => (column, h - 1 - row),         // bottom, left
            5 => (row, column),                 // left, top
            6 => (w - 1 - row, column),         // right, top
            7 => (w - 1 - row, h - 1 - column), // right, bottom
            _ => (row, h - 1 - column),         // left, bottom
        };
        *upright.get_pixel(x, y)
    })
}

fn read(folder: &Path, name: &str, bytes: &[u8]) -> RgbImage {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    read_image(&path).unwrap()
}

fn most_apart(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn transparency_is_left_out_as_pillow_does_it() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.png");
    let save = |picture: DynamicImage| {
        picture.save(&path).unwrap();
        read_image(&path).unwrap().into_raw()
    };
    let rgba = ImageBuffer::from_raw(2, 1, vec![10, 20, 30, 0, 40, 50, 60, 128]).unwrap();
    assert_eq!(save(DynamicImage::ImageRgba8(rgba)), [10, 20, 30, 40, 50, 60]);
    let grey_alpha = ImageBuffer::from_raw(2, 1, vec![7, 0, 200, 9]).unwrap();
    assert_eq!(save(DynamicImage::ImageLumaA8(grey_alpha)), [7, 7, 7, 200, 200, 200]);
    let grey = ImageBuffer::from_raw(2, 1, vec![7, 200]).unwrap();
    assert_eq!(save(DynamicImage::ImageLuma8(grey)), [7, 7, 7, 200, 200, 200]);
}

/// 3×1, the first colour transparent, the second half so.
const PALETTE_WITH_TRANSPARENCY: &[u8] = b"\
    \x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x03\x00\x00\x00\x01\x08\x03\
    \x00\x00\x00,>\xe4\x86\x00\x00\x00\x09PLTE\x0a\x14\x1e(2<FPZ\x16\xac\
    \x84t\x00\x00\x00\x03tRNS\x00\x80\xff\xec\xf7\xb3\x18\x00\x00\x00\x0fIDATx\
    \x01\x01\x04\x00\xfb\xff\x00\x00\x01\x02\x00\x08\x00\x04\xad\xa5NN\x00\x00\x00\x00IEND\
    \xaeB`\x82";

/// 4×1: 0, 15, 7, 3.
const GREY_OF_4_BITS: &[u8] = b"\
    \x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x04\x00\x00\x00\x01\x04\x00\
    \x00\x00\x00\x19\xa7\xbd\x10\x00\x00\x00\x0eIDATx\x01\x01\x03\x00\xfc\xff\x00\x0fs\x00\
    \x94\x00\x83\x1e\xc9\x81M\x00\x00\x00\x00IEND\xaeB`\x82";

/// 4×1.
const BLACK_AND_WHITE: &[u8] = b"\
    \x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x04\x00\x00\x00\x01\x01\x00\
    \x00\x00\x00\xd1G2`\x00\x00\x00\x0dIDATx\x01\x01\x02\x00\xfd\xff\x00\xa0\x00\xa2\
    \x00\xa1\x01\x8cl\xcc\x00\x00\x00\x00IEND\xaeB`\x82";

/// `Image.open(...).convert("RGB")` of Pillow 13 gave the same for each.
#[test]
fn palettes_and_few_bits_become_colours() {
    let folder = tempdir().unwrap();
    let pixels = |png: &[u8]| read(folder.path(), "x.png", png).into_raw();
    assert_eq!(pixels(PALETTE_WITH_TRANSPARENCY), [10, 20, 30, 40, 50, 60, 70, 80, 90]);
    assert_eq!(pixels(GREY_OF_4_BITS), [0, 255, 119, 51].map(|grey| [grey; 3]).concat());
    assert_eq!(pixels(BLACK_AND_WHITE), [255, 0, 255, 0].map(|grey| [grey; 3]).concat());
    let gif = folder.path().join("x.gif");
    let picture = RgbImage::from_fn(4, 2, |x, y| Rgb([x as u8 * 60, y as u8 * 200, 9]));
    picture.save(&gif).unwrap();
    assert_eq!(read_image(&gif).unwrap(), picture);
}

/// Pillow's values for colours; grey follows them, where Pillow itself would make all but the first nine white.
#[test]
fn sixteen_bits_give_their_upper_eight() {
    const VALUES: [u16; 12] = [0, 128, 129, 255, 256, 257, 511, 32_767, 32_768, 65_279, 65_408, 65_535];
    const EXPECTED: [u8; 12] = [0, 0, 0, 0, 1, 1, 1, 127, 128, 254, 255, 255];
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.png");
    let read = |picture: DynamicImage| {
        picture.save(&path).unwrap();
        read_image(&path).unwrap().into_raw()
    };
    let greys = EXPECTED.map(|value| [value; 3]).concat();
    let colours = EXPECTED.map(|value| [value, 255 - value, 3]).concat();
    let pixel = |value: u16| [value, u16::MAX - value, 3 << 8];
    assert_eq!(read(DynamicImage::ImageLuma16(ImageBuffer::from_raw(12, 1, VALUES.to_vec()).unwrap())), greys);
    let raw = VALUES.map(|value| [value, 77]).concat();
    assert_eq!(read(DynamicImage::ImageLumaA16(ImageBuffer::from_raw(12, 1, raw).unwrap())), greys);
    assert_eq!(read(DynamicImage::ImageRgb16(ImageBuffer::from_raw(12, 1, VALUES.map(pixel).concat()).unwrap())), colours);
    let raw = VALUES.map(|value| [&pixel(value)[..], &[77]].concat()).concat();
    assert_eq!(read(DynamicImage::ImageRgba16(ImageBuffer::from_raw(12, 1, raw).unwrap())), colours);
}

/// Eight patches of ink; the colours are Pillow 13's.
#[test]
fn printers_colours_become_the_screens() {
    const INKS: [[u8; 4]; 8] = [
        [0, 0, 0, 0],
        [255, 0, 0, 0],
        [0, 255, 0, 0],
        [0, 0, 255, 0],
        [0, 0, 0, 255],
        [10, 200, 60, 80],
        [128, 128, 128, 128],
        [255, 255, 255, 255],
    ];
    const COLOURS: [[u8; 3]; 8] =
        [[255, 255, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [168, 38, 134], [63, 63, 63], [0, 0, 0]];
    let folder = tempdir().unwrap();
    let expected = RgbImage::from_fn(64, 8, |x, _| Rgb(COLOURS[x as usize / 8]));
    let pixels: Vec<u8> = (0..8).flat_map(|_| (0..64).flat_map(|x| INKS[x / 8])).collect();
    for kind in [jpeg_encoder::ColorType::Cmyk, jpeg_encoder::ColorType::CmykAsYcck] {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 100);
        encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
        encoder.encode(&pixels, 64, 8, kind).unwrap();
        let got = read(folder.path(), "x.jpg", &bytes);
        assert!(most_apart(&got, &expected) <= 2, "{kind:?}: {got:?}");
    }
}

#[test]
fn every_exif_orientation_is_turned_upright() {
    let folder = tempdir().unwrap();
    // Flat blocks as large as a JPEG's, so that hardly anything is lost; no two alike, so that no turn goes unseen.
    let upright = RgbImage::from_fn(48, 32, |x, y| Rgb([(x / 16 * 100) as u8, (y / 16 * 180) as u8, 40]));
    for orientation in 1..=8 {
        for little_endian in [false, true] {
            let got = read(folder.path(), "x.jpg", &jpeg(&stored(&upright, orientation), orientation, little_endian));
            assert!(most_apart(&got, &upright) <= 3, "orientation {orientation}");
        }
    }
    let unknown = read(folder.path(), "x.jpg", &jpeg(&upright, 9, false));
    assert!(most_apart(&unknown, &upright) <= 3);
}

#[test]
fn detect_answers_alike_whatever_the_kind_of_file() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let picture = street();
    let (width, height) = picture.dimensions();
    picture.save(path("8.png")).unwrap();
    let opaque = DynamicImage::ImageRgb8(picture.clone());
    opaque.to_rgba8().save(path("alpha.png")).unwrap();
    // Not 257 times the value: the lower bits are noise, which may not matter.
    let wide = ImageBuffer::from_fn(width, height, |x, y| {
        Rgb(picture.get_pixel(x, y).0.map(|value| u16::from(value) << 8 | (x * 7 + y * 13) as u16 & 255))
    });
    DynamicImage::ImageRgb16(wide).save(path("16.png")).unwrap();
    std::fs::write(path("upright.jpg"), jpeg(&picture, 1, false)).unwrap();
    std::fs::write(path("turned.jpg"), jpeg(&stored(&picture, 3), 3, true)).unwrap();
    let names = ["8.png", "alpha.png", "16.png", "upright.jpg", "turned.jpg"];
    let files: Vec<PathBuf> = names.iter().map(|name| path(name)).collect();
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let told = answers(&palisade(&["--prompt", PROMPT], &files));
    assert!(told[0]["detections"].as_array().unwrap().len() >= 2, "{}", told[0]);
    for (name, answer) in names.iter().zip(&told) {
        assert_eq!(answer["frame"], told[0]["frame"], "{name}");
        if name.ends_with("png") {
            assert_eq!((&answer["raw"], &answer["detections"]), (&told[0]["raw"], &told[0]["detections"]), "{name}");
        }
    }
    let labels = |answer: &Value| answer["detections"].as_array().unwrap().iter().map(|one| one["label"].clone()).collect::<Vec<_>>();
    assert_eq!(labels(&told[4]), labels(&told[3]), "the turned one and the upright one");
}

/// The tokenizer alone says which tokens belong to which object; the scores are then computed anew from their numbers.
#[test]
fn a_score_is_the_mean_probability_of_the_objects_tokens() {
    let model = demo_model();
    let picture = street();
    let question = Question { image: &picture, prompt: PROMPT, draft: &[] };
    let generation = model.session().generate(&question, &limits(100)).unwrap();
    let answer = model.session().answer(&question, &limits(100)).unwrap();
    assert_eq!((&answer.raw, &answer.tokens), (&generation.text, &generation.generated_ids));
    let tokenizer = Tokenizer::from_file(repository("samples/demo-model/tokenizer.json")).unwrap();
    let mut objects: Vec<Vec<f64>> = vec![Vec::new()];
    for (&id, &logprob) in generation.generated_ids.iter().zip(&generation.token_logprobs) {
        match tokenizer.id_to_token(id).unwrap().as_str() {
            "\u{2581};" | ";" => objects.push(Vec::new()),
            "<eos>" | "\u{2581}" => {}
            _ => objects.last_mut().unwrap().push(logprob.into()),
        }
    }
    let expected: Vec<f64> = objects.iter().map(|own| (own.iter().sum::<f64>() / own.len() as f64).exp()).collect();
    let scores: Vec<f64> = answer.detections.iter().map(|detection| detection.score.into()).collect();
    assert!(scores.len() >= 2 && scores.len() == expected.len(), "{} gives {scores:?}", answer.raw);
    let apart = scores.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart < 1e-6, "{scores:?} are not {expected:?}");
}

#[test]
fn an_answer_ends_by_itself_or_at_its_bound() {
    let picture = street();
    let mut session = demo_model().session();
    let question = Question { image: &picture, prompt: PROMPT, draft: &[] };
    let whole = session.answer(&question, &limits(100)).unwrap();
    assert_eq!(whole.finish, Finish::Eos);
    let tokens = whole.tokens.len();
    // The end token is one of the answer's: without it the bound was reached, with it not.
    for (bound, finish) in [(1, Finish::Length), (7, Finish::Length), (tokens - 1, Finish::Length), (tokens, Finish::Eos)] {
        let cut = session.answer(&question, &limits(bound)).unwrap();
        assert_eq!((cut.finish, &cut.tokens[..]), (finish, &whole.tokens[..bound]));
        assert!(whole.raw.starts_with(&cut.raw));
        assert!(cut.detections.len() <= whole.detections.len());
    }
}

#[test]
fn detections_below_their_labels_score_are_dropped() {
    let picture = street();
    let mut session = demo_model().session();
    let question = Question { image: &picture, prompt: PROMPT, draft: &[] };
    let all = session.answer(&question, &limits(100)).unwrap();
    let strict = all.detections[0].label.clone();
    let min_score = MinScore::new(0.0, [(format!(" {} ", strict.to_uppercase()), 1.0)]);
    let some = session.answer(&question, &Limits { min_score, ..limits(100) }).unwrap();
    let (dropped, kept): (Vec<_>, Vec<_>) = all.detections.iter().partition(|detection| detection.label == strict);
    assert_eq!(some.detections.iter().collect::<Vec<_>>(), kept);
    assert_eq!(some.rejected.len(), dropped.len());
    assert!(some.rejected.iter().all(|rejected| rejected.why == "below min_score" && rejected.text.ends_with(&strict)));
    assert_eq!(some.raw, all.raw);
}

fn saved_street() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("street.png");
    street().save(&path).unwrap();
    (folder, path)
}

#[test]
fn detect_takes_a_least_score_and_says_how_the_answer_ended() {
    let (_folder, path) = saved_street();
    let told = answers(&palisade(&["--prompt", PROMPT, "--min-score", "1"], &[&path]));
    assert_eq!((&told[0]["detections"], &told[0]["finish"]), (&Value::Array(vec![]), &Value::from("eos")));
    let dropped = told[0]["dropped"].as_array().unwrap();
    assert!(dropped.len() >= 2 && dropped.iter().all(|one| one["why"] == "below min_score"), "{dropped:?}");
    let told = answers(&palisade(&["--prompt", PROMPT, "--max-new-tokens", "3"], &[&path]));
    assert_eq!((&told[0]["finish"], told[0]["raw"].as_str().unwrap().len()), (&Value::from("length"), 27));
    assert_eq!(told[0]["dropped"][0]["why"], "3 location tokens instead of 4");
    let refused = palisade(&["--prompt", PROMPT, "--min-score", "1.5"], &[&path]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("must be a number in 0..=1"), "{said}");
}

/// The demo model has not learnt them; that the program asks, and passes on what comes, is the same as with one that has.
#[test]
fn other_tasks_pass_through() {
    let (_folder, path) = saved_street();
    for prompt in ["caption en", "answer en what is it?", "ocr", "segment cat"] {
        let told = answers(&palisade(&["--prompt", prompt, "--max-new-tokens", "20"], &[&path]));
        assert_eq!(told[0]["prompt"], prompt);
        assert!(told[0]["raw"].is_string() && told[0]["detections"].is_array() && told[0]["finish"].is_string(), "{}", told[0]);
    }
    let output = Command::new(PALISADE)
        .args(["detect", "--model", "samples/demo-model", "--prompt", "caption en"])
        .arg(&path)
        .current_dir(repository(""))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("  raw: "));
}
