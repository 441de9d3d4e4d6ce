//! What each worker counts at each of its doors: on its own, and summed up when somebody asks.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;

use crate::respond::FAILURES;
use crate::telemetry::Histogram;
use crate::telemetry::Times;

/// Statuses, by their first digit.
pub const STATUSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What one worker counted at one door. It lies on cache lines of its own, so that counting costs no other worker
/// anything.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    taken: AtomicU64,
    closed: AtomicU64,
    answers: [AtomicU64; STATUSES.len()],
    failures: [AtomicU64; FAILURES.len()],
    upstream: Histogram,
}

/// A connection of a caller; dropped, it is closed.
#[derive(Debug)]
pub struct Open(Arc<Tally>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Tally {
    /// A connection came in.
    #[must_use]
    pub fn opened(self: &Arc<Self>) -> Open {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self))
    }

    /// A request was answered so.
    pub fn answered(&self, status: StatusCode) {
        let first = usize::from(status.as_u16() / 100);
        if let Some(count) = first.checked_sub(1).and_then(|place| self.answers.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A permitted request has no answer of the upstream, for a reason of [`FAILURES`].
    pub(super) fn failed(&self, reason: &str) {
        let place = FAILURES.iter().position(|known| *known == reason);
        if let Some(count) = place.and_then(|place| self.failures.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The head of an answer came so long after its request was permitted.
    pub(super) fn upstream_took(&self, time: Duration) {
        self.upstream.observe(time);
    }
}

/// What several of them counted together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Connections that came in.
    pub taken: u64,
    /// Those that are open.
    pub open: u64,
    /// Answers, in the order of [`STATUSES`].
    pub answers: [u64; STATUSES.len()],
    /// Permitted requests without an answer of the upstream, in the order of [`FAILURES`].
    pub failures: [u64; FAILURES.len()],
    /// From when a request was permitted to the head of its answer.
    pub upstream: Times,
}

impl Sum {
    /// What these counted so far.
    #[must_use]
    pub fn of<'t>(tallies: impl IntoIterator<Item = &'t Arc<Tally>>) -> Self {
        let mut sum = Self::default();
        let mut closed = 0;
        for tally in tallies {
            // First what is closed, which is never more than what came in by then.
            closed += tally.closed.load(Ordering::Relaxed);
            sum.taken += tally.taken.load(Ordering::Relaxed);
            add(&mut sum.answers, &tally.answers);
            add(&mut sum.failures, &tally.failures);
            sum.upstream.add(&tally.upstream);
        }
        sum.open = sum.taken.saturating_sub(closed);
        sum
    }
}

fn add(sums: &mut [u64], counts: &[AtomicU64]) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count.load(Ordering::Relaxed);
    }
}
