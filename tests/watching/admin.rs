//! The admin listener, and what the health listener shares with it.

use std::io::Read as _;
use std::io::Write as _;

use serde_json::Value;

use super::ask;
use super::holding;
use super::say;
use super::told;
use super::watched;
use crate::support::CEILING;
use crate::support::Connection;
use crate::support::Folder;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::err;
use crate::support::out;
use crate::support::permitted;
use crate::support::run;
use crate::support::wait_for;

#[test]
fn what_is_asked_wrongly_is_answered_shortly() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup::to(&upstream.address));
    let (health, admin) = (told(&sidecar, "health"), told(&sidecar, "admin"));
    let head = |line: &str, more: &str| format!("{line} HTTP/1.1\r\n{more}\r\n");
    let table = [
        ("the settings", &admin, head("GET /config_dump", "Host: localhost\r\n"), 200),
        ("by its address", &admin, head("GET /policy", &format!("Host: {admin}\r\n")), 200),
        ("only their head", &admin, head("HEAD /config_dump", "Host: 127.0.0.1\r\n"), 200),
        ("a page that calls itself this machine", &admin, head("GET /config_dump", "Host: rebound.example\r\n"), 403),
        ("with the right port", &admin, head("GET /policy", "Host: rebound.example:9902\r\n"), 403),
        ("no Host", &admin, head("GET /config_dump", ""), 403),
        ("two", &admin, head("GET /config_dump", "Host: localhost\r\nHost: rebound.example\r\n"), 403),
        ("another machine in the target", &admin, head("GET http://x/config_dump", "Host: localhost\r\n"), 400),
        ("no path", &admin, head("OPTIONS *", "Host: localhost\r\n"), 400),
        ("something to be changed", &admin, head("POST /config_dump", "Host: localhost\r\n"), 405),
        ("something removed", &admin, head("DELETE /policy", "Host: localhost\r\n"), 405),
        ("nothing that is there", &admin, head("GET /quit", "Host: localhost\r\n"), 404),
        ("what the other listener has", &admin, head("GET /metrics", "Host: localhost\r\n"), 404),
        ("a head that is too large", &admin, head("GET /policy", &format!("X: {}\r\n", "x".repeat(32_000))), 431),
        ("too many lines", &admin, head("GET /policy", &"X: x\r\n".repeat(65)), 431),
        ("no HTTP", &admin, "hello\r\n\r\n".to_owned(), 400),
        ("the kubelet, by the address of the pod", &health, head("GET /livez", "Host: 10.1.2.3:9901\r\n"), 200),
        ("a probe without a Host", &health, head("GET /readyz", ""), 200),
        ("a probe that posts", &health, head("POST /readyz", "Host: x\r\n"), 405),
        ("the settings where anybody asks", &health, head("GET /config_dump", "Host: localhost\r\n"), 404),
        ("the policy there", &health, head("GET /policy", "Host: localhost\r\n"), 404),
    ];
    for (name, address, request, expected) in table {
        let mut connection = Connection::to(address);
        let _may_be_closed_early = connection.try_send(request);
        let (status, head) = connection.head().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!(status, expected, "{name}");
        assert_eq!(head.value("allow"), (status == 405).then_some("GET, HEAD"), "{name}");
        let is_ours = !matches!(expected, 400 | 431);
        assert!(!is_ours || head.value("x-content-type-options") == Some("nosniff"), "{name}");
    }
}

#[test]
fn who_says_nothing_takes_no_place_for_good() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup::to(&upstream.address));
    for what in ["health", "admin"] {
        let address = told(&sidecar, what);
        let mut silent: Vec<Connection> = (0..17).map(|_| Connection::to(&address)).collect();
        let path = if what == "health" { "/livez" } else { "/policy" };
        assert_eq!(ask(&address, path).status, 200, "{what}: one more is answered");
        assert!(silent[0].is_closed(), "{what}: the oldest was closed for it");
    }
}

#[test]
fn the_policy_in_force_is_told_and_why_another_is_not() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let sample = std::fs::read_to_string(crate::support::repository("config/policy.yaml")).unwrap();
    let policy = folder.write("policy.yaml", &sample);
    let setup = Setup::to(&upstream.address);
    let quoted = format!(
        "policy: {{file: {}}}",
        Value::from(crate::support::repository("config/policy.yaml").to_str().unwrap())
    );
    let text = setup.text().replace(&quoted, "policy: {file: policy.yaml}") + "admin: {address: 'unix:admin.sock'}\n";
    let sidecar = setup.start_with(&text, folder);
    let socket = sidecar.log().with_file_name("admin.sock");
    let asked = |path: &str| -> Value {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        // Nobody looks at the name: no page in a browser opens a Unix socket.
        write!(stream, "GET {path} HTTP/1.1\r\nHost: anything\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1)
            .unwrap_or_else(|error| panic!("{error}: {answer}"))
    };
    wait_for("the socket", || socket.exists().then_some(()));
    let shown = asked("/policy");
    assert_eq!((shown["name"].as_str(), shown["revision"].as_u64()), (Some("lumenfield-dpa"), Some(12)));
    assert_eq!((shown["customers"].as_u64(), shown["instructions"].as_u64()), (Some(7), Some(8)));
    assert_eq!(
        (&shown["key_id"], &shown["refused"], &shown["is_stale"]),
        (&Value::Null, &Value::Null, &Value::Bool(false))
    );
    assert!(shown["file"].as_str().unwrap().ends_with("policy.yaml"), "{shown}");
    assert_eq!(shown["digest"].as_str().map(str::len), Some(64));
    assert!(!shown.to_string().contains("redwood"), "customers are not listed: {shown}");
    std::fs::write(&policy, sample.replace("revision: 12", "revision: 11")).unwrap();
    let refused = wait_for("a refusal", || Some(asked("/policy")["refused"].clone()).filter(|it| !it.is_null()));
    assert_eq!((refused["why"].as_str(), refused["revision"].as_u64()), (Some("revision"), Some(11)));
    let stopped = sidecar.stop();
    assert_eq!(stopped.code, Some(0));
    assert!(!stopped.folder.file("admin.sock").exists(), "its socket goes with it");
}

#[test]
fn an_admin_listener_is_for_this_machine_only() {
    let upstream = Upstream::ok();
    let table = [
        ("all addresses", "0.0.0.0:9902", "error[DPA035]"),
        ("all addresses of version 6", "[::]:9902", "error[DPA035]"),
        ("the pod's", "10.1.2.3:9902", "error[DPA035]"),
        ("a name", "localhost:9902", "error[DPA008]"),
        ("a socket without a path", "unix:", "error[DPA008]"),
        ("loopback", "127.0.0.1:9902", "ok"),
        ("loopback of version 6", "[::1]:9902", "ok"),
        ("a socket", "unix:admin.sock", "ok"),
    ];
    for (name, address, expected) in table {
        let folder = Folder::new();
        let text = Setup::to(&upstream.address).text() + &format!("admin: {{address: '{address}'}}\n");
        folder.write("sidecar.yaml", &text);
        let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
        let said = out(&output) + &err(&output);
        assert!(said.contains(expected), "{name}: {said}");
        assert_eq!(output.status.code(), Some(i32::from(expected != "ok")), "{name}: {said}");
    }
}

#[test]
fn both_answer_until_the_log_is_closed() {
    let (upstream, beginnings, allow) = holding();
    let mut sidecar = watched(&Setup::to(&upstream.address));
    let (health, admin) = (told(&sidecar, "health"), told(&sidecar, "admin"));
    let mut busy = sidecar.connect();
    busy.send(permitted());
    beginnings.recv_timeout(CEILING).unwrap();
    let terminated = std::process::Command::new("kill").arg(sidecar.id().to_string()).status().unwrap();
    assert!(terminated.success());
    wait_for("a readiness that ends", || (say_or_none(&health, "/readyz") == Some(503)).then_some(()));
    assert_eq!(say_or_none(&admin, "/policy"), Some(200));
    assert_eq!(say_or_none(&health, "/livez"), Some(200));
    allow.send(()).unwrap();
    assert_eq!(busy.answer().unwrap().status, 200);
    assert_eq!(sidecar.ended(), Some(0));
}

fn say_or_none(address: &str, path: &str) -> Option<u16> {
    let stream = std::net::TcpStream::connect(address).ok()?;
    let mut connection = Connection::on(stream);
    connection.try_send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).ok()?;
    connection.answer().map(|answer| answer.status)
}

#[test]
fn the_settings_in_force_are_those_that_print_config_prints() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup::to(&upstream.address));
    let dump: Value = serde_json::from_str(&ask(&told(&sidecar, "admin"), "/config_dump").text()).unwrap();
    let folder = sidecar.log().parent().unwrap().to_owned();
    let path = folder.join("sidecar.yaml");
    let printed = out(&run(&folder, &["run", "--config", path.to_str().unwrap(), "--print-config"]));
    let digest = dump["digest"].as_str().unwrap();
    assert!(printed.ends_with(&format!("digest {digest}\n")), "{printed}");
    let settings = dump["settings"].as_array().unwrap();
    assert_eq!(printed.lines().count(), settings.len() + 1);
    for (line, setting) in printed.lines().zip(settings) {
        let of = |key: &str| setting[key].as_str().unwrap().to_owned();
        let (key, value, origin) = (of("key"), of("value"), of("origin"));
        assert!(line.starts_with(&key) && line.contains(&value) && line.ends_with(&origin), "{line}: {setting}");
    }
    let told = sidecar.stderr.text();
    assert!(told.contains(&format!("settings   digest {digest}")), "{told}");
    let metrics = super::scrape(&sidecar);
    assert!(metrics.contains(&format!("dpa_settings_info{{digest=\"{digest}\"}} 1")), "{metrics}");
    assert!(say(&told_health(&sidecar), "GET /livez HTTP/1.1\r\n\r\n").status == 200);
}

fn told_health(sidecar: &crate::support::Sidecar) -> String {
    told(sidecar, "health")
}
