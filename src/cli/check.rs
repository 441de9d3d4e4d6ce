//! `check`: says everything that is wrong with a file.

use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::CliError;
use super::Exit;
use super::Output;
use super::colour;
use super::offered::not_followed;
use super::offered::offered;
use super::print_problems;
use crate::config;
use crate::policy::Policy;
use crate::policy::places::Place;
use crate::policy::places::Places;
use crate::policy::problem::Problems;
use crate::policy::problem::Severity;
use crate::policy::problem::Source;
use crate::policy::problem::position;
use crate::policy::terms::Date;
use crate::policy::weakening::Refused;
use crate::record::policy_event::Why;
use crate::reload;
use crate::reload::Gathered;
use crate::reload::Refusal;
use crate::yaml;
use crate::yaml::At;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar check policy.yaml
  dpa-sidecar check sidecar.yaml -o json
  dpa-sidecar check policy.yaml --at 2027-01-01    warn of what will have ended by then
  dpa-sidecar check policy.yaml --against agreed.yaml    what is weaker than was agreed, and nobody consented to
  cat policy.yaml | dpa-sidecar check -

Exit codes: 0 nothing is wrong (warnings aside), 1 something is, 2 a file cannot be read, or the one of `--against`
cannot be used.")]
pub(super) struct Arguments {
    /// sidecar.yaml or policy.yaml, told apart by content; `-` is standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// From when to look for what ends soon [default: now].
    #[arg(long)]
    at: Option<Date>,
    /// The last agreed policy: what is weaker since needs a consent, a notice or an instruction on record.
    #[arg(long, value_name = "BASELINE")]
    against: Option<PathBuf>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Most problems of a file in JSON.
const MAX_LISTED: usize = 1_000;

/// What was found in the files that belong together.
struct Checked {
    sources: Vec<Source>,
    problems: Problems,
    /// What was loaded, if it can be used.
    loaded: Option<String>,
    /// The policy, if it is one.
    policy: Option<Policy>,
    /// What it was held against.
    baseline: Option<String>,
    /// What of it is weaker than the baseline, and not agreed.
    refused: Vec<Refused>,
}

#[derive(Serialize)]
struct Found<'a> {
    schema_version: u8,
    problems: Vec<FoundProblem<'a>>,
    /// With `--against`, or `policy.baseline`: what is weaker and not agreed.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Vec<FoundRefused<'a>>>,
}

#[derive(Serialize)]
struct FoundRefused<'a> {
    path: &'a str,
    kind: &'static str,
    text: &'a str,
    /// Whose word is missing; nobody's: only a notice can stand for it.
    customers: &'a [String],
    missing: &'a str,
    example: &'a str,
}

#[derive(Serialize)]
struct FoundProblem<'a> {
    path: &'a str,
    line: usize,
    column: usize,
    severity: &'static str,
    code: &'static str,
    message: &'a str,
    help: &'a str,
}

pub(super) fn check(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    let now = arguments.at.map_or_else(Timestamp::now, Date::begins);
    let look_out = Some(now);
    let baseline = match &arguments.against {
        None => None,
        Some(path) => {
            let source = reload::read(path)?;
            let loaded = reload::compile(source.clone(), None, None);
            if loaded.policy.is_none() {
                print_problems(err, &loaded.problems, &loaded.sources, colour(&std::io::stderr()))?;
                return Ok(Exit::Unable);
            }
            Some(source)
        }
    };
    let mut all: Vec<Checked> = Vec::new();
    let mut unreadable = Vec::new();
    for path in &arguments.files {
        match check_file(path, look_out) {
            Ok(checked) => all.extend(checked),
            Err(error) => unreadable.push(error),
        }
    }
    for checked in &mut all {
        if let Some(agreed) = &baseline {
            checked.hold_against(agreed, now);
        }
    }
    match arguments.output {
        Output::Json => {
            let problems = all.iter().flat_map(found).collect();
            let is_held_against = all.iter().any(|checked| checked.baseline.is_some());
            let refused = is_held_against.then(|| all.iter().flat_map(found_refused).collect());
            serde_json::to_writer_pretty(&mut *out, &Found { schema_version: 1, problems, refused })
                .map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        Output::Text => {
            for checked in &all {
                print_problems(out, &checked.problems, &checked.sources, colour(&std::io::stdout()))?;
                let path = checked.sources.first().map_or("", |source| source.path.as_str());
                match &checked.loaded {
                    Some(what) => writeln!(out, "{path}: ok: {what}")?,
                    None => {
                        let is_error = |problem: &&crate::policy::problem::Problem| problem.severity == Severity::Error;
                        let count = checked.problems.0.iter().filter(is_error).count();
                        let at_least = if count < yaml::MOST_FAULTS { "" } else { "at least " };
                        writeln!(out, "{path}: {at_least}{count} error{}", if count == 1 { "" } else { "s" })?;
                    }
                }
                if let Some(baseline) = &checked.baseline {
                    print_refused(path, baseline, &checked.refused, out)?;
                }
            }
        }
    }
    for error in &unreadable {
        writeln!(err, "error: {}", crate::telemetry::chain(error))?;
    }
    if !unreadable.is_empty() {
        return Ok(Exit::Unable);
    }
    let bad = all.iter().any(|checked| checked.problems.has_errors() || !checked.refused.is_empty());
    Ok(if bad { Exit::No } else { Exit::Yes })
}

fn found(checked: &Checked) -> impl Iterator<Item = FoundProblem<'_>> {
    checked.problems.0.iter().take(MAX_LISTED).filter_map(|problem| {
        let source = checked.sources.get(usize::from(problem.at.file))?;
        let (line, column) = position(&source.text, problem.at.start);
        Some(FoundProblem {
            path: &source.path,
            line,
            column,
            severity: problem.severity.as_str(),
            code: problem.code.as_str(),
            message: &problem.message,
            help: &problem.help,
        })
    })
}

fn found_refused(checked: &Checked) -> impl Iterator<Item = FoundRefused<'_>> {
    let path = checked.sources.first().map_or("", |source| source.path.as_str());
    checked.refused.iter().map(move |Refused { change, customers, missing, example }| FoundRefused {
        path,
        kind: change.kind.as_str(),
        text: &change.text,
        customers,
        missing,
        example,
    })
}

/// Customers that a line names; of more the number is told.
const MOST_NAMED: usize = 10;

impl Checked {
    /// Holds the policy, if it is one, against another file, as a load would.
    fn hold_against(&mut self, agreed: &Source, now: Timestamp) {
        let (Some(new), Some(first)) = (&self.policy, self.sources.first()) else { return };
        // The name of the file counts for the digest: it is that of another folder, or of another revision.
        let agreed_then = Gathered::around(agreed.clone()).called(Path::new(&first.path)).compile(None, None);
        let Some(old) = agreed_then.policy else { return };
        let refusal = reload::held_against(new, &old, now).err();
        if let Some(problem) = refusal.as_ref().and_then(|it| not_followed(it, self.place(it))) {
            self.problems.push(problem);
            self.loaded = None;
            return;
        }
        self.baseline = Some(agreed.path.clone());
        self.refused = refusal.map_or(Vec::new(), |refusal| refusal.weaker);
    }

    /// Where the name or the revision stands that is refused.
    fn place(&self, refusal: &Refusal) -> At {
        let key = if refusal.why == Why::Name { "name" } else { "revision" };
        let place = Place::Key(vec!["metadata".to_owned(), key.to_owned()]);
        Places::new(&self.sources).at(&place).unwrap_or_default()
    }
}

/// What is weaker and not agreed, and what would have to be on record.
pub(super) fn print_refused(path: &str, baseline: &str, all: &[Refused], out: &mut dyn Write) -> std::io::Result<()> {
    if all.is_empty() {
        return writeln!(out, "{path}: all that is weaker than {baseline} is agreed");
    }
    for Refused { change, customers, missing, example } in all {
        let named: Vec<&str> = customers.iter().take(MOST_NAMED).map(String::as_str).collect();
        let more = customers.len().saturating_sub(MOST_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        writeln!(out, "{path}: not agreed: {}", change.text)?;
        if !customers.is_empty() {
            writeln!(out, "  for {}{more}", named.join(", "))?;
        }
        writeln!(out, "  needs {missing}, such as:")?;
        for line in example.lines() {
            writeln!(out, "    {line}")?;
        }
    }
    let plural = if all.len() == 1 { "change is" } else { "changes are" };
    writeln!(out, "{path}: {} {plural} weaker than {baseline} and not agreed", all.len())
}

/// Whether a text is a sidecar.yaml: it has a key that only such a file has.
fn is_settings(text: &str) -> bool {
    let only_there = ["listeners", "upstreams", "routes", "decision_log", "service"];
    yaml::read_entries(text, 0, "customers", &mut drop)
        .is_ok_and(|root| only_there.iter().any(|key| root.get(key).is_some()))
}

fn check_file(path: &Path, look_out: Option<Timestamp>) -> Result<Vec<Checked>, CliError> {
    let source = reload::read(path)?;
    if !is_settings(&source.text) {
        return Ok(vec![check_policy(reload::compile(source, None, look_out))]);
    }
    let (settings, mut problems) = config::compile(&source, &config::environment);
    let mut checked = Vec::new();
    if let Some(settings) = &settings {
        problems.0.extend(settings.read_keys().0);
        problems.0.extend(settings.check_files(look_out.unwrap_or_default()).0);
        let mut offered = offered(settings, look_out, look_out.unwrap_or_default(), &mut problems);
        let loaded = offered.loaded.take();
        checked.extend(loaded.map(check_policy));
        if let (Some(checked), Some(baseline)) = (checked.last_mut(), &settings.policy.baseline) {
            let weaker = offered.refusal.map_or(Vec::new(), |refusal| refusal.weaker);
            checked.baseline =
                (offered.is_held_against || !weaker.is_empty()).then(|| baseline.value.display().to_string());
            checked.refused = weaker;
        }
    }
    let loaded = settings.filter(|_| !problems.has_errors()).map(|settings| {
        let routes = settings.routes.all().len();
        format!(
            "{} listener(s), {} upstream(s), {routes} route(s) and probe(s)",
            settings.listeners.len(),
            settings.upstreams.len()
        )
    });
    checked.insert(
        0,
        Checked { sources: vec![source], problems, loaded, policy: None, baseline: None, refused: Vec::new() },
    );
    Ok(checked)
}

fn check_policy(loaded: reload::Loaded) -> Checked {
    let reload::Loaded { sources, policy, problems } = loaded;
    let what =
        policy.as_ref().map(|policy| format!("{} revision {}, {}", policy.name, policy.revision, policy.counts()));
    Checked { sources, problems, loaded: what, policy, baseline: None, refused: Vec::new() }
}
