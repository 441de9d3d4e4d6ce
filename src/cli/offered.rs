//! The policy that settings name, as a start would take it: verified, compiled, held against the baseline.

use jiff::Timestamp;

use super::check::print_refused;
use crate::config::Settings;
use crate::policy::Named;
use crate::policy::Policy;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::record::policy_event::Why;
use crate::reload;
use crate::reload::Accepted;
use crate::reload::Loaded;
use crate::reload::PolicySource;
use crate::reload::Refusal;
use crate::reload::gather::NotGathered;
use crate::telemetry::chain;

/// What became of it.
pub(super) struct Offered {
    /// The policy and what is wrong with it, if its files could be read and are signed as they have to be.
    pub(super) loaded: Option<Loaded>,
    key_id: Option<String>,
    against: Option<Named>,
    weaker: usize,
    /// Whether there is a baseline, and nothing is weaker that is not agreed.
    pub(super) is_held_against: bool,
    /// Why it may not follow what was signed or agreed.
    pub(super) refusal: Option<Refusal>,
}

/// Reads the policy that the settings name. What is wrong with the settings, or with how the policy fits them, is
/// added to `problems`.
pub(super) fn offered(
    settings: &Settings,
    look_out: Option<Timestamp>,
    now: Timestamp,
    problems: &mut Problems,
) -> Offered {
    let terms = &settings.policy;
    let mut offered = Offered {
        loaded: None,
        key_id: terms.key.as_ref().map(|key| key.id().to_owned()),
        against: None,
        weaker: 0,
        is_held_against: false,
        refusal: None,
    };
    let source = PolicySource { path: settings.policy_file.clone(), key: terms.key.clone() };
    let gathered = match source.gather() {
        Ok(gathered) => gathered,
        Err(NotGathered::Unread(error)) => {
            problems.push(unreadable_policy(settings, &error));
            return offered;
        }
        Err(NotGathered::Unsigned(error)) => {
            problems.push(not_as_signed(settings, &error.to_string()));
            offered.refusal = Some(NotGathered::Unsigned(error).into());
            return offered;
        }
    };
    let manifest = gathered.manifest().cloned();
    let loaded = gathered.compile(None, look_out);
    if let Some(policy) = &loaded.policy {
        problems.0.extend(settings.check_against(policy).0);
        if let Some(Err(error)) = manifest.map(|manifest| manifest.is_of(policy)) {
            problems.push(not_as_signed(settings, &error.to_string()));
            offered.refusal = Some(NotGathered::Unsigned(error).into());
        } else if let Some(baseline) = agreed(settings, problems) {
            offered.against = Some(baseline.named());
            match reload::held_against(policy, &baseline, now) {
                Ok(weaker) => (offered.weaker, offered.is_held_against) = (weaker, true),
                Err(refusal) => {
                    problems.0.extend(not_agreed(settings, &refusal));
                    offered.refusal = Some(refusal);
                }
            }
        }
    }
    offered.loaded = Some(loaded);
    offered
}

/// The baseline, if there is one and it can be used.
fn agreed(settings: &Settings, problems: &mut Problems) -> Option<Policy> {
    let baseline = settings.policy.baseline.as_ref()?;
    let source = PolicySource { path: baseline.value.clone(), key: None };
    let (path, at) = (baseline.value.display(), baseline.at);
    match source.gather() {
        Err(error) => {
            let message = format!("the baseline cannot be used: {}", chain(&error));
            let help = "name the policy that was agreed last; a relative path counts from the folder of this file";
            problems.push(Problem::error(Code::Unreadable, at, message, help));
            None
        }
        Ok(gathered) => {
            // It has a name of its own, and may be the same policy.
            let policy = gathered.called(&settings.policy_file).compile(None, None).policy;
            if policy.is_none() {
                let message = format!("the baseline `{path}` has mistakes, so nothing can be held against it");
                let help = format!("`dpa-sidecar check {path}` says which; name the policy that was agreed last");
                problems.push(Problem::error(Code::Baseline, at, message, help));
            }
            policy
        }
    }
}

fn not_as_signed(settings: &Settings, why: &str) -> Problem {
    let help =
        "have it signed anew: `dpa-sidecar sign --key PRIVATE-KEY POLICY`, and bring all its files here together";
    Problem::error(Code::Signature, settings.policy.key_at, format!("the policy is not as it was signed: {why}"), help)
}

fn not_agreed(settings: &Settings, refusal: &Refusal) -> Option<Problem> {
    let at = settings.policy.baseline.as_ref().map_or(settings.policy_file_at, |baseline| baseline.at);
    let (message, help) = match refusal.why {
        Why::Weaker => {
            let count = refusal.weaker.len();
            let plural = if count == 1 { "change is" } else { "changes are" };
            let message = format!("{count} {plural} weaker than the baseline and not agreed");
            (message, "put the consent, notice or instruction on record, or take the change back")
        }
        Why::Revision => (
            format!("the policy does not follow the baseline: {}", refusal.text),
            "bring the newer policy here; what was agreed before is no way back, but a higher revision with the old text is",
        ),
        Why::Unreadable | Why::Signature | Why::Invalid | Why::Settings => return None,
    };
    Some(Problem::error(Code::Baseline, at, message, help))
}

/// The policy that the settings name cannot be read: a mistake in the settings.
fn unreadable_policy(settings: &Settings, error: &reload::ReadError) -> Problem {
    Problem::error(
        Code::Unreadable,
        settings.policy_file_at,
        chain(error).to_string(),
        "name the policy's file; a relative path counts from the folder of this file",
    )
}

impl Offered {
    /// What may take effect, if nothing is wrong with it.
    pub(super) fn accepted(self) -> Option<Accepted> {
        let Self { loaded, key_id, against, weaker, is_held_against: _, refusal } = self;
        let policy = loaded.filter(|_| refusal.is_none())?.policy?;
        Some(Accepted { policy, key_id, against, weaker })
    }

    /// What is weaker than the baseline and not agreed, in full.
    pub(super) fn print_weaker(&self, settings: &Settings, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let (Some(refusal), Some(baseline)) = (&self.refusal, &settings.policy.baseline) else { return Ok(()) };
        if refusal.weaker.is_empty() {
            return Ok(());
        }
        let (path, baseline) = (settings.policy_file.display().to_string(), baseline.value.display().to_string());
        print_refused(&path, &baseline, &refusal.weaker, out)
    }
}
