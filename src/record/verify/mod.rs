//! Checks decision logs: what is proven of them, what is not, and the first record that is not as it was written.
//!
//! [`run::look`] reads the beginning of a file, so that files can be put in order; [`run::read`] reads one whole
//! file, in constant memory; [`judge::judge`] holds what was read together. Reading is all they do with the world.

pub mod judge;
pub mod run;

use std::collections::BTreeMap;
use std::io;
use std::io::BufRead;

use uuid::Uuid;

use super::chain::Hash;
use super::chain::Sealed;
use super::checkpoint::Verifier;

/// Bytes of the longest line that may be a record; the longest that a sidecar writes is a few kilobytes.
pub const MOST_LINE: usize = 1024 * 1024;

/// Findings that are kept of a file, and events that are told of it; more are counted.
pub const MOST_KEPT: usize = 100;

/// Checkpoints that are kept of a file of them: the newest of two days at the usual one a second.
const MOST_ANCHORS: usize = 200_000;

/// What is wrong with a record, a segment or a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Another form.
    #[error("this line is no record of a decision log: it was changed, or something else put it there")]
    NotARecord,
    /// Over [`MOST_LINE`].
    #[error("this line is longer than {MOST_LINE} bytes: no sidecar wrote it")]
    TooLong,
    /// Another hash.
    #[error("its hash is not that of its content: it was changed after it was written")]
    Changed,
    /// The hash is right, the JSON is not.
    #[error("its hash is right, but it cannot be read: no sidecar wrote it")]
    Unreadable,
    /// Records between the one before and this.
    #[error("{} before it", missing(*.from, *.to))]
    Missing {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// Its number is not due.
    #[error("it stands where record {due} has to stand: records were swapped, repeated or put in")]
    Misplaced {
        /// The number that is due.
        due: u64,
    },
    /// `prev` is another hash.
    #[error("it does not hold the hash of the record before it: one of the two was replaced")]
    NotNext,
    /// `log` is another.
    #[error("it is not a record of the log {log}, which it stands in")]
    OtherLog {
        /// The log of the segment.
        log: Uuid,
    },
    /// A segment without its first record.
    #[error("a segment has to begin with its `opened` record, and this one does not")]
    NoOpening,
    /// A segment whose number is not due.
    #[error("it opens segment {segment}, and the records before it say otherwise")]
    Misnumbered {
        /// Its number.
        segment: u64,
    },
    /// `count` or `head` of a checkpoint.
    #[error("this checkpoint does not say how far the log has come: its `count` or `head` is wrong")]
    WrongStand,
    /// A signature that is none.
    #[error("the signature of this checkpoint is not right: it was not signed with key {key}")]
    WrongSignature {
        /// The key that it names.
        key: String,
    },
    /// Signed with a key that was not given, and no good signature after it.
    #[error("this checkpoint is signed with key {key}, which was not given, and none after it with one that was")]
    OtherKey {
        /// The key that it names.
        key: String,
    },
    /// Not signed, and no good signature after it.
    #[error("this checkpoint is not signed, and none after it is signed with a key that was given")]
    Unsigned,
    /// No signature of a given key in the whole log.
    #[error("no checkpoint of this log is signed with a key that was given: nobody vouches for it")]
    NothingSigned,
    /// A checkpoint about records that the log does not have.
    #[error(
        "this checkpoint vouches for records up to {count}, and the log goes on from record {fork} as if there were none"
    )]
    Disowned {
        /// The records that it vouches for.
        count: u64,
        /// Where the next segment goes on.
        fork: u64,
    },
    /// A segment that is not the last ends in a part of a line.
    #[error("the file ends in the middle of a line, and the log goes on after it")]
    Unended,
    /// A whole record, and more in its line.
    #[error("the line break behind it is gone")]
    NoBreak,
    /// Files that are not there.
    #[error("{} before it, and the log shows no removal in time (`keep`, the oldest first)", segments(*.from, *.to))]
    SegmentsMissing {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// A removal that no sidecar wrote there.
    #[error(
        "a removal (`keep`) is written right behind the opening of a later segment, and this is not: no sidecar wrote it"
    )]
    RetentionAstray,
    /// The sidecar saw it go.
    #[error("segment {segment} is missing before it: somebody removed it while the sidecar was writing")]
    SegmentRemoved {
        /// Which.
        segment: u64,
    },
    /// Two segments go on from one record.
    #[error("it goes on from record {fork}, but the segment before it comes to record {end}: there are two chains")]
    Fork {
        /// From where it goes on.
        fork: u64,
        /// How far the other one comes.
        end: u64,
    },
    /// Two files with one number.
    #[error("segment {segment} is there twice, here {}: remove the one that is not part of the log", alike(*.is_same))]
    SegmentTwice {
        /// Its number.
        segment: u64,
        /// Whether both say the same.
        is_same: bool,
    },
    /// The log is shorter than a checkpoint kept elsewhere.
    #[error(
        "the log ends here, and a checkpoint that was kept elsewhere is its record {seq}: its end was cut off, or an older copy was put back"
    )]
    CutOff {
        /// The number of the checkpoint.
        seq: u64,
    },
    /// It is not the one kept elsewhere.
    #[error(
        "it is not the checkpoint with this number that was kept elsewhere: the log was rewritten, or an older copy was put back and went on"
    )]
    Rewritten,
    /// A log that is only known from a checkpoint.
    #[error("a checkpoint that was kept elsewhere is record {seq} of the log {log}, and no record of that log is here")]
    LogMissing {
        /// The log.
        log: Uuid,
        /// The number of the checkpoint.
        seq: u64,
    },
    /// Checkpoints kept elsewhere are not in order.
    #[error(
        "the checkpoints that were kept elsewhere go back from record {from} to record {to}: an older copy of the log was put back and went on"
    )]
    WentBack {
        /// The number of one.
        from: u64,
        /// The number of the one after it.
        to: u64,
    },
    /// A log with too many beginnings in one file.
    #[error("more than {MOST_KEPT} logs begin in this file: the rest is not looked at")]
    TooManyLogs,
}

impl Fault {
    /// Its stable word.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotARecord => "not_a_record",
            Self::TooLong => "too_long",
            Self::Changed => "changed",
            Self::Unreadable => "unreadable",
            Self::Missing { .. } => "missing",
            Self::Misplaced { .. } => "misplaced",
            Self::NotNext => "not_next",
            Self::OtherLog { .. } => "other_log",
            Self::NoOpening => "no_opening",
            Self::Misnumbered { .. } => "misnumbered",
            Self::WrongStand => "wrong_stand",
            Self::WrongSignature { .. } => "wrong_signature",
            Self::OtherKey { .. } => "other_key",
            Self::Unsigned => "unsigned",
            Self::NothingSigned => "nothing_signed",
            Self::Disowned { .. } => "disowned",
            Self::Unended => "unended",
            Self::NoBreak => "no_break",
            Self::SegmentsMissing { .. } => "segments_missing",
            Self::RetentionAstray => "retention_astray",
            Self::SegmentRemoved { .. } => "segment_removed",
            Self::Fork { .. } => "fork",
            Self::SegmentTwice { .. } => "segment_twice",
            Self::CutOff { .. } => "cut_off",
            Self::Rewritten => "rewritten",
            Self::LogMissing { .. } => "log_missing",
            Self::WentBack { .. } => "went_back",
            Self::TooManyLogs => "too_many_logs",
        }
    }
}

fn missing(from: u64, to: u64) -> String {
    if from == to { format!("record {from} is missing") } else { format!("records {from} to {to} are missing") }
}

fn segments(from: u64, to: u64) -> String {
    if from == to { format!("segment {from} is missing") } else { format!("segments {from} to {to} are missing") }
}

fn alike(is_same: bool) -> &'static str {
    if is_same { "a second time with the same records" } else { "with other records" }
}

/// Where something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of the files.
    pub file: usize,
    /// Its line, from 1.
    pub line: u64,
    /// The number of the record there, as far as that can be told.
    pub seq: Option<u64>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where; `None`: in what was kept elsewhere.
    pub place: Option<Place>,
    /// What.
    pub fault: Fault,
}

/// The keys that checkpoints have to be signed with.
#[derive(Clone, Debug, Default)]
pub struct Keys(pub Vec<Verifier>);

impl Keys {
    /// The one with this id.
    fn named(&self, id: &str) -> Option<&Verifier> {
        self.0.iter().find(|key| key.id() == id)
    }
}

/// Checkpoints that were kept elsewhere: records that the log has to hold.
#[derive(Clone, Debug, Default)]
pub struct Anchors {
    /// By log, in order.
    by_log: BTreeMap<Uuid, Vec<(u64, Hash)>>,
    /// Lines that are none.
    pub passed_over: u64,
    /// Whether older ones were passed over, because there are so many.
    pub has_more: bool,
    /// Numbers that went back.
    went_back: Option<(u64, u64)>,
}

impl Anchors {
    /// Reads lines of which some are checkpoints; what else is among them, such as a torn line, is passed over.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let mut anchors = Self::default();
        let mut line = Vec::new();
        let mut count = 0;
        while let Some(ended) = next_line(reader, &mut line)? {
            // A copy of the last line alone may have lost its line break.
            let sealed = Sealed::read(&line).filter(|sealed| ended != Ended::TooLong && sealed.is_whole());
            let sealed = sealed.filter(|sealed| sealed.record.starts_with(run::CHECKPOINT));
            let Some((sealed, log)) = sealed.and_then(|sealed| Some((sealed, run::log_of(sealed.record)?))) else {
                anchors.passed_over += u64::from(!line.is_empty());
                continue;
            };
            let of_log = anchors.by_log.entry(log).or_default();
            let newest = of_log.last().copied();
            let here = (sealed.seq, sealed.hash);
            if newest == Some(here) {
                continue;
            }
            if let Some((before, _)) = newest.filter(|(before, _)| *before >= sealed.seq) {
                anchors.went_back.get_or_insert((before, sealed.seq));
            }
            of_log.push(here);
            count += 1;
            if count > MOST_ANCHORS {
                anchors.has_more = true;
                count = anchors.forget();
            }
        }
        for of_log in anchors.by_log.values_mut() {
            of_log.sort_by_key(|(seq, _)| *seq);
        }
        Ok(anchors)
    }

    /// Forgets the older half of each log's, and says how many are left.
    fn forget(&mut self) -> usize {
        for of_log in self.by_log.values_mut() {
            of_log.drain(..of_log.len() / 2);
        }
        if self.by_log.len() > MOST_ANCHORS / 2 {
            // So many logs are no logs.
            self.by_log.clear();
        }
        self.by_log.values().map(Vec::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_log.is_empty()
    }

    /// Those of one log, in order.
    fn of(&self, log: Uuid) -> &[(u64, Hash)] {
        self.by_log.get(&log).map_or(&[], Vec::as_slice)
    }
}

/// How a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With a line break.
    Whole,
    /// With the file.
    Unfinished,
    /// Over [`MOST_LINE`]; it was passed over.
    TooLong,
}

/// Reads a line without its line break; `None` at the end. Of one over [`MOST_LINE`], only its beginning is read.
///
/// # Errors
///
/// If the file cannot be read.
pub fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<Ended>> {
    line.clear();
    let most = u64::try_from(MOST_LINE).unwrap_or(u64::MAX).saturating_add(1);
    if io::Read::take(&mut *reader, most).read_until(b'\n', line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Some(Ended::Whole));
    }
    if line.len() > MOST_LINE {
        reader.skip_until(b'\n')?;
        return Ok(Some(Ended::TooLong));
    }
    Ok(Some(Ended::Unfinished))
}
