//! The files of a decision log: a chain over segments, restarts and keys.

use std::path::Path;
use std::path::PathBuf;

use dpa_sidecar::record::chain::Head;
use dpa_sidecar::record::chain::Sealed;
use dpa_sidecar::record::checkpoint;
use dpa_sidecar::record::checkpoint::Verifier;
use serde_json::Value;

use crate::support::Folder;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::permitted;

/// The segments of the log in a folder, in order, the one that is written last.
fn segments(folder: &Folder) -> Vec<PathBuf> {
    segments_beside(&folder.file("decisions.ndjson"))
}

pub(crate) fn segments_beside(active: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(active.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("decisions-"))
        .collect();
    found.sort();
    found.push(active.to_owned());
    found
}

/// Goes along a chain: each line is whole and follows the one before. Its records, and where it ends.
fn follow(path: &Path, mut head: Head) -> (Vec<Value>, Head) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'), "{}", path.display());
    let mut records = Vec::new();
    for line in text.lines() {
        let sealed = Sealed::read(line.as_bytes()).unwrap_or_else(|| panic!("{line}"));
        assert!(sealed.is_whole(), "{line}");
        assert_eq!((sealed.seq, sealed.prev), (head.seq + 1, head.hash), "{line}");
        let record: Value = serde_json::from_str(line).unwrap();
        if record["event"] == "dpa.checkpoint" {
            // One was made, then a new segment began, and it stood behind records that it did not count.
            let says = (record["count"].as_u64(), record["head"].as_str());
            assert_eq!(says, (Some(head.seq), Some(head.hash.as_str())), "{line}");
        }
        head = sealed.head();
        records.push(record);
    }
    (records, head)
}

fn follow_all(paths: &[PathBuf]) -> Vec<Value> {
    let mut head = Head::NONE;
    let mut all = Vec::new();
    for path in paths {
        let (records, end) = follow(path, head);
        assert_eq!((&records[0]["event"], &records[0]["what"]), (&"dpa.log".into(), &"opened".into()));
        head = end;
        all.extend(records);
    }
    all
}

fn ask(sidecar: &Sidecar, times: usize) {
    for _ in 0..times {
        assert_eq!(sidecar.ask(permitted()).status, 200);
    }
}

fn whys(records: &[Value]) -> Vec<&str> {
    records.iter().filter_map(|record| record["why"].as_str()).collect()
}

#[test]
fn one_chain_over_segments_and_restarts() {
    let upstream = Upstream::ok();
    let log = "{file: {path: decisions.ndjson, rotate_bytes: 16KiB}}".to_owned();
    let setup = Setup { decision_log: log, ..Setup::to(&upstream.address) };
    let sidecar = setup.start();
    ask(&sidecar, 30);
    let stopped = sidecar.stop();
    assert!(segments(&stopped.folder).len() > 2);
    // The second begins where the first was, whether a segment is open or only closed ones are left.
    let sidecar = setup.start_in(stopped.folder);
    ask(&sidecar, 1);
    let stopped = sidecar.stop();
    let count = segments(&stopped.folder).len();
    std::fs::rename(
        stopped.folder.file("decisions.ndjson"),
        stopped.folder.file(&format!("decisions-{count:06}.ndjson")),
    )
    .unwrap();
    let sidecar = setup.start_in(stopped.folder);
    ask(&sidecar, 1);
    let stopped = sidecar.stop();
    let all = follow_all(&segments(&stopped.folder));
    let numbers: Vec<u64> = all.iter().filter_map(|record| record["segment"].as_u64()).collect();
    assert_eq!(numbers, (1..=u64::try_from(count).unwrap() + 1).collect::<Vec<_>>());
    assert_eq!(whys(&all).first().copied(), Some("new"));
    assert!(whys(&all)[1..count].iter().all(|why| *why == "rotated"), "{:?}", whys(&all));
    assert_eq!(whys(&all).last().copied(), Some("continued"));
    assert!(all.iter().all(|record| record["log"] == all[0]["log"]));
    assert_eq!(all.iter().filter(|record| record["event"] == "dpa.decision").count(), 32);
    // Each segment ends with a checkpoint, and so does the log.
    let closed = segments(&stopped.folder);
    for path in &closed {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.lines().last().unwrap().starts_with("{\"event\":\"dpa.checkpoint\""), "{}", path.display());
    }
}

#[test]
fn segments_that_are_too_old_or_too_many() {
    let upstream = Upstream::ok();
    let log = "{file: {path: decisions.ndjson, rotate_bytes: 16KiB, keep: 2}}".to_owned();
    let sidecar = Setup { decision_log: log, ..Setup::to(&upstream.address) }.start();
    ask(&sidecar, 60);
    let stopped = sidecar.stop();
    let left = segments(&stopped.folder);
    assert_eq!(left.len(), 3, "{left:?}");
    let first = std::fs::read_to_string(&left[0]).unwrap();
    let begin = Sealed::read(first.lines().next().unwrap().as_bytes()).unwrap();
    let (mut records, head) = follow(&left[0], Head { seq: begin.seq - 1, hash: begin.prev });
    let first_left = records[0]["segment"].as_u64().unwrap();
    let (more, head) = follow(&left[1], head);
    records.extend(more);
    records.extend(follow(&left[2], head).0);
    let removed: Vec<u64> = records
        .iter()
        .filter(|record| record["what"] == "retention")
        .filter_map(|record| record["segment"].as_u64())
        .collect();
    assert!(removed.contains(&(first_left - 1)), "{removed:?}, {first_left}");

    let log = "{file: {path: decisions.ndjson, rotate_after: 300ms}}".to_owned();
    let setup = Setup { decision_log: log, ..Setup::to(&upstream.address) };
    let sidecar = setup.start();
    crate::support::wait_for("the second segment", || {
        ask(&sidecar, 1);
        (segments_beside(&sidecar.log()).len() > 2).then_some(())
    });
    let stopped = sidecar.stop();
    follow_all(&segments(&stopped.folder));
}

#[test]
fn a_file_that_was_no_segment_was_removed_as_one() {
    let upstream = Upstream::ok();
    let log = "{file: {path: decisions.ndjson, rotate_bytes: 16KiB, keep: 1}}".to_owned();
    let sidecar = Setup { decision_log: log, ..Setup::to(&upstream.address) }.start();
    let foreign = sidecar.log().with_file_name("decisions-000000.ndjson");
    std::fs::write(&foreign, "notes of an officer\n").unwrap();
    ask(&sidecar, 60);
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "notes of an officer\n");
    let stopped = sidecar.stop();
    assert_eq!(segments(&stopped.folder).len(), 3, "its own are kept and removed as before");
}

#[test]
fn a_full_segment_whose_name_was_taken_stopped_the_log() {
    let upstream = Upstream::ok();
    let log = "{file: {path: decisions.ndjson, rotate_bytes: 16KiB, keep: 4}}".to_owned();
    let setup = Setup { decision_log: log, ..Setup::to(&upstream.address) };
    let sidecar = setup.start();
    let foreign = sidecar.log().with_file_name("decisions-000002.ndjson");
    std::fs::write(&foreign, "not a segment\n").unwrap();
    ask(&sidecar, 40);
    let stopped = sidecar.stop();
    let beside = stopped.folder.file("decisions-000002.2.ndjson");
    assert!(stopped.stderr.contains("another file has the name of a segment"), "{}", stopped.stderr);
    // Also one that is the newest is found again.
    for closed in 3..9 {
        let _not_there = std::fs::remove_file(stopped.folder.file(&format!("decisions-{closed:06}.ndjson")));
    }
    std::fs::remove_file(stopped.folder.file("decisions.ndjson")).unwrap();
    let sidecar = setup.start_in(stopped.folder);
    ask(&sidecar, 1);
    let stopped = sidecar.stop();
    let closed = [stopped.folder.file("decisions-000001.ndjson"), beside, stopped.folder.file("decisions.ndjson")];
    assert_eq!(whys(&follow_all(&closed)), ["new", "rotated", "continued"]);
    assert_eq!(std::fs::read_to_string(foreign).ok().as_deref(), Some("not a segment\n"));
}

#[test]
fn checkpoints_are_signed_and_copied() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let key = checkpoint::generate().unwrap();
    folder.write("log.key", &key.private);
    let log = "{file: {path: decisions.ndjson}, signing_key: log.key, checkpoint_every: 50ms, \
        checkpoint_copy: kept/checkpoints.ndjson}";
    std::fs::create_dir(folder.file("kept")).unwrap();
    let setup = Setup { decision_log: log.to_owned(), ..Setup::to(&upstream.address) };
    let sidecar = setup.start_in(folder);
    ask(&sidecar, 5);
    let is_checkpoint = |record: &Value| record["event"] == "dpa.checkpoint";
    sidecar.record("a checkpoint while it runs", is_checkpoint);
    let stopped = sidecar.stop();
    let text = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("{\"event\":\"dpa.checkpoint\"")).collect();
    let kept = std::fs::read_to_string(stopped.folder.file("kept/checkpoints.ndjson")).unwrap();
    assert_eq!(kept.lines().collect::<Vec<_>>(), lines);
    let verifier = Verifier::read(key.public.as_bytes()).unwrap();
    let stranger = Verifier::read(checkpoint::generate().unwrap().public.as_bytes()).unwrap();
    for line in lines {
        let sealed = Sealed::read(line.as_bytes()).unwrap();
        assert!(verifier.is_signed(sealed.record) && !stranger.is_signed(sealed.record), "{line}");
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["count"].as_u64(), Some(sealed.seq - 1));
        assert_eq!(record["head"].as_str(), Some(sealed.prev.as_str()));
        assert_eq!(record["key_id"].as_str(), Some(key.id.as_str()));
        assert_eq!(record["unrecorded"], 0);
    }
    let all = follow_all(&segments(&stopped.folder));
    assert_eq!(all[0]["key_id"].as_str(), Some(key.id.as_str()));

    // Another key: another segment, which names it.
    let other = checkpoint::generate().unwrap();
    stopped.folder.write("log.key", &other.private);
    let sidecar = setup.start_in(stopped.folder);
    ask(&sidecar, 1);
    let stopped = sidecar.stop();
    let all = follow_all(&segments(&stopped.folder));
    assert_eq!(whys(&all), ["new", "another_key"]);

    stopped.folder.write("log.key", "no key");
    let (code, stderr) = setup.refused_in(&stopped.folder);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("error[DPA046]") && stderr.contains("dpa-sidecar keygen"), "{stderr}");
}

#[test]
fn records_that_are_on_the_disk_first() {
    let upstream = Upstream::ok();
    let log = "{file: {path: decisions.ndjson, rotate_bytes: 16KiB}, durability: synced}".to_owned();
    let sidecar = Setup { decision_log: log, ..Setup::to(&upstream.address) }.start();
    ask(&sidecar, 20);
    let stopped = sidecar.stop();
    let all = follow_all(&segments(&stopped.folder));
    let decisions: Vec<&Value> = all.iter().filter(|record| record["event"] == "dpa.decision").collect();
    assert_eq!(decisions.len(), 20);
    assert!(decisions.iter().all(|record| record["durability"] == "synced"));
}

#[test]
fn what_could_not_be_recorded_is_counted_in_the_next_checkpoint() {
    let upstream = Upstream::ok();
    let script = "trap '' XFSZ; ulimit -Sf 8; exec \"$@\"";
    let setup = Setup {
        decision_log: "{file: {path: decisions.ndjson}, on_failure: allow}".to_owned(),
        wrapper: ["sh", "-c", script, "sh"].map(str::to_owned).to_vec(),
        ..Setup::to(&upstream.address)
    };
    let sidecar = setup.start();
    let lost = crate::support::wait_for("a record that is lost", || {
        let answer = sidecar.ask(permitted());
        assert_eq!(answer.status, 200);
        let is_there = std::fs::read_to_string(sidecar.log()).unwrap().contains(&answer.decision_id());
        (!is_there).then_some(answer.decision_id())
    });
    let id = sidecar.id().to_string();
    let freed = std::process::Command::new("prlimit").args(["--pid", &id, "--fsize=unlimited:unlimited"]).status();
    assert!(freed.unwrap().success());
    sidecar.record("what was lost is told", |record| record["what"] == "regained");
    sidecar
        .record("the count", |record| record["event"] == "dpa.checkpoint" && record["unrecorded"].as_u64() > Some(0));
    // How the request ended is known all the same.
    sidecar.outcome(&lost);
    let stopped = sidecar.stop();
    follow_all(&segments(&stopped.folder));
}

#[test]
fn an_end_that_is_not_a_record() {
    let upstream = Upstream::ok();
    let setup = Setup::to(&upstream.address);
    let sidecar = setup.start();
    ask(&sidecar, 3);
    let mut stopped = sidecar.stop();
    let whole = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    let record = whole.lines().last().unwrap().replace("\"seq\":", "\"seq\":1");
    // A power cut may leave blocks of zeros. A line that is whole and no record is evidence of something.
    let table = [
        ("half a line", "{\"event\":\"dpa.decision\",\"time\":\"2026-".to_owned()),
        ("zeros", "\0".repeat(100_000)),
        ("zeros and a line", "\0".repeat(4096) + "\n"),
        ("an empty line", "\n".to_owned()),
        ("a record that is none", record + "\n"),
        ("a long line", "x".repeat(300_000) + "\n{\"event\":"),
    ];
    for (name, end) in table {
        let path = stopped.folder.file("decisions.ndjson");
        let before = std::fs::read_to_string(&path).unwrap() + &end;
        let files = segments(&stopped.folder).len();
        stopped.folder.write("decisions.ndjson", &before);
        let sidecar = setup.start_in(stopped.folder);
        ask(&sidecar, 1);
        stopped = sidecar.stop();
        let after = std::fs::read_to_string(&path).unwrap();
        if end.contains('\n') {
            let closed = segments(&stopped.folder);
            assert_eq!(closed.len(), files + 1, "{name}");
            assert_eq!(std::fs::read_to_string(&closed[files - 1]).unwrap(), before, "{name}: it was changed");
            let opening: Value = serde_json::from_str(after.lines().next().unwrap()).unwrap();
            assert_eq!((&opening["what"], &opening["why"]), (&"opened".into(), &"damaged".into()), "{name}");
            assert!(stopped.stderr.contains("ends with lines that are no records"), "{name}: {}", stopped.stderr);
            // What comes after goes on from the last record that is one.
            let mut last = before.lines().rev().filter_map(|line| Sealed::read(line.as_bytes()));
            follow(&path, last.find(Sealed::is_whole).unwrap().head());
        } else {
            let kept = before.strip_suffix(&end).unwrap();
            assert!(after.starts_with(kept), "{name}: what was whole is as it was");
            let (records, _) = follow(&path, Head::NONE);
            let torn = records.iter().rfind(|record| record["what"] == "torn").unwrap();
            assert_eq!(torn["lost_bytes"].as_u64(), u64::try_from(end.len()).ok(), "{name}");
        }
    }
}

/// The program's word on a log: whether it is as it was written, and what is first wrong with it.
fn verified(folder: &Folder) -> (bool, Value) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"));
    let output = command.args(["audit", "verify", "-o", "json"]).arg(folder.file("")).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.success(), said["first"]["code"].clone())
}

/// The start took changed records at the end for what a crash tore, cut them, and the log was found as written.
#[test]
fn a_restart_removed_changed_records() {
    let upstream = Upstream::ok();
    let setup = Setup::to(&upstream.address);
    let sidecar = setup.start();
    ask(&sidecar, 3);
    let stopped = sidecar.stop();
    let text = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    let (whole, changed) = text.split_at(text.rfind("{\"event\":\"dpa.decision\"").unwrap());
    let changed = changed.replace("\"subscriber-api\"", "\"subscriber-apl\"");
    stopped.folder.write("decisions.ndjson", &(whole.to_owned() + &changed));
    assert_eq!(verified(&stopped.folder), (false, "changed".into()));
    let sidecar = setup.start_in(stopped.folder);
    ask(&sidecar, 1);
    let stopped = sidecar.stop();
    assert_eq!(verified(&stopped.folder), (false, "changed".into()), "a restart made it whole");
}

/// Bytes that somebody else added were not counted, so a failed write was cut back into the records before.
#[test]
fn a_line_of_somebody_else_in_the_file_that_is_written() {
    let upstream = Upstream::ok();
    let script = "trap '' XFSZ; ulimit -Sf 24; exec \"$@\"";
    let wrapper = ["sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    let sidecar = Setup { wrapper, ..Setup::to(&upstream.address) }.start();
    ask(&sidecar, 1);
    let path = sidecar.log();
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut file, b"a note\n").unwrap();
    let mut answered = Vec::new();
    crate::support::wait_for("the limit", || {
        let answer = sidecar.ask(permitted());
        if answer.status == 200 {
            answered.push(answer.decision_id());
        }
        (answer.status == 503).then_some(())
    });
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.ends_with("}\n") && text.contains("\na note\n"), "{text}");
    assert!(answered.iter().all(|id| text.contains(id)), "a request that was answered lost its record");
}

#[test]
fn a_log_of_a_gibibyte_is_gone_on_with() {
    let upstream = Upstream::ok();
    let log = "{file: {path: decisions.ndjson, rotate_bytes: 4GiB}}".to_owned();
    let setup = Setup { decision_log: log, ..Setup::to(&upstream.address) };
    let sidecar = setup.start();
    ask(&sidecar, 1);
    let stopped = sidecar.stop();
    // Only its first line and its end are looked at: a hole of a gibibyte in between is as good as records.
    let path = stopped.folder.file("decisions.ndjson");
    let text = std::fs::read_to_string(&path).unwrap();
    let last = text.lines().last().unwrap().to_owned() + "\n";
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let hole = 1 << 30;
    std::os::unix::fs::FileExt::write_all_at(&file, b"\n", hole).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, last.as_bytes(), hole + 1).unwrap();
    drop(file);
    let sidecar = setup.start_in(stopped.folder);
    ask(&sidecar, 1);
}
