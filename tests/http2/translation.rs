//! A request of HTTP/2 becomes one of HTTP/1.1 and its answer one of HTTP/2: nothing else may change.

use bytes::Bytes;
use h2::client::SendRequest;
use http::HeaderMap;
use http::Request;
use http::Response;

use super::raw::DATA;
use super::raw::RST_STREAM;
use super::raw::Raw;
use super::raw::frame;
use super::raw::post;
use crate::support::CARE_DESK;
use crate::support::CEILING;
use crate::support::ROLLUP;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::wait_for;

/// A caller that speaks by the library.
struct Caller {
    runtime: tokio::runtime::Runtime,
    send: SendRequest<Bytes>,
}

/// What it heard.
#[derive(Debug)]
struct Heard {
    head: Response<()>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Heard {
    fn value(&self, name: &str) -> Option<&str> {
        self.head.headers().get(name).map(|value| value.to_str().unwrap())
    }
}

impl Caller {
    fn to(sidecar: &Sidecar) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = sidecar.address.clone();
        let send = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let (send, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            send
        });
        Self { runtime, send }
    }

    /// Sends a request, with these pieces of a body if it has one, and reads the answer to its end.
    fn ask(&mut self, request: Request<()>, body: Option<&[&'static str]>) -> Result<Heard, h2::Error> {
        let Self { runtime, send } = self;
        let work = async {
            let mut ready = send.clone().ready().await?;
            let (answer, mut upload) = ready.send_request(request, body.is_none())?;
            if let Some(pieces) = body {
                for piece in pieces {
                    upload.send_data(Bytes::from_static(piece.as_bytes()), false)?;
                    tokio::task::yield_now().await;
                }
                upload.send_data(Bytes::new(), true)?;
            }
            let (head, mut stream) = answer.await?.into_parts();
            let mut body = Vec::new();
            while let Some(piece) = stream.data().await {
                let piece = piece?;
                body.extend_from_slice(&piece);
                stream.flow_control().release_capacity(piece.len())?;
            }
            Ok(Heard { head: Response::from_parts(head, ()), body, trailers: stream.trailers().await? })
        };
        runtime.block_on(async { tokio::time::timeout(CEILING, work).await.unwrap() })
    }
}

fn permitted(method: &str) -> http::request::Builder {
    bare(method).header("dpa-caller", CARE_DESK).header("dpa-context", "purpose=customer_support")
}

fn bare(method: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://data.example{SUBSCRIBER}"))
}

#[test]
fn what_the_service_sees() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let mut caller = Caller::to(&sidecar);
    let get = || permitted("GET");
    type Row<'t> = (&'t str, Request<()>, Option<&'t [&'static str]>, &'t [(&'t str, &'t [&'t str])], &'t str);
    let table: [Row<'_>; 7] = [
        ("the authority is Host", get().body(()).unwrap(), None, &[("host", &["data.example"])], ""),
        (
            "cookies are one",
            get().header("cookie", "a=1").header("cookie", "b=2; c=3").header("cookie", "d=4").body(()).unwrap(),
            None,
            &[("cookie", &["a=1; b=2; c=3; d=4"])],
            "",
        ),
        (
            "which version it came in",
            get().body(()).unwrap(),
            None,
            &[("via", &["2.0 dpa-sidecar"]), ("transfer-encoding", &[]), ("content-length", &[])],
            "",
        ),
        (
            "a body with a length",
            permitted("POST").header("content-length", "4").body(()).unwrap(),
            Some(&["ab", "cd"]),
            &[("content-length", &["4"]), ("transfer-encoding", &[])],
            "abcd",
        ),
        (
            "a body without one",
            permitted("POST").body(()).unwrap(),
            Some(&["ab", "cd"]),
            &[("content-length", &[]), ("transfer-encoding", &["chunked"])],
            "abcd",
        ),
        (
            "one behind a method that mostly has none",
            get().body(()).unwrap(),
            Some(&["ab"]),
            &[("transfer-encoding", &["chunked"])],
            "ab",
        ),
        (
            "a body that is empty",
            permitted("POST").header("content-length", "0").body(()).unwrap(),
            None,
            &[("content-length", &["0"]), ("transfer-encoding", &[])],
            "",
        ),
    ];
    for (what, request, body, headers, came) in table {
        let heard = caller.ask(request, body).unwrap();
        assert_eq!((heard.head.status().as_u16(), heard.body.as_slice()), (200, b"ok".as_slice()), "{what}");
        let seen = upstream.last();
        assert_eq!(seen.head.line.rsplit_once(' ').unwrap().1, "HTTP/1.1", "{what}");
        assert_eq!(String::from_utf8(seen.body).unwrap(), came, "{what}");
        for (name, values) in headers {
            assert_eq!(seen.head.values(name), *values, "{what}: {name}");
        }
        sidecar.outcome(heard.value("dpa-decision-id").unwrap());
    }
    let decisions = sidecar.records().iter().filter(|record| record["event"] == "dpa.decision").count();
    assert_eq!(decisions, upstream.seen().len());
}

#[test]
fn what_could_be_read_in_two_ways_is_refused_and_recorded() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let mut caller = Caller::to(&sidecar);
    let to = |uri: &str| permitted("GET").uri(uri).body(()).unwrap();
    let table = [
        ("two hosts", permitted("GET").header("host", "other.example").body(()).unwrap(), "differs from the Host"),
        (
            "Host twice",
            permitted("GET").header("host", "data.example").header("host", "data.example").body(()).unwrap(),
            "more than one Host",
        ),
        ("a user", to(&format!("http://me@data.example{SUBSCRIBER}")), "user information"),
        ("another scheme", to(&format!("ftp://data.example{SUBSCRIBER}")), "neither a path"),
        ("dots", to("http://data.example/v1/../x"), "`..`"),
        ("CONNECT", Request::builder().method("CONNECT").uri("data.example:80").body(()).unwrap(), "CONNECT"),
    ];
    for (what, request, detail) in table {
        let heard = caller.ask(request, None).unwrap();
        assert_eq!(heard.head.status(), 400, "{what}");
        let text = String::from_utf8(heard.body.clone()).unwrap();
        assert!(text.contains(detail) && text.contains("request_unreadable"), "{what}: {text}");
        let decision = sidecar.decision(heard.value("dpa-decision-id").unwrap());
        assert_eq!(decision["reason"], "request_unreadable", "{what}");
    }
    assert!(upstream.seen().is_empty());
}

#[test]
fn answers_without_a_body_have_none() {
    let upstream = Upstream::start(|exchange| {
        let status = exchange.head.values("want").first().map_or("200 OK", |want| *want).to_owned();
        exchange.send(format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n"));
        if status.starts_with("200") && !exchange.head.line.starts_with("HEAD") {
            exchange.send("whole");
        }
        if status.starts_with("204") { Then::Close } else { Then::Keep }
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut caller = Caller::to(&sidecar);
    type Row<'t> = (&'t str, Request<()>, u16, Option<&'t str>, usize);
    let table: [Row<'_>; 4] = [
        ("GET", permitted("GET").body(()).unwrap(), 200, Some("5"), 5),
        ("HEAD", permitted("HEAD").body(()).unwrap(), 200, Some("5"), 0),
        ("not modified", permitted("GET").header("want", "304 Not Modified").body(()).unwrap(), 304, Some("5"), 0),
        ("a refused HEAD", bare("HEAD").body(()).unwrap(), 401, None, 0),
    ];
    for (what, request, status, length, bytes) in table {
        let heard = caller.ask(request, None).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((heard.head.status().as_u16(), heard.body.len()), (status, bytes), "{what}");
        assert!(length.is_none() || heard.value("content-length") == length, "{what}: {heard:?}");
        if status != 401 {
            let outcome = sidecar.outcome(heard.value("dpa-decision-id").unwrap());
            assert_eq!(outcome["outcome"], "completed", "{what}");
        }
    }
}

#[test]
fn a_large_answer_comes_whole() {
    const LARGE: usize = 8 << 20;
    let upstream = Upstream::start(|exchange| exchange.ok(vec![b'x'; LARGE]));
    let sidecar = Setup::to(&upstream.address).start();
    let heard = Caller::to(&sidecar).ask(permitted("GET").body(()).unwrap(), None).unwrap();
    assert_eq!(heard.body.len(), LARGE);
}

/// Problem documents mean nothing to a caller of gRPC: it asks for the status of its call.
#[test]
fn a_call_of_grpc_is_refused_in_its_own_words() {
    let upstream = Upstream::start(|exchange| {
        exchange.body();
        Then::Close
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut caller = Caller::to(&sidecar);
    let call = |request: http::request::Builder, kind: &str| {
        request.uri("http://data.example/v1/support").header("content-type", kind).body(()).unwrap()
    };
    // What is done shows in no method of HTTP.
    let unmapped = permitted("POST").header("content-type", "application/grpc").body(()).unwrap();
    let denied = bare("POST").header("dpa-caller", ROLLUP).header("dpa-context", "purpose=customer_support");
    let two_hosts = permitted("POST").header("host", "other.example");
    let table = [
        ("nobody", call(bare("POST"), "application/grpc"), "16", "caller_unidentified: "),
        ("denied", call(denied, "application/grpc+proto"), "7", "purpose_not_"),
        ("no answer", call(permitted("POST"), "Application/gRPC;x=y"), "14", "upstream_unavailable: "),
        ("no operation", unmapped, "7", "route_unmapped: "),
        ("unreadable", call(two_hosts, "application/grpc"), "13", "request_unreadable: "),
        (
            "another type beside it",
            call(bare("POST").header("content-type", "text/plain"), "application/grpc"),
            "16",
            "c",
        ),
    ];
    for (what, request, status, message) in table {
        let heard = caller.ask(request, Some(&["\0\0\0\0\0"])).unwrap();
        assert_eq!(heard.head.status(), 200, "{what}");
        assert_eq!(heard.value("content-type"), Some("application/grpc"), "{what}");
        assert_eq!(heard.value("grpc-status"), Some(status), "{what}");
        assert!(heard.value("grpc-message").unwrap().starts_with(message), "{what}: {heard:?}");
        assert!(heard.body.is_empty() && heard.trailers.is_none() && heard.value("content-length").is_none(), "{what}");
        sidecar.decision(heard.value("dpa-decision-id").unwrap());
    }
    // What only begins so was told in a head that it does not look at.
    for other in ["application/json", "application/grpc-web", "application/grpc-web+proto", "application/grpcx"] {
        let problem = caller.ask(bare("POST").header("content-type", other).body(()).unwrap(), None).unwrap();
        assert_eq!(problem.value("content-type"), Some("application/problem+json"), "{other}");
        assert_eq!((problem.head.status().as_u16(), problem.value("grpc-status")), (401, None), "{other}");
    }
}

#[test]
fn a_head_has_its_limits() {
    let upstream = Upstream::ok();
    let sidecar = Setup { more: "limits: {header_bytes: 4KiB, headers: 20}", ..Setup::to(&upstream.address) }.start();
    let mut caller = Caller::to(&sidecar);
    let large = permitted("GET").header("x-large", "x".repeat(5000)).body(()).unwrap();
    assert_eq!(caller.ask(large, None).unwrap().head.status(), 431);
    assert_eq!(sidecar.unread("refused")["refused"], 1);
    let many = (0..20).fold(permitted("GET"), |request, number| request.header(format!("x-{number}"), "1"));
    assert_eq!(caller.ask(many.body(()).unwrap(), None).unwrap().head.status(), 431);
    assert_eq!(sidecar.unread("too_large")["too_large"], 1);
    let crumbs = (0..40).fold(permitted("GET"), |request, number| request.header("cookie", format!("x{number}=1")));
    assert_eq!(caller.ask(crumbs.body(()).unwrap(), None).unwrap().head.status(), 200, "crumbs are one header");
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn who_takes_a_request_back_ends_it_at_the_service_too() {
    let (tell, told) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        tell.send("asked").unwrap();
        exchange.until_closed();
        tell.send("closed").unwrap();
        Then::Close
    });
    let sidecar = Setup::to(&upstream.address).start();
    let mut caller = Caller::to(&sidecar);
    let Caller { runtime, send } = &mut caller;
    runtime.block_on(async {
        let mut ready = send.clone().ready().await.unwrap();
        let (answer, mut upload) = ready.send_request(permitted("GET").body(()).unwrap(), true).unwrap();
        let asked = tokio::task::spawn_blocking(move || {
            assert_eq!(told.recv_timeout(CEILING), Ok("asked"));
            told
        });
        let told = asked.await.unwrap();
        upload.send_reset(h2::Reason::CANCEL);
        drop(answer);
        let closed = tokio::task::spawn_blocking(move || assert_eq!(told.recv_timeout(CEILING), Ok("closed")));
        closed.await.unwrap();
    });
    let outcome = sidecar.record("an outcome", |record| record["event"] == "dpa.outcome");
    assert_eq!(outcome["outcome"], "aborted");
}

/// Each request of a connection counts by itself.
#[test]
fn too_many_requests_at_a_time_are_turned_away() {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::start(move |exchange| {
        let _released = wait.lock().unwrap().recv_timeout(CEILING);
        exchange.ok("ok")
    });
    let sidecar = Setup { more: "limits: {concurrent_requests: 1}", ..Setup::to(&upstream.address) }.start();
    let mut caller = Caller::to(&sidecar);
    let Caller { runtime, send } = &mut caller;
    let mut ready = runtime.block_on(send.clone().ready()).unwrap();
    let (answer, _upload) = ready.send_request(permitted("GET").body(()).unwrap(), true).unwrap();
    wait_for("the first", || {
        runtime.block_on(tokio::task::yield_now());
        (!upstream.seen().is_empty()).then_some(())
    });
    let heard = caller.ask(permitted("GET").body(()).unwrap(), None).unwrap();
    assert_eq!((heard.head.status().as_u16(), heard.value("retry-after")), (503, Some("1")));
    let call = permitted("POST").header("content-type", "application/grpc").body(()).unwrap();
    assert_eq!(caller.ask(call, None).unwrap().value("grpc-status"), Some("14"));
    assert_eq!(sidecar.unread("overloaded")["event"], "dpa.unread");
    release.send(()).unwrap();
    let first = caller.runtime.block_on(answer).unwrap();
    assert_eq!(first.status(), 200);
}

/// The library has NO_ERROR for an end like any other: the service got the piece that had come, and the end behind it.
#[test]
fn a_body_that_was_taken_back_without_an_error_came_to_its_end() {
    let (tell, told) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        tell.send(exchange.body_and_end()).unwrap();
        exchange.ok("")
    });
    let sidecar = Setup::to(&upstream.address).start();
    for (before, what, reason) in [(0, "NO_ERROR", 0_u32), (1, "CANCEL", 8)] {
        let mut raw = Raw::begun(&sidecar);
        raw.send([post(1), frame(DATA, 0, 1, b"part")].concat());
        wait_for("the request", || (upstream.seen().len() > before).then_some(()));
        raw.send(frame(RST_STREAM, 0, 1, reason.to_be_bytes()));
        let (_, is_whole) = told.recv_timeout(CEILING).unwrap();
        assert!(!is_whole, "{what}: the service took it for all");
    }
    let outcomes = wait_for("both outcomes", || {
        let records = sidecar.records();
        let outcomes: Vec<_> = records.into_iter().filter(|it| it["event"] == "dpa.outcome").collect();
        (outcomes.len() == 2).then_some(outcomes)
    });
    for outcome in outcomes {
        assert_eq!((&outcome["outcome"], outcome.get("status")), (&"aborted".into(), None), "{outcome}");
    }
}
