//! What hyper does not watch: who keeps a connection waiting, and what came on it that it must not outlive.
//!
//! hyper has no timer for a body that does not come or an answer that is not taken, and its timer for heads runs on
//! idle connections too. [`Wire`] is told by the stream under hyper ([`Metered`]) and by the requests above it
//! ([`Exchange`]); [`Wire::wait`] says what is overdue. Nothing here registers a timer for a request.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http::Version;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use socket2::SockRef;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

use super::frames::PREFACE;
use super::framing::Framing;
use super::framing::Part;
use crate::sockets::Sips;

/// How long a caller may keep a connection waiting.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the rest of a head, from its first byte.
    pub head: Duration,
    /// For the next request.
    pub idle: Duration,
    /// For the next [`Self::stall_bytes`] of a body. An answer has three times as long for three times as much.
    pub stall: Duration,
    /// How much has to move in that time; less only where it is all that is left.
    pub stall_bytes: usize,
}

impl Patience {
    /// The shortest of all: whoever looks as often misses nothing.
    pub(super) fn shortest(&self) -> Duration {
        self.head.min(self.idle).min(self.stall)
    }

    /// How many times as long an answer has, for how many times as much.
    pub(super) fn of_an_answer() -> (u32, usize) {
        (BURST, usize::try_from(BURST).unwrap_or(1))
    }
}

/// How many times as long as a body an answer has, at the same pace.
///
/// The caller's kernel says that there is room again only when much of its buffer has been read: on loopback 128 KiB.
/// In between nobody can tell a caller that reads from one that does not.
const BURST: u32 = 3;

/// How long a head or the next request is waited for from when the drain begins.
pub(super) const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// What a caller is late with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// The rest of a head.
    Head,
    /// The next request.
    Idle,
    /// The rest of a body.
    Body,
    /// Taking an answer.
    Answer,
}

/// Bytes of an answer from which on nothing is added before they are written.
const MOST_UNFLUSHED: usize = 8 * 1024;

/// A moment of a connection: microseconds since it began; none is 0.
///
/// What a connection knows is in atomics, always read and written by its one worker: hyper hands a stream whose
/// protocol is switched only to whoever could take it to another thread.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn at(&self) -> Option<Duration> {
        Some(self.0.load(Relaxed)).filter(|micros| *micros > 0).map(Duration::from_micros)
    }

    fn set(&self, now: Duration) {
        self.0.store(u64::try_from(now.as_micros()).unwrap_or(u64::MAX).max(1), Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// Bytes in one direction, and how long the caller kept them waiting.
#[derive(Debug, Default)]
struct Flow {
    since: Moment,
    waited: Moment,
    moved: AtomicUsize,
}

impl Flow {
    fn is_waiting(&self) -> bool {
        self.since.at().is_some()
    }

    /// So much moved. What was waited is forgotten only when it was enough: a trickle is no progress.
    fn moves(&self, bytes: usize, enough: usize, now: impl Fn() -> Duration) {
        let moved = self.moved.load(Relaxed).saturating_add(bytes);
        if moved >= enough {
            return self.begins();
        }
        self.moved.store(moved, Relaxed);
        if let Some(since) = self.since.at() {
            self.waited.set(self.waited.at().unwrap_or_default() + now().saturating_sub(since));
            self.since.clear();
        }
    }

    /// Something else begins.
    fn begins(&self) {
        self.since.clear();
        self.waited.clear();
        self.moved.store(0, Relaxed);
    }

    fn due(&self, patience: Duration) -> Option<Duration> {
        self.since.at().map(|since| since + patience.saturating_sub(self.waited.at().unwrap_or_default()))
    }
}

/// One connection, as its stream, its requests and its timer see it.
#[derive(Debug)]
pub(super) struct Wire {
    patience: Patience,
    opened: Instant,
    /// Messages that have begun, as [`Framing`] reads them.
    begun: AtomicU64,
    /// The last message that counts; `u64::MAX`: none is the last yet.
    last: AtomicU64,
    /// Requests, as hyper reads them.
    served: AtomicU64,
    answered: AtomicU64,
    is_head_due: AtomicBool,
    is_body_due: AtomicBool,
    /// How many bytes have come of a body whose end only hyper knows; `u64::MAX`: [`Framing`] knows the end.
    unsure: AtomicU64,
    /// How many bytes the body of the request that was begun last has, as hyper reads it.
    length: AtomicU64,
    head_since: Moment,
    at_rest_since: Moment,
    drains_since: Moment,
    body: Flow,
    answer: Flow,
    /// Bytes of an answer that were handed to hyper since all was written.
    unflushed: AtomicUsize,
    /// The next bytes of an answer are there, and are held back until all before them is written.
    is_held_back: AtomicBool,
    is_given_up: AtomicBool,
    is_asked: AtomicBool,
    is_tunnel: AtomicBool,
    /// The caller speaks HTTP/1.0: where an answer has no length, its end is the end of the connection.
    is_old: AtomicBool,
    /// An answer has begun and not come to its end.
    is_short: AtomicBool,
    /// The caller began with the preface of HTTP/2.
    is_http2: AtomicBool,
    is_cut: AtomicBool,
}

/// A request that comes where none may: behind a message that somebody else may have read otherwise.
#[derive(Debug, thiserror::Error)]
#[error("a request behind a message that could be read in more than one way")]
pub(super) struct OutOfStep;

impl Wire {
    /// A connection on which nothing has come.
    fn new(patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            patience,
            opened: Instant::now(),
            begun: AtomicU64::new(0),
            last: AtomicU64::new(u64::MAX),
            served: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            is_head_due: AtomicBool::new(false),
            is_body_due: AtomicBool::new(false),
            unsure: AtomicU64::new(u64::MAX),
            length: AtomicU64::new(0),
            head_since: Moment::default(),
            at_rest_since: Moment::default(),
            drains_since: Moment::default(),
            body: Flow::default(),
            answer: Flow::default(),
            unflushed: AtomicUsize::new(0),
            is_held_back: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
            is_asked: AtomicBool::new(false),
            is_tunnel: AtomicBool::new(false),
            is_old: AtomicBool::new(false),
            is_short: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
        })
    }

    fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    /// A request begins that hyper read. `length`: of its body, if hyper knows it.
    ///
    /// # Errors
    ///
    /// [`OutOfStep`] if nothing may be read where it stands: it must not be answered, nor anything after it.
    pub(super) fn begin(self: &Arc<Self>, version: Version, length: Option<u64>) -> Result<Exchange, OutOfStep> {
        let served = self.served.load(Relaxed);
        if self.has_to_close() || served >= self.begun.load(Relaxed) {
            return Err(OutOfStep);
        }
        self.served.store(served + 1, Relaxed);
        self.is_old.store(version < Version::HTTP_11, Relaxed);
        self.length.store(length.unwrap_or(u64::MAX), Relaxed);
        Ok(Exchange { wire: Arc::clone(self) })
    }

    /// Whether the last request that may be served has its answer, and nothing else is spoken behind it.
    pub(super) fn is_over(&self) -> bool {
        let is_answered = self.answered.load(Relaxed) == self.served.load(Relaxed);
        self.has_to_close() && is_answered && !self.is_tunnel.load(Relaxed)
    }

    /// Whether HTTP/2 is spoken, and nothing of it was handed to HTTP/1.1: see [`Metered::into_http2`].
    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Relaxed)
    }

    /// Whether the request that was served last has to be the last one.
    pub(super) fn has_to_close(&self) -> bool {
        self.last.load(Relaxed) <= self.served.load(Relaxed)
    }

    /// How long until something may be overdue.
    ///
    /// # Errors
    ///
    /// What is overdue now.
    pub(super) fn wait(&self) -> Result<Duration, Late> {
        let Patience { head, idle, stall, .. } = self.patience;
        let now = self.now();
        let mut at_rest_since = self.at_rest_since.at().unwrap_or_default();
        let (mut head, mut idle) = (head, idle);
        if let Some(drains_since) = self.drains_since.at() {
            at_rest_since = at_rest_since.max(drains_since);
            (head, idle) = (head.min(DRAIN_PATIENCE), idle.min(DRAIN_PATIENCE));
        }
        let is_answered = self.answered.load(Relaxed) == self.served.load(Relaxed);
        let due = if let Some(due) = self.answer.due(stall.saturating_mul(BURST)) {
            Some((due, Late::Answer))
        } else if let Some(due) = self.body.due(stall) {
            Some((due, Late::Body))
        } else if !is_answered {
            None
        } else if self.is_head_due.load(Relaxed) {
            Some((self.head_since.at().unwrap_or_default().max(at_rest_since) + head, Late::Head))
        } else {
            Some((at_rest_since + idle, Late::Idle))
        };
        match due {
            Some((due, late)) if due <= now => Err(late),
            Some((due, _)) => Ok(due.saturating_sub(now).min(self.shortest())),
            None => Ok(self.shortest()),
        }
    }

    fn shortest(&self) -> Duration {
        let shortest = self.patience.shortest();
        if self.drains_since.at().is_some() { shortest.min(DRAIN_PATIENCE) } else { shortest }
    }

    /// Whether an answer that was held back can go on. Nothing wakes for that: hyper asks again once after a flush, and
    /// does not ask a second time.
    pub(super) fn goes_on(&self) -> bool {
        self.unflushed.load(Relaxed) == 0 && self.is_held_back.swap(false, Relaxed)
    }

    /// From here on nobody is waited for long who has nothing under way.
    pub(super) fn drains(&self) {
        self.drains_since.set(self.now());
    }

    /// The stream looks at its next flush whether the caller is gone: hyper reads nothing while a body is held back.
    pub(super) fn ask_whether_gone(&self) {
        self.is_asked.store(true, Relaxed);
    }

    /// Reads no more: the body that is due counts as broken off.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Relaxed);
        self.is_body_due.store(false, Relaxed);
        self.body.begins();
    }

    /// What the caller has not taken by now is thrown away when the stream is dropped.
    pub(super) fn cut(&self) {
        self.is_cut.store(true, Relaxed);
    }

    /// Bytes of the caller are about to be read by hyper.
    fn reads(&self, framing: &mut Framing, bytes: &[u8]) {
        let (was_head, was_body) = (self.is_head_due.load(Relaxed), self.is_body_due());
        if was_body {
            self.body.moves(bytes.len(), self.patience.stall_bytes, || self.now());
        }
        framing.read(bytes, self.answered.load(Relaxed) >= framing.begun());
        let is_head = framing.due() == Part::Head;
        if is_head && !was_head {
            self.head_since.set(self.now());
        }
        self.is_head_due.store(is_head, Relaxed);
        self.is_body_due.store(matches!(framing.due(), Part::Body | Part::Unsure(_)), Relaxed);
        self.unsure.store(if let Part::Unsure(bytes) = framing.due() { bytes } else { u64::MAX }, Relaxed);
        if !self.is_body_due() || !was_body {
            self.body.begins();
        }
        self.begun.store(framing.begun(), Relaxed);
        self.last.store(framing.closes_after().unwrap_or(u64::MAX), Relaxed);
    }

    /// Something came that is not handed over yet.
    fn head_begins(&self) {
        if !self.is_head_due.swap(true, Relaxed) {
            self.head_since.set(self.now());
        }
    }

    fn is_body_due(&self) -> bool {
        let unsure = self.unsure.load(Relaxed);
        self.is_body_due.load(Relaxed) && (unsure == u64::MAX || unsure < self.length.load(Relaxed))
    }

    /// Nothing is there to be read.
    fn waits_for_body(&self) {
        if self.is_body_due() && !self.body.is_waiting() {
            self.body.since.set(self.now());
        }
    }

    /// There is no room for what is to be written.
    fn waits_for_room(&self) {
        if !self.answer.is_waiting() {
            self.answer.since.set(self.now());
        }
    }

    fn wrote(&self, bytes: usize) {
        if self.answer.is_waiting() {
            self.at_rest_since.set(self.now());
        }
        let times = usize::try_from(BURST).unwrap_or(1);
        self.answer.moves(bytes, self.patience.stall_bytes.saturating_mul(times), || self.now());
    }
}

/// A request, until the last of its answer is handed over.
#[derive(Debug)]
pub(super) struct Exchange {
    wire: Arc<Wire>,
}

impl Exchange {
    /// From here on another protocol is spoken.
    pub(super) fn switches(&self) {
        self.wire.is_tunnel.store(true, Relaxed);
    }

    /// Whether nothing may follow.
    pub(super) fn is_last(&self) -> bool {
        self.wire.has_to_close()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let answered = &self.wire.answered;
        answered.store(answered.load(Relaxed) + 1, Relaxed);
        self.wire.at_rest_since.set(self.wire.now());
    }
}

/// The body of an answer, and the exchange that ends with it.
#[derive(Debug)]
pub(super) struct Answer<B> {
    body: B,
    exchange: Exchange,
}

impl<B> Answer<B> {
    /// The body of the answer to this.
    pub(super) fn new(body: B, exchange: Exchange) -> Self {
        Self { body, exchange }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        // hyper would go on to gather what the caller does not take. It flushes next, and is asked to go on after that.
        let Wire { unflushed, is_held_back, .. } = &*self.exchange.wire;
        let is_too_much = unflushed.load(Relaxed) >= MOST_UNFLUSHED;
        is_held_back.store(is_too_much, Relaxed);
        if is_too_much {
            return Poll::Pending;
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            let more = frame.data_ref().map_or(0, Bytes::len);
            let unflushed = &self.exchange.wire.unflushed;
            unflushed.store(unflushed.load(Relaxed).saturating_add(more), Relaxed);
        }
        let is_short = match &frame {
            Poll::Ready(None) => false,
            Poll::Ready(Some(Ok(_))) => !self.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => true,
        };
        self.exchange.wire.is_short.store(is_short, Relaxed);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The stream under hyper.
#[derive(Debug)]
pub(super) struct Metered<S: AsyncRead> {
    stream: Sips<S>,
    socket: fn(&S) -> SockRef<'_>,
    framing: Framing,
    wire: Arc<Wire>,
    opening: Opening,
}

/// Which protocol a connection begins with.
#[derive(Debug)]
enum Opening {
    /// So many bytes have come, all of them of the preface of HTTP/2; they are held back.
    Unknown(usize),
    /// HTTP/1.1, or whatever is no HTTP/2.
    Http1,
    /// HTTP/2, and what has come of it.
    Http2(Box<Bytes>),
}

impl<S: AsyncRead> Metered<S> {
    /// A stream on which nothing has come, and where its socket is.
    pub(super) fn new(stream: S, socket: fn(&S) -> SockRef<'_>, patience: Patience) -> Self {
        let (wire, opening) = (Wire::new(patience), Opening::Http1);
        Self { stream: Sips::of(stream), socket, framing: Framing::default(), wire, opening }
    }

    /// A caller may begin with the preface of HTTP/2.
    pub(super) fn for_both(self) -> Self {
        let mut both = self;
        both.opening = Opening::Unknown(0);
        both
    }

    /// From here on what comes is not read as HTTP/1.1. What has come.
    pub(super) fn into_http2(self) -> (Self, Bytes) {
        let mut stream = self;
        stream.wire.is_tunnel.store(true, Relaxed);
        match std::mem::replace(&mut stream.opening, Opening::Http1) {
            Opening::Http2(first) => (stream, *first),
            Opening::Unknown(_) | Opening::Http1 => (stream, Bytes::new()),
        }
    }

    /// What it tells.
    pub(super) fn wire(&self) -> Arc<Wire> {
        Arc::clone(&self.wire)
    }
}

impl Opening {
    /// Reads as long as nobody knows. The first read decides, unless it brings less than the preface has.
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut Sips<S>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        while let Self::Unknown(held) = *self {
            let (known, mut rest) = (PREFACE.get(..held).unwrap_or_default(), [0; PREFACE.len()]);
            let came = if held == 0 {
                ready!(Pin::new(&mut *stream).poll_read(cx, buffer))?;
                buffer.filled().get(before..).unwrap_or_default()
            } else {
                let mut rest = ReadBuf::new(rest.get_mut(held..).unwrap_or_default());
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut rest))?;
                buffer.put_slice(known);
                buffer.put_slice(rest.filled());
                buffer.filled().get(before..).unwrap_or_default()
            };
            if came.len() <= held {
                // The end: whatever it was, it is over.
                *self = Self::Http1;
            } else if came.starts_with(PREFACE) {
                *self = Self::Http2(Box::new(Bytes::copy_from_slice(came)));
                buffer.set_filled(before);
            } else if PREFACE.starts_with(came) {
                *self = Self::Unknown(came.len());
                buffer.set_filled(before);
            } else {
                *self = Self::Http1;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead> Drop for Metered<S> {
    fn drop(&mut self) {
        // A short answer must not look whole, and the kernel need not keep what nobody takes.
        let is_short = self.wire.is_old.load(Relaxed) && self.wire.is_short.load(Relaxed);
        if is_short || self.wire.is_cut.load(Relaxed) {
            let _is_gone = (self.socket)(self.stream.get_ref()).set_linger(Some(Duration::ZERO));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, framing, wire, opening, .. } = &mut *self;
        if wire.is_given_up.load(Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let result = match opening {
            Opening::Http1 => Pin::new(stream).poll_read(cx, buffer),
            Opening::Unknown(_) | Opening::Http2(_) => opening.poll_read(stream, cx, buffer),
        };
        match opening {
            Opening::Http1 => {}
            Opening::Unknown(0) => return result,
            Opening::Unknown(_) => {
                wire.head_begins();
                return result;
            }
            Opening::Http2(_) => {
                wire.is_http2.store(true, Relaxed);
                return Poll::Pending;
            }
        }
        match buffer.filled().get(before..) {
            _ if wire.is_tunnel.load(Relaxed) => {}
            _ if result.is_pending() => wire.waits_for_body(),
            Some(more @ [_, ..]) => wire.reads(framing, more),
            Some([]) | None => {}
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Metered<S> {
    fn written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if result.is_pending() {
            self.wire.waits_for_room();
        }
        let result = ready!(result);
        if let Ok(bytes) = result {
            self.wire.wrote(bytes);
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wire.is_asked.swap(false, Relaxed)
            && let Ok(Some(error)) = (self.socket)(self.stream.get_ref()).take_error()
        {
            return Poll::Ready(Err(error));
        }
        // TLS holds back what it has no room for.
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        match result.is_pending() {
            true => self.wire.waits_for_room(),
            false => {
                self.wire.unflushed.store(0, Relaxed);
                self.wire.answer.begins();
            }
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        if result.is_pending() {
            self.wire.waits_for_room();
        }
        result
    }
}
