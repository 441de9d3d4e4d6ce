//! Where messages end, and what the HTTP library repairs without a word.
//!
//! hyper reads a bare LF as the end of a line, merges equal `Content-Length` lines, passes over chunk extensions and
//! the like. What goes on is framed anew. But whoever wrote to this connection may have read its message otherwise,
//! and then take the rest of it for the next request. So after such a message the connection is closed, and to know
//! of it somebody has to look at the bytes before hyper does.
//!
//! [`Framing`] refuses nothing: that is up to hyper and to [`crate::observed`]. It is sure of the end of a plain
//! message, and where it is not sure it says [`Framing::closes_after`], which is always safe.

use memchr::memchr;

/// Bytes of a line that came in pieces which are kept. What frames a message fits; of other lines only the end counts.
const KEPT: usize = 64;

/// Hex digits of a chunk's size that everybody reads: a `u64`.
const MOST_DIGITS: usize = 16;

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing of the next message has come.
    Between,
    /// The line with method and target, or empty lines before it.
    RequestLine,
    /// The header lines.
    Fields,
    /// So many bytes of a body.
    Body(u64),
    /// The line with a chunk's size.
    ChunkSize,
    /// So many bytes of a chunk, with the line end behind it.
    Chunk(u64),
    /// What follows the last chunk.
    Trailers,
    /// A whole request that asks for another protocol: what follows may belong to that one.
    Behind,
    /// Nobody can say where the message ends, of whose body so many bytes have come.
    Lost(u64),
    /// The last message that counts is whole.
    Over,
}

/// Which part of a message is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// None: all that came is whole.
    None,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
    /// The rest of a body if it has more bytes than these, which have come: the head could be read in other ways.
    Unsure(u64),
}

/// What a head says about the end of its message.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    length: Option<u64>,
    is_chunked: bool,
    is_upgrade: bool,
    is_unsure: bool,
}

/// A line that came in pieces: its beginning, its length and its last byte.
#[derive(Clone, Copy, Debug)]
struct Pieces {
    kept: [u8; KEPT],
    length: usize,
    last: u8,
}

/// The messages of one connection, as far as they have come.
#[derive(Clone, Debug)]
pub struct Framing {
    state: State,
    said: Said,
    pieces: Pieces,
    begun: u64,
    closes_after: Option<u64>,
}

impl Default for Framing {
    fn default() -> Self {
        let pieces = Pieces { kept: [0; KEPT], length: 0, last: 0 };
        Self { state: State::Between, said: Said::default(), pieces, begun: 0, closes_after: None }
    }
}

impl Framing {
    /// How many messages have begun. One begins with the end of its first line.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// The number of the message, counted from 1, behind which nothing may be read; `None` as long as all is plain.
    #[must_use]
    pub fn closes_after(&self) -> Option<u64> {
        self.closes_after
    }

    /// What is due.
    #[must_use]
    pub fn due(&self) -> Part {
        match self.state {
            State::Between | State::Behind | State::Over => Part::None,
            State::RequestLine | State::Fields => Part::Head,
            State::Body(_) | State::ChunkSize | State::Chunk(_) | State::Trailers => Part::Body,
            State::Lost(bytes) => Part::Unsure(bytes),
        }
    }

    /// Reads on. `is_answered`: whether all messages that have begun are answered, without another protocol.
    pub fn read(&mut self, mut bytes: &[u8], is_answered: bool) {
        if self.state == State::Behind && is_answered {
            self.state = State::Between;
        }
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Over => return,
                State::Lost(before) => {
                    let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    self.state = State::Lost(before.saturating_add(more));
                    return;
                }
                State::Behind => {
                    self.close();
                    self.state = State::Over;
                    return;
                }
                State::Between => {
                    self.state = State::RequestLine;
                    bytes
                }
                State::RequestLine | State::Fields | State::ChunkSize | State::Trailers => self.line(bytes),
                State::Body(left) => self.skip(bytes, left, State::Body, Self::message_ended),
                State::Chunk(left) => self.skip(bytes, left, State::Chunk, |_| State::ChunkSize),
            };
        }
    }

    /// Passes over content.
    fn skip<'b>(
        &mut self,
        bytes: &'b [u8],
        left: u64,
        more: impl Fn(u64) -> State,
        end: impl Fn(&mut Self) -> State,
    ) -> &'b [u8] {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX));
        self.state = if left == 0 { end(self) } else { more(left) };
        bytes.get(here..).unwrap_or_default()
    }

    /// Reads a line, or a piece of one; what follows it.
    fn line<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let end = memchr(b'\n', bytes);
        let (piece, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        if self.state == State::RequestLine && memchr(b'#', piece).is_some() {
            self.said.is_unsure = true;
        }
        if end.is_none() {
            self.pieces.add(piece);
            return rest;
        }
        if self.pieces.length == 0 {
            self.line_ended(piece, piece.len(), piece.last().copied());
        } else {
            self.pieces.add(piece);
            let Pieces { kept, length, last } = self.pieces;
            self.pieces.length = 0;
            self.line_ended(kept.get(..length).unwrap_or(&kept), length, Some(last));
        }
        rest.get(1..).unwrap_or_default()
    }

    /// A line of so many bytes, its LF aside. Of a long one only the beginning counts, whether it came in pieces or
    /// not: what frames a message is short.
    fn line_ended(&mut self, line: &[u8], length: usize, last: Option<u8>) {
        let is_long = length > KEPT;
        let line = line.get(..KEPT).filter(|_| is_long).unwrap_or(line);
        let line = if is_long { line } else { line.strip_suffix(b"\r").unwrap_or(line) };
        let is_bare = last != Some(b'\r');
        match self.state {
            State::RequestLine => self.request_line(line, is_bare),
            State::Fields => {
                if is_bare {
                    self.close();
                }
                if line.is_empty() { self.head_ended() } else { self.field(line, is_long) }
            }
            State::ChunkSize => self.chunk_size(line, is_bare, is_long),
            State::Trailers => self.trailer(line, is_bare),
            State::Between | State::Body(_) | State::Chunk(_) | State::Behind | State::Lost(_) | State::Over => {}
        }
    }

    fn request_line(&mut self, line: &[u8], is_bare: bool) {
        if line.is_empty() {
            // RFC 9112 section 2.2: a server should pass over it. Somebody else may not.
            self.said.is_unsure = true;
            return;
        }
        self.begun += 1;
        // What follows a refused CONNECT was meant for a tunnel.
        if is_bare || self.said.is_unsure || line.starts_with(b"CONNECT ") {
            self.close();
        }
        self.said = Said::default();
        self.state = State::Fields;
    }

    /// RFC 9112 section 6.3. Only what hyper takes for these lines matters.
    fn field(&mut self, line: &[u8], is_long: bool) {
        if !matches!(line.first(), Some(b'C' | b'c' | b'T' | b't' | b'U' | b'u')) {
            return;
        }
        let Some((name, value)) = split(line) else { return };
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = if is_long { None } else { decimal(value) };
            if length.is_none() || self.said.length.is_some() || self.said.is_chunked {
                self.close();
            }
            self.said.is_unsure |= length.is_none() || self.said.length.is_some_and(|other| Some(other) != length);
            self.said.length = length;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_chunked = !is_long && value.eq_ignore_ascii_case(b"chunked");
            if !is_chunked || self.said.is_chunked || self.said.length.is_some() {
                self.close();
            }
            self.said.is_unsure |= !is_chunked;
            self.said.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.said.is_upgrade = true;
        }
    }

    fn head_ended(&mut self) {
        self.state = match self.said {
            Said { is_unsure: true, .. } => self.lost(),
            Said { is_chunked: true, .. } => State::ChunkSize,
            Said { length: Some(length @ 1..), .. } => State::Body(length),
            Said { length: Some(0) | None, .. } => self.message_ended(),
        };
    }

    fn chunk_size(&mut self, line: &[u8], is_bare: bool, is_long: bool) {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = line.get(..digits).and_then(|digits| std::str::from_utf8(digits).ok());
        let size = size.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        // An extension, a blank, or zeros that run over.
        if is_bare || digits != line.len() || digits > MOST_DIGITS {
            self.close();
        }
        self.state = match size.map(|size| (size, size.checked_add(2))) {
            _ if is_long && digits == line.len() => self.lost(),
            Some((0, _)) => State::Trailers,
            Some((_, Some(with_line_end))) => State::Chunk(with_line_end),
            Some((_, None)) | None => self.lost(),
        };
    }

    fn trailer(&mut self, line: &[u8], is_bare: bool) {
        // hyper looks for the CR alone here, so to hyper the line goes on.
        if is_bare {
            self.close();
            self.pieces.add(b"\n");
        } else if line.is_empty() {
            self.state = self.message_ended();
        } else {
            let frames = |name: &[u8]| {
                ["content-length", "transfer-encoding", "host"]
                    .iter()
                    .any(|it| name.eq_ignore_ascii_case(it.as_bytes()))
            };
            if split(line).is_none_or(|(name, _)| frames(name)) {
                self.close();
            }
        }
    }

    fn message_ended(&mut self) -> State {
        let is_upgrade = self.said.is_upgrade;
        self.said = Said::default();
        match self.closes_after {
            Some(_) => State::Over,
            None if is_upgrade => State::Behind,
            None => State::Between,
        }
    }

    fn lost(&mut self) -> State {
        self.close();
        State::Lost(0)
    }

    /// Nothing behind this message counts.
    fn close(&mut self) {
        self.closes_after.get_or_insert(self.begun);
    }
}

impl Pieces {
    fn add(&mut self, piece: &[u8]) {
        let Some(last) = piece.last() else { return };
        self.last = *last;
        for (place, byte) in self.kept.iter_mut().skip(self.length).zip(piece) {
            *place = *byte;
        }
        self.length = self.length.saturating_add(piece.len());
    }
}

/// A header line's name, and its value without the blanks around it.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, value) = line.split_at(memchr(b':', line)?);
    Some((name, value.get(1..)?.trim_ascii()))
}

/// A length as everybody writes it: no sign, no leading zero.
fn decimal(digits: &[u8]) -> Option<u64> {
    let is_plain = digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits.first() != Some(&b'0'));
    let text = std::str::from_utf8(digits).ok().filter(|_| is_plain)?;
    text.parse().ok()
}
