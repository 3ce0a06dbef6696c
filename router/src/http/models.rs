//! `/v1/models`: the served models under the names that requests use.

use axum::http::StatusCode;
use cascadia_core::placement::Snapshot;
use cascadia_proto::v1::ServedModel;
use serde::Serialize;

use crate::admission::model_of;
use crate::http::error::ApiError;
use crate::status::list_models;

/// OpenAI's model object, with who serves it.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    cascadia: Nodes,
}

#[derive(Clone, Debug, Serialize)]
struct Nodes {
    drafters: usize,
    experts: usize,
    tokenizer_fingerprint: String,
}

/// OpenAI's list of models.
#[derive(Clone, Debug, Serialize)]
pub struct Models {
    object: &'static str,
    data: Vec<Model>,
}

fn object(model: &ServedModel, since: u64) -> Model {
    let nodes = Nodes {
        drafters: model.drafters.len(),
        experts: model.experts.len(),
        tokenizer_fingerprint: model.tokenizer_fingerprint.clone(),
    };
    Model { id: model.name.clone(), object: "model", created: since, owned_by: "cascadia", cascadia: nodes }
}

/// All of them.
#[must_use]
pub fn list(snapshot: &Snapshot, since: u64) -> Models {
    let data = list_models(snapshot).models.iter().map(|model| object(model, since)).collect();
    Models { object: "list", data }
}

/// One of them.
///
/// # Errors
/// When it is none of the names that requests may ask for, or none of its nodes is there now: requests wait for one.
pub fn one(snapshot: &Snapshot, since: u64, id: &str, served: Vec<String>) -> Result<Model, ApiError> {
    let id = model_of(id, served)?;
    let models = list_models(snapshot).models;
    models.iter().find(|model| model.name == id).map(|model| object(model, since)).ok_or_else(|| {
        let message = format!(
            "model {id:?} was served here and has no expert now: requests for it wait until one is ready; start one \
             (cascadia expert), or ask again"
        );
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).of_field("model")
    })
}
