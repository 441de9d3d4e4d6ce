//! Mirror of `policy.yaml`: what may stand in it, nothing of what it means.
//!
//! Some keys are evidence that no rule reads (names of people, references); they are decoded all the
//! same, so that a misspelt one is found.

use schemars::JsonSchema;
use schemars::Schema;
use serde::Deserialize;
use serde_json::Value;

use super::CcpaPurpose;
use super::Durability;
use super::Enforcement;
use super::TlsVersion;
use super::terms::DataCategory;
use super::terms::Date;
use super::terms::Id;
use super::terms::Identity;
use super::terms::Location;
use super::terms::Operation;
use crate::schema;
use crate::yaml::List;
use crate::yaml::Section;
use crate::yaml::Spanned;
use crate::yaml::Table;

/// The data processing agreement as data. Check it with `dpa-sidecar check policy.yaml`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["customers"]}, {"required": ["customer_files"]}]))]
pub(super) struct Document {
    /// The version of this form: 1.
    #[schemars(extend("const" = 1))]
    pub(super) version: Section<Spanned<u32>>,
    /// Name and revision of this policy.
    pub(super) metadata: Section<Metadata>,
    /// Who runs the service.
    pub(super) processor: Section<Processor>,
    /// The signed paper that this file follows. Default: none.
    #[schemars(default)]
    pub(super) agreement: Section<Agreement>,
    /// What holds for each customer that has no value of its own.
    pub(super) defaults: Section<Defaults>,
    /// Whether no sidecar may observe as a whole. Default: false.
    #[schemars(default)]
    pub(super) require_enforce: Section<bool>,
    /// The measures that the agreement promises. Default: none.
    #[schemars(default)]
    pub(super) security_measures: Section<SecurityMeasures>,
    /// Notices to customers that a measure will be weakened. Default: none.
    #[schemars(default)]
    pub(super) weakening_notices: Section<List<WeakeningNotice>>,
    /// Why data may be used, by name. The prohibited purposes and `model_training` are built in.
    #[schemars(extend("propertyNames" = {"$ref": "#/$defs/Id"}))]
    pub(super) purposes: Section<Table<Purpose>>,
    /// Short names for several purposes; they may stand wherever purposes are permitted. Default: none.
    #[schemars(default, transform = filled_entries, extend("propertyNames" = {"$ref": "#/$defs/Id"}))]
    pub(super) purpose_sets: Section<Table<List<Spanned<Id>>>>,
    /// The processor's own services and desks. Default: none.
    #[schemars(default)]
    pub(super) callers: Section<List<Caller>>,
    /// Other companies that handle data for the processor. Default: none.
    #[schemars(default)]
    pub(super) subprocessors: Section<List<Subprocessor>>,
    /// The customers and what was agreed with each. At least one, here or in a customer file.
    #[schemars(default)]
    pub(super) customers: Section<List<Customer>>,
    /// More files with customers: paths or globs, from the folder of this file. Default: none.
    #[schemars(default)]
    #[expect(dead_code, reason = "read before the rest, by `customer_file_globs`")]
    customer_files: Section<List<Spanned<String>>>,
}

/// Customers of a policy in a file of their own, which `customer_files` names.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CustomerFile {
    /// The customers and what was agreed with each.
    #[expect(dead_code, reason = "handed over entry by entry while the file is read")]
    customers: List<Customer>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    /// Stands in every record.
    pub(super) name: Id,
    /// Raise it with every change: each record names it.
    pub(super) revision: u64,
    /// When this revision was issued. Default: none.
    pub(super) issued_at: Option<Date>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "evidence: checked for its form only")]
pub(super) struct Processor {
    /// A short name.
    id: Id,
    /// The name in the agreement.
    legal_name: String,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Agreement {
    /// Its title. Default: none.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    title: Option<String>,
    /// SHA-256 of the signed document, 64 hex digits. Default: none.
    #[schemars(extend("pattern" = "^[0-9A-Fa-f]{64}$"))]
    pub(super) document_sha256: Option<Spanned<String>>,
    /// Your own text for a clause, by its number such as `2.3`. Default: the short texts of the product.
    #[serde(default)]
    pub(super) clauses: Table<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Defaults {
    /// Whether violations are blocked or only written down. Default: enforce.
    #[serde(default = "enforce")]
    pub(super) enforcement: Enforcement,
    /// Where data may be.
    pub(super) residency: Residency,
}

fn enforce() -> Enforcement {
    Enforcement::Enforce
}

#[derive(Clone, Copy, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum ClientAuthentication {
    /// Each connection proves a certificate.
    Required,
    /// A certificate is proven if there is one.
    Optional,
    /// No certificates.
    None,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SecurityMeasures {
    /// Lowest TLS version of a request's connection. Default: none.
    pub(super) min_tls_version: Option<TlsVersion>,
    /// Whether callers prove a certificate on the connection. Default: none.
    pub(super) client_authentication: Option<ClientAuthentication>,
    /// What a record has to be before a request moves. Default: written.
    pub(super) decision_log: Option<Durability>,
    /// Whether the policy has to be signed. Default: false.
    #[serde(default)]
    pub(super) signed_policy: bool,
}

/// What an agreement promises, and may weaken after a consent or a notice only (clause 3.2).
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// `min_tls_version`.
    MinTlsVersion,
    /// `client_authentication`.
    ClientAuthentication,
    /// `decision_log`.
    DecisionLog,
    /// `signed_policy`.
    SignedPolicy,
    /// `enforcement`.
    Enforcement,
    /// That people behind a caller have an undertaking of confidentiality (`human_access`).
    Confidentiality,
}

impl Measure {
    /// The word in files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MinTlsVersion => "min_tls_version",
            Self::ClientAuthentication => "client_authentication",
            Self::DecisionLog => "decision_log",
            Self::SignedPolicy => "signed_policy",
            Self::Enforcement => "enforcement",
            Self::Confidentiality => "confidentiality",
        }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WeakeningNotice {
    /// What is weakened.
    pub(super) measure: Measure,
    /// What it was.
    pub(super) from: String,
    /// What it will be.
    pub(super) to: String,
    /// When the customers were told.
    pub(super) notice_given_at: Date,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Purpose {
    /// The business purpose of the CCPA, or `legal`, or `contract`.
    pub(super) ccpa_business_purpose: CcpaPurpose,
    /// Why the data is needed, in one sentence.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    necessity: String,
    /// Whether each request needs an instruction of the customer that names it. Default: false.
    #[serde(default)]
    pub(super) requires_instruction: bool,
}

#[derive(Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResidencySource {
    /// The agreement says so.
    Dpa,
    /// The customer instructed it.
    Instruction,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mechanism {
    /// Standard contractual clauses.
    Scc,
    /// A privacy impact assessment.
    Pia,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Residency {
    /// Where data may be kept.
    #[schemars(length(min = 1))]
    pub(super) storage_locations: List<Location>,
    /// From where data may be reached.
    #[schemars(length(min = 1))]
    pub(super) access_locations: List<Location>,
    /// Who says so.
    pub(super) source: ResidencySource,
    /// The evidence; of an instruction, its id. Default: none.
    pub(super) r#ref: Option<String>,
    /// Transfers on record, which open more places for access. Default: none.
    #[schemars(length(min = 1))]
    #[serde(default)]
    pub(super) transfers: Option<List<Transfer>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    /// The places it opens.
    #[schemars(length(min = 1))]
    pub(super) to: List<Location>,
    /// On what it rests.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    mechanism: Mechanism,
    /// The evidence; records name it.
    pub(super) r#ref: Id,
    /// For this subprocessor only. Default: for anybody.
    pub(super) subprocessor: Option<Spanned<Id>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Caller {
    /// A short name; records name it.
    pub(super) id: Spanned<Id>,
    /// Who it proves to be.
    #[schemars(length(min = 1))]
    pub(super) identities: List<Spanned<Identity>>,
    /// Where it is. Default: each request has to prove it.
    pub(super) location: Option<Location>,
    /// Purposes, or purpose sets, that it may ask for.
    pub(super) permitted_purposes: List<Spanned<Id>>,
    /// What it may do. Default: anything.
    #[schemars(length(min = 1))]
    pub(super) operations: Option<List<Operation>>,
    /// The people behind it, if there are any. Default: none.
    pub(super) human_access: Option<HumanAccess>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HumanAccess {
    /// Which people.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    group: String,
    /// Their undertaking of confidentiality.
    pub(super) confidentiality: Undertaking,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Undertaking {
    /// The evidence.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    r#ref: String,
    /// The first day.
    pub(super) signed_on: Spanned<Date>,
    /// The last day; after it nobody gets in until a new one is signed.
    pub(super) expires_on: Spanned<Date>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Subprocessor {
    /// A short name; records name it.
    pub(super) id: Spanned<Id>,
    /// The name in the agreement: another one is another company.
    pub(super) legal_name: String,
    /// What it does.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    service: String,
    /// Who it proves to be.
    pub(super) identities: List<Spanned<Identity>>,
    /// Purposes, or purpose sets, that it may have data for.
    pub(super) permitted_purposes: List<Spanned<Id>>,
    /// What may be done. Default: anything.
    #[schemars(length(min = 1))]
    pub(super) operations: Option<List<Operation>>,
    /// What data it may have; a category covers those below it.
    #[schemars(length(min = 1))]
    pub(super) data_categories: List<DataCategory>,
    /// Where it keeps data.
    #[schemars(length(min = 1))]
    pub(super) storage_locations: List<Location>,
    /// From where it reaches data. A customer has to allow all of them.
    #[schemars(length(min = 1))]
    pub(super) access_locations: List<Location>,
    /// Its agreement; without one it gets nothing. Default: none.
    pub(super) agreement: Option<SubprocessorAgreement>,
    /// When customers were told. Default: none.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    announced_at: Option<Date>,
    /// From when it may have data; sooner for a customer that consents.
    pub(super) effective_at: Spanned<Date>,
    /// The last day it may have data. Default: no end.
    pub(super) removed_at: Option<Date>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SubprocessorAgreement {
    /// The evidence.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    r#ref: String,
    /// The first day.
    pub(super) signed_on: Spanned<Date>,
    /// The last day; after it the subprocessor gets nothing. Default: no end.
    pub(super) expires_on: Option<Spanned<Date>>,
    /// Whether it binds the subprocessor to the same duties.
    pub(super) flow_down: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Customer {
    /// A short name; requests and records name it.
    pub(super) id: Spanned<Id>,
    /// The name in the agreement.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    legal_name: String,
    /// Who the customer's own callers prove to be. Default: none.
    pub(super) identities: Option<List<Spanned<Identity>>>,
    /// The state of its agreement.
    pub(super) dpa: Dpa,
    /// Purposes, or purpose sets, that it permits.
    pub(super) permitted_purposes: List<Spanned<Id>>,
    /// Where its data may be. Default: the policy's default.
    pub(super) residency: Option<Residency>,
    /// Subprocessors it refused. Default: none.
    pub(super) objections: Option<List<Objection>>,
    /// Subprocessors it accepted ahead of time, and weakened measures. Default: none.
    pub(super) consents: Option<List<Consent>>,
    /// Its written instructions. Default: none.
    pub(super) instructions: Option<List<Instruction>>,
    /// Whether its violations are blocked or only written down. Default: the policy's default.
    pub(super) enforcement: Option<Enforcement>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Dpa {
    /// Which version was signed.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    version: String,
    /// From when it binds. Default: not accepted, nothing passes.
    pub(super) accepted_at: Option<Date>,
    /// The contract it belongs to.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    contract_ref: String,
    /// From when a law bars the service; the return of data is left. Default: none.
    pub(super) suspended_by_law_at: Option<Date>,
    /// From when the agreement is ending; needs `return_until`. Default: none.
    pub(super) terminated_at: Option<Spanned<Date>>,
    /// The last day on which data may be returned; needs `terminated_at`. Default: none.
    pub(super) return_until: Option<Spanned<Date>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Objection {
    /// Whom it refused.
    pub(super) subprocessor: Spanned<Id>,
    /// From when.
    pub(super) effective_at: Date,
    /// The evidence.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    r#ref: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Consent {
    /// The subprocessor it accepted: this, or `weakening`.
    pub(super) subprocessor: Option<Spanned<Id>>,
    /// The weakened measure it accepted: this, or `subprocessor`.
    pub(super) weakening: Option<Measure>,
    /// What the measure was; needs `to`. Default: not said.
    pub(super) from: Option<String>,
    /// What it will be; needs `from`. Default: not said.
    pub(super) to: Option<String>,
    /// From when.
    pub(super) given_at: Spanned<Date>,
    /// The evidence.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    r#ref: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Instruction {
    /// A short name; requests and records name it.
    pub(super) id: Spanned<Id>,
    /// Who gave it: a role, not a name.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    issuer_role: String,
    /// The customer's own reference. Default: none, and it is not in force.
    pub(super) reference: Option<String>,
    /// When it came.
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    received_at: Date,
    /// When the processor accepted it. Default: proposed only, not in force.
    pub(super) accepted_at: Option<Date>,
    /// The first day.
    pub(super) valid_from: Spanned<Date>,
    /// The last day. Default: no end.
    pub(super) valid_until: Option<Spanned<Date>>,
    /// What it permits. Default: nothing.
    pub(super) permits: Option<Permits>,
    /// Whose data it restricts. Default: nobody's.
    pub(super) restricts: Option<Restricts>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Permits {
    /// Purposes, one by one. Default: no limit, and none is lifted.
    #[schemars(length(min = 1))]
    pub(super) purposes: Option<List<Spanned<Id>>>,
    /// Operations. Default: no limit, and none is lifted.
    #[schemars(length(min = 1))]
    pub(super) operations: Option<List<Operation>>,
    /// Recipients. Default: no limit, and none is lifted.
    #[schemars(length(min = 1))]
    pub(super) subprocessors: Option<List<Spanned<Id>>>,
    /// Data. Default: no limit, and none is lifted.
    #[schemars(length(min = 1))]
    pub(super) data_categories: Option<List<DataCategory>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Restricts {
    /// The subscriber's reference, as the service knows it.
    #[schemars(length(min = 1))]
    pub(super) subscriber: Spanned<String>,
}

/// Of a map of lists that have entries.
fn filled_entries(schema: &mut Schema) {
    if let Some(Value::Object(list)) = schema.pointer_mut("/additionalProperties") {
        list.insert("minItems".to_owned(), 1.into());
    }
}

/// What may stand in a `policy.yaml`, as a JSON Schema.
#[must_use]
pub fn schema() -> Schema {
    schema::of_file::<Document>("policy.yaml")
}

/// What may stand in a customer file of a policy, as a JSON Schema.
#[must_use]
pub fn customers_schema() -> Schema {
    schema::of_file::<CustomerFile>("customer file of a policy")
}
