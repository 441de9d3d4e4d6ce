//! What callers of HTTP/2 owe to take of their answers.
//!
//! The library takes a piece as soon as there is room for a part of it, the last piece with the end of the answer. So it
//! may have an answer whole of which the caller has next to nothing. Bytes are owed until they are written, and until
//! then the answer has no outcome.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::task::ready;

use bytes::Buf;
use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use tower::BoxError;

use super::http2::Line;
use crate::doors::entrance::Answer;
use crate::doors::entrance::Leaving;
use crate::pace::Pace;

/// Bytes for which a stream has room from its beginning, unless its caller says otherwise (RFC 9113 section 6.9.2).
const FIRST_WINDOW: usize = 65_535;

/// What the caller owes to take of one answer.
#[derive(Default)]
pub(super) struct Owing {
    pace: Pace,
    /// Bytes that it will not get any more.
    lost: Cell<usize>,
    /// There once the library has all of the answer.
    leaving: Cell<Option<Leaving>>,
    /// Who waits until nothing is owed.
    waker: Cell<Option<Waker>>,
}

impl Owing {
    /// How the caller takes it.
    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Whether anything is owed.
    pub(super) fn is_owed(&self) -> bool {
        self.pace.owed() > 0
    }

    fn is_taken(&self, bytes: usize) {
        self.pace.is_let_off(bytes);
        self.pace.moves(bytes);
        self.settle();
    }

    fn is_lost(&self, bytes: usize) {
        self.lost.set(self.lost.get().saturating_add(bytes));
        self.pace.is_let_off(bytes);
        self.settle();
    }

    fn settle(&self) {
        if self.is_owed() {
            return;
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        match (self.leaving.take(), self.lost.get()) {
            (None, _) => {}
            (Some(taken), 0) => drop(taken),
            (Some(short), lost) => short.falls_short(count(lost)),
        }
    }
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Bytes of an answer that the caller owes to take.
pub(super) struct Owed {
    bytes: Bytes,
    owing: Rc<Owing>,
}

impl Owed {
    fn new(bytes: Bytes, owing: &Rc<Owing>) -> Self {
        owing.pace.owes(bytes.len());
        Self { bytes, owing: Rc::clone(owing) }
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
        self.owing.is_taken(count);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.owing.is_lost(self.bytes.len());
        }
    }
}

/// The body of an answer on its way to the library.
///
/// Once the library has the end of a stream nobody can reset it. So where the caller may be short of room, the end comes
/// only when all before it is taken. A short answer is not held back for that.
pub(super) struct Counted {
    body: Answer,
    owing: Rc<Owing>,
    line: Rc<Line>,
    /// To HEAD there is a length and no content (RFC 9110 section 9.3.2).
    is_silent: bool,
    /// Bytes that the library got.
    handed: usize,
    /// The end, with the trailers if there are any, until all before it is taken.
    end: Option<Option<Frame<Owed>>>,
}

impl Counted {
    pub(super) fn new(body: Answer, owing: Rc<Owing>, line: Rc<Line>, is_silent: bool) -> Self {
        Self { body, owing, line, is_silent, handed: 0, end: None }
    }

    fn is_short(&self) -> bool {
        self.handed <= FIRST_WINDOW
    }
}

impl Body for Counted {
    type Data = Owed;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Owed>, BoxError>>> {
        loop {
            if self.end.is_some() && self.owing.is_owed() {
                self.owing.waker.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            if let Some(end) = self.end.take() {
                return Poll::Ready(end.map(Ok));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)?) {
                Some(frame) if frame.is_data() && self.is_silent => continue,
                Some(frame) => frame,
                None if self.is_short() => return Poll::Ready(None),
                None => {
                    self.end = Some(None);
                    continue;
                }
            };
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            self.line.answers(bytes);
            let is_end = !frame.is_data();
            let frame = frame.map_data(|bytes| Owed::new(bytes, &self.owing));
            if is_end && !self.is_short() {
                self.end = Some(Some(frame));
                continue;
            }
            self.handed = self.handed.saturating_add(bytes);
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() && self.is_short() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let lost = self.owing.lost.get();
        let has_all = self.end.is_none() && lost == 0 && self.body.is_end_stream();
        match (has_all, self.owing.is_owed()) {
            (true, true) => self.owing.leaving.set(Some(self.body.leave())),
            (true, false) => {}
            (false, _) => self.body.falls_short(count(lost.saturating_add(self.owing.pace.owed()))),
        }
    }
}
