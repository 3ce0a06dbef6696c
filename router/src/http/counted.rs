//! Counts every answer when its last byte has gone, or its client has.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::http::routes::Front;

/// The status of an answer that its client did not wait for, as nginx has it.
const CLIENT_CLOSED: u16 = 499;

/// Counts the answer to a request.
pub async fn count(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut answer = Answer { front, path, status: CLIENT_CLOSED, began: Instant::now() };
    let response = next.run(request).await;
    answer.status = response.status().as_u16();
    response.map(|body| Body::new(Counted { body, _answer: answer }))
}

/// An answer that is counted when it is dropped.
struct Answer {
    front: Arc<Front>,
    path: String,
    status: u16,
    began: Instant,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.front.router.metrics.http_answered(&self.path, self.status, self.began.elapsed());
    }
}

/// A body that takes its answer with it.
struct Counted {
    body: Body,
    _answer: Answer,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
