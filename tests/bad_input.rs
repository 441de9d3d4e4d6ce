//! Heads that nobody should send: each is refused, none reaches the data service, all goes on.

use crate::support::CARE_DESK;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::permitted;

/// How a head ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// A problem document with this reason; the request has a decision.
    Problem(u16, &'static str),
    /// Answered by the HTTP library or closed, and counted so in `dpa.unread`.
    Unread(&'static str),
}

const UNREADABLE: Expect = Expect::Problem(400, "request_unreadable");

/// Sends each head on its own connection; then one that is permitted, which alone reaches the upstream.
fn refuse_all(sidecar: &mut Sidecar, upstream: &Upstream, table: &[(&str, String, Expect)]) {
    for (name, head, expected) in table {
        let mut connection = sidecar.connect();
        let _may_be_closed_early = connection.try_send(head);
        let answer = connection.answer();
        match *expected {
            Expect::Problem(status, reason) => {
                let answer = answer.unwrap_or_else(|| panic!("{name}: no answer"));
                assert_eq!(answer.status, status, "{name}: {answer:?}");
                assert_eq!(answer.reason(), reason, "{name}: {}", answer.text());
                let record = sidecar.decision(&answer.decision_id());
                assert_eq!((&record["decision"], &record["action"]), (&"deny".into(), &"denied".into()), "{name}");
            }
            Expect::Unread(why) => {
                if let Some(answer) = answer {
                    assert!(matches!(answer.status, 400 | 408 | 414 | 431), "{name}: {answer:?}");
                    assert!(connection.is_closed(), "{name}: the connection is still open");
                }
                sidecar.unread(why);
            }
        }
        assert!(upstream.seen().is_empty(), "{name}: it reached the upstream: {:?}", upstream.seen());
    }
    sidecar.still_serves();
    sidecar.is_sound();
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn targets_that_could_be_read_in_two_ways() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let get = |target: &str| Head::permitted("GET", target).end();
    let table = [
        ("dot segments", get("/v1/customers/x/../redwood-strand/subscribers/1a2b"), UNREADABLE),
        ("a dot segment", get("/v1/./customers/redwood-strand/subscribers/1a2b"), UNREADABLE),
        ("encoded dot segments", get("/v1/customers/%2e%2E/subscribers/1a2b"), UNREADABLE),
        ("an encoded slash", get("/v1/customers/redwood-strand/subscribers/1%2fa"), UNREADABLE),
        ("an encoded backslash", get("/v1/customers/redwood-strand/subscribers/1%5Ca"), UNREADABLE),
        ("an encoded NUL", get("/v1/customers/redwood-strand/subscribers/1%00"), UNREADABLE),
        ("an encoded line break", get("/v1/customers/redwood-strand/subscribers/1%0d%0aX:1"), UNREADABLE),
        ("an encoded NUL in the query", get("/v1/search?customer=redwood-strand&subscriber=%00"), UNREADABLE),
        ("an empty segment", get("/v1/customers//redwood-strand/subscribers/1a2b"), UNREADABLE),
        ("two slashes first", get("//v1/customers/redwood-strand/subscribers/1a2b"), UNREADABLE),
        ("a path parameter", get("/v1/customers/redwood-strand;x=1/subscribers/1a2b"), UNREADABLE),
        ("a bad escape", get("/v1/customers/redwood-strand/subscribers/%zz"), UNREADABLE),
        ("a cut escape", get("/v1/customers/redwood-strand/subscribers/1%2"), UNREADABLE),
        ("a brace", get("/v1/customers/{customer}/subscribers/1a2b"), UNREADABLE),
        ("a byte above 0x7f", get("/v1/customers/redwood-strand/subscribers/\u{e9}"), UNREADABLE),
        ("an asterisk", Head::permitted("OPTIONS", "*").end(), UNREADABLE),
        ("CONNECT", Head::permitted("CONNECT", "data.example:443").end(), UNREADABLE),
        ("CONNECT with the path of a route", Head::permitted("CONNECT", SUBSCRIBER).end(), UNREADABLE),
        ("CONNECT to the host itself", Head::permitted("CONNECT", "data.example").end(), UNREADABLE),
        ("absolute form, another authority", get("http://other.example/v1/usage/x"), UNREADABLE),
        ("absolute form, another port", get("http://data.example:81/v1/usage/x"), UNREADABLE),
        ("absolute form, another scheme", get("ftp://data.example/v1/usage/x"), UNREADABLE),
        ("user information", get("http://jane@data.example/v1/usage/x"), UNREADABLE),
        ("a fact twice in the query", get("/v1/search?customer=redwood-strand&subscriber=1&subscriber=2"), UNREADABLE),
        (
            "a fact twice, once encoded",
            get("/v1/search?customer=redwood-strand&subscriber=1&%73ubscriber=2"),
            UNREADABLE,
        ),
        (
            "a customer twice in the query",
            get("/v1/search?customer=redwood-strand&customer=redwood-strand&subscriber=1"),
            UNREADABLE,
        ),
        ("a query that some split at a semicolon", get("/v1/search?customer=redwood-strand;subscriber=1"), UNREADABLE),
        ("a subscriber that is no text", get("/v1/search?customer=redwood-strand&subscriber=%ff"), UNREADABLE),
    ];
    refuse_all(&mut sidecar, &upstream, &table);
}

#[test]
fn hosts_and_framings_that_could_be_read_in_two_ways() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let caller = format!("DPA-Caller: {CARE_DESK}\r\nDPA-Context: purpose=customer_support\r\n\r\n");
    let with_host = |lines: &str| format!("GET {SUBSCRIBER} HTTP/1.1\r\n{lines}{caller}");
    let post =
        |lines: &str, body: &str| format!("POST {SUBSCRIBER} HTTP/1.1\r\nHost: data.example\r\n{lines}{caller}{body}");
    let malformed = Expect::Unread("malformed");
    let table = [
        ("no Host", with_host(""), UNREADABLE),
        ("no Host with HTTP/1.0", with_host("").replace("HTTP/1.1", "HTTP/1.0"), UNREADABLE),
        ("Host twice", with_host("Host: data.example\r\nHost: data.example\r\n"), UNREADABLE),
        ("two Hosts", with_host("Host: data.example\r\nHost: other.example\r\n"), UNREADABLE),
        ("an empty Host", with_host("Host:\r\n"), UNREADABLE),
        ("user information in Host", with_host("Host: jane@data.example\r\n"), UNREADABLE),
        ("two names in Host", with_host("Host: data.example, other.example\r\n"), UNREADABLE),
        ("a path in Host", with_host("Host: data.example/x\r\n"), UNREADABLE),
        ("Transfer-Encoding gzip", post("Transfer-Encoding: gzip\r\n", "x"), malformed),
        ("gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), UNREADABLE),
        ("chunked, chunked", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), UNREADABLE),
        (
            "Transfer-Encoding twice",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            UNREADABLE,
        ),
        (
            "Transfer-Encoding twice, the first another",
            post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            UNREADABLE,
        ),
        (
            "chunked with HTTP/1.0",
            post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0"),
            malformed,
        ),
        ("two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"), malformed),
        ("two lengths in one line", post("Content-Length: 5, 6\r\n", "hello!"), malformed),
        ("a length with a sign", post("Content-Length: +5\r\n", "hello"), malformed),
        ("a negative length", post("Content-Length: -1\r\n", "hello"), malformed),
    ];
    refuse_all(&mut sidecar, &upstream, &table);
}

#[test]
fn contexts_that_could_be_read_in_two_ways() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let get =
        |context: &str| Head::bare("GET", SUBSCRIBER).with("DPA-Caller", CARE_DESK).with("DPA-Context", context).end();
    let twice = Head::permitted("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support").end();
    let told = Head::bare("GET", "/v1/support")
        .with("DPA-Caller", CARE_DESK)
        .with("DPA-Context", "purpose=billing_payment")
        .end();
    let table = [
        ("two header lines", twice, UNREADABLE),
        ("no dictionary", get("purpose customer_support"), UNREADABLE),
        ("a string that is not closed", get("purpose=\"customer_support"), UNREADABLE),
        ("a comma at the end", get("purpose=customer_support,"), UNREADABLE),
        ("an unknown member", get("purpose=customer_support, subscriber=\"1a2b\""), UNREADABLE),
        ("a member twice", get("purpose=customer_support, purpose=customer_support"), UNREADABLE),
        ("a member twice, with two values", get("purpose=sale, purpose=customer_support"), UNREADABLE),
        ("a member without a value", get("purpose"), UNREADABLE),
        ("parameters", get("purpose=customer_support;q=1"), UNREADABLE),
        ("parameters of a list", get("purpose=customer_support, customer=(redwood-strand);q=1"), UNREADABLE),
        ("parameters in a list", get("purpose=customer_support, customer=(redwood-strand;q=1)"), UNREADABLE),
        ("an integer", get("purpose=5"), UNREADABLE),
        ("a boolean", get("purpose=?1"), UNREADABLE),
        ("bytes", get("purpose=:aGVsbG8=:"), UNREADABLE),
        ("a date", get("purpose=@1659578233"), UNREADABLE),
        ("a list of purposes", get("purpose=(customer_support)"), UNREADABLE),
        ("a byte above 0x7f", get("purpose=\"caf\u{e9}\""), UNREADABLE),
        ("another customer than the path", get("purpose=customer_support, customer=granite-notch"), UNREADABLE),
        (
            "more customers than the path",
            get("purpose=customer_support, customer=(redwood-strand granite-notch)"),
            UNREADABLE,
        ),
        ("no customer, where the path names one", get("purpose=customer_support, customer=()"), UNREADABLE),
        ("another purpose than the route", told, UNREADABLE),
        ("an empty header", get(""), Expect::Problem(403, "purpose_missing")),
        ("an e-mail address as purpose", get("purpose=\"jane@example.com\""), Expect::Problem(403, "purpose_unknown")),
    ];
    refuse_all(&mut sidecar, &upstream, &table);
    let record = sidecar.record("purpose_unknown", |record| record["reason"] == "purpose_unknown");
    assert_eq!(record["unknown"]["purpose"]["length"], 16);
    let stopped = sidecar.stop();
    let log = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    for text in [&log, &stopped.stdout, &stopped.stderr] {
        assert!(!text.contains("jane"), "{text}");
    }
}

#[test]
fn heads_that_are_no_http() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let malformed = Expect::Unread("malformed");
    let line = |line: &str| format!("GET {SUBSCRIBER} HTTP/1.1\r\nHost: data.example\r\n{line}\r\n\r\n");
    let table = [
        ("garbage", "\u{1}\u{2}\u{3} this is no HTTP\r\n\r\n".to_owned(), malformed),
        ("a TLS hello", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n\r\n".to_owned(), malformed),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), malformed),
        ("no version", format!("GET {SUBSCRIBER}\r\n\r\n"), malformed),
        ("another version", format!("GET {SUBSCRIBER} HTTP/3.7\r\nHost: a\r\n\r\n"), malformed),
        ("NUL in a header", line("X-A: a\0b"), malformed),
        ("NUL in a header's name", line("X-\0A: b"), malformed),
        ("a folded header", line("X-A: a\r\n b"), malformed),
        ("a blank before the colon", line("X-A : a"), malformed),
        ("a header without a name", line(": a"), malformed),
        ("a header without a colon", line("X-A"), malformed),
        ("a bare CR in a header", line("X-A: a\rX-B: b"), malformed),
        ("a blank in the target", format!("GET {SUBSCRIBER} x HTTP/1.1\r\nHost: data.example\r\n\r\n"), malformed),
        ("a method that is no token", format!("GE@T {SUBSCRIBER} HTTP/1.1\r\nHost: data.example\r\n\r\n"), malformed),
    ];
    refuse_all(&mut sidecar, &upstream, &table);
}

#[test]
fn heads_over_a_limit() {
    let upstream = Upstream::ok();
    let setup = Setup::to(&upstream.address);
    let mut sidecar = Setup { more: "limits: {header_bytes: 8KiB, headers: 20}", ..setup }.start();
    let too_large = Expect::Unread("too_large");
    let many = (0..30).fold(Head::permitted("GET", SUBSCRIBER), |head, place| head.with(&format!("X-{place}"), "a"));
    let large = Head::permitted("GET", SUBSCRIBER).with("X-A", &"a".repeat(20_000));
    let long = Head::permitted("GET", &format!("{SUBSCRIBER}?{}", "a".repeat(20_000)));
    let table = [
        ("too many headers", many.end(), too_large),
        ("a large header", large.end(), too_large),
        ("a long target", long.end(), too_large),
    ];
    for (name, head, expected) in table {
        refuse_one(&mut sidecar, &upstream, name, head, expected);
    }
    sidecar.still_serves();
    let room = (0..14).fold(Head::permitted("GET", SUBSCRIBER), |head, place| head.with(&format!("X-{place}"), "a"));
    assert_eq!(sidecar.ask(room.end()).status, 200, "below the limits it passes");
}

/// Waits for a count of its own: what came before was summed up before.
fn refuse_one(sidecar: &mut Sidecar, upstream: &Upstream, name: &str, head: String, expected: Expect) {
    let Expect::Unread(why) = expected else { panic!("{name}: not a head that nobody reads") };
    let count = |sidecar: &Sidecar| sidecar.records().iter().filter_map(|record| record[why].as_u64()).sum::<u64>();
    let before = count(sidecar);
    let mut connection = sidecar.connect();
    let _may_be_closed_early = connection.try_send(head);
    if let Some(answer) = connection.answer() {
        assert!(matches!(answer.status, 400 | 408 | 414 | 431), "{name}: {answer:?}");
    }
    assert!(connection.is_closed(), "{name}: the connection is still open");
    crate::support::wait_for(name, || (count(sidecar) == before + 1).then_some(()));
    assert!(upstream.seen().is_empty(), "{name}");
    sidecar.is_sound();
}

#[test]
fn a_head_that_does_not_come_in_time() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup { more: "limits: {header_timeout: 300ms}", ..Setup::to(&upstream.address) }.start();
    let half = format!("GET {SUBSCRIBER} HTTP/1.1\r\nHost: data.exa");
    refuse_one(&mut sidecar, &upstream, "half a head", half, Expect::Unread("timed_out"));
    sidecar.still_serves();
}

#[test]
fn a_connection_that_was_only_idle_is_no_unread_request() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup { more: "limits: {idle_timeout: 300ms}", ..Setup::to(&upstream.address) }.start();
    let mut fresh = sidecar.connect();
    assert!(fresh.is_closed());
    let mut used = sidecar.connect();
    used.send(permitted());
    assert_eq!(used.answer().unwrap().status, 200);
    assert!(used.is_closed());
    // What the two counted stands in a sum before, or beside, this one.
    let mut connection = sidecar.connect();
    connection.send("garbage\r\n\r\n");
    sidecar.unread("malformed");
    let timed_out: u64 = sidecar.records().iter().filter_map(|record| record["timed_out"].as_u64()).sum();
    assert_eq!(timed_out, 0, "connections without a byte of a request were counted as heads that timed out");
    sidecar.is_sound();
}

#[test]
fn a_body_that_does_not_come_to_its_end() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let table = [
        ("a length that is too long", Head::permitted("POST", SUBSCRIBER).with("Content-Length", "10").end() + "hello"),
        (
            "chunks without a last",
            Head::permitted("POST", SUBSCRIBER).with("Transfer-Encoding", "chunked").end() + "5\r\nhello\r\n",
        ),
        (
            "a chunk without a size",
            Head::permitted("POST", SUBSCRIBER).with("Transfer-Encoding", "chunked").end() + "zz\r\nhello\r\n",
        ),
        (
            "a chunk that is too long for any number",
            Head::permitted("POST", SUBSCRIBER).with("Transfer-Encoding", "chunked").end()
                + "fffffffffffffffff\r\nhello\r\n",
        ),
    ];
    for (name, request) in table {
        let permits = |sidecar: &Sidecar| {
            let is_it =
                |record: &&serde_json::Value| record["event"] == "dpa.outcome" && record["outcome"] != "completed";
            sidecar.records().iter().filter(is_it).count()
        };
        let before = permits(&sidecar);
        let mut connection = sidecar.connect();
        connection.send(request);
        connection.finish();
        if let Some(answer) = connection.answer() {
            assert!(matches!(answer.status, 400 | 502), "{name}: {answer:?}");
        }
        crate::support::wait_for(name, || (permits(&sidecar) > before).then_some(()));
        assert!(!upstream.seen().iter().any(|seen| seen.head.value("content-length") == Some("5")), "{name}");
    }
    sidecar.still_serves();
    sidecar.is_sound();
}

#[test]
fn a_method_that_no_route_gives_an_operation_is_not_mapped() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let unmapped = Expect::Problem(403, "route_unmapped");
    let table = [
        ("BREW", Head::permitted("BREW", SUBSCRIBER).end(), unmapped),
        ("OPTIONS", Head::permitted("OPTIONS", SUBSCRIBER).end(), unmapped),
        ("TRACE", Head::permitted("TRACE", SUBSCRIBER).end(), unmapped),
        ("get in small letters", Head::permitted("get", SUBSCRIBER).end(), unmapped),
    ];
    refuse_all(&mut sidecar, &upstream, &table);
    assert!(sidecar.records().iter().all(|record| !record.to_string().contains("BREW")));
}
