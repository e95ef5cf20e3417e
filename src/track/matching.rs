//! Which detection of a look is which known object: the assignment with the greatest sum of likenesses.

use std::collections::BTreeMap;
use std::time::Instant;

use pathfinding::kuhn_munkres::kuhn_munkres;
use pathfinding::matrix::Matrix;

use crate::track::geometry;
use crate::track::object::Object;
use crate::track::screen::Found;
use crate::types::Box01;

/// How far an object may come in a second beyond where it was awaited, in its sizes. A car that passes close by makes two.
const SPEED: f32 = 1.5;

/// How far a box may be off though nothing moved, in its sizes.
const SLACK: f32 = 0.5;

/// Farther than this from where it was awaited, in its sizes, nothing is the same object: that would be guessing.
const FARTHEST: f32 = 4.0;

/// An object at rest that was missed is awaited in its place.
const AT_REST: f32 = 0.75;

/// Boxes that overlap by so much may be one object though their sizes differ, as at the edge of the picture.
const OVERLAP: f32 = 0.2;

/// The smaller one's part of the greater one's size, else they are not the same object.
const LIKE_SIZE: f32 = 0.4;

/// What an object that was told of has ahead of one that was not.
const TOLD: f32 = 0.2;

/// The time of a look and its distance to the ones before it, seconds; the picture's width over its height.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub at: Instant,
    pub apart: f64,
    pub aspect: f32,
}

/// For each detection the index of its object; `None`: it is new.
pub(super) fn assign(objects: &[Object], found: &[Found<'_>], view: View) -> Vec<Option<usize>> {
    let mut given = vec![None; found.len()];
    let mut labels: BTreeMap<&str, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (index, one) in found.iter().enumerate() {
        labels.entry(&one.key).or_default().0.push(index);
    }
    for (index, object) in objects.iter().enumerate() {
        if let Some((_, known)) = labels.get_mut(object.key()) {
            known.push(index);
        }
    }
    for (seen, known) in labels.into_values().filter(|(_, known)| !known.is_empty()) {
        let weight = |one: usize, object: usize| (likeness(&objects[object], found[one].box01, view) * 1e6) as i64;
        // The algorithm wants no more rows than columns; those that are left over get nothing.
        let (rows, columns) = if seen.len() <= known.len() { (seen.len(), known.len()) } else { (known.len(), seen.len()) };
        let across = seen.len() > known.len();
        let pair = |row: usize, column: usize| if across { (seen[column], known[row]) } else { (seen[row], known[column]) };
        let weights = Matrix::from_fn(rows, columns, |(row, column)| {
            let (one, object) = pair(row, column);
            weight(one, object)
        });
        let (_, columns_of) = kuhn_munkres(&weights);
        for (row, column) in columns_of.into_iter().enumerate() {
            // Nothing of a pair that is impossible: its weight is 0, the same as being left alone.
            if weights[(row, column)] > 0 {
                let (one, object) = pair(row, column);
                given[one] = Some(object);
            }
        }
    }
    given
}

/// How likely a box is the object: 0 (impossible) to 1.2.
fn likeness(object: &Object, b: Box01, view: View) -> f32 {
    let awaited = object.awaited(view.at, view.apart);
    let last = object.box01();
    let sizes = [geometry::size(last, view.aspect), geometry::size(b, view.aspect)];
    let size = sizes[0].max(sizes[1]);
    let like = sizes[0].min(sizes[1]) / size;
    let far = geometry::distance(geometry::centre(awaited), geometry::centre(b), view.aspect) / size;
    let reach = reach(object, awaited, view);
    // What stopped is still where it was.
    let overlap = awaited.iou(b).max(0.7 * last.iou(b));
    if overlap < OVERLAP && (far > reach || like < LIKE_SIZE) {
        return 0.0;
    }
    0.5 * overlap + 0.35 * (1.0 - far / reach).max(0.0) + 0.15 * like + if object.was_told() { TOLD } else { 0.0 }
}

/// How far from where it is awaited the object may be, in its sizes.
fn reach(object: &Object, awaited: Box01, view: View) -> f32 {
    let [x, y] = geometry::centre(awaited);
    let left = !(0.0..=1.0).contains(&x) || !(0.0..=1.0).contains(&y);
    if object.missed() > 0 && (object.is_stationary() || left) {
        // Whatever comes along now is another one.
        return AT_REST;
    }
    // What is long unseen is no less likely to be near where it is awaited: after two looks it does not grow.
    let unseen = object.unseen(view.at).min((2.0 * view.apart).max(1.0));
    (SLACK + SPEED * unseen as f32).min(FARTHEST)
}
