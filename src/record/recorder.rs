//! A worker's end of the log: gathers the records of one turn of its loop and waits for the writer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::entry;
use super::entry::Ended;
use super::entry::Ending;
use super::entry::Writer;
use super::json;
use super::log::Log;
use super::tally::Tally;

/// Most bytes of records that one worker keeps for a writer that does not answer. At a kilobyte a record
/// that is 8,000 requests, more than wait within `decision_log.timeout`.
const MAX_PENDING_BYTES: usize = 8 * 1024 * 1024;

/// Most bytes of room that is used again for further records. A batch that gathered behind a slow disk is larger.
const MAX_SPARE_BYTES: usize = 256 * 1024;

/// Under `synced`: how long a record that nobody waits for may wait for one that is waited for, and with it for
/// the disk. Each sync of its own would be one that requests wait behind.
const RIDE: Duration = Duration::from_millis(100);

/// How many turns of a worker's loop may bring further records before the writer is called for those that are there:
/// under `written`, where a call costs as much as a few records, and under `synced`, where it costs a sync.
const TURNS_WRITTEN: usize = 8;
const TURNS_SYNCED: usize = 64;

/// Why a request has no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The write failed.
    #[error("the decision log cannot be written")]
    Failed,
    /// The writer did not answer in time.
    #[error("the decision log did not answer in time")]
    TimedOut,
}

/// Proof that a decision is accounted for. Only this module makes one.
#[derive(Debug)]
pub struct Receipt(Accounted);

#[derive(Debug)]
enum Accounted {
    Written(u64),
    Lost(u64),
}

impl Receipt {
    /// The record's number in the log; `None`: it is lost, and counted.
    #[must_use]
    pub fn written(&self) -> Option<u64> {
        match self.0 {
            Accounted::Written(place) => Some(place),
            Accounted::Lost(_) => None,
        }
    }

    /// How many records were lost so far, if this one is.
    #[must_use]
    pub fn lost(&self) -> Option<u64> {
        match self.0 {
            Accounted::Written(_) => None,
            Accounted::Lost(count) => Some(count),
        }
    }
}

/// Encoded records, each without its closing brace.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    ends: Vec<End>,
}

#[derive(Clone, Copy, Debug)]
struct End {
    at: usize,
    /// Whether it is written later if it cannot be written now: nobody acts on it, and it says what happened.
    stays: bool,
}

impl Batch {
    /// Adds a record. The types of `entry` always serialize to an object.
    pub(super) fn push<R: Serialize>(&mut self, record: &R) {
        let before = self.bytes.len();
        let encoded = json::write(&mut self.bytes, record).is_ok();
        if encoded && self.bytes.last() == Some(&b'}') {
            self.bytes.pop();
            self.ends.push(End { at: self.bytes.len(), stays: false });
        } else {
            self.bytes.truncate(before);
        }
    }

    fn add(&mut self, record: &[u8], stays: bool) {
        self.bytes.extend_from_slice(record);
        self.ends.push(End { at: self.bytes.len(), stays });
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn all(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|end| end.at));
        starts.zip(&self.ends).filter_map(|(start, end)| Some((self.bytes.get(start..end.at)?, end.stays)))
    }

    /// The records, each an object without its closing brace.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.all().map(|(record, _)| record)
    }

    /// The same records, each changed.
    pub(super) fn rewritten(&self, change: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let mut batch = Self::default();
        self.all().for_each(|(record, stays)| batch.add(&change(record), stays));
        batch
    }

    /// How many records.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Adds those records of another from a place on that are written later if they cannot be written now; how many
    /// of them find no room in so many bytes.
    pub(super) fn keep(&mut self, others: &Self, from: usize, most_bytes: usize) -> u64 {
        let mut lost = 0;
        for (record, _) in others.all().skip(from).filter(|(_, stays)| *stays) {
            match self.bytes.len() + record.len() <= most_bytes {
                true => self.add(record, true),
                false => lost += 1,
            }
        }
        lost
    }
}

/// One worker's end of the log.
#[derive(Clone, Debug)]
pub struct Recorder {
    log: Log,
    desk: Arc<Desk>,
}

/// What a worker and the writer share: records that are to be written, and what became of those that were taken.
#[derive(Debug, Default)]
pub(super) struct Desk {
    papers: Mutex<Papers>,
    /// Records have come, or answers.
    has_news: Notify,
    /// The worker has to stop, and cuts what is under way.
    cuts: AtomicBool,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Papers {
    pending: Batch,
    /// Room for the records after those that are pending.
    spare: Batch,
    waiting: Vec<Waiting>,
    /// Whether the writer is to be woken at the end of this turn.
    is_urgent: bool,
    /// When at the latest.
    due: Option<Instant>,
    /// Whether the writer may take them.
    is_offered: bool,
    /// How often the writer took records and has not answered yet.
    taken: usize,
    /// Bytes of what it took.
    taken_bytes: usize,
    answers: Vec<Answer>,
    /// Requests that did not wait any longer for their record, and whether they were forwarded without it. One that
    /// was not is told if its record lands late, one that was is counted if it never does.
    given_up: HashMap<Uuid, bool>,
    is_finished: bool,
}

#[derive(Debug)]
struct Waiting {
    /// Place of the decision's last record in the batch. A permit has one only.
    place: usize,
    decision_id: Uuid,
    time: Timestamp,
    answer: oneshot::Sender<Result<u64, RecordError>>,
}

/// Records that the writer has taken, and who waits for them.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) batch: Batch,
    waiting: Vec<Waiting>,
}

/// What became of them.
#[derive(Debug)]
struct Answer {
    waiting: Vec<Waiting>,
    /// The number of the first record.
    first: u64,
    /// How many were written, from the first.
    written: usize,
}

impl Papers {
    /// Whether a writer that does not answer leaves no room for more.
    fn is_full(&self) -> bool {
        self.pending.bytes.len() + self.taken_bytes > MAX_PENDING_BYTES
    }
}

impl Desk {
    fn papers(&self) -> MutexGuard<'_, Papers> {
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its worker counted.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether the worker has told that there is something to be written.
    pub(super) fn has_offered(&self) -> bool {
        self.papers().is_offered
    }

    /// Takes all records that are to be written.
    pub(super) fn take(&self) -> Option<Taken> {
        let mut papers = self.papers();
        if papers.pending.ends.is_empty() {
            return None;
        }
        papers.taken += 1;
        papers.taken_bytes += papers.pending.bytes.len();
        (papers.is_urgent, papers.due, papers.is_offered) = (false, None, false);
        let spare = std::mem::take(&mut papers.spare);
        Some(Taken {
            batch: std::mem::replace(&mut papers.pending, spare),
            waiting: std::mem::take(&mut papers.waiting),
        })
    }

    /// Says how many of them were written, and the number of the first.
    pub(super) fn answer(&self, taken: Taken, first: u64, written: usize) {
        let Taken { mut batch, waiting } = taken;
        let mut papers = self.papers();
        papers.taken_bytes -= batch.bytes.len();
        if batch.bytes.capacity() <= MAX_SPARE_BYTES {
            batch.clear();
            papers.spare = batch;
        }
        papers.answers.push(Answer { waiting, first, written });
        drop(papers);
        self.has_news.notify_one();
    }
}

/// The decision that a record is about.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Its id.
    pub decision_id: Uuid,
    /// When it was made.
    pub time: Timestamp,
    /// Whether the request would be forwarded.
    pub is_permitted: bool,
    /// Whether it may be forwarded without its record: `on_failure: allow`, or observe.
    pub may_be_lost: bool,
}

impl Recorder {
    /// An end of this log; its [`Recorder::hand_over`] has to run on the worker that has it.
    #[must_use]
    pub fn of(log: &Log) -> Self {
        let desk = Arc::default();
        log.add(Arc::clone(&desk));
        Self { log: log.clone(), desk }
    }

    /// Which sidecar writes.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        self.log.writer()
    }

    /// What this worker counts of what it records.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        self.desk.tally()
    }

    /// Writes the records of one decision and waits until they are with the kernel.
    ///
    /// If that fails or takes longer than `decision_log.timeout`, and the request may be lost, it is
    /// counted. A record that lands after its request was given up is followed by `not_forwarded`.
    ///
    /// # Errors
    ///
    /// [`RecordError`]: nothing may be forwarded.
    pub async fn append(&self, pass: Pass, encode: impl FnOnce(&mut Batch)) -> Result<Receipt, RecordError> {
        let begin = Instant::now();
        let written = match self.enqueue(pass, encode) {
            None => Err(RecordError::Failed),
            Some(answer) => match tokio::time::timeout(self.log.timeout(), answer).await {
                Ok(Ok(result)) => result,
                Ok(Err(_gone)) => Err(RecordError::Failed),
                Err(_elapsed) => Err(RecordError::TimedOut),
            },
        };
        self.tally().waited(begin.elapsed());
        let error = match written {
            Ok(place) => return Ok(Receipt(Accounted::Written(place))),
            Err(error) => error,
        };
        let counters = self.log.counters();
        counters.is_failing.store(true, Ordering::Relaxed);
        let may_land = error == RecordError::TimedOut;
        if may_land && (pass.is_permitted || pass.may_be_lost) {
            self.desk.papers().given_up.insert(pass.decision_id, pass.may_be_lost);
        }
        if !pass.may_be_lost {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            counters.refused_in_all.inc();
            return Err(error);
        }
        if !may_land {
            counters.unwritten.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Receipt(Accounted::Lost(counters.unrecorded.inc() + 1)))
    }

    fn enqueue(
        &self,
        pass: Pass,
        encode: impl FnOnce(&mut Batch),
    ) -> Option<oneshot::Receiver<Result<u64, RecordError>>> {
        let mut papers = self.desk.papers();
        if papers.is_full() {
            return None;
        }
        let before = papers.pending.ends.len();
        encode(&mut papers.pending);
        // No record, no receipt: the place of an earlier one would be somebody else's.
        let place = papers.pending.ends.len().checked_sub(1).filter(|place| *place >= before)?;
        let (answer, written) = oneshot::channel();
        let Pass { decision_id, time, .. } = pass;
        papers.waiting.push(Waiting { place, decision_id, time, answer });
        papers.is_urgent = true;
        drop(papers);
        self.desk.has_news.notify_one();
        Some(written)
    }

    /// Writes a record that nobody waits for. Under `synced` it goes to the disk with the next one that somebody
    /// waits for, after 100 ms at the latest.
    pub fn note(&self, encode: impl FnOnce(&mut Batch)) {
        let mut papers = self.desk.papers();
        if papers.is_full() {
            drop(papers);
            self.log.counters().lose_outcomes(1);
            return;
        }
        let before = papers.pending.len();
        encode(&mut papers.pending);
        papers.pending.ends.iter_mut().skip(before).for_each(|end| end.stays = true);
        let was_quiet = papers.due.is_none();
        match self.log.is_synced() {
            true => papers.due = papers.due.or_else(|| Some(Instant::now() + RIDE)),
            false => papers.is_urgent = true,
        }
        let is_news = papers.is_urgent || was_quiet;
        drop(papers);
        if is_news {
            self.desk.has_news.notify_one();
        }
    }

    /// Has the writer take what the worker recorded in each turn of its loop, and passes on its answers, until
    /// [`Recorder::finish`].
    ///
    /// On a current-thread runtime it runs after the tasks that were ready before it, so all requests of a turn
    /// share one call. While the writer is busy the next ones gather: it takes all that is there then.
    pub async fn hand_over(self) {
        loop {
            self.pass_on_answers();
            self.gather().await;
            let (due, is_called) = {
                let mut papers = self.desk.papers();
                let is_due = papers.due.is_some_and(|due| due <= Instant::now());
                // A write is short: what comes while it goes on makes the next one larger. A sync is long, and
                // whatever is there when it ends is to go with the next.
                let is_free = self.log.is_synced() || papers.taken == 0;
                let is_called = (papers.is_urgent || is_due) && is_free;
                if is_called {
                    (papers.is_urgent, papers.due, papers.is_offered) = (false, None, true);
                }
                (papers.due.filter(|_| is_free), is_called)
            };
            // Not with the papers in hand: the writer wants them as soon as it is awake.
            let is_gone = is_called && !self.log.wake();
            {
                let mut papers = self.desk.papers();
                if is_gone {
                    papers.waiting.clear();
                    papers.pending = Batch::default();
                }
                if papers.is_finished && papers.pending.ends.is_empty() && papers.taken == 0 {
                    return;
                }
            }
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.desk.has_news.notified() => {}
                () = wait => {}
            }
        }
    }

    /// Lets the worker go on as long as each turn of its loop brings further records: a sync is dear, and what comes
    /// while it goes on waits for the next.
    async fn gather(&self) {
        let mut before = 0;
        let most = if self.log.is_synced() { TURNS_SYNCED } else { TURNS_WRITTEN };
        for _ in 0..most {
            let now = self.desk.papers().waiting.len();
            if now <= before {
                return;
            }
            before = now;
            tokio::task::yield_now().await;
        }
    }

    /// When a log that does not answer is no longer waited for, if its end begins now: after `decision_log.timeout`.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.log.timeout()
    }

    /// Ends [`Recorder::hand_over`], whose task is `handing_over`, once what is pending is written.
    pub async fn finish(&self, handing_over: tokio::task::JoinHandle<()>, deadline: Instant) {
        self.hurry();
        if tokio::time::timeout_at(deadline.into(), handing_over).await.is_err() {
            tracing::error!("the decision log does not answer: a worker's last records may be missing");
        }
    }

    /// Has everything written that is pending.
    pub async fn flush_all(&self, deadline: Instant) {
        self.hurry();
        if tokio::time::timeout_at(deadline.into(), self.clone().hand_over()).await.is_err() {
            tracing::error!("the decision log does not answer: a worker's last records may be missing");
        }
    }

    /// From here on what breaks off does so because this worker stops.
    pub fn cut(&self) {
        self.desk.cuts.store(true, Ordering::Relaxed);
    }

    /// Whether what breaks off does so because this worker stops.
    #[must_use]
    pub fn cuts(&self) -> bool {
        self.desk.cuts.load(Ordering::Relaxed)
    }

    fn hurry(&self) {
        let mut papers = self.desk.papers();
        (papers.is_finished, papers.is_urgent) = (true, true);
        drop(papers);
        self.desk.has_news.notify_one();
    }

    /// Tells those who wait what became of their records.
    fn pass_on_answers(&self) {
        let answers = std::mem::take(&mut self.desk.papers().answers);
        for Answer { waiting, first, written } in answers {
            self.desk.papers().taken -= 1;
            for Waiting { place, decision_id, time, answer: to_request } in waiting {
                let is_written = place < written;
                let result = match is_written {
                    true => Ok(first + u64::try_from(place).unwrap_or(u64::MAX)),
                    false => Err(RecordError::Failed),
                };
                // One that does not wait any more went away, which its guard records, or gave up.
                if to_request.send(result).is_ok() {
                    continue;
                }
                let was_forwarded = self.desk.papers().given_up.remove(&decision_id);
                if was_forwarded == Some(true) && !is_written {
                    self.log.counters().unwritten.fetch_add(1, Ordering::Relaxed);
                }
                if was_forwarded == Some(false) && is_written {
                    let ended = Ended {
                        time,
                        decision_id,
                        ending: Ending::NotForwarded,
                        status: Some(503),
                        request_bytes: 0,
                        response_bytes: 0,
                        duration: Duration::ZERO,
                    };
                    self.note(|batch| entry::outcome(batch, self.writer(), &ended));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What two writes left behind was put back in reverse order, and without a limit.
    #[test]
    fn what_is_kept_stays_in_order_and_has_an_end() {
        let batch = |records: &[(&str, bool)]| {
            let mut batch = Batch::default();
            records.iter().for_each(|(record, stays)| batch.add(record.as_bytes(), *stays));
            batch
        };
        let mut kept = Batch::default();
        let first = batch(&[("written", true), ("one", true), ("a decision", false), ("two", true)]);
        assert_eq!(kept.keep(&first, 1, 11), 0);
        assert_eq!(kept.keep(&batch(&[("three", true), ("four", true), ("five", true)]), 0, 11), 2);
        let records: Vec<&[u8]> = kept.records().collect();
        assert_eq!(records, [b"one".as_slice(), b"two", b"three"]);
    }
}
