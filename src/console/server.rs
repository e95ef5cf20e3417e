//! The connections: one thread answers them all, so nothing in it may block; each has its limits, and none can hold up another.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::{Extension, Router, middleware};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use crate::base::error::{Context as _, Kind, Result};
use crate::base::metrics::{Counter, Metrics};
use crate::base::thread::{self, Thread};
use crate::console::Limits;
use crate::console::guard::Local;
use crate::console::lobby::{self, Lobby, Seat};

/// Of a request's head, and of what is written ahead of a client: a viewer that lags must not have pictures pile up here.
const BUFFER: usize = 64 << 10;

/// The same in the system's hands, which by itself lets some megabytes pile up.
const SEND_BUFFER: u32 = 256 << 10;

/// Connections that wait to be taken.
const BACKLOG: u32 = 64;

/// Before trying again where the system has no descriptor left.
const PAUSE: Duration = Duration::from_millis(200);

/// For one that has to leave to be gone.
const LEAVING: Duration = Duration::from_millis(500);

/// For who comes when every place is taken by somebody who is being answered.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n\
    Content-Length: 58\r\n\r\n{\"error\": \"there are too many connections; try it later\"}\n";

/// Turns true when the server is to end. Whatever streams watches it.
pub type Stopping = watch::Receiver<bool>;

/// Returns when the server is to end, also where it was dropped without a word.
pub async fn stopped(stopping: &mut Stopping) {
    stopping.wait_for(|stop| *stop).await.map(drop).ok();
}

/// The thread, and the way to end it.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Thread,
}

impl Server {
    /// Listens, and answers as `routes` say.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn start(listen: SocketAddr, limits: Limits, metrics: &Metrics, routes: impl FnOnce(Stopping) -> Router) -> Result<Self> {
        let failed = || format!("console.listen: cannot listen on {listen}");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context(Kind::Internal, || "cannot start tokio")?;
        let entered = runtime.enter();
        let listener = bind(listen).context(Kind::Io, failed)?;
        drop(entered);
        let address = listener.local_addr().context(Kind::Io, failed)?;
        let (stop, stopping) = watch::channel(false);
        let routes = routes(stopping.clone());
        let refused = metrics.counter("http_refused", "all");
        let thread = thread::spawn("console", move || runtime.block_on(accept(listener, routes, limits, stopping, refused)))?;
        Ok(Self { address, stop, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection.
    pub fn finish(self, deadline: Instant) {
        self.stop.send_replace(true);
        if !self.thread.join_until(deadline) {
            tracing::warn!("the http server did not end in time and was left behind");
        }
    }
}

fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart need not wait for what the last one's connections leave behind.
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, routes: Router, limits: Limits, stopping: Stopping, refused: Counter) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let lobby = Arc::<Lobby>::default();
    let mut open = JoinSet::new();
    let mut ended = stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue,
            () = stopped(&mut ended) => break,
        };
        let Ok((stream, _)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        let Some(place) = place(&places, &lobby).await else {
            refused.add();
            // As much as the system takes at once: nobody waits for who is refused.
            stream.try_write(FULL).ok();
            continue;
        };
        let Ok(local) = stream.local_addr() else { continue };
        stream.set_nodelay(true).ok();
        let seat = lobby.enter();
        let seated = seat.clone();
        let noted = middleware::from_fn(move |request, next| lobby::pass(seated.clone(), request, next));
        let routes = routes.clone().layer(noted).layer(Extension(Local(local)));
        let (stopping, refused) = (stopping.clone(), refused.clone());
        open.spawn(async move {
            if !serve(stream, routes, &seat, limits, stopping).await && !seat.is_content() {
                refused.add();
            }
            drop(place);
        });
    }
    drop(listener);
    timeout(limits.grace, async { while open.join_next().await.is_some() {} }).await.ok();
    open.shutdown().await;
}

/// A place that is free, or that of somebody who asks for nothing.
async fn place(places: &Arc<Semaphore>, lobby: &Lobby) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = places.clone().try_acquire_owned() {
        return Some(place);
    }
    if !lobby.evict() {
        return None;
    }
    timeout(LEAVING, places.clone().acquire_owned()).await.ok()?.ok()
}

/// One connection, until either side ends it. Returns whether it ended in order.
async fn serve(stream: TcpStream, routes: Router, seat: &Arc<Seat>, limits: Limits, mut stopping: Stopping) -> bool {
    let io = TokioIo::new(Impatient { stream, seat: seat.clone(), most: limits.write, stalled: None });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(BUFFER)
        .serve_connection(io, TowerToHyperService::new(routes));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = seat.evicted() => return false,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // Those that go in the middle of something are every browser's.
    !ended.is_err_and(|error| error.is_timeout() || error.is_parse())
}

/// A stream whose other end takes something now and then, or is given up.
struct Impatient {
    stream: TcpStream,
    seat: Arc<Seat>,
    most: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    /// What was tried, or an error if nothing could be written for too long.
    fn within<T>(&mut self, tried: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if tried.is_ready() {
            self.stalled = None;
            return tried;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.most)));
        stalled.as_mut().poll(context).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.seat.heard();
        }
        read
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within(tried, context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.within(tried, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tried = Pin::new(&mut self.stream).poll_flush(context);
        self.within(tried, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
