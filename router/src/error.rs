//! Everything that can go wrong with a request, and the one place where it becomes a gRPC status.

use std::convert::Infallible;
use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_core::placement::PlacementError;
use cascadia_node::membership::MembershipError;
use cascadia_node::process::ProcessError;
use cascadia_proto::parameters::ParameterError;
use cascadia_proto::refusal;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::transcript::Breach;

/// Why the router could not run.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The configuration means nothing.
    #[error("router configuration: {0}")]
    Config(String),
    /// Membership refused the node.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The listener failed.
    #[error("the router's gRPC listener failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The service's own description cannot be served.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl From<ProcessError<Infallible>> for RouterError {
    fn from(error: ProcessError<Infallible>) -> Self {
        match error {
            ProcessError::Membership(error) => Self::Membership(error),
            ProcessError::Lost(never) => match never {},
            ProcessError::Serve(error) => Self::Serve(error),
        }
    }
}

/// Why a generation ended without its text.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A parameter is out of range, unknown or not allowed.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// Nothing to continue.
    #[error("the prompt is empty: send text, messages or token ids")]
    EmptyPrompt,
    /// A field is too large to travel.
    #[error("{field} has {bytes} bytes, at most {limit} are taken: shorten it")]
    TooLong {
        /// Its name.
        field: &'static str,
        /// Its size.
        bytes: usize,
        /// Its bound.
        limit: usize,
    },
    /// A field is not what the wire says.
    #[error("{sentence}")]
    Undecodable {
        /// Its name.
        field: &'static str,
        /// What is wrong, and the cure.
        sentence: String,
    },
    /// All sessions of a request together would hold more than may ever be held.
    #[error(
        "the request's {sessions} sessions would hold {bytes} bytes of prompts, at most {limit} are held here: shorten the \
         prompt, or ask for fewer answers"
    )]
    TooMuch {
        /// How many.
        sessions: usize,
        /// What they would hold.
        bytes: usize,
        /// What all sessions may.
        limit: usize,
    },
    /// A deadline of nothing.
    #[error("timeout_ms is 0: leave it out for the default, or give at least 1")]
    NoTime,
    /// Several models are served and none was named.
    #[error("no model is named and the cluster serves several: name one of {}", served.join(", "))]
    WhichModel {
        /// Their names.
        served: Vec<String>,
    },
    /// The model is not served.
    #[error("model \"{asked}\" is not served here: name one of {}", served.join(", "))]
    UnknownModel {
        /// The name.
        asked: String,
        /// The names there are.
        served: Vec<String>,
    },
    /// No expert has registered yet.
    #[error("no model is served yet: start an expert (cascadia expert), or retry when it is ready")]
    NothingServed,
    /// The cluster is configured so that no place can be expected.
    #[error("{0}: start drafters and experts with one tokenizer")]
    Misconfigured(PlacementError),
    /// As many sessions are admitted as may.
    #[error("this router serves {limit} sessions at most and is full: retry in {} s", retry_after.as_secs())]
    Full {
        /// How many.
        limit: usize,
        /// When a place can be expected.
        retry_after: Duration,
    },
    /// As many bytes are held as may.
    #[error(
        "this router holds {limit} bytes of {what} at most and has no room for more: retry in {} s",
        retry_after.as_secs()
    )]
    NoRoom {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: usize,
        /// When room can be expected.
        retry_after: Duration,
    },
    /// The request was not sent in time.
    #[error("the request was not sent within {} s: send it at once", .0.as_secs())]
    Slow(Duration),
    /// The request's time is up; the session says what it was doing ([`Self::Deadline`]).
    #[error("the request's time is up")]
    OutOfTime,
    /// The request's time is up.
    #[error("the request's time of {} s is up {doing}: raise timeout_ms, or {cure}", allowed.as_secs_f64())]
    Deadline {
        /// What it had.
        allowed: Duration,
        /// What it was doing.
        doing: String,
        /// What else would help.
        cure: &'static str,
    },
    /// An owner's own answer.
    #[error("{}", .0.message())]
    Owner(Status),
    /// An owner broke the protocol.
    #[error("node {owner} broke the protocol: {breach}; its session ends, others go on")]
    Breach {
        /// The node.
        owner: NodeId,
        /// How.
        breach: Breach,
    },
    /// The session seems to end its owners.
    #[error(
        "{owners} nodes in turn lost this session before they wrote a token: it is not placed again; see their logs"
    )]
    Condemned {
        /// How many.
        owners: u32,
    },
    /// The client does not read.
    #[error("the stream was left unread for {} s: the session is cancelled", .0.as_secs())]
    Unread(Duration),
    /// The router ends now.
    #[error("this router stops: send the request to another; the same request id and seed give the same text")]
    Stopping,
}

impl GenerateError {
    fn code(&self) -> Code {
        match self {
            Self::Parameter(_)
            | Self::EmptyPrompt
            | Self::TooLong { .. }
            | Self::TooMuch { .. }
            | Self::Undecodable { .. }
            | Self::NoTime
            | Self::WhichModel { .. } => Code::InvalidArgument,
            Self::UnknownModel { .. } => Code::NotFound,
            Self::Misconfigured(_) => Code::FailedPrecondition,
            Self::Full { .. } | Self::NoRoom { .. } => Code::ResourceExhausted,
            Self::OutOfTime | Self::Deadline { .. } | Self::Slow(_) => Code::DeadlineExceeded,
            Self::Owner(status) => status.code(),
            Self::Breach { .. } | Self::Condemned { .. } => Code::Internal,
            Self::Unread(_) => Code::Cancelled,
            Self::NothingServed | Self::Stopping => Code::Unavailable,
        }
    }

    /// The metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        label(self.code())
    }
}

/// The metric's label of a request whose client left.
pub const CLIENT_LEFT: &str = "client_left";

/// Every label.
pub const LABELS: [&str; 11] = [
    "invalid_argument",
    "not_found",
    "failed_precondition",
    "resource_exhausted",
    "deadline_exceeded",
    "internal",
    "data_loss",
    "unavailable",
    "cancelled",
    "other",
    CLIENT_LEFT,
];

fn label(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "invalid_argument",
        Code::NotFound => "not_found",
        Code::FailedPrecondition => "failed_precondition",
        Code::ResourceExhausted => "resource_exhausted",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::Internal => "internal",
        Code::DataLoss => "data_loss",
        Code::Unavailable => "unavailable",
        Code::Cancelled => "cancelled",
        _ => "other",
    }
}

impl From<GenerateError> for Status {
    fn from(error: GenerateError) -> Self {
        let mut status = Self::new(error.code(), error.to_string());
        match &error {
            GenerateError::Owner(owner) => refusal::repeat(owner, &mut status),
            GenerateError::Parameter(parameter) => status = parameter.clone().into(),
            _ => {}
        }
        let retry_after = match &error {
            GenerateError::Full { retry_after, .. } | GenerateError::NoRoom { retry_after, .. } => Some(*retry_after),
            GenerateError::Owner(owner) if owner.code() == Code::ResourceExhausted => Some(Duration::from_secs(1)),
            _ => None,
        };
        if let Some(delay) = retry_after {
            let metadata = status.metadata_mut();
            // The second is what gRPC clients with a retry policy obey.
            metadata.insert("retry-after", MetadataValue::from(delay.as_secs()));
            metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(delay.as_millis() as u64));
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_router_says_when_to_retry() {
        let status = Status::from(GenerateError::Full { limit: 8, retry_after: Duration::from_secs(3) });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "this router serves 8 sessions at most and is full: retry in 3 s");
        assert_eq!(status.metadata().get("retry-after").unwrap(), "3");
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "3000");
    }

    #[test]
    fn every_label_is_listed() {
        for code in (0..=16).map(Code::from_i32) {
            assert!(LABELS.contains(&label(code)), "{code:?}");
        }
    }

    #[test]
    fn an_owners_answer_keeps_its_code_and_words() {
        let status = Status::from(GenerateError::Owner(refusal::too_long("the prompt is over the context")));
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "the prompt is over the context"));
        assert!(refusal::is_too_long(&status) && refusal::field(&status) == Some("prompt"));
    }
}
