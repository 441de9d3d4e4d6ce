//! The admin listener: what is really in force. It tells, and changes nothing.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::Question;
use super::Reply;
use crate::doors::proxy::Clock;
use crate::standing;
use crate::standing::InForce;
use crate::standing::Standing;

/// What the admin listener knows.
#[derive(Clone, Debug)]
pub struct Inside {
    /// The settings in force, as `/config_dump` shows them.
    pub settings: String,
    /// The file of the policy.
    pub policy_file: String,
    /// The policy in force, and why a newer one is not.
    pub standing: Arc<Standing>,
    /// What time it is.
    pub clock: Clock,
}

/// The policy in force. Its content is in its files; what says that they are these is the digest.
#[derive(Serialize)]
struct PolicyShown<'a> {
    name: &'a str,
    revision: u64,
    digest: &'a str,
    issued_at: Option<Timestamp>,
    in_force_since: Timestamp,
    /// None: it is not signed.
    key_id: Option<&'a str>,
    /// `defaults.enforcement`.
    enforcement: &'static str,
    age_seconds: i64,
    is_stale: bool,
    file: &'a str,
    customers: usize,
    subprocessors: usize,
    callers: usize,
    purposes: usize,
    instructions: usize,
    /// Why what the files say is not in force.
    refused: Option<RefusedShown<'a>>,
}

#[derive(Serialize)]
struct RefusedShown<'a> {
    at: Timestamp,
    revision: Option<u64>,
    why: &'a str,
    text: &'a str,
}

impl Inside {
    pub(super) fn answer(&self, question: &Question<'_>) -> Option<Reply> {
        match question.path {
            "/config_dump" => Some(Reply::json(self.settings.clone())),
            "/policy" => Some(Reply::json(self.policy())),
            _ => None,
        }
    }

    fn policy(&self) -> String {
        let (in_force, now) = (self.standing.in_force(), self.clock.now());
        let InForce { policy, since, key_id } = &*in_force;
        let (counts, refused) = (policy.counts(), self.standing.refused());
        let shown = PolicyShown {
            name: policy.name.as_str(),
            revision: policy.revision,
            digest: &policy.digest,
            issued_at: policy.issued_at,
            in_force_since: *since,
            key_id: key_id.as_deref(),
            enforcement: policy.enforcement.as_str(),
            age_seconds: standing::age(policy, now).unwrap_or_else(|| now.duration_since(*since)).as_secs(),
            is_stale: self.standing.is_stale(policy, now),
            file: &self.policy_file,
            customers: counts.customers,
            subprocessors: counts.subprocessors,
            callers: counts.callers,
            purposes: counts.purposes,
            instructions: counts.instructions,
            refused: refused.as_ref().map(|refused| RefusedShown {
                at: refused.at,
                revision: refused.offered.as_ref().map(|it| it.revision),
                why: refused.why,
                text: &refused.text,
            }),
        };
        let mut text = serde_json::to_string_pretty(&shown).unwrap_or_default();
        text.push('\n');
        text
    }
}
