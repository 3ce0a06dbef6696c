//! Why a model did not come from the hub.

use std::path::Path;

use http::StatusCode;

/// Why a model did not come from the hub; one sentence each.
#[derive(Debug, thiserror::Error)]
pub(super) enum HubError {
    /// No answer.
    #[error(
        "cannot fetch {model} from {endpoint} ({cause}); check the network and HF_ENDPOINT, or name a folder or file on this machine"
    )]
    Unreachable { model: String, endpoint: String, cause: String },
    /// 401 or 403.
    #[error(
        "{endpoint} does not show {model} to this caller ({status}); is the name right? A private or gated model needs HF_TOKEN with access to it"
    )]
    Denied { model: String, endpoint: String, status: StatusCode },
    /// 404.
    #[error("{endpoint} has no {model}, and there is no such path on this machine; check the name")]
    Missing { model: String, endpoint: String },
    /// Another answer.
    #[error("{endpoint} answers {status} for {model}; try again later")]
    Answer { model: String, endpoint: String, status: StatusCode },
    /// An answer that makes no sense.
    #[error("{endpoint} answers nonsense for {model}: {what}; is HF_ENDPOINT a hub?")]
    Nonsense { model: String, endpoint: String, what: String },
    /// A connection that anybody on the way can read and change.
    #[error(
        "{address} is plain http, and whoever is on the way could read the token and change the model; use https, or http \
         with a host of this machine such as 127.0.0.1 (HF_ENDPOINT names the hub)"
    )]
    Plain { address: String },
    /// Other bytes than the hub has.
    #[error(
        "{file} of {model} came twice from {endpoint} with another content than it announces; something between changes it"
    )]
    Content { model: String, endpoint: String, file: String },
    /// A repository without what is needed.
    #[error("{model} {what}")]
    Files { model: String, what: String },
    /// The cache cannot be written.
    #[error("{path}: {cause}; HF_HOME or HF_HUB_CACHE names another folder for models")]
    Disk { path: String, cause: String },
}

impl HubError {
    pub(super) fn disk(path: &Path, cause: &std::io::Error) -> Self {
        Self::Disk { path: path.display().to_string(), cause: cause.to_string() }
    }
}
