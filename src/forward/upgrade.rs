//! Connections that switch protocols (RFC 9110 section 7.8), such as `WebSocket`: decided once, then bytes both ways.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Response;
use http::Version;
use http::header;
use http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::pool::Connection;
use crate::gate::OutcomeGuard;
use crate::gate::Progress;
use crate::record::entry::Ending;

/// Bytes that are held in each direction of a tunnel.
const BUFFER: usize = 16 * 1024;

/// The protocol that a request asks to switch to, if it is one of these: the first one that the caller names.
///
/// Only a request of HTTP/1.1 without a body can ask, and it has to say so in `Connection` as well. What asks for
/// anything else goes on as an ordinary request.
#[must_use]
pub fn asked(head: &Parts, allowed: &[String]) -> Option<HeaderValue> {
    if allowed.is_empty() || head.version != Version::HTTP_11 {
        return None;
    }
    let headers = &head.headers;
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    let is_meant = names(headers, header::CONNECTION).any(|name| name.eq_ignore_ascii_case(b"upgrade"));
    if has_body || !is_meant {
        return None;
    }
    let same = |name: &[u8]| allowed.iter().find(|allowed| name.eq_ignore_ascii_case(allowed.as_bytes()));
    let protocol = names(headers, header::UPGRADE).find_map(same)?;
    HeaderValue::try_from(protocol).ok()
}

/// Says in a head that the connection is to be switched, or is.
pub fn name(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// The protocol that is offered to the upstream.
pub(super) fn offered(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(header::UPGRADE).cloned()
}

/// Whether the upstream switches to what it was offered, and to that alone.
pub(super) fn is_agreed(offered: Option<&HeaderValue>, headers: &HeaderMap) -> bool {
    let mut protocols = names(headers, header::UPGRADE);
    let protocol = protocols.next();
    let same = |(offered, protocol): (&HeaderValue, &[u8])| protocol.eq_ignore_ascii_case(offered.as_bytes());
    protocols.next().is_none() && offered.zip(protocol).is_some_and(same)
}

/// What stands in a list of names, over all lines of the header.
fn names(headers: &HeaderMap, header: header::HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(header).into_iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// An exchange whose upstream has switched protocols, from the 101 on. It owes the outcome.
#[derive(Debug)]
pub struct Tunnel {
    outcome: Option<OutcomeGuard>,
    progress: Arc<Progress>,
    upstream: OnUpgrade,
    /// Bytes that were passed on to the caller.
    passed: AtomicU64,
    is_open: bool,
    /// Until it has given its stream away it must not be closed; its place is taken until the end.
    _connection: Connection,
}

/// On its way from the door to the caller's connection, as an extension of the answer.
#[derive(Clone)]
struct HandOver(Arc<Mutex<Option<Tunnel>>>);

impl Tunnel {
    pub(super) fn open<B>(response: &mut Response<B>, connection: Connection, outcome: OutcomeGuard) {
        let tunnel = Self {
            progress: outcome.progress(),
            outcome: Some(outcome),
            upstream: hyper::upgrade::on(&mut *response),
            passed: AtomicU64::new(0),
            is_open: false,
            _connection: connection,
        };
        response.extensions_mut().insert(HandOver(Arc::new(Mutex::new(Some(tunnel)))));
    }

    /// The tunnel that this answer opens, if it does.
    pub fn behind<B>(response: &mut Response<B>) -> Option<Self> {
        let HandOver(tunnel) = response.extensions_mut().remove()?;
        tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Relays both directions until both have ended, one breaks off, or nothing moves for so long. `behind` is what the
    /// caller has sent behind its request. Dropped, it is cut.
    pub async fn relay<S: AsyncRead + AsyncWrite>(mut self, caller: S, behind: Bytes, idle_timeout: Duration) {
        self.is_open = true;
        let moved = Cell::new(Instant::now());
        let idle = async {
            while moved.get().elapsed() < idle_timeout {
                tokio::time::sleep_until(moved.get() + idle_timeout).await;
            }
        };
        let ending = tokio::select! {
            relayed = self.both_ways(caller, behind, &moved) => match relayed {
                Ok(()) => Ending::Completed,
                Err(_) => Ending::Aborted,
            },
            () = idle => Ending::Cut,
        };
        self.end(ending);
    }

    async fn both_ways<S: AsyncRead + AsyncWrite>(
        &self,
        caller: S,
        behind: Bytes,
        moved: &Cell<Instant>,
    ) -> io::Result<()> {
        let upstream = self.upstream.clone().await.map_err(io::Error::other)?;
        let (read, write) = tokio::io::split(caller);
        let caller = tokio::io::join(io::Cursor::new(behind).chain(read), write);
        let mut caller = Counted {
            stream: caller,
            count: |bytes| {
                self.passed.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
                moved.set(Instant::now());
            },
        };
        let mut upstream = Counted {
            stream: TokioIo::new(upstream),
            count: |bytes| {
                self.progress.moved(bytes);
                moved.set(Instant::now());
            },
        };
        tokio::io::copy_bidirectional_with_sizes(&mut caller, &mut upstream, BUFFER, BUFFER).await?;
        Ok(())
    }

    fn end(&mut self, ending: Ending) {
        let Some(mut outcome) = self.outcome.take() else { return };
        outcome.passed(self.passed.load(Ordering::Relaxed));
        outcome.end(ending);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.end(if self.is_open { Ending::Cut } else { Ending::Aborted });
    }
}

/// A stream that counts what was written to it.
struct Counted<S, F> {
    stream: S,
    count: F,
}

impl<S: AsyncRead + Unpin, F: Unpin> AsyncRead for Counted<S, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin, F: Fn(usize) + Unpin> AsyncWrite for Counted<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        (self.count)(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
