//! `explain`, as an officer reads it.

use std::path::Path;

use serde_json::Value;

use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::as_golden;
use crate::support::denied;
use crate::support::err;
use crate::support::out;
use crate::support::permitted;
use crate::support::repository;
use crate::support::run;

/// A sentence as the name of its file, the request as flags, the exit code.
const STATED: [(&str, &str, i32); 9] = [
    (
        "permit",
        "--storage-location US-OR --customer redwood-strand --caller care-desk --purpose customer_support \
         --data-category user.contact",
        0,
    ),
    (
        "permit-under-a-transfer",
        "--storage-location CA-QC --customer fibre-outardes --caller sp-04 --purpose customer_support \
         --data-category user.contact",
        0,
    ),
    (
        "permit-on-an-instruction",
        "--storage-location US-OR --customer redwood-strand --caller sp-07 --purpose customer_analytics \
         --operation export --data-category user.telemetry --instruction ins-004 --at 2026-06-05",
        0,
    ),
    (
        "deny-on-an-instruction-that-has-ended",
        "--storage-location US-OR --customer redwood-strand --caller sp-07 --purpose customer_analytics \
         --operation export --data-category user.telemetry --instruction ins-004",
        1,
    ),
    (
        "deny-for-several-reasons",
        "--storage-location US-OR --customer fibre-outardes --caller sp-07 --purpose customer_analytics \
         --data-category user.telemetry",
        1,
    ),
    (
        "deny-of-a-prohibited-purpose",
        "--storage-location US-OR --customer redwood-strand --caller care-desk --purpose sale \
         --data-category user.contact",
        1,
    ),
    (
        "deny-of-a-third-party",
        "--storage-location US-OR --customer redwood-strand --caller spiffe://adsync.example/sa/bid \
         --purpose customer_support --data-category user.contact",
        1,
    ),
    (
        "deny-of-an-unidentified-caller",
        "--storage-location US-OR --customer redwood-strand --purpose customer_support --data-category user.contact",
        1,
    ),
    (
        "deny-of-a-subscriber-that-is-restricted",
        "--storage-location US-OR --customer redwood-strand --caller care-desk --purpose customer_support \
         --data-category user.contact --subscriber 7c1e",
        1,
    ),
];

#[test]
fn stated_requests() {
    let mut wrong = Vec::new();
    for (name, flags, expected) in STATED {
        let mut arguments = vec!["explain", "--policy", "policy.yaml"];
        arguments.extend(flags.split_whitespace());
        if !arguments.contains(&"--at") {
            arguments.extend(["--at", "2026-06-15"]);
        }
        let text = run(&repository("config"), &arguments);
        arguments.extend(["-o", "json"]);
        let json = run(&repository("config"), &arguments);
        if (text.status.code(), json.status.code()) != (Some(expected), Some(expected)) {
            wrong.push(format!("{name}: {} {}: {}", text.status, json.status, err(&text)));
        }
        let parsed: Value = serde_json::from_slice(&json.stdout).unwrap_or_default();
        let decision = if expected == 0 { "permit" } else { "deny" };
        if parsed["decision"] != decision || !out(&text).starts_with(decision) {
            wrong.push(format!("{name}: not a {decision}"));
        }
        wrong.extend(as_golden(&format!("explain/{name}.txt"), &out(&text)));
        wrong.extend(as_golden(&format!("explain/{name}.json"), &out(&json)));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn problem_codes() {
    let output = run(&repository(""), &["explain", "DPA012"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(as_golden("explain/DPA012.txt", &out(&output)), None);
}

/// Explains a decision in the log of a sidecar with this policy: exit code, output, errors.
fn recorded(sidecar: &Sidecar, id: &str, policy: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let log = sidecar.log();
    let mut arguments = vec!["explain", id, "--log", log.to_str().unwrap(), "--policy", policy.to_str().unwrap()];
    arguments.extend(more);
    let output = run(&repository(""), &arguments);
    (output.status.code(), out(&output), err(&output))
}

/// A line without end was read into memory until there was none left.
#[test]
fn a_line_of_a_log_was_read_without_end() {
    let folder = Folder::new();
    let id = "019ecb27-2221-72de-8d1f-f65ab3d0291e";
    let log = folder.write("decisions.ndjson", &format!("{{\"event\":\"dpa.log\"}}\n{}\n", "x".repeat(1_100_000)));
    let output =
        run(&repository("config"), &["explain", id, "--log", log.to_str().unwrap(), "--policy", "policy.yaml"]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    let said = err(&output);
    assert!(said.contains("decisions.ndjson:2: this line is longer than 1048576 bytes: no sidecar wrote it"), "{said}");
    assert!(said.contains("audit verify"), "{said}");
}

#[test]
fn decisions_in_a_log() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let policy = repository("config/policy.yaml");
    let ask = |request: String| sidecar.ask(request).decision_id();

    let id = ask(permitted());
    let (exit, text, _) = recorded(&sidecar, &id, &policy, &[]);
    assert_eq!(exit, Some(0), "{text}");
    assert!(text.starts_with("permit, on permitted_purpose\n"), "{text}");

    let id = ask(denied());
    let (exit, text, _) = recorded(&sidecar, &id, &policy, &[]);
    assert_eq!(exit, Some(1), "{text}");
    assert!(text.starts_with("deny: purpose_not_bound_to_caller\n"), "{text}");
    for (fact, value, source) in [
        ("caller", "care-desk", "header"),
        ("customer", "redwood-strand", "path"),
        ("purpose", "customer_analytics", "context"),
        ("operation", "retrieve", "method"),
        ("subscriber", "(not recorded)", "path"),
        ("storage_location", "US-OR", "settings"),
        ("route", "/v1/customers/{customer}/subscribers/{id}", "settings"),
    ] {
        let is_it = |line: &str| {
            line.trim_start().strip_prefix(fact).is_some_and(|rest| rest.contains(value) && rest.ends_with(source))
        };
        assert!(text.lines().any(is_it), "{fact}: {text}");
    }
    assert!(text.contains("    policy: ") && text.contains("config/policy.yaml:"), "{text}");
    assert!(!text.contains("1a2b"), "the subscriber is nobody's business here: {text}");

    let (exit, text, _) = recorded(&sidecar, &id, &policy, &["-o", "json"]);
    assert_eq!(exit, Some(1), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["decision"], &json["reasons"][0]["clause"]), (&"deny".into(), &"1.2".into()), "{text}");

    let id = ask(Head::bare("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support").end());
    let (exit, text, _) = recorded(&sidecar, &id, &policy, &[]);
    assert_eq!(exit, Some(1), "{text}");
    assert!(text.starts_with("deny: caller_unidentified\n"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("  caller  ") && line.ends_with("missing")), "{text}");

    // Other files would tell another story.
    let changed = std::fs::read_to_string(&policy).unwrap() + "# a remark\n";
    let folder = Folder::new();
    let changed = folder.write("policy.yaml", &changed);
    let (exit, text, errors) = recorded(&sidecar, &id, &changed, &[]);
    assert_eq!((exit, text.as_str()), (Some(2), ""), "{errors}");
    assert!(errors.contains("give the files of then"), "{errors}");

    let nobody = "01a206f5-e8d9-7cbb-9a6f-b45bb6d82ccf";
    let (exit, text, errors) = recorded(&sidecar, nobody, &policy, &[]);
    assert_eq!((exit, text.as_str()), (Some(2), ""), "{errors}");
    assert!(errors.contains("has no decision 01a206f5"), "{errors}");
}

#[test]
fn what_cannot_be_explained() {
    let id = "01a206f5-e8d9-7cbb-9a6f-b45bb6d82ccf";
    let policy: &[&str] = &["--policy", "config/policy.yaml", "--storage-location", "US-OR"];
    let table: [(&str, &[&str], &str); 11] = [
        ("an unknown code", &["DPA999"], "known: DPA001, "),
        ("a code in small letters", &["dpa012"], "neither a decision id"),
        ("neither an id nor a code", &["nonsense"], "neither a decision id"),
        ("an id without a log", &[id], "--log"),
        ("an id and a log without a policy", &[id, "--log", "README.md"], "--policy"),
        ("a log that is none", &[id, "--log", "README.md", policy[0], policy[1]], "has no decision"),
        ("a log that is not there", &[id, "--log", "nowhere.ndjson", policy[0], policy[1]], "nowhere.ndjson"),
        ("nothing", &[], "--policy"),
        ("a policy that is not there", &["--policy", "nowhere.yaml"], "nowhere.yaml"),
        ("a request without a place", &["--policy", "config/policy.yaml"], "--storage-location"),
        ("a misspelt caller", &[policy, &["--caller", "care-dsk"]].concat(), "did you mean `care-desk`?"),
    ];
    for (name, arguments, expected) in table {
        let output = run(&repository(""), &[&["explain"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{name}: {}", out(&output));
        assert!(err(&output).contains(expected) && output.stdout.is_empty(), "{name}: {}", err(&output));
    }
}

/// A line that advises to permit more turns an explanation into a way around the agreement.
#[test]
fn no_explanation_advises_to_permit_more() {
    let folder = repository("tests/golden/explain");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap().to_lowercase();
        for word in ["add ", "remove ", "change ", "widen", "allow it", "permit it", "set `"] {
            assert!(!text.contains(word), "{} says `{word}`", path.display());
        }
    }
}
