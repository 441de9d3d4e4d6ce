//! What the agreement obliges to, in our words: the duties that reasons, records and reports name.

use super::reason::Code;
use super::reason::Reason;
use crate::policy::PurposeKind;

/// A duty of the agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obligation {
    /// `scope`
    Scope,
    /// `agreement-in-force`
    AgreementInForce,
    /// `no-third-party-rights`
    NoThirdPartyRights,
    /// `accepted-duties-only`
    AcceptedDutiesOnly,
    /// `customer-owned`
    CustomerOwned,
    /// `on-behalf`
    OnBehalf,
    /// `purpose-permitted`
    PurposePermitted,
    /// `no-sale`
    NoSale,
    /// `no-cross-context-advertising`
    NoCrossContextAdvertising,
    /// `direct-relationship-only`
    DirectRelationshipOnly,
    /// `subprocessor-authorized`
    SubprocessorAuthorized,
    /// `subprocessor-agreement`
    SubprocessorAgreement,
    /// `subprocessor-objection`
    SubprocessorObjection,
    /// `storage-residency`
    StorageResidency,
    /// `transfer-residency`
    TransferResidency,
    /// `return-or-delete`
    ReturnOrDelete,
    /// `confidentiality`
    Confidentiality,
    /// `security-measures`
    SecurityMeasures,
    /// `cooperation`
    Cooperation,
    /// `change-of-law`
    ChangeOfLaw,
    /// `subscriber-requests`
    SubscriberRequests,
    /// `cannot-comply-notice`
    CannotComplyNotice,
    /// `audits`
    Audits,
    /// `breach-notice`
    BreachNotice,
}

impl Obligation {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 24] = [
        Self::Scope,
        Self::AgreementInForce,
        Self::NoThirdPartyRights,
        Self::AcceptedDutiesOnly,
        Self::CustomerOwned,
        Self::OnBehalf,
        Self::PurposePermitted,
        Self::NoSale,
        Self::NoCrossContextAdvertising,
        Self::DirectRelationshipOnly,
        Self::SubprocessorAuthorized,
        Self::SubprocessorAgreement,
        Self::SubprocessorObjection,
        Self::StorageResidency,
        Self::TransferResidency,
        Self::ReturnOrDelete,
        Self::Confidentiality,
        Self::SecurityMeasures,
        Self::Cooperation,
        Self::ChangeOfLaw,
        Self::SubscriberRequests,
        Self::CannotComplyNotice,
        Self::Audits,
        Self::BreachNotice,
    ];

    /// Its stable word, its clauses, and what it says.
    fn parts(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            Self::Scope => (
                "scope",
                &["P.1", "P.3"],
                "The agreement belongs to a contract with a known customer and covers the subscriber data that it hands over.",
            ),
            Self::AgreementInForce => (
                "agreement-in-force",
                &["8.1"],
                "Nothing is processed before the customer accepted the agreement, expressly or by a signed contract.",
            ),
            Self::NoThirdPartyRights => (
                "no-third-party-rights",
                &["8.2"],
                "Nobody but customer and processor draws rights from the agreement.",
            ),
            Self::AcceptedDutiesOnly => (
                "accepted-duties-only",
                &["8.3"],
                "A further duty binds only if the processor accepted it in writing, with a reference.",
            ),
            Self::CustomerOwned => ("customer-owned", &["1.1"], "The customer owns its data and decides about it."),
            Self::OnBehalf => (
                "on-behalf",
                &["1.2", "2.1"],
                "Data is used, reached, kept or passed on only for the customer, as the services need it, on written instructions, or where a law requires it.",
            ),
            Self::PurposePermitted => (
                "purpose-permitted",
                &["2.8", "2.9"],
                "Data is processed only for specific business purposes that the services for that customer make necessary.",
            ),
            Self::NoSale => {
                ("no-sale", &["7.1", "7.2"], "Data is not sold or shared: nothing of value is taken or given for it.")
            }
            Self::NoCrossContextAdvertising => (
                "no-cross-context-advertising",
                &["7.3"],
                "Data is not kept, used or disclosed for advertising across contexts.",
            ),
            Self::DirectRelationshipOnly => (
                "direct-relationship-only",
                &["7.3"],
                "Data is not kept, used or disclosed outside the relationship with that one customer.",
            ),
            Self::SubprocessorAuthorized => (
                "subprocessor-authorized",
                &["2.2"],
                "Data goes only to subprocessors that are listed, with the customer's consent or on its instruction.",
            ),
            Self::SubprocessorAgreement => {
                ("subprocessor-agreement", &["2.3"], "A subprocessor is bound in writing to duties at least as strict.")
            }
            Self::SubprocessorObjection => (
                "subprocessor-objection",
                &["2.4"],
                "The customer may refuse a subprocessor that is added later, before it is used.",
            ),
            Self::StorageResidency => {
                ("storage-residency", &["2.5"], "Data is kept only in the places that the customer agreed to.")
            }
            Self::TransferResidency => (
                "transfer-residency",
                &["2.5", "4.2"],
                "Data is reached from, and sent to, agreed places only; a transfer elsewhere rests on a mechanism on record.",
            ),
            Self::ReturnOrDelete => (
                "return-or-delete",
                &["1.3", "2.6"],
                "Data is given back or deleted on request and after the end of the agreement.",
            ),
            Self::Confidentiality => {
                ("confidentiality", &["2.7"], "People who handle data are bound to keep it confidential.")
            }
            Self::SecurityMeasures => (
                "security-measures",
                &["3.1", "3.2"],
                "The promised technical and organizational measures hold, and are not weakened without consent or 90 days' notice.",
            ),
            Self::Cooperation => (
                "cooperation",
                &["4.1"],
                "The customer is helped to let its subscribers see, delete and move their data.",
            ),
            Self::ChangeOfLaw => (
                "change-of-law",
                &["4.3"],
                "Where a law bars the customer from using the service, it may leave and is helped to move its data.",
            ),
            Self::SubscriberRequests => (
                "subscriber-requests",
                &["4.4"],
                "What the customer passes on about a subscriber's request is carried out.",
            ),
            Self::CannotComplyNotice => {
                ("cannot-comply-notice", &["4.5"], "The processor tells the customer when it can no longer comply.")
            }
            Self::Audits => (
                "audits",
                &["5.1"],
                "Security and privacy are audited, and the customer gets the reports that it asks for.",
            ),
            Self::BreachNotice => (
                "breach-notice",
                &["6.1"],
                "The customer is told of unauthorized access, use, disclosure, change or loss of its data.",
            ),
        }
    }

    /// Its stable word in reasons, records and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.parts().0
    }

    /// The clauses of the agreement.
    #[must_use]
    pub fn clauses(self) -> &'static [&'static str] {
        self.parts().1
    }

    /// What it says, in our words.
    #[must_use]
    pub fn text(self) -> &'static str {
        self.parts().2
    }

    /// The rules that hold it: the codes of their reasons, in table order.
    #[must_use]
    pub fn rules(self) -> Vec<Code> {
        let prohibited = [PurposeKind::Sale, PurposeKind::CrossContextAdvertising, PurposeKind::OwnPurpose];
        let prohibits = prohibited.into_iter().filter_map(Reason::prohibited).any(|it| it.obligation == self.as_str());
        let is_of_it = |code: &Code| {
            if *code == Code::PurposeProhibited { prohibits } else { code.clause().1 == self.as_str() }
        };
        Code::ALL.into_iter().filter(is_of_it).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_holds_an_obligation_of_the_table() {
        for code in Code::ALL {
            let (clause, name) = code.clause();
            let obligation = Obligation::ALL.into_iter().find(|obligation| obligation.as_str() == name);
            assert!(obligation.is_some_and(|it| it.clauses().contains(&clause)), "{code:?}: {clause} {name}");
            assert!(Obligation::ALL.into_iter().any(|obligation| obligation.rules().contains(&code)), "{code:?}");
        }
        for kind in [PurposeKind::Sale, PurposeKind::CrossContextAdvertising, PurposeKind::OwnPurpose] {
            let name = Reason::prohibited(kind).map(|reason| reason.obligation);
            let obligation = Obligation::ALL.into_iter().find(|obligation| Some(obligation.as_str()) == name);
            assert!(obligation.is_some_and(|it| it.rules().contains(&Code::PurposeProhibited)), "{kind:?}");
        }
        let mut names = Obligation::ALL.map(Obligation::as_str).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 24);
    }
}
