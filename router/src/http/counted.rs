//! Counts every answer when its last byte has gone, or its client has.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

use crate::http::activity::UntilSent;
use crate::http::state::AppState;

/// The status of an answer that its client did not wait for, as nginx has it.
const CLIENT_CLOSED: u16 = 499;

/// Counts the answer to a request.
pub async fn count(State(front): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut answer = Answer { front, path, status: CLIENT_CLOSED, began: Instant::now() };
    let mut response = next.run(request).await;
    answer.status = response.status().as_u16();
    response.extensions_mut().insert(UntilSent::new(answer));
    response
}

/// An answer that is counted when it is dropped.
struct Answer {
    front: Arc<AppState>,
    path: String,
    status: u16,
    began: Instant,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.front.router.metrics.http_answered(&self.path, self.status, self.began.elapsed());
    }
}
