//! Step 5: holds the facts against the agreement.
//!
//! Pure: no I/O, no http, no async, no clock. The rules stand in the order of the reasons, class by
//! class; each is named after the code that it reports.

pub mod decision;
pub mod explain;
pub mod facts;
pub mod obligation;
pub mod reason;

use jiff::Timestamp;

use self::decision::Authority;
use self::decision::Decision;
use self::decision::Outcome;
use self::facts::Caller;
use self::facts::Customers;
use self::facts::Direction;
use self::facts::Fact;
use self::facts::Facts;
use self::facts::Scope;
use self::facts::Why;
use self::reason::Code;
use self::reason::Kind;
use self::reason::Reason;
use crate::policy::Customer;
use crate::policy::Enforcement;
use crate::policy::Instruction;
use crate::policy::OwnCaller;
use crate::policy::Party;
use crate::policy::Policy;
use crate::policy::Purpose;
use crate::policy::PurposeId;
use crate::policy::PurposeKind;
use crate::policy::Subprocessor;
use crate::policy::SubprocessorId;
use crate::policy::Transfer;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;
use crate::policy::within;

/// Decides one request at the moment `now`.
///
/// Reports every violation and gap in the order of the table, each code once. If a reason of class
/// caller, route, customer or agreement stands, later classes are not weighed: what they would say
/// rests on what is not known.
#[must_use]
pub fn decide<'p>(policy: &'p Policy, facts: &Facts<'_>, now: Timestamp) -> Decision<'p> {
    let enforcement = enforcement(policy, facts);
    let deny = |reasons| Decision { outcome: Outcome::Deny(reasons), enforcement };
    if facts.scope == Scope::Outside {
        let outcome = Outcome::Permit { authority: Authority::OutOfScope, transfer_ref: None };
        return Decision { outcome, enforcement };
    }

    let mut reasons = Reasons::default();
    let caller = weigh_caller(policy, facts, &mut reasons);
    if !reasons.0.is_empty() {
        return deny(reasons.0);
    }
    let operation = weigh_route(facts, &mut reasons);
    if !reasons.0.is_empty() {
        return deny(reasons.0);
    }
    let customer = weigh_customer(policy, facts, &mut reasons);
    if !reasons.0.is_empty() {
        return deny(reasons.0);
    }
    let (Some(caller), Some(operation), Some(customer)) = (caller, operation, customer) else {
        // Each is missing only if a reason above says so.
        return deny(vec![Reason::new(Code::RouteUnmapped, Kind::Gap)]);
    };
    let purpose = facts.purpose.known().and_then(|id| Some((*id, policy.purpose(*id)?)));
    weigh_agreement(customer, purpose, now, &mut reasons);
    if !reasons.0.is_empty() {
        return deny(reasons.0);
    }

    let request = Request::of(policy, facts, caller, customer, purpose, operation, now);
    let mut transfer_ref = None;
    request.weigh_prohibited(&mut reasons);
    request.weigh_purpose(facts, &mut reasons);
    request.weigh_recipient(&mut reasons);
    request.weigh_residency(policy, facts, &mut reasons, &mut transfer_ref);
    request.weigh_data(facts, &mut reasons);
    request.weigh_instruction(facts, &mut reasons);

    if !reasons.0.is_empty() {
        return deny(reasons.0);
    }
    let authority = match purpose {
        Some((_, purpose)) if purpose.is_legal => Authority::LegalRequirement,
        Some((_, purpose)) if purpose.requires_instruction || reasons.1 => Authority::Instruction,
        Some(_) | None => Authority::PermittedPurpose,
    };
    Decision { outcome: Outcome::Permit { authority, transfer_ref }, enforcement }
}

/// Whether a purpose is carried out whatever is restricted for the subscriber.
#[must_use]
pub fn is_exempt_of_restrictions(purpose: PurposeKind) -> bool {
    matches!(purpose, PurposeKind::RightsFulfilment | PurposeKind::LegalCompliance | PurposeKind::Erasure)
}

/// Rule (h): the customer's setting, else the default; of several, the strictest.
fn enforcement(policy: &Policy, facts: &Facts<'_>) -> Enforcement {
    let of = |id: &_| policy.customer(*id).map_or(policy.enforcement, |customer| customer.enforcement);
    match facts.customers.known() {
        None => policy.enforcement,
        Some(Customers::One(id)) => of(id),
        Some(Customers::Several { known, unknown }) => {
            let unknown_observed = *unknown == 0 || policy.enforcement == Enforcement::Observe;
            let observed = unknown_observed && known.iter().all(|id| of(id) == Enforcement::Observe);
            if observed { Enforcement::Observe } else { Enforcement::Enforce }
        }
    }
}

/// The reasons so far, and whether an instruction lifted one.
#[derive(Default)]
struct Reasons(Vec<Reason>, bool);

impl Reasons {
    fn push(&mut self, reason: Reason) {
        if !switch::is_off(reason.code) {
            self.0.push(reason);
        }
    }

    fn violation(&mut self, code: Code) {
        self.push(Reason::new(code, Kind::Violation));
    }

    fn gap(&mut self, code: Code) {
        self.push(Reason::new(code, Kind::Gap));
    }

    /// A violation, unless an instruction lifts it.
    fn violation_unless(&mut self, lifted: bool, code: Code) {
        if lifted {
            self.1 = true;
        } else {
            self.violation(code);
        }
    }
}

/// Class caller.
fn weigh_caller<'f>(policy: &Policy, facts: &'f Facts<'_>, reasons: &mut Reasons) -> Option<&'f Caller> {
    let caller = facts.caller.known();
    if caller.is_none() {
        reasons.gap(Code::CallerUnidentified);
    }
    // Rule (g). A Unix socket never leaves the machine; on egress the sidecar is the one who connects.
    if facts.direction == Direction::Ingress && !facts.transport.is_unix {
        let version_too_low = policy.security.min_tls_version.is_some_and(|floor| facts.transport.tls < Some(floor));
        let certificate_missing = policy.security.client_certificate_required && !facts.transport.client_certificate;
        if version_too_low || certificate_missing {
            reasons.violation(Code::TransportTooWeak);
        }
    }
    caller
}

/// Class route.
fn weigh_route(facts: &Facts<'_>, reasons: &mut Reasons) -> Option<Operation> {
    let operation = facts.operation.known().copied().filter(|_| facts.scope != Scope::Unmapped);
    if operation.is_none() {
        reasons.gap(Code::RouteUnmapped);
    }
    operation
}

/// Class customer.
fn weigh_customer<'p>(policy: &'p Policy, facts: &Facts<'_>, reasons: &mut Reasons) -> Option<&'p Customer> {
    let own = match facts.caller.known().and_then(|caller| caller.party) {
        Some(Party::Customer(id)) => Some(id),
        Some(Party::Own(_) | Party::Subprocessor(_)) | None => None,
    };
    match &facts.customers {
        Fact::Known(Customers::One(id), _) => {
            if own.is_some_and(|own| own != *id) {
                reasons.violation(Code::CustomerMismatch);
            }
            policy.customer(*id)
        }
        Fact::Known(Customers::Several { known, unknown }, _) => {
            if *unknown > 0 {
                reasons.violation(Code::CustomerUnknown);
            }
            if own.is_some_and(|own| known.iter().any(|id| *id != own)) {
                reasons.violation(Code::CustomerMismatch);
            }
            reasons.violation(Code::CrossCustomerCombination);
            None
        }
        Fact::Unknown(Why::NotInPolicy { .. } | Why::Malformed) => {
            reasons.violation(Code::CustomerUnknown);
            None
        }
        Fact::None | Fact::Unknown(Why::Missing | Why::Unproven | Why::Contradicted | Why::Flawed(_)) => {
            reasons.gap(Code::CustomerMissing);
            None
        }
    }
}

/// Class agreement.
fn weigh_agreement(customer: &Customer, purpose: Option<(PurposeId, &Purpose)>, now: Timestamp, reasons: &mut Reasons) {
    if customer.accepted_at.is_none_or(|accepted| now < accepted) {
        reasons.violation(Code::DpaNotInForce);
    }
    let Some((_, purpose)) = purpose else { return };
    if let Some((ended, return_until)) = customer.ending
        && ended <= now
    {
        let passes = match purpose.kind {
            PurposeKind::DataReturn => now < return_until,
            PurposeKind::Erasure | PurposeKind::LegalCompliance | PurposeKind::RightsFulfilment => true,
            PurposeKind::Sale
            | PurposeKind::CrossContextAdvertising
            | PurposeKind::OwnPurpose
            | PurposeKind::ModelTraining
            | PurposeKind::Other => false,
        };
        if !passes {
            reasons.violation(Code::ProcessingRestricted);
        }
    }
    if customer.suspended_at.is_some_and(|suspended| suspended <= now) && purpose.kind != PurposeKind::DataReturn {
        reasons.violation(Code::ProcessingSuspended);
    }
}

/// Who the caller is to the rules of class recipient and residency.
enum Side<'p> {
    /// One of the processor's own.
    Own(&'p OwnCaller),
    /// A customer's own caller.
    Customer,
    /// A subprocessor, the recipient on ingress.
    Subprocessor(SubprocessorId, &'p Subprocessor),
    /// A proven nobody.
    ThirdParty,
}

/// The instruction that the request names.
enum Named<'p> {
    Nothing,
    Invalid,
    Valid(&'p Instruction),
}

/// A request of a known caller for a known customer under an agreement in force.
struct Request<'p> {
    caller: Side<'p>,
    customer: &'p Customer,
    /// Who receives data as a subprocessor: the caller on ingress, the upstream on egress.
    recipient: Option<(SubprocessorId, &'p Subprocessor)>,
    is_egress: bool,
    /// Whether the upstream is no subprocessor of the policy.
    is_to_nobody: bool,
    /// `None`: missing or unknown. A prohibited purpose is here, and looked up by nobody.
    purpose: Option<(PurposeId, &'p Purpose)>,
    operation: Operation,
    data_outside: bool,
    named: Named<'p>,
    /// The named instruction, if it counts (rule f).
    counting: Option<&'p Instruction>,
    now: Timestamp,
}

impl<'p> Request<'p> {
    fn of(
        policy: &'p Policy,
        facts: &Facts<'_>,
        caller: &Caller,
        customer: &'p Customer,
        purpose: Option<(PurposeId, &'p Purpose)>,
        operation: Operation,
        now: Timestamp,
    ) -> Self {
        let caller = match caller.party {
            Some(Party::Own(id)) => policy.caller(id).map(Side::Own),
            Some(Party::Subprocessor(id)) => policy.subprocessor(id).map(|entry| Side::Subprocessor(id, entry)),
            Some(Party::Customer(_)) => Some(Side::Customer),
            None => None,
        }
        .unwrap_or(Side::ThirdParty);
        let recipient = match (facts.direction, &caller) {
            (Direction::Egress(id), _) => policy.subprocessor(id).map(|entry| (id, entry)),
            (Direction::Ingress, Side::Subprocessor(id, entry)) => Some((*id, *entry)),
            (Direction::Ingress, Side::Own(_) | Side::Customer | Side::ThirdParty) | (Direction::EgressToNobody, _) => {
                None
            }
        };
        let data_outside = recipient.is_some_and(|(_, entry)| {
            let covered = |data| entry.data_categories.iter().any(|category| category.covers(data));
            !facts.data_categories.iter().all(covered)
        });
        let named = match &facts.instruction {
            Fact::None => Named::Nothing,
            Fact::Unknown(_) => Named::Invalid,
            Fact::Known(index, _) => match customer.instructions.get(*index) {
                Some(instruction) if instruction.in_force.is_some_and(|period| period.contains(now)) => {
                    Named::Valid(instruction)
                }
                Some(_) | None => Named::Invalid,
            },
        };
        let mut request = Self {
            caller,
            customer,
            recipient,
            is_egress: facts.direction != Direction::Ingress,
            is_to_nobody: facts.direction == Direction::EgressToNobody,
            purpose,
            operation,
            data_outside,
            named,
            counting: None,
            now,
        };
        request.counting = match request.named {
            Named::Valid(instruction) if request.lies_within(instruction, facts) => Some(instruction),
            Named::Valid(_) | Named::Invalid | Named::Nothing => None,
        };
        request
    }

    /// Rule (f): whether the request lies within every list that the instruction has.
    fn lies_within(&self, instruction: &Instruction, facts: &Facts<'_>) -> bool {
        let Some(permits) = &instruction.permits else { return true };
        let purpose = self.purpose.map(|(id, _)| id);
        let recipient = self.recipient.map(|(id, _)| id);
        permits.purposes.is_none_or(|set| purpose.is_some_and(|id| set.contains(id)))
            && within(permits.operations, self.operation)
            && permits.subprocessors.as_ref().is_none_or(|list| recipient.is_some_and(|id| list.contains(&id)))
            && permits.data_categories.as_ref().is_none_or(|list| {
                facts.data_categories.iter().all(|data| list.iter().any(|category| category.covers(data)))
            })
    }

    /// Whether the counting instruction names the purpose.
    fn instruction_names_purpose(&self) -> bool {
        let purposes = self.counting.and_then(|instruction| instruction.permits.as_ref()?.purposes);
        purposes.is_some_and(|set| self.purpose.is_some_and(|(id, _)| set.contains(id)))
    }

    /// What the counting instruction permits this subprocessor, if it lists it.
    fn instructed(&self, subprocessor: SubprocessorId) -> Option<&'p crate::policy::Permits> {
        let permits = self.counting?.permits.as_ref()?;
        permits.subprocessors.as_ref().filter(|list| list.contains(&subprocessor)).map(|_| permits)
    }

    fn weigh_prohibited(&self, reasons: &mut Reasons) {
        if let Some(reason) = self.purpose.and_then(|(_, purpose)| Reason::prohibited(purpose.kind)) {
            reasons.push(reason);
        }
    }

    /// The purpose, unless it is prohibited: such a one is not looked up further (rule c).
    fn ordinary_purpose(&self) -> Option<(PurposeId, &'p Purpose)> {
        self.purpose.filter(|(_, purpose)| !purpose.kind.is_prohibited())
    }

    fn weigh_purpose(&self, facts: &Facts<'_>, reasons: &mut Reasons) {
        match facts.purpose {
            Fact::Unknown(Why::NotInPolicy { .. } | Why::Malformed) => reasons.violation(Code::PurposeUnknown),
            Fact::None | Fact::Unknown(Why::Missing | Why::Unproven | Why::Contradicted | Why::Flawed(_)) => {
                reasons.gap(Code::PurposeMissing);
            }
            Fact::Known(..) => {}
        }
        if let Some((id, purpose)) = self.ordinary_purpose() {
            let is_right = purpose.kind == PurposeKind::RightsFulfilment && facts.request_ref.known().is_some();
            if !self.customer.permitted_purposes.contains(id) && !is_right {
                reasons.violation_unless(self.instruction_names_purpose(), Code::PurposeNotPermitted);
            }
            if let Side::Own(caller) = self.caller
                && !caller.permitted_purposes.contains(id)
            {
                reasons.violation(Code::PurposeNotBoundToCaller);
            }
        }
        let own_may = match self.caller {
            Side::Own(caller) => within(caller.operations, self.operation),
            Side::Customer | Side::Subprocessor(..) | Side::ThirdParty => true,
        };
        let recipient_refuses = self.recipient.filter(|(_, entry)| !within(entry.operations, self.operation));
        if !own_may {
            reasons.violation(Code::OperationNotPermitted);
        } else if let Some((id, _)) = recipient_refuses {
            let lifted = self.instructed(id).is_some_and(|permits| permits.operations.is_some());
            reasons.violation_unless(lifted, Code::OperationNotPermitted);
        }
    }

    fn weigh_recipient(&self, reasons: &mut Reasons) {
        if matches!(self.caller, Side::ThirdParty) || self.is_to_nobody {
            reasons.violation(Code::RecipientUnknown);
        }
        if let Some((id, entry)) = self.recipient {
            if !entry.agreement.is_some_and(|period| period.contains(self.now)) {
                reasons.violation(Code::SubprocessorAgreementMissing);
            }
            let has = |list: &[(SubprocessorId, Timestamp)]| {
                list.iter().any(|(other, since)| *other == id && *since <= self.now)
            };
            if self.now < entry.effective.from && !has(&self.customer.consents) {
                reasons.violation(Code::SubprocessorNotEffective);
            }
            if entry.effective.until.is_some_and(|until| until <= self.now) {
                reasons.violation(Code::SubprocessorRemoved);
            }
            if has(&self.customer.objections) {
                reasons.violation(Code::SubprocessorObjected);
            }
            self.weigh_scope(id, entry, reasons);
        }
        if let Side::Own(OwnCaller { undertaking: Some(undertaking), .. }) = self.caller
            && !undertaking.contains(self.now)
        {
            reasons.violation(Code::ConfidentialityMissing);
        }
    }

    /// The two halves of `subprocessor_scope`, reported once.
    fn weigh_scope(&self, id: SubprocessorId, entry: &Subprocessor, reasons: &mut Reasons) {
        let permits = self.instructed(id);
        let purpose_outside = self.ordinary_purpose().is_some_and(|(id, _)| !entry.permitted_purposes.contains(id));
        let purpose_lifted = permits.is_some_and(|permits| permits.purposes.is_some());
        let data_lifted = permits.is_some_and(|permits| permits.data_categories.is_some());
        if (purpose_outside && !purpose_lifted) || (self.data_outside && !data_lifted) {
            reasons.violation(Code::SubprocessorScope);
        } else if purpose_outside || self.data_outside {
            reasons.1 = true;
        }
    }

    fn weigh_residency(
        &self,
        policy: &'p Policy,
        facts: &Facts<'_>,
        reasons: &mut Reasons,
        transfer_ref: &mut Option<&'p str>,
    ) {
        let residency = policy.residency(self.customer);
        let kept = |place: &Location| residency.storage_locations.iter().any(|allowed| allowed.covers(*place));
        let recipient_keeps = self.recipient.is_none_or(|(_, entry)| entry.storage_locations.iter().all(kept));
        if !kept(&facts.storage) || !recipient_keeps {
            reasons.violation(Code::ResidencyStorage);
        }

        // Rule (e): the caller, and on egress the recipient. A customer's own caller and a third party
        // have no locations to bind.
        let claimed;
        let (caller_places, caller_id): (&[Location], _) = match self.caller {
            Side::Own(OwnCaller { location: Some(location), .. }) => (std::slice::from_ref(location), None),
            Side::Own(OwnCaller { location: None, .. }) => {
                claimed = facts.location.known().copied();
                (claimed.as_slice(), None)
            }
            Side::Subprocessor(id, entry) => (&entry.access_locations, Some(id)),
            Side::Customer | Side::ThirdParty => (&[], None),
        };
        let recipient = self.recipient.filter(|_| self.is_egress);
        let (recipient_places, recipient_id): (&[Location], _) =
            recipient.map_or((&[], None), |(id, entry)| (&entry.access_locations, Some(id)));
        let agreed = |place: &Location| residency.access_locations.iter().any(|allowed| allowed.covers(*place));
        let opens = |transfer: &Transfer, party: Option<SubprocessorId>, place: &Location| {
            (transfer.subprocessor.is_none() || transfer.subprocessor == party) && transfer.to.contains(place)
        };
        let reached = |places: &[Location], party| {
            let open = |place| residency.transfers.iter().any(|transfer| opens(transfer, party, place));
            places.iter().all(|place| agreed(place) || open(place))
        };
        let first_needed = |places: &[Location], party| {
            let needed =
                |transfer: &&Transfer| places.iter().any(|place| !agreed(place) && opens(transfer, party, place));
            residency.transfers.iter().find(needed).map(|transfer| &*transfer.reference)
        };
        if reached(caller_places, caller_id) && reached(recipient_places, recipient_id) {
            *transfer_ref =
                first_needed(caller_places, caller_id).or_else(|| first_needed(recipient_places, recipient_id));
        } else {
            reasons.violation(Code::ResidencyAccess);
        }

        if matches!(self.caller, Side::Own(OwnCaller { location: None, .. })) && facts.location.known().is_none() {
            reasons.gap(Code::LocationUnknown);
        }
    }

    fn weigh_data(&self, facts: &Facts<'_>, reasons: &mut Reasons) {
        // Which purposes are exempt cannot be told without one.
        let Some((_, purpose)) = self.purpose else { return };
        if is_exempt_of_restrictions(purpose.kind) {
            return;
        }
        let mut restricted = self
            .customer
            .instructions
            .iter()
            .filter(|instruction| instruction.in_force.is_some_and(|period| period.contains(self.now)))
            .filter_map(|instruction| instruction.restricts.as_deref());
        match &facts.subscriber {
            Fact::None => {}
            Fact::Known(subscriber, _) => {
                if restricted.any(|restricted| restricted == subscriber) {
                    reasons.violation(Code::SubscriberRestricted);
                }
            }
            Fact::Unknown(_) => {
                if restricted.next().is_some() {
                    reasons.gap(Code::SubscriberRestricted);
                }
            }
        }
    }

    fn weigh_instruction(&self, facts: &Facts<'_>, reasons: &mut Reasons) {
        // Rule (d): a named instruction holds, needed or not; then rule (f).
        let needs = self.ordinary_purpose().is_some_and(|(_, purpose)| purpose.requires_instruction);
        let is_missing = match self.named {
            Named::Invalid => false,
            Named::Nothing => needs,
            Named::Valid(_) => needs && !self.instruction_names_purpose(),
        };
        let needs_request =
            self.ordinary_purpose().is_some_and(|(_, purpose)| purpose.kind == PurposeKind::RightsFulfilment);
        if is_missing || (needs_request && facts.request_ref.known().is_none()) {
            reasons.gap(Code::InstructionMissing);
        }
        if matches!(self.named, Named::Invalid) {
            reasons.violation(Code::InstructionInvalid);
        }
    }
}

#[cfg(not(test))]
mod switch {
    /// Every rule counts.
    pub(super) fn is_off(_: super::Code) -> bool {
        false
    }
}

/// Switches a rule off in unit tests, which then see whether any policy test misses it.
#[cfg(test)]
pub(crate) mod switch {
    use std::cell::Cell;

    thread_local! {
        static OFF: Cell<Option<super::Code>> = const { Cell::new(None) };
    }

    pub(super) fn is_off(code: super::Code) -> bool {
        OFF.get() == Some(code)
    }

    pub(crate) fn without<T>(code: super::Code, run: impl FnOnce() -> T) -> T {
        OFF.set(Some(code));
        let result = run();
        OFF.set(None);
        result
    }
}
