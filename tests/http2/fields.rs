//! Fields of a head that the library takes and nobody may send on.

use super::raw::*;
use crate::support::CARE_DESK;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;

/// What comes on stream 1: the status of its answer, or the reason of its end.
fn comes(sidecar: &Sidecar, frames: &[u8]) -> Result<String, u32> {
    let mut raw = Raw::begun(sidecar);
    raw.send(frames);
    let first = raw.until(|frame| frame.stream == 1 && matches!(frame.kind, HEADERS | RST_STREAM)).unwrap();
    match first.kind {
        RST_STREAM => Err(first.number(0)),
        // Of the static table (RFC 7541 appendix A): 200 and 400.
        _ => Ok(match first.payload[0] {
            0x88 => "200".to_owned(),
            0x8c => "400".to_owned(),
            other => format!("{other:x}"),
        }),
    }
}

/// With Host alone the library tells no scheme, and any passed.
#[test]
fn another_scheme_passed_with_host_alone() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let (method, path, host) = ((":method", "GET"), (":path", SUBSCRIBER), ("host", "data.example"));
    let authority = (":authority", "data.example");
    let table = [
        ("http", "http", host, "200"),
        ("https, whatever the connection is", "https", host, "200"),
        ("another", "ftp", host, "400"),
        ("another, and the authority", "ftp", authority, "400"),
        ("the authority", "http", authority, "200"),
    ];
    for (what, scheme, host, expected) in table {
        let pseudo = [method, (":scheme", scheme), path];
        // A pseudo-header comes before all others (RFC 9113 section 8.3).
        let head = [pseudo.to_vec(), vec![host], permit()].concat();
        let found = comes(&sidecar, &frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&head)));
        assert_eq!(found.as_deref(), Ok(expected), "{what}");
    }
    assert_eq!(upstream.seen().len(), 3);
    let unreadable = sidecar.records().iter().filter(|record| record["reason"] == "request_unreadable").count();
    assert_eq!(unreadable, 2, "recorded as any other");
}

/// RFC 9113 section 8.2.1. They were sent on, and read by some as other values.
#[test]
fn outer_blanks_of_values_were_sent_on() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let table = [
        ("none", "x-word", "a b\tc", true),
        ("nothing", "x-word", "", true),
        ("before", "x-word", " a", false),
        ("behind", "x-word", "a ", false),
        ("a tab", "x-word", "\ta", false),
        ("only", "x-word", " ", false),
        ("in what says who asks", "x-who", CARE_DESK, true),
        ("in a length", "content-length", "0 ", false),
    ];
    let mut passed = 0;
    for (what, name, value, good) in table {
        let head = frame(HEADERS, END_STREAM | END_HEADERS, 1, request("GET", &[(name, value)]));
        let expected = if good { Ok("200".to_owned()) } else { Err(1) };
        assert_eq!(comes(&sidecar, &head), expected, "{what}: PROTOCOL_ERROR");
        passed += usize::from(good);
    }
    assert_eq!(upstream.seen().len(), passed);
    assert_eq!(sidecar.unread("refused")["event"], "dpa.unread", "counted with other heads that are malformed");
    // In trailers: the service sees the request broken off.
    let mut raw = Raw::begun(&sidecar);
    raw.send(
        [post(1), frame(DATA, 0, 1, b"x"), frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&[("x-sum", "1 ")]))]
            .concat(),
    );
    // Those before may be aborted, too: their callers went away with the head of the answer.
    let decision = sidecar.record("its decision", |record| record["method"] == "POST");
    let outcome = sidecar.record("its outcome", |record| {
        record["event"] == "dpa.outcome" && record["decision_id"] == decision["decision_id"]
    });
    assert_eq!((&outcome["outcome"], &outcome["status"]), (&"aborted".into(), &400.into()));
    assert_eq!(upstream.seen().len(), passed);
}
