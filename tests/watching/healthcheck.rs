//! `healthcheck`, as a container asks.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;

use super::holding;
use super::told;
use super::watched;
use crate::support::CEILING;
use crate::support::Folder;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::err;
use crate::support::out;
use crate::support::permitted;
use crate::support::run;
use crate::support::wait_for;

/// Answers each connection with these bytes, and then says nothing more.
fn saying(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _asked = stream.read(&mut [0; 1024]);
            let _gone = stream.write_all(bytes);
            if bytes.is_empty() {
                held.push(stream);
            }
        }
    });
    address
}

#[test]
fn what_the_exit_code_says() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup::to(&upstream.address));
    let health = told(&sidecar, "health");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let everywhere = health.replace("127.0.0.1", "0.0.0.0");
    let (silent, garbled) = (saying(b""), saying(b"SSH-2.0-x\r\n\r\n"));
    let other = saying(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let waiting = saying(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    let folder = Folder::new();
    let with = |name: &str, health: &str| {
        let more = if health.is_empty() { String::new() } else { format!("health: {{address: {health}}}\n") };
        folder.write(name, &(Setup::to(&upstream.address).text() + &more));
    };
    with("sidecar.yaml", &format!("'{health}'"));
    with("everywhere.yaml", &format!("'{everywhere}'"));
    with("environment.yaml", &format!("\"${{NOT_SET_ANYWHERE:-{health}}}\""));
    with("unset.yaml", "\"${NOT_SET_ANYWHERE}\"");
    with("none.yaml", "");
    folder.write("no.yaml", "{");
    // Only the address counts: a probe is no check of the file.
    folder.write("half.yaml", &format!("health: {{address: '{health}'}}\n"));
    let fast = ["--timeout", "200ms"];
    let table: [(&str, Vec<&str>, i32, &str); 18] = [
        ("ready", vec!["--address", &health], 0, "ok\n"),
        ("alive", vec!["--address", &health, "--live"], 0, "ok\n"),
        ("by the settings", vec!["--config", "sidecar.yaml"], 0, "decision_log: takes records"),
        ("that listen everywhere", vec!["--config", "everywhere.yaml"], 0, "ok\n"),
        ("an address for everywhere", vec!["--address", &everywhere], 0, "ok\n"),
        ("an address from the environment", vec!["--config", "environment.yaml"], 0, "ok\n"),
        ("half of the settings", vec!["--config", "half.yaml"], 0, "ok\n"),
        ("not ready", vec!["--address", &waiting], 1, ""),
        ("nobody", vec!["--address", &nobody], 2, "does not tell how it is: "),
        ("somebody silent", [&["--address", &silent][..], &fast[..]].concat(), 2, "does not tell how it is: "),
        ("somebody who speaks no HTTP", vec!["--address", &garbled], 2, "no HTTP"),
        ("somebody else", vec!["--address", &other], 2, "it is not the health listener"),
        ("nothing to go by", vec![], 2, "give `--config sidecar.yaml`, or `--address IP:PORT`"),
        ("no such file", vec!["--config", "nowhere.yaml"], 2, "cannot read `nowhere.yaml`"),
        ("no YAML", vec!["--config", "no.yaml"], 2, "`no.yaml` is not YAML"),
        ("no health listener", vec!["--config", "none.yaml"], 2, "the settings have no `health`"),
        ("an environment without it", vec!["--config", "unset.yaml"], 2, "the environment lacks"),
        ("no time at all", vec!["--address", &health, "--timeout", "0s"], 2, "write a whole number above 0"),
    ];
    for (name, arguments, exit, expected) in table {
        let output = run(&folder.file("."), &[&["healthcheck"], &arguments[..]].concat());
        let said = out(&output) + &err(&output);
        assert_eq!(output.status.code(), Some(exit), "{name}: {said}");
        assert!(said.contains(expected), "{name}: {said}");
    }
}

/// An image names its settings in the environment, and a flag was taken as a contradiction of it.
#[test]
fn a_flag_wins_over_the_environment() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup::to(&upstream.address));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"));
    command.env("DPA_CONFIG", "/nowhere/sidecar.yaml").args(["healthcheck", "--address", &told(&sidecar, "health")]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
}

#[test]
fn a_sidecar_that_stops_is_alive_and_not_ready() {
    let (upstream, beginnings, allow) = holding();
    let mut sidecar = watched(&Setup::to(&upstream.address));
    let health = told(&sidecar, "health");
    let mut busy = sidecar.connect();
    busy.send(permitted());
    beginnings.recv_timeout(CEILING).unwrap();
    let terminated = std::process::Command::new("kill").arg(sidecar.id().to_string()).status().unwrap();
    assert!(terminated.success());
    let folder = Folder::new();
    let exit =
        |arguments: &[&str]| run(&folder.file("."), &[&["healthcheck", "--address", &health], arguments].concat());
    let output = wait_for("an end of readiness", || Some(exit(&[])).filter(|it| it.status.code() != Some(0)));
    let said = out(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("[-] serving: stopping") && said.ends_with("not ready\n"), "{said}");
    assert_eq!(exit(&["--live"]).status.code(), Some(0));
    allow.send(()).unwrap();
    assert_eq!(busy.answer().unwrap().status, 200);
    assert_eq!(sidecar.ended(), Some(0));
    assert_eq!(exit(&[]).status.code(), Some(2), "nobody is there");
}
