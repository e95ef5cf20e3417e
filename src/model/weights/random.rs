//! Weights drawn at random, in the type they are wanted in: a network of any shape can be timed without its checkpoint.
//!
//! They are uniform in ±0.02 and depend on the tensor's name alone. Blocks are filled with random integers under fixed
//! scales; to quantise billions of random floats would take minutes.

use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::base::Result;
use crate::base::hash::{FNV_OFFSET, fnv1a};
use crate::model::matrix::{Bytes, Matrix, Type};

/// The largest weight.
const LARGEST: f32 = 0.02;

/// Entries of the table from which floats are drawn.
const TABLE: usize = 4096;

/// Bytes that one thread fills at a time, about.
const PIECE: usize = 1 << 20;

/// A matrix `[rows, cols]`.
///
/// # Errors
/// Never, unless the type's sizes contradict each other.
pub fn matrix(name: &str, ty: Type, rows: usize, cols: usize) -> Result<Matrix> {
    let mut bytes = vec![0; rows * ty.row_bytes(cols)];
    match ty {
        Type::F32 => draw(&mut bytes, name, |value| value.to_le_bytes()),
        Type::F16 => draw(&mut bytes, name, |value| f16::from_f32(value).to_le_bytes()),
        Type::Bf16 => draw(&mut bytes, name, |value| bf16::from_f32(value).to_le_bytes()),
        Type::Q8_0 | Type::Q6K | Type::Q4K => draw_blocks(&mut bytes, name, ty),
    }
    Matrix::new(ty, rows, cols, Bytes::Owned(Arc::new(bytes)))
}

/// So many floats.
pub fn floats(name: &str, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; count * 4];
    draw(&mut bytes, name, |value| value.to_le_bytes());
    bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

/// Fills `bytes` with floats of `N` bytes, drawn from a table of values that lie evenly between the bounds.
fn draw<const N: usize>(bytes: &mut [u8], name: &str, write: impl Fn(f32) -> [u8; N]) {
    let value = |at: usize| (at as f32 + 0.5) * (2.0 * LARGEST / TABLE as f32) - LARGEST;
    let table: Vec<[u8; N]> = (0..TABLE).map(|at| write(value(at))).collect();
    let seed = seed(name);
    bytes.par_chunks_mut(PIECE).enumerate().for_each(|(piece, bytes)| {
        let first = (piece * PIECE) as u64;
        for (at, words) in bytes.chunks_mut(4 * N).enumerate() {
            let drawn = splitmix64(seed ^ (first + at as u64));
            for (place, word) in words.chunks_exact_mut(N).enumerate() {
                word.copy_from_slice(&table[(drawn >> (place * 16)) as usize % TABLE]);
            }
        }
    });
}

/// Fills `bytes` with blocks of `ty`.
fn draw_blocks(bytes: &mut [u8], name: &str, ty: Type) {
    let seed = seed(name);
    let (size, scales) = (ty.block_bytes(), scales(ty));
    let step = PIECE / size * size;
    bytes.par_chunks_mut(step).enumerate().for_each(|(piece, bytes)| {
        let first = (piece * step) as u64;
        for (at, word) in bytes.chunks_mut(8).enumerate() {
            word.copy_from_slice(&splitmix64(seed ^ (first + at as u64)).to_le_bytes()[..word.len()]);
        }
        for block in bytes.chunks_exact_mut(size) {
            scales.iter().for_each(|(at, with)| block[*at..][..with.len()].copy_from_slice(with));
        }
    });
}

/// What overwrites a block's random bytes so that its integers span the bounds: bytes and where they go.
fn scales(ty: Type) -> Vec<(usize, Vec<u8>)> {
    let half = |value: f32| f16::from_f32(value).to_le_bytes().to_vec();
    match ty {
        // -128..=127 times the scale.
        Type::Q8_0 => vec![(0, half(LARGEST / 128.0))],
        // -32..32 times a scale of 8 of each sixteen weights, times the block's.
        Type::Q6K => vec![(192, vec![8; 16]), (208, half(LARGEST / (32.0 * 8.0)))],
        // 0..16 times a scale of 32 of each 32 weights, times the block's, less a minimum likewise. Eight pairs of 32 are
        // packed into twelve bytes, low bits apart from high ones.
        _ => vec![(0, half(2.0 * LARGEST / (15.0 * 32.0))), (2, half(LARGEST / 32.0)), (4, vec![32 | 2 << 6; 8]), (12, vec![0; 4])],
    }
}

fn seed(name: &str) -> u64 {
    splitmix64(u64::from(fnv1a(FNV_OFFSET, name.as_bytes())))
}

/// The output function of splitmix64 (Steele, Lea and Flood, 2014) for the counter `at`.
fn splitmix64(at: u64) -> u64 {
    let z = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_drawn_between_the_bounds() {
        for ty in [Type::F32, Type::F16, Type::Bf16, Type::Q8_0, Type::Q6K, Type::Q4K] {
            let drawn = matrix("a", ty, 5, 700).unwrap();
            let mut row = vec![0.0; 700];
            let (mut sum, mut squares, mut largest) = (0.0, 0.0, 0.0_f32);
            for at in 0..5 {
                drawn.read_row(at, &mut row);
                sum += row.iter().sum::<f32>();
                squares += row.iter().map(|value| value * value).sum::<f32>();
                largest = row.iter().fold(largest, |largest, value| largest.max(value.abs()));
            }
            let deviation = (squares / 3500.0).sqrt();
            assert!(largest < LARGEST * 1.01 && largest > LARGEST * 0.95, "{ty:?}: {largest}");
            assert!((sum / 3500.0).abs() < LARGEST * 0.04, "{ty:?}: {sum}");
            // Of a uniform distribution; sixteen steps spread a little more.
            assert!((deviation - LARGEST / 3_f32.sqrt()).abs() < LARGEST * 0.06, "{ty:?}: {deviation}");
        }
    }

    #[test]
    fn the_name_decides() {
        let bytes = |name: &str| matrix(name, Type::Q8_0, 3, 64).unwrap().view().row_bytes(2).to_vec();
        assert_eq!(bytes("a"), bytes("a"));
        assert_ne!(bytes("a"), bytes("b"));
        assert_eq!(floats("norm", 7).len(), 7);
    }
}
