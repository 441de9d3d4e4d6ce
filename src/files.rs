//! Reads and writes files, whole or not at all.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use uuid::Uuid;

/// Reads a file of at most so many bytes.
///
/// # Errors
///
/// If it cannot be read, or is larger: a part of it would be something else. A pipe, a device or a folder is none.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Else a pipe that nobody writes to holds up whoever opens it (POSIX `open`), for good.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    bounded(file, most)
}

/// Replaces a file whole.
///
/// What is written first, beside it, has a name that nobody can know before, and is there only from then on: nothing
/// that somebody laid in its way is written through.
///
/// # Errors
///
/// If it cannot be written; then what was there before is there still.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", Uuid::new_v4().simple()));
    let fresh = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&fresh)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.and_then(|()| std::fs::rename(&fresh, path)).inspect_err(|_| {
        let _left_over = std::fs::remove_file(&fresh);
    })
}

/// Reads at most so many bytes.
///
/// # Errors
///
/// If there are more, or they cannot be read.
pub fn bounded(source: impl io::Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        return Err(io::Error::other(format!("it is larger than {} MiB", most / (1024 * 1024))));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::bounded;

    #[test]
    fn a_file_that_is_too_large_was_cut_in_silence() {
        for (name, length, is_read) in [("as large as may be", 1_048_576, true), ("one byte more", 1_048_577, false)] {
            let bytes = vec![b'x'; length];
            assert_eq!(bounded(bytes.as_slice(), 1_048_576).is_ok(), is_read, "{name}");
        }
    }
}
