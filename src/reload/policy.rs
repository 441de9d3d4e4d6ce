//! A policy on its way into force: compiled apart from requests, held against the one before it, and swapped whole.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use jiff::SignedDuration;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::Gathered;
use super::LOOK_AGAIN;
use super::PolicySource;
use super::agreed::Baseline;
use super::agreed::Former;
use super::agreed::Offer;
use super::agreed::held_against;
use super::gather::NotGathered;
use crate::doors::proxy::Clock;
use crate::policy::Enforcement;
use crate::policy::Named;
use crate::policy::Policy;
use crate::policy::problem::Problems;
use crate::policy::problem::Severity;
use crate::policy::problem::Source;
use crate::policy::problem::position;
use crate::policy::weakening::Refused;
use crate::record::log::Counters;
use crate::record::policy_event;
use crate::record::policy_event::Load;
use crate::record::policy_event::ProblemRecord;
use crate::record::policy_event::Why;
use crate::record::recorder::Recorder;
use crate::standing::InForce;
use crate::standing::RefusedLoad;
use crate::standing::Standing;
use crate::telemetry::Metrics;
use crate::telemetry::chain;

/// A policy that may take effect.
#[derive(Debug)]
pub struct Accepted {
    /// The policy.
    pub policy: Policy,
    /// The id of the key that it is signed with; none: it is not signed.
    pub key_id: Option<String>,
    /// What it was held against.
    pub against: Option<Named>,
    /// How many of its changes since are weaker, and agreed.
    pub weaker: usize,
}

impl Accepted {
    /// As it is put into the decision log.
    pub fn recorded<T>(&self, record: impl FnOnce(&Load<'_>) -> T) -> T {
        let Self { policy, key_id, against, weaker } = self;
        let named = policy.named();
        record(&Load { policy: &named, key_id: key_id.as_deref(), against: against.as_ref(), weaker: *weaker })
    }
}

/// Why a policy may not take effect.
#[derive(Debug)]
pub struct Refusal {
    /// As a word.
    pub why: Why,
    /// Which policy, if it could be read that far.
    pub offered: Option<Named>,
    /// As a sentence: words of the policies, and names of files.
    pub text: Box<str>,
    /// Mistakes in its files.
    pub problems: Vec<ProblemRecord>,
    /// What is weaker and not agreed.
    pub weaker: Vec<Refused>,
}

impl From<NotGathered> for Refusal {
    fn from(error: NotGathered) -> Self {
        let why = match error {
            NotGathered::Unread(_) => Why::Unreadable,
            NotGathered::Unsigned(_) => Why::Signature,
        };
        Self::unread(why, chain(&error).to_string())
    }
}

/// Customers and changes that a sentence names.
const MOST_NAMED: usize = 5;

impl Refusal {
    /// Of files that did not come as far as being a policy.
    pub(super) fn unread(why: Why, text: String) -> Self {
        Self { why, offered: None, text: text.into(), problems: Vec::new(), weaker: Vec::new() }
    }

    /// Of a policy that was compiled.
    #[must_use]
    pub fn of(why: Why, policy: &Policy, text: String) -> Self {
        Self { why, offered: Some(policy.named()), text: text.into(), problems: Vec::new(), weaker: Vec::new() }
    }

    /// Of a policy with mistakes, or that the settings do not fit.
    #[must_use]
    pub fn of_problems(why: Why, offered: Option<Named>, problems: &Problems, sources: &[Source]) -> Self {
        let errors = problems.0.iter().filter(|problem| problem.severity == Severity::Error);
        let problems: Vec<ProblemRecord> = errors
            .map(|problem| {
                let source = sources.get(usize::from(problem.at.file));
                let name = |source: &Source| Path::new(&source.path).file_name().map(|it| it.to_string_lossy().into());
                let file = source.and_then(name).unwrap_or_default();
                let line = source.map_or(0, |source| position(&source.text, problem.at.start).0);
                ProblemRecord { code: problem.code.as_str(), file, line }
            })
            .collect();
        let shown = |ProblemRecord { code, file, line }: &ProblemRecord| format!("{code} at {file}:{line}");
        let first: Vec<String> = problems.iter().take(MOST_NAMED).map(shown).collect();
        let rest = problems.len().saturating_sub(first.len());
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        let text = format!("{}{more}; `dpa-sidecar check` says more", first.join(", "));
        Self { why, offered, text: text.into(), problems, weaker: Vec::new() }
    }

    /// Of a policy of which something is weaker than one before, and not agreed.
    pub(super) fn of_weaker(policy: &Policy, weaker: Vec<Refused>) -> Self {
        let told = |refused: &Refused| {
            let named: Vec<&str> = refused.customers.iter().take(MOST_NAMED).map(String::as_str).collect();
            let rest = refused.customers.len().saturating_sub(named.len());
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            let whom = if named.is_empty() { String::new() } else { format!(" (for {}{more})", named.join(", ")) };
            format!("{}{whom}", refused.change.text)
        };
        let first: Vec<String> = weaker.iter().take(MOST_NAMED).map(told).collect();
        let rest = weaker.len().saturating_sub(first.len());
        let more = if rest > 0 { format!("; and {rest} more") } else { String::new() };
        let text = format!("weaker and not agreed: {}{more}", first.join("; "));
        Self { weaker, ..Self::of(Why::Weaker, policy, text) }
    }

    /// The same, and against which one before it was held.
    #[must_use]
    pub(super) fn than(self, which: &str) -> Self {
        Self { text: format!("held against {which}: {}", self.text).into(), ..self }
    }

    /// As it is put into the decision log; `in_force` is what stays.
    #[must_use]
    pub fn recorded<'a>(&'a self, in_force: Option<&'a Named>) -> policy_event::Refusal<'a> {
        policy_event::Refusal {
            why: self.why,
            text: &self.text,
            policy: in_force,
            offered: self.offered.as_ref(),
            problems: &self.problems,
            weaker: &self.weaker,
        }
    }
}

/// What the settings want of a policy.
pub(super) type Demands = Arc<dyn Fn(&Policy) -> Problems + Send + Sync>;

/// What a policy is held against.
struct Before {
    demands: Demands,
    in_force: Arc<Policy>,
    /// When it took effect.
    since: Timestamp,
    former: Former,
    baseline: Option<Baseline>,
    now: Timestamp,
}

/// Compiles files and holds them against the settings, the policy in force, and what was agreed before it.
fn weighed(
    gathered: Gathered,
    key_id: Option<String>,
    Before { demands, in_force, since, former, baseline, now }: &Before,
) -> Result<(Accepted, Former), Refusal> {
    let manifest = gathered.manifest().cloned();
    let loaded = gathered.compile(None, None);
    let Some(policy) = loaded.policy else {
        return Err(Refusal::of_problems(Why::Invalid, None, &loaded.problems, &loaded.sources));
    };
    if let Some(Err(error)) = manifest.map(|manifest| manifest.is_of(&policy)) {
        return Err(Refusal::of(Why::Signature, &policy, error.to_string()));
    }
    let problems = demands(&policy);
    if problems.has_errors() {
        return Err(Refusal::of_problems(Why::Settings, Some(policy.named()), &problems, &[]));
    }
    let weaker = held_against(&policy, in_force, *now)?;
    let offer = Offer::of(&policy, in_force, *now);
    if let Some(baseline) = baseline {
        let agreed = baseline.read(&loaded.sources);
        let agreed = agreed.map_err(|error| Refusal::of(Why::Baseline, &policy, chain(&error).to_string()))?;
        offer.held_against_baseline(&agreed)?;
    }
    former.held_against(&offer)?;
    let former = former.after((in_force, *since), &policy, *now);
    Ok((Accepted { policy, key_id, against: Some(in_force.named()), weaker }, former))
}

/// How often the files are read even if nothing about them seems to have changed: not every file system tells.
const READ_AGAIN: Duration = Duration::from_secs(3);

/// What took long is repeated after a pause of so many times that, up to [`LONGEST_PAUSE`]: patterns may lead through a
/// hundred thousand entries, and requests need the processors.
const PAUSES: u32 = 10;

/// Longest time between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long to wait with what took so long, and is usually repeated after that.
fn pause(usual: Duration, took: Duration) -> Duration {
    took.saturating_mul(PAUSES).clamp(usual, LONGEST_PAUSE)
}

/// How long files that do not fit each other, or are not there, are given to become whole before that is told.
const BECOMING_WHOLE: Duration = Duration::from_secs(2);

/// How often a policy that was refused for what was agreed is held up again: a notice may have become old enough, the
/// baseline another.
const AGREED_MEANWHILE: Duration = Duration::from_secs(60);

/// How often it is recorded that the policy is too old, as long as it is.
const STALE_AGAIN: SignedDuration = SignedDuration::from_hours(1);

/// Refusals that are remembered, so that none is recorded twice.
const MOST_TOLD: usize = 64;

/// Looks after the policy: takes what its files say, if it may be taken.
pub struct PolicyWatch {
    /// Where it is.
    pub source: PolicySource,
    /// What it is held against, beside the one in force; it is read anew each time.
    pub baseline: Option<Baseline>,
    /// What is in force.
    pub standing: Arc<Standing>,
    /// What the settings want of it.
    pub demands: Demands,
    /// `enforcement` of the sidecar.
    pub enforcement: Enforcement,
    /// Where loads are written down.
    pub recorder: Recorder,
    /// What the log knows.
    pub log: Arc<Counters>,
    /// What operators see.
    pub metrics: Metrics,
    /// What time it is.
    pub clock: Clock,
}

/// Of a file: device, number, bytes, and when content and file were changed last.
type Stat = (u64, u64, u64, (i64, i64), (i64, i64));

/// What the looks saw.
struct Seen {
    globs: Vec<String>,
    stats: Vec<Option<Stat>>,
    read_at: Instant,
    /// How long it took to look whether files changed, and to read them.
    look_took: Duration,
    read_took: Duration,
    /// What was dealt with last.
    settled: Option<(String, Option<Why>, Instant)>,
    /// Something else, since when.
    fresh: Option<(String, Instant)>,
    /// Refusals that are recorded already.
    told: Vec<String>,
    /// What is not in force any more, until nobody decides with it.
    retired: Vec<Arc<InForce>>,
    /// What was agreed before.
    former: Former,
    /// The policy that was too old at the last look, by its digest, and when that was recorded.
    stale: Option<(Box<str>, Timestamp)>,
}

impl PolicyWatch {
    /// Takes every policy that the files come to say, until the drain begins.
    ///
    /// What two looks saw the same is taken, so that files which are being written, and volumes that are being
    /// swapped, are not taken by halves. `again` is somebody who says that the files are whole.
    pub(super) async fn watch(self, mut draining: watch::Receiver<bool>, again: &Notify) {
        let mut seen = Seen::nothing(Former::since(self.standing.policy()));
        let mut is_told_whole = false;
        loop {
            let looks = async {
                self.look(&mut seen, is_told_whole).await;
                self.look_at_age(&mut seen).await;
                // Dropped here, and not by the worker that had it last: that takes its time.
                seen.retired.retain(|it| Arc::strong_count(it) > 1 || Arc::strong_count(&it.policy) > 1);
                tokio::select! {
                    () = tokio::time::sleep(pause(LOOK_AGAIN, seen.look_took)) => false,
                    () = again.notified() => true,
                }
            };
            tokio::select! {
                whole = looks => is_told_whole = whole,
                // Without its sender the sidecar is gone.
                _ = draining.wait_for(|is_draining| *is_draining) => return,
            }
        }
    }

    async fn look(&self, seen: &mut Seen, is_told_whole: bool) {
        // Apart, so that a file system which is slow or hangs holds up no certificate.
        let begin = Instant::now();
        let (source, globs) = (self.source.clone(), seen.globs.clone());
        let look = move || source.paths(&globs).iter().map(|path| stat(path)).collect();
        let Ok(stats): Result<Vec<Option<Stat>>, _> = tokio::task::spawn_blocking(look).await else { return };
        seen.look_took = begin.elapsed();
        let is_same = stats == seen.stats && seen.read_at.elapsed() < pause(READ_AGAIN, seen.read_took);
        if is_same && seen.fresh.is_none() && !is_told_whole && !seen.may_be_agreed(self.baseline.is_some()) {
            return;
        }
        (seen.stats, seen.read_at) = (stats, Instant::now());
        let source = self.source.clone();
        let gather = move || {
            let gathered = source.gather().map_err(Refusal::from);
            let fingerprint = match &gathered {
                Ok(gathered) => gathered.fingerprint(),
                Err(refusal) => format!("{} {}", refusal.text, source.mark()),
            };
            (gathered, fingerprint)
        };
        let Ok((gathered, fingerprint)) = tokio::task::spawn_blocking(gather).await else { return };
        seen.read_took = seen.read_at.elapsed();
        if let Ok(gathered) = &gathered {
            seen.globs = gathered.globs().to_vec();
        }
        let settled = seen.settled.as_ref().filter(|(before, ..)| *before == fingerprint);
        if settled.is_some_and(|(_, refused, _)| {
            refused.is_none() || !(is_told_whole || seen.may_be_agreed(self.baseline.is_some()))
        }) {
            seen.fresh = None;
            return;
        }
        let since = match &seen.fresh {
            Some((fresh, since)) if *fresh == fingerprint => *since,
            Some(_) | None if settled.is_some() || is_told_whole => Instant::now(),
            Some(_) | None => {
                seen.fresh = Some((fingerprint, Instant::now()));
                return;
            }
        };
        let is_partial = gathered.as_ref().map_or(true, Gathered::is_partial);
        let is_becoming = is_partial && since.elapsed() < BECOMING_WHOLE;
        if is_becoming && !is_told_whole && settled.is_none() {
            return;
        }
        let refused = match self.take(gathered, seen).await {
            Ok(()) => None,
            Err(refusal) => {
                let why = refusal.why;
                self.refuse(refusal, &fingerprint, is_told_whole, seen).await;
                Some(why)
            }
        };
        (seen.settled, seen.fresh) = (Some((fingerprint, refused, Instant::now())), None);
    }

    /// Puts what was read into force, unless it is in force already.
    async fn take(&self, gathered: Result<Gathered, Refusal>, seen: &mut Seen) -> Result<(), Refusal> {
        let gathered = gathered?;
        let in_force = self.standing.in_force();
        if gathered.fingerprint() == *in_force.policy.digest {
            if self.standing.refused().is_some() {
                tracing::info!(revision = in_force.policy.revision, "the files say again what is in force");
            }
            self.standing.settle();
            // What is refused from now on is refused anew, even if it was before.
            seen.told.clear();
            return Ok(());
        }
        let before = Before {
            demands: Arc::clone(&self.demands),
            in_force: Arc::clone(&in_force.policy),
            since: in_force.since,
            former: seen.former.clone(),
            baseline: self.baseline.clone(),
            now: self.clock.now(),
        };
        let key_id = self.source.key.as_ref().map(|key| key.id().to_owned());
        drop(in_force);
        let begin = Instant::now();
        let (accepted, former) = apart(move || weighed(gathered, key_id, &before)).await?;
        let now = self.clock.now();
        let Accepted { policy, key_id, weaker, .. } = &accepted;
        tracing::info!(
            policy = %policy.name, revision = policy.revision, digest = %policy.digest, signed = key_id.is_some(),
            weaker, took_ms = begin.elapsed().as_millis(), "policy loaded"
        );
        // It is in the log before the first decision that is made with it.
        self.note(|recorder| {
            accepted.recorded(|load| {
                recorder.note(|batch| policy_event::loaded(batch, recorder.writer(), now, self.enforcement, load));
            });
        })
        .await;
        self.log.set_policy(accepted.policy.digest.clone());
        self.metrics.policy_loaded();
        let next = InForce { policy: Arc::new(accepted.policy), since: now, key_id: accepted.key_id };
        seen.retired.push(self.standing.replace(next));
        seen.former = former;
        seen.told.clear();
        Ok(())
    }

    async fn refuse(&self, refusal: Refusal, fingerprint: &str, is_asked: bool, seen: &mut Seen) {
        let now = self.clock.now();
        let Refusal { why, offered, text, .. } = &refusal;
        let is_told = self.standing.refused().is_some_and(|before| *before.text == **text);
        if !is_told || is_asked {
            self.metrics.policy_refused(why.as_str());
            let revision = offered.as_ref().map(|offered| offered.revision);
            tracing::error!(why = why.as_str(), revision, text, "a policy is refused; the one in force stays");
            let (offered, why, text) = (offered.clone(), why.as_str(), text.to_string());
            self.standing.refuse(RefusedLoad { at: now, offered, why, text });
        }
        let mark = format!("{} {fingerprint}", why.as_str());
        if seen.told.contains(&mark) {
            return;
        }
        let named = self.standing.policy().named();
        self.note(|recorder| {
            let refusal = refusal.recorded(Some(&named));
            recorder.note(|batch| {
                policy_event::refused(batch, recorder.writer(), now, self.enforcement, &refusal);
            });
        })
        .await;
        if seen.told.len() >= MOST_TOLD {
            seen.told.remove(0);
        }
        seen.told.push(mark);
    }

    /// Tells when the policy has become older than the settings allow, and every hour that it is: so that it stands in
    /// each part of the log.
    async fn look_at_age(&self, seen: &mut Seen) {
        let (policy, now) = (self.standing.policy(), self.clock.now());
        if !self.standing.is_stale(&policy, now) {
            seen.stale = None;
            return;
        }
        if seen.stale.as_ref().is_some_and(|(told, at)| *told == policy.digest && !is_told_again(*at, now)) {
            return;
        }
        tracing::error!(revision = policy.revision, "the policy is older than `policy.max_age`");
        let named = policy.named();
        self.note(|recorder| {
            recorder.note(|batch| policy_event::stale(batch, recorder.writer(), now, self.enforcement, &named));
        })
        .await;
        seen.stale = Some((policy.digest.clone(), now));
    }

    /// Writes a record and waits until it is with the kernel, as long as a request would.
    async fn note(&self, note: impl FnOnce(&Recorder)) {
        note(&self.recorder);
        self.recorder.flush_all(self.recorder.deadline()).await;
    }
}

impl Seen {
    fn nothing(former: Former) -> Self {
        Self {
            globs: Vec::new(),
            stats: Vec::new(),
            read_at: Instant::now(),
            look_took: Duration::ZERO,
            read_took: Duration::ZERO,
            settled: None,
            fresh: None,
            told: Vec::new(),
            retired: Vec::new(),
            former,
            stale: None,
        }
    }

    /// Whether what was refused for what was agreed may be agreed by now.
    fn may_be_agreed(&self, has_baseline: bool) -> bool {
        let is_due = |at: &Instant| at.elapsed() >= AGREED_MEANWHILE;
        let rests = |why: &Why| match why {
            Why::Weaker | Why::Baseline => true,
            Why::Revision | Why::Name => has_baseline,
            Why::Unreadable | Why::Signature | Why::Invalid | Why::Settings => false,
        };
        self.settled.as_ref().is_some_and(|(_, why, at)| why.as_ref().is_some_and(rests) && is_due(at))
    }
}

/// Whether what was recorded then is to be recorded again: after an hour, or if the clock was set back.
fn is_told_again(then: Timestamp, now: Timestamp) -> bool {
    now.duration_since(then).abs() >= STALE_AGAIN
}

fn stat(path: &Path) -> Option<Stat> {
    let of = std::fs::metadata(path).ok()?;
    Some((of.dev(), of.ino(), of.size(), (of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec())))
}

/// How much a load gives way to requests, as `nice` counts: beside a busy worker it has a quarter of a processor.
const NICE: i32 = 5;

/// Runs on a thread of its own, which gives way to those that serve requests.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    let (answer, answered) = oneshot::channel();
    let started = std::thread::Builder::new().name("dpa-policy".to_owned()).spawn(move || {
        // Of this thread alone. Where it may not, it competes.
        let _same_as_before = rustix::process::setpriority_process(None, NICE);
        let _nobody_waits = answer.send(work());
    });
    let failed = |text: String| Refusal::unread(Why::Unreadable, text);
    match started {
        Ok(_detached) => match answered.await {
            Ok(result) => result,
            Err(_panicked) => Err(failed("it could not be compiled: a mistake in this program".to_owned())),
        },
        Err(error) => Err(failed(format!("no thread to compile it: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pattern that was too wide was walked every three seconds, and took a third of a processor for good.
    #[test]
    fn a_walk_that_took_long_was_repeated_at_once() {
        let second = Duration::from_secs(1);
        for (name, took, expected) in [
            ("a short one", Duration::from_millis(1), READ_AGAIN),
            ("a long one", second, 10 * second),
            ("one on a file system that hung", 100 * second, LONGEST_PAUSE),
        ] {
            assert_eq!(pause(READ_AGAIN, took), expected, "{name}");
        }
    }

    #[test]
    fn a_policy_that_stayed_too_old_was_told_once() {
        let then = Timestamp::UNIX_EPOCH;
        for (name, seconds, expected) in [
            ("at once", 0, false),
            ("before the hour is over", 3_599, false),
            ("after an hour", 3_600, true),
            ("after the clock was set back", -3_600, true),
        ] {
            assert_eq!(is_told_again(then, then + SignedDuration::from_secs(seconds)), expected, "{name}");
        }
    }
}
