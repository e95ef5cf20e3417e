//! Stored weights to panels with NEON: four rows are read side by side and turned over in registers.
#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::array::from_fn;
use std::ops::Range;

use crate::model::kernel::unpack::{PER_SUPER, Q4K, Q6K, Q8_0, pass, read_float};
use crate::model::kernel::{FloatPanel, GROUP, NarrowPanel, WidePanel};
use crate::model::matrix::{Type, View};

/// Rows turned over at a time.
pub const FOUR: usize = 4;

/// Asks the memory for what the next columns will need `ahead` bytes behind these: with few rows of activations memory
/// sets the pace, and the processor's own foresight ends at each row.
#[inline(always)]
pub fn call_ahead(bytes: &[u8], ahead: usize) {
    for line in (0..bytes.len()).step_by(64) {
        let address = bytes.as_ptr().wrapping_add(ahead + line);
        // SAFETY: a hint, which may be wrong.
        unsafe { std::arch::asm!("prfm pldl2keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly)) };
    }
}

/// The rows of a panel's columns, four by four, each with its place.
fn quarters<'a>(matrix: View<'a>, column: usize) -> [(usize, [&'a [u8]; FOUR]); GROUP / FOUR] {
    from_fn(|at| (at * FOUR, from_fn(|row| matrix.row_bytes(column + at * FOUR + row))))
}

/// Sixteen columns from `column` on as 16-bit integers.
pub fn unpack_wide(matrix: View<'_>, column: usize, blocks: Range<usize>, panel: &mut WidePanel) {
    for (place, rows) in quarters(matrix, column) {
        // SAFETY: the caller of this module has found the instructions.
        unsafe {
            if matrix.ty == Type::Q6K {
                unpack_q6k(rows, blocks.clone(), panel, place, pass(&matrix));
            } else {
                unpack_q8_0(rows, blocks.clone(), panel, place, pass(&matrix));
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn unpack_q8_0(rows: [&[u8]; FOUR], blocks: Range<usize>, panel: &mut WidePanel, place: usize, ahead: usize) {
    for (at, block) in blocks.enumerate() {
        let bytes: [&[u8; Q8_0]; FOUR] = four!(|row| &rows[row].as_chunks().0[block]);
        bytes.iter().for_each(|bytes| call_ahead(&bytes[..], ahead));
        store(halves(bytes, 0), &mut panel.scales[at], place);
        for half in 0..2 {
            let values = four!(|row| vreinterpretq_s8_u8(sixteen(bytes[row], 2 + 16 * half)));
            let low = four!(|row| vreinterpretq_s32_s16(vmovl_s8(vget_low_s8(values[row]))));
            store_words(transposed(low), &mut panel.values[at][8 * half..], place);
            let high = four!(|row| vreinterpretq_s32_s16(vmovl_high_s8(values[row])));
            store_words(transposed(high), &mut panel.values[at][8 * half + 4..], place);
        }
    }
}

#[target_feature(enable = "neon")]
fn unpack_q6k(rows: [&[u8]; FOUR], blocks: Range<usize>, panel: &mut WidePanel, place: usize, ahead: usize) {
    let start = blocks.start;
    for block in blocks.clone().step_by(PER_SUPER) {
        let bytes: [&[u8; Q6K]; FOUR] = four!(|row| &rows[row].as_chunks().0[block / PER_SUPER]);
        bytes.iter().for_each(|bytes| call_ahead(&bytes[..], ahead));
        let by = halves(bytes, 208);
        for sub in 0..PER_SUPER.min(blocks.end - block) {
            let at = block - start + sub;
            store(by, &mut panel.scales[at], place);
            for half in 0..2 {
                let (values, scales) = (four!(|row| q6k_values(bytes[row], sub, half)), four!(|row| q6k_scale(bytes[row], sub, half)));
                let low = four!(|row| vmulq_n_s16(vmovl_s8(vget_low_s8(values[row])), i16::from(scales[row])));
                store_words(transposed(four!(|row| vreinterpretq_s32_s16(low[row]))), &mut panel.values[at][8 * half..], place);
                let high = four!(|row| vmulq_n_s16(vmovl_high_s8(values[row]), i16::from(scales[row])));
                store_words(transposed(four!(|row| vreinterpretq_s32_s16(high[row]))), &mut panel.values[at][8 * half + 4..], place);
            }
        }
    }
}

/// Half a block's integers.
#[target_feature(enable = "neon")]
#[inline]
pub fn q6k_values(row: &[u8; Q6K], sub: usize, half: usize) -> int8x16_t {
    let (part, quarter) = (sub / 4, sub % 4);
    let low = sixteen(row, part * 64 + quarter % 2 * 32 + half * 16);
    // A negative shift is one to the right.
    let low = vandq_u8(vshlq_u8(low, vdupq_n_s8(-4 * (quarter / 2) as i8)), vdupq_n_u8(15));
    let high = vshlq_u8(sixteen(row, 128 + part * 32 + half * 16), vdupq_n_s8(-2 * quarter as i8));
    let bits = vorrq_u8(low, vshlq_n_u8::<4>(vandq_u8(high, vdupq_n_u8(3))));
    vsubq_s8(vreinterpretq_s8_u8(bits), vdupq_n_s8(32))
}

/// The whole number that half a block's integers are multiplied with.
#[inline(always)]
pub fn q6k_scale(row: &[u8; Q6K], sub: usize, half: usize) -> i8 {
    row[192 + 2 * sub + half] as i8
}

/// Sixteen columns from `column` on as 8-bit integers.
pub fn unpack_narrow(matrix: View<'_>, column: usize, blocks: Range<usize>, panel: &mut NarrowPanel) {
    for (place, rows) in quarters(matrix, column) {
        // SAFETY: the caller of this module has found the instructions.
        unsafe { unpack_q4k(rows, blocks.clone(), panel, place, pass(&matrix)) };
    }
}

#[target_feature(enable = "neon")]
fn unpack_q4k(rows: [&[u8]; FOUR], blocks: Range<usize>, panel: &mut NarrowPanel, place: usize, ahead: usize) {
    let start = blocks.start;
    for block in blocks.step_by(PER_SUPER) {
        let at = block - start;
        let bytes: [&[u8; Q4K]; FOUR] = four!(|row| &rows[row].as_chunks().0[block / PER_SUPER]);
        bytes.iter().for_each(|bytes| call_ahead(&bytes[..], ahead));
        let [scales, mins] = q4k_scales(bytes);
        for pair in 0..PER_SUPER / 2 {
            let values = four!(|row| q4k_values(bytes[row], pair));
            for (side, values) in [four!(|row| values[row][0]), four!(|row| values[row][1])].into_iter().enumerate() {
                let sub = 2 * pair + side;
                let target = &mut panel.values[at + sub];
                store(scales[sub], &mut panel.scales[at + sub], place);
                store(mins[sub], &mut panel.mins[at + sub], place);
                store_words(transposed(four!(|row| vreinterpretq_s32_s8(values[row][0]))), target, place);
                store_words(transposed(four!(|row| vreinterpretq_s32_s8(values[row][1]))), &mut target[4..], place);
            }
        }
    }
}

/// The integers of blocks `2 * pair` and the next.
#[target_feature(enable = "neon")]
#[inline]
pub fn q4k_values(row: &[u8; Q4K], pair: usize) -> [[int8x16_t; 2]; 2] {
    let (first, second) = (sixteen(row, 16 + 32 * pair), sixteen(row, 32 + 32 * pair));
    let low = |both| vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
    let high = |both| vreinterpretq_s8_u8(vshrq_n_u8::<4>(both));
    [[low(first), low(second)], [high(first), high(second)]]
}

/// Of each of the eight blocks the scales and the minimums of four columns.
#[target_feature(enable = "neon")]
#[inline]
pub fn q4k_scales(rows: [&[u8; Q4K]; FOUR]) -> [[float32x4_t; PER_SUPER]; 2] {
    // The first word of a row is two half floats, then come the packed scales and minimums.
    let words = transposed(four!(|row| vreinterpretq_s32_u8(sixteen(rows[row], 0))));
    let [both, a, b, c] = four!(|at| vreinterpretq_u32_s32(words[at]));
    let (four, two) = (vdupq_n_u32(0x0f0f_0f0f), vdupq_n_u32(0x3030_3030));
    // The first four of each have their six bits together, the others' upper two lie above those.
    let first = |packed| vandq_u32(packed, vdupq_n_u32(0x3f3f_3f3f));
    let last = |low, packed| vorrq_u32(vandq_u32(low, four), vandq_u32(vshrq_n_u32::<2>(packed), two));
    [
        times(first(a), last(c, a), from_halves(vmovn_u32(both))),
        times(first(b), last(vshrq_n_u32::<4>(c), b), from_halves(vshrn_n_u32::<16>(both))),
    ]
}

/// Each of the bytes of four columns' two words, times `by`.
#[target_feature(enable = "neon")]
#[inline]
fn times(first: uint32x4_t, last: uint32x4_t, by: float32x4_t) -> [float32x4_t; 8] {
    let byte = vdupq_n_u32(255);
    let bytes = |words| {
        [
            vandq_u32(words, byte),
            vandq_u32(vshrq_n_u32::<8>(words), byte),
            vandq_u32(vshrq_n_u32::<16>(words), byte),
            vshrq_n_u32::<24>(words),
        ]
    };
    let ([a, b, c, d], [e, f, g, h]) = (bytes(first), bytes(last));
    let float = |whole| vmulq_f32(vcvtq_f32_u32(whole), by);
    [float(a), float(b), float(c), float(d), float(e), float(f), float(g), float(h)]
}

/// Sixteen columns from `column` on of float weights into a panel.
pub fn unpack_floats(matrix: View<'_>, column: usize, depth: Range<usize>, panel: &mut FloatPanel) {
    let size = matrix.ty.block_bytes();
    for (place, rows) in quarters(matrix, column) {
        let rows = rows.map(|row| &row[depth.start * size..depth.end * size]);
        // SAFETY: the caller of this module has found the instructions.
        unsafe { floats_unpacked(matrix.ty, rows, depth.len(), panel, place, pass(&matrix)) };
    }
}

#[target_feature(enable = "neon")]
fn floats_unpacked(ty: Type, rows: [&[u8]; FOUR], depth: usize, panel: &mut FloatPanel, place: usize, ahead: usize) {
    rows.iter().for_each(|row| call_ahead(row, ahead));
    for step in 0..depth / 4 {
        store_words(float_columns(ty, rows, step), &mut panel.0[4 * step..4 * step + 4], place);
    }
    for at in depth / 4 * 4..depth {
        for (target, row) in panel.0[at][place..].iter_mut().zip(rows) {
            *target = read_float(ty, row, at);
        }
    }
}

/// The bits of the four floats of each of four rows behind `4 * step` others, turned over.
#[target_feature(enable = "neon")]
#[inline]
pub fn float_columns(ty: Type, rows: [&[u8]; FOUR], step: usize) -> [int32x4_t; FOUR] {
    transposed(match ty {
        Type::F16 => four!(|row| vreinterpretq_s32_f32(from_halves(four_halves(rows[row], step)))),
        Type::Bf16 => four!(|row| vreinterpretq_s32_u32(vshll_n_u16::<16>(four_halves(rows[row], step)))),
        _ => four!(|row| vreinterpretq_s32_u8(sixteen(&rows[row].as_chunks::<16>().0[step], 0))),
    })
}

#[target_feature(enable = "neon")]
#[inline]
fn four_halves(row: &[u8], step: usize) -> uint16x4_t {
    let bytes = &row.as_chunks::<8>().0[step];
    // SAFETY: there are eight.
    unsafe { vreinterpret_u16_u8(vld1_u8(bytes.as_ptr())) }
}

/// The half floats at `at` of four rows.
#[target_feature(enable = "neon")]
#[inline]
pub fn halves<const BYTES: usize>(rows: [&[u8; BYTES]; FOUR], at: usize) -> float32x4_t {
    let [a, b, c, d] = four!(|row| u16::from_le_bytes([rows[row][at], rows[row][at + 1]]));
    let halves = vset_lane_u16::<1>(b, vdup_n_u16(a));
    from_halves(vset_lane_u16::<3>(d, vset_lane_u16::<2>(c, halves)))
}

/// Half floats as floats, by an instruction of every processor whose argument's type the standard library has not had
/// for long.
#[target_feature(enable = "neon")]
#[inline]
fn from_halves(halves: uint16x4_t) -> float32x4_t {
    let floats: float32x4_t;
    // SAFETY: NEON has it.
    unsafe {
        std::arch::asm!("fcvtl {0:v}.4s, {1:v}.4h", lateout(vreg) floats, in(vreg) halves, options(pure, nomem, nostack, preserves_flags))
    };
    floats
}

/// Sixteen bytes from `at` on.
#[target_feature(enable = "neon")]
#[inline]
pub fn sixteen(bytes: &[u8], at: usize) -> uint8x16_t {
    let bytes = &bytes[at..at + 16];
    // SAFETY: there are sixteen.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// Four floats to columns `place` and on.
#[target_feature(enable = "neon")]
#[inline]
fn store(values: float32x4_t, target: &mut [f32; GROUP], place: usize) {
    let target = &mut target[place..place + FOUR];
    // SAFETY: there are four.
    unsafe { vst1q_f32(target.as_mut_ptr(), values) };
}

/// Words of columns `place` and on, for four steps of depth.
#[target_feature(enable = "neon")]
#[inline]
fn store_words<T>(columns: [int32x4_t; FOUR], target: &mut [[T; GROUP]], place: usize) {
    const { assert!(size_of::<T>() == 4) };
    for (target, column) in target.iter_mut().zip(columns) {
        let target = &mut target[place..place + FOUR];
        // SAFETY: there are four words.
        unsafe { vst1q_u8(target.as_mut_ptr().cast(), vreinterpretq_u8_s32(column)) };
    }
}

/// Four rows of four words as four columns.
#[target_feature(enable = "neon")]
#[inline]
pub fn transposed([a, b, c, d]: [int32x4_t; FOUR]) -> [int32x4_t; FOUR] {
    let two = |a, b| (vreinterpretq_s64_s32(vtrn1q_s32(a, b)), vreinterpretq_s64_s32(vtrn2q_s32(a, b)));
    let ((even_ab, odd_ab), (even_cd, odd_cd)) = (two(a, b), two(c, d));
    let (first, second) = (vtrn1q_s64(even_ab, even_cd), vtrn1q_s64(odd_ab, odd_cd));
    let (third, fourth) = (vtrn2q_s64(even_ab, even_cd), vtrn2q_s64(odd_ab, odd_cd));
    let columns = [first, second, third, fourth];
    four!(|at| vreinterpretq_s32_s64(columns[at]))
}
