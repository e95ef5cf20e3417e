//! `config.json` as written, and the defaults that fill its gaps.

use serde::{Deserialize, Deserializer};

use crate::model::config::{Activation, Config, Family, TextConfig, VisionConfig};

/// The longest context taken whatever the file claims, so that position tables stay small.
const MAX_CONTEXT: usize = 32_768;

/// The file's top level.
#[derive(Deserialize)]
pub struct RawConfig {
    model_type: Option<String>,
    text_config: Option<RawText>,
    vision_config: Option<RawVision>,
    image_token_index: Option<u32>,
    image_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Default, Deserialize)]
struct RawText {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    rope_parameters: Option<RawRope>,
    query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    attn_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "given")]
    final_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "given")]
    sliding_window: Option<Option<usize>>,
    layer_types: Option<Vec<String>>,
    max_position_embeddings: Option<usize>,
    attention_bias: Option<bool>,
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Default, Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

#[derive(Default, Deserialize)]
struct RawVision {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_channels: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
}

/// Tells `null` (`Some(None)`) from absent (`None`).
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> std::result::Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Fills the gaps and checks; an error is the end of a sentence that names the file.
pub fn resolve(raw: RawConfig) -> std::result::Result<Config, String> {
    if let Some(other) = raw.model_type.filter(|name| name != "paligemma") {
        return Err(format!("model_type is {other:?}; must be \"paligemma\""));
    }
    let mut text = raw.text_config.unwrap_or_default();
    let eos = raw.eos_token_id.or(text.eos_token_id.take());
    let bos = raw.bos_token_id.or(text.bos_token_id);
    let tied = raw.tie_word_embeddings.or(text.tie_word_embeddings).unwrap_or(true);
    Ok(Config {
        text: resolve_text(text, tied)?,
        vision: resolve_vision(raw.vision_config)?,
        image_token: raw.image_token_index.or(raw.image_token_id).unwrap_or(256_000),
        eos: match eos {
            None => vec![1],
            Some(OneOrMany::One(id)) => vec![id],
            Some(OneOrMany::Many(ids)) => ids,
        },
        bos: bos.unwrap_or(2),
    })
}

/// Sizes that differ between the classes: hidden, feed-forward, layers, heads, key and value heads.
struct Sizes(usize, usize, usize, usize, usize);

fn resolve_text(raw: RawText, tied: bool) -> std::result::Result<TextConfig, String> {
    let family = match raw.model_type.as_deref() {
        None | Some("gemma") => Family::Gemma,
        Some("gemma2") => Family::Gemma2,
        Some(other) => return Err(format!("text_config.model_type is {other:?}; must be \"gemma\" or \"gemma2\"")),
    };
    // PaliGemma 1 never used the 7B decoder that `GemmaConfig` defaults to: its own defaults are those of the 2B one.
    let sizes = match family {
        Family::Gemma => Sizes(2048, 16384, 18, 8, 1),
        Family::Gemma2 => Sizes(2304, 9216, 26, 8, 4),
    };
    let layers = raw.num_hidden_layers.unwrap_or(sizes.2);
    let head_dim = raw.head_dim.unwrap_or(256);
    if raw.attention_bias == Some(true) {
        return Err("text_config.attention_bias is true; must be false".to_owned());
    }
    if raw.rope_scaling.is_some_and(|scaling| !scaling.is_null()) {
        return Err("text_config.rope_scaling is set; must be null".to_owned());
    }
    let rope = raw.rope_parameters.unwrap_or_default();
    if let Some(kind) = rope.rope_type.filter(|kind| kind != "default") {
        return Err(format!("text_config.rope_parameters.rope_type is {kind:?}; must be \"default\""));
    }
    let two = family == Family::Gemma2;
    // Each class reads a name of its own; Gemma 1's legacy value "gelu" has always meant the tanh approximation.
    let activation = match family {
        Family::Gemma => raw.hidden_act.map(|name| if name == "gelu" { "gelu_pytorch_tanh".to_owned() } else { name }),
        Family::Gemma2 => raw.hidden_activation,
    };
    let window = raw.sliding_window.unwrap_or(Some(4096)).filter(|_| two);
    let text = TextConfig {
        family,
        hidden_size: raw.hidden_size.unwrap_or(sizes.0),
        intermediate_size: raw.intermediate_size.unwrap_or(sizes.1),
        heads: raw.num_attention_heads.unwrap_or(sizes.3),
        kv_heads: raw.num_key_value_heads.unwrap_or(sizes.4),
        head_dim,
        vocab_size: raw.vocab_size.unwrap_or(257_152),
        activation: resolve_activation("text_config", activation)?,
        norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
        rope_theta: rope.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0),
        query_scale: if two { raw.query_pre_attn_scalar.unwrap_or(256.0) } else { head_dim as f64 }.powf(-0.5),
        attn_softcap: raw.attn_logit_softcapping.unwrap_or(Some(50.0)).filter(|_| two),
        final_softcap: raw.final_logit_softcapping.unwrap_or(Some(30.0)).filter(|_| two),
        windows: resolve_windows(window, layers, raw.layer_types)?,
        context: raw.max_position_embeddings.unwrap_or(8192).min(MAX_CONTEXT),
        tied,
    };
    above_zero(
        "text_config",
        &[
            ("hidden_size", text.hidden_size),
            ("intermediate_size", text.intermediate_size),
            ("num_hidden_layers", layers),
            ("num_attention_heads", text.heads),
            ("num_key_value_heads", text.kv_heads),
            ("head_dim", text.head_dim),
            ("vocab_size", text.vocab_size),
            ("max_position_embeddings", text.context),
            ("sliding_window", window.unwrap_or(1)),
        ],
    )?;
    if !text.heads.is_multiple_of(text.kv_heads) {
        let (heads, kv_heads) = (text.heads, text.kv_heads);
        return Err(format!("text_config.num_attention_heads is {heads}; must be a multiple of num_key_value_heads ({kv_heads})"));
    }
    if !text.head_dim.is_multiple_of(2) {
        return Err(format!("text_config.head_dim is {head_dim}; must be even"));
    }
    let finite = [text.norm_eps, text.rope_theta, text.query_scale, text.attn_softcap.unwrap_or(1.0), text.final_softcap.unwrap_or(1.0)];
    if !finite.iter().all(|&number| number.is_finite() && number > 0.0) {
        return Err("text_config: rms_norm_eps, rope_theta, query_pre_attn_scalar and the soft caps must be above 0".to_owned());
    }
    Ok(text)
}

/// Gemma 2 alternates: layer 0 slides, layer 1 sees all, and so on, unless `layer_types` says otherwise.
fn resolve_windows(window: Option<usize>, layers: usize, types: Option<Vec<String>>) -> std::result::Result<Vec<Option<usize>>, String> {
    let Some(types) = types.filter(|_| window.is_some()) else {
        return Ok((0..layers).map(|layer| window.filter(|_| layer % 2 == 0)).collect());
    };
    if types.len() != layers {
        return Err(format!("text_config.layer_types has {} entries; must have {layers}, one per layer", types.len()));
    }
    let resolve = |(layer, kind): (usize, &String)| match kind.as_str() {
        "sliding_attention" => Ok(window),
        "full_attention" => Ok(None),
        other => Err(format!("text_config.layer_types[{layer}] is {other:?}; must be \"sliding_attention\" or \"full_attention\"")),
    };
    types.iter().enumerate().map(resolve).collect()
}

fn resolve_vision(raw: Option<RawVision>) -> std::result::Result<VisionConfig, String> {
    // An absent section is PaliGemma's own tower; a present one leaves gaps to the tower's class.
    let (raw, sizes, patch_size) = match raw {
        None => (RawVision::default(), Sizes(1152, 4096, 27, 16, 0), 14),
        Some(raw) => (raw, Sizes(768, 3072, 12, 12, 0), 16),
    };
    if let Some(other) = raw.model_type.filter(|name| name != "siglip_vision_model") {
        return Err(format!("vision_config.model_type is {other:?}; must be \"siglip_vision_model\""));
    }
    if let Some(channels) = raw.num_channels.filter(|&channels| channels != 3) {
        return Err(format!("vision_config.num_channels is {channels}; must be 3"));
    }
    let vision = VisionConfig {
        hidden_size: raw.hidden_size.unwrap_or(sizes.0),
        intermediate_size: raw.intermediate_size.unwrap_or(sizes.1),
        layers: raw.num_hidden_layers.unwrap_or(sizes.2),
        heads: raw.num_attention_heads.unwrap_or(sizes.3),
        image_size: raw.image_size.unwrap_or(224),
        patch_size: raw.patch_size.unwrap_or(patch_size),
        activation: resolve_activation("vision_config", raw.hidden_act)?,
        norm_eps: raw.layer_norm_eps.unwrap_or(1e-6),
    };
    above_zero(
        "vision_config",
        &[
            ("hidden_size", vision.hidden_size),
            ("intermediate_size", vision.intermediate_size),
            ("num_hidden_layers", vision.layers),
            ("num_attention_heads", vision.heads),
            ("patch_size", vision.patch_size),
        ],
    )?;
    if !vision.hidden_size.is_multiple_of(vision.heads) {
        let (width, heads) = (vision.hidden_size, vision.heads);
        return Err(format!("vision_config.hidden_size is {width}; must be a multiple of num_attention_heads ({heads})"));
    }
    if vision.image_size < vision.patch_size || vision.image_size > 8192 {
        let (size, patch) = (vision.image_size, vision.patch_size);
        return Err(format!("vision_config.image_size is {size}; must be in {patch}..=8192, from the patch_size"));
    }
    Ok(vision)
}

fn resolve_activation(section: &str, name: Option<String>) -> std::result::Result<Activation, String> {
    match name.as_deref() {
        None | Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(Activation::GeluErf),
        Some(other) => Err(format!("the activation in {section} is {other:?}; must be \"gelu_pytorch_tanh\" or \"gelu\"")),
    }
}

fn above_zero(section: &str, sizes: &[(&str, usize)]) -> std::result::Result<(), String> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((name, _)) => Err(format!("{section}.{name} is 0; must be at least 1")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(json: &str) -> std::result::Result<Config, String> {
        resolve(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_sparse_gemma_2_takes_the_class_defaults() {
        let config = parse(r#"{"text_config": {"model_type": "gemma2"}, "vision_config": {"image_size": 448, "patch_size": 14}}"#).unwrap();
        let text = config.text;
        assert_eq!((text.heads, text.kv_heads, text.head_dim, text.query_scale), (8, 4, 256, 1.0 / 16.0));
        assert_eq!((text.attn_softcap, text.final_softcap), (Some(50.0), Some(30.0)));
        assert_eq!(text.windows[..3], [Some(4096), None, Some(4096)]);
        assert_eq!((text.norm_eps, text.rope_theta, text.context), (1e-6, 10_000.0, 8192));
        assert_eq!((config.vision.patches(), config.vision.norm_eps), (1024, 1e-6));
    }

    #[test]
    fn a_sparse_gemma_1_has_no_caps_and_no_window() {
        let text = parse(r#"{"text_config": {"model_type": "gemma", "hidden_activation": "relu", "hidden_act": "gelu"}}"#).unwrap().text;
        assert_eq!((text.heads, text.kv_heads, text.head_dim, text.query_scale), (8, 1, 256, 1.0 / 16.0));
        assert_eq!((text.attn_softcap, text.final_softcap), (None, None));
        assert!(text.windows.iter().all(Option::is_none));
        assert_eq!(text.activation, Activation::GeluTanh);
    }

    #[test]
    fn null_switches_off_and_lists_are_followed() {
        let json = r#"{"text_config": {"model_type": "gemma2", "attn_logit_softcapping": null, "num_hidden_layers": 2, "sliding_window": 7,
            "layer_types": ["full_attention", "sliding_attention"]}, "eos_token_id": [1, 107]}"#;
        let config = parse(json).unwrap();
        assert_eq!((config.text.attn_softcap, config.text.final_softcap), (None, Some(30.0)));
        assert_eq!(config.text.windows, [None, Some(7)]);
        assert_eq!((config.eos, config.bos), (vec![1, 107], 2));
    }

    #[test]
    fn the_published_shapes_are_understood() {
        let shape = |name: &str| {
            let path = format!("{}/tests/shapes/{name}.json", env!("CARGO_MANIFEST_DIR"));
            parse(&std::fs::read_to_string(path).unwrap()).unwrap()
        };
        let (one, two, large) = (shape("paligemma-3b-224"), shape("paligemma2-3b-224"), shape("paligemma2-28b-896"));
        assert_eq!((one.image_token, one.vision.patches(), one.text.windows.len()), (257_152, 256, 18));
        assert_eq!((one.text.heads, one.text.kv_heads, one.text.final_softcap), (8, 1, None));
        assert_eq!((two.text.heads, two.text.kv_heads, two.text.head_dim, two.text.vocab_size), (8, 4, 256, 257_216));
        assert_eq!((large.text.query_scale, large.text.head_dim, large.vision.patches()), (1.0 / 12.0, 128, 4096));
        assert_eq!((shape("paligemma2-3b-448").vision.patches(), shape("paligemma2-10b-448").text.heads), (1024, 16));
    }

    #[test]
    fn unknown_networks_are_refused_in_a_sentence() {
        for (json, part) in [
            (r#"{"model_type": "llava"}"#, "model_type is \"llava\"; must be \"paligemma\""),
            (r#"{"text_config": {"model_type": "gemma3_text"}}"#, "must be \"gemma\" or \"gemma2\""),
            (r#"{"text_config": {"num_attention_heads": 6, "num_key_value_heads": 4}}"#, "must be a multiple"),
            (r#"{"text_config": {"head_dim": 0}}"#, "text_config.head_dim is 0; must be at least 1"),
            (r#"{"vision_config": {"patch_size": 300}}"#, "must be in 300..=8192"),
            (r#"{"text_config": {"rope_scaling": {"type": "linear"}}}"#, "must be null"),
        ] {
            let why = parse(json).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }
}
