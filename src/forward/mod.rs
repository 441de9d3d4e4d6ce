//! Step 7: sends the request on, and passes the answer back as it comes.
//!
//! Each worker has its own pool of connections to an upstream. Bodies are streamed both ways; what is
//! not read on one side is not read on the other.

pub mod headers;
mod pool;
mod relay;
pub mod upgrade;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use http::Request;
use http::Response;
use http::StatusCode;

pub use self::pool::Destination;
pub use self::pool::Upstream;
use self::relay::Exchange;
use self::relay::Limit;
use self::relay::Outgoing;
pub use self::relay::Relay;
pub use self::relay::RelayError;
use self::upgrade::Tunnel;
use crate::gate::Clearance;
use crate::gate::OutcomeGuard;
use crate::gate::Progress;
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

/// A data service, as the settings describe it.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Its name in the settings.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// Where it keeps data, if not where the service does.
    pub storage_location: Option<Location>,
    /// How long a connection may take to stand, TLS included; and how long a request waits for a place where no
    /// further connection may be made.
    pub connect_timeout: Duration,
    /// How long it may keep silent: until the head of its answer, from the last piece of the request that was sent
    /// on; and between two pieces of its answer. A route may have its own.
    pub response_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Most connections of the whole process.
    pub max_connections: usize,
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

    /// Whether it is not worth a line of the operational log for each request: it was told when it began, or it is up
    /// to the caller.
    #[must_use]
    pub fn is_told_elsewhere(&self) -> bool {
        matches!(self, Self::Down { .. } | Self::Overloaded { .. } | Self::TooLarge { .. })
    }
}

impl Upstream {
    /// Sends one request on. One that asks to switch protocols has the one that is offered in `Upgrade`, alone.
    ///
    /// It is sent again on another connection only if nothing of it was written on the first.
    ///
    /// # Errors
    ///
    /// [`ForwardError`]; the outcome is recorded then as `not_forwarded`, `aborted` or `cut`.
    pub async fn send(
        self: &Rc<Self>,
        clearance: Clearance,
        request: Request<Upload>,
    ) -> Result<Response<Relay>, ForwardError> {
        let passage = clearance.passage();
        let patience = passage.response_timeout.unwrap_or(self.settings().response_timeout);
        let limit = Limit::of(passage.body_limit);
        let mut outcome = clearance.into_outcome();
        let progress = outcome.progress();
        let offered = upgrade::offered(request.headers());
        let rest = limit.as_ref().map(Limit::rest);
        let mut request = request.map(|body| Outgoing::new(body, Arc::clone(&progress), limit));
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
            let error = match progress.has_failed() {
                true => ForwardError::CallerBroke(error.into_error()),
                false => ForwardError::Broken { name: self.name(), source: error.into_error() },
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
        let upstream = Rc::clone(self);
        Ok(response.map(|body| {
            let exchange = Exchange { outcome, progress, connection, upstream };
            Relay::of(body, exchange, patience)
        }))
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

fn fail(mut outcome: OutcomeGuard, ending: Ending, error: ForwardError) -> ForwardError {
    outcome.answered(error.status());
    outcome.end(ending);
    error
}
