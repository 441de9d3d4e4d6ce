//! The story of `docs/change-a-policy.md`, from the officer's first edit to the last request. What the document shows is
//! what the program says.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use serde_json::json;

use crate::docs::Block;
use crate::docs::document;
use crate::policy_reload::Load;
use crate::policy_reload::loaded;
use crate::policy_reload::refused;
use crate::policy_reload::revision;
use crate::policy_reload::start;
use crate::support::CARE_DESK;
use crate::support::Folder;
use crate::support::Head;
use crate::support::Upstream;
use crate::support::err;
use crate::support::out;
use crate::support::records_in;
use crate::support::run;
use crate::support::wait_for;

/// Who asks for what, and is it permitted: one request of each kind.
fn parties() -> Vec<(&'static str, &'static str, String)> {
    let desk = "spiffe://lampwick.example/sa/desk";
    let mut all = Vec::new();
    for customer in ["redwood-strand", "granite-notch", "cedar-hollow", "fibre-outardes"] {
        for (name, caller) in [("sp-13", desk), ("care-desk", CARE_DESK)] {
            let request = Head::bare("GET", &format!("/v1/customers/{customer}/subscribers/1a2b"))
                .with("DPA-Caller", caller)
                .with("DPA-Context", "purpose=customer_support");
            all.push((customer, name, request.end()));
        }
    }
    all
}

/// What the document shows, step by step, and the folder in which the officer works.
struct Told {
    blocks: std::vec::IntoIter<Block>,
    desk: PathBuf,
    wrong: Vec<String>,
}

impl Told {
    fn at(desk: PathBuf) -> Self {
        let mut blocks = document("docs/change-a-policy.md");
        blocks.retain(|block| block.what == "story" || block.language == "yaml" && block.text.contains("sp-13"));
        Self { blocks: blocks.into_iter(), desk, wrong: Vec::new() }
    }

    fn next(&mut self, language: &str) -> Block {
        let block = self.blocks.next().unwrap_or_else(|| panic!("the story ends before this {language}"));
        assert_eq!(block.language, language, "line {}: {}", block.line, block.text);
        block
    }

    /// What the officer writes, on a day that is past whatever day it is.
    fn yaml(&mut self) -> String {
        self.next("yaml").text.replace("2026-", "2025-")
    }

    /// Runs the next command, and holds what it says against what is shown.
    fn command(&mut self, expected: i32) {
        let Block { line, text, .. } = self.next("console");
        let (command, shown) = text.split_once('\n').unwrap();
        let words: Vec<&str> = command.strip_prefix("$ dpa-sidecar ").unwrap().split_whitespace().collect();
        let output = run(&self.desk, &words);
        let said = out(&output);
        assert_eq!(output.status.code(), Some(expected), "line {line}: {command}\n{said}{}", err(&output));
        if !are_alike(&shown.lines().collect::<Vec<_>>(), &said.lines().collect::<Vec<_>>()) {
            self.wrong.push(format!("line {line}: {command}\n{said}"));
        }
    }

    /// Holds a record against the next one that is shown.
    fn record(&mut self, record: &Value) {
        let Block { line, text, .. } = self.next("json");
        let shown: Value = serde_json::from_str(&text).unwrap();
        if !is_in(&shown, record) {
            self.wrong.push(format!("line {line}: {record:#}"));
        }
    }
}

/// Whether lines are alike; `…` stands for any number of them.
pub(crate) fn are_alike(shown: &[&str], said: &[&str]) -> bool {
    match (shown.split_first(), said.split_first()) {
        (None, None) => true,
        (Some((&"…", rest)), None) => are_alike(rest, said),
        (Some((&"…", rest)), Some((_, more))) => are_alike(rest, said) || are_alike(shown, more),
        (Some((one, rest)), Some((other, more))) => is_alike(one, other) && are_alike(rest, more),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// Whether two lines differ in nothing but ids, digests, times, and places in the log.
fn is_alike(shown: &str, said: &str) -> bool {
    let kind = |word: &str| {
        let bare = word.trim_end_matches(',');
        if bare.parse::<jiff::Timestamp>().is_ok() {
            "a time".to_owned()
        } else if uuid::Uuid::try_parse(word).is_ok() {
            "an id".to_owned()
        } else if word.starts_with('(') && word.contains('…') {
            "a digest".to_owned()
        } else if word.starts_with("decisions.ndjson:") {
            "a place".to_owned()
        } else {
            word.to_owned()
        }
    };
    let words = |line: &str| line.split(' ').map(kind).collect::<Vec<_>>();
    words(shown) == words(said)
}

/// Whether a record says all that is shown. A text that ends in `…` is the beginning of a digest.
fn is_in(shown: &Value, record: &Value) -> bool {
    match (shown, record) {
        (Value::Object(shown), Value::Object(record)) => {
            shown.iter().all(|(key, value)| record.get(key).is_some_and(|other| is_in(value, other)))
        }
        (Value::Array(shown), Value::Array(record)) => {
            shown.len() == record.len() && shown.iter().zip(record).all(|(one, other)| is_in(one, other))
        }
        (Value::String(shown), Value::String(record)) if shown.ends_with('…') => record.len() == 64,
        (_, _) => shown == record,
    }
}

/// The sample, so that whatever day it is the same customers are concerned.
fn on_any_day(number: u64) -> String {
    let text = revision(number).replace("suspended_by_law_at: 2026-05-01", "suspended_by_law_at: 2024-05-02");
    text.replace("accepted_at: 2026-05-01", "accepted_at: 2024-05-01")
}

fn insert(text: &str, after: &str, more: &str) -> String {
    assert_eq!(text.matches(after).count(), 1, "{after}");
    text.replace(after, &format!("{after}{more}"))
}

#[test]
fn a_new_subprocessor_from_the_edit_to_the_requests() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let desk = folder.file("desk");
    std::fs::create_dir(&desk).unwrap();
    let mut told = Told::at(desk.clone());
    let at_desk = |name: &str, text: &str| std::fs::write(desk.join(name), text).unwrap();
    let asked = |arguments: &[&str]| -> Value {
        let output = run(&desk, &[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&out(&output)).unwrap_or_else(|_| panic!("{}", err(&output)))
    };
    let old = on_any_day(12);
    let policy = folder.write("policy.yaml", &old);
    folder.write("agreed.yaml", &old);
    at_desk("agreed.yaml", &old);

    // The officer adds a subprocessor.
    let yaml = told.yaml();
    let entry = format!("{}\n", yaml.strip_prefix("subprocessors:\n").unwrap());
    let added = on_any_day(13).replacen("  # No longer used.", &format!("{entry}  # No longer used."), 1);
    at_desk("policy.yaml", &added);

    // `diff` says for whom that is weaker, and `check` what is missing.
    told.command(1);
    told.command(1);
    let changes = asked(&["diff", "agreed.yaml", "policy.yaml"]);
    let weaker: Vec<&Value> =
        changes["changes"].as_array().unwrap().iter().filter(|it| it["direction"] == "weaker").collect();
    assert_eq!(weaker.len(), 1);
    assert_eq!(weaker[0]["kind"], "subprocessor");
    let whom = json!(["redwood-strand", "granite-notch", "cedar-hollow"]);
    assert_eq!(weaker[0]["customers"], whom);

    // The requests of a day, under the policy as it was agreed.
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml, baseline: agreed.yaml}");
    let all = parties();
    let ask = |number: u64| -> Vec<(String, Value)> {
        let decision = |(customer, caller, request): &(&str, &str, String)| {
            let record = sidecar.decision(&sidecar.ask(request).decision_id());
            assert_eq!(record["policy"]["revision"], number);
            (format!("{customer} {caller}"), record)
        };
        all.iter().map(decision).collect()
    };
    let day = ask(12);
    let log = std::fs::read_to_string(sidecar.log()).unwrap();
    at_desk("decisions.ndjson", &log[..=log.rfind('\n').unwrap()]);

    // Put in place all the same, the gate refuses it, and says what is weaker for whom.
    let load = Load::of(&sidecar, all.iter().map(|(_, _, request)| (request.clone(), vec![200, 403])).collect(), 3);
    std::fs::write(&policy, &added).unwrap();
    let record = refused(&sidecar, "weaker");
    told.record(&record);
    assert_eq!(record["changes"][0]["customers"], whom);
    assert_eq!((&record["policy"]["revision"], &record["offered"]["revision"]), (&json!(12), &json!(13)));

    // Two customers consent, and one refuses it. That is put on record.
    let yaml = told.yaml();
    let entries: Vec<&str> = yaml.split_inclusive('\n').filter(|line| line.contains("sp-13")).collect();
    let [first, objection, second] = entries[..] else { panic!("{yaml}") };
    let agreed = added.replace("revision: 13", "revision: 14");
    let purposes = "    permitted_purposes: [base, customer_analytics, customer_marketing, quality_improvement]\n";
    let agreed = insert(&agreed, purposes, &format!("    consents:\n{first}"));
    let agreed = insert(&agreed, "      - {subprocessor: sp-09, effective_at: 2025-02-01, ref: OBJ-5}\n", objection);
    let accepted = "    dpa: {version: \"3\", accepted_at: 2024-05-01, contract_ref: MSA-0502}\n";
    let agreed = insert(&agreed, accepted, &format!("    consents:\n{second}"));
    at_desk("policy.yaml", &agreed);
    told.command(0);

    // What the change does to requests is known before it is made: from the policies,
    let cases: String = all
        .iter()
        .map(|(customer, caller, _)| {
            format!("  - {{name: {customer} {caller}, request: {{customer: {customer}, caller: {caller}, purpose: customer_support, data_categories: [user.contact]}}, expect: {{decision: deny}}}}\n")
        })
        .collect();
    let head = "version: 1\npolicy: policy.yaml\nclock: 2026-06-15T12:00:00Z\nservices: {api: {storage_location: US-OR}}\ndefaults: {service: api, operation: retrieve}\ncases:\n";
    at_desk("cases.yaml", &format!("{head}{cases}"));
    let flips = asked(&["diff", "agreed.yaml", "policy.yaml", "--requests", "cases.yaml"])["requests"]["flips"].clone();
    let foretold: BTreeSet<String> =
        flips.as_array().unwrap().iter().map(|flip| flip["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(foretold, BTreeSet::from(["redwood-strand sp-13".to_owned(), "cedar-hollow sp-13".to_owned()]));

    // and from the log, request by request.
    told.command(1);
    let replay = |log: &str| asked(&["replay", log, "--policy", "policy.yaml", "--was", "agreed.yaml"]);
    let mut replayed = BTreeSet::new();
    for (name, record) in &day {
        let id = record["decision_id"].as_str().unwrap();
        let of_it = |line: &&str| line.starts_with("{\"event\":\"dpa.decision\"") && line.contains(id);
        at_desk("one.ndjson", &log.split_inclusive('\n').filter(of_it).collect::<String>());
        let report = replay("one.ndjson");
        assert_eq!((&report["requests"]["count"], &report["undecidable"]["count"]), (&json!(1), &json!(0)), "{name}");
        assert_eq!(report["permit_to_deny"]["count"], 0, "{name}");
        if report["deny_to_permit"]["count"] == 1 {
            replayed.insert(name.clone());
        }
    }
    assert_eq!(replayed, foretold);

    // The gate lets it pass, under requests.
    let count = load.asked();
    std::fs::write(&policy, &agreed).unwrap();
    let record = loaded(&sidecar, 14);
    told.record(&record);
    assert_eq!(record["weaker"], 1, "and agreed");
    assert_eq!(record["against"]["revision"], 12);
    wait_for("requests under both", || (load.asked() > count + 200).then_some(()));
    let mut next_day = BTreeSet::new();
    for ((name, before), (other, after)) in day.iter().zip(ask(14)) {
        assert_eq!(*name, other);
        if before["decision"] != after["decision"] {
            next_day.insert(other);
        }
    }
    assert_eq!(next_day, replayed, "the same requests, on the day after");
    let asked = load.end() + 2 * all.len();

    // Exactly those decisions are others, and each names the policy that made it.
    let stopped = sidecar.stop();
    let text = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    let mut decided: BTreeMap<(String, u64), BTreeSet<String>> = BTreeMap::new();
    let (mut count, mut to_flip) = (0, 0);
    for record in records_in(&text).iter().filter(|record| record["event"] == "dpa.decision") {
        count += 1;
        let caller = record["recipient"]["id"].as_str().filter(|id| !id.contains("://")).unwrap_or("sp-13");
        let name = format!("{} {caller}", record["customer_id"].as_str().unwrap());
        let number = record["policy"]["revision"].as_u64().unwrap();
        to_flip += u64::from(number == 12 && replayed.contains(&name));
        let decision = record["decision"].as_str().unwrap().to_owned();
        decided.entry((name, number)).or_default().insert(decision);
    }
    assert_eq!(count, asked, "none was lost");
    let mut flipped = BTreeSet::new();
    for (customer, caller, _) in &all {
        let name = format!("{customer} {caller}");
        let [before, after] = [12, 14].map(|number| decided[&(name.clone(), number)].clone());
        assert_eq!((before.len(), after.len()), (1, 1), "{name}: one policy gives one answer");
        if before != after {
            flipped.insert(name);
        }
    }
    assert_eq!(flipped, replayed);
    assert!(decided.keys().all(|(_, number)| [12, 14].contains(number)), "what was refused decided nothing");
    // The whole log says the same of each request under load, and that those behind the reload come out as they did.
    let report = run(
        &stopped.folder.file("."),
        &["replay", "decisions.ndjson", "--policy", "policy.yaml", "--was", "agreed.yaml", "-o", "json"],
    );
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["deny_to_permit"]["count"], to_flip);
    // Of who refused the subprocessor, and where it may not be, the reason is another.
    let stay = ["same", "other_reason"].map(|key| report["requests"][key].as_u64().unwrap());
    assert_eq!(stay.iter().sum::<u64>() + to_flip, u64::try_from(count).unwrap(), "{report:#}");
    assert!(told.blocks.next().is_none(), "the document shows more than happens");
    assert!(told.wrong.is_empty(), "not as docs/change-a-policy.md shows it:\n{}", told.wrong.join("\n"));
}
