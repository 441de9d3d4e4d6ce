//! Step 1: takes connections, has TLS prove who made them, and serves HTTP/1.1 or HTTP/2 on them.

pub mod frames;
pub mod framing;
mod http2;
mod owed;
mod wire;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use http::HeaderValue;
use http::Request;
use http::StatusCode;
use http::header;
use hyper::body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::BoxError;

pub use self::http2::StreamLimits;
pub use self::wire::Patience;

use self::wire::Answer;
use self::wire::Late;
use self::wire::Metered;
use crate::decide::facts::Fact;
use crate::decide::facts::Transport;
use crate::decide::facts::Why;
use crate::doors::entrance::entrance;
use crate::doors::proxy::Proxy;
use crate::forward::upgrade::Tunnel;
use crate::observed::Peer;
use crate::pace::Upload;
use crate::record::entry::Unread;
use crate::sockets::Accepted;
use crate::sockets::Listener;
use crate::telemetry::Metrics;
use crate::tls;

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// How long its caller may keep it waiting.
    pub patience: Patience,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Connections of the whole process.
    pub connections: usize,
    /// How long nothing may move on a connection that has switched protocols.
    pub tunnel_idle_timeout: Duration,
    /// Requests under way in the whole process, each until its answer has ended.
    pub concurrent_requests: usize,
    /// What one may take on which HTTP/2 is spoken.
    pub http2: StreamLimits,
}

/// Requests that were refused before there was anything to decide, counted for `dpa.unread`.
#[derive(Debug, Default)]
pub struct UnreadCounters {
    malformed: AtomicU64,
    too_large: AtomicU64,
    timed_out: AtomicU64,
    handshake: AtomicU64,
    overloaded: AtomicU64,
    gone: AtomicU64,
    refused: AtomicU64,
    flooded: AtomicU64,
    metrics: Metrics,
}

impl UnreadCounters {
    /// Counts here for the next record, and in the metrics for good.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// What came since the last time this was asked; `None` if nothing did.
    pub fn take(&self) -> Option<Unread> {
        let unread = Unread {
            malformed: self.malformed.swap(0, Ordering::Relaxed),
            too_large: self.too_large.swap(0, Ordering::Relaxed),
            timed_out: self.timed_out.swap(0, Ordering::Relaxed),
            handshake: self.handshake.swap(0, Ordering::Relaxed),
            overloaded: self.overloaded.swap(0, Ordering::Relaxed),
            gone: self.gone.swap(0, Ordering::Relaxed),
            refused: self.refused.swap(0, Ordering::Relaxed),
            flooded: self.flooded.swap(0, Ordering::Relaxed),
            ..Unread::default()
        };
        (unread != Unread::default()).then_some(unread)
    }

    fn count(&self, error: &hyper::Error) {
        let (sum, counter) = if error.is_parse_too_large() {
            (&self.too_large, &self.metrics.too_large)
        } else if error.is_parse() {
            (&self.malformed, &self.metrics.malformed)
        } else {
            return;
        };
        sum.fetch_add(1, Ordering::Relaxed);
        counter.inc();
    }

    /// A connection of HTTP/2 ended by itself. Of what one side breaks off, or the caller says, nothing is counted.
    fn count_http2(&self, error: &hyper::Error) {
        let why = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
        match why.filter(|why| why.is_library()).and_then(h2::Error::reason) {
            Some(h2::Reason::ENHANCE_YOUR_CALM) => self.count_flooded(),
            Some(_) => self.count_malformed(),
            None => {}
        }
    }

    fn count_malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
        self.metrics.malformed.inc();
    }

    /// A connection asked for next to nothing with many frames.
    fn count_flooded(&self) {
        self.flooded.fetch_add(1, Ordering::Relaxed);
        self.metrics.flooded.inc();
    }

    /// The HTTP layer refused so many streams.
    fn count_refused(&self, streams: u64) {
        if streams > 0 {
            self.refused.fetch_add(streams, Ordering::Relaxed);
            self.metrics.refused.inc_by(streams);
        }
    }

    /// A head has too many lines.
    fn count_too_large(&self) {
        self.too_large.fetch_add(1, Ordering::Relaxed);
        self.metrics.too_large.inc();
    }

    fn count_overloaded(&self) {
        self.overloaded.fetch_add(1, Ordering::Relaxed);
        self.metrics.overloaded.inc();
    }

    /// A head did not come in time.
    fn count_late(&self) {
        self.timed_out.fetch_add(1, Ordering::Relaxed);
        self.metrics.timed_out.inc();
    }

    fn count_handshake(&self) {
        self.handshake.fetch_add(1, Ordering::Relaxed);
        self.metrics.handshake.inc();
    }
}

/// The connections of the whole process.
#[derive(Clone, Debug)]
pub struct Slots {
    all: Arc<Semaphore>,
    handshakes: Arc<Handshakes>,
}

impl Slots {
    /// For so many connections. At most half of them may be without a proof who made them.
    #[must_use]
    pub fn new(connections: usize) -> Self {
        let handshakes = Handshakes { most: (connections / 2).max(1), pending: Mutex::default() };
        Self {
            all: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            handshakes: Arc::new(handshakes),
        }
    }
}

/// Handshakes that go on. Where one more than the most begins, the oldest has to hurry.
#[derive(Debug)]
struct Handshakes {
    most: usize,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    all: BTreeMap<u64, Arc<Notify>>,
}

/// One of them, until it is dropped.
struct Handshake<'h> {
    handshakes: &'h Handshakes,
    number: u64,
    hurry: Arc<Notify>,
}

impl Handshakes {
    fn begin(&self) -> Handshake<'_> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, hurry) = (pending.next, Arc::new(Notify::new()));
        pending.next = number.wrapping_add(1);
        if pending.all.len() >= self.most
            && let Some((_, oldest)) = pending.all.pop_first()
        {
            oldest.notify_one();
        }
        pending.all.insert(number, Arc::clone(&hurry));
        Handshake { handshakes: self, number, hurry }
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        let mut pending = self.handshakes.pending.lock().unwrap_or_else(PoisonError::into_inner);
        drop(pending.all.remove(&self.number));
    }
}

/// How long a handshake may take that has begun and has to hurry. One on which nothing came ends at once.
const HURRY: Duration = Duration::from_secs(1);

/// Who closes a connection within this time, and has sent nothing, has looked whether the port is open.
const PROBE: Duration = Duration::from_secs(1);

/// How long a drain waits for further connections once none is open.
const DRAIN_GRACE: Duration = Duration::from_millis(200);

/// Fewest bytes that a connection buffers; the library demands half of it.
const LEAST_BUFFER: usize = 16 * 1024;

/// Returns once the drain has begun. (What `wait_for` returns is a lock: it must not live on.)
pub async fn drain_begins(draining: &mut watch::Receiver<bool>) {
    drop(draining.wait_for(|draining| *draining).await);
}

/// Accepts connections until the drain is over.
///
/// In the drain it goes on as long as connections are open or come in: whoever has not yet heard that this
/// sidecar is going away is answered, once for each connection.
pub async fn serve(
    listener: Listener,
    tls: Option<Arc<tls::Server>>,
    door: Rc<Proxy>,
    limits: Limits,
    slots: Slots,
    unread: Arc<UnreadCounters>,
    mut draining: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    // Shared, so that each connection holds no copy of its own.
    let limits = Rc::new(limits);
    loop {
        // Without its sender the sidecar is gone, and nobody else could begin the drain.
        let is_draining = *draining.borrow() || draining.has_changed().is_err();
        let accepted = tokio::select! {
            biased;
            accepted = accept(&listener, &slots.all) => accepted,
            Some(_ended) = connections.join_next() => continue,
            () = drain_begins(&mut draining), if !is_draining => continue,
            // No connection is open, and for a while none came in.
            () = tokio::time::sleep(DRAIN_GRACE), if is_draining && connections.is_empty() => return,
        };
        let (accepted, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: a pause lets some be closed, and does not spin.
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (door, open) = (Rc::clone(&door), door.tally.opened());
        let (limits, unread) = (Rc::clone(&limits), Arc::clone(&unread));
        let draining = draining.clone();
        let tls = tls.clone().map(|tls| (tls, Arc::clone(&slots.handshakes)));
        connections.spawn_local(async move {
            connected(accepted, tls.as_ref(), door, &limits, &unread, draining).await;
            drop((open, slot));
        });
    }
}

async fn accept(
    listener: &Listener,
    slots: &Arc<Semaphore>,
) -> io::Result<(Accepted, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?, slot))
}

/// Serves one connection: until the drain, and not longer than what its caller has proven holds.
async fn connected(
    accepted: Accepted,
    tls: Option<&(Arc<tls::Server>, Arc<Handshakes>)>,
    door: Rc<Proxy>,
    limits: &Limits,
    unread: &UnreadCounters,
    draining: watch::Receiver<bool>,
) {
    let in_clear = |address, is_unix| {
        let transport = Transport { tls: None, client_certificate: false, is_unix };
        Rc::new(Peer { address, transport, certificate: Fact::Unknown(Why::Missing), until: None })
    };
    let (stream, address) = match accepted {
        Accepted::Tcp(stream, address) => (stream, Some(address.ip().to_canonical())),
        Accepted::Unix(stream) => {
            let peer = in_clear(None, true);
            let stream = Metered::new(stream, |stream| SockRef::from(stream), limits.patience).for_both();
            return connection(stream, peer, door, limits, unread, draining, std::future::pending()).await;
        }
    };
    let Some((tls, handshakes)) = tls else {
        let peer = in_clear(address, false);
        let stream = Metered::new(stream, |stream| SockRef::from(stream), limits.patience).for_both();
        return connection(stream, peer, door, limits, unread, draining, std::future::pending()).await;
    };
    // Before the handshake, so that what is renewed while it goes on is not missed.
    let mut renewals = tls.renewals();
    let Some(stream) = handshake(stream, tls, handshakes.begin(), limits, unread, draining.clone()).await else {
        return;
    };
    let (now, since) = (door.clock.now(), tokio::time::Instant::now());
    let proven = tls::proven(&stream, now);
    let (transport, certificate) = (proven.transport, proven.identity);
    let peer = Rc::new(Peer { address, transport, certificate, until: proven.until });
    // Afterwards nothing that comes on it would prove who sends it.
    let left = proven.until.map(|until| Duration::try_from(until.duration_since(now)).unwrap_or_default());
    let ends = async {
        loop {
            tokio::select! {
                Ok(()) = renewals.changed() => if !tls.still_holds(&proven.chain) { return },
                () = tokio::time::sleep_until(since + left.unwrap_or_default()), if left.is_some() => return,
                else => std::future::pending().await,
            }
        }
    };
    let is_http2 = tls::is_http2(&stream);
    let stream = Metered::new(stream, |stream| SockRef::from(stream.get_ref().0), limits.patience);
    // In a box, so that one in clear is as small as it can be.
    let served: Pin<Box<dyn Future<Output = ()> + '_>> = match is_http2 {
        true => http2::begin(stream, peer, door, limits, unread, draining, ends),
        false => Box::pin(connection(stream, peer, door, limits, unread, draining, ends)),
    };
    served.await;
}

/// Shakes hands. What fails is counted, unless not a byte came and the other side was gone soon: then it was a look
/// whether the port is open. A connection that has not begun when the drain does is closed, as one that is idle.
async fn handshake(
    stream: TcpStream,
    tls: &tls::Server,
    pending: Handshake<'_>,
    limits: &Limits,
    unread: &UnreadCounters,
    mut draining: watch::Receiver<bool>,
) -> Option<tls::FromCaller> {
    let since = Instant::now();
    let is_draining = *draining.borrow();
    let mut is_ours = false;
    let mut has_begun = false;
    let begun = async {
        let mut first = [0];
        // First what has come in: who has begun is not one of those on which nothing comes.
        has_begun = tokio::select! {
            biased;
            peeked = stream.peek(&mut first) => peeked? > 0,
            () = drain_begins(&mut draining), if !is_draining => {
                is_ours = true;
                false
            }
            () = pending.hurry.notified() => return Err(io::ErrorKind::TimedOut.into()),
        };
        if !has_begun {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        tokio::select! {
            biased;
            shaken = tls.accept(stream) => shaken,
            () = async {
                pending.hurry.notified().await;
                tokio::time::sleep_until((since + HURRY).into()).await;
            } => Err(io::ErrorKind::TimedOut.into()),
        }
    };
    let shaken = tokio::time::timeout(limits.handshake_timeout, begun).await;
    let error = match shaken.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => return Some(stream),
        Err(error) => error,
    };
    let is_probe = !has_begun && error.kind() != io::ErrorKind::TimedOut && since.elapsed() < PROBE;
    if !is_ours && !is_probe {
        unread.count_handshake();
        tracing::debug!(%error, listener = tls.name(), "a TLS handshake failed");
    }
    None
}

/// A request whose caller may be gone before anything of it is looked at: then it is counted.
struct Unseen<'c>(Option<&'c UnreadCounters>);

impl Unseen<'_> {
    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Unseen<'_> {
    fn drop(&mut self) {
        if let Some(counters) = self.0 {
            counters.gone.fetch_add(1, Ordering::Relaxed);
            counters.metrics.gone.inc();
        }
    }
}

/// Serves HTTP/1.1, and HTTP/2 where that is what comes.
async fn connection<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: Metered<S>,
    peer: Rc<Peer>,
    door: Rc<Proxy>,
    limits: &Limits,
    unread: &UnreadCounters,
    mut draining: watch::Receiver<bool>,
    ends: impl Future<Output = ()>,
) {
    let mut ends = std::pin::pin!(ends);
    // A block, and no function: a future holds the arguments of another twice.
    let stream = {
        let switched = Rc::new(Cell::new(None));
        let switches = Rc::clone(&switched);
        let entrance = entrance(Rc::clone(&door), Rc::clone(&peer), || unread.count_overloaded());
        let (wire, requests) = (stream.wire(), stream.wire());
        let service = service_fn(move |request: Request<Incoming>| {
            // In a box, so that a connection on which nothing is under way holds no room for it.
            let begun = requests.begin(request.version(), request.body().size_hint().exact());
            let begun = begun.map(|exchange| (exchange, Box::pin(entrance.call(request.map(Upload::of)))));
            let unseen = Unseen(Some(unread));
            let switches = Rc::clone(&switches);
            async move {
                unseen.end();
                let (exchange, answered) = begun?;
                let mut response = answered.await?;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    exchange.switches();
                    switches.set(Tunnel::behind(&mut response));
                } else if exchange.is_last() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, BoxError>(response.map(|body| Answer::new(body, exchange)))
            }
        });
        let is_draining = *draining.borrow();
        if is_draining {
            wire.drains();
        }
        let mut http = http1::Builder::new();
        http.header_read_timeout(None)
            .max_header_size(limits.header_bytes)
            .max_headers(limits.headers)
            // What is read and not yet taken. The library's own bound is half a mebibyte.
            .max_buf_size(limits.header_bytes.max(LEAST_BUFFER))
            .keep_alive(!is_draining);
        let mut served = http.serve_connection(TokioIo::new(stream), service);
        let mut connection = Pin::new(&mut served);
        let mut look = std::pin::pin!(tokio::time::sleep(wire.wait().unwrap_or_default()));
        let mut drains = std::pin::pin!(async {
            match is_draining {
                true => std::future::pending().await,
                false => drain_begins(&mut draining).await,
            }
        });
        let (mut is_proven, mut is_last, mut is_closing) = (true, false, false);
        let result = std::future::poll_fn(|cx| {
            loop {
                // First what has come in: a request that is here already is answered, not closed upon.
                if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                    return Poll::Ready(result.map_err(Some));
                }
                if wire.is_http2() {
                    return Poll::Ready(Ok(()));
                }
                if wire.goes_on() {
                    continue;
                }
                is_proven = is_proven && ends.as_mut().poll(cx).is_pending();
                if !is_last && drains.as_mut().poll(cx).is_ready() {
                    is_last = true;
                    wire.drains();
                    look.as_mut().reset(tokio::time::Instant::now());
                }
                if !is_closing && (is_last || !is_proven || wire.is_over()) {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                    continue;
                }
                if look.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                match wire.wait() {
                    Ok(wait) => {
                        wire.ask_whether_gone();
                        look.as_mut().reset(tokio::time::Instant::now() + wait);
                    }
                    Err(Late::Body) => wire.give_up(),
                    Err(Late::Idle) if !is_closing => is_last = true,
                    Err(Late::Idle) => return Poll::Ready(Ok(())),
                    Err(Late::Answer) => {
                        wire.cut();
                        return Poll::Ready(Ok(()));
                    }
                    Err(Late::Head) => return Poll::Ready(Err(None)),
                }
            }
        })
        .await;
        if !wire.is_http2() {
            let tunnel = switched.take();
            match (result, tunnel) {
                (Ok(()), Some(tunnel)) if is_proven => {
                    let parts = served.into_parts();
                    tokio::select! {
                        () = Box::pin(tunnel.relay(parts.io.into_inner(), parts.read_buf, limits.tunnel_idle_timeout)) => {}
                        () = ends => {}
                    }
                }
                (Ok(()), _) => {}
                (Err(Some(error)), _) => {
                    unread.count(&error);
                    // The library has answered 400, 414 or 431.
                    if error.is_parse() {
                        door.tally.answered(StatusCode::BAD_REQUEST);
                    }
                }
                (Err(None), _) => unread.count_late(),
            }
            return;
        }
        served.into_parts().io.into_inner()
    };
    http2::begin(stream, peer, door, limits, unread, draining, ends).await;
}
