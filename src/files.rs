//! Reads files, whole or not at all.

use std::fs::File;
use std::io;
use std::io::Read as _;
use std::path::Path;

/// Reads a file of at most so many bytes.
///
/// # Errors
///
/// If it cannot be read, or is larger: a part of it would be something else.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    bounded(File::open(path)?, most)
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
