//! The inner loops for any processor, written so that a compiler can turn them into vector code.

use crate::model::kernel::activations::{FloatTile, NarrowTile, WideTile};
use crate::model::kernel::{BLOCK, FloatPanel, GROUP, NarrowPanel, Sums, WidePanel};

/// Adds products of 16-bit integers to `sums`, an entry per row of the tile.
pub fn wide(panels: &[WidePanel], tile: WideTile<'_>, sums: &mut [Sums]) {
    let rows = sums.len();
    for (row, sums) in sums.iter_mut().enumerate() {
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(GROUP)) {
            let mut total = [0.0_f32; GROUP];
            for (at, values) in tile.values.chunks_exact(rows * BLOCK / 2).enumerate() {
                let mut whole = [0_i32; GROUP];
                for (weights, values) in panel.values[at].iter().zip(values.chunks_exact(rows)) {
                    let [a, b] = values[row].map(i32::from);
                    for (whole, &[first, second]) in whole.iter_mut().zip(weights) {
                        *whole += i32::from(first) * a + i32::from(second) * b;
                    }
                }
                let scale = tile.scales[at * rows + row];
                for column in 0..GROUP {
                    total[column] = fused(whole[column] as f32, panel.scales[at][column] * scale, total[column]);
                }
            }
            sums.iter_mut().zip(total).for_each(|(sum, total)| *sum += total);
        }
    }
}

/// Adds products of 8-bit integers to `sums`, an entry per row of the tile.
pub fn narrow(panels: &[NarrowPanel], tile: NarrowTile<'_>, sums: &mut [Sums]) {
    let rows = sums.len();
    for (row, sums) in sums.iter_mut().enumerate() {
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(GROUP)) {
            let mut total = [0.0_f32; GROUP];
            for (at, values) in tile.values.chunks_exact(rows * BLOCK / 4).enumerate() {
                let mut whole = [0_i32; GROUP];
                for (weights, values) in panel.values[at].iter().zip(values.chunks_exact(rows)) {
                    let four = values[row].map(i32::from);
                    for (whole, weights) in whole.iter_mut().zip(weights) {
                        *whole += weights.iter().zip(four).map(|(&weight, x)| i32::from(weight) * x).sum::<i32>();
                    }
                }
                let (scale, sum) = (tile.scales[at * rows + row], tile.sums[at * rows + row]);
                for column in 0..GROUP {
                    total[column] = fused(whole[column] as f32, panel.scales[at][column] * scale, total[column]);
                    total[column] = fused(-panel.mins[at][column], sum, total[column]);
                }
            }
            sums.iter_mut().zip(total).for_each(|(sum, total)| *sum += total);
        }
    }
}

/// Adds products of floats to `sums`, an entry per row of the tile.
pub fn floats(panels: &[FloatPanel], tile: FloatTile<'_>, sums: &mut [Sums]) {
    for (row, sums) in sums.iter_mut().enumerate() {
        let x = &tile.values[row * tile.stride..][..tile.depth];
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(GROUP)) {
            let mut total = [0.0_f32; GROUP];
            for (x, weights) in x.iter().zip(&panel.0) {
                total.iter_mut().zip(weights).for_each(|(total, weight)| *total = fused(*x, *weight, *total));
            }
            sums.iter_mut().zip(total).for_each(|(sum, total)| *sum += total);
        }
    }
}

/// `a * b + c`, rounded once where the processor can do that in one instruction: elsewhere a call would take its place.
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}
