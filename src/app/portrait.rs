//! Pictures of objects: the annotated frame in which an object was first seen for certain, or seen better than before, for
//! whoever wants to see what an event is about.

use std::collections::HashMap;
use std::sync::Arc;

use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::annotate::Annotator;
use crate::base::error::{Error, Kind, Result};
use crate::base::jpeg;
use crate::types::{Detection, Event, EventKind, Reason};

/// The longer side, pixels, and the JPEG quality: the first that is small enough is taken.
const FORMS: [(u32, u8); 6] = [(1280, 80), (1280, 50), (960, 50), (640, 50), (480, 50), (320, 40)];

/// A larger picture is a burden to brokers and their readers. Bytes.
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
    /// An object that has no topic any more.
    pub(super) fn forget(&mut self, event: &Event) {
        self.0.retain(|_, id| *id != event.track.id);
    }

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

/// The annotated frame as JPEG of `most` bytes at most.
///
/// # Errors
/// When it cannot be made so small.
pub(super) fn draw(annotator: &Annotator, image: &RgbImage, detections: &[Detection], caption: &str, most: usize) -> Result<Vec<u8>> {
    let most = most.min(LARGE);
    let mut drawn: Option<(u32, RgbImage)> = None;
    for (side, quality) in FORMS {
        let picture = match drawn {
            Some((drawn_for, picture)) if drawn_for == side => picture,
            // Scaled first: lines and letters stay as wide as they are to be.
            _ => scaled(image, side)
                .map_or_else(|| annotator.draw(image, detections, caption), |small| annotator.draw(&small, detections, caption)),
        };
        let jpeg = jpeg::encode(picture.as_raw(), picture.width(), picture.height(), quality)?;
        if jpeg.len() <= most {
            return Ok(jpeg);
        }
        drawn = Some((side, picture));
    }
    let (width, height) = image.dimensions();
    Err(Error::new(Kind::Input, format!("no picture of {width}×{height} pixels fits into {most} bytes")))
}

/// The picture with a longer side of `side` pixels; `None` where it is no longer than that.
fn scaled(image: &RgbImage, side: u32) -> Option<RgbImage> {
    let (width, height) = image.dimensions();
    let longer = width.max(height);
    let part = |length: u32| (u64::from(length) * u64::from(side) / u64::from(longer)).max(1) as u32;
    (longer > side).then(|| imageops::resize(image, part(width), part(height), FilterType::Triangle))
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
            clip: None,
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
        let read = |jpeg: &[u8]| image::load_from_memory(jpeg).unwrap();
        let large = draw(&annotator, &RgbImage::new(3840, 2160), &[], "street", usize::MAX).unwrap();
        assert_eq!((read(&large).width(), read(&large).height()), (1280, 720));
        let small = draw(&annotator, &RgbImage::new(320, 200), &[], "", usize::MAX).unwrap();
        assert_eq!(read(&small).width(), 320);
        // What cannot be packed is made smaller until it fits.
        let mut state = 1_u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let image = RgbImage::from_fn(1280, 1280, |_, _| Rgb([noise(), noise(), noise()]));
        for (most, side) in [(usize::MAX, 640), (60_000, 320)] {
            let jpeg = draw(&annotator, &image, &[], "", most).unwrap();
            assert!(jpeg.len() <= most.min(LARGE) && read(&jpeg).width() >= side, "{most}: {} bytes, {}", jpeg.len(), read(&jpeg).width());
        }
        assert!(draw(&annotator, &image, &[], "", 1000).unwrap_err().to_string().contains("fits into 1000 bytes"));
    }
}
