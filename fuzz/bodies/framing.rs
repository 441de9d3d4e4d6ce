//! The bytes of a connection, cut anywhere: how they are told apart, next to hyper.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use dpa_sidecar::accept::framing::Framing;
use dpa_sidecar::accept::framing::Part;
use http::Request;
use http::Response;
use http::Version;
use http::header::CONNECTION;
use http_body_util::BodyExt as _;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::body::Incoming;
use hyper::rt::Read;
use hyper::rt::ReadBufCursor;
use hyper::rt::Write;
use hyper::server::conn::http1;
use hyper::service::service_fn;

/// What a caller sends, in pieces of this size, seen by [`Framing`] before hyper sees it. It takes every answer.
struct Caller<'d> {
    rest: &'d [u8],
    piece: usize,
    seen: Rc<Seen>,
    framing: Framing,
}

/// Messages as [`Framing`] tells them apart, and as hyper does.
#[derive(Default)]
struct Seen {
    begun: Cell<u64>,
    last: Cell<Option<u64>>,
    is_whole: Cell<bool>,
    ends_here: Cell<bool>,
    served: Cell<u64>,
    ended: Cell<u64>,
}

impl Read for Caller<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let (piece, rest) = self.rest.split_at(self.rest.len().min(self.piece).min(buf.remaining()));
        buf.put_slice(piece);
        self.rest = rest;
        let is_answered = self.seen.ended.get() >= self.framing.begun();
        self.framing.read(piece, is_answered);
        self.seen.begun.set(self.framing.begun());
        self.seen.last.set(self.framing.closes_after());
        self.seen.is_whole.set(self.framing.due() == Part::None);
        Poll::Ready(Ok(()))
    }
}

impl Write for Caller<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// hyper never reads a request that was not told apart before it, unless the connection was to be closed by then; and
/// where all is plain both find the same messages, however they are cut.
pub(crate) fn run(data: &[u8]) {
    let Some((piece, data)) = data.split_first() else { return };
    let seen = Rc::new(Seen::default());
    let caller =
        Caller { rest: data, piece: usize::from(*piece) + 1, seen: Rc::clone(&seen), framing: Framing::default() };
    let requests = Rc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = Rc::clone(&requests);
        async move {
            let number = seen.served.get() + 1;
            seen.served.set(number);
            let counts = seen.last.get().is_none_or(|last| number <= last);
            assert!(!counts || number <= seen.begun.get(), "hyper reads a request where none was told apart");
            if request.version() < Version::HTTP_11 || request.headers().contains_key(CONNECTION) {
                seen.ends_here.set(true);
            }
            if request.into_body().collect().await.is_ok() {
                seen.ended.set(number);
            } else {
                seen.ends_here.set(true);
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let mut connection = Box::pin(http1::Builder::new().serve_connection(caller, service));
    let mut context = Context::from_waker(Waker::noop());
    // hyper yields now and then.
    let turns = 16 + data.len();
    let ended = (0..turns).find_map(|_| match connection.as_mut().poll(&mut context) {
        Poll::Ready(result) => Some(result.is_ok()),
        Poll::Pending => None,
    });
    let is_plain = seen.last.get().is_none() && seen.is_whole.get() && !seen.ends_here.get();
    if ended == Some(true) && is_plain {
        let messages = (seen.served.get(), seen.ended.get());
        assert_eq!(messages, (seen.begun.get(), seen.begun.get()), "hyper reads other messages");
    }

    let mut by_piece = Framing::default();
    data.chunks(usize::from(*piece) + 1).for_each(|piece| by_piece.read(piece, false));
    let mut at_once = Framing::default();
    at_once.read(data, false);
    assert_eq!(
        (by_piece.begun(), by_piece.closes_after(), by_piece.due()),
        (at_once.begun(), at_once.closes_after(), at_once.due()),
        "how it was cut makes a difference"
    );
}
