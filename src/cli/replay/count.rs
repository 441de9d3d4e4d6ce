//! Decides the requests of a piece again, and counts what comes out otherwise.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use jiff::Timestamp;

use super::pieces::MOST_TOGETHER;
use super::pieces::Piece;
use crate::decide::decide;
use crate::decide::decision::Decision;
use crate::gate::act;
use crate::policy::Enforcement;
use crate::policy::Policy;
use crate::record::chain::Sealed;
use crate::record::entry::Action;
use crate::record::entry::POLICY_STALE;
use crate::record::recorded::DECISION;
use crate::record::recorded::Recorded;
use crate::record::recorded::Undecidable;
use crate::record::recorded::Word;
use crate::standing;

/// How the line of a record begins.
const RECORD: &[u8] = b"{\"event\":\"dpa.";

/// Names that are counted each by itself; the others are counted together.
const MOST_NAMES: usize = 10_000;

/// Longest name that is counted by itself, in bytes. Ids have 64 at most; routes are longer.
const LONGEST_NAME: usize = 1024;

/// Examples that are kept of each kind, the first in the order of files and lines.
const MOST_EXAMPLES: usize = 5;

/// Everything that is counted.
#[derive(Default)]
pub(super) struct Counts {
    /// Requests that have a decision.
    pub(super) requests: u64,
    /// Requests for which no policy is asked: refused with 400, or outside the agreement.
    pub(super) unweighed: u64,
    /// Denied then and now, for another first reason.
    pub(super) other_reason: u64,
    /// Denied then, permitted now.
    pub(super) to_permit: Flips,
    /// Permitted then, denied now.
    pub(super) to_deny: Flips,
    /// Denied by the service, for a reason that no rule gave.
    pub(super) service: OfService,
    /// Refused then, and forwarded now.
    pub(super) newly_forwarded: u64,
    /// Forwarded then, and refused now.
    pub(super) newly_refused: u64,
    /// Decided, and nobody can tell whether it is forwarded now.
    pub(super) done_unknown: u64,
    /// What the records do not say enough of.
    pub(super) undecidable: Open,
    /// Lines that are no record as it was written.
    pub(super) damaged: Damage,
    /// Records of other kinds.
    pub(super) others: u64,
    /// Lines of a stream that are not of a log.
    pub(super) foreign: u64,
    /// When the first and the last of the requests were seen.
    pub(super) times: Option<(Timestamp, Timestamp)>,
    /// The policies that decided, by digest: name, revision, requests.
    pub(super) policies: BTreeMap<String, (String, u64, u64)>,
}

/// Decisions that come out otherwise.
#[derive(Default)]
pub(super) struct Flips {
    /// How many.
    pub(super) count: u64,
    /// Of these, how many are forwarded instead of refused, or refused instead of forwarded.
    pub(super) done: u64,
    /// By customer; a request about several counts for each.
    pub(super) customers: Tally,
    /// By the first reason of the denial, then or now.
    pub(super) reasons: Tally,
    /// By route.
    pub(super) routes: Tally,
    /// Some of them.
    pub(super) examples: Vec<Example>,
}

/// Denials of the service: they say nothing of the policy. Only what the rules say is compared.
#[derive(Default)]
pub(super) struct OfService {
    /// How many.
    pub(super) count: u64,
    /// By reason.
    pub(super) reasons: Tally,
    /// The rules say as they did.
    pub(super) same: u64,
    /// A rule denied then, and all hold now.
    pub(super) to_permit: u64,
    /// All rules held then, and one denies now.
    pub(super) to_deny: u64,
    /// Nobody can tell what the rules said then, or say now.
    pub(super) unknown: u64,
    /// Some of those for which the rules say otherwise.
    pub(super) examples: Vec<Example>,
}

/// Requests that cannot be decided.
#[derive(Default)]
pub(super) struct Open {
    /// How many.
    pub(super) count: u64,
    /// By what the record does not say. One may lack several things.
    pub(super) lacks: Tally,
    /// Some of them.
    pub(super) examples: Vec<Example>,
}

/// Lines that are no record as it was written.
#[derive(Default)]
pub(super) struct Damage {
    /// How many.
    pub(super) count: u64,
    /// The first: file, line, and why.
    pub(super) first: Vec<(usize, u64, &'static str)>,
}

/// How often each name occurs, up to a bound.
#[derive(Default)]
pub(super) struct Tally {
    /// By name.
    pub(super) names: BTreeMap<String, u64>,
    /// Of further names.
    pub(super) others: u64,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Example {
    /// Which of the files.
    pub(super) file: usize,
    /// Its line.
    pub(super) line: u64,
    pub(super) decision_id: String,
    pub(super) time: String,
    pub(super) customers: Vec<String>,
    pub(super) caller: Option<String>,
    pub(super) purpose: Option<String>,
    pub(super) route: Option<String>,
    /// Of a denial by the service: what the rules said, and the first reason.
    pub(super) by_rules: Option<(&'static str, Option<String>)>,
    /// Decision, action, first reason.
    pub(super) was: (String, String, Option<String>),
    /// The same; nothing if it cannot be decided.
    pub(super) now: Option<(&'static str, Option<&'static str>, Option<&'static str>)>,
}

impl Tally {
    fn count(&mut self, name: &str, times: u64) {
        let is_full = self.names.len() >= MOST_NAMES || name.len() > LONGEST_NAME;
        match self.names.get_mut(name) {
            Some(count) => *count += times,
            None if !is_full => {
                self.names.insert(name.to_owned(), times);
            }
            None => self.others += times,
        }
    }

    fn add(&mut self, other: Self) {
        self.others += other.others;
        other.names.into_iter().for_each(|(name, times)| self.count(&name, times));
    }
}

/// The first of two lists, in the order of files and lines.
fn first_of(list: &mut Vec<Example>, more: Vec<Example>) {
    list.extend(more);
    list.sort_by_key(|example| (example.file, example.line));
    list.truncate(MOST_EXAMPLES);
}

impl Flips {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.done += other.done;
        self.customers.add(other.customers);
        self.reasons.add(other.reasons);
        self.routes.add(other.routes);
        first_of(&mut self.examples, other.examples);
    }
}

impl OfService {
    fn add(&mut self, other: Self) {
        let Self { count, reasons, same, to_permit, to_deny, unknown, examples } = other;
        self.count += count;
        self.reasons.add(reasons);
        self.same += same;
        self.to_permit += to_permit;
        self.to_deny += to_deny;
        self.unknown += unknown;
        first_of(&mut self.examples, examples);
    }
}

/// What is asked of a log.
pub(super) struct Question {
    /// The policy that decides.
    pub(super) policy: Policy,
    /// Policies of then, as far as they are at hand.
    pub(super) earlier: Vec<Policy>,
    /// When all count as asked; none: each at its own time.
    pub(super) at: Option<Timestamp>,
}

/// What a policy says to a request, as far as it is the same whatever the record leaves open.
struct Again {
    is_permitted: bool,
    /// The first reason of a denial.
    reason: Option<&'static str>,
    action: Option<Action>,
    enforcement: Option<Enforcement>,
}

impl Again {
    fn of(decision: &Decision<'_>, sidecar: Enforcement) -> Self {
        let reasons = decision.reasons();
        let (enforcement, action) = act(decision, sidecar);
        Self {
            is_permitted: reasons.is_empty(),
            reason: reasons.first().map(|reason| reason.code.as_str()),
            action: Some(action),
            enforcement: Some(enforcement),
        }
    }

    fn as_str(&self) -> &'static str {
        if self.is_permitted { "permit" } else { "deny" }
    }

    /// Decides again.
    fn decide(records: &[Recorded<'_>], question: &Question) -> Result<Self, Undecidable> {
        Self::with(&question.policy, question.at, records, question)
    }

    /// Decides with one of the policies, at a moment or at its own time.
    fn with(
        policy: &Policy,
        at: Option<Timestamp>,
        records: &[Recorded<'_>],
        question: &Question,
    ) -> Result<Self, Undecidable> {
        let (first, others) = records.split_first().ok_or(Undecidable::Unreadable)?;
        let now = at.map_or_else(|| first.at(), Ok)?;
        let sidecar = match first.observed_by {
            Some(_) => Enforcement::Observe,
            None => Enforcement::Enforce,
        };
        let data = first.data()?;
        let possible = first.facts(others, &data, policy, question.then(first), now)?;
        let all: Vec<Self> =
            possible.facts.iter().map(|facts| Self::of(&decide(policy, facts, now), sidecar)).collect();
        let mut all = all.into_iter();
        let mut again = all.next().ok_or(Undecidable::Unreadable)?;
        for other in all {
            if other.is_permitted != again.is_permitted {
                return Err(Undecidable::Lacks(possible.lacks));
            }
            again.reason = again.reason.filter(|reason| other.reason == Some(*reason));
            again.action = again.action.filter(|action| other.action == Some(*action));
            again.enforcement = again.enforcement.filter(|enforcement| other.enforcement == Some(*enforcement));
        }
        Ok(again)
    }

    /// The same for a request that the service denied, which may deny it again.
    fn of_service(self, first: &Recorded<'_>, question: &Question) -> Self {
        let is_stale = first.service_reason() == Some(POLICY_STALE);
        let action = match self.action {
            Some(Action::Observed) if is_stale => self.action,
            Some(Action::Allowed) if is_stale && self.enforcement == Some(Enforcement::Enforce) => {
                question.is_stale(first).map(|is_stale| if is_stale { Action::Denied } else { Action::Allowed })
            }
            Some(Action::Allowed) if is_stale && self.enforcement == Some(Enforcement::Observe) => self.action,
            Some(Action::Denied) => self.action,
            // Whether it would, no record says.
            Some(Action::Allowed | Action::Observed) | None => None,
        };
        Self { action, ..self }
    }

    /// Whether it is forwarded now, as far as that can be told.
    fn is_forwarded(&self) -> Option<bool> {
        self.action.map(|action| action != Action::Denied)
    }
}

impl Question {
    /// The policy that decided, if it is at hand.
    fn then(&self, first: &Recorded<'_>) -> Option<&Policy> {
        self.earlier.iter().chain([&self.policy]).find(|then| first.is_by(then))
    }

    /// Whether the policy is too old for a request for which that of then was, as far as that can be told: how old one
    /// may be is a setting.
    fn is_stale(&self, first: &Recorded<'_>) -> Option<bool> {
        let then = first.at().ok()?;
        // With `max_age`, no sidecar takes a policy that does not say when it was issued.
        let Some(age) = standing::age(&self.policy, self.at.unwrap_or(then)) else { return Some(true) };
        if age <= SignedDuration::ZERO {
            return Some(false);
        }
        let too_old = standing::age(self.then(first)?, then)?;
        (age >= too_old).then_some(true)
    }
}

impl Counts {
    /// Whether anything comes out otherwise.
    pub(super) fn is_otherwise(&self) -> bool {
        let rules = self.to_permit.count + self.to_deny.count + self.service.to_permit + self.service.to_deny;
        rules + self.newly_forwarded + self.newly_refused > 0
    }

    /// Whether there is something of which nobody can tell.
    pub(super) fn is_unsure(&self) -> bool {
        self.undecidable.count + self.service.unknown + self.damaged.count + self.done_unknown > 0
    }

    /// Adds what another core counted.
    pub(super) fn add(&mut self, other: Self) {
        let Self {
            requests,
            unweighed,
            other_reason,
            to_permit,
            to_deny,
            service,
            newly_forwarded,
            newly_refused,
            done_unknown,
            undecidable,
            damaged,
            others,
            foreign,
            times,
            policies,
        } = other;
        self.requests += requests;
        self.unweighed += unweighed;
        self.other_reason += other_reason;
        self.to_permit.add(to_permit);
        self.to_deny.add(to_deny);
        self.service.add(service);
        self.newly_forwarded += newly_forwarded;
        self.newly_refused += newly_refused;
        self.done_unknown += done_unknown;
        self.undecidable.count += undecidable.count;
        self.undecidable.lacks.add(undecidable.lacks);
        first_of(&mut self.undecidable.examples, undecidable.examples);
        self.damaged.count += damaged.count;
        self.damaged.first.extend(damaged.first);
        self.damaged.first.sort_unstable();
        self.damaged.first.truncate(MOST_EXAMPLES);
        self.others += others;
        self.foreign += foreign;
        if let Some((from, to)) = times {
            self.saw(from);
            self.saw(to);
        }
        for (digest, (name, revision, requests)) in policies {
            self.policy(&digest, &name, revision, requests);
        }
    }

    fn saw(&mut self, time: Timestamp) {
        let (from, to) = self.times.unwrap_or((time, time));
        self.times = Some((from.min(time), to.max(time)));
    }

    fn policy(&mut self, digest: &str, name: &str, revision: u64, requests: u64) {
        let is_full = self.policies.len() >= MOST_NAMES || digest.len().max(name.len()) > LONGEST_NAME;
        match self.policies.get_mut(digest) {
            Some((_, _, count)) => *count += requests,
            None if !is_full => {
                self.policies.insert(digest.to_owned(), (name.to_owned(), revision, requests));
            }
            None => {}
        }
    }

    /// Decides the requests of a piece again.
    pub(super) fn take(&mut self, piece: &Piece, question: &Question) {
        let mut group: Vec<Recorded<'_>> = Vec::new();
        let mut begun = 0;
        let mut too_many = piece.lines.goes_on;
        for (place, line) in (0_u64..).zip(piece.lines.text.split_inclusive(|byte| *byte == b'\n')) {
            let number = piece.lines.line + place;
            let record = self.record(piece, number, line);
            let id = record.as_ref().and_then(|record| record.decision_id);
            if id.is_some() && id == too_many {
                self.damaged(piece.file, number, "too_many");
                continue;
            }
            too_many = None;
            if id.is_none() || group.first().is_none_or(|first| first.decision_id != id) {
                self.decision(piece.file, begun, &group, question);
                group.clear();
                begun = number;
            } else if group.len() == MOST_TOGETHER {
                self.undecidable(piece.file, begun, &group, Undecidable::Unreadable);
                self.damaged(piece.file, number, "too_many");
                group.clear();
                too_many = id;
                continue;
            }
            group.extend(record);
        }
        if piece.lines.is_cut_within && !group.is_empty() {
            self.undecidable(piece.file, begun, &group, Undecidable::Unreadable);
        } else {
            self.decision(piece.file, begun, &group, question);
        }
    }

    fn damaged(&mut self, file: usize, line: u64, why: &'static str) {
        self.damaged.count += 1;
        if self.damaged.first.len() < MOST_EXAMPLES {
            self.damaged.first.push((file, line, why));
        }
    }

    /// The record of a decision in a line, if it is one.
    fn record<'l>(&mut self, piece: &Piece, number: u64, line: &'l [u8]) -> Option<Recorded<'l>> {
        let mut damaged = |why| {
            self.damaged(piece.file, number, why);
            None
        };
        let Some(whole) = line.strip_suffix(b"\n") else {
            if piece.is_stream && !line.starts_with(RECORD) {
                self.foreign += 1;
                return None;
            }
            return damaged("unfinished");
        };
        let Some(sealed) = Sealed::read(whole) else {
            if piece.is_stream && !line.starts_with(RECORD) {
                self.foreign += 1;
                return None;
            }
            return damaged("not_a_record");
        };
        if piece.fork.is_some_and(|end| sealed.seq > end.seq) {
            // Written again behind the segment, because nobody could tell whether it was there.
            self.others += 1;
            return None;
        }
        if !sealed.is_whole() {
            return damaged("changed");
        }
        if !whole.starts_with(DECISION) {
            self.others += 1;
            return None;
        }
        let record = serde_json::from_slice::<Recorded<'l>>(whole).ok();
        match record.filter(|record| record.decision_id.is_some() && record.at().is_ok()) {
            Some(record) => Some(record),
            None => damaged("unreadable"),
        }
    }

    /// A request that cannot be decided.
    fn undecidable(&mut self, file: usize, line: u64, records: &[Recorded<'_>], why: Undecidable) {
        self.seen(records);
        self.undecidable.count += 1;
        match why {
            Undecidable::Unreadable => self.undecidable.lacks.count("unreadable", 1),
            Undecidable::Lacks(lacks) => lacks.iter().for_each(|lack| self.undecidable.lacks.count(lack.as_str(), 1)),
        }
        if self.undecidable.examples.len() < MOST_EXAMPLES {
            self.undecidable.examples.push(Example::of(file, line, records, None));
        }
    }

    /// A request that has a decision.
    fn seen(&mut self, records: &[Recorded<'_>]) {
        let Some(first) = records.first() else { return };
        self.requests += 1;
        first.at().into_iter().for_each(|time| self.saw(time));
        if let Some(then) = &first.policy {
            self.policy(then.digest.as_str(), then.name.as_str(), then.revision, 1);
        }
    }

    /// Decides one request again: all records of one decision.
    fn decision(&mut self, file: usize, line: u64, records: &[Recorded<'_>], question: &Question) {
        let Some(first) = records.first() else { return };
        if first.is_unweighed() {
            self.seen(records);
            self.unweighed += 1;
            return;
        }
        if let Some(reason) = first.service_reason() {
            self.of_service(file, line, records, reason, question);
            return;
        }
        let again = match Again::decide(records, question) {
            Ok(again) => again,
            Err(why) => return self.undecidable(file, line, records, why),
        };
        self.seen(records);
        let was_permitted = first.decision.as_str() == "permit";
        let is_done_otherwise = self.done(first, again.is_forwarded());
        let then_reason = first.reason.as_ref().map(Word::as_str);
        let (flips, reason) = match (was_permitted, again.is_permitted) {
            (false, true) => (&mut self.to_permit, then_reason),
            (true, false) => (&mut self.to_deny, again.reason),
            (false, false) => {
                self.other_reason += u64::from(again.reason != then_reason);
                return;
            }
            (true, true) => return,
        };
        flips.count += 1;
        flips.done += u64::from(is_done_otherwise);
        let mut is_counted = false;
        for customer in records.iter().filter_map(|record| record.customer_id.as_ref()) {
            flips.customers.count(customer.as_str(), 1);
            is_counted = true;
        }
        if !is_counted {
            flips.customers.count(NOBODY, 1);
        }
        flips.reasons.count(reason.unwrap_or(NOBODY), 1);
        flips.routes.count(first.route.as_ref().map_or(NOBODY, Word::as_str), 1);
        if flips.examples.len() < MOST_EXAMPLES {
            flips.examples.push(Example::of(file, line, records, Some(&again)));
        }
    }

    /// Whether it is forwarded now instead of refused, or refused instead of forwarded.
    fn done(&mut self, first: &Recorded<'_>, is_forwarded: Option<bool>) -> bool {
        let was_forwarded = first.action.as_str() != Action::Denied.as_str();
        match is_forwarded {
            None => self.done_unknown += 1,
            Some(true) if !was_forwarded => self.newly_forwarded += 1,
            Some(false) if was_forwarded => self.newly_refused += 1,
            Some(_) => return false,
        }
        is_forwarded.is_some()
    }

    /// A denial by the service says nothing of the policy. What the rules said is compared with what they say.
    fn of_service(&mut self, file: usize, line: u64, records: &[Recorded<'_>], reason: &str, question: &Question) {
        let Some(first) = records.first() else { return };
        self.seen(records);
        self.service.count += 1;
        self.service.reasons.count(reason, 1);
        let Ok(again) = Again::decide(records, question) else {
            self.service.unknown += 1;
            return;
        };
        let again = again.of_service(first, question);
        let then = match first.rules_behind() {
            Some(reason) => Some((reason.is_none(), reason.map(str::to_owned))),
            None => question.then(first).and_then(|then| {
                let then = Again::with(then, None, records, question).ok()?;
                Some((then.is_permitted, then.reason.map(str::to_owned)))
            }),
        };
        let Some((was_permitted, then_reason)) = then else {
            self.service.unknown += 1;
            return;
        };
        self.done(first, again.is_forwarded());
        let count = match (was_permitted, again.is_permitted) {
            (false, true) => &mut self.service.to_permit,
            (true, false) => &mut self.service.to_deny,
            (true, true) | (false, false) => &mut self.service.same,
        };
        *count += 1;
        if was_permitted != again.is_permitted && self.service.examples.len() < MOST_EXAMPLES {
            let by_rules = Some((if was_permitted { "permit" } else { "deny" }, then_reason));
            self.service.examples.push(Example { by_rules, ..Example::of(file, line, records, Some(&again)) });
        }
    }
}

/// Counted for requests without a customer, a route, or one certain reason.
const NOBODY: &str = "(none)";

impl Example {
    fn of(file: usize, line: u64, records: &[Recorded<'_>], again: Option<&Again>) -> Self {
        let first = records.first();
        let text = |word: Option<&Word<'_>>| word.map(|word| word.as_str().to_owned());
        let word = |word: Option<&Word<'_>>| text(word).unwrap_or_default();
        Self {
            file,
            line,
            decision_id: first.and_then(|it| it.decision_id).map(|id| id.to_string()).unwrap_or_default(),
            time: word(first.map(|it| &it.time)),
            customers: records.iter().filter_map(|it| text(it.customer_id.as_ref())).collect(),
            caller: text(first.and_then(|it| it.caller_id.as_ref())),
            purpose: text(first.and_then(|it| it.purpose.as_ref())),
            route: text(first.and_then(|it| it.route.as_ref())),
            by_rules: None,
            was: (
                word(first.map(|it| &it.decision)),
                word(first.map(|it| &it.action)),
                text(first.and_then(|it| it.reason.as_ref())),
            ),
            now: again.map(|again| (again.as_str(), again.action.map(Action::as_str), again.reason)),
        }
    }
}
