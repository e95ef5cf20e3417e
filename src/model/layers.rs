//! The layers that tower and decoder share. Norms and softmax compute in 32-bit floats whatever the weights' type.

use candle_core::{DType, Result, Tensor};

use crate::base::{self, Context, Kind};
use crate::model::config::Activation;
use crate::model::matrix::Matrix;
use crate::model::ops;
use crate::model::weights::Scope;

/// `x · Wᵀ (+ b)`, with `W` as `[out, in]`.
pub struct Linear {
    /// `W`.
    pub weight: Weight,
    bias: Option<Values>,
}

/// Weights where they are multiplied.
pub enum Weight {
    /// On the processor, as they are stored; activations are 32-bit floats.
    Host(Matrix),
    /// On another device, in the type of the activations.
    Device(Tensor),
}

impl Weight {
    /// Reads `weight`, `[output, input]`.
    ///
    /// # Errors
    /// When it is missing, of another shape, or not of floats.
    pub fn read(scope: &Scope<'_>, input: usize, output: usize) -> base::Result<Self> {
        Self::read_of(scope, &[output, input])
    }

    /// Reads a `weight` that may have more dimensions, such as a convolution's; all after the first are inputs.
    ///
    /// # Errors
    /// As [`Weight::read`].
    pub fn read_of(scope: &Scope<'_>, shape: &[usize]) -> base::Result<Self> {
        if scope.on_host() {
            return scope.matrix("weight", shape).map(Self::Host);
        }
        let flat = scope.get("weight", shape)?.flatten_from(1);
        flat.map(Self::Device).context(Kind::Internal, || "cannot flatten a weight".to_owned())
    }

    /// How large it is.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.view().bytes.len(),
            Self::Device(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
        }
    }

    /// `[rows, in]` → `[rows, out]`.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Device(weight) => x.matmul(&weight.t()?),
            Self::Host(matrix) => {
                let (rows, out) = (x.dim(0)?, matrix.shape()[0]);
                let mut y = vec![0.0; rows * out];
                ops::with_values(&x.contiguous()?, |x| matrix.product(x, &mut y))?;
                Tensor::from_vec(y, (rows, out), x.device())
            }
        }
    }

    /// Some rows of the weight itself, `[ids, in]`.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Device(weight) => weight.index_select(&Tensor::new(ids, weight.device())?, 0),
            Self::Host(matrix) => {
                let width = matrix.shape()[1];
                let mut rows = vec![0.0; ids.len() * width];
                rows.chunks_exact_mut(width).zip(ids).for_each(|(row, id)| matrix.read_row(*id as usize, row));
                Tensor::from_vec(rows, (ids.len(), width), &candle_core::Device::Cpu)
            }
        }
    }
}

impl Linear {
    /// Reads `weight` and `bias`.
    pub fn with_bias(scope: &Scope<'_>, input: usize, output: usize) -> base::Result<Self> {
        let bias = Values::new(scope.get_f32("bias", &[output])?)?;
        Ok(Self { weight: Weight::read(scope, input, output)?, bias: Some(bias) })
    }

    /// Reads `weight`.
    pub fn without_bias(scope: &Scope<'_>, input: usize, output: usize) -> base::Result<Self> {
        Ok(Self { weight: Weight::read(scope, input, output)?, bias: None })
    }

    /// `[rows, in]` → `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.product(x)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) if ops::suits(&y) => {
                ops::add_to_rows(&y, &bias.plain)?;
                Ok(y)
            }
            Some(bias) => y.broadcast_add(&bias.tensor.to_dtype(y.dtype())?),
        }
    }
}

/// Numbers of a layer, where the device wants them and as plain numbers.
struct Values {
    tensor: Tensor,
    plain: Vec<f32>,
}

impl Values {
    fn new(tensor: Tensor) -> base::Result<Self> {
        let plain = tensor.to_vec1().context(Kind::Internal, || "cannot read a layer's values".to_owned())?;
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

/// `x + y`; `y` is used up. On the processor the library would wake threads that spin while they wait.
pub fn residual(x: &Tensor, y: Tensor) -> Result<Tensor> {
    if ops::suits(x) && ops::suits(&y) {
        ops::add(&y, x)?;
        return Ok(y);
    }
    x + y
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

    /// Applies it to `gate` and multiplies by `up`; `gate` is used up.
    pub fn gated(self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        if self == Self::GeluTanh && ops::suits(&gate) && ops::suits(up) {
            ops::gelu_tanh_times(&gate, up)?;
            return Ok(gate);
        }
        self.forward(gate)? * up
    }
}
