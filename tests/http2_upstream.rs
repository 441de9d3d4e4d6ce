//! Data services that speak HTTP/2: what they are told, what comes back, and what one exchange does to the others.

use std::cell::RefCell;
use std::future::Future;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::RecvStream;
use h2::SendStream;
use h2::client::SendRequest;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::StatusCode;
use tokio::task::LocalSet;

use crate::support::CARE_DESK;
use crate::support::CEILING;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::http2;
use crate::support::http2::Call;
use crate::support::http2::Frames;
use crate::support::http2::Http2Upstream;
use crate::support::permitted;
use crate::support::wait_for;

const HTTP2: &str = ", protocol: http2";
/// One worker, so that all exchanges share its connections; and routes that say what their calls do.
const GRPC: &str = "
  - path: /care.Subscribers/{*method}
    customer: redwood-strand
    purpose: customer_support
    operation: retrieve
    data_categories: [user.contact]
  - path: /care.Unsaid/{*method}
    customer: redwood-strand
    purpose: customer_support
    data_categories: [user.contact]
probes:";

fn settings(address: &str, upstream_keys: &'static str) -> (Setup, String) {
    let setup = Setup { upstream_keys, ..Setup::to(address) };
    let text = setup.text().replace("workers: 2", "workers: 1").replacen("probes:", GRPC, 1);
    (setup, text)
}

fn sidecar(address: &str, upstream_keys: &'static str) -> Sidecar {
    let (setup, text) = settings(address, upstream_keys);
    setup.start_with(&text, Folder::new())
}

/// Answers everything with `ok`.
fn ok() -> Http2Upstream {
    serving(|mut call| {
        Box::pin(async move {
            call.read().await.unwrap();
            call.answer(Response::new(()), &[b"ok"], None).await;
        })
    })
}

fn serving(serve: impl Fn(Call) -> http2::Answering + Send + 'static) -> Http2Upstream {
    Http2Upstream::start(&h2::server::Builder::new(), None, serve)
}

/// A request by HTTP/2, permitted.
fn request(method: &str, path: &str) -> http::request::Builder {
    let builder = Request::builder().method(method).uri(format!("http://data.example{path}"));
    builder.header("dpa-caller", CARE_DESK).header("dpa-context", "purpose=customer_support")
}

fn call(method: &str) -> Request<()> {
    let builder = request("POST", &format!("/care.Subscribers/{method}"));
    builder.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap()
}

/// Does something on a connection of HTTP/2 to the sidecar.
fn on_one_connection<F: Future<Output = ()>>(sidecar: &Sidecar, what: impl FnOnce(SendRequest<Bytes>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let stream = tokio::net::TcpStream::connect(&sidecar.address).await.unwrap();
        // What one stream does not take holds up no other, on this side.
        let mut http = h2::client::Builder::new();
        let (sender, connection) = http.initial_connection_window_size(64 << 20).handshake(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        tokio::time::timeout(CEILING, what(sender)).await.unwrap();
    });
}

/// Sends a head and gives back both sides.
async fn ask(sender: &SendRequest<Bytes>, request: Request<()>, is_whole: bool) -> (Asking, SendStream<Bytes>) {
    let (answer, stream) = sender.clone().ready().await.unwrap().send_request(request, is_whole).unwrap();
    (Asking(answer), stream)
}

struct Asking(h2::client::ResponseFuture);

impl Asking {
    async fn head(self) -> Response<RecvStream> {
        self.0.await.unwrap()
    }
}

async fn read(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut whole = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        let _over = body.flow_control().release_capacity(piece.len());
        whole.extend_from_slice(&piece);
    }
    Ok((whole, body.trailers().await?))
}

fn id<B>(answer: &Response<B>) -> String {
    answer.headers()["dpa-decision-id"].to_str().unwrap().to_owned()
}

/// The status of a call that has an answer without a body.
fn status_of<B>(answer: &Response<B>) -> Option<&str> {
    answer.headers().get("grpc-status").map(|status| status.to_str().unwrap())
}

fn ended(sidecar: &Sidecar, id: &str) -> (String, u64) {
    let outcome = sidecar.outcome(id);
    (outcome["outcome"].as_str().unwrap().to_owned(), outcome["status"].as_u64().unwrap_or(0))
}

#[test]
fn the_head_of_a_request_is_as_http2_has_it() {
    let upstream = ok();
    let sidecar = sidecar(&upstream.address, HTTP2);
    let get = Head::permitted("GET", &format!("{SUBSCRIBER}?a=b"))
        .with("Connection", "keep-alive, X-Hop")
        .with("X-Hop", "1")
        .with("Upgrade", "websocket")
        .with("TE", "gzip, trailers;q=1")
        .with("Cookie", "a=1");
    let post = Head::permitted("POST", SUBSCRIBER).with("Transfer-Encoding", "chunked");
    let table = [
        ("without a body", get.end(), "GET", [None, None, Some("a=1")]),
        ("TE", Head::permitted("GET", SUBSCRIBER).with("TE", "trailers").end(), "GET", [Some("trailers"), None, None]),
        ("a length", Head::permitted("PUT", SUBSCRIBER).body("hello"), "PUT", [None, Some("5"), None]),
        ("chunks", post.end() + "5\r\nhello\r\n0\r\n\r\n", "POST", [None, None, None]),
    ];
    for (name, request, method, [te, length, cookie]) in table {
        let answer = sidecar.ask(request);
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{name}: {answer:?}");
        assert_eq!(answer.head.line, "HTTP/1.1 200 OK", "{name}");
        assert_eq!(answer.value("transfer-encoding"), Some("chunked"), "{name}");
        let asked = upstream.last();
        assert_eq!(asked.method, method, "{name}");
        assert_eq!(asked.uri.scheme_str(), Some("http"), "{name}");
        assert_eq!(asked.uri.authority().unwrap().as_str(), "data.example", "{name}");
        assert_eq!(asked.uri.path(), SUBSCRIBER, "{name}");
        assert_eq!(asked.value("via"), Some("1.1 dpa-sidecar"), "{name}");
        let found = [asked.value("te"), asked.value("content-length"), asked.value("cookie")];
        assert_eq!(found, [te, length, cookie], "{name}");
        for gone in ["host", "connection", "transfer-encoding", "upgrade", "x-hop", "dpa-caller"] {
            assert_eq!(asked.value(gone), None, "{name}");
        }
        assert_eq!(ended(&sidecar, &answer.decision_id()), ("completed".to_owned(), 200), "{name}");
        let bytes = sidecar.outcome(&answer.decision_id());
        let sent = if ["PUT", "POST"].contains(&method) { 5 } else { 0 };
        assert_eq!((&bytes["request_bytes"], &bytes["response_bytes"]), (&sent.into(), &2.into()), "{name}");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn answers_without_a_body() {
    let upstream = serving(|mut call| {
        Box::pin(async move {
            let (status, length) = if call.asked.method == "HEAD" { (200, Some("77")) } else { (204, None) };
            let mut head = Response::builder().status(status);
            head = length.into_iter().fold(head, |head, length| head.header("content-length", length));
            call.answer(head.body(()).unwrap(), &[], None).await;
        })
    });
    let sidecar = sidecar(&upstream.address, HTTP2);
    for (method, status, length) in [("HEAD", 200, Some("77")), ("GET", 204, None)] {
        let mut connection = sidecar.connect();
        for _ in 0..2 {
            connection.send(Head::permitted(method, SUBSCRIBER).end());
            let (found, head) = connection.head().unwrap();
            assert_eq!((found, head.value("content-length"), head.value("transfer-encoding")), (status, length, None));
            let id = head.value("dpa-decision-id").unwrap();
            assert_eq!(ended(&sidecar, id), ("completed".to_owned(), u64::from(status)), "{method}");
        }
    }
}

/// What comes in by HTTP/1.1 or HTTP/2 goes on by either, with its trailers but for those that nobody may send.
#[test]
fn trailers_pass_both_ways_unless_they_would_be_read_as_something_else() {
    let of_answer = || {
        let mut trailers = HeaderMap::new();
        for (name, value) in
            [("x-sum", "2"), ("grpc-status", "0"), ("dpa-decision-id", "spoofed"), ("set-cookie", "a=b")]
        {
            trailers.insert(name, HeaderValue::from_static(value));
        }
        trailers
    };
    let seen = Arc::new(Mutex::new(None));
    let told = Arc::clone(&seen);
    let by_http2 = serving(move |mut call| {
        let told = Arc::clone(&told);
        Box::pin(async move {
            *told.lock().unwrap() = call.read().await.unwrap().1;
            let head = Response::builder().header("trailer", "x-sum, DPA-Decision-Id, Grpc-Status").body(()).unwrap();
            call.answer(head, &[b"ok"], Some(of_answer())).await;
        })
    });
    let by_http1 = Upstream::start(|exchange| {
        let mut raw = Vec::new();
        while !raw.ends_with(b"\r\n\r\n") {
            raw.extend(exchange.bytes(1));
        }
        let text = String::from_utf8(raw).unwrap();
        assert!(text.contains("\r\nx-sum: 1\r\n") && !text.contains("authorization"), "{text}");
        exchange
            .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Grpc-Status, Set-Cookie\r\n\r\n");
        exchange
            .send("2\r\nok\r\n0\r\nX-Sum: 2\r\nGrpc-Status: 0\r\nSet-Cookie: a=b\r\nDPA-Decision-Id: spoofed\r\n\r\n");
        Then::Keep
    });
    for (is_http2, sidecar) in [(true, sidecar(&by_http2.address, HTTP2)), (false, sidecar(&by_http1.address, ""))] {
        let head = Head::permitted("POST", SUBSCRIBER)
            .with("Transfer-Encoding", "chunked")
            .with("Trailer", "X-Sum, Authorization")
            .with("TE", "trailers")
            .with("Connection", "TE, Trailer");
        let mut connection = sidecar.connect();
        connection
            .send(head.end() + "5\r\nhello\r\n0\r\nX-Sum: 1\r\nAuthorization: Basic eA==\r\nDPA-Context: a\r\n\r\n");
        let (status, head) = connection.head().unwrap();
        let announced = head.value("trailer").map(|names| names.replace(' ', ""));
        assert_eq!((status, announced.as_deref()), (200, Some("x-sum,grpc-status")), "{is_http2}: {head:?}");
        let mut rest = String::new();
        while !rest.ends_with("\r\n\r\n") {
            rest.push(char::from(connection.bytes(1)[0]));
        }
        assert!(rest.starts_with("2\r\nok\r\n0\r\n"), "{is_http2}: {rest}");
        assert!(rest.contains("x-sum: 2\r\n") && rest.contains("grpc-status: 0\r\n"), "{is_http2}: {rest}");
        assert!(!rest.contains("spoofed") && !rest.contains("cookie"), "{is_http2}: {rest}");
        let outcome = sidecar.outcome(head.value("dpa-decision-id").unwrap());
        assert_eq!(outcome["outcome"], "completed");
        assert_eq!((&outcome["request_bytes"], &outcome["response_bytes"]), (&5.into(), &2.into()), "{is_http2}");

        on_one_connection(&sidecar, async |sender| {
            let head =
                request("POST", SUBSCRIBER).header("te", "trailers").header("trailer", "x-sum").body(()).unwrap();
            let (answer, mut stream) = ask(&sender, head, false).await;
            stream.send_data(Bytes::from_static(b"hello"), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("1"));
            trailers.insert("authorization", HeaderValue::from_static("Basic eA=="));
            stream.send_trailers(trailers).unwrap();
            let mut answer = answer.head().await;
            let (body, trailers) = read(answer.body_mut()).await.unwrap();
            assert_eq!(body, b"ok", "{is_http2}");
            let trailers = trailers.unwrap();
            assert_eq!(
                (&trailers["x-sum"], &trailers["grpc-status"], trailers.len()),
                (&"2".parse().unwrap(), &"0".parse().unwrap(), 2)
            );
            assert_eq!(ended(&sidecar, &id(&answer)), ("completed".to_owned(), 200), "{is_http2}");
        });
        if is_http2 {
            let seen = seen.lock().unwrap().take().unwrap();
            assert_eq!((&seen["x-sum"], seen.len()), (&HeaderValue::from_static("1"), 1));
        }
    }
}

/// Many exchanges at once are on one connection; where it is full, on another; where there may be none, they wait.
#[test]
fn exchanges_share_connections_as_far_as_the_upstream_takes_them() {
    let (release, released) = tokio::sync::watch::channel(false);
    let serve = move |mut call: Call| -> http2::Answering {
        let mut released = released.clone();
        Box::pin(async move {
            released.wait_for(|released| *released).await.unwrap();
            call.answer(Response::new(()), &[b"ok"], None).await;
        })
    };
    let upstream = Http2Upstream::start(h2::server::Builder::new().max_concurrent_streams(3), None, serve);
    let sidecar = sidecar(&upstream.address, ", protocol: http2, max_connections: 2, connect_timeout: 300ms");
    on_one_connection(&sidecar, async |sender| {
        let mut under_way = Vec::new();
        for _ in 0..6 {
            under_way.push(ask(&sender, request("GET", SUBSCRIBER).body(()).unwrap(), true).await.0);
        }
        wait_for_async("six requests at the upstream", || upstream.asked().len() == 6).await;
        let (seventh, _stream) = ask(&sender, request("GET", SUBSCRIBER).body(()).unwrap(), true).await;
        let seventh = seventh.head().await;
        assert_eq!(seventh.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ended(&sidecar, &id(&seventh)), ("not_forwarded".to_owned(), 503));
        let (eighth, _stream) = ask(&sender, request("GET", SUBSCRIBER).body(()).unwrap(), true).await;
        release.send(true).unwrap();
        for answer in under_way.into_iter().chain([eighth]) {
            let answer = answer.head().await;
            assert_eq!(answer.status(), StatusCode::OK);
        }
    });
    let on = |place| upstream.asked().iter().filter(|asked| asked.connection == place).count();
    assert_eq!((upstream.connections(), on(0) + on(1)), (2, 7));
    assert!(on(0) >= 3 && on(1) >= 3);
}

async fn wait_for_async(what: &str, is_so: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < CEILING, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Only where it is certain that the upstream did nothing is a request sent again, and only once.
#[test]
fn a_request_is_sent_again_only_if_the_upstream_did_nothing_with_it() {
    const REFUSED: [u8; 4] = 7_u32.to_be_bytes();
    const INTERNAL: [u8; 4] = 2_u32.to_be_bytes();
    const GONE: [u8; 8] = [0; 8];
    /// What is done to the first requests; the next is answered.
    type Deeds = &'static [fn(&mut Frames, u32)];
    let refuse: fn(&mut Frames, u32) = |frames, stream| frames.send(http2::RST_STREAM, 0, stream, &REFUSED);
    let break_off: fn(&mut Frames, u32) = |frames, stream| frames.send(http2::RST_STREAM, 0, stream, &INTERNAL);
    let go: fn(&mut Frames, u32) = |frames, _| frames.send(http2::GOAWAY, 0, 0, &GONE);
    let go_behind: fn(&mut Frames, u32) =
        |frames, stream| frames.send(http2::GOAWAY, 0, 0, &[stream.to_be_bytes(), [0; 4]].concat());
    let deeds: [(&str, Deeds); 6] = [
        ("refused", Box::leak(Box::new([refuse]))),
        ("refused twice", Box::leak(Box::new([refuse, refuse]))),
        ("broken off", Box::leak(Box::new([break_off]))),
        ("above the last stream of GOAWAY", Box::leak(Box::new([go]))),
        ("within it, and closed upon", Box::leak(Box::new([go_behind]))),
        ("refused, then gone", Box::leak(Box::new([refuse, go]))),
    ];
    let get = permitted();
    let whole = Head::permitted("POST", SUBSCRIBER).body("hello");
    for (name, deeds) in deeds {
        let expected = match name {
            "refused" | "above the last stream of GOAWAY" => (200, "completed"),
            _ => (502, "aborted"),
        };
        for request in [&get, &whole] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let (count, counted) = mpsc::channel();
            std::thread::spawn(move || {
                let mut seen = 0;
                loop {
                    let mut frames = Frames::accept(&listener, &[]);
                    while let Some(frame) = frames.next() {
                        if frame.kind != http2::HEADERS {
                            continue;
                        }
                        let mut end = frame.clone();
                        while end.flags & http2::END_STREAM == 0 {
                            end = frames.await_one(http2::DATA);
                        }
                        let deed = deeds.get(seen);
                        seen += 1;
                        let _gone = count.send(frame.stream);
                        match deed {
                            Some(deed) => deed(&mut frames, frame.stream),
                            None => {
                                let flags = http2::END_HEADERS | http2::END_STREAM;
                                frames.send(http2::HEADERS, flags, frame.stream, &[http2::STATUS_200]);
                            }
                        }
                        if name == "within it, and closed upon" {
                            break;
                        }
                    }
                }
            });
            let sidecar = sidecar(&address, HTTP2);
            let answer = sidecar.ask(request);
            let outcome = ended(&sidecar, &answer.decision_id());
            assert_eq!((answer.status, outcome.0.as_str()), expected, "{name}: {answer:?}");
            let sent = counted.try_iter().count();
            let expected = if ["broken off", "within it, and closed upon"].contains(&name) { 1 } else { 2 };
            assert_eq!(sent, expected, "{name}: sent so often");
            if name.contains("sent again") {
                assert_eq!(answer.status, 200);
            }
            sidecar.still_decides();
        }
    }
}

/// Whatever the reason was, the status was 14 (UNAVAILABLE), for which callers ask again: also for what the service had
/// done, or would not do.
#[test]
fn a_call_that_its_service_reset_was_unavailable() {
    let table = [
        ("NO_ERROR", 0, "13"),
        ("PROTOCOL_ERROR", 1, "13"),
        ("INTERNAL_ERROR", 2, "13"),
        ("FLOW_CONTROL_ERROR", 3, "13"),
        ("SETTINGS_TIMEOUT", 4, "13"),
        ("STREAM_CLOSED", 5, "13"),
        ("FRAME_SIZE_ERROR", 6, "13"),
        ("REFUSED_STREAM", 7, "14"),
        ("CANCEL", 8, "1"),
        ("COMPRESSION_ERROR", 9, "13"),
        ("CONNECT_ERROR", 10, "13"),
        ("ENHANCE_YOUR_CALM", 11, "8"),
        ("INADEQUATE_SECURITY", 12, "7"),
        ("HTTP_1_1_REQUIRED", 13, "13"),
        ("one that nobody knows", 0x4242, "13"),
    ];
    let upstream = serving(|mut call| {
        Box::pin(async move {
            let code: u32 = call.asked.uri.path().rsplit('/').next().unwrap().parse().unwrap();
            call.respond.send_reset(Reason::from(code));
        })
    });
    let broken = Upstream::start(|exchange| {
        exchange.send("HTTP/9 what?\r\n\r\n");
        Then::Close
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let breaking = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        loop {
            drop(Frames::accept(&listener, &[]).await_one(http2::HEADERS));
        }
    });
    let by_http2 = sidecar(&upstream.address, HTTP2);
    on_one_connection(&by_http2, async |sender| {
        for (name, code, status) in table {
            let answer = ask(&sender, call(&code.to_string()), true).await.0.head().await;
            assert_eq!((answer.status(), status_of(&answer)), (StatusCode::OK, Some(status)), "{name}");
            assert_eq!(ended(&by_http2, &id(&answer)), ("aborted".to_owned(), 502), "{name}");
            // Who calls nothing is told what it was told.
            let plain = request("POST", &format!("/care.Subscribers/{code}")).body(()).unwrap();
            let answer = ask(&sender, plain, true).await.0.head().await;
            assert_eq!((answer.status(), status_of(&answer)), (StatusCode::BAD_GATEWAY, None), "{name}");
        }
    });
    for (name, sidecar) in [
        ("the connection breaks", sidecar(&breaking, HTTP2)),
        ("HTTP/1.1, and it is none", sidecar(&broken.address, "")),
    ] {
        on_one_connection(&sidecar, async |sender| {
            let answer = ask(&sender, call("Find"), true).await.0.head().await;
            assert_eq!((answer.status(), status_of(&answer)), (StatusCode::OK, Some("14")), "{name}");
        });
    }
}

/// What the caller breaks off is reset at the upstream, alone.
#[test]
fn a_caller_that_cancels_resets_its_stream_and_no_other() {
    let (told, tells) = mpsc::channel();
    let upstream = serving(move |mut call| {
        let told = told.clone();
        Box::pin(async move {
            let mut stream = call.respond.send_response(Response::new(()), false).unwrap();
            http2::send(&mut stream, Bytes::from_static(b"begun"), false).await;
            if call.asked.uri.path().ends_with("/Watch") {
                let reason = std::future::poll_fn(|cx| stream.poll_reset(cx)).await.unwrap();
                told.send(reason).unwrap();
            } else {
                let (body, _) = call.read().await.unwrap();
                http2::send(&mut stream, body.into(), true).await;
            }
        })
    });
    let sidecar = sidecar(&upstream.address, HTTP2);
    on_one_connection(&sidecar, async |sender| {
        let (other, mut other_stream) = ask(&sender, call("Echo"), false).await;
        let mut other = other.head().await;
        let (watch, mut watch_stream) = ask(&sender, call("Watch"), false).await;
        let mut watch = watch.head().await;
        assert_eq!(watch.body_mut().data().await.unwrap().unwrap(), "begun");
        watch_stream.send_reset(Reason::CANCEL);
        wait_for_async("the reset", {
            let tells = RefCell::new(&tells);
            move || tells.borrow().try_recv().is_ok_and(|reason| reason == Reason::CANCEL)
        })
        .await;
        assert_eq!(ended(&sidecar, &id(&watch)), ("aborted".to_owned(), 200));
        other_stream.send_data(Bytes::from_static(b" and ended"), true).unwrap();
        assert_eq!(read(other.body_mut()).await.unwrap().0, b"begun and ended");
        assert_eq!(ended(&sidecar, &id(&other)), ("completed".to_owned(), 200));
    });
    assert_eq!(upstream.connections(), 1);
}

/// One that goes away before there is an answer.
#[test]
fn a_caller_that_goes_away_before_the_answer_resets_its_stream() {
    let (told, tells) = mpsc::channel();
    let upstream = serving(move |mut call| {
        let told = told.clone();
        Box::pin(async move {
            if call.asked.method == "GET" {
                return call.answer(Response::new(()), &[b"ok"], None).await;
            }
            let reason = std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await.unwrap();
            told.send(reason).unwrap();
        })
    });
    let sidecar = sidecar(&upstream.address, HTTP2);
    let mut connection = sidecar.connect();
    connection.send(Head::permitted("POST", SUBSCRIBER).body("hello"));
    let asked = upstream.last();
    drop(connection);
    assert_eq!(tells.recv_timeout(CEILING).unwrap(), Reason::CANCEL);
    let id = asked.value("dpa-decision-id").unwrap();
    assert_eq!(sidecar.outcome(id)["outcome"], "aborted");
    sidecar.still_serves();
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_connection_that_dies_ends_each_of_its_exchanges_with_an_outcome() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (die, dies) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let mut frames = Frames::accept(&listener, &[]);
        for place in 0..3 {
            let stream = frames.await_one(http2::HEADERS).stream;
            if place > 0 {
                frames.send(http2::HEADERS, http2::END_HEADERS, stream, &[http2::STATUS_200]);
                frames.send(http2::DATA, 0, stream, b"begun");
            }
        }
        dies.recv_timeout(CEILING).unwrap();
    });
    let sidecar = sidecar(&address, HTTP2);
    on_one_connection(&sidecar, async |sender| {
        let mut answers = Vec::new();
        for _ in 0..3 {
            answers.push(ask(&sender, request("GET", SUBSCRIBER).body(()).unwrap(), true).await.0);
        }
        let mut answers = answers.into_iter();
        let first = answers.next().unwrap();
        let mut begun = Vec::new();
        for answer in answers {
            let mut answer = answer.head().await;
            assert_eq!(answer.body_mut().data().await.unwrap().unwrap(), "begun");
            begun.push(answer);
        }
        die.send(()).unwrap();
        let first = first.head().await;
        assert_eq!(first.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(ended(&sidecar, &id(&first)), ("aborted".to_owned(), 502));
        for mut answer in begun {
            assert!(read(answer.body_mut()).await.is_err(), "a cut answer looks whole");
            assert_eq!(ended(&sidecar, &id(&answer)), ("aborted".to_owned(), 200));
        }
    });
}

/// An upstream that goes away serves what it has; what comes next goes elsewhere.
#[test]
fn behind_goaway_requests_go_on_and_new_ones_have_a_new_connection() {
    let upstream = serving(|mut call| {
        Box::pin(async move {
            let mut stream = call.respond.send_response(Response::new(()), false).unwrap();
            if call.asked.uri.path().ends_with("/Last") {
                call.going.notify_one();
            }
            let (body, _) = call.read().await.unwrap();
            http2::send(&mut stream, body.into(), true).await;
        })
    });
    let sidecar = sidecar(&upstream.address, HTTP2);
    on_one_connection(&sidecar, async |sender| {
        let (long, mut stream) = ask(&sender, call("Last"), false).await;
        let mut long = long.head().await;
        // The two GOAWAYs are a round trip apart.
        while upstream.connections() < 2 {
            let (next, _stream) = ask(&sender, request("GET", SUBSCRIBER).body(()).unwrap(), true).await;
            assert_eq!(next.head().await.status(), StatusCode::OK);
        }
        stream.send_data(Bytes::from_static(b"still here"), true).unwrap();
        assert_eq!(read(long.body_mut()).await.unwrap().0, b"still here");
        assert_eq!(ended(&sidecar, &id(&long)), ("completed".to_owned(), 200));
    });
    for record in sidecar.records().iter().filter(|record| record["event"] == "dpa.outcome") {
        assert_eq!(record["outcome"], "completed", "{record}");
    }
}

/// Neither direction waits for the other, and nothing is gathered.
#[test]
fn both_directions_of_a_call_flow_at_once() {
    let upstream = serving(|mut call| {
        Box::pin(async move {
            let mut stream = call.respond.send_response(Response::new(()), false).unwrap();
            while let Some(Ok(piece)) = call.body.data().await {
                call.body.flow_control().release_capacity(piece.len()).unwrap();
                if !http2::send(&mut stream, piece, false).await {
                    return;
                }
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers).unwrap();
        })
    });
    let sidecar = sidecar(&upstream.address, HTTP2);
    on_one_connection(&sidecar, async |sender| {
        let (answer, mut stream) = ask(&sender, call("Chat"), false).await;
        let mut answer = answer.head().await;
        for word in ["one", "two", "three"] {
            stream.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
            assert_eq!(answer.body_mut().data().await.unwrap().unwrap(), word);
            answer.body_mut().flow_control().release_capacity(word.len()).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
        let (rest, trailers) = read(answer.body_mut()).await.unwrap();
        assert_eq!((rest.len(), &trailers.unwrap()["grpc-status"]), (0, &HeaderValue::from_static("0")));
        let outcome = sidecar.outcome(&id(&answer));
        assert_eq!((&outcome["request_bytes"], &outcome["response_bytes"]), (&11.into(), &11.into()));
        assert_eq!(outcome["outcome"], "completed");
    });
}

/// A request went on only as far as its answer was taken.
#[test]
fn a_request_comes_to_its_end_though_nobody_reads_its_answer() {
    const SIZE: usize = 1 << 20;
    let (told, tells) = mpsc::channel();
    let upstream = serving(move |mut call| {
        let told = told.clone();
        Box::pin(async move {
            let mut stream = call.respond.send_response(Response::new(()), false).unwrap();
            let answers = async { http2::send(&mut stream, vec![0; SIZE].into(), true).await };
            let reads = async {
                let read = call.body.data();
                drop(read);
                let mut count = 0;
                while let Some(Ok(piece)) = call.body.data().await {
                    call.body.flow_control().release_capacity(piece.len()).unwrap();
                    count += piece.len();
                }
                told.send(count).unwrap();
            };
            tokio::join!(answers, reads);
        })
    });
    let sidecar = sidecar(&upstream.address, HTTP2);
    on_one_connection(&sidecar, async |sender| {
        let (answer, mut stream) = ask(&sender, call("Chat"), false).await;
        let mut answer = answer.head().await;
        assert!(http2::send(&mut stream, vec![1; SIZE].into(), true).await);
        let tells = Rc::new(RefCell::new(&tells));
        wait_for_async("the whole request", move || tells.borrow().try_recv().is_ok_and(|count| count == SIZE)).await;
        assert_eq!(read(answer.body_mut()).await.unwrap().0.len(), SIZE);
    });
}

/// A caller who does not read filled the one window of its connection.
#[test]
fn callers_that_do_not_read_hold_up_nobody_else() {
    let upstream = serving(|mut call| {
        Box::pin(async move {
            let is_large = call.asked.uri.path().ends_with("/Large");
            let mut stream = call.respond.send_response(Response::new(()), false).unwrap();
            http2::send(&mut stream, vec![0; if is_large { 4 << 20 } else { 2 }].into(), true).await;
        })
    });
    let sidecar = sidecar(&upstream.address, ", protocol: http2, max_connections: 1");
    on_one_connection(&sidecar, async |sender| {
        let mut unread = Vec::new();
        for _ in 0..40 {
            unread.push(ask(&sender, call("Large"), true).await.0.head().await);
        }
        let mut answer = ask(&sender, call("Small"), true).await.0.head().await;
        assert_eq!(read(answer.body_mut()).await.unwrap().0, [0, 0]);
    });
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn silence_is_cut_after_the_time_that_is_set_and_not_before_for_calls() {
    let upstream = serving(|mut call| {
        Box::pin(async move {
            let mut stream = call.respond.send_response(Response::new(()), false).unwrap();
            http2::send(&mut stream, Bytes::from_static(b"begun"), false).await;
            let _reset = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
        })
    });
    let sidecar = sidecar(&upstream.address, ", protocol: http2, response_timeout: 200ms");
    on_one_connection(&sidecar, async |sender| {
        let (answer, _stream) = ask(&sender, call("Watch"), true).await;
        let mut answer = answer.head().await;
        assert!(read(answer.body_mut()).await.is_err());
        assert_eq!(ended(&sidecar, &id(&answer)), ("cut".to_owned(), 200));
    });
    sidecar.still_decides();
    assert_eq!(upstream.connections(), 1, "the others of the connection went on");
}

/// A POST of gRPC may do anything: its route has to say what.
#[test]
fn the_operation_of_a_call_has_to_be_stated() {
    let upstream = ok();
    let sidecar = sidecar(&upstream.address, HTTP2);
    let table = [
        ("a call, stated", "/care.Subscribers/Find", Some("application/grpc+proto"), None),
        ("a call, not stated", "/care.Unsaid/Find", Some("Application/GRPC"), Some("route_unmapped")),
        ("a web call, not stated", "/care.Unsaid/Find", Some("application/grpc-web"), Some("route_unmapped")),
        (
            "a call behind another type, not stated",
            "/care.Unsaid/Find",
            Some("text/plain\r\nContent-Type: application/grpc"),
            Some("route_unmapped"),
        ),
        ("no call", "/care.Unsaid/Find", Some("application/json"), None),
        ("no type", "/care.Unsaid/Find", None, None),
    ];
    for (name, path, kind, expected) in table {
        let head = kind.into_iter().fold(Head::permitted("POST", path), |head, kind| head.with("Content-Type", kind));
        let answer = sidecar.ask(head.body("x"));
        let decision = sidecar.decision(&answer.decision_id());
        assert_eq!(decision["reason"].as_str(), expected, "{name}: {decision}");
    }
}

/// What does not speak HTTP/2 is told of in the operational log, in words that help.
#[test]
fn an_upstream_that_does_not_speak_http2() {
    let upstream = Upstream::ok();
    let sidecar = sidecar(&upstream.address, HTTP2);
    let answer = sidecar.ask(permitted());
    assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_unavailable"));
    assert_eq!(ended(&sidecar, &answer.decision_id()), ("not_forwarded".to_owned(), 502));
    wait_for("the reason", || sidecar.stderr.text().contains("cannot connect to the upstream").then_some(()));
}

/// Over TLS both sides agree on it, or there is no connection.
#[test]
fn over_tls_the_upstream_has_to_choose_http2() {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let config = |protocols: &[&[u8]]| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_no_client_auth();
        let mut config = builder.with_single_cert(vec![pair.cert.der().clone()], key.clone_key()).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    };
    let table: [(&str, &[&[u8]], &str); 3] = [
        ("it speaks both", &[b"http/1.1", b"h2"], ""),
        ("it speaks HTTP/1.1 alone", &[b"http/1.1"], "NoApplicationProtocol"),
        ("it does not say", &[], "it did not choose HTTP/2 (ALPN)"),
    ];
    for (name, protocols, expected) in table {
        let upstream = Http2Upstream::start(&h2::server::Builder::new(), Some(config(protocols)), |mut call| {
            Box::pin(async move { call.answer(Response::new(()), &[b"ok"], None).await })
        });
        let folder = Folder::new();
        folder.write("ca.crt", &pair.cert.pem());
        let (setup, text) = settings(&upstream.address, ", protocol: http2, tls: {ca: ca.crt, server_name: localhost}");
        let sidecar = setup.start_with(&text, folder);
        let answer = sidecar.ask(permitted());
        if expected.is_empty() {
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{name}");
            assert_eq!(upstream.last().uri.scheme_str(), Some("https"), "{name}");
        } else {
            assert_eq!((answer.status, upstream.asked().len()), (502, 0), "{name}");
            assert_eq!(ended(&sidecar, &answer.decision_id()), ("not_forwarded".to_owned(), 502), "{name}");
            wait_for("the reason", || sidecar.stderr.text().contains(expected).then_some(()));
        }
    }
}

#[test]
fn an_upstream_that_is_down_is_found_when_it_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let sidecar = sidecar(&address.to_string(), HTTP2);
    for _ in 0..3 {
        assert_eq!(sidecar.ask(permitted()).status, 502);
    }
    assert_eq!(sidecar.ask(permitted()).status, 503);
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        loop {
            let mut frames = Frames::accept(&listener, &[]);
            std::thread::spawn(move || {
                while let Some(frame) = frames.next() {
                    if frame.kind == http2::HEADERS {
                        let flags = http2::END_HEADERS | http2::END_STREAM;
                        frames.send(http2::HEADERS, flags, frame.stream, &[http2::STATUS_200]);
                    }
                }
            });
        }
    });
    wait_for("it to be back", || (sidecar.ask(permitted()).status == 200).then_some(()));
}

/// An idle connection is closed, and not in the middle of something.
#[test]
fn an_idle_connection_says_goodbye() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (told, tells) = mpsc::channel();
    std::thread::spawn(move || {
        let mut frames = Frames::accept(&listener, &[]);
        while let Some(frame) = frames.next() {
            if frame.kind == http2::HEADERS {
                let flags = http2::END_HEADERS | http2::END_STREAM;
                frames.send(http2::HEADERS, flags, frame.stream, &[http2::STATUS_200]);
            }
            told.send(Some(frame.kind)).unwrap();
        }
        told.send(None).unwrap();
    });
    let sidecar = sidecar(&address, ", protocol: http2, idle_timeout: 200ms");
    assert_eq!(sidecar.ask(permitted()).status, 200);
    let mut last = None;
    while let Some(kind) = tells.recv_timeout(CEILING).unwrap() {
        last = Some(kind);
    }
    assert_eq!(last, Some(http2::GOAWAY));
}

#[test]
fn a_body_that_is_too_large_is_refused_and_reset() {
    let upstream = ok();
    let (setup, text) = settings(&upstream.address, HTTP2);
    let text = text.replacen("    operation: retrieve\n", "    operation: retrieve\n    body_limit: 4\n", 2);
    let sidecar = setup.start_with(&text, Folder::new());
    on_one_connection(&sidecar, async |sender| {
        let (answer, mut stream) = ask(&sender, call("Find"), false).await;
        for piece in ["four", "five"] {
            let _reset = stream.send_data(Bytes::from_static(piece.as_bytes()), false);
        }
        let answer = answer.head().await;
        assert_eq!(answer.headers()["grpc-status"], "8", "{answer:?}");
        assert_eq!(ended(&sidecar, &id(&answer)), ("cut".to_owned(), 413));
    });
    sidecar.still_decides();
}

#[test]
fn upgrades_need_an_upstream_that_can() {
    let (setup, text) = settings("127.0.0.1:9", HTTP2);
    let text = text.replacen("    operation: retrieve\n", "    operation: retrieve\n    upgrade: [websocket]\n", 1);
    let folder = Folder::new();
    let (code, said) = setup.refused_with(&text, &folder);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("DPA021") && said.contains("HTTP/2 has no `Upgrade`"), "{said}");
}

impl Sidecar {
    /// It still takes requests, whatever its upstream does.
    fn still_decides(&self) {
        assert_eq!(self.ask(crate::support::denied()).status, 403, "{}", self.stderr.text());
    }
}
