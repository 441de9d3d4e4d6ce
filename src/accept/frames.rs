//! The frames of a connection of HTTP/2, by their heads, before the library reads them (RFC 9113 section 4.1).
//!
//! The library knows no time, and takes any number of frames that ask for nothing. [`Frames`] tells what has begun and
//! not ended, and what came that brings no request on. It refuses nothing: what is wrong is up to the library.

/// What every connection begins with (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of the head of a frame.
const HEAD: usize = 9;

/// RFC 9113 section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// On DATA and HEADERS.
const END_STREAM: u8 = 1;
/// On HEADERS and CONTINUATION.
const END_HEADERS: u8 = 4;

/// What has begun and not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// The preface, a head of a frame, a block of header fields, or a frame that is no content.
    Head,
    /// A frame with content.
    Content,
}

/// The frames of one connection, as far as they have come.
#[derive(Clone, Debug)]
pub struct Frames {
    head: [u8; HEAD],
    /// Bytes of it that have come.
    filled: usize,
    /// Bytes of the preface or of a frame that are still to come behind its head.
    left: usize,
    is_preface: bool,
    is_content: bool,
    /// A block of header fields has begun.
    is_block: bool,
    /// It is the first of its stream.
    opens: bool,
    last_stream: u32,
    opened: u64,
    whole: u64,
    content: u64,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            head: [0; HEAD],
            filled: 0,
            left: PREFACE.len(),
            is_preface: true,
            is_content: false,
            is_block: false,
            opens: false,
            last_stream: 0,
            opened: 0,
            whole: 0,
            content: 0,
        }
    }
}

impl Frames {
    /// What has begun and not ended.
    #[must_use]
    pub fn due(&self) -> Due {
        match (self.left, self.filled) {
            (PREFACE_LENGTH, _) if self.is_preface => Due::Nothing,
            (0, 0) if !self.is_block => Due::Nothing,
            (1.., _) if self.is_content => Due::Content,
            _ => Due::Head,
        }
    }

    /// How many things came to their end: another number says that what is due is another thing.
    #[must_use]
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// Bytes of content that came.
    #[must_use]
    pub fn content(&self) -> u64 {
        self.content
    }

    /// How many streams have begun with a whole block of header fields.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Reads on. How many frames began that bring no body on: all but those with content, or with the end of a body.
    pub fn read(&mut self, mut bytes: &[u8]) -> u32 {
        let mut spare: u32 = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let here = self.left.min(bytes.len());
                self.left -= here;
                if self.is_content {
                    self.content = self.content.saturating_add(u64::try_from(here).unwrap_or(0));
                }
                bytes = bytes.get(here..).unwrap_or_default();
                if self.left == 0 {
                    self.ends();
                }
                continue;
            }
            let here = (HEAD - self.filled).min(bytes.len());
            let (piece, rest) = bytes.split_at(here);
            if let Some(place) = self.head.get_mut(self.filled..self.filled + here) {
                place.copy_from_slice(piece);
            }
            self.filled += here;
            bytes = rest;
            if self.filled == HEAD {
                self.filled = 0;
                spare = spare.saturating_add(u32::from(self.begins()));
                if self.left == 0 {
                    self.ends();
                }
            }
        }
        spare
    }

    /// The head of a frame is whole. Whether the frame brings no body on.
    fn begins(&mut self) -> bool {
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        self.left = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        self.is_content = kind == DATA;
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        if kind == HEADERS {
            self.opens = stream > self.last_stream;
            self.last_stream = self.last_stream.max(stream);
        }
        if matches!(kind, HEADERS | CONTINUATION) {
            self.is_block = flags & END_HEADERS == 0;
        }
        kind != DATA || (self.left == 0 && flags & END_STREAM == 0)
    }

    /// The preface or a frame is whole.
    fn ends(&mut self) {
        self.is_preface = false;
        self.is_content = false;
        if !self.is_block {
            self.whole = self.whole.wrapping_add(1);
            self.opened = self.opened.wrapping_add(u64::from(std::mem::take(&mut self.opens)));
        }
    }
}

/// As a pattern.
const PREFACE_LENGTH: usize = PREFACE.len();

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
        let mut frame = length.get(1..).unwrap_or_default().to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    #[test]
    fn what_comes_is_told_in_pieces_of_any_size() {
        let whole = [
            PREFACE.to_vec(),
            frame(4, 0, 0, &[0; 12]),
            frame(1, 4, 1, b"block"),
            frame(0, 0, 1, b"content"),
            frame(0, 0, 1, b""),
            frame(0, 1, 1, b""),
            frame(1, 1, 3, b"begin"),
            frame(9, 0, 3, b""),
            frame(9, 4, 3, b"end"),
            frame(1, 5, 1, b"trailers"),
            frame(6, 0, 0, &[0; 8]),
        ]
        .concat();
        for size in [1, 2, 7, 9, 24, whole.len()] {
            let mut frames = Frames::default();
            let spare: u32 = whole.chunks(size).map(|piece| frames.read(piece)).sum();
            assert_eq!((spare, frames.opened(), frames.content()), (8, 2, 7), "in pieces of {size}");
            assert_eq!(frames.due(), Due::Nothing, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_due() {
        let table: [(&str, Vec<u8>, Due); 8] = [
            ("nothing came", Vec::new(), Due::Nothing),
            ("a part of the preface", b"PRI".to_vec(), Due::Head),
            ("the preface", PREFACE.to_vec(), Due::Nothing),
            ("a part of a head", [PREFACE.as_slice(), &[0, 0]].concat(), Due::Head),
            ("a part of SETTINGS", [PREFACE.as_slice(), &[0, 0, 6, 4, 0, 0, 0, 0, 0]].concat(), Due::Head),
            ("a block without its end", [PREFACE.to_vec(), frame(1, 0, 1, b"x")].concat(), Due::Head),
            ("a block with it", [PREFACE.to_vec(), frame(1, 4, 1, b"x")].concat(), Due::Nothing),
            ("a part of DATA", [PREFACE.as_slice(), &[0, 0, 6, 0, 0, 0, 0, 0, 1, 7]].concat(), Due::Content),
        ];
        for (what, bytes, due) in table {
            let mut frames = Frames::default();
            frames.read(&bytes);
            assert_eq!(frames.due(), due, "{what}");
        }
    }
}
