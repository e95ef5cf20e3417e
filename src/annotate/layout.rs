//! Where a tag goes: at its box or as near as there is room, inside the picture, on no other tag, and on no small box.

use crate::types::PixelBox;

/// So many gaps between what is there are tried for a tag beside the regular rows, for hundreds of boxes make thousands.
const MOST_EDGES: usize = 64;

/// A rectangle in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// From a tag to the box that it cannot stand at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leader {
    /// On the tag's edge, (x, y).
    pub from: (u32, u32),
    /// On the box's.
    pub to: (u32, u32),
}

impl Area {
    /// What a box covers.
    pub(super) fn of(PixelBox { x_min, y_min, x_max, y_max }: PixelBox) -> Self {
        Self { x: x_min, y: y_min, width: x_max.saturating_sub(x_min), height: y_max.saturating_sub(y_min) }
    }

    fn right(&self) -> u32 {
        self.x + self.width
    }

    fn bottom(&self) -> u32 {
        self.y + self.height
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.x < other.right() && other.x < self.right() && self.y < other.bottom() && other.y < self.bottom()
    }

    /// Pixels between two that do not touch, across and down together.
    fn gap(&self, other: &Self) -> u32 {
        let apart =
            |begin: u32, end: u32, other_begin: u32, other_end: u32| begin.saturating_sub(other_end).max(other_begin.saturating_sub(end));
        apart(self.x, self.right(), other.x, other.right()) + apart(self.y, self.bottom(), other.y, other.bottom())
    }

    /// With so many pixels around it.
    pub(super) fn grown(&self, by: u32) -> Self {
        let (x, y) = (self.x.saturating_sub(by), self.y.saturating_sub(by));
        Self { x, y, width: self.right() + by - x, height: self.bottom() + by - y }
    }

    /// The middle half of it, across and down.
    fn core(&self) -> Self {
        let (left, top) = (self.width / 4, self.height / 4);
        Self { x: self.x + left, y: self.y + top, width: self.width - 2 * left, height: self.height - 2 * top }
    }

    fn nearest(&self, (x, y): (u32, u32)) -> (u32, u32) {
        (x.clamp(self.x, self.right().saturating_sub(1).max(self.x)), y.clamp(self.y, self.bottom().saturating_sub(1).max(self.y)))
    }
}

/// What a tag must not lie on.
pub(super) struct Ground<'a> {
    /// Width and height of the picture.
    pub bounds: (u32, u32),
    /// The tags placed before, with what is to stay free around them, and the bar at the foot.
    pub taken: &'a [Area],
    /// Every box.
    pub boxes: &'a [PixelBox],
}

/// Places a tag of `size` (width, height) for a box. Above the box, inside at its top, below it, beside it or where the next
/// room is, whichever is nearest to the place above. A box that tags could hide keeps its middle free, as long as there is
/// room elsewhere. Where there is none at all the tag goes above its box, on what is there.
pub(super) fn place(pixels: PixelBox, size: (u32, u32), ground: &Ground<'_>) -> Area {
    let search = Search::new(pixels, size, ground.bounds);
    let little = |area: &Area| area.height <= 2 * size.1 && area.width * area.height <= 2 * size.0 * size.1;
    let cores = ground.boxes.iter().copied().map(Area::of).filter(little).map(|area| area.core());
    let all: Vec<Area> = ground.taken.iter().copied().chain(cores).collect();
    search.nearest(&all).or_else(|| search.nearest(ground.taken)).unwrap_or(search.home)
}

/// The line that shows which box a tag belongs to; `None` where that is plain, for there is next to nothing between them.
pub(super) fn leader(tag: &Area, pixels: PixelBox) -> Option<Leader> {
    let object = Area::of(pixels);
    if tag.gap(&object) <= tag.height / 4 {
        return None;
    }
    let from = tag.nearest((object.x + object.width / 2, object.y + object.height / 2));
    let to = object.nearest(from);
    Some(Leader { from: tag.nearest(to), to })
}

struct Search {
    object: Area,
    /// Where the tag is best: above the box, or inside at the picture's edge.
    home: Area,
    /// The last column and row that a tag can begin at.
    last: (u32, u32),
}

impl Search {
    fn new(pixels: PixelBox, size: (u32, u32), bounds: (u32, u32)) -> Self {
        let (width, height) = (size.0.min(bounds.0), size.1.min(bounds.1));
        let last = (bounds.0 - width, bounds.1 - height);
        let y = pixels.y_min.checked_sub(height).unwrap_or(pixels.y_min).min(last.1);
        Self { object: Area::of(pixels), home: Area { x: pixels.x_min.min(last.0), y, width, height }, last }
    }

    /// The free place with the least cost.
    fn nearest(&self, blocked: &[Area]) -> Option<Area> {
        let (mut by_left, mut by_right) = (blocked.to_vec(), blocked.to_vec());
        by_left.sort_unstable_by_key(|area| area.x);
        by_right.sort_unstable_by_key(|area| std::cmp::Reverse(area.right()));
        let mut best: Option<(u32, Area)> = None;
        for y in self.rows(blocked) {
            // No place of a row is nearer than the row, and rows come nearest first.
            if best.is_some_and(|(cost, _)| y.abs_diff(self.home.y) >= cost) {
                break;
            }
            for area in self.free_in(y, &by_left, &by_right) {
                let cost = self.cost(&area);
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, area));
                }
            }
        }
        best.map(|(_, area)| area)
    }

    /// How far it is from home; what lies apart from the box is worse.
    fn cost(&self, area: &Area) -> u32 {
        area.x.abs_diff(self.home.x) + area.y.abs_diff(self.home.y) + 3 * area.gap(&self.object)
    }

    /// Rows worth a look, nearest first: at the box, in steps of a tag, and where blocked areas begin and end.
    fn rows(&self, blocked: &[Area]) -> Vec<u32> {
        let height = self.home.height.max(1);
        let down = (0..=self.last.1 / height).flat_map(|row| [self.object.y + row * height, self.object.bottom() + row * height]);
        let up = (1..=self.object.y / height).map(|row| self.object.y - row * height);
        // Of two that are as far, the upper one.
        let nearest = |y: &u32| (y.abs_diff(self.home.y), *y);
        let mut edges: Vec<u32> = blocked.iter().flat_map(|area| [area.y.checked_sub(height), Some(area.bottom())]).flatten().collect();
        edges.sort_unstable_by_key(nearest);
        edges.dedup();
        edges.truncate(MOST_EDGES);
        let mut rows: Vec<u32> = down.chain(up).chain(edges).filter(|y| *y <= self.last.1).chain([self.home.y, self.last.1]).collect();
        rows.sort_unstable_by_key(nearest);
        rows.dedup();
        rows
    }

    /// The nearest free places of a row: at the box's left edge, else one to the right and one to the left.
    fn free_in(&self, y: u32, by_left: &[Area], by_right: &[Area]) -> impl Iterator<Item = Area> + use<> {
        let home = Area { y, ..self.home };
        // Whatever does not reach the row overlaps nothing in it.
        let right = by_left.iter().fold(home, |at, area| if at.overlaps(area) { Area { x: area.right(), ..at } } else { at });
        let left = by_right.iter().try_fold(home, |at, area| match at.overlaps(area) {
            true => area.x.checked_sub(at.width).map(|x| Area { x, ..at }),
            false => Some(at),
        });
        let last = self.last.0;
        [Some(right), left].into_iter().flatten().filter(move |area| area.x <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: (u32, u32) = (640, 480);
    const SIZE: (u32, u32) = (60, 20);
    const BOX: PixelBox = PixelBox { x_min: 100, y_min: 100, x_max: 200, y_max: 200 };

    fn at(x: u32, y: u32) -> Area {
        Area { x, y, width: SIZE.0, height: SIZE.1 }
    }

    fn alone(pixels: PixelBox, taken: &[Area]) -> Area {
        place(pixels, SIZE, &Ground { bounds: BOUNDS, taken, boxes: &[pixels] })
    }

    /// All placed one after another; no two of them overlap and none leaves the picture.
    fn apart(boxes: &[PixelBox], size: (u32, u32), bounds: (u32, u32)) -> Vec<Area> {
        let mut taken = Vec::new();
        for pixels in boxes {
            let area = place(*pixels, size, &Ground { bounds, taken: &taken, boxes });
            assert!(!taken.iter().any(|other| area.overlaps(other)), "{area:?} on {taken:?}");
            assert!(area.right() <= bounds.0 && area.bottom() <= bounds.1, "{area:?} leaves the picture");
            taken.push(area);
        }
        taken
    }

    #[test]
    fn above_inside_or_shifted_to_stay_on_the_picture() {
        assert_eq!(alone(BOX, &[]), at(100, 80));
        assert_eq!(alone(PixelBox { y_min: 5, ..BOX }, &[]), at(100, 5));
        assert_eq!(alone(PixelBox { x_min: 630, x_max: 640, ..BOX }, &[]), at(580, 80));
    }

    #[test]
    fn the_next_place_is_taken_where_the_first_is_not_free() {
        assert_eq!(alone(BOX, &[at(100, 80)]), at(100, 100), "inside");
        let both = [at(100, 80), Area { x: 100, y: 100, width: 100, height: 100 }];
        assert_eq!(alone(BOX, &both), at(160, 80), "above, further to the right");
        let flat = PixelBox { y_max: 120, ..BOX };
        assert_eq!(alone(flat, &[at(100, 80), at(160, 80)]), at(100, 115), "below, where the middle of what it would hide stays free");
        let all_around = [at(100, 80), at(160, 80), at(100, 120), at(160, 120)];
        assert_eq!(alone(PixelBox { x_max: 160, ..flat }, &all_around).gap(&Area::of(PixelBox { x_max: 160, ..flat })), 0, "beside it");
    }

    #[test]
    fn tags_of_equal_boxes_do_not_cover_each_other() {
        apart(&[BOX; 8], SIZE, BOUNDS);
    }

    #[test]
    fn fifty_clustered_boxes_have_fifty_readable_tags_near_them() {
        let mut state = 7_u32;
        let mut next = |most: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % most
        };
        let boxes: Vec<PixelBox> = (0..50)
            .map(|_| {
                let (x_min, y_min) = (400 + next(360), 220 + next(220));
                PixelBox { x_min, y_min, x_max: x_min + 30 + next(90), y_max: y_min + 30 + next(90) }
            })
            .collect();
        let tags = apart(&boxes, (110, 30), (1280, 720));
        let gaps: Vec<u32> = tags.iter().zip(&boxes).map(|(tag, pixels)| tag.gap(&Area::of(*pixels))).collect();
        // Together the tags cover more than all the boxes do: many have to stand outside.
        assert!(gaps.iter().filter(|gap| **gap == 0).count() >= 15, "{gaps:?}");
        assert!(gaps.iter().all(|gap| *gap < 250), "{gaps:?}");
        let lines = tags.iter().zip(&boxes).filter(|(tag, pixels)| leader(tag, **pixels).is_some()).count();
        assert_eq!(lines, gaps.iter().filter(|gap| **gap > 7).count(), "each that stands apart has a line");
    }

    #[test]
    fn a_small_box_is_not_hidden_while_there_is_room() {
        let small = PixelBox { x_min: 100, y_min: 82, x_max: 130, y_max: 98 };
        let tag = place(BOX, SIZE, &Ground { bounds: BOUNDS, taken: &[], boxes: &[BOX, small] });
        assert!(!tag.overlaps(&Area::of(small).core()), "{tag:?}");
        let corner = PixelBox { x_min: 0, y_min: 0, x_max: 30, y_max: 16 };
        assert!(!alone(corner, &[]).overlaps(&Area::of(corner).core()));
        // Where there is none it is.
        let ground = Ground { bounds: (60, 20), taken: &[], boxes: &[corner] };
        assert_eq!(place(corner, SIZE, &ground), at(0, 0));
    }

    #[test]
    fn a_full_picture_has_the_tag_above_its_box_all_the_same() {
        assert_eq!(alone(BOX, &[Area { x: 0, y: 0, width: 640, height: 480 }]), at(100, 80));
    }

    #[test]
    fn a_leader_goes_from_edge_to_edge() {
        assert_eq!([leader(&at(100, 80), BOX), leader(&at(100, 75), BOX)], [None, None]);
        assert_eq!(leader(&at(110, 20), BOX), Some(Leader { from: (150, 39), to: (150, 100) }));
        assert_eq!(leader(&at(300, 300), BOX), Some(Leader { from: (300, 300), to: (199, 199) }));
    }
}
