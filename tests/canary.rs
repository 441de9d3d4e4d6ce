//! Nothing of a request gets into a log or an answer of ours: words that occur nowhere else, put into
//! every part of a request, are found in no sink.

use crate::support::CARE_DESK;
use crate::support::Head;
use crate::support::ROLLUP;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::permitted;

/// What no sink may hold, in any spelling.
const CANARY: &str = "canaria";

/// `caller` of the requests below.
fn head(method: &str, target: &str, caller: &str, context: &str) -> Head {
    Head::bare(method, target)
        .with("DPA-Caller", caller)
        .with("DPA-Context", context)
        .with("User-Agent", "canaria-agent")
        .with("Cookie", "session=canaria-cookie")
        .with("Authorization", "Bearer canaria-token")
        .with("X-Canaria-Name", "1")
        .with("X-Value", "canaria-value")
        .with("X-Request-Id", "canaria-request")
        .with("traceparent", "00-canaria-trace")
        .with("tracestate", "canaria=state")
        .with("Referer", "http://canaria-referer/")
        .with("X-Forwarded-For", "canaria-address")
        .with("DPA-Spoofed", "canaria-spoofed")
        .with("DPA-Decision-Id", "canaria-decision")
}

#[test]
fn no_part_of_a_request_is_in_any_log_or_answer() {
    let upstream = Upstream::ok();
    let path = "/v1/customers/redwood-strand/subscribers/canaria-subscriber?q=canaria-query";
    let support = "purpose=customer_support";
    let table: Vec<(&str, Head)> = vec![
        ("permitted", head("POST", path, CARE_DESK, support)),
        (
            "permitted, with a reference of another shape",
            head("POST", path, CARE_DESK, "purpose=customer_support, request_ref=\"canaria-ref\""),
        ),
        ("denied", head("POST", path, ROLLUP, support)),
        ("a customer nobody knows", head("POST", "/v1/customers/canaria-customer/subscribers/1", CARE_DESK, support)),
        (
            "a customer nobody knows in the context",
            head("POST", "/v1/usage/canaria", CARE_DESK, "customer=\"canaria-customer\", purpose=customer_support"),
        ),
        (
            "a customer nobody knows in a list",
            head(
                "POST",
                "/v1/usage/canaria",
                CARE_DESK,
                "customer=(\"canaria\" redwood-strand), purpose=customer_support",
            ),
        ),
        (
            "a customer nobody knows in the query",
            head("POST", "/v1/search?customer=canaria&subscriber=canaria", CARE_DESK, support),
        ),
        ("a purpose nobody knows", head("POST", path, CARE_DESK, "purpose=\"canaria@example.com\"")),
        (
            "an instruction nobody knows",
            head("POST", path, CARE_DESK, "purpose=customer_support, instruction=\"canaria\""),
        ),
        (
            "a context that contradicts the path",
            head("POST", path, CARE_DESK, "customer=\"canaria\", purpose=customer_support"),
        ),
        ("a member nobody knows", head("POST", path, CARE_DESK, "canaria=1")),
        ("no dictionary", head("POST", path, CARE_DESK, "\"canaria")),
        ("a caller that is no identity", head("POST", path, "canaria caller", support)),
        ("a caller with a token's subject", head("POST", path, "jwt:https://canaria.example|canaria", support)),
        ("a caller with a name of its own", head("POST", path, "dns:canaria.example", support)),
        ("a method nobody knows", head("CANARIA", path, CARE_DESK, support)),
        ("a path without a route", head("POST", "/canaria/path", CARE_DESK, support)),
        ("outside the agreement", head("GET", "/assets/canaria.svg?canaria=1", CARE_DESK, support)),
        ("a path that can be read in two ways", head("POST", "/v1/canaria/../x", CARE_DESK, support)),
        ("a bad escape", head("POST", "/v1/canaria/%zz", CARE_DESK, support)),
        ("another authority", head("POST", "http://canaria.example/v1", CARE_DESK, support)),
    ];
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let garbled = Upstream::saying(b"canaria is no HTTP\r\n\r\n");
    let setups = [
        ("enforce", Setup::to(&upstream.address)),
        ("observe", Setup { enforcement: "observe", ..Setup::to(&upstream.address) }),
        ("an upstream that refuses", Setup::to(&refusing)),
        ("an upstream that says garbage", Setup::to(&garbled.address)),
        (
            "a log that cannot be written",
            Setup {
                wrapper: ["sh", "-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh"].map(str::to_owned).to_vec(),
                ..Setup::to(&upstream.address)
            },
        ),
    ];
    for (setting, setup) in setups {
        let log = "{file: {path: decisions.ndjson}, stdout: true}".to_owned();
        let mut sidecar = Setup { decision_log: log, ..setup }.start();
        for (name, head) in &table {
            let answer = sidecar.ask(head.clone().body("canaria-body"));
            let is_ours = answer.value("content-type") == Some("application/problem+json");
            if is_ours {
                assert_none(&answer.everything(), &format!("the answer: {setting}, {name}"));
            }
            let status = answer.status;
            assert!(is_ours || status == 200, "{setting}, {name}: {answer:?}");
        }
        let raw = [
            ("a Host", format!("GET /canaria HTTP/1.1\r\nHost: canaria.example\r\nDPA-Caller: {CARE_DESK}\r\n\r\n")),
            ("a Host that is none", "GET /canaria HTTP/1.1\r\nHost: canaria@example.com\r\n\r\n".to_owned()),
            ("two Hosts", "GET / HTTP/1.1\r\nHost: canaria\r\nHost: canaria2\r\n\r\n".to_owned()),
            ("garbage", "canaria is no HTTP\r\n\r\n".to_owned()),
            ("a header that is none", "GET /canaria HTTP/1.1\r\ncanaria\0: canaria\r\n\r\n".to_owned()),
            ("a large head", format!("GET /canaria HTTP/1.1\r\nX-A: {}\r\n\r\n", "canaria".repeat(20_000))),
            ("a length that is none", "POST /canaria HTTP/1.1\r\nContent-Length: canaria\r\n\r\n".to_owned()),
            (
                "a chunk that is none",
                permitted()
                    .replace("GET", "POST")
                    .replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\ncanaria\r\n"),
            ),
        ];
        for (name, request) in raw {
            let mut connection = sidecar.connect();
            let _may_be_closed_early = connection.try_send(request);
            connection.finish();
            if let Some(answer) = connection.answer()
                && setting != "observe"
            {
                assert_none(&answer.everything(), &format!("the answer: {setting}, {name}"));
            }
        }
        sidecar.is_sound();
        let stopped = sidecar.stop();
        let log = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
        assert!(log.contains("dpa.policy"), "{setting}");
        assert_none(&log, &format!("the decision log: {setting}"));
        assert_none(&stopped.stdout, &format!("standard output: {setting}"));
        assert_none(&stopped.stderr, &format!("standard error: {setting}"));
    }
    let arrived = upstream.seen().iter().any(|seen| seen.body == b"canaria-body");
    assert!(arrived, "the upstream gets what is permitted");
}

fn assert_none(text: &str, sink: &str) {
    let found = text.lines().find(|line| line.to_ascii_lowercase().contains(CANARY));
    assert_eq!(found, None, "{sink} holds a part of a request");
}
