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
const SIGNED: &str =
    "{file: {path: log/decisions.ndjson, rotate_bytes: 16KiB}, signing_key: audit.key, checkpoint_copy: kept.ndjson}";

/// A folder with a key.
fn with_key() -> Folder {
    let folder = Folder::new();
    let made = run(&folder.file(""), &["keygen", "audit.key"]);
    assert_eq!(made.status.code(), Some(0), "{}", err(&made));
    folder
}

/// Lets a sidecar decide so many times, and stops it.
fn written(folder: Folder, decision_log: &str, decisions: usize) -> Folder {
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
type File = (String, Vec<Vec<u8>>);

/// The segments of a log, in order.
fn segments(folder: &Path) -> Vec<File> {
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
struct Sample {
    folder: Folder,
    files: Vec<File>,
}

impl Sample {
    fn new() -> Self {
        let folder = written(with_key(), SIGNED, 45);
        let files = segments(&folder.file("log"));
        assert!(files.len() > 3, "too few segments: {}", files.len());
        Self { folder, files }
    }

    fn path(&self, name: &str) -> String {
        self.folder.file(name).to_str().unwrap().to_owned()
    }
}

static SAMPLE: LazyLock<Sample> = LazyLock::new(Sample::new);
static OTHER: LazyLock<Sample> = LazyLock::new(Sample::new);

/// Writes the files of a log to a folder `log`.
fn laid(files: &[File]) -> Folder {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.file("log")).unwrap();
    for (name, lines) in files {
        std::fs::write(folder.file("log").join(name), lines.concat()).unwrap();
    }
    folder
}

fn verify(folder: &Folder, more: &[&str]) -> Output {
    run(&folder.file(""), &[&["audit", "verify"], more].concat())
}

fn json(output: &Output) -> Value {
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
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

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

fn concatenated(files: &[File]) -> Vec<u8> {
    files.iter().flat_map(|(_, lines)| lines.concat()).collect()
}

/// Runs the program with this on its standard input.
fn piped(arguments: &[&str], input: &[u8]) -> Output {
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
fn normal(text: &str) -> String {
    let mut shown = String::new();
    for word in text.split_inclusive([' ', '\n', ',', ';', ')', '(']) {
        let (bare, end) = word.split_at(word.trim_end_matches([' ', '\n', ',', ';', ')', '(']).len());
        let is_hex = |word: &str| word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let same = match bare {
            _ if uuid::Uuid::parse_str(bare).is_ok() => "LOG",
            _ if bare.len() == 16 && is_hex(bare) => "KEY",
            _ if bare.parse::<jiff::Timestamp>().is_ok() => "TIME",
            _ if bare.bytes().all(|byte| byte.is_ascii_digit()) && !bare.is_empty() => "N",
            _ => bare,
        };
        write!(shown, "{same}{end}").unwrap();
    }
    shown
}
