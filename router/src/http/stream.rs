//! Server-sent events: unnamed data frames, comments while nothing happens, and `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cascadia_proto::v1::GenerateResponse;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Serialize;
use tokio::time::Instant;
use tonic::Status;

use crate::http::answer::Answer;
use crate::http::error::ApiError;
use crate::http::shapes::ResponseWriter;

/// A stream that is silent for so long says that it lives: proxies close what is silent for a minute.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What all sessions of a request say, with the choice they say it of.
pub type Events = BoxStream<'static, (usize, Result<GenerateResponse, Status>)>;

/// A stream that is being written. Dropping it ends its sessions.
struct Frames {
    writer: ResponseWriter,
    answer: Answer,
    events: Events,
    ready: VecDeque<Bytes>,
    over: bool,
}

/// The response that streams an answer.
#[must_use]
pub fn response(writer: ResponseWriter, answer: Answer, events: Events) -> Response {
    let frames = Frames { writer, answer, events, ready: VecDeque::new(), over: false };
    let body = futures::stream::unfold(frames, |mut frames| async move {
        let frame = frames.next().await?;
        Some((Ok::<_, Infallible>(frame), frames))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Or nginx collects the answer before it passes it on.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (StatusCode::OK, headers, Body::from_stream(body)).into_response()
}

impl Frames {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            if self.over {
                return None;
            }
            match tokio::time::timeout(KEEP_ALIVE, self.events.next()).await {
                Err(_) => return Some(Bytes::from_static(b": waiting\n\n")),
                Ok(Some((index, Ok(response)))) => self.take(index, response),
                Ok(Some((_, Err(status)))) => self.fail(status),
                Ok(None) if self.answer.is_whole() => {
                    let usage = self.writer.usage_chunk(&self.answer);
                    self.ready.extend(usage.as_ref().map(frame));
                    self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                    self.over = true;
                }
                Ok(None) => self.fail(Status::internal("the answer ended before it was whole")),
            }
        }
    }

    fn take(&mut self, index: usize, response: GenerateResponse) {
        let Some(event) = response.event else { return };
        let delta = self.answer.take(index, event, Instant::now());
        self.ready.extend(self.writer.chunk(&self.answer, &delta).as_ref().map(frame));
    }

    /// One frame, and nothing behind it: `[DONE]` would say that the text is whole.
    fn fail(&mut self, status: Status) {
        self.ready.push_back(frame(&ApiError::from(status).told_at(self.writer.endpoint()).envelope()));
        self.events = futures::stream::empty().boxed();
        self.over = true;
    }
}

fn frame(object: &impl Serialize) -> Bytes {
    let object = serde_json::to_string(object).expect("names are strings, and there is memory");
    Bytes::from(format!("data: {object}\n\n"))
}

#[cfg(test)]
mod tests {
    use cascadia_core::ids::SessionId;

    use super::*;
    use crate::http::chat;

    fn opened(events: Events) -> Body {
        let body = br#"{"messages": [{"role": "user", "content": "Hi"}], "stream": true}"#;
        let asked = chat::read(body).unwrap();
        let answer = Answer::new([SessionId(1)].into_iter(), Instant::now());
        response(ResponseWriter::new(asked, "1", 0), answer, events).into_body()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_waits_says_that_it_lives() {
        let began = Instant::now();
        let mut frames = opened(futures::stream::pending().boxed()).into_data_stream();
        for silent in 1..=3 {
            assert_eq!(frames.next().await.unwrap().unwrap(), ": waiting\n\n");
            assert!(began.elapsed() >= silent * KEEP_ALIVE);
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_too_early_is_no_whole_text() {
        let mut frames = opened(futures::stream::empty().boxed()).into_data_stream();
        let only = frames.next().await.unwrap().unwrap();
        assert!(only.starts_with(b"data: {\"error\":"), "{only:?}");
        assert!(frames.next().await.is_none());
    }
}
