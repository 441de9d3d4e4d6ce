//! What a caller may do wrong, and what it may do: RFC 9113 and RFC 7541, through the real program.

use super::raw::*;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// The stream has an answer.
    Answer(u32),
    /// The stream is reset, or the connection ends.
    Reset(u32),
    /// The connection ends.
    End,
    /// A PING is answered.
    Pong,
}

fn holds(sidecar: &Sidecar, bytes: &[Vec<u8>], comes: Comes) -> bool {
    let mut raw = Raw::begun(sidecar);
    raw.send(bytes.concat());
    if matches!(comes, Comes::Answer(_) | Comes::Pong) {
        raw.send(frame(PING, 0, 0, b"the last"));
    }
    let mut is_pong = false;
    let mut is_answer = false;
    loop {
        let Some(frame) = raw.next() else { return matches!(comes, Comes::End | Comes::Reset(_)) };
        is_pong |= frame.kind == PING && frame.flags & ACK == ACK && frame.payload == b"the last";
        match comes {
            Comes::Answer(stream) => is_answer |= frame.kind == HEADERS && frame.stream == stream,
            Comes::Reset(stream) if frame.kind == RST_STREAM && frame.stream == stream => return true,
            Comes::Reset(stream) if frame.kind == HEADERS && frame.stream == stream => return false,
            Comes::End | Comes::Reset(_) if frame.kind == GOAWAY => return frame.number(4) != 0,
            Comes::Pong => is_answer = true,
            Comes::End | Comes::Reset(_) => {}
        }
        if frame.kind == GOAWAY || (frame.kind == RST_STREAM && comes == Comes::Answer(frame.stream)) {
            return false;
        }
        if is_pong && is_answer {
            return true;
        }
    }
}

fn all(table: &[(&str, Vec<Vec<u8>>, Comes)]) {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let failed: Vec<_> =
        table.iter().filter(|(_, bytes, comes)| !holds(&sidecar, bytes, *comes)).map(|row| (row.0, row.2)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    sidecar.still_serves();
    sidecar.is_sound();
}

const WHOLE: u8 = END_STREAM | END_HEADERS;

#[test]
fn frames() {
    let window = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, by.to_be_bytes());
    let block = request("GET", &[]);
    let (first, second) = block.split_at(20);
    let padded = [[3].as_slice(), &block, &[0; 3]].concat();
    let with_priority = [[0, 0, 0, 0, 15].as_slice(), &block].concat();
    let of_itself = [[0, 0, 0, 1, 15].as_slice(), &block].concat();
    let post_with = |length| frame(HEADERS, END_HEADERS, 1, request("POST", &[("content-length", length)]));
    all(&[
        // 4.1, 5.5
        ("a frame of an unknown kind is passed over", vec![frame(200, 0, 0, b"12345678"), get(1)], Comes::Answer(1)),
        ("flags that mean nothing", vec![frame(PING, 0xfe, 0, b"12345678"), get(1)], Comes::Answer(1)),
        ("the reserved bit", vec![frame(HEADERS, WHOLE, 1 << 31 | 1, &block)], Comes::Answer(1)),
        (
            "a frame of an unknown kind within a block",
            vec![
                frame(HEADERS, END_STREAM, 1, first),
                frame(200, 0, 0, b""),
                frame(CONTINUATION, END_HEADERS, 1, second),
            ],
            Comes::End,
        ),
        // 4.2
        ("DATA of 16 KiB", vec![post(1), frame(DATA, END_STREAM, 1, vec![0; 16384])], Comes::Answer(1)),
        ("DATA of more", vec![post(1), frame(DATA, END_STREAM, 1, vec![0; 16385])], Comes::Reset(1)),
        ("HEADERS of more", vec![frame(HEADERS, WHOLE, 1, vec![0; 16385])], Comes::End),
        // 4.3
        ("a block that is none", vec![frame(HEADERS, WHOLE, 1, [0x40, 0xff, 0xff])], Comes::End),
        (
            "PRIORITY within a block",
            vec![frame(HEADERS, END_STREAM, 1, first), frame(PRIORITY, 0, 1, [0, 0, 0, 0, 1]), get(3)],
            Comes::End,
        ),
        ("HEADERS of another stream within a block", vec![frame(HEADERS, END_STREAM, 1, first), get(3)], Comes::End),
        (
            "a block in pieces",
            vec![frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, second)],
            Comes::Answer(1),
        ),
        // 5.1
        ("DATA before HEADERS", vec![frame(DATA, END_STREAM, 1, b"x")], Comes::End),
        ("RST_STREAM before HEADERS", vec![frame(RST_STREAM, 0, 1, 8_u32.to_be_bytes())], Comes::End),
        ("WINDOW_UPDATE before HEADERS", vec![window(1, 100)], Comes::End),
        ("CONTINUATION before HEADERS", vec![frame(CONTINUATION, END_HEADERS, 1, &block)], Comes::End),
        ("DATA behind the end", vec![get(1), frame(DATA, END_STREAM, 1, b"x")], Comes::Reset(1)),
        ("HEADERS behind the end", vec![get(1), get(1)], Comes::Reset(1)),
        ("CONTINUATION behind the end", vec![get(1), frame(CONTINUATION, END_HEADERS, 1, &block)], Comes::End),
        (
            "DATA behind RST_STREAM",
            vec![post(1), frame(RST_STREAM, 0, 1, 8_u32.to_be_bytes()), frame(DATA, END_STREAM, 1, b"x")],
            Comes::Reset(1),
        ),
        (
            "HEADERS behind RST_STREAM",
            vec![post(1), frame(RST_STREAM, 0, 1, 8_u32.to_be_bytes()), get(1)],
            Comes::Reset(1),
        ),
        // 5.1.1
        ("an even stream", vec![get(2)], Comes::End),
        ("a stream that is lower than the last", vec![get(5), get(3)], Comes::End),
        // 5.3, 6.3
        ("a stream that depends on itself", vec![frame(HEADERS, WHOLE | WITH_PRIORITY, 1, of_itself)], Comes::Reset(1)),
        ("HEADERS with a priority", vec![frame(HEADERS, WHOLE | WITH_PRIORITY, 1, with_priority)], Comes::Answer(1)),
        ("PRIORITY of a stream that is idle", vec![frame(PRIORITY, 0, 1, [0, 0, 0, 0, 9]), get(1)], Comes::Answer(1)),
        ("PRIORITY that is too short", vec![post(1), frame(PRIORITY, 0, 1, [0; 4])], Comes::Reset(1)),
        ("PRIORITY of no stream", vec![frame(PRIORITY, 0, 0, [0; 5])], Comes::End),
        // 6.1, 6.2
        ("DATA of no stream", vec![frame(DATA, END_STREAM, 0, b"x")], Comes::End),
        ("DATA with more padding than there is", vec![post(1), frame(DATA, PADDED, 1, [9, 1, 2])], Comes::End),
        ("DATA with padding", vec![post(1), frame(DATA, PADDED | END_STREAM, 1, [1, 2, 0])], Comes::Answer(1)),
        ("HEADERS of no stream", vec![frame(HEADERS, WHOLE, 0, &block)], Comes::End),
        ("HEADERS with padding", vec![frame(HEADERS, WHOLE | PADDED, 1, padded)], Comes::Answer(1)),
        ("HEADERS with more padding than there is", vec![frame(HEADERS, WHOLE | PADDED, 1, [99, 0x82])], Comes::End),
        // 6.4
        ("RST_STREAM of no stream", vec![frame(RST_STREAM, 0, 0, [0; 4])], Comes::End),
        ("RST_STREAM that is too short", vec![post(1), frame(RST_STREAM, 0, 1, [0; 3])], Comes::End),
        // 6.5
        ("ACK with settings", vec![frame(SETTINGS, ACK, 0, setting(1, 1))], Comes::End),
        ("SETTINGS of a stream", vec![frame(SETTINGS, 0, 1, setting(1, 1))], Comes::End),
        ("SETTINGS of a strange length", vec![frame(SETTINGS, 0, 0, [0; 3])], Comes::End),
        ("ENABLE_PUSH of 2", vec![frame(SETTINGS, 0, 0, setting(2, 2))], Comes::End),
        ("a window of 2^31", vec![frame(SETTINGS, 0, 0, setting(4, 1 << 31))], Comes::End),
        ("frames of less than 16 KiB", vec![frame(SETTINGS, 0, 0, setting(5, 16383))], Comes::End),
        ("frames of more than there may be", vec![frame(SETTINGS, 0, 0, setting(5, 1 << 24))], Comes::End),
        ("an unknown setting", vec![frame(SETTINGS, 0, 0, setting(99, 1)), get(1)], Comes::Answer(1)),
        // 6.6
        ("PUSH_PROMISE of a caller", vec![frame(PUSH_PROMISE, END_HEADERS, 1, [0, 0, 0, 2])], Comes::End),
        // 6.7
        ("PING", vec![], Comes::Pong),
        ("an ACK that nobody asked for", vec![frame(PING, ACK, 0, [0; 8])], Comes::Pong),
        ("PING of a stream", vec![frame(PING, 0, 1, [0; 8])], Comes::End),
        ("PING that is too short", vec![frame(PING, 0, 0, [0; 6])], Comes::End),
        // 6.8
        ("GOAWAY of a stream", vec![frame(GOAWAY, 0, 1, [0; 8])], Comes::End),
        // 6.9
        ("WINDOW_UPDATE of 0", vec![window(0, 0)], Comes::End),
        ("WINDOW_UPDATE of 0 of a stream", vec![post(1), window(1, 0)], Comes::Reset(1)),
        ("WINDOW_UPDATE that is too short", vec![frame(WINDOW_UPDATE, 0, 0, [0; 3])], Comes::End),
        ("a window that overflows", vec![window(0, u32::MAX >> 1), window(0, u32::MAX >> 1)], Comes::End),
        (
            "a window of a stream that overflows",
            vec![post(1), window(1, u32::MAX >> 1), window(1, u32::MAX >> 1)],
            Comes::Reset(1),
        ),
        // 6.10
        (
            "CONTINUATION behind the end of a block",
            vec![frame(HEADERS, END_HEADERS, 1, request("POST", &[])), frame(CONTINUATION, END_HEADERS, 1, &block)],
            Comes::End,
        ),
        (
            "CONTINUATION of no stream",
            vec![frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 0, second)],
            Comes::End,
        ),
        // 8.1.1
        (
            "a body that is shorter than it says",
            vec![post_with("9"), frame(DATA, END_STREAM, 1, b"x")],
            Comes::Reset(1),
        ),
        (
            "a body that is longer than it says",
            vec![post_with("1"), frame(DATA, END_STREAM, 1, b"xy")],
            Comes::Reset(1),
        ),
        (
            "a body in several pieces that is longer",
            vec![post_with("1"), frame(DATA, 0, 1, b"x"), frame(DATA, 1, 1, b"x")],
            Comes::Reset(1),
        ),
        (
            "no body where a length is",
            vec![frame(HEADERS, WHOLE, 1, request("POST", &[("content-length", "1")]))],
            Comes::Reset(1),
        ),
        (
            "HEADERS in the middle without an end",
            vec![post(1), frame(HEADERS, END_HEADERS, 1, super::raw::block(&[("x", "y")]))],
            Comes::Reset(1),
        ),
        (
            "trailers",
            vec![post(1), frame(DATA, 0, 1, b"x"), frame(HEADERS, WHOLE, 1, super::raw::block(&[("x", "y")]))],
            Comes::Answer(1),
        ),
        (
            "trailers with a pseudo-header",
            vec![post(1), frame(HEADERS, WHOLE, 1, super::raw::block(&[(":method", "GET")]))],
            Comes::Reset(1),
        ),
    ]);
}

#[test]
fn heads() {
    let head = |fields: &[(&str, &str)]| vec![frame(HEADERS, WHOLE, 1, block(&[fields, &permit()].concat()))];
    let with = |name, value| vec![frame(HEADERS, WHOLE, 1, request("GET", &[(name, value)]))];
    let (method, scheme) = ((":method", "GET"), (":scheme", "http"));
    let (path, authority) = ((":path", SUBSCRIBER), (":authority", "data.example"));
    let raw = |bytes: &[u8]| vec![frame(HEADERS, WHOLE, 1, [request("GET", &[]).as_slice(), bytes].concat())];
    all(&[
        // 8.2
        ("a name in capitals", with("X-Caps", "1"), Comes::Reset(1)),
        ("an empty name", with("", "1"), Comes::Reset(1)),
        ("a name with a blank", with("x y", "1"), Comes::Reset(1)),
        ("a value with a line end", with("x", "a\r\nb: c"), Comes::Reset(1)),
        ("a value with NUL", with("x", "a\0b"), Comes::Reset(1)),
        // 8.2.2
        ("Connection", with("connection", "keep-alive"), Comes::Reset(1)),
        ("Transfer-Encoding", with("transfer-encoding", "chunked"), Comes::Reset(1)),
        ("Upgrade", with("upgrade", "h2c"), Comes::Reset(1)),
        ("Keep-Alive", with("keep-alive", "1"), Comes::Reset(1)),
        ("Proxy-Connection", with("proxy-connection", "close"), Comes::Reset(1)),
        ("TE of something else", with("te", "gzip"), Comes::Reset(1)),
        ("TE: trailers", with("te", "trailers"), Comes::Answer(1)),
        // 8.3
        ("an unknown pseudo-header", head(&[method, scheme, path, authority, (":unknown", "1")]), Comes::Reset(1)),
        ("one of answers", head(&[method, scheme, path, authority, (":status", "200")]), Comes::Reset(1)),
        ("a pseudo-header behind others", head(&[method, scheme, path, ("x", "y"), authority]), Comes::Reset(1)),
        ("no method", head(&[scheme, path, authority]), Comes::Reset(1)),
        ("no scheme", head(&[method, path, authority]), Comes::Reset(1)),
        ("no path", head(&[method, scheme, authority]), Comes::Reset(1)),
        ("an empty path", head(&[method, scheme, (":path", ""), authority]), Comes::Reset(1)),
        ("the method twice", head(&[method, method, scheme, path, authority]), Comes::Reset(1)),
        ("the scheme twice", head(&[method, scheme, scheme, path, authority]), Comes::Reset(1)),
        ("the path twice", head(&[method, scheme, path, path, authority]), Comes::Reset(1)),
        ("the authority twice", head(&[method, scheme, path, authority, authority]), Comes::Reset(1)),
        ("Host instead of the authority", head(&[method, scheme, path, ("host", "data.example")]), Comes::Answer(1)),
        ("CONNECT with a path", head(&[(":method", "CONNECT"), path, authority]), Comes::Reset(1)),
        (
            "extended CONNECT",
            head(&[(":method", "CONNECT"), (":protocol", "websocket"), scheme, path, authority]),
            Comes::Reset(1),
        ),
        // RFC 7541
        ("an index of 0", raw(&[0x80]), Comes::End),
        ("an index that is not there", raw(&[0xff, 0x7f]), Comes::End),
        ("an index of a name that is not there", raw(&[0x7f, 0x7f, 1, b'x']), Comes::End),
        ("a number without end", raw(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Comes::End),
        ("Huffman code with padding of more than 7 bits", raw(&[0, 0x81, 0xff, 1, b'x']), Comes::End),
        ("Huffman code with EOS", raw(&[0, 0x84, 0xff, 0xff, 0xff, 0xff, 1, b'x']), Comes::End),
        ("Huffman code padded with zeros", raw(&[0, 0x81, 0x18, 1, b'x']), Comes::End),
        ("a new size of the table at the end", raw(&[0x20]), Comes::End),
        (
            "a size of the table above what was agreed",
            vec![frame(HEADERS, WHOLE, 1, [[0x3f, 0xe2, 0x1f].as_slice(), &request("GET", &[])].concat())],
            Comes::End,
        ),
        (
            "a smaller size of the table",
            vec![frame(HEADERS, WHOLE, 1, [[0x20].as_slice(), &request("GET", &[])].concat())],
            Comes::Answer(1),
        ),
        ("a string that is cut off", raw(&[0, 5, b'x']), Comes::End),
    ]);
}

/// RFC 9113 section 5.1.2: what is over the limit is refused, and may be asked again.
#[test]
fn one_stream_too_many() {
    let (send, is_asked) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |exchange| {
        send.send(()).unwrap();
        exchange.until_closed();
        crate::support::Then::Close
    });
    let sidecar = Setup { more: "limits: {streams: 2}", ..Setup::to(&upstream.address) }.start();
    let mut raw = Raw::to(&sidecar);
    raw.send([PREFACE, &frame(SETTINGS, 0, 0, [])].concat());
    let settings = raw.until(|frame| frame.kind == SETTINGS).unwrap();
    let told: Vec<&[u8]> = settings.payload.chunks(6).collect();
    for (what, setting) in [
        ("streams", setting(3, 2)),
        ("window", setting(4, 65536)),
        ("frames", setting(5, 16384)),
        ("a head", setting(6, 65536)),
    ] {
        assert!(told.contains(&setting.as_slice()) || what == "frames", "{what}: {told:?}");
    }
    raw.send([get(1), get(3), get(5)].concat());
    let reset = raw.until(|frame| frame.kind == RST_STREAM).unwrap();
    assert_eq!((reset.stream, reset.number(0)), (5, 7), "REFUSED_STREAM");
    is_asked.recv_timeout(crate::support::CEILING).unwrap();
    is_asked.recv_timeout(crate::support::CEILING).unwrap();
    drop(raw);
    assert_eq!(sidecar.unread("refused")["refused"], 1);
}

#[test]
fn what_begins_otherwise_is_no_http2() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    for begin in ["PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "PRI * HTTP/2.1\r\n\r\n", "PRI / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut connection = sidecar.connect();
        connection.send(begin);
        assert!(connection.answer().is_none_or(|answer| answer.status >= 400), "{begin:?}");
    }
    let mut raw = Raw::to(&sidecar);
    raw.send([PREFACE, &get(1)].concat());
    assert!(raw.ends(), "the first frame has to be SETTINGS");
    let mut raw = Raw::to(&sidecar);
    for byte in [PREFACE, &frame(SETTINGS, 0, 0, []), &get(1)].concat() {
        raw.send([byte]);
    }
    assert!(raw.answers(1), "byte by byte");
    // What only looks like it.
    for part in [1, 3, 5, 14, 16] {
        let mut connection = sidecar.connect();
        let text = crate::support::Head::permitted("P", SUBSCRIBER).end().replacen("P ", "PUT ", 1);
        connection.send(&text[..part]);
        std::thread::sleep(std::time::Duration::from_millis(10));
        connection.send(&text[part..]);
        assert_eq!(connection.answer().unwrap().status, 200, "{part}");
    }
}
