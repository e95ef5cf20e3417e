//! `palisade bench`: what it measures, and what it says to arguments that it cannot use. No speed is asserted.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::daemon::{PALISADE, repository};
use crate::support::media;

/// Runs `palisade bench model` in the repository.
fn bench_model(arguments: &[&str]) -> Output {
    Command::new(PALISADE).args(["bench", "model"]).args(arguments).current_dir(repository("")).output().unwrap()
}

/// The object that it prints.
fn measured(arguments: &[&str]) -> Value {
    let output = bench_model(&[arguments, &["--json", "--device", "cpu"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Checks that a spread is in order, and that it is all above zero.
fn median(spread: &Value) -> f64 {
    let [min, median, max] = ["min", "median", "max"].map(|key| spread[key].as_f64().unwrap());
    assert!(0.0 < min && min <= median && median <= max, "{spread}");
    median
}

#[test]
fn the_demo_models_figures_go_together() {
    let report = measured(&["--model", "samples/demo-model", "--frames", "2", "--tokens", "4"]);
    for (key, expected) in [("tokens", 4), ("frames", 2), ("drafts_accepted", 0)] {
        assert_eq!(report[key], expected, "{key} in {report}");
    }
    assert_eq!((&report["model"], &report["device"], &report["still"]), (&"demo-model".into(), &"cpu".into(), &false.into()));
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let [vision, prefill, token, total] = ["vision_ms", "prefill_ms", "per_token_ms", "total_ms"].map(|key| median(&report[key]));
    assert!(total > vision && total > prefill && total > token, "{report}");
    // Every frame's parts are inside its whole.
    let least = ["vision_ms", "prefill_ms"].map(|key| report[key]["min"].as_f64().unwrap());
    assert!(report["total_ms"]["max"].as_f64().unwrap() >= least.iter().sum(), "{report}");
    for above_zero in ["load_ms", "weights_gb_per_s", "peak_rss_mib", "threads", "positions", "parameters"] {
        assert!(report[above_zero].as_f64().unwrap() > 0.0, "{above_zero} in {report}");
    }
    for stage in ["vision", "prefill", "decode"] {
        assert!(report["gflops"][stage].as_f64().unwrap() > 0.0, "{stage} in {report}");
    }
    for word in ["isa", "dtype"] {
        assert!(!report[word].as_str().unwrap().is_empty(), "{word} in {report}");
    }
}

#[test]
fn a_still_scene_has_its_drafts_accepted() {
    let report = measured(&["--model", "samples/demo-model", "--frames", "2", "--tokens", "4", "--still"]);
    assert_eq!((&report["still"], &report["tokens"]), (&true.into(), &4.into()));
    let accepted = report["drafts_accepted"].as_f64().unwrap();
    assert!(0.0 < accepted && accepted <= 4.0, "{report}");
}

#[test]
fn a_shape_is_measured_without_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("shape.json");
    std::fs::copy(repository("samples/demo-model/config.json"), &config).unwrap();
    let config = config.to_str().unwrap();
    let report = measured(&["--config", config, "--random", "--frames", "1", "--tokens", "3"]);
    assert_eq!((&report["model"], &report["tokens"]), (&config.into(), &3.into()));
    let of_the_checkpoint = measured(&["--model", "samples/demo-model", "--frames", "1", "--tokens", "3"]);
    assert_eq!(report["parameters"], of_the_checkpoint["parameters"]);

    let output = bench_model(&["--config", config, "--random", "--frames", "1", "--tokens", "3"]);
    let table = String::from_utf8(output.stdout).unwrap();
    for line in ["load ", "vision ", "prefill ", "per token ", "total ", "tokens ", "drafts accepted ", "peak memory "] {
        assert!(table.lines().any(|told| told.starts_with(line)), "{line} in {table}");
    }
}

#[test]
fn arguments_that_cannot_be_used_are_sentences() {
    let demo = "samples/demo-model";
    let config = "samples/demo-model/config.json";
    let cases: [(&[&str], i32, &str); 8] = [
        (&[], 1, "no model to measure; must be --model DIR|HUB_ID, or --config FILE --random"),
        (&["--model", "no-such-folder"], 1, "neither a folder here nor"),
        (&["--model", "tests"], 1, "config.json"),
        (&["--config", config], 1, "has no weights; add --random"),
        (&["--config", "no/such.json", "--random"], 1, "no/such.json"),
        (&["--model", demo, "--config", config, "--random"], 1, "must be one of the two"),
        (&["--model", demo, "--frames", "0"], 2, "0 is not in 1..=1000"),
        (&["--model", demo, "--tokens", "0"], 2, "0 is not in 1..=1024"),
    ];
    for (arguments, code, sentence) in cases {
        let output = bench_model(arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(sentence) && !told.contains("panicked"), "{arguments:?}: {told}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

/// Runs `palisade bench cameras`.
fn bench_cameras(arguments: &[&str]) -> Output {
    Command::new(PALISADE).args(["bench", "cameras"]).args(arguments).output().unwrap()
}

#[test]
fn the_cameras_figures_go_together() {
    let folder = tempfile::tempdir().unwrap();
    let clip = media::clip(folder.path(), "a.mp4", 20, 10, 5);
    let clip = clip.to_str().unwrap();
    let output = bench_cameras(&["--count", "2", "--clip", clip, "--seconds", "2", "--interval", "0.5", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (key, expected) in [("cameras", 2), ("frames_dropped", 0), ("reconnects", 0), ("jitter_buffer_ms", 1000)] {
        assert_eq!(report[key], expected, "{key} in {report}");
    }
    assert_eq!((&report["interval"], &report["seconds"], &report["decode"]), (&0.5.into(), &2.0.into(), &"auto".into()));
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("no number in {report}"));
    let (received, sampled) = (number(&report["frames_in"]), number(&report["frames_sampled"]));
    assert!(0.0 < sampled && sampled <= received, "{report}");
    let even = &report["frames_a_camera"];
    let (mean, min, fairness) = (number(&even["mean"]), number(&even["min"]), number(&even["fairness"]));
    // One look more or less may lie on each side of either end.
    assert!(1.0 <= min && min <= mean && (mean * 2.0 - sampled).abs() <= 2.0, "{report}");
    assert!((fairness - min / mean).abs() < 0.001, "{report}");
    // Whether a camera's clock is known after so short a time is up to the camera.
    let latency = &report["latency_ms"];
    if number(&latency["frames"]) > 0.0 {
        assert!(number(&latency["p50"]) <= number(&latency["p99"]), "{report}");
    }
    for key in ["cpu_s_per_camera_s", "server_cpu_s_per_camera_s", "threads", "descriptors"] {
        assert!(number(&report[key]) >= 0.0, "{key} in {report}");
    }
    number(&report["rss_mib_per_camera"]);

    let output = bench_cameras(&["--count", "1", "--clip", clip, "--seconds", "1"]);
    let table = String::from_utf8(output.stdout).unwrap();
    for line in ["cameras: 1, a look each 2 s, ", "of a core a camera ", "memory a camera ", "frames a camera ", "latency, p99 "] {
        assert!(table.lines().any(|told| told.starts_with(line)), "{line} in {table}");
    }
}

#[test]
fn cameras_that_cannot_be_are_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let sound = folder.path().join("sound.wav");
    media::launch(&format!("audiotestsrc num-buffers=20 ! wavenc ! filesink location=\"{}\"", sound.display()));
    let sound = sound.to_str().unwrap();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--count", "1", "--clip", "no/such.mp4"], 1, "palisade: --clip no/such.mp4 cannot be read: No such file"),
        (&["--count", "1", "--clip", sound], 1, "sound.wav has no H.264 or H.265 video"),
        (&["--count", "0", "--clip", sound], 2, "0 is not in 1..=256"),
        (&["--count", "257", "--clip", sound], 2, "257 is not in 1..=256"),
        (&["--count", "1", "--clip", sound, "--interval", "0"], 2, "must be a number in 0.01..=3600"),
        (&["--count", "1", "--clip", sound, "--decode", "some"], 2, "must be auto, keyframes or all"),
    ];
    for (arguments, code, sentence) in cases {
        let output = bench_cameras(arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(sentence) && !told.contains("panicked"), "{arguments:?}: {told}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_outputs_figures_go_together() {
    let folder = tempfile::tempdir().unwrap();
    let clip = media::clip(folder.path(), "a.mp4", 40, 20, 10);
    let output = Command::new(PALISADE).args(["bench", "outputs", "--seconds", "3", "--clip"]).arg(clip).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("no number in {report}"));
    for nobody in ["nobody", "nobody_again"] {
        assert_eq!(report["encoded_per_s"][nobody], 0.0, "{report}");
    }
    for watched in ["one_without_boxes", "one_with_boxes", "twenty_with_boxes"] {
        for what in ["encoded_per_s", "seen_per_s"] {
            assert!((12.0..26.0).contains(&number(&report[what][watched])), "{what} {watched} in {report}");
        }
        assert!(number(&report["cpu_s_per_s"][watched]) > 0.0, "{report}");
    }
    assert!(number(&report["overlay_ratio"]) > 0.0 && number(&report["twenty_viewers_ratio"]) > 0.0, "{report}");
    let plain = &report["plain_decode_and_encode"];
    assert!((12.0..26.0).contains(&number(&plain["encoded_per_s"])) && number(&plain["cpu_s_per_s"]) > 0.0, "{report}");
    assert!(number(&report["plain_ratio"]) > 0.0, "{report}");
    let latency = &report["latency_ms"];
    assert!(
        number(&latency["pictures"]) > 20.0 && 0.0 < number(&latency["p50"]) && number(&latency["p50"]) <= number(&latency["p99"]),
        "{report}"
    );
}
