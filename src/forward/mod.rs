//! Step 7: sends the request on, and passes the answer back as it comes.
//!
//! Each worker has its own pool of connections to an upstream. Bodies are streamed both ways; what is
//! not read on one side is not read on the other.

pub mod headers;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
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
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::gate::Clearance;
use crate::gate::OutcomeGuard;
use crate::gate::Progress;
use crate::policy::terms::Location;
use crate::record::entry::Ending;
use crate::tls;

/// A data service, as the settings describe it.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Its name in the settings.
    pub name: String,
    /// `HOST:PORT`.
    pub address: String,
    /// Where it keeps data, if not where the service does.
    pub storage_location: Option<Location>,
    /// How long a connection may take to stand, TLS included.
    pub connect_timeout: Duration,
    /// How long it may take until the head of the answer is there, from the last piece of the request that was
    /// sent on.
    pub response_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// How it is known; none: it is spoken to in clear.
    pub tls: Option<tls::ClientSettings>,
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
    /// A connection, and nobody at its end whom the settings vouch for.
    #[error("no TLS with the upstream `{name}`")]
    Tls {
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
    /// The caller's side broke off in the middle of its body, or sent one that is none.
    #[error("the caller broke off its request, or its body is not framed as it says")]
    CallerBroke(#[source] hyper::Error),
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

impl ForwardError {
    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::CallerBroke(_) => 400,
            Self::Connect { .. } | Self::Tls { .. } | Self::Broken { .. } | Self::Switched { .. } => 502,
            Self::TimedOut { .. } => 504,
        }
    }
}

/// One worker's connections to one upstream.
#[derive(Debug)]
pub struct Upstream {
    settings: UpstreamSettings,
    tls: Option<Arc<tls::Client>>,
    idle: RefCell<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection to the upstream and the task that drives it. Dropped, it is closed at once: nothing more of a
/// request goes on after its outcome is recorded.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Outgoing>,
    task: AbortHandle,
    /// Which renewal of the upstream's TLS it came about with.
    renewal: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How long a connection from the pool may take to be ready.
const READY_TIME: Duration = Duration::from_millis(100);

/// Most that is read of an answer at once, and the most bytes of its head.
const BUFFER: usize = 16 * 1024;

impl Upstream {
    /// No connections yet.
    #[must_use]
    pub fn new(settings: UpstreamSettings, tls: Option<Arc<tls::Client>>) -> Self {
        Self { settings, tls, idle: RefCell::default() }
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
        let progress = outcome.progress();
        let mut request = request.map(|body| Outgoing { body, progress: Arc::clone(&progress) });
        let (response, connection) = loop {
            let (mut connection, is_fresh) = match self.connection().await {
                Ok(found) => found,
                Err(error) => return Err(fail(outcome, Ending::NotForwarded, error)),
            };
            let answered = tokio::select! {
                answered = connection.sender.try_send_request(request) => answered,
                () = self.too_late(&progress) => {
                    return Err(fail(outcome, Ending::Aborted, ForwardError::TimedOut { name: self.name() }));
                }
            };
            let mut error = match answered {
                Ok(response) => break (response, connection),
                Err(error) => error,
            };
            let ending = match error.take_message() {
                Some(unsent) if !is_fresh => {
                    request = unsent;
                    continue;
                }
                Some(_) => Ending::NotForwarded,
                None => Ending::Aborted,
            };
            let error = match progress.has_failed() {
                true => ForwardError::CallerBroke(error.into_error()),
                false => ForwardError::Broken { name: self.name(), source: error.into_error() },
            };
            return Err(fail(outcome, ending, error));
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(fail(outcome, Ending::Aborted, ForwardError::Switched { name: self.name() }));
        }
        outcome.answered(response.status().as_u16());
        let upstream = Rc::clone(self);
        Ok(response.map(|body| {
            let exchange = Exchange { outcome, progress, connection, upstream };
            Relay { body, exchange: Some(exchange) }.ended_if_empty()
        }))
    }

    /// Returns when `response_timeout` has passed since something of the request last moved.
    async fn too_late(&self, progress: &Progress) {
        loop {
            let due = progress.last_moved() + self.settings.response_timeout;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due.into()).await;
        }
    }

    fn name(&self) -> String {
        self.settings.name.clone()
    }

    /// An idle connection, or a fresh one; which of the two.
    async fn connection(&self) -> Result<(Connection, bool), ForwardError> {
        while let Some(Idle { mut connection, since }) = self.take_idle() {
            let is_good = since.elapsed() < self.settings.idle_timeout && self.is_current(&connection);
            // Both bodies of its last exchange have ended, so it is ready within a turn of the loop, or closed, or
            // stuck: an upstream that answered without reading leaves bytes that nobody takes.
            let ready = tokio::time::timeout(READY_TIME, connection.sender.ready());
            if is_good && matches!(ready.await, Ok(Ok(()))) {
                return Ok((connection, false));
            }
        }
        // TLS is part of it: both have to stand within one `connect_timeout`.
        let deadline = tokio::time::Instant::now() + self.settings.connect_timeout;
        let stream = tokio::time::timeout_at(deadline, TcpStream::connect(&self.settings.address))
            .await
            .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|source| ForwardError::Connect { name: self.name(), source })?;
        let Some(tls) = &self.tls else { return self.speak(stream, 0).await };
        // Before the handshake: what is renewed while it goes on makes the connection one of yesterday.
        let renewal = tls.renewal();
        let stream = tokio::time::timeout_at(deadline, tls.connect(stream))
            .await
            .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| ForwardError::Tls { name: self.name(), source })?;
        self.speak(stream, renewal).await
    }

    /// HTTP/1.1 on a fresh connection.
    async fn speak<S>(&self, stream: S, renewal: u64) -> Result<(Connection, bool), ForwardError>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ForwardError::Broken { name: self.name(), source })?;
        let task = tokio::task::spawn_local(async move {
            // Its error is also the error of the request that is under way.
            let _told_elsewhere = connection.await;
        });
        Ok((Connection { sender, task: task.abort_handle(), renewal }, true))
    }

    fn take_idle(&self) -> Option<Idle> {
        self.idle.borrow_mut().pop()
    }

    fn keep(&self, connection: Connection) {
        if !connection.sender.is_closed() {
            self.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
        }
    }

    /// Whether its other end was verified with the authorities that are in force, and saw the certificate that is.
    fn is_current(&self, connection: &Connection) -> bool {
        self.tls.as_ref().is_none_or(|tls| tls.renewal() == connection.renewal)
    }

    /// Closes connections that have been idle for `idle_timeout` or whose TLS was renewed since, and forgets those
    /// that the upstream closed.
    pub fn reap(&self) {
        self.idle.borrow_mut().retain(|Idle { connection, since }| {
            let is_young = since.elapsed() < self.settings.idle_timeout;
            is_young && !connection.sender.is_closed() && self.is_current(connection)
        });
    }
}

fn fail(mut outcome: OutcomeGuard, ending: Ending, error: ForwardError) -> ForwardError {
    outcome.answered(error.status());
    outcome.end(ending);
    error
}

/// The body of a request on its way to the upstream.
#[derive(Debug)]
struct Outgoing {
    body: Incoming,
    progress: Arc<Progress>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.progress.moved(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) => self.progress.failed(),
            None => self.progress.ended(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let has_ended = self.body.is_end_stream();
        if has_ended {
            self.progress.ended();
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
    progress: Arc<Progress>,
    connection: Connection,
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
        let Some(Exchange { outcome, progress, connection, upstream }) = self.exchange.take() else { return };
        if ending == Ending::Completed && progress.has_ended() {
            upstream.keep(connection);
        } else {
            drop(connection);
        }
        outcome.end(ending);
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
