//! Pictures as JPEG.

use jpeg_encoder::{ColorType, Encoder};

use crate::base::error::{Context, Error, Kind, Result};

/// The JPEG of a picture of `width` × `height` pixels, 8-bit RGB row by row, at a quality of 1 to 100.
///
/// # Errors
/// When a side has more than 65535 pixels, or `rgb` is too short for so many.
pub fn encode(rgb: &[u8], width: u32, height: u32, quality: u8) -> Result<Vec<u8>> {
    let (Ok(short_width), Ok(short_height)) = (u16::try_from(width), u16::try_from(height)) else {
        let line = format!("a picture of {width}×{height} is too large for JPEG; must be at most 65535 either way");
        return Err(Error::new(Kind::Input, line));
    };
    let mut jpeg = Vec::new();
    Encoder::new(&mut jpeg, quality)
        .encode(rgb, short_width, short_height, ColorType::Rgb)
        .context(Kind::Internal, || "a picture cannot be encoded as JPEG")?;
    Ok(jpeg)
}
