//! `/api/v1/stream`: server-sent events. Who is slow is told of the newest, and nothing waits for it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use crate::console::board::{Listener, News};
use crate::console::reply::Refusal;
use crate::console::server::stopped;
use crate::console::{Desk, wire};

/// Between two states of a camera, at least.
const PACE: Duration = Duration::from_millis(500);

/// Without anything to tell, a comment comes: so that whoever is in between does not take the connection for dead.
const COMMENT: Duration = Duration::from_secs(15);

/// Every camera, then what changes.
pub async fn stream(State(desk): State<Desk>) -> Result<Response, Refusal> {
    let full = |_| Refusal::soon("there are too many viewers; try it later");
    let place = desk.streams.clone().try_acquire_owned().map_err(full)?;
    let told = Teller { listener: desk.screens.back.board.listen(), desk, _place: place };
    let events = stream::unfold(told, |mut told| async move { Some((Ok::<Bytes, Infallible>(told.next().await?), told)) });
    // A proxy that gathers what comes would hold it up.
    let head = [(header::CONTENT_TYPE, "text/event-stream"), (header::HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((head, Body::from_stream(events)).into_response())
}

struct Teller {
    listener: Listener,
    desk: Desk,
    _place: OwnedSemaphorePermit,
}

impl Teller {
    /// Called when the connection has taken what came before; `None`: the daemon stops.
    async fn next(&mut self) -> Option<Bytes> {
        let comment = Instant::now() + COMMENT;
        let mut stopping = self.desk.stopping.clone();
        loop {
            let news = self.listener.news(Instant::now().into_std(), PACE);
            let text = self.text(&news);
            if !text.is_empty() {
                return Some(text.into());
            }
            let due = news.next.map_or(comment, |next| comment.min(next.into()));
            tokio::select! {
                () = stopped(&mut stopping) => return None,
                // What changes is looked at when it may be told of.
                there = self.listener.changed(), if news.next.is_none() => if !there { return None },
                () = sleep_until(due) => if due >= comment { return Some(Bytes::from_static(b": still here\n\n")) },
            }
        }
    }

    fn text(&self, news: &News) -> String {
        let gone = news.gone.iter().map(|id| event("gone", &json!({"id": id.as_str()})));
        let cameras = news.cameras.iter().map(|now| event("camera", &wire::camera(now, self.desk.control)));
        let back = &self.desk.screens.back;
        let objects = news.objects.iter().map(|entry| event("object", &wire::object(entry, back.told(entry))));
        gone.chain(cameras).chain(objects).collect()
    }
}

/// JSON has no line breaks of its own.
fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
