//! The brightness of a picture in few cells: enough to see that something moves.

/// Cells of a row, at most.
const CELLS: usize = 160;

/// Pixels of a cell's side, at least: what compression and a sensor's noise do to single pixels is lost in the mean.
const LEAST_SIDE: usize = 8;

/// Where the brightness of a pixel lies in a plane.
#[derive(Clone, Copy, Debug)]
pub struct Plane<'a> {
    /// The bytes from the first row on.
    pub bytes: &'a [u8],
    /// Bytes from row to row.
    pub stride: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes from pixel to pixel.
    pub step: usize,
    /// Where in a pixel's bytes its brightness begins.
    pub offset: usize,
    /// Its bits; more than eight are the lower ones of two bytes, the lower byte first.
    pub bits: u32,
}

/// Mean brightness of square cells, 0..=255.
#[derive(Clone, Debug, PartialEq)]
pub struct Luma {
    width: usize,
    height: usize,
    cells: Vec<f32>,
}

impl Luma {
    /// Means over a plane; `None` where the plane has fewer bytes than its shape says, or no whole cell.
    pub fn of(plane: Plane<'_>) -> Option<Self> {
        let Plane { bytes, stride, width, height, step, offset, bits } = plane;
        let side = width.div_ceil(CELLS).max(LEAST_SIDE);
        let (columns, rows) = (width / side, height / side);
        // Eight rows of a cell tell enough.
        let skipped = side.div_ceil(LEAST_SIDE);
        let pixels = (side * side.div_ceil(skipped)) as f32;
        let last = (rows * side).checked_sub(1)? * stride + (columns * side).checked_sub(1)? * step + offset + usize::from(bits > 8);
        if step == 0 || last >= bytes.len() {
            return None;
        }
        let mut cells = vec![0.0; columns * rows];
        let mut sums = vec![0_u32; columns];
        for (row, cells) in cells.chunks_exact_mut(columns).enumerate() {
            sums.fill(0);
            for y in (row * side..(row + 1) * side).step_by(skipped) {
                let row = &bytes[y * stride + offset..];
                let brightness = |x: usize| match bits {
                    0..=8 => u32::from(row[x * step]),
                    _ => u32::from(u16::from_le_bytes([row[x * step], row[x * step + 1]])) >> (bits - 8),
                };
                for (column, sum) in sums.iter_mut().enumerate() {
                    *sum += (column * side..(column + 1) * side).map(brightness).sum::<u32>();
                }
            }
            cells.iter_mut().zip(&sums).for_each(|(cell, sum)| *cell = *sum as f32 / pixels);
        }
        Some(Self { width: columns, height: rows, cells })
    }

    /// Cells of a row, and rows.
    pub fn shape(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// The cells, row by row.
    pub fn cells(&self) -> &[f32] {
        &self.cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_means_whatever_the_layout() {
        // 16×16 pixels, four cells: one brightness each, with padding and colours between.
        let brightness = |x: usize, y: usize| [10, 20, 30, 40][y / 8 * 2 + x / 8] + (x % 2) as u8;
        for (step, offset, bits) in [(1, 0, 8), (2, 0, 8), (2, 1, 8), (4, 1, 8), (2, 0, 10), (2, 0, 16)] {
            let stride = 16 * step + 5;
            let mut bytes = vec![255; 16 * stride];
            for (x, y) in (0..16).flat_map(|y| (0..16).map(move |x| (x, y))) {
                let at = y * stride + x * step + offset;
                match bits {
                    8 => bytes[at] = brightness(x, y),
                    _ => bytes[at..at + 2].copy_from_slice(&(u16::from(brightness(x, y)) << (bits - 8)).to_le_bytes()),
                }
            }
            let luma = Luma::of(Plane { bytes: &bytes, stride, width: 16, height: 16, step, offset, bits }).unwrap();
            assert_eq!((luma.shape(), luma.cells()), ((2, 2), &[10.5, 20.5, 30.5, 40.5][..]));
        }
    }

    #[test]
    fn what_is_too_small_or_cut_short_has_none() {
        let of = |width, height, len: usize| {
            Luma::of(Plane { bytes: &vec![7; len], stride: width, width, height, step: 1, offset: 0, bits: 8 }).map(|luma| luma.shape())
        };
        assert_eq!(of(1920, 1080, 1920 * 1080), Some((160, 90)));
        assert_eq!(of(641, 30, 641 * 30), Some((80, 3)));
        assert_eq!((of(7, 100, 700), of(100, 7, 700), of(0, 0, 0), of(8, 8, 63)), (None, None, None, None));
    }
}
