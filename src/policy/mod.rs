//! The agreement as types. No I/O, no http, no async, no clock.
//!
//! [`compile()`] turns the text of `policy.yaml` and its customer files into a [`Policy`] that needs no
//! further parsing: names are numbers, purposes and operations are bit sets, dates are moments.

mod compile;
pub mod diff;
mod document;
mod identities;
pub mod manifest;
pub mod places;
pub mod problem;
pub mod terms;
pub mod weakening;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use schemars::json_schema;
use serde::Deserialize;

pub use self::compile::compile;
pub use self::compile::customer_file_globs;
pub use self::compile::digest;
pub use self::document::Measure;
pub use self::document::customers_schema;
pub use self::document::schema;
use self::terms::DataCategory;
use self::terms::Id;
use self::terms::Identity;
use self::terms::Location;
use self::terms::Operation;
use self::terms::Operations;

/// Whether violations are blocked or only written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// Denied requests are refused.
    Enforce,
    /// Denied requests are recorded as such and pass.
    Observe,
}

impl Enforcement {
    /// The word in files and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

macro_rules! indexes {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u32);
    )*};
}

indexes!(
    /// A purpose of one policy.
    PurposeId,
    /// One of the processor's own callers, in one policy.
    CallerId,
    /// A subprocessor of one policy.
    SubprocessorId,
    /// A customer of one policy.
    CustomerId,
);

/// Most purposes a policy may have, the four built-in ones included: the bits of a [`PurposeSet`].
pub const MAX_PURPOSES: usize = 256;

/// A set of purposes of one policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PurposeSet([u64; 4]);

impl PurposeSet {
    /// Whether the purpose is in the set.
    #[must_use]
    pub fn contains(&self, PurposeId(purpose): PurposeId) -> bool {
        let word = usize::try_from(purpose / 64).ok().and_then(|word| self.0.get(word));
        word.is_some_and(|word| word >> (purpose % 64) & 1 == 1)
    }

    fn insert(&mut self, PurposeId(purpose): PurposeId) {
        if let Some(word) = usize::try_from(purpose / 64).ok().and_then(|word| self.0.get_mut(word)) {
            *word |= 1 << (purpose % 64);
        }
    }

    fn lies_within(self, other: Self) -> bool {
        self.0.iter().zip(other.0).all(|(ours, theirs)| ours & !theirs == 0)
    }

    fn intersects(self, other: Self) -> bool {
        self.0.iter().zip(other.0).any(|(ours, theirs)| ours & theirs != 0)
    }

    fn join(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(ours, theirs)| *ours |= theirs);
    }
}

/// What a purpose is to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurposeKind {
    /// `sale`: never (clause 7.1).
    Sale,
    /// `cross_context_behavioral_advertising`: never (clause 7.3).
    CrossContextAdvertising,
    /// `own_purpose`: never (clause 7.3).
    OwnPurpose,
    /// `model_training`: only if an accepted instruction names it.
    ModelTraining,
    /// `rights_fulfilment`: a subscriber's request (clauses 4.1 and 4.4).
    RightsFulfilment,
    /// `data_return` (clause 1.3).
    DataReturn,
    /// `erasure` (clause 1.3).
    Erasure,
    /// `legal_compliance` (clause 2.1).
    LegalCompliance,
    /// Any other.
    Other,
}

impl PurposeKind {
    /// The purposes that the product brings along, which no file defines.
    const BUILT_IN: [(&'static str, Self); 4] = [
        ("sale", Self::Sale),
        ("cross_context_behavioral_advertising", Self::CrossContextAdvertising),
        ("own_purpose", Self::OwnPurpose),
        ("model_training", Self::ModelTraining),
    ];

    fn of(name: &str) -> Self {
        match name {
            "sale" => Self::Sale,
            "cross_context_behavioral_advertising" => Self::CrossContextAdvertising,
            "own_purpose" => Self::OwnPurpose,
            "model_training" => Self::ModelTraining,
            "rights_fulfilment" => Self::RightsFulfilment,
            "data_return" => Self::DataReturn,
            "erasure" => Self::Erasure,
            "legal_compliance" => Self::LegalCompliance,
            _ => Self::Other,
        }
    }

    /// Whether no file can permit it.
    #[must_use]
    pub fn is_prohibited(self) -> bool {
        matches!(self, Self::Sale | Self::CrossContextAdvertising | Self::OwnPurpose)
    }
}

/// The business purpose of the CCPA (Cal. Civ. Code 1798.140(e)) that a purpose falls under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CcpaPurpose {
    /// Auditing of ad impressions.
    E1,
    /// Security and integrity.
    E2,
    /// Debugging.
    E3,
    /// Short-term, transient use.
    E4,
    /// Performing services.
    E5,
    /// Advertising and marketing, not cross-context.
    E6,
    /// Internal research.
    E7,
    /// Quality and safety.
    E8,
    /// Required by law.
    Legal,
    /// Agreed in the contract.
    Contract,
}

/// A purpose.
#[derive(Clone, Debug)]
pub struct Purpose {
    /// Its name.
    pub id: Id,
    /// What it is to the rules.
    pub kind: PurposeKind,
    /// Whether it is mapped `legal`: then records name the law as what a permit rests on.
    pub is_legal: bool,
    /// Whether each request needs an instruction that names it.
    pub requires_instruction: bool,
}

/// Who a proven identity is in the agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    /// One of the processor's own.
    Own(CallerId),
    /// A subprocessor.
    Subprocessor(SubprocessorId),
    /// A customer's own caller.
    Customer(CustomerId),
}

/// A span of time, [from, until).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// First moment.
    pub from: Timestamp,
    /// First moment after it.
    pub until: Option<Timestamp>,
}

impl Period {
    /// Whether `now` lies in it.
    #[must_use]
    pub fn contains(&self, now: Timestamp) -> bool {
        self.from <= now && self.until.is_none_or(|until| now < until)
    }
}

/// One of the processor's own callers.
#[derive(Clone, Debug)]
pub struct OwnCaller {
    /// Its id.
    pub id: Id,
    /// Where it is; without one, a claim says so.
    pub location: Option<Location>,
    /// What it may ask for.
    pub permitted_purposes: PurposeSet,
    /// What it may do; all if not listed.
    pub operations: Option<Operations>,
    /// When the undertaking of its people holds; none if no people are behind it (clause 2.7).
    pub undertaking: Option<Period>,
}

/// A subprocessor.
#[derive(Clone, Debug)]
pub struct Subprocessor {
    /// Its id.
    pub id: Id,
    /// Which company it is, as written. No decision rests on it.
    pub legal_name: Box<str>,
    /// What it may ask for or be given data for.
    pub permitted_purposes: PurposeSet,
    /// What may be done; all if not listed.
    pub operations: Option<Operations>,
    /// What data.
    pub data_categories: Vec<DataCategory>,
    /// Where it keeps data.
    pub storage_locations: Vec<Location>,
    /// Where it reaches data from.
    pub access_locations: Vec<Location>,
    /// When its agreement holds; none if it does not flow the duties down (clause 2.3).
    pub agreement: Option<Period>,
    /// From when it may be used, until when.
    pub effective: Period,
}

/// A transfer on record: opens places for access (clause 4.2).
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The places, each as written.
    pub to: Vec<Location>,
    /// The evidence.
    pub reference: Box<str>,
    /// For this subprocessor only, or for anybody.
    pub subprocessor: Option<SubprocessorId>,
}

/// Where data may be (clause 2.5).
#[derive(Clone, Debug)]
pub struct Residency {
    /// Where it may be kept.
    pub storage_locations: Vec<Location>,
    /// Where it may be reached from.
    pub access_locations: Vec<Location>,
    /// What else is open for access.
    pub transfers: Vec<Transfer>,
    /// The instruction that it names as its source, as written.
    pub instruction: Option<Box<str>>,
}

/// What an instruction permits. A list that is not there limits nothing and lifts nothing.
#[derive(Clone, Debug)]
pub struct Permits {
    /// Purposes.
    pub purposes: Option<PurposeSet>,
    /// Operations.
    pub operations: Option<Operations>,
    /// Recipients.
    pub subprocessors: Option<Vec<SubprocessorId>>,
    /// Data.
    pub data_categories: Option<Vec<DataCategory>>,
}

/// A customer's written instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Its id.
    pub id: Id,
    /// When it holds; none while it is proposed (clause 8.3).
    pub in_force: Option<Period>,
    /// What it permits.
    pub permits: Option<Permits>,
    /// The subscriber whose data it restricts.
    pub restricts: Option<Box<str>>,
}

/// A customer's consent to a weakened measure (clause 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weakening {
    /// What is weakened.
    pub measure: Measure,
    /// What it was and will be, as written, if the consent says so.
    pub step: Option<(Box<str>, Box<str>)>,
    /// When it was given.
    pub given_at: Timestamp,
}

/// A customer and its agreement.
#[derive(Clone, Debug)]
pub struct Customer {
    /// Its id.
    pub id: Id,
    /// From when the agreement binds (clause 8.1).
    pub accepted_at: Option<Timestamp>,
    /// From when the law bars the service (clause 4.3).
    pub suspended_at: Option<Timestamp>,
    /// From when the agreement is ending, and the end of the return window (clause 1.3).
    pub ending: Option<(Timestamp, Timestamp)>,
    /// What for (clause 2.8).
    pub permitted_purposes: PurposeSet,
    /// Where, if not as by default.
    pub residency: Option<Box<Residency>>,
    /// Subprocessors it refused, from when.
    pub objections: Box<[(SubprocessorId, Timestamp)]>,
    /// Subprocessors it accepted ahead of time, from when.
    pub consents: Box<[(SubprocessorId, Timestamp)]>,
    /// Weakened measures it accepted. No decision rests on them (clause 3.2).
    pub weakenings: Box<[Weakening]>,
    /// Its instructions.
    pub instructions: Box<[Instruction]>,
    /// Whether its violations are blocked.
    pub enforcement: Enforcement,
}

/// A TLS version, for the floor of clause 3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V1_3,
}

impl TlsVersion {
    /// The word in files and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
        }
    }
}

// In a file, `1.2` without quotes is a number to others and a word to us.
impl JsonSchema for TlsVersion {
    fn schema_name() -> Cow<'static, str> {
        "TlsVersion".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"description": "A TLS version.", "enum": ["1.2", "1.3", 1.2, 1.3]})
    }
}

/// When a record counts as made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Handed to the kernel.
    #[default]
    Written,
    /// On disk.
    Synced,
}

impl Durability {
    /// The word in files and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Synced => "synced",
        }
    }
}

/// The measures that the agreement promises (clause 3.1).
#[derive(Clone, Copy, Debug, Default)]
pub struct SecurityMeasures {
    /// Lowest TLS version of a request's connection.
    pub min_tls_version: Option<TlsVersion>,
    /// Whether a certificate has to be proven on the connection.
    pub client_certificate_required: bool,
    /// What a record has to be.
    pub decision_log: Durability,
    /// Whether the policy has to be signed.
    pub signed_policy: bool,
}

/// A notice to all customers that a measure will be weakened (clause 3.2).
#[derive(Clone, Debug)]
pub struct Notice {
    /// What is weakened.
    pub measure: Measure,
    /// What it was, as written.
    pub from: Box<str>,
    /// What it will be, as written.
    pub to: Box<str>,
    /// When the customers were told.
    pub given_at: Timestamp,
}

/// The agreement, ready to decide with.
pub struct Policy {
    /// `metadata.name`.
    pub name: Id,
    /// `metadata.revision`.
    pub revision: u64,
    /// `metadata.issued_at`.
    pub issued_at: Option<Timestamp>,
    /// SHA-256, in hex, over the list of files it was made of (`HASH  NAME` lines sorted by name).
    pub digest: Box<str>,
    /// The default of customers that say nothing.
    pub enforcement: Enforcement,
    /// Whether a sidecar may not observe as a whole.
    pub require_enforce: bool,
    /// The promised measures.
    pub security: SecurityMeasures,
    /// Notices that measures will be weakened.
    pub notices: Vec<Notice>,
    residency: Residency,
    clauses: HashMap<Box<str>, Box<str>>,
    purposes: Vec<Purpose>,
    callers: Vec<OwnCaller>,
    subprocessors: Vec<Subprocessor>,
    customers: Vec<Customer>,
    purpose_ids: HashMap<Id, PurposeId>,
    subprocessor_ids: HashMap<Id, SubprocessorId>,
    customer_ids: HashMap<Id, CustomerId>,
    caller_ids: HashMap<Id, CallerId>,
    identities: HashMap<Identity, Party>,
    identity_patterns: identities::Tree,
}

/// What a policy is called: enough to find it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.revision`.
    pub revision: u64,
    /// Its digest, see [`Policy::digest`].
    pub digest: Box<str>,
}

impl fmt::Display for Named {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} revision {} digest {}", self.name, self.revision, self.digest)
    }
}

// An id is made by `compile` alone, for the list it points into, so the lookups below always find something
// in the policy that the id is of.
macro_rules! lookup {
    ($(#[$doc:meta])* $method:ident, $id:ident, $list:ident, $item:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $method(&self, id: $id) -> Option<&$item> {
            usize::try_from(id.0).ok().and_then(|index| self.$list.get(index))
        }
    };
}

impl Policy {
    lookup!(
        /// The purpose; `None` only for an id of another policy.
        purpose, PurposeId, purposes, Purpose
    );
    lookup!(
        /// The processor's own caller; `None` only for an id of another policy.
        caller, CallerId, callers, OwnCaller
    );
    lookup!(
        /// The subprocessor; `None` only for an id of another policy.
        subprocessor, SubprocessorId, subprocessors, Subprocessor
    );
    lookup!(
        /// The customer; `None` only for an id of another policy.
        customer, CustomerId, customers, Customer
    );

    /// What it is called.
    #[must_use]
    pub fn named(&self) -> Named {
        Named { name: self.name.to_string(), revision: self.revision, digest: self.digest.clone() }
    }

    /// The purpose of a name.
    #[must_use]
    pub fn purpose_named(&self, name: &str) -> Option<PurposeId> {
        self.purpose_ids.get(name).copied()
    }

    /// The customer of an id.
    #[must_use]
    pub fn customer_named(&self, id: &str) -> Option<CustomerId> {
        self.customer_ids.get(id).copied()
    }

    /// The subprocessor of an id.
    #[must_use]
    pub fn subprocessor_named(&self, id: &str) -> Option<SubprocessorId> {
        self.subprocessor_ids.get(id).copied()
    }

    /// The processor's own caller of an id.
    #[must_use]
    pub fn caller_named(&self, id: &str) -> Option<CallerId> {
        self.caller_ids.get(id).copied()
    }

    /// Who a proven identity is; `None`: nobody in this agreement.
    #[must_use]
    pub fn party(&self, identity: &Identity) -> Option<Party> {
        let pattern = || self.identity_patterns.find(identity).map(|(_, party)| party);
        self.identities.get(identity).copied().or_else(pattern)
    }

    /// What an identity is listed as: itself, or the pattern that means it.
    #[must_use]
    pub fn listed_as<'p>(&'p self, identity: &'p Identity) -> Option<&'p Identity> {
        let pattern = || self.identity_patterns.find(identity).map(|(pattern, _)| pattern);
        if self.identities.contains_key(identity) { Some(identity) } else { pattern() }
    }

    /// Everybody that an identity may belong to of which only this is known: itself, or the pattern that means it.
    /// `None`: nobody in this agreement.
    #[must_use]
    pub fn parties_of(&self, listed: &Identity) -> Vec<Option<Party>> {
        let meant_whole = || self.identity_patterns.all().find(|(pattern, _)| pattern.covers(listed));
        if !listed.is_pattern() {
            return vec![self.party(listed)];
        }
        if let Some((_, party)) = meant_whole() {
            return vec![Some(*party)];
        }
        let mut parties = vec![None];
        for (_, party) in self.all_identities().filter(|(known, _)| known.may_mean(listed)) {
            if !parties.contains(&Some(party)) {
                parties.push(Some(party));
            }
        }
        parties
    }

    /// Every identity, and whose it is, in no order.
    pub fn all_identities(&self) -> impl Iterator<Item = (&Identity, Party)> {
        let exact = self.identities.iter().map(|(identity, party)| (identity, *party));
        exact.chain(self.identity_patterns.all().map(|(identity, party)| (identity, *party)))
    }

    /// Somebody that an identity, or one that it stands for, belongs to.
    fn all_identities_like(&self, identity: &Identity) -> Option<Party> {
        let covered = || {
            let mut all = self.identities.iter().filter(|_| identity.is_pattern());
            all.find(|(known, _)| identity.covers(known)).map(|(_, party)| *party)
        };
        self.party(identity).or_else(covered)
    }

    /// The ids of all customers.
    pub fn customer_names(&self) -> impl Iterator<Item = &Id> {
        self.customers.iter().map(|customer| &customer.id)
    }

    /// The names of all purposes, the built-in ones too.
    pub fn purpose_names(&self) -> impl Iterator<Item = &Id> {
        self.purposes.iter().map(|purpose| &purpose.id)
    }

    /// The ids of the processor's own callers.
    pub fn caller_names(&self) -> impl Iterator<Item = &Id> {
        self.callers.iter().map(|caller| &caller.id)
    }

    /// The ids of all subprocessors.
    pub fn subprocessor_names(&self) -> impl Iterator<Item = &Id> {
        self.subprocessors.iter().map(|entry| &entry.id)
    }

    /// The ids of all parties.
    pub fn party_names(&self) -> impl Iterator<Item = &Id> {
        self.caller_ids.keys().chain(self.subprocessor_ids.keys()).chain(self.customer_ids.keys())
    }

    /// An identity that would be taken for this party; a `*` segment is written `any`.
    #[must_use]
    pub fn identity_of(&self, party: Party) -> Option<Identity> {
        let exact = self.identities.iter().filter(|(_, known)| **known == party).map(|(identity, _)| identity).min();
        let pattern = self.identity_patterns.all().filter(|(_, known)| *known == party).min_by_key(|it| &it.0);
        match (exact, pattern) {
            (Some(identity), _) => Some(identity.clone()),
            (None, Some((pattern, _))) => pattern.as_str().replace("/*", "/any").parse().ok(),
            (None, None) => None,
        }
    }

    /// Where this customer's data may be.
    #[must_use]
    pub fn residency<'p>(&'p self, customer: &'p Customer) -> &'p Residency {
        customer.residency.as_deref().unwrap_or(&self.residency)
    }

    /// The first place where data may be kept by default.
    #[must_use]
    pub fn default_storage(&self) -> Option<Location> {
        self.residency.storage_locations.first().copied()
    }

    /// Parties, customers and purposes that might go together, for somebody who looks for a request that
    /// passes: the processor's own callers first, the first 100 customers.
    pub fn combinations(&self) -> impl Iterator<Item = (Party, &Id, &Id)> {
        let own = (0..).zip(&self.callers).map(|(id, _)| Party::Own(CallerId(id)));
        let subprocessors = (0..).zip(&self.subprocessors).map(|(id, _)| Party::Subprocessor(SubprocessorId(id)));
        own.chain(subprocessors).flat_map(move |party| {
            self.customers
                .iter()
                .take(100)
                .flat_map(move |customer| self.purposes.iter().map(move |purpose| (party, &customer.id, &purpose.id)))
        })
    }

    /// Whether some customer, or some instruction, permits a purpose.
    #[must_use]
    pub fn is_permitted_anywhere(&self, purpose: PurposeId) -> bool {
        let instructed = |instruction: &Instruction| {
            instruction.permits.as_ref().and_then(|permits| permits.purposes).is_some_and(|set| set.contains(purpose))
        };
        self.customers.iter().any(|customer| {
            customer.permitted_purposes.contains(purpose) || customer.instructions.iter().any(instructed)
        })
    }

    /// The processor's own callers whose entry does not say where they are, and their identities without `*`.
    pub fn callers_without_location(&self) -> impl Iterator<Item = (&Id, Vec<&Identity>)> {
        let without = (0..).zip(&self.callers).filter(|(_, caller)| caller.location.is_none());
        without.map(|(id, caller)| {
            let own = self.identities.iter().filter(move |(_, party)| **party == Party::Own(CallerId(id)));
            (&caller.id, own.map(|(identity, _)| identity).collect())
        })
    }

    /// Whether some instruction restricts a subscriber.
    #[must_use]
    pub fn restricts_subscribers(&self) -> bool {
        let restricts = |instruction: &Instruction| instruction.restricts.is_some();
        self.customers.iter().any(|customer| customer.instructions.iter().any(restricts))
    }

    /// The file's own text for a clause, if it has one.
    #[must_use]
    pub fn clause_text(&self, clause: &str) -> Option<&str> {
        self.clauses.get(clause).map(AsRef::as_ref)
    }

    /// The same with some of its customers only, to hold others against: without what their own callers prove to be,
    /// and without texts.
    #[must_use]
    pub fn with_only(&self, is_kept: impl Fn(&Customer) -> bool) -> Self {
        let customers: Vec<Customer> = self.customers.iter().filter(|customer| is_kept(customer)).cloned().collect();
        let is_left = |party: Party| match party {
            Party::Own(_) | Party::Subprocessor(_) => true,
            // Their numbers are others now.
            Party::Customer(_) => false,
        };
        let mut identity_patterns = identities::Tree::default();
        for (identity, party) in self.identity_patterns.all().filter(|(_, party)| is_left(*party)) {
            identity_patterns.insert(identity.clone(), *party);
        }
        let identities = self.identities.iter().filter(|(_, party)| is_left(**party));
        Self {
            name: self.name.clone(),
            digest: self.digest.clone(),
            notices: self.notices.clone(),
            residency: self.residency.clone(),
            clauses: HashMap::new(),
            purposes: self.purposes.clone(),
            callers: self.callers.clone(),
            subprocessors: self.subprocessors.clone(),
            customer_ids: customers.iter().map(|it| it.id.clone()).zip((0..).map(CustomerId)).collect(),
            customers,
            purpose_ids: self.purpose_ids.clone(),
            subprocessor_ids: self.subprocessor_ids.clone(),
            caller_ids: self.caller_ids.clone(),
            identities: identities.map(|(identity, party)| (identity.clone(), *party)).collect(),
            identity_patterns,
            ..*self
        }
    }

    /// How much was loaded, for people.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            customers: self.customers.len(),
            subprocessors: self.subprocessors.len(),
            callers: self.callers.len(),
            purposes: self.purposes.len() - PurposeKind::BUILT_IN.len(),
            instructions: self.customers.iter().map(|customer| customer.instructions.len()).sum(),
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Policy {{ {} {} }}", self.name, self.digest)
    }
}

/// How much a policy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Customers.
    pub customers: usize,
    /// Subprocessors.
    pub subprocessors: usize,
    /// The processor's own callers.
    pub callers: usize,
    /// Purposes that the file defines.
    pub purposes: usize,
    /// Instructions of all customers.
    pub instructions: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
        write!(
            out,
            "{}, {}, {}, {}, {}",
            many(self.customers, "customer"),
            many(self.subprocessors, "subprocessor"),
            many(self.callers, "caller"),
            many(self.purposes, "purpose"),
            many(self.instructions, "instruction")
        )
    }
}

/// Whether an operation lies in an optional list: a list that is not there limits nothing.
#[must_use]
pub fn within(operations: Option<Operations>, operation: Operation) -> bool {
    operations.is_none_or(|operations| operations.contains(operation))
}
