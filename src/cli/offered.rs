//! The policy that settings name, as a start would take it: verified, compiled, held against the baseline.

use jiff::Timestamp;

use super::check::print_refused;
use crate::config::Settings;
use crate::policy::Named;
use crate::policy::Policy;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::problem::Source;
use crate::record::policy_event::Why;
use crate::reload;
use crate::reload::Accepted;
use crate::reload::Baseline;
use crate::reload::Loaded;
use crate::reload::PolicySource;
use crate::reload::Refusal;
use crate::reload::agreed::NoBaseline;
use crate::reload::gather::NotGathered;
use crate::telemetry::chain;
use crate::yaml::At;
use crate::yaml::Spanned;

/// What became of it.
pub(super) struct Offered {
    /// The policy and what is wrong with it, if its files could be read and are signed as they have to be.
    pub(super) loaded: Option<Loaded>,
    key_id: Option<String>,
    against: Option<Named>,
    weaker: usize,
    /// Whether there is a baseline, and nothing is weaker that is not agreed.
    pub(super) is_held_against: bool,
    /// Why it may not take effect.
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
        Err(error) => {
            problems.push(match &error {
                NotGathered::Unread(error) => unreadable_policy(settings, error),
                NotGathered::Unsigned(error) => not_as_signed(settings, &error.to_string()),
            });
            offered.refusal = Some(error.into());
            return offered;
        }
    };
    let manifest = gathered.manifest().cloned();
    let loaded = gathered.compile(None, look_out);
    offered.refusal = match &loaded.policy {
        None => Some(Refusal::of_problems(Why::Invalid, None, &loaded.problems, &loaded.sources)),
        Some(policy) => {
            let unfit = settings.check_against(policy, now);
            let fits = match unfit.has_errors() {
                true => Err(Refusal::of_problems(Why::Settings, Some(policy.named()), &unfit, &[])),
                false => Ok(()),
            };
            problems.0.extend(unfit.0);
            let follows = match manifest.map(|manifest| manifest.is_of(policy)) {
                Some(Err(error)) => {
                    problems.push(not_as_signed(settings, &error.to_string()));
                    Err(NotGathered::Unsigned(error).into())
                }
                Some(Ok(())) | None => offered.held(settings, (policy, &loaded.sources), now, problems),
            };
            follows.and(fits).err()
        }
    };
    offered.loaded = Some(loaded);
    offered
}

fn not_as_signed(settings: &Settings, why: &str) -> Problem {
    let help =
        "have it signed anew: `dpa-sidecar sign --key PRIVATE-KEY POLICY`, and bring all its files here together";
    Problem::error(Code::Signature, settings.policy.key_at, format!("the policy is not as it was signed: {why}"), help)
}

fn not_agreed(settings: &Settings, refusal: &Refusal) -> Option<Problem> {
    let at = settings.policy.baseline.as_ref().map_or(settings.policy_file_at, |baseline| baseline.at);
    if refusal.why == Why::Weaker {
        let count = refusal.weaker.len();
        let plural = if count == 1 { "change is" } else { "changes are" };
        let message = format!("{count} {plural} weaker than the baseline and not agreed");
        let help = "put the consent, notice or instruction on record, or take the change back";
        return Some(Problem::error(Code::Baseline, at, message, help));
    }
    not_followed(refusal, at)
}

/// That a policy is another one than the baseline, or none that comes after it.
pub(super) fn not_followed(refusal: &Refusal, at: At) -> Option<Problem> {
    let (message, help) = match refusal.why {
        Why::Name => (
            format!("the policy does not follow the baseline: {}", refusal.text),
            "name the baseline of this policy: what was agreed in one says nothing of the other",
        ),
        Why::Revision => (
            format!("the policy does not follow the baseline: {}", refusal.text),
            "bring the newer policy here; what was agreed before is no way back, but a higher revision with the old text is",
        ),
        Why::Weaker | Why::Unreadable | Why::Signature | Why::Invalid | Why::Settings | Why::Baseline => return None,
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
    /// Holds a policy against the baseline, if there is one.
    fn held(
        &mut self,
        settings: &Settings,
        (policy, sources): (&Policy, &[Source]),
        now: Timestamp,
        problems: &mut Problems,
    ) -> Result<(), Refusal> {
        let Some(Spanned { value: path, at }) = settings.policy.baseline.clone() else { return Ok(()) };
        let baseline = Baseline { path, policy_file: settings.policy_file.clone() }.read(sources).map_err(|error| {
            let text = chain(&error).to_string();
            let (code, help) = match &error {
                NoBaseline::Unread(_) => (
                    Code::Unreadable,
                    "name the policy that was agreed last; a relative path counts from the folder of this file"
                        .to_owned(),
                ),
                NoBaseline::Mistakes(path) => (
                    Code::Baseline,
                    format!("`dpa-sidecar check {path}` says which; name the policy that was agreed last"),
                ),
                NoBaseline::Itself(_) => (
                    Code::Baseline,
                    "keep the policy that was agreed last in a folder of its own, a copy with all its files".to_owned(),
                ),
            };
            problems.push(Problem::error(code, at, &*text, help));
            Refusal::of(Why::Baseline, policy, text)
        })?;
        self.against = Some(baseline.named());
        self.weaker = reload::held_against(policy, &baseline, now).inspect_err(|refusal| {
            problems.0.extend(not_agreed(settings, refusal));
        })?;
        self.is_held_against = true;
        Ok(())
    }

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
