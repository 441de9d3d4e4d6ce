//! `replay`: what another policy would have said to the requests of a decision log.

mod count;
mod pieces;
mod said;

use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;

use self::count::Counts;
use self::count::Question;
use self::said::Said;
use super::CliError;
use super::Exit;
use super::Output;
use super::audit::files::Files;
use super::colour;
use super::print_problems;
use super::progress::with_progress;
use crate::policy::Policy;
use crate::policy::terms::Date;
use crate::policy::terms::TermError;
use crate::reload;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar replay /var/lib/dpa-sidecar --policy policy.yaml
  dpa-sidecar replay /var/lib/dpa-sidecar --policy policy.yaml --was agreed.yaml    fewer undecidable requests
  dpa-sidecar replay decisions-000007.ndjson --policy policy.yaml --at 2026-07-01    as if all were asked on that day
  dpa-sidecar replay /var/lib/dpa-sidecar --policy policy.yaml -o json | jq .deny_to_permit.customers
  kubectl logs POD | dpa-sidecar replay - --policy policy.yaml

Nothing is asked but the records. What a record does not say and the policy asks for is not guessed: if the decision
hangs on it, the request is undecidable; with the policy of then (--was), more can be told. Whether the log is as it was written is for `audit verify` to say.

A denial by the service (policy_stale) says nothing of the policy: it is counted apart, and only what the rules say of
the request is compared.

Exit codes: 0 everything comes out as it did, 1 something comes out otherwise, 2 could not tell (usage, a file that
cannot be read or used, or nothing comes out otherwise and something is undecidable, not known or damaged).")]
pub(super) struct Arguments {
    /// Segments, folders of segments, or `-` for standard input.
    #[arg(required = true, value_name = "FILE|DIR")]
    logs: Vec<PathBuf>,
    /// The policy to decide with.
    #[arg(long)]
    policy: PathBuf,
    /// A policy that decided then: what it knew of names and subscribers leaves fewer requests undecidable. Several
    /// times for several.
    #[arg(long, value_name = "FILE")]
    was: Vec<PathBuf>,
    /// When each request counts as asked: `recorded`, at its own time, or a date, all at that time.
    #[arg(long, value_name = "recorded|DATE", default_value = "recorded")]
    at: At,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// When a request counts as asked.
#[derive(Clone, Copy, Debug)]
enum At {
    /// When it was.
    Recorded,
    /// Then.
    Moment(Timestamp),
}

impl FromStr for At {
    type Err = TermError;
    fn from_str(text: &str) -> Result<Self, TermError> {
        if text == "recorded" { Ok(Self::Recorded) } else { text.parse().map(|date: Date| Self::Moment(date.begins())) }
    }
}

/// A policy of then as if its file had the name of the one that decides. Names count for the digest that records have,
/// and what is kept of a policy, to hold another against it, mostly has another name.
fn renamed(then: &Path, policy: &Path) -> Result<Option<Policy>, CliError> {
    let Some(name) = policy.file_name().filter(|name| then.file_name() != Some(name)) else { return Ok(None) };
    let mut source = reload::read(then)?;
    source.path = then.with_file_name(name).display().to_string();
    Ok(reload::compile(source, None, None).policy)
}

pub(super) fn replay(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    let mut policies = Vec::new();
    for path in std::iter::once(&arguments.policy).chain(&arguments.was) {
        let loaded = reload::load(path, None, None)?;
        let Some(policy) = loaded.policy else {
            print_problems(err, &loaded.problems, &loaded.sources, colour(&std::io::stderr()))?;
            return Ok(Exit::Unable);
        };
        policies.push(policy);
    }
    let mut earlier = policies.split_off(1);
    for path in &arguments.was {
        earlier.extend(renamed(path, &arguments.policy)?);
    }
    let Some(policy) = policies.pop() else { return Ok(Exit::Unable) };
    let at = match arguments.at {
        At::Recorded => None,
        At::Moment(moment) => Some(moment),
    };
    let question = Question { policy, earlier, at };
    let files = Files::find(&arguments.logs, None)?;
    if files.found.is_empty() {
        return Err(CliError::Usage("there is no decision log in it: name its file, or the folder that it lies in"));
    }
    let bytes = AtomicU64::new(0);
    let counts: Counts = with_progress(files.size(), &bytes, || pieces::read(&files, &question, &bytes))?;
    if counts.requests == 0 && counts.others == 0 && counts.damaged.count == 0 {
        return Err(CliError::Usage("there is no decision log in it: no line of it is a record"));
    }
    let exit = match (counts.is_otherwise(), counts.is_unsure()) {
        (true, _) => Exit::No,
        (false, true) => Exit::Unable,
        (false, false) => Exit::Yes,
    };
    let path = arguments.policy.display().to_string();
    let said = Said::new(&counts, &files, &path, &question);
    match arguments.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &said).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        Output::Text => said.print(out, colour(&std::io::stdout()))?,
    }
    Ok(exit)
}
