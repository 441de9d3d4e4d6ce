//! The decision log: one writer thread owns it. It alone chains, writes, syncs, rotates and signs.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;

use super::checkpoint::Signer;
use super::copies::Copies;
use super::entry::Writer;
use super::recorder::Batch;
use super::recorder::Desk;
use super::recorder::Recorder;
use super::scribe::Scribe;
use super::tally::Tallies;
use crate::policy::Durability;
use crate::telemetry::Histogram;

/// How often a log that cannot be written is tried while nobody asks for a record.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// What happens to a request whose record cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is refused with 503.
    #[default]
    Deny,
    /// It passes, and is counted.
    Allow,
}

impl OnFailure {
    /// The word in files and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

/// Where records go, and how long a request waits for its own.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The file.
    pub file: Option<FileSettings>,
    /// Whether also, or only, to standard output.
    pub stdout: bool,
    /// When a record counts as made.
    pub durability: Durability,
    /// How long a request waits for its record.
    pub timeout: Duration,
    /// What then.
    pub on_failure: OnFailure,
    /// Signs checkpoints.
    pub signer: Option<Arc<Signer>>,
    /// How often there is a checkpoint while records come.
    pub checkpoint_every: Duration,
    /// Where checkpoints go as well.
    pub checkpoint_copy: Option<Copy>,
}

/// A log in files.
#[derive(Clone, Debug)]
pub struct FileSettings {
    /// The segment that is written.
    pub path: PathBuf,
    /// Bytes from which a segment is closed and a new one opened.
    pub rotate_bytes: u64,
    /// Age from which that happens.
    pub rotate_after: Option<Duration>,
    /// How many closed segments are kept; all if not said.
    pub keep: Option<usize>,
}

/// Where a copy of each checkpoint goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Standard output.
    Stdout,
    /// A file, which is added to.
    File(PathBuf),
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its folder.
    #[error("cannot open the decision log `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Two processes never write one log.
    #[error("the decision log `{path}` is being written by another process ({holder}): give each sidecar its own file")]
    Held {
        /// The file.
        path: PathBuf,
        /// Who says to write it.
        holder: String,
    },
    /// The file is something else.
    #[error("`{path}` is not empty and does not begin with a record of a decision log: it is left as it is")]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing to go on from.
    #[error("the end of the decision log `{path}` holds no whole record: keep it as evidence under another name")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The writer thread.
    #[error("cannot start the thread that writes the decision log")]
    Thread(#[source] std::io::Error),
}

/// What the process knows about its log; shared.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that passed without a record in time.
    pub unrecorded: Counter,
    /// Requests that passed and whose record was never written.
    pub unwritten: AtomicU64,
    /// Outcomes that found no room since the log failed.
    pub lost_outcomes: AtomicU64,
    /// Requests that were refused because they could not be recorded.
    pub refused: AtomicU64,
    /// Whether the last write failed.
    pub is_failing: AtomicBool,
    /// Requests that were refused because they could not be recorded, since the start of the process.
    pub refused_in_all: Counter,
    /// Outcomes that found no room, since the start of the process.
    pub outcomes_lost: Counter,
    /// Records that were written.
    pub records: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Writes of several records each, by how long they took; the sync is part of one.
    pub writes: Histogram,
    /// Writes that failed, tries to write again among them.
    pub failures: Counter,
    /// Checkpoints that were written.
    pub checkpoints: Counter,
    policy: Mutex<Box<str>>,
}

impl Counters {
    /// Counters of a new process: `unrecorded` is shared with the metrics, `policy` is the digest in force.
    #[must_use]
    pub fn new(unrecorded: Counter, policy: Box<str>) -> Self {
        Self { unrecorded, policy: Mutex::new(policy), ..Self::default() }
    }

    /// Outcomes are lost: told once, and how many once the log can be written again.
    pub(super) fn lose_outcomes(&self, count: u64) {
        self.outcomes_lost.inc_by(count);
        if self.lost_outcomes.fetch_add(count, Ordering::Relaxed) == 0 && count > 0 {
            tracing::error!("the decision log does not take records: outcomes are lost");
        }
    }

    /// The digest of the policy in force, for checkpoints.
    #[must_use]
    pub fn policy(&self) -> Box<str> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another policy is in force.
    pub fn set_policy(&self, digest: Box<str>) {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = digest;
    }
}

/// The log of the process: makes a [`Recorder`] for each worker. When all are gone, the writer ends.
#[derive(Clone)]
pub struct Log {
    writer: Arc<Writer>,
    counters: Arc<Counters>,
    desks: Desks,
    to_writer: mpsc::SyncSender<()>,
    is_synced: bool,
    timeout: Duration,
}

/// The workers' ends of the log, to which each [`Recorder`] adds its own.
pub(super) type Desks = Arc<Mutex<Vec<Arc<Desk>>>>;

impl fmt::Debug for Log {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Log {{ {} }}", self.writer.log)
    }
}

/// Waits for the writer thread to have written everything.
#[derive(Debug)]
pub struct Closing {
    /// Called when the last record is written, and hung up when its copies are, too.
    finished: mpsc::Receiver<()>,
}

impl Closing {
    /// Returns when the last record is with the kernel, and its copies are where they go, or when it is that late.
    /// Every [`Log`] and [`Recorder`] has to be gone.
    pub fn wait(self, deadline: Instant) {
        let next = || self.finished.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        match next() {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                tracing::error!("the decision log does not answer: its last records may be missing");
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {}
            Ok(()) => {
                if next() == Err(mpsc::RecvTimeoutError::Timeout) {
                    tracing::warn!("a copy of the decision log, or of its checkpoints, is not taken to its end");
                }
            }
        }
    }
}

/// Tells the time.
pub type Now = Box<dyn Fn() -> Timestamp + Send>;

impl Log {
    /// Opens the log and starts its writer thread.
    ///
    /// `writer.log` is replaced by the id that the log already has. `begin` adds what has to stand before any
    /// decision of this process.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: no start without a log.
    pub fn open(
        settings: &LogSettings,
        writer: Writer,
        now: Now,
        counters: Counters,
        begin: impl FnOnce(&mut Batch, &Writer),
    ) -> Result<(Self, Closing), OpenError> {
        let counters = Arc::new(counters);
        let mut scribe = Scribe::open(settings, writer, now, Arc::clone(&counters))?;
        let mut first = Batch::default();
        begin(&mut first, scribe.writer());
        let path = settings.file.as_ref().map_or_else(|| PathBuf::from("stdout"), |file| file.path.clone());
        scribe.begin(&first).map_err(|source| OpenError::Open { path, source })?;

        let writer = Arc::new(scribe.writer().clone());
        let desks = Desks::default();
        let all = Arc::clone(&desks);
        // One call that has not been heard is enough.
        let (to_writer, calls) = mpsc::sync_channel(1);
        let (alive, finished) = mpsc::channel();
        std::thread::Builder::new()
            .name("dpa-log".to_owned())
            .spawn(move || {
                let copies = scribe.run(&calls, &all);
                // Nobody may wait for it.
                let _heard = alive.send(());
                copies.into_iter().for_each(Copies::finish);
                drop(alive);
            })
            .map_err(OpenError::Thread)?;
        let is_synced = settings.durability == Durability::Synced;
        let log = Self { writer, counters, desks, to_writer, is_synced, timeout: settings.timeout };
        Ok((log, Closing { finished }))
    }

    /// The end of the log that one worker writes to. Its [`Recorder::hand_over`] has to run on that worker.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        Recorder::of(self)
    }

    /// Which sidecar writes.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// What went wrong so far.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What all workers count of what they record.
    #[must_use]
    pub fn tallies(&self) -> Tallies {
        Tallies(Arc::clone(&self.desks))
    }

    /// How long a request waits for its record.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether a record counts only once it is on the disk.
    pub(super) fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// One more worker's end.
    pub(super) fn add(&self, desk: Arc<Desk>) {
        self.desks.lock().unwrap_or_else(PoisonError::into_inner).push(desk);
    }

    /// Tells the writer that there are records. Whether there is a writer.
    pub(super) fn wake(&self) -> bool {
        !matches!(self.to_writer.try_send(()), Err(mpsc::TrySendError::Disconnected(())))
    }
}
