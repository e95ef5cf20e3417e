//! A picture → the tower's input, as the reference's image processor does it: squeezed to a square without keeping the
//! sides' ratio, then scaled to 0..=1 and normalised.

use image::RgbImage;

use crate::base::{Error, Kind, Result};
use crate::model::config::Normalisation;
use crate::model::resize::Resizer;

/// Resizes and normalises; keeps its buffers between pictures.
pub struct Preprocessor {
    side: usize,
    resizer: Resizer,
    /// Per channel, what each 8-bit value becomes.
    tables: [Vec<f32>; 3],
}

impl Preprocessor {
    /// For a tower that takes `side` × `side` pixels.
    pub fn new(side: usize, normalisation: Normalisation) -> Self {
        let Normalisation { mean, std } = normalisation;
        let table = |channel: usize| (0..=255_u8).map(|value| (f32::from(value) / 255.0 - mean[channel]) / std[channel]).collect();
        Self { side, resizer: Resizer::default(), tables: [table(0), table(1), table(2)] }
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
        let square = self.resizer.run(picture, self.side);
        let planes = self.tables.iter().enumerate();
        let pixels = planes.flat_map(|(channel, table)| square.iter().skip(channel).step_by(3).map(|&value| table[usize::from(value)]));
        Ok(pixels.collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::path::Path;

    use super::*;

    const HALVES: Normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };

    #[test]
    fn pixels_are_the_references() {
        for case in ["pg1", "pg1-mqa", "pg2", "pg2-sliding", "pg2-bf16-sharded"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(case);
            let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
            let expected = &serde_json::from_str::<serde_json::Value>(&text).unwrap()["pixel_values"];
            let side = expected["shape"][3].as_u64().unwrap() as usize;
            let picture = image::open(folder.join("image.png")).unwrap().to_rgb8();
            let pixels = Preprocessor::new(side, HALVES).run(&picture).unwrap();
            for point in expected["points"].as_array().unwrap() {
                let at: Vec<usize> = (0..3).map(|axis| point[axis].as_u64().unwrap() as usize).collect();
                let apart = f64::from(pixels[(at[0] * side + at[1]) * side + at[2]]) - point[3].as_f64().unwrap();
                assert!(apart.abs() < 1e-6, "{case} {at:?}: {apart} apart");
            }
            let mean = pixels.iter().map(|&pixel| f64::from(pixel)).sum::<f64>() / pixels.len() as f64;
            assert!((mean - expected["mean"].as_f64().unwrap()).abs() < 1e-6, "{case}: mean {mean}");
        }
    }

    #[test]
    fn channels_have_their_own_scale_and_an_empty_picture_is_refused() {
        let mut preprocessor = Preprocessor::new(4, Normalisation { mean: [0.5, 0.25, 0.0], std: [0.5, 0.5, 1.0] });
        let pixels = preprocessor.run(&RgbImage::from_pixel(7, 3, image::Rgb([255, 51, 0]))).unwrap();
        assert_eq!(pixels.len(), 48);
        assert!(pixels[..16].iter().all(|&p| p == 1.0) && pixels[32..].iter().all(|&p| p == 0.0));
        assert!(pixels[16..32].iter().all(|&p| (p + 0.1).abs() < 1e-6));
        assert!(preprocessor.run(&RgbImage::new(0, 5)).is_err());
    }
}
