//! Callers that do nothing wrong, and what was once held against them; and those that hold what others need.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use crate::support::CEILING;
use crate::support::Connection;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::permitted;
use crate::support::wait_for;

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

#[test]
fn idle_connections_to_the_health_port_took_every_descriptor() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "prlimit is missing");
        return;
    }
    let upstream = Upstream::ok();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let wrapper = ["prlimit", "--nofile=160:160"].map(str::to_owned).to_vec();
    let setup = Setup { wrapper, ..Setup::to(&upstream.address) };
    let text = format!("{}health: {{address: '{address}'}}\n", setup.text());
    let sidecar = setup.start_with(&text, Folder::new());
    let mut crowd: Vec<Connection> = (0..200).map(|_| Connection::to(&address)).collect();
    for connection in &mut crowd[..150] {
        assert!(connection.is_closed(), "an old one is kept");
    }
    let mut callers: Vec<Connection> = (0..10).map(|_| sidecar.connect()).collect();
    for caller in &mut callers {
        caller.send(permitted());
        assert_eq!(caller.answer().unwrap().status, 200);
    }
    let mut probe = Connection::to(&address);
    probe.send("GET /livez HTTP/1.1\r\nHost: pod\r\n\r\n");
    assert_eq!(probe.answer().unwrap().status, 200);
    for connection in &mut crowd {
        assert!(connection.is_closed(), "one that says nothing is kept");
    }
    assert!(!sidecar.stderr.text().contains("cannot accept"), "{}", sidecar.stderr.text());
}

#[test]
fn a_connection_that_said_nothing_held_the_drain_to_its_end() {
    let (asked, is_asked) = mpsc::channel();
    let (allow, allowed) = mpsc::channel::<()>();
    let allowed = Mutex::new(allowed);
    let upstream = Upstream::start(move |exchange| {
        asked.send(()).unwrap();
        allowed.lock().unwrap().recv_timeout(CEILING).unwrap();
        exchange.ok("late")
    });
    let mut sidecar = with(&upstream, "");
    let mut begun = sidecar.connect();
    begun.send("GET / HTTP/1.1\r\nHo");
    let mut busy = sidecar.connect();
    busy.send(permitted());
    is_asked.recv_timeout(CEILING).unwrap();
    assert!(Command::new("kill").arg(sidecar.id().to_string()).status().unwrap().success());
    wait_for("the drain", || sidecar.stderr.text().contains("stopping").then_some(()));
    let mut silent = sidecar.connect();
    let mut half = sidecar.connect();
    half.send("GET / HTTP/1.1\r\nHo");
    // Each read waits less long than the limits of a head and of idleness.
    assert!(begun.is_closed(), "a head that began before is waited for");
    assert!(silent.is_closed(), "one that says nothing is waited for");
    assert!(half.is_closed(), "a head is waited for");
    allow.send(()).unwrap();
    assert_eq!(busy.answer().unwrap().status, 200);
    assert_eq!(sidecar.ended(), Some(0));
    assert!(!sidecar.stderr.text().contains("were cut"), "{}", sidecar.stderr.text());
}

#[test]
fn a_caller_that_was_gone_in_an_upload_nobody_took_was_not_noticed() {
    let (done, is_done) = mpsc::channel::<()>();
    let is_done = Mutex::new(is_done);
    let upstream = Upstream::start(move |_exchange| {
        let _over = is_done.lock().unwrap().recv_timeout(3 * CEILING);
        Then::Close
    });
    let sidecar = with(&upstream, "limits: {stall_timeout: 300ms}");
    let mut stream = TcpStream::connect(&sidecar.address).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let head = Head::permitted("POST", SUBSCRIBER).with("Content-Length", &(64 << 20).to_string()).end();
    stream.write_all(head.as_bytes()).unwrap();
    while stream.write(&[b'x'; 65536]).is_ok() {}
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let outcome = sidecar.record("an outcome", |record| record["event"] == "dpa.outcome");
    assert_eq!(outcome["outcome"], "aborted", "{outcome}");
    done.send(()).unwrap();
}
