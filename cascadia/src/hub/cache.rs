//! The cache of Hugging Face's tools: `models--owner--name/{refs,blobs,snapshots/COMMIT}`, files as links to blobs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::HubError;
use crate::model_id::ModelId;

/// One repository's folder.
pub(super) struct Cache {
    folder: PathBuf,
}

/// Names the files that a revision was fetched with, so that half a model is not taken for a whole one.
const WHOLE: &str = ".cascadia-whole";

impl Cache {
    pub(super) fn of(root: &Path, id: &ModelId) -> Self {
        Self { folder: root.join(format!("models--{}", id.repository.replace('/', "--"))) }
    }

    /// Where a commit's files are.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Whether a file of a commit is here.
    pub(super) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Where the content of that ETag is kept, and where it grows.
    pub(super) fn blob(&self, etag: &str) -> Result<(PathBuf, PathBuf), HubError> {
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(|error| HubError::disk(&blobs, &error))?;
        Ok((blobs.join(etag), blobs.join(format!("{etag}.incomplete"))))
    }

    /// Takes the lock of a blob, waiting for whoever has it: two nodes of a machine may start at once.
    pub(super) fn lock(&self, etag: &str) -> Result<fs::File, HubError> {
        let locks = self.folder.join(".locks");
        let path = locks.join(format!("{etag}.lock"));
        let lock = fs::create_dir_all(&locks).and_then(|()| fs::File::create(&path)).and_then(|file| {
            file.lock()?;
            Ok(file)
        });
        lock.map_err(|error| HubError::disk(&path, &error))
    }

    /// Shows a blob as a file of a commit.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let folder = self.snapshot(commit);
        let link = folder.join(file);
        let linked = fs::create_dir_all(&folder).and_then(|()| match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), &link),
        });
        linked.map_err(|error| HubError::disk(&link, &error))
    }

    /// Says that a revision is this commit, of which these files are here.
    pub(super) fn point(&self, revision: &str, commit: &str, files: &[String]) -> Result<(), HubError> {
        let (reference, whole) = (self.reference(revision), self.snapshot(commit).join(WHOLE));
        let mut held: Vec<String> = self.list(commit);
        held.extend(files.iter().cloned());
        held.sort();
        held.dedup();
        let parent = reference.parent().map_or(Ok(()), fs::create_dir_all);
        let written =
            parent.and_then(|()| fs::write(&whole, held.join("\n"))).and_then(|()| fs::write(&reference, commit));
        written.map_err(|error| HubError::disk(&reference, &error))
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }

    fn list(&self, commit: &str) -> Vec<String> {
        let list = fs::read_to_string(self.snapshot(commit).join(WHOLE)).unwrap_or_default();
        list.lines().map(str::to_owned).collect()
    }

    /// The model, if all of it is here: what we fetched by our own list, what others fetched by what is in the folder.
    pub(super) fn whole(&self, id: &ModelId) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.reference(&id.revision)).unwrap_or_else(|_| id.revision.clone());
        let folder = self.snapshot(commit.trim());
        let names = fs::read_dir(&folder).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let names: Vec<String> = names.collect();
        let files = id.choose(&names).ok()?;
        let list = if id.file.is_some() { Vec::new() } else { self.list(commit.trim()) };
        let all = files.iter().chain(&list).all(|file| folder.join(file).is_file());
        all.then(|| if id.file.is_some() { folder.join(&files[0]) } else { folder })
    }
}
