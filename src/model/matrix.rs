//! A weight matrix in the processor's memory, in the type it is stored in: what the products of [`super::kernel`] read.
//!
//! Block types are those of ggml: [`Type::Q8_0`] has a scale for each 32 weights of a row, the k-types have blocks of 256
//! with scales of their own within (`ggml-quants.c`, and the GGUF files that hold them).

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;

use crate::base::{Error, Kind, Result};
use crate::model::kernel;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit integers in blocks of 32.
    Q8_0,
    /// 6-bit integers in blocks of 256.
    Q6K,
    /// 4-bit integers in blocks of 256.
    Q4K,
}

impl Type {
    /// Weights in a block.
    pub const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 => 32,
            Self::Q6K | Self::Q4K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q6K => 210,
            Self::Q4K => 144,
        }
    }

    /// Bytes of a row of `cols` weights, the last block filled up with zeros.
    pub fn row_bytes(self, cols: usize) -> usize {
        cols.div_ceil(self.block()) * self.block_bytes()
    }

    /// Whether weights are integers with scales.
    pub fn is_quantised(self) -> bool {
        self.block() > 1
    }
}

/// Where a matrix's bytes are.
#[derive(Clone)]
pub enum Bytes {
    /// In memory of their own.
    Owned(Arc<Vec<u8>>),
    /// In a mapped file.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl Bytes {
    /// The bytes.
    pub fn get(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map, range) => &map[range.clone()],
        }
    }
}

/// `[rows, cols]`, row after row, as checkpoints hold a linear layer's `[out, in]`.
#[derive(Clone)]
pub struct Matrix {
    ty: Type,
    rows: usize,
    cols: usize,
    bytes: Bytes,
}

impl Matrix {
    /// A matrix over bytes that are there already.
    ///
    /// # Errors
    /// When there are not as many as type and shape need.
    pub fn new(ty: Type, rows: usize, cols: usize, bytes: Bytes) -> Result<Self> {
        let (got, needed) = (bytes.get().len(), rows * ty.row_bytes(cols));
        if got != needed {
            return Err(Error::new(Kind::Internal, format!("a {ty:?} matrix of shape [{rows}, {cols}] has {got} bytes; must be {needed}")));
        }
        Ok(Self { ty, rows, cols, bytes })
    }

    /// How the weights are stored.
    #[cfg(test)]
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// It all, to compute with.
    pub fn view(&self) -> View<'_> {
        View { ty: self.ty, rows: self.rows, cols: self.cols, stride: self.ty.row_bytes(self.cols), bytes: self.bytes.get() }
    }

    /// Row `row` as 32-bit floats, into `out` (`cols` values).
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let bytes = self.view().row_bytes(row);
        if self.ty.is_quantised() { kernel::read_row(self.ty, bytes, out) } else { read_floats(self.ty, bytes, out) }
    }

    /// `y = x · selfᵀ`: `x` is `[n, cols]`, `y` is `[n, rows]`. Each row of `y` depends on its row of `x` alone, to the
    /// bit, however many rows there are.
    pub fn product(&self, x: &[f32], y: &mut [f32]) {
        kernel::product(self, x, y);
    }
}

/// A matrix whose rows need not follow each other closely.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// How the numbers are stored.
    pub ty: Type,
    /// Rows.
    pub rows: usize,
    /// Numbers of a row.
    pub cols: usize,
    /// Bytes from row to row.
    pub stride: usize,
    /// From the first row's first byte on.
    pub bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// `rows` rows of `cols` floats, `stride` floats apart.
    pub fn of_floats(values: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self { ty: Type::F32, rows, cols, stride: 4 * stride, bytes: as_bytes(values) }
    }

    /// The bytes of row `row`.
    pub fn row_bytes(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.ty.row_bytes(self.cols)]
    }
}

#[allow(unsafe_code)]
fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: floats have no padding, and a byte has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Stored floats of a type that is not quantised.
pub fn read_floats(ty: Type, bytes: &[u8], out: &mut [f32]) {
    match ty {
        Type::F16 => each(bytes, out, |two| f16::from_le_bytes(two).to_f32()),
        Type::Bf16 => each(bytes, out, |two| bf16::from_le_bytes(two).to_f32()),
        _ => each(bytes, out, f32::from_le_bytes),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    let (words, _) = bytes.as_chunks::<N>();
    out.iter_mut().zip(words).for_each(|(value, word)| *value = read(*word));
}
