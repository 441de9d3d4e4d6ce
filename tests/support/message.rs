//! HTTP/1.1 as bytes, read by hand: a test must not share the mistakes of a library.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;

use serde_json::Value;

use super::CEILING;

/// The head of a message, as it was on the wire.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    /// The first line.
    pub(crate) line: String,
    /// The header lines.
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    /// Reads a head; `None` if the connection ends before it does.
    pub(crate) fn read(reader: &mut impl BufRead) -> Option<Self> {
        let line = line(reader)?;
        let mut headers = Vec::new();
        loop {
            let next = self::line(reader)?;
            if next.is_empty() {
                return Some(Self { line, headers });
            }
            let (name, value) = next.split_once(':').unwrap_or((&next, ""));
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// The values of a header.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let same = |(known, _): &&(String, String)| known.eq_ignore_ascii_case(name);
        self.headers.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that occurs at most once.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let values = self.values(name);
        assert!(values.len() < 2, "{name} occurs {} times: {self:?}", values.len());
        values.first().copied()
    }

    /// How the body is framed; `otherwise` if the head does not say.
    pub(crate) fn framing(&self, otherwise: Framing) -> Framing {
        if self.value("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            Framing::Chunked
        } else if let Some(length) = self.value("content-length") {
            Framing::Length(length.parse().unwrap())
        } else {
            otherwise
        }
    }
}

/// A line without its end; `None` if the connection ends before it does.
fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut bytes = Vec::new();
    reader.read_until(b'\n', &mut bytes).ok()?;
    let text = String::from_utf8_lossy(bytes.strip_suffix(b"\n")?).into_owned();
    Some(text.strip_suffix('\r').map(str::to_owned).unwrap_or(text))
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    Nothing,
    /// After so many bytes.
    Length(u64),
    /// With the chunk of length 0.
    Chunked,
    /// With the connection.
    Close,
}

/// Reads a body as far as it comes; whether it came to its end.
pub(crate) fn read_body(reader: &mut impl BufRead, framing: Framing) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    let is_whole = fill(reader, framing, &mut body).unwrap_or(false);
    (body, is_whole)
}

fn fill(reader: &mut impl BufRead, framing: Framing, body: &mut Vec<u8>) -> io::Result<bool> {
    match framing {
        Framing::Nothing => Ok(true),
        Framing::Length(length) => {
            reader.take(length).read_to_end(body)?;
            Ok(u64::try_from(body.len()).is_ok_and(|read| read == length))
        }
        Framing::Close => reader.read_to_end(body).map(|_| true),
        Framing::Chunked => loop {
            let Some(size) = line(reader).and_then(|line| u64::from_str_radix(line.trim(), 16).ok()) else {
                return Ok(false);
            };
            if size == 0 {
                while line(reader).is_some_and(|line| !line.is_empty()) {}
                return Ok(true);
            }
            let before = body.len();
            reader.take(size).read_to_end(body)?;
            if u64::try_from(body.len() - before).is_ok_and(|read| read < size) || line(reader).is_none() {
                return Ok(false);
            }
        },
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// The head.
    pub(crate) head: Head,
    /// The body, as far as it came.
    pub(crate) body: Vec<u8>,
    /// Whether it came to its end.
    pub(crate) is_whole: bool,
}

impl Answer {
    /// Reads the answer to a request that was no HEAD; `None` if the connection ends instead.
    pub(crate) fn read(reader: &mut impl BufRead) -> Option<Self> {
        let (status, head) = Self::head(reader)?;
        let is_bare = status < 200 || matches!(status, 204 | 304);
        let framing = if is_bare { Framing::Nothing } else { head.framing(Framing::Close) };
        let (body, is_whole) = read_body(reader, framing);
        Some(Self { status, head, body, is_whole })
    }

    fn head(reader: &mut impl BufRead) -> Option<(u16, Head)> {
        let head = Head::read(reader)?;
        let status = head.line.split(' ').nth(1).and_then(|status| status.parse().ok());
        Some((status.unwrap_or_else(|| panic!("no status: {head:?}")), head))
    }

    /// The value of a header.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.head.value(name)
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as a problem document.
    pub(crate) fn problem(&self) -> Value {
        assert_eq!(self.value("content-type"), Some("application/problem+json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The reason in the problem document.
    pub(crate) fn reason(&self) -> String {
        self.problem()["reason"].as_str().unwrap().to_owned()
    }

    /// The id of the decision.
    pub(crate) fn decision_id(&self) -> String {
        self.value("dpa-decision-id").unwrap_or_else(|| panic!("no decision id: {self:?}")).to_owned()
    }

    /// All of it, to be searched.
    pub(crate) fn everything(&self) -> String {
        format!("{}\n{:?}\n{}", self.head.line, self.head.headers, self.text())
    }
}

/// One connection, on which a test writes what it likes.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// To this address.
    pub(crate) fn to(address: &str) -> Self {
        Self::on(TcpStream::connect(address).unwrap())
    }

    /// To this address, from an address of this machine.
    pub(crate) fn from(source: [u8; 4], address: &str) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&address.parse::<SocketAddr>().unwrap().into()).unwrap();
        Self::on(socket.into())
    }

    /// On a stream that stands.
    pub(crate) fn on(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(CEILING)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    /// Writes bytes.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Writes bytes to somebody who may have gone away.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Reads the answer to a request that was no HEAD; `None` if the connection ends instead.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        Answer::read(&mut self.reader)
    }

    /// Reads a head alone.
    pub(crate) fn head(&mut self) -> Option<(u16, Head)> {
        Answer::head(&mut self.reader)
    }

    /// Reads so many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether nothing more comes: the other side has closed.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.reader.fill_buf() {
            Ok(more) => more.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
}
