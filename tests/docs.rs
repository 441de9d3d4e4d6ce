//! The documentation: each piece of YAML in it is one that the program takes.

use std::fmt::Write as _;

use serde_json::Value;

use crate::support::Folder;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;

/// A fenced block, and the comment before it that says what it is.
pub(crate) struct Block {
    pub(crate) line: usize,
    pub(crate) language: String,
    pub(crate) what: String,
    pub(crate) text: String,
}

/// The fenced blocks of a document. Blank lines may stand between the comment and its block, nothing else.
fn blocks(document: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut what = String::new();
    let mut open: Option<Block> = None;
    for (place, line) in document.lines().enumerate() {
        if let Some(mut block) = open.take() {
            if line == "```" {
                found.push(block);
            } else {
                writeln!(block.text, "{line}").unwrap();
                open = Some(block);
            }
        } else if let Some(language) = line.strip_prefix("```") {
            let what = std::mem::take(&mut what);
            open = Some(Block { line: place + 1, language: language.to_owned(), what, text: String::new() });
        } else if let Some(comment) = line.strip_prefix("<!-- check: ").and_then(|rest| rest.strip_suffix(" -->")) {
            comment.clone_into(&mut what);
        } else if !line.is_empty() {
            what.clear();
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

pub(crate) fn document(path: &str) -> Vec<Block> {
    blocks(&std::fs::read_to_string(repository(path)).unwrap())
}

/// A folder with the sample policy.
pub(crate) fn beside_the_sample_policy() -> Folder {
    let folder = Folder::new();
    folder.write("policy.yaml", &std::fs::read_to_string(repository("config/policy.yaml")).unwrap());
    // What the settings of the documentation name.
    let shown = rcgen::generate_simple_self_signed(["api.lumenfield.example".to_owned()]).unwrap();
    for name in ["tls.crt", "ca.crt", "client.crt"] {
        folder.write(name, &shown.cert.pem());
    }
    for name in ["tls.key", "client.key"] {
        folder.write(name, &shown.signing_key.serialize_pem());
    }
    folder
}

/// Laid over the sample policy by a test case: maps and entries with an id merge, the rest replaces.
fn amending(amendment: &str) -> String {
    let mut text = "version: 1
policy: policy.yaml
clock: 2026-06-15T12:00:00Z
services: {api: {storage_location: US-OR}}
defaults: {service: api, operation: retrieve}
cases:
  - name: what is written can be merged into the sample policy
    request: {customer: no-such-customer, caller: care-desk}
    expect: {decision: deny}
    amend:
"
    .to_owned();
    for line in amendment.lines() {
        writeln!(text, "      {line}").unwrap();
    }
    text
}

/// The first configuration of the README with these settings in place of its own.
pub(crate) fn resetting(settings: &str) -> String {
    let first = document("README.md").into_iter().find(|block| block.language == "yaml").unwrap().text;
    laid_over(&first, settings)
}

/// Settings with others in place of those of the same key.
fn laid_over(first: &str, settings: &str) -> String {
    let key =
        |line: &str| line.split_once(':').filter(|_| !line.starts_with([' ', '-', '#'])).map(|(key, _)| key.to_owned());
    let keys: Vec<String> = settings.lines().filter_map(key).collect();
    let mut text = String::new();
    let mut is_kept = true;
    for line in first.lines() {
        if !line.starts_with(' ') {
            is_kept = key(line).is_none_or(|key| !keys.contains(&key));
        }
        if is_kept {
            writeln!(text, "{line}").unwrap();
        }
    }
    text + settings
}

/// What a patch lacks to fit the Deployment of `deploy/kustomize`: it means the container that is there, mounts what it
/// brings, and brings nothing else.
fn no_patch(text: &str) -> Option<String> {
    let patch: Value = match serde_yaml::from_str(text) {
        Ok(patch) => patch,
        Err(error) => return Some(error.to_string()),
    };
    let component = std::fs::read_to_string(repository("deploy/kustomize/components/sidecar/pod.yaml")).unwrap();
    let component: Value = serde_yaml::from_str(&component).unwrap();
    let names = |object: &Value, place: &str| -> Vec<String> {
        let list = object.pointer(place).and_then(Value::as_array).cloned().unwrap_or_default();
        list.iter().filter_map(|entry| Some(entry["name"].as_str()?.to_owned())).collect()
    };
    let pod = "/spec/template/spec";
    let containers = format!("{pod}/initContainers");
    let (mounts, volumes) = (format!("{containers}/0/volumeMounts"), format!("{pod}/volumes"));
    let is_good = names(&patch, &containers) == names(&component, &containers)
        && !names(&patch, &volumes).is_empty()
        && names(&patch, &mounts) == names(&patch, &volumes)
        && patch.pointer(&mounts).and_then(|it| it[0]["mountPath"].as_str()) == Some("/etc/dpa-sidecar/tls");
    (!is_good).then(|| format!("no patch of the component's container: {patch}"))
}

/// What a NetworkPolicy lacks to be one.
fn no_object(text: &str) -> Option<String> {
    let object: Value = match serde_yaml::from_str(text) {
        Ok(object) => object,
        Err(error) => return Some(error.to_string()),
    };
    let is = |place: &str, value: &str| object.pointer(place).and_then(Value::as_str) == Some(value);
    let way = object.pointer("/spec/policyTypes/0").and_then(Value::as_str).unwrap_or_default();
    let (rules, peers) = if way == "Ingress" { ("/spec/ingress", "from") } else { ("/spec/egress", "to") };
    let rules = object.pointer(rules).and_then(Value::as_array);
    let is_whole = |rule: &Value| rule[peers].is_array() && rule["ports"].is_array();
    let is_good = is("/apiVersion", "networking.k8s.io/v1")
        && is("/kind", "NetworkPolicy")
        && ["Egress", "Ingress"].contains(&way)
        && object.pointer("/spec/podSelector/matchLabels").is_some()
        && rules.is_some_and(|rules| !rules.is_empty() && rules.iter().all(is_whole));
    (!is_good).then(|| format!("no NetworkPolicy, or one that closes nothing: {object}"))
}

/// What is wrong with the YAML of a document, block by block.
fn faults(path: &str, blocks: &[Block]) -> Vec<String> {
    let mut faults = Vec::new();
    // What stands before the cases of the last whole test file: a piece of one goes by it.
    let mut head = String::new();
    // The last piece that was merged: another one may say that it goes with it.
    let mut merged = String::new();
    for Block { line, what, text, .. } in blocks.iter().filter(|block| block.language == "yaml") {
        let folder = beside_the_sample_policy();
        let command = match what.as_str() {
            "whole" => {
                folder.write("block.yaml", text);
                "check"
            }
            "merge" | "merge too" => {
                if what == "merge" {
                    merged.clear();
                }
                merged += text;
                folder.write("block.yaml", &amending(&merged));
                "test"
            }
            "settings" => {
                folder.write("block.yaml", &resetting(text));
                "check"
            }
            // Mounted as the component does: settings, policy and certificates each in a folder of their own.
            "settings of the demo" => {
                let demo = "deploy/kustomize/overlays/demo";
                for inner in ["settings", "policy", "tls"] {
                    std::fs::create_dir(folder.file(inner)).unwrap();
                }
                std::fs::copy(repository(&format!("{demo}/policy/policy.yaml")), folder.file("policy/policy.yaml"))
                    .unwrap();
                for name in ["tls.crt", "tls.key", "ca.crt"] {
                    std::fs::rename(folder.file(name), folder.file("tls").join(name)).unwrap();
                }
                let first = std::fs::read_to_string(repository(&format!("{demo}/settings/sidecar.yaml"))).unwrap();
                folder.write("settings/sidecar.yaml", &laid_over(&first, text));
                "check"
            }
            "patch" => {
                faults.extend(no_patch(text).map(|fault| format!("{path}:{line}: {fault}")));
                continue;
            }
            "cases" => {
                if let Some((before, _)) = text.split_once("\ncases:\n") {
                    head = format!("{before}\ncases:\n");
                    folder.write("block.yaml", text);
                } else {
                    folder.write("block.yaml", &format!("{head}{text}"));
                }
                "test"
            }
            "kubernetes" => {
                faults.extend(no_object(text).map(|fault| format!("{path}:{line}: {fault}")));
                continue;
            }
            other => {
                faults.push(format!(
                    "{path}:{line}: `{other}`: write `<!-- check: whole -->`, `merge`, `merge too`, `cases`, `settings`, `settings of the demo`, `patch` or `kubernetes` before the block"
                ));
                continue;
            }
        };
        let file = if what == "settings of the demo" { "settings/sidecar.yaml" } else { "block.yaml" };
        let output = run(&folder.file("."), &[command, file]);
        if output.status.code() != Some(0) {
            faults.push(format!("{path}:{line}: {}:\n{}{}", output.status, out(&output), err(&output)));
        }
    }
    faults
}

#[test]
fn each_piece_of_yaml_is_good() {
    let mut wrong = Vec::new();
    for (path, least) in [
        ("docs/policy.md", 14),
        ("docs/policy-tests.md", 3),
        ("docs/settings.md", 3),
        ("docs/identity.md", 4),
        ("docs/egress.md", 3),
        ("docs/change-a-policy.md", 3),
        ("docs/kubernetes.md", 2),
        ("docs/deploy.md", 2),
    ] {
        let blocks = document(path);
        let count = blocks.iter().filter(|block| block.language == "yaml").count();
        assert!(count >= least, "{path}: {count} blocks: where are they?");
        wrong.extend(faults(path, &blocks));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_piece_that_is_not_good_is_seen() {
    let customer = "customers:\n  - {id: redwood-strand, dpa: {acepted_at: 2024-01-10}}\n";
    let table = [
        ("no comment", "", "version: 1\n", "write `<!-- check: whole -->`"),
        ("a comment that means nothing", "<!-- check: perhaps -->\n", "version: 1\n", "write `<!-- check: whole -->`"),
        ("a comment for something else", "<!-- check: merge -->\nText.\n", customer, "write `<!-- check: whole -->`"),
        ("a policy with a mistake", "<!-- check: whole -->\n", "version: 1\nnonsense: 1\n", "DPA004"),
        ("a patch of another container", "<!-- check: patch -->\n", "spec: {}\n", "no patch"),
        ("settings of the demo with a mistake", "<!-- check: settings of the demo -->\n", "probe: []\n", "DPA004"),
        ("a piece with a mistake", "<!-- check: merge -->\n\n", customer, "there is no key `acepted_at` here"),
        (
            "a case that cannot be",
            "<!-- check: cases -->\n",
            "version: 1\npolicy: policy.yaml\ncases:\n  - {}\n",
            "DPA",
        ),
    ];
    for (name, comment, yaml, expected) in table {
        let found = faults("x.md", &blocks(&format!("Text.\n\n{comment}```yaml\n{yaml}```\n"))).join("\n");
        assert!(found.contains(expected), "{name}: {found}");
    }
}

#[test]
fn the_first_configuration_of_the_readme_is_good() {
    let blocks = document("README.md");
    let settings = blocks.iter().find(|block| block.language == "yaml").unwrap();
    let folder = beside_the_sample_policy();
    folder.write("sidecar.yaml", &settings.text);
    let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", out(&output), err(&output));
    // What the README shows of the answer is what is answered.
    let shown: Vec<&str> = blocks
        .iter()
        .flat_map(|block| block.text.lines())
        .filter_map(|line| line.strip_prefix("try/"))
        .filter(|line| line.contains(": ok: "))
        .collect();
    assert_eq!(shown.len(), 2, "{shown:?}");
    for line in shown {
        assert!(out(&output).lines().any(|said| said == line), "{line}: {}", out(&output));
    }
}

#[test]
fn each_command_that_a_document_names_is_there() {
    let mut wrong = Vec::new();
    for path in [
        "README.md",
        "CONTRIBUTING.md",
        "docs/policy.md",
        "docs/policy-tests.md",
        "docs/change-a-policy.md",
        "docs/sign-a-policy.md",
        "docs/settings.md",
        "docs/egress.md",
        "docs/replay.md",
        "docs/coverage.md",
        "docs/observe-first.md",
        "docs/operate.md",
        "docs/kubernetes.md",
        "docs/deploy.md",
    ] {
        for line in document(path).iter().filter(|block| block.language == "console").flat_map(|it| it.text.lines()) {
            let Some((_, rest)) = line.split_once("$ dpa-sidecar ") else { continue };
            let words: Vec<&str> = rest.split_whitespace().collect();
            let flags = words.iter().filter(|word| word.starts_with("--"));
            let command = if words[0] == "audit" { &words[..2] } else { &words[..1] };
            let help = out(&run(&repository(""), &[command, &["--help"]].concat()));
            wrong.extend(flags.filter(|flag| !help.contains(**flag)).map(|flag| format!("{path}: {line}: {flag}")));
            if !help.contains(&format!("dpa-sidecar {}", command.join(" "))) {
                wrong.push(format!("{path}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_readme_has_a_row_for_each_command() {
    let help = out(&run(&repository(""), &["--help"]));
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let text = std::fs::read_to_string(repository("README.md")).unwrap();
    let (mut seen, mut missing) = (0, Vec::new());
    // What goes on from the line before is indented further.
    for name in commands.filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' ')) {
        let name = name.split(' ').next().unwrap();
        seen += 1;
        let has_row = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '`'])));
        if name != "help" && !has_row {
            missing.push(name.to_owned());
        }
    }
    assert!(seen > 10 && missing.is_empty(), "{seen} commands; without a row: {missing:?}");
}
