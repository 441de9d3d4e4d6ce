//! `explain`: why a request is permitted or denied; what a problem code means.

use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::CliError;
use super::Exit;
use super::Output;
use super::ask;
use super::ask::Ask;
use super::ask::AskedSubscriber;
use super::colour;
use super::print_problems;
use crate::decide::decision::Decision;
use crate::decide::decision::Outcome;
use crate::decide::explain::Names;
use crate::decide::explain::why;
use crate::decide::facts::Customers;
use crate::decide::facts::Direction;
use crate::decide::facts::Fact;
use crate::decide::facts::Facts;
use crate::decide::facts::Source as FactSource;
use crate::decide::facts::Why;
use crate::decide::reason::Code;
use crate::decide::reason::Kind;
use crate::decide::reason::clause_text;
use crate::policy::Party;
use crate::policy::Policy;
use crate::policy::places::Place;
use crate::policy::places::Places;
use crate::policy::problem;
use crate::policy::terms::DataCategory;
use crate::policy::terms::Date;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;
use crate::record::entry::REQUEST_UNREADABLE;
use crate::record::recorded::Recorded;
use crate::record::recorded::RecordedPlaces;
use crate::record::recorded::RecordedReason;
use crate::record::recorded::RecordedUnknown;
use crate::record::recorded::Word;
use crate::record::verify::Ended;
use crate::record::verify::Fault;
use crate::record::verify::next_line;
use crate::reload;
use crate::reload::Loaded;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar explain --policy policy.yaml --storage-location US-OR --customer redwood-strand \\
      --caller care-desk --purpose customer_support --data-category user.contact
  dpa-sidecar explain 019ecb27-2221-72de-8d1f-f65ab3d0291e --log decisions.ndjson --policy policy.yaml
  dpa-sidecar explain DPA012

Exit codes: 0 permitted (or the code is explained), 1 denied, 2 could not tell.")]
pub(super) struct Arguments {
    /// A decision id (with --log), or a problem code such as DPA012. Without it, the flags are the request.
    subject: Option<String>,
    /// The policy. For a decision id: the files that it was made with.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// The decision log that has the decision.
    #[arg(long, requires = "subject")]
    log: Option<PathBuf>,
    /// A customer; several times for a request about several.
    #[arg(long, conflicts_with = "subject")]
    customer: Vec<String>,
    /// Who asks: the id of a caller, subprocessor or customer of the policy, or an identity.
    #[arg(long, conflicts_with = "subject")]
    caller: Option<String>,
    /// What for.
    #[arg(long, conflicts_with = "subject")]
    purpose: Option<String>,
    /// Doing what.
    #[arg(long, default_value = "retrieve", value_parser = operation)]
    operation: Operation,
    /// With which data; several times for several.
    #[arg(long, conflicts_with = "subject")]
    data_category: Vec<DataCategory>,
    /// About whom.
    #[arg(long, conflicts_with = "subject")]
    subscriber: Option<String>,
    /// On which instruction.
    #[arg(long, conflicts_with = "subject")]
    instruction: Option<String>,
    /// On which request of a subscriber.
    #[arg(long, conflicts_with = "subject")]
    request_ref: Option<String>,
    /// Where a signed claim says the caller is.
    #[arg(long, conflicts_with = "subject")]
    location: Option<Location>,
    /// The subprocessor that the service sends to (egress).
    #[arg(long, conflicts_with = "subject")]
    recipient: Option<String>,
    /// Where the service keeps its data.
    #[arg(long, conflicts_with = "subject")]
    storage_location: Option<Location>,
    /// When [default: now].
    #[arg(long, conflicts_with = "subject")]
    at: Option<Date>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

fn operation(text: &str) -> Result<Operation, String> {
    let known = Operation::ALL.into_iter().find(|operation| operation.as_str() == text);
    known.ok_or_else(|| format!("one of: {}", Operation::ALL.map(Operation::as_str).join(", ")))
}

/// A decision, explained.
#[derive(Serialize)]
struct Explanation {
    schema_version: u8,
    time: String,
    decision: String,
    enforcement: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer_ref: Option<String>,
    /// Of a permit: where the policy says so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rests_on: Vec<String>,
    facts: Vec<FactShown>,
    reasons: Vec<ReasonShown>,
    policy: PolicyShown,
}

#[derive(Serialize)]
struct FactShown {
    fact: String,
    /// None: it is unknown.
    value: Option<String>,
    /// Where a known fact comes from, or why one is not known.
    #[serde(rename = "source_or_why")]
    source: String,
}

impl FactShown {
    fn new(fact: &str, value: impl Into<String>, source: &str) -> Self {
        Self { fact: fact.to_owned(), value: Some(value.into()), source: source.to_owned() }
    }

    fn unknown(fact: &str, why: &str) -> Self {
        Self { fact: fact.to_owned(), value: None, source: why.to_owned() }
    }
}

#[derive(Serialize)]
struct ReasonShown {
    code: &'static str,
    kind: String,
    clause: String,
    clause_text: String,
    obligation: String,
    /// Why the rule does not hold; of a gap, what is missing.
    why: String,
    policy: Vec<String>,
}

#[derive(Serialize)]
struct PolicyShown {
    name: String,
    revision: u64,
    digest: String,
}

impl PolicyShown {
    fn of(policy: &Policy) -> Self {
        Self { name: policy.name.to_string(), revision: policy.revision, digest: policy.digest.to_string() }
    }
}

pub(super) fn explain(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    let explanation = match &arguments.subject {
        Some(code) if code.starts_with("DPA") => return explain_code(code, arguments.output, out),
        Some(id) => {
            let id = Uuid::try_parse(id).map_err(|_| {
                CliError::Unknown(format!("`{id}` is neither a decision id (a UUID) nor a problem code such as DPA012"))
            })?;
            let Some(log) = &arguments.log else {
                return Err(CliError::Usage("a decision id needs `--log FILE`, the decision log that has it"));
            };
            let Some((policy, loaded)) = load(arguments, err)? else { return Ok(Exit::Unable) };
            recorded(id, log, &policy, &loaded)?
        }
        None => {
            let Some((policy, loaded)) = load(arguments, err)? else { return Ok(Exit::Unable) };
            stated(arguments, &policy, &loaded)?
        }
    };
    match arguments.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &explanation).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        Output::Text => print(&explanation, out)?,
    }
    Ok(if explanation.decision == "permit" { Exit::Yes } else { Exit::No })
}

fn explain_code(text: &str, output: Output, out: &mut dyn Write) -> Result<Exit, CliError> {
    let Some(code) = problem::Code::ALL.into_iter().find(|code| code.as_str() == text) else {
        let codes = problem::Code::ALL.map(problem::Code::as_str).join(", ");
        return Err(CliError::Unknown(format!("there is no problem code `{text}`; known: {codes}")));
    };
    match output {
        Output::Text => writeln!(out, "{}: {}", code.as_str(), code.explanation())?,
        Output::Json => {
            let explained = serde_json::json!({"schema_version": 1, "code": code.as_str(), "text": code.explanation()});
            writeln!(out, "{explained}")?;
        }
    }
    Ok(Exit::Yes)
}

fn load(arguments: &Arguments, err: &mut dyn Write) -> Result<Option<(Policy, Loaded)>, CliError> {
    let Some(path) = &arguments.policy else {
        return Err(CliError::Usage("give `--policy policy.yaml`: the agreement that the decision rests on"));
    };
    let mut loaded = reload::load(path, None, None)?;
    let policy = loaded.policy.take();
    if policy.is_none() {
        print_problems(err, &loaded.problems, &loaded.sources, colour(&std::io::stderr()))?;
    }
    Ok(policy.map(|policy| (policy, loaded)))
}

// ---- a request given as flags ----------------------------------------------------------------------

fn stated(arguments: &Arguments, policy: &Policy, loaded: &Loaded) -> Result<Explanation, CliError> {
    let location = match arguments.location {
        Some(location) => Fact::Known(location, FactSource::Claim),
        None => Fact::Unknown(Why::Missing),
    };
    let caller = match &arguments.caller {
        None => None,
        Some(name) => {
            let found = ask::identity(name, policy);
            let identity = found.map_err(|(wrong, help)| CliError::Unknown(format!("--caller: {wrong}: {help}")))?;
            Some((identity, location))
        }
    };
    if let Some(name) = arguments.recipient.as_ref().filter(|name| policy.subprocessor_named(name).is_none()) {
        return Err(CliError::Unknown(format!("--recipient: the policy has no subprocessor `{name}`")));
    }
    let Some(storage) = arguments.storage_location else {
        return Err(CliError::Usage("give `--storage-location`, such as US-OR: where the service keeps its data"));
    };
    let is_list = arguments.customer.len() > 1;
    let ask = Ask {
        caller,
        customers: (!arguments.customer.is_empty()).then(|| (arguments.customer.clone(), is_list)),
        purpose: arguments.purpose.clone(),
        instruction: arguments.instruction.clone(),
        request_ref: arguments.request_ref.clone(),
        operation: Some(arguments.operation),
        data_categories: arguments.data_category.clone(),
        subscriber: arguments.subscriber.clone().map_or(AskedSubscriber::NotEstablished, AskedSubscriber::Named),
        recipient: arguments.recipient.clone(),
        transport: ask::CLEAR,
        storage,
        is_mapped: true,
    };
    let unsayable = |error: crate::observed::Unreadable| CliError::Unknown(error.to_string());
    let now = arguments.at.map_or_else(Timestamp::now, Date::begins);
    let asked = ask.asked().map_err(unsayable)?;
    let (facts, decision) = asked.weigh(policy, now).map_err(unsayable)?;
    let (authority, transfer_ref) = match &decision.outcome {
        Outcome::Permit { authority, transfer_ref } => {
            (Some(authority.as_str().to_owned()), transfer_ref.map(str::to_owned))
        }
        Outcome::Deny(_) => (None, None),
    };
    let names = Names::of(&facts, policy);
    let places = Places::new(&loaded.sources);
    Ok(Explanation {
        schema_version: 1,
        time: now.to_string(),
        rests_on: rests_on(authority.as_deref(), &names, &places),
        decision: decision.as_str().to_owned(),
        enforcement: decision.enforcement.as_str().to_owned(),
        authority,
        transfer_ref,
        facts: facts_shown(&facts, arguments, policy),
        reasons: reasons_shown(&decision, &names, policy, &places),
        policy: PolicyShown::of(policy),
    })
}

fn facts_shown(facts: &Facts<'_>, arguments: &Arguments, policy: &Policy) -> Vec<FactShown> {
    fn shown<T>(name: &str, fact: &Fact<T>, value: impl Fn(&T) -> String) -> Option<FactShown> {
        match fact {
            Fact::Known(known, _) => Some(FactShown::new(name, value(known), "stated")),
            Fact::None => None,
            Fact::Unknown(why) => Some(FactShown::unknown(name, why.as_str())),
        }
    }
    let customer = |id: &_| policy.customer(*id).map(|customer| customer.id.to_string()).unwrap_or_default();
    let caller = shown("caller", &facts.caller, |caller| match caller.party {
        Some(Party::Own(id)) => {
            let id = policy.caller(id).map(|caller| caller.id.to_string()).unwrap_or_default();
            format!("{id}, one of the processor's own")
        }
        Some(Party::Subprocessor(id)) => {
            let id = policy.subprocessor(id).map(|entry| entry.id.to_string()).unwrap_or_default();
            format!("{id}, a subprocessor")
        }
        Some(Party::Customer(id)) => format!("a caller of the customer {}", customer(&id)),
        None => {
            let identity = caller.identity.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{identity}, no party to the agreement")
        }
    });
    let customers = shown("customer", &facts.customers, |customers| match customers {
        Customers::One(id) => customer(id),
        Customers::Several { known, unknown } => {
            let names: Vec<String> = known.iter().map(customer).collect();
            let others = if *unknown > 0 { format!(" and {unknown} unknown") } else { String::new() };
            format!("{}{others}", names.join(", "))
        }
    });
    let purpose =
        shown("purpose", &facts.purpose, |id| policy.purpose(*id).map(|it| it.id.to_string()).unwrap_or_default());
    let operation = shown("operation", &facts.operation, |operation| operation.as_str().to_owned());
    let instruction = shown("instruction", &facts.instruction, |_| arguments.instruction.clone().unwrap_or_default());
    let request_ref = shown("request_ref", &facts.request_ref, Clone::clone);
    let subscriber = shown("subscriber", &facts.subscriber, Clone::clone);
    let claimed = shown("location", &facts.location, ToString::to_string).filter(|_| arguments.location.is_some());
    let written = |places: &[Location]| places.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let caller_place = match facts.caller.known().and_then(|caller| caller.party) {
        Some(Party::Own(id)) => policy.caller(id).and_then(|caller| caller.location).map(|place| place.to_string()),
        Some(Party::Subprocessor(id)) => policy.subprocessor(id).map(|entry| written(&entry.access_locations)),
        Some(Party::Customer(_)) | None => None,
    };
    let recipient_place = match facts.direction {
        Direction::Egress(id) => policy.subprocessor(id).map(|entry| written(&entry.access_locations)),
        Direction::Ingress | Direction::EgressToNobody => None,
    };
    let categories: Vec<&str> = facts.data_categories.iter().map(DataCategory::as_str).collect();
    let data = (!categories.is_empty()).then(|| FactShown::new("data_categories", categories.join(", "), "stated"));
    let access = caller_place.map(|place| FactShown::new("access_location", place, "policy"));
    let to = arguments.recipient.clone().map(|id| FactShown::new("recipient", id, "stated"));
    let recipient = recipient_place.map(|place| FactShown::new("recipient_location", place, "policy"));
    let storage = Some(FactShown::new("storage_location", facts.storage.to_string(), "stated"));
    let all = [caller, to, customers, purpose, operation, data, subscriber, instruction, request_ref];
    all.into_iter().chain([claimed, access, recipient, storage]).flatten().collect()
}

fn reasons_shown(decision: &Decision<'_>, names: &Names, policy: &Policy, places: &Places<'_>) -> Vec<ReasonShown> {
    let shown = |reason: &crate::decide::reason::Reason| {
        reason_shown(reason.code, reason.kind, reason.clause, reason.obligation, names, policy, places)
    };
    decision.reasons().iter().map(shown).collect()
}

fn reason_shown(
    code: Code,
    kind: Kind,
    clause: &str,
    obligation: &str,
    names: &Names,
    policy: &Policy,
    places: &Places<'_>,
) -> ReasonShown {
    let (why, at) = why(code, kind, names);
    ReasonShown {
        code: code.as_str(),
        kind: kind.as_str().to_owned(),
        clause: clause.to_owned(),
        clause_text: policy.clause_text(clause).unwrap_or_else(|| clause_text(clause)).to_owned(),
        obligation: obligation.to_owned(),
        why,
        policy: at.iter().filter_map(|place| places.find(place)).collect(),
    }
}

/// Where the policy says what a permit rests on.
fn rests_on(authority: Option<&str>, names: &Names, places: &Places<'_>) -> Vec<String> {
    let customer = || names.customer.clone();
    let place = match authority {
        Some("permitted_purpose") => customer().map(|id| Place::Customer(id, "permitted_purposes")),
        Some("legal_requirement") => names.purpose.clone().map(Place::Purpose),
        Some("instruction") => customer().zip(names.instruction.clone()).map(|(id, it)| Place::Instruction(id, it)),
        Some(_) | None => None,
    };
    place.and_then(|place| places.find(&place)).into_iter().collect()
}

// ---- a decision in a log ---------------------------------------------------------------------------

fn recorded(id: Uuid, log: &Path, policy: &Policy, loaded: &Loaded) -> Result<Explanation, CliError> {
    let failed = |source| CliError::Log { path: log.to_owned(), source };
    let mut file = BufReader::new(std::fs::File::open(log).map_err(failed)?);
    let mut found: Option<Vec<u8>> = None;
    let mut customers = Vec::new();
    let (mut line, mut number) = (Vec::new(), 0_u64);
    while let Some(ended) = next_line(&mut file, &mut line).map_err(failed)? {
        number = number.saturating_add(1);
        if ended == Ended::TooLong {
            // What stood in it is not known, so neither is whether the decision did.
            let fault = Fault::TooLong;
            return Err(CliError::Unknown(format!(
                "{}:{number}: {fault}; `dpa-sidecar audit verify` says what else is wrong with this log",
                log.display()
            )));
        }
        // A line that is no record is for `audit verify` to complain about.
        let Ok(record) = serde_json::from_slice::<Recorded<'_>>(&line) else { continue };
        if record.event.as_str() == "dpa.decision" && record.decision_id == Some(id) {
            // A decision about several customers has a record for each.
            customers.extend(owned(record.customer_id.as_ref()));
            found = Some(line.clone());
        }
    }
    let record = found.as_deref().and_then(|line| serde_json::from_slice::<Recorded<'_>>(line).ok());
    let Some(record) = record else {
        return Err(CliError::Unknown(format!("`{}` has no decision {id}", log.display())));
    };
    if let Some(then) = record.policy.as_ref().map(|policy| policy.digest.as_str()).filter(|_| !record.is_by(policy)) {
        let now = &policy.digest;
        return Err(CliError::Unknown(format!(
            "the decision was made with the policy files of digest {then}; these have {now}: give the files of then"
        )));
    }
    let names = Names {
        customer: owned(record.customer_id.as_ref()).filter(|_| customers.len() == 1),
        own_caller: owned(record.caller_id.as_ref()).filter(|_| {
            record.is_egress() || record.recipient.as_ref().is_none_or(|to| to.r#type.as_str() == "internal")
        }),
        subprocessor: record
            .recipient
            .as_ref()
            .filter(|to| to.r#type.as_str() == "subprocessor")
            .and_then(|to| owned(to.id.as_ref())),
        purpose: owned(record.purpose.as_ref()),
        operation: owned(record.operation.as_ref()),
        instruction: owned(record.instruction_id.as_ref()),
    };
    let places = Places::new(&loaded.sources);
    let mut reasons = Vec::new();
    for RecordedReason { code, clause, obligation, kind } in &record.reasons {
        let (code, clause, obligation) = (code.as_str(), clause.as_str(), obligation.as_str());
        let is_gap = kind.as_str() == "gap";
        match Code::ALL.into_iter().find(|known| known.as_str() == code) {
            Some(code) => {
                let kind = if is_gap { Kind::Gap } else { Kind::Violation };
                reasons.push(reason_shown(code, kind, clause, obligation, &names, policy, &places));
            }
            None if code == REQUEST_UNREADABLE => reasons.push(ReasonShown {
                code: REQUEST_UNREADABLE,
                kind: kind.as_str().to_owned(),
                clause: clause.to_owned(),
                clause_text: clause_text(clause).to_owned(),
                obligation: obligation.to_owned(),
                why: "one way to read the request; it was answered with 400".to_owned(),
                policy: Vec::new(),
            }),
            None => {
                return Err(CliError::Unknown(format!("the record has a reason of another version: `{code}`")));
            }
        }
    }
    Ok(Explanation {
        schema_version: 1,
        time: record.time.as_str().to_owned(),
        rests_on: rests_on(record.authority.as_ref().map(Word::as_str), &names, &places),
        decision: record.decision.as_str().to_owned(),
        enforcement: record.enforcement.as_str().to_owned(),
        authority: owned(record.authority.as_ref()),
        transfer_ref: owned(record.transfer_ref.as_ref()),
        facts: record_facts(&record, &customers),
        reasons,
        policy: PolicyShown::of(policy),
    })
}

fn owned(word: Option<&Word<'_>>) -> Option<String> {
    word.map(|word| word.as_str().to_owned())
}

fn record_facts(record: &Recorded<'_>, customers: &[String]) -> Vec<FactShown> {
    type Why<'w> = Option<&'w RecordedUnknown<'w>>;
    fn fact(
        name: &str,
        value: Option<String>,
        source: Option<&Word<'_>>,
        other: &str,
        why: Why<'_>,
    ) -> Option<FactShown> {
        match (value, why) {
            (Some(value), _) => Some(FactShown::new(name, value, source.map_or(other, Word::as_str))),
            (None, Some(unknown)) => Some(FactShown::unknown(name, unknown.why.as_str())),
            (None, None) => None,
        }
    }
    let joined = |list: &[String]| (!list.is_empty()).then(|| list.join(", "));
    let (sources, unknown) = (&record.sources, &record.unknown);
    let data: Vec<String> = record.data_categories.iter().map(|data| data.as_str().to_owned()).collect();
    let place = |place: for<'p> fn(&'p RecordedPlaces<'_>) -> Option<&'p Word<'p>>| {
        owned(record.location.as_ref().and_then(place))
    };
    let recipient = record.recipient.as_ref().filter(|_| record.is_egress()).and_then(|to| owned(to.id.as_ref()));
    let subscriber = sources.subscriber.as_ref().map(|_| "(not recorded)".to_owned());
    let text = |word: &Option<Word<'_>>| owned(word.as_ref());
    let facts = [
        fact("caller", text(&record.caller_id), sources.caller.as_ref(), "policy", unknown.caller.as_ref()),
        fact("recipient", recipient, None, "settings", None),
        fact("customer", joined(customers), sources.customer.as_ref(), "policy", unknown.customer.as_ref()),
        fact("purpose", text(&record.purpose), sources.purpose.as_ref(), "policy", unknown.purpose.as_ref()),
        fact("operation", text(&record.operation), sources.operation.as_ref(), "policy", unknown.operation.as_ref()),
        fact("data_categories", joined(&data), None, "route", None),
        fact("subscriber", subscriber, sources.subscriber.as_ref(), "policy", unknown.subscriber.as_ref()),
        fact(
            "instruction",
            text(&record.instruction_id),
            sources.instruction.as_ref(),
            "policy",
            unknown.instruction.as_ref(),
        ),
        fact("request_ref", text(&record.request_ref), sources.request_ref.as_ref(), "policy", None),
        fact(
            "access_location",
            place(|places| places.access.as_ref()),
            sources.location.as_ref(),
            "policy",
            unknown.location.as_ref(),
        ),
        fact("recipient_location", place(|places| places.recipient.as_ref()), None, "policy", None),
        fact("storage_location", place(|places| Some(&places.storage)), None, "settings", None),
        fact("route", text(&record.route), None, "settings", None),
    ];
    facts.into_iter().flatten().collect()
}

fn print(explanation: &Explanation, out: &mut dyn Write) -> Result<(), CliError> {
    let Explanation {
        schema_version: _,
        time,
        decision,
        enforcement,
        authority,
        transfer_ref,
        rests_on,
        facts,
        reasons,
        policy,
    } = explanation;
    write!(out, "{decision}")?;
    if let Some(authority) = authority {
        write!(out, ", on {authority}")?;
    }
    if let Some(transfer) = transfer_ref {
        write!(out, ", under transfer {transfer}")?;
    }
    if let Some((first, others)) = reasons.split_first() {
        write!(out, ": {}", first.code)?;
        if !others.is_empty() {
            write!(out, " and {} more", others.len())?;
        }
        if enforcement == "observe" && first.code != REQUEST_UNREADABLE {
            write!(out, " (enforcement is observe: recorded, and forwarded)")?;
        }
    }
    writeln!(out, "\nat {time}")?;
    if !rests_on.is_empty() {
        writeln!(out, "policy: {}", rests_on.join(", "))?;
    }
    writeln!(out, "\nFacts")?;
    for FactShown { fact, value, source } in facts {
        writeln!(out, "  {fact:<18} {:<40} {source}", value.as_deref().unwrap_or("not known"))?;
    }
    if !reasons.is_empty() {
        writeln!(out, "\nRules that do not hold")?;
    }
    for ReasonShown { code, kind, clause, clause_text, obligation, why, policy } in reasons {
        writeln!(out, "  {code} ({kind})")?;
        writeln!(out, "    clause {clause}, {obligation}: {clause_text}")?;
        writeln!(out, "    {}: {why}", if kind == "gap" { "missing" } else { "why" })?;
        if !policy.is_empty() {
            writeln!(out, "    policy: {}", policy.join(", "))?;
        }
    }
    let PolicyShown { name, revision, digest } = policy;
    writeln!(out, "\nPolicy {name} revision {revision}, digest {digest}")?;
    Ok(())
}
