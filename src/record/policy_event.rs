//! The records of event `dpa.policy`: what is in force since when, what was refused and why.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::Batch;
use super::entry::EventRecord;
use super::entry::PolicyRecord;
use super::entry::Time;
use super::entry::Writer;
use crate::policy::Enforcement;
use crate::policy::Named;
use crate::policy::weakening::Refused;

/// What a `dpa.policy` record may say.
pub(super) const POLICY_EVENTS: [&str; 3] = ["loaded", "refused", "stale"];

/// Why a policy was not taken; the words are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Why {
    /// A file cannot be read.
    Unreadable,
    /// It is not signed, or not as it is.
    Signature,
    /// It has mistakes.
    Invalid,
    /// It is another one: `metadata.name` differs.
    Name,
    /// Its revision is lower than the one in force, or the same with another content.
    Revision,
    /// These settings give less than it demands.
    Settings,
    /// The baseline cannot be used, so nothing can be held against it.
    Baseline,
    /// Something is weaker, and not agreed.
    Weaker,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Unreadable,
        Self::Signature,
        Self::Invalid,
        Self::Name,
        Self::Revision,
        Self::Settings,
        Self::Baseline,
        Self::Weaker,
    ];

    /// The word in records and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Signature => "signature",
            Self::Invalid => "invalid",
            Self::Name => "name",
            Self::Revision => "revision",
            Self::Settings => "settings",
            Self::Baseline => "baseline",
            Self::Weaker => "weaker",
        }
    }
}

/// A policy takes effect.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Which.
    pub policy: &'a Named,
    /// The id of the key that it is signed with; none: it is not signed.
    pub key_id: Option<&'a str>,
    /// What it was held against: the one in force before, or the baseline at the start.
    pub against: Option<&'a Named>,
    /// How many of its changes since are weaker, and agreed.
    pub weaker: usize,
}

/// A policy was refused.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// Why.
    pub why: Why,
    /// The same as a sentence: words of the policies, names of files, places in them.
    pub text: &'a str,
    /// Which stays in force; none at the start.
    pub policy: Option<&'a Named>,
    /// Which was refused, if it could be read that far.
    pub offered: Option<&'a Named>,
    /// Mistakes in its files: code, file and line of each.
    pub problems: &'a [ProblemRecord],
    /// What is weaker and not agreed.
    pub weaker: &'a [Refused],
}

/// A mistake in a file. What the file says there is not recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ProblemRecord {
    /// Its code.
    #[schemars(extend("pattern" = "^DPA[0-9]{3}$"))]
    pub code: &'static str,
    /// The file.
    pub file: String,
    /// The line in it, from 1.
    pub line: usize,
}

/// A policy took effect.
#[derive(Serialize, JsonSchema)]
pub(super) struct PolicyDetail<'a> {
    /// Whether the sidecar as a whole observes.
    #[schemars(with = "Enforcement")]
    enforcement: &'static str,
    /// The policy in force from now on (`loaded`), or still (`refused`, `stale`).
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<PolicyRecord<'a>>,
    /// Whether it is signed; only of `loaded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    signed: Option<bool>,
    /// The key that it is signed with; only of `loaded`.
    #[schemars(extend("pattern" = "^[0-9a-f]{16}$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'a str>,
    /// What it was held against: the policy before, or the baseline; only of `loaded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<PolicyRecord<'a>>,
    /// How many changes since are weaker, and agreed; only of `loaded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    weaker: Option<usize>,
    /// Why it was refused; only of `refused`.
    #[schemars(with = "Option<Why>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
    /// The same as a sentence; only of `refused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// The policy that was refused, if it could be read that far; only of `refused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    offered: Option<PolicyRecord<'a>>,
    /// Mistakes in its files, the first of them; only of `refused`.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    problems: &'a [ProblemRecord],
    /// What is weaker and not agreed, the first of it; only of `refused`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<ChangeRecord<'a>>,
    /// How much more is wrong, or weaker and not agreed; only of `refused`.
    #[serde(skip_serializing_if = "is_zero")]
    more: usize,
}

/// Something that is weaker, and not agreed.
#[derive(Serialize, JsonSchema)]
struct ChangeRecord<'a> {
    /// What kind of change, as `diff` names it.
    kind: &'static str,
    /// The change as a sentence.
    text: &'a str,
    /// Whose word is missing, the first of them; nobody's: only a notice can stand for it.
    customers: Vec<&'a str>,
    /// How many more.
    #[serde(skip_serializing_if = "is_zero")]
    more_customers: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

// A line of the log is no longer than 1 MiB: ids have 64 characters at most.
const MOST_CHANGES: usize = 50;
const MOST_CUSTOMERS: usize = 100;
const MOST_TEXT: usize = 2_000;
/// Mistakes that a record names.
const MOST_PROBLEMS: usize = 20;

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MOST_TEXT)).unwrap_or_default()
}

impl<'a> ChangeRecord<'a> {
    fn of(refused: &'a Refused) -> Self {
        Self {
            kind: refused.change.kind.as_str(),
            text: cut(&refused.change.text),
            customers: refused.customers.iter().take(MOST_CUSTOMERS).map(String::as_str).collect(),
            more_customers: refused.customers.len().saturating_sub(MOST_CUSTOMERS),
        }
    }
}

impl<'a> From<&'a Named> for PolicyRecord<'a> {
    fn from(named: &'a Named) -> Self {
        Self { name: &named.name, revision: named.revision, digest: &named.digest }
    }
}

impl PolicyDetail<'_> {
    fn of(enforcement: Enforcement) -> Self {
        Self {
            enforcement: enforcement.as_str(),
            policy: None,
            signed: None,
            key_id: None,
            against: None,
            weaker: None,
            why: None,
            text: None,
            offered: None,
            problems: &[],
            changes: Vec::new(),
            more: 0,
        }
    }
}

fn push(out: &mut Batch, writer: &Writer, time: Timestamp, what: &'static str, detail: &PolicyDetail<'_>) {
    out.push(&EventRecord {
        event: "dpa.policy",
        what,
        time: Time(time),
        service: &writer.service,
        instance: &writer.instance,
        log: writer.log,
        detail,
    });
}

/// Encodes that a policy takes effect, and whether the sidecar as a whole observes.
pub fn loaded(out: &mut Batch, writer: &Writer, time: Timestamp, enforcement: Enforcement, load: &Load<'_>) {
    let detail = PolicyDetail {
        policy: Some(load.policy.into()),
        signed: Some(load.key_id.is_some()),
        key_id: load.key_id,
        against: load.against.map(PolicyRecord::from),
        weaker: load.against.map(|_| load.weaker),
        ..PolicyDetail::of(enforcement)
    };
    push(out, writer, time, "loaded", &detail);
}

/// Encodes that a policy was refused: why, and what in it is weaker for whom.
pub fn refused(out: &mut Batch, writer: &Writer, time: Timestamp, enforcement: Enforcement, refusal: &Refusal<'_>) {
    let Refusal { why, text, policy, offered, problems, weaker } = *refusal;
    let shown = problems.get(..MOST_PROBLEMS).unwrap_or(problems);
    let detail = PolicyDetail {
        policy: policy.map(PolicyRecord::from),
        why: Some(why.as_str()),
        text: Some(cut(text)),
        offered: offered.map(PolicyRecord::from),
        problems: shown,
        changes: weaker.iter().take(MOST_CHANGES).map(ChangeRecord::of).collect(),
        more: problems.len() - shown.len() + weaker.len().saturating_sub(MOST_CHANGES),
        ..PolicyDetail::of(enforcement)
    };
    push(out, writer, time, "refused", &detail);
}

/// Encodes that the policy in force is older than the settings allow.
pub fn stale(out: &mut Batch, writer: &Writer, time: Timestamp, enforcement: Enforcement, policy: &Named) {
    let detail = PolicyDetail { policy: Some(policy.into()), ..PolicyDetail::of(enforcement) };
    push(out, writer, time, "stale", &detail);
}
