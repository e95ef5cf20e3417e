//! The layers that tower and decoder share. Norms and softmax compute in 32-bit floats whatever the weights' type.

use candle_core::{D, DType, Result, Tensor};

use crate::base;
use crate::model::config::Activation;
use crate::model::weights::Scope;

/// `x · Wᵀ (+ b)`, with `W` as `[out, in]`.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` and `bias`.
    pub fn with_bias(scope: &Scope<'_>, input: usize, output: usize) -> base::Result<Self> {
        Ok(Self { weight: scope.get("weight", &[output, input])?, bias: Some(scope.get("bias", &[output])?) })
    }

    /// Reads `weight`.
    pub fn without_bias(scope: &Scope<'_>, input: usize, output: usize) -> base::Result<Self> {
        Ok(Self { weight: scope.get("weight", &[output, input])?, bias: None })
    }

    /// `[rows, in]` → `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Layer norm with weight and bias.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Reads `weight` and `bias`.
    pub fn new(scope: &Scope<'_>, width: usize, eps: f64) -> base::Result<Self> {
        Ok(Self { weight: scope.get_f32("weight", &[width])?, bias: scope.get_f32("bias", &[width])?, eps: eps as f32 })
    }

    /// `[rows, width]` → the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::layer_norm(&x.to_dtype(DType::F32)?, &self.weight, &self.bias, self.eps)?.to_dtype(x.dtype())
    }
}

/// Gemma's RMS norm: the stored weight is the distance from 1.
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Reads `weight`.
    pub fn new(scope: &Scope<'_>, width: usize, eps: f64) -> base::Result<Self> {
        use base::{Context, Kind};
        let weight = scope.get_f32("weight", &[width])?;
        let weight = (weight + 1.0).context(Kind::Internal, || "cannot shift a norm's weight".to_owned())?;
        Ok(Self { weight, eps: eps as f32 })
    }

    /// `[rows, width]` → the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::rms_norm(&x.to_dtype(DType::F32)?, &self.weight, self.eps)?.to_dtype(x.dtype())
    }
}

impl Activation {
    /// Applies it to every element.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::GeluTanh => x.gelu(),
            Self::GeluErf => x.gelu_erf(),
        }
    }
}

/// Attention without a mask: every query sees every key.
///
/// `q` is `[groups, rows, width]`, `k` and `v` are `[groups, keys, width]`; `scale` multiplies the scores, `softcap`
/// bounds them. Gives `[groups, rows, width]`.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, softcap: Option<f64>) -> Result<Tensor> {
    let scores = strided(q)?.matmul(&strided(&k.transpose(1, 2)?)?)?.to_dtype(DType::F32)?;
    let scores = match softcap {
        Some(cap) => ((scores * (scale / cap))?.tanh()? * cap)?,
        None => (scores * scale)?,
    };
    candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?.matmul(&strided(v)?)
}

/// `[rows, heads * width]` → `[heads, rows, width]`, without a copy.
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    x.reshape((rows, heads, width / heads))?.transpose(0, 1)
}

/// `[heads, rows, width]` → `[rows, heads * width]`.
pub fn join_heads(x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.flatten_from(D::Minus2)
}

/// The processor's products take any strides; the GPU's want rows one after another.
fn strided(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { Ok(x.clone()) } else { x.contiguous() }
}
