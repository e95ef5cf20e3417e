//! Attention: grouped queries over keys and values, each row with a reach of its own.
//!
//! On the processor it is done head by head and some rows at a time on plain floats, with the products of
//! [`super::kernel`]: a row gives the same bits whichever rows stand beside it. Elsewhere it is the library's products,
//! with a mask where rows differ in reach.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use crate::model::kernel;
use crate::model::matrix::View;
use crate::model::ops;

/// Rows done at once, so that the scores of a large picture need not be held whole.
const ROWS: usize = 64;

/// Most scores that another device holds at once, 256 MiB of them: a picture of 896 pixels a side has four times as many.
const SCORES: usize = 1 << 26;

/// Multiplications worth sharing among threads.
const SHARE: usize = 1 << 18;

/// What kind of attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub width: usize,
    /// Multiplies the scores.
    pub scale: f64,
    /// Bounds the scores.
    pub softcap: Option<f64>,
}

/// Keys and values on the processor, head by head: keys as rows, values as columns, so that both are weights of a product.
pub struct HostCache {
    /// `[kv_heads, capacity, width]`.
    keys: Vec<f32>,
    /// `[kv_heads, width, capacity]`.
    values: Vec<f32>,
    capacity: usize,
}

impl HostCache {
    /// Room for `capacity` positions.
    pub fn new(attention: &Attention, capacity: usize) -> Self {
        let zeros = || vec![0.0; attention.kv_heads * capacity * attention.width];
        Self { keys: zeros(), values: zeros(), capacity }
    }

    /// Puts keys and values (`[rows, kv_heads * width]`) at positions from `first` on.
    pub fn put(&mut self, attention: &Attention, keys: &[f32], values: &[f32], first: usize) {
        let Attention { kv_heads, width, .. } = *attention;
        let rows = keys.chunks_exact(kv_heads * width).zip(values.chunks_exact(kv_heads * width));
        for (position, (keys, values)) in (first..).zip(rows) {
            for head in 0..kv_heads {
                let from = (head * self.capacity + position) * width;
                self.keys[from..from + width].copy_from_slice(&keys[head * width..][..width]);
                let column = self.values[head * width * self.capacity + position..].iter_mut().step_by(self.capacity);
                column.zip(&values[head * width..][..width]).for_each(|(place, value)| *place = *value);
            }
        }
    }

    /// Keys of one head as a matrix `[len, width]`.
    fn keys(&self, head: usize, width: usize, len: usize) -> View<'_> {
        View::of_floats(&self.keys[head * self.capacity * width..], len, width, width)
    }

    /// Values of one head as a matrix `[width, len]`.
    fn values(&self, head: usize, width: usize, len: usize) -> View<'_> {
        View::of_floats(&self.values[head * width * self.capacity..], width, len, self.capacity)
    }
}

/// Which positions each of some rows sees: made once for all layers.
pub struct Reach {
    rows: Vec<Range<usize>>,
    /// For devices that are told by a mask; inside, `None` where all rows see the same.
    mask: OnceLock<Option<Tensor>>,
}

impl Reach {
    /// Of rows that see these positions; none may see nothing.
    pub fn new(rows: Vec<Range<usize>>) -> Self {
        Self { rows, mask: OnceLock::new() }
    }

    /// What the rows see in all.
    fn span(&self) -> Range<usize> {
        let start = self.rows.iter().map(|reach| reach.start).min().unwrap_or(0);
        start..self.rows.iter().map(|reach| reach.end).max().unwrap_or(0)
    }

    /// What keeps rows from positions out of their reach, `[rows, span]`; `None` where all reach all.
    fn mask(&self, device: &Device) -> Result<Option<&Tensor>> {
        if let Some(made) = self.mask.get() {
            return Ok(made.as_ref());
        }
        let span = self.span();
        let row = |reach: &Range<usize>| {
            let reach = reach.clone();
            span.clone().map(move |at| if reach.contains(&at) { 0.0_f32 } else { f32::NEG_INFINITY })
        };
        let made = if self.rows.iter().all(|reach| *reach == span) {
            None
        } else {
            Some(Tensor::from_vec(self.rows.iter().flat_map(row).collect(), (self.rows.len(), span.len()), device)?)
        };
        Ok(self.mask.get_or_init(|| made).as_ref())
    }
}

impl Attention {
    /// `queries` is `[rows, heads * width]`, gives the same.
    pub fn on_host(&self, queries: &[f32], cache: &HostCache, reach: &Reach) -> Vec<f32> {
        let Self { heads, kv_heads, width, .. } = *self;
        let (rows, group) = (reach.rows.len(), heads / kv_heads);
        let pieces = rows.div_ceil(ROWS);
        let len = reach.span().end;
        let piece = |at: usize| {
            let (head, from) = (at / pieces, at % pieces * ROWS);
            let reach = &reach.rows[from..rows.min(from + ROWS)];
            self.piece(head, &queries[from * heads * width..], cache, reach)
        };
        let done: Vec<Vec<f32>> = if 2 * rows * heads * width * len < SHARE {
            (0..kv_heads * pieces).map(piece).collect()
        } else {
            (0..kv_heads * pieces).into_par_iter().map(piece).collect()
        };
        let mut out = vec![0.0; rows * heads * width];
        for (at, done) in done.iter().enumerate() {
            let (head, from) = (at / pieces, at % pieces * ROWS);
            for (row, done) in (from..).zip(done.chunks_exact(group * width)) {
                out[(row * heads + head * group) * width..][..group * width].copy_from_slice(done);
            }
        }
        out
    }

    /// The rows of one key head, `[rows, group * width]`.
    fn piece(&self, head: usize, queries: &[f32], cache: &HostCache, reach: &[Range<usize>]) -> Vec<f32> {
        let Self { heads, kv_heads, width, .. } = *self;
        let group = heads / kv_heads;
        let rows = queries.chunks(heads * width).take(reach.len());
        let queries: Vec<f32> = rows.flat_map(|row| &row[head * group * width..][..group * width]).copied().collect();
        let len = reach.iter().map(|reach| reach.end).max().unwrap_or(0);
        let mut scores = vec![0.0; reach.len() * group * len];
        kernel::product_here(cache.keys(head, width, len), &queries, &mut scores);
        for (row, scores) in scores.chunks_exact_mut(len).enumerate() {
            let reach = reach[row / group].clone();
            scores[..reach.start].fill(0.0);
            scores[reach.end..].fill(0.0);
            ops::softmax(&mut scores[reach], self.scale as f32, self.softcap.map(|cap| cap as f32));
        }
        let mut out = vec![0.0; queries.len()];
        kernel::product_here(cache.values(head, width, len), &scores, &mut out);
        out
    }

    /// As [`Attention::on_host`] with tensors of any device: `queries` is `[rows, heads, width]`, `keys` and `values` are
    /// `[positions, kv_heads, width]`. Gives `[rows, heads * width]`.
    pub fn on_device(&self, queries: &Tensor, keys: &Tensor, values: &Tensor, reach: &Reach) -> Result<Tensor> {
        self.on_device_in_pieces(queries, keys, values, reach, (SCORES / (self.heads * reach.span().len()).max(1)).max(1))
    }

    fn on_device_in_pieces(&self, queries: &Tensor, keys: &Tensor, values: &Tensor, reach: &Reach, most: usize) -> Result<Tensor> {
        let span = reach.span();
        let keys = keys.narrow(0, span.start, span.len())?.permute((1, 2, 0))?.contiguous()?;
        let values = values.narrow(0, span.start, span.len())?.transpose(0, 1)?.contiguous()?;
        let mask = reach.mask(queries.device())?;
        let rows = reach.rows.len();
        let piece = |from: usize| {
            let count = most.min(rows - from);
            let mask = mask.map(|mask| mask.narrow(0, from, count)).transpose()?;
            self.piece_on_device(&queries.narrow(0, from, count)?, &keys, &values, mask)
        };
        let mut pieces = (0..rows).step_by(most).map(piece).collect::<Result<Vec<_>>>()?;
        if pieces.len() == 1 { Ok(pieces.remove(0)) } else { Tensor::cat(&pieces, 0) }
    }

    /// Rows of queries over `keys`, `[kv_heads, width, positions]`, and `values`, `[kv_heads, positions, width]`.
    fn piece_on_device(&self, queries: &Tensor, keys: &Tensor, values: &Tensor, mask: Option<Tensor>) -> Result<Tensor> {
        let Self { heads, kv_heads, width, .. } = *self;
        let (rows, group, len) = (queries.dim(0)?, heads / kv_heads, keys.dim(2)?);
        // Queries that share a key head are rows of one product: keys and values are never repeated in memory.
        let queries = queries.reshape((rows, kv_heads, group, width))?.transpose(0, 1)?.reshape((kv_heads, rows * group, width))?;
        let scores = queries.matmul(keys)?.to_dtype(DType::F32)?;
        let scores = match self.softcap {
            Some(cap) => ((scores * (self.scale / cap))?.tanh()? * cap)?,
            None => (scores * self.scale)?,
        };
        let scores = match mask {
            None => scores,
            Some(mask) => {
                let scores = scores.reshape((kv_heads, rows, group, len))?;
                scores.broadcast_add(&mask.reshape((1, rows, 1, len))?)?.reshape((kv_heads, rows * group, len))?
            }
        };
        let out = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(values.dtype())?.matmul(values)?;
        out.reshape((kv_heads, rows, group, width))?.transpose(0, 1)?.reshape((rows, heads * width))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + seed * 104_729) % 10_007) as f32 / 5000.0 - 1.0).collect()
    }

    /// Rows that see all, rows that see more and more, rows that have lost the oldest.
    fn reaches() -> Vec<Range<usize>> {
        let mut reach = vec![0..70; 70];
        reach.extend((70..80).map(|at| 0..at + 1));
        reach.extend((80..90).map(|at| at - 20..at + 1));
        reach
    }

    #[test]
    fn both_ways_agree_and_rows_do_not_know_each_other() {
        let attention = Attention { heads: 6, kv_heads: 2, width: 20, scale: 0.3, softcap: Some(5.0) };
        let reach = reaches();
        let rows = reach.len();
        let (queries, keys, values) = (numbers(rows * 120, 1), numbers(rows * 40, 2), numbers(rows * 40, 3));
        let mut cache = HostCache::new(&attention, 100);
        cache.put(&attention, &keys, &values, 0);
        let ours = attention.on_host(&queries, &cache, &Reach::new(reach.clone()));
        let tensor = |values: &[f32], heads: usize| Tensor::from_slice(values, (rows, heads, 20), &Device::Cpu).unwrap();
        let (query, key, value) = (tensor(&queries, 6), tensor(&keys, 2), tensor(&values, 2));
        for most in [rows, 64, 7] {
            let theirs = attention.on_device_in_pieces(&query, &key, &value, &Reach::new(reach.clone()), most).unwrap();
            let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
            let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-5, "{most} rows at once: {apart}");
        }
        for row in 0..rows {
            let alone = attention.on_host(&queries[row * 120..][..120], &cache, &Reach::new(reach[row..=row].to_vec()));
            assert!(alone.iter().zip(&ours[row * 120..]).all(|(a, b)| a.to_bits() == b.to_bits()), "row {row}");
        }
    }
}
