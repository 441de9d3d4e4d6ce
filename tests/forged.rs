//! `audit verify` on logs that somebody made up: removals that no sidecar wrote, logs that are not the one of which
//! checkpoints were kept, lines that are no records.

use std::os::unix::fs::FileTypeExt as _;
use std::process::Command;

use dpa_sidecar::record::chain::Head;
use dpa_sidecar::record::chain::Sealed;
use dpa_sidecar::record::checkpoint::Signer;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::sample::select;

use crate::audit::File;
use crate::audit::Made;
use crate::audit::SAMPLE;
use crate::audit::SIGNED;
use crate::audit::blocks;
use crate::audit::concatenated;
use crate::audit::is_checkpoint;
use crate::audit::json;
use crate::audit::laid;
use crate::audit::normal;
use crate::audit::piped;
use crate::audit::said;
use crate::audit::segments;
use crate::audit::verify;
use crate::audit::with_key;
use crate::audit::written;
use crate::support::Folder;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::as_golden;
use crate::support::err;
use crate::support::out;

/// The end of the chain that ends with this line.
fn head(line: &[u8]) -> Head {
    Sealed::read(line.strip_suffix(b"\n").unwrap()).unwrap().head()
}

fn log_of(line: &[u8]) -> String {
    let record: serde_json::Value = serde_json::from_slice(line).unwrap();
    record["log"].as_str().unwrap().to_owned()
}

/// Somebody who can write the files, and knows how records are chained.
struct Forger {
    head: Head,
    log: String,
}

impl Forger {
    /// Goes on behind the last record of these files.
    fn behind(files: &[File]) -> Self {
        let last = files.last().unwrap().1.last().unwrap();
        Self { head: head(last), log: log_of(last) }
    }

    fn line(&mut self, event: &str, more: &str) -> Vec<u8> {
        let log = &self.log;
        let text = format!(
            r#"{{"event":"{event}","time":"2026-11-23T11:59:59.000000Z","service":"x","instance":"x","log":"{log}"{more}"#
        );
        let mut line = Vec::new();
        self.head.seal(text.as_bytes(), &mut line);
        line
    }

    fn opened(&mut self, segment: u64) -> Vec<u8> {
        self.line("dpa.log", &format!(r#","what":"opened","segment":{segment},"why":"rotated""#))
    }

    fn removal(&mut self, segment: u64) -> Vec<u8> {
        self.line("dpa.log", &format!(r#","what":"retention","segment":{segment}"#))
    }

    /// A segment that says of an older one that it was removed in its time.
    fn segment(&mut self, segment: u64, removed: u64) -> File {
        let mut lines = vec![self.opened(segment), self.removal(removed)];
        lines.extend((0..3).map(|_| {
            let id = r#","decision_id":"01a206f5-e8a9-779b-b3ad-f4e9d273b2b3","outcome":"completed""#;
            self.line("dpa.outcome", id)
        }));
        ("decisions.ndjson".to_owned(), lines)
    }
}

/// The files, the newest one as a closed one.
fn closed(files: &[File]) -> Vec<File> {
    let mut files = files.to_vec();
    let number = files.len();
    files.last_mut().unwrap().0 = format!("decisions-{number:06}.ndjson");
    files
}

#[test]
fn a_made_up_removal_excused_a_missing_segment() {
    let (key, kept) = (SAMPLE.path("audit.key.pub"), SAMPLE.path("kept.ndjson"));
    let whole = &SAMPLE.files;
    let count = u64::try_from(whole.len()).unwrap();
    let all = ["--key", key.as_str(), "--checkpoint", kept.as_str(), "log"];

    let mut at_the_end = whole.clone();
    let mut forger = Forger::behind(whole);
    at_the_end.last_mut().unwrap().1.push(forger.removal(2));
    let nothing_gone = at_the_end.clone();
    at_the_end.remove(1);
    let mut oldest = nothing_gone.clone();
    oldest.remove(0);

    let mut behind_an_opening = closed(whole);
    let mut forger = Forger::behind(whole);
    behind_an_opening.push(forger.segment(count + 1, 2));
    behind_an_opening.remove(1);

    let mut newest_gone = whole.clone();
    newest_gone.pop();
    let mut forger = Forger::behind(whole);
    forger.head.seq = 5000;
    newest_gone.push(forger.segment(count + 1, count));

    let mut of_a_later_one = closed(whole);
    let mut forger = Forger::behind(whole);
    of_a_later_one.push(forger.segment(count + 1, count + 1));

    let table = [
        ("a segment of the middle, the removal at the end", at_the_end, "[segments_missing]"),
        ("the first segment, the removal at the end", oldest, "[segments_missing]"),
        ("nothing, the removal at the end", nothing_gone, "[retention_astray]"),
        ("a segment of the middle, the removal behind an opening", behind_an_opening, "[segments_missing]"),
        ("the newest segment, the removal in one after the next", newest_gone, "[segments_missing]"),
        ("nothing, and a segment says it of itself", of_a_later_one, "[retention_astray]"),
    ];
    for (name, files, code) in table {
        for arguments in [all.as_slice(), &["log"]] {
            let (exit, text) = said(&laid(&files), arguments);
            assert_eq!(exit, Some(1), "{name}: {text}");
            assert!(text.contains(code), "{name}: {text}");
        }
    }
}

#[test]
fn a_sidecar_went_on_behind_a_made_up_removal_and_signed_it() {
    let folder = written(with_key(), SIGNED, 30);
    let mut files = segments(&folder.file("log"));
    let removal = Forger::behind(&files).removal(2);
    let (active, lines) = files.last_mut().unwrap();
    lines.push(removal);
    std::fs::write(folder.file("log").join(active), lines.concat()).unwrap();
    std::fs::remove_file(folder.file("log/decisions-000002.ndjson")).unwrap();
    let folder = written(folder, SIGNED, 3);
    let (exit, text) = said(&folder, &["--key", "audit.key.pub", "--checkpoint", "kept.ndjson", "log"]);
    assert_eq!(exit, Some(1), "{text}");
    assert!(text.contains("[segments_missing]") && text.contains("[retention_astray]"), "{text}");
}

#[test]
fn a_log_was_thrown_away_and_another_beginning_made_up_in_its_place() {
    let (key, kept) = (SAMPLE.path("audit.key.pub"), SAMPLE.path("kept.ndjson"));
    let mut forger = Forger::behind(&SAMPLE.files);
    forger.head.seq = 4999;
    let folder = laid(&[forger.segment(1000, 999)]);
    let table: [(&str, Vec<&str>, i32, &str); 3] = [
        ("with what was kept", vec!["--checkpoint", &kept], 2, "it begins with record 5000"),
        ("with the key", vec!["--key", &key], 1, "[nothing_signed]"),
        ("with both", vec!["--key", &key, "--checkpoint", &kept], 1, "[nothing_signed]"),
    ];
    for (name, arguments, expected, what) in table {
        let (exit, text) = said(&folder, &[arguments.as_slice(), &["log"]].concat());
        assert_eq!(exit, Some(expected), "{name}: {text}");
        assert!(text.contains(what), "{name}: {text}");
    }
    let found = json(&verify(&folder, &["-o", "json", "--checkpoint", &kept, "log"]));
    assert_eq!(found["verdict"], "not_known", "{found:#}");
    // Named by itself, its beginning is not asked for; whether it is the right log is.
    let (exit, text) = said(&folder, &["--checkpoint", &kept, "log/decisions.ndjson"]);
    assert_eq!(exit, Some(2), "{text}");
}

#[test]
fn the_oldest_were_removed_and_a_new_segment_made_up_that_says_why() {
    let (key, kept) = (SAMPLE.path("audit.key.pub"), SAMPLE.path("kept.ndjson"));
    let mut files = closed(&SAMPLE.files);
    let count = u64::try_from(files.len()).unwrap();
    files.push(Forger::behind(&SAMPLE.files).segment(count + 1, 2));
    files.drain(..2);
    let (exit, text) = said(&laid(&files), &["--key", &key, "--checkpoint", &kept, "log"]);
    assert_eq!(exit, Some(2), "nobody vouches for the removal: {text}");
    assert_eq!(as_golden("audit/a-removal-that-nobody-signed.txt", &normal(&text)), None);
    let (_, text) = said(&laid(&files), &["log"]);
    assert!(text.contains("whoever can write the files could have made the whole chain anew"), "{text}");
}

/// What the test key of the document signs.
fn signer() -> Signer {
    Signer::read(blocks("pem")[0].as_bytes()).unwrap()
}

fn signed_checkpoint(made: &mut Made) -> Vec<u8> {
    let mut copy = made.head;
    let line = made.checkpoint();
    let record = Sealed::read(line.strip_suffix(b"\n").unwrap()).unwrap().record;
    let mut signed = Vec::new();
    copy.seal(&signer().sign(record), &mut signed);
    made.head = copy;
    signed
}

fn removal(made: &mut Made, segment: u64) -> Vec<u8> {
    made.line(&format!("dpa.log ,\"what\":\"retention\",\"segment\":{segment}"))
}

#[test]
fn a_removal_counts_once_it_is_signed() {
    let mut made = Made::new();
    let mut first = vec![made.opened(1, "new")];
    first.push(signed_checkpoint(&mut made));
    let mut second = vec![made.opened(2, "rotated")];
    second.push(signed_checkpoint(&mut made));
    let mut third = vec![made.opened(3, "rotated"), removal(&mut made, 1)];
    let just_opened = third.clone();
    third.extend(made.decisions(2));
    third.push(signed_checkpoint(&mut made));
    let public = blocks("pem").remove(1);
    let table = [("not yet", just_opened, 2), ("signed", third, 0)];
    for (name, third, expected) in table {
        let folder = laid(&[("a-000002.ndjson".to_owned(), second.clone()), ("a.ndjson".to_owned(), third)]);
        folder.write("key.pub", &public);
        let (exit, text) = said(&folder, &["--key", "key.pub", "log"]);
        assert_eq!(exit, Some(expected), "{name}: {text}");
        assert_eq!(said(&folder, &["log"]).0, Some(0), "{name}, without a key");
    }
}

#[test]
fn what_was_kept_is_older_than_what_is_left_of_the_log() {
    let log = "{file: {path: log/decisions.ndjson, rotate_bytes: 16KiB, keep: 2}, signing_key: audit.key, checkpoint_copy: kept.ndjson}";
    let folder = written(with_key(), log, 60);
    let kept = std::fs::read_to_string(folder.file("kept.ndjson")).unwrap();
    folder.write("old.ndjson", kept.lines().next().unwrap());
    let arguments = ["--key", "audit.key.pub", "--checkpoint", "old.ndjson", "log"];
    let (exit, text) = said(&folder, &arguments);
    assert_eq!(exit, Some(2), "{text}");
    assert!(text.contains("could not tell") && text.contains("a newer checkpoint would show it"), "{text}");
    assert_eq!(said(&folder, &["--checkpoint", "kept.ndjson", "log"]).0, Some(0));
}

#[test]
fn a_hundred_findings_hid_that_the_newest_checkpoint_was_rewritten() {
    let kept = SAMPLE.path("kept.ndjson");
    let mut files = SAMPLE.files.clone();
    let lines = &mut files.last_mut().unwrap().1;
    let place = lines.iter().rposition(|line| is_checkpoint(line)).unwrap();
    let text = String::from_utf8(lines[place].clone()).unwrap();
    let record = text.split(",\"seq\":").next().unwrap().replace("\"unrecorded\":0", "\"unrecorded\":1");
    let mut head = head(&lines[place - 1]);
    lines.truncate(place);
    let mut rewritten = Vec::new();
    head.seal(record.as_bytes(), &mut rewritten);
    lines.push(rewritten);
    for _ in 0..101 {
        lines.insert(1, b"garbage\n".to_vec());
    }
    let (exit, text) = said(&laid(&files), &["--checkpoint", &kept, "log"]);
    assert_eq!(exit, Some(1), "{text}");
    assert!(!text.contains("the log holds its record"), "{text}");
    assert!(text.contains("it does not hold that record"), "{text}");
}

#[test]
fn a_pipe_in_a_folder_was_waited_for() {
    let folder = laid(&SAMPLE.files);
    let pipe = folder.file("log/pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
    let (exit, text) = said(&folder, &["log"]);
    assert_eq!(exit, Some(0), "{text}");
    assert!(text.contains("passed over: log/pipe"), "{text}");
    // Named itself, it is read.
    let all = concatenated(&SAMPLE.files);
    let writer = std::thread::spawn(move || std::fs::write(pipe, all));
    let (exit, text) = said(&folder, &["log/pipe"]);
    writer.join().unwrap().unwrap();
    assert_eq!(exit, Some(0), "{text}");
}

#[test]
fn a_decision_that_is_no_json_had_a_right_hash() {
    let id = r#","decision_id":"01a206f5-e8a9-779b-b3ad-f4e9d273b2b3""#;
    let start = r#"{"event":"dpa.decision","time":"2026-11-23T05:51:48Z","log":"01a206f5-e4b9-731f-9735-af4d76753c68""#;
    let table: [(&str, Vec<u8>, i32); 6] = [
        ("as it should be", format!("{start}{id}").into_bytes(), 0),
        ("no JSON", format!("{start}{id}]],\"x\":1").into_bytes(), 1),
        ("not in UTF-8", [format!("{start}{id},\"x\":\"").as_bytes(), b"\xff\xfe\""].concat(), 1),
        ("without an id", start.as_bytes().to_vec(), 1),
        ("two ids", format!("{start}{id}{id}").into_bytes(), 1),
        ("no time", format!("{start}{id}").replace("2026-11-23T05:51:48Z", "noon").into_bytes(), 1),
    ];
    for (name, record, expected) in table {
        let mut made = Made::new();
        let mut lines = vec![made.opened(1, "new")];
        let mut line = Vec::new();
        made.head.seal(&record, &mut line);
        lines.push(line);
        let (exit, text) = said(&laid(&[("a.ndjson".to_owned(), lines)]), &["log"]);
        assert_eq!(exit, Some(expected), "{name}: {text}");
        assert_eq!(text.contains("[unreadable]"), expected == 1, "{name}: {text}");
    }
}

#[test]
fn a_stream_holds_what_the_sidecar_says_beside_the_log() {
    let upstream = Upstream::ok();
    let sidecar = Setup { decision_log: "{stdout: true}".to_owned(), ..Setup::to(&upstream.address) }.start();
    sidecar.still_serves();
    let stopped = sidecar.stop();
    let lines: Vec<&str> = stopped.stdout.split_inclusive('\n').collect();
    let beside = format!("{}plain words\n", stopped.stderr);
    let merged = |lines: &[&str]| {
        let (first, rest) = lines.split_at(1);
        [beside.repeat(20).as_str(), first[0], &beside, &rest.concat(), "the end"].concat()
    };
    let stream = |input: &str| piped(&["audit", "verify", "-"], input.as_bytes());
    let output = stream(&merged(&lines));
    assert_eq!(output.status.code(), Some(0), "{}{}", out(&output), err(&output));
    let count = 21 * beside.lines().count() + 1;
    assert!(out(&output).contains(&format!("passed over: {count} lines of a stream")), "{}", out(&output));
    // What is gone from among the records is seen all the same.
    let mut fewer = lines.clone();
    fewer.remove(2);
    let mut other = lines.clone();
    other[2] = "another line\n";
    for (name, lines) in [("removed", fewer), ("not to be known", other)] {
        let output = stream(&merged(&lines));
        assert_eq!(output.status.code(), Some(1), "{name}: {}", out(&output));
        assert!(out(&output).contains("[missing]"), "{name}: {}", out(&output));
    }
    let output = stream("no log\nat all\n");
    assert_eq!(output.status.code(), Some(2), "{}", out(&output));
    // In a file of a log nothing else has a place.
    let folder = Folder::new();
    folder.write("log.ndjson", &merged(&lines));
    assert_eq!(said(&folder, &["log.ndjson"]).0, Some(1));
}

#[test]
fn what_the_log_says_of_itself_ran_into_its_heading() {
    let mut made = Made::new();
    let mut first = vec![made.opened(1, "new"), made.line("dpa.log ,\"what\":\"torn\",\"lost_bytes\":27")];
    first.push(made.line("dpa.log ,\"what\":\"lost\""));
    first.push(made.line("dpa.log ,\"what\":\"regained\",\"refused\":3"));
    let (count, hash) = (made.head.seq, made.head.hash.as_str().to_owned());
    first.push(made.line(&format!("dpa.checkpoint ,\"count\":{count},\"head\":\"{hash}\",\"unrecorded\":2")));
    let durable = made.head;
    first.extend(made.decisions(2));
    made.head = durable;
    let mut second = vec![made.opened(2, "sync_failed")];
    second.extend(made.decisions(1));
    second.push(b"{\"event\":\"dpa.dec".to_vec());
    let folder = laid(&[("a-000001.ndjson".to_owned(), first), ("a.ndjson".to_owned(), second)]);
    let (exit, text) = said(&folder, &["log"]);
    assert_eq!(exit, Some(0), "{text}");
    assert_eq!(as_golden("audit/what-the-log-says.txt", &normal(&text)), None);
}

/// A log of which the first segments were removed in their time, with a sync that failed, and a torn end; its
/// checkpoints; how many lines of each file are records of it.
fn eventful() -> (Vec<File>, Vec<u8>, Vec<usize>) {
    let mut made = Made::new();
    let mut files: Vec<File> = Vec::new();
    let mut kept = Vec::new();
    let mut records = Vec::new();
    for number in 1..=6 {
        let why = match number {
            1 => "new",
            5 => "sync_failed",
            _ => "rotated",
        };
        let mut lines = vec![made.opened(number, why)];
        if number == 6 {
            lines.extend([removal(&mut made, 1), removal(&mut made, 2)]);
        }
        lines.extend(made.decisions(4));
        let checkpoint = signed_checkpoint(&mut made);
        kept.extend_from_slice(&checkpoint);
        lines.push(checkpoint);
        records.push(lines.len());
        if number == 4 {
            let durable = made.head;
            lines.extend(made.decisions(2));
            made.head = durable;
        }
        if number == 6 {
            lines.push(b"{\"event\":\"dpa.dec".to_vec());
        }
        files.push((format!("a-{number:06}.ndjson"), lines));
    }
    (files.split_off(2), kept, records.split_off(2))
}

/// A way to change the log of the test above.
#[derive(Clone, Debug)]
enum Change {
    /// One bit.
    Flip(Index, Index, u8),
    /// A record goes.
    Remove(Index),
    /// A whole segment goes.
    RemoveSegment(Index),
    /// A whole segment goes, and a removal is made up at the end.
    Excused(Index),
    /// The same, in a segment that is made up.
    ExcusedBehindAnOpening(Index),
    /// Many lines that are no records, and all records behind the last checkpoint but one are made anew.
    Noise(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), at(), 0_u8..8).prop_map(|(line, byte, bit)| Change::Flip(line, byte, bit)),
        1 => at().prop_map(Change::Remove),
        1 => at().prop_map(Change::RemoveSegment),
        1 => at().prop_map(Change::Excused),
        1 => at().prop_map(Change::ExcusedBehindAnOpening),
        1 => at().prop_map(Change::Noise),
    ]
}

impl Change {
    /// Makes it, and says whether it is one that leaves all records of the log as they are.
    fn make(&self, files: &mut Vec<File>, records: &[usize]) -> bool {
        let all: Vec<(usize, usize)> =
            (0..files.len()).flat_map(|file| (0..files[file].1.len()).map(move |line| (file, line))).collect();
        let is_beyond = |(file, line): (usize, usize)| line >= records[file];
        let without_torn = |files: &mut Vec<File>| files.last_mut().unwrap().1.pop();
        match self {
            Self::Flip(line, byte, bit) => {
                let (file, line) = *line.get(&all);
                let bytes = &mut files[file].1[line];
                let byte = byte.index(bytes.len());
                bytes[byte] ^= 1 << bit;
                is_beyond((file, line))
            }
            Self::Remove(line) => {
                let (file, line) = *line.get(&all);
                files[file].1.remove(line);
                is_beyond((file, line))
            }
            Self::RemoveSegment(file) => {
                files.remove(file.index(files.len()));
                false
            }
            Self::Excused(file) => {
                without_torn(files);
                let file = file.index(files.len() - 1);
                let removal = Forger::behind(files).removal(u64::try_from(file).unwrap() + 3);
                files.last_mut().unwrap().1.push(removal);
                files.remove(file);
                false
            }
            Self::ExcusedBehindAnOpening(file) => {
                without_torn(files);
                // Without the first: that nobody vouches for such a removal is another test.
                let file = 1 + file.index(files.len() - 2);
                let segment = Forger::behind(files).segment(7, u64::try_from(file).unwrap() + 3);
                files.push(segment);
                files.remove(file);
                false
            }
            Self::Noise(count) => {
                without_torn(files);
                let lines = &mut files.last_mut().unwrap().1;
                let mut head = head(&lines[2]);
                for line in &mut lines[3..] {
                    let record = String::from_utf8(line.clone()).unwrap();
                    let record = record.split(",\"seq\":").next().unwrap().replace("05:51:48", "05:51:49");
                    line.clear();
                    head.seal(record.as_bytes(), line);
                }
                for _ in 0..95 + count.index(10) {
                    lines.insert(3, b"garbage\n".to_vec());
                }
                false
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_changed_in_an_eventful_log_is_found(change in change(), with_key in select(vec![false, true])) {
        let (before, kept, records) = eventful();
        let mut after = before.clone();
        let is_beyond = change.make(&mut after, &records);
        let folder = laid(&after);
        folder.write("kept.ndjson", &String::from_utf8(kept).unwrap());
        folder.write("key.pub", &blocks("pem")[1]);
        let mut arguments = vec!["--checkpoint", "kept.ndjson", "log"];
        if with_key {
            arguments.extend(["--key", "key.pub"]);
        }
        let (exit, text) = said(&folder, &arguments);
        if !is_beyond {
            prop_assert_eq!(exit, Some(1), "{:?}: {}", change, text);
            let is_rewritten = matches!(change, Change::Noise(_));
            prop_assert!(!is_rewritten || !text.contains("the log holds its record"), "{:?}: {}", change, text);
        }
    }
}

#[test]
fn an_eventful_log_passes() {
    let (files, kept, _) = eventful();
    let folder = laid(&files);
    folder.write("kept.ndjson", &String::from_utf8(kept).unwrap());
    folder.write("key.pub", &blocks("pem")[1]);
    let (exit, text) = said(&folder, &["--checkpoint", "kept.ndjson", "--key", "key.pub", "log"]);
    assert_eq!(exit, Some(0), "{text}");
    for part in ["removed in their time", "a sync failed", "the last line is not finished", "the log holds its record"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}
