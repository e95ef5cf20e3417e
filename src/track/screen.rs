//! Which detections of an answer count: filters, places that are ignored, and one object told twice taken as one.

use std::sync::Arc;

use crate::track::geometry;
use crate::types::{Area, Box01, Detection, Tracking, label_key};

/// Two boxes of one label that overlap by more are one object: two that stand so close are seen as one by anybody.
const SAME: f32 = 0.85;

/// A detection that counts.
pub(super) struct Found<'d> {
    /// Its label as it is compared.
    pub key: Arc<str>,
    /// The label as the model wrote it.
    pub label: &'d str,
    /// 0..1.
    pub score: f32,
    /// Where.
    pub box01: Box01,
}

/// What counts of an answer, the surest first.
pub(super) fn screen<'d>(detections: &'d [Detection], rules: &Tracking, aspect: f32) -> Vec<Found<'d>> {
    let mut found: Vec<Found<'d>> = detections
        .iter()
        .map(|one| Found { key: label_key(&one.label).into(), label: one.label.trim(), score: one.score, box01: one.box01 })
        .filter(|one| counts(one, rules, aspect))
        .collect();
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut distinct: Vec<Found<'d>> = Vec::with_capacity(found.len());
    for one in found {
        if !distinct.iter().any(|other| other.key == one.key && other.box01.iou(one.box01) > SAME) {
            distinct.push(one);
        }
    }
    distinct
}

fn counts(one: &Found<'_>, rules: &Tracking, aspect: f32) -> bool {
    let (area, ratio) = (geometry::area(one.box01), geometry::ratio(one.box01, aspect));
    // A comparison with a score that is no number is false, so such a one does not count.
    let passes = rules.filters.iter().filter(|filter| *filter.label == *one.key).all(|filter| {
        one.score >= filter.min_score
            && (filter.min_area..=filter.max_area).contains(&area)
            && (filter.min_ratio..=filter.max_ratio).contains(&ratio)
    });
    one.score >= rules.keep_score && passes && !rules.ignores.iter().any(|ignore| covers(ignore, &one.key, one.box01))
}

/// Whether the area is for the label, and the box stands in it.
pub(super) fn covers(area: &Area, key: &str, box01: Box01) -> bool {
    (area.labels.is_empty() || area.labels.iter().any(|label| label == key)) && geometry::stands_in(box01, &area.points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Filter;

    fn one(label: &str, score: f32, x: f32, width: f32, height: f32) -> Detection {
        let box01 = Box01 { x_min: x, x_max: x + width, y_min: 0.5, y_max: 0.5 + height };
        Detection { label: label.to_owned(), score, locs: [0; 4], box01 }
    }

    fn kept(detections: &[Detection], rules: &Tracking) -> Vec<(String, f32)> {
        screen(detections, rules, 2.0).iter().map(|found| (found.label.to_owned(), found.score)).collect()
    }

    #[test]
    fn filters_are_a_labels_own_and_every_bound_counts() {
        let filter = Filter { label: "car".to_owned(), min_score: 0.5, min_area: 0.01, max_area: 0.1, min_ratio: 1.0, max_ratio: 4.0 };
        let rules = Tracking { filters: vec![filter], ..Tracking::default() };
        let good = one(" Car", 0.6, 0.1, 0.2, 0.2);
        let bad = [
            one("car", 0.4, 0.1, 0.2, 0.2),
            one("car", f32::NAN, 0.1, 0.2, 0.2),
            one("car", 0.6, 0.1, 0.05, 0.1),
            one("car", 0.6, 0.1, 0.5, 0.5),
            one("CAR", 0.6, 0.1, 0.1, 0.4),
            one("car", 0.6, 0.1, 0.9, 0.05),
        ];
        assert_eq!(kept(std::slice::from_ref(&good), &rules), [("Car".to_owned(), 0.6)]);
        for one in bad {
            assert!(kept(std::slice::from_ref(&one), &rules).is_empty(), "{one:?}");
            let other = Detection { label: "bus".to_owned(), ..one };
            assert_eq!(kept(std::slice::from_ref(&other), &rules).len(), usize::from(other.score >= 0.15), "{other:?}");
        }
    }

    #[test]
    fn ignored_places_ignore_their_labels_only() {
        let left = vec![[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]];
        let ignores = vec![Area { points: left, labels: vec!["person".to_owned()] }];
        let rules = Tracking { ignores, ..Tracking::default() };
        let all = [one("Person", 0.9, 0.1, 0.1, 0.1), one("person", 0.8, 0.7, 0.1, 0.1), one("cat", 0.7, 0.1, 0.1, 0.1)];
        assert_eq!(kept(&all, &rules), [("person".to_owned(), 0.8), ("cat".to_owned(), 0.7)]);
    }

    #[test]
    fn an_object_told_twice_is_one_and_the_surer_counts() {
        let all = [one("cat", 0.6, 0.1, 0.2, 0.2), one("Cat ", 0.9, 0.105, 0.2, 0.2), one("dog", 0.5, 0.1, 0.2, 0.2)];
        assert_eq!(kept(&all, &Tracking::default()), [("Cat".to_owned(), 0.9), ("dog".to_owned(), 0.5)]);
        let apart = [one("cat", 0.6, 0.1, 0.2, 0.2), one("cat", 0.9, 0.13, 0.2, 0.2)];
        assert_eq!(kept(&apart, &Tracking::default()).len(), 2);
    }
}
