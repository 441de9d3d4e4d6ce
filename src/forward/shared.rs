//! Connections that many exchanges share (HTTP/2, RFC 9113): each worker has its own few to an upstream.
//!
//! An exchange has a stream of one of them. Whatever becomes of it concerns that stream alone. The library is used
//! without hyper, whose client would spawn a task for each request.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::Request;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

use super::ForwardError;
use super::UpstreamSettings;
use super::pool::Place;
use super::pool::Upstream;
use super::pool::Waiting;
use super::pool::in_time;
use super::stream::Answer;
use super::stream::Feed;
use super::stream::Outlet;
use super::stream::Unanswered;

/// Most streams of a connection, if its upstream does not want fewer (RFC 9113 section 5.1.2 wants no fewer).
const STREAMS: u16 = 100;

/// Bytes of an answer that its stream may hold.
const WINDOW: u32 = 64 * 1024;

/// The same of all streams of a connection: room for each, so that a caller who does not read holds up nobody else.
const WINDOW_OF_ALL: u32 = WINDOW * 100;

/// Bytes that the library may take up for pieces of answers that nobody has taken yet, beyond the pieces themselves.
/// By its default two streams of small pieces that are not read would end a connection.
const OVERHEAD: usize = 8 * 1024 * 1024;

/// Streams that were reset are remembered a second, so many at most: what still comes on them is expected.
const RESET_STREAMS: usize = 1024;

/// How long a connection that nobody needs may take to say so.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection for which other workers wait takes no more streams after so many.
const TURNS: u32 = 32;

/// A connection to the upstream. Its task closes it once this is dropped.
#[derive(Debug)]
pub(super) struct Shared {
    sender: SendRequest<Bytes>,
    /// Streams that are in use.
    streams: Cell<usize>,
    /// How many there were.
    turns: Cell<u32>,
    /// Since when none is.
    at_rest_since: Cell<Instant>,
    /// Which renewal of the upstream's TLS it came about with.
    renewal: u64,
    _open: oneshot::Sender<Infallible>,
}

impl Shared {
    /// HTTP/2 on a fresh connection. It stands once the upstream has said how many streams it takes.
    pub(super) async fn over<S>(
        stream: S,
        renewal: u64,
        place: Place,
        deadline: tokio::time::Instant,
        settings: &UpstreamSettings,
    ) -> io::Result<Rc<Self>>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut http = h2::client::Builder::new();
        http.enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW_OF_ALL)
            .data_frame_budget(OVERHEAD)
            .max_header_list_size(u32::try_from(settings.header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_reset_streams(RESET_STREAMS)
            // It never comes down again, and would end the connection.
            .max_local_error_reset_streams(None)
            .max_send_buffer_size(64 * 1024)
            // None, until its settings say more.
            .initial_max_send_streams(0);
        let begun = async {
            let (sender, mut connection) = http.handshake::<_, Bytes>(stream).await.map_err(io_error)?;
            poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
                Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(())) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(io_error(error))),
            })
            .await?;
            Ok((sender, connection))
        };
        let (sender, mut connection) = in_time(deadline, begun).await?;
        let (open, closed) = oneshot::channel::<Infallible>();
        let name = settings.name.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                // Its error is also the error of the exchanges that are under way.
                ended = &mut connection => tell_of_calm(&name, ended.err()),
                // Polled again, it sees that nobody needs it.
                _ = closed => drop(tokio::time::timeout(FAREWELL, &mut connection).await),
            }
            drop(connection);
            drop(place);
        });
        Ok(Rc::new(Self {
            sender,
            streams: Cell::new(0),
            turns: Cell::new(0),
            at_rest_since: Cell::new(Instant::now()),
            renewal,
            _open: open,
        }))
    }

    /// Whether further streams may be opened: it has not ended, and its upstream has not said that it goes away.
    fn is_open(&self) -> bool {
        let ready = self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(())))
    }

    fn has_room(&self) -> bool {
        self.streams.get() < usize::from(STREAMS).min(self.sender.current_max_send_streams())
    }
}

/// Tells of a connection that was ended for what there was too much of: all of its exchanges have ended with it.
fn tell_of_calm(upstream: &str, error: Option<h2::Error>) {
    if let Some(error) = error.filter(|error| error.reason() == Some(Reason::ENHANCE_YOUR_CALM)) {
        let by = if error.is_remote() { "upstream" } else { "sidecar" };
        tracing::warn!(upstream, by, "a shared connection was ended for too many frames (ENHANCE_YOUR_CALM)");
    }
}

/// What is known of a connection that did not come about, for each of those who wait for it.
fn io_error(error: h2::Error) -> io::Error {
    match (error.is_io(), error.is_go_away() || error.is_reset()) {
        (true, _) => error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()),
        (false, true) => io::Error::other(format!("it does not speak HTTP/2: {error}")),
        (false, false) => io::Error::other(error),
    }
}

/// One worker's shared connections to one upstream.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// Those that take further streams.
    open: RefCell<Vec<Rc<Shared>>>,
    /// Exchanges that wait for a stream, the first one first.
    waiters: RefCell<VecDeque<oneshot::Sender<Result<Stream, ForwardError>>>>,
    /// Whether a connection is being made: others wait for it.
    is_opening: Cell<bool>,
    /// Told when that has ended.
    opened: tokio::sync::Notify,
}

impl Sharing {
    /// How many exchanges wait for a stream.
    pub(super) fn waiters(&self) -> usize {
        self.waiters.borrow().len()
    }
}

/// A stream of a shared connection; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Stream {
    connection: Rc<Shared>,
    upstream: Rc<Upstream>,
}

impl Stream {
    /// Sends a head and what comes of its body, until the head of the answer is there.
    pub(super) async fn ask(&self, head: Request<()>, feed: &mut Feed) -> Result<(Answer, Outlet), Unanswered> {
        super::stream::ask(self.connection.sender.clone(), head, feed).await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Self { connection, upstream } = self;
        connection.streams.set(connection.streams.get().saturating_sub(1));
        connection.at_rest_since.set(Instant::now());
        upstream.freed(connection);
    }
}

/// An exchange that waits for a stream, until it is dropped.
struct Queued<'u>(&'u Sharing);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiters.borrow_mut().retain(|waiter| !waiter.is_closed());
    }
}

impl Upstream {
    /// A stream of a connection that stands, or of a fresh one.
    pub(super) async fn stream(self: &Rc<Self>) -> Result<Stream, ForwardError> {
        if let Some(stream) = self.take_stream() {
            return Ok(stream);
        }
        if self.to().is_down() {
            return Err(ForwardError::Down { name: self.name() });
        }
        let sharing = self.sharing();
        // Before the channel, so that it is dropped after it, and finds its own end closed.
        let _queued = Queued(sharing);
        let (give, mut given) = oneshot::channel();
        sharing.waiters.borrow_mut().push_back(give);
        let deadline = tokio::time::Instant::now() + self.settings().connect_timeout;
        let mut waiting = None;
        // A connection that does not come about is not tried again and again for one request.
        let mut has_opened = false;
        loop {
            let opened = sharing.opened.notified();
            let mut is_opening = sharing.is_opening.get();
            if !is_opening
                && !has_opened
                && let Some(place) = self.to().place()
            {
                self.open(place);
                (is_opening, has_opened) = (true, true);
            }
            if !is_opening {
                waiting.get_or_insert_with(|| Waiting::begin(self));
            }
            let place = std::sync::Arc::clone(self.to().places()).acquire_owned();
            tokio::select! {
                biased;
                given = &mut given => {
                    return given.unwrap_or_else(|_gone| Err(ForwardError::Overloaded { name: self.name() }));
                }
                // It has a bound of its own.
                () = opened, if is_opening => {}
                Ok(place) = place, if !is_opening && !has_opened => {
                    self.open(Place::new(place));
                    has_opened = true;
                }
                () = tokio::time::sleep_until(deadline), if !is_opening => {
                    return Err(ForwardError::Overloaded { name: self.name() });
                }
            }
        }
    }

    /// Makes a connection, for whoever waits.
    fn open(self: &Rc<Self>, place: Place) {
        self.sharing().is_opening.set(true);
        let upstream = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let connected = upstream.fresh_shared(place).await;
            upstream.sharing().is_opening.set(false);
            match connected {
                Ok(connection) => upstream.share(connection),
                Err(error) => upstream.disappoint(&error),
            }
            upstream.sharing().opened.notify_waiters();
        });
    }

    /// From here on its streams are there for everybody of this worker.
    pub(super) fn share(self: &Rc<Self>, connection: Rc<Shared>) {
        self.sharing().open.borrow_mut().push(connection);
        self.serve_waiters();
    }

    /// Tells those who wait that no connection came about. With another one they may still get a stream of it.
    fn disappoint(&self, error: &ForwardError) {
        if !self.sharing().open.borrow().is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut *self.sharing().waiters.borrow_mut());
        for waiter in waiters {
            let _gone = waiter.send(Err(error.again(&self.settings().name)));
        }
    }

    /// A stream of the first connection that has room for it.
    fn take_stream(self: &Rc<Self>) -> Option<Stream> {
        let mut open = self.sharing().open.borrow_mut();
        let mut place = 0;
        while let Some(connection) = open.get(place) {
            if !self.is_of_today(connection.renewal) || !connection.is_open() {
                // Its streams go on.
                drop(open.remove(place));
            } else if connection.has_room() {
                connection.streams.set(connection.streams.get().saturating_add(1));
                connection.turns.set(connection.turns.get().wrapping_add(1));
                return Some(Stream { connection: Rc::clone(connection), upstream: Rc::clone(self) });
            } else {
                place += 1;
            }
        }
        None
    }

    fn serve_waiters(self: &Rc<Self>) {
        loop {
            let mut waiters = self.sharing().waiters.borrow_mut();
            while waiters.front().is_some_and(oneshot::Sender::is_closed) {
                drop(waiters.pop_front());
            }
            if waiters.is_empty() {
                return;
            }
            let Some(stream) = self.take_stream() else { return };
            let waiter = waiters.pop_front();
            drop(waiters);
            if let Some(waiter) = waiter {
                let _gone = waiter.send(Ok(stream));
            }
        }
    }

    /// A stream of this connection is free. If other workers wait for a connection, it takes no more after some turns.
    fn freed(self: &Rc<Self>, connection: &Rc<Shared>) {
        if connection.turns.get().is_multiple_of(TURNS) && self.is_wanted_elsewhere(self.sharing().waiters()) {
            self.sharing().open.borrow_mut().retain(|open| !Rc::ptr_eq(open, connection));
        }
        self.serve_waiters();
    }

    /// Closes a connection that is not used, since another worker needs its place more.
    pub(super) fn yield_shared(&self) {
        let mut open = self.sharing().open.borrow_mut();
        if let Some(place) = open.iter().position(|connection| connection.streams.get() == 0) {
            drop(open.remove(place));
        }
    }

    /// Closes shared connections that have been idle for `idle_timeout`; those that take no more streams, or whose TLS
    /// was renewed since, once their last stream has ended.
    pub(super) fn reap_shared(&self) {
        self.sharing().open.borrow_mut().retain(|connection| {
            let is_idle = connection.streams.get() == 0;
            let is_young = connection.at_rest_since.get().elapsed() < self.settings().idle_timeout;
            (is_young || !is_idle) && self.is_of_today(connection.renewal) && connection.is_open()
        });
    }
}
