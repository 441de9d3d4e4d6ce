//! What is in force: the policy that every request is decided with, since when, and why a newer one is not.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use arc_swap::ArcSwap;
use jiff::SignedDuration;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::Named;
use crate::policy::Policy;

/// What becomes of requests while the policy is older than `policy.max_age`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnStale {
    /// They are denied.
    #[default]
    Deny,
    /// They are decided as before; the operational log and `/readyz?verbose` say so.
    Warn,
}

/// How old a policy may be, counted from its `issued_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxAge {
    /// So old.
    pub age: SignedDuration,
    /// What then.
    pub then: OnStale,
}

impl MaxAge {
    /// Whether a policy is older than that.
    #[must_use]
    pub fn is_over(&self, policy: &Policy, now: Timestamp) -> bool {
        age(policy, now).is_none_or(|age| age > self.age)
    }
}

/// The policy in force.
#[derive(Debug)]
pub struct InForce {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Since when this process decides with it.
    pub since: Timestamp,
    /// The id of the key that it is signed with; none: it is not signed.
    pub key_id: Option<String>,
}

/// A policy that was to take effect and was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedLoad {
    /// When.
    pub at: Timestamp,
    /// Which, if it could be read that far.
    pub offered: Option<Named>,
    /// Why, as a word of the records.
    pub why: &'static str,
    /// Why, as a sentence: words of the policies and names of files.
    pub text: String,
}

/// What is in force and what became of the last policy that was to replace it; shared by the whole process.
#[derive(Debug)]
pub struct Standing {
    in_force: ArcSwap<InForce>,
    refused: Mutex<Option<RefusedLoad>>,
    max_age: Option<MaxAge>,
}

impl Standing {
    /// With the first policy of the process.
    #[must_use]
    pub fn new(in_force: InForce, max_age: Option<MaxAge>) -> Self {
        Self { in_force: ArcSwap::from_pointee(in_force), refused: Mutex::new(None), max_age }
    }

    /// The policy to decide a request with, from its first rule to its record.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.in_force.load().policy)
    }

    /// What is in force.
    #[must_use]
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// Another policy takes effect. Gives back what was in force: requests may still be decided with it.
    pub fn replace(&self, next: InForce) -> Arc<InForce> {
        let before = self.in_force.swap(Arc::new(next));
        self.settle();
        before
    }

    /// A policy was refused; the one in force stays.
    pub fn refuse(&self, refused: RefusedLoad) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
    }

    /// What the files say is in force.
    pub fn settle(&self) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why what the files say is not in force; none: it is.
    #[must_use]
    pub fn refused(&self) -> Option<RefusedLoad> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a policy is older than the settings allow.
    #[must_use]
    pub fn is_stale(&self, policy: &Policy, now: Timestamp) -> bool {
        self.max_age.is_some_and(|most| most.is_over(policy, now))
    }

    /// Whether requests are denied because a policy is older than the settings allow.
    #[must_use]
    pub fn denies(&self, policy: &Policy, now: Timestamp) -> bool {
        self.max_age.is_some_and(|most| most.then == OnStale::Deny) && self.is_stale(policy, now)
    }
}

/// How old a policy is, counted from its `issued_at`; none without one.
#[must_use]
pub fn age(policy: &Policy, now: Timestamp) -> Option<SignedDuration> {
    policy.issued_at.map(|issued| now.duration_since(issued))
}
