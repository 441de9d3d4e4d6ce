//! `audit tail`: the last decisions of a log, one line each, as a person wants to read them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use serde::Deserialize;

use super::super::CliError;
use super::super::Exit;
use super::super::colour;
use super::files;
use super::plain;
use crate::record::chain::Sealed;
use crate::record::verify::MOST_LINE;

/// How often a log is looked at for more.
const LOOK: Duration = Duration::from_millis(200);

/// Bytes from the end of a file in which its last lines are looked for first; then twice as many, and so on.
const FIRST_LOOK: u64 = 256 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar audit tail decisions.ndjson                       the last 20 decisions
  dpa-sidecar audit tail -f --action denied decisions.ndjson    denials as they come
  dpa-sidecar audit tail -n 100 --customer redwood-strand decisions.ndjson
  kubectl logs -f POD | dpa-sidecar audit tail -f               a log on standard output

Columns: time, action, reason (and how many more) or authority, caller, customer, purpose,
operation, the end of the decision id, route. `explain ID --log FILE` says why. Without a filter
also what happened to the log, and requests that did not complete.

It reads and does not verify: see `audit verify`.

Exit codes: 0 read to its end, 2 not (usage, unreadable file).")]
pub(super) struct Arguments {
    /// The segment that is written, or `-` for standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    path: PathBuf,
    /// Go on as decisions are made, also in the segments that come after.
    #[arg(short, long)]
    follow: bool,
    /// How many of those that are there already.
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    lines: u32,
    #[command(flatten)]
    filter: Filter,
}

/// Which decisions are shown.
#[derive(Debug, clap::Args)]
struct Filter {
    /// Only those about this customer.
    #[arg(long, value_name = "ID")]
    customer: Option<String>,
    /// Only those with this reason, first or not.
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Only those with this action.
    #[arg(long)]
    action: Option<Action>,
    /// Only those of this caller.
    #[arg(long, value_name = "ID")]
    caller: Option<String>,
    /// Only those where data goes to this subprocessor.
    #[arg(long, value_name = "ID")]
    subprocessor: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Permitted and forwarded.
    Allowed,
    /// Refused.
    Denied,
    /// Denied, and forwarded all the same.
    Observed,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Observed => "observed",
        }
    }
}

/// What is read of a record.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Record {
    event: String,
    what: String,
    time: Option<Timestamp>,
    decision_id: String,
    action: String,
    outcome: String,
    status: Option<u16>,
    reason: Option<String>,
    reasons: Vec<Reason>,
    authority: Option<String>,
    caller_id: Option<String>,
    customer_id: Option<String>,
    recipient: Recipient,
    purpose: Option<String>,
    operation: Option<String>,
    route: Option<String>,
    refused: Option<u64>,
    lost_bytes: Option<u64>,
    policy: Policy,
    why: Option<String>,
    offered: Option<Policy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reason {
    code: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Recipient {
    r#type: String,
    id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Policy {
    name: String,
    revision: u64,
}

impl Filter {
    fn is_open(&self) -> bool {
        let Self { customer, reason, action, caller, subprocessor } = self;
        action.is_none() && [customer, reason, caller, subprocessor].iter().all(|it| it.is_none())
    }

    fn takes(&self, record: &Record) -> bool {
        let Self { customer, reason, action, caller, subprocessor } = self;
        let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let is_recipient =
            |id: &String| record.recipient.type_is_subprocessor() && record.recipient.id.as_ref() == Some(id);
        is(customer, &record.customer_id)
            && is(caller, &record.caller_id)
            && action.is_none_or(|action| action.as_str() == record.action)
            && reason.as_ref().is_none_or(|wanted| record.reasons.iter().any(|reason| reason.code == *wanted))
            && subprocessor.as_ref().is_none_or(is_recipient)
    }
}

impl Recipient {
    fn type_is_subprocessor(&self) -> bool {
        self.r#type == "subprocessor"
    }
}

/// Makes a line of a record.
struct Lines<'a> {
    filter: &'a Filter,
    has_colour: bool,
    /// The number of the last record.
    seq: u64,
    /// Lines that are no records.
    passed_over: u64,
    /// Records that were not seen.
    missed: u64,
}

impl Lines<'_> {
    /// The line for a person, if it is shown at all.
    fn line(&mut self, line: &[u8]) -> Option<String> {
        if line.is_empty() {
            return None;
        }
        let record = serde_json::from_slice::<Record>(line).ok().filter(|record| record.event.starts_with("dpa."));
        let Some(record) = record else {
            self.passed_over += 1;
            return None;
        };
        if let Some(sealed) = Sealed::read(line) {
            // After a file was cut or written anew, what was shown is not shown again.
            if sealed.seq <= self.seq && sealed.seq != 1 {
                return None;
            }
            if self.seq > 0 && sealed.seq > self.seq + 1 {
                self.missed += sealed.seq - self.seq - 1;
            }
            self.seq = sealed.seq;
        }
        match record.event.as_str() {
            "dpa.decision" if self.filter.takes(&record) => Some(self.decision(&record)),
            "dpa.outcome" if self.filter.is_open() && record.outcome != "completed" => {
                let status = record.status.map_or_else(String::new, |status| format!("status {status}"));
                Some(self.columns(&record, "33", &record.outcome, &status, short(&record.decision_id)))
            }
            "dpa.log" if self.filter.is_open() && record.what != "opened" && record.what != "retention" => {
                let detail = match (record.lost_bytes, record.refused) {
                    (Some(bytes), _) => format!("{}: a torn end of {bytes} bytes was cut", record.what),
                    (_, Some(refused)) => format!("{}: {refused} requests were refused meanwhile", record.what),
                    (None, None) => record.what.clone(),
                };
                Some(self.event(&record, "log", &detail))
            }
            "dpa.policy" if self.filter.is_open() => {
                let shown = |Policy { name, revision }: &Policy| format!("{name} revision {revision}");
                let stays = match record.policy.name.is_empty() {
                    true => "nothing starts".to_owned(),
                    false => format!("{} stays", shown(&record.policy)),
                };
                let detail = match (record.why.as_deref(), &record.offered) {
                    (Some(why), Some(offered)) => format!("{}, {why}; {stays}", shown(offered)),
                    (Some(why), None) => format!("{why}; {stays}"),
                    (None, _) => shown(&record.policy),
                };
                Some(self.event(&record, "policy", &format!("{} {detail}", record.what)))
            }
            _ => None,
        }
    }

    fn decision(&self, record: &Record) -> String {
        let colour = match record.action.as_str() {
            "allowed" => "32",
            "denied" => "31",
            _ => "33",
        };
        let reason = record.reason.as_deref().or(record.authority.as_deref()).unwrap_or("-");
        let more = record.reasons.len().saturating_sub(1);
        let why = if more > 0 { format!("{reason} +{more}") } else { reason.to_owned() };
        self.columns(record, colour, &record.action, &why, short(&record.decision_id))
    }

    fn columns(&self, record: &Record, colour: &str, action: &str, why: &str, id: &str) -> String {
        let word = |word: &Option<String>, width| fitted(word.as_deref().unwrap_or("-"), width);
        let line = format!(
            "{}  {}  {}  {}  {}  {}  {}  {}  {}",
            time(record),
            self.paint(colour, &fitted(action, 13)),
            fitted(why, 30),
            word(&record.caller_id, 18),
            word(&record.customer_id, 18),
            word(&record.purpose, 22),
            word(&record.operation, 9),
            fitted(id, 12),
            plain(record.route.as_deref().unwrap_or("-")),
        ) + &sent_to(record);
        line.trim_end().to_owned()
    }

    fn event(&self, record: &Record, what: &str, detail: &str) -> String {
        format!("{}  {}  {}", time(record), self.paint("36", &fitted(what, 13)), plain(detail))
    }

    fn paint(&self, code: &str, word: &str) -> String {
        if self.has_colour { format!("\u{1b}[{code}m{word}\u{1b}[0m") } else { word.to_owned() }
    }
}

/// To whom the service sent it, if it did.
fn sent_to(record: &Record) -> String {
    let id = record.recipient.id.as_ref().filter(|id| record.caller_id.as_ref() != Some(*id));
    id.map_or_else(String::new, |id| format!(" → {}", plain(id)))
}

fn time(record: &Record) -> String {
    record.time.map_or_else(|| fitted("-", 24), |time| format!("{time:.3}"))
}

/// The end of an id: its beginning is the time.
fn short(id: &str) -> &str {
    id.rsplit('-').next().unwrap_or(id)
}

/// A word in a column of this width; of a longer one the end, which tells ids apart.
fn fitted(word: &str, width: usize) -> String {
    let word = plain(word);
    let length = word.chars().count();
    if length <= width {
        return format!("{word:width$}");
    }
    let end: String = word.chars().skip(length.saturating_sub(width.saturating_sub(1))).collect();
    format!("…{end}")
}

pub(super) fn tail(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    let failed = |source| CliError::Log { path: arguments.path.clone(), source };
    let has_colour = colour(&io::stdout());
    let mut lines = Lines { filter: &arguments.filter, has_colour, seq: 0, passed_over: 0, missed: 0 };
    let most = usize::try_from(arguments.lines).unwrap_or(usize::MAX);
    let is_file = std::fs::metadata(&arguments.path).map_or(arguments.follow, |data| data.is_file());
    if arguments.path.as_os_str() == "-" || !is_file {
        let mut reader = files::open(&arguments.path).map_err(failed)?;
        stream(&mut reader, &mut lines, arguments.follow, most, out).map_err(failed)??;
        told(&mut lines, err)?;
        return Ok(Exit::Yes);
    }
    if arguments.follow && !arguments.path.exists() {
        writeln!(err, "`{}` is not there yet: waiting for it", arguments.path.display())?;
        while !arguments.path.exists() {
            std::thread::sleep(LOOK);
        }
    }
    let mut file = File::open(&arguments.path).map_err(failed)?;
    let (shown, mut rest) = last_lines(&mut file, &mut lines, most).map_err(failed)?;
    for line in shown {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    told(&mut lines, err)?;
    if !arguments.follow {
        return Ok(Exit::Yes);
    }
    loop {
        let read = more(&mut file, &mut rest, &mut lines, out).map_err(failed)??;
        told(&mut lines, err)?;
        if read {
            continue;
        }
        // Once there is nothing more in this file, and another one has its name, there never will be.
        match another(&arguments.path, &mut file).map_err(failed)? {
            Some(next) => {
                while more(&mut file, &mut rest, &mut lines, out).map_err(failed)?? {}
                (file, rest) = (next, Vec::new());
            }
            None => std::thread::sleep(LOOK),
        }
    }
}

/// Says what was passed over.
fn told(lines: &mut Lines<'_>, err: &mut dyn Write) -> io::Result<()> {
    match std::mem::take(&mut lines.passed_over) {
        0 => {}
        1 => writeln!(err, "1 line that is no record was passed over")?,
        count => writeln!(err, "{count} lines that are no records were passed over")?,
    }
    match std::mem::take(&mut lines.missed) {
        0 => Ok(()),
        count => {
            writeln!(err, "{count} records are missing before this, or are in segments that were closed meanwhile")
        }
    }
}

/// The last lines of what can be read only once; all of them as they come, if it is followed.
fn stream(
    reader: &mut impl BufRead,
    lines: &mut Lines<'_>,
    follow: bool,
    most: usize,
    out: &mut dyn Write,
) -> io::Result<io::Result<()>> {
    let mut last = VecDeque::new();
    let mut line = Vec::new();
    while bounded_line(reader, &mut line)? > 0 {
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let Some(shown) = lines.line(text) else { continue };
        if follow {
            if let Err(error) = writeln!(out, "{shown}").and_then(|()| out.flush()) {
                return Ok(Err(error));
            }
            continue;
        }
        last.push_back(shown);
        if last.len() > most {
            last.pop_front();
        }
    }
    Ok(last.iter().try_for_each(|line| writeln!(out, "{line}")))
}

/// Reads a line with its line break; of one that is too long, its beginning, which is no record.
fn bounded_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    let most = u64::try_from(MOST_LINE).unwrap_or(u64::MAX);
    let count = Read::take(&mut *reader, most).read_until(b'\n', line)?;
    if count == MOST_LINE && line.last() != Some(&b'\n') {
        reader.skip_until(b'\n')?;
    }
    Ok(count)
}

/// The last lines of a file, and the beginning of one that is not finished. The file stands at its end then.
fn last_lines(file: &mut File, lines: &mut Lines<'_>, most: usize) -> io::Result<(VecDeque<String>, Vec<u8>)> {
    let length = file.metadata()?.len();
    let mut look = FIRST_LOOK;
    loop {
        let start = length.saturating_sub(look);
        let mut last = VecDeque::new();
        let (mut rest, mut line) = (Vec::new(), Vec::new());
        (lines.seq, lines.passed_over, lines.missed) = (0, 0, 0);
        file.seek(SeekFrom::Start(start))?;
        let mut reader = BufReader::new(Read::take(&mut *file, length - start));
        if start > 0 {
            reader.skip_until(b'\n')?;
        }
        while bounded_line(&mut reader, &mut line)? > 0 {
            let Some(text) = line.strip_suffix(b"\n") else {
                rest.clone_from(&line);
                continue;
            };
            last.extend(lines.line(text));
            if last.len() > most {
                last.pop_front();
            }
        }
        if start == 0 || last.len() >= most {
            file.seek(SeekFrom::Start(length))?;
            return Ok((last, rest));
        }
        look = look.saturating_mul(2);
    }
}

/// Shows what was added to a file. Whether there was anything.
fn more(
    file: &mut File,
    rest: &mut Vec<u8>,
    lines: &mut Lines<'_>,
    out: &mut dyn Write,
) -> io::Result<io::Result<bool>> {
    let mut chunk = vec![0; 64 * 1024];
    let count = file.read(&mut chunk)?;
    rest.extend_from_slice(chunk.get(..count).unwrap_or_default());
    let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
    let shown: Vec<String> = {
        let all = rest.get(..whole).unwrap_or_default();
        all.split(|byte| *byte == b'\n').filter_map(|line| lines.line(line)).collect()
    };
    rest.drain(..whole);
    if rest.len() > MOST_LINE {
        rest.clear();
        lines.passed_over += 1;
    }
    let written = shown.iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush());
    Ok(written.map(|()| count > 0))
}

/// Another file under this name, or this one from its beginning if it became shorter.
fn another(path: &Path, file: &mut File) -> io::Result<Option<File>> {
    let here = file.metadata()?;
    let there = match std::fs::metadata(path) {
        Ok(there) => there,
        // Between two segments there may be none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if (there.dev(), there.ino()) == (here.dev(), here.ino()) && here.len() >= file.stream_position()? {
        return Ok(None);
    }
    match File::open(path) {
        Ok(next) => Ok(Some(next)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
