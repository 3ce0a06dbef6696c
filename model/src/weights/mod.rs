//! A model's weights, packed for the kernels and shared by the engines of a process.

mod formats;
mod loader;
mod plain;
mod source;

use std::path::Path;
use std::sync::Arc;

use crate::arena::{Arena, Slab};
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::LoadError;
use crate::kv::{KvDtype, page_bytes};
use crate::matrix::Matrix;
use crate::quant::Dtype;
use crate::rope::Rope;
use formats::Formats;
use loader::Loader;
pub use plain::{PlainLayer, PlainWeights};
use source::Source;

/// Changes whenever the bits of a result do, for any input.
const ARITHMETIC: &str = "cascadia-cpu-1";

/// How far loading (or padding) has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is being done, for a person.
    pub stage: &'a str,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// What weights are held in.
    pub dtype: Dtype,
    /// Most positions to serve; `None`: what the model was made for. Long-rope models take the frequencies for short
    /// contexts only if this is no more than their original one.
    pub context: Option<usize>,
}

impl From<Dtype> for LoadOptions {
    fn from(dtype: Dtype) -> Self {
        Self { dtype, context: None }
    }
}

/// A loaded model. Engines of one process share it.
///
/// Quantised embeddings stay so, and a token's row is the dequantised one: a tied head multiplies with
/// exactly what was looked up, and no second copy is held.
pub struct Weights {
    pub(crate) config: Config,
    pub(crate) dtype: Dtype,
    pub(crate) embedding: Matrix,
    /// `None` where the embedding is the head.
    pub(crate) head: Option<Matrix>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Slab<f32>,
    pub(crate) ropes: Vec<Rope>,
    parameters: u64,
    fingerprint: String,
}

/// One block.
pub(crate) struct Layer {
    pub(crate) attention_norm: Slab<f32>,
    /// Queries, keys, values: together, or each for itself.
    pub(crate) qkv: Vec<Projection>,
    pub(crate) head_norms: Option<HeadNorms>,
    pub(crate) output: Matrix,
    pub(crate) mlp_norm: Slab<f32>,
    pub(crate) gate_up: GateUp,
    pub(crate) down: Matrix,
    pub(crate) post_norms: Option<PostNorms>,
}

/// A matrix whose outputs go to a part of a row.
pub(crate) struct Projection {
    pub(crate) matrix: Matrix,
    /// Where its first output goes.
    pub(crate) at: usize,
}

/// Gates and what they gate.
pub(crate) enum GateUp {
    /// Tiles of both by turns, in one matrix.
    ByTurns(Matrix),
    /// Two matrices, because they are held in different formats.
    Apart { gate: Matrix, up: Matrix },
}

/// Norms of each head of queries and keys.
pub(crate) struct HeadNorms {
    pub(crate) queries: Slab<f32>,
    pub(crate) keys: Slab<f32>,
}

/// Norms of what is added to the residual stream.
pub(crate) struct PostNorms {
    pub(crate) attention: Slab<f32>,
    pub(crate) mlp: Slab<f32>,
}

/// A checkpoint and its configuration, checked against each other.
fn open(path: &Path, context: Option<usize>) -> Result<(Checkpoint, Config), LoadError> {
    let read = if path.is_file() { None } else { Some(Config::read(path)?) };
    let checkpoint = Checkpoint::open(path)?;
    let mut config = read.map_or_else(|| Config::of(&checkpoint), Ok)?;
    config.limit_context(context);
    // Before any memory is asked for: sizes in a configuration are believed only if the tensors bear them out.
    checkpoint.check(&config)?;
    Ok((checkpoint, config))
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("config", &self.config).field("dtype", &self.dtype).finish_non_exhaustive()
    }
}

impl Weights {
    /// Loads a Hugging Face folder or a GGUF file; `progress` is called after every tensor.
    ///
    /// # Errors
    /// When there is no checkpoint that this crate can compute; see [`LoadError`].
    pub fn load(
        path: &Path,
        options: impl Into<LoadOptions>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Arc<Self>, LoadError> {
        let options: LoadOptions = options.into();
        let dtype = options.dtype;
        let (checkpoint, config) = open(path, options.context)?;
        let source = Source::new(&checkpoint, &config, &[ARITHMETIC, dtype.name()], progress);
        let formats = Formats::new(&checkpoint, &config, dtype);
        let bytes = formats.bytes();
        let arena = Arena::new(bytes).map_err(|source| LoadError::Memory { bytes, source })?;
        let mut loader = Loader::new(source, &formats, arena);

        let names = checkpoint.names(&config);
        let tokens = |loader: &mut Loader<'_>, name: &str| {
            loader.matrix(name, (config.vocabulary, config.hidden), formats.vocabulary(name))
        };
        let embedding = tokens(&mut loader, &names.embedding())?;
        let layers = (0..config.blocks.len()).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?;
        let norm = loader.norm(&names.norm(), config.hidden)?;
        let head = if config.tied { None } else { Some(tokens(&mut loader, &names.head())?) };
        let fingerprint = loader.fingerprint();
        let ropes = config.ropes.iter().map(|rope| Rope::new(rope, config.context)).collect();
        let parameters = config.parameters();
        Ok(Arc::new(Self { config, dtype, embedding, head, layers, norm, ropes, parameters, fingerprint }))
    }

    /// The model's numbers.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of KV that a page of 16 tokens takes.
    #[must_use]
    pub fn page_bytes(&self, dtype: KvDtype) -> usize {
        page_bytes(&self.config, dtype)
    }

    /// What the weights are held in.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Parameters, tied weights once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Hash of configuration, weights, dtype and arithmetic: equal fingerprints give equal bits.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
