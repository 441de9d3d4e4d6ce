//! Documents that are made from the code, and those that have to name all of it. `BLESS=1` writes the former anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use dpa_sidecar::admin::metrics::FAMILIES;
use dpa_sidecar::config;
use dpa_sidecar::decide::reason::Code as ReasonCode;
use dpa_sidecar::policy::problem::Code as ProblemCode;
use serde_json::Value;

use crate::support::repository;

/// Compares a document with what the code says.
fn is_of_today(path: &str, text: &str) {
    let file = repository(path);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let is = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(is == text, "{path} is not what the code says: BLESS=1 cargo test --test integration watching");
}

#[test]
fn the_list_of_metrics_is_of_today() {
    let mut text = "# Metrics

<!-- Made from src/admin/metrics.rs: BLESS=1 cargo test --test integration watching -->

`/metrics` on the `health` listener answers in the text format of Prometheus. Each metric is in each scrape, also where
nothing has happened yet; of what is not set up (certificates, issuers of tokens) there are no lines. No label names a
customer, a caller, or anything that a request says. [operate.md](operate.md) says what to watch and what to do,
[codes.md](codes.md) what the reasons mean.

| name | type | labels | meaning |
| --- | --- | --- | --- |
"
    .to_owned();
    for family in FAMILIES {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (family.name, family.kind.as_str());
        writeln!(text, "| `{name}` | {kind} | {} | {} |", labels.join(", "), family.help).unwrap();
    }
    text.push_str(
        "
Buckets of all histograms, in seconds: 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
0.25, 0.5, 1, 2.5, 10, 30.
",
    );
    is_of_today("docs/metrics.md", &text);
}

#[test]
fn the_list_of_codes_is_of_today() {
    let mut text = "# Codes

<!-- Made from src/policy/problem.rs and src/decide/reason.rs: BLESS=1 cargo test --test integration watching -->

Codes are stable: none is used again for something else.

## Reasons of denials

The `reason` of an answer and of a record, and the label `reason` of metrics. [reasons.md](reasons.md) says where to look
first, and which failures that are no decisions have codes too. Two more stand in records of denials:
`request_unreadable` (400) and `policy_stale` (503).

| code | class | clause, obligation | status | means |
| --- | --- | --- | --- | --- |
"
    .to_owned();
    for code in ReasonCode::ALL {
        let (clause, obligation) = code.clause();
        let class = format!("{:?}", code.class()).to_lowercase();
        let (word, status, title) = (code.as_str(), code.status(), code.title());
        writeln!(text, "| `{word}` | {class} | {clause} {obligation} | {status} | {title} |").unwrap();
    }
    text.push_str(
        "
`purpose_prohibited` cites the clause that prohibits the purpose: 7.1 no-sale, 7.3 no-cross-context-advertising or 7.3
direct-relationship-only.

## Problems in files

What `check`, `test` and a start say of files. `dpa-sidecar explain CODE` says the same.
",
    );
    for code in ProblemCode::ALL {
        let explanation = code.explanation();
        let (title, rest) = explanation.split_once("\n\n").unwrap();
        let (words, example) = rest.split_once("\n\nExample:\n").unwrap_or((rest, ""));
        let lines: Vec<&str> = example.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
        write!(text, "\n### {}\n\n**{title}**\n\n{words}\n", code.as_str()).unwrap();
        if !example.is_empty() {
            write!(text, "\n```text\n{}\n```\n", lines.join("\n")).unwrap();
        }
    }
    is_of_today("docs/codes.md", &text);
}

/// The keys of a schema: each with the keys that lead to it.
fn keys(schema: &Value, of: &Value, key: &str, found: &mut BTreeSet<String>) {
    let of = match of.get("$ref").and_then(Value::as_str) {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap(),
        None => of,
    };
    let properties = of.get("properties").and_then(Value::as_object).into_iter().flatten();
    for (name, property) in properties {
        let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        found.insert(key.clone());
        keys(schema, property, &key, found);
    }
    for below in of.get("items").into_iter() {
        keys(schema, below, &format!("{key}[]"), found);
    }
    for choice in ["anyOf", "allOf"] {
        for below in of.get(choice).and_then(Value::as_array).into_iter().flatten() {
            keys(schema, below, key, found);
        }
    }
}

#[test]
fn each_key_of_the_settings_is_in_their_document() {
    let schema = serde_json::to_value(config::schema()).unwrap();
    let mut all = BTreeSet::new();
    keys(&schema, &schema, "", &mut all);
    assert!(all.len() > 80, "{all:?}");
    let document = std::fs::read_to_string(repository("docs/settings.md")).unwrap();
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    let first = |row: &&str| row.trim_start_matches("| ").split(" | ").next().unwrap().to_owned();
    let cells: Vec<String> = rows.iter().map(first).collect();
    let is_named = |key: &String| {
        let end = key.rsplit_once('.').map_or(key.as_str(), |(_, end)| end);
        let whole = format!("`{key}`");
        let listed = format!("`{key}[]`");
        let parent = key.rsplit_once('.').map_or("", |(parent, _)| parent);
        cells.iter().any(|cell| {
            cell.contains(&whole)
                || cell.contains(&listed)
                // A row for several keys of one section names the others by their ends.
                || (!parent.is_empty() && cell.contains(&format!("`{parent}.")) && cell.contains(&format!("`.{end}`")))
        }) || rows.iter().any(|row| {
            // So does one for a map of a few.
            row.starts_with(&format!("| `{parent}` |")) && row.contains(&format!("`{end}`"))
        }) || (["from", "name"].contains(&end)
            && document.contains(&format!("{end}: "))
            && cells.contains(&format!("`{parent}`")))
    };
    // What only leads to other keys needs no row of its own.
    let leads = |key: &String| {
        let (dot, list) = (format!("{key}."), format!("{key}[]."));
        all.iter().any(|other| other.starts_with(&dot) || other.starts_with(&list))
    };
    let missing: Vec<_> = all.iter().filter(|key| !is_named(key) && !leads(key)).collect();
    assert!(missing.is_empty(), "docs/settings.md has no row for {missing:#?}");
}

#[test]
fn each_alert_has_a_section_that_says_what_to_do() {
    let rules: Value =
        serde_yaml::from_str(&std::fs::read_to_string(repository("deploy/prometheus/rules.yaml")).unwrap()).unwrap();
    let tests = std::fs::read_to_string(repository("deploy/prometheus/rules.test.yaml")).unwrap();
    let document = std::fs::read_to_string(repository("docs/operate.md")).unwrap();
    let sections: BTreeSet<&str> = document.lines().filter_map(|line| line.strip_prefix("### Dpa")).collect();
    let mut alerts = BTreeSet::new();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let alert = rule["alert"].as_str().unwrap();
        assert_eq!(rule["annotations"]["runbook"], format!("docs/operate.md#{}", alert.to_lowercase()));
        assert_eq!(tests.matches(&format!("alertname: {alert}\n")).count(), 2, "{alert}: raised, and silent");
        alerts.insert(alert.trim_start_matches("Dpa"));
    }
    assert_eq!(alerts, sections);
}
