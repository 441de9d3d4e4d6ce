//! What comes out.

use schemars::JsonSchema;

use super::reason::Reason;
use crate::policy::Enforcement;

/// On what a permit rests (clause 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Authority {
    /// The route is declared free of subscriber data.
    OutOfScope,
    /// The purpose is mapped to a legal duty.
    LegalRequirement,
    /// An accepted instruction of the customer.
    Instruction,
    /// The customer's list of purposes.
    PermittedPurpose,
}

impl Authority {
    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OutOfScope => "out_of_scope",
            Self::LegalRequirement => "legal_requirement",
            Self::Instruction => "instruction",
            Self::PermittedPurpose => "permitted_purpose",
        }
    }
}

/// Permit or deny.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<'p> {
    /// Every rule holds.
    Permit {
        /// On what it rests.
        authority: Authority,
        /// The first transfer on record that was needed.
        transfer_ref: Option<&'p str>,
    },
    /// These rules do not, in table order; never empty. The first is primary.
    Deny(Vec<Reason>),
}

/// The decision on one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'p> {
    /// Permit or deny.
    pub outcome: Outcome<'p>,
    /// Whether the policy wants a denial blocked; a sidecar that observes as a whole overrides it.
    pub enforcement: Enforcement,
}

impl Decision<'_> {
    /// The word in records.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self.outcome {
            Outcome::Permit { .. } => "permit",
            Outcome::Deny(_) => "deny",
        }
    }

    /// Why it was denied; empty for a permit.
    #[must_use]
    pub fn reasons(&self) -> &[Reason] {
        match &self.outcome {
            Outcome::Permit { .. } => &[],
            Outcome::Deny(reasons) => reasons,
        }
    }
}
