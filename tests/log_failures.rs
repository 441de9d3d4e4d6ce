//! A decision log that does not take records: nothing else stops for it, and what is said about it is true.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use crate::support::Folder;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::permitted;
use crate::support::records_in;
use crate::support::wait_for;

/// A pipe that nobody reads yet. As long as this is open, a writer waits.
fn pipe(folder: &Folder) -> File {
    let path = folder.file("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// The program with its standard output in a file of the folder.
fn with_stdout(setup: Setup, path: &Path) -> Setup {
    let script = format!("exec \"$@\" > '{}'", path.display());
    Setup { wrapper: ["sh", "-c", script.as_str(), "sh"].map(str::to_owned).to_vec(), ..setup }
}

/// Processor time of the thread that writes the log, in ticks of 10 ms.
fn ticks(sidecar: &Sidecar) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", sidecar.id())).unwrap();
    let stats = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap());
    let stat = stats.into_iter().find(|stat| stat.contains("(dpa-log)")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn the_writer_span_while_the_log_failed() {
    let upstream = Upstream::ok();
    let log = "{file: {path: sub/decisions.ndjson}, checkpoint_every: 50ms}".to_owned();
    let sidecar = Setup { decision_log: log, ..Setup::to(&upstream.address) }.start();
    sidecar.still_serves();
    let folder = sidecar.log().with_file_name("sub");
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(sidecar.ask(permitted()).status, 503);
    std::thread::sleep(Duration::from_millis(300));
    let before = ticks(&sidecar);
    std::thread::sleep(Duration::from_secs(2));
    let spent = ticks(&sidecar) - before;
    assert!(spent < 50, "{spent} of 200 ticks for a try every half second");
    std::fs::create_dir(&folder).unwrap();
    wait_for("the log", || sidecar.stderr.text().contains("can be written again").then_some(()));
    sidecar.still_serves();
}

#[test]
fn checkpoints_for_a_pipe_that_nobody_read_stopped_the_log() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let mut unread = pipe(&folder);
    // As much as it holds.
    unread.write_all(&vec![b'\n'; 65_536]).unwrap();
    let copies = ["stdout".to_owned(), folder.file("pipe").display().to_string()];
    for copy in copies {
        let log = format!(
            "{{file: {{path: decisions.ndjson}}, checkpoint_copy: '{copy}', checkpoint_every: 20ms, timeout: 300ms}}"
        );
        let setup = Setup { decision_log: log, ..Setup::to(&upstream.address) };
        let setup = if copy == "stdout" { with_stdout(setup, &folder.file("pipe")) } else { setup };
        let sidecar = setup.start();
        let count = || sidecar.records().iter().filter(|record| record["event"] == "dpa.checkpoint").count();
        wait_for("checkpoints", || {
            sidecar.still_serves();
            (count() > 10).then_some(())
        });
        let stopped = sidecar.stop();
        assert_eq!(stopped.code, Some(0), "{copy}");
        assert!(stopped.stderr.contains("a copy of the decision log, or of its checkpoints"), "{}", stopped.stderr);
    }
}

/// Requests that were forwarded because their record took too long counted as unrecorded for ever.
#[test]
fn a_record_that_came_late_was_counted_as_missing() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let mut unread = pipe(&folder);
    let log = "{stdout: true, on_failure: allow, timeout: 100ms, checkpoint_every: 50ms}".to_owned();
    let setup = Setup { decision_log: log, ..Setup::to(&upstream.address) };
    let sidecar = with_stdout(setup, &folder.file("pipe")).start();
    let mut asked = 0;
    wait_for("the pipe to be full", || {
        let begin = Instant::now();
        sidecar.still_serves();
        asked += 1;
        (begin.elapsed() >= Duration::from_millis(100)).then_some(())
    });
    for _ in 0..3 {
        sidecar.still_serves();
        asked += 1;
    }
    let mut text = Vec::new();
    let last = wait_for("a checkpoint behind all of them", || {
        let mut chunk = vec![0; 65_536];
        let count = unread.read(&mut chunk).unwrap();
        text.extend_from_slice(&chunk[..count]);
        let records = records_in(&String::from_utf8_lossy(&text));
        let decisions = records.iter().filter(|record| record["event"] == "dpa.decision").count();
        let last = records.into_iter().last()?;
        (decisions == asked && last["event"] == "dpa.checkpoint").then_some(last)
    });
    assert_eq!(last["unrecorded"], 0, "all have their record");
}

/// Waiting for the workers, for what they cut, and for the writer took three times as long as a request waits.
#[test]
fn a_log_that_hung_was_waited_for_three_times_at_the_stop() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let mut unread = pipe(&folder);
    let log = "{stdout: true, timeout: 3s}".to_owned();
    let setup = Setup { decision_log: log, ..Setup::to(&upstream.address) };
    let mut sidecar = with_stdout(setup, &folder.file("pipe")).start();
    // All that is left is too little for one record.
    let begun = unread_bytes(&mut unread);
    unread.write_all(&vec![b'\n'; 65_536 - 100]).unwrap();
    assert!(begun > 0);
    assert_eq!(sidecar.ask(permitted()).status, 503);
    let begin = Instant::now();
    assert!(Command::new("kill").arg(sidecar.id().to_string()).status().unwrap().success());
    sidecar.ended();
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}

/// Takes what is in it.
fn unread_bytes(pipe: &mut File) -> usize {
    let mut chunk = vec![0; 65_536];
    pipe.read(&mut chunk).unwrap()
}

/// Only the first worker told of them, when it was done, and others went on.
#[test]
fn unreadable_requests_of_the_drain_were_told_nowhere() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let mut connections: Vec<_> = (0..8)
        .map(|_| {
            let mut connection = sidecar.connect();
            connection.send("GET /x HTTP/1.1\r\nHost: a\r\nX: ");
            connection
        })
        .collect();
    // They are accepted once a later one is answered, on each worker.
    (0..8).for_each(|_| sidecar.still_serves());
    assert!(Command::new("kill").arg(sidecar.id().to_string()).status().unwrap().success());
    wait_for("the drain", || sidecar.stderr.text().contains("stopping").then_some(()));
    for connection in &mut connections {
        connection.send("\u{0}\u{1} bad\r\n: \r\n\r\n");
        assert_eq!(connection.answer().map(|answer| answer.status), Some(400));
        std::thread::sleep(Duration::from_millis(30));
    }
    drop(connections);
    let log = sidecar.log();
    sidecar.ended();
    let records = records_in(&std::fs::read_to_string(log).unwrap());
    let told: u64 = records.iter().filter_map(|record| record["malformed"].as_u64()).sum();
    assert_eq!(told, 8);
}
