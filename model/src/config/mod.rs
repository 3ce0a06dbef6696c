//! What a model is, in numbers and switches: one decoder block computes every family.

mod gguf;
mod huggingface;
mod json;
mod positions;

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::error::LoadError;
use crate::folder::gguf_files;
pub use positions::{RopeConfig, RopeScaling};

/// The families that are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, and what was exported as one.
    Llama,
    /// Mistral: a window over all blocks, in its first version.
    Mistral,
    /// Qwen 2 and 2.5: biased queries, keys and values.
    Qwen2,
    /// Qwen 3, dense: normed queries and keys.
    Qwen3,
    /// Gemma 2: capped scores and logits, windows by turns, norms after attention and feed-forward.
    Gemma2,
    /// Gemma 3, its text part: normed queries and keys, another rotary base in blocks with a window.
    Gemma3,
    /// Phi 3 and 4: fused projections, long rope, part of a head turns.
    Phi3,
}

/// What a feed-forward layer gates with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// What one block does its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// How many positions a query sees, its own among them; `None`: all before it.
    pub window: Option<usize>,
    /// Which of [`Config::ropes`] turns its queries and keys.
    pub rope: usize,
}

/// The numbers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub inner: usize,
    /// The blocks.
    pub blocks: Vec<BlockConfig>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square in a norm.
    pub norm_eps: f64,
    /// Of the feed-forward layers.
    pub activation: Activation,
    /// What a score is multiplied with.
    pub query_scale: f32,
    /// Scores are `cap * tanh(score / cap)`.
    pub attention_cap: Option<f32>,
    /// So are logits.
    pub logit_cap: Option<f32>,
    /// What a token's embedding is multiplied with.
    pub embedding_scale: Option<f32>,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output has one.
    pub output_bias: bool,
    /// Whether each head of queries and keys is normed before it turns.
    pub head_norms: bool,
    /// Whether what attention and feed-forward give is normed before it is added.
    pub post_norms: bool,
    /// Rotary frequencies; blocks choose.
    pub ropes: Vec<RopeConfig>,
    /// Tokens.
    pub vocabulary: usize,
    /// Positions the model is served with: what it was made for, or less if asked.
    pub context: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Tokens that end a text, from `generation_config.json`, else from `config.json`; or from a GGUF file's metadata.
    pub eos: Vec<u32>,
}

impl Config {
    /// Reads `config.json` and, if there, `generation_config.json` of a model folder; or the metadata of a GGUF file.
    ///
    /// # Errors
    /// When a file cannot be read, or names something that is not supported.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        if path.is_file() {
            return Self::of(&Checkpoint::open(path)?);
        }
        match gguf_files(path) {
            files if files.is_empty() || path.join("config.json").exists() => huggingface::read(path),
            files => Err(LoadError::FolderOfFiles { path: path.into(), files: files.join(", ") }),
        }
    }

    /// The configuration that belongs to a checkpoint.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        match checkpoint.gguf() {
            Some(gguf) => gguf::read(checkpoint, gguf),
            None => huggingface::read(checkpoint.path()),
        }
    }

    /// Serves no more than `positions`. Long-rope models choose their frequencies by it, once and for all positions.
    pub(crate) fn limit_context(&mut self, positions: Option<usize>) {
        self.context = self.context.min(positions.unwrap_or(usize::MAX)).max(1);
    }

    /// Parameters, as a model card counts them: tied weights once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let (hidden, inner) = (self.hidden as u64, self.inner as u64);
        let (queries, keys) = ((self.heads * self.head_dim) as u64, (self.kv_heads * self.head_dim) as u64);
        let biases = if self.qkv_bias { queries + 2 * keys } else { 0 } + if self.output_bias { hidden } else { 0 };
        let norms = hidden * if self.post_norms { 4 } else { 2 };
        let norms = norms + if self.head_norms { 2 * self.head_dim as u64 } else { 0 };
        let block = 2 * (queries + keys) * hidden + 3 * hidden * inner + norms + biases;
        let heads = if self.tied { 1 } else { 2 };
        self.blocks.len() as u64 * block + heads * self.vocabulary as u64 * hidden + hidden
    }

    /// All that a result depends on, for the fingerprint.
    pub(crate) fn canonical(&self) -> String {
        format!("{:?}", Self { eos: Vec::new(), ..self.clone() })
    }

    /// Values in the queries, keys and values of a row.
    pub(crate) fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Values that a row attends.
    pub(crate) fn attended(&self) -> usize {
        self.heads * self.head_dim
    }
}
