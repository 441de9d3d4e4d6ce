//! HTTP/2 as frames, written and read by hand: a test must not share the mistakes of a library.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpStream;

use crate::support::CARE_DESK;
use crate::support::CEILING;
use crate::support::SUBSCRIBER;
use crate::support::Sidecar;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const WITH_PRIORITY: u8 = 32;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// The number at a place of the payload.
    pub(super) fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A frame as bytes.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A length of HPACK, of at most 7 bits (RFC 7541 section 5.1).
fn length(bytes: &mut Vec<u8>, length: usize) {
    match length {
        0..=126 => bytes.push(u8::try_from(length).unwrap()),
        _ => {
            bytes.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap());
        }
    }
}

/// A block of header fields, each written out (RFC 7541 section 6.2.2).
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        length(&mut bytes, name.len());
        bytes.extend(name.as_bytes());
        length(&mut bytes, value.len());
        bytes.extend(value.as_bytes());
    }
    bytes
}

/// What a request of the care desk begins with.
pub(super) fn pseudo(method: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![(":method", method), (":scheme", "http"), (":path", SUBSCRIBER), (":authority", "data.example")]
}

/// What permits it.
pub(super) fn permit() -> Vec<(&'static str, &'static str)> {
    vec![("dpa-caller", CARE_DESK), ("dpa-context", "purpose=customer_support")]
}

/// A permitted request with more fields.
pub(super) fn request(method: &'static str, more: &[(&'static str, &'static str)]) -> Vec<u8> {
    block(&[pseudo(method), permit(), more.to_vec()].concat())
}

/// `GET`, permitted, whole.
pub(super) fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, request("GET", &[]))
}

/// `POST`, permitted, its body still to come.
pub(super) fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, request("POST", &[]))
}

/// One setting.
pub(super) fn setting(id: u16, value: u32) -> Vec<u8> {
    [id.to_be_bytes().as_slice(), &value.to_be_bytes()].concat()
}

/// A connection on which a test writes what it likes.
#[derive(Debug)]
pub(super) struct Raw(TcpStream);

impl Raw {
    /// Connected; nothing is sent.
    pub(super) fn to(sidecar: &Sidecar) -> Self {
        let stream = TcpStream::connect(&sidecar.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(CEILING)).unwrap();
        Self(stream)
    }

    /// Both sides have said what they begin with.
    pub(super) fn begun(sidecar: &Sidecar) -> Self {
        Self::begun_with(sidecar, &[])
    }

    /// The same, with these settings.
    pub(super) fn begun_with(sidecar: &Sidecar, settings: &[u8]) -> Self {
        let mut raw = Self::to(sidecar);
        raw.send([PREFACE, &frame(SETTINGS, 0, 0, settings)].concat());
        let theirs = raw.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0).expect("their SETTINGS");
        assert_eq!(theirs.payload.len() % 6, 0);
        raw.send(frame(SETTINGS, ACK, 0, []));
        raw.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == ACK).expect("their ACK");
        raw
    }

    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _gone = self.0.write_all(bytes.as_ref());
    }

    /// Whether what was written went off.
    pub(super) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).is_ok()
    }

    /// The next frame; none if the connection ends.
    pub(super) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok().or_else(|| {
            // Not in vain for long: a test says what it waits for.
            None
        })?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame like this; none if the connection ends before.
    pub(super) fn until(&mut self, is_it: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let begin = std::time::Instant::now();
        loop {
            assert!(begin.elapsed() < CEILING, "waited in vain");
            match self.next() {
                Some(frame) if is_it(&frame) => return Some(frame),
                Some(_) => {}
                None => {
                    assert!(begin.elapsed() < CEILING, "waited in vain");
                    return None;
                }
            }
        }
    }

    /// The head of the answer on a stream.
    pub(super) fn answers(&mut self, stream: u32) -> bool {
        self.until(|frame| frame.kind == HEADERS && frame.stream == stream).is_some()
    }

    /// Whether the connection ends.
    pub(super) fn ends(&mut self) -> bool {
        self.until(|frame| frame.kind == GOAWAY)
            .is_none_or(|goaway| goaway.number(4) != 0 || self.until(|_| false).is_none())
    }
}
