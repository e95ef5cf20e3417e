//! Real checkpoints through every type, and what becomes of damaged caches and of tensors too many.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::json;

use super::*;

const QUANTISED: [Dtype; 3] = [Dtype::Q8_0, Dtype::Q6K, Dtype::Q4K];

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(case)
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/demo-model")
}

/// A copy that a test may damage.
fn copy_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in folder.read_dir().unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn open_with(folder: &Path, dtype: Dtype, cache: Option<&Path>) -> Result<Weights> {
    let wanted = Wanted::new(Device::Cpu, dtype)?;
    Weights::open(folder, Wanted { name: "owner/a model@1234".to_owned(), cache: cache.map(Path::to_owned), ..wanted })
}

fn files(weights: &Weights) -> &Files {
    match &weights.source {
        Source::Files(files) => files,
        Source::Random => panic!("no files"),
    }
}

/// The files in the cache with an ending, sorted.
fn kept(cache: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = cache.join("weights").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    found.sort();
    found
}

/// What a linear layer's weight reads back as, `[rows, cols]` flat.
fn values(matrix: &Matrix) -> Vec<f32> {
    let [rows, cols] = matrix.shape();
    let mut all = vec![0.0; rows * cols];
    all.chunks_mut(cols).enumerate().for_each(|(row, out)| matrix.read_row(row, out));
    all
}

/// Some matrix of each part, and its shape in `pg2`.
fn up(weights: &Weights) -> Matrix {
    weights.part(Part::Language).sub("layers").sub(1).sub("mlp").matrix("up_proj.weight", &[96, 48]).unwrap()
}

/// Every matrix of the demo model that is quantised, by its name in the file: ours and the checkpoint's values.
fn demo_pairs(dtype: Dtype, cache: &Path) -> HashMap<String, (Matrix, Vec<f32>)> {
    let weights = open_with(&demo(), dtype, Some(cache)).unwrap();
    let exact = candle_core::safetensors::load(demo().join("model.safetensors"), &Device::Cpu).unwrap();
    let items = plan(&files(&weights).checkpoint, &weights.wanted).unwrap();
    let pairs = items.into_iter().map(|(source, item)| {
        let matrix = files(&weights).store.as_ref().unwrap().matrix(&source).unwrap().unwrap();
        let exact = exact[&source].to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (item.name, (matrix, exact))
    });
    pairs.collect()
}

#[test]
fn a_second_start_finds_what_the_first_one_made() {
    let cache = tempfile::tempdir().unwrap();
    let first = values(&up(&open_with(&golden("pg2"), Dtype::Q8_0, Some(cache.path())).unwrap()));
    let [file] = &kept(cache.path(), ".gguf")[..] else { panic!("{:?}", kept(cache.path(), "")) };
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("owner-a-model-") && name.ends_with("-q8_0.gguf") && name.len() == 14 + 16 + 10, "{name}");
    let of = |file: &Path| file.metadata().map(|of| (of.ino(), of.mtime_nsec())).unwrap();
    let before = of(file);
    assert_eq!(first, values(&up(&open_with(&golden("pg2"), Dtype::Q8_0, Some(cache.path())).unwrap())));
    assert_eq!(before, of(file), "written again");

    // Another type, another checkpoint and changed weights have files of their own.
    open_with(&golden("pg2"), Dtype::Q4K, Some(cache.path())).unwrap();
    assert_eq!(kept(cache.path(), ".gguf").len(), 2);
    open_with(&golden("pg2-bf16-sharded"), Dtype::Q8_0, Some(cache.path())).unwrap();
    assert_eq!(kept(cache.path(), ".gguf").len(), 3);
    let copy = copy_of(&golden("pg2"));
    open_with(copy.path(), Dtype::Q8_0, Some(cache.path())).unwrap();
    assert_eq!(kept(cache.path(), ".gguf").len(), 3, "the same content elsewhere");
    let path = copy.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    open_with(copy.path(), Dtype::Q8_0, Some(cache.path())).unwrap();
    assert_eq!(kept(cache.path(), ".gguf").len(), 4);
    assert_eq!(before, of(file));
}

#[test]
fn a_damaged_file_is_made_anew() {
    let cache = tempfile::tempdir().unwrap();
    open_with(&golden("pg2"), Dtype::Q8_0, Some(cache.path())).unwrap();
    let file = kept(cache.path(), ".gguf").remove(0);
    let whole = fs::read(&file).unwrap();
    let cut = whole[..whole.len() - 1].to_vec();
    let longer = [&whole[..], b"x"].concat();
    let mut older = whole.clone();
    older[4] = 2;
    let foreign = b"<html>no space</html>".to_vec();
    for damaged in [cut, longer, older, foreign, vec![]] {
        fs::write(&file, damaged).unwrap();
        up(&open_with(&golden("pg2"), Dtype::Q8_0, Some(cache.path())).unwrap());
        assert!(fs::read(&file).unwrap() == whole);
    }
    assert_eq!(kept(cache.path(), ".part"), Vec::<PathBuf>::new());
}

#[test]
fn without_a_cache_weights_are_quantised_into_memory() {
    let cache = tempfile::tempdir().unwrap();
    let expected = values(&up(&open_with(&golden("pg2"), Dtype::Q6K, Some(cache.path())).unwrap()));
    let weights = open_with(&golden("pg2"), Dtype::Q6K, None).unwrap();
    assert_eq!((up(&weights).ty(), values(&up(&weights))), (Type::Q6K, expected.clone()));
    // A file in the folder's place stops root too, as a folder of another user's stops others.
    let blocked = tempfile::tempdir().unwrap();
    fs::write(blocked.path().join("weights"), "").unwrap();
    let weights = open_with(&golden("pg2"), Dtype::Q6K, Some(blocked.path())).unwrap();
    assert_eq!(values(&up(&weights)), expected);
    // And a folder in the file's place.
    let file = kept(cache.path(), ".gguf").remove(0);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let weights = open_with(&golden("pg2"), Dtype::Q6K, Some(cache.path())).unwrap();
    assert_eq!(values(&up(&weights)), expected);
    assert_eq!(kept(cache.path(), ".part"), Vec::<PathBuf>::new());
}

#[test]
fn starts_at_the_same_time_do_not_spoil_each_other() {
    let cache = tempfile::tempdir().unwrap();
    let start = || values(&up(&open_with(&golden("pg2"), Dtype::Q8_0, Some(cache.path())).unwrap()));
    let all = std::thread::scope(|scope| [0; 4].map(|_| scope.spawn(start)).map(|thread| thread.join().unwrap()));
    assert!(all.iter().all(|values| *values == all[0]));
    let left = kept(cache.path(), "");
    assert!(left.len() == 2 && left[0].ends_with("hashes.json") && left[1].extension().unwrap() == "gguf", "{left:?}");
}

#[test]
fn what_dead_programs_left_half_written_is_removed() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("weights");
    fs::create_dir(&folder).unwrap();
    let part = |name: &str, age: u64| {
        let file = fs::File::create(folder.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        file
    };
    part("old.gguf.1.part", 3600);
    part("begun.gguf.2.part", 1);
    let written = part("slow.gguf.3.part", 3600);
    written.try_lock().unwrap();
    open_with(&golden("pg2"), Dtype::Q8_0, Some(cache.path())).unwrap();
    let left = kept(cache.path(), ".part");
    assert_eq!(left, [folder.join("begun.gguf.2.part"), folder.join("slow.gguf.3.part")]);
}

#[test]
fn progress_is_told() {
    let cache = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let progress: Progress = Arc::new(move |done, all| listener.lock().unwrap().push((done, all)));
    let wanted = Wanted::new(Device::Cpu, Dtype::Q8_0).unwrap();
    let wanted = Wanted { cache: Some(cache.path().to_owned()), progress: Some(progress), ..wanted };
    Weights::open(&golden("pg2"), wanted).unwrap();
    let told = told.lock().unwrap();
    let (done, all) = *told.last().unwrap();
    assert!(done == all && all > 900_000, "{done} of {all}");
    assert!(told.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

#[test]
fn other_programs_can_read_the_file() {
    for dtype in QUANTISED {
        let cache = tempfile::tempdir().unwrap();
        let pairs = demo_pairs(dtype, cache.path());
        let mut file = fs::File::open(kept(cache.path(), ".gguf").remove(0)).unwrap();
        let content = Content::read(&mut file).unwrap();
        assert!(matches!(&content.metadata["general.architecture"], Value::String(name) if name == "paligemma"));
        assert!(matches!(&content.metadata["palisade.type"], Value::String(name) if name == dtype.name()));
        assert_eq!(content.tensor_infos.len(), pairs.len());
        for (name, (matrix, _)) in pairs {
            assert!(name.len() <= 63 && content.tensor_infos[&name].offset.is_multiple_of(32), "{name}");
            let [rows, cols] = matrix.shape();
            let tensor = content.tensor(&mut file, &name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
            assert_eq!(tensor.dims(), [rows, cols.next_multiple_of(matrix.ty().block())], "{name}");
            let theirs: Vec<f32> = tensor.narrow(1, 0, cols).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let furthest = theirs.iter().zip(values(&matrix)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(furthest < 1e-5, "{dtype:?} {name}: {furthest}");
        }
    }
}

#[test]
fn quantised_weights_stay_close() {
    let cache = tempfile::tempdir().unwrap();
    for (dtype, most) in [(Dtype::Q8_0, 0.006), (Dtype::Q6K, 0.02), (Dtype::Q4K, 0.09)] {
        let pairs = demo_pairs(dtype, cache.path());
        let (mut wide, mut small) = (0, 0);
        for (name, (matrix, exact)) in &pairs {
            let is_text = name.starts_with("text.");
            let stays_bytes = dtype == Dtype::Q4K && name.ends_with("embed_tokens.weight");
            assert_eq!(matrix.ty() == Type::Q8_0, !is_text || dtype == Dtype::Q8_0 || stays_bytes, "{name}");
            (wide, small) = (wide + usize::from(is_text), small + usize::from(!is_text));
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
            let apart = norm(&mut values(matrix).iter().zip(exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
            assert!(apart < most, "{dtype:?} {name}: {apart}");
        }
        // Four layers of seven and the table; five blocks of six, the patches and the projector.
        assert_eq!((wide, small), (29, 32), "{:?}", pairs.keys());
    }
}

#[test]
fn floats_are_those_of_the_checkpoint() {
    let mlp = |folder: &Path, dtype: Dtype, inner: usize, hidden: usize| {
        let weights = open_with(folder, dtype, None).unwrap();
        let matrix = weights.part(Part::Language).sub("layers.1.mlp").matrix("down_proj.weight", &[hidden, inner]).unwrap();
        (matrix.ty(), values(&matrix))
    };
    let exact = |folder: &Path, file: &str, prefix: &str| {
        let tensors = candle_core::safetensors::load(folder.join(file), &Device::Cpu).unwrap();
        let tensor = &tensors[&format!("{prefix}.layers.1.mlp.down_proj.weight")];
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let pg2 = exact(&golden("pg2"), "model.safetensors", "model.language_model");
    assert_eq!(mlp(&golden("pg2"), Dtype::F32, 96, 48), (Type::F32, pg2.clone()));
    assert_eq!(mlp(&golden("pg2"), Dtype::Auto, 96, 48), (Type::F32, pg2.clone()));
    let rounded = |round: fn(f32) -> f32| pg2.iter().map(|&value| round(value)).collect::<Vec<_>>();
    assert_eq!(mlp(&golden("pg2"), Dtype::F16, 96, 48), (Type::F16, rounded(|value| half::f16::from_f32(value).to_f32())));
    assert_eq!(mlp(&golden("pg2"), Dtype::Bf16, 96, 48), (Type::Bf16, rounded(|value| half::bf16::from_f32(value).to_f32())));
    let demo_values = exact(&demo(), "model.safetensors", "language_model.model");
    assert_eq!(mlp(&demo(), Dtype::F32, 512, 128), (Type::F16, demo_values.clone()));
    assert_eq!(mlp(&demo(), Dtype::F16, 512, 128), (Type::F16, demo_values));
    let shards = golden("pg2-bf16-sharded");
    let shard = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        .into_iter()
        .find(|name| open_with(&shards, Dtype::F32, None).is_ok() && holds(&shards.join(name), "layers.1.mlp.down_proj.weight"));
    let expected = exact(&shards, shard.unwrap(), "language_model.model");
    assert_eq!(mlp(&shards, Dtype::F32, 96, 48), (Type::Bf16, expected.clone()));
    assert_eq!(mlp(&shards, Dtype::Bf16, 96, 48), (Type::Bf16, expected));
}

fn holds(file: &Path, name: &str) -> bool {
    let bytes = fs::read(file).unwrap();
    bytes.windows(name.len()).any(|window| window == name.as_bytes())
}

#[test]
fn shapes_are_those_of_the_checkpoint_whatever_the_type() {
    let cache = tempfile::tempdir().unwrap();
    for dtype in [Dtype::F32, Dtype::Q8_0] {
        let weights = open_with(&golden("pg2"), dtype, Some(cache.path())).unwrap();
        let mlp = weights.part(Part::Language).sub("layers.1.mlp");
        let said = mlp.matrix("up_proj.weight", &[48, 96]).err().unwrap().chain();
        assert!(said.contains("tensor model.language_model.layers.1.mlp.up_proj.weight in "), "{said}");
        assert!(said.ends_with("has shape [96, 48]; must be [48, 96]"), "{said}");
        let said = mlp.matrix("xx_proj.weight", &[48, 96]).err().unwrap().chain();
        assert!(said.ends_with("is missing; must be there with shape [48, 96]"), "{said}");
        let patches = weights.part(Part::Vision).matrix("embeddings.patch_embedding.weight", &[64, 3, 14, 14]).unwrap();
        assert_eq!(patches.shape(), [64, 588]);
        assert_eq!(patches.ty(), if dtype == Dtype::F32 { Type::F32 } else { Type::Q8_0 });
    }
}

/// A float tensor to be added to a weight file.
struct Extra<'a>(&'a str, &'a [usize], Vec<u8>);

fn zeros<'a>(name: &'a str, shape: &'a [usize]) -> Extra<'a> {
    Extra(name, shape, vec![0; shape.iter().product::<usize>() * 4])
}

/// Adds tensors at the end of a weight file.
fn add(file: &Path, extras: &[Extra<'_>]) {
    let bytes = fs::read(file).unwrap();
    let (len, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let mut data = data.to_vec();
    for Extra(name, shape, bytes) in extras {
        header[*name] = json!({ "dtype": "F32", "shape": shape, "data_offsets": [data.len(), data.len() + bytes.len()] });
        data.extend(bytes);
    }
    let header = header.to_string();
    fs::write(file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

/// What is said of tensors too many in `pg2`, when all that the network takes was asked for.
fn finished(extras: &[Extra<'_>]) -> Result<(), String> {
    let copy = copy_of(&golden("pg2"));
    let names: Vec<String> = {
        let weights = open_with(copy.path(), Dtype::F32, None).unwrap();
        files(&weights).checkpoint.tensors().map(|(name, _)| name.clone()).collect()
    };
    add(&copy.path().join("model.safetensors"), extras);
    let weights = open_with(copy.path(), Dtype::F32, None).unwrap();
    let files = files(&weights);
    for name in &names {
        files.ask(name, &files.checkpoint.find(name).unwrap().shape).unwrap();
    }
    weights.finish().map_err(|error| error.chain())
}

#[test]
fn a_tensor_too_many_is_refused_by_name() {
    assert_eq!(finished(&[]), Ok(()));
    for name in ["adapter.weight", "model.language_model.layers.9.mlp.up_proj.weight", "model.vision_tower.head.extra"] {
        let said = finished(&[zeros(name, &[4, 2])]).unwrap_err();
        assert!(said.starts_with(&format!("tensor {name} in ")), "{said}");
        assert!(said.ends_with("has shape [4, 2] and nothing in this network takes it"), "{said}");
    }
    let said = finished(&[zeros("language_model.model.norm.weight", &[48])]).unwrap_err();
    assert!(said.ends_with("has shape [48] and is there a second time as model.language_model.norm.weight; must be there once"), "{said}");
    // And what was never asked for, of all there is.
    let said = open_with(&golden("pg2"), Dtype::F32, None).unwrap().finish().unwrap_err().chain();
    assert!(said.ends_with("nothing in this network takes it"), "{said}");
}

#[test]
fn what_the_reference_derives_may_be_there() {
    assert_eq!(
        finished(&[
            zeros("vision_tower.vision_model.embeddings.position_ids", &[1, 16]),
            zeros("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", &[12]),
            zeros("model.vision_tower.head.probe", &[1, 1, 64]),
            zeros("vision_tower.vision_model.head.mlp.fc1.weight", &[4, 64]),
        ]),
        Ok(())
    );
    let table = || {
        let tensors = candle_core::safetensors::load(golden("pg2").join("model.safetensors"), &Device::Cpu).unwrap();
        let table: Vec<f32> = tensors["model.language_model.embed_tokens.weight"].flatten_all().unwrap().to_vec1().unwrap();
        table.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()
    };
    assert_eq!(finished(&[Extra("lm_head.weight", &[1506, 48], table())]), Ok(()));
    let said = finished(&[zeros("lm_head.weight", &[1506, 48])]).unwrap_err();
    assert!(said.contains("from which it differs; must be equal, or tie_word_embeddings false"), "{said}");
    let said = finished(&[zeros("lm_head.weight", &[1505, 48])]).unwrap_err();
    assert!(said.contains("has shape [1505, 48] and ") && said.ends_with("must have its shape [1506, 48]"), "{said}");
}

#[test]
fn files_that_contradict_each_other_are_refused() {
    let said = |damage: &dyn Fn(&Path)| {
        let copy = copy_of(&golden("pg2-bf16-sharded"));
        damage(copy.path());
        open_with(copy.path(), Dtype::F32, None).err().unwrap().chain()
    };
    let first = "model-00001-of-00002.safetensors";
    let second = "model-00002-of-00002.safetensors";
    let norm = "language_model.model.norm.weight";
    let twice = said(&|folder| add(&folder.join(first), &[zeros(norm, &[48])]));
    assert!(twice.ends_with(&format!("is in {first} and in {second}; must be in one")), "{twice}");
    let astray = said(&|folder| {
        let index = folder.join(index::INDEX);
        let mut mapping: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
        assert_eq!(mapping["weight_map"][norm], second);
        mapping["weight_map"][norm] = json!(first);
        fs::write(index, mapping.to_string()).unwrap();
    });
    assert!(astray.starts_with(&format!("tensor {norm} is missing in {first} in ")), "{astray}");
    let short = said(&|folder| add(&folder.join(first), &[Extra("a", &[48], vec![0; 8])]));
    assert!(short.contains("says of tensor a what cannot be: [48] at "), "{short}");
    let long = said(&|folder| {
        let path = folder.join(first);
        fs::write(&path, [&fs::read(&path).unwrap()[..], b"x"].concat()).unwrap();
    });
    assert!(long.contains("is too long: it has "), "{long}");
}

#[test]
fn random_weights_have_any_shape() {
    let wanted = Wanted::new(Device::Cpu, Dtype::Q4K).unwrap();
    let weights = Weights::random(wanted);
    let layer = weights.part(Part::Language).sub("layers").sub(3);
    assert_eq!(layer.get_f32("norm.weight", &[9]).unwrap().dims(), [9]);
    let matrix = layer.matrix("up_proj.weight", &[5, 300]).unwrap();
    assert_eq!((matrix.ty(), matrix.shape()), (Type::Q4K, [5, 300]));
    assert_eq!(weights.part(Part::Vision).matrix("patch.weight", &[4, 3, 14, 14]).unwrap().ty(), Type::Q8_0);
    weights.finish().unwrap();
}

#[test]
fn quantised_weights_need_the_processor() {
    let said = resolve(Dtype::Q8_0, false).unwrap_err();
    assert_eq!(said.kind(), Kind::Config);
    assert_eq!(
        said.chain(),
        "model.dtype is q8_0, but quantised weights are computed on the processor only; must be auto, f32, f16 or bf16 with a GPU"
    );
    assert_eq!((resolve(Dtype::Auto, false).unwrap(), resolve(Dtype::Auto, true).unwrap()), (Type::Bf16, Type::F32));
}

#[test]
fn the_cache_folder_is_where_the_environment_says() {
    let folder = |vars: &[(&str, &str)]| {
        let vars: HashMap<&str, &str> = vars.iter().copied().collect();
        cache_folder(|name| vars.get(name).map(|value| (*value).to_owned()))
    };
    let home = ("HOME", "/home/a");
    assert_eq!(folder(&[]), None);
    assert_eq!(folder(&[("HOME", "")]), None);
    assert_eq!(folder(&[home]), Some("/home/a/.cache/palisade".into()));
    assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "/x")]), Some("/x/palisade".into()));
    assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "x")]), Some("/home/a/.cache/palisade".into()), "the rule is to pass over it");
    assert_eq!(folder(&[home, ("CACHE_DIRECTORY", "/var/cache/p:/var/cache/q")]), Some("/var/cache/p".into()));
    assert_eq!(folder(&[home, ("CACHE_DIRECTORY", "/c"), ("PALISADE_CACHE", "mine")]), Some("mine".into()));
}
