//! Tensors of a model, a Hugging Face folder or a GGUF file, read row by row from mapped files.

#![allow(unsafe_code)] // Mapping a file: see the SAFETY comment.

mod tensor;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use cascadia_gguf::Gguf;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;

use crate::error::LoadError;
use crate::folder::{gguf_files, read_json};
pub(crate) use tensor::{Stored, Tensor};

/// What stands in the place of a large file that was not downloaded.
const LFS: &[u8; 23] = b"version https://git-lfs";

/// The files of a checkpoint and where in them each tensor is.
pub(crate) struct Checkpoint {
    /// The folder or the file.
    path: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
    /// The head of a GGUF file.
    gguf: Option<Gguf>,
}

struct Entry {
    file: usize,
    /// Or the name of a type that is not read.
    stored: Result<Stored, String>,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Checkpoint {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let mut this = Self { path: path.into(), files: Vec::new(), tensors: BTreeMap::new(), gguf: None };
        if path.is_file() {
            if path.extension().is_some_and(|e| ["safetensors", "json", "bin"].iter().any(|other| e == *other)) {
                return Err(LoadError::PartOfFolder { path: path.into() });
            }
            this.add_gguf(path.into())?;
            return Ok(this);
        }
        let single = path.join("model.safetensors");
        let index = path.join("model.safetensors.index.json");
        if single.exists() {
            this.add_safetensors(single, None)?;
        } else if index.exists() {
            for (shard, tensors) in shards(&index)? {
                this.add_safetensors(path.join(shard), Some(&tensors))?;
            }
        } else if path.is_dir() {
            return Err(match gguf_files(path) {
                files if files.is_empty() => LoadError::NoWeights { path: path.into() },
                files => LoadError::FolderOfFiles { path: path.into(), files: files.join(", ") },
            });
        } else {
            return Err(LoadError::Read { path: path.into(), source: std::io::ErrorKind::NotFound.into() });
        }
        Ok(this)
    }

    /// The head of a GGUF file, if it is one.
    pub(crate) fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// The folder or the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn map(path: &Path) -> Result<Mmap, LoadError> {
        let read = |source| LoadError::Read { path: path.into(), source };
        let mut file = File::open(path).map_err(read)?;
        let mut first = [0; LFS.len()];
        if file.read_exact(&mut first).is_ok() && first == *LFS {
            let problem = "it is a Git LFS pointer; run `git lfs pull`".into();
            return Err(LoadError::Damaged { path: path.into(), problem });
        }
        // SAFETY: the file must not change while it is mapped. That is how weights are read everywhere, and a model
        // that changes under a running server is beyond what any reader could answer for.
        unsafe { Mmap::map(&file) }.map_err(read)
    }

    fn add_gguf(&mut self, path: PathBuf) -> Result<(), LoadError> {
        let map = Self::map(&path)?;
        let mut gguf = Gguf::read(&map).map_err(|e| LoadError::Gguf { path: path.clone(), problem: e.to_string() })?;
        if gguf.get("split.count").and_then(cascadia_gguf::Value::as_u64).is_some_and(|n| n > 1) {
            let problem = "says that the file is one of several; merge them with `gguf-split --merge`".into();
            return Err(LoadError::Key { path, key: "split.count".into(), problem });
        }
        for (name, info) in std::mem::take(&mut gguf.tensors) {
            let stored = Stored::of_gguf(info.kind);
            self.tensors.insert(name, Entry { file: self.files.len(), stored, shape: info.shape, bytes: info.bytes });
        }
        self.gguf = Some(gguf);
        self.files.push((path, map));
        Ok(())
    }

    /// Adds a file; with an index, the tensors that it promises must be there.
    fn add_safetensors(&mut self, path: PathBuf, promised: Option<&[String]>) -> Result<(), LoadError> {
        let map = Self::map(&path)?;
        let damaged = |problem: String| LoadError::Damaged { path: path.clone(), problem };
        let (header, meta): (usize, Metadata) = SafeTensors::read_metadata(&map).map_err(|e| damaged(e.to_string()))?;
        for (name, info) in meta.tensors() {
            if name.contains("vision_tower.") || name.contains("multi_modal_projector.") {
                continue;
            }
            let bytes = 8 + header + info.data_offsets.0..8 + header + info.data_offsets.1;
            if bytes.end > map.len() {
                return Err(damaged(format!("`{name}` ends at byte {} of {}", bytes.end, map.len())));
            }
            let stored = Stored::of_safetensors(info.dtype);
            let entry = Entry { file: self.files.len(), stored, shape: info.shape.clone(), bytes };
            if let Some(other) = self.tensors.insert(text_part(&name), entry) {
                let other = self.files.get(other.file).map_or(&path, |(path, _)| path).clone();
                return Err(LoadError::Twice { path, tensor: name, other });
            }
        }
        let absent = |name: &&String| {
            let name = text_part(name);
            name.starts_with("model.layers.") && !self.tensors.contains_key(&name)
        };
        if let Some(missing) = promised.unwrap_or(&[]).iter().find(absent) {
            return Err(LoadError::Missing { path, tensor: missing.clone() });
        }
        self.files.push((path, map));
        Ok(())
    }

    /// Bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.values().map(|e| e.bytes.len() as u64).sum()
    }

    /// The shape of a tensor, if it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// How a tensor is stored, if it is there and read.
    pub(crate) fn stored(&self, name: &str) -> Option<Stored> {
        self.tensors.get(name).and_then(|entry| entry.stored.as_ref().ok().copied())
    }

    /// What its tensors are called.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor `name`, which must have the shape `wanted`.
    pub(crate) fn tensor(&self, name: &str, wanted: &[usize]) -> Result<Tensor<'_>, LoadError> {
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| LoadError::Missing { path: self.path.clone(), tensor: name.into() })?;
        let (path, map) = &self.files[entry.file];
        if entry.shape != wanted {
            return Err(LoadError::Shape {
                path: path.clone(),
                tensor: name.into(),
                found: entry.shape.clone(),
                wanted: wanted.into(),
            });
        }
        let stored = match &entry.stored {
            Ok(stored) => *stored,
            Err(found) => {
                return Err(LoadError::Dtype { path: path.clone(), tensor: name.into(), found: found.clone() });
            }
        };
        let (shape, bytes) = (entry.shape.clone(), &map[entry.bytes.clone()]);
        Ok(Tensor { path, name: name.into(), shape, stored, bytes })
    }
}

/// The files that an index names, each with its tensors.
fn shards(index: &Path) -> Result<BTreeMap<String, Vec<String>>, LoadError> {
    let wrong = |key: &str, problem: &str| LoadError::Key {
        path: index.into(),
        key: key.into(),
        problem: format!("{problem}; download the index again"),
    };
    let json = read_json(index)?;
    let map = json.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| wrong("weight_map", "is missing"))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().filter(|s| !s.contains(['/', '\\']));
        let shard = shard.ok_or_else(|| wrong(tensor, "names no file of the folder"))?;
        shards.entry(shard.into()).or_default().push(tensor.clone());
    }
    Ok(shards)
}

/// The name without what the text part of an image model has before it.
fn text_part(name: &str) -> String {
    match (name.strip_prefix("language_model."), name.strip_prefix("model.language_model.")) {
        (Some(rest), _) => rest.to_owned(),
        (_, Some(rest)) => format!("model.{rest}"),
        _ => name.to_owned(),
    }
}
