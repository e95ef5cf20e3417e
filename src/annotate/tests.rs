//! What is drawn, by pixels and by pictures that were looked at.

use std::time::{Duration, Instant};

use image::Rgba;

use super::*;
use crate::types::{Box01, Mark, Patch};

fn found(label: &str, locs: [u16; 4]) -> Detection {
    Detection { label: label.to_owned(), score: 0.9, locs, box01: Box01::from_locs(locs) }
}

#[test]
fn a_box_is_outlined_in_its_labels_colour_and_the_inside_stays() {
    let image = RgbImage::from_pixel(640, 480, Rgb([90, 90, 90]));
    let drawn = Annotator::new().unwrap().draw(&image, &[found("cat", [256, 256, 768, 768])], "");
    assert_eq!(*drawn.get_pixel(161, 240), colour::of("cat"));
    assert_eq!(*drawn.get_pixel(320, 360 - 2), colour::of("cat"));
    assert_eq!(*drawn.get_pixel(320, 240), Rgb([90, 90, 90]));
    assert_eq!(*drawn.get_pixel(10, 10), Rgb([90, 90, 90]));
}

#[test]
fn the_caption_writes_on_a_dark_bar() {
    let image = RgbImage::from_pixel(320, 240, Rgb([200, 200, 200]));
    let drawn = Annotator::new().unwrap().draw(&image, &[], "street 2026-11-23 14:03:07");
    let bar: Vec<u8> = drawn.rows().skip(240 - 12).flatten().map(|pixel| pixel.0[0]).collect();
    assert!(bar.iter().any(|&value| value > 200) && bar.iter().filter(|&&value| value == 50).count() > bar.len() / 2);
}

#[test]
fn any_box_on_any_picture_is_drawn_without_a_panic() {
    let annotator = Annotator::new().unwrap();
    let labels = ["x", "a very long label that does not fit on any small picture at all", "猫 🐈 \u{0}\n"];
    for (width, height) in [(1, 1), (3, 200), (320, 240), (3840, 2160)] {
        let image = RgbImage::new(width, height);
        let all: Vec<Detection> = labels
            .iter()
            .flat_map(|label| [[0, 0, 1023, 1023], [1022, 1022, 1023, 1023], [0, 1000, 5, 1023]].map(|locs| found(label, locs)))
            .collect();
        let drawn = annotator.draw(&image, &all, labels[1]);
        assert_eq!(drawn.dimensions(), (width, height));
    }
}

const NO_FONTS: Vec<PathBuf> = Vec::new();

/// With what is embedded alone, on any machine.
pub(super) fn alone() -> Annotator {
    Annotator::with_fonts(NO_FONTS).unwrap()
}

fn goldens() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/drawing"))
}

/// Holds a picture against the one of this name that was looked at: no channel of a pixel may differ by more than `most` levels.
/// `PALISADE_WRITE_GOLDENS` has it written instead.
pub(crate) fn golden(name: &str, picture: &RgbImage, most: u8) {
    let file = goldens().join(format!("{name}.png"));
    if std::env::var_os("PALISADE_WRITE_GOLDENS").is_some() {
        return write(&file, picture);
    }
    let expected = image::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).to_rgb8();
    let same = picture.dimensions() == expected.dimensions();
    let off = |a: &Rgb<u8>, b: &Rgb<u8>| a.0.iter().zip(b.0).map(|(a, b)| a.abs_diff(b)).max().unwrap_or(0);
    let differ = picture.pixels().zip(expected.pixels()).filter(|(a, b)| off(a, b) > most).count();
    if same && differ == 0 {
        return;
    }
    let folder = std::env::temp_dir().join("palisade-drawing");
    std::fs::create_dir_all(&folder).unwrap();
    write(&folder.join(format!("{name}-actual.png")), picture);
    if same {
        let diff = RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
            let off = off(picture.get_pixel(x, y), expected.get_pixel(x, y));
            Rgb([if off > most { off.max(80) } else { 0 }, off, 0])
        });
        write(&folder.join(format!("{name}-diff.png")), &diff);
    }
    panic!(
        "{name}: {differ} pixels differ from {} ({:?}, expected {:?}); the picture and what differs are in {}",
        file.display(),
        picture.dimensions(),
        expected.dimensions(),
        folder.display()
    );
}

fn write(file: &std::path::Path, picture: &RgbImage) {
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    let out = std::fs::File::create(file).unwrap();
    picture.write_with_encoder(PngEncoder::new_with_quality(out, CompressionType::Best, FilterType::Adaptive)).unwrap();
}

fn share(sides: [f32; 4]) -> Box01 {
    let [y_min, x_min, y_max, x_max] = sides;
    Box01 { y_min, x_min, y_max, x_max }
}

fn seen(label: &str, score: f32, sides: [f32; 4]) -> Detection {
    Detection { label: label.to_owned(), score, locs: [0; 4], box01: share(sides) }
}

/// A street with houses, a car, somebody and a dog, in shares of the picture.
fn street(width: u32, height: u32) -> RgbImage {
    let parts: [([f32; 4], [u8; 3]); 12] = [
        ([0.0, 0.0, 0.45, 1.0], [168, 196, 222]),
        ([0.15, 0.0, 0.62, 0.30], [150, 104, 86]),
        ([0.05, 0.33, 0.62, 0.55], [196, 178, 140]),
        ([0.22, 0.58, 0.62, 1.0], [122, 128, 138]),
        ([0.25, 0.06, 0.38, 0.12], [60, 70, 86]),
        ([0.25, 0.18, 0.38, 0.24], [60, 70, 86]),
        ([0.60, 0.0, 0.68, 1.0], [172, 168, 160]),
        ([0.68, 0.0, 1.0, 1.0], [72, 74, 78]),
        ([0.82, 0.0, 0.84, 1.0], [214, 210, 190]),
        ([0.58, 0.55, 0.80, 0.90], [176, 40, 44]),
        ([0.42, 0.36, 0.70, 0.42], [44, 66, 120]),
        ([0.66, 0.20, 0.74, 0.29], [92, 64, 40]),
    ];
    RgbImage::from_fn(width, height, |x, y| {
        let (across, down) = (x as f32 / width as f32, y as f32 / height as f32);
        let part = parts
            .iter()
            .rev()
            .find(|([y_min, x_min, y_max, x_max], _)| (*x_min..*x_max).contains(&across) && (*y_min..*y_max).contains(&down));
        Rgb(part.map_or([110, 140, 90], |(_, colour)| *colour))
    })
}

/// What is to be seen on it.
fn things() -> [Detection; 3] {
    [
        seen("car", 0.97, [0.58, 0.55, 0.80, 0.90]),
        seen("person", 0.88, [0.42, 0.36, 0.70, 0.42]),
        seen("dog", 0.71, [0.66, 0.20, 0.74, 0.29]),
    ]
}

/// Boxes as they come out of a crowd.
fn crowd(count: u32) -> Vec<Detection> {
    let labels = ["person", "bicycle", "car", "dog", "traffic light"];
    (0..count)
        .map(|index| {
            let (column, row) = (index % 5, index / 5);
            let left = 0.22 + 0.11 * column as f32 + 0.02 * (row % 2) as f32;
            let top = 0.28 + 0.12 * row as f32 + 0.025 * (column % 3) as f32;
            seen(
                labels[(index as usize * 3) % 5],
                0.5 + 0.02 * index as f32,
                [top, left, top + 0.17, left + 0.08 + 0.02 * (index % 3) as f32],
            )
        })
        .collect()
}

#[test]
fn golden_street() {
    golden("street", &alone().draw(&street(640, 360), &things(), "street   2026-11-23 14:03:07"), 2);
}

#[test]
fn golden_small() {
    golden("small", &alone().draw(&street(320, 240), &things(), "street   2026-11-23 14:03:07"), 2);
}

#[test]
fn golden_crowd() {
    golden("crowd", &alone().draw(&street(640, 360), &crowd(20), "square   2026-11-23 14:03:07"), 2);
}

#[test]
fn golden_cluster() {
    // Side by side, each narrower than its tag.
    let close = |index: u32| {
        let (left, top) = (0.25 + 0.045 * index as f32, 0.5);
        seen(["person", "dog", "bicycle"][index as usize % 3], 0.9 - 0.03 * index as f32, [top, left, top + 0.08, left + 0.035])
    };
    let detections: Vec<Detection> = (0..12).map(close).collect();
    golden("cluster", &alone().draw(&street(640, 360), &detections, ""), 2);
}

#[test]
fn golden_large() {
    let drawn = alone().draw(&street(3840, 2160), &things(), "street   2026-11-23 14:03:07");
    // Around the car's upper left corner, in the picture's own pixels.
    golden("large", &image::imageops::crop_imm(&drawn, 2000, 1120, 640, 360).to_image(), 2);
}

#[test]
fn golden_scripts() {
    let labels = [
        "Kühlschrank",
        "собака",
        "πόρτα",
        "חתול (אדום)",
        "قطة سوداء",
        "گربه",
        "猫",
        "ネコ",
        "고양이",
        "बिल्ली",
        "🐈 chat",
        "e\u{301}le\u{301}phant",
    ];
    let detections: Vec<Detection> = (0..)
        .zip(labels)
        .map(|(index, label)| {
            let (top, left) = (0.1 + 0.22 * (index / 3) as f32, 0.03 + 0.33 * (index % 3) as f32);
            seen(label, 0.91, [top, left, top + 0.12, left + 0.28])
        })
        .collect();
    golden("scripts", &alone().draw(&RgbImage::from_pixel(640, 360, Rgb([96, 104, 112])), &detections, "улица   2026-11-23 14:03:07"), 2);
}

/// The same, as it is at a moment.
fn mark(found: &Detection, seen: Instant) -> Mark {
    Mark { label: found.label.as_str().into(), score: found.score, box01: found.box01, seen, lasts: Duration::from_secs(5) }
}

/// Patches blended on a picture, in their order.
fn blended(mut picture: RgbImage, patches: &[Patch]) -> RgbImage {
    for patch in patches {
        for (x, y, Rgba([r, g, b, alpha])) in patch.image.enumerate_pixels() {
            let under = picture.get_pixel_mut(patch.x + x, patch.y + y);
            let mix =
                |over: u8, under: u8| ((u32::from(over) * u32::from(*alpha) + u32::from(under) * (255 - u32::from(*alpha))) / 255) as u8;
            *under = Rgb([mix(*r, under.0[0]), mix(*g, under.0[1]), mix(*b, under.0[2])]);
        }
    }
    picture
}

#[test]
fn golden_live() {
    let begin = Instant::now();
    let now = begin + Duration::from_millis(6200);
    let seen = [now, now, begin].into_iter().chain(std::iter::repeat(now));
    let marks: Vec<Mark> = things().iter().chain(&crowd(6)).zip(seen).map(|(found, seen)| mark(found, seen)).collect();
    let grey = RgbImage::from_pixel(640, 360, Rgb([128; 3]));
    golden("live", &blended(grey, &alone().overlay(&marks, now, (640, 360))), 2);
}

#[test]
fn tags_over_live_video_are_those_of_a_frame() {
    let (annotator, now) = (alone(), Instant::now());
    let crowded = (0..40).map(|index| Detection { box01: crowd(20)[index % 7].box01, ..crowd(20)[index % 20].clone() }).collect();
    // Too far apart for one patch, and the second box's side runs through the first one's tag.
    let wide = vec![seen("traffic light", 0.9, [0.5, 0.0, 0.6, 0.03]), seen("car", 0.9, [0.02, 0.13, 0.98, 0.99])];
    for (found, size) in [(crowded, (640, 360)), (wide, (1920, 1080))] {
        let found: Vec<Detection> = found;
        let grey = RgbImage::from_pixel(size.0, size.1, Rgb([128; 3]));
        let marks: Vec<Mark> = found.iter().map(|found| mark(found, now)).collect();
        let (frame, live) = (annotator.draw(&grey, &found, ""), blended(grey, &annotator.overlay(&marks, now, size)));
        let boxes: Vec<PixelBox> = found.iter().map(|found| found.box01.to_pixels(size.0, size.1)).collect();
        let (metrics, mut taken) = (Metrics::of(size), Vec::new());
        for (found, pixels) in found.iter().zip(&boxes) {
            let rest = format!(" {:.2}", found.score);
            let tag = annotator.tag(&found.label, &rest, *pixels, &metrics, &Ground { bounds: size, taken: &taken, boxes: &boxes });
            taken.push(tag.area.grown(metrics.edge));
            let part = |picture| image::imageops::crop_imm(picture, tag.area.x, tag.area.y, tag.area.width, tag.area.height).to_image();
            let off = part(&frame).iter().zip(part(&live).iter()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(off.is_some_and(|off| off <= 3), "{}: {off:?}", found.label);
        }
    }
}

#[test]
fn golden_slate() {
    let lines = ["street".to_owned(), "backoff: the camera at rtsp://192.168.1.20:554/main does not answer; tried again in 8 s".to_owned()];
    golden("slate", &alone().slate(Some(&street(640, 360)), (0, 0), &lines), 2);
}

/// A white text's pixels on black, of 30 pixels height.
fn ink(annotator: &Annotator, text: &str) -> RgbImage {
    let mut canvas = RgbImage::new(320, 48);
    Line::of(&annotator.fonts, text).draw(&mut canvas, WHITE, (4, 4), 30.0, &annotator.fonts);
    canvas
}

fn letters(annotator: &Annotator, text: &str) -> String {
    Line::of(&annotator.fonts, text).letters()
}

#[test]
fn text_has_soft_edges() {
    let drawn = ink(&alone(), "soft");
    let count = |range: std::ops::RangeInclusive<u8>| drawn.pixels().filter(|pixel| range.contains(&pixel.0[0])).count();
    assert!(count(255..=255) > 40, "nothing is written");
    assert!(count(32..=223) > 100, "{} pixels between black and white", count(32..=223));
}

#[test]
fn letters_of_many_scripts_are_not_the_box_of_nothing() {
    let annotator = alone();
    let mut nothing = RgbImage::new(320, 48);
    let face = annotator.fonts.own();
    imageproc::drawing::draw_text_mut(&mut nothing, WHITE, 4, 4, face.scale(30.0), &face.font, "\u{e123}");
    assert!(nothing.pixels().any(|pixel| *pixel == WHITE), "the font has a box for what it lacks");
    for letter in ["Q", "ß", "Ж", "я", "Ω", "ώ", "ש", "ق", "پ", "ł", "ệ", "ა", "Ա"] {
        let drawn = ink(&annotator, letter);
        assert!(drawn != nothing && drawn.pixels().any(|pixel| pixel.0[0] > 200), "{letter}");
    }
}

#[test]
fn what_no_font_has_is_spelled() {
    let annotator = alone();
    assert!(ink(&annotator, "猫") == ink(&annotator, "Mao") && ink(&annotator, "猫") != ink(&annotator, "?"));
    for (label, expected) in [
        ("猫", "Mao"),
        ("黒い猫 2", "Hei i Mao 2"),
        ("고양이", "goyangi"),
        ("बिल्ली", "billii"),
        ("🐈", "cat"),
        ("a🐈b", "a cat b"),
        ("🐈\u{200d}⬛", "cat black large square"),
        ("\u{e000}", "?"),
        ("\u{fe0f}", "?"),
        ("собака", "собака"),
        ("قطة", "\u{fe94}\u{fec4}\u{fed7}"),
    ] {
        assert_eq!(letters(&annotator, label), expected, "{label}");
    }
}

#[test]
fn a_font_of_the_system_is_used_where_it_has_the_letter() {
    let annotator = Annotator::with_fonts(vec!["/no/such/folder".into(), goldens()]).unwrap();
    assert_eq!(letters(&annotator, "猫"), "猫");
    assert_eq!(letters(&annotator, "犬 и 猫"), "犬 и 猫");
    assert_eq!(letters(&annotator, "鳥"), "Niao", "neither face has it");
    // A triangle on the line, as high as a capital and a little more: narrow at its top and wide at its foot.
    let drawn = ink(&annotator, "猫");
    let widths: Vec<usize> = drawn.rows().map(|row| row.filter(|pixel| pixel.0[0] > 128).count()).filter(|width| *width > 0).collect();
    let em = 30.0 / 1.164;
    assert!((widths.len() as f32 - 0.8 * em).abs() < 2.0, "{widths:?}");
    assert!(widths[1] < 4 && (*widths.last().unwrap() as f32 - 0.8 * em).abs() < 3.0, "{widths:?}");
    let foot = |drawn: &RgbImage| drawn.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[0] > 128).map(|(_, y, _)| y).max().unwrap();
    assert!(foot(&drawn).abs_diff(foot(&ink(&annotator, "H"))) <= 1, "both stand on one line");
}

#[test]
fn a_text_is_cut_between_letters_and_keeps_the_score() {
    let annotator = alone();
    let fonts = &annotator.fonts;
    let whole = "a long label with a lot to tell";
    for width in 0..300 {
        let line = Line::fitted(fonts, whole, " 0.91", 14.0, width);
        let (text, wide) = (line.letters(), line.width(14.0));
        assert!(wide <= width || text == "…", "{text}: {wide} of {width}");
        let kept = text.strip_suffix(" 0.91").unwrap_or(&text);
        assert!(kept == whole || whole.starts_with(kept.strip_suffix('…').unwrap()), "{text}");
        assert!(width < 80 || text.ends_with(" 0.91"), "{text} in {width}");
    }
    // What is cut of a text from the right is at its left; marks go with their letters.
    assert!(Line::fitted(fonts, "חתול שחור גדול", "", 14.0, 60).letters().starts_with('…'));
    let marked = "q\u{323}q\u{323}q\u{323}q\u{323}";
    for width in 10..60 {
        let text = Line::fitted(fonts, marked, "", 14.0, width).letters();
        assert!(!text.contains("q…") && !text.ends_with('q'), "{text}");
    }
}

#[test]
fn tags_on_a_crowded_picture_do_not_overlap() {
    let (annotator, bounds) = (alone(), (1280, 720));
    let detections = crowd(30);
    let boxes: Vec<PixelBox> = detections.iter().map(|found| found.box01.to_pixels(bounds.0, bounds.1)).collect();
    let (metrics, mut taken) = (Metrics::of(bounds), Vec::new());
    for (found, pixels) in detections.iter().zip(&boxes) {
        let tag = annotator.tag(&found.label, " 0.91", *pixels, &metrics, &Ground { bounds, taken: &taken, boxes: &boxes });
        let Area { x, y, width, height } = tag.area;
        assert!(taken.iter().all(|Area { x: left, y: top, width: wide, height: high }| {
            x >= left + wide || *left >= x + width || y >= top + high || *top >= y + height
        }));
        taken.push(tag.area);
    }
}

#[test]
fn lines_are_wider_on_larger_pictures() {
    let widths: Vec<u32> = [(320, 240), (1280, 720), (3840, 2160)].map(|size| Metrics::of(size).line).to_vec();
    assert_eq!(widths, [2, 4, 10]);
    // The outline on the picture itself: as many pixels of its colour side by side.
    for (size, line) in [((320, 240), 2), ((1280, 720), 4), ((3840, 2160), 10)] {
        let drawn = alone().draw(&RgbImage::new(size.0, size.1), &[seen("cat", 0.9, [0.25, 0.25, 0.75, 0.75])], "");
        let row = (0..size.0 / 2).filter(|x| *drawn.get_pixel(*x, size.1 / 2) == colour::of("cat")).count();
        assert_eq!(row, line);
    }
}
