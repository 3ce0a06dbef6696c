//! `/v1/models`: the served models under the names that requests use.

use axum::http::StatusCode;
use cascadia_core::placement::Snapshot;
use cascadia_proto::v1::ServedModel;
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::status::list_models;

fn object(model: &ServedModel, since: u64) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": since,
        "owned_by": "cascadia",
        "cascadia": {
            "drafters": model.drafters.len(),
            "experts": model.experts.len(),
            "tokenizer_fingerprint": model.tokenizer_fingerprint,
        },
    })
}

/// All of them.
#[must_use]
pub fn list(snapshot: &Snapshot, since: u64) -> Value {
    let models: Vec<Value> = list_models(snapshot).models.iter().map(|model| object(model, since)).collect();
    json!({"object": "list", "data": models})
}

/// One of them.
///
/// # Errors
/// When it is not served.
pub fn one(snapshot: &Snapshot, since: u64, id: &str) -> Result<Value, ApiError> {
    let models = list_models(snapshot).models;
    models.iter().find(|model| model.name == id).map(|model| object(model, since)).ok_or_else(|| {
        let shown: String = id.chars().take(80).collect();
        let served = models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
        let message = format!("model {shown:?} is not served here; served are: {served}");
        ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).of_field("model")
    })
}
