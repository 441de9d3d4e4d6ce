//! The files of a log: the segment that is written, the closed ones beside it, and what holds them.
//!
//! With the path `decisions.ndjson` a closed segment is `decisions-000001.ndjson`; `.decisions.ndjson.lock`
//! names the process that writes, `.decisions.ndjson.reserve` is room on the disk for the last words of a log
//! that finds it full.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use super::chain::Head;
use super::chain::Sealed;
use super::log::OpenError;

/// Bytes of the reserve: some lines.
const RESERVE: usize = 32 * 1024;

/// How far from its end a segment is searched for its last whole record.
const MOST_TORN: u64 = 16 * 1024 * 1024;

/// The name of a log's files.
#[derive(Clone, Debug)]
pub struct Names {
    /// The segment that is written.
    pub active: PathBuf,
}

impl Names {
    fn folder(&self) -> &Path {
        self.active.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn hidden(&self, what: &str) -> PathBuf {
        let name = self.active.file_name().unwrap_or_default().to_string_lossy();
        self.folder().join(format!(".{name}.{what}"))
    }

    /// What stands before and behind the number in the name of a closed segment.
    fn around(&self) -> (String, String) {
        let stem = self.active.file_stem().unwrap_or_default().to_string_lossy();
        let extension = self.active.extension().map(|it| format!(".{}", it.to_string_lossy())).unwrap_or_default();
        (format!("{stem}-"), extension)
    }

    /// Where a segment lies once it is closed.
    #[must_use]
    pub fn closed(&self, number: u64) -> PathBuf {
        let (before, behind) = self.around();
        self.folder().join(format!("{before}{number:06}{behind}"))
    }

    /// Where it lies if something else has that name.
    fn closed_beside(&self, number: u64) -> PathBuf {
        let (before, behind) = self.around();
        let mut names = (2_u64..).map(|place| self.folder().join(format!("{before}{number:06}.{place}{behind}")));
        names.find(|path| path.symlink_metadata().is_err()).unwrap_or_else(|| self.closed(number))
    }

    /// The closed segments that are there, by number; several files may have one.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read.
    pub fn all_closed(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let (before, behind) = self.around();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.folder())? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| {
                let digits = name.strip_prefix(&before)?.strip_suffix(&behind)?;
                let (digits, place) = digits.split_once('.').unwrap_or((digits, "2"));
                let is_place = place.bytes().all(|digit| digit.is_ascii_digit());
                (is_place && digits.len() >= 6 && digits.bytes().all(|digit| digit.is_ascii_digit()))
                    .then(|| digits.parse().ok())?
            });
            found.extend(number.map(|number| (number, entry.path())));
        }
        found.sort();
        Ok(found)
    }
}

/// The first record of a segment.
#[derive(Clone, Debug, Deserialize)]
pub struct Opening {
    /// The log.
    pub log: Uuid,
    /// The number of the segment.
    pub segment: u64,
    /// The key that its checkpoints are signed with.
    #[serde(default)]
    pub key_id: Option<String>,
    /// When it was opened.
    pub time: Timestamp,
}

/// Reads the first record of a segment; `None` if it is not one.
///
/// # Errors
///
/// If the file cannot be read.
pub fn opening(file: &mut File) -> io::Result<Option<Opening>> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    io::Read::by_ref(file).take(4096).read_to_end(&mut head)?;
    let Some(line) = head.split_inclusive(|byte| *byte == b'\n').next().and_then(|line| line.strip_suffix(b"\n"))
    else {
        return Ok(None);
    };
    let is_whole = Sealed::read(line).is_some_and(|sealed| sealed.is_whole());
    Ok(serde_json::from_slice(line).ok().filter(|_| is_whole))
}

/// The end of a segment.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Its last whole record.
    pub head: Head,
    /// Bytes up to the end of its last whole line; what stands behind is a line that was not finished.
    pub whole: u64,
    /// Whether that record is this line. If not, there are lines behind it that are no records.
    pub is_last: bool,
}

/// Where a segment ends; `None` if there is no whole record near the end.
///
/// # Errors
///
/// If the file cannot be read.
pub fn end(file: &mut File) -> io::Result<Option<End>> {
    const STEP: u64 = 64 * 1024;
    let length = file.metadata()?.len();
    let least = length.saturating_sub(MOST_TORN);
    let mut start = length;
    let mut tail: Vec<u8> = Vec::new();
    let mut last_break = None;
    while start > least {
        let before = start.saturating_sub(STEP).max(least);
        let mut chunk = Vec::new();
        file.seek(SeekFrom::Start(before))?;
        io::Read::by_ref(file).take(start - before).read_to_end(&mut chunk)?;
        chunk.extend_from_slice(&tail);
        tail = chunk;
        start = before;
        // Lines that begin within what was read, last first.
        let mut end = tail.len();
        while let Some(newline) = tail.get(..end).and_then(|bytes| bytes.iter().rposition(|byte| *byte == b'\n')) {
            let behind = start + u64::try_from(newline).unwrap_or(0) + 1;
            let whole = *last_break.get_or_insert(behind);
            let line = tail.get(..newline).unwrap_or_default();
            let begin = line.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
            if begin == 0 && start > 0 {
                break;
            }
            let sealed = line.get(begin..).and_then(Sealed::read).filter(Sealed::is_whole);
            if let Some(sealed) = sealed {
                return Ok(Some(End { head: sealed.head(), whole, is_last: behind == whole }));
            }
            end = newline;
        }
        // What was searched and holds no record is not searched again.
        let keep = tail.iter().position(|byte| *byte == b'\n').map_or(tail.len(), |place| place + 1);
        tail.truncate(keep);
    }
    Ok(None)
}

/// Bytes up to the end of the last whole line near the end; all of them if there is none.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(MOST_TORN);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    io::Read::by_ref(file).take(MOST_TORN).read_to_end(&mut bytes)?;
    let place = bytes.iter().rposition(|byte| *byte == b'\n').and_then(|place| u64::try_from(place).ok());
    Ok(place.map_or(length, |place| from + place + 1))
}

/// The segment that is written.
#[derive(Debug)]
pub struct Segment {
    file: File,
    /// Bytes of whole records.
    pub length: u64,
    /// Its number, from 1.
    pub number: u64,
    /// When it was opened.
    pub opened: Timestamp,
    /// Whether a failed write may have left bytes behind the last whole record.
    is_ragged: bool,
}

/// What is found where a log is to be written.
#[derive(Debug)]
pub struct Found {
    /// The segment to go on with; none: a new one has to be opened.
    pub segment: Option<Segment>,
    /// The log that is continued, and its last record.
    pub log: Option<(Uuid, Head)>,
    /// The number of the newest segment; 0 of a new log.
    pub number: u64,
    /// The key id of the segment to go on with.
    pub key_id: Option<String>,
    /// Bytes of a torn end that were cut.
    pub torn: Option<u64>,
    /// Whether the segment holds lines behind its last record that are none: it is not gone on with.
    pub is_damaged: bool,
    /// Held as long as this process writes.
    pub lock: File,
}

/// Finds the log at a path, or that there is none yet, and cuts a last line that a crash tore.
///
/// # Errors
///
/// [`OpenError`].
pub fn find(names: &Names, who: &str) -> Result<Found, OpenError> {
    let failed = |source| OpenError::Open { path: names.active.clone(), source };
    std::fs::create_dir_all(names.folder()).map_err(failed)?;
    if std::fs::metadata(&names.active).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    let lock = lock(names, who)?;
    let closed = names.all_closed().map_err(failed)?;
    let nothing = Found { segment: None, log: None, number: 0, key_id: None, torn: None, is_damaged: false, lock };
    match OpenOptions::new().read(true).append(true).open(&names.active) {
        Ok(file) => go_on(names, file, nothing, &closed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => after_closed(nothing, &closed, None),
        Err(error) => Err(failed(error)),
    }
}

fn go_on(names: &Names, mut file: File, nothing: Found, closed: &[(u64, PathBuf)]) -> Result<Found, OpenError> {
    let failed = |source| OpenError::Open { path: names.active.clone(), source };
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let holder = "which has it under another name, or lost its lock file".to_owned();
            return Err(OpenError::Held { path: names.active.clone(), holder });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
    }
    let length = file.metadata().map_err(failed)?.len();
    let Some(opening) = opening(&mut file).map_err(failed)? else {
        // A segment whose very first record was torn holds the beginning of one.
        if length > 0 && !begins_like_a_record(&mut file).map_err(failed)? {
            return Err(OpenError::NotALog { path: names.active.clone() });
        }
        file.set_len(0).map_err(failed)?;
        return after_closed(nothing, closed, (length > 0).then_some(length));
    };
    let Some(End { head, whole, is_last }) = end(&mut file).map_err(failed)? else {
        return Err(OpenError::Damaged { path: names.active.clone() });
    };
    let torn = (is_last && whole < length).then(|| length - whole);
    if torn.is_some() {
        file.set_len(whole).map_err(failed)?;
    }
    let Opening { log, segment: number, key_id, time: opened } = opening;
    let segment = Segment { file, length: whole, number, opened, is_ragged: false };
    let log = Some((log, head));
    Ok(Found { segment: Some(segment), log, number, key_id, torn, is_damaged: !is_last, ..nothing })
}

/// There is no open segment: a log goes on after its newest closed one.
fn after_closed(nothing: Found, closed: &[(u64, PathBuf)], torn: Option<u64>) -> Result<Found, OpenError> {
    let Some((number, first)) = closed.last() else { return Ok(Found { torn, ..nothing }) };
    // A file that only has such a name is somebody else's.
    for (_, path) in closed.iter().rev().take_while(|(same, _)| same == number) {
        let failed = |source| OpenError::Open { path: path.clone(), source };
        let mut file = File::open(path).map_err(failed)?;
        let opening = opening(&mut file).map_err(failed)?.filter(|opening| opening.segment == *number);
        let end = end(&mut file).map_err(failed)?;
        if let Some((Opening { log, .. }, End { head, .. })) = opening.zip(end) {
            return Ok(Found { log: Some((log, head)), number: *number, torn, ..nothing });
        }
    }
    Err(OpenError::Damaged { path: first.clone() })
}

fn lock(names: &Names, who: &str) -> Result<File, OpenError> {
    let path = names.hidden("lock");
    let failed = |source| OpenError::Open { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o640);
    let mut lock = options.open(&path).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _unknown = io::Read::by_ref(&mut lock).take(256).read_to_string(&mut holder);
            let holder = holder.trim().to_owned();
            return Err(OpenError::Held { path: names.active.clone(), holder });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
    }
    lock.set_len(0).map_err(failed)?;
    lock.write_all(who.as_bytes()).map_err(failed)?;
    Ok(lock)
}

fn begins_like_a_record(file: &mut File) -> io::Result<bool> {
    const BEGINNING: &[u8] = b"{\"event\":\"dpa.";
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    io::Read::by_ref(file).take(MOST_TORN).read_to_end(&mut bytes)?;
    let head = bytes.get(..BEGINNING.len().min(bytes.len())).unwrap_or_default();
    Ok(BEGINNING.starts_with(head) && !bytes.contains(&b'\n'))
}

impl Segment {
    /// Opens a new segment. Nothing may be there, or an empty file.
    ///
    /// # Errors
    ///
    /// If the file cannot be made.
    pub fn create(names: &Names, number: u64, now: Timestamp) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o640);
        let file = options.open(&names.active)?;
        file.try_lock()?;
        if file.metadata()?.len() > 0 {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "another file is where the next segment begins"));
        }
        Ok(Self { file, length: 0, number, opened: now, is_ragged: false })
    }

    /// Writes whole lines or, as far as it can, nothing.
    ///
    /// # Errors
    ///
    /// If they are not all written, or the file was removed.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.is_ragged {
            self.cut()?;
        }
        // Seen after the write, so that nothing is said to be written that went with the file.
        match self.file.write_all(lines).and_then(|()| self.still_there()) {
            // What somebody else added stays: cutting back to where it should end would cut records.
            Ok(length) => self.length = length,
            Err(error) => {
                self.is_ragged = true;
                let _tried_again_later = self.cut();
                return Err(error);
            }
        }
        Ok(())
    }

    fn still_there(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        match metadata.nlink() {
            0 => Err(io::Error::new(io::ErrorKind::NotFound, "the file was removed")),
            _ => Ok(metadata.len()),
        }
    }

    /// Whether somebody removed the file.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// Cuts what lies behind the last whole record; in a file that somebody else made shorter, a last line that is not
    /// finished.
    ///
    /// # Errors
    ///
    /// If that is not possible.
    pub fn cut(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        if length < self.length {
            self.length = whole_lines(&mut self.file)?;
        }
        if length > self.length {
            self.file.set_len(self.length)?;
        }
        self.is_ragged = false;
        Ok(())
    }

    /// Brings everything that was written to the disk.
    ///
    /// # Errors
    ///
    /// After one nothing is known about what is on the disk, and a second try would not tell.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the segment its name among the closed ones, or a similar one if that is taken.
    ///
    /// # Errors
    ///
    /// If that is not possible.
    pub fn close(&self, names: &Names) -> io::Result<()> {
        let mut closed = names.closed(self.number);
        if closed.symlink_metadata().is_ok() {
            let taken = closed.display();
            let path = names.closed_beside(self.number);
            tracing::error!(%taken, path = %path.display(), "another file has the name of a segment: it gets another one");
            closed = path;
        }
        std::fs::rename(&names.active, closed)
    }
}

/// Brings the names in the log's folder to the disk.
///
/// # Errors
///
/// If that is not possible.
pub fn sync_folder(names: &Names) -> io::Result<()> {
    File::open(names.folder())?.sync_all()
}

/// Takes room on the disk for the last words of a log, if there is so much more.
///
/// # Errors
///
/// If there is not.
pub fn take_reserve(names: &Names, more: usize) -> io::Result<()> {
    let path = names.hidden("reserve");
    let size = u64::try_from(RESERVE).unwrap_or(0);
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == size) {
        return Ok(());
    }
    let taken = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![b'-'; RESERVE + more])?;
        file.set_len(size)
    });
    if taken.is_err() {
        // A part of it would take the room that it is for.
        let _not_there = std::fs::remove_file(&path);
    }
    taken
}

/// Gives that room back, to be written to.
///
/// # Errors
///
/// If there is none.
pub fn give_reserve(names: &Names) -> io::Result<()> {
    std::fs::remove_file(names.hidden("reserve"))
}
