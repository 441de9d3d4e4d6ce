//! Step 8: answers. Refusals and failures are problem documents (RFC 9457).
//!
//! Nothing of the request is in them.

use std::fmt::Write as _;

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header;
use http_body_util::Either;
use http_body_util::Full;
use serde::Serialize;
use uuid::Uuid;

use crate::decide::reason::clause_text;
use crate::forward::ForwardError;
use crate::forward::Relay;
use crate::gate::DPA_DECISION_ID;
use crate::gate::Refusal;
use crate::gate::Refused;
use crate::gate::id_value;
use crate::observed::GRPC;
use crate::observed::is_plain_call;
use crate::record::entry::POLICY_STALE;
use crate::record::entry::REQUEST_UNREADABLE;

/// The body of an answer: ours, or the upstream's.
pub type AnswerBody = Either<Full<Bytes>, Relay>;

/// Codes of failures that are no decision.
const DECISION_UNRECORDED: &str = "decision_unrecorded";
/// The code where this program failed at a request.
pub const INTERNAL_ERROR: &str = "internal_error";
const OVERLOADED: &str = "overloaded";
const UPSTREAM_UNAVAILABLE: &str = "upstream_unavailable";
const UPSTREAM_TIMEOUT: &str = "upstream_timeout";
const REQUEST_TOO_LARGE: &str = "request_too_large";

/// Why a permitted request has no answer of the upstream: the words of [`reason_of`] and [`INTERNAL_ERROR`].
pub const FAILURES: [&str; 6] =
    [UPSTREAM_UNAVAILABLE, UPSTREAM_TIMEOUT, OVERLOADED, REQUEST_TOO_LARGE, REQUEST_UNREADABLE, INTERNAL_ERROR];

/// In which form a caller is told that there is no answer of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A problem document.
    Problem,
    /// The status of a call, in the head of an answer without a body: "trailers only", as gRPC calls it.
    Grpc,
}

impl Form {
    /// What a request with these headers understands.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        if is_plain_call(headers) { Self::Grpc } else { Self::Problem }
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The status of a call, as gRPC has it for statuses of HTTP.
fn grpc_status(status: u16) -> &'static str {
    match status {
        401 => "16",
        403 => "7",
        502..=504 => "14",
        // RESOURCE_EXHAUSTED, which it has for messages that are too large.
        413 => "8",
        400 | 500 => "13",
        _ => "2",
    }
}

/// The status of a call whose stream its service reset for this reason ("Errors" of gRPC's protocol over HTTP/2).
fn status_of_reset(reason: Reason) -> &'static str {
    match reason {
        // UNAVAILABLE: it did nothing with the call. Callers may ask again for this one alone.
        Reason::REFUSED_STREAM => "14",
        Reason::CANCEL => "1",
        Reason::ENHANCE_YOUR_CALM => "8",
        Reason::INADEQUATE_SECURITY => "7",
        // INTERNAL, also of those that are in no list.
        _ => "13",
    }
}

/// Text as it may stand in `grpc-message`: what is not printable ASCII, and `%`, in escapes.
fn grpc_message(text: &str) -> HeaderValue {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => escaped.push(char::from(byte)),
            _ => {
                let _infallible = write!(escaped, "%{byte:02X}");
            }
        }
    }
    HeaderValue::try_from(escaped).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A problem document.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    clause: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_digest: Option<&'a str>,
}

/// The stable URI of a reason. It names the reason and leads nowhere (RFC 9457 section 3.1.1).
fn type_of(code: &str) -> String {
    format!("tag:dpa-sidecar.example,2026:reason/{code}")
}

fn answer(document: &Document<'_>, decision: Option<Uuid>, form: Form) -> Response<AnswerBody> {
    let mut response = match form {
        Form::Problem => problem(document),
        Form::Grpc => call_failed(document),
    };
    if let Some(decision) = decision {
        response.headers_mut().insert(DPA_DECISION_ID, id_value(decision));
    }
    response
}

fn call_failed(document: &Document<'_>) -> Response<AnswerBody> {
    let mut response = Response::new(Either::Left(Full::default()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(GRPC));
    headers.insert(GRPC_STATUS, HeaderValue::from_static(grpc_status(document.status)));
    headers.insert(GRPC_MESSAGE, grpc_message(&format!("{}: {}", document.reason, document.title)));
    response
}

fn problem(document: &Document<'_>) -> Response<AnswerBody> {
    let mut body = serde_json::to_vec(document).unwrap_or_default();
    body.push(b'\n');
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = StatusCode::from_u16(document.status).unwrap_or(StatusCode::FORBIDDEN);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if document.status == 503 {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Answers a request that the gate refused.
#[must_use]
pub fn refused(refusal: &Refusal, form: Form) -> Response<AnswerBody> {
    let unreadable;
    let (code, title, status, detail, clause) = match &refusal.why {
        Refused::Rule(reason) => {
            let code = reason.code;
            let text = refusal.policy.clause_text(reason.clause).unwrap_or_else(|| clause_text(reason.clause));
            (code.as_str(), code.title(), code.status(), text, Some(reason.clause))
        }
        Refused::Unreadable(why) => {
            unreadable = why.to_string();
            let title = "The request could be read in more than one way, or in none.";
            (REQUEST_UNREADABLE, title, 400, unreadable.as_str(), None)
        }
        Refused::Stale => (
            POLICY_STALE,
            "The policy is older than it may be, so nothing was forwarded.",
            503,
            "The sidecar waits for a policy that was issued more recently.",
            None,
        ),
        Refused::Unrecorded(_) => (
            DECISION_UNRECORDED,
            "The decision could not be written down, so nothing was forwarded.",
            503,
            "The decision log does not take records at the moment; ask again.",
            None,
        ),
    };
    let document = Document {
        r#type: type_of(code),
        title,
        status,
        detail,
        instance: Some(refusal.decision.urn().to_string()),
        reason: code,
        clause,
        policy_digest: Some(&refusal.policy.digest),
    };
    let mut response = answer(&document, Some(refusal.decision), form);
    if status == 401 && form == Form::Problem {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(refusal.challenge));
    }
    response
}

/// The code that says why a permitted request has no answer of the upstream.
#[must_use]
pub fn reason_of(error: &ForwardError) -> &'static str {
    match error {
        ForwardError::CallerBroke(_) => REQUEST_UNREADABLE,
        ForwardError::TooLarge { .. } => REQUEST_TOO_LARGE,
        ForwardError::Overloaded { .. } => OVERLOADED,
        ForwardError::Connect { .. }
        | ForwardError::Down { .. }
        | ForwardError::Tls { .. }
        | ForwardError::Broken { .. }
        | ForwardError::Switched { .. }
        | ForwardError::Coded { .. } => UPSTREAM_UNAVAILABLE,
        ForwardError::TimedOut { .. } => UPSTREAM_TIMEOUT,
    }
}

/// Answers a request that was sent on, or was about to be, and got no answer.
#[must_use]
pub fn no_answer(error: &ForwardError, decision: Uuid, form: Form) -> Response<AnswerBody> {
    let (title, detail) = match error {
        ForwardError::CallerBroke(_) => (
            "The request broke off, or its body is not framed as it says.",
            "The sidecar permitted the request and could not read it to its end.",
        ),
        ForwardError::TooLarge { .. } => (
            "The body of the request is larger than its route allows.",
            "The sidecar permitted the request; the limit is one of its settings.",
        ),
        ForwardError::Overloaded { .. } => (
            "All connections to the data service are in use.",
            "The sidecar permitted the request, and no connection came free in time; ask again.",
        ),
        ForwardError::Connect { .. }
        | ForwardError::Down { .. }
        | ForwardError::Tls { .. }
        | ForwardError::Broken { .. }
        | ForwardError::Switched { .. }
        | ForwardError::Coded { .. } => (
            "The upstream cannot be reached or broke off.",
            "The sidecar permitted the request; the upstream that it goes to did not answer.",
        ),
        ForwardError::TimedOut { .. } => (
            "The upstream did not answer in time.",
            "The sidecar permitted the request; the upstream that it goes to took too long.",
        ),
    };
    let mut response = failure(reason_of(error), title, error.status(), detail, Some(decision), form);
    if let (Form::Grpc, Some(reason)) = (form, error.reset()) {
        response.headers_mut().insert(GRPC_STATUS, HeaderValue::from_static(status_of_reset(reason)));
    }
    response
}

/// Answers a request that came while too many were under way: it was not decided on, so it has no decision.
#[must_use]
pub fn overloaded(form: Form) -> Response<AnswerBody> {
    let title = "Too many requests are under way.";
    failure(OVERLOADED, title, 503, "The sidecar decided nothing and forwarded nothing; ask again.", None, form)
}

/// Answers a request whose head has more lines than it may have, as the HTTP layer does one with more bytes.
#[must_use]
pub fn head_too_large() -> Response<AnswerBody> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response
}

/// Answers a request at which this program failed.
#[must_use]
pub fn failed(decision: Uuid, form: Form) -> Response<AnswerBody> {
    let title = "The sidecar failed at this request.";
    let detail = "This is a mistake in the sidecar. Whether the request was permitted stands in the decision log.";
    failure(INTERNAL_ERROR, title, 500, detail, Some(decision), form)
}

fn failure(
    code: &str,
    title: &str,
    status: u16,
    detail: &str,
    decision: Option<Uuid>,
    form: Form,
) -> Response<AnswerBody> {
    let document = Document {
        r#type: type_of(code),
        title,
        status,
        detail,
        instance: decision.map(|decision| decision.urn().to_string()),
        reason: code,
        clause: None,
        policy_digest: None,
    };
    answer(&document, decision, form)
}
