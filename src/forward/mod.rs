//! Step 7: sends the request on, and passes the answer back as it comes.
//!
//! Each worker has its own pool of connections to an upstream. Bodies are streamed both ways; what is
//! not read on one side is not read on the other.

pub mod headers;

use std::cell::Cell;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::StatusCode;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::gate::Clearance;
use crate::gate::OutcomeGuard;
use crate::policy::terms::Location;
use crate::record::entry::Ending;

/// A data service, as the settings describe it.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Its name in the settings.
    pub name: String,
    /// `HOST:PORT`.
    pub address: String,
    /// Where it keeps data, if not where the service does.
    pub storage_location: Option<Location>,
    /// How long a connection may take to stand.
    pub connect_timeout: Duration,
    /// How long it may take until the head of the answer is there.
    pub response_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
}

/// Why there is no answer of the upstream.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No connection.
    #[error("cannot connect to the upstream `{name}`")]
    Connect {
        /// The upstream.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("the upstream `{name}` closed the connection or did not speak HTTP/1.1")]
    Broken {
        /// The upstream.
        name: String,
        /// Why.
        source: hyper::Error,
    },
    /// It asked for something that nobody asked for.
    #[error("the upstream `{name}` switched protocols unasked")]
    Switched {
        /// The upstream.
        name: String,
    },
    /// No head of an answer in time.
    #[error("the upstream `{name}` did not answer in time")]
    TimedOut {
        /// The upstream.
        name: String,
    },
}

/// One worker's connections to one upstream.
#[derive(Debug)]
pub struct Upstream {
    settings: UpstreamSettings,
    idle: RefCell<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: SendRequest<Outgoing>,
    since: Instant,
}

impl Upstream {
    /// No connections yet.
    #[must_use]
    pub fn new(settings: UpstreamSettings) -> Self {
        Self { settings, idle: RefCell::default() }
    }

    /// Where it keeps data, if the settings say so.
    #[must_use]
    pub fn storage_location(&self) -> Option<Location> {
        self.settings.storage_location
    }

    /// Sends one request on.
    ///
    /// It is sent again on another connection only if nothing of it was written on the first.
    ///
    /// # Errors
    ///
    /// [`ForwardError`]; the outcome is recorded then as `not_forwarded` or `aborted`.
    pub async fn send(
        self: &Rc<Self>,
        clearance: Clearance,
        request: Request<Incoming>,
    ) -> Result<Response<Relay>, ForwardError> {
        let mut outcome = clearance.into_outcome();
        let progress = Rc::new(Progress::default());
        let mut request = request.map(|body| Outgoing { body, progress: Rc::clone(&progress) });
        let (response, connection) = loop {
            let (mut connection, is_fresh) = match self.connection().await {
                Ok(found) => found,
                Err(error) => return Err(self.fail(outcome, &progress, Ending::NotForwarded, error)),
            };
            let answered = tokio::time::timeout(self.settings.response_timeout, connection.try_send_request(request));
            match answered.await {
                Ok(Ok(response)) => break (response, connection),
                Ok(Err(mut error)) => match error.take_message() {
                    Some(unsent) if !is_fresh => request = unsent,
                    unsent => {
                        let ending = if unsent.is_some() { Ending::NotForwarded } else { Ending::Aborted };
                        let error = ForwardError::Broken { name: self.name(), source: error.into_error() };
                        return Err(self.fail(outcome, &progress, ending, error));
                    }
                },
                Err(_elapsed) => {
                    let error = ForwardError::TimedOut { name: self.name() };
                    return Err(self.fail(outcome, &progress, Ending::Aborted, error));
                }
            }
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let error = ForwardError::Switched { name: self.name() };
            return Err(self.fail(outcome, &progress, Ending::Aborted, error));
        }
        outcome.answered(response.status().as_u16());
        let upstream = Rc::clone(self);
        Ok(response.map(|body| {
            let exchange = Exchange { outcome, progress, connection, upstream };
            Relay { body, exchange: Some(exchange) }.ended_if_empty()
        }))
    }

    fn name(&self) -> String {
        self.settings.name.clone()
    }

    fn fail(
        &self,
        mut outcome: OutcomeGuard,
        progress: &Progress,
        ending: Ending,
        error: ForwardError,
    ) -> ForwardError {
        let status = if matches!(error, ForwardError::TimedOut { .. }) { 504 } else { 502 };
        outcome.answered(status);
        outcome.sent(progress.bytes.get());
        outcome.end(ending);
        error
    }

    /// An idle connection, or a fresh one; which of the two.
    async fn connection(&self) -> Result<(SendRequest<Outgoing>, bool), ForwardError> {
        while let Some(Idle { mut connection, since }) = self.take_idle() {
            // Both bodies of its last exchange have ended, so it is ready soon or closed.
            if since.elapsed() < self.settings.idle_timeout && connection.ready().await.is_ok() {
                return Ok((connection, false));
            }
        }
        let failed = |source| ForwardError::Connect { name: self.name(), source };
        let connected = tokio::time::timeout(self.settings.connect_timeout, TcpStream::connect(&self.settings.address));
        let stream = connected
            .await
            .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(failed)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ForwardError::Broken { name: self.name(), source })?;
        tokio::task::spawn_local(async move {
            // Its error is also the error of the request that is under way.
            let _told_elsewhere = connection.await;
        });
        Ok((sender, true))
    }

    fn take_idle(&self) -> Option<Idle> {
        self.idle.borrow_mut().pop()
    }

    fn keep(&self, connection: SendRequest<Outgoing>) {
        if !connection.is_closed() {
            self.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
        }
    }
}

/// How far the request's body has come.
#[derive(Debug, Default)]
struct Progress {
    bytes: Cell<u64>,
    has_ended: Cell<bool>,
}

/// The body of a request on its way to the upstream.
#[derive(Debug)]
struct Outgoing {
    body: Incoming,
    progress: Rc<Progress>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let more = frame.data_ref().map_or(0, Bytes::len);
                self.progress.bytes.set(self.progress.bytes.get() + u64::try_from(more).unwrap_or(0));
            }
            Some(Err(_)) => {}
            None => self.progress.has_ended.set(true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let has_ended = self.body.is_end_stream();
        if has_ended {
            self.progress.has_ended.set(true);
        }
        has_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer on its way back. Dropped early, it records `aborted` and closes the connection.
#[derive(Debug)]
pub struct Relay {
    body: Incoming,
    exchange: Option<Exchange>,
}

#[derive(Debug)]
struct Exchange {
    outcome: OutcomeGuard,
    progress: Rc<Progress>,
    connection: SendRequest<Outgoing>,
    upstream: Rc<Upstream>,
}

impl Relay {
    fn ended_if_empty(mut self) -> Self {
        if self.body.is_end_stream() {
            self.end(Ending::Completed);
        }
        self
    }

    fn end(&mut self, ending: Ending) {
        let Some(Exchange { mut outcome, progress, connection, upstream }) = self.exchange.take() else { return };
        outcome.sent(progress.bytes.get());
        outcome.end(ending);
        // A connection on which the request is still being sent is of no use to the next one.
        if ending == Ending::Completed && progress.has_ended.get() {
            upstream.keep(connection);
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
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let more = frame.data_ref().map_or(0, Bytes::len);
                if let Some(exchange) = &mut self.exchange {
                    exchange.outcome.passed(u64::try_from(more).unwrap_or(0));
                }
                if self.body.is_end_stream() {
                    self.end(Ending::Completed);
                }
            }
            Some(Err(_)) => self.end(Ending::Aborted),
            None => self.end(Ending::Completed),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
