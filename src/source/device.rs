//! Which of the formats that a Video4Linux camera offers is asked of it. Negotiation alone prefers raw video, which many a
//! webcam sends large at five frames a second only, for USB 2 carries no more.

use std::cmp::Reverse;
use std::str::FromStr;

use gstreamer::{Caps, CapsRef, Fraction, FractionRange, IntRange, List, StructureRef};
use gstreamer_video::{VideoFormat, VideoFormatInfo};

/// The largest picture that is asked for, unless there are only larger ones. More is scaled away before the model.
const WIDTH: i32 = 1920;
const HEIGHT: i32 = 1080;
/// Encoders round 1080 lines up to whole blocks.
const LARGEST: i64 = 1920 * 1088;
/// Frames a second: at least, for motion to be followed, and at most, for more is work without use.
const SLOWEST: i64 = 10;
const FASTEST: i64 = 30;

/// Raw formats that cost little, cheapest first.
const RAW: [&str; 11] = ["NV12", "I420", "YV12", "NV21", "YUY2", "UYVY", "YVYU", "VYUY", "NV16", "Y42B", "NV24"];
/// What decoders are there for, cheapest first.
const ENCODED: [&str; 5] = ["image/jpeg", "video/x-h264", "video/x-h265", "video/x-vp8", "video/x-vp9"];

/// Places: raw formats, others that are raw (two, by depth), encoded video, and behind it grey, which loses what the model
/// knows things by.
const FIRST_ENCODED: usize = RAW.len() + 2;
const GREY: usize = FIRST_ENCODED + ENCODED.len();

/// One format at one size and its best rate.
#[derive(Clone, Debug)]
struct Mode {
    media: String,
    /// For raw video.
    format: Option<String>,
    /// Place among the media types and formats, best first.
    place: usize,
    width: i32,
    height: i32,
    /// `None`: the camera does not say.
    rate: Option<Fraction>,
}

/// The best of what `v4l2src` offers on its pad, fixed: media type, width, height, the frame rate where one is known, and
/// the format of raw video. `None`: nothing that can be read.
///
/// It is the largest picture up to 1920×1080 of those with ten frames a second or more, at most 30 where there is a
/// choice; then the faster one; then raw before MJPEG before H.264, with grey last. Without such a one it is a slower one,
/// and without that the smallest of the larger ones.
pub fn choose(offered: &CapsRef) -> Option<Caps> {
    // Memory of other kinds, and single fields of interlaced pictures, cannot be read.
    let readable =
        offered.iter_with_features().filter(|(_, features)| features.is_equal(gstreamer::CAPS_FEATURES_MEMORY_SYSTEM_MEMORY.as_ref()));
    readable.flat_map(|(structure, _)| modes(structure)).max_by_key(rank).map(|mode| caps(&mode))
}

fn rank(mode: &Mode) -> (bool, bool, i64, i64, Reverse<usize>) {
    let area = i64::from(mode.width) * i64::from(mode.height);
    let fits = area <= LARGEST;
    // A camera that does not tell its rate is taken at its best; 29.97 is as good as 30.
    let rate = mode.rate.map(|rate| ((f64::from(rate.numer()) / f64::from(rate.denom())).round() as i64).min(FASTEST));
    let quick = rate.is_none_or(|rate| rate >= SLOWEST);
    (fits && quick, fits, if fits { area } else { -area }, rate.unwrap_or(0), Reverse(mode.place))
}

fn caps(mode: &Mode) -> Caps {
    let caps = Caps::builder(mode.media.as_str()).field("width", mode.width).field("height", mode.height);
    caps.field_if_some("format", mode.format.as_deref()).field_if_some("framerate", mode.rate).build()
}

/// Every format and size of a structure, each at its best rate.
fn modes(structure: &StructureRef) -> Vec<Mode> {
    let media = structure.name().as_str();
    let rate = rate(structure);
    let mut modes = Vec::new();
    for (place, format) in formats(structure) {
        for width in lengths(structure, "width", WIDTH) {
            for height in lengths(structure, "height", HEIGHT) {
                modes.push(Mode { media: media.to_owned(), format: format.clone(), place, width, height, rate });
            }
        }
    }
    modes
}

/// The formats that can be read, with their places; one without a name for encoded video.
fn formats(structure: &StructureRef) -> Vec<(usize, Option<String>)> {
    let media = structure.name().as_str();
    if media == "video/x-raw" {
        return values::<String>(structure, "format").into_iter().filter_map(|format| Some((raw_place(&format)?, Some(format)))).collect();
    }
    let encoded = ENCODED.iter().position(|known| *known == media);
    encoded.map(|place| (FIRST_ENCODED + place, None)).into_iter().collect()
}

/// `None`: not a format of pixels that GStreamer converts.
fn raw_place(format: &str) -> Option<usize> {
    if let Some(place) = RAW.iter().position(|known| *known == format) {
        return Some(place);
    }
    let format = VideoFormat::from_str(format).ok()?;
    if matches!(format, VideoFormat::Unknown | VideoFormat::Encoded) {
        return None;
    }
    let info = VideoFormatInfo::from_format(format);
    let deep = usize::from(info.bits() > 8);
    Some(if info.is_gray() { GREY + deep } else { RAW.len() + deep })
}

/// The lengths of a side; of a range the one next to `wanted`.
fn lengths(structure: &StructureRef, side: &str, wanted: i32) -> Vec<i32> {
    let Ok(range) = structure.get::<IntRange<i32>>(side) else { return values(structure, side) };
    let (least, step) = (range.min(), range.step().max(1));
    let length = wanted.clamp(least, range.max());
    let length = least + (length - least) / step * step;
    // Formats that share colour between neighbours have even sides.
    vec![if step == 1 && length > least { length & !1 } else { length }]
}

/// The highest frame rate up to 30, else the lowest above it; `None` where the camera tells none.
fn rate(structure: &StructureRef) -> Option<Fraction> {
    let most = Fraction::new(FASTEST as i32, 1);
    if let Ok(range) = structure.get::<FractionRange>("framerate") {
        return Some(most.clamp(range.min(), range.max()));
    }
    let rates = || values::<Fraction>(structure, "framerate").into_iter().filter(|rate| rate.numer() > 0);
    rates().filter(|rate| *rate <= most).max().or_else(|| rates().min())
}

/// A field's value, or those of its list.
fn values<T: for<'v> gstreamer::glib::value::FromValue<'v>>(structure: &StructureRef, field: &str) -> Vec<T> {
    let Ok(value) = structure.value(field) else { return Vec::new() };
    match value.get::<List>() {
        Ok(list) => list.iter().filter_map(|value| value.get().ok()).collect(),
        Err(_) => value.get().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is chosen of caps as `gst-device-monitor-1.0` prints them, a structure a line.
    fn chosen(offered: &str) -> Option<String> {
        gstreamer::init().unwrap();
        let lines: Vec<&str> = offered.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let caps = choose(&Caps::from_str(&lines.join("; ")).unwrap())?;
        assert!(caps.is_fixed(), "{caps}");
        let structure = caps.structure(0)?;
        let format = structure.get::<&str>("format").map(|format| format!(" {format}")).unwrap_or_default();
        let rate = structure.get::<Fraction>("framerate").map(|rate| format!(" {}/{}", rate.numer(), rate.denom())).unwrap_or_default();
        Some(format!("{}{format} {}x{}{rate}", structure.name(), structure.get::<i32>("width").ok()?, structure.get::<i32>("height").ok()?))
    }

    /// A UVC webcam on USB 2: its raw pictures are large or quick, not both.
    const WEBCAM: &str = "
        video/x-raw, format=YUY2, width=1920, height=1080, pixel-aspect-ratio=1/1, framerate=5/1
        video/x-raw, format=YUY2, width=1280, height=720, pixel-aspect-ratio=1/1, framerate=10/1
        video/x-raw, format=YUY2, width=640, height=480, pixel-aspect-ratio=1/1, framerate={ (fraction)30/1, (fraction)24/1, (fraction)15/1 }
        video/x-raw, format=YUY2, width=320, height=240, pixel-aspect-ratio=1/1, framerate={ (fraction)30/1, (fraction)24/1, (fraction)15/1 }";
    const WEBCAM_JPEG: &str = "
        image/jpeg, parsed=true, width=1920, height=1080, pixel-aspect-ratio=1/1, framerate={ (fraction)30/1, (fraction)24/1, (fraction)15/1 }
        image/jpeg, parsed=true, width=1280, height=720, pixel-aspect-ratio=1/1, framerate={ (fraction)60/1, (fraction)30/1 }
        image/jpeg, parsed=true, width=640, height=480, pixel-aspect-ratio=1/1, framerate=30/1";
    const WEBCAM_H264: &str = "
        video/x-h264, stream-format=byte-stream, alignment=au, width=1920, height=1080, pixel-aspect-ratio=1/1, framerate={ (fraction)30/1, (fraction)15/1 }";

    /// bcm2835-v4l2, a Raspberry Pi's camera behind its legacy driver: any size, and the encoders of the chip.
    const RASPBERRY: &str = "
        video/x-raw, format={ (string)YUY2, (string)I420, (string)RGB, (string)BGR, (string)UYVY, (string)NV12, (string)YVYU, (string)VYUY, (string)NV21, (string)YV12, (string)BGRx }, width=[ 32, 2592, 2 ], height=[ 32, 1944, 2 ], framerate=[ 1/1, 90/1 ]
        image/jpeg, parsed=true, width=[ 32, 2592, 2 ], height=[ 32, 1944, 2 ], framerate=[ 1/1, 90/1 ]
        video/x-h264, stream-format=byte-stream, alignment=au, width=[ 32, 2592, 2 ], height=[ 32, 1944, 2 ], framerate=[ 1/1, 90/1 ]";

    #[test]
    fn a_webcam_gives_its_large_pictures_as_jpeg() {
        assert_eq!(chosen(&format!("{WEBCAM}{WEBCAM_JPEG}")).unwrap(), "image/jpeg 1920x1080 30/1");
        assert_eq!(chosen(&format!("{WEBCAM_H264}{WEBCAM}{WEBCAM_JPEG}")).unwrap(), "image/jpeg 1920x1080 30/1");
        assert_eq!(chosen(&format!("{WEBCAM}{WEBCAM_H264}")).unwrap(), "video/x-h264 1920x1080 30/1");
    }

    #[test]
    fn a_webcam_without_jpeg_gives_the_largest_that_is_quick_enough() {
        assert_eq!(chosen(WEBCAM).unwrap(), "video/x-raw YUY2 1280x720 10/1");
    }

    #[test]
    fn raw_pictures_are_taken_where_they_are_as_large_and_as_quick() {
        let jpeg = "image/jpeg, width=1280, height=720, framerate=30/1";
        let raw = |rate: &str| format!("video/x-raw, format=YUY2, width=1280, height=720, framerate={rate}");
        assert_eq!(chosen(&format!("{jpeg}\n{}", raw("30000/1001"))).unwrap(), "video/x-raw YUY2 1280x720 30000/1001");
        assert_eq!(chosen(&format!("{jpeg}\n{}", raw("10/1"))).unwrap(), "image/jpeg 1280x720 30/1");
    }

    #[test]
    fn a_raspberry_gives_the_cheapest_raw_format_at_full_size() {
        assert_eq!(chosen(RASPBERRY).unwrap(), "video/x-raw NV12 1920x1080 30/1");
        let encoded: String = RASPBERRY.lines().filter(|line| !line.contains("x-raw")).map(|line| format!("{line}\n")).collect();
        assert_eq!(chosen(&encoded).unwrap(), "image/jpeg 1920x1080 30/1");
    }

    #[test]
    fn a_grabber_has_no_choice() {
        let grabber = "video/x-raw, format=UYVY, width=1920, height=1080, interlace-mode=progressive, colorimetry=bt709, framerate=60/1";
        assert_eq!(chosen(grabber).unwrap(), "video/x-raw UYVY 1920x1080 60/1");
    }

    #[test]
    fn grey_is_taken_where_there_is_no_colour() {
        let grey = "video/x-raw, format={ (string)GRAY8, (string)GRAY16_LE }, width=[ 64, 1440, 8 ], height=[ 2, 1081, 1 ], framerate=[ 0/1, 2147483647/1 ]";
        assert_eq!(chosen(grey).unwrap(), "video/x-raw GRAY8 1440x1080 30/1");
        let infrared =
            "video/x-raw, format=GRAY8, width=640, height=480, framerate=30/1\nvideo/x-vp8, width=640, height=480, framerate=30/1";
        assert_eq!(chosen(infrared).unwrap(), "video/x-vp8 640x480 30/1");
        assert_eq!(
            chosen("video/x-raw, format=GRAY8, width=1280, height=1024, framerate={ 60/1, 120/1 }").unwrap(),
            "video/x-raw GRAY8 1280x1024 60/1"
        );
    }

    #[test]
    fn slow_or_large_pictures_are_better_than_none() {
        let slow =
            "video/x-raw, format=YUY2, width=640, height=480, framerate={ 5/1, 15/2 }\nimage/jpeg, width=1600, height=1200, framerate=5/1";
        assert_eq!(chosen(slow).unwrap(), "image/jpeg 1600x1200 5/1");
        let large = "image/jpeg, width=3840, height=2160, framerate=30/1\nimage/jpeg, width=2592, height=1944, framerate=15/1";
        assert_eq!(chosen(large).unwrap(), "image/jpeg 2592x1944 15/1");
        let both = format!("{large}\nimage/jpeg, width=1280, height=960, framerate=5/1");
        assert_eq!(chosen(&both).unwrap(), "image/jpeg 1280x960 5/1");
        assert_eq!(
            chosen("video/x-raw, format=RGB, width=[ 2048, 4096, 16 ], height=[ 1536, 3072, 2 ]").unwrap(),
            "video/x-raw RGB 2048x1536"
        );
        assert_eq!(
            chosen("video/x-raw, format=BGR, width={ 160, 320 }, height={ 120, 240 }, framerate=0/1").unwrap(),
            "video/x-raw BGR 320x240"
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let unreadable = "
            video/x-bayer, format=rggb, width=1920, height=1080, framerate=30/1
            video/x-raw, format=Q08C, width=1920, height=1080, framerate=30/1
            video/x-raw(memory:DMABuf), format=DMA_DRM, width=1920, height=1080, framerate=30/1
            video/x-raw(format:Interlaced), format=YUY2, width=720, height=576, interlace-mode=alternate, framerate=25/1
            video/x-sonix, width=640, height=480, framerate=30/1";
        assert_eq!(chosen(unreadable), None);
        assert_eq!(chosen(&format!("{unreadable}\n{WEBCAM}")).unwrap(), "video/x-raw YUY2 1280x720 10/1");
        assert_eq!(chosen("video/x-raw, format=YUY2, framerate=30/1"), None);
    }
}
