//! Which files of a repository a model is. Pure.

use super::error::HubError;
use crate::model_id::{ModelId, is_word};

/// Files that a Hugging Face folder is made of, besides its weights.
const TEXTS: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

const INDEX: &str = "model.safetensors.index.json";

impl ModelId {
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
