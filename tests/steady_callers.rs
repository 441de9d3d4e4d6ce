//! Callers that do nothing wrong, and what was once held against them; and those that hold what others need.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::permitted;

fn with(upstream: &Upstream, more: &'static str) -> Sidecar {
    Setup { more, ..Setup::to(&upstream.address) }.start()
}

/// The kernel tells of a slow reader's progress in bursts of 128 KiB: longer apart than `stall_timeout`.
#[test]
fn a_caller_that_read_slowly_and_steadily_was_reset() {
    const SIZE: usize = 640 << 10;
    const PIECE: usize = 5_000;
    let upstream = Upstream::start(|exchange| {
        exchange.body();
        exchange.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
        exchange.send(vec![b'x'; SIZE]);
        Then::Close
    });
    let sidecar = with(&upstream, "limits: {stall_timeout: 700ms}");
    let mut stream = TcpStream::connect(&sidecar.address).unwrap();
    stream.write_all(permitted().as_bytes()).unwrap();
    let (begin, mut all) = (Instant::now(), Vec::new());
    let mut piece = [0; PIECE];
    loop {
        let read = stream.read(&mut piece).unwrap_or_else(|error| panic!("{error} after {} bytes", all.len()));
        all.extend_from_slice(&piece[..read]);
        if all.len() >= SIZE {
            break;
        }
        std::thread::sleep(Duration::from_millis(40));
    }
    assert!(begin.elapsed() > Duration::from_secs(3), "this was to be slow");
    let outcome = sidecar.record("an outcome", |record| record["event"] == "dpa.outcome");
    assert_eq!(outcome["outcome"], "completed", "{outcome}");
}

/// hyper had the whole body, and yet the rest of it was waited for.
#[test]
fn a_repaired_request_was_cut_while_the_service_thought() {
    let upstream = Upstream::start(|exchange| {
        let body = exchange.body();
        std::thread::sleep(Duration::from_millis(1500));
        exchange.ok(body)
    });
    let sidecar = with(&upstream, "limits: {stall_timeout: 300ms}");
    let head = || Head::permitted("POST", SUBSCRIBER);
    let padded = format!("{}2", " ".repeat(80));
    let chunked = || head().with("Transfer-Encoding", "chunked").end();
    let table = [
        ("a zero before the length", head().with("Content-Length", "02").end() + "ok"),
        ("a long line with the length", head().with("Content-Length", &padded).end() + "ok"),
        ("a bare LF in the trailers", chunked() + "2\r\nok\r\n0\r\nA: b\n\r\n\r\n"),
        ("a bare LF before the trailers", chunked() + "2\r\nok\r\n0\r\n\nC: d\r\n\r\n"),
    ];
    for (name, request) in table {
        let mut connection = sidecar.connect();
        connection.send(request);
        let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{name}");
        assert!(connection.is_closed(), "{name}");
    }
    for (name, request) in [
        ("half of it", head().with("Content-Length", "02").end() + "o"),
        ("none of it", head().with("Content-Length", "02").end()),
        ("no end of the trailers", chunked() + "2\r\nok\r\n0\r\nA: b\n"),
    ] {
        let mut connection = sidecar.connect();
        connection.send(request);
        let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!(answer.status, 400, "{name}: waited for without end");
    }
}
