//! The text files of a Hugging Face model folder, read once; or what a GGUF file holds instead.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::LoadError;
use crate::gguf;

/// What a model folder says about text, not yet interpreted.
#[derive(Clone, Debug, Default)]
pub struct ModelFiles {
    /// The folder or file, for messages.
    pub folder: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`, or null: special tokens and the chat template.
    pub tokenizer_config: Value,
    /// `generation_config.json`, or null: ids that end a text.
    pub generation_config: Value,
    /// `config.json`, or null: the same, in older folders.
    pub config: Value,
    /// `chat_template.jinja`; goes before the template in `tokenizer_config.json`.
    pub chat_template: Option<String>,
}

impl ModelFiles {
    /// Reads a model folder, of which only `tokenizer.json` must be there; or a GGUF file.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        if folder.is_file() {
            return gguf::read(folder);
        }
        if !folder.is_dir() {
            return Err(LoadError::NoFolder(folder.to_owned()));
        }
        let tokenizer = folder.join("tokenizer.json");
        Ok(Self {
            folder: folder.to_owned(),
            tokenizer: bytes(&tokenizer)?.ok_or(LoadError::Missing(tokenizer))?,
            tokenizer_config: json(&folder.join("tokenizer_config.json"))?,
            generation_config: json(&folder.join("generation_config.json"))?,
            config: json(&folder.join("config.json"))?,
            chat_template: text(&folder.join("chat_template.jinja"))?,
        })
    }
}

fn bytes(file: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match std::fs::read(file) {
        Ok(bytes) if bytes.starts_with(b"version https://git-lfs") => Err(LoadError::LfsPointer(file.to_owned())),
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(reason) => Err(LoadError::Unreadable { file: file.to_owned(), reason }),
    }
}

fn json(file: &Path) -> Result<Value, LoadError> {
    let Some(bytes) = bytes(file)? else { return Ok(Value::Null) };
    serde_json::from_slice(&bytes).map_err(|e| LoadError::Broken { file: file.to_owned(), reason: e.to_string() })
}

fn text(file: &Path) -> Result<Option<String>, LoadError> {
    let Some(bytes) = bytes(file)? else { return Ok(None) };
    let broken = |e: std::string::FromUtf8Error| LoadError::Broken { file: file.to_owned(), reason: e.to_string() };
    String::from_utf8(bytes).map(Some).map_err(broken)
}
