//! `coverage`: what settings and policy do about each obligation of the agreement, and what they do not.

mod found;
mod page;
mod said;

use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use clap::ValueEnum;
use jiff::Timestamp;

use self::found::Service;
use self::said::Said;
use self::said::SaidService;
use super::CliError;
use super::Exit;
use super::colour;
use super::offered::offered;
use super::print_problems;
use crate::config;
use crate::config::Settings;
use crate::policy::Policy;
use crate::policy::terms::Date;
use crate::reload;
use crate::signature::hex;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar coverage sidecar.yaml
  dpa-sidecar coverage api/sidecar.yaml insights/sidecar.yaml    several services in one report
  dpa-sidecar coverage sidecar.yaml -o html > coverage.html      a page to keep and to print
  dpa-sidecar coverage sidecar.yaml -o json | jq -r '.obligations[] | select(.status == \"not_met\").obligation'
  dpa-sidecar coverage sidecar.yaml --at 2027-01-01              as of another day

enforced: what breaks it is blocked. gated: a change that would weaken it is held back. recorded: there is evidence.
observed: what breaks it passes, and is written down. not met: something is missing, and the report says what.

Exit codes: 0 each obligation is enforced, gated or recorded, 1 one is observed or not met, 2 could not tell (a file
that cannot be read, or with which the sidecar would not start).")]
pub(super) struct Arguments {
    /// The settings of each sidecar; the policy is the one that they name. `-` is standard input.
    #[arg(required = true, value_name = "SIDECAR.YAML")]
    files: Vec<PathBuf>,
    /// As of when [default: now].
    #[arg(long, value_name = "DATE")]
    at: Option<Date>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The form of the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
    /// One page that needs nothing beside it, to keep and to print.
    Html,
}

pub(super) fn coverage(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    let now = arguments.at.map_or_else(Timestamp::now, Date::begins);
    // A report says no more of its time than people read.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let mut loaded = Vec::new();
    for path in &arguments.files {
        let Some(one) = load(path, now, err)? else { return Ok(Exit::Unable) };
        loaded.push(one);
    }
    let services: Vec<SaidService> = loaded
        .iter()
        .map(|(settings, policy, files)| SaidService::new(&Service { settings, policy, now }, files))
        .collect();
    let said = Said::new(services, now);
    match arguments.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &said).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        Output::Text => said.print(out, colour(&std::io::stdout()))?,
        Output::Html => page::print(&said, out)?,
    }
    Ok(if said.is_covered() { Exit::Yes } else { Exit::No })
}

/// A file, by path, and SHA-256 of its bytes.
pub(super) struct Hashed {
    path: String,
    sha256: String,
}

/// Settings with which a sidecar would start, their policy, and the files: the settings first.
fn load(path: &Path, now: Timestamp, err: &mut dyn Write) -> Result<Option<(Settings, Policy, Vec<Hashed>)>, CliError> {
    let source = reload::read(path)?;
    let hashed = |source: &crate::policy::problem::Source| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, source.text.as_bytes());
        Hashed { path: source.path.clone(), sha256: hex(digest.as_ref()) }
    };
    let mut files = vec![hashed(&source)];
    let (settings, mut problems) = config::compile(&source, &config::environment);
    let Some(settings) = settings else {
        print_problems(err, &problems, &[source], colour(&std::io::stderr()))?;
        return Ok(None);
    };
    let offered = offered(&settings, None, now, &mut problems);
    if let Some(loaded) = &offered.loaded {
        files.extend(loaded.sources.iter().map(hashed));
        if loaded.policy.is_none() {
            print_problems(err, &loaded.problems, &loaded.sources, colour(&std::io::stderr()))?;
            return Ok(None);
        }
    }
    if !problems.has_errors()
        && let Some(accepted) = offered.accepted()
    {
        return Ok(Some((settings, accepted.policy, files)));
    }
    print_problems(err, &problems, &[source], colour(&std::io::stderr()))?;
    writeln!(err, "a sidecar does not start with this, so nothing is covered by it")?;
    Ok(None)
}
