//! The decision log: one writer thread owns it, workers hand it the records of one turn of their loop.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::entry;
use super::entry::Ended;
use super::entry::Ending;
use super::entry::Writer;

/// Most bytes of records that one worker keeps for a writer that does not answer. At a kilobyte a record
/// that is 8,000 requests, more than wait within `decision_log.timeout`.
const MAX_PENDING_BYTES: usize = 8 * 1024 * 1024;

/// How often a log that cannot be written is tried while nobody asks for a record.
const RETRY: Duration = Duration::from_millis(500);

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
    pub file: Option<PathBuf>,
    /// Whether also, or only, to standard output.
    pub stdout: bool,
    /// How long a request waits for its record.
    pub timeout: Duration,
    /// What then.
    pub on_failure: OnFailure,
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
        source: io::Error,
    },
    /// Two processes never write one log.
    #[error("the decision log `{path}` is being written by another process")]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("`{path}` is not empty and does not begin with a record of a decision log: it is left as it is")]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// The writer thread.
    #[error("cannot start the thread that writes the decision log")]
    Thread(#[source] io::Error),
}

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
    /// The place of the record in what this process wrote; `None`: it is lost, and counted.
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
    ends: Vec<usize>,
}

impl Batch {
    /// Adds a record. The types of `entry` always serialize to an object.
    pub(super) fn push<R: Serialize>(&mut self, record: &R) {
        let before = self.bytes.len();
        let encoded = serde_json::to_writer(&mut self.bytes, record).is_ok();
        if encoded && self.bytes.last() == Some(&b'}') {
            self.bytes.pop();
            self.ends.push(self.bytes.len());
        } else {
            self.bytes.truncate(before);
        }
    }

    fn records(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).filter_map(|(start, end)| self.bytes.get(start..*end))
    }
}

/// What the process knows about its log; shared.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that passed without a record.
    pub unrecorded: Counter,
    /// Whether the last write failed.
    pub is_failing: AtomicBool,
}

struct Handover {
    batch: Batch,
    answer: oneshot::Sender<Result<u64, RecordError>>,
}

/// The log of the process: makes a [`Recorder`] for each worker. When all are gone, the writer ends.
#[derive(Clone, Debug)]
pub struct Log {
    writer: Arc<Writer>,
    counters: Arc<Counters>,
    to_writer: mpsc::Sender<Handover>,
    timeout: Duration,
}

/// Waits for the writer thread to have written everything.
#[derive(Debug)]
pub struct Closing {
    finished: mpsc::Receiver<()>,
    timeout: Duration,
}

impl Closing {
    /// Returns when the last record is with the kernel, or when the log did not take it within its timeout.
    /// Every [`Log`] and [`Recorder`] has to be gone.
    pub fn wait(self) {
        // The writer only ever hangs up.
        if self.finished.recv_timeout(self.timeout) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!("the decision log does not answer: its last records may be missing");
        }
    }
}

impl Log {
    /// Opens the log and starts its writer thread.
    ///
    /// `writer.log` is replaced by the id that the file already has. `begin` adds what has to stand before any
    /// decision of this process.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: no start without a log.
    pub fn open(
        settings: &LogSettings,
        mut writer: Writer,
        now: Timestamp,
        unrecorded: Counter,
        begin: impl FnOnce(&mut Batch, &Writer),
    ) -> Result<(Self, Closing), OpenError> {
        let mut sinks = Sinks { file: None, stdout: None, assembled: Vec::new(), written: 0 };
        if settings.stdout {
            let path = PathBuf::from("stdout");
            let descriptor = io::stdout().as_fd().try_clone_to_owned();
            let file = descriptor.map_err(|source| OpenError::Open { path, source })?.into();
            sinks.stdout = Some(Stdout { file, is_ragged: false });
        }
        let mut torn = None;
        let mut is_new = true;
        if let Some(path) = &settings.file {
            let opened = LogFile::open(path)?;
            torn = opened.torn;
            if let Some(log) = opened.log {
                writer.log = log;
                is_new = false;
            }
            sinks.file = Some(opened.file);
        }
        let mut first = Batch::default();
        if is_new {
            entry::log_event(&mut first, &writer, now, "opened", None);
        }
        if let Some(lost_bytes) = torn {
            entry::log_event(&mut first, &writer, now, "torn", Some(lost_bytes));
        }
        begin(&mut first, &writer);
        let path = settings.file.clone().unwrap_or_else(|| PathBuf::from("stdout"));
        sinks.write(&first).map_err(|source| OpenError::Open { path, source })?;

        let counters = Arc::new(Counters { unrecorded, is_failing: AtomicBool::new(false) });
        let (to_writer, from_workers) = mpsc::channel();
        let shared = Arc::clone(&counters);
        let (alive, finished) = mpsc::channel();
        std::thread::Builder::new()
            .name("dpa-log".to_owned())
            .spawn({
                let writer = writer.clone();
                move || {
                    write_all(&from_workers, &mut sinks, &shared, &writer);
                    drop(alive);
                }
            })
            .map_err(OpenError::Thread)?;
        let log = Self { writer: Arc::new(writer), counters, to_writer, timeout: settings.timeout };
        Ok((log, Closing { finished, timeout: settings.timeout }))
    }

    /// The end of the log that one worker writes to. Its [`Recorder::hand_over`] has to run on that worker.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        Recorder {
            shared: Arc::new(Turn {
                log: self.clone(),
                pending: Mutex::default(),
                has_records: Notify::new(),
                is_finished: AtomicBool::new(false),
            }),
        }
    }

    /// Which sidecar writes.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// What went wrong so far.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

fn regained(writer: &Writer) -> Batch {
    let mut batch = Batch::default();
    entry::log_event(&mut batch, writer, Timestamp::now(), "regained", None);
    batch
}

/// The writer thread: one write for each hand-over, in the order of their arrival. While writes fail it tries
/// by itself, so that a sidecar that was taken out of traffic for it comes back.
fn write_all(from_workers: &mpsc::Receiver<Handover>, sinks: &mut Sinks, counters: &Counters, writer: &Writer) {
    loop {
        let is_failing = counters.is_failing.load(Ordering::Relaxed);
        let next = from_workers.recv_timeout(RETRY);
        let result = match next {
            Ok(Handover { batch, answer }) => {
                let result = sinks.write(&batch);
                let has_failed = result.as_ref().err().map(ToString::to_string);
                if is_failing && has_failed.is_none() {
                    // Told behind the records that came through; if this fails, the next one shows it.
                    let _shown_later = sinks.write(&regained(writer));
                }
                // A worker that is gone does not want to know.
                let _gone = answer.send(result.map_err(|_| RecordError::Failed));
                has_failed
            }
            Err(mpsc::RecvTimeoutError::Timeout) if !is_failing => continue,
            Err(mpsc::RecvTimeoutError::Timeout) => sinks.write(&regained(writer)).err().map(|error| error.to_string()),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        counters.is_failing.store(result.is_some(), Ordering::Relaxed);
        match result {
            Some(error) if !is_failing => tracing::error!(%error, "the decision log cannot be written"),
            None if is_failing => tracing::warn!("the decision log can be written again"),
            Some(_) | None => {}
        }
    }
}

struct Sinks {
    file: Option<LogFile>,
    stdout: Option<Stdout>,
    assembled: Vec<u8>,
    written: u64,
}

/// Standard output itself: the buffer of the standard library would write a failed record later after all.
struct Stdout {
    file: File,
    /// Whether a failed write may have left a part of a line.
    is_ragged: bool,
}

impl Stdout {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_ragged {
            self.file.write_all(b"\n")?;
        }
        self.is_ragged = true;
        self.file.write_all(bytes)?;
        self.is_ragged = false;
        Ok(())
    }
}

impl Sinks {
    /// Writes whole records or, as far as it can, nothing. Returns the place of the first.
    fn write(&mut self, batch: &Batch) -> io::Result<u64> {
        let first = self.written;
        self.assembled.clear();
        for record in batch.records() {
            self.assembled.extend_from_slice(record);
            // The place of `seq`, `prev` and `hash`: only the writer knows the order.
            self.assembled.extend_from_slice(b"}\n");
        }
        match (&mut self.file, &mut self.stdout) {
            (Some(file), stdout) => {
                file.append(&self.assembled)?;
                // The file is the log; a copy that cannot be written undoes no record.
                if let Some(Err(error)) = stdout.as_mut().map(|stdout| stdout.append(&self.assembled)) {
                    tracing::warn!(%error, "the copy of the decision log on standard output is not whole");
                }
            }
            (None, Some(stdout)) => stdout.append(&self.assembled)?,
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        }
        self.written += u64::try_from(batch.ends.len()).unwrap_or(u64::MAX);
        Ok(first)
    }
}

struct LogFile {
    file: File,
    /// Bytes of whole records.
    length: u64,
    /// Whether a failed write may have left bytes behind the last whole record.
    is_ragged: bool,
}

struct Opened {
    file: LogFile,
    log: Option<Uuid>,
    torn: Option<u64>,
}

impl LogFile {
    /// Opens or makes the file, and cuts a last line that a crash tore.
    fn open(path: &Path) -> Result<Opened, OpenError> {
        let failed = |source| OpenError::Open { path: path.to_owned(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
        let mut file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::Held { path: path.to_owned() }),
            Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        let length = file.metadata().map_err(failed)?.len();
        let log = log_id(&mut file).map_err(failed)?;
        let whole = whole_lines(&mut file, length).map_err(failed)?;
        // A log whose very first record was torn holds the beginning of one.
        if log.is_none() && length > 0 && !(whole == 0 && begins_like_a_record(&mut file).map_err(failed)?) {
            return Err(OpenError::NotALog { path: path.to_owned() });
        }
        let torn = (whole < length).then(|| length - whole);
        if torn.is_some() {
            file.set_len(whole).map_err(failed)?;
        }
        Ok(Opened { file: Self { file, length: whole, is_ragged: false }, log, torn })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_ragged {
            self.cut()?;
        }
        if let Err(error) = self.file.write_all(bytes) {
            self.is_ragged = self.cut().is_err();
            return Err(error);
        }
        self.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}

impl LogFile {
    /// Cuts what a failed write left behind; in a file that somebody else made shorter, behind its last line.
    fn cut(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        if length < self.length {
            self.length = whole_lines(&mut self.file, length)?;
        }
        if length > self.length {
            self.file.set_len(self.length)?;
        }
        self.is_ragged = false;
        Ok(())
    }
}

/// How many bytes the whole lines of a file take.
fn whole_lines(file: &mut File, length: u64) -> io::Result<u64> {
    const STEP: u64 = 64 * 1024;
    let mut end = length;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        io::Read::by_ref(file).take(end - start).read_to_end(&mut chunk)?;
        if let Some(newline) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + u64::try_from(newline).unwrap_or(0) + 1);
        }
        end = start;
    }
    Ok(0)
}

fn begins_like_a_record(file: &mut File) -> io::Result<bool> {
    const BEGINNING: &[u8] = b"{\"event\":\"dpa.";
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    io::Read::by_ref(file).take(u64::try_from(BEGINNING.len()).unwrap_or(0)).read_to_end(&mut head)?;
    Ok(BEGINNING.starts_with(&head))
}

/// The id in the first record of a file.
fn log_id(file: &mut File) -> io::Result<Option<Uuid>> {
    #[derive(serde::Deserialize)]
    struct First {
        log: Uuid,
    }
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    io::Read::by_ref(file).take(4096).read_to_end(&mut head)?;
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(serde_json::from_slice::<First>(line).ok().map(|first| first.log))
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
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which sidecar writes.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        &self.shared.log.writer
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
            Some(answer) => match tokio::time::timeout(self.shared.log.timeout, answer).await {
                Ok(Ok(result)) => result,
                Ok(Err(_gone)) => Err(RecordError::Failed),
                Err(_elapsed) => Err(RecordError::TimedOut),
            },
        };
        let error = match written {
            Ok(place) => return Ok(Receipt(Accounted::Written(place))),
            Err(error) => error,
        };
        self.shared.log.counters.is_failing.store(true, Ordering::Relaxed);
        if pass.may_be_lost {
            let count = self.shared.log.counters.unrecorded.inc() + 1;
            return Ok(Receipt(Accounted::Lost(count)));
        }
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
        encode(&mut pending.batch);
        drop(pending);
        self.shared.has_records.notify_one();
    }

    /// Hands over what the worker recorded in each turn of its loop, until [`Recorder::finish`].
    ///
    /// On a current-thread runtime it runs after the tasks that were ready before it, so all requests of
    /// a turn share one hand-over; while the writer is busy, the next ones gather.
    pub async fn hand_over(self) {
        while !self.shared.is_finished.load(Ordering::Relaxed) {
            self.shared.has_records.notified().await;
            self.flush().await;
        }
    }

    /// Ends [`Recorder::hand_over`], whose task is `handing_over`, once what is pending is written; not later
    /// than `decision_log.timeout`.
    pub async fn finish(&self, handing_over: tokio::task::JoinHandle<()>) {
        self.shared.is_finished.store(true, Ordering::Relaxed);
        self.shared.has_records.notify_one();
        if tokio::time::timeout(self.shared.log.timeout, handing_over).await.is_err() {
            tracing::error!("the decision log does not answer: a worker's last records may be missing");
        }
    }

    /// Hands over everything that is pending; not later than `decision_log.timeout`.
    pub async fn flush_all(&self) {
        let all = async { while self.flush().await {} };
        if tokio::time::timeout(self.shared.log.timeout, all).await.is_err() {
            tracing::error!("the decision log does not answer: a worker's last records may be missing");
        }
    }

    /// Hands over what is pending and waits for the writer. Whether there was anything.
    async fn flush(&self) -> bool {
        let (batch, waiting) = {
            let mut pending = self.pending();
            (std::mem::take(&mut pending.batch), std::mem::take(&mut pending.waiting))
        };
        if batch.ends.is_empty() {
            return false;
        }
        let (answer, written) = oneshot::channel();
        let result = match self.shared.log.to_writer.send(Handover { batch, answer }) {
            Ok(()) => written.await.unwrap_or(Err(RecordError::Failed)),
            Err(_gone) => Err(RecordError::Failed),
        };
        for Waiting { place, decision_id, time, answer } in waiting {
            let place = result.map(|first| first + u64::try_from(place).unwrap_or(u64::MAX));
            // Nobody waits any more: the request went away, which its guard records, or was given up.
            let was_given_up = answer.send(place).is_err() && self.was_given_up(decision_id);
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
        true
    }

    fn was_given_up(&self, decision_id: Uuid) -> bool {
        let given_up = &mut self.pending().given_up;
        let place = given_up.iter().position(|id| *id == decision_id);
        place.map(|place| given_up.swap_remove(place)).is_some()
    }
}
