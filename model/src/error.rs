//! What can be wrong with a model folder, each in one sentence with the cure.

use std::path::PathBuf;

/// A model folder that cannot be loaded (or padded).
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file could not be read.
    #[error(
        "cannot read {path}: {source}; point to a Hugging Face model folder with config.json and *.safetensors, or to a GGUF file"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}; choose a folder with room that may be written to")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file that is none.
    #[error("{path} is not valid JSON ({problem}); download or export it again")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        problem: String,
    },
    /// An architecture that this crate does not compute.
    #[error("{path} names the architecture {found}, which is not supported; these are: {supported}")]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What it names.
        found: String,
        /// What it could name.
        supported: String,
    },
    /// A key of the configuration that is missing, malformed or not supported.
    #[error("{path}: `{key}` {problem}")]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong, and the cure.
        problem: String,
    },
    /// A file of a Hugging Face folder where the folder was meant.
    #[error("{path} is one file of a Hugging Face model; name the folder that it is in")]
    PartOfFolder {
        /// The file.
        path: PathBuf,
    },
    /// A folder without config.json or weights, but of GGUF files, each of which is a model.
    #[error("{path} is no whole Hugging Face folder but holds GGUF files; name one of them: {files}")]
    FolderOfFiles {
        /// The folder.
        path: PathBuf,
        /// The files, separated by commas.
        files: String,
    },
    /// There are no weights in the folder.
    #[error("{path} holds neither model.safetensors nor model.safetensors.index.json; put the weights there")]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A safetensors file that is truncated or malformed.
    #[error("{path} is truncated or not a safetensors file ({problem}); download it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        problem: String,
    },
    /// A GGUF file that is truncated or malformed.
    #[error("{path} is damaged or no GGUF file ({problem}); download it again")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        problem: String,
    },
    /// A tensor that the configuration needs.
    #[error("{path} has no tensor `{tensor}`; the weights do not belong to this config.json, or a shard is missing")]
    Missing {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of which nobody knows which one is meant.
    #[error("{path} holds the tensor `{tensor}`, and so does {other}; which one is meant? Download the folder again")]
    Twice {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it is too.
        other: PathBuf,
    },
    /// A tensor that would change the result, and that this crate does not know.
    #[error(
        "{path} holds the tensor `{tensor}`, which a model of this configuration does not have; this variant is not supported"
    )]
    Unknown {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of the wrong shape.
    #[error(
        "{path}: tensor `{tensor}` has the shape {found:?}, and config.json asks for {wanted:?}; use the pair as exported"
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows from the configuration.
        wanted: Vec<usize>,
    },
    /// A tensor of a type that is not read.
    #[error(
        "{path}: tensor `{tensor}` is of type {found}, which is not read; F32, F16, BF16 are, in GGUF also Q8_0, Q4_0, Q4_K, Q5_K and Q6_K"
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A weight that is infinite, not a number, or beyond what Q8_0 can scale.
    #[error(
        "{path}: tensor `{tensor}` holds a weight that is not finite or too large for the dtype; the checkpoint is damaged"
    )]
    NotFinite {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The model does not fit into memory.
    #[error("{bytes} bytes of memory for the weights are not to be had ({source}); use a smaller model or more memory")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// What holds the weights did not take them.
    #[error("the weights cannot be placed: {0}; use a smaller model, or a device with more memory")]
    Place(String),
    /// A model that cannot be padded as asked.
    #[error("cannot pad: {0}")]
    Pad(String),
}
