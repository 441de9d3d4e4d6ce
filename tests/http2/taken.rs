//! Answers that the HTTP layer has whole and the caller has not: they are under way until their last byte is taken.

use std::time::Duration;
use std::time::Instant;

use super::raw::*;
use crate::support::CEILING;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::wait_for;

fn of(bytes: usize) -> Upstream {
    Upstream::start(move |exchange| exchange.ok(vec![b'x'; bytes]))
}

fn terminate(sidecar: &Sidecar) {
    let sent = std::process::Command::new("kill").arg(sidecar.id().to_string()).status().unwrap();
    assert!(sent.success());
}

fn outcome(sidecar: &Sidecar) -> (String, u64) {
    let outcome = sidecar.record("an outcome", |record| record["event"] == "dpa.outcome");
    (outcome["outcome"].as_str().unwrap().to_owned(), outcome["response_bytes"].as_u64().unwrap())
}

/// The caller has room for one byte of 8,000, and takes no more. The HTTP layer had the rest, and nobody looked.
#[test]
fn an_answer_of_one_piece_that_nobody_took_was_completed() {
    let chunked = Upstream::start(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f40\r\n");
        exchange.send("x".repeat(8000) + "\r\n0\r\n\r\n");
        Then::Keep
    });
    for (what, upstream) in [("with a length", of(8000)), ("in chunks", chunked)] {
        let sidecar = Setup { more: "limits: {stall_timeout: 100ms}", ..Setup::to(&upstream.address) }.start();
        let mut raw = Raw::begun_with(&sidecar, &setting(4, 1));
        raw.send(get(1));
        assert_eq!(raw.until(|frame| frame.kind == DATA).unwrap().payload, b"x", "{what}");
        assert!(raw.until(|frame| frame.kind == DATA).is_none(), "{what}: its connection is cut");
        assert_eq!(outcome(&sidecar), ("aborted".to_owned(), 1), "{what}");
        sidecar.still_serves();
    }
}

/// A longer answer keeps its end back, so that its stream can be reset alone.
#[test]
fn the_last_piece_of_a_long_answer_ends_alone() {
    let upstream = of(100_000);
    let sidecar = Setup { more: "limits: {stall_timeout: 100ms}", ..Setup::to(&upstream.address) }.start();
    let mut raw = Raw::begun_with(&sidecar, &setting(4, 99_999));
    raw.send([frame(WINDOW_UPDATE, 0, 0, (1_u32 << 20).to_be_bytes()), get(1)].concat());
    let mut read = 0;
    let reset = raw
        .until(|frame| {
            read += usize::from(frame.kind == DATA) * frame.payload.len();
            frame.kind == RST_STREAM
        })
        .unwrap();
    assert_eq!((reset.stream, reset.number(0), 99_999), (1, 8, 99_999), "CANCEL");
    assert_eq!(outcome(&sidecar), ("aborted".to_owned(), 99_999));
    raw.send(frame(SETTINGS, 0, 0, setting(4, 1 << 20)));
    raw.send(get(3));
    assert!(raw.until(|frame| frame.stream == 3 && frame.flags & END_STREAM != 0).is_some(), "the connection goes on");
    let completed = sidecar.record("its outcome", |record| record["outcome"] == "completed");
    assert_eq!(completed["response_bytes"], 100_000);
}

/// A drain closed upon it after a second, and it was recorded as completed.
#[test]
fn a_drain_cut_short_what_was_still_being_taken() {
    for (what, bytes, by) in [("short", 8_000, 100), ("long", 100_000, 5_000)] {
        let upstream = of(bytes);
        let mut sidecar = Setup::to(&upstream.address).start();
        let mut raw = Raw::begun_with(&sidecar, &setting(4, 1));
        raw.send([frame(WINDOW_UPDATE, 0, 0, (1_u32 << 20).to_be_bytes()), get(1)].concat());
        assert!(raw.until(|frame| frame.kind == DATA).is_some());
        terminate(&sidecar);
        assert!(raw.until(|frame| frame.kind == GOAWAY).is_some());
        let begin = Instant::now();
        let mut read = 1;
        while read < bytes {
            assert!(begin.elapsed() < CEILING, "{what}: {read}");
            let room = u32::try_from(by).unwrap().to_be_bytes();
            raw.send([frame(WINDOW_UPDATE, 0, 1, room), frame(PING, 0, 0, b"are you?")].concat());
            raw.until(|frame| {
                read += usize::from(frame.kind == DATA) * frame.payload.len();
                frame.kind == PING && frame.flags & ACK != 0
            })
            .unwrap_or_else(|| panic!("{what}: closed upon, with {read} bytes"));
            // Longer than a drain waits for who has nothing under way.
            std::thread::sleep(Duration::from_millis(if read < bytes / 2 { 50 } else { 0 }));
        }
        assert!(begin.elapsed() > Duration::from_secs(1) || what == "long", "{what}: too fast to show it");
        assert_eq!(sidecar.ended(), Some(0), "{what}");
        assert_eq!(outcome(&sidecar), ("completed".to_owned(), u64::try_from(bytes).unwrap()), "{what}");
    }
}

/// What was taken is taken when it is written, whatever comes behind it.
#[test]
fn an_answer_that_is_taken_whole_is_completed_at_once() {
    for bytes in [1, 255, 256, 16_384, 65_535, 65_536, 300_000] {
        let upstream = of(bytes);
        let sidecar = Setup::to(&upstream.address).start();
        let mut raw = Raw::begun_with(&sidecar, &setting(4, 1 << 20));
        raw.send([frame(WINDOW_UPDATE, 0, 0, (1_u32 << 20).to_be_bytes()), get(1)].concat());
        let end = raw.until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).unwrap();
        assert_eq!(end.payload.is_empty(), bytes > 65_535, "{bytes}: a short one has its end with its last piece");
        assert_eq!(outcome(&sidecar), ("completed".to_owned(), u64::try_from(bytes).unwrap()));
    }
}

/// Its bytes lie in the buffers of the kernel, and it reads none of them.
#[test]
fn a_caller_that_reads_nothing_is_cut() {
    let upstream = of(8 << 20);
    let sidecar = Setup { more: "limits: {stall_timeout: 200ms}", ..Setup::to(&upstream.address) }.start();
    let mut raw = Raw::begun_with(&sidecar, &setting(4, 1 << 30));
    raw.send([frame(WINDOW_UPDATE, 0, 0, (1_u32 << 30).to_be_bytes()), get(1), get(3)].concat());
    wait_for("both outcomes", || {
        let aborted = sidecar.records().iter().filter(|record| record["outcome"] == "aborted").count();
        (aborted == 2).then_some(())
    });
    assert!(raw.until(|_| false).is_none(), "closed");
    sidecar.still_serves();
}

/// It held a place among the connections for as long as it liked: each stream that is refused was something to do.
#[test]
fn a_connection_that_was_told_to_go_lived_on_refused_streams() {
    let upstream = Upstream::ok();
    let more = "limits: {spare_frames: 100000}\ndrain_timeout: 60s";
    let mut sidecar = Setup { more, ..Setup::to(&upstream.address) }.start();
    let mut raw = Raw::begun(&sidecar);
    raw.send(get(1));
    assert!(raw.answers(1));
    terminate(&sidecar);
    let begin = Instant::now();
    let mut stream = 1;
    loop {
        assert!(begin.elapsed() < CEILING, "it goes on for ever");
        stream += 2;
        raw.send(get(stream));
        if raw.until(|frame| frame.stream == stream).is_none() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(sidecar.ended(), Some(0));
}

/// It was `aborted`, as if the caller or the service had gone.
#[test]
fn what_outlasted_the_drain_was_not_cut() {
    let (tell, told) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun");
        tell.send(()).unwrap();
        exchange.until_closed();
        Then::Close
    });
    let setup = Setup { more: "drain_timeout: 300ms", ..Setup::to(&upstream.address) };
    let mut sidecar = setup.start();
    let mut raw = Raw::begun(&sidecar);
    raw.send(get(1));
    let mut plain = sidecar.connect();
    plain.send(Head::permitted("GET", SUBSCRIBER).end());
    told.recv_timeout(CEILING).unwrap();
    told.recv_timeout(CEILING).unwrap();
    assert!(raw.until(|frame| frame.kind == DATA).is_some());
    let (status, _) = plain.head().unwrap();
    assert_eq!(status, 200);
    // One that the HTTP layer has whole.
    let short = of(100);
    let other = Setup { upstream: short.address.clone(), ..setup.clone() }.start();
    let mut late = Raw::begun_with(&other, &setting(4, 1));
    late.send(get(1));
    assert!(late.until(|frame| frame.kind == DATA).is_some());
    terminate(&sidecar);
    terminate(&other);
    assert_eq!(sidecar.ended(), Some(0));
    let cut = sidecar.records().iter().filter(|record| record["outcome"] == "cut").count();
    assert_eq!(cut, 2, "{:?}", sidecar.records().last());
    let mut other = other;
    assert_eq!(other.ended(), Some(0));
    assert_eq!(outcome(&other), ("cut".to_owned(), 1));
}
