//! The decision log: what is in it, before what, and what happens when it cannot be written.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;

use serde_json::Value;

use crate::support::CARE_DESK;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::denied;
use crate::support::permitted;
use crate::support::records_in;
use crate::support::wait_for;

#[test]
fn the_record_is_there_before_the_upstream_sees_the_request() {
    let log: Arc<OnceLock<PathBuf>> = Arc::default();
    let (path, missing) = (Arc::clone(&log), Arc::new(Mutex::new(Vec::new())));
    let found_missing = Arc::clone(&missing);
    let upstream = Upstream::start(move |exchange| {
        let text = std::fs::read_to_string(path.get().unwrap()).unwrap();
        let id = exchange.head.value("dpa-decision-id").unwrap();
        let is_it = |record: &Value| record["event"] == "dpa.decision" && record["decision_id"] == id;
        if !records_in(&text).iter().any(is_it) {
            missing.lock().unwrap().push(id.to_owned());
        }
        exchange.ok("ok")
    });
    let sidecar = Setup::to(&upstream.address).start();
    log.set(sidecar.log()).unwrap();
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let mut connection = sidecar.connect();
            std::thread::spawn(move || {
                for _ in 0..25 {
                    connection.send(permitted());
                    assert_eq!(connection.answer().unwrap().status, 200);
                }
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    assert_eq!(*found_missing.lock().unwrap(), Vec::<String>::new(), "forwarded before they were written");
    assert_eq!(upstream.seen().len(), 200);
    let stopped = sidecar.stop();
    assert_eq!(stopped.code, Some(0));
    let records = records_in(&std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap());
    let count = |event: &str| records.iter().filter(|record| record["event"] == event).count();
    assert_eq!((count("dpa.decision"), count("dpa.outcome")), (200, 200), "each has its record and its outcome");
}

/// The keys of an object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_record_says_what_the_decision_was_made_from() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let request = Head::bare("GET", SUBSCRIBER)
        .with("DPA-Caller", CARE_DESK)
        .with("DPA-Context", "purpose=customer_support, instruction=\"ins-001\", request_ref=\"DSR-98\"");
    let answer = sidecar.ask(request.end());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let record = sidecar.decision(&answer.decision_id());
    let expected = [
        "action",
        "authority",
        "caller_id",
        "caller_identity",
        "customer_id",
        "data_categories",
        "decision",
        "decision_id",
        "durability",
        "enforcement",
        "event",
        "instance",
        "instruction_id",
        "location",
        "log",
        "method",
        "on_failure",
        "operation",
        "policy",
        "purpose",
        "recipient",
        "request_id",
        "request_ref",
        "route",
        "service",
        "sources",
        "time",
        "trace_id",
        "transport",
    ];
    let more = ["hash", "prev", "seq"];
    let found: Vec<&str> = keys(&record).into_iter().filter(|key| !more.contains(key)).collect();
    assert_eq!(found, expected);
    let table = [
        ("decision", Value::from("permit")),
        ("action", Value::from("allowed")),
        ("enforcement", Value::from("enforce")),
        ("on_failure", Value::from("deny")),
        ("durability", Value::from("written")),
        ("authority", Value::from("permitted_purpose")),
        ("service", Value::from("subscriber-api")),
        ("instance", Value::from("pod-0")),
        ("customer_id", Value::from("redwood-strand")),
        ("caller_id", Value::from("care-desk")),
        ("recipient", serde_json::json!({"type": "internal", "id": "care-desk"})),
        ("purpose", Value::from("customer_support")),
        ("operation", Value::from("retrieve")),
        ("data_categories", serde_json::json!(["user.contact"])),
        ("instruction_id", Value::from("ins-001")),
        ("request_ref", Value::from("DSR-98")),
        ("location", serde_json::json!({"storage": "US-OR", "access": "US-OR"})),
        ("transport", serde_json::json!({"tls_version": "none", "proof": "header", "peer": "address"})),
        ("route", Value::from("/v1/customers/{customer}/subscribers/{id}")),
        ("method", Value::from("GET")),
        (
            "sources",
            serde_json::json!({
                "caller": "header", "customer": "path", "purpose": "context", "operation": "method",
                "subscriber": "path", "instruction": "context", "request_ref": "context",
            }),
        ),
    ];
    for (key, expected) in table {
        assert_eq!(record[key], expected, "{key}");
    }
    assert_eq!(keys(&record["policy"]), ["digest", "name", "revision"]);
    assert_eq!((&record["policy"]["name"], &record["policy"]["revision"]), (&"lumenfield-dpa".into(), &12.into()));
    let id: uuid::Uuid = record["decision_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(id.get_version_num(), 7);
    assert!(record["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    assert!(!record.to_string().contains("1a2b"), "a subscriber reference is never recorded: {record}");

    let answer = sidecar.ask(denied());
    let record = sidecar.decision(&answer.decision_id());
    let reasons = serde_json::json!([
        {"code": "purpose_not_bound_to_caller", "clause": "1.2", "obligation": "on-behalf", "kind": "violation"}
    ]);
    assert_eq!((&record["reason"], &record["reasons"]), (&"purpose_not_bound_to_caller".into(), &reasons));
    assert_eq!(record["authority"], Value::Null);

    let events: Vec<Value> = sidecar.records();
    assert_eq!((&events[0]["event"], &events[0]["what"]), (&"dpa.log".into(), &"opened".into()));
    assert_eq!((&events[1]["event"], &events[1]["what"]), (&"dpa.policy".into(), &"loaded".into()));
    assert!(events.iter().all(|event| event["log"] == record["log"]), "all of one log");
}

#[test]
fn a_decision_about_several_customers_is_written_once_for_each() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let table = [
        ("two", "(redwood-strand granite-notch)", vec!["granite-notch", "redwood-strand"]),
        ("two, one of them unknown", "(redwood-strand nobody)", vec!["redwood-strand"]),
        (
            "three, one twice",
            "(redwood-strand granite-notch redwood-strand kelp-sound)",
            vec!["granite-notch", "kelp-sound", "redwood-strand"],
        ),
        ("two that nobody knows", "(nobody noone)", vec![""]),
        ("an empty list", "()", vec![""]),
    ];
    for (name, customers, expected) in table {
        let context = format!("customer={customers}, purpose=customer_support");
        let head = Head::bare("GET", "/v1/usage/x").with("DPA-Caller", CARE_DESK).with("DPA-Context", &context);
        let answer = sidecar.ask(head.end());
        assert_eq!(answer.status, 403, "{name}");
        let id = answer.decision_id();
        let records = sidecar.records();
        let of_it: Vec<&Value> = records.iter().filter(|record| record["decision_id"] == id.as_str()).collect();
        let mut found: Vec<&str> = of_it.iter().map(|record| record["customer_id"].as_str().unwrap_or("")).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{name}");
        assert!(of_it.windows(2).all(|two| two[0]["reasons"] == two[1]["reasons"]), "{name}");
    }
}

#[test]
fn a_log_that_cannot_be_written_at_all_is_no_start() {
    let device = Setup { decision_log: "{file: {path: /dev/full}}".to_owned(), ..Setup::to("127.0.0.1:1") };
    let (code, stderr) = device.refused_in(&Folder::new());
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("cannot open the decision log `/dev/full`: it is not a regular file"), "{stderr}");

    let folder = Folder::new();
    folder.write("file", "");
    let below = Setup { decision_log: "{file: {path: file/log}}".to_owned(), ..Setup::to("127.0.0.1:1") };
    let (code, stderr) = below.refused_in(&folder);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("cannot open the decision log"), "{stderr}");
}

/// A tiny file system of its own; `None` where that is not permitted.
#[derive(Debug)]
struct Disk(PathBuf);

impl Disk {
    fn new(folder: &Folder) -> Option<Self> {
        let path = folder.file("disk");
        std::fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&path);
        let is_mounted = mount.output().is_ok_and(|output| output.status.success());
        is_mounted.then_some(Self(path))
    }

    /// Fills it up to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut size = 65_536;
        let mut file = std::fs::File::create(&path).unwrap();
        while size > 0 {
            if std::io::Write::write_all(&mut file, &vec![b'x'; size]).is_err() {
                size /= 2;
            }
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_full() {
    let folder = Folder::new();
    let Some(disk) = Disk::new(&folder) else {
        eprintln!("skipped: this user may not mount a file system");
        return;
    };
    let upstream = Upstream::ok();
    let log = "{file: {path: disk/decisions.ndjson}}".to_owned();
    let mut sidecar = Setup { decision_log: log, ..Setup::to(&upstream.address) }.start_in(folder);
    sidecar.still_serves();
    let ballast = disk.fill();
    // The rest of the last page of the file is left; a few records fit there.
    let refused = wait_for("the disk to be full", || {
        let before = upstream.seen().len();
        let answer = sidecar.ask(permitted());
        if answer.status == 200 {
            return None;
        }
        assert_eq!(upstream.seen().len(), before, "it was forwarded without a record");
        Some(answer)
    });
    assert_eq!((refused.status, refused.reason().as_str()), (503, "decision_unrecorded"));
    assert_eq!(refused.value("retry-after"), Some("1"));
    let forwarded = upstream.seen().len();
    let log_path = disk.0.join("decisions.ndjson");
    for request in [permitted(), denied(), Head::permitted("GET", "/v1//x").end()] {
        // A shorter record may still find room.
        let answer = sidecar.ask(request);
        let is_recorded = std::fs::read_to_string(&log_path).unwrap().contains(&answer.decision_id());
        assert_eq!(answer.status != 503, is_recorded, "what is not written down is not answered otherwise");
    }
    assert_eq!(upstream.seen().len(), forwarded);
    let lines = records_in(&std::fs::read_to_string(disk.0.join("decisions.ndjson")).unwrap());
    assert!(!lines.is_empty());
    std::fs::remove_file(ballast).unwrap();
    let has_room = || Some(sidecar.ask(permitted())).filter(|answer| answer.status == 200);
    let answer = wait_for("a record after space was made", has_room);
    sidecar.is_sound();
    let stopped = sidecar.stop();
    let text = std::fs::read_to_string(disk.0.join("decisions.ndjson")).unwrap();
    assert!(text.ends_with('\n'));
    let is_it = |record: &Value| record["decision_id"] == answer.decision_id();
    assert!(records_in(&text).iter().any(is_it), "no line is torn, and the record is there");
    assert!(stopped.stderr.contains("the decision log cannot be written"), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("the decision log can be written again"), "{}", stopped.stderr);
    // Before the folder that it is in.
    drop(disk);
}

/// The word that the log can be written again was short enough for the last page, and the next record was not.
#[test]
fn a_full_disk_was_taken_for_one_that_is_not_again_and_again() {
    let folder = Folder::new();
    let Some(disk) = Disk::new(&folder) else {
        eprintln!("skipped: this user may not mount a file system");
        return;
    };
    let upstream = Upstream::ok();
    let log = "{file: {path: disk/decisions.ndjson}, on_failure: allow}".to_owned();
    let sidecar = Setup { decision_log: log, ..Setup::to(&upstream.address) }.start_in(folder);
    let ballast = disk.fill();
    wait_for("the disk to be full", || {
        sidecar.still_serves();
        sidecar.stderr.text().contains("the decision log cannot be written").then_some(())
    });
    let mut forwarded = Vec::new();
    // In two seconds there are several tries of its own.
    for _ in 0..20 {
        let answer = sidecar.ask(permitted());
        assert_eq!(answer.status, 200);
        forwarded.push(answer.decision_id());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(!sidecar.stderr.text().contains("can be written again"), "{}", sidecar.stderr.text());
    std::fs::remove_file(ballast).unwrap();
    wait_for("room", || sidecar.stderr.text().contains("can be written again").then_some(()));
    let stopped = sidecar.stop();
    let records = records_in(&std::fs::read_to_string(disk.0.join("decisions.ndjson")).unwrap());
    let outcomes: Vec<&str> = records
        .iter()
        .filter(|record| record["event"] == "dpa.outcome")
        .filter_map(|record| record["decision_id"].as_str())
        .collect();
    let at = |id: &String| outcomes.iter().position(|outcome| outcome == id);
    let places: Vec<_> = forwarded.iter().filter_map(at).collect();
    assert!(places.is_sorted() && !places.is_empty(), "how they ended is told in order: {places:?}");
    assert_eq!(stopped.stderr.matches("cannot be written").count(), 1, "{}", stopped.stderr);
    drop(disk);
}

/// Starts the program with a limit on the size of its files, which it can be freed of.
fn limited(setup: Setup) -> Setup {
    let script = "trap '' XFSZ; ulimit -Sf 4; exec \"$@\"";
    Setup { wrapper: ["sh", "-c", script, "sh"].map(str::to_owned).to_vec(), ..setup }
}

fn free(id: u32) {
    let freed = Command::new("prlimit").args(["--pid", &id.to_string(), "--fsize=unlimited:unlimited"]).status();
    assert!(freed.unwrap().success());
}

#[test]
fn a_log_that_may_not_grow_any_more() {
    let upstream = Upstream::ok();
    let mut sidecar = limited(Setup::to(&upstream.address)).start();
    let refused = wait_for("the limit", || Some(sidecar.ask(permitted())).filter(|answer| answer.status != 200));
    assert_eq!((refused.status, refused.reason().as_str()), (503, "decision_unrecorded"));
    let forwarded = upstream.seen().len();
    assert_eq!(sidecar.ask(permitted()).status, 503);
    assert_eq!(upstream.seen().len(), forwarded);
    records_in(&std::fs::read_to_string(sidecar.log()).unwrap());
    free(sidecar.id());
    let answer = sidecar.ask(permitted());
    assert_eq!(answer.status, 200);
    sidecar.decision(&answer.decision_id());
    sidecar.is_sound();
}

#[test]
fn a_log_that_cannot_be_written_where_that_is_allowed() {
    let upstream = Upstream::ok();
    let log = "{file: {path: decisions.ndjson}, on_failure: allow}".to_owned();
    let table = [
        ("on_failure: allow", Setup { decision_log: log, ..Setup::to(&upstream.address) }, 403),
        ("observe", Setup { enforcement: "observe", ..Setup::to(&upstream.address) }, 200),
    ];
    for (name, setup, status_when_denied) in table {
        let mut sidecar = limited(setup).start();
        let is_unrecorded = |id: &str| !std::fs::read_to_string(sidecar.log()).unwrap().contains(id);
        let answer = wait_for("the limit", || {
            let answer = sidecar.ask(permitted());
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{name}");
            is_unrecorded(&answer.decision_id()).then_some(answer)
        });
        let seen = upstream.last();
        assert_eq!(seen.head.value("dpa-decision-id"), Some(answer.decision_id().as_str()), "{name}");
        let answer = sidecar.ask(denied());
        let expected = if status_when_denied == 200 { 200 } else { 503 };
        assert_eq!(answer.status, expected, "{name}: a denial that cannot be written down");
        sidecar.is_sound();
    }
}

#[test]
fn a_last_line_that_a_crash_tore_is_cut_and_that_is_recorded() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let answer = sidecar.ask(permitted());
    let first = sidecar.outcome(&answer.decision_id());
    let stopped = sidecar.stop();
    let path = stopped.folder.file("decisions.ndjson");
    let whole = std::fs::read_to_string(&path).unwrap();
    let torn = "{\"event\":\"dpa.decision\",\"time\":\"2026-";
    std::fs::write(&path, whole.clone() + torn).unwrap();

    let sidecar = Setup::to(&upstream.address).start_in(stopped.folder);
    let found = sidecar.record("torn", |record| record["event"] == "dpa.log" && record["what"] == "torn");
    assert_eq!(found["lost_bytes"].as_u64(), u64::try_from(torn.len()).ok());
    assert_eq!(found["log"], first["log"], "the log keeps its id");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(&whole), "what was whole is as it was");
    sidecar.still_serves();
    records_in(&std::fs::read_to_string(&path).unwrap());

    // A file that is one torn line is no log yet.
    let folder = Folder::new();
    folder.write("decisions.ndjson", torn);
    let sidecar = Setup::to(&upstream.address).start_in(folder);
    let events: Vec<Value> = sidecar.records();
    assert_eq!((&events[0]["what"], &events[1]["what"]), (&"opened".into(), &"torn".into()));
}

#[test]
fn a_log_is_continued_after_a_restart() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let first = sidecar.ask(permitted()).decision_id();
    let stopped = sidecar.stop();
    let sidecar = Setup::to(&upstream.address).start_in(stopped.folder);
    let second = sidecar.ask(permitted()).decision_id();
    assert_eq!(sidecar.decision(&first)["log"], sidecar.decision(&second)["log"]);
}

#[test]
fn two_processes_never_write_one_log() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let log = Value::from(folder.file("shared.ndjson").to_str().unwrap());
    let setup = Setup { decision_log: format!("{{file: {{path: {log}}}}}"), ..Setup::to(&upstream.address) };
    let sidecar = setup.start();
    let (code, stderr) = setup.refused_in(&Folder::new());
    assert_eq!(code, Some(2), "{stderr}");
    let (path, holder) = (folder.file("shared.ndjson"), sidecar.id());
    let message = format!(
        "the decision log `{}` is being written by another process (process {holder}, instance ",
        path.display()
    );
    assert!(stderr.contains(&message), "{stderr}");
    sidecar.still_serves();
    // The first one's file by another name, or without its lock file, is still the first one's.
    let other = Folder::new();
    std::os::unix::fs::symlink(&path, other.file("symlink.ndjson")).unwrap();
    std::fs::hard_link(&path, other.file("link.ndjson")).unwrap();
    std::fs::remove_file(folder.file(".shared.ndjson.lock")).unwrap();
    for file in [other.file("symlink.ndjson"), other.file("link.ndjson"), path] {
        let log = Value::from(file.to_str().unwrap());
        let second = Setup { decision_log: format!("{{file: {{path: {log}}}}}"), ..Setup::to(&upstream.address) };
        let (code, stderr) = second.refused_in(&Folder::new());
        assert_eq!(code, Some(2), "{log}: {stderr}");
        assert!(stderr.contains("is being written by another process (which has it under another name"), "{stderr}");
    }
    sidecar.still_serves();
    drop(sidecar);
    setup.start().still_serves();
}

#[test]
fn standard_output_as_a_log() {
    let upstream = Upstream::ok();
    let sidecar = Setup { decision_log: "{stdout: true}".to_owned(), ..Setup::to(&upstream.address) }.start();
    let answer = sidecar.ask(permitted());
    assert_eq!(answer.status, 200);
    let stopped = sidecar.stop();
    let records = records_in(&stopped.stdout);
    assert!(stopped.stdout.ends_with('\n'));
    let of_it: Vec<&str> = records
        .iter()
        .filter(|record| record["decision_id"] == answer.decision_id())
        .filter_map(|record| record["event"].as_str())
        .collect();
    assert_eq!(of_it, ["dpa.decision", "dpa.outcome"]);
    assert!(!stopped.folder.file("decisions.ndjson").exists());
}

#[test]
fn a_file_and_standard_output_say_the_same() {
    let upstream = Upstream::ok();
    let log = "{file: {path: sub/decisions.ndjson}, stdout: true}".to_owned();
    let sidecar = Setup { decision_log: log, ..Setup::to(&upstream.address) }.start();
    sidecar.still_serves();
    let stopped = sidecar.stop();
    let path: &Path = &stopped.folder.file("sub/decisions.ndjson");
    assert_eq!(std::fs::read_to_string(path).unwrap(), stopped.stdout);
}
