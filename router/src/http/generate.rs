//! From a request that means something to its response, over the very path that gRPC clients take.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::response::{IntoResponse, Response};
use cascadia_node::telemetry::TraceContext;
use futures::stream::{SelectAll, select_all};
use futures::{StreamExt, future};
use tokio::time::Instant;
use tonic::Status;

use crate::client::ClientStream;
use crate::generate::{Arrival, Opened};
use crate::http::answer::Answer;
use crate::http::asked::CompletionRequest;
use crate::http::error::ApiError;
use crate::http::shapes::{Collected, ResponseWriter};
use crate::http::state::AppState;
use crate::http::stream;
use crate::reading::Reading;

/// A stream's status waits so long for its sessions to begin; behind it errors are frames.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);

/// Who asks, beside what is asked.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The label of the request.
    pub request_id: String,
    /// Whose sessions these are.
    pub tenant: String,
    /// The client's trace.
    pub trace: TraceContext,
}

/// Answers a request whose body was charged so. Dropping the future, or the response, ends the sessions.
///
/// # Errors
/// Why there is no answer.
pub async fn answer(
    front: &AppState,
    asked: CompletionRequest,
    received: Reading,
    caller: &Caller,
) -> Result<Response, ApiError> {
    let endpoint = asked.endpoint;
    open(front, asked, received, caller).await.map_err(|error| error.told_at(endpoint))
}

async fn open(
    front: &AppState,
    asked: CompletionRequest,
    received: Reading,
    caller: &Caller,
) -> Result<Response, ApiError> {
    let (router, is_served) = (&front.router, |served: &[String]| asked.is_served(served));
    let arrival = Arrival {
        asked: &asked.model,
        tenant: &caller.tenant,
        timeout_ms: asked.timeout_ms,
        bytes: asked.bytes(),
        trace: &caller.trace,
    };
    let arrived = router.arrive(arrival, received, is_served).await?;
    let asked = asked.resolve(&router.served())?;
    let opened = router.open(asked.request(&caller.request_id, &caller.tenant), arrived, &caller.trace)?;
    let answer = Answer::new(opened.iter().map(|opened| opened.session), arrived);
    let first = answer.choices.first().map(|choice| choice.session.to_string()).unwrap_or_default();
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let streams: Vec<ClientStream> = opened.into_iter().map(|Opened { stream, .. }| stream).collect();
    let streaming = asked.stream;
    let writer = ResponseWriter::new(asked, &first, created);
    if streaming { begin(writer, answer, streams).await } else { collect(writer, answer, streams).await }
}

async fn begin(writer: ResponseWriter, answer: Answer, mut streams: Vec<ClientStream>) -> Result<Response, ApiError> {
    let begun = future::try_join_all(streams.iter_mut().map(ClientStream::begin));
    // Whoever waits longer for a place hears that it waits.
    if let Ok(begun) = tokio::time::timeout(BEGIN_WITHIN, begun).await {
        begun?;
    }
    Ok(stream::response(writer, answer, tagged(streams).boxed()))
}

async fn collect(
    mut writer: ResponseWriter,
    mut answer: Answer,
    streams: Vec<ClientStream>,
) -> Result<Response, ApiError> {
    let mut collected = vec![Collected::default(); streams.len()];
    let mut events = tagged(streams);
    while let Some((index, response)) = events.next().await {
        if let Some(event) = response?.event
            && let Some(choice) = collected.get_mut(index)
        {
            choice.add(answer.take(index, event, Instant::now()));
        }
    }
    if !answer.is_whole() {
        return Err(Status::internal("the answer ended before it was whole").into());
    }
    Ok(Json(writer.whole(&answer, collected)).into_response())
}

/// All sessions' events, each with the choice it belongs to.
fn tagged(
    streams: Vec<ClientStream>,
) -> SelectAll<impl futures::Stream<Item = (usize, <ClientStream as futures::Stream>::Item)> + Send> {
    select_all(streams.into_iter().enumerate().map(|(index, stream)| stream.map(move |response| (index, response))))
}
