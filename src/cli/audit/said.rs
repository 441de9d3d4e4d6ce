//! What was found out about decision logs, in words and as JSON.

use std::io;
use std::io::Write;

use serde::Serialize;

use super::files::Files;
use super::plain;
use crate::record::verify::Anchors;
use crate::record::verify::Finding;
use crate::record::verify::Keys;
use crate::record::verify::judge::LogReport;
use crate::record::verify::judge::Report;
use crate::record::verify::judge::Untold;
use crate::record::verify::run::Happened;

/// Everything that is said.
#[derive(Serialize)]
pub(super) struct Said {
    schema_version: u8,
    verdict: &'static str,
    findings: u64,
    /// The first of them, in the order of files and lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<SaidFinding>,
    logs: Vec<SaidLog>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    elsewhere: Vec<SaidFinding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passed_over: Vec<String>,
    /// Lines of a stream that are not of a log.
    passed_over_lines: u64,
}

#[derive(Serialize)]
struct SaidLog {
    log: String,
    service: String,
    instance: String,
    files: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<(u64, u64)>,
    records: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seqs: Option<(u64, u64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    checkpoints: u64,
    signed_checkpoints: u64,
    key_ids: Vec<String>,
    /// Records of which a good signature vouches.
    signed_records: Vec<(u64, u64)>,
    proven: Vec<String>,
    not_proven: Vec<String>,
    /// Why nobody could tell whether it is as it was written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_known: Vec<String>,
    told: Vec<String>,
    findings: u64,
    first_findings: Vec<SaidFinding>,
}

#[derive(Clone, Serialize)]
struct SaidFinding {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    code: &'static str,
    message: String,
}

/// Findings of a log that are shown as text.
const MOST_SHOWN: usize = 10;

/// Ranges and events of a log that are named.
const MOST_NAMED: usize = 20;

impl Said {
    pub(super) fn new(report: &Report, files: &Files, keys: &Keys, anchors: Option<&Anchors>) -> Self {
        let finding = |finding: &Finding| SaidFinding {
            file: finding.place.and_then(|place| files.found.get(place.file)).map(|it| path(&it.path)),
            line: finding.place.map(|place| place.line),
            seq: finding.place.and_then(|place| place.seq),
            code: finding.fault.code(),
            message: finding.fault.to_string(),
        };
        let elsewhere: Vec<_> = report.strays.kept.iter().map(finding).collect();
        let logs: Vec<_> = report.logs.iter().map(|log| said_log(log, keys, anchors, finding)).collect();
        let first = logs.iter().flat_map(|log| &log.first_findings).chain(&elsewhere).next().cloned();
        Self {
            schema_version: 1,
            verdict: match (report.count(), report.is_unknown()) {
                (0, false) => "as_written",
                (0, true) => "not_known",
                _ => "not_as_written",
            },
            findings: report.count(),
            first,
            logs,
            elsewhere,
            passed_over: files.passed_over.iter().map(|it| path(it)).collect(),
            passed_over_lines: report.foreign,
        }
    }
}

fn path(path: &std::path::Path) -> String {
    plain(&path.to_string_lossy()).into_owned()
}

fn said_log(
    log: &LogReport,
    keys: &Keys,
    anchors: Option<&Anchors>,
    finding: impl Fn(&Finding) -> SaidFinding,
) -> SaidLog {
    let (service, instance) = &log.writer;
    let time = |time: jiff::Timestamp| format!("{time:.6}");
    SaidLog {
        log: log.log.to_string(),
        service: plain(service).into_owned(),
        instance: plain(instance).into_owned(),
        files: log.files,
        segments: log.segments,
        records: log.records,
        seqs: log.seqs,
        from: log.times.map(|(from, _)| time(from)),
        to: log.times.map(|(_, to)| time(to)),
        checkpoints: log.checkpoints,
        signed_checkpoints: log.signed,
        key_ids: log.key_ids.iter().map(|id| plain(id).into_owned()).collect(),
        signed_records: signed(log),
        proven: proven(log, keys),
        not_proven: not_proven(log, keys, anchors),
        not_known: not_known(log),
        told: told(log),
        findings: log.findings.count,
        first_findings: log.findings.kept.iter().map(finding).collect(),
    }
}

fn signed(log: &LogReport) -> Vec<(u64, u64)> {
    log.stretches.iter().filter_map(|stretch| Some((stretch.from, stretch.signed?))).collect()
}

fn records(from: u64, to: u64) -> String {
    if from == to { format!("record {from}") } else { format!("records {from} to {to}") }
}

/// Ranges as words; of many the first.
fn ranges(all: &[(u64, u64)]) -> String {
    let shown = all.iter().take(MOST_NAMED).map(|(from, to)| match from == to {
        true => from.to_string(),
        false => format!("{from} to {to}"),
    });
    let more = if all.len() > MOST_NAMED { " and more" } else { "" };
    let word = if matches!(all, [(from, to)] if from == to) { "record" } else { "records" };
    format!("{word} {}{more}", shown.collect::<Vec<_>>().join(", "))
}

fn proven(log: &LogReport, keys: &Keys) -> Vec<String> {
    let mut said = Vec::new();
    let chained: Vec<(u64, u64)> = log.stretches.iter().map(|stretch| (stretch.from, stretch.to)).collect();
    if !chained.is_empty() {
        let each = match chained.len() {
            1 => "each holds the hash of the one before",
            _ => "within each of these parts, each holds the hash of the one before",
        };
        said.push(format!("{} are one chain: {each}, and its own hash is right", ranges(&chained)));
    }
    let signed = signed(log);
    if !signed.is_empty() {
        let ids: Vec<&str> = keys.0.iter().map(|key| key.id()).collect();
        let checkpoints = if log.signed == 1 { "checkpoint" } else { "checkpoints" };
        said.push(format!(
            "{} are as they were when key {} signed them ({} signed {checkpoints})",
            ranges(&signed),
            ids.join(" or "),
            log.signed
        ));
    }
    if let Some((seq, true)) = log.anchor {
        said.push(format!("the log holds its record {seq}, the newest checkpoint that was kept elsewhere"));
    }
    said
}

fn not_proven(log: &LogReport, keys: &Keys, anchors: Option<&Anchors>) -> Vec<String> {
    let mut said = Vec::new();
    for (from, to, why) in &log.untold {
        let why = match why {
            Untold::Retention => "removed in their time, as the log says (`keep`): what they said is not known here",
            // See `not_known`.
            Untold::RetentionUnsigned => continue,
            Untold::NotGiven => "not looked at: only one segment was given",
        };
        said.push(format!("{}: {why}", records(*from, *to)));
    }
    if keys.0.is_empty() {
        let key = match log.key_ids.as_slice() {
            [] => "its checkpoints are not signed".to_owned(),
            ids => format!("signatures were not checked: give --key with the public half of {}", ids.join(" and ")),
        };
        said.push(format!("who wrote it: whoever can write the files could have made the whole chain anew; {key}"));
    } else {
        let rest: Vec<(u64, u64)> = log
            .stretches
            .iter()
            .map(|stretch| (stretch.signed.map_or(stretch.from, |signed| signed + 1), stretch.to))
            .filter(|(from, to)| from <= to)
            .collect();
        if !rest.is_empty() {
            let after =
                if log.signed == 0 { "no signature vouches for them" } else { "no signed checkpoint after them" };
            said.push(format!("{}: {after}; whoever can write the files could have rewritten them", ranges(&rest)));
        }
    }
    match (log.anchor, anchors) {
        (Some((seq, true)), _) => said.push(format!("that nothing is cut off behind record {seq}")),
        (Some((_, false)), _) => {}
        (None, Some(_)) => said.push("that the end is there: what was kept elsewhere has no checkpoint of this log".to_owned()),
        (None, None) => said.push(
            "that the end is there: a cut end, or an older copy put back, is seen only with --checkpoint and a checkpoint kept elsewhere"
                .to_owned(),
        ),
    }
    said
}

fn not_known(log: &LogReport) -> Vec<String> {
    let mut said = Vec::new();
    for (from, to, why) in &log.untold {
        if *why == Untold::RetentionUnsigned {
            said.push(format!(
                "{}: the log says that they were removed in their time (`keep`), and no signed checkpoint vouches for \
                 it; if it is just being written, look again once there is one",
                records(*from, *to)
            ));
        }
    }
    let begins = log.seqs.map_or(0, |(from, _)| from);
    match log.anchor {
        Some((seq, false)) if seq < begins => said.push(format!(
            "whether this is the log of which record {seq} was kept elsewhere: it begins with record {begins}, and a \
             newer checkpoint would show it"
        )),
        Some((seq, false)) => said.push(format!(
            "whether this is the log of which record {seq} was kept elsewhere: it does not hold that record"
        )),
        Some((_, true)) | None => {}
    }
    said
}

fn told(log: &LogReport) -> Vec<String> {
    let mut said = Vec::new();
    for told in log.told.kept.iter().take(MOST_NAMED) {
        let what = match told.what {
            Happened::Torn { lost_bytes } => format!("a torn end of {lost_bytes} bytes was cut after a crash"),
            Happened::Lost => "the log could not be written from here".to_owned(),
            Happened::Regained { refused } => {
                format!("it could be written again; {refused} requests were refused for it")
            }
        };
        said.push(format!("record {}, {:.0}: {what}", told.seq, told.time));
    }
    let more = log.told.count.saturating_sub(u64::try_from(said.len()).unwrap_or(u64::MAX));
    if more > 0 {
        said.push(format!("{more} more of these events"));
    }
    if log.unrecorded > 0 {
        said.push(format!(
            "up to {} requests were let through before their record was there (`on_failure: allow`, or observe); it \
             may have come later, or never",
            log.unrecorded
        ));
    }
    for (seq, lines) in log.beyond.iter().take(MOST_NAMED) {
        said.push(format!(
            "behind record {seq}, {lines} lines at the end of a segment are not of the log: a sync failed, and the log \
             goes on without them; do not read them as records"
        ));
    }
    if let Some(bytes) = log.unfinished {
        said.push(format!(
            "the last line is not finished ({bytes} bytes): it is just being written, a crash tore it, or somebody cut \
             it; what it was, and whether a request was forwarded for it, is not known"
        ));
    }
    said
}

impl Said {
    pub(super) fn print(&self, out: &mut dyn Write, colour: bool) -> io::Result<()> {
        let paint = |code: &str, word: &str| match colour {
            true => format!("\u{1b}[{code}m{word}\u{1b}[0m"),
            false => word.to_owned(),
        };
        for log in &self.logs {
            writeln!(out, "{}", paint("1", &format!("log {}", log.log)))?;
            writeln!(out, "  written by  service {}, instance {}", log.service, log.instance)?;
            let files = if log.files == 1 { "file" } else { "files" };
            let segments = log.segments.map(|(first, last)| match first == last {
                true => format!(", segment {first}"),
                false => format!(", segments {first} to {last}"),
            });
            let seqs = log.seqs.map(|(from, to)| format!(", {}", records(from, to))).unwrap_or_default();
            writeln!(out, "  holds       {} {files}{}{seqs}", log.files, segments.unwrap_or_default())?;
            if let (Some(from), Some(to)) = (&log.from, &log.to) {
                writeln!(out, "  time        {from} to {to}")?;
            }
            for finding in log.first_findings.iter().take(MOST_SHOWN) {
                finding.print(out, &paint("31", "WRONG"))?;
            }
            let shown = u64::try_from(log.first_findings.len().min(MOST_SHOWN)).unwrap_or(u64::MAX);
            if log.findings > shown {
                writeln!(out, "              and {} more", log.findings - shown)?;
            }
            list(out, &paint("32", "proven"), "proven", &log.proven)?;
            list(out, &paint("33", "not proven"), "not proven", &log.not_proven)?;
            list(out, &paint("33", "not known"), "not known", &log.not_known)?;
            list(out, "log says", "log says", &log.told)?;
            writeln!(out)?;
        }
        for finding in &self.elsewhere {
            finding.print(out, &paint("31", "WRONG"))?;
        }
        if !self.passed_over.is_empty() {
            let count = self.passed_over.len();
            let names: Vec<&str> = self.passed_over.iter().take(MOST_NAMED).map(String::as_str).collect();
            let more = if count > MOST_NAMED { " and more" } else { "" };
            writeln!(out, "not part of a log, passed over: {}{more}", names.join(", "))?;
        }
        if self.passed_over_lines > 0 {
            let count = self.passed_over_lines;
            let lines = if count == 1 { "line" } else { "lines" };
            writeln!(out, "not part of a log, passed over: {count} {lines} of a stream")?;
        }
        match &self.first {
            None if self.verdict == "not_known" => {
                let verdict = paint("33", "could not tell");
                writeln!(
                    out,
                    "{verdict}: nothing is wrong with what can be seen, and something is not known that has to be"
                )
            }
            None => writeln!(out, "{}: nothing is wrong with what can be seen", paint("32", "as written")),
            Some(first) => {
                let count = self.findings;
                let findings = if count == 1 { "finding" } else { "findings" };
                let at = first.at();
                let verdict = paint("31", "NOT as written");
                writeln!(out, "{verdict}: {count} {findings}; the first is {at}")
            }
        }
    }
}

fn list(out: &mut dyn Write, shown: &str, word: &str, all: &[String]) -> io::Result<()> {
    for (place, text) in all.iter().enumerate() {
        let pad = " ".repeat(12_usize.saturating_sub(word.len()));
        match place {
            0 => writeln!(out, "  {shown}{pad}{text}")?,
            _ => writeln!(out, "  {:12}{text}", "")?,
        }
    }
    Ok(())
}

impl SaidFinding {
    fn at(&self) -> String {
        let seq = self.seq.map(|seq| format!("record {seq}"));
        match (&self.file, self.line) {
            (Some(file), Some(line)) => {
                format!("{file}:{line}{}", seq.map(|seq| format!(" ({seq})")).unwrap_or_default())
            }
            _ => seq.unwrap_or_else(|| "in what was kept elsewhere".to_owned()),
        }
    }

    fn print(&self, out: &mut dyn Write, shown: &str) -> io::Result<()> {
        writeln!(out, "  {shown}       {} [{}]", self.at(), self.code)?;
        writeln!(out, "              {}", self.message)
    }
}
