//! What the model said about one picture.

/// A bounding box in shares of the picture: 0..1, `min` is the top left corner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Box01 {
    /// Top edge, share of the height.
    pub y_min: f32,
    /// Left edge, share of the width.
    pub x_min: f32,
    /// Bottom edge, share of the height.
    pub y_max: f32,
    /// Right edge, share of the width.
    pub x_max: f32,
}

/// A bounding box in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelBox {
    /// Left edge.
    pub x_min: u32,
    /// Top edge.
    pub y_min: u32,
    /// Right edge.
    pub x_max: u32,
    /// Bottom edge.
    pub y_max: u32,
}

impl Box01 {
    /// From the four `<locNNNN>` values in the model's order y0, x0, y1, x1, each a 1024th of the height or width.
    pub fn from_locs(locs: [u16; 4]) -> Self {
        let [y_min, x_min, y_max, x_max] = locs.map(|loc| f32::from(loc) / 1024.0);
        Self { y_min, x_min, y_max, x_max }
    }

    /// In pixels of a picture of `width` × `height`, rounded to the nearest.
    pub fn to_pixels(self, width: u32, height: u32) -> PixelBox {
        let scale = |share: f32, size: u32| (f64::from(share) * f64::from(size)).round().clamp(0.0, f64::from(size)) as u32;
        PixelBox {
            x_min: scale(self.x_min, width),
            y_min: scale(self.y_min, height),
            x_max: scale(self.x_max, width),
            y_max: scale(self.y_max, height),
        }
    }

    /// Intersection over union with another box: 0 (apart) to 1 (equal).
    pub fn iou(self, other: Self) -> f32 {
        let height = (self.y_max.min(other.y_max) - self.y_min.max(other.y_min)).max(0.0);
        let width = (self.x_max.min(other.x_max) - self.x_min.max(other.x_min)).max(0.0);
        let area = |b: Self| (b.y_max - b.y_min) * (b.x_max - b.x_min);
        let both = height * width;
        let either = area(self) + area(other) - both;
        if either > 0.0 { both / either } else { 0.0 }
    }
}

/// One object the model found.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// The label as the model wrote it, trimmed.
    pub label: String,
    /// `exp(mean log-probability)` of the detection's tokens, 0..1: PaliGemma emits no score of its own.
    pub score: f32,
    /// The four location values as the model wrote them: y0, x0, y1, x1 in 0..=1023.
    pub locs: [u16; 4],
    /// The same as shares of the picture.
    pub box01: Box01,
}

/// A piece of the answer that names no usable box.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    /// The piece as the model wrote it.
    pub text: String,
    /// Why it is no detection.
    pub why: &'static str,
}

/// Why the model stopped writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It ended the answer itself.
    Eos,
    /// It reached `max_new_tokens`.
    Length,
}

impl Finish {
    /// The name used in the MQTT contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Length => "length",
        }
    }
}

/// The model's whole answer about one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The text as the model wrote it.
    pub raw: String,
    /// Why it stopped.
    pub finish: Finish,
    /// The objects found, in the model's order.
    pub detections: Vec<Detection>,
    /// What was dropped, and why.
    pub rejected: Vec<Rejected>,
    /// The tokens of the text, the end token last where the model wrote it: the draft of the next answer.
    pub tokens: Vec<u32>,
    /// How many of them a draft had right.
    pub drafts_accepted: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_become_shares_and_pixels() {
        let b = Box01::from_locs([251, 104, 893, 610]);
        assert_eq!(b, Box01 { y_min: 251.0 / 1024.0, x_min: 104.0 / 1024.0, y_max: 893.0 / 1024.0, x_max: 610.0 / 1024.0 });
        assert_eq!(b.to_pixels(1920, 1080), PixelBox { x_min: 195, y_min: 265, x_max: 1144, y_max: 942 });
    }

    #[test]
    fn iou_of_equal_apart_and_half() {
        let left = Box01 { y_min: 0.0, x_min: 0.0, y_max: 1.0, x_max: 0.5 };
        let right = Box01 { x_min: 0.5, x_max: 1.0, ..left };
        let whole = Box01 { x_max: 1.0, ..left };
        assert_eq!((left.iou(left), left.iou(right), left.iou(whole)), (1.0, 0.0, 0.5));
        let nothing = Box01 { y_max: 0.0, ..left };
        assert_eq!(nothing.iou(nothing), 0.0);
    }
}
