//! The proxy door: what passes, what is set anew, what is refused.

use std::sync::Mutex;
use std::sync::mpsc;

use crate::support::CARE_DESK;
use crate::support::CEILING;
use crate::support::Exchange;
use crate::support::Head;
use crate::support::ROLLUP;
use crate::support::STRANGER;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::denied;
use crate::support::permitted;

#[test]
fn a_permitted_request_is_forwarded_under_its_decision_id() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let target = "/v1/customers/%72edwood-strand/subscribers/1a%c3%a9?b=%7e&c=d";
    let answer = sidecar.ask(Head::permitted("GET", target).end());
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));

    let seen = upstream.last();
    assert_eq!(seen.head.line, "GET /v1/customers/redwood-strand/subscribers/1a%C3%A9?b=~&c=d HTTP/1.1");
    assert_eq!(seen.head.value("host"), Some("data.example"));
    let context = "customer=\"redwood-strand\", purpose=\"customer_support\"";
    assert_eq!(seen.head.value("dpa-context"), Some(context));
    assert_eq!(seen.head.value("dpa-decision-id"), Some(answer.decision_id().as_str()));
    assert_eq!(seen.head.value("x-forwarded-for"), None, "it comes from loopback");
    assert_eq!(seen.head.value("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.head.value("x-forwarded-host"), Some("data.example"));
    assert_eq!(seen.head.value("forwarded"), Some("host=data.example;proto=http"));
    assert_eq!(seen.head.value("via"), Some("1.1 dpa-sidecar"));
    assert_eq!(answer.value("via"), None);
    assert_eq!(answer.value("server-timing"), None, "only where the settings want it");
    assert_eq!(seen.head.value("dpa-caller"), None);

    let record = sidecar.decision(&answer.decision_id());
    assert_eq!(record["decision"], "permit");
    let outcome = sidecar.outcome(&answer.decision_id());
    assert_eq!(outcome["outcome"], "completed");
    assert_eq!(outcome["status"], 200);
    assert_eq!(outcome["response_bytes"], 2);
}

#[test]
fn what_is_established_is_what_is_sent_on() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let table = [
        (
            "an instruction and a reference",
            "customer=redwood-strand, purpose=customer_support, instruction=\"ins-001\", request_ref=\"DSR-98\"",
            "customer=\"redwood-strand\", instruction=\"ins-001\", purpose=\"customer_support\", request_ref=\"DSR-98\"",
        ),
        (
            "a reference of another shape counts as absent",
            "purpose=customer_support, request_ref=\"jane@example.com\"",
            "customer=\"redwood-strand\", purpose=\"customer_support\"",
        ),
        (
            "a customer twice in a list counts once",
            "purpose=customer_support, customer=(\"redwood-strand\" redwood-strand)",
            "customer=\"redwood-strand\", purpose=\"customer_support\"",
        ),
    ];
    for (name, given, expected) in table {
        let request = Head::bare("GET", SUBSCRIBER).with("DPA-Caller", CARE_DESK).with("DPA-Context", given);
        let answer = sidecar.ask(request.end());
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let seen = upstream.last();
        assert_eq!(seen.head.value("dpa-context"), Some(expected), "{name}");
    }
}

#[test]
fn what_a_caller_claims_about_itself_does_not_pass() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let request = Head::permitted("GET", SUBSCRIBER)
        .with("DPA-Decision-Id", "spoofed")
        .with("DPA-Anything", "spoofed")
        .with("Dpa_Context", "spoofed")
        .with("dpa_decision_id", "spoofed")
        .with("DPA-Recipient", "spoofed")
        .with("X-Forwarded-For", "spoofed")
        .with("X-Forwarded-Host", "spoofed")
        .with("X-Forwarded-Proto", "spoofed")
        .with("X-Forwarded-Port", "spoofed")
        .with("X-Forwarded-Client-Cert", "spoofed")
        .with("X-Real-Ip", "spoofed")
        .with("Forwarded", "for=spoofed")
        .with("X-Request-Id", "spoofed value")
        .with("Traceparent", "spoofed")
        .with("Tracestate", "spoofed")
        .with("Accept", "text/plain")
        .with("Cookie", "a=b");
    let answer = sidecar.ask(request.end());
    assert_eq!(answer.status, 200);
    let seen = upstream.last();
    assert!(!format!("{:?}", seen.head).contains("spoofed"), "{:?}", seen.head);
    assert_eq!(seen.head.value("accept"), Some("text/plain"));
    assert_eq!(seen.head.value("cookie"), Some("a=b"));
    let request_id = seen.head.value("x-request-id").unwrap();
    assert_eq!(sidecar.decision(&answer.decision_id())["request_id"], request_id);
    let parent = seen.head.value("traceparent").unwrap();
    let trace = sidecar.decision(&answer.decision_id())["trace_id"].as_str().unwrap().to_owned();
    assert_eq!(parent.split('-').nth(1), Some(trace.as_str()));
}

#[test]
fn connection_cannot_name_the_context_away() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let request = Head::permitted("GET", SUBSCRIBER)
        .with("Connection", "dpa-context, dpa-decision-id, x-forwarded-host, keep-alive");
    let answer = sidecar.ask(request.end());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = upstream.last();
    for name in ["dpa-context", "dpa-decision-id", "x-forwarded-host"] {
        assert!(seen.head.value(name).is_some(), "`Connection` took {name} away: {:?}", seen.head);
    }
}

/// A request of HTTP/1.1 without a Host is one that the sidecar itself refuses.
#[test]
fn connection_named_the_host_away() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let answer = sidecar.ask(Head::permitted("GET", SUBSCRIBER).with("Connection", "host").end());
    if answer.status == 200 {
        assert_eq!(upstream.last().head.value("host"), Some("data.example"));
    } else {
        assert_eq!((answer.status, upstream.seen().len()), (400, 0));
    }
}

#[test]
fn connection_cannot_name_the_framing_away() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let head = || Head::permitted("POST", SUBSCRIBER);
    let table = [
        ("a length", head().with("Connection", "content-length").body("hello")),
        (
            "chunks",
            head().with("Connection", "transfer-encoding").with("Transfer-Encoding", "chunked").end()
                + "5\r\nhello\r\n0\r\n\r\n",
        ),
    ];
    let mut connection = sidecar.connect();
    for (name, request) in table {
        connection.send(request);
        assert_eq!(connection.answer().unwrap().status, 200, "{name}");
        assert_eq!(upstream.last().body, b"hello", "{name}");
    }
}

#[test]
fn well_formed_ids_of_a_caller_are_kept() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let (parent, id) =
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "8f14e45f-ceea-467f-a1d6-0c1a2b3c4d5e");
    let request = Head::permitted("GET", SUBSCRIBER).with("traceparent", parent).with("X-Request-Id", id);
    let answer = sidecar.ask(request.end());
    let seen = upstream.last();
    assert_eq!(seen.head.value("traceparent"), Some(parent));
    assert_eq!(seen.head.value("x-request-id"), Some(id));
    let record = sidecar.decision(&answer.decision_id());
    assert_eq!(record["request_id"], id);
    assert_eq!(record["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
}

#[test]
fn hop_by_hop_headers_stop_here_both_ways() {
    let upstream = Upstream::start(|exchange| {
        exchange.send(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Inner, keep-alive\r\nX-Inner: 1\r\n\
             Keep-Alive: timeout=9\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nDPA-Decision-Id: spoofed\r\n\
             DPA-Context: spoofed\r\nX-Outer: 2\r\n\r\nok",
        );
        Then::Keep
    });
    let sidecar = Setup::to(&upstream.address).start();
    let request = Head::permitted("GET", SUBSCRIBER)
        .with("Connection", "X-Inner, keep-alive, TE")
        .with("X-Inner", "1")
        .with("Keep-Alive", "timeout=9")
        .with("Proxy-Authorization", "Basic eA==")
        .with("Proxy-Connection", "keep-alive")
        .with("TE", "trailers")
        .with("Upgrade", "h2c")
        .with("X-Outer", "2");
    let answer = sidecar.ask(request.end());
    let seen = upstream.last();
    let stopped = ["x-inner", "keep-alive", "proxy-authorization", "proxy-authenticate", "proxy-connection", "upgrade"];
    for name in stopped {
        assert_eq!(seen.head.value(name), None, "of the request: {:?}", seen.head);
        assert_eq!(answer.value(name), None, "of the answer: {:?}", answer.head);
    }
    // Trailers pass: the sidecar takes them too, and says so itself.
    for (name, of_request) in [("connection", Some("te")), ("te", Some("trailers"))] {
        assert_eq!(seen.head.value(name), of_request, "of the request: {:?}", seen.head);
        assert_eq!(answer.value(name), None, "of the answer: {:?}", answer.head);
    }
    assert_eq!(seen.head.value("x-outer"), Some("2"));
    assert_eq!(answer.value("x-outer"), Some("2"));
    assert_eq!(answer.value("dpa-context"), None);
    assert_ne!(answer.decision_id(), "spoofed");
}

#[test]
fn a_connection_carries_many_requests() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    for (place, expected) in [200, 403, 200, 404, 200].into_iter().enumerate() {
        let request = match expected {
            200 => permitted(),
            403 => denied(),
            _ => "GET /nowhere HTTP/1.1\r\nHost: data.example\r\n\r\n".to_owned(),
        };
        connection.send(request);
        let answer = connection.answer().unwrap_or_else(|| panic!("request {place} was not answered"));
        let expected = if expected == 404 { 401 } else { expected };
        assert_eq!(answer.status, expected, "request {place}");
    }
    assert_eq!(upstream.seen().len(), 3);
    let connections: Vec<usize> = upstream.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0, 0], "the connection to the upstream is kept too");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::start(|exchange| {
        let target = exchange.head.line.clone();
        exchange.ok(target)
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    let ids = ["1a2b", "1a2c", "1a2d"];
    let requests: String = ids.iter().map(|id| Head::permitted("GET", &subscriber(id)).end()).collect();
    connection.send(requests + &denied() + &permitted());
    for id in ids {
        let answer = connection.answer().unwrap();
        assert_eq!(answer.text(), format!("GET {} HTTP/1.1", subscriber(id)));
    }
    assert_eq!(connection.answer().unwrap().status, 403);
    assert_eq!(connection.answer().unwrap().status, 200);
}

fn subscriber(id: &str) -> String {
    format!("/v1/customers/redwood-strand/subscribers/{id}")
}

#[test]
fn bodies_of_requests_arrive_as_they_were_sent() {
    let upstream = Upstream::start(|exchange| {
        let body = exchange.body();
        exchange.ok(body.len().to_string())
    });
    let sidecar = Setup::to(&upstream.address).start();
    let large = "x".repeat(300_000);
    let chunked = |method: &str, body: &str| {
        let head = Head::permitted(method, SUBSCRIBER).with("Transfer-Encoding", "chunked").end();
        let (one, two) = body.split_at(body.len() / 2);
        head + &[one, two]
            .iter()
            .filter(|part| !part.is_empty())
            .map(|part| format!("{:x}\r\n{part}\r\n", part.len()))
            .collect::<String>()
            + "0\r\n\r\n"
    };
    let table = [
        ("a length", Head::permitted("POST", SUBSCRIBER).body("hello"), "hello"),
        ("a length of 0", Head::permitted("POST", SUBSCRIBER).body(""), ""),
        ("no body at all", Head::permitted("POST", SUBSCRIBER).end(), ""),
        ("a large one", Head::permitted("PUT", SUBSCRIBER).body(&large), large.as_str()),
        ("chunks", chunked("POST", "hello"), "hello"),
        ("no chunk but the last", chunked("POST", ""), ""),
        ("many chunks", chunked("PATCH", &large), large.as_str()),
        ("a GET with a body", Head::permitted("GET", SUBSCRIBER).body("hello"), "hello"),
        ("a GET with chunks", chunked("GET", "hello"), "hello"),
        ("a DELETE with a body", Head::permitted("DELETE", SUBSCRIBER).body("hello"), "hello"),
    ];
    let mut connection = sidecar.connect();
    for (name, request, expected) in table {
        connection.send(request);
        let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!((answer.status, answer.text()), (200, expected.len().to_string()), "{name}");
        assert_eq!(String::from_utf8(upstream.last().body).unwrap(), expected, "{name}");
        let outcome = sidecar.outcome(&answer.decision_id());
        assert_eq!(outcome["request_bytes"].as_u64(), u64::try_from(expected.len()).ok(), "{name}");
    }
}

#[test]
fn a_request_is_streamed() {
    let (arrived, arrivals) = mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        arrived.send(exchange.bytes("5\r\nfirst\r\n".len())).unwrap();
        exchange.ok("ok")
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    connection.send(Head::permitted("POST", SUBSCRIBER).with("Transfer-Encoding", "chunked").end() + "5\r\nfirst\r\n");
    assert_eq!(arrivals.recv_timeout(CEILING).unwrap(), b"5\r\nfirst\r\n");
    connection.send("6\r\nsecond\r\n0\r\n\r\n");
    assert_eq!(connection.answer().unwrap().status, 200);
    assert_eq!(upstream.last().body, b"second");
}

#[test]
fn an_answer_is_streamed() {
    let (allow, allowed) = mpsc::channel::<()>();
    let allowed = Mutex::new(allowed);
    let upstream = Upstream::start(move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        allowed.lock().unwrap().recv_timeout(CEILING).unwrap();
        exchange.send("6\r\nsecond\r\n0\r\n\r\n");
        Then::Keep
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    connection.send(permitted());
    let (status, head) = connection.head().unwrap();
    assert_eq!((status, head.value("transfer-encoding")), (200, Some("chunked")));
    assert_eq!(connection.bytes(10), b"5\r\nfirst\r\n");
    allow.send(()).unwrap();
    assert_eq!(connection.bytes(16), b"6\r\nsecond\r\n0\r\n\r\n");
}

#[test]
fn an_answer_that_comes_before_the_request_has_ended_is_passed_on() {
    let upstream = Upstream::start(|exchange| {
        exchange.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nfull");
        exchange.until_closed();
        Then::Close
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    connection.send(Head::permitted("POST", SUBSCRIBER).with("Content-Length", "100000").end() + "begin");
    let answer = connection.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (413, "full"));
    sidecar.outcome(&answer.decision_id());
    sidecar.ask(denied());
}

#[test]
fn answers_without_a_body() {
    let upstream = Upstream::start(|exchange: &mut Exchange<'_>| {
        let answer = if exchange.head.line.contains("/204") {
            "HTTP/1.1 204 No Content\r\n\r\n"
        } else if exchange.head.line.contains("/304") {
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"
        } else if exchange.head.line.starts_with("HEAD") {
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        };
        exchange.send(answer);
        Then::Keep
    });
    let sidecar = Setup::to(&upstream.address).start();
    let table = [
        ("no content", "GET", "204", 204, None),
        ("not modified", "GET", "304", 304, None),
        ("HEAD says how long a GET would be", "HEAD", "200", 200, Some("5")),
        ("HEAD of a 204", "HEAD", "204", 204, None),
        ("an empty one", "GET", "200", 200, Some("0")),
    ];
    let mut connection = sidecar.connect();
    for (name, method, id, status, length) in table {
        connection.send(Head::permitted(method, &subscriber(id)).end());
        let (got, head) = connection.head().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!((got, head.value("content-length")), (status, length), "{name}");
        let outcome = sidecar.outcome(head.value("dpa-decision-id").unwrap());
        assert_eq!((&outcome["outcome"], &outcome["status"]), (&"completed".into(), &status.into()), "{name}");
    }
    connection.send(permitted());
    assert_eq!(connection.answer().unwrap().status, 200, "the connection is still in step");
    let seen = upstream.seen();
    assert!(seen.iter().all(|seen| seen.connection == seen.connection.min(1)), "connections to the upstream are kept");
}

#[test]
fn a_refused_head_has_no_body() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    connection.send(Head::denied("HEAD", SUBSCRIBER).end() + &permitted());
    assert_eq!(connection.head().unwrap().0, 403);
    assert_eq!(connection.answer().unwrap().status, 200, "the connection is still in step");
}

#[test]
fn a_caller_that_speaks_http_1_0_is_served() {
    let chunked = Upstream::saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let sized = Upstream::saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let to_close = Upstream::saying(b"HTTP/1.0 200 OK\r\n\r\nhello");
    for (name, upstream) in [("chunks", chunked), ("a length", sized), ("up to the close", to_close)] {
        let sidecar = Setup::to(&upstream.address).start();
        let mut connection = sidecar.connect();
        connection.send(permitted().replace("HTTP/1.1", "HTTP/1.0"));
        let answer = connection.answer().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{name}: {answer:?}");
        assert_eq!(answer.value("transfer-encoding"), None, "{name}");
        assert!(connection.is_closed(), "{name}");
        assert!(upstream.last().head.line.ends_with("HTTP/1.1"), "{name}");
    }
}

#[test]
fn an_answer_that_ends_with_the_connection_is_framed_anew() {
    let upstream = Upstream::saying(b"HTTP/1.1 200 OK\r\n\r\nhello");
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    for _ in 0..2 {
        connection.send(permitted());
        let answer = connection.answer().unwrap();
        assert_eq!((answer.text().as_str(), answer.is_whole), ("hello", true), "{answer:?}");
        assert_eq!(answer.value("transfer-encoding"), Some("chunked"));
        assert_eq!(sidecar.outcome(&answer.decision_id())["outcome"], "completed");
    }
}

#[test]
fn a_caller_that_expects_100_continue_gets_it_only_when_permitted() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let expecting = |head: Head| head.with("Content-Length", "5").with("Expect", "100-continue").end();

    let mut connection = sidecar.connect();
    connection.send(expecting(Head::permitted("POST", SUBSCRIBER)));
    assert_eq!(connection.answer().unwrap().status, 100);
    connection.send("hello");
    assert_eq!(connection.answer().unwrap().status, 200);
    let seen = upstream.last();
    assert_eq!((seen.body.as_slice(), seen.head.value("expect")), (b"hello".as_slice(), None));

    let mut connection = sidecar.connect();
    connection.send(expecting(Head::denied("POST", SUBSCRIBER)));
    assert_eq!(connection.answer().unwrap().status, 403);
    assert_eq!(upstream.seen().len(), 1);

    let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sidecar = Setup::to(&refused.to_string()).start();
    let mut connection = sidecar.connect();
    connection.send(expecting(Head::permitted("POST", SUBSCRIBER)));
    assert_eq!(connection.answer().unwrap().status, 502, "nobody is asked for a body that has nowhere to go");
}

#[test]
fn a_refused_upload_is_read_on_and_the_refusal_arrives() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    connection.send(Head::denied("POST", SUBSCRIBER).body(&"x".repeat(60_000)));
    assert_eq!(connection.answer().unwrap().status, 403);
    connection.send(permitted());
    assert_eq!(connection.answer().unwrap().status, 200, "a short upload does not cost the connection");

    let mut connection = sidecar.connect();
    connection.send(Head::denied("POST", SUBSCRIBER).with("Content-Length", "100000000").end());
    let sent = connection.try_send("x".repeat(70_000));
    let answer = connection.answer();
    assert_eq!(answer.map(|answer| answer.status), Some(403), "{sent:?}");
    assert!(connection.is_closed());
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_refusal_is_a_problem_document() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let answer = sidecar.ask(denied());
    assert_eq!(answer.status, 403);
    let problem = answer.problem();
    let mut members: Vec<&String> = problem.as_object().unwrap().keys().collect();
    members.sort();
    let expected = ["clause", "detail", "instance", "policy_digest", "reason", "status", "title", "type"];
    assert_eq!(members, expected);
    assert_eq!(problem["type"], "tag:dpa-sidecar.example,2026:reason/purpose_not_bound_to_caller");
    assert_eq!(problem["status"], 403);
    assert_eq!(problem["reason"], "purpose_not_bound_to_caller");
    assert_eq!(problem["clause"], "1.2");
    assert_eq!(problem["instance"], format!("urn:uuid:{}", answer.decision_id()));
    let record = sidecar.decision(&answer.decision_id());
    assert_eq!(problem["policy_digest"], record["policy"]["digest"]);
    assert_eq!((&record["decision"], &record["action"]), (&"deny".into(), &"denied".into()));
    assert_eq!(answer.value("cache-control"), Some("no-store"));
    assert!(upstream.seen().is_empty());
    let outcomes = sidecar.records().iter().filter(|record| record["event"] == "dpa.outcome").count();
    assert_eq!(outcomes, 0, "what was not forwarded has no outcome");
}

#[test]
fn who_is_told_what() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let context = |purpose: &str| format!("purpose={purpose}");
    let table = [
        ("nobody", None, "customer_support", SUBSCRIBER, 401, "caller_unidentified", "2.1"),
        ("nobody, with a purpose nobody knows", None, "nonsense", SUBSCRIBER, 401, "caller_unidentified", "2.1"),
        ("nobody, where there is no route", None, "nonsense", "/nowhere", 401, "caller_unidentified", "2.1"),
        (
            "a header that is no identity",
            Some("jane"),
            "customer_support",
            SUBSCRIBER,
            401,
            "caller_unidentified",
            "2.1",
        ),
        (
            "a pattern",
            Some("spiffe://lumenfield.example/ns/*/sa/x"),
            "customer_support",
            SUBSCRIBER,
            401,
            "caller_unidentified",
            "2.1",
        ),
        ("a third party", Some(STRANGER), "customer_support", SUBSCRIBER, 403, "recipient_unknown", "2.2"),
        (
            "a third party that wants to advertise",
            Some(STRANGER),
            "cross_context_behavioral_advertising",
            SUBSCRIBER,
            403,
            "recipient_unknown",
            "2.2",
        ),
        (
            "a third party, where there is no route",
            Some(STRANGER),
            "customer_support",
            "/nowhere",
            403,
            "recipient_unknown",
            "2.2",
        ),
        (
            "a caller, where there is no route",
            Some(CARE_DESK),
            "customer_support",
            "/nowhere",
            403,
            "route_unmapped",
            "P.3",
        ),
        ("a caller, for sale", Some(CARE_DESK), "sale", SUBSCRIBER, 403, "purpose_prohibited", "7.1"),
        (
            "a caller, for advertising",
            Some(CARE_DESK),
            "cross_context_behavioral_advertising",
            SUBSCRIBER,
            403,
            "purpose_prohibited",
            "7.3",
        ),
        (
            "a caller, about a restricted subscriber",
            Some(CARE_DESK),
            "customer_support",
            "/v1/customers/redwood-strand/subscribers/7c1e",
            403,
            "subscriber_restricted",
            "4.4",
        ),
        (
            "a caller, for a customer nobody knows",
            Some(CARE_DESK),
            "customer_support",
            "/v1/customers/nobody/subscribers/1",
            403,
            "customer_unknown",
            "P.1",
        ),
        (
            "a caller, for no customer",
            Some(CARE_DESK),
            "customer_support",
            "/v1/search?subscriber=1a2b",
            403,
            "customer_missing",
            "P.1",
        ),
    ];
    for (name, caller, purpose, target, status, reason, clause) in table {
        let mut head = Head::bare("GET", target).with("DPA-Context", &context(purpose));
        if let Some(caller) = caller {
            head = head.with("DPA-Caller", caller);
        }
        let answer = sidecar.ask(head.end());
        let problem = answer.problem();
        assert_eq!((answer.status, problem["reason"].as_str()), (status, Some(reason)), "{name}");
        assert_eq!(problem["clause"], clause, "{name}");
        assert_eq!(problem["type"], format!("tag:dpa-sidecar.example,2026:reason/{reason}"), "{name}");
        assert_eq!(answer.value("www-authenticate").is_some(), status == 401, "{name}");
        let record = sidecar.decision(&answer.decision_id());
        assert_eq!(record["action"], "denied", "{name}");
    }
    assert!(upstream.seen().is_empty());
    let answer = sidecar.ask(
        Head::bare("GET", SUBSCRIBER)
            .with("DPA-Caller", STRANGER)
            .with("DPA-Context", "purpose=cross_context_behavioral_advertising")
            .end(),
    );
    let record = sidecar.decision(&answer.decision_id());
    let codes: Vec<&str> = record["reasons"].as_array().unwrap().iter().filter_map(|it| it["code"].as_str()).collect();
    assert_eq!(codes, ["purpose_prohibited", "recipient_unknown"], "the record holds all");
    assert_eq!(record["caller_id"], STRANGER);
    assert_eq!(record["recipient"]["type"], "third_party");
}

#[test]
fn a_header_from_a_peer_that_is_not_listed_proves_nothing() {
    let upstream = Upstream::ok();
    let folder = crate::support::Folder::new();
    let setup = Setup::to(&upstream.address);
    let sidecar = Setup { peers: "10.0.0.0/8", ..setup }.start_in(folder);
    let answer = sidecar.ask(permitted());
    assert_eq!((answer.status, answer.reason().as_str()), (401, "caller_unidentified"));
    let record = sidecar.decision(&answer.decision_id());
    assert_eq!(record["unknown"]["caller"]["why"], "unproven");
    let answer = sidecar.ask(Head::bare("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support").end());
    assert_eq!(sidecar.decision(&answer.decision_id())["unknown"]["caller"]["why"], "missing");
}

#[test]
fn two_identities_in_the_header_prove_nothing() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let answer = sidecar.ask(Head::permitted("GET", SUBSCRIBER).with("DPA-Caller", ROLLUP).end());
    assert_eq!((answer.status, answer.reason().as_str()), (401, "caller_unidentified"));
    assert!(upstream.seen().is_empty());
}

#[test]
fn routes_outside_the_agreement_and_probes_pass_without_a_caller() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let table = [
        ("an asset", Head::bare("GET", "/assets/logo.svg"), 200, "/assets/{*rest}"),
        ("the folder of assets", Head::bare("GET", "/assets/"), 200, "/assets/{*rest}"),
        ("an asset, by a caller", Head::permitted("GET", "/assets/a/b"), 200, "/assets/{*rest}"),
        ("a probe", Head::bare("GET", "/healthz"), 200, "/healthz"),
        ("a probe with HEAD", Head::bare("HEAD", "/healthz"), 200, "/healthz"),
        ("a method of its own", Head::bare("BREW", "/assets/pot"), 200, "/assets/{*rest}"),
    ];
    for (name, head, status, route) in table {
        let is_called = head.clone().end().contains("DPA-Caller");
        let mut connection = sidecar.connect();
        connection.send(head.end());
        let (got, head) = connection.head().unwrap();
        assert_eq!(got, status, "{name}");
        let id = head.value("dpa-decision-id").unwrap();
        let record = sidecar.decision(id);
        assert_eq!(record["decision"], "permit", "{name}");
        assert_eq!(record["authority"], "out_of_scope", "{name}");
        assert_eq!(record["route"], route, "{name}");
        assert_eq!(record["caller_id"].as_str(), is_called.then_some("care-desk"), "{name}");
        let seen = upstream.seen().into_iter().find(|seen| seen.head.value("dpa-decision-id") == Some(id)).unwrap();
        assert_eq!(seen.head.value("dpa-context"), None, "{name}");
    }
    let table = [
        ("another method of a probe", Head::bare("POST", "/healthz")),
        ("another method of an asset", Head::bare("POST", "/assets/logo.svg")),
        ("below a probe", Head::bare("GET", "/healthz/x")),
    ];
    for (name, head) in table {
        assert_eq!(sidecar.ask(head.end()).status, 401, "{name}");
    }
}

#[test]
fn a_sidecar_that_observes_forwards_what_is_denied() {
    let upstream = Upstream::ok();
    let sidecar = Setup { enforcement: "observe", ..Setup::to(&upstream.address) }.start();
    let table = [
        ("permitted", permitted(), "permit", "allowed", None),
        ("denied", denied(), "deny", "observed", Some("purpose_not_bound_to_caller")),
        ("nobody", Head::bare("GET", SUBSCRIBER).end(), "deny", "observed", Some("caller_unidentified")),
        ("no route", Head::bare("GET", "/nowhere").end(), "deny", "observed", Some("caller_unidentified")),
    ];
    for (name, request, decision, action, reason) in table {
        let answer = sidecar.ask(request);
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{name}");
        let record = sidecar.decision(&answer.decision_id());
        assert_eq!((record["decision"].as_str(), record["action"].as_str()), (Some(decision), Some(action)), "{name}");
        assert_eq!((record["enforcement"].as_str(), record["reason"].as_str()), (Some("observe"), reason), "{name}");
        assert_eq!(upstream.last().head.value("dpa-caller"), None, "{name}");
    }
    let answer = sidecar.ask(Head::permitted("GET", "/v1//x").end());
    assert_eq!((answer.status, answer.reason().as_str()), (400, "request_unreadable"));
    let answer = sidecar.ask(Head::permitted("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support").end());
    assert_eq!(answer.status, 400, "what can be read in two ways stays refused");
    assert_eq!(upstream.seen().len(), 4);
    let mode = sidecar.record("the mode", |record| record["event"] == "dpa.policy");
    assert_eq!(mode["enforcement"], "observe");
}

#[test]
fn a_customer_on_observe_is_forwarded_while_others_are_refused() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let usage = |customers: &str| {
        Head::bare("GET", "/v1/usage/x")
            .with("DPA-Caller", CARE_DESK)
            .with("DPA-Context", &format!("customer={customers}, purpose=customer_analytics"))
            .end()
    };
    let table = [
        ("on observe", "cedar-hollow", 200, "observed"),
        ("on enforce", "redwood-strand", 403, "denied"),
        ("one of each", "(cedar-hollow redwood-strand)", 403, "denied"),
        ("one on observe and one that nobody knows", "(cedar-hollow nobody)", 403, "denied"),
    ];
    for (name, customers, status, action) in table {
        let answer = sidecar.ask(usage(customers));
        assert_eq!(answer.status, status, "{name}");
        let record = sidecar.decision(&answer.decision_id());
        assert_eq!((record["decision"].as_str(), record["action"].as_str()), (Some("deny"), Some(action)), "{name}");
    }
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn requests_that_the_library_repairs_are_framed_anew() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let head = || Head::permitted("POST", SUBSCRIBER);
    let table = [
        (
            "a Content-Length beside chunked",
            head().with("Content-Length", "3").with("Transfer-Encoding", "chunked").end() + "5\r\nhello\r\n0\r\n\r\n",
        ),
        ("a length with a zero before it", head().with("Content-Length", "05").end() + "hello"),
        ("a length twice", head().with("Content-Length", "5").with("Content-Length", "5").end() + "hello"),
        ("lines that end in LF", head().body("hello").replace("\r\n", "\n")),
        ("a fragment", Head::permitted("POST", &format!("{SUBSCRIBER}#top")).body("hello")),
        ("a chunk extension", head().with("Transfer-Encoding", "chunked").end() + "5;a=b\r\nhello\r\n0\r\n\r\n"),
    ];
    for (name, request) in table {
        let mut connection = sidecar.connect();
        connection.send(request);
        let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        let seen = upstream.last();
        assert_eq!(seen.body, b"hello", "{name}");
        assert_eq!(seen.head.line, format!("POST {SUBSCRIBER} HTTP/1.1"), "{name}");
        let both = seen.head.value("content-length").is_some() && seen.head.value("transfer-encoding").is_some();
        assert!(!both, "{name}: {:?}", seen.head);
        assert!(seen.head.value("content-length").is_none_or(|length| length == "5"), "{name}: {:?}", seen.head);
    }
}

#[test]
fn a_header_that_nobody_is_believed_with_passes_from_a_trusted_setter() {
    let upstream = Upstream::ok();
    let table = [
        ("the setter", "headers: {trusted: [{name: X-Real-Ip, trusted_peers: [127.0.0.1/32]}]}", Some("198.51.100.7")),
        ("somebody else", "headers: {trusted: [{name: X-Real-Ip, trusted_peers: [10.0.0.0/8]}]}", None),
        ("no setter", "", None),
    ];
    for (name, more, expected) in table {
        let sidecar = Setup { more, ..Setup::to(&upstream.address) }.start();
        let request = Head::permitted("GET", SUBSCRIBER)
            .with("X-Real-Ip", "198.51.100.7")
            .with("X_Real_Ip", "192.0.2.7")
            .with("X-Client-Ip", "192.0.2.8");
        assert_eq!(sidecar.ask(request.end()).status, 200, "{name}");
        let seen = upstream.last();
        assert_eq!(seen.head.value("x-real-ip"), expected, "{name}");
        assert!(!format!("{:?}", seen.head).contains("192.0.2"), "{name}: {:?}", seen.head);
    }
}

#[test]
fn answers_tell_how_long_the_sidecar_took_if_that_is_set() {
    let upstream = Upstream::start(|exchange| {
        exchange.body();
        exchange.send("HTTP/1.1 200 OK\r\nServer-Timing: db;dur=5\r\nContent-Length: 2\r\n\r\nok");
        Then::Keep
    });
    let sidecar = Setup { more: "headers: {server_timing: true}", ..Setup::to(&upstream.address) }.start();
    for (name, request, of_the_service) in [("sent on", permitted(), 1), ("refused", denied(), 0)] {
        let answer = sidecar.ask(request);
        let timings = answer.head.values("server-timing");
        let ours = timings.iter().filter_map(|timing| timing.strip_prefix("dpa;dur="));
        let ours: Vec<f64> = ours.map(|timing| timing.parse().unwrap()).collect();
        assert_eq!((ours.len(), timings.len()), (1, 1 + of_the_service), "{name}: {timings:?}");
        assert!(ours.iter().all(|millis| *millis > 0.0), "{name}: {timings:?}");
    }
}
