//! Callers that keep a connection waiting: each has a time, and nobody else is kept from anything.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use crate::support::CEILING;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::permitted;

/// How much an answer has that does not fit into the buffers in between.
const LARGE: usize = 16 << 20;

fn with(upstream: &Upstream, more: &'static str) -> Sidecar {
    Setup { more, ..Setup::to(&upstream.address) }.start()
}

/// Writes one byte at a time until the other side has had enough.
fn drip(stream: &mut TcpStream, bytes: &[u8]) {
    use std::io::Write as _;
    let begin = Instant::now();
    for byte in bytes.iter().cycle() {
        assert!(begin.elapsed() < CEILING, "a trickle was waited for without end");
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn timed_out(sidecar: &Sidecar) -> u64 {
    sidecar.records().iter().filter_map(|record| record["timed_out"].as_u64()).sum()
}

fn aborted(sidecar: &Sidecar) -> serde_json::Value {
    sidecar.record("an outcome", |record| record["outcome"] == "aborted")
}

#[test]
fn a_head_has_its_time_from_its_first_byte_and_idleness_another() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {header_timeout: 300ms, idle_timeout: 1h}");
    let mut fresh = sidecar.connect();
    let mut used = sidecar.connect();
    used.send(permitted());
    assert_eq!(used.answer().unwrap().status, 200);

    for part in ["GET ", "\r\n", "GET / HTTP/1.1\r\nHost: data.exa", "GET / HTTP/1.1\r\nHost: a\r\n"] {
        let mut slow = sidecar.connect();
        slow.send(part);
        assert!(slow.is_closed(), "{part:?} is still waited for");
    }
    let mut slow = sidecar.connect();
    slow.send(permitted() + "GET ");
    assert_eq!(slow.answer().unwrap().status, 200);
    assert!(slow.is_closed(), "the head behind a request is still waited for");

    for (name, idle) in [("fresh", &mut fresh), ("used", &mut used)] {
        idle.send(permitted());
        let answer =
            idle.answer().unwrap_or_else(|| panic!("a {name} connection was closed before it was idle too long"));
        assert_eq!(answer.status, 200);
    }
    crate::support::wait_for("the count", || (timed_out(&sidecar) == 5).then_some(()));
}

#[test]
fn a_head_that_trickles_is_not_waited_for() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {header_timeout: 300ms}");
    let mut stream = TcpStream::connect(&sidecar.address).unwrap();
    drip(&mut stream, b"GET /");
    sidecar.unread("timed_out");
    assert!(upstream.seen().is_empty());
}

#[test]
fn an_idle_connection_is_closed_after_its_time() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {idle_timeout: 300ms}");
    let mut fresh = sidecar.connect();
    let mut used = sidecar.connect();
    used.send(permitted());
    assert_eq!(used.answer().unwrap().status, 200);
    assert!(fresh.is_closed() && used.is_closed());
    assert_eq!(timed_out(&sidecar), 0);
}

#[test]
fn a_body_that_stands_still_or_trickles_is_not_waited_for() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {stall_timeout: 300ms}");
    let sized = Head::permitted("POST", SUBSCRIBER).with("Content-Length", "1000000").end();
    let chunked = Head::permitted("POST", SUBSCRIBER).with("Transfer-Encoding", "chunked").end();
    let refused = Head::denied("POST", SUBSCRIBER).with("Content-Length", "1000000").end();
    let table = [
        ("stands still", sized.clone() + "begin", "", 400),
        ("stands still in a chunk's size", chunked.clone() + "5", "", 400),
        ("trickles", sized, "x", 400),
        ("trickles in chunks", chunked, "1\r\nx\r\n", 400),
        ("is refused and stands still", refused.clone(), "", 403),
        ("is refused and trickles", refused, "x", 403),
    ];
    for (name, head, more, status) in table {
        let mut connection = sidecar.connect();
        connection.send(head);
        if !more.is_empty() {
            let begin = Instant::now();
            while connection.try_send(more).is_ok() {
                assert!(begin.elapsed() < CEILING, "{name}: it is waited for without end");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        assert!(connection.is_closed(), "{name}");
        if status == 400 {
            let outcome = sidecar.outcome(&answer.decision_id());
            assert_eq!((&outcome["outcome"], &outcome["status"]), (&"aborted".into(), &400.into()), "{name}");
        }
    }
    assert!(upstream.seen().iter().all(|seen| seen.body.len() < 1_000_000));
    sidecar.still_serves();
}

#[test]
fn how_much_of_a_body_has_to_move_is_a_setting() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {stall_timeout: 400ms, stall_bytes: 1}");
    let mut connection = sidecar.connect();
    connection.send(Head::permitted("POST", SUBSCRIBER).with("Content-Length", "40").end());
    let begin = Instant::now();
    for _ in 0..40 {
        connection.send("x");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begin.elapsed() > Duration::from_millis(400), "this was to take longer than the limit");
    assert_eq!(connection.answer().unwrap().status, 200);
    connection.send(Head::permitted("POST", SUBSCRIBER).with("Content-Length", "40").end() + "x");
    assert_eq!(connection.answer().unwrap().status, 400);
}

#[test]
fn who_waits_for_the_service_is_not_late() {
    const SIZE: usize = 8 << 20;
    let (go_on, goes_on) = mpsc::channel::<()>();
    let goes_on = Mutex::new(goes_on);
    let upstream = Upstream::start(move |exchange| {
        goes_on.lock().unwrap().recv_timeout(CEILING).unwrap();
        let body = exchange.body();
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
        goes_on.lock().unwrap().recv_timeout(CEILING).unwrap();
        exchange.send("0\r\n\r\n");
        assert_eq!(body.len(), SIZE);
        Then::Keep
    });
    let sidecar = with(&upstream, "limits: {header_timeout: 200ms, idle_timeout: 200ms, stall_timeout: 200ms}");
    let mut connection = sidecar.connect();
    connection.send(Head::permitted("POST", SUBSCRIBER).with("Content-Length", &SIZE.to_string()).end());
    let address = sidecar.address.clone();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| connection.send(vec![b'x'; SIZE]));
        // Longer than any of them: neither the body that the service does not take nor the answer that it does not
        // give is the caller's fault.
        std::thread::sleep(Duration::from_millis(700));
        go_on.send(()).unwrap();
        sending.join().unwrap();
    });
    assert_eq!(connection.head().unwrap().0, 200, "{address}");
    std::thread::sleep(Duration::from_millis(700));
    go_on.send(()).unwrap();
    assert_eq!(connection.bytes(12), b"2\r\nok\r\n0\r\n\r\n");
}

#[test]
fn an_answer_that_is_not_taken_or_trickles_out_is_cut() {
    let upstream = Upstream::start(|exchange| {
        exchange.body();
        exchange.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"));
        exchange.send(vec![b'x'; LARGE]);
        Then::Close
    });
    for (name, trickles) in [("not taken", false), ("trickles out", true)] {
        let sidecar = with(&upstream, "limits: {stall_timeout: 300ms}");
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let address: std::net::SocketAddr = sidecar.address.parse().unwrap();
        socket.connect(&address.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        std::io::Write::write_all(&mut stream, permitted().as_bytes()).unwrap();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            let mut reader = stream.try_clone().unwrap();
            let is_over = &is_over;
            scope.spawn(move || {
                while trickles && !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let _reset = reader.read(&mut [0]);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let outcome = aborted(&sidecar);
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            outcome
        });
        assert_eq!(outcome["status"], 200, "{name}");
        assert!(outcome["response_bytes"].as_u64() < u64::try_from(LARGE / 4).ok(), "{name}: {outcome}");
        let mut rest = Vec::new();
        let _reset = stream.read_to_end(&mut rest);
        assert!(rest.len() < LARGE / 4, "{name}: {} bytes were kept for it", rest.len());
        sidecar.still_serves();
    }
}
