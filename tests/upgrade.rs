//! Connections that switch protocols: who may, what passes, how they end.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::CEILING;
use crate::support::Connection;
use crate::support::Exchange;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::wait_for;

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A sidecar whose first route has these keys as well.
fn start(setup: &Setup, keys: &str) -> Sidecar {
    let text = setup.text();
    let (before, after) = text.split_once("    purpose: {from: context}\n").unwrap();
    setup.start_with(&format!("{before}    purpose: {{from: context}}\n{keys}{after}"), Folder::new())
}

const WEBSOCKET: &str = "    upgrade: [websocket]\n";

fn handshake() -> Head {
    Head::permitted("GET", SUBSCRIBER)
        .with("Connection", "keep-alive, Upgrade")
        .with("Upgrade", "websocket")
        .with("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .with("Sec-WebSocket-Version", "13")
}

fn bytes_of(record: &serde_json::Value) -> (Option<u64>, Option<u64>) {
    (record["request_bytes"].as_u64(), record["response_bytes"].as_u64())
}

#[test]
fn bytes_pass_both_ways_and_only_after_the_upstream_has_switched() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (asked, is_asked) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let upstream = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let early = stream.read(&mut [0]);
        asked.send((String::from_utf8(head).unwrap(), early.is_err())).unwrap();
        stream.set_read_timeout(Some(CEILING)).unwrap();
        goes.recv_timeout(CEILING).unwrap();
        // In one piece with what follows.
        stream.write_all(format!("{SWITCHED}hello").as_bytes()).unwrap();
        let mut text = [0; 5];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"early");
        stream.write_all(b"echo").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the caller said that it is done");
        stream.write_all(b"bye").unwrap();
    });
    let sidecar = start(&Setup::to(&address), WEBSOCKET);
    let mut connection = sidecar.connect();
    connection.send(handshake().end() + "early");
    let (head, nothing_came) = is_asked.recv_timeout(CEILING).unwrap();
    assert!(nothing_came, "something passed before the upstream switched");
    let lines: Vec<String> = head.lines().map(str::to_ascii_lowercase).collect();
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"] {
        assert!(lines.iter().any(|it| it == line), "no `{line}`: {head}");
    }
    // Before anything moves.
    let record = sidecar.records().into_iter().find(|record| record["event"] == "dpa.decision");
    assert_eq!(record.unwrap()["decision"], "permit");
    go.send(()).unwrap();

    let (status, head) = connection.head().unwrap();
    assert_eq!((status, head.value("upgrade"), head.value("connection")), (101, Some("websocket"), Some("upgrade")));
    assert_eq!(head.value("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    let id = head.value("dpa-decision-id").unwrap().to_owned();
    assert_eq!(connection.bytes(9), b"helloecho");
    connection.finish();
    assert_eq!(connection.bytes(3), b"bye");
    assert!(connection.is_closed());
    upstream.join().unwrap();
    let outcome = sidecar.outcome(&id);
    assert_eq!((&outcome["outcome"], &outcome["status"]), (&"completed".into(), &101.into()));
    assert_eq!(bytes_of(&outcome), (Some(5), Some(12)));
}

#[test]
fn what_is_no_upgrade_that_the_route_lists_goes_on_as_an_ordinary_request() {
    let upstream = Upstream::ok();
    let sidecar = start(&Setup::to(&upstream.address), WEBSOCKET);
    let with = |connection: &str, protocol: &str| {
        Head::permitted("GET", SUBSCRIBER).with("Connection", connection).with("Upgrade", protocol)
    };
    let elsewhere = "/v1/usage/today";
    let table = [
        ("HTTP/2 in clear", with("Upgrade, HTTP2-Settings", "h2c").with("HTTP2-Settings", "AAMAAABk").end()),
        ("a protocol that is not listed", with("upgrade", "tcp").end()),
        ("`Connection` does not say so", with("keep-alive", "websocket").end()),
        ("a body behind it", with("upgrade", "websocket").body("hello")),
        ("HTTP/1.0", with("upgrade", "websocket").end().replacen("HTTP/1.1", "HTTP/1.0", 1)),
        (
            "a route that lists none",
            Head::permitted("GET", elsewhere)
                .with("DPA-Context", "customer=redwood-strand, purpose=customer_support")
                .with("Connection", "upgrade")
                .with("Upgrade", "websocket")
                .end()
                .replacen("DPA-Context: purpose=customer_support\r\n", "", 1),
        ),
    ];
    for (place, (name, request)) in table.into_iter().enumerate() {
        let answer = sidecar.ask(request);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(upstream.seen().len(), place + 1, "{name}");
        let seen = upstream.last();
        assert_eq!((seen.head.value("upgrade"), seen.head.value("connection")), (None, None), "{name}");
        assert_eq!(seen.head.value("http2-settings"), None, "{name}");
    }
    let answer = sidecar.ask(with("upgrade", "h2c, WebSocket, tcp").end());
    assert_eq!(answer.status, 200);
    assert_eq!(upstream.last().head.value("upgrade"), Some("websocket"), "of several, the one that is listed");
}

#[test]
fn an_upstream_switches_to_what_it_was_offered_or_not_at_all() {
    let table = [
        ("to another protocol", "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", 502),
        ("to several", "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n", 502),
        ("to none", "HTTP/1.1 101 S\r\nConnection: upgrade\r\n\r\n", 502),
        ("not at all", "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n", 426),
    ];
    for (name, says, status) in table {
        let upstream = Upstream::saying(says.as_bytes());
        let sidecar = start(&Setup::to(&upstream.address), WEBSOCKET);
        let answer = sidecar.ask(handshake().end());
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        let outcome = sidecar.outcome(&answer.decision_id());
        let expected = if status == 502 { "aborted" } else { "completed" };
        assert_eq!((&outcome["outcome"], &outcome["status"]), (&expected.into(), &status.into()), "{name}");
    }
}

#[test]
fn an_upgrade_that_is_denied_reaches_nobody() {
    let upstream = Upstream::ok();
    let sidecar = start(&Setup::to(&upstream.address), WEBSOCKET);
    let request = handshake().end().replacen("purpose=customer_support", "purpose=customer_analytics", 1);
    let answer = sidecar.ask(request + "early");
    assert_eq!(answer.status, 403);
    assert_eq!(upstream.seen().len(), 0);
}

/// Switches, says `up`, and does the rest.
fn switching(then: impl Fn(&mut Exchange<'_>) -> Then + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |exchange| {
        exchange.send(format!("{SWITCHED}up"));
        then(exchange)
    })
}

/// An open tunnel, and its decision.
fn tunnel(sidecar: &Sidecar) -> (Connection, String) {
    let mut connection = sidecar.connect();
    connection.send(handshake().end());
    let (status, head) = connection.head().unwrap();
    assert_eq!(status, 101, "{head:?}");
    assert_eq!(connection.bytes(2), b"up");
    (connection, head.value("dpa-decision-id").unwrap().to_owned())
}

fn assert_ended(name: &str, sidecar: &Sidecar, id: &str, expected: &str) {
    let outcome = sidecar.outcome(id);
    assert_eq!((&outcome["outcome"], &outcome["status"]), (&expected.into(), &101.into()), "{name}");
    assert_eq!(bytes_of(&outcome), (Some(4), Some(2)), "{name}");
}

#[test]
fn each_end_of_a_tunnel_is_recorded() {
    type Row = (&'static str, fn(Connection), fn(&mut Exchange<'_>) -> Then, &'static str);
    let table: [Row; 4] = [
        ("the upstream closes, and so does the caller", until_closed, |_| Then::Close, "completed"),
        ("the caller closes, and so does the upstream", drop, closing, "completed"),
        ("the upstream resets", until_closed, |_| Then::Reset, "aborted"),
        ("nobody says anything any more", until_closed, closing, "cut"),
    ];
    for (name, caller, upstream, expected) in table {
        let (gone, is_gone) = mpsc::channel();
        let upstream = switching(move |exchange| {
            exchange.bytes(4);
            let then = upstream(exchange);
            gone.send(()).unwrap();
            then
        });
        let more = if expected == "cut" { "limits: {tunnel_idle_timeout: 300ms}" } else { "" };
        let mut sidecar = start(&Setup { more, ..Setup::to(&upstream.address) }, WEBSOCKET);
        let (mut connection, id) = tunnel(&sidecar);
        connection.send("data");
        caller(connection);
        is_gone.recv_timeout(CEILING).unwrap();
        assert_ended(name, &sidecar, &id, expected);
        sidecar.is_sound();
    }
}

fn until_closed(mut connection: Connection) {
    assert!(connection.is_closed());
}

fn closing(exchange: &mut Exchange<'_>) -> Then {
    exchange.until_closed();
    Then::Close
}

#[test]
fn a_drain_waits_for_tunnels_and_cuts_them_then() {
    let upstream = switching(|exchange| {
        exchange.bytes(4);
        exchange.send("late");
        closing(exchange)
    });
    let setup = Setup { more: "drain_timeout: 1s", ..Setup::to(&upstream.address) };
    let sidecar = start(&setup, WEBSOCKET);
    let (mut connection, id) = tunnel(&sidecar);
    let stopping = std::process::Command::new("kill").arg(sidecar.id().to_string()).status().unwrap();
    assert!(stopping.success());
    wait_for("the drain", || sidecar.stderr.text().contains("stopping").then_some(()));
    connection.send("data");
    assert_eq!(connection.bytes(4), b"late", "it goes on while others are waited for");
    assert!(connection.is_closed());
    let outcome = sidecar.outcome(&id);
    assert_eq!((&outcome["outcome"], &outcome["status"]), (&"cut".into(), &101.into()));
    assert_eq!(bytes_of(&outcome), (Some(4), Some(6)));
}

#[test]
fn what_the_upstream_does_not_take_is_not_taken_from_the_caller() {
    const MOST: usize = 64 << 20;
    let (go, goes) = mpsc::channel::<()>();
    let goes = std::sync::Mutex::new(goes);
    let (sum, sums) = mpsc::channel();
    let upstream = switching(move |exchange| {
        goes.lock().unwrap().recv_timeout(CEILING).unwrap();
        let read = exchange.until_closed();
        sum.send(read).unwrap();
        Then::Close
    });
    let sidecar = start(&Setup::to(&upstream.address), WEBSOCKET);
    let (status, mut stream) = raw(&sidecar);
    assert_eq!(status, "HTTP/1.1 101");
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let piece = vec![b'x'; 64 * 1024];
    let mut written = 0;
    while written < MOST {
        match stream.write(&piece) {
            Ok(more) => written += more,
            Err(_full) => break,
        }
    }
    assert!(written < MOST, "somebody took {written} bytes that the upstream did not read");
    go.send(()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(sums.recv_timeout(CEILING).unwrap(), written);
}

/// A switched connection as a plain stream.
fn raw(sidecar: &Sidecar) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(&sidecar.address).unwrap();
    stream.write_all(handshake().end().as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\nup") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    (String::from_utf8(head).unwrap()[..12].to_owned(), stream)
}
