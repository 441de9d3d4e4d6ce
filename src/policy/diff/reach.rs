//! What one policy lets pass for a customer, and when.

use std::collections::HashSet;

use jiff::Timestamp;

use super::gains::Open;
use super::spans::Span;
use crate::policy::Customer;
use crate::policy::OwnCaller;
use crate::policy::Permits;
use crate::policy::Policy;
use crate::policy::PurposeId;
use crate::policy::PurposeKind;
use crate::policy::PurposeSet;
use crate::policy::Subprocessor;
use crate::policy::SubprocessorId;
use crate::policy::terms::Location;

/// What a request for a customer may be for, and when: what needs no instruction, and what one permits.
pub(super) fn open(policy: &Policy, customer: &Customer, since: Timestamp) -> Open {
    let mut instructed = PurposeSet::default();
    in_force(customer).for_each(|permits| instructed.join(permits.purposes.unwrap_or_default()));
    let bound = Span::since(customer.accepted_at).and(Span::since(Some(since)));
    let purposes = (0..).map(PurposeId).zip(&policy.purposes).filter(|(id, purpose)| {
        let is_permitted = customer.permitted_purposes.contains(*id) || purpose.kind == PurposeKind::RightsFulfilment;
        instructed.contains(*id) || (is_permitted && !purpose.requires_instruction)
    });
    let spans = purposes
        .map(|(id, purpose)| (id, bound.and(unsuspended(customer, purpose.kind)).and(unended(customer, purpose.kind))));
    Open(spans.filter(|(_, span)| !span.is_empty()).collect())
}

/// What a request could be for, if nothing were closed.
pub(super) fn all_open(policy: &Policy, since: Timestamp) -> Open {
    let purposes = (0..).map(PurposeId).zip(&policy.purposes);
    Open(purposes.map(|(id, _)| (id, Span::since(Some(since)))).collect())
}

/// What the instructions permit that hold at some time.
pub(super) fn in_force(customer: &Customer) -> impl Iterator<Item = &Permits> {
    customer.instructions.iter().filter(|it| it.in_force.is_some()).filter_map(|it| it.permits.as_ref())
}

/// What may pass for a customer from a moment on, by its names: purposes (0), and who may have something, of the
/// processor's own callers (1) and the subprocessors (2).
#[must_use]
pub fn open_names<'p>(policy: &'p Policy, customer: &str, since: Timestamp) -> HashSet<(u8, &'p str)> {
    let Some(customer) = policy.customer_named(customer).and_then(|id| policy.customer(id)) else {
        return HashSet::new();
    };
    let open = open(policy, customer, since);
    let purposes = open.0.iter().filter_map(|(id, _)| Some((0, policy.purpose(*id)?.id.as_str())));
    let callers = policy.callers.iter().filter(|caller| !of_caller(policy, customer, &open, caller).is_empty());
    let subprocessors = (0..).map(SubprocessorId).zip(&policy.subprocessors);
    let subprocessors =
        subprocessors.filter(|(id, entry)| !of_subprocessor(policy, customer, &open, *id, entry).is_empty());
    purposes
        .chain(callers.map(|caller| (1, caller.id.as_str())))
        .chain(subprocessors.map(|(_, entry)| (2, entry.id.as_str())))
        .collect()
}

/// What a caller may do for a customer, and when, of what is open for it.
pub(super) fn of_caller(policy: &Policy, customer: &Customer, open: &Open, caller: &OwnCaller) -> Open {
    if caller.location.is_some_and(|place| !reached(policy, customer, place, None)) {
        return Open(Vec::new());
    }
    open.and(caller.permitted_purposes, bound_by(caller))
}

/// What a subprocessor may have of a customer, and when, of what is open for it.
pub(super) fn of_subprocessor(
    policy: &Policy,
    customer: &Customer,
    open: &Open,
    id: SubprocessorId,
    entry: &Subprocessor,
) -> Open {
    if !kept(policy, customer, entry) || !reaches(policy, customer, id, entry) {
        return Open(Vec::new());
    }
    let mut purposes = entry.permitted_purposes;
    for permits in in_force(customer) {
        let is_listed = permits.subprocessors.as_ref().is_some_and(|list| list.contains(&id));
        purposes.join(permits.purposes.filter(|_| is_listed).unwrap_or_default());
    }
    let window = Span::of(entry.agreement)
        .and(Span::since(starts(customer, id, entry)))
        .and(Span::before(entry.effective.until))
        .and(Span::before(first(&customer.objections, id)));
    open.and(purposes, window)
}

/// While no law bars this purpose (clause 4.3).
pub(super) fn unsuspended(customer: &Customer, purpose: PurposeKind) -> Span {
    Span::before(customer.suspended_at.filter(|_| purpose != PurposeKind::DataReturn))
}

/// While the agreement has not ended for this purpose (clause 1.3).
pub(super) fn unended(customer: &Customer, purpose: PurposeKind) -> Span {
    Span::before(customer.ending.and_then(|(ended, return_until)| match purpose {
        PurposeKind::DataReturn => Some(return_until.max(ended)),
        PurposeKind::Erasure | PurposeKind::LegalCompliance | PurposeKind::RightsFulfilment => None,
        PurposeKind::Sale
        | PurposeKind::CrossContextAdvertising
        | PurposeKind::OwnPurpose
        | PurposeKind::ModelTraining
        | PurposeKind::Other => Some(ended),
    }))
}

/// While the people behind a caller are bound to confidentiality, if there are any.
pub(super) fn bound_by(caller: &OwnCaller) -> Span {
    caller.undertaking.map_or(Span::ALWAYS, |period| Span::of(Some(period)))
}

pub(super) fn reached(policy: &Policy, customer: &Customer, place: Location, party: Option<SubprocessorId>) -> bool {
    let residency = policy.residency(customer);
    let opens = |transfer: &crate::policy::Transfer| {
        (transfer.subprocessor.is_none() || transfer.subprocessor == party) && transfer.to.contains(&place)
    };
    residency.access_locations.iter().any(|allowed| allowed.covers(place)) || residency.transfers.iter().any(opens)
}

pub(super) fn reaches(policy: &Policy, customer: &Customer, id: SubprocessorId, entry: &Subprocessor) -> bool {
    entry.access_locations.iter().all(|place| reached(policy, customer, *place, Some(id)))
}

pub(super) fn kept(policy: &Policy, customer: &Customer, entry: &Subprocessor) -> bool {
    let residency = policy.residency(customer);
    let allowed = |place: &Location| residency.storage_locations.iter().any(|allowed| allowed.covers(*place));
    entry.storage_locations.iter().all(allowed)
}

/// From when a customer lets a subprocessor have data: its date, or sooner by a consent.
pub(super) fn starts(customer: &Customer, id: SubprocessorId, entry: &Subprocessor) -> Option<Timestamp> {
    let consented = first(&customer.consents, id).unwrap_or(Timestamp::MAX);
    Some(entry.effective.from.min(consented))
}

/// The first date of a subprocessor in a list.
pub(super) fn first(list: &[(SubprocessorId, Timestamp)], id: SubprocessorId) -> Option<Timestamp> {
    list.iter().filter(|(other, _)| *other == id).map(|(_, since)| *since).min()
}
