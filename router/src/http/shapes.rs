//! OpenAI's objects: whole answers, and the chunks of a stream.

use cascadia_core::ids::TokenId;
use cascadia_proto::convert::provenance_name;
use cascadia_proto::v1;
use serde::Serialize;

use crate::http::answer::{Answer, Delta, Token};
use crate::http::asked::CompletionRequest;
use crate::http::endpoint::Endpoint;
use crate::http::logprobs::{self, Logprobs, Offsets};
use crate::http::statistics::{self, Cascadia, Metrics};

/// A whole answer, or a chunk of a stream.
#[derive(Clone, Debug, Serialize)]
pub struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<Choice>,
    /// Absent, or `null` on a chunk that is not the last of a stream which ends with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<Option<Metrics>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cascadia: Option<Cascadia>,
}

/// One answer of several, or what a chunk adds to it.
#[derive(Clone, Debug, Serialize)]
struct Choice {
    index: usize,
    #[serde(flatten)]
    content: Content,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cascadia: Option<Written>,
}

/// What it says, under the name of its shape.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Content {
    Message(Message),
    Delta(MessageDelta),
    Text(String),
}

#[derive(Clone, Debug, Serialize)]
struct Message {
    role: &'static str,
    content: String,
    /// Always `null`.
    refusal: (),
}

#[derive(Clone, Debug, Default, Serialize)]
struct MessageDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// Who wrote which token.
#[derive(Clone, Debug, Serialize)]
struct Written {
    token_ids: Vec<TokenId>,
    provenance: Vec<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

/// Writes one answer.
#[derive(Clone, Debug)]
pub struct ResponseWriter {
    asked: CompletionRequest,
    /// The answer's id: one for all chunks.
    id: String,
    /// Unix seconds.
    created: u64,
    offsets: Vec<Offsets>,
}

impl ResponseWriter {
    /// For an answer whose first session has this name.
    #[must_use]
    pub fn new(mut asked: CompletionRequest, session: &str, created: u64) -> Self {
        let prefix = match asked.endpoint {
            Endpoint::Chat => "chatcmpl-",
            Endpoint::Text => "cmpl-",
        };
        let offsets = (0..asked.sessions()).map(|choice| Offsets::behind(asked.echo_text(choice))).collect();
        if !asked.echo {
            // An answer may outlast its sessions, and what they were charged for.
            asked.prompts = Vec::new();
        }
        Self { id: format!("{prefix}{session}"), asked, created, offsets }
    }

    /// Where the request came.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.asked.endpoint
    }

    fn object(&self, chunk: bool) -> &'static str {
        match (self.asked.endpoint, chunk) {
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Chat, true) => "chat.completion.chunk",
            (Endpoint::Text, _) => "text_completion",
        }
    }

    fn head(&self, started: &v1::Started, chunk: bool, choices: Vec<Choice>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: self.object(chunk),
            created: self.created,
            model: started.model.clone(),
            system_fingerprint: statistics::system_fingerprint(&self.asked.parameters, started),
            choices,
            usage: None,
            metrics: None,
            cascadia: None,
        }
    }

    /// The chunk that a delta is, if a client has to be told of it.
    pub fn chunk(&mut self, answer: &Answer, delta: &Delta) -> Option<Completion> {
        let (wanted, ends) = (self.wanted(delta), delta.finish.is_some());
        let echo = if delta.begins { self.asked.echo_text(delta.index) } else { "" };
        let role = delta.begins && self.asked.endpoint == Endpoint::Chat;
        if !(role || wanted || ends || !echo.is_empty()) {
            return None;
        }
        let content = match (self.asked.endpoint, role, ends) {
            (Endpoint::Text, ..) => Content::Text(format!("{echo}{}", delta.text)),
            (Endpoint::Chat, true, _) => {
                Content::Delta(MessageDelta { role: Some("assistant"), content: Some(String::new()) })
            }
            // By convention the last has an end and nothing else.
            (Endpoint::Chat, false, true) => Content::Delta(MessageDelta::default()),
            (Endpoint::Chat, false, false) => {
                Content::Delta(MessageDelta { role: None, content: Some(delta.text.clone()) })
            }
        };
        let choice = Choice {
            index: delta.index,
            content,
            logprobs: self.logprobs(delta.index, &delta.tokens),
            finish_reason: delta.finish,
            cascadia: (self.asked.provenance && !delta.tokens.is_empty()).then(|| written(&delta.tokens)),
        };
        let said = answer.choices.get(delta.index)?;
        let mut chunk = self.head(&said.started, true, vec![choice]);
        if ends {
            chunk.cascadia = statistics::cascadia(std::slice::from_ref(said));
        }
        if self.asked.include_usage {
            chunk.usage = Some(None);
        }
        Some(chunk)
    }

    /// Whether a delta's content says anything.
    fn wanted(&self, delta: &Delta) -> bool {
        let tokens = self.asked.provenance || self.asked.parameters.logprobs.is_some();
        !delta.text.is_empty() || (tokens && !delta.tokens.is_empty())
    }

    /// The chunk behind the last, if the client asked for it.
    #[must_use]
    pub fn usage_chunk(&self, answer: &Answer) -> Option<Completion> {
        let first = answer.choices.first().filter(|_| self.asked.include_usage)?;
        let mut chunk = self.head(&first.started, true, Vec::new());
        self.account(&mut chunk, answer);
        Some(chunk)
    }

    /// The whole answer, from everything its choices brought.
    #[must_use]
    pub fn whole(&mut self, answer: &Answer, choices: Vec<Collected>) -> Completion {
        let choices = choices.into_iter().enumerate().map(|(index, choice)| self.choice(index, choice)).collect();
        let started = answer.choices.first().map(|choice| choice.started.clone()).unwrap_or_default();
        let mut whole = self.head(&started, false, choices);
        self.account(&mut whole, answer);
        whole
    }

    fn choice(&mut self, index: usize, collected: Collected) -> Choice {
        let logprobs = self.logprobs(index, &collected.tokens);
        let cascadia = self.asked.provenance.then(|| written(&collected.tokens));
        let content = match self.asked.endpoint {
            Endpoint::Chat => Content::Message(Message { role: "assistant", content: collected.text, refusal: () }),
            Endpoint::Text => Content::Text(format!("{}{}", self.asked.echo_text(index), collected.text)),
        };
        Choice { index, content, logprobs, finish_reason: collected.finish, cascadia }
    }

    fn logprobs(&mut self, index: usize, tokens: &[Token]) -> Option<Logprobs> {
        if self.asked.parameters.logprobs.is_none() || tokens.is_empty() {
            return None;
        }
        Some(match (self.asked.endpoint, self.offsets.get_mut(index)) {
            (Endpoint::Text, Some(offsets)) => logprobs::text(tokens, offsets),
            _ => logprobs::chat(tokens),
        })
    }

    fn account(&self, object: &mut Completion, answer: &Answer) {
        let usage = answer.usage(self.asked.answers as usize);
        object.usage = Some(Some(Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
        }));
        object.metrics = Some(statistics::metrics(answer));
        object.cascadia = statistics::cascadia(&answer.choices);
    }
}

/// A choice that is not streamed, as it grows.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    text: String,
    tokens: Vec<Token>,
    finish: Option<&'static str>,
}

impl Collected {
    /// Adds a delta.
    pub fn add(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        self.tokens.extend(delta.tokens);
        self.finish = delta.finish.or(self.finish);
    }
}

fn written(tokens: &[Token]) -> Written {
    Written {
        token_ids: tokens.iter().map(|token| token.id).collect(),
        provenance: tokens.iter().map(|token| provenance_name(token.provenance)).collect(),
    }
}
