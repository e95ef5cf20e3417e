//! The thread that shows while somebody watches: decodes what the camera sends, or makes a slate, and hands each picture to who
//! takes it as it is, and to the encoder where somebody wants it encoded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use gstreamer_video::VideoInfo;
use image::RgbImage;

use crate::base::backoff::Backoff;
use crate::base::error::{Error, Result};
use crate::sink::video::live::Painter;
use crate::sink::video::live::boxes::Boxes;
use crate::sink::video::live::camera::{Camera, Standing};
use crate::sink::video::live::decode::{self, Decoder};
use crate::sink::video::live::encode::Encoding;
use crate::sink::video::live::shown::Shown;
use crate::sink::video::raw;
use crate::types::{CameraState, Codec, EncodedUnit};

/// The longest time between two looks at what else there is to do.
const TURN: Duration = Duration::from_millis(40);

/// A picture that waited for longer tells what was: the machine does not keep up.
const LATE: Duration = Duration::from_secs(1);

/// With more than so many pictures waiting, they are decoded and not shown.
const BEHIND: usize = 8;

/// A camera that is known to be down shows its last picture for so long.
const LINGER: Duration = Duration::from_secs(1);

/// One that is not known to be, for so long.
const SILENT: Duration = Duration::from_secs(5);

/// What is encoded and not shown after so long never will be: there is no decoder, or no keyframe.
const UNSHOWN: Duration = Duration::from_secs(3);

/// Between two slates. They are the same; a viewer wants to see that the stream lives.
const SLATES: Duration = Duration::from_millis(500);

/// Between two repetitions of the latest analysed picture.
const ANALYSED: Duration = Duration::from_millis(200);

/// Between two pictures that are put by for a slate.
const PUT_BY: Duration = Duration::from_millis(500);

/// Before a failed encoder is tried again, at most; one that ran for so long was well.
const RETRY: Duration = Duration::from_secs(60);

/// Between two log lines about the same camera.
const QUIET: Duration = Duration::from_secs(60);

/// One show.
pub struct Show {
    camera: Arc<Camera>,
    painter: Arc<dyn Painter>,
    screen: Screen,
    units: Receiver<EncodedUnit>,
    decoder: Option<Decoder>,
    /// Too late: nothing is decoded up to the next keyframe.
    skips: bool,
    /// Up to here pictures were waiting for the decoder to catch up.
    caught_up: Instant,
    began: Instant,
    /// When a decoded picture was last shown.
    shown: Option<Instant>,
    last: Option<Last>,
    slate: Option<Slate>,
    /// When a slate or an analysed picture was last shown.
    repeated: Option<Instant>,
    told: Option<Instant>,
}

/// A picture put by.
struct Last {
    picture: Shown,
    at: Instant,
}

/// A slate, and what it says of which picture.
struct Slate {
    standing: Standing,
    of: Option<Instant>,
    image: Arc<RgbImage>,
}

impl Show {
    /// Of `camera`, encoded by `encoder`; `units`: what the camera sends from now on.
    pub fn new(camera: Arc<Camera>, painter: Arc<dyn Painter>, encoder: Arc<str>, units: Receiver<EncodedUnit>) -> Self {
        let boxes = Boxes::new(camera.clone(), painter.clone());
        let backoff = Backoff::new(Duration::from_secs(1), RETRY);
        let screen =
            Screen { camera: camera.clone(), encoder, boxes, encoding: None, since: Instant::now(), due: None, backoff, told: None };
        let now = Instant::now();
        Self {
            camera,
            painter,
            screen,
            units,
            decoder: None,
            skips: false,
            caught_up: now,
            began: now,
            shown: None,
            last: None,
            slate: None,
            repeated: None,
            told: None,
        }
    }

    /// Begins with the pictures that were `kept`, from a keyframe on; ends when nobody watches.
    pub fn run(mut self, kept: Vec<EncodedUnit>) {
        self.catch_up(kept);
        while !self.camera.audience.ends() {
            match self.units.recv_timeout(TURN) {
                Ok(unit) => {
                    let pictures = self.decode(&unit, false);
                    let behind = self.units.len() > BEHIND;
                    pictures.into_iter().for_each(|picture| self.show(picture, behind));
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Another show has begun, which is not to be: a slate says so.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TURN),
            }
            self.turn(Instant::now());
        }
    }

    /// Decodes all, shows the last: the picture of the moment. Of a camera that is down it is for the slate.
    fn catch_up(&mut self, kept: Vec<EncodedUnit>) {
        let mut newest = None;
        for unit in &kept {
            if self.camera.audience.is_empty() {
                return;
            }
            newest = self.decode(unit, true).pop().or(newest);
        }
        self.caught_up = Instant::now();
        let Some(picture) = newest else { return };
        let down = self.camera.standing().0.state != CameraState::Running;
        self.put_by(&picture);
        if !down {
            self.show(picture, false);
        }
    }

    /// The pictures that come of a unit; `missed`: it came before anybody watched.
    fn decode(&mut self, unit: &EncodedUnit, missed: bool) -> Vec<Shown> {
        let late = !missed && unit.received > self.caught_up && unit.received.elapsed() > LATE;
        self.skips = late || (self.skips && !unit.key);
        if self.skips {
            self.camera.dropped.add();
            return Vec::new();
        }
        if unit.codec == Codec::Raw {
            return decode::raw(unit).into_iter().collect();
        }
        let decoder = match &mut self.decoder {
            Some(decoder) if decoder.takes(unit) => decoder,
            _ => {
                self.decoder = None;
                if !unit.key {
                    self.camera.dropped.add();
                    return Vec::new();
                }
                match Decoder::start(unit) {
                    Ok(decoder) => self.decoder.insert(decoder),
                    Err(error) => {
                        self.tell(&error.chain());
                        return Vec::new();
                    }
                }
            }
        };
        match decoder.push(unit) {
            Ok(pictures) => pictures.into(),
            Err(error) => {
                self.decoder = None;
                self.tell(&error.chain());
                Vec::new()
            }
        }
    }

    fn show(&mut self, picture: Shown, behind: bool) {
        if behind {
            return self.camera.dropped.add();
        }
        let now = Instant::now();
        if self.shown.is_none() {
            self.camera.undecodable(false);
        }
        self.shown = Some(now);
        (self.slate, self.repeated) = (None, None);
        if self.last.as_ref().is_none_or(|last| now.duration_since(last.at) >= PUT_BY) {
            self.put_by(&picture);
        }
        self.screen.boxed(picture);
    }

    /// Not each of them: one that is held must be copied before boxes are blended into it.
    fn put_by(&mut self, picture: &Shown) {
        self.last = Some(Last { picture: picture.clone(), at: Instant::now() });
    }

    /// What is due beside decoding.
    fn turn(&mut self, now: Instant) {
        if self.camera.audience.take_came() {
            // Who came sees at once what is shown seldom.
            self.repeated = None;
        }
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let quiet = since(self.shown).unwrap_or_else(|| now.saturating_duration_since(self.began));
        if self.shown.is_some() && quiet < LINGER {
            return;
        }
        let (standing, analysed) = self.camera.standing();
        let running = standing.state == CameraState::Running;
        let due = |pace| since(self.repeated).is_none_or(|ago| ago >= pace);
        // A raw camera's next picture comes at once, and it is the larger one.
        let undecoded = (!self.camera.is_encoded() && quiet >= LINGER) || (self.shown.is_none() && quiet >= UNSHOWN);
        self.camera.undecodable(running && undecoded);
        if running
            && undecoded
            && let Some(image) = analysed
        {
            if due(ANALYSED) {
                self.repeated = Some(now);
                self.screen.plain(&image);
            }
            return;
        }
        if running && quiet < SILENT {
            // It may go on at any moment; till then a viewer's stream goes on, too.
            if due(SLATES)
                && let Some(last) = &self.last
            {
                self.repeated = Some(now);
                self.screen.boxed(last.picture.clone());
            }
            return;
        }
        if due(SLATES) {
            self.repeated = Some(now);
            let standing = if running { Standing { reason: "no picture comes".to_owned(), ..standing } } else { standing };
            let image = self.slate(standing);
            self.screen.plain(&image);
        }
    }

    fn slate(&mut self, standing: Standing) -> Arc<RgbImage> {
        let of = self.last.as_ref().map(|last| last.at);
        if let Some(slate) = self.slate.as_ref().filter(|slate| slate.standing == standing && slate.of == of) {
            return slate.image.clone();
        }
        let picture = self.last.as_ref().and_then(|last| last.picture.rgb());
        let lines = [self.camera.id().to_string(), standing.state.name().to_owned(), standing.reason.clone()];
        let size = (1280, 720);
        let drawn = catch_unwind(AssertUnwindSafe(|| self.painter.slate(picture.as_ref(), size, &lines)));
        let image = Arc::new(drawn.unwrap_or_else(|_| RgbImage::new(size.0, size.1)));
        self.slate = Some(Slate { standing, of, image: image.clone() });
        image
    }

    fn tell(&mut self, what: &str) {
        tell(&self.camera, &mut self.told, what);
    }
}

/// The way to who watches.
struct Screen {
    camera: Arc<Camera>,
    encoder: Arc<str>,
    boxes: Boxes,
    encoding: Option<Encoding>,
    /// When it began.
    since: Instant,
    /// When an encoder that failed is tried again.
    due: Option<Instant>,
    backoff: Backoff,
    told: Option<Instant>,
}

impl Screen {
    /// A picture of the camera, which gets boxes.
    fn boxed(&mut self, picture: Shown) {
        let picture = self.boxes.onto(picture);
        self.show(picture);
    }

    /// A picture that gets none: a slate, or one that was drawn on already.
    fn plain(&mut self, image: &Arc<RgbImage>) {
        if let Ok(info) = VideoInfo::from_caps(&raw::caps(image.width(), image.height())) {
            self.show(Shown::new(raw::buffer(image), info));
        }
    }

    /// Never blocks.
    fn show(&mut self, picture: Shown) {
        let (mut buffer, info) = picture.into_parts();
        let fresh = buffer.make_mut();
        // The time of its coming, as a live stream has it.
        fresh.set_pts(None);
        fresh.set_dts(None);
        fresh.set_duration(None);
        let picture = Shown::new(buffer, info);
        self.camera.audience.show(&picture);
        if !self.camera.audience.views() {
            self.encoding = None;
        } else if let Err(error) = self.encode(&picture) {
            self.encoding = None;
            if self.since.elapsed() >= RETRY {
                self.backoff.reset();
            }
            self.due = Some(Instant::now() + self.backoff.next_delay());
            tell(&self.camera, &mut self.told, &error.chain());
        }
    }

    fn encode(&mut self, picture: &Shown) -> Result<(), Error> {
        if self.due.is_some_and(|due| Instant::now() < due) {
            self.camera.dropped.add();
            return Ok(());
        }
        let due = self.camera.audience.take_keyframe();
        let encoding = match &mut self.encoding {
            Some(encoding) => {
                if due {
                    encoding.keyframe();
                }
                encoding
            }
            None => {
                self.since = Instant::now();
                self.encoding.insert(Encoding::start(&self.camera, &self.encoder)?)
            }
        };
        if !encoding.push(picture)? {
            self.camera.dropped.add();
        }
        self.camera.encoded.add();
        Ok(())
    }
}

/// Not more often than is useful.
fn tell(camera: &Camera, told: &mut Option<Instant>, what: &str) {
    if told.is_none_or(|at| at.elapsed() >= QUIET) {
        tracing::warn!(camera = %camera.id(), "live video: {what}");
        *told = Some(Instant::now());
    }
}
