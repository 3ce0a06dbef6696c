//! Models of the Hugging Face hub: named `owner/name`, fetched once, kept where Hugging Face's own tools keep them.
//!
//! [`environment`] where the hub is and who asks · [`choose`] which files a model is · [`cache`] the folder of that layout ·
//! [`client`] HTTP with redirects, ranges and tokens · [`digest`] whether what came is what the hub has · here: what to do
//! without a network.

mod cache;
mod choose;
mod client;
mod digest;
mod environment;
mod error;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use cache::Cache;
use client::Client;
use digest::Content;
pub use environment::Hub;
use error::HubError;

use crate::model_id::ModelId;
use crate::progress::Report;
use crate::terminal::Failure;

impl Hub {
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
            Ok(fetched) => {
                if !fetched.unchecked.is_empty() {
                    let (files, endpoint) = (fetched.unchecked.join(", "), &self.endpoint);
                    tracing::warn!(
                        model = %id,
                        files,
                        endpoint,
                        "nothing tells whether these files came unchanged: the ETags of this hub are no digests"
                    );
                }
                return Ok(fetched.path);
            }
            Err(error @ HubError::Unreachable { .. }) => error,
            Err(error) => return Err(error.to_string().into()),
        };
        let cached = self.cached(id).ok_or_else(|| unreachable.to_string())?;
        tracing::warn!(model = %id, endpoint = self.endpoint, "the hub cannot be reached; the cached model is used");
        Ok(cached)
    }

    async fn download(&self, id: &ModelId, report: &mut Report<'_>) -> Result<Fetched, HubError> {
        let client = Client::new(self, id);
        let revision = client.revision().await?;
        let files = id.choose(&revision.files)?;
        let cache = Cache::of(&self.cache, id);
        let mut unchecked = Vec::new();
        for file in &files {
            if !cache.has(&revision.commit, file)
                && client.fetch(&revision.commit, file, &cache, report).await? == Content::Unknown
            {
                unchecked.push(file.clone());
            }
        }
        let folder = cache.snapshot(&revision.commit);
        let model = if id.file.is_some() { folder.join(&files[0]) } else { folder };
        // A cache that holds it all already may be one that cannot be written.
        if cache.whole(id).as_ref() != Some(&model) {
            cache.point(&id.revision, &revision.commit, &files)?;
        }
        Ok(Fetched { path: model, unchecked })
    }
}

/// A model that is on this machine now.
#[derive(Debug)]
struct Fetched {
    path: PathBuf,
    /// Files that came just now, of which the hub says nothing that their content could be checked by.
    unchecked: Vec<String>,
}
