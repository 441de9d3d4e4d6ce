//! `audit` and `keygen`, on logs that the real sidecar wrote: what was changed is found, and the first record of it
//! named; what is good passes, and what is not proven is said.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::LazyLock;

use dpa_sidecar::record::chain::Head;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::sample::select;
use serde_json::Value;

use crate::support::Folder;
use crate::support::Head as Request;
use crate::support::ROLLUP;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::as_golden;
use crate::support::denied;
use crate::support::err;
use crate::support::out;
use crate::support::permitted;
use crate::support::repository;
use crate::support::run;
use crate::support::wait_for;

/// A decision log in small segments.
const SMALL: &str = "{file: {path: log/decisions.ndjson, rotate_bytes: 16KiB}}";

/// The same, signed, with its checkpoints kept elsewhere.
pub(crate) const SIGNED: &str =
    "{file: {path: log/decisions.ndjson, rotate_bytes: 16KiB}, signing_key: audit.key, checkpoint_copy: kept.ndjson}";

/// A folder with a key.
pub(crate) fn with_key() -> Folder {
    let folder = Folder::new();
    let made = run(&folder.file(""), &["keygen", "audit.key"]);
    assert_eq!(made.status.code(), Some(0), "{}", err(&made));
    folder
}

/// Lets a sidecar decide so many times, and stops it.
pub(crate) fn written(folder: Folder, decision_log: &str, decisions: usize) -> Folder {
    let upstream = Upstream::ok();
    let sidecar = Setup { decision_log: decision_log.to_owned(), ..Setup::to(&upstream.address) }.start_in(folder);
    let mut connection = sidecar.connect();
    for place in 0..decisions {
        connection.send(if place % 3 == 0 { denied() } else { permitted() });
        connection.answer().unwrap();
    }
    drop(connection);
    let stopped = sidecar.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
    stopped.folder
}

/// The lines of a file, each with its line break.
pub(crate) type File = (String, Vec<Vec<u8>>);

/// The segments of a log, in order.
pub(crate) fn segments(folder: &Path) -> Vec<File> {
    let mut found: Vec<(u64, File)> = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with('.') {
            continue;
        }
        let bytes = std::fs::read(folder.join(&name)).unwrap();
        let lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let first: Value = serde_json::from_slice(&lines[0]).unwrap();
        found.push((first["segment"].as_u64().unwrap(), (name, lines)));
    }
    found.sort();
    found.into_iter().map(|(_, file)| file).collect()
}

/// A log that the tests change copies of.
pub(crate) struct Sample {
    pub(crate) folder: Folder,
    pub(crate) files: Vec<File>,
}

impl Sample {
    fn new() -> Self {
        let folder = written(with_key(), SIGNED, 45);
        let files = segments(&folder.file("log"));
        assert!(files.len() > 3, "too few segments: {}", files.len());
        Self { folder, files }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.file(name).to_str().unwrap().to_owned()
    }
}

pub(crate) static SAMPLE: LazyLock<Sample> = LazyLock::new(Sample::new);
pub(crate) static OTHER: LazyLock<Sample> = LazyLock::new(Sample::new);

/// Writes the files of a log to a folder `log`.
pub(crate) fn laid(files: &[File]) -> Folder {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.file("log")).unwrap();
    for (name, lines) in files {
        std::fs::write(folder.file("log").join(name), lines.concat()).unwrap();
    }
    folder
}

pub(crate) fn verify(folder: &Folder, more: &[&str]) -> Output {
    run(&folder.file(""), &[&["audit", "verify"], more].concat())
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {} {}", out(output), err(output)))
}

/// File and line of the first finding, and its code; nothing if there is none.
fn first(found: &Value) -> Option<(String, u64, String)> {
    let first = found.get("first")?;
    let file = first["file"].as_str().unwrap_or_default().trim_start_matches("log/").to_owned();
    Some((file, first["line"].as_u64().unwrap_or(0), first["code"].as_str().unwrap().to_owned()))
}

/// The first line that is another one than before; where nothing stands any more, what stands after it.
fn first_change(before: &[File], after: &[File]) -> (String, u64) {
    for (place, (name, lines)) in before.iter().enumerate() {
        let Some((_, now)) = after.iter().find(|(other, _)| other == name) else { continue };
        let same = lines.iter().zip(now).take_while(|(a, b)| a == b).count();
        if same == lines.len() && same == now.len() {
            continue;
        }
        if same < now.len() {
            return (name.clone(), u64::try_from(same).unwrap() + 1);
        }
        return match after.iter().find(|(next, _)| before[place + 1..].iter().any(|(it, _)| it == next)) {
            Some((next, _)) => (next.clone(), 1),
            None => (name.clone(), u64::try_from(now.len()).unwrap()),
        };
    }
    // Whole segments at the end are gone.
    let (name, lines) = after.last().unwrap();
    (name.clone(), u64::try_from(lines.len()).unwrap())
}

/// A way to change a log.
#[derive(Clone, Debug)]
enum Change {
    /// One bit.
    Flip(Index, Index, u8),
    /// A record goes.
    Remove(Index),
    /// Two records change places.
    Swap(Index, Index),
    /// A record comes a second time, before another.
    Repeat(Index, Index),
    /// A record of another log comes in.
    Insert(Index, Index),
    /// From a record on, the segment is that of another log.
    Splice(Index, Index),
    /// The log ends earlier.
    Cut(Index),
}

/// The file and line of one of all lines.
fn at(files: &[File], index: &Index) -> (usize, usize) {
    let all: Vec<(usize, usize)> =
        (0..files.len()).flat_map(|file| (0..files[file].1.len()).map(move |line| (file, line))).collect();
    *index.get(&all)
}

impl Change {
    fn make(&self, files: &mut Vec<File>, other: &[File]) {
        match self {
            Self::Flip(line, byte, bit) => {
                let (file, line) = at(files, line);
                let line = &mut files[file].1[line];
                let byte = byte.index(line.len());
                line[byte] ^= 1 << bit;
                // It may be two lines now, or one with the next.
                let bytes = files[file].1.concat();
                files[file].1 = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            }
            Self::Remove(line) => {
                let (file, line) = at(files, line);
                files[file].1.remove(line);
            }
            Self::Swap(a, b) => {
                let ((a, line_a), (b, line_b)) = (at(files, a), at(files, b));
                let line = files[a].1[line_a].clone();
                files[a].1[line_a] = std::mem::replace(&mut files[b].1[line_b], line);
            }
            Self::Repeat(what, to) => {
                let (from, line) = at(files, what);
                let what = files[from].1[line].clone();
                let (file, line) = at(files, to);
                files[file].1.insert(line, what);
            }
            Self::Insert(what, to) => {
                let (from, line) = at(other, what);
                let (file, to) = at(files, to);
                files[file].1.insert(to, other[from].1[line].clone());
            }
            Self::Splice(from, to) => {
                let (from, line) = at(other, from);
                let (file, to) = at(files, to);
                files[file].1.truncate(to);
                files[file].1.extend_from_slice(&other[from].1[line..]);
            }
            Self::Cut(line) => {
                let (file, line) = at(files, line);
                files.truncate(file + 1);
                files[file].1.truncate(line);
                if files[file].1.is_empty() {
                    files.truncate(file);
                }
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), at(), 0_u8..8).prop_map(|(line, byte, bit)| Change::Flip(line, byte, bit)),
        1 => at().prop_map(Change::Remove),
        1 => (at(), at()).prop_map(|(a, b)| Change::Swap(a, b)),
        1 => (at(), at()).prop_map(|(what, to)| Change::Repeat(what, to)),
        1 => (at(), at()).prop_map(|(what, to)| Change::Insert(what, to)),
        1 => (at(), at()).prop_map(|(from, to)| Change::Splice(from, to)),
        1 => at().prop_map(Change::Cut),
    ]
}

fn is_opening(line: &[u8]) -> bool {
    line.starts_with(b"{\"event\":\"dpa.log\",\"what\":\"opened\"")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_changed_is_found_and_the_first_record_of_it_named(change in change(), with_key in select(vec![false, true])) {
        let before = &SAMPLE.files;
        let mut after = before.clone();
        change.make(&mut after, &OTHER.files);
        let folder = laid(&after);
        let (kept, key) = (SAMPLE.path("kept.ndjson"), SAMPLE.path("audit.key.pub"));
        let mut arguments = vec!["-o", "json", "--checkpoint", &kept, "log"];
        if with_key {
            arguments.extend(["--key", &key]);
        }
        let output = verify(&folder, &arguments);
        if after == *before {
            prop_assert_eq!(output.status.code(), Some(0), "{}", out(&output));
            return Ok(());
        }
        if after.is_empty() {
            prop_assert_eq!(output.status.code(), Some(2));
            return Ok(());
        }
        prop_assert_eq!(output.status.code(), Some(1), "{:?}: {}{}", change, out(&output), err(&output));
        let found = json(&output);
        let (file, line, code) = first(&found).unwrap();
        let expected = first_change(before, &after);
        // Where an opening stands, a file says itself to be another segment, or another log begins: the line after
        // it is the first that does not follow.
        let (place, _) = before.iter().enumerate().find(|(_, it)| it.0 == expected.0).unwrap();
        let (_, lines) = after.iter().find(|it| it.0 == before[place].0).unwrap();
        let at_opening = lines.get(usize::try_from(expected.1).unwrap() - 1).is_some_and(|line| is_opening(line));
        // A file that is another log's from its first line on leaves a segment missing.
        let is_other_file = matches!(change, Change::Splice(..)) && expected.1 == 1;
        if !at_opening && !is_other_file {
            prop_assert_eq!((file.as_str(), line), (expected.0.as_str(), expected.1), "{:?}: {}: {:#}", change, code, found);
        }
    }
}

#[test]
fn a_log_as_the_sidecar_wrote_it_passes() {
    let (key, kept) = (SAMPLE.path("audit.key.pub"), SAMPLE.path("kept.ndjson"));
    let all = concatenated(&SAMPLE.files);
    let table: [(&str, Vec<&str>); 4] = [
        ("a folder", vec!["log"]),
        ("with a key", vec!["--key", &key, "log"]),
        ("with what was kept elsewhere", vec!["--checkpoint", &kept, "log"]),
        ("with both", vec!["--key", &key, "--checkpoint", &kept, "log"]),
    ];
    for (name, arguments) in table {
        let output = verify(&SAMPLE.folder, &arguments);
        assert_eq!(output.status.code(), Some(0), "{name}: {}{}", out(&output), err(&output));
        let text = normal(&out(&output));
        let golden = format!("audit/{}.txt", name.replace(' ', "-"));
        assert_eq!(as_golden(&golden, &text), None, "{name}");
    }
    let names: Vec<String> = SAMPLE.files.iter().map(|(name, _)| format!("log/{name}")).collect();
    let mut named: Vec<&str> = names.iter().map(String::as_str).collect();
    named.reverse();
    assert_eq!(verify(&SAMPLE.folder, &named).status.code(), Some(0), "files, in any order");
    let output = piped(&["audit", "verify", "--key", &key, "-"], &all);
    assert_eq!(output.status.code(), Some(0), "one after another: {}", out(&output));
    let output = verify(&SAMPLE.folder, &["log/decisions.ndjson"]);
    assert_eq!(output.status.code(), Some(0), "{}", out(&output));
    assert!(out(&output).contains("not looked at: only one segment was given"), "{}", out(&output));
}

pub(crate) fn concatenated(files: &[File]) -> Vec<u8> {
    files.iter().flat_map(|(_, lines)| lines.concat()).collect()
}

/// Runs the program with this on its standard input.
pub(crate) fn piped(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        let _gone = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// The text without what differs from run to run.
pub(crate) fn normal(text: &str) -> String {
    let mut shown = String::new();
    for word in text.split_inclusive([' ', '\n', ',', ';', ')', '(']) {
        let (bare, end) = word.split_at(word.trim_end_matches([' ', '\n', ',', ';', ')', '(']).len());
        let is_hex = |word: &str| word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let same = match bare {
            _ if uuid::Uuid::parse_str(bare).is_ok() => "LOG",
            _ if bare.len() == 16 && is_hex(bare) => "KEY",
            _ if bare.parse::<jiff::Timestamp>().is_ok() => "TIME",
            _ if bare.parse::<u64>().is_ok() => "N",
            _ => match bare.rsplit_once(':') {
                // After a file's name, its line.
                Some((before, number)) if number.parse::<u64>().is_ok() => &format!("{before}:N"),
                Some((number, "")) if number.parse::<u64>().is_ok() => "N:",
                _ => bare,
            },
        };
        write!(shown, "{same}{end}").unwrap();
    }
    shown
}

pub(crate) fn is_checkpoint(line: &[u8]) -> bool {
    line.starts_with(b"{\"event\":\"dpa.checkpoint\"")
}

/// Exit code and text of `audit verify`.
pub(crate) fn said(folder: &Folder, arguments: &[&str]) -> (Option<i32>, String) {
    let output = verify(folder, arguments);
    (output.status.code(), out(&output) + &err(&output))
}

#[test]
fn what_is_wrong_is_said_as_an_auditor_reads_it() {
    let (key, kept) = (SAMPLE.path("audit.key.pub"), SAMPLE.path("kept.ndjson"));
    let mut changed = SAMPLE.files.clone();
    let is_denial = |line: &[u8]| String::from_utf8_lossy(line).contains("\"decision\":\"deny\"");
    let place =
        (2..).find(|place| is_denial(&changed[1].1[*place]) && !is_checkpoint(&changed[1].1[place - 1])).unwrap();
    let line = String::from_utf8(changed[1].1[place].clone()).unwrap();
    changed[1].1[place] = line.replace("\"decision\":\"deny\"", "\"decision\":\"permit\"").into_bytes();
    let mut missing = SAMPLE.files.clone();
    missing.remove(1);
    let mut cut = SAMPLE.files.clone();
    cut.last_mut().unwrap().1.pop();
    let table = [("a changed record", changed), ("a missing segment", missing), ("a cut end", cut)];
    for (name, files) in table {
        let folder = laid(&files);
        let (code, text) = said(&folder, &["--key", &key, "--checkpoint", &kept, "log"]);
        assert_eq!(code, Some(1), "{name}: {text}");
        let golden = format!("audit/{}.txt", name.replace(' ', "-"));
        assert_eq!(as_golden(&golden, &normal(&text)), None, "{name}");
    }
    // Without what was kept elsewhere a cut end is not seen, and that is said.
    let mut cut = SAMPLE.files.clone();
    cut.truncate(2);
    let (code, text) = said(&laid(&cut), &["--key", &key, "log"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("a cut end, or an older copy put back, is seen only with --checkpoint"), "{text}");
}

#[test]
fn keys_that_did_not_sign_the_log() {
    let (key, other) = (SAMPLE.path("audit.key.pub"), OTHER.path("audit.key.pub"));
    let unsigned = written(Folder::new(), SMALL, 3);
    let renewed = written(with_key(), SIGNED, 3);
    let old = renewed.file("old.pub").to_str().unwrap().to_owned();
    let new = renewed.file("audit.key.pub").to_str().unwrap().to_owned();
    std::fs::rename(&new, &old).unwrap();
    std::fs::remove_file(renewed.file("audit.key")).unwrap();
    assert_eq!(run(&renewed.file(""), &["keygen", "audit.key"]).status.code(), Some(0));
    let renewed = written(renewed, SIGNED, 3);
    let table: [(&str, &Folder, Vec<&str>, i32, &str); 8] = [
        ("the right one", &SAMPLE.folder, vec!["--key", &key], 0, "are as they were when key"),
        ("another one", &SAMPLE.folder, vec!["--key", &other], 1, "nobody vouches for it"),
        ("both", &SAMPLE.folder, vec!["--key", &other, "--key", &key], 0, "are as they were when key"),
        ("no key", &SAMPLE.folder, vec![], 0, "signatures were not checked: give --key"),
        ("a log that is not signed, and a key", &unsigned, vec!["--key", &key], 1, "nobody vouches for it"),
        ("a log that is not signed", &unsigned, vec![], 0, "its checkpoints are not signed"),
        ("a renewed key, the new one", &renewed, vec!["--key", &new], 0, "records 1 to"),
        ("a renewed key, the old one", &renewed, vec!["--key", &old], 1, "which was not given, and none after it"),
    ];
    for (name, folder, keys, expected, text) in table {
        let (code, found) = said(folder, &[keys.as_slice(), &["log"]].concat());
        assert_eq!(code, Some(expected), "{name}: {found}");
        assert!(found.contains(text), "{name}: {found}");
    }
    let (code, text) = said(&SAMPLE.folder, &["--key", "audit.key", "log"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("the key `audit.key` cannot be used: there is no `PUBLIC KEY` in it"), "{text}");
}

#[test]
fn segments_that_were_removed_in_their_time() {
    let log = "{file: {path: log/decisions.ndjson, rotate_bytes: 16KiB, keep: 2}, signing_key: audit.key, checkpoint_copy: kept.ndjson}";
    let folder = written(with_key(), log, 60);
    let arguments = ["--key", "audit.key.pub", "--checkpoint", "kept.ndjson", "log"];
    let (code, text) = said(&folder, &arguments);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("removed in their time, as the log says (`keep`)"), "{text}");
    assert_eq!(as_golden("audit/removed-in-their-time.txt", &normal(&text)), None);
    // One more than the log says.
    let mut files = segments(&folder.file("log"));
    assert_eq!(files.len(), 3);
    let gone = files.remove(0);
    let fewer = laid(&files);
    let (code, text) = said(&fewer, &["log"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the log shows no removal in time"), "{text}");
    // A name says nothing.
    let mut renamed = files.clone();
    renamed.push(("anything.ndjson".to_owned(), gone.1));
    assert_eq!(said(&laid(&renamed), &["log"]).0, Some(0));
}

#[test]
fn an_older_copy_that_was_put_back_and_went_on() {
    let folder = written(with_key(), SIGNED, 4);
    let older = segments(&folder.file("log"));
    let folder = written(folder, SIGNED, 4);
    for (name, lines) in &older {
        std::fs::write(folder.file("log").join(name), lines.concat()).unwrap();
    }
    let folder = written(folder, SIGNED, 9);
    let (code, text) = said(&folder, &["--key", "audit.key.pub", "log"]);
    assert_eq!(code, Some(0), "by itself it is one chain: {text}");
    let (code, text) = said(&folder, &["--key", "audit.key.pub", "--checkpoint", "kept.ndjson", "log"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("[rewritten]") || text.contains("[went_back]"), "{text}");
}

#[test]
fn two_logs_and_other_files_in_one_folder() {
    let mut files = SAMPLE.files.clone();
    let others = OTHER.files.iter().map(|(name, lines)| (format!("other-{name}"), lines.clone()));
    files.extend(others);
    let folder = laid(&files);
    folder.write("log/sidecar.yaml", "service: {}\n");
    folder.write("log/empty.ndjson", "");
    std::fs::copy(SAMPLE.path("kept.ndjson"), folder.file("log/kept.ndjson")).unwrap();
    let (code, text) = said(&folder, &["log"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.matches("are one chain").count(), 2, "{text}");
    assert!(text.contains("passed over: log/empty.ndjson, log/kept.ndjson, log/sidecar.yaml"), "{text}");

    let mut twice = SAMPLE.files.clone();
    twice.push(("copy.ndjson".to_owned(), SAMPLE.files[1].1.clone()));
    let (code, text) = said(&laid(&twice), &["log"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("is there twice, here a second time with the same records"), "{text}");
    let mut shorter = SAMPLE.files[1].1.clone();
    shorter.truncate(3);
    twice[4.min(SAMPLE.files.len())].1 = shorter;
    let (code, text) = said(&laid(&twice), &["log"]);
    assert_eq!(code, Some(1), "{text}");

    for (name, text) in [("nothing", ""), ("no log", "{}\n"), ("no line", "hello")] {
        let folder = Folder::new();
        folder.write("x.ndjson", text);
        let (code, text) = said(&folder, &["x.ndjson"]);
        assert_eq!(code, Some(if name == "nothing" { 2 } else { 1 }), "{name}: {text}");
        let (code, text) = said(&folder, &["."]);
        assert_eq!(code, Some(2), "{name} in a folder: {text}");
    }
    assert_eq!(said(&SAMPLE.folder, &["nowhere"]).0, Some(2));
}

#[test]
fn a_log_on_standard_output() {
    let stdout = || {
        let upstream = Upstream::ok();
        let sidecar = Setup { decision_log: "{stdout: true}".to_owned(), ..Setup::to(&upstream.address) }.start();
        sidecar.still_serves();
        sidecar.stop().stdout.into_bytes()
    };
    let one = stdout();
    let output = piped(&["audit", "verify", "-"], &one);
    assert_eq!(output.status.code(), Some(0), "{}{}", out(&output), err(&output));
    // A process that was started again writes to the same place.
    let two = [one.clone(), stdout()].concat();
    let output = piped(&["audit", "verify", "-"], &two);
    assert_eq!(output.status.code(), Some(0), "{}", out(&output));
    assert_eq!(out(&output).matches("are one chain").count(), 2, "{}", out(&output));
}

#[test]
fn a_torn_end() {
    let folder = written(Folder::new(), SMALL, 2);
    let path = folder.file("log/decisions.ndjson");
    let torn = [std::fs::read(&path).unwrap().as_slice(), b"{\"event\":\"dpa.decision\",\"ti"].concat();
    std::fs::write(&path, &torn).unwrap();
    let (code, text) = said(&folder, &["log"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the last line is not finished (27 bytes)"), "{text}");
    let folder = written(folder, SMALL, 2);
    let (code, text) = said(&folder, &["log"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("a torn end of 27 bytes was cut after a crash"), "{text}");

    let mut files = SAMPLE.files.clone();
    files[0].1.push(b"{\"event\":\"dpa.deci".to_vec());
    let (code, text) = said(&laid(&files), &["log"]);
    assert_eq!(code, Some(1), "a segment that is closed is not being written: {text}");
    assert!(text.contains("[unended]"), "{text}");
}

/// The id of each decision that is made up.
const DECISION: &str = "01a206f5-e8a9-779b-b3ad-f4e9d273b2b3";

/// Records as a sidecar chains them.
pub(crate) struct Made {
    pub(crate) head: Head,
    log: &'static str,
}

impl Made {
    pub(crate) fn new() -> Self {
        Self { head: Head::NONE, log: "01a206f5-e4b9-731f-9735-af4d76753c68" }
    }

    pub(crate) fn line(&mut self, rest: &str) -> Vec<u8> {
        let (event, more) = rest.split_once(' ').unwrap_or((rest, ""));
        let log = self.log;
        let text = format!("{{\"event\":\"{event}\",\"time\":\"2026-11-23T05:51:48.905904Z\",\"log\":\"{log}\"{more}");
        let mut out = Vec::new();
        self.head.seal(text.as_bytes(), &mut out);
        out
    }

    pub(crate) fn opened(&mut self, segment: u64, why: &str) -> Vec<u8> {
        self.line(&format!("dpa.log ,\"what\":\"opened\",\"segment\":{segment},\"why\":\"{why}\""))
    }

    pub(crate) fn decisions(&mut self, count: usize) -> Vec<Vec<u8>> {
        (0..count)
            .map(|_| self.line(&format!("dpa.decision ,\"decision_id\":\"{DECISION}\",\"decision\":\"permit\"")))
            .collect()
    }

    pub(crate) fn checkpoint(&mut self) -> Vec<u8> {
        let (count, head) = (self.head.seq, self.head.hash.as_str().to_owned());
        self.line(&format!("dpa.checkpoint ,\"count\":{count},\"head\":\"{head}\",\"unrecorded\":0"))
    }
}

#[test]
fn a_segment_that_begins_because_a_sync_failed() {
    let mut made = Made::new();
    let mut first = vec![made.opened(1, "new")];
    first.extend(made.decisions(3));
    let durable = made.head;
    let beyond = made.decisions(2);
    let more = made.checkpoint();
    made.head = durable;
    let failed_checkpoint = made.checkpoint();
    made.head = durable;
    let mut second = vec![made.opened(2, "sync_failed")];
    second.extend(made.decisions(2));
    made.head = durable;
    let another_reason = vec![made.opened(2, "rotated")];
    made.head = Head { seq: 3, ..durable };
    let elsewhere = vec![made.opened(2, "sync_failed")];

    let with = |extra: &[Vec<u8>]| [first.as_slice(), extra].concat();
    let half = [beyond[0].clone(), b"{\"event\":\"dpa.dec".to_vec()];
    let table = [
        ("its end was cut", first.clone(), second.clone(), 0, "are one chain"),
        ("its end could not be cut", with(&beyond), second.clone(), 0, "behind record 4, 2 lines at the end"),
        ("nor is it whole", with(&half), second.clone(), 0, "behind record 4, 2 lines at the end"),
        ("a checkpoint was what could not be synced", with(&[failed_checkpoint]), second.clone(), 0, "behind record 4"),
        (
            "a checkpoint vouches for what is not of the log",
            with(&[beyond.clone(), vec![more]].concat()),
            second,
            1,
            "[disowned]",
        ),
        ("another reason", with(&beyond), another_reason, 1, "[fork]"),
        ("it goes on from a record that is not there", first.clone(), elsewhere, 1, "[fork]"),
    ];
    for (name, first, second, expected, text) in table {
        let folder = laid(&[("a-000001.ndjson".to_owned(), first), ("a.ndjson".to_owned(), second)]);
        let (code, found) = said(&folder, &["log"]);
        assert_eq!(code, Some(expected), "{name}: {found}");
        assert!(found.contains(text), "{name}: {found}");
    }
}

#[test]
fn records_that_no_sidecar_wrote() {
    let long = format!("dpa.decision ,\"x\":\"{}\"", "x".repeat(1 << 20));
    let table = [
        ("a checkpoint with another count", "dpa.checkpoint ,\"count\":7,\"head\":\"0\"", "[wrong_stand]"),
        ("a checkpoint without one", "dpa.checkpoint", "[wrong_stand]"),
        ("a wrong type", "dpa.checkpoint ,\"count\":\"x\"", "[unreadable]"),
        ("no JSON", "dpa.log ,\"what\":", "[unreadable]"),
        ("an opening in the middle", "dpa.log ,\"what\":\"opened\",\"segment\":1,\"why\":\"new\"", "[misnumbered]"),
        ("an opening without a number", "dpa.log ,\"what\":\"opened\"", "[unreadable]"),
        ("a line that is too long", long.as_str(), "[too_long]"),
    ];
    for (name, line, code) in table {
        let mut made = Made::new();
        let lines = vec![made.opened(1, "new"), made.line(line)];
        let (exit, text) = said(&laid(&[("a.ndjson".to_owned(), lines)]), &["log"]);
        assert_eq!(exit, Some(1), "{name}: {text}");
        assert!(text.contains(code) && text.contains("a.ndjson:2"), "{name}: {text}");
    }
    let mut made = Made::new();
    let opened = made.opened(1, "new");
    made.log = "01a206f5-e4b9-731f-9735-000000000000";
    let lines = vec![opened, made.decisions(1).remove(0)];
    let (exit, text) = said(&laid(&[("a.ndjson".to_owned(), lines)]), &["log"]);
    assert_eq!(exit, Some(1), "{text}");
    assert!(text.contains("[other_log]"), "{text}");
    made.head = Head { seq: u64::MAX - 1, ..made.head };
    let lines = [made.decisions(1), vec![b"x\n".to_vec()]].concat();
    let (exit, text) = said(&laid(&[("a.ndjson".to_owned(), lines)]), &["log"]);
    assert_eq!(exit, Some(1), "the last number there is: {text}");
}

#[test]
fn a_verifier_in_another_language_agrees() {
    let verifier = repository("tests/peers/verify_log.py");
    let ask = |files: &[File]| {
        let folder = laid(files);
        let names: Vec<PathBuf> = files.iter().map(|(name, _)| folder.file("log").join(name)).collect();
        Command::new("python3").arg(&verifier).args(names).output()
    };
    let Ok(good) = ask(&SAMPLE.files) else {
        assert!(std::env::var_os("CI").is_none(), "there is no python3");
        eprintln!("skipped: there is no python3");
        return;
    };
    let count: usize = SAMPLE.files.iter().map(|(_, lines)| lines.len()).sum();
    assert!(out(&good).starts_with(&format!("ok {count} ")), "{}{}", out(&good), err(&good));
    let mut changed = SAMPLE.files.clone();
    let place = changed[2].1[4].len() / 2;
    changed[2].1[4][place] ^= 1;
    let bad = ask(&changed).unwrap();
    assert_eq!(bad.status.code(), Some(1), "{}", err(&bad));
    assert!(out(&bad).contains(":5 its hash is not that of its content"), "{}", out(&bad));
    let (_, text) = said(&laid(&changed), &["log"]);
    assert!(text.contains(":5 (record"), "{text}");
}

#[test]
fn a_key_pair_is_made_and_never_written_over() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = with_key();
    let mode = std::fs::metadata(folder.file("audit.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (private, public) = (folder.file("audit.key"), folder.file("audit.key.pub"));
    let before = (std::fs::read_to_string(&private).unwrap(), std::fs::read_to_string(&public).unwrap());
    assert!(before.0.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{}", before.0);
    assert!(before.1.starts_with("-----BEGIN PUBLIC KEY-----\n"), "{}", before.1);
    let again = run(&folder.file(""), &["keygen", "audit.key"]);
    assert_eq!((again.status.code(), out(&again).as_str()), (Some(2), ""));
    assert!(err(&again).contains("cannot write the key `audit.key`"), "{}", err(&again));
    let after = (std::fs::read_to_string(&private).unwrap(), std::fs::read_to_string(&public).unwrap());
    assert_eq!(before, after);
    std::fs::remove_file(&private).unwrap();
    assert_eq!(run(&folder.file(""), &["keygen", "audit.key"]).status.code(), Some(2), "the public one is there");
    assert!(!private.exists(), "no half of a pair is left");
    assert_eq!(std::fs::read_to_string(&public).unwrap(), before.1);
}

/// The lines, without what differs from run to run.
fn tailed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", err(output));
    let mut shown = String::new();
    for line in out(output).lines() {
        let mut words: Vec<&str> = line.split("  ").collect();
        words[0] = "TIME";
        let is_id = |word: &&str| word.len() == 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let words: Vec<&str> = words.iter().map(|word| if is_id(&word.trim()) { " ID" } else { *word }).collect();
        writeln!(shown, "{}", words.join("  ")).unwrap();
    }
    shown
}

#[test]
fn the_last_decisions_as_a_person_reads_them() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    sidecar.still_serves();
    sidecar.ask(denied());
    sidecar.ask(Request::bare("GET", SUBSCRIBER).end());
    let several = "customer=(redwood-strand granite-notch), purpose=customer_support";
    sidecar.ask(Request::bare("GET", "/v1/usage/x").with("DPA-Caller", ROLLUP).with("DPA-Context", several).end());
    let stopped = sidecar.stop();
    let tail = |more: &[&str]| {
        let arguments = [&["audit", "tail"], more, &["decisions.ndjson"]].concat();
        run(&stopped.folder.file(""), &arguments)
    };
    assert_eq!(as_golden("audit/tail.txt", &tailed(&tail(&[]))), None);
    let whole = out(&tail(&[]));
    assert!(!whole.contains('\u{1b}'), "colour without a terminal");
    let table: [(&str, &[&str], usize); 8] = [
        ("the last two", &["-n", "2"], 2),
        ("none", &["-n", "0"], 0),
        ("of one customer", &["--customer", "redwood-strand"], 4),
        ("denied", &["--action", "denied"], 4),
        ("a reason", &["--reason", "caller_unidentified"], 1),
        ("a caller", &["--caller", "rollup", "--action", "denied"], 2),
        ("a subprocessor", &["--subprocessor", "sp-01"], 0),
        ("nobody", &["--customer", "nobody"], 0),
    ];
    for (name, filter, expected) in table {
        let found = tailed(&tail(filter));
        assert_eq!(found.lines().count(), expected, "{name}:\n{found}");
    }
    // Only what is not a record is told; standard input is read as a file is.
    let text = std::fs::read(stopped.folder.file("decisions.ndjson")).unwrap();
    let hostile = "{\"event\":\"dpa.decision\",\"customer_id\":\"\\u001b[2Jx\",\"action\":\"allowed\"}\n";
    let input = [text.as_slice(), b"no record\n{\"event\":1}\n", hostile.as_bytes()].concat();
    let output = piped(&["audit", "tail"], &input);
    assert!(err(&output).contains("2 lines that are no records were passed over"), "{}", err(&output));
    assert!(out(&output).starts_with(&whole) && !out(&output).contains('\u{1b}'), "{}", out(&output));
    let nowhere = run(&stopped.folder.file(""), &["audit", "tail", "nowhere"]);
    assert_eq!(nowhere.status.code(), Some(2));
}

#[test]
fn decisions_are_followed_over_segments() {
    let upstream = Upstream::ok();
    let sidecar = Setup { decision_log: SMALL.to_owned(), ..Setup::to(&upstream.address) }.start();
    let log = sidecar.log().parent().unwrap().join("log/decisions.ndjson");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"));
    command.args(["audit", "tail", "-f", "-n", "0", "--action", "denied"]).arg(&log).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
        lines.map_while(Result::ok).try_for_each(|line| tell.send(line))
    });
    // It is there once it shows something.
    let first = wait_for("the first line", || {
        sidecar.ask(denied());
        told.recv_timeout(std::time::Duration::from_millis(100)).ok()
    });
    assert!(first.contains("purpose_not_bound_to_caller"), "{first}");
    let mut ids = Vec::new();
    while !log.with_file_name("decisions-000003.ndjson").exists() {
        let id = sidecar.ask(denied()).decision_id();
        let end = id.rsplit('-').next().unwrap().to_owned();
        wait_for("its line", || told.recv_timeout(crate::support::CEILING).ok().filter(|line| line.contains(&end)));
        ids.push(id);
    }
    assert!(ids.len() > 10);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The blocks of this language in the document about the log.
pub(crate) fn blocks(language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repository("docs/decision-log.md")).unwrap();
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split_once("```").unwrap().0.to_owned()).collect()
}

#[test]
fn the_test_vectors_of_the_document_are_right() {
    use dpa_sidecar::record::chain::Sealed;
    use dpa_sidecar::record::checkpoint::Signer;

    let log = blocks("ndjson").remove(0);
    let pems = blocks("pem");
    let [private, public] = pems.as_slice() else { panic!("two halves of a key") };
    let signer = Signer::read(private.as_bytes()).unwrap();
    let mut head = Head::NONE;
    let mut again = Vec::new();
    for line in log.lines() {
        let record = Sealed::read(line.as_bytes()).unwrap().record;
        // Ed25519 signs the same with the same.
        let text = std::str::from_utf8(record).unwrap();
        match text.split_once(",\"key_id\":") {
            Some((unsigned, _)) if is_checkpoint(record) => head.seal(&signer.sign(unsigned.as_bytes()), &mut again),
            _ => head.seal(record, &mut again),
        }
    }
    assert_eq!(String::from_utf8(again).unwrap(), log, "BLESS does not write this one: take it from here");
    let folder = Folder::new();
    folder.write("log.ndjson", &log);
    folder.write("key.pub", public);
    let (code, text) = said(&folder, &["--key", "key.pub", "log.ndjson"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&format!("records 1 to 3 are as they were when key {} signed them", signer.id())), "{text}");
    let document = std::fs::read_to_string(repository("docs/decision-log.md")).unwrap();
    assert!(document.contains(signer.id()), "it names the id of the key");
}

#[test]
fn a_line_without_end_was_kept_whole_to_look_at_its_beginning() {
    for command in [["audit", "verify", "-"], ["audit", "tail", "-"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"))
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for _ in 0..128 {
            stdin.write_all(&vec![b'x'; 1 << 20]).unwrap();
        }
        // It has read all but what is in the pipe, and waits for more.
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
        drop(stdin);
        child.wait().unwrap();
        assert!(most.trim().parse::<u64>().unwrap() < 64 * 1024, "{command:?}: {most} kB");
    }
}
