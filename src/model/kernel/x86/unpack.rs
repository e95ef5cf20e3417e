//! Stored weights to panels with AVX2: sixteen rows are read side by side and turned over in registers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use crate::model::kernel::unpack::{PER_SUPER, Q4K, Q6K, Q8_0, pass, read_float};
use crate::model::kernel::{FloatPanel, GROUP, NarrowPanel, WidePanel};
use crate::model::matrix::{Type, View};

/// Asks the memory for what the next panels will need `ahead` bytes behind these: with few rows of activations memory sets
/// the pace, and the processor's own foresight ends at each row.
#[inline(always)]
pub fn call_ahead(bytes: &[u8], ahead: usize) {
    for line in (0..bytes.len()).step_by(64) {
        // SAFETY: a hint, which may be wrong.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(ahead + line).cast()) };
    }
}

/// Sixteen columns from `column` on as 16-bit integers.
pub fn unpack_wide(matrix: View<'_>, column: usize, blocks: Range<usize>, panel: &mut WidePanel) {
    let rows: [&[u8]; GROUP] = std::array::from_fn(|at| matrix.row_bytes(column + at));
    // SAFETY: the caller of this module has found the instructions.
    unsafe {
        if matrix.ty == Type::Q6K {
            unpack_q6k(&rows, blocks, panel, pass(&matrix));
        } else {
            unpack_q8_0(&rows, blocks, panel, pass(&matrix));
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn unpack_q8_0(rows: &[&[u8]; GROUP], blocks: Range<usize>, panel: &mut WidePanel, ahead: usize) {
    for (at, block) in blocks.enumerate() {
        let bytes: [&[u8; Q8_0]; GROUP] = rows.map(|row| &row.as_chunks().0[block]);
        bytes.iter().for_each(|bytes| call_ahead(&bytes[..], ahead));
        store_scales(bytes.map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])), &mut panel.scales[at]);
        for side in 0..2 {
            for half in 0..2 {
                let values = std::array::from_fn(|row| _mm256_cvtepi8_epi16(sixteen(bytes[8 * side + row], 2 + 16 * half)));
                store_wide(values, &mut panel.values[at][8 * half..], side);
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn unpack_q6k(rows: &[&[u8]; GROUP], blocks: Range<usize>, panel: &mut WidePanel, ahead: usize) {
    let start = blocks.start;
    for block in blocks.clone().step_by(PER_SUPER) {
        let bytes: [&[u8; Q6K]; GROUP] = rows.map(|row| &row.as_chunks().0[block / PER_SUPER]);
        bytes.iter().for_each(|bytes| call_ahead(&bytes[..], ahead));
        let mut scales = [0.0; GROUP];
        store_scales(bytes.map(|bytes| u16::from_le_bytes([bytes[208], bytes[209]])), &mut scales);
        for sub in 0..PER_SUPER.min(blocks.end - block) {
            panel.scales[block - start + sub] = scales;
        }
        for side in 0..2 {
            for half in 0..2 {
                let bytes = std::array::from_fn(|row| bytes[8 * side + row]);
                let target = &mut panel.values[block - start..];
                q6k_quarter::<0>(bytes, half, side, target);
                q6k_quarter::<1>(bytes, half, side, target);
                q6k_quarter::<2>(bytes, half, side, target);
                q6k_quarter::<3>(bytes, half, side, target);
            }
        }
    }
}

/// Of eight rows, the two blocks whose high bits are pair `QUARTER` of a byte.
#[target_feature(enable = "avx2")]
#[inline]
fn q6k_quarter<const QUARTER: usize>(rows: [&[u8; Q6K]; 8], half: usize, side: usize, target: &mut [WideBlock]) {
    let (nibbles, bits, middle) = (_mm_set1_epi8(15), _mm_set1_epi8(3), _mm_set1_epi8(32));
    for part in 0..2 {
        let mut values = [_mm256_setzero_si256(); 8];
        // Not `map`: the compiler calls its closure instead of putting it in place.
        for (values, row) in values.iter_mut().zip(rows) {
            let low = sixteen(row, part * 64 + QUARTER % 2 * 32 + half * 16);
            let high = sixteen(row, 128 + part * 32 + half * 16);
            // Shifted as words: what comes over from the neighbouring byte is masked away.
            let low = if QUARTER < 2 { low } else { _mm_srli_epi16::<4>(low) };
            let high = match QUARTER {
                0 => high,
                1 => _mm_srli_epi16::<2>(high),
                2 => _mm_srli_epi16::<4>(high),
                _ => _mm_srli_epi16::<6>(high),
            };
            let value = _mm_or_si128(_mm_and_si128(low, nibbles), _mm_slli_epi16::<4>(_mm_and_si128(high, bits)));
            let scale = row[192 + part * 8 + QUARTER * 2 + half] as i8;
            *values = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(_mm_sub_epi8(value, middle)), _mm256_set1_epi16(i16::from(scale)));
        }
        store_wide(values, &mut target[part * 4 + QUARTER][8 * half..], side);
    }
}

/// A block of a [`WidePanel`].
type WideBlock = [[[i16; 2]; GROUP]; 16];

/// Sixteen columns from `column` on as 8-bit integers.
pub fn unpack_narrow(matrix: View<'_>, column: usize, blocks: Range<usize>, panel: &mut NarrowPanel) {
    let rows: [&[u8]; GROUP] = std::array::from_fn(|at| matrix.row_bytes(column + at));
    // SAFETY: the caller of this module has found the instructions.
    unsafe { unpack_q4k(&rows, blocks, panel, pass(&matrix)) }
}

#[target_feature(enable = "avx2,f16c")]
fn unpack_q4k(rows: &[&[u8]; GROUP], blocks: Range<usize>, panel: &mut NarrowPanel, ahead: usize) {
    let start = blocks.start;
    for block in blocks.step_by(PER_SUPER) {
        let at = block - start;
        let bytes: [&[u8; Q4K]; GROUP] = rows.map(|row| &row.as_chunks().0[block / PER_SUPER]);
        bytes.iter().for_each(|bytes| call_ahead(&bytes[..], ahead));
        for side in 0..2 {
            let rows: [&[u8; Q4K]; 8] = std::array::from_fn(|row| bytes[8 * side + row]);
            let scales = rows.map(|row| q4k_scales(row));
            store_columns(scales.map(|scales| scales.0), &mut panel.scales[at..], side);
            store_columns(scales.map(|scales| scales.1), &mut panel.mins[at..], side);
            for pair in 0..PER_SUPER / 2 {
                let nibbles = _mm256_set1_epi8(15);
                let both = rows.map(|row| thirty_two(row, 16 + 32 * pair));
                let low = both.map(|both| _mm256_and_si256(both, nibbles));
                let high = both.map(|both| _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibbles));
                for (sub, values) in [low, high].into_iter().enumerate() {
                    for (target, fours) in panel.values[at + 2 * pair + sub].iter_mut().zip(transposed(values)) {
                        // SAFETY: there are eight times four bytes.
                        unsafe { _mm256_storeu_si256(target[8 * side..8 * side + 8].as_mut_ptr().cast(), fours) };
                    }
                }
            }
        }
    }
}

/// The scales and the minimums of the eight blocks.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn q4k_scales(row: &[u8; Q4K]) -> (__m256, __m256) {
    let word = |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
    let (a, b, c) = (word(4), word(8), word(12));
    // The first four of each have their six bits together, the others' upper two lie above those.
    let scales = (u64::from(c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030) << 32 | u64::from(a & 0x3f3f_3f3f)) as i64;
    let mins = (u64::from(c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030) << 32 | u64::from(b & 0x3f3f_3f3f)) as i64;
    let floats = |bytes: i64| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes)));
    let by = _mm_cvtph_ps(_mm_cvtsi32_si128(word(0) as i32));
    let (scale, min) = (_mm256_broadcastss_ps(by), _mm256_broadcastss_ps(_mm_movehdup_ps(by)));
    (_mm256_mul_ps(floats(scales), scale), _mm256_mul_ps(floats(mins), min))
}

/// Eight numbers of each of eight rows to columns `8 * side` and on of eight blocks.
#[target_feature(enable = "avx2")]
#[inline]
fn store_columns(rows: [__m256; 8], target: &mut [[f32; GROUP]], side: usize) {
    for (target, column) in target.iter_mut().zip(transposed(rows.map(|row| _mm256_castps_si256(row)))) {
        // SAFETY: there are eight floats.
        unsafe { _mm256_storeu_si256(target[8 * side..8 * side + 8].as_mut_ptr().cast(), column) };
    }
}

/// Sixteen 16-bit integers of each of eight rows to columns `8 * side` and on of eight pairs.
#[target_feature(enable = "avx2")]
#[inline]
fn store_wide(rows: [__m256i; 8], target: &mut [[[i16; 2]; GROUP]], side: usize) {
    for (target, pairs) in target.iter_mut().zip(transposed(rows)) {
        // SAFETY: there are eight pairs of two bytes each.
        unsafe { _mm256_storeu_si256(target[8 * side..8 * side + 8].as_mut_ptr().cast(), pairs) };
    }
}

/// Sixteen half floats.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn store_scales(halves: [u16; GROUP], target: &mut [f32; GROUP]) {
    for (halves, target) in halves.as_chunks::<8>().0.iter().zip(target.as_chunks_mut::<8>().0) {
        // SAFETY: eight are written.
        unsafe { _mm256_storeu_ps(target.as_mut_ptr(), eight_halves(*halves)) };
    }
}

/// Eight half floats as floats.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn eight_halves(halves: [u16; 8]) -> __m256 {
    // SAFETY: there are eight.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(halves.as_ptr().cast()) })
}

/// Sixteen bytes from `at` on.
#[target_feature(enable = "avx2")]
#[inline]
pub fn sixteen(bytes: &[u8], at: usize) -> __m128i {
    let bytes = &bytes[at..at + 16];
    // SAFETY: there are sixteen.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Thirty-two bytes from `at` on.
#[target_feature(enable = "avx2")]
#[inline]
pub fn thirty_two(bytes: &[u8], at: usize) -> __m256i {
    let bytes = &bytes[at..at + 32];
    // SAFETY: there are thirty-two.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Eight rows of eight words as eight columns.
#[target_feature(enable = "avx2")]
#[inline]
pub fn transposed(r: [__m256i; 8]) -> [__m256i; 8] {
    let two = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let four = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let ((a0, a1), (b0, b1), (c0, c1), (d0, d1)) = (two(r[0], r[1]), two(r[2], r[3]), two(r[4], r[5]), two(r[6], r[7]));
    let ((e0, e1), (e2, e3), (f0, f1), (f2, f3)) = (four(a0, b0), four(a1, b1), four(c0, d0), four(c1, d1));
    let (low, high) = (_mm256_permute2x128_si256::<0x20>, _mm256_permute2x128_si256::<0x31>);
    [low(e0, f0), low(e1, f1), low(e2, f2), low(e3, f3), high(e0, f0), high(e1, f1), high(e2, f2), high(e3, f3)]
}

/// Sixteen columns from `column` on of float weights into a panel.
pub fn unpack_floats(matrix: View<'_>, column: usize, depth: Range<usize>, panel: &mut FloatPanel) {
    let size = matrix.ty.block_bytes();
    let rows: [&[u8]; GROUP] = std::array::from_fn(|at| &matrix.row_bytes(column + at)[depth.start * size..depth.end * size]);
    // SAFETY: the caller of this module has found the instructions.
    unsafe { floats_unpacked(matrix.ty, &rows, depth.len(), panel, pass(&matrix)) }
}

#[target_feature(enable = "avx2,f16c")]
fn floats_unpacked(ty: Type, rows: &[&[u8]; GROUP], depth: usize, panel: &mut FloatPanel, ahead: usize) {
    let size = ty.block_bytes();
    rows.iter().for_each(|row| call_ahead(row, ahead));
    let whole = depth / 8 * 8;
    for at in (0..whole).step_by(8) {
        for side in 0..2 {
            let values = std::array::from_fn(|row| eight_floats(ty, &rows[8 * side + row][at * size..(at + 8) * size]));
            for (step, values) in transposed(values).into_iter().enumerate() {
                let target = &mut panel.0[at + step][8 * side..8 * side + 8];
                // SAFETY: `target` has eight floats.
                unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), values) };
            }
        }
    }
    for at in whole..depth {
        for (target, row) in panel.0[at].iter_mut().zip(rows) {
            *target = read_float(ty, row, at);
        }
    }
}

/// The bits of eight floats.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub fn eight_floats(ty: Type, bytes: &[u8]) -> __m256i {
    let bytes = &bytes[..8 * ty.block_bytes()];
    // SAFETY: there are eight floats of the type.
    unsafe {
        match ty {
            Type::F16 => _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast()))),
            Type::Bf16 => _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))),
            _ => _mm256_loadu_si256(bytes.as_ptr().cast()),
        }
    }
}
