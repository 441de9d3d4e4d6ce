//! What a change of the policy does: tighter, weaker or neutral, for whom. Exact, since a policy is sets and
//! spans of time.
//!
//! A change is *weaker* for a customer if some request for it, at some time, passes only with the change: it was
//! denied and is permitted, or it was refused and is only written down. Weaker one way is tighter the other way,
//! so [`diff`] asks the same question twice. What lies in neither is neutral ([`rest`]).
//!
//! Each change is held against all that the policy on its other side permits besides: a subprocessor that a customer
//! has refused is not weaker for it. The other rules of the old policy do not count, so that of two
//! changes which open something only together, both are weaker. An objection that is dropped is weaker even where nothing
//! else would let that subprocessor in: it is the customer's word. Another company behind a subprocessor is weaker,
//! though no rule reads its name: what passes goes to somebody else. A purpose that becomes the law's demand is weaker,
//! though what passes is the same: records name another authority for it.
//!
//! A request that names an instruction is compared with what it may do without naming it too: that a request may
//! now bear a name that opens nothing is no weakening.

mod gains;
mod reach;
mod rest;
mod sets;
mod spans;

use jiff::Timestamp;

pub use self::reach::open_names;
pub use self::rest::rest;
use super::Policy;
use super::places::Place;

/// Which way a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Something passes that did not.
    Weaker,
    /// Something passes no longer.
    Tighter,
    /// No decision changes.
    Neutral,
}

impl Direction {
    /// The word in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Weaker => "weaker",
            Self::Tighter => "tighter",
            Self::Neutral => "neutral",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal),* $(,)?) => {
        /// What is changed; the words are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {$(
            $(#[$doc])*
            $kind,
        )*}

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The word in reports.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {$(
                    Self::$kind => $word,
                )*}
            }
        }
    };
}

kinds!(
    /// The lowest TLS version.
    MinTlsVersion = "min_tls_version",
    /// Whether a client certificate is required.
    ClientAuthentication = "client_authentication",
    /// What a record has to be.
    DecisionLog = "decision_log",
    /// Whether the policy has to be signed.
    SignedPolicy = "signed_policy",
    /// Whether no sidecar may observe as a whole.
    RequireEnforce = "require_enforce",
    /// Enforcement of requests that name no customer of the policy.
    DefaultEnforcement = "default_enforcement",
    /// A customer's enforcement.
    Enforcement = "enforcement",
    /// A whole customer.
    Customer = "customer",
    /// Who a customer's own callers are.
    CustomerIdentity = "customer_identity",
    /// From when the agreement binds.
    Acceptance = "acceptance",
    /// From when the law bars the service.
    Suspension = "suspension",
    /// From when the agreement is ending, and until when data may be returned.
    Termination = "termination",
    /// What a customer permits.
    CustomerPurpose = "customer_purpose",
    /// Where data may be kept.
    StorageLocation = "storage_location",
    /// From where data may be reached.
    AccessLocation = "access_location",
    /// What transfers open.
    Transfer = "transfer",
    /// A refused subprocessor.
    Objection = "objection",
    /// A subprocessor that is accepted ahead of time.
    Consent = "consent",
    /// What an instruction permits, and when.
    Instruction = "instruction",
    /// Whose data is restricted, and when.
    Restriction = "restriction",
    /// A whole caller of the processor's own.
    Caller = "caller",
    /// Who a caller is.
    CallerIdentity = "caller_identity",
    /// What a caller may ask for.
    CallerPurpose = "caller_purpose",
    /// What a caller may do.
    CallerOperation = "caller_operation",
    /// Where a caller is.
    CallerLocation = "caller_location",
    /// When the people behind a caller are bound to confidentiality.
    Confidentiality = "confidentiality",
    /// Whether there are people behind a caller, who have to be bound to confidentiality.
    HumanAccess = "human_access",
    /// A whole subprocessor.
    Subprocessor = "subprocessor",
    /// Which company a subprocessor is.
    SubprocessorName = "subprocessor_name",
    /// Who a subprocessor is.
    SubprocessorIdentity = "subprocessor_identity",
    /// What a subprocessor may have data for.
    SubprocessorPurpose = "subprocessor_purpose",
    /// What may be done for a subprocessor.
    SubprocessorOperation = "subprocessor_operation",
    /// What data a subprocessor may have.
    SubprocessorData = "subprocessor_data",
    /// Where a subprocessor keeps data.
    SubprocessorStorage = "subprocessor_storage",
    /// From where a subprocessor reaches data.
    SubprocessorAccess = "subprocessor_access",
    /// When a subprocessor's agreement holds.
    SubprocessorAgreement = "subprocessor_agreement",
    /// From when until when a subprocessor may have data.
    SubprocessorPeriod = "subprocessor_period",
    /// Whether a purpose needs an instruction.
    RequiresInstruction = "requires_instruction",
    /// A purpose that needs nobody's list.
    Purpose = "purpose",
    /// What a purpose is under the CCPA: `legal` has records name the law as what a permit rests on.
    BusinessPurpose = "business_purpose",
    /// Only written otherwise.
    Wording = "wording",
);

/// For whom something changes, by id, in the order of the policy that permits more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concerns {
    /// Every customer, and requests that name none.
    All,
    /// These customers; never empty.
    Customers(Vec<String>),
    /// Requests that name no customer of the policy.
    Unnamed,
    /// Nobody: it is neutral.
    Nobody,
}

/// One thing that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub kind: Kind,
    /// Which way.
    pub direction: Direction,
    /// For whom.
    pub concerns: Concerns,
    /// What was gained or lost: names, places, spans of time.
    pub values: Vec<String>,
    /// The same as a sentence.
    pub text: String,
    /// Where both policies say so.
    pub place: Place,
}

impl Change {
    /// The subprocessor that it is about: of its entry, or one that a customer's list names.
    #[must_use]
    pub fn subprocessor(&self) -> Option<&str> {
        match (&self.place, self.kind) {
            (Place::Subprocessor(id, _), _) => Some(id),
            (Place::Key(path), Kind::Subprocessor) => path.last().map(String::as_str),
            (_, Kind::Objection | Kind::Consent) => self.values.first().map(String::as_str),
            (_, _) => None,
        }
    }
}

/// Every change that makes some decision another: those that are weaker, then those that are tighter.
///
/// Requests before `since` do not count; without one, all do.
#[must_use]
pub fn diff(old: &Policy, new: &Policy, since: Option<Timestamp>) -> Vec<Change> {
    let since = since.unwrap_or(Timestamp::MIN);
    let mut changes = gains::gains(old, new, since, Direction::Weaker);
    changes.extend(gains::gains(new, old, since, Direction::Tighter));
    changes.sort_by_key(|change| (change.direction, change.kind));
    changes
}

/// What would be weaker if in the new policy nothing else were closed to anybody, from `since` on: also what another rule
/// keeps closed.
#[must_use]
pub fn weaker_if_open(old: &Policy, new: &Policy, since: Timestamp) -> Vec<Change> {
    gains::gains_if_open(old, new, since)
}
