//! Where a message ends: caller, sidecar and service read the same requests, or nobody reads on.

use std::fmt::Write as _;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;

use dpa_sidecar::accept::framing::Framing;
use dpa_sidecar::accept::framing::Part;
use proptest::prelude::*;

use crate::support::Connection;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::permitted;
use crate::support::wait_for;

/// A request as a strict reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Whole {
    line: String,
    names: Vec<String>,
    body: Vec<u8>,
}

/// Reads whole requests off the front of `bytes`. What is not exactly as RFC 9112 has a sender write it is a fault.
fn strict(mut bytes: &[u8]) -> Result<(Vec<Whole>, &[u8]), String> {
    let mut all = Vec::new();
    while let Some((whole, rest)) = strict_one(bytes)? {
        all.push(whole);
        bytes = rest;
    }
    Ok((all, bytes))
}

fn strict_line(bytes: &[u8]) -> Result<Option<(&str, &[u8])>, String> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = bytes[..end].strip_suffix(b"\r").ok_or("a bare LF")?;
    let line = std::str::from_utf8(line).map_err(|_| "a line that is no text")?;
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(format!("a control character in {line:?}"));
    }
    Ok(Some((line, &bytes[end + 1..])))
}

fn strict_one(bytes: &[u8]) -> Result<Option<(Whole, &[u8])>, String> {
    let Some((line, mut rest)) = strict_line(bytes)? else { return Ok(None) };
    let words: Vec<&str> = line.split(' ').collect();
    if words.len() != 3 || words[2] != "HTTP/1.1" || !words[1].starts_with('/') || words[1].contains('#') {
        return Err(format!("the first line {line:?}"));
    }
    let (mut names, mut lengths, mut codings) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let Some((field, after)) = strict_line(rest)? else { return Ok(None) };
        rest = after;
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').ok_or("a field without a colon")?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err(format!("the name {name:?}"));
        }
        match name.to_ascii_lowercase().as_str() {
            "content-length" => lengths.push(value.trim().to_owned()),
            "transfer-encoding" => codings.push(value.trim().to_owned()),
            other => names.push(other.to_owned()),
        }
    }
    if names.iter().filter(|name| *name == "host").count() != 1 {
        return Err("not one Host".to_owned());
    }
    let mut body = Vec::new();
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => {}
        ([length], []) => {
            let length: usize = length.parse().map_err(|_| format!("the length {length:?}"))?;
            let Some(content) = rest.get(..length) else { return Ok(None) };
            (body, rest) = (content.to_vec(), &rest[length..]);
        }
        ([], [coding]) if coding == "chunked" => loop {
            let Some((size, after)) = strict_line(rest)? else { return Ok(None) };
            let size = usize::from_str_radix(size, 16).map_err(|_| format!("the chunk size {size:?}"))?;
            let Some(content) = after.get(..size + 2) else { return Ok(None) };
            if &content[size..] != b"\r\n" {
                return Err("a chunk that does not end, or a trailer".to_owned());
            }
            body.extend_from_slice(&content[..size]);
            rest = &after[size + 2..];
            if size == 0 {
                break;
            }
        },
        other => return Err(format!("framed as {other:?}")),
    }
    Ok(Some((Whole { line: line.to_owned(), names, body }, rest)))
}

/// A data service that reads strictly, answers each whole request with `200`, and keeps every byte that came.
struct Strict {
    address: String,
    came: Arc<Mutex<Vec<Came>>>,
}

/// One connection: every byte, and how many requests of it were taken.
#[derive(Default)]
struct Came {
    bytes: Vec<u8>,
    taken: usize,
}

impl Strict {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let came = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&came);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, mut stream) = (Arc::clone(&shared), stream.unwrap());
                std::thread::spawn(move || {
                    let place = {
                        let mut all = shared.lock().unwrap();
                        all.push(Came::default());
                        all.len() - 1
                    };
                    let mut answered = 0;
                    let mut piece = [0; 65_536];
                    while let Ok(count @ 1..) = stream.read(&mut piece) {
                        let whole = {
                            let mut all = shared.lock().unwrap();
                            all[place].bytes.extend_from_slice(&piece[..count]);
                            strict(&all[place].bytes).map_or(usize::MAX, |(whole, _)| whole.len())
                        };
                        if whole == usize::MAX {
                            return;
                        }
                        for _ in answered..whole {
                            let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                        }
                        answered = whole;
                    }
                });
            }
        });
        Self { address, came }
    }

    /// Takes what came since the last time: whole requests, and whether there was more than them.
    fn take(&self, name: &str) -> (Vec<Whole>, bool) {
        let (mut all, mut has_rest) = (Vec::new(), false);
        for Came { bytes: came, taken } in self.came.lock().unwrap().iter_mut() {
            let (whole, rest) = strict(came).unwrap_or_else(|fault| panic!("{name}: the service was sent {fault}"));
            has_rest |= !rest.is_empty();
            let all_of_it = whole.len();
            all.extend(whole.into_iter().skip(std::mem::replace(taken, all_of_it)));
        }
        (all, has_rest)
    }
}

const BEHIND: &str = "/v1/customers/redwood-strand/subscribers/behind";

fn post() -> Head {
    Head::permitted("POST", SUBSCRIBER)
}

fn chunked(body: &str) -> String {
    post().with("Transfer-Encoding", "chunked").end() + body
}

fn behind() -> String {
    Head::permitted("GET", BEHIND).end()
}

#[test]
fn nothing_behind_a_message_that_was_repaired_is_read() {
    let hello = "5\r\nhello\r\n0\r\n\r\n";
    let table = [
        ("lines that end in LF", post().body("hello").replace("\r\n", "\n")),
        ("one line that ends in LF", post().with("X-A", "a").body("hello").replace("X-A: a\r\n", "X-A: a\n")),
        ("a head that ends in LF", post().body("hello").replace("\r\n\r\n", "\r\n\n")),
        ("a first line that ends in LF", post().body("hello").replace(" HTTP/1.1\r\n", " HTTP/1.1\n")),
        ("an empty line before the first", "\r\n".to_owned() + &post().body("hello")),
        ("an empty line that ends in LF before the first", "\n".to_owned() + &post().body("hello")),
        ("a fragment", Head::permitted("POST", &format!("{SUBSCRIBER}#top")).body("hello")),
        ("a fragment behind a query", Head::permitted("POST", &format!("{SUBSCRIBER}?a=b#/../x")).body("hello")),
        (
            "a length before chunks",
            post().with("Content-Length", "3").with("Transfer-Encoding", "chunked").end() + hello,
        ),
        (
            "a length behind chunks",
            post().with("Transfer-Encoding", "chunked").with("Content-Length", "3").end() + hello,
        ),
        ("a length of nothing beside chunks", chunked(hello).replace("DPA-Caller", "Content-Length: 0\r\nDPA-Caller")),
        ("a length twice", post().with("Content-Length", "5").body("hello")),
        ("a length with zeros before it", post().with("Content-Length", "005").end() + "hello"),
        (
            "a length behind more blanks than anybody writes",
            format!(
                "{}Content-Length:{}5\r\n\r\nhello",
                post().end().trim_end_matches("\r\n").to_owned() + "\r\n",
                " ".repeat(90)
            ),
        ),
        ("a chunk extension", chunked("5;a=b\r\nhello\r\n0\r\n\r\n")),
        ("an extension of the last chunk", chunked("5\r\nhello\r\n0;a\r\n\r\n")),
        ("a NUL in a chunk extension", chunked("5;a=\0\r\nhello\r\n0\r\n\r\n")),
        ("a long chunk extension", chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(300)))),
        ("a blank behind a chunk's size", chunked("5 \r\nhello\r\n0\r\n\r\n")),
        ("a chunk's size with more zeros than a number has", chunked("00000000000000000005\r\nhello\r\n0\r\n\r\n")),
        ("a trailer that names a length", chunked("5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n")),
        ("a trailer that names a coding", chunked("5\r\nhello\r\n0\r\ntransfer-encoding: chunked\r\n\r\n")),
        ("a trailer that begins with LF", chunked("5\r\nhello\r\n0\r\n\nX-A: b\r\n\r\n")),
    ];
    let origin = Strict::start();
    let mut sidecar = Setup::to(&origin.address).start();
    for (name, request) in table {
        for piece in [usize::MAX, 1] {
            let mut connection = sidecar.connect();
            send_in_pieces(&mut connection, (request.clone() + &behind()).as_bytes(), piece);
            let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
            assert_eq!(answer.value("connection"), Some("close"), "{name}: {answer:?}");
            assert!(connection.is_closed(), "{name}: the connection is still open");
            let (whole, has_rest) = origin.take(name);
            assert_eq!((whole.len(), has_rest), (1, false), "{name}: {whole:?}");
            assert_eq!(whole[0].body, b"hello", "{name}");
            assert!(!whole[0].line.contains("behind"), "{name}: {whole:?}");
        }
    }
    sidecar.is_sound();
    assert_eq!(decisions_about_behind(&sidecar), 0, "what stood behind was decided on");
}

/// Decisions that the table above must not lead to: it only asks with POST.
fn decisions_about_behind(sidecar: &Sidecar) -> usize {
    sidecar.records().iter().filter(|record| record["event"] == "dpa.decision" && record["method"] == "GET").count()
}

/// The other side may have gone away before the last piece.
fn send_in_pieces(connection: &mut Connection, bytes: &[u8], piece: usize) {
    for piece in bytes.chunks(piece.min(bytes.len()).max(1)) {
        if connection.try_send(piece).is_err() {
            return;
        }
    }
}

#[test]
fn a_connection_stays_behind_a_plain_message() {
    let bare = |method: &str| Head::permitted(method, SUBSCRIBER);
    let get = || bare("GET");
    let table = [
        ("no body", get().end(), ""),
        ("a length", post().body("hello"), "hello"),
        ("a length of nothing", post().body(""), ""),
        ("a length with blanks around it", post().with("Content-Length", "  5\t ").end() + "hello", "hello"),
        ("a length in small letters", post().with("content-length", "5").end() + "hello", "hello"),
        ("a body with a GET", get().body("hello"), "hello"),
        ("a body that looks like a request", get().body(&behind()), &behind()),
        ("a body of line ends", post().body("\r\n\r\n\n\n"), "\r\n\r\n\n\n"),
        ("chunks", chunked("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), "hello"),
        ("chunks, in other letters", post().with("transfer-encoding", "CHUNKED").end() + "0\r\n\r\n", ""),
        ("chunks with zeros before the size", chunked("0005\r\nhello\r\n000\r\n\r\n"), "hello"),
        ("a chunk of line ends", chunked("A\r\n\r\n\r\n0\r\n\r\nx\r\n0\r\n\r\n"), "\r\n\r\n0\r\n\r\nx"),
        ("a trailer", chunked("5\r\nhello\r\n0\r\nX-Checksum: 1\r\n\r\n"), "hello"),
        ("an absolute target", bare("GET").end().replace(SUBSCRIBER, &format!("http://data.example{SUBSCRIBER}")), ""),
        ("a fragment in a header", get().with("Referer", "http://data.example/#top").end(), ""),
        ("a long header", get().with("X-A", &"a".repeat(5_000)).end(), ""),
        (
            "names that begin like those that frame",
            get().with("Content-Type", "a").with("Transfer", "chunked").with("TE", "trailers").end(),
            "",
        ),
        ("a name with `_`", get().with("Content_Length", "5").with("Transfer_Encoding", "chunked").end(), ""),
    ];
    let origin = Strict::start();
    let sidecar = Setup::to(&origin.address).start();
    for piece in [usize::MAX, 1, 7] {
        let mut connection = sidecar.connect();
        for (name, request, body) in &table {
            send_in_pieces(&mut connection, (request.clone() + &behind()).as_bytes(), piece);
            for _ in 0..2 {
                let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
                assert_eq!((answer.status, answer.value("connection")), (200, None), "{name}: {answer:?}");
            }
            let (whole, has_rest) = origin.take(name);
            assert_eq!((whole.len(), has_rest), (2, false), "{name}: {whole:?}");
            assert_eq!(String::from_utf8_lossy(&whole[0].body), *body, "{name}");
            assert!(whole[1].line.contains("behind") && whole[1].body.is_empty(), "{name}: {whole:?}");
        }
    }
}

#[test]
fn a_message_that_is_refused_for_its_framing_ends_the_connection() {
    let line = |line: &str| post().end().trim_end().to_owned() + "\r\n" + line + "\r\n\r\n";
    let empty = "0\r\n\r\n";
    let table = [
        ("a list of codings", line("Transfer-Encoding: gzip, chunked") + empty),
        ("a list with nothing in front", line("Transfer-Encoding: ,chunked") + empty),
        ("chunked twice", line("Transfer-Encoding: chunked, chunked") + empty),
        ("two codings", line("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked") + empty),
        ("another coding", line("Transfer-Encoding: identity") + empty),
        ("another coding behind", line("Transfer-Encoding: chunked, identity") + empty),
        ("a coding without a name", line("Transfer-Encoding:") + empty),
        ("a coding in quotes", line("Transfer-Encoding: \"chunked\"") + empty),
        ("a coding beside a length", line("Transfer-Encoding: chunked, x\r\nContent-Length: 5") + empty),
        ("a coding with HTTP/1.0", line("Transfer-Encoding: chunked").replace("HTTP/1.1", "HTTP/1.0") + empty),
        (
            "a coding with HTTP/1.0 and a length",
            line("Transfer-Encoding: chunked\r\nContent-Length: 5").replace("HTTP/1.1", "HTTP/1.0") + empty,
        ),
        ("lengths that differ", line("Content-Length: 5\r\nContent-Length: 6") + "hello"),
        ("a list of equal lengths", line("Content-Length: 5, 5") + "hello"),
        ("a length with a sign", line("Content-Length: +5") + "hello"),
        ("a length that is no decimal", line("Content-Length: 0x5") + "hello"),
        ("a length that is no number of ours", line("Content-Length: 18446744073709551621") + "hello"),
        ("a length of nothing at all", line("Content-Length: ") + "hello"),
        ("a blank before the colon", line("Content-Length : 5") + "hello"),
        ("a blank before the name", line(" Content-Length: 5") + "hello"),
        ("a coding on a folded line", line("Transfer-Encoding:\r\n chunked") + empty),
        ("a name behind a bare CR", line("X-A: a\rTransfer-Encoding: chunked") + empty),
        ("a vertical tab before the coding", line("Transfer-Encoding:\u{b}chunked") + empty),
        ("CONNECT", Head::permitted("CONNECT", "data.example:443").end()),
    ];
    let origin = Strict::start();
    let mut sidecar = Setup::to(&origin.address).start();
    for (name, request) in table {
        let mut connection = sidecar.connect();
        connection.send(request + &behind());
        if let Some(answer) = connection.answer() {
            assert_eq!(answer.status, 400, "{name}: {answer:?}");
        }
        assert!(connection.is_closed(), "{name}: the connection is still open");
        assert_eq!(origin.take(name), (Vec::new(), false), "{name}");
    }
    sidecar.is_sound();
    assert_eq!(decisions_about_behind(&sidecar), 0, "what stood behind was decided on");
}

#[test]
fn a_body_that_is_not_framed_as_it_says_never_looks_whole() {
    let table = [
        ("a size that ends in LF", chunked("5\nhello\r\n0\r\n\r\n")),
        ("no size", chunked("\r\nhello\r\n0\r\n\r\n")),
        ("a size with a prefix", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
        ("a size with a sign", chunked("+5\r\nhello\r\n0\r\n\r\n")),
        ("a size behind a blank", chunked(" 5\r\nhello\r\n0\r\n\r\n")),
        ("a size that runs over", chunked("10000000000000005\r\nhello\r\n0\r\n\r\n")),
        ("a chunk that is longer", chunked("5\r\nhello!\r\n0\r\n\r\n")),
        ("a chunk that is shorter", chunked("5\r\nhell\r\n0\r\n\r\n")),
        ("a chunk without its line end", chunked("5\r\nhello0\r\n\r\n")),
        ("a chunk that ends in LF", chunked("5\r\nhello\n0\r\n\r\n")),
        ("an extension with a bare LF", chunked("5;a\nb\r\nhello\r\n0\r\n\r\n")),
        ("an extension with a bare CR", chunked("5;a\rb\r\nhello\r\n0\r\n\r\n")),
        ("a trailer without a colon", chunked("5\r\nhello\r\n0\r\nX-A\r\n\r\n")),
        ("two trailers with LF between them", chunked("5\r\nhello\r\n0\r\nX-A: a\nX-B: b\r\n\r\n")),
    ];
    let origin = Strict::start();
    let mut sidecar = Setup::to(&origin.address).start();
    for (name, request) in table {
        let mut connection = sidecar.connect();
        connection.send(request + &behind());
        let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert!(connection.is_closed(), "{name}: the connection is still open");
        let (whole, _) = origin.take(name);
        assert_eq!(whole, Vec::new(), "{name}");
        assert_eq!(sidecar.outcome(&answer.decision_id())["outcome"], "aborted", "{name}");
    }
    sidecar.is_sound();
    assert_eq!(decisions_about_behind(&sidecar), 0, "what stood behind was decided on");
}

#[test]
fn what_stands_behind_an_upgrade_waits_for_its_answer() {
    let table = [
        ("another protocol", "websocket", "Upgrade"),
        ("HTTP/2 in clear", "h2c", "Upgrade, HTTP2-Settings"),
        ("HTTP/2 in clear, not named", "h2c", "keep-alive"),
    ];
    let origin = Strict::start();
    let sidecar = Setup::to(&origin.address).start();
    for (name, protocol, connection_header) in table {
        let asking = || {
            Head::permitted("GET", SUBSCRIBER)
                .with("Upgrade", protocol)
                .with("Connection", connection_header)
                .with("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA")
                .end()
        };
        let mut connection = sidecar.connect();
        connection.send(asking() + &behind());
        let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!((answer.status, answer.value("connection")), (200, Some("close")), "{name}");
        assert!(connection.is_closed(), "{name}: what came too early was read as a request");
        let (whole, has_rest) = origin.take(name);
        assert_eq!((whole.len(), has_rest), (1, false), "{name}: {whole:?}");
        let passed = whole[0].names.iter().any(|name| name == "upgrade" || name == "http2-settings");
        assert!(!passed, "{name}: {whole:?}");

        let mut connection = sidecar.connect();
        for request in [asking(), behind()] {
            connection.send(request);
            let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
            assert_eq!((answer.status, answer.value("connection")), (200, None), "{name}: nothing came too early");
        }
        assert_eq!(origin.take(name).0.len(), 2, "{name}");
    }
}

#[test]
fn an_answer_that_breaks_off_never_looks_whole() {
    let table: [(&str, &'static [u8], Then); 4] = [
        ("a length", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", Then::Close),
        (
            "chunks without the last",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            Then::Close,
        ),
        ("half a chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello", Then::Close),
        ("up to a close that is a reset", b"HTTP/1.1 200 OK\r\n\r\nhello", Then::Reset),
    ];
    for (name, said, then) in table {
        let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
        let goes_on = Mutex::new(goes_on);
        let upstream = Upstream::start(move |exchange| {
            exchange.body();
            exchange.send(said);
            goes_on.lock().unwrap().recv().unwrap();
            then
        });
        let sidecar = Setup::to(&upstream.address).start();
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            let mut stream = TcpStream::connect(&sidecar.address).unwrap();
            stream.set_read_timeout(Some(crate::support::CEILING)).unwrap();
            stream.write_all(permitted().replace("HTTP/1.1", version).as_bytes()).unwrap();
            let mut came = Vec::new();
            let mut piece = [0; 4096];
            while !came.windows(5).any(|window| window == b"hello") {
                let count = stream.read(&mut piece).unwrap();
                assert!(count > 0, "{name}, {version}: nothing came");
                came.extend_from_slice(&piece[..count]);
            }
            go_on.send(()).unwrap();
            let ended = stream.read_to_end(&mut came);
            let text = String::from_utf8_lossy(&came).to_ascii_lowercase();
            let looks_whole = match (text.contains("content-length: 10"), text.contains("transfer-encoding: chunked")) {
                (true, _) => text.ends_with("hellohello"),
                (false, true) => text.ends_with("0\r\n\r\n"),
                // The end of the connection is the end of the answer.
                (false, false) => ended.is_ok(),
            };
            assert!(!looks_whole, "{name}, {version}: {ended:?} {text}");
        }
        let aborted = || sidecar.records().iter().filter(|record| record["outcome"] == "aborted").count();
        wait_for(name, || (aborted() == 2).then_some(()));
    }
}

#[test]
fn a_request_that_breaks_off_never_looks_whole() {
    let origin = Strict::start();
    let sidecar = Setup::to(&origin.address).start();
    let table = [
        ("a length", post().with("Content-Length", "10").end() + "hello"),
        ("chunks without the last", chunked("5\r\nhello\r\n")),
        ("half a chunk", chunked("a\r\nhello")),
        ("half the last chunk", chunked("5\r\nhello\r\n0\r\n")),
        ("half a head", permitted().trim_end().to_owned()),
    ];
    for (name, request) in table {
        let mut connection = sidecar.connect();
        connection.send(&request);
        if name != "half a head" {
            wait_for(name, || {
                origin
                    .came
                    .lock()
                    .unwrap()
                    .iter()
                    .any(|Came { bytes: came, .. }| came.ends_with(b"hello\r\n") || came.ends_with(b"hello"))
                    .then_some(())
            });
        }
        connection.finish();
        if let Some(answer) = connection.answer() {
            assert_eq!(answer.status, 400, "{name}: {answer:?}");
        }
        assert!(connection.is_closed(), "{name}");
        assert_eq!(origin.take(name).0, Vec::new(), "{name}");
    }
}

#[test]
fn callers_of_http_1_0_get_what_they_can_read() {
    let upstream = Upstream::start(|exchange| {
        let body = exchange.body();
        exchange.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len() + 5));
        exchange.send("hello");
        exchange.send(body);
        exchange.send("\r\n0\r\n\r\n");
        Then::Keep
    });
    let sized = Upstream::ok();
    let old = |head: Head| head.body(" you").replace("HTTP/1.1", "HTTP/1.0");
    let sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    connection.send(old(post().with("Connection", "keep-alive")) + &behind());
    let answer = connection.answer().unwrap();
    assert_eq!((answer.text().as_str(), answer.value("transfer-encoding")), ("hello you", None), "{answer:?}");
    assert!(connection.is_closed(), "without a length the end of the connection is the end of the answer");
    assert_eq!(upstream.seen().len(), 1);

    let sidecar = Setup::to(&sized.address).start();
    let mut connection = sidecar.connect();
    for (name, request, stays) in [
        ("asking for it", old(post().with("Connection", "keep-alive")), true),
        (
            "HEAD",
            Head::permitted("HEAD", SUBSCRIBER).with("Connection", "Keep-Alive").end().replace("HTTP/1.1", "HTTP/1.0"),
            true,
        ),
        ("not asking for it", old(post()), false),
    ] {
        connection.send(request);
        let (status, head) = connection.head().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!((status, head.value("content-length")), (200, Some("2")), "{name}");
        if name != "HEAD" {
            assert_eq!(connection.bytes(2), b"ok", "{name}");
        }
        assert!(stays || connection.is_closed(), "{name}");
    }
    let mut connection = sidecar.connect();
    connection.send(old(post().with("Expect", "100-continue")));
    assert_eq!(connection.answer().unwrap().status, 200, "HTTP/1.0 knows no 100");
}

/// A message as everybody writes it.
fn plain() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["X-A", "Content-Type", "Cookie", "TE", "Content-Range", "User-Agent", "Tr"]);
    let fields = prop::collection::vec((name, "[ -~]{0,90}"), 0..6);
    let body = prop::collection::vec(any::<u8>(), 0..300);
    let framed = (any::<bool>(), prop::collection::vec(1..80_usize, 0..5), any::<bool>());
    (fields, body, framed).prop_map(|(fields, body, (is_chunked, sizes, has_trailer))| {
        let mut head = format!("POST {SUBSCRIBER} HTTP/1.1\r\nHost: data.example\r\n");
        for (name, value) in fields {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        if !is_chunked {
            write!(head, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
            return [head.into_bytes(), body].concat();
        }
        let mut message = (head + "Transfer-Encoding: chunked\r\n\r\n").into_bytes();
        let mut rest = body.as_slice();
        for size in sizes {
            let (chunk, after) = rest.split_at(size.min(rest.len()));
            if !chunk.is_empty() {
                message.extend(format!("{:X}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
            }
            rest = after;
        }
        let trailer = if has_trailer { "X-Sum: 1\r\n" } else { "" };
        message.extend(format!("0\r\n{trailer}\r\n").bytes());
        message
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn plain_messages_are_told_apart_however_they_are_cut(
        messages in prop::collection::vec(plain(), 1..6),
        cuts in prop::collection::vec(1..200_usize, 1..200),
    ) {
        let all = messages.concat();
        let mut framing = Framing::default();
        let mut rest = all.as_slice();
        for cut in cuts.iter().cycle() {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            framing.read(piece, false);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(framing.closes_after(), None);
        prop_assert_eq!(framing.begun(), u64::try_from(messages.len()).unwrap());
        prop_assert_eq!(framing.due(), Part::None);
    }
}
