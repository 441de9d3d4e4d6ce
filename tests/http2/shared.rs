//! A connection that many callers share: what one of them does, or leaves undone, is its own affair.

use std::time::Duration;
use std::time::Instant;

use super::raw::*;
use crate::support::CEILING;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::http2::Call;
use crate::support::http2::Http2Upstream;
use crate::support::wait_for;

fn with(address: &str, upstream_keys: &'static str, more: &'static str) -> Sidecar {
    Setup { more, upstream_keys, ..Setup::to(address) }.start()
}

/// A call of gRPC on the route of the sample, its messages still to come.
fn call(stream: u32) -> Vec<u8> {
    let path = (":path", "/v1/support");
    let fields = [&pseudo("POST")[..2], &[path, (":authority", "data.example")], &permit()].concat();
    let fields = [fields.as_slice(), &[("content-type", "application/grpc")]].concat();
    frame(HEADERS, END_HEADERS, stream, block(&fields))
}

/// Answers `GET` at once, and reads nothing of anything else until it is told.
fn pausing(goes_on: tokio::sync::watch::Receiver<bool>) -> Http2Upstream {
    let serve = move |mut call: Call| -> crate::support::http2::Answering {
        let mut goes_on = goes_on.clone();
        Box::pin(async move {
            if call.asked.method != "GET" {
                let _gone = goes_on.wait_for(|goes_on| *goes_on).await;
                let (body, _trailers) = call.read().await.unwrap();
                return call.answer(http::Response::new(()), &[body.len().to_string().as_bytes()], None).await;
            }
            call.answer(http::Response::new(()), &[b"ok"], None).await;
        })
    };
    // As much as comes: the library at this end has a budget for small frames too.
    let mut builder = h2::server::Builder::new();
    builder.initial_connection_window_size(64 << 20).data_frame_budget(usize::MAX);
    Http2Upstream::start(&builder, None, serve)
}

/// While one frame went on coming, no body was late. So a caller that left one unfinished could keep what it liked.
#[test]
fn an_unfinished_frame_kept_the_bodies_of_all_streams() {
    let upstream = Upstream::start(|exchange| {
        exchange.until_closed();
        crate::support::Then::Close
    });
    let sidecar = with(&upstream.address, "", "limits: {stall_timeout: 300ms}");
    let mut raw = Raw::begun(&sidecar);
    let streams = [1, 3, 5, 7];
    raw.send(streams.map(post).concat());
    let part = frame(DATA, 0, 1, b"ab");
    raw.send(&part[..10]);
    let mut reset = Vec::new();
    let begin = Instant::now();
    while reset.len() < streams.len() {
        assert!(begin.elapsed() < CEILING, "{reset:?}");
        // A byte for each, and the frame is unfinished again.
        let bytes = streams.map(|stream| frame(DATA, 0, stream, b"x")).concat();
        raw.send([&part[10..], &bytes, &frame(PING, 0, 0, b"are you?"), &part[..10]].concat());
        let frame = raw.until(|frame| frame.kind == RST_STREAM || frame.kind == PING).unwrap();
        reset.extend((frame.kind == RST_STREAM).then_some(frame.stream));
        std::thread::sleep(Duration::from_millis(20));
    }
    reset.sort_unstable();
    assert_eq!(reset, streams);
    raw.send([&part[10..], &get(9)].concat());
    assert!(wait_for("the outcomes", || {
        let aborted = sidecar.records().iter().filter(|record| record["outcome"] == "aborted").count();
        (aborted == streams.len()).then_some(true)
    }));
}

/// Each pays what it would pay alone: a large frame may take its time, and those behind it wait for its end.
#[test]
fn a_large_frame_that_comes_fast_enough_for_all_cuts_nobody() {
    let upstream = Upstream::start(|exchange| {
        let body = exchange.body();
        exchange.ok(body.len().to_string())
    });
    let sidecar = with(&upstream.address, "", "limits: {stall_timeout: 2s, stall_bytes: 1KiB}");
    let mut raw = Raw::begun(&sidecar);
    raw.send([post(1), post(3)].concat());
    // 16 KiB in 3 seconds, where 2 in any two were enough for both of them.
    let large = frame(DATA, END_STREAM, 1, vec![b'x'; 16 * 1024]);
    for piece in large.chunks(256) {
        raw.send(piece);
        std::thread::sleep(Duration::from_millis(45));
    }
    raw.send(frame(DATA, END_STREAM, 3, b"x"));
    let mut answered = Vec::new();
    while answered.len() < 2 {
        let frame = raw.until(|frame| matches!(frame.kind, HEADERS | RST_STREAM)).unwrap();
        assert_eq!(frame.kind, HEADERS, "{frame:?}");
        answered.push(frame.stream);
    }
}

/// A watch or a lease says next to nothing for hours. Where the service speaks HTTP/1.1 there are none, and whoever said
/// that it calls one could hold a connection of its own to the service.
#[test]
fn a_call_of_grpc_rested_where_nobody_serves_calls() {
    let (_goes_on, paused) = tokio::sync::watch::channel(false);
    let by_http2 = pausing(paused);
    let by_http1 = Upstream::start(|exchange| {
        exchange.until_closed();
        crate::support::Then::Close
    });
    let table = [
        ("a service of gRPC", by_http2.address.as_str(), ", protocol: http2", [3].as_slice()),
        ("one of HTTP/1.1", &by_http1.address, "", &[1, 3]),
    ];
    for (what, address, keys, expected) in table {
        let sidecar = with(address, keys, "limits: {stall_timeout: 100ms, header_timeout: 100ms}");
        let mut raw = Raw::begun(&sidecar);
        raw.send([call(1), frame(DATA, 0, 1, b"\0\0\0\0\0"), post(3)].concat());
        let mut reset = Vec::new();
        while !reset.contains(&3) {
            reset.push(raw.until(|frame| frame.kind == RST_STREAM).unwrap().stream);
        }
        raw.send(post(5));
        // Stream 5 had as much time as those before it.
        while !reset.contains(&5) {
            reset.push(raw.until(|frame| frame.kind == RST_STREAM).unwrap().stream);
        }
        reset.retain(|stream| *stream != 5);
        reset.sort_unstable();
        assert_eq!(reset, expected, "{what}");
    }
}

/// Calls that wait for a service which reads nothing ended the connection, and with it calls that had nothing to do with
/// them; or left no room for a byte of any other.
#[test]
fn calls_that_waited_ended_or_held_up_all_others() {
    let message = |bytes: usize| {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&[0], length.as_slice(), &vec![b'm'; bytes]].concat()
    };
    let table = [
        ("messages of a KiB", 1024, 60, 50_u32),
        ("messages of 100 bytes", 100, 600, 20),
        ("messages of 10 bytes", 10, 400, 20),
    ];
    for (what, bytes, messages, calls) in table {
        let (goes_on, paused) = tokio::sync::watch::channel(false);
        let upstream = pausing(paused);
        let sidecar = with(&upstream.address, ", protocol: http2", "");
        let mut raw = Raw::begun(&sidecar);
        let streams: Vec<u32> = (0..calls).map(|number| 2 * number + 1).collect();
        raw.send(streams.iter().flat_map(|stream| call(*stream)).collect::<Vec<u8>>());
        for stream in &streams {
            raw.send(frame(DATA, 0, *stream, message(bytes)).repeat(messages));
        }
        let other = 2 * calls + 1;
        raw.send(get(other));
        assert!(raw.answers(other), "{what}: another call is answered");
        goes_on.send(true).unwrap();
        raw.send(streams.iter().flat_map(|stream| frame(DATA, END_STREAM, *stream, [])).collect::<Vec<u8>>());
        let mut whole = 0;
        while whole < calls {
            let data = raw.until(|frame| frame.kind == DATA && !frame.payload.is_empty()).unwrap();
            if data.stream != other {
                let sent = (messages * (bytes + 5)).to_string();
                assert_eq!(String::from_utf8_lossy(&data.payload), sent, "{what}: all of it came");
                whole += 1;
            }
        }
        assert!(!sidecar.records().iter().any(|record| record["flooded"].as_u64() > Some(0)), "{what}");
    }
}

/// What five heads on a connection are, and how each answer begins.
type Row = (&'static str, [Vec<u8>; 5], [u8; 5]);

/// A permitted head that says its scheme so, and its host in this field.
fn head(scheme: &[u8], host: &str) -> Vec<u8> {
    let rest = [vec![(":path", SUBSCRIBER), (host, "data.example")], permit()].concat();
    [b"\x82", scheme, &block(&rest)].concat()
}

/// One head that did not show its scheme made all later requests by Host alone on its connection 400.
#[test]
fn a_hidden_scheme_stuck_to_its_connection() {
    let upstream = Upstream::ok();
    let (shown, learnt, named) = (&b"\x86"[..], &b"\x46\x03ftp"[..], &b"\xbe"[..]);
    const WHOLE: u8 = END_STREAM | END_HEADERS;
    let whole = |stream, scheme, host| frame(HEADERS, WHOLE, stream, head(scheme, host));
    let split = |stream, scheme: &[u8]| {
        let block = head(scheme, "host");
        let parts = block.split_at(2);
        [frame(HEADERS, END_STREAM, stream, parts.0), frame(CONTINUATION, END_HEADERS, stream, parts.1)].concat()
    };
    let table: [Row; 4] = [
        (
            "another scheme between two",
            [1, 3, 5, 7, 9].map(|stream| whole(stream, if stream == 5 { learnt } else { shown }, "host")),
            [0x88, 0x88, 0x8c, 0x88, 0x88],
        ),
        (
            "by the table of the connection",
            [
                // Its authority says it, and it is refused for what it is.
                whole(1, learnt, ":authority"),
                whole(3, shown, "host"),
                whole(5, named, "host"),
                whole(7, named, "host"),
                whole(9, shown, "host"),
            ],
            [0x8c, 0x88, 0x8c, 0x8c, 0x88],
        ),
        (
            "in a block of several frames",
            [split(1, learnt), split(3, shown), split(5, named), split(7, shown), whole(9, shown, "host")],
            [0x8c, 0x88, 0x8c, 0x88, 0x88],
        ),
        (
            "that is http, where the table says so",
            [
                whole(1, b"\x46\x04http", ":authority"),
                whole(3, named, ":authority"),
                // It cannot be known.
                whole(5, named, "host"),
                whole(7, shown, "host"),
                whole(9, shown, "host"),
            ],
            [0x88, 0x88, 0x8c, 0x88, 0x88],
        ),
    ];
    for (what, heads, expected) in table {
        let bytes = heads.concat();
        for size in [1, 100, bytes.len()] {
            let sidecar = with(&upstream.address, "", "");
            let mut raw = Raw::begun(&sidecar);
            for piece in bytes.chunks(size) {
                raw.send(piece);
            }
            let mut found = [0; 5];
            for _ in found {
                let answer = raw.until(|frame| matches!(frame.kind, HEADERS | RST_STREAM)).unwrap();
                assert_eq!(answer.kind, HEADERS, "{what}, in pieces of {size}");
                found[usize::try_from(answer.stream / 2).unwrap()] = answer.payload[0];
            }
            assert_eq!(found, expected, "{what}, in pieces of {size}");
        }
    }
}

/// A path before the scheme that was longer than what was looked at.
#[test]
fn a_long_path_before_the_scheme_passes_with_host_alone() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream.address, "", "");
    let path = format!("{SUBSCRIBER}?fields={}", "a".repeat(6_000));
    let fields = [vec![(":method", "GET"), (":path", &path), (":scheme", "http"), ("host", "data.example")], permit()];
    let mut raw = Raw::begun(&sidecar);
    raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&fields.concat())));
    let answer = raw.until(|frame| frame.kind == HEADERS).unwrap();
    assert_eq!(answer.payload[0], 0x88);
}

/// Heads behind a PING that could not be answered were counted as refused, and then served.
#[test]
fn heads_that_waited_for_room_were_counted_as_refused() {
    let upstream = Upstream::start(|exchange| exchange.ok(vec![b'x'; 8 << 20]));
    let sidecar = with(&upstream.address, "", "limits: {stall_timeout: 1s}");
    let mut raw = Raw::begun_with(&sidecar, &setting(4, 1 << 30));
    raw.send([frame(WINDOW_UPDATE, 0, 0, (1_u32 << 30).to_be_bytes()), get(1)].concat());
    assert!(raw.answers(1));
    // It reads no more for a while, until nothing can be written.
    std::thread::sleep(Duration::from_millis(500));
    let pings = frame(PING, 0, 0, b"are you?").repeat(20);
    raw.send([pings, [3, 5, 7, 9].map(get).concat()].concat());
    std::thread::sleep(Duration::from_millis(700));
    for _ in 0..5 {
        let ends = |frame: &Frame| frame.flags & END_STREAM != 0 || frame.kind == RST_STREAM;
        let frame = raw.until(|frame| frame.stream > 0 && ends(frame)).unwrap();
        assert_ne!(frame.kind, RST_STREAM);
    }
    drop(raw);
    let log = std::fs::read_to_string(sidecar.stop().folder.file("decisions.ndjson")).unwrap();
    let unread: Vec<_> = log.lines().filter(|line| line.contains("\"dpa.unread\"")).collect();
    assert_eq!(unread, [""; 0]);
}
