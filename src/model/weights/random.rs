//! Weights out of nothing, for timing a shape whose checkpoint is not at hand.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::base::hash::{FNV_OFFSET, fnv1a};
use crate::base::{Context, Kind, Result};
use crate::model::matrix::{Bytes, Matrix, Type};

/// Weights lie evenly in `-RANGE..RANGE`, as in the reference's timing.
const RANGE: f32 = 0.02;

/// A matrix of random weights, the same for the same name. Block types get random integers under one scale: quantising
/// billions of floats would take minutes and time nothing.
///
/// # Errors
/// When it cannot be made.
pub fn matrix(name: &str, ty: Type, rows: usize, cols: usize) -> Result<Matrix> {
    let len = ty.row_bytes(cols);
    let mut bytes = vec![0; rows * len];
    let seed = u64::from(fnv1a(FNV_OFFSET, name.as_bytes()));
    let some = 1 + (1 << 16) / len;
    bytes.par_chunks_mut(len * some).enumerate().for_each(|(at, bytes)| {
        let mut dice = Dice(seed ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bytes.chunks_exact_mut(ty.block_bytes()).for_each(|block| fill(ty, block, &mut dice));
    });
    Matrix::new(ty, rows, cols, Bytes::Owned(Arc::new(bytes)))
}

/// Random values in a tensor of 32-bit floats on the processor.
///
/// # Errors
/// When it cannot be made.
pub fn tensor(name: &str, shape: &[usize]) -> Result<Tensor> {
    let mut dice = Dice(fnv1a(FNV_OFFSET, name.as_bytes()).into());
    let values = (0..shape.iter().product()).map(|_| dice.float()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).context(Kind::Internal, || format!("cannot make random values for {name}"))
}

fn fill(ty: Type, block: &mut [u8], dice: &mut Dice) {
    let scale = |top: f32| f16::from_f32(RANGE / top).to_le_bytes();
    match ty {
        Type::F32 => block.copy_from_slice(&dice.float().to_le_bytes()),
        Type::F16 => block.copy_from_slice(&f16::from_f32(dice.float()).to_le_bytes()),
        Type::Bf16 => block.copy_from_slice(&bf16::from_f32(dice.float()).to_le_bytes()),
        Type::Q8_0 => {
            dice.bytes(&mut block[2..]);
            block[..2].copy_from_slice(&scale(128.0));
        }
        Type::Q6K => {
            dice.bytes(&mut block[..192]);
            block[192..208].fill(64);
            block[208..].copy_from_slice(&scale(32.0 * 64.0));
        }
        Type::Q4K => {
            // Every scale is 8 and every minimum 60, in six bits each: 8 * q - 60 lies in -60..=60.
            block[4..8].fill(8);
            block[8..12].fill(60 | 3 << 6);
            block[12..16].fill(8 | 12 << 4);
            dice.bytes(&mut block[16..]);
            let by = scale(60.0);
            block[..2].copy_from_slice(&by);
            block[2..4].copy_from_slice(&by);
        }
    }
}

/// A generator whose numbers need only look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 31
    }

    fn float(&mut self) -> f32 {
        ((self.roll() >> 40) as f32 / (1 << 23) as f32 - 1.0) * RANGE
    }

    fn bytes(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            eight.copy_from_slice(&self.roll().to_le_bytes()[..eight.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn weights_of_every_type_are_spread_over_the_range_and_repeat() {
        for ty in [Type::F32, Type::F16, Type::Bf16, Type::Q8_0, Type::Q6K, Type::Q4K] {
            let (a, b) = (matrix("a", ty, 40, 512).unwrap(), matrix("a", ty, 40, 512).unwrap());
            let (mut row, mut again) = (vec![0.0; 512], vec![0.0; 512]);
            let (mut sum, mut most) = (0.0, 0.0_f32);
            for at in 0..40 {
                a.read_row(at, &mut row);
                b.read_row(at, &mut again);
                assert_eq!(row, again);
                sum += row.iter().sum::<f32>();
                most = row.iter().fold(most, |most, value| most.max(value.abs()));
            }
            assert!((0.019..0.021).contains(&most), "{ty:?}: {most}");
            assert!((sum / (40.0 * 512.0)).abs() < 5e-4, "{ty:?}: {sum}");
        }
        assert_ne!(tensor("a", &[4]).unwrap().to_vec1::<f32>().unwrap(), tensor("b", &[4]).unwrap().to_vec1::<f32>().unwrap());
    }
}
