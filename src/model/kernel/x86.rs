//! The inner loops and the unpacking with AVX2, and the inner loops with AVX-512.
//!
//! Functions without `unsafe` in their signature are only called where [`super::Isa::detected`] has found the
//! instructions. Element for element they add up in the order of [`super::portable`].
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use crate::model::kernel::activations::Rounded;
use crate::model::kernel::{BLOCK, FloatPanel, GROUP, IntPanel, PANELS, Strided, Sums, unpack};
use crate::model::matrix::{Matrix, Type};

/// Runs one of several forms of a function, by a number of rows that the compiler must know.
macro_rules! by_rows {
    ($rows:expr, $form:ident, $more:tt, $arguments:tt, [$($number:literal),*]) => {
        // SAFETY: the caller of this module has found the instructions.
        match $rows {
            $($number => unsafe { by_rows!(@call $form, $number, $more, $arguments) },)*
            _ => {}
        }
    };
    (@call $form:ident, $number:literal, [$($more:expr),*], ($($argument:expr),*)) => { $form::<$number, $($more),*>($($argument),*) };
}

/// Up to four rows of integers.
pub fn avx2_integers(panels: &[IntPanel], x: &Rounded, rows: Range<usize>, blocks: Range<usize>, sums: &mut Sums) {
    for (at, panel) in panels.iter().enumerate() {
        let from = at * GROUP;
        if x.sums.is_empty() {
            by_rows!(rows.len(), integers_256, [false], (panel, x, rows.start, blocks.clone(), sums, from), [1, 2, 3, 4]);
        } else {
            by_rows!(rows.len(), integers_256, [true], (panel, x, rows.start, blocks.clone(), sums, from), [1, 2, 3, 4]);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn integers_256<const ROWS: usize, const MINS: bool>(
    panel: &IntPanel,
    x: &Rounded,
    row: usize,
    blocks: Range<usize>,
    sums: &mut Sums,
    from: usize,
) {
    let rows: [&[i16]; ROWS] = std::array::from_fn(|at| &x.row(row + at, blocks.start)[..blocks.len() * BLOCK]);
    let scales: [&[f32]; ROWS] = std::array::from_fn(|at| &x.scales[(row + at) * x.blocks..][blocks.clone()]);
    let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
    for at in 0..blocks.len() {
        let mut whole = [[_mm256_setzero_si256(); 2]; ROWS];
        let values = panel.values[at].as_ptr().cast::<__m256i>();
        for pair in 0..BLOCK / 2 {
            // SAFETY: a panel's block holds `BLOCK / 2` times two vectors, aligned; rows hold `blocks.len() * BLOCK` values.
            unsafe {
                let (low, high) = (_mm256_load_si256(values.add(2 * pair)), _mm256_load_si256(values.add(2 * pair + 1)));
                for (row, whole) in rows.iter().zip(&mut whole) {
                    let two = _mm256_set1_epi32(row.as_ptr().add(at * BLOCK + 2 * pair).cast::<i32>().read_unaligned());
                    whole[0] = _mm256_add_epi32(whole[0], _mm256_madd_epi16(low, two));
                    whole[1] = _mm256_add_epi32(whole[1], _mm256_madd_epi16(high, two));
                }
            }
        }
        for half in 0..2 {
            // SAFETY: a panel has `GROUP` = 16 scales and minimums a block.
            let (scale, min) = unsafe {
                (_mm256_loadu_ps(panel.scales[at].as_ptr().add(8 * half)), _mm256_loadu_ps(panel.mins[at].as_ptr().add(8 * half)))
            };
            for r in 0..ROWS {
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(scales[r][at]));
                total[r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r][half]), scale, total[r][half]);
                if MINS {
                    let sum = _mm256_set1_ps(x.sums[(row + r) * x.blocks + blocks.start + at]);
                    total[r][half] = _mm256_fnmadd_ps(min, sum, total[r][half]);
                }
            }
        }
    }
    for (total, sums) in total.iter().zip(sums) {
        for (half, total) in total.iter().enumerate() {
            let target = &mut sums[from + 8 * half..from + 8 * half + 8];
            // SAFETY: `target` has eight values.
            unsafe { _mm256_storeu_ps(target.as_mut_ptr(), *total) };
        }
    }
}

/// Up to six rows of integers.
pub fn avx512_integers(panels: &[IntPanel], x: &Rounded, rows: Range<usize>, blocks: Range<usize>, sums: &mut Sums) {
    match (panels.len(), x.sums.is_empty()) {
        (1, true) => by_rows!(rows.len(), integers_512, [1, false], (panels, x, rows.start, blocks, sums), [1, 2, 3, 4, 5, 6]),
        (1, false) => by_rows!(rows.len(), integers_512, [1, true], (panels, x, rows.start, blocks, sums), [1, 2, 3, 4, 5, 6]),
        (_, true) => by_rows!(rows.len(), integers_512, [2, false], (panels, x, rows.start, blocks, sums), [1, 2, 3, 4, 5, 6]),
        (_, false) => by_rows!(rows.len(), integers_512, [2, true], (panels, x, rows.start, blocks, sums), [1, 2, 3, 4, 5, 6]),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn integers_512<const ROWS: usize, const WIDE: usize, const MINS: bool>(
    panels: &[IntPanel],
    x: &Rounded,
    row: usize,
    blocks: Range<usize>,
    sums: &mut Sums,
) {
    let panels: [&IntPanel; WIDE] = std::array::from_fn(|at| &panels[at]);
    let rows: [&[i16]; ROWS] = std::array::from_fn(|at| &x.row(row + at, blocks.start)[..blocks.len() * BLOCK]);
    let scales: [&[f32]; ROWS] = std::array::from_fn(|at| &x.scales[(row + at) * x.blocks..][blocks.clone()]);
    let mut total = [[_mm512_setzero_ps(); WIDE]; ROWS];
    for at in 0..blocks.len() {
        let mut whole = [[_mm512_setzero_si512(); WIDE]; ROWS];
        for pair in 0..BLOCK / 2 {
            // SAFETY: a panel's block holds `BLOCK / 2` vectors, aligned; rows hold `blocks.len() * BLOCK` values.
            unsafe {
                let weights: [__m512i; WIDE] =
                    std::array::from_fn(|wide| _mm512_load_si512(panels[wide].values[at].as_ptr().cast::<__m512i>().add(pair)));
                for (row, whole) in rows.iter().zip(&mut whole) {
                    let two = _mm512_set1_epi32(row.as_ptr().add(at * BLOCK + 2 * pair).cast::<i32>().read_unaligned());
                    for wide in 0..WIDE {
                        whole[wide] = _mm512_dpwssd_epi32(whole[wide], weights[wide], two);
                    }
                }
            }
        }
        for wide in 0..WIDE {
            // SAFETY: a panel has `GROUP` = 16 scales and minimums a block.
            let (scale, min) =
                unsafe { (_mm512_loadu_ps(panels[wide].scales[at].as_ptr()), _mm512_loadu_ps(panels[wide].mins[at].as_ptr())) };
            for r in 0..ROWS {
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(scales[r][at]));
                total[r][wide] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r][wide]), scale, total[r][wide]);
                if MINS {
                    let sum = _mm512_set1_ps(x.sums[(row + r) * x.blocks + blocks.start + at]);
                    total[r][wide] = _mm512_fnmadd_ps(min, sum, total[r][wide]);
                }
            }
        }
    }
    for (total, sums) in total.iter().zip(sums) {
        for (total, sums) in total.iter().zip(sums.chunks_exact_mut(GROUP)) {
            // SAFETY: `sums` has sixteen values.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *total) };
        }
    }
}

/// Up to six rows of floats.
pub fn avx2_floats(panels: &[FloatPanel], x: Strided<'_>, depth: usize, sums: &mut Sums) {
    for (at, panel) in panels.iter().enumerate() {
        by_rows!(x.rows, floats_256, [], (panel, x, depth, sums, at * GROUP), [1, 2, 3, 4, 5, 6]);
    }
}

#[target_feature(enable = "avx2,fma")]
fn floats_256<const ROWS: usize>(panel: &FloatPanel, x: Strided<'_>, depth: usize, sums: &mut Sums, from: usize) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &x.values[row * x.stride..][..depth]);
    let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
    for (at, weights) in panel.0[..depth].iter().enumerate() {
        // SAFETY: a panel's row is two aligned vectors; rows have `depth` values.
        unsafe {
            let (low, high) = (_mm256_load_ps(weights.as_ptr()), _mm256_load_ps(weights.as_ptr().add(8)));
            for (row, total) in rows.iter().zip(&mut total) {
                let x = _mm256_broadcast_ss(row.get_unchecked(at));
                total[0] = _mm256_fmadd_ps(x, low, total[0]);
                total[1] = _mm256_fmadd_ps(x, high, total[1]);
            }
        }
    }
    for (total, sums) in total.iter().zip(sums) {
        for (half, total) in total.iter().enumerate() {
            let target = &mut sums[from + 8 * half..from + 8 * half + 8];
            // SAFETY: `target` has eight values.
            unsafe { _mm256_storeu_ps(target.as_mut_ptr(), *total) };
        }
    }
}

/// Up to eight rows of floats.
pub fn avx512_floats(panels: &[FloatPanel], x: Strided<'_>, depth: usize, sums: &mut Sums) {
    if let [_] = panels {
        by_rows!(x.rows, floats_512, [1], (panels, x, depth, sums), [1, 2, 3, 4, 5, 6, 7, 8]);
    } else {
        by_rows!(x.rows, floats_512, [2], (panels, x, depth, sums), [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

#[target_feature(enable = "avx512f")]
fn floats_512<const ROWS: usize, const WIDE: usize>(panels: &[FloatPanel], x: Strided<'_>, depth: usize, sums: &mut Sums) {
    let panels: [&[[f32; GROUP]]; WIDE] = std::array::from_fn(|at| &panels[at].0[..depth]);
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &x.values[row * x.stride..][..depth]);
    let mut total = [[_mm512_setzero_ps(); WIDE]; ROWS];
    for at in 0..depth {
        // SAFETY: a panel's row is an aligned vector; panels and rows have `depth` of them.
        unsafe {
            let weights: [__m512; WIDE] = std::array::from_fn(|wide| _mm512_load_ps(panels[wide].get_unchecked(at).as_ptr()));
            for (row, total) in rows.iter().zip(&mut total) {
                let x = _mm512_set1_ps(*row.get_unchecked(at));
                for wide in 0..WIDE {
                    total[wide] = _mm512_fmadd_ps(x, weights[wide], total[wide]);
                }
            }
        }
    }
    for (total, sums) in total.iter().zip(sums) {
        for (total, sums) in total.iter().zip(sums.chunks_exact_mut(GROUP)) {
            // SAFETY: `sums` has sixteen values.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *total) };
        }
    }
}

/// Sixteen columns from `column` on of quantised weights into a panel.
pub fn unpack_integers(matrix: &Matrix, column: usize, blocks: Range<usize>, panel: &mut IntPanel) {
    let rows: [&[u8]; GROUP] = std::array::from_fn(|at| matrix.row_bytes(column + at));
    // SAFETY: the caller of this module has found the instructions.
    unsafe {
        match matrix.ty() {
            Type::Q6K => unpack_256::<Q6K>(&rows, blocks, panel),
            Type::Q4K => unpack_256::<Q4K>(&rows, blocks, panel),
            _ => unpack_256::<Q8_0>(&rows, blocks, panel),
        }
    }
}

/// How a type's blocks are read.
trait Stored {
    /// The scale and the minimum of block `at` of a row.
    fn scale(row: &[u8], at: usize) -> (u16, u8, u16, u8);

    /// Sixteen values of block `at`, the first or second `half`, as 16-bit integers.
    ///
    /// # Safety
    /// AVX2 must be there.
    unsafe fn half(row: &[u8], at: usize, half: usize) -> __m256i;

    /// Whether there are minimums.
    const MINS: bool = false;
}

struct Q8_0;
struct Q6K;
struct Q4K;

fn half_bits(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Sixteen bytes from `at` on.
#[target_feature(enable = "avx2")]
#[inline]
fn sixteen(bytes: &[u8], at: usize) -> __m128i {
    let bytes = &bytes[at..at + 16];
    // SAFETY: there are sixteen.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

impl Stored for Q8_0 {
    #[inline]
    fn scale(row: &[u8], at: usize) -> (u16, u8, u16, u8) {
        (half_bits(row, at * 34), 1, 0, 0)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn half(row: &[u8], at: usize, half: usize) -> __m256i {
        _mm256_cvtepi8_epi16(sixteen(row, at * 34 + 2 + half * 16))
    }
}

impl Stored for Q6K {
    #[inline]
    fn scale(row: &[u8], at: usize) -> (u16, u8, u16, u8) {
        (half_bits(row, at / 8 * 210 + 208), 1, 0, 0)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn half(row: &[u8], at: usize, half: usize) -> __m256i {
        let start = at / 8 * 210;
        let (side, quarter) = (at % 8 / 4, at % 4);
        let low = sixteen(row, start + side * 64 + quarter % 2 * 32 + half * 16);
        let high = sixteen(row, start + 128 + side * 32 + half * 16);
        let (nibbles, bits) = (_mm_set1_epi8(15), _mm_set1_epi8(3));
        let low = if quarter < 2 { low } else { _mm_srli_epi16::<4>(low) };
        // Shifted as words: what comes over from the neighbouring byte is masked away.
        let high = _mm_srl_epi16(high, _mm_cvtsi32_si128(2 * quarter as i32));
        let value = _mm_or_si128(_mm_and_si128(low, nibbles), _mm_slli_epi16::<4>(_mm_and_si128(high, bits)));
        let value = _mm256_cvtepi8_epi16(_mm_sub_epi8(value, _mm_set1_epi8(32)));
        let scale = row[start + 192 + side * 8 + quarter * 2 + half] as i8;
        _mm256_mullo_epi16(value, _mm256_set1_epi16(i16::from(scale)))
    }
}

impl Stored for Q4K {
    const MINS: bool = true;

    #[inline]
    fn scale(row: &[u8], at: usize) -> (u16, u8, u16, u8) {
        let start = at / 8 * 144;
        let (scale, min) = unpack::scale_and_min(&row[start + 4..start + 16], at % 8);
        (half_bits(row, start), scale, half_bits(row, start + 2), min)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn half(row: &[u8], at: usize, half: usize) -> __m256i {
        let sub = at % 8;
        let bytes = sixteen(row, at / 8 * 144 + 16 + sub / 2 * 32 + half * 16);
        let bytes = if sub.is_multiple_of(2) { bytes } else { _mm_srli_epi16::<4>(bytes) };
        _mm256_cvtepu8_epi16(_mm_and_si128(bytes, _mm_set1_epi8(15)))
    }
}

#[target_feature(enable = "avx2,f16c")]
fn unpack_256<S: Stored>(rows: &[&[u8]; GROUP], blocks: Range<usize>, panel: &mut IntPanel) {
    for (at, block) in blocks.enumerate() {
        let scales: [(u16, u8, u16, u8); GROUP] = std::array::from_fn(|row| S::scale(rows[row], block));
        for (side, scales) in scales.as_chunks::<8>().0.iter().enumerate() {
            let place = 8 * side..8 * side + 8;
            store_scales(scales.map(|scale| scale.0), scales.map(|scale| scale.1), &mut panel.scales[at][place.clone()]);
            if S::MINS {
                store_scales(scales.map(|scale| scale.2), scales.map(|scale| scale.3), &mut panel.mins[at][place]);
            }
        }
        for side in 0..2 {
            for half in 0..2 {
                // SAFETY: AVX2 is there.
                let values = std::array::from_fn(|row| unsafe { S::half(rows[8 * side + row], block, half) });
                for (pair, pairs) in transposed(values).into_iter().enumerate() {
                    let target = &mut panel.values[at][8 * half + pair][8 * side..8 * side + 8];
                    // SAFETY: `target` has eight pairs of two bytes each.
                    unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), pairs) };
                }
            }
        }
    }
}

/// Eight half floats times eight small integers.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn store_scales(halves: [u16; 8], factors: [u8; 8], target: &mut [f32]) {
    let target = &mut target[..8];
    // SAFETY: eight 16-bit and eight 8-bit numbers are read, eight floats written.
    unsafe {
        let halves = _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()));
        let factors = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(factors.as_ptr().cast())));
        _mm256_storeu_ps(target.as_mut_ptr(), _mm256_mul_ps(halves, factors));
    }
}

/// Eight rows of eight words as eight columns.
#[target_feature(enable = "avx2")]
#[inline]
fn transposed(r: [__m256i; 8]) -> [__m256i; 8] {
    let two = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let four = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let ((a0, a1), (b0, b1), (c0, c1), (d0, d1)) = (two(r[0], r[1]), two(r[2], r[3]), two(r[4], r[5]), two(r[6], r[7]));
    let ((e0, e1), (e2, e3), (f0, f1), (f2, f3)) = (four(a0, b0), four(a1, b1), four(c0, d0), four(c1, d1));
    let (low, high) = (_mm256_permute2x128_si256::<0x20>, _mm256_permute2x128_si256::<0x31>);
    [low(e0, f0), low(e1, f1), low(e2, f2), low(e3, f3), high(e0, f0), high(e1, f1), high(e2, f2), high(e3, f3)]
}

/// Sixteen columns from `column` on of float weights into a panel.
pub fn unpack_floats(matrix: &Matrix, column: usize, depth: Range<usize>, panel: &mut FloatPanel) {
    let size = matrix.ty().block_bytes();
    let rows: [&[u8]; GROUP] = std::array::from_fn(|at| &matrix.row_bytes(column + at)[depth.start * size..depth.end * size]);
    // SAFETY: the caller of this module has found the instructions.
    unsafe { floats_unpacked(matrix.ty(), &rows, depth.len(), panel) }
}

#[target_feature(enable = "avx2,f16c")]
fn floats_unpacked(ty: Type, rows: &[&[u8]; GROUP], depth: usize, panel: &mut FloatPanel) {
    let size = ty.block_bytes();
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
            *target = unpack::read_float(ty, row, at);
        }
    }
}

/// The bits of eight floats.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn eight_floats(ty: Type, bytes: &[u8]) -> __m256i {
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

const _: () = assert!(GROUP == 16 && PANELS == 2 && BLOCK == 32);
