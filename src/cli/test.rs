//! `test`: cases in YAML, each a request and what has to come out, with a fixed clock.
//!
//! A case becomes a request as a door would see it and goes the way of every request: identify,
//! establish, decide.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::de;

use super::CliError;
use super::Exit;
use super::Output;
use super::ask;
use super::ask::Ask;
use super::ask::Asked;
use super::ask::AskedSubscriber;
use super::colour;
use super::print_problems;
use crate::decide::decision::Decision;
use crate::decide::decision::Outcome;
use crate::decide::explain::Names;
use crate::decide::explain::why;
use crate::decide::facts::Customers;
use crate::decide::facts::Fact;
use crate::decide::facts::Facts;
use crate::decide::facts::Source as FactSource;
use crate::decide::facts::Transport;
use crate::decide::facts::Why;
use crate::decide::reason::Code as ReasonCode;
use crate::gate::act;
use crate::policy::Enforcement;
use crate::policy::Policy;
use crate::policy::TlsVersion;
use crate::policy::places::Places;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::problem::Source;
use crate::policy::terms::DataCategory;
use crate::policy::terms::Date;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;
use crate::record::entry::Action;
use crate::reload;
use crate::yaml;
use crate::yaml::List;
use crate::yaml::Node;
use crate::yaml::Spanned;
use crate::yaml::Table;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar test policy-tests.yaml
  dpa-sidecar test policy-tests.yaml --filter residency
  dpa-sidecar test policy-tests.yaml more-tests.yaml --fail-on-empty --min-coverage 90 -o json

Exit codes: 0 every case came out as expected, 1 one did not or too little is covered, 2 a file cannot be read or is no test file.")]
pub(super) struct Arguments {
    /// Files of cases.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Only the cases whose name has this text.
    #[arg(long)]
    filter: Option<String>,
    /// The least share of the reasons, clauses, customers and subprocessors that cases have to show, in percent.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100))]
    min_coverage: Option<u8>,
    /// A file without cases, or without one that the filter leaves, is a finding.
    #[arg(long)]
    fail_on_empty: bool,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: Spanned<u32>,
    policy: Spanned<String>,
    clock: Spanned<Date>,
    #[serde(default)]
    services: Table<Service>,
    #[serde(default)]
    defaults: Defaults,
    cases: List<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    storage_location: Location,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Defaults {
    service: Option<Spanned<String>>,
    operation: Option<Operation>,
    subscriber: Option<Subscriber>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: Spanned<String>,
    at: Option<Date>,
    request: Spanned<Request>,
    amend: Option<Spanned<de::IgnoredAny>>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    customer: Option<OneOrMore>,
    caller: Option<Spanned<String>>,
    purpose: Option<Spanned<String>>,
    data_categories: Option<Vec<DataCategory>>,
    operation: Option<Operation>,
    service: Option<Spanned<String>>,
    subscriber: Option<Subscriber>,
    instruction: Option<Spanned<String>>,
    request_ref: Option<Spanned<String>>,
    location: Option<String>,
    recipient: Option<Spanned<String>>,
    transport: Option<TransportCase>,
    #[serde(default = "yes")]
    mapped: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransportCase {
    tls: Option<TlsVersion>,
    #[serde(default)]
    client_certificate: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    decision: Word,
    action: Option<String>,
    reasons: Option<Vec<String>>,
    kinds: Option<Vec<String>>,
    authority: Option<String>,
    transfer_ref: Option<String>,
    status: Option<u16>,
    records: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Permit,
    Deny,
}

/// One name, or a list of names.
#[derive(Clone)]
struct OneOrMore(Vec<String>, bool);

/// A subscriber, or `{named: false}`: the route takes one, the request names none.
#[derive(Clone)]
enum Subscriber {
    Named(String),
    NotNamed,
}

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> de::Visitor<'de> for Names {
            type Value = OneOrMore;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a name or a list of names")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![name.to_owned()], false))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut names: A) -> Result<OneOrMore, A::Error> {
                let mut all = Vec::new();
                while let Some(name) = names.next_element()? {
                    all.push(name);
                }
                Ok(OneOrMore(all, true))
            }
        }
        deserializer.deserialize_any(Names)
    }
}

impl<'de> Deserialize<'de> for Subscriber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            named: bool,
        }
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Subscriber;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a subscriber, or `{named: false}`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Subscriber, E> {
                Ok(Subscriber::Named(text.to_owned()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Subscriber, A::Error> {
                let Fields { named } = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                if named {
                    return Err(de::Error::custom(
                        "`named` is only ever false\nwrite the subscriber itself: `subscriber: 7c1e`",
                    ));
                }
                Ok(Subscriber::NotNamed)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What came of a case.
#[derive(Serialize)]
struct CaseResult {
    file: String,
    line: usize,
    name: String,
    as_expected: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Difference>,
    /// Of a case that differs: why it was denied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    why: Vec<String>,
}

#[derive(Serialize)]
struct Difference {
    what: &'static str,
    expected: String,
    got: String,
}

#[derive(Serialize)]
struct Report {
    schema_version: u8,
    cases: Vec<CaseResult>,
    coverage: Vec<Coverage>,
}

/// What of something the cases show.
#[derive(Serialize)]
struct Coverage {
    of: &'static str,
    shown: usize,
    all: usize,
    missing: Vec<String>,
}

/// What the cases showed so far, and what there is to show.
#[derive(Default)]
struct Shown {
    reasons: BTreeSet<&'static str>,
    clauses: BTreeSet<&'static str>,
    customers: BTreeSet<String>,
    subprocessors: BTreeSet<String>,
    all_customers: BTreeSet<String>,
    all_subprocessors: BTreeSet<String>,
}

impl Shown {
    fn exists(&mut self, policy: &Policy) {
        self.all_customers.extend(policy.customer_names().map(ToString::to_string));
        self.all_subprocessors.extend(policy.subprocessor_names().map(ToString::to_string));
    }

    fn see(&mut self, facts: &Facts<'_>, decision: &Decision<'_>, policy: &Policy) {
        self.reasons.extend(decision.reasons().iter().map(|reason| reason.code.as_str()));
        self.clauses.extend(decision.reasons().iter().map(|reason| reason.clause));
        let names = Names::of(facts, policy);
        self.customers.extend(names.customer);
        self.subprocessors.extend(names.subprocessor);
    }

    fn coverage(&self) -> Vec<Coverage> {
        fn of<T: Ord + ToString>(what: &'static str, all: &BTreeSet<T>, shown: &BTreeSet<T>) -> Coverage {
            let missing: Vec<String> = all.difference(shown).map(T::to_string).collect();
            Coverage { of: what, shown: all.len() - missing.len(), all: all.len(), missing }
        }
        let reasons = ReasonCode::ALL.iter().map(|code| code.as_str()).collect();
        let clauses = ReasonCode::ALL.iter().map(|code| code.clause().0).collect();
        vec![
            of("reasons", &reasons, &self.reasons),
            of("clauses", &clauses, &self.clauses),
            of("customers", &self.all_customers, &self.customers),
            of("subprocessors", &self.all_subprocessors, &self.subprocessors),
        ]
    }
}

pub(super) fn test(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    let mut results = Vec::new();
    let mut shown = Shown::default();
    let mut is_empty = false;
    for path in &arguments.files {
        let source = reload::read(path)?;
        match run_file(&source, arguments.filter.as_deref(), &mut shown) {
            Ok(cases) => {
                is_empty |= cases.is_empty();
                results.extend(cases);
            }
            Err((sources, problems)) => {
                print_problems(err, &problems, &sources, colour(&std::io::stderr()))?;
                return Ok(Exit::Unable);
            }
        }
    }
    let differing = results.iter().filter(|result| !result.as_expected).count();
    let report = Report { schema_version: 1, cases: results, coverage: shown.coverage() };
    match arguments.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &report).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        Output::Text => print(&report, differing, out)?,
    }
    let least = usize::from(arguments.min_coverage.unwrap_or(0));
    let is_thin = report.coverage.iter().any(|coverage| coverage.shown * 100 < coverage.all * least);
    if is_thin {
        writeln!(err, "the cases show less than {least} percent of something: see the lines on coverage")?;
    }
    if is_empty && arguments.fail_on_empty {
        writeln!(err, "a file has no case to run")?;
    }
    let is_finding = differing > 0 || is_thin || (is_empty && arguments.fail_on_empty);
    Ok(if is_finding { Exit::No } else { Exit::Yes })
}

fn print(report: &Report, differing: usize, out: &mut dyn Write) -> Result<(), CliError> {
    for CaseResult { file, line, name, as_expected, differences, why } in &report.cases {
        if *as_expected {
            writeln!(out, "ok    {name}")?;
            continue;
        }
        writeln!(out, "FAIL  {name}\n      {file}:{line}")?;
        for Difference { what, expected, got } in differences {
            writeln!(out, "      {what}\n        expected: {expected}\n        got:      {got}")?;
        }
        for line in why {
            writeln!(out, "      why: {line}")?;
        }
    }
    let count = report.cases.len();
    let plural = if count == 1 { "" } else { "s" };
    writeln!(out, "\n{count} case{plural}, {differing} not as expected")?;
    for Coverage { of, shown, all, missing } in &report.coverage {
        write!(out, "covers {shown} of {all} {of}")?;
        match missing.as_slice() {
            [] => writeln!(out)?,
            // A policy of thousands is not listed.
            missing if missing.len() > 40 => writeln!(out, ", {} missing", missing.len())?,
            missing => writeln!(out, "; missing: {}", missing.join(", "))?,
        }
    }
    Ok(())
}

type Failed = (Vec<Source>, Problems);

/// The cases of a file, and the tree that their amendments are in.
fn decode(source: &Source) -> Result<(Node, Document), Failed> {
    let mut problems = Problems::default();
    let root = match yaml::read(&source.text, 0) {
        Ok(root) => root,
        Err(faults) => {
            problems.extend_faults(faults);
            return Err((vec![source.clone()], problems));
        }
    };
    let (document, faults) = root.decode::<Document>();
    problems.extend_faults(faults);
    let Some(document) = document.filter(|_| !problems.has_errors()) else {
        return Err((vec![source.clone()], problems));
    };
    if document.version.value != 1 {
        let message = format!("version {} is not known", document.version.value);
        problems.push(Problem::error(Code::Version, document.version.at, message, "write `version: 1`"));
        return Err((vec![source.clone()], problems));
    }
    Ok((root, document))
}

/// A case as a request, for whoever asks other policies than the one that its file names.
pub(super) struct Stated {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) now: Timestamp,
    pub(super) asked: Asked,
}

/// The requests of a file, its expectations left aside. A name may be one of any of the policies; a case that amends
/// its policy is one for another, and left out: its name is in the second list.
pub(super) fn stated(source: &Source, policies: &[&Policy]) -> Result<(Vec<Stated>, Vec<String>), Failed> {
    let (_, document) = decode(source)?;
    let mut problems = Problems::default();
    let (mut all, mut left_out) = (Vec::new(), Vec::new());
    for case in &document.cases.items {
        if case.amend.is_some() {
            left_out.push(case.name.value.clone());
            continue;
        }
        match ask(case, &document, policies).and_then(|ask| ask.asked().map_err(|_| unsayable(case))) {
            Ok(asked) => all.push(Stated {
                name: case.name.value.clone(),
                line: crate::policy::problem::position(&source.text, case.name.at.start).0,
                now: case.at.unwrap_or(document.clock.value).begins(),
                asked,
            }),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.has_errors() { Err((vec![source.clone()], problems)) } else { Ok((all, left_out)) }
}

fn unsayable(case: &Case) -> Problem {
    let help = "write names in printable ASCII, and at most one customer outside a list";
    Problem::error(Code::Case, case.request.at, "no request can say this", help)
}

fn run_file(source: &Source, filter: Option<&str>, shown: &mut Shown) -> Result<Vec<CaseResult>, Failed> {
    let (root, document) = decode(source)?;
    let mut problems = Problems::default();
    let folder = Path::new(&source.path).parent().map(Path::to_path_buf).unwrap_or_default();
    let policy_file = folder.join(&document.policy.value);
    let unreadable = |error: &reload::ReadError| {
        let message = crate::telemetry::chain(error).to_string();
        let help = "name the policy's file; a relative path counts from the folder of this file";
        Problems(vec![Problem::error(Code::Unreadable, document.policy.at, message, help)])
    };
    let loaded = reload::load(&policy_file, None, None).map_err(|error| (vec![source.clone()], unreadable(&error)))?;
    let Some(policy) = loaded.policy else { return Err((loaded.sources, loaded.problems)) };

    shown.exists(&policy);
    let mut results = Vec::new();
    for (case, node) in document.cases.items.iter().zip(case_nodes(&root)) {
        if filter.is_some_and(|text| !case.name.value.contains(text)) {
            continue;
        }
        let amended;
        let mut case_policy = &policy;
        if case.amend.is_some() {
            let loaded = reload::load(&policy_file, node.get("amend"), None);
            let loaded = loaded.map_err(|error| (vec![source.clone()], unreadable(&error)))?;
            amended = match loaded.policy {
                Some(policy) => policy,
                None => {
                    let first = loaded.problems.0.first().map(ToString::to_string).unwrap_or_default();
                    let at = case.amend.as_ref().map_or(case.name.at, |amend| amend.at);
                    let message = format!("the policy is not valid with this amendment: {first}");
                    let help = "amend it with what could stand in a policy file";
                    problems.push(Problem::error(Code::Case, at, message, help));
                    continue;
                }
            };
            case_policy = &amended;
        }
        let asked = match ask(case, &document, &[case_policy]).and_then(|ask| ask.asked().map_err(|_| unsayable(case)))
        {
            Ok(asked) => asked,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        let now = case.at.unwrap_or(document.clock.value).begins();
        let (differences, why) = run_case(case, &asked, case_policy, &loaded.sources, now, shown);
        let (line, _) = crate::policy::problem::position(&source.text, case.name.at.start);
        results.push(CaseResult {
            file: source.path.clone(),
            line,
            name: case.name.value.clone(),
            as_expected: differences.is_empty(),
            differences,
            why,
        });
    }
    if problems.has_errors() { Err((vec![source.clone()], problems)) } else { Ok(results) }
}

fn case_nodes(root: &Node) -> impl Iterator<Item = &Node> {
    let cases = root.get("cases").map(|node| &node.value);
    let cases: &[Node] = match cases {
        Some(yaml::Value::List(cases)) => cases,
        Some(yaml::Value::Map(_) | yaml::Value::Scalar { .. }) | None => &[],
    };
    cases.iter()
}

/// The case as a request. A name may be one of any of the policies; the last is asked first.
fn ask(case: &Case, document: &Document, policies: &[&Policy]) -> Result<Ask, Problem> {
    let request = &case.request.value;
    let impossible = |at, message: String, help: &str| Problem::error(Code::Case, at, message, help);
    let location = match &request.location {
        None => Fact::Unknown(Why::Missing),
        Some(text) => {
            text.parse().map_or(Fact::Unknown(Why::Malformed), |location| Fact::Known(location, FactSource::Claim))
        }
    };
    let caller = match &request.caller {
        None => None,
        Some(caller) => {
            let mut found = policies.iter().rev().map(|policy| ask::identity(&caller.value, policy));
            let first = found.next();
            match found.fold(first, |found, next| if matches!(found, Some(Ok(_))) { found } else { Some(next) }) {
                Some(Ok(identity)) => Some((identity, location)),
                Some(Err((message, help))) => return Err(Problem::error(Code::Case, caller.at, message, help)),
                None => None,
            }
        }
    };
    let Some(service) = request.service.as_ref().or(document.defaults.service.as_ref()) else {
        let help = "add `service: …` to the request or to `defaults`";
        return Err(impossible(case.request.at, "the case does not say which service is asked".to_owned(), help));
    };
    let known = document.services.entries.iter().find(|(name, _)| name.value == service.value);
    let Some((_, Service { storage_location })) = known else {
        let help = "add it under `services` with its `storage_location`";
        return Err(impossible(service.at, format!("there is no service `{}`", service.value), help));
    };
    let is_nobody = |recipient: &&Spanned<String>| {
        policies.iter().all(|policy| policy.subprocessor_named(&recipient.value).is_none())
    };
    if let Some(recipient) = request.recipient.as_ref().filter(is_nobody) {
        let message = format!("there is no subprocessor `{}`", recipient.value);
        return Err(impossible(recipient.at, message, "name one of the policy"));
    }
    let subscriber = match request.subscriber.as_ref().or(document.defaults.subscriber.as_ref()) {
        None => AskedSubscriber::NotEstablished,
        Some(Subscriber::NotNamed) => AskedSubscriber::NotNamed,
        Some(Subscriber::Named(name)) => AskedSubscriber::Named(name.clone()),
    };
    let text = |text: &Option<Spanned<String>>| text.as_ref().map(|text| text.value.clone());
    Ok(Ask {
        caller,
        customers: request.customer.clone().map(|OneOrMore(names, is_list)| (names, is_list)),
        purpose: text(&request.purpose),
        instruction: text(&request.instruction),
        request_ref: text(&request.request_ref),
        operation: request.operation.or(document.defaults.operation),
        data_categories: request.data_categories.clone().unwrap_or_default(),
        subscriber,
        recipient: text(&request.recipient),
        transport: request.transport.as_ref().map_or(ask::CLEAR, |transport| Transport {
            tls: transport.tls,
            client_certificate: transport.client_certificate,
            is_unix: false,
        }),
        storage: *storage_location,
        is_mapped: request.mapped,
    })
}

/// What differs, and if anything does, why the request was denied.
fn run_case(
    case: &Case,
    asked: &Asked,
    policy: &Policy,
    sources: &[Source],
    now: Timestamp,
    shown: &mut Shown,
) -> (Vec<Difference>, Vec<String>) {
    let (facts, decision) = match asked.weigh(policy, now) {
        Ok(weighed) => weighed,
        Err(unreadable) => {
            let got = format!("400: {unreadable}");
            return (vec![Difference { what: "decision", expected: "a decision".to_owned(), got }], Vec::new());
        }
    };
    shown.see(&facts, &decision, policy);
    let differences = compare(&case.expect, &facts, &decision);
    if differences.is_empty() {
        return (differences, Vec::new());
    }
    let places = Places::new(sources);
    let names = Names::of(&facts, policy);
    let why = decision.reasons().iter().map(|reason| {
        let (why, at) = why(reason.code, reason.kind, &names);
        let at: Vec<String> = at.iter().filter_map(|place| places.find(place)).collect();
        let at = if at.is_empty() { String::new() } else { format!(" ({})", at.join(", ")) };
        format!("{}, clause {}: {why}{at}", reason.code.as_str(), reason.clause)
    });
    let why = why.collect();
    (differences, why)
}

fn compare(expect: &Expect, facts: &Facts<'_>, decision: &Decision<'_>) -> Vec<Difference> {
    let Expect { decision: word, action, reasons, kinds, authority, transfer_ref, status, records } = expect;
    let mut differences = Vec::new();
    let mut hold = |what, expected: Option<String>, got: String| {
        if let Some(expected) = expected.filter(|expected| *expected != got) {
            differences.push(Difference { what, expected, got });
        }
    };
    let word = match word {
        Word::Permit => "permit",
        Word::Deny => "deny",
    };
    let (got_authority, got_transfer) = match &decision.outcome {
        Outcome::Permit { authority, transfer_ref } => (authority.as_str(), transfer_ref.unwrap_or("none")),
        Outcome::Deny(_) => ("none", "none"),
    };
    let list = |words: Vec<&str>| if words.is_empty() { "none".to_owned() } else { words.join(", ") };
    let expected_list = |words: &Vec<String>| list(words.iter().map(String::as_str).collect());
    let (_, got_action) = act(decision, Enforcement::Enforce);
    let got_records = match facts.customers.known() {
        Some(Customers::Several { known, .. }) => known.len().max(1),
        Some(Customers::One(_)) | None => 1,
    };
    hold("decision", Some(word.to_owned()), decision.as_str().to_owned());
    let got_reasons = list(decision.reasons().iter().map(|reason| reason.code.as_str()).collect());
    hold(
        "reasons",
        reasons.as_ref().map(expected_list).or(Some("none".to_owned()).filter(|_| word == "permit")),
        got_reasons,
    );
    let got_kinds = list(decision.reasons().iter().map(|reason| reason.kind.as_str()).collect());
    hold("kinds", kinds.as_ref().map(expected_list), got_kinds);
    hold("authority", authority.clone(), got_authority.to_owned());
    hold("transfer_ref", transfer_ref.clone(), got_transfer.to_owned());
    hold("action", action.clone(), got_action.as_str().to_owned());
    let refused = decision.reasons().first().filter(|_| got_action == Action::Denied);
    let got_status = refused.map_or(200, |reason| reason.code.status());
    hold("status", status.map(|status| status.to_string()), got_status.to_string());
    hold("records", records.map(|records| records.to_string()), got_records.to_string());
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::switch;

    #[test]
    fn each_rule_that_is_switched_off_fails_a_case_of_the_sample() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policy-tests.yaml");
        let source = reload::read(&path).unwrap();
        let failing = || {
            let results = run_file(&source, None, &mut Shown::default()).unwrap_or_else(|(_, problems)| {
                panic!("{:?}", problems.0);
            });
            results.iter().filter(|result| !result.as_expected).count()
        };
        assert_eq!(failing(), 0, "with every rule");
        for code in ReasonCode::ALL {
            assert!(switch::without(code, failing) > 0, "no case misses `{}`", code.as_str());
        }
    }
}
