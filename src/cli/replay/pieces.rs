//! Reads logs in pieces of whole lines, and has all cores decide them.

use std::io;
use std::io::BufRead;
use std::io::Read as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use uuid::Uuid;

use super::super::CliError;
use super::super::audit::files::Files;
use super::count::Counts;
use super::count::Question;
use crate::establish::context::MAX_CUSTOMERS;
use crate::record::chain::Head;
use crate::record::recorded::DECISION;
use crate::record::verify::MOST_LINE;

/// Bytes of a piece, about.
const PIECE: u64 = 1024 * 1024;

/// Pieces that wait for a core, for each core.
const MOST_WAITING: usize = 2;

/// Most records of one decision: one for each customer that a request can name.
pub(super) const MOST_TOGETHER: usize = MAX_CUSTOMERS;

/// Most bytes of the records of one decision. A record has some thousands: its words are those of a policy.
const MOST_KEPT: usize = 4 * 1024 * 1024;

/// Whole lines of one file.
pub(super) struct Piece {
    /// Which of the files.
    pub(super) file: usize,
    /// The lines.
    pub(super) lines: Lines,
    /// Whether a process may have written other lines between the records.
    pub(super) is_stream: bool,
    /// The last record that is of the log, if records stand behind it that are not.
    pub(super) fork: Option<Head>,
}

/// Whole lines. The records of one decision stay together, as far as one decision can have them.
pub(super) struct Lines {
    /// The number of the first.
    pub(super) line: u64,
    /// The lines. The last one of a file may have no line break.
    pub(super) text: Vec<u8>,
    /// The decision right before, if it has more records than one can have: the first lines may be more of them.
    pub(super) goes_on: Option<Uuid>,
    /// Whether the last lines are of a decision that has more records than one can have: more may follow.
    pub(super) is_cut_within: bool,
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
            let mut cut = |lines| {
                let piece = Piece { file, lines, is_stream: found.is_stream, fork: files.fork(file) };
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

/// Cuts a file into pieces, each of at most the bytes of [`PIECE`], [`MOST_KEPT`] and one line.
fn pieces(reader: &mut impl BufRead, cut: &mut dyn FnMut(Lines)) -> io::Result<()> {
    let mut line = 1;
    let mut kept: Vec<u8> = Vec::new();
    let mut goes_on = None;
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
        let together = if is_end { Ok(text.len()) } else { together(&text) };
        let too_many = match together {
            Ok(begin) => {
                kept = text.split_off(begin);
                None
            }
            Err(decision) => Some(decision),
        };
        if !text.is_empty() {
            let lines = u64::try_from(memchr::memchr_iter(b'\n', &text).count()).unwrap_or(0);
            cut(Lines { line, text, goes_on, is_cut_within: too_many.is_some() });
            line += lines;
            goes_on = too_many;
        }
        if is_end {
            return Ok(());
        }
    }
}

/// Where the last lines begin that may be of one decision, whose next records are still to come; its id, if they are
/// more than one decision can have.
fn together(text: &[u8]) -> Result<usize, Uuid> {
    let mut begin = text.len();
    let mut one: Option<Uuid> = None;
    let mut count = 0;
    loop {
        let Some(before) = text.get(..begin).filter(|before| !before.is_empty()) else { return Ok(begin) };
        let rest = before.strip_suffix(b"\n").unwrap_or(before);
        let start = memchr::memrchr(b'\n', rest).map_or(0, |at| at + 1);
        let Some(here) = rest.get(start..).and_then(decision_id) else { return Ok(begin) };
        if one.is_some_and(|one| one != here) {
            return Ok(begin);
        }
        if count == MOST_TOGETHER || text.len() - start > MOST_KEPT {
            return Err(here);
        }
        (one, begin) = (Some(here), start);
        count += 1;
    }
}

/// The id of a decision, as its record has it.
fn decision_id(line: &[u8]) -> Option<Uuid> {
    const KEY: &[u8] = b"\"decision_id\":\"";
    let record = line.strip_prefix(DECISION)?;
    let at = memchr::memmem::find(record, KEY)? + KEY.len();
    Uuid::try_parse_ascii(record.get(at..at + 36)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_one_decision_stay_together() {
        let record = |id: u128| format!("{{\"event\":\"dpa.decision\",\"decision_id\":\"{}\"}}\n", Uuid::from_u128(id));
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
            pieces(&mut text.as_bytes(), &mut |lines: Lines| {
                starts.push((lines.line, all.len()));
                all.extend(lines.text);
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

    /// Each piece: how many lines, whose records go on in it, whether it ends within a decision.
    #[test]
    fn no_piece_holds_more_of_a_decision_than_one_can_have() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let record = |id: Uuid, fill: usize| {
            format!("{{\"event\":\"dpa.decision\",\"decision_id\":\"{id}\",\"x\":\"{}\"}}\n", "x".repeat(fill))
        };
        let big = 900 * 1024;
        let text = [record(other, 1), record(one, big).repeat(40), record(other, 1)].concat();
        let mut all: Vec<(usize, Option<Uuid>, bool)> = Vec::new();
        let mut longest = 0;
        pieces(&mut text.as_bytes(), &mut |Lines { line: _, text, goes_on, is_cut_within }: Lines| {
            longest = longest.max(text.len());
            all.push((memchr::memchr_iter(b'\n', &text).count(), goes_on, is_cut_within));
        })
        .unwrap_or_default();
        assert!(longest < MOST_KEPT + 2 * 1024 * 1024 + 1024, "{longest}");
        assert_eq!(all.iter().map(|(lines, ..)| lines).sum::<usize>(), 42);
        for ((_, _, is_cut_within), (_, goes_on, _)) in all.iter().zip(all.iter().skip(1)) {
            assert_eq!(goes_on.is_some(), *is_cut_within, "{all:?}");
        }
        assert!(all.iter().filter(|(.., is_cut_within)| *is_cut_within).count() > 5, "{all:?}");
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_no_record() {
        let text = "a\n".to_owned() + &"x".repeat(4 * MOST_LINE) + "\nb\n";
        let mut lines = Vec::new();
        let mut cut = |cut: Lines| lines.push((cut.line, String::from_utf8_lossy(&cut.text).lines().count()));
        pieces(&mut text.as_bytes(), &mut cut).unwrap_or_default();
        let total: usize = lines.iter().map(|(_, count)| count).sum();
        assert_eq!(total, 3, "{lines:?}");
    }
}
