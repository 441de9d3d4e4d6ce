//! The bytes of a connection of HTTP/2, cut anywhere: what is told of its frames, next to hyper.

use std::cell::Cell;
use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use dpa_sidecar::accept::frames::Frames;
use dpa_sidecar::accept::frames::PREFACE;
use http::Request;
use http::Response;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::rt::Read;
use hyper::rt::ReadBufCursor;
use hyper::rt::Write;
use hyper::server::conn::http2;
use hyper::service::service_fn;

/// What a caller sends, in pieces of this size, seen by [`Frames`] before hyper sees it. It takes every answer.
struct Caller<'d> {
    rest: &'d [u8],
    piece: usize,
    frames: Rc<RefCell<Seen>>,
}

/// What [`Frames`] told of what came.
#[derive(Default)]
struct Seen {
    frames: Frames,
    spare: u32,
    /// Heads that hid their scheme.
    hidden: u32,
}

impl Seen {
    fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.spare += self.frames.read(&mut bytes);
            self.hidden += u32::from(self.frames.hides_scheme());
        }
    }
}

impl Read for Caller<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let (piece, rest) = self.rest.split_at(self.rest.len().min(self.piece).min(buf.remaining()));
        buf.put_slice(piece);
        self.rest = rest;
        self.frames.borrow_mut().read(piece);
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

/// Nobody answers.
#[derive(Clone)]
struct Nobody;

impl<F> Executor<F> for Nobody {
    fn execute(&self, _: F) {}
}

/// All that is told.
fn told(seen: &Seen) -> impl PartialEq + std::fmt::Debug {
    let Seen { frames, spare, hidden } = seen;
    (*spare, *hidden, frames.is_wrong(), frames.due(), frames.whole(), frames.content(), frames.opened())
}

/// How it is cut makes no difference; hyper finds no request where no stream was told of, and none with another scheme
/// than those of HTTP while all were told to have one.
pub(crate) fn run(data: &[u8]) {
    let Some((piece, data)) = data.split_first() else { return };
    // The last bit: whether the preface is to be made up too.
    let data = if piece & 1 == 0 { [PREFACE.as_slice(), data].concat() } else { data.to_vec() };
    let piece = usize::from(*piece) / 2 + 1;

    let (mut by_piece, mut at_once) = (Seen::default(), Seen::default());
    data.chunks(piece).for_each(|piece| by_piece.read(piece));
    at_once.read(&data);
    assert_eq!(told(&by_piece), told(&at_once), "how it was cut makes a difference");

    let frames = Rc::<RefCell<Seen>>::default();
    let served = Cell::new(0);
    let service = service_fn(|request: Request<Incoming>| {
        served.set(served.get() + 1);
        let seen = frames.borrow();
        assert!(served.get() <= seen.frames.opened(), "hyper reads a request where no stream was told of");
        let is_http = request.uri().scheme_str().is_none_or(|scheme| matches!(scheme, "http" | "https"));
        assert!(is_http || seen.hidden > 0, "another scheme passes for one of HTTP");
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let caller = Caller { rest: &data, piece, frames: Rc::clone(&frames) };
    let mut connection = Box::pin(http2::Builder::new(Nobody).serve_connection(caller, service));
    let mut context = Context::from_waker(Waker::noop());
    // It yields now and then.
    for _ in 0..16 + data.len() {
        if connection.as_mut().poll(&mut context).is_ready() {
            break;
        }
    }
}
