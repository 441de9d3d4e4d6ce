//! `demo`: the tour ends as it says, and what it prints can be pasted.

use std::io::BufRead as _;
use std::io::BufReader;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use crate::support::Folder;
use crate::support::err;
use crate::support::out;
use crate::support::records_in;

fn program(folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"));
    command.args(arguments).env("TMPDIR", folder.file(".")).env_remove("DPA_CONFIG").stdin(Stdio::null());
    command
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn the_tour_ends_as_told() {
    let table: [(&str, &[&str], &str, &str); 2] = [
        (
            "in clear",
            &["demo", "--once"],
            r#""transport":{"tls_version":"none","proof":"header","peer":"address"}"#,
            "20 requests, 14 were not sent on; every outcome was as told.",
        ),
        (
            "over TLS",
            &["demo", "--tls", "--once"],
            r#""transport":{"tls_version":"1.3","proof":"certificate"}"#,
            "25 requests, 18 were not sent on; every outcome was as told.",
        ),
    ];
    // Somebody has the ports that it would rather take.
    let _taken = [8080, 8443].map(|port| TcpListener::bind(("127.0.0.1", port)));
    for (says, arguments, transport, verdict) in table {
        let folder = Folder::new();
        let ended = program(&folder, arguments).output().unwrap();
        let text = out(&ended);
        assert_eq!(ended.status.code(), Some(0), "{says}: {text}{}", err(&ended));
        assert_eq!(err(&ended), "", "{says}");
        assert!(text.contains(transport), "{says}: {text}");
        assert_eq!(text.lines().last(), Some(verdict), "{says}");
        assert_eq!(files(&folder.file(".")), Vec::<PathBuf>::new(), "{says}: left behind");
    }
}

/// A demo that goes on after its tour; killed when it goes out of scope.
struct Demo(std::process::Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn what_the_demo_with_certificates_prints_can_be_pasted() {
    let temporary = Folder::new();
    let mut demo = Demo(program(&temporary, &["demo", "--tls"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = Vec::new();
    for line in BufReader::new(demo.0.stdout.take().unwrap()).lines() {
        lines.push(line.unwrap());
        if lines.last().unwrap().contains("tail -f") {
            break;
        }
    }
    let text = lines.join("\n");
    let folder = files(&temporary.file(".")).pop().unwrap();

    let mut keys = 0;
    for file in files(&folder.join("tls")).iter().filter(|file| file.extension().unwrap() == "key") {
        keys += 1;
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        assert_ne!(file.file_stem().unwrap(), "ca", "the key of the authority is written nowhere");
    }
    assert_eq!(keys, 12, "of the sidecar, and of each caller");

    let (_, rest) = text.split_once("Try it:\n").unwrap_or_else(|| panic!("{text}"));
    let blocks: Vec<&str> = rest.split("\n\n").map(str::trim).filter(|block| !block.is_empty()).collect();
    let [cd, tries @ .., _written] = blocks.as_slice() else { panic!("{rest}") };
    let expected = [
        ("# permitted", "200", ""),
        ("# refused: not a purpose of this caller", "403", "purpose_not_bound_to_caller"),
        ("# refused: the biller stays the biller, whatever a header says", "403", "purpose_not_bound_to_caller"),
        ("# refused: no certificate", "401", "caller_unidentified"),
        ("# no connection, `unknown ca`: names the care desk, but not signed by ca.crt", "", "unknown ca"),
    ];
    assert_eq!(tries.len(), expected.len(), "{rest}");
    for (pasted, (says, status, reason)) in tries.iter().zip(expected) {
        assert_eq!(pasted.lines().next(), Some(says));
        let script = format!("{cd}\n{pasted} -sS --max-time 10 --noproxy '*'");
        let answer = Command::new("sh").args(["-c", &script]).output().unwrap();
        let all = out(&answer) + &err(&answer);
        // curl speaks what it was built with.
        let line = out(&answer).lines().next().unwrap_or_default().to_owned();
        assert_eq!(line.split(' ').nth(1).unwrap_or_default(), status, "{pasted}\n{all}");
        assert!(all.contains(reason), "{pasted}\n{all}");
    }
    let log = std::fs::read_to_string(folder.join("decisions.ndjson")).unwrap();
    let callers: Vec<_> = records_in(&log).into_iter().filter(|record| record["event"] == "dpa.decision").collect();
    let biller = callers.iter().rev().find(|record| record["caller_id"] == "biller").unwrap();
    assert_eq!(biller["reason"], "purpose_not_bound_to_caller", "the header changed something: {biller}");

    assert!(Command::new("kill").arg(demo.0.id().to_string()).status().unwrap().success());
    assert_eq!(demo.0.wait().unwrap().code(), Some(0));
    let left: Vec<_> = files(&folder).iter().map(|file| file.file_name().unwrap().to_owned()).collect();
    assert_eq!(left, [".decisions.ndjson.lock", "decisions.ndjson", "policy.yaml", "sidecar.yaml"]);
}
