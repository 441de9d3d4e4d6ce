//! The writer thread: puts records into the chain and the chain into its files.

use std::fs::File;
use std::io;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use uuid::Uuid;

use super::chain::Head;
use super::chain::Sealed;
use super::checkpoint::Signer;
use super::copies::Copies;
use super::entry;
use super::entry::LogDetail;
use super::entry::Writer;
use super::log::Copy;
use super::log::Counters;
use super::log::Desks;
use super::log::FileSettings;
use super::log::LogSettings;
use super::log::Now;
use super::log::OpenError;
use super::log::RETRY;
use super::recorder::Batch;
use super::recorder::Desk;
use super::recorder::Taken;
use super::segment;
use super::segment::Names;
use super::segment::Segment;
use crate::policy::Durability;

/// How often there is a checkpoint while no records come.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(300);

/// How long a segment that is full and cannot be closed is written to before that is tried again.
const ROTATION_RETRY: Duration = Duration::from_secs(10);

/// Bytes that have to be free beside the reserve before a disk that was full is written to again.
const ROOM: usize = 8 * 1024;

/// Bytes of outcomes that are kept while they cannot be written, to be written later. At 350 bytes each they are 24,000.
const MAX_KEPT_BYTES: usize = 8 * 1024 * 1024;

/// How the line of a checkpoint begins.
const CHECKPOINT: &[u8] = b"{\"event\":\"dpa.checkpoint\"";

/// Why lines are not written, and how many records are all the same.
struct Unwritten {
    written: usize,
    source: io::Error,
}

impl From<io::Error> for Unwritten {
    fn from(source: io::Error) -> Self {
        Self { written: 0, source }
    }
}

/// Everything that the writer thread owns.
pub(super) struct Scribe {
    writer: Writer,
    now: Now,
    counters: Arc<Counters>,
    sink: Sink,
    copy: Option<Copies>,
    checkpoint_copy: Option<Copies>,
    signer: Option<Arc<Signer>>,
    checkpoint_every: Duration,
    last_checkpoint: Instant,
    /// The number of the newest checkpoint.
    checkpoint: u64,
    head: Head,
    lines: Vec<u8>,
    is_failing: bool,
    /// When it last tried by itself to write again.
    last_try: Instant,
    /// What could not be written and says what happened: it is written once the log can be.
    kept: Batch,
}

enum Sink {
    Files(Box<Files>),
    Stdout(Stdout),
}

struct Files {
    names: Names,
    settings: FileSettings,
    is_synced: bool,
    segment: Option<Segment>,
    /// A segment that is not written to any more, since a sync of it failed, until it has its name as a closed one.
    condemned: Option<Segment>,
    /// The number of the newest segment.
    number: u64,
    /// Why the next segment is opened.
    why: &'static str,
    /// Until when a segment that is full is written to all the same, since it could not be closed.
    stays_until: Option<Instant>,
    /// Whether the beginning of a segment that did not come about may be left where the next one begins.
    has_stump: bool,
    torn: Option<u64>,
    has_reserve: bool,
    /// Whether the reserve was given back, and there is no room for a new one.
    is_out_of_room: bool,
    _lock: File,
}

/// Standard output itself: the buffer of the standard library would write a failed record later after all.
struct Stdout {
    file: File,
    /// Whether a failed write left a part of a line.
    is_ragged: bool,
}

fn stdout() -> Result<File, OpenError> {
    let descriptor = io::stdout().as_fd().try_clone_to_owned();
    Ok(descriptor.map_err(|source| OpenError::Open { path: PathBuf::from("stdout"), source })?.into())
}

impl Scribe {
    /// Opens what it writes to, and finds where the chain goes on.
    pub(super) fn open(
        settings: &LogSettings,
        mut writer: Writer,
        now: Now,
        counters: Arc<Counters>,
    ) -> Result<Self, OpenError> {
        let mut head = Head::NONE;
        let sink = match &settings.file {
            None => Sink::Stdout(Stdout { file: stdout()?, is_ragged: false }),
            Some(file) => {
                let names = Names { active: file.path.clone() };
                let who = format!("process {}, instance {}, since {:.0}", std::process::id(), writer.instance, now());
                let found = segment::find(&names, &who)?;
                let mut why = "new";
                if let Some((log, last)) = found.log {
                    (writer.log, head, why) = (log, last, "continued");
                }
                if found.is_damaged {
                    why = "damaged";
                }
                let mut files = Files {
                    names,
                    settings: file.clone(),
                    is_synced: settings.durability == Durability::Synced,
                    segment: found.segment,
                    condemned: None,
                    number: found.number,
                    why,
                    stays_until: None,
                    has_stump: false,
                    torn: found.torn,
                    has_reserve: false,
                    is_out_of_room: false,
                    _lock: found.lock,
                };
                let key_id = settings.signer.as_ref().map(|signer| signer.id());
                if found.is_damaged {
                    let path = file.path.display();
                    tracing::error!(%path, "the decision log ends with lines that are no records: it is kept as it is, and a new segment begins");
                    files.close().map_err(|source| OpenError::Open { path: file.path.clone(), source })?;
                } else if files.segment.is_some() && found.key_id.as_deref() != key_id {
                    files.why = "another_key";
                    files.close().map_err(|source| OpenError::Open { path: file.path.clone(), source })?;
                }
                Sink::Files(Box::new(files))
            }
        };
        let is_copied = settings.stdout && settings.file.is_some();
        let copy = is_copied.then(|| Copies::to(Copy::Stdout, "the decision log", stdout)).transpose()?;
        // On standard output they are already if the whole log is.
        let checkpoint_copy = settings.checkpoint_copy.clone().filter(|to| !(settings.stdout && *to == Copy::Stdout));
        let checkpoint_copy = checkpoint_copy.map(|to| Copies::to(to, "a checkpoint", stdout)).transpose()?;
        Ok(Self {
            writer,
            now,
            counters,
            sink,
            copy,
            checkpoint_copy,
            signer: settings.signer.clone(),
            checkpoint_every: settings.checkpoint_every,
            last_checkpoint: Instant::now(),
            checkpoint: head.seq,
            head,
            lines: Vec::new(),
            is_failing: false,
            last_try: Instant::now(),
            kept: Batch::default(),
        })
    }

    /// Which sidecar writes.
    pub(super) fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Writes what has to stand before any decision of this process.
    pub(super) fn begin(&mut self, first: &Batch) -> io::Result<()> {
        if matches!(self.sink, Sink::Stdout(_)) {
            let detail = self.opening("new", 1);
            self.put(&self.event("opened", &detail)).map_err(|error| error.source)?;
        }
        self.ready()?;
        let torn = match &mut self.sink {
            Sink::Files(files) => files.torn.take(),
            Sink::Stdout(_) => None,
        };
        if let Some(lost_bytes) = torn {
            let detail = LogDetail { lost_bytes: Some(lost_bytes), ..LogDetail::default() };
            self.put(&self.event("torn", &detail)).map_err(|error| error.source)?;
        }
        self.put(first).map_err(|error| error.source)?;
        if let Sink::Files(files) = &mut self.sink {
            if files.is_synced {
                // The process before may have given a file its name and not brought that to the disk.
                segment::sync_folder(&files.names)?;
            }
            match segment::take_reserve(&files.names, 0) {
                Ok(()) => files.has_reserve = true,
                Err(error) => tracing::warn!(%error, "no room could be reserved for the last words of the log"),
            }
        }
        Ok(())
    }

    /// Writes what the workers record until they are gone. While writes fail it tries by itself, so that a sidecar
    /// that was taken out of traffic for it comes back. Gives back what is still being copied.
    pub(super) fn run(mut self, calls: &mpsc::Receiver<()>, desks: &Desks) -> Vec<Copies> {
        let mut is_alive = true;
        while is_alive {
            let wait = self.wait().max(Duration::from_millis(1));
            is_alive = calls.recv_timeout(wait) != Err(mpsc::RecvTimeoutError::Disconnected);
            while let Some(handed_over) = take(desks) {
                self.commit(handed_over);
            }
            self.turn();
        }
        if self.seems_to_fail() {
            self.try_again();
        }
        if let Err(error) = self.put_checkpoint() {
            tracing::error!(%error, "the last checkpoint of the decision log is missing");
        }
        let lost = self.counters.lost_outcomes.load(Ordering::Relaxed) + u64::try_from(self.kept.len()).unwrap_or(0);
        if lost > 0 {
            tracing::error!(lost, "outcomes are missing in the decision log");
        }
        if let Sink::Files(files) = &self.sink {
            // It is taken anew at the next start.
            let _left_over = segment::give_reserve(&files.names);
        }
        self.copy.into_iter().chain(self.checkpoint_copy).collect()
    }

    /// How long there is nothing to do if no records come.
    fn wait(&self) -> Duration {
        if self.seems_to_fail() {
            return RETRY.saturating_sub(self.last_try.elapsed());
        }
        let every = if self.head.seq > self.checkpoint { self.checkpoint_every } else { IDLE_CHECKPOINT };
        every.saturating_sub(self.last_checkpoint.elapsed())
    }

    /// Whether a write failed, or took so long that a worker gave up waiting.
    fn seems_to_fail(&self) -> bool {
        self.is_failing || self.counters.is_failing.load(Ordering::Relaxed)
    }

    /// Writes the records of several workers together, and tells each how it went.
    fn commit(&mut self, handed_over: Vec<(Arc<Desk>, Taken)>) {
        let batches: Vec<&Batch> = handed_over.iter().map(|(_, taken)| &taken.batch).collect();
        let all: usize = batches.iter().map(|batch| batch.len()).sum();
        let result = match &self.sink {
            // Whoever comes first would fill what the log needs to say that it can be written again.
            Sink::Files(files) if files.is_out_of_room => {
                Err(Unwritten::from(io::Error::from(io::ErrorKind::StorageFull)))
            }
            Sink::Files(_) | Sink::Stdout(_) => {
                self.ready().map_err(Unwritten::from).and_then(|()| self.write(&batches))
            }
        };
        let mut written = result.as_ref().map_or_else(|error| error.written, |()| all);
        let mut next = (self.head.seq + 1).saturating_sub(u64::try_from(written).unwrap_or(0));
        for (desk, taken) in handed_over {
            let here = written.min(taken.batch.len());
            written -= here;
            self.counters.lose_outcomes(self.kept.keep(&taken.batch, here, MAX_KEPT_BYTES));
            desk.answer(taken, next, here);
            next += u64::try_from(here).unwrap_or(0);
        }
        match result {
            Ok(()) => self.turn(),
            Err(error) => self.failed(&error.source),
        }
    }

    /// Does what is due from time to time.
    fn turn(&mut self) {
        if !self.wait().is_zero() {
            return;
        }
        if self.seems_to_fail() {
            self.try_again();
        } else if let Err(error) = self.put_checkpoint() {
            self.failed(&error);
        }
    }

    /// The log could not be written, and tries to say so.
    fn failed(&mut self, error: &io::Error) {
        self.counters.failures.inc();
        let was_failing = std::mem::replace(&mut self.is_failing, true);
        self.counters.is_failing.store(true, Ordering::Relaxed);
        if was_failing {
            return;
        }
        self.last_try = Instant::now();
        tracing::error!(%error, "the decision log cannot be written");
        if let Sink::Files(files) = &mut self.sink
            && files.has_reserve
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            files.has_reserve = segment::give_reserve(&files.names).is_err();
            files.is_out_of_room = !files.has_reserve;
        }
        let last_words = self.event("lost", &LogDetail::default());
        let _tried = self.put(&last_words);
    }

    /// Tries whether the log can be written again: there has to be room for more than a few words, and what was kept
    /// has to come through.
    fn try_again(&mut self) {
        self.last_try = Instant::now();
        let refused = self.counters.refused.swap(0, Ordering::Relaxed);
        let detail = LogDetail { refused: Some(refused), ..LogDetail::default() };
        let record = self.event("regained", &detail);
        let result = self.has_room().and_then(|()| self.ready()).map_err(Unwritten::from);
        if let Err(error) = result.and_then(|()| self.write_kept(&record)) {
            self.counters.refused.fetch_add(refused, Ordering::Relaxed);
            return self.failed(&error.source);
        }
        self.is_failing = false;
        self.counters.is_failing.store(false, Ordering::Relaxed);
        let lost_outcomes = self.counters.lost_outcomes.swap(0, Ordering::Relaxed);
        tracing::warn!(refused, lost_outcomes, "the decision log can be written again");
    }

    /// Writes what was kept, and this behind it.
    fn write_kept(&mut self, record: &Batch) -> Result<(), Unwritten> {
        let kept = std::mem::take(&mut self.kept);
        let result = self.write(&[&kept, record]);
        // That may have been much, and seldom is.
        self.lines = Vec::new();
        match &result {
            Ok(()) => {}
            Err(error) if error.written == 0 => self.kept = kept,
            Err(error) => _ = self.kept.keep(&kept, error.written, MAX_KEPT_BYTES),
        }
        result
    }

    /// Takes the reserve anew, and sees whether that leaves room for records.
    fn has_room(&mut self) -> io::Result<()> {
        let Sink::Files(files) = &mut self.sink else { return Ok(()) };
        if !files.has_reserve && self.is_failing {
            segment::take_reserve(&files.names, ROOM)?;
            files.has_reserve = true;
        }
        files.is_out_of_room = false;
        Ok(())
    }

    fn event(&self, what: &'static str, detail: &LogDetail) -> Batch {
        let mut batch = Batch::default();
        entry::log_event(&mut batch, &self.writer, (self.now)(), what, detail);
        batch
    }

    fn opening(&self, why: &'static str, number: u64) -> LogDetail {
        let key_id = self.signer.as_ref().map(|signer| signer.id().to_owned());
        LogDetail { segment: Some(number), why: Some(why), key_id, ..LogDetail::default() }
    }

    /// Writes a checkpoint; made only now, since a new segment may have begun before it.
    fn put_checkpoint(&mut self) -> io::Result<()> {
        self.ready()?;
        let record = self.checkpoint_record();
        self.put(&record).map_err(|error| error.source)
    }

    /// A checkpoint about all records so far; signed if there is a key.
    fn checkpoint_record(&mut self) -> Batch {
        self.last_checkpoint = Instant::now();
        let (count, hash) = (self.head.seq, self.head.hash);
        let (policy, unrecorded) = (self.counters.policy(), self.counters.unwritten.load(Ordering::Relaxed));
        let mut batch = Batch::default();
        let about = entry::Stand { count, head: hash.as_str(), policy_digest: &policy, unrecorded };
        entry::checkpoint(&mut batch, &self.writer, (self.now)(), &about);
        match &self.signer {
            Some(signer) => batch.rewritten(|record| signer.sign(record)),
            None => batch,
        }
    }

    /// Sees to it that there is a segment to write to: opens a new one if the old one is full, old or gone.
    fn ready(&mut self) -> io::Result<()> {
        let now = (self.now)();
        let Sink::Files(files) = &mut self.sink else { return Ok(()) };
        files.close_condemned()?;
        if files.segment.as_ref().is_some_and(Segment::is_removed) {
            tracing::error!("the decision log was removed under the sidecar: a new segment begins");
            (files.segment, files.why) = (None, "removed");
            // Often all went that was in the folder.
            files.has_reserve = segment::take_reserve(&files.names, 0).is_ok();
        }
        if files.is_full(now) {
            let record = self.checkpoint_record();
            self.put(&record).map_err(|error| error.source)?;
            let Sink::Files(files) = &mut self.sink else { return Ok(()) };
            // If its sync failed, it is the first of a new segment by now.
            if !files.is_full(now) {
                return Ok(());
            }
            files.why = "rotated";
            if let Err(error) = files.close() {
                let path = files.names.active.display();
                tracing::error!(%error, %path, "a segment that is full cannot be closed: it is written to all the same");
                files.stays_until = Some(Instant::now() + ROTATION_RETRY);
            }
        }
        let Sink::Files(files) = &self.sink else { return Ok(()) };
        if files.segment.is_some() {
            return Ok(());
        }
        let mut opening = self.event("opened", &self.opening(files.why, files.number + 1));
        let gone = files.outlived(self.writer.log)?;
        for (number, _) in &gone {
            let detail = LogDetail { segment: Some(*number), ..LogDetail::default() };
            entry::log_event(&mut opening, &self.writer, now, "retention", &detail);
        }
        self.lines.clear();
        let mut head = self.head;
        opening.records().for_each(|record| head.seal(record, &mut self.lines));
        let Sink::Files(files) = &mut self.sink else { return Ok(()) };
        files.open_next(&self.lines, now)?;
        self.counters.records.inc_by(head.seq.saturating_sub(self.head.seq));
        self.counters.bytes.inc_by(count(self.lines.len()));
        self.head = head;
        self.copied();
        for (_, path) in gone {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "a segment that is not to be kept cannot be removed");
            }
        }
        Ok(())
    }

    fn put(&mut self, batch: &Batch) -> Result<(), Unwritten> {
        self.write(&[batch])
    }

    /// Writes records, and counts them.
    fn write(&mut self, batches: &[&Batch]) -> Result<(), Unwritten> {
        let (begin, before) = (Instant::now(), self.head.seq);
        let result = self.write_sealed(batches);
        self.counters.records.inc_by(self.head.seq.saturating_sub(before));
        if result.is_ok() {
            self.counters.bytes.inc_by(count(self.lines.len()));
            self.counters.writes.observe(begin.elapsed());
        }
        result
    }

    /// Seals the records and writes them; the chain goes on from what is written.
    fn write_sealed(&mut self, batches: &[&Batch]) -> Result<(), Unwritten> {
        let sealed = self.seal(batches);
        let synced = match &mut self.sink {
            Sink::Stdout(stdout) => {
                let written = stdout_written(stdout, &self.lines);
                return self.after_stdout(written, sealed);
            }
            Sink::Files(files) => files.append(&self.lines)?,
        };
        let sealed = match synced {
            Ok(()) => sealed,
            Err(error) => {
                // What is on the disk is not known, and asking again would not tell: the old segment ends with its
                // last record that is, and a new one begins.
                tracing::error!(%error, "the decision log could not be brought to the disk: a new segment begins");
                let is_checkpoint = self.lines.starts_with(CHECKPOINT);
                self.ready()?;
                let again = is_checkpoint.then(|| self.checkpoint_record());
                let sealed = match &again {
                    Some(record) => self.seal(&[record]),
                    None => self.seal(batches),
                };
                let Sink::Files(files) = &mut self.sink else { return Ok(()) };
                files.append(&self.lines)??;
                sealed
            }
        };
        self.head = sealed;
        self.copied();
        Ok(())
    }

    fn seal(&mut self, batches: &[&Batch]) -> Head {
        self.lines.clear();
        let mut head = self.head;
        batches.iter().flat_map(|batch| batch.records()).for_each(|record| head.seal(record, &mut self.lines));
        head
    }

    /// What standard output took cannot be taken back: the chain goes on behind its last whole line.
    fn after_stdout(&mut self, written: Result<(), (usize, io::Error)>, sealed: Head) -> Result<(), Unwritten> {
        let Err((bytes, source)) = written else {
            self.head = sealed;
            self.note_checkpoint();
            return Ok(());
        };
        let taken = self.lines.get(..bytes).unwrap_or_default();
        let whole = taken.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
        self.counters.bytes.inc_by(count(whole));
        let lines =
            || taken.get(..whole).unwrap_or_default().split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        self.head = lines().next_back().and_then(Sealed::read).map_or(self.head, |sealed| sealed.head());
        Err(Unwritten { written: lines().count(), source })
    }

    /// Passes on what was written to where copies go.
    fn copied(&mut self) {
        self.note_checkpoint();
        if let Some(copy) = &mut self.copy {
            copy.send(self.lines.clone());
        }
    }

    /// If what was written ends with a checkpoint, it is copied.
    fn note_checkpoint(&mut self) {
        let line = self.lines.strip_suffix(b"\n").unwrap_or_default();
        let line = line.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        if !line.starts_with(CHECKPOINT) {
            return;
        }
        self.checkpoint = self.head.seq;
        self.counters.checkpoints.inc();
        if let Some(copy) = &mut self.checkpoint_copy {
            copy.send([line, b"\n"].concat());
        }
    }
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// All that the workers have recorded; `None` if there is nothing.
fn take(desks: &Desks) -> Option<Vec<(Arc<Desk>, Taken)>> {
    let desks = desks.lock().unwrap_or_else(PoisonError::into_inner);
    if !desks.iter().any(|desk| desk.has_offered()) {
        return None;
    }
    let taken = desks.iter().filter_map(|desk| Some((Arc::clone(desk), desk.take()?)));
    Some(taken.collect()).filter(|all: &Vec<_>| !all.is_empty())
}

fn stdout_written(stdout: &mut Stdout, lines: &[u8]) -> Result<(), (usize, io::Error)> {
    if stdout.is_ragged {
        stdout.file.write_all(b"\n").map_err(|error| (0, error))?;
        stdout.is_ragged = false;
    }
    let mut written = 0;
    while let Some(rest) = lines.get(written..).filter(|rest| !rest.is_empty()) {
        match stdout.file.write(rest) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(more) => {
                written += more;
                stdout.is_ragged = !lines.get(..written).unwrap_or_default().ends_with(b"\n");
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

impl Files {
    fn is_full(&self, now: jiff::Timestamp) -> bool {
        if self.stays_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.segment.as_ref().is_some_and(|segment| {
            let age = Duration::try_from(now.duration_since(segment.opened)).unwrap_or_default();
            segment.length >= self.settings.rotate_bytes || self.settings.rotate_after.is_some_and(|most| age >= most)
        })
    }

    /// Closes the segment that is written; the next one is opened by whoever writes next.
    fn close(&mut self) -> io::Result<()> {
        if let Some(segment) = &self.segment {
            segment.close(&self.names)?;
            (self.segment, self.stays_until) = (None, None);
        }
        Ok(())
    }

    /// Cuts a segment behind its last record that is on the disk, and closes it.
    fn close_condemned(&mut self) -> io::Result<()> {
        if let Some(segment) = &mut self.condemned {
            segment.cut()?;
            // Removed by somebody else, it needs no name.
            segment.close(&self.names).or_else(|error| if segment.is_removed() { Ok(()) } else { Err(error) })?;
            self.condemned = None;
        }
        Ok(())
    }

    /// Writes lines. The inner error: they are written, and nobody knows whether they are on the disk; the segment
    /// is not written to any more.
    fn append(&mut self, lines: &[u8]) -> io::Result<io::Result<()>> {
        let Some(segment) = &mut self.segment else { return Err(io::ErrorKind::NotFound.into()) };
        let durable = segment.length;
        segment.append(lines)?;
        if !self.is_synced {
            return Ok(Ok(()));
        }
        let synced = segment.sync();
        if synced.is_err() {
            segment.length = durable;
            self.why = "sync_failed";
            self.condemned = self.segment.take();
        }
        Ok(synced)
    }

    /// The closed segments of this log that are more than the settings keep, once the next one is opened.
    fn outlived(&self, log: Uuid) -> io::Result<Vec<(u64, PathBuf)>> {
        let Some(keep) = self.settings.keep else { return Ok(Vec::new()) };
        let mut closed = self.names.all_closed()?;
        // A file that only has such a name is somebody else's.
        let is_ours = |(number, path): &(u64, PathBuf)| {
            let opening = File::open(path).and_then(|mut file| segment::opening(&mut file));
            opening.is_ok_and(|opening| opening.is_some_and(|it| it.log == log && it.segment == *number))
        };
        if closed.len() > keep {
            closed.retain(is_ours);
        }
        closed.truncate(closed.len().saturating_sub(keep));
        Ok(closed)
    }

    /// Opens the next segment with these lines.
    fn open_next(&mut self, lines: &[u8], now: jiff::Timestamp) -> io::Result<()> {
        if self.has_stump {
            std::fs::remove_file(&self.names.active)?;
            self.has_stump = false;
        }
        let mut segment = Segment::create(&self.names, self.number + 1, now)?;
        let written = segment.append(lines).and_then(|()| match self.is_synced {
            true => segment.sync().and_then(|()| segment::sync_folder(&self.names)),
            false => Ok(()),
        });
        if let Err(error) = written {
            // A segment without its first record would be no log to the next start.
            self.has_stump = std::fs::remove_file(&self.names.active).is_err();
            return Err(error);
        }
        self.number += 1;
        self.segment = Some(segment);
        Ok(())
    }
}
