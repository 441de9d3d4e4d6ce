//! What stands before the door on each connection: a place for each request under way, and load shedding. No rule.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Request;
use http::Response;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::Either;
use hyper::service::Service as _;
use hyper::service::service_fn;
use hyper_util::service::TowerToHyperService;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio_util::sync::PollSemaphore;
use tower::BoxError;
use tower::Service;
use tower::ServiceBuilder;

use super::proxy::Proxy;
use crate::gate::OutcomeGuard;
use crate::observed::Peer;
use crate::pace::Upload;
use crate::record::entry::Ending;
use crate::respond;
use crate::respond::AnswerBody;
use crate::respond::Form;

/// The way into a door on one connection. A request for which there is no place is answered at once, before
/// anything of it is looked at; `turned_away` is told.
pub fn entrance(
    door: Rc<Proxy>,
    peer: Rc<Peer>,
    turned_away: impl Fn() + Clone,
) -> impl hyper::service::Service<Request<Upload>, Response = Response<Answer>, Error = BoxError> {
    let places = Arc::clone(&door.places);
    let closed = Rc::clone(&door);
    let serve = move |request, place| {
        let (door, peer) = (Rc::clone(&door), Rc::clone(&peer));
        async move { Ok::<_, Infallible>(door.handle(&peer, request).await.map(|body| Answer::placed(body, place))) }
    };
    let shedding = TowerToHyperService::new(ServiceBuilder::new().load_shed().service(Placed::new(places, serve)));
    service_fn(move |request: Request<Upload>| {
        let form = Form::of(request.headers());
        let (turned_away, closed) = (turned_away.clone(), Rc::clone(&closed));
        // Not awaited in a block of its own, which would have room for it twice.
        shedding.call(request).map(move |answered| {
            // The door itself never fails, so an error says that it was not asked.
            Ok(answered.unwrap_or_else(|_overloaded| {
                turned_away();
                let response = respond::overloaded(form);
                closed.tally.answered(response.status());
                response.map(Answer::bare)
            }))
        })
    })
}

/// The body of an answer. Until one of the upstream has ended, or is dropped, its request counts as under way.
#[derive(Debug)]
pub struct Answer {
    body: AnswerBody,
    place: Option<OwnedSemaphorePermit>,
}

/// An answer that was handed over to its end. Until its caller has taken it, it has its place and no outcome.
#[derive(Debug)]
pub struct Leaving {
    outcome: Option<OutcomeGuard>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Leaving {
    /// Its caller does not get so many bytes of it.
    pub fn falls_short(mut self, bytes: u64) {
        if let Some(outcome) = &mut self.outcome {
            outcome.not_taken(bytes);
            outcome.ends(Ending::Aborted);
        }
    }
}

impl Answer {
    /// The body of an answer to a request with a place. One of the sidecar's own lets go of it: it holds no service, and
    /// who does not take its few bytes would keep others out, whoever he is.
    fn placed(body: AnswerBody, place: Option<OwnedSemaphorePermit>) -> Self {
        let place = place.filter(|_| matches!(body, Either::Right(_)));
        Self { body, place }
    }

    /// The body of an answer to a request that has no place.
    #[must_use]
    pub fn bare(body: AnswerBody) -> Self {
        Self { body, place: None }
    }

    /// What is left of one that was handed over to its end.
    pub fn leave(&mut self) -> Leaving {
        let outcome = match &mut self.body {
            Either::Left(_ours) => None,
            Either::Right(relay) => relay.leave(),
        };
        Leaving { outcome, _place: self.place.take() }
    }

    /// Its caller does not get so many bytes of what was handed over.
    pub fn falls_short(&mut self, bytes: u64) {
        if let Either::Right(relay) = &mut self.body {
            relay.falls_short(bytes);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A service that is ready when there is a place, and gives it to the request. The limit of tower itself would take
/// the place back with the head of the answer.
struct Placed<F> {
    places: PollSemaphore,
    place: Option<OwnedSemaphorePermit>,
    serve: F,
}

impl<F> Placed<F> {
    fn new(places: Arc<Semaphore>, serve: F) -> Self {
        Self { places: PollSemaphore::new(places), place: None, serve }
    }
}

impl<F: Clone> Clone for Placed<F> {
    fn clone(&self) -> Self {
        Self { places: self.places.clone(), place: None, serve: self.serve.clone() }
    }
}

impl<F, A> Service<Request<Upload>> for Placed<F>
where
    F: Fn(Request<Upload>, Option<OwnedSemaphorePermit>) -> A,
    A: Future<Output = Result<Response<Answer>, Infallible>>,
{
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = A;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // `None` would mean that nobody limits any more.
        self.place = ready!(self.places.poll_acquire(cx));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Upload>) -> A {
        (self.serve)(request, self.place.take())
    }
}
