//! The records: one JSON object each, allow-listed fields only.
//!
//! Nothing of a request gets in but words that the policy or the settings have, and the few shapes that
//! cannot be personal: a UUID, a trace id, `DSR-98`, a SPIFFE ID that was proven. An unknown value is
//! its reason and its length.

use std::borrow::Cow;

use http::Method;
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use schemars::json_schema;
use schemars::transform::Transform;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;
use uuid::Uuid;

use super::log::OnFailure;
use super::policy_event::POLICY_EVENTS;
use super::policy_event::PolicyDetail;
use super::shown::Places;
use super::shown::Recipient;
use super::shown::Sources;
use super::shown::TransportRecord;
use super::shown::Unknowns;
use super::shown::caller_id;
use super::shown::customers_named;
use super::shown::listed_identity;
use super::shown::recipient;
use super::shown::sources;
use super::shown::transport;
use crate::decide::decision::Authority;
use crate::decide::decision::Decision;
use crate::decide::decision::Outcome;
use crate::decide::facts::Customers;
use crate::decide::facts::Facts;
use crate::decide::facts::Scope;
use crate::decide::reason::Code;
use crate::decide::reason::Kind;
use crate::decide::reason::Reason;
use crate::policy::CustomerId;
use crate::policy::Durability;
use crate::policy::Enforcement;
use crate::policy::Policy;
use crate::policy::terms::Operation;
use crate::schema::Ours;

/// What was done about a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Action {
    /// Permitted, forwarded.
    Allowed,
    /// Denied, refused.
    Denied,
    /// Denied, and forwarded all the same, because the enforcement is `observe`.
    Observed,
}

impl Action {
    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Observed => "observed",
        }
    }
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Ending {
    /// The answer was passed on to its end.
    Completed,
    /// One side went away before.
    Aborted,
    /// The sidecar ended it before: a limit, a stall, the end of a drain.
    Cut,
    /// Nothing was sent to the upstream.
    NotForwarded,
    /// The sidecar failed.
    Panicked,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Completed, Self::Aborted, Self::Cut, Self::NotForwarded, Self::Panicked];

    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::Cut => "cut",
            Self::NotForwarded => "not_forwarded",
            Self::Panicked => "panicked",
        }
    }
}

/// Which sidecar writes, and under which settings: the same in each record of a process.
#[derive(Clone, Debug)]
pub struct Writer {
    /// `service.name`.
    pub service: String,
    /// `service.instance`.
    pub instance: String,
    /// The log's id.
    pub log: Uuid,
    /// `decision_log.on_failure`.
    pub on_failure: &'static str,
    /// `decision_log.durability`.
    pub durability: &'static str,
    /// `enforcement`, of the sidecar as a whole.
    pub enforcement: Enforcement,
}

/// What a record says about the request beside its facts.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// When it was seen.
    pub time: Timestamp,
    /// The decision's id (UUIDv7).
    pub decision_id: Uuid,
    /// The request's id.
    pub request_id: Uuid,
    /// The trace it belongs to (W3C Trace Context), 32 hex digits.
    pub trace_id: &'a str,
    /// The method.
    pub method: &'a Method,
    /// Whether the policy is older than the settings allow: that alone denies.
    pub is_stale: bool,
}

/// A request and what was decided about it: one record for each customer that it concerns.
#[derive(Serialize, JsonSchema)]
struct DecisionRecord<'a> {
    /// Which kind of record.
    event: &'static str,
    /// When the request was seen, RFC 3339 with microseconds, UTC.
    time: Time,
    /// The decision's id, a UUIDv7.
    decision_id: Uuid,
    /// The request's id.
    request_id: Uuid,
    /// The trace it belongs to (W3C Trace Context), 32 hex digits.
    #[schemars(extend("pattern" = "^[0-9a-f]{32}$"))]
    trace_id: &'a str,
    /// `service.name` of the settings.
    service: &'a str,
    /// `service.instance` of the settings.
    instance: &'a str,
    /// The log's id: the same in each record of one log.
    log: Uuid,
    /// Whether the agreement allows it.
    #[schemars(extend("enum" = ["permit", "deny"]))]
    decision: &'static str,
    /// What was done about it.
    #[schemars(with = "Action")]
    action: &'static str,
    /// Whether a denial blocks.
    #[schemars(with = "Enforcement")]
    enforcement: &'static str,
    /// There if the sidecar as a whole observes, whatever the policy says.
    #[schemars(extend("enum" = ["sidecar"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_by: Option<&'static str>,
    /// What happens to a request without a record.
    #[schemars(with = "OnFailure")]
    on_failure: &'static str,
    /// When a record counts as made.
    #[schemars(with = "Durability")]
    durability: &'static str,
    /// The first of the reasons; only of a denial.
    #[schemars(with = "Option<ReasonCode>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// All reasons, in order; only of a denial.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    reasons: &'a [ReasonRecord<'a>],
    /// On what a permit rests; only of a permit.
    #[schemars(with = "Option<Authority>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'static str>,
    /// Whose data, if the policy has the customer.
    #[serde(skip_serializing_if = "Option::is_none")]
    customer_id: Option<&'a str>,
    /// How many customers the request names, known or not, if more than one; each known one has a record.
    #[serde(skip_serializing_if = "Option::is_none")]
    customers: Option<usize>,
    /// Who asks: the party's id, or the SPIFFE ID of a third party.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller_id: Option<&'a str>,
    /// What a party's proven identity is listed as in the policy; `*` in it stands for one segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller_identity: Option<&'a str>,
    /// Who gets the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<Recipient<'a>>,
    /// What for, if the policy has the purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<&'a str>,
    /// What is done.
    #[schemars(with = "Option<Operation>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    /// What data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data_categories: Vec<&'a str>,
    /// The customer's instruction that the request names.
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction_id: Option<&'a str>,
    /// The reference of a subscriber's request, such as `DSR-98`.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_ref: Option<&'a str>,
    /// The transfer on record that was needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer_ref: Option<&'a str>,
    /// Where the data is kept, and from where it is reached; not of a request outside the agreement.
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Places>,
    /// How the caller came.
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<TransportRecord<'a>>,
    /// The template of the route, never the path itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    /// The method.
    #[schemars(extend("enum" = METHODS))]
    method: &'static str,
    /// Where each fact comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    sources: Option<Sources>,
    /// Facts that are needed and not known.
    #[serde(skip_serializing_if = "Unknowns::is_empty")]
    unknown: Unknowns,
    /// The policy that was held against it.
    policy: PolicyRecord<'a>,
}

/// A rule that does not hold.
#[derive(Serialize, JsonSchema)]
struct ReasonRecord<'a> {
    /// Its stable code.
    #[schemars(with = "ReasonCode")]
    code: &'a str,
    /// The clause of the agreement.
    clause: &'a str,
    /// The duty behind it.
    obligation: &'a str,
    /// Known not to hold, or nobody can tell.
    #[schemars(with = "Kind")]
    kind: &'static str,
}

impl From<&Reason> for ReasonRecord<'_> {
    fn from(reason: &Reason) -> Self {
        Self {
            code: reason.code.as_str(),
            clause: reason.clause,
            obligation: reason.obligation,
            kind: reason.kind.as_str(),
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct PolicyRecord<'a> {
    /// `metadata.name`.
    pub(super) name: &'a str,
    /// `metadata.revision`.
    pub(super) revision: u64,
    /// SHA-256 over the list of its files, 64 hex digits.
    #[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
    pub(super) digest: &'a str,
}

impl<'a> From<&'a Policy> for PolicyRecord<'a> {
    fn from(policy: &'a Policy) -> Self {
        Self { name: policy.name.as_str(), revision: policy.revision, digest: &policy.digest }
    }
}

/// A moment, as RFC 3339 with microseconds.
pub(super) struct Time(pub(super) Timestamp);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
        serializer.serialize_str(&PRINTER.timestamp_to_string(&self.0))
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time"})
    }
}

/// The words that [`method_word`] says.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"];

/// Methods that may be logged by name; a made-up one could carry anything.
fn method_word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Encodes the records of one decision: one for each customer that it concerns, at least one. Each is a
/// JSON object without its closing brace: the writer adds what only it knows.
#[expect(clippy::too_many_arguments, reason = "a record joins everything that is known")]
pub fn decision(
    out: &mut super::Batch,
    writer: &Writer,
    about: &About<'_>,
    policy: &Policy,
    facts: &Facts<'_>,
    decision: &Decision<'_>,
    enforcement: Enforcement,
    action: Action,
) {
    let stale = about.is_stale.then_some(STALE);
    let reasons: Vec<ReasonRecord<'_>> =
        stale.into_iter().chain(decision.reasons().iter().map(ReasonRecord::from)).collect();
    let (word, authority, transfer_ref) = match &decision.outcome {
        Outcome::Permit { authority, transfer_ref } if !about.is_stale => {
            ("permit", Some(authority.as_str()), *transfer_ref)
        }
        Outcome::Permit { .. } | Outcome::Deny(_) => ("deny", None, None),
    };
    let mut write = |customer: Option<CustomerId>| {
        let customer = customer.and_then(|id| policy.customer(id));
        let instruction = facts.instruction.known().and_then(|place| customer?.instructions.get(*place));
        out.push(&DecisionRecord {
            event: "dpa.decision",
            time: Time(about.time),
            decision_id: about.decision_id,
            request_id: about.request_id,
            trace_id: about.trace_id,
            service: &writer.service,
            instance: &writer.instance,
            log: writer.log,
            decision: word,
            action: action.as_str(),
            enforcement: enforcement.as_str(),
            observed_by: (writer.enforcement == Enforcement::Observe).then_some("sidecar"),
            on_failure: writer.on_failure,
            durability: writer.durability,
            reason: reasons.first().map(|reason| reason.code),
            reasons: &reasons,
            authority,
            customer_id: customer.map(|customer| customer.id.as_str()),
            customers: customers_named(facts),
            caller_id: facts.caller.known().and_then(|caller| caller_id(caller, policy)),
            caller_identity: facts.caller.known().and_then(|caller| listed_identity(caller, policy)),
            recipient: recipient(facts, policy),
            purpose: facts.purpose.known().and_then(|id| policy.purpose(*id)).map(|purpose| purpose.id.as_str()),
            operation: facts.operation.known().map(|operation| operation.as_str()),
            data_categories: facts.data_categories.iter().map(|category| category.as_str()).collect(),
            instruction_id: instruction.map(|instruction| instruction.id.as_str()),
            request_ref: facts.request_ref.known().map(String::as_str),
            transfer_ref,
            location: (facts.scope == Scope::Within).then(|| Places::of(facts, policy)),
            transport: Some(transport(facts)),
            route: facts.route,
            method: method_word(about.method),
            sources: Some(sources(facts, policy)),
            unknown: Unknowns::of(facts, policy),
            policy: PolicyRecord::from(policy),
        });
    };
    match facts.customers.known() {
        None => write(None),
        Some(Customers::One(id)) => write(Some(*id)),
        Some(Customers::Several { known, .. }) if known.is_empty() => write(None),
        Some(Customers::Several { known, .. }) => known.iter().for_each(|id| write(Some(*id))),
    }
}

/// The code of a request that was denied since the policy is older than the settings allow.
pub const POLICY_STALE: &str = "policy_stale";

const STALE: ReasonRecord<'static> =
    ReasonRecord { code: POLICY_STALE, clause: "4.5", obligation: "cannot-comply-notice", kind: "gap" };

/// The code of a request that was refused with 400; no rule was weighed.
pub const REQUEST_UNREADABLE: &str = "request_unreadable";

/// Encodes the record of a request that was refused with 400 after its head was read. It is refused
/// whatever the enforcement is.
pub fn unreadable(
    out: &mut super::Batch,
    writer: &Writer,
    about: &About<'_>,
    policy: &Policy,
    enforcement: Enforcement,
) {
    out.push(&DecisionRecord {
        event: "dpa.decision",
        time: Time(about.time),
        decision_id: about.decision_id,
        request_id: about.request_id,
        trace_id: about.trace_id,
        service: &writer.service,
        instance: &writer.instance,
        log: writer.log,
        decision: "deny",
        action: Action::Denied.as_str(),
        enforcement: enforcement.as_str(),
        observed_by: None,
        on_failure: writer.on_failure,
        durability: writer.durability,
        reason: Some(REQUEST_UNREADABLE),
        reasons: &[ReasonRecord { code: REQUEST_UNREADABLE, clause: "P.3", obligation: "scope", kind: "gap" }],
        authority: None,
        customer_id: None,
        customers: None,
        caller_id: None,
        caller_identity: None,
        recipient: None,
        purpose: None,
        operation: None,
        data_categories: Vec::new(),
        instruction_id: None,
        request_ref: None,
        transfer_ref: None,
        location: None,
        transport: None,
        route: None,
        method: method_word(about.method),
        sources: None,
        unknown: Unknowns::default(),
        policy: PolicyRecord::from(policy),
    });
}

/// How a forwarded exchange ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// When.
    pub time: Timestamp,
    /// Of which decision.
    pub decision_id: Uuid,
    /// How.
    pub ending: Ending,
    /// The status that was answered; none if there was no answer.
    pub status: Option<u16>,
    /// Bytes of the request's body that were sent on.
    pub request_bytes: u64,
    /// Bytes of the answer's body that were passed on.
    pub response_bytes: u64,
    /// From the first sight of the request to this.
    pub duration: std::time::Duration,
}

/// How a forwarded exchange ended.
#[derive(Serialize, JsonSchema)]
struct OutcomeRecord<'a> {
    /// Which kind of record.
    event: &'static str,
    /// When, RFC 3339 with microseconds, UTC.
    time: Time,
    /// Of which decision.
    decision_id: Uuid,
    /// `service.name` of the settings.
    service: &'a str,
    /// `service.instance` of the settings.
    instance: &'a str,
    /// The log's id: the same in each record of one log.
    log: Uuid,
    /// How it ended.
    #[schemars(with = "Ending")]
    outcome: &'static str,
    /// The status that was answered; left out if there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// Bytes of the request's body that were sent on.
    request_bytes: u64,
    /// Bytes of the answer's body that were passed on.
    response_bytes: u64,
    /// Microseconds from the first sight of the request to this.
    duration_us: u64,
}

/// Encodes how a forwarded exchange ended.
pub fn outcome(out: &mut super::Batch, writer: &Writer, ended: &Ended) {
    out.push(&OutcomeRecord {
        event: "dpa.outcome",
        time: Time(ended.time),
        decision_id: ended.decision_id,
        service: &writer.service,
        instance: &writer.instance,
        log: writer.log,
        outcome: ended.ending.as_str(),
        status: ended.status,
        request_bytes: ended.request_bytes,
        response_bytes: ended.response_bytes,
        duration_us: u64::try_from(ended.duration.as_micros()).unwrap_or(u64::MAX),
    });
}

#[derive(Serialize, JsonSchema)]
pub(super) struct EventRecord<'a, D> {
    /// Which kind of record.
    pub(super) event: &'static str,
    /// What happened.
    pub(super) what: &'static str,
    /// When, RFC 3339 with microseconds, UTC.
    pub(super) time: Time,
    /// `service.name` of the settings.
    pub(super) service: &'a str,
    /// `service.instance` of the settings.
    pub(super) instance: &'a str,
    /// The log's id: the same in each record of one log.
    pub(super) log: Uuid,
    #[serde(flatten)]
    pub(super) detail: D,
}

/// What happened to the log itself.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct LogDetail {
    /// The number of a segment, from 1: of this one (`opened`), of one that is removed (`retention`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<u64>,
    /// Why a segment begins; only of `opened`.
    #[schemars(extend("enum" = ["new", "continued", "rotated", "another_key", "sync_failed", "removed", "damaged"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
    /// The key that the checkpoints of a segment are signed with; only of `opened`.
    #[schemars(extend("pattern" = "^[0-9a-f]{16}$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Bytes of a torn end that were cut off; only of `torn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_bytes: Option<u64>,
    /// Requests that were refused because they could not be recorded; only of `regained`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
}

/// How far a log has come.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Stand<'a> {
    /// Records before this one.
    pub count: u64,
    /// The hash of the last of them.
    #[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
    pub head: &'a str,
    /// Digest of the policy in force.
    #[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
    pub policy_digest: &'a str,
    /// Requests that this process let through before their record was there; some records may have come later.
    pub unrecorded: u64,
}

/// How far the log has come; signed if the sidecar has a key.
#[derive(Serialize, JsonSchema)]
struct CheckpointRecord<'a> {
    /// Which kind of record.
    event: &'static str,
    /// When, RFC 3339 with microseconds, UTC.
    time: Time,
    /// `service.name` of the settings.
    service: &'a str,
    /// `service.instance` of the settings.
    instance: &'a str,
    /// The log's id: the same in each record of one log.
    log: Uuid,
    #[serde(flatten)]
    stand: Stand<'a>,
    /// The key it is signed with; the signer adds it.
    #[schemars(extend("pattern" = "^[0-9a-f]{16}$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'a str>,
    /// Ed25519 over the line before `,"signature":`, in hex; the signer adds it.
    #[schemars(extend("pattern" = "^[0-9a-f]{128}$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<&'a str>,
}

/// Encodes how far the log has come, unsigned.
pub fn checkpoint(out: &mut super::Batch, writer: &Writer, time: Timestamp, stand: &Stand<'_>) {
    out.push(&CheckpointRecord {
        event: "dpa.checkpoint",
        time: Time(time),
        service: &writer.service,
        instance: &writer.instance,
        log: writer.log,
        stand: *stand,
        key_id: None,
        signature: None,
    });
}

/// Encodes what happened to the log itself: `opened`, `torn`, `lost`, `regained`, `retention`.
pub fn log_event(out: &mut super::Batch, writer: &Writer, time: Timestamp, what: &'static str, detail: &LogDetail) {
    out.push(&EventRecord {
        event: "dpa.log",
        what,
        time: Time(time),
        service: &writer.service,
        instance: &writer.instance,
        log: writer.log,
        detail,
    });
}

/// Requests that nobody could read, summed up: they have no decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Unread {
    /// Heads that are no HTTP.
    pub malformed: u64,
    /// Heads over a limit.
    pub too_large: u64,
    /// Heads that did not come in time.
    pub timed_out: u64,
    /// TLS handshakes that failed or did not end in time.
    pub handshake: u64,
    /// Requests whose caller went away while they waited for keys of an issuer of tokens.
    pub gone: u64,
    /// Requests that were turned away because too many were under way.
    pub overloaded: u64,
    /// Requests that the sidecar itself failed at before they were decided: a mistake in this program.
    pub panicked: u64,
    /// Streams of HTTP/2 that the HTTP layer refused: a head that is none or too large, or one stream too many.
    pub refused: u64,
    /// Connections of HTTP/2 that were closed since they brought many frames and no requests.
    pub flooded: u64,
}

/// Encodes a sum of unread requests.
pub fn unread(out: &mut super::Batch, writer: &Writer, time: Timestamp, unread: Unread) {
    out.push(&EventRecord {
        event: "dpa.unread",
        what: "refused",
        time: Time(time),
        service: &writer.service,
        instance: &writer.instance,
        log: writer.log,
        detail: unread,
    });
}

/// The code of a reason.
struct ReasonCode;

impl JsonSchema for ReasonCode {
    fn schema_name() -> Cow<'static, str> {
        "ReasonCode".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let codes: Vec<&str> =
            Code::ALL.iter().map(|code| code.as_str()).chain([POLICY_STALE, REQUEST_UNREADABLE]).collect();
        json_schema!({"type": "string", "enum": codes})
    }
}

/// What a `dpa.log` record may say.
const LOG_EVENTS: [&str; 5] = ["opened", "torn", "lost", "regained", "retention"];

/// What a line of the decision log may be, as a JSON Schema. Later versions may add keys.
#[must_use]
pub fn schema() -> Schema {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let events = [
        event::<DecisionRecord<'_>>(&mut generator, "dpa.decision", &[]),
        event::<OutcomeRecord<'_>>(&mut generator, "dpa.outcome", &[]),
        event::<EventRecord<'_, PolicyDetail<'_>>>(&mut generator, "dpa.policy", &POLICY_EVENTS),
        event::<EventRecord<'_, LogDetail>>(&mut generator, "dpa.log", &LOG_EVENTS),
        event::<CheckpointRecord<'_>>(&mut generator, "dpa.checkpoint", &[]),
        event::<EventRecord<'_, Unread>>(&mut generator, "dpa.unread", &["refused"]),
    ];
    let mut schema = json_schema!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a line of the decision log",
        "description": "A record: one JSON object a line, told apart by `event`. Later versions may add keys.",
        "oneOf": events,
    });
    schema.insert("$defs".to_owned(), Value::Object(generator.take_definitions(false)));
    Ours.transform(&mut schema);
    schema
}

/// The records of one event.
fn event<T: JsonSchema>(generator: &mut SchemaGenerator, name: &str, whats: &[&str]) -> Schema {
    let mut schema = T::json_schema(generator);
    if let Some(Value::Object(event)) = schema.pointer_mut("/properties/event") {
        event.insert("const".to_owned(), name.into());
    }
    if let Some(Value::Object(what)) = schema.pointer_mut("/properties/what") {
        what.insert("enum".to_owned(), json!(whats));
    }
    // What the writer adds to each.
    let hash = "^[0-9a-f]{64}$";
    let sealed = [
        ("seq", json!({"description": "Its number in the log, from 1.", "type": "integer", "minimum": 1})),
        ("prev", json!({"description": "The hash of the record before it.", "type": "string", "pattern": hash})),
        (
            "hash",
            json!({"description": "SHA-256 over `prev` and the line before `,\"hash\":`.", "type": "string", "pattern": hash}),
        ),
    ];
    for (key, value) in sealed {
        if let Some(Value::Object(properties)) = schema.pointer_mut("/properties") {
            properties.insert(key.to_owned(), value);
        }
        if let Some(Value::Array(required)) = schema.pointer_mut("/required") {
            required.push(key.into());
        }
    }
    schema
}
