//! Between text and token ids: tokenizer, chat template, incremental detokeniser, stop strings.
//!
//! Absent on purpose: tensors, async, clocks, chance. The only I/O is reading the model folder once
//! ([`ModelFiles::read`]); the date that some chat templates print is an argument.
//!
//! Reading order: [`Tokenizer::resolve`] turns what a client sent into ids; [`Transcript::commit`] turns committed ids
//! into text and decides where the text ends. Both kinds of owner use these two and nothing else.

#![forbid(unsafe_code)]

mod detokenizer;
mod encoder;
mod error;
mod export;
mod files;
mod gguf;
mod methods;
mod pieces;
mod prompt;
mod stops;
mod strftime;
mod template;
mod tojson;
mod tokenizer;
pub mod toy;
mod transcript;

pub use detokenizer::Detokenizer;
pub use error::{LoadError, PromptError, TemplateError};
pub use export::gguf_metadata;
pub use files::ModelFiles;
pub use stops::StopStrings;
pub use template::{ChatTemplate, SpecialTokens};
pub use tokenizer::Tokenizer;
pub use transcript::Transcript;
