//! The first message of a `Session/Run`, in pieces that are shared: a request for 128 answers sends one prompt 128 times,
//! and holds it once.
//!
//! A gRPC library encodes each message into memory of its own, which stays until the other end has taken it. So this
//! message is put in front of the stream that the library writes, piece by piece.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use cascadia_proto::prompt::EncodedPrompt;
use cascadia_proto::relay;
use cascadia_proto::v1::RunOpen;
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

/// The bytes of a message on the wire.
#[derive(Clone, Debug, Default)]
pub struct FirstMessage(VecDeque<Bytes>);

impl FirstMessage {
    /// Opens a session with a prompt.
    #[must_use]
    pub fn open(open: RunOpen, prompt: &EncodedPrompt) -> Self {
        let [around, prompt] = relay::opening(open, prompt);
        // Not compressed, and so many bytes.
        let length = u32::try_from(around.len() + prompt.len()).unwrap_or(u32::MAX);
        let head = [&[0][..], &length.to_be_bytes(), &around].concat();
        Self([head.into(), prompt].into())
    }
}

/// A channel whose first request begins with this message.
#[derive(Clone, Debug)]
pub struct Begun<S> {
    channel: S,
    first: FirstMessage,
}

impl<S> Begun<S> {
    /// Puts the message in front of the next request's own.
    pub fn new(channel: S, first: FirstMessage) -> Self {
        Self { channel, first }
    }
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Begun<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let first = std::mem::take(&mut self.first).0;
        self.channel.call(request.map(|rest| Body::new(Stream { first, rest })))
    }
}

/// What a request says: the first message, then the others.
struct Stream {
    first: VecDeque<Bytes>,
    rest: Body,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.first.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.is_end_stream()
    }
}
