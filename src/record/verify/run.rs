//! One file of a log, line by line.

use std::io;
use std::io::BufRead;

use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use super::Anchors;
use super::Ended;
use super::Fault;
use super::Finding;
use super::Keys;
use super::MOST_KEPT;
use super::Place;
use super::next_line;
use crate::record::chain::Hash;
use crate::record::chain::Head;
use crate::record::chain::Sealed;

/// How a checkpoint begins.
pub(super) const CHECKPOINT: &[u8] = b"{\"event\":\"dpa.checkpoint\"";

/// How every record begins.
const RECORD: &[u8] = b"{\"event\":\"dpa.";

/// How the records begin that are most of a log, and say nothing about it.
const PLAIN: [&[u8]; 2] = [b"{\"event\":\"dpa.decision\"", b"{\"event\":\"dpa.outcome\""];

/// Lines at the beginning of a file in which a record has to be.
const MOST_BEFORE: usize = 16;

/// Bytes at the beginning of a file in which a record has to be.
const MOST_LOOKED_AT: u64 = 4 * 1024 * 1024;

/// Numbers that are kept in a list of ranges.
const MOST_RANGES: usize = 10_000;

/// The log that a record says to be of.
pub(super) fn log_of(record: &[u8]) -> Option<Uuid> {
    const KEY: &[u8] = b",\"log\":\"";
    let at = memchr::memmem::find(record, KEY)? + KEY.len();
    Uuid::try_parse_ascii(record.get(at..at + 36)?).ok()
}

/// What is read of the records that speak of the log itself.
#[derive(Debug, Deserialize)]
struct Event {
    event: String,
    #[serde(default)]
    what: String,
    time: Timestamp,
    #[serde(default)]
    service: String,
    #[serde(default)]
    instance: String,
    segment: Option<u64>,
    why: Option<String>,
    key_id: Option<String>,
    signature: Option<String>,
    lost_bytes: Option<u64>,
    refused: Option<u64>,
    count: Option<u64>,
    head: Option<String>,
    unrecorded: Option<u64>,
}

impl Event {
    fn read(sealed: &Sealed<'_>) -> Option<Self> {
        let bytes = [sealed.record, b"}"].concat();
        serde_json::from_str(str::from_utf8(&bytes).ok()?).ok()
    }

    fn is_opening(&self) -> bool {
        self.event == "dpa.log" && self.what == "opened"
    }
}

/// What every decision and every outcome has, once.
#[derive(Deserialize)]
#[expect(dead_code, reason = "read so that it has to be there")]
struct Plain<'l> {
    event: &'l str,
    time: Timestamp,
    log: Uuid,
    decision_id: Uuid,
    seq: u64,
}

/// Whether a line is JSON in UTF-8, with what a decision or an outcome has.
fn is_plain_record(line: &[u8]) -> bool {
    str::from_utf8(line).is_ok_and(|line| serde_json::from_str::<Plain<'_>>(line).is_ok())
}

/// The first record of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The number of the segment.
    pub segment: u64,
    /// Where the segment before ends.
    pub after: Head,
    /// Why it begins.
    pub why: String,
}

/// What the beginning of a file says: enough to put files in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// The log, if a record is there.
    pub log: Option<Uuid>,
    /// The number of the first record, reckoned back from the first one that can be read.
    pub first: u64,
    /// The opening record, if the first line is one.
    pub opening: Option<Opening>,
    /// Whether it is a copy of checkpoints rather than a segment.
    pub is_copy: bool,
}

/// Looks at the beginning of a file.
///
/// # Errors
///
/// If it cannot be read.
pub fn look(reader: &mut impl BufRead) -> io::Result<Look> {
    let mut reader = io::Read::take(reader, MOST_LOOKED_AT);
    let mut look = Look { log: None, first: 0, opening: None, is_copy: false };
    let mut line = Vec::new();
    // The checkpoint that is the first line.
    let mut checkpoint = None;
    for place in 0..MOST_BEFORE {
        let Some(ended) = next_line(&mut reader, &mut line)? else { break };
        let sealed = Sealed::read(&line).filter(|sealed| ended == Ended::Whole && sealed.is_whole());
        let Some(sealed) = sealed else { continue };
        look.log = log_of(sealed.record).or(look.log);
        look.first = sealed.seq.saturating_sub(u64::try_from(place).unwrap_or(0));
        let is_checkpoint = sealed.record.starts_with(CHECKPOINT);
        if place > 0 {
            look.is_copy = is_checkpoint && checkpoint.is_some_and(|hash| hash != sealed.prev);
            break;
        }
        look.opening = Event::read(&sealed).filter(Event::is_opening).and_then(|event| opening(&sealed, event));
        if look.opening.is_some() {
            break;
        }
        // A first line that is no opening is not where it belongs: the next one says where this file does.
        checkpoint = is_checkpoint.then_some(sealed.hash);
        look.is_copy = is_checkpoint;
    }
    Ok(look)
}

fn opening(sealed: &Sealed<'_>, event: Event) -> Option<Opening> {
    let after = Head { seq: sealed.seq.checked_sub(1)?, hash: sealed.prev };
    Some(Opening { segment: event.segment?, after, why: event.why.unwrap_or_default() })
}

/// What a file is held against.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'p> {
    /// Which file it is.
    pub file: usize,
    /// The log that it is of, and the number that its first record should have, as [`Look`] says.
    pub log: Option<Uuid>,
    /// See there.
    pub first: u64,
    /// The keys of its checkpoints; none: signatures are not checked.
    pub keys: &'p Keys,
    /// Checkpoints that were kept elsewhere.
    pub anchors: &'p Anchors,
    /// Where the next segment goes on, if it begins because a sync failed: records behind may be there, and are
    /// not of the log.
    pub fork: Option<Head>,
    /// Whether it is a stream, to which a process may write other lines as well; a file of a log has none.
    pub is_stream: bool,
}

/// Segments that the log says were removed in their time: in a row, each in the record after the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The number of the first.
    pub from: u64,
    /// The number of the last.
    pub to: u64,
    /// The number of the record that says so of the first.
    pub seq: u64,
}

impl Retained {
    /// The number of the record that says so of this segment.
    #[must_use]
    pub fn said_of(&self, segment: u64) -> Option<u64> {
        (self.from..=self.to).contains(&segment).then(|| self.seq.saturating_add(segment - self.from))
    }
}

/// Records without a break in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// The last checkpoint with a good signature.
    pub signed: Option<u64>,
}

/// Something that the log tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The number of the record.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// What.
    pub what: Happened,
}

/// What happened to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// A torn end was cut.
    Torn {
        /// Its bytes.
        lost_bytes: u64,
    },
    /// It could not be written.
    Lost,
    /// It can be written again.
    Regained {
        /// Requests that were refused in between.
        refused: u64,
    },
}

/// A list that ends somewhere, and a count that does not.
#[derive(Clone, Debug)]
pub struct Some100<T> {
    /// The first of them.
    pub kept: Vec<T>,
    /// How many there are.
    pub count: u64,
}

impl<T> Default for Some100<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), count: 0 }
    }
}

impl<T> Some100<T> {
    /// Adds one.
    pub fn push(&mut self, one: T) {
        self.count += 1;
        if self.kept.len() < MOST_KEPT {
            self.kept.push(one);
        }
    }
}

/// Records of one log that stand together in one file.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Which file.
    pub file: usize,
    /// The number that its first record should have.
    pub order: u64,
    /// The line that it begins with.
    pub line: u64,
    /// The line that it ends with.
    pub last_line: u64,
    /// The log, if any record can be read.
    pub log: Option<Uuid>,
    /// Service and instance, as its opening says them.
    pub writer: Option<(String, String)>,
    /// Its opening, if it begins with one.
    pub opening: Option<Opening>,
    /// The number of the last segment in it.
    pub segment: Option<u64>,
    /// The first record that is whole, and what it holds as the hash before it.
    pub first: Option<(u64, Hash)>,
    /// The last record.
    pub end: Option<Head>,
    /// When the first and the last record were made that speak of the log.
    pub times: Option<(Timestamp, Timestamp)>,
    /// How many records.
    pub records: u64,
    /// How many checkpoints.
    pub checkpoints: u64,
    /// How many of them have a good signature.
    pub signed: u64,
    /// The keys that they name.
    pub key_ids: Vec<String>,
    /// The first checkpoint behind the last good signature that has none.
    pub doubtful: Option<Finding>,
    /// What is wrong.
    pub findings: Some100<Finding>,
    /// Events of the log.
    pub told: Some100<Told>,
    /// Unbroken parts of the chain.
    pub stretches: Vec<Stretch>,
    /// Segments that were removed in their time.
    pub retained: Vec<Retained>,
    /// Let through before their record was there: in the first checkpoint, in the last, and how far it rose between.
    pub unrecorded: Option<(u64, u64, u64)>,
    /// Lines behind the fork.
    pub beyond: u64,
    /// Bytes of a line that is not finished.
    pub unfinished: Option<u64>,
    /// Whether the newest checkpoint that was kept elsewhere was found.
    pub is_newest_met: bool,
    /// Lines of a stream that do not begin as records do.
    pub foreign: u64,
}

/// Reads one file to its end.
///
/// # Errors
///
/// If it cannot be read.
pub fn read(reader: &mut impl BufRead, plan: &Plan<'_>) -> io::Result<Vec<Run>> {
    let mut reading = Reading::new(*plan);
    let mut line = Vec::new();
    while let Some(ended) = next_line(reader, &mut line)? {
        reading.number += 1;
        match ended {
            Ended::Whole => reading.line(&line),
            Ended::TooLong if reading.is_foreign(&line) => reading.pass_over(),
            Ended::TooLong if !reading.is_beyond() => reading.found(None, Fault::TooLong),
            Ended::TooLong => reading.run.beyond += 1,
            Ended::Unfinished => reading.unfinished(&line),
        }
        if reading.runs.len() >= MOST_KEPT {
            reading.found(None, Fault::TooManyLogs);
            break;
        }
    }
    Ok(reading.finish())
}

struct Reading<'p> {
    plan: Plan<'p>,
    runs: Vec<Run>,
    run: Run,
    number: u64,
    /// How each record names its log.
    log_key: Vec<u8>,
    /// The checkpoints kept elsewhere that are still to come.
    anchors: &'p [(u64, Hash)],
    /// The segment that the record before opens, or says of it that an older one was removed for it.
    opened: Option<u64>,
}

impl<'p> Reading<'p> {
    fn new(plan: Plan<'p>) -> Self {
        let run = Run { file: plan.file, order: plan.first, line: 1, ..Run::default() };
        let mut reading =
            Self { plan, runs: Vec::new(), run, number: 0, log_key: Vec::new(), anchors: &[], opened: None };
        if let Some(log) = plan.log {
            reading.is_of(log);
        }
        reading
    }

    fn is_of(&mut self, log: Uuid) {
        self.run.log = Some(log);
        self.log_key = format!(",\"log\":\"{log}\"").into_bytes();
        self.anchors = self.plan.anchors.of(log);
    }

    fn found(&mut self, seq: Option<u64>, fault: Fault) {
        let seq = seq.or_else(|| self.run.end.map(|end| end.seq.saturating_add(1)));
        let place = Some(Place { file: self.plan.file, line: self.number, seq });
        self.run.findings.push(Finding { place, fault });
    }

    fn is_beyond(&self) -> bool {
        self.plan.fork.is_some() && self.run.end == self.plan.fork
    }

    /// What is not of the log on a stream. Nothing is hidden by it: where a record should stand, the chain has a gap.
    fn is_foreign(&self, line: &[u8]) -> bool {
        self.plan.is_stream && !line.starts_with(RECORD)
    }

    fn pass_over(&mut self) {
        self.run.foreign += 1;
        if self.run.records == 0 && self.run.findings.count == 0 {
            self.run.line = self.number.saturating_add(1);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let Some(sealed) = Sealed::read(line) else {
            if self.is_foreign(line) {
                self.pass_over();
            } else if self.is_beyond() {
                self.run.beyond += 1;
            } else {
                self.found(None, Fault::NotARecord);
            }
            return;
        };
        let behind = self.opened.take();
        let is_whole = sealed.is_whole();
        let is_plain = PLAIN.iter().any(|plain| sealed.record.starts_with(plain));
        let event = if is_whole && !is_plain { Event::read(&sealed) } else { None };
        if let Some(event) = &event
            && event.is_opening()
            && sealed.seq == 1
            && self.run.log.is_some()
            && log_of(sealed.record) != self.run.log
        {
            self.begin();
        }
        if self.is_beyond() {
            return self.beyond(&sealed, event.as_ref());
        }
        if !is_whole {
            return self.changed(&sealed);
        }
        if !self.follows(&sealed) {
            return;
        }
        self.is_of_the_log(&sealed);
        match event {
            Some(event) => self.event(&sealed, event, behind),
            None if is_plain && is_plain_record(line) => {}
            None => self.found(Some(sealed.seq), Fault::Unreadable),
        }
        self.meet(&sealed);
    }

    /// Another log begins in this file: what a process writes to standard output after another one.
    fn begin(&mut self) {
        let next = Run { file: self.plan.file, order: 1, line: self.number, ..Run::default() };
        self.runs.push(std::mem::replace(&mut self.run, next));
        self.log_key.clear();
        self.anchors = &[];
    }

    fn changed(&mut self, sealed: &Sealed<'_>) {
        let due = self.run.end.map_or(sealed.seq, |end| end.seq.saturating_add(1));
        self.found(Some(due), Fault::Changed);
        self.run.records += 1;
        self.run.last_line = self.number;
        // So that the next one is held against what this one says, and only this one is told.
        self.run.end = Some(Head { seq: due, hash: sealed.hash });
    }

    /// Whether the record is one more of the chain, if not the due one.
    fn follows(&mut self, sealed: &Sealed<'_>) -> bool {
        if let Some(end) = self.run.end {
            let due = end.seq.saturating_add(1);
            let fault = match (sealed.seq == due, sealed.seq > due) {
                (true, _) if sealed.prev == end.hash => None,
                (true, _) => Some(Fault::NotNext),
                (_, true) => Some(Fault::Missing { from: due, to: sealed.seq - 1 }),
                _ => Some(Fault::Misplaced { due }),
            };
            let is_next = fault.is_none();
            if let Some(fault) = fault {
                self.found(Some(sealed.seq), fault);
            }
            if sealed.head() == end {
                return false;
            }
            match self.run.stretches.last_mut() {
                Some(stretch) if is_next && stretch.to == end.seq => stretch.to = sealed.seq,
                _ => self.stretch(sealed.seq),
            }
        } else {
            self.stretch(sealed.seq);
        }
        if self.run.first.is_none() {
            self.run.first = Some((sealed.seq, sealed.prev));
        }
        self.run.records += 1;
        self.run.last_line = self.number;
        self.run.end = Some(sealed.head());
        true
    }

    fn stretch(&mut self, seq: u64) {
        if self.run.stretches.len() >= MOST_RANGES {
            self.run.stretches.remove(0);
        }
        self.run.stretches.push(Stretch { from: seq, to: seq, signed: None });
    }

    fn is_of_the_log(&mut self, sealed: &Sealed<'_>) {
        match self.run.log {
            Some(_) if memchr::memmem::find(sealed.record, &self.log_key).is_some() => {}
            Some(log) => self.found(Some(sealed.seq), Fault::OtherLog { log }),
            None => match log_of(sealed.record) {
                Some(log) => self.is_of(log),
                None => self.found(Some(sealed.seq), Fault::Unreadable),
            },
        }
    }

    fn event(&mut self, sealed: &Sealed<'_>, event: Event, behind: Option<u64>) {
        let (from, _) = self.run.times.unwrap_or((event.time, event.time));
        self.run.times = Some((from, event.time));
        let mut told = |what| self.run.told.push(Told { seq: sealed.seq, time: event.time, what });
        match (event.event.as_str(), event.what.as_str()) {
            ("dpa.checkpoint", _) => self.checkpoint(sealed, &event),
            ("dpa.log", "opened") => self.opened(sealed, event),
            ("dpa.log", "torn") => told(Happened::Torn { lost_bytes: event.lost_bytes.unwrap_or(0) }),
            ("dpa.log", "lost") => told(Happened::Lost),
            ("dpa.log", "regained") => told(Happened::Regained { refused: event.refused.unwrap_or(0) }),
            ("dpa.log", "retention") => self.retention(sealed, event.segment, behind),
            _ => {}
        }
    }

    fn opened(&mut self, sealed: &Sealed<'_>, event: Event) {
        let key_id = event.key_id.clone();
        let writer = (event.service.clone(), event.instance.clone());
        let Some(opening) = opening(sealed, event) else {
            return self.found(Some(sealed.seq), Fault::Unreadable);
        };
        let is_due = self.run.segment.is_none_or(|before| opening.segment == before.saturating_add(1));
        let is_first = opening.segment == 1;
        if !is_due || is_first != (sealed.seq == 1) || is_first != (sealed.prev == Hash::NONE) {
            self.found(Some(sealed.seq), Fault::Misnumbered { segment: opening.segment });
        }
        self.key(key_id.as_deref());
        self.run.segment = Some(opening.segment);
        self.opened = Some(opening.segment);
        self.run.writer.get_or_insert(writer);
        if self.run.records == 1 && self.run.line == self.number {
            self.run.opening = Some(opening);
        }
    }

    /// A segment that was removed in its time. It counts only where a sidecar says so: right behind the opening of
    /// the segment for which it went.
    fn retention(&mut self, sealed: &Sealed<'_>, segment: Option<u64>, behind: Option<u64>) {
        let (Some(segment), Some(opened)) = (segment, behind) else {
            return self.found(Some(sealed.seq), Fault::RetentionAstray);
        };
        if segment == 0 || segment >= opened {
            return self.found(Some(sealed.seq), Fault::RetentionAstray);
        }
        self.opened = behind;
        let is_full = self.run.retained.len() >= MOST_RANGES;
        let next = segment.checked_sub(1);
        match self.run.retained.last_mut() {
            Some(last) if next.and_then(|before| last.said_of(before)) == Some(sealed.seq - 1) => last.to = segment,
            _ if is_full => {}
            _ => self.run.retained.push(Retained { from: segment, to: segment, seq: sealed.seq }),
        }
    }

    fn key(&mut self, id: Option<&str>) {
        let Some(id) = id.filter(|id| id.len() == 16) else { return };
        if self.run.key_ids.len() < MOST_KEPT && !self.run.key_ids.iter().any(|known| known == id) {
            self.run.key_ids.push(id.to_owned());
        }
    }

    fn checkpoint(&mut self, sealed: &Sealed<'_>, event: &Event) {
        self.run.checkpoints += 1;
        if event.count != Some(sealed.seq - 1) || event.head.as_deref() != Some(sealed.prev.as_str()) {
            self.found(Some(sealed.seq), Fault::WrongStand);
        }
        let unrecorded = event.unrecorded.unwrap_or(0);
        let (first, last, rise) = self.run.unrecorded.unwrap_or((unrecorded, unrecorded, 0));
        self.run.unrecorded = Some((first, unrecorded, rise.saturating_add(risen(last, unrecorded))));
        self.key(event.key_id.as_deref());
        if self.plan.keys.0.is_empty() {
            return;
        }
        let key = event.key_id.clone().filter(|_| event.signature.is_some());
        let place = Some(Place { file: self.plan.file, line: self.number, seq: Some(sealed.seq) });
        match key.as_deref().map(|id| self.plan.keys.named(id)) {
            Some(Some(verifier)) if verifier.is_signed(sealed.record) => {
                self.run.signed += 1;
                self.run.doubtful = None;
                if let Some(stretch) = self.run.stretches.last_mut() {
                    stretch.signed = Some(sealed.seq);
                }
            }
            Some(Some(_)) => self.found(Some(sealed.seq), Fault::WrongSignature { key: key.unwrap_or_default() }),
            Some(None) => {
                let fault = Fault::OtherKey { key: key.unwrap_or_default() };
                self.run.doubtful.get_or_insert(Finding { place, fault });
            }
            None => {
                self.run.doubtful.get_or_insert(Finding { place, fault: Fault::Unsigned });
            }
        }
    }

    /// A record behind the one that the next segment goes on from. That segment exists because the sidecar could
    /// not tell whether these came to the disk, and wrote them again: they are not of the log. But no sidecar goes
    /// on with checkpoints then: one that vouches for such records shows that they were cut out.
    fn beyond(&mut self, sealed: &Sealed<'_>, event: Option<&Event>) {
        self.run.beyond += 1;
        let fork = self.run.end.map_or(0, |end| end.seq);
        let count = event.filter(|event| event.event == "dpa.checkpoint").and_then(|event| event.count).unwrap_or(0);
        if count > fork {
            self.found(Some(sealed.seq), Fault::Disowned { count, fork });
        }
    }

    /// Holds the record against the checkpoints that were kept elsewhere.
    fn meet(&mut self, sealed: &Sealed<'_>) {
        if self.run.records == 1 {
            let before = self.anchors.partition_point(|(seq, _)| *seq < sealed.seq);
            self.anchors = self.anchors.get(before..).unwrap_or_default();
        }
        while let Some(((seq, hash), rest)) = self.anchors.split_first() {
            if *seq > sealed.seq {
                return;
            }
            self.anchors = rest;
            match *hash == sealed.hash {
                true => self.run.is_newest_met |= rest.is_empty(),
                false if *seq == sealed.seq => self.found(Some(sealed.seq), Fault::Rewritten),
                false => {}
            }
        }
    }

    /// The end of the file without a line break.
    fn unfinished(&mut self, line: &[u8]) {
        if self.is_beyond() {
            self.run.beyond += 1;
            return;
        }
        let without_last = line.split_last().map_or(line, |(_, rest)| rest);
        if Sealed::read(without_last).is_some_and(|sealed| sealed.is_whole()) {
            self.found(None, Fault::NoBreak);
        } else if RECORD.starts_with(line) || line.starts_with(RECORD) {
            self.run.unfinished = u64::try_from(line.len()).ok();
        } else if self.is_foreign(line) {
            self.pass_over();
        } else {
            self.found(None, Fault::NotARecord);
        }
    }

    fn finish(mut self) -> Vec<Run> {
        let has_fault_there = |run: &Run| {
            let first = run.findings.kept.first().and_then(|finding| finding.place);
            first.is_some_and(|place| place.line == run.line)
        };
        if self.run.records > 0 && self.run.opening.is_none() && !has_fault_there(&self.run) {
            let seq = self.run.first.map(|(seq, _)| seq);
            let place = Some(Place { file: self.plan.file, line: self.run.line, seq });
            self.run.findings.kept.insert(0, Finding { place, fault: Fault::NoOpening });
            self.run.findings.count += 1;
        }
        self.runs.push(self.run);
        self.runs
    }
}

/// By how much a count of a process rose; a lower one is that of another process, from 0.
pub(super) fn risen(last: u64, now: u64) -> u64 {
    if now >= last { now - last } else { now }
}
