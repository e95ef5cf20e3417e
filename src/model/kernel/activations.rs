//! Activations as the products take them: floats, or rounded to integers with a scale for each 32 of a row.
//!
//! Integers lie in the order in which they are read: tile after tile of a few rows, in a tile block after block, in a
//! block step after step of depth, and there row beside row.

use std::cell::RefCell;
use std::ops::Range;
use std::thread::LocalKey;

use rayon::prelude::*;

#[cfg(target_arch = "aarch64")]
use crate::model::kernel::arm;
#[cfg(target_arch = "x86_64")]
use crate::model::kernel::x86;
use crate::model::kernel::{
    BLOCK, EIGHT, FEW, FLOAT_DEPTH, FloatPanel, Form, Isa, NARROW_BLOCKS, NarrowPanel, PANELS, Sums, WIDE_BLOCKS, WidePanel, portable,
    unpack,
};
use crate::model::matrix::View;

/// The largest magnitude of a 16-bit activation: 32 products with weights of up to 4096 (a 6-bit integer times its 8-bit
/// scale) still fit into 32 bits.
const WIDE_TOP: f32 = 16_383.0;

/// The largest magnitude of an 8-bit activation.
const NARROW_TOP: f32 = 127.0;

/// Activations in 16-bit integers, for 8- and 6-bit weights. To the weights' precision they are exact.
pub struct Wide {
    shape: Shape,
    values: Vec<[i16; 2]>,
    /// What an integer counts.
    scales: Vec<f32>,
}

/// Activations in 8-bit integers, for 4-bit weights.
pub struct Narrow {
    shape: Shape,
    values: Vec<[i8; 4]>,
    scales: Vec<f32>,
    /// What the values of a block add up to; weights with a minimum need it.
    sums: Vec<f32>,
}

/// Activations as they are.
pub struct Floats<'a> {
    values: &'a [f32],
    depth: usize,
    tile: usize,
}

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    blocks: usize,
    tile: usize,
}

impl Shape {
    /// Rows of the tile that begins at `row`.
    fn tile_at(self, row: usize) -> usize {
        self.tile.min(self.rows - row)
    }

    /// Where scales of a tile's blocks are: `blocks.len()` times its rows.
    fn scales(self, row: usize, blocks: &Range<usize>) -> Range<usize> {
        let rows = self.tile_at(row);
        row * self.blocks + blocks.start * rows..row * self.blocks + blocks.end * rows
    }

    /// Where a tile's values are.
    fn values(self, row: usize, blocks: &Range<usize>) -> Range<usize> {
        let Range { start, end } = self.scales(row, blocks);
        start * BLOCK..end * BLOCK
    }

    /// Places for the values, some at a time, and for a number of each block.
    fn places<T: Copy + Default, const STEP: usize>(self) -> (Vec<[T; STEP]>, Vec<f32>) {
        let count = self.rows * self.blocks;
        (vec![[T::default(); STEP]; count * BLOCK / STEP], vec![0.0; count])
    }

    /// Tiles one by one, or on all threads where there are many rows: a tile of `x` with its places.
    fn each_tile<T: Send, const STEP: usize>(
        self,
        x: &[f32],
        depth: usize,
        (values, scales, sums): (&mut [[T; STEP]], &mut [f32], &mut [f32]),
        work: impl Fn(&[f32], &mut [[T; STEP]], &mut [f32], &mut [f32]) + Sync,
    ) {
        let per_tile = self.tile * self.blocks;
        if self.rows < 32 {
            let tiles = x.chunks(self.tile * depth).zip(values.chunks_mut(per_tile * BLOCK / STEP));
            let places = scales.chunks_mut(per_tile).zip(sums.chunks_mut(per_tile));
            tiles.zip(places).for_each(|((x, values), (scales, sums))| work(x, values, scales, sums));
        } else {
            let tiles = x.par_chunks(self.tile * depth).zip(values.par_chunks_mut(per_tile * BLOCK / STEP));
            let places = scales.par_chunks_mut(per_tile).zip(sums.par_chunks_mut(per_tile));
            tiles.zip(places).for_each(|((x, values), (scales, sums))| work(x, values, scales, sums));
        }
    }
}

/// Rounds up to a block of values; gives what an integer counts and the integers' sum.
fn round(x: &[f32], top: f32) -> ([i32; BLOCK], f32, i32) {
    // Adding this leaves the nearest whole number in the lowest bits; `as` would round towards zero.
    const ROUND: f32 = 12_582_912.0;
    let mut padded = [0.0; BLOCK];
    padded[..x.len()].copy_from_slice(x);
    let (mut most, mut poison) = ([0.0_f32; 8], [0.0_f32; 8]);
    for eight in padded.as_chunks::<8>().0 {
        for ((most, poison), x) in most.iter_mut().zip(&mut poison).zip(eight) {
            *most = if x.abs() > *most { x.abs() } else { *most };
            // Whatever is no number, or infinite, becomes NaN here and stays it.
            *poison += x * 0.0;
        }
    }
    let most = most.into_iter().fold(0.0, f32::max);
    let inverse = if most > 0.0 { top / most } else { 0.0 };
    let whole = padded.map(|x| (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32);
    (whole, most / top + poison.into_iter().sum::<f32>(), whole.iter().fold(0, |sum: i32, value| sum.wrapping_add(*value)))
}

impl Wide {
    /// Rounds `[rows, depth]`. A number that is none makes its block's scale NaN.
    pub fn new(x: &[f32], depth: usize, tile: usize) -> Self {
        let shape = Shape { rows: x.len() / depth, blocks: depth.div_ceil(BLOCK), tile };
        let (mut values, mut scales) = shape.places::<i16, 2>();
        let mut none = vec![0.0; scales.len()];
        shape.each_tile(x, depth, (&mut values, &mut scales, &mut none), |x, values, scales, _| {
            let rows = x.len() / depth;
            for (row, x) in x.chunks_exact(depth).enumerate() {
                for (block, x) in x.chunks(BLOCK).enumerate() {
                    let (whole, scale, _) = round(x, WIDE_TOP);
                    scales[block * rows + row] = scale;
                    let places = values[block * rows * BLOCK / 2..].chunks_exact_mut(rows);
                    for (place, &[a, b]) in places.zip(whole.as_chunks::<2>().0) {
                        place[row] = [a as i16, b as i16];
                    }
                }
            }
        });
        Self { shape, values, scales }
    }
}

impl Narrow {
    /// Rounds `[rows, depth]`. A number that is none makes its block's scale NaN.
    pub fn new(x: &[f32], depth: usize, tile: usize) -> Self {
        let shape = Shape { rows: x.len() / depth, blocks: depth.div_ceil(BLOCK), tile };
        let (mut values, mut scales) = shape.places::<i8, 4>();
        let mut sums = vec![0.0; scales.len()];
        shape.each_tile(x, depth, (&mut values, &mut scales, &mut sums), |x, values, scales, sums| {
            let rows = x.len() / depth;
            for (row, x) in x.chunks_exact(depth).enumerate() {
                for (block, x) in x.chunks(BLOCK).enumerate() {
                    let (whole, scale, sum) = round(x, NARROW_TOP);
                    scales[block * rows + row] = scale;
                    sums[block * rows + row] = sum as f32 * scale;
                    let places = values[block * rows * BLOCK / 4..].chunks_exact_mut(rows);
                    for (place, four) in places.zip(whole.as_chunks::<4>().0) {
                        place[row] = four.map(|value| value as i8);
                    }
                }
            }
        });
        Self { shape, values, scales, sums }
    }
}

impl<'a> Floats<'a> {
    /// `[rows, depth]`.
    pub fn new(values: &'a [f32], depth: usize, tile: usize) -> Self {
        Self { values, depth, tile }
    }
}

/// A tile of 16-bit activations over some blocks.
#[derive(Clone, Copy)]
pub struct WideTile<'a> {
    /// Per block and pair of depth, two values a row.
    pub values: &'a [[i16; 2]],
    /// Per block, one a row.
    pub scales: &'a [f32],
}

/// A tile of 8-bit activations over some blocks.
#[derive(Clone, Copy)]
pub struct NarrowTile<'a> {
    /// Per block and four of depth, four values a row.
    pub values: &'a [[i8; 4]],
    /// Per block, one a row.
    pub scales: &'a [f32],
    /// Per block, one a row.
    pub sums: &'a [f32],
}

/// Rows of a larger matrix.
#[derive(Clone, Copy)]
pub struct FloatTile<'a> {
    /// From the first row's first value to the last row's last.
    pub values: &'a [f32],
    /// From row to row.
    pub stride: usize,
    /// Values of a row.
    pub depth: usize,
}

impl Wide {
    fn tile_of(&self, row: usize, steps: &Range<usize>) -> WideTile<'_> {
        let (values, scales) = (self.shape.values(row, steps), self.shape.scales(row, steps));
        WideTile { values: &self.values[values.start / 2..values.end / 2], scales: &self.scales[scales] }
    }
}

impl Narrow {
    fn tile_of(&self, row: usize, steps: &Range<usize>) -> NarrowTile<'_> {
        let (values, scales) = (self.shape.values(row, steps), self.shape.scales(row, steps));
        let values = &self.values[values.start / 4..values.end / 4];
        NarrowTile { values, scales: &self.scales[scales.clone()], sums: &self.sums[scales] }
    }
}

impl Floats<'_> {
    fn tile_of(&self, row: usize, rows: usize, steps: &Range<usize>) -> FloatTile<'_> {
        let values = &self.values[row * self.depth + steps.start..(row + rows - 1) * self.depth + steps.end];
        FloatTile { values, stride: self.depth, depth: steps.len() }
    }
}

/// One tile for each of a few rows.
fn few<T: Copy>(rows: usize, tile: impl Fn(usize) -> T, work: impl FnOnce(&[T])) {
    let tiles: [T; FEW] = std::array::from_fn(|row| tile(row.min(rows - 1)));
    work(&tiles[..rows]);
}

impl Form for Wide {
    type Panel = WidePanel;

    const STEPS: usize = WIDE_BLOCKS;

    fn rows(&self) -> usize {
        self.shape.rows
    }

    fn tile(&self) -> usize {
        self.shape.tile
    }

    fn steps(&self) -> usize {
        self.shape.blocks
    }

    fn panels() -> &'static LocalKey<RefCell<Box<[WidePanel]>>> {
        thread_local! {
            static HERE: RefCell<Box<[WidePanel]>> = RefCell::new((0..PANELS).map(|_| WidePanel::new()).collect());
        }
        &HERE
    }

    fn unpack(isa: Isa, matrix: View<'_>, columns: Range<usize>, steps: Range<usize>, panel: &mut WidePanel) {
        unpack::wide(isa, matrix, columns, steps, panel);
    }

    fn multiply(&self, isa: Isa, panels: &[WidePanel], row: usize, steps: Range<usize>, sums: &mut [Sums]) {
        let tile = self.tile_of(row, &steps);
        match isa {
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot => arm::wide(panels, tile, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::wide_256(panels, tile, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => x86::wide_vnni(panels, tile, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::wide_512(panels, tile, sums),
            _ => portable::wide(panels, tile, sums),
        }
    }

    fn multiply_few(&self, isa: Isa, matrix: View<'_>, column: usize, out: &mut [[f32; EIGHT]]) {
        few(
            self.rows(),
            |row| self.tile_of(row, &(0..self.steps())),
            |tiles| match isa {
                #[cfg(target_arch = "aarch64")]
                Isa::Neon | Isa::NeonDot => arm::few::wide(matrix, column, tiles, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => x86::few::wide(matrix, column, tiles, out),
                _ => unreachable!("{} goes by panels", isa.name()),
            },
        );
    }
}

impl Form for Narrow {
    type Panel = NarrowPanel;

    const STEPS: usize = NARROW_BLOCKS;

    fn rows(&self) -> usize {
        self.shape.rows
    }

    fn tile(&self) -> usize {
        self.shape.tile
    }

    fn steps(&self) -> usize {
        self.shape.blocks
    }

    fn panels() -> &'static LocalKey<RefCell<Box<[NarrowPanel]>>> {
        thread_local! {
            static HERE: RefCell<Box<[NarrowPanel]>> = RefCell::new((0..PANELS).map(|_| NarrowPanel::new()).collect());
        }
        &HERE
    }

    fn unpack(isa: Isa, matrix: View<'_>, columns: Range<usize>, steps: Range<usize>, panel: &mut NarrowPanel) {
        unpack::narrow(isa, matrix, columns, steps, panel);
    }

    fn multiply(&self, isa: Isa, panels: &[NarrowPanel], row: usize, steps: Range<usize>, sums: &mut [Sums]) {
        let tile = self.tile_of(row, &steps);
        match isa {
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => arm::narrow(panels, tile, sums),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => arm::narrow_dot(panels, tile, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::narrow_256(panels, tile, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => x86::narrow_vnni(panels, tile, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::narrow_512(panels, tile, sums),
            _ => portable::narrow(panels, tile, sums),
        }
    }

    fn multiply_few(&self, isa: Isa, matrix: View<'_>, column: usize, out: &mut [[f32; EIGHT]]) {
        few(
            self.rows(),
            |row| self.tile_of(row, &(0..self.steps())),
            |tiles| match isa {
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => arm::few::narrow(matrix, column, tiles, out),
                #[cfg(target_arch = "aarch64")]
                Isa::NeonDot => arm::few::narrow_dot(matrix, column, tiles, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => x86::few::narrow(matrix, column, tiles, out),
                _ => unreachable!("{} goes by panels", isa.name()),
            },
        );
    }
}

impl Form for Floats<'_> {
    type Panel = FloatPanel;

    const STEPS: usize = FLOAT_DEPTH;

    fn rows(&self) -> usize {
        self.values.len() / self.depth
    }

    fn tile(&self) -> usize {
        self.tile
    }

    fn steps(&self) -> usize {
        self.depth
    }

    fn panels() -> &'static LocalKey<RefCell<Box<[FloatPanel]>>> {
        thread_local! {
            static HERE: RefCell<Box<[FloatPanel]>> = RefCell::new((0..PANELS).map(|_| FloatPanel::new()).collect());
        }
        &HERE
    }

    fn unpack(isa: Isa, matrix: View<'_>, columns: Range<usize>, steps: Range<usize>, panel: &mut FloatPanel) {
        unpack::floats(isa, matrix, columns, steps, panel);
    }

    fn multiply(&self, isa: Isa, panels: &[FloatPanel], row: usize, steps: Range<usize>, sums: &mut [Sums]) {
        let tile = self.tile_of(row, sums.len(), &steps);
        match isa {
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot => arm::floats(panels, tile, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => x86::floats_256(panels, tile, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::floats_512(panels, tile, sums),
            _ => portable::floats(panels, tile, sums),
        }
    }

    fn multiply_few(&self, isa: Isa, matrix: View<'_>, column: usize, out: &mut [[f32; EIGHT]]) {
        few(
            self.rows(),
            |row| self.tile_of(row, 1, &(0..self.depth)),
            |tiles| match isa {
                #[cfg(target_arch = "aarch64")]
                Isa::Neon | Isa::NeonDot => arm::few::floats(matrix, column, tiles, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => x86::few::floats(matrix, column, tiles, out),
                _ => unreachable!("{} goes by panels", isa.name()),
            },
        );
    }
}
