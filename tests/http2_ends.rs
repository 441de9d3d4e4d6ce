//! Where the answers of services that speak HTTP/2 end.

use std::net::TcpListener;
use std::sync::mpsc;

use crate::http2::raw::block;
use crate::support::CEILING;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::http2;
use crate::support::http2::Frames;
use crate::support::wait_for;

/// A service that answers each request with this head, and ends it, if at all, with a frame of its own. What it hears of
/// its streams.
fn service(fields: &'static [(&'static str, &'static str)], ends: bool) -> (String, mpsc::Receiver<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        loop {
            let (mut frames, tell) = (Frames::accept(&listener, &[]), tell.clone());
            std::thread::spawn(move || {
                while let Some(frame) = frames.next() {
                    if frame.kind == http2::HEADERS {
                        frames.send(http2::HEADERS, http2::END_HEADERS, frame.stream, &block(fields));
                        // Its own packet, behind what the other side has read by then.
                        std::thread::sleep(std::time::Duration::from_millis(30));
                        if ends {
                            frames.send(http2::DATA, http2::END_STREAM, frame.stream, b"");
                        }
                    }
                    if frame.kind == http2::RST_STREAM {
                        tell.send(frame.stream).unwrap();
                    }
                }
            });
        }
    });
    (address, told)
}

/// Nobody reads the body of such an answer, so its end was not seen and the outcome was `aborted`.
#[test]
fn answers_without_a_body_that_end_in_a_frame_of_their_own_were_aborted() {
    type Row = (&'static str, &'static str, &'static [(&'static str, &'static str)], u64);
    let table: [Row; 4] = [
        ("HEAD", "HEAD", &[(":status", "200"), ("content-length", "5")], 200),
        ("HEAD without a length", "HEAD", &[(":status", "200")], 200),
        ("no content", "GET", &[(":status", "204")], 204),
        ("not modified", "GET", &[(":status", "304"), ("etag", "x")], 304),
    ];
    for (what, method, fields, status) in table {
        for ends in [true, false] {
            let (address, resets) = service(fields, ends);
            let sidecar = Setup { upstream_keys: ", protocol: http2", ..Setup::to(&address) }.start();
            let mut connection = sidecar.connect();
            for _ in 0..2 {
                connection.send(Head::permitted(method, SUBSCRIBER).end());
                let (found, head) = connection.head().unwrap();
                assert_eq!(u64::from(found), status, "{what}");
                let length = fields.iter().find(|(name, _)| *name == "content-length").map(|(_, value)| *value);
                assert_eq!((head.value("content-length"), head.value("transfer-encoding")), (length, None), "{what}");
                let outcome = sidecar.outcome(head.value("dpa-decision-id").unwrap());
                assert_eq!(
                    (outcome["outcome"].as_str(), outcome["status"].as_u64()),
                    (Some("completed"), Some(status))
                );
            }
            if ends {
                drop(connection);
                assert!(resets.try_recv().is_err(), "{what}: reset, though it ended");
            } else {
                // It has no end, and is not waited for for ever.
                resets.recv_timeout(CEILING).unwrap();
            }
        }
    }
}

/// RFC 9113 section 8.2.1: they must not be sent on.
#[test]
fn outer_blanks_of_answers_are_taken_away() {
    let (address, _) = service(&[(":status", "200"), ("x-word", " a b\t"), ("x-none", " ")], true);
    let sidecar = Setup { upstream_keys: ", protocol: http2", ..Setup::to(&address) }.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(&sidecar.address).await.unwrap();
        let (send, connection) = ::h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(format!("http://data.example{SUBSCRIBER}"))
            .header("dpa-caller", crate::support::CARE_DESK)
            .header("dpa-context", "purpose=customer_support");
        let (answer, _) = send.ready().await.unwrap().send_request(request.body(()).unwrap(), true).unwrap();
        answer.await.unwrap()
    });
    assert_eq!([&answer.headers()["x-word"], &answer.headers()["x-none"]], ["a b", ""]);
    wait_for("its outcome", || sidecar.records().iter().find(|record| record["outcome"] == "completed").map(drop));
}

/// A caller of HTTP/1.1 got 32 KiB of it, and the rest in steps of ten seconds: behind a second flush nobody asked for
/// more, unless the service was slow.
#[test]
fn a_large_answer_stood_still_in_the_middle() {
    const LARGE: usize = 1 << 20;
    let mut builder = ::h2::server::Builder::new();
    builder.max_send_buffer_size(2 * LARGE);
    let upstream = http2::Http2Upstream::start(&builder, None, |mut call| {
        Box::pin(async move { call.answer(http::Response::new(()), &[&vec![b'x'; LARGE]], None).await })
    });
    let sidecar = Setup { upstream_keys: ", protocol: http2", ..Setup::to(&upstream.address) }.start();
    let mut connection = sidecar.connect();
    for _ in 0..10 {
        connection.send(Head::permitted("GET", SUBSCRIBER).end());
        let answer = connection.answer().unwrap();
        assert_eq!((answer.status, answer.text().len()), (200, LARGE));
        assert_eq!(sidecar.outcome(&answer.decision_id())["outcome"], "completed");
    }
}

/// All of its exchanges ended, and nobody was told that it was for frames.
#[test]
fn a_shared_connection_that_was_ended_for_too_many_frames_was_not_told_of() {
    // ENHANCE_YOUR_CALM, of streams above 0.
    let goaway: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 11];
    let table: [(&str, u8, &[u8], usize, &str); 2] = [
        ("empty frames of the service", http2::DATA, b"", 101, "sidecar"),
        ("a service that has had enough", http2::GOAWAY, goaway, 1, "upstream"),
    ];
    for (what, kind, payload, times, by) in table {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let mut frames = Frames::accept(&listener, &[]);
            let stream = frames.await_one(http2::HEADERS).stream;
            frames.send(http2::HEADERS, http2::END_HEADERS, stream, &block(&[(":status", "200")]));
            for _ in 0..times {
                frames.send(kind, 0, if kind == http2::GOAWAY { 0 } else { stream }, payload);
            }
            while frames.next().is_some() {}
        });
        let sidecar = Setup { upstream_keys: ", protocol: http2", ..Setup::to(&address) }.start();
        let mut connection = sidecar.connect();
        connection.send(Head::permitted("GET", SUBSCRIBER).end());
        let line = wait_for(what, || {
            let text = sidecar.stderr.text();
            text.lines().find(|line| line.contains("a shared connection was ended")).map(str::to_owned)
        });
        assert!(line.contains("WARN") && line.contains("app") && line.contains(by), "{what}: {line}");
    }
}
