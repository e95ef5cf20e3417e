//! Matrix products on the processor: activations in 32-bit floats times weights as they are stored.
//!
//! Weights are unpacked sixteen columns and some hundred rows at a time into a *panel* that fits the first-level cache,
//! and all rows of activations go over it before the next is unpacked, so that a stored type costs its unpacking once a
//! product. Quantised weights meet activations rounded to integers with a scale per 32 of a row: 15 bits for the 8- and
//! 6-bit types ([`Wide`]), 8 bits for the 4-bit type ([`Narrow`]). Sums over a block are exact; scaled, they are added up
//! as floats.
//!
//! Where there are but a few rows, as for a token, the panel would be written to be read once: they are summed up
//! straight over the stored weights, eight columns at a time.
//!
//! The order in which an element is summed up depends on the matrix alone, never on how many rows or threads take part:
//! a row gives the same bits alone, in a batch, or as a draft. What decides whether a draft is kept rests on this.

mod activations;
#[cfg(target_arch = "aarch64")]
mod arm;
mod portable;
mod unpack;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;
use std::thread::LocalKey;

use rayon::prelude::*;

use crate::model::matrix::{Matrix, Type, View};
use activations::{Floats, Narrow, Wide};

pub use unpack::read_row;

/// Columns of a panel.
const GROUP: usize = 16;

/// Panels side by side under one pass of the rows.
const PANELS: usize = 2;

/// Weights of a column under one scale.
const BLOCK: usize = 32;

/// Blocks of a panel of 16-bit integers.
const WIDE_BLOCKS: usize = 8;

/// Blocks of a panel of 8-bit integers.
const NARROW_BLOCKS: usize = 16;

/// Rows of a panel of floats; a partial sum ends there.
const FLOAT_DEPTH: usize = 256;

/// Columns at a time where there are no more than [`FEW`] rows.
const EIGHT: usize = 8;

/// Up to so many rows go without panels.
const FEW: usize = 4;

/// Multiplications worth a thread of their own.
const SHARE: usize = 1 << 18;

/// The instructions a product is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What the compiler makes of plain loops: any processor.
    Portable,
    /// NEON, which every 64-bit ARM processor has.
    Neon,
    /// NEON with dot products of bytes, from about Cortex-A55 and A76 on.
    NeonDot,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX2 with products of bytes, as small processors of Intel's have it.
    AvxVnni,
    /// AVX-512 with VNNI.
    Avx512,
}

impl Isa {
    /// Those of this processor, the slowest first.
    fn all() -> impl DoubleEndedIterator<Item = Self> {
        let all = [Self::Portable, Self::Neon, Self::NeonDot, Self::Avx2, Self::AvxVnni, Self::Avx512];
        all.into_iter().filter(|isa| isa.is_here())
    }

    /// The best of this processor, or the one that `PALISADE_ISA` names if it is there.
    pub fn detected() -> Self {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let best = Self::all().next_back().unwrap_or(Self::Portable);
            let Ok(asked) = std::env::var("PALISADE_ISA") else { return best };
            Self::all().find(|isa| isa.name() == asked).unwrap_or_else(|| {
                let here = Self::all().map(Self::name).collect::<Vec<_>>().join(", ");
                tracing::warn!(
                    "PALISADE_ISA is {asked:?}, which this processor does not have; must be one of {here}; using {}",
                    best.name()
                );
                best
            })
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_here(self) -> bool {
        let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
        };
        match self {
            Self::Portable => true,
            Self::Neon | Self::NeonDot => false,
            Self::Avx2 => avx2(),
            Self::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
            Self::Avx512 => avx2() && avx512(),
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_here(self) -> bool {
        match self {
            Self::Portable | Self::Neon => true,
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            Self::Avx2 | Self::AvxVnni | Self::Avx512 => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_here(self) -> bool {
        self == Self::Portable
    }

    /// Rows under one pass over a panel, for integers and for floats: as many as the registers can sum up.
    fn tile(self, integers: bool) -> usize {
        match (self, integers) {
            (Self::Portable, _) => 2,
            (Self::Avx2 | Self::Neon | Self::NeonDot, true) => 4,
            (Self::AvxVnni, true) | (Self::Avx2 | Self::AvxVnni, false) | (Self::Avx512, true) => 6,
            (Self::Avx512 | Self::Neon | Self::NeonDot, false) => 8,
        }
    }

    /// Whether so many rows are multiplied straight from the stored weights; each is a tile of its own then.
    fn goes_without_panels(self, rows: usize) -> bool {
        self != Self::Portable && rows <= FEW
    }
}

/// `y = x · matrixᵀ`: `x` is `[n, cols]`, `y` is `[n, rows]`. Shared among threads where that is worth it.
pub fn product(matrix: &Matrix, x: &[f32], y: &mut [f32]) {
    product_with(Isa::detected(), matrix.view(), x, y, rayon::current_num_threads());
}

/// As [`product`], on the calling thread alone.
pub fn product_here(matrix: View<'_>, x: &[f32], y: &mut [f32]) {
    product_with(Isa::detected(), matrix, x, y, 1);
}

fn product_with(isa: Isa, matrix: View<'_>, x: &[f32], y: &mut [f32], threads: usize) {
    let View { rows: columns, cols: depth, .. } = matrix;
    let rows = x.len() / depth.max(1);
    assert!(x.len() == rows * depth && y.len() == rows * columns, "the shapes of a product do not fit");
    if y.is_empty() {
        return;
    }
    let tile = |integers: bool| if isa.goes_without_panels(rows) { 1 } else { isa.tile(integers) };
    match matrix.ty {
        Type::Q8_0 | Type::Q6K => run(isa, matrix, &Wide::new(x, depth, tile(true)), y, threads),
        Type::Q4K => run(isa, matrix, &Narrow::new(x, depth, tile(true)), y, threads),
        Type::F32 | Type::F16 | Type::Bf16 => run(isa, matrix, &Floats::new(x, depth, tile(false)), y, threads),
    }
}

/// A form that activations take, with the panels it is multiplied with.
trait Form: Sync {
    /// Unpacked weights of [`GROUP`] columns.
    type Panel: 'static;

    /// Steps of depth (blocks, or single rows) of a panel.
    const STEPS: usize;

    /// Steps of depth in all.
    fn steps(&self) -> usize;

    /// Rows in all.
    fn rows(&self) -> usize;

    /// Rows under one pass.
    fn tile(&self) -> usize;

    /// Where this thread unpacks to: made once, for panels are as large as a cache.
    fn panels() -> &'static LocalKey<RefCell<Box<[Self::Panel]>>>;

    /// Columns `columns` (at most [`GROUP`]) and steps `steps` of a matrix into a panel; columns that are not there
    /// become zeros.
    fn unpack(isa: Isa, matrix: View<'_>, columns: Range<usize>, steps: Range<usize>, panel: &mut Self::Panel);

    /// Adds the products of rows from `row` on with the panels to `sums`, one entry per row of the tile.
    fn multiply(&self, isa: Isa, panels: &[Self::Panel], row: usize, steps: Range<usize>, sums: &mut [Sums]);

    /// The products of all rows, each a tile of its own, with [`EIGHT`] columns from `column` on.
    fn multiply_few(&self, isa: Isa, matrix: View<'_>, column: usize, out: &mut [[f32; EIGHT]]);
}

/// Sums of one row over the panels of a pass.
type Sums = [f32; GROUP * PANELS];

fn run<F: Form>(isa: Isa, matrix: View<'_>, x: &F, y: &mut [f32], threads: usize) {
    let View { rows: columns, cols: depth, .. } = matrix;
    let out = Out { values: y.as_mut_ptr(), columns };
    let work = |part: Range<usize>| {
        // What is less than eight columns at the end goes by a panel all the same.
        let left = if isa.goes_without_panels(x.rows()) { pass_few(isa, matrix, x, out, part) } else { part };
        F::panels().with_borrow_mut(|panels| SUMS.with_borrow_mut(|sums| pass(isa, matrix, x, (panels, sums), out, left)));
    };
    let threads = (x.rows() * columns * depth / SHARE).clamp(1, threads);
    if threads == 1 {
        return work(0..columns);
    }
    // Some parts more than threads, so that one that is held up does not hold up all.
    let part = columns.div_ceil(threads * 4).next_multiple_of(GROUP * PANELS);
    (0..columns.div_ceil(part)).into_par_iter().for_each(|at| work(at * part..((at + 1) * part).min(columns)));
}

thread_local! {
    static SUMS: RefCell<Vec<Sums>> = const { RefCell::new(Vec::new()) };
}

/// Columns `part` of the result.
fn pass<F: Form>(isa: Isa, matrix: View<'_>, x: &F, (panels, sums): (&mut [F::Panel], &mut Vec<Sums>), out: Out, part: Range<usize>) {
    for column in part.clone().step_by(GROUP * PANELS) {
        let width = (part.end - column).min(GROUP * PANELS);
        let used = width.div_ceil(GROUP);
        sums.clear();
        sums.resize(x.rows(), [0.0; GROUP * PANELS]);
        for start in (0..x.steps()).step_by(F::STEPS) {
            let steps = start..x.steps().min(start + F::STEPS);
            for (at, panel) in panels[..used].iter_mut().enumerate() {
                let from = column + at * GROUP;
                F::unpack(isa, matrix, from..part.end.min(from + GROUP), steps.clone(), panel);
            }
            for (at, sums) in sums.chunks_mut(x.tile()).enumerate() {
                x.multiply(isa, &panels[..used], at * x.tile(), steps.clone(), sums);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            out.put(row, column, &sums[..width]);
        }
    }
}

/// Columns `part` of the result for a few rows, as many as go by eight; gives those that are left.
fn pass_few<F: Form>(isa: Isa, matrix: View<'_>, x: &F, out: Out, part: Range<usize>) -> Range<usize> {
    let end = part.start + part.len() / EIGHT * EIGHT;
    let mut sums = [[0.0; EIGHT]; FEW];
    let sums = &mut sums[..x.rows()];
    for column in (part.start..end).step_by(EIGHT) {
        x.multiply_few(isa, matrix, column, sums);
        sums.iter().enumerate().for_each(|(row, sums)| out.put(row, column, sums));
    }
    end..part.end
}

/// The result, which threads fill in columns of their own.
#[derive(Clone, Copy)]
struct Out {
    values: *mut f32,
    columns: usize,
}

// SAFETY: every thread writes columns that no other thread writes, and none reads.
#[allow(unsafe_code)]
unsafe impl Send for Out {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Out {}

impl Out {
    #[allow(unsafe_code)]
    fn put(self, row: usize, column: usize, sums: &[f32]) {
        // SAFETY: `product_with` has checked that the result holds all rows and columns, `pass` stays within its own
        // columns, and the borrow behind the pointer outlives the threads.
        let target = unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.columns + column), sums.len()) };
        target.copy_from_slice(sums);
    }
}

/// Weights as 16-bit integers: per block and pair of rows, sixteen columns of two values; and what an integer counts.
#[repr(C, align(64))]
struct WidePanel {
    values: [[[[i16; 2]; GROUP]; BLOCK / 2]; WIDE_BLOCKS],
    scales: [[f32; GROUP]; WIDE_BLOCKS],
}

impl WidePanel {
    fn new() -> Self {
        Self { values: [[[[0; 2]; GROUP]; BLOCK / 2]; WIDE_BLOCKS], scales: [[0.0; GROUP]; WIDE_BLOCKS] }
    }
}

/// Weights as unsigned 8-bit integers of at most four bits: per block and four rows, sixteen columns of four
/// values; what an integer counts, and what is taken off each weight.
#[repr(C, align(64))]
struct NarrowPanel {
    values: [[[[u8; 4]; GROUP]; BLOCK / 4]; NARROW_BLOCKS],
    scales: [[f32; GROUP]; NARROW_BLOCKS],
    mins: [[f32; GROUP]; NARROW_BLOCKS],
}

impl NarrowPanel {
    fn new() -> Self {
        Self {
            values: [[[[0; 4]; GROUP]; BLOCK / 4]; NARROW_BLOCKS],
            scales: [[0.0; GROUP]; NARROW_BLOCKS],
            mins: [[0.0; GROUP]; NARROW_BLOCKS],
        }
    }
}

/// Weights as floats: rows of sixteen columns.
#[repr(C, align(64))]
struct FloatPanel([[f32; GROUP]; FLOAT_DEPTH]);

impl FloatPanel {
    fn new() -> Self {
        Self([[0.0; GROUP]; FLOAT_DEPTH])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::model::matrix::Bytes;

    const TYPES: [Type; 6] = [Type::F32, Type::F16, Type::Bf16, Type::Q8_0, Type::Q6K, Type::Q4K];

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn matrix(ty: Type, rows: usize, cols: usize) -> Matrix {
        let values = numbers(rows * cols, 7);
        let bytes: Vec<u8> = match ty {
            Type::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Type::F16 => values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
            Type::Bf16 => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
            _ => {
                let padded = cols.next_multiple_of(ty.block());
                let mut all = Vec::new();
                for row in values.chunks(cols) {
                    all.extend_from_slice(row);
                    all.resize(all.len() + padded - cols, 0.0);
                }
                let ggml = match ty {
                    Type::Q8_0 => GgmlDType::Q8_0,
                    Type::Q6K => GgmlDType::Q6K,
                    _ => GgmlDType::Q4K,
                };
                let tensor = Tensor::from_vec(all, (rows, padded), &Device::Cpu).unwrap();
                QTensor::quantize(&tensor, ggml).unwrap().data().unwrap().into_owned()
            }
        };
        Matrix::new(ty, rows, cols, Bytes::Owned(Arc::new(bytes))).unwrap()
    }

    /// The product in double precision over the weights as they are stored.
    fn plain(matrix: &Matrix, x: &[f32]) -> Vec<f32> {
        let [rows, cols] = matrix.shape();
        let mut row = vec![0.0; cols];
        let mut y = vec![0.0; x.len() / cols * rows];
        for at in 0..rows {
            matrix.read_row(at, &mut row);
            for (n, x) in x.chunks(cols).enumerate() {
                y[n * rows + at] = x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32;
            }
        }
        y
    }

    /// Activations as the integer products see them.
    fn rounded(x: &[f32], cols: usize, ty: Type) -> Vec<f32> {
        let top = match ty {
            Type::Q8_0 | Type::Q6K => 16_383.0,
            Type::Q4K => 127.0,
            _ => return x.to_vec(),
        };
        let block = |block: &[f32]| {
            let scale = block.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / top;
            block.iter().map(|x| (x / scale).round_ties_even() * scale).collect::<Vec<_>>()
        };
        x.chunks(cols).flat_map(|row| row.chunks(BLOCK).flat_map(block)).collect()
    }

    #[test]
    fn every_type_and_instruction_set_agrees_with_the_plain_product() {
        for ty in TYPES {
            for (n, rows, cols) in
                [(1, 16, 32), (3, 33, 40), (9, 50, 600), (13, 97, 1152), (2, 5, 1), (7, 64, 1030), (2, 40, 1030), (4, 43, 1152)]
            {
                let (matrix, x) = (matrix(ty, rows, cols), numbers(n * cols, 3));
                let expected = plain(&matrix, &rounded(&x, cols, ty));
                for isa in Isa::all() {
                    let mut y = vec![f32::NAN; n * rows];
                    product_with(isa, matrix.view(), &x, &mut y, 2);
                    let apart = y.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(apart <= 1e-5 * (cols as f32).sqrt(), "{ty:?} {isa:?} [{n}, {cols}] x [{rows}, {cols}]: {apart}");
                }
            }
        }
    }

    #[test]
    fn a_row_gives_the_same_bits_alone_and_among_others() {
        let (n, rows, cols) = (23, 150, 1200);
        for ty in TYPES {
            let (matrix, x) = (matrix(ty, rows, cols), numbers(n * cols, 5));
            for isa in Isa::all() {
                let mut together = vec![0.0; n * rows];
                product_with(isa, matrix.view(), &x, &mut together, 2);
                for some in 1..=FEW + 1 {
                    for (at, x) in x.chunks(some * cols).enumerate() {
                        let mut apart = vec![0.0; x.len() / cols * rows];
                        product_with(isa, matrix.view(), x, &mut apart, 1);
                        let same = apart.iter().zip(&together[at * some * rows..]).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{ty:?} {isa:?}, {some} rows from {}", at * some);
                    }
                }
            }
        }
    }

    #[test]
    fn sums_of_the_largest_integers_fit() {
        let (rows, cols) = (16, 256);
        for (ty, block) in [
            (Type::Q8_0, [[0, 0x3c].as_slice(), &[0x80; 32]].concat()),
            (Type::Q6K, [[0; 192].as_slice(), &[0x80; 16], &[0, 0x3c]].concat()),
            (Type::Q4K, [[0, 0x3c, 0, 0].as_slice(), &[0xff; 140]].concat()),
        ] {
            let matrix = Matrix::new(ty, rows, cols, Bytes::Owned(Arc::new(block.repeat(rows * cols / ty.block())))).unwrap();
            for (n, value) in [(1, 1.0), (1, -1.0), (9, 1.0), (9, -1.0)] {
                let x = vec![value; n * cols];
                let expected = plain(&matrix, &x);
                for isa in Isa::all() {
                    let mut y = vec![0.0; n * rows];
                    product_with(isa, matrix.view(), &x, &mut y, 1);
                    assert!(y.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs()), "{ty:?} {isa:?}: {y:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for ty in TYPES {
            let matrix = matrix(ty, 20, 64);
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = numbers(128, 1);
                x[70..74].fill(bad);
                for isa in Isa::all() {
                    let mut y = vec![0.0; 40];
                    product_with(isa, matrix.view(), &x, &mut y, 2);
                    assert!(y[..20].iter().all(|y| y.is_finite()) && y[20..].iter().all(|y| !y.is_finite()), "{ty:?} {isa:?}");
                }
            }
        }
    }
}
