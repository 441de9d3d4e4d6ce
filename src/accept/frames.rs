//! The frames of a connection of HTTP/2, by their heads, before the library reads them (RFC 9113 section 4.1).
//!
//! The library knows no time, and takes any number of frames that ask for nothing. [`Frames`] tells what has begun and
//! not ended, what came that brings no request on, the two mistakes that the library passes over, and of which heads it
//! may keep the scheme to itself. All other mistakes are up to the library.

/// What every connection begins with (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of the head of a frame.
const HEAD: usize = 9;

/// RFC 9113 section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

/// On DATA and HEADERS.
const END_STREAM: u8 = 1;
/// On HEADERS and CONTINUATION.
const END_HEADERS: u8 = 4;
/// On DATA and HEADERS.
const PADDED: u8 = 8;
/// On HEADERS.
const PRIORITY: u8 = 32;

/// Bytes of HEADERS that are looked at: all that a frame may have.
const MOST_GATHERED: usize = 16 * 1024;

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
    /// The payload of HEADERS, as far as it came.
    fields: Option<Vec<u8>>,
    is_wrong: bool,
    /// The block that has begun shows no scheme.
    is_hidden: bool,
    hides_scheme: bool,
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
            fields: None,
            is_wrong: false,
            is_hidden: false,
            hides_scheme: false,
        }
    }
}

impl Frames {
    /// Whether something came that no connection survives and the library passes over: another frame than SETTINGS
    /// first (RFC 9113 section 3.4), or a pseudo-header in trailers (section 8.1).
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.is_wrong
    }

    /// Whether what was read last ends with the head of a request whose scheme does not show as one of HTTP. The library
    /// tells the scheme only beside an `:authority`.
    #[must_use]
    pub fn hides_scheme(&self) -> bool {
        self.hides_scheme
    }

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

    /// Reads on, and stops behind a head that [hides its scheme](Self::hides_scheme); the rest is left in `bytes`. How
    /// many frames began that bring no body on: all but those with content, or with the end of a body.
    pub fn read(&mut self, bytes: &mut &[u8]) -> u32 {
        let mut spare: u32 = 0;
        self.hides_scheme = false;
        while !bytes.is_empty() && !self.hides_scheme {
            if self.left > 0 {
                let here = self.left.min(bytes.len());
                self.left -= here;
                if self.is_content {
                    self.content = self.content.saturating_add(u64::try_from(here).unwrap_or(0));
                }
                let (piece, rest) = bytes.split_at(here);
                match &mut self.fields {
                    Some(fields) if fields.is_empty() && self.left == 0 => {
                        self.fields = None;
                        self.reads_fields(piece.get(..MOST_GATHERED).unwrap_or(piece));
                    }
                    Some(fields) => fields.extend(piece.iter().take(MOST_GATHERED.saturating_sub(fields.len()))),
                    None => {}
                }
                *bytes = rest;
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
            *bytes = rest;
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
        // Nothing but the preface was whole before it.
        self.is_wrong |= self.whole == 1 && kind != SETTINGS;
        if kind == HEADERS {
            self.opens = stream > self.last_stream;
            self.fields = Some(Vec::new());
            self.last_stream = self.last_stream.max(stream);
        }
        if matches!(kind, HEADERS | CONTINUATION) {
            self.is_block = flags & END_HEADERS == 0;
        }
        kind != DATA || (self.left == 0 && flags & END_STREAM == 0)
    }

    /// The payload of HEADERS.
    fn reads_fields(&mut self, payload: &[u8]) {
        let [a, b, c, _, flags, ..] = self.head;
        let is_padded = flags & PADDED != 0;
        let before = usize::from(is_padded) + 5 * usize::from(flags & PRIORITY != 0);
        let padding = payload.first().filter(|_| is_padded).copied().map_or(0, usize::from);
        let whole = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        let end = whole.saturating_sub(padding).min(payload.len());
        let block = payload.get(before..end).unwrap_or_default();
        match self.opens {
            true => self.is_hidden = !shows_scheme(block).unwrap_or(false),
            false => self.is_wrong |= has_pseudo_header(block).unwrap_or(false),
        }
    }

    /// The preface or a frame is whole.
    fn ends(&mut self) {
        if let Some(fields) = self.fields.take() {
            self.reads_fields(&fields);
        }
        self.is_preface = false;
        self.is_content = false;
        if !self.is_block {
            self.whole = self.whole.wrapping_add(1);
            self.opened = self.opened.wrapping_add(u64::from(std::mem::take(&mut self.opens)));
            self.hides_scheme = std::mem::take(&mut self.is_hidden);
        }
    }
}

/// Whether a block shows that its scheme is one of HTTP: as an entry of the static table (Appendix A), or written out.
/// Nobody who sends requests says it otherwise.
fn shows_scheme(mut block: &[u8]) -> Option<bool> {
    while let Some(first) = block.first() {
        let bits = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let index = integer(&mut block, bits)?;
        let mut is_scheme = matches!(index, 6 | 7);
        if bits == 7 && is_scheme {
            return Some(true);
        }
        if bits == 7 || bits == 5 {
            continue;
        }
        if index == 0 {
            is_scheme = matches!(string(&mut block)?, (b":scheme", false) | (b"\xb8\x82\x4e\x5a\x4b", true));
        }
        let value = string(&mut block)?;
        if is_scheme {
            let plain = matches!(value, (b"http" | b"https", false));
            return Some(plain || matches!(value, (b"\x9d\x29\xaf" | b"\x9d\x29\xad\x1f", true)));
        }
    }
    Some(false)
}

/// Whether a block of header fields has a pseudo-header that shows without the table of the connection (RFC 7541 section
/// 6). The library drops what does not show. None if the block is cut off.
fn has_pseudo_header(mut block: &[u8]) -> Option<bool> {
    while let Some(first) = block.first() {
        let bits = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let index = integer(&mut block, bits)?;
        // Those of the static table (Appendix A).
        if bits != 5 && (1..=14).contains(&index) {
            return Some(true);
        }
        if bits == 7 || bits == 5 {
            continue;
        }
        if index == 0 {
            let (name, is_coded) = string(&mut block)?;
            // A colon, in Huffman's code too (Appendix B).
            if name.first().is_some_and(|first| if is_coded { first >> 1 == 0x5c } else { *first == b':' }) {
                return Some(true);
            }
        }
        string(&mut block)?;
    }
    Some(false)
}

/// RFC 7541 section 5.1.
fn integer(block: &mut &[u8], bits: u32) -> Option<usize> {
    let most = (1_usize << bits) - 1;
    let (first, mut rest) = block.split_first()?;
    let mut number = usize::from(*first) & most;
    if number == most {
        for shift in [0, 7, 14, 21] {
            let (next, behind) = rest.split_first()?;
            rest = behind;
            number += usize::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                *block = rest;
                return Some(number);
            }
        }
        return None;
    }
    *block = rest;
    Some(number)
}

/// RFC 7541 section 5.2; whether it is in Huffman's code.
fn string<'b>(block: &mut &'b [u8]) -> Option<(&'b [u8], bool)> {
    let is_coded = block.first()? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some((text, is_coded))
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

    /// Reads all of it: how many frames bring no body on, and how many heads hide their scheme.
    fn reads(frames: &mut Frames, mut bytes: &[u8]) -> (u32, usize) {
        let (mut spare, mut hidden) = (0, 0);
        while !bytes.is_empty() {
            spare += frames.read(&mut bytes);
            hidden += usize::from(frames.hides_scheme());
        }
        (spare, hidden)
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
            let spare: u32 = whole.chunks(size).map(|piece| reads(&mut frames, piece).0).sum();
            assert_eq!((spare, frames.opened(), frames.content()), (8, 2, 7), "in pieces of {size}");
            assert_eq!(frames.due(), Due::Nothing, "in pieces of {size}");
        }
    }

    /// A byte of padding was read as a field behind the others.
    #[test]
    fn padding_showed_a_scheme() {
        let table = [
            ("no scheme", vec![0x82], true),
            ("one", vec![0x82, 0x86], false),
            ("one in the padding", vec![1, 0x82, 0x86], true),
            ("one before padding", vec![1, 0x82, 0x86, 0], false),
            ("padding that is longer than the frame", vec![200, 0x86], true),
        ];
        for (what, payload, is_hidden) in table {
            let flags = if payload.len() > 2 || what.starts_with("padding") { 0xC } else { 4 };
            let mut frames = Frames::default();
            let bytes = [PREFACE.to_vec(), frame(4, 0, 0, b""), frame(1, flags, 1, &payload)].concat();
            assert_eq!(reads(&mut frames, &bytes).1, usize::from(is_hidden), "{what}");
        }
    }

    #[test]
    fn what_the_library_passes_over() {
        let begin = [PREFACE.to_vec(), frame(4, 0, 0, b"")].concat();
        let trailers = |flags, block: &[u8]| [begin.clone(), frame(1, 4, 1, b""), frame(1, flags, 1, block)].concat();
        let table: [(&str, Vec<u8>, bool); 11] = [
            ("SETTINGS first", begin.clone(), false),
            ("PING first", [PREFACE.to_vec(), frame(6, 0, 0, b"")].concat(), true),
            ("trailers", trailers(5, b"\x00\x01x\x01y\x40\x01x\x01y"), false),
            ("a pseudo-header by its index", trailers(5, b"\x82"), true),
            ("one whose name has an index", trailers(5, b"\x00\x01x\x01y\x42\x01y"), true),
            ("one that is written out", trailers(5, b"\x00\x01x\x01y\x00\x07:method\x03GET"), true),
            ("one in Huffman's code", trailers(5, b"\x00\x86\xb9\x49\x53\x39\xe4\xff\x01y"), true),
            ("one behind padding and a priority", trailers(45, b"\x00\x00\x00\x00\x00\x00\x82"), true),
            ("another size of the table", trailers(5, b"\x21\x00\x01x\x01y"), false),
            ("what is cut off", trailers(5, b"\x00\x7f\xff\xff\xff\xff\xff\xff"), false),
            ("an entry of the connection's own table", trailers(5, b"\xbe"), false),
        ];
        for (what, bytes, is_wrong) in table {
            for size in [1, 5, bytes.len()] {
                let mut frames = Frames::default();
                for piece in bytes.chunks(size) {
                    reads(&mut frames, piece);
                }
                assert_eq!(frames.is_wrong(), is_wrong, "{what}, in pieces of {size}");
            }
        }
    }

    #[test]
    fn schemes_that_show() {
        let table: [(&str, u8, &[u8], bool); 13] = [
            ("http, by its index", 5, b"\x82\x86\x84\x01\x01a", true),
            ("https, by its index", 5, b"\x82\x87", true),
            ("http, written out", 5, b"\x82\x06\x04http", true),
            ("https, and its name too", 5, b"\x00\x07:scheme\x05https", true),
            ("http in Huffman's code", 5, b"\x46\x83\x9d\x29\xaf", true),
            (
                "https, and its name too, in Huffman's code",
                5,
                b"\x10\x85\xb8\x82\x4e\x5a\x4b\x84\x9d\x29\xad\x1f",
                true,
            ),
            ("behind padding, a priority and a path", 45, b"\x01\x00\x00\x00\x00\x00\x44\x03/v1\x86\x00", true),
            ("another one", 5, b"\x82\x06\x03ftp", false),
            ("another one in Huffman's code", 5, b"\x82\x06\x83\x94\xd3\x5f", false),
            ("an entry of the connection's own table", 5, b"\x82\xbe", false),
            ("one behind what is cut off", 5, b"\x82\x04\x05/v1\x86", false),
            ("none", 5, b"\x82\x84", false),
            ("an empty block", 5, b"", false),
        ];
        for (what, flags, block, shows) in table {
            let bytes = [PREFACE.to_vec(), frame(4, 0, 0, b""), frame(1, flags, 1, block)].concat();
            for size in [1, 3, bytes.len()] {
                let mut frames = Frames::default();
                let hidden: usize = bytes.chunks(size).map(|piece| reads(&mut frames, piece).1).sum();
                assert_eq!(hidden, usize::from(!shows), "{what}, in pieces of {size}");
                let behind = [frame(1, 4, 3, b"\x82\x86"), frame(1, 5, 3, b"\x00\x01x\x01y")].concat();
                assert_eq!(
                    reads(&mut frames, &behind).1,
                    0,
                    "{what}: what comes behind shows one, and trailers have none"
                );
            }
        }
    }

    /// What comes behind it is another head, and may show one.
    #[test]
    fn a_head_that_hides_its_scheme_is_the_last_that_is_read() {
        let begin = [PREFACE.to_vec(), frame(4, 0, 0, b""), frame(1, 5, 1, b"\x82\x86")].concat();
        let behind = frame(1, 5, 5, b"\x82\x86");
        let table = [
            ("in one frame", frame(1, 5, 3, b"\x82\xbe")),
            ("that goes on", [frame(1, 1, 3, b"\x82\xbe"), frame(9, 0, 3, b""), frame(9, 4, 3, b"\x84")].concat()),
            ("in the frames behind the first", [frame(1, 1, 3, b""), frame(9, 4, 3, b"\x82\x86")].concat()),
        ];
        for (what, hidden) in table {
            let bytes = [begin.as_slice(), &hidden, &behind].concat();
            let (mut frames, mut rest) = (Frames::default(), bytes.as_slice());
            frames.read(&mut rest);
            assert_eq!((frames.hides_scheme(), rest.len(), frames.opened()), (true, behind.len(), 2), "{what}");
            frames.read(&mut rest);
            assert_eq!((frames.hides_scheme(), rest.len(), frames.opened()), (false, 0, 3), "{what}");
        }
    }

    /// No head of a request had 4 KiB before its scheme, until somebody asked for much.
    #[test]
    fn a_long_path_hid_the_scheme_behind_it() {
        let path = [b"\x82\x04\x7f\xe1\x4d".to_vec(), vec![b'a'; 127 + 0x61 + (0x4d << 7)], b"\x86".to_vec()].concat();
        let bytes = [PREFACE.to_vec(), frame(4, 0, 0, b""), frame(1, 5, 1, &path)].concat();
        for size in [1000, bytes.len()] {
            let mut frames = Frames::default();
            let hidden: usize = bytes.chunks(size).map(|piece| reads(&mut frames, piece).1).sum();
            assert_eq!((hidden, frames.opened()), (0, 1), "in pieces of {size}");
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
            reads(&mut frames, &bytes);
            assert_eq!(frames.due(), due, "{what}");
        }
    }
}
