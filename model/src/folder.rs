//! What lies beside the weights in a model's folder.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::LoadError;

/// The object in a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|e| LoadError::Json { path: path.into(), problem: e.to_string() })
}

/// The names of the GGUF files in a folder.
pub(crate) fn gguf_files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with(".gguf"));
    names.sort();
    names
}
