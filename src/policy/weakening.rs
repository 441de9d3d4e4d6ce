//! Which weaker changes need a word of the customer, and whether it is on record (clauses 2.2, 2.4, 2.5, 2.8, 3.2).
//!
//! A measure is weakened, and a customer put on observe, with the customer's consent or 90 days after a notice.
//! A purpose, a place or a subprocessor is added with the customer's consent or instruction. What else is weaker is
//! told by `diff` and needs nothing here: it follows from what the customer signed, or is the customer's own word.
//!
//! A word covers one step. Of a measure it names the step; of a place or a subprocessor it is one that did not stand
//! in the policy before, since what stood there was given for what was agreed then.

use std::collections::BTreeMap;
use std::collections::HashSet;

use jiff::SignedDuration;
use jiff::Timestamp;

use super::Customer;
use super::Instruction;
use super::Measure;
use super::Policy;
use super::Weakening;
use super::diff::Change;
use super::diff::Concerns;
use super::diff::Direction;
use super::diff::Kind;

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
    /// An accepted instruction that names each of the values as a purpose.
    PurposesInstructed,
    /// A residency that rests on an instruction which the old one does not rest on.
    ResidencyInstructed,
    /// A consent to this subprocessor, or an accepted instruction that lists it.
    Subprocessor(String),
}

/// The weaker changes for which no consent, notice or instruction is on record in the new policy at this moment.
#[must_use]
pub fn refused(changes: &[Change], old: &Policy, new: &Policy, now: Timestamp) -> Vec<Refused> {
    let weaker = changes.iter().filter(|change| change.direction == Direction::Weaker);
    weaker.filter_map(|change| refusal(change, &needs(change)?, old, new, now)).collect()
}

fn needs(change: &Change) -> Option<Needs> {
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
        Kind::StorageLocation | Kind::AccessLocation | Kind::Transfer => Some(Needs::ResidencyInstructed),
        // Another company, or somebody else's machine, behind the same name is another subprocessor.
        Kind::Subprocessor
        | Kind::SubprocessorName
        | Kind::SubprocessorIdentity
        | Kind::SubprocessorPurpose
        | Kind::SubprocessorOperation
        | Kind::SubprocessorData
        | Kind::SubprocessorPeriod
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
        | Kind::SubprocessorStorage
        | Kind::SubprocessorAccess
        | Kind::SubprocessorAgreement
        | Kind::Purpose
        | Kind::Wording => None,
    }
}

fn refusal(change: &Change, needs: &Needs, old: &Policy, new: &Policy, now: Timestamp) -> Option<Refused> {
    let announced = match needs {
        Needs::Consent(measure) => announced(*measure, old, new, now),
        Needs::PurposesInstructed | Needs::ResidencyInstructed | Needs::Subprocessor(_) => Vec::new(),
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
                change.values.iter().all(|purpose| in_force(customer, now).any(|it| names_purpose(it, new, purpose)))
            }
            Needs::ResidencyInstructed => {
                let rested = before.and_then(|before| old.residency(before).instruction.as_deref());
                rests_on_another(customer, before, rested, now)
            }
            Needs::Subprocessor(id) => has_accepted((customer, new), before.map(|before| (before, old)), id, now),
        }
    };
    let concerned: Vec<&Customer> = match &change.concerns {
        Concerns::All => new.customers.iter().collect(),
        Concerns::Customers(ids) => ids.iter().filter_map(|id| new.customer(new.customer_named(id)?)).collect(),
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
        Needs::Consent(_) | Needs::PurposesInstructed | Needs::ResidencyInstructed | Needs::Subprocessor(_) => {
            without.is_empty() && !concerned.is_empty()
        }
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
        Needs::PurposesInstructed => (
            format!("an accepted instruction of each customer that permits {}", change.values.join(", ")),
            instruction(&without, &day, &format!("        permits: {{purposes: [{}]}}\n", change.values.join(", "))),
        ),
        Needs::ResidencyInstructed => (
            "a `residency` of each customer's own that names an accepted instruction as its source, another than before"
                .to_owned(),
            instruction(&without, &day, "")
                + "    residency: {storage_locations: […], access_locations: […], source: instruction, ref: ins-NEW}\n",
        ),
        Needs::Subprocessor(id) => (
            format!("each customer's consent to `{id}`, or an accepted instruction that lists it, another than before"),
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
    let is_used_up =
        |it: &Weakening| before.is_some_and(|(before, issued)| it.given_at <= issued && before.weakenings.contains(it));
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

fn names_purpose(instruction: &Instruction, policy: &Policy, purpose: &str) -> bool {
    let purposes = instruction.permits.as_ref().and_then(|permits| permits.purposes);
    purposes.is_some_and(|set| policy.purpose_named(purpose).is_some_and(|id| set.contains(id)))
}

/// Whether an instruction is another word than those of before: by its id, or by its dates.
fn is_another(instruction: &Instruction, before: Option<&Customer>) -> bool {
    let is_same = |it: &Instruction| it.id == instruction.id && it.in_force == instruction.in_force;
    !before.is_some_and(|before| before.instructions.iter().any(is_same))
}

/// Whether a customer's own residency rests on another instruction than before.
fn rests_on_another(customer: &Customer, before: Option<&Customer>, rested: Option<&str>, now: Timestamp) -> bool {
    // The default rests on no single customer's word.
    let own = customer.residency.as_ref().and_then(|residency| residency.instruction.as_deref());
    let named = own.filter(|named| rested != Some(*named));
    named.is_some_and(|named| in_force(customer, now).any(|it| it.id.as_str() == named && is_another(it, before)))
}

/// Whether a customer has accepted a subprocessor by another word than those of before.
fn has_accepted(
    (customer, new): (&Customer, &Policy),
    before: Option<(&Customer, &Policy)>,
    subprocessor: &str,
    now: Timestamp,
) -> bool {
    let Some(id) = new.subprocessor_named(subprocessor) else { return false };
    let stood = |given: Timestamp| {
        before.is_some_and(|(before, old)| {
            let id = old.subprocessor_named(subprocessor);
            before.consents.iter().any(|(other, since)| Some(*other) == id && *since == given)
        })
    };
    let lists = |it: &Instruction| {
        let list = it.permits.as_ref().and_then(|permits| permits.subprocessors.as_ref());
        list.is_some_and(|list| list.contains(&id)) && is_another(it, before.map(|(before, _)| before))
    };
    customer.consents.iter().any(|(other, since)| *other == id && *since <= now && !stood(*since))
        || in_force(customer, now).any(lists)
}
