//! The JSON Schemas: current, and of one mind with `check` and with what the log really says.

use std::process::Command;

use dpa_sidecar::config;
use dpa_sidecar::decide::decision::Authority;
use dpa_sidecar::decide::facts::Flaw;
use dpa_sidecar::decide::facts::Source;
use dpa_sidecar::decide::reason::Kind;
use dpa_sidecar::policy;
use dpa_sidecar::policy::problem;
use dpa_sidecar::policy::problem::Code;
use dpa_sidecar::policy::problem::Problems;
use dpa_sidecar::policy::problem::Severity;
use dpa_sidecar::record::entry;
use dpa_sidecar::record::entry::Action;
use dpa_sidecar::record::entry::Ending;
use dpa_sidecar::yaml;
use jsonschema::Validator;
use schemars::JsonSchema;
use schemars::Schema;
use serde_json::Value;
use serde_json::json;

use crate::support::Head;
use crate::support::STRANGER;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::denied;
use crate::support::permitted;
use crate::support::records_in;
use crate::support::repository;

/// Each schema against its file in `config`; `BLESS=1` writes the file anew.
#[test]
fn the_schemas_in_config_are_current() {
    let mut wrong = Vec::new();
    for of in ["policy", "customers", "sidecar", "decision"] {
        let output = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar")).args(["schema", of]).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()), "{of}");
        let text = String::from_utf8(output.stdout).unwrap();
        let schema: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert!(jsonschema::meta::is_valid(&schema), "{of}: not a schema");
        let file = repository(&format!("config/{of}.schema.json"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        } else if std::fs::read_to_string(&file).unwrap_or_default() != text {
            wrong.push(format!("{} is not what `schema {of}` prints (BLESS=1 writes it anew)", file.display()));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn validator(schema: &Value) -> Validator {
    jsonschema::options().should_validate_formats(true).build(schema).unwrap()
}

fn of(schema: Schema) -> Validator {
    validator(&schema.to_value())
}

fn faults(validator: &Validator, value: &Value) -> Vec<String> {
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// A tree as an editor sees it.
fn json_of(node: &yaml::Node) -> Value {
    match &node.value {
        yaml::Value::Scalar { text, quoted: false } => match text.as_str() {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            text if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse::<u64>().map_or_else(|_| Value::from(text), Value::from)
            }
            text => Value::from(text),
        },
        yaml::Value::Scalar { text, quoted: true } => Value::from(text.as_str()),
        yaml::Value::List(items) => items.iter().map(json_of).collect(),
        yaml::Value::Map(entries) => entries.iter().map(|(key, node)| (key.text.clone(), json_of(node))).collect(),
    }
}

fn read(text: &str) -> Value {
    json_of(&yaml::read(text, 0).unwrap())
}

fn source(text: String) -> problem::Source {
    problem::Source { path: "file.yaml".to_owned(), text }
}

fn check_policy(text: String) -> Problems {
    policy::compile(&[source(text)], &["file.yaml".to_owned()], None, None).1
}

fn check_settings(text: String) -> Problems {
    config::compile(&source(text), &|_| None).1
}

fn errors(problems: &Problems) -> Vec<Code> {
    let errors = problems.0.iter().filter(|problem| problem.severity == Severity::Error);
    errors.map(|problem| problem.code).collect()
}

#[test]
fn files_that_check_accepts_are_accepted() {
    let (of_policy, of_settings) = (of(policy::schema()), of(config::schema()));
    let mut accepted = 0;
    for folder in ["config", "tests", "tests/invalid", "tests/datasette"] {
        for entry in std::fs::read_dir(repository(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") || path.ends_with("policy-tests.yaml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let is_settings = text.contains("\nlisteners:");
            let problems = if is_settings { check_settings(text.clone()) } else { check_policy(text.clone()) };
            if errors(&problems).is_empty() {
                let validator = if is_settings { &of_settings } else { &of_policy };
                assert_eq!(faults(validator, &read(&text)), Vec::<String>::new(), "{}", path.display());
                accepted += 1;
            }
        }
    }
    assert!(accepted >= 4, "only {accepted} were without a mistake");
    assert_eq!(faults(&of_settings, &read(&Setup::to("127.0.0.1:1").text())), Vec::<String>::new());
    let of_environment = include_str!("datasette/sidecar.yaml");
    assert_eq!(faults(&of_settings, &read(of_environment)), Vec::<String>::new());
    let customers = read(include_str!("../config/policy.yaml"))["customers"].clone();
    let of_customers = of(policy::customers_schema());
    assert_eq!(faults(&of_customers, &json!({"customers": customers})), Vec::<String>::new());
    assert!(!of_customers.is_valid(&json!({"customers": customers, "callers": []})), "customers and nothing else");
}

#[test]
fn invalid_files_are_rejected_as_far_as_their_form_is_wrong() {
    let (of_policy, of_settings) = (of(policy::schema()), of(config::schema()));
    let table = [
        ("bare-state", false),
        ("empty-list", false),
        ("missing-field", false),
        ("no-customers", false),
        ("several-at-once", false),
        ("unknown-field", false),
        ("unknown-word", false),
        ("wide-characters", false),
        ("not-yet-a-candidate", false),
        // These are wrong by what they mean.
        ("ambiguous-identity", true),
        ("never-signed", true),
        ("model-training", true),
        ("prohibited-sale", true),
        ("unknown-purpose", true),
        ("unknown-subprocessor", true),
        ("unknown-upstream", true),
    ];
    for (name, expected) in table {
        let text = std::fs::read_to_string(repository(&format!("tests/invalid/{name}.yaml"))).unwrap();
        let validator = if text.contains("\nlisteners:") { &of_settings } else { &of_policy };
        assert_eq!(validator.is_valid(&read(&text)), expected, "{name}: {:?}", faults(validator, &read(&text)));
    }
}

#[test]
fn files_as_people_write_them() {
    let policy = read(include_str!("valid-policy.yaml"));
    let settings = read(include_str!("../config/sidecar.yaml"));
    let (of_policy, of_settings) = (of(policy::schema()), of(config::schema()));
    let table = [
        ("a number as text", &of_policy, &policy, "/customers/0/dpa/version", json!(3.1), true),
        ("a number as an id", &of_policy, &policy, "/customers/0/objections/0/ref", json!(17), true),
        ("a moment", &of_policy, &policy, "/customers/0/dpa/accepted_at", json!("2024-01-10T12:00:00+02:00"), true),
        ("no date", &of_policy, &policy, "/customers/0/dpa/accepted_at", json!("10.1.2024"), false),
        ("a state", &of_policy, &policy, "/callers/0/location", json!("OR"), false),
        ("a state of no country", &of_policy, &policy, "/callers/0/location", json!("US-QC"), false),
        ("a part of another country", &of_policy, &policy, "/callers/0/location", json!("DE-BE"), true),
        ("another version", &of_policy, &policy, "/version", json!(2), false),
        ("no value", &of_policy, &policy, "/version", Value::Null, false),
        ("an identity", &of_policy, &policy, "/callers/0/identities/0", json!("jwt:https://issuer.example|sub"), true),
        ("an identity of no kind", &of_policy, &policy, "/callers/0/identities/0", json!("https://x.example"), false),
        ("a word from the environment", &of_settings, &settings, "/enforcement", json!("${MODE:-observe}"), true),
        ("a number from the environment", &of_settings, &settings, "/workers", json!("${WORKERS}"), true),
        ("the environment in a policy", &of_policy, &policy, "/version", json!("${VERSION}"), false),
        ("no worker", &of_settings, &settings, "/workers", json!(0), false),
        ("bytes", &of_settings, &settings, "/limits/header_bytes", json!(65_536), true),
        ("a length of time without a unit", &of_settings, &settings, "/drain_timeout", json!(25), false),
        ("no time", &of_settings, &settings, "/drain_timeout", json!("0s"), false),
        ("a protocol", &of_settings, &settings, "/upstreams/0/protocol", json!("http2"), true),
        ("one that nobody speaks", &of_settings, &settings, "/upstreams/0/protocol", json!("http9"), false),
    ];
    for (name, validator, sample, place, value, expected) in table {
        let mut changed = sample.clone();
        *changed.pointer_mut(place).unwrap() = value;
        assert_eq!(validator.is_valid(&changed), expected, "{name}: {:?}", faults(validator, &changed));
    }
}

/// Every copy of a tree with one place changed.
fn changes(tree: &Value) -> Vec<(String, Value)> {
    fn below(place: &str, value: &Value, found: &mut Vec<String>) {
        found.push(place.to_owned());
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    below(&format!("{place}/{}", key.replace('~', "~0").replace('/', "~1")), value, found);
                }
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(index, value)| below(&format!("{place}/{index}"), value, found));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut places = Vec::new();
    below("", tree, &mut places);
    let mut changed = Vec::new();
    for place in places {
        let mut change = |what: &str, change: &dyn Fn(&mut Value)| {
            let mut copy = tree.clone();
            change(copy.pointer_mut(&place).unwrap());
            if copy != *tree {
                changed.push((format!("{what} at `{place}`"), copy));
            }
        };
        change("a map", &|value| *value = json!({"a": "b"}));
        change("a list", &|value| *value = json!(["a"]));
        change("an empty list", &|value| *value = json!([]));
        change("a text", &|value| *value = json!("some text"));
        change("a number", &|value| *value = json!(7));
        change("a boolean", &|value| *value = json!(true));
        change("one more key", &|value| drop(value.as_object_mut().map(|map| map.insert("novel".into(), json!("x")))));
        let keys: Vec<String> =
            tree.pointer(&place).unwrap().as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
        for key in keys {
            change(&format!("no `{key}`"), &|value| drop(value.as_object_mut().unwrap().remove(&key)));
        }
    }
    changed
}

/// A policy with every key there is.
const ALL_KEYS: &str = "
version: 1
metadata: {name: small, revision: 1, issued_at: 2026-06-01}
processor: {id: lumenfield, legal_name: Lumenfield}
agreement:
  title: Paper
  document_sha256: cc5664c40ae9006202b67aa6415ba31bafc3364a0599612c5fa355eb2ca6c4b1
  clauses: {'2.3': text}
defaults:
  enforcement: enforce
  residency: {storage_locations: [US], access_locations: [US], source: dpa}
require_enforce: false
security_measures: {min_tls_version: '1.2', client_authentication: optional, decision_log: written, signed_policy: false}
weakening_notices: [{measure: decision_log, from: synced, to: written, notice_given_at: 2026-01-01}]
purposes:
  support: {ccpa_business_purpose: e5, necessity: Answer., requires_instruction: false}
purpose_sets: {base: [support]}
callers:
  - id: desk
    identities: ['spiffe://lumenfield.example/sa/desk']
    location: US-OR
    permitted_purposes: [base]
    operations: [retrieve]
    human_access: {group: staff, confidentiality: {ref: N, signed_on: 2025-01-01, expires_on: 2027-01-01}}
subprocessors:
  - id: sp
    legal_name: TicketRiver
    service: Help desk
    identities: ['dns:ticketriver.example']
    permitted_purposes: [support]
    operations: [retrieve]
    data_categories: [user.contact]
    storage_locations: [US-VA]
    access_locations: [US-VA]
    agreement: {ref: S, signed_on: 2021-01-18, expires_on: 2028-01-01, flow_down: true}
    announced_at: 2021-01-01
    effective_at: 2021-02-01
    removed_at: 2028-02-01
customers:
  - id: redwood
    legal_name: Redwood
    identities: ['jwt:https://issuer.example|redwood']
    dpa: {version: '3', accepted_at: 2024-01-10, contract_ref: M, suspended_by_law_at: 2027-01-01,
          terminated_at: 2027-02-01, return_until: 2027-03-01}
    permitted_purposes: [base]
    residency:
      storage_locations: [US]
      access_locations: [US]
      source: instruction
      ref: R
      transfers: [{to: [CA-NB], mechanism: pia, ref: pia-17, subprocessor: sp}]
    objections: [{subprocessor: sp, effective_at: 2024-01-10, ref: O}]
    consents: [{subprocessor: sp, given_at: 2024-01-10, ref: C}, {weakening: decision_log, given_at: 2024-01-10, ref: C}]
    instructions:
      - id: ins-1
        issuer_role: CEO
        reference: L-1
        received_at: 2024-01-01
        accepted_at: 2024-01-02
        valid_from: 2024-01-03
        valid_until: 2027-01-01
        permits: {purposes: [support], operations: [export], subprocessors: [sp], data_categories: [user]}
        restricts: {subscriber: sub-1}
    enforcement: enforce
customer_files: [customers/*.yaml]
";

/// `check` knows more than a schema can. But a schema never rejects what `check` accepts, and accepts
/// nothing of a wrong form.
#[test]
fn the_schemas_and_check_are_of_one_mind() {
    type Check = fn(String) -> Problems;
    let table: [(&str, &str, Schema, Check); 3] = [
        ("policy", ALL_KEYS, policy::schema(), check_policy),
        ("sidecar", include_str!("../config/sidecar.yaml"), config::schema(), check_settings),
        ("TLS", include_str!("tls/every-key.yaml"), config::schema(), check_settings),
    ];
    let form = [Code::UnknownField, Code::UnknownWord, Code::WrongShape, Code::EmptyList];
    let mut wrong = Vec::new();
    for (name, text, schema, check) in table {
        assert_eq!(errors(&check(text.to_owned())), [], "{name}");
        let validator = of(schema);
        assert_eq!(faults(&validator, &read(text)), Vec::<String>::new(), "{name}");
        for (what, changed) in changes(&read(text)) {
            let found = errors(&check(changed.to_string()));
            let is_valid = validator.is_valid(&changed);
            let is_of_wrong_form = found.iter().any(|code| form.contains(code));
            // A route may leave out a key if another one says so: that is told by `check` alone.
            let is_missing = found.contains(&Code::MissingField) && !what.contains("/routes/");
            if is_valid && (is_of_wrong_form || is_missing) {
                wrong.push(format!("{name}: {what}: check says {found:?}, the schema nothing"));
            }
            if !is_valid && found.is_empty() {
                wrong
                    .push(format!("{name}: {what}: check says nothing, the schema {:?}", faults(&validator, &changed)));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Allows no key that the schema does not name.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            if map.contains_key("properties") {
                map.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn what_the_log_really_says() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let context = |value: &str| {
        let head = Head::bare("GET", "/v1/usage/x").with("DPA-Caller", crate::support::CARE_DESK);
        head.with("DPA-Context", value).end()
    };
    let requests = [
        permitted(),
        denied(),
        Head::bare("GET", crate::support::SUBSCRIBER).end(),
        Head::bare("GET", "/nowhere").end(),
        Head::bare("BREW", "/assets/x").end(),
        Head::permitted("GET", crate::support::SUBSCRIBER).with("DPA-Caller", STRANGER).end(),
        Head::permitted("GET", "/v1//x").end(),
        Head::permitted("DELETE", "/v1/customers/nobody/subscribers/1").end(),
        context("customer=(redwood-strand granite-notch), purpose=customer_support"),
        context("customer=redwood-strand, purpose=novel, instruction=ins-001, request_ref=\"DSR-98\""),
        context("customer=redwood-strand, purpose=customer_support, instruction=novel"),
        context("?"),
    ];
    for request in requests {
        sidecar.ask(request);
    }
    sidecar.ask("nonsense\r\n\r\n");
    sidecar.unread("malformed");
    let stopped = sidecar.stop();
    let text = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    // A line that a crash tore, and another upstream that is not there.
    let folder = stopped.folder;
    folder.write("decisions.ndjson", &(text + "{\"event\":"));
    let observing = Setup { enforcement: "observe", ..Setup::to("127.0.0.1:1") }.start_in(folder);
    observing.ask(permitted());
    observing.ask(denied());
    let stopped = observing.stop();
    let records = records_in(&std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap());

    let schema = entry::schema().to_value();
    let validator = validator(&schema);
    let mut closed = schema;
    close(&mut closed);
    let strict = self::validator(&closed);
    for record in &records {
        assert_eq!(faults(&strict, record), Vec::<String>::new(), "{record}");
        let mut newer = record.clone();
        newer["novel"] = json!(1);
        assert!(validator.is_valid(&newer), "a later version may say more: {newer}");
        for (key, value) in [("event", json!("dpa.novel")), ("time", json!("today")), ("log", json!(1))] {
            let mut bad = record.clone();
            bad[key] = value;
            assert!(!validator.is_valid(&bad), "{bad}");
        }
    }
    let mut seen: Vec<String> = records
        .iter()
        .map(|record| {
            [&record["event"], &record["what"], &record["action"]].map(|it| it.as_str().unwrap_or("")).join(" ")
        })
        .collect();
    seen.sort();
    seen.dedup();
    let expected = [
        "dpa.checkpoint  ",
        "dpa.decision  allowed",
        "dpa.decision  denied",
        "dpa.decision  observed",
        "dpa.log opened ",
        "dpa.log torn ",
        "dpa.outcome  ",
        "dpa.policy loaded ",
        "dpa.unread refused ",
    ];
    assert_eq!(seen, expected);
    let decision = records.iter().find(|record| record["decision"] == "permit").unwrap();
    for key in ["action", "decision", "method", "on_failure", "durability", "enforcement", "authority"] {
        let mut bad = decision.clone();
        bad[key] = json!("novel");
        assert!(!validator.is_valid(&bad), "{key} is a word out of a list");
    }
}

/// The words of records are written in two places: in `as_str` and, by derivation, in the schema.
#[test]
fn the_words_of_records() {
    fn words<T: JsonSchema>() -> Vec<String> {
        let schema = schemars::schema_for!(T).to_value();
        let listed = schema["enum"].as_array().into_iter().flatten();
        let described = schema["oneOf"].as_array().into_iter().flatten();
        let mut words: Vec<&str> = listed.chain(described.map(|it| &it["const"])).filter_map(Value::as_str).collect();
        words.sort_unstable();
        words.into_iter().map(str::to_owned).collect()
    }
    fn sorted<const N: usize>(mut words: [&str; N]) -> Vec<&str> {
        words.sort_unstable();
        words.to_vec()
    }
    let actions = [Action::Allowed, Action::Denied, Action::Observed];
    assert_eq!(words::<Action>(), sorted(actions.map(Action::as_str)));
    let endings = [Ending::Completed, Ending::Aborted, Ending::Cut, Ending::NotForwarded, Ending::Panicked];
    assert_eq!(words::<Ending>(), sorted(endings.map(Ending::as_str)));
    let authorities =
        [Authority::OutOfScope, Authority::LegalRequirement, Authority::Instruction, Authority::PermittedPurpose];
    assert_eq!(words::<Authority>(), sorted(authorities.map(Authority::as_str)));
    assert_eq!(words::<Kind>(), sorted([Kind::Violation, Kind::Gap].map(Kind::as_str)));
    assert_eq!(words::<Flaw>(), sorted(Flaw::ALL.map(Flaw::as_str)));
    let sources = [
        Source::Certificate,
        Source::Token,
        Source::ForwardedCertificate,
        Source::Header,
        Source::Path,
        Source::Query,
        Source::Context,
        Source::Claim,
        Source::Route,
        Source::Method,
        Source::Settings,
        Source::Case,
    ];
    assert_eq!(words::<Source>(), sorted(sources.map(Source::as_str)));
}
