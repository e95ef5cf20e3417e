//! Live video: `/live/<camera>.mjpeg` and `.jpg`, and `/live/<camera>/index.m3u8` with its files.
//!
//! A viewer of MJPEG is given the newest picture whenever its connection takes one. What it is too slow for it does not see, and that
//! is counted; nothing is kept for it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::base::error::Error;
use crate::base::metrics::Counter;
use crate::console::Desk;
use crate::console::reply::Refusal;
use crate::console::server::{Stopping, stopped};
use crate::sink::video::{HEIGHTS, Jpeg, Watching};
use crate::types::CameraId;

/// Pictures a second: by default, and at most.
const FPS: f64 = 10.0;
const MOST_FPS: f64 = 30.0;
const LEAST_FPS: f64 = 0.1;

/// For a first picture to be there.
const FIRST: Duration = Duration::from_secs(5);

/// For a first file of video; it has a keyframe at its begin and one behind its end.
const PLAYLIST: Duration = Duration::from_secs(6);

/// Between two looks at whether it is there.
const LOOK: Duration = Duration::from_millis(50);

/// `<camera>.mjpeg` or `<camera>.jpg`.
pub async fn pictures(State(desk): State<Desk>, Path(file): Path<String>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let (name, kind) = file.rsplit_once('.').ok_or(Refusal::NOTHING_HERE)?;
    let stream = match kind {
        "mjpeg" => true,
        "jpg" => false,
        _ => return Err(Refusal::NOTHING_HERE),
    };
    let camera = camera(&desk, name)?;
    let asked = Asked::read(query.as_deref().unwrap_or_default())?;
    if stream { mjpeg(&desk, &camera, asked) } else { jpg(&desk, &camera, asked).await }
}

/// `index.m3u8`, or a file that it names.
pub async fn video(State(desk): State<Desk>, Path((name, file)): Path<(String, String)>) -> Result<Response, Refusal> {
    let camera = camera(&desk, &name)?;
    if file == "index.m3u8" {
        return playlist(&desk, &camera).await;
    }
    let number = file.strip_suffix(".ts").and_then(|number| number.parse().ok()).ok_or(Refusal::NOTHING_HERE)?;
    let gone = || Refusal::new(StatusCode::NOT_FOUND, "this part of the video is not there any more; index.m3u8 names those that are");
    let bytes = desk.screens.hls.segment(&camera, number).ok_or_else(gone)?;
    // A number never means another part.
    let headers = [(header::CONTENT_TYPE, "video/mp2t"), (header::CACHE_CONTROL, "private, max-age=60, immutable")];
    Ok((headers, Bytes::from_owner(bytes)).into_response())
}

/// One that is known by this name: what was asked for goes no further than this comparison.
fn camera(desk: &Desk, name: &str) -> Result<CameraId, Refusal> {
    let unknown = || {
        let known = desk.screens.jpegs.cameras();
        let known: Vec<&str> = known.iter().map(CameraId::as_str).collect();
        Refusal::new(StatusCode::NOT_FOUND, format!("there is no such camera; must be one of {}", known.join(", ")))
    };
    desk.screens.jpegs.cameras().into_iter().find(|id| id.as_str() == name).ok_or_else(unknown)
}

/// What may be said of the pictures.
struct Asked {
    fps: f64,
    height: Option<u32>,
}

impl Asked {
    fn read(query: &str) -> Result<Self, Refusal> {
        let wrong = |sentence: String| Refusal::new(StatusCode::BAD_REQUEST, sentence);
        let mut asked = Self { fps: FPS, height: None };
        for (key, value) in query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, ""))) {
            match key {
                "fps" => {
                    let fps = value.parse().ok().filter(|fps| (LEAST_FPS..=MOST_FPS).contains(fps));
                    asked.fps =
                        fps.ok_or_else(|| wrong(format!("fps is no number of pictures a second; must be in {LEAST_FPS}..={MOST_FPS}")))?;
                }
                "height" => {
                    let heights = HEIGHTS.map(|height| height.to_string());
                    let at = heights.iter().position(|height| height == value);
                    let wrong = || wrong(format!("height is none that is made; must be one of {}", heights.join(", ")));
                    asked.height = Some(HEIGHTS[at.ok_or_else(wrong)?]);
                }
                // Browsers are often made to ask anew by a number that means nothing.
                _ => {}
            }
        }
        Ok(asked)
    }
}

async fn jpg(desk: &Desk, camera: &CameraId, asked: Asked) -> Result<Response, Refusal> {
    let mut watching = desk.screens.jpegs.watch(camera, asked.height, asked.fps).map_err(unavailable)?;
    let mut stopping = desk.stopping.clone();
    let jpeg = tokio::select! {
        jpeg = timeout(FIRST, watching.next()) => jpeg.ok().flatten(),
        () = stopped(&mut stopping) => None,
    };
    let jpeg = jpeg.ok_or_else(|| Refusal::soon("there is no picture of this camera yet"))?;
    Ok(([(header::CONTENT_TYPE, "image/jpeg")], Bytes::from_owner(jpeg.bytes)).into_response())
}

async fn playlist(desk: &Desk, camera: &CameraId) -> Result<Response, Refusal> {
    let deadline = Instant::now() + PLAYLIST;
    let mut stopping = desk.stopping.clone();
    loop {
        if let Some(list) = desk.screens.hls.playlist(camera).map_err(unavailable)? {
            let mut response = list.into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.apple.mpegurl"));
            return Ok(response);
        }
        if Instant::now() >= deadline {
            return Err(Refusal::soon("the video of this camera has not begun yet"));
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = stopped(&mut stopping) => return Err(Refusal::soon("the daemon is stopping")),
        }
    }
}

fn unavailable(error: Error) -> Refusal {
    Refusal::soon(error.chain())
}

fn mjpeg(desk: &Desk, camera: &CameraId, asked: Asked) -> Result<Response, Refusal> {
    let full = |_| Refusal::soon("there are too many viewers; try it later");
    let place = desk.streams.clone().try_acquire_owned().map_err(full)?;
    let watching = desk.screens.jpegs.watch(camera, asked.height, asked.fps).map_err(unavailable)?;
    let viewer = Viewer {
        watching,
        pace: Duration::from_secs_f64(1.0 / asked.fps),
        due: Instant::now(),
        last: None,
        skipped: desk.screens.jpegs.skipped(camera),
        stopping: desk.stopping.clone(),
        _place: place,
    };
    let begin = stream::once(async { Ok(Bytes::from_static(b"--frame\r\n")) });
    let pictures = stream::unfold(viewer, |mut viewer| async move { viewer.next().await.map(|jpeg| (part(jpeg), viewer)) });
    let parts = pictures.flat_map(|part| stream::iter(part.map(Ok::<Bytes, Infallible>)));
    let kind = [(header::CONTENT_TYPE, "multipart/x-mixed-replace; boundary=frame")];
    Ok((kind, Body::from_stream(begin.chain(parts))).into_response())
}

/// A picture with what comes before and behind it. The boundary follows at once: a browser shows a picture when it has seen that.
fn part(Jpeg { bytes, .. }: Jpeg) -> [Bytes; 3] {
    let head = format!("Content-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", bytes.len());
    [head.into(), Bytes::from_owner(bytes), Bytes::from_static(b"\r\n--frame\r\n")]
}

/// One stream of pictures.
struct Viewer {
    watching: Watching,
    pace: Duration,
    /// When it wants the next.
    due: Instant,
    /// The number of the last.
    last: Option<u64>,
    skipped: Counter,
    stopping: Stopping,
    _place: OwnedSemaphorePermit,
}

impl Viewer {
    /// Called when the connection has taken all but the last.
    async fn next(&mut self) -> Option<Jpeg> {
        let late = Instant::now().saturating_duration_since(self.due);
        // A little early, for the pictures come at a pace of their own that may be the same.
        let soon = self.due.checked_sub(self.pace / 10).unwrap_or(self.due);
        let Self { watching, stopping, .. } = self;
        let jpeg = tokio::select! {
            () = stopped(stopping) => None,
            jpeg = async {
                sleep_until(soon).await;
                watching.next().await
            } => jpeg,
        }?;
        // Those that it could have had at its own pace, had it come in time.
        let missed = self.last.map_or(0, |last| jpeg.number.saturating_sub(last + 1));
        let paces = (late.as_secs_f64() / self.pace.as_secs_f64()) as u64;
        self.skipped.add_many(missed.min(paces));
        self.last = Some(jpeg.number);
        let now = Instant::now();
        self.due = if now < self.due + self.pace { self.due + self.pace } else { now + self.pace };
        Some(jpeg)
    }
}
