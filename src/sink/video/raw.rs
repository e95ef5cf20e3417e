//! Pictures as raw video: buffers, caps and times.

use std::sync::Arc;
use std::time::Duration;

use gstreamer::{Buffer, Caps};
use image::RgbImage;

use crate::base::clock::Utc;

/// The least time between two frames: muxers want rising times, and a clock may be set back.
const LEAST: Duration = Duration::from_millis(1);

/// Shown for the last frame of a file, and before there is a second one.
const SHOWN: Duration = Duration::from_secs(1);

/// A step back (milliseconds) beyond which it is the clock's doing, and not pictures out of order.
const SET_BACK: i64 = 2000;

struct Pixels(Arc<RgbImage>);

impl AsRef<[u8]> for Pixels {
    fn as_ref(&self) -> &[u8] {
        self.0.as_raw()
    }
}

/// The caps of a picture's buffer. The rate is 0/1: pictures come when they come.
pub fn caps(width: u32, height: u32) -> Caps {
    let size = |pixels: u32| i32::try_from(pixels).unwrap_or(i32::MAX);
    Caps::builder("video/x-raw")
        .field("format", "RGB")
        .field("width", size(width))
        .field("height", size(height))
        .field("framerate", gstreamer::Fraction::new(0, 1))
        .field("pixel-aspect-ratio", gstreamer::Fraction::new(1, 1))
        .build()
}

/// A picture's pixels as a buffer. GStreamer pads RGB rows to four bytes: where they need none the pixels are shared.
pub fn buffer(image: &Arc<RgbImage>) -> Buffer {
    let row = image.width() as usize * 3;
    let padding = row.next_multiple_of(4) - row;
    if padding == 0 {
        return Buffer::from_slice(Pixels(image.clone()));
    }
    let mut padded = Vec::with_capacity((row + padding) * image.height() as usize);
    for line in image.as_raw().chunks_exact(row.max(1)) {
        padded.extend_from_slice(line);
        padded.extend_from_slice(&[0; 3][..padding]);
    }
    Buffer::from_slice(padded)
}

/// The size of a video made from pictures of this one: even, as 4:2:0 wants it.
pub fn canvas(image: &RgbImage) -> (u32, u32) {
    (image.width().next_multiple_of(2).max(16), image.height().next_multiple_of(2).max(16))
}

/// Turns capture times into a video's, so that it plays in real time.
#[derive(Debug, Default)]
pub struct Timeline {
    /// The capture time that is the video's zero.
    zero: Option<i64>,
    last: Option<Duration>,
}

impl Timeline {
    /// The time of a picture since the first one, always rising, and how long to show it should none follow.
    pub fn step(&mut self, captured: Utc) -> (Duration, Duration) {
        let mut since = captured.millis() - *self.zero.get_or_insert(captured.millis());
        let least = self.last.map_or(0, |last| i64::try_from((last + LEAST).as_millis()).unwrap_or(i64::MAX));
        if since < least - SET_BACK {
            // The clock was set back: goes on from here, or all would be crammed together until it has caught up.
            self.zero = Some(captured.millis() - least);
        }
        since = since.max(least);
        let time = Duration::from_millis(since.unsigned_abs());
        let shown = self.last.map_or(SHOWN, |last| (time - last).clamp(LEAST, SHOWN));
        self.last = Some(time);
        (time, shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_rise_even_when_the_clock_is_set_back() {
        let mut timeline = Timeline::default();
        let mut at = |millis| timeline.step(Utc::from_millis(millis)).0.as_millis();
        assert_eq!([at(5000), at(5250), at(5250), at(5100), at(6000)], [0, 250, 251, 252, 1000]);
        assert_eq!([at(1000), at(2000), at(3000)], [1001, 2001, 3001]); // set back by five seconds
    }

    #[test]
    fn rows_are_padded_to_four_bytes() {
        gstreamer::init().unwrap();
        let image = Arc::new(RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, y as u8, 7])));
        let bytes = buffer(&image);
        assert_eq!(bytes.map_readable().unwrap().as_slice(), [0, 0, 7, 1, 0, 7, 2, 0, 7, 0, 0, 0, 0, 1, 7, 1, 1, 7, 2, 1, 7, 0, 0, 0]);
        let even = Arc::new(RgbImage::new(4, 2));
        assert_eq!(buffer(&even).size(), 24);
        assert_eq!(canvas(&RgbImage::new(1367, 767)), (1368, 768));
    }
}
