//! The picture of one object for a file: the frame or the part of it that shows the object, as it is or with its box drawn.

use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::annotate::Annotator;
use crate::base::error::Result;
use crate::base::jpeg;
use crate::config::GalleryConfig;
use crate::sink::gallery::{Draw, Shot};
use crate::types::{Box01, Detection, PixelBox};

/// Around an object, in shares of the longer side of its box,
const MARGIN: f64 = 0.2;

/// and at least so many pixels: room for the tag of a small one.
const LEAST: f64 = 24.0;

/// Makes pictures as the configuration has them.
pub(super) fn draw(config: &GalleryConfig, annotator: Annotator) -> Draw {
    let config = config.clone();
    Box::new(move |shot| picture(&annotator, shot, &config))
}

fn picture(annotator: &Annotator, shot: &Shot, config: &GalleryConfig) -> Result<Vec<u8>> {
    let whole = &*shot.frame.image;
    let (part, box01) = if config.crop { cut(whole, shot.box01) } else { (None, shot.box01) };
    let picture = part.as_ref().unwrap_or(whole);
    // Scaled first: lines and letters stay as wide as they are to be.
    let small = config.max_height.filter(|most| picture.height() > *most).map(|height| scaled(picture, height));
    let picture = small.as_ref().unwrap_or(picture);
    let encode = |picture: &RgbImage| jpeg::encode(picture.as_raw(), picture.width(), picture.height(), config.quality);
    if !config.annotate {
        return encode(picture);
    }
    // A picture of one object shows which one it is of, though there be more.
    let detection = Detection { label: shot.label.to_string(), score: shot.score, locs: [0; 4], box01 };
    let caption = match config.crop {
        true => String::new(),
        false => format!("{}   {}", shot.frame.camera, shot.frame.captured.local()),
    };
    encode(&annotator.draw(picture, &[detection], &caption))
}

/// The part of a picture with an object and some room around it, and where in it the object is. `None`: all of it.
fn cut(whole: &RgbImage, box01: Box01) -> (Option<RgbImage>, Box01) {
    let (width, height) = whole.dimensions();
    let part = around(box01.to_pixels(width, height), (width, height));
    let (wide, high) = (part.x_max - part.x_min, part.y_max - part.y_min);
    if wide == 0 || high == 0 || (wide, high) == (width, height) {
        return (None, box01);
    }
    let across = |share: f32| (share * width as f32 - part.x_min as f32) / wide as f32;
    let down = |share: f32| (share * height as f32 - part.y_min as f32) / high as f32;
    let inside = Box01 { y_min: down(box01.y_min), x_min: across(box01.x_min), y_max: down(box01.y_max), x_max: across(box01.x_max) };
    (Some(imageops::crop_imm(whole, part.x_min, part.y_min, wide, high).to_image()), inside)
}

/// A box with its margin, inside a picture of this width and height.
fn around(object: PixelBox, (width, height): (u32, u32)) -> PixelBox {
    let longer = object.x_max.saturating_sub(object.x_min).max(object.y_max.saturating_sub(object.y_min));
    let margin = (f64::from(longer) * MARGIN).max(LEAST) as u32;
    PixelBox {
        x_min: object.x_min.saturating_sub(margin),
        y_min: object.y_min.saturating_sub(margin),
        x_max: object.x_max.saturating_add(margin).min(width),
        y_max: object.y_max.saturating_add(margin).min(height),
    }
}

/// The picture with this height, lower than its own.
fn scaled(picture: &RgbImage, height: u32) -> RgbImage {
    let width = u64::from(picture.width()) * u64::from(height) / u64::from(picture.height().max(1));
    imageops::resize(picture, width.max(1) as u32, height, FilterType::Triangle)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use image::Rgb;

    use super::*;
    use crate::annotate::tests::golden;
    use crate::base::clock::Utc;
    use crate::types::{CameraId, Frame, TimeSource};

    const RED: Rgb<u8> = Rgb([220, 30, 30]);
    const GREY: Rgb<u8> = Rgb([120, 120, 120]);

    /// A grey frame of 640 by 480 pixels with a red object.
    fn shot(object: PixelBox) -> Shot {
        let inside = |x, y| (object.x_min..object.x_max).contains(&x) && (object.y_min..object.y_max).contains(&y);
        let image = RgbImage::from_fn(640, 480, |x, y| if inside(x, y) { RED } else { GREY });
        let share = |pixel: u32, of: u32| pixel as f32 / of as f32;
        let box01 = Box01 {
            y_min: share(object.y_min, 480),
            x_min: share(object.x_min, 640),
            y_max: share(object.y_max, 480),
            x_max: share(object.x_max, 640),
        };
        let frame = Frame {
            camera: CameraId::new("street").unwrap(),
            captured: Utc::from_millis(1_795_442_587_120),
            time_source: TimeSource::Pipeline,
            received: Instant::now(),
            position: None,
            image: Arc::new(image),
        };
        Shot { frame, label: "box".into(), score: 0.9, box01 }
    }

    fn made(shot: &Shot, change: impl FnOnce(&mut GalleryConfig)) -> RgbImage {
        let mut config = GalleryConfig::new("x".into());
        change(&mut config);
        let jpeg = draw(&config, Annotator::new().unwrap())(shot).unwrap();
        image::load_from_memory_with_format(&jpeg, image::ImageFormat::Jpeg).unwrap().to_rgb8()
    }

    fn near(pixel: &Rgb<u8>, expected: Rgb<u8>) -> bool {
        pixel.0.iter().zip(expected.0).all(|(a, b)| a.abs_diff(b) < 24)
    }

    /// How many pixels are red.
    fn red(picture: &RgbImage) -> usize {
        picture.pixels().filter(|pixel| near(pixel, RED)).count()
    }

    const OBJECT: PixelBox = PixelBox { x_min: 200, y_min: 120, x_max: 300, y_max: 280 };

    #[test]
    fn a_cropped_picture_holds_the_object_and_its_margin() {
        let picture = made(&shot(OBJECT), |config| (config.crop, config.annotate) = (true, false));
        // A fifth of 160 pixels at each side.
        assert_eq!(picture.dimensions(), (100 + 64, 160 + 64));
        assert!(red(&picture).abs_diff(100 * 160) < 600, "{}", red(&picture));
        for (x, y, expected) in [(28, 100, GREY), (36, 100, RED), (127, 100, RED), (136, 100, GREY), (82, 28, GREY), (82, 187, RED)] {
            assert!(near(picture.get_pixel(x, y), expected), "{x} {y}: {:?}", picture.get_pixel(x, y));
        }
    }

    #[test]
    fn a_crop_never_leaves_the_picture() {
        for object in [
            PixelBox { x_min: 0, y_min: 0, x_max: 50, y_max: 60 },
            PixelBox { x_min: 600, y_min: 400, x_max: 640, y_max: 480 },
            PixelBox { x_min: 0, y_min: 0, x_max: 640, y_max: 480 },
            PixelBox { x_min: 320, y_min: 240, x_max: 320, y_max: 240 },
            PixelBox { x_min: 639, y_min: 479, x_max: 640, y_max: 480 },
        ] {
            let part = around(object, (640, 480));
            assert!(part.x_min <= object.x_min && part.y_min <= object.y_min && part.x_max >= object.x_max && part.y_max >= object.y_max);
            for annotate in [false, true] {
                let picture = made(&shot(object), |config| (config.crop, config.annotate) = (true, annotate));
                assert_eq!(picture.dimensions(), (part.x_max - part.x_min, part.y_max - part.y_min), "{object:?}");
                assert!(picture.width() <= 640 && picture.height() <= 480);
            }
        }
    }

    #[test]
    fn a_whole_frame_stays_whole_and_a_clean_one_clean() {
        let clean = made(&shot(OBJECT), |config| config.annotate = false);
        assert_eq!(clean.dimensions(), (640, 480));
        assert!(clean.pixels().filter(|pixel| !near(pixel, RED) && !near(pixel, GREY)).count() < 2000, "only the edges are unclear");
        let drawn = made(&shot(OBJECT), |_| ());
        assert_eq!(drawn.dimensions(), (640, 480));
        assert!(near(drawn.get_pixel(620, 478), Rgb([30, 30, 30])), "camera and time stand at the foot");
        let outline = *drawn.get_pixel(201, 200);
        assert!(!near(&outline, RED) && !near(&outline, GREY), "{outline:?}");
        assert!(near(drawn.get_pixel(250, 200), RED) && near(drawn.get_pixel(20, 20), GREY));
    }

    #[test]
    fn the_box_is_drawn_where_the_object_is_on_a_crop_too() {
        let picture = made(&shot(OBJECT), |config| config.crop = true);
        assert_eq!(picture.dimensions(), (164, 224));
        // The outline lies just inside the object's sides.
        for (x, y) in [(33, 110), (130, 110), (82, 33), (82, 190)] {
            assert!(!near(picture.get_pixel(x, y), RED) && !near(picture.get_pixel(x, y), GREY), "{x} {y}: {:?}", picture.get_pixel(x, y));
        }
        assert!(near(picture.get_pixel(82, 112), RED) && near(picture.get_pixel(10, 110), GREY));
    }

    #[test]
    fn golden_portrait() {
        let small = PixelBox { x_min: 300, y_min: 200, x_max: 345, y_max: 290 };
        // Decoders of JPEG differ by a few levels.
        golden("portrait", &made(&shot(OBJECT), |config| config.crop = true), 8);
        golden("portrait-small", &made(&shot(small), |config| config.crop = true), 8);
    }

    #[test]
    fn high_pictures_are_scaled_down_and_no_others() {
        let of = |crop, most| made(&shot(OBJECT), |config| (config.crop, config.max_height) = (crop, Some(most))).dimensions();
        assert_eq!((of(false, 240), of(false, 480), of(true, 112), of(true, 480)), ((320, 240), (640, 480), (82, 112), (164, 224)));
    }
}
