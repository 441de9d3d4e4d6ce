//! Which weaker changes need a word of the customer, and whether it is on record (clauses 2.2, 2.5, 2.8, 3.2).
//!
//! A measure is weakened, and a customer moved to observe, with the customer's consent or 90 days after a notice.
//! A purpose, a place or a subprocessor is added with the customer's consent or instruction. What else is weaker is
//! told by `diff` and needs nothing here: it follows from what the customer signed, or is the customer's own word.

use jiff::SignedDuration;
use jiff::Timestamp;

use super::Customer;
use super::Instruction;
use super::Measure;
use super::Policy;
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
        Kind::CustomerPurpose | Kind::RequiresInstruction => Some(Needs::PurposesInstructed),
        Kind::StorageLocation | Kind::AccessLocation | Kind::Transfer => Some(Needs::ResidencyInstructed),
        Kind::Subprocessor
        | Kind::SubprocessorPurpose
        | Kind::SubprocessorOperation
        | Kind::SubprocessorData
        | Kind::SubprocessorPeriod
        | Kind::Objection => subprocessor(),
        // The customer's own word.
        Kind::Acceptance
        | Kind::Suspension
        | Kind::Termination
        | Kind::Consent
        | Kind::Instruction
        | Kind::Restriction
        | Kind::Customer
        | Kind::CustomerIdentity => None,
        // Within what the customer permits already.
        Kind::Caller
        | Kind::CallerIdentity
        | Kind::CallerPurpose
        | Kind::CallerOperation
        | Kind::CallerLocation
        | Kind::Confidentiality
        | Kind::SubprocessorIdentity
        | Kind::SubprocessorStorage
        | Kind::SubprocessorAccess
        | Kind::SubprocessorAgreement
        | Kind::Purpose
        | Kind::Wording => None,
    }
}

fn refusal(change: &Change, needs: &Needs, old: &Policy, new: &Policy, now: Timestamp) -> Option<Refused> {
    if let Needs::Consent(measure) = needs
        && is_announced(change, *measure, new, now)
    {
        return None;
    }
    let is_agreed = |customer: &&Customer| match needs {
        Needs::Consent(measure) => {
            customer.weakenings.iter().any(|(consented, since)| consented == measure && *since <= now)
        }
        Needs::PurposesInstructed => {
            change.values.iter().all(|purpose| in_force(customer, now).any(|it| names_purpose(it, new, purpose)))
        }
        Needs::ResidencyInstructed => rests_on_another(customer, old, now),
        Needs::Subprocessor(id) => has_accepted(customer, new, id, now),
    };
    let concerned: Vec<&Customer> = match &change.concerns {
        Concerns::All => new.customers.iter().collect(),
        Concerns::Customers(ids) => ids.iter().filter_map(|id| new.customer(new.customer_named(id)?)).collect(),
        Concerns::Unnamed | Concerns::Nobody => Vec::new(),
    };
    let without: Vec<String> =
        concerned.iter().filter(|customer| !is_agreed(customer)).map(|customer| customer.id.to_string()).collect();
    // Of nobody in particular, or of somebody who is no customer any more: nobody can consent.
    if without.is_empty() && !concerned.is_empty() {
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
                format!("customers:\n  - id: {id}\n    consents:\n      - {{weakening: {word}, given_at: {day}, ref: …}}\n# or, for all customers:\n")
            });
            let missing = match without.is_empty() {
                true => format!("a notice to the customers, at least 90 days old, that `{word}` goes from {from} to {to}"),
                false => format!("each customer's consent to a weaker `{word}`, or a notice to them, at least 90 days old, that it goes from {from} to {to}"),
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
            format!("each customer's consent to `{id}`, or an accepted instruction that lists it"),
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

/// Whether the customers were told 90 days ago, of this step.
fn is_announced(change: &Change, measure: Measure, new: &Policy, now: Timestamp) -> bool {
    let [from, to] = words(change, measure);
    new.notices.iter().any(|notice| {
        let is_far_enough = *notice.to == *to || (measure == Measure::ClientAuthentication && &*notice.to == "none");
        let is_old = notice.given_at.checked_add(NOTICE).is_ok_and(|end| end <= now);
        notice.measure == measure && *notice.from == *from && is_far_enough && is_old
    })
}

fn in_force(customer: &Customer, now: Timestamp) -> impl Iterator<Item = &Instruction> {
    customer.instructions.iter().filter(move |it| it.in_force.is_some_and(|period| period.contains(now)))
}

fn names_purpose(instruction: &Instruction, policy: &Policy, purpose: &str) -> bool {
    let purposes = instruction.permits.as_ref().and_then(|permits| permits.purposes);
    purposes.is_some_and(|set| policy.purpose_named(purpose).is_some_and(|id| set.contains(id)))
}

fn rests_on_another(customer: &Customer, old: &Policy, now: Timestamp) -> bool {
    let before = old.customer_named(customer.id.as_str()).and_then(|id| old.customer(id));
    let before = before.and_then(|before| old.residency(before).instruction.as_deref());
    // The default rests on no single customer's word.
    let own = customer.residency.as_ref().and_then(|residency| residency.instruction.as_deref());
    let named = own.filter(|named| before != Some(*named));
    named.is_some_and(|named| in_force(customer, now).any(|it| it.id.as_str() == named))
}

fn has_accepted(customer: &Customer, policy: &Policy, subprocessor: &str, now: Timestamp) -> bool {
    let Some(id) = policy.subprocessor_named(subprocessor) else { return false };
    let lists = |it: &Instruction| {
        let list = it.permits.as_ref().and_then(|permits| permits.subprocessors.as_ref());
        list.is_some_and(|list| list.contains(&id))
    };
    customer.consents.iter().any(|(other, since)| *other == id && *since <= now) || in_force(customer, now).any(lists)
}
