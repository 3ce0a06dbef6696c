//! Everything that can go wrong with an HTTP request, in OpenAI's envelope, and the one place where a status is chosen.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cascadia_proto::refusal;
use serde::Serialize;
use tonic::{Code, Status};

use crate::error::GenerateError;
use crate::http::endpoint::Endpoint;

/// A client that gets no time to wait from us waits this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An answer that is no success.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The HTTP status; clients choose their exception by it.
    pub status: StatusCode,
    /// What is wrong, and the cure.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// A word that programs compare.
    pub code: Option<&'static str>,
    /// When to try again, where that helps.
    pub retry_after: Option<Duration>,
}

/// An error as OpenAI's clients read it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Envelope<'e> {
    error: Told<'e>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Told<'e> {
    message: &'e str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'e str>,
    code: Option<&'static str>,
}

/// What a model computed for the request is no numbers, and would be none again.
const NOT_FINITE: &str = "model_not_finite";

impl ApiError {
    /// An error of a status.
    #[must_use]
    pub fn new(status: StatusCode, code: impl Into<Option<&'static str>>, message: impl Into<String>) -> Self {
        let retry_after = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Self {
            status,
            message: message.into(),
            param: None,
            code: code.into(),
            retry_after: retry_after.then_some(RETRY_AFTER),
        }
    }

    /// A field that cannot be meant.
    #[must_use]
    pub fn field(code: &'static str, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, code, message) }
    }

    /// The same, said of a field.
    #[must_use]
    pub fn of_field(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The same, told to a client of this endpoint: a conversation has messages for a prompt.
    #[must_use]
    pub fn told_at(self, endpoint: Endpoint) -> Self {
        let is_prompt = endpoint == Endpoint::Chat && self.param.as_deref() == Some("prompt");
        if is_prompt { self.of_field("messages") } else { self }
    }

    /// The family that OpenAI's documentation sorts errors into.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The envelope, for a body or for a frame of a stream that has begun.
    #[must_use]
    pub fn envelope(&self) -> Envelope<'_> {
        Envelope {
            error: Told { message: &self.message, kind: self.kind(), param: self.param.as_deref(), code: self.code },
        }
    }

    /// What tells a client whether and when to try again.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(delay) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(delay.as_secs().max(1)));
            headers.insert("retry-after-ms", HeaderValue::from(delay.as_millis() as u64));
        } else if self.code == Some(NOT_FINITE)
            || self.status != StatusCode::REQUEST_TIMEOUT && self.status != StatusCode::INTERNAL_SERVER_ERROR
        {
            // The same request would fail in the same way, or take its whole time again.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        headers
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, self.headers(), Json(self.envelope())).into_response()
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let (http, code) = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => (StatusCode::BAD_REQUEST, "invalid_value"),
            Code::NotFound => (StatusCode::NOT_FOUND, "model_not_found"),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
            Code::Unavailable | Code::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
            Code::DataLoss => (StatusCode::INTERNAL_SERVER_ERROR, NOT_FINITE),
            // The cluster is put together wrongly: no request can cure it, and no retry.
            Code::FailedPrecondition | Code::Unimplemented => (StatusCode::NOT_IMPLEMENTED, "failed_precondition"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        };
        let said = status.metadata().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let code = if refusal::is_too_long(&status) { "context_length_exceeded" } else { code };
        let error = Self::new(http, code, status.message());
        let retry_after = error.retry_after.map(|delay| said.map_or(delay, Duration::from_secs));
        let param = refusal::field(&status).map(|field| http_name(field).to_owned());
        Self { retry_after, param, ..error }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let param = match &error {
            GenerateError::TooLong { field, .. } | GenerateError::Undecodable { field, .. } => Some(http_name(field)),
            GenerateError::EmptyPrompt | GenerateError::TooMuch { .. } => Some("prompt"),
            GenerateError::NoTime => Some("cascadia.timeout_ms"),
            GenerateError::WhichModel { .. } | GenerateError::UnknownModel { .. } => Some("model"),
            _ => None,
        };
        let param = param.map(str::to_owned);
        let error = match error {
            GenerateError::TooLong { field, bytes, limit } => {
                GenerateError::TooLong { field: http_name(field), bytes, limit }
            }
            other => other,
        };
        let error = Self::from(Status::from(error));
        Self { param: param.or(error.param), ..error }
    }
}

/// A wire field's name in a request over HTTP.
fn http_name(field: &str) -> &str {
    match field {
        "strategy" => "cascadia.strategy",
        "rule" => "cascadia.rule",
        "alpha" => "cascadia.alpha",
        "coupling" => "cascadia.coupling",
        "bild" => "cascadia.bild",
        "typical" => "cascadia.typical",
        "draft_length" => "cascadia.draft_length",
        "strict_first_tokens" => "cascadia.strict_first_tokens",
        "wire_top_k" => "cascadia.wire_top_k",
        "banned" => "cascadia.banned",
        "logprobs" => "top_logprobs",
        "conversation" => "prompt_cache_key",
        "history" => "prompt",
        "tenant" => "x-cascadia-tenant",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_the_envelope_and_says_whether_to_retry() {
        for (code, status, retry, should) in [
            (Code::InvalidArgument, 400, None, Some("false")),
            (Code::NotFound, 404, None, Some("false")),
            (Code::ResourceExhausted, 429, Some("1"), None),
            (Code::Internal, 500, None, None),
            (Code::DataLoss, 500, None, Some("false")),
            (Code::FailedPrecondition, 501, None, Some("false")),
            (Code::Unavailable, 503, Some("1"), None),
            (Code::DeadlineExceeded, 504, None, Some("false")),
        ] {
            let error = ApiError::from(Status::new(code, "a sentence"));
            assert_eq!(error.status.as_u16(), status);
            let headers = error.headers();
            let of = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!((of("retry-after"), of("x-should-retry")), (retry, should), "{code}");
            let envelope = serde_json::json!(error.envelope());
            assert_eq!(envelope["error"]["message"], "a sentence");
            assert!(envelope["error"]["type"].is_string() && envelope["error"]["param"].is_null());
        }
    }

    #[test]
    fn a_full_router_says_when_to_come_again() {
        let full = GenerateError::Full { limit: 8, retry_after: Duration::from_secs(3) };
        let headers = ApiError::from(full).headers();
        assert_eq!(
            (&headers["retry-after"], &headers["retry-after-ms"]),
            (&"3".parse().unwrap(), &"3000".parse().unwrap())
        );
    }

    #[test]
    fn the_field_at_fault_has_its_name_in_http() {
        let unknown = GenerateError::UnknownModel { asked: "m".into(), served: vec!["demo".into()] };
        assert_eq!(ApiError::from(unknown).param.as_deref(), Some("model"));
        let error = cascadia_proto::parameters::ParameterError { field: "alpha", sentence: "alpha!".into() };
        assert_eq!(ApiError::from(GenerateError::Parameter(error)).param.as_deref(), Some("cascadia.alpha"));
        let error = ApiError::from(GenerateError::TooLong { field: "conversation", bytes: 600, limit: 512 });
        assert_eq!(error.param.as_deref(), Some("prompt_cache_key"));
        assert!(error.message.starts_with("prompt_cache_key has 600 bytes"), "{}", error.message);
        let owners = GenerateError::Owner(refusal::of_field("banned", "banned: token 9 is unknown"));
        assert_eq!(ApiError::from(owners).param.as_deref(), Some("cascadia.banned"));
    }

    #[test]
    fn a_prompt_that_is_too_long_is_said_so_in_openais_words() {
        for (endpoint, param) in [(Endpoint::Chat, "messages"), (Endpoint::Text, "prompt")] {
            let error = ApiError::from(GenerateError::Owner(refusal::too_long("the prompt has 9 tokens")));
            let error = error.told_at(endpoint);
            assert_eq!((error.status, error.code), (StatusCode::BAD_REQUEST, Some("context_length_exceeded")));
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
