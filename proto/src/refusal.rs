//! What a refusal says beside its sentence: the field at fault, and whether the prompt is too long for the model.
//!
//! Both travel as metadata of the status, which whoever does not know them skips.

use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::parameters::ParameterError;

/// The key of the field's name, as in the `.proto`.
const FIELD: &str = "cascadia-field";

/// The key of the word that programs compare.
const REASON: &str = "cascadia-reason";

/// OpenAI's word for a prompt that, alone or with the output asked for, exceeds the context.
const CONTEXT_LENGTH_EXCEEDED: &str = "context_length_exceeded";

/// `INVALID_ARGUMENT` for a field.
#[must_use]
pub fn of_field(field: &'static str, sentence: impl Into<String>) -> Status {
    let mut status = Status::invalid_argument(sentence);
    status.metadata_mut().insert(FIELD, MetadataValue::from_static(field));
    status
}

/// `INVALID_ARGUMENT` for a prompt that, alone or with the output asked for, exceeds the context.
#[must_use]
pub fn too_long(sentence: impl Into<String>) -> Status {
    let mut status = of_field("prompt", sentence);
    status.metadata_mut().insert(REASON, MetadataValue::from_static(CONTEXT_LENGTH_EXCEEDED));
    status
}

impl From<ParameterError> for Status {
    fn from(error: ParameterError) -> Self {
        of_field(error.field, error.sentence)
    }
}

/// The field at fault, where the status names one.
#[must_use]
pub fn field(status: &Status) -> Option<&str> {
    status.metadata().get(FIELD)?.to_str().ok()
}

/// Whether the prompt is too long for the model.
#[must_use]
pub fn is_too_long(status: &Status) -> bool {
    status.metadata().get(REASON).is_some_and(|reason| reason == CONTEXT_LENGTH_EXCEEDED)
}

/// What another status says beside its sentence, and nothing else of its metadata.
pub fn repeat(said: &Status, status: &mut Status) {
    for key in [FIELD, REASON] {
        if let Some(value) = said.metadata().get(key) {
            status.metadata_mut().insert(key, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_and_repeated_without_the_rest() {
        let mut said = too_long("the prompt has 9 tokens");
        said.metadata_mut().insert("x-node", MetadataValue::from_static("expert-1"));
        let mut status = Status::invalid_argument("again");
        assert_eq!((field(&status), is_too_long(&status)), (None, false));
        repeat(&said, &mut status);
        assert_eq!((field(&status), is_too_long(&status)), (Some("prompt"), true));
        assert_eq!(status.metadata().len(), 2);
        let of_alpha = Status::from(ParameterError { field: "alpha", sentence: "alpha!".into() });
        assert_eq!((field(&of_alpha), is_too_long(&of_alpha), of_alpha.message()), (Some("alpha"), false, "alpha!"));
    }
}
