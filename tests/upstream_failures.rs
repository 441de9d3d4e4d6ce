//! A data service that fails, in every way it can.

use std::net::TcpListener;
use std::sync::mpsc;

use crate::support::Answer;
use crate::support::CEILING;
use crate::support::Exchange;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::permitted;

/// The document, its record and its outcome.
fn assert_failed(name: &str, sidecar: &Sidecar, answer: &Answer, status: u16, outcome: &str) {
    assert_eq!(answer.status, status, "{name}: {}", answer.text());
    let problem = answer.problem();
    let reason = if status == 504 { "upstream_timeout" } else { "upstream_unavailable" };
    assert_eq!(problem["reason"], reason, "{name}");
    assert_eq!(problem["type"], format!("tag:dpa-sidecar.example,2026:reason/{reason}"), "{name}");
    assert_eq!(problem["instance"], format!("urn:uuid:{}", answer.decision_id()), "{name}");
    assert_eq!(sidecar.decision(&answer.decision_id())["decision"], "permit", "{name}");
    let record = sidecar.outcome(&answer.decision_id());
    assert_eq!((&record["outcome"], &record["status"]), (&outcome.into(), &status.into()), "{name}: {record}");
}

/// An address at which nobody listens.
fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn an_upstream_that_refuses() {
    let mut sidecar = Setup::to(&nowhere()).start();
    for _ in 0..2 {
        let answer = sidecar.ask(permitted());
        assert_failed("refused", &sidecar, &answer, 502, "not_forwarded");
    }
    sidecar.is_sound();
}

#[test]
fn an_upstream_whose_name_nobody_knows() {
    let mut sidecar = Setup { upstream_keys: ", connect_timeout: 5s", ..Setup::to("no-such-host.invalid:80") }.start();
    let answer = sidecar.ask(permitted());
    assert_failed("unknown", &sidecar, &answer, 502, "not_forwarded");
    sidecar.is_sound();
}

type Serve = fn(&mut Exchange<'_>) -> Then;

#[test]
fn an_upstream_that_breaks_off_before_it_answers() {
    let table: [(&str, Serve); 11] = [
        ("closes", |_| Then::Close),
        ("resets", |_| Then::Reset),
        ("says garbage", |exchange| say(exchange, "this is no HTTP\r\n\r\n")),
        ("says nothing but a line", |exchange| say(exchange, "HTTP/1.1 200 OK\r\n")),
        ("closes in the middle of a header", |exchange| say(exchange, "HTTP/1.1 200 OK\r\nContent-Le")),
        ("has a status that is none", |exchange| say(exchange, "HTTP/1.1 abc OK\r\n\r\n")),
        ("has two lengths", |exchange| {
            say(exchange, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!")
        }),
        ("has a NUL in a header", |exchange| say(exchange, "HTTP/1.1 200 OK\r\nX-A: a\0b\r\n\r\n")),
        ("switches protocols unasked", |exchange| {
            say(exchange, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        }),
        ("says 100 and closes", |exchange| say(exchange, "HTTP/1.1 100 Continue\r\n\r\n")),
        ("sends a head without an end", |exchange| {
            exchange.body();
            exchange.send("HTTP/1.1 200 OK\r\n");
            for _ in 0..200 {
                exchange.send(format!("X-A: {}\r\n", "a".repeat(4_000)));
            }
            Then::Close
        }),
    ];
    for (name, serve) in table {
        let upstream = Upstream::start(serve);
        let mut sidecar = Setup::to(&upstream.address).start();
        let answer = sidecar.ask(permitted());
        assert_failed(name, &sidecar, &answer, 502, "aborted");
        assert_eq!(upstream.seen().len(), 1, "{name}: it was asked twice");
        let answer = sidecar.ask(Head::permitted("POST", SUBSCRIBER).body("hello"));
        assert_failed(name, &sidecar, &answer, 502, "aborted");
        assert_eq!(upstream.seen().len(), 2, "{name}: it was asked twice");
        sidecar.is_sound();
    }
}

fn say(exchange: &mut Exchange<'_>, text: &str) -> Then {
    exchange.body();
    exchange.send(text);
    Then::Close
}

#[test]
fn informational_answers_are_not_taken_for_the_answer() {
    let upstream = Upstream::start(|exchange| {
        exchange.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
        exchange.ok("ok")
    });
    let sidecar = Setup::to(&upstream.address).start();
    let answer = sidecar.ask(permitted());
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
}

#[test]
fn an_upstream_that_closes_in_the_middle_of_a_body() {
    let table: [(&str, Serve); 4] = [
        ("of a length, by a close", |exchange| say(exchange, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")),
        ("of a length, by a reset", |exchange| {
            exchange.body();
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
            Then::Reset
        }),
        ("of chunks", |exchange| say(exchange, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")),
        ("by garbage", |exchange| {
            say(exchange, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
        }),
    ];
    for (name, serve) in table {
        let upstream = Upstream::start(serve);
        let mut sidecar = Setup::to(&upstream.address).start();
        let mut connection = sidecar.connect();
        connection.send(permitted());
        // A reset may overtake the head.
        if let Some(answer) = connection.answer() {
            if answer.status == 502 {
                assert_failed(name, &sidecar, &answer, 502, "aborted");
            } else {
                assert_eq!((answer.status, answer.is_whole), (200, false), "{name}: {answer:?}");
                assert!(connection.is_closed(), "{name}");
                let outcome = sidecar.outcome(&answer.decision_id());
                assert_eq!((&outcome["outcome"], &outcome["status"]), (&"aborted".into(), &200.into()), "{name}");
                assert_eq!(outcome["response_bytes"].as_u64(), u64::try_from(answer.body.len()).ok(), "{name}");
            }
        } else {
            sidecar.record(name, |record| record["event"] == "dpa.outcome" && record["outcome"] == "aborted");
        }
        sidecar.is_sound();
    }
}

#[test]
fn an_upstream_that_never_answers() {
    let (gone, is_gone) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        exchange.until_closed();
        gone.send(()).unwrap();
        Then::Close
    });
    let setup = Setup { upstream_keys: ", response_timeout: 300ms", ..Setup::to(&upstream.address) };
    let mut sidecar = setup.start();
    let answer = sidecar.ask(permitted());
    assert_failed("never", &sidecar, &answer, 504, "aborted");
    is_gone.recv_timeout(CEILING).unwrap();
    let answer = sidecar.ask(Head::permitted("POST", SUBSCRIBER).body("hello"));
    assert_failed("never, with a body", &sidecar, &answer, 504, "aborted");
    sidecar.is_sound();
}

#[test]
fn a_caller_that_goes_away_is_an_aborted_exchange() {
    let (asked, is_asked) = mpsc::channel();
    let (gone, is_gone) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        asked.send(()).unwrap();
        exchange.until_closed();
        gone.send(()).unwrap();
        Then::Close
    });
    let mut sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    connection.send(permitted());
    is_asked.recv_timeout(CEILING).unwrap();
    drop(connection);
    is_gone.recv_timeout(CEILING).unwrap();
    let outcome = sidecar.record("an outcome", |record| record["event"] == "dpa.outcome");
    assert_eq!(outcome["outcome"], "aborted");
    assert_eq!(outcome["status"].as_u64(), None);
    sidecar.is_sound();
}

#[test]
fn an_upstream_that_closed_its_idle_connection_is_asked_on_another() {
    let (closed, is_closed) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        exchange.ok("ok");
        closed.send(()).unwrap();
        Then::Close
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    for place in 0..20 {
        connection.send(permitted());
        let answer = connection.answer().unwrap();
        assert_eq!(answer.status, 200, "request {place}: {}", answer.text());
        is_closed.recv_timeout(CEILING).unwrap();
        // The thread that sent this closes next; the answer of the next request waits for its own.
        let mut other = sidecar.connect();
        other.send(crate::support::denied());
        assert_eq!(other.answer().unwrap().status, 403);
    }
    assert_eq!(upstream.seen().len(), 20);
}

#[test]
fn after_a_failure_the_next_request_goes_through() {
    let (turn, turns) = mpsc::channel();
    let turns = std::sync::Mutex::new(turns);
    let upstream = Upstream::start(move |exchange| {
        if turns.lock().unwrap().recv_timeout(CEILING).unwrap() { exchange.ok("ok") } else { Then::Reset }
    });
    let mut sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    for is_good in [true, false, true, false, false, true] {
        turn.send(is_good).unwrap();
        connection.send(permitted());
        let answer = connection.answer().unwrap();
        assert_eq!(answer.status, if is_good { 200 } else { 502 });
    }
    sidecar.is_sound();
}

#[test]
fn a_connection_that_the_upstream_stopped_reading_held_up_the_next_request() {
    use std::io::BufRead as _;
    use std::io::BufReader;
    use std::io::Write as _;

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap_or(0) > 2 {
                line.clear();
            }
            // It answers in full, and neither reads the body nor closes.
            (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            open.push((stream, reader));
        }
    });
    let sidecar = Setup { upstream_keys: ", response_timeout: 500ms", ..Setup::to(&address) }.start();
    for megabytes in [1, 2, 3, 4, 3, 2] {
        let mut connection = sidecar.connect();
        // Whether all of it can be sent depends on the buffers of the machine, and does not matter.
        let _cut = connection.try_send(Head::permitted("POST", SUBSCRIBER).body(&"x".repeat(megabytes << 20)));
        let _answer = connection.answer();
        let answer = sidecar.ask(permitted());
        // On a connection that looks well and that nobody reads from, only the time tells.
        assert!(matches!(answer.status, 200 | 504), "after {megabytes} MiB: {}", answer.text());
    }
}

#[test]
fn a_head_of_an_answer_that_is_too_large() {
    let head_of = |bytes: usize| {
        Upstream::start(move |exchange| {
            exchange.body();
            exchange.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: {}\r\n\r\nok", "a".repeat(bytes)));
            Then::Keep
        })
    };
    let table = [
        ("within the default", 12 * 1024, "", 200),
        ("over it", 20 * 1024, "", 502),
        ("within what is set", 20 * 1024, ", header_bytes: 32KiB", 200),
        ("over what is set", 12 * 1024, ", header_bytes: 8KiB", 502),
    ];
    for (name, bytes, upstream_keys, status) in table {
        let upstream = head_of(bytes);
        let mut sidecar = Setup { upstream_keys, ..Setup::to(&upstream.address) }.start();
        let answer = sidecar.ask(permitted());
        match status {
            200 => assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{name}"),
            _ => assert_failed(name, &sidecar, &answer, status, "aborted"),
        }
        sidecar.is_sound();
    }
}
