//! Who is waited for on a stream of HTTP/2, and how much moved.
//!
//! Nothing here reads a clock or sets a timer: bodies count as they go by, and the connection looks at the counts now
//! and then. On HTTP/1.1, where a connection has one stream, `accept` sees it below.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;

/// One direction of a stream. In atomics, since bodies have to be ready for other threads; one worker alone uses them.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes that moved since somebody last was satisfied with it.
    moved: AtomicUsize,
    /// What the caller owes: bytes that it has not taken, or the next piece that it has not sent. None: 0.
    owed: AtomicUsize,
}

impl Pace {
    fn owes(&self, bytes: usize) {
        self.owed.store(self.owed.load(Relaxed).saturating_add(bytes), Relaxed);
    }

    fn is_let_off(&self, bytes: usize) {
        self.owed.store(self.owed.load(Relaxed).saturating_sub(bytes), Relaxed);
    }

    fn moves(&self, bytes: usize) {
        self.moved.store(self.moved.load(Relaxed).saturating_add(bytes), Relaxed);
    }
}

/// Both directions of a stream.
#[derive(Debug, Default)]
pub struct Paces {
    /// Of the request's body.
    pub body: Pace,
    /// Of the answer.
    pub answer: Pace,
}

/// How long a caller has kept a direction waiting, as the looks at it tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waited {
    so_far: Duration,
    was_owed: bool,
}

impl Waited {
    /// Looks again, so long after the last time. Whether the caller is late: in `patience` it moved less than `enough`
    /// bytes. Only the time between two looks counts that both found it waited for.
    pub fn is_late(&mut self, pace: &Pace, since_last: Duration, enough: usize, patience: Duration) -> bool {
        let is_owed = pace.owed.load(Relaxed) > 0;
        if pace.moved.load(Relaxed) >= enough {
            pace.moved.store(0, Relaxed);
            self.so_far = Duration::ZERO;
        } else if is_owed && self.was_owed {
            self.so_far = self.so_far.saturating_add(since_last);
        }
        self.was_owed = is_owed;
        is_owed && self.so_far >= patience
    }
}

/// The body of a request as its caller sends it.
#[derive(Debug)]
pub struct Upload {
    body: Incoming,
    paces: Option<Arc<Paces>>,
}

impl Upload {
    /// Of HTTP/1.1: nothing is counted here.
    #[must_use]
    pub fn of(body: Incoming) -> Self {
        Self { body, paces: None }
    }

    /// Of HTTP/2: counted here.
    #[must_use]
    pub fn counted(body: Incoming, paces: Arc<Paces>) -> Self {
        Self { body, paces: Some(paces) }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(Paces { body: pace, answer: _ }) = self.paces.as_deref() {
            pace.owed.store(usize::from(frame.is_pending()), Relaxed);
            if let Poll::Ready(Some(Ok(frame))) = &frame {
                pace.moves(frame.data_ref().map_or(0, Bytes::len));
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Nobody waits for the rest.
        if let Some(Paces { body: pace, answer: _ }) = self.paces.as_deref() {
            pace.owed.store(0, Relaxed);
        }
    }
}

/// Bytes of an answer that the caller owes to take, until they are written.
#[derive(Debug)]
pub struct Owed {
    bytes: Bytes,
    paces: Arc<Paces>,
}

impl Owed {
    /// These bytes, from now on.
    #[must_use]
    pub fn new(bytes: Bytes, paces: Arc<Paces>) -> Self {
        paces.answer.owes(bytes.len());
        Self { bytes, paces }
    }
}

impl Buf for Owed {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.paces.answer.is_let_off(count);
        self.paces.answer.moves(count);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.paces.answer.is_let_off(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_late_only_where_it_was_waited_for_all_the_time() {
        let second = Duration::from_secs(1);
        let look = |waited: &mut Waited, pace: &Pace| waited.is_late(pace, second, 10, 2 * second);
        let paces = Arc::new(Paces::default());
        let pace = &paces.answer;
        let mut waited = Waited::default();
        assert!(!(0..9).any(|_| look(&mut waited, pace)), "nobody waits for it");

        let mut owed = Owed::new(Bytes::from_static(&[0; 100]), Arc::clone(&paces));
        let late = [(); 3].map(|()| look(&mut waited, pace));
        assert_eq!(late, [false, false, true], "the first look only begins to wait");

        owed.advance(10);
        assert!(!look(&mut waited, pace), "it took enough");
        let late = [(); 3].map(|()| {
            owed.advance(1);
            look(&mut waited, pace)
        });
        assert_eq!(late, [false, true, true], "a trickle is no progress");
        drop(owed);
        assert!(!look(&mut waited, pace), "what nobody sends any more is owed by nobody");
    }
}
