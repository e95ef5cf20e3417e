//! How good a picture of an object is. Pure.

use crate::types::Box01;

/// So much better a picture must be to take the place of another: else each look would be a new one, of the same.
pub const BETTER: f32 = 1.1;

/// What is nearer to the picture's border, in shares of its sides, may go on beyond it.
const EDGE: f32 = 0.005;

/// A picture of a part counts as much as one of a whole object that is half as long.
const CUT: f32 = 0.5;

/// By how sure the model is, how large the object is in the picture, and whether all of it is there. It is one number, so
/// that pictures get better from one to the next and never take turns; and an object has few: each is a tenth better.
pub fn merit(score: f32, box01: Box01) -> f32 {
    let Box01 { y_min, x_min, y_max, x_max } = box01;
    let area = (x_max - x_min).max(0.0) * (y_max - y_min).max(0.0);
    let cut = x_min <= EDGE || y_min <= EDGE || x_max >= 1.0 - EDGE || y_max >= 1.0 - EDGE;
    score * area.sqrt() * if cut { CUT } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(score: f32, x: f32, width: f32, height: f32) -> f32 {
        merit(score, Box01 { x_min: x, x_max: x + width, y_min: 0.3, y_max: 0.3 + height })
    }

    #[test]
    fn surer_larger_and_whole_is_better() {
        let usual = of(0.5, 0.3, 0.2, 0.2);
        assert!(of(0.6, 0.3, 0.2, 0.2) > usual * BETTER);
        assert!(of(0.5, 0.3, 0.25, 0.25) > usual * BETTER);
        assert!(of(0.52, 0.3, 0.2, 0.2) < usual * BETTER && of(0.5, 0.3, 0.21, 0.2) < usual * BETTER, "nearly the same");
        for cut in [of(0.5, 0.0, 0.2, 0.2), of(0.5, 0.8, 0.199, 0.2), of(0.6, 0.0, 0.3, 0.2)] {
            assert!(cut * BETTER < usual, "a part of it: {cut}, and {usual}");
        }
        assert!(of(0.9, 0.0, 0.6, 0.6) > usual * BETTER, "so near that it does not fit is better than far away");
    }
}
