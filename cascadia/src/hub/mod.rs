//! Models of the Hugging Face hub: named `owner/name`, fetched once, kept where Hugging Face's own tools keep them.
//!
//! [`choose`] which files a model is · [`cache`] the folder of that layout · [`client`] HTTP with redirects, ranges and
//! tokens · [`digest`] whether what came is what the hub has · here: what to do without a network.

mod cache;
mod choose;
mod client;
mod digest;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use cache::Cache;
use client::{Client, HubError};

use crate::Failure;
use crate::load::Report;
use crate::model_id::ModelId;

/// Where the hub is, where its files are kept, and who asks.
#[derive(Clone, Debug)]
pub struct Hub {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, or what `hf auth login` left.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
}

impl Hub {
    /// As the variables of Hugging Face's tools say.
    ///
    /// # Errors
    /// When there is no home to keep files in.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = given("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = given("XDG_CACHE_HOME").map(PathBuf::from);
            Some(cache.or_else(|| given("HOME").map(|home| Path::new(&home).join(".cache")))?.join("huggingface"))
        });
        let cache = given("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join("hub")));
        let cache = cache.ok_or("there is no place for models of the hub; set HF_HOME to a folder")?;
        let saved = || {
            let file = given("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home.map(|home| home.join("token")))?;
            Some(std::fs::read_to_string(file).ok()?.trim().to_owned())
        };
        let on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
        Ok(Self {
            endpoint: given("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".into())
                .trim_end_matches('/')
                .into(),
            cache,
            token: given("HF_TOKEN").or_else(saved).map(|token| token.trim().to_owned()).filter(|t| !t.is_empty()),
            offline: given("HF_HUB_OFFLINE").is_some_and(on),
        })
    }

    /// The folder or GGUF file of a model as far as it is on this machine; nobody is asked.
    #[must_use]
    pub fn cached(&self, id: &ModelId) -> Option<PathBuf> {
        Cache::of(&self.cache, id).whole(id)
    }

    /// As [`Hub::cached`]; `None` where it may still be fetched.
    ///
    /// # Errors
    /// When it is not here and nobody may be asked.
    pub fn cached_or_to_fetch(&self, id: &ModelId) -> Result<Option<PathBuf>, Failure> {
        match self.cached(id) {
            None if self.offline => Err(format!(
                "there is no {id} on this machine: no such path, and {} does not hold all of it; HF_HUB_OFFLINE is set, so \
                 unset it, or fetch the model first",
                self.cache.display()
            )
            .into()),
            cached => Ok(cached),
        }
    }

    /// The folder or GGUF file of a model; what is not on this machine yet is fetched. Blocks.
    ///
    /// # Errors
    /// One sentence: the hub has no such model, wants a token, cannot be reached, or the disk is full.
    pub fn fetch(&self, id: &ModelId, report: &mut Report<'_>) -> Result<PathBuf, Failure> {
        if let (Some(cached), true) = (self.cached_or_to_fetch(id)?, self.offline) {
            return Ok(cached);
        }
        // On a thread of its own: within a runtime another can be neither blocked on nor dropped.
        let download = || -> Result<_, Failure> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(self.download(id, report)))
        };
        let fetched = std::thread::scope(|scope| scope.spawn(download).join().expect("the download does not panic"));
        let unreachable = match fetched? {
            Ok(path) => return Ok(path),
            Err(error @ HubError::Unreachable { .. }) => error,
            Err(error) => return Err(error.to_string().into()),
        };
        let cached = self.cached(id).ok_or_else(|| unreachable.to_string())?;
        tracing::warn!(model = %id, endpoint = self.endpoint, "the hub cannot be reached; the cached model is used");
        Ok(cached)
    }

    async fn download(&self, id: &ModelId, report: &mut Report<'_>) -> Result<PathBuf, HubError> {
        let client = Client::new(self, id);
        let revision = client.revision().await?;
        let files = id.choose(&revision.files)?;
        let cache = Cache::of(&self.cache, id);
        for file in &files {
            if !cache.has(&revision.commit, file) {
                client.fetch(&revision.commit, file, &cache, report).await?;
            }
        }
        let folder = cache.snapshot(&revision.commit);
        let model = if id.file.is_some() { folder.join(&files[0]) } else { folder };
        // A cache that holds it all already may be one that cannot be written.
        if cache.whole(id).as_ref() != Some(&model) {
            cache.point(&id.revision, &revision.commit, &files)?;
        }
        Ok(model)
    }
}
