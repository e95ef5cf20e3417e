//! Whether something moves in a picture: what differs from a background that is learnt, beyond its noise and beyond a
//! change of light.
//!
//! Everything is measured in seconds, for cameras send one picture a keyframe or thirty a second.

use std::time::Instant;

use crate::config::Mask;
use crate::types::Luma;

/// Time in which the background follows what does not move, and what does: a parked car is part of it after minutes.
const FOLLOW_STILL: f32 = 10.0;
const FOLLOW_MOVING: f32 = 60.0;

/// Time in which a cell's noise is learnt; leaves that flutter become noise.
const LEARN_NOISE: f32 = 30.0;

/// The first pictures teach more: nothing is known of the noise yet.
const FIRST: f32 = 20.0;

/// Differences of brightness that are nothing in any case, as compression makes them.
const FLOOR: f32 = 8.0;

/// So many times its own mean noise, and the picture's, a cell must differ by.
const ABOVE_NOISE: f32 = 5.0;

/// More than this is not believed to be noise: else a busy street would hide its own cars, and another scene itself.
const MOST_NOISE: f32 = 8.0;

/// Moving cells that are something, each with two moving neighbours at least: so many, and this share of all.
const LEAST_CELLS: usize = 4;
const LEAST_SHARE: f32 = 0.0005;

/// A share of moving cells above which the camera itself has moved: the background is learnt anew.
const OTHER_SCENE: f32 = 0.4;

/// Between the dark and the bright half of a picture: below it a change of light is the same for all.
const LEAST_CONTRAST: f32 = 10.0;

/// The background of one camera.
#[derive(Debug, Default)]
pub struct Motion {
    mask: Mask,
    background: Option<Background>,
}

#[derive(Debug)]
struct Background {
    shape: (usize, usize),
    /// Indices of the cells that are looked at.
    open: Vec<usize>,
    mean: Vec<f32>,
    /// Mean distance from the mean.
    noise: Vec<f32>,
    /// Pictures it was learnt from.
    pictures: f32,
    at: Instant,
}

/// What a picture came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The share of cells that move, 0..1; 1 for a first picture.
    pub score: f32,
    /// Whether that is something.
    pub moves: bool,
}

impl Motion {
    /// Nothing is known yet.
    pub fn new(mask: Mask) -> Self {
        Self { mask, background: None }
    }

    /// Judges a picture taken at `at`, and learns from it. A first picture, one of another size, and one of another scene
    /// move: nothing is known of what they show.
    pub fn step(&mut self, luma: &Luma, at: Instant) -> Verdict {
        let known = self.background.as_mut().filter(|background| background.shape == luma.shape());
        if let Some(verdict) = known.and_then(|background| background.step(luma.cells(), at)) {
            return verdict;
        }
        let (width, height) = luma.shape();
        let centre = |cell: usize| [(cell % width) as f64 + 0.5, (cell / width) as f64 + 0.5];
        let masked = |[x, y]: [f64; 2]| self.mask.iter().any(|polygon| inside(polygon, [x / width as f64, y / height as f64]));
        let open = (0..width * height).filter(|&cell| !masked(centre(cell))).collect();
        let noise = vec![FLOOR / ABOVE_NOISE; luma.cells().len()];
        self.background = Some(Background { shape: luma.shape(), open, mean: luma.cells().to_vec(), noise, pictures: 1.0, at });
        Verdict { score: 1.0, moves: true }
    }
}

impl Background {
    /// `None`: it is another scene.
    fn step(&mut self, cells: &[f32], at: Instant) -> Option<Verdict> {
        let passed = at.saturating_duration_since(self.at).as_secs_f32();
        self.at = at;
        let [gain, offset] = self.light(cells);
        self.mean.iter_mut().for_each(|mean| *mean = gain * *mean + offset);
        let apart: Vec<f32> = cells.iter().zip(&self.mean).map(|(value, mean)| (value - mean).abs()).collect();
        // No object fills half of the cells, so the one in the middle tells this picture's noise: a camera's at night, or
        // what a change of light leaves.
        let noise = median(self.open.iter().map(|&cell| apart[cell])).map_or(0.0, |noise| noise.min(MOST_NOISE));
        let mut moves = vec![false; cells.len()];
        for &cell in &self.open {
            moves[cell] = apart[cell] > (ABOVE_NOISE * self.noise[cell].max(noise)).max(FLOOR);
        }
        let count = self.open.iter().filter(|&&cell| moves[cell] && self.neighbours(&moves, cell) >= 2).count();
        let score = count as f32 / self.open.len().max(1) as f32;
        if score > OTHER_SCENE {
            return None;
        }
        let share = |time: f32| 1.0 - (-passed / time).exp();
        let first = if self.pictures < FIRST { 1.0 / (self.pictures + 3.0) } else { 0.0 };
        self.pictures += 1.0;
        let (still, moving, learn) = (share(FOLLOW_STILL), share(FOLLOW_MOVING), share(LEARN_NOISE).max(first));
        for (((mean, noise), &value), moves) in self.mean.iter_mut().zip(&mut self.noise).zip(cells).zip(moves) {
            let apart = value - *mean;
            *noise += learn * (apart.abs().min(MOST_NOISE) - *noise);
            *mean += if moves { moving } else { still } * apart;
        }
        Some(Verdict { score, moves: count >= LEAST_CELLS && score >= LEAST_SHARE })
    }

    /// Factor and summand by which the background becomes this picture's light: fitted to the middle of the dark and to
    /// that of the bright half of the cells, which no object moves that does not fill half of them.
    fn light(&self, cells: &[f32]) -> [f32; 2] {
        let Some(middle) = median(self.open.iter().map(|&cell| self.mean[cell])) else { return [1.0, 0.0] };
        let half = |bright: bool, of: &[f32]| {
            let half = self.open.iter().filter(|&&cell| (self.mean[cell] > middle) == bright);
            median(half.map(|&cell| of[cell]))
        };
        let [dark, bright] = [false, true].map(|bright| half(bright, &self.mean).zip(half(bright, cells)));
        match (dark, bright) {
            (Some((from, to)), Some((bright_from, bright_to))) if bright_from - from > LEAST_CONTRAST => {
                let gain = ((bright_to - to) / (bright_from - from)).clamp(0.1, 10.0);
                [gain, 0.5 * (to + bright_to - gain * (from + bright_from))]
            }
            (Some((from, to)), _) => [1.0, to - from],
            _ => [1.0, 0.0],
        }
    }

    fn neighbours(&self, moves: &[bool], cell: usize) -> usize {
        let (width, height) = self.shape;
        let (x, y) = (cell % width, cell / width);
        let around = |at: usize, end: usize| at.saturating_sub(1)..(at + 2).min(end);
        let all = around(y, height).flat_map(|y| around(x, width).map(move |x| y * width + x));
        all.filter(|&other| other != cell && moves[other]).count()
    }
}

/// The value in the middle; of an even count the upper one.
fn median(values: impl Iterator<Item = f32>) -> Option<f32> {
    let mut values: Vec<f32> = values.collect();
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable_by(middle, f32::total_cmp).1)
}

/// Whether a point lies in a polygon: a ray from it crosses the outline an odd number of times.
fn inside(polygon: &[[f64; 2]], [x, y]: [f64; 2]) -> bool {
    let edges = polygon.iter().zip(polygon.iter().cycle().skip(1));
    let crossed = edges.filter(|&(&[x1, y1], &[x2, y2])| (y1 > y) != (y2 > y) && x < x1 + (y - y1) / (y2 - y1) * (x2 - x1));
    crossed.count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::Plane;

    /// Small steps of a fixed generator, as noise of about this deviation.
    struct Noise(u64, f32);

    impl Noise {
        fn next(&mut self) -> f32 {
            let mut sum = 0.0;
            for _ in 0..4 {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sum += (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5;
            }
            sum * self.1 * 3_f32.sqrt()
        }
    }

    const WIDTH: usize = 320;
    const HEIGHT: usize = 180;

    /// A scene of 320×180 with noise, in this light (factor and summand), and a block of this brightness at a place.
    fn picture(noise: &mut Noise, [gain, offset]: [f32; 2], block: Option<(usize, usize, f32)>) -> Luma {
        let scene = |x: usize, y: usize| {
            let object = block.filter(|(left, top, _)| (*left..left + 24).contains(&x) && (*top..top + 24).contains(&y));
            object.map_or(40.0 + ((x / 40 + y / 30) % 4) as f32 * 45.0, |(_, _, brightness)| brightness)
        };
        let pixels =
            (0..WIDTH * HEIGHT).map(|at| (scene(at % WIDTH, at / WIDTH) * gain + offset + noise.next()).round().clamp(0.0, 255.0) as u8);
        let bytes: Vec<u8> = pixels.collect();
        Luma::of(Plane { bytes: &bytes, stride: WIDTH, width: WIDTH, height: HEIGHT, step: 1, offset: 0, bits: 8 }).unwrap()
    }

    /// Judges pictures a quarter of a second apart; gives the numbers of those that move.
    fn moving(motion: &mut Motion, start: Instant, pictures: impl IntoIterator<Item = Luma>) -> Vec<usize> {
        let judge = |(at, luma): (usize, Luma)| motion.step(&luma, start + Duration::from_millis(250) * at as u32).moves.then_some(at);
        pictures.into_iter().enumerate().filter_map(judge).collect()
    }

    #[test]
    fn noise_and_light_do_not_move() {
        for deviation in [0.0, 4.0, 12.0] {
            let mut noise = Noise(deviation as u64, deviation);
            // Dusk, a lamp switched on and off, and flicker.
            let light = |at: usize| match at {
                0..200 => [1.0 - at as f32 / 400.0, 0.0],
                200..250 => [0.9, 0.0],
                250..300 => [0.5, 40.0],
                300..350 => [1.0, 25.0 * (at as f32 * 0.25).sin()],
                _ => [0.7 + (at % 3) as f32 * 0.1, 10.0],
            };
            let pictures: Vec<Luma> = (0..400).map(|at| picture(&mut noise, light(at), None)).collect();
            assert_eq!(moving(&mut Motion::default(), Instant::now(), pictures), [0], "noise of {deviation}");
        }
    }

    #[test]
    fn an_object_moves_and_is_background_once_it_has_stood() {
        let mut noise = Noise(1, 4.0);
        let (mut motion, start) = (Motion::default(), Instant::now());
        let place = |at: usize| match at {
            0..40 => None,
            40..100 => Some((20 + (at - 40) * 3, 60, 230.0)),
            _ => Some((200, 60, 230.0)),
        };
        let pictures: Vec<Luma> = (0..1400).map(|at| picture(&mut noise, [1.0, 0.0], place(at))).collect();
        let seen = moving(&mut motion, start, pictures);
        assert!((40..100).all(|at| seen.contains(&at)), "{seen:?}");
        assert_eq!(seen.iter().filter(|&&at| (1..40).contains(&at)).count(), 0, "{seen:?}");
        // Five minutes are 1200 pictures.
        assert!(seen.iter().all(|&at| at < 1200) && seen.iter().any(|&at| at > 110), "{seen:?}");
    }

    #[test]
    fn what_is_masked_is_not_looked_at() {
        let mut noise = Noise(2, 4.0);
        let left_half = vec![vec![[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]];
        let mut motion = Motion::new(left_half);
        let place = |at: usize| (at > 10).then_some((10 + at * 6, 60, 250.0));
        let pictures: Vec<Luma> = (0..40).map(|at| picture(&mut noise, [1.0, 0.0], place(at))).collect();
        let seen = moving(&mut motion, Instant::now(), pictures);
        // Its right edge, at 34 + 6 a step, passes 160 after 21 steps.
        assert!(seen[0] == 0 && seen[1] >= 21 && seen[1] <= 24, "{seen:?}");
        let all = vec![vec![[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]];
        let pictures: Vec<Luma> = (0..20).map(|at| picture(&mut noise, [1.0, 0.0], place(at))).collect();
        assert_eq!(moving(&mut Motion::new(all), Instant::now(), pictures), [0]);
    }

    #[test]
    fn another_scene_is_learnt_at_once() {
        let (mut motion, start) = (Motion::default(), Instant::now());
        let flat = |value: u8| {
            let bytes: Vec<u8> =
                (0..WIDTH * HEIGHT).map(|at| if (at % WIDTH / 16).is_multiple_of(2) { value } else { 255 - value }).collect();
            Luma::of(Plane { bytes: &bytes, stride: WIDTH, width: WIDTH, height: HEIGHT, step: 1, offset: 0, bits: 8 }).unwrap()
        };
        let pictures = [flat(30), flat(30), flat(200), flat(200), flat(200)];
        assert_eq!(moving(&mut motion, start, pictures), [0, 2]);
    }

    #[test]
    fn a_point_is_inside_or_not() {
        let arrow = [[0.0, 0.0], [1.0, 0.5], [0.0, 1.0], [0.5, 0.5]];
        assert!(inside(&arrow, [0.7, 0.5]) && inside(&arrow, [0.2, 0.15]));
        assert!(!inside(&arrow, [0.2, 0.5]) && !inside(&arrow, [1.1, 0.5]) && !inside(&[], [0.5, 0.5]));
    }
}
