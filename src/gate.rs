//! Steps 3 to 6 in one place: who, about what, what follows, written down.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use jiff::Timestamp;
use uuid::Uuid;

use crate::decide::decide;
use crate::decide::decision::Decision;
use crate::decide::facts::Customers;
use crate::decide::facts::Fact;
use crate::decide::facts::Facts;
use crate::decide::facts::Scope;
use crate::decide::reason::Code;
use crate::decide::reason::Reason;
use crate::establish::establish;
use crate::establish::route::Passage;
use crate::establish::route::Routes;
use crate::identify::Trust;
use crate::identify::identify;
use crate::keys::KeySource;
use crate::observed::Observed;
use crate::observed::Unreadable;
use crate::policy::Enforcement;
use crate::policy::Policy;
use crate::record::Batch;
use crate::record::entry;
use crate::record::entry::About;
use crate::record::entry::Action;
use crate::record::entry::Ended;
use crate::record::entry::Ending;
use crate::record::entry::Unread;
use crate::record::log::OnFailure;
use crate::record::recorder::Pass;
use crate::record::recorder::Receipt;
use crate::record::recorder::RecordError;
use crate::record::recorder::Recorder;
use crate::record::tally::Primary;
use crate::record::tally::Tally;
use crate::standing::Standing;
use crate::telemetry::Metrics;

/// `DPA-Decision-Id`, on the request that is forwarded and on every answer.
pub const DPA_DECISION_ID: HeaderName = HeaderName::from_static("dpa-decision-id");

/// The trace of a request (W3C Trace Context section 3.2).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What callers and services call a request.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An id as a header value.
#[must_use]
pub fn id_value(id: Uuid) -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    let text = id.hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Steps 3 to 5. No I/O, no clock: the same inputs always give the same decision.
///
/// # Errors
///
/// [`Unreadable`] if `DPA-Context` cannot be read or contradicts the route.
pub fn weigh<'a>(
    seen: &Observed<'_>,
    policy: &'a Policy,
    trust: &Trust,
    routes: &'a Routes,
) -> Result<(Facts<'a>, Decision<'a>), Unreadable> {
    let proven = identify(seen, trust, policy);
    let facts = establish(seen, proven, routes, policy)?;
    let decision = decide(policy, &facts, seen.time);
    Ok((facts, decision))
}

/// What is done about a decision: a denial passes only where the enforcement is `observe`.
#[must_use]
pub fn act(decision: &Decision<'_>, sidecar: Enforcement) -> (Enforcement, Action) {
    let enforcement = match sidecar {
        Enforcement::Observe => Enforcement::Observe,
        Enforcement::Enforce => decision.enforcement,
    };
    let action = match (decision.reasons().is_empty(), enforcement) {
        (true, _) => Action::Allowed,
        (false, Enforcement::Observe) => Action::Observed,
        (false, Enforcement::Enforce) => Action::Denied,
    };
    (enforcement, action)
}

/// Everything that a decision is made with; shared by all workers. The policy is replaced whole.
#[derive(Debug)]
pub struct Rules {
    /// The agreement: what is in force at this moment.
    pub standing: Arc<Standing>,
    /// Who is believed.
    pub trust: Trust,
    /// Where the keys of the issuers come from, in the order of the issuers.
    pub keys: Vec<Arc<KeySource>>,
    /// What paths mean.
    pub routes: Arc<Routes>,
    /// Whether this sidecar as a whole observes.
    pub enforcement: Enforcement,
    /// What happens to a request that cannot be recorded.
    pub on_failure: OnFailure,
}

/// The gate of one worker. `Send + Sync`: any door may stand in front of it.
#[derive(Clone, Debug)]
pub struct Gate {
    rules: Arc<Rules>,
    recorder: Recorder,
    metrics: Metrics,
}

/// Ids of one request.
#[derive(Clone, Debug)]
pub struct Ids {
    /// Of the decision (UUIDv7).
    pub decision: Uuid,
    /// Of the request: the caller's `X-Request-Id` if it is a UUID, else a new one.
    pub request: Uuid,
    /// Of the trace: the caller's `traceparent` if it is well formed, else a new one.
    pub trace: String,
    /// A `traceparent` to send on, if the caller's was not well formed.
    pub new_traceparent: Option<HeaderValue>,
}

impl Ids {
    /// Takes or makes the ids of a request that was seen at `time`.
    #[must_use]
    pub fn of(headers: &HeaderMap, time: Timestamp) -> Self {
        let seconds = u64::try_from(time.as_second()).unwrap_or(0);
        let nanos = u32::try_from(time.subsec_nanosecond()).unwrap_or(0);
        let decision = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos));
        let named = only(headers, &X_REQUEST_ID).and_then(|value| value.to_str().ok());
        let request = named.filter(|text| text.len() == 36).and_then(|text| Uuid::try_parse(text).ok());
        let (trace, new_traceparent) = match only(headers, &TRACEPARENT).and_then(trace_id) {
            Some(trace) => (trace, None),
            None => {
                let (mut trace, mut parent) = ([0; 32], [0; 32]);
                let trace = &*Uuid::new_v4().simple().encode_lower(&mut trace);
                let parent = &*Uuid::new_v4().simple().encode_lower(&mut parent);
                let parent = parent.get(16..).unwrap_or("0000000000000001");
                let header = HeaderValue::try_from(["00-", trace, "-", parent, "-00"].concat()).ok();
                (trace.to_owned(), header)
            }
        };
        Self { decision, request: request.unwrap_or_else(Uuid::new_v4), trace, new_traceparent }
    }
}

/// The value of a header that stands there once: with two, servers differ in which they read.
#[must_use]
pub fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The trace id of a well-formed `traceparent` (W3C Trace Context section 3.2).
fn trace_id(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let mut parts = text.split('-');
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            && part.bytes().any(|b| b != b'0')
    };
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_good = version == "00" && hex(trace, 32) && hex(parent, 16) && flags.len() == 2;
    (is_good && flags.bytes().all(|b| b.is_ascii_hexdigit()) && parts.next().is_none()).then(|| trace.to_owned())
}

/// What the gate says.
#[derive(Debug)]
pub enum Verdict {
    /// The request may be sent on.
    Pass(Clearance),
    /// It may not.
    Refuse(Refusal),
}

/// A refusal, as far as the caller may know it.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The decision's id.
    pub decision: Uuid,
    /// Why.
    pub why: Refused,
    /// The policy that was decided with.
    pub policy: Arc<Policy>,
    /// Ways to prove who one is, for `WWW-Authenticate`.
    pub challenge: &'static str,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A rule does not hold.
    Rule(Reason),
    /// The policy is older than the settings allow.
    Stale,
    /// The request could be read in two ways, or in none.
    Unreadable(Unreadable),
    /// Its decision could not be written down.
    Unrecorded(RecordError),
}

/// Leave to forward one request: its decision is accounted for.
///
/// Only [`Gate::check`] makes one, from a [`Receipt`] that only `record` makes; `forward` takes it by
/// value. So "forwarded but not decided" and "decided but not accounted for" do not compile:
///
/// ```compile_fail,E0451
/// use dpa_sidecar::gate::Clearance;
/// fn forge(receipt: dpa_sidecar::record::recorder::Receipt) -> Clearance {
///     Clearance { receipt, context: None, passage: todo!(), outcome: todo!() }
/// }
/// ```
///
/// ```compile_fail,E0423
/// fn forge() -> dpa_sidecar::record::recorder::Receipt {
///     dpa_sidecar::record::recorder::Receipt(todo!())
/// }
/// ```
///
/// ```compile_fail,E0382
/// use dpa_sidecar::gate::Clearance;
/// fn forward(_: Clearance) {}
/// fn twice(clearance: Clearance) {
///     forward(clearance);
///     forward(clearance);
/// }
/// ```
///
/// It carries the guard that writes the outcome: dropped early, it writes `aborted` or `panicked`.
#[derive(Debug)]
pub struct Clearance {
    receipt: Receipt,
    context: Option<HeaderValue>,
    passage: Arc<Passage>,
    outcome: OutcomeGuard,
}

impl Clearance {
    /// The proof that the decision is accounted for.
    #[must_use]
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// The decision's id.
    #[must_use]
    pub fn decision(&self) -> Uuid {
        self.outcome.ended.decision_id
    }

    /// `DPA-Context` as established, to be sent on.
    #[must_use]
    pub fn context(&self) -> Option<&HeaderValue> {
        self.context.as_ref()
    }

    /// What may be exchanged on its route.
    #[must_use]
    pub fn passage(&self) -> &Passage {
        &self.passage
    }

    /// Gives up the leave and keeps the duty to say how it ended.
    #[must_use]
    pub fn into_outcome(self) -> OutcomeGuard {
        self.outcome
    }
}

/// How far the body of a request has come on its way to the upstream.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    bytes: AtomicU64,
    moved: AtomicU64,
    has_ended: AtomicBool,
    has_failed: AtomicBool,
    was_cut: AtomicBool,
}

impl Progress {
    fn new(started: Instant) -> Self {
        Self {
            started,
            bytes: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            has_ended: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            was_cut: AtomicBool::new(false),
        }
    }

    /// More bytes went on.
    pub fn moved(&self, bytes: usize) {
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        let micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.moved.store(micros, Ordering::Relaxed);
    }

    /// The body came to its end.
    pub fn ended(&self) {
        if !self.has_ended.swap(true, Ordering::Relaxed) {
            self.moved(0);
        }
    }

    /// The caller broke it off.
    pub fn failed(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// The sidecar broke it off.
    pub fn cut(&self) {
        self.was_cut.store(true, Ordering::Relaxed);
    }

    /// Whether the sidecar broke it off.
    #[must_use]
    pub fn was_cut(&self) -> bool {
        self.was_cut.load(Ordering::Relaxed)
    }

    /// Whether the body came to its end.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// Whether the caller broke it off.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// When something of it last moved; the first sight of the request, if nothing did.
    #[must_use]
    pub fn last_moved(&self) -> Instant {
        self.started + Duration::from_micros(self.moved.load(Ordering::Relaxed))
    }
}

/// The duty to say how a request that was permitted ended. Writes the outcome when it is dropped.
#[derive(Debug)]
pub struct OutcomeGuard {
    recorder: Option<Recorder>,
    ended: Ended,
    progress: Arc<Progress>,
}

impl OutcomeGuard {
    /// The status that is answered.
    pub fn answered(&mut self, status: u16) {
        self.ended.status = Some(status);
    }

    /// More bytes of the answer's body were passed on.
    pub fn passed(&mut self, bytes: u64) {
        self.ended.response_bytes += bytes;
    }

    /// So many of them did not get to the caller.
    pub fn not_taken(&mut self, bytes: u64) {
        self.ended.response_bytes = self.ended.response_bytes.saturating_sub(bytes);
    }

    /// How far the request's body has come.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// It ended so.
    pub fn end(mut self, ending: Ending) {
        self.ends(ending);
    }

    /// It ends so, once this is dropped.
    pub fn ends(&mut self, ending: Ending) {
        self.ended.ending = ending;
    }

    /// There is no record that an outcome could belong to.
    fn disarm(mut self) {
        self.recorder = None;
    }
}

impl Drop for OutcomeGuard {
    fn drop(&mut self) {
        let Some(recorder) = self.recorder.take() else { return };
        let duration = self.progress.started.elapsed();
        let ending = match self.ended.ending {
            _ if std::thread::panicking() => Ending::Panicked,
            Ending::Aborted if recorder.cuts() => Ending::Cut,
            ending @ (Ending::Completed | Ending::Aborted | Ending::Cut | Ending::NotForwarded | Ending::Panicked) => {
                ending
            }
        };
        let ended = Ended {
            time: self.ended.time.checked_add(duration).unwrap_or(self.ended.time),
            ending,
            request_bytes: self.progress.bytes.load(Ordering::Relaxed),
            duration,
            ..self.ended
        };
        recorder.tally().ended(ended.ending, duration);
        recorder.note(|batch| entry::outcome(batch, recorder.writer(), &ended));
    }
}

impl Gate {
    /// A gate that decides by these rules and writes to this log.
    #[must_use]
    pub fn new(rules: Arc<Rules>, recorder: Recorder, metrics: Metrics) -> Self {
        Self { rules, recorder, metrics }
    }

    /// What its worker counts.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        self.recorder.tally()
    }

    /// Steps 3 to 6: decides one request and writes the decision down.
    pub async fn check(&self, seen: &Observed<'_>, ids: &Ids, started: Instant) -> Verdict {
        let rules = &*self.rules;
        let mut undecided = Undecided { gate: self, time: seen.time, started, is_over: false };
        self.renew_keys(seen).await;
        // One policy for all of what follows: another may take effect at any moment.
        let in_force = rules.standing.policy();
        let policy = &*in_force;
        let weighed = weigh(seen, policy, &rules.trust, &rules.routes);
        undecided.is_over = true;
        let (facts, decision) = match weighed {
            Ok(weighed) => weighed,
            Err(unreadable) => {
                return Verdict::Refuse(self.unreadable_by(in_force, unreadable, seen.method, ids, seen.time).await);
            }
        };
        let (enforcement, mut action) = act(&decision, rules.enforcement);
        // What is outside the agreement does not rest on it.
        let is_stale = facts.scope != Scope::Outside && rules.standing.denies(policy, seen.time);
        if is_stale && action == Action::Allowed {
            action = if enforcement == Enforcement::Observe { Action::Observed } else { Action::Denied };
        }
        let pass = Pass {
            decision_id: ids.decision,
            time: seen.time,
            is_permitted: action != Action::Denied,
            may_be_lost: action != Action::Denied
                && (rules.on_failure == OnFailure::Allow || enforcement == Enforcement::Observe),
        };
        let about = About { is_stale, ..about(ids, seen.method, seen.time) };
        let writer = self.recorder.writer();
        // From here on the request may go away at any moment, and the record may be there then.
        let outcome = (action != Action::Denied).then(|| self.outcome(ids.decision, seen.time, started));
        let mut counted =
            Counted { tally: self.tally(), decided: Some((primary(is_stale, &decision), action, enforcement)) };
        let receipt = self
            .recorder
            .append(pass, |batch| {
                entry::decision(batch, writer, &about, policy, &facts, &decision, enforcement, action);
            })
            .await;
        counted.decided.take_if(|_| receipt.is_err());
        match (receipt, outcome) {
            (Ok(receipt), Some(mut outcome)) => {
                outcome.ended.ending = Ending::Aborted;
                let route = facts.route_place.and_then(|place| rules.routes.all().get(place));
                let passage = route.map(|route| Arc::clone(&route.passage)).unwrap_or_default();
                Verdict::Pass(Clearance { receipt, context: context(&facts, policy), passage, outcome })
            }
            (Ok(_), None) => {
                let is_party = facts.caller.known().is_some_and(|caller| caller.party.is_some());
                let why = if is_stale && is_party { Refused::Stale } else { Refused::Rule(told(&facts, &decision)) };
                Verdict::Refuse(self.refusal(&in_force, ids.decision, why))
            }
            (Err(error), outcome) => {
                outcome.into_iter().for_each(OutcomeGuard::disarm);
                Verdict::Refuse(self.refusal(&in_force, ids.decision, Refused::Unrecorded(error)))
            }
        }
    }

    /// An issuer may have a new key since its keys were fetched: a token that needs one waits for it, for a
    /// bounded time, before anything is weighed. One on egress is for the subprocessor.
    async fn renew_keys(&self, seen: &Observed<'_>) {
        if seen.egress.is_some() {
            return;
        }
        let lacking = self.rules.trust.tokens().and_then(|tokens| tokens.lacks_key(seen.headers));
        if let Some(source) = lacking.and_then(|place| self.rules.keys.get(place)) {
            source.renewed().await;
        }
    }

    /// Writes down and refuses a request that could be read in two ways, or in none.
    pub async fn unreadable(&self, why: Unreadable, method: &Method, ids: &Ids, time: Timestamp) -> Refusal {
        self.unreadable_by(self.rules.standing.policy(), why, method, ids, time).await
    }

    async fn unreadable_by(
        &self,
        policy: Arc<Policy>,
        why: Unreadable,
        method: &Method,
        ids: &Ids,
        time: Timestamp,
    ) -> Refusal {
        let about = about(ids, method, time);
        let writer = self.recorder.writer();
        let enforcement = match self.rules.enforcement {
            Enforcement::Observe => Enforcement::Observe,
            Enforcement::Enforce => policy.enforcement,
        };
        let pass = Pass { decision_id: ids.decision, time, is_permitted: false, may_be_lost: false };
        let encode = |batch: &mut Batch| entry::unreadable(batch, writer, &about, &policy, enforcement);
        let decided = Some((Primary::Unreadable, Action::Denied, enforcement));
        let mut counted = Counted { tally: self.tally(), decided };
        let receipt = self.recorder.append(pass, encode).await;
        counted.decided.take_if(|_| receipt.is_err());
        let why = receipt.map_or_else(Refused::Unrecorded, |_| Refused::Unreadable(why));
        self.refusal(&policy, ids.decision, why)
    }

    fn refusal(&self, policy: &Arc<Policy>, decision: Uuid, why: Refused) -> Refusal {
        Refusal { decision, why, policy: Arc::clone(policy), challenge: self.rules.trust.challenge() }
    }

    fn outcome(&self, decision_id: Uuid, time: Timestamp, started: Instant) -> OutcomeGuard {
        let ended = Ended {
            time,
            decision_id,
            ending: Ending::NotForwarded,
            status: None,
            request_bytes: 0,
            response_bytes: 0,
            duration: Duration::ZERO,
        };
        OutcomeGuard { recorder: Some(self.recorder.clone()), ended, progress: Arc::new(Progress::new(started)) }
    }
}

/// A request of which nothing is written down yet. One that goes away while it waits for keys, or at which this
/// program fails, is counted when this is dropped: nobody sends tokens and leaves no trace.
struct Undecided<'g> {
    gate: &'g Gate,
    time: Timestamp,
    started: Instant,
    is_over: bool,
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let Gate { recorder, metrics, .. } = self.gate;
        let (counter, one) = match std::thread::panicking() {
            true => (&metrics.panicked, Unread { panicked: 1, ..Unread::default() }),
            false => (&metrics.gone, Unread { gone: 1, ..Unread::default() }),
        };
        counter.inc();
        let now = self.time.checked_add(self.started.elapsed()).unwrap_or(self.time);
        recorder.note(|batch| entry::unread(batch, recorder.writer(), now, one));
    }
}

fn about<'a>(ids: &'a Ids, method: &'a Method, time: Timestamp) -> About<'a> {
    About { time, decision_id: ids.decision, request_id: ids.request, trace_id: &ids.trace, method, is_stale: false }
}

/// A decision that is counted also if its caller goes away while its record is written: the record stands.
struct Counted<'t> {
    tally: &'t Tally,
    /// None: there is no record.
    decided: Option<(Primary, Action, Enforcement)>,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some((primary, action, enforcement)) = self.decided {
            self.tally.decided(primary, action, enforcement);
        }
    }
}

fn primary(is_stale: bool, decision: &Decision<'_>) -> Primary {
    match decision.reasons().first() {
        _ if is_stale => Primary::Stale,
        Some(reason) => Primary::Rule(reason.code),
        None => Primary::Nothing,
    }
}

/// The one reason that the caller is told. Somebody unidentified, or no party to the agreement, learns
/// nothing else; the record holds all.
fn told(facts: &Facts<'_>, decision: &Decision<'_>) -> Reason {
    let reasons = decision.reasons();
    let of = |code: Code| reasons.iter().find(|reason| reason.code == code).copied();
    let gap = Reason::new(Code::CallerUnidentified, crate::decide::reason::Kind::Gap);
    match facts.caller.known() {
        None => gap,
        Some(caller) if caller.party.is_none() => of(Code::RecipientUnknown)
            .unwrap_or_else(|| Reason::new(Code::RecipientUnknown, crate::decide::reason::Kind::Violation)),
        Some(_) => reasons.first().copied().unwrap_or(gap),
    }
}

/// `DPA-Context` anew, from established facts only: an RFC 9651 dictionary.
fn context(facts: &Facts<'_>, policy: &Policy) -> Option<HeaderValue> {
    if facts.scope != Scope::Within {
        return None;
    }
    let mut text = String::with_capacity(96);
    // Ids have no character that a String of RFC 9651 would need to escape.
    let mut add = |member: &str, value: &str| {
        let comma = if text.is_empty() { "" } else { ", " };
        for part in [comma, member, "=\"", value, "\""] {
            text.push_str(part);
        }
    };
    if let Fact::Known(Customers::One(id), _) = &facts.customers
        && let Some(customer) = policy.customer(*id)
    {
        add("customer", customer.id.as_str());
        if let Some(instruction) = facts.instruction.known().and_then(|place| customer.instructions.get(*place)) {
            add("instruction", instruction.id.as_str());
        }
    }
    if let Some(purpose) = facts.purpose.known().and_then(|id| policy.purpose(*id)) {
        add("purpose", purpose.id.as_str());
    }
    if let Some(reference) = facts.request_ref.known() {
        add("request_ref", reference);
    }
    if text.is_empty() { None } else { HeaderValue::try_from(text).ok() }
}
