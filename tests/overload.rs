//! Too much at once: what waits, what is turned away, and that neither is lost.

use std::sync::Mutex;
use std::sync::mpsc;

use serde_json::Value;

use crate::support::CEILING;
use crate::support::Connection;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::permitted;
use crate::support::run;
use crate::support::wait_for;

/// The sum of a count in all `dpa.unread` records so far.
fn unread(sidecar: &Sidecar, why: &str) -> u64 {
    sidecar.records().iter().filter_map(|record| record[why].as_u64()).sum()
}

/// An address that nobody has.
fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn permitted_as(mark: &str) -> String {
    Head::permitted("GET", SUBSCRIBER).with("X-Mark", mark).end()
}

/// A data service that begins an answer, and ends it when it is told.
fn holding() -> (Upstream, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (begun, beginnings) = mpsc::channel();
    let (allow, allowed) = mpsc::channel::<()>();
    let allowed = Mutex::new(allowed);
    let upstream = Upstream::start(move |exchange| {
        if exchange.head.value("x-mark") != Some("held") {
            return exchange.ok("ok");
        }
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhe");
        begun.send(()).unwrap();
        allowed.lock().unwrap().recv_timeout(CEILING).unwrap();
        exchange.send("ld");
        crate::support::Then::Keep
    });
    (upstream, beginnings, allow)
}

#[test]
fn requests_beyond_the_places_are_turned_away_and_counted() {
    let (upstream, beginnings, allow) = holding();
    let health = free_address();
    let settings = Setup {
        more: "limits: {concurrent_requests: 2}",
        decision_log: "{file: {path: decisions.ndjson, rotate_bytes: 16KiB}}".to_owned(),
        ..Setup::to(&upstream.address)
    };
    let text = format!("{}health: {{address: '{health}'}}\n", settings.text());
    let sidecar = settings.start_with(&text, Folder::new());
    let mut held: Vec<Connection> = (0..2)
        .map(|_| {
            let mut connection = sidecar.connect();
            connection.send(permitted_as("held"));
            beginnings.recv_timeout(CEILING).unwrap();
            connection
        })
        .collect();
    // The heads of both answers are there; their bodies are still under way.
    let before = sidecar.records().len();
    let mut connection = sidecar.connect();
    let table = [
        ("a request", permitted_as("shed")),
        ("one more on the same connection", permitted_as("shed")),
        ("one that would be denied", Head::denied("GET", SUBSCRIBER).with("X-Mark", "shed").end()),
        ("an upload", Head::permitted("POST", SUBSCRIBER).with("X-Mark", "shed").body("hello")),
    ];
    for (name, request) in &table {
        connection.send(request);
        let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
        let problem = answer.problem();
        assert_eq!((answer.status, problem["reason"].as_str()), (503, Some("overloaded")), "{name}");
        assert_eq!(problem["type"], "tag:dpa-sidecar.example,2026:reason/overloaded", "{name}");
        assert_eq!(
            (answer.value("retry-after"), answer.value("cache-control")),
            (Some("1"), Some("no-store")),
            "{name}"
        );
        // Nothing was decided, so there is no id of a decision.
        assert_eq!((answer.value("dpa-decision-id"), &problem["instance"]), (None, &Value::Null), "{name}");
    }
    let all = u64::try_from(table.len()).unwrap();
    wait_for("the sum", || (unread(&sidecar, "overloaded") == all).then_some(()));
    let decisions = |record: &&Value| record["event"] == "dpa.decision";
    assert_eq!(sidecar.records().iter().skip(before).filter(decisions).count(), 0);
    assert!(upstream.seen().iter().all(|seen| seen.head.value("x-mark") != Some("shed")));
    for (path, expected) in [("/livez", "ok\n"), ("/readyz", "ok\n")] {
        let mut probe = Connection::to(&health);
        probe.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let answer = probe.answer().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, expected), "{path}");
    }
    let mut scrape = Connection::to(&health);
    scrape.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let metrics = scrape.answer().unwrap().text();
    assert!(metrics.contains(&format!("dpa_requests_unread_total{{why=\"overloaded\"}} {all}")), "{metrics}");
    assert!(metrics.contains(&format!("dpa_requests_total{{listener=\"main\",status=\"5xx\"}} {all}")), "{metrics}");

    for connection in &mut held {
        allow.send(()).unwrap();
        assert_eq!(connection.answer().unwrap().text(), "held");
    }
    wait_for("a place", || (sidecar.ask(permitted()).status == 200).then_some(()));
    let stopped = sidecar.stop();
    assert_eq!(stopped.code, Some(0));
    let verified = run(&stopped.folder.file(""), &["audit", "verify", "decisions.ndjson"]);
    assert_eq!(verified.status.code(), Some(0), "{}", crate::support::out(&verified));
}

/// A caller that goes away gives its place back.
#[test]
fn a_place_is_free_again_when_its_caller_is_gone() {
    let (upstream, beginnings, allow) = holding();
    let setup = Setup { more: "limits: {concurrent_requests: 1}", ..Setup::to(&upstream.address) };
    let sidecar = setup.start();
    let mut connection = sidecar.connect();
    connection.send(permitted_as("held"));
    beginnings.recv_timeout(CEILING).unwrap();
    assert_eq!(sidecar.ask(permitted()).reason(), "overloaded");
    drop(connection);
    allow.send(()).unwrap();
    wait_for("a place", || (sidecar.ask(permitted()).status == 200).then_some(()));
}

#[test]
fn connections_beyond_the_limit_wait_for_one_to_end() {
    let upstream = Upstream::ok();
    // Each of the two workers holds a place for the connection that it waits for.
    let sidecar = Setup { more: "limits: {connections: 2}", ..Setup::to(&upstream.address) }.start();
    let ask = |connection: &mut Connection, mark: &str| {
        connection.send(permitted_as(mark));
        assert_eq!(connection.answer().unwrap().status, 200, "{mark}");
    };
    let mut open = [sidecar.connect(), sidecar.connect()];
    open.iter_mut().for_each(|connection| ask(connection, "open"));
    let mut waiting = sidecar.connect();
    waiting.send(permitted_as("waiting"));
    for _ in 0..20 {
        open.iter_mut().for_each(|connection| ask(connection, "open"));
    }
    assert!(upstream.seen().iter().all(|seen| seen.head.value("x-mark") == Some("open")), "it did not wait");
    drop(open);
    assert_eq!(waiting.answer().unwrap().status, 200);
}
