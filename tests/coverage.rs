//! `coverage`: each thing that it says is switched off, and then it says otherwise.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use crate::properties::SAMPLE;
use crate::support::Folder;
use crate::support::as_golden;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;

/// Settings of a service that does all that settings of this version can do.
const GOOD: &str = "\
service: {name: subscriber-api, storage_location: US-OR, instance: pod-0, caller: subscriber-api}
policy: {file: policy.yaml, public_key: policy.key.pub, baseline: agreed.yaml, max_age: 365d}
listeners:
  - {name: main, address: 127.0.0.1:8443, upstream: app, tls: {certificate: tls.crt, private_key: tls.key, client_ca: ca.crt}}
  - {name: to-meridian, address: 127.0.0.1:9101, upstream: meridian, direction: egress}
upstreams:
  - {name: app, address: 127.0.0.1:3000}
  - {name: meridian, address: api.meridian.example:443, recipient: sp-07, tls: {ca: ca.crt}}
identity:
  - certificate: {}
routes:
  - {path: '/v1/{customer}/{id}', customer: {from: path, name: customer}, subscriber: {from: path, name: id}, purpose: {from: context}, data_categories: [user.contact]}
decision_log: {file: {path: log.ndjson}, durability: synced, signing_key: log.key, checkpoint_copy: stdout}
";

/// Settings of a service that does little.
const POOR: &str = "\
service: {name: insights-api, storage_location: CA-QC, instance: pod-1}
policy: {file: policy.yaml}
enforcement: observe
listeners:
  - {name: main, address: 0.0.0.0:8080, upstream: app}
upstreams:
  - {name: app, address: data.internal:3000}
identity:
  - header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32, 10.0.0.0/8]}
routes:
  - {path: '/v1/usage', customer: {from: query, name: customer}, purpose: customer_analytics, data_categories: [user.telemetry]}
  - {path: '/{*rest}', subscriber_data: false}
probes: [/healthz]
decision_log: {stdout: true, on_failure: allow}
";

/// The sample with the measures that it leaves out, and nobody on observe.
fn good_policy() -> String {
    let text = SAMPLE.replace("    enforcement: observe\n", "");
    assert_ne!(text, SAMPLE);
    text + "\nsecurity_measures: {min_tls_version: \"1.3\", client_authentication: required, decision_log: synced}\n"
}

fn folder() -> Folder {
    let folder = Folder::new();
    let authority = rcgen::generate_simple_self_signed(["api.lumenfield.example".to_owned()]).unwrap();
    folder.write("tls.crt", &authority.cert.pem());
    folder.write("ca.crt", &authority.cert.pem());
    folder.write("tls.key", &authority.signing_key.serialize_pem());
    for key in ["log.key", "policy.key"] {
        assert!(run(&folder.file("."), &["keygen", key]).status.success());
    }
    folder
}

/// Writes settings and their policy, as it was agreed and signed.
fn write(folder: &Folder, settings: &str, policy: &str) {
    folder.write("sidecar.yaml", settings);
    folder.write("policy.yaml", policy);
    folder.write("agreed.yaml", policy);
    let signed = run(&folder.file("."), &["sign", "--key", "policy.key", "policy.yaml"]);
    assert!(signed.status.success(), "{}", err(&signed));
}

fn covered(folder: &Folder, settings: &str, policy: &str) -> Value {
    write(folder, settings, policy);
    let output = run(&folder.file("."), &["coverage", "sidecar.yaml", "--at", "2026-06-15T12:00:00Z", "-o", "json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{settings}\n{}", err(&output)))
}

/// What is found about an obligation: `status`, and of each gap and note the code and the names.
fn findings(report: &Value, obligation: &str) -> (String, BTreeSet<(String, Vec<String>)>) {
    let all = report["obligations"].as_array().unwrap();
    let of_it = all.iter().find(|it| it["obligation"] == obligation).unwrap_or_else(|| panic!("no {obligation}"));
    let found = &of_it["services"][0];
    let of = |key: &str| found[key].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let named = |it: Value| (text(&it["code"]), it["names"].as_array().unwrap().iter().map(text).collect());
    (text(&of_it["status"]), of("gaps").into_iter().chain(of("notes")).map(named).collect())
}

#[test]
fn a_service_that_does_all_covers_all() {
    let report = covered(&folder(), GOOD, &good_policy());
    for obligation in report["obligations"].as_array().unwrap() {
        let expected = &obligation["services"][0]["held"][0]["status"];
        assert_eq!(&obligation["status"], expected, "{obligation:#}");
        assert_eq!(obligation["services"][0]["gaps"], serde_json::json!([]), "{obligation:#}");
    }
}

/// A sentence; in the settings or the policy, what is replaced by what; the obligation, its status then, and the code of
/// what is found that was not found before, with its names.
type Row<'r> = (&'r str, &'r str, &'r str, &'r str, &'r str, &'r str, &'r [&'r str]);

const ROWS: &[Row<'_>] = &[
    (
        "a policy that nobody signs",
        ", public_key: policy.key.pub",
        "",
        "security-measures",
        "not_met",
        "policy_unsigned",
        &[],
    ),
    (
        "a policy that follows no agreed one",
        ", baseline: agreed.yaml",
        "",
        "security-measures",
        "not_met",
        "no_baseline",
        &[],
    ),
    (
        "a policy that never grows old",
        ", max_age: 365d",
        "",
        "cannot-comply-notice",
        "not_met",
        "policy_never_stale",
        &[],
    ),
    ("a sidecar that observes", "drain", "enforcement: observe", "no-sale", "not_met", "sidecar_observes", &[]),
    (
        "the same, for a breach",
        "drain",
        "enforcement: observe",
        "breach-notice",
        "not_met",
        "records_may_be_missing_under_observe",
        &[],
    ),
    ("the same, told", "drain", "enforcement: observe", "cannot-comply-notice", "not_met", "sidecar_observes", &[]),
    (
        "a log that may miss records",
        "durability: synced",
        "on_failure: allow, durability: synced",
        "audits",
        "not_met",
        "records_may_be_missing",
        &[],
    ),
    (
        "the same, for third parties",
        "durability: synced",
        "on_failure: allow, durability: synced",
        "no-third-party-rights",
        "not_met",
        "records_may_be_missing",
        &[],
    ),
    ("a log that nobody signs", "signing_key: log.key, ", "", "audits", "not_met", "log_unsigned", &[]),
    (
        "checkpoints that lie beside the log",
        ", checkpoint_copy: stdout",
        "",
        "audits",
        "not_met",
        "no_checkpoint_copy",
        &[],
    ),
    ("a log that the power takes", "durability: synced, ", "", "audits", "recorded", "lost_with_the_power", &[]),
    (
        "a log on standard output",
        "{file: {path: log.ndjson}, durability: synced",
        "{stdout: true",
        "audits",
        "recorded",
        "log_on_stdout",
        &[],
    ),
    (
        "a log of which little is kept",
        "{path: log.ndjson}",
        "{path: log.ndjson, keep: 3}",
        "audits",
        "recorded",
        "retention",
        &[],
    ),
    (
        "a listener in clear, with a floor",
        ", tls: {certificate: tls.crt, private_key: tls.key, client_ca: ca.crt}",
        "",
        "security-measures",
        "enforced",
        "denied_in_clear",
        &["main (127.0.0.1:8443)"],
    ),
    (
        "an upstream in clear",
        ", tls: {ca: ca.crt}",
        "",
        "security-measures",
        "not_met",
        "upstreams_in_clear",
        &["meridian"],
    ),
    (
        "an upstream that others reach",
        "127.0.0.1:3000",
        "data.internal:3000",
        "scope",
        "enforced",
        "reachable_beside",
        &["app"],
    ),
    (
        "no egress",
        "  - {name: to-meridian, address: 127.0.0.1:9101, upstream: meridian, direction: egress}\n",
        "",
        "subprocessor-authorized",
        "enforced",
        "egress_unseen",
        &["sp-01", "sp-02", "sp-03", "sp-04", "sp-05", "sp-06", "sp-07", "sp-08", "sp-09", "sp-11"],
    ),
    (
        "a header from a network",
        "  - certificate: {}",
        "  - certificate: {}\n  - header: {name: X-Caller, trusted_peers: [10.0.0.0/8]}",
        "on-behalf",
        "not_met",
        "callers_by_address",
        &["header x-caller from 10.0.0.0/8"],
    ),
    (
        "a header from the pod",
        "  - certificate: {}",
        "  - certificate: {}\n  - header: {name: X-Caller, trusted_peers: [127.0.0.1/32]}",
        "customer-owned",
        "enforced",
        "callers_by_this_machine",
        &["header x-caller from 127.0.0.1/32"],
    ),
    (
        "a route without a subscriber",
        "subscriber: {from: path, name: id}, ",
        "",
        "subscriber-requests",
        "not_met",
        "routes_without_subscriber",
        &["/v1/{customer}/{id}"],
    ),
    (
        "a route with one purpose",
        "purpose: {from: context}",
        "purpose: customer_support",
        "on-behalf",
        "enforced",
        "fixed_purpose",
        &["/v1/{customer}/{id}"],
    ),
    (
        "the same, for subscribers' rights",
        "purpose: {from: context}",
        "purpose: customer_support",
        "cooperation",
        "not_met",
        "no_route",
        &["rights_fulfilment"],
    ),
    (
        "everything outside the agreement",
        "decision_log",
        "  - {path: '/{*rest}', subscriber_data: false}\ndecision_log",
        "scope",
        "not_met",
        "catch_all",
        &["/{*rest}"],
    ),
    (
        "something outside the agreement",
        "decision_log",
        "  - {path: '/docs', subscriber_data: false}\ndecision_log",
        "scope",
        "enforced",
        "out_of_scope",
        &["/docs"],
    ),
    (
        "a service elsewhere",
        "storage_location: US-OR",
        "storage_location: CA-QC",
        "storage-residency",
        "enforced",
        "kept_elsewhere",
        &["granite-notch"],
    ),
    ("no floor", "min_tls_version: \"1.3\", ", "", "security-measures", "not_met", "no_transport_floor", &[]),
    (
        "a customer on observe",
        "id: redwood-strand",
        "id: redwood-strand\n    enforcement: observe",
        "purpose-permitted",
        "observed",
        "customers_observed",
        &["redwood-strand"],
    ),
    (
        "the same, told",
        "id: redwood-strand",
        "id: redwood-strand\n    enforcement: observe",
        "cannot-comply-notice",
        "observed",
        "customers_observed",
        &["redwood-strand"],
    ),
    (
        "observe by default",
        "enforcement: enforce",
        "enforcement: observe",
        "scope",
        "observed",
        "default_observed",
        &[],
    ),
    ("no such purpose", "data_return", "data_regain", "return-or-delete", "not_met", "no_purpose", &["data_return"]),
    (
        "the same, where a law bars",
        "data_return",
        "data_regain",
        "change-of-law",
        "not_met",
        "no_purpose",
        &["data_return"],
    ),
    (
        "nobody for subscribers' rights",
        "permitted_purposes: [customer_support, account_management, rights_fulfilment]",
        "permitted_purposes: [customer_support]",
        "cooperation",
        "not_met",
        "nobody_may",
        &["rights_fulfilment"],
    ),
    (
        "a customer that did not accept",
        "accepted_at: 2024-01-10, ",
        "",
        "agreement-in-force",
        "enforced",
        "not_accepted",
        &["redwood-strand", "dusty-fork"],
    ),
    (
        "a subprocessor without an agreement",
        "agreement: {ref: SPA-2021-03",
        "agreement: {expires_on: 2025-01-01, ref: SPA-2021-03",
        "subprocessor-agreement",
        "enforced",
        "no_agreement_in_force",
        &["sp-05", "sp-11"],
    ),
];

/// The same, where several things are replaced, in the settings or the policy.
type Rows<'r> = (&'r str, &'r [(&'r str, &'r str)], &'r str, &'r str, &'r str, &'r [&'r str]);

const MORE: &[Rows<'_>] = &[
    (
        "listeners in clear, and nobody asks",
        &[
            (", tls: {certificate: tls.crt, private_key: tls.key, client_ca: ca.crt}", ""),
            ("min_tls_version: \"1.3\", ", ""),
        ],
        "security-measures",
        "not_met",
        "listeners_in_clear",
        &["main (127.0.0.1:8443)"],
    ),
    (
        "nothing that a restriction could be held against",
        &[(
            "customer: {from: path, name: customer}, subscriber: {from: path, name: id}, purpose: {from: context}, data_categories: [user.contact]",
            "subscriber_data: false",
        )],
        "subscriber-requests",
        "not_met",
        "no_route_with_data",
        &[],
    ),
    (
        "an instruction that nobody accepted",
        &[("        reference: DSR-98\n", "")],
        "accepted-duties-only",
        "enforced",
        "proposed_instructions",
        &["cedar-hollow", "redwood-strand"],
    ),
    (
        "a subprocessor that is to come",
        &[("effective_at: 2025-02-14", "effective_at: 2026-08-14")],
        "subprocessor-objection",
        "enforced",
        "not_effective_yet",
        &["sp-09", "sp-10"],
    ),
    (
        "an objection that is to come",
        &[("{subprocessor: sp-09, effective_at: 2025-02-01", "{subprocessor: sp-09, effective_at: 2026-08-01")],
        "subprocessor-objection",
        "enforced",
        "objections",
        &["fibre-outardes"],
    ),
    (
        "a caller of whom nobody says where it is",
        &[(
            "    location: US-OR\n    permitted_purposes: [billing_payment]",
            "    permitted_purposes: [billing_payment]",
        )],
        "transfer-residency",
        "enforced",
        "location_by_claim",
        &["biller", "care-roaming"],
    ),
    (
        "a law that bars a customer",
        &[("contract_ref: MSA-0264}", "contract_ref: MSA-0264, suspended_by_law_at: 2026-01-01}")],
        "change-of-law",
        "enforced",
        "suspended",
        &["granite-notch", "salt-flat"],
    ),
    (
        "an agreement that has ended",
        &[("contract_ref: MSA-0264}", "contract_ref: MSA-0264, terminated_at: 2026-01-01, return_until: 2026-12-31}")],
        "return-or-delete",
        "enforced",
        "ended",
        &["granite-notch", "kelp-sound"],
    ),
    (
        "people whose undertaking has run out",
        &[(
            "permitted_purposes: [customer_support, account_management, rights_fulfilment]",
            "permitted_purposes: [customer_support, account_management, rights_fulfilment]\n    human_access: {group: desk, confidentiality: {ref: NDA-1, signed_on: 2025-01-01, expires_on: 2026-01-01}}",
        )],
        "confidentiality",
        "enforced",
        "undertaking_not_in_force",
        &["care-desk", "care-temp"],
    ),
    (
        "the same: they are no machines",
        &[(
            "permitted_purposes: [customer_support, account_management, rights_fulfilment]",
            "permitted_purposes: [customer_support, account_management, rights_fulfilment]\n    human_access: {group: desk, confidentiality: {ref: NDA-1, signed_on: 2025-01-01, expires_on: 2026-01-01}}",
        )],
        "confidentiality",
        "enforced",
        "no_people_declared",
        &["biller", "care-roaming", "exporter", "rollup", "subscriber-api"],
    ),
    (
        "a restriction that is to come",
        &[
            ("valid_from: 2026-06-02", "valid_from: 2026-07-02"),
            ("issuer_role: General counsel", "issuer_role: General counsel\n        restricts: {subscriber: \"1a2b\"}"),
        ],
        "subscriber-requests",
        "enforced",
        "restrictions",
        &["granite-notch"],
    ),
    (
        "no purpose for subscribers' rights",
        &[("rights_fulfilment", "rights_filling")],
        "cooperation",
        "not_met",
        "no_purpose",
        &["rights_fulfilment"],
    ),
    (
        "nobody who erases",
        &[("permitted_purposes: [data_return, erasure]", "permitted_purposes: [data_return]")],
        "return-or-delete",
        "not_met",
        "nobody_may",
        &["erasure"],
    ),
    (
        "nobody who returns, where a law bars",
        &[("permitted_purposes: [data_return, erasure]", "permitted_purposes: [erasure]")],
        "change-of-law",
        "not_met",
        "nobody_may",
        &["data_return"],
    ),
    (
        "a policy that is too old: everything is denied, and that is told",
        &[("max_age: 365d", "max_age: 7d")],
        "cannot-comply-notice",
        "not_met",
        "policy_stale",
        &[],
    ),
    (
        "the same: what a customer is owed is denied too",
        &[("max_age: 365d", "max_age: 7d"), ("id: granite-notch", "id: granite-notch\n    enforcement: observe")],
        "cooperation",
        "not_met",
        "policy_stale",
        &["cedar-hollow", "dusty-fork", "fibre-outardes", "kelp-sound", "redwood-strand", "salt-flat"],
    ),
    ("the same, of return", &[("max_age: 365d", "max_age: 7d")], "return-or-delete", "not_met", "policy_stale", ALL),
    (
        "the same, where a law bars",
        &[("max_age: 365d", "max_age: 7d")],
        "change-of-law",
        "not_met",
        "policy_stale",
        ALL,
    ),
    (
        "a policy that may be too old",
        &[("max_age: 365d", "max_age: 365d, on_stale: warn")],
        "cannot-comply-notice",
        "observed",
        "stale_passes",
        &[],
    ),
    (
        "one that is, and decides",
        &[("max_age: 365d", "max_age: 7d, on_stale: warn")],
        "cannot-comply-notice",
        "not_met",
        "policy_stale",
        &[],
    ),
    (
        "the same: its rules do not bind",
        &[("max_age: 365d", "max_age: 7d, on_stale: warn")],
        "subprocessor-objection",
        "not_met",
        "policy_stale",
        &[],
    ),
    (
        "the same: it is no measure",
        &[("max_age: 365d", "max_age: 7d, on_stale: warn")],
        "security-measures",
        "not_met",
        "policy_stale",
        &[],
    ),
    (
        "127.0.0.0/8 is this machine; a network that begins there is not",
        &[(
            "  - certificate: {}",
            "  - certificate: {}\n  - header: {name: X-Caller, trusted_peers: [127.0.0.0/8, 126.0.0.0/7, 0.0.0.0/0, \"::1\", \"::/0\", unix]}",
        )],
        "on-behalf",
        "not_met",
        "callers_by_address",
        &["header x-caller from 126.0.0.0/7", "header x-caller from 0.0.0.0/0", "header x-caller from ::/0"],
    ),
    (
        "the same: what is this machine",
        &[(
            "  - certificate: {}",
            "  - certificate: {}\n  - forwarded_certificate: {trusted_peers: [127.0.0.0/8, \"::1\", unix]}",
        )],
        "customer-owned",
        "enforced",
        "callers_by_this_machine",
        &[
            "X-Forwarded-Client-Cert from 127.0.0.0/8",
            "X-Forwarded-Client-Cert from ::1/128",
            "X-Forwarded-Client-Cert on a Unix socket",
        ],
    ),
];

const ALL: &[&str] =
    &["cedar-hollow", "dusty-fork", "fibre-outardes", "granite-notch", "kelp-sound", "redwood-strand", "salt-flat"];

/// Settings and policy with something replaced; nothing, if it is not there.
fn replaced(settings: &str, policy: &str, from: &str, to: &str) -> Option<(String, String)> {
    if from == "drain" {
        return Some((format!("{settings}{to}\n"), policy.to_owned()));
    }
    if settings.contains(from) {
        return Some((settings.replace(from, to), policy.to_owned()));
    }
    // A purpose is named in many places.
    let is_purpose = ["data_return", "rights_fulfilment"].contains(&from);
    let changed = if is_purpose { policy.replace(from, to) } else { policy.replacen(from, to, 1) };
    (changed != policy).then(|| (settings.to_owned(), changed))
}

/// Each row, as one of several replacements.
fn rows() -> Vec<Rows<'static>> {
    let one = ROWS.iter().map(|(name, from, to, obligation, status, code, names)| -> Rows<'static> {
        (name, Box::leak(Box::new([(*from, *to)])), obligation, status, code, names)
    });
    one.chain(MORE.iter().copied()).collect()
}

#[test]
fn what_is_switched_off_is_seen() {
    let folder = folder();
    let policy = good_policy();
    let good = covered(&folder, GOOD, &policy);
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    let mut see = |report: &Value| {
        for obligation in report["obligations"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let by_status = seen.entry(text(&obligation["obligation"])).or_default();
            by_status.entry(text(&obligation["status"])).or_default();
            for finding in ["gaps", "notes"].iter().flat_map(|key| obligation["services"][0][key].as_array().unwrap()) {
                let status = finding["status"].as_str().unwrap_or("note").to_owned();
                by_status.entry(status).or_default().insert(text(&finding["code"]));
            }
        }
    };
    see(&good);
    for (name, changes, obligation, status, code, names) in rows() {
        let mut changed = Some((GOOD.to_owned(), policy.clone()));
        for (from, to) in changes {
            changed = changed.and_then(|(settings, policy)| replaced(&settings, &policy, from, to));
        }
        let Some((settings, changed)) = changed else {
            wrong.push(format!("{name}: nothing of it is there"));
            continue;
        };
        // What has to be `synced` is so only with a file.
        let changed = if settings.contains("durability: synced") {
            changed
        } else {
            changed.replace(", decision_log: synced", "")
        };
        let report = covered(&folder, &settings, &changed);
        see(&report);
        let is_it = |(found, of): &(String, Vec<String>)| {
            let (of, names): (BTreeSet<&str>, BTreeSet<&str>) =
                (of.iter().map(String::as_str).collect(), names.iter().copied().collect());
            found == code && of == names
        };
        let (is, found) = findings(&report, obligation);
        let before = findings(&good, obligation).1;
        if is != status || !found.iter().any(is_it) || before.iter().any(is_it) {
            wrong.push(format!("{name}: {obligation} is {is}: {found:?}; before {before:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    // What the program can find, and no row shows.
    let source = std::fs::read_to_string(repository("src/cli/coverage/found.rs")).unwrap();
    let shown: BTreeSet<&String> = seen.values().flat_map(BTreeMap::values).flatten().collect();
    let is_code =
        |word: &&str| word.contains('_') && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let words: BTreeSet<&str> = source.split('"').filter(is_code).collect();
    let others = ["not_met", "data_return", "rights_fulfilment"];
    let missing: Vec<&&str> =
        words.iter().filter(|word| !others.contains(word) && !shown.contains(&(**word).to_owned())).collect();
    assert!(missing.is_empty() && words.len() > 40, "no row shows {missing:?} of {}", words.len());
    let documentation = std::fs::read_to_string(repository("docs/coverage.md")).unwrap();
    let missing: Vec<&&String> = shown.iter().filter(|code| !documentation.contains(&format!("`{code}`"))).collect();
    assert!(missing.is_empty(), "docs/coverage.md does not say what {missing:?} means");
    // Each obligation, each status it can have, and what can be found of it.
    let mut table = String::new();
    for (obligation, by_status) in &seen {
        writeln!(table, "{obligation}").unwrap();
        for (status, codes) in by_status {
            writeln!(table, "  {status}: {}", codes.iter().map(String::as_str).collect::<Vec<_>>().join(", ")).unwrap();
        }
    }
    assert_eq!(as_golden("coverage/what-can-be-found.txt", &table), None);
}

/// A sentence as the name of its files, the files, the exit code; text, JSON and the page.
#[test]
fn what_is_said_of_services() {
    let folder = folder();
    write(&folder, GOOD, &good_policy());
    std::fs::create_dir(folder.file("sample")).unwrap();
    folder.write("sample/policy.yaml", SAMPLE);
    folder.write("sample/sidecar.yaml", POOR);
    let table: [(&str, &[&str], i32); 3] = [
        ("all-that-there-is", &["sidecar.yaml"], 0),
        ("little", &["sample/sidecar.yaml"], 1),
        ("two-services", &["sidecar.yaml", "sample/sidecar.yaml"], 1),
    ];
    let mut wrong = Vec::new();
    for (name, files, expected) in table {
        for form in ["text", "json", "html"] {
            let arguments = [&["coverage"], files, &["--at", "2026-06-15T12:00:00Z", "-o", form]].concat();
            let output = run(&folder.file("."), &arguments);
            if output.status.code() != Some(expected) {
                wrong.push(format!("{name}: {}: {}", output.status, err(&output)));
            }
            // The keys of the folder are made anew each time, and nothing of them is shown.
            let extension = if form == "text" { "txt" } else { form };
            wrong.extend(as_golden(&format!("coverage/{name}.{extension}"), &out(&output)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_page_needs_nothing_beside_it_and_takes_no_tags() {
    let folder = folder();
    let settings = GOOD
        .replace("/v1/{customer}/{id}", "/v1/a&b/{customer}/{id}")
        .replace("subscriber: {from: path, name: id}, ", "");
    write(&folder, &settings, &good_policy());
    let page = out(&run(&folder.file("."), &["coverage", "sidecar.yaml", "-o", "html"]));
    for unwanted in ["<script", "http://", "https://", "src=", "@import", "url(", "<link", "a&b/"] {
        assert!(!page.contains(unwanted), "{unwanted}");
    }
    assert!(page.contains("/v1/a&amp;b/{customer}/{id}"), "{page}");
    for tag in [
        "html", "head", "body", "header", "main", "footer", "table", "thead", "tbody", "tr", "td", "th", "ul", "li",
        "ol", "dl", "dt", "dd", "p", "h1", "h2", "code", "span", "strong", "a", "time",
    ] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert_eq!(page.matches("<th scope=\"row\">").count(), 24);
}

#[test]
fn with_what_no_sidecar_starts_nothing_is_covered() {
    let folder = folder();
    write(&folder, GOOD, &(good_policy() + "require_enforce: true\n"));
    folder.write("observes.yaml", &format!("{GOOD}enforcement: observe\n"));
    folder.write("broken.yaml", "service: {name: x}\n");
    folder.write("nowhere.yaml", &GOOD.replace("file: policy.yaml", "file: no-such-file"));
    for file in ["observes.yaml", "broken.yaml", "nowhere.yaml", "no-such-file"] {
        let output = run(&folder.file("."), &["coverage", file]);
        assert_eq!(output.status.code(), Some(2), "{file}: {}", out(&output));
        assert!(out(&output).is_empty() && !err(&output).is_empty(), "{file}");
    }
}
