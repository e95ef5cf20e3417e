//! The inner loops with NEON, which every 64-bit ARM processor has, and with dot products of bytes beside it.
//!
//! Functions without `unsafe` in their signature are only called where [`super::Isa::is_here`] has found the
//! instructions. Element for element they add up in the order of [`super::portable`].
#![allow(unsafe_code)]

use std::arch::aarch64::*;

use crate::model::kernel::activations::{FloatTile, NarrowTile, WideTile};
use crate::model::kernel::{BLOCK, FloatPanel, GROUP, NarrowPanel, Sums, WidePanel};

pub use unpack::{unpack_floats, unpack_narrow, unpack_wide};

/// Columns under one pass: their sums, and the block's before they are scaled, stay in registers.
const SIDE: usize = 8;

const _: () = assert!(GROUP == 2 * SIDE && BLOCK == 32);

/// Runs one of several forms of a function, by a number of rows that the compiler must know.
macro_rules! by_rows {
    ($rows:expr, $form:ident, $arguments:tt, [$($number:literal),*]) => {
        match $rows {
            // SAFETY: the caller of this module has found the instructions.
            $($number => unsafe { $form::<$number> $arguments },)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

/// Adds products of four bytes each to a sum of 32 bits, by an instruction that the standard library has not stabilised.
/// With a number, the four of that place stand for all of `$x`.
macro_rules! dot {
    ($sum:expr, $weights:expr, $x:expr $(, $place:literal)?) => {
        std::arch::asm!(
            dot!(@text $($place)?),
            inout(vreg) $sum,
            in(vreg) $weights,
            in(vreg) $x,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
    (@text) => { "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b" };
    (@text $place:literal) => { concat!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[", $place, "]") };
}

/// An array of four. Not `map`: the compiler writes what its closure gives to memory and reads it back.
macro_rules! four {
    (|$at:ident| $value:expr) => {
        [four!(@at $at 0 $value), four!(@at $at 1 $value), four!(@at $at 2 $value), four!(@at $at 3 $value)]
    };
    (@at $at:ident $number:literal $value:expr) => {{
        let $at: usize = $number;
        $value
    }};
}

// Below the macros that they use.
pub mod few;
mod unpack;

/// Up to four rows of 16-bit integers.
pub fn wide(panels: &[WidePanel], tile: WideTile<'_>, sums: &mut [Sums]) {
    for (at, panel) in panels.iter().enumerate() {
        for side in 0..2 {
            by_rows!(sums.len(), wide_of, (panel, side, tile, sums, at * GROUP + side * SIDE), [1, 2, 3, 4]);
        }
    }
}

#[target_feature(enable = "neon")]
fn wide_of<const ROWS: usize>(panel: &WidePanel, side: usize, tile: WideTile<'_>, sums: &mut [Sums], to: usize) {
    let mut total = [[vdupq_n_f32(0.0); 2]; ROWS];
    let values = tile.values.as_chunks::<ROWS>().0.as_chunks::<{ BLOCK / 2 }>().0;
    let blocks = values.iter().zip(tile.scales.as_chunks::<ROWS>().0);
    for ((values, scales), (weights, by)) in blocks.zip(panel.values.iter().zip(&panel.scales)) {
        let mut whole = [[vdupq_n_s32(0); 2]; ROWS];
        for (weights, values) in weights.iter().zip(values) {
            // SAFETY: there are eight pairs.
            let weights = unsafe { vld2q_s16(columns(weights, side).as_flattened().as_ptr()) };
            let x = vreinterpretq_s16_s32(words(values));
            for (row, whole) in whole.iter_mut().enumerate() {
                add_pairs(whole, weights, x, row);
            }
        }
        let by = eight(columns(by, side));
        for row in 0..ROWS {
            for half in 0..2 {
                total[row][half] = add_scaled(total[row][half], whole[row][half], by[half], scales[row]);
            }
        }
    }
    add(total, sums, to);
}

/// Adds the products of eight columns' pairs with pair `row` of `x`.
#[target_feature(enable = "neon")]
#[inline]
fn add_pairs(whole: &mut [int32x4_t; 2], weights: int16x8x2_t, x: int16x8_t, row: usize) {
    macro_rules! add {
        ($first:literal, $second:literal) => {{
            let int16x8x2_t(first, second) = weights;
            whole[0] = vmlal_laneq_s16::<$first>(whole[0], vget_low_s16(first), x);
            whole[1] = vmlal_high_laneq_s16::<$first>(whole[1], first, x);
            whole[0] = vmlal_laneq_s16::<$second>(whole[0], vget_low_s16(second), x);
            whole[1] = vmlal_high_laneq_s16::<$second>(whole[1], second, x);
        }};
    }
    match row {
        0 => add!(0, 1),
        1 => add!(2, 3),
        2 => add!(4, 5),
        _ => add!(6, 7),
    }
}

/// The loop of 8-bit integers over blocks, which differs in how a block is summed up.
macro_rules! narrow {
    ($features:literal, $name:ident, $name_of:ident, $block:ident) => {
        /// Up to four rows of 8-bit integers.
        pub fn $name(panels: &[NarrowPanel], tile: NarrowTile<'_>, sums: &mut [Sums]) {
            for (at, panel) in panels.iter().enumerate() {
                for side in 0..2 {
                    by_rows!(sums.len(), $name_of, (panel, side, tile, sums, at * GROUP + side * SIDE), [1, 2, 3, 4]);
                }
            }
        }

        #[target_feature(enable = $features)]
        fn $name_of<const ROWS: usize>(panel: &NarrowPanel, side: usize, tile: NarrowTile<'_>, sums: &mut [Sums], to: usize) {
            let mut total = [[vdupq_n_f32(0.0); 2]; ROWS];
            let values = tile.values.as_chunks::<ROWS>().0.as_chunks::<{ BLOCK / 4 }>().0;
            let scales = tile.scales.as_chunks::<ROWS>().0.iter().zip(tile.sums.as_chunks::<ROWS>().0);
            let weights = panel.values.iter().zip(panel.scales.iter().zip(&panel.mins));
            for ((values, (scales, block_sums)), (weights, (by, mins))) in values.iter().zip(scales).zip(weights) {
                let whole = $block(weights, side, values);
                let (by, mins) = (eight(columns(by, side)), eight(columns(mins, side)));
                for row in 0..ROWS {
                    for half in 0..2 {
                        let sum = add_scaled(total[row][half], whole[row][half], by[half], scales[row]);
                        total[row][half] = take_off(sum, mins[half], block_sums[row]);
                    }
                }
            }
            add(total, sums, to);
        }
    };
}

narrow!("neon", narrow, narrow_of, block);

narrow!("neon,dotprod", narrow_dot, narrow_dot_of, block_dot);

/// A block of a [`NarrowPanel`].
type NarrowBlock = [[[u8; 4]; GROUP]; BLOCK / 4];

/// A block of rows of activations.
type Values<const ROWS: usize> = [[[i8; 4]; ROWS]; BLOCK / 4];

/// A block's sums, made in 16 bits, into which sixteen products of a weight up to 15 and an activation up to 127 fit.
#[target_feature(enable = "neon")]
#[inline]
fn block<const ROWS: usize>(weights: &NarrowBlock, side: usize, values: &Values<ROWS>) -> [[int32x4_t; 2]; ROWS] {
    let mut sums = [[[vdupq_n_s16(0); 2]; 2]; ROWS];
    for (weights, values) in weights.iter().zip(values) {
        let weights = bytes(columns(weights, side));
        for (sums, four) in sums.iter_mut().zip(values) {
            let x = vreinterpretq_s8_s32(words(&[*four]));
            for (sums, weights) in sums.iter_mut().zip(weights) {
                sums[0] = vmlal_s8(sums[0], vget_low_s8(weights), vget_low_s8(x));
                sums[1] = vmlal_high_s8(sums[1], weights, x);
            }
        }
    }
    let mut whole = [[vdupq_n_s32(0); 2]; ROWS];
    for (whole, sums) in whole.iter_mut().zip(sums) {
        // Four neighbouring sums are a column's.
        whole[0] = vpaddlq_s16(vpaddq_s16(sums[0][0], sums[0][1]));
        whole[1] = vpaddlq_s16(vpaddq_s16(sums[1][0], sums[1][1]));
    }
    whole
}

/// A block's sums. Weights have four bits, so that they are the same with a sign and without.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn block_dot<const ROWS: usize>(weights: &NarrowBlock, side: usize, values: &Values<ROWS>) -> [[int32x4_t; 2]; ROWS] {
    let mut whole = [[vdupq_n_s32(0); 2]; ROWS];
    for (weights, values) in weights.iter().zip(values) {
        let weights = bytes(columns(weights, side));
        let x = words(values);
        for (row, whole) in whole.iter_mut().enumerate() {
            for (whole, weights) in whole.iter_mut().zip(weights) {
                // SAFETY: the instruction is there.
                unsafe {
                    match row {
                        0 => dot!(*whole, weights, x, 0),
                        1 => dot!(*whole, weights, x, 1),
                        2 => dot!(*whole, weights, x, 2),
                        _ => dot!(*whole, weights, x, 3),
                    }
                }
            }
        }
    }
    whole
}

/// Up to eight rows of floats.
pub fn floats(panels: &[FloatPanel], tile: FloatTile<'_>, sums: &mut [Sums]) {
    for (at, panel) in panels.iter().enumerate() {
        for side in 0..2 {
            by_rows!(sums.len(), floats_of, (panel, side, tile, sums, at * GROUP + side * SIDE), [1, 2, 3, 4, 5, 6, 7, 8]);
        }
    }
}

#[target_feature(enable = "neon")]
fn floats_of<const ROWS: usize>(panel: &FloatPanel, side: usize, tile: FloatTile<'_>, sums: &mut [Sums], to: usize) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &tile.values[row * tile.stride..][..tile.depth]);
    let mut total = [[vdupq_n_f32(0.0); 2]; ROWS];
    let (fours, rest) = panel.0[..tile.depth].as_chunks::<4>();
    for (at, weights) in fours.iter().enumerate() {
        let mut x = [vdupq_n_f32(0.0); ROWS];
        for (x, row) in x.iter_mut().zip(rows) {
            *x = load(&row[4 * at..4 * at + 4]);
        }
        macro_rules! add {
            ($($step:literal)*) => {$(
                let [low, high] = eight(columns(&weights[$step], side));
                for (total, x) in total.iter_mut().zip(x) {
                    total[0] = vfmaq_laneq_f32::<$step>(total[0], low, x);
                    total[1] = vfmaq_laneq_f32::<$step>(total[1], high, x);
                }
            )*};
        }
        add!(0 1 2 3);
    }
    for (weights, at) in rest.iter().zip(4 * fours.len()..) {
        let [low, high] = eight(columns(weights, side));
        for (total, row) in total.iter_mut().zip(rows) {
            total[0] = vfmaq_n_f32(total[0], low, row[at]);
            total[1] = vfmaq_n_f32(total[1], high, row[at]);
        }
    }
    add(total, sums, to);
}

/// The first or the second eight of a panel's columns.
#[inline(always)]
fn columns<T>(sixteen: &[T; GROUP], side: usize) -> &[T; SIDE] {
    let (sides, _) = sixteen.as_chunks::<SIDE>();
    if side == 0 { &sides[0] } else { &sides[1] }
}

/// One to four words; what is beyond them is not used.
#[target_feature(enable = "neon")]
#[inline]
fn words<T, const COUNT: usize>(values: &[T; COUNT]) -> int32x4_t {
    const { assert!(size_of::<T>() == 4 && COUNT > 0 && COUNT <= 4) };
    if COUNT == 4 {
        // SAFETY: there are sixteen bytes.
        return vreinterpretq_s32_s8(unsafe { vld1q_s8(values.as_ptr().cast()) });
    }
    // SAFETY: a word is read of each place up to the last.
    let word = |at: usize| unsafe { values.as_ptr().cast::<i32>().add(at.min(COUNT - 1)).read_unaligned() };
    let words = vsetq_lane_s32::<1>(word(1), vdupq_n_s32(word(0)));
    vsetq_lane_s32::<2>(word(2), words)
}

/// `total + whole * by * scale`.
#[target_feature(enable = "neon")]
#[inline]
fn add_scaled(total: float32x4_t, whole: int32x4_t, by: float32x4_t, scale: f32) -> float32x4_t {
    vfmaq_f32(total, vcvtq_f32_s32(whole), vmulq_n_f32(by, scale))
}

/// `total - mins * sum`.
#[target_feature(enable = "neon")]
#[inline]
fn take_off(total: float32x4_t, mins: float32x4_t, sum: f32) -> float32x4_t {
    vfmsq_f32(total, mins, vdupq_n_f32(sum))
}

/// Four floats.
#[target_feature(enable = "neon")]
#[inline]
fn load(values: &[f32]) -> float32x4_t {
    let values = &values[..4];
    // SAFETY: there are four.
    unsafe { vld1q_f32(values.as_ptr()) }
}

/// Eight floats.
#[target_feature(enable = "neon")]
#[inline]
fn eight(values: &[f32; SIDE]) -> [float32x4_t; 2] {
    [load(&values[..4]), load(&values[4..])]
}

/// Four bytes of each of eight columns.
#[target_feature(enable = "neon")]
#[inline]
fn bytes(weights: &[[u8; 4]; SIDE]) -> [int8x16_t; 2] {
    let bytes = weights.as_flattened();
    // SAFETY: there are thirty-two.
    unsafe { [vld1q_s8(bytes.as_ptr().cast()), vld1q_s8(bytes.as_ptr().add(16).cast())] }
}

#[target_feature(enable = "neon")]
#[inline]
fn add<const ROWS: usize>(total: [[float32x4_t; 2]; ROWS], sums: &mut [Sums], to: usize) {
    for (total, sums) in total.into_iter().zip(sums) {
        for (total, sums) in total.into_iter().zip(sums[to..to + SIDE].as_chunks_mut::<4>().0) {
            // SAFETY: `sums` has four values.
            unsafe { vst1q_f32(sums.as_mut_ptr(), vaddq_f32(load(sums), total)) };
        }
    }
}
