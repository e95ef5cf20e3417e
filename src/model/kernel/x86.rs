//! The inner loops with AVX2, with AVX-VNNI beside it, and with AVX-512.
//!
//! Functions without `unsafe` in their signature are only called where [`super::Isa::is_here`] has found the
//! instructions. Element for element they add up in the order of [`super::portable`].
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::model::kernel::activations::{FloatTile, NarrowTile, WideTile};
use crate::model::kernel::{BLOCK, FloatPanel, GROUP, NarrowPanel, PANELS, Sums, WidePanel};

pub use unpack::{unpack_floats, unpack_narrow, unpack_wide};

const _: () = assert!(GROUP == 16 && PANELS == 2 && BLOCK == 32);

/// Runs one of several forms of a function, by a number of rows that the compiler must know.
macro_rules! by_rows {
    ($sums:ident, $form:ident, $more:tt, $arguments:tt, [$($rows:literal),*]) => {
        match $sums.len() {
            // SAFETY: the caller of this module has found the instructions.
            $($rows => unsafe { by_rows!(@call $form, $rows, $more, $arguments) },)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
    (@call $form:ident, $rows:literal, [$($more:literal)?], ($($argument:expr),*)) => { $form::<$rows $(, $more)?>($($argument),*) };
}

// Below the macro that it uses.
pub mod few;
mod unpack;

/// Keeps a sum where it is. The compiler may unroll the innermost loops, but it would also regroup their sums, which it
/// may with integers, and run out of registers.
macro_rules! pin {
    ($class:ident, $sum:expr) => {
        std::arch::asm!("/* {0} */", inout($class) $sum, options(pure, nomem, nostack, preserves_flags))
    };
}

/// The integers' loops with 256-bit registers, which differ in how a product is added.
macro_rules! integers_256 {
    ($features:literal, $rows:tt, $wide:ident, $wide_of:ident, $add_pairs:ident, $narrow:ident, $narrow_of:ident, $add_fours:ident, $whole:path) => {
        /// Some rows of 16-bit integers.
        pub fn $wide(panels: &[WidePanel], tile: WideTile<'_>, sums: &mut [Sums]) {
            for (at, panel) in panels.iter().enumerate() {
                by_rows!(sums, $wide_of, [], (panel, tile, sums, at * GROUP), $rows);
            }
        }

        #[target_feature(enable = $features)]
        fn $wide_of<const ROWS: usize>(panel: &WidePanel, tile: WideTile<'_>, sums: &mut [Sums], from: usize) {
            let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
            let blocks = tile.values.chunks_exact(ROWS * BLOCK / 2).zip(tile.scales.as_chunks::<ROWS>().0);
            for ((values, scales), (weights, by)) in blocks.zip(panel.values.iter().zip(&panel.scales)) {
                let mut whole = [[_mm256_setzero_si256(); 2]; ROWS];
                let (values, weights) = (values.as_ptr().cast::<i32>(), weights.as_ptr().cast::<__m256i>());
                for pair in 0..BLOCK / 2 {
                    // SAFETY: a block has `BLOCK / 2` pairs: of the tile one word a row, of the panel two aligned vectors.
                    unsafe {
                        let (low, high) = (_mm256_load_si256(weights.add(2 * pair)), _mm256_load_si256(weights.add(2 * pair + 1)));
                        for (row, whole) in whole.iter_mut().enumerate() {
                            let two = _mm256_set1_epi32(values.add(pair * ROWS + row).read_unaligned());
                            whole[0] = $add_pairs(whole[0], low, two);
                            whole[1] = $add_pairs(whole[1], high, two);
                            pin!(ymm_reg, whole[0]);
                            pin!(ymm_reg, whole[1]);
                        }
                    }
                }
                let by = halves(by);
                for ((total, whole), scale) in total.iter_mut().zip(whole).zip(scales) {
                    for half in 0..2 {
                        let by = _mm256_mul_ps(by[half], _mm256_set1_ps(*scale));
                        total[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[half]), by, total[half]);
                    }
                }
            }
            add_256(total, sums, from);
        }

        /// Some rows of 8-bit integers.
        pub fn $narrow(panels: &[NarrowPanel], tile: NarrowTile<'_>, sums: &mut [Sums]) {
            for (at, panel) in panels.iter().enumerate() {
                by_rows!(sums, $narrow_of, [], (panel, tile, sums, at * GROUP), $rows);
            }
        }

        #[target_feature(enable = $features)]
        fn $narrow_of<const ROWS: usize>(panel: &NarrowPanel, tile: NarrowTile<'_>, sums: &mut [Sums], from: usize) {
            let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
            let scales = tile.scales.as_chunks::<ROWS>().0.iter().zip(tile.sums.as_chunks::<ROWS>().0);
            let blocks = tile.values.chunks_exact(ROWS * BLOCK / 4).zip(scales);
            for (at, (values, (scales, block_sums))) in blocks.enumerate() {
                let mut whole = [[_mm256_setzero_si256(); 2]; ROWS];
                let (values, weights) = (values.as_ptr().cast::<i32>(), panel.values[at].as_ptr().cast::<__m256i>());
                for four in 0..BLOCK / 4 {
                    // SAFETY: a block has `BLOCK / 4` fours: of the tile one word a row, of the panel two aligned vectors.
                    unsafe {
                        let (low, high) = (_mm256_load_si256(weights.add(2 * four)), _mm256_load_si256(weights.add(2 * four + 1)));
                        for (row, whole) in whole.iter_mut().enumerate() {
                            let bytes = _mm256_set1_epi32(values.add(four * ROWS + row).read_unaligned());
                            whole[0] = $add_fours(whole[0], low, bytes);
                            whole[1] = $add_fours(whole[1], high, bytes);
                            pin!(ymm_reg, whole[0]);
                            pin!(ymm_reg, whole[1]);
                        }
                    }
                }
                let (by, mins) = (halves(&panel.scales[at]), halves(&panel.mins[at]));
                for row in 0..ROWS {
                    for half in 0..2 {
                        let whole = _mm256_cvtepi32_ps($whole(whole[row][half]));
                        let by = _mm256_mul_ps(by[half], _mm256_set1_ps(scales[row]));
                        total[row][half] = _mm256_fmadd_ps(whole, by, total[row][half]);
                        total[row][half] = _mm256_fnmadd_ps(mins[half], _mm256_set1_ps(block_sums[row]), total[row][half]);
                    }
                }
            }
            add_256(total, sums, from);
        }
    };
}

integers_256!("avx2,fma", [1, 2, 3, 4], wide_256, wide_256_of, pairs_256, narrow_256, narrow_256_of, fours_256, whole_256);

integers_256!(
    "avx2,fma,avxvnni",
    [1, 2, 3, 4, 5, 6],
    wide_vnni,
    wide_vnni_of,
    _mm256_dpwssd_avx_epi32,
    narrow_vnni,
    narrow_vnni_of,
    _mm256_dpbusd_avx_epi32,
    std::convert::identity
);

#[target_feature(enable = "avx2")]
#[inline]
fn pairs_256(sum: __m256i, weights: __m256i, two: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(weights, two))
}

/// Sums of 16 bits, into which sixteen products of a weight up to 15 and an activation up to 127 fit.
#[target_feature(enable = "avx2")]
#[inline]
fn fours_256(sum: __m256i, weights: __m256i, bytes: __m256i) -> __m256i {
    _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, bytes))
}

/// Neighbouring sums of 16 bits as one of 32.
#[target_feature(enable = "avx2")]
#[inline]
fn whole_256(sums: __m256i) -> __m256i {
    _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
}

/// Up to six rows of floats.
pub fn floats_256(panels: &[FloatPanel], tile: FloatTile<'_>, sums: &mut [Sums]) {
    for (at, panel) in panels.iter().enumerate() {
        by_rows!(sums, floats_256_of, [], (panel, tile, sums, at * GROUP), [1, 2, 3, 4, 5, 6]);
    }
}

#[target_feature(enable = "avx2,fma")]
fn floats_256_of<const ROWS: usize>(panel: &FloatPanel, tile: FloatTile<'_>, sums: &mut [Sums], from: usize) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &tile.values[row * tile.stride..][..tile.depth]);
    let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
    for (at, weights) in panel.0[..tile.depth].iter().enumerate() {
        let [low, high] = halves(weights);
        for (row, total) in rows.iter().zip(&mut total) {
            // SAFETY: each row has `depth` values.
            let x = unsafe { _mm256_broadcast_ss(row.get_unchecked(at)) };
            total[0] = _mm256_fmadd_ps(x, low, total[0]);
            total[1] = _mm256_fmadd_ps(x, high, total[1]);
        }
    }
    add_256(total, sums, from);
}

#[target_feature(enable = "avx2")]
#[inline]
fn halves(sixteen: &[f32; GROUP]) -> [__m256; 2] {
    // SAFETY: there are sixteen.
    unsafe { [_mm256_loadu_ps(sixteen.as_ptr()), _mm256_loadu_ps(sixteen.as_ptr().add(8))] }
}

#[target_feature(enable = "avx2")]
#[inline]
fn add_256<const ROWS: usize>(total: [[__m256; 2]; ROWS], sums: &mut [Sums], from: usize) {
    for (total, sums) in total.into_iter().zip(sums) {
        for (total, sums) in total.into_iter().zip(sums[from..from + GROUP].as_chunks_mut::<8>().0) {
            // SAFETY: `sums` has eight values.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), _mm256_add_ps(_mm256_loadu_ps(sums.as_ptr()), total)) };
        }
    }
}

/// Up to six rows of 16-bit integers.
pub fn wide_512(panels: &[WidePanel], tile: WideTile<'_>, sums: &mut [Sums]) {
    if let [_] = panels {
        by_rows!(sums, wide_512_of, [1], (panels, tile, sums), [1, 2, 3, 4, 5, 6]);
    } else {
        by_rows!(sums, wide_512_of, [2], (panels, tile, sums), [1, 2, 3, 4, 5, 6]);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn wide_512_of<const ROWS: usize, const WIDE: usize>(panels: &[WidePanel], tile: WideTile<'_>, sums: &mut [Sums]) {
    let panels: [&WidePanel; WIDE] = std::array::from_fn(|at| &panels[at]);
    let mut total = [[_mm512_setzero_ps(); WIDE]; ROWS];
    let blocks = tile.values.chunks_exact(ROWS * BLOCK / 2).zip(tile.scales.as_chunks::<ROWS>().0);
    for (at, (values, scales)) in blocks.enumerate() {
        let mut whole = [[_mm512_setzero_si512(); WIDE]; ROWS];
        let values = values.as_ptr().cast::<i32>();
        let weights = panels.map(|panel| panel.values[at].as_ptr().cast::<__m512i>());
        for pair in 0..BLOCK / 2 {
            // SAFETY: a block has `BLOCK / 2` pairs: of the tile one word a row, of each panel an aligned vector.
            unsafe {
                let weights = weights.map(|weights| _mm512_load_si512(weights.add(pair)));
                for (row, whole) in whole.iter_mut().enumerate() {
                    let two = _mm512_set1_epi32(values.add(pair * ROWS + row).read_unaligned());
                    for (whole, weights) in whole.iter_mut().zip(weights) {
                        *whole = _mm512_dpwssd_epi32(*whole, weights, two);
                        pin!(zmm_reg, *whole);
                    }
                }
            }
        }
        for (wide, panel) in panels.iter().enumerate() {
            let by = sixteen(&panel.scales[at]);
            for row in 0..ROWS {
                let by = _mm512_mul_ps(by, _mm512_set1_ps(scales[row]));
                total[row][wide] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[row][wide]), by, total[row][wide]);
            }
        }
    }
    add_512(total, sums);
}

/// Up to six rows of 8-bit integers.
pub fn narrow_512(panels: &[NarrowPanel], tile: NarrowTile<'_>, sums: &mut [Sums]) {
    if let [_] = panels {
        by_rows!(sums, narrow_512_of, [1], (panels, tile, sums), [1, 2, 3, 4, 5, 6]);
    } else {
        by_rows!(sums, narrow_512_of, [2], (panels, tile, sums), [1, 2, 3, 4, 5, 6]);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn narrow_512_of<const ROWS: usize, const WIDE: usize>(panels: &[NarrowPanel], tile: NarrowTile<'_>, sums: &mut [Sums]) {
    let panels: [&NarrowPanel; WIDE] = std::array::from_fn(|at| &panels[at]);
    let mut total = [[_mm512_setzero_ps(); WIDE]; ROWS];
    let scales = tile.scales.as_chunks::<ROWS>().0.iter().zip(tile.sums.as_chunks::<ROWS>().0);
    let blocks = tile.values.chunks_exact(ROWS * BLOCK / 4).zip(scales);
    for (at, (values, (scales, block_sums))) in blocks.enumerate() {
        let mut whole = [[_mm512_setzero_si512(); WIDE]; ROWS];
        let values = values.as_ptr().cast::<i32>();
        let weights = panels.map(|panel| panel.values[at].as_ptr().cast::<__m512i>());
        for four in 0..BLOCK / 4 {
            // SAFETY: a block has `BLOCK / 4` fours: of the tile one word a row, of each panel an aligned vector.
            unsafe {
                let weights = weights.map(|weights| _mm512_load_si512(weights.add(four)));
                for (row, whole) in whole.iter_mut().enumerate() {
                    let bytes = _mm512_set1_epi32(values.add(four * ROWS + row).read_unaligned());
                    for (whole, weights) in whole.iter_mut().zip(weights) {
                        *whole = _mm512_dpbusd_epi32(*whole, weights, bytes);
                        pin!(zmm_reg, *whole);
                    }
                }
            }
        }
        for (wide, panel) in panels.iter().enumerate() {
            let (by, mins) = (sixteen(&panel.scales[at]), sixteen(&panel.mins[at]));
            for row in 0..ROWS {
                let by = _mm512_mul_ps(by, _mm512_set1_ps(scales[row]));
                total[row][wide] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[row][wide]), by, total[row][wide]);
                total[row][wide] = _mm512_fnmadd_ps(mins, _mm512_set1_ps(block_sums[row]), total[row][wide]);
            }
        }
    }
    add_512(total, sums);
}

/// Up to eight rows of floats.
pub fn floats_512(panels: &[FloatPanel], tile: FloatTile<'_>, sums: &mut [Sums]) {
    if let [_] = panels {
        by_rows!(sums, floats_512_of, [1], (panels, tile, sums), [1, 2, 3, 4, 5, 6, 7, 8]);
    } else {
        by_rows!(sums, floats_512_of, [2], (panels, tile, sums), [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

#[target_feature(enable = "avx512f")]
fn floats_512_of<const ROWS: usize, const WIDE: usize>(panels: &[FloatPanel], tile: FloatTile<'_>, sums: &mut [Sums]) {
    let panels: [&[[f32; GROUP]]; WIDE] = std::array::from_fn(|at| &panels[at].0[..tile.depth]);
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &tile.values[row * tile.stride..][..tile.depth]);
    let mut total = [[_mm512_setzero_ps(); WIDE]; ROWS];
    for at in 0..tile.depth {
        // SAFETY: panels and rows have `depth` entries.
        unsafe {
            let weights = panels.map(|panel| sixteen(panel.get_unchecked(at)));
            for (row, total) in rows.iter().zip(&mut total) {
                let x = _mm512_set1_ps(*row.get_unchecked(at));
                for (total, weights) in total.iter_mut().zip(weights) {
                    *total = _mm512_fmadd_ps(x, weights, *total);
                }
            }
        }
    }
    add_512(total, sums);
}

#[target_feature(enable = "avx512f")]
#[inline]
fn sixteen(values: &[f32; GROUP]) -> __m512 {
    // SAFETY: there are sixteen.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add_512<const ROWS: usize, const WIDE: usize>(total: [[__m512; WIDE]; ROWS], sums: &mut [Sums]) {
    for (total, sums) in total.into_iter().zip(sums) {
        for (total, sums) in total.into_iter().zip(sums.as_chunks_mut::<GROUP>().0) {
            // SAFETY: `sums` has sixteen values.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(sixteen(sums), total)) };
        }
    }
}
