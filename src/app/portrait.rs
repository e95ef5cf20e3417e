//! Pictures of objects: the annotated frame in which an object was first seen for certain, or seen better than before, for
//! whoever wants to see what an event is about.

use std::collections::HashMap;
use std::sync::Arc;

use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::annotate::Annotator;
use crate::base::error::Result;
use crate::base::jpeg;
use crate::types::{CameraId, Detection, Event, EventKind, Reason};

/// The longer side, pixels, and the JPEG quality: some 150 kB for a busy street, which fits any broker's packets.
const SIDE: u32 = 1280;
const QUALITY: u8 = 80;

/// Where a larger one would not fit, it is made with this quality.
const POOR_QUALITY: u8 = 50;

/// A larger picture is made anew with less quality. Bytes.
const LARGE: usize = 200 * 1024;

/// The newest object of each camera and label.
#[derive(Debug, Default)]
pub(super) struct Portraits(HashMap<(CameraId, Arc<str>), Arc<str>>);

impl Portraits {
    /// Whether the frame of this event is the best picture of its label's newest object so far.
    pub(super) fn is_due(&mut self, event: &Event) -> bool {
        let key = (event.camera.clone(), event.track.label.clone());
        match (event.kind, event.reason) {
            (EventKind::New, _) => {
                self.0.insert(key, event.track.id.clone());
                true
            }
            (EventKind::Update, Reason::Score) => self.shows(event),
            _ => false,
        }
    }

    /// Whether the label's picture is one of this event's object.
    pub(super) fn shows(&self, event: &Event) -> bool {
        self.0.get(&(event.camera.clone(), event.track.label.clone())) == Some(&event.track.id)
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
    use crate::types::{Box01, Track};

    fn event(kind: EventKind, reason: Reason, id: &str, label: &str) -> Event {
        let time = Utc::from_millis(0);
        let track = Track {
            id: id.into(),
            label: label.into(),
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
        let new = |id, label| event(EventKind::New, Reason::FirstSeen, id, label);
        let score = |id, label| event(EventKind::Update, Reason::Score, id, label);
        assert!(portraits.is_due(&new("1", "cat")) && portraits.is_due(&score("1", "cat")));
        assert!(portraits.is_due(&new("2", "cat")) && portraits.is_due(&new("3", "dog")));
        assert!(!portraits.is_due(&score("1", "cat")), "an older object");
        assert!(!portraits.is_due(&event(EventKind::Update, Reason::Moved, "2", "cat")));
        let shown = ["1", "2"].map(|id| portraits.shows(&event(EventKind::End, Reason::Lost, id, "cat")));
        assert_eq!(shown, [false, true]);
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
