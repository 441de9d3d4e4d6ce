//! Why a request was denied, for people: what each reason lacks and where the policy says so.
//!
//! Says what is missing, never how to permit more.

use super::facts::Customers;
use super::facts::Direction;
use super::facts::Facts;
use super::reason::Code;
use crate::policy::Party;
use crate::policy::Policy;
use crate::policy::places::Place;

/// Who and what a decision is about, by name: from facts, or from a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The customer.
    pub customer: Option<String>,
    /// One of the processor's own callers.
    pub own_caller: Option<String>,
    /// The subprocessor that receives data.
    pub subprocessor: Option<String>,
    /// The purpose.
    pub purpose: Option<String>,
    /// The operation.
    pub operation: Option<String>,
    /// The instruction.
    pub instruction: Option<String>,
}

impl Names {
    /// The names in the facts of a request.
    #[must_use]
    pub fn of(facts: &Facts<'_>, policy: &Policy) -> Self {
        let customer = match facts.customers.known() {
            Some(Customers::One(id)) => policy.customer(*id),
            Some(Customers::Several { .. }) | None => None,
        };
        let party = facts.caller.known().and_then(|caller| caller.party);
        let own_caller = match party {
            Some(Party::Own(id)) => policy.caller(id).map(|caller| caller.id.to_string()),
            Some(Party::Subprocessor(_) | Party::Customer(_)) | None => None,
        };
        let subprocessor = match (facts.direction, party) {
            (Direction::Egress(id), _) | (Direction::Ingress, Some(Party::Subprocessor(id))) => policy.subprocessor(id),
            (Direction::Ingress, Some(Party::Own(_) | Party::Customer(_)) | None) => None,
        };
        let instruction = facts.instruction.known().and_then(|place| customer?.instructions.get(*place));
        Self {
            customer: customer.map(|customer| customer.id.to_string()),
            own_caller,
            subprocessor: subprocessor.map(|entry| entry.id.to_string()),
            purpose: facts.purpose.known().and_then(|id| policy.purpose(*id)).map(|purpose| purpose.id.to_string()),
            operation: facts.operation.known().map(|operation| operation.as_str().to_owned()),
            instruction: instruction.map(|instruction| instruction.id.to_string()),
        }
    }

    fn customer_at(&self, key: &'static str) -> Option<Place> {
        self.customer.clone().map(|id| Place::Customer(id, key))
    }

    fn caller_at(&self, key: &'static str) -> Option<Place> {
        self.own_caller.clone().map(|id| Place::Caller(id, key))
    }

    fn subprocessor_at(&self, key: &'static str) -> Option<Place> {
        self.subprocessor.clone().map(|id| Place::Subprocessor(id, key))
    }
}

/// What a reason lacks, and the places of the policy that it rests on.
#[must_use]
pub fn missing(code: Code, names: &Names) -> (String, Vec<Place>) {
    let or = |name: &Option<String>, other: &str| name.as_ref().map_or(other.to_owned(), |name| format!("`{name}`"));
    let customer = or(&names.customer, "the customer");
    let caller = or(&names.own_caller, "the caller");
    let subprocessor = or(&names.subprocessor, "the subprocessor");
    let purpose = or(&names.purpose, "the purpose");
    let operation = or(&names.operation, "the operation");
    let (text, places) = match code {
        Code::CallerUnidentified => {
            ("a proof of who asks, in one of the ways that the settings list under `identity`".to_owned(), vec![])
        }
        Code::TransportTooWeak => (
            "a connection as the policy promises it: TLS version, client certificate".to_owned(),
            vec![Some(Place::Top("security_measures"))],
        ),
        Code::RouteUnmapped => {
            ("a route of the settings that has this path and method, and an operation".to_owned(), vec![])
        }
        Code::CustomerMissing => ("the customer's id, where the route takes it from".to_owned(), vec![]),
        Code::CustomerUnknown => ("a customer that the policy has".to_owned(), vec![Some(Place::Top("customers"))]),
        Code::CustomerMismatch => (
            format!("a caller that may speak for {customer}; this one belongs to another customer"),
            vec![names.customer_at("identities")],
        ),
        Code::CrossCustomerCombination => ("a request about one customer only".to_owned(), vec![]),
        Code::DpaNotInForce => {
            (format!("an acceptance of the agreement by {customer}, from before now"), vec![names.customer_at("dpa")])
        }
        Code::ProcessingRestricted => (
            format!("nothing: the agreement with {customer} has ended, and {purpose} is not one of the purposes left"),
            vec![names.customer_at("dpa")],
        ),
        Code::ProcessingSuspended => (
            format!("nothing: the law bars the service for {customer}, and only `data_return` is left"),
            vec![names.customer_at("dpa")],
        ),
        Code::PurposeProhibited => (format!("nothing: {purpose} is prohibited by the agreement itself"), vec![]),
        Code::PurposeMissing => ("the purpose, where the route takes it from".to_owned(), vec![]),
        Code::PurposeUnknown => ("a purpose that the policy has".to_owned(), vec![Some(Place::Top("purposes"))]),
        Code::PurposeNotPermitted => (
            format!("{purpose} is not among the purposes of {customer}, and no instruction that counts names it"),
            vec![names.customer_at("permitted_purposes")],
        ),
        Code::PurposeNotBoundToCaller => (
            format!("a purpose that {caller} is there for; {purpose} is not one of them"),
            vec![names.caller_at("permitted_purposes")],
        ),
        Code::OperationNotPermitted => (
            format!("an operation that the caller and the recipient may do; {operation} is not one of them"),
            vec![names.caller_at("operations"), names.subprocessor_at("operations")],
        ),
        Code::RecipientUnknown => (
            "nothing: the caller is proven, and no party to the agreement".to_owned(),
            vec![Some(Place::Top("subprocessors"))],
        ),
        Code::SubprocessorAgreementMissing => (
            format!("a written agreement with {subprocessor} that is in force and passes the duties on"),
            vec![names.subprocessor_at("agreement")],
        ),
        Code::SubprocessorNotEffective => (
            format!("the day on which {subprocessor} may be used, or the customer's consent from before it"),
            vec![names.subprocessor_at("effective_at"), names.customer_at("consents")],
        ),
        Code::SubprocessorRemoved => {
            (format!("nothing: {subprocessor} has been removed"), vec![names.subprocessor_at("removed_at")])
        }
        Code::SubprocessorObjected => {
            (format!("nothing: {customer} refused {subprocessor}"), vec![names.customer_at("objections")])
        }
        Code::SubprocessorScope => (
            format!("a purpose and data that {subprocessor} is there for"),
            vec![names.subprocessor_at("permitted_purposes"), names.subprocessor_at("data_categories")],
        ),
        Code::ConfidentialityMissing => {
            (format!("an undertaking in force of the people behind {caller}"), vec![names.caller_at("human_access")])
        }
        Code::ResidencyStorage => (
            format!("a service, and a recipient, that keep data only where {customer} agreed to"),
            vec![residency(names), names.subprocessor_at("storage_locations")],
        ),
        Code::ResidencyAccess => (
            format!("a caller, and on egress a recipient, in places that {customer} agreed to"),
            vec![residency(names), names.caller_at("location"), names.subprocessor_at("access_locations")],
        ),
        Code::LocationUnknown => (
            format!("a signed claim of where {caller} is; its entry does not say it"),
            vec![names.caller_at("location")],
        ),
        Code::SubscriberRestricted => (
            format!("nothing, if the subscriber is named: an instruction of {customer} restricts it; else its name"),
            vec![names.customer_at("instructions")],
        ),
        Code::InstructionMissing => (
            format!("an instruction of {customer} that names {purpose} and covers the request, or a request reference"),
            vec![names.purpose.clone().map(Place::Purpose), names.customer_at("instructions")],
        ),
        Code::InstructionInvalid => (
            format!("an instruction of {customer} that is accepted, with a reference, and within its dates"),
            vec![match (&names.customer, &names.instruction) {
                (Some(customer), Some(id)) => Some(Place::Instruction(customer.clone(), id.clone())),
                (Some(_), None) | (None, _) => names.customer_at("instructions"),
            }],
        ),
    };
    (text, places.into_iter().flatten().collect())
}

fn residency(names: &Names) -> Option<Place> {
    names.customer.clone().map(Place::Residency)
}
