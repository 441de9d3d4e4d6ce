//! The records: one JSON object each, allow-listed fields only.
//!
//! Nothing of a request gets in but words that the policy or the settings have, and the few shapes that
//! cannot be personal: a UUID, a trace id, `DSR-98`, a SPIFFE ID that was proven. An unknown value is
//! its reason and its length.

use http::Method;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::decide::decision::Decision;
use crate::decide::decision::Outcome;
use crate::decide::facts::Caller;
use crate::decide::facts::Customers;
use crate::decide::facts::Direction;
use crate::decide::facts::Fact;
use crate::decide::facts::Facts;
use crate::decide::facts::Scope;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::decide::reason::Reason;
use crate::policy::CustomerId;
use crate::policy::Enforcement;
use crate::policy::Party;
use crate::policy::Policy;

/// What was done about a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The answer was passed on to its end.
    Completed,
    /// One side went away before.
    Aborted,
    /// Nothing was sent to the upstream.
    NotForwarded,
    /// The sidecar failed.
    Panicked,
}

impl Ending {
    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Aborted => "aborted",
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
}

#[derive(Serialize)]
struct DecisionRecord<'a> {
    event: &'static str,
    time: Time,
    decision_id: Uuid,
    request_id: Uuid,
    trace_id: &'a str,
    service: &'a str,
    instance: &'a str,
    log: Uuid,
    decision: &'static str,
    action: &'static str,
    enforcement: &'static str,
    on_failure: &'static str,
    durability: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    reasons: &'a [ReasonRecord<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    customer_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<Recipient<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data_categories: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_ref: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer_ref: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Places>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<TransportRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sources: Option<Sources>,
    #[serde(skip_serializing_if = "Unknowns::is_empty")]
    unknown: Unknowns,
    policy: PolicyRecord<'a>,
}

#[derive(Serialize)]
struct ReasonRecord<'a> {
    code: &'a str,
    clause: &'a str,
    obligation: &'a str,
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

#[derive(Serialize)]
struct Recipient<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

#[derive(Serialize)]
struct Places {
    storage: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<String>,
}

#[derive(Serialize)]
struct TransportRecord {
    tls_version: &'static str,
    proof: &'static str,
}

#[derive(Default, Serialize)]
struct Sources {
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    customer: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriber: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_ref: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<&'static str>,
}

/// Facts that are needed and not known, each with why.
#[derive(Default, Serialize)]
struct Unknowns {
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<Unknown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    customer: Option<Unknown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<Unknown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<Unknown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriber: Option<Unknown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction: Option<Unknown>,
}

impl Unknowns {
    fn is_empty(&self) -> bool {
        let Self { caller, customer, purpose, operation, subscriber, instruction } = self;
        [caller, customer, purpose, operation, subscriber, instruction].iter().all(|unknown| unknown.is_none())
    }
}

#[derive(Serialize)]
struct Unknown {
    why: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<usize>,
}

impl Unknown {
    fn of<T>(fact: &Fact<T>) -> Option<Self> {
        match fact {
            Fact::Known(..) | Fact::None => None,
            Fact::Unknown(why) => Some(Self {
                why: why.as_str(),
                length: match why {
                    Why::NotInPolicy { length } => Some(*length),
                    Why::Missing | Why::Malformed | Why::Unproven | Why::Contradicted => None,
                },
            }),
        }
    }
}

#[derive(Serialize)]
struct PolicyRecord<'a> {
    name: &'a str,
    revision: u64,
    digest: &'a str,
}

impl<'a> From<&'a Policy> for PolicyRecord<'a> {
    fn from(policy: &'a Policy) -> Self {
        Self { name: policy.name.as_str(), revision: policy.revision, digest: &policy.digest }
    }
}

/// A moment, as RFC 3339 with microseconds.
struct Time(Timestamp);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.0))
    }
}

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

/// Who sent the request, as a word that may be logged: a party's id, or the SPIFFE ID of a third party.
fn caller_id<'a>(caller: &'a Caller, policy: &'a Policy) -> Option<&'a str> {
    match caller.party {
        Some(Party::Own(id)) => policy.caller(id).map(|caller| caller.id.as_str()),
        Some(Party::Subprocessor(id)) => policy.subprocessor(id).map(|entry| entry.id.as_str()),
        Some(Party::Customer(id)) => policy.customer(id).map(|customer| customer.id.as_str()),
        None => caller.identity.is_spiffe().then(|| caller.identity.as_str()),
    }
}

fn recipient<'a>(facts: &'a Facts<'_>, policy: &'a Policy) -> Option<Recipient<'a>> {
    let caller = facts.caller.known()?;
    Some(match facts.direction {
        Direction::Egress(id) => {
            Recipient { r#type: "subprocessor", id: policy.subprocessor(id).map(|entry| entry.id.as_str()) }
        }
        Direction::Ingress => {
            let kind = match caller.party {
                Some(Party::Own(_)) => "internal",
                Some(Party::Subprocessor(_)) => "subprocessor",
                Some(Party::Customer(_)) => "customer",
                None => "third_party",
            };
            Recipient { r#type: kind, id: caller_id(caller, policy) }
        }
    })
}

/// Where the caller is: by the policy, or by its claim.
fn access(facts: &Facts<'_>, policy: &Policy) -> Option<String> {
    match facts.caller.known()?.party? {
        Party::Own(id) => {
            let location = policy.caller(id)?.location.or(facts.location.known().copied())?;
            Some(location.to_string())
        }
        Party::Subprocessor(id) => {
            let places = &policy.subprocessor(id)?.access_locations;
            Some(places.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
        Party::Customer(_) => None,
    }
}

fn sources(facts: &Facts<'_>) -> Sources {
    let word = |source: Option<Source>| source.map(Source::as_str);
    Sources {
        caller: word(facts.caller.source()),
        customer: word(facts.customers.source()),
        purpose: word(facts.purpose.source()),
        operation: word(facts.operation.source()),
        subscriber: word(facts.subscriber.source()),
        instruction: word(facts.instruction.source()),
        request_ref: word(facts.request_ref.source()),
        location: word(facts.location.source()),
    }
}

fn transport(facts: &Facts<'_>) -> TransportRecord {
    let tls_version = match (facts.transport.tls, facts.transport.is_unix) {
        (Some(version), _) => version.as_str(),
        (None, true) => "unix",
        (None, false) => "none",
    };
    TransportRecord { tls_version, proof: facts.caller.source().map_or("none", Source::as_str) }
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
    let reasons: Vec<ReasonRecord<'_>> = decision.reasons().iter().map(ReasonRecord::from).collect();
    let (authority, transfer_ref) = match &decision.outcome {
        Outcome::Permit { authority, transfer_ref } => (Some(authority.as_str()), *transfer_ref),
        Outcome::Deny(_) => (None, None),
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
            decision: decision.as_str(),
            action: action.as_str(),
            enforcement: enforcement.as_str(),
            on_failure: writer.on_failure,
            durability: writer.durability,
            reason: reasons.first().map(|reason| reason.code),
            reasons: &reasons,
            authority,
            customer_id: customer.map(|customer| customer.id.as_str()),
            caller_id: facts.caller.known().and_then(|caller| caller_id(caller, policy)),
            recipient: recipient(facts, policy),
            purpose: facts.purpose.known().and_then(|id| policy.purpose(*id)).map(|purpose| purpose.id.as_str()),
            operation: facts.operation.known().map(|operation| operation.as_str()),
            data_categories: facts.data_categories.iter().map(|category| category.as_str()).collect(),
            instruction_id: instruction.map(|instruction| instruction.id.as_str()),
            request_ref: facts.request_ref.known().map(String::as_str),
            transfer_ref,
            location: (facts.scope == Scope::Within)
                .then(|| Places { storage: facts.storage.to_string(), access: access(facts, policy) }),
            transport: Some(transport(facts)),
            route: facts.route,
            method: method_word(about.method),
            sources: Some(sources(facts)),
            unknown: Unknowns {
                caller: Unknown::of(&facts.caller).filter(|_| facts.scope != Scope::Outside),
                customer: Unknown::of(&facts.customers),
                purpose: Unknown::of(&facts.purpose),
                operation: Unknown::of(&facts.operation),
                subscriber: Unknown::of(&facts.subscriber),
                instruction: Unknown::of(&facts.instruction),
            },
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
        on_failure: writer.on_failure,
        durability: writer.durability,
        reason: Some(REQUEST_UNREADABLE),
        reasons: &[ReasonRecord { code: REQUEST_UNREADABLE, clause: "P.3", obligation: "scope", kind: "gap" }],
        authority: None,
        customer_id: None,
        caller_id: None,
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

#[derive(Serialize)]
struct OutcomeRecord<'a> {
    event: &'static str,
    time: Time,
    decision_id: Uuid,
    service: &'a str,
    instance: &'a str,
    log: Uuid,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    request_bytes: u64,
    response_bytes: u64,
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

#[derive(Serialize)]
struct EventRecord<'a, D> {
    event: &'static str,
    what: &'static str,
    time: Time,
    service: &'a str,
    instance: &'a str,
    log: Uuid,
    #[serde(flatten)]
    detail: D,
}

/// Encodes what happened to the log itself: `opened`, `torn`, `regained`.
pub fn log_event(
    out: &mut super::Batch,
    writer: &Writer,
    time: Timestamp,
    what: &'static str,
    lost_bytes: Option<u64>,
) {
    #[derive(Serialize)]
    struct Detail {
        #[serde(skip_serializing_if = "Option::is_none")]
        lost_bytes: Option<u64>,
    }
    out.push(&EventRecord {
        event: "dpa.log",
        what,
        time: Time(time),
        service: &writer.service,
        instance: &writer.instance,
        log: writer.log,
        detail: Detail { lost_bytes },
    });
}

/// Encodes that a policy was loaded, and whether the sidecar as a whole observes.
pub fn policy_event(
    out: &mut super::Batch,
    writer: &Writer,
    time: Timestamp,
    policy: &Policy,
    enforcement: Enforcement,
) {
    #[derive(Serialize)]
    struct Detail<'a> {
        enforcement: &'static str,
        policy: PolicyRecord<'a>,
    }
    out.push(&EventRecord {
        event: "dpa.policy",
        what: "loaded",
        time: Time(time),
        service: &writer.service,
        instance: &writer.instance,
        log: writer.log,
        detail: Detail { enforcement: enforcement.as_str(), policy: PolicyRecord::from(policy) },
    });
}

/// Requests that nobody could read, summed up: they have no decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// Heads that are no HTTP.
    pub malformed: u64,
    /// Heads over a limit.
    pub too_large: u64,
    /// Heads that did not come in time.
    pub timed_out: u64,
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
