//! What a client sends, and the ids it becomes.

use std::sync::Arc;

use cascadia_core::commit::{Commit, Prompt, PromptRefusal, Room, StopSettings, Text};
use cascadia_core::ids::TokenId;

use crate::error::PromptError;
use crate::tokenizer::Tokenizer;
use crate::transcript::Transcript;

/// Normalisation shortens a text to a quarter at most: composition makes one character of three at most.
const NORMALISED: usize = 4;

impl Tokenizer {
    /// The prompt's ids, or why it cannot be served. Ids are at least one, all known, and leave room for the output.
    ///
    /// `now` (Unix seconds) is for chat templates that print the date: see [`ChatTemplate::render`].
    ///
    /// [`ChatTemplate::render`]: crate::ChatTemplate::render
    pub fn resolve(&self, prompt: &Prompt, room: Room, now: Option<u64>) -> Result<Vec<TokenId>, PromptError> {
        let ids = self.ids(prompt, room.context_length, now)?;
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

    /// A text that no cut into tokens fits into the context, without the seconds that cutting a long one takes.
    fn check_bytes(&self, text: &str, context_length: usize) -> Result<(), PromptError> {
        let most = context_length.saturating_mul(self.longest_token()).saturating_mul(NORMALISED);
        if text.len() > most {
            return Err(PromptError::TooManyBytes { bytes: text.len(), context_length });
        }
        Ok(())
    }

    fn ids(&self, prompt: &Prompt, context_length: usize, now: Option<u64>) -> Result<Vec<TokenId>, PromptError> {
        match prompt {
            // Not left to the tokenizer: its BOS alone would make the empty text a prompt.
            Prompt::Text(text) if text.is_empty() => Err(PromptError::Empty),
            Prompt::Text(text) => {
                self.check_bytes(text, context_length)?;
                self.encode(text, true).map_err(PromptError::Encode)
            }
            Prompt::Messages(messages) if messages.is_empty() => Err(PromptError::Empty),
            Prompt::Messages(messages) => {
                let template = self.chat_template().map_err(Clone::clone)?;
                let text = template.render(messages, true, now)?;
                self.check_bytes(&text, context_length)?;
                // The template writes BOS itself.
                self.encode(&text, false).map_err(PromptError::Encode)
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
    fn resolve(&self, prompt: &Prompt, room: Room) -> Result<Vec<TokenId>, PromptRefusal> {
        Self::resolve(self, prompt, room, None).map_err(|error| match error {
            PromptError::TooLong { .. } | PromptError::TooManyBytes { .. } | PromptError::NoRoom { .. } => {
                PromptRefusal::TooLong(error.to_string())
            }
            _ => PromptRefusal::Wrong(error.to_string()),
        })
    }

    fn begin(self: Arc<Self>, prompt: &[TokenId], stop: StopSettings) -> Box<dyn Commit> {
        Box::new(Transcript::new(self, prompt, stop))
    }
}
