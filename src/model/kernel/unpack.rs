//! Stored weights to panels. The block types are read as `ggml-quants.c` lays them out.

use std::ops::Range;

use half::{bf16, f16};

#[cfg(target_arch = "aarch64")]
use crate::model::kernel::arm as native;
#[cfg(target_arch = "x86_64")]
use crate::model::kernel::x86 as native;
use crate::model::kernel::{BLOCK, FloatPanel, GROUP, Isa, NARROW_BLOCKS, NarrowPanel, PANELS, WIDE_BLOCKS, WidePanel};
use crate::model::matrix::{Type, View};

/// Blocks of 32 in a block of the k-types.
pub const PER_SUPER: usize = 8;

// A panel begins with a block of the k-types and has room for all of its last one.
const _: () = assert!(WIDE_BLOCKS == PER_SUPER && NARROW_BLOCKS.is_multiple_of(PER_SUPER));

/// Bytes of a block.
pub const Q8_0: usize = Type::Q8_0.block_bytes();

/// As [`Q8_0`].
pub const Q6K: usize = Type::Q6K.block_bytes();

/// As [`Q8_0`].
pub const Q4K: usize = Type::Q4K.block_bytes();

/// Thirty-two weights: `weight = value * scale - min`.
pub struct Block {
    /// The integers.
    pub values: [i16; BLOCK],
    /// What an integer counts.
    pub scale: f32,
    /// What is taken off.
    pub min: f32,
}

/// Columns `columns` (at most [`GROUP`]) of blocks `blocks` into a panel; columns that are not there become zeros.
pub fn wide(isa: Isa, matrix: View<'_>, columns: Range<usize>, blocks: Range<usize>, panel: &mut WidePanel) {
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    if isa != Isa::Portable && columns.len() == GROUP {
        return native::unpack_wide(matrix, columns.start, blocks, panel);
    }
    let _ = isa;
    for (at, block) in blocks.enumerate() {
        for column in 0..GROUP {
            let Block { values, scale, .. } = read_column(matrix, &columns, column, block);
            panel.scales[at][column] = scale;
            for (target, pair) in panel.values[at].iter_mut().zip(values.as_chunks::<2>().0) {
                target[column] = *pair;
            }
        }
    }
}

/// As [`wide`], for types whose integers have four bits.
pub fn narrow(isa: Isa, matrix: View<'_>, columns: Range<usize>, blocks: Range<usize>, panel: &mut NarrowPanel) {
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    if isa != Isa::Portable && columns.len() == GROUP {
        return native::unpack_narrow(matrix, columns.start, blocks, panel);
    }
    let _ = isa;
    for (at, block) in blocks.enumerate() {
        for column in 0..GROUP {
            let Block { values, scale, min } = read_column(matrix, &columns, column, block);
            panel.scales[at][column] = scale;
            panel.mins[at][column] = min;
            for (target, four) in panel.values[at].iter_mut().zip(values.as_chunks::<4>().0) {
                target[column] = four.map(|value| value as u8);
            }
        }
    }
}

fn read_column(matrix: View<'_>, columns: &Range<usize>, column: usize, block: usize) -> Block {
    let row = columns.start + column;
    if row < columns.end { read_block(matrix.ty, matrix.row_bytes(row), block) } else { Block { values: [0; BLOCK], scale: 0.0, min: 0.0 } }
}

/// Columns `columns` (at most [`GROUP`]) of rows `depth` into a panel; columns that are not there become zeros.
pub fn floats(isa: Isa, matrix: View<'_>, columns: Range<usize>, depth: Range<usize>, panel: &mut FloatPanel) {
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    if isa != Isa::Portable && columns.len() == GROUP {
        return native::unpack_floats(matrix, columns.start, depth, panel);
    }
    let _ = isa;
    for column in 0..GROUP {
        let row = columns.start + column;
        let bytes = if row < columns.end { matrix.row_bytes(row) } else { &[] };
        for (at, from) in depth.clone().enumerate() {
            panel.0[at][column] = read_float(matrix.ty, bytes, from);
        }
    }
}

/// From a panel's columns to those of the next pass, in bytes.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub fn pass(matrix: &View<'_>) -> usize {
    matrix.stride * GROUP * PANELS
}

/// One stored float; zero past the end.
pub fn read_float(ty: Type, bytes: &[u8], at: usize) -> f32 {
    let size = ty.block_bytes();
    match bytes.get(at * size..(at + 1) * size) {
        Some(&[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        Some(&[a, b]) if ty == Type::F16 => f16::from_le_bytes([a, b]).to_f32(),
        Some(&[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        _ => 0.0,
    }
}

/// A row of quantised weights as floats.
pub fn read_row(ty: Type, bytes: &[u8], out: &mut [f32]) {
    for (at, out) in out.chunks_mut(BLOCK).enumerate() {
        let Block { values, scale, min } = read_block(ty, bytes, at);
        out.iter_mut().zip(values).for_each(|(out, value)| *out = f32::from(value) * scale - min);
    }
}

/// Block `at` of 32 of a row.
pub fn read_block(ty: Type, row: &[u8], at: usize) -> Block {
    let mut values = [0; BLOCK];
    match ty {
        Type::Q6K => {
            let bytes = &row[at / PER_SUPER * Q6K..][..Q6K];
            let (half, quarter) = (at % PER_SUPER / 4, at % 4);
            let (low, high) = (&bytes[half * 64 + quarter % 2 * 32..][..32], &bytes[128 + half * 32..][..32]);
            for (i, value) in values.iter_mut().enumerate() {
                let nibble = if quarter < 2 { low[i] & 15 } else { low[i] >> 4 };
                let bits = nibble | (high[i] >> (2 * quarter) & 3) << 4;
                // The scale of each sixteen is a whole number too.
                let scale = bytes[192 + half * 8 + quarter * 2 + i / 16] as i8;
                *value = (i16::from(bits) - 32) * i16::from(scale);
            }
            Block { values, scale: read_f16(&bytes[208..]), min: 0.0 }
        }
        Type::Q4K => {
            let bytes = &row[at / PER_SUPER * Q4K..][..Q4K];
            let sub = at % PER_SUPER;
            let (scale, min) = scale_and_min(&bytes[4..16], sub);
            for (value, byte) in values.iter_mut().zip(&bytes[16 + sub / 2 * 32..]) {
                *value = i16::from(if sub.is_multiple_of(2) { byte & 15 } else { byte >> 4 });
            }
            Block { values, scale: read_f16(bytes) * f32::from(scale), min: read_f16(&bytes[2..]) * f32::from(min) }
        }
        _ => {
            let bytes = &row[at * Q8_0..][..Q8_0];
            values.iter_mut().zip(&bytes[2..]).for_each(|(value, byte)| *value = i16::from(*byte as i8));
            Block { values, scale: read_f16(bytes), min: 0.0 }
        }
    }
}

/// The 6-bit scale and minimum of sub-block `sub` of eight, from twelve bytes.
pub fn scale_and_min(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let low = packed[sub + 4];
        ((low & 15) | (packed[sub - 4] >> 6) << 4, (low >> 4) | (packed[sub] >> 6) << 4)
    }
}

fn read_f16(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}
