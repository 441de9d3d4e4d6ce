//! Mirror of `policy.yaml`: what may stand in it, nothing of what it means.
//!
//! Some keys are evidence that no rule reads (names of people, references); they are decoded all the
//! same, so that a misspelt one is found.

use serde::Deserialize;

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
use crate::yaml::List;
use crate::yaml::Section;
use crate::yaml::Spanned;
use crate::yaml::Table;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) version: Section<Spanned<u32>>,
    pub(super) metadata: Section<Metadata>,
    pub(super) processor: Section<Processor>,
    pub(super) agreement: Section<Agreement>,
    pub(super) defaults: Section<Defaults>,
    pub(super) require_enforce: Section<bool>,
    pub(super) security_measures: Section<SecurityMeasures>,
    #[expect(dead_code, reason = "evidence: read by the weakening gate, which is not built yet")]
    weakening_notices: Section<List<WeakeningNotice>>,
    pub(super) purposes: Section<Table<Purpose>>,
    pub(super) purpose_sets: Section<Table<List<Spanned<Id>>>>,
    pub(super) callers: Section<List<Caller>>,
    pub(super) subprocessors: Section<List<Subprocessor>>,
    pub(super) customers: Section<List<Customer>>,
    #[expect(dead_code, reason = "read before the rest, by `customer_file_globs`")]
    customer_files: Section<List<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CustomerFile {
    pub(super) customers: List<Customer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: Id,
    pub(super) revision: u64,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    issued_at: Option<Date>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "evidence: checked for its form only")]
pub(super) struct Processor {
    id: Id,
    legal_name: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Agreement {
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    title: Option<String>,
    pub(super) document_sha256: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) clauses: Table<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Defaults {
    #[serde(default = "enforce")]
    pub(super) enforcement: Enforcement,
    pub(super) residency: Residency,
}

fn enforce() -> Enforcement {
    Enforcement::Enforce
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum ClientAuthentication {
    Required,
    Optional,
    None,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecurityMeasures {
    pub(super) min_tls_version: Option<TlsVersion>,
    pub(super) client_authentication: Option<ClientAuthentication>,
    pub(super) decision_log: Option<Durability>,
    #[serde(default)]
    pub(super) signed_policy: bool,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Measure {
    MinTlsVersion,
    ClientAuthentication,
    DecisionLog,
    SignedPolicy,
    Enforcement,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "evidence: read by the weakening gate, which is not built yet")]
struct WeakeningNotice {
    measure: Measure,
    from: String,
    to: String,
    notice_given_at: Date,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Purpose {
    pub(super) ccpa_business_purpose: CcpaPurpose,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    necessity: String,
    #[serde(default)]
    pub(super) requires_instruction: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResidencySource {
    Dpa,
    Instruction,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mechanism {
    Scc,
    Pia,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Residency {
    pub(super) storage_locations: List<Location>,
    pub(super) access_locations: List<Location>,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    source: ResidencySource,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    r#ref: Option<String>,
    #[serde(default)]
    pub(super) transfers: Option<List<Transfer>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    pub(super) to: List<Location>,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    mechanism: Mechanism,
    pub(super) r#ref: Id,
    pub(super) subprocessor: Option<Spanned<Id>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Caller {
    pub(super) id: Spanned<Id>,
    pub(super) identities: List<Spanned<Identity>>,
    pub(super) location: Option<Location>,
    pub(super) permitted_purposes: List<Spanned<Id>>,
    pub(super) operations: Option<List<Operation>>,
    pub(super) human_access: Option<HumanAccess>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HumanAccess {
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    group: String,
    pub(super) confidentiality: Undertaking,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Undertaking {
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    r#ref: String,
    pub(super) signed_on: Spanned<Date>,
    pub(super) expires_on: Spanned<Date>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Subprocessor {
    pub(super) id: Spanned<Id>,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    legal_name: String,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    service: String,
    pub(super) identities: List<Spanned<Identity>>,
    pub(super) permitted_purposes: List<Spanned<Id>>,
    pub(super) operations: Option<List<Operation>>,
    pub(super) data_categories: List<DataCategory>,
    pub(super) storage_locations: List<Location>,
    pub(super) access_locations: List<Location>,
    pub(super) agreement: Option<SubprocessorAgreement>,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    announced_at: Option<Date>,
    pub(super) effective_at: Spanned<Date>,
    pub(super) removed_at: Option<Date>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubprocessorAgreement {
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    r#ref: String,
    pub(super) signed_on: Spanned<Date>,
    pub(super) expires_on: Option<Spanned<Date>>,
    pub(super) flow_down: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Customer {
    pub(super) id: Spanned<Id>,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    legal_name: String,
    pub(super) identities: Option<List<Spanned<Identity>>>,
    pub(super) dpa: Dpa,
    pub(super) permitted_purposes: List<Spanned<Id>>,
    pub(super) residency: Option<Residency>,
    pub(super) objections: Option<List<Objection>>,
    pub(super) consents: Option<List<Consent>>,
    pub(super) instructions: Option<List<Instruction>>,
    pub(super) enforcement: Option<Enforcement>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dpa {
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    version: String,
    pub(super) accepted_at: Option<Date>,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    contract_ref: String,
    pub(super) suspended_by_law_at: Option<Date>,
    pub(super) terminated_at: Option<Spanned<Date>>,
    pub(super) return_until: Option<Spanned<Date>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Objection {
    pub(super) subprocessor: Spanned<Id>,
    pub(super) effective_at: Date,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    r#ref: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Consent {
    pub(super) subprocessor: Option<Spanned<Id>>,
    pub(super) weakening: Option<Measure>,
    pub(super) given_at: Spanned<Date>,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    r#ref: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Instruction {
    pub(super) id: Spanned<Id>,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    issuer_role: String,
    pub(super) reference: Option<String>,
    #[expect(dead_code, reason = "evidence: checked for its form only")]
    received_at: Date,
    pub(super) accepted_at: Option<Date>,
    pub(super) valid_from: Spanned<Date>,
    pub(super) valid_until: Option<Spanned<Date>>,
    pub(super) permits: Option<Permits>,
    pub(super) restricts: Option<Restricts>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Permits {
    pub(super) purposes: Option<List<Spanned<Id>>>,
    pub(super) operations: Option<List<Operation>>,
    pub(super) subprocessors: Option<List<Spanned<Id>>>,
    pub(super) data_categories: Option<List<DataCategory>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Restricts {
    pub(super) subscriber: Spanned<String>,
}
