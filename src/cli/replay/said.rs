//! What came out, in words and as JSON.

use std::collections::BTreeMap;
use std::io;
use std::io::Write;

use serde::Serialize;

use super::super::audit::files::Files;
use super::super::audit::plain;
use super::count::Counts;
use super::count::Example;
use super::count::Flips;
use super::count::Question;
use super::count::Tally;
use crate::record::recorded::Lack;

/// Everything that is said.
#[derive(Serialize)]
pub(super) struct Said {
    schema_version: u8,
    policy: SaidPolicy,
    /// `recorded`, or the moment at which all count as asked.
    at: String,
    files: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passed_over: Vec<String>,
    requests: SaidRequests,
    /// The policies that decided then.
    policies: Vec<SaidThen>,
    deny_to_permit: SaidFlips,
    permit_to_deny: SaidFlips,
    /// Denied for a reason that no rule gave.
    service_reasons: SaidService,
    action: SaidDone,
    undecidable: SaidOpen,
    damaged: SaidDamage,
    /// Records that are no decisions.
    other_records: u64,
    /// Lines of a stream that are not of a log.
    passed_over_lines: u64,
}

#[derive(Serialize)]
struct SaidPolicy {
    path: String,
    name: String,
    revision: u64,
    digest: String,
}

#[derive(Serialize)]
struct SaidRequests {
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// Decided as they were, for the same first reason.
    same: u64,
    /// Denied as they were, for another first reason.
    other_reason: u64,
    /// Of `same`: no policy is asked.
    not_weighed: u64,
}

#[derive(Serialize)]
struct SaidThen {
    name: String,
    revision: u64,
    digest: String,
    requests: u64,
}

#[derive(Serialize)]
struct SaidFlips {
    count: u64,
    /// Of these: forwarded instead of refused, or refused instead of forwarded.
    action_changes: u64,
    customers: BTreeMap<String, u64>,
    reasons: BTreeMap<String, u64>,
    routes: BTreeMap<String, u64>,
    /// Counted, and not by name: there are too many names.
    #[serde(skip_serializing_if = "is_zero")]
    others: u64,
    examples: Vec<SaidExample>,
}

#[derive(Serialize)]
struct SaidService {
    count: u64,
    /// By reason.
    reasons: BTreeMap<String, u64>,
    /// By the rules alone.
    same: u64,
    deny_to_permit: u64,
    permit_to_deny: u64,
    not_known: u64,
    examples: Vec<SaidExample>,
}

#[derive(Serialize)]
struct SaidDone {
    refused_to_forwarded: u64,
    forwarded_to_refused: u64,
    not_known: u64,
}

#[derive(Serialize)]
struct SaidOpen {
    count: u64,
    lacks: BTreeMap<String, u64>,
    examples: Vec<SaidExample>,
}

#[derive(Serialize)]
struct SaidDamage {
    count: u64,
    first: Vec<SaidPlace>,
}

#[derive(Serialize)]
struct SaidPlace {
    file: String,
    line: u64,
    why: &'static str,
}

#[derive(Serialize)]
struct SaidExample {
    decision_id: String,
    time: String,
    file: String,
    line: u64,
    customers: Vec<String>,
    caller: Option<String>,
    purpose: Option<String>,
    route: Option<String>,
    was: SaidAnswer,
    /// What the rules said then, if the service denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_rules: Option<SaidRules>,
    /// Null if it cannot be decided.
    now: Option<SaidAnswer>,
}

#[derive(Serialize)]
struct SaidRules {
    decision: &'static str,
    /// The first reason of a denial.
    reason: Option<String>,
}

#[derive(Serialize)]
struct SaidAnswer {
    decision: String,
    /// Null if nobody can tell.
    action: Option<String>,
    /// The first reason of a denial.
    reason: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Names that a list shows as text; `-o json` has more.
const MOST_SHOWN: usize = 10;

impl Said {
    pub(super) fn new(counts: &Counts, files: &Files, path: &str, question: &Question) -> Self {
        let Question { policy, earlier: _, at } = question;
        let file =
            |place: usize| files.found.get(place).map(|found| found.path.display().to_string()).unwrap_or_default();
        let example = |example: &Example| {
            let (decision, action, reason) = example.was.clone();
            SaidExample {
                decision_id: example.decision_id.clone(),
                time: example.time.clone(),
                file: file(example.file),
                line: example.line,
                customers: example.customers.clone(),
                caller: example.caller.clone(),
                purpose: example.purpose.clone(),
                route: example.route.clone(),
                was: SaidAnswer { decision, action: Some(action), reason },
                by_rules: example.by_rules.clone().map(|(decision, reason)| SaidRules { decision, reason }),
                now: example.now.map(|(decision, action, reason)| SaidAnswer {
                    decision: decision.to_owned(),
                    action: action.map(str::to_owned),
                    reason: reason.map(str::to_owned),
                }),
            }
        };
        let flips = |flips: &Flips| SaidFlips {
            count: flips.count,
            action_changes: flips.done,
            customers: flips.customers.names.clone(),
            reasons: flips.reasons.names.clone(),
            routes: flips.routes.names.clone(),
            others: [&flips.customers, &flips.reasons, &flips.routes].iter().map(|tally: &&Tally| tally.others).sum(),
            examples: flips.examples.iter().map(example).collect(),
        };
        let changed = counts.to_permit.count + counts.to_deny.count + counts.undecidable.count + counts.other_reason;
        let service = &counts.service;
        Self {
            schema_version: 1,
            policy: SaidPolicy {
                path: path.to_owned(),
                name: policy.name.to_string(),
                revision: policy.revision,
                digest: policy.digest.to_string(),
            },
            at: at.map_or("recorded".to_owned(), |at| at.to_string()),
            files: (0..files.found.len()).map(file).collect(),
            passed_over: files.passed_over.iter().map(|path| path.display().to_string()).collect(),
            requests: SaidRequests {
                count: counts.requests,
                from: counts.times.map(|(from, _)| from.to_string()),
                to: counts.times.map(|(_, to)| to.to_string()),
                same: counts.requests - changed - service.count,
                other_reason: counts.other_reason,
                not_weighed: counts.unweighed,
            },
            policies: counts
                .policies
                .iter()
                .map(|(digest, (name, revision, requests))| SaidThen {
                    name: name.clone(),
                    revision: *revision,
                    digest: digest.clone(),
                    requests: *requests,
                })
                .collect(),
            deny_to_permit: flips(&counts.to_permit),
            permit_to_deny: flips(&counts.to_deny),
            service_reasons: SaidService {
                count: service.count,
                reasons: service.reasons.names.clone(),
                same: service.same,
                deny_to_permit: service.to_permit,
                permit_to_deny: service.to_deny,
                not_known: service.unknown,
                examples: service.examples.iter().map(example).collect(),
            },
            action: SaidDone {
                refused_to_forwarded: counts.newly_forwarded,
                forwarded_to_refused: counts.newly_refused,
                not_known: counts.done_unknown,
            },
            undecidable: SaidOpen {
                count: counts.undecidable.count,
                lacks: counts.undecidable.lacks.names.clone(),
                examples: counts.undecidable.examples.iter().map(example).collect(),
            },
            damaged: SaidDamage {
                count: counts.damaged.count,
                first: counts
                    .damaged
                    .first
                    .iter()
                    .map(|(place, line, why)| SaidPlace { file: file(*place), line: *line, why })
                    .collect(),
            },
            other_records: counts.others,
            passed_over_lines: counts.foreign,
        }
    }

    /// For people.
    pub(super) fn print(&self, out: &mut dyn Write, colour: bool) -> io::Result<()> {
        let SaidPolicy { path, name, revision, .. } = &self.policy;
        writeln!(out, "policy: {path}, {name} revision {revision}")?;
        let times = self.requests.from.as_ref().zip(self.requests.to.as_ref());
        let times = times.map(|(from, to)| format!(", {from} to {to}")).unwrap_or_default();
        writeln!(out, "log: {} in {}{times}", many(self.requests.count, "request"), many(self.file_count(), "file"))?;
        for SaidThen { name, revision, digest, requests } in &self.policies {
            let is_same = if *digest == self.policy.digest { ", the same files" } else { "" };
            let short: String = digest.chars().take(12).collect();
            let name = plain(name);
            writeln!(
                out,
                "  decided by {name} revision {revision} ({short}…{is_same}): {}",
                many(*requests, "request")
            )?;
        }
        let when =
            if self.at == "recorded" { "each at its own time".to_owned() } else { format!("all at {}", self.at) };
        writeln!(out, "asked: {when}")?;
        let flips = [
            ("DENY TO PERMIT", "31", "denied then, permitted with this policy", "refused", &self.deny_to_permit),
            ("PERMIT TO DENY", "33", "permitted then, denied with this policy", "forwarded", &self.permit_to_deny),
        ];
        for (heading, paint, meaning, then, flips) in flips {
            if flips.count > 0 {
                let heading = if colour { format!("\x1b[1;{paint}m{heading}\x1b[0m") } else { heading.to_owned() };
                writeln!(out, "\n{heading}: {meaning} ({})", flips.count)?;
                flips.print(then, out)?;
            }
        }
        self.service_reasons.print(out)?;
        self.print_open(out)?;
        self.print_damage(out)?;
        let SaidDone { refused_to_forwarded, forwarded_to_refused, not_known } = self.action;
        writeln!(
            out,
            "\n{refused_to_forwarded} that were refused would be forwarded, {forwarded_to_refused} that were forwarded would be refused"
        )?;
        if not_known > 0 {
            writeln!(
                out,
                "{not_known} are decided, and their records do not say enough to tell whether they would be forwarded"
            )?;
        }
        let SaidRequests { same, other_reason, .. } = self.requests;
        if other_reason > 0 {
            writeln!(out, "{other_reason} stay denied, for another first reason")?;
        }
        let mut sums = vec![
            format!("{} deny to permit", self.deny_to_permit.count),
            format!("{} permit to deny", self.permit_to_deny.count),
            format!("{} as they were", same + other_reason),
        ];
        let more = [
            (self.service_reasons.count, "denied by the service"),
            (self.undecidable.count, "undecidable"),
            (self.damaged.count, "damaged"),
        ];
        for (count, word) in more {
            sums.extend((count > 0).then(|| format!("{count} {word}")));
        }
        writeln!(out, "{}", sums.join(", "))
    }

    fn file_count(&self) -> u64 {
        u64::try_from(self.files.len()).unwrap_or(0)
    }

    fn print_open(&self, out: &mut dyn Write) -> io::Result<()> {
        let SaidOpen { count, lacks, examples } = &self.undecidable;
        if *count == 0 {
            return Ok(());
        }
        writeln!(out, "\nUNDECIDABLE: their records do not say what this policy asks for ({count})")?;
        for (lack, count) in lacks {
            let known = [
                Lack::Caller,
                Lack::Recipient,
                Lack::Customer,
                Lack::Purpose,
                Lack::Instruction,
                Lack::Subscriber,
                Lack::Location,
                Lack::ClientCertificate,
            ];
            let text = known.into_iter().find(|known| known.as_str() == lack);
            let text = text.map_or("the record says something that no record of this version says", Lack::text);
            writeln!(out, "  {count} {lack}: {text}")?;
        }
        print_examples(examples, out)
    }

    fn print_damage(&self, out: &mut dyn Write) -> io::Result<()> {
        let SaidDamage { count, first } = &self.damaged;
        if *count == 0 {
            return Ok(());
        }
        writeln!(out, "\nDAMAGED: lines that are no record as it was written; `audit verify` says more ({count})")?;
        for SaidPlace { file, line, why } in first {
            writeln!(out, "  {}:{line}: {why}", plain(file))?;
        }
        Ok(())
    }
}

impl SaidService {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { count, reasons, same, deny_to_permit, permit_to_deny, not_known, examples } = self;
        if *count == 0 {
            return Ok(());
        }
        writeln!(
            out,
            "\nDENIED BY THE SERVICE: for a reason that no rule gave, which says nothing of a policy ({count})"
        )?;
        for (reason, count) in reasons.iter().take(MOST_SHOWN) {
            writeln!(out, "    {count:>8}  {}", plain(reason))?;
        }
        let counts = [
            (*same, "as they were"),
            (*deny_to_permit, "deny to permit"),
            (*permit_to_deny, "permit to deny"),
            (*not_known, "not known"),
        ];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        let counts: Vec<String> = counts.map(|(count, word)| format!("{count} {word}")).collect();
        writeln!(out, "  by the rules alone: {}", counts.join(", "))?;
        print_examples(examples, out)
    }
}

impl SaidFlips {
    fn print(&self, then: &str, out: &mut dyn Write) -> io::Result<()> {
        if self.action_changes < self.count {
            let observed = self.count - self.action_changes;
            let was = if then == "refused" { "observed and forwarded then" } else { "would be observed and forwarded" };
            let them = if observed == 1 { "it" } else { "them" };
            writeln!(out, "  of them, {observed} {was}: nothing else is done about {them}")?;
        }
        for (what, names) in [("customer", &self.customers), ("reason", &self.reasons), ("route", &self.routes)] {
            let mut names: Vec<(&String, u64)> = names.iter().map(|(name, count)| (name, *count)).collect();
            // The most frequent first; of equals, by name.
            names.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            writeln!(out, "  by {what}")?;
            for (name, count) in names.iter().take(MOST_SHOWN) {
                writeln!(out, "    {count:>8}  {}", plain(name))?;
            }
            if names.len() > MOST_SHOWN {
                writeln!(out, "    … and {} more; `-o json` has them", names.len() - MOST_SHOWN)?;
            }
        }
        print_examples(&self.examples, out)
    }
}

fn print_examples(examples: &[SaidExample], out: &mut dyn Write) -> io::Result<()> {
    if !examples.is_empty() {
        writeln!(out, "  such as (`dpa-sidecar explain ID --log FILE --policy FILES-OF-THEN`)")?;
    }
    for SaidExample { decision_id, file, line, customers, caller, purpose, was, by_rules, now, .. } in examples {
        let or = |word: &Option<String>| plain(word.as_deref().unwrap_or("(none)")).into_owned();
        let customers = if customers.is_empty() { "(none)".to_owned() } else { customers.join(", ") };
        writeln!(out, "    {decision_id}  {}:{line}", plain(file))?;
        let told = |answer: &SaidAnswer| {
            let reason = answer.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let is_observed = answer.action.as_deref() == Some("observed");
            format!("{}{}{reason}", answer.decision, if is_observed { ", observed" } else { "" })
        };
        let now = now.as_ref().map_or("not known".to_owned(), told);
        let rules = by_rules.as_ref().map(|SaidRules { decision, reason }| {
            let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!(", by the rules {decision}{reason}")
        });
        let (customers, was) = (plain(&customers), told(was) + &rules.unwrap_or_default());
        writeln!(out, "      {}, {customers}, {}: {} -> {now}", or(caller), or(purpose), plain(&was))?;
    }
    Ok(())
}

fn many(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}
