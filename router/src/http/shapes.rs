//! OpenAI's objects: whole answers, and the chunks of a stream.

use cascadia_proto::convert::provenance_name;
use cascadia_proto::v1;
use serde_json::{Map, Value, json};

use crate::http::answer::{Answer, Delta, Token};
use crate::http::asked::Asked;
use crate::http::endpoint::Endpoint;
use crate::http::logprobs::{self, Offsets};
use crate::http::statistics;

/// Writes one answer.
#[derive(Clone, Debug)]
pub struct Writer {
    asked: Asked,
    /// The answer's id: one for all chunks.
    id: String,
    /// Unix seconds.
    created: u64,
    offsets: Vec<Offsets>,
}

impl Writer {
    /// For an answer whose first session has this name.
    #[must_use]
    pub fn new(mut asked: Asked, session: &str, created: u64) -> Self {
        let prefix = match asked.endpoint {
            Endpoint::Chat => "chatcmpl-",
            Endpoint::Text => "cmpl-",
        };
        let offsets = (0..asked.sessions()).map(|choice| Offsets::behind(asked.echoed(choice))).collect();
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

    fn head(&self, started: &v1::Started, chunk: bool, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": self.object(chunk),
            "created": self.created,
            "model": started.model,
            "system_fingerprint": statistics::system_fingerprint(&self.asked.parameters, started),
            "choices": choices,
        })
    }

    /// The chunk that a delta is, if a client has to be told of it.
    pub fn chunk(&mut self, answer: &Answer, delta: &Delta) -> Option<Value> {
        let (wanted, ends) = (self.wanted(delta), delta.finish.is_some());
        let echo = if delta.begins { self.asked.echoed(delta.index) } else { "" };
        let role = delta.begins && self.asked.endpoint == Endpoint::Chat;
        if !(role || wanted || ends || !echo.is_empty()) {
            return None;
        }
        let mut choice = Map::new();
        choice.insert("index".into(), json!(delta.index));
        match self.asked.endpoint {
            Endpoint::Chat => {
                let content = match (role, ends) {
                    (true, _) => json!({"role": "assistant", "content": ""}),
                    // By convention the last has an end and nothing else.
                    (false, true) => json!({}),
                    (false, false) => json!({"content": delta.text}),
                };
                choice.insert("delta".into(), content);
            }
            Endpoint::Text => {
                choice.insert("text".into(), json!(format!("{echo}{}", delta.text)));
            }
        }
        choice.insert("logprobs".into(), self.logprobs(delta.index, &delta.tokens));
        choice.insert("finish_reason".into(), json!(delta.finish));
        if self.asked.provenance && !delta.tokens.is_empty() {
            choice.insert("cascadia".into(), provenance(&delta.tokens));
        }
        let said = answer.choices.get(delta.index)?;
        let mut chunk = self.head(&said.started, true, vec![Value::Object(choice)]);
        if ends {
            chunk["cascadia"] = statistics::cascadia(std::slice::from_ref(said));
        }
        if self.asked.include_usage {
            chunk["usage"] = Value::Null;
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
    pub fn usage_chunk(&self, answer: &Answer) -> Option<Value> {
        let first = answer.choices.first().filter(|_| self.asked.include_usage)?;
        let mut chunk = self.head(&first.started, true, Vec::new());
        self.account(&mut chunk, answer);
        Some(chunk)
    }

    /// The whole answer, from everything its choices brought.
    #[must_use]
    pub fn whole(&mut self, answer: &Answer, choices: Vec<Collected>) -> Value {
        let choices = choices.into_iter().enumerate().map(|(index, choice)| self.choice(index, choice)).collect();
        let started = answer.choices.first().map(|choice| choice.started.clone()).unwrap_or_default();
        let mut whole = self.head(&started, false, choices);
        self.account(&mut whole, answer);
        whole
    }

    fn choice(&mut self, index: usize, collected: Collected) -> Value {
        let logprobs = self.logprobs(index, &collected.tokens);
        let mut choice = json!({"index": index, "finish_reason": collected.finish, "logprobs": logprobs});
        match self.asked.endpoint {
            Endpoint::Chat => {
                choice["message"] = json!({"role": "assistant", "content": collected.text, "refusal": null});
            }
            Endpoint::Text => choice["text"] = json!(format!("{}{}", self.asked.echoed(index), collected.text)),
        }
        if self.asked.provenance {
            choice["cascadia"] = provenance(&collected.tokens);
        }
        choice
    }

    fn logprobs(&mut self, index: usize, tokens: &[Token]) -> Value {
        if self.asked.parameters.logprobs.is_none() || tokens.is_empty() {
            return Value::Null;
        }
        match (self.asked.endpoint, self.offsets.get_mut(index)) {
            (Endpoint::Text, Some(offsets)) => logprobs::text(tokens, offsets),
            _ => json!({"content": logprobs::chat(tokens), "refusal": null}),
        }
    }

    fn account(&self, object: &mut Value, answer: &Answer) {
        let usage = answer.usage(self.asked.answers as usize);
        object["usage"] = json!({
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        });
        object["metrics"] = statistics::metrics(answer);
        object["cascadia"] = statistics::cascadia(&answer.choices);
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

/// Who wrote which token.
fn provenance(tokens: &[Token]) -> Value {
    json!({
        "token_ids": tokens.iter().map(|token| token.id).collect::<Vec<_>>(),
        "provenance": tokens.iter().map(|token| provenance_name(token.provenance)).collect::<Vec<_>>(),
    })
}
