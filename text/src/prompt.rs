//! What a client sends, and the ids it becomes.

use std::sync::Arc;

use cascadia_core::commit::{Commit, Prompt, PromptRefusal, Room, StopSettings, Text};
use cascadia_core::ids::TokenId;

use crate::encoder::{Asked, NoIds};
use crate::error::PromptError;
use crate::tokenizer::Tokenizer;
use crate::transcript::Transcript;

impl Tokenizer {
    /// The prompt's ids, or why it cannot be served. Ids are at least one, all known, and leave room for the output.
    ///
    /// `now` (Unix seconds) is for chat templates that print the date: see [`ChatTemplate::render`].
    ///
    /// [`ChatTemplate::render`]: crate::ChatTemplate::render
    pub fn resolve(&self, prompt: &Prompt, room: Room, now: Option<u64>) -> Result<Vec<TokenId>, PromptError> {
        self.resolve_while(prompt, room, now, &|| true)
    }

    /// As [`Self::resolve`], for as long as `wanted` says so: it is looked at every few thousand bytes.
    pub fn resolve_while(
        &self,
        prompt: &Prompt,
        room: Room,
        now: Option<u64>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<TokenId>, PromptError> {
        let asked = Asked { most: room.context_length, wanted };
        let ids = self.ids(prompt, asked, now)?;
        let (tokens, Room { context_length, max_tokens }) = (ids.len(), room);
        if tokens == 0 {
            return Err(PromptError::Empty);
        }
        if tokens >= context_length {
            return Err(PromptError::TooLong { tokens, context_length });
        }
        if max_tokens > context_length - tokens {
            return Err(PromptError::NoRoom { tokens, max_tokens, context_length });
        }
        Ok(ids)
    }

    fn ids(&self, prompt: &Prompt, asked: Asked<'_>, now: Option<u64>) -> Result<Vec<TokenId>, PromptError> {
        if !(asked.wanted)() {
            return Err(PromptError::Abandoned);
        }
        match prompt {
            // Not left to the tokenizer: its BOS alone would make the empty text a prompt.
            Prompt::Text(text) if text.is_empty() => Err(PromptError::Empty),
            Prompt::Text(text) => self.text_ids(text, true, asked),
            Prompt::Messages(messages) if messages.is_empty() => Err(PromptError::Empty),
            Prompt::Messages(messages) => {
                let template = self.chat_template().map_err(Clone::clone)?;
                let text = template.render(messages, true, now)?;
                // The template writes BOS itself.
                self.text_ids(&text, false, asked)
            }
            Prompt::Ids(ids) => match ids.iter().position(|&id| !self.knows(id)) {
                Some(position) => {
                    let vocabulary = self.vocabulary();
                    Err(PromptError::UnknownId { id: ids[position], position, vocabulary })
                }
                None => Ok(ids.clone()),
            },
        }
    }

    fn text_ids(&self, text: &str, add_special: bool, asked: Asked<'_>) -> Result<Vec<TokenId>, PromptError> {
        let context_length = asked.most;
        // No cut into tokens fits it into the context.
        if self.widest_token().is_some_and(|widest| text.len() > context_length.saturating_mul(widest)) {
            return Err(PromptError::TooManyBytes { bytes: text.len(), context_length });
        }
        self.encode_within(text, add_special, asked).map_err(|no_ids| match no_ids {
            NoIds::TooMany(tokens) => PromptError::TooManyTokens { tokens, context_length },
            NoIds::Abandoned => PromptError::Abandoned,
            NoIds::Failed(reason) => PromptError::Encode(reason),
        })
    }
}

impl Text for Tokenizer {
    fn fingerprint(&self) -> &str {
        Self::fingerprint(self)
    }

    fn vocabulary(&self) -> usize {
        Self::vocabulary(self)
    }

    fn eos_ids(&self) -> &[TokenId] {
        Self::eos_ids(self)
    }

    /// Templates that print the date get none: a text must not depend on the day it was asked for.
    fn resolve(&self, prompt: &Prompt, room: Room, wanted: &dyn Fn() -> bool) -> Result<Vec<TokenId>, PromptRefusal> {
        self.resolve_while(prompt, room, None, wanted).map_err(|error| match error {
            PromptError::TooLong { .. }
            | PromptError::TooManyTokens { .. }
            | PromptError::TooManyBytes { .. }
            | PromptError::NoRoom { .. } => PromptRefusal::TooLong(error.to_string()),
            PromptError::Abandoned => PromptRefusal::Abandoned,
            _ => PromptRefusal::Wrong(error.to_string()),
        })
    }

    fn begin(self: Arc<Self>, prompt: &[TokenId], stop: StopSettings) -> Box<dyn Commit> {
        Box::new(Transcript::new(self, prompt, stop))
    }
}
