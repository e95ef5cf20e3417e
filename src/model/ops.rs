//! Element-wise work on the processor, in place; on several threads only where there is much of it.
//!
//! The library's own versions wake a thread for every norm of a single row, which costs more than the row, and take
//! `tanh` from the C library one number at a time. These are loops over plain slices that the compiler turns into vector
//! code. They apply to 32-bit floats on the processor ([`suits`]); elsewhere the callers use the library.

use candle_core::{CpuStorage, D, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// Whether the arithmetic of a device is ours, and not the library's: that of the processor.
pub fn ours(device: &Device) -> bool {
    #[cfg(test)]
    let elsewhere = tests::ELSEWHERE.get();
    #[cfg(not(test))]
    let elsewhere = false;
    device.is_cpu() && !elsewhere
}

/// Whether the functions here can work on `x`.
pub fn suits(x: &Tensor) -> bool {
    ours(x.device()) && x.dtype() == DType::F32 && x.is_contiguous()
}

struct Op<F>(F);

impl<F: Fn(&mut [f32])> InplaceOp1 for Op<F> {
    fn name(&self) -> &'static str {
        "in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("an in-place operation needs contiguous f32 values")
        };
        (self.0)(&mut values[start..end]);
        Ok(())
    }
}

/// The values of a contiguous tensor of 32-bit floats on the processor.
pub fn with_values<T>(x: &Tensor, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(work(&values[start..end])),
        _ => bail!("an operation on the processor needs contiguous f32 values"),
    }
}

/// Numbers worth a thread of their own.
const SHARE: usize = 1 << 15;

/// Runs `op` over rows of `width` values of `x`, whose memory nobody else must hold; some rows at a time, on all threads
/// where there are many.
fn on_rows(x: &Tensor, width: usize, op: impl Fn(&mut [f32]) + Sync) -> Result<()> {
    x.inplace_op1(&Op(|values: &mut [f32]| {
        let some = width * (SHARE / 8 / width).max(1);
        if values.len() < SHARE {
            lifted(|| op(values));
        } else {
            values.par_chunks_mut(some).for_each(|values| lifted(|| op(values)));
        }
    }))
}

/// Runs `work`, made of AVX2 instructions where the processor has them: the program as a whole is built for any of x86's.
/// NEON needs no such lift.
#[allow(unsafe_code)]
#[inline(always)]
fn lifted(work: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::model::kernel::Isa;

        #[target_feature(enable = "avx2")]
        fn with_avx2(work: impl FnOnce()) {
            work();
        }
        if Isa::detected() != Isa::Portable {
            // SAFETY: they are there.
            return unsafe { with_avx2(work) };
        }
    }
    work();
}

/// GELU by its tanh approximation, in place.
pub fn gelu_tanh(x: &Tensor) -> Result<()> {
    on_rows(x, 1, |values| values.iter_mut().for_each(|value| *value = gelu(*value)))
}

/// `gate = gelu(gate) * up`, in place.
pub fn gelu_tanh_times(gate: &Tensor, up: &Tensor) -> Result<()> {
    let width = gate.dim(D::Minus1)?;
    with_values(up, |up| {
        gate.inplace_op1(&Op(|gate: &mut [f32]| {
            let work = |(gate, up): (&mut [f32], &[f32])| {
                lifted(|| gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = gelu(*gate) * up));
            };
            if gate.len() < SHARE {
                work((gate, up));
            } else {
                gate.par_chunks_mut(width).zip(up.par_chunks(width)).for_each(work);
            }
        }))
    })?
}

#[inline(always)]
fn gelu(v: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6; // sqrt(2 / π)
    0.5 * v * (1.0 + tanh(ROOT * v * (1.0 + 0.044_715 * v * v)))
}

/// `cap * tanh(x / cap)`, in place.
pub fn soft_cap(x: &Tensor, cap: f32) -> Result<()> {
    on_rows(x, 1, |values| values.iter_mut().for_each(|value| *value = cap * tanh(*value / cap)))
}

/// The softmax of scores times `scale`, bounded by `softcap`; in place.
pub fn softmax(scores: &mut [f32], scale: f32, softcap: Option<f32>) {
    lifted(|| {
        match softcap {
            Some(cap) => scores.iter_mut().for_each(|score| *score = cap * tanh(*score * (scale / cap))),
            None => scores.iter_mut().for_each(|score| *score *= scale),
        }
        let top = top(scores);
        scores.iter_mut().for_each(|score| *score = exp(*score - top));
        let share = 1.0 / sum(scores);
        scores.iter_mut().for_each(|score| *score *= share);
    });
}

/// `row / sqrt(mean(row²) + eps) * weight` for each row.
pub fn rms_norm(x: &Tensor, weight: &[f32], eps: f32) -> Result<Tensor> {
    let x = x.copy()?;
    on_rows(&x, weight.len(), |values| {
        for row in values.chunks_exact_mut(weight.len()) {
            let root = (sum_of(row, |value| value * value) / weight.len() as f32 + eps).sqrt();
            let factor = 1.0 / root;
            row.iter_mut().zip(weight).for_each(|(value, weight)| *value *= factor * weight);
        }
    })?;
    Ok(x)
}

/// `(row - mean) / sqrt(variance + eps) * weight + bias` for each row.
pub fn layer_norm(x: &Tensor, weight: &[f32], bias: &[f32], eps: f32) -> Result<Tensor> {
    let x = x.copy()?;
    on_rows(&x, weight.len(), |values| {
        for row in values.chunks_exact_mut(weight.len()) {
            let mean = sum(row) / weight.len() as f32;
            let variance = sum_of(row, |value| (value - mean) * (value - mean)) / weight.len() as f32;
            let factor = 1.0 / (variance + eps).sqrt();
            for ((value, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
                *value = (*value - mean) * factor * weight + bias;
            }
        }
    })?;
    Ok(x)
}

/// `x += y`, in place.
pub fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    with_values(y, |y| {
        x.inplace_op1(&Op(|x: &mut [f32]| {
            if x.len() < SHARE {
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            } else {
                let pieces = x.par_chunks_mut(SHARE / 8).zip(y.par_chunks(SHARE / 8));
                pieces.for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
            }
        }))
    })?
}

/// Adds `bias` to each row, in place.
pub fn add_to_rows(x: &Tensor, bias: &[f32]) -> Result<()> {
    on_rows(x, bias.len(), |values| {
        for row in values.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    })
}

/// Rotates heads in place: `x` is `[rows, heads, 2 * half]`; `cos` and `sin` hold `half` values for each position.
pub fn rotate(x: &Tensor, cos: &[f32], sin: &[f32], positions: &[usize]) -> Result<()> {
    let (_, heads, width) = x.dims3()?;
    let half = width / 2;
    x.inplace_op1(&Op(|values: &mut [f32]| {
        for (row, position) in values.chunks_exact_mut(heads * width).zip(positions) {
            let (cos, sin) = (&cos[position * half..][..half], &sin[position * half..][..half]);
            for head in row.chunks_exact_mut(width) {
                let (first, second) = head.split_at_mut(half);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }))
}

/// The greatest; NaN only where all are.
#[inline(always)]
fn top(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<8>();
    let mut lanes = [f32::NEG_INFINITY; 8];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn sum(row: &[f32]) -> f32 {
    sum_of(row, |value| value)
}

/// In eight lanes: a single running sum cannot be vectorised, and rounds worse.
#[inline(always)]
fn sum_of(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<8>();
    let mut lanes = [0.0_f32; 8];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&value| term(value)).sum::<f32>()
}

/// `e^x` to about 2e-7 of its value (Cephes' `expf`, without branches). NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding this leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in few bits.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_2e-4 * r + 1.398_2e-3;
    let p = (p * r + 8.333_452e-3) * r + 4.166_579_6e-2;
    let p = (p * r + 1.666_666_5e-1) * r + 0.5;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    (p * r * r + r + 1.0) * power
}

/// The hyperbolic tangent to about 2e-7 of its value (Cephes' `tanhf`, without branches). NaN stays NaN.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_7e-3 * z + 2.063_909e-2;
    let p = ((p * z - 5.373_971_6e-2) * z + 1.333_144_2e-1) * z - 3.333_328e-1;
    let near_zero = x + x * z * p;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near_zero } else { far }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use super::*;

    thread_local! {
        pub static ELSEWHERE: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs `work` as if the processor were another device: what a GPU computes is tested where there is none.
    pub fn as_elsewhere<T>(work: impl FnOnce() -> T) -> T {
        ELSEWHERE.set(true);
        let done = work();
        ELSEWHERE.set(false);
        done
    }

    /// The largest difference, as a share of the larger value (or of 1e-6 near zero).
    fn apart(ours: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, range: f32) -> f64 {
        let points = (-20_000..=20_000).map(|step| range * step as f32 / 20_000.0);
        let apart = |x: f32| {
            let exact = exact(f64::from(x));
            (f64::from(ours(x)) - exact).abs() / exact.abs().max(1e-6)
        };
        points.map(apart).fold(0.0, f64::max)
    }

    #[test]
    fn the_functions_are_accurate_and_keep_nan() {
        assert!(apart(exp, f64::exp, 80.0) < 5e-7, "{}", apart(exp, f64::exp, 80.0));
        assert!(apart(tanh, f64::tanh, 12.0) < 5e-7, "{}", apart(tanh, f64::tanh, 12.0));
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert_eq!((exp(0.0), tanh(0.0), tanh(-100.0), tanh(f32::INFINITY)), (1.0, 0.0, -1.0, 1.0));
    }

    #[test]
    fn the_operations_agree_with_the_library() {
        let apart =
            |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let x = (Tensor::rand(-3_f32, 3.0, (5, 4, 6), &Device::Cpu).unwrap() * 2.0).unwrap();
        let (weight, bias) = ([0.5, 1.0, 1.5, 2.0, 2.5, 3.0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
        let (weights, biases) = (Tensor::new(&weight, &Device::Cpu).unwrap(), Tensor::new(&bias, &Device::Cpu).unwrap());
        let gelu = x.copy().unwrap();
        gelu_tanh(&gelu).unwrap();
        assert!(apart(&gelu, &x.gelu().unwrap()) < 1e-6);
        let theirs = candle_nn::ops::rms_norm(&x, &weights, 1e-6).unwrap();
        assert!(apart(&rms_norm(&x, &weight, 1e-6).unwrap(), &theirs) < 1e-5);
        let theirs = candle_nn::ops::layer_norm(&x, &weights, &biases, 1e-6).unwrap();
        assert!(apart(&layer_norm(&x, &weight, &bias, 1e-6).unwrap(), &theirs) < 1e-5);
        let mut ours: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        ours.chunks_exact_mut(6).for_each(|row| softmax(row, 0.7, Some(2.0)));
        let ours = Tensor::from_vec(ours, x.shape(), &Device::Cpu).unwrap();
        let theirs = candle_nn::ops::softmax_last_dim(&((&x * 0.35).unwrap().tanh().unwrap() * 2.0).unwrap()).unwrap();
        assert!(apart(&ours, &theirs) < 1e-6);
        let angles: Vec<f32> = (0..15).map(|at| at as f32 * 0.3).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        let ours = x.copy().unwrap();
        rotate(&ours, &cos, &sin, &[0, 1, 2, 3, 4]).unwrap();
        let table = |values: &[f32]| Tensor::from_slice(values, (5, 3), &Device::Cpu).unwrap();
        let theirs = candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0).unwrap(), &table(&cos), &table(&sin)).unwrap();
        assert!(apart(&ours, &theirs.squeeze(0).unwrap()) < 1e-6);
    }
}
