//! What a request asks for, whichever endpoint it came to: prompts, how many answers to each, and how to write them.

use cascadia_core::limits;
use cascadia_proto::prompt::EncodedPrompt;
use cascadia_proto::v1::Parameters;

use crate::admission::{LABEL_BYTES, is_among};
use crate::http::endpoint::Endpoint;
use crate::http::error::ApiError;
use crate::http::extension;
use crate::http::fields::Fields;
use crate::http::model_name;
use crate::http::sampling;
use crate::request::{Request, held};

/// Answers to one prompt at most, as OpenAI's.
const MOST_ANSWERS: u32 = 128;

/// Sessions of one request at most.
pub const MOST_SESSIONS: usize = 256;

/// A request that means something.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// Where it came.
    pub endpoint: Endpoint,
    /// The model by the name it was given, until [`Self::resolve`]; empty for the only one.
    pub model: String,
    /// At least one.
    pub prompts: Vec<EncodedPrompt>,
    /// Answers to each.
    pub answers: u32,
    /// What the sessions are asked, all alike.
    pub parameters: Parameters,
    /// Write as it comes.
    pub stream: bool,
    /// A stream ends with the usage.
    pub include_usage: bool,
    /// Say of each token who wrote it.
    pub provenance: bool,
    /// Write the prompt in front of its answers.
    pub echo: bool,
    /// Sessions of one conversation prefer one node.
    pub conversation: String,
    /// Higher goes first.
    pub priority: i32,
    /// The time it has.
    pub timeout_ms: Option<u64>,
    /// Part of the prefix cache's key.
    pub cache_salt: Option<String>,
    /// The client's own name for it.
    pub request_id: Option<String>,
}

/// Fields that clients send and that change nothing here; `docs/openai.md` lists them.
const IGNORED: [&str; 11] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "reasoning_effort",
    "verbosity",
    "prediction",
    "prompt_cache_retention",
    "prompt_cache_options",
];

impl CompletionRequest {
    /// Reads what both endpoints share; prompts, log-probabilities and what else differs is the caller's.
    ///
    /// # Errors
    /// The field that cannot be meant.
    pub fn read(body: &mut Fields<'_>, endpoint: Endpoint) -> Result<Self, ApiError> {
        let model = body.get::<String>("model")?.unwrap_or_default();
        let stream = body.get("stream")?.unwrap_or(false);
        let mut options = body.object("stream_options")?;
        let include_usage = match &mut options {
            Some(_) if !stream => {
                let message = "stream_options is read where stream is true: set it, or leave stream_options out";
                return Err(ApiError::field("invalid_value", "stream_options", message));
            }
            Some(options) => options.get("include_usage")?.unwrap_or(false),
            None => false,
        };
        if let Some(mut options) = options {
            // Padding against the guessing of lengths: nothing a client reads.
            options.ignore(&["include_obfuscation"]);
            options.finish()?;
        }
        let answers = body.get::<u32>("n")?.unwrap_or(1);
        if !(1..=MOST_ANSWERS).contains(&answers) {
            let message = format!("n must be between 1 and {MOST_ANSWERS}, not {answers}");
            return Err(ApiError::field("invalid_value", "n", message));
        }
        let mut asked = Self {
            endpoint,
            model,
            prompts: Vec::new(),
            answers,
            parameters: sampling::read(body)?,
            stream,
            include_usage,
            provenance: false,
            echo: false,
            conversation: body.get("prompt_cache_key")?.unwrap_or_default(),
            priority: body.get("priority")?.unwrap_or_default(),
            timeout_ms: None,
            cache_salt: body.get("cache_salt")?,
            request_id: request_id(body)?,
        };
        if let Some(mut object) = body.object("cascadia")? {
            asked.provenance = object.get("provenance")?.unwrap_or(false);
            asked.timeout_ms = object.get::<u32>("timeout_ms")?.map(u64::from);
            extension::read(object, &mut asked.parameters)?;
        }
        body.ignore(&IGNORED);
        Ok(asked)
    }

    /// Whether the name it was given means one of these models.
    #[must_use]
    pub fn is_served(&self, served: &[String]) -> bool {
        model_name::split(&self.model, served).is_ok_and(|(model, _)| is_among(&model, served))
    }

    /// The same, where these models are served: the name's suffix has become parameters.
    ///
    /// # Errors
    /// When the suffix is none, or the parameters say otherwise.
    pub fn resolve(mut self, served: &[String]) -> Result<Self, ApiError> {
        let (model, suffix) = model_name::split(&self.model, served)?;
        extension::apply(suffix, &mut self.parameters)?;
        Ok(Self { model, ..self })
    }

    /// How many sessions it takes.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.prompts.len() * self.answers as usize
    }

    /// What its sessions hold of its prompts, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        held(&self.prompts, self.answers)
    }

    /// Bounds the sessions, and what is written of prompts.
    ///
    /// # Errors
    /// When there are too many, or too much, naming what to lower.
    pub fn bounded(self) -> Result<Self, ApiError> {
        let sessions = self.sessions();
        if sessions > MOST_SESSIONS {
            let message = format!(
                "{} prompts with n = {} make {sessions} answers, at most {MOST_SESSIONS} are given at once: send fewer",
                self.prompts.len(),
                self.answers
            );
            return Err(ApiError::field("invalid_value", "prompt", message));
        }
        let prompts: usize = self.prompts.iter().map(|prompt| prompt.encoded().len()).sum();
        let (echo_text, most) = (prompts * self.answers as usize, limits::REQUEST_BYTES);
        if self.echo && echo_text > most {
            let message = format!(
                "echo would repeat {echo_text} bytes of prompts, at most {most} are: ask for fewer answers, or leave echo out"
            );
            return Err(ApiError::field("invalid_value", "echo", message));
        }
        Ok(self)
    }

    /// What the router is asked for: what a gRPC client would send for each session, prompt by prompt. The prompts are
    /// shared.
    #[must_use]
    pub fn request(&self, request_id: &str, tenant: &str) -> Request {
        Request {
            model: self.model.clone(),
            prompts: self.prompts.clone(),
            choice: 0,
            answers: self.answers,
            parameters: self.parameters.clone(),
            request_id: request_id.to_owned(),
            tenant: tenant.to_owned(),
            conversation: self.conversation.clone(),
            priority: self.priority,
            timeout_ms: self.timeout_ms,
            cache_salt: self.cache_salt.clone(),
        }
    }

    /// What stands in front of a choice's text.
    #[must_use]
    pub fn echo_text(&self, choice: usize) -> &str {
        let prompt = self.prompts.get(choice / self.answers as usize).filter(|_| self.echo);
        prompt.and_then(EncodedPrompt::text).unwrap_or_default()
    }
}

/// The client's own name for its request; an empty one is none.
fn request_id(body: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    const FIELD: &str = "request_id";
    let Some(id) = body.get::<String>(FIELD)?.filter(|id| !id.is_empty()) else { return Ok(None) };
    // It stands in a header of the response, and in logs.
    if id.chars().any(char::is_control) {
        let message = "request_id has control characters: use letters, digits and punctuation";
        return Err(ApiError::field("invalid_value", FIELD, message));
    }
    if id.len() > LABEL_BYTES {
        let message = format!("request_id has {} bytes, at most {LABEL_BYTES} are taken: shorten it", id.len());
        return Err(ApiError::field("invalid_value", FIELD, message));
    }
    Ok(Some(id))
}
