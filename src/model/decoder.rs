//! The Gemma 1 and Gemma 2 decoders with a KV cache.
//!
//! Mirrors `GemmaModel` and `Gemma2Model` of `transformers`. Several conversations go through together, their rows one
//! after another without padding: layers work on rows, and attention knows which rows belong to which cache. A row's
//! reach says what it attends to: a row of the prefix (image, prompt, newline) the whole prefix, sliding layers included;
//! a row of the answer all so far, or the newest of it in a sliding layer.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use crate::base;
use crate::model::attention::{Attention, HostCache, Reach};
use crate::model::config::{Activation, Family, TextConfig};
use crate::model::layers::{Linear, RmsNorm, Weight, residual};
use crate::model::ops;
use crate::model::weights::{Part, Scope, Weights};

/// Embedding, layers, output table.
pub struct Decoder {
    config: TextConfig,
    attention: Attention,
    embed: Weight,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// `None`: the embedding table.
    head: Option<Weight>,
    rotary: Rotary,
    device: Device,
    dtype: DType,
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

/// Keys and values of one conversation.
pub struct Cache {
    layers: Vec<LayerCache>,
    capacity: usize,
    /// Positions that are filled.
    len: usize,
    /// How many of them are the prefix.
    prefix: usize,
}

enum LayerCache {
    Host(HostCache),
    /// `[capacity, kv_heads, width]`.
    Device(Tensor, Tensor),
}

impl Cache {
    /// Begins a conversation with a prefix of so many positions; the memory stays.
    pub fn begin(&mut self, prefix: usize) {
        (self.len, self.prefix) = (0, prefix);
    }

    /// Forgets positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Positions of the prefix.
    pub fn prefix(&self) -> usize {
        self.prefix
    }

    /// Positions that are filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What the row at a position attends to.
    fn reach(&self, position: usize, window: Option<usize>) -> Range<usize> {
        match window {
            _ if position < self.prefix => 0..self.prefix,
            Some(window) => (position + 1).saturating_sub(window)..position + 1,
            None => 0..position + 1,
        }
    }
}

/// Rows of one conversation.
pub struct Segment<'a> {
    /// Where its keys and values are, and will be.
    pub cache: &'a mut Cache,
    /// How many rows.
    pub rows: usize,
    /// Of how many rows, the last ones, the logits are wanted; at least 1.
    pub wanted: usize,
}

impl Decoder {
    /// Reads the decoder's weights.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn new(weights: &Weights, config: &TextConfig, device: &Device, dtype: DType) -> base::Result<Self> {
        use base::{Context, Kind};
        let scope = weights.part(Part::Language);
        let TextConfig { vocab_size, hidden_size, .. } = *config;
        let layers = config.windows.iter().enumerate();
        Ok(Self {
            embed: Weight::read(&scope.sub("embed_tokens"), hidden_size, vocab_size)?,
            layers: layers
                .map(|(layer, &window)| Layer::new(&scope.sub("layers").sub(layer), config, window))
                .collect::<base::Result<_>>()?,
            norm: RmsNorm::new(&scope.sub("norm"), hidden_size, config.norm_eps)?,
            head: if config.tied { None } else { Some(Weight::read(&weights.part(Part::Head), hidden_size, vocab_size)?) },
            rotary: Rotary::new(config, device).context(Kind::Internal, || "cannot compute the position tables".to_owned())?,
            attention: Attention {
                heads: config.heads,
                kv_heads: config.kv_heads,
                width: config.head_dim,
                scale: config.query_scale,
                softcap: config.attn_softcap,
            },
            config: config.clone(),
            device: device.clone(),
            dtype,
        })
    }

    /// An empty cache for `capacity` positions.
    pub fn cache(&self, capacity: usize) -> Result<Cache> {
        let zeros = || Tensor::zeros((capacity, self.config.kv_heads, self.config.head_dim), self.dtype, &self.device);
        let layer = |_| {
            if ops::ours(&self.device) {
                return Ok(LayerCache::Host(HostCache::new(&self.attention, capacity)));
            }
            Ok(LayerCache::Device(zeros()?, zeros()?))
        };
        let layers = self.layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Cache { layers, capacity, len: 0, prefix: 0 })
    }

    /// Bytes of weights that a pass reads.
    pub fn bytes(&self) -> usize {
        let head = self.head.as_ref().unwrap_or(&self.embed);
        head.bytes() + self.layers.iter().map(Layer::bytes).sum::<usize>()
    }

    /// Words in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    /// Embeddings of tokens, scaled by the root of the width: `[tokens, hidden]`.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.embed.rows(ids)? * (self.config.hidden_size as f64).sqrt()
    }

    /// Adds rows (`[rows, hidden]`, segment after segment) to the caches and gives the logits after the wanted rows,
    /// `[wanted, vocabulary]`, as 32-bit floats on the processor.
    pub fn forward(&self, x: &Tensor, segments: &mut [Segment<'_>]) -> Result<Tensor> {
        let all = self.rows(segments, |segment| segment.rows)?;
        let fewer = segments.iter().any(|segment| segment.wanted < segment.rows);
        let wanted = if fewer { Some(self.rows(segments, |segment| segment.wanted)?) } else { None };
        let mut x = x.clone();
        for (at, layer) in self.layers.iter().enumerate() {
            let last = at + 1 == self.layers.len();
            x = layer.forward(&x, self, segments, at, (&all, wanted.as_ref().filter(|_| last).unwrap_or(&all)))?;
        }
        for segment in segments {
            segment.cache.len += segment.rows;
        }
        let logits = self.head.as_ref().unwrap_or(&self.embed).product(&self.norm.forward(&x)?)?.to_dtype(DType::F32)?;
        let logits = match self.config.final_softcap {
            Some(cap) if ops::suits(&logits) => {
                ops::soft_cap(&logits, cap as f32)?;
                logits
            }
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        };
        logits.to_device(&Device::Cpu)
    }
}

/// The last rows of each segment in a pass, with what is the same in every layer.
struct Rows {
    counts: Vec<usize>,
    turn: Turn,
    /// By window, and then by segment.
    reaches: Vec<(Option<usize>, Vec<Reach>)>,
}

impl Decoder {
    fn rows(&self, segments: &[Segment<'_>], count: fn(&Segment<'_>) -> usize) -> Result<Rows> {
        let positions = |segment: &Segment<'_>| {
            let end = segment.cache.len + segment.rows;
            end - count(segment)..end
        };
        let reach = |window: Option<usize>, segment: &Segment<'_>| {
            Reach::new(positions(segment).map(|position| segment.cache.reach(position, window)).collect())
        };
        let mut reaches: Vec<(Option<usize>, Vec<Reach>)> = Vec::new();
        for &window in &self.config.windows {
            if reaches.iter().all(|(other, _)| *other != window) {
                reaches.push((window, segments.iter().map(|segment| reach(window, segment)).collect()));
            }
        }
        let counts = segments.iter().map(count).collect();
        Ok(Rows { counts, turn: self.rotary.at(segments.iter().flat_map(positions).collect())?, reaches })
    }
}

impl Rows {
    /// What each segment's rows see in a layer with this window.
    fn reach(&self, window: Option<usize>) -> &[Reach] {
        self.reaches.iter().find(|(of, _)| *of == window).map_or(&[], |(_, reaches)| reaches)
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

    fn bytes(&self) -> usize {
        let all = [&self.query, &self.key, &self.value, &self.out, &self.gate, &self.up, &self.down];
        all.iter().map(|linear| linear.weight.bytes()).sum()
    }

    /// `all` rows come in, and the `kept` ones go on once keys and values are stored: in the last layer those that are
    /// wanted, for nothing sees the others any more.
    fn forward(
        &self,
        x: &Tensor,
        decoder: &Decoder,
        segments: &mut [Segment<'_>],
        at: usize,
        (all, kept): (&Rows, &Rows),
    ) -> Result<Tensor> {
        let normed = self.input_norm.forward(x)?;
        self.remember(&normed, decoder, segments, at, all)?;
        let (x, normed) = if all.counts == kept.counts { (x.clone(), normed) } else { (last(x, all, kept)?, last(&normed, all, kept)?) };
        let attended = self.attend(&normed, decoder, segments, at, kept)?;
        let Some((before, after)) = &self.feed_forward_norms else {
            let x = residual(&x, attended)?;
            return residual(&x, self.feed_forward(&self.post_attention_norm.forward(&x)?)?);
        };
        let x = residual(&x, self.post_attention_norm.forward(&attended)?)?;
        residual(&x, after.forward(&self.feed_forward(&before.forward(&x)?)?)?)
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.activation.gated(self.gate.forward(x)?, &self.up.forward(x)?)?)
    }

    /// Stores the keys and values of all rows.
    fn remember(&self, x: &Tensor, decoder: &Decoder, segments: &mut [Segment<'_>], at: usize, all: &Rows) -> Result<()> {
        let Attention { kv_heads, width, .. } = decoder.attention;
        let rows = x.dim(0)?;
        let keys = decoder.rotary.rotate(self.key.forward(x)?.reshape((rows, kv_heads, width))?, &all.turn)?;
        let values = self.value.forward(x)?.reshape((rows, kv_heads, width))?;
        let mut from = 0;
        for segment in segments {
            let (first, part) = (segment.cache.len, from..from + segment.rows);
            match &mut segment.cache.layers[at] {
                LayerCache::Device(old_keys, old_values) => {
                    old_keys.slice_set(&keys.narrow(0, from, segment.rows)?.contiguous()?, 0, first)?;
                    old_values.slice_set(&values.narrow(0, from, segment.rows)?.contiguous()?, 0, first)?;
                }
                LayerCache::Host(cache) => {
                    let part = part.start * kv_heads * width..part.end * kv_heads * width;
                    ops::with_values(&keys, |keys| {
                        ops::with_values(&values, |values| cache.put(&decoder.attention, &keys[part.clone()], &values[part], first))
                    })??;
                }
            }
            from += segment.rows;
        }
        Ok(())
    }

    /// Attention of some rows of each segment.
    fn attend(&self, x: &Tensor, decoder: &Decoder, segments: &[Segment<'_>], at: usize, kept: &Rows) -> Result<Tensor> {
        let Attention { heads, width, .. } = decoder.attention;
        let queries = decoder.rotary.rotate(self.query.forward(x)?.reshape((x.dim(0)?, heads, width))?, &kept.turn)?;
        let mut from = 0;
        let mut parts = Vec::with_capacity(segments.len());
        for ((segment, &rows), reach) in segments.iter().zip(&kept.counts).zip(kept.reach(self.window)) {
            parts.push(match &segment.cache.layers[at] {
                LayerCache::Device(keys, values) => decoder.attention.on_device(&queries.narrow(0, from, rows)?, keys, values, reach)?,
                LayerCache::Host(cache) => {
                    let part = from * heads * width..(from + rows) * heads * width;
                    let out = ops::with_values(&queries, |queries| decoder.attention.on_host(&queries[part], cache, reach))?;
                    Tensor::from_vec(out, (rows, heads * width), &Device::Cpu)?
                }
            });
            from += rows;
        }
        self.out.forward(&Tensor::cat(&parts, 0)?)
    }
}

/// Of each segment's rows the last ones.
fn last(x: &Tensor, all: &Rows, kept: &Rows) -> Result<Tensor> {
    let mut end = 0;
    let parts = all.counts.iter().zip(&kept.counts).map(|(all, kept)| {
        end += all;
        x.narrow(0, end - kept, *kept)
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

/// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]`, always in 32-bit floats: in bfloat16 positions
/// past 256 would fall together.
struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same where the device wants them.
    tensors: (Tensor, Tensor),
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
        Ok(Self { tensors: (tensor(&cos)?, tensor(&sin)?), cos, sin })
    }

    /// What turns rows at these positions.
    fn at(&self, positions: Vec<usize>) -> Result<Turn> {
        let device = self.tensors.0.device();
        if ops::ours(device) {
            return Ok(Turn { positions, tables: None });
        }
        let places = Tensor::new(positions.iter().map(|&position| position as u32).collect::<Vec<_>>(), device)?;
        let tables = (self.tensors.0.index_select(&places, 0)?, self.tensors.1.index_select(&places, 0)?);
        Ok(Turn { positions, tables: Some(tables) })
    }

    /// Rotates `[rows, heads, head_dim]`; `x` is used up.
    fn rotate(&self, x: Tensor, turn: &Turn) -> Result<Tensor> {
        let Some((cos, sin)) = &turn.tables else {
            ops::rotate(&x, &self.cos, &self.sin, &turn.positions)?;
            return Ok(x);
        };
        let turned = candle_nn::rotary_emb::rope_thd(&x.to_dtype(DType::F32)?.unsqueeze(0)?, cos, sin)?;
        turned.squeeze(0)?.to_dtype(x.dtype())
    }
}

/// The rotation of some rows.
struct Turn {
    positions: Vec<usize>,
    /// Cosines and sines row by row, for devices other than the processor.
    tables: Option<(Tensor, Tensor)>,
}
