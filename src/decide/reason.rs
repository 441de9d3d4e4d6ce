//! Why a request may not pass: code, class, kind, clause, obligation.

use schemars::JsonSchema;

use crate::policy::PurposeKind;

/// Classes of reasons, in the order in which they are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Who asks.
    Caller,
    /// By which route.
    Route,
    /// For whom.
    Customer,
    /// Under which agreement.
    Agreement,
    /// What nobody may.
    Prohibited,
    /// What for.
    Purpose,
    /// To whom.
    Recipient,
    /// Where.
    Residency,
    /// About whom.
    Data,
    /// On whose word.
    Instruction,
}

/// A rule known not to hold, or one that nobody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Kind {
    /// Known not to hold.
    Violation,
    /// Cannot tell.
    Gap,
}

impl Kind {
    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Violation => "violation",
            Self::Gap => "gap",
        }
    }
}

/// The stable codes, in the order of the table in `docs/reasons.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// Nobody proved who asks.
    CallerUnidentified,
    /// The connection is weaker than promised.
    TransportTooWeak,
    /// No route says what the request is about.
    RouteUnmapped,
    /// No customer is named.
    CustomerMissing,
    /// A customer is named that the policy does not have.
    CustomerUnknown,
    /// A customer's caller asks for another customer's data.
    CustomerMismatch,
    /// More than one customer is named.
    CrossCustomerCombination,
    /// The agreement is not accepted.
    DpaNotInForce,
    /// The agreement has ended.
    ProcessingRestricted,
    /// The law bars the service.
    ProcessingSuspended,
    /// The purpose is prohibited by the agreement itself.
    PurposeProhibited,
    /// No purpose is named.
    PurposeMissing,
    /// A purpose is named that the policy does not have.
    PurposeUnknown,
    /// The customer does not permit the purpose.
    PurposeNotPermitted,
    /// The caller is not there for the purpose.
    PurposeNotBoundToCaller,
    /// The caller or recipient may not do this.
    OperationNotPermitted,
    /// The caller is no party to the agreement.
    RecipientUnknown,
    /// The subprocessor is not bound in writing.
    SubprocessorAgreementMissing,
    /// The subprocessor may not be used yet.
    SubprocessorNotEffective,
    /// The subprocessor may not be used any more.
    SubprocessorRemoved,
    /// The customer refused the subprocessor.
    SubprocessorObjected,
    /// The subprocessor is not there for this purpose or data.
    SubprocessorScope,
    /// People without an undertaking in force.
    ConfidentialityMissing,
    /// Data would be kept where the customer does not allow it.
    ResidencyStorage,
    /// Data would be reached from where the customer does not allow it.
    ResidencyAccess,
    /// Nobody knows where the caller is.
    LocationUnknown,
    /// The subscriber's data is restricted.
    SubscriberRestricted,
    /// An instruction or request reference is needed.
    InstructionMissing,
    /// The instruction named does not hold.
    InstructionInvalid,
}

impl Code {
    /// Every code, in table order.
    pub const ALL: [Self; 29] = [
        Self::CallerUnidentified,
        Self::TransportTooWeak,
        Self::RouteUnmapped,
        Self::CustomerMissing,
        Self::CustomerUnknown,
        Self::CustomerMismatch,
        Self::CrossCustomerCombination,
        Self::DpaNotInForce,
        Self::ProcessingRestricted,
        Self::ProcessingSuspended,
        Self::PurposeProhibited,
        Self::PurposeMissing,
        Self::PurposeUnknown,
        Self::PurposeNotPermitted,
        Self::PurposeNotBoundToCaller,
        Self::OperationNotPermitted,
        Self::RecipientUnknown,
        Self::SubprocessorAgreementMissing,
        Self::SubprocessorNotEffective,
        Self::SubprocessorRemoved,
        Self::SubprocessorObjected,
        Self::SubprocessorScope,
        Self::ConfidentialityMissing,
        Self::ResidencyStorage,
        Self::ResidencyAccess,
        Self::LocationUnknown,
        Self::SubscriberRestricted,
        Self::InstructionMissing,
        Self::InstructionInvalid,
    ];

    /// The stable word in records, answers and tests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CallerUnidentified => "caller_unidentified",
            Self::TransportTooWeak => "transport_too_weak",
            Self::RouteUnmapped => "route_unmapped",
            Self::CustomerMissing => "customer_missing",
            Self::CustomerUnknown => "customer_unknown",
            Self::CustomerMismatch => "customer_mismatch",
            Self::CrossCustomerCombination => "cross_customer_combination",
            Self::DpaNotInForce => "dpa_not_in_force",
            Self::ProcessingRestricted => "processing_restricted",
            Self::ProcessingSuspended => "processing_suspended",
            Self::PurposeProhibited => "purpose_prohibited",
            Self::PurposeMissing => "purpose_missing",
            Self::PurposeUnknown => "purpose_unknown",
            Self::PurposeNotPermitted => "purpose_not_permitted",
            Self::PurposeNotBoundToCaller => "purpose_not_bound_to_caller",
            Self::OperationNotPermitted => "operation_not_permitted",
            Self::RecipientUnknown => "recipient_unknown",
            Self::SubprocessorAgreementMissing => "subprocessor_agreement_missing",
            Self::SubprocessorNotEffective => "subprocessor_not_effective",
            Self::SubprocessorRemoved => "subprocessor_removed",
            Self::SubprocessorObjected => "subprocessor_objected",
            Self::SubprocessorScope => "subprocessor_scope",
            Self::ConfidentialityMissing => "confidentiality_missing",
            Self::ResidencyStorage => "residency_storage",
            Self::ResidencyAccess => "residency_access",
            Self::LocationUnknown => "location_unknown",
            Self::SubscriberRestricted => "subscriber_restricted",
            Self::InstructionMissing => "instruction_missing",
            Self::InstructionInvalid => "instruction_invalid",
        }
    }

    /// The class it is weighed in.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::CallerUnidentified | Self::TransportTooWeak => Class::Caller,
            Self::RouteUnmapped => Class::Route,
            Self::CustomerMissing | Self::CustomerUnknown | Self::CustomerMismatch | Self::CrossCustomerCombination => {
                Class::Customer
            }
            Self::DpaNotInForce | Self::ProcessingRestricted | Self::ProcessingSuspended => Class::Agreement,
            Self::PurposeProhibited => Class::Prohibited,
            Self::PurposeMissing
            | Self::PurposeUnknown
            | Self::PurposeNotPermitted
            | Self::PurposeNotBoundToCaller
            | Self::OperationNotPermitted => Class::Purpose,
            Self::RecipientUnknown
            | Self::SubprocessorAgreementMissing
            | Self::SubprocessorNotEffective
            | Self::SubprocessorRemoved
            | Self::SubprocessorObjected
            | Self::SubprocessorScope
            | Self::ConfidentialityMissing => Class::Recipient,
            Self::ResidencyStorage | Self::ResidencyAccess | Self::LocationUnknown => Class::Residency,
            Self::SubscriberRestricted => Class::Data,
            Self::InstructionMissing | Self::InstructionInvalid => Class::Instruction,
        }
    }

    /// Clause and obligation; those of a prohibited purpose depend on the purpose, see [`Reason`].
    #[must_use]
    pub fn clause(self) -> (&'static str, &'static str) {
        match self {
            Self::CallerUnidentified | Self::PurposeMissing | Self::PurposeUnknown | Self::InstructionMissing => {
                ("2.1", "on-behalf")
            }
            Self::TransportTooWeak => ("3.1", "security-measures"),
            Self::RouteUnmapped => ("P.3", "scope"),
            Self::CustomerMissing | Self::CustomerUnknown => ("P.1", "scope"),
            Self::CustomerMismatch => ("1.1", "customer-owned"),
            Self::CrossCustomerCombination => ("7.3", "direct-relationship-only"),
            Self::DpaNotInForce => ("8.1", "agreement-in-force"),
            Self::ProcessingRestricted => ("1.3", "return-or-delete"),
            Self::ProcessingSuspended => ("4.3", "change-of-law"),
            Self::PurposeProhibited => ("7.1", "no-sale"),
            Self::PurposeNotPermitted => ("2.8", "purpose-permitted"),
            Self::PurposeNotBoundToCaller | Self::OperationNotPermitted => ("1.2", "on-behalf"),
            Self::RecipientUnknown | Self::SubprocessorRemoved | Self::SubprocessorScope => {
                ("2.2", "subprocessor-authorized")
            }
            Self::SubprocessorAgreementMissing => ("2.3", "subprocessor-agreement"),
            Self::SubprocessorNotEffective | Self::SubprocessorObjected => ("2.4", "subprocessor-objection"),
            Self::ConfidentialityMissing => ("2.7", "confidentiality"),
            Self::ResidencyStorage => ("2.5", "storage-residency"),
            Self::ResidencyAccess | Self::LocationUnknown => ("2.5", "transfer-residency"),
            Self::SubscriberRestricted => ("4.4", "subscriber-requests"),
            Self::InstructionInvalid => ("8.3", "accepted-duties-only"),
        }
    }

    /// One sentence for the person who is refused. Says nothing of the request or the policy's content.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::CallerUnidentified => "The caller did not prove who it is.",
            Self::TransportTooWeak => "The connection is protected less than the agreement promises.",
            Self::RouteUnmapped => "No route says what this request is about.",
            Self::CustomerMissing => "The request names no customer.",
            Self::CustomerUnknown => "The request names a customer that the policy does not have.",
            Self::CustomerMismatch => "The caller belongs to another customer.",
            Self::CrossCustomerCombination => "The request combines data of several customers.",
            Self::DpaNotInForce => "The customer has not accepted the agreement.",
            Self::ProcessingRestricted => "The agreement has ended; only return, erasure and legal duties are left.",
            Self::ProcessingSuspended => "The law bars this service for the customer; only return is left.",
            Self::PurposeProhibited => "The agreement prohibits this purpose.",
            Self::PurposeMissing => "The request names no purpose.",
            Self::PurposeUnknown => "The request names a purpose that the policy does not have.",
            Self::PurposeNotPermitted => "The customer does not permit this purpose.",
            Self::PurposeNotBoundToCaller => "The caller is not there for this purpose.",
            Self::OperationNotPermitted => "This operation is not permitted to the caller or the recipient.",
            Self::RecipientUnknown => "The caller is no authorized recipient.",
            Self::SubprocessorAgreementMissing => {
                "The subprocessor has no agreement in force that passes the duties on."
            }
            Self::SubprocessorNotEffective => "The subprocessor may not be used yet.",
            Self::SubprocessorRemoved => "The subprocessor has been removed.",
            Self::SubprocessorObjected => "The customer objected to the subprocessor.",
            Self::SubprocessorScope => "The subprocessor is not there for this purpose or this data.",
            Self::ConfidentialityMissing => "The people behind the caller have no undertaking in force.",
            Self::ResidencyStorage => "Data would be kept where the customer does not allow it.",
            Self::ResidencyAccess => "Data would be reached from where the customer does not allow it.",
            Self::LocationUnknown => "Where the caller is, is not known.",
            Self::SubscriberRestricted => "The subscriber's data is restricted, or no subscriber is named.",
            Self::InstructionMissing => "An instruction of the customer, or a request reference, is needed.",
            Self::InstructionInvalid => "The instruction named does not hold.",
        }
    }

    /// The HTTP status of a refusal whose primary reason this is.
    #[must_use]
    pub fn status(self) -> u16 {
        if self == Self::CallerUnidentified { 401 } else { 403 }
    }
}

/// One rule that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Which.
    pub code: Code,
    /// Known not to hold, or not known to hold.
    pub kind: Kind,
    /// The clause.
    pub clause: &'static str,
    /// The obligation.
    pub obligation: &'static str,
}

impl Reason {
    /// The reason, with the clause of its code.
    #[must_use]
    pub fn new(code: Code, kind: Kind) -> Self {
        let (clause, obligation) = code.clause();
        Self { code, kind, clause, obligation }
    }

    /// `purpose_prohibited`, with the clause that prohibits this purpose; `None` if none does.
    #[must_use]
    pub fn prohibited(purpose: PurposeKind) -> Option<Self> {
        let (clause, obligation) = match purpose {
            PurposeKind::Sale => ("7.1", "no-sale"),
            PurposeKind::CrossContextAdvertising => ("7.3", "no-cross-context-advertising"),
            PurposeKind::OwnPurpose => ("7.3", "direct-relationship-only"),
            PurposeKind::ModelTraining
            | PurposeKind::RightsFulfilment
            | PurposeKind::DataReturn
            | PurposeKind::Erasure
            | PurposeKind::LegalCompliance
            | PurposeKind::Other => return None,
        };
        Some(Self { code: Code::PurposeProhibited, kind: Kind::Violation, clause, obligation })
    }
}

/// What a clause says, in our words; a policy file may carry its own text.
#[must_use]
pub fn clause_text(clause: &str) -> &'static str {
    match clause {
        "P.1" => "The agreement belongs to a contract between the processor and one customer.",
        "P.3" => "The agreement covers the data about subscribers that the customer hands over by using the services.",
        "1.1" => "The customer owns its data and decides about it.",
        "1.2" => "Data is used, reached, kept or passed on only for the customer and as its services need it.",
        "1.3" => "Data is given back or deleted on request and when the agreement ends.",
        "2.1" => {
            "Data is processed only on the customer's behalf, on written instructions, or where a law requires it."
        }
        "2.2" => "Data goes only to subprocessors that are listed, with the customer's consent or on its instruction.",
        "2.3" => "A subprocessor is bound in writing to duties at least as strict.",
        "2.4" => "A customer may refuse a subprocessor that is added later, before it is used.",
        "2.5" => "Data is kept in, and reached from, the places that the customer agreed to.",
        "2.7" => "People who handle data are bound to keep it confidential.",
        "2.8" => "Data is processed only for specific business purposes that the services make necessary.",
        "3.1" => "The promised technical and organizational measures are in place.",
        "4.3" => "Where a law bars the customer from using the service, it may leave and is helped to move its data.",
        "4.4" => "What the customer passes on about a subscriber's request is carried out.",
        "7.1" => "Data is not sold: nothing of value is taken or given for it.",
        "7.3" => "Data is not used for cross-context advertising, nor outside the relationship with that one customer.",
        "8.1" => "The agreement binds only if, and from when, the customer accepted it.",
        "8.3" => "A further duty binds only after written acceptance that refers to it.",
        _ => "",
    }
}
