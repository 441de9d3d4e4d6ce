//! The report, as JSON and in words.

use std::io;
use std::io::Write;

use jiff::Timestamp;
use serde::Serialize;

use super::Hashed;
use super::found::Finding;
use super::found::Found;
use super::found::Service;
use super::found::Status;
use crate::decide::obligation::Obligation;

/// Everything that is said.
#[derive(Serialize)]
pub(super) struct Said {
    schema_version: u8,
    /// The version of this program.
    pub(super) program: &'static str,
    /// As of when.
    pub(super) at: String,
    /// How many obligations have which status.
    pub(super) summary: Summary,
    pub(super) services: Vec<SaidService>,
    pub(super) obligations: Vec<SaidObligation>,
}

#[derive(Default, Serialize)]
pub(super) struct Summary {
    pub(super) enforced: usize,
    pub(super) gated: usize,
    pub(super) recorded: usize,
    pub(super) observed: usize,
    pub(super) not_met: usize,
}

#[derive(Serialize)]
pub(super) struct SaidService {
    pub(super) service: String,
    pub(super) storage_location: String,
    pub(super) files: Vec<SaidFile>,
    pub(super) policy: SaidPolicy,
    /// Customers whose violations are blocked.
    pub(super) enforced_customers: Vec<String>,
    /// Customers whose violations pass.
    pub(super) observed_customers: Vec<String>,
    #[serde(skip)]
    found: Vec<(Obligation, Found)>,
}

#[derive(Serialize)]
pub(super) struct SaidFile {
    pub(super) path: String,
    pub(super) sha256: String,
}

#[derive(Serialize)]
pub(super) struct SaidPolicy {
    pub(super) name: String,
    pub(super) revision: u64,
    pub(super) digest: String,
}

#[derive(Serialize)]
pub(super) struct SaidObligation {
    pub(super) obligation: &'static str,
    pub(super) clauses: &'static [&'static str],
    pub(super) text: &'static str,
    /// The worst of the services.
    pub(super) status: &'static str,
    /// The codes of the rules that hold it.
    pub(super) rules: Vec<&'static str>,
    pub(super) services: Vec<SaidFound>,
}

#[derive(Serialize)]
pub(super) struct SaidFound {
    pub(super) service: String,
    pub(super) status: &'static str,
    pub(super) held: Vec<SaidHeld>,
    pub(super) gaps: Vec<SaidGap>,
    pub(super) notes: Vec<SaidNote>,
}

#[derive(Serialize)]
pub(super) struct SaidHeld {
    pub(super) status: &'static str,
    pub(super) text: String,
}

#[derive(PartialEq, Eq, Serialize)]
pub(super) struct SaidGap {
    pub(super) code: &'static str,
    pub(super) status: &'static str,
    pub(super) text: String,
    pub(super) names: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct SaidNote {
    pub(super) code: &'static str,
    pub(super) text: String,
    pub(super) names: Vec<String>,
}

impl SaidService {
    pub(super) fn new(service: &Service<'_>, files: &[Hashed]) -> Self {
        let (enforced_customers, observed_customers) = service.by_enforcement();
        let policy = service.policy;
        Self {
            service: service.settings.service.clone(),
            storage_location: service.settings.storage_location.to_string(),
            files: files.iter().map(|it| SaidFile { path: it.path.clone(), sha256: it.sha256.clone() }).collect(),
            policy: SaidPolicy {
                name: policy.name.to_string(),
                revision: policy.revision,
                digest: policy.digest.to_string(),
            },
            enforced_customers,
            observed_customers,
            found: Obligation::ALL.into_iter().map(|obligation| (obligation, service.found(obligation))).collect(),
        }
    }
}

impl Said {
    pub(super) fn new(mut services: Vec<SaidService>, now: Timestamp) -> Self {
        let mut summary = Summary::default();
        let mut all: Vec<(String, Vec<(Obligation, Found)>)> = Vec::new();
        for service in &mut services {
            all.push((service.service.clone(), std::mem::take(&mut service.found)));
        }
        let mut obligations = Vec::new();
        for obligation in Obligation::ALL {
            let of_it: Vec<(&String, &Found)> = all
                .iter()
                .filter_map(|(name, found)| Some((name, &found.iter().find(|(it, _)| *it == obligation)?.1)))
                .collect();
            let status = of_it.iter().map(|(_, found)| found.status).max().unwrap_or(Status::NotMet);
            *match status {
                Status::Enforced => &mut summary.enforced,
                Status::Gated => &mut summary.gated,
                Status::Recorded => &mut summary.recorded,
                Status::Observed => &mut summary.observed,
                Status::NotMet => &mut summary.not_met,
            } += 1;
            obligations.push(SaidObligation {
                obligation: obligation.as_str(),
                clauses: obligation.clauses(),
                text: obligation.text(),
                status: status.as_str(),
                rules: of_it.first().map(|(_, found)| found.rules.clone()).unwrap_or_default(),
                services: of_it.into_iter().map(|(name, found)| said_found(name, found)).collect(),
            });
        }
        let program = concat!("dpa-sidecar ", env!("CARGO_PKG_VERSION"));
        Self { schema_version: 1, program, at: now.to_string(), summary, services, obligations }
    }

    /// Whether each obligation is enforced, gated or recorded.
    pub(super) fn is_covered(&self) -> bool {
        self.summary.observed + self.summary.not_met == 0
    }

    /// For people.
    pub(super) fn print(&self, out: &mut dyn Write, colour: bool) -> io::Result<()> {
        for service in &self.services {
            let SaidService {
                service, storage_location, policy, files, enforced_customers, observed_customers, ..
            } = service;
            writeln!(out, "service: {service}, keeps data in {storage_location}")?;
            let SaidPolicy { name, revision, digest } = policy;
            writeln!(out, "  policy: {name} revision {revision}, digest {digest}")?;
            for SaidFile { path, sha256 } in files {
                writeln!(out, "  file: {path}, SHA-256 {sha256}")?;
            }
            writeln!(out, "  customers: {} enforced, {} observed", enforced_customers.len(), observed_customers.len())?;
        }
        writeln!(out, "as of: {}", self.at)?;
        let is_one = self.services.len() == 1;
        for SaidObligation { obligation, clauses, text, status, rules, services } in &self.obligations {
            let word = status_named(status).text().to_uppercase();
            let paint = match *status {
                "not_met" => "31",
                "observed" => "33",
                _ => "32",
            };
            let word = if colour { format!("\x1b[1;{paint}m{word}\x1b[0m") } else { word };
            writeln!(out, "\n{word}: {obligation} ({})", clauses.join(", "))?;
            writeln!(out, "  {text}")?;
            if !rules.is_empty() {
                writeln!(out, "  rules: {}", rules.join(", "))?;
            }
            for SaidFound { service, status, held, gaps, notes } in services {
                let indent = if is_one { "" } else { "  " };
                if !is_one {
                    writeln!(out, "  {service}: {}", status_named(status).text())?;
                }
                for SaidHeld { status, text } in held {
                    writeln!(out, "{indent}  {}: {text}", status_named(status).text())?;
                }
                for SaidGap { code, status, text, names } in gaps {
                    let named = named(text, names);
                    writeln!(out, "{indent}  {}: {named} [{code}]", status_named(status).text())?;
                }
                for SaidNote { code, text, names } in notes {
                    writeln!(out, "{indent}  note: {} [{code}]", named(text, names))?;
                }
            }
        }
        let Summary { enforced, gated, recorded, observed, not_met } = &self.summary;
        writeln!(
            out,
            "\n{} obligations: {enforced} enforced, {gated} gated, {recorded} recorded, {observed} observed, {not_met} not met",
            self.obligations.len()
        )
    }
}

/// Names that a line shows; `-o json` has all.
const MOST_NAMED: usize = 12;

/// Names and what is said of them.
pub(super) fn named(text: &str, names: &[String]) -> String {
    // What speaks of one thing only names it already.
    if names.is_empty() || names.iter().any(|name| text.contains(&format!("`{name}`"))) {
        return text.to_owned();
    }
    let more = names.len().saturating_sub(MOST_NAMED);
    let shown: Vec<&str> = names.iter().take(MOST_NAMED).map(String::as_str).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{text}: {}{more}", shown.join(", "))
}

/// The status of a word.
pub(super) fn status_named(word: &str) -> Status {
    Status::ALL.into_iter().find(|status| status.as_str() == word).unwrap_or(Status::NotMet)
}

fn said_found(service: &str, found: &Found) -> SaidFound {
    let Found { status, rules: _, held, gaps, notes } = found;
    SaidFound {
        service: service.to_owned(),
        status: status.as_str(),
        held: held.iter().map(|(status, text)| SaidHeld { status: status.as_str(), text: text.clone() }).collect(),
        gaps: gaps.iter().map(gap).collect(),
        notes: notes
            .iter()
            .map(|Finding { code, text, names, .. }| SaidNote { code, text: text.clone(), names: names.clone() })
            .collect(),
    }
}

fn gap(Finding { code, status, text, names }: &Finding) -> SaidGap {
    SaidGap { code, status: status.as_str(), text: text.clone(), names: names.clone() }
}
