//! Where a model is: on this machine, or on the Hugging Face hub and then in its cache.

#[cfg(feature = "hub")]
mod with_hub {
    use std::path::{Path, PathBuf};

    use crate::Failure;
    use crate::hub::{Hub, ModelId};
    use crate::load::{Report, bar};

    fn hub() -> Result<Hub, Failure> {
        Hub::of_environment(|name| std::env::var(name).ok())
    }

    /// The folder or file of a model; one of the hub is fetched first, with a progress bar for each file.
    ///
    /// # Errors
    /// When it is to be had from the hub and is not: one sentence with the cure.
    pub fn locate(model: &Path, report: &mut Report<'_>) -> Result<PathBuf, Failure> {
        let Some(id) = ModelId::of(model) else { return Ok(model.to_owned()) };
        let hub = hub()?;
        tracing::info!(model = %id, endpoint = hub.endpoint, cache = %hub.cache.display(), "a model of the hub");
        let (mut current, mut shown) = (String::new(), bar(0, ""));
        let path = hub.fetch(&id, &mut |file, done, total| {
            if file != current {
                shown.finish();
                current = file.to_owned();
                shown = bar(total, "{msg} {bar:30} {bytes}/{total_bytes} {eta}");
                shown.set_message(format!("fetching {file}"));
            }
            shown.set_position(done);
            report(&format!("fetching {file}"), done, total);
        });
        shown.finish();
        path
    }

    /// Where a model is if nobody is asked; `None`: it would have to be fetched.
    #[must_use]
    pub fn on_disk(model: &Path) -> Option<PathBuf> {
        match ModelId::of(model) {
            Some(id) => hub().ok()?.cached(&id),
            None => Some(model.to_owned()),
        }
    }

    /// The name that a model of the hub is served under.
    #[must_use]
    pub fn name(model: &Path) -> Option<String> {
        ModelId::of(model).map(|id| id.served().to_owned())
    }
}

#[cfg(not(feature = "hub"))]
mod without {
    use std::path::{Path, PathBuf};

    use crate::Failure;
    use crate::load::Report;

    /// The path itself: this binary knows no hub.
    ///
    /// # Errors
    /// Never.
    pub fn locate(model: &Path, _: &mut Report<'_>) -> Result<PathBuf, Failure> {
        Ok(model.to_owned())
    }

    /// The path itself.
    #[must_use]
    pub fn on_disk(model: &Path) -> Option<PathBuf> {
        Some(model.to_owned())
    }

    /// None: this binary knows no hub.
    #[must_use]
    pub fn name(_: &Path) -> Option<String> {
        None
    }
}

#[cfg(feature = "hub")]
pub use with_hub::{locate, name, on_disk};
#[cfg(not(feature = "hub"))]
pub use without::{locate, name, on_disk};
