//! A picture file → the pixels that the model looks at.
//!
//! What comes out is what Pillow's `convert("RGB")` gives, which the reference's image processor calls, after the picture
//! was turned upright: transparency is left out and not blended with a background, and 16 bits give their upper 8. Of one
//! kind of picture Pillow makes something useless: in 16-bit grey it cuts off all above 255, so that nearly everything is
//! white. Here such a picture is read as a coloured one.
//!
//! PNG, GIF, BMP and WebP come out equal to the byte. A JPEG does not: its decoders may differ in rounding and in how they
//! spread colour, and this one is off libjpeg-turbo's by up to 5 of 255 at single pixels, by less than 0.1 in the mean.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::path::Path;

use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageReader, Pixel, RgbImage};

use crate::base::error::{Context, Error, Kind, Result};

/// The largest picture read: 8192 pixels either way.
const MAX_SIDE: u32 = 8192;

/// The most memory a picture may take while it is decoded, in bytes.
const MAX_BYTES: u64 = 128 << 20;

/// Why bytes are no picture that can be used.
#[derive(Debug)]
pub enum Unfit {
    /// It has too many pixels.
    Large(Error),
    /// It is none, or damaged.
    Broken(Error),
}

impl Unfit {
    /// Why, in words.
    pub fn into_error(self) -> Error {
        match self {
            Self::Large(error) | Self::Broken(error) => error,
        }
    }
}

/// Reads a picture of any common format, turned upright by its EXIF orientation.
///
/// # Errors
/// When it is no picture, is damaged, or is larger than 8192×8192 pixels or 128 MiB.
pub fn read_image(path: &Path) -> Result<RgbImage> {
    let name = format!("image {}", path.display());
    let file = File::open(path).context(Kind::Input, || format!("{name} cannot be read"))?;
    decode(BufReader::new(file), &name).map_err(Unfit::into_error)
}

/// As `read_image`, of the bytes of a file.
///
/// # Errors
/// As `read_image`; the sentence begins with `name`.
pub fn from_bytes(bytes: &[u8], name: &str) -> std::result::Result<RgbImage, Unfit> {
    decode(Cursor::new(bytes), name)
}

fn decode(bytes: impl BufRead + Seek, name: &str) -> std::result::Result<RgbImage, Unfit> {
    let most = MAX_BYTES >> 20;
    let right = || {
        format!("{name} cannot be read; must be a whole PNG, JPEG, GIF, BMP or WebP of at most {MAX_SIDE}×{MAX_SIDE} pixels and {most} MiB")
    };
    let unfit = |error: ImageError| {
        let large = matches!(error, ImageError::Limits(_));
        let error = Error::new(Kind::Input, right()).because(error);
        if large { Unfit::Large(error) } else { Unfit::Broken(error) }
    };
    let mut reader = ImageReader::new(bytes).with_guessed_format().map_err(|error| unfit(ImageError::IoError(error)))?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(unfit)?;
    let (width, height) = decoder.dimensions();
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    if width > MAX_SIDE || height > MAX_SIDE || decoder.total_bytes() > MAX_BYTES {
        return Err(Unfit::Large(Error::new(Kind::Input, format!("{}: it is {width}×{height}", right()))));
    }
    let image = DynamicImage::from_decoder(decoder).map_err(unfit)?;
    // First 8 bits a channel: there is less to turn then.
    let mut image = DynamicImage::ImageRgb8(to_rgb8(image));
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

fn to_rgb8(image: DynamicImage) -> RgbImage {
    match image {
        DynamicImage::ImageLuma16(image) => upper_bits(&image, |&[grey]| [grey; 3]),
        DynamicImage::ImageLumaA16(image) => upper_bits(&image, |&[grey, _]| [grey; 3]),
        DynamicImage::ImageRgb16(image) => upper_bits(&image, |&pixel| pixel),
        DynamicImage::ImageRgba16(image) => upper_bits(&image, |&[red, green, blue, _]| [red, green, blue]),
        image => image.into_rgb8(),
    }
}

/// The upper 8 of 16 bits; the image crate rounds, which gives every second value one more than Pillow's.
fn upper_bits<P, const N: usize>(image: &ImageBuffer<P, Vec<u16>>, colours: impl Fn(&[u16; N]) -> [u16; 3]) -> RgbImage
where
    P: Pixel<Subpixel = u16>,
{
    let pixels = image.as_raw().as_chunks().0.iter().flat_map(|pixel| colours(pixel).map(|value| (value >> 8) as u8));
    // The buffer has as many pixels as the picture, so this is never empty.
    RgbImage::from_raw(image.width(), image.height(), pixels.collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn broken_and_huge_pictures_are_sentences() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        std::fs::write(&path, b"\x89PNG\r\n\x1a\nnonsense").unwrap();
        assert!(read_image(&path).unwrap_err().chain().contains("must be a whole PNG"));
        RgbImage::new(9000, 2).save(&path).unwrap();
        assert!(read_image(&path).unwrap_err().chain().contains("8192"));
        RgbImage::new(30, 20).save(&path).unwrap();
        assert_eq!(read_image(&path).unwrap().dimensions(), (30, 20));
        assert!(read_image(&folder.path().join("none.jpg")).unwrap_err().chain().contains("No such file"));
    }
}
