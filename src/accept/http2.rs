//! HTTP/2 on a connection (RFC 9113).
//!
//! The library keeps the protocol. Here is what it does not know: time, for what has begun and does not end, and how
//! much of what comes asks for nothing. The requests of a connection are polled by the task of the connection, so they
//! end with it.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::rc::Weak;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::stream::Stream as _;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Uri;
use http::header;
use http::uri::Authority;
use http::uri::Scheme;
use hyper::body::Body as _;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::Service as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::BoxError;

use super::Limits;
use super::UnreadCounters;
use super::Unseen;
use super::drain_begins;
use super::frames::Due;
use super::frames::Frames;
use super::owed::Counted;
use super::owed::Owing;
use super::wire::DRAIN_PATIENCE;
use super::wire::Metered;
use super::wire::Patience;
use crate::doors::entrance::Answer;
use crate::doors::entrance::entrance;
use crate::doors::proxy::Proxy;
use crate::forward::Protocol;
use crate::observed::Peer;
use crate::observed::is_malformed;
use crate::observed::is_plain_call;
use crate::pace::Pace;
use crate::pace::Upload;
use crate::pace::Waited;
use crate::respond;

/// Bytes of a frame: the least that there may be (RFC 9113 section 6.5.2). More would only be read in larger pieces.
const FRAME: u32 = 16 * 1024;

/// Streams that may be taken back in one piece with their beginning.
const MOST_TAKEN_BACK: usize = 20;

/// Bytes of an answer that the library gathers for a stream whose caller does not take them.
const MOST_UNSENT: usize = 64 * 1024;

/// Frames that may come for an answer, beside its request: room for it in the stream and on the connection, and a look
/// at how fast it comes. And for each so many bytes of it one more.
const SPARE_OF_AN_ANSWER: u32 = 4;
const SPARE_BYTES: usize = 1024;

/// How often a connection that has used up its spare frames may have all of them again.
const SPARE_TIME: Duration = Duration::from_secs(60);

/// What a connection of HTTP/2 may take.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Streams at a time.
    pub streams: u32,
    /// Streams of a connection that may be wrong.
    pub wrong_streams: usize,
    /// Frames that bring no request on.
    pub spare_frames: u32,
    /// Bytes of a request's body that are held for a stream.
    pub stream_window: u32,
    /// The same for all streams of a connection.
    pub connection_window: u32,
}

/// What the stream under the library tells.
#[derive(Debug)]
pub(super) struct Line {
    frames: RefCell<Frames>,
    /// How the caller takes what is written.
    room: Pace,
    most: u32,
    spare: Cell<u32>,
    spare_since: Cell<Instant>,
    is_flooded: Cell<bool>,
    holds: Cell<Holds>,
    /// The library has asked for more and there was nothing: it has decided about all that came.
    is_read_out: Cell<bool>,
}

/// What is kept from the library around the end of a head that hides its scheme. Only by itself does it say which request
/// it became: the library hands over what it read when it finds no more, and those before and behind may show theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// The last byte of the head and all behind it. The library may have no room to write, and then it reads nothing.
    End,
    /// The same, and it has asked for more: what came before is read, and is about to be handed over.
    Asked,
    /// All but the last byte.
    LetsGo,
    /// All behind the head, until it is handed over.
    Rest,
}

impl Line {
    fn new(most: u32) -> Rc<Self> {
        Rc::new(Self {
            frames: RefCell::default(),
            room: Pace::default(),
            most,
            spare: Cell::new(most),
            spare_since: Cell::new(Instant::now()),
            is_flooded: Cell::new(false),
            holds: Cell::new(Holds::Nothing),
            is_read_out: Cell::new(false),
        })
    }

    /// How many of these bytes may be read now: not the end of a head that hides its scheme.
    fn reads(&self, mut bytes: &[u8]) -> io::Result<usize> {
        let mut frames = self.frames.borrow_mut();
        let all = bytes.len();
        let spare = frames.read(&mut bytes);
        let mut here = all - bytes.len();
        if frames.hides_scheme() {
            self.holds.set(Holds::End);
            here = here.saturating_sub(1);
        }
        if frames.is_wrong() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match self.spare.get().checked_sub(spare) {
            Some(left) => self.spare.set(left),
            None if self.spare_since.get().elapsed() >= SPARE_TIME => {
                self.spare_since.set(Instant::now());
                self.spare.set(self.most.saturating_sub(spare));
            }
            None => {
                self.is_flooded.set(true);
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(here)
    }

    /// The library has handed over all requests that it has read. Whether it may read on now.
    fn turns(&self) -> bool {
        let next = match self.holds.get() {
            held @ (Holds::Nothing | Holds::End | Holds::LetsGo) => held,
            Holds::Asked => Holds::LetsGo,
            Holds::Rest => Holds::Nothing,
        };
        self.holds.replace(next) != next
    }

    /// Whether a request that is handed over now hid its scheme.
    fn hid_scheme(&self) -> bool {
        self.holds.get() == Holds::Rest
    }

    /// An answer, or a piece of one, makes up for frames.
    pub(super) fn answers(&self, bytes: usize) {
        let for_bytes = u32::try_from(bytes / SPARE_BYTES).unwrap_or(u32::MAX);
        let more = SPARE_OF_AN_ANSWER.saturating_add(for_bytes);
        self.spare.set(self.spare.get().saturating_add(more).min(self.most));
    }

    /// Bytes were to be written: whether there is room.
    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.room.waits(result.is_pending());
        if let Poll::Ready(Ok(bytes)) = result {
            self.room.moves(bytes);
        }
        result
    }
}

/// The stream under the library.
#[derive(Debug)]
struct Overseen<S> {
    stream: S,
    /// What was read before, or is kept from the library.
    first: Bytes,
    line: Rc<Line>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Overseen<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, first, line } = &mut *self;
        match line.holds.get() {
            Holds::Nothing => {}
            // Nothing wakes for it: the connection is polled again when its turn is over.
            Holds::Asked | Holds::Rest => return Poll::Pending,
            Holds::End => {
                line.holds.set(Holds::Asked);
                return Poll::Pending;
            }
            Holds::LetsGo => {
                line.holds.set(Holds::Rest);
                buffer.put_slice(&first.split_to(first.len().min(1)));
                return Poll::Ready(Ok(()));
            }
        }
        let before = buffer.filled().len();
        line.is_read_out.set(false);
        if first.is_empty() {
            let read = Pin::new(stream).poll_read(cx, buffer);
            line.is_read_out.set(read.is_pending());
            ready!(read)?;
        } else {
            buffer.put_slice(&first.split_to(first.len().min(buffer.remaining())));
        }
        let came = buffer.filled().get(before..).unwrap_or_default();
        let here = line.reads(came)?;
        if here < came.len() {
            *first = [came.get(here..).unwrap_or_default(), first].concat().into();
            buffer.set_filled(before + here);
            // Nothing read would say that there will be no more.
            if here == 0 {
                line.holds.set(Holds::Asked);
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overseen<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.line.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.line.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS holds back what it has no room for.
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.line.room.waits(result.is_pending());
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request, as the library wants it to be polled: until its answer is handed over.
struct Exchange<'c> {
    /// None once it is cut: what is dropped is taken back by the library (RFC 9113 section 6.4).
    work: Option<Pin<Box<dyn Future<Output = ()> + 'c>>>,
    about: About,
    body: Waited,
    answer: Waited,
    waker: Option<Waker>,
}

/// What is known of a request when it begins.
struct About {
    /// None if its body is there whole.
    body: Option<Arc<Pace>>,
    owing: Rc<Owing>,
    /// Its body may be silent for long: a call of gRPC to a service that speaks it, where calls last as long as their
    /// watches and leases.
    may_rest: bool,
    /// It is not refused without a look.
    is_served: bool,
}

/// An answer that the library has whole.
struct Handed {
    owing: Rc<Owing>,
    answer: Waited,
}

impl Handed {
    fn is_late(&mut self, since_last: Duration, patience: &Patience) -> bool {
        is_answer_late(&mut self.answer, self.owing.pace(), since_last, patience)
    }
}

/// As long and as much as on HTTP/1.1.
fn is_answer_late(waited: &mut Waited, pace: &Pace, since_last: Duration, patience: &Patience) -> bool {
    let (times, bytes) = Patience::of_an_answer();
    let enough = patience.stall_bytes.saturating_mul(bytes);
    waited.is_late(pace, since_last, enough, patience.stall.saturating_mul(times))
}

impl Future for Exchange<'_> {
    type Output = Handed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Handed> {
        if self.waker.is_none() {
            self.waker = Some(cx.waker().clone());
        }
        if let Some(work) = &mut self.work {
            ready!(work.as_mut().poll(cx));
        }
        // Its answer says what it owes when it goes.
        self.work = None;
        Poll::Ready(Handed { owing: Rc::clone(&self.about.owing), answer: self.answer })
    }
}

impl Exchange<'_> {
    /// Whether its caller is waited for to send more of its body, and has no leave to rest.
    fn owes_body(&self) -> bool {
        !self.about.may_rest && self.about.body.as_ref().is_some_and(|pace| pace.owed() > 0)
    }

    /// Cuts it if its caller is late.
    fn look(&mut self, since_last: Duration, is_body_due: bool, patience: &Patience) {
        let Patience { stall, stall_bytes, .. } = *patience;
        let About { body, owing, may_rest, .. } = &self.about;
        let is_body_late = is_body_due
            && !may_rest
            && body.as_ref().is_some_and(|pace| self.body.is_late(pace, since_last, stall_bytes, stall));
        if is_body_late | is_answer_late(&mut self.answer, owing.pace(), since_last, patience) {
            self.work = None;
            self.waker.iter().for_each(Waker::wake_by_ref);
        }
    }
}

/// Where the library leaves requests that have begun.
struct Begun<'c> {
    all: RefCell<VecDeque<Exchange<'c>>>,
    /// Of the next one.
    next: Cell<Option<About>>,
}

/// It holds no share: requests hold one of these, and would hold themselves.
struct Hands<'c>(Weak<Begun<'c>>);

impl Clone for Hands<'_> {
    fn clone(&self) -> Self {
        Self(Weak::clone(&self.0))
    }
}

impl<'c, F: Future<Output = ()> + 'c> Executor<F> for Hands<'c> {
    fn execute(&self, work: F) {
        let Some(begun) = self.0.upgrade() else { return };
        let Some(about) = begun.next.take() else { return };
        let (body, answer) = (Waited::default(), Waited::default());
        let work: Option<Pin<Box<dyn Future<Output = ()> + 'c>>> = Some(Box::pin(work));
        begun.all.borrow_mut().push_back(Exchange { work, about, body, answer, waker: None });
    }
}

/// What the head of a request of HTTP/2 says in another way than one of HTTP/1.1: made into that, so that one way is
/// decided on and sent on. `hides_scheme`: its scheme may be another one than those of HTTP.
fn translate(request: &mut Request<Incoming>, hides_scheme: bool) {
    match request.uri().authority() {
        // RFC 9113 section 8.3.1. If both are there they are held against each other.
        Some(authority) => {
            if !request.headers().contains_key(header::HOST)
                && let Ok(host) = HeaderValue::from_str(authority.as_str())
            {
                request.headers_mut().insert(header::HOST, host);
            }
        }
        // The library tells no scheme then. What cannot be known is none of HTTP.
        None if hides_scheme => {
            let host = request.headers().get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
            let mut uri = std::mem::take(request.uri_mut()).into_parts();
            if let Some(host) = host {
                (uri.scheme, uri.authority) = (Scheme::try_from("unknown").ok(), Some(host));
            }
            *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        }
        None => {}
    }
    join_cookies(request.headers_mut());
}

/// RFC 9113 section 8.2.3: what is one header of HTTP/1.1 may come in crumbs.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(b"; ".as_slice())) {
        headers.insert(header::COOKIE, cookie);
    }
}

/// Nobody looks more often than this.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);

/// What the looks at a connection remember.
struct Looks {
    since: Instant,
    /// A request is under way, or its answer.
    is_open: bool,
    /// Nothing waits for room on the connection.
    is_written: bool,
    /// Since when no request has been under way. What comes beside them is not worth to wait for more.
    rest_since: Instant,
    /// Answers that the library has whole, and callers have not.
    handed: Vec<Handed>,
    room: Waited,
    /// Since when the drain, or another end, has been announced.
    closing_since: Option<Instant>,
    due: Due,
    whole: u64,
    content: u64,
    waited: Duration,
    /// Content at the last look.
    seen: u64,
    /// Bytes of content that let bodies off, see [`Looks::is_paid`].
    credit: u128,
    /// The next look is as far off as there is nothing to look at.
    is_far: bool,
}

/// What a look comes to.
enum Found {
    /// Nobody is late.
    Well,
    /// A head, or a frame that is no content.
    LateHead,
    /// The rest of a frame with content: nothing behind it can be read. Or room for what is written, or for an answer
    /// that the library has whole: nobody can take it back.
    LateBytes,
    /// There is nothing to do.
    Idle,
}

impl Looks {
    fn begin() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            is_open: false,
            is_written: true,
            rest_since: now,
            handed: Vec::new(),
            room: Waited::default(),
            closing_since: None,
            due: Due::Nothing,
            whole: 0,
            content: 0,
            waited: Duration::ZERO,
            seen: 0,
            credit: 0,
            is_far: true,
        }
    }

    /// How long until the next look at the latest, if something has begun since the last one found nothing to look at.
    fn hurries(&mut self, line: &Line, patience: &Patience) -> Option<Duration> {
        let has_begun = self.is_far && (self.is_open || line.frames.borrow().due() != Due::Nothing);
        has_begun.then(|| {
            self.is_far = false;
            (patience.shortest() / 4).max(SHORTEST_WAIT)
        })
    }

    /// Whether a request is under way now, and whether all is written.
    fn notes(&mut self, is_open: bool, is_written: bool) {
        if self.is_open && !is_open {
            self.rest_since = Instant::now();
        }
        (self.is_open, self.is_written) = (is_open, is_written);
    }

    /// Whether nothing is under way. What waits for room is the end of an answer, and has the time of one; or answers
    /// PINGs and the like, and has no more.
    fn is_at_rest(&self, patience: &Patience) -> bool {
        let (times, _) = Patience::of_an_answer();
        !self.is_open && (self.is_written || self.rest_since.elapsed() >= patience.stall.saturating_mul(times))
    }

    /// Whether the content that came pays for all bodies that are waited for, as long as they were: nobody can tell to
    /// which of them the frame belongs that goes on coming, and no other can come before its end. So many bodies cost as
    /// much as on connections of their own.
    fn is_paid(&mut self, content: u64, bodies: usize, since_last: Duration, patience: &Patience) -> bool {
        let come = content.saturating_sub(std::mem::replace(&mut self.seen, content));
        let wanted = u128::try_from(patience.stall_bytes.saturating_mul(bodies)).unwrap_or(u128::MAX);
        self.credit = self.credit.saturating_add(u128::from(come)).min(wanted);
        let price = wanted.saturating_mul(since_last.as_nanos()).checked_div(patience.stall.as_nanos());
        let left = price.and_then(|price| self.credit.checked_sub(price));
        self.credit = left.unwrap_or(self.credit);
        left.is_some()
    }

    fn look(&mut self, line: &Line, patience: &Patience, running: &mut FuturesUnordered<Exchange<'_>>) -> Found {
        let frames = line.frames.borrow();
        let now = Instant::now();
        let since_last = now - std::mem::replace(&mut self.since, now);
        let due = frames.due();
        let is_same = due != Due::Nothing && self.due == due && self.whole == frames.whole();
        let moved = frames.content().saturating_sub(self.content);
        let is_enough = due == Due::Content && moved >= u64::try_from(patience.stall_bytes).unwrap_or(u64::MAX);
        if !is_same || is_enough {
            (self.due, self.whole, self.content, self.waited) = (due, frames.whole(), frames.content(), Duration::ZERO);
        } else {
            self.waited += since_last;
        }
        let bodies = running.iter().filter(|exchange| exchange.owes_body()).count();
        let is_paid = self.is_paid(frames.content(), bodies, since_last, patience);
        let is_body_due = due != Due::Content || !is_paid;
        for exchange in running.iter_mut() {
            exchange.look(since_last, is_body_due, patience);
        }
        let mut is_room_late = is_answer_late(&mut self.room, &line.room, since_last, patience);
        for handed in &mut self.handed {
            is_room_late |= handed.is_late(since_last, patience);
        }
        let is_closing = self.closing_since.is_some();
        let most = |patience: Duration| if is_closing { patience.min(DRAIN_PATIENCE) } else { patience };
        let rest_since = self.rest_since.max(self.closing_since.unwrap_or(self.rest_since));
        match due {
            _ if is_room_late => Found::LateBytes,
            Due::Head if self.waited >= most(patience.head) => Found::LateHead,
            Due::Content if self.waited >= patience.stall => Found::LateBytes,
            // Also while a frame comes. If it is the head of a request it has the time that a drain gives.
            _ if self.is_at_rest(patience) && now - rest_since >= most(patience.idle) => Found::Idle,
            Due::Nothing | Due::Head | Due::Content => Found::Well,
        }
    }

    /// How long until the next look.
    fn wait(&mut self, patience: &Patience) -> Duration {
        let shortest = patience.shortest();
        self.is_far = false;
        let wait = if self.closing_since.is_some() {
            shortest.min(DRAIN_PATIENCE) / 4
        } else if self.is_at_rest(patience) && self.due == Due::Nothing {
            self.is_far = true;
            shortest.min((self.rest_since + patience.idle).saturating_duration_since(self.since))
        } else {
            shortest / 4
        };
        wait.max(SHORTEST_WAIT)
    }
}

/// Serves a connection on which HTTP/2 is spoken. In a box of its own: a connection of HTTP/1.1 holds no room for it.
pub(super) fn begin<'c, S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: Metered<S>,
    peer: Rc<Peer>,
    door: Rc<Proxy>,
    limits: &'c Limits,
    unread: &'c UnreadCounters,
    draining: watch::Receiver<bool>,
    ends: impl Future<Output = ()> + 'c,
) -> Pin<Box<dyn Future<Output = ()> + 'c>> {
    let (stream, first) = stream.into_http2();
    Box::pin(serve(stream, first, peer, door, limits, unread, draining, ends))
}

/// Serves it. `first`: what was read of it.
#[expect(clippy::too_many_arguments, reason = "what one connection is made of")]
async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: Metered<S>,
    first: Bytes,
    peer: Rc<Peer>,
    door: Rc<Proxy>,
    limits: &Limits,
    unread: &UnreadCounters,
    mut draining: watch::Receiver<bool>,
    ends: impl Future<Output = ()>,
) {
    let mut ends = std::pin::pin!(ends);
    let is_http2_upstream = door.upstream.settings().protocol == Protocol::Http2;
    let entrance = entrance(Rc::clone(&door), peer, || unread.count_overloaded());
    let (line, wire) = (Line::new(limits.http2.spare_frames), stream.wire());
    let begun = Rc::new(Begun { all: RefCell::default(), next: Cell::default() });
    let served = Cell::new(0_u64);
    // From when on nothing that begins is served: a caller may go on as if it had not been told.
    let over = Cell::new(None::<Instant>);
    let service = service_fn(|mut request: Request<Incoming>| {
        let refused = if over.get().is_some_and(|since| since <= Instant::now()) {
            Some(h2::Reason::REFUSED_STREAM)
        } else {
            is_malformed(request.headers()).then_some(h2::Reason::PROTOCOL_ERROR)
        };
        if refused.is_none() {
            served.set(served.get() + 1);
        }
        translate(&mut request, line.hid_scheme());
        let is_large = request.headers().len() > limits.headers;
        let is_silent = request.method() == Method::HEAD;
        let body = (!request.body().is_end_stream()).then(Arc::<Pace>::default);
        let owing = Rc::<Owing>::default();
        let may_rest = is_http2_upstream && is_plain_call(request.headers());
        let about = About { body: body.clone(), owing: Rc::clone(&owing), may_rest, is_served: refused.is_none() };
        begun.next.set(Some(about));
        // In a box: what is captured is held twice.
        let begin = || Box::pin(entrance.call(request.map(|upload| Upload::counted(upload, body))));
        let answered = refused.is_none().then(begin);
        let unseen = Unseen(refused.is_none().then_some(unread));
        let (line, door) = (Rc::clone(&line), Rc::clone(&door));
        async move {
            unseen.end();
            let answered = match (answered, refused) {
                (Some(answered), None) => answered,
                (_, refused) => return Err(h2::Error::from(refused.unwrap_or(h2::Reason::INTERNAL_ERROR)).into()),
            };
            let response = match is_large {
                true => {
                    unread.count_too_large();
                    let response = respond::head_too_large();
                    door.tally.answered(response.status());
                    response.map(Answer::bare)
                }
                false => answered.await?,
            };
            line.answers(0);
            Ok::<_, BoxError>(response.map(|body| Counted::new(body, owing, line, is_silent)))
        }
    });
    let mut http = http2::Builder::new(Hands(Rc::downgrade(&begun)));
    http.max_concurrent_streams(limits.http2.streams)
        .max_pending_accept_reset_streams(MOST_TAKEN_BACK)
        .max_local_error_reset_streams(limits.http2.wrong_streams)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(limits.http2.stream_window)
        .initial_connection_window_size(limits.http2.connection_window)
        .max_frame_size(FRAME)
        .max_send_buf_size(MOST_UNSENT);
    let stream = Overseen { stream, first, line: Rc::clone(&line) };
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut running = FuturesUnordered::<Exchange<'_>>::new();
    let mut looks = Looks::begin();
    let mut look = std::pin::pin!(tokio::time::sleep(looks.wait(&limits.patience)));
    let is_draining = *draining.borrow();
    let mut drains = std::pin::pin!(drain_begins(&mut draining));
    let (mut is_proven, mut is_last, mut is_closing) = (true, false, false);
    let mut refused = 0_u64;
    let mut count_refused = |is_closing: bool, is_decided: bool| {
        // What opened and did not get here was refused by the library, once it has decided: it reads no further while it
        // has no room to write. Behind a GOAWAY nobody expects to be read.
        let now = line.frames.borrow().opened().saturating_sub(served.get());
        if !is_closing && is_decided {
            unread.count_refused(now.saturating_sub(std::mem::replace(&mut refused, now)));
        }
    };
    let result = std::future::poll_fn(|cx| {
        loop {
            while let Poll::Ready(Some(handed)) = Pin::new(&mut running).poll_next(cx) {
                if handed.owing.is_owed() {
                    looks.handed.push(handed);
                }
            }
            // First what has come in: a request that is here already is answered, not closed upon.
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(Some));
            }
            if line.turns() {
                continue;
            }
            if !begun.all.borrow().is_empty() {
                // Who is refused keeps nothing open.
                let is_served = begun.all.borrow().iter().any(|exchange| exchange.about.is_served);
                looks.is_open |= is_served;
                running.extend(begun.all.borrow_mut().drain(..));
                continue;
            }
            looks.handed.retain(|handed| handed.owing.is_owed());
            looks.notes(!running.is_empty() || !looks.handed.is_empty(), line.room.owed() == 0);
            count_refused(is_closing, line.is_read_out.get());
            is_proven = is_proven && ends.as_mut().poll(cx).is_pending();
            if !is_proven && is_closing && over.get().is_none_or(|since| since > Instant::now()) {
                over.set(Some(Instant::now()));
            }
            is_last = is_last || is_draining || drains.as_mut().poll(cx).is_ready();
            if !is_closing && (is_last || !is_proven) {
                is_closing = true;
                let now = Instant::now();
                looks.closing_since = Some(now);
                over.set(Some(if is_proven { now + DRAIN_PATIENCE } else { now }));
                look.as_mut().reset(Instant::now());
                connection.as_mut().graceful_shutdown();
                continue;
            }
            if let Some(wait) = looks.hurries(&line, &limits.patience) {
                let soonest = look.deadline().min(Instant::now() + wait);
                look.as_mut().reset(soonest);
            }
            if look.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            match looks.look(&line, &limits.patience, &mut running) {
                Found::Well => look.as_mut().reset(Instant::now() + looks.wait(&limits.patience)),
                Found::LateHead => return Poll::Ready(Err(None)),
                Found::LateBytes => {
                    wire.cut();
                    return Poll::Ready(Ok(()));
                }
                // It has been told, and does not go.
                Found::Idle if is_closing => return Poll::Ready(Ok(())),
                Found::Idle => is_last = true,
            }
        }
    })
    .await;
    count_refused(is_closing, true);
    match result {
        _ if line.is_flooded.get() => unread.count_flooded(),
        _ if line.frames.borrow().is_wrong() => unread.count_malformed(),
        Ok(()) => {}
        Err(Some(error)) => unread.count_http2(&error),
        Err(None) => unread.count_late(),
    }
}
