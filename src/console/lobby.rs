//! Connections that have asked for nothing yet, or for nothing more. They hold a place for as long as there are others; who comes
//! when there is none gets that of the one who has waited longest.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;

use crate::base::sync;

/// Those who wait, in the order in which they began to.
#[derive(Default)]
pub struct Lobby {
    waiting: Mutex<BTreeMap<u64, Arc<Notify>>>,
    next: AtomicU64,
}

/// One connection's place.
pub struct Seat {
    lobby: Arc<Lobby>,
    number: AtomicU64,
    leave: Arc<Notify>,
    /// It was answered, and has said nothing since.
    content: AtomicBool,
}

impl Lobby {
    /// A connection that begins.
    pub fn enter(self: &Arc<Self>) -> Arc<Seat> {
        let seat = Seat { lobby: self.clone(), number: AtomicU64::new(0), leave: Arc::default(), content: AtomicBool::new(false) };
        seat.wait();
        Arc::new(seat)
    }

    /// Has the one leave who has waited longest. Returns whether there was one.
    pub fn evict(&self) -> bool {
        let first = sync::lock(&self.waiting).pop_first();
        first.iter().for_each(|(_, leave)| leave.notify_one());
        first.is_some()
    }
}

impl Seat {
    /// Returns when another needs the place.
    pub async fn evicted(&self) {
        self.leave.notified().await;
    }

    /// Something came.
    pub fn heard(&self) {
        self.content.store(false, Ordering::Relaxed);
    }

    /// Whether it was answered all that it asked: its end is no refusal.
    pub fn is_content(&self) -> bool {
        self.content.load(Ordering::Relaxed)
    }

    fn wait(&self) {
        let number = self.lobby.next.fetch_add(1, Ordering::Relaxed);
        self.number.store(number, Ordering::Relaxed);
        sync::lock(&self.lobby.waiting).insert(number, self.leave.clone());
    }

    fn leave(&self) {
        sync::lock(&self.lobby.waiting).remove(&self.number.load(Ordering::Relaxed));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Does not wait while a request is answered, to the end of the answer.
pub async fn pass(seat: Arc<Seat>, request: Request, next: Next) -> Response {
    seat.leave();
    let waits = Waits(seat);
    next.run(request).await.map(|body| Body::new(Answer { body, _waits: waits }))
}

/// Waits again when this is gone.
struct Waits(Arc<Seat>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.content.store(true, Ordering::Relaxed);
        self.0.wait();
    }
}

/// An answer's body that is known to have ended.
struct Answer {
    body: Body,
    _waits: Waits,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
