//! A gRPC service whose requests are charged while they come in, and have a time to come in.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use cascadia_core::limits;
use cascadia_node::telemetry::TraceContext;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::error::GenerateError;
use crate::reading::{BODY_WITHIN, Reading};
use crate::router::Router;

/// The charge of a gRPC request's message, in the request's extensions: whoever handles it keeps it as long as the message.
#[derive(Clone, Debug)]
pub struct Received(Arc<Mutex<Reading>>);

/// A gRPC service whose requests are charged while they come in, and have a time to come in. For services whose requests
/// are one message.
#[derive(Clone, Debug)]
pub struct Metered<S> {
    inner: S,
    router: Arc<Router>,
}

impl<S> Metered<S> {
    /// Charges what comes to a service of this router.
    pub fn new(inner: S, router: Arc<Router>) -> Self {
        Self { inner, router }
    }
}

impl<S: NamedService> NamedService for Metered<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Metered<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let received = Received(Arc::new(Mutex::new(self.router.admission.bodies.begin())));
        parts.extensions.insert(received.clone());
        let due = Box::pin(tokio::time::sleep(BODY_WITHIN));
        let message = Message { body, received, router: self.router.clone(), began: Instant::now(), due };
        self.inner.call(http::Request::from_parts(parts, Body::new(message)))
    }
}

/// A request's message while it comes in.
struct Message {
    body: Body,
    received: Received,
    router: Arc<Router>,
    began: Instant,
    due: Pin<Box<Sleep>>,
}

impl Message {
    fn received(&self, bytes: usize) -> Result<(), GenerateError> {
        let mut reading = self.received.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reading.bytes() + bytes > MESSAGE_BYTES {
            let bytes = reading.bytes() + bytes;
            return Err(GenerateError::TooLong { field: "the request", bytes, limit: MESSAGE_BYTES });
        }
        reading.add(bytes, self.router.config.now().reading_memory.bytes())
    }
}

/// A message of the greatest size, and the five bytes in front of it.
const MESSAGE_BYTES: usize = limits::REQUEST_BYTES + 5;

impl http_body::Body for Message {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.due.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(self.refused(GenerateError::Slow(BODY_WITHIN)))));
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match self.received(bytes) {
            Ok(()) => Poll::Ready(Some(Ok(frame))),
            Err(error) => Poll::Ready(Some(Err(self.refused(error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Message {
    fn refused(&self, error: GenerateError) -> Status {
        self.router.refused("", "", &TraceContext::default(), self.began, &error);
        error.into()
    }
}
