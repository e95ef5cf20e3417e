//! `POST /api/v1/detect`: a picture of one's own, or a camera's of this moment, and a prompt through the model. Behind the cameras, and
//! counted for none but in `frames_sampled`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use image::imageops::{self, FilterType};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::annotate::Annotator;
use crate::base::error::{Error, Kind};
use crate::base::jpeg;
use crate::base::picture::{self, Unfit};
use crate::console::Desk;
use crate::console::api::{Json, Said, known};
use crate::console::reply::Refusal;
use crate::console::wire;
use crate::detect::Reply;
use crate::mqtt::payload;
use crate::types::{CameraState, Prompt};

/// A request's body, bytes; and room for what stands around the picture in it.
pub const BODY: usize = MOST + AROUND;
const MOST: usize = 32 << 20;
const AROUND: usize = 64 << 10;

/// A field of text, bytes.
const TEXT: usize = 4096;

/// For a request's body to come.
const UPLOAD: Duration = Duration::from_secs(60);

/// For a camera's next picture: keyframes of some come every few seconds.
const PICTURE: Duration = Duration::from_secs(10);

/// For the answer: others may be before it, and each may take long.
const ANSWER: Duration = Duration::from_secs(300);

/// The annotated picture's longer side, and the quality of its JPEG.
const SIDE: u32 = 2048;
const QUALITY: u8 = 85;

/// What is asked.
struct Form {
    prompt: Prompt,
    subject: Subject,
}

enum Subject {
    File(Vec<u8>),
    Camera(String),
}

/// Answers as `palisade detect --json` does, with the picture.
pub async fn detect(State(desk): State<Desk>, request: Request) -> Said {
    let late = desk.screens.back.late().ok_or_else(|| Refusal::soon("the model is being loaded"))?;
    let busy = || Refusal::soon("the model is busy with other pictures; try it later");
    // Before anything of the body is held.
    let _place = desk.askers.clone().try_acquire_owned().map_err(|_| busy())?;
    let Form { prompt, subject } = form(&desk, request).await?;
    // One picture at a time is held as pixels, until it is answered, whether or not who asked still waits.
    let turn = timeout(ANSWER, desk.turn.clone().acquire_owned()).await.map_err(|_| busy())?.map_err(|_| busy())?;
    let image = match subject {
        Subject::File(bytes) => Arc::new(desk.works.run(move || decode(&bytes)).await??),
        Subject::Camera(id) => current(&desk, &id).await?,
    };
    let (prompt, begin) = (Arc::new(prompt), Instant::now());
    let (send, reply) = oneshot::channel();
    let tell = Box::new(move |reply| {
        drop(turn);
        _ = send.send(reply);
    });
    if !late.guests.ask(image.clone(), prompt.clone(), tell) {
        return Err(busy());
    }
    let reply = timeout(ANSWER, reply).await.map_err(|_| busy())?;
    let reply = reply.map_err(|_| Refusal::soon("the daemon is stopping"))?.map_err(refused)?;
    let (model, annotator) = (late.model.clone(), desk.screens.back.annotator.clone());
    desk.works.run(move || answer(&image, &prompt, &reply, &model, &annotator, begin.elapsed())).await?.map(Json)
}

/// What the model says no to: a prompt that is too long for it, and defects.
fn refused(error: Error) -> Refusal {
    match error.kind() {
        Kind::Input => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.chain()),
        _ => {
            tracing::error!("a question over HTTP could not be answered: {}", error.chain());
            Refusal::defect()
        }
    }
}

async fn form(desk: &Desk, request: Request) -> Result<Form, Refusal> {
    large(request.headers())?;
    let right = "must be multipart/form-data with prompt, and image (a file) or camera (an id)";
    let mut parts = Multipart::from_request(request, desk)
        .await
        .map_err(|_| Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("the request's body {right}")))?;
    let wrong = |what: &str| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{what}; {right}"));
    let deadline = Instant::now() + UPLOAD;
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time");
    let (mut prompt, mut subject) = (None, None);
    while let Some(field) = timeout_at(deadline, parts.next_field()).await.map_err(late)?.map_err(broken)? {
        let name = field.name().unwrap_or_default().to_owned();
        let most = if name == "image" { MOST } else { TEXT };
        let bytes = timeout_at(deadline, bytes(field, most)).await.map_err(late)??;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| wrong("a field is no text in UTF-8"));
        match name.as_str() {
            "prompt" if prompt.is_none() => prompt = Some(text(bytes)?),
            "image" if subject.is_none() => subject = Some(Subject::File(bytes)),
            "camera" if subject.is_none() => subject = Some(Subject::Camera(text(bytes)?)),
            "prompt" | "image" | "camera" => return Err(wrong("a field is there twice, or image beside camera")),
            _ => return Err(wrong("there is a field of another name")),
        }
    }
    let prompt = prompt.ok_or_else(|| wrong("prompt is missing"))?;
    let prompt = Prompt::new(&prompt).map_err(|error| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    Ok(Form { prompt, subject: subject.ok_or_else(|| wrong("image and camera are missing"))? })
}

/// Said by the client already: not worth waiting for.
fn large(headers: &HeaderMap) -> Result<(), Refusal> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY as u64) { Err(too_large()) } else { Ok(()) }
}

fn too_large() -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the picture is too large; must be at most {} MiB", MOST >> 20))
}

fn broken(error: MultipartError) -> Refusal {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => Refusal::new(StatusCode::BAD_REQUEST, "the request's body is no multipart/form-data, or did not come whole"),
    }
}

async fn bytes(mut field: Field<'_>, most: usize) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        if bytes.len() + chunk.len() > most {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<RgbImage, Refusal> {
    picture::from_bytes(bytes, "the picture").map_err(|unfit| match unfit {
        Unfit::Large(error) => Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error.chain()),
        Unfit::Broken(error) => Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error.chain()),
    })
}

/// A camera's next picture.
async fn current(desk: &Desk, id: &str) -> Result<Arc<RgbImage>, Refusal> {
    let now = known(desk, id)?;
    if now.status.state != CameraState::Running {
        return Err(Refusal::soon(format!("there is no picture of {id} now: its state is {}", now.status.state.name())));
    }
    let camera = now.watched.id;
    let none = || Refusal::soon("there is no picture of this camera now");
    let picture = desk.screens.back.board.picture(&camera).ok_or_else(none)?;
    let mut stopping = desk.stopping.clone();
    tokio::select! {
        picture = timeout(PICTURE, picture) => Ok(picture.map_err(|_| none())?.map_err(|_| none())?.image),
        () = crate::console::server::stopped(&mut stopping) => Err(Refusal::soon("the daemon is stopping")),
    }
}

fn answer(image: &RgbImage, prompt: &Prompt, reply: &Reply, model: &str, annotator: &Annotator, total: Duration) -> Result<Value, Refusal> {
    let (width, height) = image.dimensions();
    let found = payload::answer(&reply.answer, width, height);
    let caption = prompt.text();
    // Scaled first: lines and letters stay as wide as they are to be.
    let drawn = match scaled(image) {
        Some(small) => annotator.draw(&small, &reply.answer.detections, caption),
        None => annotator.draw(image, &reply.answer.detections, caption),
    };
    let jpeg = jpeg::encode(drawn.as_raw(), drawn.width(), drawn.height(), QUALITY).map_err(|_| Refusal::defect())?;
    Ok(json!({
        "width": width,
        "height": height,
        "prompt": prompt.text(),
        "raw": found["raw"],
        "finish": found["finish"],
        "model": model,
        "latency_ms": wire::latency(reply.queued, reply.inference, total),
        "detections": found["detections"],
        "dropped": found["dropped"],
        "annotated": {"media_type": "image/jpeg", "base64": STANDARD.encode(jpeg)},
    }))
}

fn scaled(image: &RgbImage) -> Option<RgbImage> {
    let (width, height) = image.dimensions();
    let longer = width.max(height);
    let part = |length: u32| (u64::from(length) * u64::from(SIDE) / u64::from(longer)).max(1) as u32;
    (longer > SIDE).then(|| imageops::resize(image, part(width), part(height), FilterType::Triangle))
}
