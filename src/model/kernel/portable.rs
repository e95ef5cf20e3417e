//! The inner loops for any processor, written so that a compiler can turn them into vector code.

use std::ops::Range;

use crate::model::kernel::activations::Rounded;
use crate::model::kernel::{BLOCK, FloatPanel, GROUP, IntPanel, Strided, Sums};

/// Sums of integer products over `blocks` blocks of rows `rows`.
pub fn integers(panels: &[IntPanel], x: &Rounded, rows: Range<usize>, blocks: Range<usize>, sums: &mut Sums) {
    for (row, sums) in rows.zip(sums) {
        for (at, block) in blocks.clone().enumerate() {
            let (values, _) = x.row(row, block)[..BLOCK].as_chunks::<2>();
            let (scale, sum) = (x.scales[row * x.blocks + block], x.sums.get(row * x.blocks + block));
            for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(GROUP)) {
                let mut whole = [0_i32; GROUP];
                for (weights, &[a, b]) in panel.values[at].iter().zip(values) {
                    let (a, b) = (i32::from(a), i32::from(b));
                    for (whole, &[first, second]) in whole.iter_mut().zip(weights) {
                        *whole += i32::from(first) * a + i32::from(second) * b;
                    }
                }
                for column in 0..GROUP {
                    sums[column] = (whole[column] as f32).mul_add(panel.scales[at][column] * scale, sums[column]);
                    if let Some(sum) = sum {
                        sums[column] = (-panel.mins[at][column]).mul_add(*sum, sums[column]);
                    }
                }
            }
        }
    }
}

/// Sums of float products over the first `depth` rows of the panels.
pub fn floats(panels: &[FloatPanel], x: Strided<'_>, depth: usize, sums: &mut Sums) {
    for (row, sums) in (0..x.rows).zip(sums) {
        let x = &x.values[row * x.stride..][..depth];
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(GROUP)) {
            for (x, weights) in x.iter().zip(&panel.0) {
                sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum = x.mul_add(*weight, *sum));
            }
        }
    }
}
