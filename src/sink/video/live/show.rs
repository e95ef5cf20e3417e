//! The thread that fills one encoder while somebody watches: decodes what the camera sends, or shows a slate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer::{Buffer, Caps, ClockTime, Sample};
use gstreamer_app::AppSrc;
use gstreamer_video::{DownstreamForceKeyUnitEvent, VideoFrameExt, VideoFrameRef, VideoInfo, convert_sample};
use image::RgbImage;

use crate::sink::video::live::camera::{Camera, Standing};
use crate::sink::video::live::decode::{Decoded, Decoder};
use crate::sink::video::live::{Painter, boxes, rateless};
use crate::sink::video::raw;
use crate::types::{CameraState, EncodedUnit};

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

/// For a picture to be converted for a slate.
const CONVERT: ClockTime = ClockTime::from_seconds(2);

/// Pictures that may wait for the encoder, as the pipeline's line has it.
const WAITING: u64 = 2;

/// Between two log lines about the same camera.
const QUIET: Duration = Duration::from_secs(60);

/// One show.
pub struct Show {
    camera: Arc<Camera>,
    painter: Arc<dyn Painter>,
    screen: Screen,
    units: Receiver<EncodedUnit>,
    ended: Arc<AtomicBool>,
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
    buffer: Buffer,
    info: VideoInfo,
    at: Instant,
}

/// A slate, and what it says of which picture.
struct Slate {
    standing: Standing,
    of: Option<Instant>,
    image: Arc<RgbImage>,
}

impl Show {
    /// Of `camera`, into `source`, until `ended` or until `units` come no more because another show has begun.
    pub fn new(
        camera: Arc<Camera>,
        painter: Arc<dyn Painter>,
        source: glib::WeakRef<AppSrc>,
        units: Receiver<EncodedUnit>,
        ended: Arc<AtomicBool>,
    ) -> Self {
        let screen = Screen { camera: camera.clone(), source, caps: None, takes: false, pending: None };
        let now = Instant::now();
        Self {
            camera,
            painter,
            screen,
            units,
            ended,
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

    /// Begins with the pictures that were `kept`, from a keyframe on.
    pub fn run(mut self, kept: Vec<EncodedUnit>) {
        self.catch_up(kept);
        while !self.ended.load(Ordering::Acquire) {
            match self.units.recv_timeout(TURN) {
                Ok(unit) => {
                    let pictures = self.decode(&unit, false);
                    let behind = self.units.len() > BEHIND;
                    pictures.into_iter().for_each(|picture| self.show(picture, behind));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.turn(Instant::now());
        }
    }

    /// Decodes all, shows the last: the picture of the moment. Of a camera that is down it is for the slate.
    fn catch_up(&mut self, kept: Vec<EncodedUnit>) {
        let mut newest = None;
        for unit in &kept {
            if self.ended.load(Ordering::Acquire) {
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
    fn decode(&mut self, unit: &EncodedUnit, missed: bool) -> Vec<Decoded> {
        let late = !missed && unit.received > self.caught_up && unit.received.elapsed() > LATE;
        self.skips = late || (self.skips && !unit.key);
        if self.skips {
            self.camera.dropped.add();
            return Vec::new();
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

    fn show(&mut self, picture: Decoded, behind: bool) {
        if behind {
            return self.camera.dropped.add();
        }
        let now = Instant::now();
        self.shown = Some(now);
        (self.slate, self.repeated) = (None, None);
        if self.last.as_ref().is_none_or(|last| now.duration_since(last.at) >= PUT_BY) {
            self.put_by(&picture);
        }
        let Decoded { buffer, info } = picture;
        if let Ok(caps) = rateless(&info) {
            self.screen.push(caps, buffer, 0);
        }
    }

    /// Not each of them: one that is held must be copied before boxes are blended into it.
    fn put_by(&mut self, picture: &Decoded) {
        self.last = Some(Last { buffer: picture.buffer.clone(), info: picture.info.clone(), at: Instant::now() });
    }

    /// What is due beside decoding.
    fn turn(&mut self, now: Instant) {
        self.screen.turn();
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let quiet = since(self.shown).unwrap_or_else(|| now.saturating_duration_since(self.began));
        if self.shown.is_some() && quiet < LINGER {
            return;
        }
        let (standing, analysed) = self.camera.standing();
        let running = standing.state == CameraState::Running;
        let due = |pace| since(self.repeated).is_none_or(|ago| ago >= pace);
        let undecoded = !self.camera.is_encoded() || (self.shown.is_none() && quiet >= UNSHOWN);
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
        let picture = self.last.as_ref().and_then(rgb);
        let lines = [self.camera.id().to_string(), standing.state.name().to_owned(), standing.reason.clone()];
        let size = (1280, 720);
        let drawn = catch_unwind(AssertUnwindSafe(|| self.painter.slate(picture.as_ref(), size, &lines)));
        let image = Arc::new(drawn.unwrap_or_else(|_| RgbImage::new(size.0, size.1)));
        self.slate = Some(Slate { standing, of, image: image.clone() });
        image
    }

    fn tell(&mut self, what: &str) {
        if self.told.is_none_or(|at| at.elapsed() >= QUIET) {
            tracing::warn!(camera = %self.camera.id(), "live video: {what}");
            self.told = Some(Instant::now());
        }
    }
}

/// The way to the encoder.
struct Screen {
    camera: Arc<Camera>,
    source: glib::WeakRef<AppSrc>,
    caps: Option<Caps>,
    /// The pipeline takes pictures.
    takes: bool,
    /// A picture that came before the pipeline took any: the newest.
    pending: Option<(Caps, Buffer, u64)>,
}

impl Screen {
    /// A picture that gets no boxes.
    fn plain(&mut self, image: &Arc<RgbImage>) {
        self.push(raw::caps(image.width(), image.height()), raw::buffer(image), boxes::BARE);
    }

    /// Never blocks: where the encoder does not keep up, its queue loses the oldest.
    fn push(&mut self, caps: Caps, mut buffer: Buffer, offset: u64) {
        let Some(source) = self.source.upgrade() else { return };
        let fresh = buffer.make_mut();
        // The time of its coming, as a live stream has it.
        fresh.set_pts(None);
        fresh.set_dts(None);
        fresh.set_duration(None);
        fresh.set_offset(offset);
        if self.caps.as_ref() != Some(&caps) {
            source.set_caps(Some(&caps));
            self.caps = Some(caps.clone());
        }
        let full = source.current_level_bytes() >= WAITING * buffer.size() as u64;
        // Held here as well it would have to be copied before boxes are blended into it.
        let spare = (!self.takes).then(|| buffer.clone());
        match source.push_buffer(buffer) {
            Ok(_) => {
                (self.takes, self.pending) = (true, None);
                self.camera.encoded.add();
                if full {
                    self.camera.dropped.add();
                }
            }
            Err(_) => self.pending = spare.map(|buffer| (caps, buffer, offset)),
        }
    }

    /// Tries again what was refused, and asks for a keyframe where somebody joined.
    fn turn(&mut self) {
        if let Some((caps, buffer, offset)) = self.pending.take() {
            self.push(caps, buffer, offset);
        }
        if self.camera.take_join()
            && let Some(source) = self.source.upgrade()
        {
            source.send_event(DownstreamForceKeyUnitEvent::builder().all_headers(true).build());
        }
    }
}

/// A picture's pixels, for drawing.
fn rgb(last: &Last) -> Option<RgbImage> {
    let caps = rateless(&last.info).ok()?;
    let sample = Sample::builder().buffer(&last.buffer).caps(&caps).build();
    let (width, height) = (last.info.width(), last.info.height());
    let converted = convert_sample(&sample, &raw::caps(width, height), Some(CONVERT)).ok()?;
    let info = VideoInfo::from_caps(converted.caps()?).ok()?;
    let frame = VideoFrameRef::from_buffer_ref_readable(converted.buffer()?, &info).ok()?;
    let stride = usize::try_from(frame.plane_stride().first().copied()?).ok()?;
    let rows = frame.plane_data(0).ok()?.chunks(stride).take(height as usize);
    let row = width as usize * 3;
    let pixels: Vec<u8> = rows.flat_map(|line| &line[..row.min(line.len())]).copied().collect();
    RgbImage::from_raw(width, height, pixels)
}
