//! What all files say together.

use std::collections::BTreeMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::Anchors;
use super::Fault;
use super::Finding;
use super::Keys;
use super::MOST_KEPT;
use super::Place;
use super::run::Retained;
use super::run::Run;
use super::run::Some100;
use super::run::Stretch;
use super::run::Told;
use super::run::risen;

/// What was read of one file.
#[derive(Debug)]
pub struct Piece {
    /// Whether it was named itself, rather than the folder it lies in.
    pub is_named: bool,
    /// Its records.
    pub runs: Vec<Run>,
}

/// Everything that can be said.
#[derive(Debug)]
pub struct Report {
    /// Of each log.
    pub logs: Vec<LogReport>,
    /// What is wrong and cannot be said to be in one of them.
    pub strays: Some100<Finding>,
    /// Lines of streams that are not of a log.
    pub foreign: u64,
}

impl Report {
    /// How much is wrong.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.logs.iter().map(|log| log.findings.count).sum::<u64>() + self.strays.count
    }

    /// Whether a log may be another one than it says, and nobody could see it.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.logs.iter().any(LogReport::is_unknown)
    }
}

/// Why records are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untold {
    /// The log says that their segments were removed in their time.
    Retention,
    /// The log says so, and no good signature vouches for that, though keys were given.
    RetentionUnsigned,
    /// Only this segment was given.
    NotGiven,
}

/// What can be said of one log.
#[derive(Debug)]
pub struct LogReport {
    /// Which.
    pub log: Uuid,
    /// Who wrote it, as it says.
    pub writer: (String, String),
    /// How many files.
    pub files: u64,
    /// The numbers of its first and last segment.
    pub segments: Option<(u64, u64)>,
    /// How many records.
    pub records: u64,
    /// The numbers of the first and the last.
    pub seqs: Option<(u64, u64)>,
    /// When the first and the last record were made that speak of the log.
    pub times: Option<(Timestamp, Timestamp)>,
    /// How many checkpoints.
    pub checkpoints: u64,
    /// How many of them have a good signature.
    pub signed: u64,
    /// The keys that they name.
    pub key_ids: Vec<String>,
    /// Unbroken parts of the chain.
    pub stretches: Vec<Stretch>,
    /// What is wrong, in order.
    pub findings: Some100<Finding>,
    /// What it tells of itself.
    pub told: Some100<Told>,
    /// At most so many requests were let through before their record was there, as far as checkpoints say.
    pub unrecorded: u64,
    /// Lines that are not of the log, because a sync failed, and the record behind which they stand.
    pub beyond: Vec<(u64, u64)>,
    /// Bytes of a last line that is not finished.
    pub unfinished: Option<u64>,
    /// Records that are not there, and why that is no finding.
    pub untold: Vec<(u64, u64, Untold)>,
    /// The newest checkpoint that was kept elsewhere, and whether the log holds it.
    pub anchor: Option<(u64, bool)>,
}

/// Holds together what was read.
#[must_use]
pub fn judge(pieces: Vec<Piece>, keys: &Keys, anchors: &Anchors) -> Report {
    let mut by_log: BTreeMap<Uuid, Vec<(bool, Run)>> = BTreeMap::new();
    let mut strays = Some100::default();
    let mut foreign = 0;
    for Piece { is_named, runs } in pieces {
        for run in runs {
            foreign += run.foreign;
            match run.log {
                Some(log) => by_log.entry(log).or_default().push((is_named, run)),
                None => take(&mut strays, run.findings),
            }
        }
    }
    let mut report = Report { logs: Vec::new(), strays, foreign };
    let stray = |fault| Finding { place: None, fault };
    if let Some((from, to)) = anchors.went_back {
        report.strays.push(stray(Fault::WentBack { from, to }));
    }
    for (log, of_log) in &anchors.by_log {
        if let Some((seq, _)) = of_log.last().filter(|_| !by_log.contains_key(log)) {
            report.strays.push(stray(Fault::LogMissing { log: *log, seq: *seq }));
        }
    }
    for (log, runs) in by_log {
        report.logs.push(of_log(log, runs, keys, anchors));
    }
    report
}

fn take(all: &mut Some100<Finding>, more: Some100<Finding>) {
    let count = all.count + more.count;
    more.kept.into_iter().for_each(|finding| all.push(finding));
    all.count = count;
}

fn of_log(log: Uuid, mut runs: Vec<(bool, Run)>, keys: &Keys, anchors: &Anchors) -> LogReport {
    runs.sort_by_key(|(_, run)| (run.order, run.file));
    let files = u64::try_from(runs.len()).unwrap_or(u64::MAX);
    let is_alone = matches!(runs.as_slice(), [(true, _)]);
    let all: Vec<Run> = runs.into_iter().map(|(_, run)| run).collect();
    let (chain, doubles) = without_doubles(all);
    let mut report = LogReport::new(log, files);
    for double in doubles {
        take(&mut report.findings, double);
    }
    let mut before: Option<&Run> = None;
    for run in &chain {
        report.stretch(run, before.is_some_and(|before| is_joined(before, run)));
        before = Some(run);
    }
    let retained: Vec<Retained> = chain.iter().flat_map(|run| run.retained.iter().copied()).collect();
    let mut doubtful = None;
    let mut before: Option<&Run> = None;
    for run in &chain {
        match before {
            None => report.begins(run, &retained, is_alone, !keys.0.is_empty()),
            Some(before) => report.joins(before, run),
        }
        report.adds(run, before.and_then(|before| before.unrecorded));
        if run.signed > 0 {
            doubtful = None;
        }
        doubtful = doubtful.or_else(|| run.doubtful.clone());
        before = Some(run);
    }
    if let Some(last) = before {
        report.unfinished = last.unfinished;
        report.ends(last, anchors, chain.iter().any(|run| run.is_newest_met));
    }
    if !keys.0.is_empty() {
        if report.signed == 0 {
            let place =
                before.map(|last| Place { file: last.file, line: last.last_line, seq: last.end.map(|end| end.seq) });
            report.findings.push(Finding { place, fault: Fault::NothingSigned });
        } else if let Some(doubtful) = doubtful {
            report.findings.push(doubtful);
        }
    }
    report
}

/// Of several files with one number, the one that the chain goes on from; what is found in the others.
fn without_doubles(runs: Vec<Run>) -> (Vec<Run>, Vec<Some100<Finding>>) {
    let mut by_segment: Vec<Vec<Run>> = Vec::new();
    for run in runs {
        let number = |run: &Run| run.opening.as_ref().map(|opening| opening.segment);
        let same =
            by_segment.iter_mut().rev().take(MOST_KEPT).find(|others| {
                number(&run).is_some() && others.first().is_some_and(|other| number(other) == number(&run))
            });
        match same {
            Some(others) => others.push(run),
            None => by_segment.push(vec![run]),
        }
    }
    let afters: Vec<_> = by_segment.iter().map(|these| these.first().and_then(|run| run.opening.clone())).collect();
    let mut chain = Vec::new();
    let mut doubles = Vec::new();
    for (place, mut these) in by_segment.into_iter().enumerate() {
        let next = afters.get(place + 1).and_then(Option::as_ref).map(|opening| opening.after);
        // The one that the next segment goes on from comes first, else the longest.
        these.sort_by_key(|run| (next.is_none() || run.end != next, std::cmp::Reverse(run.records), run.file));
        let mut these = these.into_iter();
        let Some(main) = these.next() else { continue };
        for other in these {
            let place = Some(Place { file: other.file, line: other.line, seq: other.first.map(|(seq, _)| seq) });
            let is_same = other.end == main.end && other.findings.count == 0;
            let segment = other.opening.as_ref().map_or(0, |opening| opening.segment);
            let mut findings = Some100::default();
            findings.push(Finding { place, fault: Fault::SegmentTwice { segment, is_same } });
            take(&mut findings, other.findings);
            doubles.push(findings);
        }
        chain.push(main);
    }
    (chain, doubles)
}

impl LogReport {
    fn new(log: Uuid, files: u64) -> Self {
        Self {
            log,
            writer: Default::default(),
            files,
            segments: None,
            records: 0,
            seqs: None,
            times: None,
            checkpoints: 0,
            signed: 0,
            key_ids: Vec::new(),
            stretches: Vec::new(),
            findings: Some100::default(),
            told: Some100::default(),
            unrecorded: 0,
            beyond: Vec::new(),
            unfinished: None,
            untold: Vec::new(),
            anchor: None,
        }
    }

    /// Whether it may be another log than it says, and nobody could see it: it does not hold the newest checkpoint
    /// that was kept elsewhere, or its beginning is gone and nobody who is believed says why.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        let is_unsigned = |(_, _, why): &(u64, u64, Untold)| *why == Untold::RetentionUnsigned;
        self.anchor.is_some_and(|(_, is_met)| !is_met) || self.untold.iter().any(is_unsigned)
    }

    /// Whether a good signature vouches for this record.
    fn is_signed(&self, seq: u64) -> bool {
        let vouches = |it: &Stretch| it.signed.is_some_and(|signed| (it.from..=signed).contains(&seq));
        self.stretches.iter().any(vouches)
    }

    fn found(&mut self, run: &Run, fault: Fault) {
        let place = Place { file: run.file, line: run.line, seq: run.first.map(|(seq, _)| seq) };
        self.findings.push(Finding { place: Some(place), fault });
    }

    /// Looks at what stands before the first segment that is there.
    fn begins(&mut self, run: &Run, retained: &[Retained], is_alone: bool, has_keys: bool) {
        let Some(opening) = &run.opening else { return };
        let Some(to) = opening.segment.checked_sub(1).filter(|to| *to > 0) else { return };
        let said_of = |number| retained.iter().filter_map(move |these| these.said_of(number));
        let seq = opening.after.seq;
        if is_alone {
            self.untold.push((1, seq, Untold::NotGiven));
        } else if said_of(to).next().is_some() {
            // The oldest go first: what removed this one had removed those before it.
            let is_believed = !has_keys || said_of(to).any(|seq| self.is_signed(seq));
            let why = if is_believed { Untold::Retention } else { Untold::RetentionUnsigned };
            self.untold.push((1, seq, why));
        } else if opening.why == "removed" && (to == 1 || said_of(to - 1).next().is_some()) {
            self.found(run, Fault::SegmentRemoved { segment: to });
        } else {
            self.found(run, Fault::SegmentsMissing { from: 1, to });
        }
    }

    /// Looks at how a segment follows the one before it.
    fn joins(&mut self, before: &Run, run: &Run) {
        let (Some(end), Some((seq, _))) = (before.end, run.first) else { return };
        let is_joined = is_joined(before, run);
        let why = run.opening.as_ref().map_or("", |opening| opening.why.as_str());
        if before.unfinished.is_some() && !(is_joined && why == "sync_failed") {
            let place = Place { file: before.file, line: before.last_line.saturating_add(1), seq: Some(seq) };
            self.findings.push(Finding { place: Some(place), fault: Fault::Unended });
        }
        // A first line that is no record is a finding itself, and says nothing of what it follows.
        let is_told = |finding: &Finding| finding.place.is_some_and(|place| place.line == run.line);
        if !is_joined && !run.findings.kept.iter().any(is_told) {
            self.parts(end.seq, seq, before.segment, run);
        }
    }

    /// Says what is wrong with a segment that begins with `seq` and does not follow the one before, which ends
    /// with `end`.
    fn parts(&mut self, end: u64, seq: u64, before: Option<u64>, run: &Run) {
        let from = end.saturating_add(1);
        match from.cmp(&seq) {
            std::cmp::Ordering::Equal => self.found(run, Fault::NotNext),
            std::cmp::Ordering::Greater => self.found(run, Fault::Fork { fork: seq - 1, end }),
            std::cmp::Ordering::Less => {
                let numbers = before.zip(run.opening.as_ref().map(|opening| opening.segment));
                let gone = numbers.map(|(before, here)| (before.saturating_add(1), here.saturating_sub(1)));
                let Some((first, last)) = gone.filter(|(first, last)| first <= last) else {
                    return self.found(run, Fault::Missing { from, to: seq - 1 });
                };
                // The oldest go first: no removal in time leaves one before it.
                let is_removed = run.opening.as_ref().is_some_and(|opening| opening.why == "removed");
                self.found(
                    run,
                    match is_removed && first == last {
                        true => Fault::SegmentRemoved { segment: last },
                        false => Fault::SegmentsMissing { from: first, to: last },
                    },
                );
            }
        }
    }

    fn adds(&mut self, run: &Run, before: Option<(u64, u64, u64)>) {
        if let Some(writer) = &run.writer {
            self.writer.clone_from(writer);
        }
        if let (Some(opening), Some(last)) = (&run.opening, run.segment) {
            let first = self.segments.map_or(opening.segment, |(first, _)| first);
            self.segments = Some((first, last));
        }
        if let (Some((first, _)), Some(end)) = (run.first, run.end) {
            self.seqs = Some((self.seqs.map_or(first, |(first, _)| first), end.seq));
        }
        if let Some((from, to)) = run.times {
            self.times = Some((self.times.map_or(from, |(from, _)| from), to));
        }
        self.records += run.records;
        self.checkpoints += run.checkpoints;
        self.signed += run.signed;
        for key in &run.key_ids {
            if !self.key_ids.contains(key) && self.key_ids.len() < MOST_KEPT {
                self.key_ids.push(key.clone());
            }
        }
        take(&mut self.findings, run.findings.clone());
        let count = self.told.count + run.told.count;
        run.told.kept.iter().for_each(|told| self.told.push(told.clone()));
        self.told.count = count;
        if let Some((first, _, rise)) = run.unrecorded {
            let last = before.map_or(0, |(_, last, _)| last);
            self.unrecorded = self.unrecorded.saturating_add(risen(last, first)).saturating_add(rise);
        }
        if run.beyond > 0 {
            self.beyond.push((run.end.map_or(0, |end| end.seq), run.beyond));
        }
    }

    /// Adds what is unbroken; if the segment follows the one before, it is unbroken with it.
    fn stretch(&mut self, run: &Run, is_joined: bool) {
        let mut stretches = run.stretches.iter().copied();
        if is_joined
            && let Some(last) = self.stretches.last_mut()
            && let Some(first) = run.stretches.first()
            && last.to.checked_add(1) == Some(first.from)
        {
            last.to = first.to;
            last.signed = first.signed.or(last.signed);
            stretches.next();
        }
        self.stretches.extend(stretches);
    }

    /// Looks at the end: whether the log came as far as it is known to have come.
    fn ends(&mut self, last: &Run, anchors: &Anchors, is_met: bool) {
        let Some((seq, _)) = anchors.of(self.log).last() else { return };
        self.anchor = Some((*seq, is_met));
        if let Some(end) = last.end.filter(|end| *seq > end.seq) {
            let place = Place { file: last.file, line: last.last_line, seq: Some(end.seq) };
            self.findings.push(Finding { place: Some(place), fault: Fault::CutOff { seq: *seq } });
        }
    }
}

/// Whether the records of the one go on in the other.
fn is_joined(before: &Run, run: &Run) -> bool {
    let (Some(end), Some((seq, prev))) = (before.end, run.first) else { return false };
    end.seq.checked_add(1) == Some(seq) && end.hash == prev
}
