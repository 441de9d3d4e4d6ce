//! Step 7: sends the request on, and passes the answer back as it comes.
//!
//! Each worker has its own pool of connections to an upstream. Bodies are streamed both ways; what is
//! not read on one side is not read on the other.

pub mod headers;
mod pool;
mod relay;
mod shared;
mod stream;
pub mod upgrade;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::Either;
use h2::Reason;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;

use self::headers::HeaderRules;
pub use self::pool::Destination;
pub use self::pool::Glance;
pub use self::pool::LEAST_BUFFER;
pub use self::pool::Upstream;
use self::relay::Arriving;
use self::relay::Exchange;
use self::relay::Held;
use self::relay::Limit;
use self::relay::Outgoing;
pub use self::relay::Relay;
pub use self::relay::RelayError;
use self::stream::Coming;
use self::stream::Feed;
use self::stream::Unanswered;
use self::upgrade::Tunnel;
use crate::gate::Clearance;
use crate::gate::OutcomeGuard;
use crate::gate::Progress;
use crate::observed::is_call;
use crate::pace::Upload;
use crate::policy::terms::Location;
use crate::record::entry::Ending;
use crate::tls;

/// Where a data service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// What a data service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1: each exchange has a connection for itself.
    Http1,
    /// HTTP/2: each has a stream of one that many share.
    Http2,
}

/// How long a data service may keep silent, if neither the settings nor the route say.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The same for calls of gRPC: streams that are silent for long are what it is made for, and its callers set deadlines.
const GRPC_TIMEOUT: Duration = Duration::from_secs(3600);

/// A data service, as the settings describe it.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Its name in the settings.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it keeps data, if not where the service does.
    pub storage_location: Option<Location>,
    /// How long a connection may take to stand, TLS included; and how long a request waits for a place where no
    /// further connection may be made.
    pub connect_timeout: Duration,
    /// How long it may keep silent: until the head of its answer, from the last piece of the request that was sent
    /// on; and between two pieces of its answer. A route may have its own; with neither, gRPC has much longer.
    pub response_timeout: Option<Duration>,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Most connections of the whole process.
    pub max_connections: usize,
    /// Bytes of the head of an answer, at least [`LEAST_BUFFER`]. A connection holds back as much in each
    /// direction, between the two sides.
    pub header_bytes: usize,
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
    /// It could not be reached several times in a row, and not since.
    #[error("the upstream `{name}` is known to be out of reach")]
    Down {
        /// The upstream.
        name: String,
    },
    /// All connections that there may be are in use, and none came free in time.
    #[error("no connection to the upstream `{name}` came free in time")]
    Overloaded {
        /// The upstream.
        name: String,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("the upstream `{name}` closed the connection or did not speak its protocol")]
    Broken {
        /// The upstream.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The caller's side broke off in the middle of its body, or sent one that is none.
    #[error("the caller broke off its request, or its body is not framed as it says")]
    CallerBroke(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The body is larger than its route allows.
    #[error("the body of the request is larger than its route allows")]
    TooLarge {
        /// What has not been read of it.
        rest: Option<Upload>,
    },
    /// It switched to a protocol that nobody asked for.
    #[error("the upstream `{name}` switched protocols unasked")]
    Switched {
        /// The upstream.
        name: String,
    },
    /// Its answer is coded in a way that is not understood here.
    #[error("the answer of the upstream `{name}` has a Transfer-Encoding other than one `chunked`")]
    Coded {
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
    /// The same of a connection to this upstream that did not come about, for another request that waited for it.
    fn again(&self, name: &str) -> Self {
        let name = name.to_owned();
        let same = |source: &io::Error| io::Error::new(source.kind(), source.to_string());
        match self {
            Self::Connect { source, .. } => Self::Connect { name, source: same(source) },
            Self::Tls { source, .. } => Self::Tls { name, source: same(source) },
            Self::Down { .. }
            | Self::Overloaded { .. }
            | Self::Broken { .. }
            | Self::CallerBroke(_)
            | Self::TooLarge { .. }
            | Self::Switched { .. }
            | Self::Coded { .. }
            | Self::TimedOut { .. } => Self::Down { name },
        }
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::CallerBroke(_) => 400,
            Self::TooLarge { .. } => 413,
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Broken { .. }
            | Self::Switched { .. }
            | Self::Coded { .. } => 502,
            Self::Down { .. } | Self::Overloaded { .. } => 503,
            Self::TimedOut { .. } => 504,
        }
    }

    /// Why the upstream reset the stream of the request before it answered, if it did (RFC 9113 section 7).
    #[must_use]
    pub fn reset(&self) -> Option<Reason> {
        let Self::Broken { source, .. } = self else { return None };
        source.downcast_ref::<h2::Error>().filter(|error| error.is_reset()).and_then(h2::Error::reason)
    }

    /// Whether nobody is left who could be answered: the caller took its request of HTTP/2 back, or its connection has
    /// ended. One of HTTP/1.1 that sends no more may still read.
    #[must_use]
    pub fn is_unheard(&self) -> bool {
        let Self::CallerBroke(source) = self else { return false };
        let source: &(dyn std::error::Error + 'static) = &**source;
        // What goes wrong with a body of HTTP/2 has ended its stream.
        std::iter::successors(Some(source), |error| error.source()).any(|error| error.is::<h2::Error>())
    }

    /// Whether it is not worth a line of the operational log for each request: it was told when it began, or it is up
    /// to the caller.
    #[must_use]
    pub fn is_told_elsewhere(&self) -> bool {
        matches!(self, Self::Down { .. } | Self::Overloaded { .. } | Self::TooLarge { .. }) || self.is_unheard()
    }
}

impl Upstream {
    /// Sends one request on. One that asks to switch protocols has the one that is offered in `Upgrade`, alone. `rules`
    /// hold for its trailers.
    ///
    /// It is sent again on another connection only if nothing of it was written on the first, or if the upstream says
    /// that it has done nothing with it.
    ///
    /// # Errors
    ///
    /// [`ForwardError`]; the outcome is recorded then as `not_forwarded`, `aborted` or `cut`.
    pub fn send(
        self: &Rc<Self>,
        clearance: Clearance,
        request: Request<Upload>,
        rules: &Arc<HeaderRules>,
    ) -> impl Future<Output = Result<Response<Relay>, ForwardError>> {
        match self.settings().protocol {
            Protocol::Http1 => Either::Left(self.send_alone(clearance, request, rules)),
            // In a box, so that requests by HTTP/1.1 hold no room for it.
            Protocol::Http2 => Either::Right(Box::pin(self.send_on_stream(clearance, request, rules))),
        }
    }

    /// On a connection of its own, by HTTP/1.1.
    async fn send_alone(
        self: &Rc<Self>,
        clearance: Clearance,
        mut request: Request<Upload>,
        rules: &Arc<HeaderRules>,
    ) -> Result<Response<Relay>, ForwardError> {
        let passage = clearance.passage();
        let patience = passage.response_timeout.or(self.settings().response_timeout).unwrap_or(RESPONSE_TIMEOUT);
        let limit = Limit::of(passage.body_limit);
        let mut outcome = clearance.into_outcome();
        let progress = outcome.progress();
        let offered = upgrade::offered(request.headers());
        let rest = limit.as_ref().map(Limit::rest);
        let has_trailers = headers::frame(&mut request, offered.is_some());
        let rules = has_trailers.then(|| Arc::clone(rules));
        let mut request = request.map(|body| Outgoing::new(body, Arc::clone(&progress), limit, rules));
        let (mut response, connection) = loop {
            let mut connection = match self.connection().await {
                Ok(found) => found,
                Err(error) => return Err(fail(outcome, Ending::NotForwarded, error)),
            };
            progress.moved(0);
            let answered = tokio::select! {
                answered = connection.sender.try_send_request(request) => answered,
                () = too_late(&progress, patience) => {
                    return Err(fail(outcome, Ending::Aborted, ForwardError::TimedOut { name: self.name() }));
                }
            };
            let mut error = match answered {
                Ok(response) => break (response, connection),
                Err(error) => error,
            };
            let ending = match error.take_message() {
                Some(unsent) if !connection.is_fresh() => {
                    request = unsent;
                    continue;
                }
                Some(_) => Ending::NotForwarded,
                None => Ending::Aborted,
            };
            if let Some(rest) = rest.as_ref().and_then(|rest| rest.take()) {
                return Err(fail(outcome, Ending::Cut, ForwardError::TooLarge { rest: Some(rest) }));
            }
            let source = error.into_error().into();
            let error = match progress.has_failed() {
                true => ForwardError::CallerBroke(source),
                false => ForwardError::Broken { name: self.name(), source },
            };
            return Err(fail(outcome, ending, error));
        };
        if !headers::is_at_most_chunked(response.headers()) {
            return Err(fail(outcome, Ending::Aborted, ForwardError::Coded { name: self.name() }));
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if !upgrade::is_agreed(offered.as_ref(), response.headers()) {
                return Err(fail(outcome, Ending::Aborted, ForwardError::Switched { name: self.name() }));
            }
            outcome.answered(response.status().as_u16());
            Tunnel::open(&mut response, connection, outcome);
            return Ok(response.map(Relay::of_nothing));
        }
        outcome.answered(response.status().as_u16());
        let held = Held::Connection(connection, Rc::clone(self));
        Ok(response.map(|body| Relay::of(Arriving::Alone(body), Exchange { outcome, progress, held }, patience)))
    }

    /// On a stream of a connection that many share, by HTTP/2.
    async fn send_on_stream(
        self: &Rc<Self>,
        clearance: Clearance,
        request: Request<Upload>,
        rules: &Arc<HeaderRules>,
    ) -> Result<Response<Relay>, ForwardError> {
        let passage = clearance.passage();
        let usual = if is_call(request.headers()) { GRPC_TIMEOUT } else { RESPONSE_TIMEOUT };
        let patience = passage.response_timeout.or(self.settings().response_timeout).unwrap_or(usual);
        let limit = Limit::of(passage.body_limit);
        let mut outcome = clearance.into_outcome();
        let progress = outcome.progress();
        let rest = limit.as_ref().map(Limit::rest);
        let (head, body) = request.into_parts();
        let method = head.method.clone();
        let head = stream::head(head, self.settings().tls.is_some());
        let mut feed = Feed::of(Outgoing::new(body, Arc::clone(&progress), limit, Some(Arc::clone(rules))));
        let mut is_again = false;
        let (response, outlet, stream) = loop {
            let stream = match self.stream().await {
                Ok(found) => found,
                Err(error) => return Err(fail(outcome, Ending::NotForwarded, error)),
            };
            progress.moved(0);
            let answered = tokio::select! {
                // The library takes the head away, and it may be needed again.
                answered = stream.ask(head.clone(), &mut feed) => answered,
                () = too_late(&progress, patience) => {
                    return Err(fail(outcome, Ending::Aborted, ForwardError::TimedOut { name: self.name() }));
                }
            };
            let error = match answered {
                Ok((response, outlet)) => break (response, outlet, stream),
                Err(error) => error,
            };
            if error.is_unprocessed() && !is_again && feed.rewind() {
                is_again = true;
                continue;
            }
            if let Some(rest) = rest.as_ref().and_then(|rest| rest.take()) {
                return Err(fail(outcome, Ending::Cut, ForwardError::TooLarge { rest: Some(rest) }));
            }
            let broken = |error| ForwardError::Broken { name: self.name(), source: stream::source(error) };
            let (ending, error) = match error {
                Unanswered::Caller(error) => (Ending::Aborted, ForwardError::CallerBroke(error.into())),
                Unanswered::Unsent(error) => (Ending::NotForwarded, broken(error)),
                Unanswered::Upstream(error) => (Ending::Aborted, broken(error)),
            };
            return Err(fail(outcome, ending, error));
        };
        outcome.answered(response.status().as_u16());
        let (mut head, body) = response.into_parts();
        headers::trim(&mut head.headers);
        let mut body = Coming::of(body, &head.headers);
        if is_bare(&method, head.status) {
            body.come_to_nothing().await;
        }
        let body = Arriving::OnStream(body);
        let held = Held::Stream { _sending: feed.go_on(outlet), _stream: stream };
        Ok(Response::from_parts(head, Relay::of(body, Exchange { outcome, progress, held }, patience)))
    }

    fn name(&self) -> String {
        self.settings().name.clone()
    }
}

/// Returns when so much time has passed since something of the request last moved.
async fn too_late(progress: &Progress, patience: Duration) {
    loop {
        let due = progress.last_moved() + patience;
        if due <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(due.into()).await;
    }
}

/// Whether an answer is its head alone (RFC 9110 section 6.4.1).
fn is_bare(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

fn fail(mut outcome: OutcomeGuard, ending: Ending, error: ForwardError) -> ForwardError {
    if !error.is_unheard() {
        outcome.answered(error.status());
    }
    outcome.end(ending);
    error
}
