//! A worker's end of the log: gathers the records of one turn of its loop and waits for the writer.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::entry;
use super::entry::Ended;
use super::entry::Ending;
use super::entry::Writer;
use super::log::Answer;
use super::log::Handover;
use super::log::Log;
use super::log::RETRY;

/// Most bytes of records that one worker keeps for a writer that does not answer. At a kilobyte a record
/// that is 8,000 requests, more than wait within `decision_log.timeout`.
const MAX_PENDING_BYTES: usize = 8 * 1024 * 1024;

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
        let encoded = serde_json::to_writer(&mut self.bytes, record).is_ok();
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

    fn all(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|end| end.at));
        starts.zip(&self.ends).filter_map(|(start, end)| Some((self.bytes.get(start..end.at)?, end.stays)))
    }

    /// The records.
    pub(super) fn records(&self) -> impl Iterator<Item = &[u8]> {
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

    /// How many bytes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// One worker's end of the log.
#[derive(Clone, Debug)]
pub struct Recorder {
    shared: Arc<Turn>,
}

#[derive(Debug)]
struct Turn {
    log: Log,
    pending: Mutex<Pending>,
    has_records: Notify,
    is_finished: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    batch: Batch,
    /// Whether it begins with records that could not be written before.
    has_old: bool,
    waiting: Vec<Waiting>,
    /// Permitted requests that were refused because their record did not come in time: if it lands late, it
    /// is followed by `not_forwarded`.
    given_up: Vec<Uuid>,
}

#[derive(Debug)]
struct Waiting {
    /// Place of the decision's last record in the batch.
    place: usize,
    decision_id: Uuid,
    time: Timestamp,
    answer: oneshot::Sender<Result<u64, RecordError>>,
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
        Self {
            shared: Arc::new(Turn {
                log: log.clone(),
                pending: Mutex::default(),
                has_records: Notify::new(),
                is_finished: AtomicBool::new(false),
            }),
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which sidecar writes.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        self.shared.log.writer()
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
        let written = match self.enqueue(pass, encode) {
            None => Err(RecordError::Failed),
            Some(answer) => match tokio::time::timeout(self.shared.log.timeout(), answer).await {
                Ok(Ok(result)) => result,
                Ok(Err(_gone)) => Err(RecordError::Failed),
                Err(_elapsed) => Err(RecordError::TimedOut),
            },
        };
        let error = match written {
            Ok(place) => return Ok(Receipt(Accounted::Written(place))),
            Err(error) => error,
        };
        self.shared.log.counters().is_failing.store(true, Ordering::Relaxed);
        if pass.may_be_lost {
            let count = self.shared.log.counters().unrecorded.inc() + 1;
            return Ok(Receipt(Accounted::Lost(count)));
        }
        self.shared.log.counters().refused.fetch_add(1, Ordering::Relaxed);
        if pass.is_permitted && error == RecordError::TimedOut {
            self.pending().given_up.push(pass.decision_id);
        }
        Err(error)
    }

    fn enqueue(
        &self,
        pass: Pass,
        encode: impl FnOnce(&mut Batch),
    ) -> Option<oneshot::Receiver<Result<u64, RecordError>>> {
        let mut pending = self.pending();
        if pending.batch.bytes.len() > MAX_PENDING_BYTES {
            return None;
        }
        let before = pending.batch.ends.len();
        encode(&mut pending.batch);
        // No record, no receipt: the place of an earlier one would be somebody else's.
        let place = pending.batch.ends.len().checked_sub(1).filter(|place| *place >= before)?;
        let (answer, written) = oneshot::channel();
        let Pass { decision_id, time, .. } = pass;
        pending.waiting.push(Waiting { place, decision_id, time, answer });
        drop(pending);
        self.shared.has_records.notify_one();
        Some(written)
    }

    /// Writes a record that nobody waits for.
    pub fn note(&self, encode: impl FnOnce(&mut Batch)) {
        let mut pending = self.pending();
        if pending.batch.bytes.len() > MAX_PENDING_BYTES {
            tracing::error!("the decision log does not answer: a record of an outcome is lost");
            return;
        }
        let before = pending.batch.len();
        encode(&mut pending.batch);
        pending.batch.ends.iter_mut().skip(before).for_each(|end| end.stays = true);
        drop(pending);
        self.shared.has_records.notify_one();
    }

    /// Hands over what the worker recorded in each turn of its loop, until [`Recorder::finish`].
    ///
    /// On a current-thread runtime it runs after the tasks that were ready before it, so all requests of
    /// a turn share one hand-over; while the writer is busy, the next ones gather.
    pub async fn hand_over(self) {
        while !self.shared.is_finished.load(Ordering::Relaxed) {
            let has_old = self.pending().has_old;
            tokio::select! {
                () = self.shared.has_records.notified() => {}
                () = tokio::time::sleep(RETRY), if has_old => {}
            }
            self.flush().await;
        }
    }

    /// Ends [`Recorder::hand_over`], whose task is `handing_over`, once what is pending is written; not later
    /// than `decision_log.timeout`.
    pub async fn finish(&self, handing_over: tokio::task::JoinHandle<()>) {
        self.shared.is_finished.store(true, Ordering::Relaxed);
        self.shared.has_records.notify_one();
        if tokio::time::timeout(self.shared.log.timeout(), handing_over).await.is_err() {
            tracing::error!("the decision log does not answer: a worker's last records may be missing");
        }
    }

    /// Hands over everything that is pending; not later than `decision_log.timeout`.
    pub async fn flush_all(&self) {
        let all = async { while self.flush().await {} };
        if tokio::time::timeout(self.shared.log.timeout(), all).await.is_err() {
            tracing::error!("the decision log does not answer: a worker's last records may be missing");
        }
    }

    /// Hands over what is pending and waits for the writer. Whether anything was written.
    async fn flush(&self) -> bool {
        let (batch, waiting) = {
            let mut pending = self.pending();
            pending.has_old = false;
            (std::mem::take(&mut pending.batch), std::mem::take(&mut pending.waiting))
        };
        if batch.ends.is_empty() {
            return false;
        }
        let (answer, written) = oneshot::channel();
        let answer = match self.shared.log.send(Handover { batch, answer }) {
            Ok(()) => written.await.unwrap_or_default(),
            Err(_gone) => Answer::default(),
        };
        if let Some(batch) = &answer.unwritten {
            self.put_back(batch, answer.written);
        }
        for Waiting { place, decision_id, time, answer: to_request } in waiting {
            let result = match place < answer.written {
                true => Ok(answer.first + u64::try_from(place).unwrap_or(u64::MAX)),
                false => Err(RecordError::Failed),
            };
            // Nobody waits any more: the request went away, which its guard records, or was given up.
            let was_given_up = to_request.send(result).is_err() && self.was_given_up(decision_id);
            if was_given_up && result.is_ok() {
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
        answer.written > 0
    }

    /// Puts the records that stay back before those that came since.
    fn put_back(&self, batch: &Batch, from: usize) {
        let mut old = Batch::default();
        batch.all().skip(from).filter(|(_, stays)| *stays).for_each(|(record, _)| old.add(record, true));
        let shift = old.len();
        if shift == 0 {
            return;
        }
        let mut pending = self.pending();
        pending.batch.all().for_each(|(record, stays)| old.add(record, stays));
        pending.waiting.iter_mut().for_each(|waiting| waiting.place += shift);
        pending.batch = old;
        pending.has_old = true;
    }

    fn was_given_up(&self, decision_id: Uuid) -> bool {
        let given_up = &mut self.pending().given_up;
        let place = given_up.iter().position(|id| *id == decision_id);
        place.map(|place| given_up.swap_remove(place)).is_some()
    }
}
