//! What was agreed before a policy: the one that it follows, the baseline, and what former ones said of customers that
//! are gone. A policy is held against all of them before it takes effect.

use std::collections::HashSet;
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
use crate::policy::diff::diff;
use crate::policy::diff::is_open;
use crate::policy::problem::Source;
use crate::policy::weakening;
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
        // By whatever name, and through whatever links.
        let real = |source: &Source| std::fs::canonicalize(&source.path).ok();
        let theirs: HashSet<PathBuf> = policy.iter().filter_map(real).collect();
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
    let changes = diff(old, new, Some(now));
    let refused = weakening::refused(&changes, old, new, now);
    if !refused.is_empty() {
        return Err(Refusal::of_weaker(new, refused));
    }
    Ok(changes.iter().filter(|change| change.direction == Direction::Weaker).count())
}

/// What this process has seen agreed, beside the policy in force: the first policy, and customers that loads have taken
/// out, each as the last policy that let something pass for it.
///
/// So two loads cannot do what one may not: close something, change it while nothing passes by it, and open it again.
#[derive(Clone, Debug, Default)]
pub struct Former {
    first: Option<Arc<Policy>>,
    gone: Vec<Arc<Policy>>,
}

/// Loads whose customers are remembered.
const MOST_FORMER: usize = 64;

/// Customers that are remembered, of all loads.
const MOST_FORMER_CUSTOMERS: usize = 100_000;

impl Former {
    /// Before the first load. Where there is a baseline, that takes the place of the first policy.
    #[must_use]
    pub fn since(first: Option<Arc<Policy>>) -> Self {
        Self { first, gone: Vec::new() }
    }

    /// Holds a policy that would replace `old` against all that is remembered, for the customers for whom it opens
    /// something.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn held_against(&self, new: &Policy, old: &Policy, now: Timestamp) -> Result<(), Refusal> {
        if self.first.is_none() && self.gone.is_empty() {
            return Ok(());
        }
        let changes = diff(old, new, Some(now));
        let weaker = changes.iter().filter(|change| change.direction == Direction::Weaker);
        let opened: HashSet<&str> = weaker.flat_map(concerned).map(String::as_str).collect();
        let first = self.first.iter().map(|first| (first, "the policy of the start"));
        for (former, which) in first.chain(self.gone.iter().map(|gone| (gone, "when it was there last"))) {
            let is_theirs = |id: &String| former.customer_named(id).is_some() && opened.contains(id.as_str());
            if !former.customer_names().any(|id| opened.contains(id.as_str())) {
                continue;
            }
            // What concerns all was agreed with those who were there then.
            let mut changes = diff(former, new, Some(now));
            changes.retain_mut(|change| match &mut change.concerns {
                Concerns::Customers(ids) => {
                    ids.retain(is_theirs);
                    !ids.is_empty()
                }
                Concerns::All | Concerns::Unnamed | Concerns::Nobody => false,
            });
            let refused = weakening::refused(&changes, former, new, now);
            if !refused.is_empty() {
                return Err(Refusal::of_weaker(new, refused).than(which));
            }
        }
        Ok(())
    }

    /// What is to be remembered once `new` has replaced `old`.
    #[must_use]
    pub fn after(&self, old: &Policy, new: &Policy, now: Timestamp) -> Self {
        let is_gone = |id: &str| !is_open(new, id, now);
        let still = |former: &Arc<Policy>| match former.customer_names().all(|id| is_gone(id.as_str())) {
            true => Arc::clone(former),
            false => Arc::new(former.with_only(|customer| is_gone(customer.id.as_str()))),
        };
        let mut all: Vec<Arc<Policy>> = self.gone.iter().map(still).collect();
        let went = |id: &str| is_gone(id) && is_open(old, id, now);
        if old.customer_names().any(|id| went(id.as_str())) {
            all.push(Arc::new(old.with_only(|customer| went(customer.id.as_str()))));
        }
        all.retain(|former| former.customer_names().next().is_some());
        let mut room = MOST_FORMER_CUSTOMERS;
        let newest = all.into_iter().rev().take(MOST_FORMER).take_while(|former| {
            let left = room.checked_sub(former.customer_names().count());
            room = left.unwrap_or(0);
            left.is_some()
        });
        let mut gone: Vec<Arc<Policy>> = newest.collect();
        gone.reverse();
        Self { first: self.first.clone(), gone }
    }
}

/// The customers that a change names.
fn concerned(change: &Change) -> &[String] {
    match &change.concerns {
        Concerns::Customers(ids) => ids,
        Concerns::All | Concerns::Unnamed | Concerns::Nobody => &[],
    }
}
