//! `diff`: what a change of the policy does, for a person or for a program.

use std::io::Write;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::CliError;
use super::Exit;
use super::Output;
use super::colour;
use super::print_problems;
use super::test::Stated;
use super::test::stated;
use crate::gate::act;
use crate::policy::Enforcement;
use crate::policy::Policy;
use crate::policy::diff::Change;
use crate::policy::diff::Concerns;
use crate::policy::diff::Direction;
use crate::policy::places::Place;
use crate::policy::places::Places;
use crate::policy::terms::Date;
use crate::record::entry::Action;
use crate::reload;
use crate::reload::Loaded;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar diff agreed.yaml policy.yaml
  git show main:policy.yaml | dpa-sidecar diff - policy.yaml
  dpa-sidecar diff agreed.yaml policy.yaml --requests policy-tests.yaml    which of these requests come out otherwise
  dpa-sidecar diff agreed.yaml policy.yaml -o json | jq '.changes[] | select(.direction == \"weaker\")'

Weaker: something passes that did not. Tighter: something passes no longer. Neutral: no decision changes.

Exit codes: 0 nothing is weaker, 1 something is, 2 could not tell (a file that cannot be read or used).")]
pub(super) struct Arguments {
    /// The policy as it was; `-` is standard input.
    old: PathBuf,
    /// The policy as it is to be; `-` is standard input.
    new: PathBuf,
    /// Leaves aside what a change does before this date [default: nothing is left aside].
    #[arg(long, value_name = "DATE")]
    since: Option<Date>,
    /// A file of cases, as for `test`: lists those that come out otherwise. What they expect does not count.
    #[arg(long, value_name = "FILE")]
    requests: Option<PathBuf>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    schema_version: u8,
    old: PolicyShown,
    new: PolicyShown,
    summary: Summary,
    changes: Vec<ChangeShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<Requests>,
}

#[derive(Serialize)]
struct PolicyShown {
    path: String,
    name: String,
    revision: u64,
    digest: String,
}

#[derive(Default, Serialize)]
struct Summary {
    weaker: usize,
    tighter: usize,
    neutral: usize,
}

#[derive(Serialize)]
struct ChangeShown {
    direction: &'static str,
    kind: &'static str,
    /// `all`, `customers` (those below), `unnamed` or `nobody`.
    concerns: &'static str,
    customers: Vec<String>,
    values: Vec<String>,
    text: String,
    old: Option<PlaceShown>,
    new: Option<PlaceShown>,
}

#[derive(Serialize)]
struct PlaceShown {
    path: String,
    line: usize,
    column: usize,
}

#[derive(Serialize)]
struct Requests {
    file: String,
    asked: usize,
    /// Names of cases that amend their policy: they are about another one.
    left_out: Vec<String>,
    flips: Vec<Flip>,
}

/// A request that comes out otherwise.
#[derive(Serialize)]
struct Flip {
    name: String,
    line: usize,
    /// Whether it passes now and did not, or is permitted now and was not.
    direction: &'static str,
    old: Answer,
    new: Answer,
}

#[derive(PartialEq, Serialize)]
struct Answer {
    decision: &'static str,
    action: &'static str,
    reasons: Vec<&'static str>,
}

pub(super) fn diff(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    if arguments.old.as_os_str() == "-" && arguments.new.as_os_str() == "-" {
        return Err(CliError::Usage("`-` can be one of the two policies, not both"));
    }
    let mut old = reload::load(&arguments.old, None, None)?;
    let mut new = reload::load(&arguments.new, None, None)?;
    let (Some(old_policy), Some(new_policy)) = (old.policy.take(), new.policy.take()) else {
        for loaded in [&old, &new].into_iter().filter(|loaded| loaded.problems.has_errors()) {
            print_problems(err, &loaded.problems, &loaded.sources, colour(&std::io::stderr()))?;
        }
        return Ok(Exit::Unable);
    };
    let requests = match &arguments.requests {
        None => None,
        Some(path) => {
            let source = reload::read(path)?;
            match stated(&source, &[&old_policy, &new_policy]) {
                Ok((all, left_out)) => Some(Requests {
                    file: source.path.clone(),
                    asked: all.len(),
                    left_out,
                    flips: all.iter().filter_map(|one| flip(one, &old_policy, &new_policy)).collect(),
                }),
                Err((sources, problems)) => {
                    print_problems(err, &problems, &sources, colour(&std::io::stderr()))?;
                    return Ok(Exit::Unable);
                }
            }
        }
    };
    let since = arguments.since.map(Date::begins);
    let (changes, summary) = changes((&old, &old_policy), (&new, &new_policy), since);
    let exit = if summary.weaker > 0 { Exit::No } else { Exit::Yes };
    let report = Report {
        schema_version: 1,
        old: shown(&old, &old_policy),
        new: shown(&new, &new_policy),
        summary,
        changes,
        requests,
    };
    match arguments.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &report).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        Output::Text => print(&report, new_policy.counts().customers, colour(&std::io::stdout()), out)?,
    }
    Ok(exit)
}

fn shown(loaded: &Loaded, policy: &Policy) -> PolicyShown {
    PolicyShown {
        path: loaded.sources.first().map(|source| source.path.clone()).unwrap_or_default(),
        name: policy.name.to_string(),
        revision: policy.revision,
        digest: policy.digest.to_string(),
    }
}

/// Every change with its places in both policies.
fn changes(old: (&Loaded, &Policy), new: (&Loaded, &Policy), since: Option<Timestamp>) -> (Vec<ChangeShown>, Summary) {
    let (old_places, new_places) = (Places::new(&old.0.sources), Places::new(&new.0.sources));
    let mut changes = crate::policy::diff::diff(old.1, new.1, since);
    changes.extend(crate::policy::diff::rest(&old_places, &new_places, &changes));
    let mut summary = Summary::default();
    let at = |places: &Places<'_>, place: &Place| {
        let (path, line, column) = places.position(places.at(place)?)?;
        Some(PlaceShown { path: path.to_owned(), line, column })
    };
    let shown = changes.into_iter().map(|Change { kind, direction, concerns, values, text, place }| {
        match direction {
            Direction::Weaker => summary.weaker += 1,
            Direction::Tighter => summary.tighter += 1,
            Direction::Neutral => summary.neutral += 1,
        }
        let (concerns, customers) = match concerns {
            Concerns::All => ("all", Vec::new()),
            Concerns::Customers(customers) => ("customers", customers),
            Concerns::Unnamed => ("unnamed", Vec::new()),
            Concerns::Nobody => ("nobody", Vec::new()),
        };
        ChangeShown {
            direction: direction.as_str(),
            kind: kind.as_str(),
            concerns,
            customers,
            values,
            text,
            old: at(&old_places, &place),
            new: at(&new_places, &place),
        }
    });
    (shown.collect(), summary)
}

fn flip(stated: &Stated, old: &Policy, new: &Policy) -> Option<Flip> {
    // One that no policy can read is answered alike by both.
    let (old, new) = (answer(stated, old)?, answer(stated, new)?);
    let is_flip = old.decision != new.decision || old.action != new.action;
    let passes = |answer: &Answer| match (answer.decision, answer.action) {
        ("permit", _) => 2,
        (_, "observed") => 1,
        _ => 0,
    };
    let direction = if passes(&new) > passes(&old) { Direction::Weaker } else { Direction::Tighter }.as_str();
    is_flip.then(|| Flip { name: stated.name.clone(), line: stated.line, direction, old, new })
}

fn answer(stated: &Stated, policy: &Policy) -> Option<Answer> {
    let (_, decision) = stated.asked.weigh(policy, stated.now).ok()?;
    let (_, action) = act(&decision, Enforcement::Enforce);
    Some(Answer {
        decision: decision.as_str(),
        action: action.as_str(),
        reasons: decision.reasons().iter().map(|reason| reason.code.as_str()).collect(),
    })
}

/// Customers that a line names; of more the number is told.
const MOST_NAMED: usize = 10;

/// Groups of customers that a part names; of more the number is told.
const MOST_GROUPS: usize = 200;

fn print(report: &Report, customers: usize, colour: bool, out: &mut dyn Write) -> Result<(), CliError> {
    let Report { old, new, summary, changes, requests, .. } = report;
    for (what, PolicyShown { path, name, revision, .. }) in [("old", old), ("new", new)] {
        writeln!(out, "{what}: {path}, {name} revision {revision}")?;
    }
    let parts = [
        ("weaker", "31", summary.weaker, "something passes that did not"),
        ("tighter", "32", summary.tighter, "something passes no longer"),
        ("neutral", "2", summary.neutral, "no decision changes"),
    ];
    for (direction, paint, count, meaning) in parts.into_iter().filter(|(_, _, count, _)| *count > 0) {
        let mut heading = direction.to_uppercase();
        heading = if colour { format!("\x1b[1;{paint}m{heading}\x1b[0m") } else { heading };
        writeln!(out, "\n{heading}: {meaning} ({count})")?;
        let mut groups: Vec<(String, Vec<&ChangeShown>)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for change in changes.iter().filter(|change| change.direction == direction) {
            let whom = whom(change, customers);
            let at = *places.entry(whom.clone()).or_insert(groups.len());
            if at == groups.len() {
                groups.push((whom, Vec::new()));
            }
            groups.get_mut(at).into_iter().for_each(|(_, group)| group.push(change));
        }
        for (whom, group) in groups.iter().take(MOST_GROUPS) {
            if !whom.is_empty() {
                writeln!(out, "\n  {whom}")?;
            }
            for change in group {
                writeln!(out, "    {}\n      {}: {}", change.text, change.kind, places_of(change))?;
            }
        }
        if groups.len() > MOST_GROUPS {
            writeln!(out, "\n  … and {} more groups; `-o json` has them all", groups.len() - MOST_GROUPS)?;
        }
    }
    if let Some(requests) = requests {
        print_requests(requests, out)?;
    }
    writeln!(out, "\n{} weaker, {} tighter, {} neutral", summary.weaker, summary.tighter, summary.neutral)?;
    Ok(())
}

/// For whom, as a heading.
fn whom(change: &ChangeShown, all: usize) -> String {
    let names = &change.customers;
    match change.concerns {
        "all" => "for every customer, and for requests that name none".to_owned(),
        "unnamed" => "for requests that name no customer of the policy".to_owned(),
        "customers" if names.len() == all && all > 1 => format!("for all {all} customers"),
        "customers" if names.len() > MOST_NAMED => {
            let first: Vec<&str> = names.iter().take(MOST_NAMED).map(String::as_str).collect();
            format!("for {} customers: {}, …", names.len(), first.join(", "))
        }
        "customers" => format!("for {}", names.join(", ")),
        _ => String::new(),
    }
}

fn places_of(change: &ChangeShown) -> String {
    let shown = |place: &Option<PlaceShown>| {
        place
            .as_ref()
            .map_or("not there".to_owned(), |PlaceShown { path, line, column }| format!("{path}:{line}:{column}"))
    };
    format!("{} -> {}", shown(&change.old), shown(&change.new))
}

fn print_requests(Requests { file, asked, left_out, flips }: &Requests, out: &mut dyn Write) -> Result<(), CliError> {
    writeln!(out, "\n{} of the {asked} requests in {file} come out otherwise", flips.len())?;
    for Flip { name, line, direction, old, new } in flips {
        let told = |answer: &Answer| {
            let word = if answer.action == Action::Observed.as_str() {
                format!("{}, observed", answer.decision)
            } else {
                answer.decision.to_owned()
            };
            if answer.reasons.is_empty() { word } else { format!("{word} ({})", answer.reasons.join(", ")) }
        };
        writeln!(out, "  {direction}: {name}\n    {file}:{line}: {} -> {}", told(old), told(new))?;
    }
    if !left_out.is_empty() {
        writeln!(out, "  not asked, since they amend their policy: {}", left_out.join("; "))?;
    }
    Ok(())
}
