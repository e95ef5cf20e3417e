//! Products of a few rows with AVX2: eight columns at a time, straight from the stored weights.
//!
//! A panel pays where many rows go over it. A token's pass has one row, and to write weights to a panel and read them once
//! takes longer than to fetch them from memory. Sums are made in the order of the panels' loops, to the same bits.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::unpack::{call_ahead, eight_floats, eight_halves, q4k_scales, sixteen, thirty_two, transposed};
use crate::model::kernel::activations::{FloatTile, NarrowTile, WideTile};
use crate::model::kernel::unpack::{PER_SUPER, Q4K, Q6K, Q8_0, read_float};
use crate::model::kernel::{EIGHT, FEW, FLOAT_DEPTH, NARROW_BLOCKS, WIDE_BLOCKS};
use crate::model::matrix::{Type, View};

const _: () = assert!(EIGHT == 8 && FEW == 4);

/// An array of eight. Not `map`: the compiler calls its closure instead of putting it in place.
macro_rules! eight {
    (|$at:ident| $value:expr) => {
        [
            eight!(@at $at 0 $value),
            eight!(@at $at 1 $value),
            eight!(@at $at 2 $value),
            eight!(@at $at 3 $value),
            eight!(@at $at 4 $value),
            eight!(@at $at 5 $value),
            eight!(@at $at 6 $value),
            eight!(@at $at 7 $value),
        ]
    };
    (@at $at:ident $number:literal $value:expr) => {{
        let $at: usize = $number;
        $value
    }};
}

/// Columns from `column` on for rows of 8-bit integers, each a tile of its own.
pub fn narrow(matrix: View<'_>, column: usize, tiles: &[NarrowTile<'_>], out: &mut [[f32; EIGHT]]) {
    let weights = eight!(|at| matrix.row_bytes(column + at));
    by_rows!(out, q4k, [], (&weights, matrix.stride * EIGHT, tiles, out), [1, 2, 3, 4]);
}

/// Columns from `column` on for rows of 16-bit integers, each a tile of its own.
pub fn wide(matrix: View<'_>, column: usize, tiles: &[WideTile<'_>], out: &mut [[f32; EIGHT]]) {
    let weights = eight!(|at| matrix.row_bytes(column + at));
    let ahead = matrix.stride * EIGHT;
    if matrix.ty == Type::Q6K {
        by_rows!(out, q6k, [], (&weights, ahead, tiles, out), [1, 2, 3, 4]);
    } else {
        by_rows!(out, q8_0, [], (&weights, ahead, tiles, out), [1, 2, 3, 4]);
    }
}

/// Columns from `column` on for rows of floats, each a tile of its own.
pub fn floats(matrix: View<'_>, column: usize, tiles: &[FloatTile<'_>], out: &mut [[f32; EIGHT]]) {
    let weights = eight!(|at| matrix.row_bytes(column + at));
    by_rows!(out, floats_of, [], (matrix.ty, &weights, matrix.stride * EIGHT, tiles, out), [1, 2, 3, 4]);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q4k<const ROWS: usize>(weights: &[&[u8]; EIGHT], ahead: usize, tiles: &[NarrowTile<'_>], out: &mut [[f32; EIGHT]]) {
    let tiles: [NarrowTile<'_>; ROWS] = std::array::from_fn(|row| tiles[row]);
    let nibbles = _mm256_set1_epi8(15);
    let blocks = tiles[0].scales.len();
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for panel in (0..blocks).step_by(NARROW_BLOCKS) {
        let mut total = [_mm256_setzero_ps(); ROWS];
        for first in (panel..blocks.min(panel + NARROW_BLOCKS)).step_by(PER_SUPER) {
            let bytes: [&[u8; Q4K]; EIGHT] = eight!(|at| &weights[at].as_chunks().0[first / PER_SUPER]);
            bytes.iter().for_each(|bytes| call_ahead(&bytes[..], ahead));
            let scales = eight!(|at| q4k_scales(bytes[at]));
            let (by, mins) = (columns(eight!(|at| scales[at].0)), columns(eight!(|at| scales[at].1)));
            for pair in 0..PER_SUPER / 2 {
                let both = eight!(|at| thirty_two(bytes[at], 16 + 32 * pair));
                for side in 0..2 {
                    let (sub, block) = (2 * pair + side, first + 2 * pair + side);
                    if block >= blocks {
                        break;
                    }
                    // What a word shifts over from its upper byte is masked away.
                    let values =
                        eight!(|at| _mm256_and_si256(if side == 0 { both[at] } else { _mm256_srli_epi16::<4>(both[at]) }, nibbles));
                    for (tile, total) in tiles.iter().zip(&mut total) {
                        let x = load(&tile.values[block * 8..]);
                        // Sixteen products of a weight up to 15 and an activation up to 127 fit into 16 bits.
                        let whole = added_16(eight!(|at| _mm256_maddubs_epi16(values[at], x)));
                        let by = _mm256_mul_ps(by[sub], _mm256_set1_ps(tile.scales[block]));
                        *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), by, *total);
                        *total = _mm256_fnmadd_ps(mins[sub], _mm256_set1_ps(tile.sums[block]), *total);
                    }
                }
            }
        }
        add(&mut sums, total);
    }
    store(sums, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q8_0<const ROWS: usize>(weights: &[&[u8]; EIGHT], ahead: usize, tiles: &[WideTile<'_>], out: &mut [[f32; EIGHT]]) {
    let tiles: [WideTile<'_>; ROWS] = std::array::from_fn(|row| tiles[row]);
    let blocks = tiles[0].scales.len();
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for panel in (0..blocks).step_by(WIDE_BLOCKS) {
        let mut total = [_mm256_setzero_ps(); ROWS];
        for block in panel..blocks.min(panel + WIDE_BLOCKS) {
            let bytes: [&[u8; Q8_0]; EIGHT] = eight!(|at| &weights[at].as_chunks().0[block]);
            bytes.iter().for_each(|bytes| call_ahead(&bytes[..], ahead));
            let by = eight_halves(eight!(|at| u16::from_le_bytes([bytes[at][0], bytes[at][1]])));
            let half = |from: usize| eight!(|at| _mm256_cvtepi8_epi16(sixteen(bytes[at], from)));
            let values = [half(2), half(18)];
            multiply(values, &tiles, block, by, &mut total);
        }
        add(&mut sums, total);
    }
    store(sums, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q6k<const ROWS: usize>(weights: &[&[u8]; EIGHT], ahead: usize, tiles: &[WideTile<'_>], out: &mut [[f32; EIGHT]]) {
    let tiles: [WideTile<'_>; ROWS] = std::array::from_fn(|row| tiles[row]);
    let blocks = tiles[0].scales.len();
    let (nibbles, bits, middle) = (_mm256_set1_epi8(15), _mm256_set1_epi8(3), _mm256_set1_epi8(32));
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for first in (0..blocks).step_by(PER_SUPER) {
        let mut total = [_mm256_setzero_ps(); ROWS];
        let bytes: [&[u8; Q6K]; EIGHT] = eight!(|at| &weights[at].as_chunks().0[first / PER_SUPER]);
        bytes.iter().for_each(|bytes| call_ahead(&bytes[..], ahead));
        let by = eight_halves(eight!(|at| u16::from_le_bytes([bytes[at][208], bytes[at][209]])));
        for sub in 0..PER_SUPER.min(blocks - first) {
            let (part, quarter) = (sub / 4, sub % 4);
            let mut values = [[_mm256_setzero_si256(); EIGHT]; 2];
            for (at, bytes) in bytes.iter().enumerate() {
                let low = thirty_two(&bytes[..], part * 64 + quarter % 2 * 32);
                let low = if quarter < 2 { low } else { _mm256_srli_epi16::<4>(low) };
                let high = _mm256_srl_epi16(thirty_two(&bytes[..], 128 + part * 32), _mm_cvtsi32_si128(2 * quarter as i32));
                let high = _mm256_slli_epi16::<4>(_mm256_and_si256(high, bits));
                let value = _mm256_sub_epi8(_mm256_or_si256(_mm256_and_si256(low, nibbles), high), middle);
                let scale = |half: usize| _mm256_set1_epi16(i16::from(bytes[192 + part * 8 + quarter * 2 + half] as i8));
                values[0][at] = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(value)), scale(0));
                values[1][at] = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(value)), scale(1));
            }
            multiply(values, &tiles, first + sub, by, &mut total);
        }
        add(&mut sums, total);
    }
    store(sums, out);
}

/// Adds a block's 32 values of each of eight columns, in two halves, times each tile's.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn multiply<const ROWS: usize>(
    values: [[__m256i; EIGHT]; 2],
    tiles: &[WideTile<'_>; ROWS],
    block: usize,
    by: __m256,
    total: &mut [__m256; ROWS],
) {
    for (tile, total) in tiles.iter().zip(total) {
        let x = [load(&tile.values[block * 16..]), load(&tile.values[block * 16 + 8..])];
        let products = eight!(|at| _mm256_add_epi32(_mm256_madd_epi16(values[0][at], x[0]), _mm256_madd_epi16(values[1][at], x[1])));
        let whole = added_32(products);
        let by = _mm256_mul_ps(by, _mm256_set1_ps(tile.scales[block]));
        *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), by, *total);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn floats_of<const ROWS: usize>(ty: Type, weights: &[&[u8]; EIGHT], ahead: usize, tiles: &[FloatTile<'_>], out: &mut [[f32; EIGHT]]) {
    let tiles: [FloatTile<'_>; ROWS] = std::array::from_fn(|row| tiles[row]);
    let (size, depth) = (ty.block_bytes(), tiles[0].depth);
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for panel in (0..depth).step_by(FLOAT_DEPTH) {
        let mut total = [_mm256_setzero_ps(); ROWS];
        let end = depth.min(panel + FLOAT_DEPTH);
        let whole = panel + (end - panel) / 8 * 8;
        weights.iter().for_each(|row| call_ahead(&row[panel * size..end * size], ahead));
        for at in (panel..whole).step_by(8) {
            let values = transposed(eight!(|row| eight_floats(ty, &weights[row][at * size..(at + 8) * size])));
            for (tile, total) in tiles.iter().zip(&mut total) {
                for (values, x) in values.iter().zip(&tile.values[at..at + 8]) {
                    *total = _mm256_fmadd_ps(_mm256_set1_ps(*x), _mm256_castsi256_ps(*values), *total);
                }
            }
        }
        for at in whole..end {
            let values = eight!(|row| read_float(ty, weights[row], at));
            // SAFETY: there are eight.
            let values = unsafe { _mm256_loadu_ps(values.as_ptr()) };
            for (tile, total) in tiles.iter().zip(&mut total) {
                *total = _mm256_fmadd_ps(_mm256_set1_ps(tile.values[at]), values, *total);
            }
        }
        add(&mut sums, total);
    }
    store(sums, out);
}

/// What each of eight vectors of 16-bit integers adds up to, which must fit into 16 bits but for its two halves' sum.
#[target_feature(enable = "avx2")]
#[inline]
fn added_16(v: [__m256i; EIGHT]) -> __m256i {
    let four = |a, b, c, d| _mm256_hadd_epi16(_mm256_hadd_epi16(a, b), _mm256_hadd_epi16(c, d));
    let all = _mm256_hadd_epi16(four(v[0], v[1], v[2], v[3]), four(v[4], v[5], v[6], v[7]));
    let (low, high) = (_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
    _mm256_add_epi32(_mm256_cvtepi16_epi32(low), _mm256_cvtepi16_epi32(high))
}

/// What each of eight vectors of 32-bit integers adds up to.
#[target_feature(enable = "avx2")]
#[inline]
fn added_32(v: [__m256i; EIGHT]) -> __m256i {
    let four = |a, b, c, d| _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let (a, b) = (four(v[0], v[1], v[2], v[3]), four(v[4], v[5], v[6], v[7]));
    _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
}

/// Eight floats of each of eight rows as columns.
#[target_feature(enable = "avx2")]
#[inline]
fn columns(rows: [__m256; EIGHT]) -> [__m256; EIGHT] {
    let columns = transposed(eight!(|at| _mm256_castps_si256(rows[at])));
    eight!(|at| _mm256_castsi256_ps(columns[at]))
}

/// Eight words from the beginning of `words`.
#[target_feature(enable = "avx2")]
#[inline]
fn load<T>(words: &[T]) -> __m256i {
    const { assert!(size_of::<T>() == 4) };
    let words = &words[..8];
    // SAFETY: there are eight.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn add<const ROWS: usize>(sums: &mut [__m256; ROWS], total: [__m256; ROWS]) {
    sums.iter_mut().zip(total).for_each(|(sum, total)| *sum = _mm256_add_ps(*sum, total));
}

#[target_feature(enable = "avx2")]
#[inline]
fn store<const ROWS: usize>(sums: [__m256; ROWS], out: &mut [[f32; EIGHT]]) {
    for (sums, out) in sums.into_iter().zip(out) {
        // SAFETY: there are eight.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums) };
    }
}
