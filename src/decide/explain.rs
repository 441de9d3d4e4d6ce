//! Why a request was denied, for people, and where the policy says so. Never how to permit more.

use super::facts::Customers;
use super::facts::Direction;
use super::facts::Facts;
use super::reason::Code;
use super::reason::Kind;
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
            (Direction::Ingress, Some(Party::Own(_) | Party::Customer(_)) | None) | (Direction::EgressToNobody, _) => {
                None
            }
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

/// Why a rule does not hold, and the places of the policy that say so.
#[must_use]
pub fn why(code: Code, kind: Kind, names: &Names) -> (String, Vec<Place>) {
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
            "the connection has a lower TLS version than the policy promises, or no client certificate".to_owned(),
            vec![Some(Place::Top("security_measures"))],
        ),
        Code::RouteUnmapped => {
            ("a route of the settings that has this path and method, and an operation".to_owned(), vec![])
        }
        Code::CustomerMissing => ("the customer's id, where the route takes it from".to_owned(), vec![]),
        Code::CustomerUnknown => ("the request names a customer that the policy does not have".to_owned(), vec![]),
        Code::CustomerMismatch => {
            (format!("the caller belongs to another customer than {customer}"), vec![names.customer_at("identities")])
        }
        Code::CrossCustomerCombination => ("the request names more than one customer".to_owned(), vec![]),
        Code::DpaNotInForce => {
            (format!("{customer} had not accepted the agreement at that time"), vec![names.customer_at("dpa")])
        }
        Code::ProcessingRestricted => (
            format!("the agreement with {customer} has ended, and {purpose} is not one of the purposes left"),
            vec![names.customer_at("dpa")],
        ),
        Code::ProcessingSuspended => (
            format!("the law bars the service for {customer}, and only `data_return` is left"),
            vec![names.customer_at("dpa")],
        ),
        Code::PurposeProhibited => (format!("{purpose} is prohibited by the agreement itself"), vec![]),
        Code::PurposeMissing => ("the purpose, where the route takes it from".to_owned(), vec![]),
        Code::PurposeUnknown => ("the request names a purpose that the policy does not have".to_owned(), vec![]),
        Code::PurposeNotPermitted => (
            format!("{purpose} is not among the purposes of {customer}, and no instruction that counts names it"),
            vec![names.customer_at("permitted_purposes")],
        ),
        Code::PurposeNotBoundToCaller => (
            format!("{purpose} is not one of the purposes that {caller} is there for"),
            vec![names.caller_at("permitted_purposes")],
        ),
        Code::OperationNotPermitted => (
            format!(
                "{operation} is not one of the operations of the caller, or of the subprocessor that receives data"
            ),
            vec![names.caller_at("operations"), names.subprocessor_at("operations")],
        ),
        Code::RecipientUnknown => ("the caller is proven, and no party to the agreement".to_owned(), vec![]),
        Code::SubprocessorAgreementMissing => (
            format!("there is no written agreement with {subprocessor} that was in force and passes the duties on"),
            vec![names.subprocessor_at("agreement")],
        ),
        Code::SubprocessorNotEffective => (
            format!("{subprocessor} could not be used yet at that time, and {customer} had not consented earlier"),
            vec![names.subprocessor_at("effective_at"), names.customer_at("consents")],
        ),
        Code::SubprocessorRemoved => {
            (format!("{subprocessor} had been removed"), vec![names.subprocessor_at("removed_at")])
        }
        Code::SubprocessorObjected => {
            (format!("{customer} refused {subprocessor}"), vec![names.customer_at("objections")])
        }
        Code::SubprocessorScope => (
            format!("{purpose}, or some of the data, is not what {subprocessor} is there for"),
            vec![names.subprocessor_at("permitted_purposes"), names.subprocessor_at("data_categories")],
        ),
        Code::ConfidentialityMissing => (
            format!("the people behind {caller} had no undertaking in force at that time"),
            vec![names.caller_at("human_access")],
        ),
        Code::ResidencyStorage => (
            format!("the service, or the subprocessor that receives data, keeps it where {customer} did not agree to"),
            vec![residency(names), names.subprocessor_at("storage_locations")],
        ),
        Code::ResidencyAccess => (
            format!("the caller, or the subprocessor that data is sent to, is where {customer} did not agree to"),
            vec![residency(names), names.caller_at("location"), names.subprocessor_at("access_locations")],
        ),
        Code::LocationUnknown => (
            format!("a signed claim of where {caller} is; its entry does not say it"),
            vec![names.caller_at("location")],
        ),
        Code::SubscriberRestricted => (
            match kind {
                Kind::Violation => format!("an instruction of {customer} restricts the subscriber's data"),
                Kind::Gap => {
                    format!("the subscriber, where the route takes it from; an instruction of {customer} restricts one")
                }
            },
            vec![names.customer_at("instructions")],
        ),
        Code::InstructionMissing => (
            format!("an instruction of {customer} that names {purpose} and covers the request, or a request reference"),
            vec![names.purpose.clone().map(Place::Purpose), names.customer_at("instructions")],
        ),
        Code::InstructionInvalid => (
            format!(
                "the instruction named is not one of {customer} that was accepted, with a reference, and within its dates"
            ),
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
