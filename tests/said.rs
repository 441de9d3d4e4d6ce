//! What the commands of a policy's life say, word by word: what is signed, and what is refused at a start and at a reload.

use serde_json::Value;

use crate::policy_reload::refused;
use crate::policy_reload::revision;
use crate::policy_reload::settings;
use crate::policy_reload::start;
use crate::support::Folder;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::as_golden;
use crate::support::err;
use crate::support::out;
use crate::support::run;

/// The text without what is new each time: times, keys, hashes of them, ids, and the folder.
fn normal(text: &str, folder: &Folder) -> String {
    let here = folder.file("").display().to_string();
    let text = text.replace(here.trim_end_matches('/'), "FOLDER");
    let word = |word: &str| {
        let bare = word.trim_end_matches([':', ',', '}', '\n']);
        let is_key = bare.len() == 16 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        if bare.parse::<jiff::Timestamp>().is_ok() || bare.parse::<jiff::civil::Date>().is_ok() {
            word.replace(bare, "TIME")
        } else if is_key {
            word.replace(bare, "KEY")
        } else {
            word.to_owned()
        }
    };
    text.split_inclusive('\n').map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" ")).collect()
}

/// A record without what is new each time.
fn plain(record: &Value) -> String {
    let mut record = record.clone();
    for key in ["time", "log", "seq", "prev", "hash"] {
        record[key] = Value::from(format!("({key})"));
    }
    serde_json::to_string_pretty(&record).unwrap() + "\n"
}

const BASELINE: &str = "{file: policy.yaml, baseline: agreed.yaml}";

/// The sample with a measure, and what weakens it.
fn measured(number: u64, version: &str) -> String {
    revision(number)
        .replace("defaults:\n", &format!("security_measures: {{min_tls_version: \"{version}\"}}\ndefaults:\n"))
}

#[test]
fn what_the_commands_say_of_a_policy() {
    let folder = Folder::new();
    folder.write("policy.yaml", &measured(14, "1.2"));
    folder.write("agreed.yaml", &measured(13, "1.3"));
    folder.write("older.yaml", &measured(12, "1.3"));
    folder.write("mistaken.yaml", &(revision(13) + "nonsense: 1\n"));
    folder.write("sidecar.yaml", &settings("127.0.0.1:1", BASELINE, "enforce"));
    folder.write("back.yaml", &settings("127.0.0.1:1", "{file: older.yaml, baseline: agreed.yaml}", "enforce"));
    folder.write("observes.yaml", &settings("127.0.0.1:1", "{file: demanding.yaml}", "observe"));
    folder.write("demanding.yaml", &(revision(13) + "require_enforce: true\n"));
    folder.write("empty.ndjson", "");
    assert!(run(&folder.file("."), &["keygen", "policy.key"]).status.success());
    let table: [(&str, &[&str], i32); 14] = [
        ("sign", &["sign", "--key", "policy.key", "policy.yaml"], 0),
        ("sign-with-mistakes", &["sign", "--key", "policy.key", "mistaken.yaml"], 1),
        ("sign-with-a-public-key", &["sign", "--key", "policy.key.pub", "policy.yaml"], 2),
        ("weaker-than-the-baseline", &["check", "sidecar.yaml"], 1),
        ("weaker-than-the-baseline-as-json", &["check", "sidecar.yaml", "-o", "json"], 1),
        ("older-than-the-baseline", &["check", "back.yaml"], 1),
        ("older-than-the-baseline-as-json", &["check", "back.yaml", "-o", "json"], 1),
        ("coverage-of-what-does-not-start", &["coverage", "observes.yaml"], 2),
        ("coverage-of-what-is-not-agreed", &["coverage", "sidecar.yaml"], 2),
        ("coverage-of-nothing", &["coverage", "no-such-file"], 2),
        ("replay-of-nothing", &["replay", "empty.ndjson", "--policy", "agreed.yaml"], 2),
        ("replay-with-a-mistaken-policy", &["replay", "empty.ndjson", "--policy", "mistaken.yaml"], 2),
        ("diff-with-a-mistaken-policy", &["diff", "agreed.yaml", "mistaken.yaml"], 2),
        ("check-against-a-mistaken-policy", &["check", "agreed.yaml", "--against", "mistaken.yaml"], 2),
    ];
    let mut wrong = Vec::new();
    for (name, arguments, expected) in table {
        let output = run(&folder.file("."), arguments);
        if output.status.code() != Some(expected) {
            wrong.push(format!("{name}: {}", output.status));
        }
        let text = [("", out(&output)), ("(standard error)\n", err(&output))]
            .iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(head, text)| format!("{head}{}", without_warnings(&normal(text, &folder))))
            .collect::<String>();
        wrong.extend(as_golden(&format!("said/{name}.txt"), &text));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Text and JSON without warnings: some of them hang on the day.
fn without_warnings(text: &str) -> String {
    if let Ok(mut report) = serde_json::from_str::<Value>(text) {
        let lists = report.as_object_mut().unwrap().values_mut().filter_map(Value::as_array_mut);
        lists.for_each(|list| list.retain(|problem| problem["severity"] != "warning"));
        return serde_json::to_string_pretty(&report).unwrap() + "\n";
    }
    let mut is_warning = false;
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        is_warning = line.contains(": warning[") || is_warning && !line.contains(": ok: ") && line != "\n";
        if !is_warning {
            kept += line;
        }
    }
    // One stands behind each.
    while kept.contains("\n\n\n") {
        kept = kept.replace("\n\n\n", "\n\n");
    }
    kept
}

/// The gate refuses at a start and at a reload: standard error, and the records.
#[test]
fn what_the_gate_says() {
    let table = [
        ("a-measure-that-is-weaker", measured(14, "1.2")),
        ("a-way-back", measured(12, "1.3")),
        ("the-same-revision", measured(13, "1.2")),
        (
            "a-customer-that-would-be-observed",
            measured(14, "1.3").replace("id: granite-notch\n", "id: granite-notch\n    enforcement: observe\n"),
        ),
    ];
    let upstream = Upstream::ok();
    let mut wrong = Vec::new();
    for (name, text) in table {
        let folder = Folder::new();
        folder.write("policy.yaml", &text);
        folder.write("agreed.yaml", &measured(13, "1.3"));
        let settings = settings(&upstream.address, BASELINE, "enforce");
        let (code, said) = Setup::to(&upstream.address).refused_with(&settings, &folder);
        assert_eq!(code, Some(1), "{name}: {said}");
        // Lines of the operational log begin with their time.
        let said = normal(&said, &folder);
        let said: String = said.split_inclusive('\n').filter(|line| !line.starts_with("TIME")).collect();
        wrong.extend(as_golden(&format!("said/start-with-{name}.txt"), &without_warnings(&said)));

        let folder = Folder::new();
        let policy = folder.write("policy.yaml", &measured(13, "1.3"));
        folder.write("agreed.yaml", &measured(13, "1.3"));
        let sidecar = start(folder, &upstream.address, BASELINE);
        std::fs::write(&policy, &text).unwrap();
        let why = if text.contains("revision: 14") { "weaker" } else { "revision" };
        wrong.extend(as_golden(&format!("said/reload-with-{name}.json"), &plain(&refused(&sidecar, why))));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
