//! Where a tag goes: at its box, inside the picture, and not on another tag.

use crate::types::PixelBox;

/// A rectangle in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl Area {
    fn overlaps(&self, other: &Self) -> bool {
        self.x < other.x + other.width && other.x < self.x + self.width && self.y < other.y + other.height && other.y < self.y + self.height
    }
}

/// Places a tag of `size` (width, height) for a box on a picture of `bounds` (width, height): above the box, else
/// inside at its top, else below it, else the next free row downwards. Where nothing is free it goes above the box.
pub(super) fn place(pixels: PixelBox, size: (u32, u32), bounds: (u32, u32), taken: &[Area]) -> Area {
    let (width, height) = (size.0.min(bounds.0), size.1.min(bounds.1));
    let lowest = bounds.1 - height;
    let x = pixels.x_min.min(bounds.0 - width);
    let at = |y: u32| Area { x, y: y.min(lowest), width, height };
    let above = pixels.y_min.checked_sub(height);
    let inside = pixels.y_min;
    let below = pixels.y_max;
    let rows = (0..).map(|row| inside + row * height).take_while(|y| *y <= lowest);
    let free = |area: &Area| !taken.iter().any(|other| area.overlaps(other));
    let found = above.into_iter().chain([inside, below]).chain(rows).map(at).find(free);
    found.unwrap_or_else(|| at(above.unwrap_or(inside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: (u32, u32) = (640, 480);
    const SIZE: (u32, u32) = (60, 20);

    fn at(x: u32, y: u32) -> Area {
        Area { x, y, width: SIZE.0, height: SIZE.1 }
    }

    #[test]
    fn above_inside_or_shifted_to_stay_on_the_picture() {
        let pixels = PixelBox { x_min: 100, y_min: 100, x_max: 200, y_max: 200 };
        assert_eq!(place(pixels, SIZE, BOUNDS, &[]), at(100, 80));
        assert_eq!(place(PixelBox { y_min: 5, ..pixels }, SIZE, BOUNDS, &[]), at(100, 5));
        assert_eq!(place(PixelBox { x_min: 630, x_max: 640, ..pixels }, SIZE, BOUNDS, &[]), at(580, 80));
    }

    #[test]
    fn tags_of_equal_boxes_do_not_cover_each_other() {
        let pixels = PixelBox { x_min: 100, y_min: 100, x_max: 200, y_max: 200 };
        let mut taken = Vec::new();
        for _ in 0..8 {
            let area = place(pixels, SIZE, BOUNDS, &taken);
            assert!(!taken.iter().any(|other| area.overlaps(other)), "{area:?} on {taken:?}");
            taken.push(area);
        }
    }
}
