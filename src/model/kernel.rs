//! Matrix products on the processor: activations in 32-bit floats times weights as they are stored.
//!
//! Weights are unpacked sixteen columns and some hundred rows at a time into a *panel* that fits the first-level cache,
//! and all rows of activations go over it before the next is unpacked, so that a stored type costs its unpacking once a
//! product. Quantised weights meet activations rounded to 15 bits with a scale per 32 of a row: products of 16-bit
//! integers, exact sums in 32 bits, scaled and added up as floats.
//!
//! The order in which an element is summed up depends on the matrix alone, never on how many rows or threads take part:
//! a row gives the same bits alone, in a batch, or as a draft. What decides whether an answer is kept rests on this.

mod activations;
mod portable;
mod unpack;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use crate::model::matrix::{Matrix, Type};
use activations::Rounded;

pub use unpack::read_row;

/// Columns of a panel.
const GROUP: usize = 16;

/// Weights of a column under one scale.
const BLOCK: usize = 32;

/// Rows of a panel of integers; a partial sum in floats ends there.
const DEPTH: usize = 512;

/// Rows of a panel of floats; a partial sum ends there.
const FLOAT_DEPTH: usize = 256;

/// Panels side by side under one pass of the rows, at most.
const PANELS: usize = 2;

/// Rows under one pass, at most.
const TILE: usize = 8;

/// Multiplications worth a thread of their own.
const SHARE: usize = 1 << 18;

/// The instructions a product is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What the compiler makes of plain loops: any processor, NEON on 64-bit ARM.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 with VNNI.
    Avx512,
}

impl Isa {
    /// The best of this processor, or what `PALISADE_ISA` (`portable`, `avx2`, `avx512`) asks for where that is less.
    pub fn detected() -> Self {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let best = Self::best();
            match std::env::var("PALISADE_ISA").as_deref() {
                Ok("portable") => Self::Portable,
                Ok("avx2") if best == Self::Avx512 => Self::Avx2,
                _ => best,
            }
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn best() -> Self {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = ["avx512f", "avx512bw", "avx512vl", "avx512vnni"];
        let _ = avx512;
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        match (avx2, avx512) {
            (true, true) => Self::Avx512,
            (true, false) => Self::Avx2,
            _ => Self::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn best() -> Self {
        Self::Portable
    }
}

/// `y = x · matrixᵀ`: `x` is `[n, cols]`, `y` is `[n, rows]`.
pub fn product(matrix: &Matrix, x: &[f32], y: &mut [f32]) {
    product_with(Isa::detected(), matrix, x, y);
}

fn product_with(isa: Isa, matrix: &Matrix, x: &[f32], y: &mut [f32]) {
    let [columns, depth] = matrix.shape();
    let rows = x.len() / depth.max(1);
    assert!(x.len() == rows * depth && y.len() == rows * columns, "the shapes of a product do not fit");
    if y.is_empty() {
        return;
    }
    let rounded = matrix.ty().is_quantised().then(|| Rounded::new(x, depth, matrix.ty()));
    let out = Out { values: y.as_mut_ptr(), columns };
    let work = |part: Range<usize>| match &rounded {
        Some(rounded) => integers(isa, matrix, rounded, out, part),
        None => floats(isa, matrix, x, out, part),
    };
    let threads = (rows * columns * depth / SHARE).clamp(1, rayon::current_num_threads());
    if threads == 1 {
        return work(0..columns);
    }
    // Some parts more than threads, so that one that is held up does not hold up all.
    let part = columns.div_ceil(threads * 4).next_multiple_of(GROUP * PANELS);
    (0..columns.div_ceil(part)).into_par_iter().for_each(|at| work(at * part..((at + 1) * part).min(columns)));
}

/// The result, which threads fill in columns of their own.
#[derive(Clone, Copy)]
struct Out {
    values: *mut f32,
    columns: usize,
}

// SAFETY: every thread writes columns that no other thread writes, and reads none but its own.
#[allow(unsafe_code)]
unsafe impl Send for Out {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Out {}

/// Sums of one pass: up to [`TILE`] rows by up to [`PANELS`] panels.
type Sums = [[f32; GROUP * PANELS]; TILE];

impl Out {
    /// Adds sums to rows from `row` and columns from `column`, or puts them there where they are the first.
    #[allow(unsafe_code)]
    fn add(self, sums: &[[f32; GROUP * PANELS]], row: usize, column: usize, width: usize, first: bool) {
        for (at, sums) in sums.iter().enumerate() {
            // SAFETY: `product_with` has checked that the result holds all rows and columns, callers stay within their
            // own columns, and the borrow behind the pointer outlives the threads.
            let target = unsafe { std::slice::from_raw_parts_mut(self.values.add((row + at) * self.columns + column), width) };
            if first {
                target.copy_from_slice(&sums[..width]);
            } else {
                target.iter_mut().zip(sums).for_each(|(target, sum)| *target += sum);
            }
        }
    }
}

/// Unpacked integers: per block of 32 rows and pair of rows, sixteen columns of two values.
#[repr(align(64))]
struct IntPanel {
    values: [[[[i16; 2]; GROUP]; BLOCK / 2]; DEPTH / BLOCK],
    /// What a value counts.
    scales: [[f32; GROUP]; DEPTH / BLOCK],
    /// What is taken off each weight.
    mins: [[f32; GROUP]; DEPTH / BLOCK],
}

/// Unpacked floats: rows of sixteen columns.
#[repr(align(64))]
struct FloatPanel([[f32; GROUP]; FLOAT_DEPTH]);

fn integers(isa: Isa, matrix: &Matrix, x: &Rounded, out: Out, columns: Range<usize>) {
    let blocks = matrix.shape()[1].div_ceil(BLOCK);
    let mut panels = int_panels();
    let tile = tile_of_integers(isa);
    for start in (0..blocks).step_by(DEPTH / BLOCK) {
        let chunk = start..blocks.min(start + DEPTH / BLOCK);
        for column in columns.clone().step_by(GROUP * PANELS) {
            let width = (columns.end - column).min(GROUP * PANELS);
            let used = width.div_ceil(GROUP);
            for (at, panel) in panels[..used].iter_mut().enumerate() {
                let from = column + at * GROUP;
                unpack::integers(isa, matrix, from..columns.end.min(from + GROUP), chunk.clone(), panel);
            }
            for row in (0..x.rows()).step_by(tile) {
                let rows = row..x.rows().min(row + tile);
                let mut sums: Sums = [[0.0; GROUP * PANELS]; TILE];
                multiply_integers(isa, &panels[..used], x, rows.clone(), chunk.clone(), &mut sums);
                out.add(&sums[..rows.len()], row, column, width, start == 0);
            }
        }
    }
}

fn floats(isa: Isa, matrix: &Matrix, x: &[f32], out: Out, columns: Range<usize>) {
    let depth = matrix.shape()[1];
    let rows = x.len() / depth;
    let mut panels = float_panels();
    let tile = tile_of_floats(isa);
    for start in (0..depth).step_by(FLOAT_DEPTH) {
        let chunk = start..depth.min(start + FLOAT_DEPTH);
        for column in columns.clone().step_by(GROUP * PANELS) {
            let width = (columns.end - column).min(GROUP * PANELS);
            let used = width.div_ceil(GROUP);
            for (at, panel) in panels[..used].iter_mut().enumerate() {
                let from = column + at * GROUP;
                unpack::floats(isa, matrix, from..columns.end.min(from + GROUP), chunk.clone(), panel);
            }
            for row in (0..rows).step_by(tile) {
                let taken = tile.min(rows - row);
                let mut sums: Sums = [[0.0; GROUP * PANELS]; TILE];
                let x = &x[row * depth + start..(row + taken - 1) * depth + chunk.end];
                multiply_floats(isa, &panels[..used], Strided { values: x, stride: depth, rows: taken }, chunk.len(), &mut sums);
                out.add(&sums[..taken], row, column, width, start == 0);
            }
        }
    }
}

/// Rows of a larger matrix.
#[derive(Clone, Copy)]
struct Strided<'a> {
    values: &'a [f32],
    stride: usize,
    rows: usize,
}

fn tile_of_integers(isa: Isa) -> usize {
    match isa {
        Isa::Portable => 2,
        Isa::Avx2 => 4,
        Isa::Avx512 => 6,
    }
}

fn tile_of_floats(isa: Isa) -> usize {
    match isa {
        Isa::Portable => 2,
        Isa::Avx2 => 6,
        Isa::Avx512 => 8,
    }
}

fn multiply_integers(isa: Isa, panels: &[IntPanel], x: &Rounded, rows: Range<usize>, blocks: Range<usize>, sums: &mut Sums) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::avx2_integers(panels, x, rows, blocks, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => x86::avx512_integers(panels, x, rows, blocks, sums),
        _ => portable::integers(panels, x, rows, blocks, sums),
    }
}

fn multiply_floats(isa: Isa, panels: &[FloatPanel], x: Strided<'_>, depth: usize, sums: &mut Sums) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::avx2_floats(panels, x, depth, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => x86::avx512_floats(panels, x, depth, sums),
        _ => portable::floats(panels, x, depth, sums),
    }
}

fn int_panels() -> Box<[IntPanel]> {
    let empty = || IntPanel {
        values: [[[[0; 2]; GROUP]; BLOCK / 2]; DEPTH / BLOCK],
        scales: [[0.0; GROUP]; DEPTH / BLOCK],
        mins: [[0.0; GROUP]; DEPTH / BLOCK],
    };
    (0..PANELS).map(|_| empty()).collect()
}

fn float_panels() -> Box<[FloatPanel]> {
    (0..PANELS).map(|_| FloatPanel([[0.0; GROUP]; FLOAT_DEPTH])).collect()
}
