//! Which protocol is spoken over TLS: both sides agree on it in the handshake.

use super::Caller;
use super::Tls;
use super::request;
use crate::http2::raw;
use crate::http2::raw::Raw;
use crate::support::CARE_DESK;
use crate::support::SUBSCRIBER;
use crate::support::Upstream;
use crate::support::wait_for;

fn get(stream: u32) -> Vec<u8> {
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", SUBSCRIBER),
        (":authority", "data.example"),
        ("dpa-context", "purpose=customer_support"),
    ];
    raw::frame(raw::HEADERS, raw::END_STREAM | raw::END_HEADERS, stream, raw::block(&fields))
}

#[test]
fn what_is_offered_is_spoken() {
    let upstream = Upstream::ok();
    let (sidecar, authority) = Tls::to(&upstream.address).start();
    let pair = authority.caller(CARE_DESK);
    let table: [(&str, &[&str], Option<&str>); 4] = [
        ("nothing", &[], None),
        ("HTTP/1.1", &["http/1.1"], Some("http/1.1")),
        ("both", &["http/1.1", "h2"], Some("h2")),
        ("HTTP/2", &["h2"], Some("h2")),
    ];
    for (what, offered, agreed) in table {
        let caller = Caller::new(&authority.pem, Some(&pair)).offering(offered);
        let mut secure = caller.connect(&sidecar.address).unwrap();
        let alpn = secure.session().alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        assert_eq!(alpn.as_deref(), agreed, "{what}");
        if agreed != Some("h2") {
            assert_eq!(secure.ask(&request()).unwrap().status, 200, "{what}");
            // RFC 9113 section 3.2: over TLS nobody may do without the agreement.
            let mut raw = Raw::on(caller.connect(&sidecar.address).unwrap().into_stream());
            raw.send(raw::PREFACE);
            assert!(raw.until(|frame| frame.kind == raw::SETTINGS && frame.stream == 0).is_none(), "{what}");
            continue;
        }
        let mut raw = Raw::on(secure.into_stream());
        raw.begin(&[]);
        for stream in [1, 3] {
            raw.send(get(stream));
            assert!(raw.answers(stream), "{what}");
        }
        let seen = upstream.last();
        assert_eq!(seen.head.value("x-forwarded-proto"), Some("https"), "{what}");
        let decision = sidecar.decision(seen.head.value("dpa-decision-id").unwrap());
        assert_eq!(decision["caller_id"], "care-desk", "{what}: its certificate says who asks");
    }
    let other = Caller::new(&authority.pem, Some(&pair)).offering(&["h3"]);
    assert!(other.connect(&sidecar.address).is_err(), "there is nothing that both speak");
}

/// What a certificate proves ends with it: what is under way has its answer, and what comes then has none.
#[test]
fn a_connection_of_http2_ends_with_its_certificate() {
    let upstream = Upstream::ok();
    let (sidecar, authority) = Tls::to(&upstream.address).start();
    let caller = Caller::new(&authority.pem, Some(&authority.caller_for(CARE_DESK, 4))).offering(&["h2"]);
    let mut raw = Raw::on(caller.connect(&sidecar.address).unwrap().into_stream());
    raw.begin(&[]);
    raw.send(get(1));
    assert!(raw.answers(1));
    let goaway = raw.until(|frame| frame.kind == raw::GOAWAY).unwrap();
    assert_eq!(goaway.number(4), 0, "NO_ERROR");
    raw.send(get(3));
    assert!(raw.until(|_| false).is_none());
    wait_for("the outcome", || sidecar.records().iter().any(|record| record["outcome"] == "completed").then_some(()));
    assert!(upstream.seen().len() <= 2, "what crossed the GOAWAY may have been taken");
}
