//! The proxy door: an HTTP request in, the upstream's answer or a refusal out.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::FutureExt as _;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Version;
use http::header;
use http::request::Parts;
use http_body_util::BodyExt as _;
use http_body_util::Either;
use hyper::body::Body as _;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::doors::egress::Egress;
use crate::doors::tally::Tally;
use crate::forward::ForwardError;
use crate::forward::Upstream;
use crate::forward::headers;
use crate::forward::headers::HeaderRules;
use crate::forward::headers::Proven;
use crate::forward::upgrade;
use crate::gate::DPA_DECISION_ID;
use crate::gate::Gate;
use crate::gate::Ids;
use crate::gate::Refusal;
use crate::gate::Verdict;
use crate::gate::id_value;
use crate::observed::Observed;
use crate::observed::Peer;
use crate::observed::Target;
use crate::observed::Unreadable;
use crate::pace::Upload;
use crate::policy::terms::Location;
use crate::record::entry::Ending;
use crate::respond;
use crate::respond::AnswerBody;
use crate::respond::Form;

/// Most bytes of a refused upload that are read before the connection is closed, and how long that may
/// take: enough for the refusal to be read by a sender that writes first and reads then.
const DRAIN_BYTES: u64 = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(1);

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Marks an answer that nobody is left to get: it is not counted.
#[derive(Clone, Copy, Debug)]
struct Unheard;

/// Tells the time. The demo's begins at a date of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// What it showed at a moment; none: it shows the time of the machine.
    set: Option<(Timestamp, Instant)>,
}

impl Clock {
    /// A clock that shows this moment now, and runs on.
    #[must_use]
    pub fn starting_at(begin: Timestamp) -> Self {
        Self { set: Some((begin, Instant::now())) }
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self.set {
            None => Timestamp::now(),
            Some((begin, since)) => begin.checked_add(since.elapsed()).unwrap_or(begin),
        }
    }
}

/// One listener's door on one worker.
#[derive(Debug)]
pub struct Proxy {
    /// Decides and records.
    pub gate: Gate,
    /// Where permitted requests go.
    pub upstream: Rc<Upstream>,
    /// A place for each request that may be under way, of the whole process.
    pub places: Arc<Semaphore>,
    /// Where the service keeps its data.
    pub storage: Location,
    /// To whom the service sends through it; none: requests come in, to the service.
    pub egress: Option<Egress>,
    /// Which headers pass, and which are set.
    pub headers: Arc<HeaderRules>,
    /// What time it is.
    pub clock: Clock,
    /// What this worker counts at this door.
    pub tally: Arc<Tally>,
}

impl Proxy {
    /// Takes one request from the wire to its answer. Never fails: every failure is an answer, and a panic takes
    /// nothing else with it. What the request held is dropped by then, so its outcome is written.
    pub async fn handle(&self, peer: &Peer, request: Request<Upload>) -> Response<AnswerBody> {
        let started = Instant::now();
        let time = self.clock.now();
        let (ids, form) = (Ids::of(request.headers(), time), Form::of(request.headers()));
        let answered = AssertUnwindSafe(self.answer(peer, request, form, &ids, time, started)).catch_unwind().await;
        let response = answered.unwrap_or_else(|_panic| {
            let (decision, trace_id) = (ids.decision, &ids.trace);
            tracing::error!(%decision, trace_id, "a request panicked: a mistake in this program");
            self.tally.failed(respond::INTERNAL_ERROR);
            respond::failed(ids.decision, form)
        });
        if response.extensions().get::<Unheard>().is_none() {
            self.tally.answered(response.status());
        }
        response
    }

    async fn answer(
        &self,
        peer: &Peer,
        request: Request<Upload>,
        form: Form,
        ids: &Ids,
        time: Timestamp,
        started: Instant,
    ) -> Response<AnswerBody> {
        let (mut head, body) = request.into_parts();
        let read = match head.method == Method::CONNECT {
            true => Err(Unreadable::Connect),
            false => Target::read(&head.uri, &head.headers, head.version),
        };
        let (target, host) = match read {
            Ok(read) => read,
            Err(unreadable) => {
                let refusal = self.gate.unreadable(unreadable, &head.method, ids, time).await;
                return self.refuse(&refusal, form, &head, body, started).await;
            }
        };
        // What is matched is what is sent on: on egress, the subprocessor's own host.
        let host = self.egress.as_ref().map_or(host, |egress| egress.host.clone());
        let seen = Observed {
            method: &head.method,
            target,
            host,
            headers: &head.headers,
            peer,
            egress: self.egress.as_ref().map(Egress::ends),
            storage: self.storage,
            time,
        };
        let clearance = match self.gate.check(&seen, ids, started).await {
            Verdict::Pass(clearance) => clearance,
            Verdict::Refuse(refusal) => return self.refuse(&refusal, form, &head, body, started).await,
        };
        let target = seen.target;
        let decision = clearance.decision();
        let own = started.elapsed();
        self.gate.tally().decision_took(own);
        if clearance.passage().body_limit.is_some_and(|most| body.size_hint().lower() > most) {
            let error = ForwardError::TooLarge { rest: None };
            let mut outcome = clearance.into_outcome();
            outcome.answered(error.status());
            outcome.end(Ending::NotForwarded);
            self.tally.failed(respond::reason_of(&error));
            Box::pin(read_on(&head, body)).await;
            return self.timed(respond::no_answer(&error, decision, form), own);
        }

        let protocol = upgrade::asked(&head, &clearance.passage().upgrade);
        let version = head.version;
        self.rebuild(&mut head, &body, &target, &Proven { peer, version, time, ids, context: clearance.context() });
        if let Some(protocol) = &protocol {
            upgrade::name(&mut head.headers, protocol.clone());
        }
        match self.upstream.send(clearance, Request::from_parts(head, body), &self.headers).await {
            Ok(response) => {
                self.tally.upstream_took(started.elapsed().saturating_sub(own));
                let mut response = response.map(Either::Right);
                headers::clean_response(response.headers_mut());
                if let (StatusCode::SWITCHING_PROTOCOLS, Some(protocol)) = (response.status(), protocol) {
                    upgrade::name(response.headers_mut(), protocol);
                }
                // The version is the connection's, not the message's (RFC 9110 section 2.5).
                *response.version_mut() = Version::HTTP_11;
                response.headers_mut().insert(DPA_DECISION_ID, id_value(decision));
                self.timed(response, own)
            }
            Err(error) if error.is_unheard() => {
                let mut response = Box::pin(no_answer(error, ids, form, version)).await;
                response.extensions_mut().insert(Unheard);
                response
            }
            Err(error) => {
                self.tally.failed(respond::reason_of(&error));
                self.timed(Box::pin(no_answer(error, ids, form, version)).await, own)
            }
        }
    }

    /// The head that is sent on: the canonical target, established facts, nobody else's `DPA-` headers. A subprocessor
    /// gets no facts.
    fn rebuild(&self, head: &mut Parts, body: &Upload, target: &Target, proven: &Proven<'_>) {
        match &self.egress {
            None => headers::rebuild_request(&mut head.headers, &self.headers, proven),
            Some(egress) => {
                let host = egress.host_header.clone();
                headers::rebuild_for_subprocessor(&mut head.headers, &self.headers, proven, host);
            }
        }
        if let (true, Some(size)) = (head.headers.contains_key(header::CONTENT_LENGTH), body.size_hint().exact()) {
            // As it was read: the same number can be written in several ways.
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
        }
        head.uri = target.uri().clone();
        head.version = Version::HTTP_11;
    }

    async fn refuse(
        &self,
        refusal: &Refusal,
        form: Form,
        head: &Parts,
        body: Upload,
        started: Instant,
    ) -> Response<AnswerBody> {
        let own = started.elapsed();
        self.gate.tally().decision_took(own);
        // In a box, as all that only some requests come to: each request has room for the largest of what is not.
        Box::pin(read_on(head, body)).await;
        self.timed(respond::refused(refusal, form), own)
    }

    /// Tells how long the sidecar itself took, if the settings want it (W3C Server Timing).
    fn timed(&self, mut response: Response<AnswerBody>, own: Duration) -> Response<AnswerBody> {
        if !self.headers.server_timing {
            return response;
        }
        let text = format!("dpa;dur={:.3}", own.as_secs_f64() * 1_000.0);
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers_mut().append(SERVER_TIMING, value);
        }
        response
    }
}

async fn no_answer(mut error: ForwardError, ids: &Ids, form: Form, version: Version) -> Response<AnswerBody> {
    let (decision, trace_id) = (ids.decision, &ids.trace);
    let chain = crate::telemetry::chain(&error);
    if error.is_told_elsewhere() {
        tracing::debug!(error = %chain, %decision, trace_id, "a permitted request has no answer");
    } else {
        tracing::warn!(error = %chain, %decision, trace_id, "a request that was sent on has no answer");
    }
    drop(chain);
    if let ForwardError::TooLarge { rest } = &mut error
        && let Some(rest) = rest.take()
        && version != Version::HTTP_2
    {
        let _gave_up = tokio::time::timeout(DRAIN_TIME, drain(rest)).await;
    }
    respond::no_answer(&error, decision, form)
}

/// Reads on what nobody takes, so that its sender reads the answer. On HTTP/2 the answer overtakes it, and the library
/// tells the sender to stop (RFC 9113 section 8.1).
async fn read_on(head: &Parts, body: Upload) {
    // Who waits for "100 Continue" has sent nothing yet, and asking for the body would send it.
    let has_sent = !head.headers.contains_key(header::EXPECT) && !body.is_end_stream();
    if has_sent && head.version != Version::HTTP_2 {
        let _gave_up = tokio::time::timeout(DRAIN_TIME, drain(body)).await;
    }
}

/// Reads a body on to its end or to the bound.
async fn drain(mut body: Upload) {
    let mut read: u64 = 0;
    while read < DRAIN_BYTES {
        match body.frame().await {
            Some(Ok(frame)) => {
                let more = frame.data_ref().map_or(0, bytes::Bytes::len);
                read += u64::try_from(more).unwrap_or(DRAIN_BYTES);
            }
            Some(Err(_)) | None => return,
        }
    }
}
