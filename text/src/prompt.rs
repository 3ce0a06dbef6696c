//! What a client sends, and the ids it becomes.

use cascadia_core::ids::TokenId;

use crate::error::PromptError;
use crate::template::Message;
use crate::tokenizer::Tokenizer;

/// A prompt as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Plain text; the tokenizer adds what it adds (usually BOS).
    Text(String),
    /// A conversation, rendered by the model's chat template.
    Messages(Vec<Message>),
    /// Token ids, taken as they are.
    Ids(Vec<TokenId>),
}

/// How many tokens there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Tokens the model can hold, prompt and output together.
    pub context_length: usize,
    /// Output tokens the request asks for; 1 where it leaves the number open.
    pub max_tokens: usize,
}

impl Prompt {
    /// The prompt's ids, or why it cannot be served. Ids are at least one, all known, and leave room for the output.
    ///
    /// `now` (Unix seconds) is for chat templates that print the date: see [`ChatTemplate::render`].
    ///
    /// [`ChatTemplate::render`]: crate::ChatTemplate::render
    pub fn resolve(&self, tokenizer: &Tokenizer, room: Room, now: Option<u64>) -> Result<Vec<TokenId>, PromptError> {
        let ids = self.ids(tokenizer, now)?;
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

    fn ids(&self, tokenizer: &Tokenizer, now: Option<u64>) -> Result<Vec<TokenId>, PromptError> {
        match self {
            // Not left to the tokenizer: its BOS alone would make the empty text a prompt.
            Self::Text(text) if text.is_empty() => Err(PromptError::Empty),
            Self::Text(text) => tokenizer.encode(text, true).map_err(PromptError::Encode),
            Self::Messages(messages) if messages.is_empty() => Err(PromptError::Empty),
            Self::Messages(messages) => {
                let template = tokenizer.chat_template().map_err(Clone::clone)?;
                // The template writes BOS itself.
                tokenizer.encode(&template.render(messages, true, now)?, false).map_err(PromptError::Encode)
            }
            Self::Ids(ids) => match ids.iter().position(|&id| !tokenizer.knows(id)) {
                Some(position) => {
                    let vocabulary = tokenizer.vocabulary();
                    Err(PromptError::UnknownId { id: ids[position], position, vocabulary })
                }
                None => Ok(ids.clone()),
            },
        }
    }
}
