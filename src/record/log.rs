//! The decision log: one writer thread owns it, workers hand it the records of one turn of their loop.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::io::Write as _;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
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
pub struct Closing(std::thread::JoinHandle<()>);

impl Closing {
    /// Returns when the last record is with the kernel. Every [`Log`] and [`Recorder`] has to be gone.
    pub fn wait(self) {
        if self.0.join().is_err() {
            tracing::error!("the decision log's writer panicked");
        }
    }
}

impl Log {
    /// Opens the log and starts its writer thread.
    ///
    /// `writer.log` is replaced by the id that the file already has.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: no start without a log.
    pub fn open(
        settings: &LogSettings,
        mut writer: Writer,
        now: Timestamp,
        unrecorded: Counter,
    ) -> Result<(Self, Closing), OpenError> {
        let mut sinks = Sinks { file: None, stdout: settings.stdout, assembled: Vec::new(), written: 0 };
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
        let path = settings.file.clone().unwrap_or_else(|| PathBuf::from("stdout"));
        sinks.write(&first).map_err(|source| OpenError::Open { path, source })?;

        let counters = Arc::new(Counters { unrecorded, is_failing: AtomicBool::new(false) });
        let (to_writer, from_workers) = mpsc::channel();
        let shared = Arc::clone(&counters);
        let thread = std::thread::Builder::new()
            .name("dpa-log".to_owned())
            .spawn({
                let writer = writer.clone();
                move || write_all(&from_workers, &mut sinks, &shared, &writer)
            })
            .map_err(OpenError::Thread)?;
        let log = Self { writer: Arc::new(writer), counters, to_writer, timeout: settings.timeout };
        Ok((log, Closing(thread)))
    }

    /// The end of the log that one worker writes to. Its [`Recorder::hand_over`] has to run on that worker.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        Recorder { shared: Arc::new(Turn { log: self.clone(), pending: Mutex::default(), has_records: Notify::new() }) }
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

/// The writer thread: one write for each hand-over, in the order of their arrival. While writes fail it tries
/// by itself, so that a sidecar that was taken out of traffic for it comes back.
fn write_all(from_workers: &mpsc::Receiver<Handover>, sinks: &mut Sinks, counters: &Counters, writer: &Writer) {
    loop {
        let is_failing = counters.is_failing.load(Ordering::Relaxed);
        let next = if is_failing {
            from_workers.recv_timeout(RETRY)
        } else {
            from_workers.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        };
        let result = match next {
            Ok(Handover { batch, answer }) => {
                let result = sinks.write(&batch);
                let has_failed = result.as_ref().err().map(ToString::to_string);
                // A worker that is gone does not want to know.
                let _gone = answer.send(result.map_err(|_| RecordError::Failed));
                has_failed
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let mut regained = Batch::default();
                entry::log_event(&mut regained, writer, Timestamp::now(), "regained", None);
                sinks.write(&regained).err().map(|error| error.to_string())
            }
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
    stdout: bool,
    assembled: Vec<u8>,
    written: u64,
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
        if let Some(file) = &mut self.file {
            file.append(&self.assembled)?;
        }
        if self.stdout {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&self.assembled)?;
            stdout.flush()?;
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
        let whole = whole_lines(&mut file, length).map_err(failed)?;
        let torn = (whole < length).then(|| length - whole);
        if torn.is_some() {
            file.set_len(whole).map_err(failed)?;
        }
        let log = log_id(&mut file).map_err(failed)?;
        Ok(Opened { file: Self { file, length: whole, is_ragged: false }, log, torn })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_ragged {
            self.file.set_len(self.length)?;
            self.is_ragged = false;
        }
        if let Err(error) = self.file.write_all(bytes) {
            self.is_ragged = self.file.set_len(self.length).is_err();
            return Err(error);
        }
        self.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
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
}

#[derive(Debug, Default)]
struct Pending {
    batch: Batch,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// Place of the decision's last record in the batch.
    place: usize,
    decision_id: Uuid,
    time: Timestamp,
    is_permitted: bool,
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
        match written {
            Ok(place) => Ok(Receipt(Accounted::Written(place))),
            Err(_) if pass.may_be_lost => {
                let count = self.shared.log.counters.unrecorded.inc() + 1;
                Ok(Receipt(Accounted::Lost(count)))
            }
            Err(error) => Err(error),
        }
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
        encode(&mut pending.batch);
        let place = pending.batch.ends.len().checked_sub(1)?;
        let (answer, written) = oneshot::channel();
        let Pass { decision_id, time, is_permitted, may_be_lost } = pass;
        let is_permitted = is_permitted && !may_be_lost;
        pending.waiting.push(Waiting { place, decision_id, time, is_permitted, answer });
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

    /// Hands over what the worker recorded in each turn of its loop, for as long as the worker lives.
    ///
    /// On a current-thread runtime it runs after the tasks that were ready before it, so all requests of
    /// a turn share one hand-over; while the writer is busy, the next ones gather.
    pub async fn hand_over(self) {
        loop {
            self.shared.has_records.notified().await;
            self.flush().await;
        }
    }

    /// Hands over what is pending and waits for the writer. After a worker's last request.
    pub async fn flush(&self) {
        let Pending { batch, waiting } = std::mem::take(&mut *self.pending());
        if batch.ends.is_empty() {
            return;
        }
        let (answer, written) = oneshot::channel();
        let result = match self.shared.log.to_writer.send(Handover { batch, answer }) {
            Ok(()) => written.await.unwrap_or(Err(RecordError::Failed)),
            Err(_gone) => Err(RecordError::Failed),
        };
        for Waiting { place, decision_id, time, is_permitted, answer } in waiting {
            let place = result.map(|first| first + u64::try_from(place).unwrap_or(u64::MAX));
            let was_given_up = answer.send(place).is_err();
            if was_given_up && result.is_ok() && is_permitted {
                let ended = Ended {
                    time,
                    decision_id,
                    ending: Ending::NotForwarded,
                    status: None,
                    request_bytes: 0,
                    response_bytes: 0,
                    duration: Duration::ZERO,
                };
                self.note(|batch| entry::outcome(batch, self.writer(), &ended));
            }
        }
    }
}
