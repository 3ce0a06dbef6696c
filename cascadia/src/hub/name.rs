//! What an operator writes for a model of the hub, and which of its files that means. Pure.

use std::fmt;
use std::path::Path;

use super::client::HubError;

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

/// Files that a Hugging Face folder is made of, besides its weights.
const TEXTS: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

const INDEX: &str = "model.safetensors.index.json";

fn is_word(word: &str) -> bool {
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

    /// The files to fetch, of those that the repository has.
    ///
    /// # Errors
    /// When it has none that would do.
    pub(super) fn choose(&self, files: &[String]) -> Result<Vec<String>, HubError> {
        let problem = |what: String| HubError::Files { model: self.to_string(), what };
        let all = || files.iter().filter(|file| file.ends_with(".gguf") && is_word(file)).cloned().collect::<Vec<_>>();
        if let Some(wanted) = &self.file {
            let (wanted, exact) = (wanted.to_lowercase(), wanted.ends_with(".gguf"));
            let fits = |file: &String| {
                let file = file.to_lowercase();
                if exact { file == wanted } else { file.contains(&wanted) }
            };
            let found: Vec<String> = all().into_iter().filter(fits).collect();
            return match found.len() {
                1 => Ok(found),
                0 => Err(problem(format!("has no GGUF file `{wanted}`; it has {}", listed(&all())))),
                _ => Err(problem(format!("has several GGUF files with `{wanted}`; name one of {}", listed(&found)))),
            };
        }
        let has = |name: &str| files.iter().any(|file| file == name);
        let weights: Vec<String> = if has("model.safetensors") {
            vec!["model.safetensors".into()]
        } else if has(INDEX) {
            let shard = |file: &&String| file.starts_with("model-") && file.ends_with(".safetensors") && is_word(file);
            std::iter::once(INDEX.to_owned()).chain(files.iter().filter(shard).cloned()).collect()
        } else if all().is_empty() {
            return Err(problem("has neither model.safetensors nor a GGUF file; choose another model".into()));
        } else {
            let example = all().remove(0);
            return Err(problem(format!(
                "has GGUF files; name one, as {}:{example}: {}",
                self.repository,
                listed(&all())
            )));
        };
        let texts = TEXTS.into_iter().filter(|name| has(name)).map(str::to_owned);
        Ok(texts.chain(weights).collect())
    }
}

fn listed(files: &[String]) -> String {
    if files.is_empty() { "none".into() } else { files.join(", ") }
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
