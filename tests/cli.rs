//! The commands, as a person runs them.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::Folder;
use crate::support::Setup;
use crate::support::as_golden;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;

/// File, its problem, and how many errors there are; a file with none has a warning only.
const INVALID: [(&str, &str, usize); 63] = [
    ("administered-from-everywhere", "DPA035", 1),
    ("agreement-ends-soon", "DPA030", 0),
    ("alias", "DPA002", 1),
    ("ambiguous-identity", "DPA016", 1),
    ("anchor", "DPA002", 1),
    ("bare-state", "DPA008", 1),
    ("behind-the-baseline", "DPA052", 1),
    ("certificate-nowhere", "DPA046", 1),
    ("certificate-that-is-none", "DPA050", 2),
    ("certificates-nobody-asks-for", "DPA031", 0),
    ("consent-to-two-things", "DPA021", 1),
    ("duplicate-key", "DPA003", 1),
    ("egress-for-everybody", "DPA035", 1),
    ("egress-half-said", "DPA005", 2),
    ("egress-to-nobody-known", "DPA012", 2),
    ("empty-list", "DPA017", 1),
    ("ends-before-it-begins", "DPA019", 1),
    ("environment-in-flow", "DPA001", 1),
    ("environment-unset", "DPA040", 1),
    ("everything-outside-the-agreement", "DPA034", 0),
    ("fact-source", "DPA042", 1),
    ("headers-nobody-may-set", "DPA008", 8),
    ("host-that-is-none", "DPA008", 1),
    ("impossible-case", "DPA060", 1),
    ("limit-too-small", "DPA008", 7),
    ("methods-that-are-none", "DPA008", 2),
    ("missing-field", "DPA005", 1),
    ("model-training", "DPA014", 1),
    ("network-of-an-address", "DPA008", 2),
    ("never-signed", "DPA051", 1),
    ("no-customers", "DPA018", 1),
    ("no-policy-file", "DPA046", 1),
    ("no-sink", "DPA044", 1),
    ("no-such-customer-file", "DPA020", 1),
    ("nobody-vouches", "DPA005", 4),
    ("node-network", "DPA070", 2),
    ("not-yaml", "DPA001", 1),
    ("not-yet-a-candidate", "DPA043", 1),
    ("observe-against-the-policy", "DPA045", 1),
    ("one-peer-two-headers", "DPA035", 0),
    ("prohibited-sale", "DPA013", 1),
    ("protocol-with-requests-behind", "DPA008", 5),
    ("purpose-called-sale", "DPA015", 1),
    ("purpose-nobody-permits", "DPA031", 0),
    ("residency-by-default", "DPA032", 0),
    ("route-blind-to-a-restriction", "DPA033", 0),
    ("route-conflict", "DPA041", 1),
    ("route-not-canonical", "DPA008", 1),
    ("several-at-once", "DPA008", 3),
    ("subprocessor-behind-ingress", "DPA021", 2),
    ("subprocessor-twice", "DPA011", 1),
    ("ten-mistakes", "DPA007", 10),
    ("token-anybody-could-make", "DPA008", 4),
    ("token-without-the-claim", "DPA031", 0),
    ("too-deep", "DPA009", 1),
    ("unknown-constant", "DPA012", 1),
    ("unknown-field", "DPA004", 1),
    ("unknown-purpose", "DPA012", 2),
    ("unknown-subprocessor", "DPA012", 1),
    ("unknown-upstream", "DPA012", 1),
    ("unknown-word", "DPA006", 1),
    ("version-of-tomorrow", "DPA010", 1),
    ("wide-characters", "DPA004", 2),
];

/// Each file in `tests/invalid` against the text in `tests/golden`; `BLESS=1` writes the text anew.
#[test]
fn what_is_said_of_invalid_files() {
    let tests = repository("tests");
    let mut files: Vec<String> = std::fs::read_dir(tests.join("invalid"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    assert_eq!(files, INVALID.map(|(name, ..)| name), "each file has its row");
    let mut wrong = Vec::new();
    for (name, code, count) in INVALID {
        let file = format!("invalid/{name}.yaml");
        // A test file is not one for `check`, and what is wrong with it is no result.
        let (text, exit, expected) = if code == "DPA060" {
            let output = run(&tests, &["test", &file]);
            (err(&output), output.status.code(), 2)
        } else if code == "DPA070" {
            let output = run(&tests, &["inject", "--policy-configmap", "p", "--settings-configmap", "s", &file]);
            (err(&output), output.status.code(), 1)
        } else {
            let output = run(&tests, &["check", "--at", "2026-06-15", &file]);
            (out(&output) + &err(&output), output.status.code(), i32::from(count > 0))
        };
        let errors = text.lines().filter(|line| line.contains(": error[")).count();
        if exit != Some(expected) || !text.contains(&format!("[{code}]: ")) || errors != count {
            wrong
                .push(format!("{name}: {code}, {count} errors, exit code {expected}: got {errors}, {exit:?}:\n{text}"));
        }
        wrong.extend(as_golden(&format!("{name}.txt"), &text));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn each_problem_code_has_a_file_that_shows_it() {
    let output = run(&repository(""), &["explain", "DPA000"]);
    let text = err(&output);
    let (_, known) = text.trim().split_once("known: ").unwrap();
    let known: BTreeSet<&str> = known.split(", ").collect();
    assert!(known.len() >= 36 && known.contains("DPA001") && known.contains("DPA060"), "{text}");
    let mut shown = String::new();
    for (name, ..) in INVALID {
        shown += &std::fs::read_to_string(repository(&format!("tests/golden/{name}.txt"))).unwrap();
    }
    let missing: Vec<_> = known.iter().filter(|code| !shown.contains(&format!("[{code}]"))).collect();
    assert!(missing.is_empty(), "no file in tests/invalid shows {missing:?}");
    let settings = std::fs::read_to_string(repository("docs/settings.md")).unwrap();
    let missing: Vec<_> = known.iter().filter(|code| !settings.contains(&format!("| {code} | "))).collect();
    assert!(missing.is_empty(), "docs/settings.md does not explain {missing:?}");
}

#[test]
fn at_most_a_hundred_problems_are_shown() {
    let folder = Folder::new();
    let keys = (0..150).fold(String::new(), |keys, number| keys + &format!("key{number}: 1\n"));
    folder.write("policy.yaml", &(std::fs::read_to_string(repository("tests/strict-policy.yaml")).unwrap() + &keys));
    let text = out(&run(&folder.file("."), &["check", "policy.yaml"]));
    assert_eq!(text.matches("error[DPA004]").count(), 100, "{text}");
    assert!(text.contains("… and 50 more\n") && text.contains("policy.yaml: 150 errors"), "{text}");
}

#[test]
fn the_policies_that_the_invalid_ones_are_made_from() {
    for file in ["valid-policy.yaml", "strict-policy.yaml"] {
        let output = run(&repository("tests"), &["check", "--at", "2026-06-15", file]);
        assert_eq!(output.status.code(), Some(0), "{file}: {}", out(&output));
    }
}

#[test]
fn the_shipped_files_are_good() {
    for file in ["config/policy.yaml", "config/sidecar.yaml"] {
        if repository(file).exists() {
            let output = run(&repository(""), &["check", file]);
            assert_eq!(output.status.code(), Some(0), "{file}: {}{}", out(&output), err(&output));
        }
    }
    let output = run(&repository(""), &["test", "config/policy-tests.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", out(&output), err(&output));
}

#[test]
fn exit_codes() {
    let folder = Folder::new();
    let policy = repository("config/policy.yaml");
    let cases = |expected: &str| {
        format!(
            "version: 1
policy: {}
clock: 2026-06-15T12:00:00Z
services: {{api: {{storage_location: US-OR}}}}
defaults: {{service: api, operation: retrieve, subscriber: 1a2b}}
cases:
  - name: the care desk
    request: {{customer: redwood-strand, caller: care-desk, purpose: customer_support, data_categories: [user.contact]}}
    expect: {{decision: {expected}}}
",
            serde_json::Value::from(policy.to_str().unwrap())
        )
    };
    folder.write("good-cases.yaml", &cases("permit"));
    folder.write("differing-cases.yaml", &cases("deny"));
    folder.write("good-policy.yaml", &std::fs::read_to_string(&policy).unwrap());
    folder.write("bad-policy.yaml", "version: 1\nnonsense: true\n");
    folder.write("bad-settings.yaml", &(Setup::to("127.0.0.1:1").text() + "nonsense: true\n"));
    folder.write("taken-settings.yaml", &Setup::to("127.0.0.1:1").text());
    std::fs::write(folder.file("not-text.yaml"), b"\xff\xfe\0").unwrap();
    let table: [(&str, &[&str], i32); 19] = [
        ("check of a good file", &["check", "good-policy.yaml"], 0),
        ("check of a bad file", &["check", "bad-policy.yaml"], 1),
        ("check of a good and a bad file", &["check", "good-policy.yaml", "bad-policy.yaml"], 1),
        ("check of bad settings", &["check", "bad-settings.yaml"], 1),
        ("check of a file that is not there", &["check", "nowhere.yaml"], 2),
        ("check of a folder", &["check", "."], 2),
        ("check of a file that is no text", &["check", "not-text.yaml"], 2),
        ("check of nothing", &["check"], 2),
        ("test with all as expected", &["test", "good-cases.yaml"], 0),
        ("test with a case that differs", &["test", "differing-cases.yaml"], 1),
        ("test with one of each", &["test", "good-cases.yaml", "differing-cases.yaml"], 1),
        ("test of a file that is not there", &["test", "nowhere.yaml"], 2),
        ("test of a file that is no test file", &["test", "good-policy.yaml"], 2),
        ("run with bad settings", &["run", "--config", "bad-settings.yaml"], 1),
        ("run with a bad policy", &["run", "--policy", "bad-policy.yaml", "--upstream", "127.0.0.1:1"], 1),
        ("run with settings that are not there", &["run", "--config", "nowhere.yaml"], 2),
        ("run with nothing", &["run"], 2),
        ("help", &["--help"], 0),
        ("an unknown command", &["walk"], 2),
    ];
    for (name, arguments, expected) in table {
        let output = run(&folder.file("."), arguments);
        assert_eq!(output.status.code(), Some(expected), "{name}: {}{}", out(&output), err(&output));
        if expected == 2 {
            assert!(err(&output).len() + out(&output).len() > 10, "{name}: says nothing");
        }
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Setup::to("127.0.0.1:1").text().replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    folder.write("taken-settings.yaml", &settings);
    let output = run(&folder.file("."), &["run", "--config", "taken-settings.yaml"]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(err(&output).contains("cannot listen on"), "{}", err(&output));
}

#[test]
fn check_as_json() {
    let output = run(&repository("tests"), &["check", "-o", "json", "invalid/bare-state.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["schema_version"], 1);
    let problem = &found["problems"][0];
    assert_eq!((&problem["code"], &problem["severity"]), (&"DPA008".into(), &"error".into()));
    assert_eq!((&problem["path"], &problem["line"]), (&"invalid/bare-state.yaml".into(), &5.into()));
}

#[test]
fn check_reads_standard_input() {
    let policy = std::fs::File::open(repository("config/policy.yaml")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar")).args(["check", "-"]).stdin(policy).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", out(&output));
}
