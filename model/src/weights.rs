//! A model's weights, packed for the kernels and shared by the engines of a process.

use std::path::Path;
use std::sync::Arc;

use crate::arena::{Arena, Slab, slab_bytes};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::Config;
use crate::error::LoadError;
use crate::fingerprint::Fingerprint;
use crate::matrix::{Matrix, TILE};
use crate::quant::{BLOCK, Dtype};
use crate::rope::Rope;

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

/// A loaded model. Engines of one process share it.
///
/// With Q8_0 the embedding is quantised too, and a token's row is the dequantised one: a tied head multiplies with
/// exactly what was looked up, and no second copy is held.
pub struct Weights {
    pub(crate) config: Config,
    pub(crate) dtype: Dtype,
    pub(crate) embedding: Matrix,
    /// `None` where the embedding is the head.
    pub(crate) head: Option<Matrix>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Slab<f32>,
    pub(crate) rope: Rope,
    parameters: u64,
    fingerprint: String,
}

/// One block.
pub(crate) struct Layer {
    pub(crate) attention_norm: Slab<f32>,
    /// Queries, keys, values.
    pub(crate) qkv: Matrix,
    pub(crate) output: Matrix,
    pub(crate) mlp_norm: Slab<f32>,
    /// Tiles of gates and of what they gate, by turns.
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("config", &self.config).field("dtype", &self.dtype).finish_non_exhaustive()
    }
}

impl Weights {
    /// Loads a Hugging Face folder; `progress` is called after every tensor.
    ///
    /// # Errors
    /// When the folder holds no Llama checkpoint that this crate can compute; see [`LoadError`].
    pub fn load(folder: &Path, dtype: Dtype, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Arc<Self>, LoadError> {
        let config = Config::read(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let shapes = Shapes::of(&config);
        let expected = tensor_names(&config);
        let ignored = |name: &str| name.ends_with("rotary_emb.inv_freq") || config.tied && name == "lm_head.weight";
        let known = |name: &str| expected.iter().any(|e| e == name) || ignored(name);
        if let Some(name) = checkpoint.names().find(|name| !known(name)) {
            return Err(checkpoint.unknown(name));
        }
        let mut hash = Fingerprint::new();
        for part in [ARITHMETIC, dtype.name(), &config.canonical()] {
            hash.add(part.as_bytes());
        }
        let bytes = shapes.bytes(&config, dtype);
        let arena = Arena::new(bytes).map_err(|source| LoadError::Memory { bytes, source })?;
        let total = checkpoint.bytes();
        let mut loader = Loader { checkpoint: &checkpoint, dtype, arena, hash, progress, done: 0, total };

        let embedding = loader.matrix("model.embed_tokens.weight", (config.vocabulary, config.hidden))?;
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            layers.push(loader.layer(layer, &config, &shapes)?);
        }
        let norm = loader.vector("model.norm.weight", config.hidden)?;
        let head =
            if config.tied { None } else { Some(loader.matrix("lm_head.weight", (config.vocabulary, config.hidden))?) };
        let fingerprint = loader.hash.hex();
        let (rope, parameters) = (Rope::new(&config), config.parameters());
        Ok(Arc::new(Self { config, dtype, embedding, head, layers, norm, rope, parameters, fingerprint }))
    }

    /// The model's numbers.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
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

/// Names of all tensors that a checkpoint of this configuration has.
pub(crate) fn tensor_names(config: &Config) -> Vec<String> {
    let mut names = vec!["model.embed_tokens.weight".to_owned(), "model.norm.weight".to_owned()];
    if !config.tied {
        names.push("lm_head.weight".to_owned());
    }
    for layer in 0..config.layers {
        for part in LAYER_PARTS {
            names.push(format!("model.layers.{layer}.{part}.weight"));
        }
    }
    names
}

/// Tensors of a block, without prefix and `.weight`.
pub(crate) const LAYER_PARTS: [&str; 9] = [
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Outputs and inputs of a block's matrices.
struct Shapes {
    queries: usize,
    keys: usize,
    qkv: (usize, usize),
    output: (usize, usize),
    gate_up: (usize, usize),
    down: (usize, usize),
}

impl Shapes {
    fn of(c: &Config) -> Self {
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        // Whole blocks of 32, because a block's gates and what they gate are handed to one thread.
        let inner = c.inner.next_multiple_of(BLOCK);
        Self {
            queries,
            keys,
            qkv: (queries + 2 * keys, c.hidden),
            output: (c.hidden, queries),
            gate_up: (2 * inner, c.hidden),
            down: (c.hidden, c.inner),
        }
    }

    /// Bytes of all that is held.
    fn bytes(&self, c: &Config, dtype: Dtype) -> usize {
        let size = |(outputs, inputs)| Matrix::bytes(outputs, inputs, dtype);
        let norm = slab_bytes::<f32>(c.hidden.next_multiple_of(BLOCK));
        let block = size(self.qkv) + size(self.output) + size(self.gate_up) + size(self.down) + 2 * norm;
        let embedding = size((c.vocabulary, c.hidden));
        c.layers * block + embedding * if c.tied { 1 } else { 2 } + norm
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    dtype: Dtype,
    arena: Arena,
    hash: Fingerprint,
    progress: &'a mut dyn FnMut(Progress<'_>),
    done: u64,
    total: u64,
}

impl<'a> Loader<'a> {
    /// Finds a tensor and adds it to the fingerprint.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, LoadError> {
        let tensor = self.checkpoint.tensor(name, shape)?;
        self.hash.add(name.as_bytes());
        self.hash.add(format!("{:?}", tensor.stored).as_bytes());
        self.hash.add(tensor.bytes);
        Ok(tensor)
    }

    fn count(&mut self, tensors: &[&Tensor<'_>]) {
        self.done += tensors.iter().map(|t| t.bytes.len() as u64).sum::<u64>();
        (self.progress)(Progress { stage: "loading weights", done: self.done, total: self.total });
    }

    fn vector(&mut self, name: &str, width: usize) -> Result<Slab<f32>, LoadError> {
        let tensor = self.tensor(name, &[width])?;
        let mut slab = self.arena.take(width.next_multiple_of(BLOCK));
        tensor.row(0, &mut slab)?;
        self.count(&[&tensor]);
        Ok(slab)
    }

    fn matrix(&mut self, name: &str, shape: (usize, usize)) -> Result<Matrix, LoadError> {
        let tensor = self.tensor(name, &[shape.0, shape.1])?;
        let matrix = Matrix::pack(&mut self.arena, name, shape, self.dtype, &mut |row, to| tensor.row(row, to))?;
        self.count(&[&tensor]);
        Ok(matrix)
    }

    fn layer(&mut self, layer: usize, c: &Config, shapes: &Shapes) -> Result<Layer, LoadError> {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let attention_norm = self.vector(&name("input_layernorm"), c.hidden)?;
        let (queries, keys) = (shapes.queries, shapes.keys);
        let q = self.tensor(&name("self_attn.q_proj"), &[queries, c.hidden])?;
        let k = self.tensor(&name("self_attn.k_proj"), &[keys, c.hidden])?;
        let v = self.tensor(&name("self_attn.v_proj"), &[keys, c.hidden])?;
        let label = name("self_attn.{q,k,v}_proj");
        let qkv = Matrix::pack(&mut self.arena, &label, shapes.qkv, self.dtype, &mut |row, to| {
            if row < queries {
                q.row(row, to)
            } else if row < queries + keys {
                k.row(row - queries, to)
            } else {
                v.row(row - queries - keys, to)
            }
        })?;
        self.count(&[&q, &k, &v]);
        let output = self.matrix(&name("self_attn.o_proj"), shapes.output)?;
        let mlp_norm = self.vector(&name("post_attention_layernorm"), c.hidden)?;
        let gate = self.tensor(&name("mlp.gate_proj"), &[c.inner, c.hidden])?;
        let up = self.tensor(&name("mlp.up_proj"), &[c.inner, c.hidden])?;
        let label = name("mlp.{gate,up}_proj");
        let gate_up = Matrix::pack(&mut self.arena, &label, shapes.gate_up, self.dtype, &mut |row, to| {
            let (tile, lane) = (row / TILE, row % TILE);
            let output = tile / 2 * TILE + lane;
            match output < c.inner {
                true if tile % 2 == 0 => gate.row(output, to),
                true => up.row(output, to),
                false => Ok(()),
            }
        })?;
        self.count(&[&gate, &up]);
        let down = self.matrix(&name("mlp.down_proj"), shapes.down)?;
        Ok(Layer { attention_norm, qkv, output, mlp_norm, gate_up, down })
    }
}
