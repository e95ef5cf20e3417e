//! The layers that tower and decoder share. Norms and softmax compute in 32-bit floats whatever the weights' type.

use candle_core::{D, DType, Result, Tensor};

use crate::base::{self, Context, Kind};
use crate::model::config::Activation;
use crate::model::ops;
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

/// Values of a norm, where the device wants them and as plain numbers.
struct Values {
    tensor: Tensor,
    plain: Vec<f32>,
}

impl Values {
    fn new(tensor: Tensor) -> base::Result<Self> {
        let plain = tensor.to_vec1().context(Kind::Internal, || "cannot read a norm's values".to_owned())?;
        Ok(Self { tensor, plain })
    }
}

/// Layer norm with weight and bias.
pub struct LayerNorm {
    weight: Values,
    bias: Values,
    eps: f32,
}

impl LayerNorm {
    /// Reads `weight` and `bias`.
    pub fn new(scope: &Scope<'_>, width: usize, eps: f64) -> base::Result<Self> {
        let weight = Values::new(scope.get_f32("weight", &[width])?)?;
        Ok(Self { weight, bias: Values::new(scope.get_f32("bias", &[width])?)?, eps: eps as f32 })
    }

    /// `[rows, width]` → the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if ops::suits(x) {
            return ops::layer_norm(x, &self.weight.plain, &self.bias.plain, self.eps);
        }
        let y = candle_nn::ops::layer_norm(&x.to_dtype(DType::F32)?, &self.weight.tensor, &self.bias.tensor, self.eps)?;
        y.to_dtype(x.dtype())
    }
}

/// Gemma's RMS norm: the stored weight is the distance from 1.
pub struct RmsNorm {
    weight: Values,
    eps: f32,
}

impl RmsNorm {
    /// Reads `weight`.
    pub fn new(scope: &Scope<'_>, width: usize, eps: f64) -> base::Result<Self> {
        let weight = scope.get_f32("weight", &[width])?;
        let weight = (weight + 1.0).context(Kind::Internal, || "cannot shift a norm's weight".to_owned())?;
        Ok(Self { weight: Values::new(weight)?, eps: eps as f32 })
    }

    /// `[rows, width]` → the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if ops::suits(x) {
            return ops::rms_norm(x, &self.weight.plain, self.eps);
        }
        candle_nn::ops::rms_norm(&x.to_dtype(DType::F32)?, &self.weight.tensor, self.eps)?.to_dtype(x.dtype())
    }
}

impl Activation {
    /// Applies it to every element; `x` is used up.
    pub fn forward(self, x: Tensor) -> Result<Tensor> {
        match self {
            Self::GeluTanh if ops::suits(&x) => {
                ops::gelu_tanh(&x)?;
                Ok(x)
            }
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
    let scores = strided(q)?.matmul(&strided(&k.transpose(1, 2)?)?)?;
    let shares = if ops::suits(&scores) {
        ops::capped_softmax(&scores, k.dim(1)?, scale as f32, softcap.map(|cap| cap as f32))?;
        scores
    } else {
        let scores = scores.to_dtype(DType::F32)?;
        let scores = match softcap {
            Some(cap) => ((scores * (scale / cap))?.tanh()? * cap)?,
            None => (scores * scale)?,
        };
        candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?
    };
    shares.matmul(&strided(v)?)
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
