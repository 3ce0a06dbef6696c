//! The text side of a session, as its owner sees it: prompts become ids, committed ids become text.
//!
//! Implemented by `cascadia-text` over a real tokenizer, and by toys in simulation.

use std::sync::Arc;

use crate::ids::TokenId;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// EOS, a stop id or a stop string.
    Stop,
    /// `max_tokens` or the context.
    Length,
}

/// Which stop it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopMatch {
    /// EOS or a stop id.
    Token(TokenId),
    /// A stop string.
    Text(String),
}

/// The end of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// The stop, where there was one.
    pub matched: Option<StopMatch>,
}

/// The outcome of committing tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// How many of the given tokens belong to the output; the others are dropped.
    pub taken: usize,
    /// The text they add; may lag where text is held back.
    pub text: String,
    /// The end, where this commit reached it.
    pub finish: Option<Finish>,
}

/// What one token writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Not always whole characters; a special token's name.
    pub bytes: Vec<u8>,
    /// It steers the model and is no part of the text.
    pub special: bool,
}

/// The text state of one choice: a pure function of the ids committed so far.
pub trait Commit: Send + Sync {
    /// Commits the longest prefix of `tokens` that the request still wants.
    fn commit(&mut self, tokens: &[TokenId]) -> Committed;

    /// What a token writes; nothing where there is no such token.
    fn piece(&self, token: TokenId) -> Piece;
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, ...
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A prompt as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Plain text.
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

/// Why a prompt cannot be served: one sentence naming what is wrong with it and the cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptRefusal {
    /// Alone, or with the output asked for, it exceeds the context.
    TooLong(String),
    /// Something else.
    Wrong(String),
    /// Nobody wanted the ids any more before there were any.
    Abandoned,
}

/// What ends a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopSettings {
    /// EOS and stop ids, ascending.
    pub stop_ids: Vec<TokenId>,
    /// Stop strings; the text ends before the first that appears.
    pub stop_strings: Vec<String>,
    /// Output tokens at most.
    pub max_tokens: usize,
}

/// A model's tokenizer and chat template.
pub trait Text: Send + Sync {
    /// Hash of id -> bytes: a pair needs equal ones.
    fn fingerprint(&self) -> &str;

    /// Tokens there are: the highest id and one.
    fn vocabulary(&self) -> usize;

    /// Ids that end a text, ascending.
    fn eos_ids(&self) -> &[TokenId];

    /// A prompt's ids. Once `wanted` says no, the work ends soon.
    ///
    /// # Errors
    /// What is wrong with the prompt.
    fn resolve(&self, prompt: &Prompt, room: Room, wanted: &dyn Fn() -> bool) -> Result<Vec<TokenId>, PromptRefusal>;

    /// The text state of a choice that has committed nothing yet.
    fn begin(self: Arc<Self>, prompt: &[TokenId], stop: StopSettings) -> Box<dyn Commit>;
}
