//! What is served where, and what every response has: a request id, and OpenAI's envelope where it is no success.

use std::sync::Arc;

use axum::body::BodyDataStream;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router as Routes};
use cascadia_core::limits;
use cascadia_node::telemetry::TraceContext;
use futures::StreamExt;
use tokio::time::Instant;
use tonic::Status;

use crate::admission::is_among;
use crate::error::GenerateError;
use crate::http::asked::CompletionRequest;
use crate::http::connection::{HEADER_BYTES, MOST_HEADERS};
use crate::http::counted::count;
use crate::http::error::ApiError;
use crate::http::generate::{Caller, answer};
use crate::http::state::AppState;
use crate::http::{chat, completions, models};
use crate::reading::{BODY_WITHIN, Reading};

/// A body that is refused is read on for so much.
const OVERFLOW: usize = 16 * limits::REQUEST_BYTES;

/// What a gRPC client hears that took the wrong port.
const NOT_GRPC: &str =
    "this port is for OpenAI's HTTP: gRPC is served at the address of --listen (port 50051 by default)";

/// The client's name for its request, and ours where it has none.
const REQUEST_ID: &str = "x-request-id";

/// Whose request it is; set by a gateway.
const TENANT: &str = "x-cascadia-tenant";

/// The whole surface.
pub fn routes(front: Arc<AppState>) -> Routes {
    let api = Routes::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*id}", get(get_model))
        .layer(middleware::from_fn_with_state(front.clone(), authorise));
    Routes::new()
        .route("/health", get(health))
        .route("/version", get(version))
        .merge(api)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(front.clone(), name_request))
        .layer(middleware::from_fn_with_state(front.clone(), count))
        .with_state(front)
}

type Shared = State<Arc<AppState>>;

async fn chat_completions(State(front): Shared, caller: Extension<Caller>, request: Request) -> Response {
    complete(&front, caller.0, request, chat::read).await
}

async fn text_completions(State(front): Shared, caller: Extension<Caller>, request: Request) -> Response {
    complete(&front, caller.0, request, completions::read).await
}

type ReadRequest = fn(&[u8]) -> Result<CompletionRequest, ApiError>;

async fn complete(front: &AppState, mut caller: Caller, request: Request, read: ReadRequest) -> Response {
    let answered = async {
        let (body, received) = body(front, request).await?;
        let (asked, received) = parse(front, body, received, read).await?;
        if let Some(own) = &asked.request_id {
            caller.request_id.clone_from(own);
        }
        answer(front, asked, received, &caller).await
    };
    let mut response = answered.await.unwrap_or_else(IntoResponse::into_response);
    sign(&mut response, &caller.request_id);
    response
}

/// Reads a body where it keeps nobody waiting. It is charged until it is a request.
async fn parse(
    front: &AppState,
    body: Vec<u8>,
    received: Reading,
    read: ReadRequest,
) -> Result<(CompletionRequest, Reading), ApiError> {
    let bodies = &front.router.admission.bodies;
    let parsed = bodies.decode(body.len(), move || read(&body).map(|asked| (asked, received))).await;
    parsed.unwrap_or_else(|error| {
        let message = format!("the body was not read: {error}");
        Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message))
    })
}

/// A JSON body within the limits of size and time, and of what is read at once.
async fn body(front: &AppState, request: Request) -> Result<(Vec<u8>, Reading), ApiError> {
    let (parts, body) = request.into_parts();
    let declared = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let chunks = body.into_data_stream();
    if declared.is_some_and(|bytes: usize| bytes > limits::REQUEST_BYTES) {
        if !parts.headers.contains_key(header::EXPECT) {
            forget(chunks);
        }
        return Err(too_large());
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence != "application/json" && !essence.ends_with("+json") {
        let message = "the body must be JSON and say so: set the header Content-Type: application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    let mut incoming = Incoming { chunks, bytes: Vec::new(), reading: front.router.admission.bodies.begin() };
    let read = tokio::time::timeout(BODY_WITHIN, incoming.read(front, declared)).await;
    match read {
        Ok(Ok(())) => Ok((incoming.bytes, incoming.reading)),
        Ok(Err(error)) => {
            forget(incoming.chunks);
            Err(error)
        }
        Err(_) => {
            let message = format!("the body was not sent within {} s", BODY_WITHIN.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
        }
    }
}

/// A body that comes in.
struct Incoming {
    chunks: BodyDataStream,
    bytes: Vec<u8>,
    reading: Reading,
}

impl Incoming {
    /// Reads it to its end.
    async fn read(&mut self, front: &AppState, declared: Option<usize>) -> Result<(), ApiError> {
        while let Some(chunk) = self.chunks.next().await {
            let chunk = chunk.map_err(|error| {
                let message = format!("the body broke off: {error}");
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", message)
            })?;
            let bytes = self.bytes.len() + chunk.len();
            if bytes > limits::REQUEST_BYTES {
                return Err(too_large());
            }
            self.charge(front, chunk.len())?;
            if bytes > self.bytes.capacity() {
                // Twice as much, and no more than is to come: what was announced and does not come takes no memory.
                let most = declared.unwrap_or(limits::REQUEST_BYTES);
                let capacity = (2 * self.bytes.capacity()).min(most).max(bytes);
                self.bytes.reserve_exact(capacity - self.bytes.len());
            }
            self.bytes.extend_from_slice(&chunk);
        }
        Ok(())
    }

    fn charge(&mut self, front: &AppState, bytes: usize) -> Result<(), GenerateError> {
        let router = &front.router;
        let charged = self.reading.add(bytes, router.config.now().reading_memory.bytes());
        charged.inspect_err(|error| router.refused("", "", &TraceContext::default(), Instant::now(), error))
    }
}

/// Reads on what nobody wants any more, for so much and so long, so that its sender comes to read the answer. Ends with
/// the connection. Nobody waits for it.
fn forget(mut chunks: BodyDataStream) {
    tokio::spawn(tokio::time::timeout(BODY_WITHIN, async move {
        let mut seen = 0;
        while let Some(Ok(chunk)) = chunks.next().await {
            seen += chunk.len();
            if seen > OVERFLOW {
                break;
            }
        }
    }));
}

fn too_large() -> ApiError {
    let message = format!("the body has more than {} bytes: shorten the prompt", limits::REQUEST_BYTES);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
}

async fn list_models(State(front): Shared) -> Response {
    Json(models::list(&front.router.loads.snapshot(), front.since)).into_response()
}

async fn get_model(State(front): Shared, id: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let Ok(Path(id)) = id else {
        let message = "the model's name in the path is no UTF-8: percent-encode the name as /v1/models has it";
        return Err(ApiError::field("invalid_value", "model", message));
    };
    let router = &front.router;
    // Its answer is that of a request for the model, which waits so, too.
    router.cluster_health.shown(|| is_among(&id, &router.served())).await;
    let model = models::one(&router.loads.snapshot(), front.since, &id, router.served())?;
    Ok(Json(model).into_response())
}

#[derive(serde::Serialize)]
struct Health {
    status: &'static str,
}

#[derive(serde::Serialize)]
struct Running {
    version: &'static str,
}

async fn health(State(front): Shared) -> Result<Response, ApiError> {
    match front.router.ready() {
        Ok(()) => Ok(Json(Health { status: "ok" }).into_response()),
        Err(reason) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", reason)),
    }
}

async fn version() -> Response {
    Json(Running { version: env!("CARGO_PKG_VERSION") }).into_response()
}

async fn unknown_path(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        // A gRPC client reads no other answer.
        return Status::unimplemented(NOT_GRPC).into_http();
    }
    let shown: String = uri.path().chars().take(200).collect();
    let message = format!(
        "nothing is served at {method} {shown}: there are /v1/chat/completions, /v1/completions, /v1/models, /health and /version"
    );
    ApiError::new(StatusCode::NOT_FOUND, "unknown_url", message).into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Where keys are set, lets in who has one.
async fn authorise(State(front): Shared, request: Request, next: Next) -> Response {
    match front.keys.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            let mut response = error.into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

/// Gives every request its id and its response the same.
async fn name_request(State(front): Shared, mut request: Request, next: Next) -> Response {
    let minted = || format!("req-{}", front.router.config.now().ids.session());
    // HTTP/2 says it by GOAWAY.
    let closes = request.version() < Version::HTTP_2;
    let (id, mut response) = match bounded(&request).and_then(|()| caller(request.headers(), minted)) {
        Ok(caller) => {
            let id = caller.request_id.clone();
            request.extensions_mut().insert(caller);
            (id, next.run(request).await)
        }
        Err(error) => (minted(), error.into_response()),
    };
    if !response.headers().contains_key(REQUEST_ID) {
        sign(&mut response, &id);
    }
    if closes && front.router.shutdown.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The same bounds over HTTP/1.1 and HTTP/2. What is far over them never comes here: see [`connection`].
///
/// [`connection`]: crate::http::connection
fn bounded(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    // With the colon, the space and the line's end of HTTP/1.1.
    let lines = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let bytes = target + lines.sum::<usize>();
    if headers.len() <= MOST_HEADERS && bytes <= HEADER_BYTES {
        return Ok(());
    }
    let message = format!(
        "the request has {} headers of {bytes} bytes with its path; at most {MOST_HEADERS} of {HEADER_BYTES} are taken: send fewer",
        headers.len()
    );
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    Err(ApiError::new(status, "headers_too_large", message))
}

fn caller(headers: &HeaderMap, minted: impl Fn() -> String) -> Result<Caller, ApiError> {
    let text = |name| match headers.get(name).map(HeaderValue::to_str) {
        None => Ok(String::new()),
        Some(Ok(text)) => Ok(text.to_owned()),
        Some(Err(_)) => {
            let message = format!("the header {name} has characters that are no visible ASCII: use others");
            Err(ApiError::field("invalid_value", name, message))
        }
    };
    let own = Some(text(REQUEST_ID)?).filter(|own| !own.is_empty());
    let trace = TraceContext::from_headers(headers);
    Ok(Caller { request_id: own.unwrap_or_else(minted), tenant: text(TENANT)?, trace })
}

fn sign(response: &mut Response, request_id: &str) {
    // Labels of a body may be UTF-8, which a header carries as it is.
    if let Ok(id) = HeaderValue::from_bytes(request_id.as_bytes()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
}
