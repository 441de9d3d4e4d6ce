//! What was agreed before a policy: the one that it follows, the baseline, the first one, and what former ones let pass
//! that was closed since. A policy is held against all of them before it takes effect.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use super::PolicySource;
use super::Refusal;
use super::gather::NotGathered;
use crate::policy::Policy;
use crate::policy::diff::Change;
use crate::policy::diff::Concerns;
use crate::policy::diff::Direction;
use crate::policy::diff::Kind;
use crate::policy::diff::diff;
use crate::policy::diff::open_names;
use crate::policy::diff::weaker_if_open;
use crate::policy::problem::Source;
use crate::policy::terms::Id;
use crate::policy::weakening;
use crate::policy::weakening::Refused;
use crate::policy::weakening::is_forgotten;
use crate::policy::weakening::needs_word;
use crate::record::policy_event::Why;

/// The policy that was agreed last, as the settings name it.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// Its file.
    pub path: PathBuf,
    /// The file of the policy that is held against it: it may be the same one, under a name of its own.
    pub policy_file: PathBuf,
}

/// Why nothing can be held against a baseline.
#[derive(Debug, thiserror::Error)]
pub enum NoBaseline {
    /// It cannot be read.
    #[error("the baseline cannot be used")]
    Unread(#[source] NotGathered),
    /// It is no policy.
    #[error("the baseline `{0}` has mistakes, so nothing can be held against it")]
    Mistakes(String),
    /// A file of it is one of the policy's: a change of the policy would change what it is held against.
    #[error("the file `{0}` belongs to the policy and to the baseline, so the policy is held against itself")]
    Itself(String),
}

impl Baseline {
    /// Reads it, for a policy of these files. It is not verified: who may write it says what was agreed.
    ///
    /// # Errors
    ///
    /// [`NoBaseline`].
    pub fn read(&self, policy: &[Source]) -> Result<Policy, NoBaseline> {
        let source = PolicySource { path: self.path.clone(), key: None };
        let gathered = source.gather().map_err(NoBaseline::Unread)?;
        // By whatever name, and through whatever links, hard ones too.
        let real = |source: &Source| std::fs::metadata(&source.path).ok().map(|file| (file.dev(), file.ino()));
        let theirs: HashSet<(u64, u64)> = policy.iter().filter_map(real).collect();
        if let Some(same) = gathered.sources.iter().find(|source| real(source).is_some_and(|it| theirs.contains(&it))) {
            return Err(NoBaseline::Itself(same.path.clone()));
        }
        let policy = gathered.called(&self.policy_file).compile(None, None).policy;
        policy.ok_or_else(|| NoBaseline::Mistakes(self.path.display().to_string()))
    }
}

/// Holds a policy against one before it: it is of the same name, the revision only grows, and what is weaker has to be
/// agreed. How many of its changes are weaker.
///
/// # Errors
///
/// [`Refusal`].
pub fn held_against(new: &Policy, old: &Policy, now: Timestamp) -> Result<usize, Refusal> {
    follows(new, old)?;
    let weaker = weaker(old, new, now);
    let refused = weakening::refused(&weaker, old, new, now);
    if !refused.is_empty() {
        return Err(Refusal::of_weaker(new, refused));
    }
    Ok(weaker.len())
}

fn weaker(old: &Policy, new: &Policy, now: Timestamp) -> Vec<Change> {
    let mut changes = diff(old, new, Some(now));
    changes.retain(|change| change.direction == Direction::Weaker);
    changes
}

/// Whether it is the same policy, and none from before.
fn follows(new: &Policy, old: &Policy) -> Result<(), Refusal> {
    if new.name != old.name {
        let text = format!(
            "`{}` is another policy than `{}`: write `metadata: {{name: {}, …}}`; another one begins with a start of its own",
            new.name, old.name, old.name
        );
        return Err(Refusal::of(Why::Name, new, text));
    }
    if new.revision < old.revision {
        let text = format!("revision {} is lower than {}", new.revision, old.revision);
        return Err(Refusal::of(Why::Revision, new, text));
    }
    if new.revision == old.revision && new.digest != old.digest {
        let text = format!("revision {} is not what it was: raise the revision with every change", new.revision);
        return Err(Refusal::of(Why::Revision, new, text));
    }
    Ok(())
}

/// An offer: a policy that would replace the one in force, and that was held against it.
///
/// It is held against what was agreed before, too: something may have been closed, changed while nothing passed by it,
/// and be opened again by a change that needs no word. Only what is new has to be agreed: what a policy of before does
/// not let pass, and the one in force does not either. So what is tighter always loads.
pub struct Offer<'p> {
    new: &'p Policy,
    in_force: &'p Policy,
    now: Timestamp,
    weaker: Vec<Change>,
    /// The customers for whom it opens something.
    opened: HashSet<String>,
}

impl<'p> Offer<'p> {
    /// `new` would replace `in_force`.
    #[must_use]
    pub fn of(new: &'p Policy, in_force: &'p Policy, now: Timestamp) -> Self {
        let weaker = weaker(in_force, new, now);
        let opened = weaker.iter().flat_map(concerned).cloned().collect();
        Self { new, in_force, now, weaker, opened }
    }

    /// Holds it against a baseline.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn held_against_baseline(&self, baseline: &Policy) -> Result<(), Refusal> {
        let held = follows(self.new, baseline).and_then(|()| self.held_against(baseline));
        let passing = held.map_err(|refusal| refusal.than("the baseline"))?;
        if !passing.is_empty() {
            tracing::warn!(
                changes = passing.len(),
                text = &*Refusal::of_weaker(self.new, passing).text,
                "what passes already has no consent, notice or instruction on record any more: a start with this policy \
                 and this baseline would be refused"
            );
        }
        Ok(())
    }

    /// Holds it against a policy of before, for the customers for whom it opens something. What is not agreed and passes
    /// already.
    fn held_against(&self, before: &Policy) -> Result<Vec<Refused>, Refusal> {
        let changes = weaker(before, self.new, self.now);
        let refused = weakening::refused(&changes, before, self.new, self.now);
        if refused.is_empty() {
            return Ok(refused);
        }
        let passing = weaker(before, self.in_force, self.now);
        let passing: Vec<Passing<'_>> = passing.iter().map(Passing::of).collect();
        let new: Vec<Change> = changes.iter().flat_map(|change| self.new_of(change, &passing, before)).collect();
        let new = weakening::refused(&new, before, self.new, self.now);
        if new.is_empty() { Ok(refused) } else { Err(Refusal::of_weaker(self.new, new)) }
    }

    /// Whether something is new for a customer of a policy of before.
    fn concerns(&self, before: &Policy) -> bool {
        let is_for_all = |change: &Change| matches!(change.concerns, Concerns::All | Concerns::Unnamed);
        before.customer_names().any(|id| self.opened.contains(id.as_str())) || self.weaker.iter().any(is_for_all)
    }

    /// What of a change since a policy of before does not pass in the one in force either.
    fn new_of(&self, change: &Change, passing: &[Passing<'_>], before: &Policy) -> Vec<Change> {
        let is_concerned = |id: &&String| self.opened.contains(*id) && before.customer_named(id).is_some();
        let mut found: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
        match &change.concerns {
            Concerns::Customers(ids) => {
                for id in ids.iter().filter(is_concerned) {
                    if let Some(values) = new_values(change, id, passing) {
                        found.entry(values).or_default().push(id.clone());
                    }
                }
            }
            // Nothing of these is closed by another rule, so the step from the policy in force is all that is new.
            Concerns::All | Concerns::Unnamed => {
                for step in self.weaker.iter().filter(|step| is_same_thing(step, change)) {
                    let ids = before.customer_names().filter(|id| self.new.customer_named(id.as_str()).is_some());
                    let ids: Vec<String> = ids.map(ToString::to_string).collect();
                    if !ids.is_empty() {
                        found.insert(step.values.clone(), ids);
                    }
                }
            }
            Concerns::Nobody => {}
        }
        let of_these = |(values, ids): (Vec<String>, Vec<String>)| {
            let concerns = match &change.concerns {
                Concerns::Unnamed => Concerns::Unnamed,
                Concerns::All | Concerns::Customers(_) | Concerns::Nobody => Concerns::Customers(ids),
            };
            Change { values, concerns, ..change.clone() }
        };
        found.into_iter().map(of_these).collect()
    }
}

/// A change that the policy in force has made already, and for whom.
struct Passing<'c>(&'c Change, HashSet<&'c str>);

impl<'c> Passing<'c> {
    fn of(change: &'c Change) -> Self {
        Self(change, concerned(change).iter().map(String::as_str).collect())
    }
}

/// The values of a change that do not pass for a customer already; none: it is nothing new.
fn new_values(change: &Change, customer: &str, passing: &[Passing<'_>]) -> Option<Vec<String>> {
    let theirs = passing.iter().filter(|Passing(it, ids)| is_same_thing(it, change) && ids.contains(customer));
    let known: Vec<&Change> = theirs.map(|Passing(it, _)| *it).collect();
    if known.is_empty() {
        return Some(change.values.clone());
    }
    // Its value is a span of time, of which the policy in force has another part: more of it is weaker than that one too.
    // Or places, of which the customer allows all, and those of the policy in force as well.
    if matches!(
        change.kind,
        Kind::SubprocessorPeriod | Kind::SubprocessorStorage | Kind::SubprocessorAccess | Kind::SubprocessorAgreement
    ) {
        return None;
    }
    let is_known = |value: &&String| known.iter().any(|it| it.values.contains(value));
    let left: Vec<String> = change.values.iter().filter(|value| !is_known(value)).cloned().collect();
    (!left.is_empty()).then_some(left)
}

fn is_same_thing(one: &Change, two: &Change) -> bool {
    one.kind == two.kind && one.place == two.place
}

/// What this process has seen agreed, beside the policy in force: the first policy, and customers for whom a load closed
/// something or dropped a word, each as the last policy that had it, or opened something that another rule keeps closed,
/// as the last policy without it.
///
/// So two loads cannot do what one may not: close something, change it while nothing passes by it, and open it again; or
/// take away one after the other two rules that close the same.
#[derive(Clone, Debug, Default)]
pub struct Former {
    first: Option<Arc<Policy>>,
    /// With when it took effect.
    gone: Vec<(Arc<Policy>, Timestamp)>,
}

/// Loads whose customers are remembered.
const MOST_FORMER: usize = 64;

/// Customers that are remembered, of all loads.
const MOST_FORMER_CUSTOMERS: usize = 100_000;

impl Former {
    /// Before the first load.
    #[must_use]
    pub fn since(first: Arc<Policy>) -> Self {
        Self { first: Some(first), gone: Vec::new() }
    }

    /// Holds an offer against all that is remembered.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn held_against(&self, offer: &Offer<'_>) -> Result<(), Refusal> {
        let first = self.first.iter().map(|first| (first, "the policy of the start"));
        let gone = self.gone.iter().map(|(gone, _)| (gone, "a policy since the start"));
        for (former, which) in first.chain(gone).filter(|(former, _)| offer.concerns(former)) {
            offer.held_against(former).map_err(|refusal| refusal.than(which))?;
        }
        Ok(())
    }

    /// What is to be remembered once `new` has replaced `old`, which took effect at `since`.
    #[must_use]
    pub fn after(&self, (old, since): (&Policy, Timestamp), new: &Policy, now: Timestamp) -> Self {
        let still: HashMap<&str, HashSet<(u8, &str)>> =
            new.customer_names().map(|id| (id.as_str(), open_names(new, id.as_str(), now))).collect();
        let went = |former: &Policy, since: Timestamp, id: &str| {
            let is_left = |name| still.get(id).is_some_and(|names| names.contains(&name));
            is_forgotten(former, new, id) || !open_names(former, id, since).into_iter().all(is_left)
        };
        let remembered = |former: &Policy, since: Timestamp| -> HashSet<String> {
            let waits = waiting(former, new, now);
            let ids = former.customer_names().map(Id::as_str);
            ids.filter(|id| waits.contains(*id) || went(former, since, id)).map(str::to_owned).collect()
        };
        let mut all: Vec<(Arc<Policy>, Timestamp)> = Vec::new();
        for (former, since) in &self.gone {
            let ids = remembered(former, *since);
            if ids.len() == former.customer_names().count() {
                all.push((Arc::clone(former), *since));
            } else if !ids.is_empty() {
                all.push((Arc::new(former.with_only(|customer| ids.contains(customer.id.as_str()))), *since));
            }
        }
        let ids = remembered(old, since);
        if !ids.is_empty() {
            all.push((Arc::new(old.with_only(|customer| ids.contains(customer.id.as_str()))), since));
        }
        let mut room = MOST_FORMER_CUSTOMERS;
        let newest = all.into_iter().rev().take(MOST_FORMER).take_while(|(former, _)| {
            let left = room.checked_sub(former.customer_names().count());
            room = left.unwrap_or(0);
            left.is_some()
        });
        let mut gone: Vec<(Arc<Policy>, Timestamp)> = newest.collect();
        gone.reverse();
        Self { first: self.first.clone(), gone }
    }
}

/// The customers for whom something has been opened that needs a word, and has none, since another rule closes it: where
/// that one goes away, the step from the policy in force says nothing of this one.
fn waiting(old: &Policy, new: &Policy, now: Timestamp) -> HashSet<String> {
    let mut changes = weaker_if_open(old, new, now);
    changes.retain(|change| needs_word(change, old) && !concerned(change).is_empty());
    if changes.is_empty() {
        return HashSet::new();
    }
    let open = weaker(old, new, now);
    let waits = |change: &Change| -> Vec<String> {
        let open = open.iter().filter(|it| is_same_thing(it, change)).flat_map(concerned);
        let open: HashSet<&String> = open.collect();
        concerned(change).iter().filter(|id| !open.contains(id)).cloned().collect()
    };
    changes.iter().flat_map(waits).collect()
}

/// The customers that a change names.
fn concerned(change: &Change) -> &[String] {
    match &change.concerns {
        Concerns::Customers(ids) => ids,
        Concerns::All | Concerns::Unnamed | Concerns::Nobody => &[],
    }
}
