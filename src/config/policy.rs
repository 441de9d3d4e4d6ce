//! `policy` in the settings: where the policy is, who has to have signed it, what it is held against.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::SignedDuration;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Compiler;
use super::Settings;
use super::document::Later;
use super::document::Span;
use crate::files;
use crate::policy::Policy;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::signature::Verifier;
use crate::standing::MaxAge;
use crate::standing::OnStale;
use crate::yaml::At;
use crate::yaml::Spanned;

/// Where the policy is, and what it has to be.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependentRequired" = {"on_stale": ["max_age"]}))]
pub(super) struct PolicyFile {
    /// Path of the policy, from the folder of this file. It is read again when it changes.
    pub(super) file: Spanned<String>,
    /// The public key (PEM) of who signs the policy, from the folder of this file. It is read once, at the start.
    /// Default: the policy need not be signed.
    pub(super) public_key: Option<Spanned<String>>,
    /// The policy that was agreed last, from the folder of this file: each one that is loaded is held against it.
    /// Default: it is held against none.
    pub(super) baseline: Option<Spanned<String>>,
    /// How old the policy may be, counted from its `issued_at`. Default: any age.
    pub(super) max_age: Option<Spanned<Span>>,
    /// What becomes of requests when it is older: `deny` or `warn`. Default: deny.
    pub(super) on_stale: Option<Spanned<OnStale>>,
    #[schemars(skip)]
    pub(super) bundle_url: Later,
    #[schemars(skip)]
    pub(super) candidate: Later,
}

/// What the policy has to be.
#[derive(Clone, Debug)]
pub struct PolicyTerms {
    /// Who has to have signed it.
    pub key: Option<Arc<Verifier>>,
    /// Where that is said; else where the policy is named.
    pub key_at: At,
    /// What the first policy of a start is held against.
    pub baseline: Option<Spanned<PathBuf>>,
    /// How old it may be.
    pub max_age: Option<MaxAge>,
    max_age_at: At,
}

/// Most bytes of a key of ours; a private one has 119.
pub(super) const MAX_KEY: u64 = 64 * 1024;

/// How far the clocks of who issues a policy and of who takes it may differ.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);

impl Compiler<'_> {
    pub(super) fn policy_terms(&mut self, policy: &PolicyFile) -> PolicyTerms {
        let PolicyFile { file, public_key, baseline, max_age, on_stale, bundle_url, candidate } = policy;
        self.later("policy.bundle_url", bundle_url);
        self.later("policy.candidate", candidate);
        if let (None, Some(on_stale)) = (max_age, on_stale) {
            let message = "`on_stale` says what happens to requests when the policy is too old, and no age is";
            self.error(Code::MissingField, on_stale.at, message, "add `max_age: …`, or remove `on_stale`");
        }
        let max_age_at = max_age.as_ref().map_or(file.at, |age| age.at);
        let age = max_age.as_ref().map(|age| SignedDuration::try_from(age.value.0).unwrap_or(SignedDuration::MAX));
        let then = on_stale.as_ref().map(|then| then.value).unwrap_or_default();
        PolicyTerms {
            key: public_key.as_ref().and_then(|key| self.policy_key(key)),
            key_at: public_key.as_ref().map_or(file.at, |key| key.at),
            baseline: baseline.as_ref().map(|path| Spanned { value: self.folder.join(&path.value), at: path.at }),
            max_age: age.map(|age| MaxAge { age, then }),
            max_age_at,
        }
    }

    fn policy_key(&mut self, Spanned { value, at }: &Spanned<String>) -> Option<Arc<Verifier>> {
        let path = self.folder.join(value);
        let read = files::read(&path, MAX_KEY).map_err(|error| error.to_string());
        match read.and_then(|pem| Verifier::read(&pem).map_err(|error| error.to_string())) {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                let message = format!("the key `{}` cannot be used: {error}", path.display());
                let help = "name the public half, PATH.pub, of a key that `dpa-sidecar keygen PATH` wrote";
                self.error(Code::Unreadable, *at, message, help);
                None
            }
        }
    }
}

impl Settings {
    /// What the policy promises of itself, and what has to stand in it for these settings.
    pub(super) fn check_policy_terms(&self, policy: &Policy, now: Timestamp, problems: &mut Problems) {
        let terms = &self.policy;
        if policy.security.signed_policy && terms.key.is_none() {
            let help = "add `public_key: …` beside the policy's file, or ask its owner what was promised";
            let message = "the policy promises to be signed, and nobody would look whether it is";
            problems.push(Problem::error(Code::BelowPolicy, self.policy_file_at, message, help));
        }
        if terms.max_age.is_some() && policy.issued_at.is_none() {
            let help = "ask the policy's owner to write `metadata: {…, issued_at: …}`, or remove `max_age`";
            let message = "the policy does not say when it was issued, so nobody knows how old it is";
            problems.push(Problem::error(Code::MissingField, terms.max_age_at, message, help));
        }
        let ahead = policy.issued_at.map(|issued| issued.duration_since(now)).unwrap_or_default();
        if terms.max_age.is_some() && ahead > CLOCKS_DIFFER {
            let help = "ask the policy's owner for one with the true date, or bring it when that has come";
            let message = "the policy says that it was issued later than now, so nobody knows how old it is";
            problems.push(Problem::error(Code::Dates, terms.max_age_at, message, help));
        }
    }
}
