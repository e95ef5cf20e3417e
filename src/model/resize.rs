//! Bicubic scaling of 8-bit RGB, bit for bit as Pillow does it, which the reference's image processor uses.
//!
//! The published SIMD resizers round their weights to 16 bits; some values then differ by 1 from Pillow, and that alone
//! moves the logits by 1e-2. Here the weights have the 22 bits of Pillow's `Resample.c`, and the picture between the two
//! passes is rounded to 8 bits as it is there.

use image::RgbImage;

/// Fraction bits of the weights: 8 are the pixel's, 2 are room for sign and overshoot.
const BITS: u32 = 32 - 8 - 2;

/// The source pixels that one target pixel is made of.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Scales pictures to squares; keeps its tables while the size of the pictures stays.
#[derive(Default)]
pub struct Resizer {
    columns: (usize, Vec<Taps>),
    rows: (usize, Vec<Taps>),
    between: Vec<u8>,
    square: Vec<u8>,
}

impl Resizer {
    /// `picture` squeezed to `side` × `side` pixels, RGB row by row.
    pub fn run(&mut self, picture: &RgbImage, side: usize) -> &[u8] {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        if self.columns.0 != width {
            self.columns = (width, taps(width, side));
        }
        if self.rows.0 != height {
            self.rows = (height, taps(height, side));
        }
        let Self { columns: (_, columns), rows: (_, rows), between, square } = self;
        // The rounding between the passes makes their order count. This is Pillow 13's, found by trying: down first only
        // where the height shrinks by more than twice what the width does. Earlier releases always go across first.
        if height.saturating_sub(side) > 2 * width.saturating_sub(side) {
            down(rows, picture.as_raw(), width, between);
            across(columns, between, width, square);
        } else {
            across(columns, picture.as_raw(), width, between);
            down(rows, between, side, square);
        }
        square
    }
}

/// Scales rows of `width` pixels.
fn across(taps: &[Taps], source: &[u8], width: usize, target: &mut Vec<u8>) {
    target.resize(source.len() / width * taps.len(), 0);
    for (source, target) in source.chunks_exact(width * 3).zip(target.chunks_exact_mut(taps.len() * 3)) {
        for (taps, pixel) in taps.iter().zip(target.as_chunks_mut::<3>().0) {
            *pixel = along_row(taps, source.as_chunks::<3>().0);
        }
    }
}

/// Scales columns of a picture that is `width` pixels wide.
fn down(taps: &[Taps], source: &[u8], width: usize, target: &mut Vec<u8>) {
    target.resize(taps.len() * width * 3, 0);
    let mut sums = vec![0_i32; width * 3];
    for (taps, target) in taps.iter().zip(target.chunks_exact_mut(width * 3)) {
        sums.fill(1 << (BITS - 1));
        let rows = source[taps.first * width * 3..].chunks_exact(width * 3);
        for (row, &weight) in rows.zip(&taps.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(value);
            }
        }
        for (value, &sum) in target.iter_mut().zip(&sums) {
            *value = clip(sum);
        }
    }
}

fn along_row(taps: &Taps, row: &[[u8; 3]]) -> [u8; 3] {
    let mut sums = [1_i32 << (BITS - 1); 3];
    for (&[red, green, blue], &weight) in row[taps.first..].iter().zip(&taps.weights) {
        sums[0] += weight * i32::from(red);
        sums[1] += weight * i32::from(green);
        sums[2] += weight * i32::from(blue);
    }
    sums.map(clip)
}

fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The weights that make `target` pixels of `source` ones; shrinking widens the filter, which is the antialiasing.
fn taps(source: usize, target: usize) -> Vec<Taps> {
    let scale = source as f64 / target as f64;
    let widen = scale.max(1.0);
    let support = 2.0 * widen;
    (0..target)
        .map(|at| {
            let center = (at as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(source);
            let weights: Vec<f64> = (first..end).map(|x| bicubic((x as f64 - center + 0.5) * (1.0 / widen))).collect();
            let sum: f64 = weights.iter().sum();
            Taps { first, weights: weights.iter().map(|weight| (weight / sum * f64::from(1 << BITS)).round() as i32).collect() }
        })
        .collect()
}

/// Keys' cubic with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn an_equal_size_and_a_flat_picture_stay_as_they_are() {
        let picture = RgbImage::from_fn(9, 9, |x, y| image::Rgb([(x * 28) as u8, (y * 28) as u8, (x * y) as u8]));
        assert_eq!(Resizer::default().run(&picture, 9), picture.as_raw().as_slice());
        let flat = RgbImage::from_pixel(31, 7, image::Rgb([1, 128, 255]));
        assert!(Resizer::default().run(&flat, 5).as_chunks::<3>().0.iter().all(|pixel| *pixel == [1, 128, 255]));
    }

    #[test]
    fn sizes_may_change_between_pictures() {
        let mut resizer = Resizer::default();
        for (width, height) in [(1, 1), (640, 360), (3, 500), (640, 360)] {
            let flat = RgbImage::from_pixel(width, height, image::Rgb([9, 9, 9]));
            assert!(resizer.run(&flat, 14).iter().all(|&value| value == 9));
        }
    }
}
