//! What can go wrong, one clear sentence each, with the cure.

use std::path::PathBuf;

use cascadia_core::ids::TokenId;

/// A model folder whose text files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder is not there.
    #[error("{} is not there: name a Hugging Face model folder that holds tokenizer.json, or a GGUF file", .0.display())]
    NoFolder(PathBuf),
    /// A file that must be there is not.
    #[error(
        "{} is missing: copy it from the model's repository (a folder with only tokenizer.model must be converted to tokenizer.json first)",
        .0.display()
    )]
    Missing(PathBuf),
    /// A file cannot be read.
    #[error("{} cannot be read ({reason}): check its permissions and the disk", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// A file holds a Git LFS pointer instead of its content.
    #[error("{} is a Git LFS pointer, not the file itself: run `git lfs pull` in the model folder", .0.display())]
    LfsPointer(PathBuf),
    /// A file does not parse.
    #[error("{} is truncated or not what its name says ({reason}): download it again", .file.display())]
    Broken {
        /// The file.
        file: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A tokenizer in a GGUF file that is not rebuilt.
    #[error(
        "{} holds {what}, which is not supported: use the model's Hugging Face folder, or a file with a gpt2 or llama tokenizer",
        .file.display()
    )]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The tokenizer, or a part of it.
        what: String,
    },
    /// The tokenizer decodes in a way that has no bytes for a single token.
    #[error(
        "{} uses the decoder {decoder}, which cannot stream text token by token: use a model with a byte-level or SentencePiece tokenizer",
        .file.display()
    )]
    Decoder {
        /// The file.
        file: PathBuf,
        /// The decoder's name.
        decoder: &'static str,
    },
}

/// Messages that do not become a prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The model folder has no chat template.
    #[error("this model has no chat template: send the prompt as plain text instead of messages")]
    Missing,
    /// The folder has several named templates and none called `default`.
    #[error(
        "this model has chat templates named {0} but none named default: name one default in tokenizer_config.json, or send the prompt as plain text"
    )]
    NoDefault(String),
    /// The template cannot be parsed.
    #[error(
        "this model's chat template cannot be parsed ({0}): correct it in the model folder, or send the prompt as plain text"
    )]
    Syntax(String),
    /// The template called `raise_exception`.
    #[error("the chat template refuses these messages: {0}")]
    Raised(String),
    /// The template does without end, or very long, what it does.
    #[error(
        "the chat template takes more work on these messages than a request may ({0} steps): shorten the conversation; where short ones fail as well, correct the template in the model folder, or send the prompt as plain text"
    )]
    TooMuchWork(u64),
    /// The template writes and writes.
    #[error(
        "the chat template makes more than {0} bytes of these messages: shorten the conversation; where short ones fail as well, correct the template in the model folder, or send the prompt as plain text"
    )]
    TooMuchText(usize),
    /// The template failed while it ran.
    #[error("the chat template failed on these messages ({0}): change the messages, or send the prompt as plain text")]
    Failed(String),
}

/// A prompt that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// Nothing to go on from.
    #[error("the prompt is empty: send some text, a message or a token id")]
    Empty,
    /// The prompt alone fills the context.
    #[error(
        "the prompt has {tokens} tokens but the model's context is {context_length}: shorten it to at most {} tokens",
        .context_length.saturating_sub(1)
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens the model can hold.
        context_length: usize,
    },
    /// The prompt alone fills the context; its rest was not looked at.
    #[error(
        "the prompt has at least {tokens} tokens but the model's context is {context_length}: shorten it to at most {} tokens",
        .context_length.saturating_sub(1)
    )]
    TooManyTokens {
        /// Tokens of the prompt's beginning.
        tokens: usize,
        /// Tokens the model can hold.
        context_length: usize,
    },
    /// The prompt's text is longer than the context, however it is cut into tokens.
    #[error(
        "the prompt has {bytes} bytes, more than {context_length} tokens, the model's context, can hold: shorten it to less than {context_length} tokens"
    )]
    TooManyBytes {
        /// Bytes of the prompt.
        bytes: usize,
        /// Tokens the model can hold.
        context_length: usize,
    },
    /// The prompt fits, the answer does not.
    #[error(
        "the prompt has {tokens} tokens and max_tokens asks for {max_tokens} more, but the model's context is {context_length}: set max_tokens to at most {} or shorten the prompt",
        .context_length.saturating_sub(*.tokens)
    )]
    NoRoom {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// Tokens the model can hold.
        context_length: usize,
    },
    /// A prompt id that the tokenizer does not have.
    #[error(
        "prompt id {id} at position {position} is no token of this model: its ids go from 0 to {}",
        .vocabulary.saturating_sub(1)
    )]
    UnknownId {
        /// The id.
        id: TokenId,
        /// Where in the prompt it stands.
        position: usize,
        /// Ids the tokenizer has.
        vocabulary: usize,
    },
    /// There is no chat template to use, or it says no.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer refuses the text.
    #[error("the prompt cannot be tokenised ({0}): send it as token ids, or without the characters at fault")]
    Encode(String),
    /// Nobody wants the ids any more.
    #[error("nobody waits for the prompt's ids any more")]
    Abandoned,
}
