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

/// Taps whose weights are split into two halves of 11 bits, each short enough for products of 16-bit numbers, which
/// processors add up in pairs. Filled with zeros to whole vectors.
struct SplitTaps {
    first: usize,
    high: Vec<i16>,
    low: Vec<i16>,
}

/// Bits of the lower half of a split weight.
const LOW: u32 = BITS / 2;

/// Numbers in a vector.
const LANES: usize = 8;

impl SplitTaps {
    fn new(taps: &Taps) -> Self {
        let (mut high, mut low): (Vec<i16>, Vec<i16>) = taps.weights.iter().map(|&weight| split(weight)).unzip();
        let len = high.len().next_multiple_of(LANES);
        high.resize(len, 0);
        low.resize(len, 0);
        Self { first: taps.first, high, low }
    }

    /// The weighted sum of one channel's values.
    fn weigh(&self, plane: &[i16]) -> i32 {
        let values = plane[self.first..].as_chunks().0;
        (sum_of_products(self.high.as_chunks().0, values) << LOW) + sum_of_products(self.low.as_chunks().0, values)
    }
}

fn sum_of_products(a: &[[i16; LANES]], b: &[[i16; LANES]]) -> i32 {
    let product = |(&a, &b): (&i16, &i16)| i32::from(a) * i32::from(b);
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(product).sum::<i32>()).sum()
}

/// `weight` as `(high << LOW) + low`, the lower half being the nearest to zero.
fn split(weight: i32) -> (i16, i16) {
    let high = (weight + (1 << (LOW - 1))) >> LOW;
    (high as i16, (weight - (high << LOW)) as i16)
}

/// Scales pictures to squares; keeps its tables while the sizes stay.
#[derive(Default)]
pub struct Resizer {
    /// Each for a length before and after.
    columns: ([usize; 2], Vec<SplitTaps>),
    rows: ([usize; 2], Vec<Taps>),
    between: Vec<u8>,
    square: Vec<u8>,
}

impl Resizer {
    /// `picture` squeezed to `side` × `side` pixels, RGB row by row.
    pub fn run(&mut self, picture: &RgbImage, side: usize) -> &[u8] {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        if self.columns.0 != [width, side] {
            self.columns = ([width, side], taps(width, side).iter().map(SplitTaps::new).collect());
        }
        if self.rows.0 != [height, side] {
            self.rows = ([height, side], taps(height, side));
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
fn across(taps: &[SplitTaps], source: &[u8], width: usize, target: &mut Vec<u8>) {
    target.resize(source.len() / width * taps.len(), 0);
    // One row by channels, with room for the zero weights at its end.
    let mut planes = [const { Vec::new() }; 3];
    planes.iter_mut().for_each(|plane| plane.resize(width + LANES, 0_i16));
    for (source, target) in source.chunks_exact(width * 3).zip(target.chunks_exact_mut(taps.len() * 3)) {
        let [reds, greens, blues] = &mut planes;
        for (((pixel, red), green), blue) in source.as_chunks::<3>().0.iter().zip(reds).zip(greens).zip(blues) {
            [*red, *green, *blue] = pixel.map(i16::from);
        }
        for (taps, pixel) in taps.iter().zip(target.as_chunks_mut::<3>().0) {
            for (plane, value) in planes.iter().zip(pixel) {
                *value = clip(taps.weigh(plane) + (1 << (BITS - 1)));
            }
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

    /// The pictures of `tests/goldens/pillow.py`.
    fn drawn(width: u32, height: u32) -> RgbImage {
        let value = |x: u32, y: u32, c: u32| {
            let mixed = x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ c.wrapping_mul(83_492_791);
            let noise = mixed.wrapping_mul(2_654_435_761) >> 24;
            let slope = (x * 255 / width + y * 255 / height + c * 85) % 256;
            let value = match (x * 8 / width + y * 4 / height) % 4 {
                0 => slope,
                1 => (x / 37 + y / 23 + c) % 2 * 255,
                2 => noise,
                _ if noise < 128 => slope / 2,
                _ => 255 - slope / 2,
            };
            value as u8
        };
        RgbImage::from_fn(width, height, |x, y| image::Rgb([0, 1, 2].map(|c| value(x, y, c))))
    }

    #[test]
    fn every_size_comes_out_as_pillows() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/pillow.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let mut resizer = Resizer::default();
        for case in &cases {
            let number = |key: &str| case[key].as_u64().unwrap() as u32;
            let (width, height, side) = (number("width"), number("height"), number("side") as usize);
            let square = resizer.run(&drawn(width, height), side);
            for point in case["points"].as_array().unwrap() {
                let [y, x, c, expected] = [0, 1, 2, 3].map(|index| point[index].as_u64().unwrap() as usize);
                let got = usize::from(square[(y * side + x) * 3 + c]);
                assert_eq!(got, expected, "{width}×{height} to {side}, row {y}, column {x}, channel {c}");
            }
            let hash = format!("{:016x}", fnv1a(square));
            assert_eq!(hash, case["fnv1a"].as_str().unwrap(), "{width}×{height} to {side}: {} bytes", square.len());
        }
        assert!(cases.len() >= 18);
    }

    fn fnv1a(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
    }

    #[test]
    fn split_weights_are_whole_again() {
        for weight in [0, 1, -1, 1023, 1024, 1025, -1024, -1025, 1 << BITS, -(1 << BITS) / 8, 4_601_234] {
            let (high, low) = split(weight);
            assert_eq!((i32::from(high) << LOW) + i32::from(low), weight);
        }
    }

    #[test]
    fn sizes_may_change_between_pictures() {
        let mut resizer = Resizer::default();
        for (width, height, side) in [(1, 1, 14), (640, 360, 14), (3, 500, 14), (640, 360, 14), (640, 360, 28), (640, 640, 14)] {
            let flat = RgbImage::from_pixel(width, height, image::Rgb([9, 9, 9]));
            let square = resizer.run(&flat, side);
            assert!(square.len() == side * side * 3 && square.iter().all(|&value| value == 9));
        }
    }
}
