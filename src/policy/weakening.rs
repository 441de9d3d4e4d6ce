//! Which weaker changes need a word of the customer, and whether it is on record (clauses 2.2, 2.4, 2.5, 2.8, 3.2).
//!
//! A measure is weakened, and a customer put on observe, with the customer's consent or 90 days after a notice.
//! A purpose, a place or a subprocessor is added with the customer's consent or instruction. What else is weaker is
//! told by `diff` and needs nothing here: it follows from what the customer signed, or is the customer's own word.
//!
//! A word covers one step. Of a measure it names the step; of a place or a subprocessor it is one that did not stand
//! in the policy before, since what stood there was given for what was agreed then.
//!
//! An instruction covers what it permits, and for as long as it does: what a list of the policy opens for good and
//! without limits needs one without an end and without limits. So no day that passes takes a word away from what was
//! agreed, and what an instruction permits in its limits needs no list: it is enough to name it.

use std::collections::BTreeMap;
use std::collections::HashSet;

use jiff::SignedDuration;
use jiff::Timestamp;

use super::Customer;
use super::Instruction;
use super::Measure;
use super::Permits;
use super::Policy;
use super::PurposeSet;
use super::Subprocessor;
use super::SubprocessorId;
use super::Weakening;
use super::diff::Change;
use super::diff::Concerns;
use super::diff::Direction;
use super::diff::Kind;
use super::terms::Operation;
use super::within;

/// How long before a weakening the customers are told (clause 3.2).
const NOTICE: SignedDuration = SignedDuration::from_hours(90 * 24);

/// A weaker change that is not agreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The change.
    pub change: Change,
    /// Whose word is missing, by id; none: no customer's word can stand for it, only a notice.
    pub customers: Vec<String>,
    /// What would have to be on record.
    pub missing: String,
    /// An example of it, as YAML for the first of the customers.
    pub example: String,
}

/// What a weaker change needs.
enum Needs {
    /// A consent to this measure, or a notice of it.
    Consent(Measure),
    /// An accepted instruction that permits each of the values as a purpose, without limits.
    PurposesInstructed,
    /// The same, by an instruction that did not stand there before.
    PurposesInstructedAnew,
    /// A residency that rests on an instruction which the old one does not rest on, and which is about nothing else.
    ResidencyInstructed,
    /// A consent to this subprocessor, or an accepted instruction that lists it and permits no less than its entry.
    Subprocessor(String),
}

/// The weaker changes for which no consent, notice or instruction is on record in the new policy at this moment.
#[must_use]
pub fn refused(changes: &[Change], old: &Policy, new: &Policy, now: Timestamp) -> Vec<Refused> {
    let weaker = changes.iter().filter(|change| change.direction == Direction::Weaker);
    weaker.filter_map(|change| refusal(change, &needs(change, old)?, old, new, now)).collect()
}

/// Whether a weaker change needs a word at all.
#[must_use]
pub fn needs_word(change: &Change, old: &Policy) -> bool {
    needs(change, old).is_some()
}

fn needs(change: &Change, old: &Policy) -> Option<Needs> {
    let subprocessor = || Some(Needs::Subprocessor(change.subprocessor()?.to_owned()));
    match change.kind {
        Kind::MinTlsVersion => Some(Needs::Consent(Measure::MinTlsVersion)),
        Kind::ClientAuthentication => Some(Needs::Consent(Measure::ClientAuthentication)),
        Kind::DecisionLog => Some(Needs::Consent(Measure::DecisionLog)),
        Kind::SignedPolicy => Some(Needs::Consent(Measure::SignedPolicy)),
        Kind::RequireEnforce | Kind::DefaultEnforcement | Kind::Enforcement => {
            Some(Needs::Consent(Measure::Enforcement))
        }
        // Clause 2.7 asks that people are bound. That they need not be any more is a weaker measure; that the
        // undertaking was renewed, or is another group's, is what the clause wants.
        Kind::HumanAccess => Some(Needs::Consent(Measure::Confidentiality)),
        Kind::CustomerPurpose | Kind::RequiresInstruction => Some(Needs::PurposesInstructed),
        // What the customer permitted was not said to be the law's demand.
        Kind::BusinessPurpose => Some(Needs::PurposesInstructedAnew),
        Kind::StorageLocation | Kind::AccessLocation | Kind::Transfer => Some(Needs::ResidencyInstructed),
        // Who is bound for the first time becomes one; that an agreement is renewed is what clause 2.3 wants.
        Kind::SubprocessorAgreement => subprocessor().filter(|_| !was_bound(change, old)),
        // Another company, or somebody else's machine, behind the same name is another subprocessor. One that moves to
        // where a customer's data may be comes to have it.
        Kind::Subprocessor
        | Kind::SubprocessorName
        | Kind::SubprocessorIdentity
        | Kind::SubprocessorPurpose
        | Kind::SubprocessorOperation
        | Kind::SubprocessorData
        | Kind::SubprocessorPeriod
        | Kind::SubprocessorStorage
        | Kind::SubprocessorAccess
        | Kind::Objection => subprocessor(),
        // The customer's own word. Who is new comes with its own contract, whatever that permits.
        Kind::Acceptance
        | Kind::Suspension
        | Kind::Termination
        | Kind::Consent
        | Kind::Instruction
        | Kind::Restriction
        | Kind::Customer
        | Kind::CustomerIdentity => None,
        // Within what the customer permits already: whom the processor employs, and with which machines, is its own.
        Kind::Caller
        | Kind::CallerIdentity
        | Kind::CallerPurpose
        | Kind::CallerOperation
        | Kind::CallerLocation
        | Kind::Confidentiality
        | Kind::Purpose
        | Kind::Wording => None,
    }
}

/// Whether the subprocessor of a change had an agreement that flows the duties down, whenever that was.
fn was_bound(change: &Change, old: &Policy) -> bool {
    let entry = change.subprocessor().and_then(|id| old.subprocessor(old.subprocessor_named(id)?));
    let agreement = entry.and_then(|entry| entry.agreement);
    agreement.is_some_and(|agreement| agreement.until.is_none_or(|until| agreement.from < until))
}

fn refusal(change: &Change, needs: &Needs, old: &Policy, new: &Policy, now: Timestamp) -> Option<Refused> {
    let announced = match needs {
        Needs::Consent(measure) => announced(*measure, old, new, now),
        Needs::PurposesInstructed
        | Needs::PurposesInstructedAnew
        | Needs::ResidencyInstructed
        | Needs::Subprocessor(_) => Vec::new(),
    };
    let is_agreed = |customer: &&Customer| {
        let before = old.customer_named(customer.id.as_str()).and_then(|id| old.customer(id));
        match needs {
            Needs::Consent(measure) => {
                let mut steps = consented(*measure, customer, before.map(|before| (before, issued(old))), now);
                steps.extend(
                    announced.iter().filter(|(_, told)| was_told(customer, before, *told)).map(|(step, _)| step),
                );
                leads(*measure, words(change, *measure), &steps)
            }
            Needs::PurposesInstructed => {
                change.values.iter().all(|purpose| in_force(customer, now).any(|it| permits_for_good(it, new, purpose)))
            }
            Needs::PurposesInstructedAnew => change.values.iter().all(|purpose| {
                in_force(customer, now).any(|it| permits_for_good(it, new, purpose) && is_another(it, before))
            }),
            Needs::ResidencyInstructed => {
                let rested = before.and_then(|before| old.residency(before).instruction.as_deref());
                rests_on_another(customer, before, rested, now)
            }
            Needs::Subprocessor(id) => {
                has_accepted((customer, new), before.map(|before| (before, old)), (change, id), now)
            }
        }
    };
    // Whose agreement was not accepted could give no word: its contract is new.
    let is_offer = |id: &str| {
        let before = old.customer_named(id).and_then(|id| old.customer(id));
        !matches!(needs, Needs::Consent(_)) && before.is_some_and(|before| before.accepted_at.is_none())
    };
    let concerned: Vec<&Customer> = match &change.concerns {
        Concerns::All => new.customers.iter().collect(),
        Concerns::Customers(ids) if ids.iter().all(|id| is_offer(id)) => return None,
        Concerns::Customers(ids) => {
            let ids = ids.iter().filter(|id| !is_offer(id));
            ids.filter_map(|id| new.customer(new.customer_named(id)?)).collect()
        }
        Concerns::Unnamed | Concerns::Nobody => Vec::new(),
    };
    let without: Vec<String> =
        concerned.iter().filter(|customer| !is_agreed(customer)).map(|customer| customer.id.to_string()).collect();
    // Of nobody in particular, or of somebody who is no customer any more: nobody can consent.
    let is_announced = |measure| {
        let steps: Vec<Step> = announced.iter().map(|(step, _)| *step).collect();
        leads(measure, words(change, measure), &steps)
    };
    let is_covered = match needs {
        Needs::Consent(measure) if concerned.is_empty() => is_announced(*measure),
        Needs::Consent(_)
        | Needs::PurposesInstructed
        | Needs::PurposesInstructedAnew
        | Needs::ResidencyInstructed
        | Needs::Subprocessor(_) => without.is_empty() && !concerned.is_empty(),
    };
    if is_covered {
        return None;
    }
    let day = day(now);
    let (missing, example) = match needs {
        Needs::Consent(measure) => {
            let [from, to] = words(change, *measure);
            let word = measure.as_str();
            let notice = format!(
                "weakening_notices:\n  - {{measure: {word}, from: \"{from}\", to: \"{to}\", notice_given_at: {day}}}   # 90 days before it takes effect\n"
            );
            let consent = without.first().map(|id| {
                format!("customers:\n  - id: {id}\n    consents:\n      - {{weakening: {word}, from: \"{from}\", to: \"{to}\", given_at: {day}, ref: …}}\n# or, for all customers:\n")
            });
            let missing = match without.is_empty() {
                true => format!("a notice to the customers, at least 90 days old, that `{word}` goes from {from} to {to}"),
                false => format!("each customer's consent that `{word}` goes from {from} to {to}, or a notice of that to them, at least 90 days old"),
            };
            (missing, consent.unwrap_or_default() + &notice)
        }
        Needs::PurposesInstructed | Needs::PurposesInstructedAnew => (
            format!(
                "an accepted instruction of each customer{} that permits {}, without an end and without another list",
                if matches!(needs, Needs::PurposesInstructedAnew) { ", another than before," } else { "" },
                change.values.join(", ")
            ),
            instruction(&without, &day, &format!("        permits: {{purposes: [{}]}}\n", change.values.join(", "))),
        ),
        Needs::ResidencyInstructed => (
            "a `residency` of each customer's own that names an accepted instruction as its source, another than before, \
             without an end and about nothing else"
                .to_owned(),
            instruction(&without, &day, "")
                + "    residency: {storage_locations: […], access_locations: […], source: instruction, ref: ins-NEW}\n",
        ),
        Needs::Subprocessor(id) => (
            format!(
                "each customer's consent to `{id}`, or an accepted instruction that lists it, permits no less and ends no \
                 sooner; another than before"
            ),
            format!(
                "customers:\n  - id: {}\n    consents:\n      - {{subprocessor: {id}, given_at: {day}, ref: …}}\n",
                without.first().map_or("…", String::as_str)
            ),
        ),
    };
    Some(Refused { change: change.clone(), customers: without, missing, example })
}

/// An instruction, as YAML.
fn instruction(customers: &[String], day: &str, permits: &str) -> String {
    let id = customers.first().map_or("…", String::as_str);
    format!(
        "customers:\n  - id: {id}\n    instructions:\n      - id: ins-NEW\n        issuer_role: …\n        reference: …\n        \
         received_at: {day}\n        accepted_at: {day}\n        valid_from: {day}\n{permits}"
    )
}

fn day(now: Timestamp) -> String {
    now.to_string().chars().take(10).collect()
}

/// The old and the new value of a measure, as a notice has them.
fn words(change: &Change, measure: Measure) -> [&str; 2] {
    match (measure, change.values.as_slice()) {
        (Measure::Enforcement, _) => ["enforce", "observe"],
        (Measure::ClientAuthentication, _) => ["required", "optional"],
        (_, [from, to]) => [from, to],
        (_, _) => ["…", "…"],
    }
}

/// The values of a measure, the strictest first. Each but the last may be weakened to those behind it.
fn values(measure: Measure) -> &'static [&'static str] {
    match measure {
        Measure::MinTlsVersion => &["1.3", "1.2", "none"],
        Measure::ClientAuthentication => &["required", "optional"],
        Measure::DecisionLog => &["synced", "written"],
        Measure::SignedPolicy => &["true", "false"],
        Measure::Enforcement => &["enforce", "observe"],
        Measure::Confidentiality => &["undertaking", "none"],
    }
}

/// A step of a measure, as it was agreed or announced. Words that the measure does not have are nothing.
type Step = [&'static str; 2];

fn step(measure: Measure, from: &str, to: &str) -> Option<Step> {
    let to = if measure == Measure::ClientAuthentication && to == "none" { "optional" } else { to };
    let known = |word| values(measure).iter().copied().find(|known| *known == word);
    Some([known(from)?, known(to)?])
}

/// When a policy was issued; one that does not say counts as later than all that stands in it.
fn issued(policy: &Policy) -> Timestamp {
    policy.issued_at.unwrap_or(Timestamp::MAX)
}

/// The steps of which the customers were told 90 days ago, and when last. A notice that was due already when a policy
/// with it was issued is used up: what it told of was done, or not done.
fn announced(measure: Measure, old: &Policy, new: &Policy, now: Timestamp) -> Vec<(Step, Timestamp)> {
    let due = |given_at: Timestamp| given_at.checked_add(NOTICE).unwrap_or(Timestamp::MAX);
    let of_measure = |policy: &Policy| -> Vec<(Step, Timestamp)> {
        let notices = policy.notices.iter().filter(|it| it.measure == measure && due(it.given_at) <= now);
        notices.filter_map(|it| Some((step(measure, &it.from, &it.to)?, it.given_at))).collect()
    };
    let used_up: HashSet<(Step, Timestamp)> =
        of_measure(old).into_iter().filter(|(_, given_at)| due(*given_at) <= issued(old)).collect();
    let mut last: BTreeMap<Step, Timestamp> = BTreeMap::new();
    for (step, given_at) in of_measure(new).into_iter().filter(|notice| !used_up.contains(notice)) {
        let known = last.entry(step).or_insert(given_at);
        *known = given_at.max(*known);
    }
    last.into_iter().collect()
}

/// Whether a notice can have reached a customer: not who became one later.
fn was_told(customer: &Customer, before: Option<&Customer>, given_at: Timestamp) -> bool {
    customer.accepted_at.map_or(before.is_some(), |accepted| accepted <= given_at)
}

/// The steps that a customer has consented to, beyond those that counted already when the policy `before`, in which
/// they stood, was issued. A consent that does not say which counts where there is only one, and unless it was given
/// before that policy was issued.
fn consented(
    measure: Measure,
    customer: &Customer,
    before: Option<(&Customer, Timestamp)>,
    now: Timestamp,
) -> Vec<Step> {
    let given = customer.weakenings.iter().filter(|it| it.measure == measure && it.given_at <= now);
    // By its day, however it is written.
    let named = |it: &Weakening| it.step.as_ref().map(|(from, to)| step(measure, from, to));
    let is_same = |one: &Weakening, two: &Weakening| {
        let steps = named(one).zip(named(two));
        one.measure == two.measure && one.given_at == two.given_at && steps.is_none_or(|(one, two)| one == two)
    };
    let is_used_up = |it: &Weakening| {
        before.is_some_and(|(before, issued)| {
            it.given_at <= issued && before.weakenings.iter().any(|known| is_same(known, it))
        })
    };
    let steps = given.filter(|it| !is_used_up(it)).filter_map(|it| match (&it.step, values(measure)) {
        (Some((from, to)), _) => step(measure, from, to),
        (None, [from, to]) if before.is_none_or(|(_, issued)| issued <= it.given_at) => Some([*from, *to]),
        (None, _) => None,
    });
    steps.collect()
}

/// Whether steps lead from one value to another, one after the other.
fn leads(measure: Measure, [from, to]: [&str; 2], steps: &[Step]) -> bool {
    let mut reached = vec![from];
    for _ in values(measure) {
        for [from, to] in steps {
            if reached.contains(from) && !reached.contains(to) {
                reached.push(to);
            }
        }
    }
    reached.contains(&to)
}

fn in_force(customer: &Customer, now: Timestamp) -> impl Iterator<Item = &Instruction> {
    customer.instructions.iter().filter(move |it| it.in_force.is_some_and(|period| period.contains(now)))
}

/// Whether an instruction holds until a moment, or without an end.
fn lasts(instruction: &Instruction, until: Option<Timestamp>) -> bool {
    let ends = instruction.in_force.map(|period| period.until);
    ends.is_some_and(|ends| ends.is_none_or(|ends| until.is_some_and(|until| until <= ends)))
}

/// Whether an instruction permits a purpose as the list of a customer does: whatever is done, with all data, to whom it
/// may be, without an end.
fn permits_for_good(instruction: &Instruction, policy: &Policy, purpose: &str) -> bool {
    let Some(Permits { purposes: Some(purposes), operations: None, subprocessors: None, data_categories: None }) =
        &instruction.permits
    else {
        return false;
    };
    lasts(instruction, None) && policy.purpose_named(purpose).is_some_and(|id| purposes.contains(id))
}

/// Whether an instruction that lists a subprocessor permits all that a change gives to it, for as long as its entry lasts.
fn permits_subprocessor(
    instruction: &Instruction,
    policy: &Policy,
    id: SubprocessorId,
    entry: &Subprocessor,
    change: &Change,
) -> bool {
    let Some(permits) = instruction.permits.as_ref() else { return false };
    if !permits.subprocessors.as_ref().is_some_and(|list| list.contains(&id))
        || !lasts(instruction, entry.effective.until)
    {
        return false;
    }
    // Of what is added to one of its lists, that is enough; of the others, all counts.
    let is_given = |kind: Kind, word: &str| change.kind != kind || change.values.iter().any(|value| value == word);
    let mut purposes = entry.permitted_purposes;
    if change.kind == Kind::SubprocessorPurpose {
        purposes = PurposeSet::default();
        change.values.iter().filter_map(|name| policy.purpose_named(name)).for_each(|id| purposes.insert(id));
    }
    let mut operations = Operation::ALL
        .iter()
        .filter(|it| within(entry.operations, **it) && is_given(Kind::SubprocessorOperation, it.as_str()));
    let mut data = entry.data_categories.iter().filter(|it| is_given(Kind::SubprocessorData, &it.to_string()));
    permits.purposes.is_none_or(|list| purposes.lies_within(list))
        && operations.all(|it| within(permits.operations, *it))
        && data.all(|it| permits.data_categories.as_ref().is_none_or(|list| list.iter().any(|known| known.covers(it))))
}

/// Whether an instruction is another word than those of before: by its id, or by its dates.
fn is_another(instruction: &Instruction, before: Option<&Customer>) -> bool {
    let is_same = |it: &Instruction| it.id == instruction.id && it.in_force == instruction.in_force;
    !before.is_some_and(|before| before.instructions.iter().any(is_same))
}

/// Whether a consent to a subprocessor, or an instruction, of a customer stands in one policy, and in another no more.
#[must_use]
pub fn is_forgotten(from: &Policy, to: &Policy, customer: &str) -> bool {
    let before = from.customer_named(customer).and_then(|id| from.customer(id));
    let after = to.customer_named(customer).and_then(|id| to.customer(id));
    let (Some(before), Some(after)) = (before, after) else { return false };
    let is_left = |(id, since): &(SubprocessorId, Timestamp)| {
        let id = from.subprocessor(*id).and_then(|entry| to.subprocessor_named(entry.id.as_str()));
        id.is_some_and(|id| after.consents.contains(&(id, *since)))
    };
    let mut counted = before.instructions.iter().filter(|it| it.in_force.is_some());
    !before.consents.iter().all(is_left) || counted.any(|it| is_another(it, Some(after)))
}

/// Whether a customer's own residency rests on another instruction than before.
fn rests_on_another(customer: &Customer, before: Option<&Customer>, rested: Option<&str>, now: Timestamp) -> bool {
    // The default rests on no single customer's word.
    let own = customer.residency.as_ref().and_then(|residency| residency.instruction.as_deref());
    let named = own.filter(|named| rested != Some(*named));
    // What it permits or restricts is all that it says, so such a one says nothing of places.
    let is_of_places = |it: &Instruction| it.permits.is_none() && it.restricts.is_none() && lasts(it, None);
    named.is_some_and(|named| {
        in_force(customer, now).any(|it| it.id.as_str() == named && is_of_places(it) && is_another(it, before))
    })
}

/// Whether a customer has accepted a subprocessor by another word than those of before.
fn has_accepted(
    (customer, new): (&Customer, &Policy),
    before: Option<(&Customer, &Policy)>,
    (change, subprocessor): (&Change, &str),
    now: Timestamp,
) -> bool {
    let Some(id) = new.subprocessor_named(subprocessor) else { return false };
    let Some(entry) = new.subprocessor(id) else { return false };
    let stood = |given: Timestamp| {
        before.is_some_and(|(before, old)| {
            let id = old.subprocessor_named(subprocessor);
            before.consents.iter().any(|(other, since)| Some(*other) == id && *since == given)
        })
    };
    let lists = |it: &Instruction| {
        permits_subprocessor(it, new, id, entry, change) && is_another(it, before.map(|(before, _)| before))
    };
    customer.consents.iter().any(|(other, since)| *other == id && *since <= now && !stood(*since))
        || in_force(customer, now).any(lists)
}
