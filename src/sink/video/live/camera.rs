//! What is known of one camera, whoever tells it, and the way from there to who shows it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};
use gstreamer::{Caps, Fraction};
use image::RgbImage;

use crate::base::metrics::{Counter, Metrics};
use crate::base::sync;
use crate::sink::video::live::audience::Audience;
use crate::types::{CameraId, CameraState, CameraStatus, Codec, EncodedUnit, Mark};

/// Bounds of what is kept from a keyframe on: ten seconds at thirty a second, or ten at 6 Mbit/s.
const MOST_UNITS: usize = 300;
const MOST_BYTES: usize = 8 << 20;

/// Pictures that wait to be decoded: what comes while a decoder catches up with those that were kept.
const WAITING: usize = 256;

/// Raw pictures that wait to be shown. Each is a whole frame.
const RAW_WAITING: usize = 2;

/// The size of what is shown of a camera that never sent a picture.
const NOTHING: (i32, i32) = (1280, 720);

/// One camera.
pub struct Camera {
    id: CameraId,
    news: Mutex<News>,
    /// Who watches it.
    pub audience: Arc<Audience>,
    /// What comes cannot be decoded here.
    undecodable: AtomicBool,
    /// Pictures given to an encoder.
    pub encoded: Counter,
    /// Pictures that nobody will see.
    pub dropped: Counter,
}

struct News {
    kept: Kept,
    marks: Arc<[Mark]>,
    /// Of the marks: a number for each change.
    revision: u64,
    standing: Standing,
    analysed: Option<Arc<RgbImage>>,
    watch: Option<Watch>,
}

/// Where a camera stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it is well.
    pub state: CameraState,
    /// Why not.
    pub reason: String,
}

/// The way to a show.
struct Watch {
    units: Sender<EncodedUnit>,
    /// One was dropped: no other can be decoded before the next keyframe.
    skips: bool,
}

/// The encoded pictures from the newest keyframe on.
#[derive(Default)]
struct Kept {
    units: Vec<EncodedUnit>,
    bytes: usize,
    /// The format of the newest, kept or not.
    caps: Option<Arc<str>>,
}

impl Camera {
    /// Nothing has come yet.
    pub fn new(id: CameraId, metrics: &Metrics) -> Self {
        let counter = |name| metrics.counter(name, id.as_str());
        let standing = Standing { state: CameraState::Connecting, reason: String::new() };
        let news = News { kept: Kept::default(), marks: Arc::new([]), revision: 0, standing, analysed: None, watch: None };
        Self {
            news: Mutex::new(news),
            audience: Arc::new(Audience::new(counter("live_units_dropped"))),
            undecodable: AtomicBool::new(false),
            encoded: counter("rtsp_pictures_encoded"),
            dropped: counter("live_pictures_dropped"),
            id,
        }
    }

    /// Its name.
    pub fn id(&self) -> &CameraId {
        &self.id
    }

    /// Keeps an encoded picture, and hands it to who shows it. Never blocks: a show that does not keep up loses pictures to
    /// the next keyframe.
    pub fn encoded(&self, unit: EncodedUnit) {
        let mut news = sync::lock(&self.news);
        let News { kept, watch, .. } = &mut *news;
        let raw = unit.codec == Codec::Raw;
        if let Some(on) = watch {
            on.skips &= !unit.key;
            if on.skips || on.units.is_full() || (raw && on.units.len() >= RAW_WAITING) {
                on.skips = true;
                self.dropped.add();
            } else if on.units.send(unit.clone()).is_err() {
                *watch = None;
            }
        }
        if raw {
            // The next one is as good a beginning, and comes as soon.
            kept.caps = Some(unit.caps);
        } else {
            kept.add(unit);
        }
    }

    /// Other boxes.
    pub fn marks(&self, marks: Vec<Mark>) {
        let mut news = sync::lock(&self.news);
        if *news.marks != *marks {
            news.marks = marks.into();
            news.revision += 1;
        }
    }

    /// Another state.
    pub fn status(&self, status: &CameraStatus) {
        sync::lock(&self.news).standing = Standing { state: status.state, reason: status.reason.clone() };
    }

    /// A picture with boxes and labels on it.
    pub fn analysed(&self, image: Arc<RgbImage>) {
        sync::lock(&self.news).analysed = Some(image);
    }

    /// The boxes, and the number of their change.
    pub fn seen(&self) -> (Arc<[Mark]>, u64) {
        let news = sync::lock(&self.news);
        (news.marks.clone(), news.revision)
    }

    /// The number alone.
    pub fn revision(&self) -> u64 {
        sync::lock(&self.news).revision
    }

    /// Where it stands; and the newest analysed picture.
    pub fn standing(&self) -> (Standing, Option<Arc<RgbImage>>) {
        let news = sync::lock(&self.news);
        (news.standing.clone(), news.analysed.clone())
    }

    /// Whether pictures ever came, encoded or raw.
    pub fn is_encoded(&self) -> bool {
        sync::lock(&self.news).kept.caps.is_some()
    }

    /// Notes whether what comes can be decoded here.
    pub fn undecodable(&self, undecodable: bool) {
        self.undecodable.store(undecodable, Ordering::Release);
    }

    /// Whether it cannot, as far as is known.
    pub fn is_undecodable(&self) -> bool {
        self.undecodable.load(Ordering::Acquire)
    }

    /// For a new show, in place of any other: the pictures from the newest keyframe on, and those that come from now on.
    pub fn watch(&self) -> (Vec<EncodedUnit>, Receiver<EncodedUnit>) {
        let (send, units) = bounded(WAITING);
        let mut news = sync::lock(&self.news);
        // Without a keyframe nothing can be decoded.
        news.watch = Some(Watch { units: send, skips: news.kept.units.is_empty() });
        (news.kept.units.clone(), units)
    }

    /// Its video's size and the shape of a pixel, as an encoder is given it until its last viewer leaves.
    pub fn canvas(&self) -> Caps {
        let news = sync::lock(&self.news);
        let sent = news.kept.caps.as_ref().and_then(|caps| caps.parse::<Caps>().ok());
        let sent = sent.as_ref().and_then(|caps| caps.structure(0)).and_then(|caps| {
            let shape = caps.get::<Fraction>("pixel-aspect-ratio").unwrap_or(Fraction::new(1, 1));
            Some(((caps.get::<i32>("width").ok()?, caps.get::<i32>("height").ok()?), shape))
        });
        let analysed = || {
            let size = |pixels: u32| i32::try_from(pixels).unwrap_or(i32::MAX);
            news.analysed.as_ref().map(|image| ((size(image.width()), size(image.height())), Fraction::new(1, 1)))
        };
        let ((width, height), shape) = sent.or_else(analysed).unwrap_or((NOTHING, Fraction::new(1, 1)));
        let even = |pixels: i32| pixels.max(16) / 2 * 2 + pixels % 2 * 2;
        Caps::builder("video/x-raw")
            .field("format", "I420")
            .field("width", even(width))
            .field("height", even(height))
            .field("framerate", Fraction::new(0, 1))
            .field("pixel-aspect-ratio", shape)
            .build()
    }
}

impl Kept {
    /// A keyframe begins anew, and so does another connection.
    fn add(&mut self, unit: EncodedUnit) {
        if self.caps.as_ref() != Some(&unit.caps) {
            self.caps = Some(unit.caps.clone());
        }
        if unit.key || self.units.last().is_some_and(|last| last.connected != unit.connected) {
            self.clear();
        }
        if !unit.key && self.units.is_empty() {
            return;
        }
        self.bytes += unit.bytes.len();
        self.units.push(unit);
        if self.units.len() > MOST_UNITS || self.bytes > MOST_BYTES {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.units.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::base::clock::Utc;

    fn unit(key: bool, bytes: usize, connected: Instant) -> EncodedUnit {
        EncodedUnit {
            codec: Codec::H264,
            caps: "video/x-h264, width=(int)641, height=(int)360".into(),
            bytes: vec![0; bytes].into(),
            key,
            time: Duration::ZERO,
            dts: None,
            duration: None,
            connected,
            received: connected,
            captured: Utc::now(),
        }
    }

    fn camera() -> Camera {
        gstreamer::init().unwrap();
        Camera::new(CameraId::new("a").unwrap(), &Metrics::new())
    }

    #[test]
    fn who_begins_to_watch_gets_all_since_the_newest_keyframe() {
        let (camera, one) = (camera(), Instant::now());
        let two = one + Duration::from_secs(1);
        for (key, connected) in [(false, one), (true, one), (false, one), (true, one), (false, one)] {
            camera.encoded(unit(key, 1, connected));
        }
        let (kept, units) = camera.watch();
        assert_eq!(kept.iter().map(|unit| unit.key).collect::<Vec<_>>(), [true, false]);
        camera.encoded(unit(false, 1, one));
        assert_eq!(units.try_iter().count(), 1);
        // What another connection brings does not go on in this one.
        camera.encoded(unit(false, 1, two));
        assert!(camera.watch().0.is_empty());
        (0..MOST_UNITS + 2).for_each(|n| camera.encoded(unit(n == 0, 1, two)));
        assert!(camera.watch().0.is_empty());
    }

    #[test]
    fn a_show_that_takes_nothing_loses_pictures_to_the_next_keyframe() {
        let (camera, at) = (camera(), Instant::now());
        camera.encoded(unit(true, 1, at));
        let (_, units) = camera.watch();
        (0..WAITING + 5).for_each(|_| camera.encoded(unit(false, 1, at)));
        assert_eq!(camera.dropped.get(), 5);
        assert_eq!(units.try_iter().count(), WAITING);
        camera.encoded(unit(false, 1, at));
        camera.encoded(unit(true, 1, at));
        assert_eq!((camera.dropped.get(), units.try_iter().count()), (6, 1));
    }

    #[test]
    fn the_canvas_is_even_and_as_large_as_the_pictures() {
        let camera = camera();
        let size = |camera: &Camera| {
            let caps = camera.canvas();
            let caps = caps.structure(0).unwrap();
            (caps.get::<i32>("width").unwrap(), caps.get::<i32>("height").unwrap())
        };
        assert_eq!(size(&camera), NOTHING);
        camera.analysed(Arc::new(RgbImage::new(33, 20)));
        assert_eq!(size(&camera), (34, 20));
        camera.encoded(unit(true, 1, Instant::now()));
        assert_eq!(size(&camera), (642, 360));
    }
}
