//! The Gemma 1 and Gemma 2 decoders with a KV cache.
//!
//! Mirrors `GemmaModel` and `Gemma2Model` of `transformers`. No mask is ever built: the prefix (image, prompt, newline)
//! is one block in which all see all, sliding layers included, and an answer's token comes alone, so that "causal" means
//! "all so far" and a window means "the newest keys".

use candle_core::{DType, Device, IndexOp, Result, Tensor};

use crate::base;
use crate::model::config::{Activation, Family, TextConfig};
use crate::model::layers::{Linear, RmsNorm, attend};
use crate::model::ops;
use crate::model::weights::{Part, Scope, Weights};

/// Embedding, layers, output table.
pub struct Decoder {
    config: TextConfig,
    embed: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Tensor,
    rotary: Rotary,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
    input_norm: RmsNorm,
    /// After attention; in Gemma 1 that is before the feed-forward block.
    post_attention_norm: RmsNorm,
    /// Around the feed-forward block, in Gemma 2.
    feed_forward_norms: Option<(RmsNorm, RmsNorm)>,
    window: Option<usize>,
}

/// Keys and values of one conversation, `[capacity, kv_heads, head_dim]` per layer.
pub struct Cache {
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
}

impl Cache {
    /// Forgets all; the memory stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl Decoder {
    /// Reads the decoder's weights.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn new(weights: &Weights, config: &TextConfig, device: &Device) -> base::Result<Self> {
        use base::{Context, Kind};
        let scope = weights.part(Part::Language);
        let table = [config.vocab_size, config.hidden_size];
        let embed = scope.sub("embed_tokens").get("weight", &table)?;
        let head = if config.tied { embed.clone() } else { weights.part(Part::Head).get("weight", &table)? };
        let layers = config.windows.iter().enumerate();
        Ok(Self {
            layers: layers
                .map(|(layer, &window)| Layer::new(&scope.sub("layers").sub(layer), config, window))
                .collect::<base::Result<_>>()?,
            norm: RmsNorm::new(&scope.sub("norm"), config.hidden_size, config.norm_eps)?,
            rotary: Rotary::new(config, device).context(Kind::Internal, || "cannot compute the position tables".to_owned())?,
            config: config.clone(),
            embed,
            head,
        })
    }

    /// An empty cache for `capacity` positions.
    pub fn cache(&self, capacity: usize) -> Result<Cache> {
        let zeros = || Tensor::zeros((capacity, self.config.kv_heads, self.config.head_dim), self.embed.dtype(), self.embed.device());
        let layers = self.layers.iter().map(|_| Ok((zeros()?, zeros()?))).collect::<Result<_>>()?;
        Ok(Cache { layers, len: 0 })
    }

    /// Embeddings of tokens, scaled by the root of the width: `[tokens, hidden]`.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(ids, self.embed.device())?;
        self.embed.index_select(&ids, 0)? * (self.config.hidden_size as f64).sqrt()
    }

    /// Adds `x` (`[rows, hidden]`) to the cache as one block and gives the logits after its last row, as 32-bit floats.
    pub fn forward(&self, x: &Tensor, cache: &mut Cache) -> Result<Vec<f32>> {
        let rows = x.dim(0)?;
        let mut x = x.clone();
        for (layer, (keys, values)) in self.layers.iter().zip(&cache.layers) {
            x = layer.forward(&x, &self.config, &self.rotary, (keys, values), cache.len)?;
        }
        cache.len += rows;
        let last = self.norm.forward(&x.narrow(0, rows - 1, 1)?)?;
        let logits = last.matmul(&self.head.t()?)?.to_dtype(DType::F32)?;
        let logits = match self.config.final_softcap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        };
        logits.i(0)?.to_vec1()
    }
}

impl Layer {
    fn new(scope: &Scope<'_>, config: &TextConfig, window: Option<usize>) -> base::Result<Self> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.norm_eps);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (attention, mlp) = (scope.sub("self_attn"), scope.sub("mlp"));
        let norm = |name: &str| RmsNorm::new(&scope.sub(name), hidden, eps);
        Ok(Self {
            query: Linear::without_bias(&attention.sub("q_proj"), hidden, queries)?,
            key: Linear::without_bias(&attention.sub("k_proj"), hidden, keys)?,
            value: Linear::without_bias(&attention.sub("v_proj"), hidden, keys)?,
            out: Linear::without_bias(&attention.sub("o_proj"), queries, hidden)?,
            gate: Linear::without_bias(&mlp.sub("gate_proj"), hidden, inner)?,
            up: Linear::without_bias(&mlp.sub("up_proj"), hidden, inner)?,
            down: Linear::without_bias(&mlp.sub("down_proj"), inner, hidden)?,
            activation: config.activation,
            input_norm: norm("input_layernorm")?,
            post_attention_norm: norm("post_attention_layernorm")?,
            feed_forward_norms: match config.family {
                Family::Gemma => None,
                Family::Gemma2 => Some((norm("pre_feedforward_layernorm")?, norm("post_feedforward_layernorm")?)),
            },
            window,
        })
    }

    fn forward(&self, x: &Tensor, config: &TextConfig, rotary: &Rotary, cache: (&Tensor, &Tensor), past: usize) -> Result<Tensor> {
        let attended = self.attention(&self.input_norm.forward(x)?, config, rotary, cache, past)?;
        let Some((before, after)) = &self.feed_forward_norms else {
            let x = (x + attended)?;
            return &x + self.feed_forward(&self.post_attention_norm.forward(&x)?)?;
        };
        let x = (x + self.post_attention_norm.forward(&attended)?)?;
        &x + after.forward(&self.feed_forward(&before.forward(&x)?)?)?
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let gate = self.activation.forward(self.gate.forward(x)?)?;
        self.down.forward(&(gate * self.up.forward(x)?)?)
    }

    /// Grouped-query attention over the cache and the new rows. Queries that share a key head are stacked as rows of one
    /// product, so keys and values are never repeated in memory.
    fn attention(
        &self,
        x: &Tensor,
        config: &TextConfig,
        rotary: &Rotary,
        (keys, values): (&Tensor, &Tensor),
        past: usize,
    ) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let TextConfig { heads, kv_heads, head_dim, .. } = *config;
        let group = heads / kv_heads;
        let q = rotary.rotate(self.query.forward(x)?.reshape((rows, heads, head_dim))?, past)?;
        let k = rotary.rotate(self.key.forward(x)?.reshape((rows, kv_heads, head_dim))?, past)?;
        let v = self.value.forward(x)?.reshape((rows, kv_heads, head_dim))?;
        keys.slice_set(&k, 0, past)?;
        values.slice_set(&v, 0, past)?;
        // The prefix block is exempt from the window, and the window of a single row ends at that row.
        let seen = match self.window {
            Some(window) if past > 0 => window.min(past + rows),
            _ => past + rows,
        };
        let first = past + rows - seen;
        let k = keys.narrow(0, first, seen)?.transpose(0, 1)?;
        let v = values.narrow(0, first, seen)?.transpose(0, 1)?;
        let q = q.reshape((rows, kv_heads, group, head_dim))?.transpose(0, 1)?.reshape((kv_heads, rows * group, head_dim))?;
        let out = attend(&q, &k, &v, config.query_scale, config.attn_softcap)?;
        let out = out.reshape((kv_heads, rows, group, head_dim))?.transpose(0, 1)?.reshape((rows, heads * head_dim))?;
        self.out.forward(&out)
    }
}

/// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]`, always in 32-bit floats: in bfloat16 positions
/// past 256 would fall together.
struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same where the device wants them.
    tensors: (Tensor, Tensor),
    half: usize,
}

impl Rotary {
    fn new(config: &TextConfig, device: &Device) -> Result<Self> {
        let half = config.head_dim / 2;
        let base = config.rope_theta as f32;
        let inverse: Vec<f32> = (0..half).map(|i| 1.0 / base.powf((2 * i) as f32 / config.head_dim as f32)).collect();
        // PaliGemma counts positions from 1.
        let angles = (1..=config.context).flat_map(|at| inverse.iter().map(move |inverse| at as f32 * inverse));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let tensor = |values: &[f32]| Tensor::from_slice(values, (config.context, half), device);
        Ok(Self { tensors: (tensor(&cos)?, tensor(&sin)?), cos, sin, half })
    }

    /// Rotates `[rows, heads, head_dim]`, whose first row is at position `first`; `x` is used up.
    fn rotate(&self, x: Tensor, first: usize) -> Result<Tensor> {
        let rows = x.dim(0)?;
        if ops::suits(&x) {
            let range = first * self.half..(first + rows) * self.half;
            ops::rotate(&x, &self.cos[range.clone()], &self.sin[range])?;
            return Ok(x);
        }
        let (cos, sin) = (self.tensors.0.narrow(0, first, rows)?, self.tensors.1.narrow(0, first, rows)?);
        let turned = candle_nn::rotary_emb::rope_thd(&x.to_dtype(DType::F32)?.unsqueeze(0)?, &cos, &sin)?;
        turned.squeeze(0)?.to_dtype(x.dtype())
    }
}
