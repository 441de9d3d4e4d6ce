//! The chain: each record holds the hash of the one before, so that a changed, missing, added or swapped
//! record is found.
//!
//! A line is `RECORD,"seq":N,"prev":"P","hash":"H"}`, where `RECORD` is a JSON object without its closing
//! brace, `P` the hash of the line before (64 zeros for the first of a log) and `H` SHA-256 over the 64
//! characters of `P` and the line's bytes before `,"hash":`, all hashes in lower-case hex.

use std::io::Write as _;

use aws_lc_rs::digest;

use crate::signature::digit;

/// A SHA-256 in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 64]);

impl Hash {
    /// What the first record of a log holds as the hash before it.
    pub const NONE: Self = Self([b'0'; 64]);

    /// Reads 64 lower-case hex digits.
    #[must_use]
    pub fn read(hex: &[u8]) -> Option<Self> {
        let digits = <[u8; 64]>::try_from(hex).ok()?;
        digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')).then_some(Self(digits))
    }

    /// The hash of a line whose bytes before `,"hash":` are these.
    #[must_use]
    pub fn of(prev: &Self, line: &[u8]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&prev.0);
        context.update(line);
        let mut hex = [b'0'; 64];
        for (pair, byte) in hex.as_chunks_mut::<2>().0.iter_mut().zip(context.finish().as_ref()) {
            *pair = [digit(byte >> 4), digit(byte & 15)];
        }
        Self(hex)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Made of ASCII digits only.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}

/// The end of a chain: its last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The record's number, from 1; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// Of a log without records.
    pub const NONE: Self = Self { seq: 0, hash: Hash::NONE };

    /// Adds a record, an object without its closing brace, to the chain and its line to `out`.
    pub fn seal(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        self.seq += 1;
        out.extend_from_slice(record);
        // Writing to a vector cannot fail.
        let _infallible = write!(out, ",\"seq\":{},\"prev\":\"{}\"", self.seq, self.hash.as_str());
        self.hash = Hash::of(&self.hash, out.get(start..).unwrap_or_default());
        let _infallible = writeln!(out, ",\"hash\":\"{}\"}}", self.hash.as_str());
    }
}

/// A line as it says itself to be; see [`Sealed::is_whole`].
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'l> {
    /// What was hashed beside `prev`.
    hashed: &'l [u8],
    /// The record without `seq`, `prev` and `hash`, and without its closing brace.
    pub record: &'l [u8],
    /// Its number.
    pub seq: u64,
    /// The hash of the line before.
    pub prev: Hash,
    /// Its own.
    pub hash: Hash,
}

impl<'l> Sealed<'l> {
    /// Takes a line, without its line break, apart; `None` if it is not of this form.
    #[must_use]
    pub fn read(line: &'l [u8]) -> Option<Self> {
        let (hashed, hash) = quoted(line.strip_suffix(b"}")?, b",\"hash\":")?;
        let (rest, prev) = quoted(hashed, b",\"prev\":")?;
        let digits = rest.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let (rest, number) = rest.split_at_checked(rest.len().checked_sub(digits)?)?;
        let record = rest.strip_suffix(b",\"seq\":")?;
        let seq: u64 = str::from_utf8(number).ok()?.parse().ok()?;
        // Numbers have one form only, and what precedes them is an object with something in it.
        let is_plain = !number.starts_with(b"0") && record.starts_with(b"{\"");
        is_plain.then_some(Self { hashed, record, seq, prev, hash })
    }

    /// Whether the hash is the one of these bytes.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        Hash::of(&self.prev, self.hashed) == self.hash
    }

    /// The end of a chain that ends with this line.
    #[must_use]
    pub fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }
}

/// Splits `…KEY"64 digits"` at the key.
fn quoted<'l>(line: &'l [u8], key: &[u8]) -> Option<(&'l [u8], Hash)> {
    let line = line.strip_suffix(b"\"")?;
    let (rest, digits) = line.split_at_checked(line.len().checked_sub(64)?)?;
    Some((rest.strip_suffix(b"\"")?.strip_suffix(key)?, Hash::read(digits)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with `sha256sum`: `printf '%064d{"event":"dpa.log","seq":1,"prev":"%064d"' 0 0`.
    #[test]
    fn the_first_line_of_a_log() {
        let mut head = Head::NONE;
        let mut out = Vec::new();
        head.seal(b"{\"event\":\"dpa.log\"", &mut out);
        let zeros = "0".repeat(64);
        let expected = format!("{{\"event\":\"dpa.log\",\"seq\":1,\"prev\":\"{zeros}\",\"hash\":\"{FIRST}\"}}\n");
        assert_eq!(String::from_utf8_lossy(&out), expected);
        let line = out.strip_suffix(b"\n").unwrap_or_default();
        let sealed = Sealed::read(line).map(|sealed| (sealed.seq, sealed.is_whole(), sealed.record));
        assert_eq!(sealed, Some((1, true, b"{\"event\":\"dpa.log\"".as_slice())));
    }

    const FIRST: &str = "592c94d6d501bb165fa0064e48732e35a1a971f175e8b813fccf087adb3e4f2f";
}
