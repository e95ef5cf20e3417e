//! A time written into a picture, and read from it again: how old is what somebody sees?
//!
//! Squares of black and white along the top edge outlast any encoder.

use gstreamer::prelude::*;
use gstreamer::{Element, PadProbeReturn, PadProbeType};
use gstreamer_video::VideoInfo;

use crate::base::clock::Utc;

/// A square's side, pixels.
const SIDE: usize = 16;

/// Of the time: milliseconds, over and over each four hours and a half. As many as there are squares but for the eight of
/// the checksum.
const BITS: u32 = 24;

/// Bits in all.
const ALL: u32 = BITS + 8;

/// The least width of a picture that a time fits into, pixels.
pub const WIDTH: usize = SIDE * ALL as usize;

/// The milliseconds of this moment, as they are written.
pub fn now() -> u32 {
    (Utc::now().millis() & ((1 << BITS) - 1)) as u32
}

/// How long ago a time that was read was written.
pub fn age(written: u32) -> u32 {
    now().wrapping_sub(written) & ((1 << BITS) - 1)
}

/// Has the time written into each picture that leaves `element`, whose format begins with a plane of brightness.
pub fn attach(element: &Element) {
    let Some(pad) = element.static_pad("src") else { return };
    pad.add_probe(PadProbeType::BUFFER, |pad, info| {
        let shape = pad.current_caps().and_then(|caps| VideoInfo::from_caps(&caps).ok());
        if let (Some(shape), Some(buffer)) = (shape, info.buffer_mut())
            && let Ok(mut map) = buffer.make_mut().map_writable()
        {
            let stride = shape.stride().first().and_then(|stride| usize::try_from(*stride).ok());
            write(&mut map, stride.unwrap_or_default(), shape.width() as usize, now());
        }
        PadProbeReturn::Ok
    });
}

fn checked(millis: u32) -> u32 {
    let sum = millis.to_be_bytes().iter().fold(0x5a_u8, |sum, byte| sum.rotate_left(3) ^ byte);
    (millis << 8) | u32::from(sum)
}

/// Into a plane of brightness with `stride` bytes a row; a picture that is too small stays as it is.
fn write(luma: &mut [u8], stride: usize, width: usize, millis: u32) {
    if width < WIDTH || stride < width {
        return;
    }
    let bits = checked(millis);
    for row in luma.chunks_mut(stride).take(SIDE) {
        for (bit, square) in (0..ALL).zip(row.chunks_mut(SIDE)) {
            square.fill(if bits >> bit & 1 == 1 { 235 } else { 16 });
        }
    }
}

/// What `write` wrote; `None` where there is none.
pub fn read(luma: &[u8], stride: usize, width: usize) -> Option<u32> {
    if width < WIDTH || stride < width {
        return None;
    }
    let row = luma.get(stride * SIDE / 2..)?.get(..WIDTH)?;
    let bits = (0..ALL).zip(row.chunks(SIDE)).fold(0, |bits, (bit, square)| bits | u32::from(square[SIDE / 2] > 125) << bit);
    Some(bits >> 8).filter(|millis| checked(*millis) == bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        let mut luma = vec![90; 700 * 40];
        assert_eq!(read(&luma, 700, 640), None);
        for millis in [0, 1, 0x00ab_cdef, (1 << BITS) - 1] {
            write(&mut luma, 700, 640, millis);
            let blurred: Vec<u8> = luma.iter().map(|value| value / 2 + 50).collect();
            assert_eq!(read(&blurred, 700, 640), Some(millis));
        }
        assert_eq!(read(&luma, 700, 300), None);
        assert!(age(now()) < 1000);
    }
}
