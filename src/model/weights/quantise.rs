//! Weights from the type they are stored in to another, some rows at a time.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::base::{Context, Kind, Result};
use crate::model::matrix::{Type, read_floats};
use crate::model::weights::files::{Files, Stored};

/// Weights converted at once, which bounds the memory it takes.
const AT_ONCE: usize = 1 << 24;

/// Weights of one thread's piece.
const PIECE: usize = 1 << 16;

/// Ggml's name for a type.
pub fn ggml(ty: Type) -> GgmlDType {
    match ty {
        Type::F32 => GgmlDType::F32,
        Type::F16 => GgmlDType::F16,
        Type::Bf16 => GgmlDType::BF16,
        Type::Q8_0 => GgmlDType::Q8_0,
        Type::Q6K => GgmlDType::Q6K,
        Type::Q4K => GgmlDType::Q4K,
    }
}

/// A whole matrix, in memory.
///
/// # Errors
/// When it cannot be read.
pub fn whole(files: &Files, stored: &Stored, from: Type, to: Type) -> Result<Vec<u8>> {
    let mut all = Vec::with_capacity(stored.shape[0] * to.row_bytes(stored.shape[1]));
    in_parts(files, stored, from, to, |part| {
        all.extend_from_slice(part);
        Ok(())
    })?;
    Ok(all)
}

/// A whole matrix, part by part in order.
///
/// # Errors
/// When it cannot be read, and what `put` fails with.
pub fn in_parts(files: &Files, stored: &Stored, from: Type, to: Type, mut put: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let (rows, cols) = (stored.shape[0], stored.shape[1]);
    let len = from.row_bytes(cols);
    let some = (AT_ONCE / cols.max(1)).max(1);
    for start in (0..rows).step_by(some) {
        let bytes = files.read(stored, start * len..rows.min(start + some) * len)?;
        put(&convert(&bytes, cols, from, to)?)?;
    }
    Ok(())
}

/// Rows of `cols` weights; the last block of a row is filled up with zeros.
fn convert(bytes: &[u8], cols: usize, from: Type, to: Type) -> Result<Vec<u8>> {
    let piece = (PIECE / cols).max(1) * from.row_bytes(cols);
    let pieces: Vec<Vec<u8>> = bytes.par_chunks(piece).map(|bytes| convert_piece(bytes, cols, from, to)).collect::<Result<_>>()?;
    Ok(pieces.concat())
}

fn convert_piece(bytes: &[u8], cols: usize, from: Type, to: Type) -> Result<Vec<u8>> {
    let padded = cols.next_multiple_of(to.block());
    let rows = bytes.chunks_exact(from.row_bytes(cols));
    let mut values = vec![0.0; rows.len() * padded];
    for (row, values) in rows.zip(values.chunks_exact_mut(padded)) {
        read_floats(from, row, &mut values[..cols]);
    }
    match to {
        Type::F32 => Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Type::F16 => Ok(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()),
        Type::Bf16 => Ok(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()),
        Type::Q8_0 | Type::Q6K | Type::Q4K => {
            let quantised = || {
                let tensor = Tensor::from_vec(values, (bytes.len() / from.row_bytes(cols), padded), &Device::Cpu)?;
                QTensor::quantize(&tensor, ggml(to))?.data().map(std::borrow::Cow::into_owned)
            };
            quantised().context(Kind::Internal, || "cannot quantise weights".to_owned())
        }
    }
}
