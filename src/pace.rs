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

use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;

/// One direction of a stream, or of a connection. In atomics, since bodies have to be ready for other threads; one worker
/// alone uses them.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes that moved since somebody last was satisfied with it.
    moved: AtomicUsize,
    /// What the caller owes: bytes that it has not taken, or the next piece. None: 0.
    owed: AtomicUsize,
}

impl Pace {
    /// The caller owes so many bytes more.
    pub fn owes(&self, bytes: usize) {
        self.owed.store(self.owed().saturating_add(bytes), Relaxed);
    }

    /// The caller owes so many bytes less.
    pub fn is_let_off(&self, bytes: usize) {
        self.owed.store(self.owed().saturating_sub(bytes), Relaxed);
    }

    /// The caller owes the next piece, or nothing.
    pub fn waits(&self, is_waiting: bool) {
        self.owed.store(usize::from(is_waiting), Relaxed);
    }

    /// Bytes moved.
    pub fn moves(&self, bytes: usize) {
        self.moved.store(self.moved.load(Relaxed).saturating_add(bytes), Relaxed);
    }

    /// What the caller owes.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.load(Relaxed)
    }
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
        let is_owed = pace.owed() > 0;
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
    pace: Option<Arc<Pace>>,
}

impl Upload {
    /// Of HTTP/1.1: nothing is counted here.
    #[must_use]
    pub fn of(body: Incoming) -> Self {
        Self { body, pace: None }
    }

    /// Of HTTP/2: counted here, if there is one.
    #[must_use]
    pub fn counted(body: Incoming, pace: Option<Arc<Pace>>) -> Self {
        Self { body, pace }
    }

    /// Whether its caller took it back with NO_ERROR, which the library has for an end like any other. To be asked once it
    /// has given its last piece.
    #[must_use]
    pub fn was_taken_back(&self) -> bool {
        self.pace.is_some() && !self.body.is_end_stream()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(pace) = self.pace.as_deref() {
            pace.waits(frame.is_pending());
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
        if let Some(pace) = self.pace.as_deref() {
            pace.waits(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_late_only_where_it_was_waited_for_all_the_time() {
        let second = Duration::from_secs(1);
        let look = |waited: &mut Waited, pace: &Pace| waited.is_late(pace, second, 10, 2 * second);
        let (pace, mut waited) = (Pace::default(), Waited::default());
        assert!(!(0..9).any(|_| look(&mut waited, &pace)), "nobody waits for it");

        pace.owes(100);
        let late = [(); 3].map(|()| look(&mut waited, &pace));
        assert_eq!(late, [false, false, true], "the first look only begins to wait");

        let takes = |bytes| {
            pace.is_let_off(bytes);
            pace.moves(bytes);
        };
        takes(10);
        assert!(!look(&mut waited, &pace), "it took enough");
        let late = [(); 3].map(|()| {
            takes(1);
            look(&mut waited, &pace)
        });
        assert_eq!(late, [false, true, true], "a trickle is no progress");
        pace.is_let_off(pace.owed());
        assert!(!look(&mut waited, &pace), "what nobody sends any more is owed by nobody");
    }
}
