//! Where a model is: on this machine, or on the Hugging Face hub and then in its cache.

use std::path::{Path, PathBuf};

use crate::model_id::ModelId;
use crate::terminal::Failure;

/// The name that a model of the hub is served under.
#[must_use]
pub fn name(model: &Path) -> Option<String> {
    ModelId::of(model).map(|id| id.served().to_owned())
}

/// Where a model is if nobody is asked; `None`: it would have to be fetched.
///
/// # Errors
/// When it is not here and cannot be fetched: one sentence with the cure.
pub fn on_disk(model: &Path) -> Result<Option<PathBuf>, Failure> {
    match ModelId::of(model) {
        Some(id) => hub::cached(&id),
        None => Ok(Some(model.to_owned())),
    }
}

/// What a model is taken for that is no path here, for whoever may have mistyped one.
#[must_use]
pub fn taken_for(model: &Path) -> String {
    let near = match model.parent().filter(|parent| parent.is_dir()) {
        Some(parent) => format!("the folder {} is here without it", parent.display()),
        None => "no such path is here".to_owned(),
    };
    format!("{}, which is taken for a model of the Hugging Face hub and is not in its cache ({near})", model.display())
}

#[cfg(feature = "hub")]
mod hub {
    use std::path::{Path, PathBuf};

    use crate::hub::Hub;
    use crate::model_id::ModelId;
    use crate::progress::Report;
    use crate::terminal::{Failure, bar};

    fn hub() -> Result<Hub, Failure> {
        Hub::of_environment(|name| std::env::var(name).ok())
    }

    pub(super) fn cached(id: &ModelId) -> Result<Option<PathBuf>, Failure> {
        hub()?.cached_or_to_fetch(id)
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
}

#[cfg(not(feature = "hub"))]
mod hub {
    use std::path::{Path, PathBuf};

    use crate::model_id::ModelId;
    use crate::progress::Report;
    use crate::terminal::Failure;

    pub(super) fn cached(id: &ModelId) -> Result<Option<PathBuf>, Failure> {
        Err(format!(
            "{id} is no path on this machine, and this binary fetches nothing from the Hugging Face hub: it was built without \
             the feature `hub`; fetch the model by other means and name its folder"
        )
        .into())
    }

    /// The path itself: this binary knows no hub.
    ///
    /// # Errors
    /// When the model would have to come from there.
    pub fn locate(model: &Path, _: &mut Report<'_>) -> Result<PathBuf, Failure> {
        match ModelId::of(model) {
            None => Ok(model.to_owned()),
            Some(id) => cached(&id).map(|_| model.to_owned()),
        }
    }
}

pub use hub::locate;

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "hub"))]
    #[test]
    fn a_binary_without_the_hub_says_so() {
        for found in [locate(Path::new("owner/name"), &mut |_, _, _| {}).map(Some), on_disk(Path::new("owner/name"))] {
            let error = found.expect_err("nobody can be asked").to_string();
            assert!(error.contains("owner/name") && error.contains("feature `hub`"), "{error}");
        }
        assert_eq!(on_disk(Path::new("/a/b")).expect("a path"), Some("/a/b".into()));
    }

    #[test]
    fn a_mistyped_path_is_shown_as_what_it_is_taken_for() {
        let said = taken_for(Path::new("src/expret"));
        assert!(said.contains("src/expret, which is taken for") && said.contains("the folder src is here"), "{said}");
        assert!(taken_for(Path::new("no/such")).contains("no such path is here"));
    }
}
