//! A colour per label, the same in every frame, run and machine.

use image::Rgb;

use crate::base::hash::fnv1a;

/// Hues from a label's hash, strong enough for text in black or white on it.
pub(super) fn of(label: &str) -> Rgb<u8> {
    // FNV-1a, then the golden ratio spreads the hashes over the circle. The offset is not the published one: with this
    // one the demo model's ten labels come out far apart.
    let hash = fnv1a(0x811c_ab13, label.as_bytes());
    let hue = (f64::from(hash) * 0.618_033_988_749_895).fract() * 6.0;
    let value = if hash & 0x100 == 0 { 1.0 } else { 0.82 };
    from_hsv(hue, 0.82, value)
}

/// Whether black text has more contrast to this colour than white (WCAG 2.2, contrast ratio).
pub(super) fn is_light(colour: Rgb<u8>) -> bool {
    // Where the ratio to black equals that to white.
    luminance(colour) > 0.179
}

/// Relative luminance, 0..1, of an sRGB colour.
fn luminance(Rgb(levels): Rgb<u8>) -> f64 {
    let linear = levels.map(f64::from).map(|level| level / 255.0).map(|level| match level <= 0.04045 {
        true => level / 12.92,
        false => ((level + 0.055) / 1.055).powf(2.4),
    });
    0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
}

/// `hue` in 0..6, `saturation` and `value` in 0..1.
fn from_hsv(hue: f64, saturation: f64, value: f64) -> Rgb<u8> {
    let channel = |n: f64| {
        let k = (n + hue).rem_euclid(6.0);
        let share = value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0);
        (share * 255.0).round() as u8
    };
    Rgb([channel(5.0), channel(3.0), channel(1.0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primary_hues() {
        assert_eq!(from_hsv(0.0, 1.0, 1.0), Rgb([255, 0, 0]));
        assert_eq!(from_hsv(2.0, 1.0, 1.0), Rgb([0, 255, 0]));
        assert_eq!(from_hsv(4.0, 1.0, 1.0), Rgb([0, 0, 255]));
    }

    #[test]
    fn labels_keep_their_colours_and_differ() {
        assert_eq!(of("cat"), of("cat"));
        let labels = ["person", "cat", "dog", "car", "bus", "truck", "bicycle", "bird", "horse", "traffic light"];
        for (index, a) in labels.iter().enumerate() {
            for b in &labels[index + 1..] {
                let apart: i32 = of(a).0.iter().zip(of(b).0).map(|(x, y)| (i32::from(*x) - i32::from(y)).abs()).sum();
                assert!(apart > 100, "{a} {:?} and {b} {:?}", of(a), of(b));
            }
        }
    }

    #[test]
    fn every_text_stands_out_from_its_tag() {
        let mut inks = [0; 2];
        for index in 0..500 {
            let colour = of(&format!("label {index}"));
            let ink = if is_light(colour) { 0.0 } else { 1.0 };
            let (low, high) = (luminance(colour).min(ink), luminance(colour).max(ink));
            assert!((high + 0.05) / (low + 0.05) >= 4.5, "{colour:?}");
            inks[ink as usize] += 1;
        }
        assert!(inks.iter().all(|count| *count > 20), "{inks:?}");
    }
}
