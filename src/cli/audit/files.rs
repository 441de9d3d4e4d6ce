//! Finds the files of decision logs, puts them in order, and reads them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Cursor;
use std::io::Read;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::super::CliError;
use crate::record::chain::Head;
use crate::record::verify::Anchors;
use crate::record::verify::Keys;
use crate::record::verify::judge::Piece;
use crate::record::verify::run;
use crate::record::verify::run::Look;
use crate::record::verify::run::Plan;

/// Bytes that are read at once.
const BUFFER: usize = 256 * 1024;

/// How often a folder is listed anew because a segment was closed meanwhile.
const MOST_LISTINGS: usize = 5;

/// How many files are kept open; a process may have 1,024 by default.
const MOST_OPEN: usize = 256;

/// A file of a log.
pub(in crate::cli) struct Found {
    /// Its path; `-` is standard input.
    pub(in crate::cli) path: PathBuf,
    /// Whether it was named itself, rather than its folder.
    pub(in crate::cli) is_named: bool,
    /// Its size, if it is known before.
    pub(in crate::cli) size: u64,
    look: Look,
    /// Whether it is a pipe or standard input.
    pub(in crate::cli) is_stream: bool,
    /// What is not opened again: a pipe, and the newest segment of a log, which may get another name meanwhile.
    open: Mutex<Option<Box<dyn Read + Send>>>,
}

/// All files of the logs.
#[derive(Default)]
pub(in crate::cli) struct Files {
    /// In the order in which the logs go through them.
    pub(in crate::cli) found: Vec<Found>,
    /// What is in the folders and is no part of a log.
    pub(in crate::cli) passed_over: Vec<PathBuf>,
}

impl Files {
    /// Looks at the beginning of each file, and of each in the folders; `aside` is left out.
    pub(in crate::cli) fn find(paths: &[PathBuf], aside: Option<&Path>) -> Result<Self, CliError> {
        let mut files = Self::default();
        let mut seen = BTreeSet::new();
        let aside = aside.and_then(|path| std::fs::metadata(path).ok()).map(|data| (data.dev(), data.ino()));
        seen.extend(aside);
        for path in paths {
            let failed = |source| CliError::Log { path: path.clone(), source };
            if path.as_os_str() == "-" {
                files.add_stream(path, Box::new(io::stdin())).map_err(failed)?;
            } else if std::fs::metadata(path).map_err(failed)?.is_dir() {
                files.add_folder(path, &mut seen).map_err(failed)?;
            } else {
                files.add(path, true, &mut seen).map_err(failed)?;
            }
        }
        let of_a_log: BTreeSet<_> = files.found.iter().filter(|it| it.look.opening.is_some()).map(extension).collect();
        let (found, other) =
            files.found.into_iter().partition(|it| it.is_named || !it.look.is_copy && is_of_a_log(it, &of_a_log));
        files.found = found;
        files.passed_over.extend(other.into_iter().map(|it| it.path));
        files.found.sort_by(|a, b| (a.look.log, a.look.first, &a.path).cmp(&(b.look.log, b.look.first, &b.path)));
        Ok(files)
    }

    /// A folder's files; again if a segment was closed while they were looked at.
    fn add_folder(&mut self, folder: &Path, seen: &mut BTreeSet<(u64, u64)>) -> io::Result<()> {
        let (before, seen_before) = (self.found.len(), seen.clone());
        let passed_over = self.passed_over.len();
        for _ in 0..MOST_LISTINGS {
            let names = list(folder)?;
            for name in &names {
                match self.add(&folder.join(name), false, seen) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            if list(folder)? == names {
                break;
            }
            self.found.truncate(before);
            self.passed_over.truncate(passed_over);
            seen.clone_from(&seen_before);
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, is_named: bool, seen: &mut BTreeSet<(u64, u64)>) -> io::Result<()> {
        // Before it is opened: to open a pipe may take as long as nobody writes to it.
        if !std::fs::metadata(path)?.is_file() {
            if is_named {
                return self.add_stream(path, Box::new(File::open(path)?));
            }
            self.passed_over.push(path.to_path_buf());
            return Ok(());
        }
        let file = File::open(path)?;
        let data = file.metadata()?;
        if !seen.insert((data.dev(), data.ino())) {
            return Ok(());
        }
        let mut reader = BufReader::new(file);
        let look = run::look(&mut reader)?;
        let newest = |it: &&mut Found| it.look.log == look.log && it.look.log.is_some();
        let mut open = Some(reader.into_inner());
        for other in self.found.iter_mut().filter(newest) {
            match other.look.first < look.first {
                true => *other.open.get_mut().unwrap_or_else(PoisonError::into_inner) = None,
                false => open = None,
            }
        }
        let is_open = |it: &mut Found| it.open.get_mut().is_ok_and(|open| open.is_some());
        let count = self.found.iter_mut().map(is_open).filter(|is_open| *is_open).count();
        if look.log.is_none() || count >= MOST_OPEN {
            open = None;
        }
        let open = open.map(|file| -> Box<dyn Read + Send> { Box::new(Rewound(file, false)) });
        self.found.push(Found {
            path: path.to_path_buf(),
            is_named,
            size: data.len(),
            look,
            is_stream: false,
            open: Mutex::new(open),
        });
        Ok(())
    }

    /// What can be read once only: what was looked at is kept.
    fn add_stream(&mut self, path: &Path, stream: Box<dyn Read + Send>) -> io::Result<()> {
        let mut kept = Kept { from: stream, bytes: Vec::new() };
        let look = {
            let mut reader = BufReader::with_capacity(4096, &mut kept);
            run::look(&mut reader)?
        };
        let open: Box<dyn Read + Send> = Box::new(Cursor::new(kept.bytes).chain(kept.from));
        let path = path.to_path_buf();
        let open = Mutex::new(Some(open));
        self.found.push(Found { path, is_named: true, size: 0, look, is_stream: true, open });
        Ok(())
    }

    /// Bytes of all files, as far as that is known.
    pub(in crate::cli) fn size(&self) -> u64 {
        self.found.iter().map(|it| it.size).sum()
    }

    /// Reads all of them, on all cores; each file on one. Counts the bytes.
    pub(in crate::cli) fn read(
        &self,
        keys: &Keys,
        anchors: &Anchors,
        bytes: &AtomicU64,
    ) -> Vec<Result<Piece, CliError>> {
        let next = AtomicUsize::new(0);
        let pieces = Mutex::new(BTreeMap::new());
        let work = || {
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(found) = self.found.get(place) else { break };
                let plan = Plan {
                    file: place,
                    log: found.look.log,
                    first: found.look.first,
                    keys,
                    anchors,
                    fork: self.fork(place),
                    is_stream: found.is_stream,
                };
                let read = found.read(&plan, bytes);
                let piece = read.map(|runs| Piece { is_named: found.is_named, runs });
                let piece = piece.map_err(|source| CliError::Log { path: found.path.clone(), source });
                pieces.lock().unwrap_or_else(PoisonError::into_inner).insert(place, piece);
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            for _ in 1..cores.min(self.found.len()) {
                scope.spawn(work);
            }
            work();
        });
        pieces.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }

    /// Where the file after this one goes on, if it begins because a sync failed.
    pub(in crate::cli) fn fork(&self, place: usize) -> Option<Head> {
        let here = &self.found.get(place)?.look;
        let same = |it: &&Found| it.look.log == here.log && it.look.first > here.first;
        let next = self.found.iter().skip(place + 1).find(same)?.look.opening.as_ref()?;
        (next.why == "sync_failed").then_some(next.after)
    }
}

impl Found {
    fn read(&self, plan: &Plan<'_>, bytes: &AtomicU64) -> io::Result<Vec<run::Run>> {
        run::read(&mut self.open(bytes)?, plan)
    }

    /// Opens it at its beginning, once if it is a stream. Counts the bytes.
    pub(in crate::cli) fn open<'b>(&self, bytes: &'b AtomicU64) -> io::Result<impl BufRead + use<'b>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let from = match open {
            Some(open) => open,
            None => Box::new(File::open(&self.path)?),
        };
        Ok(BufReader::with_capacity(BUFFER, Counted { from, bytes }))
    }
}

/// A file that was looked at, from its beginning again.
struct Rewound(File, bool);

impl Read for Rewound {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.1 {
            io::Seek::rewind(&mut self.0)?;
            self.1 = true;
        }
        self.0.read(buffer)
    }
}

/// Keeps what passes.
struct Kept {
    from: Box<dyn Read + Send>,
    bytes: Vec<u8>,
}

impl Read for Kept {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Counts what passes.
struct Counted<'b> {
    from: Box<dyn Read + Send>,
    bytes: &'b AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.bytes.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
        Ok(count)
    }
}

/// The names in a folder; hidden files are the sidecar's own.
fn list(folder: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") && !folder.join(&name).is_dir() {
            names.insert(name);
        }
    }
    Ok(names)
}

fn extension(found: &Found) -> OsString {
    found.path.extension().unwrap_or_default().to_owned()
}

/// Whether a file in a folder is to be looked at: it has records, or its name ends like those of files that have.
/// An empty one says nothing.
fn is_of_a_log(found: &Found, extensions: &BTreeSet<OsString>) -> bool {
    found.look.log.is_some() || found.size > 0 && extensions.contains(&extension(found))
}

/// Reads a file of lines, or standard input.
pub(in crate::cli) fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    Ok(Box::new(BufReader::new(File::open(path)?)))
}
