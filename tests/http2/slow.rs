//! Callers of HTTP/2 that keep others waiting, and connections that come to their end.

use std::time::Duration;
use std::time::Instant;

use super::raw::*;
use crate::support::CEILING;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::wait_for;

fn with(upstream: &Upstream, more: &'static str) -> Sidecar {
    Setup { more, ..Setup::to(&upstream.address) }.start()
}

fn terminate(sidecar: &Sidecar) {
    let sent = std::process::Command::new("kill").arg(sidecar.id().to_string()).status().unwrap();
    assert!(sent.success());
}

#[test]
fn what_has_begun_has_its_time() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {header_timeout: 300ms, idle_timeout: 1h}");
    let block = request("GET", &[]);
    let table: [(&str, Vec<u8>); 5] = [
        ("a part of the preface", PREFACE[..16].to_vec()),
        ("the first byte of it", PREFACE[..1].to_vec()),
        ("a part of SETTINGS", [PREFACE, &[0, 0, 6, 4]].concat()),
        ("a block without its end", frame(HEADERS, END_STREAM, 1, &block)),
        ("a part of a block", frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)[..30].to_vec()),
    ];
    let mut idle = Raw::begun(&sidecar);
    for (place, (what, bytes)) in table.iter().enumerate() {
        let mut raw = if bytes.starts_with(b"P") { Raw::to(&sidecar) } else { Raw::begun(&sidecar) };
        raw.send(bytes);
        assert!(raw.until(|_| false).is_none(), "{what}");
        let count = || sidecar.records().iter().filter_map(|record| record["timed_out"].as_u64()).sum::<u64>();
        wait_for(what, || (count() == u64::try_from(place).unwrap() + 1).then_some(()));
    }
    idle.send(get(1));
    assert!(idle.answers(1), "a connection that is idle is not late");
}

#[test]
fn a_block_that_trickles_is_not_waited_for() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {header_timeout: 300ms}");
    let mut raw = Raw::begun(&sidecar);
    raw.send(frame(HEADERS, END_STREAM, 1, []));
    let begin = Instant::now();
    while raw.try_send(frame(CONTINUATION, 0, 1, [])) {
        assert!(begin.elapsed() < CEILING);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(upstream.seen().is_empty());
}

#[test]
fn an_idle_connection_is_told_and_closed() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {idle_timeout: 300ms}");
    let mut raw = Raw::begun(&sidecar);
    raw.send(get(1));
    assert!(raw.answers(1));
    let goaway = raw.until(|frame| frame.kind == GOAWAY).unwrap();
    assert_eq!(goaway.number(4), 0, "NO_ERROR");
    assert!(raw.until(|_| false).is_none(), "closed, whether it answers or not");
    assert!(!sidecar.records().iter().any(|record| record["timed_out"].as_u64() > Some(0)));
}

/// A PING of which a part was always missing: frames that nobody waits for, and the connection was never idle.
fn trickles(raw: &mut Raw) {
    let ping = frame(PING, 0, 0, b"are you?");
    raw.send(&ping[..12]);
    let begin = Instant::now();
    while raw.try_send([&ping[12..], &ping[..12]].concat()) {
        assert!(begin.elapsed() < CEILING, "it goes on for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn frames_that_trickled_kept_an_idle_connection() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {idle_timeout: 300ms, spare_frames: 100000}");
    let mut raw = Raw::begun(&sidecar);
    raw.send(get(1));
    assert!(raw.answers(1));
    trickles(&mut raw);
    sidecar.still_serves();
}

#[test]
fn frames_that_trickled_kept_a_drain() {
    let upstream = Upstream::ok();
    let mut sidecar = with(&upstream, "limits: {spare_frames: 100000}\ndrain_timeout: 60s");
    let mut raw = Raw::begun(&sidecar);
    raw.send(get(1));
    assert!(raw.answers(1));
    terminate(&sidecar);
    trickles(&mut raw);
    assert_eq!(sidecar.ended(), Some(0));
}

/// PING is answered, and says nothing of a next request: time counts from the last one.
#[test]
fn who_asks_whether_the_other_side_is_there_is_idle_all_the_same() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {idle_timeout: 500ms, spare_frames: 100000}");
    let mut raw = Raw::begun(&sidecar);
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < CEILING, "it goes on for ever");
        raw.send(frame(PING, 0, 0, b"are you?"));
        match raw.until(|frame| matches!(frame.kind, PING | GOAWAY)).unwrap() {
            frame if frame.kind == GOAWAY => break assert_eq!(frame.number(4), 0, "NO_ERROR"),
            ping => assert_eq!(ping.flags, ACK),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_body_that_stands_still_or_trickles_ends_alone() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {stall_timeout: 800ms}");
    for (what, more) in [("stands still", &b""[..]), ("trickles", b"x")] {
        let mut raw = Raw::begun(&sidecar);
        raw.send(post(1));
        let begin = Instant::now();
        let reset = loop {
            assert!(begin.elapsed() < CEILING, "{what}");
            raw.send(
                [frame(PING, 0, 0, b"are you?"), if more.is_empty() { Vec::new() } else { frame(DATA, 0, 1, more) }]
                    .concat(),
            );
            let frame = raw.until(|frame| frame.kind == RST_STREAM || frame.kind == PING).unwrap();
            if frame.kind == RST_STREAM {
                break frame;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!((reset.stream, reset.number(0)), (1, 8), "{what}: CANCEL");
        raw.send(get(3));
        assert!(raw.answers(3), "{what}: the connection goes on");
    }
    // Those after them may be aborted, too: their callers went away with the head of the answer.
    wait_for("both outcomes", || {
        let records = sidecar.records();
        let has_ended = |decision: &&serde_json::Value| {
            let id = &decision["decision_id"];
            records.iter().any(|record| record["outcome"] == "aborted" && record["decision_id"] == *id)
        };
        let posted = records.iter().filter(|record| record["method"] == "POST");
        (posted.filter(has_ended).count() == 2).then_some(())
    });
}

#[test]
fn an_answer_that_is_not_taken_ends_alone() {
    let upstream = Upstream::start(|exchange| exchange.ok(vec![b'x'; 1 << 20]));
    let sidecar = with(&upstream, "limits: {stall_timeout: 200ms}");
    // No room in any stream; then a little in one of them, as a trickle.
    let mut raw = Raw::begun_with(&sidecar, &setting(4, 0));
    raw.send([get(1), get(3)].concat());
    assert!(raw.answers(1));
    let mut reset = Vec::new();
    let begin = Instant::now();
    while reset.len() < 2 {
        assert!(begin.elapsed() < CEILING);
        raw.send([frame(WINDOW_UPDATE, 0, 3, 1_u32.to_be_bytes()), frame(PING, 0, 0, b"are you?")].concat());
        let frame = raw.until(|frame| frame.kind == RST_STREAM || frame.kind == PING).unwrap();
        reset.extend((frame.kind == RST_STREAM).then_some(frame.stream));
        std::thread::sleep(Duration::from_millis(20));
    }
    reset.sort_unstable();
    assert_eq!(reset, [1, 3]);
    raw.send([frame(SETTINGS, 0, 0, setting(4, 65535)), get(5)].concat());
    assert!(raw.until(|frame| frame.kind == DATA && frame.stream == 5).is_some(), "the connection goes on");
    sidecar.record("an outcome", |record| record["outcome"] == "aborted");
}

/// What the service does not take is not read: a stream holds no more than its window.
#[test]
fn a_body_is_read_as_fast_as_the_service_takes_it() {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::start(move |exchange| {
        let _released = wait.lock().unwrap().recv_timeout(CEILING);
        exchange.ok("ok")
    });
    let sidecar = with(&upstream, "limits: {stream_window: 16KiB, connection_window: 64KiB}");
    let mut raw = Raw::begun(&sidecar);
    raw.send(post(1));
    let (mut room, mut sent) = (16 * 1024_usize, 0_usize);
    raw.waits(Duration::from_millis(500));
    loop {
        let piece = room.min(8 * 1024);
        if piece > 0 {
            raw.send(frame(DATA, 0, 1, vec![b'x'; piece]));
            (room, sent) = (room - piece, sent + piece);
            continue;
        }
        match raw.next() {
            Some(frame) if frame.kind == WINDOW_UPDATE && frame.stream == 1 => {
                room += usize::try_from(frame.number(0)).unwrap();
            }
            Some(_) => {}
            // Nothing for a while: nobody takes more.
            None => break,
        }
        assert!(sent < 64 << 20, "it is read and nobody takes it");
    }
    release.send(()).unwrap();
    raw.waits(CEILING);
    raw.send(frame(DATA, 0, 1, []));
}

#[test]
fn a_drain_ends_what_is_under_way_and_takes_nothing_new() {
    let (tell, told) = std::sync::mpsc::channel();
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::start(move |exchange| {
        tell.send(()).unwrap();
        let _released = wait.lock().unwrap().recv_timeout(CEILING);
        exchange.ok("late")
    });
    let mut sidecar = Setup::to(&upstream.address).start();
    let mut idle = Raw::begun(&sidecar);
    let mut raw = Raw::begun(&sidecar);
    raw.send(get(1));
    told.recv_timeout(CEILING).unwrap();
    terminate(&sidecar);
    let first = raw.until(|frame| frame.kind == GOAWAY).unwrap();
    assert_eq!((first.number(0), first.number(4)), (u32::MAX >> 1, 0), "what is on its way is still taken");
    let ping = raw.until(|frame| frame.kind == PING).unwrap();
    raw.send(frame(PING, ACK, 0, ping.payload));
    let last = raw.until(|frame| frame.kind == GOAWAY).unwrap();
    assert_eq!((last.number(0), last.number(4)), (1, 0));
    raw.send(get(3));
    assert!(idle.until(|frame| frame.kind == GOAWAY).is_some(), "who is idle is told too");
    release.send(()).unwrap();
    assert!(raw.answers(1), "what was under way has its answer");
    assert!(raw.until(|frame| frame.stream == 3).is_none(), "what came behind has none");
    assert_eq!(sidecar.ended(), Some(0));
    assert_eq!(upstream.seen().len(), 1);
    let outcomes: Vec<_> = sidecar.records().into_iter().filter(|record| record["event"] == "dpa.outcome").collect();
    assert_eq!((outcomes.len(), &outcomes[0]["outcome"]), (1, &"completed".into()));
}

/// It went on being served for as long as it liked: the library waits for an answer to its PING.
#[test]
fn who_did_not_hear_of_a_drain_was_served_on() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let mut raw = Raw::begun(&sidecar);
    raw.send(get(1));
    assert!(raw.answers(1));
    terminate(&sidecar);
    let mut stream = 1;
    let refused = wait_for("a stream that is refused", || {
        stream += 2;
        raw.send(get(stream));
        raw.until(|frame| frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM))
            .filter(|frame| frame.kind == RST_STREAM)
    });
    assert_eq!(refused.number(0), 7, "REFUSED_STREAM: it may be sent again elsewhere");
    let decided = sidecar.records().into_iter().filter(|record| record["event"] == "dpa.decision").count();
    assert_eq!(decided, upstream.seen().len(), "what is refused is not decided");
    assert_eq!(u32::try_from(decided).unwrap(), (stream - 1) / 2);
}

/// A connection that is cut takes its requests with it, and each has its outcome.
#[test]
fn every_stream_of_a_broken_connection_has_its_outcome() {
    let (tell, told) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        tell.send(()).unwrap();
        exchange.until_closed();
        Then::Close
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut raw = Raw::begun(&sidecar);
    let streams: Vec<u32> = (0..20).map(|number| 2 * number + 1).collect();
    raw.send(streams.iter().flat_map(|stream| get(*stream)).collect::<Vec<u8>>());
    for _ in &streams {
        told.recv_timeout(CEILING).unwrap();
    }
    drop(raw);
    wait_for("the outcomes", || {
        let aborted = sidecar.records().iter().filter(|record| record["outcome"] == "aborted").count();
        (aborted == streams.len()).then_some(())
    });
}

/// Their bodies wait for room that never comes.
#[test]
fn refusals_that_nobody_took_kept_all_others_out() {
    let upstream = Upstream::ok();
    let sidecar = with(&upstream, "limits: {concurrent_requests: 3}");
    let mut raw = Raw::begun_with(&sidecar, &setting(4, 0));
    let nobody = [(":method", "GET"), (":scheme", "http"), (":authority", "data.example"), (":path", "/v1/customers")];
    for stream in [1, 3, 5, 7] {
        raw.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, block(&nobody)));
        let answer = raw.until(|frame| frame.kind == HEADERS && frame.stream == stream).unwrap();
        assert_eq!(answer.flags & END_STREAM, 0, "a body is to come");
    }
    let mut other = Raw::begun(&sidecar);
    other.send(get(1));
    other.until(|frame| frame.kind == HEADERS && frame.stream == 1).unwrap();
    sidecar.record("a permit", |record| record["decision"] == "permit" && record["event"] == "dpa.decision");
    assert_eq!(upstream.seen().len(), 1);
}
