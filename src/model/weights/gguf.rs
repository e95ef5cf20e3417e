//! The bytes of a GGUF file before its tensors, and where each tensor lies: version 3 of the format as
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md> describes it.
//!
//! The whole of it follows from what is to be stored, so a file is known to be the right one when it begins with these
//! bytes and has this length; nothing is ever parsed.

use std::ops::Range;

use crate::model::matrix::Type;

/// Each tensor begins at a multiple of this, counted from the first.
const ALIGNMENT: usize = 32;

/// The longest name that other readers take (`GGML_MAX_NAME`, less the closing zero).
pub const MAX_NAME: usize = 63;

/// A tensor to be stored, `[rows, cols]`.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its name in the file.
    pub name: String,
    /// How it is stored.
    pub ty: Type,
    /// Rows.
    pub rows: usize,
    /// Columns; stored with the last block filled up.
    pub cols: usize,
}

impl Item {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.rows * self.ty.row_bytes(self.cols)
    }
}

/// A value of the file's metadata.
pub enum Value<'a> {
    /// A number.
    Number(u32),
    /// A text.
    Text(&'a str),
}

/// A file's beginning and the places of its tensors.
pub struct Layout {
    /// All bytes before the first tensor.
    pub header: Vec<u8>,
    /// Where each tensor lies, in the order given.
    pub ranges: Vec<Range<usize>>,
    /// The file's length.
    pub len: usize,
}

impl Layout {
    /// Of a file with these metadata and tensors. Each tensor is followed by zeros up to the next multiple of 32.
    pub fn new(metadata: &[(&str, Value<'_>)], items: &[Item]) -> Self {
        let mut header = b"GGUF".to_vec();
        let long = |header: &mut Vec<u8>, value: usize| header.extend((value as u64).to_le_bytes());
        let word = |header: &mut Vec<u8>, value: u32| header.extend(value.to_le_bytes());
        let text = |header: &mut Vec<u8>, value: &str| {
            long(header, value.len());
            header.extend(value.as_bytes());
        };
        word(&mut header, 3);
        long(&mut header, items.len());
        long(&mut header, metadata.len());
        for (key, value) in metadata {
            text(&mut header, key);
            match value {
                Value::Number(number) => {
                    word(&mut header, 4);
                    word(&mut header, *number);
                }
                Value::Text(value) => {
                    word(&mut header, 8);
                    text(&mut header, value);
                }
            }
        }
        let mut ranges = Vec::with_capacity(items.len());
        let mut end = 0;
        for item in items {
            text(&mut header, &item.name);
            // The fastest dimension comes first.
            word(&mut header, 2);
            long(&mut header, item.cols.next_multiple_of(item.ty.block()));
            long(&mut header, item.rows);
            word(&mut header, id(item.ty));
            long(&mut header, end);
            ranges.push(end..end + item.len());
            end = padded(end + item.len());
        }
        header.resize(padded(header.len()), 0);
        let start = header.len();
        let ranges = ranges.into_iter().map(|range| start + range.start..start + range.end).collect();
        Self { header, ranges, len: start + end }
    }
}

/// Rounds up to where the next tensor may begin.
pub fn padded(at: usize) -> usize {
    at.next_multiple_of(ALIGNMENT)
}

/// The number of a type (`enum ggml_type`).
fn id(ty: Type) -> u32 {
    match ty {
        Type::F32 => 0,
        Type::F16 => 1,
        Type::Q8_0 => 8,
        Type::Q4K => 12,
        Type::Q6K => 14,
        Type::Bf16 => 30,
    }
}
