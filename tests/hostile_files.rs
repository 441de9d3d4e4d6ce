//! Files that nobody should write: refused with a place, in bounded memory, by the real program.

use std::fmt::Write as _;
use std::fs::File;
use std::process::Command;
use std::process::Output;

use crate::support::Folder;
use crate::support::err;
use crate::support::out;

/// Address space that the program may have here, in KiB: none of these files is worth more.
const MOST_KIB: u32 = 3 << 20;

/// Runs `check` on a file, within [`MOST_KIB`] and 120 s of processor time.
fn check(folder: &Folder, name: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v $0 && ulimit -t 120 && exec \"$1\" check \"$2\""]);
    command.args([&MOST_KIB.to_string(), env!("CARGO_BIN_EXE_dpa-sidecar"), name]);
    command.current_dir(folder.file("")).output().unwrap()
}

#[test]
fn files_that_would_eat_the_memory_of_a_careless_reader() {
    let folder = Folder::new();
    let deep = 100_000;
    let bomb = (b'b'..=b'i').fold("a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned(), |mut text, letter| {
        let (this, before) = (char::from(letter), char::from(letter - 1));
        writeln!(text, "{this}: &{this} [{}]", vec![format!("*{before}"); 9].join(", ")).unwrap();
        text
    });
    let lines = |count: usize, line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<Vec<_>>().join("\n");
    // What it is, its bytes, the exit code, and what has to be said.
    let table: [(&str, Vec<u8>, i32, &str); 15] = [
        ("100,000 open lists", format!("version: {}", "[".repeat(deep)).into(), 1, ":1:265: error[DPA009]"),
        ("100,000 open maps", format!("version: {}", "{a: ".repeat(deep)).into(), 1, ":1:134: error[DPA009]"),
        ("100,000 dashes in a line", "- ".repeat(deep).into(), 1, ":1:65: error[DPA009]"),
        ("100,000 question marks", "? ".repeat(deep).into(), 1, ":1:65: error[DPA009]"),
        ("2,000 lists by indentation", lines(2_000, &|i| " ".repeat(i) + "- ").into(), 1, ":33:33: error[DPA009]"),
        ("keys in keys on one line", "a: ".repeat(deep).into(), 1, ":1:5: error[DPA001]"),
        ("a billion laughs", bomb.into(), 1, ":1:7: error[DPA002]"),
        ("a NUL", b"version: 1\0\nmetadata: 2\n".to_vec(), 1, ":1:11: error[DPA001]"),
        ("no UTF-8", b"version: 1\nmetadata: \xff\xfe\n".to_vec(), 2, "line 2 is not UTF-8"),
        ("half a character at the end", b"version: 1\nmetadata: \xc3".to_vec(), 2, "line 2 is not UTF-8"),
        ("UTF-16", "v\0e\0r\0s\0i\0o\0n\0:\0".into(), 1, "error[DPA001]"),
        ("a key of 4 MB", ("k".repeat(4_000_000) + ": 1").into(), 1, "error[DPA001]"),
        ("a quote that is never closed", format!("a: \"{}", "x".repeat(4_000_000)).into(), 1, ":1:4: error[DPA001]"),
        ("100,000 unknown keys", lines(deep, &|i| format!("k{i}: 1")).into(), 1, "at least 10006 errors"),
        (
            "customers that are numbers",
            format!("customers:\n{}", "- 1\n".repeat(deep)).into(),
            1,
            "at least 20000 errors",
        ),
    ];
    for (name, bytes, code, said) in table {
        std::fs::write(folder.file("policy.yaml"), bytes).unwrap();
        let output = check(&folder, "policy.yaml");
        let text = out(&output) + &err(&output);
        let shown: String = text.chars().take(2_000).collect();
        assert_eq!(output.status.code(), Some(code), "{name}: {shown}");
        assert!(text.contains(said), "{name}: `{said}` is not in {shown}");
    }
}

#[test]
fn a_file_of_eight_gibibytes_is_not_read() {
    let folder = Folder::new();
    File::create(folder.file("policy.yaml")).unwrap().set_len(8 << 30).unwrap();
    let output = check(&folder, "policy.yaml");
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(err(&output).contains("larger than 16 MiB"), "{}", err(&output));
}

#[test]
fn a_hundred_thousand_customers_load() {
    let small = std::fs::read_to_string(crate::support::repository("tests/valid-policy.yaml")).unwrap();
    let (head, _) = small.split_once("customers:\n").unwrap();
    let mut text = head.to_owned() + "customers:\n";
    for number in 0..100_000 {
        writeln!(
            text,
            "- {{id: c-{number}, legal_name: C, dpa: {{version: \"3\", accepted_at: 2024-01-10, contract_ref: M}}, \
             permitted_purposes: [customer_support]}}"
        )
        .unwrap();
    }
    let folder = Folder::new();
    std::fs::write(folder.file("policy.yaml"), text).unwrap();
    let output = check(&folder, "policy.yaml");
    let text = out(&output) + &err(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("100000 customers"), "{text}");
    assert!(text.contains("99980 more customers go by the default"), "{text}");
}
