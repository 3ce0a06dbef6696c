//! What an operator writes for a model of the Hugging Face hub. Pure.

use std::fmt;
use std::path::Path;

/// `owner/name`, then `@revision` for a branch, tag or commit, then `:file.gguf` or a part of one's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    /// `owner/name`.
    pub repository: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// A GGUF file, or a part of its name such as `Q4_K_M`.
    pub file: Option<String>,
}

/// Part of a repository's name, or the name of a file: nothing that leads out of a folder.
pub(crate) fn is_word(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !word.is_empty() && word.len() <= 96 && !word.starts_with('.') && word.chars().all(plain) && !word.contains("..")
}

impl ModelId {
    /// Reads a model's name; `None` where it is a path: of something that is there, or not of this form.
    #[must_use]
    pub fn of(model: &Path) -> Option<Self> {
        if model.exists() {
            return None;
        }
        let (rest, file) = match model.to_str()?.split_once(':') {
            Some((rest, file)) => (rest, Some(file.to_owned())),
            None => (model.to_str()?, None),
        };
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (owner, name) = repository.split_once('/')?;
        let named = is_word(owner) && is_word(name) && revision.split('/').all(is_word);
        let fits = named && !name.ends_with(".gguf") && file.as_deref().is_none_or(is_word);
        fits.then(|| Self { repository: repository.to_owned(), revision: revision.to_owned(), file })
    }

    /// The name a model is served under unless another is given.
    #[must_use]
    pub fn served(&self) -> &str {
        match self.file.as_deref().and_then(|file| file.strip_suffix(".gguf")) {
            Some(stem) => stem,
            None => self.repository.rsplit('/').next().unwrap_or(&self.repository),
        }
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}
