//! What each worker counts of what it records: on its own, and summed up when somebody asks.

use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::entry::Action;
use super::entry::Ending;
use super::entry::POLICY_STALE;
use super::entry::REQUEST_UNREADABLE;
use super::log::Desks;
use crate::decide::reason::Code;
use crate::policy::Enforcement;
use crate::telemetry::Histogram;
use crate::telemetry::Times;

/// The primary reason of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primary {
    /// None: it is a permit.
    Nothing,
    /// A rule does not hold.
    Rule(Code),
    /// The policy is older than it may be.
    Stale,
    /// The request could not be read.
    Unreadable,
}

/// How many there are.
const PRIMARIES: usize = Code::ALL.len() + 3;

impl Primary {
    /// All of them, in the order of their places.
    fn all() -> impl Iterator<Item = Self> {
        [Self::Nothing, Self::Stale, Self::Unreadable].into_iter().chain(Code::ALL.into_iter().map(Self::Rule))
    }

    fn place(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Stale => 1,
            Self::Unreadable => 2,
            Self::Rule(code) => 3 + Code::ALL.iter().position(|known| *known == code).unwrap_or(0),
        }
    }

    /// The word in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Rule(code) => code.as_str(),
            Self::Stale => POLICY_STALE,
            Self::Unreadable => REQUEST_UNREADABLE,
        }
    }
}

const ACTIONS: [Action; 3] = [Action::Allowed, Action::Denied, Action::Observed];
const ENFORCEMENTS: [Enforcement; 2] = [Enforcement::Enforce, Enforcement::Observe];

fn place(why: Primary, action: Action, enforcement: Enforcement) -> usize {
    let action = match action {
        Action::Allowed => 0,
        Action::Denied => 1,
        Action::Observed => 2,
    };
    let enforcement = match enforcement {
        Enforcement::Enforce => 0,
        Enforcement::Observe => 1,
    };
    (why.place() * ACTIONS.len() + action) * ENFORCEMENTS.len() + enforcement
}

/// Whether there are such decisions.
fn can_be(why: Primary, action: Action, enforcement: Enforcement) -> bool {
    match (action, enforcement) {
        (Action::Allowed, Enforcement::Enforce | Enforcement::Observe) => why == Primary::Nothing,
        (Action::Denied, Enforcement::Enforce) => why != Primary::Nothing,
        (Action::Denied, Enforcement::Observe) => why == Primary::Unreadable,
        (Action::Observed, Enforcement::Observe) => !matches!(why, Primary::Nothing | Primary::Unreadable),
        (Action::Observed, Enforcement::Enforce) => false,
    }
}

/// What one worker counted. It lies on cache lines of its own, so that counting costs no other worker anything.
#[derive(Debug)]
#[repr(align(128))]
pub struct Tally {
    decisions: [AtomicU64; PRIMARIES * ACTIONS.len() * ENFORCEMENTS.len()],
    outcomes: [AtomicU64; Ending::ALL.len()],
    decision: Histogram,
    wait: Histogram,
    request: Histogram,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            decisions: std::array::from_fn(|_| AtomicU64::new(0)),
            outcomes: Default::default(),
            decision: Histogram::default(),
            wait: Histogram::default(),
            request: Histogram::default(),
        }
    }
}

impl Tally {
    /// A decision that is on record, or accounted for.
    pub fn decided(&self, why: Primary, action: Action, enforcement: Enforcement) {
        if let Some(count) = self.decisions.get(place(why, action, enforcement)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// So long did a request take from its first sight until what is done with it was certain.
    pub fn decision_took(&self, time: Duration) {
        self.decision.observe(time);
    }

    /// So long did a request wait for its record.
    pub fn waited(&self, time: Duration) {
        self.wait.observe(time);
    }

    /// A permitted request ended, so long after its first sight.
    pub fn ended(&self, ending: Ending, time: Duration) {
        let place = Ending::ALL.iter().position(|known| *known == ending);
        if let Some(count) = place.and_then(|place| self.outcomes.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.request.observe(time);
    }
}

/// What all workers counted.
#[derive(Clone, Debug)]
pub struct Sum {
    /// Each kind of decision that there is, also those of which there was none.
    pub decisions: Vec<Decided>,
    /// How permitted requests ended.
    pub outcomes: Vec<(Ending, u64)>,
    /// From the first sight of a request until what is done with it was certain.
    pub decision: Times,
    /// Waits for a record.
    pub wait: Times,
    /// From the first sight of a permitted request to its end.
    pub request: Times,
}

/// So many decisions of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Their primary reason.
    pub why: Primary,
    /// What was done about them.
    pub action: Action,
    /// Under which enforcement.
    pub enforcement: Enforcement,
    /// How many.
    pub count: u64,
}

/// The tallies of all workers. It keeps nothing alive of the log.
#[derive(Clone, Debug)]
pub struct Tallies(pub(super) Desks);

impl Tallies {
    /// Sums them up.
    #[must_use]
    pub fn sum(&self) -> Sum {
        let desks = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tallies: Vec<&Tally> = desks.iter().map(|desk| desk.tally()).collect();
        let total = |count: &dyn Fn(&Tally) -> Option<u64>| tallies.iter().filter_map(|tally| count(tally)).sum();
        let at = |counts: &[AtomicU64], place: usize| counts.get(place).map(|count| count.load(Ordering::Relaxed));
        let mut decisions = Vec::new();
        for why in Primary::all() {
            for action in ACTIONS {
                for enforcement in ENFORCEMENTS.into_iter().filter(|it| can_be(why, action, *it)) {
                    let place = place(why, action, enforcement);
                    let count = total(&|tally| at(&tally.decisions, place));
                    decisions.push(Decided { why, action, enforcement, count });
                }
            }
        }
        let outcomes = Ending::ALL.into_iter().enumerate();
        let outcomes = outcomes.map(|(place, ending)| (ending, total(&|tally| at(&tally.outcomes, place)))).collect();
        let (mut decision, mut wait, mut request) = (Times::default(), Times::default(), Times::default());
        for tally in tallies {
            decision.add(&tally.decision);
            wait.add(&tally.wait);
            request.add(&tally.request);
        }
        Sum { decisions, outcomes, decision, wait, request }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two kinds of decision in one place would be counted as one of them.
    #[test]
    fn each_kind_of_decision_has_a_place_of_its_own() {
        let mut places = Vec::new();
        for why in Primary::all() {
            for action in ACTIONS {
                places.extend(ENFORCEMENTS.map(|enforcement| place(why, action, enforcement)));
            }
        }
        assert_eq!(places.len(), PRIMARIES * 6);
        places.sort_unstable();
        assert!(places.into_iter().eq(0..PRIMARIES * 6));
    }
}
