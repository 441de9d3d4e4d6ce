//! HTTP/2 as frames, written and read by hand: a test must not share the mistakes of a library.

use std::net::TcpStream;

use crate::support::CARE_DESK;
use crate::support::CEILING;
use crate::support::SUBSCRIBER;
use crate::support::Sidecar;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 32;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The number at a place of the payload.
    pub(crate) fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A frame as bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
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
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
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
pub(crate) fn pseudo(method: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![(":method", method), (":scheme", "http"), (":path", SUBSCRIBER), (":authority", "data.example")]
}

/// What permits it.
pub(crate) fn permit() -> Vec<(&'static str, &'static str)> {
    vec![("dpa-caller", CARE_DESK), ("dpa-context", "purpose=customer_support")]
}

/// A permitted request with more fields.
pub(crate) fn request(method: &'static str, more: &[(&'static str, &'static str)]) -> Vec<u8> {
    block(&[pseudo(method), permit(), more.to_vec()].concat())
}

/// `GET`, permitted, whole.
pub(crate) fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, request("GET", &[]))
}

/// `POST`, permitted, its body still to come.
pub(crate) fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, request("POST", &[]))
}

/// One setting.
pub(crate) fn setting(id: u16, value: u32) -> Vec<u8> {
    [id.to_be_bytes().as_slice(), &value.to_be_bytes()].concat()
}

/// A connection on which a test writes what it likes.
#[derive(Debug)]
pub(crate) struct Raw<S = TcpStream>(S);

impl Raw {
    /// Connected; nothing is sent.
    pub(crate) fn to(sidecar: &Sidecar) -> Self {
        let stream = TcpStream::connect(&sidecar.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(CEILING)).unwrap();
        Self(stream)
    }

    /// How long the next frame is waited for.
    pub(crate) fn waits(&self, time: std::time::Duration) {
        self.0.set_read_timeout(Some(time)).unwrap();
    }

    /// Both sides have said what they begin with.
    pub(crate) fn begun(sidecar: &Sidecar) -> Self {
        Self::begun_with(sidecar, &[])
    }

    /// The same, with these settings.
    pub(crate) fn begun_with(sidecar: &Sidecar, settings: &[u8]) -> Self {
        let mut raw = Self::to(sidecar);
        raw.begin(settings);
        raw
    }
}

impl<S: std::io::Read + std::io::Write> Raw<S> {
    /// On a stream that stands.
    pub(crate) fn on(stream: S) -> Self {
        Self(stream)
    }

    /// Says what a connection begins with, and hears it.
    pub(crate) fn begin(&mut self, settings: &[u8]) {
        self.send([PREFACE, &frame(SETTINGS, 0, 0, settings)].concat());
        let theirs = self.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0).unwrap();
        assert_eq!(theirs.payload.len() % 6, 0);
        self.send(frame(SETTINGS, ACK, 0, []));
        self.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == ACK).unwrap();
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _gone = self.0.write_all(bytes.as_ref());
    }

    /// Whether what was written went off.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).is_ok()
    }

    /// The next frame; none if the connection ends.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame like this; none if the connection ends before.
    pub(crate) fn until(&mut self, mut is_it: impl FnMut(&Frame) -> bool) -> Option<Frame> {
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
    pub(crate) fn answers(&mut self, stream: u32) -> bool {
        self.until(|frame| frame.kind == HEADERS && frame.stream == stream).is_some()
    }

    /// Whether the connection ends.
    pub(crate) fn ends(&mut self) -> bool {
        self.until(|frame| frame.kind == GOAWAY)
            .is_none_or(|goaway| goaway.number(4) != 0 || self.until(|_| false).is_none())
    }
}
