//! What a sidecar says of itself when it starts, and its operational log.

use serde_json::Value;

use super::told;
use super::watched;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;
use crate::support::wait_for;

#[test]
fn what_is_told_at_the_start() {
    let upstream = Upstream::ok();
    let setup = Setup::to(&upstream.address);
    let table = [
        ("enforcing", setup.clone(), "  mode       enforce: "),
        ("observing", Setup { enforcement: "observe", ..setup }, "  mode       OBSERVE: "),
    ];
    for (name, setup, mode) in table {
        let sidecar = watched(&setup);
        let (health, admin) = (told(&sidecar, "health"), told(&sidecar, "admin"));
        let text = sidecar.stderr.text();
        for expected in [
            " protects subscriber-api (instance pod-0, data in US-OR)\n",
            mode,
            "  policy     lumenfield-dpa revision 12 digest ",
            ", not signed\n             7 customers, 12 subprocessors, 7 callers, 19 purposes, 8 instructions\n",
            &format!("  listeners  main {}, ingress, in clear, to app at {}\n", sidecar.address, upstream.address),
            "decisions.ndjson, written, checkpoints not signed; without a record: deny\n",
            &format!("  health     {health}\n"),
            &format!("  admin      {admin}\n"),
            "  settings   digest ",
            "`dpa-sidecar check` shows them\n",
        ] {
            assert!(text.contains(expected), "{name}: {expected}: {text}");
        }
    }
}

#[test]
fn as_json_each_line_is_an_object_and_the_start_is_one_of_them() {
    let upstream = Upstream::start(|exchange| {
        exchange.send("no HTTP\r\n\r\n");
        crate::support::Then::Close
    });
    let settings = Setup::to(&upstream.address).text();
    let folder = Folder::new();
    let sidecar = Sidecar::start_json(folder, &settings);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let answer = sidecar.ask(Head::permitted("GET", SUBSCRIBER).with("traceparent", &parent).end());
    assert_eq!(answer.status, 502);
    let failed = wait_for("a warning", || {
        let text = sidecar.stderr.text();
        let line = text.lines().find(|line| line.contains("has no answer"))?;
        Some(serde_json::from_str::<Value>(line).unwrap())
    });
    assert_eq!(failed["trace_id"], trace, "{failed}");
    assert_eq!(failed["decision"], answer.decision_id().as_str(), "{failed}");
    assert_eq!(failed["message"], "a request that was sent on has no answer", "{failed}");
    assert_eq!(failed["level"], "WARN", "{failed}");
    let text = sidecar.stop().stderr;
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let started = lines.iter().find(|line| line["message"] == "started").unwrap();
    for (key, expected) in [
        ("service", "subscriber-api"),
        ("enforcement", "enforce"),
        ("policy", "lumenfield-dpa"),
        ("health", "none"),
        ("admin", "none"),
    ] {
        assert_eq!(started[key], expected, "{started}");
    }
    assert_eq!((started["customers"].as_u64(), started["revision"].as_u64()), (Some(7), Some(12)), "{started}");
}

/// What differs from line to line is in fields: lines that say the same can be counted and found.
#[test]
fn messages_of_the_operational_log_are_constant() {
    let mut pending = vec![repository("src")];
    let mut wrong = Vec::new();
    let mut count = 0;
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for level in ["error", "warn", "info", "debug", "trace"] {
            for (place, _) in text.match_indices(&format!("tracing::{level}!(")) {
                count += 1;
                let call = text[place..].split_once(");").unwrap().0;
                // The message is the last that stands in quotes.
                let message = call.rsplit('"').nth(1).unwrap_or_default();
                if message.is_empty() || message.contains('{') {
                    wrong.push(format!("{}: {call}", path.display()));
                }
            }
        }
    }
    assert!(count > 30, "{count} calls: where are they?");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_version_says_which_commit_if_the_build_did() {
    let output = run(&repository(""), &["--version"]);
    let said = out(&output) + &err(&output);
    let version = format!("dpa-sidecar {}", env!("CARGO_PKG_VERSION"));
    assert!(said.starts_with(&version), "{said}");
    let commit = option_env!("DPA_COMMIT").map_or(String::new(), |commit| format!(" ({commit})"));
    assert_eq!(said, format!("{version}{commit}\n"));
}
