//! Activations as the integer products take them.

use crate::model::kernel::BLOCK;
use crate::model::matrix::Type;

/// The largest magnitude after rounding: 32 products with weights of up to 4096 (a 6-bit integer times its 8-bit scale)
/// still fit into 32 bits.
const TOP: f32 = 16_383.0;

/// Rows of activations in 16-bit integers, with a scale for each 32 of a row. The last block of a row is filled up with
/// zeros.
pub struct Rounded {
    /// `[rows, blocks * 32]`.
    pub values: Vec<i16>,
    /// `[rows, blocks]`: what an integer counts.
    pub scales: Vec<f32>,
    /// `[rows, blocks]`: the sum of the values that the integers stand for; empty where the weights have no minimum.
    pub sums: Vec<f32>,
    /// Blocks of a row that hold anything.
    pub blocks: usize,
}

impl Rounded {
    /// Rounds `[rows, depth]` for weights of a type. A number that is none makes its block's scale NaN.
    pub fn new(x: &[f32], depth: usize, ty: Type) -> Self {
        let (rows, blocks) = (x.len() / depth, depth.div_ceil(BLOCK));
        let (mut values, mut scales) = (vec![0; rows * blocks * BLOCK], vec![0.0; rows * blocks]);
        let mut sums = if ty == Type::Q4K { vec![0.0; rows * blocks] } else { Vec::new() };
        for (row, x) in x.chunks_exact(depth).enumerate() {
            for (at, x) in x.chunks(BLOCK).enumerate() {
                let at = row * blocks + at;
                let (scale, sum) = round(x, &mut values[at * BLOCK..]);
                scales[at] = scale;
                if let Some(place) = sums.get_mut(at) {
                    *place = sum;
                }
            }
        }
        Self { values, scales, sums, blocks }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.scales.len() / self.blocks
    }

    /// Values of one row from a block on.
    pub fn row(&self, row: usize, block: usize) -> &[i16] {
        &self.values[(row * self.blocks + block) * BLOCK..(row + 1) * self.blocks * BLOCK]
    }
}

fn round(x: &[f32], values: &mut [i16]) -> (f32, f32) {
    // Whatever is no number, or infinite, becomes NaN here and stays it.
    let poison: f32 = x.iter().map(|value| value * 0.0).sum();
    let most = x.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let scale = most / TOP + poison;
    let inverse = if most > 0.0 { TOP / most } else { 0.0 };
    let mut sum = 0_i32;
    for (value, x) in values.iter_mut().zip(x) {
        // Adding this leaves the nearest whole number in the lowest bits; `as` would round towards zero.
        *value = (x * inverse + 12_582_912.0).to_bits().wrapping_sub(12_582_912.0_f32.to_bits()) as i16;
        sum += i32::from(*value);
    }
    (scale, sum as f32 * scale)
}
