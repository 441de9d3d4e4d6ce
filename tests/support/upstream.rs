//! A data service that does what a test tells it, and remembers what it was asked.

use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::message::Framing;
use super::message::Head;
use super::message::read_body;
use super::wait_for;

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Its head.
    pub(crate) head: Head,
    /// Its body, as far as it was read.
    pub(crate) body: Vec<u8>,
    /// The place of its connection, from 0.
    pub(crate) connection: usize,
}

/// What becomes of the connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next request may come.
    Keep,
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
}

/// One request that wants an answer.
#[derive(Debug)]
pub(crate) struct Exchange<'c> {
    /// Its head.
    pub(crate) head: Head,
    reader: &'c mut BufReader<TcpStream>,
    stream: &'c mut TcpStream,
    seen: &'c Mutex<Vec<Seen>>,
    place: usize,
    has_body: bool,
}

impl Exchange<'_> {
    /// Reads its body, if that has not been done.
    pub(crate) fn body(&mut self) -> Vec<u8> {
        if std::mem::replace(&mut self.has_body, true) {
            return self.seen.lock().unwrap()[self.place].body.clone();
        }
        self.body_and_end().0
    }

    /// Reads its body, as far as it comes, and whether it came to its end.
    pub(crate) fn body_and_end(&mut self) -> (Vec<u8>, bool) {
        let (body, is_whole) = read_body(self.reader, self.head.framing(Framing::Nothing));
        self.seen.lock().unwrap()[self.place].body.clone_from(&body);
        (body, is_whole)
    }

    /// Reads so many bytes of it, chunk lines and all.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads so many bytes, unless the other side closes before.
    pub(crate) fn try_bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Writes to the connection; the other side may have gone away.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _gone = self.stream.write_all(bytes.as_ref());
    }

    /// Reads the body and answers 200 with this.
    pub(crate) fn ok(&mut self, body: impl AsRef<[u8]>) -> Then {
        self.body();
        let body = body.as_ref();
        self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
        self.send(body);
        Then::Keep
    }

    /// Waits until the other side has closed; how many bytes came until then.
    pub(crate) fn until_closed(&mut self) -> usize {
        let mut rest = Vec::new();
        let _reset = self.reader.read_to_end(&mut rest);
        rest.len()
    }
}

/// The data service.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Where it listens.
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    /// Serves each request with this, each connection on its own thread.
    pub(crate) fn start(serve: impl Fn(&mut Exchange<'_>) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let serve = Arc::new(serve);
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (serve, seen, stream) = (Arc::clone(&serve), Arc::clone(&shared), stream.unwrap());
                std::thread::spawn(move || connected(stream, connection, &*serve, &seen));
            }
        });
        Self { address, seen }
    }

    /// Answers everything with `200` and `ok`.
    pub(crate) fn ok() -> Self {
        Self::start(|exchange| exchange.ok("ok"))
    }

    /// Answers everything with these bytes, then closes.
    pub(crate) fn saying(bytes: &'static [u8]) -> Self {
        Self::start(move |exchange| {
            exchange.body();
            exchange.send(bytes);
            Then::Close
        })
    }

    /// What it was asked so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// What it was asked last, once it was asked.
    pub(crate) fn last(&self) -> Seen {
        wait_for("a request at the upstream", || self.seen().last().cloned())
    }
}

fn connected(
    mut stream: TcpStream,
    connection: usize,
    serve: &dyn Fn(&mut Exchange<'_>) -> Then,
    seen: &Mutex<Vec<Seen>>,
) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(head) = Head::read(&mut reader) {
        let place = {
            let mut seen = seen.lock().unwrap();
            seen.push(Seen { head: head.clone(), body: Vec::new(), connection });
            seen.len() - 1
        };
        let mut exchange = Exchange { head, reader: &mut reader, stream: &mut stream, seen, place, has_body: false };
        match serve(&mut exchange) {
            Then::Keep => {}
            Then::Close => return,
            Then::Reset => {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                return;
            }
        }
    }
}
