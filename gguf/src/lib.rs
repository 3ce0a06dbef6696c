//! The GGUF file format: metadata and the table of tensors, read from bytes and checked, and written.
//!
//! A file may come from anywhere, so nothing that it says about sizes is believed: every length is held against the
//! bytes that are left before memory is asked for, and every tensor lies inside the file.
//!
//! Absent on purpose: I/O, floating point (what the blocks of a type mean is the reader's affair).

#![forbid(unsafe_code)]

mod reader;
mod types;
mod value;
mod writer;

use std::collections::BTreeMap;
use std::ops::Range;

use reader::Reader;
pub use types::TensorType;
pub use value::Value;
pub use writer::{ALIGNMENT, write_head};

/// What can be wrong with a file, one sentence each; the file's name is the caller's to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The first four bytes are others.
    #[error("it does not begin with `GGUF`")]
    Magic,
    /// A version that is not read.
    #[error("it has version {0}, and versions 2 and 3 of little-endian files are read")]
    Version(u32),
    /// The file ends too early.
    #[error("it ends inside {0}")]
    Truncated(String),
    /// A size that cannot be true of a file this long.
    #[error("{what} claims {claimed}, more than such a file can hold")]
    Absurd {
        /// What claims it.
        what: String,
        /// How much.
        claimed: u64,
    },
    /// Something malformed.
    #[error("{what} {problem}")]
    Malformed {
        /// What is malformed.
        what: String,
        /// How.
        problem: String,
    },
}

/// A tensor of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Outermost dimension first: `[rows, values of a row]`.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub kind: TensorType,
    /// Where in the file its bytes are.
    pub bytes: Range<usize>,
}

/// A file's metadata and tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gguf {
    /// Keys and values.
    pub metadata: BTreeMap<String, Value>,
    /// Names and tensors.
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Reads the head of a file; `file` is all of it.
    ///
    /// # Errors
    /// When it is no GGUF file, is truncated, or contradicts itself.
    pub fn read(file: &[u8]) -> Result<Self, GgufError> {
        Self::read_head(file, file.len() as u64)
    }

    /// Reads the head of a file of `length` bytes from its first bytes; they are too few if it is [`Truncated`] or
    /// [`Absurd`].
    ///
    /// [`Truncated`]: GgufError::Truncated
    /// [`Absurd`]: GgufError::Absurd
    ///
    /// # Errors
    /// As [`Gguf::read`].
    pub fn read_head(first: &[u8], length: u64) -> Result<Self, GgufError> {
        let mut reader = Reader::new(first);
        if reader.take(4, "the magic number")? != b"GGUF" {
            return Err(GgufError::Magic);
        }
        let version = reader.u32("the version")?;
        if !matches!(version, 2 | 3) {
            return Err(GgufError::Version(version));
        }
        // The least that a tensor and a pair take.
        let tensors = reader.count("the number of tensors", 8 + 4 + 8 + 4 + 8)?;
        let pairs = reader.count("the number of metadata pairs", 8 + 4 + 1)?;
        let mut gguf = Self::default();
        for _ in 0..pairs {
            let key = reader.name("a metadata key")?;
            let kind = reader.u32(&key)?;
            let value = reader.value(kind, &key, 0)?;
            if gguf.metadata.insert(key.clone(), value).is_some() {
                return Err(GgufError::Malformed {
                    what: format!("the key `{key}`"),
                    problem: "is there twice".into(),
                });
            }
        }
        let mut table = Vec::with_capacity(tensors);
        for _ in 0..tensors {
            table.push(reader.tensor()?);
        }
        let alignment = match gguf.metadata.get("general.alignment") {
            None => 32,
            Some(value) => value.as_u64().filter(|a| a.is_power_of_two() && *a <= 1 << 20).ok_or_else(|| {
                GgufError::Malformed { what: "`general.alignment`".into(), problem: "is no power of two".into() }
            })?,
        };
        let data = (reader.position() as u64).next_multiple_of(alignment);
        for (name, shape, kind, offset) in table {
            let what = || format!("tensor `{name}`");
            if !offset.is_multiple_of(alignment) {
                return Err(GgufError::Malformed { what: what(), problem: format!("begins at {offset}, unaligned") });
            }
            if !kind.known() {
                return Err(GgufError::Malformed {
                    what: what(),
                    problem: format!("is of type {kind}, which is not known"),
                });
            }
            let values = shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
            let width = shape.last().copied().unwrap_or(1);
            let size = values.and_then(|values| kind.bytes(values, width));
            let end = size.and_then(|size| data.checked_add(offset)?.checked_add(size));
            let Some(end) = end else {
                return Err(GgufError::Malformed {
                    what: what(),
                    problem: format!("has the shape {shape:?}, which is no whole number of {kind} blocks"),
                });
            };
            if end > length {
                return Err(GgufError::Truncated(what()));
            }
            let bytes = (data + offset) as usize..end as usize;
            let shape = shape.into_iter().map(|d| d as usize).collect();
            if gguf.tensors.insert(name.clone(), TensorInfo { shape, kind, bytes }).is_some() {
                return Err(GgufError::Malformed { what: what(), problem: "is there twice".into() });
            }
        }
        Ok(gguf)
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }
}
