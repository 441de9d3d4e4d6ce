//! The two bodies of an exchange on their way: counted, bounded, never kept.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::headers;
use super::headers::HeaderRules;
use super::pool::Connection;
use super::pool::Upstream;
use super::shared::Stream;
use super::stream;
use super::stream::Coming;
use super::stream::Sending;
use crate::gate::OutcomeGuard;
use crate::gate::Progress;
use crate::observed::is_malformed;
use crate::pace::Upload;
use crate::record::entry::Ending;

/// Why the body of a request does not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutgoingError {
    #[error("the caller broke off its body, or it is not framed as it says")]
    Broken(#[source] hyper::Error),
    #[error("the caller took its request back")]
    TakenBack(#[source] h2::Error),
    #[error("the body is larger than its route allows")]
    TooLarge,
    #[error("a trailer of the request begins or ends with a blank")]
    Malformed,
}

/// Most bytes of a body, and where the body goes that has more: its sender is still read for a moment, so that it
/// reads the answer.
#[derive(Debug)]
pub(super) struct Limit {
    left: u64,
    rest: Arc<Rest>,
}

#[derive(Debug, Default)]
pub(super) struct Rest(Mutex<Option<Upload>>);

impl Rest {
    fn keep(&self, body: Option<Upload>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }

    /// The body that was too large, if it was.
    pub(super) fn take(&self) -> Option<Upload> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Limit {
    /// None if there is no limit.
    pub(super) fn of(most: Option<u64>) -> Option<Self> {
        most.map(|left| Self { left, rest: Arc::default() })
    }

    pub(super) fn rest(&self) -> Arc<Rest> {
        Arc::clone(&self.rest)
    }
}

/// The body of a request on its way to the upstream.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Taken away once it is larger than the limit.
    body: Option<Upload>,
    progress: Arc<Progress>,
    limit: Option<Limit>,
    /// What holds for its trailers; without it they are dropped.
    trailers: Option<Arc<HeaderRules>>,
}

impl Outgoing {
    pub(super) fn new(
        body: Upload,
        progress: Arc<Progress>,
        limit: Option<Limit>,
        trailers: Option<Arc<HeaderRules>>,
    ) -> Self {
        Self { body: Some(body), progress, limit, trailers }
    }

    /// The trailers that pass, if any do.
    fn trailers(&self, frame: Frame<Bytes>) -> Option<Result<Frame<Bytes>, OutgoingError>> {
        let mut trailers = frame.into_trailers().ok()?;
        if is_malformed(&trailers) {
            self.progress.failed();
            return Some(Err(OutgoingError::Malformed));
        }
        self.progress.ended();
        headers::clean_request_trailers(&mut trailers, self.trailers.as_ref()?);
        (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)))
    }

    /// Whether so many more bytes are within the limit.
    fn is_within(&mut self, more: usize) -> bool {
        let Some(limit) = &mut self.limit else { return true };
        let left = u64::try_from(more).ok().and_then(|more| limit.left.checked_sub(more));
        limit.left = left.unwrap_or(0);
        left.is_some()
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = OutgoingError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, OutgoingError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Some(Err(OutgoingError::TooLarge))) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        Poll::Ready(match frame {
            // Nothing comes behind them.
            Some(Ok(frame)) if frame.is_trailers() => self.trailers(frame),
            Some(Ok(frame)) => {
                let more = frame.data_ref().map_or(0, Bytes::len);
                if self.is_within(more) {
                    self.progress.moved(more);
                    return Poll::Ready(Some(Ok(frame)));
                }
                self.progress.cut();
                let rest = self.body.take();
                if let Some(limit) = &self.limit {
                    limit.rest.keep(rest);
                }
                Some(Err(OutgoingError::TooLarge))
            }
            Some(Err(error)) => {
                self.progress.failed();
                Some(Err(OutgoingError::Broken(error)))
            }
            // Without its end it would be another request.
            None if body.was_taken_back() => {
                self.progress.failed();
                Some(Err(OutgoingError::TakenBack(h2::Reason::NO_ERROR.into())))
            }
            None => {
                self.progress.ended();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        let has_ended = self.body.as_ref().is_some_and(Body::is_end_stream);
        if has_ended {
            self.progress.ended();
        }
        has_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// Why the body of an answer does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The upstream broke it off, or it is not framed as it says.
    #[error("the upstream broke off its answer")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing more came for too long.
    #[error("the upstream stood still in the middle of its answer")]
    Stalled,
}

/// The body of an answer on its way back. Dropped early, it records `aborted`, and closes the connection or resets the
/// stream.
#[derive(Debug)]
pub struct Relay {
    body: Arriving,
    phase: Phase,
    stall: Stall,
    /// It came to its end, and is not asked again.
    is_whole: bool,
}

/// How far an exchange has come.
#[derive(Debug)]
enum Phase {
    UnderWay(Exchange),
    /// Its answer came to its end, and has its outcome when the last of it is gone.
    Whole(OutcomeGuard),
    Over,
}

/// The body of an answer, as it comes from the upstream.
#[derive(Debug)]
pub(super) enum Arriving {
    /// By HTTP/1.1.
    Alone(Incoming),
    /// By HTTP/2.
    OnStream(Coming),
}

impl Arriving {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        match self {
            Self::Alone(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|error| RelayError::Broken(error.into()))))
            }
            Self::OnStream(body) => {
                let frame = ready!(body.poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|error| RelayError::Broken(stream::source(error)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Alone(body) => body.is_end_stream(),
            Self::OnStream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Alone(body) => body.size_hint(),
            Self::OnStream(body) => body.size_hint(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) outcome: OutcomeGuard,
    pub(super) progress: Arc<Progress>,
    pub(super) held: Held,
}

/// What an exchange holds of the upstream until it ends.
#[derive(Debug)]
pub(super) enum Held {
    /// A connection for itself.
    Connection(Connection, Rc<Upstream>),
    /// A stream of a shared one.
    Stream {
        /// Dropped first: it resets the stream, unless both sides have ended.
        _sending: Sending,
        /// Free afterwards.
        _stream: Stream,
    },
}

impl Relay {
    /// The body of the answer of this exchange, of which nothing may come for so long.
    pub(super) fn of(body: Arriving, exchange: Exchange, patience: Duration) -> Self {
        let mut relay = Self { body, phase: Phase::UnderWay(exchange), stall: Stall::new(patience), is_whole: false };
        if relay.body.is_end_stream() {
            relay.end(Ending::Completed);
        }
        relay
    }

    /// Behind a head that has no body.
    pub(super) fn of_nothing(body: Incoming) -> Self {
        Self { body: Arriving::Alone(body), phase: Phase::Over, stall: Stall::new(Duration::MAX), is_whole: false }
    }

    /// The outcome of one that came to its end, for who sees whether the caller takes it.
    pub fn leave(&mut self) -> Option<OutcomeGuard> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Whole(outcome) => Some(outcome),
            phase @ (Phase::UnderWay(_) | Phase::Over) => {
                self.phase = phase;
                None
            }
        }
    }

    /// Its caller does not get so many bytes of what was passed on.
    pub fn falls_short(&mut self, bytes: u64) {
        match &mut self.phase {
            Phase::UnderWay(exchange) => exchange.outcome.not_taken(bytes),
            Phase::Whole(outcome) => {
                outcome.not_taken(bytes);
                outcome.ends(Ending::Aborted);
            }
            Phase::Over => {}
        }
    }

    fn end(&mut self, ending: Ending) {
        if !matches!(self.phase, Phase::UnderWay(_)) {
            return;
        }
        let Phase::UnderWay(exchange) = std::mem::replace(&mut self.phase, Phase::Over) else { return };
        let Exchange { mut outcome, progress, held } = exchange;
        self.is_whole = ending == Ending::Completed;
        match held {
            Held::Connection(connection, upstream) if self.is_whole && progress.has_ended() => {
                upstream.keep(connection);
            }
            held @ (Held::Connection(..) | Held::Stream { .. }) => drop(held),
        }
        let is_cut = ending == Ending::Aborted && progress.was_cut();
        outcome.ends(if is_cut { Ending::Cut } else { ending });
        if self.is_whole {
            self.phase = Phase::Whole(outcome);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end(Ending::Aborted);
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        if self.is_whole {
            return Poll::Ready(None);
        }
        let frame = self.body.poll_frame(cx);
        if let Phase::UnderWay(Exchange { held: Held::Connection(connection, _), .. }) = &self.phase {
            connection.thirst.set(frame.is_pending());
        }
        let Poll::Ready(frame) = frame else {
            let Self { phase, stall, .. } = &mut *self;
            let Phase::UnderWay(exchange) = phase else { return Poll::Pending };
            ready!(stall.poll(&exchange.progress, cx));
            self.end(Ending::Cut);
            return Poll::Ready(Some(Err(RelayError::Stalled)));
        };
        self.stall.since = None;
        Poll::Ready(match frame {
            // Nothing comes behind them.
            Some(Ok(frame)) if frame.is_trailers() => {
                self.end(Ending::Completed);
                let mut trailers = frame.into_trailers().unwrap_or_default();
                headers::clean_answer_trailers(&mut trailers);
                (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)))
            }
            Some(Ok(frame)) => {
                let more = frame.data_ref().map_or(0, Bytes::len);
                if let Phase::UnderWay(exchange) = &mut self.phase {
                    exchange.outcome.passed(u64::try_from(more).unwrap_or(0));
                }
                if self.body.is_end_stream() {
                    self.end(Ending::Completed);
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                self.end(Ending::Aborted);
                Some(Err(error))
            }
            None => {
                self.end(Ending::Completed);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_whole || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How long the next piece of an answer has been waited for. It runs only while the caller would take one.
#[derive(Debug)]
struct Stall {
    most: Duration,
    since: Option<Instant>,
    /// There once something had to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    fn new(most: Duration) -> Self {
        Self { most, since: None, timer: None }
    }

    /// Ready when nothing came for too long. As long as the request moves the upstream may be waiting for it.
    fn poll(&mut self, request: &Progress, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let due = since.max(request.last_moved()) + self.most;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due.into() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due.into());
        }
    }
}
