//! The SigLIP tower and the projector: pixels → one embedding per patch, as wide as the decoder's.
//!
//! Mirrors `SiglipVisionModel` without its pooling head, and `PaliGemmaMultiModalProjector`.

use candle_core::{DType, Result, Tensor};

use crate::base;
use crate::model::attention::{Attention, HostCache, Reach};
use crate::model::config::VisionConfig;
use crate::model::layers::{LayerNorm, Linear, Weight, residual};
use crate::model::ops;
use crate::model::weights::{Part, Scope, Weights};

/// Tower and projector.
pub struct Vision {
    config: VisionConfig,
    /// `[width, 3 * patch * patch]`: a convolution whose stride is its size is a product over unfolded patches.
    patch: Weight,
    /// `[patches, width]`, the convolution's bias included.
    position: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    projector: Linear,
}

struct Block {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Vision {
    /// Reads the tower's weights and the projector's, which gives `width`-wide embeddings.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn new(weights: &Weights, config: &VisionConfig, width: usize) -> base::Result<Self> {
        use base::{Context, Kind};
        let (hidden, side) = (config.hidden_size, config.patch_size);
        let tower = weights.part(Part::Vision);
        let embed = tower.sub("embeddings");
        let bias = embed.sub("patch_embedding").get("bias", &[hidden])?;
        let position = embed.sub("position_embedding").get("weight", &[config.patches(), hidden])?;
        let internal = || "cannot prepare the patch embedding".to_owned();
        Ok(Self {
            patch: Weight::read_of(&embed.sub("patch_embedding"), &[hidden, 3, side, side])?,
            position: position.broadcast_add(&bias).context(Kind::Internal, internal)?,
            blocks: (0..config.layers)
                .map(|layer| Block::new(&tower.sub("encoder.layers").sub(layer), config))
                .collect::<base::Result<_>>()?,
            norm: LayerNorm::new(&tower.sub("post_layernorm"), hidden, config.norm_eps)?,
            projector: Linear::with_bias(&weights.part(Part::Projector).sub("linear"), hidden, width)?,
            config: config.clone(),
        })
    }

    /// Pictures, `pixels` (`[pictures, 3, size, size]`, normalised) → `[pictures * patches, width]`.
    pub fn forward(&self, pixels: &Tensor, dtype: DType) -> Result<Tensor> {
        let (grid, side, pictures) = (self.config.grid(), self.config.patch_size, pixels.dim(0)?);
        // A remainder at the right and lower edge that fills no patch is left out, as a "valid" convolution does.
        let pixels = pixels.narrow(2, 0, grid * side)?.narrow(3, 0, grid * side)?;
        let patches = pixels.reshape(&[pictures, 3, grid, side, grid, side])?.permute([0, 2, 4, 1, 3, 5].as_slice())?;
        let patches = patches.reshape((pictures * grid * grid, 3 * side * side))?.to_dtype(dtype)?;
        let x = self.patch.product(&patches)?;
        let positions = vec![&self.position; pictures];
        let mut x = residual(&Tensor::cat(&positions, 0)?, x)?;
        // All patches of a picture see all of them.
        let reach = Reach::new(vec![0..self.config.patches(); self.config.patches()]);
        for block in &self.blocks {
            x = block.forward(&x, &self.config, &reach, pictures)?;
        }
        self.projector.forward(&self.norm.forward(&x)?)
    }
}

impl Block {
    fn new(scope: &Scope<'_>, config: &VisionConfig) -> base::Result<Self> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.norm_eps);
        let (attention, mlp) = (scope.sub("self_attn"), scope.sub("mlp"));
        Ok(Self {
            norm1: LayerNorm::new(&scope.sub("layer_norm1"), hidden, eps)?,
            query: Linear::with_bias(&attention.sub("q_proj"), hidden, hidden)?,
            key: Linear::with_bias(&attention.sub("k_proj"), hidden, hidden)?,
            value: Linear::with_bias(&attention.sub("v_proj"), hidden, hidden)?,
            out: Linear::with_bias(&attention.sub("out_proj"), hidden, hidden)?,
            norm2: LayerNorm::new(&scope.sub("layer_norm2"), hidden, eps)?,
            up: Linear::with_bias(&mlp.sub("fc1"), hidden, inner)?,
            down: Linear::with_bias(&mlp.sub("fc2"), inner, hidden)?,
        })
    }

    fn forward(&self, x: &Tensor, config: &VisionConfig, reach: &Reach, pictures: usize) -> Result<Tensor> {
        let h = self.norm1.forward(x)?;
        let projected = [self.query.forward(&h)?, self.key.forward(&h)?, self.value.forward(&h)?];
        let attended = attend(&projected, config, reach, pictures)?;
        let x = residual(x, self.out.forward(&attended)?)?;
        let h = config.activation.forward(self.up.forward(&self.norm2.forward(&x)?)?)?;
        residual(&x, self.down.forward(&h)?)
    }
}

/// Attention within each picture, of queries, keys and values.
fn attend([queries, keys, values]: &[Tensor; 3], config: &VisionConfig, reach: &Reach, pictures: usize) -> Result<Tensor> {
    let (heads, width, patches) = (config.heads, config.hidden_size / config.heads, config.patches());
    let attention = Attention { heads, kv_heads: heads, width, scale: (width as f64).powf(-0.5), softcap: None };
    let picture = |at: usize| {
        let part = |x: &Tensor| x.narrow(0, at * patches, patches)?.contiguous();
        let (queries, keys, values) = (part(queries)?, part(keys)?, part(values)?);
        if ops::suits(&queries) {
            let mut cache = HostCache::new(&attention, patches);
            ops::with_values(&keys, |keys| ops::with_values(&values, |values| cache.put(&attention, keys, values, 0)))??;
            let out = ops::with_values(&queries, |queries| attention.on_host(queries, &cache, reach))?;
            return Tensor::from_vec(out, (patches, config.hidden_size), queries.device());
        }
        let split = |x: &Tensor| x.reshape((patches, heads, width));
        attention.on_device(&split(&queries)?, &split(&keys)?, &split(&values)?, reach)
    };
    Tensor::cat(&(0..pictures).map(picture).collect::<Result<Vec<_>>>()?, 0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Module};
    use candle_nn::VarBuilder;
    use candle_transformers::models::siglip;

    use super::*;
    use crate::model::config;
    use crate::model::weights::Wanted;
    use crate::types::Dtype;

    /// Weights and picture of a reference case through our tower, and through another implementation with our projector.
    #[test]
    fn the_tower_agrees_with_an_independent_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pg2");
        let read = config::read(&folder).unwrap();
        let weights = Weights::open(&folder, Wanted::new(Device::Cpu, Dtype::F32).unwrap()).unwrap();
        let ours = Vision::new(&weights, &read.vision, read.text.hidden_size).unwrap();

        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let theirs = serde_json::from_value(serde_json::from_str::<serde_json::Value>(&text).unwrap()["vision_config"].clone()).unwrap();
        let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
        let prefix = tensors.keys().find_map(|name| name.strip_suffix(".post_layernorm.weight")).unwrap().to_owned();
        let theirs =
            siglip::VisionModel::new(&theirs, false, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu).pp(prefix)).unwrap();

        let side = read.vision.image_size;
        let pixels: Vec<f32> = (0..3 * side * side).map(|n| (n as f32 * 0.37).sin()).collect();
        let pixels = Tensor::from_vec(pixels, (3, side, side), &Device::Cpu).unwrap();
        let expected = ours.projector.forward(&theirs.forward(&pixels.unsqueeze(0).unwrap()).unwrap().squeeze(0).unwrap()).unwrap();
        let got = ours.forward(&pixels.unsqueeze(0).unwrap(), DType::F32).unwrap();
        let furthest = (got - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(furthest < 1e-4, "{furthest} apart");
    }
}
