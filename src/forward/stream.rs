//! One exchange on a stream of a shared connection (RFC 9113 section 8.1).

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::RecvStream;
use h2::SendStream;
use h2::client::SendRequest;
use http::HeaderMap;
use http::Request;
use http::Response;
use http::Uri;
use http::Version;
use http::header;
use http::request::Parts;
use http::uri::Authority;
use http::uri::Scheme;
use http_body::Body as _;
use http_body::Frame;
use http_body::SizeHint;
use tokio::sync::oneshot;

use super::relay::Outgoing;
use super::relay::OutgoingError;

/// How long the end of an answer without a body is waited for.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The answer to a request, as far as it has come.
pub(super) type Answer = Response<RecvStream>;

/// Why there is none.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The caller's body did not come to its end, or was too large.
    Caller(OutgoingError),
    /// Nothing of the request was written.
    Unsent(h2::Error),
    /// The upstream's side broke off.
    Upstream(h2::Error),
}

impl Unanswered {
    /// Whether the upstream says that it has done nothing with the request (RFC 9113 section 8.7), or never saw it.
    pub(super) fn is_unprocessed(&self) -> bool {
        match self {
            Self::Caller(_) => false,
            Self::Unsent(_) => true,
            // The library says `GOAWAY` of a stream only if its number is above the last one that was processed.
            Self::Upstream(error) if error.is_go_away() => error.is_remote(),
            Self::Upstream(error) => {
                error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM)
            }
        }
    }
}

/// What is passed on of an error: the reason of a reset that the other side sent, so that the caller is told it. What
/// the library found wrong with the upstream is nothing that the caller did.
pub(super) fn source(error: h2::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error.is_reset() && error.is_remote() {
        true => Box::new(error),
        false => Box::new(io::Error::other(error.to_string())),
    }
}

/// The head of a request as HTTP/2 has it: `:authority` for `Host`, a `:scheme`, nothing of one connection alone.
pub(super) fn head(mut head: Parts, is_tls: bool) -> Request<()> {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        head.headers.remove(name);
    }
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = head.uri.path_and_query().cloned();
    uri.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
    // A colon without a port behind it is a host too, and no authority (RFC 3986 section 3.2.3).
    let host = head.headers.get(header::HOST).map(|host| host.as_bytes().strip_suffix(b":").unwrap_or(host.as_bytes()));
    uri.authority = host.and_then(|host| Authority::try_from(host).ok());
    let is_named = uri.authority.is_some();
    let mut request = Request::new(());
    if let (true, Ok(uri)) = (is_named, Uri::from_parts(uri)) {
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        head.headers.remove(header::HOST);
    } else {
        // The library sends this as a request of HTTP/1.1 that is forwarded: with `Host`.
        *request.uri_mut() = head.uri;
    }
    *request.method_mut() = head.method;
    *request.headers_mut() = head.headers;
    request
}

/// The sending half of a stream. Dropped before both halves have ended, it resets the stream: nothing more of the
/// request goes on, and nothing more of the answer comes.
#[derive(Debug)]
pub(super) struct Outlet(SendStream<Bytes>);

impl Drop for Outlet {
    fn drop(&mut self) {
        self.0.send_reset(Reason::CANCEL);
    }
}

/// What was taken of a body.
#[derive(Debug)]
enum Taken {
    /// Nothing, or an end alone.
    Nothing,
    /// One piece: it can be sent again.
    One(Bytes),
    /// More.
    More,
}

/// The body of a request on its way to a stream.
#[derive(Debug)]
pub(super) struct Feed {
    body: Outgoing,
    taken: Taken,
    /// Taken, and not sent yet.
    piece: Option<Bytes>,
    /// Nothing comes behind the piece.
    has_ended: bool,
    /// All was sent, or the upstream takes no more.
    is_over: bool,
}

impl Feed {
    pub(super) fn of(body: Outgoing) -> Self {
        let has_ended = body.is_end_stream();
        Self { body, taken: Taken::Nothing, piece: None, has_ended, is_over: has_ended }
    }

    /// Goes back to the beginning, for another stream; whether that can be done.
    pub(super) fn rewind(&mut self) -> bool {
        match &self.taken {
            Taken::Nothing => {}
            Taken::One(first) => self.piece = Some(first.clone()),
            Taken::More => return false,
        }
        self.is_over = self.has_ended && self.piece.is_none();
        true
    }

    fn took(&mut self, piece: &Bytes) {
        self.taken = match self.taken {
            Taken::Nothing => Taken::One(piece.clone()),
            Taken::One(_) | Taken::More => Taken::More,
        };
    }

    /// Sends on what comes. Ready when nothing more has to be sent.
    fn poll(&mut self, to: &mut Outlet, cx: &mut Context<'_>) -> Poll<Result<(), OutgoingError>> {
        while !self.is_over {
            let to = &mut to.0;
            // Asked also so that a reset wakes this up. What the upstream says to it comes with the answer.
            let is_closed = to.poll_reset(cx).is_ready();
            let sent = match self.piece.take() {
                _ if is_closed => Err(()),
                Some(piece) => {
                    if to.capacity() == 0 {
                        to.reserve_capacity(1);
                    }
                    let room = if to.capacity() > 0 { Poll::Ready(true) } else { has_room(to, cx) };
                    match room {
                        Poll::Ready(true) => {
                            self.is_over = self.has_ended;
                            to.send_data(piece, self.has_ended).map_err(drop)
                        }
                        Poll::Ready(false) => Err(()),
                        Poll::Pending => {
                            self.piece = Some(piece);
                            return Poll::Pending;
                        }
                    }
                }
                None if self.has_ended => {
                    self.is_over = true;
                    to.send_data(Bytes::new(), true).map_err(drop)
                }
                None => match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                    None => {
                        self.has_ended = true;
                        Ok(())
                    }
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(piece) => {
                            self.has_ended = self.body.is_end_stream();
                            self.took(&piece);
                            self.piece = Some(piece).filter(|piece| !piece.is_empty());
                            Ok(())
                        }
                        Err(frame) => {
                            self.taken = Taken::More;
                            self.is_over = true;
                            to.send_trailers(frame.into_trailers().unwrap_or_default()).map_err(drop)
                        }
                    },
                    Some(Err(error)) => {
                        self.is_over = true;
                        return Poll::Ready(Err(error));
                    }
                },
            };
            self.is_over |= sent.is_err();
        }
        Poll::Ready(Ok(()))
    }

    /// Goes on by itself while the answer comes: one side of a stream does not wait for the other. Ends when what is
    /// given back is dropped.
    pub(super) fn go_on(mut self, mut outlet: Outlet) -> Sending {
        if self.is_over {
            return Sending::Over { _outlet: outlet };
        }
        let (held, mut dropped) = oneshot::channel();
        tokio::task::spawn_local(async move {
            self.taken = Taken::More;
            let sent = tokio::select! {
                biased;
                _ = &mut dropped => return,
                sent = poll_fn(|cx| self.poll(&mut outlet, cx)) => sent,
            };
            // With the caller's body broken off, the stream is too.
            if sent.is_ok() {
                let _dropped = dropped.await;
            }
        });
        Sending::GoesOn { _held: held }
    }
}

/// Whether the upstream makes room; not, if it closes the stream.
fn has_room(to: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<bool> {
    loop {
        match ready!(to.poll_capacity(cx)) {
            Some(Ok(0)) => {}
            Some(Ok(_)) => return Poll::Ready(true),
            Some(Err(_)) | None => return Poll::Ready(false),
        }
    }
}

/// The request's side of an exchange whose answer comes. Dropped, it resets the stream, unless both sides have ended.
#[derive(Debug)]
pub(super) enum Sending {
    /// All was sent.
    Over {
        /// Held until the answer has ended.
        _outlet: Outlet,
    },
    /// More is sent while the answer comes.
    GoesOn {
        /// Its task ends when this is dropped.
        _held: oneshot::Sender<Infallible>,
    },
}

/// Opens a stream, and sends on it until the head of the answer is there.
pub(super) async fn ask(
    mut sender: SendRequest<Bytes>,
    head: Request<()>,
    feed: &mut Feed,
) -> Result<(Answer, Outlet), Unanswered> {
    poll_fn(|cx| sender.poll_ready(cx)).await.map_err(Unanswered::Unsent)?;
    let (mut answer, stream) = sender.send_request(head, feed.is_over).map_err(Unanswered::Unsent)?;
    drop(sender);
    let mut outlet = Outlet(stream);
    let answer = poll_fn(|cx| {
        if let Poll::Ready(Err(error)) = feed.poll(&mut outlet, cx) {
            return Poll::Ready(Err(Unanswered::Caller(error)));
        }
        Pin::new(&mut answer).poll(cx).map_err(Unanswered::Upstream)
    })
    .await?;
    Ok((answer, outlet))
}

/// The body of an answer on a stream.
#[derive(Debug)]
pub(super) struct Coming {
    stream: RecvStream,
    /// Bytes that are still to come, if the head says so; the library sees to it that they do.
    left: Option<u64>,
    is_at_trailers: bool,
    /// Nobody waits for more, whether or not the stream has ended.
    is_over: bool,
}

impl Coming {
    pub(super) fn of(stream: RecvStream, headers: &HeaderMap) -> Self {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let left = if stream.is_end_stream() { Some(0) } else { length };
        Self { stream, left, is_at_trailers: false, is_over: false }
    }

    /// Waits for the end of an answer that is its head alone: it may come in a frame of its own, and a stream that has
    /// not ended would have to be reset.
    pub(super) async fn come_to_nothing(&mut self) {
        let end = async { while let Some(Ok(_)) = poll_fn(|cx| self.poll_frame(cx)).await {} };
        let _late = tokio::time::timeout(LAST_WORD, end).await;
        (self.left, self.is_over) = (Some(0), true);
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.is_at_trailers {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(piece)) => {
                    // Nothing to be done where it fails: the stream is over then, and says so.
                    let _over = self.stream.flow_control().release_capacity(piece.len());
                    let taken = u64::try_from(piece.len()).unwrap_or(u64::MAX);
                    self.left = self.left.map(|left| left.saturating_sub(taken));
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.is_at_trailers = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.is_over || self.stream.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}
