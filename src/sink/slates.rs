//! What a sink shows of a camera that is down: its last picture darkened, with the state and the reason of it. A sink says when
//! it wants such pictures, and gets them as it gets others: it need not know where a camera stands.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use image::RgbImage;

use crate::base::clock::Utc;
use crate::base::sync;
use crate::sink::Picture;
use crate::sink::video::Painter;
use crate::types::{CameraId, CameraState, CameraStatus};

/// Between two slates of a camera. They are the same; who watches wants to see that the stream lives.
const PACE: Duration = Duration::from_secs(1);

/// The last picture is shown for so long as it is, also to who has just begun.
const LINGER: Duration = Duration::from_secs(1);

/// Shorter losses are not written down.
const OUTAGE: Duration = Duration::from_secs(5);

/// The size of a slate where there is no picture yet.
const SIZE: (u32, u32) = (1280, 720);

/// When a sink shows slates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slates {
    /// Never.
    Never,
    /// One for each loss that lasts, behind a first picture: a recording says why it stands still, and does not grow.
    Once,
    /// Each second, behind a first picture: that one says how large the video is.
    Following,
    /// Each second, before a first picture too.
    Always,
}

/// How cameras stand, for the sinks that show it. Clones share it; nothing waits for a sink.
#[derive(Clone, Default)]
pub struct Standings(Arc<Vec<Arc<Board>>>);

/// What one sink has not read yet: of each camera the newest.
struct Board {
    news: Mutex<BTreeMap<CameraId, CameraStatus>>,
    wake: Sender<()>,
}

/// One sink's slates.
pub(super) struct Slater {
    slates: Slates,
    painter: Arc<dyn Painter>,
    board: Arc<Board>,
    wake: Receiver<()>,
    cameras: BTreeMap<CameraId, Camera>,
}

/// What is known of a camera.
#[derive(Default)]
struct Camera {
    standing: Option<(CameraState, String)>,
    last: Option<Last>,
    /// What is shown at present.
    slate: Option<Arc<RgbImage>>,
    /// When one is to be shown next.
    due: Option<Instant>,
    /// This loss is written down.
    told: bool,
}

struct Last {
    picture: Picture,
    at: Instant,
}

impl Standings {
    /// For the sinks that these belong to.
    pub(super) fn of<'s>(slaters: impl IntoIterator<Item = &'s Slater>) -> Self {
        Self(Arc::new(slaters.into_iter().filter(|slater| slater.slates != Slates::Never).map(|slater| slater.board.clone()).collect()))
    }

    /// Where a camera stands from now on.
    pub fn tell(&self, status: &CameraStatus) {
        for board in self.0.iter() {
            sync::lock(&board.news).insert(status.camera.clone(), status.clone());
            // Full: it is about to look.
            board.wake.try_send(()).ok();
        }
    }
}

impl Slater {
    /// For a sink that wants `slates`.
    pub(super) fn new(slates: Slates, painter: Arc<dyn Painter>) -> Self {
        let (wake, woken) = bounded(1);
        let board = Arc::new(Board { news: Mutex::default(), wake });
        Self { slates, painter, board, wake: woken, cameras: BTreeMap::new() }
    }

    /// Has something to read when `turn` does.
    pub(super) fn wake(&self) -> &Receiver<()> {
        &self.wake
    }

    /// When `turn` has something to do, should nothing happen.
    pub(super) fn due(&self) -> Option<Instant> {
        self.cameras.values().filter_map(|camera| camera.due).min()
    }

    /// A picture that is written now.
    pub(super) fn seen(&mut self, picture: &Picture, now: Instant) {
        if self.slates != Slates::Never {
            self.learn(now);
            self.cameras.entry(picture.camera.clone()).or_default().seen(picture, self.slates, now);
        }
    }

    /// The slates that are due.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<Picture> {
        self.learn(now);
        let Self { slates, painter, cameras, .. } = self;
        cameras.iter_mut().filter_map(|(id, camera)| camera.turn(id, *slates, painter.as_ref(), now)).collect()
    }

    /// A camera goes.
    pub(super) fn forget(&mut self, camera: &CameraId) {
        sync::lock(&self.board.news).remove(camera);
        self.cameras.remove(camera);
    }

    fn learn(&mut self, now: Instant) {
        for (id, CameraStatus { state, reason, .. }) in std::mem::take(&mut *sync::lock(&self.board.news)) {
            self.cameras.entry(id).or_default().stands((state, reason), self.slates, now);
        }
    }
}

impl Slates {
    fn after(self) -> Duration {
        if self == Self::Once { OUTAGE } else { LINGER }
    }
}

impl Camera {
    fn runs(&self) -> bool {
        self.standing.as_ref().is_none_or(|(state, _)| *state == CameraState::Running)
    }

    fn stands(&mut self, standing: (CameraState, String), slates: Slates, now: Instant) {
        let standing = Some(standing);
        if self.standing == standing {
            return;
        }
        self.standing = standing;
        let shown = self.slate.take().is_some();
        self.due = match self.runs() {
            // What was seen is out of date until a picture comes, which may take as long as there is nothing to look at.
            true => (slates != Slates::Once && (shown || self.last.is_none())).then_some(now),
            false if slates == Slates::Once && self.told => None,
            false if shown => Some(now),
            false => self.due.or(Some(now + slates.after())),
        };
    }

    /// One that comes while the camera is down was taken before.
    fn seen(&mut self, picture: &Picture, slates: Slates, now: Instant) {
        self.last = Some(Last { picture: picture.clone(), at: now });
        self.slate = None;
        self.told &= !self.runs();
        self.due = (!self.runs() && !self.told).then(|| now + slates.after());
    }

    fn turn(&mut self, id: &CameraId, slates: Slates, painter: &dyn Painter, now: Instant) -> Option<Picture> {
        self.due.filter(|due| *due <= now)?;
        self.due = (slates != Slates::Once).then(|| now + PACE);
        if slates != Slates::Always && self.last.is_none() {
            self.due = None;
            return None;
        }
        self.told = slates == Slates::Once;
        // By the clock of the pictures, which is the camera's where it has one.
        let captured = self.last.as_ref().map_or_else(Utc::now, |Last { picture, at }| {
            let since = i64::try_from(now.saturating_duration_since(*at).as_millis()).unwrap_or_default();
            Utc::from_millis(picture.captured.millis() + since)
        });
        let image = self.slate.take().unwrap_or_else(|| self.draw(id, painter));
        self.slate = Some(image.clone());
        Some(Picture { camera: id.clone(), captured, image })
    }

    fn draw(&self, id: &CameraId, painter: &dyn Painter) -> Arc<RgbImage> {
        let (state, reason) = self.standing.clone().unwrap_or((CameraState::Connecting, String::new()));
        let reason = if self.runs() { "the next look is awaited".to_owned() } else { reason };
        let lines = [id.to_string(), state.name().to_owned(), reason];
        let picture = self.last.as_ref().map(|last| &*last.picture.image);
        let drawn = catch_unwind(AssertUnwindSafe(|| painter.slate(picture, SIZE, &lines)));
        Arc::new(drawn.unwrap_or_else(|_| RgbImage::new(SIZE.0, SIZE.1)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use image::Rgb;

    use super::*;
    use crate::types::{Mark, Patch};

    /// Writes the size of what is said into the first pixel of a picture that is half as bright.
    pub(in crate::sink) struct Plain;

    impl Painter for Plain {
        fn boxes(&self, _: &[Mark], _: Instant, _: (u32, u32)) -> Vec<Patch> {
            Vec::new()
        }
        fn slate(&self, picture: Option<&RgbImage>, (width, height): (u32, u32), lines: &[String]) -> RgbImage {
            let mut slate = picture.cloned().unwrap_or_else(|| RgbImage::new(width, height));
            slate.iter_mut().for_each(|value| *value /= 2);
            slate.put_pixel(0, 0, Rgb([lines[2].len() as u8; 3]));
            slate
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    struct Rig {
        slater: Slater,
        begin: Instant,
    }

    impl Rig {
        fn new(slates: Slates) -> Self {
            Self { slater: Slater::new(slates, Arc::new(Plain)), begin: Instant::now() }
        }

        fn tell(&self, state: CameraState, reason: &str) {
            let camera = CameraId::new("a").unwrap();
            let status = CameraStatus { camera, state, reason: reason.to_owned(), since: Utc::now(), fps: 0.0 };
            Standings::of([&self.slater]).tell(&status);
        }

        fn seen(&mut self, at: f64) {
            let image = Arc::new(RgbImage::from_pixel(8, 6, Rgb([200; 3])));
            let picture = Picture { camera: CameraId::new("a").unwrap(), captured: Utc::from_millis(5000), image };
            self.slater.seen(&picture, self.begin + SECOND.mul_f64(at));
        }

        /// How many letters the reason has that is shown, at each of some moments.
        fn shown<const N: usize>(&mut self, at: [f64; N]) -> [Option<u8>; N] {
            at.map(|at| {
                let slates = self.slater.turn(self.begin + SECOND.mul_f64(at));
                assert!(slates.len() <= 1);
                slates.first().map(|slate| slate.image.get_pixel(0, 0).0[0])
            })
        }
    }

    #[test]
    fn a_camera_that_is_down_is_shown_as_long_as_it_is_and_until_a_picture_comes() {
        let mut rig = Rig::new(Slates::Following);
        rig.tell(CameraState::Connecting, "");
        assert_eq!(rig.shown([0.0, 5.0]), [None; 2], "there is no picture yet");
        rig.tell(CameraState::Running, "");
        rig.seen(6.0);
        assert_eq!(rig.shown([6.0, 30.0]), [None; 2]);
        rig.tell(CameraState::Backoff, "gone");
        assert_eq!(rig.shown([31.0, 31.9, 32.0, 32.5, 33.0]), [None, None, Some(4), None, Some(4)]);
        // Another reason is shown at once, and a picture from before for a moment only.
        rig.tell(CameraState::Connecting, "");
        assert_eq!(rig.shown([33.1, 33.2]), [Some(0), None]);
        rig.seen(33.3);
        assert_eq!(rig.shown([33.4, 34.2, 34.4]), [None, None, Some(0)]);
        // It is back, and nothing was looked at yet.
        rig.tell(CameraState::Running, "");
        let awaited = "the next look is awaited".len() as u8;
        assert_eq!(rig.shown([34.5, 35.0, 35.6]), [Some(awaited), None, Some(awaited)]);
        rig.seen(36.0);
        assert_eq!(rig.shown([36.0, 99.0]), [None; 2]);
        assert_eq!(rig.slater.due(), None);
    }

    #[test]
    fn a_short_loss_is_not_shown_and_the_first_picture_may_be_there_before_the_word() {
        let mut rig = Rig::new(Slates::Following);
        rig.tell(CameraState::Running, "");
        rig.seen(0.0);
        rig.tell(CameraState::Backoff, "gone");
        assert_eq!(rig.shown([1.0]), [None]);
        rig.tell(CameraState::Connecting, "");
        rig.tell(CameraState::Running, "");
        assert_eq!(rig.shown([1.5, 9.0]), [None; 2]);
        rig.tell(CameraState::Backoff, "gone");
        assert_eq!(rig.shown([10.0, 11.0]), [None, Some(4)]);
        rig.tell(CameraState::Connecting, "");
        assert_eq!(rig.shown([12.0]), [Some(0)]);
        rig.seen(12.5);
        rig.tell(CameraState::Running, "");
        assert_eq!(rig.shown([12.6, 99.0]), [None; 2]);
    }

    #[test]
    fn before_a_first_picture_only_who_shows_always_says_why() {
        for (slates, expected) in [(Slates::Always, [Some(4), Some(4)]), (Slates::Following, [None; 2]), (Slates::Once, [None; 2])] {
            let mut rig = Rig::new(slates);
            rig.tell(CameraState::Backoff, "gone");
            assert_eq!(rig.shown([0.0]), [None]);
            assert_eq!(rig.shown([9.0, 10.0]), expected, "{slates:?}");
        }
    }

    #[test]
    fn a_recording_gets_one_for_each_loss_that_lasts() {
        let mut rig = Rig::new(Slates::Once);
        rig.tell(CameraState::Running, "");
        rig.seen(0.0);
        rig.tell(CameraState::Backoff, "gone");
        assert_eq!(rig.shown([1.0, 5.9]), [None; 2]);
        let slate = rig.slater.turn(rig.begin + 6 * SECOND).remove(0);
        assert_eq!((slate.captured.millis(), slate.image.dimensions()), (11_000, (8, 6)), "six seconds after the last picture");
        for (state, reason) in [(CameraState::Connecting, ""), (CameraState::Backoff, "still"), (CameraState::Running, "")] {
            rig.tell(state, reason);
            assert_eq!(rig.shown([7.0, 20.0]), [None; 2]);
        }
        rig.seen(21.0);
        rig.tell(CameraState::Backoff, "gone");
        assert_eq!(rig.shown([22.0, 27.0, 40.0]), [None, Some(4), None]);
    }
}
