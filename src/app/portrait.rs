//! Pictures of objects: the annotated frame in which an object was first seen for certain, or seen better than before, for
//! whoever wants to see what an event is about.

use std::collections::HashMap;
use std::sync::Arc;

use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::annotate::Annotator;
use crate::base::error::Result;
use crate::base::jpeg;
use crate::types::{Detection, Event, EventKind, Reason};

/// The longer side, pixels, and the JPEG quality: some 150 kB for a busy street, which fits any broker's packets.
const SIDE: u32 = 1280;
const QUALITY: u8 = 80;

/// Where a larger one would not fit, it is made with this quality.
const POOR_QUALITY: u8 = 50;

/// A larger picture is made anew with less quality. Bytes.
const LARGE: usize = 200 * 1024;

/// What is to be done about the picture on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Picture {
    /// This event's frame is a better one.
    Draw,
    /// It is one of this event's object.
    Keep,
    /// It is one of a newer object.
    Other,
}

/// The newest object on each topic, for as long as that is there.
#[derive(Debug, Default)]
pub(super) struct Portraits(HashMap<String, Arc<str>>);

impl Portraits {
    /// What an event means for the picture on its label's topic.
    pub(super) fn see(&mut self, topic: &str, event: &Event) -> Picture {
        if event.kind == EventKind::New {
            self.0.insert(topic.to_owned(), event.track.id.clone());
            return Picture::Draw;
        }
        if self.0.get(topic) != Some(&event.track.id) {
            return Picture::Other;
        }
        if event.kind == EventKind::End {
            self.0.remove(topic);
        }
        if event.reason == Reason::Score { Picture::Draw } else { Picture::Keep }
    }
}

/// The annotated frame as JPEG, scaled down where it is large.
///
/// # Errors
/// When it cannot be encoded.
pub(super) fn draw(annotator: &Annotator, image: &RgbImage, detections: &[Detection], caption: &str) -> Result<Vec<u8>> {
    let (width, height) = image.dimensions();
    let longer = width.max(height);
    // Scaled first: lines and letters stay as wide as they are to be.
    let drawn = if longer > SIDE {
        let part = |side: u32| (u64::from(side) * u64::from(SIDE) / u64::from(longer)).max(1) as u32;
        annotator.draw(&imageops::resize(image, part(width), part(height), FilterType::Triangle), detections, caption)
    } else {
        annotator.draw(image, detections, caption)
    };
    let encode = |quality| jpeg::encode(drawn.as_raw(), drawn.width(), drawn.height(), quality);
    let fine = encode(QUALITY)?;
    if fine.len() > LARGE { encode(POOR_QUALITY) } else { Ok(fine) }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::base::clock::Utc;
    use crate::types::{Box01, CameraId, Track};

    fn event(kind: EventKind, reason: Reason, id: &str) -> Event {
        let time = Utc::from_millis(0);
        let track = Track {
            id: id.into(),
            label: "cat".into(),
            score: 0.5,
            top_score: 0.5,
            start: time,
            last: time,
            box01: Box01::from_locs([0, 0, 512, 512]),
            stationary: false,
            zones: vec![],
            entered_zones: vec![],
        };
        Event {
            id: uuid::Uuid::nil(),
            kind,
            reason,
            camera: CameraId::new("street").unwrap(),
            time,
            track,
            before: None,
            frame: (64, 48),
            prompt_id: "p".into(),
            snapshot: None,
        }
    }

    #[test]
    fn the_newest_object_of_a_label_is_shown_at_its_best() {
        let mut portraits = Portraits::default();
        let mut see = |topic: &str, kind, reason, id: &str| portraits.see(topic, &event(kind, reason, id));
        assert_eq!(see("cat", EventKind::New, Reason::FirstSeen, "1"), Picture::Draw);
        assert_eq!(see("cat", EventKind::Update, Reason::Score, "1"), Picture::Draw);
        assert_eq!(see("cat", EventKind::New, Reason::FirstSeen, "2"), Picture::Draw);
        assert_eq!(see("dog", EventKind::New, Reason::FirstSeen, "3"), Picture::Draw);
        assert_eq!(see("cat", EventKind::Update, Reason::Score, "1"), Picture::Other, "an older object");
        assert_eq!(see("cat", EventKind::Update, Reason::Moved, "2"), Picture::Keep);
        assert_eq!(see("cat", EventKind::End, Reason::Lost, "1"), Picture::Other);
        assert_eq!(see("cat", EventKind::End, Reason::Lost, "2"), Picture::Keep);
        assert_eq!(portraits.0.len(), 1, "what is gone is forgotten");
    }

    #[test]
    fn a_large_picture_is_scaled_down_and_fits() {
        let annotator = Annotator::new().unwrap();
        let noise = |x: u32, y: u32| Rgb([((x * 7919) ^ (y * 104_729)) as u8, (x * y) as u8, (x * 31 + y * 17) as u8]);
        let image = RgbImage::from_fn(3840, 2160, noise);
        let jpeg = draw(&annotator, &image, &[], "street").unwrap();
        let read = image::load_from_memory(&jpeg).unwrap();
        assert_eq!((read.width(), read.height()), (1280, 720));
        let small = draw(&annotator, &RgbImage::new(320, 200), &[], "").unwrap();
        assert_eq!(image::load_from_memory(&small).unwrap().width(), 320);
    }
}
