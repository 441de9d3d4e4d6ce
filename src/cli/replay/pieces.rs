//! Reads logs in pieces of whole lines, and has all cores decide them.

use std::io;
use std::io::BufRead;
use std::io::Read as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use super::super::CliError;
use super::super::audit::files::Files;
use super::count::Counts;
use super::count::Question;
use crate::record::chain::Head;
use crate::record::recorded::DECISION;
use crate::record::verify::MOST_LINE;

/// Bytes of a piece, about.
const PIECE: u64 = 1024 * 1024;

/// Pieces that wait for a core, for each core.
const MOST_WAITING: usize = 2;

/// Most records of one decision: one for each customer that a request can name, and some more.
const MOST_TOGETHER: usize = 64;

/// Whole lines of one file.
pub(super) struct Piece {
    /// Which of the files.
    pub(super) file: usize,
    /// The number of its first line.
    pub(super) line: u64,
    /// The lines. The last one of a file may have no line break.
    pub(super) text: Vec<u8>,
    /// Whether a process may have written other lines between the records.
    pub(super) is_stream: bool,
    /// The last record that is of the log, if records stand behind it that are not.
    pub(super) fork: Option<Head>,
}

/// Reads all files and counts what the policy says to each decision.
///
/// # Errors
///
/// The first file that cannot be read.
pub(super) fn read(files: &Files, question: &Question, bytes: &AtomicU64) -> Result<Counts, CliError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (sender, receiver) = mpsc::sync_channel::<Piece>(cores * MOST_WAITING);
    let receiver = Mutex::new(receiver);
    let all = Mutex::new(Counts::default());
    let work = || {
        let mut counts = Counts::default();
        loop {
            let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(piece) = next else { break };
            counts.take(&piece, question);
        }
        all.lock().unwrap_or_else(PoisonError::into_inner).add(counts);
    };
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
        let read = files.found.iter().enumerate().try_for_each(|(file, found)| {
            let mut cut = |line, text| {
                let piece = Piece { file, line, text, is_stream: found.is_stream, fork: files.fork(file) };
                // Nobody takes it only if all of them panicked, which is told where they are joined.
                let _taken = sender.send(piece);
            };
            let cut = found.open(bytes).and_then(|mut reader| pieces(&mut reader, &mut cut));
            cut.map_err(|source| CliError::Log { path: found.path.clone(), source })
        });
        drop(sender);
        read
    })?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Cuts a file into pieces. The records of one decision stay together.
fn pieces(reader: &mut impl BufRead, cut: &mut dyn FnMut(u64, Vec<u8>)) -> io::Result<()> {
    let mut line = 1;
    let mut kept: Vec<u8> = Vec::new();
    loop {
        let mut text = std::mem::take(&mut kept);
        let before = text.len();
        reader.by_ref().take(PIECE).read_to_end(&mut text)?;
        let is_end = text.len() == before;
        if !is_end && text.last() != Some(&b'\n') {
            let most = u64::try_from(MOST_LINE).unwrap_or(u64::MAX);
            reader.by_ref().take(most).read_until(b'\n', &mut text)?;
            if text.last() != Some(&b'\n') && !reader.fill_buf()?.is_empty() {
                // No record is so long: what is left of it is passed over, and the line is no record.
                reader.skip_until(b'\n')?;
                text.push(b'\n');
            }
        }
        if !is_end {
            kept = text.split_off(together(&text));
        }
        let lines = u64::try_from(memchr::memchr_iter(b'\n', &text).count()).unwrap_or(0);
        if !text.is_empty() {
            cut(line, text);
        }
        line += lines;
        if is_end {
            return Ok(());
        }
    }
}

/// Where the last lines begin that may be of one decision, whose next records are still to come.
fn together(text: &[u8]) -> usize {
    let mut begin = text.len();
    let mut id = None;
    for _ in 0..MOST_TOGETHER {
        let Some(before) = text.get(..begin).filter(|before| !before.is_empty()) else { break };
        let rest = before.strip_suffix(b"\n").unwrap_or(before);
        let start = memchr::memrchr(b'\n', rest).map_or(0, |at| at + 1);
        let here = rest.get(start..).and_then(decision_id);
        if here.is_none() || id.is_some_and(|id| Some(id) != here) {
            break;
        }
        (id, begin) = (here, start);
    }
    begin
}

/// The id of a decision, as its record has it.
fn decision_id(line: &[u8]) -> Option<&[u8]> {
    const KEY: &[u8] = b"\"decision_id\":\"";
    let record = line.strip_prefix(DECISION)?;
    let at = memchr::memmem::find(record, KEY)? + KEY.len();
    record.get(at..at + 36)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_one_decision_stay_together() {
        let record = |id: usize| format!("{{\"event\":\"dpa.decision\",\"decision_id\":\"{id:036}\"}}\n");
        let long = "x".repeat(400_000) + "\n";
        let table = [
            ("nothing", String::new()),
            ("one", record(1)),
            ("without a line break", record(1) + "{"),
            ("many", (0..40_000).map(|place| record(place / 3)).collect()),
            ("too many of one", (0..40_000).map(|_| record(7)).collect()),
            ("long lines", long.repeat(7) + &record(1) + &record(1)),
        ];
        for (name, text) in table {
            let mut all = Vec::new();
            let mut starts = Vec::new();
            pieces(&mut text.as_bytes(), &mut |line, piece| {
                starts.push((line, all.len()));
                all.extend(piece);
            })
            .unwrap_or_default();
            assert_eq!(all, text.as_bytes(), "{name}");
            for (line, start) in starts {
                let before = text.as_bytes().get(..start).unwrap_or_default();
                let lines = before.iter().filter(|byte| **byte == b'\n').count();
                assert_eq!(u64::try_from(lines + 1), Ok(line), "{name}");
                let ids = [before, text.as_bytes().get(start..).unwrap_or_default()];
                let last = ids.first().and_then(|text| text.split(|byte| *byte == b'\n').rev().nth(1));
                let next = ids.last().and_then(|text| text.split(|byte| *byte == b'\n').next());
                let (last, next) = (last.and_then(decision_id), next.and_then(decision_id));
                assert!(last.is_none() || last != next || name == "too many of one", "{name}: line {line}");
            }
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_no_record() {
        let text = "a\n".to_owned() + &"x".repeat(4 * MOST_LINE) + "\nb\n";
        let mut lines = Vec::new();
        let mut cut = |line, piece: Vec<u8>| lines.push((line, String::from_utf8_lossy(&piece).lines().count()));
        pieces(&mut text.as_bytes(), &mut cut).unwrap_or_default();
        let total: usize = lines.iter().map(|(_, count)| count).sum();
        assert_eq!(total, 3, "{lines:?}");
    }
}
