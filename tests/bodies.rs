//! Bodies: how large they may be, and what they cost on the way.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc;

use crate::support::CEILING;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::permitted;

/// A sidecar whose first route takes no more than 1 KiB.
fn limited(upstream: &Upstream) -> Sidecar {
    let setup = Setup::to(&upstream.address);
    let (key, with) = ("    purpose: {from: context}\n", "    purpose: {from: context}\n    body_limit: 1KiB\n");
    setup.start_with(&setup.text().replacen(key, with, 1), Folder::new())
}

fn chunks(of: &[usize]) -> String {
    let pieces: String = of.iter().map(|size| format!("{size:x}\r\n{}\r\n", "x".repeat(*size))).collect();
    Head::permitted("POST", SUBSCRIBER).with("Transfer-Encoding", "chunked").end() + &pieces + "0\r\n\r\n"
}

#[test]
fn a_body_is_as_large_as_its_route_allows() {
    let upstream = Upstream::start(|exchange| exchange.ok("ok"));
    let sidecar = limited(&upstream);
    let length = |size: usize| Head::permitted("POST", SUBSCRIBER).body(&"x".repeat(size));
    let table = [
        ("a length at the limit", length(1024), 200, "completed"),
        ("a length over it", length(1025), 413, "not_forwarded"),
        ("a length far over it", length(1 << 20), 413, "not_forwarded"),
        ("chunks at the limit", chunks(&[1000, 24]), 200, "completed"),
        ("a chunk over it", chunks(&[1025]), 413, "cut"),
        ("chunks over it", chunks(&[1000, 1000, 1000]), 413, "cut"),
        ("chunks far over it", chunks(&[1000, 60_000]), 413, "cut"),
    ];
    for (name, request, status, expected) in table {
        let answer = sidecar.ask(request);
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(sidecar.decision(&answer.decision_id())["decision"], "permit", "{name}");
        let outcome = sidecar.outcome(&answer.decision_id());
        assert_eq!((&outcome["outcome"], &outcome["status"]), (&expected.into(), &status.into()), "{name}");
        assert!(outcome["request_bytes"].as_u64() <= Some(1024), "{name}: {outcome}");
        if status == 413 {
            assert_eq!(answer.reason(), "request_too_large", "{name}");
        }
    }
    assert!(upstream.seen().iter().all(|seen| seen.body.len() <= 1024));
}

#[test]
fn a_body_that_grows_too_large_is_a_broken_one_to_the_upstream() {
    let (ended, ends) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        let (_, is_whole) = exchange.body_and_end();
        ended.send(is_whole).unwrap();
        Then::Close
    });
    let sidecar = limited(&upstream);
    let mut connection = sidecar.connect();
    let request = chunks(&[500, 600]);
    let (first, second) = request.split_at(request.len() - 100);
    connection.send(first);
    connection.send(second);
    assert_eq!(connection.answer().unwrap().status, 413);
    assert!(!ends.recv_timeout(CEILING).unwrap(), "it looked whole");
}

#[test]
fn a_body_that_grows_too_large_after_the_answer_has_begun_cuts_it() {
    let upstream = Upstream::start(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        exchange.until_closed();
        Then::Close
    });
    let sidecar = limited(&upstream);
    let mut connection = sidecar.connect();
    connection.send(Head::permitted("POST", SUBSCRIBER).with("Transfer-Encoding", "chunked").end());
    let (status, head) = connection.head().unwrap();
    assert_eq!(status, 200);
    connection.send(format!("800\r\n{}\r\n", "x".repeat(0x800)));
    let outcome = sidecar.outcome(head.value("dpa-decision-id").unwrap());
    assert_eq!((&outcome["outcome"], &outcome["status"]), (&"cut".into(), &200.into()));
}

#[test]
fn who_asks_before_it_sends_too_much_is_not_asked_for_it() {
    let upstream = Upstream::ok();
    let sidecar = limited(&upstream);
    let head = Head::permitted("POST", SUBSCRIBER).with("Expect", "100-continue").with("Content-Length", "4096");
    let answer = sidecar.ask(head.end());
    assert_eq!((answer.status, upstream.seen().len()), (413, 0));
}

#[test]
fn a_caller_that_goes_away_in_the_middle_of_an_answer_ends_the_exchange() {
    let (gone, is_gone) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        exchange.until_closed();
        gone.send(()).unwrap();
        Then::Close
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    connection.send(permitted());
    let (_, head) = connection.head().unwrap();
    drop(connection);
    is_gone.recv_timeout(CEILING).unwrap();
    let outcome = sidecar.outcome(head.value("dpa-decision-id").unwrap());
    assert_eq!((&outcome["outcome"], &outcome["status"]), (&"aborted".into(), &200.into()));
}

#[test]
fn a_caller_that_goes_away_in_the_middle_of_its_body_ends_the_exchange() {
    let (ended, ends) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        ended.send(exchange.body_and_end().1).unwrap();
        Then::Close
    });
    let sidecar = Setup::to(&upstream.address).start();
    let head = || Head::permitted("POST", SUBSCRIBER);
    let table = [
        ("a length", head().with("Content-Length", "10").end() + "hello"),
        ("chunks", head().with("Transfer-Encoding", "chunked").end() + "5\r\nhello\r\n"),
    ];
    for (place, (name, request)) in table.into_iter().enumerate() {
        let mut connection = sidecar.connect();
        connection.send(request);
        crate::support::wait_for("the request", || (upstream.seen().len() > place).then_some(()));
        drop(connection);
        assert!(!ends.recv_timeout(CEILING).unwrap(), "{name}: it looked whole");
        crate::support::wait_for(name, || {
            let records = sidecar.records();
            (records.iter().filter(|record| record["outcome"] == "aborted").count() == place + 1).then_some(())
        });
    }
}

/// Kilobytes that the process holds.
fn resident(sidecar: &Sidecar) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", sidecar.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

const MEGABYTES: usize = 300;
const MOST_MORE: u64 = 16 * 1024;

#[test]
fn a_large_body_takes_no_more_memory_than_a_small_one() {
    let (go, goes) = mpsc::channel::<()>();
    let goes = Mutex::new(goes);
    let upstream = Upstream::start(move |exchange| {
        // The other side has filled what there is to fill.
        goes.lock().unwrap().recv_timeout(CEILING).unwrap();
        for _ in 0..MEGABYTES {
            exchange.bytes(1 << 20);
        }
        exchange.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MEGABYTES << 20));
        let piece = vec![b'y'; 1 << 20];
        for _ in 0..MEGABYTES {
            exchange.send(&piece);
        }
        Then::Keep
    });
    let sidecar = Setup::to(&upstream.address).start();
    let before = resident(&sidecar);
    let mut stream = TcpStream::connect(&sidecar.address).unwrap();
    let length = (MEGABYTES << 20).to_string();
    let head = Head::permitted("POST", SUBSCRIBER).with("Content-Length", &length).end();
    stream.write_all(head.as_bytes()).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..MEGABYTES {
            writer.write_all(&piece).unwrap();
        }
    });
    let mut most = before;
    let mut look = |what: &str| {
        most = most.max(resident(&sidecar));
        assert!(most < before + MOST_MORE, "{what}: {before} KiB grew to {most} KiB");
    };
    std::thread::sleep(std::time::Duration::from_millis(500));
    look("while the upstream does not read");
    go.send(()).unwrap();
    writing.join().unwrap();
    look("after the request");
    std::thread::sleep(std::time::Duration::from_millis(500));
    look("while the caller does not read");
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    while read < MEGABYTES << 20 {
        let more = stream.read(&mut buffer).unwrap();
        assert!(more > 0, "it ended after {read} bytes");
        read += more;
    }
    look("after the answer");
}

/// The length stayed beside the chunks that counted, so the caller got `he`, whole.
#[test]
fn a_length_beside_chunks_cut_an_answer_that_looked_whole() {
    let upstream = Upstream::start(|exchange| {
        exchange.body();
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n";
        exchange.send(format!("{head}5\r\nhello\r\n0\r\n\r\n"));
        Then::Keep
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    for _ in 0..2 {
        connection.send(permitted());
        let answer = connection.answer().unwrap();
        assert_eq!((answer.text().as_str(), answer.is_whole), ("hello", true), "{answer:?}");
        assert_eq!(answer.value("content-length"), None);
        let outcome = sidecar.outcome(&answer.decision_id());
        assert_eq!((&outcome["outcome"], &outcome["response_bytes"]), (&"completed".into(), &5.into()));
    }
    assert_eq!(upstream.seen().last().unwrap().connection, 0, "it was not kept");
}

/// The coding stopped here, and the coded bytes passed as the body.
#[test]
fn an_answer_that_was_coded_for_the_connection_passed_without_the_name_of_its_coding() {
    let table = [
        ("coded before it is chunked", "Transfer-Encoding: gzip, chunked"),
        ("coded alone", "Transfer-Encoding: gzip"),
        ("coded, in two lines", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"),
        ("chunked twice", "Transfer-Encoding: chunked, chunked"),
        ("beside a length", "Content-Length: 5\r\nTransfer-Encoding: gzip"),
    ];
    for (name, line) in table {
        let (gone, is_gone) = mpsc::channel();
        let upstream = Upstream::start(move |exchange| {
            exchange.body();
            exchange.send(format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n5\r\nhello\r\n"));
            exchange.until_closed();
            gone.send(()).unwrap();
            Then::Close
        });
        let sidecar = Setup::to(&upstream.address).start();
        let answer = sidecar.ask(permitted());
        assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_unavailable"), "{name}: {answer:?}");
        let outcome = sidecar.outcome(&answer.decision_id());
        assert_eq!((&outcome["outcome"], &outcome["status"]), (&"aborted".into(), &502.into()), "{name}");
        is_gone.recv_timeout(CEILING).unwrap();
    }
}

/// Nothing is read behind trailers, so neither body was seen to end.
#[test]
fn an_exchange_with_trailers_was_recorded_as_aborted() {
    let upstream = Upstream::start(|exchange| {
        exchange.body();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
        exchange.send(format!("{head}2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"));
        Then::Keep
    });
    let sidecar = Setup::to(&upstream.address).start();
    let request = Head::permitted("POST", SUBSCRIBER).with("Transfer-Encoding", "chunked").with("Trailer", "X-Sum");
    let request = request.end() + "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
    let mut connection = sidecar.connect();
    for request in [request.as_str(), &request, &permitted(), &request] {
        connection.send(request);
        let answer = connection.answer().unwrap();
        assert_eq!((answer.text().as_str(), answer.is_whole), ("ok", true), "{answer:?}");
        let outcome = sidecar.outcome(&answer.decision_id());
        assert_eq!(outcome["outcome"], "completed", "{outcome}");
    }
    assert!(upstream.seen().iter().all(|seen| seen.connection == 0), "a connection was closed");
}
