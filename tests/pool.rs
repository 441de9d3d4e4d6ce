//! Connections to the data service: how many, to where, and what happens while there is none.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use crate::support::Answer;
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

/// Its document and its outcome.
fn assert_unsent(name: &str, sidecar: &Sidecar, answer: &Answer, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{name}: {}", answer.text());
    assert_eq!(answer.value("retry-after"), (status == 503).then_some("1"), "{name}");
    assert_eq!(sidecar.decision(&answer.decision_id())["decision"], "permit", "{name}");
    let outcome = sidecar.outcome(&answer.decision_id());
    assert_eq!((&outcome["outcome"], &outcome["status"]), (&"not_forwarded".into(), &status.into()), "{name}");
}

/// Answers one request on each connection with `ok`: a probe may be kept, and hold nobody up.
fn serve(mut accept: impl FnMut() -> Box<dyn ReadWrite> + Send + 'static) {
    std::thread::spawn(move || {
        loop {
            let mut stream = accept();
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                    head.extend(byte);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            });
        }
    });
}

trait ReadWrite: std::io::Read + std::io::Write + Send {}
impl<S: std::io::Read + std::io::Write + Send> ReadWrite for S {}

#[test]
fn an_upstream_that_is_down_is_told_of_at_once_and_found_when_it_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut sidecar = Setup::to(&address.to_string()).start();
    for place in 0..3 {
        let answer = sidecar.ask(permitted());
        assert_unsent(&format!("failure {place}"), &sidecar, &answer, 502, "upstream_unavailable");
    }
    for place in 0..20 {
        let answer = sidecar.ask(permitted());
        assert_unsent(&format!("down {place}"), &sidecar, &answer, 503, "upstream_unavailable");
    }
    let listener = TcpListener::bind(address).unwrap();
    serve(move || Box::new(listener.accept().unwrap().0));
    wait_for("the upstream", || (sidecar.ask(permitted()).status == 200).then_some(()));
    // The answer may be read before the log is.
    let again = |log: String| log.contains("an upstream can be reached again").then_some(log);
    let log = wait_for("the turn in the log", || again(sidecar.stderr.text()));
    for line in ["an upstream cannot be reached", "an upstream can be reached again"] {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
    assert_eq!(log.matches("has no answer").count(), 3, "a line for each request: {log}");
    sidecar.is_sound();
}

/// Whoever connects hears nothing: the queue of the listener is full.
fn black_hole() -> (TcpListener, Vec<socket2::Socket>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap().into();
    let fill = |_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _in_progress = socket.connect(&address);
        socket
    };
    let filled = (0..8).map(fill).collect();
    (listener, filled)
}

#[test]
fn an_upstream_from_which_nothing_comes_holds_up_its_first_requests_only() {
    let (listener, filled) = black_hole();
    let address = listener.local_addr().unwrap().to_string();
    let mut sidecar = Setup { upstream_keys: ", connect_timeout: 300ms", ..Setup::to(&address) }.start();
    for _ in 0..3 {
        let answer = sidecar.ask(permitted());
        assert_unsent("no answer", &sidecar, &answer, 502, "upstream_unavailable");
    }
    let answer = sidecar.ask(permitted());
    assert_unsent("down", &sidecar, &answer, 503, "upstream_unavailable");
    drop(filled);
    serve(move || Box::new(listener.accept().unwrap().0));
    wait_for("the upstream", || (sidecar.ask(permitted()).status == 200).then_some(()));
    sidecar.is_sound();
}

/// Answers when it is told to, and says when it was asked.
fn held() -> (Upstream, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (asked, is_asked) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let goes = Mutex::new(goes);
    let upstream = Upstream::start(move |exchange| {
        asked.send(()).unwrap();
        goes.lock().unwrap().recv_timeout(CEILING).unwrap();
        exchange.ok("ok")
    });
    (upstream, is_asked, go)
}

#[test]
fn a_request_waits_a_bounded_time_for_a_connection() {
    let (upstream, is_asked, go) = held();
    let setup = Setup { upstream_keys: ", max_connections: 1, connect_timeout: 300ms", ..Setup::to(&upstream.address) };
    let mut sidecar = setup.start();
    let mut first = sidecar.connect();
    first.send(permitted());
    is_asked.recv_timeout(CEILING).unwrap();
    for _ in 0..2 {
        let answer = sidecar.ask(permitted());
        assert_unsent("all are in use", &sidecar, &answer, 503, "overloaded");
    }
    assert_eq!(upstream.seen().len(), 1);
    go.send(()).unwrap();
    assert_eq!(first.answer().unwrap().status, 200);
    go.send(()).unwrap();
    assert_eq!(sidecar.ask(permitted()).status, 200, "once it is free");
    sidecar.is_sound();
}

#[test]
fn more_requests_than_connections_are_all_served_in_turn() {
    for most in [1, 2] {
        let open = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let shared = Arc::clone(&open);
        let upstream = Upstream::start(move |exchange| {
            let now = shared.0.fetch_add(1, Ordering::SeqCst) + 1;
            shared.1.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(1));
            shared.0.fetch_sub(1, Ordering::SeqCst);
            exchange.ok("ok")
        });
        let upstream_keys = if most == 1 {
            ", max_connections: 1, connect_timeout: 10s"
        } else {
            ", max_connections: 2, connect_timeout: 10s"
        };
        let mut sidecar = Setup { upstream_keys, ..Setup::to(&upstream.address) }.start();
        // Both workers get some: the kernel gives each connection to one of them.
        let mut connections: Vec<Connection> = (0..20).map(|_| sidecar.connect()).collect();
        for round in 0..20 {
            connections.iter_mut().for_each(|connection| connection.send(permitted()));
            for connection in &mut connections {
                let answer = connection.answer().unwrap();
                assert_eq!(answer.status, 200, "{most}, round {round}: {}", answer.text());
            }
        }
        assert!(open.1.load(Ordering::SeqCst) <= most, "{open:?} at once, of {most}");
        sidecar.is_sound();
    }
}

#[test]
fn the_only_connection_moves_to_the_worker_that_needs_it() {
    let upstream = Upstream::ok();
    let setup = Setup { upstream_keys: ", max_connections: 1, connect_timeout: 10s", ..Setup::to(&upstream.address) };
    let sidecar = setup.start();
    for place in 0..50 {
        let answer = sidecar.ask(permitted());
        assert_eq!(answer.status, 200, "request {place}: {}", answer.text());
    }
}

#[test]
fn connections_are_used_again_until_they_were_idle_for_too_long() {
    let upstream = Upstream::ok();
    let setup = Setup { upstream_keys: ", idle_timeout: 300ms", ..Setup::to(&upstream.address) };
    let sidecar = setup.start();
    let mut connection = sidecar.connect();
    for _ in 0..3 {
        connection.send(permitted());
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    assert_eq!(upstream.last().connection, 0);
    std::thread::sleep(std::time::Duration::from_millis(400));
    connection.send(permitted());
    assert_eq!(connection.answer().unwrap().status, 200);
    assert_eq!(upstream.last().connection, 1);
}

#[test]
fn an_upstream_may_listen_on_a_unix_socket() {
    let folder = Folder::new();
    let path = folder.file("app.sock");
    let settings = Setup::to("unix:app.sock");
    let sidecar = settings.start_in(folder);
    let answer = sidecar.ask(permitted());
    assert_unsent("nobody is there", &sidecar, &answer, 502, "upstream_unavailable");
    let listener = UnixListener::bind(path).unwrap();
    serve(move || Box::new(listener.accept().unwrap().0));
    let answer = sidecar.ask(permitted());
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(sidecar.outcome(&answer.decision_id())["outcome"], "completed");
}

#[test]
fn a_route_has_a_response_timeout_of_its_own() {
    let upstream = Upstream::start(|exchange| {
        if exchange.head.line.contains("/v1/support") {
            return exchange.ok("ok");
        }
        exchange.until_closed();
        Then::Close
    });
    let setup = Setup::to(&upstream.address);
    let text = setup.text().replacen(
        "    purpose: {from: context}\n",
        "    purpose: {from: context}\n    response_timeout: 300ms\n",
        1,
    );
    let sidecar = setup.start_with(&text, Folder::new());
    let answer = sidecar.ask(permitted());
    assert_eq!((answer.status, answer.reason().as_str()), (504, "upstream_timeout"));
}

#[test]
fn an_upstream_that_stops_in_the_middle_of_its_answer_is_cut() {
    let (gone, is_gone) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
        for _ in 0..4 {
            // Together longer than the limit, which is for each of them.
            std::thread::sleep(std::time::Duration::from_millis(200));
            exchange.send("x");
        }
        exchange.until_closed();
        gone.send(()).unwrap();
        Then::Close
    });
    let mut sidecar = Setup { upstream_keys: ", response_timeout: 500ms", ..Setup::to(&upstream.address) }.start();
    let answer = sidecar.ask(permitted());
    assert_eq!((answer.status, answer.text().as_str(), answer.is_whole), (200, "xxxx", false));
    is_gone.recv_timeout(CEILING).unwrap();
    let outcome = sidecar.outcome(&answer.decision_id());
    assert_eq!((&outcome["outcome"], &outcome["response_bytes"]), (&"cut".into(), &4.into()));
    sidecar.is_sound();
}

#[test]
fn a_caller_that_reads_slowly_is_no_upstream_that_stalls() {
    let body = "x".repeat(16 << 20);
    let length = body.len();
    let upstream = Upstream::start(move |exchange| exchange.ok(&body));
    let sidecar = Setup { upstream_keys: ", response_timeout: 200ms", ..Setup::to(&upstream.address) }.start();
    let mut connection = sidecar.connect();
    connection.send(permitted());
    let (status, head) = connection.head().unwrap();
    assert_eq!((status, head.value("content-length")), (200, Some(length.to_string().as_str())));
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert_eq!(connection.bytes(length).len(), length);
}

#[test]
fn an_upstream_that_stops_taking_the_body_is_given_up() {
    let (gone, is_gone) = mpsc::channel();
    let (read, is_read) = mpsc::channel::<()>();
    let is_read = Mutex::new(is_read);
    let upstream = Upstream::start(move |exchange| {
        is_read.lock().unwrap().recv_timeout(CEILING).unwrap();
        exchange.until_closed();
        gone.send(()).unwrap();
        Then::Close
    });
    let sidecar = Setup { upstream_keys: ", response_timeout: 500ms", ..Setup::to(&upstream.address) }.start();
    let mut connection = sidecar.connect();
    let _cut = connection.try_send(Head::permitted("POST", SUBSCRIBER).body(&"x".repeat(32 << 20)));
    let outcome = sidecar.record("an outcome", |record| record["event"] == "dpa.outcome");
    assert_eq!((&outcome["outcome"], &outcome["status"]), (&"aborted".into(), &504.into()));
    read.send(()).unwrap();
    is_gone.recv_timeout(CEILING).unwrap();
}
