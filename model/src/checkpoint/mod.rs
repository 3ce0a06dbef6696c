//! Tensors of a Hugging Face folder, single or sharded, read row by row from mapped files.

#![allow(unsafe_code)] // Mapping a file: see the SAFETY comment.

mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype as Stored, SafeTensors};

use crate::config::{Config, Family, read_json};
use crate::error::LoadError;
pub(crate) use names::{Names, Part, parts, shape};

/// The files of a checkpoint and where in them each tensor is.
pub(crate) struct Checkpoint {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Clone)]
struct Entry {
    file: usize,
    stored: Stored,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// A tensor of one or two dimensions.
#[derive(Clone)]
pub(crate) struct Tensor<'a> {
    pub(crate) path: &'a Path,
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) stored: Stored,
    pub(crate) bytes: &'a [u8],
}

impl Checkpoint {
    pub(crate) fn open(folder: &Path) -> Result<Self, LoadError> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let mut this = Self { folder: folder.into(), files: Vec::new(), tensors: BTreeMap::new() };
        if single.exists() {
            this.add(single, None)?;
        } else if index.exists() {
            let json = read_json(&index)?;
            let map = json.get("weight_map").and_then(|m| m.as_object());
            let map = map.ok_or_else(|| LoadError::Key {
                path: index.clone(),
                key: "weight_map".into(),
                problem: "is missing; download the index again".into(),
            })?;
            let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (tensor, shard) in map {
                let shard = shard.as_str().filter(|s| !s.contains(['/', '\\'])).ok_or_else(|| LoadError::Key {
                    path: index.clone(),
                    key: tensor.clone(),
                    problem: "names no file of the folder; download the index again".into(),
                })?;
                shards.entry(shard).or_default().push(tensor);
            }
            for (shard, tensors) in shards {
                this.add(folder.join(shard), Some(&tensors))?;
            }
        } else if folder.is_dir() {
            return Err(LoadError::NoWeights { path: folder.into() });
        } else {
            return Err(LoadError::Read { path: folder.into(), source: std::io::ErrorKind::NotFound.into() });
        }
        Ok(this)
    }

    /// Adds a file; with an index, the tensors that it promises must be there.
    fn add(&mut self, path: PathBuf, promised: Option<&[&str]>) -> Result<(), LoadError> {
        let read = |source| LoadError::Read { path: path.clone(), source };
        let file = File::open(&path).map_err(read)?;
        // SAFETY: the file must not change while it is mapped. That is how weights are read everywhere, and a model
        // folder that changes under a running server is beyond what any reader could answer for.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
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
            let entry = Entry { file: self.files.len(), stored: info.dtype, shape: info.shape.clone(), bytes };
            self.tensors.insert(text_part(&name), entry);
        }
        if let Some(missing) = promised.unwrap_or(&[]).iter().find(|name| !self.tensors.contains_key(**name)) {
            return Err(LoadError::Missing { path, tensor: (*missing).into() });
        }
        self.files.push((path, map));
        Ok(())
    }

    /// Bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.values().map(|e| e.bytes.len() as u64).sum()
    }

    /// What the tensors of a model of this configuration are called here.
    pub(crate) fn names(&self, config: &Config) -> Names {
        Names::new(config)
    }

    /// Whether the weights of norms are stored less one.
    pub(crate) fn norms_less_one(&self, config: &Config) -> bool {
        matches!(config.family, Family::Gemma2 | Family::Gemma3)
    }

    /// All tensors are there in the right shapes, and no other that would change the result.
    pub(crate) fn check(&self, config: &Config) -> Result<(), LoadError> {
        let expected = self.names(config).expected(config);
        for (name, shape) in &expected {
            self.tensor(name, shape)?;
        }
        let ignored = |name: &str| name.ends_with("rotary_emb.inv_freq") || config.tied && name == "lm_head.weight";
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        match self.tensors.keys().find(|name| !known.contains(name.as_str()) && !ignored(name)) {
            None => Ok(()),
            Some(tensor) => Err(LoadError::Unknown { path: self.folder.clone(), tensor: tensor.into() }),
        }
    }

    /// The tensor `name`, which must have the shape `wanted`.
    pub(crate) fn tensor(&self, name: &str, wanted: &[usize]) -> Result<Tensor<'_>, LoadError> {
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| LoadError::Missing { path: self.folder.clone(), tensor: name.into() })?;
        let (path, map) = &self.files[entry.file];
        if entry.shape != wanted {
            return Err(LoadError::Shape {
                path: path.clone(),
                tensor: name.into(),
                found: entry.shape.clone(),
                wanted: wanted.into(),
            });
        }
        if !matches!(entry.stored, Stored::F32 | Stored::F16 | Stored::BF16) {
            let found = format!("{:?}", entry.stored);
            return Err(LoadError::Dtype { path: path.clone(), tensor: name.into(), found });
        }
        Ok(Tensor {
            path,
            name: name.into(),
            shape: entry.shape.clone(),
            stored: entry.stored,
            bytes: &map[entry.bytes.clone()],
        })
    }
}

/// The name without what the text part of an image model has before it.
fn text_part(name: &str) -> String {
    match (name.strip_prefix("language_model."), name.strip_prefix("model.language_model.")) {
        (Some(rest), _) => rest.to_owned(),
        (_, Some(rest)) => format!("model.{rest}"),
        _ => name.to_owned(),
    }
}

impl Tensor<'_> {
    /// Widens row `index` (of a vector: all of it) into the start of `to`; refuses what is not finite.
    pub(crate) fn row(&self, index: usize, to: &mut [f32]) -> Result<(), LoadError> {
        let width = self.shape.last().copied().unwrap_or(0);
        let to = &mut to[..width];
        let size = if self.stored == Stored::F32 { 4 } else { 2 };
        let bytes = &self.bytes[index * width * size..(index + 1) * width * size];
        match self.stored {
            Stored::F32 => {
                for (to, b) in to.iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Stored::F16 => {
                for (to, b) in to.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            _ => {
                for (to, b) in to.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
        let finite = to.iter().fold(true, |all, x| all & x.is_finite());
        if finite { Ok(()) } else { Err(LoadError::NotFinite { path: self.path.into(), tensor: self.name.clone() }) }
    }
}
