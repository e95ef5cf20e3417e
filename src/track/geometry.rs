//! Boxes and polygons. Positions are shares of the picture; lengths are heights of the picture, so that a step to the
//! side is as long as one upwards. `aspect` is the picture's width over its height.

use crate::types::Box01;

/// What no box is smaller than, in heights of the picture: distances are divided by sizes.
const LEAST: f32 = 0.01;

/// The middle of a box.
pub(super) fn centre(b: Box01) -> [f32; 2] {
    [(b.x_min + b.x_max) / 2.0, (b.y_min + b.y_max) / 2.0]
}

/// Mean of width and height, in heights of the picture. It changes less than the root of the area when a box is cut off at
/// an edge of the picture.
pub(super) fn size(b: Box01, aspect: f32) -> f32 {
    (((b.x_max - b.x_min) * aspect + (b.y_max - b.y_min)) / 2.0).max(LEAST)
}

/// Between two points, in heights of the picture.
pub(super) fn distance(a: [f32; 2], b: [f32; 2], aspect: f32) -> f32 {
    ((a[0] - b[0]) * aspect).hypot(a[1] - b[1])
}

/// The box elsewhere; it may leave the picture.
pub(super) fn shifted(b: Box01, by: [f32; 2]) -> Box01 {
    Box01 { x_min: b.x_min + by[0], x_max: b.x_max + by[0], y_min: b.y_min + by[1], y_max: b.y_max + by[1] }
}

/// Width over height in pixels.
pub(super) fn ratio(b: Box01, aspect: f32) -> f32 {
    (b.x_max - b.x_min) * aspect / (b.y_max - b.y_min).max(f32::EPSILON)
}

/// Share of the picture.
pub(super) fn area(b: Box01) -> f32 {
    (b.x_max - b.x_min) * (b.y_max - b.y_min)
}

/// Whether what the box shows stands within the polygon: the middle of its lower edge, by the even-odd rule.
pub(super) fn stands_in(b: Box01, polygon: &[[f64; 2]]) -> bool {
    // A box that is cut off by the picture's edge stands within a polygon that ends there.
    let within = |share: f32| f64::from(share).clamp(0.0005, 0.9995);
    let (x, y) = (within((b.x_min + b.x_max) / 2.0), within(b.y_max));
    let mut inside = false;
    let mut before = polygon.last();
    for corner in polygon {
        if let Some([x0, y0]) = before
            && (y0 > &y) != (corner[1] > y)
            && x < (corner[0] - x0) * (y - y0) / (corner[1] - y0) + x0
        {
            inside = !inside;
        }
        before = Some(corner);
    }
    inside
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(x: f32, y: f32) -> Box01 {
        Box01 { x_min: x - 0.05, x_max: x + 0.05, y_min: y - 0.2, y_max: y }
    }

    #[test]
    fn a_box_stands_where_the_middle_of_its_lower_edge_is() {
        // An L: the upper right quarter is not of it.
        let l = [[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]];
        for (x, y, inside) in [(0.25, 0.3, true), (0.75, 0.4, false), (0.75, 0.6, true), (0.45, 0.49, true), (0.55, 0.49, false)] {
            assert_eq!(stands_in(at(x, y), &l), inside, "{x} {y}");
        }
        assert!(stands_in(at(0.75, 1.0), &l) && stands_in(at(1.0, 0.9), &l) && stands_in(at(0.0, 0.9), &l), "at the picture's edge");
        let backwards: Vec<[f64; 2]> = l.iter().rev().copied().collect();
        assert!(stands_in(at(0.75, 0.6), &backwards) && !stands_in(at(0.75, 0.4), &backwards));
        assert!(!stands_in(at(0.5, 0.5), &[]));
    }

    #[test]
    fn lengths_are_heights_of_the_picture() {
        let b = Box01 { x_min: 0.25, x_max: 0.5, y_min: 0.25, y_max: 0.75 };
        assert_eq!((size(b, 2.0), ratio(b, 2.0), area(b), centre(b)), (0.5, 1.0, 0.125, [0.375, 0.5]));
        assert_eq!(distance([0.0, 0.0], [0.15, 0.4], 2.0), 0.5);
        assert_eq!(size(Box01 { x_max: 0.25, y_max: 0.25, ..b }, 2.0), LEAST);
    }
}
