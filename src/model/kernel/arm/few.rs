//! Products of a few rows with NEON: four columns at a time, straight from the stored weights.
//!
//! Why without panels, and why to the same bits, is told where x86 does it (`x86/few.rs`).
#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::array::from_fn;

use super::unpack::{FOUR, call_ahead, float_columns, halves, q4k_scales, q4k_values, q6k_scale, q6k_values, sixteen};
use super::{add_scaled, load, take_off};
use crate::model::kernel::activations::{FloatTile, NarrowTile, WideTile};
use crate::model::kernel::unpack::{PER_SUPER, Q4K, Q6K, Q8_0, read_float};
use crate::model::kernel::{BLOCK, EIGHT, FLOAT_DEPTH, NARROW_BLOCKS, WIDE_BLOCKS};
use crate::model::matrix::{Type, View};

/// The stored rows of four columns, and how far behind them those are that are multiplied next but one.
struct Weights<'a> {
    rows: [&'a [u8]; FOUR],
    ahead: usize,
}

impl<'a> Weights<'a> {
    /// Those of eight columns, half by half, with the place of the first.
    fn of(matrix: View<'a>, column: usize) -> [(usize, Self); 2] {
        [0, FOUR].map(|place| {
            let rows = from_fn(|at| matrix.row_bytes(column + place + at));
            (place, Self { rows, ahead: matrix.stride * EIGHT })
        })
    }

    /// A block of each row; of the next ones the memory is told.
    #[inline(always)]
    fn block<const BYTES: usize>(&self, at: usize) -> [&'a [u8; BYTES]; FOUR] {
        let blocks = four!(|row| &self.rows[row].as_chunks().0[at]);
        blocks.iter().for_each(|block| call_ahead(&block[..], self.ahead));
        blocks
    }
}

/// Columns from `column` on for rows of 16-bit integers, each a tile of its own.
pub fn wide(matrix: View<'_>, column: usize, tiles: &[WideTile<'_>], out: &mut [[f32; EIGHT]]) {
    for (place, weights) in Weights::of(matrix, column) {
        if matrix.ty == Type::Q6K {
            by_rows!(out.len(), q6k, (&weights, tiles, out, place), [1, 2, 3, 4]);
        } else {
            by_rows!(out.len(), q8_0, (&weights, tiles, out, place), [1, 2, 3, 4]);
        }
    }
}

/// Columns from `column` on for rows of floats, each a tile of its own.
pub fn floats(matrix: View<'_>, column: usize, tiles: &[FloatTile<'_>], out: &mut [[f32; EIGHT]]) {
    for (place, weights) in Weights::of(matrix, column) {
        by_rows!(out.len(), floats_of, (matrix.ty, &weights, tiles, out, place), [1, 2, 3, 4]);
    }
}

/// The loop of 4-bit weights, which differs in how a block is summed up.
macro_rules! narrow {
    ($features:literal, $name:ident, $q4k:ident, $whole:ident) => {
        /// Columns from `column` on for rows of 8-bit integers, each a tile of its own.
        pub fn $name(matrix: View<'_>, column: usize, tiles: &[NarrowTile<'_>], out: &mut [[f32; EIGHT]]) {
            for (place, weights) in Weights::of(matrix, column) {
                by_rows!(out.len(), $q4k, (&weights, tiles, out, place), [1, 2, 3, 4]);
            }
        }

        #[target_feature(enable = $features)]
        fn $q4k<const ROWS: usize>(weights: &Weights<'_>, tiles: &[NarrowTile<'_>], out: &mut [[f32; EIGHT]], place: usize) {
            let blocks = tiles[0].scales.len();
            let x: [&[NarrowBlock]; ROWS] = from_fn(|row| &tiles[row].values.as_chunks().0[..blocks]);
            let x_scales: [&[f32]; ROWS] = from_fn(|row| &tiles[row].scales[..blocks]);
            let x_sums: [&[f32]; ROWS] = from_fn(|row| &tiles[row].sums[..blocks]);
            let mut sums = [vdupq_n_f32(0.0); ROWS];
            for panel in (0..blocks).step_by(NARROW_BLOCKS) {
                let mut total = [vdupq_n_f32(0.0); ROWS];
                for first in (panel..blocks.min(panel + NARROW_BLOCKS)).step_by(PER_SUPER) {
                    let rows: [&[u8; Q4K]; FOUR] = weights.block(first / PER_SUPER);
                    let [scales, mins] = q4k_scales(rows);
                    for pair in 0..PER_SUPER / 2 {
                        let values = four!(|row| q4k_values(rows[row], pair));
                        let sides = [four!(|row| values[row][0]), four!(|row| values[row][1])];
                        for (side, values) in sides.into_iter().enumerate() {
                            let (sub, block) = (2 * pair + side, first + 2 * pair + side);
                            if block >= blocks {
                                break;
                            }
                            for row in 0..ROWS {
                                let whole = $whole(values, bytes(&x[row][block]));
                                total[row] = add_scaled(total[row], whole, scales[sub], x_scales[row][block]);
                                total[row] = take_off(total[row], mins[sub], x_sums[row][block]);
                            }
                        }
                    }
                }
                add(&mut sums, total);
            }
            store(sums, out, place);
        }
    };
}

narrow!("neon", narrow, q4k, whole);

narrow!("neon,dotprod", narrow_dot, q4k_dot, whole_dot);

/// What a block of each column adds up to.
#[target_feature(enable = "neon")]
#[inline]
fn whole(values: [[int8x16_t; 2]; FOUR], x: [int8x16_t; 2]) -> int32x4_t {
    // Sixteen products of a weight up to 15 and an activation up to 127 fit into 16 bits.
    let [a, b, c, d] = four!(|column| {
        let [first, second] = values[column];
        let sum = vmlal_high_s8(vmull_s8(vget_low_s8(first), vget_low_s8(x[0])), first, x[0]);
        vmlal_high_s8(vmlal_s8(sum, vget_low_s8(second), vget_low_s8(x[1])), second, x[1])
    });
    vpaddlq_s16(vpaddq_s16(vpaddq_s16(a, b), vpaddq_s16(c, d)))
}

/// As [`whole`].
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn whole_dot(values: [[int8x16_t; 2]; FOUR], x: [int8x16_t; 2]) -> int32x4_t {
    let mut sums = [vdupq_n_s32(0); FOUR];
    for (sum, values) in sums.iter_mut().zip(values) {
        // SAFETY: the instruction is there.
        unsafe {
            dot!(*sum, values[0], x[0]);
            dot!(*sum, values[1], x[1]);
        }
    }
    added(sums)
}

#[target_feature(enable = "neon")]
fn q8_0<const ROWS: usize>(weights: &Weights<'_>, tiles: &[WideTile<'_>], out: &mut [[f32; EIGHT]], place: usize) {
    let blocks = tiles[0].scales.len();
    let x: [&[WideBlock]; ROWS] = from_fn(|row| &tiles[row].values.as_chunks().0[..blocks]);
    let x_scales: [&[f32]; ROWS] = from_fn(|row| &tiles[row].scales[..blocks]);
    let mut sums = [vdupq_n_f32(0.0); ROWS];
    for panel in (0..blocks).step_by(WIDE_BLOCKS) {
        let mut total = [vdupq_n_f32(0.0); ROWS];
        for block in panel..blocks.min(panel + WIDE_BLOCKS) {
            let rows: [&[u8; Q8_0]; FOUR] = weights.block(block);
            let by = halves(rows, 0);
            let first = four!(|row| widened(vreinterpretq_s8_u8(sixteen(rows[row], 2))));
            let second = four!(|row| widened(vreinterpretq_s8_u8(sixteen(rows[row], 18))));
            for row in 0..ROWS {
                let x = words(&x[row][block]);
                let products = four!(|column| multiplied(multiplied(vdupq_n_s32(0), first[column], x[0]), second[column], x[1]));
                total[row] = add_scaled(total[row], added(products), by, x_scales[row][block]);
            }
        }
        add(&mut sums, total);
    }
    store(sums, out, place);
}

#[target_feature(enable = "neon")]
fn q6k<const ROWS: usize>(weights: &Weights<'_>, tiles: &[WideTile<'_>], out: &mut [[f32; EIGHT]], place: usize) {
    let blocks = tiles[0].scales.len();
    let x: [&[WideBlock]; ROWS] = from_fn(|row| &tiles[row].values.as_chunks().0[..blocks]);
    let x_scales: [&[f32]; ROWS] = from_fn(|row| &tiles[row].scales[..blocks]);
    let mut sums = [vdupq_n_f32(0.0); ROWS];
    for first in (0..blocks).step_by(PER_SUPER) {
        let mut total = [vdupq_n_f32(0.0); ROWS];
        let rows: [&[u8; Q6K]; FOUR] = weights.block(first / PER_SUPER);
        let by = halves(rows, 208);
        for block in first..blocks.min(first + PER_SUPER) {
            let sub = block - first;
            let mut whole = [vdupq_n_s32(0); ROWS];
            for half in 0..2 {
                let values = four!(|row| widened(q6k_values(rows[row], sub, half)));
                // A sum of sixteen times its scale is, being whole, what the panel has as a sum of scaled weights.
                let scales = four!(|row| i32::from(q6k_scale(rows[row], sub, half)));
                // SAFETY: there are four.
                let scales = unsafe { vld1q_s32(scales.as_ptr()) };
                for row in 0..ROWS {
                    let x = words(&x[row][block])[half];
                    let products = four!(|column| multiplied(vdupq_n_s32(0), values[column], x));
                    whole[row] = vmlaq_s32(whole[row], added(products), scales);
                }
            }
            for row in 0..ROWS {
                total[row] = add_scaled(total[row], whole[row], by, x_scales[row][block]);
            }
        }
        add(&mut sums, total);
    }
    store(sums, out, place);
}

#[target_feature(enable = "neon")]
fn floats_of<const ROWS: usize>(ty: Type, weights: &Weights<'_>, tiles: &[FloatTile<'_>], out: &mut [[f32; EIGHT]], place: usize) {
    let (size, depth) = (ty.block_bytes(), tiles[0].depth);
    let mut sums = [vdupq_n_f32(0.0); ROWS];
    for panel in (0..depth).step_by(FLOAT_DEPTH) {
        let mut total = [vdupq_n_f32(0.0); ROWS];
        let end = depth.min(panel + FLOAT_DEPTH);
        let rows = four!(|row| &weights.rows[row][panel * size..end * size]);
        rows.iter().for_each(|row| call_ahead(row, weights.ahead));
        let x: [(&[[f32; 4]], &[f32]); ROWS] = from_fn(|row| tiles[row].values[panel..end].as_chunks());
        let whole = x[0].0.len();
        for step in 0..whole {
            let columns = float_columns(ty, rows, step);
            let [a, b, c, d] = four!(|at| vreinterpretq_f32_s32(columns[at]));
            for ((x, _), total) in x.iter().zip(&mut total) {
                let x = load(&x[step]);
                let sum = vfmaq_laneq_f32::<1>(vfmaq_laneq_f32::<0>(*total, a, x), b, x);
                *total = vfmaq_laneq_f32::<3>(vfmaq_laneq_f32::<2>(sum, c, x), d, x);
            }
        }
        for at in 0..x[0].1.len() {
            let values = load(&four!(|row| read_float(ty, rows[row], 4 * whole + at)));
            for ((_, rest), total) in x.iter().zip(&mut total) {
                *total = vfmaq_n_f32(*total, values, rest[at]);
            }
        }
        add(&mut sums, total);
    }
    store(sums, out, place);
}

/// What each of four vectors adds up to.
#[target_feature(enable = "neon")]
#[inline]
fn added([a, b, c, d]: [int32x4_t; FOUR]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))
}

/// Sixteen integers in 16 bits.
#[target_feature(enable = "neon")]
#[inline]
fn widened(values: int8x16_t) -> [int16x8_t; 2] {
    [vmovl_s8(vget_low_s8(values)), vmovl_high_s8(values)]
}

/// `sum` and the products of sixteen integers.
#[target_feature(enable = "neon")]
#[inline]
fn multiplied(sum: int32x4_t, values: [int16x8_t; 2], x: [int16x8_t; 2]) -> int32x4_t {
    let sum = vmlal_high_s16(vmlal_s16(sum, vget_low_s16(values[0]), vget_low_s16(x[0])), values[0], x[0]);
    vmlal_high_s16(vmlal_s16(sum, vget_low_s16(values[1]), vget_low_s16(x[1])), values[1], x[1])
}

/// A block of a row of 8-bit activations.
type NarrowBlock = [[i8; 4]; BLOCK / 4];

#[target_feature(enable = "neon")]
#[inline]
fn bytes(block: &NarrowBlock) -> [int8x16_t; 2] {
    let bytes = block.as_flattened();
    // SAFETY: there are thirty-two.
    unsafe { [vld1q_s8(bytes.as_ptr()), vld1q_s8(bytes.as_ptr().add(16))] }
}

/// A block of a row of 16-bit activations.
type WideBlock = [[i16; 2]; BLOCK / 2];

/// Its halves.
#[target_feature(enable = "neon")]
#[inline]
fn words(block: &WideBlock) -> [[int16x8_t; 2]; 2] {
    let words = block.as_flattened().as_ptr();
    // SAFETY: there are thirty-two.
    unsafe { [[vld1q_s16(words), vld1q_s16(words.add(8))], [vld1q_s16(words.add(16)), vld1q_s16(words.add(24))]] }
}

#[target_feature(enable = "neon")]
#[inline]
fn add<const ROWS: usize>(sums: &mut [float32x4_t; ROWS], total: [float32x4_t; ROWS]) {
    sums.iter_mut().zip(total).for_each(|(sum, total)| *sum = vaddq_f32(*sum, total));
}

#[target_feature(enable = "neon")]
#[inline]
fn store<const ROWS: usize>(sums: [float32x4_t; ROWS], out: &mut [[f32; EIGHT]], place: usize) {
    for (sums, out) in sums.into_iter().zip(out) {
        let out = &mut out[place..place + FOUR];
        // SAFETY: there are four.
        unsafe { vst1q_f32(out.as_mut_ptr(), sums) };
    }
}
