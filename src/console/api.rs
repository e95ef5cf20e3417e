//! `/api/v1`: what the daemon is, its cameras, and what they are told.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::base::error::Kind;
use crate::console::Desk;
use crate::console::board::Now;
use crate::console::reply::Refusal;
use crate::console::wire;
use crate::mqtt::Command;
use crate::types::{CameraId, Prompt};

/// A command's body.
const COMMAND: usize = 4096;

/// A configuration's.
const CONFIG: usize = 256 << 10;

/// What is said in JSON.
pub type Said = Result<Json, Refusal>;

/// An answer in JSON.
pub struct Json(pub Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], self.0.to_string()).into_response()
    }
}

/// What node this is.
pub async fn info(State(desk): State<Desk>) -> Json {
    let back = &desk.screens.back;
    let late = back.late();
    let publisher = late.and_then(|late| late.publisher.as_ref());
    Json(json!({
        "name": "palisade",
        "version": env!("CARGO_PKG_VERSION"),
        "model": late.map(|late| &late.model),
        "device": late.map(|late| &late.device),
        "started": back.started.to_string(),
        "uptime_s": back.begun.elapsed().as_secs(),
        "run": back.run.to_string(),
        "control": desk.control,
        "node": publisher.map(|publisher| publisher.prefix()),
        "mqtt": {
            "enabled": publisher.is_some(),
            "connected": publisher.is_some_and(|publisher| publisher.trouble().is_none()),
            "outbox": publisher.map_or(0, |publisher| publisher.waiting()),
        },
        "clips": back.clips.is_some(),
        "snapshots": back.snapshots.is_some(),
        "history": back.history.is_some(),
    }))
}

/// Every camera.
pub async fn cameras(State(desk): State<Desk>) -> Json {
    let cameras: Vec<Value> = desk.screens.back.board.cameras().iter().map(|now| wire::camera(now, desk.control)).collect();
    Json(json!({ "cameras": cameras }))
}

/// One camera.
pub async fn camera(State(desk): State<Desk>, Path(id): Path<String>) -> Said {
    Ok(Json(wire::camera(&known(&desk, &id)?, desk.control)))
}

/// One that is known by this name: what was asked for goes no further than this comparison.
pub fn known(desk: &Desk, id: &str) -> Result<Now, Refusal> {
    let board = &desk.screens.back.board;
    board.camera(id).ok_or_else(|| {
        let known: Vec<String> = board.cameras().iter().map(|now| now.watched.id.to_string()).collect();
        Refusal::new(StatusCode::NOT_FOUND, format!("there is no such camera; must be one of {}", known.join(", ")))
    })
}

/// Another prompt for a camera.
pub async fn prompt(State(desk): State<Desk>, Path(id): Path<String>, body: Body) -> Said {
    let camera = steerable(&desk, &id)?;
    let body = object(&desk, body).await?;
    let text = body.get("prompt").and_then(Value::as_str).ok_or_else(|| wrong("must be {\"prompt\": \"detect cat ; dog\"}"))?;
    let prompt = Prompt::new(text).map_err(|error| wrong(&error.to_string()))?;
    order(&desk, &camera, Command::Prompt(prompt))
}

/// Whether a camera is looked at.
pub async fn detect(State(desk): State<Desk>, Path(id): Path<String>, body: Body) -> Said {
    let camera = steerable(&desk, &id)?;
    let body = object(&desk, body).await?;
    let on = body.get("on").and_then(Value::as_bool).ok_or_else(|| wrong("must be {\"on\": true} or {\"on\": false}"))?;
    order(&desk, &camera, Command::Detect(on))
}

fn wrong(right: &str) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, right.to_owned())
}

fn steerable(desk: &Desk, id: &str) -> Result<CameraId, Refusal> {
    if !desk.control {
        let sentence = "cameras are not steered over HTTP; console.control = true in the configuration allows it";
        return Err(Refusal::new(StatusCode::FORBIDDEN, sentence));
    }
    let now = known(desk, id)?;
    if !now.enabled {
        return Err(Refusal::new(StatusCode::CONFLICT, "this camera is disabled in the configuration"));
    }
    Ok(now.watched.id)
}

/// Obeyed as a command over MQTT is, whose readers are told as well.
fn order(desk: &Desk, camera: &CameraId, command: Command) -> Said {
    let late = desk.screens.back.late().ok_or_else(|| Refusal::soon("the model is being loaded"))?;
    let obeyed = late.command(camera, &command).map_err(|error| match error.kind() {
        Kind::Input => Refusal::new(StatusCode::CONFLICT, error.chain()),
        _ => Refusal::soon(error.chain()),
    });
    // What is in force is on the board already.
    obeyed?;
    tracing::info!(%camera, "told over HTTP: {command}");
    Ok(Json(wire::camera(&known(desk, camera.as_str())?, desk.control)))
}

async fn object(desk: &Desk, body: Body) -> Result<Value, Refusal> {
    let bytes = read(body, "", COMMAND, desk.limits.body).await?;
    serde_json::from_slice(&bytes).map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the request's body is no JSON: {error}")))
}

/// A request's body; `what` it must be, for who sends another one.
pub async fn read(body: Body, what: &str, most: usize, within: Duration) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(within, to_bytes(body, most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let sentence = format!("the request's body did not come whole; must be {what}{most} bytes at most");
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence))
        }
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time")),
    }
}

/// Whether a configuration holds; nothing is changed by it.
pub async fn check(State(desk): State<Desk>, body: Body) -> Said {
    let text = read(body, "", CONFIG, desk.limits.body).await?;
    let text =
        String::from_utf8(text.into()).map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "a configuration must be text in UTF-8"))?;
    let judge = desk.screens.back.check.clone();
    let faults = desk.works.run(move || judge(&text)).await?;
    Ok(Json(json!({"ok": faults.is_empty(), "faults": faults})))
}

/// What there is to ask.
pub async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

/// The document.
pub const OPENAPI: &str = include_str!("openapi.json");
