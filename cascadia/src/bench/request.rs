//! One request of a load: what is asked, and what came of it.

use std::time::Instant;

use super::measure::Speculation;
use crate::client::ClientError;
use crate::strategy_spec::StrategySpec;

/// What is the same for every request of a run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The served model; empty where there is one.
    pub model: String,
    /// The strategy; nothing leaves it to the server.
    pub spec: Option<StrategySpec>,
    /// The temperature; nothing leaves it to the server.
    pub temperature: Option<f64>,
    /// The prompt goes as plain text, without a chat template.
    pub raw: bool,
}

/// What is one request's own.
#[derive(Clone, Debug, Default)]
pub struct RequestOptions {
    /// Keeps its prompt apart from others in prefix caches.
    pub salt: Option<String>,
    /// Fixes its text, as far as the server can; nothing leaves it to the server.
    pub seed: Option<u64>,
}

/// What one request brought.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// When tokens came, and how many.
    pub pieces: Vec<(Instant, u32)>,
    /// When its last message came, which is before the end of its stream.
    pub end: Option<Instant>,
    /// Prompt tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// What drafter and expert did, where the server says so.
    pub speculation: Option<Speculation>,
    /// The answer.
    pub text: String,
    /// A node without weights wrote it.
    pub synthetic: bool,
}

/// Why a request failed: one word to count by, and the whole sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestError {
    /// The status.
    pub kind: String,
    /// All of it.
    pub sentence: String,
}

/// Whether a request that failed in this way was refused for what it says, for example for its length: others may be
/// answered.
#[must_use]
pub fn is_refusal(kind: &str) -> bool {
    ["INVALID_ARGUMENT", "OUT_OF_RANGE", "400", "413", "422"].contains(&kind)
}

impl From<ClientError> for RequestError {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::Refused { code, .. } => (*code).to_owned(),
            ClientError::Address { .. } | ClientError::Unreachable { .. } => "UNREACHABLE".to_owned(),
            ClientError::Protocol(_) => "PROTOCOL".to_owned(),
        };
        let cure = if error.wants_plain_text() { "; --raw does so" } else { "" };
        Self { kind, sentence: format!("{error}{cure}") }
    }
}
