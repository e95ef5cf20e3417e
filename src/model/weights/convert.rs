//! Weights from the type a checkpoint holds to the type wanted, a few rows at a time and on all threads.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::checkpoint::{Checkpoint, Stored};
use crate::base::{Context, Error, Kind, Result};
use crate::model::matrix::Type;

/// Weights that one thread converts at a time.
const PIECE: usize = 1 << 20;

/// Pieces between two calls of the sink: what is in memory of a tensor is at most some 10 MiB per thread and this many
/// converted pieces of at most 2 MiB.
const BATCH: usize = 32;

/// All rows of a tensor as `ty`, the last block of each row filled up with zeros, in order into `sink`.
///
/// # Errors
/// When the checkpoint cannot be read, and those of `sink`.
pub fn rows(checkpoint: &Checkpoint, stored: &Stored, ty: Type, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let from = stored.ty().ok_or_else(|| Error::new(Kind::Internal, "weights to convert are no floats"))?;
    let (rows, cols) = stored.rows_and_cols();
    let step = (PIECE / cols.max(1)).max(1);
    let starts: Vec<usize> = (0..rows).step_by(step).collect();
    for batch in starts.chunks(BATCH) {
        let pieces = batch.par_iter().map(|&start| {
            let values = checkpoint.read_rows(stored, from, start..(start + step).min(rows))?;
            convert(&values, cols, ty).context(Kind::Internal, || "cannot quantise weights".to_owned())
        });
        for piece in pieces.collect::<Result<Vec<_>>>()? {
            sink(&piece)?;
        }
    }
    Ok(())
}

/// Rows of `cols` values as `ty`.
fn convert(values: &[f32], cols: usize, ty: Type) -> candle_core::Result<Vec<u8>> {
    let ggml = match ty {
        Type::F32 => return Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Type::F16 => return Ok(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()),
        Type::Bf16 => return Ok(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()),
        Type::Q8_0 => GgmlDType::Q8_0,
        Type::Q6K => GgmlDType::Q6K,
        Type::Q4K => GgmlDType::Q4K,
    };
    let (rows, padded) = (values.len() / cols.max(1), cols.next_multiple_of(ty.block()));
    let mut filled = vec![0.0_f32; rows * padded];
    for (filled, row) in filled.chunks_exact_mut(padded.max(1)).zip(values.chunks_exact(cols.max(1))) {
        filled[..cols].copy_from_slice(row);
    }
    let tensor = Tensor::from_vec(filled, (rows, padded), &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, ggml)?.data()?.into_owned())
}
