//! A picture → the tower's input, as the reference's image processor does it: squeezed to a square without keeping the
//! sides' ratio, bicubic (a = -0.5) with antialiasing, on 8-bit values, then scaled and normalised.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use crate::base::{Context, Error, Kind, Result};
use crate::model::config::Normalisation;

/// Resizes and normalises; keeps its buffers between pictures.
pub struct Preprocessor {
    side: u32,
    normalisation: Normalisation,
    resizer: Resizer,
    square: Image<'static>,
}

impl Preprocessor {
    /// For a tower that takes `side` × `side` pixels.
    pub fn new(side: usize, normalisation: Normalisation) -> Self {
        let side = side as u32;
        Self { side, normalisation, resizer: Resizer::new(), square: Image::new(side, side, PixelType::U8x3) }
    }

    /// The picture as `[3, side, side]` in row-major order.
    ///
    /// # Errors
    /// When the picture has no pixels.
    pub fn run(&mut self, picture: &RgbImage) -> Result<Vec<f32>> {
        let (width, height) = picture.dimensions();
        if width == 0 || height == 0 {
            return Err(Error::new(Kind::Input, format!("the picture is {width}x{height} pixels; must be at least 1x1")));
        }
        let why = || format!("cannot scale a picture of {width}x{height} pixels");
        let source = ImageRef::new(width, height, picture.as_raw(), PixelType::U8x3).context(Kind::Internal, why)?;
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).use_alpha(false);
        self.resizer.resize(&source, &mut self.square, &options).context(Kind::Internal, why)?;
        Ok(self.normalise())
    }

    fn normalise(&self) -> Vec<f32> {
        let plane = (self.side * self.side) as usize;
        let mut pixels = vec![0.0; 3 * plane];
        for channel in 0..3 {
            let (mean, std) = (self.normalisation.mean[channel], self.normalisation.std[channel]);
            let table: Vec<f32> = (0..=255_u8).map(|value| (f32::from(value) / 255.0 - mean) / std).collect();
            let values = self.square.buffer().iter().skip(channel).step_by(3);
            for (pixel, &value) in pixels[channel * plane..].iter_mut().zip(values) {
                *pixel = table[usize::from(value)];
            }
        }
        pixels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_and_an_empty_one_is_refused() {
        let mut preprocessor = Preprocessor::new(4, Normalisation { mean: [0.5, 0.25, 0.0], std: [0.5, 0.5, 1.0] });
        let pixels = preprocessor.run(&RgbImage::from_pixel(7, 3, image::Rgb([255, 51, 0]))).unwrap();
        assert_eq!(pixels.len(), 48);
        assert!(pixels[..16].iter().all(|&p| p == 1.0) && pixels[32..].iter().all(|&p| p == 0.0));
        assert!(pixels[16..32].iter().all(|&p| (p + 0.1).abs() < 1e-6));
        assert!(preprocessor.run(&RgbImage::new(0, 5)).is_err());
    }
}
